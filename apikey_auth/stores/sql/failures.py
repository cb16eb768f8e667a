"""What the errors of the drivers mean, told by their codes and never by their words."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from ...errors import StoreUnavailable

# SQLSTATE of PostgreSQL, numbers of MariaDB and MySQL, extended result codes of SQLite
_DUPLICATE = {"23505", 1062, 1555, 2067}
_UNDONE = {"40001", "40P01", 1213, 1020}  # serialization failure, deadlock, changed since the snapshot
_NO_TABLE = {"42P01", "42703", 1146, 1054}


def code_of(error: BaseException) -> str | int | None:
    """Find the code that the database gave an error."""
    original = getattr(error, "orig", None) or error
    if original.args and isinstance(original.args[0], int):
        return original.args[0]  # MySQL's drivers, whose SQLSTATE says less
    return getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorcode", None)


def is_failure(error: BaseException) -> bool:
    """Say whether the database, or what leads to it, failed.

    SQLAlchemy 2.0 lets asyncpg's own errors through where it connects; they are told by their SQLSTATE.
    """
    return isinstance(error, exc.SQLAlchemyError | OSError | UnicodeError) or hasattr(error, "sqlstate")


def is_duplicate(error: exc.IntegrityError) -> bool:
    """Say whether it was a second record of one id, and not some other rule of the database."""
    return code_of(error) in _DUPLICATE


def is_undone(error: BaseException) -> bool:
    """Say whether a transaction was rolled back for no fault of its own, and may be tried again."""
    return code_of(error) in _UNDONE


def is_lost(error: BaseException) -> bool:
    """Say whether the connection is gone."""
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def unavailable(url: sa.URL, error: BaseException) -> StoreUnavailable:
    """Make of a driver's error what the protocol promises, for raising from it."""
    original = getattr(error, "orig", None) or error
    missing = code_of(error) in _NO_TABLE or "no such table" in str(original)
    hint = "; make the tables with create=True or create_schema()" if missing else ""
    _hide_values(error)
    said = str(original) or type(original).__name__
    return StoreUnavailable(f"the database {url.database} failed: {said}{hint}")


def _hide_values(error: BaseException) -> None:
    """Keep records out of the text of an error and of what it was raised from: a digest is among their values.

    SQLAlchemy shows parameters, and PostgreSQL the failing row, in lines behind the first.
    """
    if isinstance(error, exc.StatementError):
        error.hide_parameters = True
    original: Any = getattr(error, "orig", None)
    texts: list[Any] = [error, original, getattr(original, "__cause__", None)]
    for each in filter(None, texts):
        if each.args and isinstance(each.args[0], str):
            each.args = (each.args[0].partition("\n")[0], *each.args[1:])
        if getattr(each, "detail", None):
            each.detail = None  # asyncpg writes it into its text
