"""A store that hangs until its deadline: who waits for it, how often it is called, and what is left behind.

The deadline passes when the test says so, and the cache's clock stands still.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from test_cache import Ticks
from test_eviction import MINUTE, NOW, SCHEME, App, Colour
from test_flights import counted_waits, until

from apikey_auth import AsyncAuthenticator, Authenticator, Inline, InThread, MemoryKeyStore, Refusal
from apikey_auth.testing import FakeClock, UnreliableStore
from apikey_auth.testing.drive import EventLoop

MANY = 50
BOUND = 1.0  # max_staleness, in seconds
COLOURS = ["sync", "async", "in a thread"]


@dataclass(frozen=True)
class Hanging:
    """An application whose store hangs when it is told to. What hangs fails when the deadline passes."""

    app: App
    late: UnreliableStore  # behind the one that hangs
    followers: list[None]  # one for each thread that began to wait for what another had gone for

    def hang(self) -> None:
        self.late.fail()
        self.app.store.hang()

    def pass_deadline(self) -> None:
        """Let the calls that hang now fail; whoever calls later hangs anew."""
        self.app.store.hang()

    def heal(self) -> None:
        self.late.heal()
        self.app.store.heal()

    @property
    def waiting(self) -> int:
        """How many calls hang."""
        return self.app.store.waiting

    def start(self, *texts: str) -> "Started":
        """Begin to authenticate these texts, all at once, and go on when all of them wait."""
        loop, threads = self.app._colour.loop, self.app._colour.threads
        if loop is not None:
            started = Started([threads.submit(loop.run, _outcomes, self.app.auth.authenticate, texts)])
            until(lambda: self.waiting)  # for whoever is first; the others were on their way before
        else:
            before = len(self.followers)
            started = Started([threads.submit(self.app.outcome, text) for text in texts])
            until(lambda: self.waiting + len(self.followers) - before == len(texts))
        return started


@dataclass(frozen=True)
class Started:
    """Those who have begun to authenticate."""

    answers: list["Future[Any]"]

    @property
    def outcomes(self) -> Counter[str]:
        """Wait until all are answered, and tell how."""
        found = [answer.result() for answer in self.answers]
        return Counter(found) if isinstance(found[0], str) else Counter(found[0])


async def _outcomes(authenticate: Callable[[str], Any], texts: tuple[str, ...]) -> list[str]:
    async def outcome(text: str) -> str:
        try:
            return "stale" if (await authenticate(text)).stale else "in"
        except Refusal as refusal:
            return refusal.code

    return await asyncio.gather(*map(outcome, texts))


async def other_tasks() -> set["asyncio.Task[Any]"]:
    """Give the tasks of an event loop but for the one that asks."""
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.fixture(params=COLOURS)
def colour(request: pytest.FixtureRequest) -> Iterator[Colour]:
    """Give a colour, and see that no thread and no task of a test outlives it."""
    threads_before = set(threading.enumerate())
    with ThreadPoolExecutor(2 * MANY) as threads:
        if request.param == "sync":
            yield Colour(None, threads)
        else:
            with EventLoop() as loop:
                tasks_before = loop.run(other_tasks)
                yield Colour(loop, threads)
                assert loop.run(other_tasks) <= tasks_before
    left = set(threading.enumerate()) - threads_before
    assert all(thread.name.startswith("apikey_auth.store") for thread in left)  # these go with their bridge


Make = Callable[..., Hanging]


@pytest.fixture
def make(request: pytest.FixtureRequest, colour: Colour, monkeypatch: pytest.MonkeyPatch) -> Make:
    followers = counted_waits(monkeypatch)
    name = request.node.callspec.params["colour"]

    def hanging(**options: Any) -> Hanging:
        memory = MemoryKeyStore()
        late = UnreliableStore(Inline(memory) if name == "async" else memory)
        store = UnreliableStore(late)
        options = {"clock": FakeClock(NOW), "max_staleness": BOUND, "touch_interval": 0, **options}
        auth: Any
        if name == "sync":
            auth = Authenticator(store, SCHEME, **options)
        else:
            auth = AsyncAuthenticator(store if name == "async" else InThread(store), SCHEME, **options)
        auth._cache._monotonic = auth._users._monotonic = Ticks()
        return Hanging(App(colour, memory, auth, store), late, followers)

    return hanging


def warm(hanging: Hanging, number: int = 1) -> list[str]:
    """Make keys that are in the cache, and let the store hang from now on."""
    texts = [hanging.app.issue().text for _ in range(number)]
    assert [hanging.app.outcome(text) for text in texts] == ["in"] * number
    hanging.app.calls()
    hanging.hang()
    return texts


# Within the bound


def test_cached_keys_are_answered_without_a_call_until_a_poll_is_due(make: Make) -> None:
    hanging = make()
    texts = warm(hanging, 3)
    for _ in range(4):
        assert {hanging.app.outcome(text) for text in texts} == {"in"}
        hanging.app.ticks.now += BOUND / 8
    assert hanging.app.calls() == {}


def test_while_one_polls_the_others_are_answered_until_the_bound(make: Make) -> None:
    hanging = make()
    texts = warm(hanging, 3)
    hanging.app.ticks.now += BOUND / 2
    polling = hanging.start(texts[0])
    for _ in range(4):
        assert {hanging.app.outcome(text) for text in texts} == {"in"}
        hanging.app.ticks.now += BOUND / 16
    assert hanging.app.calls() == {"changes": 1}
    hanging.pass_deadline()
    assert polling.outcomes == {"in": 1}


def test_a_poll_that_failed_is_not_tried_again_at_once(make: Make) -> None:
    hanging = make()
    (text,) = warm(hanging)
    hanging.app.ticks.now += BOUND / 2
    polling = hanging.start(text)
    hanging.pass_deadline()
    assert polling.outcomes == {"in": 1}
    hanging.app.calls()
    hanging.app.ticks.now += 7 / 16 * BOUND
    assert hanging.app.outcome(text) == "in"
    assert hanging.app.calls() == {}


def test_a_text_that_can_be_no_key_is_refused_while_the_store_hangs(make: Make) -> None:
    hanging = make()
    hanging.hang()
    for text in ("junk", SCHEME.mint().text[:-1], "x" * 10_000):
        assert hanging.app.outcome(text) == "invalid_key"
    assert hanging.app.calls() == {}


# Past the bound


@dataclass(frozen=True)
class Case:
    """Who comes while the store hangs: what it is asked then, once, and how they all end."""

    first_ever: bool = False
    cold: bool = False
    stale_if_error: float = 0.0
    calls: str = "changes"
    outcome: str = "store_unavailable"


CASES = {
    "a key that is cached": Case(),
    "a key that is cached and may be stale": Case(stale_if_error=30.0, outcome="stale"),
    "a key that is not cached": Case(cold=True, calls="get"),
    "a key that is not cached, though others may be stale": Case(cold=True, stale_if_error=30.0, calls="get"),
    "the first key ever": Case(cold=True, first_ever=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_all_who_wait_share_one_call_and_end_with_its_deadline(make: Make, case: Case) -> None:
    hanging = make(stale_if_error=case.stale_if_error)
    cold = hanging.app.issue().text
    text = cold if case.first_ever else warm(hanging)[0]
    hanging.hang()
    hanging.app.ticks.now += BOUND
    started = hanging.start(*[cold if case.cold else text] * MANY)
    hanging.pass_deadline()
    assert started.outcomes == {case.outcome: MANY}  # and nobody began to wait anew
    assert hanging.app.calls() == {case.calls: 1}
    assert hanging.waiting == 0


@pytest.mark.parametrize("first_ever", [False, True])
def test_those_with_different_keys_share_one_poll(make: Make, first_ever: bool) -> None:
    hanging = make()
    texts = [hanging.app.issue().text for _ in range(MANY)] if first_ever else warm(hanging, MANY)
    hanging.hang()
    hanging.app.ticks.now += BOUND
    started = hanging.start(*texts)
    hanging.pass_deadline()
    assert started.outcomes == {"store_unavailable": MANY}
    assert hanging.app.calls() == {"changes": 1}
    assert hanging.waiting == 0


@pytest.mark.parametrize("colour", ["sync", "async"], indirect=True)
def test_those_with_different_keys_that_are_not_cached_wait_side_by_side(make: Make) -> None:
    hanging = make()
    warm(hanging)
    started = hanging.start(*[hanging.app.issue().text for _ in range(MANY)])
    until(lambda: hanging.waiting == MANY)
    hanging.pass_deadline()
    assert started.outcomes == {"store_unavailable": MANY}
    assert hanging.app.calls() == {"get": MANY}


def test_whoever_may_be_stale_does_not_wait_again_for_half_of_the_bound(make: Make) -> None:
    hanging = make(stale_if_error=30.0)
    texts = warm(hanging, 3)
    hanging.app.ticks.now += BOUND
    first = hanging.start(texts[0])
    hanging.pass_deadline()
    assert first.outcomes == {"stale": 1}
    hanging.app.calls()
    for _ in range(4):
        assert {hanging.app.outcome(text) for text in texts} == {"stale"}
        hanging.app.ticks.now += BOUND / 8
    assert hanging.app.calls() == {}


def test_a_key_that_may_be_stale_expires_all_the_same(make: Make) -> None:
    hanging = make(stale_if_error=30.0)
    short = hanging.app.issue(expires_in=MINUTE).text
    assert hanging.app.outcome(short) == "in"
    (text,) = warm(hanging)
    hanging.app.ticks.now += BOUND
    hanging.app.clock.advance(MINUTE)
    started = hanging.start(short, text)
    hanging.pass_deadline()
    assert started.outcomes == {"expired_key": 1, "stale": 1}


# Afterwards


def test_when_the_store_answers_again_those_who_wait_are_let_in(make: Make) -> None:
    hanging = make()
    (text,) = warm(hanging)
    hanging.app.ticks.now += BOUND
    started = hanging.start(*[text] * MANY)
    hanging.heal()
    assert started.outcomes == {"in": MANY}
    assert hanging.app.calls() == {"changes": 1}


def test_after_the_deadline_the_next_request_finds_a_store_that_answers_again(make: Make) -> None:
    hanging = make()
    good, revoked = hanging.app.issue(), hanging.app.issue()
    assert {hanging.app.outcome(each.text) for each in (good, revoked)} == {"in"}
    hanging.hang()
    hanging.app.ticks.now += BOUND
    started = hanging.start(good.text, revoked.text)
    hanging.pass_deadline()
    assert started.outcomes == {"store_unavailable": 2}
    hanging.app.elsewhere.revoke(revoked.key.id)
    hanging.heal()
    assert hanging.app.outcome(revoked.text) == "revoked_key"
    assert hanging.app.outcome(good.text) == "in"


@pytest.mark.parametrize("colour", ["async", "in a thread"], indirect=True)
@pytest.mark.parametrize("cold", [False, True])
def test_callers_that_give_up_leave_one_call_which_ends_with_its_deadline(make: Make, cold: bool) -> None:
    hanging = make()
    (text,) = warm(hanging)
    text = hanging.app.issue().text if cold else text
    loop = hanging.app._colour.loop
    assert loop is not None
    before = loop.run(other_tasks)
    hanging.app.ticks.now += BOUND
    assert loop.run(partial(give_up, hanging, text)) == MANY
    assert hanging.waiting == 1
    hanging.pass_deadline()
    until(lambda: loop.run(other_tasks) == before)
    assert hanging.app.calls() == {"get" if cold else "changes": 1}


async def give_up(hanging: Hanging, text: str) -> int:
    """Begin to authenticate many times, cancel that while the store hangs, and tell how many were cancelled."""
    callers = [asyncio.ensure_future(hanging.app.auth.authenticate(text)) for _ in range(MANY)]
    while not hanging.waiting:  # noqa: ASYNC110  # a thread may be about to call
        await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    return sum(caller.cancelled() for caller in callers)


def test_while_one_asks_again_the_others_are_stale_at_once(make: Make) -> None:
    hanging = make(stale_if_error=30.0)
    texts = warm(hanging, 3)
    hanging.app.ticks.now += BOUND
    first = hanging.start(texts[0])
    hanging.pass_deadline()
    assert first.outcomes == {"stale": 1}
    hanging.app.calls()
    hanging.app.ticks.now += BOUND / 2
    asking = hanging.start(texts[0])
    assert {hanging.app.outcome(text) for text in texts} == {"stale"}
    assert not any(answer.done() for answer in asking.answers)  # nobody waited for it
    assert hanging.app.calls() == {"changes": 1}
    hanging.pass_deadline()
    assert asking.outcomes == {"stale": 1}
