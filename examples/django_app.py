"""API keys in a Django project of one file, served by waitress.

    python examples/django_app.py --port 8000

The first start makes the tables and the users, and prints a key for ada, who may read reports, and one for
bob, who may not:

    curl http://127.0.0.1:8000/public
    curl -H "apikey: $KEY" http://127.0.0.1:8000/me
    curl "http://127.0.0.1:8000/reports?apikey=$KEY"
"""

import argparse
import secrets
import shlex
import sys

import waitress  # type: ignore[import-untyped]
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from apikey_auth.django import get_key_manager, require_api_key

SCOPES = {"ada": ["reports:read"], "bob": []}


def public(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": request.user.get_username() or None})


@require_api_key()
def me(request: HttpRequest) -> JsonResponse:
    key = request.api_key  # type: ignore[attr-defined]  # the middleware's
    return JsonResponse({"user": request.user.get_username(), "key_id": key.id, "scopes": key.scopes})


@require_api_key("reports:read")
async def reports(request: HttpRequest) -> JsonResponse:
    return JsonResponse(["January", "February"], safe=False)


urlpatterns = [path("public", public), path("me", me), path("reports", reports)]


def create_app(database: str) -> WSGIHandler:
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": database.removeprefix("sqlite:///"),
            }
        },
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "apikey_auth.django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "apikey_auth.django.middleware.APIKeyMiddleware",
        ],
        ROOT_URLCONF=__name__,
        SECRET_KEY=secrets.token_urlsafe(),
        ALLOWED_HOSTS=["127.0.0.1"],
    )
    return get_wsgi_application()


def make_first_keys() -> None:
    from django.contrib.auth.models import User  # there are models only once Django is set up

    for name, scopes in SCOPES.items():
        user, _ = User.objects.get_or_create(username=name)
        if issued := get_key_manager().ensure(str(user.pk), name="first", scopes=scopes):
            print(f"{name}'s key: {issued.text}", flush=True)
        else:
            print(f"{name} has a key. Another one: python {shlex.join(sys.argv)} --issue {name}", flush=True)


def issue(name: str) -> None:
    from django.contrib.auth.models import User

    user = User.objects.get(username=name)
    print(get_key_manager().issue(str(user.pk), scopes=SCOPES[name]).text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--database", default="sqlite:///django.db", metavar="URL")
    parser.add_argument("--issue", choices=SCOPES, help="print a new key for this user, and exit")
    options = parser.parse_args()
    application = create_app(options.database)
    if options.issue:
        issue(options.issue)
        return
    call_command("migrate", verbosity=0)
    make_first_keys()
    waitress.serve(application, host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
