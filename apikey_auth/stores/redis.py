"""Keys in Redis or Valkey, from 6.2 on: one server, or a slot of a cluster.

Each operation is written once, as a generator that yields commands, is sent their replies and returns its
answer; the two classes play them, one blocking, one with asyncio, and that is all the I/O there is. What
changes anything is one script of ``lua/``, which the server runs as one step.

All names begin with ``{namespace}:``, whose braces keep them in one slot:

    key:<id>             the record: the revision at which it was written, and two lines of JSON
    used:<id>            when the key was last used
    state                epoch, revision, floor, generation, and how many records are not revoked
    marks                revocations of many keys that are still to be written into each record
    ids, ids:<owner>     the ids in their order
    changed              the ids by the revision of their last change
    ends                 the ids by the time, in milliseconds, from which a purge may take them
    unrevoked:<list>     the owners who have keys that are not revoked; with ``:<owner>``, the ids of those

To revoke any number of keys is one short step: it writes a *mark*. A record that was written before a mark
of its owner, or of all, is revoked by it, and whoever reads a record heeds the marks. *Settling* writes marks
into the records later, a few at a time, and nobody sees a difference: what was the list of the unrevoked is
then the list of what is still to be settled, and when it is empty the mark goes.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.resources import files
from time import monotonic
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

try:
    from redis import BlockingConnectionPool, Redis, RedisCluster
    from redis.asyncio import BlockingConnectionPool as AsyncBlockingConnectionPool
    from redis.asyncio import Redis as AsyncRedis
    from redis.asyncio import RedisCluster as AsyncRedisCluster
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, RedisClusterException, RedisError
    from redis.retry import Retry
except ImportError as error:  # pragma: no cover
    raise ImportError("the Redis store needs redis-py: pip install 'apikey_auth[redis]'") from error

from ..decisions import dead_before, state
from ..errors import ConfigurationError, DuplicateKey, StoreUnavailable
from ..keys import MAX_NAME, APIKey, check_text, in_utc, is_storable, restored
from .protocol import MAX_CHANGES, Changes, Page, Revision, check_page, check_swap

T = TypeVar("T")

READ_AT_ONCE = 500  # records of one reply, and keys of one touch
WRITTEN_AT_ONCE = 200  # records that one script writes or deletes, so that others need not wait for it
SETTLING = 0.3  # seconds, after a revocation; what is left then goes along with later writes

_START = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)  # which a double counts without rounding up to the year 9999
_TIMES = ("created_at", "expires_at", "revoked_at", "grace_until", "last_used_at")
_LISTS = ("scopes", "addresses")
_HEADER = ("owner", "version", "revoked_at", "digest")  # what scripts read of a record
_BODY = tuple(field.name for field in fields(APIKey) if field.name not in (*_HEADER, "id", "last_used_at"))
_ABSENT = {name: None for name in _BODY if name != "created_at"}  # without a time it is no record

_parse = json.JSONDecoder().raw_decode  # json.loads looks for blanks, and for who knows what encoding


class Script(NamedTuple):
    """A script for the server: its text, and the digest by which the server knows it."""

    text: str
    sha: str


class Step(NamedTuple):
    """A command; or a script, and what it is given."""

    arguments: tuple[str | bytes | int, ...]
    script: Script | None = None


Operation: TypeAlias = Generator[Step, Any, T]


def _script(name: str) -> Script:
    folder = files("apikey_auth.stores") / "lua"
    text = "\n".join((folder / part).read_text("utf-8") for part in ("state.lua", name))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_ADD = _script("add.lua")
_SWAP = _script("swap.lua")
_REVOKE_ALL = _script("revoke_all.lua")
_UNSETTLED = _script("unsettled.lua")
_SETTLE = _script("settle.lua")
_PURGE = _script("purge.lua")
_TOUCH = _script("touch.lua")
_CHANGES = _script("changes.lua")


class Mark(NamedTuple):
    """A revocation of an owner's keys, or of all (None), of the records written before its revision."""

    revision: int
    worklist: str
    owner: str | None
    at: str
    reason: str | None


class Seen(NamedTuple):
    """A record as everybody sees it, the revision at which it was written, and the mark that is not in it yet."""

    key: APIKey
    revision: int
    mark: Mark | None


def _get(ns: str, key_id: str) -> Operation[APIKey | None]:
    if not _is_id(key_id):
        return None
    stored, used, marks = yield Step(("MGET", f"{ns}key:{key_id}", f"{ns}used:{key_id}", f"{ns}marks"))
    return None if stored is None else _seen(key_id, stored, used, _marks(marks)).key


def _add(ns: str, key: APIKey) -> Operation[bool]:
    added, marked = yield _run(ns, _ADD, *_new(key))
    if not added:
        raise DuplicateKey(key.id)
    return bool(marked)


def _swap(ns: str, old: APIKey, new: APIKey, successor: APIKey | None) -> Operation[tuple[bool, bool]]:
    """Answer whether it was done, and whether there is something to settle."""
    following = () if successor is None else _new(successor)
    done, marked = yield _run(ns, _SWAP, *_indexed(new), old.version, _record(new), old.digest, *following)
    if successor is not None and done == 2:
        raise DuplicateKey(successor.id)
    return done == 1, bool(marked)


def _revoke_all(ns: str, owner: str | None, at: datetime, reason: str | None) -> Operation[int]:
    at = in_utc("at", at)
    if reason is not None:
        check_text(
            "revoked_reason", reason, None
        )  # no record would take it, and no script could read the mark
    told = ",".join(map(json.dumps, (_known(owner), _iso(at), reason)))
    whose = "all" if owner is None else "owner"
    revoked, _ = yield _run(ns, _REVOKE_ALL, whose, _known(owner) or "", told, MAX_CHANGES)
    return int(revoked)


def _find(
    ns: str, owner: str | None, live_at: datetime | None, after: str | None, limit: int
) -> Operation[Page]:
    check_page(after, limit)
    live_at = None if live_at is None else in_utc("live_at", live_at)
    found: list[APIKey] = []
    size = limit + 1
    while len(found) <= limit:
        keys, after = yield from _listed(ns, owner, after, min(size, READ_AT_ONCE))
        found += keys if live_at is None else (key for key in keys if state(key, live_at) is None)
        if after is None:
            break
        size *= 2  # where many are dead
    items = tuple(found[:limit])
    return Page(items, items[-1].id if len(found) > limit else None)


def _count(ns: str, owner: str | None, live_at: datetime | None) -> Operation[int]:
    if live_at is None:
        counted = yield Step(("ZCARD", _ids(ns, owner)))
        return int(counted)
    live_at = in_utc("live_at", live_at)
    live = 0
    after: str | None = None
    while True:
        keys, after = yield from _listed(ns, owner, after, READ_AT_ONCE)
        live += sum(state(key, live_at) is None for key in keys)
        if after is None:
            return live


def _purge(ns: str, before: datetime) -> Operation[int]:
    """Delete some at a time. Each time moves the revision: whoever follows it misses no key that is gone."""
    before = in_utc("before", before)
    yield from _settle_all(ns)
    dead, kept, more = yield from _dead(ns, before, 0)
    deleted = yield _run(ns, _PURGE, *dead)
    while more:
        dead, kept, more = yield from _dead(ns, before, kept)
        if dead:
            deleted += yield _run(ns, _PURGE, *dead)
    return int(deleted)


def _dead(ns: str, before: datetime, kept: int) -> Operation[tuple[list[str | int], int, bool]]:
    """Find dead records behind those that are kept: what a purge is given, how many are kept, and if more come.

    The index has milliseconds, times have microseconds, so that some of the last are not dead yet.
    """
    page = ("LIMIT", kept, WRITTEN_AT_ONCE)
    ids = yield Step(("ZRANGEBYSCORE", f"{ns}ends", "-inf", _milliseconds(before), *page))
    found = yield from _read(ns, _texts(ids))
    dead = [(seen.key.id, seen.key.owner, seen.revision) for seen in found if dead_before(seen.key, before)]
    more = bool(dead) or len(ids) == WRITTEN_AT_ONCE
    return [each for row in dead for each in row], kept + len(ids) - len(dead), more


def _touch(ns: str, used: Mapping[str, datetime]) -> Operation[None]:
    times = {key_id: _iso(in_utc("used", at)) for key_id, at in used.items()}
    ids = [key_id for key_id in sorted(times) if _is_id(key_id)]
    for start in range(0, len(ids), READ_AT_ONCE):
        some = ids[start : start + READ_AT_ONCE]
        yield _run(ns, _TOUCH, *(each for key_id in some for each in (key_id, times[key_id])))


def _changes(ns: str, since: Revision | None) -> Operation[Changes]:
    """Read the revision and the ids in one step, so that they belong together."""
    asked = ("", 0) if since is None else (since.epoch, since.number)
    epoch, revision, floor, ids = yield _run(ns, _CHANGES, *asked, MAX_CHANGES + 1)
    now = Revision(epoch.decode(), int(revision))
    known = since is not None and since.epoch == now.epoch and int(floor) <= since.number <= now.number
    if not known or len(ids) > MAX_CHANGES:
        return Changes(now, None)
    return Changes(now, frozenset(_texts(ids)))


def _settle(ns: str, seconds: float) -> Operation[None]:
    """Write marks into records for some time, once at least."""
    deadline = monotonic() + seconds
    while (yield from _settle_some(ns)) and monotonic() < deadline:
        pass


def _settle_all(ns: str) -> Operation[None]:
    """Write into the records every mark that there is now; what comes meanwhile may stay."""
    marks = yield from _settle_some(ns)
    last = marks[-1].revision if marks else 0
    while marks and marks[0].revision <= last:
        marks = yield from _settle_some(ns)


def _settle_some(ns: str) -> Operation[Sequence[Mark]]:
    """Write the oldest mark into some records, and answer all the marks there were.

    Nobody sees it, so that it needs no revision: the records say the same before and after.
    """
    found = yield _run(ns, _UNSETTLED, WRITTEN_AT_ONCE)
    if not found:
        return ()
    marks = _marks(found[0])
    rows = (
        (owner, key_id, *_settled(key_id.decode(), stored, marks))
        for owner, key_id, stored in zip(found[1::3], found[2::3], found[3::3], strict=True)
    )
    yield _run(ns, _SETTLE, marks[0].worklist, *(each for row in rows for each in row))
    return marks


def _settled(key_id: str, stored: bytes | None, marks: Sequence[Mark]) -> tuple[str | int, ...]:
    """Tell the revision before and after, the end and the record; nothing of one that no mark is for."""
    seen = None if stored is None else _seen(key_id, stored, None, marks)
    if seen is None or seen.mark is None:
        return "", "", "", ""
    return seen.revision, seen.mark.revision, _end(seen.key), _record(seen.key)


def _listed(
    ns: str, owner: str | None, after: str | None, size: int
) -> Operation[tuple[list[APIKey], str | None]]:
    """Read some records by id, and tell after which id there may be more; None: there are none."""
    first = "-" if after is None else f"({after}"
    ids = _texts((yield Step(("ZRANGEBYLEX", _ids(ns, owner), first, "+", "LIMIT", 0, size))))
    keys = [seen.key for seen in (yield from _read(ns, ids))]
    return keys, ids[-1] if len(ids) == size else None


def _read(ns: str, ids: Sequence[str]) -> Operation[list[Seen]]:
    """Read records, without those that are gone."""
    names = (f"{ns}{kind}:{key_id}" for kind in ("key", "used") for key_id in ids)
    told, *values = yield Step(("MGET", f"{ns}marks", *names))
    marks = _marks(told)
    found = zip(ids, values[: len(ids)], values[len(ids) :], strict=True)
    return [_seen(key_id, stored, used, marks) for key_id, stored, used in found if stored is not None]


def _run(ns: str, script: Script, *arguments: str | bytes | int) -> Step:
    """Give a script to the server. No digest may stand at the front: where a server lacks a command, its error
    repeats the first 128 characters of what it was sent.
    """
    return Step((1, f"{ns}state", secrets.token_hex(16), *arguments), script)


def _ids(ns: str, owner: str | None) -> str:
    return f"{ns}ids" if owner is None else f"{ns}ids:{_known(owner)}"


def _known(owner: str | None) -> str | None:
    """Take an owner whom no record can have for the one of the empty name, whom none has either."""
    return owner if owner is None or is_storable(owner) else ""


def _is_id(text: str) -> bool:
    return len(text) <= MAX_NAME and is_storable(text)


def _texts(values: Sequence[bytes]) -> list[str]:
    return [value.decode() for value in values]


def _iso(time: datetime) -> str:
    """Write a time in UTC with one width, so that texts sort as times do."""
    return time.isoformat(timespec="microseconds")


def _milliseconds(time: datetime) -> int:
    return (time - _START) // _MILLISECOND


def _new(key: APIKey) -> tuple[str | int, ...]:
    used = "" if key.last_used_at is None else _iso(key.last_used_at)
    return *_indexed(key), used, _record(key)


def _indexed(key: APIKey) -> tuple[str | int, ...]:
    return key.id, key.owner, int(key.revoked_at is None), _end(key)


def _end(key: APIKey) -> str | int:
    ends = [end for end in (key.revoked_at, key.expires_at, key.grace_until) if end is not None]
    return _milliseconds(min(ends)) if ends else ""


def _record(key: APIKey) -> str:
    """Write a record in two lines: what the scripts read, and the rest, which they never parse.

    What is None is left out, so that a field to come needs no new records.
    """
    header = [getattr(key, name) for name in _HEADER]
    body = {name: value for name in _BODY if (value := getattr(key, name)) is not None}
    return f"{json.dumps(header, default=_iso)}\n{json.dumps(body, default=_iso)}"


def _seen(key_id: str, stored: bytes, used: bytes | None, marks: Sequence[Mark]) -> Seen:
    """Read a record, and what the marks say of it. Raises StoreUnavailable for what is none of ours."""
    try:
        text = stored.decode()
        space = text.index(" ")
        revision = int(text[:space])
        (owner, version, revoked_at, digest), end = _parse(text, space + 1)
        values = {**_ABSENT, **_parse(text, end + 1)[0]}
        if revoked_at is None and (mark := _mark(revision, owner, marks)) is not None:
            version, revoked_at, values["revoked_reason"] = version + 1, mark.at, mark.reason
        else:
            mark = None
        values["id"], values["owner"], values["digest"], values["version"] = key_id, owner, digest, version
        values["revoked_at"], values["last_used_at"] = revoked_at, None if used is None else used.decode()
        for name in _TIMES:
            if (time := values[name]) is not None:
                values[name] = datetime.fromisoformat(time)
        for name in _LISTS:
            if (items := values[name]) is not None:
                values[name] = tuple(items)
        return Seen(restored(values), revision, mark)
    except (ValueError, TypeError, LookupError) as error:
        raise StoreUnavailable(f"what is stored as the key {key_id!r} is no record") from error


def _mark(revision: int, owner: str, marks: Sequence[Mark]) -> Mark | None:
    """Find the mark that revokes a record: the first that was written after it."""
    later = (mark for mark in marks if mark.revision > revision)
    return next((mark for mark in later if mark.owner is None or mark.owner == owner), None)


def _marks(told: bytes | None) -> Sequence[Mark]:
    return () if told is None else [Mark(*json.loads(line)) for line in told.split(b"\n")]


# What redis-py raises. AttributeError is among it, where a cluster's new topology takes a connection from its user.
_FAILURES = (RedisError, RedisClusterException, OSError, AttributeError)


def _unavailable(error: Exception) -> StoreUnavailable:
    """Turn what redis-py raises into what the protocol promises."""
    told = type(error).__name__
    if isinstance(error, RedisError | OSError):  # the others' texts may hold the command, and so a digest
        told = str(error) or told
    return StoreUnavailable(f"Redis failed: {told}")


def _prefix(namespace: str) -> str:
    if not isinstance(namespace, str) or not namespace or not is_storable(namespace):
        raise ConfigurationError(f"a namespace is a text, such as 'apikey_auth', not {namespace!r}")
    if "{" in namespace or "}" in namespace:
        raise ConfigurationError("a namespace has no braces: the store puts them round it, for clusters")
    return f"{{{namespace}}}:"


def _check_client(client: object, kinds: tuple[type, ...], cluster: bool) -> None:
    """Raise ConfigurationError for a client that will not do."""
    if not isinstance(client, kinds) or hasattr(client, "execute"):  # a pipeline, which answers later
        raise ConfigurationError(
            "this store takes a URL, such as redis://127.0.0.1:6379/0, or a Redis or RedisCluster of "
            f"{kinds[0].__module__.rpartition('.')[0]}, not {type(client).__module__}.{type(client).__name__}"
        )
    if cluster:
        raise ConfigurationError("cluster=True belongs to a URL; a client knows what it is")
    if getattr(client, "read_from_replicas", False) or getattr(client, "load_balancing_strategy", None):
        raise ConfigurationError("this client reads from replicas, which learn of a revocation later")
    if getattr(client, "get_cache", lambda: None)() is not None:
        raise ConfigurationError("this client has a cache, which learns of a revocation later")


def _options(url: str, cluster: bool, timeout: float) -> dict[str, Any]:
    """Check a URL, and make the options that its client has unless the URL says otherwise."""
    if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ConfigurationError(f"timeout is in seconds and positive, not {timeout!r}")
    connecting = _parsed(url)
    if connecting is None:
        raise ConfigurationError(
            "this is no URL of Redis, such as redis://127.0.0.1:6379/0, or has an option that redis-py does not"
        )
    if cluster and (connecting.get("db") or "path" in connecting):
        raise ConfigurationError("a cluster has no databases, and no Unix sockets")
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "protocol": 2}


def _parsed(url: str) -> dict[str, Any] | None:
    """Take a URL apart. None, and no error, for what is none: redis-py's would tell the password."""
    try:
        pool = BlockingConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        return None
    return pool.connection_kwargs


def _clients(client: object, cluster: bool, timeout: float) -> "_OnePerProcess":
    if not isinstance(client, str):
        _check_client(client, (Redis, RedisCluster), cluster)
        return _OnePerProcess(lambda: client, owned=False)
    options = {**_options(client, cluster, timeout), "retry": Retry(NoBackoff(), 0), "timeout": timeout}
    if cluster:
        pools = {"connection_pool_class": BlockingConnectionPool}
        return _OnePerProcess(partial(RedisCluster.from_url, client, **pools, **options), owned=True)
    return _OnePerProcess(
        lambda: Redis.from_pool(BlockingConnectionPool.from_url(client, **options)), owned=True
    )


def _async_clients(client: object, cluster: bool, timeout: float) -> "_OnePerLoop":
    if not isinstance(client, str):
        _check_client(client, (AsyncRedis, AsyncRedisCluster), cluster)
        return _OnePerLoop(lambda: client, owned=False)
    options = {**_options(client, cluster, timeout), "retry": AsyncRetry(NoBackoff(), 0)}
    if cluster:
        return _OnePerLoop(partial(AsyncRedisCluster.from_url, client, **options), owned=True)
    options["timeout"] = timeout
    return _OnePerLoop(
        lambda: AsyncRedis.from_pool(AsyncBlockingConnectionPool.from_url(client, **options)), owned=True
    )


class _OnePerProcess:
    """The client of a blocking store, made when it is first needed: that of a cluster connects at once."""

    def __init__(self, make: Callable[[], Any], *, owned: bool) -> None:
        self._make = make
        self._owned = owned
        self._made: dict[str, Any] = {}

    def get(self) -> Any:
        client = self._made.get("client")
        if client is None:
            made = self._make()
            client = self._made.setdefault("client", made)  # of two threads at once, one is first
            if client is not made:
                _disconnect(made)
        return client

    def close(self) -> None:
        client = self._made.pop("client", None)
        if client is not None and self._owned:
            _disconnect(client)


def _disconnect(client: Any) -> None:
    client.close()
    if disconnect := getattr(client, "disconnect_connection_pools", None):
        disconnect()  # the nodes of a cluster that was made from a URL leave their connections open


class _OnePerLoop:
    """The clients of an async store: a connection belongs to the event loop in which it was opened."""

    def __init__(self, make: Callable[[], Any], *, owned: bool) -> None:
        self._make = make
        self._owned = owned
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    async def get(self) -> Any:
        loop = asyncio.get_running_loop()
        client = self._made.get(loop)
        if client is None:
            client = self._made[loop] = self._make()
        return await client.initialize()  # a cluster's first commands would else go to any node

    async def close(self) -> None:
        client = self._made.pop(asyncio.get_running_loop(), None)
        if client is not None and self._owned:
            await client.aclose()


class RedisKeyStore:
    """A ``KeyStore`` in Redis or Valkey: ``RedisKeyStore("redis://127.0.0.1:6379/0")``.

    ``client`` is a URL (``redis://``, ``rediss://`` or ``unix://``; with ``cluster=True`` one of a cluster's
    nodes), or a client of the application's own, which stays open and keeps its own deadlines and retries.
    Stores of one ``namespace`` share their keys. ``timeout``, in seconds, is the longest that a call waits
    for a connection, and the longest that it waits for each answer; nothing is sent twice.

    A change is kept as surely as the server keeps it: with ``appendfsync everysec`` a crash may lose the
    last second of changes, a revocation among them, and so may a replica that takes over, since it is told
    afterwards. The server must have ``maxmemory-policy noeviction``.

    Raises ConfigurationError for a URL, a client or a namespace that will not do.
    """

    def __init__(
        self,
        client: "str | Redis | RedisCluster",
        *,
        namespace: str = "apikey_auth",
        cluster: bool = False,
        timeout: float = 1.0,
    ) -> None:
        self._ns = _prefix(namespace)
        self._clients = _clients(client, cluster, timeout)

    def get(self, key_id: str, /) -> APIKey | None:
        return self._play(_get(self._ns, key_id))

    def add(self, key: APIKey, /) -> None:
        if self._play(_add(self._ns, key)):
            self._settle(0)

    def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        done, marked = self._play(_swap(self._ns, old, new, successor))
        if marked:
            self._settle(0)
        return done

    def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        revoked = self._play(_revoke_all(self._ns, owner, at, reason))
        self._settle(SETTLING)
        return revoked

    def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return self._play(_find(self._ns, owner, live_at, after, limit))

    def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return self._play(_count(self._ns, owner, live_at))

    def purge(self, before: datetime, /) -> int:
        return self._play(_purge(self._ns, before))

    def touch(self, used: Mapping[str, datetime], /) -> None:
        self._play(_touch(self._ns, used))

    def changes(self, since: Revision | None, /) -> Changes:
        return self._play(_changes(self._ns, since))

    def close(self) -> None:
        """Close the store's own connections; it opens new ones when it is used again."""
        self._clients.close()

    def _settle(self, seconds: float) -> None:
        """Settle for some time. It is housekeeping: what was asked for is done, whatever becomes of this."""
        with suppress(StoreUnavailable):
            self._play(_settle(self._ns, seconds))

    def _play(self, operation: Operation[T]) -> T:
        try:
            step = next(operation)
            while True:
                step = operation.send(self._send(step))
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _send(self, step: Step) -> Any:
        """Send a command, and take its reply in bytes, whatever the client would make of it."""
        arguments, script = step
        try:
            client = self._clients.get()
            if script is None:
                return client.execute_command(*arguments, NEVER_DECODE=True)
            try:
                return client.execute_command("EVALSHA", script.sha, *arguments, NEVER_DECODE=True)
            except NoScriptError:
                return client.execute_command("EVAL", script.text, *arguments, NEVER_DECODE=True)
        except _FAILURES as error:
            raise _unavailable(error) from error


class AsyncRedisKeyStore:
    """An ``AsyncKeyStore`` in Redis or Valkey: ``AsyncRedisKeyStore("redis://127.0.0.1:6379/0")``.

    ``client`` is a URL (``redis://``, ``rediss://`` or ``unix://``; with ``cluster=True`` one of a cluster's
    nodes), or a client of the application's own, which stays open and keeps its own deadlines and retries.
    Stores of one ``namespace`` share their keys. ``timeout``, in seconds, is the longest that a call waits
    for a connection, and the longest that it waits for each answer; nothing is sent twice.

    A change is kept as surely as the server keeps it: with ``appendfsync everysec`` a crash may lose the
    last second of changes, a revocation among them, and so may a replica that takes over, since it is told
    afterwards. The server must have ``maxmemory-policy noeviction``.

    Raises ConfigurationError for a URL, a client or a namespace that will not do.
    """

    def __init__(
        self,
        client: "str | AsyncRedis | AsyncRedisCluster",
        *,
        namespace: str = "apikey_auth",
        cluster: bool = False,
        timeout: float = 1.0,
    ) -> None:
        self._ns = _prefix(namespace)
        self._clients = _async_clients(client, cluster, timeout)

    async def get(self, key_id: str, /) -> APIKey | None:
        return await self._play(_get(self._ns, key_id))

    async def add(self, key: APIKey, /) -> None:
        if await self._play(_add(self._ns, key)):
            await self._settle(0)

    async def swap(self, old: APIKey, new: APIKey, /, successor: APIKey | None = None) -> bool:
        check_swap(old, new)
        done, marked = await self._play(_swap(self._ns, old, new, successor))
        if marked:
            await self._settle(0)
        return done

    async def revoke_all(self, owner: str | None, at: datetime, reason: str | None, /) -> int:
        revoked = await self._play(_revoke_all(self._ns, owner, at, reason))
        await self._settle(SETTLING)
        return revoked

    async def find(
        self,
        *,
        owner: str | None = None,
        live_at: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        return await self._play(_find(self._ns, owner, live_at, after, limit))

    async def count(self, *, owner: str | None = None, live_at: datetime | None = None) -> int:
        return await self._play(_count(self._ns, owner, live_at))

    async def purge(self, before: datetime, /) -> int:
        return await self._play(_purge(self._ns, before))

    async def touch(self, used: Mapping[str, datetime], /) -> None:
        await self._play(_touch(self._ns, used))

    async def changes(self, since: Revision | None, /) -> Changes:
        return await self._play(_changes(self._ns, since))

    async def close(self) -> None:
        """Close the store's own connections; it opens new ones when it is used again."""
        await self._clients.close()

    async def _settle(self, seconds: float) -> None:
        """Settle for some time. It is housekeeping: what was asked for is done, whatever becomes of this."""
        with suppress(StoreUnavailable):
            await self._play(_settle(self._ns, seconds))

    async def _play(self, operation: Operation[T]) -> T:
        try:
            step = next(operation)
            while True:
                step = operation.send(await self._send(step))
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _send(self, step: Step) -> Any:
        """Send a command, and take its reply in bytes, whatever the client would make of it."""
        arguments, script = step
        try:
            client = await self._clients.get()
            if script is None:
                return await client.execute_command(*arguments, NEVER_DECODE=True)
            try:
                return await client.execute_command("EVALSHA", script.sha, *arguments, NEVER_DECODE=True)
            except NoScriptError:
                return await client.execute_command("EVAL", script.text, *arguments, NEVER_DECODE=True)
        except _FAILURES as error:
            raise _unavailable(error) from error
