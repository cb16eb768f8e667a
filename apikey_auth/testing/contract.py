"""The contract of a store that does everything: its sentences, its races, and the memory store beside it."""

from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest

from ..decisions import changed
from ..keys import APIKey
from ..stores.protocol import MANAGING
from .drive import Kept
from .model import compare_to_memory
from .races import KeyStoreRaces
from .reader import Calls
from .records import DAY, FULL, NOW, record


class KeyStoreContract(KeyStoreRaces):
    """Proves a store: every sentence of ``KeyStore``, and of the module that it is in. Override ``store``.

    ``store`` gives an empty store of either colour, or a coroutine that makes one: it is awaited on the
    event loop on which an async store's calls run. A store that has ``close`` is closed.
    """

    examples: ClassVar[int] = 40
    """How many sequences of calls are compared to what ``MemoryKeyStore`` answers."""

    _methods = (*MANAGING, "touch", "changes")

    @pytest.fixture
    def known(self, kept: Kept) -> APIKey:
        key = record(**FULL)
        kept.add(key)
        return key

    def _calls(self, kept: Kept, known: APIKey) -> Calls:
        calls: Calls = {
            **super()._calls(kept, known),
            "add": partial(kept.add, replace(known, id="new")),
            "swap": partial(kept.swap, known, changed(known)),
            "a rotation": partial(kept.swap, known, changed(known), successor=replace(known, id="next")),
            "revoke_all": partial(kept.revoke_all, None, NOW, None),
            "find": partial(kept.find, owner=known.owner, live_at=NOW),
            "count": kept.count,
            "purge": partial(kept.purge, NOW - DAY),
            "touch": partial(kept.touch, {known.id: NOW}),
            "changes": partial(kept.changes, None),
        }
        return {name: call for name, call in calls.items() if name not in self.lacks}

    def _failing_calls(self, kept: Kept, known: APIKey) -> Calls:
        return {
            **super()._failing_calls(kept, known),
            "a duplicate": partial(kept.add, known),
            "a duplicate successor": partial(kept.swap, known, changed(known), successor=known),
            "a swap that is late": partial(kept.swap, replace(known, version=1), replace(known, version=2)),
            "a swap to what does not follow": partial(kept.swap, known, known),
            "a page of nothing": partial(kept.find, limit=0),
            "a naive time": partial(kept.purge, NOW.replace(tzinfo=None)),
        }

    def test_a_store_answers_as_the_memory_store_does(self, kept: Kept) -> None:
        compare_to_memory(kept, self.examples)
