"""What every dialect starts from: a request, scripts and how they are run, bodies, and the origin's proof."""

import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit

from ..credentials import HeaderReader
from ..errors import ConfigurationError, Refusal, StoreUnavailable
from ..policy import Render, Visit
from ..responses import Response
from .rights import Caller

T = TypeVar("T")

Script: TypeAlias = Generator[Callable[[], Any], Any, T]
"""Yields calls, is sent what they answer, returns its own answer: written once, run in either colour."""

logger = logging.getLogger("apikey_auth")

MAX_BODY = 65536  # bytes of a request's body that are read


class BadRequest(Refusal):
    """A request that does not say what it wants."""

    status = 400
    code = "bad_request"
    detail = "The request could not be understood."

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__()


class NotAllowed(Refusal):
    """A right is missing."""

    status = 403
    code = "insufficient_scope"
    detail = "You may not do this to these API keys."


class CrossOrigin(Refusal):
    """A change that may have been sent by another site, through the browser of somebody signed in here."""

    status = 403
    code = "cross_origin"
    detail = "Changes need a key, a Bearer token, or a request from a page of this site."


class NotFound(Refusal):
    """There is nothing at this address, or nothing that the caller may know of."""

    status = 404
    code = "not_found"
    detail = "There is nothing here."


class MethodNotAllowed(Refusal):
    """The address has no such method; ``allow`` lists those it has."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, allow: Sequence[str]) -> None:
        self.allow = tuple(allow)
        self.detail = f"This address answers {' and '.join(self.allow)} only."
        super().__init__()


class NotPossible(Refusal):
    """The key is not in a state in which this can be done."""

    status = 409
    code = "conflict"
    detail = "The API key is not in a state for this."

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__()


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a dialect.

    ``path`` is decoded and below the mount point, ``mount`` the path of that point as clients see it.
    ``body`` holds one byte more than MAX_BODY where there is too much of it.
    """

    method: str
    path: str
    mount: str
    query: str
    header: HeaderReader
    body: bytes = field(repr=False)
    caller: Caller
    visit: Visit


class RendersRefusals(Protocol):
    """A dialect with errors of its own."""

    def render(self, refusal: Refusal) -> tuple[str, bytes]:
        """Write a refusal: the content type and the body."""
        ...


class Dialect(Protocol):
    """How keys are managed over HTTP."""

    ignores_case: ClassVar[bool]
    """Whether the case of the mount point does not matter."""

    def respond(self, request: Request, keys: Any) -> Script[Response]:
        """Answer a request by way of a ``KeyManager`` of either colour."""
        ...

    @property
    def owner_of(self) -> Callable[[Any], str | None]:
        """Tells the owner that a user of the application is, None for a visitor."""
        ...


def log_outage(refusal: Refusal) -> None:
    """Write to the log what the client is not told: why the store failed."""
    if isinstance(refusal, StoreUnavailable):
        logger.error("the key store failed; key management answers with 503", exc_info=refusal)


def caller_of(visit: Visit, user: object, dialect: Dialect) -> Caller:
    """Tell who asks: the owner of the key that came, else the user that the application knows."""
    if visit.identity is not None:
        return Caller(visit.identity.key.owner, visit.identity.user, visit.identity.key)
    owner = dialect.owner_of(user)
    return Caller(owner, user if owner is not None else None)


def mount_pattern(path: str, dialect: Dialect) -> re.Pattern[str]:
    """Match a mount point and what is below it, as group ``below``. Raises ConfigurationError for no path."""
    if not path.startswith("/") or path.endswith("/"):
        raise ConfigurationError(f"a mount point is a path such as '/keys', not {path!r}")
    flags = re.IGNORECASE if dialect.ignores_case else 0
    return re.compile(rf"(?P<mount>{re.escape(path)})(?P<below>/.*)?", flags | re.DOTALL)


def below(path: str, dialect: RendersRefusals) -> Render:
    """Make a middleware's ``render`` that writes refusals below a mount point as the dialect writes them."""

    def render(refusal: Refusal, where: str) -> tuple[str, bytes] | None:
        return dialect.render(refusal) if where.lower().startswith(f"{path.lower()}/") else None

    return render


def play(script: Script[T]) -> T:
    """Run a script whose calls answer at once. Raises ConfigurationError if one hands out an awaitable."""
    try:
        call = next(script)
        while True:
            try:
                answer = call()
                if inspect.isawaitable(answer):
                    getattr(answer, "close", lambda: None)()
                    raise ConfigurationError(
                        "rights and owner_for must be plain functions here, not async ones"
                    )
            except Exception as error:
                call = script.throw(error)
            else:
                call = script.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def aplay(script: Script[T]) -> T:
    """Run a script whose calls answer at once or are awaited."""
    try:
        call = next(script)
        while True:
            try:
                answer = call()
                if isinstance(answer, Awaitable):
                    answer = await answer
            except Exception as error:
                call = script.throw(error)
            else:
                call = script.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def check_origin(request: Request, trusted_origins: Sequence[str]) -> None:
    """Raise CrossOrigin unless a change is asked for by this site itself, or by no browser's own doing.

    A browser sends cookies and Basic credentials with what any site makes it send, a text/plain POST even
    without a preflight; a key or a Bearer token it does not.
    """
    if request.caller.key is not None or request.caller.owner is None:
        return  # nothing of the browser's own lets this caller in
    header = request.header
    if (header("Authorization") or "").partition(" ")[0].lower() == "bearer":
        return
    site = header("Sec-Fetch-Site")
    if site == "same-origin":
        return
    origin = header("Origin")
    if origin is None or origin == "null":
        raise CrossOrigin
    try:
        host = urlsplit(origin).netloc.lower()
    except ValueError:
        raise CrossOrigin from None
    if origin in trusted_origins:
        return
    if site not in (None, "none"):  # the browser knows better than a name: http is another origin than https
        raise CrossOrigin
    if not host or host != (header("Host") or "").lower():
        raise CrossOrigin


def text_of(body: bytes) -> str:
    """Decode a body. Raises BadRequest for one that is too long or not UTF-8."""
    if len(body) > MAX_BODY:
        raise BadRequest(f"The body has over {MAX_BODY} bytes, or ends before its Content-Length.")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.") from None


def json_of(text: str) -> Any:
    """Parse JSON. Raises BadRequest for what is none, for a name given twice, and for too deep a nesting."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is no JSON: {error}.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name.lower() for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name is given twice")
    return dict(pairs)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
