"""Tables in Markdown, and how numbers look in them."""

from collections.abc import Iterable, Sequence

NOTHING = "-"


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, each row as soon as it is there."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def number(value: float) -> str:
    """Write a number with the digits that mean something: ``0.42``, ``27.1``, ``1,234``."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def ratio(value: float, one: float) -> str:
    """Write how many times as much a value is; nothing where noise has swallowed what it is compared with."""
    return number(value / one) if one > 0 else NOTHING
