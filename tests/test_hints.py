"""What a refused text's answer says: what it seems to be, told without the store, and never the text."""

import pickle
import re
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apikey_auth import (
    Authenticator,
    Bearer,
    Header,
    InvalidKey,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    Query,
    opaque_tokens,
)
from apikey_auth.credentials import DEFAULT_CARRIERS, read
from apikey_auth.errors import AmbiguousKey
from apikey_auth.formats import DRFAPIKeys, KnoxTokens, SanctumTokens
from apikey_auth.hints import hint
from apikey_auth.layout import BASE62, checksum
from apikey_auth.responses import render

SCHEME = KeyScheme("acme")
SEALED = KeyScheme("acme", seal_keys=["a seal key for these tests"])
STRICT = KeyScheme("acme", seal_keys=["a seal key for these tests"], require_seal=True)
LEGACY = KeyScheme("acme", formats=[DRFAPIKeys(), KnoxTokens(), SanctumTokens()])
OPAQUE = KeyScheme("acme", formats=[opaque_tokens()])
SCHEMES = [SCHEME, SEALED, STRICT, LEGACY, OPAQUE]
DEFAULT = "The API key is not valid."


def key(key_id="4fRk0TzQ9bVw", secret="K7dN2mXq" * 4, prefix="acme"):
    body = f"{prefix}_{key_id}_{secret}"
    return body + checksum(body)


KEY = key()


def detail(text, scheme=SCHEME):
    """Refuse a text, and give the sentence that its sender reads."""
    with pytest.raises(InvalidKey) as refused:
        scheme.parse(text)
    return refused.value.detail


BEARER = "a word such as Bearer stands before it, where the key alone belongs"
QUOTED = "it has quotation marks around it; send it without them"
MASKED = "it is masked, as lists show keys; send the whole key"
EMPTY = "it is a placeholder; put your key in its place"
SPACED = "it has white space in it or around it"
PERCENT = "it is percent-encoded; send it as it was shown"
DIGEST = "it is a digest, as a key is stored; send the key itself"
STRANGE = "it has characters in it that no key has"
ID = "it is as long as a key's id alone; send the whole key"
MISTYPED = "it was mistyped or altered, as its last characters do not fit the others"
MISPLACED = "its parts are not as long as those of a key"
ELSEWHERE = "it is a key of another product or environment; keys here begin with acme_"
BEHEADED = "its beginning is missing or altered; keys here begin with acme_"


def short(count):
    return f"it is {count} shorter than a key; copy all of it"


def long(count):
    return f"it is {count} longer than a key; copy the key alone"


TABLE = {
    "asterisks": ("acme_4fRk0TzQ9bVw_****************", MASKED),
    "asterisks alone": ("********", MASKED),
    "bullets": ("acme_••••••••abcd", MASKED),
    "an ellipsis": ("acme_4fRk0TzQ9bVw_…K7dN", MASKED),
    "three dots, as sensenet's clients show keys": ("acme_4fRk0TzQ9bVw_...K7dN", MASKED),
    "double quotes": (f'"{KEY}"', QUOTED),
    "single quotes": (f"'{KEY}'", QUOTED),
    "backticks": (f"`{KEY}`", QUOTED),
    "typographic quotes": (f"\u201c{KEY}\u201d", QUOTED),
    "one quote, left over": (f'"{KEY}', QUOTED),
    "quotes within blanks": (f' "{KEY}"', QUOTED),
    "a blank in it": (f"{KEY[:9]} {KEY[9:]}", SPACED),
    "a line break behind it": (f"{KEY}\n", SPACED),
    "a line break in it": (f"{KEY[:30]}\r\n{KEY[30:]}", SPACED),
    "a blank before it": (f" {KEY}", SPACED),
    "a blank that does not break": (f"{KEY}\xa0", SPACED),
    "a blank of no width": (f"{KEY}\u200b", SPACED),
    "Bearer": (f"Bearer {KEY}", BEARER),
    "bearer, in small letters": (f"bearer  {KEY}", BEARER),
    "Bearer twice": (f"Bearer Bearer {KEY}", BEARER),
    "ApiKey": (f"ApiKey {KEY}", BEARER),
    "Api-Key": (f"Api-Key {KEY}", BEARER),
    "Token": (f"Token {KEY}", BEARER),
    "the header's name": (f"apikey: {KEY}", BEARER),
    "the parameter's name": (f"apikey={KEY}", BEARER),
    "Bearer, and quotes": (f'Bearer "{KEY}"', BEARER),
    "another environment's prefix": (key(prefix="acme_test"), ELSEWHERE),
    "another product's prefix": (key(prefix="other"), ELSEWHERE),
    "a prefix that begins this one": (key(prefix="ac"), ELSEWHERE),
    "no prefix": (KEY.removeprefix("acme_"), BEHEADED),
    "its first letters gone": (KEY[2:], BEHEADED),
    "a prefix in capitals": (f"ACME{KEY[4:]}", BEHEADED),
    "its last character gone": (KEY[:-1], short("1 character")),
    "its last characters gone": (KEY[:-9], short("9 characters")),
    "a character gone from the id": (f"{KEY[:7]}{KEY[8:]}", short("1 character")),
    "a character too many": (f"{KEY}x", long("1 character")),
    "the key twice": (KEY + KEY, long(f"{len(KEY)} characters")),
    "as long as a sealed key, and another end": (f"{KEY}xxxxxxxxxxx", MISTYPED),
    "a wrong character in the secret": (f"{KEY[:20]}{'0' if KEY[20] != '0' else '1'}{KEY[21:]}", MISTYPED),
    "a wrong character in the check": (f"{KEY[:-1]}{'0' if KEY[-1] != '0' else '1'}", MISTYPED),
    "two characters swapped": (f"{KEY[:20]}{KEY[21]}{KEY[20]}{KEY[22:]}", MISTYPED),
    "an underscore in the wrong place": (f"{KEY[:10]}{KEY[17]}{KEY[11:17]}_{KEY[18:]}", MISPLACED),
    "a dash in the place of an underscore": (f"{KEY[:17]}-{KEY[18:]}", STRANGE),
    "a letter of another alphabet": (f"{KEY[:-1]}é", STRANGE),
    "NUL behind it": (f"{KEY}\0", STRANGE),
    "percent-encoded": (KEY.replace("_", "%5F"), PERCENT),
    "percent-encoded whole": ("".join(f"%{ord(each):02x}" for each in KEY), PERCENT),
    "its digest": (SCHEME.digest(KEY), DIGEST),
    "its digest under a pepper": (KeyScheme("acme", ["sixteen bytes are enough"]).digest(KEY), DIGEST),
    "another system's digest": (f"sha512$${'ab' * 64}", DIGEST),
    "a slow digest": (f"pbkdf2_sha256$1000$salt${'A' * 43}=", DIGEST),
    "hex of a digest": ("ab" * 32, DIGEST),
    "its id": (KEY[5:17], ID),
    "its prefix and id": (KEY[:17], ID),
    "its prefix and id, and the underscore": (KEY[:18], ID),
    "a variable that nobody put in": ("${API_KEY}", EMPTY),
    "a variable of a template": ("{{ apiKey }}", EMPTY),
    "a place to put a key": ("<your key>", EMPTY),
    "JavaScript's undefined": ("undefined", EMPTY),
    "Python's None": ("None", EMPTY),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_refused_texts_answer_says_what_the_text_seems_to_be(name):
    text, clause = TABLE[name]
    assert detail(text) == f"The API key is not valid: {clause}."


@pytest.mark.parametrize("name", [name for name in TABLE if not TABLE[name][0].isascii()])
def test_utf_8_that_a_server_passes_on_as_latin_1_is_described_alike(name):
    text, clause = TABLE[name]
    assert detail(text.encode().decode("latin-1")) == f"The API key is not valid: {clause}."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "nonsense",
        "wrong-key",
        "a.b",
        "abcd",
        "acme",
        "\x01\x02\x7f",
        "\x80\xff",
        "\ud800",
        "x" * 64,
        "x" * 513,
    ],
)
def test_of_other_texts_nothing_is_said(text):
    assert detail(text) == DEFAULT


def test_every_sentence_is_one_and_names_the_prefix_at_most():
    for text, _ in TABLE.values():
        assert re.fullmatch(r"The API key is not valid: [a-z][^.A-Z]*(Bearer[^.A-Z]*)?\.", detail(text))
    assert "keys here begin with x9_" in detail(KEY, KeyScheme("x9"))


# Sealed keys


def test_where_keys_are_sealed_a_text_is_measured_by_the_nearer_of_the_two_lengths():
    text = SEALED.mint().text
    assert detail(text[:-2], SEALED) == f"The API key is not valid: {short('2 characters')}."
    assert detail(text + "ab", SEALED) == f"The API key is not valid: {long('2 characters')}."
    assert detail(KEY + "ab", SEALED) == f"The API key is not valid: {long('2 characters')}."
    assert detail(KEY[:-2], SEALED) == f"The API key is not valid: {short('2 characters')}."
    assert (
        detail(text[:-1] + ("0" if text[-1] != "0" else "1"), SEALED)
        == f"The API key is not valid: {MISTYPED}."
    )


def test_a_forged_seal_is_refused_as_an_unknown_key_is():
    forged = KeyScheme("acme", seal_keys=["another secret than theirs"]).mint().text
    assert detail(forged, SEALED) == detail(forged, STRICT) == DEFAULT
    assert detail(KEY, STRICT) == DEFAULT
    for scheme in SCHEMES:
        assert hint(forged, scheme) is None


# No oracle

parts = st.tuples(st.text(BASE62, min_size=12, max_size=12), st.text(BASE62, min_size=32, max_size=32))


@given(parts)
def test_all_unknown_keys_of_the_right_layout_are_told_the_same(part):
    store = MemoryKeyStore()
    KeyManager(store, SCHEME).ensure("1", text=KEY, name="known", expires_in=timedelta(days=1))
    for text in (key(*part), key(KEY[5:17], part[1])):
        with pytest.raises(InvalidKey) as refused:
            Authenticator(store, SCHEME).authenticate(text)
        assert (refused.value.detail, refused.value.code) == (DEFAULT, "invalid_key")
        assert [hint(text, scheme) for scheme in SCHEMES] == [None] * len(SCHEMES)


def test_the_same_is_said_of_a_text_whatever_the_secrets_are():
    one, other = (KeyScheme("acme", [secret], seal_keys=[secret]) for secret in ("a" * 16, "b" * 16))
    for text, _ in TABLE.values():
        assert detail(text, one) == detail(text, other)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_hint_is_sought_for_a_key_or_a_forged_one_or_what_is_too_long(scheme, monkeypatch):
    asked = []
    monkeypatch.setattr("apikey_auth.keys.hint", lambda text, scheme: asked.append(text))
    scheme.parse(scheme.mint().text)
    for text in (KeyScheme("acme", seal_keys=["another secret than theirs"]).mint().text, "x" * 513):
        with suppress(InvalidKey):
            scheme.parse(text)
    assert asked == []
    with pytest.raises(InvalidKey):
        scheme.parse("acme_")
    assert asked == ["acme_"]


# Nothing is repeated, nothing is raised

SENTENCES = {
    *(re.sub(r"[0-9]+ characters?", "N", clause) for _, clause in TABLE.values()),
}
wild = st.text(max_size=520) | st.text(
    st.sampled_from([*"acme_4K7d %\"'`*.$<>{}[]:=\t\n\0", "…", "•", "\u201c", "\xa0", "é", "\ud800"]),
    max_size=80,
)
affixes = [
    "",
    "acme_",
    "Bearer ",
    '"',
    "\t",
    "acme_4fRk0TzQ9bVw_",
    KEY,
    KEY[:-1],
    "%5F",
    "sha256$$",
    "...",
    "•",
]


@given(st.sampled_from(affixes), wild, st.sampled_from(affixes), st.sampled_from(SCHEMES))
@example("", "Bearer" + " " * 506, "", SCHEME)
@example("", "token" * 100, "", SCHEME)
@example("", "'" * 512, "", LEGACY)
@example("", "bearer " * 70, "", LEGACY)
def test_any_text_gets_one_of_few_sentences_or_none(before, text, behind, scheme):
    said = hint(before + text + behind, scheme)
    if said is not None:
        clause = said.removeprefix("The API key is not valid: ").removesuffix(".")
        assert re.sub(r"[0-9]+ characters?", "N", clause) in SENTENCES


@given(
    st.sampled_from(["", "acme_", "Bearer ", '"', "acme_4fRk0TzQ9bVw_", "acme_test_"]),
    st.text("ABCDEFGHIJ0123456789_%*.$\"'\xe9", min_size=8, max_size=80),
    st.sampled_from(["", '"', "...", "\n"]),
)
def test_no_eight_characters_of_a_text_come_back(before, text, behind):
    said = hint(before + text + behind, SCHEME) or ""
    assert not any(text[start : start + 8] in said for start in range(len(text) - 7))


# Keys of other systems

tokens = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1, max_size=80
)


@given(tokens)
@example("undefined")
@example("ab" * 32)
@example("4fRk0TzQ9bVw")
@example('"quoted"')
@example("a*b...%41")
@example("Bearer:x")
@example("sha256$$" + "ab" * 32)
@example("${X}")
def test_nothing_is_said_of_a_text_that_could_be_another_systems_key(token):
    if not token.startswith("acme_"):
        assert hint(token, LEGACY) is None
        assert hint(token, OPAQUE) is None


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("1|abc def", SPACED),
        ("1|abc*** ", SPACED),
        ("Bearer 1|abc", BEARER),
        ("1|••••", MASKED),
        (f"{KEY[:-1]}", short("1 character")),
        (f'"{KEY}"', QUOTED),
        (f"apikey={KEY}", BEARER),
        ("acme_***", MASKED),
        (key(prefix="acme_test"), ELSEWHERE),
        (key(prefix="other"), ELSEWHERE),
    ],
)
def test_what_no_other_systems_key_looks_like_is_described_there_too(text, clause):
    assert hint(text, LEGACY) == hint(text, OPAQUE) == f"The API key is not valid: {clause}."


def test_an_opaque_token_that_is_unknown_is_told_no_more_than_that():
    auth = Authenticator(MemoryKeyStore(), OPAQUE)
    for token in ("abcd", '"abcd"', "****", "sha256$$" + "ab" * 32):
        with pytest.raises(InvalidKey) as refused:
            auth.authenticate(token)
        assert refused.value.detail == DEFAULT


# Where the sentence goes


def test_the_sentence_is_the_problems_detail_under_the_same_code():
    with pytest.raises(InvalidKey) as refused:
        Authenticator(MemoryKeyStore(), SCHEME).authenticate(f"Bearer {KEY}")
    _, body = render(refused.value)
    assert f'"detail": "The API key is not valid: {BEARER}.", "code": "invalid_key"'.encode() in body
    assert str(refused.value) == refused.value.detail


def test_a_configured_key_that_is_none_says_so_to_whoever_configures_it():
    with pytest.raises(InvalidKey, match="it is 1 character shorter than a key"):
        KeyManager(MemoryKeyStore(), SCHEME).ensure("1", text=KEY[:-1], name="first")


def test_a_refusals_own_detail_is_kept_through_pickling_and_leaves_the_class_alone():
    refusal = pickle.loads(pickle.dumps(InvalidKey(detail="The API key is not valid: it is new.")))
    assert (refusal.detail, str(refusal)) == ("The API key is not valid: it is new.",) * 2
    assert InvalidKey().detail == InvalidKey(detail=None).detail == InvalidKey.detail == DEFAULT
    assert (InvalidKey("for the log", detail="X.").detail, str(InvalidKey("for the log", detail="X."))) == (
        "X.",
        "for the log",
    )


# Which keys contradict each other


def clash(headers, query="", carriers=DEFAULT_CARRIERS):
    return read(carriers, headers.get, query).clash


COMMA = "the header apikey was sent more than once, or holds a comma"
IN_URL = "the parameter apikey is in the URL more than once"


@pytest.mark.parametrize(
    ("headers", "query", "which"),
    [
        ({"apikey": "A,B"}, "", COMMA),
        ({"apikey": "A,A"}, "apikey=B", COMMA),
        ({}, "apikey=A&APIKEY=A", IN_URL),
        ({"apikey": "A"}, "apikey=&apikey=", IN_URL),
        ({"apikey": "A"}, "apikey=B", "those in a header and the URL differ"),
    ],
)
def test_an_ambiguous_request_is_told_which_keys_are_too_many(headers, query, which):
    sentence = f"The request carries more than one API key: {which}."
    assert clash(headers, query) == sentence
    assert AmbiguousKey(detail=sentence).detail == sentence


def test_two_carriers_of_one_place_are_told_apart_from_a_header_and_the_url():
    headers = {"apikey": "A", "Authorization": "Bearer B"}
    assert clash(headers, carriers=(Header(), Bearer(), Query())).endswith(": those in two headers differ.")
    assert clash({}, "a=A&b=B", carriers=(Query("a"), Query("b"))).endswith(": those in the URL differ.")


def test_what_is_not_ambiguous_clashes_with_nothing():
    assert clash({}) is clash({"apikey": "A"}) is clash({"apikey": "A"}, "apikey=A") is None
