"""A middleware's options and what each of them does, seen from the outside."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth import errors
from apikey_auth.credentials import Bearer, Credential, Header, Query
from apikey_auth.decisions import Identity, Owner
from apikey_auth.errors import ConfigurationError, InsufficientScope, InvalidKey, MissingKey
from apikey_auth.keys import APIKey
from apikey_auth.policy import (
    IDENTITY,
    VISIT,
    Options,
    Policy,
    Visit,
    check_required_scopes,
    require,
    visit_of,
)

KEY = APIKey(id="k1", owner="u1", digest="sha256$$00", scopes=["a"])
REFUSALS = [
    errors.InvalidKey(),
    errors.RevokedKey(),
    errors.DisabledKey(),
    errors.ExpiredKey(),
    errors.InactiveUser(),
    errors.AddressNotAllowed(),
    InsufficientScope(["a"]),
    errors.StoreUnavailable(),
]


def visit(policy=None, method="GET", path="/", query="", peer="192.0.2.1", **headers):
    lines = {name.lower().replace("_", "-"): value for name, value in headers.items()}
    return (policy or Policy()).visit(method, path, lambda name: lines.get(name.lower()), query, peer)


def admitted(which):
    which.identity = Identity(Owner("u1"), KEY)
    return which


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"required": "false"}, "required is True or False, not 'false'"),
        ({"required": None}, "required is True or False"),
        ({"on_invalid": "ignore"}, "on_invalid is 'reject' or 'anonymous', not 'ignore'"),
        ({"on_invalid": None}, "on_invalid"),
        ({"insecure": "deny"}, "insecure is 'allow', 'refuse' or 'revoke', not 'deny'"),
        ({"insecure": False}, "insecure"),
        ({"hide_credentials": "yes"}, "hide_credentials is True or False, not 'yes'"),
        ({"realm": 'a"b'}, "realm"),
        ({"realm": "a\\b"}, "realm"),
        ({"realm": "a\nb"}, "realm"),
        ({"realm": "é"}, "realm"),
        ({"realm": "a\x7fb"}, "realm"),
        ({"carriers": []}, "carriers is a list of"),
        ({"carriers": Header()}, "carriers is a list of"),
        ({"carriers": None}, "carriers is a list of"),
        ({"carriers": ["apikey"]}, "carriers is a list of"),
        ({"carriers": [Header, Query]}, "carriers is a list of"),
        ({"carriers": [Header("apikey"), Header("ApiKey")]}, "two carriers read the same place"),
        ({"carriers": [Query("apikey"), Query("APIKEY")]}, "two carriers read the same place"),
        ({"carriers": [Bearer(), Bearer()]}, "two carriers read the same place"),
        ({"carriers": [Bearer(), Header("authorization")]}, "two carriers read the same place"),
        ({"carriers": [Header("Authorization"), Bearer("Token")]}, "two carriers read the same place"),
        ({"carriers": [Bearer("Token"), Bearer("token")]}, "two carriers read the same place"),
        ({"exempt": "/health"}, "exempt is a list of paths that start with '/'"),
        ({"exempt": "/"}, "exempt is a list of paths that start with '/'"),
        ({"exempt": ["health"]}, "exempt is a list of paths that start with '/'"),
        ({"exempt": ["/a", ""]}, "exempt is a list of paths that start with '/'"),
        ({"trusted_proxies": "10.0.0.0/8"}, r"trusted_proxies is a list of CIDR blocks, not '10.0.0.0/8'"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies: 10.0.0.1/8 has host bits set"),
        ({"trusted_proxies": ["proxy.example.org"]}, "trusted_proxies: .*proxy.example.org"),
        ({"trusted_proxies": [""]}, "trusted_proxies"),
        ({"trusted_proxies": ["::ffff:10.0.0.0/104"]}, "trusted_proxies: .* is IPv4 within IPv6"),
        ({"trusted_proxies": ["Unix"]}, "trusted_proxies"),
    ],
)
def test_an_option_that_will_not_do_is_refused_at_once(options, said):
    with pytest.raises(ConfigurationError, match=said):
        Policy(**options)


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigurationError, match="no option header_name; the options are required, exempt"):
        Policy(header_name="apikey")


def test_a_header_and_a_parameter_of_one_name_are_two_places():
    assert Policy(carriers=[Header("x"), Query("x")]).vary == "x"


def test_every_option_that_is_typed_has_an_effect():
    changes = {
        "required": True,
        "exempt": ["/a", "/b/"],
        "carriers": [Bearer()],
        "on_invalid": "anonymous",
        "realm": "shop",
        "render": lambda refusal, path: None,
        "trusted_proxies": ["unix", "::1"],
        "insecure": "refuse",
        "hide_credentials": True,
    }
    assert set(changes) == set(Options.__annotations__)
    for name, value in changes.items():
        plain, changed = Policy(), Policy(**{name: value})
        assert any(getattr(plain, slot) != getattr(changed, slot) for slot in Policy.__slots__)


def test_nobody_is_turned_away_for_a_missing_key_unless_asked_to():
    policy = Policy()
    assert (policy.required, policy.on_invalid, policy.realm) == (False, "reject", "api")
    assert visit(policy).turned_away is None


# Exempt paths

EXEMPT = Policy(exempt=["/health", "/static/", "/"], required=True)


@pytest.mark.parametrize(
    ("path", "exempt"),
    [
        ("/", True),
        ("/health", True),
        ("/health/", False),
        ("/health/live", False),
        ("/healthy", False),
        ("/Health", False),
        ("/static/", True),
        ("/static/a/b.css", True),
        ("/static", False),
        ("/Static/a", False),
        ("/x/static/a", False),
        ("/static/../admin", False),
        ("/static/..", False),
        ("/static/a..b", False),
        ("/static//admin", False),
        ("//static/a", False),
        ("//", False),
        ("/anything", False),
        ("", False),
        ("/health\n", False),
    ],
)
def test_a_path_is_exempt_exactly_or_below_a_prefix_and_never_by_a_detour(path, exempt):
    assert EXEMPT.exempts(path) is exempt
    assert visit(EXEMPT, path=path).exempt is exempt
    assert (visit(EXEMPT, path=path).turned_away is None) is exempt


def test_the_root_alone_exempts_the_root_alone():
    policy = Policy(exempt=["/"])
    assert policy.exempts("/")
    assert not policy.exempts("/a")


def test_without_exemptions_no_path_is_exempt():
    assert not any(Policy().exempts(path) for path in ("/", "", "/a", "/a/"))


@pytest.mark.parametrize("path", ["/a/../b", "/a//b", "/a/..", "//"])
def test_a_detour_is_never_exempt_even_where_an_option_names_it(path):
    try:
        policy = Policy(exempt=[path])
    except ConfigurationError:
        return
    assert not policy.exempts(path)


@given(st.text("/a.s\\%", max_size=12))
def test_no_detour_below_a_prefix_is_exempt(tail):
    policy = Policy(exempt=["/s/"])
    assert policy.exempts(f"/s/{tail}") is (".." not in tail and "//" not in f"/s/{tail}")


def test_on_an_exempt_path_no_key_is_looked_for_but_it_is_cut_out_and_kept_private():
    found = visit(EXEMPT, path="/health", query="a=1&apikey=KEY")
    assert found.text is None
    assert found.credential == Credential("KEY", False, True, "a=1")
    assert found.turned_away is None
    assert dict(found.guard({})) == {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    assert dict(visit(EXEMPT, path="/health").guard({})) == {}


def test_an_ambiguous_key_on_an_exempt_path_stops_nobody():
    assert visit(EXEMPT, path="/health", apikey="A,B").turned_away is None


def test_a_view_on_an_exempt_path_that_asks_for_a_key_gets_none():
    with pytest.raises(MissingKey):
        visit(EXEMPT, path="/health", apikey="KEY").require()


# Preflights


@pytest.mark.parametrize(
    ("method", "headers", "passes"),
    [
        ("OPTIONS", {"Origin": "https://a.example", "Access_Control_Request_Method": "PUT"}, True),
        ("OPTIONS", {"Origin": "", "Access_Control_Request_Method": ""}, True),
        ("OPTIONS", {"Origin": "https://a.example"}, False),
        ("OPTIONS", {"Access_Control_Request_Method": "PUT"}, False),
        ("OPTIONS", {}, False),
        ("GET", {"Origin": "https://a.example", "Access_Control_Request_Method": "PUT"}, False),
        ("options", {"Origin": "https://a.example", "Access_Control_Request_Method": "PUT"}, False),
    ],
)
def test_a_cors_preflight_needs_no_key_and_any_other_options_does(method, headers, passes):
    found = visit(Policy(required=True), method=method, **headers)
    assert (found.turned_away is None) is passes


# Who is turned away


@pytest.mark.parametrize(
    ("required", "on_invalid"), list(itertools.product([False, True], ["reject", "anonymous"]))
)
def test_a_missing_key_is_refused_where_one_is_required(required, on_invalid):
    found = visit(Policy(required=required, on_invalid=on_invalid))
    assert isinstance(found.refusal, MissingKey)
    assert found.turned_away is (found.refusal if required else None)


@pytest.mark.parametrize("blank", ["", " \t"])
def test_a_blank_key_is_a_missing_one(blank):
    assert isinstance(visit(Policy(required=True), apikey=blank).turned_away, MissingKey)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: each.code)
@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("on_invalid", ["reject", "anonymous"])
def test_anonymous_covers_401_alone_and_required_wins(refusal, required, on_invalid):
    found = visit(Policy(required=required, on_invalid=on_invalid), apikey="KEY")
    found.refusal = refusal
    goes_on = on_invalid == "anonymous" and not required and refusal.status == 401
    assert found.turned_away is (None if goes_on else refusal)


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("on_invalid", ["reject", "anonymous"])
def test_an_ambiguous_key_is_refused_whatever_the_options(required, on_invalid):
    found = visit(Policy(required=required, on_invalid=on_invalid), query="apikey=A&apikey=B")
    assert isinstance(found.turned_away, errors.AmbiguousKey)
    assert found.text is None


def test_who_came_with_a_good_key_is_not_turned_away():
    assert admitted(visit(Policy(required=True), apikey="KEY")).turned_away is None


# The visit


def test_a_visit_shows_the_key_to_check_the_method_and_the_address():
    found = visit(method="PUT", apikey=" KEY ", peer="192.0.2.7")
    assert (found.text, found.method, found.address) == ("KEY", "PUT", "192.0.2.7")
    assert (found.identity, found.refusal, found.authority) == (None, None, None)
    assert visit().text is None
    assert visit(peer=None).address is None


def test_carriers_are_those_of_the_options():
    policy = Policy(carriers=[Query("token"), Bearer()])
    assert visit(policy, apikey="KEY").text is None
    assert visit(policy, query="token=KEY").text == "KEY"
    assert visit(policy, authorization="Bearer KEY").text == "KEY"


@pytest.mark.parametrize(
    ("trusted", "peer", "address"),
    [
        ([], "10.0.0.1", "10.0.0.1"),
        (["192.0.2.0/24"], "10.0.0.1", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "203.0.113.5"),
        (["unix"], "10.0.0.1", "10.0.0.1"),
        (["unix"], None, "203.0.113.5"),
        (["unix"], "", "203.0.113.5"),
        (["unix", "10.0.0.0/8"], "10.0.0.1", "203.0.113.5"),
        (["10.0.0.0/8"], None, None),
    ],
)
def test_forwarded_addresses_count_only_from_trusted_proxies(trusted, peer, address):
    policy = Policy(trusted_proxies=trusted)
    assert visit(policy, peer=peer, X_Forwarded_For="198.51.100.9, 203.0.113.5").address == address


def test_without_trusted_proxies_the_header_is_not_even_read():
    asked = []
    Policy().visit("GET", "/", lambda name: asked.append(name), "", "10.0.0.1")
    assert "X-Forwarded-For" not in asked


def behind(outer, **headers):
    return Policy().visit("GET", "/", headers.get, outer=outer)


def test_a_visit_inherits_what_the_same_authenticator_found_further_out_and_nothing_else():
    one, other = object(), object()
    outer = admitted(visit(apikey="KEY"))
    outer.authority = one
    assert behind(outer).inherits(one)
    assert not behind(outer).inherits(other)
    assert not behind(visit(apikey="KEY")).inherits(None)
    assert not behind(None).inherits(None)


def test_what_is_inherited_is_the_identity_and_no_refusal():
    outer = admitted(visit(apikey="KEY"))
    outer.authority = one = object()
    inner = behind(outer)
    assert inner.inherits(one)
    assert (inner.identity, inner.authority, inner.turned_away) == (outer.identity, one, None)


def test_an_identity_from_further_out_is_replaced_where_a_visit_finds_none():
    outer = admitted(visit(apikey="KEY"))
    assert behind(outer).replaced is outer.identity
    assert admitted(behind(outer)).replaced is None
    exempt = behind(outer)
    exempt.exempt = True
    assert exempt.replaced is None


def test_a_view_gets_the_identity_with_the_scopes_it_asks_for():
    found = admitted(visit(apikey="KEY"))
    assert found.require() is found.identity
    assert found.require("a") is found.identity
    with pytest.raises(InsufficientScope) as caught:
        found.require("a", "b")
    assert caught.value.missing == ("b",)


def test_a_view_that_needs_a_key_raises_the_refusal_that_it_met():
    found = visit(Policy(on_invalid="anonymous"), apikey="KEY")
    found.refusal = InvalidKey("of its log", detail="of its client")
    assert found.turned_away is None
    with pytest.raises(InvalidKey, match="of its log") as caught:
        found.require("a")
    assert caught.value.detail == "of its client"
    assert found.refusal.__traceback__ is None


def test_a_view_that_needs_a_key_where_none_came_raises_missing_key():
    with pytest.raises(MissingKey):
        visit().require("a")


def test_a_visit_answers_with_its_own_method_carriers_and_realm():
    policy = Policy(realm="shop", carriers=[Header("X-API-Key"), Query()])
    response = visit(policy, method="HEAD", query="apikey=KEY").respond(InvalidKey())
    headers = dict(response.headers)
    assert (response.status, response.body) == (401, b"")
    assert headers["WWW-Authenticate"] == 'ApiKey realm="shop", in="header", name="X-API-Key"'
    assert headers["Vary"] == "X-API-Key"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Referrer-Policy" not in dict(visit(policy).respond(InvalidKey()).headers)


def test_a_visit_guards_by_what_it_carried():
    assert dict(visit().guard({})) == {"Vary": "apikey"}
    assert dict(visit(apikey="KEY").guard({})) == {"Vary": "apikey", "Cache-Control": "private"}
    assert dict(visit(apikey="A,B").guard({})) == {"Vary": "apikey", "Cache-Control": "private"}
    assert dict(visit(query="apikey=A").guard({"cache-control": "public", "vary": "Accept"})) == {
        "Vary": "Accept, apikey",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }


# Request targets


@pytest.mark.parametrize(
    ("target", "cut"),
    [
        ("/a?apikey=KEY", "/a"),
        ("/a?apikey=KEY&b=1", "/a?b=1"),
        ("/a?b=1&ApiKey=KEY&c=%20", "/a?b=1&c=%20"),
        ("/a?b=1&%61pikey=KEY", "/a?b=1"),
        ("/a?token=KEY&apikey=KEY&x", "/a?x"),
        ("/a%20b;apikey=1?x=?apikey=1", "/a%20b;apikey=1?x=?apikey=1"),
        ("/apikey=KEY", "/apikey=KEY"),
        ("*", "*"),
        ("https://a.example/b?apikey=KEY&c=1", "https://a.example/b?c=1"),
        ("", ""),
    ],
)
def test_a_key_is_cut_out_of_a_request_target_and_the_rest_stays(target, cut):
    policy = Policy(carriers=[Header(), Query("apikey"), Query("token")])
    assert policy.without_keys(target) == cut


@given(st.text("/ab?&=%+\xe9", max_size=30))
def test_a_target_without_key_stays_byte_for_byte(target):
    assert Policy().without_keys(target) == target


def test_without_a_query_carrier_a_target_is_left_alone():
    assert Policy(carriers=[Header()]).without_keys("/a?apikey=KEY") == "/a?apikey=KEY"


# Environ and scope


def test_the_keys_in_environ_and_scope_are_the_documented_ones():
    assert (IDENTITY, VISIT) == ("apikey_auth.identity", "apikey_auth.visit")


def test_a_view_asks_environ_or_scope_for_its_identity():
    found = admitted(visit(apikey="KEY"))
    assert visit_of({VISIT: found}) is found
    assert require({VISIT: found}, "a") is found.identity
    with pytest.raises(InsufficientScope):
        require({VISIT: found}, "b")


@pytest.mark.parametrize("holder", [{}, {VISIT: None}, {VISIT: "visit"}, {IDENTITY: Identity(None, KEY)}])
def test_a_request_that_passed_no_middleware_is_a_mistake_in_the_application(holder):
    with pytest.raises(ConfigurationError, match="passed no APIKeyMiddleware"):
        require(holder)


def test_what_a_visit_keeps_of_a_refusal_holds_no_frame_and_no_cause():
    found = visit(apikey="KEY")
    try:
        try:
            raise OSError
        except OSError as cause:
            raise errors.StoreUnavailable("down") from cause
    except errors.StoreUnavailable as refusal:
        found.refuse(refusal)
    kept = found.refusal
    assert (str(kept), kept.__traceback__, kept.__cause__, kept.__context__) == ("down", None, None, None)


@pytest.mark.parametrize("scopes", [(), ("a",), ("a", "b:c")])
def test_a_decorator_takes_scopes_one_by_one(scopes):
    assert check_required_scopes("auth.required", scopes) is None


@pytest.mark.parametrize(
    ("scopes", "error", "said"),
    [
        ((lambda request: None,), TypeError, r"write @auth\.required\(\), with parentheses"),
        ((["a", "b"],), TypeError, r"write the scopes one by one: @auth\.required\('a', 'b'\)"),
        ((None,), TypeError, "one by one"),
        (("a b",), ValueError, "is no scope"),
        (('a"b',), ValueError, "is no scope"),
        (("",), ValueError, "is no scope"),
    ],
)
def test_a_decorator_that_is_written_wrongly_says_how_to_write_it(scopes, error, said):
    with pytest.raises(error, match=said):
        check_required_scopes("auth.required", scopes)


def test_a_policy_holds_nothing_else():
    assert isinstance(visit(), Visit)
    assert not hasattr(Policy(), "__dict__")
