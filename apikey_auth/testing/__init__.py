"""What proves a store, and what applications need for their own tests. Needs ``apikey_auth[testing]``.

The whole test file of a store::

    import pytest
    from apikey_auth.testing import KeyStoreContract
    from my_store import MyStore

    class TestMyStore(KeyStoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path / "keys")

The store may be of either colour, and no plugin of pytest is needed. ``KeyReaderContract`` is for a store
that has ``get`` alone.

In the tests of an application::

    clock, store = FakeClock(), UnreliableStore(MemoryKeyStore())
    auth = Authenticator(store, clock=clock)
    client.get("/reports", headers=headers_for("ada", auth, scopes=["reports:read"]))
    clock.advance(timedelta(days=366))     # the key has expired
    store.fail("get")                      # 503, not 401
"""

try:
    import hypothesis as _  # noqa: F401
    import pytest
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "apikey_auth.testing needs pytest and hypothesis: pip install 'apikey_auth[testing]'"
    ) from error

# Before they are imported: an assertion that fails shall show its values, as those of a test file do.
pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("contract", "model", "races", "reader", "sentences"))
)

from .contract import KeyStoreContract  # noqa: E402
from .doubles import FakeClock, UnreliableStore, headers_for, key_for  # noqa: E402
from .reader import KeyReaderContract  # noqa: E402

__all__ = [
    "FakeClock",
    "KeyReaderContract",
    "KeyStoreContract",
    "UnreliableStore",
    "headers_for",
    "key_for",
]
