"""The benchmarks, with small numbers: what they count holds, and the command prints its tables."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import flood, footprint, store_calls

ROOT = Path(__file__).parents[1]
MANY = 20
STALENESS = 600.0  # seconds: no poll falls due meanwhile, however slow the machine
FRAMEWORKS = ("ASGI", "Starlette", "WSGI", "Flask", "Django")


@pytest.fixture(scope="module", params=["threads", "tasks"])
def reads(request):
    """How often the store was read in each case."""
    if request.param == "threads":
        counts = store_calls.blocking_counts(MANY, max_staleness=STALENESS)
    else:
        counts = asyncio.run(store_calls.async_counts(MANY, max_staleness=STALENESS))
    return {case: calls["reads"] for case, calls in counts.items()}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("the first request with a key", 1),
        ("20 more with it, one by one", 0),
        ("20 at once, the first with their key", 1),
        ("20 malformed keys", 0),
        ("20 forged keys", 0),
        ("20 unknown keys", MANY),
    ],
)
def test_requests_read_the_store_as_often_as_they_must(reads, case, expected):
    assert reads[case] == expected


@pytest.mark.parametrize(("kind", "expected"), [("malformed", 0), ("forged", 0), ("unknown", 3_000)])
def test_a_flood_of_bad_keys_takes_no_real_key_out_of_memory(kind, expected):
    flooded = flood.flood(kind, 3_000, max_staleness=STALENESS)  # more than are remembered of bad keys
    assert flooded.reads == expected
    assert (flooded.before, flooded.after) == (flood.REAL, flood.REAL)


def test_importing_the_library_loads_no_framework_and_no_driver():
    loaded = {name.partition(".")[0] for name in footprint.loaded_modules()}
    assert "itsdangerous" in loaded
    assert not loaded & {"django", "fastapi", "flask", "redis", "sqlalchemy", "starlette", "werkzeug"}


def test_the_command_prints_each_of_its_tables():
    few = ["--rounds=1", "--keys=10", "--at-once=10", "--remembered=80", "--imports=1"]
    parts = ["flood", "calls", "memory", "imports", "requests"]
    command = [sys.executable, "-W", "error", "-m", "tests.benchmarks", *parts, *few]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert sum(row[0] == "| ---" for row in rows) == len(parts)
    ours = {row[0].strip("| ") for row in rows if row[1:] and row[1] == "apikey_auth"}
    assert ours.issuperset(FRAMEWORKS)
