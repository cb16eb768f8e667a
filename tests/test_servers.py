"""The adapters behind real servers, over real sockets: what a server does to a request before we see it."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from time import sleep

import pytest
from serving import REVOCATION_BOUND, Server, ask, free_port, running, store_in_django
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from apikey_auth import IssuedKey, KeyManager, KeyScheme
from apikey_auth.stores.sql import SQLKeyStore

UVICORN = "-m uvicorn --port PORT --factory serving:APP"
HYPERCORN = "-m hypercorn --workers 0 --bind 127.0.0.1:PORT --access-logfile - serving:APP()"
GUNICORN = "-m gunicorn --bind 127.0.0.1:PORT --access-logfile - --no-control-socket serving:APP()"
PRELOAD = GUNICORN.replace("gunicorn ", "gunicorn --preload --workers 2 ")
WAITRESS = "-m waitress --listen 127.0.0.1:PORT --call serving:APP"

COMMANDS = {
    "uvicorn-plain": UVICORN.replace("APP", "plain_asgi"),
    "uvicorn-starlette": UVICORN.replace("APP", "starlette"),
    "hypercorn-plain": HYPERCORN.replace("APP", "plain_asgi"),
    "hypercorn-starlette": HYPERCORN.replace("APP", "starlette"),
    "gunicorn-plain": GUNICORN.replace("APP", "plain_wsgi"),
    "gunicorn-flask": GUNICORN.replace("APP", "flask"),
    "gunicorn-django": GUNICORN.replace("APP", "django"),
    "gunicorn-preload-plain": PRELOAD.replace("APP", "plain_wsgi"),
    "waitress-plain": WAITRESS.replace("APP", "plain_wsgi"),
    "waitress-flask": WAITRESS.replace("APP", "flask"),
    "waitress-django": WAITRESS.replace("APP", "django"),
}
CHALLENGE = 'ApiKey realm="api", in="header", name="apikey"'


@dataclass(frozen=True)
class Site:
    """A running server, and the keys of its application as another process manages them."""

    name: str
    server: Server
    keys: KeyManager

    def issue(self) -> IssuedKey:
        """Make a key for ada, who is the first user of the Django project."""
        return self.keys.issue("1" if self.name.endswith("django") else "ada", scopes=["reports:read"])

    def websocket(self, query: str) -> str:
        return f"ws://127.0.0.1:{self.server.port}/greet{query}"


@pytest.fixture(scope="module", params=COMMANDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    url = f"sqlite:///{folder}/keys.db"
    command = COMMANDS[request.param].replace("PORT", str(port)).split()
    with closing(SQLKeyStore(url)) as store:
        store.create_schema()
        with running(command, port, folder / "output.txt", DATABASE=url) as server:
            if request.param.endswith("django"):
                with store_in_django(folder / "keys.db") as own:
                    yield Site(request.param, server, KeyManager(own))
            else:
                yield Site(request.param, server, KeyManager(store))


def only(*servers: str) -> pytest.MarkDecorator:
    """Run a test with these servers alone."""
    names = [name for name in COMMANDS if name.startswith(servers)]
    return pytest.mark.parametrize("site", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.issue().text


def test_a_request_without_a_key_gets_a_challenge(site: Site) -> None:
    answer = site.server.ask("/me")
    assert (answer.status, answer.json["code"]) == (401, "missing_key")
    assert answer.headers.get_all("WWW-Authenticate") == [CHALLENGE]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Content-Length"]) == len(answer.body)


def test_a_key_is_read_from_the_header(site: Site, key: str) -> None:
    for name in ("apikey", "ApiKey", "APIKEY"):
        answer = site.server.ask("/me", (name, key))
        assert (answer.status, answer.json["user"]) == (200, "ada")
    assert "private" in answer.headers["Cache-Control"]


def test_blanks_around_a_key_in_the_header_are_no_part_of_it(site: Site, key: str) -> None:
    assert site.server.ask("/me", ("apikey", f" \t{key}\t ")).status == 200


def test_a_key_is_read_from_the_url(site: Site, key: str) -> None:
    for query in (f"apikey={key}", f"ApiKey={key}", f"page=2&%61pikey={key}", f"apikey={key}&%FF=%FF"):
        answer = site.server.ask(f"/me?{query}")
        assert (answer.status, answer.json["user"]) == (200, "ada")
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_a_header_given_twice_is_ambiguous(site: Site, key: str) -> None:
    twice = site.server.ask("/me", ("apikey", key), ("apikey", key))
    with_comma = site.server.ask("/me", ("apikey", f"{key},{key}"))
    with_blank = site.server.ask("/me", ("apikey", key), ("apikey", ""))
    for answer in (twice, with_comma, with_blank):
        assert (answer.status, answer.json["code"]) == (400, "ambiguous_key")


def test_a_well_formed_key_with_another_secret_is_refused(site: Site) -> None:
    forged = KeyScheme().mint(site.issue().key.id)
    answer = site.server.ask("/me", ("apikey", forged.text))
    assert (answer.status, answer.json["code"]) == (401, "invalid_key")


def test_a_long_key_is_refused(site: Site, key: str) -> None:
    answer = site.server.ask("/me", ("apikey", key + "A" * 4096))
    assert (answer.status, answer.json["code"]) == (401, "invalid_key")
    answer = site.server.ask("/me", ("apikey", "A" * 10240))
    if site.name.startswith("gunicorn"):  # its own limit is 8190 bytes for a header
        assert answer.status in (400, 431)
    else:
        assert (answer.status, answer.json["code"]) == (401, "invalid_key")


def test_bytes_beyond_ascii_in_the_header_are_refused(site: Site, key: str) -> None:
    # 0x85 and 0xA0 are blanks to str.strip(), which would make a good key of the text.
    for odd in (b"\x80", b"\x85", b"\xa0", b"\xff", bytes(range(0x80, 0x100))):
        for value in (odd, key.encode() + odd, odd + key.encode()):
            assert site.server.ask("/me", ("apikey", value)).status in (400, 401), value


def test_an_answer_to_head_has_no_body(site: Site) -> None:
    request = b"HEAD /me HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    head, _, body = site.server.exchange(request).partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 401 ", head)
    assert CHALLENGE.encode() in head
    assert body == b""


def test_a_key_counts_for_one_request_of_a_connection(site: Site, key: str) -> None:
    with closing(site.server.connect()) as connection:
        assert ask(connection, "/public", ("apikey", key)).json == {"user": "ada"}
        assert ask(connection, "/public").json == {"user": None}
        assert ask(connection, "/me").status == 401


def test_a_key_revoked_by_another_process_is_refused_within_the_bound(site: Site) -> None:
    issued = site.issue()
    for _ in range(4):  # so that each worker is likely to have seen it
        assert site.server.ask("/me", ("apikey", issued.text)).status == 200
    site.keys.revoke(issued.key.id)
    sleep(REVOCATION_BOUND)
    for _ in range(4):
        answer = site.server.ask("/me", ("apikey", issued.text))
        assert (answer.status, answer.json["code"]) == (401, "revoked_key")


@only("uvicorn", "hypercorn", "gunicorn")  # waitress has no access log
def test_the_key_of_a_url_is_not_in_the_access_log(site: Site, key: str) -> None:
    assert site.server.ask(f"/me?apikey={key}").status == 200
    assert site.server.ask(f"/me?apikey={key}A").status == 401
    assert site.server.ask(f"/logged?page=2&%61PIKEY={key}&part=3").status == 404
    log = site.server.wait_for_log("/logged")
    assert "/me" in log
    assert key not in log
    if not site.name.startswith("hypercorn"):  # which logs no query string
        assert "/logged?page=2&part=3 " in log


@only("uvicorn", "hypercorn")
@pytest.mark.parametrize("query", ["", "?apikey=wrong"])
def test_a_websocket_without_a_good_key_is_refused_before_it_is_accepted(site: Site, query: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(site.websocket(query)):
        pass
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == CHALLENGE


@only("uvicorn", "hypercorn")
def test_a_websocket_is_accepted_with_a_key_in_the_url_or_the_header(site: Site, key: str) -> None:
    with connect(site.websocket(f"?apikey={key}&room=7")) as connection:
        assert connection.recv(timeout=5) == "ada room=7"
    with connect(site.websocket("?room=7"), additional_headers={"apikey": key}) as connection:
        assert connection.recv(timeout=5) == "ada room=7"
    assert key not in site.server.wait_for_log("/greet")
