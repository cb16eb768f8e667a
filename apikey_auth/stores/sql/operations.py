"""What is done in the tables. Each function is one operation of the protocol on a given connection.

Whoever changes records moves the counter in ``apikey_auth_state`` first, which locks it until the commit:
so changes get their revisions in the order in which they are committed, whatever the isolation level.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from ...errors import DuplicateKey, StoreUnavailable
from ...keys import APIKey, in_utc, is_storable, restored
from ..protocol import MAX_CHANGES, Changes, Page, Revision, check_page
from . import failures
from .schema import KEYS, RECORD, STATE

_NO_STATE = "the table apikey_auth_state is empty; create_schema() fills it"
_NAMES = tuple(field.name for field in fields(APIKey))
_GET = sa.select(*RECORD).where(KEYS.c.id == sa.bindparam("key_id"))
_ADD = sa.insert(KEYS)
_TOUCH = (
    sa.update(KEYS)
    .where(KEYS.c.id == sa.bindparam("key_id"))
    .where(sa.or_(KEYS.c.last_used_at.is_(None), KEYS.c.last_used_at < sa.bindparam("used")))
    .values(last_used_at=sa.bindparam("used"))
)


class TooLate(Exception):
    """The record is no longer what it was when it was read; nothing of the transaction is kept."""


def get(connection: sa.Connection, key_id: str) -> APIKey | None:
    row = connection.execute(_GET, {"key_id": key_id}).first()
    return None if row is None else _key(row)


def add(connection: sa.Connection, key: APIKey) -> None:
    """Write a new record. Raises DuplicateKey."""
    try:
        connection.execute(_ADD, {**_values(key), "revision": 0})
    except exc.IntegrityError as error:
        if failures.is_duplicate(error):
            raise DuplicateKey(key.id) from error
        raise


def swap(connection: sa.Connection, old: APIKey, new: APIKey, successor: APIKey | None) -> None:
    """Write ``new``, and a successor. Raises TooLate."""
    revision = _advance(connection)
    values = _values(new)
    del values["last_used_at"]
    this = sa.and_(KEYS.c.id == old.id, KEYS.c.version == old.version, KEYS.c.digest == old.digest)
    changed = connection.execute(sa.update(KEYS).where(this).values(revision=revision, **values))
    if changed.rowcount == 0:
        raise TooLate
    if successor is not None:
        add(connection, successor)


def revoke_all(connection: sa.Connection, owner: str | None, at: datetime, reason: str | None) -> int:
    at = in_utc("at", at)
    revision = _advance(connection)
    unrevoked = sa.update(KEYS).where(KEYS.c.revoked_at.is_(None), _matching(owner, None))
    marks = {"revoked_at": at, "revoked_reason": reason, "version": KEYS.c.version + 1}
    return connection.execute(unrevoked.values(**marks, revision=revision)).rowcount


def find(
    connection: sa.Connection, owner: str | None, live_at: datetime | None, after: str | None, limit: int
) -> Page:
    check_page(after, limit)
    query = sa.select(*RECORD).where(_matching(owner, live_at)).order_by(KEYS.c.id).limit(limit + 1)
    if after is not None:
        query = query.where(KEYS.c.id > after)
    rows = connection.execute(query).all()
    items = tuple(map(_key, rows[:limit]))
    return Page(items, items[-1].id if len(rows) > limit else None)


def count(connection: sa.Connection, owner: str | None, live_at: datetime | None) -> int:
    query = sa.select(sa.func.count()).select_from(KEYS).where(_matching(owner, live_at))
    return int(connection.execute(query).scalar_one())


def purge(connection: sa.Connection, before: datetime) -> int:
    before = in_utc("before", before)
    revision = _advance(connection)
    connection.execute(sa.update(STATE).where(STATE.c.id == 1).values(floor=revision))
    ends = (KEYS.c.revoked_at, KEYS.c.expires_at, KEYS.c.grace_until)
    # One by one: for all of them at once SQLite takes no index.
    return sum(connection.execute(sa.delete(KEYS).where(end < before)).rowcount for end in ends)


def touch(connection: sa.Connection, used: Mapping[str, datetime]) -> None:
    # In one order everywhere, so that two of these never wait for each other.
    rows = [
        {"key_id": key_id, "used": in_utc("used", used[key_id])}
        for key_id in sorted(used)
        if is_storable(key_id)
    ]
    if rows:
        connection.execute(_TOUCH, rows)


def changes(connection: sa.Connection, since: Revision | None) -> Changes:
    """Read the revision and the ids in one statement, so that they belong together."""
    columns = (STATE.c.epoch, STATE.c.revision, STATE.c.floor, KEYS.c.id)
    newer = KEYS.c.revision > since.number if since and since.number < 2**63 else sa.false()
    query = sa.select(*columns).select_from(STATE.outerjoin(KEYS, newer)).limit(MAX_CHANGES + 1)
    rows = connection.execute(query).all()
    if not rows:
        raise StoreUnavailable(_NO_STATE)
    state = rows[0]
    now = Revision(state.epoch, state.revision)
    known = since is not None and since.epoch == now.epoch and state.floor <= since.number <= now.number
    if not known or len(rows) > MAX_CHANGES:
        return Changes(now, None)
    return Changes(now, frozenset(row.id for row in rows if row.id is not None))


def _advance(connection: sa.Connection) -> int:
    """Move the counter, which locks it until the commit: revisions are committed in their order."""
    moved = connection.execute(sa.update(STATE).where(STATE.c.id == 1).values(revision=STATE.c.revision + 1))
    if moved.rowcount != 1:
        raise StoreUnavailable(_NO_STATE)
    return int(connection.execute(sa.select(STATE.c.revision)).scalar_one())


def _matching(owner: str | None, live_at: datetime | None) -> sa.ColumnElement[bool]:
    """The SQL of ``decisions.state`` being None, and of an owner."""
    conditions: list[sa.ColumnElement[bool]] = []
    if owner is not None:
        conditions.append(KEYS.c.owner == owner if is_storable(owner) else sa.false())
    if live_at is not None:
        live_at = in_utc("live_at", live_at)
        conditions += [KEYS.c.revoked_at.is_(None), ~KEYS.c.disabled]
        conditions += [
            sa.or_(end.is_(None), end > live_at) for end in (KEYS.c.expires_at, KEYS.c.grace_until)
        ]
    return sa.and_(sa.true(), *conditions)


def _values(key: APIKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in _NAMES}


def _key(row: sa.Row[Any]) -> APIKey:
    return restored(dict(zip(_NAMES, row, strict=True)))
