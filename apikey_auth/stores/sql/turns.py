"""Whose turn it is: one thread at a time, in the order in which they come."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from ...errors import StoreUnavailable
from ...forking import after_fork


class Turns:
    """A lock that is fair. A pool's is not: whoever comes new may overtake, again and again."""

    def __init__(self) -> None:
        self._start_anew()
        after_fork(self._start_anew)

    def _start_anew(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Lock] = deque()
        self._is_taken = False

    @contextmanager
    def taken(self, timeout: float) -> Iterator[None]:
        """Wait for one's turn, and have it. Raises StoreUnavailable if it does not come in time."""
        self._take(timeout)
        try:
            yield
        finally:
            self._pass_on()

    def _take(self, timeout: float) -> None:
        mine = Lock()
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=timeout):  # released by whoever passes the turn on
            return
        with self._lock:
            late = mine in self._waiting
            if late:
                self._waiting.remove(mine)
        if late:
            raise StoreUnavailable(f"others have been writing for {timeout:g} s")

    def _pass_on(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False
