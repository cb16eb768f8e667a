"""What every adapter does with a request: one table, the same status, headers and body in all of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest
from applications import Send, World
from calling import Answer, Request

from apikey_auth import Bearer, Header, IssuedKey, KeyScheme, Query

CHALLENGE = 'ApiKey realm="api", in="header", name="apikey"'

DETAILS = {
    "missing_key": (401, "This request needs an API key."),
    "invalid_key": (401, "The API key is not valid."),
    "revoked_key": (401, "The API key has been revoked."),
    "disabled_key": (401, "The API key is disabled."),
    "expired_key": (401, "The API key has expired."),
    "inactive_user": (401, "The owner of the API key is not active."),
    "address_not_allowed": (403, "The API key may not be used from this address."),
    "insecure_transport": (403, "An API key must be sent over an encrypted connection, https."),
    "insufficient_scope": (403, "The API key lacks the scope reports:read."),
    "ambiguous_key": (400, "The request carries more than one API key."),
    "store_unavailable": (503, "API keys cannot be checked at the moment."),
}


BLANK = "it has white space in it or around it"
STRANGE = "it has characters in it that no key has"
MISTYPED = "it was mistyped or altered, as its last characters do not fit the others"
COMMA = "the header apikey was sent more than once, or holds a comma"
IN_URL_TWICE = "the parameter apikey is in the URL more than once"
DIFFERENT = "those in a header and the URL differ"
ELSEWHERE = "it is a key of another product or environment; keys here begin with acme_"


def problem(code: str, hint: str = "") -> bytes:
    status, detail = DETAILS[code]
    detail = f"{detail[:-1]}: {hint}." if hint else detail
    title = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 503: "Service Unavailable"}[status]
    reduced = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
    kind = reduced if status == 503 else "about:blank"
    return json.dumps(
        {"type": kind, "title": title, "status": status, "detail": detail, "code": code}
    ).encode()


@dataclass
class Case:
    """A request made from a key, and what it must come to: a code of DETAILS, or a user's name."""

    code: str | None
    make: Callable[[World], Request]
    user: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    carried: bool = True  # whether the request carried a key
    hint: str = ""  # what the answer says of the text


def issued(world: World, **fields: Any) -> IssuedKey:
    return world.keys.issue("1", **({"scopes": ["reports:read"]} | fields))


def header(text: str, target: str = "/me", **fields: Any) -> Request:
    return Request(target, (("apikey", text),), **fields)


def in_header(target: str = "/me", **fields: Any) -> Callable[[World], Request]:
    return lambda world: header(issued(world, **fields).text, target)


def sending(text: str) -> Callable[[World], Request]:
    return lambda world: header(text)


def target(path: str) -> Callable[[World], Request]:
    """Put a key's text where the path says <key>."""
    return lambda world: Request(path.replace("<key>", issued(world).text))


def wrong_secret(world: World) -> Request:
    other = world.scheme.mint(issued(world).key.id)
    return header(other.text)


def moved(seconds: float, **fields: Any) -> Callable[[World], Request]:
    """Issue a key now, and ask that much later."""

    def make(world: World) -> Request:
        request = header(issued(world, **fields).text)
        world.now += timedelta(seconds=seconds)
        return request

    return make


def revoked(world: World) -> Request:
    key = issued(world)
    world.keys.revoke(key.key.id)
    return header(key.text)


def disabled(world: World) -> Request:
    key = issued(world)
    world.keys.edit(key.key.id, disabled=True)
    return header(key.text)


def rotated(seconds: float) -> Callable[[World], Request]:
    def make(world: World) -> Request:
        key = issued(world)
        world.keys.rotate(key.key.id, grace=timedelta(hours=1))
        world.now += timedelta(seconds=seconds)
        return header(key.text)

    return make


def another_scheme(world: World) -> Request:
    return header(KeyScheme(prefix="other").mint().text)


def bad_check(world: World) -> Request:
    text = issued(world).text
    return header(text[:-1] + ("0" if text[-1] != "0" else "1"))


def two_headers(first: str, second: str) -> Callable[[World], Request]:
    def make(world: World) -> Request:
        text = issued(world).text
        values = (value.replace("<key>", text) for value in (first, second))
        return Request("/me", tuple(("apikey", value) for value in values))

    return make


def header_and_url(same: bool) -> Callable[[World], Request]:
    def make(world: World) -> Request:
        text = issued(world).text
        return header(text, f"/me?apikey={text if same else issued(world).text}")

    return make


def owned_by(owner: str) -> Callable[[World], Request]:
    return lambda world: header(world.keys.issue(owner).text)


def from_address(client: str | None, *, forwarded: str | None = None) -> Callable[[World], Request]:
    def make(world: World) -> Request:
        text = issued(world, addresses=["203.0.113.0/24"]).text
        request = header(text, client=client)
        return request.with_header("X-Forwarded-For", forwarded) if forwarded else request

    return make


def store_down(world: World) -> Request:
    text = issued(world).text

    class Down:
        def get(self, key_id: str, /) -> None:
            raise ConnectionError("connection refused")

    world.store = Down()
    return header(text)


def bearer(value: str) -> Callable[[World], Request]:
    return lambda world: Request("/me", (("Authorization", value.replace("<key>", issued(world).text)),))


def options_request(*names: str) -> Callable[[World], Request]:
    return lambda world: Request("/public", tuple((name, "GET") for name in names), "OPTIONS")


REQUIRED = {"required": True}
ANONYMOUS = {"on_invalid": "anonymous"}
PROXIES = {"trusted_proxies": ["10.0.0.0/8"]}
BEARER = {"carriers": [Header("apikey"), Bearer()]}

TABLE: dict[str, Case] = {
    "a key in the header": Case(None, in_header(), "ada"),
    "a key in a header of another case": Case(
        None, lambda w: Request("/me", (("ApiKey", issued(w).text),)), "ada"
    ),
    "a key with blanks around it": Case(None, lambda w: header(f" {issued(w).text}\t"), "ada"),
    "a key in the URL": Case(None, target("/me?apikey=<key>"), "ada"),
    "a key in the URL, in another case": Case(None, target("/me?x=1&ApiKey=<key>"), "ada"),
    "a key in the URL, its name percent-encoded": Case(None, target("/me?%61pi%4Bey=<key>"), "ada"),
    "a key in the URL, an underscore of it percent-encoded": Case(
        None, lambda w: Request("/me?apikey=" + issued(w).text.replace("_", "%5F")), "ada"
    ),
    "header and URL the same": Case(None, header_and_url(same=True), "ada"),
    "header and URL different": Case("ambiguous_key", header_and_url(same=False), hint=DIFFERENT),
    "two headers, different": Case("ambiguous_key", two_headers("<key>", "other"), hint=COMMA),
    "two headers, the same": Case("ambiguous_key", two_headers("<key>", "<key>"), hint=COMMA),
    "two headers, one of them empty": Case("ambiguous_key", two_headers("", "<key>"), hint=COMMA),
    "two keys in a header, joined by a comma": Case("ambiguous_key", sending("one,two"), hint=COMMA),
    "key twice in the URL, the same": Case(
        "ambiguous_key", target("/me?apikey=<key>&APIKEY=<key>"), hint=IN_URL_TWICE
    ),
    "key twice in the URL, different": Case(
        "ambiguous_key", target("/me?apikey=<key>&apikey=other"), hint=IN_URL_TWICE
    ),
    "no key where none is needed": Case(None, lambda w: Request("/public"), None, carried=False),
    "no key where the route needs one": Case("missing_key", lambda w: Request("/me"), carried=False),
    "no key where the middleware needs one": Case(
        "missing_key", lambda w: Request("/public"), options=REQUIRED, carried=False
    ),
    "an empty header": Case("missing_key", sending(""), carried=False),
    "a blank header": Case("missing_key", sending(" \t "), carried=False),
    "an empty parameter": Case("missing_key", target("/me?apikey="), carried=False),
    "a blank parameter": Case("missing_key", target("/me?apikey=+%20"), carried=False),
    "a parameter without a value": Case("missing_key", target("/me?apikey"), carried=False),
    "10 kB": Case("invalid_key", sending("x" * 10_000)),
    "10 kB that begin as a key": Case("invalid_key", lambda w: header(issued(w).text + "x" * 10_000)),
    "bytes 0x80 to 0xFF": Case(
        "invalid_key", sending(bytes(range(0x80, 0x100)).decode("latin-1")), hint=BLANK
    ),
    "a key and a byte beyond ASCII": Case(
        "invalid_key", lambda w: header(issued(w).text + "\xff"), hint=STRANGE
    ),
    "bytes beyond ASCII in the URL": Case("invalid_key", target("/me?apikey=%80%FF%C3%A9")),
    "NUL": Case("invalid_key", lambda w: header(issued(w).text + "\0"), hint=STRANGE),
    "NUL in the URL": Case("invalid_key", target("/me?apikey=<key>%00"), hint=STRANGE),
    "control characters": Case("invalid_key", sending("\x01\x02\x1f\x7f")),
    "control characters in the URL": Case("invalid_key", target("/me?apikey=%01%0D%0A%7F"), hint=BLANK),
    "a blank in the URL, behind the key": Case("invalid_key", target("/me?apikey=<key>%20"), hint=BLANK),
    "the wrong prefix": Case("invalid_key", another_scheme, hint=ELSEWHERE),
    "a bad check": Case("invalid_key", bad_check, hint=MISTYPED),
    "a key in another case": Case("invalid_key", lambda w: header(issued(w).text.swapcase())),
    "an unknown id": Case("invalid_key", lambda w: header(w.scheme.mint().text)),
    "the right id with a wrong secret": Case("invalid_key", wrong_secret),
    "a foreign Authorization scheme": Case(
        "missing_key", bearer("Basic YTpi"), options=BEARER, carried=False
    ),
    "a Bearer token": Case(None, bearer("Bearer <key>"), "ada", BEARER),
    "a Bearer token, its scheme in another case": Case(None, bearer("bEARER  <key>"), "ada", BEARER),
    "Bearer where it is no carrier": Case("missing_key", bearer("Bearer <key>"), carried=False),
    "a bad Bearer token": Case("invalid_key", bearer("Bearer nonsense"), options=BEARER),
    "expired this very second": Case("expired_key", moved(60, expires_in=timedelta(seconds=60))),
    "one second left": Case(None, moved(59, expires_in=timedelta(seconds=60)), "ada"),
    "revoked": Case("revoked_key", revoked),
    "disabled": Case("disabled_key", disabled),
    "in grace": Case(None, rotated(3599), "ada"),
    "past grace": Case("expired_key", rotated(3600)),
    "an address of its list": Case(None, from_address("203.0.113.7"), "ada"),
    "in the clear where that is refused": Case(
        "insecure_transport",
        lambda w: header(issued(w).text, client="203.0.113.9"),
        options={"insecure": "refuse"},
    ),
    "an address outside its list": Case("address_not_allowed", from_address("198.51.100.7")),
    "no address where it has a list": Case("address_not_allowed", from_address(None)),
    "an address of its list, forwarded by a named proxy": Case(
        None, from_address("10.0.0.1", forwarded="198.51.100.1, 203.0.113.7"), "ada", PROXIES
    ),
    "an address of its list, claimed by the client behind a named proxy": Case(
        "address_not_allowed",
        from_address("10.0.0.1", forwarded="203.0.113.7, 198.51.100.1"),
        options=PROXIES,
    ),
    "an address of its list, forwarded by nobody named": Case(
        "address_not_allowed", from_address("198.51.100.1", forwarded="203.0.113.7")
    ),
    "scope missing": Case("insufficient_scope", in_header("/reports", scopes=["reports:write"])),
    "no scopes": Case("insufficient_scope", in_header("/reports", scopes=())),
    "all scopes": Case(None, in_header("/reports", scopes=None), "ada"),
    "user gone": Case("inactive_user", owned_by("99")),
    "user inactive": Case("inactive_user", owned_by("2")),
    "owner that is no user's id": Case("inactive_user", owned_by("nobody's")),
    "store raising": Case("store_unavailable", store_down),
    "store raising, bad keys let in as visitors": Case("store_unavailable", store_down, options=ANONYMOUS),
    "a bad key, let in as a visitor": Case(
        None, lambda w: header("nonsense", "/public"), None, options=ANONYMOUS
    ),
    "a revoked key, let in as a visitor where a key is needed": Case(
        "revoked_key", revoked, options=ANONYMOUS
    ),
    "a bad key, let in as a visitor where the middleware needs one": Case(
        "invalid_key", lambda w: header("nonsense", "/public"), options=ANONYMOUS | REQUIRED
    ),
    "two keys, bad ones let in as visitors": Case(
        "ambiguous_key", sending("one,two"), options=ANONYMOUS, hint=COMMA
    ),
    "a bad key on a public page": Case("invalid_key", lambda w: header("nonsense", "/public")),
    "a CORS preflight": Case(
        None,
        options_request("Origin", "Access-Control-Request-Method"),
        None,
        options=REQUIRED,
        carried=False,
    ),
    "OPTIONS that is no preflight": Case(
        "missing_key", options_request("Origin"), options=REQUIRED, carried=False
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_adapter_answers_alike(name: str, build: Callable[..., Send], world: World) -> None:
    case = TABLE[name]
    request = case.make(world)
    answer = build(**case.options)(request)

    if case.code is None:
        assert answer.status == 200
        assert json.loads(answer.body)["user"] == case.user
    else:
        assert_refused(answer, case.code, bearer="carriers" in case.options, hint=case.hint)
    if "preflight" in name and "no preflight" not in name:
        assert answer.header("vary") is None
    else:
        assert answer.header("vary") == ("apikey, Authorization" if "carriers" in case.options else "apikey")
    in_url = case.carried and "?" in request.target
    if case.code is None:
        assert answer.header("cache-control") == (
            "no-store" if in_url else "private" if case.carried else None
        )
    assert answer.header("referrer-policy") == ("no-referrer" if in_url else None)


def assert_refused(answer: Answer, code: str, *, bearer: bool = False, hint: str = "") -> None:
    status = DETAILS[code][0]
    assert (answer.status, answer.body) == (status, problem(code, hint))
    assert answer.header("content-type") == "application/problem+json"
    assert answer.header("content-length") == str(len(answer.body))
    assert answer.header("cache-control") == "no-store"
    assert answer.header("retry-after") in (("1", "2") if status == 503 else (None,))
    challenges = [CHALLENGE] if status == 401 else []
    if bearer:
        error = "" if code == "missing_key" else ', error="invalid_token"'
        challenges.append(f'Bearer realm="api"{error}')
    assert answer.header("www-authenticate") == (", ".join(challenges) or None)


def test_the_table_names_every_code() -> None:
    assert {case.code for case in TABLE.values()} == {*DETAILS, None}


def test_every_refusal_has_the_phrase_of_its_status() -> None:
    for code, (status, _) in DETAILS.items():
        assert json.loads(problem(code))["title"] == HTTPStatus(status).phrase


def test_head_is_answered_as_get_without_the_body(build: Callable[..., Send]) -> None:
    send = build(required=True)
    got, headed = send(Request("/me")), send(Request("/me", method="HEAD"))
    assert headed.body == b""
    assert got.body != b""
    assert (headed.status, headed.headers) == (got.status, got.headers)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a=1&apikey=<key>&b=2", "a=1&b=2"),
        ("apikey=<key>", ""),
        ("a=%20+&APIKEY=<key>&&b", "a=%20+&&b"),
        ("apikey=", ""),
    ],
)
def test_the_application_never_sees_a_key_in_the_url(
    build: Callable[..., Send], world: World, before: str, after: str
) -> None:
    text = issued(world).text
    answer = build()(Request("/public?" + before.replace("<key>", text)))
    assert json.loads(answer.body)["query"] == after
    places = ("RAW_URI", "REQUEST_URI", "QUERY_STRING", "query_string", "raw_path")
    assert text not in "".join(str(answer.holder.get(place)) for place in places)


def test_parameters_with_other_names_stay(build: Callable[..., Send]) -> None:
    answer = build()(Request("/public?other=abcd&apikeys=abcd&%FFapikey=1"))
    assert json.loads(answer.body)["query"] == "other=abcd&apikeys=abcd&%FFapikey=1"


def test_the_key_is_cut_out_of_an_exempt_pages_url_too(build: Callable[..., Send], world: World) -> None:
    text = issued(world).text
    answer = build(required=True, exempt=["/public"])(Request(f"/public?apikey={text}&a=1"))
    assert json.loads(answer.body) == {"user": None, "query": "a=1"}
    assert answer.header("cache-control") == "no-store"


@pytest.mark.parametrize(
    ("exempt", "path", "status"),
    [
        (["/public"], "/public", 200),
        (["/public"], "/public/", 401),
        (["/public"], "/me", 401),
        (["/pub"], "/public", 401),
        (["/p/"], "/p/../me", 401),
        (["/p/"], "/p/%2e%2e/me", 401),
        (["/p/"], "/p//me", 401),
        (["/"], "/me", 401),
    ],
)
def test_exempt_paths_need_no_key_and_open_no_other(
    build: Callable[..., Send], exempt: list[str], path: str, status: int
) -> None:
    assert build(required=True, exempt=exempt)(Request(path)).status == status


def test_an_exempt_prefix_opens_what_is_below_it(build: Callable[..., Send]) -> None:
    answer = build(required=True, exempt=["/nothing/"])(Request("/nothing/here"))
    assert answer.status in (404, 200)
    assert answer.header("www-authenticate") is None


def test_a_bad_key_on_an_exempt_page_is_not_looked_at(build: Callable[..., Send], world: World) -> None:
    send = build(required=True, exempt=["/public"])
    assert send(header("nonsense", "/public")).status == 200
    assert send(header("one,two", "/public")).status == 200


APPLICATIONS_OWN = [
    ("Cache-Control", "no-store", "no-store", "no-store"),
    ("Cache-Control", "private, max-age=60", "private, max-age=60", "private, max-age=60, no-store"),
    ("Cache-Control", "public, max-age=60", "max-age=60, private", "max-age=60, no-store"),
    ("Cache-Control", "s-maxage=60", "private", "no-store"),
    ("Cache-Control", 'private="set-cookie"', "private", "no-store"),
    ("Vary", "Accept", "Accept, apikey", "Accept, apikey"),
    ("Vary", "ApiKey", "ApiKey", "ApiKey"),
    ("Vary", "*", "*", "*"),
    ("Referrer-Policy", "origin", "origin", "no-referrer"),
]


@pytest.mark.parametrize(("name", "own", "with_header", "with_url"), APPLICATIONS_OWN)
def test_what_the_application_set_is_made_stricter_and_never_weaker(
    build: Callable[..., Send], world: World, name: str, own: str, with_header: str, with_url: str
) -> None:
    send, text = build(), issued(world).text
    asked = Request("/headers", ((f"Set-{name}", own),))
    assert send(asked.with_header("apikey", text)).header(name.lower()) == with_header
    assert send(replace(asked, target=f"/headers?apikey={text}")).header(name.lower()) == with_url


def test_a_page_asked_without_a_key_keeps_its_caching(build: Callable[..., Send]) -> None:
    answer = build()(Request("/headers", (("Set-Cache-Control", "public, max-age=60"),)))
    assert answer.header("cache-control") == "public, max-age=60"


def test_options_choose_carriers_and_realm(build: Callable[..., Send], world: World) -> None:
    send = build(carriers=[Query("token"), Header("X-Key")], realm="reports of Acme", required=True)
    text = issued(world).text
    assert send(Request(f"/me?TOKEN={text}")).status == 200
    assert send(Request("/me", (("x-key", text),))).status == 200
    refused = send(header(text))
    assert refused.status == 401
    assert refused.header("www-authenticate") == 'ApiKey realm="reports of Acme", in="query", name="token"'
    assert refused.header("vary") == "X-Key"
