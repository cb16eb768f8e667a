"""A middleware behind another one: what it takes over, what it reads again, and what it takes away."""

from typing import Any

import pytest
from applications import World
from calling import Answer, Request, call_asgi, call_wsgi

import apikey_auth.asgi
import apikey_auth.wsgi


def wsgi_application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


async def asgi_application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})


class Nest:
    """Two middlewares around an application, of either kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def ask(self, request: Request, outer: tuple[World, Any], inner: tuple[World, Any]) -> Answer:
        if self.kind == "wsgi":
            app: Any = wsgi_application
            for world, options in (inner, outer):
                app = apikey_auth.wsgi.APIKeyMiddleware(app, world.authenticator(), **options)
            return call_wsgi(app, request)
        app = asgi_application
        for world, options in (inner, outer):
            app = apikey_auth.asgi.APIKeyMiddleware(app, world.async_authenticator(), **options)
        return call_asgi(app, request)


@pytest.fixture(params=["wsgi", "asgi"])
def nest(request: pytest.FixtureRequest) -> Nest:
    return Nest(request.param)


def test_an_identity_that_the_inner_one_does_not_share_is_gone(nest: Nest) -> None:
    partners, administrators = World(), World()
    request = Request("/", (("apikey", partners.keys.issue("1").text),))
    answer = nest.ask(request, (partners, {}), (administrators, {"on_invalid": "anonymous"}))
    assert answer.status == 200
    left = {"apikey_auth.identity", "REMOTE_USER", "user", "auth"} & answer.holder.keys()
    assert left == set()


def test_an_exempt_page_of_the_inner_one_keeps_the_identity(nest: Nest) -> None:
    partners, administrators = World(), World()
    request = Request("/open", (("apikey", partners.keys.issue("1").text),))
    answer = nest.ask(request, (partners, {}), (administrators, {"exempt": ["/open"], "required": True}))
    assert answer.holder["apikey_auth.identity"].key.owner == "1"


def test_a_key_that_the_outer_one_cut_out_is_read_by_the_inner_one(nest: Nest, world: World) -> None:
    text = world.keys.issue("1").text
    request = Request(f"/page?a=1&apikey={text}")
    answer = nest.ask(request, (World(), {"exempt": ["/page"]}), (world, {"required": True}))
    assert answer.status == 200
    assert answer.header("cache-control") == "no-store"
    seen = answer.holder.get("QUERY_STRING", answer.holder.get("query_string"))
    assert seen in ("a=1", b"a=1")


def test_a_key_given_twice_is_ambiguous_for_the_inner_one_too(nest: Nest, world: World) -> None:
    request = Request("/page?apikey=a&apikey=b", (("apikey", world.keys.issue("1").text),))
    assert nest.ask(request, (World(), {"exempt": ["/page"]}), (world, {})).status == 400
