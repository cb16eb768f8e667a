"""The pages of the Django project."""

from django.http import HttpRequest, HttpResponse
from django.urls import path

from .sites import Broken, shown_of, unmasked


def fine(request: HttpRequest) -> HttpResponse:
    text = f"{request.get_full_path()} {request!r} {request.user!r} {request.GET!r} {shown_of(request.META)}"
    return HttpResponse(text, content_type="text/plain")


def broken(request: HttpRequest) -> HttpResponse:
    raise Broken(f"at {request.get_full_path()}")


def unmask(request: HttpRequest) -> HttpResponse:
    return HttpResponse(unmasked())


urlpatterns = [path("fine", fine), path("broken", broken), path("unmask", unmask)]
