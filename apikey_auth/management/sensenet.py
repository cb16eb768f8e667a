"""sensenet's own dialect: its five actions on ``/odata.svc``, so that its clients work unchanged.

An address is an entity and an action, ``/Root/IMS/Public/('User1')/CreateApiKey``. Deliberately different
from the reference: keys are stored as digests, so ``Value`` is the whole key in CreateApiKey's answer only;
another's ``Id`` is as good as unknown.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import parse_qsl

from ..decisions import state
from ..errors import InsufficientScope, InvalidKey, KeyNotFound, MissingKey, Refusal
from ..keys import APIKey
from ..responses import Response
from .actions import Actions
from .bodies import fields_of
from .handler import (
    BadRequest,
    MethodNotAllowed,
    NotAllowed,
    NotFound,
    Request,
    Script,
    check_origin,
    log_outage,
)
from .rights import OwnKeys, Rights, owner_of


class NotAUser:
    """The type of NOT_A_USER."""


NOT_A_USER: Final = NotAUser()
"""What ``owner_for`` answers for content that is there, but is nobody: the root, a folder, a group."""

Owner: TypeAlias = str | NotAUser | None

_ADDRESS = re.compile(
    r"(?:/?content\((?P<id>[0-9]{1,18})\)|(?P<folder>/?[^'()]*?)/?\('(?P<name>(?:[^']|'')+)'\))"
    r"/(?P<action>[^/'()]+)/?",
    re.IGNORECASE,
)
_ROOT = "/root"
_NEVER = "9999-12-31T23:59:59Z"  # the clients' type for it has no null
_CONTENT_TYPE = "application/json;odata=verbose;charset=utf-8"
_CODES = {
    400: ("RequestError", "ODataException"),
    401: ("Unauthorized", "SenseNetSecurityException"),
    403: ("Forbidden", "SenseNetSecurityException"),
    404: ("ResourceNotFound", "ContentNotFoundException"),
    405: ("IllegalInvoke", "ODataException"),
    503: ("StoreUnavailable", "DataException"),
}


@dataclass(frozen=True, slots=True)
class _Call:
    """An action asked for: on which entity, whose that is, and with what."""

    actions: Actions
    entity: str | int
    owner: Owner
    fields: Mapping[str, Any]
    options: Mapping[str, Any]


class UnknownAction(NotFound):
    """An action that is none of those here."""

    code = "UnknownAction"

    def __init__(self, action: str) -> None:
        self.detail = f"There is no action {action[:64]!r} here."
        super().__init__()


class BadParameter(BadRequest):
    """A system query option that is no count."""

    def __init__(self, option: str, fault: str) -> None:
        super().__init__(f"The option ${option} must be a number that is not negative.")
        self.code = f"{fault}{option.capitalize()}Parameter"  # type: ignore[misc]  # the fault is in its name


def last_segment(entity: str | int) -> Owner:
    """Take the last segment of a path, or an id, for the owner; the root is nobody."""
    if isinstance(entity, int):
        return str(entity)
    return NOT_A_USER if entity.lower() == _ROOT else entity.rpartition("/")[2]


def describe_user(owner: str | None) -> Mapping[str, object]:
    """Describe an owner as GetCurrentUser shows users; None is the visitor."""
    if owner is None:
        return {"Id": 6, "Name": "Visitor", "Path": "/Root/IMS/BuiltIn/Portal/Visitor", "Type": "User"}
    return {"Id": owner, "Name": owner, "Path": f"/Root/IMS/Public/{owner}", "Type": "User"}


@dataclass(frozen=True, slots=True)
class Sensenet:
    """sensenet's dialect of key management.

    ``rights``: who may what. ``owner_for``: the owner that an entity's path or id is, None for unknown
    content, NOT_A_USER for content that is nobody. ``describe``: how GetCurrentUser shows an owner, None
    being the visitor. ``owner_of``: the owner that the application's own user is. ``trusted_origins``: sites
    whose pages may change keys, as ``https://admin.example.com``. Each function may be async under an async
    application, ``owner_of`` excepted.
    """

    rights: Rights = field(default_factory=OwnKeys)
    owner_for: Callable[[str | int], Owner | Awaitable[Owner]] = last_segment
    describe: Callable[[str | None], Mapping[str, object] | Awaitable[Mapping[str, object]]] = describe_user
    owner_of: Callable[[Any], str | None] = owner_of
    trusted_origins: Sequence[str] = ()

    ignores_case: ClassVar[bool] = True
    """Whether the mount point, ``/odata.svc``, is matched without regard to case."""

    def respond(self, request: Request, keys: Any) -> Script[Response]:
        """Answer a request to an action, or with sensenet's error."""
        try:
            answer = yield from self._act(request, keys)
        except Refusal as refusal:
            log_outage(refusal)
            return self._refused(request, refusal)
        return answer

    def render(self, refusal: Refusal) -> tuple[str, bytes]:
        """Write a refusal as sensenet writes errors: its clients show ``error.message.value``."""
        code, kind = _CODES.get(refusal.status, ("NotSpecified", "Exception"))
        if isinstance(refusal, UnknownAction | BadParameter):
            code = refusal.code
        message = {"lang": "en-us", "value": refusal.detail}
        error = {"code": code, "exceptiontype": kind, "message": message, "innererror": None}
        return _CONTENT_TYPE, json.dumps({"error": error}).encode("ascii")

    def _act(self, request: Request, keys: Any) -> Script[Response]:
        address = _ADDRESS.fullmatch(request.path)
        if address is None:
            raise NotFound
        name = address["action"].lower()
        if name not in _ACTIONS:
            raise UnknownAction(address["action"])
        action, methods, changes = _ACTIONS[name]
        if request.method not in methods:
            raise MethodNotAllowed(methods)
        options = _options(request.query)
        entity = _entity(address)
        owner: Owner = yield partial(self.owner_for, entity)
        if owner is None:
            raise NotFound
        if changes:
            check_origin(request, self.trusted_origins)
        fields = fields_of(request.body, request.header("Content-Type")) if request.method == "POST" else {}
        call = _Call(Actions(request.caller, keys, self.rights), entity, owner, fields, options)
        try:
            answer = yield from action(self, call)
        except MissingKey:
            raise NotAllowed from None  # a visitor is one of its users, too
        return answer

    def _current_user(self, call: _Call) -> Script[Response]:
        described = yield partial(self.describe, call.actions.caller.owner)
        return _answer({"d": dict(described)})

    def _list(self, call: _Call) -> Script[Response]:
        try:
            listed = yield from call.actions.list(_user(call.owner))
        except (MissingKey, InsufficientScope, NotAllowed):
            listed = []
        now = call.actions.keys.clock()
        living = [key for key in listed if state(replace(key, disabled=False), now) is None]
        start = call.options.get("skip", 0)
        shown = living[start : start + call.options.get("top", len(living))]
        answer: dict[str, Any] = {"apiKeys": [_shown(key, _masked(key)) for key in shown]}
        if call.options.get("inlinecount") == "allpages":
            answer["__count"] = len(living)
        return _answer(answer)

    def _create(self, call: _Call) -> Script[Response]:
        issued = yield from call.actions.create(_user(call.owner), {})
        return _answer(_shown(issued.key, issued.text))

    def _delete_one(self, call: _Call) -> Script[Response]:
        value = call.fields.get("apikey")
        if not isinstance(value, str) or not value:
            raise BadRequest("The parameter apiKey is missing.")
        yield from call.actions.maker()
        key, whole = yield from _named(value, call.actions.keys)
        if key is None or key.revoked_at is not None:
            return _NO_CONTENT
        try:
            yield from call.actions.delete(key)
        except (MissingKey, NotAllowed):
            if whole:
                raise
        return _NO_CONTENT

    def _delete_all(self, call: _Call) -> Script[Response]:
        everybody = isinstance(call.entity, str) and call.entity.lower() == _ROOT
        yield from call.actions.delete_all(None if everybody else _user(call.owner))
        return _NO_CONTENT

    def _refused(self, request: Request, refusal: Refusal) -> Response:
        nothing = type(refusal) is NotFound and request.method != "POST"
        content_type, body = ("", b"") if nothing else self.render(refusal)
        response = request.visit.respond(refusal, (content_type, body))
        if isinstance(refusal, MethodNotAllowed):
            response = response.with_header("Allow", ", ".join(refusal.allow))
        return response


_READ, _WRITE = ("GET", "POST"), ("POST",)
_ACTIONS: dict[str, tuple[Callable[..., Script[Response]], tuple[str, ...], bool]] = {
    "getcurrentuser": (Sensenet._current_user, _READ, False),
    "getapikeys": (Sensenet._list, _READ, False),
    "createapikey": (Sensenet._create, _WRITE, True),
    "deleteapikey": (Sensenet._delete_one, _WRITE, True),
    "deleteapikeys": (Sensenet._delete_all, _WRITE, True),
}
_NO_CONTENT = Response(204, (("Cache-Control", "no-store"),), b"")


def _entity(address: re.Match[str]) -> str | int:
    """Give the path or the id of the content that an address is about. Raises NotFound for none."""
    if address["id"] is not None:
        return int(address["id"])
    name = address["name"].replace("''", "'")
    segments = [*filter(None, address["folder"].split("/")), name]
    if "/" in name or any(segment in (".", "..") for segment in segments):
        raise NotFound
    return "/" + "/".join(segments)


def _options(query: str) -> dict[str, Any]:
    """Read the system query options that matter here; all others are accepted. Raises BadParameter."""
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, encoding="latin-1"):
        option = name.removeprefix("$").lower()
        if option in ("top", "skip"):
            if re.fullmatch(r"-?[0-9]{1,18}", value) is None:
                raise BadParameter(option, "Invalid")
            if int(value) < 0:
                raise BadParameter(option, "Negative")
            options[option] = int(value)
        elif option == "inlinecount":
            options[option] = value.lower()
    return options


def _user(owner: Owner) -> str:
    if not isinstance(owner, str):
        raise BadRequest("Only users have API keys.")
    return owner


def _named(value: str, keys: Any) -> Script[tuple[APIKey | None, bool]]:
    """Find the key that a text names, by the whole of it or by its id, and say whether it was the whole."""
    try:
        text = keys.scheme.parse(value)
        key = yield partial(keys.get, text.id)
        if keys.scheme.matches(key.digest, text.text):
            return key, True
    except (InvalidKey, KeyNotFound):
        pass
    try:
        key = yield partial(keys.get, value)
    except KeyNotFound:
        return None, False
    return key, False


def _masked(key: APIKey) -> str:
    return f"{key.prefix}_{key.id}_...{key.last4}" if key.prefix else f"...{key.last4}"


def _shown(key: APIKey, value: str) -> dict[str, object]:
    return {
        "Value": value,
        "CreationDate": _date(key.created_at),
        "ExpirationDate": _date(key.expires_at) or _NEVER,
        "Id": key.id,
        "Name": key.name,
        "LastUsedDate": _date(key.last_used_at),
        "Scopes": None if key.scopes is None else list(key.scopes),
    }


def _date(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _answer(value: object) -> Response:
    body = json.dumps(value).encode("ascii")
    headers = (
        ("Content-Type", _CONTENT_TYPE),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    )
    return Response(200, headers, body)
