"""The contract, over every store of the library and each bridge."""

import pytest

from apikey_auth import Inline, InThread, MemoryKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore

from .contract import KeyStoreContract, KeyStoreRaces


class TestMemoryKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self) -> MemoryKeyStore:
        return MemoryKeyStore()


class TestInline(KeyStoreContract):
    @pytest.fixture
    def store(self) -> Inline:
        return Inline(MemoryKeyStore())


class TestSQLKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self, sql_store: SQLKeyStore) -> SQLKeyStore:
        return sql_store


class TestAsyncSQLKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self, async_sql_store: AsyncSQLKeyStore) -> AsyncSQLKeyStore:
        return async_sql_store


class TestInThread(KeyStoreContract):
    @pytest.fixture
    def store(self, sql_store: SQLKeyStore) -> InThread:
        return InThread(sql_store)


class TestMemoryKeyStoreRaces(KeyStoreRaces):
    @pytest.fixture
    def store(self) -> MemoryKeyStore:
        return MemoryKeyStore()


class TestSQLKeyStoreRaces(KeyStoreRaces):
    @pytest.fixture
    def store(self, sql_store: SQLKeyStore) -> SQLKeyStore:
        return sql_store
