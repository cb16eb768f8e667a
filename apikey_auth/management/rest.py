"""A plain REST dialect: ``/keys``, ``/keys/{id}``, ``/keys/{id}/rotate``, and an OpenAPI document of it.

The routes are one table, and the document is made of it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote

from ..errors import MissingKey, Refusal
from ..keys import APIKey, IssuedKey
from ..responses import Response
from .actions import Actions
from .handler import BadRequest, MethodNotAllowed, NotFound, Request, Script, check_origin, json_of, text_of
from .rights import OwnKeys, Rights, owner_of

MAX_LIMIT = 1000


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
            _parameters(route, request.query),
            _body(route, request.body),
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
    return _json(200, openapi(call.request.mount))


# What may be said in a query and in a body: how it is read, and how the document describes it.


def _text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _limit(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", value) or not 1 <= int(value) <= MAX_LIMIT:
        raise ValueError(f"must be a number from 1 to {MAX_LIMIT}")
    return int(value)


def _truth(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


def _seconds(value: Any) -> timedelta | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number of seconds")
    try:
        return timedelta(seconds=value)
    except OverflowError:
        raise ValueError("is too long") from None


def _grace(value: Any) -> timedelta:
    span = _seconds(value)
    if span is None:
        raise ValueError("must be a number of seconds")
    return span


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("must be a time as in RFC 3339")
    return datetime.fromisoformat(value)


def _of(kind: type, word: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"must be {word}")
        return value

    return read


def _list_of_text(value: Any) -> list[str] | None:
    if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise ValueError("must be a list of texts, or null")
    found: list[str] | None = value
    return found


_STRING, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_STRINGS = {"type": ["array", "null"], "items": _STRING}
_TIME = {"type": ["string", "null"], "format": "date-time"}
_OBJECT = {"type": "object"}
_KINDS: dict[str, dict[str, Any]] = {
    "scopes": _STRINGS,
    "addresses": _STRINGS,
    "disabled": _BOOLEAN,
    "metadata": _OBJECT,
    "created_at": {"type": "string", "format": "date-time"},
    **dict.fromkeys(("id", "owner", "name", "prefix", "last4"), _STRING),
}

_QUERY: dict[str, tuple[Callable[[str], Any], dict[str, Any]]] = {
    "owner": (_text, {"type": "string", "minLength": 1}),
    "after": (_text, {"type": "string", "minLength": 1}),
    "limit": (_limit, {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100}),
    "descendants": (_truth, {"type": "boolean", "default": False}),
}
_FIELDS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "name": (_of(str, "text"), {"type": "string", "maxLength": 255}),
    "scopes": (_list_of_text, _STRINGS),
    "addresses": (_list_of_text, _STRINGS),
    "expires_in": (_seconds, {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "seconds"}),
    "expires_at": (_time, _TIME),
    "grace": (_grace, {"type": "number", "minimum": 0, "description": "seconds"}),
    "disabled": (_of(bool, "true or false"), _BOOLEAN),
    "metadata": (_of(dict, "an object"), _OBJECT),
}
_HIDDEN = ("digest", "version")
_SHOWN = tuple(each.name for each in fields(APIKey) if each.name not in _HIDDEN)


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
    Route("GET", "/openapi.json", "This document.", _describe, answer=None, refusals=()),
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


def openapi(mount: str) -> dict[str, Any]:
    """Make the OpenAPI 3.1 document of the routes, mounted at a path."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(mount + route.path, {})[route.method.lower()] = _operation(route)
    schemes = {
        "header": {"type": "apiKey", "in": "header", "name": "apikey"},
        "query": {"type": "apiKey", "in": "query", "name": "apikey"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "API keys", "version": "1"},
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": schemes},
        "security": [{name: []} for name in schemes],
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": _QUERY[name][1]} for name in route.query
    ]
    if "{id}" in route.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": _STRING})
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            str(route.status): _described(route.status, route.answer, "application/json"),
            **{
                str(status): _described(status, "Problem", "application/problem+json")
                for status in route.refusals
            },
        },
    }
    if route.fields:
        schema = {
            "type": "object",
            "properties": {name: _FIELDS[name][1] for name in route.fields},
            "additionalProperties": False,
        }
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation


def _described(status: int, schema: str | None, content_type: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if schema is not None:
        answer["content"] = {content_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return answer


def _schemas() -> dict[str, Any]:
    times = {name: _TIME for name in _SHOWN if name.endswith(("_at", "_until"))}
    properties = {
        name: _KINDS.get(name) or times.get(name) or {"type": ["string", "null"]} for name in _SHOWN
    }
    key = {"type": "object", "properties": properties, "required": list(_SHOWN)}
    return {
        "Key": key,
        "IssuedKey": key | {"properties": {**properties, "text": _STRING}, "required": [*_SHOWN, "text"]},
        "Page": {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": {"$ref": "#/components/schemas/Key"}},
                "next": {"type": ["string", "null"]},
            },
            "required": ["items", "next"],
        },
        "Count": {"type": "object", "properties": {"revoked": {"type": "integer"}}, "required": ["revoked"]},
        "Problem": {
            "type": "object",
            "properties": {
                "type": _STRING,
                "title": _STRING,
                "status": {"type": "integer"},
                "detail": _STRING,
                "code": _STRING,
            },
            "required": ["type", "title", "status", "detail", "code"],
        },
    }


def _parameters(route: Route, query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, encoding="utf-8", errors="replace"):
        if name not in route.query or name in found:  # "ownr" must never mean everybody
            raise BadRequest(f"The parameter {name[:64]!r} is unknown here, or given twice.")
        found[name] = _read(name, _QUERY[name][0], value)
    return found


def _body(route: Route, body: bytes) -> dict[str, Any]:
    if not route.fields or not body:
        return {}
    given = json_of(text_of(body))
    if not isinstance(given, dict):
        raise BadRequest("The body is no JSON object.")
    if unknown := [name for name in given if name not in route.fields]:
        raise BadRequest(f"There is no field {unknown[0][:64]!r} here, but {', '.join(route.fields)}.")
    return {name: _read(name, _FIELDS[name][0], value) for name, value in given.items()}


def _read(name: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}.") from None


def _shown(key: APIKey) -> dict[str, Any]:
    shown = {name: getattr(key, name) for name in _SHOWN}
    return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in shown.items()}


def _made(call: _Call, issued: IssuedKey) -> Response:
    location = f"{call.request.mount}/{quote(issued.key.id, safe='')}"
    return _json(201, {**_shown(issued.key), "text": issued.text}).with_header("Location", location)


def _json(status: int, value: object) -> Response:
    body = json.dumps(value).encode("ascii")
    headers = (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *_NO_STORE)
    return Response(status, headers, body)
