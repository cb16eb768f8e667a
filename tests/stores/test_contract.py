"""The contract, over every store of the library that needs no server, and over each bridge."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from apikey_auth import APIKey, Inline, InThread, MemoryKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.stores.sql.schema import KEYS, STATE
from apikey_auth.testing import KeyStoreContract


class InSQL(KeyStoreContract):
    """What a test can do to a SQL database behind the store's back."""

    def engine(self) -> sa.Engine:
        """Give another way into the database."""
        raise NotImplementedError

    @contextmanager
    def break_store(self, store: object) -> Iterator[None]:
        self.rename(KEYS.name, "keys_away")
        self.rename(STATE.name, "state_away")
        yield
        self.rename("keys_away", KEYS.name)
        self.rename("state_away", STATE.name)

    def rename(self, old: str, new: str) -> None:
        with self.engine().begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    def add_many(self, kept: Any, keys: Sequence[APIKey]) -> None:
        first, *others = keys
        kept.add(first)
        columns = [sa.bindparam("new") if column.name == "id" else column for column in KEYS.c]
        copy = sa.insert(KEYS).from_select(
            [column.name for column in KEYS.c], sa.select(*columns).where(KEYS.c.id == first.id)
        )
        with self.engine().begin() as connection:
            connection.execute(copy, [{"new": key.id} for key in others])


class InSQLite(InSQL):
    @pytest.fixture(autouse=True)
    def database(self, made_url: str) -> Iterator[None]:
        """Count the connections that pools open and close; the engine for breaking things has no pool."""
        self.url, self.opened = made_url, set[int]()
        events = [("connect", self.open), ("close", self.shut), ("close_detached", self.shut)]
        for name, note in events:
            event.listen(sa.QueuePool, name, note)
        yield
        for name, note in events:
            event.remove(sa.QueuePool, name, note)

    def open(self, connection: object, _: object) -> None:
        self.opened.add(id(connection))

    def shut(self, connection: object, _: object = None) -> None:
        self.opened.remove(id(connection))

    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url, poolclass=sa.NullPool)

    def connections(self, store: object) -> int:
        return len(self.opened)


class TestMemoryKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self) -> MemoryKeyStore:
        return MemoryKeyStore()


class TestInline(KeyStoreContract):
    @pytest.fixture
    def store(self) -> Inline:
        return Inline(MemoryKeyStore())


class TestSQLKeyStore(InSQLite):
    @pytest.fixture
    def store(self, made_url: str) -> SQLKeyStore:
        return SQLKeyStore(made_url)


class TestAsyncSQLKeyStore(InSQLite):
    @pytest.fixture
    def store(self, made_url: str) -> AsyncSQLKeyStore:
        return AsyncSQLKeyStore(made_url)


class TestInThread(InSQLite):
    @pytest.fixture
    def store(self, made_url: str) -> InThread:
        return InThread(SQLKeyStore(made_url))
