"""Whoever guesses learns nothing from the work that a refusal takes: it is the same for an unknown id."""

import asyncio
import sys
from collections import Counter
from dataclasses import replace

import pytest

from apikey_auth import (
    AsyncAuthenticator,
    Authenticator,
    Inline,
    InvalidKey,
    KeyManager,
    KeyScheme,
    MemoryKeyStore,
)
from apikey_auth.formats import KnoxTokens, opaque_tokens
from apikey_auth.layout import CHECK_LENGTH, checksum

OLD, NEW = "a pepper of last year", "a pepper of this year"
SEAL = "a seal key for these tests"
SCHEMES = {
    "plain": KeyScheme("acme"),
    "peppers": KeyScheme("acme", [OLD, NEW]),
    "seals": KeyScheme("acme", seal_keys=[SEAL]),
    "seals and peppers": KeyScheme("acme", [OLD, NEW], seal_keys=[SEAL]),
    "formats": KeyScheme("acme", [NEW], formats=[KnoxTokens(), opaque_tokens(NEW)]),
}
COUNTED = {
    "compare_digest",
    "hmac_digest",
    "openssl_sha256",
    "openssl_sha512",
    "pbkdf2_hmac",
    "crc32",
    "encode",
}


def profiled(call):
    """Count the calls of our functions, and of those that digest and compare, while a key is refused."""
    calls = Counter()

    def note(frame, event, function):
        if event == "call" and frame.f_globals.get("__name__", "").startswith("apikey_auth."):
            calls[frame.f_code.co_qualname] += 1
        elif event == "c_call" and function.__name__ in COUNTED:
            calls[function.__name__] += 1

    sys.setprofile(note)
    try:
        call()
    except InvalidKey:
        pass
    else:
        raise AssertionError("it was let in")
    finally:
        sys.setprofile(None)
    return calls


def wrong(text, place):
    """Change one character of an unsealed key's secret, with a check that fits."""
    at = text.rindex("_") + 1 + place
    other = "0" if text[at] != "0" else "1"
    body = text[:at] + other + text[at + 1 : -CHECK_LENGTH]
    return body + checksum(body)


class World:
    """One key of a scheme, and authenticators of both colours that remember nothing."""

    def __init__(self, scheme, **caching):
        self.scheme, self.store = scheme, MemoryKeyStore()
        self.issued = KeyManager(self.store, scheme).issue("1")
        self.blocking = Authenticator(self.store, scheme, **caching)
        self.asynchronous = AsyncAuthenticator(Inline(self.store), scheme, **caching)

    def work(self, colour, text):
        if colour == "sync":
            return profiled(lambda: self.blocking.authenticate(text))
        with asyncio.Runner() as runner:
            runner.run(quiet())  # what the loop does when it starts is no part of it
            return profiled(lambda: runner.run(self.asynchronous.authenticate(text)))


async def quiet():
    pass


colours = pytest.mark.parametrize("colour", ["sync", "async"])


@colours
@pytest.mark.parametrize("caching", [{"cache_size": 0}, {}], ids=["uncached", "cached"])
@pytest.mark.parametrize("name", SCHEMES)
def test_an_unknown_id_and_a_wrong_secret_cost_the_same_calls(name, caching, colour):
    scheme = SCHEMES[name]
    world = World(scheme, **caching)
    world.work(colour, scheme.mint().text)  # the first of all asks the store what changed
    unknown = world.work(colour, scheme.mint().text)
    known = world.work(colour, scheme.mint(world.issued.key.id).text)
    assert unknown == known
    assert unknown["compare_digest"] == 1 + (1 if scheme.seal_keys else 0)
    assert unknown["MemoryKeyStore.get"] == 1


@colours
@pytest.mark.parametrize("place", [0, 15, 31])
def test_whichever_character_of_the_secret_is_wrong_the_calls_are_the_same(place, colour):
    scheme = SCHEMES["peppers"]
    world = World(scheme, cache_size=0)
    world.work(colour, scheme.mint().text)
    assert world.work(colour, wrong(world.issued.text, place)) == world.work(colour, scheme.mint().text)


@colours
def test_a_key_that_is_dead_and_not_known_whole_costs_what_an_unknown_one_costs(colour):
    scheme = SCHEMES["plain"]
    world = World(scheme, cache_size=0)
    world.blocking.keys.revoke(world.issued.key.id)
    world.work(colour, scheme.mint().text)
    assert world.work(colour, wrong(world.issued.text, 31)) == world.work(colour, scheme.mint().text)


@colours
def test_a_digest_under_an_older_pepper_costs_as_many_digests(colour):
    world = World(SCHEMES["peppers"], cache_size=0)
    digest = KeyScheme("acme", [OLD]).digest(world.issued.text)
    world.store.swap(world.issued.key, replace(world.issued.key, digest=digest, version=2))
    world.work(colour, world.scheme.mint().text)
    known = world.work(colour, wrong(world.issued.text, 0))
    unknown = world.work(colour, world.scheme.mint().text)
    assert {name: known[name] for name in COUNTED} == {name: unknown[name] for name in COUNTED}


@colours
def test_an_opaque_token_that_is_unknown_costs_what_a_wrong_one_of_its_id_would(colour):
    scheme = SCHEMES["formats"]
    world = World(scheme, cache_size=0)
    key = world.issued.key
    world.store.add(replace(key, id=scheme.parse("abcd").id, digest=scheme.digest("another")))
    world.work(colour, "warm")
    assert world.work(colour, "abcd") == world.work(colour, "efgh")


def test_a_seal_is_compared_with_each_seal_key_whichever_fits():
    scheme = KeyScheme("acme", seal_keys=[SEAL, "a seal key of next year"])
    world = World(scheme, cache_size=0)
    texts = [
        KeyScheme("acme", seal_keys=[key]).mint().text for key in (*scheme.seal_keys, "a forger's own key")
    ]
    compared = [
        profiled(lambda text=text: world.blocking.authenticate(text))["compare_digest"] for text in texts
    ]
    assert compared == [3, 3, 2]  # the last one of the first two is that of the digest
