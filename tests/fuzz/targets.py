"""What is fuzzed: functions of bytes that return for every input, and raise for a fault of the library's.

Each compares the library with what is written here or in ``inputs`` apart from it, in the plainest way: a
text that lets in is an issued text, byte for byte, and what is cut out of a URL leaves the rest as it was.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_to_bytes

from calling import Answer, Request, acall_asgi, call_wsgi

import apikey_auth.asgi
import apikey_auth.wsgi
from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Bearer,
    Header,
    Inline,
    InvalidKey,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    Query,
    opaque_tokens,
)
from apikey_auth.credentials import Carrier, read
from apikey_auth.formats import DRFAPIKeys, KnoxTokens, SanctumTokens
from apikey_auth.hints import hint
from apikey_auth.keys import MAX_TEXT
from apikey_auth.management import OwnKeys, Sensenet
from apikey_auth.management import handler as management
from apikey_auth.management.bodies import fields_of
from apikey_auth.management.rights import Caller
from apikey_auth.policy import Policy

from .inputs import ADA, BOB, CHIEF, KEYS, LEGACY, Input, parameters, value_of, written_out

NOW = datetime(2026, 3, 14, tzinfo=UTC)
SCHEME = KeyScheme("acme")
STORE = MemoryKeyStore()
_manager = KeyManager(STORE, SCHEME, clock=lambda: NOW)
for _owner, _text in KEYS.items():
    _manager.ensure(_owner, text=_text, name="fuzzed", expires_in=None)
RECORDS = {key.id: key for key in STORE.find().items}

# Reading keys

CARRIERS: list[Sequence[Carrier]] = [
    [Header("apikey"), Query("apikey")],
    [Header("apikey"), Bearer(), Query("apikey")],
    [Bearer("Token"), Bearer(), Query("token"), Query("apikey")],
    [Header("X-API-Key")],
]


def carried(carriers: Sequence[Carrier], given: Input) -> tuple[bool, str | None, str]:
    """Tell what a request carries: whether it is ambiguous, the one text, and the query string to leave."""
    found: list[list[str]] = []
    pairs = given.query.split("&")
    for carrier in carriers:
        if isinstance(carrier, Query):
            split = parameters("&".join(pairs), carrier.name)
            values = [value_of(pair) for pair, named in split if named]
            found.append([value if value.strip(" \t") else "" for value in values])
            pairs = [pair for pair, named in split if not named]
            continue
        value = given.header(carrier.name)
        if value is not None and isinstance(carrier, Bearer):
            first, _, value = value.strip(" \t").partition(" ")
            value = value if first.lower() == carrier.scheme.lower() else None
        found.append([] if value is None else [each.strip(" \t") for each in value.split(",")])
    texts = {text for values in found for text in values if text}
    if any(len(values) > 1 for values in found) or len(texts) > 1:
        return True, None, "&".join(pairs)
    return False, texts.pop() if texts else None, "&".join(pairs)


def credentials(data: bytes) -> None:
    """Carriers read what is there, and leave the rest of the query string byte for byte."""
    given = Input.of(data)
    carriers = CARRIERS[given.choice % len(CARRIERS)]
    seen = read(carriers, given.header, given.query)
    assert (seen.ambiguous, seen.text, seen.query) == carried(carriers, given)
    assert (seen.clash is not None) == seen.ambiguous
    again = read([each for each in carriers if isinstance(each, Query)], given.header, seen.query)
    assert (again.carried, again.query) == (False, seen.query)


# Key texts

PEPPER = "a pepper only for fuzzing"
SCHEMES = [
    SCHEME,
    KeyScheme("acme", seal_keys=["a seal only for fuzzing"]),
    KeyScheme("acme", seal_keys=["a seal only for fuzzing"], require_seal=True),
    KeyScheme("acme", formats=[DRFAPIKeys(), KnoxTokens(), SanctumTokens()]),
    KeyScheme("acme", [PEPPER], formats=[KnoxTokens(prefix="kn"), opaque_tokens(PEPPER)]),
]
_SPELLED = [[*KEYS.values()], [*KEYS.values()], [], [*KEYS.values(), *LEGACY], [*KEYS.values(), "abcd"]]
ISSUED = [{text: each.parse(text) for text in texts} for each, texts in zip(SCHEMES, _SPELLED, strict=True)]
_COUNT = re.compile(r"\d+")
_DETAILS: set[str] = set()
_SENTENCES = 30  # more than there are; a sentence that repeated texts would soon be more than that


def parse(data: bytes) -> None:
    """A text is refused without a word of it, or is a key; whoever has another text has another key."""
    choice = data[0] if data else 0
    text = _decoded(written_out(data[1:]), choice)
    number = choice // 3 % len(SCHEMES)
    scheme = SCHEMES[number]
    try:
        presented = scheme.parse(text)
    except InvalidKey as refusal:
        _check_detail(refusal.detail)
        return
    assert len(text) <= MAX_TEXT
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & {" ", ","}
    if presented.prefix:
        assert hint(text, scheme) is None
        assert text.startswith(f"acme_{presented.id}_{presented.secret}")
        assert presented.text == text
    for spelled, issued in ISSUED[number].items():
        same_key = presented.id == issued.id and scheme.matches(scheme.digest(issued.text), presented.text)
        assert same_key == (text == spelled)


def _decoded(data: bytes, choice: int) -> str:
    """Read text out of bytes in one of three ways, so that every text has its bytes, surrogates too."""
    if choice % 3 == 0:
        return data.decode("latin-1")
    if choice % 3 == 1:
        return data.decode("utf-8", "replace")
    return data[: len(data) // 2 * 2].decode("utf-16-le", "surrogatepass")


def _check_detail(detail: str) -> None:
    assert re.fullmatch(r"The API key is not valid(: [a-z][^.]+)?\.", detail)
    _DETAILS.add(_COUNT.sub("", detail))
    assert len(_DETAILS) < _SENTENCES


# Managing keys, without any adapter

BY_OWNER = {key.owner: key for key in RECORDS.values()}
DIALECT = Sensenet(rights=OwnKeys(is_admin=lambda caller: caller.owner == CHIEF))
POLICY = Policy()


def _caller(choice: int) -> Caller:
    """Choose who asks: a visitor, a user, or the key of one."""
    owner = [None, ADA, BOB, CHIEF][choice % 4]
    return Caller(owner, owner, BY_OWNER[owner] if owner is not None and choice // 4 % 2 else None)


def sensenet(data: bytes) -> None:
    """Every request to sensenet's actions is answered below 500, and changes what its caller may change."""
    given = Input.of(data)
    caller = _caller(given.choice)
    store = MemoryKeyStore()
    for key in RECORDS.values():
        store.add(key)
    path = unquote_to_bytes(given.target.partition("?")[0]).decode("utf-8", "replace")
    path = path.removeprefix("/odata.svc")
    visit = POLICY.visit(given.method, path, given.header, given.query)
    request = management.Request(
        given.method, path, "/odata.svc", visit.query, given.header, given.body, caller, visit
    )
    manager = KeyManager(store, SCHEME, clock=lambda: NOW)
    answer = management.play(DIALECT.respond(request, manager))
    _check_answer(answer.status, answer.headers, answer.body)
    changed = {key.id: key for key in store.find(limit=1000).items if key != RECORDS.get(key.id)}
    assert set(RECORDS) <= {key.id for key in store.find(limit=1000).items}
    assert not changed or (answer.status < 300 and given.method == "POST" and caller.owner is not None)
    for key_id, key in changed.items():
        assert caller.owner in (key.owner, CHIEF)
        if key_id in RECORDS and path.lower().rstrip("/").endswith("/deleteapikey"):
            fields = fields_of(given.body, given.header("Content-Type"))
            assert fields["apikey"] in (key_id, KEYS[key.owner])


def _check_answer(status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
    """An answer that a server can send and that gives nothing of the store away."""
    assert 200 <= status < 500
    assert all(value.isprintable() and value.isascii() for _, value in headers)
    text = body.decode("ascii")
    assert not any(key.digest[-64:] in text for key in RECORDS.values())
    if "json" in dict(headers).get("Content-Type", "") and body:
        json.loads(text)


# Whole requests

Seen = list[tuple[str | None, str]]
"""What the application saw: the owner, and the query string."""

OPTIONS: list[dict[str, Any]] = [
    {},
    {"required": True},
    {"carriers": CARRIERS[1]},
    {"carriers": CARRIERS[2], "required": True},
    {"on_invalid": "anonymous"},
    {"exempt": ["/public/", "/odata.svc"], "trusted_proxies": ["10.0.0.0/8", "unix"]},
]


def _wsgi_site(options: dict[str, Any], seen: Seen, *, managed: bool) -> Any:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        identity = environ.get("apikey_auth.identity")
        seen.append((identity and identity.key.owner, environ["QUERY_STRING"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"seen"]

    auth = Authenticator(STORE, SCHEME, clock=lambda: NOW, cache_size=0 if managed else 100)
    inner: Any = application
    if managed:
        inner = apikey_auth.wsgi.mount(
            application, "/odata.svc", apikey_auth.wsgi.KeyManagement(auth, DIALECT)
        )
    return apikey_auth.wsgi.APIKeyMiddleware(inner, auth, **options)


def _asgi_site(options: dict[str, Any], seen: Seen, *, managed: bool) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        identity = scope.get("apikey_auth.identity")
        seen.append((identity and identity.key.owner, scope["query_string"].decode("latin-1")))
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"seen"})

    auth = AsyncAuthenticator(Inline(STORE), SCHEME, clock=lambda: NOW, cache_size=0 if managed else 100)
    inner: Any = application
    if managed:
        inner = apikey_auth.asgi.mount(
            application, "/odata.svc", apikey_auth.asgi.KeyManagement(auth, DIALECT)
        )
    return apikey_auth.asgi.APIKeyMiddleware(inner, auth, **options)


_SEEN: Seen = []
_WSGI = [[_wsgi_site(each, _SEEN, managed=managed) for each in OPTIONS] for managed in (False, True)]
_ASGI = [[_asgi_site(each, _SEEN, managed=managed) for each in OPTIONS] for managed in (False, True)]
_LOOP = asyncio.new_event_loop()


def wsgi(data: bytes) -> None:
    """A WSGI application is answered for as far as its requests' keys go, and no further."""
    _check_request(data, call_wsgi, _WSGI)


def asgi(data: bytes) -> None:
    """An ASGI application is answered for as a WSGI application is."""
    answer = _check_request(data, _call_asgi, _ASGI)
    if answer is None:
        return
    other = _check_request(data, call_wsgi, _WSGI)
    assert other is not None
    assert (answer.status, sorted(answer.headers), answer.body) == (
        other.status,
        sorted(other.headers),
        other.body,
    )


def _call_asgi(application: Any, request: Request) -> Answer:
    return _LOOP.run_until_complete(acall_asgi(application, request))


def _check_request(data: bytes, call: Callable[..., Answer], sites: list[list[Any]]) -> Answer | None:
    """Send a request, and compare what came of it with what it carries; answer what can be compared."""
    given = Input.of(data)
    number, managed = given.choice % len(OPTIONS), given.choice // len(OPTIONS) % 2
    options = OPTIONS[number]
    STORE._keys = dict(RECORDS)
    _SEEN.clear()
    request = Request(given.target, given.headers, given.method, "127.0.0.1", given.body)
    answer = call(sites[managed][number], request)
    _check_answer(answer.status, answer.headers, answer.body)
    ambiguous, text, rest = carried(options.get("carriers", CARRIERS[0]), given)
    owner = next((owner for owner, issued in KEYS.items() if issued == text), None)
    if (target := answer.holder.get("RAW_URI")) is not None:
        path = given.target.partition("?")[0]
        assert target == (given.target if rest == given.query else f"{path}?{rest}" if rest else path)
    for who, query in _SEEN:
        assert query == rest
        assert who == owner or who is None
    looked = "exempt" not in options and given.method != "OPTIONS"
    if looked and ambiguous:
        assert answer.status == 400
    if looked and text is not None and owner is None and "on_invalid" not in options:
        assert answer.status == 401
    if looked and text is None and not ambiguous and "required" in options:
        assert answer.status == 401
    if looked and _SEEN:
        assert [(owner, rest)] == _SEEN
    return None if b'"Value": "acme_' in answer.body else answer


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (credentials, parse, sensenet, wsgi, asgi)
}
