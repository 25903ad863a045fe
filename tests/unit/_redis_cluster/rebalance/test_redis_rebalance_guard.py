# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves keep to their rate, and are held back while live commands are slow or not answered at all."""

from __future__ import annotations

import asyncio
import time
import types
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import NodeError
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.guard import (
    Guard,
    Limits,
    Progress,
)

RATE = 1_000_000


class Pings:
    """Nodes that answer a PING after so many seconds, or with an error."""

    login = types.SimpleNamespace(timeout_s=0.5)

    def __init__(self, **answers: float | NodeError) -> None:
        """Take the answer of each node by name."""
        self.answers = answers

    def client(self, name: str, _purpose: str = "") -> t.Any:
        """Return what is asked."""

        async def call(*_command: str, timeout_s: float) -> str:
            answer = self.answers[name]
            if isinstance(answer, NodeError):
                raise answer
            await asyncio.sleep(min(answer, timeout_s))
            if answer > timeout_s:
                raise NodeError(f"Failed to reach {name}.", code="no_response")
            return "PONG"

        return types.SimpleNamespace(call=call)


def guard_of(pings: Pings, **limits: t.Any) -> Guard:
    return Guard(t.cast("t.Any", pings), Limits(**limits), Progress())


def test_a_rate_is_kept_by_several_workers_together() -> None:
    async def work() -> float:
        guard = guard_of(Pings(), max_rate_bytes_s=RATE)
        began = time.monotonic()

        async def worker() -> None:
            for _turn in range(5):
                await guard.pace(20_000)

        await asyncio.gather(*(worker() for _worker in range(5)))
        return time.monotonic() - began

    assert asyncio.run(work()) >= 0.49


def test_the_time_of_a_pause_allows_nothing_more_afterwards() -> None:
    async def work() -> tuple[float, int]:
        pings = Pings(a=0.05)
        guard = guard_of(pings, max_rate_bytes_s=RATE, max_latency_ms=20.0)
        moved: list[tuple[float, int]] = []

        async def worker() -> None:
            # until it is held back
            await asyncio.sleep(0.3)
            for _turn in range(20):
                await guard.pace(20_000)
                moved.append((time.monotonic(), 20_000))

        async def quick() -> None:
            await asyncio.sleep(1.2)
            pings.answers["a"] = 0.0

        await asyncio.gather(guard.run(["a"], [worker()]), quick())
        assert guard.progress.paused_s > 0.5
        return moved[-1][0] - moved[0][0], sum(size for _at, size in moved)

    took_s, size = asyncio.run(work())
    assert took_s >= 0.9 * (size - 20_000) / RATE


@pytest.mark.parametrize("code", ["no_response", "connection_refused"])
def test_a_node_that_does_not_answer_holds_the_moves_back_and_then_ends_them(code: str) -> None:
    error = NodeError("Failed to reach a.", code=code)

    async def work() -> list[float]:
        guard = guard_of(Pings(a=error, b=0.0), max_latency_ms=50.0)
        moved: list[float] = []

        async def worker() -> None:
            await asyncio.sleep(0.2)
            try:
                await guard.pace(1)
                moved.append(time.monotonic())
            except HeadroomError as slow:
                guard.fail(slow)

        with pytest.raises(NodeError, match="Failed to reach a"):
            await guard.run(["a", "b"], [worker()])
        return moved

    # nothing moves, and the caller plans anew as after any other loss of a node
    assert asyncio.run(work()) == []


def test_a_node_that_comes_back_soon_lets_the_moves_go_on() -> None:
    async def work() -> float:
        pings = Pings(a=NodeError("Failed to reach a.", code="connection_lost"))
        guard = guard_of(pings, max_latency_ms=50.0)
        began = time.monotonic()

        async def worker() -> None:
            await asyncio.sleep(0.2)
            await guard.pace(1)

        async def back() -> None:
            await asyncio.sleep(0.4)
            pings.answers["a"] = 0.0

        await asyncio.gather(guard.run(["a"], [worker()]), back())
        return time.monotonic() - began

    assert asyncio.run(work()) >= 0.4


def test_live_commands_that_stay_slow_end_the_run_in_a_sentence() -> None:
    async def work() -> None:
        guard = guard_of(Pings(a=0.1), max_latency_ms=50.0, latency_patience_s=0.4)

        async def worker() -> None:
            while not guard.failed:
                await asyncio.sleep(0.05)

        await guard.run(["a"], [worker()])

    with pytest.raises(HeadroomError, match=r"below max_latency_ms \(50\): a PING took 10\d\.\d ms after 0\.4 s"):
        asyncio.run(work())
