"""The tables: the same meaning on every database. How they are made, and brought up to date.

Ids, owners and digests are compared byte for byte and ordered by code point, whatever the database's
collation. Times are kept as UTC without a time zone, so that no session's time zone touches them. JSON is
kept as text, since databases that know it change numbers and refuse characters.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import mysql
    from sqlalchemy.schema import CreateIndex, CreateTable
except ImportError as error:  # pragma: no cover
    raise ImportError("the SQL store needs SQLAlchemy: pip install 'apikey_auth[sql]'") from error

from ...errors import ConfigurationError
from ...keys import MAX_NAME, APIKey

SCHEMA_VERSION = 2
MYSQL = ("mysql", "mariadb")  # two names of one dialect
_UTF8_BYTES = 4  # that a character may take


class Exact(sa.types.TypeDecorator[str]):
    """Text that is equal only byte for byte, trailing blanks too, and ordered by code point."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name in MYSQL:  # every collation there ignores something
            return dialect.type_descriptor(sa.VARBINARY(MAX_NAME * _UTF8_BYTES))
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(sa.String(MAX_NAME, collation))

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        return value if value is None or dialect.name not in MYSQL else value.encode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return value.decode() if isinstance(value, bytes) else value


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """Aware UTC in and out, to the microsecond."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(mysql.DATETIME(fsp=6) if dialect.name in MYSQL else sa.DateTime())

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


_Text = sa.Text().with_variant(mysql.LONGTEXT(), *MYSQL)


class JSONText(sa.types.TypeDecorator[Any]):
    """JSON as ASCII text; None is NULL."""

    impl = _Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else json.loads(value)


class ListText(JSONText):
    """A tuple of texts as a JSON list."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> tuple[str, ...] | None:
        return None if value is None else tuple(json.loads(value))


def _table_options() -> dict[str, Any]:
    options = {"engine": "InnoDB", "default_charset": "utf8mb4", "collate": "utf8mb4_bin"}
    return {f"{dialect}_{name}": value for dialect in MYSQL for name, value in options.items()}


metadata: Final = sa.MetaData()

KEYS: Final = sa.Table(
    "apikey_auth_keys",
    metadata,
    sa.Column("id", Exact, primary_key=True),
    sa.Column("owner", Exact, nullable=False),
    sa.Column("digest", Exact, nullable=False),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("prefix", sa.String(MAX_NAME), nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("scopes", ListText),
    sa.Column("addresses", ListText),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.Column("created_by", sa.String(MAX_NAME)),
    sa.Column("expires_at", UTCDateTime),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("revoked_at", UTCDateTime),
    sa.Column("revoked_reason", _Text),
    sa.Column("rotated_to", sa.String(MAX_NAME)),
    sa.Column("rotated_from", sa.String(MAX_NAME)),
    sa.Column("grace_until", UTCDateTime),
    sa.Column("last_used_at", UTCDateTime),
    sa.Column("metadata", JSONText, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),  # of the record's last change
    sqlite_with_rowid=False,
    **_table_options(),
)
INDEXES: Final = (
    sa.Index("apikey_auth_keys_owner", KEYS.c.owner, KEYS.c.id),  # find
    sa.Index("apikey_auth_keys_revision", KEYS.c.revision),  # changes
    sa.Index("apikey_auth_keys_revoked", KEYS.c.revoked_at),  # revoke_all and purge
    sa.Index("apikey_auth_keys_expires", KEYS.c.expires_at),  # purge
    sa.Index("apikey_auth_keys_grace", KEYS.c.grace_until),  # purge
)
RECORD: Final = tuple(KEYS.c[field.name] for field in fields(APIKey))

STATE: Final = sa.Table(  # one row
    "apikey_auth_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("epoch", sa.String(32), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("floor", sa.BigInteger, nullable=False),  # the revision of the last purge
    **_table_options(),
)


def create(connection: sa.Connection) -> None:
    """Make the tables where they are missing; what is there stays."""
    there, schema = sa.inspect(connection), _schema(connection)
    for table in (KEYS, STATE):
        if not there.has_table(table.name, schema=schema):
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index))
    if _version(connection) is None:
        first = {"id": 1, "schema_version": SCHEMA_VERSION, "epoch": secrets.token_hex(16)}
        connection.execute(sa.insert(STATE).values(**first, revision=0, floor=0))


def upgrade(connection: sa.Connection) -> None:
    """Bring tables that an earlier version made up to date, step by step.

    Raises ConfigurationError for tables of a version still to come.
    """
    create(connection)
    found = _version(connection)
    assert found is not None  # noqa: S101  # just created
    if found > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the tables are of schema version {found}, this version of apikey_auth knows {SCHEMA_VERSION}: "
            "upgrade the library"
        )
    for version in range(found, SCHEMA_VERSION):
        _UPGRADES[version](connection)
        connection.execute(sa.update(STATE).values(schema_version=version + 1))


def _version(connection: sa.Connection) -> int | None:
    return connection.execute(sa.select(STATE.c.schema_version)).scalar()


def _schema(connection: sa.Connection) -> str | None:
    """Tell the schema in which the engine wants tables that name none."""
    translated: dict[str | None, str] = connection.get_execution_options().get("schema_translate_map", {})
    return translated.get(None)


def _add_indexes(connection: sa.Connection) -> None:
    """Bring version 1 to 2, which has an index for each query."""
    there = {
        index["name"] for index in sa.inspect(connection).get_indexes(KEYS.name, schema=_schema(connection))
    }
    for index in INDEXES:
        if index.name not in there:
            connection.execute(CreateIndex(index))


_UPGRADES: Mapping[int, Callable[[sa.Connection], None]] = {1: _add_indexes}
