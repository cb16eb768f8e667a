"""Make the rows of this folder with the packages that they are of. The keys in them open nothing.

In an environment with djangorestframework-api-key, django-rest-knox or djangorestframework:

    python make_rows.py drf_api_key > drf_api_key_3.json

The tables are made by the packages' own migrations in SQLite, the keys by their own managers, and the rows
are what ``SELECT *`` then finds. ``sanctum`` alone needs no package: there was no PHP at hand, and its rows
are made here in the way that Laravel Sanctum 4 makes them (HasApiTokens::createToken), which is less of a
proof than the others are.
"""

import hashlib
import json
import secrets
import string
import sys
import zlib
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ["Django", "djangorestframework", "djangorestframework-api-key", "django-rest-knox"]
LATER, EARLIER = datetime(2099, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)


def django_project(*apps, **options):
    import django
    from django.conf import settings
    from django.core.management import call_command

    settings.configure(
        SECRET_KEY="only for these rows",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "rest_framework", *apps],
        USE_TZ=True,
        TIME_ZONE="Europe/Vienna",
        **options,
    )
    django.setup()
    call_command("migrate", verbosity=0)


def users():
    from django.contrib.auth.models import User

    return [User.objects.create_user(name) for name in ("ada", "grace")]


def row(table, column, value):
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table} WHERE {column} = %s", [value])
        names = [each[0] for each in cursor.description]
        return dict(zip(names, cursor.fetchone(), strict=True))


def drf_api_key():
    django_project("rest_framework_api_key")
    from rest_framework_api_key.models import APIKey

    for name, fields in {
        "live": {},
        "until 2099": {"expiry_date": LATER},
        "expired": {"expiry_date": EARLIER},
        "revoked": {"revoked": True},
    }.items():
        key, text = APIKey.objects.create_key(name=name, **fields)
        assert APIKey.objects.is_valid(text) == (name in ("live", "until 2099"))
        yield name, text, row("rest_framework_api_key_apikey", "id", key.id)


def knox(prefix=""):
    django_project("knox", **({"REST_KNOX": {"TOKEN_PREFIX": prefix}} if prefix else {}))
    from knox.auth import TokenAuthentication
    from knox.models import AuthToken

    ada, grace = users()
    until_2099 = LATER - datetime.now(UTC)
    for user, name, life in (
        (ada, "live", None),
        (grace, "until 2099", until_2099),
        (ada, "expired", timedelta(days=-1)),
    ):
        token, text = AuthToken.objects.create(user, expiry=life)
        found = row("knox_authtoken", "digest", token.digest)
        if name != "expired":
            assert TokenAuthentication().authenticate_credentials(text.encode())[0] == user
        yield name, text, found


def knox_prefix():
    return knox("acme-")


def drf_token():
    django_project("rest_framework.authtoken")
    from rest_framework.authtoken.models import Token

    for user in users():
        token = Token.objects.create(user=user)
        yield "live", token.key, row("authtoken_token", "key", token.key)


def sanctum():
    def token_string(prefix):
        entropy = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40))
        return f"{prefix}{entropy}{zlib.crc32(entropy.encode()):08x}"

    kinds = [
        ("live", "", ["*"], None, 7),
        ("until 2099", "", ["reports:read", "reports:write"], "2099-01-01 00:00:00", 8),
        ("expired", "", ["*"], "2020-01-01 00:00:00", 7),
        ("live", "acme_pat_", [], None, 8),
    ]
    for number, (name, prefix, abilities, expires_at, owner) in enumerate(kinds, 41):
        token = token_string(prefix)
        yield (
            name,
            f"{number}|{token}",
            {
                "id": number,
                "tokenable_type": "App\\Models\\User",
                "tokenable_id": owner,
                "name": name,
                "token": hashlib.sha256(token.encode()).hexdigest(),
                "abilities": json.dumps(abilities),
                "last_used_at": None,
                "expires_at": expires_at,
                "created_at": "2026-01-31 12:00:00",
                "updated_at": "2026-01-31 12:00:00",
            },
        )


def versions():
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


SYSTEMS = {each.__name__: each for each in (drf_api_key, knox, knox_prefix, drf_token, sanctum)}


def main(system):
    keys = [{"state": state, "text": text, "row": found} for state, text, found in SYSTEMS[system]()]
    made_by = f"make_rows.py {system}" + ("" if system == "sanctum" else f", with {dict(versions())}")
    json.dump({"made_by": made_by, "keys": keys}, sys.stdout, indent=1, default=str)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
