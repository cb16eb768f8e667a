"""What a store promises that is only read from: ``get``, and what a database can do to it."""

# ruff: noqa: S101, ARG002  # assertions are what this is for; a fixture works by being asked for

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import pytest

from ..errors import DuplicateKey, StoreUnavailable
from ..keys import APIKey
from ..stores.protocol import READING
from .drive import Kept, Threads, opened
from .records import STRANGE_IDS, TIME_FIELDS, cases

Calls = Mapping[str, Callable[[], object]]


ROUNDS_OF_CALLS = 10


class KeyReaderContract:
    """Proves a store that is only read from. Override ``store``, and ``known``, the record of a key in it.

    ``store`` gives a store of either colour, or a coroutine that makes one: it is awaited on the event loop
    on which an async store's calls run. A store that has ``close`` is closed.
    """

    rounds: ClassVar[int] = 25
    """How often a race is run."""

    lacks: ClassVar[tuple[str, ...]] = ()
    """Which of ``touch`` and ``changes`` a store does not have; the tests that need them are skipped."""

    _methods: ClassVar[tuple[str, ...]] = READING

    @pytest.fixture
    def store(self) -> Any:
        """The store under test."""
        raise NotImplementedError("override the fixture store: it gives a store of either colour")

    @pytest.fixture
    def known(self) -> APIKey:
        """The record of a key that is in the store."""
        raise NotImplementedError("override the fixture known: it gives the record of a key in the store")

    def leave_thread(self, store: Any) -> None:
        """End what a store keeps for each thread; called at the end of every thread that the tests make."""

    def break_store(self, store: Any) -> AbstractContextManager[object]:
        """Put the store's database out of reach within a ``with`` block, for connections open and new."""
        pytest.skip("override break_store(store): a context manager that puts the database out of reach")

    def connections(self, store: Any) -> int:
        """Tell how many connections to its database a store has open."""
        pytest.skip("override connections(store): it tells how many connections the store has open")

    @pytest.fixture
    def kept(self, store: Any) -> Iterator[Kept]:
        """The store under test, its calls blocking whatever its colour."""
        with opened(store, self._methods, self.lacks) as kept:
            yield kept

    @pytest.fixture
    def threads(self, kept: Kept) -> Threads:
        return Threads(partial(self.leave_thread, kept.store))

    def _calls(self, kept: Kept, known: APIKey) -> Calls:
        """Give a call of each method that needs the database."""
        return {"get": partial(kept.get, known.id), "get of an unknown id": partial(kept.get, "unknown")}

    def _failing_calls(self, kept: Kept, known: APIKey) -> Calls:
        """Give calls that come to nothing."""
        return {f"get({key_id[:9]!r})": partial(kept.get, key_id) for key_id in STRANGE_IDS.values()}

    # get

    def test_a_known_id_is_read_as_the_record_it_has(self, kept: Kept, known: APIKey) -> None:
        assert kept.get(known.id) == known

    def test_a_record_has_its_times_in_utc(self, kept: Kept, known: APIKey) -> None:
        key = kept.get(known.id)
        times = [getattr(key, name) for name in TIME_FIELDS]
        assert {time.utcoffset() for time in times if time is not None} == {timedelta(0)}

    @pytest.mark.parametrize("ending", ["\0", " ", "\n", "x", "%", "\udcff", "ключ🔑"])
    def test_an_id_with_something_behind_is_unknown(self, kept: Kept, known: APIKey, ending: str) -> None:
        assert kept.get(known.id + ending) is None

    def test_the_beginning_of_an_id_is_unknown(self, kept: Kept, known: APIKey) -> None:
        assert kept.get(known.id[:-1]) is None

    def test_an_id_in_another_case_is_unknown(self, kept: Kept, known: APIKey) -> None:
        other = known.id.swapcase()
        assert kept.get(other) == (known if other == known.id else None)

    @pytest.mark.parametrize("key_id", cases(STRANGE_IDS))
    def test_an_id_that_nobody_has_is_unknown(self, kept: Kept, known: APIKey, key_id: str) -> None:
        assert kept.get(key_id) is None

    def test_changing_what_was_read_does_not_change_what_is_read_next(
        self, kept: Kept, known: APIKey
    ) -> None:
        read = kept.get(known.id)
        assert read is not None
        with suppress(TypeError):  # a mapping that cannot be changed is as good
            read.metadata["changed"] = True  # type: ignore[index]
        again = kept.get(known.id)
        assert again is not None
        assert "changed" not in again.metadata

    def test_threads_that_read_at_once_all_read_the_record(
        self, kept: Kept, known: APIKey, threads: Threads
    ) -> None:
        for _ in range(self.rounds):
            assert threads.at_once(*[partial(kept.get, known.id)] * 8) == [known] * 8

    # when the database is out of reach

    def test_out_of_reach_every_method_says_unavailable_and_none_answers(
        self, kept: Kept, known: APIKey
    ) -> None:
        with self.break_store(kept.store):
            for name, call in self._calls(kept, known).items():
                with pytest.raises(StoreUnavailable):
                    pytest.fail(f"{name} answered {call()!r}")

    def test_out_of_reach_no_error_shows_a_digest(self, kept: Kept, known: APIKey) -> None:
        secret = known.digest.rpartition("$")[2]
        assert secret
        with self.break_store(kept.store):
            for call in self._calls(kept, known).values():
                with pytest.raises(StoreUnavailable) as caught:
                    call()
                shown = [f"{error} {error!r} {error.args!r}" for error in chain_of(caught.value)]
                assert not [text for text in shown if secret in text]

    def test_within_reach_again_a_store_goes_on(self, kept: Kept, known: APIKey) -> None:
        assert kept.get(known.id) == known
        with self.break_store(kept.store), pytest.raises(StoreUnavailable):
            kept.get(known.id)
        assert kept.get(known.id) == known
        assert kept.get("unknown") is None

    # connections

    def test_more_calls_open_no_more_connections(self, kept: Kept, known: APIKey) -> None:
        self._make_calls(kept, known)
        first = self.connections(kept.store)
        for _ in range(ROUNDS_OF_CALLS):
            self._make_calls(kept, known)
        assert self.connections(kept.store) <= first

    def test_calls_that_cannot_reach_the_database_leave_no_connection_open(
        self, kept: Kept, known: APIKey
    ) -> None:
        self._make_calls(kept, known)
        first = self.connections(kept.store)
        with self.break_store(kept.store):
            for call in self._calls(kept, known).values():
                with pytest.raises(StoreUnavailable):
                    call()
        self._make_calls(kept, known)
        assert self.connections(kept.store) <= first

    def test_a_closed_store_has_no_connection_open(self, kept: Kept, known: APIKey, threads: Threads) -> None:
        threads.at_once(*[partial(self._make_calls, kept, known)] * 4)
        kept.close()
        assert self.connections(kept.store) == 0

    def _make_calls(self, kept: Kept, known: APIKey) -> None:
        for call in [*self._calls(kept, known).values(), *self._failing_calls(kept, known).values()]:
            with suppress(DuplicateKey, ValueError):
                call()


def chain_of(error: BaseException) -> list[BaseException]:
    """List an error and all that it came from."""
    found, waiting = list[BaseException](), [error]
    while waiting:
        error = waiting.pop()
        if error not in found:
            found.append(error)
            waiting += [each for each in (error.__cause__, error.__context__) if each is not None]
    return found
