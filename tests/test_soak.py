"""The soak test for a few seconds: what it does, and that it finds what is wrong."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from apikey_auth import Authenticator, StoreUnavailable
from apikey_auth.cache import VerdictCache
from apikey_auth.events import Events, Refused
from apikey_auth.usage import AsyncUses, Uses

ROOT = Path(__file__).parents[1]
HERE, THERE = object(), object()  # who changes keys


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    soak = importlib.import_module("tests.soak")
    for name, seconds in {"THINKING": 0.02, "WORKING": 0.05, "NOTING": 0.2}.items():
        monkeypatch.setattr(soak, name, seconds)
    return soak


def run(store: str, seconds: float) -> str:
    """Run the command, which finds no fault, and give what it prints."""
    command = [sys.executable, "-W", "error", "-m", "tests.soak", "--store", store]
    command += ["--minutes", str(seconds / 60)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("no fault\n")
    return done.stdout


# What it does


def test_over_sqlite_every_answer_is_right_and_no_file_or_thread_is_left() -> None:
    printed = run("sqlite", 2)
    assert "| steady | in | " in printed
    assert "| forged | invalid_key | " in printed
    assert "| revoke | done | " in printed
    assert "store_unavailable" not in printed


def test_over_a_valkey_that_dies_and_comes_back_every_answer_is_right_and_no_file_or_thread_is_left(
    redis_server: Any,  # or there is none to be had
) -> None:
    printed = run("redis", 4)
    assert "| steady | in | " in printed
    assert "| redis WSGI | store_unavailable | " in printed
    assert "| redis ASGI | store_unavailable | " in printed


# What it finds


def first_faults(soak: Any) -> set[str]:
    """Run it until it finds a fault, or for a minute."""
    return set(soak.soak(["sqlite"], 60, until_fault=True).findings.faults)


def test_a_cache_that_does_not_heed_what_changed_elsewhere_is_found(
    soak: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled = VerdictCache.polled

    def heedless(cache: VerdictCache, changes: Any, started: float) -> None:
        polled(cache, replace(changes, ids=frozenset()), started)

    monkeypatch.setattr(VerdictCache, "polled", heedless)
    assert any(" where it was " in fault for fault in first_faults(soak))


def test_a_cache_that_does_not_heed_what_is_changed_here_is_found(
    soak: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("evict", "evict_owner"):
        monkeypatch.setattr(VerdictCache, name, lambda cache, what: None)
    assert any(" where it was " in fault for fault in first_faults(soak))


def test_503_without_an_outage_is_found(soak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    authenticate = Authenticator.authenticate

    def moody(auth: Any, text: str, **request: Any) -> Any:
        if text[-1] == "0":
            raise StoreUnavailable
        return authenticate(auth, text, **request)

    monkeypatch.setattr(Authenticator, "authenticate", moody)
    assert "store_unavailable without an outage" in first_faults(soak)


def test_a_lost_event_is_found(soak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emit = Events.emit

    def forgetful(events: Events, event: Any) -> None:
        if not isinstance(event, Refused):
            emit(events, event)

    monkeypatch.setattr(Events, "emit", forgetful)
    assert "events" in soak.soak(["sqlite"], 1).findings.faults


def test_a_use_that_is_not_written_down_is_found(soak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uses, "write", lambda uses: None)
    monkeypatch.setattr(AsyncUses, "write", AsyncMock())
    assert "a use is lost" in soak.soak(["sqlite"], 1).findings.faults


def test_what_is_left_over_and_memory_that_grows_are_complained_of(soak: Any) -> None:
    held = soak.Sample(memory=1000, blocks=1000, files=6, threads=1, tasks=0)
    samples = soak.Samples(1200.0, [held] * 8)
    report = soak.Report(soak.Findings(), samples, {}, held, held)
    assert report.complaints == []
    assert replace(report, left=replace(held, files=7, threads=3, tasks=1)).complaints == [
        "1 files are left",
        "2 threads are left",
        "1 tasks are left",
    ]
    grown = [held] * 6 + [replace(held, memory=1051)] * 2
    assert replace(report, samples=replace(samples, taken=grown)).complaints == ["memory grew by 5.1%"]
    grown = [held] * 6 + [replace(held, blocks=1031)] * 2
    assert replace(report, samples=replace(samples, taken=grown)).complaints == ["blocks grew by 3.1%"]
    less = [held] * 6 + [replace(held, memory=1049, blocks=1029)] * 2
    assert replace(report, samples=replace(samples, taken=less)).complaints == []


# What it takes for right


@pytest.fixture
def key(soak: Any) -> Any:
    return soak.Key("4fRk0TzQ9bVw", "", soak.Owner("u1"), (0.0, 0.1))


def answers(soak: Any, key: Any, start: float, end: float, bound: float = 1.0) -> set[str]:
    """Tell what may be answered to a request by way of HERE between two moments."""
    found: set[str] = key.answers(soak.Asked(start, start - bound, HERE), end)
    return found


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (8.0, 9.9, {"in"}),
        (8.0, 10.0, {"in", "revoked_key"}),
        (11.5, 11.6, {"in", "revoked_key"}),
        (12.0, 12.1, {"in", "revoked_key"}),
        (12.1, 12.2, {"revoked_key"}),
    ],
)
def test_a_key_revoked_elsewhere_is_dead_once_the_bound_is_over(
    soak: Any, key: Any, start: float, end: float, expected: set[str]
) -> None:
    key.turns.append(soak.Turn("revoked_key", True, 10.0, 11.0, by=THERE))
    assert answers(soak, key, start, end) == expected


def test_a_key_revoked_here_is_dead_at_once(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("revoked_key", True, 10.0, 11.0, by=HERE))
    assert answers(soak, key, 10.9, 12.0) == {"in", "revoked_key"}
    assert answers(soak, key, 11.1, 12.0) == {"revoked_key"}


def test_a_change_that_may_have_failed_leaves_both_answers_open(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("revoked_key", True, 10.0, by=HERE))
    assert answers(soak, key, 20.0, 20.1) == {"in", "revoked_key"}
    key.turns.append(soak.Turn("revoked_key", True, 21.0, 22.0, by=HERE))
    assert answers(soak, key, 22.1, 22.2) == {"revoked_key"}


def test_a_key_that_is_enabled_again_is_alive_again(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("disabled_key", True, 10.0, 11.0, by=THERE))
    key.turns.append(soak.Turn("disabled_key", False, 15.0, 16.0, by=THERE))
    assert answers(soak, key, 13.0, 14.0) == {"disabled_key"}
    assert answers(soak, key, 15.5, 15.6) == {"disabled_key", "in"}
    assert answers(soak, key, 17.5, 17.6) == {"in"}


def test_a_rotated_key_goes_on_for_its_grace(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("expired_key", True, 10.0, 11.0, delay=3.0, by=THERE))
    assert answers(soak, key, 11.0, 12.5) == {"in"}
    assert answers(soak, key, 13.0, 13.5) == {"in", "expired_key"}
    assert answers(soak, key, 14.2, 14.3) == {"expired_key"}


def test_a_key_that_has_been_dead_for_long_may_be_forgotten(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("revoked_key", True, 10.0, 11.0, by=THERE))
    assert answers(soak, key, 39.0, 39.9) == {"revoked_key"}
    assert answers(soak, key, 39.0, 40.0) == {"revoked_key", "invalid_key"}


def test_a_rotated_key_ends_though_it_is_disabled(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("disabled_key", True, 1.0, 2.0, by=THERE))
    assert not key.has_ended()
    key.turns.append(soak.Turn("expired_key", True, 3.0, 4.0, delay=0.5, by=THERE))
    assert key.has_ended()


def test_a_key_that_has_been_disabled_for_long_is_not_forgotten(soak: Any, key: Any) -> None:
    key.turns.append(soak.Turn("disabled_key", True, 10.0, 11.0, by=THERE))
    assert answers(soak, key, 99.0, 99.1) == {"disabled_key"}


def test_an_outage_excuses_until_the_store_is_sure_to_be_noticed_again(soak: Any) -> None:
    outages = soak.Outages()
    outages.spans.append([10.0, 12.0])
    assert not outages.cover(8.0, 9.9)
    assert outages.cover(8.0, 10.0)
    assert outages.cover(12.0 + soak.TAIL, 20.0)
    assert not outages.cover(12.1 + soak.TAIL, 20.0)
