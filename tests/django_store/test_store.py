"""What Django's own store promises beside the contract: its host's transactions, its databases, its failures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest
from asgiref.sync import async_to_sync
from databases import Server
from django.core.checks import Tags, run_checks
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import Error, OperationalError, connections, transaction
from django.test import AsyncClient, Client, override_settings
from django.test.utils import CaptureQueriesContext

from apikey_auth import (
    AsyncKeyManager,
    ConfigurationError,
    DuplicateKey,
    KeyManager,
    MemoryKeyStore,
    StoreUnavailable,
)
from apikey_auth.decisions import changed
from apikey_auth.django import conf, get_key_manager
from apikey_auth.django import store as module
from apikey_auth.django.models import Key, State
from apikey_auth.django.store import AsyncDjangoKeyStore, DjangoKeyStore
from apikey_auth.stores.protocol import Changes
from apikey_auth.testing.drive import Threads
from apikey_auth.testing.records import DAY, FULL, KATHMANDU, MOMENT, NOW, TIME_FIELDS, TIMES, cases, record

from .conftest import close_connections, install, mariadb_settings, migrated, postgresql_settings

T = TypeVar("T")
KEYS, STATE = Key._meta.db_table, State._meta.db_table


@pytest.fixture
def store(alias: str) -> DjangoKeyStore:
    return DjangoKeyStore(alias)


@contextmanager
def rolled_back(alias: str) -> Iterator[None]:
    """A transaction of the host that comes to nothing."""
    with suppress(ZeroDivisionError), transaction.atomic(using=alias):
        yield
        raise ZeroDivisionError


def elsewhere(call: Callable[[], T]) -> T:
    """Make a call over another connection."""
    return Threads(connections.close_all).at_once(call)[0]


def execute(alias: str, *statements: str) -> None:
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


class TestHostTransaction:
    def test_a_key_that_is_issued_is_gone_with_a_rollback(self, store: DjangoKeyStore) -> None:
        with rolled_back(store.alias):
            store.add(record())
            assert store.get("k1") == record()
        assert store.get("k1") is None

    def test_a_key_that_is_issued_is_there_for_others_from_the_commit(self, store: DjangoKeyStore) -> None:
        with transaction.atomic(using=store.alias):
            store.add(record())
            assert elsewhere(partial(store.get, "k1")) is None
        assert elsewhere(partial(store.get, "k1")) == record()

    def test_a_duplicate_leaves_the_transaction_whole(self, store: DjangoKeyStore) -> None:
        store.add(record("k1"))
        with transaction.atomic(using=store.alias):
            store.add(record("k2"))
            with pytest.raises(DuplicateKey):
                store.add(record("k1"))
            with pytest.raises(DuplicateKey):
                store.swap(record("k2"), changed(record("k2")), successor=record("k1"))
            store.add(record("k3"))
        assert store.find().items == (record("k1"), record("k2"), record("k3"))

    def test_a_late_change_undoes_nothing_of_the_hosts(self, store: DjangoKeyStore) -> None:
        with transaction.atomic(using=store.alias):
            store.add(record("k1"))
            assert not store.swap(record("k2"), changed(record("k2")))
        assert store.get("k1") == record("k1")

    def test_a_revocation_holds_from_the_commit(self, store: DjangoKeyStore) -> None:
        store.add(record())
        before = store.changes(None).revision
        with transaction.atomic(using=store.alias):
            store.revoke_all(None, NOW, None)
            assert elsewhere(partial(store.get, "k1")) == record()
            assert elsewhere(partial(store.changes, before)) == Changes(before, frozenset())
        assert elsewhere(partial(store.get, "k1")) == record(revoked_at=NOW, version=2)
        assert elsewhere(partial(store.changes, before)).ids == {"k1"}

    def test_what_is_rolled_back_was_no_change(self, store: DjangoKeyStore) -> None:
        store.add(record(expires_at=NOW - DAY))
        before = store.changes(None).revision
        with rolled_back(store.alias):
            store.revoke_all(None, NOW, None)
            store.purge(NOW)
        assert store.get("k1") == record(expires_at=NOW - DAY)
        assert store.changes(before) == Changes(before, frozenset())

    def test_async_calls_take_part_in_it_too(self, store: DjangoKeyStore) -> None:
        with rolled_back(store.alias):
            async_to_sync(AsyncDjangoKeyStore(store.alias).add)(record())
            assert store.get("k1") == record()
        assert store.get("k1") is None

    def test_a_callback_comes_at_once_without_a_transaction(self, store: DjangoKeyStore) -> None:
        called: list[int] = []
        store.on_commit(partial(called.append, 1))
        async_to_sync(AsyncDjangoKeyStore(store.alias).on_commit)(partial(called.append, 2))
        assert called == [1, 2]

    def test_a_callback_comes_with_the_commit(self, store: DjangoKeyStore) -> None:
        called: list[int] = []
        with transaction.atomic(using=store.alias):
            store.on_commit(partial(called.append, 1))
            async_to_sync(AsyncDjangoKeyStore(store.alias).on_commit)(partial(called.append, 2))
            assert called == []
        assert called == [1, 2]

    def test_no_callback_comes_with_a_rollback(self, store: DjangoKeyStore) -> None:
        called: list[int] = []
        with rolled_back(store.alias):
            store.on_commit(partial(called.append, 1))
        with transaction.atomic(using=store.alias), rolled_back(store.alias):
            store.on_commit(partial(called.append, 2))
        assert called == []


class TestFields:
    def test_what_is_read_has_the_types_that_it_was_given_with(self, store: DjangoKeyStore) -> None:
        store.add(record(**FULL))
        for key in (store.get("k1"), store.find().items[0]):
            assert key is not None
            assert key.disabled is True
            assert [type(value) for value in (key.scopes, key.addresses, key.metadata)] == [
                tuple,
                tuple,
                dict,
            ]

    @pytest.mark.parametrize("owner", ["a\0b", "\ud800", "", "x" * 10_000])
    def test_an_owner_whom_no_record_can_have_has_no_keys(self, store: DjangoKeyStore, owner: str) -> None:
        store.add(record())
        assert store.find(owner=owner).items == ()
        assert store.count(owner=owner) == store.revoke_all(owner, NOW, None) == 0
        assert store.get("k1") == record()

    def test_a_query_of_the_models_may_ask_in_any_zone(self, store: DjangoKeyStore) -> None:
        store.add(record(created_at=NOW))
        keys, there = Key.objects.using(store.alias), NOW.astimezone(KATHMANDU)
        assert keys.get(created_at=there).created_at == NOW
        assert not keys.filter(created_at__gt=there).exists()
        assert keys.filter(created_at__gt=there - MOMENT).exists()

    def test_what_is_in_no_field_is_no_time(self) -> None:
        with pytest.raises(ValidationError, match="no time"):
            Key.objects.filter(created_at__gt="soon").exists()


class TestStatements:
    """What is sent: as little as can be, and the counter first."""

    @pytest.fixture
    def sent(self, store: DjangoKeyStore) -> Iterator[Callable[[], list[str]]]:
        store.add(record("k1"))
        store.add(record("k2"))
        with CaptureQueriesContext(connections[store.alias]) as captured:
            yield lambda: [
                query["sql"].replace('"', "").replace("`", "")
                for query in captured.captured_queries
                if KEYS in query["sql"] or STATE in query["sql"]
            ]

    def test_reading_takes_one(self, store: DjangoKeyStore, sent: Callable[[], list[str]]) -> None:
        store.get("k1")
        store.changes(store.changes(None).revision)
        assert [statement.split()[0] for statement in sent()] == ["SELECT"] * 3

    @pytest.mark.parametrize(
        "change",
        [
            lambda store: store.swap(record("k1"), changed(record("k1"))),
            lambda store: store.revoke_all(None, NOW, None),
            lambda store: store.purge(NOW),
        ],
        ids=["swap", "revoke_all", "purge"],
    )
    def test_whatever_changes_records_moves_the_counter_first(
        self, store: DjangoKeyStore, sent: Callable[[], list[str]], change: Callable[[DjangoKeyStore], object]
    ) -> None:
        change(store)
        assert sent()[0].startswith(f"UPDATE {STATE} SET revision")
        assert len([statement for statement in sent() if KEYS in statement]) == 1


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM {keys} WHERE id = 'k1'",
        "SELECT * FROM {keys} WHERE owner = 'User1' AND id > 'k1' ORDER BY id LIMIT 100",
        "SELECT s.epoch, k.id FROM {state} s LEFT JOIN {keys} k ON k.revision > 7",
        "SELECT * FROM {keys} WHERE revoked_at IS NULL AND owner = 'User1'",
    ],
)
def test_no_query_reads_all_keys(sqlite_alias: str, query: str) -> None:
    with connections[sqlite_alias].cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + query.format(keys=KEYS, state=STATE))
        plan = [row[-1] for row in cursor.fetchall()]
    assert [step for step in plan if step.startswith("SCAN")] == (["SCAN s"] if " s " in query else []), plan


class TestTimes:
    @pytest.fixture(params=[True, False])
    def zone(self, request: pytest.FixtureRequest) -> Iterator[None]:
        close_connections()
        with override_settings(USE_TZ=request.param, TIME_ZONE="Asia/Kathmandu"):
            yield
            close_connections()

    @pytest.mark.usefixtures("zone")
    @pytest.mark.parametrize("time", cases(TIMES))
    def test_times_are_moments_whatever_the_project_and_the_server_call_them(
        self, store: DjangoKeyStore, time: Any
    ) -> None:
        key = record(**dict.fromkeys(TIME_FIELDS, time))
        store.add(key)
        assert store.get("k1") == key
        assert store.find().items == (key,)

    def test_two_projects_with_other_settings_read_the_same(self, store: DjangoKeyStore) -> None:
        store.add(record(**FULL))
        close_connections()
        with override_settings(USE_TZ=False, TIME_ZONE="America/New_York"):
            assert store.get("k1") == record(**FULL)
            close_connections()

    @pytest.mark.usefixtures("zone")
    def test_ends_are_compared_as_moments(self, store: DjangoKeyStore) -> None:
        store.add(record("k1", expires_at=NOW))
        store.add(record("k2", expires_at=NOW + DAY))
        assert [key.id for key in store.find(live_at=NOW).items] == ["k2"]


class Replicated:
    """A router that reads from a replica, which here knows nothing."""

    replica = primary = ""

    def db_for_read(self, *_: Any, **__: Any) -> str:
        return self.replica

    def db_for_write(self, *_: Any, **__: Any) -> str:
        return self.primary


class TestRouting:
    @pytest.fixture
    def replica(self, sqlite_alias: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        Key.objects.using(sqlite_alias).all().delete()
        monkeypatch.setattr(Replicated, "primary", sqlite_alias)
        monkeypatch.setattr(Replicated, "replica", install("replica", NAME=tmp_path / "replica.db"))
        with override_settings(DATABASE_ROUTERS=[f"{__name__}.Replicated"]):
            yield
        close_connections()

    @pytest.mark.usefixtures("replica")
    @pytest.mark.parametrize("kind", [DjangoKeyStore, AsyncDjangoKeyStore])
    def test_keys_are_read_where_they_are_written(self, kind: Any) -> None:
        manager: Any = KeyManager(kind()) if kind is DjangoKeyStore else AsyncKeyManager(kind())
        call: Any = (lambda function: function) if kind is DjangoKeyStore else async_to_sync
        issued = call(manager.issue)("1")
        call(manager.revoke)(issued.key.id)
        assert call(manager.get)(issued.key.id).revoked_at is not None
        assert len(call(manager.find)().items) == 1
        assert kind().alias == Replicated.primary

    @pytest.mark.parametrize("kind", [DjangoKeyStore, AsyncDjangoKeyStore])
    def test_a_database_that_there_is_not_is_a_configuration_error(self, kind: Any) -> None:
        with pytest.raises(ConfigurationError, match="DATABASES has no 'nowhere'"):
            kind("nowhere")


class TestSetting:
    def test_without_a_store_keys_are_in_the_projects_database(self) -> None:
        with override_settings(APIKEY_AUTH={}):
            setup = conf.setup()
            assert type(setup.authenticator.store) is DjangoKeyStore
            assert type(setup.async_authenticator.store) is AsyncDjangoKeyStore

    def test_a_project_without_the_setting_has_all_that_is_default(self) -> None:
        assert type(conf.setup().authenticator.store) is DjangoKeyStore

    def test_a_store_of_ours_has_its_own_async_colour(self, sqlite_alias: str) -> None:
        with override_settings(APIKEY_AUTH={"STORE": DjangoKeyStore(sqlite_alias)}):
            found = conf.setup().async_authenticator.store
        assert isinstance(found, AsyncDjangoKeyStore)
        assert found.using == sqlite_alias

    def test_the_store_may_be_a_url(self, tmp_path: Any) -> None:
        with override_settings(APIKEY_AUTH={"STORE": f"sqlite:///{tmp_path}/keys.db"}):
            assert type(conf.setup().authenticator.store).__name__ == "SQLKeyStore"

    def test_a_url_of_no_store_is_a_configuration_error_without_its_password(self) -> None:
        with override_settings(APIKEY_AUTH={"STORE": "nothing://user:hunter2@127.0.0.1/keys"}):
            with pytest.raises(ConfigurationError) as caught:
                conf.setup()
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("store", [None, "nowhere", "nowhere.at_all", 7])
    def test_a_store_that_is_none_is_a_configuration_error(self, store: object) -> None:
        with override_settings(APIKEY_AUTH={"STORE": store}), pytest.raises(ConfigurationError):
            conf.setup()


class TestModels:
    def test_the_model_is_for_reading(self, store: DjangoKeyStore) -> None:
        store.add(record())
        row = Key.objects.using(store.alias).get(owner="User1")
        for change in (row.save, row.delete):
            with pytest.raises(TypeError, match="get_key_manager"):
                change()
        assert store.get("k1") == record()

    def test_a_key_is_shown_without_its_digest(self) -> None:
        key = Key(id="k1", prefix="acme", last4="wXyZ", name="CI", digest="sha256$$secret")
        assert str(key) == "acme_k1_…wXyZ CI"
        assert "secret" not in f"{key!r}"

    def test_no_migration_is_missing(self) -> None:
        call_command("makemigrations", "apikey_auth", check_changes=True, dry_run=True, verbosity=0)

    def test_the_tables_can_be_taken_back_and_made_anew(self, store: DjangoKeyStore) -> None:
        before = store.changes(None).revision
        call_command("migrate", "apikey_auth", "zero", database=store.alias, verbosity=0)
        with pytest.raises(StoreUnavailable, match=r"manage\.py migrate"):
            store.get("k1")
        call_command("migrate", "apikey_auth", database=store.alias, verbosity=0)
        assert store.changes(before).revision.epoch != before.epoch
        assert store.changes(before).ids is None

    def test_a_flush_as_between_tests_leaves_a_store_that_works(self, tmp_path: Any) -> None:
        alias = install("flushed", NAME=tmp_path / "keys.db")
        call_command("migrate", database=alias, verbosity=0)
        store = DjangoKeyStore(alias)
        store.add(record())
        before = store.changes(None).revision
        call_command("flush", database=alias, verbosity=0, interactive=False)
        assert store.get("k1") is None
        assert store.changes(before).ids is None
        store.add(record())
        assert store.swap(record(), changed(record()))
        close_connections()

    def test_what_dumpdata_writes_loaddata_reads(self, store: DjangoKeyStore, tmp_path: Any) -> None:
        seconds = {name: NOW.replace(microsecond=123000) for name in TIME_FIELDS}  # its JSON has milliseconds
        keys = [record("k1", **{**FULL, **seconds}), record("k2", created_at=NOW.replace(microsecond=0))]
        for key in keys:
            store.add(key)
        file = tmp_path / "keys.json"
        call_command("dumpdata", "apikey_auth.key", database=store.alias, output=str(file), verbosity=0)
        Key.objects.using(store.alias).all().delete()
        call_command("loaddata", str(file), database=store.alias, verbosity=0)
        assert list(store.find().items) == keys


def every_call(store: DjangoKeyStore) -> list[Callable[[], object]]:
    return [
        partial(store.get, "k1"),
        partial(store.add, record("k2")),
        partial(store.swap, record(), changed(record())),
        partial(store.revoke_all, None, NOW, None),
        store.find,
        store.count,
        partial(store.purge, NOW),
        partial(store.touch, {"k1": NOW}),
        partial(store.changes, None),
    ]


class TestChecks:
    def test_each_database_passes_djangos_own(self, store: DjangoKeyStore) -> None:
        messages = run_checks(tags=[Tags.models, Tags.database], databases=[store.alias])
        assert [message for message in messages if "apikey_auth" in str(message.obj)] == []

    def test_a_database_that_was_never_tried_is_w002(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "apikey_auth.W002" not in [message.id for message in run_checks()]
        monkeypatch.setattr(connections["default"], "vendor", "oracle", raising=False)
        assert "apikey_auth.W002" in [message.id for message in run_checks()]
        with override_settings(APIKEY_AUTH={"STORE": MemoryKeyStore()}):
            assert "apikey_auth.W002" not in [message.id for message in run_checks()]


class TestFailures:
    def test_missing_tables_are_unavailable_and_the_command_is_named(self, store: DjangoKeyStore) -> None:
        execute(store.alias, f"ALTER TABLE {KEYS} RENAME TO hidden")
        try:
            for call in every_call(store):
                with pytest.raises(StoreUnavailable, match=r"manage\.py migrate") as caught:
                    call()
                assert isinstance(caught.value.__cause__, Error)
        finally:
            execute(store.alias, f"ALTER TABLE hidden RENAME TO {KEYS}")

    def test_an_emptied_state_is_unavailable_until_the_next_migrate(self, store: DjangoKeyStore) -> None:
        store.add(record())
        State.objects.using(store.alias).all().delete()
        for call in (
            partial(store.changes, None),
            partial(store.swap, record(), changed(record())),
            partial(store.revoke_all, None, NOW, None),
            partial(store.purge, NOW),
        ):
            with pytest.raises(StoreUnavailable, match=r"is empty; manage\.py migrate fills it"):
                call()
        call_command("migrate", "apikey_auth", database=store.alias, verbosity=0)
        assert store.swap(record(), changed(record()))

    def test_only_the_uniqueness_of_ids_makes_a_duplicate(self, store: DjangoKeyStore) -> None:
        store.add(record("k1", last4="same"))
        execute(store.alias, f"CREATE UNIQUE INDEX hosts_own ON {KEYS} (last4)")
        try:
            with pytest.raises(StoreUnavailable):
                store.add(record("PRIMARY'", last4="same"))
            with pytest.raises(DuplicateKey):
                store.add(record("k1", last4="else"))
        finally:
            drop = f" ON {KEYS}" if connections[store.alias].vendor == "mysql" else ""
            execute(store.alias, f"DROP INDEX hosts_own{drop}")

    def test_within_a_host_transaction_that_failed_a_call_is_unavailable(self, store: DjangoKeyStore) -> None:
        with rolled_back(store.alias):
            transaction.set_rollback(True, using=store.alias)
            with pytest.raises(StoreUnavailable, match="atomic"):
                store.get("k1")

    def test_a_callback_comes_when_the_database_is_out_of_reach(self, tmp_path: Any) -> None:
        called: list[int] = []
        store = DjangoKeyStore(install("away", NAME=tmp_path / "missing" / "keys.db"))
        store.on_commit(partial(called.append, 1))
        assert called == [1]


def ended(code: object) -> OperationalError:
    """What Django raises for a transaction that the database ended."""
    if isinstance(code, int):
        return OperationalError(code, "deadlock")
    error, cause = OperationalError("deadlock"), psycopg.errors.lookup(str(code))()
    error.__cause__ = cause
    return error


class TestRetries:
    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, object], list[int]]:
        """Let the first so many changes of the counter fail with a code; answer the list of attempts."""

        def fail(times: int, code: object) -> list[int]:
            attempts: list[int] = []
            advance = module._advance

            def failing(connection: Any) -> int:
                attempts.append(1)
                if len(attempts) <= times:
                    raise ended(code)
                return advance(connection)

            monkeypatch.setattr(module, "_advance", failing)
            return attempts

        return fail

    @pytest.mark.parametrize("code", ["40001", "40P01", 1213, 1020])
    def test_what_the_database_ended_is_tried_again(
        self, sqlite_alias: str, failing: Callable[[int, object], list[int]], code: object
    ) -> None:
        failing(2, code)
        assert DjangoKeyStore(sqlite_alias).revoke_all("nobody", NOW, None) == 0

    def test_but_not_for_ever(self, sqlite_alias: str, failing: Callable[[int, object], list[int]]) -> None:
        attempts = failing(1000, 1213)
        with pytest.raises(StoreUnavailable, match="deadlock"):
            DjangoKeyStore(sqlite_alias).revoke_all("nobody", NOW, None)
        assert 2 < len(attempts) < 100

    @pytest.mark.parametrize("code", ["57014", 2013, "database is locked"])
    def test_other_failures_are_not_tried_again(
        self, sqlite_alias: str, failing: Callable[[int, object], list[int]], code: object
    ) -> None:
        attempts = failing(1, code) if code != "database is locked" else failing(1, 1)
        with pytest.raises(StoreUnavailable):
            DjangoKeyStore(sqlite_alias).revoke_all("nobody", NOW, None)
        assert len(attempts) == 1

    def test_within_a_host_transaction_the_host_is_told_and_decides(
        self, sqlite_alias: str, failing: Callable[[int, object], list[int]]
    ) -> None:
        Key.objects.using(sqlite_alias).all().delete()
        attempts, store = failing(1, 1213), DjangoKeyStore(sqlite_alias)
        with transaction.atomic(using=sqlite_alias):
            store.add(record())
            with pytest.raises(StoreUnavailable, match="deadlock"):
                store.revoke_all(None, NOW, None)
        assert len(attempts) == 1
        assert store.get("k1") == record()

    def test_transactions_that_may_not_see_each_other_are_tried_until_they_do(
        self, postgresql_alias: str
    ) -> None:
        isolation = {"isolation_level": psycopg.IsolationLevel.SERIALIZABLE}
        strict = install("strict", **{**connections.settings[postgresql_alias], "OPTIONS": isolation})
        store = DjangoKeyStore(strict)
        before = store.changes(None).revision.number

        def revoke() -> None:
            for _ in range(5):
                store.revoke_all("nobody", NOW, None)

        Threads(connections.close_all).at_once(*[revoke] * 4)
        assert store.changes(None).revision.number == before + 20
        close_connections()


@pytest.mark.usefixtures("clean_project")
class TestServers:
    """A server that goes away and comes back, as requests see it."""

    @pytest.fixture(params=["postgresql", "mariadb"])
    def server(self, request: pytest.FixtureRequest) -> Iterator[Server]:
        server: Server = request.getfixturevalue(f"own_{request.param}")
        settings = postgresql_settings if request.param == "postgresql" else mariadb_settings
        alias = migrated(install("restarted", **settings(server.url, "restarted"), CONN_MAX_AGE=None))
        with override_settings(APIKEY_AUTH={"STORE": DjangoKeyStore(alias)}):
            yield server
        close_connections()

    def test_a_server_that_is_away_is_503_and_heals_by_itself(self, server: Server) -> None:
        seen, *new = ({"apikey": get_key_manager().issue("1").text} for _ in range(3))
        assert ask(seen) == ask_async(seen) == (200, "ada")
        server.stop()
        for headers in new:  # of which nothing is remembered
            assert ask(headers) == ask_async(headers) == (503, "store_unavailable")
        server.start()
        for headers in (seen, *new):
            assert ask(headers) == ask_async(headers) == (200, "ada")

    def test_a_restart_that_nobody_noticed_costs_one_call_at_most(self, server: Server) -> None:
        store: Any = conf.setup().authenticator.store
        store.add(record())
        server.stop()
        server.start()
        with pytest.raises(StoreUnavailable):
            store.get("k1")
        assert store.get("k1") == record()


def ask(headers: dict[str, str]) -> tuple[int, str]:
    answer = Client().get("/me", headers=headers)
    return answer.status_code, answer.json().get("user") or answer.json()["code"]


def ask_async(headers: dict[str, str]) -> tuple[int, str]:
    answer = async_to_sync(AsyncClient().get)("/me", headers=headers)
    return answer.status_code, answer.json().get("user") or answer.json()["code"]
