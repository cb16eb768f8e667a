"""Keys of other systems: their texts in the one spelling that was given out, and their rows."""

import contextlib
import hashlib
import json
import re
import zlib
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth.errors import ConfigurationError, InvalidKey
from apikey_auth.formats import (
    Cells,
    DRFAPIKeys,
    DRFTokens,
    KnoxTokens,
    SanctumTokens,
    SensenetKeys,
    opaque_tokens,
)
from apikey_auth.keys import KeyScheme

DATA = Path(__file__).parent / "data"
SECRET = "a lookup secret of enough bytes"

MADE = {
    # file: the format that reads it
    "drf_api_key_2": DRFAPIKeys(),
    "drf_api_key_3": DRFAPIKeys(),
    "drf_token": DRFTokens(),
    "knox_4": KnoxTokens(version=4),
    "knox_5": KnoxTokens(version=5),
    "knox_5_prefix": KnoxTokens(prefix="acme-"),
    "sanctum": SanctumTokens(),
}
FORMATS = [
    *MADE.values(),
    SanctumTokens(prefix="acme_pat_"),
    SanctumTokens(bare=True),
    DRFAPIKeys(prefix_length=4, secret_length=8),
    KnoxTokens(length=32),
]


def made(name):
    return json.loads((DATA / f"{name}.json").read_text())["keys"]


def reader(name, text):
    """Give the format of a text: Sanctum's may have had two prefixes in its time."""
    return SanctumTokens(prefix="acme_pat_") if "acme_pat_" in text else MADE[name]


EVERY = [
    pytest.param(reader(name, each["text"]), each["text"], each["row"], id=f"{name}-{number}")
    for name in MADE
    for number, each in enumerate(made(name))
]


def cells(row, zone=UTC):
    return Cells(row, zone)


def crc_of(text):
    return f"{zlib.crc32(text.encode()):08x}"


def known(read, text):
    """Say whether a scheme with this format takes a text for a key."""
    try:
        KeyScheme("native", formats=[read]).parse(text)
    except InvalidKey:
        return False
    return True


# Texts


@pytest.mark.parametrize(("read", "text", "row"), EVERY)
def test_the_id_is_the_same_from_the_text_as_from_the_row(read, text, row):
    key_id, digested = read(text)
    found = read.read(cells(row))
    if found.text is None:
        assert found.id == key_id
        assert KeyScheme().matches(found.digest, digested)
        assert not KeyScheme().matches(found.digest, digested + "0")
    else:
        assert found.text == text
    assert re.fullmatch(r"[0-9a-z]+(-[0-9A-Za-z]+)+", key_id)


@pytest.mark.parametrize(("read", "text", "row"), EVERY)
def test_an_id_gives_nothing_of_the_secret_away(read, text, row):
    key_id, _ = read(text)
    secret = re.split(r"[.|]", text)[-1].removeprefix("acme-").removeprefix("acme_pat_")
    for start in range(len(secret) - 7):
        assert secret[start : start + 8] not in key_id


@given(st.text(st.characters(exclude_categories=())) | st.text(st.sampled_from("0aFz.|-_%"), max_size=120))
def test_any_text_gives_an_id_and_a_text_or_none_and_never_an_error(text):
    scheme = KeyScheme("native", formats=[*FORMATS, opaque_tokens()])
    with contextlib.suppress(InvalidKey):
        assert scheme.parse(text).id
    for read in FORMATS:
        found = read(text)
        assert found is None or (isinstance(found[0], str) and isinstance(found[1], str))


@given(st.data())
def test_a_text_near_a_keys_gives_another_id_or_another_text_to_digest(data):
    param = data.draw(st.sampled_from(EVERY)).values
    read, text = param[0], param[1]
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(min_codepoint=0, max_codepoint=0x17F))
    edited = data.draw(
        st.sampled_from([text[:at] + other + text[at:], text[:at] + other + text[at + 1 :], text[:at]])
    )
    if edited != text:
        assert read(edited) != read(text)


RESPELLINGS = {
    "capitals": str.upper,
    "other case": str.swapcase,
    "a blank behind": lambda text: text + " ",
    "a newline behind": lambda text: text + "\n",
    "NUL behind": lambda text: text + "\0",
    "more behind": lambda text: text + "0",
    "a part more": lambda text: text + ".x",
    "a blank before": lambda text: " " + text,
    "a zero before": lambda text: "0" + text,
    "a plus before": lambda text: "+" + text,
    "the scheme before": lambda text: "Token " + text,
    "blanks inside": lambda text: " ".join(re.findall("..?", text)),
    "full width": lambda text: "".join(chr(ord(each) + 0xFEE0) for each in text),
    "without the last": lambda text: text[:-1],
    "twice": lambda text: text + text,
}


@pytest.mark.parametrize("respell", RESPELLINGS.values(), ids=RESPELLINGS)
@pytest.mark.parametrize(("read", "text", "row"), EVERY)
def test_a_second_spelling_of_a_key_is_no_key_or_another_one(read, text, row, respell):
    spelled = respell(text)
    if not known(read, spelled):
        return
    key_id, digested = read(spelled)
    own_id, own = read(text)
    assert key_id != own_id or not KeyScheme().matches(KeyScheme().digest(own), digested)


@pytest.mark.parametrize("version", [4, 5])
def test_a_knox_token_in_capitals_is_refused_although_its_bytes_are_the_same(version):
    text = made(f"knox_{version}")[0]["text"]
    read = KnoxTokens(version=version)
    assert read(text)
    for spelled in (text.upper(), text[:-1] + text[-1].upper() if text[-1].isalpha() else "A" + text[1:]):
        assert spelled != text
        assert read(spelled) is None


@pytest.mark.parametrize("version", [4, 5])
def test_a_knox_token_has_an_even_length_as_it_is_the_hex_of_bytes(version):
    read = KnoxTokens(version=version, length=33)
    assert read("a" * 32)
    assert read("a" * 33) is None


def test_a_sanctum_token_needs_its_id_and_no_other_spelling_of_it():
    text = made("sanctum")[0]["text"]
    row_id, _, token = text.partition("|")
    read = SanctumTokens()
    assert read(text) == (f"sanctum-{row_id}", token)
    for spelled in (token, f"|{token}", f"{row_id}||{token}", f"{row_id} |{token}", f"{row_id}%7C{token}"):
        assert read(spelled) is None
    assert read(f"0{text}")[0] != read(text)[0]


def test_a_bare_sanctum_token_needs_to_be_without_the_id():
    text = made("sanctum")[0]["text"]
    read = SanctumTokens(bare=True)
    key_id, digested = read(text.partition("|")[2])
    assert digested == text.partition("|")[2]
    assert re.fullmatch(r"sanctum-[0-9a-f]{32}", key_id)
    assert read(text) is None
    assert read.read(cells(made("sanctum")[0]["row"])).id == key_id


def test_a_sanctum_tokens_checksum_is_checked():
    random = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    assert SanctumTokens()(f"1|{random}{crc_of(random)}")
    assert SanctumTokens(prefix="x_")(f"1|x_{random}{crc_of(random)}")  # the prefix is not in it
    for wrong in (crc_of(random + "x"), crc_of(random).upper(), "00000000"):
        assert SanctumTokens()(f"1|{random}{wrong}") is None


def test_sanctum_tokens_from_before_the_checksum_are_read():
    for length in (40, 80):
        token = "q" * length
        assert SanctumTokens()(f"7|{token}") == ("sanctum-7", token)
    for length in (39, 41, 47, 79, 81):
        assert SanctumTokens()(f"7|{'q' * length}") is None


def test_a_sanctum_token_may_have_a_uuid_for_its_id():
    row = {**made("sanctum")[0]["row"], "id": UUID("9d0f0d6e-2a7c-4f6e-8f53-000000000001")}
    found = SanctumTokens().read(cells(row))
    assert found.id == "sanctum-9d0f0d6e-2a7c-4f6e-8f53-000000000001"
    assert SanctumTokens()(f"{row['id']}|{'q' * 40}")[0] == found.id


def test_a_text_behind_the_schemes_prefix_never_falls_to_a_format():
    for read in FORMATS:
        with pytest.raises(InvalidKey):
            KeyScheme("acme", formats=[read]).parse(f"acme_{'0' * 40}")
    text = made("sanctum")[3]["text"].partition("|")[2]
    assert text.startswith("acme_")
    assert SanctumTokens(prefix="acme_pat_", bare=True)(text)
    with pytest.raises(InvalidKey):
        KeyScheme("acme", formats=[opaque_tokens()]).parse(text)


@pytest.mark.parametrize("read", [KnoxTokens(prefix="acme_"), SanctumTokens(prefix="acme_pat_", bare=True)])
def test_a_format_whose_texts_all_begin_as_the_schemes_own_do_is_refused(read):
    with pytest.raises(ConfigurationError, match="never given to a format: take another prefix"):
        KeyScheme("acme", formats=[read])
    assert KeyScheme("acm", formats=[read])
    assert KeyScheme("acme", formats=[SanctumTokens(prefix="acme_pat_")])


@pytest.mark.parametrize("anything", [opaque_tokens(SECRET), SensenetKeys(SECRET)])
def test_a_format_behind_one_that_takes_any_text_is_refused(anything):
    with pytest.raises(ConfigurationError, match="must be the last one"):
        KeyScheme(formats=[anything, DRFTokens()])
    assert KeyScheme(formats=[DRFTokens(), anything])


@pytest.mark.parametrize("options", [{"version": 3}, {"version": "5"}, {"version": 4, "prefix": "x"}])
def test_a_knox_that_never_was_is_refused(options):
    with pytest.raises(ConfigurationError, match="versions 4, without prefix, and 5"):
        KnoxTokens(**options)


def test_formats_of_the_same_settings_are_equal_and_show_no_secret():
    assert KnoxTokens(version=4) == KnoxTokens(version=4) != KnoxTokens()
    assert opaque_tokens(SECRET) == opaque_tokens(SECRET) != opaque_tokens()
    assert SECRET not in repr(opaque_tokens(SECRET)) + repr(SensenetKeys(SECRET))
    assert repr(DRFAPIKeys()) == "DRFAPIKeys(prefix_length=8, secret_length=32)"


# Rows

UTC_NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def refusal(read, row):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read.read(cells(row))
    for value in row.values():
        assert not isinstance(value, str) or len(value) < 12 or value not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prefix": "short"}, "prefix is not 8 letters and digits"),
        ({"prefix": ""}, "prefix is empty"),
        ({"prefix": None}, "prefix is neither text nor a whole number"),
        ({"hashed_key": "argon2$argon2id$v=19$m=102400,t=2,p=8$c2FsdA$aGFzaA"}, "neither sha512 nor pbkdf2"),
        ({"hashed_key": "md5$$0cc175b9c0f1b6a831c399e269772661"}, "neither sha512 nor pbkdf2_sha256"),
        ({"hashed_key": f"pbkdf2_sha256$99000000$salt${'A' * 43}="}, "too many iterations"),
        ({"hashed_key": f"sha512$${'A' * 128}"}, "neither sha512"),
        ({"revoked": ""}, "revoked is neither true nor false"),
        ({"revoked": None}, "revoked is neither true nor false"),
        ({"revoked": "no idea"}, "revoked is neither true nor false"),
        ({"expiry_date": "0000-00-00 00:00:00"}, "expiry_date is no time such as"),
        ({"created": 1767225600}, "created is no time such as"),
    ],
)
def test_a_row_of_drf_api_key_that_makes_no_key_is_refused_with_the_reason(change, reason):
    assert reason in refusal(DRFAPIKeys(), {**made("drf_api_key_3")[0]["row"], **change})


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *[
            ("drf_api_key_3", column)
            for column in ("prefix", "hashed_key", "created", "revoked", "expiry_date")
        ],
        *[("knox_5", column) for column in ("digest", "created", "expiry")],
        *[("drf_token", column) for column in ("key", "created")],
        *[("sanctum", column) for column in ("id", "token", "tokenable_type", "created_at", "expires_at")],
    ],
)
def test_a_column_that_was_left_out_of_the_query_is_named_and_nothing_is_made_up(name, column):
    row = dict(made(name)[0]["row"])
    del row[column]
    assert refusal(MADE[name], row) == f"there is no column {column}"


@pytest.mark.parametrize(
    ("read", "file", "change", "reason"),
    [
        (KnoxTokens(version=5), "knox_4", {}, "by its token_key it was not made by django-rest-knox 5"),
        (KnoxTokens(version=4), "knox_5", {}, "by its token_key it was not made by django-rest-knox 4"),
        (KnoxTokens(), "knox_5", {"digest": "ab" * 32}, "digest is not 128 characters of hex"),
        (KnoxTokens(version=4), "knox_4", {"salt": "0123456789abcdef"}, "it is salted"),
        (SanctumTokens(), "sanctum", {"token": "1|" + "q" * 40}, "token is not 64 characters of hex"),
        (SanctumTokens(), "sanctum", {"id": "4 1"}, "id is neither a number nor a UUID"),
        (SanctumTokens(), "sanctum", {"id": True}, "id is neither text nor a whole number"),
        (SanctumTokens(), "sanctum", {"id": 1.0}, "id is neither text nor a whole number"),
        (SanctumTokens(), "sanctum", {"abilities": "["}, "abilities is no JSON"),
        (SanctumTokens(), "sanctum", {"abilities": "[" * 100_000}, "abilities is no JSON"),
        (SanctumTokens(), "sanctum", {"abilities": '{"a": 1}'}, "abilities is no list of names"),
        (SanctumTokens(), "sanctum", {"abilities": "[1]"}, "abilities is no list of names"),
        (
            SanctumTokens(expiration=timedelta(days=1)),
            "sanctum",
            {"created_at": None},
            "created_at is empty, and the expiration counts from it",
        ),
    ],
)
def test_a_row_that_this_format_cannot_vouch_for_is_refused_with_the_reason(read, file, change, reason):
    assert reason in refusal(read, {**made(file)[0]["row"], **change})


def test_a_sanctum_token_of_another_model_is_refused_because_its_owner_has_ids_of_its_own():
    row = {**made("sanctum")[0]["row"], "tokenable_type": r"App\Models\Team"}
    assert r"tokenable_type is not App\Models\User" in refusal(SanctumTokens(), row)
    assert SanctumTokens(tokenable_type=r"App\Models\Team").read(cells(row)).id == "sanctum-41"


@pytest.mark.parametrize(
    ("abilities", "scopes"),
    [
        ('["*"]', None),
        ('["a","*"]', None),
        ('["a","b"]', ["a", "b"]),
        ("[]", []),
        (None, []),
        ("", []),
        (["a"], ["a"]),
    ],
)
def test_abilities_become_scopes_and_only_the_star_is_all(abilities, scopes):
    row = {**made("sanctum")[0]["row"], "abilities": abilities}
    assert SanctumTokens().read(cells(row)).scopes == scopes


def test_sanctums_own_expiration_ends_a_token_that_names_a_later_end_or_none():
    read = SanctumTokens(expiration=timedelta(days=2))
    later = read.read(cells(made("sanctum")[1]["row"]))
    none = read.read(cells(made("sanctum")[0]["row"]))
    earlier = read.read(cells(made("sanctum")[2]["row"]))
    assert later.expires_at == none.expires_at == UTC_NOON + timedelta(days=2)
    assert earlier.expires_at == datetime(2020, 1, 1, tzinfo=UTC)
    for_ever = SanctumTokens(expiration=timedelta.max)
    assert for_ever.read(cells(made("sanctum")[0]["row"])).expires_at is None


def test_a_row_of_sensenet_is_read_and_tokens_of_its_other_features_are_not():
    row = {
        "AccessTokenId": 3,
        "Value": "5f1x8nq0Zx4bTWgq",
        "UserId": 1155,
        "ContentId": None,
        "Feature": "apikey",
        "CreationDate": "2026-01-31T12:00:00.1234567Z",
        "ExpirationDate": "2027-01-31T12:00:00Z",
    }
    for column in ("Value", "CreationDate", "ExpirationDate"):
        assert "there is no column" in refusal(
            SensenetKeys(SECRET), {each: row[each] for each in row if each != column}
        )
    found = SensenetKeys(SECRET).read(cells(row))
    assert (found.text, found.expires_at) == ("5f1x8nq0Zx4bTWgq", UTC_NOON.replace(year=2027))
    assert found.created_at == UTC_NOON.replace(microsecond=123456)
    assert SensenetKeys(SECRET)(found.text) == opaque_tokens(SECRET)(found.text)
    for other in (None, "", "captcha"):
        assert "Feature is not apikey" in refusal(SensenetKeys(SECRET), {**row, "Feature": other})


def test_a_row_of_a_plain_token_may_tell_all_that_a_record_has():
    row = {
        "text": "abcd",
        "name": "CI",
        "scopes": '["a"]',
        "created_at": "2026-01-31 12:00:00",
        "expires_at": "2027-01-31",
        "last_used_at": UTC_NOON,
        "revoked": "True",
    }
    found = opaque_tokens().read(cells(row))
    assert (found.text, found.name, found.scopes, found.revoked) == ("abcd", "CI", ["a"], True)
    assert (found.created_at, found.last_used_at) == (UTC_NOON, UTC_NOON)
    assert found.expires_at == datetime(2027, 1, 31, tzinfo=UTC)
    bare = opaque_tokens().read(cells({"text": "abcd"}))
    assert (bare.scopes, bare.revoked, bare.created_at, bare.expires_at) == (None, False, None, None)


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2026-01-31 12:00:00", UTC_NOON - timedelta(hours=1)),
        ("2026-01-31 12:00:00.5", UTC_NOON - timedelta(hours=1) + timedelta(seconds=0.5)),
        ("2026-01-31 12:00:00+00:00", UTC_NOON),
        ("2026-01-31 12:00:00+00", UTC_NOON),
        ("2026-01-31T12:00:00Z", UTC_NOON),
        ("2026-01-31T14:00:00+02:00", UTC_NOON),
        (datetime(2026, 1, 31, 12), UTC_NOON - timedelta(hours=1)),  # noqa: DTZ001
        (datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))), UTC_NOON),
        ("", None),
        (None, None),
    ],
)
def test_a_time_without_zone_is_of_the_given_zone_and_one_with_a_zone_of_its_own(value, time):
    assert cells({"at": value}, ZoneInfo("Europe/Vienna")).time("at") == time


@pytest.mark.parametrize(
    "value", ["yesterday", "31.01.2026", "1767225600", 1767225600, date(2020, 2, 3), True]
)
def test_what_is_no_time_is_refused_and_not_repeated(value):
    with pytest.raises(ValueError, match="at is no time such as 2026") as caught:
        cells({"at": value}).time("at")
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize("value", [True, 1, "True", "true", "t", "1", "TRUE"])
def test_yes_has_many_spellings_and_no_has_the_others(value):
    assert cells({"revoked": value}).flag("revoked") is True


@pytest.mark.parametrize("value", [False, 0, "False", "false", "f", "0"])
def test_no_has_many_spellings(value):
    assert cells({"revoked": value}).flag("revoked") is False


def test_no_repr_of_a_row_holds_its_key():
    row = {"text": "the key itself", "owner": "1"}
    shown = repr(cells(row)) + repr(opaque_tokens().read(cells(row)))
    shown += repr(DRFAPIKeys().read(cells(made("drf_api_key_2")[0]["row"])))
    assert "the key itself" not in shown
    assert "pbkdf2" not in shown


def test_the_digest_of_knox_4_is_of_the_bytes_and_has_a_name_of_its_own():
    each = made("knox_4")[0]
    found = KnoxTokens(version=4).read(cells(each["row"]))
    expected = hashlib.sha512(bytes.fromhex(each["text"])).hexdigest()
    assert found.digest == f"sha512-unhex$${expected}"
    assert not KeyScheme().matches(f"sha512$${expected}", each["text"])
