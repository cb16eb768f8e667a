"""The applications that ``throughput`` serves, made in the server's process."""

import os
from typing import Any

from apikey_auth import AsyncAuthenticator, Authenticator, Inline, KeyManager, KeyScheme, MemoryKeyStore
from apikey_auth.asgi import APIKeyMiddleware as ASGIMiddleware
from apikey_auth.wsgi import APIKeyMiddleware as WSGIMiddleware

from .applications import asgi, wsgi
from .texts import PREFIX

KEY = "APIKEY_AUTH_BENCHMARK_KEY"


def environment(text: str) -> dict[str, str]:
    """Make the environment that tells a server which key there is."""
    return {**os.environ, KEY: text}


def _store() -> MemoryKeyStore:
    store = MemoryKeyStore()
    KeyManager(store, KeyScheme(prefix=PREFIX)).ensure("1", name="benchmark", text=os.environ[KEY])
    return store


def asgi_bare() -> Any:
    return asgi


def asgi_ours() -> Any:
    return ASGIMiddleware(asgi, AsyncAuthenticator(Inline(_store()), KeyScheme(prefix=PREFIX)))


def wsgi_bare() -> Any:
    return wsgi


def wsgi_ours() -> Any:
    return WSGIMiddleware(wsgi, Authenticator(_store(), KeyScheme(prefix=PREFIX)))
