"""A text that is no key is refused at the door as it would be further in: nobody can tell where it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from calling import Answer, Request, call_asgi, call_wsgi
from hypothesis import example, given, settings
from hypothesis import strategies as st

import apikey_auth.asgi
import apikey_auth.wsgi
from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Bearer,
    Header,
    Inline,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
)
from apikey_auth.events import Events
from apikey_auth.formats import opaque_tokens
from apikey_auth.policy import Recognition, require, visit_of

SCHEMES = (
    KeyScheme("acme"),
    KeyScheme("acme", seal_keys=["a seal key of some length"]),
    KeyScheme("acme", seal_keys=["a seal key of some length"], require_seal=True),
    KeyScheme("acme", formats=[opaque_tokens()]),
)
POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"required": True, "realm": "elsewhere"},
    {"on_invalid": "anonymous"},
    {"carriers": [Bearer()]},
    {"carriers": [Header("apikey"), Bearer("Token")]},
    {"hide_credentials": True, "exempt": ["/open/"]},
    {"render": lambda refusal, path: ("text/plain", f"{path}: {refusal.detail}".encode())},
)
TEXT = KeyManager(MemoryKeyStore(), SCHEMES[0]).issue("1").text
SEALED = SCHEMES[1].mint().text

texts = st.one_of(
    st.sampled_from(
        ["acme_", "abcd", "undefined", f"Bearer {TEXT}", f"{TEXT},", f" {TEXT}", f"é{TEXT}", "", " "]
    ),
    st.text(st.characters(max_codepoint=255), max_size=20),
    st.text(st.sampled_from("acme_AB09 ,\t"), max_size=70).map("acme_".__add__),
    st.tuples(
        st.sampled_from([TEXT, SEALED]), st.integers(0, 70), st.sampled_from(["", "x", "_", ",", "é"])
    ).map(lambda part: part[0][: part[1]] + part[2] + part[0][part[1] + 1 :]),
    st.integers(500, 520).map(lambda length: "a" * length),
)
requests = st.builds(
    Request,
    target=st.sampled_from(["/public", "/me", "/open/x", "/me?apikey=abcd", "/me?x=1"]),
    headers=st.tuples(
        st.tuples(
            st.sampled_from(["apikey", "authorization"]), st.one_of(texts, texts.map("Bearer {}".format))
        )
    ),
    method=st.sampled_from(["GET", "HEAD", "OPTIONS"]),
)


class Told(Events):
    """Keeps the events in place of delivering them."""

    def __init__(self, told: list[object]) -> None:
        super().__init__()
        self.told = told

    def emit(self, event: Any) -> None:
        self.told.append((event.name, event.code, event.key_id))


class Door:
    """One application behind both middlewares, and what it saw and others were told."""

    def __init__(self, scheme: KeyScheme, policy: dict[str, Any]) -> None:
        self.told: list[object] = []
        store, events = MemoryKeyStore(), Told(self.told)
        blocking = Authenticator(store, scheme, on_event=events)
        awaiting = AsyncAuthenticator(Inline(store), scheme, on_event=events)
        self.wsgi = apikey_auth.wsgi.APIKeyMiddleware(self._wsgi, blocking, **policy)
        self.asgi = apikey_auth.asgi.APIKeyMiddleware(self._asgi, awaiting, **policy)

    def _see(self, holder: Any, path: str) -> None:
        visit = visit_of(holder)
        named = type(visit.refusal), str(visit.refusal), visit.identity
        asked = visit.method, visit.path, visit.query, visit.sent, visit.address, visit.text
        self.told.append((*named, *asked, visit.privacy, visit.hidden))
        if path == "/me":
            require(holder)

    def _wsgi(self, environ: Any, start_response: Any) -> list[bytes]:
        self._see(environ, environ["PATH_INFO"])
        start_response("200 OK", [("Vary", "Accept")])
        return [b"hello"]

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        self._see(scope, scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"vary", b"Accept")]})
        await send({"type": "http.response.body", "body": b"hello"})

    def outcomes(self, request: Request) -> tuple[Answer, Answer, list[object], set[bool]]:
        """Give both answers, what was told, and whether it was settled at the door."""
        self.told.clear()
        answers = call_wsgi(self.wsgi, request), call_asgi(self.asgi, request)
        short = {isinstance(visit_of(answer.holder), Recognition) for answer in answers}
        return *answers, list(self.told), short


@contextmanager
def nothing_refused_at_the_door() -> Iterator[None]:
    with (
        patch.object(Authenticator, "_refuse_unread", lambda auth, value: None),
        patch.object(AsyncAuthenticator, "_refuse_unread", lambda auth, value: None),
    ):
        yield


DOORS = {
    (s, p): Door(scheme, policy) for s, scheme in enumerate(SCHEMES) for p, policy in enumerate(POLICIES)
}


@settings(max_examples=400, deadline=None)
@given(scheme=st.integers(0, len(SCHEMES) - 1), policy=st.integers(0, len(POLICIES) - 1), request=requests)
@example(0, 0, Request("/me", (("apikey", TEXT[:-1] + "-"),)))
@example(1, 2, Request("/me", (("apikey", SEALED),), "HEAD"))
@example(0, 3, Request("/public", (("authorization", "Bearer acme_ x"),)))
@example(0, 5, Request("/public", (("apikey", "abcd"),)))
@example(0, 0, Request("/me", (("apikey", " abcd"),)))
@example(0, 0, Request("/me", (("apikey", "é"),)))
def test_nobody_can_tell_where_a_text_was_refused(scheme: int, policy: int, request: Request) -> None:
    door = DOORS[scheme, policy]
    *found, _ = door.outcomes(request)
    with nothing_refused_at_the_door():
        *expected, short = door.outcomes(request)
    assert found == expected
    assert short == {False}


@pytest.mark.parametrize(
    "text",
    ["abcd", "acme_", TEXT[:-1] + "-", f"Bearer {TEXT}"],
    ids=["a word", "a prefix", "a strange end", "a scheme"],
)
def test_a_text_that_is_no_key_goes_no_further_than_the_door(text: str) -> None:
    *_, short = DOORS[0, 0].outcomes(Request("/me", (("apikey", text),)))
    assert short == {True}
