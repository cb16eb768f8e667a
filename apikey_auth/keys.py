"""Keys: the stored record, the key shown once, and the scheme their texts follow. No store, no HTTP.

A key text is ``<prefix>_<id>_<secret><check>``, as in ``acme_4fRk0TzQ9bVw_<32 characters><6 characters>``.
The check is a CRC32 of everything before it: it tells a real key from noise and from a typing error
before any store is asked. It is public and proves nothing. A *seal*, 11 characters between secret and check,
is an HMAC of what stands before it: nobody without the secret makes a text that costs a call of the store.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, NoReturn, TypeAlias

from . import hashing
from .errors import ConfigurationError, InvalidKey
from .formats import Format, OpaqueTokens
from .hints import MISTYPED, hint
from .layout import BASE62, CHECK_LENGTH, ID_LENGTH, SEAL_LENGTH, SECRET_LENGTH, fits
from .layout import base62 as _base62
from .layout import checksum as _checksum

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"

MAX_TEXT = 512  # bytes of a credential that are looked at; more is refused unread
MAX_NAME = 255  # characters of an id, an owner, a name: what every database's indexed text can hold
MAX_LISTED = 256  # scopes, and addresses, of one key
MAX_DEPTH = 32  # levels of a key's metadata

_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
_OPAQUE = re.compile(r"[!-+\--~]+")  # printable ASCII without blank and comma
_SURROGATE = re.compile("[\ud800-\udfff]")
_SCOPE = re.compile(r"[!#-\[\]-~]{1,255}")  # scope-token, RFC 6749 section 3.3


def _refuse(*_: object, **__: object) -> NoReturn:
    raise TypeError("a key's record cannot be changed; use keys.edit(key_id, metadata=…)")


class _Nothing(dict[str, JSON]):
    """The metadata of every key that has none: whoever sees a key shares it, so nobody can change it."""

    __setitem__: Any = _refuse
    setdefault: Any = _refuse
    update: Any = _refuse
    __ior__: Any = _refuse


_NOTHING = _Nothing()


@dataclass(frozen=True, slots=True)
class APIKey:
    """A key as it is stored: everything but its secret.

    Times are aware and kept in UTC. ``scopes`` None allows all that the owner may do, ``()`` nothing;
    ``addresses`` None allows every client, else the CIDR blocks it may come from. ``metadata`` is the
    application's own, any JSON object. ``version`` counts the changes.

    Raises ValueError for a field that no store could keep or no request could match.
    """

    id: str
    owner: str
    digest: str = field(repr=False)
    name: str = ""
    prefix: str = ""
    last4: str = ""
    scopes: tuple[str, ...] | None = None
    addresses: tuple[str, ...] | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    created_by: str | None = None
    expires_at: datetime | None = None
    disabled: bool = False
    revoked_at: datetime | None = None
    revoked_reason: str | None = None
    rotated_to: str | None = None
    rotated_from: str | None = None
    grace_until: datetime | None = None
    last_used_at: datetime | None = None
    metadata: Mapping[str, JSON] = field(default_factory=dict, hash=False)
    version: int = 1

    def __post_init__(self) -> None:
        for name in ("id", "owner", "name", "digest", "prefix"):
            check_text(name, getattr(self, name))
        for name in ("created_by", "rotated_to", "rotated_from"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if self.revoked_reason is not None:
            check_text("revoked_reason", self.revoked_reason, None)
        if not isinstance(self.disabled, bool):
            raise TypeError(f"disabled is True or False, not {self.disabled!r}")
        for name in ("id", "owner"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        for name in ("created_at", "expires_at", "revoked_at", "grace_until", "last_used_at"):
            if (time := getattr(self, name)) is not None:
                _assign(self, name, in_utc(name, time))
        _assign(self, "scopes", checked_scopes(self.scopes))
        _assign(self, "addresses", _networks(self.addresses))
        _assign(self, "metadata", _json_object(self.metadata) if self.metadata else _NOTHING)


def restored(fields: Mapping[str, Any]) -> APIKey:
    """Make a record of fields that were checked when it was made first: what a store reads, it has written."""
    key, assign = object.__new__(APIKey), object.__setattr__
    for name in APIKey.__slots__:
        assign(key, name, fields[name])
    if not key.metadata:
        assign(key, "metadata", _NOTHING)
    return key


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key just made. ``text`` is what its holder sends; it is stored nowhere and shown once."""

    key: APIKey
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key's text taken apart: the id to look it up by, and the text whose digest must match."""

    id: str
    text: str = field(repr=False)
    secret: str = field(repr=False)
    prefix: str = ""

    @property
    def last4(self) -> str:
        """The secret's last four characters, by which people tell keys apart; none of a short text."""
        return self.secret[-4:] if len(self.text) >= 16 else ""


@dataclass(frozen=True)
class KeyScheme:
    """How key texts look and how they are digested; one for authenticators and managers alike.

    ``prefix`` names your product, so that people and secret scanners know its keys:
    ``[A-Za-z][A-Za-z0-9_]{0,31}``. ``peppers`` are secrets, oldest to newest: new keys take the newest,
    keys under the others stay good. ``formats`` read keys of an older system, in order; a text that
    starts with ``<prefix>_`` is never given to them.

    ``seal_keys`` are secrets, oldest to newest: new keys are sealed with the newest, a text whose seal is
    none of theirs is refused before any store is asked, and dropping one ends the keys sealed with it.
    ``require_seal`` refuses texts without a seal too, as keys from before have none. Without ``seal_keys``
    seals are not looked at.

    Raises ConfigurationError for a prefix, a pepper or a format that will not do.
    """

    prefix: str = "apikey"
    peppers: Sequence[str | bytes] = field(default=(), repr=False)
    formats: Sequence[Format] = ()
    seal_keys: Sequence[str | bytes] = field(default=(), repr=False)
    require_seal: bool = False
    _seals: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _peppers: tuple[hashing.Pepper, ...] = field(init=False, repr=False, compare=False)
    _start: str = field(init=False, repr=False, compare=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _stand_in: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str) or not _PREFIX.fullmatch(self.prefix):
            raise ConfigurationError(
                f"the prefix {self.prefix!r} must be a letter and up to 31 letters, digits or underscores"
            )
        for name, listed in {
            "peppers": "secrets, oldest to newest",
            "seal_keys": "secrets, oldest to newest",
            "formats": "formats, such as opaque_tokens()",
        }.items():
            given = getattr(self, name)
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise ConfigurationError(f"{name} is a list of {listed}, not {type(given).__name__}")
        if self.require_seal and not self.seal_keys:
            raise ConfigurationError("require_seal takes seal_keys")
        _assign(self, "peppers", tuple(self.peppers))
        _assign(self, "seal_keys", tuple(self.seal_keys))
        _assign(self, "formats", tuple(self.formats))
        _check_formats(self)
        _assign(self, "_seals", tuple(hashing.derive(key, "seal") for key in self.seal_keys))
        _assign(self, "_peppers", tuple(map(hashing.Pepper.of, self.peppers)))
        _assign(self, "_start", f"{self.prefix}_")
        _assign(self, "_pattern", _pattern_of(self.prefix))
        _assign(self, "_stand_in", self.digest(""))  # no request can carry the empty text

    def mint(self, key_id: str | None = None) -> KeyText:
        """Make a new key text, with a given id of 12 base62 characters or a random one."""
        key_id = _random(ID_LENGTH) if key_id is None else key_id
        secret = _random(SECRET_LENGTH)
        body = f"{self.prefix}_{key_id}_{secret}"
        if self._seals:
            body += _seal(self._seals[-1], body)
        return self.parse(body + _checksum(body))

    def parse(self, text: str) -> KeyText:
        """Take a key text apart; total over all texts.

        Raises InvalidKey for anything that is no key of this scheme, byte for byte; its ``detail`` says what
        the text seems to be instead (see ``hints``). A forged seal is refused as an unknown key is.
        """
        if not isinstance(text, str):
            raise TypeError(f"a key is text, not {type(text).__name__}")
        found = self.read(text)
        if isinstance(found, InvalidKey):
            raise found
        return found

    def read(self, text: str) -> KeyText | InvalidKey:
        """Take a key text apart, or say why it is none: ``parse``, whose refusal is given and not raised."""
        if len(text) > MAX_TEXT:
            return InvalidKey()
        if not text.startswith(self._start):
            return self._read_foreign(text)
        match = self._pattern.fullmatch(text)
        if match is None:
            return InvalidKey(detail=hint(text, self))
        body, key_id, secret, seal, check = match.groups()
        if not fits(text[:-CHECK_LENGTH], check):
            return InvalidKey(detail=MISTYPED)
        if self._seals and not self._is_sealed(body, seal):
            return InvalidKey()
        return KeyText(key_id, text, secret, self.prefix)

    def _read_foreign(self, text: str) -> KeyText | InvalidKey:
        if self.formats and _OPAQUE.fullmatch(text):
            for read in self.formats:
                if (found := read(text)) is not None:
                    key_id, digested = found
                    return KeyText(key_id, digested, digested)
        return InvalidKey(detail=hint(text, self))

    def _is_sealed(self, body: str, seal: str | None) -> bool:
        if seal is None:
            return not self.require_seal
        return sum(hmac.compare_digest(_seal(key, body), seal) for key in self._seals) > 0  # each is compared

    def digest(self, text: str) -> str:
        """Digest a text under the newest pepper."""
        return hashing.digest(text, self._peppers[-1] if self._peppers else None)

    def is_outdated(self, digest: str) -> bool:
        """Say whether new keys are digested in another way: under a newer pepper, or not as another system's."""
        return digest.rpartition("$")[0] != self._stand_in.rpartition("$")[0]

    def matches(self, digest: str | None, text: str) -> bool:
        """Say, in constant time, whether a stored digest is this text's.

        None, for an unknown key, matches nothing and takes the same work.
        """
        return hashing.matches(self._stand_in if digest is None else digest, text, self._peppers)


def _check_formats(scheme: KeyScheme) -> None:
    """Raise ConfigurationError for formats whose keys could never be used, or would give a secret away."""
    for read in scheme.formats:
        if not callable(read) or isinstance(read, type):
            raise ConfigurationError(f"{read!r} is no format, which is a function of a text: opaque_tokens()")
        if isinstance(read, OpaqueTokens) and scheme.peppers and not read.keyed:
            raise ConfigurationError(
                "with peppers, opaque_tokens(lookup_secret) takes a secret too, the oldest pepper for one: "
                "without it the ids would give away what the peppers protect"
            )
        if getattr(read, "start", "").startswith(f"{scheme.prefix}_"):
            raise ConfigurationError(
                f"texts that start with '{scheme.prefix}_' are never given to a format: take another prefix"
            )
    if any(isinstance(read, OpaqueTokens) for read in scheme.formats[:-1]):
        raise ConfigurationError("opaque tokens are any text: their format must be the last one")


def named_id(prefix: str, owner: str, name: str) -> str:
    """Derive the id that a key of this prefix, owner and name always has (see ``KeyManager.ensure``)."""
    seed = json.dumps([prefix, owner, name]).encode("ascii")
    return _base62(int.from_bytes(hashlib.sha256(seed).digest()), ID_LENGTH)


def is_storable(text: str) -> bool:
    """Say whether every database can keep a text: PostgreSQL keeps no NUL, UTF-8 has no lone surrogates."""
    return "\0" not in text and not _SURROGATE.search(text)


def _random(length: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(length))


def _pattern_of(prefix: str) -> re.Pattern[str]:
    def part(name: str, length: int) -> str:
        return f"(?P<{name}>[0-9A-Za-z]{{{length}}})"

    body = f"(?P<body>{prefix}_{part('id', ID_LENGTH)}_{part('secret', SECRET_LENGTH)})"
    return re.compile(f"{body}{part('seal', SEAL_LENGTH)}?{part('check', CHECK_LENGTH)}")


def _seal(key: bytes, body: str) -> str:
    return _base62(int.from_bytes(hmac.digest(key, body.encode("ascii"), "sha256")[:8]), SEAL_LENGTH)


def _assign(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)  # the way into a frozen dataclass while it is made


def check_text(name: str, value: Any, limit: int | None = MAX_NAME) -> None:
    """Raise TypeError or ValueError for what is no text that every database can keep."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {type(value).__name__}; use str(…)")
    if limit is not None and len(value) > limit:
        raise ValueError(f"{name} has {len(value)} characters, at most {limit} are kept")
    if not is_storable(value):
        raise ValueError(f"{name} must not hold a NUL character or a lone surrogate: no database keeps them")


def in_utc(name: str, value: datetime) -> datetime:
    """Turn a time into UTC. Raises TypeError for what is no datetime, ValueError for a naive one."""
    if not isinstance(value, datetime):
        raise TypeError(f"{name} is a datetime, such as datetime.now(UTC), not {value!r}")
    if value.tzinfo is UTC:
        return value
    if value.utcoffset() is None:
        raise ValueError(f"{name} has no time zone; use datetime.now(UTC) or attach one")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{name} lies outside of the years 1 to 9999 in UTC") from None


def checked_scopes(scopes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Make a tuple of scopes. Raises TypeError for one in the place of a list, ValueError for no scope."""
    if scopes is None:
        return None
    if isinstance(scopes, str):
        raise TypeError(f"scopes is a list; did you mean [{scopes!r}]?")
    kept = _few("scopes", scopes)
    for scope in kept:
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            raise ValueError(f"{scope!r} is no scope: printable ASCII, no blank, quote or backslash")
    return kept


def _networks(addresses: Sequence[str] | None) -> tuple[str, ...] | None:
    if addresses is None:
        return None
    if isinstance(addresses, str):
        raise TypeError(f"addresses is a list; did you mean [{addresses!r}]?")
    return tuple(dict.fromkeys(map(checked_block, _few("addresses", addresses))))


def _few(name: str, values: Sequence[str]) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(values))
    if len(kept) > MAX_LISTED:  # each request reads all of them
        raise ValueError(f"a key has {MAX_LISTED} {name} at most, not {len(kept)}")
    return kept


def checked_block(address: str) -> str:
    """Write a CIDR block as it is kept. Raises ValueError for what is none, or could match no client."""
    network = ip_network(address)
    if getattr(network.network_address, "ipv4_mapped", None) is not None:
        raise ValueError(f"{address!r} is IPv4 within IPv6; clients of it are matched as IPv4, write that")
    return str(network)


def _json_object(metadata: Mapping[str, JSON]) -> dict[str, JSON]:
    """Copy by way of JSON: what cannot be stored is refused here, and nobody else holds the copy."""
    try:
        copy: dict[str, JSON] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be a JSON object: {error}") from None
    _check_depth(copy, MAX_DEPTH)
    return copy


def _check_depth(value: JSON, left: int) -> None:
    """Raise ValueError for what nests so deeply that some driver's JSON would fail where this one did not."""
    if left < 0:
        raise ValueError(f"metadata must be a JSON object of {MAX_DEPTH} levels at most")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, left - 1)
