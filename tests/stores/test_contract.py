"""The contract, over the stores in memory and in SQL databases, and over each bridge."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from databases import closing_engine, new_database
from sqlalchemy import event

from apikey_auth import APIKey, Inline, InThread, MemoryKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.stores.sql.schema import KEYS, STATE
from apikey_auth.testing import KeyStoreContract, UnreliableStore


class InMemory(KeyStoreContract):
    """What never fails by itself is told to."""

    @contextmanager
    def break_store(self, store: UnreliableStore) -> Iterator[None]:
        store.fail()
        yield
        store.heal()

    def connections(self, store: UnreliableStore) -> int:
        return 0


class TestMemoryKeyStore(InMemory):
    @pytest.fixture
    def store(self) -> UnreliableStore:
        return UnreliableStore(MemoryKeyStore())


class TestInline(InMemory):
    @pytest.fixture
    def store(self) -> UnreliableStore:
        return UnreliableStore(Inline(MemoryKeyStore()))


class InSQL(KeyStoreContract):
    """What a test can do to a database behind the store's back, on a connection that has no pool of its own."""

    engine: sa.Engine

    @pytest.fixture(autouse=True)
    def opened(self) -> Iterator[None]:
        """Count what pools open and close: what a store has lost, nobody closes."""
        self.open = set[int]()
        events = [
            ("connect", self.note_open),
            ("close", self.note_closed),
            ("close_detached", self.note_closed),
        ]
        for name, note in events:
            event.listen(sa.QueuePool, name, note)
        yield
        for name, note in events:
            event.remove(sa.QueuePool, name, note)

    def note_open(self, connection: object, _: object) -> None:
        self.open.add(id(connection))

    def note_closed(self, connection: object, _: object = None) -> None:
        self.open.remove(id(connection))

    def connections(self, store: object) -> int:
        return len(self.open)

    @contextmanager
    def break_store(self, store: object) -> Iterator[None]:
        self.rename({KEYS.name: "keys_away", STATE.name: "state_away"})
        yield
        self.rename({"keys_away": KEYS.name, "state_away": STATE.name})

    def rename(self, tables: dict[str, str]) -> None:
        with self.engine.begin() as connection:
            for old, new in tables.items():
                connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    def add_many(self, kept: Any, keys: Sequence[APIKey]) -> None:
        first, *others = keys
        kept.add(first)
        names = [column.name for column in KEYS.c]
        with self.engine.begin() as connection:
            row = connection.execute(sa.select(KEYS).where(KEYS.c.id == first.id)).one()
            common = dict(zip(names, row, strict=True))
            connection.execute(sa.insert(KEYS), [{**common, "id": key.id} for key in others])


class InSQLite(InSQL):
    @pytest.fixture(autouse=True)
    def database(self, made_url: str) -> None:
        self.engine = sa.create_engine(made_url, poolclass=sa.NullPool)


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


@contextmanager
def with_tables(server: str, driver: str) -> Iterator[sa.Engine]:
    """Make a database of its own, with the tables, and give a way into it."""
    with new_database(server, driver) as url:
        address = sa.make_url(url).set(drivername=driver)
        store = SQLKeyStore(address)
        store.create_schema()
        store.close()
        with closing_engine(sa.create_engine(address, poolclass=sa.StaticPool)) as engine:
            yield engine


@pytest.fixture(scope="module")
def postgresql(postgresql_url: str) -> Iterator[sa.Engine]:
    with with_tables(postgresql_url, "postgresql+psycopg") as engine:
        yield engine


@pytest.fixture(scope="module")
def mariadb(mariadb_url: str) -> Iterator[sa.Engine]:
    with with_tables(mariadb_url, "mysql+pymysql") as engine:
        yield engine


class InServer(InSQL):
    server: ClassVar[str]
    driver: ClassVar[str]
    kind: ClassVar[type[SQLKeyStore | AsyncSQLKeyStore]]

    @pytest.fixture(autouse=True)
    def database(self, request: pytest.FixtureRequest) -> None:
        self.engine = request.getfixturevalue(self.server)
        with self.engine.begin() as connection:
            connection.execute(sa.delete(KEYS))
            connection.execute(sa.update(STATE).values(revision=0, floor=0))

    @pytest.fixture
    def store(self) -> SQLKeyStore | AsyncSQLKeyStore:
        return self.kind(self.engine.url.set(drivername=self.driver))


class TestPsycopg(InServer):
    server, driver, kind = "postgresql", "postgresql+psycopg", SQLKeyStore


class TestAsyncPsycopg(InServer):
    server, driver, kind = "postgresql", "postgresql+psycopg", AsyncSQLKeyStore


class TestAsyncpg(InServer):
    server, driver, kind = "postgresql", "postgresql+asyncpg", AsyncSQLKeyStore


class TestPyMySQL(InServer):
    server, driver, kind = "mariadb", "mysql+pymysql", SQLKeyStore


class TestAsyncmy(InServer):
    server, driver, kind = "mariadb", "mysql+asyncmy", AsyncSQLKeyStore
