"""What is remembered of keys, and for how long. A data structure: no I/O, no thread and no task of its own.

Verdicts are found by the SHA-256 of a key's text, never by the text. Whether they may still be used is a
matter of when the store was last asked what had changed: the *poll*. What a revocation promises rests on
these rules:

* A verdict is used only while less than ``max_staleness`` has passed since the start of the last good poll.
* A poll drops what changed, and only that; all, where the store cannot tell.
* What was read from the store is kept only if, since before it was read, no poll saw a newer revision and
  nothing was evicted here; both are checked and it is put in under one lock.
* Nothing is kept before the first poll, for longer than ``max_age``, or of an unknown id for longer than
  ``max_staleness``.

A store that cannot tell what changed gets a time-to-live, ``max_staleness``, in the place of all this.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from threading import Lock
from time import monotonic as monotonic_clock
from typing import Any

from .errors import ConfigurationError, InvalidKey
from .forking import after_fork
from .keys import MAX_TEXT, APIKey
from .stores.protocol import Changes, Revision, check_seconds

Mark = bytes
NEVER = float("-inf")


def mark_of(text: str) -> Mark:
    """Make what a text's verdict is found by.

    Raises TypeError for what is no text, InvalidKey for one that is too long to be a key, and is not hashed.
    """
    if not isinstance(text, str):
        raise TypeError(f"a key is text, not {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise InvalidKey
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the store said of a text: the record that its id names, and whether it is that record's key.

    Whether the record is live is judged each time it is used. ``until`` (monotonic) is when it must be read
    again. ``ends`` (seconds since the epoch) is when a live key ends, NEVER where a request has to be looked
    at more closely; ``identity`` is what every request with the key may share, if there is anything to share.
    """

    key_id: str
    key: APIKey | None
    matches: bool
    until: float
    ends: float = NEVER
    identity: Any = None


@dataclass(frozen=True, slots=True)
class Fence:
    """The moment before something was read from the store."""

    generation: int
    at: float


_NO_MOMENT = Fence(0, NEVER)


class VerdictCache:
    """At most ``size`` verdicts on good keys, and an eighth as many on others, so that these push out none.

    Times are in seconds. ``follows`` says whether the store tells what changed. Raises ConfigurationError
    for a size or a time that will not do.
    """

    def __init__(
        self,
        *,
        size: int,
        max_staleness: float,
        max_age: float,
        stale_if_error: float,
        follows: bool,
        monotonic: Callable[[], float] = monotonic_clock,
    ) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ConfigurationError(f"cache_size is a number of keys, 0 for no cache, not {size!r}")
        check_seconds("max_staleness", max_staleness)
        check_seconds("max_age", max_age)
        check_seconds("stale_if_error", stale_if_error)
        self.size = size if max_staleness and max_age else 0
        self.max_staleness = max_staleness
        self.max_age = max_age
        self.stale_if_error = stale_if_error
        self.follows = follows
        self._monotonic = monotonic
        if stale_if_error and not follows:
            raise ConfigurationError("stale_if_error takes a store with changes()")
        if stale_if_error and not self.size:
            raise ConfigurationError(
                "stale_if_error takes a cache: cache_size, max_staleness and max_age over 0"
            )
        self._on_eviction: list[Callable[[], None]] = []
        self._start_anew()
        after_fork(self._start_anew)  # what the parent learns from now on, a child does not

    def call_on_eviction(self, detach: Callable[[], None]) -> None:
        """Have something called after each eviction: what is being read then, nobody shall join any more."""
        self._on_eviction.append(detach)

    def _start_anew(self) -> None:
        self._lock = Lock()  # a new one: in a child the old one may be held by a thread that is not there
        self._good: OrderedDict[Mark, Verdict] = OrderedDict()
        self._others: OrderedDict[Mark, Verdict] = OrderedDict()
        self._marks: dict[str, set[Mark]] = {}  # of each id
        self._generation = 0
        self._polling = False
        self._polled_at = self._failed_at = NEVER
        self._poll_due = NEVER if self.follows else float("inf")
        self.revision: Revision | None = None

    # What requests ask

    def fresh(self, mark: Mark) -> Verdict | None:
        """Find a verdict on a good key that may be used as things stand: the way of nearly every request."""
        verdict = self._good.get(mark)
        if verdict is None:
            return None
        now = self._monotonic()
        if now >= verdict.until or now >= self._poll_due:
            return None
        try:
            self._good.move_to_end(mark)
        except KeyError:  # dropped meanwhile, and found just before
            return None
        return verdict

    def find(self, mark: Mark) -> Verdict | None:
        """Find a verdict, whenever the store was polled last."""
        with self._lock:
            verdict = self._good.get(mark) or self._others.get(mark)
            if verdict is None:
                return None
            if self._monotonic() < verdict.until:
                (self._good if mark in self._good else self._others).move_to_end(mark)
                return verdict
            return None

    def needs_poll(self) -> bool:
        """Say whether nothing can be kept before the first poll."""
        return self.follows and self.size > 0 and self.revision is None

    def is_current(self) -> bool:
        """Say whether verdicts may be used without a poll before."""
        return not self.follows or self._age() < self.max_staleness

    def is_usable_stale(self, mark: Mark) -> bool:
        """Say whether a verdict may be used although the store does not answer; one on a good key may."""
        return mark in self._good and self._age() < self.max_staleness + self.stale_if_error

    def has_just_failed(self) -> bool:
        """Say whether a poll failed a moment ago, so that the next may wait a little."""
        return self._monotonic() - self._failed_at < self.max_staleness / 2

    def has_failed(self) -> bool:
        """Say whether a poll failed since the last good one: then nobody waits but who asks again."""
        return self._failed_at != NEVER

    def _age(self) -> float:
        return self._monotonic() - self._polled_at

    # What the store said

    def fence(self) -> Fence:
        """Note the moment, before something is read."""
        with self._lock:
            return Fence(self._generation, self._monotonic())

    def verdict(
        self,
        key_id: str,
        key: APIKey | None,
        matches: bool,
        fence: Fence,
        ends: float = NEVER,
        identity: Any = None,
    ) -> Verdict:
        """Make the verdict of what was read behind a fence."""
        life = self.max_age if self.follows and key is not None else self.max_staleness
        return Verdict(key_id, key, matches, fence.at + life, ends, identity)

    def keep(self, mark: Mark, verdict: Verdict, fence: Fence, *, good: bool) -> None:
        """Keep a verdict, unless something happened since its fence."""
        with self._lock:
            if fence.generation != self._generation or (self.follows and self.revision is None):
                return
            self._drop(mark)
            kept, size = (self._good, self.size) if good else (self._others, -(-self.size // 8))
            if size == 0:
                return
            kept[mark] = verdict
            self._marks.setdefault(verdict.key_id, set()).add(mark)
            if len(kept) > size:
                self._unlist(*kept.popitem(last=False))

    def may_poll(self) -> bool:
        """Take the poll that is due upon oneself; False if it is not due, or somebody else has it."""
        with self._lock:
            due = self.follows and self._age() >= self.max_staleness / 2 and not self.has_just_failed()
            if self._polling or not due:
                return False
            self._polling = True
            return True

    def polled(self, changes: Changes, started: float) -> None:
        """Drop what changed, and count the age of all the rest from ``started``."""
        with self._lock:
            self._polling = False
            if started < self._polled_at:
                return  # another poll began later and is done
            if changes.revision != self.revision or changes.ids is None:
                self._generation += 1
                if self.revision is None or changes.ids is None:
                    self._drop_all()
                else:
                    self._drop_ids(changes.ids)
            self.revision = changes.revision
            self._polled_at, self._failed_at = started, NEVER
            self._poll_due = started + self.max_staleness / 2

    def poll_failed(self) -> None:
        with self._lock:
            self._polling = False
            self._failed_at = self._monotonic()

    def now(self) -> float:
        """Tell the time that ``polled`` wants."""
        return self._monotonic()

    # What was done here

    def evict(self, ids: Iterable[str]) -> None:
        """Drop the verdicts on these keys, and let none be kept that was read before now."""
        with self._evicting():
            self._drop_ids(ids)

    def evict_owner(self, owner: str) -> None:
        """Drop the verdicts on an owner's keys; see ``evict``."""
        with self._evicting():
            # Not by way of the verdicts, whose order requests change meanwhile: ``fresh`` takes no lock.
            for mark in [mark for marks in self._marks.values() for mark in marks]:
                verdict = self._good.get(mark) or self._others[mark]
                if verdict.key is not None and verdict.key.owner == owner:
                    self._drop(mark)

    def evict_all(self) -> None:
        """Drop every verdict; see ``evict``."""
        with self._evicting():
            self._drop_all()

    @contextmanager
    def _evicting(self) -> Iterator[None]:
        with self._lock:
            self._generation += 1
            yield
        for detach in self._on_eviction:
            detach()

    def __len__(self) -> int:
        return len(self._good) + len(self._others)

    def _drop(self, mark: Mark) -> None:
        verdict = self._good.pop(mark, None) or self._others.pop(mark, None)
        if verdict is not None:
            self._unlist(mark, verdict)

    def _unlist(self, mark: Mark, verdict: Verdict) -> None:
        marks = self._marks[verdict.key_id]
        marks.discard(mark)
        if not marks:
            del self._marks[verdict.key_id]

    def _drop_ids(self, ids: Iterable[str]) -> None:
        for key_id in ids:
            for mark in tuple(self._marks.get(key_id, ())):
                self._drop(mark)

    def _drop_all(self) -> None:
        self._good.clear()
        self._others.clear()
        self._marks.clear()


class UserCache:
    """Users by owner, each for ``max_age`` seconds and as a copy of its own; none where that is 0."""

    def __init__(self, max_age: float, size: int, monotonic: Callable[[], float] = monotonic_clock) -> None:
        check_seconds("user_max_age", max_age)
        self._max_age = max_age
        self._size = size
        self._monotonic = monotonic
        self._start_anew()
        after_fork(self._start_anew)

    def _start_anew(self) -> None:
        self._users: OrderedDict[str, tuple[float, object]] = OrderedDict()
        self._generation = 0
        self._lock = Lock()

    def find(self, owner: str) -> object | None:
        """Give a copy of a user that was loaded not too long ago; None for none."""
        if not self._max_age:
            return None
        with self._lock:
            until, user = self._users.get(owner, (NEVER, None))
        return copy(user) if self._monotonic() < until else None

    def fence(self) -> Fence:
        """Note the moment, before a user is loaded."""
        if not self._max_age:
            return _NO_MOMENT
        return Fence(self._generation, self._monotonic())

    def keep(self, owner: str, user: object, fence: Fence) -> None:
        """Keep a user, unless one was forgotten since the fence."""
        if not self._max_age or user is None:
            return
        with self._lock:
            if fence.generation != self._generation:
                return
            self._users[owner] = (fence.at + self._max_age, copy(user))
            self._users.move_to_end(owner)
            if len(self._users) > self._size:
                self._users.popitem(last=False)

    def forget(self, owner: str) -> None:
        with self._lock:
            self._generation += 1
            self._users.pop(owner, None)
