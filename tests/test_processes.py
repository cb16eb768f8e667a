"""Several processes on one SQLite file: nothing is lost, nothing revoked enters, and nothing dies of a lock."""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from apikey_auth import Authenticator, RevokedKey
from apikey_auth.decisions import changed
from apikey_auth.stores.sql import SQLKeyStore

PROCESSES = 8
OPERATIONS = 10_000
WEIGHTS = {"authenticate": 40, "issue": 15, "touch": 15, "edit": 15, "revoke": 8, "rotate": 7}


@dataclass
class Known:
    """What all processes know: keys that each changes, and keys that each uses and revokes."""

    url: str
    shared: list[str]  # ids
    pool: list[tuple[str, str]]  # ids and texts


@dataclass
class Done:
    """What one process did."""

    operations: Counter[str] = field(default_factory=Counter)
    issued: dict[str, str] = field(default_factory=dict)  # ids to texts, successors too
    predecessors: dict[str, str] = field(default_factory=dict)  # ids of successors to ids of the rotated
    revoked: set[str] = field(default_factory=set)
    edits: Counter[str] = field(default_factory=Counter)
    used: dict[str, datetime] = field(default_factory=dict)
    refused: int = 0  # keys that another process had revoked
    slowest: float = 0.0


class Worker:
    """One process's part. ``revoked`` has a time for each key of the pool, from when its first revoke() returned.

    The clock is monotonic, which all processes of a machine share.
    """

    def __init__(self, number: int, known: Known, revoked: Any) -> None:
        self.chance = random.Random(number)
        self.owner = f"User{number}"
        self.known, self.revoked, self.done = known, revoked, Done()
        self.store = SQLKeyStore(known.url)
        self.auth = Authenticator(self.store)

    def run(self) -> Done:
        names = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=OPERATIONS // PROCESSES)
        for name in names:
            began = monotonic()
            getattr(self, name)()
            self.done.slowest = max(self.done.slowest, monotonic() - began)
            self.done.operations[name] += 1
        self.store.close()
        return self.done

    def authenticate(self) -> None:
        n = self.chance.randrange(len(self.known.pool))
        key_id, text = self.known.pool[n]
        # Read before the key is tried: what was revoked so long before must not enter.
        dead = 0 < self.revoked[n] < monotonic() - self.auth.revocation_bound
        try:
            self.auth.authenticate(text)
        except RevokedKey:
            self.done.refused += key_id not in self.done.revoked
        else:
            assert not dead, "a revoked key entered"

    def issue(self) -> None:
        issued = self.auth.keys.issue(self.owner)
        self.done.issued[issued.key.id] = issued.text
        assert self.auth.authenticate(issued.text).key == issued.key

    def rotate(self) -> None:
        rotated = set(self.done.predecessors.values())
        old = self.chance.choice([None, *(key_id for key_id in self.done.issued if key_id not in rotated)])
        if old is None:
            self.issue()
        else:
            issued = self.auth.keys.rotate(old, grace=timedelta(hours=1))
            self.done.issued[issued.key.id] = issued.text
            self.done.predecessors[issued.key.id] = old

    def revoke(self) -> None:
        n = self.chance.randrange(len(self.known.pool))
        key_id, text = self.known.pool[n]
        self.auth.keys.revoke(key_id)
        self.revoked[n] = self.revoked[n] or monotonic()
        self.done.revoked.add(key_id)
        with pytest.raises(RevokedKey):
            self.auth.authenticate(text)

    def edit(self) -> None:
        key_id = self.chance.choice(self.known.shared)
        for _ in range(10_000):
            key = self.store.get(key_id)
            assert key is not None
            count = key.metadata["count"]
            assert isinstance(count, int)
            if self.store.swap(key, changed(key, metadata={"count": count + 1})):
                self.done.edits[key_id] += 1
                return
        raise AssertionError("others were faster ten thousand times")

    def touch(self) -> None:
        some = self.chance.sample(self.known.pool, 20)
        used = dict.fromkeys([*self.known.shared, *(key_id for key_id, _ in some)], datetime.now(UTC))
        self.store.touch(used)
        self.done.used.update(used)


def enter(*shared: Any) -> None:
    """Take what can only be handed to a process while it starts."""
    global REVOKED, START
    REVOKED, START = shared


def work(number: int, known: Known) -> Done:
    worker = Worker(number, known, REVOKED)
    START.wait(120)
    return worker.run()


def do_it_all(known: Known) -> list[Done]:
    """Let the processes go at the same moment, and collect what they did."""
    spawning = multiprocessing.get_context("spawn")
    shared = spawning.RawArray("d", len(known.pool)), spawning.Barrier(PROCESSES)
    with spawning.Pool(PROCESSES, enter, shared) as processes:
        parts = [(number, known) for number in range(PROCESSES)]
        done = processes.starmap_async(work, parts, chunksize=1).get(timeout=300)
        processes.close()
        processes.join()
    return done


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'keys.db'}"


def test_eight_processes_use_and_change_the_keys_of_one_file_at_once(url: str) -> None:
    store = SQLKeyStore(url, create=True)
    keys = Authenticator(store).keys
    shared = [keys.issue("Shared", metadata={"count": 0}).key.id for _ in range(5)]
    pool = [(issued.key.id, issued.text) for issued in (keys.issue("Pool") for _ in range(500))]
    before = store.changes(None).revision
    store.close()

    began = monotonic()
    parts = do_it_all(Known(url, shared, pool))
    issued = {key_id: text for part in parts for key_id, text in part.issued.items()}
    predecessors = {key_id: old for part in parts for key_id, old in part.predecessors.items()}
    revoked = set().union(*(part.revoked for part in parts))
    edits = sum((part.edits for part in parts), Counter[str]())
    print(
        f"{monotonic() - began:.1f} s, of which the slowest call {max(part.slowest for part in parts):.2f} s"
    )
    print(dict(sum((part.operations for part in parts), Counter[str]())), len(revoked), "keys revoked")

    # All of it was done, and nothing else is there.
    assert sum(sum(part.operations.values()) for part in parts) == OPERATIONS
    assert store.count() == len(shared) + len(pool) + len(issued)
    assert store.changes(None).revision.number - before.number == (
        edits.total() + len(revoked) + len(predecessors)
    )

    # No update was lost.
    counts = {key.id: (key.metadata["count"], key.version) for key in keys.list("Shared")}
    assert counts == {key_id: (edits[key_id], edits[key_id] + 1) for key_id in shared}
    used = {key_id: max(part.used[key_id] for part in parts if key_id in part.used) for key_id in shared}
    assert {key.id: key.last_used_at for key in keys.list("Shared")} == used

    # Every key that was issued enters, every key that was revoked does not.
    auth = Authenticator(store)
    for key_id, text in issued.items():
        assert auth.authenticate(text).key.rotated_from == predecessors.get(key_id)
    for key_id, text in pool:
        if key_id in revoked:
            with pytest.raises(RevokedKey):
                auth.authenticate(text)
        else:
            auth.authenticate(text)
    assert sum(part.refused for part in parts) > 0
    store.close()


ISSUING = """if True:
    import os, sys
    from threading import Thread
    from apikey_auth import KeyManager
    from apikey_auth.stores.sql import SQLKeyStore

    keys = KeyManager(SQLKeyStore(sys.argv[1], create=True))

    def issue():
        while True:
            issued = keys.issue("User1")
            os.write(1, issued.text.encode() + b"\\n")

    threads = [Thread(target=issue) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
"""


def issue_until_killed(url: str, threads: int, lines: int) -> Sequence[str]:
    """Kill a process that issues keys once it has printed some; answer every text it printed in full."""
    process = subprocess.Popen(
        [sys.executable, "-c", ISSUING, url, str(threads)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    with process, process.stdout as stdout:
        printed = b"".join(stdout.readline() for _ in range(lines))
        process.send_signal(signal.SIGKILL)
        printed += stdout.read()
    assert process.returncode == -signal.SIGKILL
    return [line.decode().rstrip("\n") for line in printed.splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize("threads", [1, 4])
def test_every_key_whose_issue_returned_outlives_kill_9(url: str, tmp_path: Path, threads: int) -> None:
    chance = random.Random()
    texts: list[str] = []
    for _ in range(4):
        lines = chance.randrange(1, 100)
        printed = issue_until_killed(url, threads, lines)
        assert len(printed) >= lines
        texts += printed
    store = SQLKeyStore(url)
    auth = Authenticator(store)
    for text in texts:
        assert auth.authenticate(text).user.id == "User1"
    auth.keys.issue("User2")
    assert len(texts) <= store.count(owner="User1") <= len(texts) + 4 * threads  # committed, not yet printed
    store.close()
    with sqlite3.connect(tmp_path / "keys.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
