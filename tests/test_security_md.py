"""SECURITY.md names a test for what it says, and each test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "SECURITY.md").read_text()
NAMED = re.compile(r"`([a-z_/]+\.py)::((?:[A-Za-z]\w*::)?\w+)`")


def section(title: str) -> str:
    """Give what stands below a heading."""
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def lines_of(title: str) -> list[list[str]]:
    """Give the cells of the lines of a section's table, without its head."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]


@cache
def names_in(path: str) -> frozenset[str]:
    """Name the tests of a file, those of a class behind its name."""
    names = set()
    for node in ast.parse((TESTS / path).read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        lead = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = (each for each in members if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
        names |= {f"{lead}{each.name}" for each in functions if each.name.startswith("test_")}
    return frozenset(names)


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED.findall(TEXT))))
def test_every_test_that_it_names_exists(path: str, name: str) -> None:
    assert (TESTS / path).is_file()
    assert name in names_in(path)


def test_nothing_else_in_it_looks_like_a_test() -> None:
    assert TEXT.count("::") == sum(1 + name.count("::") for _, name in NAMED.findall(TEXT))


@pytest.mark.parametrize("what", ["read", "send", "stop"])
def test_every_line_of_what_an_attacker_may_do_says_what_then_happens_and_names_a_test(what: str) -> None:
    lines = lines_of(f"What an attacker may {what}")
    assert len(lines) > 5
    for tried, happens, *shown in lines:
        assert happens, tried
        assert NAMED.search(" ".join(shown)), tried


def test_it_names_no_address() -> None:
    assert "@" not in TEXT
    assert "://" not in TEXT
