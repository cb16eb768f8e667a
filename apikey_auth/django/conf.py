"""The setting APIKEY_AUTH, read when it is first needed and again when a test changes it.

    APIKEY_AUTH = {
        "STORE": "redis://127.0.0.1:6379/0",         # a URL, a store, or the dotted path of one or its factory
        "PREFIX": "acme",                            # these three are KeyScheme's
        "PEPPERS": [],
        "FORMATS": [],
        "REQUIRED": False,                           # and these the options of every APIKeyMiddleware
        "EXEMPT": [],
        "CARRIERS": [Header("apikey"), Query("apikey")],
        "ON_INVALID": "reject",
        "REALM": "api",
        "TRUSTED_PROXIES": [],
    }

All of it may be left out. Without STORE the keys are in the project's own database, in the one to which
its routers send the models of ``apikey_auth``; ``manage.py migrate`` makes the tables. A blocking store
serves async views from threads.
"""

import inspect
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

try:
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.core.exceptions import ObjectDoesNotExist, ValidationError
    from django.core.signals import setting_changed
    from django.utils.module_loading import import_string
except ImportError as error:  # pragma: no cover
    raise ImportError("this package needs Django: pip install 'apikey_auth[django]'") from error

from ..authenticate import AsyncAuthenticator, Authenticator, share_cache
from ..errors import ConfigurationError
from ..keys import KeyScheme
from ..manage import AsyncKeyManager, KeyManager
from ..policy import Options, Policy
from ..stores.bridges import InThread
from ..stores.protocol import READING, AsyncKeyReader, KeyReader, check_store

if TYPE_CHECKING:  # a model, which cannot be imported while applications are loaded
    from django.contrib.auth.models import AbstractBaseUser

_SCHEME = ("PREFIX", "PEPPERS", "FORMATS")
_POLICY = tuple(name.upper() for name in Options.__annotations__)
_NO_USER = (
    ObjectDoesNotExist,
    ValidationError,
    ValueError,
    TypeError,
    OverflowError,
)  # or an owner that is no pk


class Setup:
    """What the setting comes to. Raises ConfigurationError for one that will not do."""

    def __init__(self, setting: object) -> None:
        if not isinstance(setting, Mapping):
            raise ConfigurationError("the setting APIKEY_AUTH must be a dict")
        known = ("STORE", *_SCHEME, *_POLICY)
        if unknown := [str(name) for name in setting if name not in known]:
            raise ConfigurationError(f"APIKEY_AUTH has no {', '.join(unknown)}; it has {', '.join(known)}")
        self.policy = Policy(**_chosen(setting, _POLICY))
        self._scheme = KeyScheme(**_chosen(setting, _SCHEME))
        self._store, self._async_store = _stores(setting)
        self.is_async = self._store is None

    @cached_property
    def authenticator(self) -> "Authenticator[AbstractBaseUser]":
        store: Any = self._async_store if self._store is None else self._store  # it says if it is async
        return Authenticator(store, self._scheme, load_user=load_user)

    @cached_property
    def async_authenticator(self) -> "AsyncAuthenticator[AbstractBaseUser]":
        auth = AsyncAuthenticator(self._async_store, self._scheme, load_user=aload_user)
        if self._store is not None:
            share_cache(self.authenticator, auth)
        return auth


@lru_cache(maxsize=1)
def setup() -> Setup:
    """Read the setting. Raises ConfigurationError."""
    return Setup(getattr(settings, "APIKEY_AUTH", {}))


def get_key_manager() -> KeyManager:
    """Give the manager of this project's keys: ``get_key_manager().issue(str(user.pk), name="CI")``."""
    return setup().authenticator.keys


def get_async_key_manager() -> AsyncKeyManager:
    """Give the manager of this project's keys for async code."""
    return setup().async_authenticator.keys


def database_of_keys() -> str | None:
    """Tell the alias of the project's database that has the keys; None where they are elsewhere."""
    from .store import DjangoKeyStore

    try:
        store = setup().authenticator.store
    except ConfigurationError:  # the system check tells
        return None
    return store.alias if isinstance(store, DjangoKeyStore) else None


def _chosen(setting: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name.lower(): setting[name] for name in names if name in setting}


def _stores(setting: Mapping[str, Any]) -> tuple[KeyReader | None, AsyncKeyReader]:
    """Give the store in both colours, None where an async one cannot serve blocking code."""
    from .store import AsyncDjangoKeyStore, DjangoKeyStore  # models, which are there after the settings

    store: Any = setting.get("STORE", DjangoKeyStore)
    if store is None:
        raise ConfigurationError("APIKEY_AUTH['STORE'] is None; leave it out to keep keys in the database")
    store = _named(store) if isinstance(store, str) else store
    store = store() if callable(store) else store
    asynchronous = inspect.iscoroutinefunction(getattr(store, "get", None))
    check_store(store, READING, asynchronous=asynchronous)
    if asynchronous:
        return None, store
    return store, AsyncDjangoKeyStore(store.using) if isinstance(store, DjangoKeyStore) else InThread(store)


def _named(name: str) -> Any:
    if "://" in name:
        from ..stores.opening import open_store  # which loads the driver that the URL names

        return open_store(name)
    try:
        return import_string(name)
    except ImportError as error:
        raise ConfigurationError(f"APIKEY_AUTH['STORE'] is a URL or a dotted path: {error}") from error


def _exactly(owner: str, user: "AbstractBaseUser") -> "AbstractBaseUser | None":
    return user if str(user.pk) == owner else None  # a database takes "01" for 1, revoke_all("1") does not


def load_user(owner: str) -> "AbstractBaseUser | None":
    try:
        return _exactly(owner, get_user_model()._default_manager.get(pk=owner))
    except _NO_USER:
        return None


async def aload_user(owner: str) -> "AbstractBaseUser | None":
    try:
        return _exactly(owner, await get_user_model()._default_manager.aget(pk=owner))
    except _NO_USER:
        return None


def _forget(*, setting: str, **_: object) -> None:
    if setting == "APIKEY_AUTH":
        setup.cache_clear()


setting_changed.connect(_forget, dispatch_uid="apikey_auth.setting")
