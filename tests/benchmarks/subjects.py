"""An application under requests, in this process: no sockets. WSGI and ASGI."""

import asyncio
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import Any

from .rounds import Run

Texts = Mapping[str, Sequence[str]]
"""What keys are sent: by column, so many different ones that none is remembered."""

VALID, UNKNOWN, MALFORMED, FORGED = "valid", "unknown", "malformed", "forged"
COLUMNS = (VALID, UNKNOWN, MALFORMED, FORGED)

_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
_HEADERS = {
    "Host": "www.example.org",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": _ACCEPT,
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br",
}


@dataclass(frozen=True)
class Subject:
    """An application, and how it is sent a key: the name of a header, and the scheme before the text."""

    name: str
    application: Any
    texts: Texts
    is_asgi: bool
    path: str = "/"
    header: str = "apikey"
    scheme: str = ""

    def requests(self, column: str) -> Iterator[dict[str, Any]]:
        """Make requests without end, each anew: applications write on them."""
        make = _scope if self.is_asgi else _environ
        for text in cycle(self.texts[column]):
            yield make(self.path, {**_HEADERS, self.header: f"{self.scheme} {text}".lstrip()})

    def run(self, column: str, loop: asyncio.AbstractEventLoop) -> Run:
        """Give what times calls with a column's keys. Raises AssertionError for one that answers wrongly."""
        requests = self.requests(column)
        if not self.is_asgi:
            check(self, column, status_of_wsgi(self.application, next(requests)))
            return lambda count: _time_wsgi(self.application, list(islice(requests, count)))
        check(self, column, loop.run_until_complete(status_of_asgi(self.application, next(requests))))
        return lambda count: loop.run_until_complete(
            _time_asgi(self.application, list(islice(requests, count)))
        )


def check(subject: Subject, column: str, status: int) -> None:
    """Raise AssertionError for a subject that lets the wrong keys in, or fails."""
    expected = (200,) if column == VALID else (400, 401, 403)
    assert status in expected, f"{subject.name} answers {status} to a key that is {column}"


def _environ(path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    sent = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "RAW_URI": path,
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "51234",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "benchmark",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        **sent,
    }


def _scope(path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 51234),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }


def status_of_wsgi(application: Any, environ: dict[str, Any]) -> int:
    """Send one request, and give the status of its answer."""
    statuses: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], None]:
        statuses.append(status)
        return lambda data: None

    _exhaust(application(environ, start_response))
    return int(statuses[-1].split(" ")[0])


async def status_of_asgi(application: Any, scope: dict[str, Any]) -> int:
    """Send one request, and give the status of its answer."""
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await application(scope, _receive, send)
    return statuses[-1]


def _time_wsgi(application: Any, environs: Sequence[dict[str, Any]]) -> float:
    start = perf_counter()
    for environ in environs:
        _exhaust(application(environ, _start_response))
    return perf_counter() - start


async def _time_asgi(application: Any, scopes: Sequence[dict[str, Any]]) -> float:
    start = perf_counter()
    for scope in scopes:
        await application(scope, _receive, _send)
    return perf_counter() - start


def _exhaust(answer: Any) -> None:
    b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()


def _start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], None]:
    return _write


def _write(data: bytes) -> None: ...


async def _receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None: ...
