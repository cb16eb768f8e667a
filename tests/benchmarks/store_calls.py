"""How often the store is called: counted, through the WSGI middleware in threads and the ASGI one in tasks."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Barrier, Thread

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Inline,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
)
from apikey_auth.asgi import APIKeyMiddleware as ASGIMiddleware
from apikey_auth.testing import UnreliableStore
from apikey_auth.wsgi import APIKeyMiddleware as WSGIMiddleware

from .applications import asgi, wsgi
from .subjects import status_of_asgi, status_of_wsgi
from .tables import show
from .texts import PREFIX, SEAL_KEY, forged, malformed, unknown

CALLS = {"reads": ("get",), "polls": ("changes",), "writes": ("add", "swap", "touch", "revoke_all", "purge")}
PAUSE = 0.05  # seconds that a read takes where many ask at once, so that they come while it is under way

Counts = dict[str, dict[str, int]]
"""Calls of the store of each kind, by case."""


@dataclass(frozen=True)
class Case:
    name: str
    texts: Sequence[str]
    at_once: bool = False


class World:
    """Two keys, in a store that counts its calls; the scheme seals, and takes texts without a seal too."""

    def __init__(self) -> None:
        self.kept = MemoryKeyStore()
        self.scheme = KeyScheme(prefix=PREFIX, seal_keys=[SEAL_KEY])
        keys = KeyManager(self.kept, self.scheme)
        self.texts = keys.issue("1").text, keys.issue("2").text

    def cases(self, many: int) -> Iterator[Case]:
        valid, other = self.texts
        yield Case("the first request with a key", [valid])
        yield Case(f"{many:,} more with it, one by one", [valid] * many)
        yield Case(f"{many:,} at once, the first with their key", [other] * many, at_once=True)
        yield Case(f"{many:,} malformed keys", [*map(malformed, range(many))])
        yield Case(f"{many:,} forged keys", [*map(forged, range(many))])
        yield Case(f"{many:,} unknown keys", [*map(unknown, range(many))])


def show_store_calls(many: int) -> None:
    """Print the table."""
    threads, tasks = blocking_counts(many), asyncio.run(async_counts(many))
    show(
        "Calls of the store, counted. A poll asks what has changed, once or twice a second.",
        ["requests", *(f"{colour}: {what}" for colour in ("threads", "tasks") for what in CALLS)],
        ([case, *_cells(threads[case]), *_cells(tasks[case])] for case in threads),
    )


def _cells(counts: Mapping[str, int]) -> Iterable[str]:
    return (f"{counts[what]:,}" for what in CALLS)


def blocking_counts(many: int, max_staleness: float = 1.0) -> Counts:
    """Send WSGI requests; those at once come from a thread each."""
    world = World()
    store = UnreliableStore(world.kept)
    application = WSGIMiddleware(wsgi, Authenticator(store, world.scheme, max_staleness=max_staleness))

    def send(text: str) -> None:
        status_of_wsgi(application, {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_APIKEY": text})

    counts: Counts = {}
    for case in world.cases(many):
        before = store.calls.copy()
        if case.at_once:
            store.delay(PAUSE, "get")
            _in_threads(send, case.texts)
            store.heal()
        else:
            for text in case.texts:
                send(text)
        counts[case.name] = _counted(store.calls - before)
    return counts


def _in_threads(send: Callable[[str], None], texts: Sequence[str]) -> None:
    start = Barrier(len(texts))

    def run(text: str) -> None:
        start.wait()
        send(text)

    threads = [Thread(target=run, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def async_counts(many: int, max_staleness: float = 1.0) -> Counts:
    """Send ASGI requests; those at once come from a task each."""
    world = World()
    store = UnreliableStore(Inline(world.kept))
    application = ASGIMiddleware(asgi, AsyncAuthenticator(store, world.scheme, max_staleness=max_staleness))

    async def send(text: str) -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
        await status_of_asgi(application, scope | {"headers": [(b"apikey", text.encode())]})

    counts: Counts = {}
    for case in world.cases(many):
        before = store.calls.copy()
        if case.at_once:
            store.delay(PAUSE, "get")
            await asyncio.gather(*map(send, case.texts))
            store.heal()
        else:
            for text in case.texts:
                await send(text)
        counts[case.name] = _counted(store.calls - before)
    return counts


def _counted(calls: Counter[str]) -> dict[str, int]:
    return {what: sum(calls[method] for method in methods) for what, methods in CALLS.items()}
