"""What a revocation promises: between processes, on every store; and that each rule it rests on is needed.

The second half takes the rules of DESIGN section 7 out one by one, and sees a scenario fail for want of each.
"""

import asyncio
import multiprocessing
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from test_cache import Intruder, in_child
from test_eviction import DAY, MINUTE, NOW, SCHEME, Colour, Reader, SlowStore
from test_flights import PATIENCE, counted_waits, until

from apikey_auth import (
    Authenticator,
    KeyManager,
    KeyNotLive,
    MemoryKeyStore,
    Owner,
    Refusal,
    StoreUnavailable,
)
from apikey_auth.cache import Fence, UserCache, Verdict, VerdictCache
from apikey_auth.decisions import is_of
from apikey_auth.eviction import EvictingStore
from apikey_auth.flights import AsyncFlights, Flights
from apikey_auth.keys import APIKey, KeyText
from apikey_auth.stores.protocol import Bridge, Changes, Revision
from apikey_auth.stores.redis import RedisKeyStore
from apikey_auth.stores.sql import SQLKeyStore

# Processes

OPERATIONS = 10_000  # on all stores together
STORES = ["sqlite", "postgresql", "mariadb", "redis"]
BUSY, THREADS = 2, 2  # processes on each, beside an idle one, and threads of each
STALENESS = 0.1
WEIGHTS = {"use": 68, "fill": 14, "edit": 6, "issue": 5, "revoke": 3, "rotate": 2, "disable": 2}


@dataclass(frozen=True)
class Known:
    """What all processes know: where the store is, and a pool of ids and texts."""

    url: str
    pool: list[tuple[str, str]]


@dataclass
class Done:
    """What one process did, and saw."""

    operations: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    late: int = 0  # a dead key was let in, within the bound
    broken: list[str] = field(default_factory=list)


def store_at(url: str) -> SQLKeyStore | RedisKeyStore:
    if url.startswith("redis"):
        url, _, namespace = url.partition("#")
        return RedisKeyStore(url, namespace=namespace, timeout=PATIENCE)
    return SQLKeyStore(url, create=True, timeout=PATIENCE)


class Late(Bridge):
    """A store whose records are on their way for some time, so that much may happen meanwhile."""

    def __init__(self, store: SQLKeyStore | RedisKeyStore) -> None:
        self._store = store

    @property
    def wrapped(self) -> object:
        return self._store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, key_id: str, /) -> APIKey | None:
        key = self._store.get(key_id)
        time.sleep(random.uniform(0, 0.002))
        return key


class Worker:
    """One thread's part. ``dead`` has a time for each key of the pool, from when the call that ended it returned.

    The clock is monotonic, which all processes of a machine share.
    """

    def __init__(
        self, number: int, known: Known, dead: Any, auth: "Authenticator[Owner]", here: set[int]
    ) -> None:
        self.chance = random.Random(number)
        self.known, self.dead, self.auth, self.done = known, dead, auth, Done()
        self.here = here  # keys that this process has ended

    def run(self) -> Done:
        operations = OPERATIONS // len(STORES) // BUSY // THREADS
        for name in self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=operations):
            find = self.chance.choice([self.some, self.last if name == "use" else self.first])
            getattr(self, name)(find())
            self.done.operations[name] += 1
        return self.done

    def some(self) -> int:
        return self.chance.randrange(len(self.known.pool))

    def first(self) -> int:
        """Find the first key that lives, which others are about to end as well."""
        return next(n for n, ended in enumerate(self.dead) if not ended)

    def last(self) -> int:
        """Find the key that was ended last, wherever."""
        return max(range(len(self.known.pool)), key=self.dead.__getitem__)

    def use(self, n: int) -> None:
        # Read before the key is tried: what was dead here, or so long before elsewhere, must not enter.
        here, ended, began = n in self.here, self.dead[n], monotonic()
        try:
            self.auth.authenticate(self.known.pool[n][1])
        except Refusal as refusal:
            self.done.refused += 1
            if refusal.code not in ("revoked_key", "disabled_key", "expired_key"):
                self.done.broken.append(refusal.code)
        else:
            self.done.late += ended > 0
            if 0 < ended < began - self.auth.revocation_bound:
                self.done.broken.append(f"a dead key entered {began - ended:.3f} s later")
            if here:
                self.done.broken.append("a key entered where it was ended before")

    def fill(self, n: int) -> None:
        self.auth._cache.evict([self.known.pool[n][0]])
        self.use(n)

    def issue(self, n: int) -> None:
        self.auth.authenticate(self.auth.keys.issue("u2", expires_in=None).text)

    def edit(self, n: int) -> None:
        self.auth.keys.edit(self.known.pool[n][0], name=f"{self.chance.random()}")
        self.use(n)

    def revoke(self, n: int) -> None:
        self.end(n, self.auth.keys.revoke)

    def disable(self, n: int) -> None:
        self.end(n, partial(self.auth.keys.edit, disabled=True))

    def rotate(self, n: int) -> None:
        try:
            self.end(n, self.auth.keys.rotate)
        except KeyNotLive:
            self.use(n)

    def end(self, n: int, end: Callable[[str], Any]) -> None:
        """End a key, and see that it is dead here at once."""
        end(self.known.pool[n][0])
        self.dead[n] = self.dead[n] or monotonic()
        self.here.add(n)
        self.use(n)


SHARED: dict[str, Any] = {}  # by all processes: what can only be handed to one while it starts


def enter(shared: dict[str, Any]) -> None:
    SHARED.update(shared)


def work(number: int, known: Known) -> list[Done]:
    store, here = store_at(known.url), set[int]()
    auth = Authenticator(Late(store), SCHEME, max_staleness=STALENESS, max_age=10**6)
    workers = [Worker(THREADS * number + n, known, SHARED["dead"], auth, here) for n in range(THREADS)]
    for _, text in known.pool:
        auth.authenticate(text)
    SHARED["start"].wait(PATIENCE)
    if number < BUSY:
        with ThreadPoolExecutor(THREADS) as threads:
            done = [threads.submit(worker.run) for worker in workers]
        SHARED["finish"].wait(PATIENCE)
        store.close()
        return [each.result() for each in done]
    SHARED["finish"].wait(PATIENCE)
    time.sleep(auth.revocation_bound)
    for n in range(len(known.pool)):
        workers[0].use(n)
    store.close()
    return [workers[0].done]


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'keys.db'}"
    if request.param == "redis":
        return f"{request.getfixturevalue('redis_url')}#test-{secrets.token_hex(8)}"
    return str(request.getfixturevalue(f"{request.param}_database"))


def test_no_key_enters_in_another_process_later_than_the_bound_after_its_end(url: str) -> None:
    store = store_at(url)
    keys = KeyManager(store, SCHEME)
    issued = [keys.issue("u1", expires_in=None) for _ in range(300)]
    known = Known(url, [(each.key.id, each.text) for each in issued])
    store.close()
    spawning = multiprocessing.get_context("spawn")
    start, finish = spawning.Barrier(BUSY + 1), spawning.Barrier(BUSY + 1)
    shared = {"dead": spawning.RawArray("d", len(issued)), "start": start, "finish": finish}
    with spawning.Pool(BUSY + 1, enter, (shared,)) as processes:
        parts = [(number, known) for number in range(BUSY + 1)]
        answers = processes.starmap_async(work, parts, chunksize=1).get(timeout=3 * PATIENCE)
        processes.close()
        processes.join()
    done = [each for answer in answers for each in answer]
    operations = sum((part.operations for part in done), Counter[str]())
    print(dict(operations), [(part.refused, part.late) for part in done])
    assert [complaint for part in done for complaint in part.broken] == []
    assert operations.total() == OPERATIONS // len(STORES)
    assert all(part.refused for part in done)
    assert sum(part.late for part in done) > 0  # else nothing was tried near the bound


# Scenarios: each holds, and fails without the rule that it is for


class Broken(AssertionError):
    """A scenario did not end as it must."""


def see(found: object, expected: object) -> None:
    """Raise Broken unless what was found is what was to be."""
    if found != expected:
        raise Broken(f"{found}, not {expected}")


class Hooked(SlowStore):
    """A store in the middle of whose next call something else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: dict[str, Callable[[], object]] = {}

    def meanwhile(self, method: str) -> None:
        self.hooks.pop(method, bool)()

    def get(self, key_id: str, /) -> APIKey | None:
        key = super().get(key_id)
        self.meanwhile("get")
        return key

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        self.meanwhile("swap")
        return super().swap(old, new, successor)

    def changes(self, since: Revision | None, /) -> Changes:
        revision = super().changes(since).revision
        self.meanwhile("changes")
        return Changes(revision, super().changes(since).ids)


class Setting:
    """An application whose store is hooked, with a key that is known to it unless it is said otherwise."""

    def __init__(self, colour: Colour, *, known: bool = True, **options: Any) -> None:
        self.store = Hooked()
        self.app = colour.app(self.store, **options)
        self.issued, self.another = self.app.issue(expires_in=None), self.app.issue("u2", expires_in=None)
        if known:
            see([self.ask(), self.app.outcome(self.another.text)], ["in", "in"])
        self.app.calls()

    def ask(self) -> str:
        return self.app.outcome(self.issued.text)

    def revoke(self) -> None:
        self.app.change(lambda keys: keys.revoke(self.issued.key.id))

    def revoke_elsewhere(self) -> None:
        self.app.elsewhere.revoke(self.issued.key.id)

    def poll(self) -> None:
        self.app.auth._poll()

    def later(self, seconds: float) -> None:
        self.app.ticks.now += seconds


def flood(colour: Colour) -> None:
    setting = Setting(colour, cache_size=16)
    for _ in range(32):
        setting.app.outcome(SCHEME.mint().text)
    setting.app.calls()
    see(setting.ask(), "in")
    see(setting.app.calls(), {})


def in_use(colour: Colour) -> None:
    setting = Setting(colour, cache_size=2)
    setting.ask()
    setting.app.outcome(setting.app.issue().text)
    setting.app.calls()
    see(setting.ask(), "in")
    see(setting.app.calls(), {})


def slow_poll(colour: Colour) -> None:
    setting = Setting(colour)
    setting.later(0.5)
    setting.store.hooks["changes"] = lambda: None
    held = setting.store.hold("changes")
    polling = setting.app.start(setting.issued.text)
    until(held.reached.is_set)
    setting.revoke_elsewhere()
    setting.later(0.75)
    setting.store.hooks.clear()
    held.release()
    polling.result()
    setting.later(0.25)
    see(setting.ask(), "revoked_key")


def idle(colour: Colour) -> None:
    setting = Setting(colour, max_age=10_000)
    setting.revoke_elsewhere()
    setting.later(3600)
    see(setting.ask(), "revoked_key")


def one_poll(colour: Colour) -> None:
    setting = Setting(colour)
    setting.later(0.5)
    setting.app.auth._cache.may_poll()
    setting.ask()
    see(setting.app.calls(), {})


def early_poll(colour: Colour) -> None:
    setting = Setting(colour)
    setting.later(0.5)
    setting.ask()
    see(setting.app.calls(), {"changes": 1})


def first_fill(colour: Colour) -> None:
    setting = Setting(colour, known=False)
    setting.store.hooks["get"] = setting.revoke_elsewhere
    setting.ask()
    setting.later(1)
    see(setting.ask(), "revoked_key")


def others_warm(colour: Colour) -> None:
    setting = Setting(colour)
    setting.revoke_elsewhere()
    setting.later(0.5)
    setting.app.outcome(setting.another.text)
    see(setting.app.calls(), {"changes": 1})


def read_across_a_poll(colour: Colour) -> None:
    setting = Setting(colour)
    setting.app.auth._cache.evict_all()

    def meanwhile() -> None:
        setting.revoke_elsewhere()
        setting.poll()

    setting.store.hooks["get"] = meanwhile
    setting.ask()
    see(setting.ask(), "revoked_key")


def read_across_a_revocation(colour: Colour) -> None:
    setting = Setting(colour)
    setting.app.auth._cache.evict_all()
    setting.store.hooks["get"] = setting.revoke
    setting.ask()
    see(setting.ask(), "revoked_key")


def between_fence_and_keeping(colour: Colour) -> None:
    setting = Setting(colour)
    cache = setting.app.auth._cache
    cache.evict_all()
    lock = cache._lock

    def meanwhile() -> None:
        cache._lock = lock
        setting.revoke()

    setting.store.hooks["get"] = lambda: setattr(cache, "_lock", Intruder(lock, before=meanwhile))
    setting.ask()
    see(setting.ask(), "revoked_key")


def behind_the_back(colour: Colour) -> None:
    setting = Setting(colour)
    setting.store._keys[setting.issued.key.id] = replace(setting.issued.key, disabled=True)
    setting.later(300)
    see(setting.ask(), "disabled_key")


def expiring(colour: Colour) -> None:
    setting = Setting(colour)
    issued = setting.app.issue(expires_in=MINUTE)
    setting.app.outcome(issued.text)
    setting.app.clock.advance(MINUTE)
    see(setting.app.outcome(issued.text), "expired_key")


def revoked_here(colour: Colour) -> None:
    setting = Setting(colour)
    setting.revoke()
    see(setting.ask(), "revoked_key")


def read_before_the_commit(colour: Colour) -> None:
    setting = Setting(colour)
    setting.store.hooks["swap"] = setting.ask
    setting.revoke()
    see(setting.ask(), "revoked_key")


def answer_lost(colour: Colour) -> None:
    setting = Setting(colour)
    setting.store.hooks["swap"] = setting.ask
    setting.app.store.lose_answers("swap")
    with pytest.raises(StoreUnavailable):
        setting.revoke()
    see(setting.ask(), "revoked_key")


def joining_after_a_revocation(colour: Colour) -> None:
    setting = Setting(colour)
    setting.app.auth._cache.evict_all()
    with pytest.MonkeyPatch.context() as patch:
        waiting = counted_waits(patch)
        held = setting.store.hold("get")
        reading = setting.app.start(setting.issued.text)
        until(held.reached.is_set)
        setting.revoke()
        asking = setting.app.start(setting.issued.text)
        until(lambda: waiting or asking.done())
        held.release()
        see([reading.result(), asking.result()], ["in", "revoked_key"])


def revoked_elsewhere_first(colour: Colour) -> None:
    setting = Setting(colour)
    setting.app.auth._cache.evict_all()

    def meanwhile() -> None:
        setting.revoke_elsewhere()
        setting.revoke()

    setting.store.hooks["get"] = meanwhile
    setting.ask()
    see(setting.ask(), "revoked_key")


def never_told(colour: Colour) -> None:
    class Untold(Reader):
        def changes(self, since: Revision | None, /) -> Changes:
            return Changes(Revision("epoch", 0), None)

    setting = Setting(colour, wrap=Untold)
    setting.revoke_elsewhere()
    setting.later(1)
    see(setting.ask(), "revoked_key")


def purged_elsewhere(colour: Colour) -> None:
    setting = Setting(colour)
    setting.revoke_elsewhere()
    setting.app.elsewhere.purge(NOW + DAY)
    setting.later(1)
    see(setting.ask(), "invalid_key")


def made_anew(colour: Colour) -> None:
    setting = Setting(colour)
    Hooked.__init__(setting.store)
    setting.later(1)
    see(setting.ask(), "invalid_key")


def revoked_while_polled(colour: Colour) -> None:
    setting = Setting(colour)
    setting.later(0.5)
    setting.store.hooks["changes"] = setting.revoke_elsewhere
    setting.ask()
    setting.later(1)
    see(setting.ask(), "revoked_key")


def unknown_then_imported(colour: Colour) -> None:
    setting = Setting(colour)
    minted = SCHEME.mint()
    setting.app.outcome(minted.text)
    setting.store.add(replace(setting.issued.key, id=minted.id, digest=SCHEME.digest(minted.text)))
    setting.later(1)
    see(setting.app.outcome(minted.text), "in")


def without_changes(colour: Colour) -> None:
    setting = Setting(colour, wrap=Reader)
    setting.revoke_elsewhere()
    setting.later(1)
    see(setting.ask(), "revoked_key")


def read_at_once(colour: Colour) -> None:
    setting = Setting(colour)
    setting.app.auth._cache.evict_all()
    with pytest.MonkeyPatch.context() as patch:
        waiting = counted_waits(patch)
        held = setting.store.hold("get")
        first = setting.app.start(setting.issued.text)
        until(held.reached.is_set)
        second = setting.app.start(setting.issued.text)
        until(lambda: waiting or second.done())
        held.release()
        see([first.result(), second.result()], ["in", "in"])
    see(setting.app.calls(), {"get": 1})


def cancelled_leader(colour: Colour) -> None:
    flights: AsyncFlights[str] = AsyncFlights()

    async def go() -> str:
        await asyncio.sleep(0)
        return "in"

    async def play() -> Any:
        leader, follower = (asyncio.create_task(flights.run("a", go)) for _ in range(2))
        await asyncio.sleep(0)
        leader.cancel()
        return await asyncio.gather(follower, return_exceptions=True)

    see(list(asyncio.run(play())), ["in"])


def forked(colour: Colour) -> None:
    setting = Setting(colour)

    def asks_anew() -> bool:
        setting.ask()
        return setting.app.calls() == {"changes": 1, "get": 1}

    see(in_child(asks_anew), True)


def store_down(colour: Colour) -> None:
    setting = Setting(colour)
    setting.app.store.fail()
    setting.later(1)
    see(setting.ask(), "store_unavailable")


def down_for_long(colour: Colour) -> None:
    setting = Setting(colour, stale_if_error=30)
    setting.app.store.fail()
    setting.later(30.9375)
    see(setting.ask(), "stale")
    setting.later(0.0625)
    see(setting.ask(), "store_unavailable")


def refused_and_down(colour: Colour) -> None:
    setting = Setting(colour, stale_if_error=30)
    setting.app.change(lambda keys: keys.edit(setting.issued.key.id, disabled=True))
    setting.ask()
    setting.app.store.fail()
    setting.later(1)
    see(setting.ask(), "store_unavailable")


def user_gone(colour: Colour) -> None:
    users = {owner: SimpleNamespace(is_active=True) for owner in ("u1", "u2")}
    setting = Setting(colour, load_user=users.get)
    users["u1"].is_active = False
    see(setting.ask(), "inactive_user")


def user_forgotten(colour: Colour) -> None:
    users = {owner: SimpleNamespace(is_active=True) for owner in ("u1", "u2")}
    setting = Setting(colour, load_user=users.get, user_max_age=10)
    users["u1"].is_active = False
    setting.app.auth.forget_user("u1")
    see(setting.ask(), "inactive_user")


def user_changed_by_a_request(colour: Colour) -> None:
    setting = Setting(colour, load_user=lambda owner: SimpleNamespace(is_active=True), user_max_age=10)
    setting.app.enter(setting.issued.text).user.is_active = False
    see(setting.ask(), "in")


# Mutations: one rule taken out by each

Mutation = Callable[[pytest.MonkeyPatch], None]


def refusals_among_the_good(patch: pytest.MonkeyPatch) -> None:
    keep = VerdictCache.keep
    patch.setattr(VerdictCache, "keep", lambda self, *args, good: keep(self, *args, good=True))


def first_in_first_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "fresh", lambda self, mark: self._good.get(mark))


def age_from_the_end(patch: pytest.MonkeyPatch) -> None:
    polled = VerdictCache.polled
    patch.setattr(VerdictCache, "polled", lambda self, changes, started: polled(self, changes, self.now()))


def no_poll_before_serving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "fresh", lambda self, mark: self.find(mark))


def everybody_polls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "may_poll", lambda self: True)


def nobody_polls_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "may_poll", lambda self: False)


def first_poll_behind_the_first_fill(patch: pytest.MonkeyPatch) -> None:
    def read_alone(self: Any, mark: bytes, presented: KeyText) -> Verdict:
        key = self.store.get(presented.id)
        if self._cache.needs_poll():
            self._poll()
        fence = self._cache.fence()
        verdict: Verdict = self._cache.verdict(presented.id, key, is_of(presented, key, self.scheme), fence)
        self._cache.keep(mark, verdict, fence, good=True)
        return verdict

    patch.setattr(Authenticator, "_read_alone", read_alone)


def nothing_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "_drop_ids", lambda self, ids: None)


def all_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "_drop_ids", lambda self, ids: self._drop_all())


def with_generation_of(method: str) -> Mutation:
    """Make the mutation in which a method moves no fence."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = getattr(VerdictCache, method)

        def fenceless(self: Any, *args: Any) -> None:
            generation = self._generation
            original(self, *args)
            self._generation = generation

        patch.setattr(VerdictCache, method, fenceless)

    return mutate


def no_fence(patch: pytest.MonkeyPatch) -> None:
    keep = VerdictCache.keep

    def fenceless(self: Any, mark: bytes, verdict: Verdict, fence: Fence, *, good: bool) -> None:
        keep(self, mark, verdict, Fence(self._generation, fence.at), good=good)

    patch.setattr(VerdictCache, "keep", fenceless)


def fence_looked_at_without_the_lock(patch: pytest.MonkeyPatch) -> None:
    keep = VerdictCache.keep

    def two_steps(self: Any, mark: bytes, verdict: Verdict, fence: Fence, *, good: bool) -> None:
        if fence.generation == self._generation:
            with self._lock:
                fence = Fence(self._generation, fence.at)
            keep(self, mark, verdict, fence, good=good)

    patch.setattr(VerdictCache, "keep", two_steps)


def life(seconds: Callable[[Any, APIKey | None], float]) -> Mutation:
    """Make the mutation in which verdicts live for so long."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = VerdictCache.verdict

        def verdict(
            self: Any, key_id: str, key: APIKey | None, matches: bool, fence: Fence, *rest: Any
        ) -> Verdict:
            made = original(self, key_id, key, matches, fence, *rest)
            return replace(made, until=fence.at + seconds(self, key))

        patch.setattr(VerdictCache, "verdict", verdict)

    return mutate


def end_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("apikey_auth.authenticate.judge", lambda key, matches, now: key)


def nothing_evicted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "evict", lambda self, ids: None)


def evicted_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    def swap(self: Any, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> Any:
        self._cache.evict((old.id,))
        return self._store.swap(old, new, successor=successor)

    patch.setattr(EvictingStore, "swap", swap)


def evicted_if_all_went_well(patch: pytest.MonkeyPatch) -> None:
    def swap(self: Any, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> Any:
        swapped = self._store.swap(old, new, successor=successor)
        self._cache.evict((old.id,))
        return swapped

    patch.setattr(EvictingStore, "swap", swap)


def nothing_detached(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flights, "detach", lambda self: None)


def reading_evicts_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EvictingStore, "get", lambda self, key_id: self._store.get(key_id))


def any_key_taken_for_none(patch: pytest.MonkeyPatch) -> None:
    polled = VerdictCache.polled

    def mutated(self: Any, changes: Changes, started: float) -> None:
        none = self.revision is not None and changes.ids is None
        polled(self, replace(changes, ids=frozenset()) if none else changes, started)

    patch.setattr(VerdictCache, "polled", mutated)


def floor_ignored(patch: pytest.MonkeyPatch) -> None:
    def changes(self: Any, since: Revision | None, /) -> Changes:
        self._floor = 0
        return MemoryKeyStore.changes(self, since)

    patch.setattr(Hooked, "changes", changes)


def epoch_ignored(patch: pytest.MonkeyPatch) -> None:
    def changes(self: Any, since: Revision | None, /) -> Changes:
        return MemoryKeyStore.changes(self, since and replace(since, epoch=self._revision.epoch))

    patch.setattr(Hooked, "changes", changes)


def ids_before_the_revision(patch: pytest.MonkeyPatch) -> None:
    def changes(self: Any, since: Revision | None, /) -> Changes:
        ids = MemoryKeyStore.changes(self, since).ids
        self.meanwhile("changes")
        return Changes(MemoryKeyStore.changes(self, since).revision, ids)

    patch.setattr(Hooked, "changes", changes)


def everybody_goes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flights, "run", lambda self, what, go: go())


def leader_not_shielded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(asyncio, "shield", lambda task: task)


def kept_across_a_fork(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("apikey_auth.cache.after_fork", lambda method: None)


def served_while_the_store_is_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "is_current", lambda self: True)


def stale_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VerdictCache, "is_usable_stale", lambda self, mark: True)


def refusals_served_stale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        VerdictCache, "is_usable_stale", lambda self, mark: mark in self._good or mark in self._others
    )


def not_called_stale(patch: pytest.MonkeyPatch) -> None:
    resolve = Authenticator._resolve
    patch.setattr(Authenticator, "_resolve", lambda self, mark, text: (resolve(self, mark, text)[0], False))


def users_remembered_unasked(patch: pytest.MonkeyPatch) -> None:
    init = UserCache.__init__
    patch.setattr(UserCache, "__init__", lambda self, max_age, size: init(self, max_age or 10, size))


def users_not_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(UserCache, "forget", lambda self, owner: None)


def users_shared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("apikey_auth.cache.copy", lambda user: user)


TABLE: list[tuple[Mutation, Callable[[Colour], None]]] = [
    (refusals_among_the_good, flood),
    (first_in_first_out, in_use),
    (age_from_the_end, slow_poll),
    (no_poll_before_serving, idle),
    (nobody_polls_early, early_poll),
    (everybody_polls, one_poll),
    (first_poll_behind_the_first_fill, first_fill),
    (nothing_dropped, idle),
    (all_dropped, others_warm),
    (no_fence, read_across_a_poll),
    (no_fence, read_across_a_revocation),
    (with_generation_of("polled"), read_across_a_poll),
    (with_generation_of("evict"), read_across_a_revocation),
    (fence_looked_at_without_the_lock, between_fence_and_keeping),
    (life(lambda cache, key: 10**6), behind_the_back),
    (end_not_looked_at, expiring),
    (nothing_evicted, revoked_here),
    (evicted_before_the_commit, read_before_the_commit),
    (evicted_if_all_went_well, answer_lost),
    (nothing_detached, joining_after_a_revocation),
    (reading_evicts_nothing, revoked_elsewhere_first),
    (any_key_taken_for_none, never_told),
    (any_key_taken_for_none, purged_elsewhere),
    (floor_ignored, purged_elsewhere),
    (epoch_ignored, made_anew),
    (ids_before_the_revision, revoked_while_polled),
    (life(lambda cache, key: cache.max_age), unknown_then_imported),
    (life(lambda cache, key: cache.max_age), without_changes),
    (everybody_goes, read_at_once),
    (leader_not_shielded, cancelled_leader),
    (kept_across_a_fork, forked),
    (served_while_the_store_is_down, store_down),
    (stale_for_ever, down_for_long),
    (not_called_stale, down_for_long),
    (refusals_served_stale, refused_and_down),
    (users_remembered_unasked, user_gone),
    (users_not_forgotten, user_forgotten),
    (users_shared, user_changed_by_a_request),
]


@pytest.fixture
def colour() -> Iterator[Colour]:
    with ThreadPoolExecutor(4) as threads:
        yield Colour(None, threads)


@pytest.mark.parametrize(
    "scenario", dict.fromkeys(scenario for _, scenario in TABLE), ids=lambda each: each.__name__
)
def test_the_promise_holds(colour: Colour, scenario: Callable[[Colour], None]) -> None:
    scenario(colour)


@pytest.mark.parametrize(("mutation", "scenario"), TABLE, ids=lambda each: each.__name__)
def test_the_promise_is_broken_without_one_of_its_rules(
    colour: Colour, monkeypatch: pytest.MonkeyPatch, mutation: Mutation, scenario: Callable[[Colour], None]
) -> None:
    with monkeypatch.context() as patch:
        mutation(patch)
        with pytest.raises(Broken):
            scenario(colour)
