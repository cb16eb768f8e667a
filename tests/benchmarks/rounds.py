"""Timing in turns, so that a busy machine slows all subjects down alike."""

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TypeAlias

Run: TypeAlias = Callable[[int], float]
"""Makes so many calls, and answers how many seconds they took."""

# All in seconds.
_TURN = 0.0002  # of the quickest subject: so short that many turns pass undisturbed
_SLOW = 0.002  # a call this long is a turn of its own, and disturbs the turn after it
_LONG = 0.02  # a call this long sleeps, or hashes a password
_PATIENCE = 5.0  # for all turns of a slow subject

# In a turn: the first is slower than the others, and the requests of all are made before it.
_FEWEST_CALLS, _MOST_CALLS = 5, 50

_ROUNDS_OF_SLOW = 10  # so many rounds between two of a slow subject's turns
_COLLECTED = 20  # rounds after which garbage is collected


def in_turns(subjects: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Time subjects in turns, in an order that changes; give the microseconds of a call of each.

    They are the 5th percentile of the turns: what a call takes when nothing disturbs it, and steadier than
    the best turn. Of a call of 20 ms and more they are the median, since such a one sleeps.
    """
    each = {name: _quickest(run) for name, run in subjects.items()}
    calls = min(_MOST_CALLS, max(_FEWEST_CALLS, int(_TURN / min(each.values()))))
    left = {name: _PATIENCE for name, took in each.items() if took > _SLOW}
    turns: dict[str, list[float]] = {name: [] for name in subjects}
    with _without_collections():
        for done in range(rounds):
            slow = [name for name in left if left[name] > 0 and done % _ROUNDS_OF_SLOW == 0]
            order = [name for name in subjects if name not in left or name in slow]
            for name in random.sample(order, len(order)):
                count = 1 if name in left else calls
                seconds = subjects[name](count)
                turns[name].append(seconds / count * 1e6)
                if name in left:
                    left[name] -= seconds
            if done % _COLLECTED == 0:
                gc.collect()
    return {name: _undisturbed(taken) for name, taken in turns.items()}


def _quickest(run: Run) -> float:
    run(1)  # what is made at the first call is there at the next
    return min(run(1) for _ in range(5))


def _undisturbed(turns: Sequence[float]) -> float:
    quick = sorted(turns)[len(turns) // 20]
    return quick if quick < _LONG * 1e6 else median(turns)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Freeze what there is, so that the collections between rounds are short, and allow none within."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
