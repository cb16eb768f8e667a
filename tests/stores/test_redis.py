"""What the Redis stores promise beside the contract: their marks, their scripts, their connections."""

import asyncio
import os
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any

import pytest
import redis
import redis.asyncio
from databases import Server
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from apikey_auth import APIKey, ConfigurationError, DuplicateKey, StoreUnavailable
from apikey_auth.decisions import changed
from apikey_auth.stores import redis as module
from apikey_auth.stores.protocol import MANAGING, Changes, Revision
from apikey_auth.stores.redis import AsyncRedisKeyStore, RedisKeyStore
from apikey_auth.testing import KeyStoreContract
from apikey_auth.testing.drive import Kept, Threads, opened
from apikey_auth.testing.model import IDS, OWNERS, SameAsMemory, a_key_id, an_owner
from apikey_auth.testing.reader import chain_of
from apikey_auth.testing.records import DAY, MOMENT, NOW, add_all, everything, named, record, revision_of

METHODS = (*MANAGING, "touch", "changes")
SECRET = "$$$ the digest nobody may read"
PATIENCE = 30  # seconds; far more than what is waited for

Open = Callable[..., Kept]


@pytest.fixture
def namespace() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def server(redis_url: str, namespace: str) -> Iterator[redis.Redis]:
    """Another client of the server; what the test leaves there goes."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
        for name in client.scan_iter(f"{{{namespace}}}:*", count=1000):
            client.unlink(name)


@pytest.fixture(params=[RedisKeyStore, AsyncRedisKeyStore])
def open_store(request: pytest.FixtureRequest, namespace: str) -> Iterator[Open]:
    """Open stores of either colour, their calls blocking."""
    with ExitStack() as stack:

        def opening(client: Any, **options: Any) -> Kept:
            store = request.param(client, **{"namespace": namespace, **options})
            return stack.enter_context(opened(store, METHODS))

        yield opening


@pytest.fixture
def kept(open_store: Open, redis_url: str, server: redis.Redis) -> Kept:
    return open_store(redis_url)


def names(server: redis.Redis, namespace: str) -> dict[str, str]:
    """List what the server has of a namespace, and of what type it is."""
    prefix = f"{{{namespace}}}:"
    return {name.removeprefix(prefix): server.type(name) for name in server.scan_iter(f"{prefix}*")}


# The contract


class InRedis(KeyStoreContract):
    """The contract, over a user of the server whom a test can lock out."""

    cluster = False

    @pytest.fixture(autouse=True)
    def user(self, request: pytest.FixtureRequest, namespace: str) -> Iterator[None]:
        url = request.getfixturevalue("redis_cluster_url" if self.cluster else "redis_url")
        with ExitStack() as stack:
            self.nodes = [stack.enter_context(node) for node in self.find_nodes(url)]
            self.name, password = namespace, secrets.token_hex()
            self.url = url.replace("://", f"://{self.name}:{password}@")
            self.tell("ACL", "SETUSER", self.name, "on", f">{password}", f"~{{{namespace}}}:*", "+@all")
            yield
            self.tell("ACL", "DELUSER", self.name)
            for node in self.nodes:
                for name in node.scan_iter(f"{{{namespace}}}:*", count=1000):
                    node.unlink(name)

    def find_nodes(self, url: str) -> list[redis.Redis]:
        if not self.cluster:
            return [redis.Redis.from_url(url)]
        with redis.RedisCluster.from_url(url) as client:
            return [redis.Redis(node.host, node.port) for node in client.get_primaries()]

    def tell(self, *command: str) -> list[Any]:
        return [node.execute_command(*command) for node in self.nodes]

    @contextmanager
    def break_store(self, store: object) -> Iterator[None]:
        self.tell("ACL", "SETUSER", self.name, "off")
        self.tell("CLIENT", "KILL", "USER", self.name)
        yield
        self.tell("ACL", "SETUSER", self.name, "on")

    def connections(self, store: object) -> int:
        found = sum(each["user"] == self.name for node in self.nodes for each in node.client_list())
        # A cluster's client has one to each node sooner or later.
        return max(found, len(self.nodes)) if found else 0


class TestRedisKeyStore(InRedis):
    @pytest.fixture
    def store(self, namespace: str) -> RedisKeyStore:
        return RedisKeyStore(self.url, namespace=namespace)


class TestAsyncRedisKeyStore(InRedis):
    @pytest.fixture
    def store(self, namespace: str) -> AsyncRedisKeyStore:
        return AsyncRedisKeyStore(self.url, namespace=namespace)


class TestRedisKeyStoreInACluster(InRedis):
    cluster = True
    rounds, many, examples = 10, 1000, 10

    @pytest.fixture
    def store(self, namespace: str) -> RedisKeyStore:
        return RedisKeyStore(self.url, namespace=namespace, cluster=True)


class TestAsyncRedisKeyStoreInACluster(InRedis):
    cluster = True
    rounds, many, examples = 10, 1000, 10

    @pytest.fixture
    def store(self, namespace: str) -> AsyncRedisKeyStore:
        return AsyncRedisKeyStore(self.url, namespace=namespace, cluster=True)


# Marks: revocations that are not written into the records yet


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave marks as they are, as a crash would; a purge settles them all the same."""

    def nothing(*_: Any) -> Iterator[Any]:
        yield from ()

    monkeypatch.setattr(module, "_settle", nothing)


def revoked(key: APIKey, reason: str | None = None, **given: Any) -> APIKey:
    return changed(key, revoked_at=NOW, revoked_reason=reason, **given)


@pytest.mark.usefixtures("unsettled")
def test_a_revocation_holds_before_it_is_written_into_any_record(
    kept: Kept, server: redis.Redis, namespace: str
) -> None:
    add_all(kept, record("k1"), record("k2"), record("k3", owner="User2"))
    stored = server.get(f"{{{namespace}}}:key:k1")
    assert kept.revoke_all("User1", NOW, "gone") == 2
    assert server.get(f"{{{namespace}}}:key:k1") == stored
    assert kept.get("k1") == revoked(record("k1"), "gone")
    assert everything(kept, owner="User1", live_at=NOW) == []
    assert kept.count(live_at=NOW) == 1
    assert kept.get("k3") == record("k3", owner="User2")


@pytest.mark.usefixtures("unsettled")
def test_of_two_marks_the_first_keeps_its_time_reason_and_version(kept: Kept) -> None:
    add_all(kept, record("k1"), record("k2", owner="User2"))
    kept.revoke_all("User1", NOW, "first")
    kept.revoke_all(None, NOW - DAY, "second")
    assert kept.get("k1") == revoked(record("k1"), "first")
    assert kept.get("k2") == changed(
        record("k2", owner="User2"), revoked_at=NOW - DAY, revoked_reason="second"
    )


@pytest.mark.usefixtures("unsettled")
def test_each_mark_counts_what_no_mark_before_it_took(kept: Kept) -> None:
    add_all(kept, record("k1"), record("k2"), record("k3", owner="User2"), record("k4", revoked_at=NOW))
    assert kept.revoke_all("User1", NOW, None) == 2
    assert kept.revoke_all("User1", NOW, None) == 0
    kept.add(record("k5"))
    assert kept.revoke_all(None, NOW, None) == 2
    assert kept.revoke_all(None, NOW, None) == 0
    kept.add(record("k6"))
    assert kept.revoke_all("User1", NOW, None) == 1


@pytest.mark.usefixtures("unsettled")
def test_each_mark_names_what_no_mark_before_it_took(kept: Kept) -> None:
    add_all(kept, record("k1"), record("k2", owner="User2"))
    start = revision_of(kept)
    kept.revoke_all("User1", NOW, None)
    between = revision_of(kept)
    kept.revoke_all(None, NOW, None)
    assert (named(kept, start), named(kept, between)) == ({"k1", "k2"}, {"k2"})


@pytest.mark.usefixtures("unsettled")
def test_a_key_added_after_a_mark_is_alive(kept: Kept) -> None:
    kept.add(record("k1"))
    kept.revoke_all("User1", NOW, None)
    kept.revoke_all(None, NOW, None)
    kept.add(record("k2"))
    assert kept.get("k2") == record("k2")
    assert [key.id for key in everything(kept, live_at=NOW)] == ["k2"]


@pytest.mark.usefixtures("unsettled")
def test_a_key_added_or_changed_after_a_mark_is_changed_as_ever(kept: Kept) -> None:
    add_all(kept, record("k1"), record("k2"))
    kept.revoke_all("User1", NOW, None)
    kept.add(record("k3"))
    assert kept.swap(record("k3"), changed(record("k3"), name="new"))
    back = changed(revoked(record("k1")), revoked_at=None)
    assert kept.swap(revoked(record("k1")), back)
    assert kept.swap(back, changed(back, name="new"))


@pytest.mark.usefixtures("unsettled")
def test_a_swap_from_before_a_mark_is_too_late(kept: Kept) -> None:
    kept.add(record())
    kept.revoke_all("User1", NOW, None)
    assert not kept.swap(record(), changed(record(), name="still alive"))
    assert kept.get("k1") == revoked(record())


@pytest.mark.usefixtures("unsettled")
def test_a_swap_of_what_a_mark_made_is_kept(kept: Kept) -> None:
    kept.add(record())
    kept.revoke_all("User1", NOW, "gone")
    named_anew = changed(revoked(record(), "gone"), name="new")
    assert kept.swap(revoked(record(), "gone"), named_anew)
    assert kept.get("k1") == named_anew


@pytest.mark.usefixtures("unsettled")
def test_a_key_brought_back_from_under_a_mark_lives_until_the_next(kept: Kept) -> None:
    kept.add(record())
    kept.revoke_all("User1", NOW, "first")
    dead = kept.get("k1")
    assert dead is not None
    alive = changed(dead, revoked_at=None, revoked_reason=None)
    assert kept.swap(dead, alive)
    assert kept.get("k1") == alive
    assert kept.revoke_all("User1", NOW, "second") == 1
    assert kept.get("k1") == revoked(alive, "second")


@pytest.mark.usefixtures("unsettled")
def test_a_key_that_changes_its_owner_is_under_the_marks_of_the_new_one_from_then_on(kept: Kept) -> None:
    kept.add(record())
    kept.revoke_all("User2", NOW, "too early")
    moved = changed(record(), owner="User2")
    assert kept.swap(record(), moved)
    assert kept.revoke_all("User1", NOW, "no longer") == 0
    assert kept.get("k1") == moved
    assert kept.revoke_all("User2", NOW, "now") == 1
    assert kept.get("k1") == revoked(moved, "now")


def test_what_was_marked_before_a_crash_is_revoked_and_settled_after_it(
    kept: Kept, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_all(kept, *(record(f"k{n}") for n in range(3)))
    with monkeypatch.context() as crash:
        crash.setattr(module, "_settle", lambda *_: iter(()))
        kept.revoke_all(None, NOW, "all")
    after = RedisKeyStore(redis_url, namespace=namespace)
    assert after.get("k1") == revoked(record("k1"), "all")
    after.add(record("new"))  # settles a little
    assert everything(kept) == [*(revoked(record(f"k{n}"), "all") for n in range(3)), record("new")]
    assert after.purge(NOW + DAY) == 3
    after.close()


def test_settling_takes_the_marks_away_and_leaves_their_contents_in_the_records(
    kept: Kept, server: redis.Redis, namespace: str
) -> None:
    add_all(kept, *(record(f"k{n}", owner=f"User{n % 3}") for n in range(9)))
    kept.revoke_all("User1", NOW, "one")
    kept.revoke_all(None, NOW, "all")
    found = names(server, namespace)
    assert "marks" not in found
    assert [name for name in found if name.startswith("unrevoked")] == []
    assert '"one"' in str(server.get(f"{{{namespace}}}:key:k1"))
    assert kept.get("k1") == revoked(record("k1", owner="User1"), "one")


def test_writes_settle_what_a_revocation_had_no_time_for(
    kept: Kept, server: redis.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLING", 0)
    monkeypatch.setattr(module, "WRITTEN_AT_ONCE", 2)
    add_all(kept, *(record(f"k{n}") for n in range(8)))
    kept.revoke_all(None, NOW, None)
    sizes = [server.scard(f"{{{namespace}}}:unrevoked:0:User1")]
    kept.add(record("new"))
    sizes.append(server.scard(f"{{{namespace}}}:unrevoked:0:User1"))
    kept.swap(record("new"), changed(record("new")))
    sizes.append(server.scard(f"{{{namespace}}}:unrevoked:0:User1"))
    kept.swap(record("new"), changed(record("new")))  # late, and settles all the same
    assert sizes == [6, 4, 2]
    assert "marks" not in names(server, namespace)


def test_a_revocation_is_done_although_settling_fails(
    kept: Kept, server: redis.Redis, namespace: str
) -> None:
    add_all(kept, record("k1"), record("k2"))
    server.set(f"{{{namespace}}}:key:k1", "of somebody else")
    assert kept.revoke_all("User1", NOW, "gone") == 2
    assert kept.get("k2") == revoked(record("k2"), "gone")


def test_a_record_that_changes_while_it_is_settled_keeps_its_change(
    redis_url: str, namespace: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisKeyStore(redis_url, namespace=namespace)
    store.add(record())
    with monkeypatch.context() as crash:
        crash.setattr(module, "_settle", lambda *_: iter(()))
        store.revoke_all(None, NOW, "all")
        settling = module._settle_some(store._ns)
        read = store._send(next(settling))
        last = changed(revoked(record(), "all"), name="in between")
        assert store.swap(revoked(record(), "all"), last)
        store._send(settling.send(read))
    assert store.get("k1") == last
    assert "marks" not in names(server, namespace)
    store.close()


class Settling(SameAsMemory):
    """The model, with marks that stay until a rule settles some, and more live keys for them."""

    @initialize()
    def fill(self) -> None:
        for n, key_id in enumerate(IDS):
            self.add_live(key_id, OWNERS[n % 3])

    @rule(key_id=a_key_id, owner=an_owner)
    def add_live(self, key_id: str, owner: str) -> None:
        self.both("add", record(key_id, owner=owner))

    @rule(key_id=a_key_id, revoked_at=st.sampled_from([None, NOW]))
    def edit(self, key_id: str, revoked_at: datetime | None) -> None:
        if (key := self.model.get(key_id)) is not None:
            self.both("swap", key, changed(key, revoked_at=revoked_at))

    @rule(owner=st.none() | an_owner)
    def mark(self, owner: str | None) -> None:
        self.both("revoke_all", owner, NOW, "marked")

    @rule(at_once=st.integers(1, 3))
    def settle(self, at_once: int) -> None:
        store = self.store.store
        assert isinstance(store, RedisKeyStore)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "WRITTEN_AT_ONCE", at_once)
            store._play(module._settle_some(store._ns))


@pytest.mark.usefixtures("unsettled")
def test_nobody_sees_when_a_mark_is_settled(redis_url: str, namespace: str, server: redis.Redis) -> None:
    chosen = settings(
        max_examples=80,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with opened(RedisKeyStore(redis_url, namespace=namespace), METHODS) as kept:
        run_state_machine_as_test(lambda: Settling(kept), settings=chosen)


# Revocations of many


def test_over_a_thousand_revoked_at_once_may_be_any_key(kept: Kept) -> None:
    add_all(kept, *(record(f"k{n}") for n in range(1001)))
    before = revision_of(kept)
    assert kept.revoke_all("User1", NOW, None) == 1001
    after = revision_of(kept)
    assert (named(kept, before), named(kept, after)) == (None, set())


def test_a_thousand_owners_of_a_key_each_are_named(kept: Kept) -> None:
    keys = [record(f"k{n}", owner=f"User{n}") for n in range(1000)]
    add_all(kept, *keys)
    before = revision_of(kept)
    assert kept.revoke_all(None, NOW, None) == 1000
    assert named(kept, before) == {key.id for key in keys}


@pytest.mark.parametrize("owner", ["", "\0", "\ud800"])
def test_an_owner_whom_no_record_can_have_has_none_and_is_not_everybody(kept: Kept, owner: str) -> None:
    kept.add(record())
    before = revision_of(kept)
    assert kept.revoke_all(owner, NOW, None) == 0
    assert revision_of(kept).number == before.number + 1
    assert (kept.count(owner=owner), kept.find(owner=owner).items) == (0, ())
    assert kept.get("k1") == record()


@pytest.mark.parametrize("reason", ["\ud800", "a\0b"])
def test_a_reason_that_no_record_takes_is_a_value_error_and_nothing_is_revoked(
    kept: Kept, reason: str
) -> None:
    kept.add(record())
    before = revision_of(kept)
    with pytest.raises(ValueError, match="revoked_reason"):
        kept.revoke_all(None, NOW, reason)
    assert (kept.get("k1"), revision_of(kept)) == (record(), before)


# Purges in several steps


def test_whoever_reads_the_revision_in_the_middle_of_a_purge_is_told_of_its_end(kept: Kept) -> None:
    add_all(kept, *(record(f"k{n}", expires_at=NOW - DAY) for n in range(module.WRITTEN_AT_ONCE + 1)))
    before = revision_of(kept)
    assert kept.purge(NOW) == module.WRITTEN_AT_ONCE + 1
    in_the_middle = Revision(before.epoch, before.number + 1)
    assert named(kept, in_the_middle) is None


def test_a_key_that_comes_back_to_life_in_the_middle_of_a_purge_stays(
    redis_url: str, namespace: str, server: redis.Redis
) -> None:
    store = RedisKeyStore(redis_url, namespace=namespace)
    dead = record(expires_at=NOW - DAY)
    store.add(dead)
    purge = module._purge(store._ns, NOW)
    step = next(purge)
    while step.script is not module._PURGE:
        step = purge.send(store._send(step))
    alive = changed(dead, expires_at=None)
    assert store.swap(dead, alive)
    with suppress(StopIteration):
        while True:
            step = purge.send(store._send(step))
    assert (store.get("k1"), store.count()) == (alive, 1)
    store.close()


def test_a_purge_looks_behind_any_number_of_records_that_end_in_the_same_millisecond(kept: Kept) -> None:
    start = NOW.replace(microsecond=0)
    many = module.WRITTEN_AT_ONCE + 50
    add_all(kept, *(record(f"a{n}", expires_at=start + 5 * MOMENT) for n in range(many)))
    add_all(kept, *(record(f"b{n}", expires_at=start + 3 * MOMENT) for n in range(many)))
    assert kept.purge(start + 4 * MOMENT) == many
    assert kept.count() == many


def test_what_is_purged_leaves_nothing_behind(kept: Kept, server: redis.Redis, namespace: str) -> None:
    add_all(kept, record("k1", last_used_at=NOW), record("k2", owner="User2", expires_at=NOW))
    kept.swap(record("k1", last_used_at=NOW), changed(record("k1"), owner="User3"))
    kept.revoke_all("User2", NOW, None)
    kept.revoke_all(None, NOW, None)
    assert kept.purge(NOW + DAY) == 2
    assert names(server, namespace) == {"state": "hash"}


# What is sent, and what comes back


def test_every_key_of_a_namespace_has_its_hash_tag(kept: Kept, server: redis.Redis, namespace: str) -> None:
    before = set(server.scan_iter())
    add_all(kept, *(record(f"k}}{{{n}", owner=f"{{User{n}}}", last_used_at=NOW) for n in range(3)))
    kept.swap(record("k}{1", owner="{User1}"), changed(record("k}{1", owner="{User1}"), expires_at=NOW))
    kept.revoke_all("{User1}", NOW, None)
    added = set(server.scan_iter()) - before
    assert {name.partition(":")[0] for name in added} == {f"{{{namespace}}}"}


def test_namespaces_know_nothing_of_each_other(open_store: Open, redis_url: str, server: redis.Redis) -> None:
    one, other = (open_store(redis_url, namespace=f"test-{secrets.token_hex(8)}") for _ in range(2))
    one.add(record())
    assert other.get("k1") is None
    other.revoke_all(None, NOW, None)
    assert one.get("k1") == record()
    assert revision_of(one).epoch != revision_of(other).epoch


@contextmanager
def watched(server: redis.Redis) -> Iterator[list[list[str]]]:
    """Collect what each script called, one list for each."""
    scripts: list[list[str]] = []
    with server.monitor() as monitor:
        yield scripts
        server.echo("the end")
        for each in monitor.listen():
            command = each["command"]
            if each["client_type"] == "lua":
                scripts[-1].append(command.partition(" ")[0])
            elif command.startswith("EVAL"):
                scripts.append([])
            elif command == "ECHO the end":
                break


def test_a_revocation_of_thousands_is_a_short_script_and_so_is_each_that_settles_it(
    kept: Kept, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLING", 5)
    threads = Threads()
    keys = [record(f"k{n}", owner=f"User{n % 2}") for n in range(5000)]
    threads.at_once(*(partial(add_all, kept, *keys[n::4]) for n in range(4)))
    with watched(server) as scripts:
        assert kept.revoke_all("User1", NOW, None) == 2500
        assert kept.revoke_all(None, NOW, None) == 2500
    lengths = list(map(len, scripts))
    marking = [lengths[n] for n, script in enumerate(scripts) if "RENAME" in script or n == 0]
    assert len(marking) == 1
    assert marking[0] < 20
    assert lengths.count(0) == 0
    assert len(lengths) >= 5000 / module.WRITTEN_AT_ONCE
    assert max(lengths) < 10 * module.WRITTEN_AT_ONCE


def test_a_purge_of_thousands_takes_short_scripts(kept: Kept, server: redis.Redis) -> None:
    keys = [record(f"k{n}", expires_at=NOW - DAY) for n in range(1000)]
    Threads().at_once(*(partial(add_all, kept, *keys[n::4]) for n in range(4)))
    with watched(server) as scripts:
        assert kept.purge(NOW) == 1000
    assert max(map(len, scripts)) < 15 * module.WRITTEN_AT_ONCE


class Listening(redis.Redis):
    """A client that remembers how long its longest reply was, and of how many keys a script was told."""

    longest = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = super().execute_command(*args, **options)
        for each in (reply, *(reply if isinstance(reply, list) else ()), args):
            if isinstance(each, list | tuple):
                type(self).longest = max(self.longest, len(each))
        return reply


def test_no_command_and_no_reply_is_longer_than_a_batch(
    server: redis.Redis, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 20)
    monkeypatch.setattr(module, "WRITTEN_AT_ONCE", 10)
    monkeypatch.setattr(module, "MAX_CHANGES", 40)
    with Listening.from_url(redis_url) as client:
        store = RedisKeyStore(client, namespace=namespace)
        start = store.changes(None).revision
        for n in range(100):
            store.add(record(f"k{n}"))
            store.swap(record(f"k{n}"), changed(record(f"k{n}")))
        assert len(store.find(limit=100).items) == 100
        assert store.count(live_at=NOW) == 100
        assert store.changes(start).ids is None
        store.touch({f"k{n}": NOW for n in range(100)})
        assert store.revoke_all(None, NOW, None) == 100
        assert store.purge(NOW + DAY) == 100
        assert Listening.longest <= 6 * 10 + 10


def test_metadata_that_the_servers_json_does_not_know_is_changed_and_revoked(kept: Kept) -> None:
    strange = {"a": "\ud800", "b": 10**400, "c": [[], {}], "\udfff": -0.0, "d": 2**63 + 1}
    kept.add(record(metadata=strange))
    assert kept.swap(record(metadata=strange), changed(record(metadata=strange), name="new"))
    kept.revoke_all(None, NOW, None)
    last = kept.get("k1")
    assert last == revoked(changed(record(metadata=strange), name="new"))
    assert str(last.metadata["d"]) == str(2**63 + 1)  # no float equals it


@pytest.mark.parametrize("number", [2**53, 2**63 - 1, 2**63, 2**80, -1, -(2**80)])
def test_a_revision_beyond_all_counting_is_not_known(kept: Kept, number: int) -> None:
    now = revision_of(kept)
    assert kept.changes(Revision(now.epoch, number)) == Changes(now, None)


def test_after_script_flush_every_script_still_runs(kept: Kept, server: redis.Redis) -> None:
    for step in (
        partial(kept.add, record()),
        partial(kept.swap, record(), changed(record())),
        partial(kept.touch, {"k1": NOW}),
        partial(kept.changes, None),
        partial(kept.revoke_all, None, NOW, None),
        partial(kept.purge, NOW + DAY),
    ):
        server.script_flush()
        step()
    assert kept.count() == 0


def test_a_store_that_lost_everything_has_another_epoch(own_redis: Server, open_store: Open) -> None:
    kept = open_store(own_redis.url)
    before = revision_of(kept)
    with redis.Redis.from_url(own_redis.url) as client:
        client.flushall()
    after = kept.changes(before)
    assert after.ids is None
    assert after.revision.epoch != before.epoch


# The server out of order


def test_a_server_that_is_not_there_is_unavailable_at_once(own_redis: Server, open_store: Open) -> None:
    own_redis.stop()
    kept = open_store(own_redis.url, timeout=PATIENCE)
    start = monotonic()
    for call in (partial(kept.get, "k1"), partial(kept.add, record()), partial(kept.changes, None)):
        with pytest.raises(StoreUnavailable, match=r"refused|Connect call failed|111"):
            call()
    assert monotonic() - start < PATIENCE


def test_a_server_that_hangs_is_unavailable_within_the_timeout(own_redis: Server, open_store: Open) -> None:
    used, new = (open_store(own_redis.url, timeout=0.2) for _ in range(2))
    used.add(record())
    own_redis.pause()
    start = monotonic()
    for kept in (used, new):
        for call in (partial(kept.get, "k1"), partial(kept.swap, record(), changed(record()))):
            with pytest.raises(StoreUnavailable):
                call()
    assert monotonic() - start < PATIENCE
    own_redis.resume()
    assert (used.get("k1") or record()).id == "k1"


def test_callers_who_wait_for_a_connection_wait_no_longer_than_the_timeout(
    own_redis: Server, open_store: Open
) -> None:
    kept = open_store(f"{own_redis.url}?max_connections=2", timeout=0.2)
    kept.add(record())
    own_redis.pause()
    start = monotonic()

    def failing() -> bool:
        with suppress(StoreUnavailable):
            kept.get("k1")
            return False
        return True

    assert Threads().at_once(*[failing] * 8) == [True] * 8
    assert monotonic() - start < PATIENCE
    own_redis.resume()
    assert Threads().at_once(*[partial(kept.get, "k1")] * 8) == [record()] * 8
    with redis.Redis.from_url(own_redis.url) as client:
        assert len(client.client_list()) <= 2 + 1


def test_after_a_restart_no_call_fails_that_comes_later(own_redis: Server, open_store: Open) -> None:
    kept = open_store(own_redis.url)
    kept.add(record())
    threads = Threads()
    threads.at_once(*[partial(kept.get, "k1")] * 8)
    own_redis.stop()
    own_redis.start()
    for _ in range(3):
        assert threads.at_once(*[partial(kept.get, "k1")] * 8) == [record()] * 8


def test_a_server_that_restarts_under_load_costs_errors_and_no_connections(
    own_redis: Server, open_store: Open
) -> None:
    kept = open_store(own_redis.url)
    kept.add(record())
    others, busy = 4, threading.Event()

    def read(done: threading.Event) -> None:
        while not done.is_set():
            with suppress(StoreUnavailable):
                assert kept.get("k1") == record()
                busy.set()

    done = threading.Event()

    def restart() -> None:
        try:
            for _ in range(3):
                busy.clear()
                assert busy.wait(PATIENCE)
                own_redis.stop()
                own_redis.start()
        finally:
            done.set()

    Threads().at_once(restart, *[partial(read, done)] * others)
    assert kept.get("k1") == record()
    with redis.Redis.from_url(own_redis.url) as client:
        assert len(client.client_list()) <= others + 2


def test_a_replica_takes_no_writes(own_redis: Server, open_store: Open) -> None:
    kept = open_store(own_redis.url)
    kept.add(record())
    with redis.Redis.from_url(own_redis.url) as client:
        client.replicaof("127.0.0.1", 1)
    for call in (
        partial(kept.add, record("k2")),
        partial(kept.swap, record(), changed(record())),
        partial(kept.revoke_all, None, NOW, None),
        partial(kept.purge, NOW),
        partial(kept.touch, {"k1": NOW}),
    ):
        with pytest.raises(StoreUnavailable, match="read only"):
            call()
    assert kept.get("k1") == record()


def test_a_server_that_asks_for_a_password_is_unavailable(own_redis: Server, open_store: Open) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", SECRET)
        for url in (own_redis.url, own_redis.url.replace("://", "://:wrong@")):
            with pytest.raises(StoreUnavailable, match=r"[Aa]uth|password"):
                open_store(url).get("k1")


def test_a_server_without_memory_takes_nothing_and_keeps_what_it_has(
    own_redis: Server, open_store: Open
) -> None:
    kept = open_store(own_redis.url)
    kept.add(record())
    before = revision_of(kept)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", 1)
        for call in (
            partial(kept.add, record("k2")),
            partial(kept.swap, record(), changed(record()), successor=record("k2")),
            partial(kept.revoke_all, None, NOW, None),
        ):
            with pytest.raises(StoreUnavailable, match=r"OOM|maxmemory"):
                call()
        client.config_set("maxmemory", 0)
    assert everything(kept) == [record()]
    assert kept.changes(before) == Changes(before, frozenset())


def test_a_key_of_another_type_under_a_name_of_ours_is_an_error(
    kept: Kept, server: redis.Redis, namespace: str
) -> None:
    server.set(f"{{{namespace}}}:state", "text")
    for call in (partial(kept.add, record()), partial(kept.changes, None), partial(kept.purge, NOW)):
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            call()


@pytest.mark.parametrize("stored", ["", "x", "1 []\n{}", '1 ["User1", 1, null, "d"]\n{}', "1 [\n"])
def test_what_is_no_record_is_an_error(kept: Kept, server: redis.Redis, namespace: str, stored: str) -> None:
    kept.add(record())
    server.set(f"{{{namespace}}}:key:k1", stored)
    for call in (partial(kept.get, "k1"), kept.find):
        with pytest.raises(StoreUnavailable, match="no record"):
            call()


class Liar(socketserver.StreamRequestHandler):
    """A server of Redis' protocol that greets, and answers a script with whatever it is told to."""

    def handle(self) -> None:
        while count := self.rfile.readline():
            parts = [self.part() for _ in range(int(count[1:]))]
            if parts[0] not in (b"EVALSHA", b"MGET"):
                self.wfile.write(b"+OK\r\n")
                continue
            self.server.asked.append(parts)  # type: ignore[attr-defined]
            answer = self.server.answer(parts)  # type: ignore[attr-defined]
            if answer is None:
                return
            self.wfile.write(answer)

    def part(self) -> bytes:
        length = int(self.rfile.readline()[1:])
        return self.rfile.read(length + 2)[:length]


@contextmanager
def lying(answer: Callable[[Sequence[bytes]], bytes | None]) -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Liar) as server:
        server.daemon_threads = True
        server.answer, server.asked = answer, []  # type: ignore[attr-defined]
        server.url = f"redis://127.0.0.1:{server.server_address[1]}/0"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_what_may_have_been_done_is_not_sent_again(open_store: Open) -> None:
    with lying(lambda _: None) as server:
        kept = open_store(server.url)
        for call in (partial(kept.add, record()), partial(kept.get, "k1")):
            with pytest.raises(StoreUnavailable):
                call()
        assert [parts[0] for parts in server.asked] == [b"EVALSHA", b"MGET"]


def test_no_error_shows_a_digest_even_if_the_server_repeats_what_it_was_sent(open_store: Open) -> None:
    def unknown(parts: Sequence[bytes]) -> bytes:
        told = b"".join(b"'%b' " % part for part in parts[1:])[:128].replace(b"\n", b" ")
        return b"-ERR unknown command 'EVALSHA', with args beginning with: " + told + b"\r\n"

    key = record("a", owner="b", digest=SECRET)
    with lying(unknown) as server:
        kept = open_store(server.url, namespace="a")  # with short names the digest comes early
        for call in (partial(kept.add, key), partial(kept.swap, key, changed(key), successor=key)):
            with pytest.raises(StoreUnavailable, match="unknown command") as caught:
                call()
            assert not [error for error in chain_of(caught.value) if SECRET[:3] in f"{error} {error!r}"]


# Clients


def test_an_applications_own_client_may_decode_and_stays_open(
    redis_url: str, namespace: str, server: redis.Redis
) -> None:
    store = RedisKeyStore(server, namespace=namespace)
    store.add(record(name="Ünï"))
    assert store.get("k1") == record(name="Ünï")
    assert store.revoke_all(None, NOW, None) == 1
    connections = len(server.connection_pool._available_connections)
    store.close()
    assert len(server.connection_pool._available_connections) == connections
    assert store.get("k1") == revoked(record(name="Ünï"))


async def test_an_applications_own_async_client_may_decode_and_stays_open(
    redis_url: str, namespace: str, server: redis.Redis
) -> None:
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=3) as client:
        store = AsyncRedisKeyStore(client, namespace=namespace)
        await store.add(record(name="Ünï"))
        await store.close()
        connection = await client.connection_pool.get_connection()
        assert connection.is_connected
        await client.connection_pool.release(connection)
        assert await store.get("k1") == record(name="Ünï")


def test_an_applications_own_cluster_client_serves_a_store(redis_cluster_url: str, namespace: str) -> None:
    with redis.RedisCluster.from_url(redis_cluster_url) as client:
        store = RedisKeyStore(client, namespace=namespace)
        store.add(record())
        assert store.revoke_all(None, NOW, None) == 1
        assert store.purge(NOW + DAY) == 1


async def test_an_applications_own_async_cluster_client_serves_a_store(
    redis_cluster_url: str, namespace: str
) -> None:
    async with redis.asyncio.RedisCluster.from_url(redis_cluster_url) as client:
        store = AsyncRedisKeyStore(client, namespace=namespace)
        await store.add(record())
        assert await store.revoke_all(None, NOW, None) == 1
        assert await store.purge(NOW + DAY) == 1


def test_an_async_store_serves_one_event_loop_after_another(
    redis_url: str, namespace: str, server: redis.Redis
) -> None:
    store = AsyncRedisKeyStore(redis_url, namespace=namespace)

    async def serve(key_id: str) -> list[APIKey]:
        await store.add(record(key_id))
        found = await store.find()
        await store.close()
        return list(found.items)

    asyncio.run(serve("k1"))
    assert asyncio.run(serve("k2")) == [record("k1"), record("k2")]


def test_a_closed_store_opens_connections_when_it_is_used_again(kept: Kept) -> None:
    kept.add(record())
    kept._loop.run(kept.store.close) if kept._asynchronous else kept.store.close()
    assert kept.get("k1") == record()


FORKING = """
import os, sys
from apikey_auth.stores.redis import RedisKeyStore
store = RedisKeyStore(sys.argv[1], namespace=sys.argv[2])
ask = lambda: store.get("k1").name
ask()
child = os.fork()
for _ in range(200):
    assert ask() == "of the parent"
if child:
    status = os.waitpid(child, 0)[1]
    assert ask() == "of the parent"
    store.close()
    print("child", status)
"""


def test_a_child_process_has_connections_of_its_own(
    redis_url: str, namespace: str, server: redis.Redis
) -> None:
    store = RedisKeyStore(redis_url, namespace=namespace)
    store.add(record(name="of the parent"))
    store.close()
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING, redis_url, namespace],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("child 0\n", "")


@pytest.mark.parametrize("kind", [RedisKeyStore, AsyncRedisKeyStore])
@pytest.mark.parametrize(
    ("client", "options", "message"),
    [
        ("sqlite:///keys.db", {}, "no URL of Redis"),
        ("redis://:SECRET@host:port/0", {}, "no URL of Redis"),
        ("redis://127.0.0.1:6379/0?no_such_option=1", {}, "option"),
        ("redis://127.0.0.1:6379/0?db=SECRET", {}, "no URL of Redis"),
        ("redis://127.0.0.1:6379/1", {"cluster": True}, "no databases"),
        ("unix:///tmp/SECRET.sock", {"cluster": True}, "no Unix sockets"),
        ("redis://127.0.0.1:6379/0", {"timeout": 0}, "timeout"),
        ("redis://127.0.0.1:6379/0", {"timeout": "5"}, "timeout"),
        ("redis://127.0.0.1:6379/0", {"timeout": float("inf")}, "timeout"),
        ("redis://127.0.0.1:6379/0", {"namespace": ""}, "namespace"),
        ("redis://127.0.0.1:6379/0", {"namespace": "a{b}"}, "braces"),
        ("redis://127.0.0.1:6379/0", {"namespace": "\ud800"}, "namespace"),
        (None, {}, "not builtins.NoneType"),
        (redis.Redis, {}, "takes a URL"),
        (redis.Redis().pipeline(), {}, "takes a URL"),
        (redis.asyncio.Redis().pipeline(), {}, "takes a URL"),
    ],
)
def test_what_will_not_do_is_a_configuration_error(
    kind: type, client: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        kind(client, **options)
    assert not [error for error in chain_of(caught.value) if "SECRET" in str(error)]


def test_a_client_of_the_other_colour_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"Redis or RedisCluster of redis, not redis\.asyncio"):
        RedisKeyStore(redis.asyncio.Redis())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"of redis\.asyncio, not redis\.client"):
        AsyncRedisKeyStore(redis.Redis())  # type: ignore[arg-type]


def test_a_client_that_may_answer_with_what_was_is_a_configuration_error(redis_cluster_url: str) -> None:
    strategy = redis.cluster.LoadBalancingStrategy.ROUND_ROBIN
    with redis.RedisCluster.from_url(redis_cluster_url, load_balancing_strategy=strategy) as client:
        with pytest.raises(ConfigurationError, match="replicas"):
            RedisKeyStore(client)
    with redis.Redis(protocol=3, cache_config=redis.cache.CacheConfig()) as cached:
        with pytest.raises(ConfigurationError, match="cache"):
            RedisKeyStore(cached)


def test_constructing_a_store_connects_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        for kind in (RedisKeyStore, AsyncRedisKeyStore):
            for cluster in (False, True):
                kind(url, cluster=cluster)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_cluster_that_is_not_there_is_unavailable(own_redis: Server, open_store: Open) -> None:
    for kept in (open_store(own_redis.url, cluster=True), open_store("redis://127.0.0.1:1", cluster=True)):
        with pytest.raises(StoreUnavailable):
            kept.get("k1")


def test_a_duplicate_is_told_by_its_id(kept: Kept) -> None:
    kept.add(record())
    with pytest.raises(DuplicateKey, match="k1"):
        kept.add(record())
