"""What ``stores/protocol.py`` promises, as tests: one class for every store of either colour.

A store's own tests inherit from the classes here and override one fixture, ``store``, that gives an empty
store. Nothing here knows how a store keeps its records.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import chain
from threading import Barrier, Event
from time import monotonic
from typing import Any, TypeVar

import pytest

from apikey_auth import APIKey, AsyncKeyManager, DuplicateKey, Inline, KeyManager
from apikey_auth.decisions import changed, state
from apikey_auth.stores.protocol import AsyncKeyStore, Changes, KeyStore, Page, Revision

T = TypeVar("T")

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)
KATHMANDU = timezone(timedelta(hours=5, minutes=45))

FULL: Mapping[str, Any] = {
    "owner": "User1",
    "digest": "sha256$$" + "ab" * 32,
    "name": "Ünïcödé 名前 🔑",
    "prefix": "acme",
    "last4": "wXyZ",
    "scopes": ["reports:read", "reports:write"],
    "addresses": ["10.0.0.0/8", "2001:db8::/32"],
    "created_at": NOW - DAY,
    "created_by": "Ådmin",
    "expires_at": NOW + 90 * DAY,
    "disabled": True,
    "revoked_at": NOW,
    "revoked_reason": "it was in a public repository, «là»",
    "rotated_to": "k2",
    "rotated_from": "k0",
    "grace_until": NOW + DAY,
    "last_used_at": NOW - MOMENT,
    "metadata": {"team": "Zürich", "nested": {"list": [1, 2.5, True, None, "é", []], "empty": {}}},
    "version": 7,
}

RECORDS: Mapping[str, Mapping[str, Any]] = {
    "nothing but what it must have": {},
    "every field": FULL,
    "scopes None": {"scopes": None},
    "scopes empty": {"scopes": []},
    "scopes in their order": {"scopes": ["z", "a", "M"]},
    "addresses None": {"addresses": None},
    "addresses empty": {"addresses": []},
    "created_by None beside a reason": {"created_by": None, "revoked_reason": ""},
    "metadata with a null": {"metadata": {"a": None}},
    "metadata with large and small numbers": {"metadata": {"a": 2**80, "b": -1, "c": 1e308, "d": 5e-324}},
    "metadata with names that SQL and JSON know": {"metadata": {"$.a": "'", '"': "\\", "": "\0", "%s": ":x"}},
    "metadata beyond the basic plane": {"metadata": {"🔑": "\U0010ffff\u2028"}},
    "metadata of many levels": {"metadata": {"a": [[[[[[[[[[{"b": [[[[[[[[[[]]]]]]]]]]}]]]]]]]]]]}},
    "an owner in another script": {"owner": "Пользователь 1", "name": "نام"},
    "an owner of 255 characters": {"owner": "ö" * 255, "name": "🔑" * 255},
    "an owner that looks like SQL": {"owner": "x'; DROP TABLE apikey_auth_keys; --", "name": "%_\\"},
    "blanks at both ends": {"owner": " User1 ", "name": "\ta\n"},
    "a long reason": {"revoked_at": NOW, "revoked_reason": "x" * 10_000},
    "a high version": {"version": 2**31 - 1},
}

TIMES: Mapping[str, datetime] = {
    "a microsecond": NOW,
    "no microsecond": NOW.replace(microsecond=0),
    "the last microsecond of 1969": datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "the first moment of 1970": datetime(1970, 1, 1, tzinfo=UTC),
    "the year 1": datetime.min.replace(tzinfo=UTC),
    "the last microsecond of the year 9999": datetime.max.replace(tzinfo=UTC),
    "an offset to the east": datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=KATHMANDU),
    "an offset to the west": datetime(2026, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=11))),
}
TIME_FIELDS = ("created_at", "expires_at", "revoked_at", "grace_until", "last_used_at")

# What a record says, and whether it is live at NOW.
LIVE_AT_NOW: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "without an end": ({}, True),
    "expires a moment later": ({"expires_at": NOW + MOMENT}, True),
    "expires now": ({"expires_at": NOW}, False),
    "expired a moment ago": ({"expires_at": NOW - MOMENT}, False),
    "in its grace for a moment": ({"grace_until": NOW + MOMENT}, True),
    "its grace ends now": ({"grace_until": NOW}, False),
    "past its grace": ({"grace_until": NOW - MOMENT}, False),
    "in its grace but expired": ({"grace_until": NOW + DAY, "expires_at": NOW - DAY}, False),
    "past its grace, expires later": ({"grace_until": NOW - DAY, "expires_at": NOW + DAY}, False),
    "disabled": ({"disabled": True}, False),
    "revoked": ({"revoked_at": NOW - DAY}, False),
    "revoked, at a time still to come": ({"revoked_at": NOW + DAY}, False),
}

# What a record says, and whether a purge of what was dead before NOW takes it.
DEAD_BEFORE_NOW: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "live": ({}, False),
    "disabled for long": ({"disabled": True, "created_at": NOW - 900 * DAY}, False),
    "expires later": ({"expires_at": NOW + DAY}, False),
    "expired at that time": ({"expires_at": NOW}, False),
    "expired a moment before": ({"expires_at": NOW - MOMENT}, True),
    "past its grace at that time": ({"grace_until": NOW}, False),
    "past its grace a moment before": ({"grace_until": NOW - MOMENT, "expires_at": NOW + DAY}, True),
    "revoked at that time": ({"revoked_at": NOW}, False),
    "revoked a moment before": ({"revoked_at": NOW - MOMENT, "expires_at": NOW + DAY}, True),
}

STRANGE_IDS: Mapping[str, str] = {
    "never issued": "unknown",
    "empty": "",
    "in another case": "K1",
    "with a blank behind": "k1 ",
    "with a NUL behind": "k1\0",
    "a NUL": "\0",
    "a wildcard": "k%",
    "non-ASCII": "ключ🔑",
    "a lone surrogate": "k1\udcff",
    "very long": "k1" * 100_000,
    "SQL": "' OR '1'='1",
}


def record(key_id: str = "k1", **given: Any) -> APIKey:
    """Make a record of which only the id matters, and what is given."""
    return APIKey(**{"id": key_id, "owner": "User1", "digest": "sha256$$00", "created_at": NOW, **given})


def cases(table: Mapping[str, Any]) -> list[Any]:
    return [pytest.param(value, id=name) for name, value in table.items()]


def pairs(table: Mapping[str, tuple[Any, bool]]) -> list[Any]:
    return [pytest.param(*values, id=name) for name, values in table.items()]


async def add_all(store: AsyncKeyStore, *keys: APIKey) -> None:
    for key in keys:
        await store.add(key)


async def everything(store: AsyncKeyStore, **wanted: Any) -> list[APIKey]:
    """Collect what ``find`` lists on all its pages."""
    found: list[APIKey] = []
    page = await store.find(**wanted)
    found.extend(page.items)
    while page.next is not None:
        page = await store.find(after=page.next, **wanted)
        found.extend(page.items)
    return found


async def revision_of(store: AsyncKeyStore) -> Revision:
    return (await store.changes(None)).revision


class KeyStoreContract:
    """Every sentence of the protocol. Override ``store``."""

    @pytest.fixture
    def store(self) -> KeyStore | AsyncKeyStore:
        raise NotImplementedError("give an empty store of either colour")

    @pytest.fixture
    def astore(self, store: Any) -> AsyncKeyStore:
        """The store under test, its methods awaited whatever its colour."""
        return store if inspect.iscoroutinefunction(store.get) else Inline(store)

    # get

    @pytest.mark.parametrize("key_id", cases(STRANGE_IDS))
    async def test_an_unknown_id_is_none(self, astore: AsyncKeyStore, key_id: str) -> None:
        await astore.add(record("k1"))
        assert await astore.get(key_id) is None

    async def test_a_record_stays_as_it_was_read(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(metadata={"a": 1}))
        before = await astore.get("k1")
        assert before is not None
        await astore.swap(before, changed(before, name="other", metadata={"a": 2}))
        await astore.touch({"k1": NOW})
        await astore.revoke_all(None, NOW, "all")
        assert before == record(metadata={"a": 1})

    async def test_changing_what_was_read_changes_nothing_in_the_store(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(metadata={"a": {"b": 1}}))
        read = await astore.get("k1")
        listed = (await astore.find()).items[0]
        for key in (read, listed):
            assert key is not None
            key.metadata["a"]["b"] = 2  # type: ignore[index,call-overload]
        assert await astore.get("k1") == record(metadata={"a": {"b": 1}})

    async def test_changing_what_was_given_changes_nothing_in_the_store(self, astore: AsyncKeyStore) -> None:
        added = record(metadata={"a": {"b": 1}})
        await astore.add(added)
        added.metadata["a"]["b"] = 2  # type: ignore[index,call-overload]
        assert await astore.get("k1") == record(metadata={"a": {"b": 1}})

    # add: what comes back is what was given

    @pytest.mark.parametrize("given", cases(RECORDS))
    async def test_a_record_comes_back_equal(
        self, astore: AsyncKeyStore, given: Mapping[str, object]
    ) -> None:
        await astore.add(record(**given))
        assert await astore.get("k1") == record(**given)

    async def test_a_record_is_listed_as_it_is_read(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(**FULL))
        assert (await astore.find()).items == (record(**FULL),)

    async def test_every_field_has_a_value_that_is_not_its_default(self) -> None:
        plain, full = record(), record(**FULL)
        same = [
            field.name for field in fields(APIKey) if getattr(plain, field.name) == getattr(full, field.name)
        ]
        assert same == ["id", "owner"]

    @pytest.mark.parametrize("time", cases(TIMES))
    async def test_times_come_back_equal_and_aware_in_utc(
        self, astore: AsyncKeyStore, time: datetime
    ) -> None:
        await astore.add(record(**dict.fromkeys(TIME_FIELDS, time)))
        key = await astore.get("k1")
        for name in TIME_FIELDS:
            assert getattr(key, name) == time
            assert getattr(key, name).utcoffset() == timedelta(0)

    async def test_ids_that_differ_in_case_are_different_keys(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("aB", name="one"), record("Ab", name="two"), record("ab", name="three"))
        names = [key.name for key in (await astore.get("aB"), await astore.get("Ab")) if key]
        assert names == ["one", "two"]

    @pytest.mark.parametrize("key_id", ["ключ🔑", "é", "e\u0301", "x" * 255, " ", "a'b", "%"])
    async def test_an_id_may_be_any_text(self, astore: AsyncKeyStore, key_id: str) -> None:
        await astore.add(record(key_id))
        assert await astore.get(key_id) == record(key_id)

    async def test_a_second_record_of_one_id_is_a_duplicate(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(name="first"))
        with pytest.raises(DuplicateKey) as caught:
            await astore.add(record(name="second", owner="User2"))
        assert caught.value.key_id == "k1"

    async def test_a_duplicate_leaves_the_first_as_it_is(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(name="first"))
        with pytest.raises(DuplicateKey):
            await astore.add(record(name="second", owner="User2"))
        assert await astore.get("k1") == record(name="first")
        assert await astore.count() == 1

    async def test_a_revoked_record_is_a_duplicate_too(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(revoked_at=NOW))
        with pytest.raises(DuplicateKey):
            await astore.add(record())

    async def test_a_store_goes_on_after_a_duplicate(self, astore: AsyncKeyStore) -> None:
        await astore.add(record("k1"))
        with pytest.raises(DuplicateKey):
            await astore.add(record("k1"))
        await astore.add(record("k2"))
        assert await astore.get("k2") == record("k2")

    # swap

    async def test_a_swap_of_the_version_that_is_there_is_kept(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        assert await astore.swap(record(), changed(record(), name="new")) is True
        assert await astore.get("k1") == record(name="new", version=2)

    async def test_a_swap_writes_every_field_but_the_last_use(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(version=6, last_used_at=NOW))
        new = record(**FULL)
        assert await astore.swap(record(version=6), new)
        assert await astore.get("k1") == replace(new, last_used_at=NOW)

    async def test_a_swap_can_take_every_field_back(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(**FULL))
        assert await astore.swap(record(**FULL), record(version=8))
        assert await astore.get("k1") == record(version=8, last_used_at=FULL["last_used_at"])

    async def test_a_swap_with_an_old_last_use_keeps_the_newer_one(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        read = await astore.get("k1")
        assert read is not None
        await astore.touch({"k1": NOW})
        assert await astore.swap(read, changed(read, last_used_at=NOW - DAY))
        key = await astore.get("k1")
        assert key is not None
        assert key.last_used_at == NOW

    async def test_a_swap_changes_no_other_record(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("K1"), record("k2"))
        await astore.swap(record("k1"), changed(record("k1"), name="new"))
        assert (await astore.get("K1"), await astore.get("k2")) == (record("K1"), record("k2"))

    async def test_a_late_swap_answers_false(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        assert await astore.swap(record(), changed(record(), name="first"))
        assert await astore.swap(record(), changed(record(), name="late")) is False

    async def test_a_late_swap_changes_nothing(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        await astore.swap(record(), changed(record(), name="first"))
        before = await astore.changes(None)
        await astore.swap(record(), changed(record(), name="late"), successor=record("k2"))
        assert await astore.get("k1") == record(name="first", version=2)
        assert await astore.get("k2") is None
        assert await astore.changes(before.revision) == Changes(before.revision, frozenset())

    async def test_a_swap_from_a_version_still_to_come_answers_false(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(version=1))
        assert await astore.swap(record(version=2), record(version=3)) is False
        assert await astore.get("k1") == record(version=1)

    async def test_a_swap_of_an_unknown_key_answers_false_and_makes_none(self, astore: AsyncKeyStore) -> None:
        assert await astore.swap(record(), changed(record())) is False
        assert await astore.count() == 0

    async def test_a_swap_of_a_purged_key_does_not_bring_it_back(self, astore: AsyncKeyStore) -> None:
        key = record(revoked_at=NOW - DAY)
        await astore.add(key)
        await astore.purge(NOW)
        assert await astore.swap(key, changed(key, revoked_at=None)) is False
        assert await astore.get("k1") is None

    async def test_a_swap_with_a_successor_writes_both(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        old, successor = changed(record(), rotated_to="k2"), record("k2", rotated_from="k1")
        assert await astore.swap(record(), old, successor=successor)
        assert (await astore.get("k1"), await astore.get("k2")) == (old, successor)

    async def test_a_successor_comes_back_equal(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        await astore.swap(record(), changed(record()), successor=record("k2", **FULL))
        assert await astore.get("k2") == record("k2", **FULL)

    async def test_a_duplicate_successor_means_neither(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("k2", name="there before"))
        before = await revision_of(astore)
        with pytest.raises(DuplicateKey) as caught:
            await astore.swap(record("k1"), changed(record("k1")), successor=record("k2"))
        assert caught.value.key_id == "k2"
        assert await astore.get("k1") == record("k1")
        assert await astore.get("k2") == record("k2", name="there before")
        assert await astore.changes(before) == Changes(before, frozenset())

    async def test_a_key_cannot_be_its_own_successor(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        with pytest.raises(DuplicateKey):
            await astore.swap(record(), changed(record()), successor=record())
        assert await astore.get("k1") == record()

    @pytest.mark.parametrize(
        "new",
        [
            pytest.param(record(version=5), id="the same version"),
            pytest.param(record(version=4), id="the version before"),
            pytest.param(record(version=7), id="the version after the next"),
            pytest.param(record("k2", version=6), id="another key"),
        ],
    )
    async def test_a_swap_to_what_does_not_follow_is_a_value_error(
        self, astore: AsyncKeyStore, new: APIKey
    ) -> None:
        await astore.add(record(version=5))
        with pytest.raises(ValueError, match="does not follow"):
            await astore.swap(record(version=5), new)
        assert await everything(astore) == [record(version=5)]

    # revoke_all

    async def test_revoking_an_owners_keys_gives_each_time_reason_and_next_version(
        self, astore: AsyncKeyStore
    ) -> None:
        await add_all(astore, record("k1"), record("k2", version=4))
        await astore.revoke_all("User1", NOW, "gone")
        assert await everything(astore) == [
            record("k1", revoked_at=NOW, revoked_reason="gone", version=2),
            record("k2", revoked_at=NOW, revoked_reason="gone", version=5),
        ]

    async def test_revoking_an_owners_keys_leaves_everybody_elses(self, astore: AsyncKeyStore) -> None:
        others = [
            record(f"k{n}", owner=owner)
            for n, owner in enumerate(["User2", "user1", "User", "User11", "User%", " User1"])
        ]
        await add_all(astore, *others)
        assert await astore.revoke_all("User1", NOW, None) == 0
        assert await everything(astore) == others

    async def test_revoking_with_no_owner_revokes_everybodys_keys(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("k2", owner="User2"), record("k3", owner="User3"))
        assert await astore.revoke_all(None, NOW, None) == 3
        assert [key.revoked_at for key in await everything(astore)] == [NOW] * 3

    async def test_revoking_all_tells_how_many_it_revoked(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("k2"), record("k3", owner="User2"))
        assert await astore.revoke_all("User1", NOW, None) == 2
        assert await astore.revoke_all("User1", NOW, None) == 0
        assert await astore.revoke_all(None, NOW, None) == 1

    async def test_what_was_revoked_before_keeps_its_time_reason_and_version(
        self, astore: AsyncKeyStore
    ) -> None:
        earlier = record("k1", revoked_at=NOW - DAY, revoked_reason="leaked", version=2)
        await add_all(astore, earlier, record("k2"))
        assert await astore.revoke_all("User1", NOW, "gone") == 1
        assert await astore.get("k1") == earlier

    async def test_revoking_all_takes_disabled_expired_and_rotated_keys_too(
        self, astore: AsyncKeyStore
    ) -> None:
        await add_all(
            astore,
            record("k1", disabled=True),
            record("k2", expires_at=NOW - DAY),
            record("k3", grace_until=NOW - DAY, rotated_to="k4"),
        )
        assert await astore.revoke_all("User1", NOW, None) == 3

    async def test_revoking_all_changes_nothing_else_of_a_record(self, astore: AsyncKeyStore) -> None:
        full = record(**{**FULL, "revoked_at": None, "revoked_reason": None})
        await astore.add(full)
        await astore.revoke_all(None, NOW, None)
        assert await astore.get("k1") == changed(full, revoked_at=NOW)

    async def test_revoking_all_at_a_time_of_another_offset_keeps_the_moment(
        self, astore: AsyncKeyStore
    ) -> None:
        await astore.add(record())
        await astore.revoke_all(None, NOW.astimezone(KATHMANDU), "späť")
        assert await astore.get("k1") == record(revoked_at=NOW, revoked_reason="späť", version=2)

    async def test_a_swap_decided_before_a_revocation_comes_too_late(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        await astore.revoke_all("User1", NOW, None)
        assert await astore.swap(record(), changed(record(), name="still alive")) is False

    # find and count

    async def test_an_empty_store_lists_an_empty_page(self, astore: AsyncKeyStore) -> None:
        assert await astore.find() == Page((), None)

    async def test_records_are_listed_by_id(self, astore: AsyncKeyStore) -> None:
        ids = ["b", "B", "a1", "9", "a", "A", "a10", "aa", "0"]
        await add_all(astore, *(record(key_id, created_at=NOW - n * DAY) for n, key_id in enumerate(ids)))
        assert [key.id for key in await everything(astore)] == sorted(ids)

    async def test_a_listing_may_be_of_one_owner(self, astore: AsyncKeyStore) -> None:
        owners = ["Ünï", "User1", "user1", "User", "User1 ", "%"]
        await add_all(astore, *(record(f"k{n}", owner=owner) for n, owner in enumerate(owners)))
        for n, owner in enumerate(owners):
            assert await everything(astore, owner=owner) == [record(f"k{n}", owner=owner)]

    async def test_a_listing_of_an_unknown_owner_is_empty(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        assert await astore.find(owner="nobody") == Page((), None)

    async def test_a_listing_starts_behind_after(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *map(record, "abcd"))
        assert [key.id for key in (await astore.find(after="b")).items] == ["c", "d"]

    async def test_after_need_not_be_the_id_of_a_record(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *map(record, "abcd"))
        assert [key.id for key in (await astore.find(after="bb")).items] == ["c", "d"]

    async def test_a_page_has_at_most_limit_records(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *map(record, "abcde"))
        assert [key.id for key in (await astore.find(limit=2)).items] == ["a", "b"]

    async def test_a_record_made_anew_is_not_the_one_that_was_read(self, astore: AsyncKeyStore) -> None:
        """After a purge a key of the same id starts again at version 1, with another secret."""
        read = record(revoked_at=NOW)
        await astore.add(read)
        await astore.purge(NOW + DAY)
        anew = replace(record(), digest="sha256$$" + "9" * 64)
        await astore.add(anew)
        assert not await astore.swap(read, changed(read, name="late"))
        assert await astore.get("k1") == anew

    @pytest.mark.parametrize("after", ["\ud800", "a\0b"])
    async def test_an_after_that_can_be_no_id_is_a_value_error(
        self, astore: AsyncKeyStore, after: str
    ) -> None:
        with pytest.raises(ValueError, match="after"):
            await astore.find(after=after)

    async def test_a_limit_beyond_any_count_is_a_value_error(self, astore: AsyncKeyStore) -> None:
        with pytest.raises(ValueError, match="limit"):
            await astore.find(limit=2**63)

    async def test_a_naive_time_is_a_value_error(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        naive = datetime(2026, 1, 1)  # noqa: DTZ001
        for call in (
            partial(astore.revoke_all, None, naive, None),
            partial(astore.purge, naive),
            partial(astore.touch, {"k1": naive}),
            partial(astore.find, live_at=naive),
            partial(astore.count, live_at=naive),
        ):
            with pytest.raises(ValueError, match="time zone"):
                await call()
        assert await astore.get("k1") == record()

    @pytest.mark.parametrize("limit", [0, -1, -2])
    async def test_a_limit_under_one_is_a_value_error(self, astore: AsyncKeyStore, limit: int) -> None:
        await astore.add(record())
        with pytest.raises(ValueError, match="limit"):
            await astore.find(limit=limit)

    async def test_a_page_has_a_hundred_records_unless_told(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *(record(f"k{n:03}") for n in range(101)))
        page = await astore.find()
        assert (len(page.items), page.next) == (100, "k099")

    async def test_next_is_the_after_of_the_following_page(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *map(record, "abc"))
        first = await astore.find(limit=2)
        second = await astore.find(limit=2, after=first.next)
        assert [key.id for key in first.items + second.items] == ["a", "b", "c"]

    @pytest.mark.parametrize("limit", [3, 4])
    async def test_the_last_page_has_no_next(self, astore: AsyncKeyStore, limit: int) -> None:
        await add_all(astore, *map(record, "abc"))
        assert (await astore.find(limit=limit)).next is None

    async def test_pages_of_an_owner_cross_those_of_others(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *(record(f"k{n}", owner=f"User{n % 2}") for n in range(8)))
        found = await everything(astore, owner="User0", limit=1)
        assert [key.id for key in found] == ["k0", "k2", "k4", "k6"]

    async def test_pages_of_live_records_leave_no_gap_where_dead_ones_are(
        self, astore: AsyncKeyStore
    ) -> None:
        await add_all(astore, *(record(f"k{n}", disabled=n in (1, 2, 3, 6)) for n in range(8)))
        first = await astore.find(live_at=NOW, limit=2)
        assert [key.id for key in first.items] == ["k0", "k4"]
        assert [key.id for key in await everything(astore, live_at=NOW, limit=2)] == ["k0", "k4", "k5", "k7"]

    async def test_pages_neither_skip_nor_repeat_what_was_there_all_along(
        self, astore: AsyncKeyStore
    ) -> None:
        lasting = [record(f"k{n}0") for n in range(10)]
        dead = [record(f"k{n}1", expires_at=NOW - DAY) for n in range(10)]
        await add_all(astore, *lasting, *dead)
        seen: list[str] = []
        after: str | None = None
        for step in range(100):
            page = await astore.find(after=after, limit=3)
            seen.extend(key.id for key in page.items)
            if (after := page.next) is None:
                break
            await add_all(astore, record(f"a{step}"), record(f"{after}!"), record(f"z{step}"))
            await astore.purge(NOW)
            await astore.revoke_all(None, NOW, None)
        assert len(seen) == len(set(seen))
        assert [key_id for key_id in seen if key_id in {key.id for key in lasting}] == [
            key.id for key in lasting
        ]

    async def test_a_page_may_follow_a_record_that_is_gone(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("a"), record("b", expires_at=NOW - DAY), record("c"))
        page = await astore.find(limit=2)
        assert page.next == "b"
        await astore.purge(NOW)
        assert [key.id for key in (await astore.find(after="b")).items] == ["c"]

    @pytest.mark.parametrize(("given", "live"), pairs(LIVE_AT_NOW))
    async def test_live_at_leaves_out_what_is_dead_at_that_time(
        self, astore: AsyncKeyStore, given: Mapping[str, Any], live: bool
    ) -> None:
        key = record(**given)
        assert (state(key, NOW) is None) is live
        await astore.add(key)
        assert (await astore.find(live_at=NOW)).items == ((key,) if live else ())

    @pytest.mark.parametrize(("given", "live"), pairs(LIVE_AT_NOW))
    async def test_live_at_is_a_moment_in_whatever_offset(
        self, astore: AsyncKeyStore, given: Mapping[str, Any], live: bool
    ) -> None:
        await astore.add(record(**given))
        assert await astore.count(live_at=NOW.astimezone(KATHMANDU)) == live

    async def test_without_live_at_dead_records_are_listed_too(self, astore: AsyncKeyStore) -> None:
        keys = [record(f"k{n:02}", **given) for n, (given, _) in enumerate(LIVE_AT_NOW.values())]
        await add_all(astore, *keys)
        assert await everything(astore) == keys

    @pytest.mark.parametrize("owner", [None, "User0", "nobody"])
    @pytest.mark.parametrize("live_at", [None, NOW])
    async def test_count_tells_how_many_find_lists_on_all_its_pages(
        self, astore: AsyncKeyStore, owner: str | None, live_at: datetime | None
    ) -> None:
        given = [fields for fields, _ in LIVE_AT_NOW.values()] * 2
        await add_all(
            astore, *(record(f"k{n}", **{**given[n], "owner": f"User{n % 3}"}) for n in range(len(given)))
        )
        found = await everything(astore, owner=owner, live_at=live_at, limit=2)
        assert await astore.count(owner=owner, live_at=live_at) == len(found)
        assert bool(found) is (owner != "nobody")

    # purge

    @pytest.mark.parametrize(("given", "dead"), pairs(DEAD_BEFORE_NOW))
    async def test_a_purge_deletes_what_was_dead_before_a_time(
        self, astore: AsyncKeyStore, given: Mapping[str, Any], dead: bool
    ) -> None:
        key = record(**given)
        await astore.add(key)
        assert await astore.purge(NOW) == dead
        assert await astore.get("k1") == (None if dead else key)

    async def test_a_purge_tells_how_many_it_deleted(self, astore: AsyncKeyStore) -> None:
        for n, (given, _) in enumerate(DEAD_BEFORE_NOW.values()):
            await astore.add(record(f"k{n}", **given))
        assert await astore.purge(NOW.astimezone(KATHMANDU)) == 3
        assert await astore.purge(NOW) == 0

    async def test_the_id_of_a_purged_record_is_free_again(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(name="old", revoked_at=NOW - DAY))
        await astore.purge(NOW)
        await astore.add(record(name="new"))
        assert await astore.get("k1") == record(name="new")

    # touch

    async def test_a_touch_notes_when_keys_were_used(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *map(record, "abc"))
        await astore.touch({"c": NOW, "a": NOW - DAY})
        assert await everything(astore) == [
            record("a", last_used_at=NOW - DAY),
            record("b"),
            record("c", last_used_at=NOW),
        ]

    @pytest.mark.parametrize("step", [MOMENT, timedelta(0), -MOMENT, -DAY])
    async def test_a_touch_goes_forward_only(self, astore: AsyncKeyStore, step: timedelta) -> None:
        await astore.add(record(last_used_at=NOW))
        await astore.touch({"k1": NOW + step})
        assert await astore.get("k1") == record(last_used_at=max(NOW, NOW + step))

    async def test_a_touch_compares_moments_whatever_the_offset(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(last_used_at=NOW))
        earlier, later = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
        await astore.touch({"k1": earlier.astimezone(KATHMANDU)})  # to the eye, hours later
        assert await astore.get("k1") == record(last_used_at=NOW)
        await astore.touch({"k1": later.astimezone(timezone(-timedelta(hours=11)))})
        assert await astore.get("k1") == record(last_used_at=later)

    @pytest.mark.parametrize("key_id", cases(STRANGE_IDS))
    async def test_a_touch_of_an_unknown_id_makes_no_record(self, astore: AsyncKeyStore, key_id: str) -> None:
        await astore.add(record())
        await astore.touch({key_id: NOW, "k1": NOW})
        assert await everything(astore) == [record(last_used_at=NOW)]

    async def test_a_touch_of_nothing_does_nothing(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        await astore.touch({})
        assert await astore.get("k1") == record()

    async def test_a_touch_leaves_the_version_so_that_a_change_is_not_too_late(
        self, astore: AsyncKeyStore
    ) -> None:
        await astore.add(record())
        await astore.touch({"k1": NOW})
        assert await astore.swap(record(), changed(record(), revoked_at=NOW))

    async def test_a_touch_does_not_bring_a_revoked_key_back(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        await astore.revoke_all(None, NOW, None)
        await astore.touch({"k1": NOW + DAY})
        assert await astore.get("k1") == record(revoked_at=NOW, last_used_at=NOW + DAY, version=2)

    async def test_many_keys_can_be_touched_at_once(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k0"), record("k1999"))
        await astore.touch({f"k{n}": NOW for n in range(2000)})
        assert [key.last_used_at for key in await everything(astore)] == [NOW, NOW]

    # changes: the revision

    async def test_the_revision_stands_still_while_nothing_changes(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        before = await astore.changes(None)
        await astore.get("k1")
        await astore.find()
        await astore.count()
        assert await astore.changes(None) == before

    async def test_add_and_touch_do_not_move_the_revision(self, astore: AsyncKeyStore) -> None:
        before = await revision_of(astore)
        await astore.add(record())
        await astore.touch({"k1": NOW})
        assert await astore.changes(before) == Changes(before, frozenset())

    async def test_a_failed_add_does_not_move_the_revision(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        before = await revision_of(astore)
        with pytest.raises(DuplicateKey):
            await astore.add(record())
        assert await revision_of(astore) == before

    async def test_swap_revoke_all_and_purge_each_move_the_revision_by_one(
        self, astore: AsyncKeyStore
    ) -> None:
        await add_all(astore, record("k1"), record("k2"), record("k3", expires_at=NOW - DAY))
        start = await revision_of(astore)
        await astore.swap(record("k1"), changed(record("k1")))
        after_swap = await revision_of(astore)
        await astore.swap(record("k2"), changed(record("k2")), successor=record("k4"))
        after_rotation = await revision_of(astore)
        await astore.revoke_all(None, NOW, None)
        after_revocation = await revision_of(astore)
        await astore.purge(NOW)
        after_purge = await revision_of(astore)
        steps = (after_swap, after_rotation, after_revocation, after_purge)
        assert steps == tuple(replace(start, number=start.number + n) for n in (1, 2, 3, 4))

    async def test_a_revocation_and_a_purge_that_find_nothing_move_the_revision_too(
        self, astore: AsyncKeyStore
    ) -> None:
        start = await revision_of(astore)
        await astore.revoke_all("nobody", NOW, None)
        await astore.purge(NOW)
        assert await revision_of(astore) == replace(start, number=start.number + 2)

    # changes: the ids

    async def test_a_swap_is_named(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("k2"))
        before = await revision_of(astore)
        await astore.swap(record("k1"), changed(record("k1")))
        assert (await astore.changes(before)).ids == {"k1"}

    async def test_of_a_rotation_the_old_key_is_named_and_its_successor_is_not(
        self, astore: AsyncKeyStore
    ) -> None:
        await astore.add(record("k1"))
        before = await revision_of(astore)
        await astore.swap(record("k1"), changed(record("k1")), successor=record("k2"))
        assert (await astore.changes(before)).ids == {"k1"}

    async def test_a_successor_is_named_once_it_is_changed_itself(self, astore: AsyncKeyStore) -> None:
        await astore.add(record("k1"))
        await astore.swap(record("k1"), changed(record("k1")), successor=record("k2"))
        before = await revision_of(astore)
        await astore.swap(record("k2"), changed(record("k2")))
        assert (await astore.changes(before)).ids == {"k2"}

    async def test_revoking_all_names_what_it_revoked_and_nothing_else(self, astore: AsyncKeyStore) -> None:
        await add_all(
            astore, record("k1"), record("k2"), record("k3", revoked_at=NOW), record("k4", owner="User2")
        )
        before = await revision_of(astore)
        await astore.revoke_all("User1", NOW, None)
        assert (await astore.changes(before)).ids == {"k1", "k2"}

    async def test_what_changed_up_to_since_is_not_named(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *map(record, "abc"))
        revisions = []
        for key_id in "abc":
            revisions.append(await revision_of(astore))
            await astore.swap(record(key_id), changed(record(key_id)))
        named = [(await astore.changes(since)).ids for since in revisions]
        assert named == [{"a", "b", "c"}, {"b", "c"}, {"c"}]

    async def test_a_key_changed_twice_is_named_since_before_either(self, astore: AsyncKeyStore) -> None:
        await astore.add(record(version=1))
        first = await revision_of(astore)
        await astore.swap(record(version=1), record(version=2))
        second = await revision_of(astore)
        await astore.swap(record(version=2), record(version=3))
        last = await revision_of(astore)
        named = [(await astore.changes(since)).ids for since in (first, second, last)]
        assert named == [{"k1"}, {"k1"}, frozenset()]

    async def test_changes_answers_the_revision_up_to_which_it_names_keys(
        self, astore: AsyncKeyStore
    ) -> None:
        await astore.add(record())
        before = await revision_of(astore)
        await astore.swap(record(), changed(record()))
        assert await astore.changes(before) == Changes(
            replace(before, number=before.number + 1), frozenset({"k1"})
        )

    # changes: where it cannot be told

    async def test_since_none_may_be_any_key(self, astore: AsyncKeyStore) -> None:
        assert (await astore.changes(None)).ids is None
        await astore.add(record())
        await astore.swap(record(), changed(record()))
        assert (await astore.changes(None)).ids is None

    @pytest.mark.parametrize("epoch", ["", "another", "0" * 32])
    async def test_since_a_revision_of_another_epoch_may_be_any_key(
        self, astore: AsyncKeyStore, epoch: str
    ) -> None:
        now = await revision_of(astore)
        assert await astore.changes(replace(now, epoch=epoch)) == Changes(now, None)

    @pytest.mark.parametrize("ahead", [1, 2, 1_000_000])
    async def test_since_a_revision_ahead_of_the_store_may_be_any_key(
        self, astore: AsyncKeyStore, ahead: int
    ) -> None:
        now = await revision_of(astore)
        assert await astore.changes(replace(now, number=now.number + ahead)) == Changes(now, None)

    async def test_since_a_revision_before_a_purge_may_be_any_key(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("k2", expires_at=NOW - DAY))
        first = await revision_of(astore)
        await astore.swap(record("k1"), changed(record("k1")))
        second = await revision_of(astore)
        await astore.purge(NOW)
        assert (await astore.changes(first)).ids is None
        assert (await astore.changes(second)).ids is None

    async def test_since_a_purge_keys_are_named_again(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, record("k1"), record("k2", expires_at=NOW - DAY), record("k3"))
        await astore.swap(record("k3"), changed(record("k3")))
        await astore.purge(NOW)
        purged = await revision_of(astore)
        assert (await astore.changes(purged)).ids == frozenset()
        await astore.swap(record("k1"), changed(record("k1")))
        assert (await astore.changes(purged)).ids == {"k1"}

    async def test_a_thousand_ids_are_named_and_one_more_may_be_any_key(self, astore: AsyncKeyStore) -> None:
        await add_all(astore, *(record(f"k{n}") for n in range(1000)), record("other", owner="User2"))
        before = await revision_of(astore)
        await astore.revoke_all("User1", NOW, None)
        between = await astore.changes(before)
        assert between.ids == {f"k{n}" for n in range(1000)}
        await astore.revoke_all("User2", NOW, None)
        assert (await astore.changes(before)).ids is None
        assert (await astore.changes(between.revision)).ids == {"other"}

    # what tasks do at once

    async def test_of_two_swaps_at_once_one_wins(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        attempts = [changed(record(), name=f"task {n}") for n in range(8)]
        won = await asyncio.gather(*(astore.swap(record(), new) for new in attempts))
        assert sorted(won) == [False] * 7 + [True]
        assert await astore.get("k1") == attempts[won.index(True)]

    async def test_of_two_rotations_at_once_one_successor_is_made(self, astore: AsyncKeyStore) -> None:
        await astore.add(record())
        won = await asyncio.gather(
            *(astore.swap(record(), changed(record()), successor=record(f"s{n}")) for n in range(8))
        )
        assert [key.id for key in await everything(astore)] == ["k1", f"s{won.index(True)}"]

    async def test_of_two_adds_of_one_id_at_once_one_is_kept(self, astore: AsyncKeyStore) -> None:
        keys = [record(name=f"task {n}") for n in range(8)]
        answers = await asyncio.gather(*map(astore.add, keys), return_exceptions=True)
        assert [type(answer) for answer in answers].count(DuplicateKey) == 7
        assert await astore.get("k1") == keys[answers.index(None)]

    async def test_ensure_makes_one_key_however_many_ask_at_once(self, astore: AsyncKeyStore) -> None:
        manager = AsyncKeyManager(astore)
        made = await asyncio.gather(*(manager.ensure("Admin", name="first") for _ in range(8)))
        (issued,) = filter(None, made)
        assert await everything(astore) == [issued.key]


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Make each call in a thread of its own, all let go at the same moment; answer what they answered."""
    barrier = Barrier(len(calls))

    def let_go(call: Callable[[], T]) -> T:
        barrier.wait(timeout=30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(let_go, calls))


def until(ask: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Ask again and again, as fast as it goes, until the answer is what is waited for."""
    deadline = monotonic() + 30
    while not wanted(answer := ask()):
        assert monotonic() < deadline, f"still {answer}"
    return answer


class KeyStoreRaces:
    """What threads do at once, to a blocking store. Override ``store``."""

    rounds = 25

    @pytest.fixture
    def store(self) -> KeyStore:
        raise NotImplementedError("give an empty store that blocks")

    def test_of_swaps_in_eight_threads_exactly_one_wins(self, store: KeyStore) -> None:
        for n in range(self.rounds):
            key = record(f"k{n}")
            store.add(key)
            attempts = [changed(key, name=f"thread {thread}") for thread in range(8)]
            won = at_once(*(partial(store.swap, key, new) for new in attempts))
            assert won.count(True) == 1
            assert store.get(key.id) == attempts[won.index(True)]

    def test_increments_by_swap_are_never_lost(self, store: KeyStore) -> None:
        store.add(record(metadata={"n": 0}))

        def increment() -> None:
            for _ in range(self.rounds):
                while True:
                    key = store.get("k1")
                    assert key is not None
                    if store.swap(key, changed(key, metadata={"n": key.metadata["n"] + 1})):  # type: ignore[operator]
                        break

        at_once(*[increment] * 4)
        assert store.get("k1") == record(metadata={"n": 4 * self.rounds}, version=1 + 4 * self.rounds)

    def test_a_revocation_stays_while_others_touch_the_key(self, store: KeyStore) -> None:
        for n in range(self.rounds):
            key = record(f"k{n}")
            store.add(key)
            used = [partial(store.touch, {key.id: NOW + m * MOMENT}) for m in range(4)]
            at_once(partial(store.swap, key, changed(key, revoked_at=NOW)), *used)
            assert store.get(key.id) == record(
                key.id, revoked_at=NOW, last_used_at=NOW + 3 * MOMENT, version=2
            )

    def test_touches_in_any_order_leave_the_latest(self, store: KeyStore) -> None:
        ids = [f"k{n}" for n in range(20)]
        for key_id in ids:
            store.add(record(key_id))
        at_once(*(partial(store.touch, dict.fromkeys(ids, NOW + n * MOMENT)) for n in (3, 7, 1, 5)))
        assert {key.last_used_at for key in store.find().items} == {NOW + 7 * MOMENT}

    def test_whoever_follows_the_revisions_misses_no_change(self, store: KeyStore) -> None:
        ids = [[f"k{thread}-{n}" for n in range(self.rounds)] for thread in range(3)]
        for key_id in chain.from_iterable(ids):
            store.add(record(key_id))
        since, named, done = store.changes(None).revision, set[str](), Event()

        def change(own: list[str]) -> None:
            for key_id in own:
                assert store.swap(record(key_id), changed(record(key_id)))

        def follow() -> None:
            nonlocal since
            last = False
            while not last:
                last = done.is_set()
                changes = store.changes(since)
                assert changes.ids is not None
                named.update(changes.ids)
                since = changes.revision

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(follow)
            try:
                at_once(*(partial(change, own) for own in ids))
            finally:
                done.set()
            following.result()
        assert named == set(chain.from_iterable(ids))

    def test_whoever_sees_the_revision_of_a_revocation_sees_all_of_it(self, store: KeyStore) -> None:
        ids = {f"k{n}" for n in range(200)}
        for key_id in ids:
            store.add(record(key_id))
        start = store.changes(None).revision

        def watch() -> tuple[Changes, set[str]]:
            changes = until(lambda: store.changes(start), lambda changes: changes.revision != start)
            return changes, {key.id for key in store.find(live_at=NOW, limit=1000).items}

        def revoke() -> int:
            return store.revoke_all(None, NOW, "all")

        seen = at_once(watch, watch, revoke)[:2]
        assert seen == [(Changes(replace(start, number=start.number + 1), frozenset(ids)), set())] * 2

    def test_nobody_sees_half_of_a_rotation(self, store: KeyStore) -> None:
        for n in range(self.rounds):
            old, successor = record(f"k{n}"), record(f"s{n}")
            store.add(old)

            def rotate(old: APIKey = old, successor: APIKey = successor) -> bool:
                return store.swap(old, changed(old, rotated_to=successor.id), successor=successor)

            def watch(old: APIKey = old, successor: APIKey = successor) -> bool:
                until(partial(store.get, old.id), lambda key: key != old)
                return store.get(successor.id) == successor

            assert at_once(watch, rotate) == [True, True]

    def test_ensure_in_eight_threads_makes_exactly_one_key(self, store: KeyStore) -> None:
        for n in range(self.rounds):
            ensure = partial(KeyManager(store).ensure, "Admin", name=f"first {n}")
            made = at_once(*[ensure] * 8)
            assert len(list(filter(None, made))) == 1

    def test_pages_neither_skip_nor_repeat_while_other_threads_write(self, store: KeyStore) -> None:
        lasting = [f"k{n:03}" for n in range(60)]
        for key_id in lasting:
            store.add(record(key_id))
        done = Event()

        def write() -> None:
            n = 0
            while not done.is_set():
                n += 1
                store.add(record(f"k{n % 60:03}-{n}", expires_at=NOW - DAY))
                store.add(record(f"a{n}", expires_at=NOW - DAY))
                store.purge(NOW)

        def walk() -> list[str]:
            try:
                seen: list[str] = []
                for _ in range(5):
                    page = store.find(limit=7)
                    seen += [key.id for key in page.items]
                    while page.next is not None:
                        page = store.find(after=page.next, limit=7)
                        seen += [key.id for key in page.items]
                return seen
            finally:
                done.set()

        seen = at_once(walk, write)[0]
        assert seen is not None
        assert [key_id for key_id in seen if key_id in lasting] == lasting * 5
