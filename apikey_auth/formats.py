"""Keys of other systems: which texts are theirs, and what the rows of their tables say. No record, no store.

A format is a function: a text to (id, text to digest), or None for a text of somebody else's. Those of this
module read rows too, so that keys move in without being issued again (see ``KeyManager.import_keys``): the
id follows from the text and from the row alike, and where the other system kept a digest, that digest stays
until the key is used.

One text per key, byte for byte: a format takes the spelling that its system gave out, and no other that the
system would have let through.
"""

import hashlib
import hmac
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, ClassVar, Literal, Protocol, TypeAlias
from uuid import UUID

from . import hashing
from .errors import ConfigurationError

Format: TypeAlias = Callable[[str], "tuple[str, str] | None"]
"""Keys of another system: a text to (id, text to digest), or None for a text of somebody else's."""

_TRUE, _FALSE = {"true", "t", "1"}, {"false", "f", "0"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA512 = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """What a row says of a key: its id and digest, or its whole text where that was kept.

    ``created_at`` None is a time that the row does not tell; the other times None are never.
    """

    id: str = ""
    digest: str = field(default="", repr=False)
    text: str | None = field(default=None, repr=False)
    name: str = ""
    scopes: Sequence[str] | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Cells:
    """A row's values, as drivers and CSV files give them; times without zone are in ``timezone``.

    Every method raises ValueError for a value that will not do, without the value: it may be a secret.
    """

    row: Mapping[str, object] = field(repr=False)
    timezone: tzinfo

    def has(self, column: str) -> bool:
        """Say whether the row tells anything in a column."""
        return self.row.get(column) not in (None, "")

    def text(self, column: str) -> str:
        """Give a value that must be there as text; numbers and UUIDs, as of primary keys, are written out."""
        value = self._value(column)
        if isinstance(value, int | UUID) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{column} is neither text nor a whole number")
        if not value:
            raise ValueError(f"{column} is empty")
        return value

    def optional_text(self, column: str) -> str:
        return self.text(column) if self.has(column) else ""

    def time(self, column: str) -> datetime | None:
        """Give a time, aware, or None; text is read as ISO 8601.

        The column must be there: a key whose end was left out of the query would live for ever.
        """
        value = self._value(column)
        if value is None or value == "":
            return None
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{column} is no time such as 2026-01-31 12:00:00+00:00") from None
        if not isinstance(value, datetime):
            raise ValueError(f"{column} is no time such as 2026-01-31 12:00:00+00:00")
        return value if value.utcoffset() is not None else value.replace(tzinfo=self.timezone)

    def optional_time(self, column: str) -> datetime | None:
        return self.time(column) if self.has(column) else None

    def flag(self, column: str) -> bool:
        """Give a value that must be there and say yes or no: False is never guessed."""
        written = str(self._value(column)).lower()
        if written not in _TRUE | _FALSE:
            raise ValueError(f"{column} is neither true nor false")
        return written in _TRUE

    def names(self, column: str) -> list[str] | None:
        """Give a list of names, also one written as JSON; None where the row tells none."""
        if not self.has(column):
            return None
        value: Any = self.row[column]
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"{column} is no JSON") from None
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{column} is no list of names")
        return list(value)

    def _value(self, column: str) -> object:
        if column not in self.row:
            raise ValueError(f"there is no column {column}")
        return self.row[column]


class Source(Protocol):
    """A format that reads the rows of its system's table."""

    @property
    def owner_column(self) -> str | None:
        """The column that names a key's owner; None where the table has none."""
        ...

    def __call__(self, text: str, /) -> tuple[str, str] | None: ...

    def read(self, cells: Cells, /) -> KeyRow:
        """Read a row. Raises ValueError for one that makes no key, without what may be a secret."""
        ...


@dataclass(frozen=True)
class OpaqueTokens:
    """Tokens without structure: any text of printable ASCII is one. See ``opaque_tokens``.

    Rows have the columns ``text``, which is the token itself, and ``owner``; also ``name``, ``scopes`` (a
    JSON list), ``created_at``, ``expires_at``, ``last_used_at`` and ``revoked``, where there are such.
    """

    lookup_secret: str | bytes | None = field(default=None, repr=False)
    _key: bytes = field(init=False, repr=False, compare=False)

    owner_column: ClassVar[str] = "owner"

    def __post_init__(self) -> None:
        secret = self.lookup_secret
        _assign(self, "_key", b"" if secret is None else hashing.derive(secret, "lookup"))

    @property
    def keyed(self) -> bool:
        return self.lookup_secret is not None

    def __call__(self, text: str) -> tuple[str, str]:
        return hmac.digest(self._key, text.encode("ascii"), "sha256")[:16].hex(), text

    def read(self, cells: Cells) -> KeyRow:
        return KeyRow(
            text=cells.text("text"),
            name=cells.optional_text("name"),
            scopes=cells.names("scopes"),
            created_at=cells.optional_time("created_at"),
            expires_at=cells.optional_time("expires_at"),
            last_used_at=cells.optional_time("last_used_at"),
            revoked=cells.has("revoked") and cells.flag("revoked"),
        )


def opaque_tokens(lookup_secret: str | bytes | None = None) -> OpaqueTokens:
    """Make the format of tokens without structure.

    A token's id is a hash of it, so that the token itself is never an id, under ``lookup_secret`` where
    one is given. Give one where tokens may be guessed (``abcd``), and keep it: the ids depend on it. A
    scheme with peppers asks for one: its oldest pepper will do.
    """
    return OpaqueTokens(lookup_secret)


@dataclass(frozen=True)
class SensenetKeys(OpaqueTokens):
    """Keys of sensenet, which keeps them as they are: rows of ``AccessTokens``.

    The owner is ``UserId``. Tokens of other features in the same table open other doors, and are refused.
    """

    owner_column: ClassVar[str] = "UserId"

    def read(self, cells: Cells) -> KeyRow:
        if "Feature" in cells.row and cells.row["Feature"] != "apikey":
            raise ValueError("its Feature is not apikey: it is no API key")
        return KeyRow(
            text=cells.text("Value"),
            created_at=cells.time("CreationDate"),
            expires_at=cells.time("ExpirationDate"),
        )


@dataclass(frozen=True)
class DRFTokens:
    """Tokens of Django REST framework, which keeps them as they are: rows of ``authtoken_token``."""

    owner_column: ClassVar[str] = "user_id"
    _pattern: ClassVar = re.compile(r"[0-9a-f]{40}")

    def __call__(self, text: str) -> tuple[str, str] | None:
        return (_hashed_id("drf-token", text), text) if self._pattern.fullmatch(text) else None

    def read(self, cells: Cells) -> KeyRow:
        return KeyRow(text=cells.text("key"), created_at=cells.time("created"))


@dataclass(frozen=True)
class DRFAPIKeys:
    """Keys of djangorestframework-api-key, ``<prefix>.<secret>``: rows of any ``AbstractAPIKey``.

    Digests are SHA-512, or PBKDF2 as of versions before 3. The table has no owners. The lengths are those
    of its ``KeyGenerator``.
    """

    prefix_length: int = 8
    secret_length: int = 32
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    owner_column: ClassVar[None] = None

    def __post_init__(self) -> None:
        pattern = rf"([0-9A-Za-z]{{{self.prefix_length:d}}})\.[0-9A-Za-z]{{{self.secret_length:d}}}"
        _assign(self, "_pattern", re.compile(pattern))

    def __call__(self, text: str) -> tuple[str, str] | None:
        match = self._pattern.fullmatch(text)
        return (f"drf-{match[1]}", text) if match else None

    def read(self, cells: Cells) -> KeyRow:
        prefix, hashed = cells.text("prefix"), cells.text("hashed_key")
        if not self._pattern.fullmatch(f"{prefix}.{'0' * self.secret_length}"):
            raise ValueError(f"prefix is not {self.prefix_length} letters and digits")
        if not hashing.is_foreign(hashed):
            raise ValueError("hashed_key is neither sha512 nor pbkdf2_sha256, or of too many iterations")
        return KeyRow(
            id=f"drf-{prefix}",
            digest=hashed,
            name=cells.optional_text("name"),
            created_at=cells.time("created"),
            expires_at=cells.time("expiry_date"),
            revoked=cells.flag("revoked"),
        )


@dataclass(frozen=True)
class KnoxTokens:
    """Tokens of django-rest-knox: rows of ``knox_authtoken``, or of an ``AbstractAuthToken`` of your own.

    ``version`` is the major one that made them: version 4 digests the bytes that a token's hex stands for,
    version 5 the text, and refuses the tokens of version 4. ``prefix`` is TOKEN_PREFIX and ``length``
    AUTH_TOKEN_CHARACTER_LENGTH; SECURE_HASH_ALGORITHM must be SHA-512, the default.

    Raises ConfigurationError for another version.
    """

    version: Literal[4, 5] = 5
    prefix: str = ""
    length: int = 64
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    owner_column: ClassVar[str] = "user_id"

    def __post_init__(self) -> None:
        if self.version not in (4, 5) or (self.version == 4 and self.prefix):
            raise ConfigurationError("django-rest-knox is read in the versions 4, without prefix, and 5")
        made = self.length // 2 * 2  # a token is the hex of so many whole bytes
        _assign(self, "_pattern", re.compile(rf"{re.escape(self.prefix)}[0-9a-f]{{{made:d}}}"))

    @property
    def start(self) -> str:
        return self.prefix

    def __call__(self, text: str) -> tuple[str, str] | None:
        if not self._pattern.fullmatch(text):
            return None
        raw = bytes.fromhex(text) if self.version == 4 else text.encode("ascii")
        return _hashed_id("knox", hashlib.sha512(raw).hexdigest()), text

    def read(self, cells: Cells) -> KeyRow:
        digest, token_key = cells.text("digest"), cells.optional_text("token_key")
        if not _SHA512.fullmatch(digest):
            raise ValueError("digest is not 128 characters of hex: not SHA-512's")
        if cells.has("salt"):
            raise ValueError("it is salted, as before django-rest-knox 4.2")
        if token_key and (len(token_key) == 8) != (self.version == 4):  # 15 in version 5
            raise ValueError(f"by its token_key it was not made by django-rest-knox {self.version}")
        algorithm = "sha512-unhex" if self.version == 4 else "sha512"
        return KeyRow(
            id=_hashed_id("knox", digest),
            digest=f"{algorithm}$${digest}",
            created_at=cells.time("created"),
            expires_at=cells.time("expiry"),
        )


@dataclass(frozen=True)
class SanctumTokens:
    """Tokens of Laravel Sanctum, ``<id>|<token>``: rows of ``personal_access_tokens``.

    ``prefix`` is the configuration's ``token_prefix``, ``expiration`` its ``expiration``, which ends every
    token so long after it was made. With ``bare`` the tokens were given out without ``<id>|``; which of the
    two a row's was it does not tell, and one key has one text.

    The owner is ``tokenable_id`` of the models of ``tokenable_type``; the rows of other models, which have
    ids of their own, are refused. Abilities become scopes, those with ``*`` all that the owner may do. Tables
    of versions before 3 have no ``expires_at``: add it, empty.
    """

    prefix: str = ""
    bare: bool = False
    tokenable_type: str = field(default=r"App\Models\User", compare=False)
    expiration: timedelta | None = field(default=None, compare=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    owner_column: ClassVar[str] = "tokenable_id"
    _row_id: ClassVar = re.compile(r"[0-9A-Za-z-]{1,64}")

    def __post_init__(self) -> None:
        row_id = "" if self.bare else rf"(?P<id>{self._row_id.pattern})\|"
        # 80 random characters at first, then 40, since version 3.3 with their CRC-32 in hex behind them
        random = "(?:[0-9A-Za-z]{80}|(?P<random>[0-9A-Za-z]{40})(?P<check>[0-9a-f]{8})?)"
        _assign(self, "_pattern", re.compile(rf"{row_id}(?P<token>{re.escape(self.prefix)}{random})"))

    @property
    def start(self) -> str:
        return self.prefix if self.bare else ""

    def __call__(self, text: str) -> tuple[str, str] | None:
        match = self._pattern.fullmatch(text)
        if match is None:
            return None
        if match["check"] not in (None, f"{zlib.crc32((match['random'] or '').encode('ascii')):08x}"):
            return None
        token = match["token"]
        if self.bare:
            return _hashed_id("sanctum", hashlib.sha256(token.encode("ascii")).hexdigest()), token
        return f"sanctum-{match['id']}", token

    def read(self, cells: Cells) -> KeyRow:
        if cells.text("tokenable_type") != self.tokenable_type:
            raise ValueError(f"tokenable_type is not {self.tokenable_type}: its owner is of another kind")
        row_id, hashed, abilities = cells.text("id"), cells.text("token"), cells.names("abilities") or []
        if not self._row_id.fullmatch(row_id):
            raise ValueError("id is neither a number nor a UUID")
        if not _SHA256.fullmatch(hashed):
            raise ValueError("token is not 64 characters of hex: not SHA-256's")
        created_at, expires_at = cells.time("created_at"), cells.time("expires_at")
        return KeyRow(
            id=_hashed_id("sanctum", hashed) if self.bare else f"sanctum-{row_id}",
            digest=f"sha256$${hashed}",
            name=cells.optional_text("name"),
            scopes=None if "*" in abilities else abilities,
            created_at=created_at,
            expires_at=self._end(created_at, expires_at),
            last_used_at=cells.optional_time("last_used_at"),
        )

    def _end(self, created_at: datetime | None, expires_at: datetime | None) -> datetime | None:
        if self.expiration is None:
            return expires_at
        if created_at is None:
            raise ValueError("created_at is empty, and the expiration counts from it")
        try:
            end = created_at + self.expiration
        except OverflowError:
            return expires_at
        return end if expires_at is None else min(end, expires_at)


def _hashed_id(system: str, text: str) -> str:
    """Make an id of a text that nobody guesses, or of its digest."""
    return f"{system}-{hashlib.sha256(f'apikey_auth.{system}:{text}'.encode('ascii')).hexdigest()[:32]}"


def _assign(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)  # the way into a frozen dataclass while it is made
