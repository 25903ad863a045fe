# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client makes of what comes over the wire: real connections to a listener that answers as each test has it."""

from __future__ import annotations

import asyncio
import collections.abc as c
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import Client, NodeError, ServerError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node

Handler = c.Callable[[asyncio.StreamReader, asyncio.StreamWriter], c.Awaitable[None]]
PASSWORD = "not-to-be-seen"


def ask(handler: Handler, work: c.Callable[[Client], c.Awaitable[t.Any]], **login: t.Any) -> t.Any:
    """Return what ``work`` makes of a client of a listener."""

    async def serve() -> t.Any:
        tasks: list[asyncio.Task[t.Any]] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(t.cast("asyncio.Task[t.Any]", asyncio.current_task()))
            try:
                await handler(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with Client(
                Node("a1", "127.0.0.1", port), Login(**{"tls": False, "timeout_s": 5.0, **login})
            ) as client:
                return await work(client)
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(serve())


def saying(*parts: bytes, then_close: bool = False) -> Handler:
    """Return a listener that says something, in parts, once it is asked."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        if not then_close:
            await reader.read()

    return handler


def failure(handler: Handler, **login: t.Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        ask(handler, lambda client: client.call("PING"), **login)
    return caught.value


def test_answers_that_come_in_pieces_are_put_together_in_order() -> None:
    handler = saying(b"+O", b"K\r\n*2\r\n$3\r\na", b"bc\r\n:7\r\n$-1\r\n$2\r\n\xff\x00\r", b"\n")

    answers = ask(handler, lambda client: client.pipeline([("A",), ("B",), ("C",), ("D",)]))

    assert answers == ["OK", ["abc", 7], None, b"\xff\x00"]


def test_raw_answers_stay_bytes() -> None:
    assert ask(saying(b"*1\r\n$1\r\nk\r\n"), lambda client: client.pipeline([("A",)], raw=True)) == [[b"k"]]


def test_an_error_is_in_its_place_and_names_its_command_without_arguments() -> None:
    handler = saying(b"+OK\r\n-MOVED 5 10.0.0.1:6379\r\n+OK\r\n")
    commands = [("SET", "k", "v"), ("GET", "a-key"), ("PING",)]

    first, second, third = ask(handler, lambda client: client.pipeline(commands))

    assert (first, third) == ("OK", "OK")
    assert isinstance(second, ServerError)
    assert (second.word, second.reply) == ("MOVED", "MOVED 5 10.0.0.1:6379")
    assert "GET" in str(second)
    assert "a-key" not in str(second)


def test_a_call_raises_the_error() -> None:
    error = failure(saying(b"-BUSY wait\r\n"))
    assert (error.code, error.facts["reply"]) == ("command_failed", "BUSY wait")


@pytest.mark.parametrize("reply", [b"-NOAUTH Authentication required.\r\n", b"-WRONGPASS invalid\r\n"])
def test_a_login_that_is_refused_is_said_to_be(reply: bytes) -> None:
    assert failure(saying(reply)).code == "authentication_failed"
    assert failure(saying(reply), password=PASSWORD).code == "authentication_failed"


def test_a_server_without_passwords_refuses_one() -> None:
    reply = b"-ERR AUTH <password> called without any password configured for the default user.\r\n"
    assert failure(saying(reply), password=PASSWORD).code == "authentication_failed"


def test_another_failure_of_the_login_is_told_without_the_password() -> None:
    error = failure(saying(b"-ERR max number of clients reached, " + PASSWORD.encode() + b"\r\n"), password=PASSWORD)
    assert error.code == "connect_failed"
    assert "max number of clients" in str(error)
    assert PASSWORD not in str(error)


def test_a_server_that_closes_before_its_answer_is_complete_is_lost() -> None:
    assert failure(saying(b"*2\r\n$1\r\n", then_close=True)).code == "connection_lost"


def test_what_is_no_answer_of_a_server_is_said_to_be_none() -> None:
    error = failure(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert error.code == "connection_lost"
    assert "no answer of a server" in str(error)


def test_a_silent_server_costs_no_more_than_the_limit() -> None:
    began_s = time.monotonic()
    error = failure(saying(), timeout_s=0.2)
    assert (error.code, "0.2 s" in str(error)) == ("no_response", True)
    assert time.monotonic() - began_s >= 0.2


def test_an_answer_that_came_too_late_is_not_that_of_the_next_command() -> None:
    seen: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(len(seen))
        mine = seen[-1]
        await reader.read(65536)
        await asyncio.sleep(0.5 if mine == 0 else 0)
        writer.write(b"$5\r\nlate!\r\n" if mine == 0 else b"+PONG\r\n")
        await reader.read()

    async def work(client: Client) -> t.Any:
        with pytest.raises(NodeError):
            await client.call("GET", "k", timeout_s=0.1)
        return await client.call("PING")

    assert ask(handler, work) == "PONG"
    assert len(seen) == 2


def test_a_command_may_take_longer_than_the_login() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        await asyncio.sleep(0.4)
        writer.write(b"+OK\r\n")
        await reader.read()

    assert ask(handler, lambda client: client.call("MIGRATE", timeout_s=5), timeout_s=0.1) == "OK"


def test_listening_ends_with_the_time_and_keeps_what_came() -> None:
    handler = saying(b"+OK\r\n", b"+one\r\n", b"+two\r\n+thr")

    async def work(client: Client) -> tuple[list[t.Any], list[t.Any]]:
        return await client.listen("MONITOR", for_s=0.3, most=100), await client.listen("MONITOR", for_s=5, most=1)

    assert ask(handler, work) == ([b"one", b"two"], [b"one"])


def test_nothing_that_listens_is_refused_in_one_sentence() -> None:
    async def work() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await Client(Node("a1", "127.0.0.1", port), Login(tls=False)).call("PING")

    with pytest.raises(NodeError, match="nothing listens there") as caught:
        asyncio.run(work())
    assert caught.value.code == "connection_refused"


def test_who_stops_waiting_closes_the_connection() -> None:
    async def work(client: Client) -> bool:
        asking = asyncio.ensure_future(client.call("PING"))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return client._wire is None

    assert ask(saying(), work)


def test_a_port_without_tls_is_told_of_where_tls_is_wanted() -> None:
    error = failure(saying(), tls=True, timeout_s=0.3)
    assert error.code == "no_response"
    assert "no TLS connection within 0.3 s" in str(error)
    assert "set tls to false if it has none" in str(error)
