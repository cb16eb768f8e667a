"""Digests: their form, the peppers, and a comparison that tells nothing by its time."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth import hashing
from apikey_auth.decisions import is_of, judge
from apikey_auth.errors import ConfigurationError, InvalidKey
from apikey_auth.hashing import MAX_ITERATIONS, Pepper
from apikey_auth.keys import APIKey, KeyScheme

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = "acme_4fRk0TzQ9bVw_something"
OLD, NEW, OTHER = "the old pepper, 2024", "the new pepper, 2026", b"\x00\xff another pepper"


def derived(secret, purpose):
    """What itsdangerous' key_derivation="hmac" comes to, written from its documentation."""
    raw = secret if isinstance(secret, bytes) else secret.encode("utf-8")
    return hmac.new(raw, f"apikey_auth.{purpose}".encode(), hashlib.sha256).digest()


def under(pepper, text=TEXT):
    mac = hmac.new(derived(pepper, "digest"), text.encode("ascii"), hashlib.sha256).hexdigest()
    return f"hmac-sha256${derived(pepper, 'pepper-id')[:4].hex()}${mac}"


def plain(text=TEXT):
    return "sha256$$" + hashlib.sha256(text.encode("ascii")).hexdigest()


def test_a_digest_without_pepper_is_named_sha256_and_has_an_empty_pepper_id():
    assert KeyScheme().digest(TEXT) == plain()


def test_the_digest_of_a_known_text_never_changes():
    assert (
        KeyScheme().digest("abc")
        == "sha256$$ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("pepper", [OLD, NEW, OTHER])
def test_a_digest_under_a_pepper_is_an_hmac_under_a_key_derived_for_digests_alone(pepper):
    assert KeyScheme(peppers=[pepper]).digest(TEXT) == under(pepper)


def test_a_peppers_id_is_derived_apart_from_its_key_and_tells_nothing_of_it():
    pepper = Pepper.of(OLD)
    assert pepper.key == derived(OLD, "digest")
    assert bytes.fromhex(pepper.id) == derived(OLD, "pepper-id")[:4]
    assert pepper.id not in pepper.key.hex()


def test_a_pepper_of_text_is_the_pepper_of_its_utf_8_bytes():
    assert Pepper.of("sixteen bytes: ä€") == Pepper.of("sixteen bytes: ä€".encode())


def test_different_purposes_derive_different_keys_from_one_secret():
    assert len({hashing.derive(OLD, purpose) for purpose in ("digest", "pepper-id", "lookup")}) == 3


def test_new_keys_take_the_newest_pepper():
    assert KeyScheme(peppers=[OLD, NEW]).digest(TEXT) == under(NEW)


def test_keys_under_an_older_pepper_stay_good():
    scheme = KeyScheme(peppers=[OLD, OTHER, NEW])
    for pepper in (OLD, OTHER, NEW):
        assert scheme.matches(under(pepper), TEXT)
        assert not scheme.matches(under(pepper), TEXT + "x")


def test_dropping_a_pepper_ends_the_keys_under_it():
    assert not KeyScheme(peppers=[NEW]).matches(under(OLD), TEXT)


def test_keys_from_before_the_first_pepper_stay_good():
    assert KeyScheme(peppers=[NEW]).matches(plain(), TEXT)


def test_a_peppered_digest_never_matches_without_peppers():
    assert not KeyScheme().matches(under(OLD), TEXT)


def test_a_plain_digest_under_a_peppers_name_never_matches():
    bare = hashlib.sha256(TEXT.encode()).hexdigest()
    scheme = KeyScheme(peppers=[OLD])
    for stored in (f"hmac-sha256$${bare}", f"sha256${Pepper.of(OLD).id}${bare}"):
        assert not scheme.matches(stored, TEXT)


def test_a_digest_with_another_peppers_id_never_matches():
    renamed = under(OLD).replace(Pepper.of(OLD).id, Pepper.of(NEW).id)
    assert not KeyScheme(peppers=[OLD, NEW]).matches(renamed, TEXT)


MALFORMED = [
    "",
    "$",
    "$$",
    "$$$",
    "sha256",
    "sha256$",
    "sha256$$",
    "hmac-sha256",
    "hmac-sha256$$",
    TEXT,
    plain().upper(),
    plain()[:-1],
    plain() + "0",
    plain() + "\n",
    " " + plain(),
    plain() + "$",
    plain().replace("$$", "$"),
    plain().replace("sha256$$", "sha512$$"),
    plain().replace("sha256$$", "md5$$"),
    plain().replace("sha256$$", "SHA256$$"),
    under(OLD).upper(),
    under(OLD) + "$",
    under(OLD).replace("hmac-sha256", "sha256"),
    "\0",
    "é" * 64,
    "\ud800",
    "sha256$$" + "é" * 64,
    "pbkdf2_sha256$1000000$salt$hash",
]


@pytest.mark.parametrize("stored", MALFORMED)
@pytest.mark.parametrize("peppers", [(), (OLD,)])
def test_a_malformed_digest_matches_nothing_and_raises_nothing(stored, peppers):
    assert not KeyScheme(peppers=peppers).matches(stored, TEXT)


@given(st.text(st.characters(exclude_categories=())) | st.from_regex(r"(hmac-)?sha256\$[^$]{0,8}\$.{0,64}"))
def test_whatever_a_store_holds_for_a_digest_is_compared_without_an_error(stored):
    for peppers in ((), (OLD,)):
        assert not KeyScheme(peppers=peppers).matches(stored, TEXT)


@given(st.text(st.characters(min_codepoint=0, max_codepoint=127)), st.sampled_from([(), (OLD,), (OLD, NEW)]))
def test_a_digest_matches_its_own_text_alone(text, peppers):
    scheme = KeyScheme(peppers=peppers)
    digest = scheme.digest(text)
    assert scheme.matches(digest, text)
    assert not scheme.matches(digest, text + "\0")
    assert not scheme.matches(digest, text.swapcase() + "a")
    assert text not in digest or len(text) < 12


@pytest.mark.parametrize("secret", ["", "fifteen bytes..", b"fifteen bytes..", "é" * 7])
def test_a_pepper_of_under_sixteen_bytes_is_refused_with_the_command_that_makes_one(secret):
    with pytest.raises(ConfigurationError, match=r"at least 16 bytes.*secrets\.token_urlsafe\(32\)"):
        KeyScheme(peppers=[secret])


@pytest.mark.parametrize("secret", ["sixteen bytes...", b"sixteen bytes...", "é" * 8])
def test_a_pepper_of_sixteen_bytes_will_do(secret):
    assert KeyScheme(peppers=[secret]).digest(TEXT).startswith("hmac-sha256$")


@pytest.mark.parametrize("peppers", ["one secret of enough length", b"one secret of enough length"])
def test_one_secret_in_the_place_of_a_list_is_refused(peppers):
    with pytest.raises(ConfigurationError, match="list of secrets, oldest to newest"):
        KeyScheme(peppers=peppers)


def test_a_secret_that_is_not_there_is_refused_as_such():
    with pytest.raises(ConfigurationError):  # os.environ.get("PEPPER") of an unset variable
        KeyScheme(peppers=[None])


@pytest.fixture
def counted(monkeypatch):
    counts = {"digest": 0, "compare_digest": 0}

    def counting(name, function):
        def count(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(hashing, "digest", counting("digest", hashing.digest))
    monkeypatch.setattr(hmac, "compare_digest", counting("compare_digest", hmac.compare_digest))
    return counts


@pytest.mark.parametrize("peppers", [(), (OLD,)])
def test_an_unknown_id_costs_one_digest_and_one_constant_time_comparison_as_a_wrong_secret_does(
    counted, peppers
):
    scheme = KeyScheme("acme", peppers=peppers)
    presented, others = scheme.mint(), scheme.mint()
    record = APIKey(id=presented.id, owner="u", digest=scheme.digest(others.text))
    spent = []
    for known in (None, record):
        counted.update(digest=0, compare_digest=0)
        with pytest.raises(InvalidKey):
            judge(known, is_of(presented, known, scheme), NOW)
        spent.append(dict(counted))
    assert spent == [{"digest": 1, "compare_digest": 1}] * 2


def test_a_good_key_is_compared_in_constant_time_too(counted):
    scheme = KeyScheme()
    assert scheme.matches(plain(), TEXT)
    assert counted["compare_digest"] == 1


@pytest.mark.parametrize("peppers", [(), (OLD,)])
def test_an_unknown_id_is_digested_as_the_schemes_own_keys_are(monkeypatch, peppers):
    scheme = KeyScheme("acme", peppers=peppers)
    used = []
    original = hashing.digest

    def noting(text, pepper=None):
        used.append(pepper)
        return original(text, pepper)

    monkeypatch.setattr(hashing, "digest", noting)
    presented = scheme.mint()
    assert not scheme.matches(None, presented.text)
    assert not scheme.matches(original("other", used[0]), presented.text)
    assert used == [Pepper.of(OLD) if peppers else None] * 2


# Digests of other systems

HEX = "00ff" * 16


def django_pbkdf2(text, iterations, salt="Lm84MqwaQeJSBiJ6WvbVn8"):
    """As Django's PBKDF2PasswordHasher writes it."""
    raw = hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), iterations)
    return f"pbkdf2_sha256${iterations}${salt}${base64.b64encode(raw).decode()}"


FOREIGN = {
    "sha512": f"sha512$${hashlib.sha512(HEX.encode()).hexdigest()}",
    "sha512-unhex": f"sha512-unhex$${hashlib.sha512(bytes.fromhex(HEX)).hexdigest()}",
    "pbkdf2_sha256": django_pbkdf2(HEX, 1000),
}


def test_djangos_own_digest_is_verified():
    stored = PBKDF2PasswordHasher().encode(TEXT, "salt", 500)
    assert stored == django_pbkdf2(TEXT, 500, "salt")
    assert hashing.matches(stored, TEXT)


@pytest.mark.parametrize("peppers", [(), (OLD,)])
@pytest.mark.parametrize("stored", FOREIGN.values(), ids=FOREIGN)
def test_a_digest_of_another_system_matches_its_own_text_alone(stored, peppers):
    scheme = KeyScheme(peppers=peppers)
    assert scheme.matches(stored, HEX)
    for other in (HEX.upper(), HEX + "0", HEX + "00", HEX[:-2], HEX + " ", HEX + "\n", "", TEXT):
        assert not scheme.matches(stored, other)


@pytest.mark.parametrize("stored", FOREIGN.values(), ids=FOREIGN)
def test_a_digest_of_another_system_is_compared_in_constant_time(counted, stored):
    assert hashing.matches(stored, HEX)
    assert not hashing.matches(stored, HEX + "00")
    assert counted == {"digest": 0, "compare_digest": 2}


@pytest.mark.parametrize(
    "spelled", ["00FF" * 16, "00ff " * 16, " " + HEX, HEX + "\n", "0x" + HEX, HEX + "0", "", "zz" * 32]
)
def test_the_bytes_of_a_hex_text_have_one_spelling(spelled):
    for raw in (bytes.fromhex(HEX), spelled.encode(), b""):
        assert not hashing.matches(f"sha512-unhex$${hashlib.sha512(raw).hexdigest()}", spelled)


FORGED = [
    "sha512$$",
    FOREIGN["sha512"].upper(),
    FOREIGN["sha512"] + "0",
    FOREIGN["sha512"] + "\n",
    FOREIGN["sha512"].replace("$$", "$x$"),
    FOREIGN["sha512"].replace("sha512", "sha512-unhex"),
    FOREIGN["sha512-unhex"].replace("-unhex", ""),
    FOREIGN["pbkdf2_sha256"].replace("$1000$", "$999$"),
    FOREIGN["pbkdf2_sha256"].replace("$1000$", "$01000$"),
    FOREIGN["pbkdf2_sha256"].replace("$1000$", "$+1000$"),
    FOREIGN["pbkdf2_sha256"].replace("$1000$", "$\u0661000$"),
    FOREIGN["pbkdf2_sha256"].replace("$1000$", "$0$"),
    FOREIGN["pbkdf2_sha256"].replace("$1000$", "$-1$"),
    FOREIGN["pbkdf2_sha256"].replace("_sha256", "_sha1"),
    FOREIGN["pbkdf2_sha256"].replace("Lm84", "lM84"),
    FOREIGN["pbkdf2_sha256"].replace("Lm84", "\u00e9"),
    FOREIGN["pbkdf2_sha256"].rstrip("="),
    FOREIGN["pbkdf2_sha256"] + "$",
    "pbkdf2_sha256$1000$$" + "A" * 43 + "=",
]


@pytest.mark.parametrize("stored", FORGED)
def test_a_forged_digest_of_another_system_matches_nothing_and_raises_nothing(stored):
    assert not hashing.matches(stored, HEX)


@pytest.mark.parametrize("iterations", [MAX_ITERATIONS + 1, 99_999_999, 2**31, 10**100])
def test_a_forged_row_does_not_make_the_server_count_for_hours(monkeypatch, iterations):
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", None)
    stored = f"pbkdf2_sha256${iterations}$salt${'A' * 43}="
    assert not hashing.matches(stored, TEXT)
    assert not hashing.is_foreign(stored)


def test_what_django_takes_today_and_twice_that_is_within_the_bound():
    assert 2 * PBKDF2PasswordHasher.iterations <= MAX_ITERATIONS


@given(st.from_regex(r"(sha512|sha512-unhex|pbkdf2_sha256)\$[0-9]{0,3}\$[^$]{0,8}(\$.{0,64})?"))
def test_whatever_stands_behind_the_name_of_another_systems_digest_is_compared_without_an_error(stored):
    assert not hashing.matches(stored, TEXT)


def test_a_digest_is_outdated_unless_new_keys_are_digested_so():
    scheme = KeyScheme(peppers=[OLD, NEW])
    assert not scheme.is_outdated(under(NEW))
    assert not KeyScheme().is_outdated(plain())
    for stored in (under(OLD), plain(), *FOREIGN.values()):
        assert scheme.is_outdated(stored)
    for stored in FOREIGN.values():
        assert KeyScheme().is_outdated(stored)
