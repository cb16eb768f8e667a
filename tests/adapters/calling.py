"""Calls WSGI and ASGI applications with requests no client would let us send, byte for byte."""

import asyncio
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes


@dataclass(frozen=True)
class Request:
    """A request as it comes over the wire; ``headers`` keeps order and repetitions."""

    target: str = "/me"
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "GET"
    client: str | None = "127.0.0.1"
    body: bytes = b""
    mount: str = ""
    scheme: str = "http"

    def with_header(self, name: str, value: str) -> "Request":
        return replace(self, headers=(*self.headers, (name, value)))

    @property
    def path(self) -> bytes:
        return unquote_to_bytes(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


@dataclass(frozen=True)
class Answer:
    """What came back; header names in lower case, each line of a repeated header on its own."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    holder: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        return ", ".join(values) if values else None


def call_wsgi(application: Any, request: Request) -> Answer:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": request.mount,
        "PATH_INFO": request.path.decode("latin-1"),
        "QUERY_STRING": request.query,
        "RAW_URI": request.target,
        "REQUEST_URI": request.target,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(request.body)),
        "REMOTE_ADDR": request.client or "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers:
        key = f"HTTP_{name.upper().replace('-', '_')}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        assert exc_info or not started
        started[:] = [(status, headers)]
        return lambda data: None

    answer = application(environ, start_response)
    try:
        body = b"".join(answer)
    finally:
        getattr(answer, "close", lambda: None)()
    ((status, headers),) = started
    code = int(status.split(" ")[0])
    assert status.upper() == f"{code} {HTTPStatus(code).phrase}".upper()
    assert all(isinstance(text, str) for pair in headers for text in pair)
    return Answer(code, tuple((name.lower(), value) for name, value in headers), body, environ)


def call_asgi(application: Any, request: Request) -> Answer:
    return asyncio.run(acall_asgi(application, request))


async def acall_asgi(application: Any, request: Request) -> Answer:
    path = request.path.decode("utf-8", "replace")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "root_path": request.mount,
        "path": request.mount + path,
        "raw_path": request.target.encode("latin-1"),  # as some servers have it
        "query_string": request.query.encode("latin-1"),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers],
        "client": (request.client, 1234) if request.client else None,
        "server": ("testserver", 80),
        "state": {},
        "extensions": {},
    }
    incoming = [{"type": "http.request", "body": request.body, "more_body": False}]
    forever = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        if not incoming:
            await forever.wait()  # the client stays connected
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)
    start, *parts = sent
    assert start["type"] == "http.response.start"
    headers = tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in start["headers"]
    )
    body = b"".join(part.get("body", b"") for part in parts)
    return Answer(start["status"], headers, body, scope)
