# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""HTTP/1.1 with any method, on connections that stay open, each exchange with one deadline for all of it."""

from __future__ import annotations

import asyncio
import functools
import http.client
import socket
import ssl
import types
import typing as t
from dataclasses import dataclass
from urllib.parse import urlsplit

from .._common.errors import HeadroomError, OptionError, masked

MOST_HEAD, MOST_BODY = 64 * 1024, 4 * 1024 * 1024


class HttpError(HeadroomError):
    """A server could not be asked."""


@dataclass(frozen=True)
class Base:
    """Where a server is, and the name that it is asked for."""

    host: str
    port: int
    tls: bool
    name: str

    @property
    def url(self) -> str:
        """The address as people write it."""
        return f"{'https' if self.tls else 'http'}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def server_name(self) -> str:
        """The name that a certificate must be for."""
        return urlsplit(f"//{self.name}").hostname or self.host


@dataclass(frozen=True)
class Trust:
    """How certificates are checked."""

    validate: bool = True
    ca_certs: str | None = None


@functools.lru_cache(maxsize=4)
def _context(trust: Trust) -> ssl.SSLContext:
    """Return how to speak TLS; read once for all connections."""
    context = ssl.create_default_context()
    if trust.ca_certs:
        # beside those that the host trusts
        context.load_verify_locations(trust.ca_certs)
    if not trust.validate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Answer:
    """What a server said; names of headers are in lower case."""

    status: int
    headers: t.Mapping[str, str]
    body: bytes
    took_s: float


def parse_url(option: str, url: str, name: str | None = None, bare: bool = False) -> tuple[Base, str]:
    """Return where a URL points to, and its path with the query.

    :param name: the name to ask for, where it is not that of the URL.
    :param bare: whether it must have no path.
    :raises OptionError: when it is no URL of HTTP.
    """
    remedy = f"give a URL such as 'https://cache1.example.com{'' if bare else '/path'}'."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise OptionError(option, masked(url), remedy) from error
    usable = parts.scheme in ("http", "https") and parts.hostname and not parts.username and port != 0
    if not usable or not url.isascii() or not url.isprintable() or " " in url or (bare and parts.path not in ("", "/")):
        raise OptionError(option, masked(url), remedy)
    tls = parts.scheme == "https"
    base = Base(str(parts.hostname), port or (443 if tls else 80), tls, name or parts.netloc)
    return base, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return a line of a body that comes in chunks, without what follows its first word."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line.split(b";")[0].strip()


class Connection:
    """One connection, opened by the first exchange and again when the server has closed it."""

    def __init__(self, base: Base, trust: Trust, limit_s: float) -> None:
        """Take the server, and the seconds that an exchange may take."""
        self.base = base
        self._trust = trust
        self._limit_s = limit_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Connection:
        """Return the connection itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    async def ask_all(
        self, requests: t.Sequence[tuple[str, str, t.Mapping[str, str]]], take: t.Callable[[int, Answer], None]
    ) -> None:
        """Send requests (method, target, headers) without waiting for one another's answers.

        What has been sent is sent again when the server closes in between, so they must be such that may be sent twice.

        :param take: is given the number of each request and its answer, in order, as soon as it is there.
        :raises HttpError: when there is no answer for so long as an exchange may take.
        """
        loop = asyncio.get_running_loop()
        answered = 0
        moved_s = loop.time()
        late = False

        def in_time() -> None:
            # a connection that is closed while a body comes ends some bodies too early, and others not at all
            if late:
                raise TimeoutError

        def watch() -> None:
            nonlocal late, timer
            rest_s = moved_s + self._limit_s - loop.time()
            if rest_s > 0:
                timer = loop.call_later(rest_s, watch)
            else:
                late = True
                self.close()

        # one timer for all of them: one for each would cost more than the exchange
        timer = loop.call_later(self._limit_s, watch)
        try:
            while answered < len(requests):
                fresh, before = self._streams is None, answered
                try:
                    if fresh:
                        self._streams = await asyncio.wait_for(self._open(), self._limit_s)
                        in_time()
                    streams = t.cast("tuple[asyncio.StreamReader, asyncio.StreamWriter]", self._streams)
                    streams[1].write(b"".join(self._head(*request) for request in requests[before:]))
                    # what the server closes after an answer, it has not answered
                    while answered < len(requests) and self._streams is streams:
                        status, found, body = await self._answer(streams[0], requests[answered][0])
                        in_time()
                        now_s = loop.time()
                        take(answered, Answer(status, found, body, now_s - moved_s))
                        answered += 1
                        moved_s = now_s
                except (ConnectionError, asyncio.IncompleteReadError):
                    self.close()
                    in_time()
                    if fresh and answered == before:
                        raise
        except BaseException as error:
            self.close()
            method, target, _headers = requests[answered]
            failure = self._failure(method, target, error)
            if failure is None:
                raise
            raise failure from error
        finally:
            timer.cancel()

    async def ask(self, method: str, target: str, headers: t.Mapping[str, str]) -> Answer:
        """Send one request and return the answer.

        :raises HttpError: when there is none in time.
        """
        answers: list[Answer] = []
        await self.ask_all([(method, target, headers)], lambda _number, answer: answers.append(answer))
        return answers[0]

    def close(self) -> None:
        """Close the connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()

    def _head(self, method: str, target: str, headers: t.Mapping[str, str]) -> bytes:
        given = {"Host": self.base.name, "User-Agent": "headroom.scale", "Accept-Encoding": "identity", **headers}
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return (head + "\r\n").encode("latin-1")

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = {"ssl": _context(self._trust), "server_hostname": self.base.server_name} if self.base.tls else {}
        return await asyncio.open_connection(self.base.host, self.base.port, limit=MOST_HEAD, **tls)

    async def _answer(self, reader: asyncio.StreamReader, method: str) -> tuple[int, dict[str, str], bytes]:
        """Read one answer, and close the connection where nothing can follow."""
        status = 100
        while status < 200:
            head = await reader.readuntil(b"\r\n\r\n")
            line, *lines = head[:-4].decode("latin-1").split("\r\n")
            version, _space, words = line.partition(" ")
            if not version.startswith("HTTP/1.") or not words[:3].isdigit():
                raise ValueError("what came is no answer of an HTTP server")
            status = int(words[:3])
        headers: dict[str, str] = {}
        for line in lines:
            name, _colon, value = line.partition(":")
            headers.setdefault(name.strip().lower(), value.strip())
        body, lasts = await self._body(reader, method, status, headers)
        if not lasts or version == "HTTP/1.0" or headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, body

    @staticmethod
    async def _body(
        reader: asyncio.StreamReader, method: str, status: int, headers: t.Mapping[str, str]
    ) -> tuple[bytes, bool]:
        """Return the body, and whether the connection can be used again."""
        if method == "HEAD" or status in (204, 304):
            return b"", True
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parts: list[bytes] = []
            while size := int(await _line(reader), 16):
                if size + sum(map(len, parts)) > MOST_BODY:
                    raise ValueError(f"the answer is longer than {MOST_BODY} bytes")
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            while await _line(reader):
                pass
            return b"".join(parts), True
        if "content-length" in headers:
            length = int(headers["content-length"])
            if length > MOST_BODY:
                raise ValueError(f"the answer is longer than {MOST_BODY} bytes")
            return await reader.readexactly(length), True
        body = await reader.read(MOST_BODY)
        while more := await reader.read(65536):
            body += more
            if len(body) > MOST_BODY:
                raise ValueError(f"the answer is longer than {MOST_BODY} bytes")
        return body, False

    def _failure(self, method: str, target: str, error: BaseException) -> HttpError | None:
        """Return what went wrong as one sentence with a code, or None for what is not the server's doing."""
        if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
            code, said = "no_response", f"no answer within {self._limit_s:g} s. Look at the server and the network."
        elif isinstance(error, ssl.SSLError):
            code, said = (
                "tls_refused",
                f"TLS failed ({' '.join(str(error).split())}). Check http_ca_certs and the certificate.",
            )
        elif isinstance(error, socket.gaierror):
            code, said = "dns_failure", "its name is not known. Check the URL."
        elif isinstance(error, ConnectionRefusedError):
            code, said = "connection_refused", "nothing listens there. Check the URL, and that the server runs."
        elif isinstance(error, (OSError, asyncio.IncompleteReadError)):
            code, said = "connection_lost", "the connection was lost. Look at the server's log."
        elif isinstance(error, (ValueError, asyncio.LimitOverrunError, http.client.HTTPException)):
            code, said = "bad_answer", f"{' '.join(str(error).split())}. Check that it is an HTTP server."
        else:
            return None
        return HttpError(f"Failed to {method} {target[:200]} on {self.base.url}: {said}", code=code, url=self.base.url)
