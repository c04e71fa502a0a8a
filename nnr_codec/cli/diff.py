"""nnr-diff: how the tensors of two bitstreams or models differ."""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from typing import Any

from ..errors import InvalidOptions
from ..model import Parameter, dtype_name
from . import _common as common
from ._comparison import ComparedTensor, Difference, compared
from ._files import shown
from ._open_models import ModelOpener, OpenModel
from ._running import run
from ._updates import add_base
from .text import printable, table

PROGRAM = "nnr-diff"
_HEADER = ("tensor", "shape", "dtype", "changed", "NMSE", "max error", "bytes A", "bytes B")
_ONLY_IN = ("only in A", "only in B")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_parser(), _diff, arguments)


def _parser() -> common.Parser:
    parser = common.Parser(
        PROGRAM,
        "Compare two bitstreams or models, tensor by tensor. Exit code 0: they have the same "
        "tensors, with the same shapes, element types and values; 4: they differ.",
    )
    for name, which in (("first", "the model that errors are relative to"), ("second", "another")):
        parser.add_argument(
            name,
            metavar="AB"[name == "second"],
            help=f"{which}: a bitstream, which may be at an address, a model file, or a folder "
            "with one of these",
        )
    parser.add_argument("--only", metavar="GLOB", help="compare only tensors whose names match")
    add_base(parser, "what is an update of them is compared as the whole model")
    common.add_quality(parser, "B, a file")
    common.add_amount(parser, "tensor, not only for those that differ")
    common.add_cache(parser)
    common.add_limits(parser)
    common.add_threads(parser)
    return parser


def _diff(given: argparse.Namespace) -> int:
    with common.executor(given.threads) as executor, ExitStack() as stack:
        opener = ModelOpener(given, executor)
        first = stack.enter_context(opener.opened(given.first))
        second = stack.enter_context(opener.opened(given.second, given.quality))
        if given.base and not (first.is_update or second.is_update):
            raise InvalidOptions("--base", "has no effect: neither is an update")
        tensors = _compared(given, first, second)
        if given.only is not None and not tensors:
            raise InvalidOptions("--only", f"{given.only!r} matches no tensor of either")
        totals = sum((t.difference for t in tensors if t.difference is not None), Difference())
        if given.json:
            common.print_json(_json(given, first, second, tensors, totals))
        elif not given.quiet:
            _print(given, first, second, tensors, totals)
    return common.DONE if all(tensor.is_equal for tensor in tensors) else common.MISMATCH


def _compared(
    given: argparse.Namespace, first: OpenModel, second: OpenModel
) -> list[ComparedTensor]:
    total = sum(parameter.size for parameter in first.parameters.values())
    tensors = []
    with common.progress_bar(given.quiet or given.json, total, "w") as advance:
        for tensor in compared(first, second, given.only):
            tensors.append(tensor)
            advance(tensor.first.size if tensor.first is not None else 0)
    return tensors


def _print(
    given: argparse.Namespace,
    first: OpenModel,
    second: OpenModel,
    tensors: list[ComparedTensor],
    totals: Difference,
) -> None:
    rows = [_row(tensor) for tensor in tensors if given.verbose or not tensor.is_equal]
    if rows:
        print(table(_HEADER, rows))
    missing = [sum(side is None for side in sides) for sides in _sides(tensors)]
    counts = [
        f"{common.counted(len(tensors), 'tensor')}, {_differing(tensors)} different",
        *(f"{n} {text}" for n, text in zip(reversed(missing), _ONLY_IN, strict=True) if n),
    ]
    names = " -> ".join(printable(shown(name)) for name in (given.first, given.second))
    print(
        f"{names}: {', '.join(counts)}; "
        f"{_share(totals)} of {common.counted(totals.elements, 'weight')} changed, "
        f"NMSE {totals.nmse:.3g}, max error {totals.largest_error:.3g}, "
        f"{first.bytes} -> {second.bytes} bytes"
    )


def _sides(
    tensors: list[ComparedTensor],
) -> tuple[list[Parameter | None], list[Parameter | None]]:
    return [tensor.first for tensor in tensors], [tensor.second for tensor in tensors]


def _differing(tensors: list[ComparedTensor]) -> int:
    """Return how many of the tensors that both models have differ."""
    in_both = [t for t in tensors if t.first is not None and t.second is not None]
    return sum(not tensor.is_equal for tensor in in_both)


def _row(tensor: ComparedTensor) -> tuple[str, ...]:
    shapes, dtypes = (_changes(tensor, text) for text in (_shape, _dtype))
    sizes = ["-" if size is None else str(size) for size in tensor.coded_bytes]
    return printable(tensor.name), shapes, dtypes, *_measures(tensor), *sizes


def _measures(tensor: ComparedTensor) -> tuple[str, str, str]:
    """Return what of the elements changed, the error, and the largest one."""
    difference = tensor.difference
    if difference is not None:
        largest = difference.largest_error
        return _share(difference), f"{difference.nmse:.2e}", f"{largest:.2e}"
    if tensor.second is None:
        return _ONLY_IN[0], "-", "-"
    return (_ONLY_IN[1], "-", "-") if tensor.first is None else ("shape", "-", "-")


def _share(difference: Difference) -> str:
    """Return the changed elements in percent: 0 % for none alone, 100 % for all alone."""
    changed, elements = difference.changed, difference.elements
    if not changed:
        return "0 %"
    return "100 %" if changed == elements else f"{min(100 * changed / elements, 99.9):.3g} %"


def _changes(tensor: ComparedTensor, text: Any) -> str:
    """Return what both models have, once where it is the same."""
    sides = [text(side) for side in (tensor.first, tensor.second) if side is not None]
    return " -> ".join(dict.fromkeys(sides))


def _shape(parameter: Parameter) -> str:
    return common.shape_text(parameter.shape)


def _dtype(parameter: Parameter) -> str:
    return dtype_name(parameter.dtype)


def _json(
    given: argparse.Namespace,
    first: OpenModel,
    second: OpenModel,
    tensors: list[ComparedTensor],
    totals: Difference,
) -> dict[str, Any]:
    in_first, in_second = _sides(tensors)
    return {
        "first": shown(given.first),
        "second": shown(given.second),
        "equal": all(tensor.is_equal for tensor in tensors),
        "tensors": len(tensors),
        "differing": _differing(tensors),
        "only_in_first": sum(side is None for side in in_second),
        "only_in_second": sum(side is None for side in in_first),
        **_difference_json(totals),
        "bytes": [first.bytes, second.bytes],
        "per_tensor": [_tensor_json(tensor) for tensor in tensors],
    }


def _tensor_json(tensor: ComparedTensor) -> dict[str, Any]:
    sides = tensor.first, tensor.second
    return {
        "name": tensor.name,
        "equal": tensor.is_equal,
        "shapes": [None if side is None else list(side.shape) for side in sides],
        "dtypes": [None if side is None else _dtype(side) for side in sides],
        "bytes": list(tensor.coded_bytes),
        **(_difference_json(tensor.difference) if tensor.difference is not None else {}),
    }


def _difference_json(difference: Difference) -> dict[str, float | None]:
    """Return the measures; None for those that are infinite."""
    measures = {
        "elements": difference.elements,
        "changed": difference.changed,
        "squared_error": difference.squared_error,
        "energy": difference.energy,
        "nmse": difference.nmse,
        "max_error": difference.largest_error,
    }
    return {name: value if math.isfinite(value) else None for name, value in measures.items()}


if __name__ == "__main__":
    sys.exit(main())
