"""The README is true: each of its blocks is run, in the order in which a reader meets them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from calling import Request, call_asgi, call_wsgi
from serving import ROOT, free_port, printed_keys, running

README = (ROOT / "README.md").read_text()


def blocks(language: str, heading: str | None = None) -> list[str]:
    """Find the blocks of a language, all of them or those below a heading."""
    text = README
    if heading is not None:
        text = re.split(r"^##+ ", README.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "README.md", "exec"), namespace)
    return namespace


def issuing(source: str) -> str:
    """Find the call in a block's last comment, which issues a key."""
    (call,) = re.findall(r"^# issued = (?:await )?(.*)$", source, re.MULTILINE)
    return call


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_block_is_of_a_kind_that_is_run_here() -> None:
    languages = re.findall(r"^```(\w+)$", README, re.MULTILINE)
    counts = {name: languages.count(name) for name in set(languages)}
    assert counts == {"sh": 2, "console": 3, "python": 17}
    tested = [
        "In your application",
        "Starlette",
        "FastAPI",
        "Flask",
        "Django",
        "Django",
        "WSGI",
        "ASGI",
        "Keys in logs",
        "Keys",
        "Events",
        "Keys over HTTP",
        "Stores",
        "Coming from another system",
        "In your own tests",
    ]
    found = [block for heading in dict.fromkeys(tested) for block in blocks("python", heading)]
    assert found == blocks("python")


def test_two_commands_do_the_set_up() -> None:
    # .ci/run runs both as they stand; here only that they are what it looks for.
    first, second = blocks("sh")
    assert first.endswith("examples/quickstart.py\n")
    assert second.endswith(".venv/bin/pytest -n auto --dist loadfile\n")
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e '.[")


def test_the_first_session_answers_as_it_says(tmp_path: Path) -> None:
    port = free_port()
    command = [str(ROOT / "examples/quickstart.py"), "--port", str(port)]
    with running(command, port, tmp_path / "output.txt") as server:
        variables = {"KEY": printed_keys(server.log)["ada"]}
        calls = [each.split("\n", 1) for each in blocks("console", "Start")[0].split("$ ")[1:]]
        assert len(calls) == 3
        for command, shown in calls:
            answer = re.sub(r'"key_id":"\w+"', '"key_id":"9ffVf2cEx0Sj"', curl(command, port, variables))
            for line in filter(None, shown.splitlines()):
                assert line in answer.splitlines()


@pytest.mark.parametrize(("framework", "call"), [("WSGI", call_wsgi), ("Flask", call_wsgi)])
def test_the_snippet_is_a_complete_application(framework: str, call: Any) -> None:
    (source,) = blocks("python", framework)
    namespace = run(source)
    application = namespace.get("application") or namespace["app"]
    issued = eval(issuing(source), namespace)
    assert_protected(lambda request: call(application, request), issued.text)
    namespace["auth"].store.close()


@pytest.mark.parametrize("framework", ["ASGI", "Starlette", "FastAPI"])
def test_the_async_snippet_is_a_complete_application(framework: str) -> None:
    (source,) = blocks("python", framework)
    namespace = run(source)

    async def issue() -> Any:
        issued = await eval(issuing(source), namespace)
        await namespace["auth"].store.close()
        return issued

    def send(request: Request) -> Any:
        answer = call_asgi(namespace["app"], request)
        asyncio.run(namespace["auth"].store.close())
        return answer

    assert_protected(send, asyncio.run(issue()).text)


def assert_protected(send: Any, text: str) -> None:
    assert send(Request("/reports")).status == 401
    assert send(Request("/reports?apikey=nonsense")).status == 401
    answer = send(Request("/reports", (("apikey", text),)))
    assert answer.status == 200
    assert b"user-1" in answer.body


def test_the_django_snippets_protect_a_new_project(tmp_path: Path) -> None:
    settings, views = blocks("python", "Django")

    def python(*arguments: str) -> str:
        command = [sys.executable, "-W", "error", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("-m", "django", "startproject", "project", ".")
    with (tmp_path / "project/settings.py").open("a") as file:
        file.write(settings)
    (tmp_path / "project/urls.py").write_text(views)
    python("manage.py", "migrate", "--verbosity", "0")
    assert "no issues" in python("manage.py", "check")
    out = python(
        "manage.py",
        "shell",
        "--verbosity",
        "0",
        "-c",
        f"""
from django.contrib.auth.models import User
from django.test import Client
from apikey_auth.django import get_key_manager
user = User.objects.create(username="ada")
issued = {issuing(views)}
client = Client(headers={{"host": "localhost"}})
print(client.get("/reports").status_code)
print(client.get("/reports", headers={{"apikey": issued.text}}).json())
""",
    )
    assert out.splitlines() == ["401", "{'user': 'ada', 'key': 'CI'}"]

    (session,) = blocks("console", "Django")
    commands = [each.strip().replace("python ", f"{sys.executable} ") for each in session.split("$ ")[1:]]
    issue, revoke = ["-W error manage.py".join(each.split("manage.py")) for each in commands]
    script = f"set -e; {issue}; echo $KEY; {revoke}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"acme_\w{12}_\w{38}", done.stdout.splitlines()[0])
    assert "2" in done.stderr + done.stdout.split("\n", 1)[1]  # both of ada's keys


def test_openapi_shows_what_the_fastapi_snippet_asks_for() -> None:
    (source,) = blocks("python", "FastAPI")
    document = run(source)["app"].openapi()
    assert document["paths"]["/reports"]["get"]["security"] == [
        {name: ["reports:read"]} for name in document["components"]["securitySchemes"]
    ]


@pytest.mark.parametrize("setting", ["one line", "dictConfig"])
def test_keys_are_masked_in_logs(setting: str) -> None:
    (source,) = blocks("python", "Keys in logs")
    (as_filter,) = re.findall(r"`(\{\"\(\)\".*?\})`", README)
    if setting == "dictConfig":
        handler = {"class": "logging.StreamHandler", "filters": ["keys"]}
        source = f"""
from logging.config import dictConfig
dictConfig({{
    "version": 1,
    "filters": {{"keys": {as_filter}}},
    "handlers": {{"console": {handler}}},
    "root": {{"handlers": ["console"]}},
}})
"""
    # In a process of its own: the logs of this one are not to be changed.
    log = """
import logging
from apikey_auth import KeyScheme
text = KeyScheme("acme").mint().text
logging.getLogger("any").warning("%s and /?apikey=abcd", text)
print(text)
"""
    command = [sys.executable, "-W", "error", "-c", source + log]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    masked = done.stdout.rpartition("_")[0] + "_***"
    assert done.stderr == f"{masked} and /?apikey=***\n"


def test_hooks_are_told_what_happened(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (source,) = blocks("python", "Events")
    caplog.set_level("DEBUG", "apikey_auth.events")
    key_id = run(source)["issued"].key.id
    assert capsys.readouterr().out == f"to user-1: your key {key_id} was revoked, laptop lost\n"
    assert [record.__dict__["event"] for record in caplog.records] == ["issued", "authenticated", "revoked"]


def test_the_loader_is_called_as_it_says() -> None:
    (source,) = blocks("python", "In your application")
    assert run(source)["load_user"]("user-2") is None


def test_the_management_snippet_serves_keys_over_http() -> None:
    (source,) = blocks("python", "Keys over HTTP")
    namespace = run(source)
    issued = eval(issuing(source), namespace)

    def send(target: str, method: str = "GET", *headers: tuple[str, str]) -> Any:
        return call_wsgi(namespace["application"], Request(target, headers, method))

    key = ("apikey", issued.text)
    assert send("/").body == b"hello"
    assert send("/keys").status == 401
    assert [each["name"] for each in json.loads(send("/keys", "GET", key).body)["items"]] == ["CI"]
    assert send("/keys", "DELETE", key).status == 403
    assert send(f"/keys/{issued.key.id}", "DELETE", key).status == 204
    assert json.loads(send("/keys/openapi.json").body)["openapi"] == "3.1.0"
    namespace["auth"].store.close()


def test_sensenets_requests_are_answered(tmp_path: Path) -> None:
    port = free_port()
    command = [str(ROOT / "examples/sensenet.py"), "--framework", "starlette", "--port", str(port)]
    with running(command, port, tmp_path / "output.txt") as server:
        printed = dict(re.findall(r"^(admin|User1) key: (.*)$", server.log, re.MULTILINE))
        keys = {"ADMIN": printed["admin"], "KEY": printed["User1"]}
        session = blocks("console", "Coming from sensenet")[0]
        answers = [curl(each.strip(), port, keys) for each in session.split("$ ")[1:]]
    folder, user, listed, created, nothing, deleted, all_deleted = answers
    assert "error" not in json.loads(folder)
    assert json.loads(user)["d"]["Name"] == "User1"
    assert json.loads(listed)["apiKeys"][0]["Value"].endswith(f"...{keys['KEY'][-10:-6]}")
    assert json.loads(created)["Value"].startswith(keys["KEY"].split("_")[0])
    assert (nothing, deleted, all_deleted) == ("", "", "")


def curl(command: str, port: int, variables: dict[str, str]) -> str:
    local = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    environment = {**variables, "PATH": os.defpath}
    done = subprocess.run(["sh", "-c", local], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_keys_section_runs(capsys: pytest.CaptureFixture[str]) -> None:
    session, script = blocks("python", "Keys")
    run(session)
    assert re.fullmatch(r"acme_\w{12}_\w{38}\n", capsys.readouterr().out)
    namespace = run(script)
    assert namespace["keys"].get(namespace["issued"].key.id).revoked_at is not None
    namespace["keys"]._store.close()


def test_each_url_opens_a_store() -> None:
    opening, _ = blocks("python", "Stores")
    namespace = run(opening)
    assert type(namespace["store"]).__name__ == "AsyncSQLKeyStore"


def test_the_contract_runs_on_a_store_by_the_test_file_that_is_shown(tmp_path: Path) -> None:
    _, contract = blocks("python", "Stores")
    (tmp_path / "test_store.py").write_text(contract)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio", "test_store.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 100


def test_keys_of_another_system_move_in() -> None:
    (source,) = blocks("python", "Coming from another system")
    auth = run(source)["auth"]
    auth.flush()
    assert auth.keys.list("7")[0].digest.startswith("sha256$$")


def test_the_helpers_for_tests_do_what_they_say() -> None:
    (source,) = blocks("python", "In your own tests")
    namespace = run(source)
    assert namespace["headers"]["apikey"].startswith("apikey_")
    assert namespace["store"].calls["get"] == 2
