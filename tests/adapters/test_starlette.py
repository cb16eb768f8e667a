"""Starlette: its own ``@requires``, its user and credentials, endpoints of every kind, TestClient."""

from collections.abc import Iterator
from typing import Any

import pytest
from applications import World
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, NoMatchFound, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from apikey_auth import AsyncAuthenticator, Inline, MemoryKeyStore
from apikey_auth.management import REST
from apikey_auth.starlette import APIKeyMiddleware, KeyManagement, require_api_key


class SessionBackend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        return AuthCredentials(["authenticated", "session"]), SimpleUser("from the session")


@requires("reports:read")
async def reports(request: Request) -> Response:
    return JSONResponse({"user": request.user.name})


@requires(["authenticated", "reports:read"])
def reports_in_a_thread(request: Request) -> Response:
    return JSONResponse({"user": request.user.name})


async def who(request: Request) -> Response:
    user = request.user
    return JSONResponse(
        {
            "authenticated": user.is_authenticated,
            "name": getattr(user, "name", None) or user.display_name,
            "scopes": list(request.auth.scopes),
        }
    )


class Protected(HTTPEndpoint):
    @require_api_key("reports:read")
    async def get(self, request: Request) -> Response:
        return JSONResponse({"user": request.user.name})


@require_api_key("reports:read")
async def stream(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json({"user": websocket.user.name})
    await websocket.close()


ROUTES = [
    Route("/reports", reports),
    Route("/thread", reports_in_a_thread),
    Route("/who", who),
    Route("/protected", Protected),
    WebSocketRoute("/stream", stream),
    Mount("/sub", routes=[Route("/who", who)]),
]


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    middleware = [Middleware(APIKeyMiddleware, auth=world.async_authenticator(), exempt=["/sub/"])]
    with TestClient(Starlette(routes=ROUTES, middleware=middleware)) as client:
        yield client


def key(world: World, **fields: Any) -> dict[str, str]:
    return {"apikey": world.keys.issue("1", **fields).text}


@pytest.mark.parametrize("path", ["/reports", "/thread"])
def test_starlettes_own_requires_reads_the_keys_scopes(client: TestClient, world: World, path: str) -> None:
    assert client.get(path, headers=key(world, scopes=["reports:read"])).json() == {"user": "ada"}
    assert client.get(path, headers=key(world, scopes=None)).status_code == 200
    assert client.get(path, headers=key(world, scopes=[])).status_code == 403
    assert client.get(path).status_code == 403  # Starlette's own answer to a visitor


def test_a_visitor_is_starlettes_unauthenticated_user(client: TestClient) -> None:
    assert client.get("/who").json() == {"authenticated": False, "name": "", "scopes": []}


def test_request_auth_lists_the_scopes(client: TestClient, world: World) -> None:
    answer = client.get("/who", headers=key(world, scopes=["reports:read"])).json()
    assert answer == {"authenticated": True, "name": "ada", "scopes": ["authenticated", "reports:read"]}


def test_endpoints_of_classes_require_keys_too(client: TestClient, world: World) -> None:
    assert client.get("/protected").status_code == 401
    assert client.get("/protected", headers=key(world, scopes=[])).json()["code"] == "insufficient_scope"
    assert client.get("/protected", headers=key(world)).json() == {"user": "ada"}


def test_websocket_endpoints_require_keys_too(client: TestClient, world: World) -> None:
    with client.websocket_connect("/stream", headers=key(world)) as websocket:
        assert websocket.receive_json() == {"user": "ada"}
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/stream"):
        pass
    assert refused.value.status_code == 401


@pytest.mark.parametrize(
    ("headers", "name"), [(None, "from the session"), ({"scopes": ["reports:read"]}, "ada")]
)
def test_a_key_beats_the_sessions_user(world: World, headers: dict[str, Any] | None, name: str) -> None:
    middleware = [
        Middleware(AuthenticationMiddleware, backend=SessionBackend()),
        Middleware(APIKeyMiddleware, auth=world.async_authenticator()),
    ]
    with TestClient(Starlette(routes=ROUTES, middleware=middleware)) as client:
        answer = client.get("/who", headers=key(world, **headers) if headers else {}).json()
    assert answer["name"] == name
    assert ("session" in answer["scopes"]) == (name == "from the session")


def test_without_a_loader_the_owner_is_a_user_as_starlette_knows_them(world: World) -> None:
    auth = AsyncAuthenticator(Inline(world.store), world.scheme, clock=world.clock)
    app = Starlette(routes=ROUTES, middleware=[Middleware(APIKeyMiddleware, auth=auth)])
    with TestClient(app) as client:
        assert client.get("/who", headers=key(world, scopes=[])).json() == {
            "authenticated": True,
            "name": "1",
            "scopes": ["authenticated"],
        }


def test_the_decorator_explains_a_missing_pair_of_parentheses() -> None:
    with pytest.raises(TypeError, match="parentheses"):
        require_api_key(who)  # type: ignore[arg-type]


def test_the_decorator_explains_an_endpoint_without_a_request() -> None:
    with pytest.raises(TypeError, match="Request or a WebSocket"):
        require_api_key()(lambda: None)()


def test_urls_of_other_routes_are_found_by_name_wherever_key_management_stands() -> None:
    auth = AsyncAuthenticator(Inline(MemoryKeyStore()))
    app = Starlette(routes=[KeyManagement("/keys", auth, REST()), Route("/who", who, name="who")])
    assert app.url_path_for("who") == "/who"
    with pytest.raises(NoMatchFound):
        app.url_path_for("nobody")
