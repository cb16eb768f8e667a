"""What a key may do and how it changes: each rule at its edge, the clock given."""

import dataclasses
import itertools
import pickle
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikey_auth.decisions import (
    Identity,
    Owner,
    changed,
    check_request,
    client_address,
    dead_before,
    expiry,
    identify,
    is_of,
    judge,
    lifetime,
    missing_scopes,
    networks,
    newest_last,
    revoked,
    rotated,
    state,
)
from apikey_auth.errors import (
    AddressNotAllowed,
    ConfigurationError,
    DisabledKey,
    ExpiredKey,
    InactiveUser,
    InsufficientScope,
    InvalidKey,
    KeyNotLive,
    RevokedKey,
)
from apikey_auth.keys import APIKey, KeyScheme

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SCHEME = KeyScheme("acme")
PRESENTED = SCHEME.mint()


def record(**fields):
    usual = {
        "id": PRESENTED.id,
        "owner": "u1",
        "digest": SCHEME.digest(PRESENTED.text),
        "created_at": NOW - 10 * DAY,
    }
    return APIKey(**{**usual, **fields})


# Judging


@pytest.mark.parametrize(
    ("wrong", "is_revoked", "disabled", "expired", "past_grace"),
    list(itertools.product([False, True], repeat=5)),
)
def test_the_first_reason_in_the_order_of_the_design_is_the_one_given(
    wrong, is_revoked, disabled, expired, past_grace
):
    key = record(
        digest=SCHEME.digest("another text") if wrong else SCHEME.digest(PRESENTED.text),
        revoked_at=NOW - DAY if is_revoked else None,
        disabled=disabled,
        expires_at=NOW if expired else NOW + DAY,
        grace_until=NOW if past_grace else NOW + DAY,
    )
    reasons = [
        (wrong, InvalidKey),
        (is_revoked, RevokedKey),
        (disabled, DisabledKey),
        (expired or past_grace, ExpiredKey),
    ]
    expected = next((reason for holds, reason in reasons if holds), None)
    if expected is None:
        assert judge(key, is_of(PRESENTED, key, SCHEME), NOW) is key
    else:
        with pytest.raises(expected) as caught:
            judge(key, is_of(PRESENTED, key, SCHEME), NOW)
        assert type(caught.value) is expected


def test_an_unknown_key_and_a_wrong_secret_are_told_in_the_same_words():
    said = []
    for key in (None, record(digest=SCHEME.digest("another text"))):
        with pytest.raises(InvalidKey) as caught:
            judge(key, is_of(PRESENTED, key, SCHEME), NOW)
        said.append((type(caught.value), str(caught.value), caught.value.detail, caught.value.args))
    assert said[0] == said[1]


def test_an_unknown_key_stays_unknown_even_where_its_digest_is_the_stand_in():
    class Gullible(KeyScheme):
        def matches(self, digest, text):
            return True

    with pytest.raises(InvalidKey):
        judge(None, is_of(PRESENTED, None, Gullible("acme")), NOW)


@pytest.mark.parametrize("field", ["expires_at", "grace_until"])
@pytest.mark.parametrize(
    ("end", "refusal"), [(NOW - TICK, ExpiredKey), (NOW, ExpiredKey), (NOW + TICK, None)]
)
def test_a_key_is_good_until_the_microsecond_before_its_end(field, end, refusal):
    assert state(record(**{field: end}), NOW) is refusal


def test_a_time_zone_is_no_longer_life():
    there = timezone(timedelta(hours=-8))
    assert state(record(expires_at=NOW.astimezone(there)), NOW) is ExpiredKey
    assert state(record(expires_at=(NOW + TICK).astimezone(there)), NOW) is None
    assert state(record(expires_at=NOW), NOW.astimezone(there)) is ExpiredKey


def test_grace_never_extends_a_life():
    assert state(record(expires_at=NOW, grace_until=NOW + DAY), NOW) is ExpiredKey


def test_grace_ends_a_life_early():
    assert state(record(expires_at=NOW + DAY, grace_until=NOW), NOW) is ExpiredKey


def test_a_key_without_end_never_expires():
    assert state(record(), datetime.max.replace(tzinfo=UTC)) is None


def test_a_key_revoked_later_than_now_is_revoked_all_the_same():
    assert state(record(revoked_at=NOW + DAY), NOW) is RevokedKey


# Users


@pytest.mark.parametrize(
    "user",
    [
        SimpleNamespace(is_active=True),
        SimpleNamespace(is_active=lambda: True),
        SimpleNamespace(is_active=1),
        SimpleNamespace(),
        "a name",
        0,
        {},
        Owner("u1"),
    ],
)
def test_a_user_who_is_active_or_does_not_say_is_let_in(user):
    identity = identify(record(), user)
    assert identity.user is user
    assert identity.key == record()
    assert identity.stale is False


@pytest.mark.parametrize(
    "user",
    [
        None,
        SimpleNamespace(is_active=False),
        SimpleNamespace(is_active=lambda: False),
        SimpleNamespace(is_active=None),
        SimpleNamespace(is_active=0),
    ],
)
def test_no_user_or_one_who_is_not_active_ends_the_key(user):
    with pytest.raises(InactiveUser):
        identify(record(), user)


def test_an_owner_is_what_frameworks_expect_of_a_user():
    owner = Owner("u1")
    assert (owner.is_authenticated, owner.is_active, owner.is_anonymous) == (True, True, False)
    assert (owner.identity, owner.display_name, owner.get_id(), str(owner), owner.id) == ("u1",) * 5
    assert pickle.loads(pickle.dumps(owner)) == owner
    assert not hasattr(owner, "__dict__")


def test_something_to_await_in_the_place_of_a_user_lets_nobody_in():
    class Awaitable:
        def __await__(self):
            return iter(())

    with pytest.raises(ConfigurationError, match="must be 'async def' itself"):
        identify(record(), Awaitable())


def test_a_coroutine_in_the_place_of_a_user_is_closed_so_that_the_mistake_is_told_once():
    async def load():
        return Owner("u1")

    coroutine = load()
    with pytest.raises(ConfigurationError):
        identify(record(), coroutine)
    assert coroutine.cr_frame is None


# Scopes


@pytest.mark.parametrize(
    ("held", "required", "missing"),
    [
        (None, [], ()),
        (None, ["a", "b"], ()),
        ((), [], ()),
        ((), ["a", "b"], ("a", "b")),
        (("a",), ["a"], ()),
        (("a",), ["b", "a", "c"], ("b", "c")),
        (("a", "b"), ["b"], ()),
        (("A",), ["a"], ("a",)),
        (("reports",), ["reports:read"], ("reports:read",)),
        (("reports:*",), ["reports:read"], ("reports:read",)),
    ],
)
def test_none_means_all_nothing_means_nothing_and_a_list_means_that_list(held, required, missing):
    key = record(scopes=held)
    identity = Identity(None, key)
    assert missing_scopes(key, required) == missing
    assert identity.scopes == held
    assert identity.has_scopes(*required) is (not missing)
    if missing:
        for ask in (lambda: identity.require(*required), lambda: check_request(key, None, iter(required))):
            with pytest.raises(InsufficientScope) as caught:
                ask()
            assert caught.value.missing == missing
    else:
        assert identity.require(*required) is None
        assert check_request(key, None, iter(required)) is None


def test_an_identity_is_a_frozen_value():
    identity = Identity(Owner("u1"), record())
    with pytest.raises(dataclasses.FrozenInstanceError):
        identity.user = Owner("u2")
    assert not hasattr(identity, "__dict__")
    assert pickle.loads(pickle.dumps(identity)) == identity
    assert record().digest not in repr(identity)


# Addresses


@pytest.mark.parametrize(
    ("blocks", "address", "allowed"),
    [
        (None, "192.0.2.1", True),
        (None, None, True),
        (None, "junk", True),
        ([], "192.0.2.1", False),
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "11.0.0.0", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:11.1.2.3", False),
        (["10.0.0.0/8"], "::10.1.2.3", False),
        (["192.0.2.1"], "192.0.2.1", True),
        (["192.0.2.1"], "192.0.2.2", False),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32"], "2001:DB8:0:0::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["::/0"], "192.0.2.1", False),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["192.0.2.0/24", "::1"], "::1", True),
        (["0.0.0.0/0", "::/0"], None, False),
        (["0.0.0.0/0", "::/0"], "", False),
        (["0.0.0.0/0", "::/0"], "junk", False),
        (["0.0.0.0/0", "::/0"], "192.0.2.1:443", False),
        (["0.0.0.0/0", "::/0"], "[::1]", False),
        (["0.0.0.0/0", "::/0"], "192.0.2.01", False),
        (["0.0.0.0/0", "::/0"], " 192.0.2.1", False),
        (["0.0.0.0/0", "::/0"], "3221225985", False),
        (["0.0.0.0/0", "::/0"], "192.0.2.1\n", False),
        (["0.0.0.0/0", "::/0"], "unknown", False),
        (["0.0.0.0/0", "::/0"], "_hidden", False),
    ],
)
def test_a_key_bound_to_addresses_is_good_from_those_alone(blocks, address, allowed):
    key = record(addresses=blocks)
    if allowed:
        assert check_request(key, address, ()) is None
    else:
        with pytest.raises(AddressNotAllowed):
            check_request(key, address, ())


@given(st.text(max_size=50))
def test_any_text_for_an_address_is_judged_without_an_error(text):
    with pytest.raises(AddressNotAllowed):
        check_request(record(addresses=["203.0.113.77"]), text + "x", ())


def test_the_address_is_judged_before_the_scopes():
    with pytest.raises(AddressNotAllowed):
        check_request(record(addresses=[], scopes=[]), "192.0.2.1", ["a"])


PROXIES = networks(("10.0.0.0/8", "2001:db8::/32"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "unix", "client"),
    [
        # nobody is trusted, or not this peer: the header is what somebody wrote
        ("192.0.2.1", "203.0.113.5", False, "192.0.2.1"),
        ("192.0.2.1", None, False, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.5", True, "192.0.2.1"),
        ("junk", "203.0.113.5", True, "junk"),
        # a named proxy speaks
        ("10.0.0.1", "203.0.113.5", False, "203.0.113.5"),
        ("::ffff:10.0.0.1", "203.0.113.5", False, "203.0.113.5"),
        ("2001:db8::1", "203.0.113.5", False, "203.0.113.5"),
        ("10.0.0.1", None, False, "10.0.0.1"),
        ("10.0.0.1", "", False, "10.0.0.1"),
        # from the right: what the client put in front does not count
        ("10.0.0.1", "198.51.100.9, 203.0.113.5", False, "203.0.113.5"),
        ("10.0.0.1", "10.0.0.9, 203.0.113.5", False, "203.0.113.5"),
        ("10.0.0.1", "198.51.100.9,203.0.113.5,10.0.0.2", False, "203.0.113.5"),
        ("10.0.0.1", "198.51.100.9 ,\t203.0.113.5 , 10.0.0.2 ,10.0.0.3", False, "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5, 2001:db8::7", False, "203.0.113.5"),
        # all of them proxies: the leftmost is the client
        ("10.0.0.1", "10.0.0.4, 10.0.0.2", False, "10.0.0.4"),
        # junk ends the walk, and is nobody's address
        ("10.0.0.1", "203.0.113.5, junk", False, "junk"),
        ("10.0.0.1", "203.0.113.5, junk, 10.0.0.2", False, "junk"),
        ("10.0.0.1", "203.0.113.5, unknown, 10.0.0.2", False, "unknown"),
        # a Unix socket has no peer
        (None, "203.0.113.5", True, "203.0.113.5"),
        ("", "198.51.100.9, 203.0.113.5, 10.0.0.2", True, "203.0.113.5"),
        (None, "203.0.113.5", False, None),
        ("", "203.0.113.5", False, None),
        (None, None, True, None),
        ("", None, True, None),
    ],
)
def test_forwarded_addresses_count_behind_named_proxies_and_from_the_right(peer, forwarded, unix, client):
    assert client_address(peer, forwarded, PROXIES, unix) == client


def test_without_named_proxies_a_header_never_counts():
    assert client_address("10.0.0.1", "203.0.113.5", (), False) == "10.0.0.1"


@pytest.mark.parametrize("forwarded", ["203.0.113.5, ", ",", " ", ", 10.0.0.2"])
def test_an_empty_hop_is_nobodys_address(forwarded):
    key = record(addresses=["0.0.0.0/0", "::/0"])
    with pytest.raises(AddressNotAllowed):
        check_request(key, client_address("10.0.0.1", forwarded, PROXIES, False), ())


@given(st.lists(st.sampled_from(["198.51.100.9", "10.9.9.9", "junk", ""]), max_size=4))
def test_what_a_client_writes_into_the_header_never_changes_its_address(written):
    forwarded = ", ".join([*written, "203.0.113.5", "10.0.0.2"])
    assert client_address("10.0.0.1", forwarded, PROXIES, False) == "203.0.113.5"


# Changes


def test_a_lifetime_is_added_to_now_and_none_is_never():
    assert expiry(NOW, DAY) == NOW + DAY
    assert expiry(NOW, TICK) == NOW + TICK
    assert expiry(NOW, None) is None


@pytest.mark.parametrize("span", [timedelta(0), -TICK, -DAY])
def test_a_lifetime_that_is_not_positive_is_refused(span):
    with pytest.raises(ValueError, match="expires_in must be positive"):
        expiry(NOW, span)


@pytest.mark.parametrize("span", [timedelta.max, timedelta(days=3_000_000)])
def test_a_time_after_the_year_9999_is_refused(span):
    with pytest.raises(ValueError, match="after the year 9999"):
        expiry(NOW, span)
    with pytest.raises(ValueError, match="after the year 9999"):
        rotate(record(), grace=span)


def test_a_change_makes_the_next_version_of_the_same_key():
    key = record(version=4, name="old")
    assert changed(key, name="new") == dataclasses.replace(key, name="new", version=5)
    assert key.name == "old"


def test_revoking_notes_when_and_why():
    key = record(version=4)
    assert revoked(key, NOW, "left") == dataclasses.replace(
        key, revoked_at=NOW, revoked_reason="left", version=5
    )


def test_what_is_revoked_keeps_its_time_and_reason():
    assert revoked(record(revoked_at=NOW - DAY, revoked_reason="first"), NOW, "second") is None


def rotate(key, grace=timedelta(0), life=None):
    return rotated(key, NEXT, "sha256$$ff", NOW, grace, life)


NEXT = SCHEME.mint()
RIGHTS = {
    "name": "CI",
    "scopes": ("a",),
    "addresses": ("10.0.0.0/8",),
    "created_by": "u0",
    "metadata": {"a": [1]},
    "rotated_from": "k0",
    "expires_at": NOW + DAY,
    "last_used_at": NOW - DAY,
    "version": 9,
}


def test_a_successor_has_the_rights_of_the_old_key_and_a_life_of_its_own():
    key = record(**RIGHTS)
    _, successor = rotate(key, life=7 * DAY)
    assert successor == dataclasses.replace(
        key,
        id=NEXT.id,
        digest="sha256$$ff",
        prefix="acme",
        last4=NEXT.last4,
        created_at=NOW,
        expires_at=NOW + 7 * DAY,
        rotated_from=key.id,
        rotated_to=None,
        grace_until=None,
        last_used_at=None,
        version=1,
    )


@pytest.mark.parametrize("grace", [timedelta(0), TICK, DAY, 30 * DAY])
def test_the_old_key_goes_on_for_its_grace_and_changes_in_nothing_else(grace):
    key = record(**RIGHTS)
    old, _ = rotate(key, grace=grace)
    assert old == dataclasses.replace(key, rotated_to=NEXT.id, grace_until=NOW + grace, version=10)


def test_a_rotation_without_grace_ends_the_old_key_at_once():
    old, successor = rotate(record())
    assert state(old, NOW) is ExpiredKey
    assert state(successor, NOW) is None


def test_a_grace_beyond_the_old_keys_end_does_not_extend_it():
    old, _ = rotate(record(expires_at=NOW + DAY), grace=30 * DAY)
    assert state(old, NOW + DAY - TICK) is None
    assert state(old, NOW + DAY) is ExpiredKey


def test_a_successor_never_inherits_the_end_of_a_grace():
    _, successor = rotate(record(grace_until=NOW + DAY))
    assert successor.grace_until is None


def test_a_negative_grace_is_refused():
    with pytest.raises(ValueError, match="grace must not be negative"):
        rotate(record(), grace=-TICK)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"revoked_at": NOW - DAY}, "revoked"),
        ({"disabled": True}, "disabled"),
        ({"expires_at": NOW}, "expired"),
        ({"grace_until": NOW}, "expired"),
        ({"rotated_to": "k2", "grace_until": NOW + DAY}, "rotated already, to 'k2'"),
    ],
)
def test_a_key_that_is_dead_or_was_rotated_before_is_not_rotated(fields, said):
    with pytest.raises(KeyNotLive, match=said):
        rotate(record(**fields), grace=DAY)


def test_what_is_wrong_with_the_key_is_told_before_what_is_wrong_with_the_new_life():
    with pytest.raises(KeyNotLive):
        rotate(record(disabled=True), life=-DAY)
    with pytest.raises(ValueError, match="expires_in must be positive"):
        rotate(record(), life=-DAY)


def test_a_key_was_meant_to_live_from_its_making_to_its_end():
    assert lifetime(record(created_at=NOW, expires_at=NOW + 7 * DAY)) == 7 * DAY
    assert lifetime(record()) is None


def test_keys_are_sorted_by_age_and_those_of_one_moment_by_id():
    keys = [
        record(id=name, created_at=NOW + day * DAY) for name, day in [("b", 1), ("c", 0), ("a", 1), ("d", -1)]
    ]
    assert [key.id for key in newest_last(keys)] == ["d", "c", "a", "b"]


@pytest.mark.parametrize(
    ("fields", "dead"),
    [
        ({}, False),
        ({"disabled": True}, False),
        ({"expires_at": NOW - TICK}, True),
        ({"expires_at": NOW}, False),
        ({"revoked_at": NOW - TICK}, True),
        ({"revoked_at": NOW}, False),
        ({"grace_until": NOW - TICK}, True),
        ({"grace_until": NOW}, False),
        ({"expires_at": NOW + DAY, "revoked_at": NOW - TICK}, True),
        ({"expires_at": NOW - TICK, "grace_until": NOW + DAY}, True),
    ],
)
def test_a_key_is_dead_for_good_once_it_is_revoked_expired_or_past_its_grace(fields, dead):
    assert dead_before(record(**fields), NOW) is dead
