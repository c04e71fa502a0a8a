"""What the syntax of one unit depends on, besides the unit itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..factorization.model_map import ModelMap
from ..options import DecodeLimits
from .codes import QUANTIZATION_METHODS
from .records import LayerParameterSet, ModelParameterSet


@dataclass(frozen=True, slots=True)
class Context:
    """What the syntax of a unit depends on besides the unit: profile and parameter sets so far."""

    profile: int = 0
    mps: ModelParameterSet | None = None
    lps: LayerParameterSet | None = None
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    model_map: ModelMap | None = None
    reference_list: tuple[str, ...] = ()

    @property
    def indexed(self) -> bool:
        """Whether data units carry indices instead of names."""
        return self.mps is not None and bool(self.mps.mps_topology_indexed_reference_flag)

    @property
    def parent_signalling(self) -> bool:
        """Whether data units say if they have a parent."""
        return self.profile == 1 and bool(self.mps and self.mps.mps_parent_signalling_enabled_flag)

    @property
    def quantization(self) -> tuple[int, int] | None:
        """(qp_density, quantization_parameter) in force: the last LPS's, or else the MPS's.

        None if neither carries them. A later LPS replaces an earlier one as a whole, so that one
        without them brings the MPS's back.
        """
        if self.lps and self.lps.lps_quantization_method_flags & QUANTIZATION_METHODS:
            return self.lps.lps_qp_density, self.lps.lps_quantization_parameter
        if self.mps and self.mps.mps_quantization_method_flags & QUANTIZATION_METHODS:
            return self.mps.mps_qp_density, self.mps.mps_quantization_parameter
        return None
