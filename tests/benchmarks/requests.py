"""The library's middleware beside the hand-written one, in every framework."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from unittest import mock

from django.contrib.auth import get_user_model
from django.test import override_settings
from starlette.middleware import Middleware

import apikey_auth.asgi
import apikey_auth.flask
import apikey_auth.starlette
import apikey_auth.wsgi
from apikey_auth import AsyncAuthenticator, Authenticator, Inline, KeyManager, KeyScheme, MemoryKeyStore

from . import applications as bare
from .applications import USER, Keys, User
from .overhead import BARE, BY_HAND, EXPLANATION, HEADER, Figures, measure, rows
from .subjects import COLUMNS, FORGED, MALFORMED, UNKNOWN, VALID, Subject
from .tables import show
from .texts import PREFIX, SEAL_KEY, forged, malformed, unknown

MANY = 5_000  # different texts, more than an authenticator remembers of bad ones

OURS, OURS_LOADING = "apikey_auth", "apikey_auth with load_user"
STARLETTES = "Starlette's own, over a dict"


class World:
    """A key of one user, in a store in memory; sealed for the column of forged keys."""

    def __init__(self, column: str) -> None:
        self.scheme = KeyScheme(prefix=PREFIX, seal_keys=[SEAL_KEY] if column == FORGED else [])
        self.store = MemoryKeyStore()
        self.users = {USER.id: USER}
        self.text = KeyManager(self.store, self.scheme).issue(USER.id).text

    @property
    def keys(self) -> Keys:
        return Keys(self.text)

    def authenticators(self) -> dict[str, Authenticator[Any]]:
        """Make one whose users are owners, and one with users of the application's own."""
        return {
            OURS: Authenticator(self.store, self.scheme),
            OURS_LOADING: Authenticator(self.store, self.scheme, load_user=self.users.get),
        }

    def async_authenticators(self) -> dict[str, AsyncAuthenticator[Any]]:
        """Make the same for asyncio."""

        async def load_user(owner: str) -> User | None:
            return self.users.get(owner)

        store = Inline(self.store)
        return {
            OURS: AsyncAuthenticator(store, self.scheme),
            OURS_LOADING: AsyncAuthenticator(store, self.scheme, load_user=load_user),
        }


Build = Callable[[World, ExitStack], dict[str, Any]]


@dataclass(frozen=True)
class Framework:
    """How its applications are made, each by its name: bare, by hand, with the library and whatever else."""

    name: str
    is_asgi: bool
    build: Build


def _asgi(world: World, stack: ExitStack) -> dict[str, Any]:
    middleware = apikey_auth.asgi.APIKeyMiddleware
    return {
        BARE: bare.asgi,
        BY_HAND: bare.ASGIByHand(bare.asgi, world.keys),
        **{name: middleware(bare.asgi, auth) for name, auth in world.async_authenticators().items()},
    }


def _starlette(world: World, stack: ExitStack) -> dict[str, Any]:
    ours = {
        name: bare.starlette(Middleware(apikey_auth.starlette.APIKeyMiddleware, auth=auth))
        for name, auth in world.async_authenticators().items()
    }
    return {
        BARE: bare.starlette(),
        BY_HAND: bare.starlette(Middleware(bare.StarletteByHand, keys=world.keys)),
        STARLETTES: bare.starlettes_own(world.keys),
        **ours,
    }


def _wsgi(world: World, stack: ExitStack) -> dict[str, Any]:
    middleware = apikey_auth.wsgi.APIKeyMiddleware
    return {
        BARE: bare.wsgi,
        BY_HAND: bare.WSGIByHand(bare.wsgi, world.keys),
        **{name: middleware(bare.wsgi, auth) for name, auth in world.authenticators().items()},
    }


def _flask(world: World, stack: ExitStack) -> dict[str, Any]:
    ours = {name: bare.flask_app() for name in (OURS, OURS_LOADING)}
    for name, auth in world.authenticators().items():
        apikey_auth.flask.APIKeyAuth(auth, ours[name])
    return {BARE: bare.flask_app(), BY_HAND: bare.flask_by_hand(world.keys), **ours}


def _django(world: World, stack: ExitStack) -> dict[str, Any]:
    """The user comes out of a dict on both sides, so that no query hides what is measured."""
    manager = get_user_model()._default_manager
    users = {USER.id: get_user_model()(pk=USER.id)}
    stack.enter_context(mock.patch.object(manager, "get", lambda *, pk: users[pk]))
    keys = Keys(world.text, users[USER.id])
    return _django_applications(world, stack, keys.find)


def _django_with_users(world: World, stack: ExitStack) -> dict[str, Any]:
    """The user comes out of the database on both sides, as Django's own sessions have it."""
    users = get_user_model()._default_manager
    users.get_or_create(pk=USER.id)
    keys = Keys(world.text, USER.id)

    def find(text: bytes) -> Any:
        owner = keys.find(text)
        return None if owner is None else users.get(pk=owner)

    return _django_applications(world, stack, find)


def _django_applications(world: World, stack: ExitStack, find: bare.FindUser) -> dict[str, Any]:
    setting = {"STORE": world.store, "PREFIX": PREFIX, "SEAL_KEYS": world.scheme.seal_keys}
    stack.enter_context(override_settings(APIKEY_AUTH=setting))
    return {
        BARE: bare.django_handler(),
        BY_HAND: bare.django_by_hand(find),
        OURS: bare.django_handler("apikey_auth.django.middleware.APIKeyMiddleware"),
    }


FRAMEWORKS = (
    Framework("ASGI", True, _asgi),
    Framework("Starlette", True, _starlette),
    Framework("WSGI", False, _wsgi),
    Framework("Flask", False, _flask),
    Framework("Django", False, _django),
    Framework("Django, user from SQLite", False, _django_with_users),
)


def show_requests(rounds: int) -> None:
    """Print the table."""
    bare.set_up_django("apikey_auth.django")
    versions = ", ".join(f"{name} {version(name)}" for name in ("Starlette", "Flask", "Django"))
    with asyncio.Runner() as runner:
        title = f"What a request costs, with {versions}\n\n{EXPLANATION}"
        show(title, HEADER, _rows(rounds, runner.get_loop()))


def _rows(rounds: int, loop: asyncio.AbstractEventLoop) -> Iterator[Sequence[str]]:
    for framework in FRAMEWORKS:
        figures: Figures = {}
        for column in COLUMNS:
            figures |= _measure(framework, column, rounds, loop)
        yield from rows(framework.name, figures)


def _measure(framework: Framework, column: str, rounds: int, loop: asyncio.AbstractEventLoop) -> Figures:
    world = World(column)
    make = {UNKNOWN: unknown, MALFORMED: malformed, FORGED: forged}.get(column)
    texts = {column: [make(n) for n in range(MANY)] if make else [world.text]}
    with ExitStack() as stack:
        subjects = [
            Subject(name, application, texts, framework.is_asgi)
            for name, application in framework.build(world, stack).items()
            if name != BARE or column == VALID
        ]
        return measure(subjects, [column], rounds, loop)
