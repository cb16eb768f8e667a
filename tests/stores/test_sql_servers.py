"""What the SQL stores promise on PostgreSQL and MariaDB: order, equality, times, plans, isolation, transactions."""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
import sqlalchemy as sa
from databases import PATIENCE, closing_engine, new_database
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from apikey_auth import APIKey, AsyncKeyManager, DuplicateKey, KeyManager
from apikey_auth.decisions import changed
from apikey_auth.stores.protocol import Revision
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore, metadata

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)

DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}
ASYNC_DRIVERS = {
    "psycopg": ("postgresql", "postgresql+psycopg"),
    "asyncpg": ("postgresql", "postgresql+asyncpg"),
    "asyncmy": ("mariadb", "mysql+asyncmy"),
}
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
KEYS = metadata.tables["apikey_auth_keys"]


def record(key_id: str = "k1", **given: Any) -> APIKey:
    return APIKey(**{"id": key_id, "owner": "User1", "digest": "sha256$$00", "created_at": NOW, **given})


def with_driver(url: str, driver: str) -> str:
    return sa.make_url(url).set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, for a store that blocks."""
    database = request.getfixturevalue(f"{request.param}_database")
    return with_driver(database, DRIVERS[request.param])


@pytest.fixture
def store(url: str) -> Iterator[SQLKeyStore]:
    store = SQLKeyStore(url, create=True)
    yield store
    store.close()


@pytest.fixture
def host(url: str) -> Iterator[sa.Engine]:
    """An application's own engine, on the same database."""
    with closing_engine(sa.create_engine(url)) as engine:
        yield engine


# Order and equality

STRANGERS = (  # neighbours in many a collation, or the same
    *("k1", "K1", "k1 ", "k1  ", " k1", "k1\t", "\uff4b\uff11", "k1\u0301", "k\u0661"),
    *("a", "A", "b", "B", "Z", "z", "_", "-", "10", "9", "é", "e\u0301", "É"),
    *("ß", "ss", "SS", "\u0131", "i", "I", "İ", "ж", "Ж", "名"),
    *("\x01", "~", "\x7f", "\uffff", "\U00010000", "🔑"),
)


def pages(store: SQLKeyStore, **wanted: Any) -> list[str]:
    """List the ids of all pages."""
    found, after = list[str](), None
    while True:
        page = store.find(after=after, limit=3, **wanted)
        found += [key.id for key in page.items]
        if (after := page.next) is None:
            return found


def test_ids_are_listed_by_code_point_whatever_the_collation_of_the_database(store: SQLKeyStore) -> None:
    for key_id in STRANGERS:
        store.add(record(key_id))
    assert pages(store) == sorted(STRANGERS)
    assert pages(store, owner="User1", live_at=NOW) == sorted(STRANGERS)


def test_ids_that_differ_in_anything_are_different_keys(store: SQLKeyStore) -> None:
    for number, key_id in enumerate(STRANGERS):
        store.add(record(key_id, name=str(number)))
    for number, key_id in enumerate(STRANGERS):
        assert store.get(key_id) == record(key_id, name=str(number))
    changed_one = changed(record("k1"), name="changed")
    assert store.swap(record("k1"), changed_one)
    store.touch({"K1": NOW})
    names = {key.id: (key.name, key.last_used_at) for key in store.find(limit=1000).items}
    expected = {key_id: (str(number), None) for number, key_id in enumerate(STRANGERS)}
    assert names == expected | {"k1": ("changed", None), "K1": (expected["K1"][0], NOW)}


def test_owners_that_differ_in_anything_are_different_owners(store: SQLKeyStore) -> None:
    for owner in STRANGERS:
        store.add(record(f"of {owner}", owner=owner))
    for owner in STRANGERS:
        assert pages(store, owner=owner) == [f"of {owner}"]
        assert store.count(owner=owner) == 1
    assert store.revoke_all("k1", NOW, None) == 1
    assert [key.id for key in store.find(limit=1000).items if key.revoked_at] == ["of k1"]


def test_a_record_with_another_digest_is_not_swapped_although_it_differs_in_case_alone(
    store: SQLKeyStore,
) -> None:
    store.add(record(digest="sha256$$ab"))
    for digest in ("sha256$$AB", "sha256$$ab "):
        read = record(digest=digest)
        assert not store.swap(read, changed(read, name="b"))


# Times


@contextmanager
def in_zone(url: str, postgresql: str, mariadb: str) -> Iterator[SQLKeyStore]:
    """Open a store on an application's engine whose sessions have a time zone of their own."""
    with closing_engine(sa.create_engine(url)) as engine:
        zone = postgresql if engine.dialect.name == "postgresql" else mariadb

        @event.listens_for(engine, "connect")
        def set_zone(connection: Any, _: object) -> None:
            with connection.cursor() as cursor:
                name = "TIME ZONE" if engine.dialect.name == "postgresql" else "time_zone ="
                cursor.execute(f"SET {name} '{zone}'")
            connection.commit()

        yield SQLKeyStore(engine)


@pytest.fixture
def far_east(url: str, store: SQLKeyStore) -> Iterator[SQLKeyStore]:
    store.create_schema()
    with in_zone(url, "<+13>-13", "+13:00") as opened:
        yield opened


@pytest.fixture
def far_west(url: str, store: SQLKeyStore) -> Iterator[SQLKeyStore]:
    store.create_schema()
    with in_zone(url, "<-11>11", "-11:00") as opened:
        yield opened


@pytest.mark.parametrize(
    "time",
    [
        NOW,
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC),  # the clocks of Europe change
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    ],
    ids=str,
)
def test_times_are_the_same_in_sessions_of_any_time_zone(
    store: SQLKeyStore, far_east: SQLKeyStore, far_west: SQLKeyStore, time: datetime
) -> None:
    key = record(created_at=time, expires_at=time, grace_until=time, last_used_at=time, revoked_at=time)
    far_east.add(key)
    assert [opened.get("k1") for opened in (store, far_east, far_west)] == [key] * 3


def test_what_is_live_does_not_depend_on_the_time_zone_of_the_session(
    far_east: SQLKeyStore, far_west: SQLKeyStore
) -> None:
    far_east.add(record("expires", expires_at=NOW))
    far_west.add(record("in its grace", grace_until=NOW))
    for opened in (far_east, far_west):
        assert opened.count(live_at=NOW - MOMENT) == 2
        assert opened.count(live_at=NOW) == 0


def test_what_is_purged_and_touched_does_not_depend_on_the_time_zone_of_the_session(
    far_east: SQLKeyStore, far_west: SQLKeyStore
) -> None:
    far_east.add(record(expires_at=NOW, last_used_at=NOW - DAY))
    far_west.touch({"k1": NOW - DAY - MOMENT})
    assert far_east.get("k1") == record(expires_at=NOW, last_used_at=NOW - DAY)
    far_west.touch({"k1": NOW - DAY + MOMENT})
    assert far_east.get("k1") == record(expires_at=NOW, last_used_at=NOW - DAY + MOMENT)
    assert far_west.purge(NOW) == 0
    assert far_west.purge(NOW + MOMENT) == 1


# Isolation


@pytest.fixture(params=LEVELS)
def isolated(request: pytest.FixtureRequest, url: str, store: SQLKeyStore) -> Iterator[sa.Engine]:
    """An application's own engine, whose transactions are of a level of its own; the tables are there."""
    store.create_schema()
    with closing_engine(sa.create_engine(url, isolation_level=request.param, pool_size=12)) as engine:
        yield engine


@dataclass
class Mirror:
    """What a process keeps of the records that it has read, as long as ``changes`` does not name them."""

    store: SQLKeyStore
    records: dict[str, APIKey | None]
    since: Revision
    named: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, store: SQLKeyStore, ids: Iterable[str]) -> "Mirror":
        since = store.changes(None).revision
        return cls(store, {key_id: store.get(key_id) for key_id in ids}, since)

    def catch_up(self) -> None:
        told = self.store.changes(self.since)
        for key_id in self.records if told.ids is None else told.ids:
            self.records[key_id] = self.store.get(key_id)
        self.named |= told.ids or set()
        self.since = told.revision

    def follow(self, done: Event) -> None:
        while not done.is_set():
            self.catch_up()
        self.catch_up()


def in_threads(*calls: Callable[[], object]) -> None:
    """Make calls at once, each in a thread, and raise what one of them raises."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for ended in [pool.submit(call) for call in calls]:
            ended.result()


THREADS = 8
EACH = 15


def thread_ids(thread: int) -> list[str]:
    return [f"t{thread}-{number:02}" for number in range(EACH)]


ALL_IDS = [key_id for thread in range(THREADS) for key_id in thread_ids(thread)]


def while_followed(store: SQLKeyStore, work: Callable[[int], None]) -> Mirror:
    """Work in eight threads while one follows the changes."""
    for thread in range(THREADS):
        for key_id in thread_ids(thread):
            store.add(record(key_id, owner=f"u{thread}"))
    mirror, done = Mirror.of(store, ALL_IDS), Event()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(mirror.follow, done)
        try:
            in_threads(*(partial(work, thread) for thread in range(THREADS)))
        finally:
            done.set()
        following.result()
    return mirror


def test_no_change_is_missed_at_any_isolation_level_of_the_application(isolated: sa.Engine) -> None:
    store = SQLKeyStore(isolated)

    def work(thread: int) -> None:
        *own, last = thread_ids(thread)
        for key_id in own:
            read = record(key_id, owner=f"u{thread}")
            assert store.swap(read, changed(read, name="changed"))
        assert store.revoke_all(f"u{thread}", NOW, last) == EACH

    mirror = while_followed(store, work)
    assert mirror.named == set(ALL_IDS)
    assert mirror.records == {
        key_id: record(
            key_id,
            owner=f"u{thread}",
            revoked_at=NOW,
            revoked_reason=last,
            name="" if key_id == last else "changed",
            version=2 if key_id == last else 3,
        )
        for thread in range(THREADS)
        for last in thread_ids(thread)[-1:]
        for key_id in thread_ids(thread)
    }
    assert mirror.since.number == THREADS * EACH


def test_whoever_follows_knows_what_all_that_write_at_once_have_left(isolated: sa.Engine) -> None:
    store = SQLKeyStore(isolated)

    def swap_all(thread: int) -> None:
        for key_id in reversed(ALL_IDS):  # against the order of everybody else
            if (read := store.get(key_id)) is not None:
                successor = record(f"{key_id}-{thread}") if thread == 0 else None
                store.swap(read, changed(read, name=f"by {thread}"), successor=successor)

    def revoke_one_after_the_other(thread: int) -> None:
        for owner in range(THREADS):
            store.revoke_all(f"u{owner}", NOW + owner * MOMENT, None)
            store.touch(dict.fromkeys(ALL_IDS, NOW + owner * MOMENT))

    def revoke_and_purge(thread: int) -> None:
        for number in range(THREADS):
            store.revoke_all(f"u{number}", NOW + DAY, None)  # which is purged only where the other was first
            store.purge(NOW + number * MOMENT)
            store.touch(dict.fromkeys(reversed(ALL_IDS), NOW + number * MOMENT))

    roles = (
        swap_all,
        swap_all,
        swap_all,
        swap_all,
        swap_all,
        swap_all,
        revoke_one_after_the_other,
        revoke_and_purge,
    )
    mirror = while_followed(store, lambda thread: roles[thread](thread))
    left = {key.id: without_use(key) for key in store.find(limit=1000).items}
    assert {key_id: without_use(mirror.records[key_id]) for key_id in ALL_IDS} == {
        key_id: left.get(key_id) for key_id in ALL_IDS
    }


def without_use(key: APIKey | None) -> APIKey | None:
    """Leave out when the key was last used, which moves no revision."""
    return None if key is None else replace(key, last_used_at=None)


def test_increments_by_swap_are_never_lost_at_any_isolation_level(isolated: sa.Engine) -> None:
    store = SQLKeyStore(isolated)
    store.add(record(metadata={"n": 0}))

    def increment() -> None:
        for _ in range(EACH):
            while True:
                key = store.get("k1")
                assert key is not None
                if store.swap(key, changed(key, metadata={"n": int(str(key.metadata["n"])) + 1})):
                    break

    in_threads(*[increment] * THREADS)
    done = THREADS * EACH
    assert store.get("k1") == record(metadata={"n": done}, version=1 + done)


def test_a_deadlock_with_somebody_else_is_tried_again(store: SQLKeyStore, host: sa.Engine) -> None:
    for number in range(20):
        store.add(record(f"k{number}"))
    with ThreadPoolExecutor(1) as pool, host.connect() as other:
        if host.dialect.name == "postgresql":
            other.exec_driver_sql("SET LOCAL deadlock_timeout = '1min'")  # so that the store finds it first
        other.execute(sa.update(KEYS).values(name="other"))  # on MariaDB whoever has written less gives way
        revoking = pool.submit(store.revoke_all, None, NOW, None)
        wait_until_locked(host)
        other.exec_driver_sql("UPDATE apikey_auth_state SET floor = floor")
        other.rollback()
        assert revoking.result() == 20
    assert store.changes(None).revision.number == 1


def wait_until_locked(engine: sa.Engine) -> None:
    """Wait until somebody holds the counter."""
    deadline = monotonic() + PATIENCE
    while True:
        with engine.connect() as connection:
            free = connection.exec_driver_sql("SELECT id FROM apikey_auth_state FOR UPDATE SKIP LOCKED").all()
        if not free:
            return
        assert monotonic() < deadline
        sleep(0.01)


def test_what_others_have_committed_is_read_although_the_application_is_in_an_old_snapshot(
    isolated: sa.Engine, store: SQLKeyStore
) -> None:
    own = SQLKeyStore(isolated)
    store.add(record())
    users = sa.Table("users", sa.MetaData(), sa.Column("name", sa.String(20), primary_key=True))
    users.create(isolated)
    with isolated.connect() as connection:
        assert connection.execute(sa.select(users)).all() == []  # here its snapshot begins, if it has one
        since = own.changes(None).revision
        assert store.swap(record(), changed(record(), name="changed"))
        assert own.get("k1") == changed(record(), name="changed")
        assert own.find().items == (changed(record(), name="changed"),)
        assert own.changes(since).ids == frozenset({"k1"})


def test_the_application_finds_its_connections_as_it_left_them(url: str, store: SQLKeyStore) -> None:
    store.create_schema()
    with closing_engine(
        sa.create_engine(url, isolation_level="SERIALIZABLE", pool_size=1, max_overflow=0)
    ) as engine:
        own = SQLKeyStore(engine)
        own.add(record())
        assert own.swap(record(), changed(record(), name="b"))
        assert own.get("k1") == changed(record(), name="b")
        with engine.connect() as connection:
            assert connection.get_isolation_level() == "SERIALIZABLE"
            connection.execute(sa.update(KEYS).values(name="rolled back"))
        assert own.get("k1") == changed(record(), name="b")


# The application's own transactions


@pytest.fixture
def joining(host: sa.Engine) -> SQLKeyStore:
    """A store on the application's engine; the tables are there."""
    store = SQLKeyStore(host)
    store.create_schema()
    return store


def test_a_key_that_is_issued_on_a_connection_is_there_after_its_commit_and_not_before(
    joining: SQLKeyStore, host: sa.Engine
) -> None:
    with host.connect() as connection:
        issued = KeyManager(joining).issue("ada", connection=connection)
        assert joining.get(issued.key.id) is None
        connection.commit()
    assert joining.get(issued.key.id) == issued.key


def test_a_key_that_is_issued_on_a_connection_is_rolled_back_with_it(
    joining: SQLKeyStore, host: sa.Engine
) -> None:
    with host.connect() as connection:
        KeyManager(joining).issue("ada", connection=connection)
        connection.rollback()
        kept = KeyManager(joining).issue("ada", connection=connection)
        connection.commit()
    assert joining.find(owner="ada").items == (kept.key,)


def test_a_key_is_rolled_back_with_what_else_the_application_wrote(
    joining: SQLKeyStore, host: sa.Engine
) -> None:
    users = sa.Table("users", sa.MetaData(), sa.Column("name", sa.String(20), primary_key=True))
    users.create(host)
    with host.connect() as connection:
        connection.execute(sa.insert(users).values(name="ada"))
        KeyManager(joining).issue("ada", connection=connection)
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(users).values(name="ada"))
        connection.rollback()
    assert joining.find().items == ()
    with host.connect() as connection:
        assert connection.execute(sa.select(users)).all() == []


def test_a_session_takes_a_key_along(joining: SQLKeyStore, host: sa.Engine) -> None:
    with Session(host) as session:
        KeyManager(joining).issue("rolled back", connection=session)
        session.rollback()
        issued = KeyManager(joining).issue("ada", connection=session)
        assert joining.find().items == ()
        session.commit()
    assert joining.find().items == (issued.key,)


@pytest.mark.parametrize("opened", [sa.Engine.connect, Session])
def test_a_savepoint_takes_its_keys_along(
    joining: SQLKeyStore, host: sa.Engine, opened: Callable[[sa.Engine], Any]
) -> None:
    with opened(host) as connection:
        first = KeyManager(joining).issue("ada", connection=connection)
        savepoint = connection.begin_nested()
        KeyManager(joining).issue("ada", connection=connection)
        savepoint.rollback()
        with connection.begin_nested():
            third = KeyManager(joining).issue("ada", connection=connection)
        connection.commit()
    assert {key.id for key in joining.find(owner="ada").items} == {first.key.id, third.key.id}


def test_a_duplicate_in_a_savepoint_does_not_end_the_transaction(host: sa.Engine) -> None:
    store = SQLKeyStore(host)
    store.create_schema()
    store.add(record("taken"))
    with host.begin() as connection:
        store.add(record("k1"), connection=connection)
        with pytest.raises(DuplicateKey), connection.begin_nested():
            store.add(record("taken", name="another"), connection=connection)
        store.add(record("k2"), connection=connection)
    assert store.find().items == (record("k1"), record("k2"), record("taken"))


@pytest.fixture(params=ASYNC_DRIVERS)
async def async_host(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    kind, driver = ASYNC_DRIVERS[request.param]
    engine = create_async_engine(with_driver(request.getfixturevalue(f"{kind}_database"), driver))
    yield engine
    await engine.dispose()


@pytest.fixture
async def async_joining(async_host: AsyncEngine) -> AsyncSQLKeyStore:
    store = AsyncSQLKeyStore(async_host)
    await store.create_schema()
    return store


@pytest.mark.parametrize("opened", [AsyncEngine.connect, AsyncSession])
async def test_an_async_connection_takes_a_key_along(
    async_joining: AsyncSQLKeyStore, async_host: AsyncEngine, opened: Callable[[AsyncEngine], Any]
) -> None:
    async with opened(async_host) as connection:
        await AsyncKeyManager(async_joining).issue("rolled back", connection=connection)
        await connection.rollback()
        issued = await AsyncKeyManager(async_joining).issue("ada", connection=connection)
        assert (await async_joining.find()).items == ()
        await connection.commit()
    assert (await async_joining.find()).items == (issued.key,)


@pytest.mark.parametrize("opened", [AsyncEngine.connect, AsyncSession])
async def test_an_async_savepoint_takes_its_keys_along(
    async_joining: AsyncSQLKeyStore, async_host: AsyncEngine, opened: Callable[[AsyncEngine], Any]
) -> None:
    async with opened(async_host) as connection:
        first = await AsyncKeyManager(async_joining).issue("ada", connection=connection)
        savepoint = await connection.begin_nested()
        await AsyncKeyManager(async_joining).issue("ada", connection=connection)
        await savepoint.rollback()
        async with connection.begin_nested():
            third = await AsyncKeyManager(async_joining).issue("ada", connection=connection)
        await connection.commit()
    found = await async_joining.find(owner="ada")
    assert {key.id for key in found.items} == {first.key.id, third.key.id}


# Statements


@dataclass(frozen=True)
class Sent:
    statement: str
    parameters: Any
    many: bool

    @property
    def one(self) -> Any:
        """The parameters of one row."""
        return self.parameters[0] if self.many else self.parameters


@contextmanager
def sending() -> Iterator[list[Sent]]:
    """Note what is sent to any database meanwhile."""
    sent: list[Sent] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if "apikey_auth_" in statement:  # and not SQLAlchemy's own, when it connects
            sent.append(Sent(statement, parameters, many))

    event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(sa.Engine, "before_cursor_execute", note)


def test_revoke_all_is_one_update_however_many_keys_there_are(store: SQLKeyStore) -> None:
    for number in range(300):
        store.add(record(f"k{number}"))
    for owner in ("User1", None):
        with sending() as sent:
            store.revoke_all(owner, NOW, "all")
        on_keys = [each for each in sent if "apikey_auth_keys" in each.statement]
        assert len(on_keys) == 1
        assert on_keys[0].statement.startswith("UPDATE apikey_auth_keys ")
        assert not on_keys[0].many


CHANGING: Mapping[str, Callable[[SQLKeyStore], object]] = {
    "swap": lambda store: store.swap(record(), changed(record(), name="b")),
    "swap that comes too late": lambda store: store.swap(record("gone"), changed(record("gone"), name="b")),
    "swap with a successor": lambda store: store.swap(record(), changed(record(), name="b"), record("k2")),
    "revoke_all of one owner": lambda store: store.revoke_all("User1", NOW, None),
    "revoke_all": lambda store: store.revoke_all(None, NOW, None),
    "purge": lambda store: store.purge(NOW),
}


@pytest.mark.parametrize("change", CHANGING.values(), ids=CHANGING)
def test_whoever_changes_records_locks_the_counter_first(
    store: SQLKeyStore, change: Callable[[SQLKeyStore], object]
) -> None:
    store.add(record())
    with sending() as sent:
        change(store)
    assert re.match(r"UPDATE apikey_auth_state SET revision=\S*revision \+", sent[0].statement)


# Plans

ROWS = 20_000
OWNERS = 200
LIVE = 400
EARLY = NOW - 1000 * DAY
OLD = record("k00500", owner="o100", revoked_at=EARLY + 500 * timedelta(hours=1), metadata={})


def many_rows() -> list[dict[str, object]]:
    """Make records as they are after years: most were revoked long ago, or their grace is over; some are live."""
    rows: list[dict[str, object]] = []
    for number in range(ROWS):
        time = EARLY + number * timedelta(hours=1)
        rows.append(
            {
                "id": f"k{number:05}",
                "owner": f"o{number % OWNERS}",
                "digest": f"sha256$${number}",
                "name": "",
                "prefix": "acme",
                "last4": "",
                "created_at": time,
                "disabled": False,
                "metadata": {},
                "version": 1,
                "revision": number,
                "revoked_at": time if number >= LIVE else None,
                "expires_at": time + 365 * DAY if number % 3 else None,
                "grace_until": time if number % 50 == 0 else None,
            }
        )
    return rows


@dataclass(frozen=True)
class Large:
    """A database with many records and up-to-date statistics, and a store of the same kind with none."""

    engine: sa.Engine
    empty: SQLKeyStore

    def plans(self, call: Callable[[SQLKeyStore], object]) -> "list[Plan]":
        """Tell how the large database would do what a call sends to the small one."""
        with sending() as sent:
            call(self.empty)
        explained = (each for each in sent if " apikey_auth_keys" in each.statement)
        with self.engine.connect() as connection:
            return [EXPLAINING[self.engine.dialect.name](connection, each) for each in explained]


@dataclass
class Plan:
    """What a statement reads, and whether all of the keys are read one by one."""

    indexes: set[str]
    scans: bool
    text: str


def explain(connection: sa.Connection, prefix: str, sent: Sent) -> Sequence[Any]:
    return connection.exec_driver_sql(f"{prefix} {sent.statement}", sent.one).all()


def explain_postgresql(connection: sa.Connection, sent: Sent) -> Plan:
    [[plans]] = explain(connection, "EXPLAIN (FORMAT JSON)", sent)
    nodes = list(nodes_of(plans[0]["Plan"]))
    scans = any(
        node["Node Type"] == "Seq Scan" and node["Relation Name"] == "apikey_auth_keys" for node in nodes
    )
    indexes = {node["Index Name"] for node in nodes if "Index Name" in node}
    return Plan(
        {name.replace("apikey_auth_keys_pkey", "primary") for name in indexes}, scans, json.dumps(plans)
    )


def nodes_of(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


def explain_mariadb(connection: sa.Connection, sent: Sent) -> Plan:
    rows = [row for row in explain(connection, "EXPLAIN", sent) if row.table == "apikey_auth_keys"]
    indexes = {name for row in rows for name in (row.key or "").split(",") if name}
    scans = any(row.type == "ALL" for row in rows)
    return Plan({name.replace("PRIMARY", "primary") for name in indexes}, scans, str(rows))


def explain_sqlite(connection: sa.Connection, sent: Sent) -> Plan:
    lines = [row.detail for row in explain(connection, "EXPLAIN QUERY PLAN", sent)]
    read = [line for line in lines if " apikey_auth_keys" in line]
    sorts = any("TEMP B-TREE" in line for line in lines)
    indexes = set(re.findall(r"INDEX (\w+)", "\n".join(read)))
    if any("USING PRIMARY KEY" in line for line in read):
        indexes.add("primary")
    scans = any(line.startswith("SCAN") and "USING" not in line for line in read)
    if scans and "LIMIT" in sent.statement and not sorts:  # the table is its primary key, read from its start
        return Plan(indexes | {"primary"}, False, str(lines))
    return Plan(indexes, scans, str(lines))


EXPLAINING: Mapping[str, Callable[[sa.Connection, Sent], Plan]] = {
    "postgresql": explain_postgresql,
    "mysql": explain_mariadb,
    "sqlite": explain_sqlite,
}


@pytest.fixture(scope="module", params=["sqlite", *DRIVERS])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Large]:
    with ExitStack() as opened:
        full, empty = (
            f"sqlite:///{tmp_path_factory.mktemp('plans')}/keys.db"
            if request.param == "sqlite"
            else with_driver(
                opened.enter_context(
                    new_database(request.getfixturevalue(f"{request.param}_url"), DRIVERS[request.param])
                ),
                DRIVERS[request.param],
            )
            for _ in range(2)
        )
        for each in (full, empty):
            store = opened.enter_context(closing(SQLKeyStore(each)))
            store.create_schema()
        engine = opened.enter_context(closing_engine(sa.create_engine(full)))
        with engine.begin() as connection:
            connection.execute(sa.insert(KEYS), many_rows())
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(
                f"ANALYZE {'TABLE' * (engine.dialect.name == 'mysql')} apikey_auth_keys"
            )
        yield Large(engine, store)


def ends(*names: str) -> set[str]:
    return {f"apikey_auth_keys_{name}" for name in names}


# What a store is asked, and the indexes of which each statement on keys uses one at least and no other. A
# count of everything is not here, which has to read everything.
INDEXES: Mapping[str, tuple[Callable[[SQLKeyStore], object], set[str]]] = {
    "get": (lambda store: store.get(OLD.id), {"primary"}),
    "swap": (lambda store: store.swap(OLD, changed(OLD, name="b")), {"primary"}),
    "touch": (lambda store: store.touch({OLD.id: NOW, "k1": NOW}), {"primary"}),
    "revoke_all of one owner": (lambda store: store.revoke_all("o100", NOW, None), ends("owner", "revoked")),
    "revoke_all": (lambda store: store.revoke_all(None, NOW, None), ends("revoked")),
    "the first page": (lambda store: store.find(limit=50), {"primary"}),
    "a later page": (lambda store: store.find(after="k10000", limit=50), {"primary"}),
    "the first page of an owner": (lambda store: store.find(owner="o100", limit=50), ends("owner")),
    "a later page of an owner": (
        lambda store: store.find(owner="o100", after="k10000", limit=50),
        ends("owner"),
    ),
    "a page of an owner's live keys": (
        lambda store: store.find(owner="o100", live_at=NOW, limit=50),
        ends("owner", "revoked"),
    ),
    "a page of live keys": (
        lambda store: store.find(live_at=NOW, after="k00100", limit=50),
        {"primary", *ends("revoked")},
    ),
    "a count of an owner": (lambda store: store.count(owner="o100"), ends("owner")),
    "a count of live keys": (lambda store: store.count(live_at=NOW), ends("revoked")),
    "purge": (lambda store: store.purge(EARLY + DAY), ends("revoked", "expires", "grace")),
    "changes": (lambda store: store.changes(Revision("epoch", ROWS - 10)), ends("revision")),
}


@pytest.mark.parametrize(("call", "indexes"), INDEXES.values(), ids=INDEXES)
def test_every_statement_finds_its_records_by_an_index(
    large: Large, call: Callable[[SQLKeyStore], object], indexes: set[str]
) -> None:
    plans = large.plans(call)
    assert plans
    for plan in plans:
        assert not plan.scans, plan.text
        assert plan.indexes, plan.text
        assert plan.indexes <= indexes, plan.text
