"""The application that INSTALLED_APPS names."""

import secrets
from typing import Any

from django.apps import AppConfig
from django.apps import apps as installed
from django.core import checks
from django.db import router
from django.db.models.signals import post_migrate


class APIKeyAuthConfig(AppConfig):
    name = "apikey_auth.django"
    label = "apikey_auth"
    verbose_name = "API keys"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from .checks import check_database, check_middleware, check_setting

        for check in (check_setting, check_database, check_middleware):
            checks.register(check, checks.Tags.security)
        post_migrate.connect(begin_history, sender=self, dispatch_uid="apikey_auth.state")


def begin_history(using: str, apps: Any = installed, **_: object) -> None:
    """Make the row of ``State`` where it is gone: ``flush``, and every TransactionTestCase, empties all tables."""
    try:
        state = apps.get_model("apikey_auth", "State")
    except LookupError:  # migrated back to before there were tables
        return
    if router.allow_migrate_model(using, state):
        state.objects.using(using).get_or_create(id=1, defaults={"epoch": secrets.token_hex(16)})
