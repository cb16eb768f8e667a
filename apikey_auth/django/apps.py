"""The application that INSTALLED_APPS names."""

from django.apps import AppConfig
from django.core import checks


class APIKeyAuthConfig(AppConfig):
    name = "apikey_auth.django"
    label = "apikey_auth"
    verbose_name = "API keys"

    def ready(self) -> None:
        from .checks import check_middleware, check_setting

        checks.register(check_setting, checks.Tags.security)
        checks.register(check_middleware, checks.Tags.security)
