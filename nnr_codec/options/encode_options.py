"""Options of the encoder and limits of the decoder: frozen dataclasses."""

from __future__ import annotations

import fnmatch
import math
import numbers
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ..errors import InvalidOptions
from . import DecompositionOptions
from .decomposition import AMOUNTS, OF_A_WEIGHT

Profile = Literal["auto", 0, 1]
UnaryLength = int | Literal["auto"]
Switch = Literal["auto"] | bool


@dataclass(frozen=True)
class EncodeOptions:
    """How a model is encoded. The defaults are the reference encoder's, so that people can compare.

    Attributes:
        qp: quantization parameter of tensors of two and more dimensions; 2**qp_density more
            doubles the step.
        nonweight_qp: that of the others.
        qp_density: 0 to 7, steps per octave as a power of two; for the whole stream.
        dq: dependent (trellis-coded) quantization; else uniform.
        lambda_scale: weight of the rate in the quantizer's search, 0 or more; 0 minimizes the
            distortion alone.
        unary_length: greater-than flags of an integer, 1 to 256; "auto": for each tensor the least
            that costs hardly more bytes than the best, as few make decoding faster.
        scan_order: 0 row by row; 1 to 4 blocks of 8, 16, 32, 64 rows, which decode in parallel.
        search_initialization: search the contexts' initialization indices.
        row_skipping: flag rows of zeros where that is smaller. It needs profile 1: "auto" chooses
            that profile if the whole stream becomes smaller.
        codebook: code uniformly quantized tensors by a codebook where that is smaller; "auto"
            tries it where few of the integers in their range occur.
        group: code a layer's weight, bias and batch norm in one unit where that is smaller
            (profile 0: in a series each tensor has a unit of its own).
        temporal_contexts: use the integers of the last parent stream where that is smaller.
        history_contexts: use where earlier streams were non-zero where that is smaller.
        lossless: every tensor comes back bit by bit; none is quantized.
        profile: 0 first edition, 1 second edition, "auto" 0 unless a tool needs 1.
        target_size: bytes that the stream may have: a number, or as a float the fraction of the
            model's bytes. One offset is added to every qp, the least that is enough; those of
            `overrides` stop at the end of their range.
        decomposition: which weights travel as factors.
        include: globs of the tensors that are quantized; the rest travels losslessly.
        exclude: globs of tensors that are not, though included.
        overrides: (glob, {option: value}) pairs for single tensors, the last one that matches
            wins; with the options of ``TENSOR_OPTIONS``. There, ``qp`` is the tensor's,
            whatever its number of dimensions, and ``decompose`` the method of `decomposition`;
            ``rank`` and ``energy`` stand in place of what the model has of the two and of
            ``compression_ratio``.

    A glob that matches a weight matches the factors ``<weight>.factor0``, … that it travels as too.
    """

    qp: int = -38
    nonweight_qp: int = -75
    qp_density: int = 2
    dq: bool = True
    lambda_scale: float = 0.0
    unary_length: UnaryLength = "auto"
    scan_order: int = 0
    search_initialization: bool = True
    row_skipping: Switch = "auto"
    codebook: Switch = "auto"
    temporal_contexts: bool = True
    history_contexts: bool = True
    lossless: bool = False
    profile: Profile = "auto"
    group: bool = True
    target_size: int | float | None = None
    decomposition: DecompositionOptions = field(default=DecompositionOptions())
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=())

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InvalidOptions: a value is of the wrong type or outside its range.
        """
        if isinstance(self.overrides, Mapping):
            object.__setattr__(self, "overrides", tuple(self.overrides.items()))
        _check_whole(self, "qp_density", 0, 7)
        for name in ("qp", "nonweight_qp"):
            _check_whole(self, name, *_qp_range(self.qp_density))
        if self.unary_length != "auto":
            _check_whole(self, "unary_length", 1, 256)
        _check_whole(self, "scan_order", 0, 4)
        self._check_switches()
        scale = self.lambda_scale
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not 0 <= scale < math.inf:
            raise InvalidOptions("lambda_scale", f"{scale!r} is no number of 0 or more")
        if self.profile not in ("auto", 0, 1) or isinstance(self.profile, bool):
            raise InvalidOptions("profile", f"{self.profile!r} is none of 'auto', 0, 1")
        for name in ("include", "exclude"):
            globs = getattr(self, name)
            if isinstance(globs, str) or not isinstance(globs, Iterable):
                raise InvalidOptions(name, f"{globs!r} is no sequence of globs")
        self._check_target()
        if not isinstance(self.decomposition, DecompositionOptions):
            raise InvalidOptions("decomposition", f"{self.decomposition!r} is no such options")
        if self.profile == 0 and self.row_skipping is True:
            raise InvalidOptions("row_skipping", "needs profile 1")
        self._check_overrides()

    def _check_switches(self) -> None:
        for name in (*_FLAGS, "lossless", "group"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidOptions(name, f"{getattr(self, name)!r} is neither True nor False")
        for name in AUTOMATIC:
            value = getattr(self, name)
            if not isinstance(value, bool) and value != "auto":
                raise InvalidOptions(name, f"{value!r} is none of True, False, 'auto'")

    def _check_target(self) -> None:
        target = self.target_size
        if target is None:
            return
        if isinstance(target, bool) or not isinstance(target, numbers.Real):
            raise InvalidOptions("target_size", f"{target!r} is no number")
        is_whole = isinstance(target, numbers.Integral)
        object.__setattr__(self, "target_size", int(target) if is_whole else float(target))
        if not 0 < target < math.inf:
            raise InvalidOptions("target_size", f"{target!r} is not above 0")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> EncodeOptions:
        """Return the options of a preset, with changes.

        ===========  =====================================================================
        ``default``  the defaults
        ``fast``     no searches: contexts start alike, and no tool is tried for its size, the
                     contexts of parents neither
        ``best``     rate-distortion optimized quantization: at the same qp a smaller
                     stream and a slightly larger error, and less of both at a finer qp
        ===========  =====================================================================

        Raises:
            InvalidOptions: there is no such preset, or a change is out of range.
        """
        if name not in PRESETS:
            raise InvalidOptions("preset", f"{name!r} is none of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def qp_range(self) -> tuple[int, int]:
        """The least and the greatest qp that the stream can have."""
        return _qp_range(self.qp_density)

    def offset_range(self) -> tuple[int, int]:
        """Return the least and the greatest offset that leave `qp` and `nonweight_qp` in range."""
        asked = (self.qp, self.nonweight_qp)
        low, high = _qp_range(self.qp_density)
        return low - min(asked), high - max(asked)

    def with_offset(self, offset: int) -> EncodeOptions:
        """Return the options with an offset added to every qp, and without a target size.

        The qp of single tensors stay at the end of their range where the offset leads beyond it.
        """
        low, high = _qp_range(self.qp_density)

        def moved(name: str, value: Any) -> Any:
            return min(max(value + offset, low), high) if name in _QP_OPTIONS else value

        overrides = tuple(
            (glob, {name: moved(name, value) for name, value in values.items()})
            for glob, values in self.overrides
        )
        return replace(
            self,
            qp=self.qp + offset,
            nonweight_qp=self.nonweight_qp + offset,
            overrides=overrides,
            target_size=None,
        )

    def _check_overrides(self) -> None:
        for glob, values in self.overrides:
            for name in values:
                if name not in TENSOR_OPTIONS:
                    known = ", ".join(TENSOR_OPTIONS)
                    reason = f"no option of a tensor; there are {known}"
                    raise InvalidOptions(f"{glob}: {name}", reason)
            try:
                self._with(values)
            except InvalidOptions as error:
                raise InvalidOptions(f"{glob}: {error.option}", error.reason) from None

    @property
    def decomposes(self) -> bool:
        """Whether any weight may be decomposed."""
        asked = [self.decomposition.method]
        asked += [values["decompose"] for _, values in self.overrides if "decompose" in values]
        return any(method != "none" for method in asked)

    def quantizes(self, name: str) -> bool:
        """Whether tensor `name` is quantized; else it travels losslessly."""
        if self.lossless:
            return False
        included = any(matches_tensor(name, glob) for glob in self.include)
        return included and not any(matches_tensor(name, glob) for glob in self.exclude)

    def names_exactly(self, name: str) -> bool:
        """Whether an override, not by a pattern but by this name, says how it is decomposed."""
        return any(glob == name and OF_A_WEIGHT.keys() & values for glob, values in self.overrides)

    def for_tensor(self, name: str) -> EncodeOptions:
        """Return the options with those overrides applied that match `name`, if any does.

        Raises:
            InvalidOptions: the overrides do not go together.
        """
        matching = [values for glob, values in self.overrides if matches_tensor(name, glob)]
        if not matching:
            return self
        merged: dict[str, Any] = {}
        for values in matching:
            if any(amount in values for amount in AMOUNTS):
                merged = {key: value for key, value in merged.items() if key not in AMOUNTS}
            merged.update(values)
        if "qp" in merged:  # that of the tensor, whatever its role
            merged.setdefault("nonweight_qp", merged["qp"])
        try:
            return self._with(merged)
        except InvalidOptions as error:  # what single overrides say does not go together
            raise InvalidOptions(f"{name}: {error.option}", error.reason) from None

    def _with(self, values: Mapping[str, Any]) -> EncodeOptions:
        """Return the options of a tensor for which `values` are set."""
        own = {name: value for name, value in values.items() if name not in OF_A_WEIGHT}
        of_weight = {OF_A_WEIGHT[name]: values[name] for name in values if name in OF_A_WEIGHT}
        if of_weight:
            has_amount = any(name in of_weight for name in AMOUNTS)
            if has_amount or self._finds_amounts(of_weight):  # instead of the model's
                of_weight = {**dict.fromkeys(AMOUNTS), **of_weight}
            own["decomposition"] = replace(self.decomposition, **of_weight)
        return replace(self, overrides=(), **own)

    def _finds_amounts(self, of_weight: Mapping[str, Any]) -> bool:
        """Whether a weight's own method is "auto", for which the model's amount is not meant."""
        return of_weight.get("method") == "auto" != self.decomposition.method

    def unmatched_globs(self, names: list[str]) -> list[str]:
        """Return the globs of include, exclude and overrides that match none of `names`."""
        globs = [*self.include, *self.exclude, *(glob for glob, _ in self.overrides)]
        return [
            glob
            for glob in dict.fromkeys(globs)
            if glob != "*" and not any(matches_tensor(name, glob) for name in names)
        ]


def matches_tensor(name: str, glob: str) -> bool:
    """Whether a glob matches a tensor's name, or of a factor ``X.factor0`` the name X."""
    weight = _FACTOR.sub("", name)
    return any(fnmatch.fnmatchcase(found, glob) for found in {name, weight})


_FACTOR = re.compile(r"\.factor\d+\Z")
_FLAGS = (
    "dq",
    "search_initialization",
    "temporal_contexts",
    "history_contexts",
)
AUTOMATIC = ("row_skipping", "codebook")
"""Options that are on, off, or "auto"."""

_QP_OPTIONS = ("qp", "nonweight_qp")
_STREAM_OPTIONS = (
    "qp_density",
    "profile",
    "lossless",
    "group",
    "target_size",
    "decomposition",
    "include",
    "exclude",
    "overrides",
)
TENSOR_OPTIONS = (
    *(f.name for f in fields(EncodeOptions) if f.name not in _STREAM_OPTIONS),
    *OF_A_WEIGHT,
)
"""Options that `EncodeOptions.overrides` may set for single tensors."""


def _qp_range(density: int) -> tuple[int, int]:
    """What a qp_delta can say around the quantization parameter 0 that we write."""
    limit = 1 << (5 + density)
    return -limit, limit - 1


def _check_whole(options: EncodeOptions, name: str, low: int, high: int) -> None:
    value = getattr(options, name)
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise InvalidOptions(name, f"{value!r} is no whole number from {low} to {high}")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "fast": {
        "search_initialization": False,
        "row_skipping": False,
        "codebook": False,
        "temporal_contexts": False,
        "history_contexts": False,
    },
    # At equal squared error 0.5 to 5 % smaller than without; from a scale of 2 on, larger again.
    "best": {"lambda_scale": 1.0},
}
"""What `EncodeOptions.preset` sets."""
