"""What ``apikey_auth.testing`` gives to others: a store's whole test file, and doubles for applications."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from apikey_auth import (
    APIKey,
    AsyncAuthenticator,
    AsyncKeyManager,
    Authenticator,
    ConfigurationError,
    DuplicateKey,
    ExpiredKey,
    Inline,
    InThread,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    StoreUnavailable,
)
from apikey_auth.stores.protocol import MANAGING
from apikey_auth.testing import FakeClock, UnreliableStore, drive, headers_for, key_for
from apikey_auth.testing.drive import Threads, opened
from apikey_auth.testing.records import FULL, LIVE_AT_NOW, NOW, record

ALL = (*MANAGING, "touch", "changes")

# The test file of a store


FIVE_LINES = """\
import pytest
from apikey_auth.testing import KeyStoreContract
from my_store import MyStore

class TestMyStore(KeyStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return MyStore(tmp_path / "keys")
"""

STORES = """\
from apikey_auth import Inline, MemoryKeyStore

class MyStore(MemoryKeyStore):
    def __init__(self, path):
        super().__init__()

class AsyncMyStore(Inline):
    def __init__(self, path):
        super().__init__(MemoryKeyStore())

async def connected(path):
    return AsyncMyStore(path)
"""

QUICK = "    rounds, many, examples = 2, 60, 2\n"

SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # unset, pytest-asyncio warns of itself
MODES = {
    "no plugin at all": ("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:xdist"),
    "pytest-asyncio in strict mode": ("-o", "asyncio_mode=strict", *SCOPE),
    "pytest-asyncio in auto mode": ("-o", "asyncio_mode=auto", *SCOPE),
}
ALONE = MODES["no plugin at all"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Write files into an empty folder and run pytest there, warnings being errors."""

    def run_pytest(test: str, *options: str, store: str = STORES) -> tuple[int, str]:
        (tmp_path / "my_store.py").write_text(store)
        (tmp_path / "test_my_store.py").write_text(test)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-W", "error", "--strict-markers", "--strict-config", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run_pytest


def test_five_lines_are_the_whole_test_file_of_a_store(run: Callable[..., tuple[int, str]]) -> None:
    code, printed = run(FIVE_LINES, "-rs", *ALONE)
    assert code == 0, printed
    assert re.search(r"\b2\d\d passed, 6 skipped", printed), printed
    for hook in ("break_store", "connections"):
        assert f"override {hook}(store)" in printed


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
@pytest.mark.parametrize("given", ["MyStore", "AsyncMyStore", "connected"])
def test_a_store_of_either_colour_passes_whatever_plugin_is_there(
    run: Callable[..., tuple[int, str]], given: str, options: tuple[str, ...]
) -> None:
    """``connected`` is a coroutine that makes a store."""
    code, printed = run(
        FIVE_LINES.replace("MyStore(tmp", f"{given}(tmp").replace("import MyStore", f"import {given}")
        + QUICK,
        "-q",
        *options,
    )
    assert code == 0, printed
    assert re.search(r"\b2\d\d passed, 6 skipped", printed), printed


def test_an_assertion_that_fails_shows_its_values(run: Callable[..., tuple[int, str]]) -> None:
    store = STORES.replace(
        "super().__init__()\n", "super().__init__()\n    def count(self, **_): return 41\n", 1
    )
    code, printed = run(FIVE_LINES, "-k", "a_duplicate_leaves_the_first", *ALONE, store=store)
    assert code == 1
    assert "assert 41 == 1" in printed


def test_a_store_that_lacks_methods_is_told_which(run: Callable[..., tuple[int, str]]) -> None:
    store = "class MyStore:\n    def __init__(self, path): ...\n    def get(self, key_id, /): ...\n"
    code, printed = run(FIVE_LINES, "-k", "test_a_page_has_at_most", *ALONE, store=store)
    assert code == 1
    assert "MyStore is no store for this: it lacks add(), swap(), revoke_all()" in printed


def test_touch_and_changes_may_be_lacking_where_the_test_says_so(
    run: Callable[..., tuple[int, str]],
) -> None:
    code, printed = run(FIVE_LINES + QUICK + '    lacks = ("touch", "changes")\n', "-rs", *ALONE)
    assert code == 0, printed
    assert "the store lacks touch()" in printed
    assert "the store lacks changes()" in printed
    assert int(re.search(r"(\d+) passed", printed)[1]) > 120  # type: ignore[index]


READER = """\
from dataclasses import replace
import pytest
from apikey_auth import APIKey
from apikey_auth.testing import KeyReaderContract

KEY = APIKey(id="k1", owner="User1", digest="sha256$$00ff")

class Reader:
    def get(self, key_id, /):
        return replace(KEY) if key_id == KEY.id else None

class TestReader(KeyReaderContract):
    @pytest.fixture
    def store(self):
        return Reader()

    @pytest.fixture
    def known(self):
        return KEY
"""


def test_a_store_that_only_reads_has_a_contract_too(run: Callable[..., tuple[int, str]]) -> None:
    code, printed = run(READER, *ALONE)
    assert code == 0, printed
    assert re.search(r"\b2\d passed, 6 skipped", printed), printed


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_what_is_missing_is_told_with_the_command_that_brings_it(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import apikey_auth.testing"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: apikey_auth.testing needs pytest and hypothesis" in done.stderr
    assert "pip install 'apikey_auth[testing]'" in done.stderr


# How a store is driven


class Blocking(MemoryKeyStore):
    """Notes in which thread it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def get(self, key_id: str, /) -> APIKey | None:
        self.threads.append(threading.current_thread())
        return super().get(key_id)

    def close(self) -> None:
        self.threads.append(threading.current_thread())


class Asynchronous(Inline):
    """Notes on which event loop it is made and called."""

    def __init__(self) -> None:
        super().__init__(MemoryKeyStore())
        self.loops = [asyncio.get_running_loop()]

    async def get(self, key_id: str, /) -> APIKey | None:
        self.loops.append(asyncio.get_running_loop())
        return await super().get(key_id)


async def made() -> Asynchronous:
    return Asynchronous()


def test_a_blocking_store_is_called_and_closed_where_the_test_runs() -> None:
    store = Blocking()
    with opened(store, ALL) as kept:
        kept.get("k1")
    assert store.threads == [threading.current_thread()] * 2


def test_an_async_store_is_made_and_called_on_one_loop_of_another_thread() -> None:
    with opened(made(), ALL) as kept:
        kept.get("k1")
        Threads().at_once(lambda: kept.get("k1"), lambda: kept.get("k2"))
        loops = kept.store.loops
    assert len(loops) == 4
    assert len(set(loops)) == 1
    assert loops[0].is_closed()


def test_threads_are_tasks_of_an_async_store() -> None:
    class Meeting(Asynchronous):
        async def get(self, key_id: str, /) -> APIKey | None:
            self.loops.append(asyncio.get_running_loop())
            while len(self.loops) < 4:  # noqa: ASYNC110  # until the others are here as well
                await asyncio.sleep(0)
            return None

    async def make() -> Meeting:
        return Meeting()

    with opened(make(), ALL) as kept:
        assert Threads().at_once(*[lambda: kept.get("k1")] * 3) == [None] * 3


def test_a_store_behind_a_bridge_is_closed() -> None:
    store = Blocking()
    with opened(InThread(store), ALL):
        pass
    assert store.threads == [threading.current_thread()]


def test_a_store_is_closed_once_however_its_test_ends() -> None:
    store = Blocking()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        with opened(store, ALL) as kept:
            kept.close()
            raise ZeroDivisionError
    assert len(store.threads) == 1


def test_an_async_store_that_never_answers_fails_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "PATIENCE", 0.05)
    store = UnreliableStore(Inline(MemoryKeyStore()))
    store.hang()
    with opened(store, ALL) as kept, pytest.raises(TimeoutError):
        kept.get("k1")
    assert store.waiting == 0


def test_no_thread_is_left_behind() -> None:
    before = threading.enumerate()
    with opened(made(), ALL) as kept:
        Threads().at_once(*[lambda: kept.get("k1")] * 3)
    assert threading.enumerate() == before


def test_each_thread_is_left_in_that_thread() -> None:
    left: list[int] = []
    threads = Threads(lambda: left.append(threading.get_ident()))
    at_work = threads.at_once(*[threading.get_ident] * 3)
    at_work.append(threads.watched(lambda done: threading.get_ident(), lambda: None))
    assert set(at_work) <= set(left)
    assert len(left) == len(at_work) + 1


def test_answers_come_in_the_order_of_their_calls() -> None:
    threads = Threads()
    for number in range(1, 6):
        for _ in range(6):
            calls = [lambda n=n: n for n in range(number)]
            assert threads.at_once(*calls) == list(range(number))


def test_the_fullest_record_has_no_default_left() -> None:
    plain, full = record(), record(**FULL)
    same = [field.name for field in fields(APIKey) if getattr(plain, field.name) == getattr(full, field.name)]
    assert same == ["id", "owner"]


def test_of_the_records_that_live_or_not_there_are_both() -> None:
    assert {live for _, live in LIVE_AT_NOW.values()} == {True, False}


# Keys in one line


def sync_issuers() -> Iterator[Any]:
    auth = Authenticator(MemoryKeyStore(), KeyScheme("acme"))
    yield auth, auth.authenticate
    yield auth.keys, auth.authenticate


def async_issuers() -> Iterator[Any]:
    auth = AsyncAuthenticator(Inline(MemoryKeyStore()), KeyScheme("acme"))
    yield auth, lambda text: asyncio.run(auth.authenticate(text))
    yield auth.keys, lambda text: asyncio.run(auth.authenticate(text))


@pytest.mark.parametrize(
    ("issuer", "authenticate"),
    [*sync_issuers(), *async_issuers()],
    ids=["an authenticator", "a manager", "an async authenticator", "an async manager"],
)
def test_a_key_for_a_user_is_one_line(issuer: Any, authenticate: Any) -> None:
    identity = authenticate(key_for("ada", issuer, scopes=["reports:read"], name="CI"))
    assert (identity.user.id, identity.key.scopes, identity.key.name) == ("ada", ("reports:read",), "CI")


async def test_a_key_may_be_asked_for_within_a_running_event_loop() -> None:
    auth = AsyncAuthenticator(Inline(MemoryKeyStore()))
    assert (await auth.authenticate(key_for("ada", auth))).user.id == "ada"


def test_the_header_of_a_key_is_one_line_too() -> None:
    auth = Authenticator(MemoryKeyStore())
    (name, text), *others = headers_for("ada", auth).items()
    assert (name, others) == ("apikey", [])
    assert auth.authenticate(text).user.id == "ada"


# A clock


def test_a_clock_stands_until_it_is_told_to_go_on() -> None:
    clock = FakeClock()
    auth = Authenticator(MemoryKeyStore(), clock=clock)
    text = key_for("ada", auth, expires_in=timedelta(hours=1))
    clock.advance(timedelta(minutes=59))
    auth.authenticate(text)
    clock.advance(60)
    with pytest.raises(ExpiredKey):
        auth.authenticate(text)


def test_a_clock_tells_the_time_that_it_goes_on_to() -> None:
    clock = FakeClock(datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2))))
    assert clock() == clock() == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert clock.advance(0.5) == clock() == datetime(2026, 3, 1, 10, 0, 0, 500_000, tzinfo=UTC)


def test_a_clock_without_a_time_zone_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="time zone"):
        FakeClock(datetime(2026, 1, 1))  # noqa: DTZ001


# A store that fails on demand


Driven = tuple[UnreliableStore, Any]


@pytest.fixture(params=[MemoryKeyStore, lambda: Inline(MemoryKeyStore())], ids=["blocking", "async"])
def driven(request: pytest.FixtureRequest) -> Iterator[Driven]:
    """An unreliable store of either colour, and how to call it: ``kept`` blocks."""
    store = UnreliableStore(request.param())
    with opened(store, ALL) as kept:
        yield store, kept
        store.heal()


def test_without_trouble_it_does_what_the_store_does(driven: Driven) -> None:
    _, kept = driven
    kept.add(record())
    with pytest.raises(DuplicateKey):
        kept.add(record())
    assert kept.get("k1") == record()


def test_it_has_the_colour_of_its_store() -> None:
    blocking, awaited = UnreliableStore(MemoryKeyStore()), UnreliableStore(InThread(MemoryKeyStore()))
    Authenticator(blocking)
    KeyManager(blocking)
    AsyncAuthenticator(awaited)
    AsyncKeyManager(awaited)
    with pytest.raises(ConfigurationError):
        Authenticator(awaited)
    with pytest.raises(ConfigurationError):
        AsyncAuthenticator(blocking)


def test_it_can_do_no_more_than_its_store() -> None:
    class Reader:
        def get(self, key_id: str, /) -> APIKey | None:
            return None

    for reader in map(UnreliableStore, (Reader(), InThread(Reader()), Inline(Reader()))):
        assert not hasattr(reader, "nothing")
        assert not hasattr(reader, "changes")
        with pytest.raises(ValueError, match="the store has no swap; it has get"):
            reader.fail("swap")
    with pytest.raises(ConfigurationError, match="lacks add"):
        KeyManager(UnreliableStore(Reader()))


def test_it_fails_and_does_nothing(driven: Driven) -> None:
    store, kept = driven
    store.fail()
    with pytest.raises(StoreUnavailable):
        kept.add(record())
    store.heal()
    assert kept.get("k1") is None


def test_it_fails_in_the_methods_that_are_named(driven: Driven) -> None:
    store, kept = driven
    store.fail("get", "find")
    kept.add(record())
    for call in (lambda: kept.get("k1"), kept.find):
        with pytest.raises(StoreUnavailable):
            call()
    store.heal("find")
    assert kept.find().items == (record(),)
    with pytest.raises(StoreUnavailable):
        kept.get("k1")


def test_it_fails_with_the_error_that_is_given(driven: Driven) -> None:
    store, kept = driven
    store.fail("get", error=ConnectionResetError("gone"))
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match="gone"):
            kept.get("k1")


def test_its_answer_is_lost_when_all_is_done(driven: Driven) -> None:
    store, kept = driven
    store.lose_answers("add")
    with pytest.raises(StoreUnavailable):
        kept.add(record())
    assert kept.get("k1") == record()


def test_a_method_of_another_name_is_a_value_error(driven: Driven) -> None:
    with pytest.raises(ValueError, match="the store has no gett"):
        driven[0].fail("gett")


def test_it_hangs_until_it_is_healed_and_answers_then(driven: Driven) -> None:
    store, kept = driven
    store.hang("add")
    answered: list[object] = []
    threads = [Thread(target=lambda n=n: answered.append(kept.add(record(f"k{n}")))) for n in range(3)]
    for thread in threads:
        thread.start()
    while store.waiting < 3:
        pass
    assert kept.count() == 0
    store.heal()
    for thread in threads:
        thread.join()
    assert (store.waiting, kept.count(), answered) == (0, 3, [None] * 3)


def test_what_hangs_is_released_by_another_trouble_too(driven: Driven) -> None:
    store, kept = driven
    store.hang()
    thread = Thread(target=kept.get, args=["k1"])
    thread.start()
    while store.waiting < 1:
        pass
    store.fail("get")
    thread.join()
    with pytest.raises(StoreUnavailable):
        kept.get("k1")


async def test_a_task_that_hangs_can_be_cancelled() -> None:
    store = UnreliableStore(Inline(MemoryKeyStore()))
    store.hang("get")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await store.get("k1")
    assert store.waiting == 0
    store.heal()
    assert await store.get("k1") is None


def test_it_answers_late_by_what_it_is_told(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    store, kept = driven
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("apikey_auth.testing.doubles.time.sleep", slept.append)
    monkeypatch.setattr("apikey_auth.testing.doubles.asyncio.sleep", sleep)
    store.delay(1.5, "get")
    assert (kept.get("k1"), kept.count(), slept) == (None, 0, [1.5])


def test_it_counts_the_calls_of_each_method_those_that_fail_included(driven: Driven) -> None:
    store, kept = driven
    store.fail("get")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            kept.get("k1")
    kept.touch({"k1": NOW})
    assert store.calls == {"get": 3, "touch": 1}


def test_what_else_a_store_has_is_there() -> None:
    class Closing(MemoryKeyStore):
        def close(self) -> str:
            return "closed"

    assert UnreliableStore(Closing()).close() == "closed"
