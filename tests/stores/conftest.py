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


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with the tables and nothing in them: to copy is faster than to make."""
    file = tmp_path_factory.mktemp("empty") / "keys.db"
    store = SQLKeyStore(f"sqlite:///{file}")
    store.create_schema()
    store.close()
    return file.read_bytes()


@pytest.fixture
def made_url(file: Path, url: str, empty: bytes) -> str:
    """The URL of a file in which the tables are."""
    file.write_bytes(empty)
    return url


@pytest.fixture
def sql_store(made_url: str) -> Iterator[SQLKeyStore]:
    store = SQLKeyStore(made_url)
    yield store
    store.close()


@pytest.fixture
async def async_sql_store(made_url: str) -> AsyncIterator[AsyncSQLKeyStore]:
    store = AsyncSQLKeyStore(made_url)
    yield store
    await store.close()
