"""In which profile a stream is: it is made in both where that may pay, and the smaller one kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import QuantizationOverflow
from ...options import EncodeOptions
from ...options.encode_options import Profile
from ..stream_encoder import Draft

DraftEncoder = Callable[[EncodeOptions], Draft]
"""Encodes the whole stream with these options."""


def smaller_profile(encode: DraftEncoder, options: EncodeOptions) -> Draft:
    """Encode, and once more in profile 1 if its row skipping promises more than it costs."""
    first = encode(options)
    if options.profile != "auto" or not first.promises_rows:
        return first
    return _smaller(encode, options, first)


def _smaller(encode: DraftEncoder, options: EncodeOptions, first: Draft) -> Draft:
    """Encode in the profile that `first` does not have, and return the smaller of both."""
    try:
        second = encode(replace(options, profile=0 if first.profile else 1))
    except QuantizationOverflow:  # as the rates are others
        return first
    kept, dropped = (second, first) if second.bytes < first.bytes else (first, second)
    dropped.file.close()
    return kept


def profile_of(draft: Draft) -> Profile:
    """Return the profile of a stream, as an option."""
    return 1 if draft.profile else 0


class OffsetEncoder:
    """Encodes with one offset of all qp after the other.

    Profiles are compared where row skipping first promises something; the smaller one is that of
    the streams behind it, too.
    """

    def __init__(self, encode: DraftEncoder, options: EncodeOptions) -> None:
        """Encode with these options, to which the offset is added."""
        self._encode = encode
        self._options = options
        self._profile: Profile = options.profile

    def draft(self, offset: int) -> Draft:
        """Return the stream with an offset.

        Raises:
            QuantizationOverflow: it quantizes so coarsely that values leave their type.
        """
        chosen = replace(self._options.with_offset(offset), profile=self._profile)
        draft = self._encode(chosen)
        if self._profile == "auto" and draft.promises_rows:
            draft = _smaller(self._encode, chosen, draft)
            draft.compared = True
            self.settle(draft.profile)
        draft.qp_offset = offset
        return draft

    def settle(self, profile: int) -> None:
        """Let streams have the profile that a comparison was won by."""
        self._profile = 1 if profile else 0

    def compared(self, draft: Draft) -> Draft:
        """Return the stream, or that of the other profile, if the choice fell at another offset."""
        may_pay = draft.profile or draft.promises_rows
        if self._profile == self._options.profile or draft.compared or not may_pay:
            return draft
        offset = draft.qp_offset
        smaller = _smaller(self._encode, self._options.with_offset(offset), draft)
        smaller.qp_offset = offset
        return smaller
