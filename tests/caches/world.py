# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world of caches for tests: a source with versions, and HTTP caches before it, one before the other, on loopback.

A cache keeps what it has until it is purged. It answers GET and PURGE over HTTP, and notes what it was asked. A fetch takes as long as
``slow_s`` says, after what is inside has been read, so that what it stores may be old by then. As with the timeouts of a real cache, what
took longer than ``limit_s`` is answered and not stored: that holds however busy the machine is.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import typing as t


class Source:
    """What is true: the version of each path."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}

    async def get(self, path: str) -> int:
        """Return the version of a path now."""
        return self.versions.get(path, 0)


class Cache:
    """One cache. ``answer`` replaces what it says to a request, when it returns something."""

    def __init__(self, inner: Source | Cache, slow_s: float = 0.0, limit_s: float = 60.0) -> None:
        self.inner = inner
        self.slow_s = slow_s
        self.limit_s = limit_s
        self.stored: dict[str, tuple[int, float]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.answer: t.Callable[[str, str], bytes | None] = lambda method, path: None
        self.delay_s: t.Callable[[], float] = lambda: random.uniform(0, self.slow_s)
        self.url = ""

    async def get(self, path: str) -> int:
        """Return the version that is served."""
        if path in self.stored:
            return self.stored[path][0]
        began_s = time.monotonic()
        found = await self.inner.get(path)
        if self.slow_s:
            await asyncio.sleep(self.delay_s())
        if time.monotonic() - began_s <= self.limit_s:
            self.stored[path] = (found, time.monotonic())
        return found

    def purge(self, path: str) -> bool:
        """Forget a path, or all that begin so, and return whether there was anything."""
        gone = [one for one in self.stored if one == path or (path.endswith("*") and one.startswith(path[:-1]))]
        for one in gone:
            del self.stored[one]
        return bool(gone)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.strip().split("\r\n")
                method, path, _version = line.split(" ")
                self.asked.append((method, path, dict(field.split(": ", 1) for field in fields)))
                said = self.answer(method, path)
                writer.write(await self._said(method, path) if said is None else said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _said(self, method: str, path: str) -> bytes:
        if method == "GET":
            version = await self.get(path)
            age = int(time.monotonic() - self.stored[path][1]) if path in self.stored else 0
            return said(200, f"version {version};", f"Age: {age}\r\n")
        if method == "PURGE":
            return said(200 if self.purge(path) else 404, "")
        return said(200, "")


def said(status: int, body: str, headers: str = "") -> bytes:
    """Return an answer as it goes over the wire."""
    return f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}".encode()


class World:
    """An event loop in a thread of its own, in which caches serve and readers read."""

    def __init__(self) -> None:
        self.source = Source()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._readers: list[asyncio.Task[None]] = []
        self.reads = 0

    def __enter__(self) -> World:
        """Return the world itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End it."""
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, work: t.Coroutine[t.Any, t.Any, t.Any]) -> t.Any:
        """Do something in the world's loop and return what comes of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def cache(self, inner: Source | Cache | None = None, **settings: t.Any) -> Cache:
        """Start a cache before another one, or before the source."""
        made = Cache(inner or self.source, **settings)
        server = self.do(asyncio.start_server(made.serve, "127.0.0.1", 0))
        self._servers.append(server)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return made

    def read(self, cache: Cache, paths: t.Sequence[str]) -> list[int]:
        """Return what a cache serves of some paths."""

        async def all_of_them() -> list[int]:
            return [*await asyncio.gather(*map(cache.get, paths))]

        return self.do(all_of_them())

    def hammer(self, cache: Cache, paths: t.Sequence[str], readers: int) -> None:
        """Let readers read from a cache until the world ends."""

        async def begin() -> None:
            self._readers += [asyncio.ensure_future(self._hammer(cache, paths)) for _number in range(readers)]

        self.do(begin())

    async def _hammer(self, cache: Cache, paths: t.Sequence[str]) -> None:
        while True:
            await cache.get(random.choice(paths))
            self.reads += 1
            await asyncio.sleep(random.uniform(0, 0.01))

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
