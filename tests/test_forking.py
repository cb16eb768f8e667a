"""What is called in a child process, and what is kept for that."""

import gc
import os
import subprocess
import sys
from textwrap import dedent

import pytest
from forks import in_child, needs_fork

from apikey_auth import Authenticator, MemoryKeyStore, forking
from apikey_auth.forking import after_fork

pytestmark = needs_fork


class Object:
    def __init__(self, called: list[str], name: str) -> None:
        self.called, self.name = called, name
        after_fork(self.call, why="a fork")

    def call(self, why: str) -> None:
        self.called.append(f"{self.name} after {why}")


class Failing(Object):
    def call(self, why: str) -> None:
        super().call(why)
        raise RuntimeError(why)


def test_calls_are_called_in_the_child_in_their_order_and_not_in_the_parent() -> None:
    called: list[str] = []
    objects = [Object(called, name) for name in ("one", "two")]
    assert in_child(lambda: called == ["one after a fork", "two after a fork"])
    assert not called
    assert len(objects) == 2


def test_an_object_that_is_gone_is_not_called() -> None:
    called: list[str] = []
    objects = [Object(called, name) for name in ("one", "two")]
    del objects[0]
    gc.collect()
    assert in_child(lambda: called == ["two after a fork"])


def test_the_others_are_called_when_one_fails() -> None:
    called: list[str] = []
    objects = [Object(called, "one"), Failing(called, "two"), Object(called, "three")]
    assert in_child(lambda: called == [f"{name} after a fork" for name in ("one", "two", "three")])
    assert len(objects) == 3


def test_nothing_is_kept_for_authenticators_that_are_gone() -> None:
    def kept() -> int:
        gc.collect()
        return len(forking._in_child)

    before = kept()
    auth = Authenticator(MemoryKeyStore())
    assert kept() > before
    del auth
    assert kept() == before


def test_python_is_asked_once_however_many_objects_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **arguments: asked.append(arguments))
    Object([], "one")
    Authenticator(MemoryKeyStore())
    assert not asked


def test_a_process_ends_without_a_word_while_objects_are_there() -> None:
    program = """
        from apikey_auth.forking import after_fork
        class Object:
            def __init__(self):
                after_fork(self.call)
            def call(self):
                pass
        kept = Object()
    """
    ended = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")
