"""sensenet's dialect: one table over every mount, and each answer byte for byte that of plain WSGI."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from applications import World
from calling import Answer
from sites import ADA, BOB, CARL, CHIEF, MOUNTS, SAME_SITE, Site

from apikey_auth import Header, KeyScheme, StoreUnavailable
from apikey_auth.formats import opaque_tokens
from apikey_auth.management import NOT_A_USER, OwnKeys, Sensenet, below

CONTENT_TYPE = "application/json;odata=verbose;charset=utf-8"
KINDS = {
    "RequestError": (400, "ODataException"),
    "Unauthorized": (401, "SenseNetSecurityException"),
    "Forbidden": (403, "SenseNetSecurityException"),
    "ResourceNotFound": (404, "ContentNotFoundException"),
    "UnknownAction": (404, "ContentNotFoundException"),
    "IllegalInvoke": (405, "ODataException"),
    "StoreUnavailable": (503, "DataException"),
    "NegativeTopParameter": (400, "ODataException"),
    "InvalidTopParameter": (400, "ODataException"),
    "NegativeSkipParameter": (400, "ODataException"),
    "InvalidSkipParameter": (400, "ODataException"),
}
RIGHTS = OwnKeys(is_admin=lambda caller: caller.owner == CHIEF)
USER = "/odata.svc/Root/IMS/Public/('101')"
ROOT = "/odata.svc/('Root')"


@pytest.fixture
def site(build: Callable[..., Site]) -> Site:
    dialect = Sensenet(rights=RIGHTS)
    return build("/odata.svc", dialect, render=below("/odata.svc", dialect))


@pytest.fixture
def keys(world: World, chance: Any) -> dict[str, Any]:
    """Give each kind of caller a key, the visitor none."""
    return {
        "owner": world.keys.issue(ADA, name="ada's"),
        "another": world.keys.issue(BOB, name="bob's"),
        "administrator": world.keys.issue(CHIEF),
        "reader": world.keys.issue(ADA, scopes=["reports:read"]),
        "manager": world.keys.issue(ADA, scopes=["apikeys:manage"]),
    }


@pytest.fixture
def ask(site: Site, keys: dict[str, Any]) -> Callable[..., Answer]:
    def ask(who: str, method: str, target: str, body: Any = b"", **more: Any) -> Answer:
        return site.ask(method, target, body, key=None if who == "visitor" else keys[who].text, **more)

    return ask


def is_error(answer: Answer, code: str) -> bool:
    """Say whether an answer is sensenet's error of this code, whole."""
    status, kind = KINDS[code]
    assert (answer.status, answer.header("content-type")) == (status, CONTENT_TYPE)
    assert "no-store" in answer.header("cache-control")
    error = json.loads(answer.body)["error"]
    message = error.pop("message")
    assert message.keys() == {"lang", "value"}
    assert message["lang"] == "en-us"
    assert message["value"]
    assert error == {"code": code, "exceptiontype": kind, "innererror": None}
    return True


def said(answer: Answer) -> Any:
    assert (answer.status, answer.header("content-type")) == (200, CONTENT_TYPE)
    assert "no-store" in answer.header("cache-control")
    return json.loads(answer.body)


def is_nothing(answer: Answer, status: int = 204) -> bool:
    assert (answer.status, answer.body) == (status, b"")
    assert "no-store" in answer.header("cache-control")
    return True


def living(world: World, owner: str | None = None) -> set[str]:
    return {key.id for key in world.keys.find(owner=owner, live_at=world.now, limit=1000).items}


class TestGetCurrentUser:
    @pytest.mark.parametrize(
        ("who", "owner"),
        [("owner", ADA), ("another", BOB), ("administrator", CHIEF), ("reader", ADA), ("manager", ADA)],
    )
    def test_it_tells_who_the_key_stands_for(self, ask: Any, who: str, owner: str) -> None:
        user = {"Id": owner, "Name": owner, "Path": f"/Root/IMS/Public/{owner}", "Type": "User"}
        assert said(ask(who, "GET", f"{ROOT}/GetCurrentUser")) == {"d": user}

    def test_without_a_key_it_is_the_visitor(self, ask: Any) -> None:
        answer = said(ask("visitor", "GET", f"{ROOT}/GetCurrentUser"))
        assert (answer["d"]["Name"], answer["d"]["Type"]) == ("Visitor", "User")

    def test_the_application_says_how_users_are_shown(self, build: Any, keys: Any) -> None:
        site = build("/odata.svc", Sensenet(describe=lambda owner: {"Id": 7, "Name": owner}))
        answer = site.ask("GET", f"{ROOT}/GetCurrentUser", key=keys["owner"].text)
        assert said(answer) == {"d": {"Id": 7, "Name": ADA}}

    def test_its_entity_may_be_anything_that_is_there(self, ask: Any) -> None:
        assert said(ask("owner", "GET", f"{USER}/GetCurrentUser"))["d"]["Id"] == ADA

    def test_it_answers_a_post_too(self, ask: Any) -> None:
        assert said(ask("owner", "POST", f"{ROOT}/GetCurrentUser", ""))["d"]["Id"] == ADA


class TestGetApiKeys:
    def test_the_owner_sees_their_keys_masked(self, ask: Any, world: World, keys: Any) -> None:
        issued = keys["owner"]
        shown = said(ask("owner", "GET", f"{USER}/GetApiKeys"))["apiKeys"]
        assert {key["Id"] for key in shown} == living(world, ADA)
        (key,) = [key for key in shown if key["Id"] == issued.key.id]
        assert key == {
            "Value": f"acme_{issued.key.id}_...{issued.key.last4}",
            "CreationDate": "2026-06-01T12:00:00.000000Z",
            "ExpirationDate": "2027-06-01T12:00:00.000000Z",
            "Id": issued.key.id,
            "Name": "ada's",
            "LastUsedDate": None,
            "Scopes": None,
        }

    def test_a_key_of_another_system_shows_its_end_alone(self, world: World) -> None:
        world.scheme = KeyScheme(prefix="acme", formats=[opaque_tokens("of another system")])
        world.keys.ensure(ADA, name="old", text="a-long-enough-token")
        world.keys.ensure(ADA, name="older", text="abcd")
        with MOUNTS["wsgi"](world, "/odata.svc", Sensenet(), {}) as site:
            answer = said(site.ask("GET", f"{USER}/GetApiKeys", key="abcd"))
            values = {key["Name"]: key["Value"] for key in answer["apiKeys"]}
            assert values == {"old": "...oken", "older": "..."}
            site.ask("POST", f"{ROOT}/DeleteApiKey", "{'apiKey': 'abcd'}", key="a-long-enough-token")
            assert [key.name for key in world.keys.list(ADA) if key.revoked_at is None] == ["old"]

    def test_no_listing_holds_a_secret(self, ask: Any, keys: Any) -> None:
        body = ask("administrator", "GET", f"{USER}/GetApiKeys").body.decode()
        for issued in keys.values():
            assert issued.text not in body
            assert issued.text[-36:] not in body
            assert issued.key.digest.rpartition("$")[2] not in body

    def test_dates_are_utc_and_a_key_for_ever_ends_with_the_year_9999(self, ask: Any, world: World) -> None:
        issued = world.keys.issue(ADA, name="for ever", expires_in=None, scopes=["a", "b"])
        world.store.touch({issued.key.id: world.now + timedelta(microseconds=1)})
        shown = said(ask("owner", "GET", f"{USER}/GetApiKeys"))["apiKeys"]
        (key,) = [key for key in shown if key["Name"] == "for ever"]
        assert key["ExpirationDate"].startswith("9999-12-31T23:59:59")
        assert key["ExpirationDate"].endswith("Z")
        assert key["LastUsedDate"] == "2026-06-01T12:00:00.000001Z"
        assert key["Scopes"] == ["a", "b"]

    @pytest.mark.parametrize("who", ["administrator", "manager"])
    def test_who_may_save_the_user_sees_them(self, ask: Any, world: World, who: str) -> None:
        shown = said(ask(who, "GET", f"{USER}/GetApiKeys"))["apiKeys"]
        assert {key["Id"] for key in shown} == living(world, ADA)

    @pytest.mark.parametrize("who", ["another", "visitor", "reader"])
    def test_without_the_right_the_list_is_empty(self, ask: Any, who: str) -> None:
        assert said(ask(who, "GET", f"{USER}/GetApiKeys")) == {"apiKeys": []}

    @pytest.mark.parametrize("who", ["another", "visitor", "reader"])
    def test_without_the_right_there_is_nothing_to_count(self, ask: Any, who: str) -> None:
        answer = said(ask(who, "GET", f"{USER}/GetApiKeys?$inlinecount=allpages"))
        assert answer == {"apiKeys": [], "__count": 0}

    def test_it_answers_a_post_too(self, ask: Any, world: World) -> None:
        answer = said(ask("owner", "POST", f"{USER}/GetApiKeys", "{}"))
        assert {key["Id"] for key in answer["apiKeys"]} == living(world, ADA)

    def test_the_oldest_comes_first(self, ask: Any, world: World, keys: Any) -> None:
        world.now += timedelta(hours=1)
        last = world.keys.issue(ADA)
        shown = said(ask("owner", "GET", f"{USER}/GetApiKeys"))["apiKeys"]
        assert shown[-1]["Id"] == last.key.id
        assert [key["Id"] for key in shown[:-1]] == sorted(key["Id"] for key in shown[:-1])

    def test_dead_keys_are_gone_from_it_and_disabled_ones_are_not(self, ask: Any, world: World) -> None:
        made = {name: world.keys.issue(ADA, name=name) for name in ("revoked", "disabled", "rotated")}
        world.keys.issue(ADA, name="expired", expires_in=timedelta(seconds=1))
        world.keys.revoke(made["revoked"].key.id)
        world.keys.edit(made["disabled"].key.id, disabled=True)
        world.keys.rotate(made["rotated"].key.id)
        world.now += timedelta(seconds=1)
        names = [key["Name"] for key in said(ask("owner", "GET", f"{USER}/GetApiKeys"))["apiKeys"]]
        assert sorted(filter(None, names)) == ["ada's", "disabled", "rotated"]

    def test_a_key_that_is_disabled_and_has_expired_is_gone_from_it(self, ask: Any, world: World) -> None:
        both = world.keys.issue(ADA, name="both", expires_in=timedelta(seconds=1))
        world.keys.edit(both.key.id, disabled=True)
        world.now += timedelta(seconds=1)
        assert both.key.id not in ask("owner", "GET", f"{USER}/GetApiKeys").body.decode()

    def test_content_that_is_nobody_has_no_keys(self, ask: Any) -> None:
        assert is_error(ask("administrator", "GET", f"{ROOT}/GetApiKeys"), "RequestError")


class TestCreateApiKey:
    @pytest.mark.parametrize("who", ["owner", "administrator", "manager"])
    def test_the_answer_alone_holds_the_whole_key(self, ask: Any, world: World, who: str) -> None:
        before = living(world)
        answer = said(ask(who, "POST", f"{USER}/CreateApiKey"))
        (made,) = living(world) - before
        key = world.keys.get(made)
        assert world.authenticator().authenticate(answer["Value"]).key == key
        assert (key.owner, answer["Id"]) == (ADA, made)
        assert answer["CreationDate"] == "2026-06-01T12:00:00.000000Z"
        assert answer["ExpirationDate"] == "2027-06-01T12:00:00.000000Z"

    def test_the_new_key_works_at_once(self, ask: Any, site: Site) -> None:
        text = said(ask("owner", "POST", f"{USER}/CreateApiKey"))["Value"]
        answer = site.ask("GET", f"{ROOT}/GetCurrentUser", key=text)
        assert said(answer)["d"]["Id"] == ADA

    @pytest.mark.parametrize("who", ["another", "visitor", "reader"])
    def test_without_the_right_it_is_forbidden(self, ask: Any, world: World, who: str) -> None:
        before = living(world)
        assert is_error(ask(who, "POST", f"{USER}/CreateApiKey"), "Forbidden")
        assert living(world) == before

    def test_the_body_says_nothing_about_whose_it_is(self, ask: Any, world: World) -> None:
        body = {"owner": CHIEF, "name": "x", "scopes": ["a"], "created_by": "y", "userId": CHIEF}
        made = said(ask("owner", "POST", f"{USER}/CreateApiKey", body))["Id"]
        key = world.keys.get(made)
        assert (key.owner, key.scopes, key.name) == (ADA, None, "")

    def test_it_remembers_the_key_that_made_it(self, ask: Any, world: World, keys: Any) -> None:
        made = said(ask("owner", "POST", f"{USER}/CreateApiKey"))["Id"]
        assert world.keys.get(made).created_by == keys["owner"].key.id

    def test_the_root_is_no_user(self, ask: Any, world: World) -> None:
        before = living(world)
        assert is_error(ask("administrator", "POST", f"{ROOT}/CreateApiKey"), "RequestError")
        assert living(world) == before

    @pytest.mark.parametrize("name", ["a" * 256, "a" * 65536, "%00", "x%00y"])
    def test_an_owner_that_cannot_be_kept_is_a_bad_request(self, ask: Any, name: str) -> None:
        assert is_error(ask("administrator", "POST", f"/odata.svc/('{name}')/CreateApiKey"), "RequestError")


class TestDeleteApiKey:
    @pytest.fixture
    def victim(self, world: World, keys: Any) -> Any:
        return world.keys.issue(ADA, name="victim")

    @pytest.mark.parametrize("entity", [USER, ROOT, "/odata.svc/Root/IMS/Public/('102')"])
    @pytest.mark.parametrize("who", ["owner", "administrator", "manager"])
    @pytest.mark.parametrize("by", ["text", "id"])
    def test_a_key_is_deleted_by_its_text_or_id(
        self, ask: Any, world: World, victim: Any, entity: str, who: str, by: str
    ) -> None:
        before, named = living(world), {"text": victim.text, "id": victim.key.id}[by]
        assert is_nothing(ask(who, "POST", f"{entity}/DeleteApiKey", {"apiKey": named}))
        assert before - living(world) == {victim.key.id}
        assert who == "owner" or living(world) == before - {victim.key.id}

    def test_a_deleted_key_is_dead_at_once(self, ask: Any, site: Site, victim: Any) -> None:
        assert site.ask("GET", f"{ROOT}/GetCurrentUser", key=victim.text).status == 200
        ask("owner", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": victim.text})
        assert is_error(site.ask("GET", f"{ROOT}/GetCurrentUser", key=victim.text), "Unauthorized")

    def test_a_key_may_delete_itself(self, ask: Any, world: World, keys: Any) -> None:
        assert is_nothing(ask("owner", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": keys["owner"].text}))
        assert keys["owner"].key.id not in living(world)

    @pytest.mark.parametrize("who", ["owner", "another", "visitor", "administrator"])
    @pytest.mark.parametrize("by", ["text", "id"])
    def test_a_key_that_is_gone_already_is_no_mistake(
        self, ask: Any, world: World, victim: Any, who: str, by: str
    ) -> None:
        revoked = world.keys.revoke(victim.key.id, reason="before")
        named = {"text": victim.text, "id": victim.key.id}[by]
        assert is_nothing(ask(who, "POST", f"{ROOT}/DeleteApiKey", {"apiKey": named}))
        assert world.keys.get(victim.key.id) == revoked

    @pytest.mark.parametrize("who", ["another", "visitor"])
    def test_anothers_whole_key_is_forbidden(self, ask: Any, world: World, victim: Any, who: str) -> None:
        before = living(world)
        assert is_error(ask(who, "POST", f"{ROOT}/DeleteApiKey", {"apiKey": victim.text}), "Forbidden")
        assert living(world) == before

    @pytest.mark.parametrize("who", ["another", "visitor"])
    def test_anothers_id_is_as_good_as_unknown(self, ask: Any, world: World, victim: Any, who: str) -> None:
        before = living(world)
        assert is_nothing(ask(who, "POST", f"{ROOT}/DeleteApiKey", {"apiKey": victim.key.id}))
        assert living(world) == before

    def test_a_key_without_the_scope_cannot_tell_anothers_id_from_an_unknown_one(
        self, ask: Any, world: World, keys: Any
    ) -> None:
        anothers = keys["another"].key.id
        unknown = ask("reader", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": "Aaaaaaaaaaaa"})
        known = ask("reader", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": anothers})
        assert (known.status, known.body) == (unknown.status, unknown.body)
        assert anothers in living(world)

    @pytest.mark.parametrize("by", ["text", "id"])
    def test_a_key_without_the_scope_deletes_nothing(
        self, ask: Any, world: World, victim: Any, by: str
    ) -> None:
        named = {"text": victim.text, "id": victim.key.id}[by]
        assert is_error(ask("reader", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": named}), "Forbidden")
        assert victim.key.id in living(world)

    def test_an_unknown_key_is_no_mistake(self, ask: Any, world: World) -> None:
        for named in ["unknown", "Aaaaaaaaaaaa", "acme_x_y", "\0", "a" * 5000, "é", "a,b"]:
            before = living(world)
            assert is_nothing(ask("owner", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": named}))
            assert living(world) == before

    def test_a_whole_key_that_was_never_stored_is_no_mistake(self, ask: Any, world: World) -> None:
        before = living(world)
        for who in ("owner", "another", "visitor", "administrator"):
            assert is_nothing(ask(who, "POST", f"{ROOT}/DeleteApiKey", {"apiKey": world.scheme.mint().text}))
        assert living(world) == before

    def test_the_right_id_with_a_wrong_secret_deletes_nothing(
        self, ask: Any, world: World, victim: Any
    ) -> None:
        forged = world.scheme.mint(victim.key.id).text
        assert is_nothing(ask("owner", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": forged}))
        assert victim.key.id in living(world)

    def test_deleting_leaves_what_the_key_made(self, ask: Any, world: World, victim: Any, site: Site) -> None:
        made = said(site.ask("POST", f"{USER}/CreateApiKey", key=victim.text))["Id"]
        ask("owner", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": victim.text})
        assert made in living(world)

    def test_no_key_in_the_body_is_a_bad_request(self, ask: Any) -> None:
        for body in [
            "",
            "{}",
            "[]",
            "[{}]",
            "null",
            "models=[]",
            '{"apiKey":""}',
            "apiKey=",
            '{"key":"abcd"}',
        ]:
            assert is_error(ask("owner", "POST", f"{ROOT}/DeleteApiKey", body), "RequestError")

    def test_a_key_that_is_no_text_is_a_bad_request(self, ask: Any) -> None:
        for value in ["1", "null", "true", '["abcd"]', '{"a":"abcd"}', "1.5"]:
            body = f'{{"apiKey": {value}}}'
            assert is_error(ask("owner", "POST", f"{ROOT}/DeleteApiKey", body), "RequestError")

    def test_the_key_to_delete_is_not_read_from_the_url(self, ask: Any, world: World, victim: Any) -> None:
        before = living(world)
        target = f"{ROOT}/DeleteApiKey?key={victim.text}"
        assert is_error(ask("owner", "POST", target), "RequestError")
        assert living(world) == before

    def test_the_form_field_is_no_credential(self, site: Site, world: World, victim: Any) -> None:
        answer = site.ask("POST", f"{USER}/CreateApiKey", f"apiKey={victim.text}")
        assert is_error(answer, "Forbidden")


class TestDeleteApiKeys:
    def test_an_administrator_deletes_a_users(self, ask: Any, world: World, keys: Any) -> None:
        assert is_nothing(ask("administrator", "POST", f"{USER}/DeleteApiKeys"))
        assert living(world) == {keys["another"].key.id, keys["administrator"].key.id}

    def test_an_administrator_deletes_all_their_own_included(self, ask: Any, world: World) -> None:
        assert is_nothing(ask("administrator", "POST", f"{ROOT}/DeleteApiKeys"))
        assert living(world) == set()
        assert is_error(ask("administrator", "POST", f"{ROOT}/DeleteApiKeys"), "Unauthorized")

    @pytest.mark.parametrize("who", ["owner", "another", "visitor", "reader", "manager"])
    @pytest.mark.parametrize("entity", [USER, ROOT])
    def test_all_others_are_forbidden(self, ask: Any, world: World, who: str, entity: str) -> None:
        before = living(world)
        assert is_error(ask(who, "POST", f"{entity}/DeleteApiKeys"), "Forbidden")
        assert living(world) == before

    def test_an_administrators_key_needs_the_scope(self, site: Site, world: World, keys: Any) -> None:
        limited = world.keys.issue(CHIEF, scopes=["everything:else"])
        before = living(world)
        assert is_error(site.ask("POST", f"{ROOT}/DeleteApiKeys", key=limited.text), "Forbidden")
        assert living(world) == before

    @pytest.mark.parametrize("entity", ["/odata.svc/Root('IMS')", "/odata.svc/content(3)"])
    def test_content_that_is_no_user_is_a_bad_request(
        self, build: Any, world: World, keys: Any, entity: str
    ) -> None:
        site = build("/odata.svc", Sensenet(rights=RIGHTS, owner_for=lambda entity: NOT_A_USER))
        before = living(world)
        answer = site.ask("POST", f"{entity}/DeleteApiKeys", key=keys["administrator"].text)
        assert is_error(answer, "RequestError")
        assert living(world) == before

    @pytest.mark.parametrize(
        "entity", ["/Root('IMS')", "/('ROOT2')", "/Root('Root')", "/content(1)", "/('')"]
    )
    def test_what_only_resembles_the_root_is_never_everybody(
        self, ask: Any, world: World, keys: Any, entity: str
    ) -> None:
        before = living(world)
        ask("administrator", "POST", f"/odata.svc{entity}/DeleteApiKeys")
        assert living(world) == before

    @pytest.mark.parametrize("entity", ["('root')", "('ROOT')", "/('Root')"])
    def test_the_roots_case_does_not_matter(self, ask: Any, world: World, entity: str) -> None:
        assert is_nothing(ask("administrator", "POST", f"/odata.svc/{entity.lstrip('/')}/DeleteApiKeys"))
        assert living(world) == set()


ADDRESSES = {
    "/odata.svc/Root/IMS/Public/('101')/GetApiKeys": ADA,
    "/odata.svc/Root/IMS/Public('101')/GetApiKeys": ADA,
    "/odata.svc/('101')/GetApiKeys": ADA,
    "/odata.svc/Root('101')/GetApiKeys": ADA,
    "/odata.svc/content(42)/GetApiKeys": "42",
    "/odata.svc/Content(42)/getApiKeys": "42",
    "/odata.svc/CONTENT(42)/GetApiKeys/": "42",
    "/ODATA.SVC/Root/IMS/Public/('101')/GetApiKeys": ADA,
    "/OData.svc/root/ims/public/('101')/getapikeys": ADA,
    "/odata.svc/Root/IMS/Public/('101')/GETAPIKEYS": ADA,
    "/odata.svc/Root/IMS/Public/('101')/GetApiKeys/": ADA,
    "/odata.svc/Root/IMS/Public/(%27101%27)/GetApiKeys": ADA,
    "/odata.svc/Root/IMS/Public/%28%27101%27%29/GetApiKeys": ADA,
    "/%6Fdata.svc/Root/IMS/Public/('101')/Get%41piKeys": ADA,
    "/odata.svc/Root%2FIMS%2FPublic/('101')/GetApiKeys": ADA,
    "/odata.svc/Root/IMS/Public/('Some%20User')/GetApiKeys": "Some User",
    "/odata.svc/Root/IMS/Public/('O%27%27Brien')/GetApiKeys": "O'Brien",
    "/odata.svc/Root/IMS/Public/('O''Brien')/GetApiKeys": "O'Brien",
    "/odata.svc/Root/IMS/Public/('''')/GetApiKeys": "'",
    "/odata.svc/Root/IMS/Public/('%C3%9Cn%C3%AF')/GetApiKeys": "Ünï",
    "/odata.svc/Root/IMS/Public/('a(b)c')/GetApiKeys": "a(b)c",
    "/odata.svc/Some%20Folder/('101')/GetApiKeys": ADA,
}

NOWHERE = [
    "",
    "/",
    "/Root",
    "/GetApiKeys",
    "/Root/GetApiKeys",
    "/('101')",
    "/('101')/",
    "/('101')/GetApiKeys/x",
    "/('101')GetApiKeys",
    "/101/GetApiKeys",
    "/(101)/GetApiKeys",
    "/('101)/GetApiKeys",
    "/(101')/GetApiKeys",
    "/('101'/GetApiKeys",
    "/'101')/GetApiKeys",
    "/('O'Brien')/GetApiKeys",
    "/('')/GetApiKeys",
    "/()/GetApiKeys",
    '/("101")/GetApiKeys',
    "/('1')('101')/GetApiKeys",
    "/('1')/('101')/GetApiKeys",
    "/('..')/GetApiKeys",
    "/('.')/GetApiKeys",
    "/Root/../('101')/GetApiKeys",
    "/../('101')/GetApiKeys",
    "/Root/%2E%2E/('101')/GetApiKeys",
    "/Root/./('101')/GetApiKeys",
    "/('IMS%2F101')/GetApiKeys",
    "/('..%2F101')/GetApiKeys",
    "/('../101')/GetApiKeys",
    "/content()/GetApiKeys",
    "/content(x)/GetApiKeys",
    "/content(-1)/GetApiKeys",
    "/content(42/GetApiKeys",
    "/content(4%202)/GetApiKeys",
    "/content(" + "9" * 65536 + ")/GetApiKeys",
    "/content(%D9%A4%D9%A2)/GetApiKeys",
    "/Root/content(42)/GetApiKeys",
    "/('" + "'" * 65535 + "')/GetApiKeys",
    "/" + "('" * 32768,
    "/" + "a" * 65536,
]


class TestAddresses:
    @pytest.fixture
    def named(self, ask: Any, world: World) -> Callable[[str], str | None]:
        """Say whose keys an address lists, by their names."""
        for owner in {*ADDRESSES.values(), "a\nb"}:
            world.keys.issue(owner, name=f"of {owner}")

        def named(target: str) -> str | None:
            names = [key["Name"] for key in said(ask("administrator", "GET", target))["apiKeys"]]
            (name,) = [name for name in names if name.startswith("of ")]
            return str(name.removeprefix("of "))

        return named

    def test_every_form_of_an_entity_names_its_owner(self, named: Any) -> None:
        for target, owner in ADDRESSES.items():
            assert named(target) == owner, target

    def test_a_line_break_in_a_name_is_a_character_like_others(self, named: Any) -> None:
        assert named("/odata.svc/('a%0Ab')/GetApiKeys") == "a\nb"

    def test_doubled_slashes_are_one(self, named: Any) -> None:
        assert named("/odata.svc/Root//IMS///('101')/GetApiKeys") == ADA
        assert named("/odata.svc//('101')/GetApiKeys") == ADA

    def test_any_other_address_is_404_for_get_with_nothing_and_for_post_with_an_error(
        self, ask: Any, world: World
    ) -> None:
        before = living(world)
        for path in NOWHERE:
            target = f"/odata.svc{path}"
            assert is_nothing(ask("administrator", "GET", target), 404), target
            target = target.replace("GetApiKeys", "CreateApiKey")
            assert is_error(ask("administrator", "POST", target), "ResourceNotFound"), target
        assert living(world) == before

    @pytest.mark.parametrize("name", ["a" * 65536, "a" * 256, "%00", "%FF", "%ED%A0%80"])
    def test_a_name_that_no_user_can_have_has_no_keys(self, ask: Any, name: str) -> None:
        answer = ask("administrator", "GET", f"/odata.svc/('{name}')/GetApiKeys")
        assert answer.status in (200, 400, 404)
        assert b'"Value": "acme' not in answer.body

    @pytest.mark.parametrize("name", ["a" * 65536, "%00", "%FF"])
    def test_a_name_that_no_user_can_have_deletes_nothing(self, ask: Any, world: World, name: str) -> None:
        before = living(world)
        assert ask("administrator", "POST", f"/odata.svc/('{name}')/DeleteApiKeys").status < 500
        assert living(world) == before

    def test_what_lies_beside_the_mount_point_is_the_applications(self, ask: Any) -> None:
        for target in [
            "/odata.svcx/('101')/GetApiKeys",
            "/odata.svc('101')/GetApiKeys",
            "/odata/('101')/GetApiKeys",
            "/x/odata.svc/('101')/GetApiKeys",
            "/odataXsvc/('101')/GetApiKeys",
            "/odata.svc%0A",
            "/odata.svc%00/('101')/GetApiKeys",
            "/('101')/GetApiKeys",
            "/",
        ]:
            assert ask("owner", "GET", target).body == b"elsewhere"
            assert ask("owner", "POST", target).body == b"elsewhere"

    @pytest.mark.parametrize("at", ["/api/keys.svc", "/a+b(c)", "/Ünï"])
    def test_the_mount_point_may_be_another(self, build: Any, keys: Any, at: str) -> None:
        site = build(at, Sensenet(rights=RIGHTS))
        answer = site.ask("GET", f"{quote(at)}/('Root')/GetCurrentUser", key=keys["owner"].text)
        assert said(answer)["d"]["Id"] == ADA
        elsewhere = site.ask("GET", f"{ROOT}/GetCurrentUser", key=keys["owner"].text)
        assert elsewhere.body == b"elsewhere"

    def test_the_application_may_be_mounted_itself(self, ask: Any) -> None:
        assert said(ask("owner", "GET", f"{ROOT}/GetCurrentUser", mount="/app"))["d"]["Id"] == ADA
        assert ask("owner", "GET", f"/app{ROOT}/GetCurrentUser", mount="/app").body == b"elsewhere"

    def test_the_application_says_who_a_path_or_an_id_is(self, build: Any, world: World, keys: Any) -> None:
        owners = {"/Root/IMS/Public/Ada Lovelace": ADA, 42: ADA, "/Root": NOT_A_USER}
        site = build("/odata.svc", Sensenet(owner_for=owners.get))
        for entity in (
            "/Root/IMS/Public/('Ada%20Lovelace')",
            "/Root/IMS/Public('Ada%20Lovelace')",
            "/content(42)",
        ):
            answer = site.ask("GET", f"/odata.svc{entity}/GetApiKeys", key=keys["owner"].text)
            assert {key["Id"] for key in said(answer)["apiKeys"]} == living(world, ADA)

    @pytest.mark.parametrize("who", ["owner", "visitor", "administrator"])
    def test_an_unknown_user_is_404(self, build: Any, keys: Any, who: str) -> None:
        site = build("/odata.svc", Sensenet(rights=RIGHTS, owner_for=lambda entity: None))
        text = keys[who].text if who in keys else None
        for action in ("GetApiKeys", "GetCurrentUser"):
            assert is_nothing(site.ask("GET", f"{USER}/{action}", key=text), 404)
        for action in ("GetApiKeys", "CreateApiKey", "DeleteApiKey", "DeleteApiKeys"):
            answer = site.ask("POST", f"{USER}/{action}", {"apiKey": "x"}, key=text)
            assert is_error(answer, "ResourceNotFound")


class TestMethods:
    def test_an_unknown_action_is_404(self, ask: Any) -> None:
        for action in ["Nonsense", "CreateApiKeys", "GetApiKey", "a" * 65536, "%00", "%C3%A9"]:
            for method in ("GET", "POST", "PUT", "DELETE"):
                answer = ask("owner", method, f"{USER}/{action}")
                assert is_error(answer, "UnknownAction")
                assert len(answer.body) < 1000

    @pytest.mark.parametrize("action", ["CreateApiKey", "DeleteApiKey", "DeleteApiKeys"])
    @pytest.mark.parametrize("who", ["administrator", "visitor"])
    def test_an_action_is_a_post_and_nothing_else(
        self, ask: Any, world: World, action: str, who: str
    ) -> None:
        before = living(world)
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = ask(who, method, f"{USER}/{action}")
            assert is_error(answer, "IllegalInvoke")
            assert answer.header("allow") == "POST"
        assert living(world) == before

    @pytest.mark.parametrize("action", ["GetApiKeys", "GetCurrentUser"])
    def test_a_function_is_a_get_or_a_post(self, ask: Any, action: str) -> None:
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = ask("owner", method, f"{USER}/{action}")
            assert is_error(answer, "IllegalInvoke")
            assert answer.header("allow") == "GET, POST"

    @pytest.mark.parametrize("method", ["PROPFIND", "TRACE", "QUERY"])
    def test_an_uncommon_method_is_405_too(self, ask: Any, method: str) -> None:
        answer = ask("owner", method, f"{USER}/CreateApiKey")
        assert is_error(answer, "IllegalInvoke")
        assert answer.header("allow") == "POST"

    @pytest.mark.parametrize("action", ["GetApiKeys", "CreateApiKey"])
    def test_head_is_405_and_empty(self, ask: Any, action: str) -> None:
        answer = ask("owner", "HEAD", f"{USER}/{action}")
        assert is_nothing(answer, 405)
        assert "POST" in answer.header("allow")

    def test_a_method_in_a_header_or_a_form_is_none(self, ask: Any, world: World) -> None:
        before = living(world)
        headers = (("X-HTTP-Method-Override", "POST"), ("X-HTTP-Method", "POST"))
        assert (
            ask("administrator", "GET", f"{USER}/DeleteApiKeys?_method=POST", headers=headers).status == 405
        )
        assert living(world) == before


class TestOptions:
    @pytest.fixture
    def five(self, world: World, keys: Any) -> list[str]:
        made = [world.keys.issue(BOB).key.id for _ in range(4)]
        return sorted([*made, keys["another"].key.id])

    def test_top_skip_and_inlinecount_act_on_the_list(self, ask: Any, five: list[str]) -> None:
        for query, start, stop, counts in [
            ("", 0, 5, False),
            ("$top=2", 0, 2, False),
            ("$skip=2", 2, 5, False),
            ("$skip=1&$top=3", 1, 4, False),
            ("%24top=2", 0, 2, False),
            ("$TOP=2&$Skip=1", 1, 3, False),
            ("top=2", 0, 2, False),
            ("$top=0", 0, 0, False),
            ("$top=0&$inlinecount=allpages", 0, 0, True),
            ("$skip=5", 5, 5, False),
            ("$skip=99&$inlinecount=AllPages", 5, 5, True),
            ("$top=10000", 0, 5, False),
            ("$top=999999999999999999", 0, 5, False),
            ("$inlinecount=none", 0, 5, False),
            ("$select=Value&metadata=no&$inlinecount=allpages&$top=10000", 0, 5, True),
        ]:
            answer = said(ask("another", "GET", f"/odata.svc/('102')/GetApiKeys?{query}"))
            assert [key["Id"] for key in answer["apiKeys"]] == five[start:stop]
            assert answer.get("__count") == (5 if counts else None)

    @pytest.mark.parametrize("option", ["Top", "Skip"])
    def test_a_count_that_is_none_is_a_bad_request(self, ask: Any, option: str) -> None:
        values = [
            ("-1", "Negative"),
            ("-999999999999999999", "Negative"),
            ("x", "Invalid"),
            ("", "Invalid"),
            ("1.5", "Invalid"),
            ("1e3", "Invalid"),
            ("%2B1", "Invalid"),
            ("+1", "Invalid"),
            ("%D9%A1", "Invalid"),
            ("0x10", "Invalid"),
            ("1_0", "Invalid"),
            ("9" * 5000, "Invalid"),
            ("1%00", "Invalid"),
            ("1%0A", "Invalid"),
            ("1;2", "Invalid"),
        ]
        for value, fault in values:
            answer = ask("owner", "GET", f"{USER}/GetApiKeys?${option.lower()}={value}")
            assert is_error(answer, f"{fault}{option}Parameter"), value

    @pytest.mark.parametrize("action", ["GetApiKeys", "CreateApiKey", "GetCurrentUser"])
    def test_every_other_option_is_accepted(self, ask: Any, action: str) -> None:
        for query in [
            "$select=Value,CreationDate&$expand=x&$filter=isOf('User')&$orderby=Id desc&$format=json",
            "$format=verbosejson&metadata=minimal&version=V1.0",
            "metadata=no&$inlinecount=none",
            "$format=table&metadata=full&nonsense=1&&=&a&%FF=%FF",
            "$expand=" + "x" * 8192,
            "$select=%00",
        ]:
            method = "POST" if action == "CreateApiKey" else "GET"
            query = query.replace(" ", "%20")
            assert ask("owner", method, f"{USER}/{action}?{query}").status == 200

    def test_the_javascript_clients_query_is_accepted_everywhere(self, ask: Any, world: World) -> None:
        query = "$select=Id,Name&metadata=no&$inlinecount=allpages&$top=10000"
        text = said(ask("owner", "POST", f"{USER}/CreateApiKey?{query}"))["Value"]
        assert is_nothing(ask("owner", "POST", f"{ROOT}/DeleteApiKey?{query}", {"apiKey": text}))
        assert is_nothing(ask("administrator", "POST", f"{USER}/DeleteApiKeys?{query}"))

    def test_a_key_in_the_url_is_no_option(self, site: Site, keys: Any) -> None:
        answer = site.ask("GET", f"{ROOT}/GetCurrentUser?$format=json&apikey={keys['owner'].text}")
        assert said(answer)["d"]["Id"] == ADA
        assert answer.header("referrer-policy") == "no-referrer"


def multipart(name: str, value: str, boundary: str = "xyz") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return f"{head}{value}\r\n--{boundary}--\r\n".encode()


BODIES: dict[str, tuple[Callable[[str], bytes | str], str | None]] = {
    "json": (lambda key: f'{{"apiKey":"{key}"}}', "application/json"),
    "json as text": (lambda key: f'{{"apiKey":"{key}"}}', "text/plain;charset=UTF-8"),
    "json of no type": (lambda key: f' {{"apiKey" : "{key}"}} \r\n', None),
    "json as a form": (lambda key: f'{{"apiKey":"{key}"}}', "application/x-www-form-urlencoded"),
    "single quotes": (lambda key: f"{{'apiKey': '{key}'}}", "application/json"),
    "mixed quotes": (lambda key: f"{{'apiKey': \"{key}\"}}", "application/json"),
    "list": (lambda key: f'[{{"apiKey":"{key}"}}]', "application/json"),
    "list in single quotes": (lambda key: f"[{{'apiKey':'{key}'}}]", "application/json"),
    "models": (lambda key: f'models=[{{"apiKey":"{key}"}}]', "application/x-www-form-urlencoded"),
    "models of the .NET client": (lambda key: f'models=[{{"apiKey":"{key}"}}]', "application/json"),
    "models encoded": (lambda key: "models=" + quote(f'[{{"apiKey":"{key}"}}]'), None),
    "models of one": (lambda key: f'models={{"apiKey":"{key}"}}', None),
    "form": (lambda key: f"apiKey={key}", "application/x-www-form-urlencoded"),
    "form and more": (lambda key: f"a=1&apiKey={key}&b=", "application/x-www-form-urlencoded"),
    "multipart": (lambda key: multipart("apiKey", key), "multipart/form-data; boundary=xyz"),
    "multipart, quoted": (lambda key: multipart("APIKEY", key), 'Multipart/Form-Data; boundary="xyz"'),
    "lower case": (lambda key: f'{{"apikey":"{key}"}}', None),
    "upper case": (lambda key: f"APIKEY={key}", None),
    "byte order mark": (lambda key: f'\ufeff{{"apiKey":"{key}"}}', "application/json"),
    "more fields": (lambda key: f'{{"x":[1,{{"y":null}}],"apiKey":"{key}"}}', "application/json"),
    "just small enough": (lambda key: f'{{"apiKey":"{key}"}}'.ljust(65536), None),
}

BAD_BODIES: dict[str, tuple[Callable[[str], bytes | str], str | None]] = {
    "too big": (lambda key: f'{{"apiKey":"{key}"}}'.ljust(65537), None),
    "65 KiB": (lambda key: f'{{"apiKey":"{key}"}}'.ljust(65 * 1024), None),
    "megabytes": (lambda key: f'{{"apiKey":"{key}"}}'.ljust(3_000_000), None),
    "unclosed": (lambda key: f'{{"apiKey":"{key}"', None),
    "unclosed single": (lambda key: f"{{'apiKey': '{key}", None),
    "two objects": (lambda key: f'{{"apiKey":"{key}"}}{{}}', None),
    "list of two": (lambda key: f'[{{"apiKey":"{key}"}},{{"apiKey":"{key}"}}]', None),
    "models of two": (lambda key: f'models=[{{"apiKey":"{key}"}},{{}}]', None),
    "models of nothing": (lambda key: "models=", None),
    "list in a list": (lambda key: f'[[{{"apiKey":"{key}"}}]]', None),
    "a string": (lambda key: f'"{key}"', None),
    "a bare key": (lambda key: key, None),
    "list of a string": (lambda key: f'["{key}"]', None),
    "name twice": (lambda key: f'{{"apiKey":"x","apiKey":"{key}"}}', None),
    "name twice in two cases": (lambda key: f'{{"apiKey":"{key}","APIKEY":"x"}}', None),
    "field twice": (lambda key: f"apiKey=x&apiKey={key}", None),
    "field twice in two cases": (lambda key: f"apiKey={key}&apikey=x", None),
    "value of a list": (lambda key: f'{{"apiKey":["{key}"]}}', None),
    "value of a number": (lambda key: '{"apiKey":1}', None),
    "nul": (lambda key: f'\0{{"apiKey":"{key}"}}', None),
    "nul inside": (lambda key: f'{{"apiKey":"{key}",\0}}', None),
    "deep lists": (lambda key: '{"apiKey":' + "[" * 10000 + "]" * 10000 + "}", None),
    "deep objects": (lambda key: '{"a":' * 10000 + f'"{key}"' + "}" * 10000, None),
    "unclosed depth": (lambda key: "[" * 60000, None),
    "utf-16": (lambda key: f'{{"apiKey":"{key}"}}'.encode("utf-16"), "application/json;charset=utf-16"),
    "latin-1": (lambda key: f'{{"apiKey":"{key}","é":1}}'.encode("latin-1"), "text/plain;charset=latin-1"),
    "no utf-8 in a form": (lambda key: f"apiKey={key}&x=%FF", None),
    "not a number": (lambda key: f'{{"apiKey":"{key}","x":NaN}}', None),
    "xml": (lambda key: f"<apiKey>{key}</apiKey>", "text/xml"),
    "other boundary": (lambda key: multipart("apiKey", key), "multipart/form-data; boundary=abc"),
    "no boundary": (lambda key: multipart("apiKey", key), "multipart/form-data"),
    "no end": (lambda key: multipart("apiKey", key)[:-8], "multipart/form-data; boundary=xyz"),
    "parts twice": (
        lambda key: multipart("apiKey", key)[:-8] + b"\r\n" + multipart("apiKey", key),
        "multipart/form-data; boundary=xyz",
    ),
    "part without a name": (
        lambda key: multipart("apiKey", key).replace(b"; name", b"; nam"),
        "multipart/form-data; boundary=xyz",
    ),
    "gzip": (lambda key: b"\x1f\x8b\x08\0\0\0\0\0", "application/json"),
}


def typed(content_type: str | None) -> tuple[tuple[str, str], ...]:
    return () if content_type is None else (("Content-Type", content_type),)


class TestBodies:
    @pytest.mark.parametrize("form", BODIES)
    def test_every_accepted_form_deletes_the_key(self, ask: Any, world: World, keys: Any, form: str) -> None:
        make, content_type = BODIES[form]
        victim = world.keys.issue(ADA)
        headers = typed(content_type)
        answer = ask("owner", "POST", f"{ROOT}/DeleteApiKey", make(victim.text), headers=headers)
        assert is_nothing(answer)
        assert victim.key.id not in living(world)

    @pytest.mark.parametrize("form", BAD_BODIES)
    def test_any_other_body_is_a_bad_request_and_changes_nothing(
        self, ask: Any, world: World, keys: Any, form: str
    ) -> None:
        make, content_type = BAD_BODIES[form]
        before = living(world)
        body, headers = make(keys["owner"].text), typed(content_type)
        for action in ("DeleteApiKey", "DeleteApiKeys", "CreateApiKey", "GetApiKeys"):
            if action == "DeleteApiKey" or not form.startswith("value of"):
                answer = ask("administrator", "POST", f"{USER}/{action}", body, headers=headers)
                assert is_error(answer, "RequestError")
        assert living(world) == before

    @pytest.mark.parametrize("content_type", [None, "application/json", "multipart/form-data; boundary=x"])
    def test_where_no_parameter_is_needed_the_body_may_be_empty(
        self, ask: Any, content_type: str | None
    ) -> None:
        blank, empty = ["", " \r\n\t "], ["{}", "[]", "[{}]", "null", "models=[]"]
        for body in blank if content_type and "multipart" in content_type else blank + empty:
            said(ask("owner", "POST", f"{USER}/CreateApiKey", body, headers=typed(content_type)))

    def test_the_body_of_a_get_is_not_read(self, ask: Any) -> None:
        said(ask("owner", "GET", f"{USER}/GetApiKeys", "{" * 70000))

    def test_an_error_does_not_repeat_a_key(self, ask: Any, keys: Any) -> None:
        text = keys["owner"].text
        for make, content_type in BAD_BODIES.values():
            answer = ask("owner", "POST", f"{ROOT}/DeleteApiKey", make(text), headers=typed(content_type))
            assert text.encode() not in answer.body


class Failing:
    """A store that is down for some calls."""

    def __init__(self, store: Any, *down: str) -> None:
        self.store, self.down = store, down

    def __getattr__(self, name: str) -> Any:
        if name in self.down:

            def fail(*args: Any, **kwargs: Any) -> Any:
                raise StoreUnavailable

            return fail
        return getattr(self.store, name)


class TestRefusals:
    @pytest.mark.parametrize("text", ["nonsense", "acme_nonsense", "x" * 600])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_a_bad_key_is_401_with_the_challenge_in_sensenets_words(
        self, site: Site, text: str, method: str
    ) -> None:
        answer = site.ask(method, f"{ROOT}/GetCurrentUser", key=text)
        assert is_error(answer, "Unauthorized")
        assert answer.header("www-authenticate") == 'ApiKey realm="api", in="header", name="apikey"'

    def test_a_dead_key_is_401(self, ask: Any, world: World, keys: Any) -> None:
        world.keys.revoke(keys["owner"].key.id)
        assert is_error(ask("owner", "GET", f"{USER}/GetApiKeys"), "Unauthorized")

    def test_the_key_of_a_user_who_is_not_active_is_401(self, site: Site, world: World, chance: Any) -> None:
        text = world.keys.issue(CARL).text
        assert is_error(site.ask("POST", "/odata.svc/('104')/CreateApiKey", key=text), "Unauthorized")

    def test_two_keys_are_400(self, ask: Any, keys: Any) -> None:
        answer = ask("owner", "GET", f"{ROOT}/GetCurrentUser?apikey={keys['another'].text}")
        assert is_error(answer, "RequestError")

    def test_other_paths_are_refused_as_ever(self, site: Site) -> None:
        for target in ("/elsewhere", "/odata.svcx/x", "/x/odata.svc/"):
            answer = site.ask("GET", target, key="nonsense")
            assert (answer.status, answer.header("content-type")) == (401, "application/problem+json")

    def test_the_case_of_the_mount_point_does_not_change_the_words(self, site: Site) -> None:
        assert is_error(site.ask("GET", "/OData.SVC/('Root')/GetCurrentUser", key="bad"), "Unauthorized")

    def test_where_keys_are_required_the_visitor_is_401(self, build: Any) -> None:
        dialect = Sensenet()
        site = build("/odata.svc", dialect, render=below("/odata.svc", dialect), required=True)
        assert is_error(site.ask("GET", f"{ROOT}/GetCurrentUser"), "Unauthorized")

    def test_a_bad_key_may_be_let_in_as_the_visitor_who_may_nothing(self, build: Any, world: World) -> None:
        site = build("/odata.svc", Sensenet(rights=RIGHTS), on_invalid="anonymous")
        answer = site.ask("GET", f"{ROOT}/GetCurrentUser", key="bad")
        assert said(answer)["d"]["Name"] == "Visitor"
        assert is_error(site.ask("POST", f"{USER}/CreateApiKey", key="bad"), "Forbidden")
        assert living(world) == set()

    def test_other_carriers_are_in_the_challenge(self, build: Any) -> None:
        dialect = Sensenet()
        options = {"carriers": [Header("X-Key")], "render": below("/odata.svc", dialect)}
        answer = build("/odata.svc", dialect, **options).ask("GET", f"{ROOT}/x", headers=(("X-Key", "bad"),))
        assert is_error(answer, "Unauthorized")
        assert answer.header("www-authenticate") == 'ApiKey realm="api", in="header", name="X-Key"'

    @pytest.mark.parametrize(
        ("down", "method", "target", "body"),
        [
            (("get",), "GET", f"{USER}/GetApiKeys", ""),
            (("find",), "GET", f"{USER}/GetApiKeys", ""),
            (("add",), "POST", f"{USER}/CreateApiKey", ""),
            (("swap",), "POST", f"{ROOT}/DeleteApiKey", "{'apiKey': 'ID'}"),
            (("revoke_all",), "POST", f"{USER}/DeleteApiKeys", ""),
            (("revoke_all",), "POST", f"{ROOT}/DeleteApiKeys", ""),
        ],
    )
    def test_a_store_that_is_down_is_503_and_never_a_bad_key(
        self, build: Any, world: World, keys: Any, down: tuple[str, ...], method: str, target: str, body: str
    ) -> None:
        before, store = living(world), world.store
        world.store = Failing(store, *down)
        dialect = Sensenet(rights=RIGHTS)
        site = build("/odata.svc", dialect, render=below("/odata.svc", dialect))
        text = keys["administrator"].text
        answer = site.ask(method, target, body.replace("ID", keys["owner"].key.id), key=text)
        assert is_error(answer, "StoreUnavailable")
        assert answer.header("retry-after") in ("1", "2")
        world.store = store
        assert living(world) == before

    def test_an_answer_without_a_body_names_no_content_type(self, ask: Any) -> None:
        deleted = ask("owner", "POST", f"{ROOT}/DeleteApiKey", {"apiKey": "unknown"})
        missing = ask("owner", "GET", "/odata.svc/nowhere")
        assert (deleted.header("content-type"), missing.header("content-type")) == (None, None)

    def test_users_of_the_application_have_the_same_actions(self, site: Site, world: World) -> None:
        made = said(site.ask("POST", f"{USER}/CreateApiKey", user=ADA, headers=SAME_SITE))["Id"]
        assert world.keys.get(made).created_by == ADA
        assert is_error(site.ask("POST", f"{USER}/CreateApiKey", user=BOB, headers=SAME_SITE), "Forbidden")
        assert is_nothing(site.ask("POST", f"{ROOT}/DeleteApiKeys", user=CHIEF, headers=SAME_SITE))
        assert living(world) == set()
