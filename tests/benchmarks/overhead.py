"""What each way to authenticate adds to a request, as a table of ratios to the hand-written middleware."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from .rounds import in_turns
from .subjects import COLUMNS, VALID, Subject
from .tables import NOTHING, number, ratio

BARE, BY_HAND = "the bare application", "middleware by hand"

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
EXPLANATION = """\
A valid key, used before: what is added to the bare application's request. Unknown, malformed and forged keys, each
another one: the whole request, which is refused. By hand: header, SHA-256, dict, compare_digest, user set."""


def measure(
    subjects: Sequence[Subject], columns: Iterable[str], rounds: int, loop: asyncio.AbstractEventLoop
) -> Figures:
    """Time subjects in turns, column by column. Those that lack a column are left out of it."""
    figures = {}
    for column in columns:
        runs = {each.name: each.run(column, loop) for each in subjects if column in each.texts}
        figures[column] = in_turns(runs, rounds)
    return figures


def rows(framework: str, figures: Figures) -> Iterator[list[str]]:
    """Write the rows of one framework: the bare application's, and one for each way to authenticate."""
    base = figures[VALID][BARE]
    yield [framework, f"{BARE}, the whole request", number(base), *[NOTHING] * (len(HEADER) - 3)]
    for name in figures[VALID]:
        if name != BARE:
            yield [framework, name, *_cells(name, figures, base)]


def _cells(name: str, figures: Figures, base: float) -> Iterator[str]:
    for column in COLUMNS:
        found, less = figures.get(column, {}), base if column == VALID else 0.0
        if name in found:
            yield number(found[name] - less)
            yield ratio(found[name] - less, found[BY_HAND] - less)
        else:
            yield NOTHING
            yield NOTHING
