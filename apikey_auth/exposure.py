"""Keys that were sent in the clear: whoever listened on the way has them (draft-ietf-httpapi-privacy).

They are refused, good and bad alike, so that nobody learns from the answer which is which; or revoked as
well, where the application wants that.
"""

from collections.abc import Callable
from threading import Lock
from time import monotonic as monotonic_clock

from .forking import after_fork

REVOCATIONS = 10
SECONDS = 1.0


class FloodGuard:
    """Lets so many look a key up for its revocation in a while: anybody can send keys in the clear."""

    def __init__(self, monotonic: Callable[[], float] = monotonic_clock) -> None:
        self._monotonic = monotonic
        self._start_anew()
        after_fork(self._start_anew)

    def _start_anew(self) -> None:
        self._lock = Lock()
        self._since = float("-inf")
        self._count = 0

    def allows(self) -> bool:
        """Take one of the ``REVOCATIONS`` that there are in ``SECONDS``; False where there is none left."""
        with self._lock:
            now = self._monotonic()
            if now - self._since >= SECONDS:
                self._since, self._count = now, 0
            self._count += 1
            return self._count <= REVOCATIONS
