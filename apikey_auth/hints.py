"""What a text that is no key was probably meant to be: one sentence for whoever sent it.

All of it is told from the text and from what is public of the scheme, its prefix and its layout. No store
and no secret is asked, so that nobody learns here whether a key exists; and nothing of the text is repeated,
as most of it may be a key. A text that could be a key of another system is described only as far as no such
key looks like it.
"""

import re
from collections.abc import Sequence
from typing import Protocol, cast

from .errors import InvalidKey
from .layout import CHECK_LENGTH, ID_LENGTH, SEAL_LENGTH, SECRET_LENGTH, checksum

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u201e«»"
_BULLETS = "•●∙⋅▪⬤…"
_BLANKS = "\t-\r \xa0\u2000-\u200b\u2028\u2029\u202f\u3000\ufeff"
_LETTERS = re.compile(r"[0-9A-Za-z_]*")
_TELLING = re.compile(rf"[{_QUOTES}{_BULLETS}{_BLANKS}*.:=$%<{{\[]")  # each form below has one of these
_LEAD = re.compile(  # what is copied along with a key, in front of it
    rf"\s*(?P<quotes>[{_QUOTES}]*)\s*"
    r"(?P<scheme>(?:(?:bearer|basic|token|api[-_]?key)(?:\s*[:=]\s*|\s+))*)"
    rf"(?P<inner>[{_QUOTES}]*)",
    re.IGNORECASE,
)
_BLANK = re.compile(f"[{_BLANKS}]")
_BULLET = re.compile(f"[{_BULLETS}]")
_PLACEHOLDER = re.compile(r"[<${[].*[>}\]]|\$[A-Z0-9_]+|%[A-Z0-9_]+%|undefined|null|none", re.IGNORECASE)
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_NAMED_DIGEST = re.compile(r"(?:sha256|hmac-sha256|sha512|sha512-unhex|pbkdf2_sha256)\$")
_BARE_DIGEST = re.compile(r"(?:[0-9a-f]{64}){1,2}")
_TAIL = SECRET_LENGTH + CHECK_LENGTH  # characters behind a key's last underscore, unless it is sealed

_SCHEME = "a word such as Bearer stands before it, where the key alone belongs"
_QUOTED = "it has quotation marks around it; send it without them"
_MASKED = "it is masked, as lists show keys; send the whole key"
_EMPTY = "it is a placeholder; put your key in its place"
_SPACED = "it has white space in it or around it"
_PERCENT = "it is percent-encoded; send it as it was shown"
_DIGEST = "it is a digest, as a key is stored; send the key itself"
_STRANGE = "it has characters in it that no key has"
_ID = "it is as long as a key's id alone; send the whole key"
_MISTYPED = "it was mistyped or altered, as its last characters do not fit the others"
_MISPLACED = "its parts are not as long as those of a key"
_SHORT = "shorter than a key; copy all of it"
_LONG = "longer than a key; copy the key alone"
_ELSEWHERE = "it is a key of another product or environment; keys here begin with"
_BEHEADED = "its beginning is missing or altered; keys here begin with"


class Scheme(Protocol):
    """What hints know of a ``KeyScheme``."""

    @property
    def prefix(self) -> str: ...
    @property
    def formats(self) -> Sequence[object]: ...
    @property
    def seal_keys(self) -> Sequence[object]: ...


def hint(text: str, scheme: Scheme) -> str | None:
    """Say what is wrong with a text that no key of a scheme reads as; None where that cannot be told.

    Total over all texts, and pure. A text with the scheme's prefix, the layout of a key and a check that
    fits is never described: whether it is sealed, known or good is not for this module to say.
    """
    plain = _LETTERS.fullmatch(text) is not None
    fault = _fault_of_letters(text, scheme) if plain else _fault(_unmangled(text), scheme)
    return None if fault is None else _sentence(fault)


def _sentence(fault: str) -> str:
    return f"{InvalidKey.detail.rstrip('.')}: {fault}."


MISTYPED = _sentence(_MISTYPED)
"""The hint for a text with the scheme's prefix, the layout of a key, and another check."""


def _unmangled(text: str) -> str:
    """Undo what servers do to UTF-8: they pass its bytes on as Latin-1 (PEP 3333)."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _fault(text: str, scheme: Scheme) -> str | None:
    """Describe a text that has more in it than letters, digits and underscores."""
    if not _TELLING.search(text):
        return _STRANGE if text.startswith(f"{scheme.prefix}_") else None
    lead = cast("re.Match[str]", _LEAD.match(text))  # it matches the empty text, too
    own = text.startswith(f"{scheme.prefix}_", lead.end())
    spaced = _BLANK.search(text) is not None
    if scheme.formats and not own:  # all printable ASCII but blanks may be another system's key
        if spaced:
            return _SCHEME if lead["scheme"] else _SPACED
        return _MASKED if _BULLET.search(text) else None
    if lead["scheme"]:
        return _SCHEME
    if lead["quotes"] or lead["inner"]:
        return _QUOTED
    if "**" in text or "..." in text or _BULLET.search(text):
        return _MASKED
    if _PLACEHOLDER.fullmatch(text):
        return _EMPTY
    if spaced:
        return _SPACED
    if _ENCODED.search(text):
        return _PERCENT
    if _NAMED_DIGEST.match(text):
        return _DIGEST
    return _STRANGE if own else None


def _fault_of_letters(text: str, scheme: Scheme) -> str | None:
    """Describe a text of letters, digits and underscores alone."""
    head, _, tail = text.rpartition("_")
    prefix, _, key_id = head.rpartition("_")
    own = text.startswith(f"{scheme.prefix}_")
    if len(key_id) == ID_LENGTH and len(tail) in (_TAIL, _TAIL + SEAL_LENGTH):
        check = text[-CHECK_LENGTH:]
        if checksum(text[:-CHECK_LENGTH]) == check:
            return None if prefix == scheme.prefix else f"{_ELSEWHERE} {scheme.prefix}_"
        if prefix == scheme.prefix:
            return _MISTYPED
        if not own and checksum(f"{scheme.prefix}_{key_id}_{tail[:-CHECK_LENGTH]}") == check:
            return f"{_BEHEADED} {scheme.prefix}_"
    if own:
        return _fault_of_length(text[len(scheme.prefix) + 1 :], bool(scheme.seal_keys))
    if scheme.formats:
        return None
    if _PLACEHOLDER.fullmatch(text):
        return _EMPTY
    if _BARE_DIGEST.fullmatch(text):
        return _DIGEST
    return _ID if len(text) == ID_LENGTH and not head else None


def _fault_of_length(body: str, sealed: bool) -> str:
    """Compare what stands behind the prefix with a key; where keys may be sealed, with the nearer length."""
    if len(body.rstrip("_")) == ID_LENGTH:
        return _ID
    surplus = len(body) - (ID_LENGTH + 1 + _TAIL)
    if sealed and surplus > SEAL_LENGTH // 2:
        surplus -= SEAL_LENGTH
    if surplus == 0:
        return _MISPLACED
    count = "1 character" if abs(surplus) == 1 else f"{abs(surplus)} characters"
    return f"it is {count} {_SHORT if surplus < 0 else _LONG}"
