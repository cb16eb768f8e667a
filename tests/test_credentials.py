"""Where a key may stand in a request, and that nothing else is taken for one."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth.credentials import DEFAULT_CARRIERS, Bearer, Credential, Header, Query, read
from apikey_auth.errors import ConfigurationError


def seen(headers=None, query="", carriers=DEFAULT_CARRIERS):
    """Read a request; a header with several lines is joined as WSGI servers join them."""
    lines = {name.lower(): value for name, value in (headers or {}).items()}

    def header(name):
        value = lines.get(name.lower())
        return ",".join(value) if isinstance(value, list) else value

    return read(carriers, header, query)


def text(key, in_url=False, query=""):
    return Credential(key, False, in_url, query)


def ambiguous(in_url=False, query=""):
    return Credential(None, True, in_url, query)


NOTHING = Credential(None, False, False, "")

# Header


def test_by_default_a_key_stands_in_the_header_apikey_or_in_the_parameter_apikey():
    assert (Header("apikey"), Query("apikey")) == DEFAULT_CARRIERS
    assert Header() == Header("apikey")
    assert Query() == Query("apikey")


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("KEY", "KEY"),
        (" KEY", "KEY"),
        ("KEY\t ", "KEY"),
        ("\t KEY \t", "KEY"),
        ("KE Y", "KE Y"),
        ("KEY;x", "KEY;x"),
        ('"KEY"', '"KEY"'),
        ("KEY\xa0", "KEY\xa0"),
        ("KEY\x0b", "KEY\x0b"),
        ("KEY\n", "KEY\n"),
        ("K\xc3\xa9Y", "K\xc3\xa9Y"),
        ("%4BEY", "%4BEY"),
        ("K+Y", "K+Y"),
    ],
)
def test_a_headers_whole_value_is_the_key_less_the_blanks_around_it(value, key):
    assert seen({"apikey": value}) == text(key)


@pytest.mark.parametrize("value", [None, "", " ", "\t", " \t "])
def test_a_blank_header_is_no_key(value):
    assert seen({} if value is None else {"apikey": value}) == NOTHING


@pytest.mark.parametrize("value", ["A,B", "A, A", "A,A", "A,", ",A", ",", " , ", "A , B , C"])
def test_a_comma_in_a_header_is_ambiguous_because_servers_join_two_with_it(value):
    assert seen({"apikey": value}) == ambiguous()


@pytest.mark.parametrize("lines", [["A", "B"], ["A", "A"], ["A", ""], ["", "A"]])
def test_a_header_sent_twice_is_ambiguous_equal_or_not(lines):
    assert seen({"apikey": lines}) == ambiguous()


def test_a_header_is_asked_for_by_the_name_it_was_given():
    asked = []
    assert Header("X-API-Key").values(lambda name: asked.append(name)) == []
    assert asked == ["X-API-Key"]


@pytest.mark.parametrize("name", ["apikey", "X-API-Key", "x.y", "a!#$%&'*+^`|~b"])
def test_every_token_that_servers_pass_on_may_name_a_header(name):
    assert Header(name).name == name


@pytest.mark.parametrize(
    "name", ["", "api key", "api_key", "X_API_KEY", "apikey:", "é", "a\n", "a,b", '"a"', "a/b"]
)
def test_a_header_name_that_servers_drop_or_change_is_refused(name):
    with pytest.raises(ConfigurationError, match="no header name that every server passes on"):
        Header(name)


# Bearer

BEARER = [Bearer()]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_case_of_bearer_does_not_matter(scheme):
    assert seen({"Authorization": f"{scheme} KEY"}, carriers=BEARER) == text("KEY")


@pytest.mark.parametrize("value", [" Bearer KEY", "Bearer   KEY", "Bearer KEY \t", "Bearer \tKEY"])
def test_blanks_around_a_bearer_token_are_no_part_of_it(value):
    assert seen({"Authorization": value}, carriers=BEARER) == text("KEY")


@pytest.mark.parametrize(
    "value",
    [
        "Basic dXNlcjpwYXNz",
        "Digest username=u, realm=r",
        "BearerKEY",
        "Bearer: KEY",
        "Bearer\tKEY",
        "Token KEY",
        "ApiKey KEY",
        "KEY",
        "Bearers KEY",
        "X Bearer KEY",
        "",
        " ",
        "Bearer",
        "Bearer ",
        "bearer  \t",
    ],
)
def test_another_scheme_or_a_blank_token_is_no_key_and_not_a_bad_one(value):
    assert seen({"Authorization": value}, carriers=BEARER) == NOTHING


@pytest.mark.parametrize(
    "lines", [["Bearer A", "Bearer B"], ["Bearer A", "Bearer A"], ["Bearer A", "Basic dXNlcjpwYXNz"]]
)
def test_two_authorization_lines_are_ambiguous_from_the_first_bearer_on(lines):
    assert seen({"Authorization": lines}, carriers=BEARER) == ambiguous()


def test_a_bearer_token_behind_another_scheme_is_never_taken():
    credential = seen({"Authorization": ["Basic dXNlcjpwYXNz", "Bearer KEY"]}, carriers=BEARER)
    assert credential.text is None


def test_a_bearer_reads_authorization_alone():
    assert Bearer().name == "Authorization"
    assert seen({"apikey": "KEY"}, carriers=BEARER) == NOTHING
    assert seen({"Authorization": "Bearer KEY"}) == NOTHING


# Another scheme


@pytest.mark.parametrize("value", ["Token KEY", "token KEY", "TOKEN  KEY"])
def test_a_key_may_follow_another_scheme(value):
    assert seen({"Authorization": value}, carriers=[Bearer("Token")]) == text("KEY")


def test_a_scheme_that_no_carrier_reads_is_no_key():
    assert seen({"Authorization": "Bearer KEY"}, carriers=[Bearer("Token")]) == NOTHING
    assert seen({"Authorization": "Api-Key KEY"}, carriers=[Bearer(), Bearer("Token")]) == NOTHING


def test_several_schemes_may_be_read():
    carriers = [Bearer(), Bearer("Api-Key")]
    assert seen({"Authorization": "Bearer A"}, carriers=carriers) == text("A")
    assert seen({"Authorization": "Api-Key B"}, carriers=carriers) == text("B")
    assert seen({"Authorization": ["Bearer A", "Api-Key A"]}, carriers=carriers) == ambiguous()


@pytest.mark.parametrize("scheme", ["", "Api Key", "Token:", "a,b", "é", 'a"b', "a\n"])
def test_what_can_be_no_scheme_is_refused(scheme):
    with pytest.raises(ConfigurationError, match="authentication scheme"):
        Bearer(scheme)


# Query


@pytest.mark.parametrize(
    "name", ["apikey", "ApiKey", "APIKEY", "%61pikey", "api%6Bey", "%41%50%49key", "%61%70%69%6b%65%79"]
)
def test_a_parameters_name_matches_without_case_and_once_decoded(name):
    assert seen(query=f"{name}=KEY") == text("KEY", True)
    assert seen(query=f"a=1&{name}=KEY&b=2") == text("KEY", True, "a=1&b=2")


@pytest.mark.parametrize(
    "query",
    [
        "apike=KEY",
        "apikeys=KEY",
        "xapikey=KEY",
        "api_key=KEY",
        "api%e2%84%aaey=KEY",  # the Kelvin sign, whose lower case is k
        "api\u00e2\u0084\u00aaey=KEY",
        "api\u212aey=KEY",
        "ap%C4%B1key=KEY",  # the dotless i
        "ap%C4%B0key=KEY",
        "%2561pikey=KEY",
        "apikey%00=KEY",
        "apikey+=KEY",
        "+apikey=KEY",
        "apikey[]=KEY",
        "a=1;apikey=KEY",
        "a=apikey=KEY",
        "=apikey",
        "apikey%3DKEY",
        "apikey%",
        "api%6=KEY",
        "?apikey=KEY",
    ],
)
def test_what_only_looks_like_the_name_is_another_parameter(query):
    assert seen(query=query) == Credential(None, False, False, query)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("KEY", "KEY"),
        ("%4bEY", "KEY"),
        ("%4b%45%59", "KEY"),
        ("K+Y", "K Y"),
        ("K%2BY", "K+Y"),
        ("%20KEY", " KEY"),
        ("KEY+", "KEY "),
        ("K=Y", "K=Y"),
        ("K,Y", "K,Y"),
        ("K%2CY", "K,Y"),
        ("K%26Y", "K&Y"),
        ("K%zzY", "K%zzY"),
        ("K%", "K%"),
        ("K%25Y", "K%Y"),
        ("K%00Y", "K\0Y"),
        ("%ff%e9", "\xff\xe9"),
        ("\xe9", "\xe9"),
        ("K\xff", "K\xff"),
        ("K;Y", "K;Y"),
    ],
)
def test_a_parameters_value_is_decoded_once_and_is_otherwise_left_as_it_is(value, key):
    assert seen(query=f"apikey={value}") == text(key, True)


@pytest.mark.parametrize("value", ["", "=", "=+", "=%20", "=%09", "=++%20"])
def test_a_blank_parameter_is_no_key_and_is_cut_out_all_the_same(value):
    assert seen(query=f"a=1&apikey{value}&b=2") == Credential(None, False, False, "a=1&b=2")


def test_a_parameter_without_value_is_no_key():
    for query in ("apikey", "apikey=", "ApiKey="):
        assert seen(query=query) == NOTHING


@pytest.mark.parametrize(
    "query",
    ["apikey=A&apikey=B", "apikey=A&apikey=A", "apikey=A&APIKEY=A", "apikey=&apikey=A", "apikey=A&%61pikey"],
)
def test_a_parameter_given_twice_is_ambiguous_equal_or_not(query):
    assert seen(query=query) == ambiguous(in_url=True)


def test_every_one_of_several_keys_is_cut_out_of_the_url():
    assert seen(query="apikey=A&a=1&ApiKey=B&b=2&%61pikey=C") == ambiguous(True, "a=1&b=2")


def test_a_character_that_no_query_string_holds_makes_no_second_spelling_of_a_key():
    for query in ("apikey=K\u0100Y", "apikey=K\u212aY"):
        assert seen(query=query).text != "K?Y"


def test_a_parameter_has_the_name_it_was_given():
    carriers = [Query("Token")]
    assert seen(query="token=KEY&apikey=1", carriers=carriers) == text("KEY", True, "apikey=1")


def test_every_unreserved_character_may_stand_in_a_name_and_is_matched_once_decoded():
    carriers = [Query("my-api.key_1~x")]
    for name in ("my-api.key_1~x", "MY-API.KEY_1~X", "my%2Dapi%2ekey%5f1%7Ex"):
        assert seen(query=f"{name}=KEY", carriers=carriers) == text("KEY", True)


@pytest.mark.parametrize(
    "name", ["", "é", "api\u212aey", "a b", "a+b", "a&b", "a=b", "a%20b", 'a"b', "a\n", "a[]"]
)
def test_a_parameter_name_with_characters_that_urls_reserve_is_refused(name):
    with pytest.raises(ConfigurationError, match="cannot name a parameter"):
        Query(name)


others = st.text("abcAPIKEYapikey%2=+;?/#.\xe9", max_size=12).filter(
    lambda pair: not re.match(r"(?i)apikey(=|$)", pair.replace("%61", "a"))
)
queries = st.lists(others, max_size=6)


@given(queries, st.integers(0, 6), st.sampled_from(["apikey", "ApiKey", "%61PIKEY"]), st.text(min_size=1))
def test_cutting_a_key_leaves_every_other_pair_in_its_place_byte_for_byte(pairs, at, name, key):
    rest = "&".join(pairs)
    before = seen(query=rest)
    assert before == Credential(None, False, False, rest)
    with_key = [*pairs[:at], f"{name}={quote(key)}", *pairs[at:]]
    credential = seen(query="&".join(with_key))
    assert credential.query == rest
    if key.strip(" \t"):
        assert credential == text(key.encode().decode("latin-1"), True, rest)


@given(st.text(max_size=80), st.text(max_size=40) | st.none(), st.text(max_size=40) | st.none())
def test_any_request_gives_a_credential(query, header, authorization):
    carriers = [Header(), Query(), Bearer()]
    headers = {"apikey": header, "authorization": authorization}
    credential = seen({name: value for name, value in headers.items() if value is not None}, query, carriers)
    assert isinstance(credential, Credential)
    assert credential.text is None or credential.text.strip(" \t")
    assert not (credential.ambiguous and credential.text)
    assert credential.carried is (credential.ambiguous or credential.text is not None)
    assert len(credential.query) <= len(query)
    assert seen(query=credential.query).query == credential.query


# Several carriers


def test_equal_keys_in_header_and_url_are_one_key():
    assert seen({"apikey": "KEY"}, "apikey=KEY&a=1") == text("KEY", True, "a=1")
    assert seen({"apikey": " KEY"}, "apikey=%4BEY") == text("KEY", True)


def test_keys_that_differ_between_header_and_url_are_ambiguous():
    assert seen({"apikey": "A"}, "apikey=B&a=1") == ambiguous(True, "a=1")
    assert seen({"apikey": "KEY"}, "apikey=key") == ambiguous(True)


def test_a_blank_carrier_beside_a_key_does_not_matter():
    assert seen({"apikey": ""}, "apikey=KEY") == text("KEY", True)
    assert seen({"apikey": "KEY"}, "apikey=") == text("KEY", False)


def test_one_carrier_given_twice_is_ambiguous_even_if_the_other_agrees():
    assert seen({"apikey": ["A", "A"]}, "apikey=A") == ambiguous(True)


def test_equal_keys_in_two_headers_are_one_and_two_that_differ_are_ambiguous():
    carriers = [Header(), Bearer()]
    assert seen({"apikey": "A", "Authorization": "Bearer A"}, carriers=carriers) == text("A")
    assert seen({"apikey": "A", "Authorization": "Bearer B"}, carriers=carriers) == ambiguous()
    assert seen({"apikey": "A", "Authorization": "Basic B"}, carriers=carriers) == text("A")


def test_two_parameters_are_both_cut_out():
    carriers = [Query("apikey"), Query("token")]
    assert seen(query="token=A&a=1&apikey=A", carriers=carriers) == text("A", True, "a=1")
    assert seen(query="apikey=A&a=1", carriers=carriers) == text("A", True, "a=1")
    assert seen(query="token=A&a=1", carriers=carriers) == text("A", True, "a=1")


def test_without_a_query_carrier_the_url_is_left_alone():
    assert seen(query="apikey=KEY", carriers=[Header()]) == Credential(None, False, False, "apikey=KEY")


def test_a_request_carries_a_key_if_it_can_be_read_or_if_there_are_too_many():
    assert text("KEY").carried
    assert ambiguous().carried
    assert not NOTHING.carried
