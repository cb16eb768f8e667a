"""What proves the store of ``custom_store.py``: ``pytest examples/test_custom_store.py``.

For a store that keeps keys too, not only reads them, ``KeyStoreContract`` asks for the fixture ``store`` alone.
"""

from pathlib import Path

import pytest
from custom_store import LONG_AGO, SCHEME, TokenStore, add_token, make_table

from apikey_auth import APIKey
from apikey_auth.testing import KeyReaderContract


class TestTokenStore(KeyReaderContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> TokenStore:
        path = str(tmp_path / "tokens.db")
        make_table(path)
        add_token(path, "ada", "abcd")
        return TokenStore(path)

    @pytest.fixture
    def known(self) -> APIKey:
        key_id, digest = SCHEME.parse("abcd").id, SCHEME.digest("abcd")
        return APIKey(key_id, "ada", digest, scopes=("reports:read",), created_at=LONG_AGO)
