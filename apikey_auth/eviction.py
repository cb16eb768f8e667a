"""What is changed here is evicted here: at once, and before whoever changed it goes on.

The order is: commit, evict, return; and evicted is also where it is not known whether the commit went
through. What is being read meanwhile is not kept, and nobody joins it any more.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from .cache import VerdictCache
from .errors import APIKeyAuthError, StoreUnavailable
from .keys import APIKey
from .stores.protocol import (
    AsyncKeyReader,
    AsyncKeyStore,
    Bridge,
    Changes,
    KeyReader,
    KeyStore,
    Page,
    Revision,
    check_page,
    joined,
)


@contextmanager
def _answering() -> Iterator[None]:
    """Take what goes wrong in a store for what it says, which is nothing, whatever the store raises.

    What the store is asked is in order: the manager, or ``check_page``, has seen to it.
    """
    try:
        yield
    except APIKeyAuthError:
        raise
    except Exception as error:
        raise StoreUnavailable(f"the key store failed: {type(error).__name__}") from error


class EvictingStore(Bridge):
    """A ``KeyStore`` that tells a cache what it changed, in front of another one."""

    def __init__(self, store: KeyReader, cache: VerdictCache) -> None:
        self._store: KeyStore = store  # type: ignore[assignment]  # whoever manages keys checks it
        self._cache = cache

    @property
    def wrapped(self) -> object:
        return self._store.wrapped if isinstance(self._store, Bridge) else self._store

    def get(self, key_id: str, /) -> APIKey | None:
        """Read a record, which is remembered no more: whoever decides on it need not change it.

        A key that another process has revoked is dead here when it is revoked here too.
        """
        try:
            with _answering():
                return self._store.get(key_id)
        finally:
            self._cache.evict((key_id,))

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        check_page(after, limit)
        with _answering():
            return self._store.find(owner=owner, live_at=live_at, after=after, limit=limit)

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        with _answering():
            return self._store.count(owner=owner, live_at=live_at)

    def add(self, key: APIKey, /, *, connection: object | None = None) -> None:
        try:
            with _answering():
                self._store.add(key, **joined(self._store, connection))
        finally:
            self._evict(partial(self._cache.evict, (key.id,)))

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        ids = (old.id,) if successor is None else (old.id, successor.id)
        try:
            with _answering():
                return self._store.swap(old, new, successor=successor)
        finally:
            self._evict(partial(self._cache.evict, ids))

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        whose = self._cache.evict_all if owner is None else partial(self._cache.evict_owner, owner)
        try:
            with _answering():
                return self._store.revoke_all(owner, at, reason)
        finally:
            self._evict(whose)

    def purge(self, before: datetime, /) -> int:
        try:
            with _answering():
                return self._store.purge(before)
        finally:
            self._evict(self._cache.evict_all)

    def touch(self, used: Mapping[str, datetime], /) -> None:
        self._store.touch(used)

    def changes(self, since: Revision | None, /) -> Changes:
        return self._store.changes(since)

    def _evict(self, forget: Callable[[], None]) -> None:
        """Evict now, and again at the commit of a transaction that the application has open there."""
        forget()
        on_commit = getattr(self._store, "on_commit", None)
        if on_commit is not None:
            on_commit(forget)


class AsyncEvictingStore(Bridge):
    """An ``AsyncKeyStore`` that tells a cache what it changed, in front of another one."""

    def __init__(self, store: AsyncKeyReader, cache: VerdictCache) -> None:
        self._store: AsyncKeyStore = store  # type: ignore[assignment]  # whoever manages keys checks it
        self._cache = cache

    @property
    def wrapped(self) -> object:
        return self._store.wrapped if isinstance(self._store, Bridge) else self._store

    async def get(self, key_id: str, /) -> APIKey | None:
        """Read a record, which is remembered no more: whoever decides on it need not change it.

        A key that another process has revoked is dead here when it is revoked here too.
        """
        try:
            with _answering():
                return await self._store.get(key_id)
        finally:
            self._cache.evict((key_id,))

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        check_page(after, limit)
        with _answering():
            return await self._store.find(owner=owner, live_at=live_at, after=after, limit=limit)

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        with _answering():
            return await self._store.count(owner=owner, live_at=live_at)

    async def add(self, key: APIKey, /, *, connection: object | None = None) -> None:
        try:
            with _answering():
                await self._store.add(key, **joined(self._store, connection))
        finally:
            await self._evict(partial(self._cache.evict, (key.id,)))

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        ids = (old.id,) if successor is None else (old.id, successor.id)
        try:
            with _answering():
                return await self._store.swap(old, new, successor=successor)
        finally:
            await self._evict(partial(self._cache.evict, ids))

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        whose = self._cache.evict_all if owner is None else partial(self._cache.evict_owner, owner)
        try:
            with _answering():
                return await self._store.revoke_all(owner, at, reason)
        finally:
            await self._evict(whose)

    async def purge(self, before: datetime, /) -> int:
        try:
            with _answering():
                return await self._store.purge(before)
        finally:
            await self._evict(self._cache.evict_all)

    async def touch(self, used: Mapping[str, datetime], /) -> None:
        await self._store.touch(used)

    async def changes(self, since: Revision | None, /) -> Changes:
        return await self._store.changes(since)

    async def _evict(self, forget: Callable[[], None]) -> None:
        """Evict now, and again at the commit of a transaction that the application has open there."""
        forget()
        on_commit = getattr(self._store, "on_commit", None)
        if on_commit is not None:
            await on_commit(forget)
