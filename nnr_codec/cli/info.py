"""nnr-info: what is in an NNR bitstream."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from ..bitstream import ParsedUnit
from ..decoding.source import opened_twice
from ..decoding.stream_decoder import StreamDecoder
from ..decoding.stream_description import describe_layers, describe_stream
from ..decoding.stream_info import StreamInfo, TensorInfo
from ..decoding.stream_map import StreamMap
from ..decoding.updates.base_model import opened_base
from ..decoding.updates.changes import TensorChange, changes_of
from ..decoding.updates.quality_layers import LayersFound, without_layers
from ..errors import BitstreamError, InvalidOptions, naming
from ..options import DecodeLimits
from ..remote.remote_file import RemoteFile
from ..report import ExtraReport
from ..support.digest import digest
from ..support.mapped_file import mapped
from ..support.rereadable_file import RereadableFile
from . import _common as common
from . import _files
from ._running import run
from ._updates import add_base, base_files, changes_text, opened_update
from .text import printable, table

PROGRAM = "nnr-info"
_LONGEST_VALUE = 200  # characters of a listed value
_HEADER = ("tensor", "shape", "kind", "bytes", "bit/weight", "qp", "N", "scan", "dq")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run(_parser(), _info, arguments)


def _parser() -> common.Parser:
    parser = common.Parser(PROGRAM, "Show what is in an NNR bitstream, without decoding it.")
    parser.add_argument(
        "input",
        metavar="IN.nnr",
        help="bitstream, its address (https://…, s3://…), folder with model.nnr, or -",
    )
    parser.add_argument("--units", action="store_true", help="list every syntax element")
    parser.add_argument(
        "--digest", action="store_true", help="decode, and print the model's digest (SHA-256) alone"
    )
    common.add_layers(parser)
    common.add_parents(parser)
    common.add_quality(parser)
    common.add_cache(parser)
    add_base(parser, "shows which tensors the input, an update of them, changes")
    common.add_limits(parser)
    common.add_threads(parser)
    return parser


def _info(given: argparse.Namespace) -> int:
    if given.units and given.digest and not given.json:
        raise InvalidOptions(
            "units", "--digest prints the digest alone: leave one out, or add --json"
        )
    limits = common.limits(given)
    if given.parent and not given.digest:
        reason = "is for --digest alone, since headers can be read without parents"
        raise InvalidOptions("--parent", reason)
    listed: list[dict[str, Any]] = []
    model_digest = None
    changes: list[TensorChange] = []
    path = _files.stream_file(given.input)
    with common.recognizing_models(path), _files.opened(given, path) as file:
        if given.digest or given.base:
            with opened_twice(file) as stream:  # of a pipe a copy is kept
                if isinstance(stream, RemoteFile):
                    stream.expect([(0, stream.size)])
                info = _described(
                    stream, file.name, limits, given.quality, listed if given.units else None
                )
                if given.base:
                    changes = changes_of(opened_update(given, _from_start(stream), limits))
                if given.digest:
                    model_digest = _digest(given, _from_start(stream), limits)
        else:
            info = _described(
                file, file.name, limits, given.quality, listed if given.units else None
            )
    if given.json:
        extra = {"unit_list": listed} if given.units else {}
        digests = {"digest": model_digest} if given.digest else {}
        changed = {"changes": [change._asdict() for change in changes]} if given.base else {}
        common.print_json(
            {"input": _files.shown(given.input), **info.to_json(), **changed, **digests, **extra}
        )
    elif given.digest:
        print(model_digest)
    else:
        _print(given, info, listed, changes)
    return common.DONE


def _from_start(stream: RereadableFile | RemoteFile) -> RereadableFile | RemoteFile:
    """Return a stream that was read, to be read again."""
    if isinstance(stream, RereadableFile):
        stream.rewind()
    return stream


def _described(
    source: BinaryIO | RereadableFile | RemoteFile,
    name: str,
    limits: DecodeLimits,
    quality: int | None,
    listed: list[dict[str, Any]] | None,
) -> StreamInfo:
    """Describe a stream, unit by unit, or so many quality layers; and list the units if there is a
    list for them."""

    data = source if isinstance(source, RereadableFile | RemoteFile) else mapped(source)
    with naming(name, BitstreamError):
        units = without_layers(StreamMap().units(data, limits), data, limits, quality, name)
        try:
            return describe_stream(_listed(units, listed))
        except LayersFound as found:
            if listed is not None:
                listed.clear()  # of the units before the layers were found
            streams = opened_base(found.streams, limits).streams  # which fit together
            return describe_layers(_listed(stream.units, listed) for stream in streams)


def _listed(
    units: Iterable[ParsedUnit], listed: list[dict[str, Any]] | None
) -> Iterator[ParsedUnit]:
    """Yield units, and list them if there is a list for them."""
    for parsed in units:
        if listed is not None:
            listed.append(_unit_json(parsed))
        yield parsed


def _digest(
    given: argparse.Namespace, source: RereadableFile | RemoteFile, limits: DecodeLimits
) -> str:
    with common.executor(given.threads) as executor:
        base = base_files(given)
        decoder = StreamDecoder(
            parents=given.parent,
            base=base,
            limits=limits,
            executor=executor,
            cache=given.cache,
            quality=given.quality,
        )
        return digest((t.name, t.values) for t in decoder.tensors(source, given.layers))


def _print(
    given: argparse.Namespace,
    info: StreamInfo,
    units: list[dict[str, Any]],
    changes: list[TensorChange],
) -> None:
    if given.units:
        for unit in units:
            print(f"{unit['unit']}, {unit['bytes']} bytes at {unit['offset']}")
            for element in unit["elements"]:
                value = printable(_shortened(element["value"]))
                print(f"    {element['name']:45s} {element['descriptor']:8s} {value}")
    elif given.base:
        print(changes_text(changes))
    else:
        rows = [_row(tensor) for tensor in info.tensors]
        print(table(_HEADER, rows + [_extra_row(extra) for extra in info.extras]))
        if info.factorizations:
            print(_factorization_rows(info))
    if info.quality_layers:
        sizes = ", ".join(f"{size}" for size in itertools.accumulate(info.quality_layers))
        count = common.counted(len(info.quality_layers), "quality layer")
        print(f"{count}, up to byte {sizes}")
    print(
        f"{printable(_files.shown(given.input))}: profile {info.profile}, "
        f"{common.counted(info.units, 'unit')}, "
        f"{common.counted(len(info.tensors), 'tensor')}, "
        f"{common.counted(info.elements, 'weight')}, "
        f"{info.original_bytes} -> {info.bytes} bytes ({100 * info.ratio:.2f} %), "
        f"{info.bits_per_weight:.3f} bit/weight, qp density {info.qp_density}"
        f"{', an update: --base shows what it changes' if info.base and not given.base else ''}"
    )


def _factorization_rows(info: StreamInfo) -> str:
    """Return a table of the weights that come as factors, and of all parameters."""
    header = ("weight", "shape", "form", "ranks", "parameters", "as factors", "bytes")
    rows = [
        (
            printable(weight.name),
            common.shape_text(weight.shape),
            weight.form,
            ",".join(map(str, weight.ranks)),
            str(weight.elements),
            str(weight.parameters),
            str(weight.bytes),
        )
        for weight in info.factorizations
    ]
    total = ("whole model", "", "", "", str(info.elements), str(info.parameters), "")
    return "\n" + table(header, [*rows, total]) + "\n"


def _extra_row(extra: ExtraReport) -> tuple[str, ...]:
    row = (printable(extra.name), common.shape_text(extra.shape), printable(extra.kind))
    return (*row, *["-"] * (len(_HEADER) - len(row)))


def _row(tensor: TensorInfo) -> tuple[str, ...]:
    kind = tensor.kind if tensor.role == "weight" else f"{tensor.kind} {tensor.role}"
    if tensor.codebook_size is not None:
        kind += f" codebook({tensor.codebook_size})"
    return (
        printable(tensor.name),
        common.shape_text(tensor.shape),
        kind,
        str(tensor.bytes) if tensor.bytes else "-",
        f"{tensor.bits_per_weight:.3f}" if tensor.bytes else "-",
        *(
            "-" if n is None else str(n)
            for n in (tensor.qp, tensor.unary_length, tensor.scan_order)
        ),
        "-" if tensor.dq is None else ("yes" if tensor.dq else "no"),
    )


def _unit_json(parsed: ParsedUnit) -> dict[str, Any]:
    return {
        "unit": parsed.unit.label,
        "offset": parsed.unit.byte_offset,
        "bytes": parsed.unit.size,
        "payload_bytes": len(parsed.payload),
        "elements": [
            {"name": e.name, "descriptor": e.descriptor, "value": _plain(e.value)}
            for e in parsed.elements()
        ],
    }


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _shortened(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


if __name__ == "__main__":
    sys.exit(main())
