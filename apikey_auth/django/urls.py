"""Key management in a URLconf: ``path("", include(key_management("/keys", REST(rights=ModelRights()))))``."""

import asyncio
import re
from typing import Any

from django.contrib.auth import get_user_model
from django.db.transaction import non_atomic_requests
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt

from ..management.handler import MAX_BODY, Dialect, Request, aplay, caller_of, mount_pattern, play
from ..management.rights import Answer, Caller
from ..policy import visit_of
from ..wsgi import content_length, header_reader
from .conf import aload_user, load_user, setup
from .forms import is_superuser, may_act_as
from .middleware import translated


class ModelRights:
    """Rights by Django's own: one's own keys, those of users one may change, and a superuser everybody's.

    Who may change users manages no superuser's keys: such a key would make a superuser of its bearer.
    """

    def can_list(self, caller: Caller, owner: str, /) -> Answer:
        return caller.owner == owner or _may_change(caller.user, owner)

    can_create = can_list
    can_delete = can_list

    def is_admin(self, caller: Caller, /) -> bool:
        user: Any = caller.user
        return bool(user is not None and user.is_active and is_superuser(user))


def key_management(path: str, dialect: Dialect) -> list[URLPattern]:
    """Make the URL patterns that manage this project's keys at a path in a dialect.

    Callers who come without a key are ``request.user``. The views ask for the origin's proof themselves, so
    they take no CSRF token, and their changes hold when they answer, so they take part in no transaction.
    """
    mount_pattern(path, dialect)
    case = "(?i:" if dialect.ignores_case else "(?:"

    def view(request: HttpRequest, rest: str | None = None) -> HttpResponse:
        asked = _request(request, rest or "", dialect, getattr(request, "user", None))
        return translated(play(dialect.respond(asked, setup().authenticator.keys)))

    async def async_view(request: HttpRequest, rest: str | None = None) -> HttpResponse:
        user = await request.auser() if hasattr(request, "auser") else None
        asked = _request(request, rest or "", dialect, user)
        return translated(await aplay(dialect.respond(asked, setup().async_authenticator.keys)))

    chosen = csrf_exempt(async_view if setup().is_async else view)
    return [re_path(rf"^{case}{re.escape(path[1:])})(?P<rest>/(?s:.*))?\Z", non_atomic_requests(chosen))]


def _request(request: HttpRequest, rest: str, dialect: Dialect, user: object) -> Request:
    visit = visit_of(request.META)
    return Request(
        request.method or "",
        rest,
        request.path.removesuffix(rest),
        request.META["QUERY_STRING"],
        header_reader(request.META),
        _body(request),
        caller_of(visit, user, dialect),
        visit,
    )


def _body(request: HttpRequest) -> bytes:
    wanted = min(content_length(request.META), MAX_BODY + 1)
    body = request.read(MAX_BODY + 1)
    return body if len(body) >= wanted else bytes(MAX_BODY + 1)  # cut short: too much, which no dialect takes


def _may_change(user: Any, owner: str) -> Answer:
    """Say whether a user may change the one that an owner is; a superuser's keys are for superusers alone."""
    if user is None:
        return False
    model = get_user_model()._meta
    permission = f"{model.app_label}.change_{model.model_name}"
    if _in_event_loop():
        return _may_change_in_time(user, owner, permission)
    return bool(user.has_perm(permission)) and (is_superuser(user) or may_act_as(user, load_user(owner)))


async def _may_change_in_time(user: Any, owner: str, permission: str) -> bool:
    if not await user.ahas_perm(permission):
        return False
    return is_superuser(user) or may_act_as(user, await aload_user(owner))


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
