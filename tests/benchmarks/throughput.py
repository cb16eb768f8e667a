"""Requests a second under wrk, over real connections: uvicorn and gunicorn, with and without the middleware."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from importlib.metadata import version

from apikey_auth import KeyScheme

from .peers_environment import ROOT
from .served import environment
from .tables import number, show
from .texts import PREFIX

SERVED = {"uvicorn": "asgi", "gunicorn": "wsgi"}
CONNECTIONS = 16
TURNS = 6
_PATIENCE = 30.0  # seconds for a server to start
_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)$", re.MULTILINE)
_FAILED = re.compile(r"^\s+(Non-2xx or 3xx responses: .*|Socket errors: .*)$", re.MULTILINE)


def show_throughput(seconds: int) -> None:
    """Print the table, unless wrk is not there."""
    if shutil.which("wrk") is None:
        print("\nThroughput is left out: there is no wrk. `apt-get install wrk` brings it.")
        return
    show(
        f"Requests a second, one worker, {CONNECTIONS} connections of wrk, the best of {TURNS} turns of {seconds} s",
        ("server", "without", "with apikey_auth", "ratio"),
        (_row(server, kind, seconds) for server, kind in SERVED.items()),
    )


def _row(server: str, kind: str, seconds: int) -> list[str]:
    text = KeyScheme(prefix=PREFIX).mint().text
    rates: dict[str, list[float]] = {f"{kind}_bare": [], f"{kind}_ours": []}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(serving(server, name, text)) for name in rates}
        for _ in range(TURNS):
            for name, port in ports.items():
                rates[name].append(rate(port, text, seconds))
    without, ours = (max(each) for each in rates.values())
    return [f"{server} {version(server)}", number(without), number(ours), number(ours / without)]


@contextmanager
def serving(server: str, name: str, text: str) -> Iterator[int]:
    """Serve an application of ``served`` in a process of its own, and give its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    command = [sys.executable, "-m", *_arguments(server, name, port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(text)) as process:
        try:
            _wait(process, port, text)
            yield port
        finally:
            process.terminate()


def _arguments(server: str, name: str, port: int) -> Sequence[str]:
    application = f"tests.benchmarks.served:{name}"
    if server == "uvicorn":
        return "uvicorn", "--port", str(port), "--log-level", "error", "--factory", application
    return "gunicorn", "--bind", f"127.0.0.1:{port}", "--log-level", "error", f"{application}()"


def _wait(process: "subprocess.Popen[bytes]", port: int, text: str) -> None:
    """Wait until the server answers. Raises AssertionError for one that ends, or is not ready in time."""
    end = time.monotonic() + _PATIENCE
    while True:
        assert process.poll() is None, "the server has ended"
        connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        try:
            connection.request("GET", "/", headers={"apikey": text})
            status = connection.getresponse().status
            assert status == 200, f"the server answers {status}"
            return
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.05)
        finally:
            connection.close()


def rate(port: int, text: str, seconds: int) -> float:
    """Let wrk send requests; give how many were answered a second. Raises AssertionError if some were not."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", f"apikey: {text}"]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}/"], check=True, capture_output=True, text=True)
    failed, found = _FAILED.search(done.stdout), _RATE.search(done.stdout)
    assert failed is None, failed and failed[1]
    assert found is not None, done.stdout
    return float(found[1])
