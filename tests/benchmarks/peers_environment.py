"""The virtual environment of the peers: made where the user keeps caches, never in the checkout."""

import os
import subprocess
import sys
import venv
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "Flask-HTTPAuth~=4.8",
    "djangorestframework-api-key~=3.1",
    "django-rest-knox~=5.1",
    "keyshield[core,fastapi]~=2.0",
    "SQLAlchemy[asyncio]~=2.0",
    "aiosqlite~=0.20",
)


def show_peers(rounds: int) -> None:
    """Print the table of the peers, which their own Python prints; say so where it cannot be had."""
    command = ["-m", "tests.benchmarks.peers", str(rounds)]
    try:
        subprocess.run([str(interpreter()), *command], check=True, cwd=ROOT, env=_environment())
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"\nPeers are left out: {error}")


def interpreter() -> Path:
    """Give the Python of an environment with the peers, made now if it is not there."""
    folder = _caches() / "apikey_auth" / f"peers-{_fingerprint()}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    complete = folder / "complete"
    if not complete.exists():
        print(f"\nThe peers' environment is made in {folder}, which takes a minute.", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(command, check=True, env=_environment())
        complete.touch()
    return python


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _fingerprint() -> str:
    return sha256(repr((sys.version, PACKAGES)).encode()).hexdigest()[:12]


def _environment() -> dict[str, str]:
    """Leave out what would bring this environment's packages into theirs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
