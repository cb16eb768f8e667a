"""What people get wrong, and what they are told: what happened, and what to do."""

import logging
import traceback
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import flask
import pytest

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Bearer,
    ConfigurationError,
    InactiveUser,
    InsufficientScope,
    KeyManager,
    KeyNotFound,
    KeyScheme,
    MemoryKeyStore,
    MissingKey,
    StoreUnavailable,
    opaque_tokens,
)
from apikey_auth.flask import APIKeyAuth
from apikey_auth.policy import Policy
from apikey_auth.starlette import require_api_key
from apikey_auth.stores.sql import SQLKeyStore
from apikey_auth.wsgi import APIKeyMiddleware

keys = KeyManager(MemoryKeyStore(), KeyScheme(prefix="acme"))


@pytest.mark.parametrize(
    ("mistake", "error", "advice"),
    [
        (lambda: keys.issue("1", expires_in=90), TypeError, r"such as timedelta\(days=90\), not 90"),  # type: ignore[arg-type]
        (lambda: keys.rotate(keys.issue("1").key.id, grace=3600), TypeError, r"grace is a timedelta"),  # type: ignore[arg-type]
        (lambda: keys.issue("1", scopes=[1]), ValueError, "1 is no scope"),  # type: ignore[list-item]
        (lambda: keys.issue(None), TypeError, "owner must be text, not NoneType"),  # type: ignore[arg-type]
        (lambda: keys.list(1), TypeError, "owner must be text, not int"),  # type: ignore[arg-type]
        (lambda: keys.find(owner=1), TypeError, "owner must be text, not int"),  # type: ignore[arg-type]
        (lambda: keys.find(after=1), TypeError, "after must be text, not int"),  # type: ignore[arg-type]
        (lambda: keys.purge(datetime.now()), ValueError, "before has no time zone"),  # noqa: DTZ005
        (lambda: keys.find(live_at=datetime.now()), ValueError, "live_at has no time zone"),  # noqa: DTZ005
        (lambda: keys.purge("2027-01-01"), TypeError, "before is a datetime, such as"),  # type: ignore[arg-type]
        (lambda: keys.get(keys.issue("1")), TypeError, r"a key's id is text, issued.key.id, not IssuedKey"),  # type: ignore[arg-type]
        (lambda: keys.revoke(keys.issue("1").key), TypeError, r"issued.key.id, not APIKey"),  # type: ignore[arg-type]
        (lambda: Authenticator(MemoryKeyStore(), "acme"), ConfigurationError, r"KeyScheme\(prefix='acme'\)"),  # type: ignore[call-overload]
        (lambda: KeyManager(MemoryKeyStore(), "acme"), ConfigurationError, r"KeyScheme\(prefix='acme'\)"),  # type: ignore[arg-type]
        (lambda: Authenticator(MemoryKeyStore), ConfigurationError, r"an instance: MemoryKeyStore\(…\)"),  # type: ignore[call-overload]
        (lambda: Authenticator("sqlite:///k.db"), ConfigurationError, r"SQLKeyStore\(url\)"),  # type: ignore[call-overload]
        (lambda: AsyncAuthenticator(MemoryKeyStore()), ConfigurationError, "use an async store, or wrap"),  # type: ignore[call-overload]
        (lambda: Policy(required="yes"), ConfigurationError, "required is True or False, not 'yes'"),  # type: ignore[arg-type]
        (lambda: Policy(carriers=Bearer()), ConfigurationError, "carriers is a list"),  # type: ignore[arg-type]
        (lambda: SQLKeyStore("sqlite://keys.db"), ConfigurationError, "two slashes; a file takes three"),
        (lambda: require_api_key(["a"]), TypeError, r"one by one: @require_api_key\('a', 'b'\)"),  # type: ignore[arg-type]
        (lambda: require_api_key("a b"), ValueError, "'a b' is no scope"),
        (lambda: require_api_key()(type("Page", (), {})), TypeError, "on the methods of Page"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(mistake: Any, error: type[Exception], advice: str) -> None:
    with pytest.raises(error, match=advice):
        mistake()


def test_a_keys_text_in_the_place_of_its_id_is_not_repeated() -> None:
    text = keys.issue("1").text
    with pytest.raises(KeyNotFound, match="is it the key's text") as caught:
        keys.revoke(text)
    assert text not in str(caught.value)


def test_no_text_at_all_is_a_missing_key() -> None:
    auth = Authenticator(MemoryKeyStore())
    for nothing in (None, ""):
        with pytest.raises(MissingKey):
            auth.authenticate(nothing)


def test_bytes_in_the_place_of_text_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="a key is text, not bytes"):
        Authenticator(MemoryKeyStore()).authenticate(b"acme_x")  # type: ignore[arg-type]


def test_one_missing_scope_may_be_given_as_it_is() -> None:
    assert InsufficientScope("reports:read").missing == ("reports:read",)


def test_an_asgi_application_in_a_wsgi_middleware_is_refused() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"use apikey_auth\.asgi"):
        APIKeyMiddleware(app, Authenticator(MemoryKeyStore()))  # type: ignore[arg-type]


def test_requiring_a_key_above_flasks_route_is_refused() -> None:
    app = flask.Flask("no_package")
    api = APIKeyAuth(Authenticator(MemoryKeyStore()), app)
    with pytest.raises(ConfigurationError, match=r"view is routed already: put required\(\) below the route"):

        @api.required()
        @app.get("/")
        def view() -> str:
            return "open to all"


def test_a_file_without_tables_says_how_to_make_them(tmp_path: Path) -> None:
    store = SQLKeyStore(f"sqlite:///{tmp_path}/keys.db")
    with pytest.raises(
        StoreUnavailable, match=r"keys.db failed: no such table.*create=True or create_schema\(\)"
    ):
        store.get("x")
    store.close()


@pytest.mark.parametrize("failing", ["store", "loader"])
def test_the_cause_of_a_503_is_in_the_log(failing: str, tmp_path: Path, caplog: Any) -> None:
    def down(owner: str) -> None:
        raise ConnectionError("the users are down")

    empty = SQLKeyStore(f"sqlite:///{tmp_path}/keys.db", create=failing == "loader")
    auth = Authenticator(empty, load_user=down)
    text = auth.keys.issue("1").text if failing == "loader" else auth.scheme.mint().text
    with caplog.at_level(logging.ERROR, "apikey_auth"), pytest.raises(StoreUnavailable):
        auth.authenticate(text)
    (record,) = caplog.records
    assert record.exc_info
    assert ("no such table" if failing == "store" else "the users are down") in caplog.text
    assert text not in caplog.text
    empty.close()


def test_the_span_of_a_life_may_be_days_or_none() -> None:
    assert keys.issue("1", expires_in=timedelta(days=1)).key.expires_at is not None
    assert keys.issue("1", expires_in=None).key.expires_at is None


def test_unkeyed_ids_of_tokens_do_not_go_with_peppers() -> None:
    pepper = "a pepper of enough bytes"
    with pytest.raises(ConfigurationError, match="the oldest pepper for one"):
        KeyScheme(peppers=[pepper], formats=[opaque_tokens()])
    assert KeyScheme(peppers=[pepper], formats=[opaque_tokens(pepper)]).parse("abcd").text == "abcd"


def test_a_secret_of_the_wrong_type_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        KeyScheme(peppers=[bytearray(b"a pepper of enough bytes")])  # type: ignore[list-item]
    assert "pepper of enough" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["sqlite//u:hunter2@h/x", "sqlite://u:hunter2@host/x", "oracle://u:hunter2@h/x"]
)
def test_a_url_that_will_not_do_keeps_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SQLKeyStore(url)
    assert "hunter2" not in str(caught.value)


def test_a_keys_text_in_the_place_of_its_id_is_in_no_part_of_the_error() -> None:
    text = keys.issue("1").text
    with pytest.raises(KeyNotFound) as caught:
        keys.get(text)
    assert text not in repr(caught.value) + str(caught.value.args)


@pytest.mark.parametrize("name", ["scopes", "addresses"])
def test_a_key_has_a_bounded_number_of_what_each_request_reads(name: str) -> None:
    many = [f"10.0.{n >> 8}.{n & 255}/32" for n in range(257)]
    with pytest.raises(ValueError, match=f"256 {name} at most, not 257"):
        keys.issue("1", **{name: many})  # type: ignore[arg-type]


def test_metadata_of_any_depth_is_refused_and_not_followed() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"": deep}
    with pytest.raises(ValueError, match="metadata must be a JSON object"):
        keys.issue("1", metadata=deep)


def test_a_logged_failure_has_no_frame_that_holds_the_key(caplog: Any) -> None:
    class Down:
        def get(self, key_id: str, /) -> None:
            raise ConnectionError("down")

    auth = Authenticator(Down())
    text = auth.scheme.mint().text
    with pytest.raises(StoreUnavailable):
        auth.authenticate(text)
    (record,) = caplog.records
    shown = "".join(traceback.TracebackException(*record.exc_info, capture_locals=True).format())
    assert "down" in shown
    assert text not in shown


def test_metadata_has_a_bounded_depth() -> None:
    deep: Any = 1
    for _ in range(32):
        deep = {"": deep}
    assert keys.issue("1", metadata=deep).key.metadata == deep
    with pytest.raises(ValueError, match="of 32 levels at most"):
        keys.issue("1", metadata={"": deep})


@pytest.mark.parametrize("user", [False, None])
def test_a_loader_that_says_no_ends_the_key(user: Any) -> None:
    auth = Authenticator(MemoryKeyStore(), load_user=lambda owner: user)
    with pytest.raises(InactiveUser):
        auth.authenticate(auth.keys.issue("1").text)


def test_an_activity_that_has_to_be_awaited_is_a_mistake() -> None:
    class User:
        async def is_active(self) -> bool:
            return False

    auth = Authenticator(MemoryKeyStore(), load_user=lambda owner: User())
    with pytest.raises(ConfigurationError, match="must not be async"):
        auth.authenticate(auth.keys.issue("1").text)


@pytest.mark.parametrize(
    "options",
    [{"exempt": [1]}, {"exempt": None}, {"trusted_proxies": None}, {"realm": None}, {"render": "x"}],
)
def test_an_option_of_the_wrong_type_is_a_configuration_error(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        Policy(**options)
