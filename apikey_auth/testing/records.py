"""Records that are hard to keep, ids that are hard to tell apart, and moments that decide. No assertions."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from ..keys import APIKey
from ..stores.protocol import KeyStore, Revision

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)
KATHMANDU = timezone(timedelta(hours=5, minutes=45))

FULL: Mapping[str, Any] = {
    "owner": "User1",
    "digest": "sha256$$" + "ab" * 32,
    "name": "Ünïcödé 名前 🔑",
    "prefix": "acme",
    "last4": "wXyZ",
    "scopes": ["reports:read", "reports:write"],
    "addresses": ["10.0.0.0/8", "2001:db8::/32"],
    "created_at": NOW - DAY,
    "created_by": "Ådmin",
    "expires_at": NOW + 90 * DAY,
    "disabled": True,
    "revoked_at": NOW,
    "revoked_reason": "it was in a public repository, «là»",
    "rotated_to": "k2",
    "rotated_from": "k0",
    "grace_until": NOW + DAY,
    "last_used_at": NOW - MOMENT,
    "metadata": {"team": "Zürich", "nested": {"list": [1, 2.5, True, None, "é", []], "empty": {}}},
    "version": 7,
}

RECORDS: Mapping[str, Mapping[str, Any]] = {
    "nothing but what it must have": {},
    "every field": FULL,
    "scopes None": {"scopes": None},
    "scopes empty": {"scopes": []},
    "scopes in their order": {"scopes": ["z", "a", "M"]},
    "addresses None": {"addresses": None},
    "addresses empty": {"addresses": []},
    "created_by None beside a reason": {"created_by": None, "revoked_reason": ""},
    "metadata with a null": {"metadata": {"a": None}},
    "metadata with large and small numbers": {"metadata": {"a": 2**80, "b": -1, "c": 1e308, "d": 5e-324}},
    "metadata with names that SQL and JSON know": {"metadata": {"$.a": "'", '"': "\\", "": "\0", "%s": ":x"}},
    "metadata beyond the basic plane": {"metadata": {"🔑": "\U0010ffff\u2028"}},
    "metadata of many levels": {"metadata": {"a": [[[[[[[[[[{"b": [[[[[[[[[[]]]]]]]]]]}]]]]]]]]]]}},
    "an owner in another script": {"owner": "Пользователь 1", "name": "نام"},
    "an owner of 255 characters": {"owner": "ö" * 255, "name": "🔑" * 255},
    "an owner that looks like SQL": {"owner": "x'; DROP TABLE apikey_auth_keys; --", "name": "%_\\"},
    "blanks at both ends": {"owner": " User1 ", "name": "\ta\n"},
    "a long reason": {"revoked_at": NOW, "revoked_reason": "x" * 10_000},
    "a high version": {"version": 2**31 - 1},
}

TIMES: Mapping[str, datetime] = {
    "a microsecond": NOW,
    "no microsecond": NOW.replace(microsecond=0),
    "the last microsecond of 1969": datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "the first moment of 1970": datetime(1970, 1, 1, tzinfo=UTC),
    "the year 1": datetime.min.replace(tzinfo=UTC),
    "the last microsecond of the year 9999": datetime.max.replace(tzinfo=UTC),
    "an offset to the east": datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=KATHMANDU),
    "an offset to the west": datetime(2026, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=11))),
}
TIME_FIELDS = ("created_at", "expires_at", "revoked_at", "grace_until", "last_used_at")

# What a record says, and whether it is live at NOW.
LIVE_AT_NOW: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "without an end": ({}, True),
    "expires a moment later": ({"expires_at": NOW + MOMENT}, True),
    "expires now": ({"expires_at": NOW}, False),
    "expired a moment ago": ({"expires_at": NOW - MOMENT}, False),
    "in its grace for a moment": ({"grace_until": NOW + MOMENT}, True),
    "its grace ends now": ({"grace_until": NOW}, False),
    "past its grace": ({"grace_until": NOW - MOMENT}, False),
    "in its grace but expired": ({"grace_until": NOW + DAY, "expires_at": NOW - DAY}, False),
    "past its grace, expires later": ({"grace_until": NOW - DAY, "expires_at": NOW + DAY}, False),
    "disabled": ({"disabled": True}, False),
    "revoked": ({"revoked_at": NOW - DAY}, False),
    "revoked, at a time still to come": ({"revoked_at": NOW + DAY}, False),
}

# What a record says, and whether a purge of what was dead before NOW takes it.
DEAD_BEFORE_NOW: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "live": ({}, False),
    "disabled for long": ({"disabled": True, "created_at": NOW - 900 * DAY}, False),
    "expires later": ({"expires_at": NOW + DAY}, False),
    "expired at that time": ({"expires_at": NOW}, False),
    "expired a moment before": ({"expires_at": NOW - MOMENT}, True),
    "past its grace at that time": ({"grace_until": NOW}, False),
    "past its grace a moment before": ({"grace_until": NOW - MOMENT, "expires_at": NOW + DAY}, True),
    "revoked at that time": ({"revoked_at": NOW}, False),
    "revoked a moment before": ({"revoked_at": NOW - MOMENT, "expires_at": NOW + DAY}, True),
}

STRANGE_IDS: Mapping[str, str] = {
    "never issued": "unknown",
    "empty": "",
    "in another case": "K1",
    "with a blank behind": "k1 ",
    "with a NUL behind": "k1\0",
    "a NUL": "\0",
    "a wildcard": "k%",
    "non-ASCII": "ключ🔑",
    "a lone surrogate": "k1\udcff",
    "very long": "k1" * 100_000,
    "SQL": "' OR '1'='1",
}


def record(key_id: str = "k1", **given: Any) -> APIKey:
    """Make a record of which only the id matters, and what is given."""
    return APIKey(**{"id": key_id, "owner": "User1", "digest": "sha256$$00", "created_at": NOW, **given})


def cases(table: Mapping[str, Any]) -> list[Any]:
    return [pytest.param(value, id=name) for name, value in table.items()]


def pairs(table: Mapping[str, tuple[Any, bool]]) -> list[Any]:
    return [pytest.param(*values, id=name) for name, values in table.items()]


def add_all(store: KeyStore, *keys: APIKey) -> None:
    for key in keys:
        store.add(key)


def everything(store: KeyStore, **wanted: Any) -> list[APIKey]:
    """Collect what ``find`` lists on all its pages."""
    page = store.find(**wanted)
    found = [*page.items]
    while page.next is not None:
        page = store.find(after=page.next, **wanted)
        found.extend(page.items)
    return found


def revision_of(store: KeyStore) -> Revision:
    return store.changes(None).revision


def named(store: KeyStore, since: Revision) -> set[str] | None:
    """Tell which keys ``changes`` names; None is any of them."""
    ids = store.changes(since).ids
    return None if ids is None else set(ids)
