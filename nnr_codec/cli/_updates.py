"""The flags of updates: --base and what belongs to it, and the table of what an update changes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..checkpoints.file_format import is_model_file
from ..decoding.source import BASE_AND_PARENTS, Source
from ..decoding.updates.base_model import BaseModel, opened_base
from ..decoding.updates.changes import TensorChange
from ..errors import InvalidOptions
from ..options import DecodeLimits
from . import _common as common
from . import _files
from .text import printable, table


def add_base(parser: Any, text: str) -> None:
    """Add --base to a parser or a group of options; `text`: what it serves."""
    parser.add_argument(
        "--base",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help=f"the streams that decoders have, oldest first: {text}; it comes after all files that "
        "have no flag",
    )


def add_update_options(parser: Any) -> None:
    """Add the flags of an encoder of updates."""
    group = parser.add_argument_group("updates of what decoders have")
    add_base(group, "the output is an update, which with them decodes to the input")
    group.add_argument(
        "--base-model",
        metavar="MODEL",
        help="what the base was made of: values that are the same in the input stay as decoders "
        "have them",
    )
    group.add_argument(
        "--residual",
        metavar="FILE.safetensors",
        help="what updates did not carry: it is added to the input, and replaced by what this one "
        "does not carry",
    )


def base_files(given: argparse.Namespace) -> list[str]:
    """Return the files of --base: of a folder the stream in it.

    Raises:
        InvalidOptions: there is a --parent, too; or one of them is standard input.
        InvalidModel: there is no stream in a folder.
    """
    if given.base and getattr(given, "parent", None):
        raise InvalidOptions("--base", BASE_AND_PARENTS)
    if "-" in given.base:
        raise InvalidOptions("--base", "names files: streams of a base are read more than once")
    paths = [_files.stream_file(path) for path in given.base]
    for path in paths:
        if is_model_file(path):
            reason = f"{path!r} looks like a model file: a base is what decoders have, bitstreams"
            hint = "; what it was made of belongs to --base-model"
            raise InvalidOptions("--base", reason + hint * hasattr(given, "base_model"))
    return paths


def update_files(given: argparse.Namespace) -> list[str]:
    """Return the files that an update is made against."""
    return [*given.parent, *given.base, *filter(None, (given.base_model, given.residual))]


def update_arguments(given: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``nnr_codec.encode`` that say what an update is made against.

    Raises: as `base_files` does.
    """
    residual = None if given.dry_run else given.residual
    if residual is not None and not residual.endswith(".safetensors"):
        raise InvalidOptions("--residual", f"{residual!r} does not end with .safetensors")
    files = base_files(given)
    if not files and given.residual is not None:
        raise InvalidOptions("--residual", "belongs to a base: give --base, too")
    return {"base": files, "base_model": given.base_model, "residual": residual}


def opened_update(given: argparse.Namespace, source: Source, limits: DecodeLimits) -> BaseModel:
    """Open an update and its base; raises what `opened_base` and `with_update` raise."""
    return opened_base(base_files(given), limits, given.cache).with_update(source)


def changes_text(changes: Sequence[TensorChange]) -> str:
    """Return a table of what an update changes, and how many tensors it leaves as they are."""
    rows = [_row(change) for change in changes if change.kind != "unchanged"]
    unchanged = len(changes) - len(rows)
    lines = [table(("tensor", "shape", "change", "bytes"), rows)] if rows else []
    return "\n".join([*lines, f"{common.counted(unchanged, 'tensor')} unchanged"])


def _row(change: TensorChange) -> tuple[str, ...]:
    size = str(change.bytes) if change.bytes else "-"
    return printable(change.name), common.shape_text(change.shape), change.kind, size
