"""psycopg's connections, with a deadline for every answer; of itself psycopg waits for as long as it takes."""

from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from typing import Any, TypeVar

from psycopg import AsyncConnection as AsyncBaseConnection
from psycopg import Connection as BaseConnection
from psycopg import OperationalError

T = TypeVar("T")
Steps = Generator[Any, Any, T]


class Late(OperationalError):
    """The server did not answer in time."""


def _within(seconds: float, steps: "Steps[T]") -> "Steps[T]":
    """Play a driver's steps, and give up when they take too long; the driver looks here ten times a second."""
    deadline = monotonic() + seconds
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and monotonic() > deadline:
                raise Late(f"the server did not answer within {seconds:g} s")
            wanted = steps.send(ready)
    except StopIteration as end:
        answer: T = end.value
        return answer


class Connection(BaseConnection[Any]):
    seconds = 5.0

    def wait(self, gen: "Steps[T]", *args: Any, **kwargs: Any) -> T:
        try:
            return super().wait(_within(self.seconds, gen), *args, **kwargs)
        except Late:
            self.close()
            raise


class AsyncConnection(AsyncBaseConnection[Any]):
    seconds = 5.0

    async def wait(self, gen: "Steps[T]", *args: Any, **kwargs: Any) -> T:
        try:
            return await super().wait(_within(self.seconds, gen), *args, **kwargs)
        except Late:
            await self.close()
            raise


def connector(seconds: float) -> Callable[..., Connection]:
    """Give the function that connects, and whose connections wait so long for an answer."""

    def connect(*args: Any, **kwargs: Any) -> Connection:
        connection = Connection.connect(*args, **kwargs)
        connection.seconds = seconds
        return connection

    return connect


def async_connector(seconds: float) -> Callable[..., Awaitable[AsyncConnection]]:
    """Give the function that connects, and whose connections wait so long for an answer."""

    async def connect(*args: Any, **kwargs: Any) -> AsyncConnection:
        connection = await AsyncConnection.connect(*args, **kwargs)
        connection.seconds = seconds
        return connection

    return connect
