"""Arbitrary requests to every dialect, and administrators and users at once over one file."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import pytest
from applications import World
from calling import Request
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sites import ADA, BOB, CHIEF, MOUNTS, Site, a_world

from apikey_auth import MemoryKeyStore
from apikey_auth.management import REST, OwnKeys, Sensenet, below
from apikey_auth.stores.sql import SQLKeyStore

RIGHTS = OwnKeys(is_admin=lambda caller: caller.owner == CHIEF)
MANAGE = "apikeys:manage"
SENSENET = Sensenet(rights=RIGHTS)

actions = st.sampled_from(
    ["GetApiKeys", "CreateApiKey", "DeleteApiKey", "DeleteApiKeys", "GetCurrentUser", "x"]
)
entities = st.sampled_from(
    [
        "/Root/IMS/Public/('101')",
        "('Root')",
        "/('102')",
        "/content(101)",
        "/Root",
        "/('')",
        "/('a%00b')",
        "/('%FF')",
    ]
)
wild = st.text(max_size=12).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="/'()"))
raw = st.binary(max_size=8).map(lambda data: quote(data, safe="/'()"))
ids = st.sampled_from(["ADA", "BOB", "CHIEF", "TEXT"])
sensenet_paths = st.builds("/odata.svc{}/{}".format, entities | wild | raw, actions | wild)
rest_paths = st.builds(
    "/keys{}".format,
    st.just("") | st.builds("/{}{}".format, ids | wild | raw, st.sampled_from(["", "/", "/rotate", "/x"])),
)
names = st.sampled_from(
    [
        "owner",
        "after",
        "limit",
        "descendants",
        "$top",
        "$skip",
        "$inlinecount",
        "apikey",
        "$select",
        "metadata",
        "%00",
    ]
)
values = st.sampled_from(["", "101", "102", "true", "1", "-1", "ADA", "%FF", "%00", "%F0%9F%98%80"]) | wild
queries = st.lists(st.builds("{}={}".format, names | wild, values) | wild, max_size=3).map("&".join)
fields = st.sampled_from(
    [
        "apiKey",
        "name",
        "scopes",
        "addresses",
        "expires_in",
        "expires_at",
        "grace",
        "disabled",
        "metadata",
        "owner",
    ]
)
texts = st.sampled_from(
    [
        "ADA",
        "BOB",
        "TEXT",
        "x",
        "",
        "a b",
        "\0",
        "\ud800",
        "2030-01-01T00:00:00",
        "2030-01-01T00:00:00Z",
        "10.0.0.0/8",
    ]
) | st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts, max_size=2)
objects = st.dictionaries(
    fields | st.text(max_size=3), scalars | st.dictionaries(texts, scalars, max_size=2), max_size=3
)


def written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


bodies = (
    st.just(b"")
    | objects.map(written)
    | st.lists(objects, max_size=2).map(written)
    | st.binary(max_size=60)
    | st.builds(lambda name, value: f"{name}={value}".encode("utf-8", "replace"), fields, texts)
)
latin = st.text(st.characters(min_codepoint=1, max_codepoint=255, blacklist_characters="\r\n"), max_size=12)
origins = (
    st.sampled_from(["http://[", "null", "https://keys.example.com", "https://evil.example", "", "a:b:c"])
    | latin
)
headers = st.lists(
    st.tuples(st.just("Origin"), origins)
    | st.tuples(st.just("Sec-Fetch-Site"), st.sampled_from(["same-origin", "cross-site", "none"]))
    | st.tuples(
        st.just("Content-Type"),
        st.sampled_from(["application/json", "multipart/form-data; boundary=x"]) | latin,
    )
    | st.tuples(st.just("Authorization"), st.sampled_from(["Bearer x", "Basic x", ""]) | latin)
    | st.tuples(st.just("X-Forwarded-For"), latin),
    max_size=3,
).map(tuple)
methods = st.sampled_from(
    ["GET", "POST", "POST", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS", "X", "get", ""]
)
callers = st.sampled_from(["owner", "reader", "another", "chief", "visitor", "nonsense", "session"])


@dataclass
class Fuzzed:
    """Both dialects of one framework over one store, refilled for each example."""

    world: World
    site: Site

    def fill(self) -> None:
        self.world.store.revoke_all(None, self.world.now, None)
        self.world.store.purge(datetime(2999, 1, 1, tzinfo=UTC))
        issue = self.world.keys.issue
        self.keys = {
            "owner": issue(ADA),
            "reader": issue(ADA, scopes=["a"]),
            "another": issue(BOB),
            "chief": issue(CHIEF),
        }

    def named(self, text: str) -> str:
        ids = {"ADA": "reader", "BOB": "another", "CHIEF": "chief"}
        for word, who in ids.items():
            text = text.replace(word, self.keys[who].key.id)
        return text.replace("TEXT", self.keys["reader"].text)

    def records(self) -> dict[str, Any]:
        return {key.id: key for key in self.world.keys.find(limit=1000).items}

    def ask(self, who: str, method: str, target: str, headers: Any, body: bytes) -> Any:
        sent = [("Host", "keys.example.com"), *headers]
        if who == "session":
            sent.append(("Cookie", f"sessionid={ADA}"))
        elif who != "visitor":
            sent.append(("apikey", self.keys[who].text if who in self.keys else who))
        body = self.named(body.decode("latin-1")).encode("latin-1")
        request = Request(self.named(target), tuple(sent), method, "127.0.0.1", body)
        return self.site.send(request, None)


@pytest.fixture(params=[("wsgi", "memory"), ("wsgi", "sqlite"), ("asgi", "sqlite")], ids="-".join)
def fuzzed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    name, kind = request.param
    with ExitStack() as stack:
        store: Any = MemoryKeyStore()
        if kind == "sqlite":
            store = SQLKeyStore(f"sqlite:///{tmp_path / 'keys.db'}")
            store.create_schema()
            stack.callback(store.close)
        world = a_world(store)

        def fuzzed(at: str, dialect: Any, **options: Any) -> Fuzzed:
            return Fuzzed(world, stack.enter_context(MOUNTS[name](world, at, dialect, options)))

        yield fuzzed


QUICK = settings(
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def check(fuzzed: Fuzzed, who: str, method: str, target: str, headers: Any, body: bytes) -> None:
    """Ask, and compare what became of every key with what this caller may do at all."""
    fuzzed.fill()
    before = fuzzed.records()
    answer = fuzzed.ask(who, method, target, headers, body)
    assert 200 <= answer.status < 500
    assert all(value.isprintable() for _, value in answer.headers)
    after = fuzzed.records()
    mine = {"owner": {ADA}, "session": {ADA}, "another": {BOB}, "chief": {ADA, BOB, CHIEF}}.get(who, set())
    if answer.status >= 400 or method not in ("POST", "PATCH", "DELETE"):
        assert after == before
    for key_id, key in after.items():
        if key != before.get(key_id):
            assert key.owner in mine or who == "chief"
            makers = {fuzzed.keys[w].key.id for w in fuzzed.keys} | {ADA}
            assert key_id in before or key.created_by in makers or key.rotated_from in before
    assert set(before) <= set(after)


def test_no_request_to_sensenets_actions_is_more_than_refused(fuzzed: Any) -> None:
    it = fuzzed("/odata.svc", SENSENET, render=below("/odata.svc", SENSENET))

    @QUICK
    @given(callers, methods, sensenet_paths, queries, headers, bodies)
    @example("chief", "GET", "/odata.svc/('%00')/GetApiKeys", "", (), b"")
    @example("chief", "POST", "/odata.svc/('%00')/DeleteApiKeys", "", (), b"")
    @example("owner", "POST", "/odata.svc/('Root')/DeleteApiKey", "", (), b'{"apiKey": "\\ud800"}')
    @example("owner", "POST", "/odata.svc/('Root')/DeleteApiKey", "", (), b'{"apiKey": "\\u0000"}')
    @example("session", "POST", "/odata.svc/('101')/CreateApiKey", "", (("Origin", "http://["),), b"")
    def fuzz(who: str, method: str, path: str, query: str, headers: Any, body: bytes) -> None:
        check(it, who, method, f"{path}?{query}", headers, body)

    fuzz()


def test_no_request_to_the_rest_dialect_is_more_than_refused(fuzzed: Any) -> None:
    it = fuzzed("/keys", REST(rights=RIGHTS))

    @QUICK
    @given(callers, methods, rest_paths, queries, headers, bodies)
    @example("owner", "GET", "/keys", "after=%00", (), b"")
    @example("chief", "GET", "/keys", "owner=%00", (), b"")
    @example("chief", "DELETE", "/keys", "owner=%00", (), b"")
    @example("owner", "PATCH", "/keys/ADA", "", (), b'{"expires_at": "2030-01-01T00:00:00"}')
    @example("owner", "POST", "/keys/ADA/rotate", "", (), b'{"grace": 1e300}')
    @example("owner", "POST", "/keys", "", (), b'{"metadata": {"a": "\\u0000\\ud800"}}')
    @example("owner", "GET", "/keys/%ED%A0%80", "", (), b"")
    def fuzz(who: str, method: str, path: str, query: str, headers: Any, body: bytes) -> None:
        check(it, who, method, f"{path}?{query}", headers, body)

    fuzz()


def test_metadata_of_any_depth_is_kept_or_refused_and_never_an_error(fuzzed: Any) -> None:
    it = fuzzed("/keys", REST(rights=RIGHTS))
    it.fill()
    for depth in (10, 300, *range(780, 1000, 5), 5000):
        for left, right in (('{"a":', "}"), ("[", "]")):
            before = it.world.store.count()
            body = f'{{"metadata": {{"a": {left * depth}1{right * depth}}}}}'.encode()
            answer = it.ask("owner", "POST", "/keys", (), body)
            assert answer.status in (201, 400), depth
            assert it.world.store.count() - before == (answer.status == 201)
            if answer.status == 201:
                target = f"/keys/{json.loads(answer.body)['id']}"
                assert it.ask("owner", "GET", target, (), b"").status == 200, depth


@dataclass
class Told:
    """What one thread was told, and when: ``began`` before its request was sent, ``ended`` after the answer."""

    kind: str
    status: int
    key_id: str
    began: float
    ended: float


def test_when_everybody_writes_at_once_every_answer_is_true_afterwards(tmp_path: Path) -> None:
    """Two administrators delete all keys while users make them, in threads, over one SQLite file."""
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    first = SQLKeyStore(url)
    first.create_schema()
    stores = [first, *(SQLKeyStore(url) for _ in range(4))]
    told: list[Told] = []
    lock, start = threading.Lock(), threading.Barrier(6)

    def administrator(store: Any, owner: str, times: int) -> None:
        with MOUNTS["wsgi"](a_world(store, now=datetime.now(UTC)), "/odata.svc", SENSENET, {}) as site:
            start.wait()
            for _ in range(times):
                note(site, "delete", "/odata.svc/('Root')/DeleteApiKeys", CHIEF)

    def user(store: Any, owner: str, times: int) -> None:
        with MOUNTS["wsgi"](a_world(store, now=datetime.now(UTC)), "/odata.svc", SENSENET, {}) as site:
            start.wait()
            for _ in range(times):
                note(site, "create", f"/odata.svc/('{owner}')/CreateApiKey", owner)

    def note(site: Site, kind: str, target: str, owner: str) -> None:
        began = monotonic()
        answer = site.ask("POST", target, user=owner, headers=(("Sec-Fetch-Site", "same-origin"),))
        ended = monotonic()
        key_id = json.loads(answer.body)["Id"] if answer.status == 200 else ""
        with lock:
            told.append(Told(kind, answer.status, key_id, began, ended))

    tasks = [(administrator, stores[0], CHIEF, 12), (administrator, stores[1], CHIEF, 12)]
    tasks += [(user, stores[2 + number % 3], owner, 25) for number, owner in enumerate([ADA, BOB, ADA, BOB])]
    threads = [threading.Thread(target=task, args=args) for task, *args in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    records = {key.id: key for key in a_world(first).keys.find(limit=1000).items}
    deletes = [each for each in told if each.kind == "delete" and each.status == 204]
    creates = [each for each in told if each.kind == "create" and each.status == 200]
    assert {each.status for each in told} <= {200, 204, 503}
    assert len(deletes) >= 2
    assert len(creates) >= 10
    for made in creates:
        alive = records[made.key_id].revoked_at is None
        if any(delete.began > made.ended for delete in deletes):
            assert not alive, "answered before a later delete-all began, and still alive"
        if all(delete.ended < made.began for delete in told if delete.kind == "delete"):
            assert alive, "asked for after the last delete-all was answered, and dead"
    answered = {made.key_id for made in creates}
    unanswered = [each for each in told if each.kind == "create" and each.status != 200]
    assert len(set(records) - answered) <= len(unanswered)
    for store in stores:
        store.close()
