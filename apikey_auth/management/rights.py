"""Who may manage whose keys: the part that an application replaces."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..keys import APIKey

Answer: TypeAlias = bool | Awaitable[bool]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ``owner`` is None for a visitor, ``key`` the key they came with, if they did.

    ``user`` is what the application knows them as: its own user object.
    """

    owner: str | None = None
    user: object = None
    key: APIKey | None = None


def owner_of(user: object) -> str | None:
    """Tell the owner that an application's user is, by the names that frameworks have for it.

    Text is its own owner. None for no user, one whose ``is_authenticated`` is false, or who has no lasting id.
    """
    if not user or not getattr(user, "is_authenticated", True):
        return None
    for name in ("pk", "get_id", "identity", "id"):  # Django, Flask-Login, Starlette, most others
        try:
            value = getattr(user, name, None)
            value = value() if callable(value) else value
        except NotImplementedError:  # as Starlette's BaseUser and Flask-Login's UserMixin have it
            continue
        if value is not None:
            return str(value)
    return user if isinstance(user, str) else None


class Rights(Protocol):
    """What a caller may do. Each method may be ``async def`` under an async application."""

    def can_list(self, caller: Caller, owner: str, /) -> Answer:
        """Say whether the caller may see this owner's keys."""
        ...

    def can_create(self, caller: Caller, owner: str, /) -> Answer:
        """Say whether the caller may make a key that stands for this owner."""
        ...

    def can_delete(self, caller: Caller, owner: str, /) -> Answer:
        """Say whether the caller may delete or change a key of this owner."""
        ...

    def is_admin(self, caller: Caller, /) -> Answer:
        """Say whether the caller may delete all keys of an owner, and everybody's."""
        ...


def nobody(_caller: Caller, /) -> bool:
    """Make nobody an administrator."""
    return False


class OwnKeys:
    """Everybody manages their own keys, administrators everybody's.

    ``is_admin`` says who is one; without it nobody is.
    """

    def __init__(self, is_admin: Callable[[Caller], Answer] = nobody) -> None:
        self.is_admin = is_admin

    def can_list(self, caller: Caller, owner: str, /) -> Answer:
        return caller.owner == owner or self.is_admin(caller)

    can_create = can_list
    can_delete = can_list
