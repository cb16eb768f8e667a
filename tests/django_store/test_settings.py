"""What APIKEY_AUTH says of keys, caches and users, and what the project's transactions do to what is remembered."""

import json
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from asgiref.sync import async_to_sync
from django.contrib.sessions.models import Session
from django.core.checks import run_checks
from django.db import connection, connections, transaction
from django.db.models.signals import post_delete, post_save
from django.test import Client, TestCase, override_settings
from django.test.utils import CaptureQueriesContext
from serving import PATIENCE, environment

from apikey_auth import (
    ConfigurationError,
    InactiveUser,
    Inline,
    InvalidKey,
    KeyManager,
    MemoryKeyStore,
    RevokedKey,
)
from apikey_auth.django import conf, get_key_manager
from apikey_auth.django.store import AsyncDjangoKeyStore, DjangoKeyStore
from apikey_auth.testing.drive import Threads
from apikey_auth.testing.records import record

from .conftest import close_connections, install

T = TypeVar("T")
SECRET = "a seal key that is long enough"
NEVER_POLLED = {"MAX_STALENESS": 3600, "MAX_AGE": 3600}


@contextmanager
def configured(**setting: Any) -> Iterator[conf.Setup]:
    """A project with this setting, whose keys are in memory unless it says otherwise."""
    with override_settings(APIKEY_AUTH={"STORE": MemoryKeyStore(), **setting}):
        yield conf.setup()


@contextmanager
def rolled_back(alias: str = "default") -> Iterator[None]:
    """A transaction of the project's that comes to nothing."""
    with suppress(ZeroDivisionError), transaction.atomic(using=alias):
        yield
        raise ZeroDivisionError


def elsewhere(call: Callable[[], T]) -> T:
    """Make a call in another thread, over another connection."""
    return Threads(connections.close_all).at_once(call)[0]


def complaints() -> list[str]:
    """The errors of ours that ``manage.py check`` shows."""
    return [
        each for each in map(str, (found.id for found in run_checks())) if each.startswith("apikey_auth.E")
    ]


COLOURS = ("blocking", "async")


def authenticate(setup: conf.Setup, text: str, colour: str = "blocking") -> Any:
    if colour == "async":
        return async_to_sync(setup.async_authenticator.authenticate)(text)
    return setup.authenticator.authenticate(text)


class TestOptions:
    @pytest.mark.parametrize("colour", COLOURS)
    def test_the_times_are_both_authenticators(self, colour: str) -> None:
        with configured(MAX_STALENESS=5, STALE_IF_ERROR=30) as setup:
            auth = setup.authenticator if colour == "blocking" else setup.async_authenticator
            assert auth.revocation_bound == 35

    def test_an_async_stores_authenticator_has_them_too(self) -> None:
        with configured(STORE=Inline(MemoryKeyStore()), MAX_STALENESS=5) as setup:
            assert setup.async_authenticator.revocation_bound == 5

    @pytest.mark.usefixtures("clean_project")
    @pytest.mark.parametrize(("setting", "reads"), [({}, 1), ({"CACHE_SIZE": 0}, 2), ({"MAX_AGE": 0}, 2)])
    @pytest.mark.parametrize("colours", [COLOURS, COLOURS[::-1]])
    def test_the_two_remember_together_and_as_many_as_they_are_told(
        self, setting: dict[str, Any], reads: int, colours: tuple[str, str]
    ) -> None:
        with configured(STORE=DjangoKeyStore(), MAX_STALENESS=3600, **setting) as setup:
            text = get_key_manager().issue("1").text
            with CaptureQueriesContext(connection) as sent:
                for colour in colours:
                    authenticate(setup, text, colour)
        assert len([each for each in sent if "digest" in each["sql"]]) == reads

    @pytest.mark.usefixtures("clean_project")
    @pytest.mark.parametrize(("seconds", "loads"), [(0, 2), (3600, 1)])
    @pytest.mark.parametrize("colours", [COLOURS, COLOURS[::-1]])
    def test_the_two_remember_users_together(
        self, seconds: float, loads: int, colours: tuple[str, str]
    ) -> None:
        with configured(USER_MAX_AGE=seconds) as setup:
            text = get_key_manager().issue("1").text
            with CaptureQueriesContext(connection) as sent:
                users = [authenticate(setup, text, colour).user for colour in colours]
        assert len([each for each in sent if "auth_user" in each["sql"]]) == loads
        assert users[0] == users[1]
        assert users[0] is not users[1]

    @pytest.mark.usefixtures("clean_project")
    def test_keys_are_sealed_and_those_from_before_may_be_refused(self) -> None:
        store = MemoryKeyStore()
        with configured(STORE=store):
            old = get_key_manager().issue("1").text
        with configured(STORE=store, SEAL_KEYS=[SECRET]) as setup:
            new = get_key_manager().issue("1").text
            assert authenticate(setup, old).key.owner == authenticate(setup, new).key.owner == "1"
        with configured(STORE=store, SEAL_KEYS=[SECRET], REQUIRE_SEAL=True) as setup:
            assert authenticate(setup, new).key.owner == "1"
            with pytest.raises(InvalidKey):
                authenticate(setup, old)


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("PREFIX", 7),
            ("PEPPERS", SECRET),
            ("PEPPERS", {SECRET}),
            ("SEAL_KEYS", SECRET),
            ("SEAL_KEYS", None),
            ("REQUIRE_SEAL", "no"),
            ("FORMATS", print),
            ("CACHE_SIZE", "10000"),
            ("CACHE_SIZE", 0.5),
            ("CACHE_SIZE", True),
            ("MAX_STALENESS", None),
            ("MAX_AGE", "5 minutes"),
            ("STALE_IF_ERROR", True),
            ("USER_MAX_AGE", [60]),
            ("TOUCH_INTERVAL", "60"),
            ("REQUIRED", "yes"),
            ("EXEMPT", "/health"),
            ("CARRIERS", None),
            ("ON_INVALID", None),
            ("REALM", b"api"),
            ("RENDER", "json"),
            ("TRUSTED_PROXIES", "10.0.0.1"),
        ],
    )
    def test_a_setting_of_the_wrong_kind_is_named_and_not_told(self, name: str, value: object) -> None:
        with override_settings(APIKEY_AUTH={"STORE": MemoryKeyStore(), name: value}):
            with pytest.raises(ConfigurationError, match=rf"APIKEY_AUTH\['{name}'\] must be ") as caught:
                conf.setup()
            assert complaints() == ["apikey_auth.E001"]
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "setting",
        [
            {"CACHE_SIZE": -1},
            {"MAX_STALENESS": -1},
            {"MAX_AGE": float("inf")},
            {"STALE_IF_ERROR": float("nan")},
            {"USER_MAX_AGE": -1},
            {"REQUIRE_SEAL": True},
            {"SEAL_KEYS": ["short"]},
        ],
    )
    def test_a_value_that_will_not_do_is_found_by_the_check(self, setting: dict[str, Any]) -> None:
        with override_settings(APIKEY_AUTH={"STORE": MemoryKeyStore(), **setting}):
            assert complaints() == ["apikey_auth.E001"]

    def test_lists_may_be_tuples_and_what_has_no_order_may_be_a_set(self) -> None:
        with configured(SEAL_KEYS=(SECRET,), EXEMPT={"/health"}, TRUSTED_PROXIES={"10.0.0.0/8"}) as setup:
            assert setup.policy.exempts("/health")


@pytest.mark.usefixtures("clean_project")
class TestUsers:
    """A user who is remembered for an hour, until something happens to them."""

    @pytest.fixture
    def setup(self) -> Iterator[conf.Setup]:
        with configured(USER_MAX_AGE=3600, **NEVER_POLLED) as setup:
            yield setup
        close_connections()

    @pytest.fixture
    def ada(self) -> Any:
        from django.contrib.auth.models import User

        return User.objects.get_or_create(pk=1, defaults={"username": "ada"})[0]

    @pytest.fixture
    def text(self, setup: conf.Setup, ada: Any) -> Iterator[str]:
        text = get_key_manager().issue("1").text
        yield text
        ada.is_active = True
        ada.pk = 1
        ada.save()

    @staticmethod
    def disable(user: Any) -> None:
        user.is_active = False
        user.save()

    @pytest.mark.parametrize("colour", COLOURS)
    def test_a_user_who_is_saved_is_loaded_anew(
        self, setup: conf.Setup, ada: Any, text: str, colour: str
    ) -> None:
        for each in COLOURS:
            authenticate(setup, text, each)
        self.disable(ada)
        with pytest.raises(InactiveUser):
            authenticate(setup, text, colour)

    def test_a_user_who_is_deleted_opens_nothing(self, setup: conf.Setup, ada: Any, text: str) -> None:
        authenticate(setup, text)
        ada.delete()
        with pytest.raises(InactiveUser):
            authenticate(setup, text)

    def test_users_deleted_by_a_query_open_nothing(self, setup: conf.Setup, ada: Any, text: str) -> None:
        authenticate(setup, text)
        type(ada).objects.filter(pk=1).delete()
        with pytest.raises(InactiveUser):
            authenticate(setup, text)

    def test_an_update_goes_unnoticed_until_one_says_so(self, setup: conf.Setup, ada: Any, text: str) -> None:
        authenticate(setup, text)
        type(ada).objects.filter(pk=1).update(is_active=False)
        assert authenticate(setup, text).user == ada
        conf.forget_user("1")
        with pytest.raises(InactiveUser):
            authenticate(setup, text)

    @pytest.mark.parametrize("colour", COLOURS)
    def test_whoever_is_loaded_again_before_the_commit_is_forgotten_at_the_commit(
        self, setup: conf.Setup, ada: Any, text: str, colour: str
    ) -> None:
        with transaction.atomic():
            self.disable(ada)
            assert elsewhere(partial(authenticate, setup, text)).user == ada  # as others still see them
        with pytest.raises(InactiveUser):
            authenticate(setup, text, colour)

    @pytest.mark.parametrize("colour", COLOURS)
    def test_within_the_transaction_users_are_as_they_will_be(
        self, setup: conf.Setup, ada: Any, text: str, colour: str
    ) -> None:
        authenticate(setup, text)
        with transaction.atomic():
            self.disable(ada)
            with pytest.raises(InactiveUser):
                authenticate(setup, text, colour)

    @pytest.mark.parametrize("colour", COLOURS)
    def test_what_is_rolled_back_is_not_remembered(
        self, setup: conf.Setup, ada: Any, text: str, colour: str
    ) -> None:
        with rolled_back():
            self.disable(ada)
            with pytest.raises(InactiveUser):
                authenticate(setup, text, colour)
        assert authenticate(setup, text, colour).user == ada

    def test_the_commit_is_that_of_the_database_where_the_user_is(
        self, setup: conf.Setup, ada: Any, text: str, tmp_path: Path
    ) -> None:
        alias = install("users", NAME=tmp_path / "users.db")
        with transaction.atomic():
            type(ada).objects.filter(pk=1).update(is_active=False)
            with transaction.atomic(using=alias):
                post_save.send(type(ada), instance=ada, using=alias)
                assert elsewhere(partial(authenticate, setup, text)).user == ada
                assert authenticate(setup, text).user == ada
            with pytest.raises(InactiveUser):
                authenticate(setup, text)

    def test_a_bad_setting_does_not_keep_users_from_being_saved(self, ada: Any) -> None:
        with override_settings(APIKEY_AUTH=None):
            ada.save()

    def test_other_models_are_deleted_in_the_fast_way(self, ada: Any) -> None:
        assert post_delete.has_listeners(type(ada))
        assert not post_delete.has_listeners(Session)
        assert not post_save.has_listeners(Session)


PROJECT = """
import json, sys
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="only for these tests",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "people", "apikey_auth.django"],
    AUTH_USER_MODEL="people.Member",
    APIKEY_AUTH={"USER_MAX_AGE": 3600, "STORE": "apikey_auth.MemoryKeyStore"},
)
django.setup()
from django.core.management import call_command
from django.contrib.auth.models import Permission
from django.db.models.signals import post_delete
from apikey_auth.django.conf import setup
from people.models import Admin, Member, Person, Tutor

call_command("migrate", run_syncdb=True, verbosity=0)
auth = setup().authenticator
answers = {}
for model in (Person, Member, Admin, Tutor):
    made = Tutor.objects.create(name=model.__name__)
    text = auth.keys.issue(str(made.pk)).text
    assert auth.authenticate(text).user.name == model.__name__
    changed = model.objects.get(pk=made.pk)
    changed.name = "new"
    changed.save()
    saved = auth.authenticate(text).user.name
    changed.delete()
    try:
        auth.authenticate(text)
        deleted = False
    except Exception as error:
        deleted = error.code
    answers[model.__name__] = [saved, deleted]
print(json.dumps([answers, post_delete.has_listeners(Permission)]))
"""

PEOPLE = """
from django.db import models

class Person(models.Model):
    name = models.CharField(max_length=20)

class Member(Person):
    is_active, is_authenticated, is_anonymous = True, True, False
    USERNAME_FIELD, REQUIRED_FIELDS = "name", []

class Admin(Member):
    class Meta:
        proxy = True

class Tutor(Member):
    subject = models.CharField(max_length=20)
"""


def test_users_are_forgotten_by_whichever_model_they_are_changed(tmp_path: Path) -> None:
    package = tmp_path / "people"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(PEOPLE)
    (tmp_path / "project.py").write_text(PROJECT)
    done = subprocess.run(
        [sys.executable, "project.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, others = json.loads(done.stdout)
    assert answers == {name: ["new", "inactive_user"] for name in ("Person", "Member", "Admin", "Tutor")}
    assert not others


@pytest.mark.usefixtures("clean_project")
class TestTransactions:
    """Keys that are read within a transaction of the project's, which may be rolled back."""

    def test_a_poll_within_one_does_not_hide_a_later_revocation(self, alias: str) -> None:
        """The revision that was rolled back is then another change's."""
        store, now = DjangoKeyStore(alias), 0.0
        with configured(STORE=store) as setup:
            setup.authenticator._cache._monotonic = lambda: now
            issued, other = get_key_manager().issue("1"), get_key_manager().issue("1")
            authenticate(setup, issued.text)
            now = 1.0
            with rolled_back(alias):
                KeyManager(store).revoke(other.key.id)
                authenticate(setup, issued.text)
            KeyManager(store).revoke(issued.key.id)  # as another process would
            now = 2.0
            with pytest.raises(RevokedKey):
                authenticate(setup, issued.text)

    @pytest.mark.parametrize("colour", COLOURS)
    def test_a_revocation_that_is_rolled_back_is_not_remembered(self, alias: str, colour: str) -> None:
        store = DjangoKeyStore(alias)
        with configured(STORE=store, **NEVER_POLLED) as setup:
            issued = get_key_manager().issue("1")
            with rolled_back(alias):
                get_key_manager().revoke(issued.key.id)
                with pytest.raises(RevokedKey):
                    authenticate(setup, issued.text, colour)
            assert authenticate(setup, issued.text, colour).key.id == issued.key.id

    @pytest.mark.parametrize("colour", COLOURS)
    def test_a_key_that_was_never_committed_opens_nothing(self, alias: str, colour: str) -> None:
        with configured(STORE=DjangoKeyStore(alias), **NEVER_POLLED) as setup:
            with rolled_back(alias):
                issued = get_key_manager().issue("1")
                assert authenticate(setup, issued.text, colour).key.id == issued.key.id
            with pytest.raises(InvalidKey):
                authenticate(setup, issued.text, colour)

    def test_a_change_within_one_is_any_change(self, alias: str) -> None:
        store = DjangoKeyStore(alias)
        store.add(record())
        before = store.changes(None).revision
        with transaction.atomic(using=alias):
            within = store.changes(before)
            assert within == async_to_sync(AsyncDjangoKeyStore(alias).changes)(before)
        assert within.ids is None
        assert store.changes(within.revision).ids is None
        assert store.changes(before).ids == frozenset()

    def test_both_colours_know_whether_there_is_one(self, alias: str) -> None:
        store, other = DjangoKeyStore(alias), async_to_sync(AsyncDjangoKeyStore(alias).in_transaction)
        assert (store.in_transaction(), other()) == (False, False)
        with transaction.atomic(using=alias):
            assert (store.in_transaction(), other()) == (True, True)
            assert not elsewhere(store.in_transaction)
        assert (store.in_transaction(), other()) == (False, False)

    def test_djangos_test_case_works_in_one(self) -> None:
        class Application(TestCase):
            def test_1_a_key_is_good_until_it_is_revoked(self) -> None:
                keys = get_key_manager()
                issued = keys.issue("1", name="CI", scopes=["reports:read"])
                for path in ("/me", "/reports", "/me"):
                    assert Client().get(path, headers={"apikey": issued.text}).json()["user"] == "ada"
                keys.revoke(issued.key.id)
                answer = Client().get("/me", headers={"apikey": issued.text})
                assert answer.json()["code"] == "revoked_key"

            def test_2_nothing_is_left_of_the_test_before(self) -> None:
                assert get_key_manager().list("1") == []

            async def test_3_async_clients_work_too(self) -> None:
                text = (await conf.get_async_key_manager().issue("1")).text
                answer = await self.async_client.get("/me", headers={"apikey": text})
                assert answer.json()["user"] == "ada"

        result = unittest.TestResult()
        with override_settings(APIKEY_AUTH={"USER_MAX_AGE": 3600}):
            unittest.defaultTestLoader.loadTestsFromTestCase(Application).run(result)
        assert result.testsRun == 3
        assert [report for _, report in (*result.errors, *result.failures)] == []
