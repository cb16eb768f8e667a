"""The two stores. Each method is one operation on the database; both classes say the same."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from time import sleep
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from ...errors import ConfigurationError, StoreUnavailable
from ...keys import APIKey, is_storable
from ..protocol import Changes, Page, Revision, check_swap
from . import operations
from .database import Database

P = ParamSpec("P")
T = TypeVar("T")


def _sleep(seconds: float) -> None:
    sleep(seconds)


def _async_sleep(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))  # the way out of SQLAlchemy's greenlet to the event loop


def _run(database: Database, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call; the driver has its deadlines."""
    return work(*args, **kwargs)


async def _async_run(database: Database, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call, and wait for it until its deadline.

    It runs to its end when its caller is cancelled: half a transaction would keep others waiting.
    """
    database.enter_loop(asyncio.get_running_loop())
    task = asyncio.ensure_future(greenlet_spawn(partial(work, *args, **kwargs)))
    task.add_done_callback(_note)
    limit = database.timeout if database.is_remote else None
    done, _ = await asyncio.wait([task], timeout=limit)
    if not done:
        # The driver's own deadline ends it in a moment. This one is for a driver that has none.
        ending = asyncio.get_running_loop().call_later(1, task.cancel)
        task.add_done_callback(lambda _: ending.cancel())
        database.given_up.add(task)
        task.add_done_callback(database.given_up.discard)
        raise StoreUnavailable(f"the database did not answer within {database.timeout:g} s")
    return task.result()


def _note(task: "asyncio.Task[T]") -> None:
    """Take notice of how a call ended that nobody may be waiting for any more."""
    if not task.cancelled():
        task.exception()


def _close(database: Database) -> None:
    """Close the connections that are not in use."""
    database.dispose()


async def _async_close(database: Database) -> None:
    """Close the connections that are not in use, and those of calls that nobody waits for any more."""
    for task in tuple(database.given_up):
        task.cancel()
        await asyncio.wait([task])
    await greenlet_spawn(database.dispose)


def _join(database: Database, connection: sa.Connection | Session, key: APIKey) -> None:
    """Add a key in the application's transaction."""
    if not isinstance(connection, sa.Connection | Session):
        raise ConfigurationError(f"connection is a Connection or a Session, not {type(connection).__name__}")
    database.join(operations.add, connection, key)


async def _async_join(database: Database, connection: AsyncConnection | AsyncSession, key: APIKey) -> None:
    """Add a key in the application's transaction."""
    if not isinstance(connection, AsyncConnection | AsyncSession):
        raise ConfigurationError(
            f"connection is an AsyncConnection or AsyncSession, not {type(connection).__name__}"
        )
    inner = connection.sync_session if isinstance(connection, AsyncSession) else connection.sync_connection
    await greenlet_spawn(database.join, operations.add, inner, key)


class SQLKeyStore:
    """A ``KeyStore`` in a SQL database: ``SQLKeyStore("sqlite:///keys.db")``.

    The address is a URL or an Engine of the application's own. Of a URL the drivers are psycopg and pymysql.
    ``create=True`` makes the tables on first use, ``create_schema()`` makes them now. ``timeout``, in
    seconds, is the longest that a call waits for a connection, for an answer of the server, and for another
    writer; connecting with psycopg takes 2 s at least. An engine of the application's own keeps its own pool and
    deadlines, and must be disposed of by the application in a child process.

    Raises ConfigurationError for an address that will not do.
    """

    def __init__(
        self, address: str | sa.URL | sa.Engine, *, create: bool = False, timeout: float = 5.0
    ) -> None:
        self._database = Database(address, asynchronous=False, create=create, timeout=timeout, sleep=_sleep)

    def create_schema(self) -> None:
        """Make the tables where they are missing; what is there stays."""
        _run(self._database, self._database.create_schema)

    def upgrade_schema(self) -> None:
        """Bring tables that an earlier version made up to date; nothing is lost.

        Raises ConfigurationError for tables that a later version made.
        """
        _run(self._database, self._database.upgrade_schema)

    def get(self, key_id: str, /) -> APIKey | None:
        if not is_storable(key_id):
            return None
        return _run(self._database, self._database.read, operations.get, key_id)

    def add(self, key: APIKey, /, *, connection: sa.Connection | Session | None = None) -> None:
        """Keep a new record, in the application's own transaction where its connection is given."""
        if connection is None:
            _run(self._database, self._database.write, operations.add, key)
        else:
            _join(self._database, connection, key)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        try:
            _run(self._database, self._database.write, operations.swap, old, new, successor)
        except operations.TooLate:
            return False
        return True

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return _run(self._database, self._database.write, operations.revoke_all, owner, at, reason)

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        read = self._database.read
        return _run(self._database, read, operations.find, owner, live_at, after, limit)

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return _run(self._database, self._database.read, operations.count, owner, live_at)

    def purge(self, before: datetime, /) -> int:
        return _run(self._database, self._database.write, operations.purge, before)

    def touch(self, used: Mapping[str, datetime], /) -> None:
        _run(self._database, self._database.write, operations.touch, used)

    def changes(self, since: Revision | None, /) -> Changes:
        return _run(self._database, self._database.read, operations.changes, since)

    def close(self) -> None:
        """Close the connections that are not in use; the store opens new ones when it is used again."""
        _close(self._database)


class AsyncSQLKeyStore:
    """An ``AsyncKeyStore`` in a SQL database: ``AsyncSQLKeyStore("sqlite:///keys.db")``.

    The address is a URL or an AsyncEngine of the application's own. Of a URL the drivers are psycopg, asyncpg and
    asyncmy.
    ``create=True`` makes the tables on first use, ``create_schema()`` makes them now. ``timeout``, in
    seconds, is the longest that a call waits for a connection, for an answer of the server, and for another
    writer; with a server it is the longest that a call takes at all. An engine of the application's own keeps its own pool and
    deadlines, and must be disposed of by the application in a child process.

    Raises ConfigurationError for an address that will not do.
    """

    def __init__(
        self, address: str | sa.URL | AsyncEngine, *, create: bool = False, timeout: float = 5.0
    ) -> None:
        self._database = Database(
            address, asynchronous=True, create=create, timeout=timeout, sleep=_async_sleep
        )

    async def create_schema(self) -> None:
        """Make the tables where they are missing; what is there stays."""
        await _async_run(self._database, self._database.create_schema)

    async def upgrade_schema(self) -> None:
        """Bring tables that an earlier version made up to date; nothing is lost.

        Raises ConfigurationError for tables that a later version made.
        """
        await _async_run(self._database, self._database.upgrade_schema)

    async def get(self, key_id: str, /) -> APIKey | None:
        if not is_storable(key_id):
            return None
        return await _async_run(self._database, self._database.read, operations.get, key_id)

    async def add(self, key: APIKey, /, *, connection: AsyncConnection | AsyncSession | None = None) -> None:
        """Keep a new record, in the application's own transaction where its connection is given."""
        if connection is None:
            await _async_run(self._database, self._database.write, operations.add, key)
        else:
            await _async_join(self._database, connection, key)

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        try:
            await _async_run(self._database, self._database.write, operations.swap, old, new, successor)
        except operations.TooLate:
            return False
        return True

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return await _async_run(
            self._database, self._database.write, operations.revoke_all, owner, at, reason
        )

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        read = self._database.read
        return await _async_run(self._database, read, operations.find, owner, live_at, after, limit)

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return await _async_run(self._database, self._database.read, operations.count, owner, live_at)

    async def purge(self, before: datetime, /) -> int:
        return await _async_run(self._database, self._database.write, operations.purge, before)

    async def touch(self, used: Mapping[str, datetime], /) -> None:
        await _async_run(self._database, self._database.write, operations.touch, used)

    async def changes(self, since: Revision | None, /) -> Changes:
        return await _async_run(self._database, self._database.read, operations.changes, since)

    async def close(self) -> None:
        """Close the connections that are not in use; the store opens new ones when it is used again."""
        await _async_close(self._database)
