"""What each way to authenticate adds to a request, as a table of ratios to the hand-written middleware."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from .rounds import in_turns
from .subjects import COLUMNS, VALID, Subject
from .tables import NOTHING, number, ratio

Figures = dict[str, dict[str, float]]
"""Microseconds of a request, by column and by subject."""

HEADER = (
    "framework",
    "the request runs through",
    *("valid key: adds µs", "by hand = 1"),
    *("unknown key: µs", "by hand = 1"),
    *("malformed key: µs", "by hand = 1"),
    *("forged key: µs", "by hand = 1"),
)
EXPLANATION = (
    "A valid key: what is added to the bare application's request, the key being cached. The others: the whole\n"
    "request, which is refused; each key is another one. By hand: header, SHA-256, dict, compare_digest, user set."
)


def measure(
    subjects: Sequence[Subject], columns: Iterable[str], rounds: int, loop: asyncio.AbstractEventLoop
) -> Figures:
    """Time subjects in turns, column by column. Those that lack a column are left out of it."""
    figures = {}
    for column in columns:
        runs = {each.name: each.run(column, loop) for each in subjects if column in each.texts}
        figures[column] = in_turns(runs, rounds)
    return figures


def rows(
    framework: str, bare: str, by_hand: str, names: Sequence[str], figures: Figures
) -> Iterator[list[str]]:
    """Write the rows of one framework: the bare application's, the hand-written middleware's, the others'."""
    base = figures[VALID][bare]
    yield [framework, f"{bare}, the whole request", number(base), *[NOTHING] * (len(HEADER) - 3)]
    for name in (by_hand, *names):
        cells = [framework, name]
        for column in COLUMNS:
            found = figures.get(column, {})
            less = base if column == VALID else 0.0
            if name in found:
                cells += [number(found[name] - less), ratio(found[name] - less, found[by_hand] - less)]
            else:
                cells += [NOTHING, NOTHING]
        yield cells
