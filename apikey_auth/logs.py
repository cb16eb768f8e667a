"""Keys kept out of logs: a filter that masks them in whatever a record holds. No key is judged here.

The middleware cuts a key out of the URL, and so out of the log of a server that writes what the
application saw. Some servers write the line as it came, and any code may log what it was sent: there this
filter helps, ``install(scheme)`` in one line for every logger of the process, or by ``dictConfig``::

    "filters": {"keys": {"()": "apikey_auth.logs.KeyFilter", "prefix": "acme"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "filters": ["keys"]}},

A filter of a logger is not asked about the records of loggers below it, so it belongs on handlers. What is
printed past ``logging`` (wsgiref's server does), and what a handler digs out of a traceback's frames itself,
as error trackers do, no filter can reach.
"""

import copy
import logging
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .credentials import DEFAULT_CARRIERS, Carrier
from .errors import ConfigurationError
from .keys import KeyScheme
from .layout import BASE62, CHECK_LENGTH, ID_LENGTH, SEAL_LENGTH, SECRET_LENGTH, checksum

__all__ = ["KeyFilter", "install"]

MASK = "***"

_DEPTH = 8  # levels of containers that are looked into; the rendered message is looked at whatever its depth
_PERCENT = "%(?:25){0,3}"  # a URL within a URL is encoded again
_WORD = f"{BASE62}_.~-"  # what keys and the names of parameters are made of
# Where the value of a parameter ends: a quote is a part of it unless it seems to close what the URL stands in.
_CLOSING = r"""[\s,)\]}:;&"'<>\\]|\Z"""
_VALUE = rf"""[^&\s"'<>\\]|["'<>](?!{_CLOSING})|\\(?!["'])"""

_ESCAPED = re.compile(f"{_PERCENT}({'|'.join(f'{ord(each):02x}' for each in _WORD)})", re.IGNORECASE)
_LETTER = f"(?:[0-9A-Za-z]|{_PERCENT}(?i:{'|'.join(f'{ord(each):02x}' for each in BASE62)}))"

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None)))
_PLAIN = logging.Formatter()


class KeyFilter(logging.Filter):
    """Masks the keys in a log record, and lets every record pass.

    Found are the keys of a scheme, or several, by ``prefix``: what has their form and the right check, as it
    stands or percent-encoded, in the message, its arguments, the traceback and further attributes;
    ``acme_4fRk0TzQ9bVw_***`` is left of it, since an id is no secret. Of parameters and headers with one of
    the ``names`` the whole value is masked, whatever it looks like; the case of names does not matter.

    A traceback that holds a key is kept as text, and ``exc_info`` is dropped; an attribute that shows one, and
    is no mapping, list or set, is kept as text too. Nothing that a record holds
    makes ``filter`` raise.

    Raises ConfigurationError for a prefix that no scheme can have, and for a name that is no ASCII text.
    """

    def __init__(self, prefix: str | Sequence[str] = "apikey", names: Sequence[str] = ("apikey",)) -> None:
        super().__init__()
        prefixes = (prefix,) if isinstance(prefix, str) else tuple(prefix)
        if isinstance(names, str) or not all(
            isinstance(name, str) and name and name.isascii() for name in names
        ):
            raise ConfigurationError(f"names is a list of parameters and headers, not {names!r}")
        for each in prefixes:
            KeyScheme(each)  # which says what a prefix is
        self._settings = (prefixes, tuple(name.lower() for name in names))
        self._hints = [*(f"{each.lower()}_" for each in prefixes), *self._settings[1]]
        self._hints += [name.replace("-", "_") for name in self._settings[1] if "-" in name]  # WSGI's
        self._keys = _key_pattern(prefixes)
        self._masked = re.compile(rf"(?:{'|'.join(prefixes)})_[0-9A-Za-z]{{{ID_LENGTH}}}_\*\*\*")
        self._named = re.compile(rf"\{{?{_header_pattern(names)}\}}?[ieo]?", re.IGNORECASE)
        self._parameters = _parameter_pattern(names)
        self._quoted = _quoted_pattern(names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyFilter) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the keys in a record, in place. Always true."""
        for mask in (self._mask_message, self._mask_traceback, self._mask_attributes):
            with suppress(Exception):  # an object's own repr, for one
                mask(record)
        return True

    def mask(self, text: str) -> str:
        """Mask the keys in a text; without any it is the same text."""
        lowered = (_decoded(text) if "%" in text else text).lower()
        for hint in self._hints:
            if hint in lowered:
                break
        else:
            return text
        masked = self._without_keys(text)
        masked = self._parameters.sub(self._without_value, masked)
        return self._quoted.sub(self._without_value, masked)

    def _without_keys(self, text: str) -> str:
        parts, done = [], 0
        for found in self._keys.finditer(text):
            for part in ("sealed", "plain"):
                key, end = _decoded(text[found.start() : found.end(part)]), found.end(part)
                if end > done and checksum(key[:-CHECK_LENGTH]) == key[-CHECK_LENGTH:]:
                    parts += [text[done : found.start()], f"{key.rpartition('_')[0]}_{MASK}"]
                    done = end
                    break
        return "".join([*parts, text[done:]]) if parts else text

    def _without_value(self, found: re.Match[str]) -> str:
        return f"{found['name']}{self._masked_value(found['value'])}"

    def _masked_value(self, value: str) -> str:
        masked = self._without_keys(value)
        return masked if self._masked.fullmatch(masked) or not value else MASK

    def _mask_message(self, record: logging.LogRecord) -> None:
        record.args = self._cleaned(record.args)
        if not (record.args and isinstance(record.msg, str)):  # that is a format, which a mask may break
            record.msg = self._cleaned(record.msg)
        try:
            text = record.getMessage()
        except Exception:  # logging will say what the record was made of
            record.msg = self._cleaned(record.msg)
            if (shown := self.mask(repr(record.args))) != repr(record.args):
                record.args = (shown,)
            return
        if (masked := self.mask(text)) != text:
            record.msg, record.args = masked, ()

    def _mask_traceback(self, record: logging.LogRecord) -> None:
        if record.stack_info:
            record.stack_info = self.mask(record.stack_info)
        if record.exc_text:
            record.exc_text = self.mask(record.exc_text)
        if record.exc_info and record.exc_info[0] is not None:
            text = _PLAIN.formatException(record.exc_info)
            if (masked := self.mask(text)) != text:
                record.exc_text, record.exc_info = record.exc_text or masked, None

    def _mask_attributes(self, record: logging.LogRecord) -> None:
        attributes = vars(record)
        for name in attributes.keys() - _STANDARD:
            attributes[name] = self._without_showing(self._cleaned({name: attributes[name]})[name])

    def _without_showing(self, value: Any) -> Any:
        """Put in the place of an object that shows a key, as an exception does, what it shows, masked."""
        with suppress(Exception):  # of the object's own methods
            if isinstance(value, str | bytes | int | float | None):
                return value
            if isinstance(value, Iterable) and not isinstance(value, Collection):
                return value  # to show Django's QuerySet is to ask the database
            for text in (str(value), repr(value)):
                if (masked := self.mask(text)) != text:
                    return masked
        return value

    def _cleaned(self, value: Any, depth: int = _DEPTH) -> Any:
        """Mask the keys in a value: the same value if there is none, otherwise a copy of its kind."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, bytes):
            text = value.decode("latin-1")
            return value if (masked := self.mask(text)) == text else masked.encode("latin-1")
        try:
            if depth and (isinstance(value, Mapping) or hasattr(value, "getlist")):
                return self._cleaned_mapping(value, depth)
            if depth and type(value) in (list, tuple, set, frozenset):
                return self._cleaned_items(value, depth)
        except Exception:  # of the value's own methods; what is shown of it is looked at all the same
            return value
        return value

    def _cleaned_items(self, value: Any, depth: int) -> Any:
        items = [self._cleaned(each, depth - 1) for each in value]
        if len(items) == 2 and type(value) in (list, tuple) and self._names(items[0]):
            items[1] = self._cleaned_value(items[1])
        return value if all(map(operator.is_, items, value)) else type(value)(items)

    def _cleaned_mapping(self, value: Mapping[Any, Any], depth: int) -> Mapping[Any, Any]:
        items = list(_items_of(value))
        changed = {}
        for name, each in items:
            new = self._cleaned_value(each) if self._names(name) else self._cleaned(each, depth - 1)
            if new is not each:
                changed[name] = new
        if not changed:
            return value
        # A dictionary stays of its kind, as a server's own does, unless it is one that cannot be changed.
        copied = copy.copy(value) if isinstance(value, dict) else dict(value)
        if copied is value:
            copied = dict(items)
        dict.update(copied, changed)  # which puts in the place, where frameworks' own ``update`` adds
        return copied

    def _cleaned_value(self, value: Any) -> Any:
        """Mask what has one of our names, whole."""
        if isinstance(value, str):
            return self._masked_value(value)
        if isinstance(value, bytes):
            return self._masked_value(value.decode("latin-1")).encode("latin-1")
        if type(value) in (list, tuple, set, frozenset):
            items = [self._cleaned_value(each) for each in value]
            return value if all(map(operator.is_, items, value)) else type(value)(items)
        return self._cleaned(value)

    def _names(self, name: Any) -> bool:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        return isinstance(text, str) and self._named.fullmatch(text) is not None


def install(
    scheme: KeyScheme,
    *places: logging.Logger | logging.Handler,
    carriers: Sequence[Carrier] = DEFAULT_CARRIERS,
) -> KeyFilter:
    """Mask the keys of a scheme in the logs of this process; doing so twice is doing so once.

    ``carriers`` are those of the middleware: what stands in one of them is masked whatever it looks like.
    Without ``places`` the records of all loggers are masked as they are made, whoever handles them and
    whenever that handler is added, and attributes given as ``extra`` by the handlers that there are now.
    With places only these: handlers, and loggers together with the handlers that they have.

    Raises ConfigurationError for what is no scheme.
    """
    if not isinstance(scheme, KeyScheme):
        raise ConfigurationError(f"install() takes a scheme, KeyScheme(prefix='acme'), not {scheme!r}")
    mask = KeyFilter(scheme.prefix, [carrier.name for carrier in carriers])
    if not places:
        _mask_every_record(mask)
    for place in places or _handlers():
        for each in (place, *getattr(place, "handlers", ())):
            each.addFilter(mask)  # unless it is there
    return mask


class _MaskedRecords:
    """A record factory that masks what another one makes."""

    def __init__(self, make: Any, mask: KeyFilter) -> None:
        self.make = make
        self.mask = mask

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.make(*args, **kwargs)
        self.mask.filter(record)
        return record


def _mask_every_record(mask: KeyFilter) -> None:
    factory = current = logging.getLogRecordFactory()
    while isinstance(factory, _MaskedRecords):
        if factory.mask == mask:
            return
        factory = factory.make
    logging.setLogRecordFactory(_MaskedRecords(current, mask))


def _handlers() -> Iterable[logging.Handler]:
    loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
    return {handler for each in loggers if isinstance(each, logging.Logger) for handler in each.handlers}


def _items_of(value: Any) -> Iterable[tuple[Any, Any]]:
    """Give a mapping's items, all where it holds several of one name, as Django's, werkzeug's and Starlette's do."""
    methods = (getattr(value, name, None) for name in ("lists", "multi_items"))
    items: Any = next(filter(callable, methods), value.items)
    found: Iterable[tuple[Any, Any]] = items()
    return found


def _decoded(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _encoded(text: str) -> str:
    """Write a pattern for a text any of whose characters may be percent-encoded."""
    return "".join(f"(?:{re.escape(each)}|{_PERCENT}(?i:{ord(each):02x}))" for each in text)


def _encoded_name(name: str) -> str:
    """Write such a pattern for a name, whatever its case."""
    pairs = zip(name.lower(), name.upper(), strict=True)
    return "".join(
        f"(?:{re.escape(one)}|{_PERCENT}(?:{ord(one):02x}|{ord(other):02x}))" for one, other in pairs
    )


def _key_pattern(prefixes: Sequence[str]) -> re.Pattern[str]:
    """Write the pattern of what may be a key. It only looks ahead: one may begin within another."""
    under = _encoded("_")
    rest = f"{_LETTER}{{{SECRET_LENGTH + CHECK_LENGTH}}}"
    plain = f"(?P<plain>{_any(map(_encoded, prefixes))}{under}{_LETTER}{{{ID_LENGTH}}}{under}{rest})"
    return re.compile(f"(?={plain}(?P<sealed>{_LETTER}{{{SEAL_LENGTH}}})?)")


def _parameter_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Write the pattern of a parameter in a URL, or in one that is itself encoded in another."""
    begin = r"(?:(?<![\w.~-])|(?<=%3F)|(?<=%26)|(?<=%253F)|(?<=%2526))"
    name = f"{begin}{_any(map(_encoded_name, names))}(?:=|(?P<inner>{_PERCENT}3D))"
    value = f"(?(inner)(?:(?!{_PERCENT}26)(?:{_VALUE}))+|(?:{_VALUE})+)"
    return re.compile(f"(?P<name>{name})(?P<value>{value})", re.IGNORECASE)


def _header_pattern(names: Sequence[str]) -> str:
    """Write the pattern of headers' names, also as a WSGI environ has them."""
    return f"(?:http_)?{_any('[-_]'.join(map(re.escape, re.split('[-_]', name))) for name in names)}"


def _quoted_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Write the pattern of a name and its value, or list of values, in a mapping's repr, in JSON, or in a pair's."""
    name = rf"""(?P<pair>\()?b?(?P<around>["']){_header_pattern(names)}(?P=around)\s*(?(pair)[,:]|:)"""
    text = r"(?:\\.|(?!(?P=quote))[^\\])"
    value = rf"(?P<value>{text}*(?(list)(?:(?P=quote)\s*,\s*b?(?P=quote){text}*)*))"
    return re.compile(
        rf"""(?P<name>{name}\s*(?P<list>[\[(]\s*)?b?(?P<quote>["'])){value}""", re.IGNORECASE | re.DOTALL
    )


def _any(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns) or '(?!)'})"
