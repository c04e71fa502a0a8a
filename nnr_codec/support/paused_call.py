"""Calls that wait for each other at places of their own choice: one goes on at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class _Stopped(BaseException):
    """Ends a call that is not wanted any more."""


class PausedCall:
    """A call in a thread of its own, which goes on when it is resumed, up to where it pauses.

    As its caller waits meanwhile, the two of them never run side by side.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        """Call `function` when it is resumed for the first time."""
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._goes, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._told: Any = None
        self._error: BaseException | None = None
        self._is_stopped = self._has_ended = False

    def resume(self) -> Any:
        """Let it go on, and return what it pauses with; None when it has ended.

        Raises what the function raises.
        """
        self._told = None
        self._go_on()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._told

    def stop(self) -> None:
        """End it where it pauses."""
        self._is_stopped = True
        if self._thread.ident is not None:
            self._go_on()
            self._thread.join()

    def _go_on(self) -> None:
        if self._has_ended:
            return
        if self._thread.ident is None:
            _calls[self._thread] = self
            self._thread.start()
        else:
            self._goes.release()
        self._waits.acquire()

    def _run(self) -> None:
        try:
            self._function()
        except _Stopped:
            pass
        except BaseException as error:  # which is that of whoever resumes
            self._error = error
        finally:
            del _calls[self._thread]
            self._has_ended = True
            self._waits.release()

    def _pause(self, told: Any) -> None:
        self._told = told
        self._waits.release()
        self._goes.acquire()
        if self._is_stopped:
            raise _Stopped


_calls: dict[threading.Thread, PausedCall] = {}
"""By their threads, while they last."""


def pause(told: Any) -> None:
    """Let whoever resumed the call that this is in go on, with what it is told, which is not None;
    elsewhere than in such a call nothing happens."""
    call = _calls.get(threading.current_thread())
    if call is not None:
        call._pause(told)
