"""The tables of keys and of their history, which begins here."""

import secrets
from typing import Any, ClassVar

from django.db import migrations, models

from .. import fields


def begin(apps: Any, schema_editor: Any) -> None:
    """Make the one row of the history, under a mark that no other database has."""
    state = apps.get_model("apikey_auth", "State")
    state.objects.using(schema_editor.connection.alias).create(id=1, epoch=secrets.token_hex(16))


class Migration(migrations.Migration):
    initial = True

    dependencies: ClassVar[Any] = []

    operations: ClassVar[Any] = [
        migrations.CreateModel(
            name="State",
            fields=[
                ("id", models.PositiveSmallIntegerField(primary_key=True, serialize=False)),
                ("epoch", models.CharField(max_length=32)),
                ("revision", models.BigIntegerField(default=0)),
                ("floor", models.BigIntegerField(default=0)),
            ],
            options={"db_table": "apikey_auth_django_state"},
        ),
        migrations.CreateModel(
            name="Key",
            fields=[
                ("id", fields.ExactField(max_length=255, primary_key=True, serialize=False)),
                ("owner", fields.ExactField(max_length=255)),
                ("digest", fields.ExactField(max_length=255)),
                ("name", fields.UnicodeField(blank=True, max_length=255)),
                ("prefix", fields.UnicodeField(blank=True, max_length=255)),
                ("last4", fields.UnicodeField(blank=True, max_length=4)),
                ("scopes", fields.JSONTextField(blank=True, null=True)),
                ("addresses", fields.JSONTextField(blank=True, null=True)),
                ("created_at", fields.UTCDateTimeField()),
                ("created_by", fields.ExactField(blank=True, max_length=255, null=True)),
                ("expires_at", fields.UTCDateTimeField(blank=True, null=True)),
                ("disabled", models.BooleanField(default=False)),
                ("revoked_at", fields.UTCDateTimeField(blank=True, null=True)),
                ("revoked_reason", fields.UnicodeTextField(blank=True, null=True)),
                ("rotated_to", fields.ExactField(blank=True, max_length=255, null=True)),
                ("rotated_from", fields.ExactField(blank=True, max_length=255, null=True)),
                ("grace_until", fields.UTCDateTimeField(blank=True, null=True)),
                ("last_used_at", fields.UTCDateTimeField(blank=True, null=True)),
                ("metadata", fields.JSONTextField(blank=True, default=dict)),
                ("version", models.IntegerField(default=1)),
                ("revision", models.BigIntegerField(default=0, editable=False)),
            ],
            options={
                "verbose_name": "API key",
                "db_table": "apikey_auth_django_key",
                "indexes": [
                    models.Index(fields=["owner", "id"], name="apikey_auth_owner"),
                    models.Index(fields=["revision"], name="apikey_auth_revision"),
                    models.Index(fields=["revoked_at", "owner"], name="apikey_auth_revoked"),
                    models.Index(fields=["expires_at"], name="apikey_auth_expires"),
                    models.Index(fields=["grace_until"], name="apikey_auth_grace"),
                ],
            },
        ),
        migrations.RunPython(begin, migrations.RunPython.noop),
    ]
