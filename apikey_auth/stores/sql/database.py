"""Connections: how each database is reached, how long anybody waits for it, what is tried again.

There are two pools, one for single statements, each in a transaction of its own, and one for transactions
that write. With an application's own engine both are views of that engine, whose pool and deadlines they
share. Everything here blocks; SQLAlchemy's greenlets make it asyncio's for the drivers that are.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from random import uniform
from threading import Thread
from time import monotonic
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from ...errors import ConfigurationError, StoreUnavailable
from ...forking import after_fork, before_fork
from . import failures, schema
from .engines import checked_engine, checked_url, engines_of
from .turns import Turns

P = ParamSpec("P")
T = TypeVar("T")
Operation: TypeAlias = Callable[Concatenate[sa.Connection, P], T]
Address: TypeAlias = "str | sa.URL | sa.Engine | AsyncEngine"


_of_parents: list[sa.Pool] = []


class _Uncertain(Exception):
    """A commit failed: whether anything was kept, nobody knows."""


class Database:
    """One store's connections. Raises ConfigurationError for what is no database that it can use."""

    def __init__(
        self,
        address: Address,
        *,
        asynchronous: bool,
        create: bool,
        timeout: float,
        sleep: Callable[[float], None],
    ) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout is a number of seconds, not {timeout!r}")
        self._own = not isinstance(address, sa.Engine | AsyncEngine)
        if isinstance(address, sa.Engine | AsyncEngine):
            given = checked_engine(address, asynchronous=asynchronous)
            level = "AUTOCOMMIT" if given.dialect.name == "sqlite" else "READ COMMITTED"
            self._reading: sa.Engine = given.execution_options(isolation_level="AUTOCOMMIT")
            self._writing: sa.Engine = given.execution_options(isolation_level=level)
        else:
            url = checked_url(address, asynchronous=asynchronous)
            self._reading, self._writing = engines_of(url, asynchronous=asynchronous, timeout=timeout)
            after_fork(self._leave_to_parent)
            if (
                url.get_backend_name() == "sqlite"
            ):  # which loses what is written beside a connection taken over
                before_fork(self._close_in_a_loop if asynchronous else self.dispose)
        self.timeout = timeout
        self._sleep = sleep
        self._create = create
        self._dialect = self._reading.dialect.name
        # For the one connection of SQLite's writers, whose pool lets newcomers overtake. Tasks take turns anyway.
        self._turns = Turns() if self._own and not self.is_remote and not asynchronous else None
        self.given_up: set[asyncio.Task[Any]] = set()  # calls that nobody waits for any more
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_remote(self) -> bool:
        """Whether a server answers, which may never do so; a file always does, and must not be cut short."""
        return self._dialect != "sqlite"

    def enter_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let connections be used by the event loop that made them only.

        Raises ConfigurationError while that loop is still there; else its connections are forgotten.
        """
        if loop is self._loop or not self.is_remote:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise ConfigurationError("this store belongs to another event loop; make one for each loop")
            self.dispose(close=False)
        self._loop = loop

    def read(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation of one statement, outside of any transaction."""
        self._create_once()

        def once() -> T:
            with self._reading.connect() as connection:
                return operation(connection, *args, **kwargs)

        return self._repeated(once)

    def write(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation in a transaction of its own, and keep all of it or nothing."""
        self._create_once()

        def once() -> T:
            with self._transaction() as connection:
                return operation(connection, *args, **kwargs)

        return self._repeated(once)

    def join(
        self,
        operation: Operation[P, T],
        connection: sa.Connection | Session,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation in a transaction of the application's."""
        try:
            joined = connection.connection() if isinstance(connection, Session) else connection
            # PostgreSQL gives up the whole transaction for one failed statement.
            with joined.begin_nested() if self._dialect == "postgresql" else nullcontext():
                return operation(joined, *args, **kwargs)
        except exc.SQLAlchemyError as error:
            raise failures.unavailable(self._reading.url, error) from error

    def create_schema(self) -> None:
        self._repeated(lambda: self._alone(schema.create))
        self._create = False

    def upgrade_schema(self) -> None:
        self._repeated(lambda: self._alone(schema.upgrade))
        self._create = False

    def dispose(self, *, close: bool = True) -> None:
        """Close the connections that are not in use, or forget them; an application's own are its own."""
        if self._own:
            self._reading.dispose(close)
            self._writing.dispose(close)

    def _close_in_a_loop(self) -> None:
        """Close an async driver's connections for code that cannot await it."""
        pools = (self._reading.pool, self._writing.pool)
        if any(isinstance(pool, sa.QueuePool) and pool.checkedin() for pool in pools):
            closing = Thread(target=lambda: asyncio.run(greenlet_spawn(self.dispose)))
            closing.start()
            closing.join(self.timeout)

    def _leave_to_parent(self) -> None:
        """Start a child without connections: one that two processes share is broken for both.

        The parent's are held for good, since to collect them would close them here.
        """
        _of_parents.extend((self._reading.pool, self._writing.pool))
        self.dispose(close=False)

    def _create_once(self) -> None:
        if self._create:
            self.create_schema()

    def _repeated(self, once: Callable[[], T]) -> T:
        """Try again what was undone, and what met a connection that had been lost while it was idle."""
        deadline, lost = monotonic() + self.timeout, False
        while True:
            try:
                return once()
            except Exception as caught:
                if not (isinstance(caught, _Uncertain) or failures.is_failure(caught)):
                    raise
                error = caught.__cause__ if isinstance(caught, _Uncertain) and caught.__cause__ else caught
                stale = error is caught and failures.is_lost(error) and not lost
                if not (stale or failures.is_undone(error)) or monotonic() > deadline:
                    raise failures.unavailable(self._reading.url, error) from error
                lost = lost or stale
            self._sleep(uniform(0.001, 0.02))  # noqa: S311  # no secret

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        turn = nullcontext() if self._turns is None else self._turns.taken(self.timeout)
        with turn, self._writing.connect() as connection:
            if self._dialect == "sqlite":
                if getattr(connection.connection.driver_connection, "autocommit", None) is True:
                    raise ConfigurationError(_NO_COMMIT)
                self._lock_file(connection)
            try:
                yield connection
                try:
                    connection.commit()
                except exc.DBAPIError as error:
                    raise _Uncertain from error
            except BaseException:
                if self._dialect == "sqlite":  # SQLAlchemy takes the connection for one without transactions
                    with suppress(Exception):  # what went wrong is on its way
                        connection.rollback()
                        connection.connection.rollback()
                raise

    def _lock_file(self, connection: sa.Connection) -> None:
        """Begin with the file's write lock, and wait for it in short, random steps.

        SQLite's own waiting backs off to a tenth of a second, so that whoever has waited long loses to
        whoever comes new, again and again.
        """
        begun = False  # by the application's engine: a listener does, and autocommit=False
        usual = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        deadline = monotonic() + self.timeout
        try:
            while True:
                try:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                except exc.OperationalError as error:
                    if "within a transaction" in str(error.orig):
                        begun = True
                        connection.exec_driver_sql("ROLLBACK")
                        continue
                    if "locked" not in str(error.orig) or monotonic() > deadline:
                        if begun:
                            connection.exec_driver_sql("BEGIN")  # as it was
                        raise
                    self._sleep(uniform(0.001, 0.012))  # noqa: S311  # no secret
                else:
                    return
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={usual}")

    def _alone(self, change: Callable[[sa.Connection], None]) -> None:
        """Change the schema while nobody else does."""
        with self._transaction() as connection:
            if self._dialect == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            elif self._dialect in schema.MYSQL:
                self._lock_by_name(connection)
            try:
                change(connection)
                connection.commit()  # before the lock goes to the next, who shall see it
            finally:
                if self._dialect in schema.MYSQL:
                    connection.execute(sa.select(sa.func.release_lock(_LOCK_NAME)))

    def _lock_by_name(self, connection: sa.Connection) -> None:
        locked = sa.select(sa.func.get_lock(_LOCK_NAME, self.timeout))
        if connection.execute(locked).scalar() != 1:
            raise StoreUnavailable("another process has been changing the schema for too long")


# Since Python 3.12 (PEP 249's attribute); True makes nothing of commit().
_NO_COMMIT = "an engine whose SQLite connections have autocommit=True keeps no transaction: leave it out"
_LOCK_NAME = "apikey_auth.schema"
_LOCK = int.from_bytes(_LOCK_NAME.encode()[:8])
