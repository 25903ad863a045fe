# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What holds moves of slots back: the rate of bytes, and the latency of live commands. Every mechanism moves under it."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass, field

from ..._common.errors import HeadroomError
from ..observe import Fleet

# what a move may have in hand at most, when it was waited for something else than the rate
BURST_S = 1.0
# a PING that takes longer is too slow for any limit below it, and need not be waited for
PING_S = 1.0


@dataclass(frozen=True)
class Limits:
    """How fast slots may move. Bytes and seconds as the names say; 0 is no limit."""

    # None: what each mechanism thinks fit
    max_slots_per_source: int | None = None
    max_slots_per_target: int | None = None
    max_keys_per_migrate: int = 100
    max_bytes_per_migrate: int = 65536
    max_rate_bytes_s: int = 0
    max_latency_ms: float = 0.0
    latency_patience_s: float = 60.0


@dataclass
class Progress:
    """What has been moved so far."""

    slots: int = 0
    keys: int = 0
    bytes: int = 0
    paused_s: float = 0.0
    retries: int = 0
    # latencies of a PING beside the moves, in milliseconds
    latencies_ms: list[float] = field(default_factory=list)


class Guard:
    """Lets moves go on while they stay within the limits."""

    def __init__(self, fleet: Fleet, limits: Limits, progress: Progress) -> None:
        """Take the limits, and the progress that the moves note and the rate is measured by."""
        self.fleet = fleet
        self.limits = limits
        self.progress = progress
        # the first failure of each worker: whoever finds one here begins nothing more
        self.failed: list[BaseException] = []
        self._clear = asyncio.Event()
        self._clear.set()
        # the bytes that may move now; below 0 they are promised to moves that wait
        self._allowed = 0.0
        self._filled = time.monotonic()
        self._slow: HeadroomError | None = None

    def fail(self, error: BaseException) -> None:
        """Note a failure, and let go whoever is held back, to find it."""
        self.failed.append(error)
        self._clear.set()

    async def run(self, names: t.Iterable[str], workers: t.Iterable[t.Coroutine[t.Any, t.Any, None]]) -> None:
        """Run workers side by side while the named nodes are watched.

        :raises BaseException: the first failure that was noted.
        """
        watch = asyncio.ensure_future(self._watch(sorted(set(names))))
        try:
            await asyncio.gather(*workers)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        if self.failed:
            raise self.failed[0]

    async def clear(self) -> None:
        """Wait until live commands are quick enough."""
        await self._clear.wait()

    async def pace(self, size: int) -> None:
        """Wait until the rate allows so many bytes more, and until live commands are quick enough."""
        await self._go_on()
        rate = self.limits.max_rate_bytes_s
        if not rate:
            return
        now = time.monotonic()
        self._allowed = min(rate * BURST_S, self._allowed + (now - self._filled) * rate) - size
        self._filled = now
        if self._allowed < 0:
            await asyncio.sleep(-self._allowed / rate)
            # live commands may have become slow meanwhile
            await self._go_on()

    async def _go_on(self) -> None:
        await self._clear.wait()
        if self._slow is not None:
            raise self._slow

    def _resume(self) -> None:
        """Let the moves go on: the time in which nothing moved allows nothing more now."""
        self._allowed = min(self._allowed, 0.0)
        self._filled = time.monotonic()
        self._clear.set()

    async def _watch(self, names: t.Sequence[str]) -> None:
        """Time a PING on each node beside the moves, and hold these back while it takes too long."""
        limit = self.limits.max_latency_ms
        slow_since = silent_since = None
        while True:
            await asyncio.sleep(0.1)
            took = await asyncio.gather(*(self._ping(name) for name in names), return_exceptions=True)
            seen = [one for one in took if isinstance(one, float)]
            failed = [one for one in took if isinstance(one, HeadroomError)]
            self.progress.latencies_ms.extend(seen)
            if not limit:
                continue
            now = time.monotonic()
            silent_since = (silent_since or now) if failed else None
            # who does not answer is not quick either
            if not failed and max(seen, default=0.0) <= limit:
                if slow_since is not None:
                    self.progress.paused_s += now - slow_since
                    slow_since = None
                    self._resume()
                continue
            slow_since = slow_since or now
            self._clear.clear()
            if silent_since is not None and now - silent_since > self.fleet.login.timeout_s:
                # as any other command there would have ended
                self._slow = failed[0]
            elif now - slow_since > self.limits.latency_patience_s:
                worst = f"took {max(seen):.1f} ms" if not failed else "had no answer"
                self._slow = HeadroomError(
                    f"Failed to keep live commands below max_latency_ms ({limit:g}): a PING {worst} after "
                    f"{self.limits.latency_patience_s:g} s without moves. Look for other load, or raise the limit.",
                    code="latency",
                )
            if self._slow is not None:
                self.fail(self._slow)
                return

    async def _ping(self, name: str) -> float:
        started = time.monotonic()
        most_s = max(PING_S, 2 * self.limits.max_latency_ms / 1000)
        await self.fleet.client(name, "watch").call("PING", timeout_s=min(most_s, self.fleet.login.timeout_s))
        return (time.monotonic() - started) * 1000
