"""Users whom the application has signed in: what another site makes their browser send changes nothing."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from applications import World
from calling import Answer, call_wsgi
from sites import ADA, BOB, HOST, MOUNTS, OURS, SAME_SITE, Site, asgi_caller, wsgi_caller
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware

import apikey_auth.asgi
import apikey_auth.starlette
import apikey_auth.wsgi
from apikey_auth import Bearer, ConfigurationError
from apikey_auth.management import REST, Sensenet, below
from apikey_auth.management.rights import owner_of

Headers = tuple[tuple[str, str], ...]
FORGED = {
    "nothing": (),
    "null": (("Origin", "null"),),
    "another site": (("Origin", "https://evil.example"),),
    "another port": (("Origin", f"{OURS}:8443"),),
    "a longer name": (("Origin", f"{OURS}.evil.example"),),
    "a name before": (("Origin", f"https://evil{HOST}"),),
    "a subdomain": (("Origin", f"https://x.{HOST}"),),
    "a parent": (("Origin", "https://example.com"),),
    "the host as a user": (("Origin", f"https://{HOST}@evil.example"),),
    "the host as a path": (("Origin", f"https://evil.example/{HOST}"),),
    "the host as a query": (("Origin", f"https://evil.example?{HOST}"),),
    "the host as a fragment": (("Origin", f"https://evil.example#@{HOST}"),),
    "a backslash": (("Origin", f"https://evil.example\\@{HOST}"),),
    "longer than a trusted one": (("Origin", "https://admin.example.com.evil.example"),),
    "a trusted one's port": (("Origin", "https://admin.example.com:8443"),),
    "a trusted one, plainly": (("Origin", "http://admin.example.com"),),
    "no scheme": (("Origin", HOST),),
    "a blank": (("Origin", ""),),
    "two": (("Origin", OURS), ("Origin", "https://evil.example")),
    "two, ours last": (("Origin", "https://evil.example"), ("Origin", OURS)),
    "no port": (("Origin", "https://keys.example.com:x"),),
    "unicode": (("Origin", "https://keys.example.com\u00a0"),),
    "cross-site": (("Sec-Fetch-Site", "cross-site"),),
    "same-site": (("Sec-Fetch-Site", "same-site"),),
    "cross-site by our name": (("Origin", f"http://{HOST}"), ("Sec-Fetch-Site", "cross-site")),
    "same-site by our name": (("Origin", OURS), ("Sec-Fetch-Site", "same-site")),
    "none": (("Sec-Fetch-Site", "none"),),
    "a near miss": (("Sec-Fetch-Site", "same-origin-ish"),),
    "same-origin twice": (("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")),
    "a referer alone": (("Referer", f"{OURS}/page"),),
    "forwarded": (("X-Forwarded-Host", "evil.example"), ("Origin", "https://evil.example")),
    "basic": (("Authorization", "Basic YWRhOmFkYQ=="),),
    "a scheme like Bearer": (("Authorization", "BearerX abc"),),
    "form": (("Origin", "https://evil.example"), ("Content-Type", "application/x-www-form-urlencoded")),
}
PROOFS = {
    "same-origin": SAME_SITE,
    "our origin": (("Origin", OURS),),
    "our origin, plainly": (("Origin", f"http://{HOST}"),),
    "our origin, asked for by the user": (("Origin", OURS), ("Sec-Fetch-Site", "none")),
    "our origin in another case": (("Origin", f"https://{HOST.upper()}"),),
    "a trusted one": (("Origin", "https://admin.example.com"),),
    "a trusted one across": (("Origin", "https://admin.example.com"), ("Sec-Fetch-Site", "cross-site")),
    "bearer": (("Authorization", "Bearer a.b.c"),),
    "bearer, lower case": (("Authorization", "bearer a.b.c"),),
}
TRUSTED = ["https://admin.example.com"]
REST_CHANGES = [
    ("POST", "/keys", '{"name": "x"}'),
    ("PATCH", "/keys/ID", '{"name": "x"}'),
    ("DELETE", "/keys/ID", ""),
    ("POST", "/keys/ID/rotate", ""),
    ("DELETE", "/keys", ""),
]
USER = "/odata.svc/Root/IMS/Public/('101')"
SENSENET_CHANGES = [
    ("POST", f"{USER}/CreateApiKey", ""),
    ("POST", f"{USER}/DeleteApiKey", '{"apiKey": "ID"}'),
    ("POST", f"{USER}/DeleteApiKeys", ""),
]


@pytest.fixture
def rest(build: Callable[..., Site]) -> Site:
    return build("/keys", REST(trusted_origins=TRUSTED))


@pytest.fixture
def sensenet(build: Callable[..., Site]) -> Site:
    dialect = Sensenet(trusted_origins=TRUSTED)
    return build("/odata.svc", dialect, render=below("/odata.svc", dialect))


def records(world: World) -> dict[str, Any]:
    return {key.id: key for key in world.keys.find(limit=1000).items}


def is_cross_origin(answer: Answer) -> bool:
    assert answer.status == 403, answer.body
    said = json.loads(answer.body)
    return said.get("code") == "cross_origin" or said["error"]["code"] == "Forbidden"


class TestReading:
    @pytest.mark.parametrize("headers", [(), (("Origin", "https://evil.example"),)])
    def test_it_takes_no_proof(self, rest: Site, world: World, headers: Headers) -> None:
        key = world.keys.issue(ADA).key
        listed = json.loads(rest.ask("GET", "/keys", user=ADA, headers=headers).body)
        assert [each["id"] for each in listed["items"]] == [key.id]
        assert rest.ask("GET", f"/keys/{key.id}", user=ADA, headers=headers).status == 200
        assert rest.ask("GET", f"/keys/{key.id}", user=BOB, headers=headers).status == 404

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_nor_do_sensenets_functions(self, sensenet: Site, world: World, method: str) -> None:
        key = world.keys.issue(ADA).key
        listed = json.loads(sensenet.ask(method, f"{USER}/GetApiKeys", user=ADA).body)
        assert [each["Id"] for each in listed["apiKeys"]] == [key.id]
        said = json.loads(sensenet.ask(method, f"{USER}/GetCurrentUser", user=ADA).body)
        assert said["d"]["Id"] == ADA

    def test_no_answer_invites_another_site(self, rest: Site, world: World) -> None:
        answer = rest.ask("GET", "/keys", user=ADA, headers=(("Origin", "https://evil.example"),))
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]


class TestChanging:
    @pytest.mark.parametrize("forged", ["nothing", "another site"])
    def test_every_change_needs_a_proof(self, rest: Site, world: World, forged: str) -> None:
        key = world.keys.issue(ADA).key
        before = records(world)
        for method, target, body in REST_CHANGES:
            answer = rest.ask(method, target.replace("ID", key.id), body, user=ADA, headers=FORGED[forged])
            assert is_cross_origin(answer)
        assert records(world) == before

    @pytest.mark.parametrize("forged", ["nothing", "another site"])
    def test_each_of_sensenets_actions_is_forbidden_without_one(
        self, sensenet: Site, world: World, forged: str
    ) -> None:
        key = world.keys.issue(ADA).key
        before = records(world)
        for method, target, body in SENSENET_CHANGES:
            answer = sensenet.ask(
                method, target, body.replace("ID", key.id), user=ADA, headers=FORGED[forged]
            )
            assert is_cross_origin(answer)
        assert records(world) == before

    @pytest.mark.parametrize("some", range(3))
    def test_what_is_no_proof_changes_nothing(self, rest: Site, world: World, some: int) -> None:
        for forged, headers in list(FORGED.items())[some::3]:
            assert is_cross_origin(rest.ask("POST", "/keys", user=ADA, headers=headers)), forged
        assert records(world) == {}

    def test_an_origin_that_cannot_be_parsed_is_no_proof(self, rest: Site, world: World) -> None:
        for origin in ("http://[", "http://[::1", "https://]", "http://[x]"):
            assert is_cross_origin(rest.ask("POST", "/keys", user=ADA, headers=(("Origin", origin),)))
        assert records(world) == {}

    def test_with_proof_it_is_done(self, rest: Site, world: World) -> None:
        for headers in PROOFS.values():
            answer = rest.ask("POST", "/keys", {"name": "proved"}, user=ADA, headers=headers)
            assert answer.status == 201, headers
        target = f"/keys/{json.loads(answer.body)['id']}"
        assert rest.ask("PATCH", target, {"name": "y"}, user=ADA, headers=SAME_SITE).status == 200
        assert rest.ask("POST", f"{target}/rotate", user=ADA, headers=SAME_SITE).status == 201
        assert rest.ask("DELETE", target, user=ADA, headers=SAME_SITE).status == 204

    def test_sensenets_actions_are_done_too(self, sensenet: Site, world: World) -> None:
        for headers in PROOFS.values():
            answer = sensenet.ask("POST", f"{USER}/CreateApiKey", user=ADA, headers=headers)
            assert answer.status == 200, headers
            body = {"apiKey": json.loads(answer.body)["Value"]}
            assert sensenet.ask("POST", f"{USER}/DeleteApiKey", body, user=ADA, headers=headers).status == 204

    def test_a_proof_opens_nothing_that_is_anothers(self, rest: Site, world: World) -> None:
        key = world.keys.issue(ADA).key
        before = records(world)
        assert rest.ask("DELETE", f"/keys/{key.id}", user=BOB, headers=SAME_SITE).status == 404
        assert rest.ask("POST", f"/keys?owner={ADA}", user=BOB, headers=SAME_SITE).status == 403
        assert records(world) == before

    def test_the_port_belongs_to_the_host(self, rest: Site, world: World) -> None:
        def ask(host: str, origin: str) -> int:
            headers = (("Origin", origin),)
            inner, rest.application = rest.application, with_host(rest.application, host)
            twin, rest.twin = rest.twin, None
            try:
                return rest.ask("POST", "/keys", user=ADA, headers=headers).status
            finally:
                rest.application, rest.twin = inner, twin

        assert ask("localhost:8000", "http://localhost:8000") == 201
        assert ask("localhost:8000", "http://localhost:3000") == 403
        assert ask("localhost:8000", "http://localhost") == 403
        assert ask("[::1]:8000", "http://[::1]:8000") == 201

    def test_without_a_host_no_origin_is_ours(self, rest: Site, world: World) -> None:
        rest.application, rest.twin = with_host(rest.application, None), None
        for origin in ("nonsense", "file://", "", "https://", "//", "https:///keys.example.com"):
            answer = rest.ask("POST", "/keys", user=ADA, headers=(("Origin", origin),))
            assert is_cross_origin(answer), origin
        assert records(world) == {}


def with_host(application: Any, host: str | None) -> Any:
    """Put another Host in the place of the request's."""

    def wsgi(environ: Any, start_response: Any) -> Any:
        environ.pop("HTTP_HOST", None)
        if host is not None:
            environ["HTTP_HOST"] = host
        return application(environ, start_response)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] != b"host"]
        if host is not None:
            headers.append((b"host", host.encode()))
        await application({**scope, "headers": headers}, receive, send)

    def either(first: Any, second: Any, *rest: Any) -> Any:
        return asgi(first, second, *rest) if rest else wsgi(first, second)

    return either


class TestAsABrowserDoesIt:
    """What https://evil.example can have a browser send with the victim's cookie and no preflight."""

    @pytest.mark.parametrize(
        "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    )
    def test_a_simple_post_makes_no_key(self, rest: Site, world: World, content_type: str) -> None:
        browser = (
            ("Content-Type", content_type),
            ("Origin", "https://evil.example"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Mode", "no-cors"),
            ("Sec-Fetch-Dest", "empty"),
            ("Referer", "https://evil.example/"),
        )
        for headers in (browser, browser[:2], browser[2:]):
            for body in ('{"name": "stolen"}', '{"name": "stolen", "metadata": {"=": "1"}}', ""):
                assert is_cross_origin(rest.ask("POST", "/keys", body, user=ADA, headers=headers))
        assert records(world) == {}

    def test_nor_does_it_delete_one_in_sensenets_dialect(self, sensenet: Site, world: World) -> None:
        key = world.keys.issue(ADA)
        headers = (("Content-Type", "text/plain"), ("Origin", "https://evil.example"))
        for named in (key.text, key.key.id):
            for body in (f'{{"apiKey": "{named}"}}', f"apiKey={named}", f'models=[{{"apiKey":"{named}"}}]'):
                answer = sensenet.ask("POST", f"{USER}/DeleteApiKey", body, user=ADA, headers=headers)
                assert is_cross_origin(answer)
        assert records(world)[key.key.id] == key.key

    def test_an_attackers_own_key_in_a_link_acts_for_the_attacker_alone(
        self, rest: Site, world: World
    ) -> None:
        attackers, victims = world.keys.issue(BOB), world.keys.issue(ADA)
        headers = (("Origin", "https://evil.example"),)
        made = rest.ask("POST", f"/keys?apikey={attackers.text}", user=ADA, headers=headers)
        assert json.loads(made.body)["owner"] == BOB
        target = f"/keys/{victims.key.id}?apikey={attackers.text}"
        assert rest.ask("DELETE", target, user=ADA, headers=headers).status == 404
        assert records(world)[victims.key.id] == victims.key

    @pytest.mark.parametrize("where", ["header", "url"])
    def test_a_bad_key_that_is_let_in_is_no_proof(self, build: Any, world: World, where: str) -> None:
        site = build("/keys", REST(), on_invalid="anonymous")
        headers: Headers = (("Origin", "https://evil.example"),)
        target = "/keys?apikey=nonsense" if where == "url" else "/keys"
        key = "nonsense" if where == "header" else None
        assert is_cross_origin(site.ask("POST", target, user=ADA, key=key, headers=headers))
        assert records(world) == {}

    def test_a_preflight_allows_nothing(self, rest: Site) -> None:
        headers = (("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST"))
        answer = rest.ask("OPTIONS", "/keys", user=ADA, headers=headers)
        assert answer.status == 405
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]


class TestWithAKey:
    @pytest.mark.parametrize("forged", ["nothing", "another site", "null", "cross-site"])
    def test_no_proof_is_asked_for(self, rest: Site, world: World, forged: str) -> None:
        text = world.keys.issue(ADA).text
        assert rest.ask("POST", "/keys", key=text, headers=FORGED[forged]).status == 201
        assert rest.ask("POST", f"/keys?apikey={text}", headers=FORGED[forged]).status == 201
        assert rest.ask("POST", "/keys", key=text, user=BOB, headers=FORGED[forged]).status == 201

    def test_nor_with_one_as_a_bearer_token(self, build: Any, world: World) -> None:
        site = build("/keys", REST(), carriers=[Bearer()])
        headers = (
            ("Authorization", f"Bearer {world.keys.issue(ADA).text}"),
            ("Origin", "https://evil.example"),
        )
        assert site.ask("POST", "/keys", headers=headers).status == 201

    def test_the_key_beats_the_user_who_is_signed_in(self, rest: Site, world: World) -> None:
        answer = rest.ask("POST", "/keys", key=world.keys.issue(BOB).text, user=ADA)
        assert json.loads(answer.body)["owner"] == BOB

    def test_a_visitor_is_asked_for_a_key_and_not_for_a_proof(self, rest: Site) -> None:
        assert rest.ask("POST", "/keys").status == 401


class TestFrameworks:
    def test_wsgi_knows_its_user_as_remote_user_or_as_it_is_told(self, world: World) -> None:
        auth = world.authenticator()
        management = apikey_auth.wsgi.KeyManagement(
            auth, REST(), user=lambda environ: environ.get("app.user")
        )
        app = apikey_auth.wsgi.APIKeyMiddleware(management, auth)

        def host(environ: Any, start_response: Any) -> Any:
            return app({**environ, "app.user": world.users[ADA], "REMOTE_USER": BOB}, start_response)

        site = Site("wsgi", world, host, call_wsgi)
        assert json.loads(site.ask("POST", "", headers=SAME_SITE).body)["owner"] == ADA

    def test_asgi_knows_its_user_as_it_is_told(self, world: World) -> None:
        auth = world.async_authenticator()
        management = apikey_auth.asgi.KeyManagement(auth, REST(), user=lambda scope: ADA)
        site = Site("asgi", world, apikey_auth.asgi.APIKeyMiddleware(management, auth), asgi_caller)
        assert json.loads(site.ask("POST", "", headers=SAME_SITE).body)["owner"] == ADA

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_starlettes_own_simple_user_is_an_owner_or_a_mistake_that_is_named(
        self, world: World, method: str
    ) -> None:
        """It has a name and no identity: whoever takes it must not get an address in memory for an owner."""

        class Backend(AuthenticationBackend):
            async def authenticate(self, conn: Any) -> Any:
                return AuthCredentials(["authenticated"]), SimpleUser("ada")

        auth = world.async_authenticator()
        app = Starlette(
            routes=[apikey_auth.starlette.KeyManagement("/keys", auth, REST())],
            middleware=[
                Middleware(AuthenticationMiddleware, backend=Backend()),
                Middleware(apikey_auth.starlette.APIKeyMiddleware, auth=auth),
            ],
        )
        try:
            answer = Site("starlette", world, app, asgi_caller).ask(method, "/keys", headers=SAME_SITE)
        except ConfigurationError:
            return
        assert answer.status == (200 if method == "GET" else 201)
        assert {key.owner for key in records(world).values()} <= {"ada"}

    def test_starlettes_unauthenticated_user_is_a_visitor(self, world: World) -> None:
        with MOUNTS["starlette"](world, "/keys", REST(), {}) as site:
            assert site.ask("POST", "/keys", headers=SAME_SITE).status == 401

    @pytest.mark.parametrize("user", [None, "", False, 0])
    def test_no_user_is_no_owner(self, user: Any) -> None:
        assert owner_of(user) is None

    def test_an_owner_is_known_by_the_names_that_frameworks_have_for_it(self) -> None:
        class User:
            def __init__(self, **names: Any) -> None:
                self.__dict__.update(names)

        assert owner_of(User(pk=7, id=8)) == "7"
        assert owner_of(User(get_id=lambda: "flask")) == "flask"
        assert owner_of(User(identity="starlette")) == "starlette"
        assert owner_of(User(id=0)) == "0"
        assert owner_of("remote") == "remote"
        assert owner_of(User(pk=7, is_authenticated=False)) is None

    def test_a_user_whose_framework_leaves_the_id_to_the_application_is_no_owner(self) -> None:
        class Person(BaseUser):
            is_authenticated = True
            display_name = "ada"

        assert owner_of(Person()) is None

    def test_a_user_without_a_lasting_id_is_no_owner(self) -> None:
        from django.contrib.auth.models import AnonymousUser, User

        assert owner_of(AnonymousUser()) is None
        for user in (User(username="new"), object()):
            with suppress(ConfigurationError):
                assert owner_of(user) is None

    def test_the_dialect_may_say_who_a_user_is(self, world: World) -> None:
        with MOUNTS["flask"](world, "/keys", REST(owner_of=lambda user: user and f"u-{user.id}"), {}) as site:
            answer = site.ask("POST", "/keys", user=ADA, headers=SAME_SITE)
            assert json.loads(answer.body)["owner"] == f"u-{ADA}"
            assert site.ask("POST", "/keys", headers=SAME_SITE).status == 401


@pytest.mark.parametrize("name", ["django", "django-asgi", "django-async-store"])
class TestDjango:
    """With Django's own sessions, and CsrfViewMiddleware on."""

    @pytest.fixture
    def site(self, name: str, world: World) -> Iterator[Site]:
        with MOUNTS[name](world, "/keys", REST(), {}) as site:
            yield site

    def test_a_session_and_a_proof_need_no_token(self, site: Site) -> None:
        assert site.ask("POST", "/keys", user=ADA, headers=SAME_SITE).status == 201

    def test_a_token_is_no_proof(self, site: Site, world: World) -> None:
        token = "x" * 32
        site.cookies[ADA] = f"{site.sign_in(ADA)}; csrftoken={token}"
        headers = (("X-CSRFToken", token),)
        assert is_cross_origin(site.ask("POST", "/keys", user=ADA, headers=headers))
        assert records(world) == {}

    def test_the_applications_own_views_go_on_asking_for_a_token(self, site: Site, world: World) -> None:
        text = world.keys.issue(BOB).text
        assert site.ask("POST", "/form", user=ADA, headers=SAME_SITE).status == 403
        assert site.ask("POST", f"/form?apikey={text}", user=ADA, headers=SAME_SITE).status == 403
        assert site.ask("POST", f"/form?apikey={text}", user=ADA, key=text).status == 403
        assert site.ask("POST", "/form", key=text).status == 200

    def test_a_session_of_nobody_is_a_visitor(self, site: Site) -> None:
        site.cookies["gone"] = "nonsense"
        assert site.ask("POST", "/keys", user="gone", headers=SAME_SITE).status == 401

    def test_a_user_who_is_not_active_any_more_is_a_visitor(self, site: Site) -> None:
        from django.contrib.auth.models import User

        leaver = User.objects.create(username="leaver")
        try:
            site.cookies["leaver"] = site.sign_in(str(leaver.pk))
            User.objects.filter(pk=leaver.pk).update(is_active=False)
            assert site.ask("POST", "/keys", user="leaver", headers=SAME_SITE).status == 401
        finally:
            leaver.delete()


def test_the_callers_content_type_is_where_wsgi_has_it(world: World) -> None:
    """Guard the tests: the header must not stand in HTTP_CONTENT_TYPE, where nobody looks for it."""
    seen: dict[str, Any] = {}

    def application(environ: Any, start_response: Any) -> Any:
        seen.update(environ)
        start_response("200 OK", [])
        return [b""]

    Site("wsgi", world, application, wsgi_caller).ask("POST", "/", headers=(("Content-Type", "text/plain"),))
    assert (seen["CONTENT_TYPE"], "HTTP_CONTENT_TYPE" in seen) == ("text/plain", False)
