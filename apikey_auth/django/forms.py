"""The forms of the admin: what they give is for ``get_key_manager()``, never saved by themselves."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone

from ..keys import APIKey
from .conf import load_user

if TYPE_CHECKING:  # generic for the checker alone
    from .models import Key

    _ModelForm: TypeAlias = forms.ModelForm[Key]
else:
    _ModelForm = forms.ModelForm

EVERYTHING = "All that the owner may do"
ANYWHERE = "From any address"


def _lines(**options: Any) -> forms.CharField:
    return forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 3}), **options)


def _check(name: str, value: object) -> None:
    """Raise ValidationError for what a record would not take."""
    try:
        APIKey(**{"id": "-", "owner": "-", "digest": "-", name: value})  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise ValidationError({name: str(error)}) from None


class RightsForm(_ModelForm):
    """What a new key and a changed one have in common. ``given`` is for the manager."""

    name = forms.CharField(required=False, max_length=255)
    all_scopes = forms.BooleanField(required=False, initial=True, label=EVERYTHING)
    scopes = _lines(help_text="Otherwise these scopes alone, one a line; without any it may do nothing.")
    any_address = forms.BooleanField(required=False, initial=True, label=ANYWHERE)
    addresses = _lines(help_text="Otherwise from these networks alone, one a line: 10.0.0.0/8")

    given: dict[str, Any]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        self.given = {"name": cleaned.get("name", "")}
        for name, all_of_them in (("scopes", "all_scopes"), ("addresses", "any_address")):
            listed = tuple(cleaned.get(name, "").split())
            if cleaned.get(all_of_them) and listed:
                raise ValidationError({name: "Either all of them, or those that are listed."})
            self.given[name] = None if cleaned.get(all_of_them) else listed
        for name, value in self.given.items():
            _check(name, value)
        return cleaned


class IssueForm(RightsForm):
    """A new key."""

    owner = forms.CharField(help_text="The primary key of the user whom the key stands for.")
    days = forms.IntegerField(
        required=False, min_value=1, max_value=36_500, initial=365, label="Life in days"
    )
    never = forms.BooleanField(required=False, label="Never expires")

    asking: Any = None  # the user at the admin

    def clean_owner(self) -> str:
        owner: str = self.cleaned_data["owner"]
        user = load_user(owner)
        if user is None:
            raise ValidationError(f"No user has the primary key {owner!r}.")
        if not may_act_as(self.asking, user):
            raise ValidationError("Only a superuser makes keys for a superuser.")
        return owner

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        days = cleaned.get("days")
        if bool(days) == bool(cleaned.get("never")) and "days" not in self.errors:
            raise ValidationError({"days": "Either a number of days, or never."})
        self.given["expires_in"] = timedelta(days=days) if days else None
        return cleaned


_OFFSET = re.compile(r":[0-9.]+\s*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$", re.IGNORECASE)


class _UTCField(forms.DateTimeField):
    """A time in UTC, whatever the project's own zone."""

    def prepare_value(self, value: Any) -> Any:
        return value.replace(tzinfo=None) if isinstance(value, datetime) else value

    def to_python(self, value: Any) -> datetime | None:
        with timezone.override(UTC):  # whose hours are all there, once each, which the project's need not be
            found = super().to_python(value.replace(tzinfo=None) if isinstance(value, datetime) else value)
        if found is not None and isinstance(value, str) and _OFFSET.search(value.strip()):
            raise ValidationError("A time in UTC, without an offset.")
        return None if found is None else found.replace(tzinfo=UTC)


class EditForm(RightsForm):
    """A key that is there. ``version`` is the one that its reader saw."""

    expires_at = _UTCField(required=False, label="Expires", help_text="UTC; empty is never.")
    version = forms.IntegerField(widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, all_of_them in (("scopes", "all_scopes"), ("addresses", "any_address")):
            listed = self.initial.get(name)
            self.initial[all_of_them] = listed is None
            self.initial[name] = "\n".join(listed or ())

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        changed = {"all_scopes": "scopes", "any_address": "addresses"}
        names = {changed.get(name, name) for name in self.changed_data}
        self.given |= {name: cleaned.get(name) for name in ("expires_at", "disabled")}
        self.given = {name: value for name, value in self.given.items() if name in names}
        return cleaned


class RevokeForm(forms.Form):
    """Why keys are revoked."""

    reason = forms.CharField(required=False, widget=forms.TextInput(attrs={"size": 60}))


class RotateForm(forms.Form):
    """How long the keys that are replaced go on."""

    hours = forms.IntegerField(
        min_value=0, max_value=24 * 365, initial=0, label="Hours for which the old key goes on"
    )


def may_act_as(asking: Any, user: Any) -> bool:
    """Say whether a user may be given keys of another one: only a superuser those of a superuser."""
    return is_superuser(asking) or not is_superuser(user)


def is_superuser(user: Any) -> bool:
    """Say whether a user is a superuser; a model without ``PermissionsMixin`` knows none."""
    return bool(getattr(user, "is_superuser", False))
