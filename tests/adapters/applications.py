"""One application in every framework, with the same routes, so that one table holds for all of them.

``/public`` says who asks and which query string the application saw, ``/me`` needs a key, ``/reports``
the scope ``reports:read``, ``/headers`` answers with the headers it is asked for, ``/error`` raises.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import fastapi
import flask
from calling import Answer, Request, call_asgi, call_wsgi
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import apikey_auth.asgi
import apikey_auth.fastapi
import apikey_auth.flask
import apikey_auth.starlette
import apikey_auth.wsgi
from apikey_auth import AsyncAuthenticator, Authenticator, KeyManager, KeyScheme, MemoryKeyStore
from apikey_auth.django import conf
from apikey_auth.stores.bridges import Inline

Send = Callable[[Request], Answer]


@dataclass
class User:
    name: str
    is_active: bool = True
    is_authenticated: bool = True


@dataclass
class World:
    """The keys and users behind every application; the clock stands still until it is moved."""

    store: Any = field(default_factory=MemoryKeyStore)
    scheme: KeyScheme = field(default_factory=lambda: KeyScheme(prefix="acme"))
    now: datetime = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
    users: dict[str, User] = field(
        default_factory=lambda: {"1": User("ada"), "2": User("carl", is_active=False)}
    )

    def clock(self) -> datetime:
        return self.now

    @property
    def keys(self) -> KeyManager:
        return KeyManager(self.store, self.scheme, clock=self.clock)

    def authenticator(self) -> Authenticator[User]:
        return Authenticator(self.store, self.scheme, load_user=self.users.get, clock=self.clock)

    def async_authenticator(self) -> AsyncAuthenticator[User]:
        async def load_user(owner: str) -> User | None:
            return self.users.get(owner)

        return AsyncAuthenticator(Inline(self.store), self.scheme, load_user=load_user, clock=self.clock)


def wanted_headers(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name[4:], value) for name, value in pairs if name.lower().startswith("set-")]


def plain_wsgi(world: World, **options: Any) -> Send:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        path, headers = environ["PATH_INFO"], [("Content-Type", "application/json")]
        identity = environ.get("apikey_auth.identity")
        body: dict[str, Any] = {"user": identity.user.name if identity else None}
        if path == "/me":
            body["key_id"] = apikey_auth.wsgi.require(environ).key.id
        elif path == "/reports":
            body["key_id"] = apikey_auth.wsgi.require(environ, "reports:read").key.id
        elif path == "/headers":
            pairs = (
                (name[5:].replace("_", "-"), str(environ[name])) for name in environ if name[:5] == "HTTP_"
            )
            headers += wanted_headers(pairs)
        elif path == "/error":
            raise RuntimeError("an application's own error")
        else:
            body["query"] = environ["QUERY_STRING"]
        start_response("200 OK", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else json.dumps(body).encode()]

    wrapped = apikey_auth.wsgi.APIKeyMiddleware(application, world.authenticator(), **options)
    return lambda request: call_wsgi(wrapped, request)


def plain_asgi(world: World, **options: Any) -> Send:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        path, headers = scope["path"], [(b"content-type", b"application/json")]
        identity = scope.get("apikey_auth.identity")
        body: dict[str, Any] = {"user": identity.user.name if identity else None}
        if path == "/me":
            body["key_id"] = apikey_auth.asgi.require(scope).key.id
        elif path == "/reports":
            body["key_id"] = apikey_auth.asgi.require(scope, "reports:read").key.id
        elif path == "/headers":
            pairs = ((name.decode(), value.decode()) for name, value in scope["headers"])
            headers += [(name.lower().encode(), value.encode()) for name, value in wanted_headers(pairs)]
        elif path == "/error":
            raise RuntimeError("an application's own error")
        else:
            body["query"] = scope["query_string"].decode()
        data = b"" if scope["method"] == "HEAD" else json.dumps(body).encode()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    wrapped = apikey_auth.asgi.APIKeyMiddleware(application, world.async_authenticator(), **options)
    return lambda request: call_asgi(wrapped, request)


def starlette(world: World, **options: Any) -> Send:
    def name(request: StarletteRequest) -> str | None:
        return request.user.name if request.user.is_authenticated else None

    async def public(request: StarletteRequest) -> Response:
        return JSONResponse({"user": name(request), "query": request.url.query})

    @apikey_auth.starlette.require_api_key()
    async def me(request: StarletteRequest) -> Response:
        return JSONResponse({"user": name(request), "key_id": request.scope["apikey_auth.identity"].key.id})

    @apikey_auth.starlette.require_api_key("reports:read")
    def reports(request: StarletteRequest) -> Response:
        return JSONResponse({"user": name(request), "key_id": request.scope["apikey_auth.identity"].key.id})

    async def headers(request: StarletteRequest) -> Response:
        response = Response()
        for key, value in wanted_headers(request.headers.items()):
            response.headers.append(key, value)
        return response

    async def error(request: StarletteRequest) -> Response:
        raise RuntimeError("an application's own error")

    methods = ["GET", "OPTIONS"]
    endpoints = {"/public": public, "/me": me, "/reports": reports, "/headers": headers, "/error": error}
    wrapped = Starlette(
        routes=[Route(path, endpoint, methods=methods) for path, endpoint in endpoints.items()],
        middleware=[
            Middleware(apikey_auth.starlette.APIKeyMiddleware, auth=world.async_authenticator(), **options)
        ],
    )
    return lambda request: call_asgi(wrapped, request)


def fastapi_app(world: World, **options: Any) -> Send:
    app = fastapi.FastAPI()
    api_key = apikey_auth.fastapi.APIKeyAuth(world.async_authenticator(), app, **options)
    visitor, caller = fastapi.Security(api_key.optional), fastapi.Security(api_key)
    reader = fastapi.Security(api_key, scopes=["reports:read"])

    async def public(request: StarletteRequest, identity: Any = visitor) -> Any:
        return {"user": identity and identity.user.name, "query": request.url.query}

    async def me(identity: Any = caller) -> Any:
        return {"user": identity.user.name, "key_id": identity.key.id}

    def reports(identity: Any = reader) -> Any:
        return {"user": identity.user.name, "key_id": identity.key.id}

    async def headers(request: StarletteRequest) -> Response:
        response = Response()
        for key, value in wanted_headers(request.headers.items()):
            response.headers.append(key, value)
        return response

    async def error() -> None:
        raise RuntimeError("an application's own error")

    endpoints = {"/public": public, "/me": me, "/reports": reports, "/headers": headers, "/error": error}
    for path, endpoint in endpoints.items():
        app.api_route(path, methods=["GET", "HEAD", "OPTIONS"])(endpoint)
    return lambda request: call_asgi(app, request)


def flask_app(world: World, **options: Any) -> Send:
    app = flask.Flask("no_package")
    auth = apikey_auth.flask.APIKeyAuth(world.authenticator(), app, **options)
    current = apikey_auth.flask.current_identity

    def name() -> str | None:
        return flask.g.user.name if flask.g.user else None

    @app.route("/public", methods=["GET", "OPTIONS"])
    def public() -> Any:
        return flask.jsonify({"user": name(), "query": flask.request.query_string.decode()})

    @app.route("/me", methods=["GET", "OPTIONS"])
    @auth.required()
    def me() -> Any:
        return flask.jsonify({"user": name(), "key_id": current.key.id})

    @app.route("/reports")
    @auth.required("reports:read")
    def reports() -> Any:
        return flask.jsonify({"user": name(), "key_id": current.key.id})

    @app.route("/headers")
    def headers() -> Any:
        response = flask.Response()
        for key, value in wanted_headers(flask.request.headers.items()):
            response.headers.add(key, value)
        return response

    @app.route("/error")
    def error() -> Any:
        raise RuntimeError("an application's own error")

    return lambda request: call_wsgi(app, request)


def django_settings(world: World, options: dict[str, Any]) -> Any:
    setting = {"STORE": world.store, "PREFIX": world.scheme.prefix, "PEPPERS": world.scheme.peppers}
    return override_settings(APIKEY_AUTH=setting | {key.upper(): value for key, value in options.items()})


def django_wsgi(world: World, **options: Any) -> Send:
    return _django(world, options, WSGIHandler, call_wsgi)


def django_asgi(world: World, **options: Any) -> Send:
    return _django(world, options, ASGIHandler, call_asgi)


def _django(world: World, options: dict[str, Any], handler: Any, call: Any) -> Send:
    def send(request: Request) -> Answer:
        with django_settings(world, options):
            setup = conf.setup()
            setup.authenticator._clock = setup.async_authenticator._clock = world.clock
            return call(handler(), request)

    return send


APPLICATIONS: dict[str, Callable[..., Send]] = {
    "wsgi": plain_wsgi,
    "asgi": plain_asgi,
    "starlette": starlette,
    "fastapi": fastapi_app,
    "flask": flask_app,
    "django": django_wsgi,
    "django-asgi": django_asgi,
}
