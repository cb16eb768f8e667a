"""Flask: ``current_identity``, ``g.user`` and ``@auth.required("scope")``.

The key is read, and cut out of the URL, before Flask makes a request of it; it is resolved in
``before_request``, where ``load_user`` has the application's context and errors reach its handlers.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack
from weakref import WeakSet

try:
    from flask import Blueprint, Flask, current_app, g, request
    from flask import Response as FlaskResponse
    from flask.blueprints import BlueprintSetupState
    from werkzeug.datastructures import Headers
    from werkzeug.local import LocalProxy
    from werkzeug.routing import BaseConverter
except ImportError as error:  # pragma: no cover
    raise ImportError("this module needs Flask: pip install 'apikey_auth[flask]'") from error

from . import wsgi
from .authenticate import Authenticator, check_authenticator
from .decisions import Identity
from .errors import ConfigurationError, Refusal
from .management.handler import Dialect, mount_pattern
from .policy import IDENTITY, Options, Policy, anew, check_required_scopes, require, visit_of
from .responses import Response

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["APIKeyAuth", "current_identity", "key_management"]

P = ParamSpec("P")
T = TypeVar("T")

# The dialect says which methods it has; a rule for all of them is nothing that Flask knows.
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY"]


def _current_identity() -> Identity[Any] | None:
    identity = visit_of(request.environ).identity
    return identity if request.environ.get(IDENTITY) is identity else None  # known, but not admitted yet


current_identity: Identity[Any] = LocalProxy(_current_identity)  # type: ignore[assignment]
"""The identity of the request's key; false where there is none."""


class APIKeyAuth:
    """The Flask extension: ``APIKeyAuth(auth, app)``, or ``init_app`` for any number of applications.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def __init__(
        self, auth: Authenticator[object], app: Flask | None = None, **options: Unpack[Options]
    ) -> None:
        self._auth = auth
        self._policy = Policy(**options)
        check_authenticator(auth, Authenticator, self._policy)
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Protect an application. Raises ConfigurationError for one that is protected already."""
        if "apikey_auth" in app.extensions:
            raise ConfigurationError(f"{app!r} has APIKeyAuth already")
        app.extensions["apikey_auth"] = self
        self._apps.add(app)
        app.wsgi_app = _Front(app.wsgi_app, self._auth, self._policy)  # type: ignore[method-assign]
        app.before_request(self._admit)
        app.register_error_handler(Refusal, _refused)

    def required(self, *scopes: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Require a key with these scopes for a view, ``def`` or ``async def``; stands below the route.

        Raises ConfigurationError where it stands above: Flask would go on calling the view it knows.
        """
        check_required_scopes("required", scopes)

        def decorate(view: Callable[P, T]) -> Callable[P, T]:
            if any(view in app.view_functions.values() for app in self._apps):
                raise ConfigurationError(f"{view.__name__} is routed already: put required() below the route")

            @functools.wraps(view)
            def checked(*args: P.args, **kwargs: P.kwargs) -> T:
                require(request.environ, *scopes)
                answer: T = current_app.ensure_sync(view)(*args, **kwargs)
                return answer

            return checked

        return decorate

    def _admit(self) -> None:
        visit = visit_of(request.environ)
        wsgi.admit(visit, self._auth)
        if refusal := visit.turned_away:
            raise anew(refusal)
        wsgi.identify(request.environ, visit)
        if g.pop("_apikey_auth_user", False):  # of an earlier request, where the context outlives one
            g.pop("user", None)
        if visit.identity is not None:
            g.user = visit.identity.user
            g._apikey_auth_user = True
        else:
            g.setdefault("user", None)


def key_management(
    path: str, auth: Authenticator[object], dialect: Dialect, *, name: str = "key_management"
) -> Blueprint:
    """Make the blueprint that manages keys at a path in a dialect.

    ``app.register_blueprint(key_management("/keys", auth, REST()))``. Callers who come without a key are
    ``g.user``, which the application sets before the view.
    """
    management = wsgi.KeyManagement(auth, dialect, user=lambda _: g.get("user"))
    mount_pattern(path, dialect)
    blueprint = Blueprint(name, __name__)

    class MountConverter(BaseConverter):
        regex = f"(?i:{re.escape(path[1:])})" if dialect.ignores_case else re.escape(path[1:])
        part_isolating = False

    class RestConverter(BaseConverter):
        regex = "(?s:.*)"  # Flask's own path stops at a line break
        part_isolating = False

    def prepare(state: BlueprintSetupState) -> None:
        state.app.url_map.converters |= {name: MountConverter, f"{name}_rest": RestConverter}

    def view(mounted: str, rest: str | None = None) -> FlaskResponse:
        below = "" if rest is None else f"/{rest}"
        return _response(management.respond(request.environ, below, f"{request.script_root}/{mounted}"))

    blueprint.record_once(prepare)
    for rule in (f"/<{name}:mounted>", f"/<{name}:mounted>/<{name}_rest:rest>"):
        blueprint.add_url_rule(rule, "view", view, methods=_METHODS, provide_automatic_options=False)
    return blueprint


class _Front:
    """Reads the key before Flask sees the request, and guards the answer after it."""

    def __init__(self, application: "WSGIApplication", auth: Authenticator[object], policy: Policy) -> None:
        self._application = application
        self._auth = auth
        self._policy = policy

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        visit = wsgi.receive(environ, self._policy, self._auth)
        return self._application(environ, wsgi.guarded(visit, start_response))


def _refused(refusal: Refusal) -> FlaskResponse:
    return _response(visit_of(request.environ).respond(refusal))


def _response(response: Response) -> FlaskResponse:
    translated = FlaskResponse([response.body], response.status_line)
    translated.headers = Headers(response.headers)  # none by default: an answer without a body has no type
    return translated
