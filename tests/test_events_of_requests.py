"""What hooks are told of requests: every key that is looked at is one event, in both colours."""

import dataclasses
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from calling import Request, acall_asgi, call_wsgi
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    ConfigurationError,
    Inline,
    KeyScheme,
    MemoryKeyStore,
    Owner,
    Refusal,
    StoreUnavailable,
    asgi,
    wsgi,
)
from apikey_auth.events import Authenticated, Event, Issued, Refused, Unavailable
from apikey_auth.testing import FakeClock, UnreliableStore

PATIENCE = 60  # seconds, for what should take no time
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCHEME = KeyScheme("acme")


class Telling:
    """An authenticator of either colour, and what its hook got."""

    def __init__(self, asynchronous: bool, **options: Any) -> None:
        self.asynchronous = asynchronous
        self.got: list[Event] = []
        self.clock = FakeClock(NOW)
        self.store = UnreliableStore(MemoryKeyStore())
        self.users: dict[str, object] = {}
        options = {"clock": self.clock, "on_event": self.got.append, **options}
        self.auth: Any
        if asynchronous:
            self.auth = AsyncAuthenticator(Inline(self.store), SCHEME, load_user=self._load, **options)
        else:
            self.auth = Authenticator(self.store, SCHEME, load_user=self._user, **options)

    def _user(self, owner: str) -> object:
        user = self.users.get(owner, Owner(owner))
        if isinstance(user, Exception):
            raise user
        return user

    async def _load(self, owner: str) -> object:
        return self._user(owner)

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        answer = getattr(self.auth.keys, method)(*args, **options)
        return await answer if inspect.isawaitable(answer) else answer

    async def authenticate(self, text: str | None, **options: Any) -> Any:
        answer = self.auth.authenticate(text, **options)
        return await answer if inspect.isawaitable(answer) else answer

    async def refused(self, text: str, **options: Any) -> str:
        with pytest.raises(Refusal) as caught:
            await self.authenticate(text, **options)
        return caught.value.code

    def told(self) -> list[Event]:
        """Give what the hook got since it was asked last."""
        assert self.auth.events.flush(PATIENCE)
        got = self.got.copy()
        self.got.clear()
        return got


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def told(request: pytest.FixtureRequest) -> Telling:
    return Telling(request.param)


async def test_a_key_that_is_let_in_is_told_each_time(told: Telling) -> None:
    issued = await told("issue", "u1")
    for _ in range(2):
        await told.authenticate(issued.text)
    let_in = Authenticated(at=NOW, key_id=issued.key.id, owner="u1", stale=False)
    assert told.told() == [Issued(at=NOW, key_id=issued.key.id, owner="u1"), let_in, let_in]


async def test_a_key_that_is_let_in_without_asking_the_store_is_told_as_stale() -> None:
    for asynchronous in (False, True):
        told = Telling(asynchronous, stale_if_error=60, max_staleness=0.001)
        issued = await told("issue", "u1")
        await told.authenticate(issued.text)
        told.store.fail("changes", "get")
        told.told()
        while not (await told.authenticate(issued.text)).stale:
            pass
        got = told.told()
        assert got[-1] == Authenticated(at=NOW, key_id=issued.key.id, owner="u1", stale=True)
        assert Unavailable(at=NOW, what="the key store", error="StoreUnavailable") in got


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("revoked_key", {"revoke": {}}),
        ("disabled_key", {"edit": {"disabled": True}}),
        ("expired_key", {"edit": {"expires_at": NOW - timedelta(days=1)}}),
        ("address_not_allowed", {"edit": {"addresses": ["10.0.0.0/8"]}}),
        ("insufficient_scope", {"edit": {"scopes": []}}),
    ],
)
async def test_a_key_that_is_refused_is_told_with_its_id(
    told: Telling, code: str, change: dict[str, Any]
) -> None:
    issued = await told("issue", "u1")
    for method, options in change.items():
        await told(method, issued.key.id, **options)
    told.told()
    for _ in range(2):
        assert await told.refused(issued.text, scopes=["a"]) == code
    event = Refused(at=NOW, code=code, key_id=issued.key.id, prefix="acme")
    assert told.told() == [event, event]


async def test_a_key_whose_user_is_gone_is_told_with_its_id(told: Telling) -> None:
    told.users["u1"] = None
    issued = await told("issue", "u1")
    told.told()
    assert await told.refused(issued.text) == "inactive_user"
    assert told.told() == [Refused(at=NOW, code="inactive_user", key_id=issued.key.id, prefix="acme")]


@given(st.text(min_size=1) | st.from_regex(r"acme_[0-9A-Za-z]{50}", fullmatch=True))
async def test_nothing_is_told_of_a_text_that_is_no_key(text: str) -> None:
    for asynchronous in (False, True):
        told = Telling(asynchronous)
        assert await told.refused(text) == "invalid_key"
        assert told.told() == [Refused(at=NOW, code="invalid_key")]


async def test_nothing_is_told_of_whose_id_a_wrong_text_has(told: Telling) -> None:
    issued = await told("issue", "u1")
    other = SCHEME.mint(issued.key.id)
    told.told()
    for _ in range(2):
        assert await told.refused(other.text) == "invalid_key"
    assert told.told() == [Refused(at=NOW, code="invalid_key")] * 2


async def test_a_store_that_fails_is_told_and_so_is_each_request_that_it_fails(told: Telling) -> None:
    issued = await told("issue", "u1")
    told.told()
    told.store.fail("get", "changes", error=ConnectionRefusedError(issued.text))
    assert await told.refused(issued.text) == "store_unavailable"
    assert told.told() == [
        Unavailable(at=NOW, what="the key store", error="ConnectionRefusedError"),
        Refused(at=NOW, code="store_unavailable"),
    ]


async def test_a_user_loader_that_fails_is_told_and_so_is_the_key(told: Telling) -> None:
    told.users["u1"] = OSError("no")
    issued = await told("issue", "u1")
    told.told()
    with pytest.raises(StoreUnavailable):
        await told.authenticate(issued.text)
    assert told.told() == [
        Unavailable(at=NOW, what="the user loader", error="OSError"),
        Refused(at=NOW, code="store_unavailable", key_id=issued.key.id, prefix="acme"),
    ]


async def test_a_request_without_a_key_is_nothing_to_tell(told: Telling) -> None:
    with pytest.raises(Refusal):
        await told.authenticate(None)
    assert told.told() == []


async def call(told: Telling, **headers: str) -> int:
    request = Request("/", headers=list(headers.items()))
    if told.asynchronous:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        return (await acall_asgi(asgi.APIKeyMiddleware(app, told.auth), request)).status

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    return call_wsgi(wsgi.APIKeyMiddleware(application, told.auth), request).status


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("loads", [False, True])
async def test_each_request_to_a_middleware_is_told_however_it_recognizes_its_key(
    asynchronous: bool, loads: bool
) -> None:
    told = Telling(asynchronous)
    if not loads:
        kind: Any = AsyncAuthenticator if asynchronous else Authenticator
        store = Inline(told.store) if asynchronous else told.store
        told.auth = kind(store, SCHEME, clock=told.clock, on_event=told.got.append)
    issued = await told("issue", "u1")
    told.told()
    for _ in range(3):
        assert await call(told, apikey=issued.text) == 200
    let_in = Authenticated(at=NOW, key_id=issued.key.id, owner="u1", stale=False)
    assert told.told() == [let_in] * 3
    assert await call(told, apikey="nothing") == 401
    await told("revoke", issued.key.id)
    assert await call(told, apikey=issued.text) == 401
    assert [event for event in told.told() if isinstance(event, Refused)] == [
        Refused(at=NOW, code="invalid_key"),
        Refused(at=NOW, code="revoked_key", key_id=issued.key.id, prefix="acme"),
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_user_that_is_gone_since_its_key_was_recognized_is_told(asynchronous: bool) -> None:
    told = Telling(asynchronous)
    issued = await told("issue", "u1")
    assert await call(told, apikey=issued.text) == 200
    told.users["u1"] = None
    told.told()
    assert await call(told, apikey=issued.text) == 401
    assert told.told() == [Refused(at=NOW, code="inactive_user", key_id=issued.key.id, prefix="acme")]


async def test_no_text_is_in_any_event(told: Telling) -> None:
    issued = await told("issue", "u1", metadata={"a": 1})
    await told.authenticate(issued.text)
    await told("revoke", issued.key.id, reason="leaked")
    await told.refused(issued.text)
    await told.refused(issued.text[:-1])
    got = told.told()
    assert len(got) == 5
    shown = repr(got) + str(list(map(dataclasses.asdict, got)))
    parsed = SCHEME.parse(issued.text)
    assert all(each not in shown for each in (issued.text, parsed.secret, issued.key.digest))


def test_an_authenticator_without_a_hook_has_nothing_that_delivers() -> None:
    auth = Authenticator(MemoryKeyStore())
    assert auth.events is None
    assert auth.keys.events is None


async def hook(event: Event) -> None:
    raise NotImplementedError


def test_a_blocking_authenticator_takes_no_coroutine() -> None:
    with pytest.raises(ConfigurationError, match="on_event must be a plain 'def'"):
        Authenticator(MemoryKeyStore(), on_event=hook)
    AsyncAuthenticator(Inline(MemoryKeyStore()), on_event=hook)
