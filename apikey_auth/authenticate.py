"""From a key's text to the identity it stands for. The two classes are twins: one text, two colours.

Policy lives here and only here: who is let in is decided by the functions of ``decisions`` and called
from these two classes. An adapter asks and translates.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import cached_property
from typing import Generic, NoReturn, cast, overload

from .decisions import Identity, Owner, U_co, check_request, identify, judge, redigested
from .errors import AuthenticationError, ConfigurationError, MissingKey, Refusal, StoreUnavailable
from .keys import APIKey, KeyScheme, KeyText
from .manage import AsyncKeyManager, KeyManager, checked_scheme, utc_now
from .policy import Visit
from .stores.protocol import (
    READING,
    AsyncKeyReader,
    AsyncKeyStore,
    KeyReader,
    KeyStore,
    check_function,
    check_store,
)

logger = logging.getLogger("apikey_auth")


def _as_owner(owner: str) -> Owner:
    return Owner(owner)


async def _as_async_owner(owner: str) -> Owner:
    return Owner(owner)


def _give_up(what: str, error: Exception) -> NoReturn:
    """Take a failure for what it says about the key, which is nothing."""
    trace = error.__traceback__
    error = error.with_traceback(trace and trace.tb_next)  # the first frame is ours, and holds the key
    logger.error("%s failed; the request is answered with 503", what, exc_info=error)
    if isinstance(error, StoreUnavailable):
        raise error
    raise StoreUnavailable(f"{what} failed: {type(error).__name__}") from error


def _can_swap(store: object, *, asynchronous: bool) -> bool:
    try:
        check_store(store, ("swap",), asynchronous=asynchronous)
    except ConfigurationError:
        return False
    return True


def check_authenticator(auth: object, wanted: type) -> None:
    """Raise ConfigurationError unless this is the kind of authenticator that an adapter needs."""
    if not isinstance(auth, wanted):
        raise ConfigurationError(f"this middleware needs an {wanted.__name__}, not {auth!r}")


class Authenticator(Generic[U_co]):
    """Resolves keys for a WSGI application, a script or a thread.

    ``load_user`` turns an owner into the application's user; None, or a user whose ``is_active`` is false,
    ends the key. It is called for every request. Without it the user is an ``Owner``. ``clock`` tells the
    time, aware.

    Raises ConfigurationError for a store or a loader that is async or lacks a method.
    """

    @overload
    def __init__(
        self: "Authenticator[Owner]",
        store: KeyReader,
        scheme: KeyScheme = ...,
        *,
        clock: Callable[[], datetime] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: KeyReader,
        scheme: KeyScheme = ...,
        *,
        load_user: Callable[[str], U_co | None],
        clock: Callable[[], datetime] = ...,
    ) -> None: ...

    def __init__(
        self,
        store: KeyReader,
        scheme: KeyScheme | None = None,
        *,
        load_user: Callable[[str], object] = _as_owner,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        check_store(store, READING, asynchronous=False)
        check_function("load_user", load_user, asynchronous=False)
        self.store = store
        self._can_swap = _can_swap(store, asynchronous=False)
        self.scheme = checked_scheme(scheme)
        self._load_user = cast("Callable[[str], U_co | None]", load_user)
        self._clock = clock

    @cached_property
    def keys(self) -> KeyManager:
        """The manager of this authenticator's keys. Raises ConfigurationError if the store only reads."""
        return KeyManager(self.store, self.scheme, clock=self._clock)

    def authenticate(
        self, text: str | None, *, address: str | None = None, scopes: Iterable[str] = ()
    ) -> Identity[U_co]:
        """Resolve a key's text to the identity it stands for.

        ``address`` is the client's, ``scopes`` are those the request needs. Raises AuthenticationError for
        a key that may not do this, and StoreUnavailable, which is none, where it could not be found out.
        """
        if not text:
            raise MissingKey
        key = self._verify(text)
        identity = identify(key, self._user(key.owner))
        check_request(key, address, scopes)
        return identity

    def admit(self, visit: Visit) -> None:
        """Authenticate a visit's key, if it brought one, and leave what came of it on the visit."""
        if visit.inherits(self) or visit.text is None:
            return
        try:
            visit.identity = self.authenticate(visit.text, address=visit.address)
            visit.authority = self
        except Refusal as refusal:
            visit.refuse(refusal)

    def _verify(self, text: str) -> APIKey:
        """Answer what holds for the key whatever the request: the part that may be remembered."""
        presented = self.scheme.parse(text)
        try:
            key = self.store.get(presented.id)
        except AuthenticationError:
            raise
        except Exception as error:
            _give_up("the key store", error)
        return self._redigest(judge(key, presented, self.scheme, self._clock()), presented)

    def _redigest(self, key: APIKey, presented: KeyText) -> APIKey:
        """Bring a good key's digest up to date where that can be done; the key is as good without it."""
        new = redigested(key, presented, self.scheme) if self._can_swap else None
        if new is None:
            return key
        store = cast("KeyStore", self.store)
        try:
            return new if store.swap(key, new) else key
        except Exception as error:
            logger.debug("the key %s was not digested anew: %s", key.id, type(error).__name__)
            return key

    def _user(self, owner: str) -> U_co | None:
        try:
            return self._load_user(owner)
        except AuthenticationError:
            raise
        except Exception as error:
            _give_up("the user loader", error)


class AsyncAuthenticator(Generic[U_co]):
    """Resolves keys for an ASGI application.

    ``load_user`` turns an owner into the application's user; None, or a user whose ``is_active`` is false,
    ends the key. It is called for every request. Without it the user is an ``Owner``. ``clock`` tells the
    time, aware.

    Raises ConfigurationError for a store or a loader that is not async or lacks a method.
    """

    @overload
    def __init__(
        self: "AsyncAuthenticator[Owner]",
        store: AsyncKeyReader,
        scheme: KeyScheme = ...,
        *,
        clock: Callable[[], datetime] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: AsyncKeyReader,
        scheme: KeyScheme = ...,
        *,
        load_user: Callable[[str], Awaitable[U_co | None]],
        clock: Callable[[], datetime] = ...,
    ) -> None: ...

    def __init__(
        self,
        store: AsyncKeyReader,
        scheme: KeyScheme | None = None,
        *,
        load_user: Callable[[str], Awaitable[object]] = _as_async_owner,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        check_store(store, READING, asynchronous=True)
        check_function("load_user", load_user, asynchronous=True)
        self.store = store
        self._can_swap = _can_swap(store, asynchronous=True)
        self.scheme = checked_scheme(scheme)
        self._load_user = cast("Callable[[str], Awaitable[U_co | None]]", load_user)
        self._clock = clock

    @cached_property
    def keys(self) -> AsyncKeyManager:
        """The manager of this authenticator's keys. Raises ConfigurationError if the store only reads."""
        return AsyncKeyManager(self.store, self.scheme, clock=self._clock)

    async def authenticate(
        self, text: str | None, *, address: str | None = None, scopes: Iterable[str] = ()
    ) -> Identity[U_co]:
        """Resolve a key's text to the identity it stands for.

        ``address`` is the client's, ``scopes`` are those the request needs. Raises AuthenticationError for
        a key that may not do this, and StoreUnavailable, which is none, where it could not be found out.
        """
        if not text:
            raise MissingKey
        key = await self._verify(text)
        identity = identify(key, await self._user(key.owner))
        check_request(key, address, scopes)
        return identity

    async def admit(self, visit: Visit) -> None:
        """Authenticate a visit's key, if it brought one, and leave what came of it on the visit."""
        if visit.inherits(self) or visit.text is None:
            return
        try:
            visit.identity = await self.authenticate(visit.text, address=visit.address)
            visit.authority = self
        except Refusal as refusal:
            visit.refuse(refusal)

    async def _verify(self, text: str) -> APIKey:
        """Answer what holds for the key whatever the request: the part that may be remembered."""
        presented = self.scheme.parse(text)
        try:
            key = await self.store.get(presented.id)
        except AuthenticationError:
            raise
        except Exception as error:
            _give_up("the key store", error)
        return await self._redigest(judge(key, presented, self.scheme, self._clock()), presented)

    async def _redigest(self, key: APIKey, presented: KeyText) -> APIKey:
        """Bring a good key's digest up to date where that can be done; the key is as good without it."""
        new = redigested(key, presented, self.scheme) if self._can_swap else None
        if new is None:
            return key
        store = cast("AsyncKeyStore", self.store)
        try:
            return new if await store.swap(key, new) else key
        except Exception as error:
            logger.debug("the key %s was not digested anew: %s", key.id, type(error).__name__)
            return key

    async def _user(self, owner: str) -> U_co | None:
        try:
            return await self._load_user(owner)
        except AuthenticationError:
            raise
        except Exception as error:
            _give_up("the user loader", error)
