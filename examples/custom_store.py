"""A store of your own: keys that another application keeps in a table of its database.

    python examples/custom_store.py --port 8000

The table has the tokens themselves, ``abcd`` is ada's; nothing in it is changed but an index added. What
proves the store is ``test_custom_store.py`` beside this file: ``pytest examples/test_custom_store.py``.

    curl http://127.0.0.1:8000/public
    curl -H "apikey: abcd" http://127.0.0.1:8000/me
    curl "http://127.0.0.1:8000/reports?apikey=abcd"
"""

import argparse
import secrets
import shlex
import sqlite3
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import waitress  # type: ignore[import-untyped]
from flask import Flask, g

from apikey_auth import APIKey, Authenticator, InvalidKey, KeyScheme, StoreUnavailable, opaque_tokens
from apikey_auth.flask import APIKeyAuth, current_identity

SCHEME = KeyScheme(formats=[opaque_tokens()])


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)  # the table does not tell when a token was made


class TokenStore:
    """The tokens of another application, read only; a key's id is a hash of its token."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, key_id: str, /) -> APIKey | None:
        try:
            row = find_token(self.path, key_id)
        except sqlite3.Error as error:  # the token may be good: nobody could look it up
            raise StoreUnavailable(f"the tokens cannot be read: {error}") from error
        if row is None:
            return None
        token, user, scopes = row
        return APIKey(key_id, user, SCHEME.digest(token), scopes=tuple(scopes.split()), created_at=LONG_AGO)


def find_token(path: str, key_id: str) -> tuple[str, str, str] | None:
    """Read the row of the token that has an id."""
    query = "SELECT token, user_name, scopes FROM tokens WHERE key_id(token) = ?"
    with closing(connect(path)) as database, suppress(UnicodeEncodeError):  # no token has such an id
        row: tuple[str, str, str] | None = database.execute(query, [key_id]).fetchone()
        return row
    return None


def open_tokens(url: str) -> TokenStore:
    """Make the store that ``open_store("tokens:///tokens.db")`` asks for.

    A package that has a store names it in its ``pyproject.toml``: the URL's scheme, and what takes the URL. For a
    store that is async the name is ``"tokens.async"``::

        [project.entry-points."apikey_auth.stores"]
        tokens = "custom_store:open_tokens"
    """
    return TokenStore(url.removeprefix("tokens:///"))


def connect(path: str) -> sqlite3.Connection:
    """Open the database, and teach it to tell a token's id."""
    database = sqlite3.connect(path)
    database.create_function("key_id", 1, key_id, deterministic=True)
    return database


def key_id(token: str) -> str | None:
    try:
        return SCHEME.parse(token).id
    except InvalidKey:  # what no request can carry as a key
        return None


@dataclass(frozen=True)
class User:
    name: str
    is_active: bool = True


USERS = {"ada": User("ada"), "bob": User("bob")}


def load_user(owner: str) -> User | None:
    """Find the user of a key; None, or one who is not active, and the key opens nothing."""
    return USERS.get(owner)


def create_app(path: str) -> Flask:
    app = Flask(__name__)
    api = APIKeyAuth(Authenticator(TokenStore(path), SCHEME, load_user=load_user), app)

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


# From here on: what the other application has done already.

TOKENS = {"ada": "abcd", "bob": "efgh"}
SCOPES = {"ada": "reports:read", "bob": ""}


def make_table(path: str) -> None:
    with closing(connect(path)) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS tokens"
            " (token TEXT PRIMARY KEY, user_name TEXT NOT NULL, scopes TEXT NOT NULL)"
        )
        # With this index a lookup is one step, without it a walk through the table. But whoever writes to
        # a table with such an index needs key_id(): leave it out while there are writers that lack it.
        database.execute("CREATE INDEX IF NOT EXISTS tokens_key_id ON tokens (key_id(token))")


def add_token(path: str, user: str, token: str) -> bool:
    """Add a token, and say whether it is a new one."""
    row = (token, user, SCOPES[user])
    with closing(connect(path)) as database, database:
        return database.execute("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?)", row).rowcount == 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", default="sqlite:///tokens.db", metavar="URL")
    parser.add_argument("--issue", choices=USERS, help="print a new token for this user, and exit")
    options = parser.parse_args()
    path = options.database.removeprefix("sqlite:///")
    make_table(path)
    if options.issue:
        token = secrets.token_urlsafe(32)
        add_token(path, options.issue, token)
        print(token)
        return
    for user, token in TOKENS.items():
        if add_token(path, user, token):
            print(f"{user}'s key: {token}", flush=True)
        else:
            print(f"{user} has a key. Another one: python {shlex.join(sys.argv)} --issue {user}", flush=True)
    waitress.serve(create_app(path), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
