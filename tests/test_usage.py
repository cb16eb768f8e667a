"""When keys were used last is noted in memory and written in bulk: seldom, forward, and never on the way."""

import asyncio
import gc
import inspect
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Sized
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pytest

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    ConfigurationError,
    Inline,
    KeyScheme,
    MemoryKeyStore,
    StoreUnavailable,
)
from apikey_auth.asgi import APIKeyMiddleware
from apikey_auth.authenticate import share_cache
from apikey_auth.testing import FakeClock, UnreliableStore
from apikey_auth.usage import MAX_RENEWALS, Notes, Uses, _Waker

T = TypeVar("T")

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATIENCE = 30.0  # seconds, for what should take no time
THREAD = "apikey_auth-usage"


class Recording(MemoryKeyStore):
    """Remembers what is written of uses, and from which thread; fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[dict[str, datetime]] = []
        self.threads: list[str] = []
        self.error: BaseException | None = None

    def touch(self, used: Any, /) -> None:
        self.threads.append(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        self.touched.append(dict(used))
        super().touch(used)


class Colour:
    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    def authenticator(self, store: Any, **options: Any) -> Any:
        if self.is_async:
            return AsyncAuthenticator(Inline(store), KeyScheme(prefix="acme"), **options)
        return Authenticator(store, KeyScheme(prefix="acme"), **options)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Colour:
    return Colour(request.param)


@pytest.fixture
def store() -> Recording:
    return Recording()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


async def settled(answer: Awaitable[T] | T) -> T:
    return await answer if inspect.isawaitable(answer) else answer


async def issued(auth: Any, count: int) -> list[Any]:
    return [await settled(auth.keys.issue("u1")) for _ in range(count)]


async def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def written(entries: Sized, count: int) -> bool:
    return len(entries) == count


async def test_a_use_is_written_by_no_request(colour: Colour, store: Recording, clock: FakeClock) -> None:
    auth = colour.authenticator(store, clock=clock)
    (one,) = await issued(auth, 1)
    for _ in range(50):
        clock.advance(timedelta(minutes=5))
        await settled(auth.authenticate(one.text))
    assert store.touched == []
    assert store.get(one.key.id).last_used_at is None  # type: ignore[union-attr]


async def test_all_uses_are_one_write_that_tells_the_last_of_each_key(
    colour: Colour, store: Recording, clock: FakeClock
) -> None:
    auth = colour.authenticator(store, clock=clock)
    one, two, unused = await issued(auth, 3)
    for each in (one, two, one, one):
        clock.advance(timedelta(seconds=1))
        await settled(auth.authenticate(each.text))
    await settled(auth.flush())
    assert store.touched == [
        {one.key.id: START + timedelta(seconds=4), two.key.id: START + timedelta(seconds=2)}
    ]
    assert store.get(unused.key.id).last_used_at is None  # type: ignore[union-attr]
    await settled(auth.flush())
    assert len(store.touched) == 1


async def test_a_request_that_is_refused_is_no_use(
    colour: Colour, store: Recording, clock: FakeClock
) -> None:
    users: dict[str, object] = {}

    def load(owner: str) -> object:
        return users.get(owner)

    async def aload(owner: str) -> object:
        return users.get(owner)

    auth = colour.authenticator(store, clock=clock, load_user=aload if colour.is_async else load)
    (one,) = await issued(auth, 1)
    for _ in range(3):
        with pytest.raises(Exception, match="not active"):
            await settled(auth.authenticate(one.text))
    await settled(auth.flush())
    assert store.touched == []


async def test_a_use_that_is_recognized_at_the_door_is_noted_too(
    colour: Colour, store: Recording, clock: FakeClock
) -> None:
    auth = colour.authenticator(store, clock=clock)
    (one,) = await issued(auth, 1)
    await settled(auth.authenticate(one.text))
    clock.advance(timedelta(seconds=9))
    assert auth.recognize(one.text.encode()) is not None
    await settled(auth.flush())
    assert store.touched == [{one.key.id: START + timedelta(seconds=9)}]


async def test_what_is_noted_is_written_by_itself_once_the_interval_is_over(
    colour: Colour, store: Recording
) -> None:
    auth = colour.authenticator(store, touch_interval=0.05)
    for count in (1, 2):
        (one,) = await issued(auth, 1)
        await settled(auth.authenticate(one.text))
        assert len(store.touched) == count - 1
        await eventually(partial(written, store.touched, count))
        assert list(store.touched[-1]) == [one.key.id]
    await asyncio.sleep(0.2)
    assert len(store.touched) == 2


async def test_blocking_code_is_served_by_one_thread_that_ends_when_nothing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("apikey_auth.usage._waker", _Waker())
    before = set(threading.enumerate())
    stores = [Recording() for _ in range(5)]
    auths = [Colour(False).authenticator(each, touch_interval=0.1) for each in stores]
    for auth in auths:
        (one,) = await issued(auth, 1)
        auth.authenticate(one.text)
    (thread,) = set(threading.enumerate()) - before
    await eventually(lambda: all(each.touched for each in stores))
    assert {name for each in stores for name in each.threads} == {thread.name} == {THREAD}
    await eventually(lambda: not thread.is_alive())


async def test_an_authenticator_that_is_gone_is_not_kept_for_its_notes() -> None:
    store = Recording()
    auth = Authenticator(store, touch_interval=3600)
    auth.authenticate(auth.keys.issue("u1").text)
    found = [each for each in gc.get_objects() if type(each) is Uses and each._store is store]
    assert len(found) == 1
    del auth, found
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Uses and each._store is store]


def test_on_a_new_event_loop_a_write_is_arranged_anew(store: Recording) -> None:
    auth = AsyncAuthenticator(Inline(store), touch_interval=0.05)

    async def use() -> None:
        await auth.authenticate((await auth.keys.issue("u1")).text)

    async def use_and_wait() -> None:
        await use()
        deadline = time.monotonic() + PATIENCE
        while not store.touched and time.monotonic() < deadline:
            await use()
            await asyncio.sleep(0.01)

    asyncio.run(use())  # this loop ends before the interval does
    asyncio.run(use_and_wait())
    assert store.touched


@pytest.mark.parametrize("error", [StoreUnavailable("down"), OSError("gone")])
async def test_what_could_not_be_written_is_written_next_time(
    colour: Colour, store: Recording, clock: FakeClock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    auth = colour.authenticator(store, clock=clock)
    one, two = await issued(auth, 2)
    await settled(auth.authenticate(one.text))
    await settled(auth.authenticate(two.text))
    store.error = error
    await settled(auth.flush())
    assert [record.getMessage() for record in caplog.records] == [
        f"the last use of 2 keys is not written yet: {type(error).__name__}"
    ]
    clock.advance(timedelta(seconds=7))
    await settled(auth.authenticate(one.text))
    store.error = None
    await settled(auth.flush())
    assert store.touched == [{one.key.id: START + timedelta(seconds=7), two.key.id: START}]
    assert auth.lost_uses == 0


async def test_a_write_that_is_cancelled_loses_nothing(store: Recording, clock: FakeClock) -> None:
    auth = Colour(True).authenticator(store, clock=clock)
    (one,) = await issued(auth, 1)
    await auth.authenticate(one.text)
    store.error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await auth.flush()
    store.error = None
    await auth.flush()
    assert store.touched == [{one.key.id: START}]


async def test_no_more_keys_are_noted_than_the_cache_holds_and_the_rest_is_counted(
    colour: Colour, store: Recording, clock: FakeClock
) -> None:
    auth = colour.authenticator(store, clock=clock, cache_size=2)
    keys = await issued(auth, 5)
    for each in keys:
        await settled(auth.authenticate(each.text))
    assert auth.lost_uses == 3
    await settled(auth.authenticate(keys[0].text))
    assert auth.lost_uses == 3
    await settled(auth.flush())
    assert [set(used) for used in store.touched] == [{each.key.id for each in keys[:2]}]


async def test_noting_can_be_turned_off(colour: Colour, store: Recording) -> None:
    auth = colour.authenticator(store, touch_interval=0)
    (one,) = await issued(auth, 1)
    await settled(auth.authenticate(one.text))
    assert auth.recognize(one.text.encode()) is not None
    await settled(auth.flush())
    assert store.touched == []


@pytest.mark.parametrize("interval", [-1, float("inf"), float("nan"), "60", None, False])
def test_an_interval_that_is_none_is_refused(colour: Colour, interval: Any) -> None:
    with pytest.raises(ConfigurationError, match="touch_interval is a number of seconds, 0 for never, not"):
        colour.authenticator(MemoryKeyStore(), touch_interval=interval)


async def test_a_store_that_only_reads_is_asked_for_nothing_else(colour: Colour, store: Recording) -> None:
    class Reader:
        get = store.get

    (one,) = await issued(Colour(False).authenticator(store), 1)
    auth = colour.authenticator(Reader())
    await settled(auth.authenticate(one.text))
    await settled(auth.flush())
    assert store.touched == []


async def test_uses_that_are_noted_during_a_write_are_written_later(store: Recording) -> None:
    """Threads note without a pause while others write: the last use of every key is written in the end."""
    uses = Uses(store, interval=3600, size=100, touches=True, swaps=False)
    last = [0.0] * 4

    def note(number: int) -> None:
        for at in range(1, 20_001):
            uses.note(f"k{number}", float(at))
            last[number] = float(at)

    threads = [threading.Thread(target=note, args=(number,)) for number in range(len(last))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        uses.write()
    uses.write()
    written = {key_id: at for used in store.touched for key_id, at in used.items()}
    assert written == {f"k{n}": datetime.fromtimestamp(at, UTC) for n, at in enumerate(last)}


async def test_a_clock_that_goes_back_does_not_keep_uses_from_being_written(store: Recording) -> None:
    uses = Uses(store, interval=0.05, size=10, touches=True, swaps=False)
    uses.note("k1", 2e9)
    await eventually(lambda: len(store.touched) == 1)
    uses.note("k1", 1e9)
    await eventually(lambda: len(store.touched) == 2)


def test_digests_that_wait_to_be_renewed_are_bounded(store: Recording) -> None:
    notes = Uses(store, interval=3600, size=10, touches=True, swaps=True)
    (record,) = [Authenticator(store).keys.issue("u1").key]
    for number in range(MAX_RENEWALS + 5):
        notes.renew(replace(record, id=f"k{number}"), record)
    assert len(notes) == MAX_RENEWALS


@pytest.mark.parametrize(("error", "asked"), [(StoreUnavailable("late"), 1), (ValueError("this one"), 3)])
async def test_a_store_that_is_down_is_asked_for_one_digest_and_not_for_all_that_wait(
    colour: Colour, error: Exception, asked: int
) -> None:
    class Failing(MemoryKeyStore):
        swaps = 0

        def swap(self, *_: Any, **__: Any) -> bool:
            self.swaps += 1
            raise error

    store = Failing()
    auth = colour.authenticator(store)
    for one in await issued(auth, 3):
        auth.uses.renew(one.key, replace(one.key, version=2))
    await settled(auth.flush())
    assert store.swaps == asked


async def test_two_authenticators_that_share_a_cache_write_together(
    store: Recording, clock: FakeClock
) -> None:
    auth = Authenticator(store, clock=clock)
    other = AsyncAuthenticator(Inline(store), clock=clock)
    share_cache(auth, other)
    (one, two) = await issued(auth, 2)
    auth.authenticate(one.text)
    await other.authenticate(two.text)
    auth.flush()
    assert [set(used) for used in store.touched] == [{one.key.id, two.key.id}]
    await other.authenticate(two.text)
    await other.flush()
    assert [set(used) for used in store.touched[1:]] == [{two.key.id}]
    assert other.lost_uses == 0


async def test_the_thread_that_writes_gives_back_what_it_holds(store: Recording) -> None:
    uses = Uses(store, interval=0.02, size=10, touches=True, swaps=False)
    released: list[str] = []
    uses.release = lambda: released.append(threading.current_thread().name)
    uses.note("k1", 1e9)
    await eventually(lambda: released == [THREAD])
    uses.write()
    assert released == [THREAD]


@pytest.mark.parametrize("last", ["lifespan.shutdown.complete", "lifespan.shutdown.failed"])
async def test_an_asgi_server_that_shuts_down_waits_for_the_write(
    store: Recording, clock: FakeClock, last: str
) -> None:
    auth = AsyncAuthenticator(Inline(store), clock=clock)
    events: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        (one,) = await issued(auth, 1)
        await auth.authenticate(one.text)
        await send({"type": last})

    async def send(message: Any) -> None:
        events.append((message["type"], len(store.touched)))

    await APIKeyMiddleware(app, auth)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
    assert events == [("lifespan.startup.complete", 0), (last, 1)]


def run(program: str) -> list[str]:
    """Run a program in a process of its own, and give the lines that it prints."""
    prelude = """
        import asyncio, os, sys, threading
        from apikey_auth import *
        class Recording(MemoryKeyStore):
            def touch(self, used, /):
                print("touched", len(used), os.getpid() == parent, flush=True)
                written.set()
        parent, written = os.getpid(), threading.Event()
        store = Recording()
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_a_process_that_ends_writes_what_is_noted() -> None:
    program = """
        auth = Authenticator(store)
        auth.authenticate(auth.keys.issue("u1").text)
        print("end", flush=True)
    """
    assert run(program) == ["end", "touched 1 True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_a_child_writes_what_it_noted_itself() -> None:
    program = """
        auth = Authenticator(store, touch_interval=0.2)
        text = auth.keys.issue("u1").text
        others = [auth.keys.issue("u1").text for _ in range(2)]
        for each in others:
            auth.authenticate(each)
        if (child := os.fork()) == 0:
            auth.authenticate(text)
            written.wait(30)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert sorted(run(program)) == ["touched 1 False", "touched 2 True"]


def test_an_event_loop_that_ended_too_early_is_told_of() -> None:
    program = """
        import logging
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        auth = AsyncAuthenticator(Inline(store))
        async def main():
            await auth.authenticate((await auth.keys.issue("u1")).text)
        asyncio.run(main())
    """
    assert run(program) == [
        "the last use of 1 keys was not written: run the application with its lifespan, or await auth.flush()"
    ]


def test_notes_alone_arrange_nothing() -> None:
    notes = Notes(interval=60, size=1, touches=True, swaps=True)
    with pytest.raises(NotImplementedError):
        notes.note("k1", 1.0)


async def test_a_failure_of_the_thread_is_logged_and_the_thread_goes_on(
    store: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    uses = Uses(store, interval=0.02, size=10, touches=True, swaps=False)

    def fail() -> None:
        raise RuntimeError("no connection to give back")

    uses.release = fail
    for count in (1, 2):
        uses.note("k1", 1e9 + count)
        await eventually(partial(written, caplog.records, count))
    assert {record.getMessage() for record in caplog.records} == {"the last use of keys could not be written"}


async def test_flush_waits_for_a_write_that_is_under_way() -> None:
    memory = MemoryKeyStore()
    store = UnreliableStore(Inline(memory))
    auth = AsyncAuthenticator(store, touch_interval=0.01)
    (one,) = await issued(auth, 1)
    await auth.authenticate(one.text)
    store.hang("touch")
    await eventually(lambda: store.waiting)
    flushing = asyncio.create_task(auth.flush())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not flushing.done()
    store.heal()
    await flushing
    assert memory.get(one.key.id).last_used_at is not None  # type: ignore[union-attr]
