"""A small content repository that speaks sensenet's dialect, in the framework of your choice.

    python examples/sensenet.py --framework starlette --port 8000

``flask`` and ``django`` answer the same. The first start prints a key for Admin and one for User1:

    curl "http://127.0.0.1:8000/odata.svc/Root/Content/('Blog')"
    curl -H "apikey: $KEY" http://127.0.0.1:8000/odata.svc/Root/Content/MySecureFolder
    curl "http://127.0.0.1:8000/odata.svc/Root/Content/MySecureFolder?apikey=$KEY"
    curl -H "apikey: $KEY" "http://127.0.0.1:8000/odata.svc/('Root')/GetCurrentUser"
    curl -X POST -H "apikey: $KEY" "http://127.0.0.1:8000/odata.svc/Root/IMS/Public/('User1')/CreateApiKey"
"""

import argparse
import json
import re
import secrets
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

from apikey_auth import AsyncAuthenticator, Authenticator, KeyManager, MissingKey
from apikey_auth.management import NOT_A_USER, OwnKeys, Sensenet, below
from apikey_auth.management.sensenet import NotAUser
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore

# The repository. A user's id is what keys are kept under, whatever the user's name will be.


@dataclass(frozen=True)
class Content:
    id: int
    path: str
    type: str = "Folder"
    is_public: bool = True

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class User(Content):
    type: str = "User"
    is_public: bool = False
    is_active: bool = True
    is_authenticated: bool = True


ADMIN = User(1, "/Root/IMS/Public/Admin")
USER1 = User(1001, "/Root/IMS/Public/User1")
USER2 = User(1002, "/Root/IMS/Public/User2")
USER3 = User(1003, "/Root/IMS/Public/User3", is_active=False)
USERS = {user.name: user for user in (ADMIN, USER1, USER2, USER3)}
VISITOR = Content(6, "/Root/IMS/BuiltIn/Portal/Visitor", "User")
CONTENTS = [
    Content(2, "/Root", "PortalRoot"),
    Content(3, "/Root/IMS", "Domains"),
    Content(4, "/Root/IMS/Public", "Domain"),
    *USERS.values(),
    VISITOR,
    Content(2001, "/Root/Content"),
    Content(2002, "/Root/Content/Blog", "Blog"),
    Content(2003, "/Root/Content/Blog/Welcome", "BlogPost"),
    Content(2004, "/Root/Content/MySecureFolder", is_public=False),
    Content(2005, "/Root/Content/MySecureFolder/Plans", "File", is_public=False),
]
BY_ID = {content.id: content for content in CONTENTS}
BY_PATH = {content.path.lower(): content for content in CONTENTS}


def find(entity: str | int) -> Content | None:
    return BY_ID.get(entity) if isinstance(entity, int) else BY_PATH.get(entity.lower())


def shown(content: Content) -> dict[str, object]:
    return {"Id": content.id, "Path": content.path, "Name": content.name, "Type": content.type}


# What the library asks of the repository, the same in each framework.


def load_user(owner: str) -> User | None:
    """Find the user of a key; None, or one who is not active, and the key opens nothing."""
    user = BY_ID.get(int(owner)) if owner.isdecimal() else None
    return user if isinstance(user, User) else None


def owner_for(entity: str | int) -> str | NotAUser | None:
    """Tell whose keys an action on this content is about."""
    content = find(entity)
    if content is None:
        return None
    return str(content.id) if isinstance(content, User) else NOT_A_USER


def describe(owner: str | None) -> dict[str, object]:
    """Describe the user of a key, None being the visitor, for GetCurrentUser."""
    return shown(VISITOR if owner is None else BY_ID[int(owner)])


RIGHTS = OwnKeys(is_admin=lambda caller: caller.owner == str(ADMIN.id))
DIALECT = Sensenet(rights=RIGHTS, owner_for=owner_for, describe=describe)
RENDER = below("/odata.svc", DIALECT)


# Content requests. They stand before the mount of the actions, whose addresses end with a name.

SERVICES = ("odata.svc", "OData.svc")  # the second is the .NET client's spelling
ADDRESS = r"content\([0-9]{1,18}\)|[^()]*(?:\('[^()]+'\))?"
JSON = "application/json;odata=verbose;charset=utf-8"


def read(address: str, signed_in: bool) -> tuple[bytes, int]:
    """Answer one content, ``Root/Content/('Blog')`` or ``content(2002)``, or the children of ``Root/Content``.

    Raises MissingKey for what is not for visitors.
    """
    content = find(entity_of(address))
    if content is None:
        return b"", 404  # no body, from which the .NET client knows that there is no such content
    if not (content.is_public or signed_in):
        raise MissingKey
    if address.endswith(")"):
        return json.dumps({"d": shown(content)}).encode(), 200
    children = [each for each in CONTENTS if each.parent == content.path and (each.is_public or signed_in)]
    results = [shown(child) for child in children]
    return json.dumps({"d": {"__count": len(results), "results": results}}).encode(), 200


def entity_of(address: str) -> str | int:
    """Give the id or the path in an address: ``Root/Content/('Blog')`` and ``Root/Content('Blog')`` are one."""
    if by_id := re.fullmatch(r"content\(([0-9]+)\)", address):
        return int(by_id[1])
    folder, _, name = address.rstrip("/").partition("('")
    segments = [folder.rstrip("/"), name.removesuffix("')")]
    return "/" + "/".join(filter(None, segments))


# The frameworks. Each imports its own only: you have one of them.


def starlette_app(database: str) -> Any:
    from starlette.applications import Starlette
    from starlette.convertors import PathConvertor, register_url_convertor
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from apikey_auth.starlette import APIKeyMiddleware, KeyManagement

    class Address(PathConvertor):
        regex = ADDRESS

    async def load(owner: str) -> User | None:
        return load_user(owner)

    async def content(request: Request) -> Response:
        body, status = read(request.path_params["address"], request.user.is_authenticated)
        return Response(body, status, media_type=JSON)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await store.close()

    store = AsyncSQLKeyStore(database)
    auth = AsyncAuthenticator(store, load_user=load)
    register_url_convertor("address", Address())
    return Starlette(
        routes=[
            *(Route(f"/{service}/{{address:address}}", content) for service in SERVICES),
            KeyManagement("/odata.svc", auth, DIALECT),
        ],
        middleware=[Middleware(APIKeyMiddleware, auth=auth, render=RENDER)],
        lifespan=lifespan,
    )


def flask_app(database: str) -> Any:
    from flask import Flask, Response, g
    from werkzeug.routing import PathConverter

    from apikey_auth.flask import APIKeyAuth, key_management

    class Address(PathConverter):
        regex = ADDRESS
        part_isolating = False  # it has slashes

    def content(address: str) -> Response:
        body, status = read(address, g.user is not None)
        return Response(body, status, content_type=JSON)

    auth = Authenticator(SQLKeyStore(database), load_user=load_user)
    app = Flask(__name__)
    APIKeyAuth(auth, app, render=RENDER)
    app.url_map.converters["address"] = Address
    for service in SERVICES:
        app.add_url_rule(f"/{service}/<address:address>", view_func=content)
    app.register_blueprint(key_management("/odata.svc", auth, DIALECT))
    return app


urlpatterns: list[Any] = []  # where Django looks for the routes; django_app() puts them there


def django_app(database: str) -> Any:
    from django.conf import settings
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import include, path, re_path
    from django.views.decorators.http import require_safe

    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": database.removeprefix("sqlite:///"),
            }
        },
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "apikey_auth.django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "apikey_auth.django.middleware.APIKeyMiddleware",
        ],
        APIKEY_AUTH={"STORE": SQLKeyStore(database), "RENDER": RENDER},
        ROOT_URLCONF=__name__,
        SECRET_KEY=secrets.token_urlsafe(),
        ALLOWED_HOSTS=["127.0.0.1"],
    )
    application = get_wsgi_application()
    call_command("migrate", verbosity=0)
    make_django_users()

    from apikey_auth.django.urls import key_management  # there are models only once Django is set up

    @require_safe
    def content(request: HttpRequest, address: str) -> HttpResponse:
        body, status = read(address, request.user.is_authenticated)
        return HttpResponse(body, status=status, content_type=JSON)

    for service in SERVICES:
        urlpatterns.append(re_path(rf"^{service}/(?P<address>{ADDRESS})$", content))
    urlpatterns.append(path("", include(key_management("/odata.svc", DIALECT))))
    return application


def make_django_users() -> None:
    """Make Django's users, who are asked whether they are active; their keys are found by their pk."""
    from django.contrib.auth.models import User as DjangoUser

    for name, user in USERS.items():
        DjangoUser.objects.get_or_create(pk=user.id, defaults={"username": name, "is_active": user.is_active})


# The start.


def serve_asgi(app: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port)


def serve_wsgi(app: Any, port: int) -> None:
    import waitress  # type: ignore[import-untyped]

    waitress.serve(app, host="127.0.0.1", port=port)


FRAMEWORKS: dict[str, tuple[Callable[[str], Any], Callable[[Any, int], None]]] = {
    "starlette": (starlette_app, serve_asgi),
    "flask": (flask_app, serve_wsgi),
    "django": (django_app, serve_wsgi),
}


def make_first_keys(keys: KeyManager) -> None:
    for label, user in {"admin": ADMIN, "User1": USER1}.items():
        if issued := keys.ensure(str(user.id), name="first"):
            print(f"{label} key: {issued.text}", flush=True)
        else:
            command = f"python {shlex.join(sys.argv)} --issue {user.name}"
            print(f"{user.name} has a key. Another one: {command}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", default="sqlite:///sensenet.db", metavar="URL")
    parser.add_argument("--issue", choices=USERS, help="print a new key for this user, and exit")
    options = parser.parse_args()
    with closing(SQLKeyStore(options.database, create=True)) as store:
        keys = KeyManager(store)
        if options.issue:
            print(keys.issue(str(USERS[options.issue].id)).text)
            return
        make_first_keys(keys)
    create_app, serve = FRAMEWORKS[options.framework]
    serve(create_app(options.database), options.port)


if __name__ == "__main__":
    main()
