"""Flask: the extension, its context, blueprints, error handlers and redirects."""

from typing import Any

import flask
import pytest
from applications import World

from apikey_auth import Authenticator, ConfigurationError, InvalidKey, Refusal
from apikey_auth.flask import APIKeyAuth, current_identity


def make_app(auth: APIKeyAuth, name: str = "no_package") -> flask.Flask:
    app = flask.Flask(name)
    auth.init_app(app)
    blueprint = flask.Blueprint("api", name, url_prefix="/api")

    @blueprint.get("/me")
    @auth.required()
    def me() -> Any:
        return {"user": flask.g.user.name, "remote": flask.request.remote_user, "app": flask.current_app.name}

    @blueprint.get("/later")
    @auth.required("reports:read")
    async def later() -> Any:
        return {"user": flask.g.user.name}

    @blueprint.get("/folder/")
    def folder() -> Any:
        return {"identity": bool(current_identity), "user": flask.g.user and flask.g.user.name}

    app.register_blueprint(blueprint)
    return app


def key(world: World, **fields: Any) -> dict[str, str]:
    return {"apikey": world.keys.issue("1", **fields).text}


def test_blueprints_and_async_views_require_keys(world: World) -> None:
    client = make_app(APIKeyAuth(world.authenticator())).test_client()
    assert client.get("/api/me").status_code == 401
    assert client.get("/api/me", headers=key(world)).get_json() == {
        "user": "ada",
        "remote": "1",
        "app": "no_package",
    }
    assert client.get("/api/later", headers=key(world, scopes=[])).status_code == 403
    assert client.get("/api/later", headers=key(world)).get_json() == {"user": "ada"}


def test_one_extension_serves_several_applications(world: World) -> None:
    auth = APIKeyAuth(world.authenticator())
    for name in ("first", "second"):
        answer = make_app(auth, name).test_client().get("/api/me", headers=key(world))
        assert answer.get_json()["app"] == name


def test_the_extension_can_be_given_its_application_at_once(world: World) -> None:
    app = flask.Flask("no_package")
    APIKeyAuth(world.authenticator(), app, required=True)
    assert app.test_client().get("/").status_code == 401


def test_protecting_an_application_twice_is_refused(world: World) -> None:
    auth = APIKeyAuth(world.authenticator())
    app = make_app(auth)
    with pytest.raises(ConfigurationError, match="already"):
        auth.init_app(app)


def test_load_user_runs_in_the_applications_context(world: World) -> None:
    def load_user(owner: str) -> Any:
        assert flask.current_app.name == "no_package"
        return world.users[owner]

    auth = Authenticator(world.store, world.scheme, load_user=load_user, clock=world.clock)
    answer = make_app(APIKeyAuth(auth)).test_client().get("/api/me", headers=key(world))
    assert answer.status_code == 200


def test_a_redirect_to_the_slash_does_not_repeat_the_key(world: World) -> None:
    client = make_app(APIKeyAuth(world.authenticator())).test_client()
    answer = client.get(f"/api/folder?a=1&apikey={key(world)['apikey']}")
    assert answer.status_code == 308
    assert answer.headers["Location"].endswith("/api/folder/?a=1")
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_without_a_key_identity_and_user_are_false(world: World) -> None:
    client = make_app(APIKeyAuth(world.authenticator())).test_client()
    assert client.get("/api/folder/").get_json() == {"identity": False, "user": None}
    assert client.get("/api/folder/", headers=key(world)).get_json() == {"identity": True, "user": "ada"}


def test_a_user_that_the_application_had_set_stays_without_a_key(world: World) -> None:
    app = flask.Flask("no_package")
    app.before_request(lambda: setattr(flask.g, "user", world.users["2"]))
    auth = APIKeyAuth(world.authenticator(), app)
    app.add_url_rule("/", view_func=lambda: flask.g.user.name)
    assert app.test_client().get("/").text == "carl"
    assert app.test_client().get("/", headers=key(world)).text == "ada"
    assert auth is app.extensions["apikey_auth"]


def test_an_application_may_answer_a_refusal_in_its_own_way(world: World) -> None:
    app = make_app(APIKeyAuth(world.authenticator()))

    @app.errorhandler(InvalidKey)
    def own(refusal: Refusal) -> Any:
        return {"sorry": refusal.code}, refusal.status

    client = app.test_client()
    assert client.get("/api/me", headers={"apikey": "nonsense"}).get_json() == {"sorry": "invalid_key"}
    assert client.get("/api/me").get_json()["code"] == "missing_key"


def test_an_unknown_page_of_a_closed_application_asks_for_a_key_first(world: World) -> None:
    app = flask.Flask("no_package")
    APIKeyAuth(world.authenticator(), app, required=True)
    assert app.test_client().get("/nothing").status_code == 401
    assert app.test_client().get("/nothing", headers=key(world)).status_code == 404


def test_the_decorator_explains_a_missing_pair_of_parentheses(world: World) -> None:
    with pytest.raises(TypeError, match="parentheses"):
        APIKeyAuth(world.authenticator()).required(lambda: None)  # type: ignore[arg-type]


def test_an_async_authenticator_is_refused_at_the_start(world: World) -> None:
    with pytest.raises(ConfigurationError, match="needs an Authenticator"):
        APIKeyAuth(world.async_authenticator())  # type: ignore[arg-type]


def test_a_context_that_outlives_a_request_keeps_nobody(world: World) -> None:
    app = flask.Flask("no_package")
    APIKeyAuth(world.authenticator(), app)
    app.add_url_rule("/", view_func=lambda: flask.g.user.name if flask.g.user else "nobody")
    with app.app_context():
        assert app.test_client().get("/", headers=key(world)).text == "ada"
        assert app.test_client().get("/").text == "nobody"
