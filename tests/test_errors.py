"""The exception tree: what its docstring draws is what the classes are."""

import inspect
import pickle
import re

import pytest

from apikey_auth import errors
from apikey_auth.errors import (
    APIKeyAuthError,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    DuplicateKey,
    InsufficientScope,
    InvalidKey,
    KeyNotFound,
    KeyNotLive,
    Refusal,
    StoreUnavailable,
)

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException)
}
ANSWERED = [
    cls for cls in CLASSES.values() if issubclass(cls, Refusal) and cls not in (Refusal, AuthenticationError)
]


def drawn():
    """Read the tree in the docstring: a line is (name, parent, what stands behind the name)."""
    path = []
    for line in inspect.cleandoc(errors.__doc__).splitlines():
        if match := re.fullmatch(
            r"(?P<lead>    (?:[│ ]   )*(?:[├└]── )?)(?P<name>[A-Z]\w+)\s*(?P<rest>.*)", line
        ):
            depth = (len(match["lead"]) - 4) // 4
            path[depth:] = [match["name"]]
            yield match["name"], path[depth - 1] if depth else None, match["rest"]


def made(cls):
    if cls is InsufficientScope:
        return cls(["reports:read", "reports:write"])
    return cls("something") if cls in (KeyNotFound, DuplicateKey) else cls()


def test_the_docstring_draws_every_class_under_its_base_and_no_other():
    tree = {name: parent for name, parent, _ in drawn()}
    bases = {
        name: None if cls is APIKeyAuthError else cls.__bases__[0].__name__ for name, cls in CLASSES.items()
    }
    assert tree == bases


def test_the_docstring_tells_each_refusals_status_and_code():
    told = {name: rest.split() for name, _, rest in drawn() if re.match(r"\d{3}", rest)}
    assert told == {cls.__name__: [str(cls.status), cls.code] for cls in ANSWERED}


def test_every_refusal_has_a_code_of_its_own_and_a_status_that_http_knows():
    assert len({cls.code for cls in ANSWERED}) == len(ANSWERED)
    assert {cls.status for cls in ANSWERED} == {400, 401, 403, 503}


@pytest.mark.parametrize("cls", ANSWERED)
def test_every_refusal_has_one_sentence_for_the_client(cls):
    assert re.fullmatch(r"[A-Z][^.]+\.", made(cls).detail)


def test_an_unavailable_store_is_never_caught_as_a_bad_key():
    assert not issubclass(StoreUnavailable, AuthenticationError)
    assert issubclass(StoreUnavailable, Refusal)
    assert StoreUnavailable().retry_after >= 1


def test_what_is_wrong_with_the_application_is_no_refusal():
    for cls in (ConfigurationError, KeyNotFound, KeyNotLive, DuplicateKey, Conflict):
        assert not issubclass(cls, Refusal)


def test_an_unknown_key_is_a_lookup_error_as_an_unknown_item_of_a_mapping_is():
    assert issubclass(KeyNotFound, LookupError)


@pytest.mark.parametrize("cls", ANSWERED)
def test_a_refusal_without_a_reason_reads_as_its_detail(cls):
    assert str(made(cls)) == made(cls).detail


def test_a_reason_is_for_the_log_and_leaves_the_clients_sentence_alone():
    refusal = StoreUnavailable("the database at 10.0.0.5 is down")
    assert str(refusal) == "the database at 10.0.0.5 is down"
    assert refusal.detail == StoreUnavailable.detail


def test_a_missing_scope_is_named():
    refusal = InsufficientScope(scope for scope in ("reports:read", "reports:write"))
    assert refusal.missing == ("reports:read", "reports:write")
    assert refusal.detail == "The API key lacks the scope reports:read reports:write."
    assert str(refusal) == refusal.detail


def test_two_refusals_for_different_scopes_keep_their_sentences_apart():
    first, second = InsufficientScope(["a"]), InsufficientScope(["b"])
    assert (first.detail, second.detail) == (
        "The API key lacks the scope a.",
        "The API key lacks the scope b.",
    )


def test_a_key_that_is_not_there_or_there_already_is_named():
    assert str(KeyNotFound("abc'x")) == 'no API key has the id "abc\'x"'
    assert str(DuplicateKey("abc")) == "an API key with the id 'abc' exists already"
    assert KeyNotFound("abc").key_id == DuplicateKey("abc").key_id == "abc"


@pytest.mark.parametrize(
    "text", ["acme_id", "0123456789abcdef" * 2, "w6WLaExU.8cXwYZuLUxLc", "12|8cXwYZuLUxLcK"]
)
def test_a_text_that_is_given_for_an_id_is_not_repeated(text):
    assert (
        str(KeyNotFound(text)) == "no API key has this id; is it the key's text? Its id is in issued.key.id"
    )
    assert text not in repr(KeyNotFound(text))


@pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES.values() if cls not in (Refusal, AuthenticationError)]
)
def test_every_error_survives_pickling(cls):
    error = made(cls)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def test_a_keys_text_that_was_given_for_its_id_is_not_repeated():
    said = str(KeyNotFound("acme_4fRk0TzQ9bVw_secret"))
    assert "secret" not in said
    assert "issued.key.id" in said


def test_one_scope_as_text_is_one_scope():
    assert InsufficientScope("reports:read").missing == ("reports:read",)


def test_pickling_keeps_a_reason_and_a_changed_retry_after():
    error = StoreUnavailable("late")
    error.retry_after = 30
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.retry_after) == ("late", 30)


def test_one_except_clause_catches_whatever_this_library_raises():
    for cls in CLASSES.values():
        assert issubclass(cls, APIKeyAuthError)


def test_no_error_text_needs_the_key():
    with pytest.raises(InvalidKey, match=r"^The API key is not valid\.$"):
        raise InvalidKey
