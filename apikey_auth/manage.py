"""Issuing, changing and revoking keys. The two classes are twins: one text, two colours.

A change is decided on the record as it was read and written only if it still is that record; otherwise
it is read and decided again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, TypeAlias, TypedDict, Unpack

from . import decisions
from .errors import ConfigurationError, Conflict, DuplicateKey, KeyNotFound
from .events import Issued, OnEvent, RevokedAll, Rotated, change_of, events_of
from .formats import Source
from .imports import Import, ImportReport, OwnerOf, Row
from .keys import JSON, APIKey, IssuedKey, KeyScheme, KeyText, check_text, in_utc, named_id
from .stores.protocol import (
    MANAGING,
    AsyncKeyReader,
    AsyncKeyStore,
    KeyReader,
    KeyStore,
    Page,
    check_store,
    joined,
)

DEFAULT_LIFE = timedelta(days=365)
ATTEMPTS = 20  # to change a record that others keep changing


Guard: TypeAlias = Callable[[APIKey], APIKey]


def no_guard(key: APIKey) -> APIKey:
    """Let every record be changed."""
    return key


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


class NewKey(TypedDict, total=False):
    """What a new key may be given.

    ``name``: for people. ``scopes``: what it may do; None, the default, is all that the owner may, ``()``
    nothing. ``addresses``: the CIDR blocks it may be used from; None, the default, is all.
    ``expires_in``: its life, a year by default; None is for ever. ``not_after``: the latest end of any life.
    ``metadata``: the application's own, any JSON object. ``created_by``: the key or user that made it.
    """

    name: str
    scopes: Sequence[str] | None
    addresses: Sequence[str] | None
    expires_in: timedelta | None
    not_after: datetime | None
    metadata: Mapping[str, JSON]
    created_by: str | None


def _issued(scheme: KeyScheme, text: KeyText, now: datetime, owner: str, fields: NewKey) -> IssuedKey:
    if unknown := sorted(fields.keys() - NewKey.__annotations__.keys()):
        known = ", ".join(NewKey.__annotations__)
        raise TypeError(f"a key has no {', '.join(unknown)}; it may be given {known}")
    key = APIKey(
        id=text.id,
        owner=owner,
        digest=scheme.digest(text.text),
        name=fields.get("name", ""),
        prefix=text.prefix,
        last4=text.last4,
        scopes=fields.get("scopes"),  # type: ignore[arg-type]  # the record makes tuples of both
        addresses=fields.get("addresses"),  # type: ignore[arg-type]
        created_at=now,
        created_by=fields.get("created_by"),
        expires_at=decisions.expiry(now, fields.get("expires_in", DEFAULT_LIFE), fields.get("not_after")),
        metadata=fields.get("metadata", {}),
    )
    return IssuedKey(key, text.text)


def _check_configured(scheme: KeyScheme, issued: IssuedKey, existing: APIKey) -> None:
    if existing.owner != issued.key.owner or not scheme.matches(existing.digest, issued.text):
        raise ConfigurationError(
            f"the configured key has the id {existing.id!r} of another key, and would not work"
        )


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not UNSET}


def _check_id(key_id: str) -> None:
    if not isinstance(key_id, str):
        raise TypeError(f"a key's id is text, issued.key.id, not {type(key_id).__name__}")


def _check_filters(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be text, not {type(value).__name__}; use str(…)")


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
    ``on_event`` is told of each change once the store has made it; see ``events``.
    """

    def __init__(
        self,
        store: KeyReader,
        scheme: KeyScheme | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        on_event: OnEvent | None = None,
    ) -> None:
        check_store(store, MANAGING, asynchronous=False)
        self._store: KeyStore = store  # type: ignore[assignment]  # just checked
        self.scheme = checked_scheme(scheme)
        self.clock = clock
        self.events = events_of(on_event, asynchronous=False)

    def issue(self, owner: str, *, connection: object | None = None, **fields: Unpack[NewKey]) -> IssuedKey:
        """Make a new key for an owner; see ``NewKey``. Its text is in the answer and nowhere else.

        ``owner`` is the user's lasting id as text (``str(user.pk)``). With a ``connection`` the key is made
        in the transaction that the application has open there, and gone with it if that is rolled back.
        Raises ValueError or TypeError for a field that will not do, and ConfigurationError for a connection
        where the store joins no transactions.
        """
        issued = _issued(self.scheme, self.scheme.mint(), self.clock(), owner, fields)
        self._add(issued.key, connection)
        return issued

    def ensure(self, owner: str, *, text: str | None = None, **fields: Unpack[NewKey]) -> IssuedKey | None:
        """Make an owner's key of this name unless there is one, dead or alive; None if there is.

        It is made once however many workers start together: its id follows from prefix, owner and name, so
        that the second of two finds it there. ``text`` is a key from the configuration to take instead of
        a new one. Raises TypeError for no ``name``, InvalidKey if the text is no key of the scheme, and
        ConfigurationError if a key with its id has another secret or owner.
        """
        name = fields.get("name")
        if not name:
            raise TypeError("ensure() takes a name: owner and name say which key it is")
        named = named_id(self.scheme.prefix, owner, name)
        chosen = self.scheme.mint(named) if text is None else self.scheme.parse(text)
        issued = _issued(self.scheme, chosen, self.clock(), owner, fields)
        try:
            self._add(issued.key)
        except DuplicateKey:
            if text is not None:
                _check_configured(self.scheme, issued, self.get(issued.key.id))
            return None
        return issued

    def import_keys(
        self,
        rows: Iterable[Row],
        source: Source,
        *,
        owner: OwnerOf | None = None,
        timezone: tzinfo = UTC,
    ) -> ImportReport:
        """Take over the keys of another system, which go on working as they are; see ``formats``.

        ``rows`` are mappings, as they come from SQLAlchemy's ``.mappings()``, Django's ``.values()`` or
        ``csv.DictReader``, and ``source`` is the format of theirs that the scheme has too. ``owner`` is a column
        or a function of a row, where it is not the source's own column. Times without zone are in ``timezone``.

        An import that broke off is run again: what is there already is counted and stays as it is, but for
        a row that says it is revoked. A row that makes no key is in the report. Raises ConfigurationError
        for a source that the scheme does not have, TypeError for no owner.
        """
        importing = Import(self.scheme, source, owner, timezone)
        for row in rows:
            key = importing.record(row, self.clock())
            if key is None:
                continue
            try:
                self._add(key)
                importing.added += 1
            except DuplicateKey:
                there = importing.is_there(key, self._store.get(key.id))
                if there and key.revoked_at is not None:
                    self._revoke(key.id, key.revoked_reason)
        return importing.report()

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
        return decisions.newest_last(self._all(owner))

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List records page by page, of one owner or of everybody; see ``KeyStore.find``.

        Raises TypeError for an owner or an ``after`` that is no text.
        """
        _check_filters(owner=owner, after=after)
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
        guard: Guard = no_guard,
    ) -> APIKey:
        """Change what is given of a record, and answer the record as it is now.

        ``guard`` is shown the very record that is changed, and raises to keep it. Raises KeyNotFound;
        ValueError or TypeError for a field that will not do.
        """
        fields = _given(
            name=name,
            scopes=scopes,
            addresses=addresses,
            expires_at=expires_at,
            disabled=disabled,
            metadata=metadata,
        )
        return self._change(key_id, lambda key: decisions.changed(guard(key), **fields) if fields else None)

    def revoke(self, key_id: str, *, reason: str | None = None, descendants: bool = False) -> APIKey:
        """Revoke a key for good; one that is revoked already keeps its time and reason.

        With ``descendants``, what was made by way of it goes too, and what was made by way of that, and the
        keys that replaced any of them; all records are read for it. Raises KeyNotFound.
        """
        key = self._revoke(key_id, reason)
        for _ in range(ATTEMPTS if descendants else 0):  # one of them may have made another meanwhile
            found = decisions.descendants(self._all(), [key_id])
            if not found:
                break
            for descendant in found:
                with suppress(KeyNotFound):  # purged meanwhile
                    self._revoke(descendant, reason)
        return key

    def revoke_all(self, owner: str | Unset = UNSET, *, reason: str | None = None) -> int:
        """Revoke all keys of an owner, or everybody's if none is given, and tell how many were revoked.

        Raises TypeError for an owner that is None or empty: that is a mistake, not everybody.
        """
        if reason is not None:
            check_text("reason", reason, None)
        whose, now = _owner_or_all(owner), self.clock()
        count = self._store.revoke_all(whose, now, reason)
        if self.events is not None:
            self.events.emit(RevokedAll(at=now, owner=whose, count=count, reason=reason))
        return count

    def rotate(
        self,
        key_id: str,
        *,
        grace: timedelta = timedelta(0),
        expires_in: timedelta | Unset | None = UNSET,
        not_after: datetime | None = None,
        created_by: str | None = None,
        guard: Guard = no_guard,
    ) -> IssuedKey:
        """Replace a key by a new one with the same rights; the old one goes on for ``grace``.

        Both are written in one step. The new key lives as long as the old one was meant to, unless
        ``expires_in`` says otherwise, and not beyond ``not_after``. ``created_by`` is the key that had it made,
        if that is not who made the old one. ``guard`` is shown the very record that is replaced, and raises to
        keep it. Raises KeyNotFound, and KeyNotLive for a key that is dead or was rotated before.
        """
        minted = self.scheme.mint()
        digest = self.scheme.digest(minted.text)
        for _ in range(ATTEMPTS):
            key, now = guard(self.get(key_id)), self.clock()
            life = decisions.lifetime(key) if isinstance(expires_in, Unset) else expires_in
            old, successor = decisions.rotated(key, minted, digest, now, grace, life, not_after, created_by)
            if self._store.swap(key, old, successor=successor):
                if self.events is not None:
                    self.events.emit(
                        Rotated(at=now, key_id=key.id, successor_id=successor.id, owner=key.owner)
                    )
                return IssuedKey(successor, minted.text)
        raise Conflict(f"the key {key_id!r} kept changing while it was to be rotated")

    def purge(self, before: datetime) -> int:
        """Delete the records of keys that are dead before a time, and tell how many.

        With a time to come, those that expire until then are among them.
        What is deleted is forgotten: a key that ``ensure`` made, was revoked and is purged will be made
        again by the next ``ensure``.
        """
        return self._store.purge(in_utc("before", before))

    def _all(self, owner: str | None = None) -> Sequence[APIKey]:
        page = self._store.find(owner=owner, limit=1000)
        keys = [*page.items]
        while page.next is not None:
            page = self._store.find(owner=owner, after=page.next, limit=1000)
            keys.extend(page.items)
        return keys

    def _add(self, key: APIKey, connection: object | None = None) -> None:
        self._store.add(key, **joined(self._store, connection))
        if self.events is not None:
            self.events.emit(Issued(at=self.clock(), key_id=key.id, owner=key.owner, by=key.created_by))

    def _revoke(self, key_id: str, reason: str | None) -> APIKey:
        return self._change(key_id, lambda key: decisions.revoked(key, self.clock(), reason))

    def _change(self, key_id: str, decide: Callable[[APIKey], APIKey | None]) -> APIKey:
        for _ in range(ATTEMPTS):
            key = self.get(key_id)
            new = decide(key)
            if new is None:
                return key
            if self._store.swap(key, new):
                if self.events is not None:
                    self.events.emit(change_of(key, new, self.clock()))
                return new
        raise Conflict(f"the key {key_id!r} kept changing while it was to be changed")


class AsyncKeyManager:
    """Makes, finds, changes and revokes the keys of one store.

    Raises ConfigurationError for a store that is not async or lacks a method; every method raises
    StoreUnavailable when the store fails, and then says nothing about whether the change was made.
    ``on_event`` is told of each change once the store has made it; see ``events``.
    """

    def __init__(
        self,
        store: AsyncKeyReader,
        scheme: KeyScheme | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        on_event: OnEvent | None = None,
    ) -> None:
        check_store(store, MANAGING, asynchronous=True)
        self._store: AsyncKeyStore = store  # type: ignore[assignment]  # just checked
        self.scheme = checked_scheme(scheme)
        self.clock = clock
        self.events = events_of(on_event, asynchronous=True)

    async def issue(
        self, owner: str, *, connection: object | None = None, **fields: Unpack[NewKey]
    ) -> IssuedKey:
        """Make a new key for an owner; see ``NewKey``. Its text is in the answer and nowhere else.

        ``owner`` is the user's lasting id as text (``str(user.pk)``). With a ``connection`` the key is made
        in the transaction that the application has open there, and gone with it if that is rolled back.
        Raises ValueError or TypeError for a field that will not do, and ConfigurationError for a connection
        where the store joins no transactions.
        """
        issued = _issued(self.scheme, self.scheme.mint(), self.clock(), owner, fields)
        await self._add(issued.key, connection)
        return issued

    async def ensure(
        self, owner: str, *, text: str | None = None, **fields: Unpack[NewKey]
    ) -> IssuedKey | None:
        """Make an owner's key of this name unless there is one, dead or alive; None if there is.

        It is made once however many workers start together: its id follows from prefix, owner and name, so
        that the second of two finds it there. ``text`` is a key from the configuration to take instead of
        a new one. Raises TypeError for no ``name``, InvalidKey if the text is no key of the scheme, and
        ConfigurationError if a key with its id has another secret or owner.
        """
        name = fields.get("name")
        if not name:
            raise TypeError("ensure() takes a name: owner and name say which key it is")
        named = named_id(self.scheme.prefix, owner, name)
        chosen = self.scheme.mint(named) if text is None else self.scheme.parse(text)
        issued = _issued(self.scheme, chosen, self.clock(), owner, fields)
        try:
            await self._add(issued.key)
        except DuplicateKey:
            if text is not None:
                _check_configured(self.scheme, issued, await self.get(issued.key.id))
            return None
        return issued

    async def import_keys(
        self,
        rows: Iterable[Row],
        source: Source,
        *,
        owner: OwnerOf | None = None,
        timezone: tzinfo = UTC,
    ) -> ImportReport:
        """Take over the keys of another system, which go on working as they are; see ``formats``.

        ``rows`` are mappings, as they come from SQLAlchemy's ``.mappings()``, Django's ``.values()`` or
        ``csv.DictReader``, and ``source`` is the format of theirs that the scheme has too. ``owner`` is a column
        or a function of a row, where it is not the source's own column. Times without zone are in ``timezone``.

        An import that broke off is run again: what is there already is counted and stays as it is, but for
        a row that says it is revoked. A row that makes no key is in the report. Raises ConfigurationError
        for a source that the scheme does not have, TypeError for no owner.
        """
        importing = Import(self.scheme, source, owner, timezone)
        for row in rows:
            key = importing.record(row, self.clock())
            if key is None:
                continue
            try:
                await self._add(key)
                importing.added += 1
            except DuplicateKey:
                there = importing.is_there(key, await self._store.get(key.id))
                if there and key.revoked_at is not None:
                    await self._revoke(key.id, key.revoked_reason)
        return importing.report()

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
        return decisions.newest_last(await self._all(owner))

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List records page by page, of one owner or of everybody; see ``KeyStore.find``.

        Raises TypeError for an owner or an ``after`` that is no text.
        """
        _check_filters(owner=owner, after=after)
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
        guard: Guard = no_guard,
    ) -> APIKey:
        """Change what is given of a record, and answer the record as it is now.

        ``guard`` is shown the very record that is changed, and raises to keep it. Raises KeyNotFound;
        ValueError or TypeError for a field that will not do.
        """
        fields = _given(
            name=name,
            scopes=scopes,
            addresses=addresses,
            expires_at=expires_at,
            disabled=disabled,
            metadata=metadata,
        )
        return await self._change(
            key_id, lambda key: decisions.changed(guard(key), **fields) if fields else None
        )

    async def revoke(self, key_id: str, *, reason: str | None = None, descendants: bool = False) -> APIKey:
        """Revoke a key for good; one that is revoked already keeps its time and reason.

        With ``descendants``, what was made by way of it goes too, and what was made by way of that, and the
        keys that replaced any of them; all records are read for it. Raises KeyNotFound.
        """
        key = await self._revoke(key_id, reason)
        for _ in range(ATTEMPTS if descendants else 0):  # one of them may have made another meanwhile
            found = decisions.descendants(await self._all(), [key_id])
            if not found:
                break
            for descendant in found:
                with suppress(KeyNotFound):  # purged meanwhile
                    await self._revoke(descendant, reason)
        return key

    async def revoke_all(self, owner: str | Unset = UNSET, *, reason: str | None = None) -> int:
        """Revoke all keys of an owner, or everybody's if none is given, and tell how many were revoked.

        Raises TypeError for an owner that is None or empty: that is a mistake, not everybody.
        """
        if reason is not None:
            check_text("reason", reason, None)
        whose, now = _owner_or_all(owner), self.clock()
        count = await self._store.revoke_all(whose, now, reason)
        if self.events is not None:
            self.events.emit(RevokedAll(at=now, owner=whose, count=count, reason=reason))
        return count

    async def rotate(
        self,
        key_id: str,
        *,
        grace: timedelta = timedelta(0),
        expires_in: timedelta | Unset | None = UNSET,
        not_after: datetime | None = None,
        created_by: str | None = None,
        guard: Guard = no_guard,
    ) -> IssuedKey:
        """Replace a key by a new one with the same rights; the old one goes on for ``grace``.

        Both are written in one step. The new key lives as long as the old one was meant to, unless
        ``expires_in`` says otherwise, and not beyond ``not_after``. ``created_by`` is the key that had it made,
        if that is not who made the old one. ``guard`` is shown the very record that is replaced, and raises to
        keep it. Raises KeyNotFound, and KeyNotLive for a key that is dead or was rotated before.
        """
        minted = self.scheme.mint()
        digest = self.scheme.digest(minted.text)
        for _ in range(ATTEMPTS):
            key, now = guard(await self.get(key_id)), self.clock()
            life = decisions.lifetime(key) if isinstance(expires_in, Unset) else expires_in
            old, successor = decisions.rotated(key, minted, digest, now, grace, life, not_after, created_by)
            if await self._store.swap(key, old, successor=successor):
                if self.events is not None:
                    self.events.emit(
                        Rotated(at=now, key_id=key.id, successor_id=successor.id, owner=key.owner)
                    )
                return IssuedKey(successor, minted.text)
        raise Conflict(f"the key {key_id!r} kept changing while it was to be rotated")

    async def purge(self, before: datetime) -> int:
        """Delete the records of keys that are dead before a time, and tell how many.

        With a time to come, those that expire until then are among them.
        What is deleted is forgotten: a key that ``ensure`` made, was revoked and is purged will be made
        again by the next ``ensure``.
        """
        return await self._store.purge(in_utc("before", before))

    async def _all(self, owner: str | None = None) -> Sequence[APIKey]:
        page = await self._store.find(owner=owner, limit=1000)
        keys = [*page.items]
        while page.next is not None:
            page = await self._store.find(owner=owner, after=page.next, limit=1000)
            keys.extend(page.items)
        return keys

    async def _add(self, key: APIKey, connection: object | None = None) -> None:
        await self._store.add(key, **joined(self._store, connection))
        if self.events is not None:
            self.events.emit(Issued(at=self.clock(), key_id=key.id, owner=key.owner, by=key.created_by))

    async def _revoke(self, key_id: str, reason: str | None) -> APIKey:
        return await self._change(key_id, lambda key: decisions.revoked(key, self.clock(), reason))

    async def _change(self, key_id: str, decide: Callable[[APIKey], APIKey | None]) -> APIKey:
        for _ in range(ATTEMPTS):
            key = await self.get(key_id)
            new = decide(key)
            if new is None:
                return key
            if await self._store.swap(key, new):
                if self.events is not None:
                    self.events.emit(change_of(key, new, self.clock()))
                return new
        raise Conflict(f"the key {key_id!r} kept changing while it was to be changed")
