"""``manage.py apikey``: what is printed where, what is refused, and with which exit code."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from apikey_auth import MemoryKeyStore
from apikey_auth.django import get_key_manager

SECRET = "the digest nobody may read"


@pytest.fixture(params=["database", "memory"], autouse=True)
def configured(request: pytest.FixtureRequest) -> Iterator[None]:
    """The command is the same whatever the store."""
    request.getfixturevalue("clean_project")
    setting = {} if request.param == "database" else {"STORE": MemoryKeyStore()}
    with override_settings(APIKEY_AUTH={**setting, "PREFIX": "acme"}):
        yield


def run(*arguments: str) -> tuple[str, str]:
    """Run the command; answer what it printed to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    call_command("apikey", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def failure(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    return caught.value


def issue(**fields: Any) -> str:
    return get_key_manager().issue("1", **fields).key.id


class TestIssue:
    def test_the_key_is_all_that_is_printed_to_standard_output(self) -> None:
        out, err = run("issue", "1")
        assert out.startswith("acme_")
        assert out.count("\n") == 1
        assert get_key_manager().scheme.parse(out.strip()).id in err
        assert out.strip() not in err

    def test_the_key_is_as_it_was_asked_for(self) -> None:
        options = ["--name", "CI", "--scope", "a", "--scope", "b", "--address", "10.0.0.0/8"]
        run("issue", "1", *options, "--expires-in", "90d")
        (key,) = get_key_manager().list("1")
        assert (key.name, key.scopes, key.addresses) == ("CI", ("a", "b"), ("10.0.0.0/8",))
        assert key.expires_at == key.created_at + timedelta(days=90)

    def test_without_options_it_may_do_all_for_a_year(self) -> None:
        run("issue", "1")
        (key,) = get_key_manager().list("1")
        assert (key.scopes, key.addresses) == (None, None)
        assert key.expires_at == key.created_at + timedelta(days=365)

    def test_it_may_be_given_no_scope_at_all(self) -> None:
        run("issue", "1", "--no-scope")
        assert get_key_manager().list("1")[0].scopes == ()

    def test_never_has_to_be_said(self) -> None:
        _, err = run("issue", "1", "--expires-in", "never")
        assert get_key_manager().list("1")[0].expires_at is None
        assert "for ever" in err

    def test_the_owner_may_be_named(self) -> None:
        run("issue", "--username", "ada")
        assert len(get_key_manager().list("1")) == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "whose key"),
            (["99"], "no user has the primary key '99'"),
            (["01"], "no user has the primary key '01'"),
            (["ada"], "no user has the primary key 'ada'"),
            (["--username", "nobody"], "no user has the name 'nobody'"),
            (["1", "--username", "ada"], "not allowed with"),
            (["1", "--expires-in", "90"], "no length of time"),
            (["1", "--expires-in", "0d"], "positive"),
            (["1", "--expires-in", "99999999999d"], "too long"),
            (["1", "--expires-in", "9999999d"], "9999"),
            (["1", "--scope", "two words"], "no scope"),
            (["1", "--address", "10.0.0.1/8"], "host bits"),
            (["1", "--name", "x" * 256], "255"),
        ],
    )
    def test_what_will_not_do_is_told_and_makes_no_key(self, arguments: list[str], said: str) -> None:
        assert said in str(failure("issue", *arguments))
        assert get_key_manager().find().items == ()


class TestList:
    def test_live_keys_are_listed_and_no_digest(self) -> None:
        live, dead = issue(name="CI"), issue(name="old")
        get_key_manager().revoke(dead)
        out, _ = run("list")
        header, line = out.splitlines()
        assert header.split() == ["id", "owner", "name", "state", "created_at", "expires_at", "last_used_at"]
        assert line.split()[:4] == [live, "1", "CI", "live"]
        assert get_key_manager().get(live).digest not in out

    def test_all_are_listed_with_what_became_of_them(self) -> None:
        revoked, disabled = issue(), issue()
        get_key_manager().revoke(revoked)
        get_key_manager().edit(disabled, disabled=True)
        expired = issue()
        get_key_manager().edit(expired, expires_at=datetime.now(UTC))
        listed = {key["id"]: key["state"] for key in json.loads(run("list", "--all", "--format", "json")[0])}
        assert listed == {revoked: "revoked", disabled: "disabled", expired: "expired"}

    def test_json_has_every_field_but_the_digest(self) -> None:
        key_id = issue(scopes=["a"], metadata={"team": "Zürich"})
        out, _ = run("list", "--format", "json")
        (shown,) = json.loads(out)
        key = get_key_manager().get(key_id)
        assert shown.keys() == {*type(key).__slots__, "state"} - {"digest"}
        assert (shown["scopes"], shown["metadata"]) == (["a"], {"team": "Zürich"})
        assert shown["created_at"] == key.created_at.isoformat()
        assert key.digest not in out

    def test_of_nobody_there_is_an_empty_list(self) -> None:
        assert json.loads(run("list", "--format", "json")[0]) == []
        assert len(run("list")[0].splitlines()) == 1

    def test_a_listing_may_be_of_one_owner(self) -> None:
        mine = issue()
        get_key_manager().issue("2")
        for who in (["--owner", "1"], ["--username", "ada"]):
            assert [key["id"] for key in json.loads(run("list", "--format", "json", *who)[0])] == [mine]

    def test_more_keys_than_a_page_has_are_all_listed(self) -> None:
        store = MemoryKeyStore()
        with override_settings(APIKEY_AUTH={"STORE": store}):
            ids = {issue() for _ in range(1001)}
            assert {key["id"] for key in json.loads(run("list", "--format", "json")[0])} == ids

    def test_a_name_gives_the_terminal_no_commands(self) -> None:
        issue(name="\x1b[2Jinnocent\nkey")
        out, _ = run("list")
        assert "\x1b" not in out
        assert len(out.splitlines()) == 2


class TestRevoke:
    def test_one_key(self) -> None:
        gone, stays = issue(), issue()
        _, err = run("revoke", gone, "--reason", "leaked")
        assert get_key_manager().get(gone).revoked_reason == "leaked"
        assert get_key_manager().get(stays).revoked_at is None
        assert "1 revoked" in err

    @pytest.mark.parametrize("who", [["--owner", "1"], ["--username", "ada"]])
    def test_all_keys_of_an_owner(self, who: list[str]) -> None:
        gone, stays = issue(), get_key_manager().issue("2").key.id
        assert "1 revoked" in run("revoke", *who)[1]
        assert get_key_manager().get(gone).revoked_at is not None
        assert get_key_manager().get(stays).revoked_at is None

    def test_everybodys_keys_only_if_that_is_said_twice(self) -> None:
        key_id = issue()
        assert "--yes" in str(failure("revoke", "--everybody"))
        assert get_key_manager().get(key_id).revoked_at is None
        assert "1 revoked" in run("revoke", "--everybody", "--yes")[1]
        assert get_key_manager().get(key_id).revoked_at is not None

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--yes"],
            ["k1", "--owner", "1"],
            ["--owner", "1", "--everybody", "--yes"],
            ["--owner", "1", "--username", "ada"],
            ["--username", "nobody"],
        ],
    )
    def test_whose_keys_has_to_be_clear(self, arguments: list[str]) -> None:
        key_id = issue()
        failure("revoke", *arguments)
        assert get_key_manager().get(key_id).revoked_at is None

    def test_an_empty_owner_is_not_everybody(self) -> None:
        key_id = issue()
        assert "owner" in str(failure("revoke", "--owner", ""))
        assert get_key_manager().get(key_id).revoked_at is None

    def test_an_unknown_id_is_told(self) -> None:
        error = failure("revoke", "unknown")
        assert "no API key has the id 'unknown'" in str(error)
        assert error.returncode == 1

    def test_a_keys_text_in_place_of_its_id_is_not_repeated(self) -> None:
        text = get_key_manager().issue("1").text
        error = failure("revoke", text)
        assert "is it the key's text?" in str(error)
        assert text not in str(error)


class TestRotate:
    def test_the_new_key_is_all_that_is_printed_to_standard_output(self) -> None:
        old = issue(name="CI", scopes=["a"])
        out, _ = run("rotate", old)
        new = get_key_manager().get(get_key_manager().scheme.parse(out.strip()).id)
        assert (new.rotated_from, new.name, new.scopes) == (old, "CI", ("a",))

    def test_the_old_key_has_its_grace(self) -> None:
        old = issue()
        before = datetime.now(UTC)
        run("rotate", old, "--grace", "1h")
        until = get_key_manager().get(old).grace_until
        assert until is not None
        assert before + timedelta(hours=1) <= until <= datetime.now(UTC) + timedelta(hours=1)

    def test_a_dead_key_is_not_rotated(self) -> None:
        old = issue()
        get_key_manager().revoke(old)
        assert "cannot be rotated" in str(failure("rotate", old))


class TestPurge:
    def test_what_died_before_is_deleted(self) -> None:
        gone, stays = issue(), issue()
        get_key_manager().revoke(gone)
        _, err = run("purge", "--before", "0s")
        assert "1 deleted" in err
        assert [key.id for key in get_key_manager().find().items] == [stays]

    def test_what_is_yet_to_die_stays(self) -> None:
        key_id = issue()
        assert "still to come" in str(failure("purge", "--before", "2999-01-01"))
        assert get_key_manager().get(key_id).id == key_id

    def test_what_died_since_stays(self) -> None:
        get_key_manager().revoke(issue())
        for before in ("30d", "2020-01-01", "2020-01-01T00:00:00+02:00"):
            assert "0 deleted" in run("purge", "--before", before)[1]

    @pytest.mark.parametrize("arguments", [[], ["--before", "soon"], ["--before", "9999999d"]])
    def test_a_time_has_to_be_said(self, arguments: list[str]) -> None:
        failure("purge", *arguments)


def test_nothing_asked_for_is_an_error() -> None:
    assert "action" in str(failure())


def test_a_store_out_of_reach_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    issue()
    with override_settings(APIKEY_AUTH={}):
        connections.close_all()
        monkeypatch.setitem(connections.settings["default"], "NAME", "/nowhere/keys.db")
        for arguments in (["list"], ["issue", "1"], ["revoke", "k1"]):
            error = failure(*arguments)
            assert "unable to open database file" in str(error)
            assert error.returncode == 3


def test_a_setting_that_will_not_do_is_told() -> None:
    with override_settings(APIKEY_AUTH={"STORE": None}):
        assert "leave it out" in str(failure("list"))


def test_from_a_shell_the_key_can_be_piped_and_errors_have_exit_codes(tmp_path: Path) -> None:
    manage = tmp_path / "manage.py"
    manage.write_text(
        "import sys\n"
        "from django.conf import settings\n"
        "settings.configure(\n"
        f"    DATABASES={{'default': {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {str(tmp_path / 'd')!r}}}}},\n"
        "    INSTALLED_APPS=['django.contrib.auth', 'django.contrib.contenttypes', 'apikey_auth.django'],\n"
        "    MIDDLEWARE=['apikey_auth.django.middleware.APIKeyMiddleware'],\n"
        ")\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(sys.argv)\n"
    )

    def manage_py(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-W", "error", str(manage), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    missing = manage_py("apikey", "list")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "manage.py migrate" in missing.stderr
    assert "Traceback" not in missing.stderr

    assert manage_py("migrate").returncode == 0
    user = "from django.contrib.auth.models import User; User.objects.create(username='ada')"
    assert manage_py("shell", "-c", user).returncode == 0
    issued = manage_py("apikey", "issue", "--username", "ada")
    assert issued.returncode == 0
    assert issued.stdout.startswith("apikey_")
    assert len(issued.stdout.splitlines()) == 1
    assert (
        manage_py("apikey", "revoke", "unknown").returncode,
        manage_py("apikey", "revoke").returncode,
    ) == (1, 2)
