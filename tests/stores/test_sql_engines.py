"""Where the SQL store's connections come from: URLs, an application's own engines, event loops."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from apikey_auth import Authenticator, ConfigurationError, KeyManager, MemoryKeyStore
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


def test_what_is_no_connection_is_refused(engine: sa.Engine) -> None:
    keys = KeyManager(SQLKeyStore(engine))
    with pytest.raises(TypeError, match="Connection or a Session, not Engine"):
        keys.issue("ada", connection=engine)


async def test_a_connection_of_the_other_colour_is_refused(made_url: str, engine: sa.Engine) -> None:
    store = AsyncSQLKeyStore(made_url)
    with engine.connect() as connection:
        with pytest.raises(TypeError, match="AsyncConnection or AsyncSession, not Connection"):
            await store.add(record(), connection=connection)  # type: ignore[arg-type]


@pytest.mark.parametrize("manager", [KeyManager, lambda store: Authenticator(store).keys])
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


def test_a_file_serves_any_number_of_event_loops(file: Path) -> None:
    store = AsyncSQLKeyStore(f"sqlite:///{file}", create=True)

    async def use() -> None:
        await store.get("k1")
        await store.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    asyncio.run(use())
    loop.close()
