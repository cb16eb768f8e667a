"""Plain ASGI: websockets, lifespan, nesting, mounting, and what an application may do meanwhile."""

from typing import Any

import pytest
from applications import World
from calling import Request, acall_asgi

from apikey_auth import AuthenticationError, ConfigurationError
from apikey_auth.asgi import APIKeyMiddleware, require

DENIAL = {"websocket.http.response": {}}


async def call_websocket(
    app: Any, *, query: str = "", headers: Any = (), extensions: Any = None
) -> list[dict[str, Any]]:
    scope = {
        "type": "websocket",
        "path": "/ws",
        "query_string": query.encode(),
        "headers": list(headers),
        "client": ("127.0.0.1", 1234),
        "extensions": extensions or {},
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def accepting(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


async def saying_ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


def with_key(world: World, target: str = "/", **fields: Any) -> Request:
    return Request(target, (("apikey", world.keys.issue("1", **fields).text),))


async def test_lifespan_passes(world: World) -> None:
    messages = [{"type": f"lifespan.{step}"} for step in ("startup.complete", "shutdown.complete")]
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive))
        for message in messages:
            await send(message)

    async def send(message: Any) -> None:
        seen.append(message)

    call: Any = ({"type": "lifespan"}, object())
    await APIKeyMiddleware(app, world.async_authenticator(), required=True)(*call, send)
    assert seen == [call, *messages]


async def test_a_websocket_with_a_key_in_the_url_is_let_through(world: World) -> None:
    app = APIKeyMiddleware(accepting, world.async_authenticator(), required=True)
    sent = await call_websocket(app, query=f"apikey={world.keys.issue('1').text}")
    assert sent == [{"type": "websocket.accept"}]


async def test_a_websocket_without_a_key_is_denied_before_it_is_accepted(world: World) -> None:
    app = APIKeyMiddleware(accepting, world.async_authenticator(), required=True)
    start, body = await call_websocket(app, extensions=DENIAL)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert dict(start["headers"])[b"www-authenticate"] == b'ApiKey realm="api", in="header", name="apikey"'
    assert b"missing_key" in body["body"]


async def test_a_server_without_denial_responses_closes_with_policy_violation(world: World) -> None:
    app = APIKeyMiddleware(accepting, world.async_authenticator(), required=True)
    assert await call_websocket(app) == [
        {"type": "websocket.close", "code": 1008, "reason": "401 Unauthorized"}
    ]


async def test_a_websocket_with_two_keys_or_a_dead_store_is_refused(world: World) -> None:
    app = APIKeyMiddleware(accepting, world.async_authenticator())
    (close,) = await call_websocket(app, query="apikey=a&apikey=b")
    assert close["reason"] == "400 Bad Request"


async def test_a_refusal_in_an_accepted_websocket_closes_it(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        require(scope, "reports:read")

    wrapped = APIKeyMiddleware(app, world.async_authenticator())
    key = world.keys.issue("1", scopes=[]).text
    accepted, closed = await call_websocket(wrapped, headers=[(b"apikey", key.encode())], extensions=DENIAL)
    assert accepted["type"] == "websocket.accept"
    assert closed == {"type": "websocket.close", "code": 1008, "reason": "403 Forbidden"}


async def test_user_auth_and_identity_are_on_the_scope(world: World) -> None:
    app = APIKeyMiddleware(saying_ok, world.async_authenticator())
    answer = await acall_asgi(app, with_key(world, scopes=["reports:read"]))
    assert answer.holder["apikey_auth.identity"].user is world.users["1"]
    assert answer.holder["user"] is world.users["1"]
    assert list(answer.holder["auth"].scopes) == ["authenticated", "reports:read"]


async def test_a_key_without_scopes_of_its_own_holds_every_scope(world: World) -> None:
    app = APIKeyMiddleware(saying_ok, world.async_authenticator())
    answer = await acall_asgi(app, with_key(world, scopes=None))
    assert "anything" in answer.holder["auth"].scopes


async def test_a_visitor_leaves_the_scope_alone(world: World) -> None:
    answer = await acall_asgi(APIKeyMiddleware(saying_ok, world.async_authenticator()), Request("/"))
    assert {"user", "auth", "apikey_auth.identity"}.isdisjoint(answer.holder)


async def test_a_second_middleware_reuses_the_identity_it_finds(world: World) -> None:
    request = with_key(world)
    auth = world.async_authenticator()
    nested = APIKeyMiddleware(APIKeyMiddleware(saying_ok, auth, required=True), auth)
    calls: list[str] = []
    get = world.store.get
    world.store.get = lambda key_id: calls.append(key_id) or get(key_id)
    assert (await acall_asgi(nested, request)).status == 200
    assert len(calls) == 1


async def test_an_identity_of_another_authenticator_opens_nothing(world: World) -> None:
    partners, administrators = world.async_authenticator(), World().async_authenticator()
    nested = APIKeyMiddleware(APIKeyMiddleware(saying_ok, administrators, required=True), partners)
    assert (await acall_asgi(nested, with_key(world))).status == 401


async def test_exempt_paths_are_below_the_mount_point(world: World) -> None:
    app = APIKeyMiddleware(saying_ok, world.async_authenticator(), required=True, exempt=["/health"])
    assert (await acall_asgi(app, Request("/health", mount="/app"))).status == 200
    assert (await acall_asgi(app, Request("/app/health"))).status == 401
    assert (await acall_asgi(app, Request("/healthy", mount="/health"))).status == 401


async def test_a_refusal_after_the_answer_began_is_an_error_of_the_application(world: World) -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await saying_ok(scope, receive, send)
        require(scope)

    with pytest.raises(AuthenticationError):
        await acall_asgi(APIKeyMiddleware(late, world.async_authenticator()), Request("/"))


async def test_a_blocking_authenticator_is_refused_at_the_start(world: World) -> None:
    with pytest.raises(ConfigurationError, match="needs an AsyncAuthenticator"):
        APIKeyMiddleware(saying_ok, world.authenticator())  # type: ignore[arg-type]


async def test_a_scope_of_an_unknown_type_is_not_let_through(world: World) -> None:
    with pytest.raises(ConfigurationError, match="webtransport"):
        await APIKeyMiddleware(saying_ok, world.async_authenticator())({"type": "webtransport"}, None, None)  # type: ignore[arg-type]


async def test_headers_that_can_be_read_once_reach_the_application(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert [name for name, _ in scope["headers"]] == [b"apikey", b"x"]
        await saying_ok(scope, receive, send)

    async def once(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"] = iter(scope["headers"])
        scope["extensions"] = scope["root_path"] = None
        await APIKeyMiddleware(app, world.async_authenticator(), required=True)(scope, receive, send)

    assert (await acall_asgi(once, with_key(world).with_header("x", "y"))).status == 200


async def test_the_root_of_a_mount_is_not_the_mount_point(world: World) -> None:
    app = APIKeyMiddleware(saying_ok, world.async_authenticator(), required=True, exempt=["/api"])
    assert (await acall_asgi(app, Request("", mount="/api"))).status == 401
