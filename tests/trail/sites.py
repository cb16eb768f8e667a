"""Applications that tell all they know and fail at every other request; each is made in its server's process.

``/fine`` answers with what the framework shows of the request, ``/broken`` raises. DATABASE is the URL of
their keys. With MASK_LOGS the filter is installed, in the one line that is all it takes; ``/unmask`` takes it
away again.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from apikey_auth import AsyncAuthenticator, Authenticator, KeyScheme
from apikey_auth.logs import KeyFilter, install
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore

PEPPER = "a pepper that no page shows"
SEAL_KEY = "nobody sees this seal key"
SCHEME = KeyScheme(prefix="acme", peppers=[PEPPER], seal_keys=[SEAL_KEY])
TOLD_BY_THE_CLIENT = {"HTTP_APIKEY", "HTTP_REFERER"}  # which an application that shows them gives away itself

if os.environ.get("MASK_LOGS"):
    install(SCHEME)


class Broken(Exception):
    """What the applications raise."""


def unmasked() -> str:
    logging.setLogRecordFactory(logging.LogRecord)
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            handler.filters = [each for each in handler.filters if not isinstance(each, KeyFilter)]
    return "unmasked"


def _authenticator() -> Authenticator[Any]:
    return Authenticator(SQLKeyStore(os.environ["DATABASE"]), SCHEME)


def shown_of(environ: dict[str, Any]) -> str:
    return repr({name: value for name, value in environ.items() if name not in TOLD_BY_THE_CLIENT})


def plain_asgi() -> Any:
    from apikey_auth.asgi import APIKeyMiddleware

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/broken":
            raise Broken(f"at {scope['path']}?{scope['query_string'].decode()}")
        shown = {name: value for name, value in scope.items() if name != "headers"}
        body = unmasked() if scope["path"] == "/unmask" else repr(shown)
        headers = [(b"content-type", b"text/plain"), (b"x-query", scope["query_string"])]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    store = AsyncSQLKeyStore(os.environ["DATABASE"])
    return APIKeyMiddleware(app, AsyncAuthenticator(store, SCHEME))


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    from apikey_auth.starlette import APIKeyMiddleware

    def fine(request: Request) -> Response:
        return PlainTextResponse(f"{request.url} {request.user!r} {request.auth!r} {request.query_params!r}")

    def broken(request: Request) -> Response:
        raise Broken(f"at {request.url}")

    auth = AsyncAuthenticator(AsyncSQLKeyStore(os.environ["DATABASE"]), SCHEME)
    return Starlette(
        debug=True,
        routes=[Route("/fine", fine), Route("/broken", broken)],
        middleware=[Middleware(APIKeyMiddleware, auth=auth)],
    )


def plain_wsgi() -> Any:
    from apikey_auth.wsgi import APIKeyMiddleware

    def app(environ: Any, start_response: Any) -> list[bytes]:
        query = environ["QUERY_STRING"]
        if environ["PATH_INFO"] == "/broken":
            raise Broken(f"at {environ['PATH_INFO']}?{query}")
        body = unmasked() if environ["PATH_INFO"] == "/unmask" else shown_of(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Query", query)])
        return [body.encode()]

    return APIKeyMiddleware(app, _authenticator())


def cacheable() -> Any:
    """Make an application that tells who asks, and says of every answer that any cache may keep it."""
    from apikey_auth.wsgi import APIKeyMiddleware

    def app(environ: Any, start_response: Any) -> list[bytes]:
        headers = [("Content-Type", "text/plain"), ("Cache-Control", "public, max-age=600, s-maxage=600")]
        start_response("200 OK", headers)
        return [environ.get("REMOTE_USER", "a visitor").encode()]

    return APIKeyMiddleware(app, _authenticator())


def flask() -> Any:
    from flask import Flask, g, request

    from apikey_auth.flask import APIKeyAuth

    app = Flask(__name__)
    APIKeyAuth(_authenticator(), app)

    @app.get("/fine")
    def fine() -> Any:
        return f"{request.url} {g.user!r} {shown_of(request.environ)}", {"Content-Type": "text/plain"}

    @app.get("/broken")
    def broken() -> str:
        raise Broken(f"at {request.url}")

    @app.get("/unmask")
    def unmask() -> str:
        return unmasked()

    return app


def django() -> Any:
    return _django("django.core.wsgi.get_wsgi_application")


def django_asgi() -> Any:
    return _django("django.core.asgi.get_asgi_application")


def _django(application: str) -> Any:
    from django.conf import settings
    from django.utils.module_loading import import_string

    settings.configure(
        DEBUG=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "django.db"}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "apikey_auth.django"],
        MIDDLEWARE=["apikey_auth.django.middleware.APIKeyMiddleware"],
        ROOT_URLCONF="trail.pages",
        SECRET_KEY="told to nobody",
        ALLOWED_HOSTS=["127.0.0.1"],
        APIKEY_AUTH={
            "PREFIX": "acme",
            "STORE": os.environ["DATABASE"],
            "PEPPERS": [PEPPER],
            "SEAL_KEYS": [SEAL_KEY],
        },
        WSGI_APPLICATION=None,
    )
    made = import_string(application)()
    with ThreadPoolExecutor(1) as thread:  # an ASGI server makes the application within its event loop
        thread.submit(_make_user).result()
    return made


def _make_user() -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0)
    User.objects.create(pk=1, username="ada")
    connections.close_all()


def runserver(port: int) -> None:
    from django.core.management import call_command

    django()
    call_command("runserver", f"127.0.0.1:{port}", use_reloader=False)


class MaskingHandler(WSGIRequestHandler):
    """Logs as wsgiref does, past ``logging``, with the keys masked."""

    keys = KeyFilter("acme")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        super().log_message("%s", self.keys.mask(format % args))


def wsgiref(port: int) -> None:
    handler = MaskingHandler if os.environ.get("MASK_LOGS") else WSGIRequestHandler
    with make_server("127.0.0.1", port, plain_wsgi(), handler_class=handler) as server:
        server.serve_forever()
