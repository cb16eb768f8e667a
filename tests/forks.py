"""What is checked in a forked child."""

import os
import warnings
from collections.abc import Callable
from threading import Timer

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are never forked here")
DEADLINE = 10.0  # seconds


def in_child(check: Callable[[], bool]) -> bool:
    """Say what a check says in a forked child, which does not wait for ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which are what is tried here
        child = os.fork()
    if child == 0:
        answer = 2
        Timer(DEADLINE, os._exit, [answer]).start()
        try:
            answer = 0 if check() else 1
        finally:
            os._exit(answer)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
