# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One connection to a node: commands with a deadline, in pipelines where that helps, and errors that say what to do."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import types
import typing as t

from .._common.errors import HeadroomError
from .connection import Login
from .model import Node

try:
    import hiredis
except ImportError:
    # the driver does without it too, slower
    hiredis = None
else:
    hiredis = hiredis if hasattr(hiredis, "pack_command") else None

if t.TYPE_CHECKING:
    import redis.exceptions
    from redis.asyncio.connection import Connection

Command = t.Sequence[t.Any]


class NodeError(HeadroomError):
    """A node could not be reached, or what was asked of it failed. ``code`` says which."""


class ServerError(NodeError):
    """A node answered a command with an error. ``reply`` is that answer, ``word`` its first word."""

    def __init__(self, node: Node, command: Command, reply: str) -> None:
        """Keep the node, the name of the command and the answer."""
        # arguments may hold keys or passwords: the command's name says enough
        verb = " ".join(str(part) for part in command[: 2 if str(command[0]).isupper() and len(command) > 1 else 1])
        if str(command[0]).upper() not in ("CLUSTER", "CONFIG", "ACL", "CLIENT", "SCRIPT"):
            verb = str(command[0])
        super().__init__(
            f"Failed to run {verb} on {node.address}: {reply}", code="command_failed", node=node.name, reply=reply
        )
        self.reply = reply
        self.word = reply.split(" ", 1)[0]


class Client:
    """One connection to one node. Used by one task at a time; a lock keeps others waiting."""

    def __init__(self, node: Node, login: Login) -> None:
        """Take the node and how to log in; nothing is opened before the first command."""
        self.node = node
        self.login = login
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Client:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def call(self, *command: str | bytes | int, timeout_s: float | None = None) -> t.Any:
        """Run one command and return its answer, text where it is text.

        :raises ServerError: when the node answers with an error.
        :raises NodeError: when it does not answer.
        """
        answer = (await self.pipeline([command], timeout_s=timeout_s))[0]
        if isinstance(answer, ServerError):
            raise answer
        return answer

    async def pipeline(
        self, commands: t.Sequence[Command], timeout_s: float | None = None, raw: bool = False
    ) -> list[t.Any]:
        """Send commands at once and return their answers; an error answer is a :class:`ServerError` in its place.

        :param raw: leave bytes as they are; a key need not be text.
        :param timeout_s: for all of them together; the login's when not given.
        """
        limit_s = self.login.timeout_s if timeout_s is None else timeout_s
        async with self._lock:
            try:
                return await asyncio.wait_for(self._exchange(commands, raw), limit_s)
            except ServerError:
                raise
            except ModuleNotFoundError:
                raise
            except BaseException as error:
                # whatever came between, answers that were not read must not be taken for those of the next command
                await self.close()
                failure = self._failure(error, limit_s)
                if failure is None:
                    raise
                raise failure from error

    async def listen(self, *command: str | bytes | int, for_s: float, most: int) -> list[bytes]:
        """Run a command that does not stop answering, and return what it says until a time has passed or it is so much.

        :raises ServerError: when the node answers with an error.
        :raises NodeError: when it does not answer.
        """
        await self.call(*command)
        found: list[bytes] = []

        async def read() -> None:
            while self._connection is not None and len(found) < most:
                found.append(await self._connection.read_response())

        async with self._lock:
            try:
                await asyncio.wait_for(read(), for_s)
            except TimeoutError:
                pass
            except BaseException as error:
                failure = self._failure(error, for_s)
                if failure is None:
                    raise
                raise failure from error
            finally:
                # nothing else may be asked on it
                await self.close()
        return found

    async def close(self) -> None:
        """Close the connection; the next command opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect()

    async def _exchange(self, commands: t.Sequence[Command], raw: bool) -> list[t.Any]:
        import redis.exceptions

        if self._connection is None:
            connection = self._open()
            await connection.connect()
            self._connection = connection
        await self._connection.send_packed_command([b"".join(_packed(command) for command in commands)])
        answers = []
        for command in commands:
            try:
                answer = await self._connection.read_response()
                answers.append(answer if raw else _text(answer))
            except (redis.exceptions.ResponseError, redis.exceptions.BusyLoadingError) as error:
                answers.append(ServerError(self.node, command, self.login.scrub(_reply(error))))
        return answers

    def _open(self) -> Connection:
        from redis.asyncio.connection import Connection, SSLConnection

        settings: dict[str, t.Any] = {
            "host": self.node.host,
            "port": self.node.port,
            "username": self.login.user,
            "password": self.login.password,
            "decode_responses": False,
            "health_check_interval": 0,
            # the limit of a whole exchange is ours: the driver's own would end a long MIGRATE, and costs time for each answer
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }
        # lists for maps, whatever the driver's version speaks unasked
        if any("protocol" in inspect.signature(kind.__init__).parameters for kind in Connection.__mro__):
            settings["protocol"] = 2
        if not self.login.tls:
            return Connection(**settings)
        return SSLConnection(
            **settings,
            ssl_ca_certs=self.login.ca_certs,
            ssl_certfile=self.login.client_cert_file,
            ssl_keyfile=self.login.client_key_file,
            ssl_cert_reqs="required" if self.login.validate_certs else "none",
            ssl_check_hostname=self.login.validate_certs,
        )

    def _failure(self, error: BaseException, limit_s: float) -> NodeError | None:
        """Return what went wrong as one sentence with a code, or None for what is not the node's doing."""
        import redis.exceptions

        where = f"Failed to reach {self.node.name} on {self.node.address}"
        text = self.login.scrub(" ".join(str(error).split()))
        causes = list(_chain(error))

        def of(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if of(redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError):
            code, rest = "authentication_failed", "the login is refused. Check login_user and login_password."
        elif of(ssl.SSLError):
            code, rest = "tls_refused", f"TLS failed ({text}). Check tls, ca_certs and the server's certificate."
        elif of(socket.gaierror):
            code, rest = "dns_failure", "its name is not known. Check host."
        elif of(ConnectionRefusedError):
            code, rest = "connection_refused", "nothing listens there. Check port, and that the server runs."
        elif of(asyncio.TimeoutError, TimeoutError, redis.exceptions.TimeoutError):
            code, rest = "no_response", f"no answer within {limit_s:g} s. Look at the server and the network."
        elif of(redis.exceptions.BusyLoadingError):
            code, rest = "loading", "it loads its data. Wait until it has."
        elif of(redis.exceptions.ConnectionError, OSError, EOFError):
            code, rest = (
                "connection_lost",
                f"{text or 'the connection was closed'}. Look at the server's log, and at tls.",
            )
        elif of(redis.exceptions.RedisError):
            code, rest = "connect_failed", f"{text}."
        else:
            return None
        return NodeError(f"{where}: {rest}", code=code, node=self.node.name)


def _packed(command: Command) -> bytes:
    """Return a command as it goes over the wire: the driver's own way takes longer than the servers need for a key."""
    if hiredis is not None:
        return hiredis.pack_command(tuple(command))
    parts = [b"*%d\r\n" % len(command)]
    for part in command:
        value = part if isinstance(part, bytes) else str(part).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)


def _chain(error: BaseException | None) -> t.Iterator[BaseException]:
    for _depth in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _reply(error: redis.exceptions.RedisError) -> str:
    """Return the answer as the server sent it: the driver takes the first word off of those it knows."""
    import redis.exceptions

    text = " ".join(str(error).split())
    words = {
        redis.exceptions.NoPermissionError: "NOPERM",
        redis.exceptions.ReadOnlyError: "READONLY",
        redis.exceptions.ClusterDownError: "CLUSTERDOWN",
        redis.exceptions.AskError: "ASK",
        redis.exceptions.MovedError: "MOVED",
        redis.exceptions.TryAgainError: "TRYAGAIN",
        redis.exceptions.BusyLoadingError: "LOADING",
    }
    for kind, word in words.items():
        if isinstance(error, kind) and not text.startswith(word):
            return f"{word} {text}"
    return text


def _text(answer: t.Any) -> t.Any:
    """Return an answer with bytes as text; what is not UTF-8, such as a key, stays bytes."""
    if isinstance(answer, bytes):
        try:
            return answer.decode()
        except UnicodeDecodeError:
            return answer
    if isinstance(answer, list):
        return [_text(item) for item in answer]
    if isinstance(answer, dict):
        return {_text(key): _text(value) for key, value in answer.items()}
    return answer
