"""The application that INSTALLED_APPS names."""

import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.apps import apps as installed
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import router
from django.db.models import Model
from django.db.models.signals import post_delete, post_migrate, post_save


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
        follow_users()
        setting_changed.connect(_setting_changed, dispatch_uid="apikey_auth.users")


def begin_history(using: str, apps: Any = installed, **_: object) -> None:
    """Make the row of ``State`` where it is gone: ``flush``, and every TransactionTestCase, empties all tables."""
    try:
        state = apps.get_model("apikey_auth", "State")
    except LookupError:  # migrated back to before there were tables
        return
    if router.allow_migrate_model(using, state):
        state.objects.using(using).get_or_create(id=1, defaults={"epoch": secrets.token_hex(16)})


def follow_users() -> None:
    """Have users forgotten when they are saved or deleted, by whichever model of theirs.

    A receiver for every model would see them all too, and take the fast way of deleting from all the others.
    """
    from .conf import forget_changed_user

    for model in _user_models():
        for signal in (post_save, post_delete):
            signal.connect(forget_changed_user, sender=model, dispatch_uid="apikey_auth.user")


def _user_models() -> Iterator[type[Model]]:
    """List the models with rows of users in them: the project's own, its parents, and the children and proxies of each."""
    from django.contrib.auth import get_user_model

    with suppress(ImproperlyConfigured):  # a project without users
        user: Any = get_user_model()._meta.concrete_model
        family = (user, *user._meta.get_parent_list())
        yield from filter(lambda model: issubclass(model, family), installed.get_models(include_swapped=True))


def _setting_changed(*, setting: str, **_: object) -> None:
    if setting == "AUTH_USER_MODEL":
        follow_users()
