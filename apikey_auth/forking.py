"""What a child process must not take over from its parent."""

import os
import weakref
from collections.abc import Callable
from typing import Any


def after_fork(method: Callable[..., Any], **arguments: Any) -> None:
    """Have a bound method called in every child process, for as long as its object lives."""
    found = weakref.WeakMethod(method)

    def in_child() -> None:
        if (alive := found()) is not None:
            alive(**arguments)

    if hasattr(os, "register_at_fork"):  # not where processes are never forked
        os.register_at_fork(after_in_child=in_child)
