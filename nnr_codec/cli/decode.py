"""nnr-decode: an NNR bitstream back into a model."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from ..checkpoints import check_output, save_checkpoint
from ..decoder import StreamDecoder
from ..digest import digest
from ..errors import InvalidOptions
from ..model import Parameter
from ..report import printable
from . import _common as common

PROGRAM = "nnr-decode"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    given = _parser().parse_args(arguments)
    return common.run(PROGRAM, lambda: _decode(given))


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(
        PROGRAM, "Decode an NNR bitstream into a model (safetensors, npz, PyTorch, ONNX)."
    )
    parser.add_argument("input", metavar="IN.nnr", help="the bitstream; - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="model to write: .safetensors, .npz, .pt, or .onnx with --graph",
    )
    parser.add_argument(
        "--graph", metavar="ORIGINAL.onnx", help="the ONNX model whose values are replaced"
    )
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the output")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    parser.add_argument("--only", metavar="GLOB", help="decode only tensors whose names match")
    common.add_layers(parser)
    common.add_parents(parser)
    parser.add_argument(
        "--verify",
        metavar="DIGEST",
        help="write nothing unless the decoded model has this digest (nnr-info --digest)",
    )
    common.add_limits(parser)
    common.add_threads(parser)
    return parser


def _decode(given: argparse.Namespace) -> int:
    if given.verify is not None and given.only is not None:
        raise InvalidOptions("--verify", "is the digest of the whole model: not with --only")
    check_output(given.output, overwrite=given.force, graph=given.graph)
    start = time.perf_counter()
    tensors = _tensors(given)
    if given.only is not None and not tensors and not given.quiet:
        common.warn(PROGRAM, f"{given.only!r} matches no tensor")
    arrays = ((tensor.name, tensor.read()) for tensor in tensors)
    found = digest(arrays) if given.verify is not None or given.json else None
    if given.verify is not None and found != given.verify.lower():
        reason = f"its digest is {found}, not {given.verify}; nothing was written"
        raise common.VerificationMismatch(f"{given.input}: {reason}")
    save_checkpoint(given.output, tensors, overwrite=given.force, graph=given.graph)
    _show(given, tensors, found, time.perf_counter() - start)
    return common.DONE


def _tensors(given: argparse.Namespace) -> list[Parameter]:
    source = sys.stdin.buffer if given.input == "-" else given.input
    tensors: dict[str, Parameter] = {}
    with (
        common.executor(given.threads) as executor,
        common.progress_bar(given.quiet, None, "w") as advance,
    ):
        decoder = StreamDecoder(
            parents=given.parent, only=given.only, limits=common.limits(given), executor=executor
        )
        for tensor in decoder.tensors(source, given.layers):
            tied_to = tensor.tied_to if tensor.tied_to in tensors else None
            parameter = Parameter.from_array(tensor.name, tensor.values)
            tensors[tensor.name] = replace(parameter, tied_to=tied_to)
            advance(parameter.size)
    return list(tensors.values())


def _show(
    given: argparse.Namespace, tensors: list[Parameter], found: str | None, seconds: float
) -> None:
    size = sum(tensor.nbytes for tensor in tensors)
    elements = sum(tensor.size for tensor in tensors)
    if given.json:
        common.print_json(
            {
                "input": given.input,
                "output": given.output,
                "tensors": len(tensors),
                "elements": elements,
                "bytes": size,
                "digest": found,
                "seconds": seconds,
            }
        )
    elif not given.quiet:
        print(
            f"{printable(given.input)} -> {printable(given.output)}: {len(tensors)} tensors, "
            f"{elements} weights, {common.human_bytes(size)}, {seconds:.2f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
