"""The tables of ``DjangoKeyStore``. To read from; to change keys there is ``get_key_manager()``.

What is saved past the manager has no revision: other processes would go on with the key as it was.
"""

from typing import Any, NoReturn

from django.db import models

from ..keys import MAX_NAME
from .fields import ExactField, JSONTextField, UnicodeField, UnicodeTextField, UTCDateTimeField


class Key(models.Model):
    """A key's record: the fields of ``APIKey``, and the revision of its last change."""

    id = ExactField(primary_key=True, max_length=MAX_NAME)
    owner = ExactField(max_length=MAX_NAME)
    digest = ExactField(max_length=MAX_NAME)
    name = UnicodeField(max_length=MAX_NAME, blank=True)
    prefix = UnicodeField(max_length=MAX_NAME, blank=True)
    last4 = UnicodeField(max_length=4, blank=True)
    scopes = JSONTextField(null=True, blank=True)
    addresses = JSONTextField(null=True, blank=True)
    created_at = UTCDateTimeField()
    created_by = ExactField(max_length=MAX_NAME, null=True, blank=True)
    expires_at = UTCDateTimeField(null=True, blank=True)
    disabled: "models.BooleanField[bool, bool]" = models.BooleanField(default=False)
    revoked_at = UTCDateTimeField(null=True, blank=True)
    revoked_reason = UnicodeTextField(null=True, blank=True)
    rotated_to = ExactField(max_length=MAX_NAME, null=True, blank=True)
    rotated_from = ExactField(max_length=MAX_NAME, null=True, blank=True)
    grace_until = UTCDateTimeField(null=True, blank=True)
    last_used_at = UTCDateTimeField(null=True, blank=True)
    metadata = JSONTextField(default=dict, blank=True)
    version: "models.IntegerField[int, int]" = models.IntegerField(default=1)
    revision: "models.BigIntegerField[int, int]" = models.BigIntegerField(default=0, editable=False)

    class Meta:
        app_label = "apikey_auth"
        db_table = "apikey_auth_django_key"
        verbose_name = "API key"
        indexes = (
            models.Index(fields=["owner", "id"], name="apikey_auth_owner"),
            models.Index(fields=["revision"], name="apikey_auth_revision"),
            models.Index(fields=["revoked_at", "owner"], name="apikey_auth_revoked"),
            models.Index(fields=["expires_at"], name="apikey_auth_expires"),
            models.Index(fields=["grace_until"], name="apikey_auth_grace"),
        )

    def __str__(self) -> str:
        return f"{self.masked} {self.name}".rstrip()

    @property
    def masked(self) -> str:
        """What people tell keys apart by: the ends of the key's text, and its id, which is no secret."""
        return f"{self.prefix}_{self.id}_…{self.last4}" if self.prefix else f"{self.id}"

    def save(self, *_: Any, **__: Any) -> NoReturn:
        """Raise TypeError: an instance that was read before a revocation would undo it."""
        raise TypeError("a key is changed by get_key_manager().edit(…) and made by issue(…), not by save()")

    def delete(self, *_: Any, **__: Any) -> NoReturn:
        """Raise TypeError: a deleted record is no revoked key."""
        raise TypeError("a key is ended by get_key_manager().revoke(…), and dead ones deleted by purge(…)")


class State(models.Model):
    """One row: how many changes there were since the tables were made, and as of the last purge."""

    id: "models.PositiveSmallIntegerField[int, int]" = models.PositiveSmallIntegerField(primary_key=True)
    epoch: "models.CharField[str, str]" = models.CharField(max_length=32)
    revision: "models.BigIntegerField[int, int]" = models.BigIntegerField(default=0)
    floor: "models.BigIntegerField[int, int]" = models.BigIntegerField(default=0)

    class Meta:
        app_label = "apikey_auth"
        db_table = "apikey_auth_django_state"
