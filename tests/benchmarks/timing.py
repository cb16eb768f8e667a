"""Whether time tells how much of a secret was guessed: ``python -m tests.benchmarks.timing``.

The id is right, and the first, a middle or the last character of the secret is not; the check fits, as it
is public. Nothing is remembered, so that every request reads the store and compares. The three kinds take
turns at random in one process, and two statistics say whether their times come from one distribution:
Welch's t, of the means, and Kolmogorov's and Smirnov's D, of the whole. Nothing here passes or fails.
"""

import argparse
import gc
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import combinations
from random import Random
from statistics import fmean, median, variance
from time import perf_counter_ns

from apikey_auth import Authenticator, InvalidKey, KeyManager, KeyScheme, MemoryKeyStore
from apikey_auth.layout import BASE62, CHECK_LENGTH, SECRET_LENGTH, checksum

PLACES = {"first": 0, "middle": SECRET_LENGTH // 2, "last": SECRET_LENGTH - 1}
SIGNIFICANT = 0.001
KEYS = 500  # that are guessed at: the time depends a little on a text itself, by its check's number
KEPT = 0.99  # of the samples for the means: beyond stand interruptions, which would drown any difference


def main() -> None:
    """Print a table of the kinds, and one of their pairs."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.timing", description=__doc__)
    parser.add_argument("--samples", type=int, default=200_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the turns")
    options = parser.parse_args()
    times = measured(options.samples, Random(options.seed))
    print(f"{'wrong character':16} {'samples':>9} {'median':>9} {'mean':>9}")
    for kind, taken in times.items():
        print(f"{kind:16} {len(taken):9,} {median(taken):6.0f} ns {fmean(taken):6.0f} ns")
    end = sorted(time for taken in times.values() for time in taken)[int(KEPT * 3 * options.samples) - 1]
    print(f"\n{'pair':16} {'t':>8} {'p':>8} {'D':>8} {'p':>8}  at p < {SIGNIFICANT}")
    for one, other in combinations(times, 2):
        means = welch(*([time for time in times[kind] if time <= end] for kind in (one, other)))
        whole = kolmogorov_smirnov(times[one], times[other])
        told = min(means[1], whole[1]) < SIGNIFICANT
        numbers = f"{means[0]:8.2f} {means[1]:8.4f} {whole[0]:8.5f} {whole[1]:8.4f}"
        print(f"{f'{one}, {other}':16} {numbers}  {'told apart' if told else 'not told apart'}")


def measured(samples: int, chance: Random) -> dict[str, list[int]]:
    """Time refusals, in nanoseconds; each kind has a text for every key and other character in its place."""
    store, scheme = MemoryKeyStore(), KeyScheme("acme", ["a pepper only for this benchmark"])
    issued = [KeyManager(store, scheme).issue("1").text for _ in range(KEYS)]
    auth = Authenticator(store, scheme, cache_size=0)
    texts = {kind: [raw for text in issued for raw in altered(text, at)] for kind, at in PLACES.items()}
    turns = [kind for kind in PLACES for _ in range(samples)]
    chance.shuffle(turns)
    requests = [(kind, chance.choice(texts[kind])) for kind in turns]
    for _, raw in requests[:1000]:  # warms up
        timed(auth, raw)
    times: dict[str, list[int]] = {kind: [] for kind in PLACES}
    gc.disable()
    try:
        for kind, raw in requests:
            times[kind].append(timed(auth, raw))
    finally:
        gc.enable()
    return times


def altered(text: str, place: int) -> list[bytes]:
    """Put every other character in one place of a key's secret."""
    at = text.rindex("_") + 1 + place
    bodies = [text[:at] + other + text[at + 1 : -CHECK_LENGTH] for other in BASE62 if other != text[at]]
    return [(body + checksum(body)).encode("ascii") for body in bodies]


def timed(auth: Authenticator[object], raw: bytes) -> int:
    """Time one refusal, of a text that is new in memory, as that of a request is."""
    text = raw.decode("ascii")
    start = perf_counter_ns()
    try:
        auth.authenticate(text)
    except InvalidKey:
        return perf_counter_ns() - start
    raise AssertionError("it was let in")


def welch(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Compute Welch's t and its two-sided p, by the normal distribution: the samples are many."""
    error = math.sqrt(variance(one) / len(one) + variance(other) / len(other))
    t = (fmean(one) - fmean(other)) / error
    return t, math.erfc(abs(t) / math.sqrt(2))


def kolmogorov_smirnov(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Compute D of two samples and its p, by Kolmogorov's distribution with Stephens's correction."""
    first, second = sorted(one), sorted(other)
    distance = max(
        abs(bisect_right(first, value) / len(first) - bisect_right(second, value) / len(second))
        for value in {*first, *second}
    )
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:  # where the series below does not converge, and p is 1 to twelve digits
        return distance, 1.0
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return distance, min(1.0, max(0.0, p))


if __name__ == "__main__":
    main()
