"""The setting APIKEY_AUTH, read when it is first needed and again when a test changes it.

    APIKEY_AUTH = {
        "STORE": "redis://127.0.0.1:6379/0",         # a URL, a store, or the dotted path of one or its factory
        "PREFIX": "acme",                            # these five are KeyScheme's
        "PEPPERS": [],
        "SEAL_KEYS": [],
        "REQUIRE_SEAL": False,
        "FORMATS": [],
        "CACHE_SIZE": 10_000,                        # these the authenticators' (see Caching), in seconds
        "MAX_STALENESS": 1.0,
        "MAX_AGE": 300.0,
        "STALE_IF_ERROR": 0.0,
        "USER_MAX_AGE": 0.0,
        "TOUCH_INTERVAL": 60.0,
        "ON_EVENT": [],                              # functions (see events), or their dotted paths
        "REQUIRED": False,                           # and these the options of every APIKeyMiddleware
        "EXEMPT": [],
        "CARRIERS": [Header("apikey"), Query("apikey")],
        "ON_INVALID": "reject",
        "REALM": "api",
        "RENDER": None,
        "TRUSTED_PROXIES": [],
        "INSECURE": "allow",
        "HIDE_CREDENTIALS": False,
    }

All of it may be left out. Without STORE the keys are in the project's own database, in the one to which
its routers send the models of ``apikey_auth``; ``manage.py migrate`` makes the tables. A blocking store
serves async views from threads.

With USER_MAX_AGE, a user who is saved or deleted is loaded anew in this process, others see it when that
time is over. ``QuerySet.update()``, ``bulk_update()`` and SQL tell nobody: call ``forget_user(str(pk))``
after them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

try:
    from asgiref.sync import sync_to_async
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.core.exceptions import ObjectDoesNotExist, ValidationError
    from django.core.signals import setting_changed
    from django.db import connections, transaction
    from django.utils.module_loading import import_string
except ImportError as error:  # pragma: no cover
    raise ImportError("this package needs Django: pip install 'apikey_auth[django]'") from error

from ..authenticate import AsyncAuthenticator, Authenticator, Caching, share_cache
from ..errors import ConfigurationError
from ..events import Events, events_of
from ..keys import KeyScheme
from ..manage import AsyncKeyManager, KeyManager
from ..policy import Options, Policy
from ..stores.bridges import InThread
from ..stores.protocol import READING, AsyncKeyReader, KeyReader, check_store

if TYPE_CHECKING:  # a model, which cannot be imported while applications are loaded
    from django.contrib.auth.models import AbstractBaseUser

_SCHEME = ("PREFIX", "PEPPERS", "SEAL_KEYS", "REQUIRE_SEAL", "FORMATS")
_CACHING = tuple(name.upper() for name in Caching.__annotations__)
_POLICY = tuple(name.upper() for name in Options.__annotations__)

# An owner need not be a primary key, nor a text a name: each of these is how some field says that it cannot be one.
NO_USER = (ObjectDoesNotExist, ValidationError, ValueError, TypeError, OverflowError)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_list_or_set(value: object) -> bool:
    return _is_list(value) or isinstance(value, AbstractSet)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TIMES = ("MAX_STALENESS", "MAX_AGE", "STALE_IF_ERROR", "USER_MAX_AGE", "TOUCH_INTERVAL")

# What a type checker would say of arguments, and cannot say of settings.
_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(
        ("PREFIX", "ON_INVALID", "REALM", "INSECURE"), ("text", lambda value: isinstance(value, str))
    ),
    **dict.fromkeys(("PEPPERS", "SEAL_KEYS", "FORMATS", "CARRIERS"), ("a list", _is_list)),
    **dict.fromkeys(("EXEMPT", "TRUSTED_PROXIES"), ("a list", _is_list_or_set)),
    **dict.fromkeys(
        ("REQUIRED", "REQUIRE_SEAL", "HIDE_CREDENTIALS"),
        ("True or False", lambda value: isinstance(value, bool)),
    ),
    **dict.fromkeys(_TIMES, ("a number of seconds", _is_number)),
    "CACHE_SIZE": ("a whole number", lambda value: _is_number(value) and isinstance(value, int)),
    "RENDER": ("a function or None", lambda value: value is None or callable(value)),
}


class Setup:
    """What the setting comes to. Raises ConfigurationError for one that will not do."""

    def __init__(self, setting: object) -> None:
        if not isinstance(setting, Mapping):
            raise ConfigurationError("the setting APIKEY_AUTH must be a dict")
        known = ("STORE", *_SCHEME, *_CACHING, "ON_EVENT", *_POLICY)
        if unknown := [str(name) for name in setting if name not in known]:
            raise ConfigurationError(f"APIKEY_AUTH has no {', '.join(unknown)}; it has {', '.join(known)}")
        _check_kinds(setting)
        self.policy = Policy(**_chosen(setting, _POLICY))
        self._scheme = KeyScheme(**_chosen(setting, _SCHEME))
        self._caching: Caching = _chosen(setting, _CACHING)  # type: ignore[assignment]  # by its own names
        self.remembers_users = bool(self._caching.get("user_max_age"))
        self._events = _events(setting.get("ON_EVENT", ()))
        self._store, self._async_store = _stores(setting)
        self.is_async = self._store is None
        _ = self.async_authenticator  # now, so that a check finds what is wrong with its options

    @cached_property
    def authenticator(self) -> "Authenticator[AbstractBaseUser]":
        store: Any = self._async_store if self._store is None else self._store  # it says if it is async
        auth = Authenticator(store, self._scheme, load_user=load_user, on_event=self._events, **self._caching)
        auth.uses.release = connections.close_all  # a thread that writes has connections of its own
        return auth

    @cached_property
    def async_authenticator(self) -> "AsyncAuthenticator[AbstractBaseUser]":
        auth = AsyncAuthenticator(
            self._async_store, self._scheme, load_user=aload_user, on_event=self._events, **self._caching
        )
        if self._store is not None:
            share_cache(self.authenticator, auth)
        return auth


@lru_cache(maxsize=1)
def setup() -> Setup:
    """Read the setting. Raises ConfigurationError."""
    try:
        return Setup(getattr(settings, "APIKEY_AUTH", {}))
    except ConfigurationError as error:
        raise error.with_traceback(None) from error.__cause__  # its frames hold the peppers


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


def _check_kinds(setting: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a setting of the wrong kind; its value, which may be a secret, is not told."""
    for name, value in setting.items():
        wanted, is_right = _KINDS.get(name, ("", lambda _: True))
        if not is_right(value):
            raise ConfigurationError(f"APIKEY_AUTH[{name!r}] must be {wanted}, not {type(value).__name__}")


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


def _events(hooks: Any) -> Events | None:
    """Make what both authenticators tell what happens. Raises ConfigurationError."""
    hooks = hooks if _is_list(hooks) else (hooks,)
    try:
        found = [import_string(hook) if isinstance(hook, str) else hook for hook in hooks]
    except ImportError as error:
        raise ConfigurationError(f"APIKEY_AUTH['ON_EVENT'] is a function or its path: {error}") from error
    return events_of(found, asynchronous=False)


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
    """Find the user that an owner is; None for nobody."""
    try:
        user = _exactly(owner, get_user_model()._default_manager.get(pk=owner))
    except NO_USER:
        return None
    if user is None or not setup().remembers_users:
        return user
    if transaction.get_connection(user._state.db).in_atomic_block:
        forget_user(owner)  # while it is loaded, so that what may be rolled back is not remembered
    return user


async def aload_user(owner: str) -> "AbstractBaseUser | None":
    return await sync_to_async(load_user)(owner)  # all of it where the connection is


def forget_user(owner: str) -> None:
    """Load an owner's user anew in this process, whatever USER_MAX_AGE says."""
    if setup.cache_info().currsize:  # else there is nothing to forget, nor a reason to read the setting
        setup().async_authenticator.forget_user(owner)


def forget_changed_user(*, instance: "AbstractBaseUser", using: str, **_: object) -> None:
    """Receive the signal that a user was saved or deleted: forget now, and what others load until the commit."""
    forget = partial(forget_user, str(instance.pk))
    forget()
    if transaction.get_connection(using).in_atomic_block:
        transaction.on_commit(forget, using=using)


def _setting_changed(*, setting: str, **_: object) -> None:
    if setting == "APIKEY_AUTH":
        setup.cache_clear()


setting_changed.connect(_setting_changed, dispatch_uid="apikey_auth.setting")
