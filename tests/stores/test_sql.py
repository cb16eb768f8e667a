"""What the SQL stores promise beside the contract: their file, its locks, its failures, its processes."""

import asyncio
import gc
import os
import re
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa

from apikey_auth import APIKey, ConfigurationError, DuplicateKey, Inline, StoreUnavailable
from apikey_auth.decisions import changed
from apikey_auth.stores.protocol import AsyncKeyStore, Changes, Revision
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.stores.sql.turns import Turns
from apikey_auth.testing.records import DAY, NOW, record

from .awaited import add_all, everything, revision_of

Open = Callable[..., AsyncKeyStore]
SECRET = "the digest nobody may read"


@pytest.fixture(params=[SQLKeyStore, AsyncSQLKeyStore])
async def opened(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Open]:
    """Open a store of either colour, its methods awaited, on the file of the test."""
    stores: list[SQLKeyStore | AsyncSQLKeyStore] = []

    def open_store(at: str = url, **options: Any) -> AsyncKeyStore:
        store = request.param(at, **options)
        stores.append(store)
        return store if isinstance(store, AsyncSQLKeyStore) else Inline(store)

    yield open_store
    for store in stores:
        await called(store.close())


async def called(answer: Awaitable[None] | None) -> None:
    if answer is not None:
        await answer


async def create_schema(store: Any) -> None:
    await called(getattr(store, "wrapped", store).create_schema())


async def close(store: Any) -> None:
    await called(getattr(store, "wrapped", store).close())


@pytest.fixture
def other(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection to the same file."""
    connection = sqlite3.connect(file, isolation_level=None, timeout=0, check_same_thread=False)
    yield connection
    connection.close()


@pytest.fixture
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to any database: statements with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        seen.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def python(script: str, *arguments: str) -> tuple[str, str]:
    """Run a program with all warnings as errors; answer what it printed, and its errors."""
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    try:
        return program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)  # its children too
        program.communicate()
        raise


# The schema


async def test_without_create_a_store_makes_no_tables(opened: Open) -> None:
    with pytest.raises(StoreUnavailable, match="no such table"):
        await opened().get("k1")


async def test_with_create_the_first_read_makes_the_tables(opened: Open) -> None:
    assert await opened(create=True).get("k1") is None


async def test_with_create_the_first_write_makes_the_tables(opened: Open) -> None:
    store = opened(create=True)
    await store.add(record())
    assert await store.get("k1") == record()


@pytest.mark.parametrize("kind", [SQLKeyStore, AsyncSQLKeyStore])
def test_constructing_a_store_makes_no_file(kind: type, url: str, file: Path) -> None:
    kind(url, create=True)
    assert not file.exists()


async def test_create_schema_makes_the_tables(opened: Open) -> None:
    store = opened()
    await create_schema(store)
    assert await store.find() == await opened().find()


async def test_creating_the_schema_again_keeps_records_and_revisions(opened: Open) -> None:
    store = opened(create=True)
    await store.add(record())
    await store.swap(record(), changed(record()))
    before = await revision_of(store)
    await create_schema(store)
    again = opened(create=True)
    assert await again.get("k1") == changed(record())
    assert await again.changes(before) == Changes(before, frozenset())


async def test_a_store_that_has_made_its_tables_does_not_try_again(
    opened: Open, statements: list[tuple[str, Any]]
) -> None:
    store = opened(create=True)
    await store.get("k1")
    statements.clear()
    await store.get("k1")
    assert len(statements) == 1


async def test_making_the_schema_takes_the_write_lock_before_it_looks(
    opened: Open, statements: list[tuple[str, Any]]
) -> None:
    await create_schema(opened())
    sent = [statement for statement, _ in statements if not statement.startswith("PRAGMA")]
    assert sent[0] == "BEGIN IMMEDIATE"


async def test_a_file_made_anew_has_another_epoch(opened: Open, file: Path) -> None:
    store = opened(create=True)
    before = await revision_of(store)
    await close(store)
    for part in file.parent.iterdir():
        part.unlink()
    after = await opened(create=True).changes(before)
    assert after.revision.epoch != before.epoch
    assert after.ids is None


def test_eight_processes_may_create_the_schema_at_once(url: str) -> None:
    script = r"""if True:
        import os, sys
        from apikey_auth.stores.sql import SQLKeyStore
        waiting, start = os.pipe()
        for _ in range(8):
            if os.fork() == 0:
                os.close(start)
                os.read(waiting, 1)  # until the parent closes its end: all are let go at once
                store = SQLKeyStore(sys.argv[1], create=True)
                os.write(1, f"{store.changes(None).revision}\n".encode())  # in one piece
                os._exit(0)
        os.close(start)
        assert [os.wait()[1] for _ in range(8)] == [0] * 8
    """
    answer, errors = python(script, url)
    assert errors == ""
    revisions = answer.splitlines()
    assert len(revisions) == 8
    assert len(set(revisions)) == 1


# What is no database of ours


@pytest.mark.parametrize("kind", [SQLKeyStore, AsyncSQLKeyStore])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("sqlite://", "in-memory"),
        ("sqlite:///", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("sqlite+aiosqlite:///:memory:", "in-memory"),
        ("sqlite:///file:keys?mode=memory&cache=shared&uri=true", "in-memory"),
        ("sqlite:///file::memory:?uri=true", "in-memory"),
        ("sqlite:///file::memory:?cache=shared&uri=true", "in-memory"),
        ("oracle://user:hunter2@localhost/keys", "SQLite, PostgreSQL, MariaDB and MySQL"),
        (
            "mysql+aiomysql://user:hunter2@localhost/keys",
            r"mysql\+(pymysql|asyncmy) does.*Engine of your own",
        ),
        (
            "postgresql+pg8000://user:hunter2@localhost/keys",
            r"postgresql\+psycopg.* does.*Engine of your own",
        ),
        ("keys.db", "no database URL"),
        ("", "no database URL"),
        ("://", "no database URL"),
    ],
)
def test_a_url_that_will_not_do_is_a_configuration_error(kind: type, address: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        kind(address)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", [SQLKeyStore, AsyncSQLKeyStore])
@pytest.mark.parametrize("driver", ["sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"])
def test_a_store_takes_the_driver_of_its_own_colour(kind: type, driver: str) -> None:
    kind(f"{driver}:///keys.db")


async def test_a_url_may_be_an_object(opened: Open, file: Path) -> None:
    store = opened(sa.URL.create("sqlite", database=str(file)), create=True)
    assert await store.get("k1") is None


# Failures


async def failure(call: Awaitable[object]) -> StoreUnavailable:
    """Await what must fail; whatever is said about it anywhere must not tell a secret."""
    with pytest.raises(StoreUnavailable) as caught:
        await call
    assert isinstance(caught.value.__cause__, sa.exc.SQLAlchemyError)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value


def every_call(store: AsyncKeyStore) -> list[Awaitable[object]]:
    key = record(digest=SECRET)
    return [
        store.get("k1"),
        store.add(key),
        store.swap(key, changed(key)),
        store.revoke_all(SECRET, NOW, SECRET),
        store.find(owner=SECRET),
        store.count(owner=SECRET),
        store.purge(NOW),
        store.touch({SECRET: NOW}),
        store.changes(None),
    ]


async def test_missing_tables_are_store_unavailable_from_the_original_error(opened: Open) -> None:
    for call in every_call(opened()):
        assert "no such table" in str(await failure(call))


async def test_a_missing_folder_is_store_unavailable_from_the_original_error(opened: Open) -> None:
    for call in every_call(opened("sqlite:////nowhere/keys.db")):
        assert "unable to open database file" in str(await failure(call))


@pytest.fixture
def no_database(file: Path) -> None:
    file.write_bytes(b"this is no database, whatever its name says" * 100)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.usefixtures("no_database")
async def test_a_file_that_is_no_database_is_store_unavailable_from_the_original_error(
    opened: Open, create: bool
) -> None:
    for call in every_call(opened(create=create)):
        assert "not a database" in str(await failure(call))


async def test_an_emptied_state_table_is_store_unavailable(opened: Open, other: sqlite3.Connection) -> None:
    store = opened(create=True)
    await store.add(record())
    other.execute("DELETE FROM apikey_auth_state")
    for call in (
        store.changes(None),
        store.swap(record(), changed(record())),
        store.revoke_all(None, NOW, None),
    ):
        with pytest.raises(StoreUnavailable, match="create_schema"):
            await call
    assert await store.get("k1") == record()


async def test_a_duplicate_tells_no_secret_either(opened: Open) -> None:
    store = opened(create=True)
    await store.add(record(digest=SECRET))
    with pytest.raises(DuplicateKey) as caught:
        await store.add(record(digest=SECRET))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# Locks


async def test_a_write_behind_a_lock_gives_up_at_the_timeout(opened: Open, other: sqlite3.Connection) -> None:
    store = opened(create=True, timeout=0.2)
    await store.add(record())
    other.execute("BEGIN IMMEDIATE")
    key = record(digest=SECRET)
    for call in (
        store.add(record("k2", digest=SECRET)),
        store.swap(key, changed(key)),
        store.revoke_all(None, NOW, None),
        store.purge(NOW),
        store.touch({"k1": NOW}),
    ):
        start = monotonic()
        assert "locked" in str(await failure(call))
        assert 0.1 < monotonic() - start < 4


async def test_reads_go_on_behind_a_lock(opened: Open, other: sqlite3.Connection) -> None:
    store = opened(create=True, timeout=0.2)
    await store.add(record())
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE apikey_auth_keys SET name = 'not yet committed'")
    assert await store.get("k1") == record()
    assert await everything(store) == [record()]
    assert await store.count() == 1
    assert (await store.changes(None)).ids is None


async def test_a_store_recovers_when_a_lock_goes_away(opened: Open, other: sqlite3.Connection) -> None:
    store = opened(create=True, timeout=0.1)
    await store.add(record("k1"))
    other.execute("BEGIN IMMEDIATE")
    await failure(store.add(record("k2")))
    other.execute("COMMIT")
    await store.add(record("k2"))
    assert await store.count() == 2


async def test_a_write_waits_for_a_lock_that_goes_away_in_time(
    opened: Open, other: sqlite3.Connection
) -> None:
    store = opened(create=True, timeout=30)
    await store.add(record("k1"))
    other.execute("BEGIN IMMEDIATE")
    about_to_wait = Event()

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("BEGIN"):
            about_to_wait.set()

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(lambda: about_to_wait.wait(30) and other.execute("COMMIT"))
        await store.add(record("k2"))
    sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert released.result()
    assert await store.count() == 2


async def test_a_failed_write_leaves_no_lock_behind(opened: Open, other: sqlite3.Connection) -> None:
    store = opened(create=True)
    await add_all(store, record("k1"), record("k2"))
    with pytest.raises(DuplicateKey):
        await store.add(record("k1"))
    with pytest.raises(DuplicateKey):
        await store.swap(record("k1"), changed(record("k1")), successor=record("k2"))
    await store.swap(record("k1", version=5), record("k1", version=6))
    other.execute("BEGIN IMMEDIATE")


def test_when_all_connections_are_taken_a_call_gives_up_at_the_timeout(
    url: str, other: sqlite3.Connection
) -> None:
    store = SQLKeyStore(url, create=True, timeout=0.3)
    store.add(record())
    other.execute("BEGIN IMMEDIATE")

    def fail(n: int) -> str:
        start = monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            store.add(record(f"n{n}"))
        assert monotonic() - start < 20
        return str(caught.value)

    with ThreadPoolExecutor(40) as pool:
        said = set(pool.map(fail, range(40)))
    assert said == {
        f"the database {url[10:]} failed: database is locked",
        "others have been writing for 0.3 s",
    }
    other.execute("COMMIT")
    store.add(record("k2"))
    store.close()


def test_writers_that_wait_leave_readers_their_connections(url: str, other: sqlite3.Connection) -> None:
    store = SQLKeyStore(url, create=True, timeout=2)
    store.add(record())
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(40) as pool:
        writes = [pool.submit(store.add, record(f"n{n}")) for n in range(40)]
        assert store.get("k1") == record()
        assert not any(write.done() for write in writes), "the read came after the writers had given up"
        other.execute("COMMIT")
        for write in writes:
            write.result()
    store.close()


@pytest.mark.parametrize("kind", [SQLKeyStore, AsyncSQLKeyStore])
def test_a_driver_that_is_not_asked_for_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="sqlite\\+pysqlcipher"):
        kind("sqlite+pysqlcipher:///keys.db")


async def test_a_revision_beyond_any_counter_is_ahead_of_the_store(opened: Open) -> None:
    store = opened(create=True)
    now = await revision_of(store)
    assert (await store.changes(Revision(now.epoch, 2**63))).ids is None


async def test_when_all_connections_are_taken_a_task_gives_up_at_the_timeout(
    url: str, other: sqlite3.Connection
) -> None:
    store = AsyncSQLKeyStore(url, create=True, timeout=0.3)
    await store.add(record())
    other.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(*(store.add(record(f"n{n}")) for n in range(40)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert {type(answer.__cause__).__name__ for answer in answers if answer} == {
        "OperationalError",
        "TimeoutError",
    }
    other.execute("COMMIT")
    await store.add(record("k2"))
    await store.close()


async def test_a_cancelled_write_leaves_no_lock_and_no_connection_behind(
    url: str, other: sqlite3.Connection
) -> None:
    store = AsyncSQLKeyStore(url, create=True, timeout=2.0)
    await store.add(record())
    for n in range(16):  # more than there are connections
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.add(record(f"n{n}")))
        await asyncio.sleep(0.001)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        other.execute("COMMIT")
    await store.add(record("k2"))
    assert {"k1", "k2"} <= {key.id for key in await everything(store)}
    await store.close()


async def test_a_write_cancelled_in_the_middle_runs_to_its_end(url: str) -> None:
    """Half a transaction would keep the file locked until its cursor is collected as garbage."""
    store = AsyncSQLKeyStore(url, create=True)
    await store.add(record())
    loop, writing = asyncio.get_running_loop(), asyncio.create_task(store.revoke_all(None, NOW, None))

    def cancel(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("SELECT apikey_auth_state"):
            loop.call_soon(writing.cancel)

    sa.event.listen(sa.Engine, "before_cursor_execute", cancel)
    gc.disable()
    try:
        with pytest.raises(asyncio.CancelledError):
            await writing
        sa.event.remove(sa.Engine, "before_cursor_execute", cancel)
        other = AsyncSQLKeyStore(url, timeout=2)
        await other.add(record("k2"))
        assert await other.count(live_at=NOW) == 1
        await other.close()
    finally:
        gc.enable()
    await store.close()


# The file


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.add(record("k2")),
        lambda store: store.swap(record(), changed(record(), name="new")),
        lambda store: store.swap(record(), changed(record()), successor=record("k2")),
        lambda store: store.revoke_all(None, NOW, None),
        lambda store: store.purge(NOW + 400 * DAY),
        lambda store: store.touch({"k1": NOW}),
    ],
    ids=["add", "swap", "swap with successor", "revoke_all", "purge", "touch"],
)
async def test_a_change_is_in_the_file_when_the_method_returns(
    opened: Open, write: Callable[[AsyncKeyStore], Awaitable[object]]
) -> None:
    one, another = opened(create=True), opened()
    await one.add(record(expires_at=NOW + DAY))
    before = await everything(another)
    await write(one)
    after = await everything(another)
    assert after == await everything(one)
    assert after != before


async def test_the_file_is_in_wal_mode(opened: Open, other: sqlite3.Connection) -> None:
    await opened(create=True).get("k1")
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_file_made_by_others_is_put_into_wal_mode(opened: Open, other: sqlite3.Connection) -> None:
    other.execute("PRAGMA journal_mode=DELETE")
    other.execute("CREATE TABLE theirs (id INTEGER)")
    await opened(create=True).get("k1")
    other.execute("SELECT * FROM theirs")  # which is when a connection looks
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_commit_waits_for_the_disk(url: str) -> None:
    levels = []

    def note(_: Any, cursor: sqlite3.Cursor, *__: Any) -> None:
        levels.append(cursor.connection.execute("PRAGMA synchronous").fetchone()[0])

    store = SQLKeyStore(url, create=True)
    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    store.add(record())
    sa.event.remove(sa.Engine, "before_cursor_execute", note)
    store.close()
    assert set(levels) == {2}  # FULL: less may lose a commit with the power, in WAL mode


async def test_a_closed_store_can_be_used_again(opened: Open) -> None:
    store = opened(create=True)
    await store.add(record())
    await close(store)
    assert await store.get("k1") == record()


async def test_a_closed_store_leaves_its_file_alone(opened: Open, file: Path) -> None:
    store = opened(create=True)
    await store.add(record())
    await close(store)
    assert [part.name for part in file.parent.iterdir()] == [file.name]  # no log, no shared memory


def test_an_async_store_can_be_used_in_one_event_loop_after_another(url: str) -> None:
    store = AsyncSQLKeyStore(url, create=True)

    async def add(key_id: str) -> None:
        await store.add(record(key_id))

    asyncio.run(add("k1"))
    asyncio.run(add("k2"))
    assert asyncio.run(store.count()) == 2
    asyncio.run(store.close())


# Processes


def test_a_forked_child_and_its_parent_both_go_on(url: str) -> None:
    script = r"""if True:
        import os, sys
        from apikey_auth import APIKey
        from apikey_auth.stores.sql import SQLKeyStore
        store = SQLKeyStore(sys.argv[1], create=True)
        def add(key_id):
            store.add(APIKey(id=key_id, owner="User1", digest="sha256$$00"))
        add("before")
        children = []
        for n in range(4):
            child = os.fork()
            if child == 0:
                assert store.get("before") is not None
                for m in range(20):
                    add(f"child {n} {m}")
                os._exit(0)
            children.append(child)
        for m in range(20):
            add(f"parent {m}")
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        print(store.count())
        store.close()
    """
    answer, errors = python(script, url)
    assert (answer, errors) == ("101\n", "")


@pytest.mark.parametrize("kind", ["SQLKeyStore", "AsyncSQLKeyStore"])
def test_what_a_child_writes_is_kept_when_its_parent_closes_the_file(url: str, kind: str) -> None:
    script = """if True:
        import asyncio, os, sys
        from apikey_auth import APIKey
        from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
        store = KIND(sys.argv[1], create=True)
        async def done(call):
            return await call if asyncio.iscoroutine(call) else call
        def run(name, *args):
            async def call():
                return await done(getattr(store, name)(*args))
            return asyncio.run(call())
        def add(key_id):
            run("add", APIKey(id=key_id, owner="User1", digest="sha256$$00"))
        add("before")
        is_open, closed = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            add("child")
            os.write(is_open[1], b"x")
            os.read(closed[0], 1)
            add("later")
            os._exit(0)
        os.read(is_open[0], 1)
        run("close")
        add("parent")
        os.write(closed[1], b"x")
        assert os.waitpid(child, 0)[1] == 0
        print(*(key.id for key in run("find").items))
        run("close")
    """.replace("KIND", kind)
    assert python(script, url) == ("before child later parent\n", "")


def test_a_forked_child_and_its_parent_open_connections_of_their_own(url: str) -> None:
    script = r"""if True:
        import os, sys
        import sqlalchemy as sa
        from apikey_auth.stores.sql import SQLKeyStore
        store = SQLKeyStore(sys.argv[1], create=True)
        store.get("k1")
        opened = []
        sa.event.listen(sa.Engine, "connect", lambda *_: opened.append(os.getpid()))
        if os.fork() == 0:
            store.get("k1")
            os._exit(0 if opened == [os.getpid()] else 1)
        print(os.wait()[1])
        store.get("k1")
        print(opened == [os.getpid()])
        store.close()
    """
    assert python(script, url) == ("0\nTrue\n", "")


def test_a_forked_child_and_its_parent_both_go_on_with_an_async_store(url: str) -> None:
    script = """if True:
        import asyncio, os, sys
        from apikey_auth import APIKey
        from apikey_auth.stores.sql import AsyncSQLKeyStore
        store = AsyncSQLKeyStore(sys.argv[1], create=True)
        async def add(key_id):
            await store.add(APIKey(id=key_id, owner="User1", digest="sha256$$00"))
        asyncio.run(add("before"))
        child = os.fork()
        if child == 0:
            asyncio.run(add("child"))
            os._exit(0)
        asyncio.run(add("parent"))
        assert os.waitpid(child, 0)[1] == 0
        print(asyncio.run(store.count()))
        asyncio.run(store.close())
    """
    answer, errors = python(script, url)
    assert (answer, errors) == ("3\n", "")


# Query plans, and how many statements


def plans(other: sqlite3.Connection, statements: list[tuple[str, Any]]) -> str:
    """Tell how SQLite goes about the statements that were sent."""
    lines = []
    for statement, parameters in statements:
        if re.match("SELECT|UPDATE|DELETE", statement):
            given = parameters[0] if isinstance(parameters, list) else parameters
            lines += [row[3] for row in other.execute(f"EXPLAIN QUERY PLAN {statement}", given)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("call", "index"),
    [
        (lambda store, _: store.get("k1"), "PRIMARY KEY (id=?)"),
        (lambda store, _: store.find(owner="User1"), "INDEX apikey_auth_keys_owner (owner=?)"),
        (
            lambda store, _: store.find(owner="User1", live_at=NOW, after="k1"),
            "INDEX apikey_auth_keys_owner (owner=? AND id>?)",
        ),
        (lambda store, _: store.find(after="k1"), "PRIMARY KEY (id>?)"),
        (lambda store, _: store.count(owner="User1"), "INDEX apikey_auth_keys_owner (owner=?)"),
        (lambda store, since: store.changes(since), "INDEX apikey_auth_keys_revision (revision>?)"),
        (lambda store, _: store.swap(record(), changed(record())), "PRIMARY KEY (id=?)"),
        (lambda store, _: store.touch({"k1": NOW}), "PRIMARY KEY (id=?)"),
        (
            lambda store, _: store.revoke_all("User1", NOW, None),
            "INDEX apikey_auth_keys_owner (owner=?)",
        ),
    ],
    ids=[
        "get",
        "find by owner",
        "the next page of an owner",
        "the next page",
        "count by owner",
        "changes",
        "swap",
        "touch",
        "revoke_all by owner",
    ],
)
async def test_a_query_takes_an_index_and_scans_no_keys(
    opened: Open,
    other: sqlite3.Connection,
    statements: list[tuple[str, Any]],
    call: Callable[[AsyncKeyStore, object], Awaitable[object]],
    index: str,
) -> None:
    store = opened(create=True)
    await store.add(record())
    since = await revision_of(store)
    statements.clear()
    await call(store, since)
    plan = plans(other, statements)
    assert index in plan
    assert "SCAN apikey_auth_keys" not in plan
    assert "TEMP B-TREE" not in plan


async def test_the_first_page_of_everything_is_not_sorted(
    opened: Open, other: sqlite3.Connection, statements: list[tuple[str, Any]]
) -> None:
    store = opened(create=True)
    await store.add(record())
    statements.clear()
    await store.find(live_at=NOW)
    assert "TEMP B-TREE" not in plans(other, statements)


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.get("k1"),
        lambda store: store.find(owner="User1", live_at=NOW, after="a"),
        lambda store: store.count(live_at=NOW),
        lambda store: store.changes(None),
    ],
    ids=["get", "find", "count", "changes"],
)
async def test_a_read_is_one_statement_outside_any_transaction(
    opened: Open,
    statements: list[tuple[str, Any]],
    read: Callable[[AsyncKeyStore], Awaitable[object]],
) -> None:
    store = opened(create=True)
    await store.add(record())
    statements.clear()
    await read(store)
    assert [statement.split()[0] for statement, _ in statements] == ["SELECT"]


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.revoke_all("User1", NOW, None),
        lambda store: store.touch({f"k{n}": NOW for n in range(50)}),
        lambda store: store.purge(NOW),
    ],
    ids=["revoke_all", "touch", "purge"],
)
async def test_a_change_of_many_records_takes_as_many_statements_as_of_one(
    opened: Open,
    statements: list[tuple[str, Any]],
    write: Callable[[AsyncKeyStore], Awaitable[object]],
) -> None:
    store = opened(create=True)
    await add_all(store, *(record(f"k{n}", expires_at=NOW - DAY) for n in range(50)))
    statements.clear()
    await write(store)
    sent = [statement.split()[0] for statement, _ in statements if not statement.startswith("PRAGMA")]
    assert sent.count("BEGIN") == 1
    assert len(sent) <= 7


# Turns


def test_many_threads_that_write_all_get_their_turn(made_url: str) -> None:
    store = SQLKeyStore(made_url, timeout=1.0)
    keys = [[record(f"k{thread}-{n}") for n in range(400)] for thread in range(8)]

    def add(own: list[APIKey]) -> None:
        for key in own:
            store.add(key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, keys))
    assert store.count() == 8 * 400
    store.close()


def test_a_turn_that_does_not_come_in_time_is_given_up_and_nobody_elses() -> None:
    turns = Turns()
    with turns.taken(0):
        with pytest.raises(StoreUnavailable, match="others have been writing"):
            with turns.taken(0.01):
                raise AssertionError("two at once")
    with turns.taken(0):
        pass


def test_turns_come_in_the_order_of_those_who_wait() -> None:
    turns, order = Turns(), list[int]()

    def take(number: int) -> None:
        with turns.taken(30):
            order.append(number)

    with ThreadPoolExecutor(5) as pool:
        with turns.taken(0):
            waiting = []
            for number in range(5):
                waiting.append(pool.submit(take, number))
                while len(turns._waiting) <= number:
                    pass
        for each in waiting:
            each.result()
    assert order == list(range(5))


@pytest.mark.parametrize("owner", ["\udcff", "a\0b"])
async def test_an_owner_that_no_record_can_have_has_none(opened: Open, owner: str) -> None:
    store = opened(create=True)
    await store.add(record())
    assert (await store.find(owner=owner)).items == ()
    assert await store.count(owner=owner) == 0
    assert await store.revoke_all(owner, NOW, None) == 0
