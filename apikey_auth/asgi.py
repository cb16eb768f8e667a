"""Any ASGI application (ASGI 3): http and websocket are checked, lifespan passes.

The identity is ``scope["apikey_auth.identity"]``; ``scope["user"]`` and ``scope["auth"]`` are set as
Starlette's own authentication sets them. A ``Refusal`` that the application raises before it answers is
answered as one of the middleware's own.
"""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Unpack

from .authenticate import AsyncAuthenticator, check_authenticator
from .credentials import HeaderReader
from .errors import ConfigurationError, Refusal
from .management.handler import MAX_BODY, Dialect, Request, aplay, caller_of, mount_pattern
from .policy import IDENTITY, VISIT, Options, Policy, Visit, outer_visit, require, visit_of
from .responses import GUARDED, Response

__all__ = ["APIKeyMiddleware", "KeyManagement", "mount", "require"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_GUARDED = {name.encode("ascii") for name in GUARDED}
_DENIAL = "websocket.http.response"
_POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1


class EveryScope(list[str]):
    """The scopes of a key that may do all that its owner may: it contains every scope."""

    def __contains__(self, scope: object) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Permissions:
    """``scope["auth"]``: the scopes of the key, and ``authenticated``."""

    scopes: Sequence[str]


def scopes_of(visit: Visit) -> list[str]:
    """List the scopes that a visit's key has, as Starlette's ``requires`` asks for them."""
    if visit.identity is None:
        return []
    scopes = visit.identity.scopes
    return EveryScope(["authenticated"]) if scopes is None else ["authenticated", *scopes]


class APIKeyMiddleware:
    """Puts the identity of a request's key on the scope, or answers in the application's place.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def __init__(self, app: ASGIApp, auth: AsyncAuthenticator[object], **options: Unpack[Options]) -> None:
        check_authenticator(auth, AsyncAuthenticator)
        self._app = app
        self._auth = auth
        self._policy = Policy(**options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ConfigurationError(f"no key can be looked for in a scope of the type {scope['type']!r}")
        scope["headers"] = list(scope["headers"])  # an iterable, by the specification, that is read twice
        visit = _receive(scope, self._policy)
        await self._auth.admit(visit)
        if refusal := visit.turned_away:
            await _answer(visit.respond(refusal), scope, send)
            return
        _identify(scope, visit)
        guarded = _GuardedSend(visit, send)
        try:
            await self._app(scope, receive, guarded)
        except Refusal as refusal:
            if guarded.answered:
                raise
            await _answer(visit.respond(refusal), scope, send, accepted=guarded.accepted)


class KeyManagement:
    """An ASGI application that manages keys in a dialect; it stands behind ``APIKeyMiddleware``.

    ``user`` finds the application's own user in the scope, by default ``scope["user"]``.
    """

    def __init__(
        self,
        auth: AsyncAuthenticator[object],
        dialect: Dialect,
        *,
        user: Callable[[Scope], object] = lambda scope: scope.get("user"),
    ) -> None:
        check_authenticator(auth, AsyncAuthenticator)
        self.dialect = dialect
        self._keys = auth.keys
        self._user = user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ConfigurationError(f"key management speaks http, not {scope['type']}")
        await self.respond(scope, receive, send, path_below_mount(scope), (scope.get("root_path") or ""))

    async def respond(self, scope: Scope, receive: Receive, send: Send, path: str, mount: str) -> None:
        """Answer for a path below a mount point."""
        body = await _body(receive)
        if body is None:
            return  # nobody is there to be answered, and half a body may say something else than the whole
        visit = visit_of(scope)
        user = None if visit.identity is not None else self._user(scope)
        request = Request(
            scope["method"],
            path,
            mount,
            scope.get("query_string", b"").decode("latin-1"),
            _header_reader(scope),
            body,
            caller_of(visit, user, self.dialect),
            visit,
        )
        await _answer(await aplay(self.dialect.respond(request, self._keys)), scope, send)


def mount(app: ASGIApp, path: str, management: KeyManagement) -> ASGIApp:
    """Mount key management into an application at a path, as ``/odata.svc``; all else goes to the application."""
    pattern = mount_pattern(path, management.dialect)

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        match = pattern.fullmatch(path_below_mount(scope)) if scope["type"] == "http" else None
        if match is None:
            await app(scope, receive, send)
        else:
            prefix = (scope.get("root_path") or "") + match["mount"]
            await management.respond(scope, receive, send, match["below"] or "", prefix)

    return mounted


async def _body(receive: Receive) -> bytes | None:
    """Read a request's body, one byte more than MAX_BODY at most; None if the client left before its end."""
    body = b""
    more = True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[: MAX_BODY + 1]


class _GuardedSend:
    """Sends the application's messages, and sees to it that its answer stays private."""

    __slots__ = ("_send", "_visit", "accepted", "answered")

    def __init__(self, visit: Visit, send: Send) -> None:
        self._visit = visit
        self._send = send
        self.answered = False
        self.accepted = False

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", f"{_DENIAL}.start"):
            self.answered = True
            message = {**message, "headers": self._guarded(message.get("headers", ()))}
        elif kind == "websocket.accept":
            self.accepted = True
        elif kind == "websocket.close":
            self.answered = True
        await self._send(message)

    def _guarded(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        present: dict[str, str] = {}
        for name, value in headers:
            if name.lower() in _GUARDED:
                lowered, text = name.lower().decode("ascii"), value.decode("latin-1")
                present[lowered] = f"{present[lowered]}, {text}" if lowered in present else text
        changes = _encoded(self._visit.guard(present).items())
        replaced = {name for name, _ in changes}
        return [pair for pair in headers if pair[0].lower() not in replaced] + changes


def _identify(scope: Scope, visit: Visit) -> None:
    """Put the identity, if there is one, where the application looks for it, in the place of another's."""
    if visit.replaced is not None:
        del scope[IDENTITY]
        if scope.get("user") is visit.replaced.user:
            del scope["user"], scope["auth"]
    if visit.identity is not None:
        scope[IDENTITY] = visit.identity
        scope["user"] = visit.identity.user
        scope["auth"] = Permissions(scopes_of(visit))


def _receive(scope: Scope, policy: Policy) -> Visit:
    """Read a request, and cut the key out of its URL."""
    header = _header_reader(scope)
    query = scope.get("query_string", b"").decode("latin-1")
    client = scope.get("client")
    peer = client[0] if client else None
    visit = policy.visit(
        scope.get("method", "GET"), path_below_mount(scope), header, query, peer, outer_visit(scope)
    )
    scope[VISIT] = visit
    if visit.query != query:
        scope["query_string"] = visit.query.encode("latin-1")
        if b"?" in (target := scope.get("raw_path") or b""):  # some servers keep the query there
            scope["raw_path"] = policy.without_keys(target.decode("latin-1")).encode("latin-1")
    return visit


def _header_reader(scope: Scope) -> HeaderReader:
    pairs = scope["headers"]

    def header(name: str) -> str | None:
        wanted = name.lower().encode("ascii")
        values = [value for key, value in pairs if key == wanted]
        return b",".join(values).decode("latin-1") if values else None

    return header


def path_below_mount(scope: Scope) -> str:
    """Give the decoded path below the application's mount point."""
    path: str = scope["path"]
    root: str = (scope.get("root_path") or "").rstrip("/")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def _encoded(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _answer(response: Response, scope: Scope, send: Send, *, accepted: bool = False) -> None:
    """Send a response of ours; a websocket is denied before it is accepted, and closed after."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if accepted or _DENIAL not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": response.status_line})
            return
        kind = _DENIAL
    headers = _encoded(response.headers)
    await send({"type": f"{kind}.start", "status": response.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": response.body})
