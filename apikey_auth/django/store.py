"""Keys in the project's own database, by way of Django's connections.

Each operation is written once, as a function of a connection; the two classes run them, one where it is
called, one in Django's thread for what may block.

Every operation that changes records moves the counter in ``State`` first, so that changes get their
revisions in the order in which they are committed.
"""

import random
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from time import sleep
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from asgiref.sync import sync_to_async
from django.db import Error, IntegrityError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Q, QuerySet

from ..errors import ConfigurationError, DuplicateKey, StoreUnavailable
from ..keys import APIKey, in_utc, is_storable, restored
from ..stores.protocol import MAX_CHANGES, Changes, Page, Revision, check_page, check_swap
from .models import Key, State

P = ParamSpec("P")
T = TypeVar("T")
Connection: TypeAlias = BaseDatabaseWrapper

ATTEMPTS = 10  # at a transaction that the database ends for the sake of another one
_ENDED = ("40001", "40P01", 1213, 1020)  # serialization failure and deadlock: PostgreSQL, MySQL, MariaDB
_NO_TABLE = ("42P01", 1146)

_NAMES = tuple(field.name for field in fields(APIKey))
_COLUMNS: tuple[Any, ...] = tuple(map(Key._meta.get_field, _NAMES))
_ID: Any = Key._meta.get_field("id")
_USED: Any = Key._meta.get_field("last_used_at")
_KEYS, _STATE = Key._meta.db_table, State._meta.db_table

# Written out where it counts: the query of every request, the poll, and a statement for many rows. No name
# in them needs quotes on any of the databases.
_GET = f"SELECT {', '.join(_NAMES)} FROM {_KEYS} WHERE id = %s"  # noqa: S608  # names of ours
_TOUCH = (
    f"UPDATE {_KEYS} SET last_used_at = %s "  # noqa: S608
    "WHERE id = %s AND (last_used_at IS NULL OR last_used_at < %s)"
)
_CHANGES = (
    f"SELECT s.epoch, s.revision, s.floor, k.id FROM {_STATE} s "  # noqa: S608
    f"LEFT JOIN {_KEYS} k ON k.revision > %s LIMIT {MAX_CHANGES + 1}"
)
_ID_TAKEN = re.compile(rf"({_KEYS}\.id|{_KEYS}_pkey\W?|\bPRIMARY')$")  # whatever language it is said in
_NO_STATE = f"the table {_STATE} is empty; manage.py migrate fills it"

# Any key may have changed; and of no epoch, so that the next answer says so too.
_UNSETTLED = Changes(Revision("", 0), None)


class _TooLate(Exception):
    """The record is no longer what it was when it was read; nothing of the transaction is kept."""


def _get(connection: Connection, key_id: str) -> APIKey | None:
    if not is_storable(key_id):
        return None
    with connection.cursor() as cursor:
        cursor.execute(_GET, [_ID.get_db_prep_value(key_id, connection)])
        row = cursor.fetchone()
    return None if row is None else _key(_read(row))


def _add(connection: Connection, key: APIKey) -> None:
    row = Key(**_values(key))
    try:
        with transaction.atomic(using=connection.alias):  # a savepoint, if the host has a transaction
            Key.objects.using(connection.alias).bulk_create([row])
    except IntegrityError as error:
        if not _is_duplicate(error):
            raise
        raise DuplicateKey(key.id) from error


def _swap(connection: Connection, old: APIKey, new: APIKey, successor: APIKey | None) -> bool:
    values = _values(new)
    del values["last_used_at"]
    try:
        with transaction.atomic(using=connection.alias):
            revision = _advance(connection)
            this = _keys(connection).filter(pk=old.id, version=old.version, digest=old.digest)
            if not this.update(revision=revision, **values):
                raise _TooLate
            if successor is not None:
                _add(connection, successor)
    except _TooLate:
        return False
    return True


def _revoke_all(connection: Connection, owner: str | None, at: datetime, reason: str | None) -> int:
    at = in_utc("at", at)
    with transaction.atomic(using=connection.alias):
        revision = _advance(connection)
        unrevoked = _matching(connection, owner, None).filter(revoked_at=None)
        return unrevoked.update(
            revoked_at=at, revoked_reason=reason, version=F("version") + 1, revision=revision
        )


def _find(
    connection: Connection, owner: str | None, live_at: datetime | None, after: str | None, limit: int
) -> Page:
    check_page(after, limit)
    found = _matching(connection, owner, live_at).order_by("id")
    if after is not None:
        found = found.filter(id__gt=after)
    rows = list(found.values_list(*_NAMES)[: limit + 1])
    items = tuple(map(_key, rows[:limit]))
    return Page(items, items[-1].id if len(rows) > limit else None)


def _count(connection: Connection, owner: str | None, live_at: datetime | None) -> int:
    return _matching(connection, owner, live_at).count()


def _purge(connection: Connection, before: datetime) -> int:
    before = in_utc("before", before)
    with transaction.atomic(using=connection.alias):
        revision = _advance(connection)
        State.objects.using(connection.alias).update(floor=revision)
        dead = Q(revoked_at__lt=before) | Q(expires_at__lt=before) | Q(grace_until__lt=before)
        deleted, _ = _keys(connection).filter(dead).delete()
        return deleted


def _touch(connection: Connection, used: Mapping[str, datetime]) -> None:
    rows = []
    for key_id in filter(is_storable, sorted(used)):  # in one order, so that two of these never deadlock
        at = _USED.get_db_prep_value(in_utc("used", used[key_id]), connection)
        rows.append((at, _ID.get_db_prep_value(key_id, connection), at))
    if rows:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.executemany(_TOUCH, rows)


def _changes(connection: Connection, since: Revision | None) -> Changes:
    """Read the revision and the ids in one statement, so that they belong together.

    Within a transaction nothing is read: its revision may be one that is rolled back and then given to another
    change, or an old snapshot's.
    """
    if _in_transaction(connection):
        return _UNSETTLED
    highest = 2**63 - 1
    with connection.cursor() as cursor:
        cursor.execute(_CHANGES, [highest if since is None else min(since.number, highest)])
        rows = cursor.fetchall()
    if not rows:
        raise StoreUnavailable(_NO_STATE)
    epoch, number, floor, _ = rows[0]
    known = since is not None and since.epoch == epoch and floor <= since.number <= number
    if not known or len(rows) > MAX_CHANGES:
        return Changes(Revision(epoch, number), None)
    ids = (_ID.from_db_value(row[3], None, connection) for row in rows if row[3] is not None)
    return Changes(Revision(epoch, number), frozenset(ids))


def _on_commit(connection: Connection, callback: Callable[[], object]) -> None:
    if connection.in_atomic_block:
        transaction.on_commit(callback, using=connection.alias)
    else:
        callback()  # without asking the database, which may be why the caller is here


def _advance(connection: Connection) -> int:
    """Move the counter, which locks it until the commit: revisions are committed in their order."""
    state = State.objects.using(connection.alias)
    if state.update(revision=F("revision") + 1) != 1:
        raise StoreUnavailable(_NO_STATE)
    revision: int = state.values_list("revision", flat=True).get()
    return revision


def _keys(connection: Connection) -> QuerySet[Key]:
    return Key.objects.using(connection.alias)


def _matching(connection: Connection, owner: str | None, live_at: datetime | None) -> QuerySet[Key]:
    """Give the query of ``decisions.state`` being None, and of an owner."""
    found = _keys(connection)
    if owner is not None:
        found = found.filter(owner=owner) if is_storable(owner) else found.none()
    if live_at is None:
        return found
    live_at = in_utc("live_at", live_at)
    for end in ("expires_at", "grace_until"):
        found = found.filter(Q((end, None)) | Q((f"{end}__gt", live_at)))
    return found.filter(revoked_at=None, disabled=False)


def _values(key: APIKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in _NAMES}


def _read(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Do with a row of the database's what a query set does."""
    return tuple(
        field.from_db_value(value, None, None) if hasattr(field, "from_db_value") else value
        for field, value in zip(_COLUMNS, row, strict=True)
    )


def _key(row: tuple[Any, ...]) -> APIKey:
    given = dict(zip(_NAMES, row, strict=True))
    for name in ("scopes", "addresses"):
        if given[name] is not None:
            given[name] = tuple(given[name])
    return restored({**given, "disabled": bool(given["disabled"])})


def _code(error: Error) -> object:
    """Tell the number of MySQL, the SQLSTATE of PostgreSQL, the text of SQLite."""
    said = error.args[0] if error.args else None
    if isinstance(said, int):
        return said
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or said


def _is_duplicate(error: IntegrityError) -> bool:
    return _ID_TAKEN.search(str(error.args[-1]).partition("\n")[0]) is not None


def _unavailable(error: Error, alias: str) -> StoreUnavailable:
    for each in filter(None, (error, error.__cause__)):
        # PostgreSQL quotes the statement, or the row with its digest, in further lines.
        if each.args and isinstance(each.args[0], str):
            each.args = (each.args[0].partition("\n")[0], *each.args[1:])
    said = str(error).partition("\n")[0]
    missing = _code(error) in _NO_TABLE or "no such table" in said
    hint = "; make the tables with manage.py migrate" if missing else ""
    return StoreUnavailable(f"the database {alias!r} failed: {said or type(error).__name__}{hint}")


def _in_transaction(connection: Connection) -> bool:
    managed = connection.connection is not None and not connection.autocommit
    return connection.in_atomic_block or managed


def _perform(
    alias: str, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run an operation, again if the database ended it for another one's sake, and translate its errors."""
    connection = connections[alias]
    for attempts in range(1, ATTEMPTS + 1):
        try:
            return operation(connection, *args, **kwargs)
        except Error as error:
            joined = _in_transaction(connection)
            if not joined:
                with suppress(Error):
                    connection.close_if_unusable_or_obsolete()  # the next call connects anew
            if joined or attempts == ATTEMPTS or _code(error) not in _ENDED:
                raise _unavailable(error, alias) from error
        sleep(random.uniform(0, 0.01 * attempts))  # noqa: S311  # no secret
    raise AssertionError("unreachable")


def _here(function: Callable[P, T]) -> Callable[P, T]:
    return function


_async_here = sync_to_async(thread_sensitive=True)  # where the connections of async views are


def _checked(using: str | None) -> str | None:
    if using is not None and using not in connections.settings:
        raise ConfigurationError(f"DATABASES has no {using!r}")
    return using


class DjangoKeyStore:
    """A ``KeyStore`` in one of the project's databases: ``DjangoKeyStore()``.

    ``using`` is the database's alias; without it the project's routers are asked, at each call, where keys
    are written: they are read there too, since a replica may not know yet what was revoked. ``manage.py
    migrate`` makes the tables. How long a call may take is the database's to say, in DATABASES.

    Within ``transaction.atomic()`` a call takes part in the transaction: what it changes holds from the
    commit, and is gone with a rollback; what it reads may, under an isolation above READ COMMITTED, be of
    before a revocation, and ``changes`` says that any key may have changed. Raises ConfigurationError for an
    alias that there is not.
    """

    def __init__(self, using: str | None = None) -> None:
        self.using = _checked(using)

    @property
    def alias(self) -> str:
        """The alias of the database that a call would use now."""
        return self.using or router.db_for_write(Key)

    def get(self, key_id: str, /) -> APIKey | None:
        return self._run(_get, key_id)

    def add(self, key: APIKey, /) -> None:
        self._run(_add, key)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        return self._run(_swap, old, new, successor)

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return self._run(_revoke_all, owner, at, reason)

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return self._run(_find, owner, live_at, after, limit)

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return self._run(_count, owner, live_at)

    def purge(self, before: datetime, /) -> int:
        return self._run(_purge, before)

    def touch(self, used: Mapping[str, datetime], /) -> None:
        self._run(_touch, used)

    def changes(self, since: Revision | None, /) -> Changes:
        return self._run(_changes, since)

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call back when the host's transaction is committed, at once if there is none."""
        self._run(_on_commit, callback)

    def in_transaction(self) -> bool:
        """Say whether what is read now may be rolled back, or be of before the host's transaction began."""
        return self._run(_in_transaction)

    def _run(
        self, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return _here(_perform)(self.alias, operation, *args, **kwargs)


class AsyncDjangoKeyStore:
    """An ``AsyncKeyStore`` in one of the project's databases: ``AsyncDjangoKeyStore()``.

    ``using`` is the database's alias; without it the project's routers are asked, at each call, where keys
    are written: they are read there too, since a replica may not know yet what was revoked. ``manage.py
    migrate`` makes the tables. How long a call may take is the database's to say, in DATABASES.

    Within ``transaction.atomic()`` a call takes part in the transaction: what it changes holds from the
    commit, and is gone with a rollback; what it reads may, under an isolation above READ COMMITTED, be of
    before a revocation, and ``changes`` says that any key may have changed. Raises ConfigurationError for an
    alias that there is not.
    """

    def __init__(self, using: str | None = None) -> None:
        self.using = _checked(using)

    @property
    def alias(self) -> str:
        """The alias of the database that a call would use now."""
        return self.using or router.db_for_write(Key)

    async def get(self, key_id: str, /) -> APIKey | None:
        return await self._run(_get, key_id)

    async def add(self, key: APIKey, /) -> None:
        await self._run(_add, key)

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        return await self._run(_swap, old, new, successor)

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        return await self._run(_revoke_all, owner, at, reason)

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return await self._run(_find, owner, live_at, after, limit)

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return await self._run(_count, owner, live_at)

    async def purge(self, before: datetime, /) -> int:
        return await self._run(_purge, before)

    async def touch(self, used: Mapping[str, datetime], /) -> None:
        await self._run(_touch, used)

    async def changes(self, since: Revision | None, /) -> Changes:
        return await self._run(_changes, since)

    async def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call back when the host's transaction is committed, at once if there is none."""
        await self._run(_on_commit, callback)

    async def in_transaction(self) -> bool:
        """Say whether what is read now may be rolled back, or be of before the host's transaction began."""
        return await self._run(_in_transaction)

    async def _run(
        self, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await _async_here(_perform)(self.alias, operation, *args, **kwargs)
