"""What can be done to keys over HTTP, and by whom. Scripts, whatever the dialect.

A caller who came with a key manages keys only if the key's scopes are None or hold ``apikeys:manage``,
and hands out no more than it has: no scope, no address and no hour of life beyond its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from ipaddress import ip_network
from typing import Any, TypeAlias, TypeVar

from ..decisions import missing_scopes, state
from ..errors import (
    Conflict,
    InsufficientScope,
    InvalidKey,
    KeyNotFound,
    KeyNotLive,
    MissingKey,
    Refusal,
)
from ..keys import APIKey, IssuedKey
from ..manage import NewKey, no_guard
from ..stores.protocol import Page
from .handler import BadRequest, NotAllowed, NotFound, NotPossible, Script
from .rights import Answer, Caller, Rights

MANAGE = "apikeys:manage"

T = TypeVar("T")
Manager: TypeAlias = Any  # a KeyManager or an AsyncKeyManager: whoever plays the script knows which


@dataclass(frozen=True, slots=True)
class Actions:
    """Everything a dialect offers, on behalf of one caller."""

    caller: Caller
    keys: Manager
    rights: Rights

    def list(self, owner: str) -> "Script[list[APIKey]]":
        """List an owner's records. Raises MissingKey, InsufficientScope or NotAllowed."""
        yield from self.maker()
        yield from self._allowed(partial(self.rights.can_list, self.caller, owner))
        listed: list[APIKey] = yield from _checked(partial(self.keys.list, owner))
        return listed

    def page(self, owner: str, after: str | None, limit: int) -> Script[Page]:
        """List a page of an owner's records, by id."""
        yield from self.maker()
        yield from self._allowed(partial(self.rights.can_list, self.caller, owner))
        find = partial(self.keys.find, owner=owner, after=after, limit=limit)
        page: Page = yield from _checked(find)
        return page

    def find(self, key_id: str) -> Script[APIKey | None]:
        """Read a record that the caller may see; None for any other."""
        yield from self.maker()
        try:
            key: APIKey = yield from _checked(partial(self.keys.get, key_id))
        except NotFound:
            return None
        visible = yield partial(self.rights.can_list, self.caller, key.owner)
        return key if visible else None

    def create(self, owner: str, fields: NewKey) -> Script[IssuedKey]:
        """Make a key. Raises MissingKey, InsufficientScope, NotAllowed, or BadRequest for a bad field."""
        maker = yield from self.maker()
        yield from self._allowed(partial(self.rights.can_create, self.caller, owner))
        fields = {**fields, "created_by": maker.id if maker else self.caller.owner}
        if maker is not None:
            fields = within(maker, fields)
        issued: IssuedKey = yield from _checked(partial(self.keys.issue, owner, **fields))
        yield from self._still_made_by(maker, issued)
        return issued

    def rotate(self, key: APIKey, **options: Any) -> Script[IssuedKey]:
        """Replace a key. Raises NotPossible for a dead one, and what ``create`` raises."""
        maker = yield from self.maker()
        yield from self._allowed(partial(self.rights.can_create, self.caller, key.owner))
        yield from self._allowed(partial(self.rights.can_delete, self.caller, key.owner))
        if maker is not None:
            options["not_after"] = end_of(maker)
            options["guard"] = partial(_rotatable, maker)
            if key.id != maker.id:  # whose successor descends from it anyway
                options["created_by"] = maker.id
        issued: IssuedKey = yield from _checked(partial(self.keys.rotate, key.id, **options))
        yield from self._still_made_by(maker, issued)
        return issued

    def edit(self, key: APIKey, fields: dict[str, Any]) -> Script[APIKey]:
        """Change a record. A key may narrow any other, and widen or wake one only to what it is itself."""
        maker = yield from self.maker()
        yield from self._allowed(partial(self.rights.can_delete, self.caller, key.owner))
        guard = no_guard if maker is None else partial(_editable, maker, fields)
        changed: APIKey = yield from _checked(partial(self.keys.edit, key.id, guard=guard, **fields))
        return changed

    def delete(self, key: APIKey, *, descendants: bool = False) -> Script[None]:
        """Revoke one key. Raises NotAllowed, and nothing for one that is dead already."""
        yield from self.maker()
        yield from self._allowed(partial(self.rights.can_delete, self.caller, key.owner))
        revoke = partial(self.keys.revoke, key.id, reason=self._reason(), descendants=descendants)
        with suppress(NotFound):  # purged meanwhile
            yield from _checked(revoke)

    def delete_all(self, owner: str | None) -> Script[int]:
        """Revoke an owner's keys, or everybody's (None): for administrators only."""
        yield from self.maker()
        yield from self._allowed(partial(self.rights.is_admin, self.caller))
        owners = () if owner is None else (owner,)
        revoke = partial(self.keys.revoke_all, *owners, reason=self._reason())
        revoked: int = yield from _checked(revoke)
        return revoked

    def maker(self) -> Script[APIKey | None]:
        """Read the caller's key afresh from the store; None for a caller who came without one.

        Raises the refusal of a key that is dead by now, InsufficientScope for one that may not manage keys.
        """
        if self.caller.key is None:
            return None
        try:
            key: APIKey = yield partial(self.keys.get, self.caller.key.id)
        except KeyNotFound:
            raise InvalidKey from None
        if refusal := state(key, self.keys.clock()):
            raise refusal
        if missing := missing_scopes(key, [MANAGE]):
            raise InsufficientScope(missing)
        return key

    def _still_made_by(self, maker: APIKey | None, issued: IssuedKey) -> Script[None]:
        """Look at the maker once more: a key revoked meanwhile must not live on in what it made.

        One that has replaced itself could not have done it, had it been revoked.
        """
        if maker is None or maker.id == issued.key.rotated_from:
            return
        try:
            fresh = yield from self.maker()
            check_within(fresh or maker, issued.key.scopes, issued.key.addresses, [issued.key.expires_at])
        except Refusal:
            yield partial(self.keys.revoke, issued.key.id, reason="its maker lost the right meanwhile")
            raise

    def _allowed(self, ask: "partial[Answer]") -> Script[None]:
        if not (yield ask):
            raise MissingKey if self.caller.owner is None else NotAllowed

    def _reason(self) -> str:
        by = f"key {self.caller.key.id}" if self.caller.key else f"user {self.caller.owner}"
        return f"deleted by {by}"


def within(maker: APIKey, fields: NewKey) -> NewKey:
    """Cut the fields of a new key down to its maker's, or raise InsufficientScope for what it asks beyond."""
    scopes, addresses = fields.get("scopes"), fields.get("addresses")
    scopes = maker.scopes if scopes is None else scopes
    addresses = maker.addresses if addresses is None else addresses
    check_within(maker, scopes, addresses)
    return {**fields, "scopes": scopes, "addresses": addresses, "not_after": end_of(maker)}


def _rotatable(maker: APIKey, key: APIKey) -> APIKey:
    """Raise unless a key may replace another, as that is now, by one of the same rights."""
    check_within(maker, key.scopes, key.addresses)
    if key.id == maker.id and end_of(key) != end_of(maker):
        raise NotPossible("The API key was changed meanwhile.")
    return key


def _editable(maker: APIKey, fields: Mapping[str, Any], key: APIKey) -> APIKey:
    """Raise unless a key may change another, as that is now, in these fields."""
    if widens(key, fields):
        check_within(
            maker,
            fields.get("scopes", key.scopes),
            fields.get("addresses", key.addresses),
            [fields.get("expires_at", key.expires_at)],
        )
    return key


def widens(key: APIKey, fields: Mapping[str, Any]) -> bool:
    """Say whether changed fields let a key do more, from more places or for longer, or wake it."""
    named = ("scopes", "addresses", "expires_at", "disabled")
    changed = replace(key, **{name: value for name, value in fields.items() if name in named})
    more = key.scopes is not None and (changed.scopes is None or missing_scopes(key, changed.scopes))
    farther = key.addresses is not None and not _covered(changed.addresses, key.addresses)
    longer = key.expires_at is not None and (
        changed.expires_at is None or changed.expires_at > key.expires_at
    )
    return bool(more or farther or longer or (key.disabled and not changed.disabled))


def check_within(
    maker: APIKey,
    scopes: Sequence[str] | None,
    addresses: Sequence[str] | None,
    ends: Iterable[datetime | None] = (),
) -> None:
    """Raise unless scopes, addresses and ends of life lie within a key's own."""
    if maker.scopes is not None:
        if scopes is None:
            raise InsufficientScope(["of all that its owner may do"])
        if missing := missing_scopes(maker, scopes):
            raise InsufficientScope(missing)
    if maker.addresses is not None and not _covered(addresses, maker.addresses):
        raise NotAllowed
    latest = end_of(maker)
    if latest is not None and any(end is None or end > latest for end in ends):
        raise NotAllowed


def end_of(key: APIKey) -> datetime | None:
    """Tell when a key's life ends at the latest; None is never."""
    return min((end for end in (key.expires_at, key.grace_until) if end is not None), default=None)


def _covered(addresses: Sequence[str] | None, blocks: Sequence[str]) -> bool:
    if addresses is None:
        return False
    outer = [ip_network(block) for block in blocks]
    return all(
        any(inner.version == block.version and inner.subnet_of(block) for block in outer)
        for inner in map(_network, addresses)
    )


def _network(address: str) -> Any:
    try:
        return ip_network(address)
    except ValueError as error:
        raise BadRequest(f"{error}.") from None


def _checked(call: "partial[T]") -> Script[T]:
    """Make a call on the manager, and say in HTTP's terms what it does not like."""
    try:
        answer: T = yield call
    except KeyNotFound:
        raise NotFound from None
    except (KeyNotLive, Conflict) as error:
        raise NotPossible(f"{error}.".replace("..", ".")) from None
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{error}.") from None
    return answer
