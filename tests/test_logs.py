"""Keys in log records: none is left, nothing else is touched, and logging goes on whatever a record holds."""

import copy
import io
import logging
import logging.config
import logging.handlers
import pickle
import queue
import sys
from collections import UserDict, deque
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from django.utils.datastructures import CaseInsensitiveMapping, MultiValueDict
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from werkzeug.datastructures import CombinedMultiDict, Headers, ImmutableMultiDict, MultiDict

from apikey_auth import Bearer, ConfigurationError, Header, KeyScheme, Query
from apikey_auth.logs import KeyFilter, install

SCHEME = KeyScheme(prefix="acme")
SEALED = KeyScheme(prefix="acme", seal_keys=["a seal key of enough bytes"])
KEYS = [scheme.mint().text for scheme in (SCHEME, SEALED) for _ in range(3)]
KEY = KEYS[0]
MASKED = KEY.rpartition("_")[0] + "_***"
FILTER = KeyFilter("acme")


def escaped(text: str, level: int = 0) -> str:
    return "".join(f"%{'25' * level}{ord(each):02x}" for each in text)


def secrets_of(*texts: str) -> set[str]:
    """List each run of eight characters of the secrets of keys, as it stands and percent-encoded."""
    secrets = [text.rpartition("_")[2] for text in texts]
    runs = {secret[start : start + 8] for secret in secrets for start in range(len(secret) - 7)}
    return runs | {escaped(run) for run in runs} | {escaped(run, 1) for run in runs}


RUNS = secrets_of(*KEYS)


def leaks(text: str) -> bool:
    return any(run in text for run in RUNS)


def made(msg: Any, *args: Any, **further: Any) -> logging.LogRecord:
    """Make a record as a logger does."""
    logger = logging.Logger("test")
    exc_info, extra = further.pop("exc_info", None), further.pop("extra", None)
    return logger.makeRecord("test", logging.INFO, __file__, 1, msg, args, exc_info, extra=extra, **further)


def filtered(msg: Any, *args: Any, **further: Any) -> logging.LogRecord:
    record = made(msg, *args, **further)
    assert FILTER.filter(record) is True
    return record


def everything_in(record: logging.LogRecord) -> str:
    return f"{logging.Formatter().format(record)} {vars(record)!r} {vars(record)}"


# Texts

PLAIN = st.sampled_from(
    [
        *("", "a", "Z9", "_", "%", "%2", "%25", "=", "&", "?", "'", '"', " ", "\\", "apikey", "apikey="),
        *(
            "'apikey': '",
            "(b'apikey', b'",
            "acme",
            "acme_",
            "\0",
            "\ud800",
            "\u017f",
            "https://host/path",
            "***",
        ),
    ]
)
FORMS: list[Callable[[str], str]] = [
    str,
    escaped,
    lambda text: escaped(text, 1),
    lambda text: text.replace("_", "%5F"),
    lambda text: f"?apikey={text}",
    lambda text: f"?%61PIKEY={text}&page=2",
    lambda text: quote(f"http://host/?page=2&apikey={text}&page=2", safe=""),
    lambda text: repr(text.encode()),
    lambda text: repr({"apikey": text}),
]
WITH_KEYS = st.lists(
    st.one_of(PLAIN, st.builds(lambda key, form: form(key), st.sampled_from(KEYS), st.sampled_from(FORMS)))
).map("".join)


@given(WITH_KEYS)
@example("%" + KEY)
@example("%" + escaped(KEY))
@example(KEY + KEY)
@example("acme_4fRk0TzQ9bVw_" + 34 * "x" + KEY)
@example(f"apikey={KEY}A")
def test_no_eight_characters_of_a_secret_are_left_of_any_text(text: str) -> None:
    assert not leaks(FILTER.mask(text))


@given(WITH_KEYS)
def test_masking_a_text_twice_is_masking_it_once(text: str) -> None:
    masked = FILTER.mask(text)
    assert FILTER.mask(masked) == masked


@given(st.text(st.characters(exclude_categories=())))
@example("50% of %d and %2F")
@example("apikey")
@example("apikey=")
@example("apikey=&page=2")
@example("acme_4fRk0TzQ9bVw_")
@example('ApiKey realm="api", in="header", name="apikey"')
@example("['apikey', 'token']")
@example("the_apikey=of_another and x-apikey=too")
@example("sha256$$" + 64 * "0")
@example(KEY[:-1] + ("0" if KEY[-1] != "0" else "1"))
@example(KEY.replace("acme", "acne"))
def test_a_text_without_keys_is_the_same_object(text: str) -> None:
    assert FILTER.mask(text) is text or FILTER.mask(text) == text


@pytest.mark.parametrize("key", KEYS, ids=[f"key{number}" for number in range(len(KEYS))])
def test_of_a_key_its_id_is_left(key: str) -> None:
    start = key.rpartition("_")[0]
    assert FILTER.mask(f"<{key}>") == f"<{start}_***>"
    assert FILTER.mask(f"x{key}x") == f"x{start}_***x"
    assert FILTER.mask(escaped(key)) == f"{start}_***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ('"GET /a?page=2&APIKEY=abcd&x=3 HTTP/1.1" 200', '"GET /a?page=2&APIKEY=***&x=3 HTTP/1.1" 200'),
        ("/?%61pi%4Bey=ab%26cd", "/?%61pi%4Bey=***"),
        ("/?apikey=ab'cd;e", "/?apikey=***"),
        ("b'apikey=abcd'", "b'apikey=***'"),
        (
            "{'query_string': b'apikey=abcd', 'raw_path': b'/'}",
            "{'query_string': b'apikey=***', 'raw_path': b'/'}",
        ),
        ('{"url": "/?apikey=abcd"}', '{"url": "/?apikey=***"}'),
        (r"{\"url\": \"/?apikey=abcd\"}", r"{\"url\": \"/?apikey=***\"}"),
        ("&amp;apikey=abcd&amp;page=2", "&amp;apikey=***&amp;page=2"),
        ("next=%2Fx%3Fapikey%3Dabcd%26page%3D2", "next=%2Fx%3Fapikey%3D***%26page%3D2"),
        ("next=%252Fx%253Fapikey%253Dabcd%2526page%253D2", "next=%252Fx%253Fapikey%253D***%2526page%253D2"),
        ("{'apikey': 'abcd', 'page': 2}", "{'apikey': '***', 'page': 2}"),
        ("{'HTTP_APIKEY': 'abcd'}", "{'HTTP_APIKEY': '***'}"),
        (
            "<QueryDict: {'apikey': ['abcd'], 'page': ['2']}>",
            "<QueryDict: {'apikey': ['***'], 'page': ['2']}>",
        ),
        ('{"apikey": ["abcd", "ef"], "page": ["2"]}', '{"apikey": ["***"], "page": ["2"]}'),
        ("{b'apikey': (b'', b'abcd', b'ef')}", "{b'apikey': (b'***')}"),
        ("[(b'apikey', b'abcd'), (b'host', b'h')]", "[(b'apikey', b'***'), (b'host', b'h')]"),
        (f"/?apikey={KEY}", f"/?apikey={MASKED}"),
        (f"/?apikey={KEY}A&page=2", "/?apikey=***&page=2"),
        (f"/?apikey=A{KEY}", "/?apikey=***"),
    ],
    ids=lambda text: text.replace(KEY, "KEY").replace(MASKED, "MASKED"),
)
def test_the_value_of_the_parameter_and_the_header_is_masked_whatever_it_looks_like(
    text: str, masked: str
) -> None:
    assert FILTER.mask(text) == masked


def test_names_and_prefixes_are_those_that_it_was_given() -> None:
    mask = KeyFilter(["acme", "beta"], names=["token", "X-Key"]).mask
    other = KeyScheme(prefix="beta").mint().text
    assert mask(f"{KEY} {other}") == f"{MASKED} {other.rpartition('_')[0]}_***"
    assert mask("?Token=abcd&x-key=abcd&apikey=abcd") == "?Token=***&x-key=***&apikey=abcd"
    assert mask("{'HTTP_X_KEY': 'abcd'}") == "{'HTTP_X_KEY': '***'}"
    assert KeyFilter("acme", names=[]).mask(f"?apikey=abcd {KEY}") == f"?apikey=abcd {MASKED}"


@pytest.mark.parametrize(
    "options",
    [{"prefix": "9"}, {"prefix": ["a", "b c"]}, {"names": "apikey"}, {"names": [""]}, {"names": ["ß"]}],
)
def test_what_no_scheme_has_is_a_mistake_that_is_told(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        KeyFilter(**options)


# Records


class Shown:
    """An object that shows a key, as a request shows its URL."""

    def __str__(self) -> str:
        return f"<GET /?apikey={KEY}>"


class Hidden:
    """An object whose repr alone shows one."""

    def __str__(self) -> str:
        return "a request"

    def __repr__(self) -> str:
        return f"Hidden({KEY!r})"


class Atoms(dict[str, Any]):
    """As hypercorn's: a dictionary that is not made of a dictionary, and knows every name."""

    def __init__(self, one: object, other: object) -> None:
        super().__init__({"r": one, "q": other})

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.lower()) if name.lower() in self else "-"


class Pair(NamedTuple):
    one: str
    other: str


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException:
        return sys.exc_info()


def chained() -> Any:
    try:
        try:
            raise ValueError(f"no {KEY}")
        except ValueError as error:
            error.add_note(f"from {KEYS[1]}")
            raise LookupError("not found") from error
    except LookupError:
        return sys.exc_info()


@pytest.mark.parametrize(
    "record",
    [
        lambda: filtered(f"from {KEY}"),
        lambda: filtered("from %s", KEY),
        lambda: filtered("from %r", KEY.encode()),
        lambda: filtered("from %s_%s", *KEY.rsplit("_", 1)),
        lambda: filtered("%s%s", "/?apikey=", "a-token-that-is-nothing-to-see"),
        lambda: filtered("%(key)s", {"key": KEY}),
        lambda: filtered("%s", [{"deep": ({"er": [KEY]},)}]),
        lambda: filtered("%s", {KEY: 1}),
        lambda: filtered("%s", {KEY, "other"}),
        lambda: filtered("%s", MappingProxyType({"key": KEY})),
        lambda: filtered("%s", UserDict(key=KEY)),
        lambda: filtered("%s", Pair("one", KEY)),
        lambda: filtered("%s", bytearray(KEY.encode())),
        lambda: filtered("%s", Shown()),
        lambda: filtered("%r", Hidden()),
        lambda: filtered(Shown()),
        lambda: filtered({"event": "request", "url": f"/?apikey={KEY}"}),
        lambda: filtered(ValueError(KEY)),
        lambda: filtered("it broke", exc_info=raised(ValueError(KEY))),
        lambda: filtered("it broke", exc_info=chained()),
        lambda: filtered("it broke", exc_info=raised(ExceptionGroup("many", [ValueError(KEY)]))),
        lambda: filtered("from here", sinfo=f"Stack: {KEY}"),
        lambda: filtered("more", extra={"url": f"/?apikey={KEY}", "raw": KEY.encode()}),
        lambda: filtered("more", extra={"environ": {"QUERY_STRING": f"apikey={KEY}"}}),
        lambda: filtered(
            "more", extra={"error": ValueError(KEY), "row": Pair("one", KEY), "seen": deque([KEY])}
        ),
        lambda: filtered("more", extra={"errors": [ValueError(KEY)], "request": Shown(), "other": Hidden()}),
        lambda: filtered("more", extra={"raw": bytearray(KEY.encode())}),
        lambda: filtered("too few %s %s", KEY),
        lambda: filtered("%d", Hidden()),
        lambda: filtered(f"{KEY} %d", "no number"),
    ],
)
def test_no_key_is_left_anywhere_in_a_record(record: Callable[[], logging.LogRecord], capsys: Any) -> None:
    handler = logging.StreamHandler(io.StringIO())
    found = record()
    handler.handle(found)  # prints to stderr what it cannot format
    assert not leaks(handler.stream.getvalue() + capsys.readouterr().err)
    assert not leaks(f"{vars(found)}" + "".join(map(str, vars(found).values())))
    assert "to-see" not in handler.stream.getvalue()


def test_a_traceback_that_was_rendered_already_is_masked() -> None:
    record = made("it broke", exc_info=raised(ValueError(KEY)))
    assert KEY in logging.Formatter().format(record)
    FILTER.filter(record)
    assert not leaks(everything_in(record))
    assert "ValueError" in logging.Formatter().format(record)


def test_a_traceback_that_holds_a_key_is_shown_without_it() -> None:
    text = logging.Formatter().format(filtered("it broke", exc_info=chained()))
    assert text.startswith("it broke\nTraceback (most recent call last):")
    assert f"ValueError: no {MASKED}" in text
    assert "LookupError: not found" in text


def test_a_traceback_without_keys_stays_what_it_was() -> None:
    exc_info = raised(ValueError("no key"))
    record = filtered("it broke", exc_info=exc_info)
    assert record.exc_info is exc_info
    assert record.exc_text is None


def test_what_a_record_holds_is_the_same_where_there_is_no_key() -> None:
    request, environ, pairs = object(), {"QUERY_STRING": "page=2"}, [(b"host", b"h"), (b"apikey", b"")]
    record = filtered(
        "%s %s %s %d%%", request, environ, pairs, 5, extra={"request": request, "environ": environ}
    )
    assert record.msg == "%s %s %s %d%%"
    assert record.args is not None
    assert all(one is other for one, other in zip(record.args, (request, environ, pairs), strict=False))
    assert (record.request, record.environ) == (request, environ)  # type: ignore[attr-defined]


def test_what_others_hold_is_not_changed() -> None:
    environ, pairs = {"QUERY_STRING": f"apikey={KEY}"}, [(b"apikey", KEY.encode())]
    kept = copy.deepcopy((environ, pairs))
    assert not leaks(everything_in(filtered("%s %s", environ, pairs)))
    assert (environ, pairs) == kept


@pytest.mark.parametrize(
    ("msg", "args", "shown"),
    [
        (
            '%s - "%s %s HTTP/%s" %d',  # uvicorn.access, whose formatter takes its five arguments apart
            ("127.0.0.1:1", "GET", "/me?apikey=abcd&page=2", "1.1", 200),
            '127.0.0.1:1 - "GET /me?apikey=***&page=2 HTTP/1.1" 200',
        ),
        (
            '%(h)s "%(r)s" %(q)s "%(f)s" %({apikey}i)s %({http_apikey}e)s %({raw_uri}e)s %({x}i)s',  # gunicorn.access
            {
                "h": "127.0.0.1",
                "r": "GET /me?apikey=abcd HTTP/1.1",
                "q": "apikey=abcd",
                "f": f"https://host/?apikey={KEY}",
                "{apikey}i": "abcd",
                "{http_apikey}e": "abcd",
                "{raw_uri}e": "/me?apikey=abcd",
                "{x}i": "y",
            },
            '127.0.0.1 "GET /me?apikey=*** HTTP/1.1" apikey=*** '
            f'"https://host/?apikey={MASKED}" *** *** /me?apikey=*** y',
        ),
        ('"%s" %s %s', ("GET /me?apikey=abcd HTTP/1.1", "200", "12"), '"GET /me?apikey=*** HTTP/1.1" 200 12'),
        (
            '127.0.0.1 - - [now] "%s" %s %s',  # werkzeug
            ("\x1b[33mGET /me?apikey=abcd HTTP/1.1\x1b[0m", "404", "-"),
            '127.0.0.1 - - [now] "\x1b[33mGET /me?apikey=*** HTTP/1.1\x1b[0m" 404 -',
        ),
    ],
)
def test_the_records_of_access_logs_keep_their_shape(msg: str, args: Any, shown: str) -> None:
    record = filtered(msg, *args) if isinstance(args, tuple) else filtered(msg, args)
    assert record.getMessage() == shown
    assert record.msg == msg
    assert isinstance(record.args, type(args))
    assert len(record.args) == len(args)


def test_headers_as_a_server_passes_them_on_are_masked_by_name() -> None:
    pairs = [(b"host", b"h"), (b"APIKey", b"abcd"), ["apikey", "abcd"], ("apikey", ""), ("apikey", 5)]
    record = filtered("seen", extra={"headers": pairs})
    masked = [(b"host", b"h"), (b"APIKey", b"***"), ["apikey", "***"], ("apikey", ""), ("apikey", 5)]
    assert record.headers == masked  # type: ignore[attr-defined]
    assert filtered("seen", extra={"apikey": "abcd"}).apikey == "***"  # type: ignore[attr-defined]


def test_a_servers_own_kind_of_dictionary_stays_one() -> None:
    record = filtered("%(R)s %(Q)s %(other)s", Atoms(f"GET /?apikey={KEY}", "page=2"))
    assert record.getMessage() == f"GET /?apikey={MASKED} page=2 -"
    assert type(record.args) is Atoms


SEVERAL: dict[str, Callable[[str, str], Any]] = {
    "Django's parameters": lambda name, value: MultiValueDict({name: [value, "x"], "page": ["2"]}),
    "Django's headers": lambda name, value: CaseInsensitiveMapping({name: value, "page": "2"}),
    "werkzeug's form": lambda name, value: MultiDict([(name, value), (name, "x"), ("page", "2")]),
    "werkzeug's parameters": lambda name, value: ImmutableMultiDict(
        [(name, value), (name, "x"), ("page", "2")]
    ),
    "werkzeug's values": lambda name, value: CombinedMultiDict([MultiDict([(name, value), ("page", "2")])]),
    "werkzeug's headers": lambda name, value: Headers([(name, value), (name, "x"), ("page", "2")]),
    "Starlette's parameters": lambda name, value: QueryParams([(name, value), (name, "x"), ("page", "2")]),
    "parse_qs's parameters": lambda name, value: {name: [value, "x"], "page": ["2"]},
}


@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize(
    ("name", "value"),
    [("x-other", KEY), ("apikey", KEY), ("apikey", "a-token-to-see")],
    ids=["a key anywhere", "a key by its name", "any token by its name"],
)
def test_frameworks_own_headers_and_parameters_are_masked_and_not_changed(
    make: Callable[[str, str], Any], name: str, value: str
) -> None:
    parameters = make(name, value)
    shown = repr(parameters)
    record = filtered("%s", 1, extra={"parameters": parameters})
    assert value not in everything_in(record)
    assert "page" in record.parameters  # type: ignore[attr-defined]
    assert repr(parameters) == shown


class Furious:
    """An object that fails at everything."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # which logging itself asks for
            return Furious
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __str__  # type: ignore[assignment]


class FuriousMapping(Mapping[Any, Any]):
    def __getitem__(self, name: Any) -> Any:
        raise KeyError(name)

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1


def endless() -> list[Any]:
    found: list[Any] = [KEY]
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


ODDITIES: dict[str, Callable[[], Any]] = {
    "furious": Furious,
    "furious mapping": FuriousMapping,
    "endless": endless,
    "deep": deep,
    "None": lambda: None,
    "number": lambda: 1,
    "bytes": lambda: b"\xff",
    "surrogate": lambda: "\ud800",
    "nothing": lambda: (),
    "class": lambda: object,
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_it_never_raises_whatever_a_record_holds(oddity: str) -> None:
    odd = ODDITIES[oddity]()
    for record in (
        made("%s", odd),
        made(odd),
        made("%d %d", odd),
        made("x", extra={"odd": odd}),
        made("%s", {"a": odd}),
    ):
        FILTER.filter(record)
        for name in ("msg", "args", "exc_info", "exc_text", "stack_info", "further"):
            broken = copy.copy(record)
            setattr(broken, name, odd)
            FILTER.filter(broken)
    record = made(f"from {KEY}", extra={"odd": odd, "url": KEY})
    FILTER.filter(record)
    assert (record.msg, record.url) == (f"from {MASKED}", MASKED)  # type: ignore[attr-defined]
    del record.msg
    FILTER.filter(record)


# Where it stands


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    factory, root = logging.getLogRecordFactory(), logging.root
    handlers = list(root.handlers)
    filters = {handler: list(handler.filters) for handler in (*handlers, logging.lastResort) if handler}
    yield
    logging.setLogRecordFactory(factory)
    root.handlers[:] = handlers
    for handler, kept in filters.items():
        handler.filters[:] = kept


def handler_of(name: str) -> logging.StreamHandler[io.StringIO]:
    handler = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.DEBUG)
    return handler


def test_installed_it_reaches_every_logger_and_every_handler_that_is_made_later() -> None:
    early = handler_of("trail.early")
    install(SCHEME)
    late = handler_of("trail.late")
    for name, handler in (("trail.early.child", early), ("trail.late.child", late)):
        logging.getLogger(name).info("/?apikey=%s", KEY)
        assert handler.stream.getvalue() == f"/?apikey={MASKED}\n"


def test_installed_it_masks_the_further_attributes_for_handlers_that_were_there() -> None:
    handler = handler_of("trail.extra")
    handler.setFormatter(logging.Formatter("%(message)s %(url)s"))
    install(SCHEME)
    logging.getLogger("trail.extra").info("seen", extra={"url": f"/?apikey={KEY}"})
    assert handler.stream.getvalue() == f"seen /?apikey={MASKED}\n"


def test_installed_it_reaches_who_has_no_handler_at_all(capsys: Any) -> None:
    logging.root.handlers[:] = []
    install(SCHEME)
    logging.getLogger("trail.nobodys").warning("from %s", KEY, extra={"url": KEY})
    assert capsys.readouterr().err == f"from {MASKED}\n"


def test_installing_it_twice_is_installing_it_once() -> None:
    handler = handler_of("trail.twice")
    install(SCHEME)
    factory, filters = logging.getLogRecordFactory(), list(handler.filters)
    install(SEALED)
    assert logging.getLogRecordFactory() is factory
    assert handler.filters == filters
    assert len(filters) == 1


def test_two_schemes_are_both_masked() -> None:
    other = KeyScheme(prefix="beta").mint().text
    install(SCHEME)
    install(KeyScheme(prefix="beta"))
    install(SCHEME)
    assert logging.makeLogRecord({}).args is not None
    record = made("%s %s", KEY, other)
    assert record.getMessage() == f"{MASKED} {other.rpartition('_')[0]}_***"


def test_another_factory_of_records_goes_on_being_asked() -> None:
    class Record(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Record)
    install(SCHEME)
    record = made("%s", KEY)
    assert isinstance(record, Record)
    assert record.getMessage() == MASKED


def test_put_on_a_logger_it_masks_what_its_handlers_get_from_loggers_below() -> None:
    handler, other = handler_of("trail.placed"), handler_of("trail.other")
    install(SCHEME, logging.getLogger("trail.placed"))
    for name in ("trail.placed", "trail.placed.child", "trail.other"):
        logging.getLogger(name).info("from %s", KEY)
    assert handler.stream.getvalue() == f"from {MASKED}\n" * 2
    assert other.stream.getvalue() == f"from {KEY}\n"


def test_put_on_a_handler_it_masks_what_that_one_writes() -> None:
    handler = handler_of("trail.handled")
    install(SCHEME, handler)
    logging.getLogger("trail.handled.child").info("from %s", KEY)
    assert handler.stream.getvalue() == f"from {MASKED}\n"


def test_the_carriers_of_the_middleware_name_what_is_masked_whole() -> None:
    handler = handler_of("trail.carried")
    install(SCHEME, handler, carriers=[Query("token"), Header("X-Key"), Bearer()])
    logging.getLogger("trail.carried").info(
        "%s %s",
        "/?token=abcd&apikey=abcd",
        {"x-key": "abcd", "authorization": "Bearer abcd", "HTTP_X_KEY": "abcd"},
    )
    assert handler.stream.getvalue() == (
        "/?token=***&apikey=abcd {'x-key': '***', 'authorization': '***', 'HTTP_X_KEY': '***'}\n"
    )


def test_a_prefix_in_the_place_of_a_scheme_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"KeyScheme\(prefix='acme'\), not 'acme'"):
        install("acme")  # type: ignore[arg-type]


def test_a_configuration_names_it() -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "incremental": False,
            "disable_existing_loggers": False,
            "filters": {"keys": {"()": "apikey_auth.logs.KeyFilter", "prefix": "acme"}},
            "handlers": {
                "text": {"class": "logging.StreamHandler", "stream": io.StringIO(), "filters": ["keys"]},
            },
            "loggers": {"trail.configured": {"handlers": ["text"], "level": "INFO", "propagate": False}},
        }
    )
    (handler,) = logging.getLogger("trail.configured").handlers
    assert isinstance(handler, logging.StreamHandler)
    logging.getLogger("trail.configured.child").info("from %s", KEY)
    assert handler.stream.getvalue() == f"from {MASKED}\n"


def test_a_masked_record_travels_through_queues_and_pickles() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    install(SCHEME)
    logging.handlers.QueueHandler(records).handle(made("%s %s", {"url": KEY}, Shown(), exc_info=chained()))
    travelled = pickle.loads(pickle.dumps(records.get()))
    assert not leaks(everything_in(travelled))
    assert MASKED in travelled.getMessage()
