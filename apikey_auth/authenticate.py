"""From a key's text to the identity it stands for. The two classes are twins: one text, two colours.

Policy lives here and only here: who is let in is decided by the functions of ``decisions`` and called
from these two classes. An adapter asks and translates.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from hashlib import sha256
from time import time
from typing import Any, Generic, NoReturn, TypedDict, Unpack, cast, overload

from .breaker import Breaker, NotAsked
from .cache import NEVER, Mark, UserCache, Verdict, VerdictCache, mark_of
from .decisions import (
    EXPOSED,
    Identity,
    Owner,
    U_co,
    check_request,
    end_of,
    identify,
    is_of,
    judge,
    redigested,
    state,
)
from .errors import (
    AuthenticationError,
    ConfigurationError,
    InsecureTransport,
    InvalidKey,
    MissingKey,
    Refusal,
    StoreUnavailable,
)
from .events import Authenticated, OnEvent, events_of, refused, unavailable
from .eviction import AsyncEvictingStore, EvictingStore
from .exposure import FloodGuard
from .flights import AsyncFlights, Flights
from .keys import MAX_TEXT, APIKey, KeyScheme, KeyText
from .manage import AsyncKeyManager, KeyManager, checked_scheme, utc_now
from .policy import Policy, Visit
from .stores.protocol import (
    READING,
    AsyncKeyReader,
    AsyncKeyStore,
    Bridge,
    KeyReader,
    KeyStore,
    check_function,
    check_store,
)
from .usage import AsyncUses, Noting, SharedUses, Uses

logger = logging.getLogger("apikey_auth")


def _as_owner(owner: str) -> Owner:
    return Owner(owner)


async def _as_async_owner(owner: str) -> Owner:
    return Owner(owner)


def _unavailable(what: str, error: Exception) -> StoreUnavailable:
    """Take a failure for what it says about the key, which is nothing."""
    trace = error.__traceback__
    error = error.with_traceback(trace and trace.tb_next)  # the first frame is ours, and holds the key
    logger.error("%s failed; the request is answered with 503", what, exc_info=error)
    if isinstance(error, StoreUnavailable):
        return error
    unavailable = StoreUnavailable(f"{what} failed: {type(error).__name__}")
    unavailable.__cause__ = error
    return unavailable


def _reraise(error: Exception) -> NoReturn:
    """Raise an error on, without the frames of this module that it came through: they hold the key."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    raise error.with_traceback(trace)


class Caching(TypedDict, total=False):
    """How long an authenticator goes by what it knows; times are in seconds.

    ``cache_size``: of how many good keys, 10,000 by default; 0 for none. ``max_staleness``: a change made
    anywhere else is heeded at most so late, 1 by default. ``max_age``: the longest that a record is kept
    unread, 300. ``stale_if_error``: how much longer than ``max_staleness`` a good key goes on while the store
    does not answer, 0. ``user_max_age``: how long a copy of a user is used instead of ``load_user``, 0.
    ``touch_interval``: how often it is written which keys were used, and when, 60; 0 for never.
    """

    cache_size: int
    max_staleness: float
    max_age: float
    stale_if_error: float
    user_max_age: float
    touch_interval: float


_POLL = object()  # what the flight of a poll is called


def _caches(store: KeyReader | AsyncKeyReader, options: Caching) -> tuple[VerdictCache, UserCache]:
    if unknown := sorted(options.keys() - Caching.__annotations__.keys()):
        raise TypeError(f"there is no {', '.join(unknown)}; there are {', '.join(Caching.__annotations__)}")
    size = options.get("cache_size", 10_000)
    able = store.wrapped if isinstance(store, Bridge) else store
    verdicts = VerdictCache(
        size=size,
        max_staleness=options.get("max_staleness", 1.0),
        max_age=options.get("max_age", 300.0),
        stale_if_error=options.get("stale_if_error", 0.0),
        follows=callable(getattr(able, "changes", None)),
    )
    return verdicts, UserCache(options.get("user_max_age", 0.0), size)


def _noting(store: object, options: Caching, *, asynchronous: bool) -> Noting:
    """Tell what is to be noted: what a store, which may only read, can write."""

    def can(method: str) -> bool:
        try:
            check_store(store, (method,), asynchronous=asynchronous)
        except ConfigurationError:
            return False
        return True

    return Noting(
        interval=options.get("touch_interval", 60.0),
        size=options.get("cache_size") or 10_000,
        touches=can("touch"),
        swaps=can("swap"),
    )


def _timestamp(clock: Callable[[], datetime]) -> Callable[[], float]:
    """Tell the time of a clock in seconds since the epoch."""
    return time if clock is utc_now else lambda: clock().timestamp()


def share_cache(auth: "Authenticator[Any]", other: "AsyncAuthenticator[Any]") -> None:
    """Let the two authenticators of one application remember together, and forget together.

    What is used is noted together too, and written by the one that blocks: it needs no event loop.
    """
    other._cache, other._users, other.uses = auth._cache, auth._users, SharedUses(auth.uses)  # type: ignore[assignment]
    auth._cache.call_on_eviction(other._reads.detach)


def check_authenticator(auth: object, wanted: type, policy: Policy | None = None) -> None:
    """Raise ConfigurationError unless this is the kind of authenticator that an adapter and its policy need."""
    if not isinstance(auth, wanted):
        raise ConfigurationError(f"this middleware needs an {wanted.__name__}, not {auth!r}")
    if policy is not None and policy.insecure == "revoke":
        _ = auth.keys  # type: ignore[attr-defined]  # the store must be able to


class Authenticator(Generic[U_co]):
    """Resolves keys for a WSGI application, a script or a thread.

    ``load_user`` turns an owner into the application's user; None, or a user whose ``is_active`` is false,
    ends the key. It is called for every request. Without it the user is an ``Owner``. ``clock`` tells the
    time, aware. ``on_event`` is told what happens, see ``events``. See ``Caching`` for the other options.

    Raises ConfigurationError for a store or a loader that is async or lacks a method, and for an option that
    will not do.
    """

    @overload
    def __init__(
        self: "Authenticator[Owner]",
        store: KeyReader,
        scheme: KeyScheme = ...,
        *,
        clock: Callable[[], datetime] = ...,
        on_event: OnEvent | None = ...,
        **caching: Unpack[Caching],
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: KeyReader,
        scheme: KeyScheme = ...,
        *,
        load_user: Callable[[str], U_co | None],
        clock: Callable[[], datetime] = ...,
        on_event: OnEvent | None = ...,
        **caching: Unpack[Caching],
    ) -> None: ...

    def __init__(
        self,
        store: KeyReader,
        scheme: KeyScheme | None = None,
        *,
        load_user: Callable[[str], object] = _as_owner,
        clock: Callable[[], datetime] = utc_now,
        on_event: OnEvent | None = None,
        **caching: Unpack[Caching],
    ) -> None:
        check_store(store, READING, asynchronous=False)
        check_function("load_user", load_user, asynchronous=False)
        self.store = store
        self._can_join = callable(getattr(store, "in_transaction", None))
        self.scheme = checked_scheme(scheme)
        self._load_user = cast("Callable[[str], U_co | None]", load_user)
        self._clock = clock
        self._time = _timestamp(clock)
        self._shares = load_user is _as_owner
        # A class of the application's own may ask for more.
        self._is_plain = type(self).authenticate is Authenticator.authenticate
        self.events = events_of(on_event, asynchronous=False)
        self._cache, self._users = _caches(store, caching)
        self.uses = Uses(store, **_noting(store, caching, asynchronous=False))
        self._breaker = Breaker(self._cache.now)
        self._floods = FloodGuard()
        self._reads: Flights[Verdict] = Flights()
        self._polls: Flights[None] = Flights()
        self._cache.call_on_eviction(self._reads.detach)

    @cached_property
    def keys(self) -> KeyManager:
        """The manager of this authenticator's keys: what it changes holds here at once.

        Raises ConfigurationError if the store only reads.
        """
        store = EvictingStore(self.store, self._cache)
        return KeyManager(store, self.scheme, clock=self._clock, on_event=self.events)

    @property
    def revocation_bound(self) -> float:
        """How many seconds after a revocation elsewhere a request may still be let in, apart from one read."""
        cache = self._cache
        return cache.max_staleness + cache.stale_if_error if cache.size else 0.0

    def forget_user(self, owner: str) -> None:
        """Load an owner's user anew, whatever ``user_max_age`` says."""
        self._users.forget(owner)

    def authenticate(
        self, text: str | None, *, address: str | None = None, scopes: Iterable[str] = ()
    ) -> Identity[U_co]:
        """Resolve a key's text to the identity it stands for.

        ``address`` is the client's, ``scopes`` are those the request needs. Raises AuthenticationError for
        a key that may not do this, and StoreUnavailable, which is none, where it could not be found out.
        """
        if not text:
            raise MissingKey
        held = None
        try:
            verdict, stale = self._find(text)
            held = verdict.key if verdict.matches else None
            key = judge(verdict.key, verdict.matches, self._clock())
            if key.metadata:
                key = replace(key)  # what a request changes, no other shall see
            identity = identify(key, self._user(key.owner), stale)
            check_request(key, address, scopes)
        except Refusal as refusal:
            self._turned_away(refusal, held)
            raise
        self._let_in(identity)
        return identity

    def flush(self) -> None:
        """Write at once which keys were used; by itself that is done every ``touch_interval`` and at the end.

        What cannot be written stays noted, and is logged.
        """
        self.uses.write()

    @property
    def lost_uses(self) -> int:
        """Of how many uses it will never be written that they were the last ones: there was no room for them."""
        return self.uses.lost

    def recognize(self, value: bytes) -> Verdict | InvalidKey | None:
        """Find what holds for a key without waiting for anything: the way of nearly every request.

        ``value`` is all that a request's header holds. None says that it takes ``admit`` to find out. An
        equal digest is an equal text, so what the header holds is the key and nothing beside it. A verdict
        that has no identity goes on to ``let_in``. What can be no key is refused at once.
        """
        if len(value) > MAX_TEXT or not self._is_plain:
            return None
        verdict = self._cache.fresh(sha256(value).digest())
        if verdict is None:
            return self._refuse_unread(value)
        if (now := self._time()) >= verdict.ends:
            return None
        if verdict.identity is not None:
            if self.uses.is_on:
                self.uses.note(verdict.key_id, now)
            if self.events is not None:
                self._tell(verdict.identity)
        return verdict

    def _refuse_unread(self, value: bytes) -> InvalidKey | None:
        """Refuse what is one text and no key, whatever the store may know."""
        text = value.decode("ascii") if value.isascii() else ""
        if not text or "," in text or text.strip() != text:
            return None
        found = self.scheme.read(text)
        if not isinstance(found, InvalidKey):
            return None
        self._turned_away(found, None)
        return found

    def let_in(self, visit: Visit, verdict: Verdict) -> None:
        """Find the identity of a visit whose key was recognized, and leave it, or a refusal, on the visit."""
        key = cast("APIKey", verdict.key)
        try:
            visit.identity = identify(key, self._user(key.owner))
            self._let_in(visit.identity)
        except Refusal as refusal:
            self._turned_away(refusal, key)
            visit.refuse(refusal)

    def admit(self, visit: Visit) -> None:
        """Authenticate a visit's key, if it brought one, and leave what came of it on the visit."""
        if visit.is_exposed:
            self._expose(visit)
            return
        if visit.inherits(self) or visit.text is None:
            return
        try:
            visit.identity = self.authenticate(visit.text, address=visit.address)
            visit.authority = self
        except Refusal as refusal:
            visit.refuse(refusal)
        except Exception as error:
            _reraise(error)

    def _expose(self, visit: Visit) -> None:
        """Refuse a key that was sent in the clear, and revoke it where that is wanted."""
        refusal = InsecureTransport()
        self._turned_away(refusal, None)
        visit.refuse(refusal)
        if visit.policy.insecure != "revoke" or visit.text is None:
            return
        if not self._floods.allows():
            logger.warning("keys come in the clear faster than they can be looked up; one was not revoked")
            return
        try:
            verdict, _ = self._find(visit.text)
            if verdict.key is not None and verdict.matches and verdict.key.revoked_at is None:
                self.keys.revoke(verdict.key.id, reason=EXPOSED)
                logger.warning("the key %s was revoked: it was %s", verdict.key.id, EXPOSED)
        except AuthenticationError:
            pass  # it is no key
        except Exception as error:
            logger.error("a key that was %s could not be revoked: %s", EXPOSED, type(error).__name__)

    def _find(self, text: str) -> tuple[Verdict, bool]:
        """Find what holds for the key whatever the request, and whether it is stale."""
        mark = mark_of(text)
        verdict = self._cache.fresh(mark)
        return (verdict, False) if verdict is not None else self._resolve(mark, text)

    def _resolve(self, mark: Mark, text: str) -> tuple[Verdict, bool]:
        """Find a verdict that may be used, after a poll where one is due, or read anew."""
        cache = self._cache
        verdict = cache.find(mark)
        if verdict is None:
            return self._read(mark, text), False
        current = cache.is_current()
        if current and not cache.may_poll():
            return verdict, False
        if not current and cache.is_usable_stale(mark) and cache.has_failed() and not cache.may_poll():
            return verdict, True
        try:
            self._polls.run(_POLL, self._poll)
        except StoreUnavailable:
            if cache.is_current():
                return verdict, False
            if cache.is_usable_stale(mark):
                return verdict, True
            raise
        verdict = cache.find(mark) if cache.is_current() else None  # it may have been late itself
        return verdict or self._read(mark, text), False

    def _poll(self) -> None:
        """Ask the store what changed, and drop it."""
        cache = self._cache
        started = cache.now()
        try:
            with self._breaker:
                changes = cast("KeyStore", self.store).changes(cache.revision)
        except BaseException as error:
            cache.poll_failed()
            if isinstance(error, Exception):
                self._give_up("the key store", error)
            raise
        cache.polled(changes, started)

    def _read(self, mark: Mark, text: str) -> Verdict:
        """Read a key from the store, once however many ask for it at once."""
        presented = self.scheme.parse(text)
        if self._can_join and cast("Any", self.store).in_transaction():
            return self._read_apart(presented)
        return self._reads.run(mark, partial(self._read_alone, mark, presented))

    def _read_apart(self, presented: KeyText) -> Verdict:
        """Read a key within a transaction of the application's: nobody else goes by what may be rolled back."""
        fence = self._cache.fence()
        key = self._get(presented.id)
        matches = is_of(presented, key, self.scheme)
        return self._cache.verdict(presented.id, key, matches, fence)

    def _get(self, key_id: str) -> APIKey | None:
        try:
            with self._breaker:
                return self.store.get(key_id)
        except AuthenticationError:
            raise
        except Exception as error:
            self._give_up("the key store", error)

    def _read_alone(self, mark: Mark, presented: KeyText) -> Verdict:
        cache = self._cache
        if cache.is_current() and (landed := cache.find(mark)) is not None:
            return landed  # by whoever was a moment earlier
        if cache.needs_poll():
            self._polls.run(_POLL, self._poll)
        fence = cache.fence()
        key = self._get(presented.id)
        matches = is_of(presented, self.uses.renewed(key), self.scheme)
        good = key is not None and matches and state(key, self._clock()) is None
        ends, identity = NEVER, None
        if key is not None and good:
            if (new := redigested(key, presented, self.scheme)) is not None:
                self.uses.renew(key, new)
            if not key.metadata and key.addresses is None:
                ends = end_of(key)
                identity = Identity(Owner(key.owner), key) if self._shares else None
        verdict = cache.verdict(presented.id, key, matches, fence, ends, identity)
        cache.keep(mark, verdict, fence, good=good)
        return verdict

    def _let_in(self, identity: Identity[object]) -> None:
        if self.uses.is_on:
            self.uses.note(identity.key.id, self._time())
        self._tell(identity)

    def _tell(self, identity: Identity[object]) -> None:
        if self.events is not None:
            key = identity.key
            event = Authenticated(at=self._clock(), key_id=key.id, owner=key.owner, stale=identity.stale)
            self.events.emit(event)

    def _turned_away(self, refusal: Refusal, held: APIKey | None) -> None:
        """Tell of a refusal; ``held`` is the key if whoever came holds all of it."""
        if self.events is not None:
            self.events.emit(refused(refusal, held, self._clock()))

    def _give_up(self, what: str, error: Exception) -> NoReturn:
        if isinstance(error, NotAsked):
            raise error
        if self.events is not None:
            self.events.emit(unavailable(what, error, self._clock()))
        raise _unavailable(what, error)

    def _user(self, owner: str) -> U_co | None:
        found = self._users.find(owner)
        if found is not None:
            return cast("U_co", found)
        fence = self._users.fence()
        try:
            user = self._load_user(owner)
        except AuthenticationError:
            raise
        except Exception as error:
            self._give_up("the user loader", error)
        self._users.keep(owner, user, fence)
        return user


class AsyncAuthenticator(Generic[U_co]):
    """Resolves keys for an ASGI application.

    ``load_user`` turns an owner into the application's user; None, or a user whose ``is_active`` is false,
    ends the key. It is called for every request. Without it the user is an ``Owner``. ``clock`` tells the
    time, aware. ``on_event`` is told what happens, see ``events``. See ``Caching`` for the other options.

    Raises ConfigurationError for a store or a loader that is not async or lacks a method, and for an option that
    will not do.
    """

    @overload
    def __init__(
        self: "AsyncAuthenticator[Owner]",
        store: AsyncKeyReader,
        scheme: KeyScheme = ...,
        *,
        clock: Callable[[], datetime] = ...,
        on_event: OnEvent | None = ...,
        **caching: Unpack[Caching],
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: AsyncKeyReader,
        scheme: KeyScheme = ...,
        *,
        load_user: Callable[[str], Awaitable[U_co | None]],
        clock: Callable[[], datetime] = ...,
        on_event: OnEvent | None = ...,
        **caching: Unpack[Caching],
    ) -> None: ...

    def __init__(
        self,
        store: AsyncKeyReader,
        scheme: KeyScheme | None = None,
        *,
        load_user: Callable[[str], Awaitable[object]] = _as_async_owner,
        clock: Callable[[], datetime] = utc_now,
        on_event: OnEvent | None = None,
        **caching: Unpack[Caching],
    ) -> None:
        check_store(store, READING, asynchronous=True)
        check_function("load_user", load_user, asynchronous=True)
        self.store = store
        self._can_join = callable(getattr(store, "in_transaction", None))
        self.scheme = checked_scheme(scheme)
        self._load_user = cast("Callable[[str], Awaitable[U_co | None]]", load_user)
        self._clock = clock
        self._time = _timestamp(clock)
        self._shares = load_user is _as_async_owner
        # A class of the application's own may ask for more.
        self._is_plain = type(self).authenticate is AsyncAuthenticator.authenticate
        self.events = events_of(on_event, asynchronous=True)
        self._cache, self._users = _caches(store, caching)
        self.uses = AsyncUses(store, **_noting(store, caching, asynchronous=True))
        self._breaker = Breaker(self._cache.now)
        self._floods = FloodGuard()
        self._reads: AsyncFlights[Verdict] = AsyncFlights()
        self._polls: AsyncFlights[None] = AsyncFlights()
        self._cache.call_on_eviction(self._reads.detach)

    @cached_property
    def keys(self) -> AsyncKeyManager:
        """The manager of this authenticator's keys: what it changes holds here at once.

        Raises ConfigurationError if the store only reads.
        """
        store = AsyncEvictingStore(self.store, self._cache)
        return AsyncKeyManager(store, self.scheme, clock=self._clock, on_event=self.events)

    @property
    def revocation_bound(self) -> float:
        """How many seconds after a revocation elsewhere a request may still be let in, apart from one read."""
        cache = self._cache
        return cache.max_staleness + cache.stale_if_error if cache.size else 0.0

    def forget_user(self, owner: str) -> None:
        """Load an owner's user anew, whatever ``user_max_age`` says."""
        self._users.forget(owner)

    async def authenticate(
        self, text: str | None, *, address: str | None = None, scopes: Iterable[str] = ()
    ) -> Identity[U_co]:
        """Resolve a key's text to the identity it stands for.

        ``address`` is the client's, ``scopes`` are those the request needs. Raises AuthenticationError for
        a key that may not do this, and StoreUnavailable, which is none, where it could not be found out.
        """
        if not text:
            raise MissingKey
        held = None
        try:
            verdict, stale = await self._find(text)
            held = verdict.key if verdict.matches else None
            key = judge(verdict.key, verdict.matches, self._clock())
            if key.metadata:
                key = replace(key)  # what a request changes, no other shall see
            identity = identify(key, await self._user(key.owner), stale)
            check_request(key, address, scopes)
        except Refusal as refusal:
            self._turned_away(refusal, held)
            raise
        self._let_in(identity)
        return identity

    async def flush(self) -> None:
        """Write at once which keys were used; by itself that is done every ``touch_interval`` and at the end.

        What cannot be written stays noted, and is logged.
        """
        await self.uses.write()

    @property
    def lost_uses(self) -> int:
        """Of how many uses it will never be written that they were the last ones: there was no room for them."""
        return self.uses.lost

    def recognize(self, value: bytes) -> Verdict | InvalidKey | None:
        """Find what holds for a key without waiting for anything: the way of nearly every request.

        ``value`` is all that a request's header holds. None says that it takes ``admit`` to find out. An
        equal digest is an equal text, so what the header holds is the key and nothing beside it. A verdict
        that has no identity goes on to ``let_in``. What can be no key is refused at once.
        """
        if len(value) > MAX_TEXT or not self._is_plain:
            return None
        verdict = self._cache.fresh(sha256(value).digest())
        if verdict is None:
            return self._refuse_unread(value)
        if (now := self._time()) >= verdict.ends:
            return None
        if verdict.identity is not None:
            if self.uses.is_on:
                self.uses.note(verdict.key_id, now)
            if self.events is not None:
                self._tell(verdict.identity)
        return verdict

    def _refuse_unread(self, value: bytes) -> InvalidKey | None:
        """Refuse what is one text and no key, whatever the store may know."""
        text = value.decode("ascii") if value.isascii() else ""
        if not text or "," in text or text.strip() != text:
            return None
        found = self.scheme.read(text)
        if not isinstance(found, InvalidKey):
            return None
        self._turned_away(found, None)
        return found

    async def let_in(self, visit: Visit, verdict: Verdict) -> None:
        """Find the identity of a visit whose key was recognized, and leave it, or a refusal, on the visit."""
        key = cast("APIKey", verdict.key)
        try:
            visit.identity = identify(key, await self._user(key.owner))
            self._let_in(visit.identity)
        except Refusal as refusal:
            self._turned_away(refusal, key)
            visit.refuse(refusal)

    async def admit(self, visit: Visit) -> None:
        """Authenticate a visit's key, if it brought one, and leave what came of it on the visit."""
        if visit.is_exposed:
            await self._expose(visit)
            return
        if visit.inherits(self) or visit.text is None:
            return
        try:
            visit.identity = await self.authenticate(visit.text, address=visit.address)
            visit.authority = self
        except Refusal as refusal:
            visit.refuse(refusal)
        except Exception as error:
            _reraise(error)

    async def _expose(self, visit: Visit) -> None:
        """Refuse a key that was sent in the clear, and revoke it where that is wanted."""
        refusal = InsecureTransport()
        self._turned_away(refusal, None)
        visit.refuse(refusal)
        if visit.policy.insecure != "revoke" or visit.text is None:
            return
        if not self._floods.allows():
            logger.warning("keys come in the clear faster than they can be looked up; one was not revoked")
            return
        try:
            verdict, _ = await self._find(visit.text)
            if verdict.key is not None and verdict.matches and verdict.key.revoked_at is None:
                await self.keys.revoke(verdict.key.id, reason=EXPOSED)
                logger.warning("the key %s was revoked: it was %s", verdict.key.id, EXPOSED)
        except AuthenticationError:
            pass  # it is no key
        except Exception as error:
            logger.error("a key that was %s could not be revoked: %s", EXPOSED, type(error).__name__)

    async def _find(self, text: str) -> tuple[Verdict, bool]:
        """Find what holds for the key whatever the request, and whether it is stale."""
        mark = mark_of(text)
        verdict = self._cache.fresh(mark)
        return (verdict, False) if verdict is not None else await self._resolve(mark, text)

    async def _resolve(self, mark: Mark, text: str) -> tuple[Verdict, bool]:
        """Find a verdict that may be used, after a poll where one is due, or read anew."""
        cache = self._cache
        verdict = cache.find(mark)
        if verdict is None:
            return await self._read(mark, text), False
        current = cache.is_current()
        if current and not cache.may_poll():
            return verdict, False
        if not current and cache.is_usable_stale(mark) and cache.has_failed() and not cache.may_poll():
            return verdict, True
        try:
            await self._polls.run(_POLL, self._poll)
        except StoreUnavailable:
            if cache.is_current():
                return verdict, False
            if cache.is_usable_stale(mark):
                return verdict, True
            raise
        verdict = cache.find(mark) if cache.is_current() else None  # it may have been late itself
        return verdict or await self._read(mark, text), False

    async def _poll(self) -> None:
        """Ask the store what changed, and drop it."""
        cache = self._cache
        started = cache.now()
        try:
            with self._breaker:
                changes = await cast("AsyncKeyStore", self.store).changes(cache.revision)
        except BaseException as error:
            cache.poll_failed()
            if isinstance(error, Exception):
                self._give_up("the key store", error)
            raise
        cache.polled(changes, started)

    async def _read(self, mark: Mark, text: str) -> Verdict:
        """Read a key from the store, once however many ask for it at once."""
        presented = self.scheme.parse(text)
        if self._can_join and await cast("Any", self.store).in_transaction():
            return await self._read_apart(presented)
        return await self._reads.run(mark, partial(self._read_alone, mark, presented))

    async def _read_apart(self, presented: KeyText) -> Verdict:
        """Read a key within a transaction of the application's: nobody else goes by what may be rolled back."""
        fence = self._cache.fence()
        key = await self._get(presented.id)
        matches = is_of(presented, key, self.scheme)
        return self._cache.verdict(presented.id, key, matches, fence)

    async def _get(self, key_id: str) -> APIKey | None:
        try:
            with self._breaker:
                return await self.store.get(key_id)
        except AuthenticationError:
            raise
        except Exception as error:
            self._give_up("the key store", error)

    async def _read_alone(self, mark: Mark, presented: KeyText) -> Verdict:
        cache = self._cache
        if cache.is_current() and (landed := cache.find(mark)) is not None:
            return landed  # by whoever was a moment earlier
        if cache.needs_poll():
            await self._polls.run(_POLL, self._poll)
        fence = cache.fence()
        key = await self._get(presented.id)
        matches = is_of(presented, self.uses.renewed(key), self.scheme)
        good = key is not None and matches and state(key, self._clock()) is None
        ends, identity = NEVER, None
        if key is not None and good:
            if (new := redigested(key, presented, self.scheme)) is not None:
                self.uses.renew(key, new)
            if not key.metadata and key.addresses is None:
                ends = end_of(key)
                identity = Identity(Owner(key.owner), key) if self._shares else None
        verdict = cache.verdict(presented.id, key, matches, fence, ends, identity)
        cache.keep(mark, verdict, fence, good=good)
        return verdict

    def _let_in(self, identity: Identity[object]) -> None:
        if self.uses.is_on:
            self.uses.note(identity.key.id, self._time())
        self._tell(identity)

    def _tell(self, identity: Identity[object]) -> None:
        if self.events is not None:
            key = identity.key
            event = Authenticated(at=self._clock(), key_id=key.id, owner=key.owner, stale=identity.stale)
            self.events.emit(event)

    def _turned_away(self, refusal: Refusal, held: APIKey | None) -> None:
        """Tell of a refusal; ``held`` is the key if whoever came holds all of it."""
        if self.events is not None:
            self.events.emit(refused(refusal, held, self._clock()))

    def _give_up(self, what: str, error: Exception) -> NoReturn:
        if isinstance(error, NotAsked):
            raise error
        if self.events is not None:
            self.events.emit(unavailable(what, error, self._clock()))
        raise _unavailable(what, error)

    async def _user(self, owner: str) -> U_co | None:
        found = self._users.find(owner)
        if found is not None:
            return cast("U_co", found)
        fence = self._users.fence()
        try:
            user = await self._load_user(owner)
        except AuthenticationError:
            raise
        except Exception as error:
            self._give_up("the user loader", error)
        self._users.keep(owner, user, fence)
        return user
