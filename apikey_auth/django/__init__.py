"""Django: ``request.user`` is the user whose key it is, ``request.api_key`` the key's record.

Add ``"apikey_auth.django"`` to INSTALLED_APPS, ``"apikey_auth.django.middleware.APIKeyMiddleware"`` to
MIDDLEWARE behind AuthenticationMiddleware, and run ``manage.py migrate``; the setting APIKEY_AUTH (see
``conf``) may be left out.
"""

from .conf import forget_user, get_async_key_manager, get_key_manager
from .decorators import require_api_key

__all__ = ["forget_user", "get_async_key_manager", "get_key_manager", "require_api_key"]
