"""A flood of keys that nobody issued: what it asks of the store, of the memory, and of who has a key."""

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from apikey_auth import AuthenticationError, Authenticator, KeyManager, KeyScheme, MemoryKeyStore
from apikey_auth.testing import UnreliableStore

from .tables import NOTHING, number, show
from .texts import PREFIX, SEAL_KEY, forged, malformed, unknown

REAL = 1_000
KINDS: dict[str, Callable[[int], str]] = {"malformed": malformed, "forged": forged, "unknown": unknown}
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Flooded:
    """What a flood did: reads of the store, how many real keys were known before and after, and the memory.

    ``grown`` is in bytes, None where this system does not tell; ``seconds`` are those of all its keys.
    """

    reads: int
    before: int
    after: int
    grown: int | None
    seconds: float


def show_flood(many: int) -> None:
    """Print the table."""
    columns = (
        "keys that nobody issued",
        "store reads",
        f"hits of {REAL:,} real keys before",
        "after",
        "memory grew by MiB",
        "µs each",
    )
    show(
        f"A flood of {many:,} different keys of each kind, through Authenticator.authenticate",
        columns,
        _rows(many),
    )


def _rows(many: int) -> Iterator[list[str]]:
    for kind in KINDS:
        done = flood(kind, many)
        yield [
            kind,
            f"{done.reads:,}",
            f"{done.before / REAL:.1%}",
            f"{done.after / REAL:.1%}",
            NOTHING if done.grown is None else f"{done.grown / 2**20:.1f}",
            number(done.seconds / many * 1e6),
        ]


def flood(kind: str, many: int, max_staleness: float = 1.0) -> Flooded:
    """Send keys of a kind to an authenticator that knows real ones. Raises AssertionError if one gets in."""
    kept, scheme = MemoryKeyStore(), KeyScheme(prefix=PREFIX, seal_keys=[SEAL_KEY])
    keys = KeyManager(kept, scheme)
    real = [keys.issue(str(n)).text for n in range(REAL)]
    store = UnreliableStore(kept)
    # However long it takes: a real key shall be read anew only where the flood has pushed it out.
    auth = Authenticator(store, scheme, max_age=86_400.0, max_staleness=max_staleness)

    def hits() -> int:
        before = store.calls["get"]
        for text in real:
            auth.authenticate(text)
        return REAL - (store.calls["get"] - before)

    hits()  # which makes them known
    known, reads, memory, start = hits(), store.calls["get"], _resident(), perf_counter()
    make = KINDS[kind]
    for n in range(many):
        try:
            auth.authenticate(make(n))
        except AuthenticationError:
            continue
        raise AssertionError(f"a key that is {kind} got in")
    seconds, reads = perf_counter() - start, store.calls["get"] - reads
    grown = None if memory is None else (_resident() or 0) - memory
    return Flooded(reads, known, hits(), grown, seconds)


def _resident() -> int | None:
    """Give the bytes of this process that are in memory; None where there is no /proc."""
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
