"""The search that all targets share: streams are made at several offsets, and the best one kept."""

from __future__ import annotations

from ...errors import QuantizationOverflow
from ...options import EncodeOptions
from ...report import Evaluation, SearchReport
from ..stream_encoder import Draft
from .log import SearchLog
from .profiles import DraftEncoder, OffsetEncoder
from .target import Target


def search(
    target: Target, encode: DraftEncoder, options: EncodeOptions, log: SearchLog
) -> tuple[Draft, SearchReport]:
    """Return the best stream that meets a target, and what was seen on the way to it.

    Args:
        target: the target.
        encode: makes a stream; those that are not kept are closed.
        options: of the encoder, to whose qp offsets are added.
        log: has what an interrupted search saw, and is told what this one sees.

    Raises:
        TargetNotReached: no stream meets it.
    """
    run = _Search(target, OffsetEncoder(encode, options), log)
    try:
        kept = run.kept()
    except _StaleLogError:
        log.forget()
        run = _Search(target, OffsetEncoder(encode, options), log)
        kept = run.kept()
    seen = tuple(run.seen.values())
    return kept, SearchReport(
        *(target.option, target.bound, seen, kept.qp_offset), log.reference, run.resumed
    )


class _StaleLogError(Exception):
    """The log is of other streams: the encoder has changed, for instance."""


class _Search:
    """One walk along the offsets that a target wants to see."""

    def __init__(self, target: Target, encoder: OffsetEncoder, log: SearchLog) -> None:
        self.seen: dict[int, Evaluation] = {}
        self.resumed = 0
        self._target = target
        self._encoder = encoder
        self._log = log
        self._best: Draft | None = None

    def kept(self) -> Draft:
        """Return the best stream.

        Raises:
            TargetNotReached: no stream meets the target.
            _StaleLogError: it is not the one that the log has.
        """
        for offset in self._target.offsets(self.seen):
            known = self._log.known.get(offset)
            if known is None:
                self._evaluate(offset)
                continue
            self.seen[offset] = known
            self.resumed += 1
            if known.compared:
                self._encoder.settle(known.profile)
        best = self._target.best(self.seen)
        if best is None:
            raise self._target.not_reached(self.seen)
        kept = self._best
        if kept is None or kept.qp_offset != best.qp_offset:
            kept = self._keep(self._encoder.draft(best.qp_offset))
            if kept.bytes != best.bytes:
                raise _StaleLogError
        if self._target.compares_kept:
            kept = self._encoder.compared(kept)
        kept.notes += self._target.notes(self.seen)
        return kept

    def _evaluate(self, offset: int) -> None:
        """Make a stream, and keep it if it is the best so far."""
        draft = None
        try:
            draft = self._encoder.draft(offset)
            errors = draft.nmse, self._target.loss(draft)
            found = Evaluation(offset, draft.bytes, *errors, draft.profile, draft.compared)
        except QuantizationOverflow as error:
            size = None if draft is None else draft.bytes
            found = Evaluation(offset, size, failure=str(error))
        self.seen[offset] = found
        self._log.add(found)
        best = self._target.best(self.seen)
        if draft is not None and best is found:
            self._keep(draft)
        elif draft is not None:
            draft.file.close()

    def _keep(self, draft: Draft) -> Draft:
        if self._best is not None:
            self._best.file.close()
        self._best = draft
        return draft
