"""System checks: E001 the setting, E002 and W001 the middleware's place, W002 the database that keeps keys."""

from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.db import connections

from ..errors import ConfigurationError
from .conf import database_of_keys, setup
from .middleware import APIKeyMiddleware, check_order, place_of


def check_setting(**_: Any) -> list[CheckMessage]:
    """E001: APIKEY_AUTH is missing or will not do."""
    try:
        setup()
    except ConfigurationError as error:
        return [Error(str(error), hint="See apikey_auth.django.conf.", id="apikey_auth.E001")]
    return []


def check_database(**_: Any) -> list[CheckMessage]:
    """W002: keys are to be kept where nobody has tried it; Oracle, for one, keeps no empty text."""
    alias = database_of_keys()
    if alias is None or (vendor := connections[alias].vendor) in ("sqlite", "postgresql", "mysql"):
        return []
    return [
        Warning(
            f"API keys are kept in {alias!r}, and were never tested on {vendor}.",
            hint="Route the models of apikey_auth to SQLite, PostgreSQL, MySQL or MariaDB.",
            id="apikey_auth.W002",
        )
    ]


def check_middleware(**_: Any) -> list[CheckMessage]:
    """W001: the middleware is missing; E002: AuthenticationMiddleware behind it would undo its work."""
    if place_of(APIKeyMiddleware) is None:
        return [
            Warning(
                "apikey_auth.django is installed, but no request passes its middleware.",
                hint="Add 'apikey_auth.django.middleware.APIKeyMiddleware' to MIDDLEWARE.",
                id="apikey_auth.W001",
            )
        ]
    try:
        check_order()
    except ConfigurationError as error:
        return [Error(str(error), hint="Move it behind AuthenticationMiddleware.", id="apikey_auth.E002")]
    return []
