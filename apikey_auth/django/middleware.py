"""The middleware. It translates a Django request for the authenticator, and what comes of it for Django."""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from ..asgi import cut
from ..authenticate import AsyncAuthenticator, Authenticator, check_authenticator
from ..errors import ConfigurationError, Refusal
from ..policy import VISIT, Recognition, Visit
from ..responses import GUARDED, GUARDED_LENGTHS, Response
from ..wsgi import admit, receive
from .conf import setup


def place_of(middleware: type) -> int | None:
    """Find where a middleware, or one made of it, stands in MIDDLEWARE."""
    for place, path in enumerate(settings.MIDDLEWARE):
        found = import_string(path)
        if isinstance(found, type) and issubclass(found, middleware):
            return place
    return None


def check_order() -> None:
    """Raise ConfigurationError where requests of a key would end up as the session's user."""
    ours, theirs = place_of(APIKeyMiddleware), place_of(AuthenticationMiddleware)
    if ours is not None and theirs is not None and ours < theirs:
        raise ConfigurationError(
            "APIKeyMiddleware stands before AuthenticationMiddleware in MIDDLEWARE, which would undo its work"
        )


class APIKeyMiddleware:
    """Sets ``request.user``, ``request.auser`` and ``request.api_key`` for a request with a good key.

    ``request.api_key`` is None without one. A key beats the session's user. A good key in a header exempts
    from CSRF, which no other site can send; a key in the URL does not: an attacker's own key in a link
    would switch the protection of the victim's session off.

    Raises ConfigurationError for a setting or a place in MIDDLEWARE that will not do.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]
    ) -> None:
        self.get_response: Callable[[HttpRequest], Any] = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        check_order()
        now = setup()  # and not at a request
        auth = now.async_authenticator if self._is_async else now.authenticator
        check_authenticator(auth, type(auth), now.policy)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self.__acall__(request)
        auth = setup().authenticator
        visit = _receive(request, auth)
        admit(visit, auth)
        response = _refused(visit, visit.turned_away)
        if response is None:
            _identify(request, visit)
            response = self.get_response(request)
        return _guard(response, visit)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        auth = setup().async_authenticator
        visit = _receive(request, auth)
        if not isinstance(visit, Recognition):
            await auth.admit(visit)
        elif visit.pending is not None:
            await auth.let_in(visit, visit.pending)
        response = _refused(visit, visit.turned_away)
        if response is None:
            _identify(request, visit)
            response = await self.get_response(request)
        return _guard(response, visit)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """Answer a Refusal that a view raised."""
        return _refused(request.META[VISIT], exception if isinstance(exception, Refusal) else None)


def _receive(request: HttpRequest, auth: Authenticator[Any] | AsyncAuthenticator[Any]) -> Visit:
    """Read a request, and cut the key out of every place where Django and the server keep the URL."""
    query = request.META.get("QUERY_STRING", "")
    visit = receive(request.META, setup().policy, auth, request.path_info, request.scheme)
    scope = getattr(request, "scope", None)
    if not isinstance(visit, Recognition) and visit.query != query:
        request.__dict__.pop("GET", None)  # an earlier middleware may have parsed the query string
        if scope is not None:
            cut(scope, visit.query.encode(), visit.policy)
    if visit.hidden:
        request.__dict__.pop("headers", None)
        if scope is not None:
            hidden = {name.encode("latin-1") for name in visit.hidden}
            scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in hidden]
    return visit


def _identify(request: HttpRequest, visit: Visit) -> None:
    request.api_key = None  # type: ignore[attr-defined]
    if (identity := visit.identity) is None:
        return

    async def auser() -> Any:
        return identity.user

    request.user = identity.user
    request.auser = auser
    request.api_key = identity.key  # type: ignore[attr-defined]
    if isinstance(visit, Recognition) or not visit.credential.in_url:
        request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]


def _refused(visit: Visit, refusal: Refusal | None) -> HttpResponseBase | None:
    return None if refusal is None else translated(visit.respond(refusal))


def translated(response: Response) -> HttpResponse:
    """Turn a response of ours into Django's."""
    answer = HttpResponse(response.body, status=response.status, headers=dict(response.headers))
    if not any(name == "Content-Type" for name, _ in response.headers):
        del answer.headers["Content-Type"]  # Django's default, for an answer without a body
    return answer


def _guard(response: HttpResponseBase, visit: Visit) -> HttpResponseBase:
    said = [name for name in response.headers if len(name) in GUARDED_LENGTHS and name.lower() in GUARDED]
    present = {name.lower(): response.headers[name] for name in said}
    for name, value in visit.guard(present).items():
        response.headers[name] = value
    return response
