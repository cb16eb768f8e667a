"""What the Redis stores promise beside the contract: their marks, their scripts, their connections."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from apikey_auth.stores.redis import AsyncRedisKeyStore, RedisKeyStore

from .contract import KeyStoreContract, KeyStoreRaces


@pytest.fixture
def namespace() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def redis_store(redis_url: str, namespace: str) -> Iterator[RedisKeyStore]:
    store = RedisKeyStore(redis_url, namespace=namespace)
    yield store
    store.close()


class TestRedisKeyStore(KeyStoreContract):
    @pytest.fixture
    def store(self, redis_store: RedisKeyStore) -> RedisKeyStore:
        return redis_store


class TestAsyncRedisKeyStore(KeyStoreContract):
    @pytest.fixture
    async def store(self, redis_url: str, namespace: str) -> AsyncIterator[AsyncRedisKeyStore]:
        store = AsyncRedisKeyStore(redis_url, namespace=namespace)
        yield store
        await store.close()


class TestRedisKeyStoreRaces(KeyStoreRaces):
    @pytest.fixture
    def store(self, redis_store: RedisKeyStore) -> RedisKeyStore:
        return redis_store


class TestCluster(KeyStoreContract):
    @pytest.fixture
    def store(self, redis_cluster_url: str, namespace: str) -> Iterator[RedisKeyStore]:
        store = RedisKeyStore(redis_cluster_url, namespace=namespace, cluster=True)
        yield store
        store.close()


class TestAsyncCluster(KeyStoreContract):
    @pytest.fixture
    async def store(self, redis_cluster_url: str, namespace: str) -> AsyncIterator[AsyncRedisKeyStore]:
        store = AsyncRedisKeyStore(redis_cluster_url, namespace=namespace, cluster=True)
        yield store
        await store.close()
