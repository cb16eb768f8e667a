"""Each example starts as its docstring says, and does what all the others do."""

import ast
import importlib.util
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from serving import PATIENCE, ROOT, Server, environment, free_port, printed_keys, running, store_in_django

from apikey_auth import APIKey, KeyManager
from apikey_auth.stores.sql import SQLKeyStore
from apikey_auth.testing import KeyReaderContract

NAMES = ("quickstart", "fastapi_app", "asgi_app", "wsgi_app", "flask_app", "django_app", "custom_store")
CHALLENGE = 'ApiKey realm="api", in="header", name="apikey"'


@contextmanager
def example(name: str, folder: Path) -> Iterator[Server]:
    port = free_port()
    database = f"sqlite:///{folder}/keys.db"
    command = [str(source(name)), "--port", str(port), "--database", database]
    with running(command, port, folder / "output.txt") as server:
        yield server


def source(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


def load(name: str) -> ModuleType:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(name, source(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_an_example_serves_its_routes_and_keeps_its_keys(name: str, tmp_path: Path) -> None:
    with example(name, tmp_path) as server:
        keys = printed_keys(server.log)
        assert sorted(keys) == ["ada", "bob"]
        check_routes(server, keys["ada"], keys["bob"])
        check_curl_lines(server, name, keys["ada"])
        check_owner_without_a_user(server, name, tmp_path / "keys.db")
        assert server.log.count(keys["ada"]) == 1, "the key of a URL was logged"
    with example(name, tmp_path) as server:
        assert printed_keys(server.log) == {}
        assert user_of(server, keys["ada"]) == "ada"
        new = issue_as_told(server.log, "bob")
        assert new not in keys.values()
        assert user_of(server, new) == "bob"


def check_routes(server: Server, ada: str, bob: str) -> None:
    assert_answer(server, "/public", 200, {"user": None})
    assert_answer(server, "/public", 200, {"user": "ada"}, key=ada)

    refusal = server.ask("/me")
    assert (refusal.status, refusal.json["code"]) == (401, "missing_key")
    assert refusal.headers["WWW-Authenticate"] == CHALLENGE
    assert refusal.headers["Content-Type"] == "application/problem+json"

    for answer in (
        server.ask("/me", ("apikey", ada)),
        server.ask("/me", ("ApiKey", ada)),
        server.ask(f"/me?apikey={ada}"),
        server.ask(f"/me?page=2&ApiKey={ada}"),
    ):
        assert answer.status == 200
        assert set(answer.json) == {"user", "key_id", "scopes"}
        assert (answer.json["user"], answer.json["scopes"]) == ("ada", ["reports:read"])
        assert answer.json["key_id"] not in ("", ada)
    assert server.ask("/me", ("apikey", bob)).json["scopes"] == []

    assert server.ask("/reports", ("apikey", ada)).json == ["January", "February"]
    assert_refused(server, "/reports", 401, "missing_key")
    assert_refused(server, "/reports", 403, "insufficient_scope", key=bob)
    assert_refused(server, "/me", 401, "invalid_key", key=f"{ada}x")
    assert_refused(server, "/public", 401, "invalid_key", key="wrong")
    assert_refused(server, f"/me?apikey={bob}", 400, "ambiguous_key", key=ada)
    assert server.ask("/nowhere", ("apikey", ada)).status == 404

    with pytest.raises(OSError, match=r"refused|unreachable|assign|timed out"):
        socket.create_connection(("127.0.0.2", server.port), 1)


def check_curl_lines(server: Server, name: str, key: str) -> None:
    """Send what the docstring's curl lines would send."""
    docstring = ast.get_docstring(ast.parse(source(name).read_text())) or ""
    assert f"\n    python examples/{name}.py --port 8000\n" in docstring
    lines = re.findall(r"^    curl (.+)$", docstring, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        *options, url = shlex.split(line.replace("$KEY", key))
        target = url.removeprefix("http://127.0.0.1:8000")
        headers = [header.partition(": ") for header in options if header != "-H"]
        answer = server.ask(target, *((name, value) for name, _, value in headers))
        assert answer.status == 200, line


def check_owner_without_a_user(server: Server, name: str, database: Path) -> None:
    """A key ends with its user: here one whose user never was."""
    if name == "custom_store":
        key = "eves"
        with closing(load(name).connect(str(database))) as connection, connection:
            connection.execute("INSERT INTO tokens VALUES (?, 'eve', '')", [key])
    elif name == "django_app":
        with store_in_django(database) as store:
            key = KeyManager(store).issue("eve").text
    else:
        store = SQLKeyStore(f"sqlite:///{database}")
        key = KeyManager(store).issue("eve").text
        store.close()
    assert_refused(server, "/me", 401, "inactive_user", key=key)


def issue_as_told(log: str, user: str) -> str:
    """Run the command that the example names at its second start, and give the key it prints."""
    told = re.search(rf"^{user} .*: python (.+)$", log, re.MULTILINE)
    assert told is not None, log
    command = [sys.executable, *shlex.split(told[1])]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def user_of(server: Server, key: str) -> object:
    return server.ask("/me", ("apikey", key)).json["user"]


def assert_answer(server: Server, target: str, status: int, content: object, key: str | None = None) -> None:
    answer = server.ask(target, *([("apikey", key)] if key else []))
    assert (answer.status, answer.json) == (status, content)


def assert_refused(server: Server, target: str, status: int, code: str, key: str | None = None) -> None:
    answer = server.ask(target, *([("apikey", key)] if key else []))
    assert (answer.status, answer.json["code"]) == (status, code)


def test_every_example_is_tested() -> None:
    tested = {*NAMES, "sensenet"}  # that one by test_sensenet_clients.py
    tested.add("test_custom_store")  # below
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == tested


class TestTokenStore(KeyReaderContract):
    """The store of ``custom_store.py``, and what its own test leaves out: a file that cannot be read."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        self.module, self.path = load("custom_store"), tmp_path / "tokens.db"
        self.module.make_table(str(self.path))
        self.module.add_token(str(self.path), "ada", "abcd")
        return self.module.TokenStore(str(self.path))

    @pytest.fixture
    def known(self, store: Any) -> APIKey:
        key = store.get(self.module.SCHEME.parse("abcd").id)
        assert isinstance(key, APIKey)
        return key

    @contextmanager
    def break_store(self, store: object) -> Iterator[None]:
        away = self.path.rename(self.path.with_suffix(".away"))
        self.path.write_bytes(b"no database" * 100)
        yield
        away.replace(self.path)

    def connections(self, store: object) -> int:
        opened = Path("/proc/self/fd").iterdir()
        return sum(link.exists() and link.samefile(self.path) for link in opened)


def test_the_store_plugins_own_test_file_proves_it() -> None:
    command = [sys.executable, "-m", "pytest", str(ROOT / "examples/test_custom_store.py"), "-q"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b2\d passed, 6 skipped", done.stdout), done.stdout


def test_the_store_plugin_is_found_by_the_url_that_its_comment_tells() -> None:
    module = load("custom_store")
    assert 'tokens = "custom_store:open_tokens"' in source("custom_store").read_text()
    assert module.open_tokens("tokens:///tokens.db").path == "tokens.db"


def test_the_store_plugin_has_at_most_15_lines() -> None:
    tree = ast.parse(source("custom_store").read_text())
    (store,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TokenStore")
    assert store.end_lineno is not None
    assert store.end_lineno - store.lineno + 1 <= 15


def test_the_store_plugin_finds_a_token_by_its_index(tmp_path: Path) -> None:
    module, path = load("custom_store"), str(tmp_path / "tokens.db")
    module.make_table(path)
    module.add_token(path, "ada", "abcd")
    module.add_token(path, "bob", "\N{SNOWMAN} no key can be this")
    store, key_id = module.TokenStore(path), module.SCHEME.parse("abcd").id
    assert store.get(key_id).owner == "ada"
    assert store.get("unknown") is None
    with closing(module.connect(path)) as connection:
        query = "EXPLAIN QUERY PLAN SELECT token FROM tokens WHERE key_id(token) = ?"
        assert "tokens_key_id" in str(connection.execute(query, [key_id]).fetchall())
