"""Whatever call of the store fails, is late or loses its answer: what is said is true, and what is kept is whole.

Each operation runs once without a fault, which tells its calls of the store and what the store holds after
each. Then it runs anew for each of these calls and each kind of fault, over the same keys.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import product
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


async def settled(answer: Any) -> Any:
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
    "chokes": Fault(ValueError("half an answer")),
    "chokes when it is done": Fault(ValueError("half an answer"), is_done=True),
}
TOLD = ("fails", "gives up late", "loses its answer", "answers late")  # as the protocol has it
# By another exception than a store should raise.
NOT_TOLD = ("breaks", "breaks when it is done", "chokes", "chokes when it is done")
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
    changes: Any

    def arm(self, number: int = 0, fault: Fault | None = None) -> None:
        """Begin to count anew. Without a number no call meets anything."""
        self._number, self._fault = number, fault
        self.asked: list[str] = []
        self.states: list[Records] = [self.records]

    @property
    def records(self) -> Records:
        return dict(self.memory._keys)

    def empty(self) -> None:
        """Forget all keys."""
        self.memory._keys.clear()
        self.memory._revisions.clear()
        self.arm()

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
async def test_an_operation_that_meets_a_fault_is_done_to_the_call_that_met_it_and_says_so(
    is_async: bool, chance: Random, name: str
) -> None:
    operation = OPERATIONS[name]
    model = await office(is_async, chance)
    answer = await settled(operation(model.auth.keys, model.ids))
    assert model.store.asked == CALLS[name].split()
    for number, fault in product(range(1, len(model.store.asked) + 1), FAULTS.values()):
        faulty = await office(is_async, chance)
        faulty.store.arm(number, fault)
        if fault.error is None:
            assert await settled(operation(faulty.auth.keys, faulty.ids)) == answer
            expected = model.store.records
        else:
            with pytest.raises(StoreUnavailable) as caught:
                await settled(operation(faulty.auth.keys, faulty.ids))
            assert fault.error in (caught.value, caught.value.__cause__)
            expected = model.store.states[number if fault.is_done else number - 1]
        assert faulty.store.records == expected
        check_whole(faulty.store.records)
        faulty.store.arm()
        for text in faulty.texts.values():
            assert await faulty.outcome(text) == faulty.truth(text)


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
    for number, fault in product(range(1, len(model.store.asked) + 1), FAULTS.values()):
        faulty = await office(is_async, chance)
        faulty.store.arm(number, fault)
        was_done = fault.error is None
        try:
            await settled(operation(faulty.auth.keys, faulty.ids))
        except StoreUnavailable:
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


# Who is let in


@dataclass(frozen=True)
class Phase:
    """How an authenticator came to the moment at which a key is used, and what it asks the store then."""

    calls: tuple[str, ...]
    warm: bool = True  # the key was used before
    asked: bool = True  # some key was
    seconds: float = 0.0  # since then
    options: Mapping[str, Any] = field(default_factory=dict)

    def goes_on(self, seconds: float) -> bool:
        """Say whether a key that was good is so much later, if the store cannot be asked what has changed."""
        return self.warm and self.seconds + seconds < BOUND + self.options.get("stale_if_error", 0.0)


PHASES = {
    "the first key of all": Phase(("changes", "get"), warm=False, asked=False),
    "a cold key": Phase(("get",), warm=False),
    "a warm key": Phase(()),
    "a warm key when a poll is due": Phase(("changes",), seconds=BOUND / 2),
    "a key past the bound": Phase(("changes",), seconds=BOUND),
    "a cold key past the bound": Phase(("get",), warm=False, seconds=BOUND),
    "a key that may be stale": Phase(("changes",), seconds=BOUND, options={"stale_if_error": STALE}),
    "a key that may be stale no more": Phase(
        ("changes",), seconds=BOUND + STALE, options={"stale_if_error": STALE}
    ),
    "a key that is never remembered": Phase(("get",), options={"cache_size": 0}),
}
WAS_GOOD = ("good", "revoked", "disabled")
KEYS = (*WAS_GOOD, "expired", "unknown")


async def visited(is_async: bool, phase: Phase) -> Office:
    """Make an authenticator that is in a phase. What is revoked there was good when it was used before."""
    office = Office(is_async, **phase.options)
    for name in ("good", "revoked", "disabled"):
        office.issue(name)
    office.issue("expired", expires_in=DAY)
    office.issue("another")
    office.texts["unknown"] = SCHEME.mint().text
    if phase.asked:
        for text in office.texts.values() if phase.warm else [office.texts["another"]]:
            await office.outcome(text)
    if not phase.warm or phase.seconds >= BOUND:  # before the bound, nobody need know
        office.elsewhere.revoke(office.ids["revoked"])
        office.elsewhere.edit(office.ids["disabled"], disabled=True)
    office.clock.advance(DAY)
    office.store.ticks.now += phase.seconds
    office.store.arm()
    return office


async def asked_in(is_async: bool, phase: Phase, key: str) -> int:
    """Count the calls of the store that it takes to answer truly who comes with a key."""
    office = await visited(is_async, phase)
    assert await office.outcome(office.texts[key]) == office.truth(office.texts[key])
    assert key != "good" or office.store.asked == [*phase.calls]
    return len(office.store.asked)


@pytest.mark.parametrize("name", PHASES)
async def test_whoever_comes_while_a_call_meets_a_fault_is_told_the_truth_or_to_come_again(
    is_async: bool, name: str
) -> None:
    phase = PHASES[name]
    for key in KEYS:
        calls = range(1, await asked_in(is_async, phase, key) + 1)
        for number, fault in product(calls, FAULTS.values()):
            office = await visited(is_async, phase)
            text = office.texts[key]
            office.store.arm(number, fault)
            outcome, truth = await office.outcome(text), office.truth(text)
            if fault.error is None:
                assert outcome == truth
            elif key in WAS_GOOD and office.store.asked == ["changes"] and phase.goes_on(fault.seconds):
                assert outcome == ("in" if phase.seconds + fault.seconds < BOUND else "stale")
            else:
                assert outcome in (truth, "store_unavailable")
            office.store.arm()
            office.store.ticks.now += BOUND
            assert await office.outcome(text) == truth


async def test_a_key_that_ends_while_its_read_is_late_does_not_enter(is_async: bool) -> None:
    office = Office(is_async)
    office.issue("short", expires_in=timedelta(seconds=1))
    get = office.store.get

    def late(key_id: str) -> APIKey | None:
        office.clock.advance(LATE)
        found: APIKey | None = get(key_id)
        return found

    office.store.get = late
    assert await office.outcome(office.texts["short"]) == "expired_key"


async def test_a_key_that_is_revoked_while_a_late_answer_is_on_its_way_does_not_enter(is_async: bool) -> None:
    office = Office(is_async)
    text = office.issue("good")
    assert await office.outcome(text) == "in"
    office.store.ticks.now += BOUND
    changes = office.store.changes

    def late(since: Any) -> Any:
        answer = changes(since)
        office.elsewhere.revoke(office.ids["good"])
        office.store.ticks.now += LATE
        return answer

    office.store.changes = late
    assert await office.outcome(text) == "revoked_key"


async def test_behind_an_open_breaker_everybody_is_told_to_come_again_until_one_call_is_answered(
    is_async: bool,
) -> None:
    office = await visited(is_async, PHASES["a key that is never remembered"])
    texts = [office.texts[key] for key in KEYS]
    for _ in range(FAILURES):
        office.store.arm(1, FAULTS["breaks"])
        assert await office.outcome(texts[0]) == "store_unavailable"
    office.store.arm()
    assert {await office.outcome(text) for text in texts} == {"store_unavailable"}
    assert await office.outcome("acme_junk") == "invalid_key"
    assert office.store.asked == []
    office.store.ticks.now += PAUSE
    assert [await office.outcome(text) for text in texts] == [office.truth(text) for text in texts]


# What is written later

OLD, NEW = "the old pepper, 2025", "the new pepper, 2026"
FLUSHED = ["touch", "swap", "swap"]


async def used(is_async: bool, chance: Random) -> tuple[Office, list[str]]:
    """Make an authenticator that has noted the use of two keys, whose digests are to be renewed."""
    chance.seed(1)
    office = Office(is_async, touch_interval=60.0)
    office.auth.scheme = KeyScheme("acme", peppers=[OLD, NEW])
    elsewhere = KeyManager(office.store.memory, KeyScheme("acme", peppers=[OLD]), clock=office.clock)
    issued = [elsewhere.issue("ada") for _ in range(2)]
    for each in issued:
        assert await office.outcome(each.text) == "in"
    office.store.arm()
    return office, [each.text for each in issued]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_flush_that_meets_a_fault_raises_nothing_and_loses_no_use_and_no_digest(
    is_async: bool, chance: Random, fault: Fault
) -> None:
    model, texts = await used(is_async, chance)
    before = model.store.records
    await settled(model.auth.flush())
    assert model.store.asked == FLUSHED
    done = model.store.records
    assert all(key.last_used_at == NOW and key.digest != before[key.id].digest for key in done.values())
    for number in range(1, len(FLUSHED) + 1):
        office, texts = await used(is_async, chance)
        office.store.arm(number, fault)
        await settled(office.auth.flush())
        for key_id, key in office.store.records.items():
            assert replace(key, last_used_at=None) in (
                replace(before[key_id], last_used_at=None),
                replace(done[key_id], last_used_at=None),
            )
            assert key.last_used_at in (None, NOW)
        office.store.arm()
        await settled(office.auth.flush())
        assert all(key.last_used_at == NOW for key in office.store.records.values())
        office.auth._cache.evict_all()  # as where a key is read anew one day
        assert [await office.outcome(text) for text in texts] == ["in", "in"]
        await settled(office.auth.flush())
        assert office.store.records == done
        assert office.auth.lost_uses == 0


# What HTTP says


@pytest.fixture(scope="session")
def django_people() -> None:
    """Give Django's database the users that the other applications have in a dict."""
    from django.contrib.auth.models import User as DjangoUser
    from django.db import connection

    call_command("migrate", verbosity=0)
    for owner in (ADA, BOB, CHIEF, CARL):
        DjangoUser.objects.get_or_create(
            pk=int(owner), username=f"person-{owner}", is_active=owner != CARL, is_superuser=owner == CHIEF
        )
    connection.close()


@pytest.fixture(scope="session")
def runner() -> Iterator[None]:
    with RUNNER:
        yield


pytestmark = pytest.mark.usefixtures("django_people", "runner")
REDUCED = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"


class Town(World):
    """A world whose store is faulty and whose authenticators have clocks that stand."""

    store: Faulty
    options: Mapping[str, Any] = {}
    auths: list[Any]

    def authenticator(self) -> Authenticator[Any]:
        auth = Authenticator(
            self.store, self.scheme, load_user=self.users.get, clock=self.clock, **self.options
        )
        return self.tamed(auth)

    def async_authenticator(self) -> AsyncAuthenticator[Any]:
        async def load_user(owner: str) -> Any:
            return self.users.get(owner)

        auth = AsyncAuthenticator(
            Inline(self.store), self.scheme, load_user=load_user, clock=self.clock, **self.options
        )
        return self.tamed(auth)

    def tamed(self, auth: T) -> T:
        self.auths.append(auth)
        tame(auth, self.store.ticks)
        return auth

    def begin_anew(self) -> None:
        """Let the authenticators know nothing, as when they were made, of a store with no keys."""
        self.store.empty()
        for auth in self.auths:
            auth._cache._start_anew()
            tame(auth, self.store.ticks)
        self.now = NOW


def a_town(users: Any, **options: Any) -> Town:
    town = Town(store=Faulty(), scheme=SCHEME, now=NOW, users=users)
    town.options, town.auths = {"max_staleness": BOUND, "touch_interval": 0, **options}, []
    return town


def tame_django(town: Town) -> None:
    """Give the authenticators of Django's setting the clocks of a town."""
    setup = conf.setup()
    for auth in (setup.async_authenticator, *(() if setup.is_async else (setup.authenticator,))):
        auth._clock = town.clock
        town.tamed(auth)


Send = Callable[[Request], Answer]


@contextmanager
def sending(name: str, town: Town, **options: Any) -> Iterator[Send]:
    """Serve the application of a framework. Django's stays as it is from one request to the next."""
    if not name.startswith("django"):
        yield APPLICATIONS[name](town, **options)
        return
    with django_settings(town, options | dict(town.options)):
        tame_django(town)
        if name == "django":
            handler = WSGIHandler()
            yield lambda request: call_wsgi(handler, request)
        else:
            async_handler = ASGIHandler()
            yield lambda request: RUNNER.run(acall_asgi(async_handler, request))


def check_unavailable(answer: Answer) -> None:
    """See that an answer tells its client to come again, and nothing of the key."""
    assert answer.status == 503
    assert answer.header("retry-after") in ("1", "2")
    assert answer.header("cache-control") == "no-store"
    assert answer.header("www-authenticate") is None
    assert answer.header("content-type") == "application/problem+json"
    problem = json.loads(answer.body)
    assert (problem["type"], problem["code"]) == (REDUCED, "store_unavailable")


OPTIONS: Mapping[str, Any] = {"/me": {}, "/public": {"on_invalid": "anonymous"}}
MOMENTS = (
    "the first key of all",
    "a warm key when a poll is due",
    "a key past the bound",
    "a key that may be stale",
    "a key that is never remembered",
)


def come_to(town: Town, send: Send, phase: Phase, key: str, path: str) -> Request:
    """Come to a phase, and give the request to make then."""
    town.begin_anew()
    keys = KeyManager(town.store.memory, SCHEME, clock=town.clock)
    issued, another = keys.issue(ADA), keys.issue(ADA)
    request = Request(path, (("apikey", issued.text),))
    if phase.asked:
        used = request if phase.warm else Request(path, (("apikey", another.text),))
        assert said(send(used))[1] is not None
    if key == "revoked":
        keys.revoke(issued.key.id)
    town.store.ticks.now += phase.seconds
    town.store.arm()
    return request


def said(answer: Answer) -> tuple[int, str | None]:
    """Tell the status of an answer, and the name of the user that a page saw."""
    return answer.status, json.loads(answer.body).get("user")


@pytest.mark.parametrize("path", OPTIONS)
@pytest.mark.parametrize("app", APPLICATIONS)
def test_every_application_answers_truly_or_503_whichever_call_meets_a_fault(app: str, path: str) -> None:
    for phase in map(PHASES.__getitem__, MOMENTS):
        town = a_town({ADA: User("ada")}, **phase.options)
        with sending(app, town, **OPTIONS[path]) as send:
            entered = said(send(come_to(town, send, phase, "good", path)))
            assert entered[1] is not None
            assert town.store.asked == [*phase.calls]
            for key in ("good", "revoked") if not phase.warm or phase.seconds >= BOUND else ("good",):
                truth = said(send(come_to(town, send, phase, key, path)))
                assert (truth == entered) == (key == "good")
                for number in range(1, len(town.store.asked) + 1):
                    for fault in faults_for(app, TOLD + NOT_TOLD):
                        request = come_to(town, send, phase, key, path)
                        town.store.arm(number, fault)
                        answer = send(request)
                        if fault.error is None:
                            assert said(answer) == truth
                        elif town.store.asked == ["changes"] and phase.goes_on(fault.seconds):
                            assert said(answer) == entered
                        else:
                            check_unavailable(answer)
                        town.store.arm()
                        town.store.ticks.now += BOUND
                        assert said(send(request)) == truth


# Keys over HTTP


@dataclass(frozen=True)
class Ask:
    """A request to key management; ``ID`` in the target is the maker's key."""

    method: str
    target: str
    body: dict[str, Any] | str = ""
    status: int = 200
    makes: bool = False  # a key, whose maker is looked at once more


RIGHTS = OwnKeys(is_admin=lambda caller: caller.owner == CHIEF)
DIALECTS: Mapping[str, Any] = {"/keys": REST(rights=RIGHTS), "/odata.svc": Sensenet(rights=RIGHTS)}
ODATA = f"/odata.svc/Root/IMS/Public/('{ADA}')"
ASKS = (
    Ask("GET", f"/keys?owner={ADA}"),
    Ask("GET", "/keys/ID"),
    Ask("POST", f"/keys?owner={ADA}", {"name": "new"}, 201, makes=True),
    Ask("PATCH", "/keys/ID", {"name": "main", "disabled": True}),
    Ask("DELETE", "/keys/ID", status=204),
    Ask("DELETE", "/keys/ID?descendants=true", status=204),
    Ask("POST", "/keys/ID/rotate", {"grace": 60}, 201, makes=True),
    Ask("DELETE", f"/keys?owner={ADA}"),
    Ask("DELETE", "/keys"),
    Ask("GET", f"{ODATA}/GetApiKeys"),
    Ask("POST", f"{ODATA}/CreateApiKey", makes=True),
    Ask("POST", "/odata.svc/('Root')/DeleteApiKey", {"apiKey": "ID"}, 204),
    Ask("POST", f"{ODATA}/DeleteApiKeys", status=204),
)


@contextmanager
def managed(name: str, town: Town, dialect: str) -> Iterator[Site]:
    with ExitStack() as stack:
        site: Site = stack.enter_context(MOUNTS[name](town, dialect, DIALECTS[dialect], {}))
        if name.startswith("django"):
            tame_django(town)
        yield site


def manage(town: Town, site: Site, ask: Ask, chance: Random) -> Callable[[], Answer]:
    """Make a family of keys, and give what an administrator asks with a key that is not known here yet."""
    chance.seed(1)
    town.begin_anew()
    keys = KeyManager(town.store.memory, SCHEME, clock=town.clock)
    chief, maker = keys.issue(CHIEF), keys.issue(ADA, name="maker")
    child = keys.issue(BOB, created_by=maker.key.id)
    keys.issue(ADA, created_by=child.key.id)
    town.store.arm()
    target = ask.target.replace("ID", maker.key.id)
    body = ask.body if isinstance(ask.body, str) else json.dumps(ask.body).replace("ID", maker.key.id)
    return lambda: site.ask(ask.method, target, body, key=chief.text)


def without_new(records: Records, before: Records) -> Records:
    return {key_id: key for key_id, key in records.items() if key_id in before}


def faults_for(app: str, kinds: tuple[str, ...]) -> list[Fault]:
    """Give the faults of some kinds; for those who only pass on what plain WSGI and ASGI do, half of them."""
    return [FAULTS[kind] for kind in (kinds if app in ("wsgi", "asgi") else kinds[::2])]


@pytest.mark.parametrize("app", MOUNTS)
@pytest.mark.parametrize(
    "kinds",
    [
        TOLD,
        NOT_TOLD,
    ],
    ids=["told", "not told"],
)
def test_key_management_answers_truly_or_503_and_leaves_nothing_half_done(
    app: str, kinds: tuple[str, ...], chance: Random
) -> None:
    for dialect in DIALECTS:
        town = a_town({owner: Person(owner) for owner in (ADA, BOB, CHIEF)})
        with managed(app, town, dialect) as site:
            for ask in ASKS:
                if ask.target.startswith(dialect):
                    check_ask(town, site, ask, faults_for(app, kinds), chance)


def check_ask(town: Town, site: Site, ask: Ask, faults: list[Fault], chance: Random) -> None:
    """Ask once without a fault, and then with each of them at each call."""
    answer = manage(town, site, ask, chance)()
    assert answer.status == ask.status, ask
    asked, states = town.store.asked, town.store.states
    for number, fault in product(range(1, len(asked) + 1), faults):
        send = manage(town, site, ask, chance)
        town.store.arm(number, fault)
        answer, records = send(), town.store.records
        check_whole(records)
        if fault.error is None:
            assert (answer.status, records) == (ask.status, states[-1]), ask
            continue
        assert answer.status == 503, ask
        assert answer.header("retry-after") in ("1", "2")
        assert b"acme_" not in answer.body
        if ask.makes and number == len(asked):  # its maker could not be looked at once more
            (new,) = (records[key_id] for key_id in records.keys() - states[0].keys())
            assert new.revoked_at is not None
            assert without_new(records, states[0]) == without_new(states[-1], states[0])
        else:
            assert records == states[number if fault.is_done else number - 1], ask
        town.store.arm()
        done_before = ask.target == "/keys" and records == states[-1]  # with the key that asks
        replaced = "rotate" in ask.target and without_new(records, states[0]) != states[0]
        assert send().status == (401 if done_before else 409 if replaced else ask.status), ask
