# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What holds moves back: a limit on bytes per second over all of them, and reasons to stand still for a while."""

from __future__ import annotations

import asyncio
import time

from ...._common.errors import HeadroomError

# how much may pass at once; more than a block, so that a limit costs no throughput
BURST_S = 0.1


class Guard:
    """Lets bytes pass at no more than a rate, and none while there is a reason not to."""

    def __init__(self, max_rate_bytes_s: float = 0.0) -> None:
        """Take the limit; 0 is none."""
        self.max_rate_bytes_s = max_rate_bytes_s
        self.paused_s = 0.0
        self.reasons: dict[str, str] = {}
        self._clear = asyncio.Event()
        self._clear.set()
        self._free_at = 0.0
        self._error: HeadroomError | None = None
        self._paused_at: float | None = None

    async def passes(self, size_bytes: int) -> None:
        """Wait until so many bytes may go.

        :raises HeadroomError: when a pause has lasted for too long.
        """
        await self._clear.wait()
        if self._error is not None:
            raise self._error
        if not self.max_rate_bytes_s:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - BURST_S) + size_bytes / self.max_rate_bytes_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)

    async def calm(self) -> None:
        """Wait until there is no reason to stand still."""
        await self.passes(0)

    def pause(self, reasons: dict[str, str]) -> None:
        """Say why nothing may go now; go on when there is no reason."""
        now = time.monotonic()
        self.reasons = reasons
        if reasons and self._paused_at is None:
            self._paused_at = now
            self._clear.clear()
        elif not reasons and self._paused_at is not None:
            self.paused_s += now - self._paused_at
            self._paused_at = None
            self._clear.set()

    @property
    def pausing_s(self) -> float:
        """For how long it has stood still by now."""
        return 0.0 if self._paused_at is None else time.monotonic() - self._paused_at

    def fail(self, error: HeadroomError) -> None:
        """End all waiting with an error."""
        self._error = error
        self._clear.set()
