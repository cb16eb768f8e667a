"""An error of the application's own goes on as it is, and shows no key on its way."""

from typing import Any

import pytest
from calling import Request, call_asgi, call_wsgi

from apikey_auth import AsyncAuthenticator, Authenticator, Inline, MemoryKeyStore
from apikey_auth.asgi import APIKeyMiddleware as ASGIMiddleware
from apikey_auth.wsgi import APIKeyMiddleware as WSGIMiddleware


class Fragile:
    @property
    def is_active(self) -> bool:
        raise ConnectionError("the users are down")


def load_user(owner: str) -> Fragile:
    return Fragile()


async def aload_user(owner: str) -> Fragile:
    return Fragile()


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("it was let in")


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    raise AssertionError("it was let in")


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("place", ["header", "url"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_error_that_is_no_refusal_has_no_frame_of_ours_that_holds_the_key(
    colour: str, place: str, uses: int
) -> None:
    store = MemoryKeyStore()
    text = Authenticator(store).keys.issue("1").text
    request = Request("/", (("apikey", text),)) if place == "header" else Request(f"/?apikey={text}")
    wsgi = WSGIMiddleware(wsgi_app, Authenticator(store, load_user=load_user))
    asgi = ASGIMiddleware(asgi_app, AsyncAuthenticator(Inline(store), load_user=aload_user))
    for _ in range(uses):
        with pytest.raises(ConnectionError) as caught:
            call_wsgi(wsgi, request) if colour == "sync" else call_asgi(asgi, request)
    ours = [entry.frame for entry in caught.traceback if "/apikey_auth/" in str(entry.path)]
    assert ours
    for frame in ours:
        holding = {name for name, value in frame.f_locals.items() if text in repr(value)}
        assert holding <= {"environ", "scope", "self", "request"}, frame.code.name
        if place == "url":
            assert not holding, frame.code.name
