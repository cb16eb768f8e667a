"""What the library takes before and beside requests: memory for each key it remembers, and its import."""

import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

from apikey_auth import AuthenticationError, Authenticator, KeyManager, KeyScheme, MemoryKeyStore

from .tables import number, show
from .texts import PREFIX, unknown

_TIMED = "import sys, time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
_LOADED = "import sys; before = set(sys.modules); import apikey_auth; print(*sys.modules.keys() - before)"


def show_memory(many: int) -> None:
    """Print the table."""
    rows = {
        "a good key": remembered(many, _good_keys),
        "a good key and its user, with user_max_age": remembered(many, _good_keys, user_max_age=3600.0),
        "an unknown key": remembered(many // 8, _unknown_keys),
    }
    show(
        "Memory for each key that is remembered, beside its record, its text and its user",
        ("what is remembered", "bytes"),
        ([name, f"{value:,.0f}"] for name, value in rows.items()),
    )


def _good_keys(keys: KeyManager, many: int) -> list[str]:
    return [keys.issue(str(n)).text for n in range(many)]


def _unknown_keys(keys: KeyManager, many: int) -> list[str]:
    return [unknown(n) for n in range(many)]


def remembered(many: int, make: Callable[[KeyManager, int], list[str]], user_max_age: float = 0.0) -> float:
    """Give the bytes for each key that an authenticator has been asked for, many of them."""
    store, scheme = MemoryKeyStore(), KeyScheme(prefix=PREFIX)
    texts = make(KeyManager(store, scheme), many)
    auth = Authenticator(
        store, scheme, load_user=lambda owner: "a user", max_staleness=3600.0, user_max_age=user_max_age
    )
    _ask(auth, unknown(many))  # what is made once is there before
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for text in texts:
        _ask(auth, text)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / many


def _ask(auth: Authenticator[str], text: str) -> None:
    with suppress(AuthenticationError):
        auth.authenticate(text)


def show_imports(rounds: int) -> None:
    """Print the table."""
    others = [name for name in loaded_modules() if name.partition(".")[0] != "apikey_auth"]
    statements = {"apikey_auth": "import apikey_auth", "what it uses alone": f"import {', '.join(others)}"}
    turns: dict[str, list[float]] = {name: [] for name in statements}
    with tempfile.TemporaryDirectory() as bytecode:  # which an installed package has
        for statement in statements.values():
            _python(statement, bytecode)
        for _ in range(rounds):
            for name, statement in statements.items():
                turns[name].append(float(_python(_TIMED.format(statement=statement), bytecode)) * 1e3)
    best = {name: min(each) for name, each in turns.items()}
    one = best["what it uses alone"]
    show(
        f"`import apikey_auth` beside the import of the {len(others)} modules alone that it loads, itsdangerous included",
        ("import", "ms", "ratio"),
        ([name, number(value), number(value / one)] for name, value in best.items()),
    )


def loaded_modules() -> list[str]:
    """List the modules that importing the library loads, its own and others'."""
    return _python(_LOADED).split()


def _python(code: str, bytecode: str | None = None) -> str:
    """Run code; ``bytecode`` is a folder to keep it in."""
    environment = dict(os.environ)
    if bytecode is not None:
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
