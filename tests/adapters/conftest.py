"""A world of keys and users, and every framework's application over it."""

from collections.abc import Callable
from typing import Any

import pytest
from applications import APPLICATIONS, Send, World
from django.core.management import call_command


@pytest.fixture(scope="session", autouse=True)
def django_users() -> None:
    """Give Django's database the users that the other applications have in a dict."""
    from django.contrib.auth.models import User
    from django.db import connection

    call_command("migrate", verbosity=0)
    User.objects.create(pk=1, username="ada", is_active=True)
    User.objects.create(pk=2, username="carl", is_active=False)
    connection.close()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=APPLICATIONS)
def build(request: pytest.FixtureRequest, world: World) -> Callable[..., Send]:
    """Build the application of each framework with some options."""

    def build(**options: Any) -> Send:
        return APPLICATIONS[request.param](world, **options)

    return build
