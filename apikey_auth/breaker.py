"""A circuit breaker: a store that does not answer is not asked by every request.

After ``FAILURES`` failures in a row it is open: nobody asks for ``PAUSE`` seconds, and then one asks for all.
If that one gets an answer, everybody may ask again.
"""

from collections.abc import Callable
from threading import Lock
from time import monotonic as monotonic_clock
from types import TracebackType

from .errors import StoreUnavailable
from .forking import after_fork

FAILURES = 5
PAUSE = 0.5
FAILING = (StoreUnavailable, OSError)
"""What counts as no answer. Another error may be about one record, which anybody could ask for five times."""


class NotAsked(StoreUnavailable):
    """The store failed a moment ago, and was not asked again."""


class Breaker:
    """One for each store. Calls to the store stand in a ``with`` block, which raises NotAsked instead."""

    def __init__(self, monotonic: Callable[[], float] = monotonic_clock) -> None:
        self._monotonic = monotonic
        self._start_anew()
        after_fork(self._start_anew)

    def _start_anew(self) -> None:
        self._lock = Lock()
        self._failures = 0
        self._open_until = float("-inf")  # monotonic
        self._is_tried = False

    def __enter__(self) -> None:
        if self._failures < FAILURES:
            return
        with self._lock:
            if self._is_tried or self._monotonic() < self._open_until:
                raise NotAsked("the key store failed a moment ago, and was not asked again")
            self._is_tried = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_tried = False
            if isinstance(error, FAILING):
                self._failures += 1
                self._open_until = self._monotonic() + PAUSE
            elif error is None or isinstance(error, Exception):  # and not somebody who did not wait for it
                self._failures = 0
