"""Stores with one fault each, and the contract over every one; ``test_faulty_stores.py`` runs this file."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from threading import RLock
from typing import Any, ClassVar

import pytest

from apikey_auth import APIKey, Changes, DuplicateKey, MemoryKeyStore, Page, Revision, StoreUnavailable
from apikey_auth.testing import KeyStoreContract, races

METHODS = ("get", "add", "swap", "revoke_all", "find", "count", "purge", "touch", "changes")
A_MOMENT = 0.004  # seconds for others to come between


def by_connection(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method fail where the database is out of reach, and open the connection it needs."""

    @wraps(method)
    def call(self: "Sound", *args: Any, **kwargs: Any) -> Any:
        with self.connection():
            return method(self, *args, **kwargs)

    return call


class Sound(MemoryKeyStore):
    """Nothing is wrong."""

    for name in METHODS:
        locals()[name] = by_connection(getattr(MemoryKeyStore, name))

    def __init__(self) -> None:
        super().__init__()
        self._lock = RLock()  # type: ignore[assignment]  # so that a fault may be one step
        self.is_away = False
        self.open = 0

    @contextmanager
    def connection(self) -> Iterator[None]:
        if self.is_away:
            raise StoreUnavailable("the database is away")
        self.open = self.open or 1
        yield

    def close(self) -> None:
        self.open = 0


class DropsTheTimeZone(Sound):
    """The time that a clock shows is taken for the time in UTC."""

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return super().revoke_all(owner, dropped(at), reason)

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return super().count(owner=owner, live_at=live_at and dropped(live_at))

    def purge(self, before: datetime, /) -> int:
        return super().purge(dropped(before))

    def touch(self, used: Mapping[str, datetime], /) -> None:
        super().touch({key_id: dropped(at) for key_id, at in used.items()})


def dropped(time: datetime) -> datetime:
    return time if time.tzinfo is None else time.replace(tzinfo=UTC)


class TakesNaiveTimes(Sound):
    """A time without a zone is taken for one in UTC."""

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return super().revoke_all(owner, at if at.tzinfo else at.replace(tzinfo=UTC), reason)


class IgnoresCase(Sound):
    """Ids that differ in case are found for one another, as with the usual collations of MariaDB."""

    def get(self, key_id: str, /) -> APIKey | None:
        exact = super().get(key_id)
        folded = {known.casefold(): known for known in self._keys}
        return exact or super().get(folded.get(key_id.casefold(), key_id))


class IgnoresBlanksBehind(Sound):
    """Blanks at the end of an id do not count, as with PAD SPACE."""

    def get(self, key_id: str, /) -> APIKey | None:
        return super().get(key_id) or super().get(key_id.rstrip(" ") or key_id)


class IsUpsetByStrangeIds(Sound):
    """What the database cannot keep is an error, where it is the id of no key."""

    def get(self, key_id: str, /) -> APIKey | None:
        if "\0" in key_id:
            raise ValueError("a NUL character")
        return super().get(key_id)


class CutsADigest(Sound):
    """A column has room for 64 characters, and the database cuts without a word."""

    def add(self, key: APIKey, /) -> None:
        super().add(replace(key, digest=key.digest[:64]))


class GivesAwayItsRecords(Sound):
    """A record that was read is the one in the store, not a snapshot."""

    def get(self, key_id: str, /) -> APIKey | None:
        with self.connection():
            return self._keys.get(key_id)


class AddReplaces(Sound):
    """A second record of one id takes the place of the first."""

    def add(self, key: APIKey, /) -> None:
        with self.connection(), self._lock:
            self._keys[key.id] = replace(key)


class LosesAnUpdate(Sound):
    """A swap does not look at the version."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        current = self._keys.get(old.id)
        if current is not None and new.version == old.version + 1:
            old = replace(old, version=current.version)
            new = replace(new, version=current.version + 1)
        return super().swap(old, new, successor)


class LooksAtTheIdAlone(Sound):
    """A swap takes a record made anew for the one that was read, by its version."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        current = self._keys.get(old.id)
        return super().swap(replace(old, digest=current.digest) if current else old, new, successor)


class ComparesTooEarly(Sound):
    """A swap compares, and writes a moment later whatever is there by then."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        current = self._keys.get(old.id)
        late = current is None or (current.version, current.digest) != (old.version, old.digest)
        time.sleep(A_MOMENT)
        if current is None or late or new.version != old.version + 1:
            return super().swap(old, new, successor)
        now = self._keys.get(old.id, current)
        following = replace(new, version=now.version + 1)
        won = super().swap(now, following, successor)
        with self._lock:
            if won:
                self._keys[new.id] = replace(self._keys[new.id], version=new.version)
        return won


class SwapWritesTheLastUse(Sound):
    """A change takes back when the key was last used."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        won = super().swap(old, new, successor)
        if won:
            with self._lock:
                self._keys[new.id] = replace(self._keys[new.id], last_used_at=new.last_used_at)
        return won


class HalfARotation(Sound):
    """The old key is written although its successor cannot be."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        won = super().swap(old, new)
        if won and successor is not None:
            self.add(successor)
        return won


class ARotationInTwoSteps(Sound):
    """The old key is written a moment before its successor."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        if successor is None or successor.id in self._keys:
            return super().swap(old, new, successor)
        won = super().swap(old, new)
        if won:
            time.sleep(A_MOMENT)
            self.add(successor)
        return won


class TheSuccessorOverwrites(Sound):
    """A successor takes the place of a record that has its id."""

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        won = super().swap(old, new)
        if won and successor is not None:
            with self._lock:
                self._keys[successor.id] = successor
        return won


class RevokesAgain(Sound):
    """Revoking all writes over the time and the reason of what was revoked before."""

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        told = super().revoke_all(owner, at, reason)
        with self._lock:
            for key in [key for key in self._keys.values() if owner in (None, key.owner)]:
                self._keys[key.id] = replace(key, revoked_at=at, revoked_reason=reason)
        return told


class ForgetsTheRevision(Sound):
    """Revoking all does not move the revision."""

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        with self._lock:
            before = self._revision
        told = super().revoke_all(owner, at, reason)
        with self._lock:
            self._revision = before
        return told


class RevokesOneByOne(Sound):
    """Revoking all takes one step for each key; the revision moves with the first."""

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        with self._lock:
            found = [key.id for key in self._select(lambda key: key.revoked_at is None, owner)]
        told = super().revoke_all("nobody has this name", at, reason)
        for key_id in found:
            time.sleep(A_MOMENT / 20)
            with self._lock:
                key = self._keys.get(key_id)
                if key is not None and key.revoked_at is None:
                    told += 1
                    self._replace(replace(key, revoked_at=at, revoked_reason=reason, version=key.version + 1))
        return told


class PagesByOffset(Sound):
    """A page begins after as many records as the pages before it had."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: dict[str, int] = {}

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        offset = self.offsets.get(after or "", 0)
        if not offset or limit < 1:
            page = super().find(owner=owner, live_at=live_at, after=after, limit=limit)
        else:
            items = super().find(owner=owner, live_at=live_at, limit=2**31 - 1).items[offset:]
            page = Page(items[:limit], items[limit - 1].id if len(items) > limit else None)
        if page.next is not None:
            self.offsets[page.next] = offset + limit
        return page


class PurgesWithoutAFloor(Sound):
    """What is purged is gone, and who asks for changes since then is not told of it."""

    def purge(self, before: datetime, /) -> int:
        told = super().purge(before)
        with self._lock:
            self._floor = 0
        return told


class TouchMovesTheRevision(Sound):
    """A use is a change."""

    def touch(self, used: Mapping[str, datetime], /) -> None:
        super().touch(used)
        with self._lock:
            self._advance()


class TouchMovesTheVersion(Sound):
    """A use makes the next version, so that a change decided before it is late."""

    def touch(self, used: Mapping[str, datetime], /) -> None:
        super().touch(used)
        with self._lock:
            for key_id in used:
                if key_id in self._keys:
                    self._keys[key_id] = replace(self._keys[key_id], version=self._keys[key_id].version + 1)


class TouchGoesBack(Sound):
    """The use that is noted last is taken for the latest."""

    def touch(self, used: Mapping[str, datetime], /) -> None:
        super().touch(used)
        with self._lock:
            for key_id, at in used.items():
                if key_id in self._keys:
                    self._keys[key_id] = replace(self._keys[key_id], last_used_at=at)


class TouchWritesBackWhatItRead(Sound):
    """A use is noted by reading a record and writing all of it, a moment later."""

    def touch(self, used: Mapping[str, datetime], /) -> None:
        read = {key_id: self._keys[key_id] for key_id in used if key_id in self._keys}
        super().touch(used)
        time.sleep(A_MOMENT)
        with self._lock:
            for key_id, key in read.items():
                at = self._keys[key_id].last_used_at if key_id in self._keys else None
                self._keys[key_id] = replace(key, last_used_at=at)


class WritesBackWhatItCached(Sound):
    """A record is cached when it is read, and written back when it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, APIKey] = {}

    def get(self, key_id: str, /) -> APIKey | None:
        key = super().get(key_id)
        if key is not None:
            self.cache[key_id] = key
        return key

    def touch(self, used: Mapping[str, datetime], /) -> None:
        super().touch(used)
        with self._lock:
            for key_id in set(used) & set(self.cache) & set(self._keys):
                cached = self.cache.pop(key_id)
                self._keys[key_id] = replace(cached, last_used_at=self._keys[key_id].last_used_at)


class TouchBringsPurgedKeysBack(Sound):
    """A purge leaves the record in a place from which a use takes it again."""

    def __init__(self) -> None:
        super().__init__()
        self.purged: dict[str, APIKey] = {}

    def purge(self, before: datetime, /) -> int:
        known = dict(self._keys)
        told = super().purge(before)
        self.purged.update({key_id: key for key_id, key in known.items() if key_id not in self._keys})
        return told

    def touch(self, used: Mapping[str, datetime], /) -> None:
        with self._lock:
            for key_id in set(used) & set(self.purged) - set(self._keys):
                self._keys[key_id] = self.purged.pop(key_id)
        super().touch(used)


class ReadsFromACopy(Sound):
    """A key that was read once is read from a copy, which only a change of this one key renews."""

    def __init__(self) -> None:
        super().__init__()
        self.copy: dict[str, APIKey] = {}

    def get(self, key_id: str, /) -> APIKey | None:
        key = self.copy.get(key_id) or super().get(key_id)
        if key is not None:
            self.copy[key_id] = key
        return key and replace(key)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        self.copy.pop(old.id, None)
        return super().swap(old, new, successor)


class RevisionsOfASequence(Sound):
    """Changes get their revisions in the order in which they begin, and are committed in any order."""

    last = 0

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        if old != self._keys.get(old.id):
            return super().swap(old, new, successor)
        with self._lock:
            self.last = number = max(self.last, self._revision.number) + 1
        time.sleep(A_MOMENT * (number % 3))
        with self._lock:
            before = self._revision
            won = super().swap(old, new, successor)
            if won:
                self._revisions[new.id] = number
                self._revision = replace(before, number=max(before.number, number))
        return won


class NamesTooMany(Sound):
    """Changes are named however many they are."""

    def changes(self, since: Revision | None, /) -> Changes:
        told = super().changes(since)
        if since is None or since.epoch != told.revision.epoch or since.number > told.revision.number:
            return told
        if since.number < self._floor:
            return told
        ids = {key_id for key_id, number in self._revisions.items() if number > since.number}
        return Changes(told.revision, frozenset(ids))


class AnswersUnknownWhenAway(Sound):
    """A database that is out of reach has no keys."""

    def get(self, key_id: str, /) -> APIKey | None:
        try:
            return super().get(key_id)
        except StoreUnavailable:
            return None


class RaisesWhatItsDriverRaises(Sound):
    """The driver's own exception comes through."""

    def get(self, key_id: str, /) -> APIKey | None:
        try:
            return super().get(key_id)
        except StoreUnavailable:
            raise ConnectionError("refused") from None


class ShowsADigest(Sound):
    """An error quotes the statement with its parameters."""

    def add(self, key: APIKey, /) -> None:
        try:
            super().add(key)
        except StoreUnavailable as error:
            raise StoreUnavailable("out of reach") from RuntimeError(f"INSERT {key.digest}", error)


class StaysBroken(Sound):
    """A connection that failed once is kept and fails for ever."""

    def get(self, key_id: str, /) -> APIKey | None:
        try:
            return super().get(key_id)
        except StoreUnavailable:
            self.broken = True
            raise
        finally:
            if self.__dict__.get("broken"):
                raise StoreUnavailable("the connection is broken")


class LeaksAConnection(Sound):
    """A duplicate keeps the connection on which it was found."""

    def add(self, key: APIKey, /) -> None:
        try:
            super().add(key)
        except DuplicateKey:
            self.open += 1
            raise


class LeaksAConnectionWhenAway(Sound):
    """What cannot be reached keeps half a connection."""

    def find(self, **wanted: Any) -> Page:
        try:
            return super().find(**wanted)
        except StoreUnavailable:
            self.open += 1
            raise


class StaysOpen(Sound):
    """Closing closes nothing."""

    def close(self) -> None:
        pass


FAULTS: list[type[Sound]] = [Sound, *Sound.__subclasses__()]


class FaultContract(KeyStoreContract):
    kind: ClassVar[type[Sound]]
    rounds = 10
    many = 200
    examples = 40

    @pytest.fixture
    def store(self) -> Sound:
        return self.kind()

    @contextmanager
    def break_store(self, store: Sound) -> Iterator[None]:
        store.is_away = True
        yield
        store.is_away = False

    def connections(self, store: Sound) -> int:
        return store.open


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of these stores never do what is waited for."""
    monkeypatch.setattr(races, "PATIENCE", 2)


for fault in FAULTS:
    globals()[f"Test{fault.__name__}"] = type(f"Test{fault.__name__}", (FaultContract,), {"kind": fault})
