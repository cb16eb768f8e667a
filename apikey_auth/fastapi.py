"""FastAPI: ``identity: Annotated[Identity, Security(api_key, scopes=["reports:read"])]``, shown in OpenAPI.

``APIKeyAuth`` puts Starlette's middleware around the application, which reads the key, cuts it out of the URL
and keeps the answer private; endpoints, routers and websockets depend on what it found.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Unpack

try:
    from fastapi import FastAPI, Security
    from fastapi.openapi.models import SecurityBase as SecurityScheme
    from fastapi.security import SecurityScopes
    from fastapi.security.base import SecurityBase
    from starlette.requests import HTTPConnection
except ImportError as error:  # pragma: no cover
    raise ImportError("this module needs FastAPI: pip install 'apikey_auth[fastapi]'") from error

from .authenticate import AsyncAuthenticator, check_authenticator
from .credentials import Carrier
from .decisions import Identity
from .errors import ConfigurationError
from .management.openapi import security_schemes
from .policy import Options, Policy, require, visit_of
from .starlette import APIKeyMiddleware, KeyManagement

__all__ = ["APIKeyAuth", "KeyManagement"]


class APIKeyAuth:
    """The dependency that gives the identity of a request's key: ``api_key = APIKeyAuth(auth, app)``.

    Without the application, which may be made elsewhere, ``init_app`` follows. ``Security(api_key, scopes=[…])``
    raises the Refusal that the middleware answers: 401 with a challenge where there is no good key, 403 where a
    scope is missing. ``optional`` is the same dependency for visitors too.

    See ``Options``. Raises ConfigurationError for an option or an authenticator that will not do.
    """

    def __init__(
        self, auth: AsyncAuthenticator[object], app: FastAPI | None = None, **options: Unpack[Options]
    ) -> None:
        check_authenticator(auth, AsyncAuthenticator)
        self._auth = auth
        self._options = options
        self.__signature__ = _signature(Policy(**options).carriers)
        self.optional = _Optional(self.__signature__)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: FastAPI) -> None:
        """Protect an application, or one more that is mounted in it.

        Raises ConfigurationError for one that is protected already.
        """
        added: list[object] = [each.cls for each in app.user_middleware]
        if APIKeyMiddleware in added:
            raise ConfigurationError(f"{app.title!r} has APIKeyMiddleware already")
        app.add_middleware(APIKeyMiddleware, auth=self._auth, **self._options)

    async def __call__(
        self, *, connection: HTTPConnection, security_scopes: SecurityScopes, **_: None
    ) -> Identity[Any]:
        return require(connection.scope, *security_scopes.scopes)


class _Optional:
    """The dependency that gives the identity of a request's key, and None for a visitor.

    A key that came has to have the scopes all the same.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        self.__signature__ = signature

    async def __call__(
        self, *, connection: HTTPConnection, security_scopes: SecurityScopes, **_: None
    ) -> Identity[Any] | None:
        if visit_of(connection.scope).identity is None:
            return None
        return require(connection.scope, *security_scopes.scopes)


class _Shown(SecurityBase):
    """A dependency on nothing, by which FastAPI knows one of the places where a key may be."""

    def __init__(self, name: str, scheme: Mapping[str, Any]) -> None:
        self.scheme_name = name
        self.model = SecurityScheme(**scheme)

    async def __call__(self) -> None:
        pass


def _signature(carriers: tuple[Carrier, ...]) -> inspect.Signature:
    """Make the parameters that FastAPI reads: what is asked for, and one for each place that it is to show."""
    asked = {"connection": HTTPConnection, "security_scopes": SecurityScopes}
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, annotation=each) for name, each in asked.items()]
    parameters += [
        inspect.Parameter(f"carrier_{number}", kind, default=Security(_Shown(*each)))
        for number, each in enumerate(security_schemes(carriers).items())
    ]
    return inspect.Signature(parameters)
