"""The flags of nnr-encode that set options of the encoder, as these are declared."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from ..errors import InvalidOptions
from ..options import TENSOR_OPTIONS, DecompositionOptions, EncodeOptions
from ..options.kinds import Kind, called
from . import _common as common

_QUANTIZATION = {
    "qp": "quantization parameter of tensors with two or more dimensions",
    "nonweight_qp": "quantization parameter of the other tensors",
    "qp_density": "the step doubles every 2**N quantization parameters; 0 to 7",
    "allocation": "give each tensor a qp of its own around --qp: with --preset best by its size, "
    "with a calibration by what its errors do",
    "fold_norms": "put statistics of batch norms, and biases before them, into their scales and "
    "offsets, with a calibration: the same network, but not for training on",
    "correct": "let weights make up for what quantization did to layers before them, and correct "
    "biases and norms, where samples of --calibrate that are held back say that it helps",
    "tune": "let biases and norms learn from the original network's outputs, likewise; slow",
    "dq": "dependent (trellis-coded) quantization",
    "lambda_scale": "weight of the rate in the quantizer's search; 0: only the error counts",
    "max_tensor_error": "the most of a tensor's energy that its error may be, above 0 and up to 1: "
    "else it gets a finer step, or is coded exactly; none: whatever a qp brings; auto: 0.02 at the "
    "usual qp",
}
_CODING = {
    "profile": "0 first edition, 1 second edition; auto: 0 unless a tool needs 1",
    "unary_length": "greater-than flags of an integer, 1 to 256; auto: few where hardly larger",
    "scan_order": "0 row by row; 1 to 4 blocks that decode side by side",
    "search_initialization": "search the contexts' initialization",
    "row_skipping": "flag rows of zeros where that is smaller (profile 1)",
    "codebook": "code by codebooks where that is smaller (with --no-dq)",
    "index": "put in a table of contents, with digests: for single tensors of remote files, and to "
    "notice damage",
    "quality_layers": "make a coarse stream and updates that refine it, 1 to 4 in all, in one file",
    "group": "code a layer's tensors in one unit where that is smaller",
    "order": "of the tensors in the stream, as they are decoded: as in the file; as the network "
    "first uses them, which --module (with inputs) or --calibrate tells; smallest first; by name",
    "temporal_contexts": "use the last parent's integers where that is smaller",
    "history_contexts": "use all parents' non-zeros where that is smaller",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags, apart from those of decomposition, in groups."""
    for title, texts in (("quantization", _QUANTIZATION), ("coding", _CODING)):
        group = parser.add_argument_group(title)
        for name, text in texts.items():
            add_flag(group, EncodeOptions, name, text)
        if texts is _CODING:
            common.add_parents(group)
    group = parser.add_argument_group("selection")
    add_flag(group, EncodeOptions, "lossless", "code every tensor exactly, bit by bit")
    for flag, text in (
        ("--include", "tensors to quantize (default: all)"),
        ("--exclude", "tensors to code losslessly although they are included"),
    ):
        group.add_argument(
            flag, action="append", default=argparse.SUPPRESS, metavar="GLOB", help=text
        )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GLOB=key:value,…",
        help=f"options of single tensors: {', '.join(TENSOR_OPTIONS)}",
    )


def add_flag(group: Any, options: type, name: str, text: str) -> None:
    """Add the flag of a declared option.

    Only what is given is in the parsed arguments: all else is left to presets and defaults.
    """
    (declared,) = (field for field in fields(options) if field.name == name)
    kind: Kind = declared.metadata["kind"]
    default = declared.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    parsing: dict[str, Any] = {"type": common.parser_of(kind), "metavar": kind.metavar}
    group.add_argument(
        f"--{called(declared).replace('_', '-')}",
        default=argparse.SUPPRESS,
        help=text if default is None else f"{text} (default: {default})",
        **({"action": argparse.BooleanOptionalAction} if kind.metavar is None else parsing),
    )


def given_values(given: argparse.Namespace, options: type) -> dict[str, Any]:
    """Return the values of a class of options that the command line gives, by its fields."""
    names = {field.name: called(field) for field in fields(options)}
    return {name: getattr(given, flag) for name, flag in names.items() if hasattr(given, flag)}


def encode_options(given: argparse.Namespace) -> EncodeOptions:
    """Return the options that the command line gives; raises what `EncodeOptions` raises."""
    return EncodeOptions.preset(
        given.preset,
        **given_values(given, EncodeOptions),
        decomposition=DecompositionOptions(**given_values(given, DecompositionOptions)),
        overrides=tuple(parse_override(text) for text in given.set),
    )


def parse_override(text: str) -> tuple[str, dict[str, Any]]:
    """Parse 'GLOB=key:value,key:value'; InvalidOptions if it is none, or has an unknown key."""
    glob, equals, assignments = text.rpartition("=")
    if not equals or not glob or not assignments:
        raise InvalidOptions("--set", f"{text!r} is not of the form GLOB=key:value,…")
    values: dict[str, Any] = {}
    for assignment in assignments.split(","):
        key, colon, value = (part.strip() for part in assignment.partition(":"))
        name = key.replace("-", "_")
        if not colon or name not in TENSOR_OPTIONS:
            known = ", ".join(TENSOR_OPTIONS)
            reason = f"{assignment!r} in {text!r} is not key:value with one of the keys {known}"
            raise InvalidOptions("--set", reason)
        kind: Kind = TENSOR_OPTIONS[name].metadata["kind"]
        try:
            values[name] = kind.parse(value)
        except (ArithmeticError, KeyError, ValueError):
            reason = f"{name}: {value!r} in {text!r} is not {kind.description}"
            raise InvalidOptions("--set", reason) from None
    return glob, values
