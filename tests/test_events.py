"""Events: hooks are told what happened, and can neither delay nor break it."""

import asyncio
import contextvars
import dataclasses
import gc
import inspect
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from test_cache import in_child

from apikey_auth import (
    AsyncKeyManager,
    AuthenticationError,
    ConfigurationError,
    DuplicateKey,
    Inline,
    InvalidKey,
    KeyManager,
    KeyNotFound,
    KeyScheme,
    MemoryKeyStore,
    RevokedKey,
    StoreUnavailable,
    errors,
    events,
)
from apikey_auth.events import (
    Authenticated,
    Change,
    Edited,
    Event,
    Events,
    Issued,
    Refused,
    Revoked,
    RevokedAll,
    Rotated,
    Unavailable,
    events_of,
    labels_of,
    log_events,
    refused,
    unavailable,
)
from apikey_auth.formats import DRFTokens
from apikey_auth.opentelemetry import OpenTelemetryEvents
from apikey_auth.prometheus import PrometheusEvents
from apikey_auth.testing import FakeClock, UnreliableStore

PATIENCE = 60  # seconds, for what should take no time
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCHEME = KeyScheme("acme")


def issued(number: int = 0) -> Issued:
    return Issued(at=NOW, key_id=f"k{number}", owner="u1")


def let_in(number: int = 0) -> Authenticated:
    return Authenticated(at=NOW, key_id=f"k{number}", owner="u1", stale=False)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def delivering() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "apikey_auth.events"}


async def settled(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


class Gated:
    """A hook that is held up until it is let go."""

    def __init__(self) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.got: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        self.got.append(event)


@pytest.fixture
def gated() -> Iterator[Gated]:
    hook = Gated()
    yield hook
    hook.gate.set()


class AsyncGated:
    """The same, as a coroutine."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.got: list[Event] = []

    async def __call__(self, event: Event) -> None:
        await self.gate.wait()
        self.got.append(event)


# What is told of the changes of keys


class Changing:
    """A manager of either colour, and what its hook got."""

    def __init__(self, asynchronous: bool, scheme: KeyScheme = SCHEME) -> None:
        self.got: list[Event] = []
        self.clock = FakeClock(NOW)
        self.store = UnreliableStore(MemoryKeyStore())
        self.manager: KeyManager | AsyncKeyManager
        if asynchronous:
            self.manager = AsyncKeyManager(Inline(self.store), scheme, clock=self.clock, on_event=self._hook)
        else:
            self.manager = KeyManager(self.store, scheme, clock=self.clock, on_event=self.got.append)

    async def _hook(self, event: Event) -> None:
        self.got.append(event)

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        return await settled(getattr(self.manager, method)(*args, **options))

    async def told(self) -> list[Event]:
        """Give what the hook got since it was asked last."""
        assert self.manager.events is not None
        assert await self.manager.events.aflush(PATIENCE)
        got = self.got.copy()
        self.got.clear()
        return got


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def keys(request: pytest.FixtureRequest) -> Changing:
    return Changing(request.param)


async def test_a_key_that_was_issued_is_told_with_its_owner_and_who_made_it(keys: Changing) -> None:
    one = await keys("issue", "u1", name="CI")
    other = await keys("issue", "u2", created_by="admin")
    assert await keys.told() == [
        Issued(at=NOW, key_id=one.key.id, owner="u1", by=None),
        Issued(at=NOW, key_id=other.key.id, owner="u2", by="admin"),
    ]


async def test_a_key_that_is_ensured_is_told_when_it_is_made_and_not_again(keys: Changing) -> None:
    made = await keys("ensure", "u1", name="first")
    assert await keys("ensure", "u1", name="first") is None
    assert await keys.told() == [Issued(at=NOW, key_id=made.key.id, owner="u1")]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_keys_of_another_system_are_told_as_they_are_taken_over(asynchronous: bool) -> None:
    source = DRFTokens()
    keys = Changing(asynchronous, KeyScheme("acme", formats=[source]))
    rows = [{"key": "0123456789abcdef" * 2 + "01234567", "user_id": "u1", "created": NOW}]
    for _ in range(2):
        await keys("import_keys", rows, source)
    (event,) = await keys.told()
    assert isinstance(event, Issued)
    assert (await keys("get", event.key_id)).owner == event.owner == "u1"


async def test_an_edit_is_told_with_the_names_of_what_is_different_now(keys: Changing) -> None:
    key = (await keys("issue", "u1", name="CI")).key
    await keys.told()
    await keys("edit", key.id, scopes=["a"], name="CI", disabled=True)
    assert await keys.told() == [Edited(at=NOW, key_id=key.id, owner="u1", fields=("scopes", "disabled"))]
    await keys("edit", key.id)
    assert await keys.told() == []


async def test_a_revocation_is_told_once_with_its_reason(keys: Changing) -> None:
    key = (await keys("issue", "u1")).key
    await keys.told()
    await keys("revoke", key.id, reason="leaked")
    await keys("revoke", key.id, reason="again")
    assert await keys.told() == [Revoked(at=NOW, key_id=key.id, owner="u1", reason="leaked")]


async def test_a_revoked_key_that_is_edited_is_not_revoked_again(keys: Changing) -> None:
    key = (await keys("issue", "u1")).key
    await keys("revoke", key.id)
    await keys.told()
    await keys("edit", key.id, name="the one that leaked")
    assert await keys.told() == [Edited(at=NOW, key_id=key.id, owner="u1", fields=("name",))]


async def test_every_descendant_that_is_revoked_is_told(keys: Changing) -> None:
    key = (await keys("issue", "u1")).key
    child = (await keys("issue", "u2", created_by=key.id)).key
    await keys.told()
    await keys("revoke", key.id, descendants=True)
    assert await keys.told() == [
        Revoked(at=NOW, key_id=key.id, owner="u1"),
        Revoked(at=NOW, key_id=child.id, owner="u2"),
    ]


async def test_a_rotation_is_one_event_that_names_both_keys(keys: Changing) -> None:
    old = (await keys("issue", "u1")).key
    await keys.told()
    keys.clock.advance(timedelta(hours=1))
    new = (await keys("rotate", old.id)).key
    at = NOW + timedelta(hours=1)
    assert await keys.told() == [Rotated(at=at, key_id=old.id, successor_id=new.id, owner="u1")]


async def test_revoking_all_is_one_event_that_counts(keys: Changing) -> None:
    for owner in ("u1", "u1", "u2", "u3"):
        await keys("issue", owner)
    await keys.told()
    await keys("revoke_all", "u1", reason="left")
    await keys("revoke_all")
    assert await keys.told() == [
        RevokedAll(at=NOW, owner="u1", count=2, reason="left"),
        RevokedAll(at=NOW, owner=None, count=2),
    ]


async def test_what_was_not_done_is_not_told(keys: Changing) -> None:
    key = (await keys("issue", "u1")).key
    await keys.told()
    with pytest.raises(KeyNotFound):
        await keys("revoke", "nothing")
    with pytest.raises(ValueError, match="expires_in"):
        await keys("issue", "u1", expires_in=timedelta(0))
    with pytest.raises(DuplicateKey):
        await settled(keys.manager._add(key))
    keys.store.fail("add", "swap", "revoke_all")
    for call in (
        partial(keys, "issue", "u1"),
        partial(keys, "ensure", "u1", name="first"),
        partial(keys, "edit", key.id, name="new"),
        partial(keys, "revoke", key.id),
        partial(keys, "rotate", key.id),
        partial(keys, "revoke_all", "u1"),
    ):
        with pytest.raises(StoreUnavailable):
            await call()
    assert await keys.told() == []


async def test_what_was_done_is_in_the_store_when_it_is_told(keys: Changing) -> None:
    found: list[object] = []
    store = MemoryKeyStore()
    manager = KeyManager(store, on_event=lambda event: found.append(store.get(event.key_id)))
    key = manager.revoke(manager.issue("u1").key.id)
    assert manager.events is not None
    assert manager.events.flush(PATIENCE)
    assert found[-1] == key


def test_a_manager_without_a_hook_has_nothing_that_delivers_and_no_thread() -> None:
    before = delivering()
    manager = KeyManager(MemoryKeyStore())
    manager.revoke(manager.issue("u1").key.id)
    assert manager.events is None
    assert events_of([], asynchronous=False) is None
    assert delivering() <= before


# What is never told


@given(
    owner=st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text and text.isprintable()),
    reason=st.sampled_from([None, "leaked"]),
)
def test_no_event_shows_a_text_a_secret_or_a_digest(owner: str, reason: str | None) -> None:
    got: list[Event] = []
    manager = KeyManager(MemoryKeyStore(), KeyScheme("acme", peppers=["p" * 32]), on_event=got.append)
    made = [manager.issue(owner), manager.issue(owner)]
    made.append(manager.rotate(made[0].key.id))
    manager.edit(made[1].key.id, name="new", metadata={"a": made[1].text})
    manager.revoke(made[1].key.id, reason=reason)
    manager.revoke_all(owner)
    got += [refused(RevokedKey(), made[0].key, NOW), refused(InvalidKey(), None, NOW)]
    assert manager.events is not None
    assert manager.events.flush(PATIENCE)
    assert len(got) == 8
    for each in made:
        secret = manager.scheme.parse(each.text).secret
        for shown in (repr(got), str(list(map(dataclasses.astuple, got)))):
            assert each.text not in shown
            assert secret not in shown
            assert each.key.digest not in shown
            assert each.key.digest.rpartition("$")[2] not in shown


def test_a_refusal_names_the_key_only_where_the_digest_matched() -> None:
    key = KeyManager(MemoryKeyStore(), SCHEME).issue("u1").key
    known = refused(RevokedKey(), key, NOW)
    assert known == Refused(at=NOW, code="revoked_key", key_id=key.id, prefix="acme")
    assert refused(InvalidKey(), None, NOW) == Refused(at=NOW, code="invalid_key", key_id=None, prefix=None)


def test_a_failure_is_told_by_the_type_of_its_cause_and_not_by_its_text() -> None:
    try:
        raise StoreUnavailable("down") from ConnectionRefusedError("a secret")
    except StoreUnavailable as error:
        event = unavailable("the key store", error, NOW)
    assert event == Unavailable(at=NOW, what="the key store", error="ConnectionRefusedError")
    assert unavailable("the user loader", KeyError("u1"), NOW).error == "KeyError"


def test_times_are_in_utc_and_naive_ones_are_refused() -> None:
    there = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    event = Revoked(at=there, key_id="k", owner="u1")
    assert (event.at, event.at.tzinfo) == (NOW, UTC)
    with pytest.raises(ValueError, match="no time zone"):
        Revoked(at=datetime(2026, 1, 1), key_id="k", owner="u1")  # noqa: DTZ001


def test_events_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        issued().key_id = "other"  # type: ignore[misc]


# Plain hooks: one thread


def test_hooks_get_events_in_order_in_one_thread_that_starts_with_the_first() -> None:
    before = delivering()
    got: list[tuple[str, str, int]] = []

    def hook(name: str) -> Callable[[Event], None]:
        return lambda event: got.append((name, event.key_id, threading.get_ident()))  # type: ignore[attr-defined]

    emitter = Events(hook("one"), hook("other"))
    assert delivering() <= before
    for number in range(100):
        emitter.emit(issued(number))
    assert emitter.flush(PATIENCE)
    assert [each[:2] for each in got] == [(name, f"k{n}") for n in range(100) for name in ("one", "other")]
    assert len({ident for _, _, ident in got}) == 1
    assert threading.get_ident() not in {ident for _, _, ident in got}
    assert len(delivering() - before) == 1


def test_many_threads_emit_and_nothing_is_lost_nor_out_of_the_order_of_each() -> None:
    got: list[Any] = []
    emitter = Events(got.append)
    before = delivering()
    barrier = threading.Barrier(8)

    def work(owner: str) -> None:
        barrier.wait(PATIENCE)
        for number in range(200):
            emitter.emit(Issued(at=NOW, key_id=str(number), owner=owner))

    threads = [threading.Thread(target=work, args=[f"u{n}"]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush(PATIENCE)
    assert len(delivering() - before) == 1
    for n in range(8):
        assert [event.key_id for event in got if event.owner == f"u{n}"] == list(map(str, range(200)))


def test_a_slow_hook_holds_up_nobody_who_emits(gated: Gated) -> None:
    manager = KeyManager(MemoryKeyStore(), on_event=gated)
    first = manager.issue("u1").key
    assert gated.reached.wait(PATIENCE)
    second = manager.issue("u1").key  # while the hook is at it
    assert manager.events is not None
    assert manager.events.flush(0.01) is False
    assert gated.got == []
    gated.gate.set()
    assert manager.events.flush(PATIENCE)
    assert [event.key_id for event in gated.got] == [first.id, second.id]  # type: ignore[attr-defined]


def test_an_event_loop_is_not_blocked_by_emitting(gated: Gated) -> None:
    async def emit() -> None:
        for number in range(3):
            emitter.emit(issued(number))
            await asyncio.sleep(0)

    emitter = Events(gated)
    with blockbuster_ctx():
        asyncio.run(emit())
    gated.gate.set()
    assert emitter.flush(PATIENCE)
    assert len(gated.got) == 3


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_hook_that_raises_ends_nothing_and_is_logged_once_for_each_type_of_error(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Event] = []
    calls: list[Event] = []

    def fails(event: Event) -> None:
        calls.append(event)
        raise OSError if len(calls) == 4 else error

    emitter = Events(fails, got.append)
    for number in range(5):
        emitter.emit(issued(number))
    assert emitter.flush(PATIENCE)
    assert calls == got == [issued(number) for number in range(5)]
    records = [record for record in caplog.records if record.name == "apikey_auth"]
    assert [record.exc_info[0] for record in records if record.exc_info] == [error, OSError]
    assert all("fails" in record.getMessage() for record in records)


def test_the_log_does_not_show_what_a_hook_was_made_with(caplog: pytest.LogCaptureFixture) -> None:
    emitter = Events(partial(int, base="the password of a mail server"))
    emitter.emit(issued())
    assert emitter.flush(PATIENCE)
    (record,) = caplog.records
    assert "partial" in record.getMessage()
    assert "password" not in caplog.text


def test_what_there_is_no_room_for_is_dropped_and_counted(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "WAITING", 5)
    monkeypatch.setattr(events, "FOR_CHANGES", 2)
    emitter = Events(gated)
    emitter.emit(issued())
    assert gated.reached.wait(PATIENCE)  # with this one, so that it waits no more
    for number in range(1, 9):
        emitter.emit(issued(number))
    assert emitter.dropped == 3
    gated.gate.set()
    assert emitter.flush(PATIENCE)
    assert gated.got == [issued(number) for number in range(6)]
    emitter.emit(issued(9))
    assert emitter.flush(PATIENCE)
    assert gated.got[-1] == issued(9)
    assert emitter.dropped == 3


def test_a_flood_of_requests_leaves_room_for_changes(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WAITING", 5)
    monkeypatch.setattr(events, "FOR_CHANGES", 2)
    emitter = Events(gated)
    emitter.emit(let_in())
    assert gated.reached.wait(PATIENCE)
    for number in range(1, 5):
        emitter.emit(let_in(number))
    for number in range(5, 8):
        emitter.emit(issued(number))
    assert emitter.dropped == 2
    gated.gate.set()
    assert emitter.flush(PATIENCE)
    assert gated.got == [*map(let_in, range(4)), issued(5), issued(6)]


def test_emitting_does_not_raise_where_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    got: list[Event] = []
    emitter = Events(got.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        emitter.emit(issued(1))
    assert emitter.dropped == 1
    emitter.emit(issued(2))
    assert emitter.flush(PATIENCE)
    assert got == [issued(2)]


def test_a_hook_may_itself_do_what_is_an_event() -> None:
    got: list[Event] = []

    def hook(event: Event) -> None:
        got.append(event)
        if isinstance(event, RevokedAll):
            manager.issue("u1")

    manager = KeyManager(MemoryKeyStore(), on_event=hook)
    manager.revoke_all("u1")
    until(lambda: len(got) == 2)
    assert isinstance(got[1], Issued)


def test_two_may_share_what_delivers() -> None:
    got: list[Event] = []
    emitter = Events(got.append)
    for _ in range(2):
        manager = KeyManager(MemoryKeyStore(), on_event=emitter)
        assert manager.events is emitter
        manager.issue("u1")
    assert emitter.flush(PATIENCE)
    assert len(got) == 2


def test_the_thread_goes_with_what_it_delivers_for_and_delivers_first(gated: Gated) -> None:
    before = delivering()
    emitter = Events(gated)
    for number in range(3):
        emitter.emit(issued(number))
    (thread,) = delivering() - before
    del emitter
    gc.collect()
    gated.gate.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert gated.got == [issued(number) for number in range(3)]


def test_the_thread_goes_with_what_it_delivers_for_though_a_hook_holds_that() -> None:
    class App:
        def __init__(self) -> None:
            self.emitter = Events(self.hear)

        def hear(self, event: Event) -> None:
            pass

    before = delivering()
    app = App()
    app.emitter.emit(issued(1))
    assert app.emitter.flush(PATIENCE)
    (thread,) = delivering() - before
    del app
    deadline = time.monotonic() + PATIENCE
    while thread.is_alive():  # it may hold the last event for a moment
        assert time.monotonic() < deadline
        gc.collect()


# Processes


def test_a_forked_child_delivers_its_own_events_and_not_its_parents(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "WAITING", 2)
    got: list[Event] = []
    emitter = Events(gated, got.append)
    for number in range(5):
        emitter.emit(issued(number))
    assert emitter.dropped > 0

    def check() -> bool:
        gated.gate.set()
        anew = emitter.dropped == 0
        emitter.emit(issued(9))
        return anew and emitter.flush(PATIENCE) and gated.got == got == [issued(9)]

    assert in_child(check)
    gated.gate.set()
    assert emitter.flush(PATIENCE)
    assert issued(9) not in got
    assert got[0] == issued(0)


def test_a_child_emits_though_it_was_forked_while_a_thread_of_its_parent_did() -> None:
    got: list[Event] = []
    emitter = Events(got.append)
    emitter.emit(issued())
    assert emitter.flush(PATIENCE)

    def check() -> bool:
        emitter.emit(issued(1))
        emitter._thread.drop()
        return emitter.flush(PATIENCE) and got[-1] == issued(1)

    with emitter._thread._lock:
        assert in_child(check)


def run(program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, for which it has a minute."""
    beginning = """
        import signal, sys, threading, time
        from apikey_auth import KeyManager, MemoryKeyStore
    """
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(beginning) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_what_waits_when_a_process_ends_is_delivered_first() -> None:
    ended = run("""
        def hook(event):
            main.join()  # which is over when the process is about to end
            print(event.owner, flush=True)

        main = threading.main_thread()
        manager = KeyManager(MemoryKeyStore(), on_event=hook)
        for n in range(3):
            manager.issue(f"u{n}")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "u0\nu1\nu2\n", "")


def test_it_is_delivered_too_where_multiprocessing_has_cleared_what_a_child_inherits() -> None:
    ended = run("""
        import atexit
        atexit._clear()
        manager = KeyManager(MemoryKeyStore(), on_event=lambda event: (time.sleep(0.1), print(event.owner, flush=True)))
        manager.issue("u1")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "u1\n", "")


def test_a_hook_that_hangs_does_not_keep_a_process_from_ending() -> None:
    ended = run("""
        managers = [KeyManager(MemoryKeyStore(), on_event=lambda event: threading.Event().wait()) for _ in range(20)]
        for manager in managers:
            manager.issue("u1")
        print("end", flush=True)
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")


def test_all_that_wait_share_the_time_at_the_end(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def flush(_: object, timeout: float) -> bool:
        asked.append(timeout)
        times.append(times[-1] + 1.5)
        return False

    times = [100.0]
    monkeypatch.setattr(events, "_threads", [events._Thread([gated]) for _ in range(3)])
    monkeypatch.setattr(events._Thread, "flush", flush)
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: times[-1]))
    events._at_exit()
    assert asked == [2.0, 0.5, 0.0]


# Coroutines: a task in each event loop


async def test_coroutines_get_events_in_order_in_the_event_loop_where_they_happened() -> None:
    got: list[tuple[Event, object]] = []

    async def hook(event: Event) -> None:
        await asyncio.sleep(0)
        got.append((event, asyncio.get_running_loop()))

    emitter = Events(hook)
    for number in range(100):
        emitter.emit(issued(number))
    assert got == []
    assert await emitter.aflush(PATIENCE)
    assert got == [(issued(number), asyncio.get_running_loop()) for number in range(100)]


def test_two_event_loops_have_each_their_own_events() -> None:
    got: dict[str, list[tuple[str, int]]] = {"u0": [], "u1": []}
    barrier = threading.Barrier(2)

    async def hook(event: Event) -> None:
        await asyncio.sleep(0)
        assert isinstance(event, Issued)
        got[event.owner].append((event.key_id, threading.get_ident()))

    emitter = Events(hook)

    async def work(owner: str) -> bool:
        barrier.wait(PATIENCE)
        for number in range(100):
            emitter.emit(Issued(at=NOW, key_id=str(number), owner=owner))
            await asyncio.sleep(0)
        return await emitter.aflush(PATIENCE)

    idents: dict[str, int] = {}

    def serve(owner: str) -> None:
        idents[owner] = threading.get_ident()
        assert asyncio.run(work(owner))

    threads = [threading.Thread(target=serve, args=[owner]) for owner in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {owner: [(str(n), idents[owner]) for n in range(100)] for owner in got}
    assert emitter.dropped == 0


def test_one_event_loop_after_another() -> None:
    got: list[Event] = []

    async def hook(event: Event) -> None:
        got.append(event)

    async def work(number: int) -> None:
        emitter.emit(issued(number))
        assert await emitter.aflush(PATIENCE)

    emitter = Events(hook)
    for number in range(3):
        asyncio.run(work(number))
    assert got == [issued(number) for number in range(3)]
    gc.collect()
    assert len(emitter._tasks._loops) == 0


async def test_a_slow_coroutine_holds_up_nobody_who_emits() -> None:
    hook = AsyncGated()
    manager = AsyncKeyManager(Inline(MemoryKeyStore()), on_event=hook)
    made = [(await manager.issue("u1")).key.id for _ in range(3)]
    assert manager.events is not None
    assert await manager.events.aflush(0.01) is False
    assert hook.got == []
    hook.gate.set()
    assert await manager.events.aflush(PATIENCE)
    assert [event.key_id for event in hook.got] == made  # type: ignore[attr-defined]


async def test_a_coroutine_that_raises_ends_nothing_and_is_logged_once_for_each_type_of_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    got: list[Event] = []
    ends = [ValueError, ValueError, asyncio.CancelledError, ValueError, OSError]

    async def fails(event: Event) -> None:
        got.append(event)
        raise ends[len(got) - 1]

    async def other(event: Event) -> None:
        got_too.append(event)

    got_too: list[Event] = []
    emitter = Events(fails, other)
    for number in range(5):
        emitter.emit(issued(number))
    assert await emitter.aflush(PATIENCE)
    assert got == got_too == [issued(number) for number in range(5)]
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert logged == [ValueError, asyncio.CancelledError, OSError]


def test_what_waits_when_an_event_loop_ends_is_counted() -> None:
    async def hook(event: Event) -> None:
        reached.append(event)
        await asyncio.sleep(PATIENCE)

    async def work() -> None:
        for number in range(4):
            emitter.emit(issued(number))
        while not reached:  # noqa: ASYNC110
            await asyncio.sleep(0)

    reached: list[Event] = []
    emitter = Events(hook)
    asyncio.run(work())
    assert reached == [issued(0)]
    assert emitter.dropped == 3


async def test_what_coroutines_have_no_room_for_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "WAITING", 5)
    monkeypatch.setattr(events, "FOR_CHANGES", 2)
    hook = AsyncGated()
    emitter = Events(hook)
    for number in range(5):
        emitter.emit(let_in(number))
    for number in range(5, 8):
        emitter.emit(issued(number))
    assert emitter.dropped == 3
    hook.gate.set()
    assert await emitter.aflush(PATIENCE)
    assert hook.got == [*map(let_in, range(3)), issued(5), issued(6)]


def test_a_coroutine_cannot_be_called_where_no_event_loop_runs() -> None:
    got: list[Event] = []

    async def hook(event: Event) -> None:
        got.append(event)

    emitter = Events(hook, got.append)
    emitter.emit(issued())
    assert emitter.flush(PATIENCE)
    assert got == [issued()]
    assert emitter.dropped == 1


async def test_hooks_of_both_kinds_get_every_event_where_there_is_an_event_loop() -> None:
    plain: list[Event] = []
    coroutine = AsyncGated()
    coroutine.gate.set()
    manager = AsyncKeyManager(Inline(MemoryKeyStore()), on_event=[plain.append, coroutine])
    await manager.issue("u1")
    assert manager.events is not None
    assert await manager.events.aflush(PATIENCE)
    assert plain == coroutine.got
    assert len(plain) == 1


async def test_waiting_for_delivery_waits_for_hooks_of_both_kinds(gated: Gated) -> None:
    coroutine = AsyncGated()
    coroutine.gate.set()
    emitter = Events(gated, coroutine)
    emitter.emit(issued())
    assert await emitter.aflush(0.01) is False
    gated.gate.set()
    assert await emitter.aflush(PATIENCE) is True
    assert gated.got == coroutine.got == [issued()]


FACTORIES: list[Any] = [None, lambda loop, coroutine: asyncio.Task(coroutine, loop=loop)]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)


@pytest.mark.parametrize("factory", FACTORIES)
def test_coroutines_are_called_after_the_request_and_outside_of_its_context(factory: Any) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    got: list[object] = []

    async def hook(event: Event) -> None:
        got.append(request.get(None))

    async def work() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        request.set("a request's own")
        emitter.emit(issued())
        assert got == []
        assert await emitter.aflush(PATIENCE)

    emitter = Events(hook)
    asyncio.run(work())
    assert got == [None]
    assert emitter.dropped == 0


async def test_no_task_is_left_where_nothing_waits() -> None:
    async def hook(event: Event) -> None:
        pass

    emitter = Events(hook)
    before = asyncio.all_tasks()
    emitter.emit(issued())
    assert len(asyncio.all_tasks() - before) == 1
    assert await emitter.aflush(PATIENCE)
    until_done = asyncio.all_tasks() - before
    if until_done:
        await asyncio.wait(until_done, timeout=PATIENCE)
    assert asyncio.all_tasks() == before


# What is no hook


async def coroutine(event: Event) -> None:
    raise NotImplementedError


@pytest.mark.parametrize("hook", [coroutine, AsyncGated(), partial(coroutine), [print, coroutine]])
def test_a_blocking_manager_takes_no_coroutine(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="on_event must be a plain 'def'"):
        KeyManager(MemoryKeyStore(), on_event=hook)
    with pytest.raises(ConfigurationError, match="on_event must be a plain 'def'"):
        KeyManager(MemoryKeyStore(), on_event=Events(*(hook if isinstance(hook, list) else [hook])))
    AsyncKeyManager(Inline(MemoryKeyStore()), on_event=hook)


@pytest.mark.parametrize("hook", [5, "module.hook", [print, "hook"], PrometheusEvents, [[print]], True])
def test_what_is_no_function_is_no_hook(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="on_event must be a function"):
        KeyManager(MemoryKeyStore(), on_event=hook)
    with pytest.raises(ConfigurationError, match="on_event must be a function"):
        AsyncKeyManager(Inline(MemoryKeyStore()), on_event=hook)


# Hooks that come with the library

EVENTS = [
    (let_in(), logging.DEBUG, ("authenticated", "")),
    (dataclasses.replace(let_in(), stale=True), logging.DEBUG, ("authenticated", "stale")),
    (Refused(at=NOW, code="invalid_key"), logging.INFO, ("refused", "invalid_key")),
    (
        Refused(at=NOW, code="revoked_key", key_id="k", prefix="acme"),
        logging.WARNING,
        ("refused", "revoked_key"),
    ),
    (Refused(at=NOW, code="of the application"), logging.INFO, ("refused", "other")),
    (
        Unavailable(at=NOW, what="the key store", error="OSError"),
        logging.ERROR,
        ("unavailable", "key_store"),
    ),
    (
        Unavailable(at=NOW, what="the user loader", error="OSError"),
        logging.ERROR,
        ("unavailable", "user_loader"),
    ),
    (issued(), logging.INFO, ("issued", "")),
    (Edited(at=NOW, key_id="k", owner="u1", fields=("name",)), logging.INFO, ("edited", "")),
    (Rotated(at=NOW, key_id="k", successor_id="l", owner="u1"), logging.INFO, ("rotated", "")),
    (Revoked(at=NOW, key_id="k", owner="u1", reason="a\nb"), logging.INFO, ("revoked", "")),
    (RevokedAll(at=NOW, owner=None, count=5), logging.WARNING, ("revoked_all", "")),
]


def test_every_kind_of_event_is_tried_here() -> None:
    classes = {each for each in vars(events).values() if isinstance(each, type)}
    kinds = {each for each in classes if issubclass(each, Event)} - {Event, Change}
    assert {type(event) for event, *_ in EVENTS} == kinds
    assert len({kind.name for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(("event", "level"), [each[:2] for each in EVENTS])
def test_events_are_logged_in_one_line_with_their_fields(
    event: Event, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "apikey_auth.events")
    log_events(event)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("apikey_auth.events", level)
    line = record.getMessage()
    assert line.startswith(event.name)
    assert "\n" not in line
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    assert {name: getattr(record, name) for name in fields} == fields
    assert record.event == event.name  # type: ignore[attr-defined]
    assert all(f"{name}={value!r}" in line for name, value in fields.items() if name != "at")


def test_what_a_log_does_not_want_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "apikey_auth.events")
    log_events(issued())
    log_events(RevokedAll(at=NOW, owner=None, count=5))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(("event", "labels"), [(event, labels) for event, _, labels in EVENTS])
def test_labels_are_few_and_no_key_or_owner_is_one(event: Event, labels: tuple[str, str]) -> None:
    assert labels_of(event) == labels


@pytest.mark.parametrize(
    "error",
    [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.Refusal)],
)
def test_every_refusal_of_the_library_has_a_label_and_others_share_one(error: type[errors.Refusal]) -> None:
    class Own(AuthenticationError):
        code = "own"

    if error is not errors.Refusal:
        assert labels_of(Refused(at=NOW, code=error.code)) == ("refused", error.code)
    assert labels_of(refused(Own("no"), None, NOW)) == ("refused", "other")


def test_prometheus_counts_events_and_revoked_keys() -> None:
    registry = CollectorRegistry()
    hook = PrometheusEvents(registry=registry)
    for event, *_ in EVENTS:
        hook(event)
    hook(Refused(at=NOW, code="revoked_key", key_id="other", prefix="acme"))
    value = registry.get_sample_value
    for _, _, (name, code) in EVENTS:
        expected = 2 if code == "revoked_key" else 1
        assert value("apikey_auth_events_total", {"event": name, "code": code}) == expected
    assert value("apikey_auth_revoked_keys_total") == 6


def test_opentelemetry_counts_events_and_revoked_keys() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    hook = OpenTelemetryEvents(provider.get_meter("acme"))
    for event, *_ in EVENTS:
        hook(event)
    data: Any = reader.get_metrics_data()
    provider.shutdown()
    (scope,) = data.resource_metrics[0].scope_metrics
    found = {metric.name: metric for metric in scope.metrics}
    counted = {
        (point.attributes["apikey_auth.event"], point.attributes.get("apikey_auth.code", "")): point.value
        for point in found["apikey_auth.events"].data.data_points
    }
    assert counted == {labels: 1 for *_, labels in EVENTS}
    assert [point.value for point in found["apikey_auth.revoked_keys"].data.data_points] == [6]


def test_opentelemetry_uses_the_global_meter_where_none_is_given() -> None:
    OpenTelemetryEvents()(issued())


def test_counters_and_the_log_are_hooks() -> None:
    registry = CollectorRegistry()
    manager = KeyManager(MemoryKeyStore(), on_event=(PrometheusEvents(registry), log_events))
    manager.issue("u1")
    assert manager.events is not None
    assert manager.events.flush(PATIENCE)
    assert registry.get_sample_value("apikey_auth_events_total", {"event": "issued", "code": ""}) == 1
