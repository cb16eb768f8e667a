"""What may be said in a query and in a body of the REST dialect: how it is read, and how it is described.

One table for both, so that the document cannot say what is not read.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qsl

from ..keys import checked_scopes, in_utc
from .handler import BadRequest, json_of, text_of

MAX_LIMIT = 1000


def parameters(names: Sequence[str], query: str) -> dict[str, Any]:
    """Read a query string. Raises BadRequest for a name that is unknown or given twice, and a bad value."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, encoding="utf-8", errors="replace"):
        if name not in names or name in found:  # "ownr" must never mean everybody
            raise BadRequest(f"The parameter {name[:64]!r} is unknown here, or given twice.")
        found[name] = _read(name, QUERY[name][0], value)
    return found


def body_fields(names: Sequence[str], body: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises BadRequest for what is none, a name that is unknown, and a bad value."""
    if not names or not body:
        return {}
    given = json_of(text_of(body))
    if not isinstance(given, dict):
        raise BadRequest("The body is no JSON object.")
    if unknown := [name for name in given if name not in names]:
        raise BadRequest(f"There is no field {unknown[0][:64]!r} here, but {', '.join(names)}.")
    return {name: _read(name, FIELDS[name][0], value) for name, value in given.items()}


def _read(name: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}.") from None


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
    return in_utc("it", datetime.fromisoformat(value))


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


def _scopes(value: Any) -> tuple[str, ...] | None:
    return checked_scopes(_list_of_text(value))


def _addresses(value: Any) -> list[str] | None:
    listed = _list_of_text(value)
    for each in listed or ():
        ip_network(each)
    return listed


_STRING, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_STRINGS = {"type": ["array", "null"], "items": _STRING}
_TIME = {"type": ["string", "null"], "format": "date-time"}
_OBJECT = {"type": "object"}
KINDS: dict[str, dict[str, Any]] = {
    "scopes": _STRINGS,
    "addresses": _STRINGS,
    "disabled": _BOOLEAN,
    "metadata": _OBJECT,
    "created_at": {"type": "string", "format": "date-time"},
    **dict.fromkeys(("id", "owner", "name", "prefix", "last4"), _STRING),
}

QUERY: dict[str, tuple[Callable[[str], Any], dict[str, Any]]] = {
    "owner": (_text, {"type": "string", "minLength": 1}),
    "after": (_text, {"type": "string", "minLength": 1}),
    "limit": (_limit, {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100}),
    "descendants": (_truth, {"type": "boolean", "default": False}),
}
FIELDS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "name": (_of(str, "text"), {"type": "string", "maxLength": 255}),
    "scopes": (_scopes, _STRINGS),
    "addresses": (_addresses, _STRINGS),
    "expires_in": (_seconds, {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "seconds"}),
    "expires_at": (_time, _TIME),
    "grace": (_grace, {"type": "number", "minimum": 0, "description": "seconds"}),
    "disabled": (_of(bool, "true or false"), _BOOLEAN),
    "metadata": (_of(dict, "an object"), _OBJECT),
}
