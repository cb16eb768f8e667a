"""One application in every framework: bare, and with the middleware that one would write by hand.

That is a header, SHA-256, a dict, compare_digest, a user on the request, and a 401 for a key that is not in
the dict; no headers on answers, no URL, no expiry, no revocation, no scopes. It reads the header in the
quickest way that the framework offers. Imports nothing of the library: it also runs beside its peers, in
their own environment.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import django
import flask
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import override_settings
from django.urls import path
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

HELLO = "hello"
REFUSAL = {"detail": "This is nobody's API key."}
_REFUSAL = json.dumps(REFUSAL).encode()


@dataclass
class User:
    id: str
    is_active: bool = True
    is_authenticated: bool = True


USER = User("1")


class Keys:
    """What the hand-written middleware knows: users by the digest of their key."""

    def __init__(self, text: str, user: object = USER) -> None:
        digest = sha256(text.encode()).digest()
        self._known = {digest: (digest, user)}

    def find(self, text: bytes) -> Any:
        """Give the user whose key this is, None for nobody's."""
        digest = sha256(text).digest()
        known = self._known.get(digest)
        return known[1] if known is not None and compare_digest(known[0], digest) else None


# ASGI


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": HELLO.encode()})


class ASGIByHand:
    def __init__(self, app: Any, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        text = dict(scope["headers"]).get(b"apikey")
        if text is not None:
            user = self.keys.find(text)
            if user is None:
                length = str(len(_REFUSAL)).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", length)]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": _REFUSAL})
                return
            scope["user"] = user
        await self.app(scope, receive, send)


# Starlette


async def _hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(HELLO)


def starlette(*middleware: Middleware) -> Starlette:
    return Starlette(routes=[Route("/", _hello)], middleware=middleware)


class StarletteByHand:
    def __init__(self, app: Any, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            text = dict(scope["headers"]).get(b"apikey")
            if text is not None:
                user = self.keys.find(text)
                if user is None:
                    await JSONResponse(REFUSAL, 401)(scope, receive, send)
                    return
                scope["user"] = user
        await self.app(scope, receive, send)


class OverADict(AuthenticationBackend):
    """For Starlette's own AuthenticationMiddleware."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        text = conn.headers.get("apikey")
        if text is None:
            return None
        user = self.keys.find(text.encode("latin-1"))
        if user is None:
            raise AuthenticationError("This is nobody's API key.")
        return AuthCredentials(["authenticated"]), user


def starlettes_own(keys: Keys) -> Starlette:
    return starlette(Middleware(AuthenticationMiddleware, backend=OverADict(keys)))


# WSGI


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [HELLO.encode()]


class WSGIByHand:
    def __init__(self, application: Any, keys: Keys) -> None:
        self.application = application
        self.keys = keys

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        text = environ.get("HTTP_APIKEY")
        if text is not None:
            user = self.keys.find(text.encode("latin-1"))
            if user is None:
                headers = [("Content-Type", "application/json"), ("Content-Length", str(len(_REFUSAL)))]
                start_response("401 Unauthorized", headers)
                return [_REFUSAL]
            environ["user"] = user
        answer: Iterable[bytes] = self.application(environ, start_response)
        return answer


# Flask


def flask_app() -> flask.Flask:
    app = flask.Flask("no_package")
    app.add_url_rule("/", view_func=lambda: HELLO, endpoint="hello")
    return app


def flask_by_hand(keys: Keys) -> flask.Flask:
    app = flask_app()

    @app.before_request
    def authenticate() -> Any:
        text = flask.request.environ.get("HTTP_APIKEY")
        if text is not None:
            user = keys.find(text.encode("latin-1"))
            if user is None:
                return REFUSAL, 401
            flask.g.user = user
        return None

    return app


# Django, sync

FindUser = Callable[[bytes], Any]


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse(HELLO)


urlpatterns = [path("", hello)]


def set_up_django(*applications: str, **more: Any) -> None:
    """Make this process a Django project with its database in memory; once."""
    settings.configure(
        SECRET_KEY="only for benchmarks",
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", *applications],
        MIDDLEWARE=[],
        USE_TZ=True,
        LOGGING={
            "version": 1,
            "loggers": {"django.request": {"level": "ERROR"}},
        },  # refusals are no news here
        **{"ROOT_URLCONF": __name__, **more},
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def django_handler(*middleware: str) -> WSGIHandler:
    """Make a handler of its own, which asks the settings for the middleware only now."""
    with override_settings(MIDDLEWARE=middleware):
        return WSGIHandler()


def django_by_hand(find_user: FindUser) -> WSGIHandler:
    DjangoByHand.find_user = staticmethod(find_user)
    return django_handler(f"{__name__}.DjangoByHand")


class DjangoByHand:
    find_user: FindUser

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.find = type(self).find_user

    def __call__(self, request: HttpRequest) -> HttpResponse:
        text = request.META.get("HTTP_APIKEY")
        if text is not None:
            user = self.find(text.encode("latin-1"))
            if user is None:
                return JsonResponse(REFUSAL, status=401)
            request.user = user
        return self.get_response(request)
