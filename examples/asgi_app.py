"""API keys in a plain ASGI application, served by uvicorn.

    python examples/asgi_app.py --port 8000

The first start prints a key for ada, who may read reports, and one for bob, who may not:

    curl http://127.0.0.1:8000/public
    curl -H "apikey: $KEY" http://127.0.0.1:8000/me
    curl "http://127.0.0.1:8000/reports?apikey=$KEY"
"""

import argparse
import asyncio
import json
import shlex
import sys
from dataclasses import dataclass
from typing import Any

import uvicorn

from apikey_auth import AsyncAuthenticator, AsyncKeyManager
from apikey_auth.asgi import APIKeyMiddleware, Receive, Scope, Send, require
from apikey_auth.stores.sql import AsyncSQLKeyStore


@dataclass(frozen=True)
class User:
    name: str
    is_active: bool = True


USERS = {"ada": User("ada"), "bob": User("bob")}
SCOPES = {"ada": ["reports:read"], "bob": []}


async def load_user(owner: str) -> User | None:
    """Find the user of a key; None, or one who is not active, and the key opens nothing."""
    return USERS.get(owner)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(f"this application does not speak {scope['type']}")
    status, content = respond(scope)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def respond(scope: Scope) -> tuple[int, Any]:
    match scope["path"]:
        case "/public":
            identity = scope.get("apikey_auth.identity")
            return 200, {"user": identity.user.name if identity else None}
        case "/me":
            identity = require(scope)
            return 200, {"user": identity.user.name, "key_id": identity.key.id, "scopes": identity.scopes}
        case "/reports":
            require(scope, "reports:read")
            return 200, ["January", "February"]
        case _:
            return 404, {"error": "not found"}


async def make_first_keys(keys: AsyncKeyManager) -> None:
    for user, scopes in SCOPES.items():
        if issued := await keys.ensure(user, name="first", scopes=scopes):
            print(f"{user}'s key: {issued.text}", flush=True)
        else:
            print(f"{user} has a key. Another one: python {shlex.join(sys.argv)} --issue {user}", flush=True)


async def prepare(auth: AsyncAuthenticator[User], store: AsyncSQLKeyStore, issue_for: str | None) -> None:
    if issue_for is None:
        await make_first_keys(auth.keys)
    else:
        issued = await auth.keys.issue(issue_for, scopes=SCOPES[issue_for])
        print(issued.text)
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", default="sqlite:///apikeys.db", metavar="URL")
    parser.add_argument("--issue", choices=USERS, help="print a new key for this user, and exit")
    options = parser.parse_args()
    store = AsyncSQLKeyStore(options.database, create=True)
    auth = AsyncAuthenticator(store, load_user=load_user)
    asyncio.run(prepare(auth, store, options.issue))
    if not options.issue:
        uvicorn.run(APIKeyMiddleware(app, auth), host="127.0.0.1", port=options.port, lifespan="off")


if __name__ == "__main__":
    main()
