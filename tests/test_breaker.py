"""A store that does not answer is asked now and then, and not by every request."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Inline,
    InThread,
    InvalidKey,
    KeyScheme,
    MemoryKeyStore,
    StoreUnavailable,
)
from apikey_auth.breaker import FAILURES, PAUSE, Breaker, NotAsked
from apikey_auth.testing import UnreliableStore

SCHEME = KeyScheme(prefix="acme")


class Ticks:
    def __init__(self) -> None:
        self.now = 1024.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def breaker(ticks: Ticks) -> Breaker:
    return Breaker(ticks)


def fail(breaker: Breaker, times: int = 1, error: type[BaseException] = OSError) -> None:
    for _ in range(times):
        with pytest.raises(error), breaker:
            raise error


def is_open(breaker: Breaker) -> bool:
    try:
        with breaker:
            raise InvalidKey
    except NotAsked:
        return True
    except InvalidKey:
        return False


def test_it_opens_after_so_many_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, FAILURES - 1)
    with breaker:
        pass
    fail(breaker, FAILURES)
    with pytest.raises(NotAsked, match="the key store failed a moment ago"), breaker:
        raise AssertionError("it was asked")


def test_what_says_something_about_the_key_is_an_answer(breaker: Breaker) -> None:
    fail(breaker, FAILURES - 1)
    fail(breaker, error=InvalidKey)
    fail(breaker, FAILURES - 1)
    assert not is_open(breaker)


@pytest.mark.parametrize("error", [OSError, TimeoutError, ConnectionError, StoreUnavailable])
def test_a_store_that_cannot_be_reached_has_not_answered(breaker: Breaker, error: type[Exception]) -> None:
    fail(breaker, FAILURES, error)
    assert is_open(breaker)


def test_a_record_that_cannot_be_read_is_no_outage(breaker: Breaker) -> None:
    fail(breaker, FAILURES * 2, ValueError)
    assert not is_open(breaker)


def test_nobody_asks_during_the_pause_and_then_one_does(breaker: Breaker, ticks: Ticks) -> None:
    fail(breaker, FAILURES)
    ticks.now += PAUSE * 0.9375
    assert is_open(breaker)
    ticks.now += PAUSE * 0.0625
    with breaker:
        assert is_open(breaker)  # one asks already
    assert not is_open(breaker)


def test_if_that_one_fails_everybody_waits_again(breaker: Breaker, ticks: Ticks) -> None:
    fail(breaker, FAILURES)
    for _ in range(3):
        ticks.now += PAUSE
        fail(breaker)
        assert is_open(breaker)


def test_if_that_one_gives_up_another_asks(breaker: Breaker, ticks: Ticks) -> None:
    fail(breaker, FAILURES)
    ticks.now += PAUSE
    fail(breaker, error=asyncio.CancelledError)
    with breaker:
        pass


def test_of_many_at_once_one_asks(breaker: Breaker, ticks: Ticks) -> None:
    fail(breaker, FAILURES)
    ticks.now += PAUSE
    asked = []

    def ask(_: int) -> None:
        try:
            with breaker:
                asked.append(1)
                raise OSError
        except (NotAsked, OSError):
            pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(100)))
    assert len(asked) == 1


class Site:
    """An authenticator of either colour whose store fails when it is told to."""

    def __init__(self, is_async: bool, ticks: Ticks) -> None:
        self.memory = MemoryKeyStore()
        self.store = UnreliableStore(self.memory)
        self.auth: Any
        if is_async:
            self.auth = AsyncAuthenticator(InThread(self.store), SCHEME, cache_size=0)
        else:
            self.auth = Authenticator(self.store, SCHEME, cache_size=0)
        self.auth._breaker = Breaker(ticks)
        self.text = Authenticator(self.memory, SCHEME).keys.issue("u1").text

    def use(self) -> str:
        answer = self.auth.authenticate
        try:
            if isinstance(self.auth, AsyncAuthenticator):
                asyncio.run(answer(self.text))
            else:
                answer(self.text)
        except (StoreUnavailable, InvalidKey) as refusal:
            return refusal.code
        return "in"


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def site(request: pytest.FixtureRequest, ticks: Ticks) -> Site:
    return Site(request.param, ticks)


def test_a_dead_store_is_asked_by_few_requests_and_heals_by_itself(
    site: Site, ticks: Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    assert site.use() == "in"
    site.store.fail()
    site.store.calls.clear()
    assert {site.use() for _ in range(100)} == {"store_unavailable"}
    assert site.store.calls["get"] == FAILURES
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == FAILURES
    ticks.now += PAUSE
    assert {site.use() for _ in range(100)} == {"store_unavailable"}
    assert site.store.calls["get"] == FAILURES + 1
    site.store.heal()
    ticks.now += PAUSE
    assert {site.use() for _ in range(3)} == {"in"}


async def test_each_authenticator_has_its_own() -> None:
    store = UnreliableStore(MemoryKeyStore())
    one = AsyncAuthenticator(InThread(store), SCHEME, cache_size=0)
    issued = await one.keys.issue("u1")
    store.fail()
    for _ in range(FAILURES + 1):
        with pytest.raises(StoreUnavailable):
            await one.authenticate(issued.text)
    store.heal()
    with pytest.raises(NotAsked):
        await one.authenticate(issued.text)
    other = AsyncAuthenticator(Inline(MemoryKeyStore()), SCHEME)
    with pytest.raises(InvalidKey):
        await other.authenticate(issued.text)
