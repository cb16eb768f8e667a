"""A store beside the memory store: whatever is done to both, in any order, they answer alike."""

# ruff: noqa: S101  # assertions are what this is for

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ..decisions import changed
from ..errors import DuplicateKey
from ..keys import APIKey
from ..stores.memory import MemoryKeyStore
from ..stores.protocol import Revision
from .drive import Kept
from .records import NOW

IDS = ["k1", "K1", "é" * 255]
OWNERS = ["User1", "user1", "Ünï"]
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
near = st.integers(-3, 3).map(lambda n: NOW + timedelta(microseconds=n))  # where ends and questions meet
zones = st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=11, minutes=30))])
far = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=zones)  # noqa: DTZ001
times = near | far
maybe_time = st.none() | times
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
scopes = st.none() | st.lists(st.sampled_from(["a", "b:read", "C"]), max_size=3)
networks = st.none() | st.lists(st.sampled_from(["10.0.0.0/8", "::1/128"]), max_size=2)
a_key_id = st.sampled_from(IDS)
an_owner = st.sampled_from(OWNERS)
plain = st.fixed_dictionaries({"owner": an_owner, "digest": st.just("sha256$$00"), "created_at": near})
full = st.fixed_dictionaries(
    {"owner": an_owner, "digest": texts | st.just("d" * 255), "created_at": times},
    optional={
        "name": texts | st.just("ö" * 255),
        "prefix": texts,
        "last4": st.text("abc", max_size=4),
        "scopes": scopes,
        "addresses": networks,
        "created_by": st.none() | texts,
        "expires_at": maybe_time,
        "disabled": st.booleans(),
        "revoked_at": maybe_time,
        "revoked_reason": st.none() | texts,
        "rotated_to": st.none() | texts,
        "rotated_from": st.none() | texts,
        "grace_until": maybe_time,
        "last_used_at": maybe_time,
        "metadata": st.dictionaries(texts, values, max_size=3),
        "version": st.integers(1, 5),
    },
)
contents = plain | plain | full  # most are short, so that there is time for many steps


def outcome(call: Callable[[], Any]) -> Any:
    """Answer what a call answers, or which exception it raises."""
    try:
        return call()
    except (DuplicateKey, ValueError) as error:
        return type(error), str(error)


class SameAsMemory(RuleBasedStateMachine):
    """What can be done to a store, done to it and to a memory store."""

    revisions: Bundle[tuple[Revision, Revision]] = Bundle("revisions")

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.store = kept
        self.model = MemoryKeyStore()
        empty(kept)
        self.start = self.revision_of_both()

    def both(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        expected = outcome(lambda: getattr(self.model, method)(*args, **kwargs))
        assert outcome(lambda: getattr(self.store, method)(*args, **kwargs)) == expected
        return expected

    def change(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Do something to both that may change records, and compare them all."""
        answer = self.both(method, *args, **kwargs)
        self.both("find", limit=1000)
        for key_id in ("k1", "K1"):
            self.both("get", key_id)
        return answer

    def revision_of_both(self) -> tuple[Revision, Revision]:
        model = self.model.changes(None).revision
        return model, model if self.store.lacks("changes") else self.store.changes(None).revision

    @initialize(target=revisions)
    def begin(self) -> tuple[Revision, Revision]:
        return self.start

    @rule(key_id=a_key_id, given=contents)
    def add(self, key_id: str, given: dict[str, Any]) -> None:
        self.change("add", APIKey(id=key_id, **given))

    @rule(key_id=a_key_id, given=contents, late=st.booleans())
    def swap(self, key_id: str, given: dict[str, Any], late: bool) -> None:
        old = self.model.get(key_id) or APIKey(id=key_id, **given)
        old = changed(old) if late else old
        self.change("swap", old, APIKey(**{**given, "id": key_id, "version": old.version + 1}))

    @rule(key_id=a_key_id, successor_id=a_key_id, given=contents)
    def rotate(self, key_id: str, successor_id: str, given: dict[str, Any]) -> None:
        old = self.model.get(key_id)
        if old is not None:
            self.change("swap", old, changed(old), successor=APIKey(id=successor_id, **given))

    @rule(key_id=a_key_id, given=contents, step=st.sampled_from([-1, 0, 2]))
    def swap_to_what_does_not_follow(self, key_id: str, given: dict[str, Any], step: int) -> None:
        old = APIKey(id=key_id, **given)
        answer = self.change("swap", old, APIKey(**{**given, "id": key_id, "version": old.version + step}))
        assert answer[0] is ValueError

    @rule(owner=st.none() | an_owner, at=times, reason=st.none() | texts)
    def revoke_all(self, owner: str | None, at: datetime, reason: str | None) -> None:
        self.change("revoke_all", owner, at, reason)

    @rule(before=times)
    def purge(self, before: datetime) -> None:
        self.change("purge", before)

    @rule(used=st.dictionaries(a_key_id, times, max_size=4))
    def touch(self, used: dict[str, datetime]) -> None:
        if not self.store.lacks("touch"):
            self.change("touch", used)

    @rule(owner=st.none() | an_owner, live_at=maybe_time, after=st.none() | texts, limit=st.integers(1, 4))
    def find(self, owner: str | None, live_at: datetime | None, after: str | None, limit: int) -> None:
        page = self.both("find", owner=owner, live_at=live_at, after=after, limit=limit)
        while page.next is not None:
            page = self.both("find", owner=owner, live_at=live_at, after=page.next, limit=limit)

    @rule(owner=st.none() | an_owner, live_at=maybe_time)
    def count(self, owner: str | None, live_at: datetime | None) -> None:
        self.both("count", owner=owner, live_at=live_at)

    @rule(target=revisions)
    def remember_the_revision(self) -> tuple[Revision, Revision]:
        return self.revision_of_both()

    @rule(since=revisions)
    def changes(self, since: tuple[Revision, Revision]) -> None:
        if not self.store.lacks("changes"):
            model, store = self.model.changes(since[0]), self.store.changes(since[1])
            moved = store.revision.number - self.start[1].number
            assert (store.ids, moved) == (model.ids, model.revision.number)


def empty(kept: Kept) -> None:
    """Take all records out of a store, by its own methods."""
    kept.revoke_all(None, EARLIEST, None)
    kept.purge(LATEST)
    assert kept.count() == 0, "revoke_all(None, …) and purge(…) left records in the store"


def compare_to_memory(kept: Kept, examples: int) -> None:
    """Do the same to a store and to a memory store; print the fewest steps after which they differ."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=cast("list[HealthCheck]", list(HealthCheck)),
    )
    run_state_machine_as_test(lambda: SameAsMemory(kept), settings=chosen)  # type: ignore[arg-type]
