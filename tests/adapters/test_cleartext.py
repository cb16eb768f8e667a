"""Keys over plain http, and keys in headers that the application is not to see: alike in every adapter."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from applications import APPLICATIONS, Send, World
from calling import Answer, Request, call_wsgi

from apikey_auth import Authenticator, Bearer, ConfigurationError, Header, Query
from apikey_auth.policy import VISIT
from apikey_auth.wsgi import APIKeyMiddleware

Build = Callable[..., Send]

FAR = "203.0.113.9"  # a client
PROXY = "10.0.0.1"  # one that the deployment names
PROXIES = ["10.0.0.0/8", "127.0.0.2"]


def request(text: str, *headers: tuple[str, str], **fields: Any) -> Request:
    return Request("/me", (("apikey", text), *headers), **{"client": FAR, **fields})


def code_of(answer: Answer) -> str:
    return "in" if answer.status == 200 else json.loads(answer.body)["code"]


def codes(send: Send, *requests: Request) -> list[str]:
    return [code_of(send(each)) for each in requests]


def test_by_default_nothing_is_said_of_the_connection(build: Build, world: World) -> None:
    assert codes(build(), request(world.keys.issue("1").text)) == ["in"]


@pytest.mark.parametrize("insecure", ["refuse", "revoke"])
def test_good_and_bad_keys_in_the_clear_get_the_same_answer(
    build: Build, world: World, insecure: str
) -> None:
    send = build(insecure=insecure)
    text = world.keys.issue("1").text
    revoked = world.keys.issue("1")
    world.keys.revoke(revoked.key.id)
    texts = [text, revoked.text, text[:-1] + "0", "nonsense", world.scheme.mint().text]
    answers = [send(request(each)) for each in texts]
    answers += [send(Request(f"/me?apikey={text}", client=FAR))]
    answers += [send(Request("/me", (("apikey", text), ("apikey", text)), client=FAR))]
    assert {(answer.status, answer.body) for answer in answers} == {(403, answers[0].body)}
    assert {code_of(answer) for answer in answers} == {"insecure_transport"}
    assert answers[0].header("www-authenticate") is None
    assert answers[0].header("cache-control") == "no-store"


def test_a_key_that_is_known_already_is_refused_too(build: Build, world: World) -> None:
    send = build(insecure="refuse")
    text = world.keys.issue("1").text
    safe = request(text, scheme="https")
    assert codes(send, safe, safe, request(text), safe) == ["in", "in", "insecure_transport", "in"]


def test_visitors_preflights_and_exempt_paths_may_come_in_the_clear(build: Build, world: World) -> None:
    send = build(insecure="refuse", exempt=["/public"])
    preflight = (("Origin", "https://a.example"), ("Access-Control-Request-Method", "GET"))
    text = world.keys.issue("1").text
    assert send(Request("/public", client=FAR)).status == 200
    assert send(Request("/public", (("apikey", text),), client=FAR)).status == 200
    assert send(Request("/public", (("apikey", text), *preflight), "OPTIONS", client=FAR)).status != 403
    assert code_of(send(Request("/me", client=FAR))) == "missing_key"


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_client_on_this_machine_may(build: Build, world: World, client: str) -> None:
    assert codes(build(insecure="refuse"), request(world.keys.issue("1").text, client=client)) == ["in"]


def test_a_client_of_no_address_may_not(build: Build, world: World) -> None:
    send = build(insecure="refuse")
    assert codes(send, request(world.keys.issue("1").text, client=None)) == ["insecure_transport"]


@pytest.mark.parametrize(
    ("client", "forwarded_for", "proto", "outcome"),
    [
        (PROXY, FAR, "https", "in"),
        (PROXY, FAR, "HTTPS", "in"),
        (PROXY, FAR, "http", "insecure_transport"),
        (PROXY, FAR, None, "insecure_transport"),
        (
            PROXY,
            FAR,
            "https, http",
            "insecure_transport",
        ),  # the proxy saw http; what is left of it is hearsay
        (PROXY, FAR, "http, https", "in"),
        (PROXY, f"{FAR}, 10.0.0.2", "https, http", "in"),  # the outer proxy saw https
        (PROXY, f"{FAR}, 10.0.0.2", "http, https", "insecure_transport"),
        (PROXY, f"{FAR}, 10.0.0.2", "https", "in"),
        (PROXY, None, "https", "in"),
        (PROXY, "127.0.0.1", "http", "in"),  # who sits at the proxy itself
        (PROXY, f"127.0.0.1, {FAR}", "http", "insecure_transport"),
        ("127.0.0.2", FAR, "https", "in"),
        ("127.0.0.2", FAR, "http", "insecure_transport"),
        ("127.0.0.2", "127.0.0.1", "http", "in"),
        ("127.0.0.2", None, "http", "insecure_transport"),  # the proxy is on this machine, not its client
        ("127.0.0.2", None, None, "insecure_transport"),
        (FAR, "127.0.0.1", "https", "insecure_transport"),  # anybody can say so
    ],
)
def test_what_a_named_proxy_says_counts_and_what_others_say_does_not(
    build: Build,
    world: World,
    client: str,
    forwarded_for: str | None,
    proto: str | None,
    outcome: str,
) -> None:
    said = [("X-Forwarded-For", forwarded_for), ("X-Forwarded-Proto", proto)]
    headers = [(name, value) for name, value in said if value is not None]
    send = build(insecure="refuse", trusted_proxies=PROXIES)
    text = world.keys.issue("1").text
    assert codes(send, *[request(text, *headers, client=client)] * 2) == [outcome] * 2


def test_a_key_in_the_clear_is_revoked_where_that_is_wanted_and_its_owner_is_told(
    build: Build, world: World
) -> None:
    send = build(insecure="revoke")
    issued, other = world.keys.issue("1"), world.keys.issue("1")
    safe = request(issued.text, scheme="https")
    assert codes(send, safe, request(issued.text), safe) == ["in", "insecure_transport", "revoked_key"]
    told = json.loads(send(safe).body)["detail"]
    assert told == "The API key has been revoked: it was sent over a connection that is not encrypted."
    assert codes(send, request(other.text, scheme="https")) == ["in"]
    key = world.store.get(issued.key.id)
    assert key.revoked_reason == "sent over a connection that is not encrypted"


def test_a_text_that_only_has_a_keys_id_revokes_nothing(build: Build, world: World) -> None:
    send = build(insecure="revoke")
    issued = world.keys.issue("1")
    wrong = world.scheme.mint(issued.key.id).text
    assert codes(send, request(wrong)) == ["insecure_transport"]
    assert codes(send, request(issued.text, scheme="https")) == ["in"]


def test_another_reason_stays_the_applications_own(build: Build, world: World) -> None:
    issued = world.keys.issue("1")
    world.keys.revoke(issued.key.id, reason="the laptop was stolen")
    answer = build()(request(issued.text))
    assert json.loads(answer.body)["detail"] == "The API key has been revoked."


# Here Django's settings, and with them its authenticators, are made anew for each request.
@pytest.mark.parametrize("name", [name for name in APPLICATIONS if "django" not in name])
def test_a_flood_in_the_clear_is_looked_up_seldom(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apikey_auth.exposure.SECONDS", 3600.0)
    reads: list[str] = []
    get = world.store.get
    monkeypatch.setattr(world.store, "get", lambda key_id: reads.append(key_id) or get(key_id))
    send = APPLICATIONS[name](world, insecure="revoke")
    texts = [world.scheme.mint().text for _ in range(50)]
    assert set(codes(send, *map(request, texts))) == {"insecure_transport"}
    assert len(set(reads)) == 10


def test_a_store_that_cannot_revoke_does_for_refusing_only() -> None:
    class Reader:
        def get(self, key_id: str, /) -> None:
            return None

    APIKeyMiddleware(lambda environ, start: [], Authenticator(Reader()), insecure="refuse")
    with pytest.raises(ConfigurationError, match="lacks"):
        APIKeyMiddleware(lambda environ, start: [], Authenticator(Reader()), insecure="revoke")


# Keys that the application is not to see


def seen_headers(answer: Answer) -> dict[str, str]:
    """The headers as the application found them."""
    holder = answer.holder
    if "headers" in holder:
        return {name.decode(): value.decode("latin-1") for name, value in holder["headers"]}
    return {
        name[5:].lower().replace("_", "-"): value for name, value in holder.items() if name[:5] == "HTTP_"
    }


@pytest.mark.parametrize("carriers", [[Header(), Query()], [Bearer(), Header("X-Key")], [Bearer("Token")]])
def test_keys_in_headers_are_hidden_where_that_is_wanted(
    build: Build, world: World, carriers: list[Any]
) -> None:
    send = build(hide_credentials=True, carriers=carriers)
    text = world.keys.issue("1").text
    pair = {
        "Header": ("apikey", text),
        "Bearer": ("Authorization", f"{getattr(carriers[0], 'scheme', '')} {text}"),
    }[type(carriers[0]).__name__]
    for _ in range(2):
        answer = send(Request("/me", (pair, ("Accept", "*/*"))))
        assert answer.status == 200
        found = seen_headers(answer)
        assert found.get("accept") == "*/*"
        assert not any(text in value for value in found.values())


def test_they_are_hidden_from_whoever_is_refused_or_comes_to_an_exempt_path_too(
    build: Build, world: World
) -> None:
    send = build(hide_credentials=True, exempt=["/public"], on_invalid="anonymous")
    text = world.keys.issue("1").text
    for each in (Request("/public", (("apikey", text),)), Request("/me", (("apikey", text + "x"),))):
        assert not any(text in value for value in seen_headers(send(each)).values())


def test_a_foreign_authorization_stays(build: Build, world: World) -> None:
    send = build(hide_credentials=True, carriers=[Bearer("Token"), Header()])
    text = world.keys.issue("1").text
    answer = send(Request("/me", (("apikey", text), ("Authorization", "Basic dTpw"))))
    assert answer.status == 200
    assert seen_headers(answer)["authorization"] == "Basic dTpw"


def test_without_it_they_stay(build: Build, world: World) -> None:
    text = world.keys.issue("1").text
    answer = build()(Request("/me", (("apikey", text),)))
    assert text in seen_headers(answer).values()


def test_a_middleware_further_in_still_reads_them(world: World) -> None:
    seen: list[Any] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        seen.append((environ["apikey_auth.identity"].key.id, "HTTP_APIKEY" in environ, environ[VISIT].hidden))
        start_response("200 OK", [])
        return [b""]

    issued = world.keys.issue("1")
    inner = APIKeyMiddleware(application, world.authenticator(), required=True, hide_credentials=True)
    outer = APIKeyMiddleware(inner, world.authenticator(), hide_credentials=True)
    for _ in range(2):
        assert call_wsgi(outer, Request("/me", (("apikey", issued.text),))).status == 200
    assert seen == [(issued.key.id, False, {"apikey": issued.text})] * 2
