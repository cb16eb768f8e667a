"""API keys in a plain WSGI application, served by the standard library.

    python examples/wsgi_app.py --port 8000

The first start prints a key for ada, who may read reports, and one for bob, who may not:

    curl http://127.0.0.1:8000/public
    curl -H "apikey: $KEY" http://127.0.0.1:8000/me
    curl "http://127.0.0.1:8000/reports?apikey=$KEY"
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from apikey_auth import Authenticator, KeyManager
from apikey_auth.stores.sql import SQLKeyStore
from apikey_auth.wsgi import APIKeyMiddleware, require


@dataclass(frozen=True)
class User:
    name: str
    is_active: bool = True


USERS = {"ada": User("ada"), "bob": User("bob")}
SCOPES = {"ada": ["reports:read"], "bob": []}


def load_user(owner: str) -> User | None:
    """Find the user of a key; None, or one who is not active, and the key opens nothing."""
    return USERS.get(owner)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    status, content = respond(environ)
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(content).encode()]


def respond(environ: WSGIEnvironment) -> tuple[str, Any]:
    match environ["PATH_INFO"]:
        case "/public":
            identity = environ.get("apikey_auth.identity")
            return "200 OK", {"user": identity.user.name if identity else None}
        case "/me":
            identity = require(environ)
            return "200 OK", {
                "user": identity.user.name,
                "key_id": identity.key.id,
                "scopes": identity.scopes,
            }
        case "/reports":
            require(environ, "reports:read")
            return "200 OK", ["January", "February"]
        case _:
            return "404 Not Found", {"error": "not found"}


def make_first_keys(keys: KeyManager) -> None:
    for user, scopes in SCOPES.items():
        if issued := keys.ensure(user, name="first", scopes=scopes):
            print(f"{user}'s key: {issued.text}", flush=True)
        else:
            print(f"{user} has a key. Another one: python {shlex.join(sys.argv)} --issue {user}", flush=True)


class QuietHandler(WSGIRequestHandler):
    """Logs no requests: wsgiref would write the URL as it came, with the key in it."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", default="sqlite:///apikeys.db", metavar="URL")
    parser.add_argument("--issue", choices=USERS, help="print a new key for this user, and exit")
    options = parser.parse_args()
    auth = Authenticator(SQLKeyStore(options.database, create=True), load_user=load_user)
    if options.issue:
        print(auth.keys.issue(options.issue, scopes=SCOPES[options.issue]).text)
        return
    make_first_keys(auth.keys)
    application = APIKeyMiddleware(app, auth)
    with (
        make_server("127.0.0.1", options.port, application, handler_class=QuietHandler) as server,
        suppress(KeyboardInterrupt),
    ):
        server.serve_forever()


if __name__ == "__main__":
    main()
