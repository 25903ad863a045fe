# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The bytes between us and a node: hiredis reads the answers, asyncio carries them.

The asynchronous driver of the library redis takes 15 to 20 microseconds for each answer, and a move of slots consists of little but
short answers: with it the module would use more of the processors than the node that takes the keys.
"""

from __future__ import annotations

import asyncio
import ssl
import typing as t


class ReplyError(Exception):
    """The error that a server answered a command with, as it sent it."""


class Wire(asyncio.Protocol):
    """One connection. Commands of one exchange go out at once; the next one waits for all their answers."""

    def __init__(self) -> None:
        """Begin without a connection; asyncio makes one."""
        import hiredis

        self._reader = hiredis.Reader(replyError=ReplyError)
        self._transport: asyncio.Transport | None = None
        self._wanted = 0
        self._answers: list[t.Any] = []
        self._done: asyncio.Future[list[t.Any]] | None = None
        self._lost: BaseException | None = None

    @classmethod
    async def open(cls, host: str, port: int, context: ssl.SSLContext | None, limit_s: float) -> Wire:
        """Connect.

        :raises OSError: when nothing answers there; :class:`ssl.SSLError` when TLS fails; :class:`TimeoutError` when it takes too long.
        """
        connecting = asyncio.get_running_loop().create_connection(cls, host, port, ssl=context)
        _transport, wire = await asyncio.wait_for(connecting, limit_s)
        return wire

    async def exchange(self, data: bytes, count: int, limit_s: float) -> list[t.Any]:
        """Send commands and return so many answers; one that is an error is a :class:`ReplyError` in its place.

        :raises OSError: when the connection is, or goes, lost; :class:`TimeoutError` when it takes too long.
        """
        if self._lost is not None or self._transport is None:
            raise self._lost or ConnectionError("the connection is closed")
        self._transport.write(data)
        return await self.receive(count, limit_s)

    async def receive(self, count: int, limit_s: float) -> list[t.Any]:
        """Wait for so many answers more. Where that takes too long, those that came are in :meth:`received`."""
        loop = asyncio.get_running_loop()
        self._wanted, self._answers, self._done = count, [], loop.create_future()
        # asyncio.wait_for would make a task of each exchange, which takes longer than the exchange itself
        timer = loop.call_later(limit_s, self._end, TimeoutError())
        try:
            self._read()
            return await self._done
        finally:
            timer.cancel()

    def received(self) -> list[t.Any]:
        """Return what has come of the answers that are waited for."""
        return self._answers

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = t.cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes in."""
        self._reader.feed(data)
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._lost = exc or ConnectionResetError("the connection was closed")
        self._end(self._lost)

    def _end(self, error: BaseException) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def _read(self) -> None:
        if self._done is None or self._done.done():
            return
        answers, gets = self._answers, self._reader.gets
        try:
            while len(answers) < self._wanted:
                answer = gets()
                # no answer of the second version of the protocol is False
                if answer is False:
                    return
                answers.append(answer)
        except Exception as error:
            self._end(ConnectionError(f"what came is no answer of a server ({error})"))
            return
        self._done.set_result(answers)
