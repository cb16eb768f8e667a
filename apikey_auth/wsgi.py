"""Any WSGI application (PEP 3333).

The identity is ``environ["apikey_auth.identity"]``, its owner ``REMOTE_USER``. A ``Refusal`` that the
application raises before it returns is answered as one of the middleware's own.
"""

import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Unpack

from .authenticate import AsyncAuthenticator, Authenticator, check_authenticator
from .cache import Verdict
from .credentials import HeaderReader, Query, read
from .errors import ConfigurationError, Refusal
from .management.handler import MAX_BODY, Dialect, Request, caller_of, mount_pattern, play
from .policy import (
    IDENTITY,
    VISIT,
    Options,
    Policy,
    Recognition,
    Visit,
    outer_visit,
    require,
    visit_of,
)
from .responses import GUARDED, GUARDED_LENGTHS, Response, guard

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["APIKeyMiddleware", "KeyManagement", "mount", "require"]

Headers: TypeAlias = "list[tuple[str, str]]"

# Where servers keep the target of the request besides QUERY_STRING.
_TARGETS = ("REQUEST_URI", "RAW_URI")


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


class APIKeyMiddleware:
    """Puts the identity of a request's key on the environ, or answers in the application's place.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def __init__(
        self, application: "WSGIApplication", auth: Authenticator[object], **options: Unpack[Options]
    ) -> None:
        self._policy = Policy(**options)
        check_authenticator(auth, Authenticator, self._policy)
        if iscoroutinefunction(application) or iscoroutinefunction(getattr(application, "__call__", None)):  # noqa: B004
            raise ConfigurationError("this is an ASGI application: use apikey_auth.asgi.APIKeyMiddleware")
        self._application = application
        self._auth = auth

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        visit = receive(environ, self._policy, self._auth)
        admit(visit, self._auth)
        if visit.refusal is not None and (refusal := visit.turned_away):
            return answer(visit.respond(refusal), start_response)
        identify(environ, visit)
        try:
            return self._application(environ, guarded(visit, start_response))
        except Refusal as refusal:
            # PEP 3333: only where an answer was begun, which this one replaces
            return answer(visit.respond(refusal), start_response, sys.exc_info() if visit.answered else None)


class KeyManagement:
    """A WSGI application that manages keys in a dialect; it stands behind ``APIKeyMiddleware``.

    ``user`` finds the application's own user in the environ, by default the server's ``REMOTE_USER``.
    """

    def __init__(
        self,
        auth: Authenticator[object],
        dialect: Dialect,
        *,
        user: Callable[["WSGIEnvironment"], object] = lambda environ: environ.get("REMOTE_USER"),
    ) -> None:
        check_authenticator(auth, Authenticator)
        self.dialect = dialect
        self._keys = auth.keys
        self._user = user

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return answer(self.respond(environ, path_of(environ), mount_of(environ)), start_response)

    def respond(self, environ: "WSGIEnvironment", path: str, mount: str) -> Response:
        """Answer for a path below a mount point."""
        visit = visit_of(environ)
        user = None if visit.identity is not None else self._user(environ)
        request = Request(
            environ["REQUEST_METHOD"],
            path,
            mount,
            environ.get("QUERY_STRING", ""),
            header_reader(environ),
            read_body(environ, environ["wsgi.input"]),
            caller_of(visit, user, self.dialect),
            visit,
        )
        return play(self.dialect.respond(request, self._keys))


def mount(application: "WSGIApplication", path: str, management: KeyManagement) -> "WSGIApplication":
    """Mount key management into an application at a path, as ``/odata.svc``; all else goes to the application."""
    pattern = mount_pattern(path, management.dialect)

    def mounted(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        match = pattern.fullmatch(path_of(environ))
        if match is None:
            return application(environ, start_response)
        prefix = mount_of(environ) + match["mount"]
        return answer(management.respond(environ, match["below"] or "", prefix), start_response)

    return mounted


def content_length(environ: "WSGIEnvironment") -> int:
    """Give the length that a request says its body has; none where it says nothing, or nonsense."""
    try:
        return int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return 0


def read_body(environ: "WSGIEnvironment", stream: Readable) -> bytes:
    """Read a request's body, one byte more than MAX_BODY at most.

    One that ends before its length is answered with too much, which no dialect takes: half a body may say
    something else than the whole.
    """
    if environ.get("wsgi.input_terminated"):  # the server ends the stream, as with a chunked body
        return stream.read(MAX_BODY + 1)
    wanted = min(content_length(environ), MAX_BODY + 1)
    body = stream.read(wanted) if wanted > 0 else b""
    return body if len(body) >= wanted else bytes(MAX_BODY + 1)


def receive(
    environ: "WSGIEnvironment",
    policy: Policy,
    auth: Authenticator[Any] | AsyncAuthenticator[Any],
    path: str | None = None,
    scheme: str | None = None,
) -> Visit:
    """Recognize a request's key, or else read the request and cut the key out of its URL.

    ``path`` and ``scheme`` are those that the framework has found, if they are not the environ's.
    """
    sent_over: str = scheme or environ.get("wsgi.url_scheme", "http")
    if (found := _recognized(environ, policy, auth, path, sent_over)) is not None:
        recognition = environ[VISIT] = _Recognition(policy, auth, found, dict(environ))
        if path is not None:
            recognition.path = path
        if policy.hide_credentials:
            _hide(environ, recognition)
        return recognition
    query = environ.get("QUERY_STRING", "")
    visit = policy.visit(
        environ["REQUEST_METHOD"],
        path_of(environ) if path is None else path,
        header_reader(environ),
        query,
        environ.get("REMOTE_ADDR"),
        outer_visit(environ),
        sent_over,
    )
    environ[VISIT] = visit
    if policy.hide_credentials:
        _hide(environ, visit)
    if visit.query != query:
        environ["QUERY_STRING"] = visit.query
        for target in _TARGETS:
            if target in environ:
                environ[target] = policy.without_keys(environ[target])
    return visit


def admit(visit: Visit, auth: Authenticator[Any]) -> None:
    """Have a visit that was received admitted, if that takes anything more."""
    if not isinstance(visit, _Recognition):
        auth.admit(visit)
    elif visit.pending is not None:
        auth.let_in(visit, visit.pending)


class _Recognition(Recognition["WSGIEnvironment"]):
    """``seen`` is the environ as it was: the application may change it."""

    def find_out(self, name: str) -> Any:
        if name == "method":
            return self.seen["REQUEST_METHOD"]
        if name == "path":
            return path_of(self.seen)
        if name == "address":
            return self.policy.address_of(self.seen.get("REMOTE_ADDR"), header_reader(self.seen))
        query = self.seen.get("QUERY_STRING", "")
        return read(self.policy.carriers, header_reader(self.seen), query) if name == "credential" else query


def _recognized(
    environ: "WSGIEnvironment",
    policy: Policy,
    auth: Authenticator[Any] | AsyncAuthenticator[Any],
    path: str | None,
    scheme: str,
) -> Verdict | Refusal | None:
    """Recognize a key that stands where keys usually do; None for any request that needs a closer look."""
    found: str | None = environ.get(policy.variable) if policy.variable else None
    if found is None or VISIT in environ or environ["REQUEST_METHOD"] == "OPTIONS":
        return None
    if policy.parameter and (query := environ.get("QUERY_STRING")):  # noqa: SIM102
        if "%" in query or policy.parameter in query.lower():
            return None
    if policy.has_exempt and policy.exempts(path_of(environ) if path is None else path):
        return None
    if policy.insecure != "allow" and not policy.is_plainly_secure(scheme):
        return None
    if policy.lead:
        if not found.startswith(policy.lead):
            return None
        found = found[len(policy.lead) :]
    return auth.recognize(found.encode("utf-8", "surrogatepass"))


def _hide(environ: "WSGIEnvironment", visit: Visit) -> None:
    """Cut keys out of the headers."""
    hidden = dict(visit.outer.hidden if visit.outer and visit.outer.hidden else {})
    for carrier in visit.policy.carriers:
        if isinstance(carrier, Query):
            continue
        variable = f"HTTP_{carrier.name.upper().replace('-', '_')}"
        if (value := environ.get(variable)) is not None and visit.policy.hides(carrier.name.lower(), value):
            hidden[carrier.name.lower()] = environ.pop(variable)
    visit.hidden = hidden


def header_reader(environ: "WSGIEnvironment") -> HeaderReader:
    """Read headers out of an environ."""

    def header(name: str) -> str | None:
        key = name.upper().replace("-", "_")
        value: str | None = environ.get(key if key == "CONTENT_TYPE" else f"HTTP_{key}")
        return value

    return header


def path_of(environ: "WSGIEnvironment") -> str:
    """Give the decoded path below the application's mount point."""
    return _decoded(environ.get("PATH_INFO", ""))


def mount_of(environ: "WSGIEnvironment") -> str:
    """Give the decoded path of the application's mount point."""
    return _decoded(environ.get("SCRIPT_NAME", ""))


def _decoded(path: str) -> str:
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def identify(environ: "WSGIEnvironment", visit: Visit) -> None:
    """Put the identity, if there is one, where the application looks for it, in the place of another's."""
    if visit.outer is not None and visit.replaced is not None:
        del environ[IDENTITY], environ["REMOTE_USER"]
    if visit.identity is not None:
        environ[IDENTITY] = visit.identity
        environ["REMOTE_USER"] = visit.identity.key.owner


def guarded(visit: Visit, start_response: "StartResponse") -> "StartResponse":
    """Wrap ``start_response`` so that the application's answer stays private."""
    return partial(_start, visit, start_response)


def _start(
    visit: Visit, start_response: "StartResponse", status: str, headers: Headers, exc_info: Any = None, /
) -> Callable[[bytes], object]:
    visit.answered = True
    if type(headers) is not list:  # as PEP 3333 has it
        headers = list(headers)
    present: dict[str, str] = {}
    for name, value in headers:
        if len(name) in GUARDED_LENGTHS and (lowered := name.lower()) in GUARDED:
            present[lowered] = f"{present[lowered]}, {value}" if lowered in present else value
    if not present:
        headers = [*headers, *_plain_guard(*visit.privacy)]
    else:
        changes = visit.guard(present)
        replaced = {name.lower() for name in changes}
        headers = [pair for pair in headers if pair[0].lower() not in replaced] + list(changes.items())
    return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)


@lru_cache
def _plain_guard(vary: str, carried: bool, in_url: bool) -> Headers:
    return list(guard(vary, carried, in_url, {}).items())


def answer(response: Response, start_response: "StartResponse", exc_info: Any = None) -> Iterable[bytes]:
    """Send a response of ours."""
    start_response(response.status_line, list(response.headers), *((exc_info,) if exc_info else ()))
    return [response.body]
