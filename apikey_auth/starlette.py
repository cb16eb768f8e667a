"""Starlette: ``request.user``, ``request.auth``, and Starlette's own ``@requires``.

Add it with ``Middleware(APIKeyMiddleware, auth=async_auth)``, behind any session middleware that sets a
user too: a key beats the session's user.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

try:
    from starlette.authentication import AuthCredentials, UnauthenticatedUser
    from starlette.requests import HTTPConnection
    from starlette.routing import BaseRoute, Match, NoMatchFound
    from starlette.types import Receive, Scope, Send
except ImportError as error:  # pragma: no cover
    raise ImportError("this module needs Starlette: pip install 'apikey_auth[starlette]'") from error

from . import asgi
from .authenticate import AsyncAuthenticator
from .decisions import Identity
from .management.handler import Dialect, mount_pattern
from .policy import Visit, check_required_scopes, require

__all__ = ["APIKeyMiddleware", "KeyManagement", "require_api_key"]

P = ParamSpec("P")
T = TypeVar("T")


class APIKeyMiddleware(asgi.APIKeyMiddleware):
    """``asgi.APIKeyMiddleware`` with Starlette's types on the request, and its visitor where there is no key.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def _identify(self, scope: Scope, visit: Visit) -> None:
        super()._identify(scope, visit)
        if visit.identity is None:
            scope.setdefault("auth", AuthCredentials())
            scope.setdefault("user", UnauthenticatedUser())

    def _permissions(self, identity: Identity[Any]) -> AuthCredentials:
        credentials = AuthCredentials()
        credentials.scopes = asgi.scopes_of(identity.key.scopes)  # type: ignore[assignment]  # it may be any container
        return credentials


class KeyManagement(BaseRoute):
    """A route that manages keys at a path in a dialect: ``KeyManagement("/keys", auth, REST())``.

    Stands among an application's routes as a ``Mount`` does. Callers who come without a key are the users
    that an authentication middleware has set.
    """

    def __init__(self, path: str, auth: AsyncAuthenticator[object], dialect: Dialect) -> None:
        self._management = asgi.KeyManagement(auth, dialect)
        self._pattern = mount_pattern(path, dialect)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found = self._pattern.fullmatch(asgi.path_below_mount(scope)) if scope["type"] == "http" else None
        if found is None:
            return Match.NONE, {}
        return Match.FULL, {"root_path": scope.get("root_path", "") + found["mount"]}

    def url_path_for(self, name: str, /, **path_params: Any) -> NoReturn:
        """Raise NoMatchFound: what is here has no name, and Starlette asks the next route."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._management(scope, receive, send)


def require_api_key(*scopes: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Require a key with these scopes for an endpoint, ``def`` or ``async def``.

    Unlike ``@requires`` it answers 401 with a challenge where there is no key (RFC 9110, section 15.5.2),
    and 403 where a scope is missing.
    """
    check_required_scopes("require_api_key", scopes)

    def decorate(endpoint: Callable[P, T]) -> Callable[P, T]:
        if inspect.isclass(endpoint):
            raise TypeError(
                f"@require_api_key() goes on the methods of {endpoint.__name__}, not on the class"
            )
        if inspect.iscoroutinefunction(endpoint):

            @functools.wraps(endpoint)
            async def checked_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                require(_connection(args, kwargs).scope, *scopes)
                return await endpoint(*args, **kwargs)

            return checked_async  # type: ignore[return-value]

        @functools.wraps(endpoint)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            require(_connection(args, kwargs).scope, *scopes)
            return endpoint(*args, **kwargs)

        return checked

    return decorate


def _connection(args: tuple[object, ...], kwargs: dict[str, Any]) -> HTTPConnection:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, HTTPConnection):
            return argument
    raise TypeError("@require_api_key() is for endpoints that take a Request or a WebSocket")
