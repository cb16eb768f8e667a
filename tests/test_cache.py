"""The cache as a data structure: what it keeps, for how long, and what it drops. The clock stands still."""

import hashlib
import itertools
import pickle
import random
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event, Thread
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from forks import in_child

from apikey_auth import ConfigurationError, InvalidKey
from apikey_auth import cache as cache_module
from apikey_auth.cache import Fence, UserCache, Verdict, VerdictCache, mark_of
from apikey_auth.keys import MAX_TEXT, APIKey
from apikey_auth.stores.protocol import Changes, Revision

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATIENCE = 60  # seconds, for what should take no time


class Ticks:
    """A monotonic clock that stands until it is moved; its times are exact in binary."""

    def __init__(self) -> None:
        self.now = 1024.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


Maker = Callable[..., VerdictCache]


@pytest.fixture
def make(ticks: Ticks) -> Maker:
    """Make a cache that was polled just now, unless it follows nothing."""

    def new(*, polled: bool = True, follows: bool = True, **options: Any) -> VerdictCache:
        usual = {"size": 8, "max_staleness": 1.0, "max_age": 300.0, "stale_if_error": 0.0}
        cache = VerdictCache(**{**usual, **options}, follows=follows, monotonic=ticks)
        if polled and follows:
            poll(cache, 1, None)
        return cache

    return new


def record(key_id: str, **fields: Any) -> APIKey:
    return APIKey(**{"id": key_id, "owner": "u1", "digest": "d", "created_at": NOW, **fields})


def fill(cache: VerdictCache, text: str, key: APIKey | None = None, *, good: bool = True) -> Verdict:
    """Read a key and keep what was found, as an authenticator does; its id is its text unless it is given."""
    fence = cache.fence()
    return keep(cache, text, key or record(text), fence, good=good)


def keep(
    cache: VerdictCache,
    text: str,
    key: APIKey | None,
    fence: Fence,
    *,
    good: bool = True,
    matches: bool = True,
) -> Verdict:
    verdict = cache.verdict(key.id if key else text, key, matches, fence)
    cache.keep(mark_of(text), verdict, fence, good=good)
    return verdict


def poll(
    cache: VerdictCache,
    number: int,
    ids: "frozenset[str] | set[str] | None" = frozenset(),
    *,
    epoch: str = "e",
    started: float | None = None,
) -> None:
    answer = None if ids is None else frozenset(ids)
    cache.polled(Changes(Revision(epoch, number), answer), cache.now() if started is None else started)


def found(cache: VerdictCache, *texts: str) -> list[str]:
    """List which of some texts have a verdict, without asking for their place in the order."""
    kept = cache._good.keys() | cache._others.keys()
    return [text for text in texts if mark_of(text) in kept]


# How verdicts are found


def test_a_verdict_is_found_by_the_sha256_of_the_text_and_the_text_is_nowhere(make: Maker) -> None:
    cache, text = make(), "acme_a_text_that_nobody_may_find"
    verdict = fill(cache, text, record("k"))
    assert mark_of(text) == hashlib.sha256(text.encode()).digest()
    assert cache.fresh(mark_of(text)) is verdict
    assert cache.find(mark_of(text)) is verdict
    assert text.encode() not in pickle.dumps([dict(cache._good), dict(cache._others), cache._marks])


def test_another_text_finds_nothing(make: Maker) -> None:
    cache = make()
    fill(cache, "abc")
    for text in ("abd", "ABC", "abc ", ""):
        assert cache.fresh(mark_of(text)) is None
        assert cache.find(mark_of(text)) is None


def test_what_is_too_long_to_be_a_key_is_refused_before_it_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mark_of("x" * MAX_TEXT)
    monkeypatch.setattr("apikey_auth.cache.hashlib", SimpleNamespace())
    with pytest.raises(InvalidKey):
        mark_of("x" * (MAX_TEXT + 1))


def test_a_mark_is_made_of_text_alone_whatever_its_characters() -> None:
    assert mark_of("\ud800") != mark_of("\ud801")
    wrong: Any
    for wrong in (b"abc", None, 5):
        with pytest.raises(TypeError, match="a key is text, not"):
            mark_of(wrong)


# Bounds


def test_the_least_recently_used_verdict_goes_first(make: Maker) -> None:
    cache = make(size=3)
    for text in "abc":
        fill(cache, text)
    assert cache.fresh(mark_of("a"))
    assert cache.find(mark_of("b"))
    for text in "de":
        fill(cache, text)
    assert found(cache, *"abcde") == ["b", "d", "e"]
    assert len(cache) == 3


def test_a_verdict_that_is_read_anew_is_the_most_recent(make: Maker) -> None:
    cache = make(size=2)
    for text in "abac":
        fill(cache, text)
    assert found(cache, *"abc") == ["a", "c"]


def test_other_verdicts_have_a_bound_of_an_eighth_and_an_order_of_their_own(make: Maker) -> None:
    cache = make(size=17)
    for text in "abc":
        fill(cache, text, good=False)
    assert cache.find(mark_of("a"))
    fill(cache, "d", good=False)
    assert found(cache, *"abcd") == ["a", "c", "d"]
    single = make(size=1)
    for text in "ab":
        fill(single, text, good=False)
    assert found(single, *"ab") == ["b"]


def test_a_flood_of_bad_keys_pushes_out_no_good_one(make: Maker) -> None:
    cache = make(size=800)
    good = [f"good{n}" for n in range(800)]
    for text in good:
        fill(cache, text)
    fence, refused = cache.fence(), record("refused", disabled=True)
    for n in range(100_000):
        key = refused if n % 2 else None
        keep(cache, f"bad{n}", key, fence, good=False, matches=False)
    assert all(cache.fresh(mark_of(text)) for text in good)
    assert len(cache) == 900
    assert len(cache._marks) <= 900


def test_a_bad_key_is_never_found_fresh_so_that_it_never_takes_the_way_of_the_good(make: Maker) -> None:
    cache = make()
    verdict = fill(cache, "a", record("a", disabled=True), good=False)
    assert cache.fresh(mark_of("a")) is None
    assert cache.find(mark_of("a")) is verdict


def test_a_text_has_one_verdict_the_last(make: Maker) -> None:
    cache = make()
    for good in (True, False, True, False):
        verdict = fill(cache, "a", record("a", disabled=not good), good=good)
        assert cache.find(mark_of("a")) is verdict
        assert (cache.fresh(mark_of("a")) is verdict) == good
        assert len(cache) == 1


@pytest.mark.parametrize("options", [{"size": 0}, {"max_staleness": 0}, {"max_age": 0}], ids=str)
def test_where_nothing_may_be_kept_nothing_is_and_nobody_polls_for_it(
    make: Maker, options: dict[str, float]
) -> None:
    cache = make(**options, polled=False)
    assert not cache.needs_poll()
    poll(cache, 1, None)
    for good in (True, False):
        fill(cache, "a", good=good)
        assert len(cache) == 0
        assert cache.fresh(mark_of("a")) is None
        assert cache.find(mark_of("a")) is None


def test_a_verdict_takes_less_than_a_kibibyte_beside_its_record(make: Maker) -> None:
    cache, key = make(size=10_000), record("k")
    marks = [(hashlib.sha256(b"%d" % n).digest(), f"id{n:010}") for n in range(10_000)]
    fence = cache.fence()
    tracemalloc.start()
    try:
        for mark, key_id in marks:
            verdict = Verdict(key_id, key, True, fence.at + 300)
            cache.keep(mark, verdict, fence, good=True)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache) == 10_000
    assert (size / 10_000) + sys.getsizeof(marks[0][0]) + sys.getsizeof(marks[0][1]) < 1024


# The fence

Happening = Callable[[VerdictCache], object]

EVENTS: dict[str, Happening] = {
    "a newer revision": lambda cache: poll(cache, 2),
    "a newer revision of any key": lambda cache: poll(cache, 2, None),
    "another epoch": lambda cache: poll(cache, 1, None, epoch="f"),
    "an eviction": lambda cache: cache.evict(["k"]),
    "an eviction of another key": lambda cache: cache.evict(["another"]),
    "an eviction of nothing": lambda cache: cache.evict([]),
    "an eviction of an owner": lambda cache: cache.evict_owner("u1"),
    "an eviction of all": lambda cache: cache.evict_all(),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("good", [True, False])
def test_what_was_read_before_something_happened_is_not_kept(
    make: Maker, event: Happening, good: bool
) -> None:
    cache = make()
    fence = cache.fence()
    event(cache)
    keep(cache, "k", record("k"), fence, good=good)
    assert found(cache, "k") == []
    fill(cache, "k", good=good)
    assert found(cache, "k") == ["k"]


def test_what_was_read_while_a_poll_found_nothing_new_is_kept(make: Maker) -> None:
    cache = make()
    fence = cache.fence()
    poll(cache, 1)
    verdict = keep(cache, "k", record("k"), fence)
    assert cache.fresh(mark_of("k")) is verdict


def nothing() -> None:
    pass


class Intruder:
    """A lock before or behind whose first holding somebody else gets in."""

    def __init__(
        self, lock: Any, *, before: Callable[[], object] = nothing, behind: Callable[[], object] = nothing
    ) -> None:
        self._lock, self._before, self._behind = lock, before, behind

    def __enter__(self) -> None:
        intrude, self._before = self._before, nothing
        intrude()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        intrude, self._behind = self._behind, nothing
        intrude()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_the_fence_is_looked_at_under_the_lock(make: Maker, event: Happening) -> None:
    cache = make()
    fence = cache.fence()
    cache._lock = Intruder(cache._lock, before=lambda: event(cache))  # type: ignore[assignment]
    keep(cache, "k", record("k"), fence)
    assert found(cache, "k") == []


DROPPING: dict[str, Happening] = {
    "a change": lambda cache: poll(cache, 2, {"k"}),
    "any change": lambda cache: poll(cache, 2, None),
    "an eviction": lambda cache: cache.evict(["k"]),
    "an eviction of an owner": lambda cache: cache.evict_owner("u1"),
    "an eviction of all": lambda cache: cache.evict_all(),
}


@pytest.mark.parametrize("event", DROPPING.values(), ids=DROPPING)
@pytest.mark.parametrize("good", [True, False])
def test_a_verdict_is_put_in_under_the_lock_under_which_the_fence_was_looked_at(
    make: Maker, event: Happening, good: bool
) -> None:
    cache = make()
    fence = cache.fence()
    cache._lock = Intruder(cache._lock, behind=lambda: event(cache))  # type: ignore[assignment]
    keep(cache, "k", record("k"), fence, good=good)
    assert found(cache, "k") == []


@pytest.mark.parametrize("event", DROPPING.values(), ids=DROPPING)
def test_what_dropped_something_keeps_out_what_was_read_before(make: Maker, event: Happening) -> None:
    cache = make()
    fill(cache, "k")
    fence = cache.fence()
    event(cache)
    keep(cache, "k", record("k"), fence)
    assert found(cache, "k") == []


# Polls


def test_nothing_is_kept_before_the_first_poll(make: Maker) -> None:
    cache = make(polled=False)
    assert cache.needs_poll()
    for good in (True, False):
        fill(cache, "a", good=good)
    assert len(cache) == 0
    assert not cache.is_current()
    poll(cache, 1, None)
    assert not cache.needs_poll()
    fill(cache, "a")
    assert len(cache) == 1


def test_what_was_read_before_the_first_poll_is_not_kept_behind_it(make: Maker) -> None:
    cache = make(polled=False)
    fence = cache.fence()
    poll(cache, 1, None)
    keep(cache, "k", record("k"), fence)
    assert len(cache) == 0


def test_of_a_hundred_thousand_verdicts_a_poll_drops_the_one_that_changed(make: Maker) -> None:
    cache, key = make(size=100_000), record("k")
    marks = {f"id{n}": n.to_bytes(32) for n in range(100_000)}
    fence = cache.fence()
    for key_id, mark in marks.items():
        cache.keep(mark, Verdict(key_id, key, True, fence.at + 300), fence, good=True)
    order = list(cache._good)
    poll(cache, 2, {"id5", "never seen"})
    order.remove(marks["id5"])
    assert list(cache._good) == order
    assert cache.revision == Revision("e", 2)


def test_a_poll_drops_every_text_of_a_key_the_refused_ones_too(make: Maker) -> None:
    cache, key = make(), record("k")
    fill(cache, "a", key)
    fill(cache, "b", key)
    fill(cache, "c", key, good=False)
    fill(cache, "d")
    fill(cache, "e", good=False)
    poll(cache, 2, {"k"})
    assert found(cache, *"abcde") == ["d", "e"]


@pytest.mark.parametrize(("number", "epoch"), [(2, "e"), (1, "f"), (2, "f"), (0, "e"), (0, "f")])
def test_a_poll_drops_all_where_the_store_cannot_tell(make: Maker, number: int, epoch: str) -> None:
    cache = make()
    fill(cache, "a")
    fill(cache, "b", good=False)
    poll(cache, number, None, epoch=epoch)
    assert len(cache) == 0
    assert cache.revision == Revision(epoch, number)


def test_a_store_that_can_never_tell_drops_all_even_if_its_revision_stands(make: Maker) -> None:
    cache = make()
    fill(cache, "a")
    fence = cache.fence()
    poll(cache, 1, None)  # "ids None says that any key may have changed"
    assert found(cache, "a") == []
    keep(cache, "a", record("a"), fence)
    assert found(cache, "a") == []


def test_a_revision_of_another_epoch_is_another_revision_though_its_number_is_the_same(make: Maker) -> None:
    cache = make()
    fence = cache.fence()
    poll(cache, 1, epoch="f")
    keep(cache, "k", record("k"), fence)
    assert len(cache) == 0
    assert cache.revision == Revision("f", 1)


def test_a_poll_that_began_before_the_last_and_comes_late_is_ignored(make: Maker, ticks: Ticks) -> None:
    cache = make()
    late = cache.now()
    ticks.now += 0.25
    poll(cache, 5, {"x"})
    fill(cache, "k")
    fence = cache.fence()
    poll(cache, 3, {"k"}, started=late)
    assert cache.revision == Revision("e", 5)
    assert cache.find(mark_of("k"))
    keep(cache, "l", record("l"), fence)
    assert cache.find(mark_of("l"))
    ticks.now += 0.75  # 1 s after the start of the late one
    assert cache.is_current()


def test_age_counts_from_the_start_of_a_poll_and_not_from_its_end(make: Maker, ticks: Ticks) -> None:
    cache = make()
    fill(cache, "k")
    started = cache.now()
    ticks.now += 0.875
    poll(cache, 1, started=started)
    assert cache.is_current()
    assert cache.fresh(mark_of("k")) is None  # past the half
    ticks.now += 0.125
    assert not cache.is_current()


def test_a_verdict_is_fresh_for_half_of_max_staleness_and_usable_for_all_of_it(
    make: Maker, ticks: Ticks
) -> None:
    cache = make()
    fill(cache, "k")
    start = ticks.now
    for later, fresh, current in [
        (0.0, True, True),
        (0.4375, True, True),
        (0.5, False, True),
        (0.9375, False, True),
        (1.0, False, False),
        (3600.0, False, False),
    ]:
        ticks.now = start + later
        assert (cache.fresh(mark_of("k")) is not None, cache.is_current()) == (fresh, current)
    ticks.now = start + 200
    poll(cache, 1)
    assert cache.fresh(mark_of("k"))
    assert cache.is_current()


def test_a_poll_is_due_in_the_second_half_and_one_takes_it(make: Maker, ticks: Ticks) -> None:
    cache = make()
    assert not cache.may_poll()
    ticks.now += 0.4375
    assert not cache.may_poll()
    ticks.now += 0.0625
    assert cache.may_poll()
    assert not cache.may_poll()
    ticks.now += 3600
    assert not cache.may_poll()
    poll(cache, 1)
    assert not cache.may_poll()
    ticks.now += 0.5
    assert cache.may_poll()


def test_of_many_threads_one_takes_the_poll(make: Maker, ticks: Ticks) -> None:
    cache, barrier = make(), Barrier(32)
    ticks.now += 0.5

    def ask() -> bool:
        barrier.wait(PATIENCE)
        return cache.may_poll()

    with ThreadPoolExecutor(32) as threads:
        answers = [threads.submit(ask) for _ in range(32)]
        assert sum(answer.result() for answer in answers) == 1


def test_behind_a_poll_that_failed_the_next_waits_a_little(make: Maker, ticks: Ticks) -> None:
    cache = make(max_staleness=4.0)
    assert not cache.has_just_failed()
    ticks.now += 2
    assert cache.may_poll()
    cache.poll_failed()
    assert cache.has_just_failed()
    assert not cache.may_poll()
    ticks.now += 1.5
    assert cache.has_just_failed()
    assert not cache.may_poll()
    ticks.now += 0.5
    assert not cache.has_just_failed()
    assert cache.may_poll()


def test_a_poll_that_failed_is_forgotten_with_the_next_good_one(make: Maker, ticks: Ticks) -> None:
    cache = make(max_staleness=4.0)
    ticks.now += 2
    cache.poll_failed()
    poll(cache, 1)
    assert not cache.has_just_failed()
    ticks.now += 2
    assert cache.may_poll()


def test_a_poll_that_failed_drops_nothing_and_makes_nothing_younger(make: Maker, ticks: Ticks) -> None:
    cache = make()
    verdict = fill(cache, "k")
    ticks.now += 0.75
    cache.poll_failed()
    assert cache.find(mark_of("k")) is verdict
    ticks.now += 0.25
    assert not cache.is_current()


# Ends


@pytest.mark.parametrize("good", [True, False])
def test_a_verdict_on_a_record_lives_max_age_from_before_it_was_read(
    make: Maker, ticks: Ticks, good: bool
) -> None:
    cache = make(max_age=256.0)
    fence = cache.fence()
    ticks.now += 10
    verdict = keep(cache, "k", record("k"), fence, good=good)
    ticks.now = fence.at + 255.9375
    poll(cache, 1)
    assert cache.find(mark_of("k")) is verdict
    assert (cache.fresh(mark_of("k")) is verdict) == good
    ticks.now = fence.at + 256
    poll(cache, 1)
    assert cache.find(mark_of("k")) is None
    assert cache.fresh(mark_of("k")) is None


def test_an_unknown_id_is_remembered_for_max_staleness_however_often_there_is_a_poll(
    make: Maker, ticks: Ticks
) -> None:
    cache = make()
    fence = cache.fence()
    verdict = keep(cache, "k", None, fence, good=False, matches=False)
    for _ in range(15):
        ticks.now += 0.0625
        poll(cache, 1)
        assert cache.find(mark_of("k")) is verdict
    ticks.now += 0.0625
    poll(cache, 1)
    assert cache.find(mark_of("k")) is None


def test_a_refusal_of_a_record_follows_the_revision(make: Maker, ticks: Ticks) -> None:
    cache = make()
    verdict = fill(cache, "k", record("k", revoked_at=NOW), good=False)
    ticks.now += 100
    poll(cache, 2, {"another"})
    assert cache.find(mark_of("k")) is verdict
    poll(cache, 3, {"k"})
    assert cache.find(mark_of("k")) is None


# A store that does not answer


def test_a_good_verdict_goes_on_for_stale_if_error_behind_max_staleness(make: Maker, ticks: Ticks) -> None:
    cache = make(stale_if_error=32.0)
    fill(cache, "k")
    for later, usable in [(0, True), (1, True), (32.9375, True), (33, False), (3600, False)]:
        ticks.now = 1024.0 + later
        assert cache.is_usable_stale(mark_of("k")) == usable


def test_no_refusal_goes_on_and_nothing_that_was_dropped(make: Maker, ticks: Ticks) -> None:
    cache = make(stale_if_error=32.0)
    fill(cache, "disabled", good=False)
    keep(cache, "unknown", None, cache.fence(), good=False, matches=False)
    fill(cache, "dropped")
    cache.evict(["dropped"])
    for later in (0, 1):
        ticks.now += later
        for text in ("disabled", "unknown", "dropped", "never seen"):
            assert not cache.is_usable_stale(mark_of(text))


def test_without_stale_if_error_nothing_goes_on_behind_max_staleness(make: Maker, ticks: Ticks) -> None:
    cache = make()
    fill(cache, "k")
    ticks.now += 1
    assert not cache.is_usable_stale(mark_of("k"))


# A store that cannot tell what changed


@pytest.mark.parametrize("key", [record("k"), None], ids=["a record", "an unknown id"])
def test_without_changes_a_verdict_lives_for_max_staleness(
    make: Maker, ticks: Ticks, key: APIKey | None
) -> None:
    cache = make(follows=False)
    fence = cache.fence()
    ticks.now += 0.25
    verdict = keep(cache, "k", key, fence, good=key is not None, matches=key is not None)
    ticks.now += 0.6875
    assert cache.find(mark_of("k")) is verdict
    assert (cache.fresh(mark_of("k")) is verdict) == (key is not None)
    ticks.now += 0.0625
    assert cache.find(mark_of("k")) is None
    assert cache.fresh(mark_of("k")) is None


def test_without_changes_nobody_polls_and_nothing_waits_for_a_poll(make: Maker, ticks: Ticks) -> None:
    cache = make(follows=False)
    for _ in range(2):
        assert not cache.needs_poll()
        assert not cache.may_poll()
        assert cache.is_current()
        ticks.now += 3600


def test_without_changes_what_is_evicted_is_gone_all_the_same(make: Maker) -> None:
    for event in ("an eviction", "an eviction of an owner", "an eviction of all"):
        cache = make(follows=False)
        fill(cache, "k")
        fence = cache.fence()
        DROPPING[event](cache)
        keep(cache, "k", record("k"), fence)
        assert found(cache, "k") == []


# Evictions


def test_an_eviction_drops_all_texts_of_the_keys_it_names_and_no_others(make: Maker) -> None:
    cache = make(size=16)
    fill(cache, "a", record("k"))
    fill(cache, "b", record("k"), good=False)
    fill(cache, "c")
    fill(cache, "d")
    cache.evict(["k", "c", "never seen"])
    assert found(cache, *"abcd") == ["d"]


def test_an_eviction_of_an_owner_drops_that_owners_keys_good_or_not(make: Maker) -> None:
    cache = make(size=32)
    fill(cache, "a")
    fill(cache, "b", good=False)
    fill(cache, "c", record("c", owner="u2"))
    fill(cache, "d", record("d", owner="u2"), good=False)
    keep(cache, "e", None, cache.fence(), good=False, matches=False)
    cache.evict_owner("u1")
    assert found(cache, *"abcde") == ["c", "d", "e"]


def test_an_eviction_of_all_drops_all(make: Maker) -> None:
    cache = make()
    fill(cache, "a")
    fill(cache, "b", good=False)
    cache.evict_all()
    assert len(cache) == 0
    assert cache.revision == Revision("e", 1)


@pytest.mark.parametrize("event", ["an eviction", "an eviction of an owner", "an eviction of all"])
def test_whoever_shall_hear_of_evictions_hears_of_each_when_it_is_done(make: Maker, event: str) -> None:
    cache = make()
    fill(cache, "k")
    heard: list[object] = []
    cache.call_on_eviction(lambda: heard.append((found(cache, "k"), cache._lock.locked())))
    cache.call_on_eviction(lambda: heard.append("another"))
    poll(cache, 2)
    assert heard == []
    DROPPING[event](cache)
    assert heard == [([], False), "another"]


MEANWHILE: dict[str, Callable[[VerdictCache], object]] = {
    **EVENTS,
    "a verdict beyond the bound": lambda cache: fill(cache, "z"),
    "another verdict beyond the bound": lambda cache: fill(cache, "z", good=False),
}


@pytest.mark.parametrize("event", MEANWHILE)
def test_requests_that_come_between_any_two_steps_of_a_change_do_not_end_it(make: Maker, event: str) -> None:
    cache = make()
    for text in ("a", "b", "c", "d", "e", "f", "k", "l"):
        fill(cache, text)
    fill(cache, "o", good=False)
    steps = itertools.cycle([mark_of("a"), mark_of("b")])

    def step(frame: FrameType, kind: str, _: object) -> Any:
        if frame.f_code.co_filename != cache_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if kind == "opcode":
            cache.fresh(next(steps))  # which takes no lock, and moves a verdict to the end
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        MEANWHILE[event](cache)
    finally:
        sys.settrace(before)
    check_index(cache)


# All of it together


def happen(cache: VerdictCache, chance: random.Random, number: int) -> None:
    """Let something happen that a request, a poll or a manager does."""
    key_id = f"id{chance.randrange(20)}"
    key = chance.choice([None, record(key_id), record(key_id, version=2, owner="u2")])
    what = chance.choices(
        ["poll", "evict", "compare", "fresh", "find", "owner", "all"], [8, 8, 8, 8, 8, 2, 1]
    )
    match what[0]:
        case "poll":
            poll(cache, number, {key_id})
        case "evict":
            cache.evict([key_id])
        case "fresh":
            cache.fresh(mark_of(f"{key_id}0"))
        case "find":
            cache.find(mark_of(f"{key_id}1"))
        case "owner":
            cache.evict_owner("u2")
        case "all":
            cache.evict_all()
    fence = cache.fence()
    verdict = cache.verdict(key_id, key, key is not None, fence)
    cache.keep(mark_of(f"{key_id}{number % 3}"), verdict, fence, good=chance.random() < 0.7)


def check_index(cache: VerdictCache) -> None:
    index: dict[str, set[bytes]] = {}
    for mark, verdict in [*cache._good.items(), *cache._others.items()]:
        index.setdefault(verdict.key_id, set()).add(mark)
    assert cache._marks == index
    assert not cache._good.keys() & cache._others.keys()
    assert len(cache._good) <= 12
    assert len(cache._others) <= 2


def test_whatever_happens_the_bounds_hold_and_the_index_is_right(make: Maker) -> None:
    for seed in range(20):
        chance, cache = random.Random(seed), make(size=12)
        for number in range(2, 300):
            happen(cache, chance, number)
            check_index(cache)


def test_threads_that_do_all_of_it_at_once_break_nothing(make: Maker) -> None:
    cache, barrier = make(size=12), Barrier(4)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        barrier.wait(PATIENCE)
        for number in range(3000):
            happen(cache, chance, number)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, seed) for seed in range(4)]:
            done.result()
    check_index(cache)


# Options


@pytest.mark.parametrize("size", [-1, 1.5, "10", None, True])
def test_a_size_that_is_none_is_refused(make: Maker, size: object) -> None:
    with pytest.raises(ConfigurationError, match="cache_size is a number of keys, 0 for no cache, not"):
        make(size=size)


@pytest.mark.parametrize("name", ["max_staleness", "max_age", "stale_if_error"])
@pytest.mark.parametrize(
    "value", [-1, float("inf"), float("nan"), "1", None, True, timedelta(seconds=1)], ids=repr
)
def test_a_time_that_is_none_is_refused(make: Maker, name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is a number of seconds, not"):
        make(**{name: value})


def test_a_store_without_changes_is_never_served_stale(make: Maker) -> None:
    with pytest.raises(ConfigurationError, match=r"stale_if_error takes a store with changes\(\)"):
        make(follows=False, stale_if_error=30)


@pytest.mark.parametrize("option", ["size", "max_staleness", "max_age"])
def test_stale_if_error_without_a_cache_is_refused(make: Maker, option: str) -> None:
    with pytest.raises(ConfigurationError, match="stale_if_error takes a cache"):
        make(stale_if_error=30, **{option: 0})


# Forks


@pytest.fixture
def held() -> Iterator[Callable[[Any], None]]:
    """Have a lock held by a thread until the end of the test."""
    done, threads = Event(), []

    def hold(lock: Any) -> None:
        holding = Event()

        def work() -> None:
            with lock:
                holding.set()
                done.wait(PATIENCE)

        thread = Thread(target=work)
        threads.append(thread)
        thread.start()
        holding.wait(PATIENCE)

    yield hold
    done.set()
    for thread in threads:
        thread.join()


def test_a_child_starts_with_nothing_and_with_a_lock_that_nobody_holds(
    make: Maker, held: Callable[[Any], None]
) -> None:
    cache = make(stale_if_error=30.0)
    fill(cache, "a")
    fill(cache, "b", good=False)
    fence = cache.fence()
    cache.may_poll()
    held(cache._lock)

    def is_new() -> bool:
        forgotten = len(cache) == 0 and not cache._marks and cache.revision is None and cache.needs_poll()
        distrusted = not cache.is_current() and not cache.is_usable_stale(mark_of("a"))
        free = cache._lock.acquire(timeout=1)
        cache._lock.release()
        keep(cache, "k", record("k"), fence)
        return forgotten and distrusted and free and len(cache) == 0 and cache.may_poll()

    assert in_child(is_new)
    assert found(cache, "a", "b") == ["a", "b"]


def test_a_cache_is_not_kept_alive_for_the_sake_of_children(make: Maker) -> None:
    cache = weakref.ref(make())
    assert cache() is None
    assert in_child(lambda: cache() is None)


# Users


class User:
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_user_is_remembered_for_max_age_from_before_it_was_loaded(ticks: Ticks) -> None:
    users = UserCache(4.0, 10, ticks)
    assert users.find("u1") is None
    fence = users.fence()
    ticks.now += 1
    users.keep("u1", User("Ada"), fence)
    ticks.now += 2.9375
    assert vars(users.find("u1")) == {"name": "Ada"}
    assert users.find("u2") is None
    ticks.now += 0.0625
    assert users.find("u1") is None


def test_no_two_requests_share_a_user(ticks: Ticks) -> None:
    users, user = UserCache(4.0, 10, ticks), User("Ada")
    users.keep("u1", user, users.fence())
    user.name = "changed behind its back"
    for _ in range(2):
        copy = users.find("u1")
        assert isinstance(copy, User)
        assert copy.name == "Ada"
        copy.name = "changed by a request"


@pytest.mark.parametrize(("max_age", "size"), [(0, 10), (0.0, 10), (4.0, 0)])
def test_users_are_not_remembered_where_they_are_not_to_be(ticks: Ticks, max_age: float, size: int) -> None:
    users = UserCache(max_age, size, ticks)
    users.keep("u1", User("Ada"), users.fence())
    assert users.find("u1") is None


def test_no_user_is_not_remembered(ticks: Ticks) -> None:
    users = UserCache(4.0, 10, ticks)
    users.keep("u1", None, users.fence())
    assert not users._users


def test_users_are_bounded_and_the_one_loaded_longest_ago_goes_first(ticks: Ticks) -> None:
    users = UserCache(4.0, 2, ticks)
    for owner in ("u1", "u2", "u1", "u3"):
        users.keep(owner, User(owner), users.fence())
    assert [owner for owner in ("u1", "u2", "u3") if users.find(owner)] == ["u1", "u3"]


def test_a_user_who_is_forgotten_is_gone_and_the_others_stay(ticks: Ticks) -> None:
    users = UserCache(4.0, 10, ticks)
    for owner in ("u1", "u2"):
        users.keep(owner, User(owner), users.fence())
    users.forget("u1")
    users.forget("never seen")
    assert users.find("u1") is None
    assert users.find("u2")


def test_a_user_who_is_forgotten_while_it_is_loaded_is_not_remembered(ticks: Ticks) -> None:
    users = UserCache(4.0, 10, ticks)
    fence = users.fence()
    users.forget("u1")
    users.keep("u1", User("Ada"), fence)
    assert users.find("u1") is None
    users.keep("u1", User("Ada"), users.fence())
    assert users.find("u1")


@pytest.mark.parametrize("behind", [False, True])
def test_a_user_who_is_forgotten_while_it_is_put_in_is_forgotten(ticks: Ticks, behind: bool) -> None:
    users = UserCache(4.0, 10, ticks)
    intrusion = {"behind" if behind else "before": lambda: users.forget("u1")}
    fence = users.fence()
    users._lock = Intruder(users._lock, **intrusion)  # type: ignore[assignment]
    users.keep("u1", User("Ada"), fence)
    assert users.find("u1") is None


@pytest.mark.parametrize("max_age", [-1, float("inf"), float("nan"), "1", None], ids=repr)
def test_a_time_for_users_that_is_none_is_refused(max_age: Any) -> None:
    with pytest.raises(ConfigurationError, match="user_max_age is a number of seconds, not"):
        UserCache(max_age, 10)


def test_a_child_remembers_no_user_and_waits_for_no_thread_of_its_parent(
    ticks: Ticks, held: Callable[[Any], None]
) -> None:
    users = UserCache(4.0, 10, ticks)
    users.keep("u1", User("Ada"), users.fence())
    held(users._lock)
    assert in_child(lambda: users._lock.acquire(timeout=1) and not users._users)
