"""Keys in memory: the reference for every other store, and the store for tests. Gone with the process."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from threading import Lock

from ..decisions import changed, dead_before, state
from ..errors import DuplicateKey
from ..keys import APIKey, in_utc
from .protocol import MAX_CHANGES, Changes, Page, Revision, check_page, check_swap


class MemoryKeyStore:
    """A ``KeyStore`` over a dict, for any number of threads. Never blocks: ``Inline`` is its async bridge."""

    def __init__(self) -> None:
        self._keys: dict[str, APIKey] = {}
        self._revisions: dict[str, int] = {}  # of each key's last change
        self._revision = Revision(secrets.token_hex(8), 0)
        self._floor = 0  # the revision of the last purge: what went before it is forgotten
        self._lock = Lock()

    def get(self, key_id: str, /) -> APIKey | None:
        key = self._keys.get(key_id)
        return replace(key) if key is not None and key.metadata else key

    def add(self, key: APIKey, /) -> None:
        with self._lock:
            self._insert(key)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        with self._lock:
            current = self._keys.get(old.id)
            if current is None or (current.version, current.digest) != (old.version, old.digest):
                return False
            if successor is not None:
                self._insert(successor)
            self._advance()
            self._replace(replace(new, last_used_at=current.last_used_at))
            return True

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        at = in_utc("at", at)
        with self._lock:
            found = list(self._select(lambda key: key.revoked_at is None, owner))
            self._advance()
            for key in found:
                self._replace(changed(key, revoked_at=at, revoked_reason=reason))
            return len(found)

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        check_page(after, limit)
        live_at = None if live_at is None else in_utc("live_at", live_at)
        with self._lock:
            found = self._select(lambda key: after is None or key.id > after, owner, live_at)
            keys = sorted(found, key=lambda key: key.id)
        items = tuple(map(replace, keys[:limit]))
        return Page(items, items[-1].id if len(keys) > limit else None)

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        live_at = None if live_at is None else in_utc("live_at", live_at)
        with self._lock:
            return sum(1 for _ in self._select(lambda _: True, owner, live_at))

    def purge(self, before: datetime, /) -> int:
        before = in_utc("before", before)
        with self._lock:
            dead = list(self._select(lambda key: dead_before(key, before), None))
            self._advance()
            self._floor = self._revision.number
            for key in dead:
                del self._keys[key.id]
                self._revisions.pop(key.id, None)
            return len(dead)

    def touch(self, used: Mapping[str, datetime], /) -> None:
        times = {key_id: in_utc("used", at) for key_id, at in used.items()}
        with self._lock:
            for key_id, at in times.items():
                key = self._keys.get(key_id)
                if key is not None and (key.last_used_at is None or key.last_used_at < at):
                    self._keys[key_id] = replace(key, last_used_at=at)

    def changes(self, since: Revision | None, /) -> Changes:
        with self._lock:
            now = self._revision
            known = (
                since is not None and since.epoch == now.epoch and self._floor <= since.number <= now.number
            )
            if since is None or not known:
                return Changes(now, None)
            ids = frozenset(key_id for key_id, number in self._revisions.items() if number > since.number)
            return Changes(now, ids if len(ids) <= MAX_CHANGES else None)

    def _select(
        self, wanted: Callable[[APIKey], bool], owner: str | None, live_at: datetime | None = None
    ) -> Iterator[APIKey]:
        for key in self._keys.values():
            if owner is not None and key.owner != owner:
                continue
            if live_at is not None and state(key, live_at) is not None:
                continue
            if wanted(key):
                yield key

    def _insert(self, key: APIKey) -> None:
        if key.id in self._keys:
            raise DuplicateKey(key.id)
        self._keys[key.id] = replace(key)

    def _advance(self) -> None:
        self._revision = replace(self._revision, number=self._revision.number + 1)

    def _replace(self, key: APIKey) -> None:
        self._keys[key.id] = key
        self._revisions[key.id] = self._revision.number
