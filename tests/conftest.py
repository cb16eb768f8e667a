"""What all tests share: database servers, and Django's settings, which a process has only once."""

import atexit
import shutil
import tempfile
from pathlib import Path

import django
from django.conf import settings

pytest_plugins = ["databases"]

_FOLDER = Path(tempfile.mkdtemp(prefix="apikey_auth-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

settings.configure(
    SECRET_KEY="only for these tests",
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _FOLDER / "django.db"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "apikey_auth.django",
    ],
    MIDDLEWARE=["apikey_auth.django.middleware.APIKeyMiddleware"],
    ROOT_URLCONF="django_project",
    USE_TZ=True,
    LOGGING_CONFIG=None,
    SILENCED_SYSTEM_CHECKS=[],
)
django.setup()
