"""What the tests of this folder that await a store ask of it again and again."""

from typing import Any

from apikey_auth import APIKey, AsyncKeyStore, Revision


async def add_all(store: AsyncKeyStore, *keys: APIKey) -> None:
    for key in keys:
        await store.add(key)


async def everything(store: AsyncKeyStore, **wanted: Any) -> list[APIKey]:
    """Collect what ``find`` lists on all its pages."""
    page = await store.find(**wanted)
    found = [*page.items]
    while page.next is not None:
        page = await store.find(after=page.next, **wanted)
        found.extend(page.items)
    return found


async def revision_of(store: AsyncKeyStore) -> Revision:
    return (await store.changes(None)).revision
