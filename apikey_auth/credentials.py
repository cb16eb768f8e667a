"""Where a request may carry its key: in a header, as a Bearer token, in the URL. Knows no framework.

A request is seen through one function, ``header(name)``: the values of that header joined with commas,
as WSGI servers and CGI join them, None where there is none. So a header sent twice reads the same under
every server.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from .errors import AmbiguousKey, ConfigurationError

HeaderReader: TypeAlias = Callable[[str], "str | None"]

_BLANK = " \t"  # OWS, RFC 9110 section 5.6.3: no part of a header's value
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^`|~-]+")  # RFC 9110 section 5.6.2, less the underscore

_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")  # RFC 3986 section 2.3


@dataclass(frozen=True, slots=True)
class Header:
    """The key is the whole value of a header, whose name is matched without regard to case.

    Raises ConfigurationError for a name that no server passes on: WSGI cannot tell ``_`` from ``-``, and
    common servers drop headers with an underscore.
    """

    name: str = "apikey"

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.name):
            raise ConfigurationError(f"{self.name!r} is no header name that every server passes on")

    def values(self, header: HeaderReader) -> list[str]:
        """List the values that the request has for it; a comma starts another one."""
        value = header(self.name)
        return [] if value is None else _listed(value)


@dataclass(frozen=True, slots=True)
class Bearer:
    """The key is a Bearer token in ``Authorization`` (RFC 6750 section 2.1), or follows another ``scheme``.

    Clients of Django REST framework and django-rest-knox say ``Token``, those of djangorestframework-api-key
    ``Api-Key``. The scheme's case does not matter (RFC 9110 section 11.1); one that no carrier reads is no
    key, not a bad one.

    Raises ConfigurationError for what can be no scheme.
    """

    scheme: str = "Bearer"
    name: str = field(default="Authorization", init=False)

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.scheme):
            raise ConfigurationError(f"{self.scheme!r} is no authentication scheme, such as 'Bearer'")

    @property
    def is_standard(self) -> bool:
        """Whether it is RFC 6750's."""
        return self.scheme.lower() == "bearer"

    def values(self, header: HeaderReader) -> list[str]:
        """List the tokens that the request has; a comma starts another one."""
        scheme, _, token = (header(self.name) or "").strip(_BLANK).partition(" ")
        return _listed(token) if scheme.lower() == self.scheme.lower() else []


@dataclass(frozen=True, slots=True)
class Query:
    """The key is a parameter of the URL, whose name is matched without regard to case, once decoded.

    Raises ConfigurationError for a name with characters that URLs reserve.
    """

    name: str = "apikey"
    _lowered: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _UNRESERVED.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name!r} cannot name a parameter: letters, digits and ._~- will do"
            )
        object.__setattr__(self, "_lowered", self.name.encode("ascii").lower())

    def split(self, query: str) -> tuple[list[str], str]:
        """Split a query string into the key parameter's values, blank ones emptied, and all the rest."""
        values: list[str] = []
        rest: list[str] = []
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            possible = len(name) == len(self._lowered) or "%" in name
            if possible and _decoded(name).lower() == self._lowered:
                text = _decoded(value).decode("latin-1")
                values.append(text if text.strip(_BLANK) else "")
            else:
                rest.append(pair)
        return values, "&".join(rest)


Carrier: TypeAlias = Header | Bearer | Query

DEFAULT_CARRIERS: tuple[Carrier, ...] = (Header(), Query())


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request carried by way of a key, not judged in any way.

    ``text`` is the one key, None where there is none, only a blank one, or where ``ambiguous``. ``in_url``
    says that a key stood in the URL; ``query`` is the query string without it, byte for byte. ``clash`` is a
    sentence for the client about what is ambiguous, None where nothing is.
    """

    text: str | None = field(repr=False)
    ambiguous: bool
    in_url: bool
    query: str
    clash: str | None = field(default=None, compare=False)  # a wording of ``ambiguous``, nothing more

    @property
    def carried(self) -> bool:
        """Whether there was a key at all, readable or not."""
        return self.ambiguous or self.text is not None


def read(carriers: Sequence[Carrier], header: HeaderReader, query: str) -> Credential:
    """Read a request's key from its carriers. Total: any request gives a credential.

    Equal keys in two carriers are one. Two that differ are ambiguous, and so is one carrier that was
    given twice, equal or not: which of them counts would depend on who reads.
    """
    texts: set[str] = set()
    twice: Carrier | None = None
    in_url = False
    for carrier in carriers:
        if isinstance(carrier, Query):
            values, query = carrier.split(query) if query else ([], query)
            in_url = in_url or any(values)
        else:
            values = carrier.values(header)
        if len(values) > 1:
            twice = twice or carrier
        texts.update(filter(None, values))
    if twice is not None or len(texts) > 1:
        in_header = any(any(each.values(header)) for each in carriers if not isinstance(each, Query))
        return Credential(None, True, in_url, query, _clash(twice, in_header, in_url))
    return Credential(texts.pop() if texts else None, False, in_url, query)


def _clash(twice: Carrier | None, in_header: bool, in_url: bool) -> str:
    """Say which keys are too many; the names are those of the configuration, never of the request."""
    if isinstance(twice, Query):
        which = f"the parameter {twice.name} is in the URL more than once"
    elif twice is not None:
        which = f"the header {twice.name} was sent more than once, or holds a comma"
    else:
        places = "a header and the URL" if in_header and in_url else "the URL" if in_url else "two headers"
        which = f"those in {places} differ"
    return f"{AmbiguousKey.detail.rstrip('.')}: {which}."


def _listed(value: str) -> list[str]:
    return [each.strip(_BLANK) for each in value.split(",")]


def _decoded(text: str) -> bytes:
    # A query string is ASCII. What a server lets through beyond it must not turn into ASCII here.
    text = text.replace("+", " ")
    latin = all(character <= "\xff" for character in text)
    return unquote_to_bytes(text.encode("latin-1") if latin else text.encode("utf-8", "surrogatepass"))
