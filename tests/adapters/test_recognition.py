"""A key that is recognized at the door opens as much, and as little, as one that is looked up.

Each application stands here twice: one that remembers keys, whose requests go the short way where they may,
and one that remembers none. Whatever the request, nobody can tell them apart: not the client, not the
application, not whoever listens to events or asks which keys were used.
"""

import asyncio
import copy
import gc
import inspect
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from unittest.mock import patch

import fastapi
import flask
import pytest
from applications import User
from calling import Answer, Request, acall_asgi, call_wsgi
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse
from django.urls import re_path
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Route

import apikey_auth.asgi
import apikey_auth.fastapi
import apikey_auth.flask
import apikey_auth.starlette
import apikey_auth.wsgi
from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Bearer,
    ConfigurationError,
    Header,
    Identity,
    Inline,
    InvalidKey,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    Query,
    Refusal,
    usage,
)
from apikey_auth.authenticate import _timestamp
from apikey_auth.decisions import Owner
from apikey_auth.django import conf, middleware
from apikey_auth.events import Event, Events
from apikey_auth.formats import opaque_tokens
from apikey_auth.policy import IDENTITY, Recognition, Visit, require, visit_of

Call = Callable[[Request], Answer]

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
NOW = START + timedelta(hours=1)  # when requests come; keys are remembered from before
HOUR = timedelta(hours=1)
METHODS = ["GET", "HEAD", "OPTIONS", "POST"]
LASTING: Any = {
    "max_staleness": 86400.0,
    "max_age": 86400.0,
}  # no poll comes between, however slow the machine


class Keys:
    """Keys of every sort. Time stands still, at START until ``pass_time``."""

    def __init__(self) -> None:
        self.now = START
        self.scheme = KeyScheme(prefix="acme")
        self.store, self.other_store = MemoryKeyStore(), MemoryKeyStore()
        self.users = {name: User(name) for name in "123"}
        self.users["2"].is_active = False
        issue = self.manager.issue
        unending = {
            "good": issue("1"),
            "scoped": issue("1", scopes=["reports:read"]),
            "powerless": issue("1", scopes=[]),
            "near": issue("1", addresses=["127.0.0.1"]),
            "far": issue("1", addresses=["10.0.0.0/8"]),
            "noted": issue("1", metadata={"plan": "gold"}),
            "inactive": issue("2"),
            "leaving": issue("3"),
            "ending": issue("1", expires_in=HOUR),
            "lasting": issue("1", expires_in=HOUR + timedelta(microseconds=1)),
            "rotated": issue("1"),
            "revoked": issue("1"),
            "disabled": issue("1"),
        }
        self.manager.rotate(unending["rotated"].key.id, grace=HOUR)
        self.manager.revoke(unending["revoked"].key.id)
        self.manager.edit(unending["disabled"].key.id, disabled=True)
        for name in ("good", "scoped", "leaving"):
            self.other_store.add(unending[name].key)
        self.texts = {name: issued.text for name, issued in unending.items()}
        self.texts |= {"unknown": self.scheme.mint().text, "malformed": "acme_x", "": ""}

    @property
    def manager(self) -> KeyManager:
        return KeyManager(self.store, self.scheme, clock=self.clock)

    def clock(self) -> datetime:
        return self.now

    def set_time(self, now: datetime) -> None:
        self.now = now
        self.users["3"].is_active = now == START


KEYS = Keys()


class Told(Events):
    """Remembers events instead of delivering them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


class Noted:
    """Remembers uses instead of writing them."""

    is_on = True

    def __init__(self) -> None:
        self.used: list[tuple[str, float]] = []

    def note(self, key_id: str, at: float) -> None:
        self.used.append((key_id, at))

    def renewed(self, key: Any) -> Any:
        return key


@dataclass
class Watch:
    """What an application is to answer, and what it sees of a request."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    changes: bool = False  # whether it changes what it is given before it looks at its visit
    seen: list[object] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    noted: Noted = field(default_factory=Noted)

    def look(self, holder: Any, path: str, **more: object) -> None:
        """See a request, and ask for what its path needs. Raises a Refusal."""
        self.seen.append((facts(holder), identified(holder.get(IDENTITY)), more))
        if self.changes:
            deface(holder)
        self.visits.append(visit_of(holder))
        self.seen.append(described(self.visits[-1]))
        if path.endswith("/me"):
            require(holder)
        if path.endswith("/reports"):
            require(holder, "reports:read")

    def take(self) -> tuple[object, ...]:
        """Give all that was noticed, and forget it."""
        taken = (self.seen[:], self.told.events[:], self.noted.used[:])
        for each in (self.seen, self.visits, self.told.events, self.noted.used):
            each.clear()
        return taken


def facts(holder: Mapping[str, Any]) -> dict[str, object]:
    plain = str | bytes | int | None
    found: dict[str, object] = {name: each for name, each in holder.items() if isinstance(each, plain)}
    found["client"] = holder.get("client")
    return found | {"headers": [tuple(pair) for pair in holder.get("headers", ())]}


def identified(identity: Any) -> object:
    return identity and (repr(identity.user), type(identity.user), identity.key, identity.stale)


def described(visit: Visit | None) -> object:
    if visit is None:
        return None
    refusals = [getattr(each, "code", None) for each in (visit.refusal, visit.turned_away)]
    said: list[object] = [visit.hidden, visit.is_exposed]
    said += [visit.method, visit.path, visit.query, visit.sent, visit.address, visit.text, visit.exempt]
    return (
        *said,
        astuple(visit.credential),
        visit.credential.clash,
        identified(visit.identity),
        refusals,
        visit.privacy,
        described(visit.outer),
    )


def deface(holder: Any) -> None:
    """Change a request, as applications and their middlewares do."""
    if "headers" in holder:
        holder |= {"headers": [], "query_string": b"gone=1", "path": "/gone", "method": "PUT", "client": None}
    else:
        for name in [name for name in holder if name.startswith("HTTP_")]:
            del holder[name]
        holder |= {"QUERY_STRING": "gone=1", "PATH_INFO": "/gone", "REQUEST_METHOD": "PUT", "REMOTE_ADDR": ""}


def user_of(user: Any) -> object:
    named = [getattr(user, name, None) for name in ("pk", "id", "name", "is_authenticated")]
    return (type(user), *named)


class Factory:
    """Makes the authenticators of one application, which remember keys or do not."""

    def __init__(self, watch: Watch, *, remembers: bool, loads: bool) -> None:
        self.watch = watch
        self.remembers = remembers
        self.caching: dict[str, Any] = LASTING | ({} if remembers else {"cache_size": 0})
        self.loads = loads

    def blocking(self, store: MemoryKeyStore = KEYS.store) -> Authenticator[Any]:
        load: dict[str, Any] = {"load_user": KEYS.users.get} if self.loads else {}
        auth = Authenticator(store, KEYS.scheme, **self._options, **load)
        self._watch(auth)
        return auth

    def asynchronous(self, store: MemoryKeyStore = KEYS.store) -> AsyncAuthenticator[Any]:
        async def load_user(owner: str) -> User | None:
            return KEYS.users.get(owner)

        load: dict[str, Any] = {"load_user": load_user} if self.loads else {}
        auth = AsyncAuthenticator(Inline(store), KEYS.scheme, **self._options, **load)
        self._watch(auth)
        return auth

    def django(self, options: Mapping[str, Any]) -> conf.Setup:
        caching = {name.upper(): value for name, value in self.caching.items()}
        policy = {name.upper(): value for name, value in options.items()}
        setup = conf.Setup({"STORE": KEYS.store, "PREFIX": "acme", **caching, **policy})
        for auth in (setup.authenticator, setup.async_authenticator):
            auth._clock, auth._time, auth.events = KEYS.clock, _timestamp(KEYS.clock), self.watch.told
            self._watch(auth)
        return setup

    @property
    def _options(self) -> dict[str, Any]:
        return {"clock": KEYS.clock, "on_event": self.watch.told, **self.caching}

    def _watch(self, auth: Any) -> None:
        auth.uses = self.watch.noted
        if not self.remembers:
            auth.recognize = lambda value: None  # nor is a text that is no key refused before it is looked up


def plain_wsgi(auth: Any, watch: Watch, options: Any) -> Any:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        watch.look(environ, environ["PATH_INFO"])
        start_response("200 OK", watch.headers)
        return [b"ok"]

    return apikey_auth.wsgi.APIKeyMiddleware(application, auth, **options)


def plain_asgi(auth: Any, watch: Watch, options: Any) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        more = {"user": user_of(scope.get("user")), "auth": getattr(scope.get("auth"), "scopes", None)}
        watch.look(scope, scope["path"], **more)
        headers = [(name.encode(), value.encode()) for name, value in watch.headers]
        await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
        await send({"type": "http.response.body", "body": b"ok"})

    return apikey_auth.asgi.APIKeyMiddleware(application, auth, **options)


def answered(response: Response, watch: Watch) -> Response:
    for name, value in watch.headers:
        response.headers.append(name, value)
    return response


def starlette(auth: Any, watch: Watch, options: Any) -> Any:
    async def endpoint(request: StarletteRequest) -> Response:
        more: dict[str, object] = {"query": str(request.query_params), "url": str(request.url)}
        more |= {"user": user_of(request.user), "scopes": list(request.auth.scopes)}
        watch.look(request.scope, request.scope["path"], **more)
        return answered(Response("ok"), watch)

    return Starlette(
        routes=[Route("/{path:path}", endpoint, methods=METHODS)],
        middleware=[Middleware(apikey_auth.starlette.APIKeyMiddleware, auth=auth, **options)],
    )


def fastapi_app(auth: Any, watch: Watch, options: Any) -> Any:
    app = fastapi.FastAPI()
    api_key = apikey_auth.fastapi.APIKeyAuth(auth, app, **options)
    caller = fastapi.Security(api_key.optional)

    async def endpoint(request: StarletteRequest, identity: Any = caller) -> Response:
        more = {"identity": identified(identity), "user": user_of(request.user)}
        watch.look(request.scope, request.scope["path"], **more)
        return answered(Response("ok"), watch)

    app.api_route("/{path:path}", methods=METHODS)(endpoint)
    return app


def flask_app(auth: Any, watch: Watch, options: Any) -> Any:
    app = flask.Flask("no_package")
    apikey_auth.flask.APIKeyAuth(auth, app, **options)

    @app.route("/", defaults={"path": ""}, methods=METHODS)
    @app.route("/<path:path>", methods=METHODS)
    def view(path: str) -> Any:
        request, current = flask.request, apikey_auth.flask.current_identity
        more: dict[str, object] = {"query": request.query_string, "url": request.url}
        more |= {"user": user_of(flask.g.user), "current": identified(current) if current else None}
        watch.look(request.environ, f"/{path}", **more)
        response = flask.Response("ok")
        for name, value in watch.headers:
            response.headers.add(name, value)
        return response

    return app


def django_view(watch: Watch, request: Any) -> HttpResponse:
    more = {"query": request.GET.urlencode(), "full": request.get_full_path(), "key": request.api_key}
    more["user"] = user_of(getattr(request, "user", None))
    more["csrf"] = getattr(request, "_dont_enforce_csrf_checks", False)
    watch.look(request.META, request.path_info, **more)
    return HttpResponse("ok", headers=dict(watch.headers))


class Urls:
    """Routes of a project: all lead to one view."""

    def __init__(self, view: Any) -> None:
        self.urlpatterns = [re_path("(?s:.*)", view)]


def django_wsgi(setup: conf.Setup, watch: Watch) -> Any:
    class ProjectRequest(WSGIRequest):
        urlconf: Any = Urls(lambda request: django_view(watch, request))

    with patch.object(middleware, "setup", lambda: setup):
        handler = WSGIHandler()
    handler.request_class = ProjectRequest

    def application(environ: Any, start_response: Any) -> Any:
        with patch.object(middleware, "setup", lambda: setup):
            return handler(environ, start_response)

    return application


def django_asgi(setup: conf.Setup, watch: Watch) -> Any:
    async def view(request: Any) -> HttpResponse:
        watch.seen.append(user_of(await request.auser()) if hasattr(request, "auser") else None)
        return django_view(watch, request)

    class ProjectRequest(ASGIRequest):
        urlconf: Any = Urls(view)

    with patch.object(middleware, "setup", lambda: setup):
        handler = ASGIHandler()
    handler.request_class = ProjectRequest

    async def application(scope: Any, receive: Any, send: Any) -> None:
        with patch.object(middleware, "setup", lambda: setup):
            await handler(scope, receive, send)

    return application


WSGI: dict[str, Any] = {"wsgi": plain_wsgi, "flask": flask_app, "django": django_wsgi}
ASGI: dict[str, Any] = {
    "asgi": plain_asgi,
    "starlette": starlette,
    "fastapi": fastapi_app,
    "django-asgi": django_asgi,
}


@dataclass(frozen=True)
class Outer:
    """A middleware around the application: with the same authenticator or one of other keys."""

    same: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def rendered(refusal: Refusal, path: str) -> tuple[str, bytes]:
    return "text/plain", f"{refusal.code} at {path}".encode()


LAYERS: list[tuple[dict[str, Any], Outer | None]] = [
    ({}, None),
    ({"required": True}, None),
    ({"required": True, "exempt": ["/", "/open", "/open/"]}, None),
    ({"exempt": ["/open/"], "on_invalid": "anonymous"}, None),
    ({"carriers": [Bearer()]}, None),
    ({"carriers": [Bearer("Token"), Query("apikey")], "required": True}, None),
    ({"carriers": [Header("apikey"), Bearer()]}, None),
    ({"carriers": [Header("apikey"), Query("api.key"), Query("apikey")]}, None),
    ({"carriers": [Query()], "required": True}, None),
    ({"carriers": [Header("X-API-Key"), Query("apikey")]}, None),
    ({"carriers": [Header("Authorization")], "on_invalid": "anonymous"}, None),
    ({"trusted_proxies": ["127.0.0.0/8", "unix"]}, None),
    ({"render": rendered, "required": True}, None),
    ({"insecure": "refuse"}, None),
    ({"insecure": "refuse", "on_invalid": "anonymous", "carriers": [Bearer()]}, None),
    ({"insecure": "refuse", "trusted_proxies": ["10.0.0.0/8"]}, None),
    ({"hide_credentials": True}, None),
    ({"hide_credentials": True, "carriers": [Bearer()]}, None),
    ({"hide_credentials": True}, Outer(True, {"hide_credentials": True})),
    ({}, Outer(False, {"hide_credentials": True, "on_invalid": "anonymous"})),
    ({}, Outer(True)),
    ({"required": True}, Outer(True, {"exempt": ["/open/"], "on_invalid": "anonymous"})),
    ({"required": True, "exempt": ["/open/"]}, Outer(True, {"carriers": [Header("X-API-Key")]})),
    ({}, Outer(False, {"on_invalid": "anonymous"})),
    ({"on_invalid": "anonymous"}, Outer(False)),
    ({"carriers": [Bearer()]}, Outer(True, {"trusted_proxies": ["127.0.0.1"]})),
]


class Application:
    """A framework's application that stands ready for requests, and a watch over it."""

    def __init__(self, framework: str, layers: int, *, remembers: bool, loads: bool) -> None:
        options, outer = LAYERS[layers]
        self.watch = Watch()
        self.is_async = framework in ASGI
        factory = Factory(self.watch, remembers=remembers, loads=loads)
        make = factory.asynchronous if self.is_async else factory.blocking
        builder = (ASGI if self.is_async else WSGI)[framework]
        if framework.startswith("django"):
            setup = factory.django(options)
            auth: Any = setup.async_authenticator if self.is_async else setup.authenticator
            self.app = builder(setup, self.watch)
        else:
            auth = make()
            self.app = builder(auth, self.watch, options)
        self.auths = [auth]
        if outer is not None:
            around = auth if outer.same else make(KEYS.other_store)
            kind: Any = apikey_auth.asgi if self.is_async else apikey_auth.wsgi
            self.app = kind.APIKeyMiddleware(self.app, around, **outer.options)
            self.auths.append(around)
        see_every_key(*self.auths)
        self.watch.take()

    def call(self, request: Request) -> Answer:
        return run(acall_asgi(self.app, request)) if self.is_async else call_wsgi(self.app, request)

    def outcome(
        self, request: Request, headers: list[tuple[str, str]], *, changes: bool
    ) -> tuple[object, ...]:
        """Answer with headers; tell all that anybody can see of it."""
        self.watch.headers, self.watch.changes = headers, changes
        answer = self.call(request)
        return (answer.status, answer.headers, answer.body, *self.watch.take())


def see_every_key(*auths: Any) -> None:
    """Let authenticators know all keys, at a time when most of them are good."""
    KEYS.set_time(START)
    for auth in auths:
        for text in KEYS.texts.values():
            with suppress(Refusal):
                found = auth.authenticate(text)
                if inspect.isawaitable(found):
                    run(found)
    KEYS.set_time(NOW)


runners: list[asyncio.Runner] = []


def run(call: Any) -> Any:
    async def awaited() -> Any:
        return await call

    return runners[-1].run(awaited())


@pytest.fixture(scope="module", autouse=True)
def runner() -> Iterator[None]:
    with asyncio.Runner() as one:
        runners.append(one)
        yield
        runners.pop()


@cache
def application(framework: str, layers: int, remembers: bool, loads: bool) -> Application:
    return Application(framework, layers, remembers=remembers, loads=loads)


SHAPES = ["{0}", "{0}", "{0}", " {0}", "{0} ", "{0},", "{0},{1}", ",", " ", "\xff{0}", "{0}\xff", "{0}\x00"]
SCHEMES = [
    "Bearer {0}",
    "bearer {0}",
    "Bearer  {0}",
    "Bearer\t{0}",
    "Bearer",
    "Token {0}",
    "TOKEN {0}",
    "Basic {0}",
]
PAIRS = [
    "apikey={0}",
    "APIKEY={0}",
    "%61pikey={0}",
    "api%6Bey={0}",
    "apikey%3D{0}",
    "apikey={0}&apikey={1}",
    "apikey",
]
PAIRS += [
    "apikey=",
    "apikey=+",
    "apikeys={0}",
    "x=apikey",
    "x={0}",
    "api.key={0}",
    "a=1",
    "a=%20",
    "a=%",
    "+apikey={0}",
]
PATHS = [
    "/",
    "/me",
    "/reports",
    "/public",
    "/open",
    "/open/me",
    "/open/../me",
    "/open//me",
    "/opening",
    "/%6fpen",
]
PATHS += ["/open/%2e%2e/me", "/caf%C3%A9/me", "/%ff", "/Open/me", "/open/reports"]
ANSWERS: list[list[tuple[str, str]]] = [
    [],
    [("Vary", "*")],
    [("vary", "Cookie, APIKEY")],
    [("Cache-Control", "public, max-age=60")],
    [("cache-CONTROL", "no-store")],
    [("Set-Cookie", "a=1"), ("Referrer-Policy", "origin"), ("Vary", "Origin")],
    [("Cache-Control", "public"), ("Cache-Control", 'private="x"'), ("Vary", "Origin"), ("VARY", "Cookie")],
]

names = st.one_of(st.just("good"), st.sampled_from(sorted(KEYS.texts)))


def filled(shapes: list[str]) -> st.SearchStrategy[str]:
    def fill(shape: str, one: str, two: str) -> str:
        return shape.format(KEYS.texts[one], KEYS.texts[two])

    return st.builds(fill, st.sampled_from(shapes), names, names)


headers = st.one_of(
    st.tuples(st.sampled_from(["apikey", "ApiKey", "X-API-Key"]), filled(SHAPES)),
    st.tuples(st.sampled_from(["Authorization"]), filled([*SCHEMES, "{0}"])),
    st.tuples(
        st.just("X-Forwarded-For"), st.sampled_from(["10.1.2.3", "127.0.0.1", "10.0.0.1, 127.0.0.1", "?"])
    ),
    st.tuples(st.just("X-Forwarded-Proto"), st.sampled_from(["http", "https", "https,http", "", "?"])),
    st.sampled_from(
        [("Origin", "https://a.example"), ("Access-Control-Request-Method", "GET"), ("Accept", "*/*")]
    ),
)
queries = st.lists(filled(PAIRS), max_size=2).map("&".join)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    query = draw(st.one_of(st.just(""), queries))
    return Request(
        target=draw(st.sampled_from(PATHS)) + (f"?{query}" if query else ""),
        headers=tuple(draw(st.lists(headers, min_size=1, max_size=3))),
        method=draw(st.sampled_from(["GET", "GET", *METHODS])),
        client=draw(st.sampled_from(["127.0.0.1", "10.0.0.9", None])),
        scheme=draw(st.sampled_from(["http", "https"])),
        mount=draw(st.sampled_from(["", "", "/mounted", "/open", "/open/"])),
    )


def keyed(name: str, **more: Any) -> Request:
    return Request(more.pop("target", "/me"), (("apikey", KEYS.texts[name]),), **more)


@pytest.mark.parametrize("framework", [*WSGI, *ASGI])
@settings(max_examples=40, deadline=None)
@given(
    request=requests(),
    layers=st.integers(0, len(LAYERS) - 1),
    loads=st.booleans(),
    answer=st.sampled_from(ANSWERS),
    changes=st.booleans(),
)
@example(keyed("ending"), 0, False, [], False)
@example(keyed("rotated"), 0, False, [], False)
@example(keyed("far"), 11, False, [], False)
@example(keyed("leaving"), 3, True, [], True)
@example(keyed("noted"), 0, True, ANSWERS[-1], True)
@example(keyed("good", target="/open/me"), 2, False, [], False)
@example(keyed("good", target="/public?%61pikey=x"), 0, False, [], False)
@example(keyed("good", target="/public?APIKEY=x"), 0, False, [], False)
@example(keyed("good", target="/public?apikey="), 0, False, [], False)
@example(
    keyed("good", method="OPTIONS")
    .with_header("Origin", "x")
    .with_header("Access-Control-Request-Method", "GET"),
    0,
    False,
    [],
    False,
)
@example(keyed("good").with_header("apikey", KEYS.texts["good"]), 0, False, [], False)
@example(keyed("scoped", target="/reports"), 20, True, [], False)
@example(keyed("good", scheme="http", client="10.0.0.9"), 13, False, [], False)
@example(
    keyed("good", scheme="https", client="10.0.0.9").with_header("X-Forwarded-Proto", "http"),
    15,
    False,
    [],
    False,
)
@example(keyed("good"), 16, False, [], False)
@example(keyed("good", target="/public?apikey=other"), 7, False, [], False)
@example(keyed("good").with_header("Authorization", "Bearer other"), 6, False, [], False)
@example(Request("/me", (("Authorization", f"Bearer {KEYS.texts['good']}"),)), 17, True, [], False)
@example(Request("/public", (("apikey", "nothing like a key"),)), 3, False, [], True)
@example(Request("/me", (("Authorization", f"Token {KEYS.texts['good']}"),)), 4, False, [], False)
def test_nobody_can_tell_a_remembered_key_from_one_that_is_looked_up(
    framework: str, request: Request, layers: int, loads: bool, answer: list[tuple[str, str]], changes: bool
) -> None:
    forgetful, mindful = (application(framework, layers, remembers, loads) for remembers in (False, True))
    expected = forgetful.outcome(request, answer, changes=changes)
    for _ in range(2):
        assert mindful.outcome(request, answer, changes=changes) == expected


FRAMEWORKS = [*WSGI, *ASGI]


@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_remembered_key_goes_the_short_way_and_one_that_depends_on_the_request_does_not(
    framework: str, loads: bool
) -> None:
    app = application(framework, 0, True, loads)
    app.watch.headers = []
    short = {}
    for name in ("good", "scoped", "lasting", "near", "noted"):
        app.watch.take()
        assert app.call(keyed(name, target="/public")).status == 200
        short[name] = isinstance(app.watch.visits[-1], Recognition)
    assert short == {"good": True, "scoped": True, "lasting": True, "near": False, "noted": False}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_key_that_is_revoked_here_is_recognized_no_more(framework: str) -> None:
    app = application(framework, 0, True, True)
    issued = KEYS.manager.issue("1")
    request = Request("/me", (("apikey", issued.text),))
    assert [app.call(request).status for _ in range(3)] == [200] * 3
    revoked = app.auths[0].keys.revoke(issued.key.id)
    if inspect.isawaitable(revoked):
        run(revoked)
    assert app.call(request).status == 401


@pytest.mark.parametrize("name", ["good", "inactive"])
@pytest.mark.parametrize("framework", ["wsgi", "asgi", "starlette", "fastapi", "flask", "django"])
def test_no_visit_waits_for_the_garbage_collector(framework: str, name: str) -> None:
    app = application(framework, 3, True, True)
    app.watch.headers = []
    with collected() as garbage:
        for _ in range(5):
            app.call(keyed(name, target="/public"))
            app.watch.take()
    assert [each for each in garbage if isinstance(each, Visit)] == []


@contextmanager
def collected() -> Iterator[list[object]]:
    """Give all that only the garbage collector would find in the end."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    garbage: list[object] = []
    try:
        yield garbage
        gc.collect()
        garbage += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("framework", ["wsgi", "asgi"])
def test_a_copy_of_a_visit_that_nobody_has_asked_yet_finds_out_by_itself(framework: str) -> None:
    app = application(framework, 0, True, False)
    app.watch.take()
    with patch(f"{__name__}.described"):
        app.call(keyed("good", target="/public?a=1", mount="/mounted"))
    visit = app.watch.visits[-1]
    assert "path" not in vars(visit)
    for each in (copy.copy(visit), visit):
        assert not hasattr(each, "nothing_of_the_kind")
        found = (each.method, each.path, each.query, each.address, each.text)
        assert found == ("GET", "/public", "a=1", "127.0.0.1", KEYS.texts["good"])


@pytest.mark.parametrize("name", ["good", "inactive", "leaving", "far"])
@pytest.mark.parametrize("ending", ["return", "refuse", "accept and refuse"])
@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
def test_a_websocket_is_let_in_and_refused_alike(name: str, ending: str, extensions: Any) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(described(visit_of(scope)))
        if ending.startswith("accept"):
            await send({"type": "websocket.accept"})
        if ending.endswith("refuse"):
            require(scope, "reports:read", "never:given")

    def talk(middleware: Any) -> list[Any]:
        async def send(message: Any) -> None:
            sent.append(message)

        sent: list[Any] = []
        header = (b"apikey", KEYS.texts[name].encode())
        scope = {"type": "websocket", "path": "/chat", "headers": [header], "extensions": extensions}
        run(middleware(scope, None, send))
        return sent

    seen: list[object] = []
    answers = []
    for remembers in (False, True):
        auth = Factory(Watch(), remembers=remembers, loads=True).asynchronous()
        see_every_key(auth)
        answers += [talk(apikey_auth.asgi.APIKeyMiddleware(application, auth)) for _ in range(2)]
    assert answers == [answers[0]] * 4
    assert seen == seen[:1] * len(seen)


class Blocking(Authenticator[Any]):
    """An application's own, which asks more of a key."""

    def authenticate(self, text: str | None, **asked: Any) -> Any:
        super().authenticate(text, **asked)
        raise InvalidKey("its tenant does not pay")


class Wider(AsyncAuthenticator[Any]):
    """An application's own, which takes other texts too."""

    async def authenticate(self, text: str | None, **asked: Any) -> Any:
        key = KEYS.store.get(KEYS.scheme.parse(KEYS.texts["good"]).id)
        if key is None or text != "a.b.c":
            raise InvalidKey
        return Identity(Owner("token"), key)


def test_an_authenticator_of_the_applications_own_is_asked_about_every_request() -> None:
    strict = Blocking(KEYS.store, KEYS.scheme, clock=KEYS.clock, **LASTING)
    wrapped = plain_wsgi(strict, Watch(), {})
    assert [call_wsgi(wrapped, keyed("good")).status for _ in range(3)] == [401] * 3
    watch = Watch()
    wider = plain_asgi(Wider(Inline(KEYS.store), KEYS.scheme), watch, {})
    assert run(acall_asgi(wider, Request("/public", (("apikey", "a.b.c"),)))).status == 200


class Signed(Header):
    """A carrier of the application's own, which looks at something else as well."""

    def values(self, header: Any) -> list[str]:
        return super().values(header) if header("X-Signature") == "right" else []


@pytest.mark.parametrize("framework", ["wsgi", "asgi"])
def test_a_carrier_of_the_applications_own_reads_every_request(framework: str) -> None:
    builder = (WSGI | ASGI)[framework]
    factory = Factory(Watch(), remembers=True, loads=False)
    auth: Any = factory.asynchronous() if framework == "asgi" else factory.blocking()
    see_every_key(auth)
    app = builder(auth, factory.watch, {"carriers": [Signed("apikey")]})
    statuses = []
    for request in (keyed("good"), keyed("good").with_header("X-Signature", "right")):
        answer = run(acall_asgi(app, request)) if framework == "asgi" else call_wsgi(app, request)
        statuses.append(answer.status)
    assert statuses == [401, 200]


@pytest.mark.parametrize("name", ["", "good"])
def test_what_is_neither_http_nor_websocket_reaches_no_application(name: str) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    auth = Factory(Watch(), remembers=True, loads=False).asynchronous()
    see_every_key(auth)
    scope = {"type": "tunnel", "path": "/", "headers": [(b"apikey", KEYS.texts[name].encode())]}
    with pytest.raises(ConfigurationError, match="'tunnel'"):
        run(apikey_auth.asgi.APIKeyMiddleware(application, auth)(scope, None, None))  # type: ignore[arg-type]


def test_what_is_no_latin_1_is_no_key() -> None:
    scheme = KeyScheme(prefix="acme", formats=[opaque_tokens("x" * 32)])
    store = MemoryKeyStore()
    KeyManager(store, scheme).ensure("1", name="old", text="tok?enwithquestionmark")
    app = plain_wsgi(Authenticator(store, scheme, **LASTING), Watch(), {})
    asked = ["tok?enwithquestionmark", "tok\udc80enwithquestionmark"]
    assert [call_wsgi(app, Request("/me", (("apikey", text),))).status for text in asked] == [200, 401]


@pytest.mark.parametrize("framework", ["wsgi", "asgi"])
def test_nothing_that_a_request_does_to_its_key_is_seen_by_another(framework: str) -> None:
    app = application(framework, 0, True, False)
    app.watch.take()
    app.call(keyed("good", target="/public"))
    identity = app.watch.visits[-1].identity
    assert identity is not None
    with pytest.raises(TypeError, match="cannot be changed"):
        identity.key.metadata["seen"] = True  # type: ignore[index]
    assert KEYS.manager.get(identity.key.id).metadata == {}
    assert json.dumps(identity.key.metadata) == "{}"
    assert pickle.loads(pickle.dumps(identity.key)) == identity.key == copy.deepcopy(identity.key)


def test_an_identity_is_nobodys_before_flask_has_admitted_the_request() -> None:
    seen = []
    for remembers in (False, True):
        app = flask.Flask("no_package")
        factory = Factory(Watch(), remembers=remembers, loads=False)
        auth = factory.blocking()
        see_every_key(auth)

        @app.before_request
        def early() -> None:
            seen.append(bool(apikey_auth.flask.current_identity))

        apikey_auth.flask.APIKeyAuth(auth, app)
        app.add_url_rule("/", "view", lambda: str(bool(apikey_auth.flask.current_identity)))
        assert call_wsgi(app, keyed("good", target="/")).body == b"True"
    assert seen == [False, False]


@pytest.mark.parametrize("name", ["", "inactive", "unknown"])
@pytest.mark.parametrize("framework", ["wsgi", "asgi", "starlette", "fastapi", "flask", "django"])
def test_no_visit_of_a_refused_request_waits_for_the_garbage_collector(framework: str, name: str) -> None:
    app = application(framework, 0 if name == "inactive" else 3, True, True)
    app.watch.headers = []
    with collected() as garbage:
        for _ in range(5):
            assert app.call(keyed(name)).status == 401
            app.watch.take()
    assert [each for each in garbage if isinstance(each, Visit)] == []


def test_headers_that_can_be_read_but_once_arrive() -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", (pair for pair in [("Set-Cookie", "a=1"), ("Vary", "Origin")]))
        return []

    auth = Factory(Watch(), remembers=True, loads=False).blocking()
    answer = call_wsgi(apikey_auth.wsgi.APIKeyMiddleware(application, auth), keyed("good"))
    assert set(answer.headers) >= {("set-cookie", "a=1"), ("vary", "Origin, apikey")}


@pytest.mark.parametrize("framework", ["wsgi", "asgi"])
def test_a_key_that_was_hidden_two_layers_out_is_read_all_the_same(framework: str) -> None:
    kind: Any = apikey_auth.asgi if framework == "asgi" else apikey_auth.wsgi
    watch = Watch()
    factory = Factory(watch, remembers=False, loads=False)
    make = factory.asynchronous if framework == "asgi" else factory.blocking
    app = (WSGI | ASGI)[framework](make(), watch, {"required": True})
    app = kind.APIKeyMiddleware(app, make(MemoryKeyStore()), on_invalid="anonymous")
    app = kind.APIKeyMiddleware(app, make(MemoryKeyStore()), on_invalid="anonymous", hide_credentials=True)
    request = keyed("good")
    assert (run(acall_asgi(app, request)) if framework == "asgi" else call_wsgi(app, request)).status == 200


def test_a_visit_knows_the_headers_that_came_whatever_the_application_does_with_them() -> None:
    app = application("asgi", 11, True, False)
    app.watch.take()
    with patch(f"{__name__}.described"):
        answer = app.call(keyed("good", target="/public"))
    answer.holder["headers"][:] = [(b"x-forwarded-for", b"10.9.9.9")]
    visit = app.watch.visits[-1]
    assert (visit.address, visit.text) == ("127.0.0.1", KEYS.texts["good"])


class Awkward(MemoryKeyStore):
    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()
        self.fails = True

    def touch(self, used: Any, /) -> None:
        if self.fails:
            self.fails = False
            raise SystemExit
        self.written.set()


def test_where_there_is_no_thread_to_be_had_requests_go_on_and_uses_are_written_later() -> None:
    store, waker = Awkward(), usage._Waker()
    store.fails = False
    text = KeyManager(store, KEYS.scheme, clock=KEYS.clock).issue("1").text
    auth = Authenticator(store, KEYS.scheme, clock=KEYS.clock, touch_interval=0.001)
    with patch.object(usage, "_waker", waker):
        with patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            assert auth.authenticate(text)
        written(auth, text, store)


def test_an_end_that_a_store_asks_for_does_not_end_the_thread_that_writes() -> None:
    store, waker = Awkward(), usage._Waker()
    text = KeyManager(store, KEYS.scheme, clock=KEYS.clock).issue("1").text
    auth = Authenticator(store, KEYS.scheme, clock=KEYS.clock, touch_interval=0.001)
    with patch.object(usage, "_waker", waker):
        written(auth, text, store)


def written(auth: Authenticator[Any], text: str, store: Awkward) -> None:
    """Use a key until that is written. Fails when it is not within a minute."""
    deadline = time.monotonic() + 60
    while not store.written.wait(0.01):
        KEYS.now += timedelta(microseconds=1000)
        auth.authenticate(text)
        assert time.monotonic() < deadline
    KEYS.set_time(NOW)
