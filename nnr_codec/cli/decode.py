"""nnr-decode: an NNR bitstream back into a model."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import BinaryIO, NamedTuple

from ..checkpoints import check_output, save_arriving, save_checkpoint, takes_arriving
from ..decoding.decoded_model import ArrivingModel, DecodedModel
from ..decoding.source import may_wait, opened_twice
from ..decoding.stream_decoder import StreamDecoder
from ..errors import InvalidOptions, VerificationMismatch
from ..factorization.metadata import KEY, USUAL
from ..model import Array, Parameter
from ..remote.addresses import is_address
from ..remote.remote_file import RemoteFile
from ..report import size_text
from ..support.digest import ModelDigest
from . import _common as common
from . import _files
from ._running import run
from ._updates import add_base, base_files
from .text import printable

PROGRAM = "nnr-decode"


class _Written(NamedTuple):
    """How many tensors were written, and how large they are together."""

    tensors: int
    elements: int
    bytes: int


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_parser(), _decode, arguments)


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
        decoder = _decoder(given, base, executor)
        with (
            common.recognizing_models(source),
            _files.opened(given, source) as file,
            _files.around(given.input, given.output, overwrite=given.force),
        ):
            write = _write_arriving if _can_be_written_arriving(given, file, output) else _write
            written = write(given, output, decoder, file, state)
    digest = state.hexdigest() if state is not None else None
    _show(given, written, digest, time.perf_counter() - start)
    return common.DONE


def _decoder(
    given: argparse.Namespace, base: Sequence[str], executor: Executor | None
) -> StreamDecoder:
    return StreamDecoder(
        parents=given.parent,
        base=base,
        only=given.only,
        limits=common.limits(given),
        executor=executor,
        cache=given.cache,
        quality=given.quality,
    )


def _can_be_written_arriving(
    given: argparse.Namespace, file: BinaryIO | RemoteFile, output: str
) -> bool:
    """Whether tensors are written as they come. An update of a base has to be there as a whole, and
    so have the headers of factors, as the file has their map before them."""
    is_plain = given.layers == "dense" and not given.base
    return is_plain and may_wait(file) and takes_arriving(output)


def _write(
    given: argparse.Namespace,
    output: str,
    decoder: StreamDecoder,
    file: BinaryIO | RemoteFile,
    state: ModelDigest | None,
) -> _Written:
    """Read the headers, then decode and write tensor after tensor; the file appears if the digest
    is the right one."""
    with opened_twice(file) as stream:
        model = DecodedModel(decoder, stream, given.layers, state.update if state else None)
        if KEY in model.metadata and given.graph is not None:
            reason = "factorized: an ONNX graph cannot hold factors"
            raise InvalidOptions("--layers", reason)
        if given.only is not None and not model.parameters:
            raise _matches_nothing(given)

        def complete() -> None:
            model.finish()
            _check_digest(given, state)

        total = sum(parameter.size for parameter in model.parameters)
        with _progress(given, total) as advance:
            save_checkpoint(
                output,
                [_advancing(parameter, advance) for parameter in model.parameters],
                overwrite=given.force,
                metadata=_usual_metadata(output) | model.metadata,
                graph=given.graph,
                complete=complete,
            )
    tensors = model.parameters
    return _Written(len(tensors), total, sum(tensor.nbytes for tensor in tensors))


def _write_arriving(
    given: argparse.Namespace,
    output: str,
    decoder: StreamDecoder,
    file: BinaryIO | RemoteFile,
    state: ModelDigest | None,
) -> _Written:
    """Decode and write tensor after tensor while the stream arrives; as `_write`, the file
    appears in the end."""
    model = ArrivingModel(decoder, file, state.update if state else None)

    def complete() -> None:
        if given.only is not None and not model.count:
            raise _matches_nothing(given)
        _check_digest(given, state)

    with _progress(given, None) as advance:
        save_arriving(
            output,
            map(partial(_passed, advance), model.arrays()),
            overwrite=given.force,
            metadata=lambda: _usual_metadata(output) | model.metadata(),
            complete=complete,
        )
    return _Written(model.count, model.elements, model.bytes)


def _progress(
    given: argparse.Namespace, total: float | None
) -> AbstractContextManager[Callable[[float], object]]:
    # Of an address there is a bar already, of the bytes that come.
    return common.progress_bar(given.quiet or is_address(given.input), total, "w")


def _usual_metadata(output: str) -> dict[str, str]:
    """Return the entries that a file has if the model has no others of these names."""
    return dict(USUAL) if output.lower().endswith(".safetensors") else {}


def _matches_nothing(given: argparse.Namespace) -> InvalidOptions:
    return InvalidOptions("--only", f"{given.only!r} matches no tensor")


def _check_digest(given: argparse.Namespace, state: ModelDigest | None) -> None:
    """Raise VerificationMismatch if the decoded model has another digest than it should."""
    digest = state.hexdigest() if state is not None else None
    if given.verify is not None and digest != given.verify.lower():
        reason = f"its digest is {digest}, not {given.verify}; nothing was written"
        raise VerificationMismatch(f"{_files.shown(given.input)}: {reason}")


def _passed(advance: Callable[[float], object], tensor: tuple[str, Array]) -> tuple[str, Array]:
    """Return a tensor that moved the progress bar."""
    advance(tensor[1].size)
    return tensor


def _advancing(parameter: Parameter, advance: Callable[[float], object]) -> Parameter:
    """Return a parameter that moves the progress bar when it was read."""

    def load() -> Array:
        values = parameter.read()
        advance(parameter.size)
        return values

    return replace(parameter, load=load)


def _show(given: argparse.Namespace, written: _Written, digest: str | None, seconds: float) -> None:
    if given.json:
        common.print_json(
            {"input": _files.shown(given.input), "output": given.output, "tensors": written.tensors}
            | {"elements": written.elements, "bytes": written.bytes}
            | {"digest": digest, "seconds": seconds}
        )
    elif not given.quiet:
        print(
            f"{printable(_files.shown(given.input))} -> {printable(given.output)}: "
            f"{common.counted(written.tensors, 'tensor')}, "
            f"{common.counted(written.elements, 'weight')}, "
            f"{size_text(written.bytes)}, {seconds:.2f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
