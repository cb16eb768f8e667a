"""Starting real servers as processes of their own, talking to them, and the applications they serve."""

import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apikey_auth
from apikey_auth import Authenticator, MemoryKeyStore

ROOT = Path(__file__).parents[1]
LIBRARY = Path(apikey_auth.__file__).parents[1]  # the same one that the tests import
REVOCATION_BOUND = Authenticator(MemoryKeyStore()).revocation_bound  # seconds, by default
PATIENCE = 60  # seconds for a server to start, to log, to stop; a busy machine needs some


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A running server. What it prints goes to the file ``output``."""

    process: "subprocess.Popen[bytes]"
    port: int
    output: Path

    @property
    def log(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def wait_for_log(self, text: str) -> str:
        """Wait until the server has printed a text, and give all that it printed."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} was not printed, but:\n{self.log}"
            time.sleep(0.01)
        return self.log

    def ask(self, target: str, *headers: tuple[str, str | bytes], method: str = "GET") -> Answer:
        """Send a request on a connection of its own. A header may be given twice."""
        with closing(self.connect()) as connection:
            return ask(connection, target, *headers, method=method)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def exchange(self, request: bytes) -> bytes:
        """Send bytes, and read until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def ask(
    connection: http.client.HTTPConnection,
    target: str,
    *headers: tuple[str, str | bytes],
    method: str = "GET",
) -> Answer:
    connection.putrequest(method, target)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    with connection.getresponse() as response:
        return Answer(response.status, response.headers, response.read())


def environment(**variables: str) -> dict[str, str]:
    """Make the environment of a process that imports this checkout's code."""
    path = os.pathsep.join(map(str, (LIBRARY, ROOT, ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(command: Iterable[str], port: int, output: Path, **variables: str) -> Iterator[Server]:
    """Run ``python COMMAND`` until the end of the block, from when it answers on a port."""
    with (
        output.open("wb") as log,
        subprocess.Popen(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=output.parent,
            env=environment(**variables),
        ) as process,
    ):
        server = Server(process, port, output)
        try:
            _wait_until_it_answers(server)
            yield server
        finally:
            _stop(process)
    assert "Traceback" not in server.log, server.log


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        assert server.process.poll() is None, f"the server ended:\n{server.log}"
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"the server does not answer:\n{server.log}"
            time.sleep(0.02)
        else:
            return


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def printed_keys(log: str) -> dict[str, str]:
    """Find the keys that an example printed, by user."""
    return dict(re.findall(r"^(\w+)'s key: (\S+)$", log, re.MULTILINE))


# The applications, made in the server's process. DATABASE is the URL of their keys.


def plain_asgi() -> Any:
    from apikey_auth import AsyncAuthenticator
    from apikey_auth.asgi import APIKeyMiddleware, require
    from apikey_auth.stores.sql import AsyncSQLKeyStore
    from examples import asgi_app

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            user = require(scope).user
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": f"{user.name} {scope['query_string'].decode()}"})
            await send({"type": "websocket.close"})
        else:
            await asgi_app.app(scope, receive, send)

    store = AsyncSQLKeyStore(os.environ["DATABASE"])
    return APIKeyMiddleware(app, AsyncAuthenticator(store, load_user=asgi_app.load_user))


def starlette() -> Any:
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket

    from apikey_auth.starlette import require_api_key
    from examples import quickstart

    @require_api_key()
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"{websocket.user.name} {websocket.url.query}")
        await websocket.close()

    app = quickstart.create_app(os.environ["DATABASE"])
    app.router.routes.append(WebSocketRoute("/greet", greet))
    return app


def _blocking_authenticator() -> Any:
    from apikey_auth import Authenticator
    from apikey_auth.stores.sql import SQLKeyStore
    from examples import flask_app

    auth = Authenticator(SQLKeyStore(os.environ["DATABASE"]), load_user=flask_app.load_user)
    auth.keys.list("ada")  # opens a connection, which a server that forks later must not hand on
    return auth


def plain_wsgi() -> Any:
    from apikey_auth.wsgi import APIKeyMiddleware
    from examples import wsgi_app

    return APIKeyMiddleware(wsgi_app.app, _blocking_authenticator())


def flask() -> Any:
    from examples import flask_app

    return flask_app.create_app(_blocking_authenticator())


def django() -> Any:
    from django.core.management import call_command
    from django.db import connections

    from examples import django_app

    application = django_app.create_app(os.environ["DATABASE"])
    call_command("migrate", verbosity=0)
    django_app.make_first_keys()
    connections.close_all()
    return application


@contextmanager
def store_in_django(database: Path) -> Iterator[Any]:
    """Give the store in the database of another process's Django project."""
    from django.db import connections

    from apikey_auth.django.store import DjangoKeyStore

    alias = f"example-{secrets.token_hex(4)}"  # another one each time: a connection may outlive its settings
    connections.settings[alias] = {**connections.settings["default"], "NAME": database}
    try:
        yield DjangoKeyStore(alias)
    finally:
        connections[alias].close()
        del connections[alias]
