"""Stores by URL, for settings files: ``open_store("postgresql+psycopg://…")``.

A URL's scheme is the name of an entry point in the group ``apikey_auth.stores``, and its value what takes
the URL and gives the store; a package with a store of its own adds a line to its ``pyproject.toml``::

    [project.entry-points."apikey_auth.stores"]
    acme = "acme_keys:AcmeKeyStore"
    "acme.async" = "acme_keys:AsyncAcmeKeyStore"

Without the second line, async code gets the first store in threads. A name such as ``acme`` serves
``acme+driver://`` too.
"""

from collections.abc import Callable
from typing import Any, cast

from ..errors import ConfigurationError
from .bridges import InThread
from .protocol import READING, AsyncKeyStore, KeyStore, check_store

GROUP = "apikey_auth.stores"
ASYNC = ".async"


def open_store(url: str, **options: Any) -> KeyStore:
    """Make the blocking store that a URL names; the options are those of its class.

    Raises ConfigurationError for a scheme that no installed package serves, and for one whose driver is
    missing.
    """
    scheme = _scheme(url)
    factory = _factory(scheme, "")
    if factory is None and _factory(scheme, ASYNC) is not None:
        raise ConfigurationError(f"the store for {scheme}:// is async: open_async_store opens it")
    if factory is None:
        raise ConfigurationError(_unknown(scheme))
    store = factory(url, **options)
    check_store(store, READING, asynchronous=False)
    return cast("KeyStore", store)


def open_async_store(url: str, **options: Any) -> AsyncKeyStore:
    """Make the async store that a URL names, a blocking one in threads if there is no other.

    Raises ConfigurationError as ``open_store`` does.
    """
    factory = _factory(_scheme(url), ASYNC)
    if factory is None:
        return InThread(open_store(url, **options))
    store = factory(url, **options)
    check_store(store, READING, asynchronous=True)
    return cast("AsyncKeyStore", store)


def _scheme(url: str) -> str:
    if not isinstance(url, str):
        raise ConfigurationError(f"a store's URL is text, not {type(url).__name__}")
    scheme, mark, _ = url.partition("://")
    if not mark or not scheme:
        raise ConfigurationError("a store's URL begins with its scheme, as in sqlite:///keys.db")
    return scheme


def _factory(scheme: str, colour: str) -> Callable[..., object] | None:
    """Load what makes the stores of a scheme, or of the part of it before a plus sign."""
    from importlib.metadata import entry_points  # takes longer to import than all of this library

    for name in dict.fromkeys((scheme, scheme.partition("+")[0])):
        for entry in entry_points(group=GROUP, name=name + colour):
            try:
                factory: Callable[..., object] = entry.load()
            except (ImportError, AttributeError) as error:
                raise ConfigurationError(f"the store for {name}:// cannot be loaded: {error}") from error
            return factory
    return None


def _unknown(scheme: str) -> str:
    from importlib.metadata import entry_points

    names = {entry.name.removesuffix(ASYNC) for entry in entry_points(group=GROUP)}
    known = ", ".join(f"{name}://" for name in sorted(names)) or "none"
    return (
        f"no store is installed for {scheme}://; installed are {known}. Install the package that has it: "
        f"it names its schemes in the entry-point group {GROUP}"
    )
