"""Columns that give back what was put in, on every database: exact text, moments in UTC, JSON.

Django's own would not do: MySQL compares text without regard to case, PostgreSQL sorts it by a language,
DateTimeField depends on USE_TZ and the session's time zone, and JSONField on each database's numbers.
"""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from django.core.exceptions import ValidationError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField, Field, TextField

if TYPE_CHECKING:  # generic for the checker alone
    _CharField: TypeAlias = CharField[str | None, str | None]
    _Field: TypeAlias = Field[Any, Any]
    _TextField: TypeAlias = TextField[Any, Any]
else:
    _CharField, _Field, _TextField = CharField, Field, TextField

BYTES_PER_CHARACTER = 4  # at most, in UTF-8


class ExactField(_CharField):
    """Text compared character by character and ordered by code point; blanks at its end count."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        if connection.vendor == "mysql":
            return f"varbinary({BYTES_PER_CHARACTER * (self.max_length or 0)})"
        if connection.vendor == "postgresql":
            return f"character varying({self.max_length})"  # "varchar" would get a second index, for LIKE
        return super().db_type(connection)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        collation = "C" if connection.vendor == "postgresql" else None
        return {**super().db_parameters(connection), "collation": collation}

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> str | bytes | None:
        text: str | None = super().get_db_prep_value(value, connection, prepared)
        return text.encode() if connection.vendor == "mysql" and isinstance(text, str) else text

    def from_db_value(self, value: str | bytes | None, *_: object) -> str | None:
        return value.decode() if isinstance(value, bytes) else value


class _AllOfUnicode:
    """On MySQL, where a database made without care keeps no emoji, a collation that brings its character set."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)  # type: ignore[misc]  # the field's
        return {**parameters, "collation": "utf8mb4_general_ci" if connection.vendor == "mysql" else None}


class UnicodeField(_AllOfUnicode, _CharField):
    """Text for people, searched without regard to case."""


class UnicodeTextField(_AllOfUnicode, _TextField):
    """Text for people, of any length."""


class UTCDateTimeField(_Field):
    """A moment: aware UTC for Python, the same without its zone for the database."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return {"postgresql": "timestamp", "mysql": "datetime(6)"}.get(connection.vendor, "varchar(26)")

    def to_python(self, value: Any) -> datetime | None:
        """Read a time, or what ``dumpdata`` writes of one. Without a zone it is UTC."""
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValidationError(f"{value!r} is no time") from None
        naive = isinstance(value, datetime) and value.utcoffset() is None
        found: datetime | None = value.replace(tzinfo=UTC) if naive else value
        return found

    def get_prep_value(self, value: Any) -> datetime | None:
        return self.to_python(super().get_prep_value(value))

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> str | datetime | None:
        time: datetime | None = super().get_db_prep_value(value, connection, prepared)
        if time is None:
            return None
        naive = time.astimezone(UTC).replace(tzinfo=None)
        if connection.vendor in ("postgresql", "mysql"):
            return naive
        return naive.isoformat(" ", "microseconds")  # of one width, so that text is ordered as time is

    def from_db_value(self, value: str | datetime | None, *_: object) -> datetime | None:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return None if value is None else value.replace(tzinfo=UTC)


class JSONTextField(_TextField):
    """JSON as ASCII text; None is NULL."""

    def get_prep_value(self, value: Any) -> str | None:
        return None if value is None else json.dumps(value)

    def from_db_value(self, value: str | None, *_: object) -> Any:
        return None if value is None else json.loads(value)

    def to_python(self, value: Any) -> Any:
        return value

    def value_to_string(self, obj: Any) -> Any:
        return self.value_from_object(obj)  # dumpdata writes JSON itself
