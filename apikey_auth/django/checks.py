"""System checks: E001 the setting, E002 and W001 the middleware's place."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from ..errors import ConfigurationError
from .conf import setup
from .middleware import APIKeyMiddleware


def check_setting(**_: Any) -> list[CheckMessage]:
    """E001: APIKEY_AUTH is missing or will not do."""
    try:
        setup()
    except ConfigurationError as error:
        return [Error(str(error), hint="See apikey_auth.django.conf.", id="apikey_auth.E001")]
    return []


def check_middleware(**_: Any) -> list[CheckMessage]:
    """W001: the middleware is missing; E002: AuthenticationMiddleware behind it would undo its work."""
    from django.contrib.auth.middleware import AuthenticationMiddleware

    ours = _place(APIKeyMiddleware)
    if ours is None:
        return [
            Warning(
                "apikey_auth.django is installed, but no request passes its middleware.",
                hint="Add 'apikey_auth.django.middleware.APIKeyMiddleware' to MIDDLEWARE.",
                id="apikey_auth.W001",
            )
        ]
    theirs = _place(AuthenticationMiddleware)
    if theirs is not None and ours < theirs:
        return [
            Error(
                "APIKeyMiddleware stands before AuthenticationMiddleware, which would undo its work.",
                hint="Move 'apikey_auth.django.middleware.APIKeyMiddleware' behind it in MIDDLEWARE.",
                id="apikey_auth.E002",
            )
        ]
    return []


def _place(wanted: type) -> int | None:
    for place, path in enumerate(settings.MIDDLEWARE):
        found = import_string(path)
        if isinstance(found, type) and issubclass(found, wanted):
            return place
    return None
