"""What a child process must not take over from its parent."""

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any

_methods: "dict[int, tuple[weakref.WeakMethod[Callable[..., Any]], dict[str, Any]]]" = {}
_numbers = count()


def after_fork(method: Callable[..., Any], **arguments: Any) -> None:
    """Have a bound method called in every child process, for as long as its object lives."""
    number = next(_numbers)
    found = weakref.WeakMethod(method, lambda _: _methods.pop(number, None))
    _methods[number] = found, arguments


def _in_child() -> None:
    with ExitStack() as calls:  # all of them, though one should fail; the last is called first
        for found, arguments in reversed(tuple(_methods.values())):
            if (alive := found()) is not None:
                calls.callback(alive, **arguments)


if hasattr(os, "register_at_fork"):  # not where processes are never forked
    os.register_at_fork(after_in_child=_in_child)  # once: what is registered stays for ever
