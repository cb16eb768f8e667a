"""What happened, told to hooks of the application, which can neither delay nor break a request.

    Event                  at: when, in UTC
    ├── Authenticated      a key was let in
    ├── Refused            a key was not let in, or could not be checked
    ├── Unavailable        the store, or the application's user loader, failed
    └── Change             the keys changed
        ├── Issued
        ├── Edited
        ├── Rotated
        ├── Revoked
        └── RevokedAll

``on_event=`` takes a hook, several in a list, or an ``Events`` that others use too. A hook is called with
each event; it is a plain function, or, in async code, an ``async def``. No event holds a key's text or its
digest, and one about a text that is no key says nothing about that text.

Plain hooks are called in a thread of their own, which starts at the first event; an ``async def`` in a
task of the event loop where the event happened. In either place hooks get the events one by one, in the
order in which they happened, and outside of the request's context.
"""

import asyncio
import atexit
import dataclasses
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, TypeAlias, cast

from . import errors
from .errors import ConfigurationError, Refusal
from .forking import after_fork
from .keys import APIKey, in_utc
from .stores.protocol import check_function

WAITING = 10_000  # events that wait for slow hooks; about 2 MB
FOR_CHANGES = 1_000  # of these, so that a flood of bad keys hides no change of a key
EXIT_WAIT = 2.0  # seconds that the end of the process waits for what was not delivered yet
PATIENCE = 5.0  # seconds that ``flush`` waits

logger = logging.getLogger("apikey_auth")
event_logger = logging.getLogger("apikey_auth.events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. ``at``: when, aware and in UTC, by the clock of the authenticator or manager."""

    name: ClassVar[str] = "event"

    at: datetime

    def __post_init__(self) -> None:
        if self.at.tzinfo is not UTC:
            object.__setattr__(self, "at", in_utc("at", self.at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated(Event):
    """A key was let in.

    ``key_id``: of the key. ``owner``: whose it is. ``stale``: whether the store could not be asked if the
    key is still good.
    """

    name = "authenticated"

    key_id: str
    owner: str
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Event):
    """A key was not let in, or could not be checked.

    A request that brings no key, or keys that contradict each other, is none of these: nothing was checked.
    Nor is a view that asks for more scopes than a key has that was let in.

    ``code``: why, as in the answer to the client, such as ``revoked_key``; ``store_unavailable`` where it
    could not be checked. ``key_id``, ``prefix``: of the key, if whoever sent it holds the whole key; None
    for any other text.
    """

    name = "refused"

    code: str
    key_id: str | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable(Event):
    """The store, or the application's user loader, failed: once for each call, however many requests wait for it.

    ``what``: ``the key store`` or ``the user loader``. ``error``: the name of the error's type, not its text,
    which may hold anything.
    """

    name = "unavailable"

    what: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Event):
    """The keys changed.

    The store has done it by then; where it may have failed there is no event. What was done in a transaction
    that the application has open is told at once, and not taken back if that is rolled back.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued(Change):
    """A key was made, or taken over from another system.

    ``key_id``: of the new key. ``owner``: whose it is. ``by``: the key or user that made it, the record's
    ``created_by``.
    """

    name = "issued"

    key_id: str
    owner: str
    by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited(Change):
    """A key's record was edited.

    ``key_id``: of the key. ``owner``: whose it is. ``fields``: the names of those that are different now,
    in the record's order.
    """

    name = "edited"

    key_id: str
    owner: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated(Change):
    """A key was replaced by a new one.

    ``key_id``: of the old key. ``successor_id``: of the new one, which has no event of its own. ``owner``:
    whose both are.
    """

    name = "rotated"

    key_id: str
    successor_id: str
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked(Change):
    """A key was revoked; one that was revoked before is no event.

    ``key_id``: of the key. ``owner``: whose it is. ``reason``: what was given as the reason.
    """

    name = "revoked"

    key_id: str
    owner: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedAll(Change):
    """All keys of an owner, or everybody's, were revoked at once.

    ``owner``: whose; None for everybody's. ``count``: how many, without those that were revoked before.
    ``reason``: what was given as the reason.
    """

    name = "revoked_all"

    owner: str | None
    count: int
    reason: str | None = None


def refused(refusal: Refusal, key: APIKey | None, at: datetime) -> Refused:
    """Tell of a refusal. ``key`` is the record if the text was that key's, digest and all, else None."""
    if key is None:
        return Refused(at=at, code=refusal.code)
    return Refused(at=at, code=refusal.code, key_id=key.id, prefix=key.prefix)


def unavailable(what: str, error: Exception, at: datetime) -> Unavailable:
    """Tell of a failure, by the type of what caused it."""
    return Unavailable(at=at, what=what, error=type(error.__cause__ or error).__name__)


def change_of(old: APIKey, new: APIKey, at: datetime) -> Change:
    """Tell what became of a record."""
    if old.revoked_at is None and new.revoked_at is not None:
        return Revoked(at=at, key_id=new.id, owner=new.owner, reason=new.revoked_reason)
    names = (field.name for field in dataclasses.fields(new) if field.name != "version")
    fields = tuple(name for name in names if getattr(old, name) != getattr(new, name))
    return Edited(at=at, key_id=new.id, owner=new.owner, fields=fields)


Hook: TypeAlias = Callable[[Event], object]


class Events:
    """Delivers events to hooks, and leaves whoever emits them alone.

    An authenticator and a manager may share one: each event then goes to its hooks. Where hooks are so
    slow that over ``WAITING`` events wait, further ones are dropped, and counted in ``dropped``; those of
    requests are dropped first. A hook that raises is called again with the next event; the log
    ``apikey_auth`` has the error, once for each type of error.

    What waits when the process ends is delivered first, for two seconds at most. Neither the end of an
    event loop nor that of a process by ``os._exit`` or a signal waits: where that matters, ``flush``.

    Raises ConfigurationError for a hook that is no function.
    """

    def __init__(self, *hooks: Hook) -> None:
        for hook in hooks:
            if not callable(hook) or isinstance(hook, type):
                raise ConfigurationError(f"on_event must be a function, or a list of functions, not {hook!r}")
        coroutines = [hook for hook in hooks if _is_async(hook)]
        plain = [hook for hook in hooks if not _is_async(hook)]
        self._thread = _Thread(plain)
        self._tasks = _Tasks(cast("list[Callable[[Event], Awaitable[object]]]", coroutines))
        self._receivers = tuple(each for each in (self._thread, self._tasks) if each.hooks)

    @property
    def dropped(self) -> int:
        """How many events some hooks did not get, in this process."""
        return self._thread.dropped + self._tasks.dropped

    def emit(self, event: Event) -> None:
        """Have an event delivered. Never waits and never raises, whichever thread, greenlet or task it is in."""
        for receiver in self._receivers:
            try:
                receiver.put(event)
            except Exception:  # no thread to be had, for one: the request goes on
                receiver.drop()

    def flush(self, timeout: float = PATIENCE) -> bool:
        """Wait until plain hooks have had what was emitted so far; False if they had not within the time.

        ``timeout`` is in seconds. Blocks: in async code it is ``aflush``.
        """
        return self._thread.flush(timeout)

    async def aflush(self, timeout: float = PATIENCE) -> bool:  # noqa: ASYNC109  # as flush has it
        """Wait until all hooks have had what was emitted so far in this event loop; False if they had not.

        ``timeout`` is in seconds.
        """
        deadline = time.monotonic() + timeout
        delivered = await asyncio.to_thread(self._thread.flush, timeout)
        return await self._tasks.flush(deadline - time.monotonic()) and delivered


OnEvent: TypeAlias = Hook | Iterable[Hook] | Events


def events_of(on_event: OnEvent | None, *, asynchronous: bool) -> Events | None:
    """Give what delivers to these hooks; None for none.

    Raises ConfigurationError for what is no hook, and for an ``async def`` where there is no event loop.
    """
    if isinstance(on_event, Events):
        events = on_event
    else:
        several = isinstance(on_event, Iterable) and not callable(on_event) and not isinstance(on_event, str)
        hooks = tuple(cast("Iterable[Hook]", on_event)) if several else (cast("Hook", on_event),)
        if on_event is None or not hooks:
            return None
        events = Events(*hooks)
    for hook in () if asynchronous else events._tasks.hooks:
        check_function("on_event", hook, asynchronous=False)
    return events


def _is_async(hook: object) -> bool:
    try:
        check_function("on_event", hook, asynchronous=True)
    except ConfigurationError:
        return False
    return True


class _Receiver:
    """Some hooks, and events that wait for them."""

    def __init__(self) -> None:
        self._start_anew()
        after_fork(self._start_anew)  # the thread is not there, and what waits is its parent's to deliver

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._logged: set[tuple[int, type[BaseException]]] = set()
        self.dropped = 0

    def drop(self) -> None:
        with self._lock:
            self.dropped += 1

    def _failed(self, hook: Hook, error: BaseException) -> None:
        kind = (id(hook), type(error))
        if kind not in self._logged:
            self._logged.add(kind)
            # Its name, as a repr may show what it was made with.
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            logger.error("the hook %s failed; this error is not logged again", name, exc_info=error)


def _is_full(waiting: int, event: Event) -> bool:
    return waiting >= (WAITING if isinstance(event, Change) else WAITING - FOR_CHANGES)


class _Thread(_Receiver):
    """Plain hooks, and the one thread that calls them, which under gevent is a greenlet."""

    def __init__(self, hooks: list[Hook]) -> None:
        self.hooks = hooks
        super().__init__()
        _threads.add(self)

    def _start_anew(self) -> None:
        super()._start_anew()
        # Looked up now, and not at import: gevent may have put its own in the place since.
        self._queue: _Queue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, event: Event) -> None:
        if _is_full(self._queue.qsize(), event):
            self.drop()
            return
        if self._thread is None:
            self._start()
        self._queue.put((self, event))

    def flush(self, timeout: float) -> bool:
        if self._thread is None:
            return True
        delivered = threading.Event()
        self._queue.put(delivered)
        return delivered.wait(timeout)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=_deliver, args=(self._queue,), name="apikey_auth.events", daemon=True
                )
                thread.start()
                self._thread = thread
                weakref.finalize(self, self._queue.put, None).atexit = False
                atexit.unregister(_at_exit)  # once is enough, but each process has to: multiprocessing
                atexit.register(_at_exit)  # clears what a child inherits

    def _call(self, event: Event) -> None:
        for hook in self.hooks:
            try:
                hook(event)
            except BaseException as error:  # SystemExit too: nothing that a hook raises ends the thread
                self._failed(hook, error)


_Queue: TypeAlias = "queue.SimpleQueue[tuple[_Thread, Event] | threading.Event | None]"


def _deliver(waiting: _Queue) -> None:
    """Call hooks until nobody is left who could emit an event.

    While it waits it holds none of them: hooks may hold what emits, which then would never go.
    """
    while (item := waiting.get()) is not None:
        if isinstance(item, threading.Event):
            item.set()
        else:
            receiver, event = item
            receiver._call(event)
            del receiver, event
        del item


class _Waiting:
    """What waits in one event loop, and the task that delivers it while there is something."""

    __slots__ = ("items", "task")

    def __init__(self) -> None:
        self.items: deque[Event | asyncio.Event] = deque()
        self.task: asyncio.Task[None] | None = None


class _Tasks(_Receiver):
    """Hooks that are ``async def``, each called in the event loop where the event happened."""

    def __init__(self, hooks: list[Callable[[Event], Awaitable[object]]]) -> None:
        self.hooks = hooks
        super().__init__()

    def _start_anew(self) -> None:
        super()._start_anew()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiting] = (
            weakref.WeakKeyDictionary()
        )

    def put(self, event: Event) -> None:
        loop = asyncio.get_running_loop()  # elsewhere, in trio for one, they cannot be called
        waiting = self._waiting(loop)
        if _is_full(len(waiting.items), event):
            self.drop()
            return
        if waiting.task is None:  # in a context of its own, which not every task factory takes as an argument
            waiting.task = Context().run(loop.create_task, self._deliver(waiting))
        waiting.items.append(event)

    async def flush(self, timeout: float) -> bool:  # noqa: ASYNC109
        waiting = self._waiting(asyncio.get_running_loop())
        if waiting.task is None:
            return True
        delivered = asyncio.Event()
        waiting.items.append(delivered)
        try:
            async with asyncio.timeout(timeout):
                return await delivered.wait()
        except TimeoutError:
            return False

    def _waiting(self, loop: asyncio.AbstractEventLoop) -> _Waiting:
        if (waiting := self._loops.get(loop)) is not None:
            return waiting
        with self._lock:
            return self._loops.setdefault(loop, _Waiting())

    async def _deliver(self, waiting: _Waiting) -> None:
        try:
            await asyncio.sleep(0)  # the request goes on first, also where tasks start eagerly
            while waiting.items:
                item = waiting.items.popleft()
                if isinstance(item, asyncio.Event):
                    item.set()
                else:
                    await self._call(item)
        finally:
            waiting.task = None
            while waiting.items:  # the event loop is ending
                if isinstance(waiting.items.popleft(), Event):
                    self.drop()

    async def _call(self, event: Event) -> None:
        for hook in self.hooks:
            try:
                await hook(event)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                self._failed(hook, error)


_CODES = frozenset(
    error.code
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, Refusal) and error is not Refusal
)


def labels_of(event: Event) -> tuple[str, str]:
    """Give an event's name and its code, for counters: there are few of both, whatever clients send.

    The code is a refusal's, ``other`` for one of the application's own; ``stale`` for a key that was let in so;
    ``key_store`` or ``user_loader`` for what is unavailable; and empty for all else.
    """
    code = ""
    if isinstance(event, Refused):
        code = event.code if event.code in _CODES else "other"
    elif isinstance(event, Authenticated):
        code = "stale" if event.stale else ""
    elif isinstance(event, Unavailable):
        code = event.what.removeprefix("the ").replace(" ", "_")
    return event.name, code


def revoked_by(event: Event) -> int:
    """Tell how many keys an event revoked, for counters."""
    if isinstance(event, RevokedAll):
        return event.count
    return 1 if isinstance(event, Revoked) else 0


def log_events(event: Event) -> None:
    """Write events to the log ``apikey_auth.events``: a hook.

    Keys let in are DEBUG, texts that are no keys INFO, refused keys WARNING, changes INFO, ``revoke_all`` WARNING,
    failures ERROR. A record has the event's fields, and its name as ``event``, for handlers that write JSON.
    """
    level = _level(event)
    if event_logger.isEnabledFor(level):
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        said = " ".join(f"{name}={value!r}" for name, value in fields.items() if name != "at")
        event_logger.log(level, "%s %s", event.name, said, extra={"event": event.name, **fields})


def _level(event: Event) -> int:
    if isinstance(event, Unavailable):
        return logging.ERROR
    if isinstance(event, RevokedAll) or (isinstance(event, Refused) and event.key_id is not None):
        return logging.WARNING
    return logging.DEBUG if isinstance(event, Authenticated) else logging.INFO


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_WAIT
    for thread in tuple(_threads):
        thread.flush(max(0.0, deadline - time.monotonic()))


_threads: weakref.WeakSet[_Thread] = weakref.WeakSet()
