"""The command: prints the tables of all parts, or of those that are named."""

import argparse
import platform
from collections.abc import Callable
from time import perf_counter

from apikey_auth import __version__

from .flood import show_flood
from .footprint import show_imports, show_memory
from .peers_environment import show_peers
from .requests import show_requests
from .store_calls import show_store_calls
from .throughput import show_throughput

# The flood comes first: what other parts leave of memory would hide how much it takes.
PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "flood": lambda options: show_flood(options.keys),
    "calls": lambda options: show_store_calls(options.at_once),
    "memory": lambda options: show_memory(options.remembered),
    "imports": lambda options: show_imports(options.imports),
    "requests": lambda options: show_requests(options.rounds),
    "peers": lambda options: show_peers(options.rounds),
    "throughput": lambda options: show_throughput(options.seconds),
}


def main() -> None:
    """Print the tables."""
    options = _parser().parse_args()
    start = perf_counter()
    system = f"{platform.system()} {platform.machine()}"
    print(
        f"apikey_auth {__version__}, {platform.python_implementation()} {platform.python_version()}, {system}"
    )
    for part, show in PARTS.items():
        if part in (options.parts or PARTS):
            show(options)
    print(f"\n{perf_counter() - start:.0f} s in all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    numbers = {
        "rounds": (500, "turns of each subject in a table of requests"),
        "keys": (1_000_000, "keys of each kind in the flood"),
        "at-once": (1_000, "requests in each count of calls"),
        "remembered": (10_000, "keys whose memory is measured"),
        "imports": (20, "turns of each import"),
        "seconds": (1, "length of a turn of wrk"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning}, {default:,} by default")
    return parser


if __name__ == "__main__":
    main()
