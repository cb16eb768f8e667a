"""Refusals as HTTP, byte for byte, and headers that keep an answer private without weakening it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth import errors
from apikey_auth.credentials import Bearer, Header, Query
from apikey_auth.errors import ConfigurationError, InsufficientScope, StoreUnavailable
from apikey_auth.responses import GUARDED, guard, respond, vary_on

BOTH = (Header(), Query())
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
REFUSALS = {
    "missing_key": (errors.MissingKey(), 401, "Unauthorized", "This request needs an API key."),
    "invalid_key": (errors.InvalidKey(), 401, "Unauthorized", "The API key is not valid."),
    "revoked_key": (errors.RevokedKey(), 401, "Unauthorized", "The API key has been revoked."),
    "disabled_key": (errors.DisabledKey(), 401, "Unauthorized", "The API key is disabled."),
    "expired_key": (errors.ExpiredKey(), 401, "Unauthorized", "The API key has expired."),
    "inactive_user": (errors.InactiveUser(), 401, "Unauthorized", "The owner of the API key is not active."),
    "address_not_allowed": (
        errors.AddressNotAllowed(),
        403,
        "Forbidden",
        "The API key may not be used from this address.",
    ),
    "insecure_transport": (
        errors.InsecureTransport(),
        403,
        "Forbidden",
        "An API key must be sent over an encrypted connection, https.",
    ),
    "insufficient_scope": (
        InsufficientScope(["a", "b"]),
        403,
        "Forbidden",
        "The API key lacks the scope a b.",
    ),
    "ambiguous_key": (
        errors.AmbiguousKey(),
        400,
        "Bad Request",
        "The request carries more than one API key.",
    ),
    "store_unavailable": (
        StoreUnavailable("secret host name"),
        503,
        "Service Unavailable",
        "API keys cannot be checked at the moment.",
    ),
}


def answer(refusal, carriers=BOTH, realm="api", method="GET", in_url=False):
    return respond(refusal, carriers, realm, method, in_url)


def headers(response, name):
    return [value for each, value in response.headers if each.lower() == name.lower()]


def test_every_refusal_of_the_library_is_in_the_table():
    known = {
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.Refusal)
    }
    assert {type(row[0]) for row in REFUSALS.values()} == known - {errors.Refusal, errors.AuthenticationError}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_answered_with_its_status_and_a_problem(code):
    refusal, status, title, detail = REFUSALS[code]
    response = answer(refusal)
    assert (response.status, response.status_line) == (status, f"{status} {title}")
    assert headers(response, "Content-Type") == ["application/problem+json"]
    assert headers(response, "Content-Length") == [str(len(response.body))]
    assert json.loads(response.body) == {
        "type": REDUCED_CAPACITY if status == 503 else "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }


def test_a_refusal_of_the_applications_own_may_have_a_status_that_no_rfc_names():
    class Late(errors.AuthenticationError):
        status, code, detail = 460, "late", "You are late."

    response = answer(Late())
    assert (response.status, response.status_line) == (460, "460 Refused")
    assert json.loads(response.body)["title"] == "Refused"


@pytest.mark.parametrize("code", REFUSALS)
def test_no_refusal_is_stored_by_any_cache(code):
    assert headers(answer(REFUSALS[code][0]), "Cache-Control") == ["no-store"]


@pytest.mark.parametrize("code", REFUSALS)
def test_the_answer_to_a_head_is_that_to_a_get_without_its_body(code):
    get, head = (answer(REFUSALS[code][0], method=method) for method in ("GET", "HEAD"))
    same = [pair for pair in get.headers if pair[0] != "Retry-After"]  # that one is random
    assert [pair for pair in head.headers if pair[0] != "Retry-After"] == same
    assert (head.status, head.body) == (get.status, b"")
    assert get.body


def test_the_reason_of_a_failure_is_not_told_to_the_client():
    assert b"secret host name" not in answer(REFUSALS["store_unavailable"][0]).body


def test_an_unavailable_store_says_when_to_come_back_and_nothing_else_does():
    refusal = StoreUnavailable()
    assert headers(answer(refusal), "Retry-After") in (["1"], ["2"])
    refusal.retry_after = 30
    for odd, least in [(0, 1), (-5, 1), (0.25, 1), (2.5, 3)]:
        refusal.retry_after = odd
        assert least <= int(*headers(answer(refusal), "Retry-After")) <= 2 * least
    refusal.retry_after = 30
    told = {int(*headers(answer(refusal), "Retry-After")) for _ in range(500)}
    assert (min(told) >= 30, max(told) <= 60, len(told) > 10) == (True, True, True)
    for code, (other, *_) in REFUSALS.items():
        assert bool(headers(answer(other), "Retry-After")) is (code == "store_unavailable")


API_KEY = 'ApiKey realm="api", in="header", name="apikey"'


@pytest.mark.parametrize("code", REFUSALS)
def test_every_401_says_where_a_key_belongs_and_no_other_status_does(code):
    refusal, status, *_ = REFUSALS[code]
    assert headers(answer(refusal), "WWW-Authenticate") == ([API_KEY] if status == 401 else [])


@pytest.mark.parametrize(
    ("carriers", "challenge"),
    [
        ([Header("X-API-Key")], 'ApiKey realm="api", in="header", name="X-API-Key"'),
        ([Query("token")], 'ApiKey realm="api", in="query", name="token"'),
        ([Query("token"), Header()], 'ApiKey realm="api", in="query", name="token"'),
        ([Header(), Query("token")], 'ApiKey realm="api", in="header", name="apikey"'),
        ([Header("a"), Header("b")], 'ApiKey realm="api", in="header", name="a"'),
    ],
)
def test_a_challenge_names_the_first_place_that_is_not_authorization(carriers, challenge):
    assert headers(answer(errors.MissingKey(), carriers), "WWW-Authenticate") == [challenge]


BEARER = {
    "missing_key": ['Bearer realm="api"'],
    "invalid_key": ['Bearer realm="api", error="invalid_token"'],
    "revoked_key": ['Bearer realm="api", error="invalid_token"'],
    "disabled_key": ['Bearer realm="api", error="invalid_token"'],
    "expired_key": ['Bearer realm="api", error="invalid_token"'],
    "inactive_user": ['Bearer realm="api", error="invalid_token"'],
    "address_not_allowed": ['Bearer realm="api", error="insufficient_scope"'],
    "insecure_transport": [],
    "insufficient_scope": ['Bearer realm="api", error="insufficient_scope", scope="a b"'],
    "ambiguous_key": ['Bearer realm="api", error="invalid_request"'],
    "store_unavailable": [],
}


@pytest.mark.parametrize("code", REFUSALS)
def test_where_bearer_is_taken_rfc_6750_writes_the_challenge(code):
    refusal, status, *_ = REFUSALS[code]
    assert headers(answer(refusal, [Bearer()]), "WWW-Authenticate") == BEARER[code]
    both = ", ".join(([API_KEY] if status == 401 else []) + BEARER[code])
    assert headers(answer(refusal, [Bearer(), Header()]), "WWW-Authenticate") == ([both] if both else [])


@pytest.mark.parametrize("code", REFUSALS)
def test_another_scheme_has_a_plain_challenge_of_its_own(code):
    refusal, status, *_ = REFUSALS[code]
    expected = ['Api-Key realm="api"'] if status == 401 else []
    assert headers(answer(refusal, [Bearer("Api-Key")]), "WWW-Authenticate") == expected


def test_two_schemes_are_one_header_to_vary_on():
    assert vary_on([Bearer(), Bearer("Token"), Header()]) == "Authorization, apikey"


def test_the_realm_is_the_one_that_was_given():
    carriers = [Header(), Bearer()]
    assert headers(answer(errors.MissingKey(), carriers, realm="my shop"), "WWW-Authenticate") == [
        'ApiKey realm="my shop", in="header", name="apikey", Bearer realm="my shop"'
    ]


@pytest.mark.parametrize("name", ['x"y', "x\\y", "x\ny", "x\r\nSet-Cookie: a=b", "x y", "x,y", "x\x7f"])
def test_whatever_a_parameter_is_called_its_challenge_is_well_formed(name):
    try:
        carriers = [Query(name)]
    except ConfigurationError:
        return
    (challenge,) = headers(answer(errors.MissingKey(), carriers), "WWW-Authenticate")
    quoted = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
    assert re.fullmatch(rf"ApiKey realm={quoted}, in={quoted}, name={quoted}", challenge)


@pytest.mark.parametrize(
    ("carriers", "vary"),
    [
        ([Header(), Query()], ["apikey"]),
        ([Header("X-API-Key"), Bearer()], ["X-API-Key, Authorization"]),
        ([Bearer()], ["Authorization"]),
        ([Query()], []),
    ],
)
def test_an_answer_varies_with_the_headers_that_may_hold_a_key(carriers, vary):
    assert headers(answer(errors.MissingKey(), carriers), "Vary") == vary


def test_a_key_in_the_url_is_not_told_to_the_next_page():
    assert headers(answer(errors.InvalidKey(), in_url=True), "Referrer-Policy") == ["no-referrer"]
    assert headers(answer(errors.InvalidKey()), "Referrer-Policy") == []


@pytest.mark.parametrize("code", REFUSALS)
def test_every_header_can_be_sent(code):
    for carriers in (BOTH, [Bearer()], [Bearer(), Header()]):
        for name, value in answer(REFUSALS[code][0], carriers, in_url=True).headers:
            assert re.fullmatch(r"[A-Za-z-]+", name)
            assert re.fullmatch(r"[ -~]+", value)


def test_a_refusal_has_each_header_once_so_that_no_framework_drops_one():
    names = [name for name, _ in answer(errors.InvalidKey(), [Header(), Bearer()], in_url=True).headers]
    assert "WWW-Authenticate" in names
    assert len(set(names)) == len(names)


# What guard puts on the application's own answers


@pytest.mark.parametrize(
    ("carried", "in_url", "expected"),
    [
        (False, False, {"Vary": "apikey"}),
        (True, False, {"Vary": "apikey", "Cache-Control": "private"}),
        (True, True, {"Vary": "apikey", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}),
    ],
)
@pytest.mark.parametrize("present", [{}, {"vary": ""}, {"cache-control": ""}])
def test_an_answer_without_headers_of_its_own_gets_what_it_needs_and_no_more(
    carried, in_url, expected, present
):
    assert dict(guard("apikey", carried, in_url, present)) == expected


def test_where_no_header_holds_keys_an_answer_does_not_vary():
    assert dict(guard("", False, False, {})) == {}
    assert dict(guard("", True, True, {"vary": "Accept"})) == {
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }


def test_what_guard_answers_cannot_be_changed_for_the_next_request():
    first = guard("apikey", True, False, {})
    with pytest.raises(TypeError):
        first["X"] = "y"
    assert dict(guard("apikey", True, False, {})) == {"Vary": "apikey", "Cache-Control": "private"}


@pytest.mark.parametrize(
    ("vary", "present", "merged"),
    [
        ("apikey", "Accept", "Accept, apikey"),
        ("apikey", "Accept,Cookie ,  Origin", "Accept, Cookie, Origin, apikey"),
        ("apikey", "apikey", None),
        ("apikey", "Accept, ApiKey", None),
        ("apikey", "*", None),
        ("apikey", "Accept, *", None),
        ("apikey", "xapikey", "xapikey, apikey"),
        ("apikey, Authorization", "authorization, Accept", "authorization, Accept, apikey"),
        ("apikey, Authorization", "Accept", "Accept, apikey, Authorization"),
        ("apikey, Authorization", "Authorization, apikey", None),
        ("apikey", " , ,", "apikey"),
    ],
)
def test_an_answer_varies_with_the_key_beside_what_it_varies_with_already(vary, present, merged):
    assert guard(vary, False, False, {"vary": present}).get("Vary") == merged


CACHE_CONTROL = [
    # (of the application, with a key in a header, with a key in the URL); None leaves it as it is
    ("", "private", "no-store"),
    (" , ", "private", "no-store"),
    ("private", None, "private, no-store"),
    ("Private", None, "Private, no-store"),
    ("no-store", None, None),
    ("No-Store", None, None),
    ("no-cache, no-store", None, None),
    ("no-cache", "no-cache, private", "no-cache, no-store"),
    ("public", "private", "no-store"),
    ("PUBLIC, max-age=60", "max-age=60, private", "max-age=60, no-store"),
    ("max-age=60", "max-age=60, private", "max-age=60, no-store"),
    ("max-age=60,s-maxage=600", "max-age=60, private", "max-age=60, no-store"),
    ("S-MaxAge=600, must-revalidate", "must-revalidate, private", "must-revalidate, no-store"),
    ("max-age=0, private", None, "max-age=0, private, no-store"),
    ("private, max-age=60", None, "private, max-age=60, no-store"),
    (
        'ext="no-store, private", max-age=1',
        'ext="no-store, private", max-age=1, private',
        'ext="no-store, private", max-age=1, no-store',
    ),
    ('ext="a\\"b, private"', 'ext="a\\"b, private", private', 'ext="a\\"b, private", no-store'),
    ("x-private, privatex", "x-private, privatex, private", "x-private, privatex, no-store"),
    ("no-storage", "no-storage, private", "no-storage, no-store"),
]


@pytest.mark.parametrize(("present", "in_header", "in_url"), CACHE_CONTROL)
def test_cache_control_is_made_stricter_in_these_words(present, in_header, in_url):
    assert guard("", True, False, {"cache-control": present}).get("Cache-Control") == in_header
    assert guard("", True, True, {"cache-control": present}).get("Cache-Control") == in_url


def test_without_a_key_cache_control_is_the_applications_own():
    for present, *_ in CACHE_CONTROL:
        assert "Cache-Control" not in guard("apikey", False, False, {"cache-control": present})


def directives(value):
    """Read Cache-Control as a cache does: the first of two directives of one name counts (RFC 9111, 4.2.1)."""
    found = {}
    for name, _, argument in re.findall(r'\s*([^\s=,"]+)(=("(?:[^"\\]|\\.)*"|[^\s,]*))?\s*(?:,|$)', value):
        found.setdefault(name.lower(), argument.strip('"') or None)
    return found


def shared_may_store(value):
    """Say whether a shared cache may keep any part of an answer, by RFC 9111 sections 3 and 5.2.2."""
    found = directives(value)
    if "no-store" in found and "must-understand" not in found:
        return False
    return "private" not in found or found["private"] is not None


def anybody_may_store(value):
    found = directives(value)
    return "no-store" not in found or "must-understand" in found


written = st.lists(
    st.sampled_from(
        [
            "public",
            "Public",
            "private",
            "PRIVATE",
            'private="set-cookie"',
            "private=set-cookie",
            'Private="a, b"',
            "no-store",
            "No-Store",
            "no-cache",
            'no-cache="x"',
            "max-age=60",
            "s-maxage=60",
            "S-MAXAGE=0",
            's-maxage="5"',
            "must-revalidate",
            "proxy-revalidate",
            "must-understand",
            "immutable",
            "no-transform",
            'ext="private, no-store"',
            'ext="a\\"b"',
            "stale-while-revalidate=5",
            "",
        ]
    ),
    max_size=5,
).flatmap(lambda parts: st.sampled_from([", ", ",", " , "]).map(lambda glue: glue.join(parts)))


@given(written)
def test_an_answer_to_a_key_is_kept_by_no_shared_cache_whatever_the_application_said(present):
    value = guard("", True, False, {"cache-control": present}).get("Cache-Control", present)
    assert not shared_may_store(value)


@given(written)
def test_an_answer_to_a_key_in_the_url_is_kept_by_no_cache_whatever_the_application_said(present):
    value = guard("", True, True, {"cache-control": present}).get("Cache-Control", present)
    assert not anybody_may_store(value)


WIDENING = {"public", "s-maxage", "must-understand"}  # they let more caches in; all others keep some out


@given(written, st.booleans())
def test_nothing_that_the_application_forbade_is_allowed_again(present, in_url):
    value = guard("", True, in_url, {"cache-control": present}).get("Cache-Control", present)
    before, after = directives(present), directives(value)
    for name, argument in before.items():
        if name not in WIDENING and name != "private":
            assert (name in after, after.get(name)) == (True, argument)
    assert "public" not in after or value == present
    assert shared_may_store(present) or not shared_may_store(value)
    assert anybody_may_store(present) or not anybody_may_store(value)


@pytest.mark.parametrize("form", ['private="set-cookie"', 'Private="set-cookie, x"', "private=set-cookie"])
def test_private_for_some_fields_alone_is_not_private_enough(form):
    value = guard("", True, False, {"cache-control": f"{form}, max-age=60"}).get("Cache-Control")
    assert value is not None
    assert not shared_may_store(value)


def test_must_understand_does_not_switch_no_store_off():
    for in_url in (False, True):
        present = "must-understand, no-store, max-age=60"
        value = guard("", True, in_url, {"cache-control": present}).get("Cache-Control", present)
        assert not shared_may_store(value)


@pytest.mark.parametrize("present", ["origin", "unsafe-url", "no-referrer", "strict-origin"])
def test_a_key_in_the_url_goes_to_no_other_site_whatever_the_application_said(present):
    assert guard("", True, True, {"referrer-policy": present})["Referrer-Policy"] == "no-referrer"
    assert "Referrer-Policy" not in guard("", True, False, {"referrer-policy": present})


def test_guard_says_which_headers_it_has_to_be_shown():
    assert {"vary", "cache-control", "referrer-policy"} == GUARDED
