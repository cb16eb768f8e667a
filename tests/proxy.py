"""A TCP link on 127.0.0.1 between a client and a server, which a test can cut, slow down and heal."""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from apikey_auth.testing.drive import EventLoop


@dataclass(eq=False)
class _Connection:
    """A client's connection and the server's. Either writer may be at its end while the other is not."""

    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter

    def reset(self) -> None:
        _reset(self.to_client)
        _reset(self.to_server)


class Link:
    """Passes bytes on to a port, as an event loop in a thread of its own has time for it.

    Whatever is done to it has been done when the method returns, to the connections that are there and to
    those that come.
    """

    def __init__(self, loop: EventLoop, server_port: int) -> None:
        self._loop, self._server_port = loop, server_port
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refuses = self._ends = False
        self._delay = 0.0

    @property
    def port(self) -> int:
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def drop(self) -> None:
        """Reset all connections; those who connect are reset at once."""
        self._do(self._drop)

    def half_close(self) -> None:
        """End what comes from the server, as if it had said all; what is sent to it still arrives."""
        self._do(self._half_close)

    def blackhole(self) -> None:
        """Let nothing arrive any more, in either direction; what was sent arrives when the link is healed."""
        self._do(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Let what the server sends arrive so much later."""
        self._delay = seconds

    def heal(self) -> None:
        """Pass on what comes. What was reset or ended stays so."""
        self._do(self._heal)

    def _drop(self) -> None:
        self._refuses = True
        for connection in self._connections:
            connection.reset()

    def _half_close(self) -> None:
        self._ends = True
        for connection in self._connections:
            connection.to_client.write_eof()

    def _heal(self) -> None:
        self._refuses = self._ends = False
        self._delay = 0.0
        self._open.set()

    def _do(self, change: Callable[[], None]) -> None:
        async def call() -> None:
            change()

        self._loop.run(call)

    async def _start(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _stop(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._join(reader, to_client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Connect a client with the server, until both have said all or one breaks off."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        connection = _Connection(to_client, to_server)
        if self._refuses:
            connection.reset()
            return
        self._connections.add(connection)
        if self._ends:
            to_client.write_eof()
        try:
            await asyncio.gather(
                self._pass(from_client, to_server), self._pass(from_server, to_client, back=True)
            )
        except OSError:
            pass  # one of them broke off, and the other is told so
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool = False
    ) -> None:
        ended = False
        while not ended:
            data = await reader.read(65536)
            ended = not data
            if back and self._delay:
                await asyncio.sleep(self._delay)
            await self._open.wait()
            with suppress(RuntimeError):  # it was half-closed: there is nowhere to pass anything on to
                writer.write(data)
            await writer.drain()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once, with RST in the place of FIN."""
    found = writer.get_extra_info("socket")
    with suppress(OSError):  # it was closed before
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def linked(server_port: int) -> Iterator[Link]:
    """Make a link to a server until the end of the block."""
    with EventLoop() as loop:
        link = Link(loop, server_port)
        loop.run(link._start)
        try:
            yield link
        finally:
            loop.run(link._stop)
