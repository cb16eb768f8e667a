"""Bridges from a blocking store to asyncio: one that uses threads, and one that does not."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import ParamSpec, TypeVar

from ..forking import after_fork
from ..keys import APIKey
from .protocol import READING, Bridge, Changes, KeyReader, KeyStore, Page, Revision, check_store

P = ParamSpec("P")
T = TypeVar("T")


class _Bridge(Bridge):
    """An ``AsyncKeyStore`` over a ``KeyStore``; it can do what the store behind it can."""

    def __init__(self, store: KeyReader) -> None:
        check_store(store, READING, asynchronous=False)
        self._reader = store

    @property
    def wrapped(self) -> KeyReader:
        """The store behind the bridge."""
        return self._reader

    async def _run(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        raise NotImplementedError

    @property
    def _store(self) -> KeyStore:
        return self._reader  # type: ignore[return-value]  # who needs more than get() has checked for it

    async def get(self, key_id: str, /) -> APIKey | None:
        return await self._run(self._reader.get, key_id)

    async def add(self, key: APIKey, /) -> None:
        await self._run(self._store.add, key)

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        return await self._run(self._store.swap, old, new, successor=successor)

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return await self._run(self._store.revoke_all, owner, at, reason)

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return await self._run(self._store.find, owner=owner, live_at=live_at, after=after, limit=limit)

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return await self._run(self._store.count, owner=owner, live_at=live_at)

    async def purge(self, before: datetime, /) -> int:
        return await self._run(self._store.purge, before)

    async def touch(self, used: Mapping[str, datetime], /) -> None:
        await self._run(self._store.touch, used)

    async def changes(self, since: Revision | None, /) -> Changes:
        return await self._run(self._store.changes, since)


class InThread(_Bridge):
    """For a store that may block: each call runs in a thread, in the context of its caller.

    The threads are the bridge's own, so that a store that hangs takes none of the application's.
    """

    def __init__(self, store: KeyReader) -> None:
        super().__init__(store)
        self._start_anew()
        after_fork(self._start_anew)  # the threads are not there

    def _start_anew(self) -> None:
        self._threads = ThreadPoolExecutor(thread_name_prefix="apikey_auth.store")

    async def _run(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = partial(copy_context().run, partial(method, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


class Inline(_Bridge):
    """For a store that never blocks, such as ``MemoryKeyStore``: each call runs where it is made."""

    async def _run(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(*args, **kwargs)
