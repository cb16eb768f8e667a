"""From the rows of another system to records. Pure: what a row says is read by ``formats``, and kept by ``manage``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import TypeAlias

from .errors import ConfigurationError, InvalidKey
from .formats import Cells, KeyRow, Source
from .keys import APIKey, KeyScheme, KeyText
from .stores.protocol import check_function

Row: TypeAlias = Mapping[str, object]

OwnerOf: TypeAlias = str | Callable[[Row], object]
"""Whose a row's key is: the name of a column, or a function of the row."""

REVOKED = "revoked before it was imported"


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row of which no key was made: its number, counted from 1, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came of an import: how many keys were added, how many were there before, and which rows were refused."""

    added: int
    existing: int
    refused: tuple[RefusedRow, ...]


class Import:
    """One import on its way: makes records of rows, and counts what comes of them.

    Raises ConfigurationError for a source that the scheme does not have, TypeError for no owner.
    """

    def __init__(self, scheme: KeyScheme, source: Source, owner: OwnerOf | None, timezone: tzinfo) -> None:
        _check_source(source, scheme)
        if not isinstance(timezone, tzinfo):
            raise TypeError(f"timezone is a tzinfo, such as ZoneInfo('Europe/Vienna'), not {timezone!r}")
        self.scheme = scheme
        self.source = source
        self.owner_of = _owner_of(source.owner_column if owner is None else owner)
        self.timezone = timezone
        self.number = self.added = self.existing = 0
        self.refused: list[RefusedRow] = []
        self._dated = False

    def record(self, row: Row, now: datetime) -> APIKey | None:
        """Make the record of the next row; None if it makes none, which is then in the report."""
        self.number += 1
        if not isinstance(row, Mapping):
            raise TypeError(
                f"a row is a mapping of columns, not {type(row).__name__}; use .mappings() or .values()"
            )
        cells = Cells(row, self.timezone)
        try:
            found = self.source.read(cells)
            self._dated = found.created_at is not None
            return _record(self.scheme, found, self.owner_of(cells), now)
        except (ValueError, TypeError) as error:
            self._refuse(str(error))
            return None

    def is_there(self, key: APIKey, existing: APIKey | None) -> bool:
        """Count a key whose id is taken; answer whether by the same key, imported before."""
        if existing is None:
            self._refuse("it was there and has been deleted at this moment")
        elif existing.owner != key.owner:
            self._refuse("a key with its id belongs to another owner")
        elif self._dated and key.created_at != existing.created_at and key.digest != existing.digest:
            self._refuse("another key of its owner has its id")
        else:
            self.existing += 1
            return True
        return False

    def report(self) -> ImportReport:
        return ImportReport(self.added, self.existing, tuple(self.refused))

    def _refuse(self, reason: str) -> None:
        self.refused.append(RefusedRow(self.number, reason))


def _check_source(source: Source, scheme: KeyScheme) -> None:
    if not callable(getattr(source, "read", None)):
        raise ConfigurationError(f"{source!r} reads no rows; those of apikey_auth.formats do")
    if source not in scheme.formats:
        raise ConfigurationError(
            f"the keys would open nothing: the scheme needs formats=[{source!r}], here and where they are used"
        )


def _owner_of(owner: OwnerOf | None) -> Callable[[Cells], str]:
    if owner is None:
        raise TypeError("the rows name no owners; give owner=, a column of yours or a function of a row")
    if isinstance(owner, str):
        return lambda cells: cells.text(owner)
    check_function("owner", owner, asynchronous=False)

    def call(cells: Cells) -> str:
        try:
            found = owner(cells.row)
        except Exception as error:
            raise ValueError(f"owner failed with {type(error).__name__}") from None
        return Cells({"owner": found}, cells.timezone).text("owner")

    return call


def _record(scheme: KeyScheme, found: KeyRow, owner: str, now: datetime) -> APIKey:
    key_id, digest, last4 = found.id, found.digest, ""
    if found.text is not None:
        text = _parsed(scheme, found.text)
        key_id, digest, last4 = text.id, scheme.digest(text.text), text.last4
    return APIKey(
        id=key_id,
        owner=owner,
        digest=digest,
        name=found.name,
        last4=last4,
        scopes=found.scopes,  # type: ignore[arg-type]  # the record makes a tuple of it
        created_at=found.created_at or now,
        expires_at=found.expires_at,
        revoked_at=now if found.revoked else None,
        revoked_reason=REVOKED if found.revoked else None,
        last_used_at=found.last_used_at,
    )


def _parsed(scheme: KeyScheme, text: str) -> KeyText:
    try:
        return scheme.parse(text)
    except InvalidKey:
        raise ValueError("its text is no key in any of the scheme's formats") from None
