"""A world of keys and users, and key management over it in every framework."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from applications import World
from django.core.management import call_command
from sites import ADA, BOB, CARL, CHIEF, MOUNTS, RUNNER, Site, a_world

from apikey_auth.management import Dialect


@pytest.fixture(scope="session", autouse=True)
def django_people() -> None:
    """Give Django's database the users that the other applications have in a dict."""
    from django.contrib.auth.models import Permission, User
    from django.db import connection

    call_command("migrate", verbosity=0)
    for owner in (ADA, BOB, CHIEF, CARL):
        User.objects.get_or_create(
            pk=int(owner),
            username=f"person-{owner}",
            is_active=owner != CARL,
            is_superuser=owner == CHIEF,
        )
    clerk = User.objects.get_or_create(pk=105, username="clerk")[0]
    clerk.user_permissions.add(Permission.objects.get(codename="change_user"))
    connection.close()


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_the_callers() -> Iterator[None]:
    with RUNNER:
        yield


@pytest.fixture
def world() -> World:
    return a_world()


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> Random:
    """Let keys be drawn again, so that two applications make the same ones."""
    chance = Random(1)
    monkeypatch.setattr("apikey_auth.keys.secrets", SimpleNamespace(choice=chance.choice))
    return chance


@pytest.fixture(params=MOUNTS)
def build(
    request: pytest.FixtureRequest, world: World, chance: Random
) -> Iterator[Callable[[str, Dialect], Site]]:
    """Mount a dialect at a path in each framework: ``build(at, dialect, **options)``."""
    with ExitStack() as stack:

        def build(at: str, dialect: Dialect, **options: Any) -> Site:
            site: Site = stack.enter_context(MOUNTS[request.param](world, at, dialect, options))
            site.chance = chance
            if request.param != "wsgi":
                copy = a_world(scheme=world.scheme)
                site.twin = stack.enter_context(MOUNTS["wsgi"](copy, at, dialect, options))
            return site

        yield build
