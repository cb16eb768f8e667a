"""Whatever call of the store fails, is late or loses its answer: what is said is true, and what is kept is whole.

Each operation runs once without a fault, which tells its calls of the store and what the store holds after
each. Then it runs anew for each of these calls and each kind of fault, over the same keys.
"""

import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from applications import APPLICATIONS, User, World, django_settings
from calling import Answer, Request, acall_asgi, call_wsgi
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from management.sites import ADA, BOB, CARL, CHIEF, MOUNTS, RUNNER, Person, Site

from apikey_auth import (
    APIKey,
    AsyncAuthenticator,
    Authenticator,
    DuplicateKey,
    Inline,
    KeyManager,
    KeyNotLive,
    KeyScheme,
    MemoryKeyStore,
    Refusal,
    StoreUnavailable,
)
from apikey_auth.breaker import FAILURES, PAUSE, Breaker
from apikey_auth.decisions import state
from apikey_auth.django import conf
from apikey_auth.formats import DRFAPIKeys
from apikey_auth.management import REST, OwnKeys, Sensenet
from apikey_auth.testing import FakeClock, UnreliableStore

T = TypeVar("T")

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
BOUND = 1.0  # max_staleness, in seconds
STALE = 30.0  # stale_if_error, where it is given
LATE = 5.0  # seconds after which a late answer comes
SOURCE = DRFAPIKeys()
SCHEME = KeyScheme("acme", formats=[SOURCE])
ROWS = [f"{name * 8}.{name * 32}" for name in "abc"]  # keys of another system

Records = Mapping[str, APIKey]


async def settled(answer: Awaitable[T] | T) -> T:
    return await answer if inspect.isawaitable(answer) else answer


class Ticks:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1024.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Fault:
    """What one call of the store meets: the time that it takes, and an error before it is done or after."""

    error: Exception | None = None
    is_done: bool = False
    seconds: float = 0.0

    def befall(self, store: UnreliableStore, method: str) -> None:
        if self.error is not None:
            (store.lose_answers if self.is_done else store.fail)(method, error=self.error)


FAULTS = {
    "fails": Fault(StoreUnavailable("down")),
    "breaks": Fault(ConnectionResetError("peer")),
    "answers late": Fault(seconds=LATE),
    "gives up late": Fault(StoreUnavailable("timed out"), seconds=LATE),
    "loses its answer": Fault(StoreUnavailable("cut"), is_done=True),
    "breaks when it is done": Fault(ConnectionResetError("peer"), is_done=True),
}
METHODS = ("get", "add", "swap", "revoke_all", "find", "count", "purge", "touch", "changes")


class Faulty:
    """A store in memory whose n-th call from now on meets a fault, and no other one.

    ``states`` is what it holds now and after each call, ``asked`` the methods that were called.
    """

    def __init__(self) -> None:
        self.memory = MemoryKeyStore()
        self.ticks = Ticks()
        self._unreliable = UnreliableStore(self.memory)
        for name in METHODS:
            setattr(self, name, self._play(name))
        self.arm()

    get: Any

    def arm(self, number: int = 0, fault: Fault | None = None) -> None:
        """Begin to count anew. Without a number no call meets anything."""
        self._number, self._fault = number, fault
        self.asked: list[str] = []
        self.states: list[Records] = [self.records]

    @property
    def records(self) -> Records:
        return dict(self.memory._keys)

    def _play(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append(name)
            fault = self._fault if len(self.asked) == self._number else None
            if fault is not None:
                self.ticks.now += fault.seconds
                fault.befall(self._unreliable, name)
            try:
                return getattr(self._unreliable, name)(*args, **kwargs)
            except DuplicateKey:  # an answer, too, which can be lost
                if fault is not None and fault.error is not None:
                    raise fault.error from None
                raise
            finally:
                self._unreliable.heal()
                self.states.append(self.records)

        return call


@pytest.fixture(autouse=True)
def chance(monkeypatch: pytest.MonkeyPatch) -> Random:
    """Let keys be drawn again, so that an operation makes the same ones each time."""
    chance = Random(1)
    monkeypatch.setattr("apikey_auth.keys.secrets", SimpleNamespace(choice=chance.choice))
    return chance


def check_whole(records: Records) -> None:
    """See that a key which was replaced and the one which replaced it know each other."""
    for key in records.values():
        if key.rotated_to is not None:
            assert records[key.rotated_to].rotated_from == key.id
        if key.rotated_from is not None:
            assert records[key.rotated_from].rotated_to == key.id


def row(text: str, owner: str, revoked: bool) -> dict[str, Any]:
    prefix = text.partition(".")[0]
    hashed = f"sha512$${hashlib.sha512(text.encode()).hexdigest()}"
    created = "2026-01-31 12:00:00"
    return {
        "prefix": prefix,
        "hashed_key": hashed,
        "name": prefix,
        "created": created,
        "revoked": revoked,
        "expiry_date": None,
        "owner": owner,
    }


def imported(keys: Any, *revoked: bool) -> Any:
    rows = [row(text, "eve", dead) for text, dead in zip(ROWS, revoked, strict=False)]
    return keys.import_keys(rows, SOURCE, owner="owner")


# What a manager does


class Office:
    """An authenticator of either colour that knows some keys, and its manager. The texts are by name."""

    def __init__(self, is_async: bool, **options: Any) -> None:
        self.store = Faulty()
        self.clock = FakeClock(NOW)
        self.texts: dict[str, str] = {}
        self.ids: dict[str, str] = {}
        options = {"clock": self.clock, "max_staleness": BOUND, "touch_interval": 0, **options}
        self.auth: Any
        if is_async:
            self.auth = AsyncAuthenticator(Inline(self.store), SCHEME, **options)
        else:
            self.auth = Authenticator(self.store, SCHEME, **options)
        tame(self.auth, self.store.ticks)
        self.elsewhere = KeyManager(self.store.memory, SCHEME, clock=self.clock)

    def issue(self, name: str, owner: str = "ada", **fields: Any) -> str:
        issued = self.elsewhere.issue(owner, name=name, **fields)
        self.texts[name], self.ids[name] = issued.text, issued.key.id
        return issued.text

    async def outcome(self, text: str) -> str:
        """Authenticate, and say "in", "stale", or the code of the refusal."""
        try:
            return "stale" if (await settled(self.auth.authenticate(text))).stale else "in"
        except Refusal as refusal:
            return refusal.code

    def truth(self, text: str) -> str:
        """Tell the outcome that follows from what the store holds now."""
        parsed = SCHEME.parse(text)
        key = self.store.memory.get(parsed.id)
        if key is None or not SCHEME.matches(key.digest, parsed.text):
            return "invalid_key"
        refusal = state(key, self.clock())
        return "in" if refusal is None else refusal.code


def tame(auth: Any, ticks: Ticks) -> None:
    """Give an authenticator a clock that stands."""
    auth._cache._monotonic = auth._users._monotonic = ticks
    auth._breaker = Breaker(ticks)


async def office(is_async: bool, chance: Random) -> Office:
    """Make an office with a family of keys, all of them warm: a maker, what it made, and what that made."""
    chance.seed(1)
    office = Office(is_async)
    office.issue("maker")
    office.issue("child", "bob", created_by=office.ids["maker"])
    office.issue("grandchild", created_by=office.ids["child"])
    office.issue("stranger", "carl")
    office.issue("dead", "dora")
    office.elsewhere.revoke(office.ids["dead"])
    office.elsewhere.ensure("ada", name="configured", text=CONFIGURED)
    imported(office.elsewhere, False)
    office.texts |= {"configured": CONFIGURED, **{text: text for text in ROWS}}
    office.clock.advance(DAY)
    for text in office.texts.values():
        assert await office.outcome(text) == office.truth(text)
    office.store.arm()
    return office


CONFIGURED = SCHEME.mint("configured00").text
Operation = Callable[[Any, Mapping[str, str]], Any]

OPERATIONS: dict[str, Operation] = {
    "issue": lambda keys, ids: keys.issue("ada", name="new"),
    "ensure": lambda keys, ids: keys.ensure("ada", name="boot"),
    "ensure what is there": lambda keys, ids: keys.ensure("ada", name="configured", text=CONFIGURED),
    "edit": lambda keys, ids: keys.edit(ids["maker"], name="main", scopes=["reports:read"]),
    "disable": lambda keys, ids: keys.edit(ids["maker"], disabled=True),
    "revoke": lambda keys, ids: keys.revoke(ids["maker"], reason="lost"),
    "revoke what is dead": lambda keys, ids: keys.revoke(ids["dead"], reason="lost"),
    "revoke with descendants": lambda keys, ids: keys.revoke(ids["maker"], descendants=True),
    "rotate": lambda keys, ids: keys.rotate(ids["maker"], grace=DAY),
    "rotate at once": lambda keys, ids: keys.rotate(ids["maker"]),
    "revoke all of an owner": lambda keys, ids: keys.revoke_all("ada"),
    "revoke all": lambda keys, ids: keys.revoke_all(),
    "get": lambda keys, ids: keys.get(ids["maker"]),
    "list": lambda keys, ids: keys.list("ada"),
    "find": lambda keys, ids: keys.find(limit=2),
    "purge": lambda keys, ids: keys.purge(NOW + DAY),
    "import": lambda keys, ids: imported(keys, True, False, True),
}
CALLS = {
    "issue": "add",
    "ensure": "add",
    "ensure what is there": "add get",
    "edit": "get swap",
    "disable": "get swap",
    "revoke": "get swap",
    "revoke what is dead": "get",
    "revoke with descendants": "get swap find get swap get swap find",
    "rotate": "get swap",
    "rotate at once": "get swap",
    "revoke all of an owner": "revoke_all",
    "revoke all": "revoke_all",
    "get": "get",
    "list": "find",
    "find": "find",
    "purge": "purge",
    "import": "add get get swap add add",
}


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_an_operation_that_meets_a_fault_is_done_to_the_call_that_met_it_and_says_so(
    is_async: bool, chance: Random, name: str, fault: Fault
) -> None:
    operation = OPERATIONS[name]
    model = await office(is_async, chance)
    answer = await settled(operation(model.auth.keys, model.ids))
    assert model.store.asked == CALLS[name].split()
    for number in range(1, len(model.store.asked) + 1):
        faulty = await office(is_async, chance)
        faulty.store.arm(number, fault)
        if fault.error is None:
            assert await settled(operation(faulty.auth.keys, faulty.ids)) == answer
            expected = model.store.records
        else:
            with pytest.raises(type(fault.error)) as caught:
                await settled(operation(faulty.auth.keys, faulty.ids))
            assert caught.value is fault.error
            expected = model.store.states[number if fault.is_done else number - 1]
        assert faulty.store.records == expected
        check_whole(faulty.store.records)
        faulty.store.arm()
        for text in faulty.texts.values():
            assert await faulty.outcome(text) == faulty.truth(text)


ONCE = {"issue", "ensure", "rotate", "rotate at once"}


def described(records: Records) -> list[tuple[Any, ...]]:
    """Describe records by what an operation that is done again shall come to."""
    keys = sorted(records.values(), key=lambda key: (key.owner, key.name, key.created_at, key.last4))
    return [(each.owner, each.name, each.scopes, each.disabled, each.revoked_at is None) for each in keys]


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"issue"}))
async def test_an_operation_that_met_a_fault_may_be_done_again(
    is_async: bool, chance: Random, name: str
) -> None:
    operation = OPERATIONS[name]
    model = await office(is_async, chance)
    await settled(operation(model.auth.keys, model.ids))
    for fault in FAULTS.values():
        for number in range(1, len(model.store.asked) + 1):
            faulty = await office(is_async, chance)
            faulty.store.arm(number, fault)
            was_done = fault.error is None
            try:
                await settled(operation(faulty.auth.keys, faulty.ids))
            except (StoreUnavailable, ConnectionResetError):
                was_done = fault.is_done and number == len(model.store.asked)
            faulty.store.arm()
            try:
                await settled(operation(faulty.auth.keys, faulty.ids))
            except KeyNotLive:  # it was rotated, and who asked was not told
                assert name.startswith("rotate")
                assert was_done
            assert described(faulty.store.records) == described(model.store.records)
            check_whole(faulty.store.records)
            for text in faulty.texts.values():
                assert await faulty.outcome(text) == faulty.truth(text)


async def test_a_key_whose_issue_was_not_confirmed_is_known_to_nobody_and_may_be_revoked(
    is_async: bool, chance: Random
) -> None:
    faulty = await office(is_async, chance)
    faulty.store.arm(1, FAULTS["loses its answer"])
    with pytest.raises(StoreUnavailable):
        await settled(faulty.auth.keys.issue("ada", name="new"))
    (orphan,) = [key for key in await settled(faulty.auth.keys.list("ada")) if key.name == "new"]
    await settled(faulty.auth.keys.revoke(orphan.id))
    assert faulty.store.records[orphan.id].revoked_at is not None
