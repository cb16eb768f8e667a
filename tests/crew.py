"""An application in several worker processes, of which a test chooses the one that answers."""

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from serving import PATIENCE, Answer, Server, free_port, running

MAX_STALENESS = 0.5  # seconds

# Asking


@dataclass(frozen=True)
class Asked:
    """A request that a worker answered, and when it was sent."""

    worker: int
    started: float
    answer: Answer

    @property
    def entered(self) -> bool:
        return self.answer.status == 200

    @property
    def code(self) -> str:
        """Say "in", or the code of the refusal."""
        return "in" if self.entered else str(self.answer.json["code"])


@dataclass(frozen=True)
class Crew:
    """A running server, and the ids of the worker processes that answer its requests."""

    server: Server
    workers: tuple[int, ...]

    def ask(self, worker: int, target: str, text: str = "", method: str = "GET") -> Asked:
        """Send a request until that worker gets it; to any other it is nothing."""
        deadline = monotonic() + PATIENCE
        headers = [("worker", str(worker)), ("apikey", text)]
        while True:
            started = monotonic()
            answer = self.server.ask(target, *headers, method=method)
            assert answer.status < 500, self.server.log
            if answer.status != 421:
                assert answer.headers["Worker"] == str(worker)
                return Asked(worker, started, answer)
            assert monotonic() < deadline, f"the worker {worker} is never given a request"
            time.sleep(0.001)

    def use(self, worker: int, text: str) -> Asked:
        return self.ask(worker, "/use", text)

    def state(self, worker: int) -> Any:
        return self.ask(worker, "/state").answer.json

    def warm(self, worker: int, text: str) -> None:
        """Use a key until a worker has it in its cache, and lets it in without a call of its store."""
        assert self.use(worker, text).code == "in"
        reads = self.state(worker)["calls"].get("get", 0)
        assert self.use(worker, text).code == "in"
        assert self.state(worker)["calls"].get("get", 0) == reads

    def revoke(self, worker: int, key_id: str) -> float:
        """Revoke a key through a worker, and tell when that one's answer was here."""
        assert self.ask(worker, f"/revoke/{key_id}", method="POST").answer.status == 200
        return monotonic()

    @property
    def bound(self) -> float:
        """``auth.revocation_bound``, as the application has it."""
        (bound,) = {self.state(worker)["bound"] for worker in self.workers}
        return float(bound)


@contextmanager
def working(command: str, number: int, folder: Path, **variables: str) -> Iterator[Crew]:
    """Run a server until the end of the block, from when all of its workers answer."""
    port = free_port()
    words = command.replace("PORT", str(port)).split()
    with running(words, port, folder / "output.txt", **variables) as server:
        yield Crew(server, _workers(server, number))


def _workers(server: Server, number: int) -> tuple[int, ...]:
    found = set[int]()
    deadline = monotonic() + PATIENCE
    while len(found) < number:
        assert monotonic() < deadline, f"of {number} workers answer {found}:\n{server.log}"
        with ThreadPoolExecutor(number) as threads:
            answers = list(threads.map(lambda _: server.ask("/state"), range(number)))
        found |= {int(answer.headers["Worker"]) for answer in answers}
    return tuple(sorted(found))


# The applications, made in each worker. DATABASE is the URL of their keys.


@dataclass
class Desk:
    """What one process tells of itself, and how its store may be troubled."""

    auth: Any
    store: Any
    arrived: int = 0  # requests with a key

    @property
    def state(self) -> dict[str, Any]:
        return {
            "bound": self.auth.revocation_bound,
            "calls": self.store.calls,
            "arrived": self.arrived,
            "waiting": self.store.waiting,
        }

    def trouble(self, path: str) -> None:
        if path.startswith("/hang/"):
            self.store.hang(path.removeprefix("/hang/"))
        elif path == "/heal":
            self.store.heal()


def _is_for(worker: str) -> bool:
    return worker in ("", str(os.getpid()))


def wsgi() -> Any:
    from apikey_auth import Authenticator
    from apikey_auth.stores.sql import SQLKeyStore
    from apikey_auth.testing import UnreliableStore
    from apikey_auth.wsgi import APIKeyMiddleware

    store = UnreliableStore(SQLKeyStore(os.environ["DATABASE"]))
    auth = Authenticator(store, max_staleness=MAX_STALENESS)
    auth.keys.list("u1")  # opens a connection, which a server that forks later must not hand on
    desk = Desk(auth, store)

    def use(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"worker": os.getpid()}).encode()]

    guarded = APIKeyMiddleware(use, auth, required=True)

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        def named(status: str, headers: Any, *more: Any) -> Any:
            return start_response(status, [*headers, ("Worker", str(os.getpid()))], *more)

        path = environ["PATH_INFO"]
        if not _is_for(environ.get("HTTP_WORKER", "")):
            named("421 Misdirected Request", [("Content-Length", "0")])
            return []
        if path == "/use":
            desk.arrived += 1
            return guarded(environ, named)
        if path.startswith("/revoke/"):
            auth.keys.revoke(path.removeprefix("/revoke/"))
        desk.trouble(path)
        named("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(desk.state).encode()]

    return application


def asgi() -> Any:
    from apikey_auth import AsyncAuthenticator
    from apikey_auth.asgi import APIKeyMiddleware
    from apikey_auth.stores.sql import AsyncSQLKeyStore
    from apikey_auth.testing import UnreliableStore

    store = UnreliableStore(AsyncSQLKeyStore(os.environ["DATABASE"]))
    auth = AsyncAuthenticator(store, max_staleness=MAX_STALENESS)
    desk = Desk(auth, store)

    async def answer(send: Callable[[Any], Awaitable[None]], status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def use(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                await send({"type": f"lifespan.{step}.complete"})
            return
        await answer(send, 200, json.dumps({"worker": os.getpid()}).encode())

    guarded = APIKeyMiddleware(use, auth, required=True)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"worker", b"%d" % os.getpid())]
            await send(message)

        if scope["type"] == "lifespan":
            await guarded(scope, receive, send)
            return
        path = scope["path"]
        if not _is_for(dict(scope["headers"]).get(b"worker", b"").decode()):
            await answer(named, 421, b"")
        elif path == "/use":
            desk.arrived += 1
            await guarded(scope, receive, named)
        else:
            if path.startswith("/revoke/"):
                await auth.keys.revoke(path.removeprefix("/revoke/"))
            desk.trouble(path)
            await answer(named, 200, json.dumps(desk.state).encode())

    return application
