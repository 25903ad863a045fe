# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many requests on one connection: what a server may do in between, and what is made of it."""

from __future__ import annotations

import asyncio

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cache.exchange import (
    Answer,
    Base,
    Connection,
    HttpError,
    Trust,
)

LIMIT_S = 0.5


class Purger:
    """Answers requests one after the other, each with its own target, and does what servers do to connections."""

    def __init__(self, last_of: int = 0, says_so: bool = True, rest_s: float = 0.0, hangs_at: int = -1) -> None:
        """Close each connection after so many answers, rest before each answer, never answer the one of a number."""
        self.seen: list[str] = []
        self.connections = 0
        self._last_of, self._says_so, self._rest_s, self._hangs_at = last_of, says_so, rest_s, hangs_at

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        answered = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                target = head.split()[1].decode()
                self.seen.append(target)
                await asyncio.sleep(10 if len(self.seen) - 1 == self._hangs_at else self._rest_s)
                answered += 1
                last = answered == self._last_of
                close = "Connection: close\r\n" if last and self._says_so else ""
                writer.write(f"HTTP/1.1 200 OK\r\n{close}Content-Length: {len(target)}\r\n\r\n{target}".encode())
                await writer.drain()
                if last:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def ask(server: Purger, targets: list[str]) -> list[Answer]:
    """Ask for all targets on one connection."""

    async def work() -> list[Answer]:
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            base = Base("127.0.0.1", port, False, "shop.example.com")
            async with Connection(base, Trust(), LIMIT_S) as connection:
                found: list[Answer] = []

                def take(number: int, answer: Answer) -> None:
                    assert number == len(found)
                    found.append(answer)

                # a test shall fail, not hang
                asked = connection.ask_all([("PURGE", target, {}) for target in targets], take)
                await asyncio.wait_for(asked, 20 * LIMIT_S)
                return found

    return asyncio.run(work())


TARGETS = [f"/{number}" for number in range(10)]


@pytest.mark.parametrize(
    "server",
    [
        Purger(),
        Purger(last_of=3),
        Purger(last_of=3, says_so=False),
        Purger(last_of=1),
        # each answer may take so long, not all of them together
        Purger(rest_s=0.15),
    ],
    ids=["kept open", "closed", "closed without a word", "closed after each", "slow"],
)
def test_each_request_has_its_own_answer_whatever_the_server_does_to_connections(server: Purger) -> None:
    assert [answer.body.decode() for answer in ask(server, TARGETS)] == TARGETS
    assert set(server.seen) == set(TARGETS)


def test_requests_do_not_wait_for_one_another() -> None:
    class Patient(Purger):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # it answers none before it has all
            heads = [await reader.readuntil(b"\r\n\r\n") for _target in TARGETS]
            writer.write(b"".join(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + head.split()[1] for head in heads))
            await writer.drain()
            writer.close()

    assert [answer.body.decode() for answer in ask(Patient(), TARGETS)] == TARGETS


@pytest.mark.parametrize(
    "answer",
    [
        # what has no length ends with the connection, which the time-out closes
        b"HTTP/1.1 200 OK\r\n\r\nhalf of it",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf of it",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
    ids=["without a length", "with a length", "in chunks"],
)
@pytest.mark.parametrize("targets", [TARGETS[:1], TARGETS], ids=["one", "ten"])
def test_an_answer_that_stops_half_way_is_none(answer: bytes, targets: list[str]) -> None:
    class Halting(Purger):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if not self.connections:
                writer.write(answer)
            self.connections += 1
            await asyncio.sleep(6 * LIMIT_S)
            writer.close()

    with pytest.raises(HttpError, match=r"Failed to PURGE /0 on .*: no answer within 0\.5 s"):
        ask(Halting(), targets)


def test_the_limit_goes_on_over_a_connection_that_is_opened_again() -> None:
    class Slowing(Purger):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if not self.connections:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(LIMIT_S - 0.1)
                writer.close()
            self.connections += 1
            await asyncio.sleep(6 * LIMIT_S)

    with pytest.raises(HttpError, match=r"Failed to PURGE /1 on .*: no answer within 0\.5 s"):
        ask(Slowing(), TARGETS)


def test_an_answer_in_chunks_is_read_to_its_end_and_one_that_is_cut_off_is_asked_for_again() -> None:
    class Chunking(Purger):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            for number in range(3):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, ConnectionError):
                    break
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                if number < 2:
                    writer.write(b"1;name=value\r\n/\r\n1\r\n" + head.split()[1][1:] + b"\r\n0\r\nTrailer: x\r\n\r\n")
                await writer.drain()
            writer.close()

    server = Chunking()
    assert [answer.body.decode() for answer in ask(server, TARGETS)] == TARGETS
    assert server.connections == 5


def test_an_answer_that_does_not_come_is_named() -> None:
    with pytest.raises(
        HttpError, match=r"Failed to PURGE /4 on http://127\.0\.0\.1:\d+: no answer within 0\.5 s"
    ) as raised:
        ask(Purger(hangs_at=4), TARGETS)
    assert raised.value.code == "no_response"


def test_a_server_that_closes_before_any_answer_is_not_asked_for_ever() -> None:
    class Closing(Purger):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

    server = Closing()
    with pytest.raises(HttpError, match=r"Failed to PURGE /0 on .*: the connection was lost"):
        ask(server, TARGETS)
    assert server.connections == 1
