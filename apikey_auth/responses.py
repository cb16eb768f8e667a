"""From refusals to HTTP, and the headers that keep an answer private: the only place for either.

Bodies are problem details (RFC 9457). Nothing here depends on a framework: a ``Response`` is a status,
header pairs and a body, and each adapter turns it into its own kind.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from random import randint
from types import MappingProxyType

from .credentials import Bearer, Carrier, Query
from .errors import (
    AddressNotAllowed,
    AmbiguousKey,
    DisabledKey,
    ExpiredKey,
    InactiveUser,
    InsecureTransport,
    InsufficientScope,
    InvalidKey,
    MissingKey,
    Refusal,
    RevokedKey,
    StoreUnavailable,
)

GUARDED = frozenset({"vary", "cache-control", "referrer-policy"})
"""The headers of an application's answer that ``guard`` has a say in, in lower case."""

GUARDED_LENGTHS = frozenset(map(len, GUARDED))
"""How long their names are, which most others are not."""

# The problem type for it in draft-ietf-httpapi-ratelimit-headers-10.
_REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
_WEAKER = ("public", "s-maxage", "private=", "must-understand")
_BEARER_ERRORS = {400: "invalid_request", 401: "invalid_token", 403: "insufficient_scope"}
# The refusals of which the detail tells all; an application may give any, so only so many are kept.
_ALIKE = frozenset(
    {
        *(MissingKey, InvalidKey, RevokedKey, DisabledKey, ExpiredKey),
        *(InactiveUser, AddressNotAllowed, InsecureTransport, AmbiguousKey),
    }
)
_MOST_READY = 256
_SCOPE = re.compile(r"[!#-\[\]-~]+")  # scope-token, RFC 6749 section 3.3
_ESCAPED = re.compile(r"\\.")
_DIRECTIVE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')  # Cache-Control, RFC 9111 section 5.2


@dataclass(frozen=True, slots=True)
class Response:
    """An answer in no framework's terms."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def with_header(self, name: str, value: str) -> "Response":
        """Add a header."""
        return Response(self.status, (*self.headers, (name, value)), self.body)

    @property
    def status_line(self) -> str:
        """The status code and its phrase, as ``404 Not Found``."""
        return _status_line(self.status)


@lru_cache
def _status_line(status: int) -> str:
    return f"{status} {_phrase(status)}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # of a refusal of the application's own
        return "Refused"


class Answers:
    """The answers of one middleware to refusals; those that are given again and again are kept ready.

    ``carriers`` and ``realm`` are what challenges name.
    """

    def __init__(self, carriers: Sequence[Carrier], realm: str) -> None:
        self._carriers = carriers
        self._realm = realm
        self._ready: dict[tuple[type[Refusal], str, bool, bool], Response] = {}

    def to(
        self, refusal: Refusal, method: str, in_url: bool, rendered: tuple[str, bytes] | None = None
    ) -> Response:
        """Give the answer to a refusal; see ``respond``."""
        if rendered is not None or type(refusal) not in _ALIKE:
            return respond(refusal, self._carriers, self._realm, method, in_url, rendered)
        told = type(refusal), refusal.detail, method == "HEAD", in_url
        if (ready := self._ready.get(told)) is None:
            ready = respond(refusal, self._carriers, self._realm, method, in_url)
            if len(self._ready) < _MOST_READY:
                self._ready[told] = ready
        return ready


def respond(
    refusal: Refusal,
    carriers: Sequence[Carrier],
    realm: str,
    method: str,
    in_url: bool,
    rendered: tuple[str, bytes] | None = None,
) -> Response:
    """Turn a refusal into its answer; the body of a HEAD is empty, its headers are those of the GET.

    ``rendered`` is a content type and a body, which may be empty, to take instead of the problem details.
    """
    content_type, body = rendered or render(refusal)
    headers = [("Content-Type", content_type)] if body else []
    headers += [("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    if challenge := ", ".join(challenges(refusal, carriers, realm)):
        headers.append(("WWW-Authenticate", challenge))
    if isinstance(refusal, StoreUnavailable):
        headers.append(("Retry-After", str(retry_after(refusal))))
    if vary := vary_on(carriers):
        headers.append(("Vary", vary))
    if in_url:
        headers.append(("Referrer-Policy", "no-referrer"))
    return Response(refusal.status, tuple(headers), b"" if method == "HEAD" else body)


def render(refusal: Refusal) -> tuple[str, bytes]:
    """Write a refusal as problem details: the content type and the body."""
    problem = {
        "type": _REDUCED_CAPACITY if isinstance(refusal, StoreUnavailable) else "about:blank",
        "title": _phrase(refusal.status),
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
    }
    return "application/problem+json", json.dumps(problem).encode("ascii")


def retry_after(refusal: StoreUnavailable) -> int:
    """Tell after how many seconds to try again: once to twice the time, so that not all come back at once."""
    seconds = max(1, math.ceil(refusal.retry_after))
    return seconds + randint(0, seconds)  # noqa: S311  # nothing to be guessed


def challenges(refusal: Refusal, carriers: Sequence[Carrier], realm: str) -> Iterable[str]:
    """Write the challenges of a refusal: ``ApiKey`` with every 401, RFC 6750's where Bearer is taken."""
    named = next((carrier for carrier in carriers if not isinstance(carrier, Bearer)), None)
    if named is not None and refusal.status == 401:
        place = "query" if isinstance(named, Query) else "header"
        yield f'ApiKey realm="{realm}", in="{place}", name="{named.name}"'
    tokens = [carrier for carrier in carriers if isinstance(carrier, Bearer)]
    for other in tokens:
        if refusal.status == 401 and not other.is_standard:
            yield f'{other.scheme} realm="{realm}"'
    error = _BEARER_ERRORS.get(refusal.status)
    if isinstance(refusal, InsecureTransport):
        return  # another key would not help
    if error is not None and any(carrier.is_standard for carrier in tokens):
        challenge = f'Bearer realm="{realm}"'
        if not isinstance(refusal, MissingKey):  # RFC 6750 section 3.1: no error without credentials
            challenge += f', error="{error}"'
        if isinstance(refusal, InsufficientScope) and all(map(_SCOPE.fullmatch, refusal.missing)):
            challenge += f', scope="{" ".join(refusal.missing)}"'
        yield challenge


def vary_on(carriers: Sequence[Carrier]) -> str:
    """Name the request headers that an answer depends on."""
    return ", ".join(dict.fromkeys(carrier.name for carrier in carriers if not isinstance(carrier, Query)))


def guard(vary: str, carried: bool, in_url: bool, present: Mapping[str, str]) -> Mapping[str, str]:
    """Tell which headers to put on an application's answer, in place of its own of that name.

    RFC 9111 (section 3.5) keeps shared caches from storing an answer only where the request had an
    ``Authorization`` header, so an answer to any other key has to say it itself. ``present`` holds the
    application's headers out of ``GUARDED`` by their lower-case names, several of one name joined with
    commas. What the application set is made stricter and never weaker.
    """
    if not present:
        return _plain_guard(vary, carried, in_url)
    headers = {}
    if vary and (value := _merged_vary(present.get("vary", ""), vary)) is not None:
        headers["Vary"] = value
    if carried:
        directive = "no-store" if in_url else "private"
        if (value := _stricter(present.get("cache-control", ""), directive)) is not None:
            headers["Cache-Control"] = value
    if in_url:
        headers["Referrer-Policy"] = "no-referrer"
    return headers


@lru_cache
def _plain_guard(vary: str, carried: bool, in_url: bool) -> Mapping[str, str]:
    headers = {"Vary": vary} if vary else {}
    if carried:
        headers["Cache-Control"] = "no-store" if in_url else "private"
    if in_url:
        headers["Referrer-Policy"] = "no-referrer"
    return MappingProxyType(headers)


def _merged_vary(present: str, vary: str) -> str | None:
    names = [name.strip() for name in present.split(",") if name.strip()]
    known = {name.lower() for name in names}
    missing = [name for name in vary.split(", ") if name.lower() not in known]
    return None if "*" in known or not missing else ", ".join(names + missing)


def _stricter(present: str, directive: str) -> str | None:
    """Add a directive; None where the answer is that strict already, or stricter.

    What would take it back goes: ``public`` and ``s-maxage``, ``private`` for some fields alone, and
    ``must-understand``, under which a cache may ignore ``no-store`` (RFC 9111 section 5.2.2.3).
    """
    if _ESCAPED.sub("", present).count('"') % 2:  # nobody can say which directives these are
        present = ""
    directives = [each.strip() for each in _DIRECTIVE.findall(present) if each.strip()]
    kept = [each for each in directives if not each.lower().startswith(_WEAKER)]
    if not {each.lower() for each in kept} & {directive, "no-store"}:
        kept.append(directive)
    return None if kept == directives else ", ".join(kept)
