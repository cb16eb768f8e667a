"""One host application in every framework, with key management mounted into it.

All of them know the same users, sign them in by a cookie, and answer ``elsewhere`` for whatever key
management leaves to them.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from http.cookies import SimpleCookie
from itertools import count
from random import Random
from types import ModuleType
from typing import Any

import flask
from applications import World, django_settings
from calling import Answer, Request, acall_asgi, call_wsgi
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import apikey_auth.asgi
import apikey_auth.flask
import apikey_auth.starlette
import apikey_auth.wsgi
from apikey_auth import MemoryKeyStore
from apikey_auth.django import conf
from apikey_auth.django.urls import key_management
from apikey_auth.management import Dialect
from apikey_auth.stores.bridges import Inline

ADA, BOB, CHIEF, CARL = "101", "102", "103", "104"  # two users, an administrator, one who is not active
HOST = "keys.example.com"
OURS = f"https://{HOST}"
SAME_SITE = (("Sec-Fetch-Site", "same-origin"),)

PLAIN = "text/plain; charset=utf-8"
COMPARED = (
    "allow",
    "cache-control",
    "content-type",
    "location",
    "referrer-policy",
    "retry-after",
    "www-authenticate",
)

Call = Callable[[Any, Request], Answer]


@dataclass
class Person:
    """A user of the host application."""

    id: str
    is_active: bool = True
    is_authenticated: bool = True


def a_world(store: Any = None, **fields: Any) -> World:
    users: Any = {name: Person(name, is_active=name != CARL) for name in (ADA, BOB, CHIEF, CARL)}
    return World(users=users, **({} if store is None else {"store": store}), **fields)


@dataclass
class Site:
    """A mount that can be asked; ``key`` is a key's text, ``user`` somebody whom a cookie has signed in.

    Where it has a ``twin``, every question is put to plain WSGI as well, over a copy of the store, and both
    answers must be the same, byte for byte.
    """

    name: str
    world: World
    application: Any
    call: Call
    sign_in: Callable[[str], str] = lambda owner: owner
    cookies: dict[str, str] = field(default_factory=dict)
    twin: "Site | None" = None
    chance: Random = field(default_factory=Random)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | str | dict[str, Any] = b"",
        *,
        key: str | None = None,
        user: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        mount: str = "",
    ) -> Answer:
        """Send a request with a browser's Host."""
        sent = [("Host", HOST), *headers]
        if key is not None:
            sent.append(("apikey", key))
        if isinstance(body, dict):
            body = json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        request = Request(target, tuple(sent), method, "127.0.0.1", data, mount)
        if self.twin is None or type(self.world.store) is not MemoryKeyStore:
            return self.send(request, user)
        before, chance = dict(self.world.store._keys), self.chance.getstate()
        answer = self.send(request, user)
        self.twin.world.store._keys = before
        self.twin.world.now = self.world.now
        self.chance.setstate(chance)
        expected = self.twin.send(request, user)
        assert facts(answer) == facts(expected), f"{self.name} answers otherwise than plain WSGI"
        return answer

    def send(self, request: Request, user: str | None) -> Answer:
        if user is not None:
            if user not in self.cookies:
                self.cookies[user] = self.sign_in(user)
            cookie = ("Cookie", f"sessionid={self.cookies[user]}")
            request = replace(request, headers=(*request.headers, cookie))
        return self.call(self.application, request)


def facts(answer: Answer) -> tuple[Any, ...]:
    """Tell what must be the same in every framework; the content type of nothing is tested by itself."""
    headers = {name: answer.header(name) for name in COMPARED if answer.body or name != "content-type"}
    return answer.status, headers, answer.body


def named_by(cookie_header: str | None) -> str | None:
    """Read who is signed in from a Cookie header."""
    cookie = SimpleCookie(cookie_header or "").get("sessionid")
    return cookie.value if cookie else None


def wsgi_caller(application: Any, request: Request) -> Answer:
    """Call as ``call_wsgi`` does, with Content-Type and Content-Length where WSGI has them."""

    def served(environ: Any, start_response: Any) -> Any:
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if (value := environ.pop(f"HTTP_{name}", None)) is not None:
                environ[name] = value
        return application(environ, start_response)

    return call_wsgi(served, request)


RUNNER = asyncio.Runner()  # one event loop for the folder: to make one takes longer than to ask


def asgi_caller(application: Any, request: Request) -> Answer:
    return RUNNER.run(acall_asgi(application, request))


@contextmanager
def plain_wsgi(world: World, at: str, dialect: Dialect, options: dict[str, Any]) -> Iterator[Site]:
    def elsewhere(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", PLAIN)])
        return [b"elsewhere"]

    auth = world.authenticator()
    mounted = apikey_auth.wsgi.mount(elsewhere, at, apikey_auth.wsgi.KeyManagement(auth, dialect))
    protected = apikey_auth.wsgi.APIKeyMiddleware(mounted, auth, **options)

    def host(environ: Any, start_response: Any) -> Any:
        if user := named_by(environ.get("HTTP_COOKIE")):
            environ["REMOTE_USER"] = user
        return protected(environ, start_response)

    yield Site("wsgi", world, host, wsgi_caller)


@contextmanager
def plain_asgi(world: World, at: str, dialect: Dialect, options: dict[str, Any]) -> Iterator[Site]:
    async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", PLAIN.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"elsewhere"})

    auth = world.async_authenticator()
    mounted = apikey_auth.asgi.mount(elsewhere, at, apikey_auth.asgi.KeyManagement(auth, dialect))
    protected = apikey_auth.asgi.APIKeyMiddleware(mounted, auth, **options)

    async def host(scope: Any, receive: Any, send: Any) -> None:
        cookie = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
        if user := named_by(cookie):
            scope["user"] = world.users[user]
        await protected(scope, receive, send)

    yield Site("asgi", world, host, asgi_caller)


class CookieBackend(AuthenticationBackend):
    """Starlette's way to sign users in."""

    def __init__(self, users: Any) -> None:
        self.users = users

    async def authenticate(self, conn: HTTPConnection) -> Any:
        user = named_by(conn.headers.get("cookie"))
        return (AuthCredentials(["authenticated"]), self.users[user]) if user else None


@contextmanager
def starlette(world: World, at: str, dialect: Dialect, options: dict[str, Any]) -> Iterator[Site]:
    auth = world.async_authenticator()

    class Elsewhere:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("elsewhere")(scope, receive, send)

    app = Starlette(
        routes=[
            apikey_auth.starlette.KeyManagement(at, auth, dialect),
            Route("/{rest:path}", Elsewhere()),
        ],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=CookieBackend(world.users)),
            Middleware(apikey_auth.starlette.APIKeyMiddleware, auth=auth, **options),
        ],
    )
    yield Site("starlette", world, app, asgi_caller)


@contextmanager
def flask_app(world: World, at: str, dialect: Dialect, options: dict[str, Any]) -> Iterator[Site]:
    app = flask.Flask(__name__)

    @app.before_request
    def sign_in() -> None:
        if user := named_by(flask.request.headers.get("Cookie")):
            flask.g.user = world.users[user]

    @app.errorhandler(404)
    def elsewhere(error: Any) -> Any:
        return flask.Response("elsewhere", mimetype="text/plain")

    auth = world.authenticator()
    apikey_auth.flask.APIKeyAuth(auth, app, **options)
    app.register_blueprint(apikey_auth.flask.key_management(at, auth, dialect))
    yield Site("flask", world, app, wsgi_caller)


DJANGO_MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "apikey_auth.django.middleware.APIKeyMiddleware",
]
_names = count()


@cache
def django_sign_in(owner: str) -> str:
    from django.contrib.auth.models import User

    client = Client()
    client.force_login(User.objects.get(pk=owner))
    return str(client.cookies["sessionid"].value)


def _django(handler: Any, name: str, call: Call, wrap: Callable[[Any], Any] = lambda store: store) -> Any:
    @contextmanager
    def build(world: World, at: str, dialect: Dialect, options: dict[str, Any]) -> Iterator[Site]:
        with ExitStack() as settings:
            inner = World(store=wrap(world.store), scheme=world.scheme)
            settings.enter_context(django_settings(inner, options))
            setup = conf.setup()
            setup.async_authenticator._clock = world.clock
            if not setup.is_async:
                setup.authenticator._clock = world.clock
            urls = ModuleType(f"urls_{next(_names)}")
            urls.urlpatterns = [  # type: ignore[attr-defined]
                path("", include(key_management(at, dialect))),
                path("form", lambda request: HttpResponse(request.method)),
                re_path("(?s:.*)", csrf_exempt(lambda _: HttpResponse("elsewhere", content_type=PLAIN))),
            ]
            settings.enter_context(override_settings(ROOT_URLCONF=urls, MIDDLEWARE=DJANGO_MIDDLEWARE))
            yield Site(name, world, handler(), call, django_sign_in)

    return build


MOUNTS: dict[str, Any] = {
    "wsgi": plain_wsgi,
    "asgi": plain_asgi,
    "starlette": starlette,
    "flask": flask_app,
    "django": _django(WSGIHandler, "django", wsgi_caller),
    "django-asgi": _django(ASGIHandler, "django-asgi", asgi_caller),
    "django-async-store": _django(ASGIHandler, "django-async-store", asgi_caller, Inline),
}
