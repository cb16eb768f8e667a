"""Stores for the tests of this folder: each in a file of its own, closed when its test is over."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a SQLite file may be made."""
    return tmp_path / "keys.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def sql_store(url: str) -> Iterator[SQLKeyStore]:
    store = SQLKeyStore(url)
    store.create_schema()
    yield store
    store.close()


@pytest.fixture
async def async_sql_store(url: str) -> AsyncIterator[AsyncSQLKeyStore]:
    store = AsyncSQLKeyStore(url)
    await store.create_schema()
    yield store
    await store.close()
