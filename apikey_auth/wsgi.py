"""Any WSGI application (PEP 3333).

The identity is ``environ["apikey_auth.identity"]``, its owner ``REMOTE_USER``. A ``Refusal`` that the
application raises before it returns is answered as one of the middleware's own.
"""

import sys
from collections.abc import Callable, Iterable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from .authenticate import Authenticator, check_authenticator
from .errors import ConfigurationError, Refusal
from .policy import IDENTITY, VISIT, Options, Policy, Visit, require
from .responses import GUARDED, Response

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["APIKeyMiddleware", "require"]

Headers: TypeAlias = "list[tuple[str, str]]"

# Where servers keep the target of the request besides QUERY_STRING.
_TARGETS = ("REQUEST_URI", "RAW_URI")


class APIKeyMiddleware:
    """Puts the identity of a request's key on the environ, or answers in the application's place.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def __init__(
        self, application: "WSGIApplication", auth: Authenticator[object], **options: Unpack[Options]
    ) -> None:
        check_authenticator(auth, Authenticator)
        if iscoroutinefunction(application) or iscoroutinefunction(getattr(application, "__call__", None)):  # noqa: B004
            raise ConfigurationError("this is an ASGI application: use apikey_auth.asgi.APIKeyMiddleware")
        self._application = application
        self._auth = auth
        self._policy = Policy(**options)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if is_admitted(environ, self._auth):
            return self._application(environ, start_response)
        visit = receive(environ, self._policy)
        self._auth.admit(visit)
        if refusal := visit.turned_away:
            return answer(visit.respond(refusal), start_response)
        identify(environ, visit)
        try:
            return self._application(environ, guarded(visit, start_response))
        except Refusal as refusal:
            return answer(visit.respond(refusal), start_response, sys.exc_info())


def is_admitted(environ: "WSGIEnvironment", auth: object) -> bool:
    """Say whether a middleware further out has asked this authenticator already, and found somebody."""
    outer = environ.get(VISIT)
    return isinstance(outer, Visit) and outer.admitted_by(auth)


def receive(environ: "WSGIEnvironment", policy: Policy) -> Visit:
    """Read a request, and cut the key out of its URL."""

    def header(name: str) -> str | None:
        value: str | None = environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        return value

    path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")
    query = environ.get("QUERY_STRING", "")
    visit = policy.visit(environ["REQUEST_METHOD"], path, header, query, environ.get("REMOTE_ADDR"))
    environ[VISIT] = visit
    if visit.credential.query != query:
        environ["QUERY_STRING"] = visit.credential.query
        for target in _TARGETS:
            if target in environ:
                environ[target] = policy.without_keys(environ[target])
    return visit


def identify(environ: "WSGIEnvironment", visit: Visit) -> None:
    """Put the identity, if there is one, where the application looks for it."""
    if visit.identity is not None:
        environ[IDENTITY] = visit.identity
        environ["REMOTE_USER"] = visit.identity.key.owner


def guarded(visit: Visit, start_response: "StartResponse") -> "StartResponse":
    """Wrap ``start_response`` so that the application's answer stays private."""

    def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
        present: dict[str, str] = {}
        for name, value in headers:
            if (lowered := name.lower()) in GUARDED:
                present[lowered] = f"{present[lowered]}, {value}" if lowered in present else value
        changes = visit.guard(present)
        replaced = {name.lower() for name in changes}
        private = [pair for pair in headers if pair[0].lower() not in replaced] + list(changes.items())
        return start_response(status, private, *((exc_info,) if exc_info else ()))

    return start


def answer(response: Response, start_response: "StartResponse", exc_info: Any = None) -> Iterable[bytes]:
    """Send a response of ours."""
    start_response(response.status_line, list(response.headers), *((exc_info,) if exc_info else ()))
    return [response.body]
