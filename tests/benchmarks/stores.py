"""What the stores cost, as ratios in one run: ``pytest tests/benchmarks/stores.py -s``.

Not a test: nothing here passes or fails by the clock. Each ratio is the median over rounds in which the
store and what it is compared with take turns, so that a busy machine slows both down. The servers are those
of the tests. ``APIKEY_AUTH_BENCHMARK_KEYS`` says how many keys "many" are, 1,000,000 unless it is given.
"""

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from apikey_auth import APIKey
from apikey_auth.stores.redis import AsyncRedisKeyStore, RedisKeyStore
from apikey_auth.stores.sql import AsyncSQLKeyStore, SQLKeyStore
from apikey_auth.stores.sql.operations import _GET, _values
from apikey_auth.stores.sql.schema import KEYS

MANY = int(os.environ.get("APIKEY_AUTH_BENCHMARK_KEYS", "1_000_000"))
FEW, REVOKED = 1_000, min(100_000, MANY // 10)
ROUNDS, CALLS = 15, 200
NOW = datetime(2026, 3, 14, tzinfo=UTC)

Calls = tuple[Callable[[], object], Callable[[], object]]


def key(n: int, owner: str = "User1") -> APIKey:
    """Make a record as issue() makes it; the ids are spread as random ones are."""
    key_id = f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}"[:12] + f"{n:07}"
    return APIKey(
        id=key_id,
        owner=owner,
        digest="sha256$$" + "ab" * 32,
        name="CI",
        prefix="acme",
        last4="wXyZ",
        scopes=("reports:read",),
        created_at=NOW,
        expires_at=NOW.replace(year=2027),
    )


def in_batches(keys: Sequence[APIKey], size: int = 5_000) -> Iterator[Sequence[APIKey]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def ratio(calls: Calls) -> tuple[float, float]:
    """Time two calls in turns; answer how many times as long the first takes, and its microseconds."""
    ratios, times = [], []
    for _ in range(ROUNDS):
        first, second = (_duration(call) for call in calls)
        ratios.append(first / second)
        times.append(first / CALLS * 1e6)
    return median(ratios), median(times)


def _duration(call: Callable[[], object]) -> float:
    start = perf_counter()
    for _ in range(CALLS):
        call()
    return perf_counter() - start


class InSQL:
    """SQL, and the bare statements that SQLAlchemy sends there on the same engine."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = SQLKeyStore(url, create=True, timeout=600)
        self.store.count()
        self.engine = self.store._database._writing

    def fill(self, keys: Sequence[APIKey]) -> None:
        with self.engine.connect() as connection:
            for some in in_batches(keys):
                connection.execute(sa.insert(KEYS), [{**_values(each), "revision": 0} for each in some])
                connection.commit()
            if connection.dialect.name != "sqlite":
                analyze = "ANALYZE TABLE" if connection.dialect.name == "mysql" else "ANALYZE"
                connection.exec_driver_sql(f"{analyze} {KEYS.name}")
                connection.commit()

    def bare_get(self, key_id: str) -> Callable[[], object]:
        def get() -> object:
            with self.store._database._reading.connect() as connection:
                return connection.execute(_GET, {"key_id": key_id}).first()

        return get

    def bare_add(self, made: APIKey) -> None:
        with self.engine.connect() as connection:
            connection.execute(sa.insert(KEYS), {**_values(made), "revision": 0})
            connection.commit()

    def bare_revoke(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(sa.update(KEYS).where(KEYS.c.owner == "Bare").values(revoked_at=NOW))
            connection.commit()

    def size(self) -> int:
        if self.url.startswith("sqlite"):
            path = self.url.removeprefix("sqlite:///")
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            return Path(path).stat().st_size
        sizes = {
            "postgresql": f"SELECT pg_total_relation_size('{KEYS.name}')",
            "mysql": "SELECT SUM(data_length + index_length) FROM information_schema.tables "
            f"WHERE table_name = '{KEYS.name}' AND table_schema = DATABASE()",
        }
        with self.engine.connect() as joined:
            return int(joined.exec_driver_sql(sizes[joined.dialect.name]).scalar_one())

    def close(self) -> None:
        self.store.close()


class InRedis:
    """Redis, and the bare commands that redis-py sends there on the same client."""

    def __init__(self, url: str) -> None:
        self.store = RedisKeyStore(url, namespace=secrets.token_hex(4), timeout=600)
        self.client: Any = self.store._clients.get()

    def fill(self, keys: Sequence[APIKey]) -> None:
        from apikey_auth.stores.redis import _ADD, _add

        for some in in_batches(keys, 1_000):
            pipeline = self.client.pipeline(transaction=False)
            for each in some:
                step = next(_add(self.store._ns, each))
                pipeline.execute_command("EVAL", _ADD.text, *step.arguments)
            pipeline.execute()

    def bare_get(self, key_id: str) -> Callable[[], object]:
        name = f"{self.store._ns}key:{key_id}"
        return lambda: self.client.get(name)

    def bare_add(self, made: APIKey) -> None:
        self.client.set(f"{self.store._ns}bare:{made.id}", "x" * 500)

    def bare_revoke(self) -> None:
        self.client.set(f"{self.store._ns}bare", "revoked")

    def size(self) -> int:
        return int(self.client.info("memory")["used_memory"])

    def close(self) -> None:
        self.store.close()


STORES = {
    "SQLite": (InSQL, "sqlite"),
    "PostgreSQL, psycopg": (InSQL, "postgresql"),
    "MariaDB, pymysql": (InSQL, "mariadb"),
    "Valkey or Redis": (InRedis, "redis"),
}


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Give the URL of a kind of database."""

    def find(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/keys.db"
        url: str = request.getfixturevalue(f"{kind}_url")
        scheme = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}.get(kind, kind)
        return f"{scheme}://{url.partition('://')[2]}"

    return find


def test_blocking_stores(address: Callable[[str], str]) -> None:
    print(f"\n\nEach store against the bare statement on the same driver; many = {MANY:,} keys\n")
    print(
        "| store | get, bare = 1 | µs | get at many, at few = 1 | issue, bare = 1 | issued a second "
        f"| revoke {REVOKED:,}, bare = 1 | s | bytes a key |"
    )
    print("| --- " * 9 + "|")
    for name, (kind, database) in STORES.items():
        bench: Any = kind(address(database))
        print(f"| {name} | {' | '.join(_figures(bench))} |", flush=True)
        bench.close()


def _figures(bench: Any) -> Iterator[str]:
    few = [key(n) for n in range(FEW)]
    before = bench.size()
    bench.fill(few)
    got, microseconds = ratio((lambda: bench.store.get(few[7].id), bench.bare_get(few[7].id)))
    at_few = _spread(bench, few)
    bench.fill([key(n, f"User{n % 1000}") for n in range(FEW, MANY - 2 * REVOKED)])
    bench.fill([key(n, "Ours" if n % 2 else "Bare") for n in range(MANY - 2 * REVOKED, MANY)])
    after = bench.size()
    yield f"{got:.2f}"
    yield f"{microseconds:.0f}"
    yield f"{_spread(bench, [key(n) for n in range(0, MANY, MANY // FEW)]) / at_few:.2f}"
    made = iter(key(n) for n in range(MANY, MANY + 2 * ROUNDS * CALLS))
    issued, each = ratio((lambda: bench.store.add(next(made)), lambda: bench.bare_add(next(made))))
    yield f"{issued:.2f}"
    yield f"{1e6 / each:,.0f}"
    bare, ours = _once(bench.bare_revoke), _once(lambda: bench.store.revoke_all("Ours", NOW, "all"))
    yield f"{ours / bare:.2f}"
    yield f"{ours:.2f}"
    yield f"{(after - before) / MANY:.0f}"


def _spread(bench: Any, keys: Sequence[APIKey]) -> float:
    """Time a get, over keys from everywhere, twice: the first time brings them into the server's memory."""
    times: list[float] = []
    for _ in range(2):
        times.clear()
        for each in keys:
            start = perf_counter()
            bench.store.get(each.id)
            times.append(perf_counter() - start)
    return median(times)


def _once(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def test_async_stores(address: Callable[[str], str]) -> None:
    print("\n\nThe async stores' get against the bare statement on the same driver\n")
    print("| store | get, bare = 1 | µs |\n| --- | --- | --- |")
    urls = {
        "SQLite, aiosqlite": address("sqlite"),
        "PostgreSQL, psycopg": address("postgresql"),
        "PostgreSQL, asyncpg": address("postgresql").replace("psycopg", "asyncpg"),
        "MariaDB, asyncmy": address("mariadb").replace("pymysql", "asyncmy"),
        "Valkey or Redis": address("redis"),
    }
    for name, url in urls.items():
        loop = asyncio.new_event_loop()
        got, microseconds = loop.run_until_complete(_async_get(url))
        loop.close()
        print(f"| {name} | {got:.2f} | {microseconds:.0f} |", flush=True)


async def _async_get(url: str) -> tuple[float, float]:
    made = key(1)
    if url.startswith("redis"):
        redis = AsyncRedisKeyStore(url, namespace=secrets.token_hex(4))
        await redis.add(made)
        client: Any = await redis._clients.get()
        name = f"{redis._ns}key:{made.id}"
        found = await _in_turns(lambda: redis.get(made.id), lambda: client.get(name))
        await redis.close()
        return found
    store = AsyncSQLKeyStore(url, create=True)
    if await store.get(made.id) is None:
        await store.add(made)
    engine = AsyncEngine(store._database._reading)

    async def bare() -> object:
        async with engine.connect() as connection:
            return (await connection.execute(_GET, {"key_id": made.id})).first()

    found = await _in_turns(lambda: store.get(made.id), bare)
    await store.close()
    return found


async def _in_turns(
    first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[object]]
) -> tuple[float, float]:
    ratios, times = [], []
    for _ in range(ROUNDS):
        one, other = await _async_duration(first), await _async_duration(second)
        ratios.append(one / other)
        times.append(one / CALLS * 1e6)
    return median(ratios), median(times)


async def _async_duration(call: Callable[[], Awaitable[object]]) -> float:
    start = perf_counter()
    for _ in range(CALLS):
        await call()
    return perf_counter() - start
