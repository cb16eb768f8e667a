"""Stores by URL: which package serves a scheme, and what is said where none does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apikey_auth import ConfigurationError, InThread, MemoryKeyStore, open_async_store, open_store
from apikey_auth.stores.redis import AsyncRedisKeyStore, RedisKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore

PLUGIN = """
from apikey_auth import Inline, MemoryKeyStore

class Store(MemoryKeyStore):
    def __init__(self, url, *, size=0):
        super().__init__()
        self.url, self.size = url, size

class AsyncStore(Inline):
    def __init__(self, url):
        super().__init__(MemoryKeyStore())
        self.url = url
"""
ENTRIES = """
[apikey_auth.stores]
acme = acme_keys:Store
both = acme_keys:Store
both.async = acme_keys:AsyncStore
other.async = acme_keys:AsyncStore
acme+special = acme_keys:AsyncStore
gone = acme_keys:Removed
lacking = acme_needs_a_driver:Store
nothing = builtins:len
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that is installed and has stores."""
    (tmp_path / "acme_keys.py").write_text(PLUGIN)
    (tmp_path / "acme_needs_a_driver.py").write_text("import a_driver_that_nobody_has\n")
    installed = tmp_path / "acme_keys-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-keys\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("acme_keys", None)


@pytest.mark.parametrize(
    ("url", "kind", "async_kind"),
    [
        ("sqlite:///keys.db", SQLKeyStore, AsyncSQLKeyStore),
        ("postgresql://127.0.0.1/keys", SQLKeyStore, AsyncSQLKeyStore),
        ("postgresql+psycopg://127.0.0.1/keys", SQLKeyStore, AsyncSQLKeyStore),
        ("mysql://127.0.0.1/keys", SQLKeyStore, AsyncSQLKeyStore),
        ("mariadb://127.0.0.1/keys", SQLKeyStore, AsyncSQLKeyStore),
        ("redis://127.0.0.1:1/0", RedisKeyStore, AsyncRedisKeyStore),
        ("rediss://127.0.0.1:1/0", RedisKeyStore, AsyncRedisKeyStore),
        ("unix:///run/redis.sock", RedisKeyStore, AsyncRedisKeyStore),
    ],
)
def test_a_url_of_each_kind_opens_the_store_that_is_for_it(url: str, kind: type, async_kind: type) -> None:
    assert type(open_store(url)) is kind
    assert type(open_async_store(url)) is async_kind


def test_a_plugin_is_found_by_its_scheme_and_is_given_the_whole_url_and_the_options() -> None:
    store = open_store("acme://host/path?a=b", size=3)
    assert isinstance(store, MemoryKeyStore)
    assert (store.url, store.size) == ("acme://host/path?a=b", 3)  # type: ignore[attr-defined]


def test_a_scheme_with_a_driver_is_served_by_the_plugin_for_all_of_them() -> None:
    assert open_store("acme+fast://host").url == "acme+fast://host"  # type: ignore[attr-defined]


def test_a_name_that_holds_the_driver_comes_before_the_one_that_does_not() -> None:
    with pytest.raises(ConfigurationError, match="is async"):
        open_store("acme+special://host")


async def test_async_code_gets_the_async_store() -> None:
    assert type(open_async_store("both://host")).__name__ == "AsyncStore"


async def test_async_code_gets_a_blocking_store_in_threads_where_there_is_no_other() -> None:
    store = open_async_store("acme://host")
    assert isinstance(store, InThread)
    assert await store.get("k1") is None


@pytest.mark.parametrize("opening", [open_store, open_async_store])
def test_an_unknown_scheme_is_an_error_that_lists_what_is_installed_and_how_to_get_more(opening) -> None:
    with pytest.raises(ConfigurationError) as caught:
        opening("mongodb://user:hunter2@host")
    said = str(caught.value)
    assert "no store is installed for mongodb://" in said
    assert "acme://, acme+special://, both://" in said
    assert "postgresql://, redis://" in said
    assert "Install the package" in said
    assert "hunter2" not in said


def test_blocking_code_is_told_of_a_store_that_is_async_only() -> None:
    with pytest.raises(ConfigurationError, match="other:// is async: open_async_store"):
        open_store("other://host")


@pytest.mark.parametrize("value", [None, Path("keys.db"), b"sqlite:///keys.db"])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="URL is text"):
        open_store(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "keys.db", "sqlite", "://host"])
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="begins with its scheme"):
        open_store(text)


@pytest.mark.parametrize(
    ("scheme", "said"),
    [("lacking", "a_driver_that_nobody_has"), ("gone", "Removed"), ("nothing", "is no store")],
)
def test_a_store_that_cannot_be_loaded_is_an_error_that_says_why(scheme: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        open_store(f"{scheme}://host")


def test_a_missing_extra_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("apikey_auth.stores.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'apikey_auth\[redis\]'"):
        open_store("redis://127.0.0.1")


def test_a_missing_driver_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'psycopg\[binary\]'"):
        open_store("postgresql://127.0.0.1/keys")
