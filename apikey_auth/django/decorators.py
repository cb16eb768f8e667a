"""What a view asks of a request's key."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest

from ..policy import check_required_scopes, require

View = TypeVar("View", bound=Callable[..., Any])


def require_api_key(*scopes: str) -> Callable[[View], View]:
    """Require a key with these scopes for a view, ``def`` or ``async def``.

    Raises the Refusal that the middleware answers: 401 with a challenge where there is no good key, 403
    where a scope is missing.
    """
    check_required_scopes("require_api_key", scopes)

    def decorate(view: View) -> View:
        if inspect.isclass(view):
            raise TypeError(
                "@require_api_key() is for functions; for a class, method_decorator(…, name='dispatch')"
            )
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def checked_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                require(request.META, *scopes)
                return await view(request, *args, **kwargs)

            return checked_async  # type: ignore[return-value]

        @functools.wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            require(request.META, *scopes)
            return view(request, *args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate
