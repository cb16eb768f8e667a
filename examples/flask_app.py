"""API keys in a Flask application, served by waitress.

    python examples/flask_app.py --port 8000

The first start prints a key for ada, who may read reports, and one for bob, who may not:

    curl http://127.0.0.1:8000/public
    curl -H "apikey: $KEY" http://127.0.0.1:8000/me
    curl "http://127.0.0.1:8000/reports?apikey=$KEY"
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from typing import Any

import waitress  # type: ignore[import-untyped]
from flask import Flask, g

from apikey_auth import Authenticator, KeyManager
from apikey_auth.flask import APIKeyAuth, current_identity
from apikey_auth.stores.sql import SQLKeyStore


@dataclass(frozen=True)
class User:
    name: str
    is_active: bool = True


USERS = {"ada": User("ada"), "bob": User("bob")}
SCOPES = {"ada": ["reports:read"], "bob": []}


def load_user(owner: str) -> User | None:
    """Find the user of a key; None, or one who is not active, and the key opens nothing."""
    return USERS.get(owner)


def create_app(auth: Authenticator[User]) -> Flask:
    app = Flask(__name__)
    api = APIKeyAuth(auth, app)

    @app.get("/public")
    def public() -> dict[str, Any]:
        return {"user": g.user.name if g.user else None}

    @app.get("/me")
    @api.required()
    def me() -> dict[str, Any]:
        key = current_identity.key
        return {"user": g.user.name, "key_id": key.id, "scopes": key.scopes}

    @app.get("/reports")
    @api.required("reports:read")
    def reports() -> list[str]:
        return ["January", "February"]

    return app


def make_first_keys(keys: KeyManager) -> None:
    for user, scopes in SCOPES.items():
        if issued := keys.ensure(user, name="first", scopes=scopes):
            print(f"{user}'s key: {issued.text}", flush=True)
        else:
            print(f"{user} has a key. Another one: python {shlex.join(sys.argv)} --issue {user}", flush=True)


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
    waitress.serve(create_app(auth), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
