"""API keys in a FastAPI application, served by uvicorn; its own page, /docs, takes a key too.

    python examples/fastapi_app.py --port 8000

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
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Security

from apikey_auth import AsyncAuthenticator, AsyncKeyManager, Identity
from apikey_auth.fastapi import APIKeyAuth
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


def create_app(database: str) -> FastAPI:
    store = AsyncSQLKeyStore(database, create=True)
    auth = AsyncAuthenticator(store, load_user=load_user)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await make_first_keys(auth.keys)
        yield
        await store.close()

    app = FastAPI(lifespan=lifespan)
    api_key = APIKeyAuth(auth, app)

    @app.get("/public")
    async def public(visitor: Annotated[Identity[User] | None, Security(api_key.optional)]) -> dict[str, Any]:
        return {"user": visitor.user.name if visitor else None}

    @app.get("/me")
    async def me(identity: Annotated[Identity[User], Security(api_key)]) -> dict[str, Any]:
        return {"user": identity.user.name, "key_id": identity.key.id, "scopes": identity.scopes}

    @app.get("/reports", dependencies=[Security(api_key, scopes=["reports:read"])])
    def reports() -> list[str]:
        return ["January", "February"]

    return app


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
