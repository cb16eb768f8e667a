"""Single flight: of those who want the same at once, one goes and the others share what it brings.

Threads and greenlets wait on an event, which gevent's monkey-patching makes its own; tasks await a task,
which belongs to their event loop and to none of them, so that nobody's cancellation ends it.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Hashable
from threading import Event, Lock
from typing import Generic, TypeVar

from .forking import after_fork

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("answer", "error", "landed")

    def __init__(self) -> None:
        self.landed = Event()
        self.answer: list[T] = []
        self.error: Exception | None = None


class Flights(Generic[T]):
    """For threads and greenlets."""

    def __init__(self) -> None:
        self._start_anew()
        after_fork(self._start_anew)  # the thread that went is not there

    def _start_anew(self) -> None:
        self._lock = Lock()
        self._flights: dict[Hashable, _Flight[T]] = {}

    def detach(self) -> None:
        """Let whoever comes from now on go anew."""
        with self._lock:
            self._flights = {}

    def run(self, what: Hashable, go: Callable[[], T]) -> T:
        """Go, or wait for whoever has gone already. Raises what that one's going raised."""
        while True:
            mine: _Flight[T] = _Flight()
            with self._lock:
                flights = self._flights
                flight = flights.setdefault(what, mine)
            if flight is mine:
                return self._go(what, go, flights, mine)
            flight.landed.wait()
            if flight.error is not None:
                raise _again(flight.error)
            if flight.answer:
                return flight.answer[0]
            # whoever went was ended on the way

    def _go(
        self, what: Hashable, go: Callable[[], T], flights: "dict[Hashable, _Flight[T]]", mine: "_Flight[T]"
    ) -> T:
        try:
            answer = go()
            mine.answer.append(answer)
            return answer
        except Exception as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                if flights.get(what) is mine:
                    del flights[what]
            mine.landed.set()


class AsyncFlights(Generic[T]):
    """For tasks, of any number of event loops, each of which has its own flights."""

    def __init__(self) -> None:
        self._start_anew()
        after_fork(self._start_anew)  # the thread that went is not there

    def _start_anew(self) -> None:
        self._flights: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[Hashable, asyncio.Task[T]]
        ] = weakref.WeakKeyDictionary()

    def detach(self) -> None:
        """Let whoever comes from now on go anew."""
        self._start_anew()

    async def run(self, what: Hashable, go: Callable[[], Awaitable[T]]) -> T:
        """Go, or wait for whoever has gone already. Raises what that one's going raised."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio's, or none: there everybody goes
            return await go()
        flights = self._flights.setdefault(loop, {})
        task = flights.get(what)
        if task is None:
            task = flights[what] = asyncio.ensure_future(_awaited(go))
            task.add_done_callback(lambda done: _land(flights, what, done))
            return await asyncio.shield(task)
        try:
            return await asyncio.shield(task)
        except Exception as error:
            raise _again(error) from error


def _again(error: Exception) -> Exception:
    """Make the same error for somebody else: one that many raise gathers the frames of all."""
    copy: Exception = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args, copy.__cause__ = error.args, error
    return copy


async def _awaited(go: Callable[[], Awaitable[T]]) -> T:
    return await go()


def _land(flights: "dict[Hashable, asyncio.Task[T]]", what: Hashable, done: "asyncio.Task[T]") -> None:
    if flights.get(what) is done:
        del flights[what]
    if not done.cancelled():
        done.exception()  # taken notice of, also where nobody waits any more
