"""``manage.py apikey``: what ``get_key_manager()`` does, for people at a terminal, on whatever store."""

import json
import re
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from ....decisions import state
from ....errors import APIKeyAuthError, StoreUnavailable
from ....keys import APIKey, IssuedKey
from ....manage import DEFAULT_LIFE, KeyManager
from ...conf import get_key_manager, load_user

BY_NAME = "the same user by name"
FAILED, UNAVAILABLE = 1, 3  # exit codes; argparse's own is 2
COLUMNS = ("id", "owner", "name", "state", "created_at", "expires_at", "last_used_at")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(rf"([0-9]+)([{''.join(_UNITS)}])", re.ASCII)


def span(text: str) -> timedelta:
    """Read a length of time, such as 90d, 12h or 30m."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no length of time, such as 90d, 12h, 30m or 45s")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise ArgumentTypeError(f"{text} is too long") from None


def life(text: str) -> timedelta | None:
    """Read how long a key is to live; ``never`` is how long it takes to end."""
    return None if text == "never" else span(text)


def moment(text: str) -> datetime:
    """Read a time, or how long ago it was. A time without a zone is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - span(text)
        except OverflowError:
            raise ArgumentTypeError(f"{text} ago there was no time") from None
    return found if found.utcoffset() is not None else found.replace(tzinfo=UTC)


class Command(BaseCommand):
    help = (
        "Issue, list, revoke, rotate and purge API keys. A new key is all that is printed to standard output. "
        f"Exits with {FAILED} for what cannot be done, {UNAVAILABLE} if the store cannot be reached."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="action")
        issue = actions.add_parser("issue", help="make a key, and print it")
        _add_user(issue, "owner", "the user's primary key")
        issue.add_argument("--name", default="", help="what people shall know the key by")
        issue.add_argument("--scope", action="append", dest="scopes", help="may be repeated; none given: all")
        issue.add_argument("--no-scope", action="store_const", const=[], dest="scopes", help="nothing at all")
        issue.add_argument("--address", action="append", dest="addresses", help="a network it may come from")
        issue.add_argument("--expires-in", type=life, default=DEFAULT_LIFE, help="90d, 12h or never [365d]")

        listing = actions.add_parser("list", help="list the keys that are live")
        _add_user(listing, "--owner", "only this user's, by primary key")
        listing.add_argument("--all", action="store_true", help="dead ones too")
        listing.add_argument("--format", choices=["table", "json"], default="table")

        revoke = actions.add_parser("revoke", help="revoke a key, an owner's keys or everybody's, for good")
        which = revoke.add_mutually_exclusive_group(required=True)
        which.add_argument("id", nargs="?", help="the key's id")
        which.add_argument("--owner", help="all keys of this user, by primary key")
        which.add_argument("--username", help=BY_NAME)
        which.add_argument("--everybody", action="store_true", help="all keys there are; takes --yes")
        revoke.add_argument("--yes", action="store_true", help="everybody, really")
        revoke.add_argument("--reason")

        rotate = actions.add_parser("rotate", help="replace a key by a new one, and print that")
        rotate.add_argument("id", help="the key's id")
        rotate.add_argument(
            "--grace", type=span, default=timedelta(0), help="how long the old one goes on [0s]"
        )

        purge = actions.add_parser("purge", help="delete the records of keys that died before a time")
        purge.add_argument("--before", type=moment, required=True, help="a time, or how long ago: 30d")

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, action)(get_key_manager(), **options)
        except (StoreUnavailable, Error) as error:
            raise CommandError(str(error), returncode=UNAVAILABLE) from error
        except (APIKeyAuthError, ValueError, TypeError) as error:
            raise CommandError(str(error), returncode=FAILED) from error

    def issue(self, manager: KeyManager, **options: Any) -> None:
        owner = _owner(**options)
        if owner is None:
            raise CommandError("whose key? Give the user's primary key, or --username")
        if load_user(owner) is None:
            raise CommandError(f"no user has the primary key {owner!r}")
        given = {name: options[name] for name in ("name", "scopes", "addresses", "expires_in")}
        self._print(manager.issue(owner, **given))

    def list(self, manager: KeyManager, **options: Any) -> None:
        live_at = None if options["all"] else datetime.now(UTC)
        keys = _found(manager, _owner(**options), live_at)
        lines = _documents(keys) if options["format"] == "json" else _table(keys)
        for line in lines:
            self.stdout.write(line)

    def revoke(self, manager: KeyManager, **options: Any) -> None:
        reason = options["reason"]
        if options["everybody"]:
            if not options["yes"]:
                raise CommandError("this ends every key of everybody; say --yes if that is meant")
            count = manager.revoke_all(reason=reason)
        elif (owner := _owner(**options)) is not None:
            count = manager.revoke_all(owner, reason=reason)
        else:
            manager.revoke(options["id"], reason=reason)
            count = 1
        self._note(f"{count} revoked")

    def rotate(self, manager: KeyManager, **options: Any) -> None:
        self._print(manager.rotate(options["id"], grace=options["grace"]))

    def purge(self, manager: KeyManager, **options: Any) -> None:
        if options["before"] > manager.clock():
            raise CommandError("that time is still to come: keys that are live now would go")
        self._note(f"{manager.purge(options['before'])} deleted")

    def _print(self, issued: IssuedKey) -> None:
        key = issued.key
        end = "for ever" if key.expires_at is None else f"until {_told(key.expires_at)}"
        self._note(f"key {key.id} of {_told(key.owner)}, good {end}; it is shown only now:")
        self.stdout.write(issued.text)

    def _note(self, text: str) -> None:
        self.stderr.write(text, self.style.SUCCESS)


def _add_user(parser: Any, argument: str, meaning: str) -> None:
    positional = {} if argument.startswith("-") else {"nargs": "?"}
    who = parser.add_mutually_exclusive_group()
    who.add_argument(argument, help=meaning, **positional)
    who.add_argument("--username", help=BY_NAME)


def _owner(*, owner: str | None, username: str | None, **_: Any) -> str | None:
    """Find the owner that is named. Raises CommandError for a name that no user has."""
    if username is not None:
        users: Any = get_user_model()._default_manager
        try:
            return str(users.get_by_natural_key(username).pk)
        except ObjectDoesNotExist:
            raise CommandError(f"no user has the name {username!r}") from None
    return owner


def _found(manager: KeyManager, owner: str | None, live_at: datetime | None) -> Iterator[APIKey]:
    after: str | None = None
    while True:
        page = manager.find(owner=owner, live_at=live_at, after=after, limit=1000)
        yield from page.items
        if page.next is None:
            return
        after = page.next


def _documents(keys: Iterator[APIKey]) -> Iterator[str]:
    """Write records as an array of JSON, one a line, without what could be told from a digest."""
    now = datetime.now(UTC)
    before = "["
    for key in keys:
        shown = {field.name: getattr(key, field.name) for field in fields(key) if field.name != "digest"}
        yield f"{before}{json.dumps({**shown, 'state': _state(key, now)}, default=datetime.isoformat)}"
        before = ","
    yield "]" if before == "," else "[]"


def _table(keys: Iterator[APIKey]) -> Iterator[str]:
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = [COLUMNS]
    for key in keys:
        cells = {**{name: getattr(key, name, None) for name in COLUMNS}, "state": _state(key, now)}
        rows.append(tuple(map(_told, cells.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return (_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _state(key: APIKey, now: datetime) -> str:
    refusal = state(key, now)
    return "live" if refusal is None else refusal.code.removesuffix("_key")


def _told(value: object) -> str:
    """Write a value for a terminal, which must not be told to do things by a key's name."""
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    text = "-" if value is None else str(value)
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
