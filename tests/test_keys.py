"""Key texts and records: one text per key, byte for byte, and no field that a store could not keep."""

import contextlib
import dataclasses
import hashlib
import hmac
import math
import pickle
import re
import secrets
import zlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from itsdangerous import Signer

from apikey_auth import Authenticator, MemoryKeyStore, hashing, keys
from apikey_auth.credentials import Credential
from apikey_auth.decisions import check_request
from apikey_auth.errors import ConfigurationError, InvalidKey
from apikey_auth.formats import DRFAPIKeys, opaque_tokens
from apikey_auth.keys import APIKey, IssuedKey, KeyScheme, KeyText, named_id
from apikey_auth.testing import UnreliableStore

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "a lookup secret of enough bytes"
PLAIN = KeyScheme("acme")
OPEN = KeyScheme("acme", formats=[opaque_tokens()])

unicode_text = st.text(st.characters(exclude_categories=()), max_size=600)
latin1_text = st.binary(max_size=600).map(lambda raw: raw.decode("latin-1"))
any_text = unicode_text | latin1_text
prefixes = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True)


def check_of(body):
    """CRC-32 of IEEE 802.3, bit by bit, as six digits of base 62."""
    crc = 0xFFFFFFFF
    for byte in body.encode("ascii"):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return "".join(BASE62[crc // 62**place % 62] for place in range(5, -1, -1))


def record(**fields):
    return APIKey(**{"id": "k1", "owner": "u1", "digest": "sha256$$00", **fields})


# Texts


@given(any_text)
@example("\ud800")
@example("\0")
@example("acme_")
def test_any_text_is_a_key_or_is_refused_and_nothing_else(text):
    for scheme in (PLAIN, OPEN):
        with contextlib.suppress(InvalidKey):
            assert isinstance(scheme.parse(text), KeyText)


@given(any_text)
def test_any_text_behind_the_prefix_is_refused(text):
    for scheme in (PLAIN, OPEN):
        with pytest.raises(InvalidKey):
            scheme.parse(f"acme_{text}")


@given(any_text)
def test_without_formats_nothing_but_a_minted_key_is_a_key(text):
    with pytest.raises(InvalidKey):
        PLAIN.parse(text)


@pytest.mark.parametrize("text", [None, b"acme_x", 7])
def test_what_is_no_text_is_a_mistake_and_no_bad_key(text):
    with pytest.raises(TypeError, match="a key is text, not"):
        OPEN.parse(text)


@given(prefixes)
@example("a")
@example("A_b__9_")
@example("acme_")
@example("z" * 32)
def test_parsing_what_was_minted_is_the_identity(prefix):
    scheme = KeyScheme(prefix)
    minted = scheme.mint()
    parsed = scheme.parse(minted.text)
    assert parsed == minted
    assert (parsed.id, parsed.text, parsed.secret, parsed.prefix) == (
        minted.id,
        minted.text,
        minted.secret,
        prefix,
    )


@given(prefixes)
def test_a_key_reads_prefix_id_secret_and_the_crc32_of_all_that(prefix):
    minted = KeyScheme(prefix).mint()
    assert re.fullmatch(r"[0-9A-Za-z]{12}", minted.id)
    assert re.fullmatch(r"[0-9A-Za-z]{32}", minted.secret)
    body = f"{prefix}_{minted.id}_{minted.secret}"
    assert minted.text == body + check_of(body)


def test_the_check_is_padded_with_zeros_where_the_crc_is_small():
    small = next(body for body in map(str, range(1_000_000)) if zlib.crc32(body.encode()) < 62**3)
    assert keys._checksum(small) == check_of(small)
    assert check_of(small).startswith("000")


def test_a_key_of_today_is_read_by_every_later_version():
    text = "acme_4fRk0TzQ9bVw_0123456789ABCDEFGHIJKLMNOPQRSTUV4LKz5v"
    assert text[-6:] == check_of(text[:-6])
    assert KeyScheme("acme").parse(text) == KeyText(
        "4fRk0TzQ9bVw", text, "0123456789ABCDEFGHIJKLMNOPQRSTUV", "acme"
    )


def test_a_key_may_be_minted_under_a_given_id():
    assert PLAIN.mint("4fRk0TzQ9bVw").id == "4fRk0TzQ9bVw"


@pytest.mark.parametrize(
    "key_id", ["", "short", "4fRk0TzQ9bVwX", "4fRk0TzQ9b_w", "4fRk0TzQ9bVé", "4fRk0TzQ9bV\n"]
)
def test_an_id_of_another_form_makes_no_key(key_id):
    with pytest.raises((InvalidKey, ValueError)):
        PLAIN.mint(key_id)


def test_a_secret_has_at_least_190_bits_and_uses_all_of_its_alphabet():
    minted = [PLAIN.mint() for _ in range(200)]
    assert {len(each.secret) for each in minted} == {32}
    seen = set("".join(each.secret for each in minted))
    assert seen == set(BASE62)
    assert 32 * math.log2(len(seen)) > 190
    assert len({each.secret for each in minted}) == len({each.id for each in minted}) == 200


def test_ids_and_secrets_are_drawn_from_the_secrets_module(monkeypatch):
    drawn = []
    choose = secrets.choice

    def choice(alphabet):
        drawn.append(alphabet)
        return choose(alphabet)

    monkeypatch.setattr(secrets, "choice", choice)
    PLAIN.mint()
    assert drawn == [BASE62] * (12 + 32)
    drawn.clear()
    PLAIN.mint("4fRk0TzQ9bVw")
    assert drawn == [BASE62] * 32


# One spelling


@pytest.fixture(scope="module")
def minted():
    return KeyScheme("ac_me9").mint()


def refused(scheme, text, minted):
    """Say whether a text is no key, or is none that could stand for the minted one."""
    try:
        parsed = scheme.parse(text)
    except InvalidKey:
        return True
    return (
        not text.startswith(f"{scheme.prefix}_")
        and parsed.id != minted.id
        and not scheme.matches(scheme.digest(minted.text), parsed.text)
    )


def test_every_single_wrong_character_is_found_by_the_check_alone(minted):
    scheme = KeyScheme("ac_me9")
    for at, right in enumerate(minted.text):
        for wrong in BASE62 + "_":
            if wrong != right:
                with pytest.raises(InvalidKey):
                    scheme.parse(minted.text[:at] + wrong + minted.text[at + 1 :])


@pytest.mark.parametrize("formats", [[], [opaque_tokens()]])
def test_no_edit_of_one_character_is_a_second_spelling_of_a_key(minted, formats):
    scheme, text = KeyScheme("ac_me9", formats=formats), minted.text
    for at in range(len(text) + 1):
        for extra in BASE62 + "_-.=+/ \t\n\0,~é\u200b":
            assert refused(scheme, text[:at] + extra + text[at:], minted), (at, extra)
    for at, right in enumerate(text):
        assert refused(scheme, text[:at] + text[at + 1 :], minted), at
        for wrong in {right.swapcase(), "_", "-", " ", "\0", "é", ".", ",", chr(ord(right) + 0xFEE0)} - {
            right
        }:
            assert refused(scheme, text[:at] + wrong + text[at + 1 :], minted), (at, wrong)
        swapped = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        assert swapped == text or refused(scheme, swapped, minted), at


@pytest.mark.parametrize("formats", [[], [opaque_tokens()]])
@pytest.mark.parametrize(
    "respell",
    [
        str.swapcase,
        str.upper,
        str.lower,
        lambda text: text + ".x",
        lambda text: text + "\0",
        lambda text: text + "\n",
        lambda text: text + "\r\n",
        lambda text: text + " ",
        lambda text: text + "=",
        lambda text: text + "," + text,
        lambda text: text + text,
        lambda text: " " + text,
        lambda text: "\t" + text,
        lambda text: "\ufeff" + text,
        lambda text: "_" + text,
        lambda text: f'"{text}"',
        lambda text: f"Bearer {text}",
        lambda text: text.replace("_", "%5F"),
        lambda text: text.replace("_", "\uff3f"),
        lambda text: text.replace("a", "\u0430"),
        lambda text: "".join(chr(ord(each) + 0xFEE0) for each in text),
        lambda text: text[::-1],
        lambda text: text.encode("utf-16-le").decode("latin-1"),
    ],
)
def test_a_respelled_key_is_no_key(minted, formats, respell):
    scheme = KeyScheme("ac_me9", formats=formats)
    assert respell(minted.text) != minted.text
    assert refused(scheme, respell(minted.text), minted)


def test_a_key_of_another_prefix_is_no_key():
    with pytest.raises(InvalidKey):
        PLAIN.parse(KeyScheme("acm").mint().text)
    with pytest.raises(InvalidKey):
        PLAIN.parse(KeyScheme("acme_x").mint().text)


def test_the_same_id_and_secret_under_another_prefix_is_another_key():
    minted = PLAIN.mint()
    body = f"other_{minted.id}_{minted.secret}"
    other = KeyScheme("other").parse(body + check_of(body))
    assert not PLAIN.matches(PLAIN.digest(minted.text), other.text)


# Length


@pytest.fixture
def spent(monkeypatch):
    """Whatever hashes a text while it is parsed."""
    calls = []

    def counting(function):
        def count(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return count

    for module, name in (
        (zlib, "crc32"),
        (hmac, "digest"),
        (hashlib, "sha256"),
        (hashing, "digest"),
        (hashing, "matches"),
    ):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return calls


@pytest.mark.parametrize("text", ["x" * 513, "acme_" + "x" * 508, "x" * 1_000_000, "é" * 513])
def test_what_is_over_512_bytes_is_refused_before_anything_is_computed(spent, text):
    with pytest.raises(InvalidKey):
        OPEN.parse(text)
    assert spent == []


def test_512_bytes_are_read(spent):
    assert OPEN.parse("x" * 512).text == "x" * 512
    assert spent == ["digest"]


def test_text_of_another_length_than_a_key_costs_no_checksum(spent):
    with pytest.raises(InvalidKey):
        PLAIN.parse("acme_" + "x" * 40)
    assert spent == []


# Formats


@given(any_text)
def test_a_text_behind_the_prefix_never_falls_to_a_format(text):
    seen = []
    scheme = KeyScheme("acme", formats=[lambda each: (seen.append(each), ("id", each))[1]])
    with pytest.raises(InvalidKey):
        scheme.parse(f"acme_{text}")
    assert seen == []


def test_formats_are_asked_in_order_until_one_knows_the_text():
    asked = []

    def named(name, answer):
        def read(text):
            asked.append(name)
            return answer

        return read

    scheme = KeyScheme(
        formats=[named("first", None), named("second", ("id2", "digested")), named("third", ("id3", "x"))]
    )
    assert scheme.parse("token") == KeyText("id2", "digested", "digested", "")
    assert asked == ["first", "second"]


def test_a_text_that_no_format_knows_is_refused():
    with pytest.raises(InvalidKey):
        KeyScheme(formats=[lambda text: None]).parse("token")


@given(any_text)
def test_a_format_sees_printable_ascii_without_blank_and_comma_and_nothing_else(text):
    seen = []
    scheme = KeyScheme("acme", formats=[lambda each: seen.append(each)])
    with pytest.raises(InvalidKey):
        scheme.parse(text)
    allowed = 0 < len(text) <= 512 and all("!" <= each <= "~" and each != "," for each in text)
    assert seen == ([text] if allowed and not text.startswith("acme_") else [])


@pytest.mark.parametrize("text", ["!", "~", "+-", "abcd", "a%20b", '"q"', "a" * 512])
def test_every_printable_character_may_stand_in_an_opaque_token(text):
    assert OPEN.parse(text).text == text


@pytest.mark.parametrize("text", ["", " ", "a b", "a,b", ",", "a\tb", "abcd\n", "é", "a\x7f", "a\x1f", "\0"])
def test_blank_comma_control_and_foreign_characters_may_not(text):
    with pytest.raises(InvalidKey):
        OPEN.parse(text)


def test_the_id_of_an_opaque_token_is_stable_and_never_the_token():
    for secret in (None, SECRET):
        read = opaque_tokens(secret)
        key_id, digested = read("abcd")
        assert (key_id, digested) == opaque_tokens(secret)("abcd")
        assert re.fullmatch(r"[0-9a-f]{32}", key_id)
        assert "abcd" not in key_id
        assert digested == "abcd"
        assert read("abce")[0] != key_id


def test_the_id_of_an_opaque_token_is_an_hmac_under_a_key_derived_for_looking_up():
    key = hmac.new(SECRET.encode(), b"apikey_auth.lookup", hashlib.sha256).digest()
    expected = hmac.new(key, b"abcd", hashlib.sha256).hexdigest()[:32]
    assert opaque_tokens(SECRET)("abcd")[0] == opaque_tokens(SECRET.encode())("abcd")[0] == expected
    assert opaque_tokens()("abcd")[0] == hmac.new(b"", b"abcd", hashlib.sha256).hexdigest()[:32]


def test_the_ids_of_opaque_tokens_differ_with_the_lookup_secret():
    ids = {opaque_tokens(secret)("abcd")[0] for secret in (None, SECRET, SECRET + "!")}
    assert len(ids) == 3


@pytest.mark.parametrize("secret", ["", "fifteen bytes..", b"short"])
def test_a_short_lookup_secret_is_refused(secret):
    with pytest.raises(ConfigurationError, match="lookup secret needs at least 16 bytes"):
        opaque_tokens(secret)


def test_the_last_four_characters_are_of_the_secret_and_none_of_a_short_text():
    minted = PLAIN.mint()
    assert minted.last4 == minted.secret[-4:]
    assert OPEN.parse("123456789012345").last4 == ""
    assert OPEN.parse("1234567890123456").last4 == "3456"


# The scheme


@pytest.mark.parametrize(
    "prefix", ["", "1a", "_a", "a-b", "a b", "a" * 33, "é", "aé", "a\n", "a.b", "\uff41", "a$", 7, None]
)
def test_a_prefix_is_a_letter_and_up_to_31_letters_digits_or_underscores(prefix):
    with pytest.raises(ConfigurationError, match="letter and up to 31 letters, digits or underscores"):
        KeyScheme(prefix)


def test_a_scheme_is_frozen_and_keeps_its_own_lists():
    peppers, formats = [SECRET], [opaque_tokens(SECRET)]
    scheme = KeyScheme("acme", peppers=peppers, formats=formats)
    digest = scheme.digest("abcd")
    peppers.append("another pepper of enough bytes")
    formats.clear()
    assert scheme.digest("abcd") == digest
    assert scheme.parse("abcd").text == "abcd"
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.prefix = "other"


def test_schemes_of_the_same_settings_are_equal():
    assert KeyScheme("acme", peppers=[SECRET]) == KeyScheme("acme", peppers=(SECRET,))
    assert KeyScheme("acme", peppers=[SECRET]) != KeyScheme("acme")
    assert KeyScheme().prefix == "apikey"


def test_a_named_id_follows_from_prefix_owner_and_name_and_from_nothing_else():
    assert named_id("acme", "u1", "first") == named_id("acme", "u1", "first")
    assert re.fullmatch(r"[0-9A-Za-z]{12}", named_id("acme", "Jörg \U0001f511", ""))
    names = [
        ("a", "b", "c"),
        ("ab", "", "c"),
        ("a", "bc", ""),
        ("a", "", "bc"),
        ("", "ab", "c"),
        ('a", "b', "", "c"),
    ]
    assert len({named_id(*each) for each in names}) == len(names)


def test_a_named_id_never_changes_because_workers_of_two_versions_start_together():
    digest = hashlib.sha256(b'["acme", "u1", "first"]').digest()
    number = int.from_bytes(digest, "big")
    assert named_id("acme", "u1", "first") == "".join(
        BASE62[number // 62**place % 62] for place in range(11, -1, -1)
    )


# Records


@pytest.mark.parametrize("name", ["id", "owner"])
def test_a_record_has_an_id_and_an_owner(name):
    with pytest.raises(ValueError, match=f"{name} must not be empty"):
        record(**{name: ""})


@pytest.mark.parametrize("name", ["id", "owner", "name"])
def test_what_a_database_indexes_is_at_most_255_characters_of_text(name):
    assert getattr(record(**{name: "é" * 255}), name) == "é" * 255
    with pytest.raises(ValueError, match=f"{name} has 256 characters, at most 255"):
        record(**{name: "é" * 256})
    with pytest.raises(ValueError, match=f"{name} must not hold a NUL"):
        record(**{name: "a\0b"})
    with pytest.raises(TypeError, match=rf"{name} must be text, not int; use str\(…\)"):
        record(**{name: 7})
    with pytest.raises(TypeError, match=f"{name} must be text, not bytes"):
        record(**{name: b"u1"})


@pytest.mark.parametrize("name", ["id", "owner", "name"])
def test_text_that_no_database_can_encode_is_refused_where_the_record_is_made(name):
    with pytest.raises(ValueError, match=name):
        record(**{name: "\ud800"})


TIMES = ["created_at", "expires_at", "revoked_at", "grace_until", "last_used_at"]


@pytest.mark.parametrize("name", TIMES)
def test_a_time_without_zone_is_refused_with_the_way_to_make_one_that_has(name):
    with pytest.raises(ValueError, match=rf"{name} has no time zone; use datetime\.now\(UTC\)"):
        record(**{name: datetime(2026, 1, 1)})  # noqa: DTZ001


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", ["2026-01-01", 1767225600, NOW.date()])
def test_a_time_is_a_datetime(name, value):
    with pytest.raises(TypeError, match=f"{name} is a datetime"):
        record(**{name: value})


@pytest.mark.parametrize("name", TIMES)
def test_times_are_kept_in_utc(name):
    there = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=1, minutes=30)))
    kept = getattr(record(**{name: there}), name)
    assert kept == NOW
    assert kept.tzinfo is UTC


def test_a_record_is_made_now_and_lives_for_ever_unless_it_says_otherwise():
    before = datetime.now(UTC)
    key = record()
    assert before <= key.created_at <= datetime.now(UTC)
    assert key.expires_at is None


def test_scopes_none_nothing_and_some_stay_three_things():
    assert record().scopes is None
    assert record(scopes=[]).scopes == ()
    assert record(scopes=["b", "a", "b"]).scopes == ("b", "a")


def test_one_scope_in_the_place_of_a_list_is_refused_with_the_list():
    with pytest.raises(TypeError, match=r"scopes is a list; did you mean \['reports:read'\]\?"):
        record(scopes="reports:read")


@pytest.mark.parametrize("scope", [None, 7, b"a", "", " ", "a b", 'a"b', "a\\b", "é", "a\n", "a\x7f", "\0"])
def test_a_scope_that_no_challenge_could_name_is_refused(scope):
    with pytest.raises(ValueError, match="is no scope: printable ASCII, no blank, quote or backslash"):
        record(scopes=["fine", scope])


@pytest.mark.parametrize("scope", ["!", "#[]~", "https://example.org/a?b=c&d", "a,b"])
def test_every_scope_token_of_rfc_6749_is_a_scope(scope):
    assert record(scopes=[scope]).scopes == (scope,)


def test_scopes_that_can_be_read_once_are_not_taken_for_none_at_all():
    try:
        kept = record(scopes=(each for each in ["reports:read"])).scopes
    except TypeError:
        return
    assert kept == ("reports:read",)


def test_addresses_are_kept_as_blocks_in_one_spelling():
    assert record().addresses is None
    assert record(addresses=[]).addresses == ()
    kept = record(
        addresses=["10.0.0.0/8", "192.0.2.1", "2001:DB8:0::/32", "10.0.0.0/255.0.0.0", "::1"]
    ).addresses
    assert kept == ("10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128")


def test_one_address_in_the_place_of_a_list_is_refused_with_the_list():
    with pytest.raises(TypeError, match=r"addresses is a list; did you mean \['10.0.0.0/8'\]\?"):
        record(addresses="10.0.0.0/8")


@pytest.mark.parametrize("address", ["", "10.0.0.1/8", "10.0.0.0/33", "example.org", "10.0.0", "1.2.3.4:80"])
def test_what_is_no_block_of_addresses_is_refused(address):
    with pytest.raises(ValueError, match=re.escape(repr(address) if "/8" not in address else address)):
        record(addresses=[address])


def test_a_block_that_no_client_can_match_is_refused_or_matches():
    try:
        key = record(addresses=["::ffff:192.0.2.0/120"])
    except ValueError:
        return
    assert check_request(key, "::ffff:192.0.2.7", ()) is None


def test_metadata_is_a_copy_that_nobody_else_holds():
    mine = {"tags": ["a"], "plan": {"name": "free"}}
    key = record(metadata=mine)
    mine["tags"].append("b")
    mine["plan"]["name"] = "paid"
    mine["new"] = 1
    assert key.metadata == {"tags": ["a"], "plan": {"name": "free"}}


def test_metadata_of_a_copied_record_is_its_own():
    key = record(metadata={"tags": ["a"]})
    copy = dataclasses.replace(key, name="copy")
    copy.metadata["tags"].append("b")
    assert key.metadata == {"tags": ["a"]}
    with pytest.raises(TypeError, match="cannot be changed"):
        record().metadata["shared"] = "by all that have none"


@pytest.mark.parametrize(
    "metadata",
    [{"a": object()}, {"a": {1, 2}}, {"a": float("nan")}, {"a": float("inf")}, {"a": b"x"}, [1], 5],
)
def test_metadata_that_is_no_json_object_is_refused(metadata):
    with pytest.raises(ValueError, match="metadata must be a JSON object"):
        record(metadata=metadata)


FULL = {
    "name": "CI",
    "prefix": "acme",
    "last4": "abcd",
    "scopes": ("a",),
    "addresses": ("10.0.0.0/8",),
    "created_at": NOW,
    "created_by": "u0",
    "expires_at": NOW,
    "disabled": True,
    "revoked_at": NOW,
    "revoked_reason": "left",
    "rotated_to": "k2",
    "rotated_from": "k0",
    "grace_until": NOW,
    "last_used_at": NOW,
    "metadata": {"a": [1, {"b": None}]},
    "version": 7,
}


def test_a_record_keeps_every_field_that_it_is_given():
    assert {"id", "owner", "digest", *FULL} == {field.name for field in dataclasses.fields(APIKey)}
    key = record(**FULL)
    assert {name: getattr(key, name) for name in FULL} == FULL


VALUES = [
    record(**FULL),
    IssuedKey(record(**FULL), "the text"),
    PLAIN.mint(),
    hashing.Pepper.of(SECRET),
    Credential("the text", False, True, "a=1"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen_slotted_hashable_and_picklable(value):
    assert not hasattr(value, "__dict__")
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value
    assert hash(copy) == hash(value)


def test_two_records_that_differ_in_metadata_alone_are_not_equal():
    assert record(created_at=NOW, metadata={"a": 1}) != record(created_at=NOW, metadata={"a": 2})


def test_no_repr_holds_a_text_a_secret_or_a_digest():
    scheme = KeyScheme("acme", peppers=[SECRET], formats=[opaque_tokens(SECRET)])
    minted = scheme.mint()
    key = record(id=minted.id, digest=scheme.digest(minted.text), last4=minted.last4)
    pepper = hashing.Pepper.of(SECRET)
    opaque = scheme.parse("an-opaque-token-of-some-length")
    shown = [key, IssuedKey(key, minted.text), minted, opaque, scheme, pepper]
    shown.append(Credential(minted.text, False, False, ""))
    hidden = [minted.text, minted.secret, key.digest, key.digest.rpartition("$")[2], SECRET, opaque.text]
    hidden += [str(pepper.key), pepper.key.hex()]
    for value in shown:
        for look in (repr, str, "{}".format, lambda each: repr([each])):
            assert not any(secret in look(value) for secret in hidden), type(value)


def test_a_repr_still_tells_which_key_it_is():
    minted = PLAIN.mint()
    assert minted.id in repr(minted)
    assert "'u1'" in repr(IssuedKey(record(), minted.text))


# Seals

OLD_SEAL, NEW_SEAL = "the older seal key, long enough", "the newer seal key, long enough"
SEALED = KeyScheme("acme", seal_keys=[OLD_SEAL, NEW_SEAL])


def seal_of(body, secret):
    """The seal as DESIGN has it, by itsdangerous and by hand."""
    signer = Signer(secret, "apikey_auth.seal", key_derivation="hmac", digest_method=hashlib.sha256)
    number = int.from_bytes(hmac.new(signer.derive_key(), body.encode(), "sha256").digest()[:8], "big")
    return "".join(BASE62[number // 62**place % 62] for place in range(10, -1, -1))


def test_a_sealed_key_reads_prefix_id_secret_seal_and_check():
    text = SEALED.mint("ABCDEFGHIJKL").text
    assert re.fullmatch(r"acme_ABCDEFGHIJKL_[0-9A-Za-z]{49}", text)
    body, seal = text[: len("acme_ABCDEFGHIJKL_") + 32], text[-17:-6]
    assert seal == seal_of(body, NEW_SEAL)
    assert text[-6:] == check_of(body + seal)


def test_the_secret_of_a_sealed_key_is_what_stands_before_the_seal():
    minted = SEALED.mint()
    assert (len(minted.secret), minted.last4) == (32, minted.text[-21:-17])


@pytest.mark.parametrize("key", [OLD_SEAL, NEW_SEAL])
def test_the_seal_of_any_seal_key_is_good(key):
    minted = KeyScheme("acme", seal_keys=[key]).mint()
    assert SEALED.parse(minted.text) == minted


def test_dropping_a_seal_key_ends_the_keys_that_are_sealed_with_it():
    minted = KeyScheme("acme", seal_keys=[OLD_SEAL]).mint()
    with pytest.raises(InvalidKey):
        KeyScheme("acme", seal_keys=[NEW_SEAL]).parse(minted.text)


@pytest.mark.parametrize("place", range(len("acme_"), len("acme_") + 62))
def test_a_forged_text_with_a_good_check_is_refused(place):
    minted = SEALED.mint().text
    other = "B" if minted[place] != "B" else "C"
    forged = minted[:place] + other + minted[place + 1 : -6]
    with pytest.raises(InvalidKey):
        SEALED.parse(forged + check_of(forged))


def test_keys_from_before_are_good_unless_a_seal_is_required():
    unsealed = PLAIN.mint()
    assert SEALED.parse(unsealed.text) == unsealed
    with pytest.raises(InvalidKey):
        KeyScheme("acme", seal_keys=[NEW_SEAL], require_seal=True).parse(unsealed.text)


def test_without_seal_keys_seals_are_not_looked_at():
    minted = SEALED.mint()
    assert PLAIN.parse(minted.text) == minted


def test_a_seal_is_one_of_its_prefix():
    minted = SEALED.mint().text
    other = "beta" + minted[4:-6]
    with pytest.raises(InvalidKey):
        KeyScheme("beta", seal_keys=[NEW_SEAL]).parse(other + check_of(other))


def test_a_forged_text_costs_no_call_of_the_store():
    store = UnreliableStore(MemoryKeyStore())
    auth = Authenticator(store, SEALED)
    text = auth.keys.issue("ada").text
    forged = text[:-17] + KeyScheme("acme", seal_keys=["some other seal key altogether"]).mint().text[-17:-6]
    store.calls.clear()
    with pytest.raises(InvalidKey):
        auth.authenticate(forged + check_of(forged))
    assert store.calls == {}
    assert auth.authenticate(text).user.id == "ada"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seal_keys": "one secret of enough bytes"}, "seal_keys is a list of secrets"),
        ({"seal_keys": 7}, "seal_keys is a list of secrets, oldest to newest, not int"),
        ({"peppers": None}, "peppers is a list of secrets, oldest to newest, not NoneType"),
        (
            {"formats": opaque_tokens()},
            r"formats is a list of formats, such as opaque_tokens\(\), not OpaqueTokens",
        ),
        ({"formats": [7]}, r"7 is no format, which is a function of a text: opaque_tokens\(\)"),
        ({"formats": [DRFAPIKeys]}, "DRFAPIKeys'> is no format"),
        ({"seal_keys": ["short"]}, "at least 16 bytes"),
        ({"seal_keys": [None]}, "is its variable set"),
        ({"require_seal": True}, "require_seal takes seal_keys"),
    ],
)
def test_options_of_a_scheme_that_will_not_do_are_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        KeyScheme("acme", **options)


def test_seal_keys_are_not_shown():
    assert NEW_SEAL not in repr(SEALED)
