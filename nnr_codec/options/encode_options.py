"""Options of the encoder: a frozen dataclass, whose fields say what values they can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from ..errors import InvalidOptions
from .decomposition import AMOUNTS, DecompositionOptions
from .globs import GlobIndex, escaped
from .kinds import (
    GLOBS,
    INTEGER,
    SWITCH,
    automatic,
    choice,
    convert_all,
    converted,
    instance,
    number,
    option,
    optional,
    tensor_options,
    whole,
)
from .overrides import OVERRIDES, Overrides, OverrideTable, values_key
from .targets import TARGETS, Targets

Profile = Literal["auto", 0, 1]
UnaryLength = int | Literal["auto"]
Switch = Literal["auto"] | bool
Order = Literal["file", "execution", "size", "name"]

_FAST_OFF = {"fast": False}


@dataclass(frozen=True)
class EncodeOptions(Targets):
    """How a model is encoded. The defaults are the reference encoder's, so that people can compare.

    Attributes:
        target_size, target_bits, max_nmse, max_kl, max_drop: targets, of which one may be given:
            one offset is added to every qp (those of `overrides` stop at the end of their range),
            with which the stream is as :class:`~.targets.Targets` says.
        qp: quantization parameter of tensors of two and more dimensions; 2**qp_density more
            doubles the step.
        nonweight_qp: that of the others.
        qp_density: 0 to 7, steps per octave as a power of two; for the whole stream.
        dq: dependent (trellis-coded) quantization; else uniform.
        max_tensor_error: the most that the squared error of a tensor may be of its energy, above 0
            and up to 1. What would lose more at its qp gets a finer one, or is coded exactly if
            that is no larger; a qp of `overrides` stands. None: whatever a qp brings; the report
            names what is damaged. "auto": 0.02 while qp and nonweight_qp have their default values
            and there is no target, else None.
        allocation: whether tensors may get a qp of their own around that of their options: True, by
            their sizes, or what a calibration says; "auto", with a calibration alone.
        fold_norms: with a calibration, whether the statistics of batch norms, and biases before
            them, go into their scales and offsets, which then say it all; in evaluation the
            network is the same, for further training it is not. Where `max_tensor_error` is a
            number, or `max_nmse` is given, they stay as they are.
        correct: with a module and samples, whether weights make up for what quantization did to
            the layers before them, and vectors are corrected after quantization such that channels
            have the means and deviations of the original network: where it helps on samples that
            are held back.
        tune: whether vectors also learn from the original network's outputs, likewise.
        lambda_scale: weight of the rate in the quantizer's search, 0 or more; 0 minimizes the
            distortion alone.
        unary_length: greater-than flags of an integer, 1 to 256; "auto": for each tensor the least
            that costs hardly more bytes than the best, since few flags are decoded faster.
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
        index: put a table of contents into the model map, at most 40 bytes a unit: readers of a
            remote file then fetch single tensors, and every reader notices damaged units.
        order: of the tensors in the stream, in which they are decoded: "file", as in the model;
            "execution", as the network first uses them; "size", smallest first; "name". But with
            "name", what may share a unit (`group`) stays together.
        quality_layers: streams that the output is made of, 1 to 4: a coarse model, and updates that
            refine its weights. The first ones alone make a model, too. All are uniformly quantized,
            with steps of the ratio 3; `qp` gives the last one the error that it gives a single
            stream.
        lossless: every tensor comes back bit by bit; none is quantized.
        profile: 0 first edition, 1 second edition, "auto" 0 unless a tool needs 1.
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

    qp: int = option(-38, INTEGER, per_tensor=True)
    nonweight_qp: int = option(-75, INTEGER, per_tensor=True)
    qp_density: int = option(2, whole(0, 7))
    dq: bool = option(True, SWITCH, per_tensor=True)
    allocation: Switch = option("auto", automatic(SWITCH), presets={"best": True})
    fold_norms: bool = option(True, SWITCH)
    correct: bool = option(True, SWITCH, presets=_FAST_OFF)
    tune: bool = option(False, SWITCH)
    lambda_scale: float = option(0.0, number(0, or_low=True), per_tensor=True)
    unary_length: UnaryLength = option("auto", automatic(whole(1, 256)), per_tensor=True)
    scan_order: int = option(0, whole(0, 4), per_tensor=True)
    search_initialization: bool = option(True, SWITCH, per_tensor=True, presets=_FAST_OFF)
    row_skipping: Switch = option("auto", automatic(SWITCH), per_tensor=True, presets=_FAST_OFF)
    codebook: Switch = option("auto", automatic(SWITCH), per_tensor=True, presets=_FAST_OFF)
    temporal_contexts: bool = option(True, SWITCH, per_tensor=True, presets=_FAST_OFF)
    history_contexts: bool = option(True, SWITCH, per_tensor=True, presets=_FAST_OFF)
    max_tensor_error: float | Literal["auto"] | None = option(
        "auto", optional(automatic(number(0, 1))), per_tensor=True
    )
    index: bool = option(False, SWITCH)
    quality_layers: int = option(1, whole(1, 4))
    lossless: bool = option(False, SWITCH)
    profile: Profile = option("auto", choice("auto", 0, 1))
    group: bool = option(True, SWITCH)
    order: Order = option("file", choice("file", "execution", "size", "name"))
    decomposition: DecompositionOptions = option(
        DecompositionOptions(), instance(DecompositionOptions)
    )
    include: tuple[str, ...] = option(("*",), GLOBS)
    exclude: tuple[str, ...] = option((), GLOBS)
    overrides: Overrides = option((), OVERRIDES)

    def __post_init__(self) -> None:
        """Raise InvalidOptions if a value is of another kind, or values contradict each other."""
        convert_all(self)
        low, high = self.qp_range
        for name in _QP_OPTIONS:
            if not low <= getattr(self, name) <= high:
                reason = f"{getattr(self, name)} is not a whole number from {low} to {high}"
                raise InvalidOptions(name, f"{reason}, with a qp_density of {self.qp_density}")
        if self.profile == 0 and self.row_skipping is True:
            raise InvalidOptions("row_skipping", "needs profile 1")
        _ = self.target  # refuses several
        if self.overrides:
            self._convert_overrides()

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields alone: what was matched is not sent to workers."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _convert_overrides(self) -> None:
        """Check each override as if it were the only one, and put values in Python's own types."""
        checked: set[frozenset[Any]] = set()
        overrides = []
        for glob, given in self.overrides:
            for name in given:
                if name not in TENSOR_OPTIONS:
                    reason = f"is not an option of a tensor; these are {', '.join(TENSOR_OPTIONS)}"
                    raise InvalidOptions(f"{glob}: {name}", reason)
            try:
                values = {n: converted(v, TENSOR_OPTIONS[n]) for n, v in given.items()}
                if values_key(values) not in checked:
                    self._with(values)
            except InvalidOptions as error:
                raise InvalidOptions(f"{glob}: {error.option}", error.reason) from None
            checked.add(values_key(values))
            overrides.append((glob, values))
        object.__setattr__(self, "overrides", tuple(overrides))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> EncodeOptions:
        """Return the options of a preset, with changes.

        ===========  =====================================================================
        ``default``  the defaults
        ``fast``     no searches: contexts start alike, and no tool is tried for its size, the
                     contexts of parents neither
        ``best``     steps of tensors by their sizes, and by what vectors are for: the qp
                     is the centre of the weights', and less is lost in as many bytes; in
                     weights that were pruned the rate counts a little
        ===========  =====================================================================

        Raises:
            InvalidOptions: there is no such preset, or a change is out of range.
        """
        if name not in PRESETS:
            raise InvalidOptions("preset", f"{name!r} is not one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def qp_range(self) -> tuple[int, int]:
        """The least and the greatest qp that the stream can have.

        It is what a qp_delta can say around the quantization parameter 0 that we write.
        """
        limit = 1 << (5 + self.qp_density)
        return -limit, limit - 1

    def offset_range(self) -> tuple[int, int]:
        """Return the least and the greatest offset that leave `qp` and `nonweight_qp` in range."""
        low, high = self.qp_range
        return low - min(self.qp, self.nonweight_qp), high - max(self.qp, self.nonweight_qp)

    def with_offset(self, offset: int) -> EncodeOptions:
        """Return the options with an offset added to every qp, and without a target.

        The qp of single tensors stay at the end of their range where the offset leads beyond it.
        """
        low, high = self.qp_range

        def moved(values: Mapping[str, Any]) -> dict[str, Any]:
            qps = {name: values[name] + offset for name in _QP_OPTIONS if name in values}
            return {**values, **{name: min(max(qp, low), high) for name, qp in qps.items()}}

        return replace(
            self,
            qp=self.qp + offset,
            nonweight_qp=self.nonweight_qp + offset,
            overrides=tuple((glob, moved(values)) for glob, values in self.overrides),
            **_NO_TARGET,
        )

    def without_target(self) -> EncodeOptions:
        """Return the options without a target."""
        return replace(self, **_NO_TARGET)

    @property
    def decomposes(self) -> bool:
        """Whether any weight may be decomposed."""
        methods = [values["decompose"] for _, values in self.overrides if "decompose" in values]
        return any(method != "none" for method in [self.decomposition.method, *methods])

    @property
    def corrects(self) -> bool:
        """Whether weights or vectors may be corrected after quantization."""
        return (self.correct or self.tune) and not self.lossless

    def quantizes(self, name: str) -> bool:
        """Whether tensor `name` is quantized; else it travels losslessly."""
        if self.lossless:
            return False
        included, excluded = self._quantized
        return bool(included.matching(name)) and not excluded.matching(name)

    def allowed_error(self, name: str) -> float | None:
        """Return the most that the squared error of tensor `name` may be of its energy; or None."""
        own = self.for_tensor(name)
        if self.overrides and self.sets_qp(name) and not self._sets(name, "max_tensor_error"):
            return None
        return self.automatic_error if own.max_tensor_error == "auto" else own.max_tensor_error

    @cached_property
    def automatic_error(self) -> float | None:
        """What `max_tensor_error` "auto" stands for."""
        usual = all(getattr(self, option) == DEFAULT_QP[option] for option in _QP_OPTIONS)
        return _USUAL_ERROR if usual and self.target is None else None

    def sets_qp(self, name: str) -> bool:
        """Whether an override sets the qp of tensor `name`."""
        return any(self._sets(name, option) for option in _QP_OPTIONS)

    def _sets(self, name: str, option: str) -> bool:
        return option in self._table.values(name)

    def names_exactly(self, name: str) -> bool:
        """Whether an override, not by a pattern but by this name, says how it is decomposed."""
        return escaped(name) in self._decomposing_globs

    def for_tensor(self, name: str) -> EncodeOptions:
        """Return the options with those overrides applied that match `name`, if any does.

        Tensors with the same overrides have the same object.

        Raises:
            InvalidOptions: the overrides contradict each other.
        """
        return self._table.options(name) if self.overrides else self

    def with_own(self, values: Mapping[str, Mapping[str, Any]]) -> EncodeOptions:
        """Return the options with values of single tensors, by name, over which overrides win.

        As in overrides, those of a weight hold for its factors as well.
        """
        own = [(escaped(name), options) for name, options in values.items()]
        return replace(self, overrides=(*own, *self.overrides)) if own else self

    def _with(self, values: Mapping[str, Any]) -> EncodeOptions:
        """Return the options of a tensor that has `values`, of its own or of several overrides."""
        if not values:
            return self
        encoding = {name: value for name, value in values.items() if name not in _WEIGHT_OPTIONS}
        weight_values = [(_WEIGHT_OPTIONS.get(name), value) for name, value in values.items()]
        of_weight = {field.name: value for field, value in weight_values if field}
        if of_weight:
            model = self.decomposition
            chooses_amount = of_weight.get("method") == "auto" != model.method
            if chooses_amount or any(name in of_weight for name in AMOUNTS):
                of_weight = {**dict.fromkeys(AMOUNTS), **of_weight}  # the model's is not meant
            encoding["decomposition"] = replace(model, **of_weight)
        return replace(self, overrides=(), **encoding)

    def unmatched_globs(self, names: list[str]) -> list[str]:
        """Return the globs of include, exclude and overrides that match none of `names`."""
        patterns = [*self.include, *self.exclude, *(glob for glob, _ in self.overrides)]
        globs = [glob for glob in dict.fromkeys(patterns) if glob != "*"]
        index = GlobIndex(globs)
        matched = {number for name in names for number in index.matching(name)}
        return [glob for number, glob in enumerate(globs) if number not in matched]

    @cached_property
    def _table(self) -> OverrideTable[EncodeOptions]:
        return OverrideTable(self.overrides, self._with)

    @cached_property
    def _quantized(self) -> tuple[GlobIndex, GlobIndex]:
        return GlobIndex(self.include), GlobIndex(self.exclude)

    @cached_property
    def _decomposing_globs(self) -> frozenset[str]:
        return frozenset(g for g, values in self.overrides if _WEIGHT_OPTIONS.keys() & values)


_NO_TARGET: dict[str, Any] = dict.fromkeys(TARGETS)
_QP_OPTIONS = ("qp", "nonweight_qp")
DEFAULT_QP = {f.name: f.default for f in fields(EncodeOptions) if f.name in _QP_OPTIONS}
_USUAL_ERROR = 0.02
"""Of the energy: what is lost beyond that is more than steps of the usual size would cost."""

_WEIGHT_OPTIONS = tensor_options(DecompositionOptions)
TENSOR_OPTIONS = {**tensor_options(EncodeOptions), **_WEIGHT_OPTIONS}
"""Options that `EncodeOptions.overrides` may set for single tensors, with their fields."""

PRESETS: dict[str, dict[str, Any]] = {
    preset: {
        field.name: field.metadata["presets"][preset]
        for field in fields(EncodeOptions)
        if preset in field.metadata["presets"]
    }
    for preset in ("default", "fast", "best")
}
"""What `EncodeOptions.preset` sets."""
