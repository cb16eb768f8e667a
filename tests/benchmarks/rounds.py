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
_SLOW = 0.002  # a call this long is a turn of its own
_LONG = 0.02  # a call this long sleeps, or hashes a password
_PATIENCE = 5.0  # for all turns of a subject; the others go on

_MOST_CALLS = 50  # in a turn: their requests are made before it
_FEWEST = 5  # rounds, whatever they take
_COLLECTED = 20  # rounds after which garbage is collected


def in_turns(subjects: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Time subjects in turns, in an order that changes; give the microseconds of a call of each.

    They are the 5th percentile of the turns: what a call takes when nothing disturbs it, and steadier than
    the best turn. Of a call of 20 ms and more they are the median, since such a one sleeps.
    """
    calls = _calls_in_a_turn(subjects)
    turns: dict[str, list[float]] = {name: [] for name in subjects}
    left = dict.fromkeys(subjects, _PATIENCE)
    with _without_collections():
        for done in range(rounds):
            order = [name for name in subjects if left[name] > 0 or done < _FEWEST]
            for name in random.sample(order, len(order)):
                seconds = subjects[name](calls[name])
                left[name] -= seconds
                turns[name].append(seconds / calls[name] * 1e6)
            if done % _COLLECTED == 0:
                gc.collect()
    return {name: _undisturbed(each) for name, each in turns.items()}


def _undisturbed(turns: Sequence[float]) -> float:
    quick = sorted(turns)[len(turns) // 20]
    return quick if quick < _LONG * 1e6 else median(turns)


def _calls_in_a_turn(subjects: Mapping[str, Run]) -> dict[str, int]:
    """Say how many calls a turn has: the same for all but slow ones, since the first of a turn is slower."""
    for run in subjects.values():
        run(1)  # what is made at the first call is there at the next
    each = {name: min(run(1) for _ in range(_FEWEST)) for name, run in subjects.items()}
    calls = min(_MOST_CALLS, max(1, int(_TURN / min(each.values()))))
    return {name: calls if took < _SLOW else 1 for name, took in each.items()}


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
