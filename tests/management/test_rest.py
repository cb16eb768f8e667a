"""The REST dialect: one table over every mount, and each answer byte for byte that of plain WSGI."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from applications import World
from calling import Answer
from sites import ADA, BOB, CARL, CHIEF, MOUNTS, SAME_SITE, Site

from apikey_auth import KeyScheme, StoreUnavailable
from apikey_auth.management import REST, OwnKeys

RIGHTS = OwnKeys(is_admin=lambda caller: caller.owner == CHIEF)
CHALLENGE = 'ApiKey realm="api", in="header", name="apikey"'
STATUS = {
    "bad_request": 400,
    "missing_key": 401,
    "invalid_key": 401,
    "insufficient_scope": 403,
    "cross_origin": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "store_unavailable": 503,
}
SHOWN = {
    "id",
    "owner",
    "name",
    "prefix",
    "last4",
    "scopes",
    "addresses",
    "created_at",
    "created_by",
    "expires_at",
    "disabled",
    "revoked_at",
    "revoked_reason",
    "rotated_to",
    "rotated_from",
    "grace_until",
    "last_used_at",
    "metadata",
}


@pytest.fixture
def site(build: Callable[..., Site]) -> Site:
    return build("/keys", REST(rights=RIGHTS))


@pytest.fixture
def keys(world: World, chance: Any) -> dict[str, Any]:
    """Give each kind of caller a key, the visitor none."""
    return {
        "owner": world.keys.issue(ADA, name="ada's"),
        "another": world.keys.issue(BOB, name="bob's"),
        "administrator": world.keys.issue(CHIEF),
        "reader": world.keys.issue(ADA, scopes=["reports:read"]),
        "manager": world.keys.issue(ADA, scopes=["apikeys:manage", "a"]),
    }


@pytest.fixture
def ask(site: Site, keys: dict[str, Any]) -> Callable[..., Answer]:
    def ask(who: str, method: str, target: str, body: Any = b"", **more: Any) -> Answer:
        return site.ask(method, target, body, key=None if who == "visitor" else keys[who].text, **more)

    return ask


def is_problem(answer: Answer, code: str) -> bool:
    """Say whether an answer is the problem of this code, whole."""
    assert answer.header("content-type") == "application/problem+json"
    assert "no-store" in answer.header("cache-control")
    problem = json.loads(answer.body)
    assert problem.pop("detail")
    assert problem.pop("title")
    reduced = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
    kind = reduced if STATUS[code] == 503 else "about:blank"
    assert problem == {"type": kind, "status": STATUS[code], "code": code}
    assert answer.status == STATUS[code]
    assert (answer.header("www-authenticate") == CHALLENGE) == (answer.status == 401)
    return True


def said(answer: Answer, status: int = 200) -> Any:
    assert (answer.status, answer.header("content-type")) == (status, "application/json"), answer.body
    assert "no-store" in answer.header("cache-control")
    return json.loads(answer.body)


def is_nothing(answer: Answer) -> bool:
    assert (answer.status, answer.body) == (204, b"")
    assert "no-store" in answer.header("cache-control")
    return True


def records(world: World) -> dict[str, Any]:
    return {key.id: key for key in world.keys.find(limit=1000).items}


def living(world: World, owner: str | None = None) -> set[str]:
    return {key.id for key in world.keys.find(owner=owner, live_at=world.now, limit=1000).items}


class TestList:
    def test_a_key_lists_the_keys_of_its_owner(self, ask: Any, world: World) -> None:
        answer = said(ask("owner", "GET", "/keys"))
        assert answer["next"] is None
        assert [key["id"] for key in answer["items"]] == sorted(living(world, ADA))

    def test_everything_is_shown_but_what_only_the_store_needs(
        self, ask: Any, world: World, keys: Any
    ) -> None:
        issued = world.keys.issue(
            ADA, name="all", scopes=["a"], addresses=["10.0.0.0/8"], metadata={"x": [1]}, created_by="me"
        )
        (key,) = [key for key in said(ask("owner", "GET", "/keys"))["items"] if key["name"] == "all"]
        assert key == dict.fromkeys(SHOWN) | {
            "id": issued.key.id,
            "owner": ADA,
            "name": "all",
            "prefix": "acme",
            "last4": issued.key.last4,
            "scopes": ["a"],
            "addresses": ["10.0.0.0/8"],
            "created_at": "2026-06-01T12:00:00+00:00",
            "created_by": "me",
            "expires_at": "2027-06-01T12:00:00+00:00",
            "disabled": False,
            "metadata": {"x": [1]},
        }

    def test_no_answer_but_the_making_holds_a_secret(self, ask: Any, keys: Any) -> None:
        key_id = keys["owner"].key.id
        for method, target in (("GET", "/keys"), ("GET", f"/keys/{key_id}"), ("PATCH", f"/keys/{key_id}")):
            body = ask("administrator", method, f"{target}", "{}" if method == "PATCH" else "").body.decode()
            for issued in keys.values():
                assert issued.text[-36:] not in body
                assert issued.key.digest.rpartition("$")[2] not in body

    @pytest.mark.parametrize("who", ["administrator", "owner", "manager"])
    def test_an_owner_may_be_named_by_who_may_see_them(self, ask: Any, world: World, who: str) -> None:
        answer = said(ask(who, "GET", f"/keys?owner={ADA}"))
        assert {key["id"] for key in answer["items"]} == living(world, ADA)

    def test_without_an_owner_an_administrator_sees_their_own(self, ask: Any, world: World) -> None:
        answer = said(ask("administrator", "GET", "/keys"))
        assert {key["id"] for key in answer["items"]} == living(world, CHIEF)

    def test_anothers_are_forbidden(self, ask: Any) -> None:
        assert is_problem(ask("another", "GET", f"/keys?owner={ADA}"), "insufficient_scope")

    def test_a_key_needs_the_scope(self, ask: Any) -> None:
        assert is_problem(ask("reader", "GET", "/keys"), "insufficient_scope")

    def test_dead_keys_are_listed_too(self, ask: Any, world: World, keys: Any) -> None:
        world.keys.revoke(keys["reader"].key.id, reason="lost")
        (key,) = [k for k in said(ask("owner", "GET", "/keys"))["items"] if k["id"] == keys["reader"].key.id]
        assert (key["revoked_at"], key["revoked_reason"]) == ("2026-06-01T12:00:00+00:00", "lost")

    def test_pages_follow_one_another_by_id(self, ask: Any, world: World) -> None:
        for _ in range(4):
            world.keys.issue(ADA)
        seen: list[str] = []
        target = "/keys?limit=3"
        for size in (3, 3, 1):
            page = said(ask("owner", "GET", target))
            assert len(page["items"]) == size
            seen += [key["id"] for key in page["items"]]
            target = f"/keys?limit=3&after={page['next']}"
        assert page["next"] is None
        assert seen == sorted(living(world, ADA))

    def test_a_page_has_a_hundred_keys_unless_told_otherwise(self, ask: Any, world: World) -> None:
        for _ in range(100):
            world.keys.issue(BOB)
        assert len(said(ask("another", "GET", "/keys"))["items"]) == 100
        page = said(ask("another", "GET", "/keys?limit=1000"))
        assert (len(page["items"]), page["next"]) == (101, None)

    @pytest.mark.parametrize("owner", ["%00", "a" * 300, "%FF", "%ED%A0%80"])
    def test_an_owner_that_nobody_can_be_has_no_keys(self, ask: Any, owner: str) -> None:
        answer = ask("administrator", "GET", f"/keys?owner={owner}")
        assert answer.status == 400 or said(answer)["items"] == []


class TestMake:
    def test_the_answer_holds_the_text_once_and_where_the_key_is(
        self, ask: Any, site: Site, world: World
    ) -> None:
        before = living(world)
        answer = ask("owner", "POST", "/keys", {"name": "CI", "scopes": ["a"], "expires_in": 60})
        made = said(answer, 201)
        assert living(world) - before == {made["id"]}
        assert made.keys() == SHOWN | {"text"}
        assert answer.header("location") == f"/keys/{made['id']}"
        key = world.keys.get(made["id"])
        assert world.authenticator().authenticate(made["text"]).key == key
        assert (key.owner, key.name, key.scopes) == (ADA, "CI", ("a",))
        assert key.expires_at == world.now + timedelta(seconds=60)
        assert said(ask("owner", "GET", answer.header("location")))["id"] == made["id"]

    @pytest.mark.parametrize("body", [b"", "{}", "{} \n", "\ufeff{}"])
    def test_nothing_need_be_said(self, ask: Any, world: World, body: Any) -> None:
        made = said(ask("owner", "POST", "/keys", body), 201)
        assert (made["owner"], made["scopes"], made["name"]) == (ADA, None, "")
        assert world.keys.get(made["id"]).expires_at == world.now + timedelta(days=365)

    def test_every_field_is_kept(self, ask: Any, world: World, keys: Any) -> None:
        keys["owner"] = world.keys.issue(ADA, expires_in=None)
        fields = {
            "name": "Ünï",
            "scopes": [],
            "addresses": ["2001:db8::/32", "10.0.0.0/8"],
            "expires_in": None,
            "metadata": {"a": {"b": [1, None]}},
        }
        made = said(ask("owner", "POST", "/keys", fields), 201)
        assert made["expires_at"] is None
        assert {name: made[name] for name in fields if name != "expires_in"} == {
            name: value for name, value in fields.items() if name != "expires_in"
        }

    def test_an_administrator_names_the_owner_in_the_url(self, ask: Any, world: World, keys: Any) -> None:
        made = said(ask("administrator", "POST", f"/keys?owner={BOB}", {"name": "given"}), 201)
        key = world.keys.get(made["id"])
        assert (key.owner, key.created_by) == (BOB, keys["administrator"].key.id)

    def test_what_is_not_the_callers_to_say_is_a_bad_request(self, ask: Any, world: World) -> None:
        for field in ["owner", "created_by", "id", "digest", "not_after", "text", "prefix"]:
            before = records(world)
            assert is_problem(ask("administrator", "POST", "/keys", {field: ADA}), "bad_request")
            assert records(world) == before

    @pytest.mark.parametrize(
        ("who", "target", "code"),
        [
            ("another", f"/keys?owner={ADA}", "insufficient_scope"),
            ("reader", "/keys", "insufficient_scope"),
            ("visitor", "/keys", "missing_key"),
            ("visitor", f"/keys?owner={ADA}", "missing_key"),
        ],
    )
    def test_without_the_right_none_is_made(
        self, ask: Any, world: World, who: str, target: str, code: str
    ) -> None:
        before = records(world)
        assert is_problem(ask(who, "POST", target), code)
        assert records(world) == before

    def test_a_field_that_will_not_do_is_a_bad_request(self, ask: Any, world: World) -> None:
        bad: dict[str, list[Any]] = {
            "name": [1, None, "a" * 256, "\0", "\ud800", ["x"]],
            "scopes": ["a", {}, [1], [None], ["a b"], ['"'], [""], ["é"], ["a\nb"], 1, True],
            "addresses": ["10.0.0.0/8", ["nonsense"], ["10.0.0.1/8"], [1], [""], ["::ffff:10.0.0.0/104"]],
            "expires_in": [0, -1, "60", True, [], 1e-9, 1e300, 10**400, 1e12, "x"],
            "metadata": [1, "x", [], None, True],
            "disabled": [True],
            "expires_at": ["2030-01-01T00:00:00Z"],
            "grace": [0],
            "Name": ["x"],
            "": [1],
        }
        before = records(world)
        for name, values in bad.items():
            for value in values:
                assert is_problem(ask("owner", "POST", "/keys", {name: value}), "bad_request"), (name, value)
        assert records(world) == before

    def test_a_body_that_is_no_object_is_a_bad_request(self, ask: Any, world: World) -> None:
        before = records(world)
        bodies: list[bytes | str] = [
            "[]",
            "null",
            '"x"',
            "1",
            "{",
            "{'name': 'x'}",
            "name=x",
            "{}{}",
            '{"name": "a", "name": "b"}',
            '{"name": "a", "NAME": "b"}',
            '{"expires_in": NaN}',
            '{"expires_in": Infinity}',
            "{}".ljust(65537),
            "[" * 60000,
            '{"metadata":' * 5000,
            '{"a":' * 9000 + "1" + "}" * 9000,
            b"\xff",
            '{"name": "x"}'.encode("utf-16"),
            b"\0",
            "\0{}",
        ]
        for body in bodies:
            assert is_problem(ask("owner", "POST", "/keys", body), "bad_request"), body[:40]
        assert records(world) == before

    @pytest.mark.parametrize("at", ["/schlüssel", "/ключи", "/a b"])
    def test_the_location_is_written_as_a_url_whatever_the_mount_point(
        self, build: Any, keys: Any, at: str
    ) -> None:
        site = build(at, REST())
        answer = site.ask("POST", quote(at), key=keys["owner"].text)
        made = said(answer, 201)
        assert answer.header("location") == f"{quote(at)}/{made['id']}"

    def test_the_location_is_below_the_applications_own_mount_point(self, ask: Any) -> None:
        answer = ask("owner", "POST", "/keys", mount="/app")
        assert answer.header("location") == f"/app/keys/{said(answer, 201)['id']}"


class TestOne:
    @pytest.mark.parametrize("who", ["owner", "administrator", "manager"])
    def test_a_key_is_read_by_its_id(self, ask: Any, keys: Any, who: str) -> None:
        key_id = keys["reader"].key.id
        assert said(ask(who, "GET", f"/keys/{key_id}"))["id"] == key_id
        assert said(ask(who, "GET", f"/keys/{key_id}/"))["id"] == key_id

    @pytest.mark.parametrize(
        ("method", "below", "body"),
        [
            ("GET", "", ""),
            ("PATCH", "", '{"name": "x"}'),
            ("DELETE", "", ""),
            ("DELETE", "?descendants=true", ""),
            ("POST", "/rotate", ""),
        ],
    )
    def test_anothers_key_is_as_good_as_unknown(
        self, ask: Any, world: World, keys: Any, method: str, below: str, body: str
    ) -> None:
        before = records(world)
        anothers = ask("another", method, f"/keys/{keys['owner'].key.id}{below}", body)
        unknown = ask("another", method, f"/keys/Aaaaaaaaaaaa{below}", body)
        assert is_problem(anothers, "not_found")
        assert replace(anothers, holder={}) == replace(unknown, holder={})
        assert records(world) == before

    @pytest.mark.parametrize(
        ("method", "below"), [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")]
    )
    def test_the_visitor_and_a_key_without_the_scope_have_no_keys_to_ask_about(
        self, ask: Any, world: World, keys: Any, method: str, below: str
    ) -> None:
        before = records(world)
        for key_id in (keys["owner"].key.id, keys["another"].key.id, "Aaaaaaaaaaaa"):
            assert is_problem(ask("visitor", method, f"/keys/{key_id}{below}"), "missing_key")
            assert is_problem(ask("reader", method, f"/keys/{key_id}{below}"), "insufficient_scope")
        assert records(world) == before

    def test_a_text_is_no_id(self, ask: Any, world: World, keys: Any) -> None:
        before = records(world)
        assert is_problem(ask("owner", "DELETE", f"/keys/{keys['owner'].text}"), "not_found")
        assert records(world) == before

    def test_an_id_that_no_key_can_have_is_unknown(self, ask: Any, world: World) -> None:
        for key_id in ["%00", "a" * 65536, "%FF", "..", "%C3%A9", "'", "%25"]:
            before = records(world)
            for method in ("GET", "PATCH", "DELETE"):
                assert is_problem(ask("owner", method, f"/keys/{key_id}"), "not_found")
            assert records(world) == before

    def test_a_line_break_in_an_id_is_a_character_like_others(self, ask: Any) -> None:
        assert is_problem(ask("owner", "GET", "/keys/a%0Ab"), "not_found")
        assert is_problem(ask("owner", "DELETE", "/keys/%0A"), "not_found")

    def test_other_addresses_are_not_found(self, ask: Any, keys: Any) -> None:
        key_id = keys["owner"].key.id
        for below in (f"/{key_id}/x", f"/{key_id}/rotate/x", "/a/b/c", f"/{key_id}/Rotate"):
            for method in ("GET", "POST", "DELETE"):
                assert is_problem(ask("owner", method, f"/keys{below}"), "not_found")

    def test_what_lies_beside_the_mount_point_is_the_applications(self, ask: Any, world: World) -> None:
        for target in ["/keysx", "/Keys", "/x/keys", "/keys%0A", "/keys%00", "/"]:
            before = records(world)
            for method in ("GET", "POST", "DELETE"):
                assert ask("administrator", method, target).body == b"elsewhere"
            assert records(world) == before

    @pytest.mark.parametrize("target", ["/keys", "/keys/"])
    def test_the_mount_point_may_end_in_a_slash(self, ask: Any, world: World, target: str) -> None:
        assert len(said(ask("owner", "GET", target))["items"]) == len(living(world, ADA))
        assert said(ask("owner", "POST", target), 201)["owner"] == ADA
        assert said(ask("administrator", "DELETE", target)) == {"revoked": 6}

    def test_another_method_is_405_with_those_there_are(self, ask: Any, world: World, keys: Any) -> None:
        before = records(world)
        key_id = keys["owner"].key.id
        allowed = {
            "/keys": ["GET", "POST", "DELETE"],
            f"/keys/{key_id}": ["GET", "PATCH", "DELETE"],
            f"/keys/{key_id}/rotate": ["POST"],
        }
        for target, methods in allowed.items():
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(methods):
                answer = ask("administrator", method, target)
                assert is_problem(answer, "method_not_allowed"), (method, target)
                assert set(answer.header("allow").split(", ")) == set(methods)
            head = ask("administrator", "HEAD", target)
            assert (head.status, head.body) == (405, b"")
        assert records(world) == before


class TestChange:
    def test_what_is_given_is_changed_and_nothing_else(self, ask: Any, world: World, keys: Any) -> None:
        before = keys["reader"].key
        fields = {
            "name": "new",
            "scopes": ["b"],
            "addresses": ["10.0.0.0/8"],
            "expires_at": "2026-06-02T14:00:00+02:00",
            "disabled": True,
            "metadata": {"k": 1},
        }
        for name, value in fields.items():
            answer = said(ask("owner", "PATCH", f"/keys/{before.id}", {name: value}))
            after = world.keys.get(before.id)
            changed = replace(before, version=after.version, **{name: getattr(after, name)})
            assert (after, after.version) == (changed, before.version + 1)
            shown = "2026-06-02T12:00:00+00:00" if name == "expires_at" else value
            assert answer[name] == shown
            before = after

    def test_nothing_given_changes_nothing(self, ask: Any, world: World, keys: Any) -> None:
        before = records(world)
        assert said(ask("owner", "PATCH", f"/keys/{keys['reader'].key.id}", "{}"))["scopes"] == [
            "reports:read"
        ]
        assert records(world) == before

    def test_a_field_that_cannot_be_changed_is_a_bad_request(self, ask: Any, world: World, keys: Any) -> None:
        before = records(world)
        bad: dict[str, list[Any]] = {
            "owner": [BOB],
            "created_by": ["x"],
            "revoked_at": [None],
            "grace_until": [None],
            "expires_in": [60],
            "digest": ["x"],
            "version": [1],
            "id": ["x"],
            "disabled": [0, 1, None, "true"],
            "expires_at": ["x", 1, "2030-01-01T00:00:00", "2030-01-01", "9999-12-31T23:59:59-01:00", ""],
            "scopes": ["a", [1], ["a b"]],
            "addresses": [["x"], "10.0.0.0/8"],
            "metadata": [None, [], 1],
            "name": [None, 1, "\0"],
        }
        for who in ("owner", "administrator"):
            for name, values in bad.items():
                for value in values:
                    target = f"/keys/{keys['reader'].key.id}"
                    answer = ask(who, "PATCH", target, {name: value})
                    assert is_problem(answer, "bad_request"), (name, value)
        assert records(world) == before

    def test_a_key_may_be_kept_for_ever(self, ask: Any, world: World, keys: Any) -> None:
        forever = world.keys.issue(ADA, expires_in=None)
        keys["forever"] = forever
        said(ask("forever", "PATCH", f"/keys/{keys['reader'].key.id}", {"expires_at": None}))
        assert world.keys.get(keys["reader"].key.id).expires_at is None

    def test_a_revoked_key_stays_revoked(self, ask: Any, world: World, keys: Any) -> None:
        key_id = keys["reader"].key.id
        world.keys.revoke(key_id)
        ask("owner", "PATCH", f"/keys/{key_id}", {"disabled": False, "name": "back"})
        assert key_id not in living(world)

    def test_a_key_that_is_gone_meanwhile_is_not_found(self, build: Any, world: World, keys: Any) -> None:
        world.store = Vanishing(world.store, keys["reader"].key.id)
        site = build("/keys", REST())
        for method, below in (("PATCH", ""), ("POST", "/rotate")):
            world.store.seen = 0
            body = {"name": "x"} if method == "PATCH" else b""
            target = f"/keys/{keys['reader'].key.id}{below}"
            assert is_problem(site.ask(method, target, body, key=keys["owner"].text), "not_found")


class Vanishing:
    """A store whose key is purged once it was read."""

    def __init__(self, store: Any, key_id: str) -> None:
        self.store, self.key_id, self.seen = store, key_id, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get(self, key_id: str, /) -> Any:
        if key_id == self.key_id:
            self.seen += 1
            if self.seen > 1:
                return None
        return self.store.get(key_id)


class TestRotate:
    def test_a_key_is_replaced_by_another_with_the_same_rights(
        self, ask: Any, site: Site, world: World, keys: Any
    ) -> None:
        old = world.keys.issue(ADA, scopes=["a"], addresses=["127.0.0.0/8"], name="n", metadata={"k": 1})
        answer = ask("owner", "POST", f"/keys/{old.key.id}/rotate")
        made = said(answer, 201)
        assert answer.header("location") == f"/keys/{made['id']}"
        new = world.keys.get(made["id"])
        for name in ("owner", "scopes", "addresses", "name", "metadata", "expires_at"):
            assert getattr(new, name) == getattr(old.key, name)
        assert (new.rotated_from, made["rotated_from"]) == (old.key.id, old.key.id)
        assert world.authenticator().authenticate(made["text"], address="127.0.0.1").key.id == new.id
        assert old.key.id not in living(world)

    def test_the_old_key_goes_on_for_the_grace(self, ask: Any, world: World, keys: Any) -> None:
        key_id = keys["reader"].key.id
        made = said(ask("owner", "POST", f"/keys/{key_id}/rotate", {"grace": 60.5, "expires_in": 3600}), 201)
        assert world.keys.get(key_id).grace_until == world.now + timedelta(seconds=60.5)
        assert world.keys.get(made["id"]).expires_at == world.now + timedelta(hours=1)
        assert key_id in living(world)
        world.now += timedelta(seconds=61)
        assert key_id not in living(world)

    @pytest.mark.parametrize("grace", [0, 60])
    @pytest.mark.parametrize("who", ["owner", "manager"])
    def test_a_key_may_rotate_itself(
        self, ask: Any, site: Site, world: World, keys: Any, grace: int, who: str
    ) -> None:
        made = said(ask(who, "POST", f"/keys/{keys[who].key.id}/rotate", {"grace": grace}), 201)
        assert made["id"] in living(world)
        assert said(site.ask("GET", "/keys", key=made["text"]))["items"]
        assert site.ask("GET", "/keys", key=keys[who].text).status == (200 if grace else 401)

    @pytest.mark.parametrize("death", ["revoked", "expired", "disabled", "rotated"])
    def test_a_dead_key_is_a_conflict(self, ask: Any, world: World, keys: Any, death: str) -> None:
        key = world.keys.issue(ADA, expires_in=timedelta(seconds=60)).key
        if death == "revoked":
            world.keys.revoke(key.id)
        elif death == "disabled":
            world.keys.edit(key.id, disabled=True)
        elif death == "rotated":
            world.keys.rotate(key.id, grace=timedelta(seconds=30))
        else:
            world.now += timedelta(seconds=60)
        before = records(world)
        assert is_problem(ask("owner", "POST", f"/keys/{key.id}/rotate"), "conflict")
        assert records(world) == before

    def test_a_field_that_will_not_do_is_a_bad_request(self, ask: Any, world: World, keys: Any) -> None:
        before = records(world)
        target = f"/keys/{keys['reader'].key.id}/rotate"
        bad = {
            "grace": [-1, None, "1", True, 1e300, [], 1e12],
            "expires_in": [0, -1, "x", True, 1e300],
            "scopes": [None, ["a"]],
            "owner": [BOB],
            "not_after": [None],
        }
        for name, values in bad.items():
            for value in values:
                assert is_problem(ask("owner", "POST", target, {name: value}), "bad_request"), (name, value)
        assert records(world) == before


class TestDelete:
    @pytest.mark.parametrize("who", ["owner", "administrator", "manager"])
    def test_a_key_is_deleted_by_its_id(self, ask: Any, world: World, keys: Any, who: str) -> None:
        before, key_id = living(world), keys["reader"].key.id
        assert is_nothing(ask(who, "DELETE", f"/keys/{key_id}"))
        assert before - living(world) == {key_id}
        gone = world.keys.get(key_id)
        assert keys[who].key.id in gone.revoked_reason
        assert is_nothing(ask(who, "DELETE", f"/keys/{key_id}"))
        assert world.keys.get(key_id) == gone

    def test_a_deleted_key_is_dead_at_once(self, ask: Any, site: Site, keys: Any) -> None:
        assert is_nothing(ask("owner", "DELETE", f"/keys/{keys['manager'].key.id}"))
        assert site.ask("GET", "/keys", key=keys["manager"].text).status == 401

    @pytest.mark.parametrize(
        ("query", "also"), [("?descendants=true", True), ("?descendants=false", False), ("", False)]
    )
    def test_what_it_made_goes_with_it_if_asked(
        self, ask: Any, site: Site, world: World, keys: Any, query: str, also: bool
    ) -> None:
        made = said(site.ask("POST", "/keys", key=keys["manager"].text), 201)
        rotated = said(ask("owner", "POST", f"/keys/{made['id']}/rotate"), 201)
        assert is_nothing(ask("owner", "DELETE", f"/keys/{keys['manager'].key.id}{query}"))
        assert (rotated["id"] in living(world)) != also

    def test_an_administrator_deletes_a_users_keys(self, ask: Any, world: World, keys: Any) -> None:
        assert said(ask("administrator", "DELETE", f"/keys?owner={ADA}")) == {"revoked": 3}
        assert living(world) == {keys["another"].key.id, keys["administrator"].key.id}

    def test_an_administrator_deletes_everybodys(self, ask: Any, world: World) -> None:
        assert said(ask("administrator", "DELETE", "/keys")) == {"revoked": 5}
        assert living(world) == set()

    @pytest.mark.parametrize("who", ["owner", "another", "manager", "reader", "visitor"])
    def test_nobody_else_deletes_all_of_anything(self, ask: Any, world: World, who: str) -> None:
        for query in ["", f"?owner={ADA}", f"?owner={BOB}"]:
            before = records(world)
            code = "missing_key" if who == "visitor" else "insufficient_scope"
            assert is_problem(ask(who, "DELETE", f"/keys{query}"), code)
            assert records(world) == before

    def test_a_misspelt_owner_is_never_everybody(self, ask: Any, world: World) -> None:
        for query in [
            "owner=",
            "owner",
            "ownr=101",
            "Owner=101",
            "owner%20=101",
            "owner=101&owner=101",
            "owner=101&owner=102",
            "owner=&owner=101",
            "owner[]=101",
            "owner=101&x=1",
            "owner=101;owner=102",
            "user=101",
            "=101",
            "descendants=true",
            "limit=1",
            "%00owner=101",
        ]:
            before = records(world)
            answer = ask("administrator", "DELETE", f"/keys?{query}")
            if query == "owner=101;owner=102":
                assert said(answer) == {"revoked": 0}
            else:
                assert is_problem(answer, "bad_request")
            assert records(world) == before

    def test_an_owner_that_nobody_is_is_never_everybody(self, ask: Any, world: World) -> None:
        for owner in ["%00", "%FF", "a" * 300, "%20", "null", "*", "%25"]:
            before = living(world)
            assert ask("administrator", "DELETE", f"/keys?owner={owner}").status in (200, 400)
            assert living(world) == before


class TestParameters:
    def test_any_parameter_that_a_route_does_not_have_is_a_bad_request(
        self, ask: Any, world: World, keys: Any
    ) -> None:
        before = records(world)
        key_id = keys["reader"].key.id
        routes = [
            ("GET", "/keys"),
            ("POST", "/keys"),
            ("DELETE", "/keys"),
            ("GET", f"/keys/{key_id}"),
            ("PATCH", f"/keys/{key_id}"),
            ("DELETE", f"/keys/{key_id}"),
            ("POST", f"/keys/{key_id}/rotate"),
            ("GET", "/keys/openapi.json"),
        ]
        for method, target in routes:
            for query in ("x=1", "OWNER=1", "owner%00=1", "descendant=true"):
                assert is_problem(ask("administrator", method, f"{target}?{query}"), "bad_request"), target
        for method, target in routes[3:]:
            assert is_problem(ask("administrator", method, f"{target}?owner={ADA}"), "bad_request"), target
        assert records(world) == before

    def test_a_value_that_will_not_do_is_a_bad_request(self, ask: Any, world: World, keys: Any) -> None:
        before = records(world)
        queries = [
            f"limit={value}" for value in ("0", "-1", "1001", "x", "", "1.5", "1e2", "%D9%A1", "00001", "+1")
        ]
        queries += ["after=", "owner=", "limit=1&limit=1", "after=a&after=b", "limit"]
        for query in queries:
            assert is_problem(ask("owner", "GET", f"/keys?{query}"), "bad_request"), query
        for value in ("", "1", "True", "TRUE", "yes", "true,true", "%00"):
            target = f"/keys/{keys['reader'].key.id}?descendants={value}"
            assert is_problem(ask("owner", "DELETE", target), "bad_request"), value
        assert records(world) == before

    def test_an_after_behind_everything_is_an_empty_page(self, ask: Any) -> None:
        assert said(ask("owner", "GET", "/keys?after=zzzzzzzzzzzz")) == {"items": [], "next": None}

    @pytest.mark.parametrize("after", ["%00", "%F0%9F%98%80", "z" * 9999, "%FF", "x%00"])
    def test_an_after_that_no_page_ended_with_is_no_servers_error(self, ask: Any, after: str) -> None:
        assert ask("owner", "GET", f"/keys?after={after}").status in (200, 400)

    def test_a_key_in_the_url_is_no_parameter(self, site: Site, keys: Any) -> None:
        answer = site.ask("GET", f"/keys?limit=1&apikey={keys['owner'].text}")
        assert len(said(answer)["items"]) == 1
        assert answer.header("referrer-policy") == "no-referrer"


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


@pytest.mark.parametrize(
    ("down", "method", "below"),
    [
        ("find", "GET", ""),
        ("add", "POST", ""),
        ("revoke_all", "DELETE", ""),
        ("swap", "DELETE", "/ID"),
        ("swap", "PATCH", "/ID"),
        ("swap", "POST", "/ID/rotate"),
    ],
)
def test_a_store_that_is_down_is_503(
    build: Any, world: World, keys: Any, down: str, method: str, below: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, store = records(world), world.store
    world.store = Failing(store, down)
    target = "/keys" + below.replace("ID", keys["reader"].key.id)
    body = '{"name": "x"}' if method == "PATCH" else ""
    answer = build("/keys", REST(rights=RIGHTS)).ask(method, target, body, key=keys["administrator"].text)
    assert is_problem(answer, "store_unavailable")
    assert answer.header("retry-after") in ("1", "2")
    (entry,) = [each for each in caplog.records if each.name == "apikey_auth"]
    assert entry.getMessage() == "the key store failed; key management answers with 503"
    assert entry.exc_info
    world.store = store
    assert records(world) == before


class Busy:
    """A store in which somebody else is always quicker."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def swap(self, old: Any, new: Any, /, successor: Any = None) -> bool:
        return False


@pytest.mark.parametrize(("method", "below"), [("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")])
def test_a_key_that_others_keep_changing_is_a_conflict_and_the_document_says_so(
    build: Any, world: World, keys: Any, method: str, below: str
) -> None:
    before, store = records(world), world.store
    world.store = Busy(store)
    site, key = build("/keys", REST()), keys["reader"].key
    body = '{"name": "x"}' if method == "PATCH" else ""
    assert is_problem(site.ask(method, f"/keys/{key.id}{below}", body, key=keys["owner"].text), "conflict")
    assert "409" in document(site)["paths"][f"/keys/{{id}}{below}"][method.lower()]["responses"]
    world.store = store
    assert records(world) == before


@pytest.mark.parametrize(("method", "below"), [("GET", ""), ("POST", ""), ("DELETE", ""), ("GET", "/x")])
def test_bad_keys_and_the_keys_of_users_who_are_not_active_are_401(
    site: Site, world: World, method: str, below: str
) -> None:
    assert is_problem(site.ask(method, f"/keys{below}", key="nonsense"), "invalid_key")
    assert site.ask(method, f"/keys{below}", key=world.keys.issue(CARL).text).status == 401


def test_users_of_the_application_have_the_same_routes(site: Site, world: World) -> None:
    made = said(site.ask("POST", "/keys", {"name": "mine"}, user=ADA, headers=SAME_SITE), 201)
    assert (made["owner"], made["created_by"]) == (ADA, ADA)
    assert said(site.ask("GET", f"/keys/{made['id']}", user=ADA))["name"] == "mine"
    assert is_problem(site.ask("GET", f"/keys/{made['id']}", user=BOB), "not_found")
    assert said(site.ask("DELETE", "/keys", user=CHIEF, headers=SAME_SITE)) == {"revoked": 1}


@pytest.mark.parametrize("name", ["wsgi", "flask", "django"])
def test_a_body_cut_short_changes_nothing(world: World, keys: Any, name: str) -> None:
    before = records(world)
    target, text = f"/keys/{keys['reader'].key.id}/rotate", keys["owner"].text
    with MOUNTS[name](world, "/keys", REST(), {}) as site:
        for body in (b"", b'{"grace": 3600'):
            answer = site.ask("POST", target, body, key=text, headers=(("Content-Length", "15"),))
            assert is_problem(answer, "bad_request")
    assert records(world) == before


@pytest.mark.parametrize("name", ["asgi", "starlette"])
async def test_a_client_that_leaves_before_its_body_has_come_changes_nothing(
    world: World, keys: Any, name: str
) -> None:
    before = records(world)
    target, text = f"/keys/{keys['reader'].key.id}/rotate", keys["owner"].text
    with MOUNTS[name](world, "/keys", REST(), {}) as site:
        scope = {
            "type": "http",
            "method": "POST",
            "path": target,
            "query_string": b"",
            "headers": [(b"apikey", text.encode())],
        }
        for first in ([], [{"type": "http.request", "body": b"", "more_body": True}]):
            coming = [*first, {"type": "http.disconnect"}]

            async def receive(coming: list[Any] = coming) -> Any:
                return coming.pop(0)

            async def send(message: Any) -> None:
                pass

            await site.application(scope, receive, send)
    assert records(world) == before


async def test_a_body_that_comes_in_pieces_is_read_whole(world: World, keys: Any) -> None:
    pieces = [b'{"na', b"", b'me": "whole"', b"}"]
    coming = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]
    with MOUNTS["asgi"](world, "/keys", REST(), {}) as site:
        headers = [(b"apikey", keys["owner"].text.encode())]
        scope = {"type": "http", "method": "POST", "path": "/keys", "query_string": b"", "headers": headers}
        sent: list[Any] = []

        async def receive() -> Any:
            return coming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await site.application(scope, receive, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["name"]) == (201, "whole")


def test_a_chunked_body_is_read_where_the_server_ends_the_stream(world: World, keys: Any) -> None:
    with MOUNTS["wsgi"](world, "/keys", REST(), {}) as site:
        inner = site.application

        def chunked(environ: Any, start_response: Any) -> Any:
            del environ["CONTENT_LENGTH"]
            return inner({**environ, "wsgi.input_terminated": True}, start_response)

        site.application = chunked
        made = said(site.ask("POST", "/keys", {"name": "chunks"}, key=keys["owner"].text), 201)
    assert made["name"] == "chunks"


# The OpenAPI document.

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}


def document(site: Site, at: str = "/keys", **more: Any) -> Any:
    return said(site.ask("GET", f"{at}/openapi.json", **more))


def operations(found: Any) -> list[tuple[str, str, Any]]:
    return [(m.upper(), path, it) for path, item in found["paths"].items() for m, it in item.items()]


def check_schema(schema: Any, components: Any) -> None:
    """Check a schema against JSON Schema 2020-12, as far as this document uses it."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        assert set(schema) == {"$ref"}
        assert name in components["schemas"]
        return
    known = {
        "type",
        "items",
        "properties",
        "required",
        "format",
        "description",
        "default",
        "additionalProperties",
    }
    known |= {"minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"}
    assert set(schema) <= known
    types = schema["type"]
    types = [types] if isinstance(types, str) else types
    assert types
    assert set(types) <= TYPES
    assert len(set(types)) == len(types)
    for name in ("minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength"):
        assert not isinstance(schema.get(name, 0), bool)
        assert isinstance(schema.get(name, 0), int | float)
    if "items" in schema:
        check_schema(schema["items"], components)
    for each in schema.get("properties", {}).values():
        check_schema(each, components)
    assert set(schema.get("required", ())) <= set(schema.get("properties", {}))


def check_document(found: Any) -> None:
    """Check a document against OpenAPI 3.1's structure (sections 4.8.1 to 4.8.27)."""
    assert re.fullmatch(r"3\.1\.\d+", found["openapi"])
    assert set(found) <= {"openapi", "info", "paths", "components", "security", "servers", "tags"}
    assert isinstance(found["info"]["title"], str)
    assert isinstance(found["info"]["version"], str)
    components = found["components"]
    for schema in components["schemas"].values():
        check_schema(schema, components)
    for name, scheme in components["securitySchemes"].items():
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)
        assert scheme["type"] == "apiKey"
        assert scheme["in"] in ("header", "query", "cookie")
        assert scheme["name"]
    for requirement in found["security"]:
        assert set(requirement) <= set(components["securitySchemes"])
    for path, item in found["paths"].items():
        assert path.startswith("/")
        assert set(item) <= set(METHODS)
        for operation in item.values():
            known = {
                "summary",
                "description",
                "operationId",
                "parameters",
                "requestBody",
                "responses",
                "security",
                "tags",
            }
            assert set(operation) <= known
            places = [(each["in"], each["name"]) for each in operation["parameters"]]
            assert len(set(places)) == len(places)
            inside = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert inside == set(re.findall(r"\{([^}]+)\}", path))
            for each in operation["parameters"]:
                assert each["in"] in ("query", "path")
                assert each["in"] != "path" or each["required"] is True
                check_schema(each["schema"], components)
            if "requestBody" in operation:
                for media in operation["requestBody"]["content"].values():
                    check_schema(media["schema"], components)
            assert operation["responses"]
            for status, response in operation["responses"].items():
                assert re.fullmatch(r"[1-5][0-9]{2}", status)
                assert response["description"]
                for media in response.get("content", {}).values():
                    check_schema(media.get("schema", {"type": "object"}), components)


class TestDocument:
    def test_it_is_an_openapi_document(self, site: Site) -> None:
        check_document(document(site))

    @pytest.mark.parametrize("who", ["visitor", "reader", "owner"])
    def test_everybody_may_read_it(self, ask: Any, who: str) -> None:
        assert said(ask(who, "GET", "/keys/openapi.json"))["openapi"].startswith("3.1")

    @pytest.mark.parametrize("mount", ["", "/app"])
    @pytest.mark.parametrize("at", ["/keys", "/api/v1/api-keys"])
    def test_it_names_the_paths_as_clients_see_them(self, build: Any, mount: str, at: str) -> None:
        found = document(build(at, REST()), at, mount=mount)
        here = mount + at
        assert set(found["paths"]) == {
            here,
            f"{here}/{{id}}",
            f"{here}/{{id}}/rotate",
            f"{here}/openapi.json",
        }

    def test_every_operation_in_it_is_served(self, ask: Any, site: Site, keys: Any) -> None:
        for method, path, operation in operations(document(site)):
            answer = ask("owner", method, path.replace("{id}", keys["reader"].key.id))
            assert answer.status not in (404, 405), (method, path)
            assert str(answer.status) in operation["responses"]

    def test_every_operation_that_is_served_is_in_it(self, ask: Any, site: Site) -> None:
        found = document(site)
        listed = {(method, path) for method, path, _ in operations(found)}
        for path in found["paths"]:
            concrete = path.replace("{id}", "Aaaaaaaaaaaa")
            served = set(ask("owner", "PUT", concrete).header("allow").split(", "))
            if path != "/keys/openapi.json":  # which is an id, too, as far as other methods go
                assert served == {method for method, there in listed if there == path}

    def test_every_answer_of_it_is_as_it_says(self, ask: Any, site: Site, world: World, keys: Any) -> None:
        found = document(site)
        schemas = found["components"]["schemas"]
        key_id = keys["reader"].key.id
        calls = [
            ("GET", "/keys", "/keys", ""),
            ("POST", "/keys", "/keys", {"name": "x"}),
            ("GET", "/keys/{id}", f"/keys/{key_id}", ""),
            ("PATCH", "/keys/{id}", f"/keys/{key_id}", {"name": "y"}),
            ("POST", "/keys/{id}/rotate", f"/keys/{key_id}/rotate", ""),
            ("DELETE", "/keys/{id}", f"/keys/{key_id}", ""),
            ("DELETE", "/keys", "/keys", ""),
        ]
        assert {call[:2] for call in calls} == {o[:2] for o in operations(found)} - {
            ("GET", "/keys/openapi.json")
        }
        for method, path, target, body in calls:
            answer = ask("administrator", method, target, body)
            response = found["paths"][path][method.lower()]["responses"][str(answer.status)]
            if answer.body:
                (content,) = response["content"].items()
                assert answer.header("content-type") == content[0]
                conforms(json.loads(answer.body), content[1]["schema"], schemas)
            else:
                assert "content" not in response

    def test_every_refusal_is_in_it(self, ask: Any, site: Site, world: World, keys: Any) -> None:
        found = document(site)
        dead = world.keys.issue(ADA)
        world.keys.revoke(dead.key.id)
        for method, path, operation in operations(found):
            target = path.replace("{id}", keys["reader"].key.id)
            refused = {
                ask(who, method, target + query).status
                for who, query in [
                    ("visitor", ""),
                    ("reader", ""),
                    ("owner", "?nonsense=1"),
                    ("owner", f"?owner={BOB}"),
                ]
            }
            if "{id}" in path:
                refused.add(ask("owner", method, path.replace("{id}", "unknown")).status)
                refused.add(ask("owner", method, path.replace("{id}", dead.key.id)).status)
            assert {str(status) for status in refused} <= set(operation["responses"]), (method, path)

    def test_problems_are_as_it_says(self, ask: Any, site: Site) -> None:
        schemas = document(site)["components"]["schemas"]
        conforms(json.loads(ask("visitor", "GET", "/keys").body), schemas["Problem"], schemas)

    def test_its_bodies_list_the_fields_that_are_taken(self, ask: Any, site: Site, keys: Any) -> None:
        given = {
            "name": "x",
            "scopes": ["a"],
            "addresses": ["10.0.0.0/8"],
            "expires_in": 60,
            "expires_at": "2026-06-02T00:00:00Z",
            "grace": 60,
            "disabled": False,
            "metadata": {},
        }
        for method, path, operation in operations(document(site)):
            if method in ("POST", "PATCH"):
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                assert schema["additionalProperties"] is False
                for name, value in given.items():
                    key_id = ask("owner", "POST", "/keys").header("location").rpartition("/")[2]
                    answer = ask("owner", method, path.replace("{id}", key_id), {name: value})
                    assert (answer.status < 300) == (name in schema["properties"]), (method, path, name)

    def test_the_carriers_that_it_names_are_those_of_the_application(self, build: Any) -> None:
        from apikey_auth import Bearer, Header

        site = build("/keys", REST(), carriers=[Header("X-Key"), Bearer()])
        schemes = list(document(site)["components"]["securitySchemes"].values())
        named = [(each["type"], each.get("name") or each.get("scheme")) for each in schemes]
        assert named == [("apiKey", "X-Key"), ("http", "bearer")]


def conforms(value: Any, schema: Any, schemas: Any) -> None:
    """Check a value against a schema of the document."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    kinds = {
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "integer",
        type(None): "null",
    }
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    assert kinds[type(value)] in types, (value, schema)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= set(value) <= set(schema["properties"])
        for name, each in value.items():
            conforms(each, schema["properties"][name], schemas)
    if isinstance(value, list):
        for each in value:
            conforms(each, schema["items"], schemas)


def test_ids_of_any_scheme_have_a_location(world: World) -> None:
    world.scheme = KeyScheme(prefix="a_b")
    with MOUNTS["wsgi"](world, "/keys", REST(), {}) as site:
        answer = site.ask("POST", "/keys", user=ADA, headers=SAME_SITE)
        assert answer.header("location") == f"/keys/{said(answer, 201)['id']}"
