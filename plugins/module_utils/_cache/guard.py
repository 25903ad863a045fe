# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What holds deletions in Redis back: their rate, and the latency of live commands."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass

from .._common.errors import HeadroomError
from .._common.redis.client import Client, NodeError

WATCH_S = 0.1


@dataclass(frozen=True)
class Limits:
    """How fast keys may go, and how long to wait for what; 0 is no limit."""

    max_rate_keys_s: int = 0
    max_latency_ms: float = 0.0
    latency_patience_s: float = 60.0
    migration_wait_s: float = 60.0


class Guard:
    """Lets deletions go on while they stay within the limits, and notes how long a PING beside them takes."""

    def __init__(self, limits: Limits, watched: t.Sequence[Client]) -> None:
        """Take the limits, and a connection of its own to each server that is watched."""
        self.limits = limits
        self.latencies_ms: list[float] = []
        self.paused_s = 0.0
        self._watched = watched
        self._clear = asyncio.Event()
        self._clear.set()
        self._slow: HeadroomError | None = None
        self._slow_since_s: float | None = None
        self._began_s = time.monotonic()
        self._paced = 0

    async def run(self, work: t.Coroutine[t.Any, t.Any, None]) -> None:
        """Do work while the servers are watched.

        :raises HeadroomError: what it raised.
        """
        watch: asyncio.Future[None] | None = None
        try:
            # what is slow before the first deletion holds that one back too
            await self._look()
            watch = asyncio.ensure_future(self._watch())
            await work
        finally:
            work.close()
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    async def pace(self, keys: int) -> None:
        """Wait until the rate allows so many keys more, and until live commands are quick enough."""
        await self._clear.wait()
        if self._slow is not None:
            raise self._slow
        self._paced += keys
        if self.limits.max_rate_keys_s:
            ahead_s = self._paced / self.limits.max_rate_keys_s - (time.monotonic() - self._began_s)
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)

    async def _watch(self) -> None:
        while self._slow is None:
            await asyncio.sleep(WATCH_S)
            await self._look()

    async def _look(self) -> None:
        """Time a PING on each server, and hold deletions back, or let them go on."""
        limit = self.limits.max_latency_ms
        seen = [one for one in await asyncio.gather(*map(self._ping, self._watched)) if one is not None]
        self.latencies_ms.extend(seen)
        if not seen:
            # deletions that are held back meet the same trouble, and say so
            self._clear.set()
        if not limit or not seen:
            return
        now = time.monotonic()
        if max(seen) <= limit:
            if self._slow_since_s is not None:
                self.paused_s += now - self._slow_since_s
            self._slow_since_s = None
            self._clear.set()
            return
        self._slow_since_s = self._slow_since_s or now
        self._clear.clear()
        if now - self._slow_since_s > self.limits.latency_patience_s:
            self._slow = HeadroomError(
                f"Failed to keep live commands below max_latency_ms ({limit:g}): a PING took {max(seen):.1f} ms after "
                f"{self.limits.latency_patience_s:g} s without deletions. Look for other load, or raise the limit.",
                code="latency",
            )
            # whoever waits finds it
            self._clear.set()

    async def _ping(self, client: Client) -> float | None:
        began_s = time.monotonic()
        try:
            await client.call("PING")
        except NodeError:
            # the deletions meet the same trouble, and say so
            return None
        return (time.monotonic() - began_s) * 1000

    def figures(self) -> dict[str, float]:
        """Return what a PING took, and for how long deletions were held back."""
        found = sorted(self.latencies_ms) or [0.0]
        return {
            "latency_p99_ms": round(found[int(0.99 * (len(found) - 1))], 2),
            "latency_max_ms": round(found[-1], 2),
            "paused_s": round(self.paused_s, 2),
        }
