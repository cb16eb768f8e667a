"""Issuing, changing and revoking keys. The two classes are twins: one text, two colours.

A change is decided on the record as it was read and written only if it still is that record; otherwise
it is read and decided again.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from . import decisions
from .errors import ConfigurationError, Conflict, DuplicateKey, KeyNotFound
from .keys import JSON, APIKey, IssuedKey, KeyScheme, KeyText, check_text, in_utc, named_id
from .stores.protocol import (
    MANAGING,
    AsyncKeyReader,
    AsyncKeyStore,
    KeyReader,
    KeyStore,
    Page,
    check_store,
)

DEFAULT_LIFE = timedelta(days=365)
ATTEMPTS = 20  # to change a record that others keep changing


class Unset:
    """The type of an argument that was not given, where None means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


def checked_scheme(scheme: KeyScheme | None) -> KeyScheme:
    """Give the scheme, the default one for None. Raises ConfigurationError for what is none."""
    if scheme is not None and not isinstance(scheme, KeyScheme):
        raise ConfigurationError(f"the scheme is a KeyScheme, such as KeyScheme(prefix={scheme!r})")
    return scheme or KeyScheme()


def utc_now() -> datetime:
    return datetime.now(UTC)


def _record(
    scheme: KeyScheme,
    text: KeyText,
    now: datetime,
    owner: str,
    name: str,
    scopes: Sequence[str] | None,
    addresses: Sequence[str] | None,
    expires_in: timedelta | None,
    metadata: Mapping[str, JSON] | None,
    created_by: str | None,
) -> IssuedKey:
    key = APIKey(
        id=text.id,
        owner=owner,
        digest=scheme.digest(text.text),
        name=name,
        prefix=text.prefix,
        last4=text.last4,
        scopes=scopes,  # type: ignore[arg-type]  # the record makes tuples of both
        addresses=addresses,  # type: ignore[arg-type]
        created_at=now,
        created_by=created_by,
        expires_at=decisions.expiry(now, expires_in),
        metadata=metadata or {},
    )
    return IssuedKey(key, text.text)


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not UNSET}


def _check_id(key_id: str) -> None:
    if not isinstance(key_id, str):
        raise TypeError(f"a key's id is text, issued.key.id, not {type(key_id).__name__}")


def _owner_or_all(owner: str | Unset) -> str | None:
    if isinstance(owner, Unset):
        return None
    if not isinstance(owner, str) or not owner:
        raise TypeError(f"owner must be text, not {owner!r}; leave it out to revoke everybody's keys")
    return owner


class KeyManager:
    """Makes, finds, changes and revokes the keys of one store.

    Raises ConfigurationError for a store that is async or lacks a method; every method raises
    StoreUnavailable when the store fails, and then says nothing about whether the change was made.
    """

    def __init__(
        self,
        store: KeyReader,
        scheme: KeyScheme | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        check_store(store, MANAGING, asynchronous=False)
        self._store: KeyStore = store  # type: ignore[assignment]  # just checked
        self._scheme = checked_scheme(scheme)
        self._clock = clock

    def issue(
        self,
        owner: str,
        *,
        name: str = "",
        scopes: Sequence[str] | None = None,
        addresses: Sequence[str] | None = None,
        expires_in: timedelta | None = DEFAULT_LIFE,
        metadata: Mapping[str, JSON] | None = None,
        created_by: str | None = None,
    ) -> IssuedKey:
        """Make a new key for an owner. Its text is in the answer and nowhere else.

        ``owner`` is the user's lasting id as text (``str(user.pk)``), ``scopes`` what the key may do (None:
        all that the owner may), ``addresses`` the CIDR blocks it may be used from (None: all).
        ``expires_in`` None makes a key that never expires. Raises ValueError or TypeError for a field that
        will not do.
        """
        text = self._scheme.mint()
        issued = _record(
            self._scheme,
            text,
            self._clock(),
            owner,
            name,
            scopes,
            addresses,
            expires_in,
            metadata,
            created_by,
        )
        self._store.add(issued.key)
        return issued

    def ensure(
        self,
        owner: str,
        *,
        name: str,
        text: str | None = None,
        scopes: Sequence[str] | None = None,
        addresses: Sequence[str] | None = None,
        expires_in: timedelta | None = DEFAULT_LIFE,
        metadata: Mapping[str, JSON] | None = None,
        created_by: str | None = None,
    ) -> IssuedKey | None:
        """Make an owner's key of this name unless there is one, dead or alive; None if there is.

        It is made once however many workers start together: its id follows from prefix, owner and name, so
        that the second of two finds it there. ``text`` is a key from the configuration to take instead of
        a new one. Raises InvalidKey if that text is no key of the scheme.
        """
        minted = self._scheme.mint(named_id(self._scheme.prefix, owner, name))
        chosen = minted if text is None else self._scheme.parse(text)
        issued = _record(
            self._scheme,
            chosen,
            self._clock(),
            owner,
            name,
            scopes,
            addresses,
            expires_in,
            metadata,
            created_by,
        )
        try:
            self._store.add(issued.key)
        except DuplicateKey:
            return None
        return issued

    def get(self, key_id: str) -> APIKey:
        """Read one record. Raises KeyNotFound."""
        _check_id(key_id)
        key = self._store.get(key_id)
        if key is None:
            raise KeyNotFound(key_id)
        return key

    def list(self, owner: str) -> "list[APIKey]":
        """List all records of an owner, oldest first."""
        check_text("owner", owner)
        keys: list[APIKey] = []
        after = None
        while True:
            page = self._store.find(owner=owner, after=after, limit=1000)
            keys.extend(page.items)
            if (after := page.next) is None:
                return decisions.newest_last(keys)

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List records page by page, of one owner or of everybody; see ``KeyStore.find``."""
        live_at = None if live_at is None else in_utc("live_at", live_at)
        return self._store.find(owner=owner, live_at=live_at, after=after, limit=limit)

    def edit(
        self,
        key_id: str,
        *,
        name: str | Unset = UNSET,
        scopes: Sequence[str] | Unset | None = UNSET,
        addresses: Sequence[str] | Unset | None = UNSET,
        expires_at: datetime | Unset | None = UNSET,
        disabled: bool | Unset = UNSET,
        metadata: Mapping[str, JSON] | Unset = UNSET,
    ) -> APIKey:
        """Change what is given of a record, and answer the record as it is now.

        Raises KeyNotFound; ValueError or TypeError for a field that will not do.
        """
        fields = _given(
            name=name,
            scopes=scopes,
            addresses=addresses,
            expires_at=expires_at,
            disabled=disabled,
            metadata=metadata,
        )
        return self._change(key_id, lambda key: decisions.changed(key, **fields) if fields else None)

    def revoke(self, key_id: str, *, reason: str | None = None) -> APIKey:
        """Revoke a key for good; one that is revoked already keeps its time and reason.

        Raises KeyNotFound.
        """
        return self._change(key_id, lambda key: decisions.revoked(key, self._clock(), reason))

    def revoke_all(self, owner: str | Unset = UNSET, *, reason: str | None = None) -> int:
        """Revoke all keys of an owner, or everybody's if none is given, and tell how many were revoked.

        Raises TypeError for an owner that is None or empty: that is a mistake, not everybody.
        """
        return self._store.revoke_all(_owner_or_all(owner), self._clock(), reason)

    def rotate(
        self,
        key_id: str,
        *,
        grace: timedelta = timedelta(0),
        expires_in: timedelta | Unset | None = UNSET,
    ) -> IssuedKey:
        """Replace a key by a new one with the same rights; the old one goes on for ``grace``.

        Both are written in one step. The new key lives as long as the old one was meant to, unless
        ``expires_in`` says otherwise. Raises KeyNotFound, and KeyNotLive for a key that is dead or was
        rotated before.
        """
        minted = self._scheme.mint()
        digest = self._scheme.digest(minted.text)
        for _ in range(ATTEMPTS):
            key, now = self.get(key_id), self._clock()
            life = decisions.lifetime(key) if isinstance(expires_in, Unset) else expires_in
            old, successor = decisions.rotated(key, minted, digest, now, grace, life)
            if self._store.swap(key, old, successor=successor):
                return IssuedKey(successor, minted.text)
        raise Conflict(f"the key {key_id!r} kept changing while it was to be rotated")

    def purge(self, before: datetime) -> int:
        """Delete the records of keys that were dead before a time, and tell how many.

        What is deleted is forgotten: a key that ``ensure`` made, was revoked and is purged will be made
        again by the next ``ensure``.
        """
        return self._store.purge(in_utc("before", before))

    def _change(self, key_id: str, decide: Callable[[APIKey], APIKey | None]) -> APIKey:
        for _ in range(ATTEMPTS):
            key = self.get(key_id)
            new = decide(key)
            if new is None:
                return key
            if self._store.swap(key, new):
                return new
        raise Conflict(f"the key {key_id!r} kept changing while it was to be changed")


class AsyncKeyManager:
    """Makes, finds, changes and revokes the keys of one store.

    Raises ConfigurationError for a store that is not async or lacks a method; every method raises
    StoreUnavailable when the store fails, and then says nothing about whether the change was made.
    """

    def __init__(
        self,
        store: AsyncKeyReader,
        scheme: KeyScheme | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        check_store(store, MANAGING, asynchronous=True)
        self._store: AsyncKeyStore = store  # type: ignore[assignment]  # just checked
        self._scheme = checked_scheme(scheme)
        self._clock = clock

    async def issue(
        self,
        owner: str,
        *,
        name: str = "",
        scopes: Sequence[str] | None = None,
        addresses: Sequence[str] | None = None,
        expires_in: timedelta | None = DEFAULT_LIFE,
        metadata: Mapping[str, JSON] | None = None,
        created_by: str | None = None,
    ) -> IssuedKey:
        """Make a new key for an owner. Its text is in the answer and nowhere else.

        ``owner`` is the user's lasting id as text (``str(user.pk)``), ``scopes`` what the key may do (None:
        all that the owner may), ``addresses`` the CIDR blocks it may be used from (None: all).
        ``expires_in`` None makes a key that never expires. Raises ValueError or TypeError for a field that
        will not do.
        """
        text = self._scheme.mint()
        issued = _record(
            self._scheme,
            text,
            self._clock(),
            owner,
            name,
            scopes,
            addresses,
            expires_in,
            metadata,
            created_by,
        )
        await self._store.add(issued.key)
        return issued

    async def ensure(
        self,
        owner: str,
        *,
        name: str,
        text: str | None = None,
        scopes: Sequence[str] | None = None,
        addresses: Sequence[str] | None = None,
        expires_in: timedelta | None = DEFAULT_LIFE,
        metadata: Mapping[str, JSON] | None = None,
        created_by: str | None = None,
    ) -> IssuedKey | None:
        """Make an owner's key of this name unless there is one, dead or alive; None if there is.

        It is made once however many workers start together: its id follows from prefix, owner and name, so
        that the second of two finds it there. ``text`` is a key from the configuration to take instead of
        a new one. Raises InvalidKey if that text is no key of the scheme.
        """
        minted = self._scheme.mint(named_id(self._scheme.prefix, owner, name))
        chosen = minted if text is None else self._scheme.parse(text)
        issued = _record(
            self._scheme,
            chosen,
            self._clock(),
            owner,
            name,
            scopes,
            addresses,
            expires_in,
            metadata,
            created_by,
        )
        try:
            await self._store.add(issued.key)
        except DuplicateKey:
            return None
        return issued

    async def get(self, key_id: str) -> APIKey:
        """Read one record. Raises KeyNotFound."""
        _check_id(key_id)
        key = await self._store.get(key_id)
        if key is None:
            raise KeyNotFound(key_id)
        return key

    async def list(self, owner: str) -> "list[APIKey]":
        """List all records of an owner, oldest first."""
        check_text("owner", owner)
        keys: list[APIKey] = []
        after = None
        while True:
            page = await self._store.find(owner=owner, after=after, limit=1000)
            keys.extend(page.items)
            if (after := page.next) is None:
                return decisions.newest_last(keys)

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List records page by page, of one owner or of everybody; see ``KeyStore.find``."""
        live_at = None if live_at is None else in_utc("live_at", live_at)
        return await self._store.find(owner=owner, live_at=live_at, after=after, limit=limit)

    async def edit(
        self,
        key_id: str,
        *,
        name: str | Unset = UNSET,
        scopes: Sequence[str] | Unset | None = UNSET,
        addresses: Sequence[str] | Unset | None = UNSET,
        expires_at: datetime | Unset | None = UNSET,
        disabled: bool | Unset = UNSET,
        metadata: Mapping[str, JSON] | Unset = UNSET,
    ) -> APIKey:
        """Change what is given of a record, and answer the record as it is now.

        Raises KeyNotFound; ValueError or TypeError for a field that will not do.
        """
        fields = _given(
            name=name,
            scopes=scopes,
            addresses=addresses,
            expires_at=expires_at,
            disabled=disabled,
            metadata=metadata,
        )
        return await self._change(key_id, lambda key: decisions.changed(key, **fields) if fields else None)

    async def revoke(self, key_id: str, *, reason: str | None = None) -> APIKey:
        """Revoke a key for good; one that is revoked already keeps its time and reason.

        Raises KeyNotFound.
        """
        return await self._change(key_id, lambda key: decisions.revoked(key, self._clock(), reason))

    async def revoke_all(self, owner: str | Unset = UNSET, *, reason: str | None = None) -> int:
        """Revoke all keys of an owner, or everybody's if none is given, and tell how many were revoked.

        Raises TypeError for an owner that is None or empty: that is a mistake, not everybody.
        """
        return await self._store.revoke_all(_owner_or_all(owner), self._clock(), reason)

    async def rotate(
        self,
        key_id: str,
        *,
        grace: timedelta = timedelta(0),
        expires_in: timedelta | Unset | None = UNSET,
    ) -> IssuedKey:
        """Replace a key by a new one with the same rights; the old one goes on for ``grace``.

        Both are written in one step. The new key lives as long as the old one was meant to, unless
        ``expires_in`` says otherwise. Raises KeyNotFound, and KeyNotLive for a key that is dead or was
        rotated before.
        """
        minted = self._scheme.mint()
        digest = self._scheme.digest(minted.text)
        for _ in range(ATTEMPTS):
            key, now = await self.get(key_id), self._clock()
            life = decisions.lifetime(key) if isinstance(expires_in, Unset) else expires_in
            old, successor = decisions.rotated(key, minted, digest, now, grace, life)
            if await self._store.swap(key, old, successor=successor):
                return IssuedKey(successor, minted.text)
        raise Conflict(f"the key {key_id!r} kept changing while it was to be rotated")

    async def purge(self, before: datetime) -> int:
        """Delete the records of keys that were dead before a time, and tell how many.

        What is deleted is forgotten: a key that ``ensure`` made, was revoked and is purged will be made
        again by the next ``ensure``.
        """
        return await self._store.purge(in_utc("before", before))

    async def _change(self, key_id: str, decide: Callable[[APIKey], APIKey | None]) -> APIKey:
        for _ in range(ATTEMPTS):
            key = await self.get(key_id)
            new = decide(key)
            if new is None:
                return key
            if await self._store.swap(key, new):
                return new
        raise Conflict(f"the key {key_id!r} kept changing while it was to be changed")
