"""What the stream is to be, in the words of users: at most one target is given."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import InvalidOptions
from .kinds import SIZE, number, option


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The targets that an encoder can have, of which one is given, or none.

    One offset is added to every qp: for a size the least one with which the stream is within it,
    and for a quality the one that gives the smallest stream.

    Attributes:
        target_size: bytes that the stream may have: a number, or as a float the fraction of the
            model's bytes. With the next finer offset the stream is larger.
        target_bits: bits that it may have for each element: 8 times its bytes over the elements
            of the model, tied ones counted once. As a target size else.
        max_nmse: squared error over energy that all tensors together may have, above 0 and up
            to 1: the `nmse` of the report.
        max_kl: nats by which outputs of the network may diverge on samples that are held back from
            calibration, in the mean: :class:`nnr_codec.calibration.divergence.OutputDivergence`.
        max_drop: how much less `evaluate` may return of the decoded model than of the original.
    """

    target_size: int | float | None = option(None, SIZE)
    target_bits: float | None = option(None, number(0))
    max_nmse: float | None = option(None, number(0, 1))
    max_kl: float | None = option(None, number(0))
    max_drop: float | None = option(None, number(0))

    @property
    def target(self) -> str | None:
        """Name of the target that is given; None: there is none.

        Raises:
            InvalidOptions: there are several.
        """
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidOptions(given[1], f"does not go with {given[0]}: leave one out")
        return given[0] if given else None

    @property
    def has_target_size(self) -> bool:
        """Whether the target is one of bytes."""
        return self.target_size is not None or self.target_bits is not None


TARGETS: tuple[str, ...] = tuple(target.name for target in fields(Targets))
"""Names of the targets."""
