"""The tree of DESIGN section 2, read from the sources: who imports whom, what is public, and the twins."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import apikey_auth

PACKAGE = Path(apikey_auth.__file__).parent
SOURCES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in SOURCES.items()}

# What each module may import of this package; a line may name only what stands above it.
CORE = {
    "errors": set(),
    "forking": set(),
    "hashing": {"errors"},
    "formats": {"errors", "hashing"},
    "layout": set(),
    "hints": {"errors", "layout"},
    "keys": {"errors", "hashing", "formats", "hints", "layout"},
    "decisions": {"errors", "hashing", "keys"},
    "credentials": {"errors"},
    "responses": {"errors", "credentials"},
    "stores": set(),
    "stores.protocol": {"errors", "keys"},
    "cache": {"errors", "forking", "keys", "stores.protocol"},
    "policy": {"cache", "errors", "keys", "decisions", "credentials", "responses"},
    "imports": {"errors", "formats", "keys", "stores.protocol"},
    "events": {"errors", "forking", "keys", "stores.protocol"},
    "manage": {"errors", "events", "formats", "keys", "decisions", "imports", "stores.protocol"},
    "eviction": {"cache", "errors", "keys", "stores.protocol"},
    "flights": {"forking"},
    "breaker": {"errors", "forking"},
    "exposure": {"forking"},
    "usage": {"errors", "forking", "keys", "stores.protocol"},
    "authenticate": {
        *(
            "breaker",
            "cache",
            "exposure",
            "errors",
            "eviction",
            "flights",
            "keys",
            "decisions",
            "policy",
            "manage",
            "stores.protocol",
            "events",
            "usage",
        ),
    },
    "management.rights": {"keys"},
    "management.handler": {"credentials", "errors", "policy", "responses", "management.rights"},
    "management.bodies": {"management.handler"},
    "management.actions": {
        *("decisions", "errors", "keys", "manage", "stores.protocol"),
        *("management.handler", "management.rights"),
    },
    "management.sensenet": {
        *("decisions", "errors", "keys", "responses"),
        *("management.actions", "management.bodies", "management.handler", "management.rights"),
    },
    "management.values": {"keys", "management.handler"},
    "management.openapi": {"credentials", "keys", "management.values"},
    "management.rest": {
        *("errors", "keys", "responses", "management.actions", "management.handler"),
        *("management.openapi", "management.rights", "management.values"),
    },
    "management": {
        *("management.handler", "management.rest", "management.rights", "management.sensenet"),
    },
    "logs": {"errors", "credentials", "keys", "layout"},
}
STORES = {"errors", "forking", "keys", "hashing", "decisions", "stores.protocol", "stores.bridges"}
ADAPTERS = {
    # adapter: the frameworks that it may import
    "wsgi": set(),
    "asgi": set(),
    "starlette": {"starlette"},
    "fastapi": {"fastapi", "starlette"},
    "flask": {"flask", "werkzeug"},
    "django": {"django", "asgiref"},
}
BENEATH = {
    # adapter: the adapters that it builds on
    "wsgi": set(),
    "asgi": set(),
    "starlette": {"asgi"},
    "fastapi": {"asgi", "starlette"},
    "flask": {"wsgi"},
    "django": {"wsgi", "asgi"},
}
DRIVERS = {
    "stores.memory": set(),
    "stores.bridges": set(),
    "stores.opening": set(),
    "stores.sql": set(),
    "stores.sql.schema": {"sqlalchemy"},
    "stores.sql.failures": {"sqlalchemy"},
    "stores.sql.operations": {"sqlalchemy"},
    "stores.sql.psycopg": {"psycopg"},
    "stores.sql.engines": {"sqlalchemy"},
    "stores.sql.turns": set(),
    "stores.sql.database": {"sqlalchemy"},
    "stores.sql.store": {"sqlalchemy"},
    "stores.redis": {"redis"},
}
EXPORTERS = {
    # module: the library that it counts with
    "prometheus": {"prometheus_client"},
    "opentelemetry": {"opentelemetry"},
}
DEPENDENCIES = {"itsdangerous"}
KIT = {"pytest", "hypothesis"}  # what the kit for tests may import, beside the core and the reference store
ADAPTERS_STORES = {
    # the settings name a store, and Django's own is one
    "django.conf": {"stores.bridges", "stores.opening", "stores.protocol"},
    "django.store": {"stores.protocol"},
}


def adapter_of(module):
    return module.partition(".")[0] if module.partition(".")[0] in ADAPTERS else None


def in_kit(module):
    return module.partition(".")[0] == "testing"


def imports(module):
    """List the absolute names of what a module imports, wherever in it the import stands."""
    path = MODULES[module]
    package = ["apikey_auth", *module.split(".")][: None if path.name == "__init__.py" else -1]
    if module == "__init__":
        package = ["apikey_auth"]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                whole = [*source[1:], alias.name]
                yield ".".join([*source, alias.name] if ".".join(whole) in MODULES else source)


def own(module):
    """List the modules of this package that a module imports."""
    found = {name.removeprefix("apikey_auth.") for name in imports(module) if name.startswith("apikey_auth.")}
    return found | ({"__init__"} if "apikey_auth" in imports(module) else set())


def foreign(module):
    """List the packages outside the standard library that a module imports."""
    tops = {name.partition(".")[0] for name in imports(module)}
    return tops - set(sys.stdlib_module_names) - {"apikey_auth"}


def test_every_module_has_its_place_in_the_tree():
    placed = {*CORE, *DRIVERS, *EXPORTERS, "__init__"}
    assert {
        module for module in MODULES if module not in placed and not adapter_of(module) and not in_kit(module)
    } == set()


def test_the_table_itself_runs_one_way():
    above = set()
    for module, allowed in CORE.items():
        assert allowed <= above
        above.add(module)


@pytest.mark.parametrize("module", CORE)
def test_a_core_module_imports_only_what_stands_above_it(module):
    assert own(module) <= CORE[module]


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_framework_and_no_driver(module):
    assert foreign(module) <= DEPENDENCIES


@pytest.mark.parametrize("module", [each for each in DRIVERS if each in MODULES])
def test_a_store_knows_records_and_errors_and_its_own_driver_and_nothing_of_http(module):
    beside = {each for each in own(module) if each.startswith("stores.sql.")}
    assert own(module) - (beside if module.startswith("stores.sql") else set()) <= STORES
    assert foreign(module) <= DRIVERS[module]


@pytest.mark.parametrize("module", [each for each in EXPORTERS if each in MODULES])
def test_an_exporter_knows_events_and_its_own_library(module):
    assert own(module) <= {"events"}
    assert foreign(module) <= EXPORTERS[module]


@pytest.mark.parametrize("module", sorted(filter(in_kit, MODULES)))
def test_the_kit_knows_the_core_and_the_reference_store_and_nothing_else(module):
    assert set(filter(lambda each: not in_kit(each), own(module))) <= {
        *CORE,
        "stores.memory",
        "stores.bridges",
    }
    assert foreign(module) <= KIT


@pytest.mark.parametrize("module", sorted(filter(adapter_of, MODULES)))
def test_an_adapter_imports_its_own_framework_and_no_store(module):
    adapter = adapter_of(module)
    stores = {each for each in own(module) if each.partition(".")[0] == "stores"}
    assert stores <= ADAPTERS_STORES.get(module, set())
    assert foreign(module) <= ADAPTERS[adapter]
    assert "__init__" not in own(module)


@pytest.mark.parametrize("module", sorted(filter(adapter_of, MODULES)))
def test_adapters_build_on_the_two_neutral_ones_alone(module):
    others = {adapter_of(each) for each in own(module)} - {None, adapter_of(module)}
    assert others <= BENEATH[adapter_of(module)]


def test_the_public_names_come_from_the_core_and_from_stores_without_a_driver():
    assert own("__init__") <= {*CORE, "stores.memory", "stores.bridges", "stores.opening"}
    assert foreign("__init__") == set()


def test_no_module_imports_itself_by_a_detour():
    order = list(graphlib.TopologicalSorter({module: own(module) for module in MODULES}).static_order())
    assert set(order) == set(MODULES)


def test_importing_the_package_loads_no_framework_and_no_driver_and_does_nothing(tmp_path):
    program = "import sys, apikey_auth; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    assert "apikey_auth" in loaded
    unwanted = {"starlette", "fastapi", "django", "flask", "werkzeug", "asgiref", "anyio"}
    unwanted |= {"sqlalchemy", "aiosqlite", "sqlite3", "redis", "pytest", "hypothesis"}
    unwanted |= {"prometheus_client", "opentelemetry"}
    assert loaded & unwanted == set()
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


PUBLIC = [
    "APIKey",
    "APIKeyAuthError",
    "AddressNotAllowed",
    "AmbiguousKey",
    "AsyncAuthenticator",
    "AsyncKeyManager",
    "AsyncKeyReader",
    "AsyncKeyStore",
    "AuthenticationError",
    "Authenticator",
    "Bearer",
    "Changes",
    "ConfigurationError",
    "Conflict",
    "DisabledKey",
    "DuplicateKey",
    "ExpiredKey",
    "Header",
    "Identity",
    "InThread",
    "InactiveUser",
    "Inline",
    "InsecureTransport",
    "InsufficientScope",
    "InvalidKey",
    "IssuedKey",
    "KeyManager",
    "KeyNotFound",
    "KeyNotLive",
    "KeyReader",
    "KeyScheme",
    "KeyStore",
    "MemoryKeyStore",
    "MissingKey",
    "Owner",
    "Page",
    "Query",
    "Refusal",
    "Revision",
    "RevokedKey",
    "StoreUnavailable",
    "opaque_tokens",
    "open_async_store",
    "open_store",
]


def test_the_public_names_are_these_and_no_others():
    assert sorted(apikey_auth.__all__) == PUBLIC
    assert len(set(apikey_auth.__all__)) == len(apikey_auth.__all__)


def test_every_public_name_is_there():
    namespace = {}
    exec("from apikey_auth import *", namespace)
    assert set(PUBLIC) <= set(namespace)


def test_every_error_is_public():
    from apikey_auth import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in classes if issubclass(getattr(errors, name), Exception)} <= set(PUBLIC)


class Colourless(ast.NodeTransformer):
    """Take the colour out of a source: what then still differs is a difference between twins."""

    def visit_AsyncFunctionDef(self, node):
        fields = {name: getattr(node, name) for name in node._fields}
        return self.visit(ast.FunctionDef(**fields))

    def visit_FunctionDef(self, node):
        return self.generic_visit(self._undocumented(node))

    def visit_ClassDef(self, node):
        node.name = self._name(node.name)
        return self.generic_visit(self._undocumented(node))

    def visit_AsyncWith(self, node):
        return self.generic_visit(ast.With(node.items, node.body))

    def visit_AsyncFor(self, node):
        return self.generic_visit(ast.For(node.target, node.iter, node.body, node.orelse))

    def visit_Await(self, node):
        return self.visit(node.value)

    def visit_Name(self, node):
        return ast.Name(self._name(node.id), node.ctx)

    def visit_Attribute(self, node):
        """``sa.create_engine`` is imported by name in the other colour; an async engine has a ``sync_engine``."""
        if isinstance(node.value, ast.Name) and node.value.id == "sa":
            return ast.Name(node.attr, node.ctx)
        return self.visit(node.value) if node.attr == "sync_engine" else self.generic_visit(node)

    def visit_Subscript(self, node):
        awaitable = isinstance(node.value, ast.Name) and node.value.id == "Awaitable"
        return self.visit(node.slice) if awaitable else self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg == "asynchronous":
            node.value = ast.Constant("either")
        return self.generic_visit(node)

    def visit_Constant(self, node):
        """A type may be written as text."""
        try:
            quoted = ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node
        except SyntaxError:
            return node
        return node if quoted is node else ast.Constant(ast.unparse(self.visit(quoted)))

    @staticmethod
    def _undocumented(node):
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    @staticmethod
    def _name(name):
        return name.removeprefix("Async").replace("_async_", "_")


def colourless(node):
    return ast.unparse(ast.fix_missing_locations(Colourless().visit(node)))


TWINS = [
    ("authenticate", "Authenticator"),
    ("manage", "KeyManager"),
    ("eviction", "EvictingStore"),
    ("stores.sql.store", "SQLKeyStore"),
    ("stores.sql.psycopg", "Connection"),
    ("django.store", "DjangoKeyStore"),
    ("stores.redis", "RedisKeyStore"),
]


def classes(module):
    nodes = ast.parse(MODULES[module].read_text()).body
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize(("module", "name"), [each for each in TWINS if each[0] in MODULES])
def test_the_twins_are_one_text_in_two_colours(module, name):
    found = classes(module)
    one, other = (colourless(found[each]) for each in (name, f"Async{name}"))
    assert one == other


@pytest.mark.parametrize(("module", "name"), [each for each in TWINS if each[0] in MODULES])
def test_the_docstrings_of_twins_say_the_same(module, name):
    def said(node):
        parts = [ast.get_docstring(each) or "" for each in ast.walk(node) if isinstance(each, DOCUMENTED)]
        return [part.replace("an ``Async", "a ``").replace("Async", "") for part in parts][1:]

    found = classes(module)
    assert said(found[name]) == said(found[f"Async{name}"])


DOCUMENTED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_every_class_with_two_colours_is_compared():
    pairs = {
        (module, name.removeprefix("Async"))
        for module in MODULES
        for name in classes(module)
        if name.startswith("Async") and name.removeprefix("Async") in classes(module)
    }
    differ = {("stores.protocol", "KeyReader"), ("stores.protocol", "KeyStore")}
    differ |= {("flights", "Flights"), ("usage", "Uses")}
    assert pairs - differ <= set(TWINS)


def test_the_protocols_of_the_two_colours_have_the_same_methods():
    found = classes("stores.protocol")
    for name in ("KeyReader", "KeyStore"):
        signatures = [
            [
                colourless(method).partition(":\n")[0]
                for method in found[each].body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            for each in (name, f"Async{name}")
        ]
        assert signatures[0] == signatures[1]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_modules_docstring_says_what_it_is_for(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))
