"""What a key may do and how it changes. Pure: records in, decisions out, the clock is an argument."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Generic, TypeVar

from .errors import (
    AddressNotAllowed,
    ConfigurationError,
    DisabledKey,
    ExpiredKey,
    InactiveUser,
    InsufficientScope,
    InvalidKey,
    KeyNotLive,
    Refusal,
    RevokedKey,
)
from .keys import APIKey, KeyScheme, KeyText, in_utc

U_co = TypeVar("U_co", covariant=True)
Networks = tuple[IPv4Network | IPv6Network, ...]


EXPOSED = "sent over a connection that is not encrypted"
"""The ``revoked_reason`` of a key that was revoked for that."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The user that a key stands for, where the application gives no ``load_user``.

    It has what Starlette and Flask-Login expect of a user.
    """

    id: str

    is_authenticated = True
    is_active = True
    is_anonymous = False

    @property
    def identity(self) -> str:
        return self.id

    @property
    def display_name(self) -> str:
        return self.id

    def get_id(self) -> str:
        return self.id

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True)
class Identity(Generic[U_co]):
    """Who a request runs as: the user, and the key that said so.

    ``stale`` tells that the store could not be asked whether the key is still good.
    """

    user: U_co
    key: APIKey
    stale: bool = False

    @property
    def scopes(self) -> tuple[str, ...] | None:
        """What the key may do; None is all that its owner may do."""
        return self.key.scopes

    def has_scopes(self, *scopes: str) -> bool:
        """Say whether the key holds every one of these scopes."""
        return not missing_scopes(self.key, scopes)

    def require(self, *scopes: str) -> None:
        """Raise InsufficientScope unless the key holds every one of these scopes."""
        if missing := missing_scopes(self.key, scopes):
            raise InsufficientScope(missing)


def is_of(presented: KeyText, key: APIKey | None, scheme: KeyScheme) -> bool:
    """Say whether a text is this key's; for no key, no, after the same work."""
    return scheme.matches(key.digest if key else None, presented.text) and key is not None


def judge(key: APIKey | None, matches: bool, now: datetime) -> APIKey:
    """Judge all that does not depend on the request: is this the key, and is it live?

    Raises InvalidKey, RevokedKey, DisabledKey or ExpiredKey, in this order; what state a key is in is
    told only to who holds the whole key.
    """
    if key is None or not matches:
        raise InvalidKey
    if refusal := state(key, now):
        raise _because(key, refusal())
    return key


def _because(key: APIKey, refusal: Refusal) -> Refusal:
    """Say more to who holds the whole key, where the reason is one of the library's own."""
    if isinstance(refusal, RevokedKey) and key.revoked_reason == EXPOSED:
        refusal.detail = f"The API key has been revoked: it was {EXPOSED}."
    return refusal


def state(key: APIKey, now: datetime) -> type[Refusal] | None:
    """Say why a key is dead at a time; None for a live one. The second it expires in is too late."""
    if key.revoked_at is not None:
        return RevokedKey
    if key.disabled:
        return DisabledKey
    for end in (key.expires_at, key.grace_until):
        if end is not None and end <= now:
            return ExpiredKey
    return None


def end_of(key: APIKey) -> float:
    """Tell when a live key ends by itself, in seconds since the epoch; infinity for never."""
    return min((end.timestamp() for end in (key.expires_at, key.grace_until) if end), default=float("inf"))


def identify(key: APIKey, user: U_co | None, stale: bool = False) -> Identity[U_co]:
    """Put key and user together. Raises InactiveUser for no user, or one whose ``is_active`` is false."""
    active = getattr(user, "is_active", True)
    _check_settled("load_user gave something to await: it must be 'async def' itself", user)
    if active is not True:
        if callable(active):
            active = active()
        _check_settled("a user's is_active must not be async", active)
    if user is None or user is False or not active:
        raise InactiveUser
    return Identity(user, key, stale)


def _check_settled(complaint: str, value: object) -> None:
    if hasattr(value, "__await__"):  # it would be true, whatever comes of it
        if inspect.iscoroutine(value):
            value.close()
        raise ConfigurationError(complaint)


def check_request(key: APIKey, address: str | None, scopes: Iterable[str]) -> None:
    """Judge what depends on the request. Raises AddressNotAllowed, then InsufficientScope."""
    if key.addresses is not None and not _contains(networks(key.addresses), address):
        raise AddressNotAllowed
    if missing := missing_scopes(key, scopes):
        raise InsufficientScope(missing)


def missing_scopes(key: APIKey, required: Iterable[str]) -> tuple[str, ...]:
    """List the required scopes that a key lacks."""
    held = key.scopes
    if isinstance(required, str):
        required = (required,)
    return () if held is None else tuple(scope for scope in required if scope not in held)


@lru_cache(maxsize=4096)
def networks(blocks: tuple[str, ...]) -> Networks:
    """Parse CIDR blocks. Raises ValueError for one that is none."""
    return tuple(map(ip_network, blocks))


def is_proxy(peer: str | None, proxies: Networks, unix: bool) -> bool:
    """Say whether the other end of a connection is a proxy that the deployment names."""
    return _contains(proxies, peer) if peer else unix


_LOOPBACK = networks(("127.0.0.0/8", "::1/128"))


def client_address(peer: str | None, forwarded_for: str | None, proxies: Networks, unix: bool) -> str | None:
    """Find the client's address behind the proxies that the deployment names.

    ``peer`` is the other end of the connection, None or empty on a Unix socket. X-Forwarded-For is read
    from the right, and only as long as the address to the right of it is a named proxy: whatever stands
    further left was written by somebody nobody vouches for.
    """
    if not is_proxy(peer, proxies, unix) or not forwarded_for:
        return peer or None
    left, comma, hop = forwarded_for.rpartition(",")
    while comma and _contains(proxies, hop.strip()):
        left, comma, hop = left.rpartition(",")
    return hop.strip()


def client_scheme(
    scheme: str,
    peer: str | None,
    forwarded_for: str | None,
    forwarded_proto: str | None,
    proxies: Networks,
    unix: bool,
) -> str:
    """Find the scheme of the client's own connection behind the proxies that the deployment names.

    ``scheme`` is that of the connection that arrived here. X-Forwarded-Proto is read from the right, as far
    as ``client_address`` reads X-Forwarded-For; a proxy that does not pass the list on has set the last one.
    """
    if not is_proxy(peer, proxies, unix) or not forwarded_proto:
        return scheme
    named = 1
    left, comma, hop = (forwarded_for or "").rpartition(",")
    while comma and _contains(proxies, hop.strip()):
        named += 1
        left, comma, hop = left.rpartition(",")
    schemes = forwarded_proto.split(",")
    return schemes[-min(named, len(schemes))].strip().lower()


def is_loopback(address: str | None) -> bool:
    """Say whether a client is on this very machine."""
    return _contains(_LOOPBACK, address)


def _contains(blocks: Networks, address: str | None) -> bool:
    try:
        found = ip_address(address or "")
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in block for block in blocks)


def expiry(now: datetime, expires_in: timedelta | None, not_after: datetime | None = None) -> datetime | None:
    """Turn a lifetime into a time, ``not_after`` at the latest; None is never.

    Raises ValueError for a lifetime that is not positive.
    """
    if not_after is not None:
        not_after = in_utc("not_after", not_after)
        if not_after <= now:
            raise ValueError(f"not_after is past: {not_after}")
    if expires_in is None:
        return not_after
    _check_span("expires_in", expires_in)
    if expires_in <= timedelta(0):
        raise ValueError(f"expires_in must be positive, not {expires_in}")
    end = _later(now, expires_in)
    return end if not_after is None else min(end, not_after)


def _check_span(name: str, span: object) -> None:
    if not isinstance(span, timedelta):
        raise TypeError(f"{name} is a timedelta, such as timedelta(days=90), not {span!r}")


def _later(now: datetime, span: timedelta) -> datetime:
    try:
        return now + span
    except OverflowError:
        raise ValueError(f"{span} from now is after the year 9999") from None


def changed(key: APIKey, **fields: object) -> APIKey:
    """Make the next version of a record."""
    return replace(key, version=key.version + 1, **fields)  # type: ignore[arg-type]


def revoked(key: APIKey, now: datetime, reason: str | None) -> APIKey | None:
    """Revoke a record; None if it is revoked already, whose time and reason stay."""
    if key.revoked_at is not None:
        return None
    return changed(key, revoked_at=now, revoked_reason=reason)


def redigested(key: APIKey, presented: KeyText, scheme: KeyScheme) -> APIKey | None:
    """Put the digest of a key that was just judged good under the newest pepper; None if it is there."""
    if not scheme.is_outdated(key.digest):
        return None
    digest = scheme.digest(presented.text)
    return changed(key, digest=digest, last4=key.last4 or presented.last4)


def rotated(
    key: APIKey,
    minted: KeyText,
    digest: str,
    now: datetime,
    grace: timedelta,
    life: timedelta | None,
    not_after: datetime | None = None,
    created_by: str | None = None,
) -> tuple[APIKey, APIKey]:
    """Make the two records of a rotation: the old one in its grace, and its successor.

    ``created_by`` is who had the successor made, if that is not who made the old one.
    Raises KeyNotLive for a key that is dead or was rotated before, ValueError for a negative grace.
    """
    _check_span("grace", grace)
    if grace < timedelta(0):
        raise ValueError(f"grace must not be negative, it is {grace}")
    if refusal := state(key, now):
        raise KeyNotLive(f"the key {key.id!r} cannot be rotated. {refusal.detail} Issue a new one.")
    if key.rotated_to is not None:
        raise KeyNotLive(f"the key {key.id!r} was rotated already, to {key.rotated_to!r}")
    successor = replace(
        key,
        id=minted.id,
        digest=digest,
        prefix=minted.prefix,
        last4=minted.last4,
        created_at=now,
        created_by=key.created_by if created_by is None else created_by,
        expires_at=expiry(now, life, not_after),
        rotated_from=key.id,
        grace_until=None,
        last_used_at=None,
        version=1,
    )
    return changed(key, rotated_to=minted.id, grace_until=_later(now, grace)), successor


def lifetime(key: APIKey) -> timedelta | None:
    """Tell how long a key was meant to live; None is for ever."""
    return None if key.expires_at is None else key.expires_at - key.created_at


def descendants(keys: Iterable[APIKey], ancestors: Iterable[str]) -> set[str]:
    """Find the unrevoked keys that were made by way of some keys, or by way of keys so made, or replaced them."""
    children: dict[str, list[APIKey]] = {}
    for key in keys:
        for parent in (key.created_by, key.rotated_from):
            if parent is not None:
                children.setdefault(parent, []).append(key)
    found: dict[str, APIKey] = {}
    waiting = list(ancestors)
    while waiting:
        for key in children.get(waiting.pop(), ()):
            if key.id not in found:
                found[key.id] = key
                waiting.append(key.id)
    return {key.id for key in found.values() if key.revoked_at is None}


def newest_last(keys: Sequence[APIKey]) -> list[APIKey]:
    """Sort by age, ids deciding between keys of one moment."""
    return sorted(keys, key=lambda key: (key.created_at, key.id))


def dead_before(key: APIKey, time: datetime) -> bool:
    """Say whether a key was dead for good before a time; a disabled one may live again."""
    return any(end is not None and end < time for end in (key.revoked_at, key.expires_at, key.grace_until))
