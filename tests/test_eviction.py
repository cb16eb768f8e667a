"""What authenticators remember of keys, and when they no longer go by it. The clocks stand still."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from test_cache import Ticks, in_child
from test_flights import PATIENCE, counted_waits, until

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    ConfigurationError,
    Inline,
    InThread,
    IssuedKey,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    Refusal,
    RevokedKey,
    StoreUnavailable,
    opaque_tokens,
)
from apikey_auth.authenticate import share_cache
from apikey_auth.breaker import PAUSE
from apikey_auth.decisions import Identity
from apikey_auth.keys import APIKey
from apikey_auth.stores.protocol import Changes, Revision
from apikey_auth.testing import FakeClock, UnreliableStore
from apikey_auth.testing.drive import EventLoop

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SCHEME = KeyScheme("acme")
MANY = 1000


class Held:
    """A call that is held up when it has read, until it is released, and may then fail."""

    def __init__(self) -> None:
        self.reached, self._gate = Event(), Event()
        self._error: Exception | None = None

    def pass_by(self) -> None:
        self.reached.set()
        assert self._gate.wait(PATIENCE)
        if self._error is not None:
            raise self._error

    def release(self, error: Exception | None = None) -> None:
        self._error = error
        self._gate.set()


class SlowStore(MemoryKeyStore):
    """A store whose answer may be a long time on its way: what it says was true when it was read."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, Held] = {}

    def hold(self, method: str) -> Held:
        """Hold up the next call of a method."""
        held = self._held[method] = Held()
        return held

    def get(self, key_id: str, /) -> APIKey | None:
        key = super().get(key_id)
        self._pass_by("get")
        return key

    def changes(self, since: Revision | None, /) -> Changes:
        changes = super().changes(since)
        self._pass_by("changes")
        return changes

    def _pass_by(self, method: str) -> None:
        held = self._held.pop(method, None)
        if held is not None:
            held.pass_by()


class Reader:
    """A store that only reads."""

    def __init__(self, store: MemoryKeyStore) -> None:
        self.store = store

    def get(self, key_id: str, /) -> APIKey | None:
        return self.store.get(key_id)


class App:
    """An authenticator of either colour over a store in memory, driven from plain code.

    ``elsewhere`` is a manager in another process: nothing that it does is told to the authenticator.
    """

    def __init__(
        self, colour: "Colour", store: MemoryKeyStore, auth: Any, unreliable: UnreliableStore
    ) -> None:
        self._colour = colour
        self.memory, self.store, self.auth = store, unreliable, auth
        self.clock, self.ticks = auth._clock, auth._cache._monotonic
        self.elsewhere = KeyManager(store, auth.scheme, clock=self.clock)

    def issue(self, owner: str = "u1", **fields: Any) -> IssuedKey:
        """Make a key that is not known here yet."""
        return self.elsewhere.issue(owner, **fields)

    def enter(self, text: str, **request: Any) -> Identity[Any]:
        """Authenticate. Raises what that raises."""
        identity: Identity[Any] = self._colour.call(self.auth.authenticate, text, **request)
        return identity

    def outcome(self, text: str, **request: Any) -> str:
        """Authenticate, and say "in", "stale", or the code of the refusal."""
        try:
            return "stale" if self.enter(text, **request).stale else "in"
        except Refusal as refusal:
            return refusal.code

    def start(self, text: str) -> "Future[str]":
        """Begin to authenticate."""
        return self._colour.threads.submit(self.outcome, text)

    def start_many(self, text: str, number: int) -> Callable[[], list[str]]:
        """Begin to authenticate many times at once; what is answered waits for all."""
        return self._colour.start_many(self, text, number)

    def change(self, make: Callable[[Any], Any]) -> Any:
        """Change something with this authenticator's own manager."""
        return self._colour.call(make, self.auth.keys)

    def calls(self) -> Counter[str]:
        """Tell which methods of the store were called since this was last asked."""
        calls, self.store.calls = self.store.calls, Counter()
        return calls


class Colour:
    """One of the twins, so that a test is written once."""

    def __init__(self, loop: EventLoop | None, threads: ThreadPoolExecutor) -> None:
        self.loop, self.threads = loop, threads

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.loop is None:
            return function(*args, **kwargs)
        return self.loop.run(function, *args, **kwargs)

    def start_many(self, app: App, text: str, number: int) -> Callable[[], list[str]]:
        if self.loop is None:
            threads = [app.start(text) for _ in range(number)]
            return lambda: [thread.result() for thread in threads]
        tasks = self.threads.submit(self.loop.run, _outcomes, app.auth.authenticate, text, number)
        return tasks.result

    def app(
        self,
        store: MemoryKeyStore | None = None,
        scheme: KeyScheme = SCHEME,
        *,
        wrap: Callable[[MemoryKeyStore], Any] = lambda store: store,
        load_user: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> App:
        """Make an application; ``wrap`` makes what its authenticator gets of the store."""
        store = SlowStore() if store is None else store
        if load_user is not None:
            options["load_user"] = load_user if self.loop is None else awaited(load_user)
        options = {"clock": FakeClock(NOW), **options}
        unreliable = UnreliableStore(wrap(store))
        auth: Any
        if self.loop is None:
            auth = Authenticator(unreliable, scheme, **options)
        else:
            auth = AsyncAuthenticator(InThread(unreliable), scheme, **options)
        auth._cache._monotonic = auth._users._monotonic = Ticks()
        return App(self, store, auth, unreliable)


def awaited(function: Callable[[str], Any]) -> Callable[[str], Awaitable[Any]]:
    async def call(owner: str) -> Any:
        return function(owner)

    return call


async def _outcomes(
    authenticate: Callable[[str], Awaitable[Identity[Any]]], text: str, number: int
) -> list[str]:
    async def outcome() -> str:
        try:
            return "stale" if (await authenticate(text)).stale else "in"
        except Refusal as refusal:
            return refusal.code

    return await asyncio.gather(*[outcome() for _ in range(number)])


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Iterator[Colour]:
    with ThreadPoolExecutor(MANY) as threads:
        if request.param:
            with EventLoop() as loop:
                yield Colour(loop, threads)
        else:
            yield Colour(None, threads)


@pytest.fixture
def app(colour: Colour) -> App:
    return colour.app()


# What a request costs


def test_the_first_key_costs_a_read_and_a_poll_a_cold_key_a_read_a_warm_key_nothing(app: App) -> None:
    first, second = app.issue(), app.issue()
    assert app.outcome(first.text) == "in"
    assert app.calls() == {"changes": 1, "get": 1}
    assert app.outcome(second.text) == "in"
    assert app.calls() == {"get": 1}
    for _ in range(50):
        assert [app.outcome(first.text), app.outcome(second.text)] == ["in", "in"]
    assert app.calls() == {}


@pytest.mark.parametrize("first_ever", [True, False])
def test_a_thousand_first_uses_at_once_cost_one_read(
    colour: Colour, monkeypatch: pytest.MonkeyPatch, first_ever: bool
) -> None:
    app = colour.app(MemoryKeyStore())
    if not first_ever:
        assert app.outcome(app.issue().text) == "in"
        app.calls()
    issued = app.issue()
    waiting = counted_waits(monkeypatch)
    app.store.hang()
    outcomes = app.start_many(issued.text, MANY)
    until(lambda: app.store.waiting)
    if colour.loop is None:
        until(lambda: len(waiting) == MANY - 1)
    app.store.heal()
    assert Counter(outcomes()) == {"in": MANY}
    assert app.calls() == ({"changes": 1, "get": 1} if first_ever else {"get": 1})


def test_bad_keys_are_remembered_as_well(app: App) -> None:
    issued, unknown = app.issue(), SCHEME.mint()
    app.elsewhere.revoke(issued.key.id)
    wrong = SCHEME.mint(issued.key.id)
    for text, code in (
        (issued.text, "revoked_key"),
        (unknown.text, "invalid_key"),
        (wrong.text, "invalid_key"),
    ):
        assert app.outcome(text) == code
        app.calls()
        for _ in range(5):
            assert app.outcome(text) == code
        assert app.calls() == {}


def test_a_malformed_key_costs_nothing(app: App) -> None:
    for text in ("junk", "acme_" + "x" * 52, "x" * 10_000):
        assert app.outcome(text) == "invalid_key"
    assert app.calls() == {}
    assert len(app.auth._cache) == 0


@pytest.mark.parametrize("option", ["cache_size", "max_staleness", "max_age"])
def test_without_a_cache_a_key_is_read_each_time_and_nothing_is_polled(colour: Colour, option: str) -> None:
    options: dict[str, Any] = {option: 0}
    app = colour.app(**options)
    issued = app.issue()
    for _ in range(3):
        assert app.outcome(issued.text) == "in"
        assert app.calls() == {"get": 1}
    app.elsewhere.revoke(issued.key.id)
    assert app.outcome(issued.text) == "revoked_key"
    assert app.auth.revocation_bound == 0


def test_past_half_of_max_staleness_a_poll_is_all_that_a_warm_key_costs(app: App) -> None:
    issued = app.issue()
    app.enter(issued.text)
    app.calls()
    app.ticks.now += 0.4375
    assert app.outcome(issued.text) == "in"
    assert app.calls() == {}
    for _ in range(3):
        app.ticks.now += 0.5
        for _ in range(3):
            assert app.outcome(issued.text) == "in"
        assert app.calls() == {"changes": 1}


# What is changed here holds here at once

Manage = Callable[[Any, APIKey], Any]


@dataclass(frozen=True)
class Change:
    """What a manager does to a key, and what becomes of the key."""

    make: Manage
    after: str
    methods: tuple[str, ...] = ("swap",)


CHANGES = {
    "revoke": Change(lambda keys, key: keys.revoke(key.id), "revoked_key"),
    "revoke with descendants": Change(
        lambda keys, key: keys.revoke(key.created_by, descendants=True), "revoked_key"
    ),
    "rotate": Change(lambda keys, key: keys.rotate(key.id), "expired_key"),
    "disable": Change(lambda keys, key: keys.edit(key.id, disabled=True), "disabled_key"),
    "expire": Change(lambda keys, key: keys.edit(key.id, expires_at=NOW), "expired_key"),
    "narrow": Change(lambda keys, key: keys.edit(key.id, scopes=["b"]), "insufficient_scope"),
    "bind": Change(lambda keys, key: keys.edit(key.id, addresses=["192.0.2.9/32"]), "address_not_allowed"),
    "revoke_all of its owner": Change(
        lambda keys, key: keys.revoke_all(key.owner), "revoked_key", ("revoke_all",)
    ),
    "revoke_all": Change(lambda keys, key: keys.revoke_all(), "revoked_key", ("revoke_all",)),
}
changing = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def ask(app: App, text: str) -> str:
    return app.outcome(text, scopes=["a"], address="192.0.2.1")


def issue_descendant(app: App) -> IssuedKey:
    return app.issue(created_by=app.issue().key.id)


@changing
def test_a_change_holds_at_once(app: App, change: Change) -> None:
    issued = issue_descendant(app)
    assert ask(app, issued.text) == "in"
    app.change(lambda keys: change.make(keys, issued.key))
    assert ask(app, issued.text) == change.after
    assert app.calls()["changes"] == 1  # the first: no poll was needed for it


@changing
def test_a_change_whose_answer_was_lost_holds_at_once(app: App, change: Change) -> None:
    issued = issue_descendant(app)
    assert ask(app, issued.text) == "in"
    if change is CHANGES["revoke with descendants"]:
        app.elsewhere.revoke(
            str(issued.key.created_by)
        )  # so that the answer that is lost is the descendant's
    app.store.lose_answers(*change.methods)
    with pytest.raises(StoreUnavailable):
        app.change(lambda keys: change.make(keys, issued.key))
    assert ask(app, issued.text) == change.after


@changing
def test_behind_a_change_that_failed_the_key_is_read_anew(app: App, change: Change) -> None:
    issued = app.issue(created_by=None)
    issued = replace(issued, key=replace(issued.key, created_by=issued.key.id))
    assert ask(app, issued.text) == "in"
    app.store.fail(*change.methods)
    with pytest.raises(StoreUnavailable):
        app.change(lambda keys: change.make(keys, issued.key))
    app.calls()
    assert ask(app, issued.text) == "in"
    assert app.calls() == {"get": 1}


@changing
def test_what_was_being_read_while_the_change_was_made_is_not_kept(app: App, change: Change) -> None:
    issued = issue_descendant(app)
    assert app.outcome(app.issue().text) == "in"  # the first poll is over
    held = app.memory.hold("get")  # type: ignore[attr-defined]
    reading = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.change(lambda keys: change.make(keys, issued.key))
    assert ask(app, issued.text) == change.after  # nobody joins the one that is held up
    held.release()
    assert reading.result() == "in"  # it had come before
    assert ask(app, issued.text) == change.after
    app.auth._cache.evict_all()
    assert ask(app, issued.text) == change.after


@changing
def test_what_was_being_read_is_not_kept_though_the_answer_to_the_change_was_lost(
    app: App, change: Change
) -> None:
    issued = app.issue(created_by=None)
    issued = replace(issued, key=replace(issued.key, created_by=issued.key.id))
    assert app.outcome(app.issue().text) == "in"
    held = app.memory.hold("get")  # type: ignore[attr-defined]
    reading = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.store.lose_answers(*change.methods)
    with pytest.raises(StoreUnavailable):
        app.change(lambda keys: change.make(keys, issued.key))
    held.release()
    assert reading.result() == "in"
    assert ask(app, issued.text) == change.after


def test_a_change_of_one_key_leaves_the_others_warm(app: App) -> None:
    issued, another = app.issue(), app.issue()
    for each in (issued, another):
        assert app.outcome(each.text) == "in"
    app.change(lambda keys: keys.revoke(issued.key.id))
    app.calls()
    assert app.outcome(another.text) == "in"
    assert app.calls() == {}


def test_revoking_all_of_an_owner_leaves_other_owners_warm(app: App) -> None:
    issued, another = app.issue("u1"), app.issue("u2")
    for each in (issued, another):
        assert app.outcome(each.text) == "in"
    assert app.change(lambda keys: keys.revoke_all("u1")) == 1
    app.calls()
    assert app.outcome(another.text) == "in"
    assert app.calls() == {}
    assert app.outcome(issued.text) == "revoked_key"


def test_the_successor_of_a_rotated_key_enters_at_once_and_the_old_one_through_its_grace(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    successor = app.change(lambda keys: keys.rotate(issued.key.id, grace=MINUTE))
    assert [app.outcome(issued.text), app.outcome(successor.text)] == ["in", "in"]
    app.clock.advance(MINUTE)
    assert [app.outcome(issued.text), app.outcome(successor.text)] == ["expired_key", "in"]


def test_a_key_that_is_switched_on_again_enters_at_once(app: App) -> None:
    issued = app.issue()
    app.elsewhere.edit(issued.key.id, disabled=True)
    assert app.outcome(issued.text) == "disabled_key"
    app.change(lambda keys: keys.edit(issued.key.id, disabled=False))
    assert app.outcome(issued.text) == "in"


def test_a_key_that_is_purged_is_unknown_at_once(app: App) -> None:
    issued = app.issue()
    app.elsewhere.revoke(issued.key.id)
    assert app.outcome(issued.text) == "revoked_key"
    assert app.change(lambda keys: keys.purge(NOW + DAY)) == 1
    assert app.outcome(issued.text) == "invalid_key"


def test_a_purge_whose_answer_was_lost_holds_at_once(app: App) -> None:
    issued = app.issue()
    app.elsewhere.revoke(issued.key.id)
    assert app.outcome(issued.text) == "revoked_key"
    app.store.lose_answers("purge")
    with pytest.raises(StoreUnavailable):
        app.change(lambda keys: keys.purge(NOW + DAY))
    assert app.outcome(issued.text) == "invalid_key"


@pytest.mark.parametrize("lost", [False, True])
def test_a_key_that_was_unknown_a_moment_ago_enters_once_it_is_ensured(app: App, lost: bool) -> None:
    configured = SCHEME.mint().text
    assert app.outcome(configured) == "invalid_key"
    if lost:
        app.store.lose_answers("add")
        with pytest.raises(StoreUnavailable):
            app.change(lambda keys: keys.ensure("u1", name="first", text=configured))
    else:
        assert app.change(lambda keys: keys.ensure("u1", name="first", text=configured)).text == configured
    assert app.outcome(configured) == "in"


def test_a_key_that_another_process_has_ensured_enters_once_it_is_ensured_here(app: App) -> None:
    configured = SCHEME.mint().text
    assert app.outcome(configured) == "invalid_key"
    app.elsewhere.ensure("u1", name="first", text=configured)
    assert app.change(lambda keys: keys.ensure("u1", name="first", text=configured)) is None
    assert app.outcome(configured) == "in"


def test_a_token_that_was_unknown_a_moment_ago_enters_once_it_is_imported(colour: Colour) -> None:
    tokens = opaque_tokens("a lookup secret of enough bytes")
    app = colour.app(scheme=KeyScheme("acme", formats=[tokens]))
    assert app.outcome("abcd-efgh-ijkl") == "invalid_key"
    report = app.change(
        lambda keys: keys.import_keys([{"text": "abcd-efgh-ijkl", "owner": "u1"}], tokens, owner="owner")
    )
    assert report.added == 1
    assert app.outcome("abcd-efgh-ijkl") == "in"


def test_a_key_that_another_process_has_revoked_is_dead_here_once_it_is_revoked_here(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.elsewhere.revoke(issued.key.id)
    app.change(lambda keys: keys.revoke(issued.key.id))
    assert app.outcome(issued.text) == "revoked_key"


def test_a_key_read_meanwhile_that_another_process_has_revoked_is_dead_here_once_it_is_revoked_here(
    app: App,
) -> None:
    issued = app.issue()
    assert app.outcome(app.issue().text) == "in"
    held = app.memory.hold("get")  # type: ignore[attr-defined]
    reading = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.elsewhere.revoke(issued.key.id)
    app.change(lambda keys: keys.revoke(issued.key.id))
    asking = app.start(issued.text)
    held.release()
    assert reading.result() == "in"  # it had come before
    assert [asking.result(), app.outcome(issued.text)] == ["revoked_key"] * 2


def test_a_record_that_the_manager_reads_is_what_is_gone_by(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.elsewhere.edit(issued.key.id, disabled=True)
    assert app.change(lambda keys: keys.get(issued.key.id)).disabled
    assert app.outcome(issued.text) == "disabled_key"


def test_authenticators_that_share_their_cache_forget_together() -> None:
    store = SlowStore()
    auth, other = Authenticator(store, SCHEME), AsyncAuthenticator(InThread(store), SCHEME)
    share_cache(auth, other)
    issued = auth.keys.issue("u1")
    asked, asked_again = auth.keys.issue("u1"), auth.keys.issue("u1")
    with EventLoop() as loop, ThreadPoolExecutor(1) as threads:
        for each in (issued, asked_again):
            assert loop.run(other.authenticate, each.text).user.id == "u1"
            assert auth.authenticate(each.text).user.id == "u1"
        held = store.hold("get")
        reading = threads.submit(loop.run, other.authenticate, asked.text)
        assert held.reached.wait(PATIENCE)
        auth.keys.revoke_all("u1")
        with pytest.raises(RevokedKey):
            loop.run(other.authenticate, asked.text)
        held.release()
        reading.result()
        for each in (issued, asked, asked_again):
            with pytest.raises(RevokedKey):
                loop.run(other.authenticate, each.text)
            with pytest.raises(RevokedKey):
                auth.authenticate(each.text)


class Transaction(MemoryKeyStore):
    """A store whose changes, within a transaction of the application's, are there at its commit."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False
        self._later: list[Callable[[], Any]] = []
        self._callbacks: list[Callable[[], object]] = []

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        if not self.is_open:
            return super().swap(old, new, successor)
        self._later.append(lambda: MemoryKeyStore.swap(self, old, new, successor))
        return True

    def on_commit(self, callback: Callable[[], object], /) -> None:
        if self.is_open:
            self._callbacks.append(callback)
        else:
            callback()

    def commit(self) -> None:
        self.is_open = False
        for each in (*self._later, *self._callbacks):
            each()


class AsyncTransaction(Inline):
    async def on_commit(self, callback: Callable[[], object], /) -> None:
        self.wrapped.on_commit(callback)  # type: ignore[attr-defined]


def test_what_is_changed_in_a_transaction_is_evicted_once_more_at_its_commit(colour: Colour) -> None:
    store = Transaction()
    app = colour.app(store)
    if colour.loop is not None:
        app.auth.store = AsyncTransaction(store)
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    store.is_open = True
    app.change(lambda keys: keys.revoke(issued.key.id))
    assert app.outcome(issued.text) == "in"  # as it is until the commit; and remembered again
    store.commit()
    assert app.outcome(issued.text) == "revoked_key"


# What is changed elsewhere


@changing
def test_a_change_made_elsewhere_holds_when_max_staleness_is_over(app: App, change: Change) -> None:
    issued = issue_descendant(app)
    assert ask(app, issued.text) == "in"
    change.make(app.elsewhere, issued.key)
    app.ticks.now += 1
    assert ask(app, issued.text) == change.after


@pytest.mark.parametrize("idle", [1.0, 3600.0, 10.0**6])
def test_whoever_was_idle_polls_before_it_serves(colour: Colour, idle: float) -> None:
    app = colour.app(max_age=10.0**7)
    issued, another = app.issue(), app.issue()
    for each in (issued, another):
        assert app.outcome(each.text) == "in"
    app.calls()
    app.ticks.now += idle
    app.elsewhere.revoke(issued.key.id)
    assert app.outcome(issued.text) == "revoked_key"
    assert app.calls() == {"changes": 1, "get": 1}
    assert app.outcome(another.text) == "in"
    assert app.calls() == {}  # what did not change was kept all the time


def test_a_key_that_is_purged_elsewhere_is_dead_when_max_staleness_is_over(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.elsewhere.revoke(issued.key.id)
    app.elsewhere.purge(NOW + DAY)
    app.ticks.now += 1
    assert app.outcome(issued.text) == "invalid_key"


def test_a_store_that_was_made_anew_is_another_store(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.memory.__init__()  # type: ignore[misc]
    app.ticks.now += 1
    assert app.outcome(issued.text) == "invalid_key"


def test_a_key_that_was_unknown_enters_when_max_staleness_is_over(app: App) -> None:
    minted = SCHEME.mint()
    assert app.outcome(minted.text) == "invalid_key"
    app.memory.add(APIKey(id=minted.id, owner="u1", digest=SCHEME.digest(minted.text), created_at=NOW))
    app.ticks.now += 0.5
    app.outcome(minted.text)  # a poll on the way does not keep it out for longer
    app.ticks.now += 0.5
    assert app.outcome(minted.text) == "in"


def test_what_is_changed_behind_the_librarys_back_is_seen_when_max_age_is_over(app: App) -> None:
    issued = app.issue(expires_in=None)
    assert app.outcome(issued.text) == "in"
    app.memory._keys[issued.key.id] = replace(issued.key, disabled=True)
    for _ in range(299):
        app.ticks.now += 1
        assert app.outcome(issued.text) == "in"
    app.ticks.now += 1
    assert app.outcome(issued.text) == "disabled_key"


def test_a_store_without_changes_gets_a_time_to_live(colour: Colour) -> None:
    app = colour.app(wrap=Reader)
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.elsewhere.revoke(issued.key.id)
    app.ticks.now += 0.9375
    assert app.outcome(issued.text) == "in"
    assert app.calls() == {"get": 1}
    app.ticks.now += 0.0625
    assert app.outcome(issued.text) == "revoked_key"
    assert app.calls() == {"get": 1}
    assert app.auth.revocation_bound == 1


# What is never remembered


def test_a_key_expires_by_the_clock_while_it_is_remembered(app: App) -> None:
    issued = app.issue(expires_in=MINUTE)
    assert app.outcome(issued.text) == "in"
    app.calls()
    app.clock.advance(MINUTE - timedelta(microseconds=1))
    assert app.outcome(issued.text) == "in"
    app.clock.advance(timedelta(microseconds=1))
    assert app.outcome(issued.text) == "expired_key"
    app.clock.advance(timedelta(seconds=-1))  # the clock was put right
    assert app.outcome(issued.text) == "in"
    assert app.calls() == {}


def test_a_wall_clock_that_jumps_makes_nothing_remembered_older_or_younger(app: App) -> None:
    issued = app.issue(expires_in=None)
    assert app.outcome(issued.text) == "in"
    app.calls()
    for jump in (-10 * DAY, 20 * DAY):
        app.clock.advance(jump)
        assert app.outcome(issued.text) == "in"
        assert app.calls() == {}
    app.elsewhere.revoke(issued.key.id)
    app.clock.advance(-10 * DAY)
    app.ticks.now += 1
    assert app.outcome(issued.text) == "revoked_key"


def test_addresses_and_scopes_are_judged_each_time(app: App) -> None:
    issued = app.issue(addresses=["192.0.2.0/24"], scopes=["a"])
    for address, scopes, outcome in [
        ("192.0.2.1", ["a"], "in"),
        ("192.0.3.1", ["a"], "address_not_allowed"),
        (None, ["a"], "address_not_allowed"),
        ("192.0.2.1", ["a", "b"], "insufficient_scope"),
        ("192.0.2.2", [], "in"),
    ] * 2:
        assert app.outcome(issued.text, address=address, scopes=scopes) == outcome
    assert app.calls() == {"changes": 1, "get": 1}


def test_the_digest_of_a_wrong_secret_is_not_taken_for_the_right_one(app: App) -> None:
    issued = app.issue()
    wrong = SCHEME.mint(issued.key.id)
    for _ in range(3):
        assert app.outcome(issued.text) == "in"
        assert app.outcome(wrong.text) == "invalid_key"


# Users


class Users:
    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.active = True

    def __call__(self, owner: str) -> Any:
        self.loaded.append(owner)
        return SimpleNamespace(name=f"Ada {len(self.loaded)}", is_active=self.active)


def test_the_user_is_loaded_for_each_request(colour: Colour) -> None:
    users = Users()
    app = colour.app(load_user=users)
    issued = app.issue()
    assert [app.enter(issued.text).user.name for _ in range(3)] == ["Ada 1", "Ada 2", "Ada 3"]
    users.active = False
    assert app.outcome(issued.text) == "inactive_user"


def test_a_user_may_be_remembered_and_each_request_gets_a_copy(colour: Colour) -> None:
    users = Users()
    app = colour.app(load_user=users, user_max_age=4)
    issued, second = app.issue(), app.issue()
    found = [app.enter(each.text).user for each in (issued, second, issued)]
    assert [user.name for user in found] == ["Ada 1"] * 3
    assert len({id(user) for user in found}) == 3
    found[1].name = "changed by a request"
    assert app.enter(issued.text).user.name == "Ada 1"
    app.ticks.now += 4
    assert app.enter(issued.text).user.name == "Ada 2"


def test_a_user_who_is_forgotten_is_loaded_anew(colour: Colour) -> None:
    users = Users()
    app = colour.app(load_user=users, user_max_age=4)
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    users.active = False
    assert app.outcome(issued.text) == "in"
    app.auth.forget_user("u2")
    assert app.outcome(issued.text) == "in"
    app.auth.forget_user("u1")
    assert [app.outcome(issued.text) for _ in range(2)] == ["inactive_user"] * 2
    assert users.loaded == ["u1"] * 2


def test_a_user_who_is_forgotten_while_it_is_loaded_is_loaded_anew(colour: Colour) -> None:
    users = Users()
    app: Any = None

    def load_user(owner: str) -> Any:
        user = users(owner)
        if len(users.loaded) == 1:
            app.auth.forget_user("u1")
            users.active = False
        return user

    app = colour.app(load_user=load_user, user_max_age=4)
    issued = app.issue()
    assert [app.outcome(issued.text) for _ in range(2)] == ["in", "inactive_user"]


def test_a_user_nobody_found_is_looked_for_each_time(colour: Colour) -> None:
    loaded: list[str] = []
    app = colour.app(load_user=loaded.append, user_max_age=4)
    issued = app.issue()
    assert [app.outcome(issued.text) for _ in range(2)] == ["inactive_user"] * 2
    assert loaded == ["u1"] * 2


# A store that fails


def test_a_store_that_cannot_be_polled_is_503_past_max_staleness_and_not_before(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.store.fail()
    for _ in range(15):
        app.ticks.now += 0.0625
        assert app.outcome(issued.text) == "in"
    app.calls()
    for later in (0.0625, 1, 3600):
        app.ticks.now += later
        assert app.outcome(issued.text) == "store_unavailable"
        assert app.calls()["changes"] <= 1
    app.store.heal()
    assert app.outcome(issued.text) == "in"


def test_where_a_poll_failed_a_moment_ago_warm_keys_do_not_ask_again(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.store.fail()
    app.calls()
    app.ticks.now += 0.5
    for _ in range(5):
        assert app.outcome(issued.text) == "in"
    assert app.calls() == {"changes": 1}


def test_a_key_that_is_not_remembered_is_503_while_the_store_fails_and_never_401(colour: Colour) -> None:
    app = colour.app(stale_if_error=30)
    known, unknown = app.issue(), app.issue()
    assert app.outcome(known.text) == "in"
    app.store.fail()
    for text in (unknown.text, SCHEME.mint().text):
        assert app.outcome(text) == "store_unavailable"
    assert app.outcome("junk") == "invalid_key"


@pytest.mark.parametrize("methods", [["changes"], ["get"], ["get", "changes"]], ids=str)
def test_the_first_key_of_all_is_503_while_the_store_fails(app: App, methods: list[str]) -> None:
    issued = app.issue()
    app.store.fail(*methods)
    for _ in range(2):
        assert app.outcome(issued.text) == "store_unavailable"
    app.store.heal()
    assert app.outcome(issued.text) == "in"


def test_with_stale_if_error_a_good_key_goes_on_and_says_that_it_is_stale(colour: Colour) -> None:
    app = colour.app(stale_if_error=32)
    assert app.auth.revocation_bound == 33
    issued = app.issue(expires_in=None)
    assert app.outcome(issued.text) == "in"
    app.store.fail()
    for later, outcome in [
        (0.9375, "in"),
        (1, "stale"),
        (1.0625, "stale"),
        (20, "stale"),
        (32.9375, "stale"),
        (33, "store_unavailable"),
        (3600, "store_unavailable"),
    ]:
        app.ticks.now = 1024 + later
        assert app.outcome(issued.text) == outcome
    app.store.heal()
    app.ticks.now += PAUSE
    assert app.outcome(issued.text) == "in"


def test_a_key_goes_on_stale_no_longer_than_max_age(colour: Colour) -> None:
    app = colour.app(stale_if_error=1000, max_age=16)
    issued = app.issue(expires_in=None)
    assert app.outcome(issued.text) == "in"
    app.store.fail()
    app.ticks.now += 15.9375
    assert app.outcome(issued.text) == "stale"
    app.ticks.now += 0.0625
    assert app.outcome(issued.text) == "store_unavailable"


def test_the_end_of_a_stale_key_holds_all_the_same(colour: Colour) -> None:
    app = colour.app(stale_if_error=30)
    issued = app.issue(expires_in=MINUTE)
    rotated = app.issue()
    app.elsewhere.rotate(rotated.key.id, grace=MINUTE)
    texts = (issued.text, rotated.text)
    assert [app.outcome(text) for text in texts] == ["in", "in"]
    app.store.fail()
    app.ticks.now += 2
    assert [app.outcome(text) for text in texts] == ["stale", "stale"]
    app.clock.advance(MINUTE)
    assert [app.outcome(text) for text in texts] == ["expired_key", "expired_key"]


def test_refusals_are_never_stale(colour: Colour) -> None:
    app = colour.app(stale_if_error=30)
    disabled, revoked, good = app.issue(), app.issue(), app.issue()
    app.elsewhere.edit(disabled.key.id, disabled=True)
    app.elsewhere.revoke(revoked.key.id)
    texts = {
        "disabled_key": disabled.text,
        "revoked_key": revoked.text,
        "invalid_key": SCHEME.mint(good.key.id).text,
    }
    assert {app.outcome(text): text for text in texts.values()} == texts
    app.store.fail()
    app.ticks.now += 1
    outcomes = {code: app.outcome(text) for code, text in texts.items()}
    assert outcomes == dict.fromkeys(texts, "store_unavailable")  # it may be good by now


def test_a_revocation_that_the_store_could_not_confirm_is_not_undone_by_being_stale(colour: Colour) -> None:
    app = colour.app(stale_if_error=30)
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.store.lose_answers()
    with pytest.raises(StoreUnavailable):
        app.change(lambda keys: keys._store.swap(issued.key, replace(issued.key, revoked_at=NOW, version=2)))
    app.store.fail()
    app.ticks.now += 1
    assert app.outcome(issued.text) == "store_unavailable"


def test_addresses_and_scopes_of_a_stale_key_are_judged_as_ever(colour: Colour) -> None:
    app = colour.app(stale_if_error=30)
    issued = app.issue(scopes=["a"])
    assert app.outcome(issued.text) == "in"
    app.store.fail()
    app.ticks.now += 1
    assert app.outcome(issued.text, scopes=["a"]) == "stale"
    assert app.outcome(issued.text, scopes=["b"]) == "insufficient_scope"


# A store that hangs


def test_while_a_poll_hangs_warm_keys_do_not_wait_for_it_until_the_bound(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.ticks.now += 0.5
    held = app.memory.hold("changes")  # type: ignore[attr-defined]
    polling = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.calls()
    for _ in range(7):
        app.ticks.now += 0.0625
        for _ in range(3):
            assert app.outcome(issued.text) == "in"
    assert not polling.done()
    assert app.calls() == {}
    held.release()
    assert polling.result() == "in"


@pytest.mark.parametrize("fails", [False, True])
def test_past_the_bound_all_wait_for_one_poll_and_no_longer_than_it_takes(
    colour: Colour, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    app = colour.app()
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.calls()
    app.ticks.now += 1
    waiting = counted_waits(monkeypatch)
    held = app.memory.hold("changes")  # type: ignore[attr-defined]
    outcomes = app.start_many(issued.text, 50)
    assert held.reached.wait(PATIENCE)
    if colour.loop is None:
        until(lambda: len(waiting) == 49)
    held.release(StoreUnavailable("its deadline is over") if fails else None)
    assert Counter(outcomes()) == {"store_unavailable" if fails else "in": 50}
    assert app.calls() == {"changes": 1}


def test_a_revocation_seen_by_the_poll_that_all_wait_for_holds_for_all(
    colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = colour.app()
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.elsewhere.revoke(issued.key.id)
    app.calls()
    app.ticks.now += 1
    waiting = counted_waits(monkeypatch)
    held = app.memory.hold("changes")  # type: ignore[attr-defined]
    outcomes = app.start_many(issued.text, 50)
    assert held.reached.wait(PATIENCE)
    if colour.loop is None:
        until(lambda: len(waiting) == 49)
    held.release()
    assert Counter(outcomes()) == {"revoked_key": 50}
    assert app.calls()["changes"] == 1


def test_while_the_store_hangs_stale_keys_wait_for_one_poll_and_then_for_none(colour: Colour) -> None:
    app = colour.app(stale_if_error=30)
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.ticks.now += 1
    held = app.memory.hold("changes")  # type: ignore[attr-defined]
    polling = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.calls()
    held.release(StoreUnavailable("its deadline is over"))
    assert polling.result() == "stale"
    app.store.hang()
    for _ in range(5):
        assert app.outcome(issued.text) == "stale"
    assert app.calls() == {}
    app.store.heal()


@pytest.mark.parametrize("revoked", [False, True])
def test_where_a_poll_takes_longer_than_max_staleness_keys_are_read(app: App, revoked: bool) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    for _ in range(2):
        app.ticks.now += 1
        held = app.memory.hold("changes")  # type: ignore[attr-defined]
        asking = app.start(issued.text)
        assert held.reached.wait(PATIENCE)
        if revoked:
            app.elsewhere.revoke(issued.key.id)  # after the poll, which is all that has been held up
        app.ticks.now += 1.5
        app.calls()
        held.release()
        assert asking.result() == ("revoked_key" if revoked else "in")
        assert app.calls() == {"get": 1}


def test_what_a_poll_that_is_on_its_way_has_not_seen_is_not_taken_for_seen_later(app: App) -> None:
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.ticks.now += 0.5
    held = app.memory.hold("changes")  # type: ignore[attr-defined]
    polling = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.elsewhere.revoke(issued.key.id)
    app.ticks.now += 0.9375
    held.release()
    assert polling.result() == "in"
    app.ticks.now += 0.0625  # max_staleness after the start of that poll
    assert app.outcome(issued.text) == "revoked_key"


def test_a_poll_that_was_cancelled_does_not_keep_others_from_polling(colour: Colour) -> None:
    app = colour.app()
    issued = app.issue()
    assert app.outcome(issued.text) == "in"
    app.ticks.now += 0.5
    assert app.auth._cache.may_poll()  # whoever took it upon itself is gone
    assert app.outcome(issued.text) == "in"
    app.elsewhere.revoke(issued.key.id)
    app.ticks.now += 0.5
    assert app.outcome(issued.text) == "revoked_key"
    app.calls()
    app.ticks.now += 0.5
    assert app.outcome(issued.text) == "revoked_key"
    assert app.calls() == {"changes": 1}


# Digests


def peppered(app: App, colour: Colour, **options: Any) -> App:
    """Go on with the same store and one pepper more."""
    scheme = KeyScheme("acme", peppers=["an old pepper of enough bytes", "a new pepper of enough bytes!"])
    return colour.app(app.memory, scheme, **options)


OLD = KeyScheme("acme", peppers=["an old pepper of enough bytes"])


def test_a_key_that_was_digested_anew_is_read_anew_and_no_more_often_than_others(colour: Colour) -> None:
    before = colour.app(scheme=OLD)
    issued = before.issue()
    app = peppered(before, colour)
    for _ in range(3):
        assert app.enter(issued.text).key == app.memory.get(issued.key.id) == issued.key
    assert app.calls() == {"changes": 1, "get": 1}
    colour.call(app.auth.flush)
    assert app.calls() == {"touch": 1, "swap": 1}
    app.ticks.now += 1
    for _ in range(3):
        assert app.enter(issued.text).key == app.memory.get(issued.key.id) != issued.key
    assert app.calls() == {"changes": 1, "get": 1}
    app.ticks.now += 1
    assert app.outcome(issued.text) == "in"
    assert app.calls() == {"changes": 1}
    app.change(lambda keys: keys.revoke(issued.key.id))
    assert app.outcome(issued.text) == "revoked_key"


def test_a_key_that_was_revoked_before_it_could_be_digested_anew_is_not_kept(colour: Colour) -> None:
    before = colour.app(scheme=OLD)
    issued, another = before.issue(), KeyManager(before.memory, SCHEME).issue("u2")
    app = peppered(before, colour)
    assert app.outcome(another.text) == "in"
    held = app.memory.hold("get")  # type: ignore[attr-defined]
    reading = app.start(issued.text)
    assert held.reached.wait(PATIENCE)
    app.change(lambda keys: keys.revoke(issued.key.id))
    held.release()
    assert reading.result() == "in"
    assert app.outcome(issued.text) == "revoked_key"
    colour.call(app.auth.flush)
    assert app.memory.get(issued.key.id).digest == issued.key.digest  # type: ignore[union-attr]


def test_a_store_that_only_reads_remembers_keys_of_an_old_pepper_as_well(colour: Colour) -> None:
    before = colour.app(scheme=OLD)
    issued = before.issue()
    app = peppered(before, colour, wrap=Reader)
    for _ in range(3):
        assert app.outcome(issued.text) == "in"
    assert app.calls() == {"get": 1}


# Processes, and options


def test_a_child_polls_before_it_serves() -> None:
    memory = MemoryKeyStore()
    store = UnreliableStore(memory)
    auth = Authenticator(store, SCHEME)
    issued = auth.keys.issue("u1")
    auth.authenticate(issued.text)
    store.calls.clear()

    def is_polled_first() -> bool:
        auth.authenticate(issued.text)
        return store.calls == {"changes": 1, "get": 1}

    assert in_child(is_polled_first)
    auth.authenticate(issued.text)
    assert store.calls == {}


def test_the_bound_of_a_revocation_is_told(colour: Colour) -> None:
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 1),
        ({"max_staleness": 0.2}, 0.2),
        ({"stale_if_error": 30}, 31),
    ]
    for options, bound in cases:
        assert colour.app(**options).auth.revocation_bound == bound


@pytest.mark.parametrize(
    "options",
    [
        {"cache_size": -1},
        {"max_staleness": -1},
        {"max_age": "1"},
        {"stale_if_error": None},
        {"user_max_age": -1},
    ],
    ids=str,
)
def test_an_option_that_will_not_do_is_refused(colour: Colour, options: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        colour.app(**options)


def test_an_option_that_does_not_exist_is_named(colour: Colour) -> None:
    with pytest.raises(TypeError, match="there is no ttl; there are cache_size, max_staleness"):
        colour.app(ttl=5)
