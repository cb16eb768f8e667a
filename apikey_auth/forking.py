"""What a child process must not take over from its parent."""

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

Calls = dict[int, "tuple[weakref.ref[object], Callable[..., Any], dict[str, Any]]"]

_before: Calls = {}
_in_child: Calls = {}
_numbers = count()


def after_fork(method: Callable[..., Any], **arguments: Any) -> None:
    """Have a bound method called in every child process, for as long as its object lives."""
    _note(_in_child, method, arguments)


def before_fork(method: Callable[..., Any]) -> None:
    """Have a bound method called in the parent before each fork, for as long as its object lives."""
    _note(_before, method, {})


def _note(calls: Calls, method: Any, arguments: dict[str, Any]) -> None:
    number = next(_numbers)
    gone = partial(calls.pop, number)  # none of Python's own: objects go while Python ends, and anywhere
    calls[number] = weakref.ref(method.__self__, gone), method.__func__, arguments


def _call(calls: Calls) -> None:
    with ExitStack() as due:  # all of them, though one should fail; the last is called first
        for found, function, arguments in reversed(tuple(calls.values())):
            if (alive := found()) is not None:
                due.callback(function, alive, **arguments)


if hasattr(os, "register_at_fork"):  # not where processes are never forked; once: what is registered stays
    os.register_at_fork(before=partial(_call, _before), after_in_child=partial(_call, _in_child))
