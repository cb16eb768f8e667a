"""Keys in a SQL database, by way of SQLAlchemy Core; here SQLite.

Each operation is a script: a generator that yields statements, is sent their results and returns its
answer. It is written once and knows nothing of connections; the two classes run scripts, one blocking,
one with asyncio, and that is all the I/O there is.

Every script that changes records moves the counter in ``apikey_auth_state`` first, so that changes get
their revisions in the order in which they are committed.
"""

import asyncio
import os
import secrets
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from functools import wraps
from random import uniform
from time import monotonic, sleep
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

try:
    import sqlalchemy as sa
    from sqlalchemy import event, exc
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
    from sqlalchemy.schema import CreateIndex, CreateTable
    from sqlalchemy.util import await_only
except ImportError as error:  # pragma: no cover
    raise ImportError("the SQL store needs SQLAlchemy: pip install 'apikey_auth[sql]'") from error

from ..errors import ConfigurationError, DuplicateKey, StoreUnavailable
from ..keys import MAX_NAME, APIKey, in_utc, is_storable, restored
from .protocol import MAX_CHANGES, Changes, Page, Revision, check_page, check_swap

P = ParamSpec("P")
T = TypeVar("T")


class Step(NamedTuple):
    """A statement, and the parameters to run it with, once or for each row of them."""

    statement: sa.Executable
    parameters: Mapping[str, object] | Sequence[Mapping[str, object]] | None = None


Script: TypeAlias = Generator[Step, sa.CursorResult[Any], T]

SCHEMA_VERSION = 1


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in and out, on databases that keep no time zone."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = sa.MetaData()

KEYS = sa.Table(
    "apikey_auth_keys",
    metadata,
    sa.Column("id", sa.String(MAX_NAME), primary_key=True),
    sa.Column("owner", sa.String(MAX_NAME), nullable=False),
    sa.Column("digest", sa.String(MAX_NAME), nullable=False),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("prefix", sa.String(MAX_NAME), nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("scopes", sa.JSON(none_as_null=True)),
    sa.Column("addresses", sa.JSON(none_as_null=True)),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.Column("created_by", sa.String(MAX_NAME)),
    sa.Column("expires_at", UTCDateTime),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("revoked_at", UTCDateTime),
    sa.Column("revoked_reason", sa.Text),
    sa.Column("rotated_to", sa.String(MAX_NAME)),
    sa.Column("rotated_from", sa.String(MAX_NAME)),
    sa.Column("grace_until", UTCDateTime),
    sa.Column("last_used_at", UTCDateTime),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),  # of the record's last change
    sqlite_with_rowid=False,
)
INDEXES = (
    sa.Index("apikey_auth_keys_owner", KEYS.c.owner, KEYS.c.id),
    sa.Index("apikey_auth_keys_revision", KEYS.c.revision),
)

STATE = sa.Table(  # one row
    "apikey_auth_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.String(32), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("floor", sa.BigInteger, nullable=False),  # the revision of the last purge
)

_NO_STATE = "the table apikey_auth_state is empty; create_schema() fills it"
_RECORD = tuple(KEYS.c[field.name] for field in fields(APIKey))
_GET = sa.select(*_RECORD).where(KEYS.c.id == sa.bindparam("key_id"))
_TOUCH = (
    sa.update(KEYS)
    .where(KEYS.c.id == sa.bindparam("key_id"))
    .where(sa.or_(KEYS.c.last_used_at.is_(None), KEYS.c.last_used_at < sa.bindparam("used")))
    .values(last_used_at=sa.bindparam("used"))
)


class _TooLate(Exception):
    """The record is no longer what it was when it was read; nothing of the transaction is kept."""


def _create_schema() -> Script[None]:
    for table in (KEYS, STATE):
        yield Step(CreateTable(table, if_not_exists=True))
    for index in INDEXES:
        yield Step(CreateIndex(index, if_not_exists=True))
    first = (1, SCHEMA_VERSION, secrets.token_hex(16), 0, 0)
    missing = sa.select(*map(sa.literal, first)).where(~sa.exists(sa.select(STATE.c.id)))
    yield Step(sa.insert(STATE).from_select([column.name for column in STATE.c], missing))


def _get(key_id: str) -> Script[APIKey | None]:
    if not is_storable(key_id):
        return None
    found = yield Step(_GET, {"key_id": key_id})
    row = found.first()
    return None if row is None else _key(row)


def _add(key: APIKey) -> Script[None]:
    yield Step(sa.insert(KEYS).values(revision=0, **_values(key)))


def _swap(old: APIKey, new: APIKey, successor: APIKey | None) -> Script[None]:
    revision = yield from _advance()
    values = _values(new)
    del values["last_used_at"]
    this = sa.and_(KEYS.c.id == old.id, KEYS.c.version == old.version, KEYS.c.digest == old.digest)
    changed = yield Step(sa.update(KEYS).where(this).values(revision=revision, **values))
    if changed.rowcount == 0:
        raise _TooLate
    if successor is not None:
        yield from _add(successor)


def _revoke_all(owner: str | None, at: datetime, reason: str | None) -> Script[int]:
    at = in_utc("at", at)
    revision = yield from _advance()
    unrevoked = sa.update(KEYS).where(KEYS.c.revoked_at.is_(None), _matching(owner, None))
    version = KEYS.c.version + 1
    revoked = yield Step(
        unrevoked.values(revoked_at=at, revoked_reason=reason, version=version, revision=revision)
    )
    return revoked.rowcount


def _find(owner: str | None, live_at: datetime | None, after: str | None, limit: int) -> Script[Page]:
    check_page(after, limit)
    query = sa.select(*_RECORD).where(_matching(owner, live_at)).order_by(KEYS.c.id).limit(limit + 1)
    if after is not None:
        query = query.where(KEYS.c.id > after)
    found = yield Step(query)
    rows = found.all()
    items = tuple(map(_key, rows[:limit]))
    return Page(items, items[-1].id if len(rows) > limit else None)


def _count(owner: str | None, live_at: datetime | None) -> Script[int]:
    found = yield Step(sa.select(sa.func.count()).select_from(KEYS).where(_matching(owner, live_at)))
    return int(found.scalar_one())


def _purge(before: datetime) -> Script[int]:
    before = in_utc("before", before)
    revision = yield from _advance()
    yield Step(sa.update(STATE).values(floor=revision))
    ends = (KEYS.c.revoked_at, KEYS.c.expires_at, KEYS.c.grace_until)
    deleted = yield Step(sa.delete(KEYS).where(sa.or_(*(end < before for end in ends))))
    return deleted.rowcount


def _touch(used: Mapping[str, datetime]) -> Script[None]:
    # In one order everywhere, so that two of these never wait for each other.
    rows = [
        {"key_id": key_id, "used": in_utc("used", used[key_id])}
        for key_id in sorted(used)
        if is_storable(key_id)
    ]
    if rows:
        yield Step(_TOUCH, rows)


def _changes(since: Revision | None) -> Script[Changes]:
    """Read the revision and the ids in one statement, so that they belong together."""
    columns = (STATE.c.epoch, STATE.c.revision, STATE.c.floor, KEYS.c.id)
    newer = KEYS.c.revision > since.number if since and since.number < 2**63 else sa.false()
    query = sa.select(*columns).select_from(STATE.outerjoin(KEYS, newer)).limit(MAX_CHANGES + 1)
    found = yield Step(query)
    rows = found.all()
    if not rows:
        raise StoreUnavailable(_NO_STATE)
    state = rows[0]
    now = Revision(state.epoch, state.revision)
    known = since is not None and since.epoch == now.epoch and state.floor <= since.number <= now.number
    if not known or len(rows) > MAX_CHANGES:
        return Changes(now, None)
    return Changes(now, frozenset(row.id for row in rows if row.id is not None))


def _advance() -> Script[int]:
    """Move the counter, which locks it until the commit: revisions are committed in their order."""
    moved = yield Step(sa.update(STATE).values(revision=STATE.c.revision + 1))
    if moved.rowcount != 1:
        raise StoreUnavailable(_NO_STATE)
    found = yield Step(sa.select(STATE.c.revision))
    return int(found.scalar_one())


def _matching(owner: str | None, live_at: datetime | None) -> sa.ColumnElement[bool]:
    """The SQL of ``decisions.state`` being None, and of an owner."""
    conditions: list[sa.ColumnElement[bool]] = [] if owner is None else [KEYS.c.owner == owner]
    if live_at is not None:
        live_at = in_utc("live_at", live_at)
        conditions += [KEYS.c.revoked_at.is_(None), ~KEYS.c.disabled]
        conditions += [
            sa.or_(end.is_(None), end > live_at) for end in (KEYS.c.expires_at, KEYS.c.grace_until)
        ]
    return sa.and_(sa.true(), *conditions)


def _values(key: APIKey) -> dict[str, Any]:
    return {field.name: getattr(key, field.name) for field in fields(APIKey)}


def _key(row: Any) -> APIKey:
    return restored({**row._mapping, "scopes": _tuple(row.scopes), "addresses": _tuple(row.addresses)})


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


@contextmanager
def _translated(url: sa.URL, key: APIKey | None = None) -> Iterator[None]:
    """Turn what a driver raises into what the protocol promises."""
    try:
        yield
    except exc.IntegrityError as error:
        if key is None:
            raise StoreUnavailable(
                f"the database refused a statement: {type(error.orig).__name__}"
            ) from error
        raise DuplicateKey(key.id) from error
    except exc.SQLAlchemyError as error:
        original = getattr(error, "orig", None) or error
        hint = (
            "; make the tables with create=True or create_schema()"
            if "no such table" in str(original)
            else ""
        )
        raise StoreUnavailable(f"the database {url.database} failed: {original}{hint}") from error


def _checked_url(url: str | sa.URL, *, asynchronous: bool) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError as error:
        raise ConfigurationError("this is no database URL, such as sqlite:///keys.db") from error
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"):
        raise ConfigurationError(f"the SQL store is for SQLite, not for {parsed.drivername!r}")
    if parsed.host:
        raise ConfigurationError(f"{parsed} has two slashes; a file takes three, sqlite:///keys.db, or four")
    if not parsed.database or ":memory:" in parsed.database or parsed.query.get("mode") == "memory":
        raise ConfigurationError(
            "an in-memory SQLite database is one connection's own; use a file, or MemoryKeyStore()"
        )
    return parsed.set(drivername="sqlite+aiosqlite" if asynchronous else "sqlite+pysqlite")


def _engine_options(timeout: float) -> dict[str, Any]:
    return {"connect_args": {"timeout": timeout}, "pool_timeout": timeout, "hide_parameters": True}


# One writer of a process at a time, in the order in which they come: SQLite has no more of them anyway, and
# those who wait must not take the connections that readers need.
_WRITERS = {"pool_size": 1, "max_overflow": 0}


def _shielded(run: Callable[P, T]) -> Callable[P, T]:
    """A thread's call always runs to its end."""
    return run


def _async_shielded(run: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Let a call run to its end when its caller is cancelled: half a transaction would keep the file locked."""

    @wraps(run)
    async def shielded(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.ensure_future(run(*args, **kwargs))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)

    return shielded


def _sleep(seconds: float) -> None:
    sleep(seconds)


def _async_sleep(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))  # the way out of SQLAlchemy's events to the event loop


def _prepare(engine: sa.Engine) -> None:
    """Put the file into WAL mode, in which readers never wait for a writer, and let no child share it."""

    def connected(connection: Any, _: object) -> None:
        # No BEGIN but ours: the driver's own comes late, and without the lock that a writer needs.
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except Exception as error:
            # SQLite does not wait for this lock. Whoever holds it is switching, or the next one here will.
            if "locked" not in str(error):
                raise
        cursor.close()

    event.listen(engine, "connect", connected)
    # A connection that two processes share breaks the file: a child starts with none.
    disposal = weakref.WeakMethod(engine.dispose)
    os.register_at_fork(after_in_child=lambda: (dispose := disposal()) and dispose(close=False))


def _queue_writers(engine: sa.Engine, timeout: float, wait: Callable[[float], None]) -> None:
    """Begin each transaction with the file's write lock, and wait for it in short, random steps.

    SQLite's own waiting backs off to a tenth of a second, so that whoever has waited long loses to whoever
    comes new, again and again.
    """

    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
        deadline = monotonic() + timeout
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except exc.OperationalError as error:
                if "locked" not in str(error.orig) or monotonic() > deadline:
                    raise
                wait(uniform(0.001, 0.012))  # noqa: S311  # no secret
            else:
                break
        connection.exec_driver_sql(f"PRAGMA busy_timeout={int(timeout * 1000)}")

    event.listen(engine, "begin", begun)


class SQLKeyStore:
    """A ``KeyStore`` in a SQLite file: ``SQLKeyStore("sqlite:///keys.db")``.

    Any number of processes and threads may use the file at once. ``create=True`` makes the tables on first
    use, ``create_schema()`` makes them now. ``timeout``, in seconds, is the longest that a call waits for
    a connection, and the longest that it waits for another writer.

    Raises ConfigurationError for a URL that will not do.
    """

    def __init__(self, url: str | sa.URL, *, create: bool = False, timeout: float = 5.0) -> None:
        checked = _checked_url(url, asynchronous=False)
        options = _engine_options(timeout)
        self._reading: sa.Engine = sa.create_engine(checked, **options)
        self._writing: sa.Engine = sa.create_engine(checked, **options, **_WRITERS)
        _prepare(self._reading)
        _prepare(self._writing)
        _queue_writers(self._writing, timeout, _sleep)
        self._create = create

    @_shielded
    def create_schema(self) -> None:
        """Make the tables where they are missing; what is there stays."""
        with _translated(self._reading.url):
            with self._writing.begin() as connection:
                self._play(connection, _create_schema())
        self._create = False

    def get(self, key_id: str, /) -> APIKey | None:
        return self._read(_get(key_id))

    def add(self, key: APIKey, /) -> None:
        self._write(_add(key), key)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        try:
            self._write(_swap(old, new, successor), successor)
        except _TooLate:
            return False
        return True

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return self._write(_revoke_all(owner, at, reason))

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return self._read(_find(owner, live_at, after, limit))

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return self._read(_count(owner, live_at))

    def purge(self, before: datetime, /) -> int:
        return self._write(_purge(before))

    def touch(self, used: Mapping[str, datetime], /) -> None:
        self._write(_touch(used))

    def changes(self, since: Revision | None, /) -> Changes:
        return self._read(_changes(since))

    def close(self) -> None:
        """Close the connections that are not in use; the store opens new ones when it is used again."""
        self._reading.dispose()
        self._writing.dispose()

    @_shielded
    def _read(self, script: Script[T]) -> T:
        """Run a script of one statement, outside any transaction."""
        if self._create:
            self.create_schema()
        with _translated(self._reading.url):
            with self._reading.connect() as connection:
                return self._play(connection, script)

    @_shielded
    def _write(self, script: Script[T], added: APIKey | None = None) -> T:
        """Run a script in a transaction of its own, and keep all of it or nothing."""
        if self._create:
            self.create_schema()
        with _translated(self._reading.url, added):
            with self._writing.begin() as connection:
                return self._play(connection, script)

    def _play(self, connection: sa.Connection, script: Script[T]) -> T:
        try:
            step = next(script)
            while True:
                step = script.send(connection.execute(step.statement, step.parameters))
        except StopIteration as end:
            answer: T = end.value
            return answer


class AsyncSQLKeyStore:
    """An ``AsyncKeyStore`` in a SQLite file: ``AsyncSQLKeyStore("sqlite:///keys.db")``.

    Any number of processes and tasks may use the file at once. ``create=True`` makes the tables on first
    use, ``create_schema()`` makes them now. ``timeout``, in seconds, is the longest that a call waits for
    a connection, and the longest that it waits for another writer.

    Raises ConfigurationError for a URL that will not do.
    """

    def __init__(self, url: str | sa.URL, *, create: bool = False, timeout: float = 5.0) -> None:
        checked = _checked_url(url, asynchronous=True)
        options = _engine_options(timeout)
        self._reading: AsyncEngine = create_async_engine(checked, **options)
        self._writing: AsyncEngine = create_async_engine(checked, **options, **_WRITERS)
        _prepare(self._reading.sync_engine)
        _prepare(self._writing.sync_engine)
        _queue_writers(self._writing.sync_engine, timeout, _async_sleep)
        self._create = create

    @_async_shielded
    async def create_schema(self) -> None:
        """Make the tables where they are missing; what is there stays."""
        with _translated(self._reading.url):
            async with self._writing.begin() as connection:
                await self._play(connection, _create_schema())
        self._create = False

    async def get(self, key_id: str, /) -> APIKey | None:
        return await self._read(_get(key_id))

    async def add(self, key: APIKey, /) -> None:
        await self._write(_add(key), key)

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        try:
            await self._write(_swap(old, new, successor), successor)
        except _TooLate:
            return False
        return True

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return await self._write(_revoke_all(owner, at, reason))

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return await self._read(_find(owner, live_at, after, limit))

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return await self._read(_count(owner, live_at))

    async def purge(self, before: datetime, /) -> int:
        return await self._write(_purge(before))

    async def touch(self, used: Mapping[str, datetime], /) -> None:
        await self._write(_touch(used))

    async def changes(self, since: Revision | None, /) -> Changes:
        return await self._read(_changes(since))

    async def close(self) -> None:
        """Close the connections that are not in use; the store opens new ones when it is used again."""
        await self._reading.dispose()
        await self._writing.dispose()

    @_async_shielded
    async def _read(self, script: Script[T]) -> T:
        """Run a script of one statement, outside any transaction."""
        if self._create:
            await self.create_schema()
        with _translated(self._reading.url):
            async with self._reading.connect() as connection:
                return await self._play(connection, script)

    @_async_shielded
    async def _write(self, script: Script[T], added: APIKey | None = None) -> T:
        """Run a script in a transaction of its own, and keep all of it or nothing."""
        if self._create:
            await self.create_schema()
        with _translated(self._reading.url, added):
            async with self._writing.begin() as connection:
                return await self._play(connection, script)

    async def _play(self, connection: AsyncConnection, script: Script[T]) -> T:
        try:
            step = next(script)
            while True:
                step = script.send(await connection.execute(step.statement, step.parameters))
        except StopIteration as end:
            answer: T = end.value
            return answer
