"""The OpenAPI 3.1 document of the REST dialect, made of its table of routes."""

from collections.abc import Iterable
from dataclasses import fields
from http import HTTPStatus
from typing import Any, Protocol

from ..credentials import Bearer, Carrier, Query
from ..keys import APIKey
from .values import FIELDS, KINDS, QUERY

HIDDEN = ("digest", "version")
SHOWN = tuple(each.name for each in fields(APIKey) if each.name not in HIDDEN)
"""The fields of a record that a key is shown by."""

_STRING = {"type": "string"}
_TIME = {"type": ["string", "null"], "format": "date-time"}


class Described(Protocol):
    """What the document tells of a route."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def query(self) -> tuple[str, ...]: ...
    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def refusals(self) -> tuple[int, ...]: ...


def document(routes: Iterable[Described], mount: str, carriers: Iterable[Carrier]) -> dict[str, Any]:
    """Make the document of routes that are mounted at a path."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(mount + route.path, {})[route.method.lower()] = _operation(route)
    schemes = security_schemes(carriers)
    return {
        "openapi": "3.1.0",
        "info": {"title": "API keys", "version": "1"},
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": schemes},
        "security": [{name: []} for name in schemes],
    }


def security_schemes(carriers: Iterable[Carrier]) -> dict[str, dict[str, Any]]:
    """Describe where keys may be, by names of ours (OAS 3.1, section 4.8.27)."""
    return {_named(each): _scheme(each) for each in carriers}


def _named(carrier: Carrier) -> str:
    kind = carrier.scheme if isinstance(carrier, Bearer) else type(carrier).__name__
    return f"{kind}-{carrier.name}".lower()


def _scheme(carrier: Carrier) -> dict[str, Any]:
    if isinstance(carrier, Bearer):
        return {"type": "http", "scheme": carrier.scheme.lower()}
    place = "query" if isinstance(carrier, Query) else "header"
    return {"type": "apiKey", "in": place, "name": carrier.name}


def _operation(route: Described) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": QUERY[name][1]} for name in route.query
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
            "properties": {name: FIELDS[name][1] for name in route.fields},
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
    times = {name: _TIME for name in SHOWN if name.endswith(("_at", "_until"))}
    properties = {name: KINDS.get(name) or times.get(name) or {"type": ["string", "null"]} for name in SHOWN}
    key = {"type": "object", "properties": properties, "required": list(SHOWN)}
    return {
        "Key": key,
        "IssuedKey": key | {"properties": {**properties, "text": _STRING}, "required": [*SHOWN, "text"]},
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
