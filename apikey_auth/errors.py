"""What can go wrong, and nothing else.

    APIKeyAuthError
    ├── ConfigurationError         the application is put together wrongly; raised while it starts
    ├── Refusal                    a request may not go on; knows its status, code and detail
    │   ├── AuthenticationError
    │   │   ├── MissingKey           401  missing_key
    │   │   ├── InvalidKey           401  invalid_key
    │   │   ├── RevokedKey           401  revoked_key
    │   │   ├── DisabledKey          401  disabled_key
    │   │   ├── ExpiredKey           401  expired_key
    │   │   ├── InactiveUser         401  inactive_user
    │   │   ├── AddressNotAllowed    403  address_not_allowed
    │   │   ├── InsecureTransport    403  insecure_transport
    │   │   ├── InsufficientScope    403  insufficient_scope
    │   │   └── AmbiguousKey         400  ambiguous_key
    │   └── StoreUnavailable         503  store_unavailable
    ├── KeyNotFound                no key has this id
    ├── KeyNotLive                 the key is dead, and what was asked needs a living one
    ├── DuplicateKey               a key with this id exists already
    └── Conflict                   others kept changing the key while it was being changed

``StoreUnavailable`` is no ``AuthenticationError``: the key may be good, nobody could look it up. Whoever
catches ``AuthenticationError`` to say "bad key" must not catch it too.

A ``Refusal`` that a view raises, behind a middleware of this library, is answered with its status, code
and challenge, whatever the framework. ``detail`` goes to the client; ``str(error)`` is for logs.
"""

from collections.abc import Iterable
from typing import ClassVar


class APIKeyAuthError(Exception):
    """Root of every exception of this library."""


class ConfigurationError(APIKeyAuthError):
    """The application is put together wrongly: an option, a setting or a store does not fit."""


class Refusal(APIKeyAuthError):
    """A request that may not go on.

    ``status`` is the HTTP status code, ``code`` the machine-readable name of the reason, ``detail`` one
    sentence for the client, the class's own unless another is given.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    detail: str

    def __init__(self, reason: str = "", *, detail: str | None = None) -> None:
        if detail is not None:
            self.detail = detail
        super().__init__(reason or self.detail)


class AuthenticationError(Refusal):
    """The key, or the lack of one, does not allow the request."""

    status = 401
    code = "unauthenticated"
    detail = "This request could not be authenticated."


class MissingKey(AuthenticationError):
    """No key came with a request that needs one."""

    code = "missing_key"
    detail = "This request needs an API key."


class InvalidKey(AuthenticationError):
    """The text is malformed, names no key, or does not match the key it names."""

    code = "invalid_key"
    detail = "The API key is not valid."


class RevokedKey(AuthenticationError):
    """The key was revoked."""

    code = "revoked_key"
    detail = "The API key has been revoked."


class DisabledKey(AuthenticationError):
    """The key is switched off for now."""

    code = "disabled_key"
    detail = "The API key is disabled."


class ExpiredKey(AuthenticationError):
    """The key's life, or its grace after a rotation, is over."""

    code = "expired_key"
    detail = "The API key has expired."


class InactiveUser(AuthenticationError):
    """The key's owner is gone or not active."""

    code = "inactive_user"
    detail = "The owner of the API key is not active."


class AddressNotAllowed(AuthenticationError):
    """The key is bound to addresses, and the client's is none of them."""

    status = 403
    code = "address_not_allowed"
    detail = "The API key may not be used from this address."


class InsecureTransport(AuthenticationError):
    """The key, good or bad, came over a connection that is not encrypted."""

    status = 403
    code = "insecure_transport"
    detail = "An API key must be sent over an encrypted connection, https."


class InsufficientScope(AuthenticationError):
    """The key lacks a scope; ``missing`` names those that it lacks."""

    status = 403
    code = "insufficient_scope"

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = (missing,) if isinstance(missing, str) else tuple(missing)
        self.detail = f"The API key lacks the scope {' '.join(self.missing)}."
        super().__init__()

    def __reduce__(self) -> tuple[type["InsufficientScope"], tuple[tuple[str, ...]]]:
        return type(self), (self.missing,)


class AmbiguousKey(AuthenticationError):
    """The request carries more than one key, and nothing says which one counts."""

    status = 400
    code = "ambiguous_key"
    detail = "The request carries more than one API key."


class StoreUnavailable(Refusal):
    """The store, or the application's user loader, failed or was late; says nothing about the key.

    ``retry_after`` is in seconds (RFC 9110, section 10.2.3).
    """

    status = 503
    code = "store_unavailable"
    detail = "API keys cannot be checked at the moment."
    retry_after: int = 1


_ID_LENGTH = 12  # characters of the ids that this library makes; other systems' tokens are longer


class KeyNotFound(APIKeyAuthError, LookupError):
    """No key has this id."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__()

    def __reduce__(self) -> tuple[type["KeyNotFound"], tuple[str]]:
        return type(self), (self.key_id,)

    def __str__(self) -> str:
        if "_" in self.key_id or len(self.key_id) > _ID_LENGTH:  # a key's text, given for its id by mistake
            return "no API key has this id; is it the key's text? Its id is in issued.key.id"
        return f"no API key has the id {self.key_id!r}"


class KeyNotLive(APIKeyAuthError):
    """The key is revoked, disabled, expired or rotated already."""


class DuplicateKey(APIKeyAuthError):
    """A key with this id exists already."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(key_id)

    def __str__(self) -> str:
        return f"an API key with the id {self.key_id!r} exists already"


class Conflict(APIKeyAuthError):
    """Others kept changing the key while it was being changed; nothing was written."""
