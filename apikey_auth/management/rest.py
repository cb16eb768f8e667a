"""A plain REST dialect: ``/keys``, ``/keys/{id}``, ``/keys/{id}/rotate``, and an OpenAPI document of it.

The routes are one table, and the document is made of it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, ClassVar
from urllib.parse import quote

from ..errors import MissingKey, Refusal
from ..keys import APIKey, IssuedKey
from ..responses import Response
from .actions import Actions
from .handler import MethodNotAllowed, NotFound, Request, Script, check_origin, log_outage
from .openapi import SHOWN, document
from .rights import OwnKeys, Rights, owner_of
from .values import body_fields, parameters


@dataclass(frozen=True, slots=True)
class REST:
    """The REST dialect of key management.

    ``rights``: who may what. ``owner_of``: the owner that the application's own user is.
    ``trusted_origins``: sites whose pages may change keys, as ``https://admin.example.com``.
    """

    rights: Rights = field(default_factory=OwnKeys)
    owner_of: Callable[[Any], str | None] = owner_of
    trusted_origins: Sequence[str] = ()

    ignores_case: ClassVar[bool] = False

    def respond(self, request: Request, keys: Any) -> Script[Response]:
        """Answer a request, or with problem details (RFC 9457)."""
        try:
            answer = yield from self._act(request, keys)
        except Refusal as refusal:
            log_outage(refusal)
            answer = request.visit.respond(refusal)
            if isinstance(refusal, MethodNotAllowed):
                answer = answer.with_header("Allow", ", ".join(refusal.allow))
        return answer

    def _act(self, request: Request, keys: Any) -> Script[Response]:
        found = [(route, match) for route in ROUTES if (match := route.match(request.path))]
        if not found:
            raise NotFound
        named = [(route, match) for route, match in found if route.method == request.method]
        if not named:
            raise MethodNotAllowed([route.method for route, _ in found])
        route, match = named[0]
        if route.changes:
            check_origin(request, self.trusted_origins)
        call = _Call(
            request,
            Actions(request.caller, keys, self.rights),
            match.groupdict().get("id") or "",
            parameters(route.query, request.query),
            body_fields(route.fields, request.body),
        )
        answer = yield from route.run(call)
        return answer


@dataclass(frozen=True, slots=True)
class _Call:
    """A request to a route, read and checked."""

    request: Request
    actions: Actions
    key_id: str
    query: Mapping[str, Any]
    fields: dict[str, Any]

    @property
    def owner(self) -> str:
        """Whose keys it is about: those of ``owner``, else the caller's own."""
        owner: str | None = self.query.get("owner", self.actions.caller.owner)
        if owner is None:
            raise MissingKey
        return owner

    def key(self) -> Script[APIKey]:
        """Read the key of the path. Raises NotFound for one that the caller may not see."""
        if self.actions.caller.owner is None:
            raise MissingKey
        key = yield from self.actions.find(self.key_id)
        if key is None:
            raise NotFound
        return key


def _list(call: _Call) -> Script[Response]:
    page = yield from call.actions.page(call.owner, call.query.get("after"), call.query.get("limit", 100))
    return _json(200, {"items": [_shown(key) for key in page.items], "next": page.next})


def _create(call: _Call) -> Script[Response]:
    issued = yield from call.actions.create(call.owner, call.fields)  # type: ignore[arg-type]
    return _made(call, issued)


def _get(call: _Call) -> Script[Response]:
    key = yield from call.key()
    return _json(200, _shown(key))


def _edit(call: _Call) -> Script[Response]:
    key = yield from call.key()
    changed = yield from call.actions.edit(key, call.fields)
    return _json(200, _shown(changed))


def _delete(call: _Call) -> Script[Response]:
    key = yield from call.key()
    yield from call.actions.delete(key, descendants=call.query.get("descendants", False))
    return Response(204, _NO_STORE, b"")


def _rotate(call: _Call) -> Script[Response]:
    key = yield from call.key()
    issued = yield from call.actions.rotate(key, **call.fields)
    return _made(call, issued)


def _delete_all(call: _Call) -> Script[Response]:
    revoked = yield from call.actions.delete_all(call.query.get("owner"))
    return _json(200, {"revoked": revoked})


def _describe(call: _Call) -> Script[Response]:
    yield partial(int, 0)  # a script asks at least once
    return _json(200, document(ROUTES, call.request.mount, call.request.visit.policy.carriers))


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table: what it answers, with what, and how the document tells it."""

    method: str
    path: str
    summary: str
    run: Callable[[_Call], Script[Response]]
    status: int = 200
    answer: str | None = "Key"
    query: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    refusals: tuple[int, ...] = (400, 401, 403, 503)
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        pattern = re.escape(self.path).replace(r"\{id\}", "(?P<id>[^/]+)")
        object.__setattr__(self, "pattern", re.compile(f"{pattern}/?"))

    @property
    def changes(self) -> bool:
        return self.method != "GET"

    def match(self, path: str) -> re.Match[str] | None:
        return self.pattern.fullmatch(path)


_NEW = ("name", "scopes", "addresses", "expires_in", "metadata")
_ONE = (400, 401, 403, 404, 503)
ROUTES = (
    Route("GET", "", "List keys.", _list, answer="Page", query=("owner", "after", "limit")),
    Route("POST", "", "Make a key.", _create, 201, "IssuedKey", ("owner",), _NEW),
    Route(
        "DELETE", "", "Delete all keys, of an owner or of everybody.", _delete_all, 200, "Count", ("owner",)
    ),
    Route("GET", "/openapi.json", "This document.", _describe, answer=None, refusals=(400,)),
    Route("GET", "/{id}", "Read a key.", _get, refusals=_ONE),
    Route(
        "PATCH",
        "/{id}",
        "Change a key.",
        _edit,
        fields=("name", "scopes", "addresses", "expires_at", "disabled", "metadata"),
        refusals=(*_ONE, 409),
    ),
    Route("DELETE", "/{id}", "Delete a key.", _delete, 204, None, ("descendants",), refusals=(*_ONE, 409)),
    Route(
        "POST",
        "/{id}/rotate",
        "Replace a key by a new one; the old one goes on for the grace.",
        _rotate,
        201,
        "IssuedKey",
        fields=("grace", "expires_in"),
        refusals=(*_ONE, 409),
    ),
)
_NO_STORE = (("Cache-Control", "no-store"),)


def _shown(key: APIKey) -> dict[str, Any]:
    shown = {name: getattr(key, name) for name in SHOWN}
    return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in shown.items()}


def _made(call: _Call, issued: IssuedKey) -> Response:
    location = quote(f"{call.request.mount}/{issued.key.id}")
    return _json(201, {**_shown(issued.key), "text": issued.text}).with_header("Location", location)


def _json(status: int, value: object) -> Response:
    body = json.dumps(value).encode("ascii")
    headers = (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *_NO_STORE)
    return Response(status, headers, body)
