"""Issuing, changing and revoking keys: every test runs in both colours."""

import inspect
from datetime import UTC, datetime, timedelta

import pytest

from apikey_auth import (
    AsyncKeyManager,
    ConfigurationError,
    Conflict,
    DuplicateKey,
    Inline,
    InvalidKey,
    KeyManager,
    KeyNotFound,
    KeyNotLive,
    KeyScheme,
    MemoryKeyStore,
    StoreUnavailable,
    opaque_tokens,
)
from apikey_auth.decisions import changed, revoked
from apikey_auth.keys import named_id
from apikey_auth.manage import ATTEMPTS, DEFAULT_LIFE, UNSET

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SCHEME = KeyScheme("acme", peppers=["a pepper of enough bytes"])


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


class Racing(MemoryKeyStore):
    """A store in which somebody else is quicker: ``overtake`` changes the record before a swap does."""

    def __init__(self):
        super().__init__()
        self.overtake = None
        self.times = 1
        self.swaps = 0

    def swap(self, old, new, /, successor=None):
        self.swaps += 1
        if self.overtake is not None and self.times > 0:
            self.times -= 1
            current = self.get(old.id)
            assert super().swap(current, self.overtake(current))
        return super().swap(old, new, successor)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    return Racing()


@pytest.fixture(params=["sync", "async"])
def make(request, store, clock):
    """Make a manager, by default of the store and the scheme of this file."""

    def make(scheme=SCHEME, store=store):
        if request.param == "async":
            return AsyncKeyManager(Inline(store), scheme, clock=clock)
        return KeyManager(store, scheme, clock=clock)

    return make


@pytest.fixture
def keys(make):
    return make()


async def settled(answer):
    return await answer if inspect.isawaitable(answer) else answer


# Issuing


async def test_a_key_is_issued_with_the_text_that_its_record_matches(keys, store):
    issued = await settled(keys.issue("u1"))
    text = SCHEME.parse(issued.text)
    assert store.get(issued.key.id) == issued.key
    assert (issued.key.id, issued.key.prefix, issued.key.last4) == (text.id, "acme", text.secret[-4:])
    assert SCHEME.matches(issued.key.digest, issued.text)
    assert issued.key.digest.startswith("hmac-sha256$")


async def test_the_text_of_a_key_is_stored_nowhere(keys, store):
    issued = await settled(keys.issue("u1", name="CI"))
    secret = SCHEME.parse(issued.text).secret
    assert secret not in str([vars(store), store.get(issued.key.id).digest])
    assert issued.text not in repr(issued)


async def test_a_key_has_the_plainest_fields_unless_told_otherwise(keys):
    key = (await settled(keys.issue("u1"))).key
    assert (key.owner, key.name, key.scopes, key.addresses, key.metadata) == ("u1", "", None, None, {})
    assert (key.created_at, key.created_by, key.version) == (NOW, None, 1)
    assert (key.disabled, key.revoked_at, key.rotated_to, key.rotated_from) == (False, None, None, None)
    assert (key.grace_until, key.last_used_at) == (None, None)


async def test_a_key_lives_365_days_and_for_ever_only_where_that_is_typed(keys):
    assert timedelta(days=365) == DEFAULT_LIFE
    assert (await settled(keys.issue("u1"))).key.expires_at == NOW + timedelta(days=365)
    assert (await settled(keys.issue("u1", expires_in=None))).key.expires_at is None
    assert (await settled(keys.issue("u1", expires_in=DAY))).key.expires_at == NOW + DAY


async def test_what_is_said_of_a_key_is_kept(keys, store):
    key = (
        await settled(
            keys.issue(
                "u1",
                name="CI",
                scopes=["b", "a"],
                addresses=["10.0.0.0/8"],
                expires_in=DAY,
                metadata={"a": [1]},
                created_by="u0",
            )
        )
    ).key
    assert store.get(key.id) == key
    assert (key.name, key.scopes, key.addresses) == ("CI", ("b", "a"), ("10.0.0.0/8",))
    assert (key.metadata, key.created_by) == ({"a": [1]}, "u0")


async def test_a_key_without_any_scope_may_do_nothing(keys):
    assert (await settled(keys.issue("u1", scopes=[]))).key.scopes == ()


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"owner": ""}, ValueError, "owner must not be empty"),
        ({"owner": 7}, TypeError, "owner must be text, not int"),
        ({"name": "x" * 256}, ValueError, "name has 256 characters"),
        ({"scopes": "reports:read"}, TypeError, "scopes is a list"),
        ({"scopes": ["a b"]}, ValueError, "is no scope"),
        ({"addresses": ["nowhere"]}, ValueError, "nowhere"),
        ({"expires_in": timedelta(0)}, ValueError, "expires_in must be positive"),
        ({"expires_in": -DAY}, ValueError, "expires_in must be positive"),
        ({"expires_in": timedelta.max}, ValueError, "after the year 9999"),
        ({"metadata": {"a": object()}}, ValueError, "metadata must be a JSON object"),
    ],
)
async def test_a_field_that_will_not_do_is_refused_and_nothing_is_stored(keys, store, fields, error, said):
    arguments = {"owner": "u1", "name": "CI", **fields}
    with pytest.raises(error, match=said):
        await settled(keys.issue(**arguments))
    with pytest.raises(error, match=said):
        await settled(keys.ensure(**arguments))
    assert store.count() == 0


async def test_every_key_is_another(keys):
    issued = [await settled(keys.issue("u1")) for _ in range(20)]
    assert len({each.text for each in issued}) == len({each.key.id for each in issued}) == 20


# Ensuring


async def test_a_key_is_made_once_for_prefix_owner_and_name(keys, make, store):
    made = await settled(keys.ensure("u1", name="first"))
    assert made.key == store.get(named_id("acme", "u1", "first"))
    assert SCHEME.matches(made.key.digest, made.text)
    assert await settled(keys.ensure("u1", name="first")) is None
    assert store.get(made.key.id) == made.key
    assert await settled(keys.ensure("u1", name="second")) is not None
    assert await settled(keys.ensure("u2", name="first")) is not None
    assert await settled(make(KeyScheme("other")).ensure("u1", name="first")) is not None
    assert store.count() == 4


async def test_two_workers_that_start_together_make_one_key_of_which_one_knows_the_text(make, store):
    made = [await settled(make().ensure("u1", name="first")) for _ in range(5)]
    assert [each is None for each in made] == [False, True, True, True, True]
    assert store.count() == 1


async def test_a_key_made_once_has_the_fields_of_any_other(keys):
    key = (
        await settled(
            keys.ensure(
                "u1",
                name="first",
                scopes=["a"],
                addresses=["10.0.0.0/8"],
                metadata={"a": 1},
                created_by="setup",
            )
        )
    ).key
    assert (key.owner, key.name, key.scopes, key.addresses) == ("u1", "first", ("a",), ("10.0.0.0/8",))
    assert (key.metadata, key.created_by, key.created_at) == ({"a": 1}, "setup", NOW)
    assert key.expires_at == NOW + DEFAULT_LIFE


@pytest.mark.parametrize("end", ["revoked", "disabled", "expired", "rotated"])
async def test_a_key_that_ended_is_not_made_again(keys, store, clock, end):
    made = await settled(keys.ensure("u1", name="first"))
    if end == "revoked":
        await settled(keys.revoke(made.key.id))
    elif end == "disabled":
        await settled(keys.edit(made.key.id, disabled=True))
    elif end == "rotated":
        await settled(keys.rotate(made.key.id))
    else:
        clock.now += 400 * DAY
    before = store.get(made.key.id)
    assert await settled(keys.ensure("u1", name="first")) is None
    assert store.get(made.key.id) == before


async def test_a_key_from_the_configuration_is_taken_as_it_is(keys):
    text = SCHEME.mint().text
    made = await settled(keys.ensure("u1", name="first", text=text))
    assert made.text == text
    assert made.key.id == SCHEME.parse(text).id
    assert SCHEME.matches(made.key.digest, text)
    assert await settled(keys.ensure("u1", name="first", text=text)) is None


async def test_a_configured_token_of_an_older_system_is_taken_in_its_format(make):
    scheme = KeyScheme("acme", formats=[opaque_tokens()])
    made = await settled(make(scheme).ensure("u1", name="first", text="abcd"))
    assert (made.text, made.key.prefix, made.key.last4) == ("abcd", "", "")
    assert made.key.id == scheme.parse("abcd").id
    assert scheme.matches(made.key.digest, "abcd")


@pytest.mark.parametrize("text", ["", "abcd", "acme_", "acme_4fRk0TzQ9bVw_" + "0" * 38])
async def test_a_configured_text_that_is_no_key_is_refused(keys, store, text):
    with pytest.raises(InvalidKey):
        await settled(keys.ensure("u1", name="first", text=text))
    assert store.count() == 0


# Finding


async def test_a_record_is_read_by_its_id(keys):
    key = (await settled(keys.issue("u1"))).key
    assert await settled(keys.get(key.id)) == key


@pytest.mark.parametrize(
    "method",
    [
        lambda keys: keys.get("nobody"),
        lambda keys: keys.edit("nobody", name="x"),
        lambda keys: keys.edit("nobody"),
        lambda keys: keys.revoke("nobody"),
        lambda keys: keys.rotate("nobody"),
    ],
)
async def test_an_unknown_id_is_told_as_such(keys, method):
    with pytest.raises(KeyNotFound) as caught:
        await settled(method(keys))
    assert caught.value.key_id == "nobody"


async def test_an_owners_keys_are_listed_oldest_first_dead_or_alive(keys, clock):
    made = []
    for _ in range(5):
        clock.now += DAY
        made.append((await settled(keys.issue("u1"))).key)
    clock.now = NOW
    made.insert(0, (await settled(keys.issue("u1"))).key)
    await settled(keys.issue("u2"))
    made[2] = await settled(keys.revoke(made[2].id))
    assert await settled(keys.list("u1")) == made
    assert await settled(keys.list("nobody")) == []


async def test_a_list_goes_over_all_pages(keys, store):
    template = (await settled(keys.issue("u1"))).key
    for number in range(1, 2001):
        store.add(changed(template, id=f"k{number:04}"))
    assert len(await settled(keys.list("u1"))) == 2001


async def test_keys_are_found_page_by_page_with_every_condition(keys):
    mine = [(await settled(keys.issue("u1", expires_in=(1 + day) * DAY))).key for day in range(3)]
    other = (await settled(keys.issue("u2"))).key
    everybody = sorted([key.id for key in mine] + [other.id])
    page = await settled(keys.find(limit=3))
    assert [key.id for key in page.items] == everybody[:3]
    page = await settled(keys.find(after=page.next, limit=3))
    assert [key.id for key in page.items] == everybody[3:]
    assert page.next is None
    assert {key.id for key in (await settled(keys.find(owner="u2"))).items} == {other.id}
    live = await settled(keys.find(owner="u1", live_at=NOW + DAY))
    assert {key.id for key in live.items} == {key.id for key in mine[1:]}


async def test_a_page_holds_a_hundred_keys_unless_told_otherwise(keys, store):
    template = (await settled(keys.issue("u1"))).key
    for number in range(100):
        store.add(changed(template, id=f"k{number:03}"))
    assert len((await settled(keys.find())).items) == 100


@pytest.mark.parametrize("method", ["get", "edit", "revoke", "rotate"])
async def test_a_record_in_the_place_of_its_id_is_a_mistake_and_no_unknown_key(keys, method):
    issued = await settled(keys.issue("u1"))
    for wrong in (issued, issued.key, None, 7):
        with pytest.raises(TypeError, match=r"id is text, issued\.key\.id"):
            await settled(getattr(keys, method)(wrong))


NAIVE = NOW.replace(tzinfo=None)


@pytest.mark.parametrize(
    "method",
    [
        lambda keys, key_id, time: keys.purge(time),
        lambda keys, key_id, time: keys.find(live_at=time),
        lambda keys, key_id, time: keys.edit(key_id, expires_at=time),
    ],
)
async def test_a_time_without_zone_is_a_mistake_wherever_one_is_given(keys, store, method):
    key = (await settled(keys.issue("u1"))).key
    with pytest.raises(ValueError, match="has no time zone"):
        await settled(method(keys, key.id, NAIVE))
    with pytest.raises(TypeError, match="is a datetime"):
        await settled(method(keys, key.id, "2026-03-01"))
    assert store.get(key.id) == key


@pytest.mark.parametrize("span", [3600, "90 days", NOW, 1.5])
async def test_a_span_of_time_is_a_timedelta(keys, store, span):
    key = (await settled(keys.issue("u1"))).key
    for answer in (
        lambda: keys.issue("u1", expires_in=span),
        lambda: keys.ensure("u1", name="x", expires_in=span),
        lambda: keys.rotate(key.id, grace=span),
        lambda: keys.rotate(key.id, expires_in=span),
    ):
        with pytest.raises(TypeError, match="is a timedelta"):
            await settled(answer())
    assert store.count() == 1


# Editing


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("name", "other", "other"),
        ("name", "", ""),
        ("scopes", ["b", "c"], ("b", "c")),
        ("scopes", [], ()),
        ("scopes", None, None),
        ("addresses", ["192.0.2.0/24"], ("192.0.2.0/24",)),
        ("addresses", [], ()),
        ("addresses", None, None),
        ("expires_at", NOW + DAY, NOW + DAY),
        ("expires_at", NOW - DAY, NOW - DAY),
        ("expires_at", None, None),
        ("disabled", True, True),
        ("metadata", {"b": 2}, {"b": 2}),
        ("metadata", {}, {}),
    ],
)
async def test_what_is_given_of_a_record_is_changed_and_nothing_else(keys, store, field, value, kept):
    issued = await settled(
        keys.issue("u1", name="CI", scopes=["a"], addresses=["10.0.0.0/8"], metadata={"a": 1})
    )
    edited = await settled(keys.edit(issued.key.id, **{field: value}))
    assert edited == changed(issued.key, **{field: value})
    assert getattr(edited, field) == kept
    assert edited.version == 2
    assert store.get(issued.key.id) == edited


async def test_a_disabled_key_may_be_enabled_again(keys):
    key = (await settled(keys.issue("u1"))).key
    await settled(keys.edit(key.id, disabled=True))
    assert (await settled(keys.edit(key.id, disabled=False))).disabled is False


async def test_an_edit_of_nothing_writes_nothing(keys, store):
    key = (await settled(keys.issue("u1"))).key
    assert await settled(keys.edit(key.id)) == key
    assert store.swaps == 0


@pytest.mark.parametrize(
    "fields", [{"name": "x" * 256}, {"scopes": ["a b"]}, {"addresses": ["x"]}, {"metadata": {"a": object()}}]
)
async def test_an_edit_that_will_not_do_changes_nothing(keys, store, fields):
    key = (await settled(keys.issue("u1"))).key
    with pytest.raises(ValueError, match=r"\w"):
        await settled(keys.edit(key.id, **fields))
    assert store.get(key.id) == key


async def test_an_edit_brings_no_revoked_key_back(keys):
    key = (await settled(keys.issue("u1"))).key
    gone = await settled(keys.revoke(key.id))
    edited = await settled(keys.edit(key.id, disabled=False, expires_at=None))
    assert edited.revoked_at == gone.revoked_at


@pytest.mark.parametrize(
    "field", ["id", "owner", "digest", "revoked_at", "version", "rotated_to", "grace_until", "created_at"]
)
async def test_what_a_key_is_cannot_be_edited(keys, field):
    key = (await settled(keys.issue("u1"))).key
    with pytest.raises(TypeError):
        await settled(keys.edit(key.id, **{field: None}))


def test_an_argument_that_was_not_given_shows_as_such():
    assert repr(UNSET) == "UNSET"


# Revoking


async def test_a_revoked_key_says_when_and_why(keys, store, clock):
    key = (await settled(keys.issue("u1"))).key
    clock.now += DAY
    gone = await settled(keys.revoke(key.id, reason="left the company"))
    assert gone == changed(key, revoked_at=NOW + DAY, revoked_reason="left the company")
    assert store.get(key.id) == gone


async def test_revoking_again_keeps_the_first_time_and_reason_and_writes_nothing(keys, store, clock):
    key = (await settled(keys.issue("u1"))).key
    gone = await settled(keys.revoke(key.id, reason="first"))
    clock.now += DAY
    assert await settled(keys.revoke(key.id, reason="second")) == gone
    assert store.get(key.id) == gone
    assert store.swaps == 1


async def test_all_keys_of_an_owner_are_revoked_and_counted(keys, store):
    mine = [(await settled(keys.issue("u1"))).key for _ in range(3)]
    other = (await settled(keys.issue("u2"))).key
    gone = await settled(keys.revoke(mine[0].id, reason="first"))
    assert await settled(keys.revoke_all("u1", reason="left")) == 2
    assert store.get(mine[0].id) == gone
    for key in mine[1:]:
        assert store.get(key.id) == changed(key, revoked_at=NOW, revoked_reason="left")
    assert store.get(other.id) == other
    assert await settled(keys.revoke_all("u1")) == 0


async def test_everybodys_keys_are_revoked_where_no_owner_is_given(keys, store):
    for owner in ("u1", "u2", "u3"):
        await settled(keys.issue(owner))
    assert await settled(keys.revoke_all()) == 3
    assert store.count(live_at=NOW) == 0


@pytest.mark.parametrize("owner", [None, "", 0, 7, b"u1", False])
async def test_an_owner_that_is_none_or_empty_is_a_mistake_and_not_everybody(keys, store, owner):
    await settled(keys.issue("u1"))
    with pytest.raises(TypeError, match="leave it out to revoke everybody's keys"):
        await settled(keys.revoke_all(owner))
    assert store.count(live_at=NOW) == 1


@pytest.mark.parametrize("owner", [None, 7, b"u1"])
async def test_an_owner_that_is_no_text_is_a_mistake_and_nobody_without_keys(keys, owner):
    with pytest.raises(TypeError, match=r"owner must be text.*str\(…\)"):
        await settled(keys.list(owner))


# Rotating


async def test_a_rotation_gives_a_new_key_with_the_same_rights_and_ends_the_old_one(keys, store, clock):
    key = (
        await settled(
            keys.issue(
                "u1", name="CI", scopes=["a"], addresses=["10.0.0.0/8"], metadata={"a": 1}, created_by="u0"
            )
        )
    ).key
    store.touch({key.id: NOW})
    clock.now += DAY
    issued = await settled(keys.rotate(key.id))
    new, old = store.get(issued.key.id), store.get(key.id)
    assert new == issued.key
    assert SCHEME.matches(new.digest, issued.text)
    assert new.last4 == SCHEME.parse(issued.text).last4
    for field in ("owner", "name", "scopes", "addresses", "metadata", "created_by", "prefix"):
        assert getattr(new, field) == getattr(key, field)
    assert (new.created_at, new.expires_at) == (NOW + DAY, NOW + DAY + DEFAULT_LIFE)
    assert (new.rotated_from, new.rotated_to, new.grace_until) == (key.id, None, None)
    assert (new.last_used_at, new.version) == (None, 1)
    assert old == changed(key, rotated_to=new.id, grace_until=NOW + DAY, last_used_at=NOW)


async def test_a_grace_keeps_the_old_key_alive_until_it_ends(keys, store, clock):
    key = (await settled(keys.issue("u1"))).key
    await settled(keys.rotate(key.id, grace=timedelta(hours=1)))
    assert store.get(key.id).grace_until == NOW + timedelta(hours=1)
    assert store.count(live_at=NOW + timedelta(minutes=59)) == 2
    assert store.count(live_at=NOW + timedelta(hours=1)) == 1


@pytest.mark.parametrize(
    ("meant", "told", "expires_at"),
    [
        (7 * DAY, {}, NOW + 12 * DAY),
        (None, {}, None),
        (7 * DAY, {"expires_in": DAY}, NOW + 6 * DAY),
        (7 * DAY, {"expires_in": None}, None),
        (None, {"expires_in": DAY}, NOW + 6 * DAY),
    ],
)
async def test_a_new_key_lives_as_long_as_the_old_one_was_meant_to_unless_told(
    keys, clock, meant, told, expires_at
):
    key = (await settled(keys.issue("u1", expires_in=meant))).key
    clock.now += 5 * DAY
    assert (await settled(keys.rotate(key.id, **told))).key.expires_at == expires_at


async def test_a_chain_of_rotations_can_be_followed(keys, store):
    first = (await settled(keys.issue("u1"))).key
    second = (await settled(keys.rotate(first.id))).key
    third = (await settled(keys.rotate(second.id))).key
    assert store.get(first.id).rotated_to == second.id
    assert (store.get(second.id).rotated_from, store.get(second.id).rotated_to) == (first.id, third.id)
    assert third.rotated_from == second.id


@pytest.mark.parametrize("end", ["revoked", "disabled", "expired", "rotated", "rotated with grace"])
async def test_a_key_that_is_dead_or_was_rotated_is_not_rotated(keys, store, clock, end):
    key = (await settled(keys.issue("u1"))).key
    if end == "revoked":
        await settled(keys.revoke(key.id))
    elif end == "disabled":
        await settled(keys.edit(key.id, disabled=True))
    elif end == "expired":
        clock.now += 365 * DAY
    else:
        await settled(keys.rotate(key.id, grace=DAY if "grace" in end else timedelta(0)))
    before = (store.count(), store.get(key.id))
    with pytest.raises(KeyNotLive, match=key.id):
        await settled(keys.rotate(key.id, grace=DAY))
    assert (store.count(), store.get(key.id)) == before


async def test_a_key_that_ended_before_it_began_is_dead_like_any_other(keys):
    key = (await settled(keys.issue("u1"))).key
    await settled(keys.edit(key.id, expires_at=NOW - DAY))
    with pytest.raises(KeyNotLive):
        await settled(keys.rotate(key.id))


@pytest.mark.parametrize(
    "times",
    [{"grace": -DAY}, {"grace": timedelta.max}, {"expires_in": timedelta(0)}, {"expires_in": timedelta.max}],
)
async def test_a_rotation_with_a_time_that_will_not_do_changes_nothing(keys, store, times):
    key = (await settled(keys.issue("u1"))).key
    with pytest.raises(ValueError, match=r"must not be negative|must be positive|after the year 9999"):
        await settled(keys.rotate(key.id, **times))
    assert store.get(key.id) == key
    assert store.count() == 1


# Races


async def test_an_edit_that_comes_second_is_made_on_what_the_first_one_left(keys, store):
    key = (await settled(keys.issue("u1", name="old"))).key
    store.overtake = lambda current: changed(current, scopes=["a"])
    edited = await settled(keys.edit(key.id, name="new"))
    assert (edited.name, edited.scopes, edited.version) == ("new", ("a",), 3)
    assert store.get(key.id) == edited
    assert store.swaps == 2


async def test_an_edit_never_undoes_a_revocation_that_came_in_between(keys, store):
    key = (await settled(keys.issue("u1"))).key
    store.overtake = lambda current: revoked(current, NOW, "quicker")
    edited = await settled(keys.edit(key.id, name="new"))
    assert (edited.revoked_at, edited.revoked_reason, edited.name) == (NOW, "quicker", "new")


async def test_a_revocation_that_comes_second_leaves_the_first_ones_time_and_reason(keys, store, clock):
    key = (await settled(keys.issue("u1"))).key
    store.overtake = lambda current: revoked(current, NOW - DAY, "quicker")
    gone = await settled(keys.revoke(key.id, reason="slower"))
    assert (gone.revoked_at, gone.revoked_reason, gone.version) == (NOW - DAY, "quicker", 2)


async def test_a_revocation_holds_whatever_else_was_changed_in_between(keys, store):
    key = (await settled(keys.issue("u1"))).key
    store.overtake = lambda current: changed(current, name="new")
    await settled(keys.revoke(key.id))
    assert (store.get(key.id).revoked_at, store.get(key.id).name) == (NOW, "new")


async def test_a_rotation_that_comes_second_gives_the_rights_as_they_are_now(keys, store):
    key = (await settled(keys.issue("u1", scopes=["a", "b"]))).key
    store.overtake = lambda current: changed(current, scopes=["a"])
    issued = await settled(keys.rotate(key.id))
    assert issued.key.scopes == ("a",)
    assert store.get(issued.key.id) == issued.key
    assert store.count() == 2


@pytest.mark.parametrize(
    "overtake",
    [
        lambda current: revoked(current, NOW, "quicker"),
        lambda current: changed(current, disabled=True),
        lambda current: changed(current, rotated_to="k2", grace_until=NOW + DAY),
    ],
)
async def test_a_rotation_is_refused_where_the_key_ended_in_between(keys, store, overtake):
    key = (await settled(keys.issue("u1"))).key
    store.overtake = overtake
    with pytest.raises(KeyNotLive):
        await settled(keys.rotate(key.id))
    assert store.count() == 1


@pytest.mark.parametrize(
    "method",
    [
        lambda keys, key_id: keys.edit(key_id, name="new"),
        lambda keys, key_id: keys.revoke(key_id),
        lambda keys, key_id: keys.rotate(key_id),
    ],
)
async def test_a_key_that_others_keep_changing_is_given_up_in_the_end(keys, store, method):
    key = (await settled(keys.issue("u1", name="old"))).key
    store.overtake, store.times = lambda current: changed(current, metadata={"n": current.version}), 10_000
    with pytest.raises(Conflict, match=f"{key.id}.*kept changing"):
        await settled(method(keys, key.id))
    left = store.get(key.id)
    assert (left.name, left.revoked_at, left.rotated_to) == ("old", None, None)
    assert store.swaps == ATTEMPTS
    assert store.count() == 1


async def test_a_key_that_was_changed_one_time_less_than_that_is_changed(keys, store):
    key = (await settled(keys.issue("u1"))).key
    store.overtake, store.times = lambda current: changed(current, metadata={}), ATTEMPTS - 1
    assert (await settled(keys.revoke(key.id))).revoked_at == NOW


async def test_a_key_that_is_deleted_in_between_is_not_found(keys, store, clock):
    key = (await settled(keys.issue("u1", expires_in=DAY))).key

    def swap(old, new, /, successor=None):
        store.purge(NOW + 2 * DAY)
        return False

    store.swap = swap
    with pytest.raises(KeyNotFound):
        await settled(keys.edit(key.id, name="new"))


# Purging


async def test_what_was_dead_before_a_time_is_deleted_and_counted(keys, store, clock):
    gone = (await settled(keys.issue("u1"))).key
    await settled(keys.revoke(gone.id))
    short = (await settled(keys.issue("u1", expires_in=DAY))).key
    disabled = (await settled(keys.issue("u1", expires_in=None))).key
    await settled(keys.edit(disabled.id, disabled=True))
    assert await settled(keys.purge(NOW)) == 0
    assert await settled(keys.purge(NOW + timedelta(microseconds=1))) == 1
    assert store.get(gone.id) is None
    assert await settled(keys.purge(NOW + 2 * DAY)) == 1
    assert store.get(short.id) is None
    assert store.get(disabled.id) is not None


async def test_a_purged_key_is_forgotten_and_ensured_again(keys, store):
    made = await settled(keys.ensure("u1", name="first"))
    await settled(keys.revoke(made.key.id))
    await settled(keys.purge(NOW + DAY))
    again = await settled(keys.ensure("u1", name="first"))
    assert again.text != made.text
    assert again.key.id == made.key.id


# Stores


class Down(MemoryKeyStore):
    def _fail(self, *args, **kwargs):
        raise StoreUnavailable("down")

    get = add = swap = revoke_all = find = count = purge = _fail


@pytest.mark.parametrize(
    "method",
    [
        lambda keys: keys.issue("u1"),
        lambda keys: keys.ensure("u1", name="first"),
        lambda keys: keys.get("k1"),
        lambda keys: keys.list("u1"),
        lambda keys: keys.find(),
        lambda keys: keys.edit("k1", name="x"),
        lambda keys: keys.revoke("k1"),
        lambda keys: keys.revoke_all(),
        lambda keys: keys.rotate("k1"),
        lambda keys: keys.purge(NOW),
    ],
)
async def test_every_method_says_that_the_store_is_unavailable(make, method):
    with pytest.raises(StoreUnavailable, match="down"):
        await settled(method(make(store=Down())))


async def test_a_key_with_an_id_that_exists_is_not_issued_over_it(keys, store, monkeypatch):
    text = SCHEME.mint()
    monkeypatch.setattr(KeyScheme, "mint", lambda self, key_id=None: text)
    await settled(keys.issue("u1"))
    with pytest.raises(DuplicateKey):
        await settled(keys.issue("u2"))
    assert store.get(text.id).owner == "u1"


def test_a_store_of_the_wrong_colour_is_refused():
    with pytest.raises(ConfigurationError, match="is async"):
        KeyManager(Inline(MemoryKeyStore()))
    with pytest.raises(ConfigurationError, match="is not async"):
        AsyncKeyManager(MemoryKeyStore())


@pytest.mark.parametrize("lacking", ["get", "add", "swap", "revoke_all", "find", "count", "purge"])
def test_a_store_that_lacks_a_method_is_refused_and_the_method_named(make, lacking):
    methods = {"get", "add", "swap", "revoke_all", "find", "count", "purge"} - {lacking}
    poor = type("Poor", (), {name: getattr(MemoryKeyStore, name) for name in methods})
    if lacking == "get":
        with pytest.raises(ConfigurationError, match=r"lacks get\(\)"):
            KeyManager(poor())
        return
    with pytest.raises(ConfigurationError, match=rf"Poor is no store for this: it lacks {lacking}\(\)$"):
        make(store=poor())


@pytest.mark.parametrize("scheme", ["acme", {"prefix": "acme"}, KeyScheme, ""])
def test_what_is_no_scheme_is_refused(make, scheme):
    with pytest.raises(ConfigurationError, match="the scheme is a KeyScheme"):
        make(scheme)


async def test_a_manager_without_scheme_and_clock_takes_the_usual_ones():
    issued = KeyManager(MemoryKeyStore()).issue("u1")
    later = await AsyncKeyManager(Inline(MemoryKeyStore())).issue("u1")
    for each in (issued, later):
        assert each.text.startswith("apikey_")
        assert abs(each.key.created_at - datetime.now(UTC)) < timedelta(minutes=1)
