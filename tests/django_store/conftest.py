"""Databases for Django: one of each kind, with the tables in it, emptied for each test."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from asgiref.sync import SyncToAsync
from django.core.management import call_command
from django.db import connections

from apikey_auth.django.models import Key

DATABASE = f"apikey_auth_django_{os.getpid()}"


_number = count(1)


def install(name: str, **settings: Any) -> str:
    """Let Django know one more database, for good: its connections are kept by alias. Answer that."""
    alias = f"{name}_{next(_number)}"
    connections.settings[alias] = {**connections.settings["default"], "OPTIONS": {}, **settings}
    return alias


def migrated(alias: str) -> str:
    call_command("migrate", "apikey_auth", database=alias, verbosity=0)
    return alias


def close_connections() -> None:
    """Close those of this thread, and of the one in which async code calls what blocks."""
    connections.close_all()
    SyncToAsync.single_thread_executor.submit(connections.close_all).result()


@pytest.fixture(scope="session")
def sqlite_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield migrated(install("sqlite", NAME=tmp_path_factory.mktemp("django") / "keys.db"))
    close_connections()


def postgresql_settings(url: str, name: str) -> dict[str, Any]:
    """Make a database on a server, and give what Django needs to know of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
        )  # of a run before, on a lasting server
        connection.execute(f"CREATE DATABASE {name}")
        server = connection.info
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "HOST": server.host,
            "PORT": str(server.port),
            "USER": server.user,
            "PASSWORD": server.password,
        }


def mariadb_settings(url: str, name: str) -> dict[str, Any]:
    """Make a database on a server, in a character set that lacks most, and give what Django needs to know."""
    from sqlalchemy import make_url

    pymysql.version_info = (2, 2, 7, "final", 0)  # type: ignore[assignment]  # what Django asks of mysqlclient
    pymysql.install_as_MySQLdb()
    server = make_url(url)
    host, port, user, password = (
        server.host or "",
        server.port or 3306,
        server.username,
        server.password or "",
    )
    with pymysql.connect(host=host, port=port, user=user, password=str(password)) as connection:
        cursor = connection.cursor()
        if cursor.execute("SHOW DATABASES LIKE %s", [name]):  # of a run before, on a lasting server
            cursor.execute(f"DROP DATABASE {name}")
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET latin1")
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": name,
        "HOST": host,
        "PORT": str(port),
        "USER": user,
        "PASSWORD": password,
    }


@pytest.fixture(scope="session")
def postgresql_alias(postgresql_url: str) -> Iterator[str]:
    yield migrated(install("postgresql", **postgresql_settings(postgresql_url, DATABASE)))
    close_connections()


@pytest.fixture(scope="session")
def mariadb_alias(mariadb_url: str) -> Iterator[str]:
    yield migrated(install("mariadb", **mariadb_settings(mariadb_url, DATABASE)))
    close_connections()


BACKENDS = ("sqlite", "postgresql", "mariadb")


@pytest.fixture(params=BACKENDS)
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    """The alias of a database of each kind that has our tables and no keys."""
    yield from emptied(request, request.param)


def emptied(request: pytest.FixtureRequest, backend: str) -> Iterator[str]:
    found: str = request.getfixturevalue(f"{backend}_alias")
    Key.objects.using(found).all().delete()
    connections.close_all()
    yield found
    close_connections()


def open_files(path: Path) -> int:
    """Count how often this process has a file open."""
    return sum(1 for link in _links() if link == str(path))


def open_sockets(port: int) -> int:
    """Count the connections of this process to a port here."""
    own = set(_links())
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[2].endswith(f":{port:04X}") and f"socket:[{row[9]}]" in own)


def _links() -> Iterator[str]:
    for entry in os.scandir("/proc/self/fd"):
        try:
            yield os.readlink(entry.path)
        except FileNotFoundError:  # the folder's own
            continue


@pytest.fixture
def clean_project() -> Iterator[None]:
    """The project's own database, with ada, and no keys."""
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0)
    ada, is_ours = User.objects.get_or_create(pk=1, defaults={"username": "ada"})
    Key.objects.all().delete()
    yield
    if is_ours:  # others make her for their whole session
        ada.delete()
    close_connections()
