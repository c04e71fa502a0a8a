"""Options of a stream that is split into quality layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InvalidOptions
from .encode_options import EncodeOptions
from .targets import TARGETS

_UNIFORM: dict[str, Any] = {"dq": False, "codebook": False}


def layered_options(options: EncodeOptions) -> EncodeOptions:
    """Return the options with which a stream is coded that is to be split into quality layers.

    It is uniformly quantized: with a step of ¾ octave more the error is that of dependent
    quantization (0.24 of its squared step, as a rule, against 1/12).

    Raises:
        InvalidOptions: they do not go together.
    """
    if options.lossless or options.profile == 1:
        name = "lossless" if options.lossless else "profile 1"
        raise InvalidOptions("quality_layers", f"do not go with {name}")
    offset = (3 << options.qp_density) >> 2 if options.dq else 0
    shifted = options.with_offset(min(offset, options.offset_range()[1]))
    changes: dict[str, Any] = {target: getattr(options, target) for target in TARGETS}
    if options.max_tensor_error == "auto" and options.automatic_error is not None:
        changes["max_tensor_error"] = options.automatic_error  # as with the usual qp
    return replace(
        shifted,
        profile=0,
        row_skipping=False,
        decomposition=replace(options.decomposition, carriage="factors"),
        overrides=tuple(
            (glob, {**values, **{name: _UNIFORM[name] for name in _UNIFORM if name in values}})
            for glob, values in shifted.overrides
        ),
        **_UNIFORM,
        **changes,
    )
