"""The Django project of the tests: the routes that the behaviour table asks for, sync and async."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from apikey_auth.django import require_api_key


def user_name(request: HttpRequest) -> str | None:
    user = getattr(request, "user", None)
    return user.get_username() if user is not None and user.is_authenticated else None


def public(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": user_name(request), "query": request.META["QUERY_STRING"]})


@require_api_key()
def me(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": user_name(request), "key_id": request.api_key.id})  # type: ignore[attr-defined]


@require_api_key("reports:read")
async def reports(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": user_name(request), "key_id": request.api_key.id})  # type: ignore[attr-defined]


async def headers(request: HttpRequest) -> HttpResponse:
    """Answer with the headers that the request asks for, as an application would set them."""
    wanted = {name[4:]: value for name, value in request.headers.items() if name.startswith("Set-")}
    return HttpResponse(b"", headers=wanted)


async def refuse(request: HttpRequest) -> Any:
    raise RuntimeError("an application's own error")


def form(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": user_name(request)})


def parameters(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"get": dict(request.GET.lists()), "full": request.get_full_path()})


async def whoami(request: HttpRequest) -> JsonResponse:
    user = await request.auser()
    return JsonResponse({"user": user.get_username()})


urlpatterns = [
    path("public", public),
    path("me", me),
    path("reports", reports),
    path("headers", headers),
    path("error", refuse),
    path("form", form),
    path("parameters", parameters),
    path("whoami", whoami),
]
