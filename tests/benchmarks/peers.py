"""What peers of this library add to a request, each as its README has it. Runs in their own environment.

Each is measured with the bare application and the hand-written middleware of its framework beside it, in
the same turns, so that its ratios compare with the library's own. The database of Django's is SQLite in memory, keyshield's a
file as in its README.
"""
# mypy: disable-error-code="import-not-found, import-untyped"
# pyright: reportMissingImports=false

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import flask
from django.urls import path as route

from . import applications as bare
from .applications import HELLO, Keys
from .overhead import BARE, BY_HAND, EXPLANATION, HEADER, measure, rows
from .subjects import MALFORMED, UNKNOWN, VALID, Subject, Texts
from .tables import show
from .texts import malformed, unknown

MANY = 1_000
OWN_KEY = unknown(10**11)

COLUMNS = (VALID, UNKNOWN, MALFORMED)
PEERS = ("Flask-HTTPAuth", "djangorestframework-api-key", "django-rest-knox", "keyshield")
FRAMEWORKS = ("Flask", "Django", "djangorestframework", "FastAPI")


def texts(valid: str, unknown: Callable[[int], str], malformed: Callable[[int], str]) -> Texts:
    return {
        VALID: [valid],
        UNKNOWN: [unknown(n) for n in range(MANY)],
        MALFORMED: [malformed(n) for n in range(MANY)],
    }


OWN = texts(OWN_KEY, unknown, malformed)


def beside(application: Any, by_hand: Any, *peers: Subject, path: str = "/") -> list[Subject]:
    """Put the bare application and the one by hand beside peers."""
    is_asgi = peers[0].is_asgi
    return [
        Subject(BARE, application, {VALID: [OWN_KEY]}, is_asgi, path),
        Subject(BY_HAND, by_hand, OWN, is_asgi, path),
        *peers,
    ]


def flask_httpauth() -> list[Subject]:
    from flask_httpauth import HTTPTokenAuth

    app, auth = flask.Flask("no_package"), HTTPTokenAuth(scheme="Bearer")
    tokens = {"secret-token-1": "john"}

    @auth.verify_token  # type: ignore[untyped-decorator]
    def verify_token(token: str) -> str | None:
        return tokens.get(token)

    app.add_url_rule("/", view_func=auth.login_required(lambda: HELLO), endpoint="hello")
    sent = texts("secret-token-1", "secret-token-{}".format, "{}".format)
    peer = Subject("Flask-HTTPAuth, over a dict", app, sent, False, "/", "Authorization", "Bearer")
    return beside(bare.flask_app(), bare.flask_by_hand(Keys(OWN_KEY)), peer)


def django_peers() -> list[Subject]:
    from django.contrib.auth import get_user_model
    from knox.auth import TokenAuthentication
    from knox.models import get_token_model
    from rest_framework.permissions import IsAuthenticated
    from rest_framework.response import Response
    from rest_framework.views import APIView
    from rest_framework_api_key.models import APIKey
    from rest_framework_api_key.permissions import HasAPIKey

    class Hello(APIView):  # type: ignore[misc]
        authentication_classes: Sequence[Any] = ()
        permission_classes: Sequence[Any] = ()

        def get(self, request: object) -> Any:
            return Response(HELLO)

    class HelloKey(Hello):
        permission_classes = (HasAPIKey,)

    class HelloToken(Hello):
        authentication_classes = (TokenAuthentication,)
        permission_classes = (IsAuthenticated,)

    bare.urlpatterns[:] = [
        route("hello", Hello.as_view()),
        route("key", HelloKey.as_view()),
        route("token", HelloToken.as_view()),
    ]
    user, _ = get_user_model()._default_manager.get_or_create(pk=1)
    _, key = APIKey.objects.create_key(name="benchmark")
    _, token = get_token_model().objects.create(user)
    keys = texts(key, lambda n: f"{n:08}.{'k' * 32}", "{}".format)
    tokens = texts(token, lambda n: f"{n:064x}", "{}".format)
    handler = bare.django_handler()
    return beside(
        handler,
        bare.django_by_hand(Keys(OWN_KEY, user).find),
        Subject("djangorestframework-api-key", handler, keys, False, "/key", "Authorization", "Api-Key"),
        Subject("django-rest-knox", handler, tokens, False, "/token", "Authorization", "Token"),
        path="/hello",
    )


def keyshield_on_sqlite(loop: asyncio.AbstractEventLoop, folder: str, *, quick: bool) -> list[Subject]:
    """As its README has it; where it shall be quick, with its cache, and without its sleep."""
    import aiocache
    from fastapi import Depends
    from keyshield import ApiKeyService
    from keyshield.hasher.argon2 import Argon2ApiKeyHasher
    from keyshield.repositories.sql import SqlAlchemyApiKeyRepository
    from keyshield.services.cached import CachedApiKeyService
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

    hasher = Argon2ApiKeyHasher(pepper="only for benchmarks")
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/{quick}.db", future=True)
    make_session = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
    make_service = ApiKeyService
    if quick:
        options = {"cache": aiocache.SimpleMemoryCache(), "min_delay": 0.0, "max_delay": 0.0}
        make_service = partial(CachedApiKeyService, **options)

    async def inject_session() -> AsyncIterator[Any]:
        async with make_session() as session, session.begin():
            yield session

    async def inject_service(session: Any = Depends(inject_session)) -> Any:  # noqa: B008
        repository = SqlAlchemyApiKeyRepository(session)
        await repository.ensure_table(async_engine=engine)
        return make_service(repo=repository, hasher=hasher)

    async def issue() -> str:
        async with make_session() as session, session.begin():
            service = await inject_service(session)
            _, text = await service.create(name="benchmark")
        return str(text)

    name = "keyshield, caching, no sleep" if quick else "keyshield, as in its README"
    return _keyshield(name, inject_service, loop.run_until_complete(issue()))


def keyshield_in_memory(loop: asyncio.AbstractEventLoop) -> list[Subject]:
    """With its cache, without its sleep, and with a dict for a database."""
    import aiocache
    from keyshield.hasher.argon2 import Argon2ApiKeyHasher
    from keyshield.repositories.in_memory import InMemoryApiKeyRepository
    from keyshield.services.cached import CachedApiKeyService

    hasher = Argon2ApiKeyHasher(pepper="only for benchmarks")
    cache = aiocache.SimpleMemoryCache()
    repository = InMemoryApiKeyRepository()
    service = CachedApiKeyService(repository, hasher, cache=cache, min_delay=0.0, max_delay=0.0)

    async def inject_service() -> Any:
        return service

    _, text = loop.run_until_complete(service.create(name="benchmark"))
    return _keyshield("keyshield, caching, no sleep, keys in memory", inject_service, text)


def _keyshield(name: str, inject_service: Callable[..., Any], text: str) -> list[Subject]:
    from fastapi import Depends, FastAPI
    from keyshield.api import create_depends_api_key

    plain, guarded = FastAPI(), FastAPI()

    async def hello() -> str:
        return HELLO

    plain.get("/")(hello)
    guarded.get("/", dependencies=[Depends(create_depends_api_key(inject_service))])(hello)
    sent = texts(text, lambda n: f"ak_v1-{n:016x}-{'k' * 64}", "{}".format)
    peer = Subject(name, guarded, sent, True, "/", "Authorization", "Bearer")
    return beside(plain, bare.StarletteByHand(plain, Keys(OWN_KEY)), peer)


def main(rounds: int) -> None:
    """Print the table."""
    only_json = {"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]}
    bare.set_up_django("rest_framework", "rest_framework_api_key", "knox", REST_FRAMEWORK=only_json)
    versions = ", ".join(f"{name} {version(name)}" for name in (*PEERS, *FRAMEWORKS))
    with asyncio.Runner() as runner, TemporaryDirectory() as folder:
        title = f"Peers: {versions}\n\n{EXPLANATION}"
        show(title, HEADER, _rows(rounds, runner.get_loop(), folder))


def _rows(rounds: int, loop: asyncio.AbstractEventLoop, folder: str) -> Iterator[Sequence[str]]:
    groups: Sequence[tuple[str, Callable[[], list[Subject]]]] = (
        ("Flask", flask_httpauth),
        ("Django REST framework", django_peers),
        ("FastAPI", lambda: keyshield_on_sqlite(loop, folder, quick=False)),
        ("FastAPI", lambda: keyshield_on_sqlite(loop, folder, quick=True)),
        ("FastAPI", lambda: keyshield_in_memory(loop)),
    )
    for framework, make in groups:
        yield from rows(framework, measure(make(), COLUMNS, rounds, loop))


if __name__ == "__main__":
    main(int(sys.argv[1]))
