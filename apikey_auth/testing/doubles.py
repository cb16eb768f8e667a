"""For applications' own tests: a key in one line, a clock that stands, a store that fails on demand."""

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from threading import Lock
from typing import Any, ParamSpec, TypeAlias, TypeVar, Unpack

from ..authenticate import AsyncAuthenticator, Authenticator
from ..errors import StoreUnavailable
from ..keys import IssuedKey, in_utc
from ..manage import AsyncKeyManager, KeyManager, NewKey
from ..stores.protocol import MANAGING, AsyncKeyReader, Bridge, KeyReader
from .drive import PATIENCE, EventLoop

P = ParamSpec("P")
T = TypeVar("T")

Issuer: TypeAlias = "Authenticator[Any] | AsyncAuthenticator[Any] | KeyManager | AsyncKeyManager"

METHODS = (*MANAGING, "touch", "changes")


def key_for(owner: str, auth: Issuer, /, **fields: Unpack[NewKey]) -> str:
    """Issue a key for a user and give its text: ``key_for("ada", auth, scopes=["reports:read"])``.

    ``auth`` is an authenticator or a manager of either colour; ``fields`` are those of ``KeyManager.issue``.
    A store whose connections belong to an event loop takes ``await auth.keys.issue(…)`` on that loop.
    """
    manager = auth.keys if isinstance(auth, Authenticator | AsyncAuthenticator) else auth
    if isinstance(manager, KeyManager):
        return manager.issue(owner, **fields).text
    with EventLoop() as loop:
        return loop.run(_issue, manager, owner, fields).text


async def _issue(manager: AsyncKeyManager, owner: str, fields: NewKey) -> IssuedKey:
    return await manager.issue(owner, **fields)


def headers_for(owner: str, auth: Issuer, /, **fields: Unpack[NewKey]) -> dict[str, str]:
    """Issue a key for a user and give the header that carries it, for a test client."""
    return {"apikey": key_for(owner, auth, **fields)}


class FakeClock:
    """A clock that stands until it is told to go on: ``Authenticator(store, clock=FakeClock())``.

    Raises ValueError for a start without a time zone.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now = in_utc("start", start)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta | float) -> datetime:
        """Go on by a timedelta, or by seconds, and tell the time."""
        self.now += by if isinstance(by, timedelta) else timedelta(seconds=by)
        return self.now


class UnreliableStore:
    """A store of either colour, in front of another, that fails, hangs or answers late when it is told to.

    Name the methods that shall be in trouble, or none for all: ``store.fail("get")``, ``store.hang()``. What
    a method was told last holds until ``heal()``. ``calls`` counts the calls of each method.
    """

    get: Any
    add: Any
    swap: Any
    revoke_all: Any
    find: Any
    count: Any
    purge: Any
    touch: Any
    changes: Any

    def __init__(self, store: KeyReader | AsyncKeyReader) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self._lock = Lock()
        able = store.wrapped if isinstance(store, Bridge) else store
        self._methods = tuple(name for name in METHODS if callable(getattr(able, name, None)))
        self._troubles = dict.fromkeys(self._methods, _NONE)
        play = self._play_async if inspect.iscoroutinefunction(store.get) else self._play
        for name in self._methods:
            setattr(self, name, play(name, getattr(store, name)))

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:  # which a bridge seems to have, whatever is behind it
            raise AttributeError(f"{type(self.store).__name__} has no {name}()")
        return getattr(self.store, name)

    @property
    def waiting(self) -> int:
        """How many calls hang at the moment."""
        with self._lock:
            return sum(trouble.hold.waiting for trouble in self._troubles.values() if trouble.hold)

    def fail(self, *methods: str, error: Exception | None = None) -> None:
        """Let calls raise an error, StoreUnavailable unless it is given, and do nothing."""
        self._put(methods, lambda: _Trouble(error=error or _unavailable("fails")))

    def lose_answers(self, *methods: str, error: Exception | None = None) -> None:
        """Let calls be done and raise an error then, as where a connection is lost after the commit."""
        self._put(methods, lambda: _Trouble(error=error or _unavailable("lost its answer"), is_done=True))

    def hang(self, *methods: str) -> None:
        """Let calls wait until ``heal()``, which has them done; StoreUnavailable after a minute."""
        self._put(methods, lambda: _Trouble(hold=_Hold()))

    def delay(self, seconds: float, *methods: str) -> None:
        """Let calls be done that much later."""
        self._put(methods, lambda: _Trouble(seconds=seconds))

    def heal(self, *methods: str) -> None:
        """Let calls be done at once again, those that hang included."""
        self._put(methods, lambda: _NONE)

    def _put(self, methods: tuple[str, ...], make: Callable[[], "_Trouble"]) -> None:
        """Put each method into a trouble of its own, and end the one that it was in."""
        if unknown := set(methods) - set(self._methods):
            raise ValueError(
                f"the store has no {', '.join(sorted(unknown))}; it has {', '.join(self._methods)}"
            )
        for name in methods or self._methods:
            with self._lock:
                before, self._troubles[name] = self._troubles[name], make()
            if before.hold is not None:
                before.hold.release()

    def _begin(self, name: str) -> "_Trouble":
        with self._lock:
            self.calls[name] += 1
            return self._troubles[name]

    def _play(self, name: str, method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            trouble = self._begin(name)
            trouble.wait()
            trouble.check(is_done=False)
            answer = method(*args, **kwargs)
            trouble.check(is_done=True)
            return answer

        return call

    def _play_async(self, name: str, method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(method)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            trouble = self._begin(name)
            await trouble.wait_async()
            trouble.check(is_done=False)
            answer = await method(*args, **kwargs)
            trouble.check(is_done=True)
            return answer

        return call


@dataclass(frozen=True, eq=False)
class _Trouble:
    """What a call meets: it may wait, and it may come to an error before it is done or after."""

    seconds: float = 0
    hold: "_Hold | None" = None
    error: Exception | None = None
    is_done: bool = False

    def wait(self) -> None:
        if self.seconds:
            time.sleep(self.seconds)
        if self.hold is not None:
            self.hold.wait()

    async def wait_async(self) -> None:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if self.hold is not None:
            await self.hold.wait_async()

    def check(self, *, is_done: bool) -> None:
        if self.error is not None and self.is_done == is_done:
            raise self.error.with_traceback(None)


_NONE = _Trouble()


class _Hold:
    """Where calls wait until they are released: threads, and tasks of any event loop."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._futures: set[Future[None]] = set()
        self._is_open = False

    @property
    def waiting(self) -> int:
        return len(self._futures)

    def release(self) -> None:
        with self._lock:
            self._is_open = True
            futures, self._futures = self._futures, set()
        for future in futures:
            if future.set_running_or_notify_cancel():  # its task may be cancelled just now
                future.set_result(None)

    def wait(self) -> None:
        with self._place() as future:
            try:
                future.result(PATIENCE)
            except TimeoutError:
                raise _unavailable("hung for a minute") from None

    async def wait_async(self) -> None:
        with self._place() as future:
            try:
                await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)
            except TimeoutError:
                raise _unavailable("hung for a minute") from None

    @contextmanager
    def _place(self) -> Iterator["Future[None]"]:
        future: Future[None] = Future()
        with self._lock:
            if self._is_open:
                future.set_result(None)
            else:
                self._futures.add(future)
        try:
            yield future
        finally:
            with self._lock:
                self._futures.discard(future)


def _unavailable(what: str) -> StoreUnavailable:
    return StoreUnavailable(f"the store {what}, as it was told to")
