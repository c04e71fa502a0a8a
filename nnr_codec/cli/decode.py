"""nnr-decode: an NNR bitstream back into a model."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from ..checkpoints import check_output, save_checkpoint
from ..decoding.decoded_model import DecodedModel
from ..decoding.source import opened_twice
from ..decoding.stream_decoder import StreamDecoder
from ..errors import InvalidOptions, VerificationMismatch
from ..factorization.metadata import KEY, USUAL
from ..model import Array, Parameter
from ..remote.addresses import is_address
from ..report import size_text
from ..support.digest import ModelDigest
from . import _common as common
from . import _files
from ._updates import add_base, base_files
from .text import printable

PROGRAM = "nnr-decode"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return common.run(_parser(), _decode, arguments)


def _parser() -> common.Parser:
    parser = common.Parser(
        PROGRAM, "Decode an NNR bitstream into a model (safetensors, npz, PyTorch, ONNX)."
    )
    parser.add_argument(
        "input",
        metavar="IN.nnr",
        help="bitstream, its address (https://…, s3://…), folder with model.nnr, or - for standard "
        "input",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="model to write: .safetensors, .npz, .pt, .onnx with --graph; of a folder: FOLDER/",
    )
    parser.add_argument(
        "--graph", metavar="ORIGINAL.onnx", help="the ONNX model whose values are replaced"
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    parser.add_argument("--only", metavar="GLOB", help="decode only tensors whose names match")
    common.add_layers(parser)
    common.add_parents(parser)
    add_base(parser, "the input is an update of them, and the output is the whole model")
    parser.add_argument(
        "--verify",
        type=_digest,
        metavar="DIGEST",
        help="write nothing unless the decoded model has this digest (nnr-info --digest)",
    )
    common.add_quality(parser)
    common.add_cache(parser)
    common.add_limits(parser)
    common.add_threads(parser)
    return parser


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError("a digest is 64 hexadecimal digits")
    return text


def _decode(given: argparse.Namespace) -> int:
    if given.verify is not None and given.only is not None:
        raise InvalidOptions("--verify", "needs the whole model: leave --only out")
    source, output = _files.stream_file(given.input), _files.model_output(given.output, given.input)
    is_file = os.path.isfile(output) or not os.path.exists(output)
    if given.verify is not None and not is_file:  # a pipe, a device
        raise InvalidOptions("--verify", f"needs a file to write, which {output!r} is not")
    check_output(output, overwrite=True, graph=given.graph)
    common.check_output(source, output, overwrite=given.force)
    base = base_files(given)
    _files.refuse_inputs(output, [*given.parent, *base])
    start = time.perf_counter()
    state = ModelDigest() if given.verify is not None or given.json else None
    with common.executor(given.threads) as executor:
        decoder = StreamDecoder(
            parents=given.parent,
            base=base,
            only=given.only,
            limits=common.limits(given),
            executor=executor,
            cache=given.cache,
            quality=given.quality,
        )
        with (
            common.recognizing_models(source),
            _files.opened(given, source) as file,
            opened_twice(file) as stream,
            _files.around(given.input, given.output, overwrite=given.force),
        ):
            model = DecodedModel(decoder, stream, given.layers, state.update if state else None)
            if KEY in model.metadata and given.graph is not None:
                reason = "factorized: an ONNX graph cannot hold factors"
                raise InvalidOptions("--layers", reason)
            if given.only is not None and not model.parameters:
                raise InvalidOptions("--only", f"{given.only!r} matches no tensor")
            _write(given, output, model, state)
    digest = state.hexdigest() if state is not None else None
    _show(given, model.parameters, digest, time.perf_counter() - start)
    return common.DONE


def _write(
    given: argparse.Namespace, output: str, model: DecodedModel, state: ModelDigest | None
) -> None:
    """Decode and write tensor after tensor; the file appears if the digest is the right one."""

    def complete() -> None:
        model.finish()
        digest = state.hexdigest() if state is not None else None
        if given.verify is not None and digest != given.verify.lower():
            reason = f"its digest is {digest}, not {given.verify}; nothing was written"
            raise VerificationMismatch(f"{given.input}: {reason}")

    is_safetensors = output.lower().endswith(".safetensors")
    total = sum(parameter.size for parameter in model.parameters)
    # Of an address there is a bar already, of the bytes that come.
    with common.progress_bar(given.quiet or is_address(given.input), total, "w") as advance:
        save_checkpoint(
            output,
            [_advancing(parameter, advance) for parameter in model.parameters],
            overwrite=given.force,
            metadata={**(USUAL if is_safetensors else {}), **model.metadata},
            graph=given.graph,
            complete=complete,
        )


def _advancing(parameter: Parameter, advance: Callable[[float], object]) -> Parameter:
    """Return a parameter that moves the progress bar when it was read."""

    def load() -> Array:
        values = parameter.read()
        advance(parameter.size)
        return values

    return replace(parameter, load=load)


def _show(
    given: argparse.Namespace, tensors: list[Parameter], digest: str | None, seconds: float
) -> None:
    size = sum(tensor.nbytes for tensor in tensors)
    elements = sum(tensor.size for tensor in tensors)
    if given.json:
        common.print_json(
            {"input": given.input, "output": given.output, "tensors": len(tensors)}
            | {"elements": elements, "bytes": size, "digest": digest, "seconds": seconds}
        )
    elif not given.quiet:
        print(
            f"{printable(given.input)} -> {printable(given.output)}: "
            f"{common.counted(len(tensors), 'tensor')}, {common.counted(elements, 'weight')}, "
            f"{size_text(size)}, {seconds:.2f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
