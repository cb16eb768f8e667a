"""What a store promises when many callers come at once: threads to a blocking store, tasks to an async one."""

# ruff: noqa: S101  # assertions are what this is for

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import count
from threading import Event
from time import monotonic
from typing import ClassVar, TypeVar

from ..decisions import changed
from ..errors import DuplicateKey
from ..keys import APIKey
from ..manage import KeyManager
from ..stores.protocol import Changes
from .drive import PATIENCE, Kept, Threads
from .records import DAY, MOMENT, NOW, add_all, everything, record, revision_of
from .sentences import KeyStoreSentences

T = TypeVar("T")

CROWD = 8


class KeyStoreRaces(KeyStoreSentences):
    """Many callers, let go at the same moment."""

    many: ClassVar[int] = 10_000
    """How many records the store has while its pages are turned."""

    # swap

    def test_of_swaps_at_once_exactly_one_wins(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            key = record(f"k{n}")
            kept.add(key)
            attempts = [changed(key, name=f"attempt {attempt}") for attempt in range(CROWD)]
            won = threads.at_once(*(partial(kept.swap, key, new) for new in attempts))
            assert won.count(True) == 1
            assert kept.get(key.id) == attempts[won.index(True)]

    def test_increments_by_swap_are_never_lost(self, kept: Kept, threads: Threads) -> None:
        kept.add(record(version=1))

        def increment_once() -> bool:
            key = kept.get("k1")
            assert key is not None
            return kept.swap(key, changed(key, name=f"{int(key.name or 0) + 1}"))

        def increment() -> None:
            for _ in range(self.rounds):
                until(increment_once, bool)

        threads.at_once(*[increment] * 4)
        total = 4 * self.rounds
        assert kept.get("k1") == record(name=f"{total}", version=1 + total)

    def test_of_rotations_at_once_one_successor_is_made(self, kept: Kept, threads: Threads) -> None:
        kept.add(record())
        rotations = [
            partial(kept.swap, record(), changed(record()), successor=record(f"s{n}")) for n in range(CROWD)
        ]
        won = threads.at_once(*rotations)
        assert [key.id for key in everything(kept)] == ["k1", f"s{won.index(True)}"]

    def test_of_rotations_to_one_successor_at_once_one_is_made(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            old, successor = [record(f"k{n}"), record(f"l{n}")], record(f"s{n}")
            add_all(kept, *old)
            rotations = [partial(kept.swap, key, changed(key), successor=successor) for key in old]
            outcomes = threads.at_once(*(partial(unless_duplicate, rotation) for rotation in rotations))
            assert sorted(outcomes) == [False, True]
            now = [changed(key) if won else key for key, won in zip(old, outcomes, strict=True)]
            assert [kept.get(key.id) for key in (*old, successor)] == [*now, successor]

    def test_nobody_sees_half_of_a_rotation(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            old, successor = record(f"k{n}"), record(f"s{n}")
            kept.add(old)
            rotated = changed(old, rotated_to=successor.id)

            def watch(old: APIKey = old, successor: APIKey = successor) -> bool:
                until(partial(kept.get, old.id), lambda key: key != old)
                return kept.get(successor.id) == successor

            rotate = partial(kept.swap, old, rotated, successor=successor)
            assert threads.at_once(watch, rotate) == [True, True]

    # add

    def test_of_adds_of_one_id_at_once_one_is_kept(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            keys = [record(f"k{n}", name=f"attempt {attempt}") for attempt in range(CROWD)]
            added = threads.at_once(*(partial(unless_duplicate, partial(kept.add, key)) for key in keys))
            assert added.count(True) == 1
            assert kept.get(f"k{n}") == keys[added.index(True)]

    def test_ensure_makes_one_key_however_many_ask_at_once(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            ensure = partial(KeyManager(kept).ensure, "Admin", name=f"first {n}")
            (issued,) = filter(None, threads.at_once(*[ensure] * CROWD))
            assert kept.get(issued.key.id) == issued.key

    # touch

    def test_a_revocation_stays_while_others_touch_the_key(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            key = record(f"k{n}")
            kept.add(key)
            used = [partial(kept.touch, {key.id: NOW + m * MOMENT}) for m in range(4)]
            threads.at_once(partial(kept.swap, key, changed(key, revoked_at=NOW)), *used)
            assert kept.get(key.id) == record(
                key.id, revoked_at=NOW, last_used_at=NOW + 3 * MOMENT, version=2
            )

    def test_a_revocation_of_all_stays_while_others_touch_the_keys(
        self, kept: Kept, threads: Threads
    ) -> None:
        for n in range(self.rounds):
            ids = [f"k{n}-{m}" for m in range(4)]
            add_all(kept, *(record(key_id, owner=f"User{n}") for key_id in ids))
            used = [partial(kept.touch, dict.fromkeys(ids, NOW + m * MOMENT)) for m in range(4)]
            threads.at_once(partial(kept.revoke_all, f"User{n}", NOW, None), *used)
            now = {"revoked_at": NOW, "last_used_at": NOW + 3 * MOMENT, "version": 2}
            assert everything(kept, owner=f"User{n}") == [
                record(key_id, owner=f"User{n}", **now) for key_id in ids
            ]

    def test_touches_in_any_order_leave_the_latest(self, kept: Kept, threads: Threads) -> None:
        ids = [f"k{n}" for n in range(20)]
        add_all(kept, *map(record, ids))
        orders = [ids, ids[::-1], ids[10:] + ids[:10], ids[::3] + ids[1::3] + ids[2::3]]
        for n in range(self.rounds):
            latest = NOW + (4 * n + 3) * MOMENT
            used = [dict.fromkeys(order, latest - m * MOMENT) for m, order in enumerate(orders)]
            threads.at_once(*(partial(kept.touch, times) for times in used))
            assert {key.last_used_at for key in kept.find().items} == {latest}

    # revoke_all

    def test_whoever_sees_the_revision_of_a_revocation_sees_all_of_it(
        self, kept: Kept, threads: Threads
    ) -> None:
        ids = {f"k{n}" for n in range(200)}
        add_all(kept, *map(record, ids))
        start = revision_of(kept)

        def watch() -> tuple[Changes, set[str]]:
            changes = until(partial(kept.changes, start), lambda changes: changes.revision != start)
            return changes, {key.id for key in kept.find(live_at=NOW, limit=1000).items}

        seen = threads.at_once(watch, watch, partial(kept.revoke_all, None, NOW, "all"))[:2]
        assert seen == [(Changes(replace(start, number=start.number + 1), frozenset(ids)), set())] * 2

    def test_a_revocation_takes_all_that_was_added_before_it_and_each_key_once(
        self, kept: Kept, threads: Threads
    ) -> None:
        def add_and_revoke(name: str) -> tuple[str, int]:
            add_all(kept, *(record(f"{name}{n}") for n in range(self.rounds)))
            return name, kept.revoke_all(None, NOW, name)

        told = dict(threads.at_once(*(partial(add_and_revoke, name) for name in "abcd")))
        keys = everything(kept)
        assert {(key.revoked_at, key.version) for key in keys} == {(NOW, 2)}
        assert Counter(key.revoked_reason for key in keys) == Counter(told)

    def test_a_change_and_a_revocation_at_once_leave_the_key_revoked(
        self, kept: Kept, threads: Threads
    ) -> None:
        for n in range(self.rounds):
            key = record(f"k{n}", owner=f"User{n}")
            kept.add(key)
            renaming = partial(kept.swap, key, changed(key, name="new"))
            won, told = threads.at_once(renaming, partial(kept.revoke_all, key.owner, NOW, "all"))
            assert told == 1
            last = changed(key, name="new") if won else key
            assert kept.get(key.id) == changed(last, revoked_at=NOW, revoked_reason="all")

    # purge

    def test_a_key_is_either_purged_or_brought_back_in_time(self, kept: Kept, threads: Threads) -> None:
        for n in range(self.rounds):
            key = record(f"k{n}", expires_at=NOW - DAY)
            kept.add(key)
            alive = changed(key, expires_at=None)
            won, told = threads.at_once(partial(kept.swap, key, alive), partial(kept.purge, NOW))
            assert (won, told) in ((True, 0), (False, 1))
            assert kept.get(key.id) == (alive if won else None)

    def test_of_purges_at_once_each_record_is_counted_by_one(self, kept: Kept, threads: Threads) -> None:
        add_all(kept, *(record(f"k{n}", expires_at=NOW - DAY) for n in range(self.rounds)))
        assert sum(threads.at_once(*[partial(kept.purge, NOW)] * 4)) == self.rounds
        assert kept.count() == 0

    # changes

    def test_whoever_follows_the_revisions_misses_no_change(self, kept: Kept, threads: Threads) -> None:
        ids = [[f"k{thread}-{n}" for n in range(self.rounds)] for thread in range(3)]
        add_all(kept, *(record(key_id) for own in ids for key_id in own))
        start = revision_of(kept)

        def change(own: list[str]) -> None:
            for key_id in own:
                assert kept.swap(record(key_id), changed(record(key_id)))

        def follow(done: Event) -> set[str]:
            since, named, last = start, set[str](), False
            while not last:
                last = done.is_set()
                changes = kept.changes(since)
                assert changes.ids is not None
                named.update(changes.ids)
                since = changes.revision
            return named

        named = threads.watched(follow, *(partial(change, own) for own in ids))
        assert named == {key_id for own in ids for key_id in own}

    def test_whoever_follows_the_revisions_keeps_nothing_that_is_gone_or_was_changed(
        self, kept: Kept, threads: Threads
    ) -> None:
        going = [record(f"g{n}") for n in range(self.rounds)]
        staying = [record(f"s{n}") for n in range(3 * self.rounds)]
        add_all(kept, *going, *staying)

        def purge() -> None:
            for key in going:
                assert kept.swap(key, changed(key, revoked_at=NOW - DAY))
                kept.purge(NOW)

        def rename() -> None:
            for key in staying:
                assert kept.swap(key, changed(key, name="new"))

        def follow(done: Event) -> dict[str, APIKey]:
            """Do as a cache does: first drop what may have changed, then read what is not there."""
            cache, since = dict[str, APIKey](), revision_of(kept)
            while True:
                last = done.is_set()
                changes = kept.changes(since)
                for key_id in list(cache) if changes.ids is None else changes.ids:
                    cache.pop(key_id, None)
                if last:
                    return cache
                since = changes.revision
                for key in (*going, *staying):
                    if key.id not in cache and (read := kept.get(key.id)) is not None:
                        cache[key.id] = read

        cache = threads.watched(follow, purge, rename)
        assert cache == {key_id: kept.get(key_id) for key_id in cache}

    # find

    def test_pages_neither_skip_nor_repeat_while_others_write(self, kept: Kept, threads: Threads) -> None:
        lasting = [f"k{n:06}" for n in range(self.many)]
        self.add_many(kept, [record(key_id) for key_id in lasting])
        limit = self.many // 12 + 7
        walked, stopped = Event(), Event()
        last = 0

        def write() -> None:
            nonlocal last
            try:
                for n in count(1):
                    dead = [f"a{n}", f"{lasting[n * 7919 % self.many]}-{n}"]
                    add_all(kept, *(record(key_id, expires_at=NOW - DAY) for key_id in dead))
                    kept.count()  # takes its time, so that pages are turned while they are there
                    kept.purge(NOW)
                    last = n
                    if walked.is_set():
                        return
            finally:
                stopped.set()

        def has_written(before: int) -> bool:
            return stopped.is_set() or last > before

        def walk(live_at: datetime | None) -> list[str]:
            """Turn the pages, each after something was written."""
            page = kept.find(limit=limit, live_at=live_at)
            keys = [*page.items]
            while page.next is not None:
                until(partial(has_written, last), bool)
                page = kept.find(after=page.next, limit=limit, live_at=live_at)
                keys += page.items
            return [key.id for key in keys]

        def walk_twice() -> tuple[list[str], list[str]]:
            try:
                return walk(None), walk(NOW)
            finally:
                walked.set()

        seen = threads.at_once(walk_twice, write)[0]
        assert seen is not None
        every, live = seen
        assert [key_id for key_id in every if len(key_id) == 7] == lasting
        assert len(set(every)) == len(every)
        assert live == lasting


def unless_duplicate(call: Callable[[], object]) -> bool:
    """Make a call; False if its key was a duplicate, else whether it did not answer False itself."""
    try:
        return call() is not False
    except DuplicateKey:
        return False


def until(ask: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Ask again and again, as fast as it goes, until the answer is what is waited for."""
    deadline = monotonic() + PATIENCE
    while not wanted(answer := ask()):
        assert monotonic() < deadline, f"still {answer}"
    return answer
