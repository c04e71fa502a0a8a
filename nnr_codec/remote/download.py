"""Brings ranges of a remote file into a local copy: few requests, and again where one fails."""

from __future__ import annotations

from collections.abc import Callable

from .byte_ranges import Range, joined
from .client import Body, Client, Interrupted, Version, changed, refused
from .local_copy import LocalCopy
from .shutdown import Shutdown

FIRST_BYTES = 1 << 14
"""What is asked for before anything is known of a file."""

BRIDGED_BYTES = 1 << 14
"""Gaps up to this size are read rather than left out: less than what another request costs."""

_MOST_FAILURES = 5  # in a row, without any new byte
_BACK_OFF = (0.0, 1.0, 2.0, 4.0, 0.0)  # seconds, after each of them
_MOST_BACK_OFF = 10.0  # seconds in a row


class Failures:
    """Requests that failed in a row without a new byte."""

    def __init__(self, name: str, shutdown: Shutdown) -> None:
        self._name = name
        self._shutdown = shutdown
        self._count, self._waited = 0, 0.0

    def forget(self) -> None:
        """Begin anew: new bytes came."""
        self._count, self._waited = 0, 0.0

    def add(self, failure: Interrupted, state: str) -> None:
        """Wait for the next try, or raise OSError if there shall be none.

        `state`: what has come, for the message.
        """
        self._count += 1
        wait = max(_BACK_OFF[self._count - 1], failure.wait or 0.0)
        if self._count == _MOST_FAILURES or self._waited + wait > _MOST_BACK_OFF:
            asked = f"; it asks to wait {failure.wait:.0f} s" if failure.wait else ""
            times = "once" if self._count == 1 else f"{self._count} times"
            reason = f"{failure.reason}{asked} (tried {times} without a new byte; {state})"
            raise refused(self._name, f"{reason}: try again later") from failure
        self._shutdown.wait(wait)
        self._waited += wait


class Download:
    """Fetches what is missing in a local copy. Not to be used by several threads at once.

    At most one answer is open. It is read as far as its bytes are needed: what is left waits in
    the network.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        body: Body | None,
        version: Version,
        copy: LocalCopy,
        progress: Callable[[int], object] | None,
        shutdown: Shutdown,
    ) -> None:
        """`body`: the open answer, if there is one, of that `version`. `shutdown`: begins when the
        file is closed."""
        self._name = name
        self._client = client
        self._body = body
        self._version = version
        self._copy = copy
        self._progress = progress or (lambda amount: None)
        self._has_ranges = body is None or body.has_ranges
        self._expected: list[Range] = []
        self._shutdown = shutdown
        self._failures = Failures(name, shutdown)

    def expect(self, ranges: list[Range]) -> None:
        """Remember which ranges will be needed, in that order."""
        self._expected = joined(ranges, BRIDGED_BYTES)

    def fetch(self, start: int, stop: int, until: int = 0) -> None:
        """Bring the bytes from `start` to `stop`, with requests that may go on up to `until`.

        Raises:
            OSError: they cannot be read, the file has changed, or the disk is full.
            ValueError: the file is closed, maybe by another thread meanwhile.
        """
        self._failures.forget()
        while gap := self._copy.first_gap(start, stop):
            self._shutdown.check(self._name)
            try:
                self._step(gap[0], stop, max(stop, until))
            except Interrupted as failure:
                self.drop()
                self._failures.add(failure, self._state())
            except BaseException:
                self.drop()  # who knows where it stands
                raise

    def drop(self) -> None:
        """Close the open answer."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _step(self, start: int, stop: int, until: int) -> None:
        """Read a piece of an answer that leads to `start`."""
        body = self._body
        if body is None or not self._leads_to(body, start):
            self.drop()
            body = self._body = self._opened(start, stop, until)
        position = body.position
        data = body.read()
        if not data:
            self.drop()
            return
        if new := self._copy.write(position, data):
            self._failures.forget()
            self._progress(new)

    def _leads_to(self, body: Body, start: int) -> bool:
        """Return whether to read an answer on until byte `start` comes."""
        if body.position == body.stop or start < body.position:
            return False
        gap = start - body.position
        if not body.has_ranges or (start < body.stop and gap <= BRIDGED_BYTES):
            return True
        return any(begin <= body.position and start < end for begin, end in self._expected)

    def _opened(self, start: int, needed: int, until: int) -> Body:
        """Open an answer that leads from `start` up to `needed`, and goes on to `until`.

        In a range that is expected, it goes on to the end of that, and begins with the first byte
        that is missing there: these are needed too, and threads do not ask in order.
        """
        if self._has_ranges:
            expected = (r for r in self._expected if r[0] <= start < r[1])
            begin, end = next(expected, (start, until))
            gap = self._copy.first_gap(begin, max(end, needed))
            start, stop = gap or (start, until)
        else:
            start, stop = 0, self._version.size
        body = self._client.open(start, stop, self._version)
        if not body.version.matches(self._version):
            body.close()
            raise changed(self._name)
        # A server may say that it has ranges, and answer with the whole file.
        body.has_ranges = self._has_ranges = (
            self._has_ranges and body.has_ranges and body.position == start
        )
        return body

    def _state(self) -> str:
        return f"{self._copy.byte_count} of {self._copy.size} bytes have come"
