"""Single flight: of those who want the same at once one goes, and the others share what it brings."""

import asyncio
import gc
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from test_cache import in_child

from apikey_auth import InsufficientScope, StoreUnavailable
from apikey_auth.flights import AsyncFlights, Flights
from apikey_auth.testing.drive import EventLoop

PATIENCE = 60  # seconds, for what should take no time
MANY = 1000


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Journey:
    """What is gone for: it is held up until it is let go, and each going comes to the next of its ends."""

    def __init__(self, *ends: object) -> None:
        self.ends = ends
        self.calls = 0
        self.gate = threading.Event()

    def __call__(self) -> Any:
        end = self._begin()
        assert self.gate.wait(PATIENCE)
        return self._come_to(end)

    async def go(self) -> Any:
        end = self._begin()
        while not self.gate.is_set():  # noqa: ASYNC110  # it is opened from outside of the event loop
            await asyncio.sleep(0)
        return self._come_to(end)

    def _begin(self) -> object:
        self.calls += 1
        return self.ends[self.calls - 1]

    def _come_to(self, end: object) -> object:
        if isinstance(end, BaseException):
            raise end
        return end


def check_own_errors(errors: "list[BaseException | None]", original: Exception) -> None:
    """Assert that each has the same error as an object of its own, whose frames are its own too."""
    assert len({id(error) for error in errors}) == len(errors)
    for error in errors:
        assert error is not None
        assert type(error) is type(original)
        assert (error.args, vars(error)) == (original.args, vars(original))
        assert error is original or error.__cause__ is original
        assert len(traceback.extract_tb(error.__traceback__)) < 12


def unavailable() -> StoreUnavailable:
    error = StoreUnavailable("down")
    error.retry_after = 30
    error.__cause__ = OSError("refused")
    return error


ERRORS = [unavailable(), InsufficientScope(["a", "b"]), ValueError("one", 2)]


# Threads


def counted_waits(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Make a list that gets one item for each thread that begins to wait for another's flight."""
    found: list[None] = []

    class Counted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            found.append(None)
            return super().wait(timeout)

    monkeypatch.setattr("apikey_auth.flights.Event", Counted)
    return found


waiting = pytest.fixture(counted_waits, name="waiting")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(MANY) as executor:
        yield executor


@pytest.fixture
def flights() -> Flights[Any]:
    return Flights()


def test_of_a_thousand_threads_one_goes(
    flights: Flights[Any], threads: ThreadPoolExecutor, waiting: list[None]
) -> None:
    answer = object()
    journey = Journey(answer)
    answers = [threads.submit(flights.run, "a", journey) for _ in range(MANY)]
    until(lambda: len(waiting) == MANY - 1)
    journey.gate.set()
    assert all(each.result() is answer for each in answers)
    assert journey.calls == 1


@pytest.mark.parametrize("end", [1, None, False])
def test_whoever_comes_later_goes_anew(flights: Flights[Any], end: object) -> None:
    journey = Journey(end, 2)
    journey.gate.set()
    assert [flights.run("a", journey), flights.run("a", journey)] == [end, 2]


@pytest.mark.parametrize("end", [1, None, False])
def test_whatever_a_flight_brings_is_an_answer(
    flights: Flights[Any], threads: ThreadPoolExecutor, waiting: list[None], end: object
) -> None:
    journey = Journey(end, "another")
    answers = [threads.submit(flights.run, "a", journey) for _ in range(2)]
    until(lambda: waiting)
    journey.gate.set()
    assert [answer.result() for answer in answers] == [end, end]


def test_those_who_want_something_else_do_not_wait(
    flights: Flights[Any], threads: ThreadPoolExecutor
) -> None:
    held, free = Journey(1), Journey(2)
    first = threads.submit(flights.run, "a", held)
    until(lambda: held.calls)
    free.gate.set()
    assert flights.run("b", free) == 2
    assert not first.done()
    held.gate.set()
    assert first.result() == 1


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_reaches_each_thread_as_an_object_of_its_own(
    flights: Flights[Any], threads: ThreadPoolExecutor, waiting: list[None], error: Exception
) -> None:
    journey = Journey(error)
    answers = [threads.submit(flights.run, "a", journey) for _ in range(50)]
    until(lambda: len(waiting) == 49)
    journey.gate.set()
    check_own_errors([answer.exception() for answer in answers], error)
    assert journey.calls == 1
    error.__traceback__ = None


def test_behind_an_error_the_next_goes_anew(flights: Flights[Any]) -> None:
    journey = Journey(ValueError("down"), 2)
    journey.gate.set()
    with pytest.raises(ValueError, match="down"):
        flights.run("a", journey)
    assert flights.run("a", journey) == 2
    assert not flights._flights


@pytest.mark.parametrize("end", [SystemExit(), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_where_whoever_went_is_ended_on_the_way_one_of_the_others_goes(
    flights: Flights[Any], threads: ThreadPoolExecutor, waiting: list[None], end: BaseException
) -> None:
    journey = Journey(end, "answer", "another")
    leader = threads.submit(flights.run, "a", journey)
    until(lambda: journey.calls)
    followers = [threads.submit(flights.run, "a", journey) for _ in range(2)]
    until(lambda: len(waiting) == 2)
    journey.gate.set()
    assert leader.exception() is end
    answers = {follower.result() for follower in followers}
    assert answers <= {"answer", "another"}  # the second may come when the first is back
    assert "answer" in answers
    assert not flights._flights


def test_nobody_joins_a_flight_that_was_detached(
    flights: Flights[Any], threads: ThreadPoolExecutor, waiting: list[None]
) -> None:
    old, new = Journey("old"), Journey("new")
    before = [threads.submit(flights.run, "a", old) for _ in range(2)]
    until(lambda: waiting)
    flights.detach()
    behind = threads.submit(flights.run, "a", new)
    until(lambda: new.calls)
    old.gate.set()
    assert [each.result() for each in before] == ["old", "old"]
    joining = threads.submit(flights.run, "a", Journey())  # the end of the old flight leaves the new one
    until(lambda: len(waiting) == 2)
    new.gate.set()
    assert [behind.result(), joining.result()] == ["new", "new"]
    assert not flights._flights


def test_a_child_waits_for_no_thread_of_its_parent(
    flights: Flights[Any], threads: ThreadPoolExecutor
) -> None:
    held, free = Journey(1), Journey(2)
    free.gate.set()
    leader = threads.submit(flights.run, "a", held)
    until(lambda: held.calls)
    with flights._lock:
        assert in_child(lambda: flights.run("a", free) == 2)
    held.gate.set()
    assert leader.result() == 1


# Tasks


async def started(tasks: "list[asyncio.Task[Any]]") -> None:
    """Let tasks come as far as they come without the gate."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def tasks_of(number: int, flights: AsyncFlights[Any], journey: Journey) -> "list[asyncio.Task[Any]]":
    return [asyncio.create_task(flights.run("a", journey.go)) for _ in range(number)]


@pytest.fixture
def async_flights() -> AsyncFlights[Any]:
    return AsyncFlights()


async def test_of_a_thousand_tasks_one_goes(async_flights: AsyncFlights[Any]) -> None:
    answer = object()
    journey = Journey(answer)
    tasks = tasks_of(MANY, async_flights, journey)
    await started(tasks)
    journey.gate.set()
    answers = await asyncio.gather(*tasks)
    assert all(each is answer for each in answers)
    assert journey.calls == 1


async def test_whichever_task_comes_later_goes_anew(async_flights: AsyncFlights[Any]) -> None:
    journey = Journey(None, ValueError("down"), 2)
    journey.gate.set()
    assert await async_flights.run("a", journey.go) is None
    with pytest.raises(ValueError, match="down"):
        await async_flights.run("a", journey.go)
    assert await async_flights.run("a", journey.go) == 2
    assert not any(async_flights._flights.values())


async def test_tasks_that_want_something_else_do_not_wait(async_flights: AsyncFlights[Any]) -> None:
    held, free = Journey(1), Journey(2)
    tasks = tasks_of(1, async_flights, held)
    await started(tasks)
    free.gate.set()
    assert await async_flights.run("b", free.go) == 2
    assert not tasks[0].done()
    held.gate.set()
    assert await tasks[0] == 1


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1]], ids=str)
async def test_a_cancelled_task_whether_it_went_or_not_cancels_no_other(
    async_flights: AsyncFlights[Any], cancelled: list[int]
) -> None:
    journey = Journey("answer")
    tasks = tasks_of(4, async_flights, journey)
    await started(tasks)
    for number in cancelled:
        tasks[number].cancel()
    for number in cancelled:
        with pytest.raises(asyncio.CancelledError):
            await tasks[number]
    joining = tasks_of(1, async_flights, journey)
    await started(joining)
    journey.gate.set()
    rest = [task for number, task in enumerate(tasks) if number not in cancelled]
    assert set(await asyncio.gather(*rest, *joining)) == {"answer"}
    assert journey.calls == 1


async def test_a_task_that_is_out_of_time_ends_and_the_others_go_on(async_flights: AsyncFlights[Any]) -> None:
    journey = Journey("answer")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await async_flights.run("a", journey.go)
    journey.gate.set()
    assert await async_flights.run("a", journey.go) == "answer"
    assert journey.calls == 1


@pytest.mark.parametrize("end", ["answer", ValueError("nobody waits for it")], ids=repr)
async def test_a_flight_that_nobody_waits_for_any_more_ends_without_a_word(
    async_flights: AsyncFlights[Any], end: object
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    journey = Journey(end)
    tasks = tasks_of(2, async_flights, journey)
    await started(tasks)
    assert all(task.cancel() for task in tasks)
    await asyncio.gather(*tasks, return_exceptions=True)
    journey.gate.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(async_flights._flights.values())
    del tasks
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_an_error_reaches_each_task_as_an_object_of_its_own(
    async_flights: AsyncFlights[Any], error: Exception
) -> None:
    journey = Journey(error)
    tasks = tasks_of(50, async_flights, journey)
    await started(tasks)
    journey.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    check_own_errors(errors, error)
    assert journey.calls == 1
    error.__traceback__ = None


async def test_no_task_joins_a_flight_that_was_detached(async_flights: AsyncFlights[Any]) -> None:
    old, new = Journey("old"), Journey("new")
    before = tasks_of(2, async_flights, old)
    await started(before)
    async_flights.detach()
    behind = tasks_of(1, async_flights, new)
    await started(behind)
    old.gate.set()
    assert await asyncio.gather(*before) == ["old", "old"]
    joining = tasks_of(1, async_flights, Journey())
    await started(joining)
    new.gate.set()
    assert await asyncio.gather(*behind, *joining) == ["new", "new"]


def test_each_event_loop_has_flights_of_its_own(async_flights: AsyncFlights[Any]) -> None:
    journeys = Journey("first"), Journey("second")
    begun: list[None] = []

    async def run(journey: Journey) -> Any:
        begun.append(None)
        return await async_flights.run("a", journey.go)

    with EventLoop() as first, EventLoop() as second, ThreadPoolExecutor(4) as threads:
        answers: list[Future[Any]] = []
        for loop, journey in zip((first, second), journeys, strict=True):
            answers += [threads.submit(loop.run, run, journey) for _ in range(2)]
        until(lambda: len(begun) == 4 and all(journey.calls for journey in journeys))
        for journey in reversed(journeys):
            journey.gate.set()
        assert [answer.result() for answer in answers] == ["first", "first", "second", "second"]
    assert [journey.calls for journey in journeys] == [1, 1]


def test_a_loop_that_is_gone_leaves_nothing_behind(async_flights: AsyncFlights[Any]) -> None:
    journey = Journey("answer")

    async def leave() -> "weakref.ref[asyncio.AbstractEventLoop]":
        tasks = tasks_of(2, async_flights, journey)
        await started(tasks)  # and end with the flight on its way
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(leave())
    gc.collect()
    assert loop() is None
    assert not async_flights._flights
    journey = Journey("another")
    journey.gate.set()
    assert asyncio.run(async_flights.run("a", journey.go)) == "another"


def test_without_an_event_loop_of_asyncio_everybody_goes(async_flights: AsyncFlights[Any]) -> None:
    journey = Journey("first", "second", ValueError("third"))
    journey.gate.set()

    def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        return stopped.value.value

    assert [drive(async_flights.run("a", journey.go)) for _ in range(2)] == ["first", "second"]
    with pytest.raises(ValueError, match="third"):
        async_flights.run("a", journey.go).send(None)


def test_a_child_has_no_flights_of_its_parents_tasks(async_flights: AsyncFlights[Any]) -> None:
    journey = Journey("answer")
    with EventLoop() as loop, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(loop.run, async_flights.run, "a", journey.go)
        until(lambda: journey.calls)
        assert in_child(lambda: not async_flights._flights)
        journey.gate.set()
        assert answer.result() == "answer"
