"""Keys managed over HTTP: list, create, delete, in sensenet's dialect and in a plain REST one.

Nothing here knows a framework or does I/O: a dialect turns a request into a script of calls, and the
adapters' ``KeyManagement`` runs it.
"""

from .handler import Dialect, Request, below
from .rest import REST
from .rights import Caller, OwnKeys, Rights
from .sensenet import NOT_A_USER, NotAUser, Sensenet

__all__ = [
    "NOT_A_USER",
    "REST",
    "Caller",
    "Dialect",
    "NotAUser",
    "OwnKeys",
    "Request",
    "Rights",
    "Sensenet",
    "below",
]
