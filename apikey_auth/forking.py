"""What a child process must not take over from its parent."""

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

_calls: "dict[int, tuple[weakref.ref[object], Callable[..., Any], dict[str, Any]]]" = {}
_numbers = count()


def after_fork(method: Callable[..., Any], **arguments: Any) -> None:
    """Have a bound method called in every child process, for as long as its object lives."""
    number = next(_numbers)
    gone = partial(_calls.pop, number)  # none of Python's own: objects go while Python ends, and anywhere
    _calls[number] = weakref.ref(method.__self__, gone), method.__func__, arguments  # type: ignore[attr-defined]


def _in_child() -> None:
    with ExitStack() as calls:  # all of them, though one should fail; the last is called first
        for found, function, arguments in reversed(tuple(_calls.values())):
            if (alive := found()) is not None:
                calls.callback(function, alive, **arguments)


if hasattr(os, "register_at_fork"):  # not where processes are never forked
    os.register_at_fork(after_in_child=_in_child)  # once: what is registered stays for ever
