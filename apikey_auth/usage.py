"""What the use of keys leaves to be written down: when each was used last, and digests to be renewed.

It is noted in memory, which costs a request next to nothing, and written in bulk, never on the way to a
response: once per ``interval`` at most while keys are used, and when the process ends. Blocking code is
served by a thread that wakes up for each write; asyncio by a timer of the loop on which keys are used, and at
the end by the application's lifespan. What finds no room is counted as lost.
"""

import asyncio
import atexit
import logging
import threading
import weakref
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

from .errors import StoreUnavailable
from .forking import after_fork
from .keys import APIKey
from .stores.protocol import AsyncKeyReader, AsyncKeyStore, KeyReader, KeyStore, check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("apikey_auth")

NEVER = float("-inf")
MAX_RENEWALS = 1_000  # digests that wait to be renewed; the rest is found again when its key is read again
PATIENCE = 5.0  # seconds that the end of the process waits for a write under way


Used = dict[str, datetime]
Renewals = list[tuple[APIKey, APIKey]]


class Noting(TypedDict):
    """What is noted: ``interval`` in seconds, 0 for no use at all; ``size`` in keys; what the store can write."""

    interval: float
    size: int
    touches: bool
    swaps: bool


class Notes:
    """When keys were used last, in seconds since the epoch, and which digests to renew.

    Raises ConfigurationError for an interval that is no number of seconds.
    """

    def __init__(self, *, interval: float, size: int, touches: bool, swaps: bool) -> None:
        check_seconds("touch_interval", interval, ", 0 for never")
        self.is_on = bool(interval) and touches
        self.lost = 0
        self._interval = interval or 60.0
        self._size = size
        self._swaps = swaps
        self._start_anew()
        after_fork(self._start_anew)  # the parent writes what it noted itself
        _all.add(self)

    def _start_anew(self) -> None:
        self._used: dict[str, float] = {}
        self._renewals: dict[str, tuple[APIKey, APIKey]] = {}
        self._lock = threading.Lock()
        self._due = NEVER  # by the clock of the notes: when to look whether a write is arranged
        self._arranged_until = NEVER  # monotonic: the write that was arranged has come by then, or never will

    def note(self, key_id: str, at: float) -> None:
        """Note that a key was used."""
        used = self._used
        if len(used) >= self._size and key_id not in used:
            self.lost += 1
            return
        used[key_id] = at
        if at >= self._due:
            self._arrange(at)

    def renew(self, old: APIKey, new: APIKey) -> None:
        """Note a record whose digest is to be renewed."""
        if self._swaps and len(self._renewals) < MAX_RENEWALS:
            self._renewals[old.id] = old, new
            self._arrange(NEVER)

    def renewed(self, key: APIKey | None) -> APIKey | None:
        """Give a record with the digest that it is about to have: an old one may take long to compute."""
        renewal = self._renewals.get(key.id) if key else None
        return renewal[1] if renewal and key and renewal[0].digest == key.digest else key

    def __len__(self) -> int:
        return len(self._used) + len(self._renewals)

    def _arrange(self, at: float) -> None:
        with self._lock:
            self._due = at + self._interval
            now = monotonic()
            if now < self._arranged_until:
                return
            self._arranged_until = now + 2 * self._interval
        self._call_later()

    def _call_later(self) -> None:
        """Have what is noted written once the interval is over."""
        raise NotImplementedError

    def _take(self) -> tuple[Used, Renewals]:
        """Take what is noted, one by one: what is noted meanwhile is either taken or stays."""
        self._due = self._arranged_until = NEVER
        used = ((key_id, self._used.pop(key_id, None)) for key_id in tuple(self._used))
        renewals = (self._renewals.pop(key_id, None) for key_id in tuple(self._renewals))
        return (
            {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in used if at is not None},
            [renewal for renewal in renewals if renewal is not None],
        )

    def _put_back(self, used: Used, error: BaseException) -> None:
        logger.warning("the last use of %d keys is not written yet: %s", len(used), type(error).__name__)
        for key_id, at in used.items():
            if key_id not in self._used:
                self.note(key_id, at.timestamp())

    def at_exit(self) -> None:
        """Write what is noted when the process ends, or tell of it."""
        if self._used:
            hint = "run the application with its lifespan, or await auth.flush()"
            logger.info("the last use of %d keys was not written: %s", len(self._used), hint)


class Uses(Notes):
    """For blocking code. ``release`` is called in the thread that writes: it gives back what the thread holds."""

    def __init__(self, store: KeyReader, **noting: Unpack[Noting]) -> None:
        super().__init__(**noting)
        self._store = cast("KeyStore", store)
        self.release: Callable[[], None] = _nothing

    def _start_anew(self) -> None:
        super()._start_anew()
        self._writing = threading.Lock()

    def write(self) -> None:
        """Write what is noted. What cannot be written stays noted, and is logged."""
        with self._writing:
            used, renewals = self._take()
            try:
                if used:
                    self._store.touch(used)
            except BaseException as error:
                self._put_back(used, error)
                if not isinstance(error, Exception):
                    raise
            for old, new in renewals:
                try:
                    self._store.swap(old, new)
                except Exception as error:  # it is as good a digest as before, and found again
                    logger.debug("the key %s was not digested anew: %s", old.id, type(error).__name__)
                    if isinstance(error, StoreUnavailable):
                        break  # or each of the others would wait for its deadline too

    def at_exit(self) -> None:
        if self._writing.acquire(timeout=PATIENCE):
            self._writing.release()
            self.write()

    def _call_later(self) -> None:
        _waker.wake(self, monotonic() + self._interval)

    def wake_up(self) -> None:
        """Write in a thread of the library's own."""
        try:
            self.write()
        finally:
            self.release()


class AsyncUses(Notes):
    """For asyncio: a write is arranged on the loop on which a key is used. Elsewhere ``write`` is to be called."""

    def __init__(self, store: AsyncKeyReader, **noting: Unpack[Noting]) -> None:
        super().__init__(**noting)
        self._store = cast("AsyncKeyStore", store)
        # What is under way: a loop keeps tasks by weak references alone.
        self._writes: set[asyncio.Task[None]] = set()

    async def write(self) -> None:
        """Write what is noted, after what is being written. What cannot be written stays noted, and is logged."""
        if under_way := [task for task in tuple(self._writes) if task.get_loop() is _running_loop()]:
            await asyncio.wait(under_way)
        await self._write()

    async def _write(self) -> None:
        used, renewals = self._take()
        try:
            if used:
                await self._store.touch(used)
        except BaseException as error:
            self._put_back(used, error)
            if not isinstance(error, Exception):
                raise
        for old, new in renewals:
            try:
                await self._store.swap(old, new)
            except Exception as error:  # it is as good a digest as before, and found again
                logger.debug("the key %s was not digested anew: %s", old.id, type(error).__name__)
                if isinstance(error, StoreUnavailable):
                    break  # or each of the others would wait for its deadline too

    def _call_later(self) -> None:
        if (loop := _running_loop()) is not None:
            loop.call_later(self._interval, self.wake_up)

    def wake_up(self) -> None:
        """Write in a task of the library's own."""
        task = asyncio.get_running_loop().create_task(self._write())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # trio's, or none
        return None


class SharedUses:
    """What a blocking authenticator notes and writes, for the async one beside it."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses
        self.note, self.renew, self.renewed = uses.note, uses.renew, uses.renewed
        self.is_on = uses.is_on

    @property
    def lost(self) -> int:
        return self._uses.lost

    async def write(self) -> None:
        """Write what is noted, in a thread."""
        await asyncio.to_thread(self._uses.wake_up)


class _Waker:
    """One thread for all that wait in this process, and none while nobody does."""

    def __init__(self) -> None:
        self._start_anew()
        after_fork(self._start_anew)  # the thread is not there

    def _start_anew(self) -> None:
        self._waiting: weakref.WeakKeyDictionary[Uses, float] = weakref.WeakKeyDictionary()
        self._changed = threading.Condition()
        self._is_running = False

    def wake(self, uses: Uses, at: float) -> None:
        """Wake somebody at a monotonic time."""
        with self._changed:
            self._waiting[uses] = at
            if self._is_running:
                self._changed.notify()
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name="apikey_auth-usage", daemon=True).start()
        except RuntimeError:  # none to be had now: the request goes on, and a later one tries again
            self._is_running = False

    def _run(self) -> None:
        while (due := self._next()) is not None:
            while due:
                _wake(due.pop())  # and hold it no longer

    def _next(self) -> list[Uses] | None:
        """Wait for whoever is due next; None if nobody is left."""
        with self._changed:
            while (first := min(self._waiting.values(), default=None)) is not None:
                now = monotonic()
                due = [uses for uses, at in self._waiting.items() if at <= now]
                for uses in due:
                    del self._waiting[uses]
                if due:
                    return due
                self._changed.wait(first - now)
            self._is_running = False
            return None


def _wake(uses: Uses) -> None:
    try:
        uses.wake_up()
    except BaseException:  # SystemExit too: nothing that a store raises ends the thread
        logger.exception("the last use of keys could not be written")


def _nothing() -> None:
    pass


def _at_exit() -> None:
    for notes in tuple(_all):
        try:
            notes.at_exit()
        except BaseException:  # SystemExit too: the others write all the same
            logger.exception("the last use of keys could not be written")


_all: weakref.WeakSet[Notes] = weakref.WeakSet()
_waker = _Waker()
atexit.register(_at_exit)
