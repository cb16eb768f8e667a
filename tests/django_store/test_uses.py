"""A Django project notes which keys were used, and tells its hooks what happens."""

import threading
import time
from typing import Any

import pytest
from django.db import connections
from django.db.backends.signals import connection_created

from apikey_auth import ConfigurationError
from apikey_auth.django import get_key_manager
from apikey_auth.django.store import DjangoKeyStore
from apikey_auth.events import Authenticated, Event, Issued
from apikey_auth.testing.drive import PATIENCE

from .test_settings import COLOURS, authenticate, configured

pytestmark = pytest.mark.usefixtures("clean_project")

heard: list[Event] = []


def hear(event: Event) -> None:
    heard.append(event)


async def hear_later(event: Event) -> None:
    heard.append(event)


def test_the_two_authenticators_note_uses_together_and_no_request_writes_them(alias: str) -> None:
    store = DjangoKeyStore(alias)
    with configured(STORE=store) as setup:
        keys = [get_key_manager().issue("1") for _ in COLOURS]
        for issued, colour in zip(keys, COLOURS, strict=True):
            authenticate(setup, issued.text, colour)
        assert [store.get(each.key.id).last_used_at for each in keys] == [None, None]  # type: ignore[union-attr]
        setup.authenticator.flush()
        assert all(store.get(each.key.id).last_used_at for each in keys)  # type: ignore[union-attr]


def test_the_thread_that_writes_leaves_no_connection_behind(alias: str) -> None:
    opened: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        if threading.current_thread().name == "apikey_auth-usage":
            opened.append(connection)

    connection_created.connect(note)
    store = DjangoKeyStore(alias)
    with configured(STORE=store, TOUCH_INTERVAL=0.05) as setup:
        issued = get_key_manager().issue("1")
        authenticate(setup, issued.text)
        deadline = time.monotonic() + PATIENCE
        while not (opened and all(each.connection is None for each in opened)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.get(issued.key.id).last_used_at  # type: ignore[union-attr]
    assert all(each.alias in connections for each in opened)


@pytest.mark.parametrize("hooks", [hear, f"{__name__}.hear", [hear], [f"{__name__}.hear"]])
@pytest.mark.parametrize("colour", COLOURS)
def test_hooks_are_functions_or_their_paths(hooks: Any, colour: str) -> None:
    heard.clear()
    with configured(ON_EVENT=hooks) as setup:
        issued = get_key_manager().issue("1")
        authenticate(setup, issued.text, colour)
        events = setup.authenticator.events
        assert events is setup.async_authenticator.events
        assert events is not None
        assert events.flush()
    assert [type(event) for event in heard] == [Issued, Authenticated]


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ("nowhere.hook", "APIKEY_AUTH\\['ON_EVENT'\\] is a function or its path: No module named 'nowhere'"),
        (hear_later, "on_event"),
        (7, "on_event must be a function"),
    ],
)
def test_what_is_no_hook_is_refused(hooks: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said), configured(ON_EVENT=hooks):
        pass


def test_without_hooks_there_are_no_events() -> None:
    with configured() as setup:
        assert setup.authenticator.events is None
