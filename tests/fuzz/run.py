"""Runs targets: with atheris where it is installed, guided by coverage; else by plain mutation of the seeds."""

import argparse
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from types import FrameType
from typing import Any

from .inputs import TOKENS, keep, seeds

NAMES = ("credentials", "parse", "sensenet", "wsgi", "asgi")
MOST = 1024  # bytes of an input
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a run of a target came to: how many inputs it had, and the report of a fault where it found one."""

    target: str
    engine: str
    inputs: int
    seconds: float
    fault: str = ""

    def __str__(self) -> str:
        end = f"FAULT\n{self.fault}" if self.fault else "no fault"
        return f"{self.target:12} {self.inputs:>12,} inputs {self.seconds:9.1f} s  {self.engine:8}  {end}"


def main(arguments: Sequence[str]) -> int:
    """Run targets and print a line for each. Answers 1 where one of them has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"out of {', '.join(NAMES)}; without, all"
    )
    parser.add_argument("--runs", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=1, help="of the mutation")
    parser.add_argument(
        "--keep", action="store_true", help="keep, with atheris, the inputs that reached more"
    )
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.targets) - set(NAMES)):
        parser.error(f"there is no target {', '.join(unknown)}")
    outcomes = []
    for target in chosen.targets or NAMES:
        if find_spec("atheris"):
            outcomes.append(guided(target, chosen.runs, chosen.seed, keeps=chosen.keep))
        else:
            outcomes.append(plain(target, chosen.runs, chosen.seed))
        print(outcomes[-1], flush=True)
    return int(any(outcome.fault for outcome in outcomes))


def plain(target: str, runs: int, seed: int) -> Outcome:
    """Run a target over its seeds and their mutations, up to the first fault."""
    from .targets import TARGETS

    call, chance, start, began = TARGETS[target], Random(seed), seeds(target), perf_counter()
    for number in range(runs):
        data = start[number] if number < len(start) else mutated(chance, start)
        try:
            call(data)
        except Exception:
            fault = f"{traceback.format_exc()}{data!r}"
            return Outcome(target, "plain", number + 1, perf_counter() - began, fault)
    return Outcome(target, "plain", runs, perf_counter() - began)


def mutated(chance: Random, start: Sequence[bytes]) -> bytes:
    """Change one of the inputs in a few places."""
    data = bytearray(chance.choice(start))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((0, 0, 1, 4, 20)))
        kind = chance.randrange(4)
        if kind == 0:
            data[at:end] = chance.choice(TOKENS)
        elif kind == 1:
            data[at:end] = chance.randbytes(chance.randint(0, 3))
        elif kind == 2:
            data[at:at] = data[at:end] * chance.randint(1, 3)
        else:
            other = chance.choice(start)
            data[at:end] = other[chance.randint(0, len(other)) :]
    if data and chance.random() < 0.3:
        data[0] = chance.randrange(256)
    return bytes(data[:MOST])


def guided(target: str, runs: int, seed: int, *, keeps: bool) -> Outcome:
    """Run a target under atheris, in a process of its own."""
    with TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, data in enumerate(seeds(target)):
            (corpus / f"{number:05}").write_bytes(data)
        tokens = folder / "tokens"
        tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in TOKENS))
        flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MOST}", f"-dict={tokens}", "-timeout=20"]
        flags += [f"-artifact_prefix={folder}/fault-", "-print_final_stats=1", "-rss_limit_mb=3000"]
        began = perf_counter()
        code, report = _atheris(target, *flags, str(corpus))
        seconds = perf_counter() - began
        count = re.search(r"number_of_executed_units: (\d+)", report)
        fault = ""
        if code != 0 or count is None:
            found = [path.read_bytes() for path in folder.glob("fault-*")]
            fault = f"{report[-4000:]}{found!r}"
        elif keeps:
            keep(target, reaching(target, [path.read_bytes() for path in corpus.iterdir()]))
        return Outcome(target, "atheris", int(count[1]) if count else 0, seconds, fault)


def reaching(target: str, inputs: Sequence[bytes]) -> list[bytes]:
    """Choose, shortest first, the inputs that take a step in the library that none before them took."""
    from .targets import TARGETS

    steps: set[tuple[str, int, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_globals.get("__name__", "").startswith("apikey_auth"):
            return None
        name, last = frame.f_code.co_qualname, 0

        def step(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            nonlocal last
            steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    chosen = []
    for data in sorted(inputs, key=lambda each: (len(each), each)):
        known = len(steps)
        sys.settrace(trace)
        try:
            TARGETS[target](data)
        finally:
            sys.settrace(None)
        if len(steps) > known:
            chosen.append(data)
    return chosen


def _atheris(target: str, *flags: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--guided", target, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return run.returncode, run.stdout.decode("utf-8", "replace")


def _escaped(token: bytes) -> str:
    """Write a token as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in token)
