# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One connection to a node: commands with a deadline, in pipelines where that helps, and errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import ssl
import time
import types
import typing as t

from ..errors import HeadroomError
from .connection import Login
from .model import Node
from .wire import ReplyError, Wire

try:
    from hiredis import pack_command
except ImportError:
    # its versions before 2.2 only read
    pack_command = None

# a login that a server refuses, by the first word of what it says
REFUSED = ("NOAUTH", "WRONGPASS")

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
        self._wire: Wire | None = None
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
                answers = await self._exchange(commands, limit_s)
            except BaseException as error:
                # whatever came between, answers that were not read must not be taken for those of the next command
                await self.close()
                failure = self._failure(error, limit_s)
                if failure is None:
                    raise
                raise failure from error
        return [
            ServerError(self.node, command, self.login.scrub(str(answer)))
            if isinstance(answer, ReplyError)
            else answer
            if raw
            else _text(answer)
            for command, answer in zip(commands, answers, strict=True)
        ]

    async def listen(self, *command: str | bytes | int, for_s: float, most: int) -> list[bytes]:
        """Run a command that does not stop answering, and return what it says until a time has passed or it is so much.

        :raises ServerError: when the node answers with an error.
        :raises NodeError: when it does not answer.
        """
        await self.call(*command)
        async with self._lock:
            wire = self._wire
            if wire is None:
                return []
            try:
                return await wire.receive(most, for_s)
            except TimeoutError:
                return wire.received()
            except BaseException as error:
                failure = self._failure(error, for_s)
                if failure is None:
                    raise
                raise failure from error
            finally:
                # nothing else may be asked on it
                await self.close()

    async def close(self) -> None:
        """Close the connection; the next command opens another one."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    async def _exchange(self, commands: t.Sequence[Command], limit_s: float) -> list[t.Any]:
        wire = self._wire
        if wire is None:
            began_s = time.monotonic()
            wire = self._wire = await self._open(limit_s)
            limit_s -= time.monotonic() - began_s
        answers = await wire.exchange(b"".join(map(_packed, commands)), len(commands), limit_s)
        for answer in answers:
            if isinstance(answer, ReplyError) and str(answer).startswith(REFUSED):
                raise _Refused(str(answer))
        return answers

    async def _open(self, limit_s: float) -> Wire:
        login = self.login
        try:
            wire = await Wire.open(self.node.host, self.node.port, _context(login) if login.tls else None, limit_s)
        except TimeoutError as error:
            if login.tls:
                raise _NoHandshake from error
            raise
        if login.password is not None:
            whose = () if login.user is None else (login.user,)
            try:
                (answer,) = await wire.exchange(_packed(("AUTH", *whose, login.password)), 1, limit_s)
                if isinstance(answer, ReplyError):
                    raise _Refused(str(answer)) if str(answer).startswith((*REFUSED, "ERR AUTH")) else answer
            except BaseException:
                wire.close()
                raise
        return wire

    def _failure(self, error: BaseException, limit_s: float) -> NodeError | None:
        """Return what went wrong as one sentence with a code, or None for what is not the node's doing."""
        where = f"Failed to reach {self.node.name} on {self.node.address}"
        text = self.login.scrub(" ".join(str(error).split()))
        if isinstance(error, _Refused):
            code, rest = "authentication_failed", "the login is refused. Check login_user and login_password."
        elif isinstance(error, ssl.SSLError):
            code, rest = "tls_refused", f"TLS failed ({text}). Check tls, ca_certs and the server's certificate."
        elif isinstance(error, socket.gaierror):
            code, rest = "dns_failure", "its name is not known. Check host."
        elif isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in text:
            code, rest = "connection_refused", "nothing listens there. Check port, and that the server runs."
        elif isinstance(error, _NoHandshake):
            # a server that waits for a command takes what TLS begins with for the start of one
            code = "no_response"
            rest = f"no TLS connection within {limit_s:g} s. Look at the server and the network, and set tls to false if it has none."
        elif isinstance(error, (asyncio.TimeoutError, TimeoutError)):
            code, rest = "no_response", f"no answer within {limit_s:g} s. Look at the server and the network."
        elif isinstance(error, OSError):
            code, rest = "connection_lost", f"{text}. Look at the server's log, and at tls."
        elif isinstance(error, ReplyError):
            code, rest = "connect_failed", f"{text}."
        else:
            return None
        return NodeError(f"{where}: {rest}", code=code, node=self.node.name)


class _NoHandshake(TimeoutError):
    """Nobody answered what TLS begins with."""


class _Refused(ReplyError):
    """The login is not taken."""


@functools.lru_cache(maxsize=16)
def _context(login: Login) -> ssl.SSLContext:
    """Return how to speak TLS; read once for all connections."""
    context = ssl.create_default_context(cafile=login.ca_certs)
    if not login.validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if login.client_cert_file:
        context.load_cert_chain(login.client_cert_file, login.client_key_file)
    return context


def _packed(command: Command) -> bytes:
    """Return a command as it goes over the wire."""
    if pack_command is not None:
        return pack_command(tuple(command))
    parts = [b"*%d\r\n" % len(command)]
    for part in command:
        value = part if isinstance(part, bytes) else str(part).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)


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
