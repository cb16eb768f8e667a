"""The key's trail: what servers, frameworks and caches leave behind of requests that carried one.

Every server is a real one, as verbose as it can be, and its application fails at every other request. Of no
secret may eight characters in a row be in anything that the server prints or answers.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from applications import APPLICATIONS, World
from calling import Request
from databases import missing
from serving import PATIENCE, Answer, Server, _stop, _wait_until_it_answers, environment, free_port
from trail.sites import PEPPER, SCHEME, SEAL_KEY

import apikey_auth
from apikey_auth import KeyManager
from apikey_auth.stores.sql import SQLKeyStore

REQUESTS = int(os.environ.get("APIKEY_AUTH_TRAIL_REQUESTS", "100"))  # to each server
PACKAGE = Path(apikey_auth.__file__).parent
SLOW = 4  # a debug page of Django's is as much work as so many answers of others
TOKEN = "an-opaque-token-of-an-older-system"

GUNICORN = (
    "-m gunicorn --bind 127.0.0.1:PORT --log-level debug --no-control-socket --access-logfile access.log "
    "--error-logfile error.log --access-logformat '%(r)s %(U)s %(q)s %({raw_uri}e)s %({query_string}e)sHEADERS'"
)
ITS_HEADERS = " %(f)s %({apikey}i)s %({http_apikey}e)s"
UNTOLD, TOLD = (GUNICORN.replace("HEADERS", headers) for headers in ("", ITS_HEADERS))
UVICORN = "-m uvicorn --port PORT --log-level LEVEL --factory"
HYPERCORN = (
    "-m hypercorn --workers 0 --bind 127.0.0.1:PORT --log-level debug --access-logfile - "
    "--access-logformat '%(r)s %(R)s %(U)s %(Uq)s %(q)sHEADERS'"
)
GRANIAN = (
    "-m granian --host 127.0.0.1 --port PORT --log-level debug --access-log "
    "--access-log-fmt '%(method)s %(path)s %(query_string)s %(status)dHEADERS' --factory --interface"
)

# Whose log holds what the application saw: the middleware alone keeps keys out of it.
CUT = {
    "uvicorn, plain ASGI": f"{UVICORN} trail.sites:plain_asgi".replace("LEVEL", "debug"),
    "uvicorn, Starlette debugging": f"{UVICORN} trail.sites:starlette".replace("LEVEL", "debug"),
    "uvicorn, Django debugging": f"{UVICORN} trail.sites:django_asgi".replace("LEVEL", "debug"),
    "hypercorn, plain ASGI": f"{HYPERCORN} trail.sites:plain_asgi()".replace("HEADERS", ""),
    "granian, plain ASGI": f"{GRANIAN} asgi trail.sites:plain_asgi".replace("HEADERS", ""),
    "gunicorn sync, Django debugging": f"{UNTOLD} trail.sites:django()",
    "gunicorn gthread, Flask": f"{UNTOLD} -k gthread --threads 4 trail.sites:flask()",
    "gunicorn gevent, Flask": f"{UNTOLD} -k gevent trail.sites:flask()",
    "gunicorn with uvicorn's worker, plain ASGI": (
        f"-W ignore::DeprecationWarning {UNTOLD} -k uvicorn.workers.UvicornWorker trail.sites:plain_asgi()"
    ),
    "waitress, plain WSGI": "-m waitress --listen 127.0.0.1:PORT --call trail.sites:plain_wsgi",
}

# Who logs the line as it came, all the time or when an application fails: there it takes the filter.
MASKED = {
    "uvicorn tracing, plain ASGI": f"{UVICORN} trail.sites:plain_asgi".replace("LEVEL", "trace"),
    "hypercorn, plain WSGI": f"{HYPERCORN} wsgi:trail.sites:plain_wsgi()".replace(
        "HEADERS", " %({apikey}i)s %(f)s"
    ),
    "granian, plain WSGI": f"{GRANIAN} wsgi trail.sites:plain_wsgi".replace("HEADERS", ""),
    "gunicorn sync, plain WSGI": f"{TOLD} trail.sites:plain_wsgi()",
    "gunicorn gthread, plain WSGI": f"{TOLD} -k gthread --threads 4 trail.sites:plain_wsgi()",
    "gunicorn gevent, plain WSGI": f"{TOLD} -k gevent trail.sites:plain_wsgi()",
    "gunicorn asgi, plain ASGI": f"{TOLD} -k asgi trail.sites:plain_asgi()",
    "runserver, Django debugging": "-c 'import trail.sites; trail.sites.runserver(PORT)'",
    "Flask's own, Flask debugging": "-m flask --app trail.sites:flask() run --port PORT --debug --no-reload",
}
WSGIREF = "-c 'import trail.sites; trail.sites.wsgiref(PORT)'"


@dataclass
class Site:
    """A running server, and the keys that are sent to it; the last one was never issued."""

    name: str
    server: Server
    folder: Path
    keys: list[str]
    runs: set[str] = field(init=False)

    def __post_init__(self) -> None:
        secrets = [key.rpartition("_")[2] for key in self.keys] + [TOKEN, PEPPER, SEAL_KEY]
        self.runs = {secret[at : at + 8] for secret in secrets for at in range(len(secret) - 7)}

    def leaks(self, text: str) -> list[str]:
        """List the lines that hold eight characters of a secret, as they stand or percent-encoded."""
        if not any(run in both for both in (text, unquote(text)) for run in self.runs):
            return []
        return [
            line for line in text.splitlines() if any(run in f"{line} {unquote(line)}" for run in self.runs)
        ]

    @property
    def printed(self) -> str:
        files = [path for path in sorted(self.folder.iterdir()) if path.suffix in (".txt", ".log")]
        return "\n".join(path.read_text("utf-8", "replace") for path in files)

    def wait_for(self, *texts: str) -> str:
        """Wait until the server has printed all these, and give all that it printed."""
        deadline = time.monotonic() + PATIENCE
        while any(text not in (printed := self.printed) for text in texts):
            assert time.monotonic() < deadline, f"not printed: {[t for t in texts if t not in printed]}"
            time.sleep(0.02)
        return printed

    def request(self, number: int) -> Answer:
        """Send one of many requests, every other one to a page that fails."""
        key, forged = self.keys[number % 3], self.keys[3]
        query, headers = [
            ("", [("apikey", key)]),
            (f"apikey={key}", []),
            (f"page=2&%61PIKEY={key}&part=3", []),
            ("apikey=" + "".join(f"%{ord(each):02x}" for each in key), []),
            (f"apikey={key}A", []),
            (f"apikey={forged}&page=2", []),
            (f"apikey={TOKEN}", []),
            ("", [("apikey", TOKEN)]),
            (f"apikey={key}", [("apikey", forged)]),
            ("", [("Referer", f"http://127.0.0.1/?page=2&apikey={key}")]),
        ][number // 2 % (9 if "Django" in self.name or self.name in CUT else 10)]
        page = "broken" if number % 2 else "fine"
        return self.server.ask(f"/{page}?n={number}.&{query}".removesuffix("&"), *headers)


@contextmanager
def serving(
    name: str, command: str, folder: Path, owners: Sequence[str] = ("1", "1", "1"), **variables: str
) -> Iterator[Site]:
    """Run a server until the end of the block; unlike ``running``, one that is meant to print tracebacks."""
    port, output, url = free_port(), folder / "output.txt", f"sqlite:///{folder}/keys.db"
    with closing(SQLKeyStore(url, create=True)) as store:
        keys = [KeyManager(store, SCHEME).issue(owner).text for owner in owners]
    with (
        output.open("wb") as log,
        subprocess.Popen(
            [sys.executable, *shlex.split(command.replace("PORT", str(port)))],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment(DATABASE=url, **variables),
        ) as process,
    ):
        site = Site(name, Server(process, port, output), folder, [*keys, SCHEME.mint().text])
        try:
            _wait_until_it_answers(site.server)
            yield site
        finally:
            _stop(process)


def assert_nothing_is_left(site: Site) -> None:
    """Send the requests, and look for their secrets in every answer and in all that was printed."""
    numbers = range(REQUESTS // SLOW if "Django" in site.name else REQUESTS)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(site.request, numbers))
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 400, 401, 500}
    for number, answer in zip(numbers, answers, strict=True):
        page = f"{answer.headers}{answer.body.decode('utf-8', 'replace')}"
        assert site.leaks(page) == [], number
    assert any("Broken" in answer.body.decode() for answer in answers) == ("debugging" in site.name)
    if not site.name.startswith("waitress"):  # which has no access log
        site.wait_for(*(f"n={number}." for number in numbers))
    site.wait_for("Broken: at ")
    assert site.leaks(site.printed) == []


@pytest.mark.parametrize("name", CUT)
def test_the_middleware_leaves_no_key_in_what_a_server_prints_or_answers(name: str, tmp_path: Path) -> None:
    with serving(name, CUT[name], tmp_path) as site:
        assert_nothing_is_left(site)
    assert site.leaks(site.printed) == []


@pytest.mark.parametrize("name", MASKED)
def test_where_a_server_logs_the_line_as_it_came_the_filter_leaves_no_key_in_it(
    name: str, tmp_path: Path
) -> None:
    with serving(name, MASKED[name], tmp_path, MASK_LOGS="1") as site:
        assert_nothing_is_left(site)
        assert site.server.ask("/unmask").body == b"unmasked"
        assert site.server.ask(f"/broken?apikey={site.keys[0]}").status == 500
        site.wait_for(site.keys[0])  # so the filter it was


def test_wsgirefs_server_prints_past_logging_and_takes_a_handler_that_masks(tmp_path: Path) -> None:
    for folder in (bare := tmp_path / "bare", masking := tmp_path / "masking"):
        folder.mkdir()
    with serving("wsgiref, plain WSGI", WSGIREF, bare) as site:
        assert site.server.ask(f"/fine?apikey={site.keys[0]}").status == 200
        site.wait_for(site.keys[0])
    with serving("wsgiref, plain WSGI", WSGIREF, masking, MASK_LOGS="1") as site:
        assert_nothing_is_left(site)


# What frames hold


@pytest.mark.parametrize("framework", ["wsgi", "asgi", "starlette"])
def test_no_frame_of_ours_below_a_failing_application_holds_the_key_of_a_url(framework: str) -> None:
    world = World()
    text = world.keys.issue("1").text
    with pytest.raises(RuntimeError) as caught:
        APPLICATIONS[framework](world)(Request(f"/error?apikey={text}"))
    ours = [entry.frame for entry in caught.traceback if f"{PACKAGE}/" in str(entry.path)]
    assert ours
    assert all(text not in f"{frame.f_locals!r}" for frame in ours)


# Caches

NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxied;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_cache_path cache keys_zone=answers:1m;
    server {
        listen 127.0.0.1:PORT;
        location / {
            proxy_pass http://127.0.0.1:BACKEND;
            proxy_cache answers;
            proxy_cache_key $uri;
            proxy_cache_valid any 10m;
            add_header X-Cache $upstream_cache_status always;
        }
    }
}
"""


@contextmanager
def nginx(backend: Server, folder: Path) -> Iterator[Server]:
    """Run nginx in front of a server, with a cache that keeps by the path alone whatever it may keep."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("nginx", "apt-get install nginx-light")
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.replace("PORT", str(port)).replace("BACKEND", str(backend.port)))
    output = folder / "output.txt"
    with (
        output.open("wb") as log,
        subprocess.Popen(
            [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        server = Server(process, port, output)
        try:
            _wait_until_it_answers(server)
            yield server
        finally:
            _stop(process)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, str]]:
    """Run an application behind nginx, and give the keys of two of its users."""
    folder = tmp_path_factory.mktemp("cached")
    command = "-m waitress --listen 127.0.0.1:PORT --call trail.sites:cacheable"
    with (
        serving("waitress", command, folder, ("ada", "bob")) as site,
        nginx(site.server, folder / "nginx") as front,
    ):
        yield front, *site.keys[:2]


def seen(answer: Answer) -> tuple[str, str]:
    return answer.body.decode(), answer.headers["X-Cache"]


def test_the_cache_keeps_what_a_visitor_was_answered(cached: tuple[Server, str, str]) -> None:
    front, _, _ = cached
    assert [seen(front.ask("/page")) for _ in range(2)] == [("a visitor", "MISS"), ("a visitor", "HIT")]


def test_the_cache_gives_nobody_what_another_one_was_answered(cached: tuple[Server, str, str]) -> None:
    front, ada, bob = cached
    for path in ("/header", "/header", "/both"):
        assert seen(front.ask(path, ("apikey", ada))) == ("ada", "MISS")
        assert seen(front.ask(path, ("apikey", bob))) == ("bob", "MISS")
    for path in ("/url", "/url", "/both"):
        assert seen(front.ask(f"{path}?apikey={ada}")) == ("ada", "MISS")
        assert seen(front.ask(f"{path}?apikey={bob}")) == ("bob", "MISS")
    for path in ("/header", "/url", "/both"):
        assert seen(front.ask(path)) == ("a visitor", "MISS")


def test_what_the_cache_keeps_for_visitors_nobody_gets_who_has_a_key_in_the_header(
    cached: tuple[Server, str, str],
) -> None:
    front, ada, bob = cached
    assert [seen(front.ask("/shared"))[1] for _ in range(2)] == ["MISS", "HIT"]
    assert seen(front.ask("/shared", ("apikey", ada))) == ("ada", "MISS")
    assert seen(front.ask("/shared", ("apikey", bob))) == ("bob", "MISS")


def test_the_cache_keeps_no_refusal(cached: tuple[Server, str, str]) -> None:
    front, ada, _ = cached
    assert front.ask("/refused", ("apikey", f"{ada}A")).status == 401
    assert front.ask(f"/refused?apikey={ada}A").status == 401
    assert seen(front.ask("/refused", ("apikey", ada))) == ("ada", "MISS")
    assert seen(front.ask("/refused")) == ("a visitor", "MISS")
