"""Calls that wait for each other at places of their own choice: one goes on at a time."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

_POLL_SECONDS = 1.0
_MOST_IDLE_POLLS = 10
"""In which a call used no processor at all, after which it is stuck. Polls are counted, not time,
as processes can be suspended."""


class StuckCall(RuntimeError):
    """A call waits for what does not come: a lock that a call that pauses holds."""


class _Stopped(BaseException):
    """Ends a call that is not wanted any more."""


class PausedCall:
    """A call in a thread of its own, which goes on when it is resumed, up to where it pauses.

    As its caller waits meanwhile, the two of them never run side by side.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        """Call `function` when it is resumed for the first time."""
        self._function = function
        run = partial(contextvars.copy_context().run, self._run)  # with the variables of the caller
        self._thread = threading.Thread(target=run, daemon=True)
        self._clock: int | None = None
        self._goes, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._told: Any = None
        self._error: BaseException | None = None
        self._is_stopped = self._is_running = self._has_ended = False

    def resume(self) -> Any:
        """Let it go on, and return what it pauses with; None when it has ended.

        Raises what the function raises.

        Raises:
            StuckCall: it has been idle for ten seconds.
        """
        self._told = None
        if self._has_ended:
            return None
        self._is_running = True
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._goes.release()
        if not self._comes(lambda: self._waits.acquire(timeout=_POLL_SECONDS)):
            raise StuckCall("a call waits for what another one holds")
        self._is_running = False
        if self._error is None:
            return self._told
        try:
            raise self._error
        finally:
            self._error = None  # whose frames hold all that the function did

    def stop(self) -> None:
        """End it where it pauses, or will pause next."""
        self._is_stopped = True
        if self._thread.ident is not None:
            self._goes.release()
            self._comes(self._ends)

    def _ends(self) -> bool:
        self._thread.join(_POLL_SECONDS)
        return not self._thread.is_alive()

    def _comes(self, poll: Callable[[], bool]) -> bool:
        """Return whether something comes before the call has been idle for too long."""
        idle, used = 0, -1.0
        while not poll():
            before, used = used, self._processor_seconds()
            idle = idle + 1 if used == before else 0
            if idle == _MOST_IDLE_POLLS:
                return False
        return True

    def _processor_seconds(self) -> float:
        """Return those of the call's thread; where the system cannot tell, of the process."""
        if self._clock is None:
            return time.process_time()
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has just ended
            return -1.0

    def _run(self) -> None:
        thread = threading.current_thread()
        _calls[thread] = self
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self._function()
        except _Stopped:
            pass
        except BaseException as error:  # which is that of whoever resumes
            self._error = error
        finally:
            del _calls[thread]
            self._has_ended = True
            self._waits.release()

    def _pause(self, told: Any) -> None:
        if self._is_stopped:  # and the function has caught that
            raise _Stopped
        self._told = told
        self._waits.release()
        self._goes.acquire()
        if self._is_stopped:
            raise _Stopped


def stop_all(calls: Iterable[PausedCall]) -> None:
    """End calls: first those that pause, as others may wait for what these hold."""
    for call in sorted(calls, key=lambda call: call._is_running):
        call.stop()


_calls: dict[threading.Thread, PausedCall] = {}
"""By their threads, while they last."""


def pause(told: Any) -> None:
    """Let whoever resumed the call that this is in go on, with what it is told, which is not None;
    elsewhere than in such a call nothing happens."""
    call = _calls.get(threading.current_thread())
    if call is not None:
        call._pause(told)
