"""Timing calls against each other on a processor that is shared. Needs the extra `torch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..model import Float64


def times_in_turns(
    calls: Sequence[Callable[[], object]], rounds: int, seconds: float = 0.0
) -> Float64:
    """Call one after the other, in turns, and return how long each took.

    What changes slowly (the processor's frequency, other programs) is alike within a round, so that
    the quotients of a round tell more than those of medians. Every second round runs backwards:
    none always comes after the same other. If torch has one thread, it is processor time, without
    that of other programs; else wall time.

    Args:
        calls: what is timed; each is called once before, for what happens the first time.
        rounds: at least so many, 1 or more.
        seconds: there are more rounds until they took so long.

    Returns:
        Seconds, (rounds, calls).
    """
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for call in calls:
        call()
    order = list(range(len(calls)))
    times: list[list[float]] = []
    start = clock()
    while len(times) < rounds or clock() - start < seconds:
        row = [0.0] * len(calls)
        for index in order:
            before = clock()
            calls[index]()
            row[index] = clock() - before
        times.append(row)
        order.reverse()
    return np.array(times)
