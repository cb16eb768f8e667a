"""Django: settings, system checks, the user on the request, CSRF, sessions, sync and async."""

from collections.abc import Iterator
from typing import Any

import pytest
from applications import World, django_settings
from asgiref.sync import async_to_sync
from django.core.checks import run_checks
from django.test import AsyncClient, Client, override_settings

from apikey_auth import ConfigurationError, Inline, MemoryKeyStore
from apikey_auth.django import get_async_key_manager, get_key_manager, require_api_key
from apikey_auth.django.conf import setup

OURS = "apikey_auth.django.middleware.APIKeyMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
CSRF = "django.middleware.csrf.CsrfViewMiddleware"

SHARED_STORE = MemoryKeyStore()


@pytest.fixture
def configured(world: World) -> Iterator[None]:
    with django_settings(world, {}):
        setup().authenticator._clock = setup().async_authenticator._clock = world.clock
        yield


def key(world: World, **fields: Any) -> dict[str, str]:
    return {"apikey": world.keys.issue("1", **fields).text}


@pytest.fixture
def ada() -> Any:
    from django.contrib.auth.models import User

    return User.objects.get(pk=1)


@pytest.mark.usefixtures("configured")
class TestRequest:
    def test_the_user_is_the_projects_own_model(self, world: World, ada: Any) -> None:
        request = Client().get("/me", headers=key(world)).wsgi_request
        assert type(request.user) is type(ada)
        assert request.user == ada
        assert request.api_key == world.keys.list("1")[0]
        assert async_to_sync(request.auser)() == ada

    def test_without_a_key_there_is_no_api_key(self) -> None:
        assert Client().get("/public").wsgi_request.api_key is None

    async def test_async_views_have_the_same_user(self, world: World) -> None:
        answer = await AsyncClient().get("/whoami", headers=key(world))
        assert answer.json() == {"user": "ada"}

    def test_parameters_that_were_parsed_before_lose_the_key(self, world: World) -> None:
        with override_settings(MIDDLEWARE=[f"{__name__}.parse_early", OURS]):
            answer = Client().get(f"/parameters?a=1&apikey={key(world)['apikey']}")
        assert answer.json() == {"get": {"a": ["1"]}, "full": "/parameters?a=1"}

    async def test_the_servers_scope_loses_the_key(self, world: World) -> None:
        answer = await AsyncClient().get(f"/parameters?a=1&apikey={key(world)['apikey']}")
        assert answer.asgi_request.scope["query_string"] == b"a=1"

    def test_a_key_beats_the_sessions_user(self, world: World, ada: Any) -> None:
        client = Client()
        with override_settings(MIDDLEWARE=[SESSIONS, AUTHENTICATION, OURS]):
            client.force_login(someone_else())
            assert client.get("/public").json()["user"] == "eve"
            assert client.get("/public", headers=key(world)).json()["user"] == "ada"
            assert client.get("/public").json()["user"] == "eve"

    def test_a_users_database_that_is_down_is_no_bad_key(self, world: World, monkeypatch: Any) -> None:
        from django.contrib.auth.models import User
        from django.db import OperationalError

        def down(**_: Any) -> Any:
            raise OperationalError("connection refused")

        monkeypatch.setattr(User._default_manager, "get", down)
        assert Client().get("/me", headers=key(world)).json()["code"] == "store_unavailable"


@pytest.mark.usefixtures("configured")
class TestCSRF:
    @pytest.fixture(autouse=True)
    def protected(self) -> Iterator[None]:
        with override_settings(MIDDLEWARE=[SESSIONS, CSRF, AUTHENTICATION, OURS]):
            yield

    def test_a_good_key_in_a_header_needs_no_token(self, world: World) -> None:
        assert Client(enforce_csrf_checks=True).post("/form", headers=key(world)).json() == {"user": "ada"}

    async def test_nor_does_it_in_async(self, world: World) -> None:
        answer = await AsyncClient(enforce_csrf_checks=True).post("/form", headers=key(world))
        assert answer.status_code == 200

    def test_a_key_in_the_url_does_not_switch_the_protection_off(self, world: World) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(someone_else())
        assert client.post(f"/form?apikey={key(world)['apikey']}").status_code == 403

    def test_a_key_in_both_places_does_not_either(self, world: World) -> None:
        headers = key(world)
        client = Client(enforce_csrf_checks=True)
        assert client.post(f"/form?apikey={headers['apikey']}", headers=headers).status_code == 403

    def test_a_visitor_needs_a_token(self) -> None:
        assert Client(enforce_csrf_checks=True).post("/form").status_code == 403

    def test_a_bad_key_let_in_as_a_visitor_needs_a_token(self, world: World) -> None:
        with django_settings(world, {"on_invalid": "anonymous"}):
            answer = Client(enforce_csrf_checks=True).post("/form", headers={"apikey": "nonsense"})
        assert answer.status_code == 403


def someone_else() -> Any:
    from django.contrib.auth.models import User

    return User.objects.get_or_create(username="eve")[0]


def parse_early(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        assert "apikey" in request.GET
        return get_response(request)

    return middleware


class TestSettings:
    def messages(self, **settings: Any) -> list[str]:
        with override_settings(**settings):
            return [message.id for message in run_checks() if message.id.startswith("apikey_auth")]

    def test_a_good_project_passes_the_checks(self) -> None:
        good = [SESSIONS, AUTHENTICATION, OURS]
        assert self.messages(APIKEY_AUTH={"STORE": MemoryKeyStore()}, MIDDLEWARE=good) == []

    @pytest.mark.parametrize(
        "setting",
        [
            None,
            {"STORE": None},
            {"STORE": MemoryKeyStore(), "REQUIERD": True},
            {"STORE": MemoryKeyStore(), "PREFIX": "no prefix"},
            {"STORE": MemoryKeyStore(), "EXEMPT": "/health"},
            {"STORE": MemoryKeyStore(), "PEPPERS": ["short"]},
            {"STORE": "nowhere.to.be.found"},
            {"STORE": object()},
        ],
    )
    def test_a_setting_that_will_not_do_is_e001(self, setting: Any) -> None:
        assert self.messages(APIKEY_AUTH=setting) == ["apikey_auth.E001"]

    def test_the_middleware_before_authentication_is_e002(self) -> None:
        wrong = [SESSIONS, OURS, AUTHENTICATION]
        assert self.messages(APIKEY_AUTH={"STORE": MemoryKeyStore()}, MIDDLEWARE=wrong) == [
            "apikey_auth.E002"
        ]

    def test_no_middleware_is_w001(self) -> None:
        assert self.messages(APIKEY_AUTH={"STORE": MemoryKeyStore()}, MIDDLEWARE=[]) == ["apikey_auth.W001"]

    def test_an_unknown_name_is_answered_with_the_known_ones(self) -> None:
        with (
            override_settings(APIKEY_AUTH={"STORE": MemoryKeyStore(), "REQUIERD": True}),
            pytest.raises(ConfigurationError, match=r"no REQUIERD; it has STORE, PREFIX.*REQUIRED"),
        ):
            setup()

    def test_the_store_may_be_a_dotted_path_or_a_factory(self) -> None:
        with override_settings(APIKEY_AUTH={"STORE": f"{__name__}.SHARED_STORE"}):
            assert setup().authenticator.store is SHARED_STORE
        with override_settings(APIKEY_AUTH={"STORE": "apikey_auth.MemoryKeyStore"}):
            assert isinstance(setup().authenticator.store, MemoryKeyStore)

    def test_managers_of_both_colours_manage_the_same_keys(self, world: World) -> None:
        with django_settings(world, {}):
            issued = get_key_manager().issue("1", name="CI")
            assert async_to_sync(get_async_key_manager().get)(issued.key.id) == issued.key

    def test_an_async_store_serves_async_views_and_says_so_to_others(self, world: World) -> None:
        with override_settings(APIKEY_AUTH={"STORE": Inline(world.store)}):
            issued = async_to_sync(get_async_key_manager().issue)("1")
            assert world.store.get(issued.key.id) == issued.key
            with pytest.raises(ConfigurationError, match="async"):
                get_key_manager()

    def test_the_decorator_explains_a_missing_pair_of_parentheses(self) -> None:
        with pytest.raises(TypeError, match="parentheses"):
            require_api_key(lambda request: None)  # type: ignore[arg-type]

    def test_requiring_a_key_without_the_middleware_says_what_is_missing(self) -> None:
        with (
            override_settings(MIDDLEWARE=[]),
            pytest.raises(ConfigurationError, match="add it to the application"),
        ):
            Client().get("/me")


@pytest.mark.usefixtures("configured")
def test_a_query_string_beyond_ascii_stays_what_it_was(world: World) -> None:
    from calling import Request, call_asgi
    from django.core.handlers.asgi import ASGIHandler

    raw = "é".encode().decode("latin-1")
    for query in (f"a={raw}", f"a={raw}&apikey={key(world)['apikey']}"):
        answer = call_asgi(ASGIHandler(), Request(f"/parameters?{query}"))
        assert answer.holder["query_string"] == "a=é".encode()


class TestStart:
    """What is wrong with a project is said when it starts, not by its first request."""

    def test_the_middleware_before_authentication_does_not_start(self, world: World) -> None:
        from django.core.handlers.wsgi import WSGIHandler

        with django_settings(world, {}), override_settings(MIDDLEWARE=[SESSIONS, OURS, AUTHENTICATION]):
            with pytest.raises(ConfigurationError, match="stands before AuthenticationMiddleware"):
                WSGIHandler()

    def test_a_setting_that_will_not_do_does_not_start(self, world: World) -> None:
        from django.core.handlers.asgi import ASGIHandler
        from django.core.handlers.wsgi import WSGIHandler

        with django_settings(world, {"requierd": True}):
            for handler in (WSGIHandler, ASGIHandler):
                with pytest.raises(ConfigurationError, match="no REQUIERD"):
                    handler()

    def test_an_async_store_does_not_start_under_wsgi(self, world: World) -> None:
        from django.core.handlers.asgi import ASGIHandler
        from django.core.handlers.wsgi import WSGIHandler

        with override_settings(APIKEY_AUTH={"STORE": Inline(world.store)}):
            with pytest.raises(ConfigurationError, match="or a store that is not"):
                WSGIHandler()
            ASGIHandler()


@pytest.mark.usefixtures("configured")
class TestSpellings:
    """One user has one id, one path one spelling."""

    @pytest.mark.parametrize("owner", ["01", " 1", "0_1", "\u0661"])
    def test_an_owner_that_is_not_the_users_id_to_the_letter_is_nobody(
        self, world: World, owner: str
    ) -> None:
        answer = Client().get("/me", headers={"apikey": world.keys.issue(owner).text})
        assert answer.json()["code"] == "inactive_user"

    @pytest.mark.parametrize("path", ["/%C3%B6ff/x", "/%C3%83%C2%B6ff/x"])
    def test_exempt_paths_beyond_ascii_mean_themselves(self, world: World, path: str) -> None:
        from calling import Request, call_asgi, call_wsgi
        from django.core.handlers.asgi import ASGIHandler
        from django.core.handlers.wsgi import WSGIHandler

        expected = 404 if path == "/%C3%B6ff/x" else 401
        with django_settings(world, {"required": True, "exempt": ["/\u00f6ff/"]}):
            assert call_wsgi(WSGIHandler(), Request(path)).status == expected
            assert call_asgi(ASGIHandler(), Request(path)).status == expected

    def test_the_middleware_twice_changes_nothing(self, world: World) -> None:
        with override_settings(MIDDLEWARE=[OURS, OURS]):
            request = Client().get(f"/me?apikey={key(world)['apikey']}").wsgi_request
        assert request.api_key.owner == "1"


def test_a_url_key_exempts_from_csrf_behind_no_number_of_middlewares(world: World) -> None:
    with (
        django_settings(world, {}),
        override_settings(MIDDLEWARE=[SESSIONS, CSRF, AUTHENTICATION, OURS, OURS]),
    ):
        headers = key(world)
        client = Client(enforce_csrf_checks=True)
        assert client.post(f"/form?apikey={headers['apikey']}", headers=headers).status_code == 403
