"""sensenet's own clients, and the requests of its tutorial, against examples/sensenet.py in each framework.

The JavaScript client is a program of its own, run by Node; the requests of the .NET client and of the
tutorial are sent as they stand on the wire.
"""

import http.client
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from calling import Request, call_asgi, call_wsgi
from databases import missing
from serving import PATIENCE, REVOCATION_BOUND, ROOT, Answer, Server, free_port, running
from test_examples import issue_as_told, load

from apikey_auth import Inline, IssuedKey, KeyManager, KeyScheme, MemoryKeyStore, StoreUnavailable
from apikey_auth.stores.sql import SQLKeyStore

FRAMEWORKS = ("starlette", "django", "flask")
OWNERS = {"Admin": "1", "User1": "1001", "User2": "1002", "User3": "1003"}
CONTENT_TYPE = "application/json;odata=verbose;charset=utf-8"
CHALLENGE = 'ApiKey realm="api", in="header", name="apikey"'

USER1 = "/odata.svc/Root/IMS/Public/('User1')"
ROOT_CONTENT = "/odata.svc/('Root')"
SECURE = "/odata.svc/Root/Content/MySecureFolder"
BLOG = {"Id": 2002, "Path": "/Root/Content/Blog", "Name": "Blog", "Type": "Blog"}
PLANS = {"Id": 2005, "Path": "/Root/Content/MySecureFolder/Plans", "Name": "Plans", "Type": "File"}

NOT_YOURS = "You may not do this to these API keys."
REVOKED = "The API key has been revoked."


@contextmanager
def repository(framework: str, folder: Path, output: str = "output.txt") -> Iterator[Server]:
    """Run the example on a database in a folder."""
    port = free_port()
    command = [str(ROOT / "examples/sensenet.py"), "--framework", framework, "--port", str(port)]
    with running([*command, "--database", f"sqlite:///{folder}/keys.db"], port, folder / output) as server:
        yield server


@dataclass(frozen=True)
class Site:
    """The running example, and its keys as another process manages them."""

    framework: str
    server: Server
    keys: KeyManager
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def issue(self, user: str = "User1") -> IssuedKey:
        return self.keys.issue(OWNERS[user])

    def curl(self, target: str, *options: str, key: str | None = None) -> Answer:
        command = ["curl", "-s", "-i", *options, self.url + target]
        if key is not None:
            command += ["-H", f"apikey: {key}"]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
        return parsed(done.stdout)

    def post(self, target: str, body: str = "", key: str | None = None) -> Answer:
        return self.curl(target, "-X", "POST", "-d", body, key=key)

    def is_good(self, key: str) -> bool:
        return self.curl(SECURE, key=key).status == 200


@pytest.fixture(scope="module", params=FRAMEWORKS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    with repository(request.param, folder) as server, store_in(folder) as store:
        yield Site(request.param, server, KeyManager(store), folder)


@contextmanager
def store_in(folder: Path) -> Iterator[SQLKeyStore]:
    with closing(SQLKeyStore(f"sqlite:///{folder}/keys.db")) as store:
        yield store


def printed_keys(log: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+) key: (\S+)$", log, re.MULTILINE))


def parsed(response: bytes) -> Answer:
    """Parse what ``curl -i`` prints."""
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, _, lines = head.partition(b"\r\n")
    headers = http.client.parse_headers(io.BytesIO(lines + b"\r\n\r\n"))
    return Answer(int(status_line.split()[1]), headers, body)


def assert_nothing(answer: Answer) -> None:
    assert (answer.status, answer.body) == (204, b"")


def assert_error(answer: Answer, status: int, code: str, message: str | None = None) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    error = answer.json["error"]
    assert set(error) == {"code", "exceptiontype", "message", "innererror"}
    assert error["code"] == code
    assert set(error["message"]) == {"lang", "value"}
    assert error["message"]["value"]
    assert message in (None, error["message"]["value"])


# The JavaScript client.

PACKAGE = "@sensenet/client-core"
VERSION = "4.2.0"


@pytest.fixture(scope="session")
def node_modules() -> str:
    """The folder in whose node_modules the client is."""
    folder = os.environ.get("APIKEY_AUTH_TEST_NODE_MODULES", "")
    if not folder or shutil.which("node") is None:
        missing(
            "sensenet-client",
            f"Node, npm install --prefix DIR {PACKAGE}@{VERSION}, and APIKEY_AUTH_TEST_NODE_MODULES=DIR",
        )
    package = json.loads(Path(folder, "node_modules", PACKAGE, "package.json").read_text())
    assert package["version"] == VERSION
    return folder


@dataclass(frozen=True)
class Session:
    """What came of each step of clients/sensenet.mjs, and the keys it was given."""

    steps: dict[str, dict[str, Any]]
    user1: IssuedKey

    def answer(self, step: str) -> Any:
        assert "answer" in self.steps[step], self.steps[step]
        return self.steps[step]["answer"]

    def loaded(self, step: str) -> str:
        """Give the path of the content that was loaded, or the paths of the contents of a collection."""
        d = self.answer(step)["d"]
        assert d.get("__count", 0) == len(d.get("results", ()))
        path: str = " ".join(each["Path"] for each in d.get("results", [d]))
        return path

    def error(self, step: str) -> tuple[int, str]:
        result = self.steps[step]
        return result["status"], result["error"]


@pytest.fixture(scope="module")
def session(site: Site, node_modules: str) -> Session:
    site.keys.revoke_all(OWNERS["User1"])
    admin, user1 = site.issue("Admin"), site.issue("User1")
    script = str(ROOT / "tests/clients/sensenet.mjs")
    command = ["node", script, node_modules, site.url, admin.text, user1.text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return Session({result.pop("step"): result for result in results}, user1)


def test_javascript_loads_public_content_as_visitor(session: Session) -> None:
    assert session.answer("visitor loads public content") == {"d": BLOG}
    assert session.answer("visitor loads public content by its id") == {"d": BLOG}
    assert session.loaded("visitor loads a public collection") == "/Root/Content/Blog/Welcome"


def test_javascript_is_refused_the_secure_folder_without_a_key(session: Session) -> None:
    refused = (401, "This request needs an API key.")
    assert session.error("visitor loads the secure folder") == refused
    assert session.error("visitor loads the secure collection") == refused


def test_javascript_loads_the_secure_folder_with_a_key_in_the_header(session: Session) -> None:
    assert session.loaded("user loads the secure folder") == "/Root/Content/MySecureFolder"
    assert session.loaded("key for one request") == "/Root/Content/MySecureFolder"
    assert session.loaded("user loads the secure collection") == PLANS["Path"]


def test_javascript_is_told_that_content_is_not_there(session: Session) -> None:
    status, message = session.error("user loads what is not there")
    assert (status, message.title()) == (404, "Not Found")  # the status line's, there is no body


@pytest.mark.parametrize(
    ("who", "user"),
    [
        ("visitor", {"Id": 6, "Name": "Visitor", "Path": "/Root/IMS/BuiltIn/Portal/Visitor", "Type": "User"}),
        ("user", {"Id": 1001, "Name": "User1", "Path": "/Root/IMS/Public/User1", "Type": "User"}),
        ("admin", {"Id": 1, "Name": "Admin", "Path": "/Root/IMS/Public/Admin", "Type": "User"}),
    ],
)
def test_javascript_asks_for_the_current_user(session: Session, who: str, user: dict[str, object]) -> None:
    assert session.answer(f"current user: {who}") == {"d": user}


def test_javascript_creates_a_key_and_uses_it_at_once(session: Session) -> None:
    created = session.answer("create")
    assert set(created) >= {"Value", "CreationDate", "ExpirationDate"}
    assert KeyScheme().parse(created["Value"]).id == created["Id"]
    assert session.loaded("use at once") == "/Root/Content/MySecureFolder"


def test_javascript_lists_keys_masked(session: Session) -> None:
    listed, created = session.answer("list"), session.answer("create")
    assert [key["Id"] for key in listed["apiKeys"]] == [session.user1.key.id, created["Id"]]
    assert listed["__count"] == 2
    assert created["Value"] not in str(listed)
    assert session.user1.text not in str(listed)
    assert listed["apiKeys"][1]["Value"] == f"apikey_{created['Id']}_...{created['Value'][-10:-6]}"
    first = session.answer("list the first")
    assert (first["apiKeys"], first["__count"]) == (listed["apiKeys"][:1], 2)


def test_javascript_neither_sees_nor_makes_keys_of_another_user(session: Session) -> None:
    assert session.answer("list another user") == {"apiKeys": [], "__count": 0}
    assert session.error("create for another user") == (403, NOT_YOURS)
    assert session.error("create for nobody") == (404, "There is nothing here.")


def test_javascript_deletes_a_key_by_the_whole_of_it_or_by_its_id(session: Session) -> None:
    assert session.answer("delete") == {}
    assert session.error("use a deleted one") == (401, REVOKED)
    assert session.answer("delete by id") == {}
    assert session.error("use one deleted by id") == (401, REVOKED)
    assert [key["Id"] for key in session.answer("list what is left")["apiKeys"]] == [session.user1.key.id]
    assert session.error("delete without saying which") == (400, "The parameter apiKey is missing.")


def test_javascript_deletes_all_keys_of_a_user_as_administrator_only(session: Session) -> None:
    assert session.error("user deletes all") == (403, NOT_YOURS)
    assert session.error("user deletes all of a user") == (403, NOT_YOURS)
    assert session.loaded("user after that") == "/Root/Content/MySecureFolder"
    assert session.answer("admin deletes all of a user") == {}
    assert session.error("user whose keys are deleted") == (401, REVOKED)
    assert session.loaded("admin after that") == "/Root/Content/MySecureFolder"


# The .NET client: HTTP/1.0, /OData.svc, Root/IMS/Public('User1'), and a body with every request through
# GetResponseStringAsync, a GET's too. Its older versions speak HTTP/1.1 and post forms.

PLAIN = "text/plain; charset=utf-8"
FORM = "application/x-www-form-urlencoded"
NET_USER1 = "/OData.svc/Root/IMS/Public('User1')"
NET_USER1_BY_ID = "/OData.svc/content(1001)"


@dataclass(frozen=True)
class DotNet:
    """Sends requests byte for byte as the .NET client does."""

    site: Site
    version: str

    def get(self, target: str, key: str | None = None, body: str | None = "models=[null]") -> Answer:
        return self._send("GET", target, key, body, PLAIN)

    def post(self, target: str, key: str | None, body: str | None, content_type: str = PLAIN) -> Answer:
        return self._send("POST", target, key, body, content_type)

    def _send(self, method: str, target: str, key: str | None, body: str | None, content_type: str) -> Answer:
        lines = [f"{method} {target} HTTP/{self.version}", f"Host: 127.0.0.1:{self.site.server.port}"]
        if self.version == "1.1":
            lines.append("Connection: close")
        if key is not None:
            lines.append(f"apikey: {key}")
        if body is not None:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        elif method == "POST":
            lines.append("Content-Length: 0")
        request = "".join(f"{line}\r\n" for line in (*lines, "")) + (body or "")
        wire = io.BytesIO(self.site.server.exchange(request.encode("ascii")))
        response = http.client.HTTPResponse(SimpleNamespace(makefile=lambda _: wire))  # type: ignore[arg-type]
        response.begin()
        return Answer(response.status, response.headers, response.read())


@pytest.fixture(params=["1.0", "1.1"])
def dotnet(request: pytest.FixtureRequest, site: Site) -> DotNet:
    return DotNet(site, request.param)


@pytest.mark.parametrize("body", ["models=[null]", None])
def test_dotnet_asks_first_who_it_is(dotnet: DotNet, body: str | None) -> None:
    target = "/OData.svc/('Root')/GetCurrentUser?metadata=no"
    for user in ("Admin", "User1", None):
        key = dotnet.site.issue(user).text if user else None
        answer = dotnet.get(target, key, body)
        assert (answer.status, answer.json["d"]["Name"]) == (200, user or "Visitor")
        assert answer.headers["Content-Type"] == CONTENT_TYPE
    selected = dotnet.get("/OData.svc/('Root')/GetCurrentUser?$select=Id,Name&$expand=Groups&metadata=no")
    assert selected.json["d"]["Id"] == 6


def test_dotnet_loads_the_visitor_where_it_has_no_key(dotnet: DotNet) -> None:
    answer = dotnet.get("/OData.svc/Root/IMS/BuiltIn/Portal('Visitor')?metadata=no")
    assert (answer.status, answer.json["d"]["Id"]) == (200, 6)


def test_dotnet_loads_content_by_path_and_id(dotnet: DotNet) -> None:
    key = dotnet.site.issue().text
    assert dotnet.get("/OData.svc/Root/Content('Blog')?metadata=no").json == {"d": BLOG}
    assert dotnet.get("/OData.svc/content(2002)?metadata=no").json == {"d": BLOG}
    folder = "/OData.svc/Root/Content('MySecureFolder')?$select=Id,Path,Type&metadata=no"
    assert_error(dotnet.get(folder), 401, "Unauthorized", "This request needs an API key.")
    assert dotnet.get(folder, key).json["d"]["Name"] == "MySecureFolder"
    children = dotnet.get("/OData.svc/Root/Content/MySecureFolder?$top=10&metadata=no", key)
    assert children.json == {"d": {"__count": 1, "results": [PLANS]}}


def test_dotnet_learns_from_an_empty_answer_that_there_is_no_content(dotnet: DotNet) -> None:
    nothing = ("Root/Content('Nothing')", "content(99)", f"content({'9' * 5000})", "Root/Content/Nothing")
    for target in (*nothing, "Root/IMS/Public('Nobody')/GetApiKeys"):
        answer = dotnet.get(f"/OData.svc/{target}?metadata=no")
        assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize("user", [NET_USER1, NET_USER1_BY_ID])
@pytest.mark.parametrize("body", ["models=[null]", "models=[{}]", None])
def test_dotnet_creates_and_lists_keys(dotnet: DotNet, user: str, body: str | None) -> None:
    key = dotnet.site.issue().text
    created = dotnet.post(f"{user}/CreateApiKey?metadata=no", key, body)
    assert created.status == 200
    assert dotnet.site.is_good(created.json["Value"])
    listed = dotnet.get(f"{user}/GetApiKeys?metadata=no", key)
    assert created.json["Id"] in [each["Id"] for each in listed.json["apiKeys"]]


@pytest.mark.parametrize("action", [f"{NET_USER1}/DeleteApiKey", "/OData.svc/('Root')/DeleteApiKey"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, 'models=[{"apiKey":"KEY"}]'),
        (PLAIN, 'models=[{"apiKey":"KEY"}]'),
        ("application/json", 'models=[{"apiKey":"KEY"}]'),
        (PLAIN, '{"apiKey":"KEY"}'),
        ("application/json", '{"apiKey":"KEY"}'),
    ],
)
def test_dotnet_deletes_a_key(dotnet: DotNet, action: str, content_type: str, body: str) -> None:
    key, doomed = dotnet.site.issue().text, dotnet.site.issue()
    for name in (doomed.text, doomed.key.id):  # the second finds it gone
        answer = dotnet.post(f"{action}?metadata=no", key, body.replace("KEY", name), content_type)
        assert_nothing(answer)
    assert not dotnet.site.is_good(doomed.text)
    assert dotnet.site.is_good(key)


def test_dotnet_deletes_the_keys_of_a_user_as_administrator_only(dotnet: DotNet) -> None:
    admin, key = dotnet.site.issue("Admin").text, dotnet.site.issue().text
    action = f"{NET_USER1_BY_ID}/DeleteApiKeys?metadata=no"
    assert_error(dotnet.post(action, key, "models=[null]"), 403, "Forbidden", NOT_YOURS)
    assert_nothing(dotnet.post(action, admin, "models=[null]"))
    refused = dotnet.get("/OData.svc/('Root')/GetCurrentUser?metadata=no", key)
    assert_error(refused, 401, "Unauthorized", REVOKED)


# The tutorial, by curl.


def test_a_key_in_the_url_or_in_the_header_opens_the_secure_folder(site: Site) -> None:
    key = site.issue().text
    for answer in (
        site.curl(f"{SECURE}?apikey={key}"),
        site.curl(f"{SECURE}?ApiKey={key}"),
        site.curl(SECURE, key=key),
        site.curl(f"{SECURE}?apikey={key}", key=key),
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        assert answer.json == {"d": {"__count": 1, "results": [PLANS]}}


def test_public_content_needs_no_key(site: Site) -> None:
    answer = site.curl("/odata.svc/Root/Content/('Blog')?metadata=no&$select=Id,Path,Name,Type")
    assert (answer.status, answer.json) == (200, {"d": BLOG})


def test_a_visitor_sees_no_more_of_a_collection_than_is_public(site: Site) -> None:
    seen = site.curl("/odata.svc/Root/Content").json["d"]
    assert [each["Name"] for each in seen["results"]] == ["Blog"]
    seen = site.curl("/odata.svc/Root/Content", key=site.issue().text).json["d"]
    assert [each["Name"] for each in seen["results"]] == ["Blog", "MySecureFolder"]


def test_without_a_good_key_the_secure_folder_stays_shut(site: Site) -> None:
    unknown = KeyScheme().mint().text
    for answer in (
        site.curl(SECURE),
        site.curl(f"{SECURE}?apikey="),
        site.curl(f"{SECURE}?apikey=abcd"),
        site.curl(SECURE, key="abcd"),
        site.curl(SECURE, key=unknown),
        site.curl(SECURE, "-d", f"apikey={site.issue().text}", "-X", "GET"),
    ):
        assert_error(answer, 401, "Unauthorized")
        assert answer.headers.get_all("WWW-Authenticate") == [CHALLENGE]


def test_a_key_that_differs_in_header_and_url_is_refused(site: Site) -> None:
    answer = site.curl(f"{SECURE}?apikey={site.issue().text}", key=site.issue().text)
    assert_error(answer, 400, "RequestError")


def test_a_user_lists_the_keys(site: Site) -> None:
    issued = site.issue()
    for target in (f"{USER1}/GetApiKeys", f"{USER1}/getapikeys?$format=json&version=V1.0.A"):
        answer = site.curl(target, key=issued.text)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        assert answer.headers["Cache-Control"] == "no-store"
        assert set(answer.json) == {"apiKeys"}
        (listed,) = [each for each in answer.json["apiKeys"] if each["Id"] == issued.key.id]
        assert listed["Value"] == f"apikey_{issued.key.id}_...{issued.key.last4}"
        for time in (listed["CreationDate"], listed["ExpirationDate"]):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    assert site.post(f"{USER1}/GetApiKeys", key=issued.text).json == answer.json


def test_a_user_creates_a_key(site: Site) -> None:
    answer = site.post(f"{USER1}/CreateApiKey", key=site.issue().text)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(answer.json) >= {"Value", "CreationDate", "ExpirationDate"}
    created = site.curl(f"{ROOT_CONTENT}/GetCurrentUser", key=answer.json["Value"])
    assert created.json["d"]["Name"] == "User1"


@pytest.mark.parametrize("entity", [USER1, ROOT_CONTENT])
def test_a_user_deletes_a_key(site: Site, entity: str) -> None:
    key, doomed = site.issue().text, site.issue().text
    for _ in range(2):  # a key that is already gone is no error
        answer = site.post(f"{entity}/DeleteApiKey", f"{{'apiKey': '{doomed}'}}", key=key)
        assert_nothing(answer)
    refused = site.curl(SECURE, key=doomed)
    assert_error(refused, 401, "Unauthorized", REVOKED)
    assert_nothing(site.post(f"{entity}/DeleteApiKey", "{'apiKey': 'abcd'}", key=key))
    assert site.is_good(key)


def test_an_answer_without_a_body_names_no_content_type(site: Site) -> None:
    gone = site.post(f"{ROOT_CONTENT}/DeleteApiKey", "{'apiKey': 'abcd'}", key=site.issue().text)
    unknown = site.curl("/odata.svc/('Nobody')/GetApiKeys")
    assert (gone.status, unknown.status) == (204, 404)
    assert "Content-Type" not in gone.headers
    assert "Content-Type" not in unknown.headers


def test_an_administrator_deletes_the_keys_of_a_user(site: Site) -> None:
    admin, first, second, other = (site.issue(user).text for user in ("Admin", "User1", "User1", "User2"))
    assert_nothing(site.post(f"{USER1}/DeleteApiKeys", key=admin))
    assert [site.is_good(key) for key in (first, second, other, admin)] == [False, False, True, True]


def test_an_administrator_deletes_all_keys(site: Site) -> None:
    admin, first, other = (site.issue(user).text for user in ("Admin", "User1", "User2"))
    assert_nothing(site.post(f"{ROOT_CONTENT}/DeleteApiKeys", key=admin))
    assert not any(site.is_good(key) for key in (first, other, admin))


def test_an_administrator_manages_the_keys_of_others(site: Site) -> None:
    admin = site.issue("Admin").text
    created = site.post(f"{USER1}/CreateApiKey", key=admin).json
    listed = site.curl(f"{USER1}/GetApiKeys", key=admin).json["apiKeys"]
    assert created["Id"] in [each["Id"] for each in listed]
    body = json.dumps({"apiKey": created["Id"]})
    assert_nothing(site.post(f"{ROOT_CONTENT}/DeleteApiKey", body, key=admin))
    assert not site.is_good(created["Value"])


@pytest.mark.parametrize("who", ["another user", "visitor"])
def test_each_action_asks_for_the_right_to_it(site: Site, who: str) -> None:
    key = site.issue("User2").text if who == "another user" else None
    issued = site.issue()
    before = site.keys.list(OWNERS["User1"])

    listed = site.curl(f"{USER1}/GetApiKeys", key=key)
    assert (listed.status, listed.json) == (200, {"apiKeys": []})
    for action, body in (
        ("CreateApiKey", ""),
        ("CreateApiKey", "{'owner': '1002'}"),
        ("DeleteApiKeys", ""),
        ("DeleteApiKey", f"{{'apiKey': '{issued.text}'}}"),
    ):
        assert_error(site.post(f"{USER1}/{action}", body, key=key), 403, "Forbidden", NOT_YOURS)
    assert_error(site.post(f"{ROOT_CONTENT}/DeleteApiKeys", key=key), 403, "Forbidden", NOT_YOURS)
    by_id = site.post(f"{USER1}/DeleteApiKey", f"{{'apiKey': '{issued.key.id}'}}", key=key)
    assert_nothing(by_id)  # as if there were no such key

    assert site.keys.list(OWNERS["User1"]) == before
    assert site.is_good(issued.text)


def test_the_user_of_an_address_is_not_taken_from_the_body(site: Site) -> None:
    key = site.issue("User2").text
    answer = site.post("/odata.svc/Root/IMS/Public/('User2')/CreateApiKey", "{'owner': '1001'}", key=key)
    assert site.keys.get(answer.json["Id"]).owner == OWNERS["User2"]


def test_what_is_not_there_is_not_found(site: Site) -> None:
    key = site.issue("Admin").text
    unknown = "/odata.svc/Root/IMS/Public/('Nobody')"
    for target in (f"{unknown}/GetApiKeys", "/odata.svc/content(99)/GetApiKeys", f"{unknown}?metadata=no"):
        answer = site.curl(target, key=key)
        assert (answer.status, answer.body) == (404, b"")
    assert_error(site.post(f"{unknown}/CreateApiKey", key=key), 404, "ResourceNotFound")
    for answer in (
        site.curl(f"{USER1}/GetTheKeys", key=key),
        site.post(f"{USER1}/CreateApiKeys", key=key),
    ):
        assert_error(answer, 404, "UnknownAction")


@pytest.mark.parametrize(
    ("method", "action", "allowed"),
    [
        ("GET", "CreateApiKey", "POST"),
        ("GET", "DeleteApiKey", "POST"),
        ("GET", "DeleteApiKeys", "POST"),
        ("PUT", "DeleteApiKeys", "POST"),
        ("DELETE", "GetApiKeys", "GET, POST"),
        ("PATCH", "GetCurrentUser", "GET, POST"),
    ],
)
def test_an_action_has_its_methods_only(site: Site, method: str, action: str, allowed: str) -> None:
    issued = site.issue("Admin")
    answer = site.curl(f"{USER1}/{action}", "-X", method, key=issued.text)
    assert_error(answer, 405, "IllegalInvoke")
    assert answer.headers["Allow"] == allowed
    assert site.is_good(issued.text)


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (f"{ROOT_CONTENT}/DeleteApiKey", ""),
        (f"{ROOT_CONTENT}/DeleteApiKey", "{'key': 'abcd'}"),
        (f"{ROOT_CONTENT}/DeleteApiKey", "neither"),
        (f"{ROOT_CONTENT}/CreateApiKey", ""),
        ("/odata.svc/Root/Content/('Blog')/DeleteApiKeys", ""),
        ("/odata.svc/Root/Content/('Blog')/CreateApiKey", ""),
    ],
)
def test_a_request_that_does_not_say_what_it_wants_is_refused(site: Site, target: str, body: str) -> None:
    issued = site.issue("Admin")
    assert_error(site.post(target, body, key=issued.text), 400, "RequestError")
    assert site.is_good(issued.text)


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("$top=-1", "NegativeTopParameter"),
        ("$top=many", "InvalidTopParameter"),
        ("$skip=-1", "NegativeSkipParameter"),
        ("$skip=", "InvalidSkipParameter"),
    ],
)
def test_an_option_that_is_no_count_is_refused(site: Site, option: str, code: str) -> None:
    assert_error(site.curl(f"{USER1}/GetApiKeys?{option}", key=site.issue().text), 400, code)


def test_the_options_of_a_list_act_on_it(site: Site) -> None:
    site.keys.revoke_all(OWNERS["User2"])
    first, second, third = (site.issue("User2") for _ in range(3))
    user2 = "/odata.svc/Root/IMS/Public('User2')/GetApiKeys"
    answer = site.curl(f"{user2}?$skip=1&$top=1&$inlinecount=allpages&$select=Id&metadata=no", key=first.text)
    assert answer.json["__count"] == 3
    assert [each["Id"] for each in answer.json["apiKeys"]] == [second.key.id]
    assert third.key.id in str(site.curl(f"{user2}?$skip=2", key=third.text).json)


# What sensenet's users asked for and did not get.


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_first_keys_are_made_once_and_a_deletion_reaches_every_process(
    framework: str, tmp_path: Path
) -> None:
    with repository(framework, tmp_path) as server, store_in(tmp_path) as store:
        site = Site(framework, server, KeyManager(store), tmp_path)
        keys = printed_keys(server.log)
        assert list(keys) == ["admin", "User1"]
        for label, key in keys.items():
            current = site.curl(f"{ROOT_CONTENT}/GetCurrentUser?apikey={key}")
            assert current.json["d"]["Name"].lower() == label.lower()
        check_curl_lines(site, keys["User1"])
        with pytest.raises(OSError, match=r"refused|unreachable|assign|timed out"):
            socket.create_connection(("127.0.0.2", server.port), 1)

        with repository(framework, tmp_path, "later.txt") as second:
            later = Site(framework, second, site.keys, tmp_path)
            assert printed_keys(second.log) == {}
            assert len(site.keys.list(OWNERS["Admin"])) == 1
            assert later.is_good(keys["User1"])
            another = issue_as_told(second.log, "User1")
            assert another not in keys.values()
            assert later.is_good(another)

            assert_nothing(site.post(f"{ROOT_CONTENT}/DeleteApiKey", f"apiKey={another}", key=keys["User1"]))
            sleep(REVOCATION_BOUND)
            assert_error(later.curl(SECURE, key=another), 401, "Unauthorized", REVOKED)
            assert_nothing(later.post(f"{USER1}/DeleteApiKeys", key=keys["admin"]))
            sleep(REVOCATION_BOUND)
            assert_error(site.curl(SECURE, key=keys["User1"]), 401, "Unauthorized", REVOKED)
        assert all(server.log.count(key) == 1 for key in keys.values()), "the key of a URL was logged"
    with repository(framework, tmp_path, "last.txt") as server:
        assert printed_keys(server.log) == {}, "a key that was deleted came back"


def check_curl_lines(site: Site, key: str) -> None:
    """Run the curl lines of the example's docstring."""
    lines = re.findall(r"^    (curl .+)$", load("sensenet").__doc__ or "", re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        command = line.replace("http://127.0.0.1:8000", site.url).replace("curl ", "curl -s -i ", 1)
        variables = {"KEY": key, "PATH": os.environ["PATH"]}
        done = subprocess.run(["sh", "-c", command], env=variables, capture_output=True, check=True)
        assert parsed(done.stdout).status == 200, line


def test_a_configured_key_serves_a_health_checker_from_the_first_start_on(site: Site) -> None:
    configured = KeyScheme().mint().text
    for made in (True, False, False):  # at each start
        issued = site.keys.ensure(OWNERS["User2"], name="health checker", text=configured)
        assert (issued is not None) == made
        current = site.curl(f"{ROOT_CONTENT}/GetCurrentUser", key=configured)
        assert current.json["d"]["Name"] == "User2"
    assert site.is_good(configured)


def test_the_key_of_a_disabled_user_opens_nothing(site: Site) -> None:
    key = site.issue("User3").text
    message = "The owner of the API key is not active."
    user3 = "/odata.svc/Root/IMS/Public/('User3')"
    for target in (SECURE, "/odata.svc/Root/Content/('Blog')", f"{ROOT_CONTENT}/GetCurrentUser"):
        assert_error(site.curl(target, key=key), 401, "Unauthorized", message)
    for action in ("CreateApiKey", "DeleteApiKey", "DeleteApiKeys"):
        assert_error(site.post(f"{user3}/{action}", key=key), 401, "Unauthorized", message)


@pytest.mark.parametrize("site", ["django"], indirect=True)
def test_a_key_stops_working_when_its_django_user_is_disabled(site: Site) -> None:
    key = site.issue("User2").text

    def set_active(active: bool) -> None:
        with closing(sqlite3.connect(site.folder / "keys.db")) as database, database:
            database.execute("UPDATE auth_user SET is_active = ? WHERE username = 'User2'", [active])

    assert site.is_good(key)
    set_active(False)
    try:
        assert_error(site.curl(SECURE, key=key), 401, "Unauthorized")
    finally:
        set_active(True)
    assert site.is_good(key)


@dataclass(frozen=True)
class InProcess:
    """The example in the test's own process, on a store in memory."""

    example: ModuleType
    app: Any
    call: Any
    store: MemoryKeyStore

    def ask(self, target: str, key: str) -> Answer:
        answer = self.call(self.app, Request(target, (("apikey", key),)))
        headers = http.client.HTTPMessage()
        for name, value in answer.headers:
            headers[name] = value
        return Answer(answer.status, headers, answer.body)


@pytest.fixture(params=["starlette", "flask"])
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    example, store = load("sensenet"), MemoryKeyStore()
    monkeypatch.setattr(example, "SQLKeyStore", lambda _: store)
    monkeypatch.setattr(example, "AsyncSQLKeyStore", lambda _: Inline(store))
    create_app, _ = example.FRAMEWORKS[request.param]
    call = call_asgi if request.param == "starlette" else call_wsgi
    return InProcess(example, create_app(""), call, store)


def test_a_key_stops_working_when_its_user_is_disabled(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    user1 = in_process.example.USER1
    key = KeyManager(in_process.store).issue(str(user1.id)).text
    assert in_process.ask(SECURE, key).status == 200
    monkeypatch.setitem(in_process.example.BY_ID, user1.id, replace(user1, is_active=False))
    assert_error(in_process.ask(SECURE, key), 401, "Unauthorized")


def test_a_store_that_fails_is_no_fault_of_the_key(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KeyManager(in_process.store).issue(OWNERS["User1"]).text

    def fail(self: MemoryKeyStore, key_id: str) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(MemoryKeyStore, "get", fail)
    for target in (SECURE, f"{USER1}/GetApiKeys"):
        answer = in_process.ask(target, key)
        assert_error(answer, 503, "StoreUnavailable")
        assert answer.headers["Retry-After"]


def test_the_contents_of_the_example_are_those_asked_for_here() -> None:
    example = load("sensenet")
    assert {name: str(user.id) for name, user in example.USERS.items()} == OWNERS
    assert tuple(sorted(example.FRAMEWORKS)) == tuple(sorted(FRAMEWORKS))
