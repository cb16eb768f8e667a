"""Where the SQL store's connections come from: URLs, an application's own engines, event loops."""

import asyncio
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from apikey_auth import (
    Authenticator,
    ConfigurationError,
    DuplicateKey,
    KeyManager,
    MemoryKeyStore,
    StoreUnavailable,
)
from apikey_auth.decisions import changed
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.stores.sql.engines import checked_url
from apikey_auth.testing.records import NOW, record


@pytest.fixture
def engine(made_url: str) -> Iterator[sa.Engine]:
    """The application's own engine, with a table of its own."""
    engine = sa.create_engine(made_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "blocking", "asynchronous"),
    [
        ("sqlite:///keys.db", "sqlite+pysqlite", "sqlite+aiosqlite"),
        ("postgresql://host/keys", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg://host/keys", "postgresql+psycopg", "postgresql+psycopg"),
        ("mysql://host/keys", "mysql+pymysql", "mysql+asyncmy"),
        ("mariadb://host/keys", "mysql+pymysql", "mysql+asyncmy"),
    ],
)
def test_a_url_without_a_driver_gets_the_one_of_its_colour(
    url: str, blocking: str, asynchronous: str
) -> None:
    assert checked_url(url, asynchronous=False).drivername == blocking
    assert checked_url(url, asynchronous=True).drivername == asynchronous


@pytest.mark.parametrize(
    ("url", "asynchronous", "said"),
    [
        ("postgresql+asyncpg://host/keys", False, "postgresql\\+psycopg does"),
        ("mysql+asyncmy://host/keys", False, "mysql\\+pymysql does"),
        ("mysql+pymysql://host/keys", True, "mysql\\+asyncmy does"),
        ("mariadb+pymysql://host/keys", True, "mysql\\+asyncmy does"),
    ],
)
def test_a_driver_of_the_other_colour_is_refused_with_one_that_will_do(
    url: str, asynchronous: bool, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        checked_url(url, asynchronous=asynchronous)


@pytest.mark.parametrize(
    ("url", "driver", "command"),
    [
        ("postgresql://host/keys", "psycopg", "pip install 'psycopg\\[binary\\]'"),
        ("postgresql+asyncpg://host/keys", "asyncpg", "pip install 'asyncpg'"),
        ("mysql://host/keys", "asyncmy", "pip install 'asyncmy'"),
        ("sqlite:///keys.db", "aiosqlite", "pip install 'apikey_auth\\[sql\\]'"),
    ],
)
def test_a_missing_driver_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, url: str, driver: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigurationError, match=command):
        AsyncSQLKeyStore(url)


def test_a_store_on_an_engine_reads_and_writes_where_the_application_does(engine: sa.Engine) -> None:
    store = SQLKeyStore(engine)
    store.add(record())
    assert store.swap(record(), changed(record(), name="new"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT name FROM apikey_auth_keys").all() == [("new",)]


def test_closing_a_store_leaves_the_applications_engine_open(engine: sa.Engine) -> None:
    with engine.connect():
        pass
    store = SQLKeyStore(engine)
    store.get("k1")
    kept = engine.pool.checkedin()  # type: ignore[attr-defined]
    store.close()
    assert kept > 0
    assert engine.pool.checkedin() == kept  # type: ignore[attr-defined]


def test_a_store_leaves_the_applications_connections_as_it_found_them(engine: sa.Engine) -> None:
    store = SQLKeyStore(engine)
    store.add(record())
    store.get("k1")
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
        connection.rollback()
        assert connection.exec_driver_sql("SELECT * FROM orders").all() == []
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 5000


def test_a_failed_write_leaves_no_transaction_open_on_the_applications_connection(
    engine: sa.Engine, made_url: str
) -> None:
    store = SQLKeyStore(engine)
    store.add(record())
    assert not store.swap(record(version=5), record(version=6))
    other = SQLKeyStore(made_url, timeout=0.5)
    other.revoke_all(None, NOW, None)  # would find the file locked
    other.close()


@pytest.mark.parametrize("open_transaction", [sa.Engine.connect, Session])
def test_a_key_is_rolled_back_with_the_transaction_in_which_it_was_issued(
    engine: sa.Engine, open_transaction
) -> None:
    keys = KeyManager(SQLKeyStore(engine))
    with open_transaction(engine) as connection:
        keys.issue("ada", connection=connection)
        connection.rollback()
    assert keys.list("ada") == []
    with open_transaction(engine) as connection:
        issued = keys.issue("ada", connection=connection)
        connection.commit()
    assert keys.list("ada") == [issued.key]


@pytest.mark.parametrize("session", [False, True])
async def test_an_async_key_is_rolled_back_with_the_transaction_in_which_it_was_issued(
    made_url: str, session: bool
) -> None:
    engine = create_async_engine(made_url.replace("sqlite:", "sqlite+aiosqlite:"))
    store = AsyncSQLKeyStore(engine)
    for end in ("rollback", "commit"):
        async with AsyncSession(engine) if session else engine.connect() as connection:
            await store.add(record(), connection=connection)
            await getattr(connection, end)()
        assert (await store.get("k1") is None) is (end == "rollback")
    await engine.dispose()


MANAGERS = [KeyManager, lambda store: Authenticator(store).keys]


@pytest.mark.parametrize("manager", MANAGERS)
def test_what_is_no_connection_is_refused(engine: sa.Engine, manager) -> None:
    with pytest.raises(ConfigurationError, match="Connection or a Session, not Engine"):
        manager(SQLKeyStore(engine)).issue("ada", connection=engine)


async def test_a_connection_of_the_other_colour_is_refused(made_url: str, engine: sa.Engine) -> None:
    store = AsyncSQLKeyStore(made_url)
    with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="AsyncConnection or AsyncSession, not Connection"):
            await store.add(record(), connection=connection)  # type: ignore[arg-type]


@pytest.mark.parametrize("manager", MANAGERS)
def test_a_store_that_takes_no_connection_says_so(manager) -> None:
    with pytest.raises(ConfigurationError, match="MemoryKeyStore takes no connection"):
        manager(MemoryKeyStore()).issue("ada", connection=object())


def test_the_keys_of_an_authenticator_take_a_connection_too(engine: sa.Engine) -> None:
    auth = Authenticator(SQLKeyStore(engine))
    with engine.connect() as connection:
        auth.keys.issue("ada", connection=connection)
        connection.rollback()
    assert auth.keys.list("ada") == []


async def test_an_engine_of_the_other_colour_is_refused(made_url: str, engine: sa.Engine) -> None:
    with pytest.raises(ConfigurationError, match="AsyncSQLKeyStore takes an AsyncEngine, not an Engine"):
        AsyncSQLKeyStore(engine)  # type: ignore[arg-type]
    other = create_async_engine(made_url.replace("sqlite:", "sqlite+aiosqlite:"))
    with pytest.raises(ConfigurationError, match="SQLKeyStore takes an Engine, not an AsyncEngine"):
        SQLKeyStore(other)  # type: ignore[arg-type]
    await other.dispose()


def test_a_url_without_a_host_leaves_its_password_out_of_the_traceback() -> None:
    with pytest.raises(ConfigurationError, match="no database URL") as caught:
        SQLKeyStore("postgresql://ada:s3cret")
    told = "".join(traceback.format_exception(caught.value))
    assert "invalid literal" not in told


async def test_what_asyncpg_raises_past_sqlalchemy_as_it_connects_is_unavailable() -> None:
    store = AsyncSQLKeyStore("postgresql+asyncpg://host/keys")

    def connect(*_: object) -> None:
        raise asyncpg.InvalidPasswordError("password authentication failed")

    for engine in (store._database._reading, store._database._writing):
        sa.event.listen(engine, "do_connect", connect)
    for call in (store.get("k1"), store.add(record())):
        with pytest.raises(StoreUnavailable, match="keys failed: password authentication failed"):
            await call


def test_a_store_on_a_server_serves_one_event_loop_at_a_time(postgresql_url: str) -> None:
    store = AsyncSQLKeyStore(postgresql_url, create=True)

    async def use() -> None:
        await store.get("k1")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    with pytest.raises(ConfigurationError, match="another event loop"):
        asyncio.run(use())
    loop.run_until_complete(store.close())
    loop.close()

    async def use_and_close() -> None:
        await store.get("k1")
        await store.close()

    asyncio.run(use_and_close())  # the other one is gone


def with_begin(file: Path) -> sa.Engine:
    """Begin each transaction as SQLAlchemy's documentation has it for SQLite, so that savepoints work."""
    engine = sa.create_engine(f"sqlite:///{file}")

    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None

    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", begun)
    return engine


def without_autocommit(file: Path) -> sa.Engine:
    """Let Python begin each transaction (PEP 249)."""
    return sa.create_engine(f"sqlite:///{file}", connect_args={"autocommit": False})


@pytest.mark.parametrize(
    "make", [with_begin, without_autocommit] if sys.version_info >= (3, 12) else [with_begin]
)
def test_an_engine_that_begins_transactions_by_itself_will_do(
    make: Callable[[Path], sa.Engine], file: Path
) -> None:
    engine = make(file)
    store = SQLKeyStore(engine, create=True)
    store.add(record())
    assert store.swap(record(), changed(record(), name="new"))
    with engine.begin() as connection:
        store.add(record("k2"), connection=connection)
    with pytest.raises(DuplicateKey):
        store.add(record("k2"))
    assert [key.name for key in SQLKeyStore(engine).find().items] == ["new", record().name]
    with sqlite3.connect(file) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            SQLKeyStore(engine, timeout=0.05).add(record("k3"))
    writer.close()
    store.add(record("k3"))
    engine.dispose()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 brought autocommit=")
def test_an_engine_that_makes_nothing_of_a_commit_is_refused(file: Path) -> None:
    made = SQLKeyStore(f"sqlite:///{file}", create=True)
    made.add(record())
    engine = sa.create_engine(f"sqlite:///{file}", connect_args={"autocommit": True})
    with pytest.raises(ConfigurationError, match="autocommit=True"):
        SQLKeyStore(engine).revoke_all(None, NOW, None)
    made.add(record("k2"))  # nobody holds the file
    made.close()
    engine.dispose()


def test_a_file_serves_any_number_of_event_loops(file: Path) -> None:
    store = AsyncSQLKeyStore(f"sqlite:///{file}", create=True)

    async def use() -> None:
        await store.get("k1")
        await store.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    asyncio.run(use())
    loop.close()


@pytest.mark.parametrize("pool", [sa.StaticPool, sa.SingletonThreadPool])
def test_an_engine_that_gives_everybody_one_connection_is_refused(made_url: str, pool: type[sa.Pool]) -> None:
    engine = sa.create_engine(made_url, poolclass=pool)
    with pytest.raises(ConfigurationError, match="one connection"):
        SQLKeyStore(engine)
    engine.dispose()


async def test_an_engine_of_a_database_in_memory_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigurationError, match="one connection"):
        AsyncSQLKeyStore(engine)
    await engine.dispose()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), None, "5"])
@pytest.mark.parametrize("kind", [SQLKeyStore, AsyncSQLKeyStore])
def test_a_timeout_is_a_number_of_seconds(kind: type, timeout: object, made_url: str) -> None:
    with pytest.raises(ConfigurationError, match="timeout is a number of seconds"):
        kind(made_url, timeout=timeout)


@pytest.mark.parametrize("driver", ["psycopg", "async psycopg"])
async def test_what_a_url_says_of_postgresql_counts(driver: str, postgresql_database: str) -> None:
    url = sa.make_url(postgresql_database).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA auth")
    address = url.update_query_dict({"options": "-csearch_path=auth"})
    if driver == "psycopg":
        store = SQLKeyStore(address, create=True)
        store.add(record())
        store.close()
    else:
        async_store = AsyncSQLKeyStore(address, create=True)
        await async_store.add(record())
        await async_store.close()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM auth.apikey_auth_keys").all() == [("k1",)]
    engine.dispose()


def test_what_a_url_says_of_mariadb_counts(mariadb_database: str) -> None:
    url = sa.make_url(mariadb_database).set(drivername="mysql+pymysql")
    address = url.update_query_dict({"init_command": "SET SESSION sql_mode='ANSI_QUOTES'"})
    store = SQLKeyStore(address, create=True, timeout=7)
    store.add(record())
    with store._database._writing.connect() as connection:
        told = connection.exec_driver_sql("SELECT @@sql_mode, @@innodb_lock_wait_timeout").one()
    assert tuple(told) == ("ANSI_QUOTES", 7)
    store.close()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_row_that_postgresql_refuses_is_in_no_error_and_in_no_cause_of_it(
    driver: str, postgresql_database: str
) -> None:
    url = sa.make_url(postgresql_database).set(drivername="postgresql+psycopg")
    store = SQLKeyStore(url)
    store.create_schema()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE apikey_auth_keys ADD CHECK (owner <> 'nobody')")
    engine.dispose()
    refused = record(owner="nobody", digest="sha256$$" + "ab" * 32)
    async_store = AsyncSQLKeyStore(url.set(drivername="postgresql+asyncpg"))
    with pytest.raises(StoreUnavailable, match="violates check constraint") as caught:
        _ = store.add(refused) if driver == "psycopg" else await async_store.add(refused)  # type: ignore[func-returns-value]
    await async_store.close()
    store.close()
    assert "abab" not in "".join(traceback.format_exception(caught.value))


def test_a_duplicate_in_the_applications_transaction_leaves_it_usable(postgresql_database: str) -> None:
    engine = sa.create_engine(sa.make_url(postgresql_database).set(drivername="postgresql+psycopg"))
    store = SQLKeyStore(engine, create=True)
    store.add(record())
    with engine.begin() as connection:
        with pytest.raises(DuplicateKey):
            store.add(record(), connection=connection)
        store.add(record("k2"), connection=connection)
    assert store.count() == 2
    engine.dispose()


def test_an_engine_may_have_its_tables_in_a_schema(postgresql_database: str) -> None:
    engine = sa.create_engine(
        sa.make_url(postgresql_database).set(drivername="postgresql+psycopg"),
        execution_options={"schema_translate_map": {None: "auth"}},
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA auth")
    for n in range(2):
        SQLKeyStore(engine, create=True).add(record(f"k{n}"))
        SQLKeyStore(engine).upgrade_schema()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM auth.apikey_auth_keys").scalar_one() == 2
    engine.dispose()


def test_a_commit_that_fails_is_told_as_it_is(made_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLKeyStore(made_url)
    store.add(record())

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store._database._writing.dialect, "do_commit", fail)
    with pytest.raises(StoreUnavailable, match="disk is full"):
        store.add(record("k2"))
    monkeypatch.undo()
    assert store.get("k2") is None
    store.add(record("k3"))
    store.close()


def test_characters_that_a_connection_cannot_carry_are_an_unavailable_store(postgresql_database: str) -> None:
    url = sa.make_url(postgresql_database).set(drivername="postgresql+psycopg")
    store = SQLKeyStore(url.update_query_dict({"client_encoding": "latin1"}), create=True)
    with pytest.raises(StoreUnavailable):
        store.add(record(name="🔑"))
    store.close()
