"""The fuzzing of ``tests/fuzz``: its corpus and a few thousand mutations more, and that it would find faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import inputs, run, targets

from apikey_auth import credentials, hints, keys

RUNS = 3000


@pytest.mark.parametrize("target", run.NAMES)
def test_no_kept_input_and_no_mutation_of_one_finds_a_fault(target):
    outcome = run.plain(target, len(inputs.seeds(target)) + RUNS, seed=1)
    assert not outcome.fault, str(outcome)


def test_every_target_has_a_corpus_of_its_own():
    assert set(run.NAMES) == set(targets.TARGETS)
    assert {path.stem for path in inputs.CORPUS.iterdir()} == set(run.NAMES)
    for target in run.NAMES:
        assert inputs.kept(target)
        assert max(map(len, inputs.kept(target))) <= run.MOST


FAULTS = {
    "a key is taken with blanks around it": (
        "parse",
        (keys.KeyScheme, "parse", lambda parse: lambda self, text: parse(self, text.strip())),
    ),
    "a refusal repeats the text": (
        "parse",
        (keys, "hint", lambda hint: lambda text, scheme: f"The API key is not valid: {text}."),
    ),
    "a hint raises": ("parse", (hints, "_unmangled", lambda _: lambda text: text.encode("latin-1").decode())),
    "the name of a parameter is not decoded": (
        "credentials",
        (credentials, "_decoded", lambda _: lambda text: text.encode("utf-8", "replace")),
    ),
    "the last of two headers wins": (
        "wsgi",
        (credentials, "_listed", lambda _: lambda value: [value.rpartition(",")[2].strip(" \t")]),
    ),
    "a key is named by its id with blanks around it": (
        "sensenet",
        (
            targets.MemoryKeyStore,
            "get",
            lambda get: lambda self, key_id, /: get(self, key_id.strip()),
        ),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_targets_find_faults(name, monkeypatch):
    target, (owner, attribute, make) = FAULTS[name]
    monkeypatch.setattr(owner, attribute, make(getattr(owner, attribute)))
    monkeypatch.setattr(targets, "_DETAILS", set())
    assert run.plain(target, 10_000, seed=1).fault


def test_the_command_prints_a_line_for_each_target_and_fails_for_none_that_it_knows():
    root = Path(run.ROOT)
    package = str(Path(keys.__file__).parents[1])
    command = [sys.executable, "-m", "tests.fuzz", "--runs", "500", "parse", "wsgi"]
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["parse", "wsgi"]
    assert all(line.endswith("no fault") for line in lines)
    refused = subprocess.run([*command, "nothing"], cwd=root, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, "there is no target nothing" in refused.stderr) == (2, True)
