"""What the cache promises while the link between a process and its store is cut, slow, and healed."""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa
from databases import new_database
from proxy import Link, linked
from test_cache import Ticks
from test_eviction import MINUTE, NOW, SCHEME, App, Colour

from apikey_auth import AsyncAuthenticator, Authenticator
from apikey_auth.stores.redis import AsyncRedisKeyStore, RedisKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.testing import FakeClock, UnreliableStore
from apikey_auth.testing.drive import PATIENCE, EventLoop

BOUND = 0.25  # max_staleness, in seconds; exact in binary, as all steps of the clock are
STALE = 0.5  # stale_if_error
TIMEOUT = 5.0  # of the store
SHORT = 1.0  # where it is waited for
VERY_SHORT = 0.3  # where it does not matter that a call may fail of itself
USERS = 4  # who authenticate at once, on and on


@dataclass(frozen=True)
class Kind:
    """A store by way of a driver. ``server`` is how the test's fixtures call what it keeps its keys in."""

    server: str
    driver: str
    asynchronous: bool = False


KINDS = {
    "psycopg": Kind("postgresql", "postgresql+psycopg"),
    "asyncpg": Kind("postgresql", "postgresql+asyncpg", asynchronous=True),
    "asyncmy": Kind("mariadb", "mysql+asyncmy", asynchronous=True),
    "redis": Kind("redis", "redis"),
    "redis.asyncio": Kind("redis", "redis", asynchronous=True),
}
DIRECT = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}
CUTS: dict[str, Callable[[Link], None]] = {
    "dropped": Link.drop,
    "half-closed": Link.half_close,
    "a black hole": Link.blackhole,
}
cuts = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)


@dataclass(frozen=True)
class Place:
    """A server's database, or a namespace of it, without any link between."""

    kind: Kind
    url: str
    namespace: str

    def at(self, port: int, timeout: float) -> Any:
        """Make the store that an application has, where its server seems to listen on another port."""
        url = sa.make_url(self.url).set(drivername=self.kind.driver, port=port)
        address = url.render_as_string(hide_password=False)
        if self.kind.server == "redis":
            make = AsyncRedisKeyStore if self.kind.asynchronous else RedisKeyStore
            return make(address, namespace=self.namespace, timeout=timeout)
        make_sql = AsyncSQLKeyStore if self.kind.asynchronous else SQLKeyStore
        return make_sql(address, timeout=timeout)

    def direct(self) -> Any:
        """Make the store of another process, whose link is never cut."""
        if self.kind.server == "redis":
            return RedisKeyStore(self.url, namespace=self.namespace, timeout=PATIENCE)
        url = sa.make_url(self.url).set(drivername=DIRECT[self.kind.server])
        return SQLKeyStore(url, timeout=PATIENCE)


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind = KINDS[request.param]
    server = request.getfixturevalue(f"{kind.server}_url")
    if kind.server == "redis":
        yield Place(kind, server, f"test-{secrets.token_hex(8)}")
        return
    with new_database(server, DIRECT[kind.server]) as url:
        place = Place(kind, url, "")
        with closing(place.direct()) as store:
            store.create_schema()
        yield place


@dataclass(frozen=True)
class Site:
    """An application behind a link; ``app.elsewhere`` manages its keys from the other side of it."""

    app: App
    link: Link

    def later(self, seconds: float) -> None:
        """Let time pass for the cache."""
        self.app.ticks.now += seconds


Make = Callable[..., Site]


@pytest.fixture
def make(place: Place) -> Iterator[Make]:
    with ExitStack() as opened:
        threads = opened.enter_context(ThreadPoolExecutor(USERS))
        loop = opened.enter_context(EventLoop()) if place.kind.asynchronous else None
        colour = Colour(loop, threads)
        link = opened.enter_context(linked(sa.make_url(place.url).port or 0))
        direct = opened.enter_context(closing(place.direct()))

        def site(*, ticks: bool = True, timeout: float = TIMEOUT, **options: Any) -> Site:
            store = place.at(link.port, timeout)
            opened.callback(colour.call, store.close)
            unreliable = UnreliableStore(store)
            options = {"clock": FakeClock(NOW), "max_staleness": BOUND, **options}
            auth: Any = (Authenticator if loop is None else AsyncAuthenticator)(unreliable, SCHEME, **options)
            if ticks:
                auth._cache._monotonic = auth._users._monotonic = Ticks()
            return Site(App(colour, direct, auth, unreliable), link)

        yield site


# The cache's clock stands still


@cuts
def test_entry_ends_with_the_bound_and_comes_back_by_itself(make: Make, cut: Callable[[Link], None]) -> None:
    site = make(timeout=SHORT if cut is Link.blackhole else TIMEOUT)
    good, revoked = site.app.issue(), site.app.issue()
    assert [site.app.outcome(good.text), site.app.outcome(revoked.text)] == ["in", "in"]
    site.app.calls()
    cut(site.link)
    assert site.app.outcome(good.text) == "in"
    assert site.app.calls() == {}
    site.later(BOUND)
    assert site.app.outcome(good.text) == "store_unavailable"
    assert site.app.calls() == {"changes": 1}
    site.app.elsewhere.revoke(revoked.key.id)
    site.link.heal()
    assert site.app.outcome(revoked.text) == "revoked_key"
    assert site.app.outcome(good.text) == "in"


def test_a_key_that_is_not_cached_finds_the_store_unavailable(make: Make) -> None:
    site = make()
    warm, cold = site.app.issue(), site.app.issue()
    assert site.app.outcome(warm.text) == "in"
    site.link.drop()
    assert [site.app.outcome(warm.text), site.app.outcome(cold.text)] == ["in", "store_unavailable"]
    site.link.heal()
    assert site.app.outcome(cold.text) == "in"


def test_good_keys_go_on_for_as_long_as_they_may_be_stale(make: Make) -> None:
    site = make(stale_if_error=STALE)
    good, short, bad = site.app.issue(), site.app.issue(expires_in=MINUTE), site.app.issue()
    site.app.elsewhere.revoke(bad.key.id)
    outcomes = [site.app.outcome(each.text) for each in (good, short, bad)]
    assert outcomes == ["in", "in", "revoked_key"]
    site.link.drop()
    site.later(BOUND)
    assert site.app.enter(good.text).stale is True
    assert site.app.outcome(short.text) == "stale"
    assert site.app.outcome(bad.text) == "store_unavailable"  # refusals are not served stale
    site.app.clock.advance(MINUTE)
    assert [site.app.outcome(short.text), site.app.outcome(good.text)] == ["expired_key", "stale"]
    site.later(7 / 8 * STALE)
    assert site.app.outcome(good.text) == "stale"
    site.later(1 / 8 * STALE)
    assert site.app.outcome(good.text) == "store_unavailable"
    site.link.heal()
    assert site.app.enter(good.text).stale is False
    assert [site.app.outcome(short.text), site.app.outcome(bad.text)] == ["expired_key", "revoked_key"]


def test_a_stale_key_that_was_revoked_meanwhile_is_refused_when_the_link_is_healed(make: Make) -> None:
    site = make(stale_if_error=STALE)
    issued = site.app.issue()
    assert site.app.outcome(issued.text) == "in"
    site.link.drop()
    site.later(BOUND)
    assert site.app.outcome(issued.text) == "stale"
    site.app.elsewhere.revoke(issued.key.id)
    site.link.heal()
    site.later(BOUND / 2)  # a poll that failed is not tried again before
    assert site.app.outcome(issued.text) == "revoked_key"


# Time passes


@dataclass(frozen=True)
class Asked:
    """A key was used, at a monotonic time, and what came of it."""

    started: float
    outcome: str


class Users:
    """Threads that use a key on and on, until they are told to stop."""

    def __init__(self, site: Site, text: str) -> None:
        self.asked: list[Asked] = []
        self._stopped = False
        colour = site.app._colour
        self._threads = [colour.threads.submit(self._use, site.app, text) for _ in range(USERS)]

    def _use(self, app: App, text: str) -> None:
        while not self._stopped:
            started = monotonic()
            self.asked.append(Asked(started, app.outcome(text)))
            time.sleep(0.005)

    def since(self, moment: float) -> set[str]:
        """Tell what came of the uses that started later than a moment."""
        return {each.outcome for each in list(self.asked) if each.started > moment}

    def go_on_until(self, condition: Callable[[], object]) -> None:
        deadline = monotonic() + PATIENCE
        while not condition():
            assert monotonic() < deadline
            assert not any(thread.done() for thread in self._threads)
            time.sleep(0.005)

    def stop(self) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.result()


@pytest.mark.parametrize("cut", [Link.drop, Link.blackhole])
def test_nobody_who_comes_later_than_the_bound_after_a_cut_enters(
    make: Make, cut: Callable[[Link], None]
) -> None:
    site = make(ticks=False, timeout=VERY_SHORT)
    issued, bound = site.app.issue(), site.app.auth.revocation_bound
    users = Users(site, issued.text)
    try:
        users.go_on_until(lambda: "in" in users.since(0))
        cut(site.link)
        cut_at = monotonic()
        users.go_on_until(lambda: users.since(cut_at + bound))
        site.app.elsewhere.revoke(issued.key.id)
        during = users.since(cut_at + bound)
        site.link.heal()
        healed_at = monotonic()
        users.go_on_until(lambda: "revoked_key" in users.since(healed_at))
    finally:
        users.stop()
    assert during == {"store_unavailable"}
    assert "in" not in users.since(cut_at + bound)


def test_over_a_link_that_is_slower_than_the_bound_each_key_is_read(make: Make) -> None:
    site = make(ticks=False, timeout=PATIENCE, max_staleness=0.1)
    good, revoked = site.app.issue(), site.app.issue()
    assert [site.app.outcome(good.text), site.app.outcome(revoked.text)] == ["in", "in"]
    site.link.delay(0.12)
    site.app.elsewhere.revoke(revoked.key.id)
    revoked_at = monotonic()
    time.sleep(max(0, revoked_at + site.app.auth.revocation_bound - monotonic()))
    assert site.app.outcome(revoked.text) == "revoked_key"
    site.app.calls()
    assert site.app.outcome(good.text) == "in"
    assert site.app.calls() == {"changes": 1, "get": 1}
