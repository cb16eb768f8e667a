"""FastAPI: the dependency, what OpenAPI shows of it, routers, websockets, endpoints in threads."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from applications import World
from fastapi import APIRouter, Body, Depends, FastAPI, Request, Security, WebSocket
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import WebSocketDenialResponse

from apikey_auth import Bearer, ConfigurationError, Header, Identity, Query, Refusal
from apikey_auth.fastapi import APIKeyAuth, KeyManagement
from apikey_auth.management import REST

Json = dict[str, Any]


def make_app(api_key: APIKeyAuth) -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/admin", dependencies=[Security(api_key, scopes=["admin"])])

    def current_user(identity: Annotated[Identity[Any], Security(api_key, scopes=["me"])]) -> str:
        name: str = identity.user.name
        return name

    @app.get("/public")
    async def public(request: Request) -> Json:
        return {"authenticated": request.user.is_authenticated, "query": request.url.query}

    @app.get("/visitor")
    async def visitor(
        identity: Annotated[Identity[Any] | None, Security(api_key.optional, scopes=["reports:read"])],
    ) -> Json:
        return {"user": identity and identity.user.name}

    @app.get("/me")
    async def me(identity: Annotated[Identity[Any], Security(api_key)], request: Request) -> Json:
        assert request.user is identity.user
        return {"user": identity.user.name, "key_id": identity.key.id}

    @app.get("/default")
    async def default(identity: Identity[Any] = Depends(api_key)) -> Json:  # noqa: B008
        return {"user": identity.user.name}

    @app.get("/thread")
    def thread(identity: Annotated[Identity[Any], Security(api_key, scopes=["reports:read"])]) -> Json:
        return {"user": identity.user.name}

    @app.get("/nested")
    async def nested(user: Annotated[str, Security(current_user, scopes=["reports:read"])]) -> Json:
        return {"user": user}

    @router.get("/numbers/{number}", dependencies=[Security(api_key, scopes=["numbers"])])
    async def number(number: int) -> Json:
        return {"number": number}

    @app.post("/form")
    async def form(name: Annotated[str, Body(embed=True)], _: Annotated[Any, Security(api_key)]) -> Json:
        return {"name": name}

    @app.websocket("/stream")
    async def stream(websocket: WebSocket, identity: Annotated[Identity[Any], Security(api_key)]) -> None:
        await websocket.accept()
        await websocket.send_json({"user": identity.user.name})
        await websocket.close()

    app.include_router(router)
    return app


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    api_key = APIKeyAuth(world.async_authenticator())
    app = make_app(api_key)
    api_key.init_app(app)
    with TestClient(app) as client:
        yield client


def key(world: World, *scopes: str) -> dict[str, str]:
    return {"apikey": world.keys.issue("1", scopes=scopes or None).text}


def code(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize("path", ["/me", "/default", "/thread", "/nested", "/admin/numbers/1"])
def test_an_endpoint_that_depends_on_it_needs_a_key(client: TestClient, world: World, path: str) -> None:
    refused = client.get(path)
    assert code(refused) == (401, "missing_key")
    assert refused.headers["www-authenticate"] == 'ApiKey realm="api", in="header", name="apikey"'
    assert code(client.get(path, headers={"apikey": "nonsense"})) == (401, "invalid_key")
    answer = client.get(path, headers=key(world))
    assert answer.status_code == 200
    assert answer.json().get("user") in ("ada", None)


def test_it_gives_the_identity_and_starlettes_user(client: TestClient, world: World) -> None:
    answer = client.get("/me", headers=key(world)).json()
    assert answer == {"user": "ada", "key_id": world.keys.list("1")[0].id}


def test_other_endpoints_are_public(client: TestClient, world: World) -> None:
    assert client.get("/public").json()["authenticated"] is False
    assert client.get("/public", headers=key(world)).json()["authenticated"] is True


@pytest.mark.parametrize(
    ("path", "scopes"),
    [
        ("/thread", ["reports:read"]),
        ("/nested", ["me", "reports:read"]),
        ("/admin/numbers/1", ["admin", "numbers"]),
    ],
)
def test_every_scope_on_the_way_to_an_endpoint_is_needed(
    client: TestClient, world: World, path: str, scopes: list[str]
) -> None:
    assert client.get(path, headers=key(world, *scopes)).status_code == 200
    for missing in scopes:
        held = [scope for scope in scopes if scope != missing] or ["another"]
        assert code(client.get(path, headers=key(world, *held))) == (403, "insufficient_scope")


def test_the_optional_one_is_none_for_a_visitor_and_asks_a_key_for_its_scopes(
    client: TestClient, world: World
) -> None:
    assert client.get("/visitor").json() == {"user": None}
    assert client.get("/visitor", headers=key(world, "reports:read")).json() == {"user": "ada"}
    assert code(client.get("/visitor", headers=key(world, "another"))) == (403, "insufficient_scope")
    assert code(client.get("/visitor", headers={"apikey": "nonsense"})) == (401, "invalid_key")


def test_a_bad_key_that_is_a_visitors_is_refused_where_a_key_is_needed(world: World) -> None:
    api_key = APIKeyAuth(world.async_authenticator(), on_invalid="anonymous")
    app = make_app(api_key)
    api_key.init_app(app)
    with TestClient(app) as client:
        assert client.get("/visitor", headers={"apikey": "nonsense"}).json() == {"user": None}
        assert code(client.get("/me", headers={"apikey": "nonsense"})) == (401, "invalid_key")


def test_a_refusal_comes_before_what_is_wrong_with_a_parameter(client: TestClient, world: World) -> None:
    assert code(client.get("/admin/numbers/one")) == (401, "missing_key")
    assert client.get("/admin/numbers/one", headers=key(world)).status_code == 422


def test_where_a_key_is_required_of_all_a_refusal_comes_before_a_body_is_read(world: World) -> None:
    api_key = APIKeyAuth(world.async_authenticator(), required=True, exempt=["/openapi.json"])
    app = make_app(api_key)
    api_key.init_app(app)
    with TestClient(app) as client:
        assert code(client.post("/form", content=b"{")) == (401, "missing_key")
        assert client.post("/form", content=b"{", headers=key(world)).status_code == 422
        assert client.post("/form", json={"name": "x"}, headers=key(world)).json() == {"name": "x"}
        assert code(client.get("/docs")) == (401, "missing_key")
        assert client.get("/openapi.json").status_code == 200


def test_the_key_is_cut_out_of_the_url_and_the_answer_is_kept_private(
    client: TestClient, world: World
) -> None:
    answer = client.get(f"/public?a=1&apikey={key(world)['apikey']}")
    assert answer.json() == {"authenticated": True, "query": "a=1"}
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/me", headers=key(world)).headers["cache-control"] == "private"


def test_websockets_depend_on_it_too(client: TestClient, world: World) -> None:
    with client.websocket_connect("/stream", headers=key(world)) as websocket:
        assert websocket.receive_json() == {"user": "ada"}
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/stream"):
        pass
    assert refused.value.status_code == 401


class TestOpenAPI:
    def schema(self, api_key: APIKeyAuth) -> Json:
        return make_app(api_key).openapi()

    def test_each_carrier_is_a_scheme_and_any_of_them_will_do(self, world: World) -> None:
        schema = self.schema(APIKeyAuth(world.async_authenticator()))
        assert schema["components"]["securitySchemes"] == {
            "header-apikey": {"type": "apiKey", "in": "header", "name": "apikey"},
            "query-apikey": {"type": "apiKey", "in": "query", "name": "apikey"},
        }
        assert schema["paths"]["/me"]["get"]["security"] == [{"header-apikey": []}, {"query-apikey": []}]
        assert "security" not in schema["paths"]["/public"]["get"]

    def test_the_scopes_are_shown(self, world: World) -> None:
        paths = self.schema(APIKeyAuth(world.async_authenticator(), carriers=[Header()]))["paths"]
        wanted = {
            "/thread": ["reports:read"],
            "/visitor": ["reports:read"],
            "/nested": ["reports:read", "me"],
            "/admin/numbers/{number}": ["admin", "numbers"],
        }
        for path, scopes in wanted.items():
            assert paths[path]["get"]["security"] == [{"header-apikey": scopes}]

    def test_the_schemes_are_those_of_the_middleware(self, world: World) -> None:
        carriers: list[Header | Query | Bearer] = [
            Header("X-API-Key"),
            Query("key"),
            Bearer(),
            Bearer("Token"),
        ]
        schema = self.schema(APIKeyAuth(world.async_authenticator(), carriers=carriers))
        assert schema["components"]["securitySchemes"] == {
            "header-x-api-key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "query-key": {"type": "apiKey", "in": "query", "name": "key"},
            "bearer-authorization": {"type": "http", "scheme": "bearer"},
            "token-authorization": {"type": "http", "scheme": "token"},
        }

    def test_no_parameter_of_an_endpoint_comes_of_it(self, world: World) -> None:
        schema = self.schema(APIKeyAuth(world.async_authenticator()))
        assert "parameters" not in schema["paths"]["/me"]["get"]
        assert "requestBody" not in schema["paths"]["/me"]["get"]


class TestSetUp:
    def test_the_application_can_be_given_at_once(self, world: World) -> None:
        app = FastAPI()
        api_key = APIKeyAuth(world.async_authenticator(), app)

        @app.get("/me")
        async def me(identity: Annotated[Identity[Any], Security(api_key)]) -> Json:
            return {"user": identity.user.name}

        with TestClient(app) as client:
            assert client.get("/me", headers=key(world)).json() == {"user": "ada"}

    def test_one_dependency_serves_several_applications(self, world: World) -> None:
        api_key = APIKeyAuth(world.async_authenticator())
        for app in (make_app(api_key), make_app(api_key)):
            api_key.init_app(app)
            with TestClient(app) as client:
                assert client.get("/me", headers=key(world)).json()["user"] == "ada"

    def test_a_mounted_application_that_is_protected_too_finds_what_the_outer_one_found(
        self, world: World
    ) -> None:
        api_key = APIKeyAuth(world.async_authenticator())
        outer, inner = FastAPI(), make_app(api_key)
        api_key.init_app(outer)
        api_key.init_app(inner)
        outer.mount("/sub", inner)
        with TestClient(outer) as client:
            assert client.get("/sub/me", headers=key(world)).json()["user"] == "ada"
            assert code(client.get("/sub/me")) == (401, "missing_key")

    def test_an_application_that_is_protected_twice_is_a_configuration_error(self, world: World) -> None:
        app = FastAPI(title="Reports")
        APIKeyAuth(world.async_authenticator(), app)
        with pytest.raises(ConfigurationError, match="'Reports' has APIKeyMiddleware already"):
            APIKeyAuth(world.async_authenticator(), app)

    def test_an_application_that_is_not_protected_says_so(self, world: World) -> None:
        client = TestClient(make_app(APIKeyAuth(world.async_authenticator())))
        for path in ("/me", "/visitor"):
            with pytest.raises(ConfigurationError, match="passed no APIKeyMiddleware"):
                client.get(path, headers=key(world))

    def test_an_authenticator_that_blocks_is_a_configuration_error(self, world: World) -> None:
        with pytest.raises(ConfigurationError, match="AsyncAuthenticator"):
            APIKeyAuth(world.authenticator())  # type: ignore[arg-type]

    def test_an_option_that_will_not_do_is_one_before_there_is_an_application(self, world: World) -> None:
        with pytest.raises(ConfigurationError, match="there is no option requierd"):
            APIKeyAuth(world.async_authenticator(), requierd=True)  # type: ignore[call-arg]

    def test_a_middleware_that_is_added_later_sees_refusals(self, world: World) -> None:
        app = FastAPI()
        api_key = APIKeyAuth(world.async_authenticator(), app)
        app.add_middleware(CORSMiddleware, allow_origins=["*"])

        @app.get("/me", dependencies=[Security(api_key)])
        async def me() -> None: ...

        with TestClient(app) as client:
            refused = client.get("/me", headers={"Origin": "http://elsewhere"})
        assert code(refused) == (401, "missing_key")
        assert refused.headers["access-control-allow-origin"] == "*"

    def test_the_application_may_answer_refusals_itself(self, world: World) -> None:
        api_key = APIKeyAuth(world.async_authenticator())
        app = make_app(api_key)
        api_key.init_app(app)

        @app.exception_handler(Refusal)
        async def answer(request: Request, refusal: Refusal) -> JSONResponse:
            return JSONResponse({"mine": refusal.code}, refusal.status)

        with TestClient(app) as client:
            assert client.get("/me").json() == {"mine": "missing_key"}

    def test_keys_are_managed_by_a_route(self, world: World) -> None:
        auth = world.async_authenticator()
        app = FastAPI(routes=[KeyManagement("/keys", auth, REST())])
        APIKeyAuth(auth, app)
        with TestClient(app) as client:
            assert len(client.get("/keys", headers=key(world)).json()["items"]) == 1
