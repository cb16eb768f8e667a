"""From a key's text to an identity: every test runs in both colours."""

import asyncio
import dataclasses
import functools
import inspect
import itertools
import logging
import traceback
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from apikey_auth import (
    AddressNotAllowed,
    AsyncAuthenticator,
    AuthenticationError,
    Authenticator,
    ConfigurationError,
    DisabledKey,
    ExpiredKey,
    InactiveUser,
    Inline,
    InsufficientScope,
    InThread,
    InvalidKey,
    KeyScheme,
    MemoryKeyStore,
    MissingKey,
    Owner,
    RevokedKey,
    StoreUnavailable,
    opaque_tokens,
)
from apikey_auth.authenticate import check_authenticator
from apikey_auth.keys import APIKey
from apikey_auth.policy import Policy
from apikey_auth.testing import FakeClock

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SCHEME = KeyScheme("acme")


class Recording:
    """A store that only reads, counts, and fails if it is told to."""

    def __init__(self, *keys, error=None):
        self.keys = {key.id: key for key in keys}
        self.error = error
        self.asked = []

    def get(self, key_id, /):
        self.asked.append(key_id)
        if self.error is not None:
            raise self.error
        return self.keys.get(key_id)


class Colour:
    """One of the twins, so that a test is written once."""

    def __init__(self, asynchronous):
        self.asynchronous = asynchronous

    def authenticator(self, store, scheme=SCHEME, load_user=None, clock=lambda: NOW, **options):
        if load_user is not None:
            options["load_user"] = self.function(load_user)
        if self.asynchronous:
            return AsyncAuthenticator(Inline(store), scheme, clock=clock, **options)
        return Authenticator(store, scheme, clock=clock, **options)

    def function(self, function):
        if not self.asynchronous:
            return function

        async def call(*args):
            return function(*args)

        return call


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def colour(request):
    return Colour(request.param)


async def settled(answer):
    return await answer if inspect.isawaitable(answer) else answer


@pytest.fixture
def minted():
    return SCHEME.mint()


def record(minted, **fields):
    return APIKey(
        **{"id": minted.id, "owner": "u1", "digest": SCHEME.digest(minted.text), "created_at": NOW, **fields}
    )


# Who is let in


async def test_a_good_key_gives_the_identity_of_its_owner(colour, minted):
    key = record(minted, scopes=["a"])
    identity = await settled(colour.authenticator(Recording(key)).authenticate(minted.text))
    assert (identity.user, identity.key, identity.scopes, identity.stale) == (Owner("u1"), key, ("a",), False)


async def test_the_user_is_the_one_that_the_application_loads(colour, minted):
    users = {"u1": SimpleNamespace(name="Ada", is_active=True)}
    auth = colour.authenticator(Recording(record(minted)), load_user=users.get)
    assert (await settled(auth.authenticate(minted.text))).user is users["u1"]


async def test_without_a_scheme_and_a_clock_the_usual_ones_are_taken(colour):
    store = MemoryKeyStore()
    auth = AsyncAuthenticator(Inline(store)) if colour.asynchronous else Authenticator(store)
    issued = await settled(auth.keys.issue("u1"))
    assert issued.text.startswith("apikey_")
    assert issued.key.created_at - datetime.now(UTC) < timedelta(minutes=1)
    assert (await settled(auth.authenticate(issued.text))).key == issued.key


async def test_an_opaque_token_is_let_in_by_its_format(colour):
    scheme = KeyScheme("acme", formats=[opaque_tokens("a lookup secret of enough bytes")])
    token = scheme.parse("abcd")
    key = APIKey(id=token.id, owner="u1", digest=scheme.digest("abcd"))
    auth = colour.authenticator(Recording(key), scheme)
    assert (await settled(auth.authenticate("abcd"))).key == key
    with pytest.raises(InvalidKey):
        await settled(auth.authenticate("abce"))


FACTS = ["wrong", "revoked", "disabled", "expired", "inactive", "elsewhere", "narrow"]


@pytest.mark.parametrize(
    "facts",
    [set(itertools.compress(FACTS, each)) for each in itertools.product([0, 1], repeat=7)],
    ids=lambda facts: " ".join(sorted(facts)),
)
async def test_of_all_reasons_the_first_in_the_order_of_the_design_is_given(colour, minted, facts):
    key = record(
        minted,
        digest=SCHEME.digest("another text" if "wrong" in facts else minted.text),
        revoked_at=NOW - DAY if "revoked" in facts else None,
        disabled="disabled" in facts,
        expires_at=NOW if "expired" in facts else NOW + DAY,
        addresses=["10.0.0.0/8"] if "elsewhere" in facts else ["192.0.2.0/24"],
        scopes=["a"] if "narrow" in facts else ["a", "b"],
    )
    user = SimpleNamespace(is_active="inactive" not in facts)
    auth = colour.authenticator(Recording(key), load_user=lambda owner: user)
    reasons = zip(
        FACTS,
        [InvalidKey, RevokedKey, DisabledKey, ExpiredKey, InactiveUser, AddressNotAllowed, InsufficientScope],
        strict=True,
    )
    expected = next((reason for fact, reason in reasons if fact in facts), None)

    async def ask():
        return await settled(auth.authenticate(minted.text, address="192.0.2.1", scopes=["a", "b"]))

    if expected is None:
        assert (await ask()).user is user
    else:
        with pytest.raises(expected) as caught:
            await ask()
        assert type(caught.value) is expected


async def test_an_unknown_id_is_an_invalid_key(colour, minted):
    with pytest.raises(InvalidKey):
        await settled(colour.authenticator(Recording()).authenticate(minted.text))


async def test_the_id_alone_opens_nothing(colour, minted):
    auth = colour.authenticator(Recording(record(minted)))
    with pytest.raises(InvalidKey):
        await settled(auth.authenticate(SCHEME.mint(minted.id).text))
    with pytest.raises(InvalidKey):
        await settled(auth.authenticate(minted.id))


async def test_a_digest_in_the_place_of_a_key_opens_nothing(colour, minted):
    scheme = KeyScheme("acme", formats=[lambda text: (minted.id, text)])
    auth = colour.authenticator(Recording(record(minted)), scheme)
    for text in (SCHEME.digest(minted.text), SCHEME.digest(minted.text).rpartition("$")[2]):
        with pytest.raises(InvalidKey):
            await settled(auth.authenticate(text))


async def test_time_passes_for_a_key_by_the_clock_that_was_given(colour, minted):
    clock = FakeClock(NOW)
    auth = colour.authenticator(Recording(record(minted, expires_at=NOW + DAY)), clock=clock)
    for time in (NOW, NOW + DAY - timedelta(microseconds=1)):
        clock.now = time
        assert await settled(auth.authenticate(minted.text))
    clock.now = NOW + DAY
    with pytest.raises(ExpiredKey):
        await settled(auth.authenticate(minted.text))


async def test_no_user_ends_the_key(colour, minted):
    auth = colour.authenticator(Recording(record(minted)), load_user=lambda owner: None)
    with pytest.raises(InactiveUser):
        await settled(auth.authenticate(minted.text))


async def test_a_key_bound_to_addresses_is_refused_where_the_address_is_not_known(colour, minted):
    auth = colour.authenticator(Recording(record(minted, addresses=["0.0.0.0/0", "::/0"])))
    with pytest.raises(AddressNotAllowed):
        await settled(auth.authenticate(minted.text))


# What is asked, and how often


@pytest.mark.parametrize("text", ["junk", "acme_", "acme_" + "x" * 52, "x" * 10_000, "\0", "\ud800", "é"])
async def test_a_malformed_text_is_refused_without_asking_store_or_users(colour, text):
    store, users = Recording(), []
    auth = colour.authenticator(store, load_user=users.append)
    with pytest.raises(InvalidKey):
        await settled(auth.authenticate(text))
    assert (store.asked, users) == ([], [])


@pytest.mark.parametrize("text", ["", None])
async def test_no_text_is_a_missing_key(colour, text):
    store = Recording()
    with pytest.raises(MissingKey):
        await settled(colour.authenticator(store).authenticate(text))
    assert store.asked == []


async def test_bytes_are_a_mistake_in_the_application_and_no_bad_key(colour, minted):
    with pytest.raises(TypeError, match="a key is text, not bytes"):
        await settled(colour.authenticator(Recording()).authenticate(minted.text.encode()))


async def test_a_text_with_a_typing_error_is_refused_without_asking_the_store(colour, minted):
    store = Recording(record(minted))
    typo = minted.text[:-1] + ("0" if minted.text[-1] != "0" else "1")
    with pytest.raises(InvalidKey):
        await settled(colour.authenticator(store).authenticate(typo))
    assert store.asked == []


@pytest.mark.parametrize(("cache_size", "reads"), [(10, 1), (0, 3)])
async def test_a_key_costs_one_call_of_the_store_and_one_of_the_loader_each_time(
    colour, minted, cache_size, reads
):
    store, users = Recording(record(minted)), []
    load_user = lambda owner: users.append(owner) or Owner(owner)  # noqa: E731
    auth = colour.authenticator(store, load_user=load_user, cache_size=cache_size)
    for times in (1, 2, 3):
        await settled(auth.authenticate(minted.text))
        assert users == ["u1"] * times
    assert store.asked == [minted.id] * reads


async def test_no_user_is_loaded_for_a_key_that_is_refused(colour, minted):
    users = []
    auth = colour.authenticator(Recording(record(minted, disabled=True)), load_user=users.append)
    for text in (minted.text, SCHEME.mint(minted.id).text, SCHEME.mint().text):
        with pytest.raises(AuthenticationError):
            await settled(auth.authenticate(text))
    assert users == []


async def test_authenticating_writes_nothing(colour, minted):
    key = record(minted, expires_at=NOW)
    store = MemoryKeyStore()
    store.add(key)
    since = store.changes(None).revision
    with pytest.raises(ExpiredKey):
        await settled(colour.authenticator(store).authenticate(minted.text))
    assert store.get(key.id) == key
    assert store.changes(since).revision == since


# Outages

FAILURES = [
    OSError("refused"),
    TimeoutError(),
    ValueError("x"),
    KeyError("x"),
    RuntimeError(),
    ConfigurationError("x"),
]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_whatever_a_store_raises_says_nothing_about_the_key(colour, minted, error):
    auth = colour.authenticator(Recording(error=error))
    with pytest.raises(StoreUnavailable) as caught:
        await settled(auth.authenticate(minted.text))
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, AuthenticationError)


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_whatever_a_loader_raises_says_nothing_about_the_key(colour, minted, error):
    def load_user(owner):
        raise error

    auth = colour.authenticator(Recording(record(minted)), load_user=load_user)
    with pytest.raises(StoreUnavailable) as caught:
        await settled(auth.authenticate(minted.text))
    assert caught.value.__cause__ is error


async def test_a_store_that_says_itself_that_it_is_unavailable_is_passed_on_as_it_is(colour, minted):
    error = StoreUnavailable("down")
    error.retry_after = 30
    with pytest.raises(StoreUnavailable) as caught:
        await settled(colour.authenticator(Recording(error=error)).authenticate(minted.text))
    assert caught.value is error
    assert caught.value.retry_after == 30


async def test_a_store_may_refuse_a_key_itself(colour, minted):
    refusal = RevokedKey("on a list of the store's own")
    with pytest.raises(RevokedKey) as caught:
        await settled(colour.authenticator(Recording(error=refusal)).authenticate(minted.text))
    assert caught.value is refusal


async def test_a_loader_may_refuse_a_key_itself(colour, minted):
    refusal = InactiveUser("suspended")

    def load_user(owner):
        raise refusal

    with pytest.raises(InactiveUser) as caught:
        await settled(
            colour.authenticator(Recording(record(minted)), load_user=load_user).authenticate(minted.text)
        )
    assert caught.value is refusal


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError()], ids=repr)
def test_what_ends_the_program_or_the_task_is_not_taken_for_an_outage(minted, error):
    def drive(auth):
        answer = auth.authenticate(minted.text)
        answer.send(None)

    for auth in (
        AsyncAuthenticator(Inline(Recording(error=error)), SCHEME),
        Authenticator(Recording(error=error), SCHEME),
    ):
        with pytest.raises(type(error)):
            drive(auth)


async def test_an_outage_is_logged_with_its_cause(colour, minted, caplog):
    error = OSError("connection refused")
    with pytest.raises(StoreUnavailable):
        await settled(colour.authenticator(Recording(error=error)).authenticate(minted.text))
    (entry,) = caplog.records
    assert (entry.name, entry.levelno) == ("apikey_auth", logging.ERROR)
    assert "the key store" in entry.getMessage()
    assert entry.exc_info[1] is error


async def test_a_refused_key_is_not_logged_as_an_error(colour, minted, caplog):
    with pytest.raises(InvalidKey):
        await settled(colour.authenticator(Recording()).authenticate(minted.text))
    assert caplog.records == []


# Construction


async def none_async(owner):
    return None


def none_sync(owner):
    return None


class AsyncCallable:
    async def __call__(self, owner):
        return None


class SyncCallable:
    def __call__(self, owner):
        return None


class AsyncReader:
    async def get(self, key_id, /):
        return None


@pytest.mark.parametrize("store", [AsyncReader(), Inline(MemoryKeyStore()), InThread(MemoryKeyStore())])
def test_an_async_store_is_refused_where_a_blocking_one_is_needed(store):
    with pytest.raises(ConfigurationError, match="is async: use AsyncAuthenticator"):
        Authenticator(store)


def test_a_blocking_store_is_refused_where_an_async_one_is_needed_and_the_bridges_are_named():
    with pytest.raises(
        ConfigurationError,
        match=r"is not async: use an async store, or wrap this one in InThread\(…\).*Inline\(…\)",
    ):
        AsyncAuthenticator(MemoryKeyStore())


@pytest.mark.parametrize("store", [None, object(), SimpleNamespace(get=None), MemoryKeyStore])
def test_what_is_no_store_is_refused(store):
    for make in (Authenticator, AsyncAuthenticator):
        with pytest.raises(ConfigurationError):
            make(store)


@pytest.mark.parametrize("make", [Authenticator, AsyncAuthenticator])
def test_what_is_often_taken_for_a_store_is_told_what_it_is(make):
    with pytest.raises(ConfigurationError, match=r"a URL is no store; .*SQLKeyStore\(url\)") as caught:
        make("postgresql://acme:the-password@127.0.0.1/acme")
    assert "the-password" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="MemoryKeyStore is a class; a store is an instance"):
        make(MemoryKeyStore)


@pytest.mark.parametrize("scheme", ["acme", {"prefix": "acme"}, KeyScheme, ""])
def test_what_is_no_scheme_is_refused(scheme):
    for make, store in ((Authenticator, MemoryKeyStore()), (AsyncAuthenticator, Inline(MemoryKeyStore()))):
        with pytest.raises(ConfigurationError, match="the scheme is a KeyScheme"):
            make(store, scheme)


def test_a_store_without_get_is_told_what_it_lacks():
    for make in (Authenticator, AsyncAuthenticator):
        with pytest.raises(ConfigurationError, match=r"object is no store for this: it lacks get\(\)"):
            make(object())


@pytest.mark.parametrize("load_user", [none_async, functools.partial(none_async), AsyncCallable()])
def test_an_async_loader_is_refused_where_a_plain_one_is_needed(load_user):
    with pytest.raises(ConfigurationError, match="load_user must be a plain 'def'"):
        Authenticator(MemoryKeyStore(), load_user=load_user)
    assert AsyncAuthenticator(Inline(MemoryKeyStore()), load_user=load_user)


@pytest.mark.parametrize(
    "load_user", [none_sync, functools.partial(none_sync), SyncCallable(), lambda owner: None]
)
def test_a_plain_loader_is_refused_where_an_async_one_is_needed(load_user):
    with pytest.raises(ConfigurationError, match="load_user must be an 'async def' here"):
        AsyncAuthenticator(Inline(MemoryKeyStore()), load_user=load_user)
    assert Authenticator(MemoryKeyStore(), load_user=load_user)


@pytest.mark.parametrize("load_user", [None, "myapp.users.load", 5])
def test_a_loader_that_cannot_be_called_is_refused(load_user):
    with pytest.raises(ConfigurationError):
        AsyncAuthenticator(Inline(MemoryKeyStore()), load_user=load_user)
    with pytest.raises(ConfigurationError):
        Authenticator(MemoryKeyStore(), load_user=load_user)


class Awaitable:
    """What an async loader behind a lambda hands out, without the warning of a coroutine left alone."""

    def __await__(self):
        return iter(())


def test_an_async_loader_behind_a_plain_function_lets_nobody_in(minted):
    auth = Authenticator(Recording(record(minted)), SCHEME, load_user=lambda owner: Awaitable())
    with pytest.raises(ConfigurationError):
        auth.authenticate(minted.text)


def test_a_store_that_only_reads_is_enough_to_authenticate_and_too_little_to_manage():
    for auth in (Authenticator(Recording()), AsyncAuthenticator(Inline(Recording()))):
        with pytest.raises(
            ConfigurationError, match=r"Recording is no store for this: it lacks add\(\), swap\(\)"
        ):
            _ = auth.keys


async def test_the_manager_shares_store_scheme_and_clock_and_is_one(colour):
    auth = colour.authenticator(MemoryKeyStore(), KeyScheme("shared"))
    issued = await settled(auth.keys.issue("u1"))
    assert issued.text.startswith("shared_")
    assert issued.key.created_at == NOW
    assert (await settled(auth.authenticate(issued.text))).key == issued.key
    assert auth.keys is auth.keys


def test_an_adapter_says_which_authenticator_it_needs():
    auth = Authenticator(MemoryKeyStore())
    assert check_authenticator(auth, Authenticator) is None
    for wrong in (MemoryKeyStore(), None, Authenticator):
        with pytest.raises(ConfigurationError, match="needs an Authenticator"):
            check_authenticator(wrong, Authenticator)
    with pytest.raises(ConfigurationError, match="needs an AsyncAuthenticator, not <"):
        check_authenticator(auth, AsyncAuthenticator)


# Visits


def visit(key=None, address="192.0.2.1", **options):
    policy = Policy(**options)
    return policy.visit("GET", "/a", {"apikey": key}.get, "", address)


async def test_a_good_key_leaves_its_identity_on_the_visit(colour, minted):
    auth, found = colour.authenticator(Recording(record(minted))), visit(minted.text)
    assert await settled(auth.admit(found)) is None
    assert found.identity.key == record(minted)
    assert (found.refusal, found.turned_away) == (None, None)
    assert found.authority is auth


async def test_a_bad_key_leaves_its_refusal_on_the_visit_and_raises_nothing(colour, minted):
    auth, found = colour.authenticator(Recording()), visit(minted.text)
    await settled(auth.admit(found))
    assert isinstance(found.refusal, InvalidKey)
    assert found.turned_away is found.refusal
    assert found.identity is None
    assert found.authority is None


async def test_an_outage_leaves_its_refusal_on_the_visit_and_is_not_let_through(colour, minted):
    auth, found = colour.authenticator(Recording(error=OSError())), visit(minted.text, on_invalid="anonymous")
    await settled(auth.admit(found))
    assert isinstance(found.turned_away, StoreUnavailable)
    assert found.identity is None


async def test_the_address_of_a_visit_is_judged(colour, minted):
    auth = colour.authenticator(Recording(record(minted, addresses=["192.0.2.0/24"])))
    near, far = visit(minted.text), visit(minted.text, address="198.51.100.1")
    await settled(auth.admit(near))
    await settled(auth.admit(far))
    assert near.identity is not None
    assert isinstance(far.turned_away, AddressNotAllowed)


@pytest.mark.parametrize("options", [{"exempt": ["/a"]}, {}])
async def test_nothing_is_asked_where_there_is_nothing_to_check(colour, minted, options):
    store = Recording(record(minted))
    found = visit(minted.text if options else None, **options)
    refusal = found.refusal
    await settled(colour.authenticator(store).admit(found))
    assert store.asked == []
    assert (found.identity, found.refusal) == (None, refusal)


async def test_what_is_no_refusal_is_not_swallowed(colour, minted):
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await settled(colour.authenticator(Recording(record(minted)), clock=broken).admit(visit(minted.text)))


# Leaks


def frames_of(error):
    """Every frame that an error keeps alive, its causes' and contexts' too."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("failing", ["unknown", "dead", "store", "loader", "malformed"])
async def test_no_error_and_no_log_record_holds_the_keys_text(colour, minted, caplog, failing):
    def load_user(owner):
        raise OSError("no users")

    text = minted.text + "x" if failing == "malformed" else minted.text
    keys = [] if failing == "unknown" else [record(minted, disabled=failing == "dead")]
    store = Recording(*keys, error=OSError("no keys") if failing == "store" else None)
    auth = colour.authenticator(store, load_user=load_user if failing == "loader" else None)
    with caplog.at_level(logging.DEBUG), pytest.raises((AuthenticationError, StoreUnavailable)) as caught:
        await settled(auth.authenticate(text))
    shown = "".join(traceback.format_exception(caught.value))
    shown += "".join(logging.Formatter().format(entry) for entry in caplog.records)
    shown += repr(caught.value) + caught.value.detail
    for hidden in (text, minted.secret, record(minted).digest):
        assert hidden not in shown


@pytest.mark.parametrize("failing", ["unknown", "store", "loader"])
async def test_the_refusal_on_a_visit_keeps_no_frame_alive_that_holds_the_keys_text(colour, minted, failing):
    def load_user(owner):
        raise OSError("no users")

    store = Recording(
        *([] if failing == "unknown" else [record(minted)]),
        error=OSError("no keys") if failing == "store" else None,
    )
    auth = colour.authenticator(store, load_user=load_user if failing == "loader" else None)
    found = visit(minted.text)
    await settled(auth.admit(found))
    assert found.refusal is not None
    for frame in frames_of(found.refusal):
        held = list(frame.f_locals.values())
        assert minted.text not in held
        assert minted not in held


def test_the_repr_of_an_authenticator_holds_no_secret():
    pepper = "a pepper of enough bytes"
    auth = Authenticator(MemoryKeyStore(), KeyScheme(peppers=[pepper]))
    assert pepper not in repr(auth)
    assert dataclasses.is_dataclass(auth.scheme)


async def test_what_a_request_does_to_its_keys_metadata_no_other_sees(colour, minted):
    auth = colour.authenticator(Recording(record(minted, metadata={"a": {"b": 1}})))
    for _ in range(3):
        identity = await settled(auth.authenticate(minted.text))
        assert identity.key.metadata == {"a": {"b": 1}}
        identity.key.metadata["a"]["b"] = 2
