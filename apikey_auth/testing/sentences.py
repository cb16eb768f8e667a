"""Every sentence of ``stores/protocol.py`` that one caller can see, as a test."""

# ruff: noqa: S101  # assertions are what this is for

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, cast

import pytest

from ..decisions import changed, state
from ..errors import DuplicateKey
from ..keys import APIKey
from ..stores.protocol import Changes, Page
from .drive import Kept, Threads
from .reader import KeyReaderContract
from .records import (
    DAY,
    DEAD_BEFORE_NOW,
    FULL,
    KATHMANDU,
    LIVE_AT_NOW,
    MOMENT,
    NOW,
    RECORDS,
    STRANGE_IDS,
    TIME_FIELDS,
    TIMES,
    add_all,
    cases,
    everything,
    named,
    pairs,
    record,
    revision_of,
)

ADDING = 8  # threads that fill a store


class KeyStoreSentences(KeyReaderContract):
    """One caller, one call after another."""

    def add_many(self, kept: Kept, keys: Sequence[APIKey]) -> None:
        """Put records that differ in their ids alone into the store.

        Override it where ``kept.store`` can be filled in a faster way than by its own ``add``.
        """
        threads = Threads(partial(self.leave_thread, kept.store))
        threads.at_once(*(partial(add_all, kept, *keys[n::ADDING]) for n in range(ADDING)))

    # get

    def test_a_record_stays_as_it_was_read(self, kept: Kept) -> None:
        kept.add(record(metadata={"a": 1}))
        before = kept.get("k1")
        assert before is not None
        kept.swap(before, changed(before, name="other", metadata={"a": 2}))
        kept.touch({"k1": NOW})
        kept.revoke_all(None, NOW, "all")
        assert before == record(metadata={"a": 1})

    def test_every_read_is_of_what_is_stored_now(self, kept: Kept) -> None:
        kept.add(record())
        assert kept.get("k1") == record()
        kept.swap(record(), changed(record(), name="new"))
        assert kept.get("k1") == record(name="new", version=2)
        kept.revoke_all(None, NOW, None)
        assert kept.get("k1") == record(name="new", revoked_at=NOW, version=3)
        kept.purge(NOW + DAY)
        assert kept.get("k1") is None

    def test_changing_what_was_read_changes_nothing_in_the_store(self, kept: Kept) -> None:
        kept.add(record(metadata={"a": {"b": 1}}))
        read = kept.get("k1")
        listed = kept.find().items[0]
        for key in (read, listed):
            assert key is not None
            key.metadata["a"]["b"] = 2  # type: ignore[index]
        assert kept.get("k1") == record(metadata={"a": {"b": 1}})

    def test_changing_what_was_given_changes_nothing_in_the_store(self, kept: Kept) -> None:
        added = record(metadata={"a": {"b": 1}})
        kept.add(added)
        added.metadata["a"]["b"] = 2  # type: ignore[index]
        assert kept.get("k1") == record(metadata={"a": {"b": 1}})

    # add: what comes back is what was given

    @pytest.mark.parametrize("given", cases(RECORDS))
    def test_a_record_comes_back_equal(self, kept: Kept, given: Mapping[str, Any]) -> None:
        kept.add(record(**given))
        assert kept.get("k1") == record(**given)

    def test_a_record_is_listed_as_it_is_read(self, kept: Kept) -> None:
        kept.add(record(**FULL))
        assert kept.find().items == (record(**FULL),)

    @pytest.mark.parametrize("time", cases(TIMES))
    def test_times_come_back_equal_and_aware_in_utc(self, kept: Kept, time: datetime) -> None:
        kept.add(record(**cast("Any", dict.fromkeys(TIME_FIELDS, time))))
        key = kept.get("k1")
        for name in TIME_FIELDS:
            assert getattr(key, name) == time
            assert getattr(key, name).utcoffset() == timedelta(0)

    def test_ids_that_differ_in_case_are_different_keys(self, kept: Kept) -> None:
        add_all(kept, record("aB", name="one"), record("Ab", name="two"), record("ab", name="three"))
        names = [key.name for key in (kept.get("aB"), kept.get("Ab")) if key]
        assert names == ["one", "two"]

    @pytest.mark.parametrize("key_id", ["ключ🔑", "é", "e\u0301", "x" * 255, " ", "a'b", "%"])
    def test_an_id_may_be_any_text(self, kept: Kept, key_id: str) -> None:
        kept.add(record(key_id))
        assert kept.get(key_id) == record(key_id)

    def test_a_second_record_of_one_id_is_a_duplicate(self, kept: Kept) -> None:
        kept.add(record(name="first"))
        with pytest.raises(DuplicateKey) as caught:
            kept.add(record(name="second", owner="User2"))
        assert caught.value.key_id == "k1"

    def test_a_duplicate_leaves_the_first_as_it_is(self, kept: Kept) -> None:
        kept.add(record(name="first"))
        with pytest.raises(DuplicateKey):
            kept.add(record(name="second", owner="User2"))
        assert kept.get("k1") == record(name="first")
        assert kept.count() == 1

    def test_a_revoked_record_is_a_duplicate_too(self, kept: Kept) -> None:
        kept.add(record(revoked_at=NOW))
        with pytest.raises(DuplicateKey):
            kept.add(record())

    def test_a_store_goes_on_after_a_duplicate(self, kept: Kept) -> None:
        kept.add(record("k1"))
        with pytest.raises(DuplicateKey):
            kept.add(record("k1"))
        kept.add(record("k2"))
        assert kept.get("k2") == record("k2")

    # swap

    def test_a_swap_of_the_version_that_is_there_is_kept(self, kept: Kept) -> None:
        kept.add(record())
        assert kept.swap(record(), changed(record(), name="new")) is True
        assert kept.get("k1") == record(name="new", version=2)

    def test_a_swap_writes_every_field_but_the_last_use(self, kept: Kept) -> None:
        kept.add(record(version=6, last_used_at=NOW))
        new = record(**FULL)
        assert kept.swap(record(version=6), new)
        assert kept.get("k1") == replace(new, last_used_at=NOW)

    def test_a_swap_can_take_every_field_back(self, kept: Kept) -> None:
        kept.add(record(**FULL))
        assert kept.swap(record(**FULL), record(version=8))
        assert kept.get("k1") == record(version=8, last_used_at=FULL["last_used_at"])

    def test_a_swap_with_an_old_last_use_keeps_the_newer_one(self, kept: Kept) -> None:
        kept.add(record())
        read = kept.get("k1")
        assert read is not None
        kept.touch({"k1": NOW})
        assert kept.swap(read, changed(read, last_used_at=NOW - DAY))
        key = kept.get("k1")
        assert key is not None
        assert key.last_used_at == NOW

    def test_a_swap_changes_no_other_record(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("K1"), record("k2"))
        kept.swap(record("k1"), changed(record("k1"), name="new"))
        assert (kept.get("K1"), kept.get("k2")) == (record("K1"), record("k2"))

    def test_a_late_swap_answers_false(self, kept: Kept) -> None:
        kept.add(record())
        assert kept.swap(record(), changed(record(), name="first"))
        assert kept.swap(record(), changed(record(), name="late")) is False

    def test_a_late_swap_changes_nothing(self, kept: Kept) -> None:
        kept.add(record())
        kept.swap(record(), changed(record(), name="first"))
        before = kept.changes(None)
        kept.swap(record(), changed(record(), name="late"), successor=record("k2"))
        assert kept.get("k1") == record(name="first", version=2)
        assert kept.get("k2") is None
        assert kept.changes(before.revision) == Changes(before.revision, frozenset())

    def test_a_swap_from_a_version_still_to_come_answers_false(self, kept: Kept) -> None:
        kept.add(record(version=1))
        assert kept.swap(record(version=2), record(version=3)) is False
        assert kept.get("k1") == record(version=1)

    def test_a_swap_of_an_unknown_key_answers_false_and_makes_none(self, kept: Kept) -> None:
        assert kept.swap(record(), changed(record())) is False
        assert kept.count() == 0

    def test_a_swap_of_a_purged_key_does_not_bring_it_back(self, kept: Kept) -> None:
        key = record(revoked_at=NOW - DAY)
        kept.add(key)
        kept.purge(NOW)
        assert kept.swap(key, changed(key, revoked_at=None)) is False
        assert kept.get("k1") is None

    def test_a_swap_with_a_successor_writes_both(self, kept: Kept) -> None:
        kept.add(record())
        old, successor = changed(record(), rotated_to="k2"), record("k2", rotated_from="k1")
        assert kept.swap(record(), old, successor=successor)
        assert (kept.get("k1"), kept.get("k2")) == (old, successor)

    def test_a_successor_comes_back_equal(self, kept: Kept) -> None:
        kept.add(record())
        kept.swap(record(), changed(record()), successor=record("k2", **FULL))
        assert kept.get("k2") == record("k2", **FULL)

    def test_a_duplicate_successor_means_neither(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2", name="there before"))
        before = revision_of(kept)
        with pytest.raises(DuplicateKey) as caught:
            kept.swap(record("k1"), changed(record("k1")), successor=record("k2"))
        assert caught.value.key_id == "k2"
        assert kept.get("k1") == record("k1")
        assert kept.get("k2") == record("k2", name="there before")
        assert kept.changes(before) == Changes(before, frozenset())

    def test_a_key_cannot_be_its_own_successor(self, kept: Kept) -> None:
        kept.add(record())
        with pytest.raises(DuplicateKey):
            kept.swap(record(), changed(record()), successor=record())
        assert kept.get("k1") == record()

    @pytest.mark.parametrize(
        "new",
        [
            pytest.param(record(version=5), id="the same version"),
            pytest.param(record(version=4), id="the version before"),
            pytest.param(record(version=7), id="the version after the next"),
            pytest.param(record("k2", version=6), id="another key"),
        ],
    )
    def test_a_swap_to_what_does_not_follow_is_a_value_error(self, kept: Kept, new: APIKey) -> None:
        kept.add(record(version=5))
        with pytest.raises(ValueError, match="does not follow"):
            kept.swap(record(version=5), new)
        assert everything(kept) == [record(version=5)]

    # revoke_all

    def test_revoking_an_owners_keys_gives_each_time_reason_and_next_version(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2", version=4))
        kept.revoke_all("User1", NOW, "gone")
        assert everything(kept) == [
            record("k1", revoked_at=NOW, revoked_reason="gone", version=2),
            record("k2", revoked_at=NOW, revoked_reason="gone", version=5),
        ]

    def test_revoking_an_owners_keys_leaves_everybody_elses(self, kept: Kept) -> None:
        others = [
            record(f"k{n}", owner=owner)
            for n, owner in enumerate(["User2", "user1", "User", "User11", "User%", " User1"])
        ]
        add_all(kept, *others)
        assert kept.revoke_all("User1", NOW, None) == 0
        assert everything(kept) == others

    def test_revoking_with_no_owner_revokes_everybodys_keys(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2", owner="User2"), record("k3", owner="User3"))
        assert kept.revoke_all(None, NOW, None) == 3
        assert [key.revoked_at for key in everything(kept)] == [NOW] * 3

    def test_revoking_all_tells_how_many_it_revoked(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2"), record("k3", owner="User2"))
        assert kept.revoke_all("User1", NOW, None) == 2
        assert kept.revoke_all("User1", NOW, None) == 0
        assert kept.revoke_all(None, NOW, None) == 1

    def test_what_was_revoked_before_keeps_its_time_reason_and_version(self, kept: Kept) -> None:
        earlier = record("k1", revoked_at=NOW - DAY, revoked_reason="leaked", version=2)
        add_all(kept, earlier, record("k2"))
        assert kept.revoke_all("User1", NOW, "gone") == 1
        assert kept.get("k1") == earlier

    def test_revoking_all_takes_disabled_expired_and_rotated_keys_too(self, kept: Kept) -> None:
        add_all(
            kept,
            record("k1", disabled=True),
            record("k2", expires_at=NOW - DAY),
            record("k3", grace_until=NOW - DAY, rotated_to="k4"),
        )
        assert kept.revoke_all("User1", NOW, None) == 3

    def test_revoking_all_changes_nothing_else_of_a_record(self, kept: Kept) -> None:
        full = record(**{**FULL, "revoked_at": None, "revoked_reason": None})
        kept.add(full)
        kept.revoke_all(None, NOW, None)
        assert kept.get("k1") == changed(full, revoked_at=NOW)

    def test_revoking_all_at_a_time_of_another_offset_keeps_the_moment(self, kept: Kept) -> None:
        kept.add(record())
        kept.revoke_all(None, NOW.astimezone(KATHMANDU), "späť")
        assert kept.get("k1") == record(revoked_at=NOW, revoked_reason="späť", version=2)

    def test_a_swap_decided_before_a_revocation_comes_too_late(self, kept: Kept) -> None:
        kept.add(record())
        kept.revoke_all("User1", NOW, None)
        assert kept.swap(record(), changed(record(), name="still alive")) is False

    # find and count

    def test_an_empty_store_lists_an_empty_page(self, kept: Kept) -> None:
        assert kept.find() == Page((), None)

    def test_records_are_listed_by_id(self, kept: Kept) -> None:
        ids = ["b", "B", "a1", "9", "a", "A", "a10", "aa", "0"]
        add_all(kept, *(record(key_id, created_at=NOW - n * DAY) for n, key_id in enumerate(ids)))
        assert [key.id for key in everything(kept)] == sorted(ids)

    def test_a_listing_may_be_of_one_owner(self, kept: Kept) -> None:
        owners = ["Ünï", "User1", "user1", "User", "User1 ", "%"]
        add_all(kept, *(record(f"k{n}", owner=owner) for n, owner in enumerate(owners)))
        for n, owner in enumerate(owners):
            assert everything(kept, owner=owner) == [record(f"k{n}", owner=owner)]

    def test_a_listing_of_an_unknown_owner_is_empty(self, kept: Kept) -> None:
        kept.add(record())
        assert kept.find(owner="nobody") == Page((), None)

    def test_a_listing_starts_behind_after(self, kept: Kept) -> None:
        add_all(kept, *map(record, "abcd"))
        assert [key.id for key in kept.find(after="b").items] == ["c", "d"]

    def test_after_need_not_be_the_id_of_a_record(self, kept: Kept) -> None:
        add_all(kept, *map(record, "abcd"))
        assert [key.id for key in kept.find(after="bb").items] == ["c", "d"]

    def test_a_page_has_at_most_limit_records(self, kept: Kept) -> None:
        add_all(kept, *map(record, "abcde"))
        assert [key.id for key in kept.find(limit=2).items] == ["a", "b"]

    def test_a_record_made_anew_is_not_the_one_that_was_read(self, kept: Kept) -> None:
        """After a purge a key of the same id starts again at version 1, with another secret."""
        read = record(revoked_at=NOW)
        kept.add(read)
        kept.purge(NOW + DAY)
        anew = replace(record(), digest="sha256$$" + "9" * 64)
        kept.add(anew)
        assert not kept.swap(read, changed(read, name="late"))
        assert kept.get("k1") == anew

    @pytest.mark.parametrize("after", ["\ud800", "a\0b"])
    def test_an_after_that_can_be_no_id_is_a_value_error(self, kept: Kept, after: str) -> None:
        with pytest.raises(ValueError, match="after"):
            kept.find(after=after)

    def test_a_limit_beyond_any_count_is_a_value_error(self, kept: Kept) -> None:
        with pytest.raises(ValueError, match="limit"):
            kept.find(limit=2**63)

    def test_a_naive_time_is_a_value_error(self, kept: Kept) -> None:
        kept.add(record())
        naive = datetime(2026, 1, 1)  # noqa: DTZ001
        for call in (
            partial(kept.revoke_all, None, naive, None),
            partial(kept.purge, naive),
            partial(kept.touch, {"k1": naive}),
            partial(kept.find, live_at=naive),
            partial(kept.count, live_at=naive),
        ):
            with pytest.raises(ValueError):  # noqa: PT011  # in whatever words
                call()
        assert kept.get("k1") == record()

    @pytest.mark.parametrize("limit", [0, -1, -2])
    def test_a_limit_under_one_is_a_value_error(self, kept: Kept, limit: int) -> None:
        kept.add(record())
        with pytest.raises(ValueError, match="limit"):
            kept.find(limit=limit)

    def test_a_page_has_a_hundred_records_unless_told(self, kept: Kept) -> None:
        add_all(kept, *(record(f"k{n:03}") for n in range(101)))
        page = kept.find()
        assert (len(page.items), page.next) == (100, "k099")

    def test_next_is_the_after_of_the_following_page(self, kept: Kept) -> None:
        add_all(kept, *map(record, "abc"))
        first = kept.find(limit=2)
        second = kept.find(limit=2, after=first.next)
        assert [key.id for key in first.items + second.items] == ["a", "b", "c"]

    @pytest.mark.parametrize("limit", [3, 4])
    def test_the_last_page_has_no_next(self, kept: Kept, limit: int) -> None:
        add_all(kept, *map(record, "abc"))
        assert kept.find(limit=limit).next is None

    def test_pages_of_an_owner_cross_those_of_others(self, kept: Kept) -> None:
        add_all(kept, *(record(f"k{n}", owner=f"User{n % 2}") for n in range(8)))
        found = everything(kept, owner="User0", limit=1)
        assert [key.id for key in found] == ["k0", "k2", "k4", "k6"]

    def test_pages_of_live_records_leave_no_gap_where_dead_ones_are(self, kept: Kept) -> None:
        add_all(kept, *(record(f"k{n}", disabled=n in (1, 2, 3, 6)) for n in range(8)))
        first = kept.find(live_at=NOW, limit=2)
        assert [key.id for key in first.items] == ["k0", "k4"]
        assert [key.id for key in everything(kept, live_at=NOW, limit=2)] == ["k0", "k4", "k5", "k7"]

    def test_pages_neither_skip_nor_repeat_what_was_there_all_along(self, kept: Kept) -> None:
        lasting = [record(f"k{n}0") for n in range(10)]
        dead = [record(f"k{n}1", expires_at=NOW - DAY) for n in range(10)]
        add_all(kept, *lasting, *dead)
        seen: list[str] = []
        after: str | None = None
        for step in range(100):
            page = kept.find(after=after, limit=3)
            seen.extend(key.id for key in page.items)
            if (after := page.next) is None:
                break
            add_all(kept, record(f"a{step}"), record(f"{after}!"), record(f"z{step}"))
            kept.purge(NOW)
            kept.revoke_all(None, NOW, None)
        assert len(seen) == len(set(seen))
        assert [key_id for key_id in seen if key_id in {key.id for key in lasting}] == [
            key.id for key in lasting
        ]

    def test_a_page_may_follow_a_record_that_is_gone(self, kept: Kept) -> None:
        add_all(kept, record("a"), record("b", expires_at=NOW - DAY), record("c"))
        page = kept.find(limit=2)
        assert page.next == "b"
        kept.purge(NOW)
        assert [key.id for key in kept.find(after="b").items] == ["c"]

    @pytest.mark.parametrize(("given", "live"), pairs(LIVE_AT_NOW))
    def test_live_at_leaves_out_what_is_dead_at_that_time(
        self, kept: Kept, given: Mapping[str, Any], live: bool
    ) -> None:
        key = record(**given)
        assert (state(key, NOW) is None) is live
        kept.add(key)
        assert kept.find(live_at=NOW).items == ((key,) if live else ())

    @pytest.mark.parametrize(("given", "live"), pairs(LIVE_AT_NOW))
    def test_live_at_is_a_moment_in_whatever_offset(
        self, kept: Kept, given: Mapping[str, Any], live: bool
    ) -> None:
        kept.add(record(**given))
        assert kept.count(live_at=NOW.astimezone(KATHMANDU)) == live

    def test_without_live_at_dead_records_are_listed_too(self, kept: Kept) -> None:
        keys = [record(f"k{n:02}", **given) for n, (given, _) in enumerate(LIVE_AT_NOW.values())]
        add_all(kept, *keys)
        assert everything(kept) == keys

    @pytest.mark.parametrize("owner", [None, "User0", "nobody"])
    @pytest.mark.parametrize("live_at", [None, NOW])
    def test_count_tells_how_many_find_lists_on_all_its_pages(
        self, kept: Kept, owner: str | None, live_at: datetime | None
    ) -> None:
        given = [fields for fields, _ in LIVE_AT_NOW.values()] * 2
        add_all(kept, *(record(f"k{n}", **{**given[n], "owner": f"User{n % 3}"}) for n in range(len(given))))
        found = everything(kept, owner=owner, live_at=live_at, limit=2)
        assert kept.count(owner=owner, live_at=live_at) == len(found)
        assert bool(found) is (owner != "nobody")

    # purge

    @pytest.mark.parametrize(("given", "dead"), pairs(DEAD_BEFORE_NOW))
    def test_a_purge_deletes_what_was_dead_before_a_time(
        self, kept: Kept, given: Mapping[str, Any], dead: bool
    ) -> None:
        key = record(**given)
        kept.add(key)
        assert kept.purge(NOW) == dead
        assert kept.get("k1") == (None if dead else key)

    def test_a_purge_tells_how_many_it_deleted(self, kept: Kept) -> None:
        for n, (given, _) in enumerate(DEAD_BEFORE_NOW.values()):
            kept.add(record(f"k{n}", **given))
        assert kept.purge(NOW.astimezone(KATHMANDU)) == 3
        assert kept.purge(NOW) == 0

    def test_the_id_of_a_purged_record_is_free_again(self, kept: Kept) -> None:
        kept.add(record(name="old", revoked_at=NOW - DAY))
        kept.purge(NOW)
        kept.add(record(name="new"))
        assert kept.get("k1") == record(name="new")

    # touch

    def test_a_touch_notes_when_keys_were_used(self, kept: Kept) -> None:
        add_all(kept, *map(record, "abc"))
        kept.touch({"c": NOW, "a": NOW - DAY})
        assert everything(kept) == [
            record("a", last_used_at=NOW - DAY),
            record("b"),
            record("c", last_used_at=NOW),
        ]

    @pytest.mark.parametrize("step", [MOMENT, timedelta(0), -MOMENT, -DAY])
    def test_a_touch_goes_forward_only(self, kept: Kept, step: timedelta) -> None:
        kept.add(record(last_used_at=NOW))
        kept.touch({"k1": NOW + step})
        assert kept.get("k1") == record(last_used_at=max(NOW, NOW + step))

    def test_a_touch_compares_moments_whatever_the_offset(self, kept: Kept) -> None:
        kept.add(record(last_used_at=NOW))
        earlier, later = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
        kept.touch({"k1": earlier.astimezone(KATHMANDU)})  # to the eye, hours later
        assert kept.get("k1") == record(last_used_at=NOW)
        kept.touch({"k1": later.astimezone(timezone(-timedelta(hours=11)))})
        assert kept.get("k1") == record(last_used_at=later)

    @pytest.mark.parametrize("key_id", cases(STRANGE_IDS))
    def test_a_touch_of_an_unknown_id_makes_no_record(self, kept: Kept, key_id: str) -> None:
        kept.add(record())
        kept.touch({key_id: NOW, "k1": NOW})
        assert everything(kept) == [record(last_used_at=NOW)]

    def test_a_touch_does_not_bring_a_purged_key_back(self, kept: Kept) -> None:
        kept.add(record(expires_at=NOW - DAY))
        assert kept.get("k1") == record(expires_at=NOW - DAY)
        kept.purge(NOW)
        kept.touch({"k1": NOW})
        assert everything(kept) == []

    def test_a_touch_of_nothing_does_nothing(self, kept: Kept) -> None:
        kept.add(record())
        kept.touch({})
        assert kept.get("k1") == record()

    def test_a_touch_leaves_the_version_so_that_a_change_is_not_too_late(self, kept: Kept) -> None:
        kept.add(record())
        kept.touch({"k1": NOW})
        assert kept.swap(record(), changed(record(), revoked_at=NOW))

    def test_a_touch_does_not_bring_a_revoked_key_back(self, kept: Kept) -> None:
        kept.add(record())
        assert kept.get("k1") == record()  # which nobody may keep, and write back
        kept.revoke_all(None, NOW, None)
        kept.touch({"k1": NOW + DAY})
        assert kept.get("k1") == record(revoked_at=NOW, last_used_at=NOW + DAY, version=2)

    def test_many_keys_can_be_touched_at_once(self, kept: Kept) -> None:
        add_all(kept, record("k0"), record("k1999"))
        kept.touch({f"k{n}": NOW for n in range(2000)})
        assert [key.last_used_at for key in everything(kept)] == [NOW, NOW]

    # changes: the revision

    def test_the_revision_stands_still_while_nothing_changes(self, kept: Kept) -> None:
        kept.add(record())
        before = kept.changes(None)
        kept.get("k1")
        kept.find()
        kept.count()
        assert kept.changes(None) == before

    def test_add_and_touch_do_not_move_the_revision(self, kept: Kept) -> None:
        before = revision_of(kept)
        kept.add(record())
        kept.touch({"k1": NOW})
        assert kept.changes(before) == Changes(before, frozenset())

    def test_a_failed_add_does_not_move_the_revision(self, kept: Kept) -> None:
        kept.add(record())
        before = revision_of(kept)
        with pytest.raises(DuplicateKey):
            kept.add(record())
        assert revision_of(kept) == before

    def test_swap_revoke_all_and_purge_each_move_the_revision_by_one(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2"), record("k3", expires_at=NOW - DAY))
        start = revision_of(kept)
        kept.swap(record("k1"), changed(record("k1")))
        after_swap = revision_of(kept)
        kept.swap(record("k2"), changed(record("k2")), successor=record("k4"))
        after_rotation = revision_of(kept)
        kept.revoke_all(None, NOW, None)
        after_revocation = revision_of(kept)
        kept.purge(NOW)
        after_purge = revision_of(kept)
        steps = (after_swap, after_rotation, after_revocation, after_purge)
        assert steps == tuple(replace(start, number=start.number + n) for n in (1, 2, 3, 4))

    def test_a_revocation_and_a_purge_that_find_nothing_move_the_revision_too(self, kept: Kept) -> None:
        start = revision_of(kept)
        kept.revoke_all("nobody", NOW, None)
        kept.purge(NOW)
        assert revision_of(kept) == replace(start, number=start.number + 2)

    # changes: the ids

    def test_a_swap_is_named(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2"))
        before = revision_of(kept)
        kept.swap(record("k1"), changed(record("k1")))
        assert named(kept, before) == {"k1"}

    def test_of_a_rotation_the_old_key_is_named_and_its_successor_is_not(self, kept: Kept) -> None:
        kept.add(record("k1"))
        before = revision_of(kept)
        kept.swap(record("k1"), changed(record("k1")), successor=record("k2"))
        assert named(kept, before) == {"k1"}

    def test_a_successor_is_named_once_it_is_changed_itself(self, kept: Kept) -> None:
        kept.add(record("k1"))
        kept.swap(record("k1"), changed(record("k1")), successor=record("k2"))
        before = revision_of(kept)
        kept.swap(record("k2"), changed(record("k2")))
        assert named(kept, before) == {"k2"}

    def test_revoking_all_names_what_it_revoked_and_nothing_else(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2"), record("k3", revoked_at=NOW), record("k4", owner="User2"))
        before = revision_of(kept)
        kept.revoke_all("User1", NOW, None)
        assert named(kept, before) == {"k1", "k2"}

    def test_what_changed_up_to_since_is_not_named(self, kept: Kept) -> None:
        add_all(kept, *map(record, "abc"))
        revisions = []
        for key_id in "abc":
            revisions.append(revision_of(kept))
            kept.swap(record(key_id), changed(record(key_id)))
        told = [named(kept, since) for since in revisions]
        assert told == [{"a", "b", "c"}, {"b", "c"}, {"c"}]

    def test_a_key_changed_twice_is_named_since_before_either(self, kept: Kept) -> None:
        kept.add(record(version=1))
        first = revision_of(kept)
        kept.swap(record(version=1), record(version=2))
        second = revision_of(kept)
        kept.swap(record(version=2), record(version=3))
        last = revision_of(kept)
        told = [named(kept, since) for since in (first, second, last)]
        assert told == [{"k1"}, {"k1"}, set()]

    def test_changes_answers_the_revision_up_to_which_it_names_keys(self, kept: Kept) -> None:
        kept.add(record())
        before = revision_of(kept)
        kept.swap(record(), changed(record()))
        assert kept.changes(before) == Changes(replace(before, number=before.number + 1), frozenset({"k1"}))

    # changes: where it cannot be told

    def test_since_none_may_be_any_key(self, kept: Kept) -> None:
        assert kept.changes(None).ids is None
        kept.add(record())
        kept.swap(record(), changed(record()))
        assert kept.changes(None).ids is None

    @pytest.mark.parametrize("epoch", ["", "another", "0" * 32])
    def test_since_a_revision_of_another_epoch_may_be_any_key(self, kept: Kept, epoch: str) -> None:
        now = revision_of(kept)
        assert kept.changes(replace(now, epoch=epoch)) == Changes(now, None)

    @pytest.mark.parametrize("ahead", [1, 2, 1_000_000])
    def test_since_a_revision_ahead_of_the_store_may_be_any_key(self, kept: Kept, ahead: int) -> None:
        now = revision_of(kept)
        assert kept.changes(replace(now, number=now.number + ahead)) == Changes(now, None)

    def test_since_a_revision_before_a_purge_may_be_any_key(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2", expires_at=NOW - DAY))
        first = revision_of(kept)
        kept.swap(record("k1"), changed(record("k1")))
        second = revision_of(kept)
        kept.purge(NOW)
        assert kept.changes(first).ids is None
        assert kept.changes(second).ids is None

    def test_since_a_purge_keys_are_named_again(self, kept: Kept) -> None:
        add_all(kept, record("k1"), record("k2", expires_at=NOW - DAY), record("k3"))
        kept.swap(record("k3"), changed(record("k3")))
        kept.purge(NOW)
        purged = revision_of(kept)
        assert named(kept, purged) == set()
        kept.swap(record("k1"), changed(record("k1")))
        assert named(kept, purged) == {"k1"}

    def test_a_thousand_ids_are_named_and_one_more_may_be_any_key(self, kept: Kept) -> None:
        self.add_many(kept, [record(f"k{n}") for n in range(1000)])
        kept.add(record("other", owner="User2"))
        before = revision_of(kept)
        kept.revoke_all("User1", NOW, None)
        between = kept.changes(before)
        assert between.ids == frozenset(f"k{n}" for n in range(1000))
        kept.revoke_all("User2", NOW, None)
        assert kept.changes(before).ids is None
        assert named(kept, between.revision) == {"other"}
