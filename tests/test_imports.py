"""Keys move in: rows that the other packages made are imported, and their keys go on working, in both colours."""

import csv
import dataclasses
import hashlib
import inspect
import io
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    ConfigurationError,
    ExpiredKey,
    Inline,
    InvalidKey,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    RevokedKey,
    StoreUnavailable,
    opaque_tokens,
)
from apikey_auth.decisions import changed
from apikey_auth.formats import DRFAPIKeys, DRFTokens, KnoxTokens, SanctumTokens, SensenetKeys
from apikey_auth.imports import REVOKED, ImportReport, RefusedRow
from apikey_auth.stores.sql import SQLKeyStore

DATA = Path(__file__).parent / "data"
NOW = datetime(2027, 1, 1, tzinfo=UTC)
OLD, NEW = "the old pepper, 2025", "the new pepper, 2027"
SOURCES = {
    # file: the format that reads it, and what it takes for the owner
    "drf_api_key_2": (DRFAPIKeys(), lambda row: f"client-{row['name']}"),
    "drf_api_key_3": (DRFAPIKeys(), lambda row: f"client-{row['name']}"),
    "drf_token": (DRFTokens(), None),
    "knox_4": (KnoxTokens(version=4), None),
    "knox_5": (KnoxTokens(version=5), None),
    "knox_5_prefix": (KnoxTokens(prefix="acme-"), None),
    "sanctum": (SanctumTokens(), None),
}
OWNERS = {
    "drf_api_key_2": ["client-live", "client-until 2099", "client-expired", "client-revoked"],
    "drf_api_key_3": ["client-live", "client-until 2099", "client-expired", "client-revoked"],
    "drf_token": ["1", "2"],
    "knox_4": ["1", "2", "1"],
    "knox_5": ["1", "2", "1"],
    "knox_5_prefix": ["1", "2", "1"],
    "sanctum": ["7", "8", "7", "8"],
}
SCOPES = {"sanctum": [None, ("reports:read", "reports:write"), None, ()]}


def made(name):
    return json.loads((DATA / f"{name}.json").read_text())["keys"]


def rows_of(name):
    return [each["row"] for each in made(name)]


def scheme_for(name, *peppers):
    formats = [SOURCES[name][0]]
    if name == "sanctum":
        formats.append(SanctumTokens(prefix="acme_pat_"))
    return KeyScheme("native", peppers=peppers, formats=formats)


class Colour:
    """One of the twins, so that a test is written once."""

    def __init__(self, asynchronous):
        self.asynchronous = asynchronous

    def authenticator(self, store, scheme, clock=lambda: NOW, **options):
        if self.asynchronous:
            return AsyncAuthenticator(Inline(store), scheme, clock=clock, **options)
        return Authenticator(store, scheme, clock=clock, **options)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def colour(request):
    return Colour(request.param)


@pytest.fixture
def store():
    return MemoryKeyStore()


async def settled(answer):
    return await answer if inspect.isawaitable(answer) else answer


async def imported(auth, name, rows=None, **options):
    source, owner = SOURCES[name]
    options = {"owner": owner, **options}
    return await settled(auth.keys.import_keys(rows_of(name) if rows is None else rows, source, **options))


async def verdict(auth, text):
    """Tell what comes of a text: the identity, or the kind of refusal."""
    try:
        return await settled(auth.authenticate(text))
    except (InvalidKey, RevokedKey, ExpiredKey) as refusal:
        return type(refusal)


async def used(auth, text):
    """Use a key, and have written what its use leaves to be written."""
    found = await verdict(auth, text)
    await settled(auth.flush())
    return found


# What comes in


@pytest.mark.parametrize("peppers", [(), (OLD,)], ids=["plain", "peppered"])
@pytest.mark.parametrize("name", SOURCES)
async def test_every_key_of_the_other_package_goes_on_as_it_was(colour, store, name, peppers):
    auth = colour.authenticator(store, scheme_for(name, *peppers))
    assert await imported(auth, name) == ImportReport(added=len(made(name)), existing=0, refused=())
    for number, each in enumerate(made(name)):
        found = await verdict(auth, each["text"])
        if each["state"] == "revoked":
            assert found is RevokedKey
        elif each["state"] == "expired":
            assert found is ExpiredKey
        else:
            assert found.user.id == OWNERS[name][number]
            assert found.scopes == SCOPES.get(name, [None] * 4)[number]
            assert (found.key.expires_at is not None) == (each["state"] == "until 2099")
            if found.key.expires_at:
                assert found.key.expires_at.replace(microsecond=0) == datetime(2099, 1, 1, tzinfo=UTC)
            created = each["row"].get("created") or each["row"]["created_at"]
            assert found.key.created_at == datetime.fromisoformat(created).replace(tzinfo=UTC)


@pytest.mark.parametrize("name", SOURCES)
async def test_a_wrong_text_with_a_good_id_opens_nothing(colour, store, name):
    auth = colour.authenticator(store, scheme_for(name))
    await imported(auth, name)
    texts = [each["text"] for each in made(name)]
    for text, other in zip(texts, texts[1:] + texts[:1], strict=True):
        last = "0" if text[-1] != "0" else "1"
        mixed = [text[:cut] + other[cut:] for cut in (9, len(text) // 2) if text[:cut] + other[cut:] != text]
        for wrong in [text[:-1] + last, text.upper(), text + "0", *mixed]:
            assert await verdict(auth, wrong) is InvalidKey


@pytest.mark.parametrize("name", ["drf_token"])
async def test_a_text_that_was_kept_is_kept_nowhere_here(colour, store, name):
    auth = colour.authenticator(store, scheme_for(name, OLD))
    await imported(auth, name)
    for each in made(name):
        for key in store.find().items:
            for field in dataclasses.fields(key):
                assert each["text"] not in str(getattr(key, field.name))
            assert key.digest.startswith("hmac-sha256$")
    assert {key.last4 for key in store.find().items} == {each["text"][-4:] for each in made(name)}


async def test_the_keys_of_sensenet_and_plain_tokens_move_in(colour, store):
    formats = {"sensenet": SensenetKeys(OLD), "plain": opaque_tokens(OLD)}
    rows = {
        "sensenet": {
            "Value": "abcd",
            "UserId": 42,
            "CreationDate": "2026-01-01",
            "ExpirationDate": "2028-01-01",
        },
        "plain": {"text": "abcd", "owner": "42", "expires_at": "2028-01-01", "scopes": '["a"]'},
    }
    for name, source in formats.items():
        auth = colour.authenticator(MemoryKeyStore(), KeyScheme("native", peppers=[OLD], formats=[source]))
        report = await settled(auth.keys.import_keys([rows[name]], source))
        assert (report.added, report.refused) == (1, ())
        found = await verdict(auth, "abcd")
        assert found.user.id == "42"
        assert found.key.expires_at == datetime(2028, 1, 1, tzinfo=UTC)
        assert found.key.created_at == (NOW if name == "plain" else datetime(2026, 1, 1, tzinfo=UTC))
        assert found.scopes == (("a",) if name == "plain" else None)
        assert await verdict(auth, "abce") is InvalidKey


async def test_what_the_row_does_not_tell_of_a_revocation_is_said_to_be_from_before(colour, store):
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    await imported(auth, "drf_api_key_3")
    (key,) = [key for key in store.find().items if key.revoked_at]
    assert (key.revoked_at, key.revoked_reason, key.name) == (NOW, REVOKED, "revoked")


async def test_rows_of_a_database_and_of_a_csv_file_make_the_same_records(colour):
    for name in SOURCES:
        rows, records = rows_of(name), []
        engine = sa.create_engine("sqlite://")
        columns = [sa.Column(column, sa.String) for column in rows[0]]
        table = sa.Table("t", sa.MetaData(), *columns)
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        file.seek(0)
        with engine.begin() as connection:
            table.create(connection)
            connection.execute(table.insert(), rows)
            for each in (rows, connection.execute(sa.select(table)).mappings(), csv.DictReader(file)):
                store = MemoryKeyStore()
                auth = colour.authenticator(store, scheme_for(name))
                assert (await imported(auth, name, each)).added == len(rows)
                records.append(store.find().items)
        engine.dispose()
        assert records[0] == records[1] == records[2]


async def test_times_with_a_zone_of_djangos_keep_it_and_times_without_are_of_the_given_one(colour, store):
    row = rows_of("drf_api_key_3")[1]
    aware = {**row, "prefix": "A" * 8, "expiry_date": datetime(2099, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo"))}
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    report = await imported(auth, "drf_api_key_3", [row, aware], timezone=ZoneInfo("Europe/Vienna"))
    assert report.added == 2
    ends = [key.expires_at for key in store.find().items if key.expires_at]
    assert set(ends) == {datetime(2098, 12, 31, 23, tzinfo=UTC), datetime(2098, 12, 31, 15, tzinfo=UTC)}


def test_last_use_comes_along_into_a_database(tmp_path):
    store = SQLKeyStore(f"sqlite:///{tmp_path}/keys.db", create=True)
    row = {**rows_of("sanctum")[0], "last_used_at": "2026-06-01 00:00:00"}
    keys = KeyManager(store, scheme_for("sanctum"))
    assert keys.import_keys([row], SanctumTokens()).added == 1
    assert keys.import_keys([row], SanctumTokens()).existing == 1
    assert keys.get("sanctum-41").last_used_at == datetime(2026, 6, 1, tzinfo=UTC)
    store.close()


# Once more


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used meanwhile"])
@pytest.mark.parametrize("name", SOURCES)
async def test_importing_again_adds_nothing_and_changes_nothing(colour, store, name, used):
    auth = colour.authenticator(store, scheme_for(name, OLD))
    await imported(auth, name)
    for each in made(name) if used else []:
        await verdict(auth, each["text"])
    before = store.find().items
    later = colour.authenticator(store, scheme_for(name, OLD, NEW), clock=lambda: NOW + timedelta(days=1))
    assert await imported(later, name) == ImportReport(0, len(before), ())
    assert store.find().items == before


async def test_an_import_that_broke_off_is_run_again_and_nothing_is_lost(colour):
    class Failing(MemoryKeyStore):
        left = 2

        def add(self, key, /):
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailable("down")
            super().add(key)

    store = Failing()
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    with pytest.raises(StoreUnavailable):
        await imported(auth, "drf_api_key_3")
    store.left = 99
    assert await imported(auth, "drf_api_key_3") == ImportReport(added=2, existing=2, refused=())


async def test_a_key_that_was_revoked_over_there_since_the_last_import_is_revoked_here(colour, store):
    rows = rows_of("drf_api_key_3")
    text = made("drf_api_key_3")[0]["text"]
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    await imported(auth, "drf_api_key_3", rows)
    assert (await verdict(auth, text)).key
    rows[0]["revoked"] = True
    assert (await imported(auth, "drf_api_key_3", rows)).existing == 4
    assert await verdict(auth, text) is RevokedKey
    once = store.find().items
    await imported(auth, "drf_api_key_3", rows)
    assert store.find().items == once


async def test_a_key_that_was_revoked_here_stays_revoked_whatever_the_row_says(colour, store):
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    await imported(auth, "drf_api_key_3")
    for key in store.find().items:
        await settled(auth.keys.revoke(key.id, reason="left"))
    await imported(auth, "drf_api_key_3")
    assert all(key.revoked_at for key in store.find().items)


async def test_a_row_without_a_creation_time_is_known_again_all_the_same(colour, store):
    row = {**rows_of("sanctum")[0], "created_at": None}
    auth = colour.authenticator(store, scheme_for("sanctum", OLD))
    await imported(auth, "sanctum", [row])
    await verdict(auth, made("sanctum")[0]["text"])
    later = colour.authenticator(store, scheme_for("sanctum", OLD), clock=lambda: NOW + timedelta(days=1))
    assert await imported(later, "sanctum", [row]) == ImportReport(0, 1, ())


async def test_another_key_under_an_id_that_is_taken_is_refused_and_the_first_one_stays(colour, store):
    row = rows_of("sanctum")[0]
    auth = colour.authenticator(store, scheme_for("sanctum"))
    await imported(auth, "sanctum", [row])
    other = {**row, "token": "ab" * 32, "created_at": "2026-02-01 00:00:00"}
    report = await imported(auth, "sanctum", [other, {**other, "tokenable_id": 9, "abilities": "[]"}])
    assert report == ImportReport(
        0,
        0,
        (
            RefusedRow(1, "another key of its owner has its id"),
            RefusedRow(2, "a key with its id belongs to another owner"),
        ),
    )
    assert (await verdict(auth, made("sanctum")[0]["text"])).user.id == "7"


async def test_a_key_that_is_deleted_while_it_is_imported_again_is_in_the_report(colour):
    class Forgetful(MemoryKeyStore):
        def get(self, key_id, /):
            return None

    auth = colour.authenticator(Forgetful(), scheme_for("sanctum"))
    await imported(auth, "sanctum", rows_of("sanctum")[:1])
    report = await imported(auth, "sanctum", rows_of("sanctum")[:1])
    assert [row.reason for row in report.refused] == ["it was there and has been deleted at this moment"]


# Bad rows


async def test_a_bad_row_is_reported_with_its_number_and_the_others_come_in(colour, store):
    rows = rows_of("drf_api_key_3")
    rows[1]["hashed_key"] = "bcrypt$$2b$12$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"
    rows[2] = {}
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    report = await imported(auth, "drf_api_key_3", rows)
    assert (report.added, report.existing) == (2, 0)
    assert [row.number for row in report.refused] == [2, 3]
    assert "hashed_key is neither sha512 nor pbkdf2_sha256" in report.refused[0].reason
    assert report.refused[1].reason == "there is no column prefix"


@pytest.mark.parametrize("name", SOURCES)
async def test_no_report_holds_a_text_or_a_digest_whatever_column_it_stands_in(colour, store, name, caplog):
    caplog.set_level(logging.DEBUG)
    auth = colour.authenticator(store, scheme_for(name))
    rows = [
        {**each["row"], column: hidden}
        for each in made(name)
        for column in each["row"]
        if column != "name"
        for hidden in (each["text"], hashlib.sha512(each["text"].encode()).hexdigest())
    ]
    report = await imported(auth, name, rows)
    assert report.refused
    shown = repr(report) + caplog.text
    for each in made(name):
        assert each["text"] not in shown
        assert hashlib.sha512(each["text"].encode()).hexdigest() not in shown


async def test_a_plain_text_that_no_request_could_carry_is_reported(colour, store):
    source = opaque_tokens()
    auth = colour.authenticator(store, KeyScheme("acme", formats=[source]))
    rows = [{"text": text, "owner": "1"} for text in ("two words", "a,b", "é", "acme_x", "x" * 513)]
    report = await settled(auth.keys.import_keys(rows, source))
    assert [row.number for row in report.refused] == [1, 2, 3, 4, 5]
    assert {row.reason for row in report.refused} == {"its text is no key in any of the scheme's formats"}


async def test_a_field_that_no_record_could_keep_is_reported(colour, store):
    auth = colour.authenticator(store, scheme_for("sanctum"))
    row = rows_of("sanctum")[0]
    rows = [{**row, "name": "n" * 256}, {**row, "abilities": '["two words"]'}, {**row, "name": "a\0b"}]
    report = await imported(auth, "sanctum", rows)
    assert report.added == 0
    assert [row.reason.partition(" ")[0] for row in report.refused] == ["name", "'two", "name"]


# Owners


async def test_an_owner_is_a_column_or_a_function_of_the_row_and_overrules_the_sources_own(colour):
    row = {**rows_of("knox_5")[0], "tenant": "t9"}
    for owner, expected in (
        (None, "1"),
        ("tenant", "t9"),
        (lambda row: f"user-{row['user_id']}", "user-1"),
        (lambda row: row["user_id"] + 1, "2"),
    ):
        auth = colour.authenticator(MemoryKeyStore(), scheme_for("knox_5"))
        assert (await imported(auth, "knox_5", [row], owner=owner)).added == 1
        assert (await verdict(auth, made("knox_5")[0]["text"])).user.id == expected


async def test_rows_that_name_no_owner_need_one_before_anything_is_read(colour, store):
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    with pytest.raises(TypeError, match="the rows name no owners; give owner="):
        await imported(auth, "drf_api_key_3", owner=None)
    assert store.count() == 0


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        ("team", "there is no column team"),
        (lambda row: None, "owner is neither text nor a whole number"),
        (lambda row: "", "owner is empty"),
        (lambda row: 7.0, "owner is neither text nor a whole number"),
        (lambda row: row["missing"], "owner failed with KeyError"),
        (lambda row: {}[row["hashed_key"]], "owner failed with KeyError"),
        (lambda row: "o" * 256, "owner has 256 characters, at most 255 are kept"),
    ],
)
async def test_a_row_whose_owner_is_not_found_is_reported(colour, store, owner, reason):
    auth = colour.authenticator(store, scheme_for("drf_api_key_3"))
    report = await imported(auth, "drf_api_key_3", owner=owner)
    assert (report.added, len(report.refused)) == (0, 4)
    assert {row.reason for row in report.refused} == {reason}


# Mistakes


async def test_a_source_that_the_scheme_lacks_is_refused_because_its_keys_would_open_nothing(colour, store):
    auth = colour.authenticator(store, KeyScheme(formats=[KnoxTokens(version=4)]))
    with pytest.raises(ConfigurationError, match=r"needs formats=\[KnoxTokens\(version=5"):
        await settled(auth.keys.import_keys([], KnoxTokens()))
    with pytest.raises(ConfigurationError, match="reads no rows"):
        await settled(auth.keys.import_keys([], lambda text: None))


async def test_rows_that_are_no_mappings_an_async_owner_and_a_named_zone_are_mistakes(colour, store):
    async def owner(row):
        return "1"

    auth = colour.authenticator(store, scheme_for("drf_token"))
    with pytest.raises(TypeError, match=r"not tuple; use \.mappings\(\) or \.values\(\)"):
        await imported(auth, "drf_token", [("a", "b")])
    with pytest.raises(ConfigurationError, match="owner must be a plain 'def'"):
        await imported(auth, "drf_token", owner=owner)
    with pytest.raises(TypeError, match=r"such as ZoneInfo\('Europe/Vienna'\)"):
        await imported(auth, "drf_token", timezone="Europe/Vienna")


# Digests at first use


@pytest.fixture
def slow(monkeypatch):
    """Count what PBKDF2 is asked."""
    calls = []
    original = hashlib.pbkdf2_hmac

    def count(*args):
        calls.append(args[3])
        return original(*args)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", count)
    return calls


@pytest.mark.parametrize("peppers", [(), (OLD,)], ids=["plain", "peppered"])
async def test_pbkdf2_is_computed_at_the_first_use_and_never_again(colour, store, slow, peppers):
    auth = colour.authenticator(store, scheme_for("drf_api_key_2", *peppers))
    await imported(auth, "drf_api_key_2")
    assert slow == []
    text = made("drf_api_key_2")[0]["text"]
    first = await verdict(auth, text)
    assert slow == [600_000]
    for _ in range(3):
        assert (await verdict(auth, text)).user == first.user
        assert await verdict(auth, text[:-1] + "~") is InvalidKey
    assert slow == [600_000]
    assert store.get(first.key.id) == first.key  # not on the way to the response
    await settled(auth.flush())
    assert store.get(first.key.id) == changed(
        first.key, digest=auth.scheme.digest(text), last4=text[-4:], last_used_at=NOW
    )
    assert (await verdict(colour.authenticator(store, auth.scheme), text)).key.version == 2
    assert slow == [600_000]


@pytest.mark.parametrize("name", SOURCES)
async def test_after_its_first_use_a_key_is_digested_as_new_ones_are_and_is_the_same_otherwise(
    colour, store, name
):
    scheme = scheme_for(name, OLD)
    auth = colour.authenticator(store, scheme)
    await imported(auth, name)
    for each in made(name):
        key_id = scheme.parse(each["text"]).id
        before = store.get(key_id)
        found = await used(auth, each["text"])
        after = store.get(key_id)
        if each["state"] in ("revoked", "expired"):
            assert after == before
            assert found in (RevokedKey, ExpiredKey)
        elif name == "drf_token":
            assert after == dataclasses.replace(before, last_used_at=NOW)
        else:
            digest = scheme.digest(scheme.parse(each["text"]).text)
            assert after == changed(before, digest=digest, last4=each["text"][-4:], last_used_at=NOW)
            assert (await verdict(auth, each["text"])).user == found.user


async def test_an_old_pepper_is_replaced_at_the_next_use_and_can_then_be_dropped(colour, store):
    issued = await settled(colour.authenticator(store, KeyScheme("a", peppers=[OLD])).keys.issue("u1"))
    both = colour.authenticator(store, KeyScheme("a", peppers=[OLD, NEW]))
    wrong = KeyScheme("a").mint(issued.key.id).text
    assert await verdict(both, wrong) is InvalidKey
    assert store.get(issued.key.id) == issued.key
    assert (await used(both, issued.text)).key.version == 1
    alone = colour.authenticator(store, KeyScheme("a", peppers=[NEW]))
    assert (await verdict(alone, issued.text)).user.id == "u1"
    assert store.get(issued.key.id).version == 2


class Reader:
    """A store that only reads."""

    def __init__(self, store):
        self.get = store.get


async def test_a_store_that_only_reads_lets_the_key_in_and_is_asked_for_nothing_else(
    colour, store, slow, caplog
):
    caplog.set_level(logging.DEBUG, "apikey_auth")
    await imported(colour.authenticator(store, scheme_for("drf_api_key_2")), "drf_api_key_2")
    auth = colour.authenticator(Reader(store), scheme_for("drf_api_key_2"), cache_size=0)
    text = made("drf_api_key_2")[0]["text"]
    assert (await verdict(auth, text)).key.version == 1
    assert (await verdict(auth, text)).key.version == 1
    assert slow == [600_000] * 2
    assert caplog.records == []


class ReaderOfTwoColours(Reader):
    async def swap(self, old, new, /, successor=None):
        raise AssertionError


async def test_a_swap_of_the_other_colour_is_none(store):
    await imported(Colour(False).authenticator(store, scheme_for("knox_5")), "knox_5")
    auth = Authenticator(ReaderOfTwoColours(store), scheme_for("knox_5"), clock=lambda: NOW)
    assert auth.authenticate(made("knox_5")[0]["text"]).key.version == 1


@pytest.mark.parametrize("error", [StoreUnavailable("down"), OSError("text of the key"), ValueError()])
async def test_a_store_that_cannot_keep_the_new_digest_lets_the_key_in_all_the_same(
    colour, monkeypatch, store, error, caplog
):
    def swap(old, new, /, successor=None):
        raise error

    auth = colour.authenticator(store, scheme_for("knox_5"))
    await imported(auth, "knox_5")
    monkeypatch.setattr(store, "swap", swap)
    caplog.set_level(logging.DEBUG, "apikey_auth")
    text = made("knox_5")[0]["text"]
    found = await used(auth, text)
    assert found.key.version == 1
    assert store.get(found.key.id).digest == found.key.digest
    (entry,) = caplog.records
    assert entry.levelno == logging.DEBUG
    assert entry.getMessage() == f"the key {found.key.id} was not digested anew: {type(error).__name__}"
    assert entry.exc_info is None


async def test_a_change_that_is_quicker_wins_and_the_key_is_digested_anew_next_time(colour):
    class Overtaken(MemoryKeyStore):
        overtake = True

        def swap(self, old, new, /, successor=None):
            if self.overtake:
                self.overtake = False
                assert super().swap(old, changed(old, name="renamed"))
            return super().swap(old, new, successor)

    store = Overtaken()
    auth = colour.authenticator(store, scheme_for("knox_5"), cache_size=0)
    await imported(auth, "knox_5")
    text = made("knox_5")[0]["text"]
    found = await used(auth, text)
    assert found.key.version == 1
    kept = store.get(found.key.id)
    assert (kept.name, kept.version, kept.digest.partition("$")[0]) == ("renamed", 2, "sha512")
    found = await used(auth, text)
    assert (found.key.name, found.key.version) == ("renamed", 2)
    kept = store.get(found.key.id)
    assert (kept.name, kept.version, kept.digest.partition("$")[0]) == ("renamed", 3, "sha256")


async def test_a_key_that_is_up_to_date_is_written_by_no_use(colour, monkeypatch, store):
    auth = colour.authenticator(store, KeyScheme("a", peppers=[OLD]))
    issued = await settled(auth.keys.issue("u1"))
    monkeypatch.setattr(store, "swap", None)
    assert (await used(auth, issued.text)).key == issued.key
