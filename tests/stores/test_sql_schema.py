"""How the SQL store's tables are made and brought up to date, on every database."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from apikey_auth import ConfigurationError, Revision, StoreUnavailable
from apikey_auth.stores.sql import SQLKeyStore, metadata
from apikey_auth.stores.sql.schema import INDEXES, KEYS, SCHEMA_VERSION, STATE
from apikey_auth.testing.records import FULL, record

# The tables as the first version made them, in SQLite, the only database it knew.
VERSION_1 = """
CREATE TABLE apikey_auth_keys (
    id VARCHAR(255) NOT NULL, owner VARCHAR(255) NOT NULL, digest VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL, prefix VARCHAR(255) NOT NULL, last4 VARCHAR(4) NOT NULL,
    scopes JSON, addresses JSON, created_at DATETIME NOT NULL, created_by VARCHAR(255), expires_at DATETIME,
    disabled BOOLEAN NOT NULL, revoked_at DATETIME, revoked_reason TEXT, rotated_to VARCHAR(255),
    rotated_from VARCHAR(255), grace_until DATETIME, last_used_at DATETIME, metadata JSON NOT NULL,
    version INTEGER NOT NULL, revision BIGINT NOT NULL, PRIMARY KEY (id)
) WITHOUT ROWID;
CREATE INDEX apikey_auth_keys_owner ON apikey_auth_keys (owner, id);
CREATE INDEX apikey_auth_keys_revision ON apikey_auth_keys (revision);
CREATE TABLE apikey_auth_state (
    id INTEGER NOT NULL, schema_version INTEGER NOT NULL, epoch VARCHAR(32) NOT NULL,
    revision BIGINT NOT NULL, floor BIGINT NOT NULL, PRIMARY KEY (id)
);
INSERT INTO apikey_auth_state VALUES (1, 1, 'first', 7, 3);
INSERT INTO apikey_auth_keys VALUES (
    'k1', 'User1', 'sha256$$00', '', '', '', NULL, NULL, '2026-03-14 15:09:26.535897', NULL, NULL, 0,
    NULL, NULL, NULL, NULL, NULL, NULL, '{}', 1, 0
);
INSERT INTO apikey_auth_keys VALUES (
    'k2', 'User1', 'sha256$$00', 'second', 'acme', 'wXyZ', '["a", "b"]', '["10.0.0.0/8"]',
    '2026-03-14 15:09:26.535897', 'k1', NULL, 1, NULL, NULL, NULL, 'k0', NULL, NULL, '{"n": [1, null]}', 4, 6
);
"""


@pytest.fixture
def old(url: str, file: Path) -> str:
    with sqlite3.connect(file) as connection:
        connection.executescript(VERSION_1)
    connection.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def empty_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database in which the tables are not."""
    if request.param == "sqlite":
        yield request.getfixturevalue("url")
        return
    driver = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}[request.param]
    server = sa.make_url(request.getfixturevalue(f"{request.param}_url")).set(drivername=driver)
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE schema_test")
    yield server.set(database="schema_test").render_as_string(hide_password=False)
    with admin.connect() as connection:
        force = " WITH (FORCE)" if request.param == "postgresql" else ""
        connection.exec_driver_sql(f"DROP DATABASE schema_test{force}")
    admin.dispose()


@pytest.fixture
def opened() -> Iterator[list[SQLKeyStore]]:
    """Stores to be closed."""
    stores: list[SQLKeyStore] = []
    yield stores
    for store in stores:
        store.close()


def open_store(opened: list[SQLKeyStore], url: str, **options: bool) -> SQLKeyStore:
    opened.append(SQLKeyStore(url, **options))  # type: ignore[arg-type]
    return opened[-1]


def run(url: str, statement: str | sa.Executable) -> list[tuple[object, ...]]:
    """Run a statement on a connection of its own."""
    engine = sa.create_engine(url)
    try:
        with engine.begin() as connection:
            done = connection.execute(sa.text(statement) if isinstance(statement, str) else statement)
            return [tuple(row) for row in done] if done.returns_rows else []
    finally:
        engine.dispose()


def indexes(url: str) -> set[str | None]:
    engine = sa.create_engine(url)
    try:
        return {index["name"] for index in sa.inspect(engine).get_indexes(KEYS.name)}
    finally:
        engine.dispose()


def test_an_upgrade_keeps_every_record(opened: list[SQLKeyStore], old: str) -> None:
    store = open_store(opened, old)
    store.upgrade_schema()
    assert store.find().items == (
        record("k1"),
        record(
            "k2",
            name="second",
            prefix="acme",
            last4="wXyZ",
            scopes=["a", "b"],
            addresses=["10.0.0.0/8"],
            created_by="k1",
            disabled=True,
            rotated_from="k0",
            metadata={"n": [1, None]},
            version=4,
        ),
    )


def test_an_upgrade_keeps_epoch_revision_and_floor(opened: list[SQLKeyStore], old: str) -> None:
    store = open_store(opened, old)
    store.upgrade_schema()
    assert store.changes(Revision("first", 5)).ids == {"k2"}
    assert store.changes(Revision("first", 7)).ids == frozenset()
    assert store.changes(Revision("first", 2)).ids is None


def test_an_upgrade_adds_the_indexes_and_says_which_version_the_tables_have(
    opened: list[SQLKeyStore], old: str
) -> None:
    open_store(opened, old).upgrade_schema()
    assert indexes(old) == {index.name for index in INDEXES}
    assert run(old, sa.select(STATE.c.schema_version)) == [(SCHEMA_VERSION,)]


def test_an_old_schema_serves_until_it_is_upgraded(opened: list[SQLKeyStore], old: str) -> None:
    store = open_store(opened, old, create=True)
    store.add(record("k3", **{**FULL, "rotated_to": None}))
    assert store.get("k3") == record("k3", **{**FULL, "rotated_to": None})
    assert run(old, sa.select(STATE.c.schema_version)) == [(1,)]
    store.upgrade_schema()
    assert store.count() == 3


def test_upgrading_again_changes_nothing(opened: list[SQLKeyStore], empty_database: str) -> None:
    store = open_store(opened, empty_database, create=True)
    store.add(record())
    before = store.changes(None)
    store.upgrade_schema()
    store.upgrade_schema()
    assert store.changes(None) == before
    assert store.get("k1") == record()


def test_an_upgrade_makes_what_is_not_there_at_all(opened: list[SQLKeyStore], empty_database: str) -> None:
    store = open_store(opened, empty_database)
    store.upgrade_schema()
    assert store.count() == 0
    assert indexes(empty_database) >= {index.name for index in INDEXES}


def test_tables_of_a_version_still_to_come_are_left_alone(
    opened: list[SQLKeyStore], empty_database: str
) -> None:
    store = open_store(opened, empty_database, create=True)
    store.count()
    run(empty_database, sa.update(STATE).values(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(ConfigurationError, match="upgrade the library"):
        store.upgrade_schema()
    assert run(empty_database, sa.select(STATE.c.schema_version)) == [(SCHEMA_VERSION + 1,)]


@pytest.mark.parametrize("change", ["create_schema", "upgrade_schema"])
def test_eight_workers_may_make_the_tables_at_once(
    opened: list[SQLKeyStore], empty_database: str, change: str
) -> None:
    stores = [open_store(opened, empty_database) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda store: getattr(store, change)(), stores))
    assert len({store.changes(None).revision.epoch for store in stores}) == 1


def test_eight_workers_may_upgrade_at_once(opened: list[SQLKeyStore], old: str) -> None:
    stores = [open_store(opened, old) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(SQLKeyStore.upgrade_schema, stores))
    assert stores[0].count() == 2


def test_without_the_tables_the_error_says_how_to_make_them(
    opened: list[SQLKeyStore], empty_database: str
) -> None:
    with pytest.raises(StoreUnavailable, match=r"create_schema\(\)"):
        open_store(opened, empty_database).get("k1")


def test_tables_that_alembic_made_are_completed_by_create_schema(
    opened: list[SQLKeyStore], empty_database: str
) -> None:
    engine = sa.create_engine(empty_database)
    metadata.create_all(engine)
    engine.dispose()
    store = open_store(opened, empty_database)
    with pytest.raises(StoreUnavailable, match=r"create_schema\(\) fills it"):
        store.changes(None)
    with pytest.raises(StoreUnavailable, match=r"create_schema\(\) fills it"):
        store.revoke_all(None, FULL["created_at"], None)
    store.create_schema()
    assert store.changes(None).revision.number == 0
