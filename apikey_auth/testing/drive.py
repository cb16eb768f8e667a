"""Drives a store of either colour from plain code: one test text proves both. No assertions.

A blocking store is called where the test runs. The calls of an async one run on an event loop in a thread
of its own, so that no plugin of pytest is needed, and threads of a test are tasks of the store.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from threading import Barrier, Event, Thread
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import pytest

from ..keys import APIKey
from ..stores.protocol import Bridge, Changes, KeyStore, Page, Revision, check_store

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 60.0  # seconds for what should take no time, on a machine that is busy


class EventLoop:
    """An event loop in a thread of its own."""

    def __enter__(self) -> "EventLoop":
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = Thread(target=asyncio.run, args=[self._serve()], name="apikey_auth.testing")
        self._thread.start()
        self._loop = self._started.result(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def run(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call and await a function there. Raises TimeoutError after a minute."""

        async def call() -> T:
            return await function(*args, **kwargs)

        running = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return running.result(PATIENCE)
        finally:
            running.cancel()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        self._started.set_result(asyncio.get_running_loop())
        await self._stopped.wait()


class Kept:
    """The store under test, as a ``KeyStore`` that blocks. ``store`` is the store itself."""

    def __init__(self, store: Any, loop: EventLoop, lacks: Collection[str]) -> None:
        self.store = store
        self._keys: KeyStore = store
        self._loop = loop
        self._lacks = lacks
        self._asynchronous = inspect.iscoroutinefunction(store.get)
        self._closed = False

    def get(self, key_id: str, /) -> APIKey | None:
        return self._run(self._keys.get, key_id)

    def add(self, key: APIKey, /) -> None:
        self._run(self._keys.add, key)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        return self._run(self._keys.swap, old, new, successor=successor)

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return self._run(self._keys.revoke_all, owner, at, reason)

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return self._run(self._keys.find, owner=owner, live_at=live_at, after=after, limit=limit)

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return self._run(self._keys.count, owner=owner, live_at=live_at)

    def purge(self, before: datetime, /) -> int:
        return self._run(self._keys.purge, before)

    def touch(self, used: Mapping[str, datetime], /) -> None:
        self._need("touch")
        self._run(self._keys.touch, used)

    def changes(self, since: Revision | None, /) -> Changes:
        self._need("changes")
        return self._run(self._keys.changes, since)

    def close(self) -> None:
        """Close the store, once, if it can be closed; behind a bridge, the one that it leads to."""
        store = self.store.wrapped if isinstance(self.store, Bridge) else self.store
        close = getattr(store, "close", None)
        if close is None or self._closed:
            return
        self._closed = True
        if inspect.iscoroutinefunction(close):
            self._loop.run(close)
        else:
            close()

    def lacks(self, method: str) -> bool:
        """Say whether the store is said to have no such method."""
        return method in self._lacks

    def _need(self, method: str) -> None:
        if self.lacks(method):
            pytest.skip(f"the store lacks {method}()")

    def _run(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._asynchronous:
            return self._loop.run(method, *args, **kwargs)  # type: ignore[arg-type]
        return method(*args, **kwargs)


@contextmanager
def opened(store: object, methods: Collection[str], lacks: Collection[str] = ()) -> Iterator[Kept]:
    """Drive a store, or what a coroutine makes, and close it in the end.

    Raises ConfigurationError for a store that lacks a method which it is not said to lack.
    """
    with EventLoop() as loop:
        found: Any = loop.run(_awaited, store) if inspect.isawaitable(store) else store
        needed = [method for method in methods if method not in lacks]
        check_store(found, needed, asynchronous=inspect.iscoroutinefunction(getattr(found, "get", None)))
        kept = Kept(found, loop, lacks)
        try:
            yield kept
        finally:
            kept.close()


async def _awaited(store: Awaitable[object]) -> object:
    return await store


class Threads:
    """Makes calls in threads of their own, all let go at the same moment; ``leave`` ends each thread."""

    def __init__(self, leave: Callable[[], None] = lambda: None) -> None:
        self._leave = leave
        self._turn = 0

    def at_once(self, *calls: Callable[[], T]) -> list[T]:
        """Make each call in a thread of its own; answer what they answered."""
        barrier = Barrier(len(calls))
        # Another one each time comes to the barrier last, and is the first to go on.
        self._turn = first = (self._turn + 1) % len(calls)
        with ThreadPoolExecutor(len(calls)) as pool:
            going = [pool.submit(self._let_go, barrier, call) for call in (*calls[first:], *calls[:first])]
            wait(going)
        return [call.result() for call in (*going[-first:], *going[:-first])]

    def watched(self, watch: Callable[[Event], T], *calls: Callable[[], object]) -> T:
        """Make calls at once while one more looks on, who is told when they are done; answer what it saw."""
        done = Event()

        def others() -> None:
            try:
                self.at_once(*calls)
            finally:
                done.set()

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(self._left, partial(watch, done))
            others()
            return watching.result()

    def _let_go(self, barrier: Barrier, call: Callable[[], T]) -> T:
        barrier.wait(PATIENCE)
        return self._left(call)

    def _left(self, call: Callable[[], T]) -> T:
        try:
            return call()
        finally:
            self._leave()
