"""What a store promises. Every sentence here holds for every store, and each has a test.

A store is any object with these methods; nothing is inherited or registered. Whatever goes wrong between
a store and its database is raised as ``StoreUnavailable`` from the original error; a store has deadlines
and never keeps a caller waiting for ever. Times are aware; a naive one raises ValueError.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from ..errors import ConfigurationError
from ..keys import APIKey, is_storable

MAX_CHANGES = 1000  # ids that one ``changes`` names; where there would be more, any may have changed

READING = ("get",)
MANAGING = ("get", "add", "swap", "revoke_all", "find", "count", "purge")


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the keys found. ``next`` is the ``after`` of the following page, None on the last."""

    items: tuple[APIKey, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Revision:
    """A point in a store's history: how many changes there were since its records began.

    ``epoch`` is a random mark made together with the schema, so that the history of another database, or
    of one made anew, is never taken for this one's.
    """

    epoch: str
    number: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed up to a revision; ``ids`` None says that any key may have."""

    revision: Revision
    ids: frozenset[str] | None


class KeyReader(Protocol):
    """The one method that authenticating takes."""

    def get(self, key_id: str, /) -> APIKey | None:
        """Read one record from the primary, outside any transaction of the caller; unknown is None.

        The record is a snapshot: changing the store later does not change it.
        """
        ...


class KeyStore(KeyReader, Protocol):
    """All that issuing, listing, changing and revoking take.

    Changes are atomic and durable when the method returns. ``swap`` (where it answers True),
    ``revoke_all`` and ``purge`` each move the revision by one, ``add`` and ``touch`` do not.
    """

    def add(self, key: APIKey, /) -> None:
        """Keep a new record. Raises DuplicateKey if there is one with its id, which stays as it is."""
        ...

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        """Put ``new`` in the place of ``old`` if the record still has its version and digest, else answer False.

        All of ``new`` is written except ``last_used_at``, which stays what it is. With a successor both are
        written or neither; DuplicateKey, if there is one with its id, means neither. Raises ValueError
        unless ``new`` is the next version of the same key.
        """
        ...

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        """Revoke what is not revoked yet, of one owner or of all (None), and tell how many.

        It is one step however many there are. A revoked record gets the time, the reason and its next
        version; one that was revoked before keeps its own.
        """
        ...

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List records by id, of one owner or of all, from behind ``after``, at most ``limit``.

        ``live_at`` leaves out what is revoked, disabled, expired or past its grace at that time. Pages
        neither skip nor repeat a record that was there all along, whatever is written meanwhile. Raises
        ValueError for a limit under 1 and an ``after`` that can be no id.
        """
        ...

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        """Count what ``find`` would list on all its pages."""
        ...

    def purge(self, before: datetime, /) -> int:
        """Delete records that were revoked, had expired or were past their grace before a time; tell how many."""
        ...

    def touch(self, used: Mapping[str, datetime], /) -> None:
        """Note when keys were last used: forward only, in one step; an unknown id makes no record.

        Moves neither a record's version nor the revision.
        """
        ...

    def changes(self, since: Revision | None, /) -> Changes:
        """Tell the revision, and which keys changed after ``since``.

        The answer names every key that was changed by a change up to ``revision`` and after ``since``.
        ``ids`` is None where that cannot be told: ``since`` is None, of another epoch, ahead of the store,
        from before a purge, or over 1,000 ids would be named.
        """
        ...


class AsyncKeyReader(Protocol):
    """``KeyReader`` for asyncio."""

    async def get(self, key_id: str, /) -> APIKey | None: ...


class AsyncKeyStore(AsyncKeyReader, Protocol):
    """``KeyStore`` for asyncio."""

    async def add(self, key: APIKey, /) -> None: ...

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool: ...

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int: ...

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page: ...

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int: ...

    async def purge(self, before: datetime, /) -> int: ...

    async def touch(self, used: Mapping[str, datetime], /) -> None: ...

    async def changes(self, since: Revision | None, /) -> Changes: ...


class Bridge:
    """A store in front of another one: it can do what that one can."""

    @property
    def wrapped(self) -> object:
        raise NotImplementedError


def check_store(store: object, methods: Iterable[str], *, asynchronous: bool) -> None:
    """Raise ConfigurationError unless a store has these methods, and in the colour that is needed."""
    if isinstance(store, str):
        raise ConfigurationError("a URL is no store; give it to one: SQLKeyStore(url)")
    if isinstance(store, type):
        raise ConfigurationError(f"{store.__name__} is a class; a store is an instance: {store.__name__}(…)")
    able = store.wrapped if isinstance(store, Bridge) else store
    missing = [name for name in methods if not callable(getattr(able, name, None))]
    if missing:
        raise ConfigurationError(
            f"{type(able).__name__} is no store for this: it lacks {', '.join(f'{name}()' for name in missing)}"
        )
    for name in methods:
        found = _is_async(getattr(store, name))
        if found and not asynchronous:
            raise ConfigurationError(
                f"{type(store).__name__}.{name} is async: use AsyncAuthenticator and AsyncKeyManager, or a store "
                "that is not"
            )
        if asynchronous and not found:
            raise ConfigurationError(
                f"{type(store).__name__}.{name} is not async: use an async store, or wrap this one in InThread(…) "
                "if it may block, in Inline(…) if it never does"
            )


def check_function(name: str, function: object, *, asynchronous: bool) -> None:
    """Raise ConfigurationError unless this is a callable that is ``async def``, or is not, as it is needed."""
    if not callable(function):
        raise ConfigurationError(f"{name} must be a function, not {function!r}")
    if _is_async(function) != asynchronous:
        needed = "an 'async def' here" if asynchronous else "a plain 'def' here, not an 'async def'"
        raise ConfigurationError(f"{name} must be {needed}")


def check_seconds(name: str, value: object, besides: str = "") -> None:
    """Raise ConfigurationError unless this is a number of seconds, 0 at least and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name} is a number of seconds{besides}, not {value!r}")


def _is_async(function: object) -> bool:
    called = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def joined(store: KeyStore | AsyncKeyStore, connection: object | None) -> dict[str, Any]:
    """Give what ``add`` is called with to join a transaction. Raises ConfigurationError if the store cannot.

    A store that can has one more argument there: ``add(key, /, *, connection=None)``.
    """
    if connection is None:
        return {}
    if "connection" not in inspect.signature(store.add).parameters:
        raise ConfigurationError(f"{type(store).__name__} takes no connection: leave it out")
    return {"connection": connection}


def check_page(after: str | None, limit: int) -> None:
    """Raise ValueError for a page of nothing, of more than any database counts, or behind no id."""
    if not 1 <= limit < 2**31:
        raise ValueError(f"limit must be 1 at least, and not {limit}")
    if after is not None and not is_storable(after):
        raise ValueError("after is the id that a page ended with")


def check_swap(old: APIKey, new: APIKey) -> None:
    """Raise ValueError unless ``new`` is the next version of the same key."""
    if new.id != old.id or new.version != old.version + 1:
        raise ValueError(f"{new.id!r} version {new.version} does not follow {old.id!r} version {old.version}")
