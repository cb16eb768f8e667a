"""API keys in a Starlette application, served by uvicorn.

    python examples/quickstart.py --port 8000

The first start prints a key for ada, who may read reports, and one for bob, who may not:

    curl http://127.0.0.1:8000/public
    curl -H "apikey: $KEY" http://127.0.0.1:8000/me
    curl "http://127.0.0.1:8000/reports?apikey=$KEY"
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from apikey_auth import AsyncAuthenticator, AsyncKeyManager
from apikey_auth.starlette import APIKeyMiddleware, require_api_key
from apikey_auth.stores.sql import AsyncSQLKeyStore


@dataclass(frozen=True)
class User:
    name: str
    is_active: bool = True
    is_authenticated: bool = True


USERS = {"ada": User("ada"), "bob": User("bob")}
SCOPES = {"ada": ["reports:read"], "bob": []}


async def load_user(owner: str) -> User | None:
    """Find the user of a key; None, or one who is not active, and the key opens nothing."""
    return USERS.get(owner)


async def public(request: Request) -> JSONResponse:
    return JSONResponse({"user": request.user.name if request.user.is_authenticated else None})


@require_api_key()
async def me(request: Request) -> JSONResponse:
    identity = request.scope["apikey_auth.identity"]
    return JSONResponse({"user": request.user.name, "key_id": identity.key.id, "scopes": identity.scopes})


@require_api_key("reports:read")
async def reports(request: Request) -> JSONResponse:
    return JSONResponse(["January", "February"])


def create_app(database: str) -> Starlette:
    store = AsyncSQLKeyStore(database, create=True)
    auth = AsyncAuthenticator(store, load_user=load_user)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await make_first_keys(auth.keys)
        yield
        await store.close()

    return Starlette(
        routes=[Route("/public", public), Route("/me", me), Route("/reports", reports)],
        middleware=[Middleware(APIKeyMiddleware, auth=auth)],
        lifespan=lifespan,
    )


async def make_first_keys(keys: AsyncKeyManager) -> None:
    for user, scopes in SCOPES.items():
        if issued := await keys.ensure(user, name="first", scopes=scopes):
            print(f"{user}'s key: {issued.text}", flush=True)
        else:
            print(f"{user} has a key. Another one: python {shlex.join(sys.argv)} --issue {user}", flush=True)


async def issue(database: str, user: str) -> None:
    store = AsyncSQLKeyStore(database, create=True)
    issued = await AsyncKeyManager(store).issue(user, scopes=SCOPES[user])
    print(issued.text)
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", default="sqlite:///apikeys.db", metavar="URL")
    parser.add_argument("--issue", choices=USERS, help="print a new key for this user, and exit")
    options = parser.parse_args()
    if options.issue:
        asyncio.run(issue(options.database, options.issue))
    else:
        uvicorn.run(create_app(options.database), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
