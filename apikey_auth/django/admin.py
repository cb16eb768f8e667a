"""Keys in Django's admin, where they are in the project's database.

Whatever changes goes through ``get_key_manager()``; the digest is on no page. Who may add keys may act as
any user, except that for a superuser's keys one has to be one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html

from ..decisions import state
from ..errors import APIKeyAuthError, Conflict, Refusal
from ..keys import APIKey, IssuedKey
from .conf import NO_USER, database_of_keys, get_key_manager, load_user
from .forms import EVERYTHING, EditForm, IssueForm, RevokeForm, RotateForm, may_act_as
from .models import Key

if TYPE_CHECKING:  # generic for the checker alone
    _ModelAdmin: TypeAlias = admin.ModelAdmin[Key]
else:
    _ModelAdmin = admin.ModelAdmin


def _ended(now: datetime) -> Q:
    return Q(expires_at__lte=now) | Q(grace_until__lte=now)


_STATES: dict[str, Callable[[QuerySet[Key], datetime], QuerySet[Key]]] = {
    "live": lambda keys, now: keys.filter(revoked_at=None, disabled=False).exclude(_ended(now)),
    "revoked": lambda keys, _: keys.exclude(revoked_at=None),
    "disabled": lambda keys, _: keys.filter(revoked_at=None, disabled=True),
    "expired": lambda keys, now: keys.filter(_ended(now), revoked_at=None, disabled=False),
}
_USES: dict[str, tuple[str, Callable[[QuerySet[Key], datetime], QuerySet[Key]]]] = {
    "month": (
        "in the last 30 days",
        lambda keys, now: keys.filter(last_used_at__gt=now - timedelta(days=30)),
    ),
    "old": (
        "not for 90 days",
        lambda keys, now: keys.filter(last_used_at__lt=now - timedelta(days=90)),
    ),
    "never": ("never", lambda keys, _: keys.filter(last_used_at=None)),
}


class StateFilter(admin.SimpleListFilter):
    title, parameter_name = "state", "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:  # noqa: ARG002
        return [(name, name) for name in _STATES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Key]) -> QuerySet[Key]:  # noqa: ARG002
        chosen = _STATES.get(self.value() or "")
        return queryset if chosen is None else chosen(queryset, datetime.now(UTC))


class UseFilter(admin.SimpleListFilter):
    title, parameter_name = "last use", "used"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:  # noqa: ARG002
        return [(name, label) for name, (label, _) in _USES.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Key]) -> QuerySet[Key]:  # noqa: ARG002
        chosen = _USES.get(self.value() or "")
        return queryset if chosen is None else chosen[1](queryset, datetime.now(UTC))


@dataclass(frozen=True)
class Outcome:
    """What became of one key of those that were rotated."""

    key: Key
    text: str = field(default="", repr=False)
    error: str = ""


def _came_with_a_key(request: HttpRequest) -> bool:
    return getattr(request, "api_key", None) is not None


class KeyAdmin(_ModelAdmin):
    """Lists, issues, edits, revokes and rotates keys; deletes none."""

    list_display = ("masked", "owner", "name", "state", "created_at", "last_used_at")
    list_filter = (StateFilter, UseFilter)
    search_fields = ("=owner", "name", "=id", "=last4")
    search_help_text = "The whole owner, username, id or last four characters, or part of a name."
    ordering = ("-created_at", "id")
    show_full_result_count = False
    actions = ("revoke_selected", "rotate_selected")
    change_form_template = "apikey_auth/change_key.html"

    seen = (
        "masked",
        "user",
        "state",
        "created_at",
        "created_by",
        "last_used_at",
        "revoked_at",
        "revoked_reason",
    )
    seen_alone = ("name", "may", "addresses", "expires_at", "disabled")
    edited = ("name", "all_scopes", "scopes", "any_address", "addresses", "expires_at", "disabled", "version")
    issued = ("owner", "name", "all_scopes", "scopes", "any_address", "addresses", "days", "never")

    # What is shown

    @admin.display(description="key")
    def masked(self, key: Key) -> str:
        return key.masked

    @admin.display(description="state")
    def state(self, key: Key) -> str:
        refusal: type[Refusal] | None = state(key, datetime.now(UTC))  # type: ignore[arg-type]  # its fields
        return "live" if refusal is None else refusal.code.removesuffix("_key")

    @admin.display(description="may do")
    def may(self, key: Key) -> str:
        return EVERYTHING if key.scopes is None else ", ".join(key.scopes) or "nothing"

    @admin.display(description="owner")
    def user(self, key: Key) -> str:
        user = load_user(str(key.owner))
        if user is None:
            return f"{key.owner}, who is no user"
        name, meta = f"{user} ({key.owner})", user._meta
        try:
            address = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[key.owner])
        except NoReverseMatch:
            return name
        return format_html('<a href="{}">{}</a>', address, name)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Key]:
        return super().get_queryset(request).using(database_of_keys()).defer("digest")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Key], search_term: str
    ) -> tuple[QuerySet[Key], bool]:
        found, may_repeat = super().get_search_results(request, queryset, search_term)
        users: Any = get_user_model()
        try:
            named = users._default_manager.filter(**{users.USERNAME_FIELD: search_term})
            owners = [str(pk) for pk in named.values_list("pk", flat=True)]
        except NO_USER:  # the name of nobody, where names are numbers
            owners = []
        return (found | queryset.filter(owner__in=owners) if owners else found), may_repeat

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        # Any lookup of a model's own field is allowed else: an oracle for the digest, letter by letter.
        return not lookup.startswith("digest") and super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def get_fieldsets(self, request: HttpRequest, obj: Key | None = None) -> Any:
        if obj is None:
            return [(None, {"fields": self.issued})]
        if not self.has_change_permission(request, obj):
            return [(None, {"fields": self.seen + self.seen_alone})]
        return [(None, {"fields": self.seen}), ("Change", {"fields": self.edited})]

    def get_readonly_fields(self, request: HttpRequest, obj: Key | None = None) -> tuple[str, ...]:  # noqa: ARG002
        return () if obj is None else self.seen

    def get_form(
        self, request: HttpRequest, obj: Key | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        form: Any = super().get_form(request, obj, change, form=EditForm if change else IssueForm, **kwargs)
        form.asking = request.user
        return form

    # Who may: nobody by way of a key, which would make itself a wider one

    def has_module_permission(self, request: HttpRequest) -> bool:
        return not _came_with_a_key(request) and super().has_module_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Key | None = None) -> bool:
        return not _came_with_a_key(request) and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return not _came_with_a_key(request) and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Key | None = None) -> bool:
        """Say whether keys, or this one, may be changed: a superuser's by superusers alone."""
        if _came_with_a_key(request) or not super().has_change_permission(request, obj):
            return False
        owner = None if obj is None or obj.owner is None else load_user(obj.owner)
        return owner is None or may_act_as(request.user, owner)

    def has_delete_permission(self, request: HttpRequest, obj: Key | None = None) -> bool:  # noqa: ARG002
        return False

    def has_rotate_permission(self, request: HttpRequest) -> bool:
        """Rotating makes a key, and shows it."""
        return self.has_add_permission(request) and self.has_change_permission(request)

    # What is changed

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        context = {
            "show_save_and_continue": False,
            "show_save_and_add_another": False,
            "may_rotate": self.has_rotate_permission(request),
            **(extra_context or {}),
        }
        try:
            return super().changeform_view(request, object_id, form_url, context)
        except Refusal:
            raise
        except APIKeyAuthError as error:
            self.message_user(request, f"Nothing was changed: {error}.", messages.ERROR)
            return HttpResponseRedirect(request.path)

    def save_model(self, request: HttpRequest, obj: Key, form: Any, change: bool) -> None:
        if change:
            get_key_manager().edit(obj.pk, guard=_unchanged_since(form.cleaned_data["version"]), **form.given)
            return
        maker = str(request.user.pk)
        issued = get_key_manager().issue(form.cleaned_data["owner"], created_by=maker, **form.given)
        obj.id, obj.prefix, obj.last4 = issued.key.id, issued.key.prefix, issued.key.last4
        obj.issued = issued  # type: ignore[attr-defined]  # until the response is made

    def response_add(
        self,
        request: HttpRequest,
        obj: Key,
        post_url_continue: str | None = None,  # noqa: ARG002
    ) -> HttpResponse:
        issued: IssuedKey = obj.issued  # type: ignore[attr-defined]
        return self._show(request, [Outcome(obj, issued.text)])

    @admin.action(description="Revoke selected API keys", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[Key]) -> HttpResponse | None:
        form = RevokeForm(request.POST if "confirmed" in request.POST else None)
        if not form.is_valid():
            return self._ask(request, queryset, form, "revoke_selected", "Revoke")
        reason = form.cleaned_data["reason"] or None
        mine = [key for key in queryset if self.has_change_permission(request, key)]
        for key in mine:
            get_key_manager().revoke(key.pk, reason=reason)
            self.log_change(request, key, f"Revoked. {reason or ''}")
        self.message_user(request, f"{len(mine)} revoked.", messages.SUCCESS)
        if len(mine) < len(queryset):
            self.message_user(request, "Only a superuser revokes a superuser's key.", messages.ERROR)
        return None

    @admin.action(description="Rotate selected API keys", permissions=["rotate"])
    def rotate_selected(self, request: HttpRequest, queryset: QuerySet[Key]) -> HttpResponse:
        form = RotateForm(request.POST if "confirmed" in request.POST else None)
        if not form.is_valid():
            return self._ask(request, queryset, form, "rotate_selected", "Rotate")
        grace = timedelta(hours=form.cleaned_data["hours"])
        return self._show(request, [self._rotate(request, key, grace) for key in queryset])

    def _rotate(self, request: HttpRequest, key: Key, grace: timedelta) -> Outcome:
        """Rotate one key; what fails then keeps no other's text from being shown."""
        user = load_user(str(key.owner))
        if user is not None and not may_act_as(request.user, user):
            return Outcome(key, error="only a superuser rotates a superuser's key")
        try:
            issued = get_key_manager().rotate(key.pk, grace=grace)
        except APIKeyAuthError as error:
            return Outcome(key, error=str(error))
        self.log_change(request, key, f"Rotated, to {issued.key.id}.")
        return Outcome(key, issued.text)

    def _ask(
        self, request: HttpRequest, queryset: QuerySet[Key], form: Form, action: str, verb: str
    ) -> HttpResponse:
        context = {
            "title": f"{verb} API keys",
            "keys": queryset,
            "form": form,
            "action": action,
            "verb": verb,
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
        }
        return self._page(request, "confirm", context)

    def _show(self, request: HttpRequest, outcomes: Sequence[Outcome]) -> HttpResponse:
        """Show texts of keys, in this answer and nowhere else."""
        response = self._page(request, "issued", {"title": "New API key", "outcomes": outcomes})
        response.headers["Cache-Control"] = "no-store"
        return response

    def _page(self, request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
        shared = {**self.admin_site.each_context(request), "opts": self.opts}
        return TemplateResponse(request, f"apikey_auth/{name}.html", {**shared, **context})


def _unchanged_since(version: int) -> Callable[[APIKey], APIKey]:
    def guard(key: APIKey) -> APIKey:
        if key.version != version:
            raise Conflict("the key was changed meanwhile by somebody else; this is how it is now")
        return key

    return guard


if database_of_keys() is not None:
    admin.site.register(Key, KeyAdmin)
