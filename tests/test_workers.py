"""A revocation in an application of several worker processes: forked, spawned, and with greenlets."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest
from crew import Asked, Crew, working
from databases import new_database
from serving import PATIENCE

from apikey_auth import IssuedKey, KeyManager
from apikey_auth.stores.sql import SQLKeyStore

GUNICORN = "-m gunicorn --bind 127.0.0.1:PORT --no-control-socket --workers NUMBER crew:wsgi()"
AT_ONCE, MANY = 16, 50  # requests to one worker


@dataclass(frozen=True)
class Kind:
    """How the workers are made, how many, and where their keys are."""

    command: str
    workers: int
    on_postgresql: bool = False  # else in a SQLite file


UVICORN = "-m uvicorn --port PORT --workers NUMBER --factory crew:asgi"
KINDS = {
    "gunicorn-preload": Kind(f"{GUNICORN} --preload", 4),
    "gunicorn-gevent": Kind(f"{GUNICORN} --worker-class gevent", 2, on_postgresql=True),
    "gunicorn-gevent-preload": Kind(f"{GUNICORN} --worker-class gevent --preload", 2),
    "uvicorn": Kind(f"{UVICORN} --lifespan off", 2),
}
SIMULTANEOUS = [name for name in KINDS if name != "gunicorn-preload"]  # whose workers do many things at once


@dataclass(frozen=True)
class Site:
    """A crew at work, and its keys as another process manages them."""

    crew: Crew
    keys: KeyManager

    def issue(self) -> IssuedKey:
        """Make a key that each of the workers has in its cache."""
        issued = self.keys.issue("u1")
        for worker in self.crew.workers:
            self.crew.warm(worker, issued.text)
        return issued


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    command = kind.command.replace("NUMBER", str(kind.workers))
    with ExitStack() as opened:
        url = f"sqlite:///{folder}/keys.db"
        if kind.on_postgresql:
            server = request.getfixturevalue("postgresql_url")
            url = opened.enter_context(new_database(server, "postgresql+psycopg"))
        store = opened.enter_context(closing(SQLKeyStore(url)))
        store.create_schema()
        crew = opened.enter_context(working(command, kind.workers, folder, DATABASE=url))
        yield Site(crew, KeyManager(store))


def only(*kinds: str) -> pytest.MarkDecorator:
    """Run a test with these alone."""
    return pytest.mark.parametrize("site", kinds, indirect=True, scope="module")


def until(condition: Callable[[], object]) -> None:
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_refuses_at_once_what_it_revoked_itself(site: Site) -> None:
    for worker in site.crew.workers:
        issued = site.keys.issue("u1")
        site.crew.warm(worker, issued.text)
        site.crew.revoke(worker, issued.key.id)
        assert site.crew.use(worker, issued.text).code == "revoked_key"


def test_no_request_that_starts_later_than_the_bound_after_a_revocation_enters_at_any_worker(
    site: Site,
) -> None:
    crew, issued, bound = site.crew, site.issue(), site.crew.bound
    asked: list[Asked] = []
    revoked_at = float("inf")

    def use_on_and_on(worker: int) -> None:
        deadline = monotonic() + PATIENCE
        while True:
            last = crew.use(worker, issued.text)
            asked.append(last)
            if last.started > revoked_at + bound:
                return
            assert monotonic() < deadline
            time.sleep(0.005)

    with ThreadPoolExecutor(len(crew.workers)) as threads:
        users = [threads.submit(use_on_and_on, worker) for worker in crew.workers]
        until(lambda: {each.worker for each in asked} == set(crew.workers))
        revoked_at = crew.revoke(crew.workers[0], issued.key.id)
        for user in users:
            user.result()
    late = [each.started - revoked_at for each in asked if each.entered and each.started > revoked_at + bound]
    assert late == []
    at_once = [each for each in asked if each.worker == crew.workers[0] and each.started > revoked_at]
    assert {each.code for each in at_once} == {"revoked_key"}
    for worker in crew.workers:
        codes = [each.code for each in asked if each.worker == worker]
        assert codes == ["in"] * codes.count("in") + ["revoked_key"] * codes.count("revoked_key")
        assert set(codes) == {"in", "revoked_key"}


def test_a_worker_that_was_idle_since_before_a_revocation_refuses_its_first_requests(site: Site) -> None:
    crew, here, by_script = site.crew, site.issue(), site.issue()
    first, *others = crew.workers
    bound = crew.bound
    crew.revoke(first, here.key.id)
    site.keys.revoke(by_script.key.id)
    revoked_at = monotonic()
    until(lambda: monotonic() > revoked_at + bound)
    assert use_at_once(crew, first, by_script.text) == {"revoked_key": AT_ONCE}
    for worker in others:
        assert use_at_once(crew, worker, here.text) == {"revoked_key": AT_ONCE}


def use_at_once(crew: Crew, worker: int, text: str) -> Counter[str]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return Counter(each.code for each in threads.map(lambda _: crew.use(worker, text), range(AT_ONCE)))


@only(*SIMULTANEOUS)
def test_many_first_uses_at_once_cost_a_worker_one_read(site: Site) -> None:
    crew, text = site.crew, site.keys.issue("u1").text
    for worker in crew.workers:
        before = crew.state(worker)["calls"].get("get", 0)
        assert use_while_it_hangs(crew, worker, "get", text) == {"in": MANY}
        assert crew.state(worker)["calls"].get("get", 0) == before + 1


@only(*SIMULTANEOUS)
def test_while_a_worker_that_was_idle_asks_what_changed_nobody_enters(site: Site) -> None:
    crew, issued, bound = site.crew, site.issue(), site.crew.bound
    site.keys.revoke(issued.key.id)
    revoked_at = monotonic()
    until(lambda: monotonic() > revoked_at + bound)
    for worker in crew.workers:
        before = crew.state(worker)["calls"].get("changes", 0)
        assert use_while_it_hangs(crew, worker, "changes", issued.text) == {"revoked_key": MANY}
        assert crew.state(worker)["calls"].get("changes", 0) == before + 1


def use_while_it_hangs(crew: Crew, worker: int, method: str, text: str) -> Counter[str]:
    """Use a key many times at once while a method of a worker's store hangs, and let all go on together."""
    crew.ask(worker, f"/hang/{method}")
    expected = crew.state(worker)["arrived"] + MANY
    with ThreadPoolExecutor(MANY) as threads:
        users = [threads.submit(crew.use, worker, text) for _ in range(MANY)]
        try:
            until(lambda: crew.state(worker)["arrived"] == expected)
            waiting = crew.state(worker)["waiting"]
        finally:
            crew.ask(worker, "/heal")
        assert waiting == 1
        return Counter(user.result().code for user in users)


@pytest.mark.parametrize("name", ["gunicorn-preload", "gunicorn-gevent-preload", "uvicorn"])
def test_workers_write_which_keys_were_used_when_they_end_and_not_before(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    command = kind.command.replace("NUMBER", str(kind.workers)).replace("--lifespan off", "--lifespan on")
    url = f"sqlite:///{tmp_path}/keys.db"
    with closing(SQLKeyStore(url, create=True)) as store:
        keys = KeyManager(store)
        issued = [keys.issue("u1") for _ in range(kind.workers)]
        unused = keys.issue("u1")
        with working(command, kind.workers, tmp_path, DATABASE=url) as crew:
            for worker, each in zip(crew.workers, issued, strict=True):
                for _ in range(3):
                    assert crew.use(worker, each.text).code == "in"
                assert "touch" not in crew.state(worker)["calls"]
            assert [keys.get(each.key.id).last_used_at for each in issued] == [None] * kind.workers
        until(lambda: all(keys.get(each.key.id).last_used_at for each in issued))
        assert keys.get(unused.key.id).last_used_at is None
