"""One target under atheris, in a process of its own: libFuzzer ends the process when it is done."""

import sys
from collections.abc import Sequence

import atheris

with atheris.instrument_imports(include=["apikey_auth"]):
    from .targets import TARGETS


def main(arguments: Sequence[str]) -> int:
    """Fuzz a target; ``arguments`` are ``--guided``, its name, and what libFuzzer takes."""
    _, target, *flags = arguments
    atheris.Setup([sys.argv[0], *flags], TARGETS[target])
    atheris.Fuzz()
    return 0
