"""API-key authentication for Python web applications. The public names; no logic.

Adapters and stores that need a framework or a driver are imported from their own modules.
"""

from .authenticate import AsyncAuthenticator, Authenticator
from .credentials import Bearer, Header, Query
from .decisions import Identity, Owner
from .errors import (
    AddressNotAllowed,
    AmbiguousKey,
    APIKeyAuthError,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    DisabledKey,
    DuplicateKey,
    ExpiredKey,
    InactiveUser,
    InsecureTransport,
    InsufficientScope,
    InvalidKey,
    KeyNotFound,
    KeyNotLive,
    MissingKey,
    Refusal,
    RevokedKey,
    StoreUnavailable,
)
from .formats import opaque_tokens
from .keys import APIKey, IssuedKey, KeyScheme
from .manage import AsyncKeyManager, KeyManager
from .stores.bridges import Inline, InThread
from .stores.memory import MemoryKeyStore
from .stores.opening import open_async_store, open_store
from .stores.protocol import (
    AsyncKeyReader,
    AsyncKeyStore,
    Changes,
    KeyReader,
    KeyStore,
    Page,
    Revision,
)

__version__ = "0.1.0"

__all__ = [
    "APIKey",
    "APIKeyAuthError",
    "AddressNotAllowed",
    "AmbiguousKey",
    "AsyncAuthenticator",
    "AsyncKeyManager",
    "AsyncKeyReader",
    "AsyncKeyStore",
    "AuthenticationError",
    "Authenticator",
    "Bearer",
    "Changes",
    "ConfigurationError",
    "Conflict",
    "DisabledKey",
    "DuplicateKey",
    "ExpiredKey",
    "Header",
    "Identity",
    "InThread",
    "InactiveUser",
    "Inline",
    "InsecureTransport",
    "InsufficientScope",
    "InvalidKey",
    "IssuedKey",
    "KeyManager",
    "KeyNotFound",
    "KeyNotLive",
    "KeyReader",
    "KeyScheme",
    "KeyStore",
    "MemoryKeyStore",
    "MissingKey",
    "Owner",
    "Page",
    "Query",
    "Refusal",
    "Revision",
    "RevokedKey",
    "StoreUnavailable",
    "opaque_tokens",
    "open_async_store",
    "open_store",
]
