# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds a copy back."""

from __future__ import annotations

import asyncio
import time

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.guard import Guard


def test_rate_is_kept_over_all_streams() -> None:
    async def work() -> float:
        guard = Guard(1_000_000)
        began = time.monotonic()

        async def stream() -> None:
            for _block in range(10):
                await guard.passes(20_000)

        await asyncio.gather(stream(), stream())
        return time.monotonic() - began

    # 400 kB at 1 MB/s, less what may pass at once
    assert 0.25 <= asyncio.run(work()) <= 1.0


def test_no_rate_is_no_limit() -> None:
    async def work() -> float:
        guard = Guard(0)
        began = time.monotonic()
        for _block in range(1000):
            await guard.passes(1 << 30)
        return time.monotonic() - began

    assert asyncio.run(work()) < 0.5


def test_pause_holds_and_lets_go() -> None:
    async def work() -> tuple[bool, float]:
        guard = Guard()
        guard.pause({"s1": "a replica is 9 s behind"})
        waiting = asyncio.ensure_future(guard.calm())
        await asyncio.sleep(0.05)
        held = not waiting.done()
        guard.pause({})
        await asyncio.wait_for(waiting, 1)
        return held, guard.paused_s

    held, paused_s = asyncio.run(work())
    assert held
    assert paused_s >= 0.04


def test_failure_ends_the_waiting() -> None:
    async def work() -> None:
        guard = Guard()
        guard.pause({"s1": "busy"})
        waiting = asyncio.ensure_future(guard.passes(1))
        await asyncio.sleep(0)
        guard.fail(HeadroomError("Failed to go on.", code="paused_too_long"))
        await asyncio.wait_for(waiting, 1)

    with pytest.raises(HeadroomError, match="Failed to go on"):
        asyncio.run(work())
