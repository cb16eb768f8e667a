"""The bodies that sensenet's clients send: JSON in several coats, form fields, multipart. Pure.

Nothing goes by the content type but multipart: the JavaScript client calls its JSON text/plain.
"""

import re
from collections.abc import Iterable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from .handler import BadRequest, json_of, text_of

MAX_PARTS = 100  # of a multipart form; each takes its time
_BOUNDARY = re.compile(rb"[\r\n]--")

# Strings, closed or not: an open one is taken to the end, so that no quote is looked at twice.
_STRING = re.compile(r"""'((?:[^'\\]|\\.?)*+)(?:'|\Z)|"(?:[^"\\]|\\.?)*+(?:"|\Z)""", re.DOTALL)


def fields_of(body: bytes, content_type: str | None) -> dict[str, Any]:
    """Read the parameters of an action, their names in lower case.

    Raises BadRequest for what is none of the known forms, for a name given twice, and for too much.
    """
    text = text_of(body).strip()
    if not text:
        return {}
    if (content_type or "").lower().startswith("multipart/"):
        return _once(_parts(body, content_type or ""))
    if text.startswith("models="):
        return _fields(_relaxed_json(text.removeprefix("models=")))
    if text[0] in "{[" or text == "null":
        return _fields(_relaxed_json(text))
    try:
        return _once(parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict"))
    except ValueError:
        raise BadRequest("The body is neither JSON nor form fields.") from None


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("The body is no JSON object with parameters.")
    return {name.lower(): each for name, each in value.items()}


def _relaxed_json(text: str) -> Any:
    """Parse JSON, percent-encoded or with its strings in single quotes, as the tutorial writes it."""
    if text[:1] not in ("[", "{"):
        text = unquote_plus(text)
    try:
        return json_of(text)
    except BadRequest:
        if "'" not in text:
            raise
        return json_of(_STRING.sub(_double_quoted, text))


def _double_quoted(string: re.Match[str]) -> str:
    inner = string[1]
    if inner is None:
        return string[0]
    return '"' + inner.replace("\\'", "'").replace('"', '\\"') + '"'


def _parts(body: bytes, content_type: str) -> Iterable[tuple[str, str]]:
    if len(_BOUNDARY.findall(body)) > MAX_PARTS:
        raise BadRequest(f"The body has over {MAX_PARTS} parts.")
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    try:
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        is_form = message.is_multipart() and not message.defects
        parts = [_part(part) for part in message.iter_parts()] if is_form else []
    except RecursionError:
        raise BadRequest("The body is a form of forms of forms.") from None
    except Exception:  # Python's own parser meets headers that nobody sends with any error there is
        raise BadRequest("The body is no multipart form.") from None
    if not is_form:
        raise BadRequest("The body is no multipart form.")
    for name, content in parts:
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise BadRequest("The body is no multipart form.")
        yield name, text_of(content)


def _part(part: Any) -> tuple[object, object]:
    return part.get_param("name", header="content-disposition"), part.get_payload(decode=True)


def _once(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name.lower() in fields:
            raise BadRequest("A parameter is given twice.")
        fields[name.lower()] = value
    return fields
