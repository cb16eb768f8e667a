"""Keys in Django's admin: who may do what, what is shown, and what never is."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib import admin
from django.db import connections
from django.test import Client, override_settings

from apikey_auth import APIKey, IssuedKey, KeyNotLive, MemoryKeyStore
from apikey_auth.django import get_key_manager
from apikey_auth.django.conf import database_of_keys
from apikey_auth.django.models import Key
from apikey_auth.testing.records import record

LIST = "/admin/apikey_auth/key/"
ADD = f"{LIST}add/"
SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": "django_store.site",
    "STATIC_URL": "/static/",
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "apikey_auth.django.middleware.APIKeyMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "string_if_invalid": "",
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ],
            },
        }
    ],
    "APIKEY_AUTH": {"PREFIX": "acme"},
}


@pytest.fixture(autouse=True)
def configured(clean_project: None) -> Iterator[None]:
    with override_settings(**SETTINGS):
        yield


@pytest.fixture
def user_with() -> Iterator[Callable[..., Any]]:
    """Make a member of staff who has some permissions on keys."""
    from django.contrib.auth.models import Permission, User

    made: list[Any] = []

    def make(*permissions: str, superuser: bool = False) -> Any:
        user = User.objects.create(username=f"staff{len(made)}", is_staff=True, is_superuser=superuser)
        user.user_permissions.set(
            Permission.objects.filter(codename__in=[f"{each}_key" for each in permissions])
        )
        made.append(user)
        return user

    yield make
    for user in made:
        user.delete()


@pytest.fixture
def client_with(user_with: Callable[..., Any]) -> Callable[..., Client]:
    """Sign in somebody with some permissions."""

    def sign_in(*permissions: str, superuser: bool = False) -> Client:
        client = Client()
        client.force_login(user_with(*permissions, superuser=superuser))
        return client

    return sign_in


@pytest.fixture
def boss(client_with: Callable[..., Client]) -> Client:
    return client_with(superuser=True)


def issue(owner: str = "1", **fields: Any) -> IssuedKey:
    return get_key_manager().issue(owner, **fields)


def stored(key_id: str) -> APIKey:
    return get_key_manager().get(key_id)


def text_of(answer: Any) -> str:
    return unescape(answer.content.decode())


def listed(client: Client, **query: str) -> list[str]:
    """List the ids of the keys on a page of the list."""
    answer = client.get(LIST, query)
    assert answer.status_code == 200
    return [key.pk for key in answer.context_data["cl"].result_list]


def change_page(key_id: str) -> str:
    return f"{LIST}{key_id}/change/"


def form_of(client: Client, key_id: str) -> dict[str, Any]:
    """Read the form of a page, as a browser would send it back."""
    form = client.get(change_page(key_id)).context_data["adminform"].form
    fields = {bound.name: bound.value() for bound in form}
    shown = {"expires_at": lambda value: value.strftime("%Y-%m-%d %H:%M:%S")}
    return {
        name: "on" if value is True else shown.get(name, str)(value)
        for name, value in fields.items()
        if value not in (None, False)
    }


NEW = {"owner": "1", "name": "CI", "all_scopes": "on", "any_address": "on", "days": "90"}


class TestIssuing:
    def test_the_key_is_shown_once_and_works(self, boss: Client) -> None:
        answer = boss.post(ADD, NEW)
        assert answer.status_code == 200
        (text,) = re.findall(r"<code>(acme_\w+)</code>", answer.content.decode())
        key = stored(get_key_manager().scheme.parse(text).id)
        assert get_key_manager().scheme.matches(key.digest, text)
        for page in (LIST, change_page(key.id), f"{LIST}{key.id}/history/", "/admin/"):
            assert text not in text_of(boss.get(page))

    def test_the_page_with_the_key_is_stored_nowhere(self, boss: Client) -> None:
        from django.contrib.admin.models import LogEntry

        answer = boss.post(ADD, NEW)
        (text,) = re.findall(r"<code>(acme_\w+)</code>", answer.content.decode())
        assert "no-store" in answer.headers["Cache-Control"]
        assert text not in str(answer.headers) + str(answer.cookies)
        assert text not in str(dict(boss.session))
        log = LogEntry.objects.latest("pk")
        assert (
            text not in f"{log} {log.object_repr} {log.object_id} {log.change_message} {log.get_admin_url()}"
        )

    def test_the_key_is_as_it_was_asked_for(self, boss: Client) -> None:
        boss.post(
            ADD,
            {
                "owner": "1",
                "name": "CI",
                "scopes": "reports:read\nreports:write",
                "addresses": "10.0.0.0/8",
                "days": "90",
            },
        )
        (key,) = get_key_manager().list("1")
        assert (key.name, key.scopes) == ("CI", ("reports:read", "reports:write"))
        assert key.addresses == ("10.0.0.0/8",)
        assert key.expires_at == key.created_at + timedelta(days=90)

    def test_it_remembers_who_made_it(self, client_with: Any) -> None:
        client = client_with("add")
        client.post(ADD, NEW)
        assert get_key_manager().list("1")[0].created_by == client.session["_auth_user_id"]

    def test_no_scopes_are_nothing_and_all_of_them_have_to_be_said(self, boss: Client) -> None:
        boss.post(ADD, {**NEW, "all_scopes": ""})
        boss.post(ADD, NEW)
        assert sorted(key.scopes is None for key in get_key_manager().list("1")) == [False, True]
        assert get_key_manager().find().items[0].addresses is None

    def test_never_has_to_be_said(self, boss: Client) -> None:
        boss.post(ADD, {**NEW, "days": "", "never": "on"})
        assert get_key_manager().list("1")[0].expires_at is None

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"owner": ""}, "required"),
            ({"owner": "99"}, "No user has the primary key '99'"),
            ({"owner": "01"}, "No user has the primary key '01'"),
            ({"owner": "ada"}, "No user has the primary key 'ada'"),
            ({"days": ""}, "Either a number of days, or never"),
            ({"never": "on"}, "Either a number of days, or never"),
            ({"days": "0"}, "greater than or equal to 1"),
            ({"days": "99999999"}, "less than or equal"),
            ({"scopes": "a"}, "Either all of them"),
            ({"all_scopes": "", "scopes": 'a"b'}, "is no scope"),
            ({"any_address": "", "addresses": "10.0.0.1/8"}, "host bits"),
            ({"any_address": "", "addresses": "nowhere"}, "does not appear to be"),
            ({"name": "x" * 256}, "at most 255"),
            ({"name": "a\0b"}, "Null characters"),
        ],
    )
    def test_what_will_not_do_is_told_and_makes_no_key(
        self, boss: Client, given: dict[str, str], said: str
    ) -> None:
        answer = boss.post(ADD, {**NEW, **given})
        assert said in text_of(answer)
        assert get_key_manager().find().items == ()

    def test_only_a_superuser_makes_keys_for_a_superuser(self, client_with: Any, user_with: Any) -> None:
        root = str(user_with(superuser=True).pk)
        answer = client_with("add", "change", "view").post(ADD, {**NEW, "owner": root})
        assert "Only a superuser" in text_of(answer)
        assert get_key_manager().find().items == ()
        assert "<code>acme_" in text_of(client_with(superuser=True).post(ADD, {**NEW, "owner": root}))


class TestList:
    def test_it_shows_which_keys_there_are_and_how_they_are(self, boss: Client) -> None:
        live, gone = issue(name="CI"), issue(name="old")
        get_key_manager().revoke(gone.key.id)
        shown = re.sub(r"<[^>]+>|\s+", " ", text_of(boss.get(LIST)))
        assert f"acme_{live.key.id}_…{live.key.last4}" in shown
        assert re.search(r"1 +CI +live", shown)
        assert re.search(r"1 +old +revoked", shown)

    @pytest.mark.parametrize(
        ("by", "finds"),
        [
            ("owner", True),
            ("username", True),
            ("name", True),
            ("id", True),
            ("last4", True),
            ("digest", False),
        ],
    )
    def test_keys_are_found_by_owner_username_name_id_and_last_four(
        self, boss: Client, by: str, finds: bool
    ) -> None:
        key = issue(name="Continuous integration").key
        issue("2")
        terms = {
            "owner": "1",
            "username": "ada",
            "name": "integration",
            "id": key.id,
            "last4": key.last4,
            "digest": key.digest,
        }
        assert listed(boss, q=terms[by]) == ([key.id] if finds else [])

    def test_an_owner_is_not_every_owner_that_begins_so(self, boss: Client) -> None:
        mine, others = issue("1").key.id, issue("11").key.id
        assert listed(boss, q="1") == [mine]
        assert listed(boss, q="11") == [others]

    def test_filters_tell_states_apart(self, boss: Client) -> None:
        live, grace, revoked, disabled, expired, late = (issue().key.id for _ in range(6))
        now, hour = datetime.now(UTC), timedelta(hours=1)
        get_key_manager().revoke(revoked)
        get_key_manager().edit(disabled, disabled=True)
        get_key_manager().edit(expired, expires_at=now - hour)
        get_key_manager().edit(live, expires_at=now + hour)
        successors = {
            get_key_manager().rotate(grace, grace=hour).key.id,
            get_key_manager().rotate(late).key.id,
        }
        assert {*listed(boss, state="live")} == {live, grace, *successors}
        assert listed(boss, state="revoked") == [revoked]
        assert listed(boss, state="disabled") == [disabled]
        assert {*listed(boss, state="expired")} == {expired, late}
        assert len(listed(boss)) == 8
        for answer in (boss.get(LIST), boss.get(LIST, {"state": "live"})):
            for key in answer.context_data["cl"].result_list:
                state = answer.context_data["cl"].model_admin.state(key)
                assert key.pk in listed(boss, state=state)

    def test_filters_tell_when_keys_were_used(self, boss: Client) -> None:
        fresh, old, never = (issue().key.id for _ in range(3))
        now = datetime.now(UTC)
        get_key_manager()._store.touch({fresh: now, old: now - timedelta(days=100)})
        assert listed(boss, used="month") == [fresh]
        assert listed(boss, used="old") == [old]
        assert listed(boss, used="never") == [never]

    @pytest.mark.parametrize("lookup", ["digest", "digest__startswith", "digest__gt", "digest__regex"])
    def test_no_query_tells_anything_of_a_digest(self, boss: Client, lookup: str) -> None:
        key = issue().key
        assert boss.get(LIST, {lookup: key.digest}).status_code == 400

    @pytest.mark.parametrize("backend", ["postgresql", "mariadb"])
    def test_searches_and_filters_do_on_every_database(
        self, boss: Client, request: pytest.FixtureRequest, backend: str
    ) -> None:
        alias = request.getfixturevalue(f"{backend}_alias")
        Key.objects.using(alias).all().delete()
        from apikey_auth.django.store import DjangoKeyStore

        with override_settings(APIKEY_AUTH={"STORE": DjangoKeyStore(alias)}):
            key = issue(name="Continuous integration").key
            issue("2", name="other")
            for term in ("1", "ada", "INTEGRATION", key.id, key.last4):
                assert listed(boss, q=term) == [key.id]
            assert len(listed(boss, state="live", used="never")) == 2
            assert listed(boss, q="1", state="expired") == []
        connections[alias].close()


class TestDigest:
    def test_it_is_on_no_page(self, boss: Client) -> None:
        issued = issue()
        secret = issued.key.digest.rpartition("$")[2]
        page = change_page(issued.key.id)
        answers = [
            boss.get(LIST),
            boss.get(page),
            boss.get(f"{LIST}{issued.key.id}/history/"),
            boss.get(ADD),
            boss.post(ADD, NEW),
            boss.post(page, form_of(boss, issued.key.id)),
            boss.post(page, {}),
            *(action(boss, name, issued.key.id, confirmed=on) for name in ACTIONS for on in (False, True)),
        ]
        for answer in answers:
            assert secret not in text_of(answer)
            assert "digest" not in text_of(answer)

    def test_it_cannot_be_changed_by_a_form(self, boss: Client) -> None:
        key = issue().key
        boss.post(
            change_page(key.id), {**form_of(boss, key.id), "digest": "sha256$$00", "owner": "2", "name": "x"}
        )
        assert stored(key.id).digest == key.digest
        assert (stored(key.id).owner, stored(key.id).name) == ("1", "x")


class TestEditing:
    def test_what_is_changed_is_changed(self, boss: Client) -> None:
        key = issue(name="old").key
        given = {
            **form_of(boss, key.id),
            "name": "new",
            "all_scopes": "",
            "scopes": "a b",
            "any_address": "",
            "addresses": "10.0.0.0/8",
            "expires_at": "2031-02-03 04:05:06",
            "disabled": "on",
        }
        assert boss.post(change_page(key.id), given).status_code == 302
        now = stored(key.id)
        assert (now.name, now.scopes, now.addresses) == ("new", ("a", "b"), ("10.0.0.0/8",))
        assert now.expires_at == datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
        assert (now.disabled, now.version) == (True, 2)

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"scopes": [], "addresses": []},
            {"scopes": ["a", "b"], "addresses": ["10.0.0.0/8"], "expires_in": None},
        ],
    )
    @pytest.mark.parametrize("use_tz", [True, False])
    def test_what_is_left_as_it_is_stays_as_it_is(
        self, boss: Client, fields: dict[str, Any], use_tz: bool
    ) -> None:
        key = issue(name="old", metadata={"a": 1}, **fields).key
        with override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Kathmandu"):
            assert boss.post(change_page(key.id), form_of(boss, key.id)).status_code == 302
            assert stored(key.id) == key
            boss.post(change_page(key.id), {**form_of(boss, key.id), "name": "new"})
        now = stored(key.id)
        assert (now.name, now.version) == ("new", 2)
        assert (now.scopes, now.addresses, now.expires_at) == (key.scopes, key.addresses, key.expires_at)
        assert now.metadata == {"a": 1}

    def test_limits_can_be_taken_away_again(self, boss: Client) -> None:
        key = issue(scopes=["a"], addresses=["10.0.0.0/8"]).key
        given = {
            **form_of(boss, key.id),
            "all_scopes": "on",
            "scopes": "",
            "any_address": "on",
            "addresses": "",
        }
        boss.post(change_page(key.id), {**given, "expires_at": ""})
        now = stored(key.id)
        assert (now.scopes, now.addresses, now.expires_at) == (None, None, None)

    def test_a_key_that_somebody_changed_meanwhile_stays_as_they_left_it(self, boss: Client) -> None:
        key = issue(name="old").key
        form = form_of(boss, key.id)
        get_key_manager().edit(key.id, disabled=True)
        answer = boss.post(change_page(key.id), {**form, "name": "mine"}, follow=True)
        assert "changed meanwhile by somebody else" in text_of(answer)
        assert (stored(key.id).name, stored(key.id).disabled) == ("old", True)

    def test_a_key_that_was_revoked_meanwhile_stays_revoked(self, boss: Client) -> None:
        key = issue().key
        form = form_of(boss, key.id)
        get_key_manager().revoke(key.id)
        boss.post(change_page(key.id), {**form, "name": "mine"})
        assert stored(key.id).revoked_at is not None

    def test_a_key_that_was_purged_meanwhile_stays_gone(self, boss: Client) -> None:
        key = issue().key
        form = form_of(boss, key.id)
        get_key_manager().revoke(key.id)
        get_key_manager().purge(datetime.now(UTC) + timedelta(seconds=1))
        assert boss.post(change_page(key.id), {**form, "name": "mine"}).status_code == 302
        assert get_key_manager().find().items == ()

    @pytest.mark.parametrize(
        "given", [{"all_scopes": "", "scopes": "é"}, {"expires_at": "soon"}, {"version": ""}]
    )
    def test_what_will_not_do_changes_nothing(self, boss: Client, given: dict[str, str]) -> None:
        key = issue().key
        answer = boss.post(change_page(key.id), {**form_of(boss, key.id), "name": "new", **given})
        assert answer.status_code == 200
        assert stored(key.id) == key

    def test_the_history_tells_who_changed_what(self, boss: Client) -> None:
        key = issue().key
        boss.post(change_page(key.id), {**form_of(boss, key.id), "name": "new"})
        assert "Changed name." in text_of(boss.get(f"{LIST}{key.id}/history/"))


ACTIONS = {"revoke_selected": {"reason": "leaked"}, "rotate_selected": {"hours": "1"}}


def action(client: Client, name: str, *ids: str, confirmed: bool = True, **given: str) -> Any:
    form = {"action": name, "_selected_action": ids, **ACTIONS[name], **given}
    return client.post(LIST, {**form, **({"confirmed": "yes"} if confirmed else {})})


class TestRevoking:
    def test_a_key_is_revoked_with_a_reason_after_it_was_confirmed(self, boss: Client) -> None:
        key, other = issue(name="CI").key, issue().key
        page = action(boss, "revoke_selected", key.id, confirmed=False)
        assert key.id in text_of(page)
        assert stored(key.id).revoked_at is None
        assert action(boss, "revoke_selected", key.id).status_code == 302
        assert stored(key.id).revoked_reason == "leaked"
        assert stored(other.id).revoked_at is None
        assert "Revoked. leaked" in text_of(boss.get(f"{LIST}{key.id}/history/"))

    def test_many_are_revoked_at_once(self, boss: Client) -> None:
        ids = [issue().key.id for _ in range(3)]
        action(boss, "revoke_selected", *ids, reason="")
        assert [stored(key_id).revoked_at is None for key_id in ids] == [False] * 3
        assert stored(ids[0]).revoked_reason is None

    def test_the_page_of_a_key_has_the_buttons(self, boss: Client) -> None:
        key = issue().key
        page = text_of(boss.get(change_page(key.id)))
        assert f'name="_selected_action" value="{key.id}"' in page
        assert re.findall(r'<button [^>]*name="action" value="(\w+)"', page) == [*ACTIONS]

    def test_there_is_no_way_to_delete(self, boss: Client) -> None:
        key = issue().key
        assert boss.post(f"{LIST}{key.id}/delete/", {"post": "yes"}).status_code == 403
        boss.post(LIST, {"action": "delete_selected", "_selected_action": [key.id], "post": "yes"})
        assert "deletelink" not in text_of(boss.get(change_page(key.id)))
        assert stored(key.id) == key


class TestRotating:
    def test_the_new_key_is_shown_once(self, boss: Client) -> None:
        old = issue(name="CI").key
        answer = action(boss, "rotate_selected", old.id)
        assert "no-store" in answer.headers["Cache-Control"]
        (text,) = re.findall(r"<code>(acme_\w+)</code>", answer.content.decode())
        new = stored(get_key_manager().scheme.parse(text).id)
        assert (new.rotated_from, new.name) == (old.id, "CI")
        assert stored(old.id).grace_until is not None
        assert text not in text_of(boss.get(f"{LIST}{old.id}/history/")) + str(dict(boss.session))

    def test_nothing_is_rotated_before_it_was_confirmed(self, boss: Client) -> None:
        old = issue().key
        action(boss, "rotate_selected", old.id, confirmed=False)
        action(boss, "rotate_selected", old.id, hours="-1")
        assert stored(old.id) == old

    def test_of_many_those_that_can_be_are_rotated(self, boss: Client) -> None:
        dead, live = issue().key.id, issue().key.id
        get_key_manager().revoke(dead)
        answer = text_of(action(boss, "rotate_selected", dead, live))
        assert len(re.findall(r"<code>acme_", answer)) == 1
        assert "cannot be rotated" in answer
        with pytest.raises(KeyNotLive):
            get_key_manager().rotate(dead)

    def test_only_a_superuser_rotates_a_superusers_key(self, client_with: Any, user_with: Any) -> None:
        key = issue(str(user_with(superuser=True).pk)).key
        answer = action(client_with("add", "change", "view"), "rotate_selected", key.id)
        assert "only a superuser" in text_of(answer)
        assert "<code>" not in text_of(answer)
        assert stored(key.id) == key


class TestPermissions:
    def test_without_any_there_is_nothing(self, client_with: Any) -> None:
        key = issue().key
        client = client_with()
        for page in (LIST, ADD, change_page(key.id), f"{LIST}{key.id}/history/"):
            assert client.get(page).status_code == 403
        assert client.post(ADD, NEW).status_code == 403
        assert len(get_key_manager().find().items) == 1

    def test_who_may_view_sees_everything_and_changes_nothing(self, client_with: Any) -> None:
        key = issue(name="CI", scopes=["a"]).key
        client = client_with("view")
        page = text_of(client.get(change_page(key.id)))
        assert "CI" in page
        assert "<button" not in page.partition("object-tools")[2].partition("</ul>")[0]
        assert 'name="name"' not in page
        assert client.post(change_page(key.id), {"name": "new", "version": "1"}).status_code == 403
        assert client.get(ADD).status_code == 403
        for name in ACTIONS:
            action(client, name, key.id)
        assert stored(key.id) == key

    def test_who_may_change_may_revoke_but_gets_no_key(self, client_with: Any) -> None:
        key, other = issue().key, issue().key
        client = client_with("view", "change")
        assert client.get(ADD).status_code == 403
        assert 'value="rotate_selected"' not in text_of(client.get(change_page(key.id)))
        action(client, "rotate_selected", key.id)
        assert stored(key.id) == key
        action(client, "revoke_selected", other.id)
        assert stored(other.id).revoked_at is not None

    def test_who_may_add_may_not_change(self, client_with: Any) -> None:
        key = issue().key
        client = client_with("add", "view")
        for name in ACTIONS:
            action(client, name, key.id)
        assert stored(key.id) == key
        assert "<code>acme_" in text_of(client.post(ADD, NEW))

    def test_visitors_are_asked_to_sign_in(self) -> None:
        assert Client().get(LIST).status_code == 302


class TestOwners:
    def test_the_page_of_a_key_leads_to_its_user(self, boss: Client) -> None:
        page = text_of(boss.get(change_page(issue().key.id)))
        assert '<a href="/admin/auth/user/1/change/">ada (1)</a>' in page

    def test_a_user_who_is_gone_is_told(self, boss: Client) -> None:
        assert "99, who is no user" in text_of(boss.get(change_page(issue("99").key.id)))

    def test_names_are_text(self, boss: Client) -> None:
        key = issue(name="<script>alert(1)</script>").key
        for page in (LIST, change_page(key.id), f"{LIST}{key.id}/history/"):
            assert b"<script>alert" not in boss.get(page).content
        assert b"<script>alert" not in action(boss, "revoke_selected", key.id, confirmed=False).content

    def test_an_id_may_be_any_text(self, boss: Client) -> None:
        get_key_manager()._store.add(record("a/b'\"é <k>", owner="1"))
        assert listed(boss) == ["a/b'\"é <k>"]
        address = (
            boss.get(LIST)
            .content.decode()
            .partition('<th class="field-masked"><a href="')[2]
            .partition('"')[0]
        )
        assert boss.get(unescape(address)).status_code == 200


def test_the_admin_is_for_keys_in_the_projects_database() -> None:
    assert database_of_keys() == "default"
    assert admin.site.is_registered(Key)
    for other in ({"STORE": MemoryKeyStore()}, {"STORE": None}, None):
        with override_settings(APIKEY_AUTH=other):
            assert database_of_keys() is None


# Who comes with a key, and whose keys are changed


@pytest.mark.parametrize("scopes", [None, [], ["apikeys:manage"]])
@pytest.mark.parametrize("page", ["list", "add", "change"])
def test_nobody_comes_to_the_keys_by_way_of_a_key(
    user_with: Callable[..., Any], page: str, scopes: list[str] | None
) -> None:
    issued = issue(str(user_with(superuser=True).pk), scopes=scopes)
    address = {"list": LIST, "add": ADD, "change": change_page(issued.key.id)}[page]
    client = Client(headers={"apikey": issued.text})
    for answer in (client.get(address), client.post(address, {"owner": "1", "never": "on"})):
        assert answer.status_code == 403
    assert stored(issued.key.id) == issued.key
    assert get_key_manager().find().items == (issued.key,)


def test_a_superusers_key_is_changed_by_superusers_alone(
    user_with: Callable[..., Any], client_with: Callable[..., Client], boss: Client
) -> None:
    issued = issue(str(user_with(superuser=True).pk), scopes=[])
    form = {"name": "wide", "all_scopes": "on", "any_address": "on", "version": "1"}
    assert client_with("view", "change").post(change_page(issued.key.id), form).status_code == 403
    assert stored(issued.key.id) == issued.key
    assert boss.post(change_page(issued.key.id), form).status_code == 302
    assert stored(issued.key.id).scopes is None


def test_the_list_and_its_search_do_where_users_have_numbers_for_names(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib.auth.models import User

    key = issue(name="build").key
    monkeypatch.setattr(User, "USERNAME_FIELD", "id")
    assert listed(boss) == [key.id]
    assert listed(boss, q="build") == [key.id]
    assert listed(boss, q="nothing") == []


def test_a_superusers_key_is_revoked_by_superusers_alone(
    user_with: Callable[..., Any], client_with: Callable[..., Client], boss: Client
) -> None:
    theirs, other = issue(str(user_with(superuser=True).pk)).key, issue("1").key
    form = {"action": "revoke_selected", "_selected_action": [theirs.id, other.id], "confirmed": "Revoke"}
    answer = client_with("view", "change").post(LIST, form, follow=True)
    assert "Only a superuser revokes" in text_of(answer)
    assert stored(theirs.id) == theirs
    assert stored(other.id).revoked_at is not None
    boss.post(LIST, form)
    assert stored(theirs.id).revoked_at is not None


def test_a_time_with_an_offset_is_refused_and_not_misread(boss: Client) -> None:
    issued = issue()
    form = {"name": "", "all_scopes": "on", "any_address": "on", "version": "1"}
    for told in ("2030-01-01T00:00:00+05:00", "2030-01-01 00:00:00Z", "2030-01-01T00:00:00-0800"):
        answer = boss.post(change_page(issued.key.id), {**form, "expires_at": told})
        assert "without an offset" in text_of(answer)
    assert stored(issued.key.id) == issued.key
    boss.post(change_page(issued.key.id), {**form, "expires_at": "2030-01-01 00:00:00"})
    assert stored(issued.key.id).expires_at == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("told", ["2030-03-10 02:30:00", "2030-11-03 01:30:00"])
def test_a_time_in_utc_may_be_one_that_the_projects_clocks_skip_or_repeat(boss: Client, told: str) -> None:
    issued = issue()
    form = {"name": "", "all_scopes": "on", "any_address": "on", "version": "1", "expires_at": told}
    with override_settings(USE_TZ=True, TIME_ZONE="America/New_York"):
        assert boss.post(change_page(issued.key.id), form).status_code == 302
        boss.post(change_page(issued.key.id), {**form_of(boss, issued.key.id), "name": "new"})
    assert stored(issued.key.id).expires_at == datetime.fromisoformat(told).replace(tzinfo=UTC)
    assert stored(issued.key.id).name == "new"


def test_a_rotated_keys_text_is_in_no_repr_of_the_page() -> None:
    from apikey_auth.django.admin import Outcome

    assert "acme_secret" not in repr(Outcome(Key(), "acme_secret"))
