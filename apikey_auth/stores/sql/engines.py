"""The engines of a store: an application's own, or made from a URL with a deadline for every wait."""

from collections.abc import Callable
from math import ceil
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ...errors import ConfigurationError

_DATABASES = ("sqlite", "postgresql", "mysql", "mariadb")
_KINDS = "SQLite, PostgreSQL, MariaDB and MySQL"
_DRIVERS = {  # of each database, blocking and for asyncio, the one first that a URL without any gets
    "sqlite": (("pysqlite",), ("aiosqlite",)),
    "postgresql": (("psycopg",), ("psycopg", "asyncpg")),
    "mysql": (("pymysql",), ("asyncmy",)),
}
_PACKAGES = {
    "aiosqlite": "apikey_auth[sql]",
    "psycopg": "psycopg[binary]",
}  # where it is not the driver's name

_READERS = {"pool_size": 5, "max_overflow": 5}
_WRITERS = {"pool_size": 5, "max_overflow": 0}
# SQLite has one writer at a time anyway, and whoever waits must not take the connections of readers.
_SQLITE_WRITERS = {"pool_size": 1, "max_overflow": 0}


def checked_engine(engine: sa.Engine | AsyncEngine, *, asynchronous: bool) -> sa.Engine:
    """Take an application's engine. Raises ConfigurationError for the wrong colour or database."""
    if isinstance(engine, AsyncEngine) != asynchronous:
        kind = "AsyncSQLKeyStore takes an AsyncEngine" if asynchronous else "SQLKeyStore takes an Engine"
        raise ConfigurationError(f"{kind}, not an {type(engine).__name__}")
    blocking = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if blocking.dialect.name not in _DATABASES:
        raise ConfigurationError(f"the SQL store is for {_KINDS}, not for {blocking.dialect.name}")
    if isinstance(blocking.pool, sa.StaticPool | sa.SingletonThreadPool):
        raise ConfigurationError(
            "this engine gives all of a thread one connection, and the store would end the application's "
            "transactions there; in tests use a file with the default pool, or MemoryKeyStore()"
        )
    return blocking


def checked_url(url: str | sa.URL, *, asynchronous: bool) -> sa.URL:
    """Give a URL with its driver. Raises ConfigurationError for one that will not do."""
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):  # which repeats the port, a password where the host is left out
        raise ConfigurationError("this is no database URL, such as sqlite:///keys.db") from None
    database, _, driver = parsed.drivername.partition("+")
    if database not in _DATABASES:
        raise ConfigurationError(f"the SQL store is for {_KINDS}, not for {parsed.drivername!r}")
    database = "mysql" if database == "mariadb" else database
    blocking, asyncio = _DRIVERS[database]
    known = asyncio if asynchronous else blocking
    if database == "sqlite" and driver in ("", *blocking, *asyncio):
        driver = known[0]
    if driver not in ("", *known):
        raise ConfigurationError(
            f"{parsed.drivername!r} will not do here, {' or '.join(f'{database}+{each}' for each in known)} does; "
            f"with another driver, give an {'AsyncEngine' if asynchronous else 'Engine'} of your own"
        )
    if database == "sqlite":
        _check_file(parsed)
    return parsed.set(drivername=f"{database}+{driver or known[0]}")


def engines_of(url: sa.URL, *, asynchronous: bool, timeout: float) -> tuple[sa.Engine, sa.Engine]:
    """Make the engine for single statements, and the one for transactions that write."""
    options: dict[str, Any] = {
        "pool_timeout": timeout,
        "hide_parameters": True,
        "connect_args": _connect_args(url, timeout),
    }
    sqlite = url.get_backend_name() == "sqlite"
    writing = _SQLITE_WRITERS if sqlite else _WRITERS
    level = "AUTOCOMMIT" if sqlite else "READ COMMITTED"
    driver = url.get_driver_name()
    make = _async_engine if asynchronous else sa.create_engine
    try:
        engines = (
            make(url, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **_READERS, **options),
            make(url, isolation_level=level, **writing, **options),
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{url.drivername} needs its driver: pip install '{_PACKAGES.get(driver, driver)}'"
        ) from error
    for engine in engines:
        if sqlite:
            event.listen(engine, "connect", _use_wal)
        elif driver == "psycopg":
            _give_deadlines(engine, timeout)
        elif url.get_backend_name() == "mysql":
            event.listen(engine, "connect", _wait_for_locks(timeout))
    return engines


def _give_deadlines(engine: sa.Engine, timeout: float) -> None:
    from . import psycopg  # where it is installed, and not before

    def connect(dialect: sa.Dialect, _: object, args: Any, kwargs: dict[str, Any]) -> Any:
        if dialect.is_async:
            return dialect.loaded_dbapi.connect(
                *args, async_creator_fn=psycopg.async_connector(timeout), **kwargs
            )
        return psycopg.connector(timeout)(*args, **kwargs)

    event.listen(engine, "do_connect", connect)


def _async_engine(url: sa.URL, **options: Any) -> sa.Engine:
    return create_async_engine(url, **options).sync_engine


def _connect_args(url: sa.URL, timeout: float) -> dict[str, Any]:
    """Give each driver its deadlines, for connecting and for an answer; what the URL says comes before them."""
    driver, milliseconds = url.get_driver_name(), ceil(timeout * 1000)
    if driver == "psycopg":
        options = f"-c statement_timeout={milliseconds} {url.query.get('options', '')}".strip()
        args: dict[str, Any] = {"connect_timeout": ceil(timeout), "options": options}
        return {name: value for name, value in args.items() if name == "options" or name not in url.query}
    if driver == "asyncpg":
        settings = {"statement_timeout": str(milliseconds)}
        return {"timeout": timeout, "command_timeout": timeout, "server_settings": settings}
    if driver in ("pymysql", "asyncmy"):
        waits = {"read_timeout": timeout, "write_timeout": timeout} if driver == "pymysql" else {}
        args = {"connect_timeout": timeout, **waits}
        return {name: value for name, value in args.items() if name not in url.query}
    return {"timeout": timeout}


def _wait_for_locks(timeout: float) -> Callable[[Any, object], None]:
    """Make what tells MySQL how long a statement may wait for another's lock."""

    def connected(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET SESSION innodb_lock_wait_timeout={ceil(timeout)}")
        cursor.close()

    return connected


def _use_wal(connection: Any, _: object) -> None:
    """Put a SQLite file into WAL mode, in which readers never wait for a writer."""
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
    except Exception as error:
        # SQLite does not wait for this lock. Whoever holds it is switching, or the next one here will.
        if "locked" not in str(error):
            raise
    cursor.close()


def _check_file(url: sa.URL) -> None:
    if url.host:
        raise ConfigurationError(f"{url} has two slashes; a file takes three, sqlite:///keys.db, or four")
    if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
        raise ConfigurationError(
            "an in-memory SQLite database is one connection's own; use a file, or MemoryKeyStore()"
        )
