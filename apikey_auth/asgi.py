"""Any ASGI application (ASGI 3): http and websocket are checked, lifespan passes.

The identity is ``scope["apikey_auth.identity"]``; ``scope["user"]`` and ``scope["auth"]`` are set as
Starlette's own authentication sets them. A ``Refusal`` that the application raises before it answers is
answered as one of the middleware's own.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias, Unpack

from .authenticate import AsyncAuthenticator, check_authenticator
from .cache import Verdict
from .credentials import HeaderReader, read
from .decisions import Identity
from .errors import ConfigurationError, Refusal
from .management.handler import MAX_BODY, Dialect, Request, aplay, caller_of, mount_pattern
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

__all__ = ["APIKeyMiddleware", "KeyManagement", "mount", "require"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_GUARDED = {name.encode("ascii") for name in GUARDED}
_DENIAL = "websocket.http.response"
_STARTS = {"http.response.start", f"{_DENIAL}.start"}
_POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1


class EveryScope(tuple[str, ...]):
    """The scopes of a key that may do all that its owner may: it contains every scope."""

    __slots__ = ()

    def __contains__(self, scope: object) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Permissions:
    """``scope["auth"]``: the scopes of the key, and ``authenticated``."""

    scopes: Sequence[str]


def scopes_of(scopes: tuple[str, ...] | None) -> Sequence[str]:
    """List the scopes of a key as Starlette's ``requires`` asks for them."""
    return EveryScope(["authenticated"]) if scopes is None else ("authenticated", *scopes)


@lru_cache(maxsize=4096)
def _permissions(scopes: tuple[str, ...] | None) -> Permissions:
    return Permissions(scopes_of(scopes))


class APIKeyMiddleware:
    """Puts the identity of a request's key on the scope, or answers in the application's place.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def __init__(self, app: ASGIApp, auth: AsyncAuthenticator[object], **options: Unpack[Options]) -> None:
        self._policy = policy = Policy(**options)
        check_authenticator(auth, AsyncAuthenticator, policy)
        self._app = app
        self._auth = auth
        self._header, self._lead = policy.header and policy.header.encode(), policy.lead.encode()
        self._parameter = policy.parameter and policy.parameter.encode()
        self._plain = _plain_guard(policy.vary, True, False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _flushing(self._auth, send))
            return
        if scope["type"] not in ("http", "websocket"):
            raise ConfigurationError(f"no key can be looked for in a scope of the type {scope['type']!r}")
        visit: Visit
        if (found := self._recognized(scope)) is not None:
            scope[VISIT] = visit = _Recognition(
                self._policy, self._auth, found, {**scope, "headers": tuple(scope["headers"])}
            )
            plain = self._plain
            if visit.pending is not None:
                await self._auth.let_in(visit, visit.pending)
            if self._policy.hide_credentials:
                _hide(scope, visit)
        else:
            visit = _receive(scope, self._policy)
            plain = _plain_guard(*visit.privacy)
            await self._auth.admit(visit)
        if visit.refusal is not None and (refusal := visit.turned_away):
            await _answer(visit.respond(refusal), scope, send)
            return
        self._identify(scope, visit)
        try:
            await self._app(scope, receive, partial(_guarded, visit, plain, send))
        except Refusal as refusal:
            if visit.answered:
                raise
            await _answer(visit.respond(refusal), scope, send, accepted=visit.accepted)

    def _recognized(self, scope: Scope) -> Verdict | Refusal | None:
        """Recognize a key that stands where keys usually do; None for any request that needs a closer look."""
        wanted, found = self._header, None
        headers = scope.get("headers", ())
        if type(headers) is not list:  # an iterable, by the specification, that is read more than once
            scope["headers"] = headers = list(headers)
        for name, value in headers:
            if name == wanted:
                if found is not None:
                    return None
                found = value
        if found is None or VISIT in scope or scope.get("method") == "OPTIONS":
            return None
        if self._parameter and (query := scope.get("query_string")):  # noqa: SIM102
            if b"%" in query or self._parameter in query.lower():
                return None
        if self._policy.has_exempt and self._policy.exempts(path_below_mount(scope)):
            return None
        if self._policy.insecure != "allow" and not self._policy.is_plainly_secure(scope.get("scheme")):
            return None
        if self._lead:
            if not found.startswith(self._lead):
                return None
            found = found[len(self._lead) :]
        return self._auth.recognize(found)

    def _identify(self, scope: Scope, visit: Visit) -> None:
        """Put the identity, if there is one, where the application looks for it, in the place of another's."""
        if visit.outer is not None and visit.replaced is not None:
            del scope[IDENTITY]
            if scope.get("user") is visit.replaced.user:
                del scope["user"], scope["auth"]
        if (identity := visit.identity) is not None:
            scope[IDENTITY] = identity
            scope["user"] = identity.user
            scope["auth"] = self._permissions(identity)

    def _permissions(self, identity: Identity[Any]) -> object:
        return _permissions(identity.key.scopes)


class _Recognition(Recognition[Scope]):
    """``seen`` is the scope as it was: the application may change it."""

    def find_out(self, name: str) -> Any:
        if name == "method":
            return self.seen.get("method", "GET")
        if name == "path":
            return path_below_mount(self.seen)
        header = _header_reader(self.seen["headers"])
        if name == "address":
            return self.policy.address_of(_peer(self.seen.get("client")), header)
        query = self.seen.get("query_string", b"").decode("latin-1")
        return read(self.policy.carriers, header, query) if name == "credential" else query


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
            _header_reader(list(scope["headers"])),
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


def _guarded(
    visit: Visit, plain: Sequence[tuple[bytes, bytes]], send: Send, message: Message
) -> Awaitable[None]:
    """Send the application's message, and see to it that its answer stays private.

    ``plain`` are the headers for that, where the application says nothing of its own.
    """
    kind = message["type"]
    if kind in _STARTS:
        visit.answered = True
        headers = message.get("headers", ())
        if type(headers) is not list:
            headers = list(headers)
        for name, _ in headers:
            if len(name) in GUARDED_LENGTHS and name.lower() in _GUARDED:
                plain = _encoded(visit.guard(_said(headers)).items())
                replaced = {name for name, _ in plain}
                headers = [pair for pair in headers if pair[0].lower() not in replaced]
                break
        message = {**message, "headers": [*headers, *plain]}
    elif kind == "websocket.accept":
        visit.accepted = True
    elif kind == "websocket.close":
        visit.answered = True
    return send(message)


def _said(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Read the headers out of ``GUARDED``, several of one name joined with commas."""
    said: dict[str, str] = {}
    for name, value in headers:
        if name.lower() in _GUARDED:
            key, text = name.lower().decode("ascii"), value.decode("latin-1")
            said[key] = f"{said[key]}, {text}" if key in said else text
    return said


@lru_cache
def _plain_guard(vary: str, carried: bool, in_url: bool) -> list[tuple[bytes, bytes]]:
    return _encoded(guard(vary, carried, in_url, {}).items())


def _flushing(auth: AsyncAuthenticator[object], send: Send) -> Send:
    """Wrap a lifespan's ``send`` so that what was noted is written before the server ends the process."""

    async def flushing(message: Message) -> None:
        if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            await auth.flush()
        await send(message)

    return flushing


def _receive(scope: Scope, policy: Policy) -> Visit:
    """Read a request, and cut the key out of its URL."""
    header = _header_reader(scope["headers"])
    query = scope.get("query_string", b"").decode("latin-1")
    peer = _peer(scope.get("client"))
    path, scheme = path_below_mount(scope), scope.get("scheme", "http")
    visit = policy.visit(scope.get("method", "GET"), path, header, query, peer, outer_visit(scope), scheme)
    scope[VISIT] = visit
    if policy.hide_credentials:
        _hide(scope, visit)
    if visit.query != query:
        cut(scope, visit.query.encode("latin-1"), policy)
    return visit


def cut(scope: Scope, query: bytes, policy: Policy) -> None:
    """Put a query string without keys in the place of the one that came."""
    scope["query_string"] = query
    if b"?" in (target := scope.get("raw_path") or b""):  # some servers keep the query there
        scope["raw_path"] = policy.without_keys(target.decode("latin-1")).encode("latin-1")


def _hide(scope: Scope, visit: Visit) -> None:
    """Cut keys out of the headers."""
    hidden: dict[str, str] = {}
    rest = []
    for name, value in scope["headers"]:
        lowered, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if visit.policy.hides(lowered, text):
            hidden[lowered] = f"{hidden[lowered]},{text}" if lowered in hidden else text
        else:
            rest.append((name, value))
    scope["headers"] = rest
    visit.hidden = {**(visit.outer.hidden if visit.outer and visit.outer.hidden else {}), **hidden}


def _peer(client: Sequence[Any] | None) -> str | None:
    return client[0] if client else None


def _header_reader(pairs: Sequence[tuple[bytes, bytes]]) -> HeaderReader:
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


@lru_cache(maxsize=256)
def _encoded_answer(headers: tuple[tuple[str, str], ...]) -> Sequence[tuple[bytes, bytes]]:
    return _encoded(headers)


async def _answer(response: Response, scope: Scope, send: Send, *, accepted: bool = False) -> None:
    """Send a response of ours; a websocket is denied before it is accepted, and closed after."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if accepted or _DENIAL not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": response.status_line})
            return
        kind = _DENIAL
    headers = list(_encoded_answer(response.headers))  # whoever stands further out may change it
    await send({"type": f"{kind}.start", "status": response.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": response.body})
