"""What the SQL stores promise while their server crashes, hangs or was never there, and when it is back."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from random import uniform
from threading import Event
from time import monotonic, sleep
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa
from databases import PATIENCE, Server, closing_engine
from sqlalchemy.ext.asyncio import create_async_engine

from apikey_auth import APIKey, Inline, StoreUnavailable
from apikey_auth.decisions import changed
from apikey_auth.stores.protocol import AsyncKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
TIMEOUT = 1.0
ALLOWANCE = 1.5  # psycopg connects for 2 s at least, and the machine is busy
QUEUE = 1.0  # more where a call may have waited for a connection before it made one

PAUSE = 0.5  # between the calls of each of the 50, who would keep each other waiting for too long

Store: TypeAlias = SQLKeyStore | AsyncSQLKeyStore


@dataclass(frozen=True)
class Driver:
    """A driver, and the database it is for."""

    name: str
    kind: str
    asynchronous: bool = False

    def url(self, server: str) -> str:
        return sa.make_url(server).set(drivername=self.name).render_as_string(hide_password=False)

    def store(self, server: str, **options: Any) -> Store:
        make = AsyncSQLKeyStore if self.asynchronous else SQLKeyStore
        return make(self.url(server), timeout=TIMEOUT, **options)


DRIVERS = {
    "psycopg": Driver("postgresql+psycopg", "postgresql"),
    "pymysql": Driver("mysql+pymysql", "mariadb"),
    "psycopg async": Driver("postgresql+psycopg", "postgresql", asynchronous=True),
    "asyncpg": Driver("postgresql+asyncpg", "postgresql", asynchronous=True),
    "asyncmy": Driver("mysql+asyncmy", "mariadb", asynchronous=True),
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[request.param]


@pytest.fixture
def own(request: pytest.FixtureRequest, driver: Driver) -> Server:
    """A server that the test may stop."""
    server = request.getfixturevalue(f"own_{driver.kind}")
    assert isinstance(server, Server)
    return server


@pytest.fixture
def database(request: pytest.FixtureRequest, driver: Driver) -> str:
    """The URL of an empty database on a server that goes on."""
    return str(request.getfixturevalue(f"{driver.kind}_database"))


def record(key_id: str = "k1", **given: Any) -> APIKey:
    return APIKey(**{"id": key_id, "owner": "User1", "digest": "sha256$$00", "created_at": NOW, **given})


def awaited(store: Store) -> AsyncKeyStore:
    """Give a store whose methods are awaited, whatever its colour."""
    return store if isinstance(store, AsyncSQLKeyStore) else Inline(store)


async def called(answer: Awaitable[None] | None) -> None:
    if answer is not None:
        await answer


@pytest.fixture
async def sockets_before() -> int:
    """How many sockets this process and its event loop have; what earlier tests left is collected first."""
    gc.collect()
    return sockets()


def sockets() -> int:
    """Count the sockets of this process."""
    number = 0
    for listed in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            number += os.readlink(listed).startswith("socket:")
    return number


SESSIONS = {
    "postgresql": "SELECT COUNT(*) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    "mariadb": "SELECT COUNT(*) FROM information_schema.processlist"
    " WHERE id <> connection_id() AND user <> 'system user'",
}


def sessions(kind: str, url: str) -> int:
    """Count the sessions that a server has, but for the one that asks."""
    name = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}[kind]
    with closing_engine(sa.create_engine(sa.make_url(url).set(drivername=name))) as engine:
        with engine.connect() as connection:
            return int(connection.execute(sa.text(SESSIONS[kind])).scalar_one())


async def until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    deadline = monotonic() + patience
    while not true():
        assert monotonic() < deadline, f"it took too long until {what}"
        await asyncio.sleep(0.02)


# Work


@dataclass(frozen=True)
class Call:
    method: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


Script: TypeAlias = Generator[Call, Any, None]


def work(name: str) -> Script:
    """Use a store again and again, and check each answer. An unavailable store leaves writes uncertain."""
    key_id, owner = f"{name}-key", f"owner {name}"
    possible = [record(key_id, owner=owner)]
    kept, uncertain = {key_id}, set[str]()
    since = None
    for number in count():
        try:
            found = yield Call("get", (key_id,))
            assert found in possible, f"{found} is none of {possible}"
            swapped = yield from swap(found, changed(found, name=str(number)), possible)
            added = record(f"{name}-{number:05}", owner=owner)
            uncertain.add(added.id)
            yield Call("add", (added,))
            kept.add(added.id)
            page = yield Call("find", options={"owner": owner, "limit": 10_000})
            assert kept <= {key.id for key in page.items} <= kept | uncertain
            told = yield Call("changes", (since,))
            assert since is None or told.revision.epoch == since.epoch
            assert since is None or told.revision.number >= since.number
            assert told.ids is None or not swapped or key_id in told.ids
            since = told.revision
        except StoreUnavailable:
            continue


def swap(old: APIKey, new: APIKey, possible: list[APIKey]) -> Generator[Call, Any, bool]:
    """Swap a record, and keep account of what it may be now."""
    try:
        done: bool = yield Call("swap", (old, new))
    except StoreUnavailable:
        possible.append(new)  # or it may become so, when the server gets to it
        raise
    if done:
        possible[:] = [new]
    else:
        possible.remove(old)
        assert possible, "nobody else has changed it"
    return done


@dataclass(frozen=True)
class Made:
    """A call that was made."""

    call: str
    began: float
    ended: float
    failed: bool

    @property
    def took(self) -> float:
        return self.ended - self.began


@dataclass
class Worker:
    script: Script
    made: list[Made] = field(default_factory=list)

    def play(self, store: SQLKeyStore, stop: Event) -> None:
        call = next(self.script)
        while not stop.is_set():
            began = monotonic()
            try:
                answer = getattr(store, call.method)(*call.arguments, **call.options)
            except StoreUnavailable as error:
                self.made.append(Made(call.method, began, monotonic(), failed=True))
                sleep(0.01)
                call = self.script.throw(error)
            else:
                self.made.append(Made(call.method, began, monotonic(), failed=False))
                call = self.script.send(answer)

    async def async_play(self, store: AsyncSQLKeyStore, stop: Event) -> None:
        call = next(self.script)
        while not stop.is_set():
            await asyncio.sleep(uniform(0, 2 * PAUSE))
            began = monotonic()
            try:
                answer = await getattr(store, call.method)(*call.arguments, **call.options)
            except StoreUnavailable as error:
                self.made.append(Made(call.method, began, monotonic(), failed=True))
                call = self.script.throw(error)
            else:
                self.made.append(Made(call.method, began, monotonic(), failed=False))
                call = self.script.send(answer)

    def good_since(self, time: float) -> int:
        return sum(not made.failed and made.began >= time for made in self.made)

    def failed_since(self, time: float) -> bool:
        return any(made.failed and made.began >= time for made in self.made)


@dataclass
class Load:
    """Many that use one store at once: 8 threads, or 50 tasks."""

    store: Store
    workers: list[Worker] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)
    _running: "list[asyncio.Future[None]]" = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 8))

    async def __aenter__(self) -> "Load":
        loop = asyncio.get_running_loop()
        for number in range(50 if isinstance(self.store, AsyncSQLKeyStore) else 8):
            worker = Worker(work(f"w{number}"))
            self.workers.append(worker)
            if isinstance(self.store, AsyncSQLKeyStore):
                self._running.append(loop.create_task(worker.async_play(self.store, self._stop)))
            else:
                self._running.append(loop.run_in_executor(self._pool, worker.play, self.store, self._stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._running)
        self._pool.shutdown()

    @property
    def made(self) -> Iterable[Made]:
        return (made for worker in self.workers for made in worker.made)

    async def until_all(self, true: Callable[[Worker], bool], what: str) -> None:
        def reached() -> bool:
            for ended in self._running:
                if ended.done():
                    ended.result()  # raises what was wrong
            return all(map(true, self.workers))

        await until(reached, what)


async def set_up(store: Store) -> None:
    """Make the tables, and the records that the work begins with."""
    await called(store.create_schema())
    for number in range(50):
        await awaited(store).add(record(f"w{number}-key", owner=f"owner w{number}"))


FAILURES: Mapping[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "crashes": (Server.stop, Server.start),
    "hangs": (Server.pause, Server.resume),
}


@pytest.mark.parametrize(("fail", "recover"), FAILURES.values(), ids=FAILURES)
async def test_a_server_that_fails_under_load_is_unavailable_until_it_is_back_and_no_answer_is_wrong(
    own: Server,
    driver: Driver,
    fail: Callable[[Server], None],
    recover: Callable[[Server], None],
    sockets_before: int,
) -> None:
    store = driver.store(own.url)
    await set_up(store)
    async with Load(store) as load:
        await load.until_all(lambda worker: len(worker.made) >= 5, "all had begun")
        down = monotonic()
        await asyncio.to_thread(fail, own)
        failed = monotonic()
        await load.until_all(lambda worker: worker.failed_since(failed), "all had noticed")
        await asyncio.to_thread(recover, own)
        up = monotonic()
        await load.until_all(lambda worker: worker.good_since(up) >= 5, "all had recovered")
    await called(store.close())

    unavailable = [made for made in load.made if made.failed]
    assert [made for made in unavailable if made.ended < down] == []
    assert [made for made in unavailable if made.began > up] == []
    longest = TIMEOUT + ALLOWANCE + (0 if driver.asynchronous else QUEUE)
    assert [made for made in load.made if made.took > longest] == []
    await closed(own, driver.kind, sockets_before)


async def closed(server: Server, kind: str, sockets_before: int) -> None:
    """Wait until no connection is left, neither here nor there."""
    gc.collect()  # psycopg leaves to it the sockets of connections that it has not made in time
    await until(lambda: sockets() == sockets_before, "no socket is left", 10)
    await until(lambda: sessions(kind, server.url) == 0, "the server has no session any more", 10)


# Deadlines

CALLS: Mapping[str, Call] = {
    "get": Call("get", ("k1",)),
    "add": Call("add", (record("k2"),)),
    "swap": Call("swap", (record(), changed(record(), name="b"))),
    "revoke_all": Call("revoke_all", (None, NOW, None)),
    "find": Call("find"),
    "count": Call("count"),
    "purge": Call("purge", (NOW,)),
    "touch": Call("touch", ({"k1": NOW},)),
    "changes": Call("changes", (None,)),
}


async def assert_unavailable(store: Store, *names: str) -> None:
    """Assert that calls end in time, one after the other, and say that the store is not available."""
    for name in names:
        call = CALLS[name]
        began = monotonic()
        with pytest.raises(StoreUnavailable):
            await getattr(awaited(store), call.method)(*call.arguments, **call.options)
        assert monotonic() - began <= TIMEOUT + ALLOWANCE, name


@pytest.fixture
async def opened(driver: Driver) -> AsyncIterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open_store(server: str, **options: Any) -> Store:
        stores.append(driver.store(server, **options))
        return stores[-1]

    yield open_store
    for store in stores:
        await called(store.close())


async def test_where_nothing_listens_every_call_says_so_in_time(
    opened: Callable[..., Store], own: Server
) -> None:
    own.stop()
    await assert_unavailable(opened(own.url), *CALLS)
    store = opened(own.url, create=True)
    await assert_unavailable(store, "get", "add")
    own.start()
    assert await awaited(store).get("k1") is None


async def test_a_server_that_accepts_and_never_answers_is_given_up_in_time(
    opened: Callable[..., Store], own: Server
) -> None:
    store = opened(own.url)
    await called(store.create_schema())
    await called(store.close())
    own.pause()
    try:
        await assert_unavailable(store, "get", "swap")
    finally:
        own.resume()
    assert await awaited(store).get("k1") is None


async def test_a_server_that_hangs_between_two_calls_is_given_up_in_time(
    opened: Callable[..., Store], own: Server
) -> None:
    store = opened(own.url, create=True)
    await awaited(store).add(record())
    assert await awaited(store).get("k1") == record()
    own.pause()
    try:
        await assert_unavailable(store, "get", "swap", "get", "add")
    finally:
        own.resume()
    assert await awaited(store).get("k1") in (record(), changed(record(), name="b"))


async def test_connections_that_were_given_up_do_not_stay(
    driver: Driver, own: Server, sockets_before: int
) -> None:
    store = driver.store(own.url, create=True)
    await awaited(store).add(record())
    own.pause()
    try:
        await assert_unavailable(store, "get", "swap", "add")
    finally:
        own.resume()
    await called(store.close())
    await closed(own, driver.kind, sockets_before)


async def test_a_server_that_was_started_again_is_used_without_a_failure(
    opened: Callable[..., Store], own: Server
) -> None:
    store = opened(own.url, create=True)
    await awaited(store).add(record())
    assert await awaited(store).get("k1") == record()
    for _ in range(2):
        own.stop()
        own.start()
        assert await awaited(store).get("k1") == record()
        own.stop()
        own.start()
        assert not await awaited(store).swap(
            changed(record(), name="b"), changed(changed(record(), name="b"))
        )
    own.stop()
    own.start()
    await awaited(store).add(record("k2"))
    assert (await awaited(store).find()).items == (record(), record("k2"))


@pytest.fixture
def other(driver: Driver, database: str) -> Iterable[sa.Connection]:
    """Another program's connection to the same database."""
    name = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}[driver.kind]
    with closing_engine(sa.create_engine(sa.make_url(database).set(drivername=name))) as engine:
        with engine.connect() as connection:
            yield connection


async def test_a_writer_that_never_ends_is_waited_for_in_time_and_keeps_no_reader_waiting(
    database: str, opened: Callable[..., Store], other: sa.Connection
) -> None:
    store = opened(database, create=True)
    await awaited(store).add(record())
    other.exec_driver_sql("UPDATE apikey_auth_state SET revision = revision + 1")
    await assert_unavailable(store, "swap", "revoke_all", "purge")
    assert await awaited(store).get("k1") == record()
    other.rollback()
    await awaited(store).add(record("k2"))
    assert await awaited(store).swap(record(), changed(record(), name="b"))
    assert (
        await awaited(store).changes(None)
    ).revision.number == 1  # of those that were given up, nothing came


async def test_when_the_applications_pool_is_exhausted_the_store_says_so_in_time(
    driver: Driver, database: str
) -> None:
    await called((made := driver.store(database)).create_schema())
    await called(made.close())
    if driver.asynchronous:
        engine = create_async_engine(driver.url(database), pool_size=1, max_overflow=0)
        async_store = AsyncSQLKeyStore(engine, timeout=TIMEOUT)
        async with engine.connect():
            await assert_unavailable(async_store, "get", "swap", "changes")
        assert await async_store.get("k1") is None
        await engine.dispose()
    else:
        pool = {
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": TIMEOUT,
        }  # an Engine keeps its own deadlines
        with closing_engine(sa.create_engine(driver.url(database), **pool)) as blocking:
            store = SQLKeyStore(blocking, timeout=TIMEOUT)
            with blocking.connect():
                await assert_unavailable(store, "get", "swap", "changes")
            assert store.get("k1") is None
