"""The bridges, and which store goes into which authenticator."""

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError, blockbuster_ctx
from forks import in_child, needs_fork

from apikey_auth import (
    APIKey,
    AsyncAuthenticator,
    AsyncKeyManager,
    Authenticator,
    ConfigurationError,
    Inline,
    InThread,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
    RevokedKey,
    StoreUnavailable,
)
from apikey_auth.stores.protocol import AsyncKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.testing.records import NOW, record

from .awaited import revision_of

PATIENCE = 10.0  # seconds
colour = ContextVar("colour", default="none")


class Reader:
    """The least that is a store."""

    def __init__(self, *keys: APIKey) -> None:
        self.keys = {key.id: key for key in keys}
        self.threads: list[threading.Thread] = []
        self.contexts: list[str] = []

    def get(self, key_id: str, /) -> APIKey | None:
        self.threads.append(threading.current_thread())
        self.contexts.append(colour.get())
        return self.keys.get(key_id)


class AsyncReader(Reader):
    async def get(self, key_id: str, /) -> APIKey | None:  # type: ignore[override]
        return super().get(key_id)


# Bridges


async def test_in_thread_calls_the_store_in_another_thread() -> None:
    store = Reader()
    await InThread(store).get("k1")
    assert store.threads != [threading.current_thread()]


async def test_inline_calls_the_store_in_the_same_thread() -> None:
    store = Reader()
    await Inline(store).get("k1")
    assert store.threads == [threading.current_thread()]


@pytest.mark.parametrize("bridge", [Inline, InThread])
async def test_a_bridge_keeps_the_context_of_its_caller(bridge: Any) -> None:
    store = Reader()
    colour.set("blue")
    await bridge(store).get("k1")
    assert store.contexts == ["blue"]


@pytest.mark.parametrize("bridge", [Inline, InThread])
async def test_what_a_store_raises_comes_through_a_bridge(bridge: Any) -> None:
    class Broken(Reader):
        def get(self, key_id: str, /) -> APIKey | None:
            raise OSError("no route to host")

    with pytest.raises(OSError, match="no route"):
        await bridge(Broken()).get("k1")


async def test_a_store_that_hangs_takes_no_thread_of_the_applications() -> None:
    healed = threading.Event()

    class Hanging(Reader):
        def get(self, key_id: str, /) -> APIKey | None:
            healed.wait()
            return super().get(key_id)

    bridge = InThread(Hanging())
    calls = [asyncio.create_task(bridge.get("k1")) for _ in range(100)]
    await asyncio.sleep(0)
    try:
        await asyncio.wait_for(asyncio.to_thread(threading.current_thread), PATIENCE)
    finally:
        healed.set()
        assert await asyncio.gather(*calls) == [None] * 100


async def test_the_threads_go_with_the_bridge() -> None:
    store = Reader()
    bridge = InThread(store)
    await bridge.get("k1")
    (thread,) = store.threads
    del bridge
    gc.collect()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()


@needs_fork
def test_a_forked_child_has_threads_of_its_own() -> None:
    key = record("k1")
    bridge = InThread(Reader(key))
    assert asyncio.run(bridge.get("k1")) == key
    assert in_child(lambda: asyncio.run(bridge.get("k1")) == key)


@pytest.mark.parametrize("bridge", [Inline, InThread])
@pytest.mark.parametrize(
    "store",
    [AsyncReader(), AsyncSQLKeyStore("sqlite:///keys.db"), Inline(Reader()), InThread(Reader())],
    ids=["an async reader", "an async store", "Inline", "InThread"],
)
def test_a_bridge_over_an_async_store_or_another_bridge_is_refused(bridge: Any, store: Any) -> None:
    with pytest.raises(ConfigurationError):
        bridge(store)


@pytest.mark.parametrize("bridge", [Inline, InThread])
@pytest.mark.parametrize("store", [None, object(), {}.copy])
def test_a_bridge_over_no_store_is_refused(bridge: Any, store: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"lacks get\(\)"):
        bridge(store)


def test_a_bridge_over_a_url_names_the_store_that_takes_one() -> None:
    with pytest.raises(ConfigurationError, match=r"give it to one: SQLKeyStore\(url\)"):
        InThread("sqlite:///keys.db")  # type: ignore[arg-type]


# Colours


@pytest.mark.parametrize(
    "store",
    [AsyncSQLKeyStore("sqlite:///keys.db"), Inline(MemoryKeyStore())],
    ids=["an async store", "a bridge"],
)
@pytest.mark.parametrize("user", [Authenticator, KeyManager])
def test_an_async_store_in_a_blocking_class_is_refused_with_advice(user: Any, store: Any) -> None:
    with pytest.raises(ConfigurationError, match="use AsyncAuthenticator and AsyncKeyManager"):
        user(store)


@pytest.mark.parametrize(
    "store",
    [SQLKeyStore("sqlite:///keys.db"), MemoryKeyStore()],
    ids=["a SQL store", "a memory store"],
)
@pytest.mark.parametrize("user", [AsyncAuthenticator, AsyncKeyManager])
def test_a_blocking_store_in_an_async_class_is_refused_with_advice(user: Any, store: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"InThread\(…\) if it may block, in Inline\(…\) if it never"
    ):
        user(store)


@pytest.mark.parametrize(("user", "store"), [(Authenticator, AsyncReader()), (AsyncAuthenticator, Reader())])
def test_a_reader_of_the_wrong_colour_is_refused_too(user: Any, store: Any) -> None:
    with pytest.raises(ConfigurationError, match="async"):
        user(store)


# Capabilities


@pytest.fixture
def known() -> tuple[Reader, str]:
    """A store that only reads, and the text of the key in it."""
    issued = KeyManager(MemoryKeyStore()).issue("User1")
    return Reader(issued.key), issued.text


def test_a_store_that_only_reads_is_enough_to_authenticate(known: tuple[Reader, str]) -> None:
    store, text = known
    assert Authenticator(store).authenticate(text).user.id == "User1"


async def test_a_store_that_only_reads_is_enough_behind_a_bridge(known: tuple[Reader, str]) -> None:
    store, text = known
    assert (await AsyncAuthenticator(InThread(store)).authenticate(text)).user.id == "User1"


MISSING = r"Reader .*lacks add\(\), swap\(\), revoke_all\(\), find\(\), count\(\), purge\(\)"


def test_the_manager_of_a_store_that_only_reads_names_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=MISSING):
        _ = Authenticator(Reader()).keys


@pytest.mark.parametrize("bridge", [Inline, InThread])
def test_a_bridge_can_do_no_more_than_the_store_behind_it(bridge: Any) -> None:
    with pytest.raises(ConfigurationError, match=MISSING):
        _ = AsyncAuthenticator(bridge(Reader())).keys


def test_a_store_that_calls_another_its_wrapped_is_judged_by_its_own_methods() -> None:
    class Counting(Reader):
        wrapped = MemoryKeyStore()

    with pytest.raises(ConfigurationError, match="lacks add"):
        _ = Authenticator(Counting()).keys


def test_managing_takes_neither_touch_nor_changes() -> None:
    class Managing:
        def __init__(self) -> None:
            inner = MemoryKeyStore()
            self.get, self.add, self.swap = inner.get, inner.add, inner.swap
            self.find, self.count, self.purge = inner.find, inner.count, inner.purge
            self.revoke_all = inner.revoke_all

    keys = Authenticator(Managing()).keys
    assert keys.list("User1") == []


# The event loop


@pytest.fixture(params=["AsyncSQLKeyStore", "InThread", "Inline over memory"])
async def unblocking(request: pytest.FixtureRequest, url: str) -> AsyncIterator[AsyncKeyStore]:
    """A store that never blocks, or says so."""
    if request.param == "AsyncSQLKeyStore":
        store = AsyncSQLKeyStore(url, create=True)
        yield store
        await store.close()
    elif request.param == "InThread":
        blocking = SQLKeyStore(url, create=True)
        yield InThread(blocking)
        blocking.close()
    else:
        yield Inline(MemoryKeyStore())


async def test_authenticating_and_managing_never_block_the_event_loop(unblocking: AsyncKeyStore) -> None:
    with blockbuster_ctx():
        auth = AsyncAuthenticator(unblocking, KeyScheme("acme"))
        issued = await auth.keys.issue("User1")
        await auth.authenticate(issued.text)
        rotated = await auth.keys.rotate(issued.key.id, grace=timedelta(hours=1))
        await auth.keys.edit(rotated.key.id, name="new")
        await auth.keys.ensure("User1", name="first")
        await auth.keys.list("User1")
        await auth.keys.revoke(rotated.key.id)
        with pytest.raises(RevokedKey):
            await auth.authenticate(rotated.text)
        await auth.keys.revoke_all()


async def test_no_method_of_a_store_blocks_the_event_loop(unblocking: AsyncKeyStore) -> None:
    with blockbuster_ctx():
        since = await revision_of(unblocking)
        await unblocking.add(record())
        await unblocking.touch({"k1": NOW})
        await unblocking.get("k1")
        await unblocking.find(owner="User1", live_at=NOW)
        await unblocking.count()
        await unblocking.changes(since)
        await unblocking.purge(NOW)


async def test_a_file_behind_inline_would_block_the_event_loop(sql_store: SQLKeyStore) -> None:
    with blockbuster_ctx(), pytest.raises(BlockingError):
        await Inline(sql_store).get("k1")


async def test_waiting_for_a_lock_does_not_block_the_event_loop(
    async_sql_store: AsyncSQLKeyStore, file: Path, url: str
) -> None:
    """A file that is not in WAL mode yet and has another writer: the switch is left for later."""
    await async_sql_store.close()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("PRAGMA journal_mode=DELETE")
    other.execute("BEGIN IMMEDIATE")
    store = AsyncSQLKeyStore(url, timeout=0.2)
    with blockbuster_ctx():
        assert await store.get("k1") is None
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.touch({"k1": record().created_at})
    other.close()
    await store.close()
