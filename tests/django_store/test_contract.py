"""The contract of stores, for both colours on each database."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import pytest
from asgiref.sync import SyncToAsync
from django.db import connections

from apikey_auth import APIKey
from apikey_auth.django.models import Key
from apikey_auth.django.store import AsyncDjangoKeyStore, DjangoKeyStore
from apikey_auth.testing import KeyStoreContract

from .conftest import close_connections, emptied, open_files, open_sockets

NOWHERE = {"sqlite": {"NAME": "/nowhere/keys.db"}, "postgresql": {"PORT": "1"}, "mysql": {"PORT": "1"}}


class Blocking(DjangoKeyStore):
    def close(self) -> None:
        """Close what Django keeps open from request to request."""
        close_connections()


class Asynchronous(AsyncDjangoKeyStore):
    async def close(self) -> None:
        close_connections()


class DjangoContract(KeyStoreContract):
    kind: ClassVar[type[Blocking | Asynchronous]] = Blocking
    backend: ClassVar[str]

    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Iterator[Blocking | Asynchronous]:
        for alias in emptied(request, self.backend):
            yield self.kind(alias)

    def leave_thread(self, store: Any) -> None:
        connections.close_all()

    def add_many(self, kept: Any, keys: Sequence[APIKey]) -> None:
        rows = [Key(**{name: getattr(key, name) for name in APIKey.__slots__}) for key in keys]
        Key.objects.using(kept.store.alias).bulk_create(rows, batch_size=500)

    @contextmanager
    def break_store(self, store: Any) -> Iterator[None]:
        settings = connections.settings[store.alias]
        place = NOWHERE[connections[store.alias].vendor]
        before = {name: settings[name] for name in place}
        for run in (call_here, call_in_thread):
            run(partial(cut, store.alias))
        settings.update(place)
        yield
        settings.update(before)

    def connections(self, store: Any) -> int:
        settings = connections.settings[store.alias]
        port = settings["PORT"]
        return open_sockets(int(port)) if port else open_files(settings["NAME"])


def call_here(function: Callable[[], None]) -> None:
    function()


def call_in_thread(function: Callable[[], None]) -> None:
    SyncToAsync.single_thread_executor.submit(function).result()


def cut(alias: str) -> None:
    """Break a connection as the network would: Django does not know."""
    wrapper = connections[alias]
    if wrapper.connection is None:
        return
    if wrapper.vendor == "sqlite":
        wrapper.close()  # nothing lies between a program and its file
    elif wrapper.vendor == "mysql":
        wrapper.connection._force_close()
    else:
        wrapper.connection.close()


class TestSQLite(DjangoContract):
    backend = "sqlite"


class TestAsyncSQLite(DjangoContract):
    kind, backend = Asynchronous, "sqlite"


class TestPostgreSQL(DjangoContract):
    backend = "postgresql"


class TestAsyncPostgreSQL(DjangoContract):
    kind, backend = Asynchronous, "postgresql"


class TestMariaDB(DjangoContract):
    backend = "mariadb"


class TestAsyncMariaDB(DjangoContract):
    kind, backend = Asynchronous, "mariadb"
