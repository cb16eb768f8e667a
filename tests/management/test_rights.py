"""Who may do what to whose keys; and that no key makes, widens or wakes another beyond itself."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from applications import World
from calling import Answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sites import ADA, BOB, CHIEF, MOUNTS, SAME_SITE, Site, a_world

from apikey_auth import APIKey, Bearer, ConfigurationError, Header
from apikey_auth.django.urls import ModelRights
from apikey_auth.management import REST, Caller, Dialect, OwnKeys, Sensenet

MANAGE = "apikeys:manage"
RIGHTS = OwnKeys(is_admin=lambda caller: caller.owner == CHIEF)
USER = "/odata.svc/Root/IMS/Public/('101')"
BOTH = ["wsgi", "asgi"]
ASYNC = ["asgi", "starlette", "django-async-store"]
SYNC = ["wsgi", "flask", "django"]


@contextmanager
def mounted(name: str, world: World, dialect: Dialect, at: str = "/keys", **options: Any) -> Iterator[Site]:
    with MOUNTS[name](world, at, dialect, options) as site:
        yield site


@pytest.fixture(params=BOTH)
def rest(request: pytest.FixtureRequest, world: World) -> Iterator[Site]:
    with mounted(request.param, world, REST(rights=RIGHTS), carriers=[Header("apikey"), Bearer()]) as site:
        yield site


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body).get("code", "")


def made(answer: Answer) -> Any:
    assert answer.status == 201, answer.body
    return json.loads(answer.body)


def records(world: World) -> dict[str, APIKey]:
    return {key.id: key for key in world.keys.find(limit=1000).items}


def living(world: World) -> set[str]:
    return {key.id for key in world.keys.find(live_at=world.now, limit=1000).items}


class Recording:
    """Rights that remember what they were asked, and allow what they are told to."""

    def __init__(self, *allowed: str) -> None:
        self.allowed, self.asked = allowed, []  # type: ignore[var-annotated]

    def can_list(self, caller: Caller, owner: str, /) -> bool:
        self.asked.append(("can_list", caller, owner))
        return "can_list" in self.allowed

    def can_create(self, caller: Caller, owner: str, /) -> bool:
        self.asked.append(("can_create", caller, owner))
        return "can_create" in self.allowed

    def can_delete(self, caller: Caller, owner: str, /) -> bool:
        self.asked.append(("can_delete", caller, owner))
        return "can_delete" in self.allowed

    def is_admin(self, caller: Caller, /) -> bool:
        self.asked.append(("is_admin", caller, None))
        return "is_admin" in self.allowed


class AsyncRecording(Recording):
    """The same, to be awaited."""

    async def can_list(self, caller: Caller, owner: str, /) -> bool:  # type: ignore[override]
        return super().can_list(caller, owner)

    async def can_create(self, caller: Caller, owner: str, /) -> bool:  # type: ignore[override]
        return super().can_create(caller, owner)

    async def can_delete(self, caller: Caller, owner: str, /) -> bool:  # type: ignore[override]
        return super().can_delete(caller, owner)

    async def is_admin(self, caller: Caller, /) -> bool:  # type: ignore[override]
        return super().is_admin(caller)


NEEDED: list[tuple[str, str, set[str]]] = [
    ("GET", "/keys?owner=102", {"can_list"}),
    ("GET", "/keys/ID", {"can_list"}),
    ("POST", "/keys?owner=102", {"can_create"}),
    ("PATCH", "/keys/ID", {"can_list", "can_delete"}),
    ("DELETE", "/keys/ID", {"can_list", "can_delete"}),
    ("POST", "/keys/ID/rotate", {"can_list", "can_create", "can_delete"}),
    ("DELETE", "/keys?owner=102", {"is_admin"}),
    ("DELETE", "/keys", {"is_admin"}),
]


class TestReplaced:
    """The application's own rights decide, and nothing else."""

    @pytest.mark.parametrize(
        ("name", "kind"),
        [(name, Recording) for name in MOUNTS] + [(name, AsyncRecording) for name in ASYNC],
    )
    def test_each_route_needs_the_rights_it_names_and_no_other(
        self, world: World, name: str, kind: type[Recording]
    ) -> None:
        asking = world.keys.issue(ADA)
        for method, target, needed in NEEDED:
            for missing in [None, *sorted(needed)]:
                rights = kind(*(needed - {missing}))
                key = world.keys.issue(BOB)
                before = records(world)
                with mounted(name, world, REST(rights=rights)) as site:
                    body = '{"name": "x"}' if method == "PATCH" else ""
                    answer = site.ask(method, target.replace("ID", key.key.id), body, key=asking.text)
                assert {asked for asked, _, _ in rights.asked} <= needed
                for _, caller, owner in rights.asked:
                    assert (caller.owner, caller.key) == (ADA, asking.key)
                    assert owner in (BOB, None)
                assert (answer.status < 300) == (missing is None), (method, target, missing)
                assert missing is None or answer.status in (403, 404)
                assert missing is None or records(world) == before
                if "DELETE" in method and "ID" not in target and missing is None:
                    asking = world.keys.issue(ADA)

    @pytest.mark.parametrize("name", ASYNC)
    def test_sensenets_functions_may_be_async_too(self, world: World, name: str) -> None:
        async def owner_for(entity: str | int) -> str:
            return ADA

        async def describe(owner: str | None) -> dict[str, object]:
            return {"Id": owner, "Name": "async"}

        dialect = Sensenet(rights=AsyncRecording("can_list"), owner_for=owner_for, describe=describe)
        key = world.keys.issue(ADA)
        with mounted(name, world, dialect, "/odata.svc") as site:
            answer = site.ask("GET", "/odata.svc/content(7)/GetCurrentUser", key=key.text)
            assert json.loads(answer.body) == {"d": {"Id": ADA, "Name": "async"}}
            listed = json.loads(site.ask("GET", "/odata.svc/content(7)/GetApiKeys", key=key.text).body)
            assert [each["Id"] for each in listed["apiKeys"]] == [key.key.id]
            assert site.ask("POST", "/odata.svc/content(7)/CreateApiKey", key=key.text).status == 403

    @pytest.mark.parametrize(("method", "target"), [(method, target) for method, target, _ in NEEDED])
    @pytest.mark.filterwarnings("error::RuntimeWarning")
    def test_async_rights_in_a_sync_application_are_a_mistake_and_no_right(
        self, world: World, method: str, target: str
    ) -> None:
        key = world.keys.issue(ADA)
        before = records(world)
        every = AsyncRecording("can_list", "can_create", "can_delete", "is_admin")
        with mounted("wsgi", world, REST(rights=every)) as site:
            with pytest.raises(ConfigurationError, match="rights and owner_for must be plain functions"):
                site.ask(method, target.replace("ID", key.key.id), b"{}", key=key.text)
        assert records(world) == before

    def test_an_async_is_admin_alone_is_enough_for_an_async_application(self, world: World) -> None:
        async def is_admin(caller: Caller) -> bool:
            return caller.owner == CHIEF

        chief, ada = world.keys.issue(CHIEF), world.keys.issue(ADA)
        with mounted("asgi", world, REST(rights=OwnKeys(is_admin))) as site:
            assert site.ask("GET", f"/keys?owner={ADA}", key=chief.text).status == 200
            assert site.ask("GET", f"/keys?owner={CHIEF}", key=ada.text).status == 403
            assert site.ask("DELETE", "/keys", key=ada.text).status == 403
            assert site.ask("DELETE", "/keys", key=chief.text).status == 200

    def test_rights_see_the_applications_own_user(self, world: World) -> None:
        for name in MOUNTS:
            if name == "django-async-store":
                continue
            rights = Recording("can_list")
            with mounted(name, world, REST(rights=rights)) as site:
                site.ask("GET", "/keys", user=ADA)
            ((_, caller, _),) = rights.asked
            assert (caller.owner, caller.key) == (ADA, None)
            assert caller.user is not None

    def test_without_an_administrator_nobody_is_one(self, world: World) -> None:
        keys = OwnKeys()
        for owner in (ADA, CHIEF, "admin", None):
            assert keys.is_admin(Caller(owner)) is False
            assert keys.can_list(Caller(owner), "somebody") is False
        assert keys.can_create(Caller(ADA), ADA)

    def test_a_visitor_owns_nothing(self) -> None:
        for owner in ("None", "", "visitor", "Visitor"):
            assert not OwnKeys().can_list(Caller(), owner)


def test_a_superuser_who_is_not_active_is_no_administrator() -> None:
    from django.contrib.auth.models import User

    for active in (True, False):
        user = User(username="former", is_superuser=True, is_active=active)
        assert ModelRights().is_admin(Caller("1", user)) is active
        assert ModelRights().can_list(Caller("1", user), "2") is active


def test_a_user_model_without_superusers_has_no_administrators() -> None:
    from apikey_auth.django.forms import may_act_as

    class Person:
        """As AbstractBaseUser alone, without PermissionsMixin."""

        is_active = True

    assert ModelRights().is_admin(Caller("1", Person())) is False
    assert may_act_as(Person(), Person())


@pytest.mark.parametrize("name", ["django", "django-asgi", "django-async-store"])
class TestModelRights:
    """Django's own permissions."""

    @pytest.fixture(autouse=True)
    def clerk(self, world: World) -> None:
        world.keys.issue("105")

    @pytest.mark.parametrize(
        ("owner", "others", "everybody"), [(ADA, 403, 403), ("105", 200, 403), (CHIEF, 200, 200)]
    )
    @pytest.mark.parametrize("way", ["key", "session"])
    def test_own_keys_users_one_may_change_and_everybody_for_superusers(
        self, world: World, name: str, owner: str, others: int, everybody: int, way: str
    ) -> None:
        with mounted(name, world, REST(rights=ModelRights())) as site:

            def ask(method: str, target: str) -> int:
                by: Any = {"key": world.keys.issue(owner).text} if way == "key" else {"user": owner}
                return site.ask(method, target, headers=SAME_SITE, **by).status

            assert ask("GET", "/keys") == 200
            assert ask("POST", "/keys") == 201
            assert ask("GET", f"/keys?owner={BOB}") == others
            assert ask("POST", f"/keys?owner={BOB}") == (201 if others == 200 else 403)
            key = world.keys.issue(BOB).key
            assert ask("DELETE", f"/keys/{key.id}") == (204 if others == 200 else 404)
            assert ask("DELETE", f"/keys?owner={BOB}") == everybody
            assert ask("DELETE", "/keys") == everybody

    @pytest.mark.parametrize("way", ["key", "session"])
    def test_who_may_change_users_does_not_become_a_superuser_by_way_of_a_key(
        self, world: World, name: str, way: str
    ) -> None:
        chiefs, clerks = world.keys.issue(CHIEF).key, world.keys.issue("105").text
        by: Any = {"key": clerks} if way == "key" else {"user": "105"}
        before = records(world)
        with mounted(name, world, REST(rights=ModelRights())) as site:
            for method, target, status in (
                ("GET", f"/keys?owner={CHIEF}", 403),
                ("POST", f"/keys?owner={CHIEF}", 403),
                ("POST", f"/keys/{chiefs.id}/rotate", 404),
                ("DELETE", f"/keys/{chiefs.id}", 404),
            ):
                assert site.ask(method, target, headers=SAME_SITE, **by).status == status
            assert records(world) == before
            chief = world.keys.issue(CHIEF).text
            assert site.ask("POST", f"/keys?owner={CHIEF}", key=chief).status == 201

    def test_the_visitor_may_nothing(self, world: World, name: str) -> None:
        before = records(world)
        with mounted(name, world, REST(rights=ModelRights())) as site:
            for method, target in (
                ("GET", "/keys"),
                ("POST", "/keys"),
                ("DELETE", "/keys"),
                ("GET", "/keys?owner=102"),
            ):
                assert code(site.ask(method, target)) == (401, "missing_key")
        assert records(world) == before

    def test_changes_hold_when_they_are_answered_whatever_becomes_of_the_requests_transaction(
        self, world: World, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from django.db import connection, connections

        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        inside = []

        class Watching(OwnKeys):
            def can_create(self, caller: Caller, owner: str, /) -> bool:
                inside.append(connection.in_atomic_block)
                return True

        with mounted(name, world, REST(rights=Watching())) as site:
            assert site.ask("POST", "/keys", key=world.keys.issue(ADA).text).status == 201
        assert inside == [False]


class TestKeysThatMakeKeys:
    @pytest.mark.parametrize(
        ("scopes", "may"),
        [
            (None, True),
            ([MANAGE], True),
            (["a", MANAGE], True),
            ([], False),
            (["a"], False),
            (["apikeys"], False),
        ],
    )
    def test_it_takes_all_scopes_or_the_one_for_it(
        self, rest: Site, world: World, scopes: Any, may: bool
    ) -> None:
        key = world.keys.issue(ADA, scopes=scopes)
        other = world.keys.issue(ADA)
        for method, target, body in [
            ("GET", "/keys", ""),
            ("GET", f"/keys/{other.key.id}", ""),
            ("PATCH", f"/keys/{other.key.id}", '{"name": "x"}'),
            ("POST", "/keys", '{"scopes": []}'),
            ("DELETE", f"/keys/{other.key.id}", ""),
        ]:
            before = records(world)
            answer = rest.ask(method, target, body, key=key.text)
            if may:
                assert answer.status < 300
            else:
                assert code(answer) == (403, "insufficient_scope")
                assert records(world) == before

    def test_what_is_not_said_is_the_makers(self, rest: Site, world: World) -> None:
        end = timedelta(days=3)
        maker = world.keys.issue(ADA, scopes=[MANAGE, "a"], addresses=["127.0.0.0/8"], expires_in=end)
        world.now += timedelta(days=1)
        new = made(rest.ask("POST", "/keys", key=maker.text))
        key = records(world)[new["id"]]
        assert (key.scopes, key.addresses) == ((MANAGE, "a"), ("127.0.0.0/8",))
        assert (key.expires_at, key.created_by) == (maker.key.expires_at, maker.key.id)

    def test_sensenets_keys_are_the_makers_too(self, world: World) -> None:
        end = timedelta(days=3)
        maker = world.keys.issue(ADA, scopes=[MANAGE, "a"], addresses=["127.0.0.0/8"], expires_in=end)
        for name in BOTH:
            with mounted(name, world, Sensenet(), "/odata.svc") as site:
                shown = json.loads(site.ask("POST", f"{USER}/CreateApiKey", key=maker.text).body)
            key = records(world)[shown["Id"]]
            assert (key.scopes, key.addresses) == ((MANAGE, "a"), ("127.0.0.0/8",))
            assert (key.expires_at, key.created_by) == (maker.key.expires_at, maker.key.id)

    @pytest.mark.parametrize(
        "fields",
        [
            {"scopes": []},
            {"scopes": ["a"]},
            {"scopes": ["a", MANAGE]},
            {"addresses": ["127.0.0.1"]},
            {"addresses": ["127.1.0.0/16", "127.0.0.0/8"]},
            {"addresses": []},
            {"expires_in": 1},
        ],
    )
    def test_less_than_its_own_may_be_asked_for(self, rest: Site, world: World, fields: Any) -> None:
        maker = world.keys.issue(ADA, scopes=[MANAGE, "a"], addresses=["127.0.0.0/8"])
        made(rest.ask("POST", "/keys", fields, key=maker.text))

    @pytest.mark.parametrize(
        "fields",
        [
            {"scopes": ["b"]},
            {"scopes": ["a", "b"]},
            {"scopes": ["A"]},
            {"addresses": ["0.0.0.0/0"]},
            {"addresses": ["126.0.0.0/7"]},
            {"addresses": ["127.0.0.1", "10.0.0.1"]},
            {"addresses": ["::1"]},
            {"addresses": ["::/0"]},
        ],
    )
    def test_more_than_its_own_is_forbidden(self, rest: Site, world: World, fields: Any) -> None:
        maker = world.keys.issue(ADA, scopes=[MANAGE, "a"], addresses=["127.0.0.0/8"])
        before = records(world)
        assert code(rest.ask("POST", "/keys", fields, key=maker.text)) == (403, "insufficient_scope")
        assert records(world) == before

    @pytest.mark.parametrize("life", [None, 10**9, 86400 * 3 + 1])
    def test_a_longer_life_ends_with_the_makers(self, rest: Site, world: World, life: Any) -> None:
        maker = world.keys.issue(ADA, expires_in=timedelta(days=3))
        new = made(rest.ask("POST", "/keys", {"expires_in": life}, key=maker.text))
        assert records(world)[new["id"]].expires_at == maker.key.expires_at

    def test_a_life_ends_with_the_makers_grace(self, rest: Site, world: World) -> None:
        maker = world.keys.issue(ADA)
        world.keys.rotate(maker.key.id, grace=timedelta(hours=1))
        new = made(rest.ask("POST", "/keys", key=maker.text))
        assert records(world)[new["id"]].expires_at == world.now + timedelta(hours=1)

    def test_a_key_for_ever_makes_keys_for_ever(self, rest: Site, world: World) -> None:
        maker = world.keys.issue(ADA, expires_in=None)
        new = made(rest.ask("POST", "/keys", {"expires_in": None}, key=maker.text))
        assert records(world)[new["id"]].expires_at is None

    def test_a_user_makes_any_key_of_their_own(self, rest: Site, world: World) -> None:
        fields = {"scopes": None, "addresses": None, "expires_in": None}
        new = made(rest.ask("POST", "/keys", fields, user=ADA, headers=SAME_SITE))
        key = records(world)[new["id"]]
        assert (key.scopes, key.addresses, key.expires_at, key.created_by) == (None, None, None, ADA)

    def test_an_administrators_key_gives_others_no_more_than_itself(self, rest: Site, world: World) -> None:
        maker = world.keys.issue(CHIEF, scopes=[MANAGE])
        new = made(rest.ask("POST", f"/keys?owner={BOB}", key=maker.text))
        assert records(world)[new["id"]].scopes == (MANAGE,)
        before = records(world)
        answer = rest.ask("POST", f"/keys?owner={BOB}", {"scopes": ["b"]}, key=maker.text)
        assert code(answer) == (403, "insufficient_scope")
        assert records(world) == before

    SCOPES = ("a\r\nSet-Cookie: x=1", 'a"', "a b", "é", "\u20ac", "", "\0")

    def test_a_scope_that_is_none_reaches_no_header(self, rest: Site, world: World) -> None:
        maker, victim = world.keys.issue(ADA, scopes=[MANAGE]), world.keys.issue(ADA, scopes=[])
        before = records(world)
        for scope in self.SCOPES:
            for method, target in (("POST", "/keys"), ("PATCH", f"/keys/{victim.key.id}")):
                answer = rest.ask(method, target, {"scopes": [scope]}, key=maker.text)
                assert answer.status in (400, 403)
                for _, value in answer.headers:
                    assert value.isascii()
                    assert value.isprintable()
                    assert 'scope="a""' not in value
        assert records(world) == before

    def test_a_scope_that_is_none_is_a_bad_request_whoever_asks(self, rest: Site, world: World) -> None:
        for scopes in (None, [MANAGE]):
            maker = world.keys.issue(ADA, scopes=scopes)
            for scope in self.SCOPES:
                answer = rest.ask("POST", "/keys", {"scopes": [scope]}, key=maker.text)
                assert code(answer) == (400, "bad_request"), (scopes, scope)

    def test_the_challenge_of_a_missing_scope_names_what_the_route_needs(
        self, rest: Site, world: World
    ) -> None:
        reader = world.keys.issue(ADA, scopes=["reports:read"])
        answer = rest.ask("GET", "/keys", key=reader.text)
        assert f'scope="{MANAGE}"' in answer.header("www-authenticate")

    def test_no_header_grows_with_what_a_request_asks_for(self, rest: Site, world: World) -> None:
        maker = world.keys.issue(ADA, scopes=[MANAGE])
        answer = rest.ask("POST", "/keys", {"scopes": ["a" * 60000]}, key=maker.text)
        assert answer.status in (400, 403)
        assert all(len(value) < 4096 for _, value in answer.headers)


class TestNothingIsWidened:
    """A narrow key is the maker; ``wide`` is a key of the same owner that may more."""

    @pytest.fixture
    def maker(self, world: World) -> Any:
        return world.keys.issue(ADA, scopes=[MANAGE, "a"], expires_in=timedelta(days=30))

    def refused(self, rest: Site, maker: Any, key: Any, fields: Any) -> None:
        before = records(rest.world)
        answer = rest.ask("PATCH", f"/keys/{key.key.id}", fields, key=maker.text)
        assert (answer.status, records(rest.world) == before) == (403, True)

    @pytest.mark.parametrize(
        "fields",
        [{"scopes": None}, {"scopes": ["b"]}, {"expires_at": None}, {"expires_at": "2026-07-02T00:00:00Z"}],
    )
    def test_another_key_gets_nothing_that_the_maker_has_not(
        self, rest: Site, world: World, maker: Any, fields: Any
    ) -> None:
        self.refused(rest, maker, world.keys.issue(ADA, scopes=[], expires_in=timedelta(days=1)), fields)

    @pytest.mark.parametrize(
        "fields", [{"scopes": None}, {"expires_at": None}, {"scopes": [MANAGE, "a", "b"]}]
    )
    def test_nor_does_the_maker_itself(self, rest: Site, maker: Any, fields: Any) -> None:
        self.refused(rest, maker, maker, fields)

    @pytest.mark.parametrize("addresses", [None, ["0.0.0.0/0"], ["10.0.0.0/8"], ["::/0"]])
    def test_addresses_of_the_makers_own_are_not_left(self, rest: Site, world: World, addresses: Any) -> None:
        maker = world.keys.issue(ADA, addresses=["127.0.0.0/8"])
        self.refused(rest, maker, maker, {"addresses": addresses})
        self.refused(rest, maker, world.keys.issue(ADA, addresses=[]), {"addresses": addresses})

    def test_a_wider_key_is_not_woken(self, rest: Site, world: World, maker: Any) -> None:
        wide = world.keys.issue(ADA)
        world.keys.edit(wide.key.id, disabled=True)
        self.refused(rest, maker, wide, {"disabled": False})

    def test_a_key_that_lives_longer_is_not_woken(self, rest: Site, world: World, maker: Any) -> None:
        long = world.keys.issue(ADA, scopes=["a"], expires_in=None)
        world.keys.edit(long.key.id, disabled=True)
        self.refused(rest, maker, long, {"disabled": False})

    def test_a_wider_key_that_has_expired_is_not_revived(self, rest: Site, world: World, maker: Any) -> None:
        wide = world.keys.issue(ADA, expires_in=timedelta(seconds=1))
        world.now += timedelta(seconds=1)
        self.refused(rest, maker, wide, {"expires_at": "2026-06-02T00:00:00Z"})

    def test_a_wider_key_is_not_prolonged(self, rest: Site, world: World, maker: Any) -> None:
        wide = world.keys.issue(ADA, expires_in=timedelta(days=1))
        self.refused(rest, maker, wide, {"expires_at": "2026-06-03T00:00:00Z"})

    def test_a_wider_key_is_not_let_in_from_more_addresses(
        self, rest: Site, world: World, maker: Any
    ) -> None:
        wide = world.keys.issue(ADA, addresses=["10.0.0.0/8"], expires_in=timedelta(days=1))
        self.refused(rest, maker, wide, {"addresses": None})

    def test_a_key_that_lives_longer_gets_no_scope(self, rest: Site, world: World, maker: Any) -> None:
        long = world.keys.issue(ADA, scopes=[], expires_in=timedelta(days=3650))
        self.refused(rest, maker, long, {"scopes": ["a"]})

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "x"},
            {"disabled": True},
            {"scopes": []},
            {"scopes": ["a"]},
            {"expires_at": "2026-06-01T12:00:01Z"},
            {"metadata": {"a": 1}},
        ],
    )
    def test_what_takes_away_is_allowed(self, rest: Site, world: World, maker: Any, fields: Any) -> None:
        wide = world.keys.issue(ADA, expires_in=timedelta(days=1))
        assert rest.ask("PATCH", f"/keys/{wide.key.id}", fields, key=maker.text).status == 200

    @pytest.mark.parametrize("wide", [{"scopes": None}, {"scopes": ["b"]}])
    def test_a_wider_key_is_not_rotated(self, rest: Site, world: World, maker: Any, wide: Any) -> None:
        key = world.keys.issue(ADA, **wide)
        before = records(world)
        answer = rest.ask("POST", f"/keys/{key.key.id}/rotate", key=maker.text)
        assert code(answer) == (403, "insufficient_scope")
        assert records(world) == before

    def test_a_key_of_other_addresses_is_not_rotated(self, rest: Site, world: World) -> None:
        maker = world.keys.issue(ADA, addresses=["127.0.0.0/8"])
        for addresses in (None, ["10.0.0.0/8"]):
            key = world.keys.issue(ADA, addresses=addresses)
            before = records(world)
            assert rest.ask("POST", f"/keys/{key.key.id}/rotate", key=maker.text).status == 403
            assert records(world) == before

    @pytest.mark.parametrize("life", [{}, {"expires_in": None}, {"expires_in": 10**9}])
    def test_a_successor_lives_no_longer_than_the_maker(
        self, rest: Site, world: World, maker: Any, life: Any
    ) -> None:
        key = world.keys.issue(ADA, scopes=["a"])
        new = made(rest.ask("POST", f"/keys/{key.key.id}/rotate", life, key=maker.text))
        assert records(world)[new["id"]].expires_at == maker.key.expires_at

    def test_another_owners_key_is_out_of_reach_of_any_key(self, rest: Site, world: World) -> None:
        mine, theirs = world.keys.issue(ADA), world.keys.issue(BOB)
        before = records(world)
        for method, below in (("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
            assert rest.ask(method, f"/keys/{theirs.key.id}{below}", b"{}", key=mine.text).status == 404
        assert records(world) == before


class Meddling:
    """A store in which something happens at a chosen moment, once."""

    def __init__(self, store: Any, when: Callable[[str, Any], bool], then: Callable[[], Any]) -> None:
        self.store, self.when, self.then = store, when, then

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if self.when(name, args):
                self.when = lambda name, args: False
                self.then()
            return answer

        return call


def twice(wanted: str) -> Callable[[str, Any], bool]:
    """Say yes when a key is read for the second time: once to let the request in, once afresh."""
    seen = []

    def when(name: str, args: Any) -> bool:
        if name == "get" and args == (wanted,):
            seen.append(name)
        return len(seen) == 2

    return when


@pytest.mark.parametrize("name", BOTH)
class TestMeanwhile:
    """The maker is revoked, or loses a right, while its request runs."""

    @pytest.mark.parametrize(
        ("method", "target", "body"),
        [
            ("GET", "/keys", ""),
            ("POST", "/keys", ""),
            ("GET", "/keys/ID", ""),
            ("PATCH", "/keys/ID", '{"name": "x"}'),
            ("DELETE", "/keys/ID", ""),
            ("POST", "/keys/ID/rotate", ""),
            ("DELETE", "/keys", ""),
        ],
    )
    def test_the_maker_is_read_afresh_before_anything_is_done(
        self, world: World, name: str, method: str, target: str, body: str
    ) -> None:
        maker, other = world.keys.issue(CHIEF), world.keys.issue(ADA)
        inner, manager = world.store, world.keys
        before = {**records(world), maker.key.id: None}
        world.store = Meddling(
            inner,
            lambda name, args: name == "get" and args == (maker.key.id,),
            lambda: manager.revoke(maker.key.id),
        )
        with mounted(name, world, REST(rights=RIGHTS)) as site:
            answer = site.ask(method, target.replace("ID", other.key.id), body, key=maker.text)
        world.store = inner
        assert code(answer) == (401, "revoked_key")
        assert {**records(world), maker.key.id: None} == before

    @pytest.mark.parametrize(
        ("lost", "refusal"),
        [
            ("revoke", (401, "revoked_key")),
            ("disable", (401, "disabled_key")),
            ("expire", (401, "expired_key")),
            ("descope", (403, "insufficient_scope")),
            ("narrow", (403, "insufficient_scope")),
            ("fence", (403, "insufficient_scope")),
            ("shorten", (403, "insufficient_scope")),
            ("purge", (401, "invalid_key")),
        ],
    )
    @pytest.mark.parametrize("act", ["create", "rotate"])
    def test_a_maker_that_loses_the_right_as_it_makes_one_makes_none(
        self, world: World, name: str, lost: str, refusal: tuple[int, str], act: str
    ) -> None:
        maker = world.keys.issue(ADA, scopes=[MANAGE, "a"], expires_in=timedelta(days=9))
        other = world.keys.issue(ADA, scopes=["a"], addresses=["127.0.0.0/8"], expires_in=timedelta(days=5))
        inner, manager, maker_id = world.store, world.keys, maker.key.id
        deeds: dict[str, Callable[[], Any]] = {
            "revoke": lambda: manager.revoke(maker_id),
            "disable": lambda: manager.edit(maker_id, disabled=True),
            "expire": lambda: manager.edit(maker_id, expires_at=world.now),
            "descope": lambda: manager.edit(maker_id, scopes=["a"]),
            "narrow": lambda: manager.edit(maker_id, scopes=[MANAGE]),
            "fence": lambda: manager.edit(maker_id, addresses=["10.0.0.0/8"]),
            "shorten": lambda: manager.edit(maker_id, expires_at=world.now + timedelta(hours=1)),
            "purge": lambda: inner._keys.pop(maker_id),
        }
        before = living(world)
        wanted = {"create": "add", "rotate": "swap"}[act]
        world.store = Meddling(inner, lambda name, args: name == wanted, deeds[lost])
        with mounted(name, world, REST(rights=RIGHTS)) as site:
            if act == "create":
                answer = site.ask("POST", "/keys", {"scopes": ["a"]}, key=maker.text)
            else:
                answer = site.ask("POST", f"/keys/{other.key.id}/rotate", key=maker.text)
        world.store = inner
        assert code(answer) == refusal
        assert b'"text"' not in answer.body
        assert living(world) <= before
        (new,) = [key for key in records(world).values() if key.id not in {maker_id, other.key.id}]
        assert new.revoked_at is not None

    def test_a_maker_that_was_revoked_with_its_descendants_leaves_none(self, world: World, name: str) -> None:
        maker = world.keys.issue(ADA)
        inner, manager = world.store, world.keys
        world.store = Meddling(
            inner, lambda name, args: name == "add", lambda: manager.revoke(maker.key.id, descendants=True)
        )
        with mounted(name, world, Sensenet(), "/odata.svc") as site:
            assert site.ask("POST", f"{USER}/CreateApiKey", key=maker.text).status == 401
        world.store = inner
        assert living(world) == set()

    def test_a_key_that_is_widened_as_it_is_rotated_gives_the_maker_nothing(
        self, world: World, name: str
    ) -> None:
        maker = world.keys.issue(ADA, scopes=[MANAGE])
        other = world.keys.issue(ADA, scopes=[])
        inner, manager = world.store, world.keys
        world.store = Meddling(
            inner,
            lambda name, args: name == "get" and args == (other.key.id,),
            lambda: manager.edit(other.key.id, scopes=None),
        )
        with mounted(name, world, REST(rights=RIGHTS)) as site:
            answer = site.ask("POST", f"/keys/{other.key.id}/rotate", key=maker.text)
        world.store = inner
        assert answer.status == 403
        assert b'"text"' not in answer.body
        assert [
            key.id for key in records(world).values() if key.id in living(world) and key.scopes is None
        ] in (
            [],
            [other.key.id],
        )

    def test_a_key_that_is_narrowed_as_it_is_edited_is_not_widened_again(
        self, world: World, name: str
    ) -> None:
        """From a and b to a is less, from nothing to a is more than this maker has to give."""
        maker = world.keys.issue(ADA, scopes=[MANAGE])
        other = world.keys.issue(ADA, scopes=["a", "b"])
        inner, manager = world.store, world.keys
        world.store = Meddling(
            inner,
            lambda name, args: name == "get" and args == (other.key.id,),
            lambda: manager.edit(other.key.id, scopes=[]),
        )
        with mounted(name, world, REST(rights=RIGHTS)) as site:
            site.ask("PATCH", f"/keys/{other.key.id}", {"scopes": ["a"]}, key=maker.text)
        world.store = inner
        assert records(world)[other.key.id].scopes == ()

    @pytest.mark.parametrize("read", [2, 3, 4])
    def test_a_key_that_is_shortened_as_it_rotates_itself_leaves_none_that_lives_longer(
        self, world: World, name: str, read: int
    ) -> None:
        key = world.keys.issue(ADA, expires_in=timedelta(days=300))
        world.now += timedelta(days=10)
        end = world.now + timedelta(days=1)
        inner, manager, seen = world.store, world.keys, []

        def when(name: str, args: Any) -> bool:
            seen.append((name, args))
            return seen.count(("get", (key.key.id,))) == read

        world.store = Meddling(inner, when, lambda: manager.edit(key.key.id, expires_at=end))
        with mounted(name, world, REST(rights=RIGHTS)) as site:
            site.ask("POST", f"/keys/{key.key.id}/rotate", key=key.text)
        world.store = inner
        for record in records(world).values():
            assert record.revoked_at is not None or record.expires_at <= end


class TestDescendants:
    def test_the_whole_chain_goes_through_rotations_and_links_that_were_revoked_before(
        self, rest: Site, world: World
    ) -> None:
        root = world.keys.issue(ADA)
        child = made(rest.ask("POST", "/keys", key=root.text))
        rotated = made(rest.ask("POST", f"/keys/{child['id']}/rotate", key=root.text))
        grandchild = made(rest.ask("POST", "/keys", key=rotated["text"]))
        great = made(rest.ask("POST", "/keys", key=grandchild["text"]))
        turned = made(rest.ask("POST", f"/keys/{great['id']}/rotate", {"grace": 60}, key=grandchild["text"]))
        aside = made(rest.ask("POST", "/keys", key=world.keys.issue(ADA).text))
        world.keys.revoke(grandchild["id"], reason="before")
        assert (
            rest.ask("DELETE", f"/keys/{root.key.id}?descendants=true", user=ADA, headers=SAME_SITE).status
            == 204
        )
        gone = {root.key.id, child["id"], rotated["id"], grandchild["id"], great["id"], turned["id"]}
        assert gone & living(world) == set()
        assert aside["id"] in living(world)
        assert records(world)[grandchild["id"]].revoked_reason == "before"

    def test_a_root_that_was_revoked_before_still_takes_its_descendants(
        self, rest: Site, world: World
    ) -> None:
        root = world.keys.issue(ADA)
        child = made(rest.ask("POST", "/keys", key=root.text))
        world.keys.revoke(root.key.id)
        assert (
            rest.ask("DELETE", f"/keys/{root.key.id}?descendants=true", user=ADA, headers=SAME_SITE).status
            == 204
        )
        assert child["id"] not in living(world)

    def test_a_key_may_end_itself_and_all_that_it_made(self, rest: Site, world: World) -> None:
        root = world.keys.issue(ADA)
        child = made(rest.ask("POST", "/keys", key=root.text))
        assert rest.ask("DELETE", f"/keys/{root.key.id}?descendants=true", key=root.text).status == 204
        assert {root.key.id, child["id"]} & living(world) == set()

    def test_a_child_does_not_take_its_maker_along(self, rest: Site, world: World) -> None:
        root = world.keys.issue(ADA)
        child = made(rest.ask("POST", "/keys", key=root.text))
        sibling = made(rest.ask("POST", "/keys", key=root.text))
        rest.ask("DELETE", f"/keys/{child['id']}?descendants=true", key=root.text)
        assert {root.key.id, sibling["id"]} <= living(world)
        assert child["id"] not in living(world)

    def test_the_successor_of_a_rotated_key_goes_with_it(self, rest: Site, world: World) -> None:
        root = world.keys.issue(ADA)
        successor = world.keys.rotate(root.key.id, grace=timedelta(hours=1))
        rest.ask("DELETE", f"/keys/{root.key.id}?descendants=true", user=ADA, headers=SAME_SITE)
        assert {root.key.id, successor.key.id} & living(world) == set()

    def test_what_a_key_got_by_rotating_another_goes_with_it(self, rest: Site, world: World) -> None:
        leaked, other = world.keys.issue(ADA), world.keys.issue(ADA)
        taken = made(rest.ask("POST", f"/keys/{other.key.id}/rotate", key=leaked.text))
        rest.ask("DELETE", f"/keys/{leaked.key.id}?descendants=true", user=ADA, headers=SAME_SITE)
        assert taken["id"] not in living(world)

    def test_what_was_made_by_a_key_goes_with_it_whoever_rotated_it_since(
        self, rest: Site, world: World
    ) -> None:
        root, other = world.keys.issue(ADA), world.keys.issue(ADA)
        child = made(rest.ask("POST", "/keys", key=root.text))
        turned = made(rest.ask("POST", f"/keys/{child['id']}/rotate", key=other.text))
        rest.ask("DELETE", f"/keys/{root.key.id}?descendants=true", user=ADA, headers=SAME_SITE)
        assert turned["id"] not in living(world)

    def test_what_a_user_made_without_a_key_descends_from_none(self, rest: Site, world: World) -> None:
        key = made(rest.ask("POST", "/keys", user=ADA, headers=SAME_SITE))
        other = world.keys.issue(ADA)
        rest.ask("DELETE", f"/keys/{other.key.id}?descendants=true", user=ADA, headers=SAME_SITE)
        assert living(world) == {key["id"]}


# A model of its own: a key is the set of requests that it lets in, now and later.

SCOPES = ("a", "b", MANAGE, "something else")
ADDRESSES = ("127.0.0.1", "10.1.2.3", "10.1.9.9", "10.9.9.9", "192.168.0.1", "203.0.113.5", "2001:db8::1")
LATER = tuple(map(timedelta, (0, 1, 29, 31, 364, 366, 5000)))
Request = tuple[str, str, str, datetime]


def lets_in(key: APIKey, times: list[datetime]) -> set[Request]:
    """List the requests, out of a good sample, that a key lets in: as whom, for what, from where, when."""
    if key.revoked_at is not None or key.disabled:
        return set()
    ends = [end for end in (key.expires_at, key.grace_until) if end is not None]
    return {
        (key.owner, scope, address, time)
        for scope in SCOPES
        if key.scopes is None or scope in key.scopes
        for address in ADDRESSES
        if key.addresses is None or any(ip_address(address) in ip_network(block) for block in key.addresses)
        for time in times
        if all(time < end for end in ends)
    }


@dataclass(frozen=True)
class Step:
    """One thing that somebody tries; numbers choose among what there is by then."""

    kind: str
    who: int
    way: str
    target: int
    owner: str | None
    scopes: tuple[str, ...] | None
    addresses: tuple[str, ...] | None
    seconds: float | None
    field: str
    address: str


scopes = st.none() | st.lists(st.sampled_from(SCOPES[:3]), max_size=3, unique=True).map(tuple)
blocks = st.sampled_from(
    ["127.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "::/0", "2001:db8::/32"]
)
addresses = st.none() | st.lists(blocks, max_size=2, unique=True).map(tuple)
seconds = st.none() | st.sampled_from([1, 60.0, 86400 * 2, 86400 * 30, 86400 * 365, 86400 * 3650])
steps = st.builds(
    Step,
    kind=st.sampled_from(
        ["create", "create", "edit", "edit", "edit", "rotate", "delete", "sensenet", "wait"]
    ),
    who=st.integers(0, 30),
    way=st.sampled_from(["key", "key", "key", "key", "session", "visitor"]),
    target=st.integers(0, 30),
    owner=st.none() | st.sampled_from([ADA, BOB, CHIEF]),
    scopes=scopes,
    addresses=addresses,
    seconds=seconds,
    field=st.sampled_from(["scopes", "addresses", "expires_at", "enable", "disable", "name", "two"]),
    address=st.sampled_from(["127.0.0.1", "127.0.0.1", "10.1.2.3", "203.0.113.5"]),
)
firsts = st.lists(
    st.tuples(st.sampled_from([ADA, BOB, CHIEF]), scopes, addresses, seconds), min_size=2, max_size=4
)


class Play:
    """Plays steps over both dialects, and knows before each what it may lead to."""

    def __init__(self, first: Any) -> None:
        self.world = a_world()
        self.texts: dict[str, str] = {}
        for owner, scopes, addresses, seconds in first:
            life = None if seconds is None else timedelta(seconds=seconds)
            issued = self.world.keys.issue(owner, scopes=scopes, addresses=addresses, expires_in=life)
            self.texts[issued.key.id] = issued.text

    @staticmethod
    def may_manage(caller: str | None, owner: str) -> bool:
        return caller is not None and caller in (CHIEF, owner)

    def request(self, step: Step, target: APIKey) -> tuple[str, str, Any]:
        life = {} if step.seconds is None else {"expires_in": step.seconds}
        end = None if step.seconds is None else self.world.now + timedelta(seconds=step.seconds)
        fields: dict[str, Any] = {
            "scopes": {"scopes": step.scopes},
            "addresses": {"addresses": step.addresses},
            "expires_at": {"expires_at": end and end.isoformat()},
            "enable": {"disabled": False},
            "disable": {"disabled": True},
            "name": {"name": "x"},
            "two": {"scopes": step.scopes, "addresses": step.addresses, "disabled": False},
        }
        whose = f"?owner={step.owner}" if step.owner else ""
        return {
            "create": ("POST", f"/keys{whose}", {"scopes": step.scopes, "addresses": step.addresses, **life}),
            "edit": ("PATCH", f"/keys/{target.id}", fields[step.field]),
            "rotate": (
                "POST",
                f"/keys/{target.id}/rotate",
                {"grace": 60, **life} if step.field == "name" else life,
            ),
            "delete": ("DELETE", f"/keys/{target.id}", ""),
            "sensenet": ("POST", f"/odata.svc/('{step.owner or ADA}')/CreateApiKey", ""),
        }[step.kind]

    def run(self, todo: list[Step], check: Callable[..., None]) -> None:
        proxies = ["127.0.0.1"]
        with (
            mounted("wsgi", self.world, REST(rights=RIGHTS), trusted_proxies=proxies) as rest,
            mounted(
                "wsgi", self.world, Sensenet(rights=RIGHTS), "/odata.svc", trusted_proxies=proxies
            ) as sensenet,
        ):
            for step in todo:
                if step.kind == "wait":
                    self.world.now += timedelta(seconds=step.seconds or 1)
                    continue
                before = records(self.world)
                keys = sorted(before.values(), key=lambda key: (key.created_at, key.id))
                target = keys[step.target % len(keys)]
                method, path, body = self.request(step, target)
                headers = (("X-Forwarded-For", step.address), *SAME_SITE)
                by: dict[str, Any] = {}
                owner, maker = None, None
                if step.way == "key":
                    maker = keys[step.who % len(keys)]
                    owner, by["key"] = maker.owner, self.texts[maker.id]
                elif step.way == "session":
                    owner = by["user"] = (ADA, BOB, CHIEF)[step.who % 3]
                site = sensenet if step.kind == "sensenet" else rest
                answer = site.ask(method, path, body, headers=headers, **by)
                assert answer.status < 500
                if b'"text"' in answer.body or b'"Value"' in answer.body:
                    shown = json.loads(answer.body)
                    text = shown.get("text") or shown["Value"]
                    self.texts[self.world.scheme.parse(text).id] = text
                check(self, step, owner, maker, before, answer)

    def let_in_from(self, maker: APIKey, address: str) -> bool:
        wanted = (maker.owner, MANAGE, address, self.world.now)
        return wanted in lets_in(replace(maker), [self.world.now])


def nothing_is_gained(
    play: Play, step: Step, owner: str | None, maker: APIKey | None, before: dict[str, APIKey], answer: Answer
) -> None:
    times = [play.world.now + later for later in LATER]
    at_most: set[tuple[str, str, datetime]] | None = None  # None: a user signed in, who may all
    if maker is not None:
        at_most = {request[1:] for request in lets_in(maker, times)}
        if not play.let_in_from(maker, step.address):
            at_most = set()
    for key_id, key in records(play.world).items():
        had = lets_in(before[key_id], times) if key_id in before else set()
        gained = lets_in(key, times) - had
        if gained:
            assert play.may_manage(owner, key.owner)
            assert at_most is None or {request[1:] for request in gained} <= at_most
        if key_id in before:
            assert (key.owner, key.digest) == (before[key_id].owner, before[key_id].digest)
            assert key == before[key_id] or play.may_manage(owner, key.owner)


def a_refusal_changes_nothing(
    play: Play, step: Step, owner: str | None, maker: APIKey | None, before: dict[str, APIKey], answer: Answer
) -> None:
    if answer.status >= 400:
        assert records(play.world) == before


QUICK = settings(max_examples=120, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(firsts, st.lists(steps, min_size=1, max_size=8))
def test_nobody_gains_a_key_a_scope_an_address_or_an_hour_that_they_could_not_have(
    first: Any, todo: list[Step]
) -> None:
    Play(first).run(todo, nothing_is_gained)


@QUICK
@given(firsts, st.lists(steps, min_size=1, max_size=8))
def test_a_refused_change_changes_nothing(first: Any, todo: list[Step]) -> None:
    Play(first).run(todo, a_refusal_changes_nothing)


def test_the_model_sees_what_the_library_sees() -> None:
    """Guard the model: a key lets in what the authenticator lets in."""
    world = a_world()
    for scopes, addresses, life in [
        (None, None, None),
        (["a"], ["10.0.0.0/8"], timedelta(days=30)),
        ([], [], timedelta(days=1)),
    ]:
        issued = world.keys.issue(ADA, scopes=scopes, addresses=addresses, expires_in=life)
        start = world.now
        expected = lets_in(issued.key, [start + later for later in LATER])
        for later in LATER:
            world.now = start + later
            for scope in SCOPES:
                for address in ADDRESSES:
                    try:
                        world.authenticator().authenticate(issued.text, address=address, scopes=[scope])
                        entered = True
                    except Exception:
                        entered = False
                    assert entered == ((ADA, scope, address, world.now) in expected)
        world.now = start
