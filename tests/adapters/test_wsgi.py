"""Plain WSGI: where the identity is put, nesting, mounting, and what an application may do meanwhile."""

from typing import Any

import pytest
from applications import World
from calling import Request, call_wsgi
from werkzeug.test import Client, create_environ

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    ConfigurationError,
    Inline,
    InsufficientScope,
    MissingKey,
)
from apikey_auth.wsgi import APIKeyMiddleware, require


def saying_ok(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


class CountingStore:
    def __init__(self, store: Any) -> None:
        self.store, self.calls = store, 0

    def get(self, key_id: str, /) -> Any:
        self.calls += 1
        return self.store.get(key_id)


def with_key(world: World, target: str = "/", **fields: Any) -> Request:
    return Request(target, (("apikey", world.keys.issue("1", **fields).text),))


def test_the_identity_and_its_owner_are_on_the_environ(world: World) -> None:
    answer = call_wsgi(APIKeyMiddleware(saying_ok, world.authenticator()), with_key(world))
    assert answer.holder["apikey_auth.identity"].user is world.users["1"]
    assert answer.holder["REMOTE_USER"] == "1"


def test_a_visitor_leaves_the_servers_remote_user_alone(world: World) -> None:
    def as_apache(environ: Any, start_response: Any) -> Any:
        environ["REMOTE_USER"] = "from-the-server"
        return APIKeyMiddleware(saying_ok, world.authenticator())(environ, start_response)

    answer = call_wsgi(as_apache, Request("/"))
    assert "apikey_auth.identity" not in answer.holder
    assert answer.holder["REMOTE_USER"] == "from-the-server"


def test_a_second_middleware_reuses_the_identity_it_finds(world: World) -> None:
    request = with_key(world)
    world.store = store = CountingStore(world.store)
    auth = world.authenticator()
    answer = call_wsgi(APIKeyMiddleware(APIKeyMiddleware(saying_ok, auth, required=True), auth), request)
    assert (answer.status, store.calls) == (200, 1)


def test_a_second_middleware_finds_a_url_key_that_the_first_cut_out(world: World) -> None:
    auth = world.authenticator()
    nested = APIKeyMiddleware(APIKeyMiddleware(saying_ok, auth, required=True), auth)
    assert call_wsgi(nested, Request(f"/?apikey={world.keys.issue('1').text}")).status == 200


def test_an_identity_of_another_authenticator_opens_nothing(world: World) -> None:
    partners, administrators = world.authenticator(), World().authenticator()
    nested = APIKeyMiddleware(APIKeyMiddleware(saying_ok, administrators, required=True), partners)
    answer = call_wsgi(nested, with_key(world))
    assert (answer.status, b"invalid_key" in answer.body) == (401, True)


def test_exempt_paths_are_below_the_mount_point(world: World) -> None:
    app = APIKeyMiddleware(saying_ok, world.authenticator(), required=True, exempt=["/health"])
    assert call_wsgi(app, Request("/health", mount="/app")).status == 200
    assert call_wsgi(app, Request("/app/health")).status == 401


def test_exempt_paths_may_hold_any_character(world: World) -> None:
    app = APIKeyMiddleware(saying_ok, world.authenticator(), required=True, exempt=["/öffentlich/"])
    assert call_wsgi(app, Request("/%C3%B6ffentlich/x")).status == 200
    assert call_wsgi(app, Request("/%F6ffentlich/x")).status == 401


def test_a_refusal_raised_after_start_response_replaces_the_answer(world: World) -> None:
    def late(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        raise InsufficientScope(["reports:read"])

    answer = call_wsgi(APIKeyMiddleware(late, world.authenticator()), with_key(world))
    assert (answer.status, b"insufficient_scope" in answer.body) == (403, True)


def test_an_applications_own_error_goes_on(world: World) -> None:
    def failing(environ: Any, start_response: Any) -> list[bytes]:
        raise RuntimeError("the application's own")

    with pytest.raises(RuntimeError, match="the application's own"):
        call_wsgi(APIKeyMiddleware(failing, world.authenticator()), with_key(world))


def test_requiring_a_key_without_a_middleware_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="add it to the application"):
        require({})


def test_an_async_authenticator_is_refused_at_the_start(world: World) -> None:
    with pytest.raises(ConfigurationError, match="needs an Authenticator"):
        APIKeyMiddleware(saying_ok, world.async_authenticator())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="InThread"):
        AsyncAuthenticator(world.store)
    with pytest.raises(ConfigurationError, match="use AsyncAuthenticator"):
        Authenticator(Inline(world.store))  # type: ignore[arg-type]


def test_an_unknown_option_is_refused_at_the_start(world: World) -> None:
    with pytest.raises(ConfigurationError, match="no option exmpt; the options are required, exempt"):
        APIKeyMiddleware(saying_ok, world.authenticator(), exmpt=["/health"])  # type: ignore[call-arg]


def test_headers_that_an_application_uses_again_stay_as_they_are(world: World) -> None:
    headers = [("Content-Type", "text/plain")]

    def frugal(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", headers)
        return [b"ok"]

    app = APIKeyMiddleware(frugal, world.authenticator())
    call_wsgi(app, with_key(world))
    assert headers == [("Content-Type", "text/plain")]
    assert call_wsgi(app, Request("/")).header("cache-control") is None


def test_a_refusal_before_the_application_has_begun_is_an_answer_like_any_other(world: World) -> None:
    """werkzeug's test client raises what it is given as ``exc_info``."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        return [str(require(environ).user).encode()]

    answer = Client(APIKeyMiddleware(application, world.authenticator())).get("/")
    assert (answer.status_code, answer.json["code"]) == (401, "missing_key")


def test_a_refusal_after_the_application_has_begun_replaces_its_answer(world: World) -> None:
    given: list[Any] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        require(environ)
        return [b"never"]

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        given.append((status.split()[0], exc_info and exc_info[0]))

    environ = create_environ("/")
    APIKeyMiddleware(application, world.authenticator())(environ, start_response)
    assert given == [("200", None), ("401", MissingKey)]
