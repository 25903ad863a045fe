# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lets moves stand still, and what ends them."""

from __future__ import annotations

import asyncio
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import MemberError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import watch
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.guard import Guard
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.watch import (
    Bounds,
    Standbys,
    Watch,
)

CALM = {"written": 100, "standbys": [], "idle_slots": [], "retained_bytes": 0, "active": 0}


def standby(replayed: int, name: str = "r", lag_s: float = 0.001) -> dict[str, t.Any]:
    return {"name": name, "lag_s": lag_s, "replayed": replayed}


def test_a_standby_that_follows_is_no_reason() -> None:
    seen = Standbys()
    for second in range(100):
        # always a little behind what is written by then
        assert (
            seen.reason({**CALM, "written": 100 * second + 100, "standbys": [standby(100 * second)]}, 2, second) == ""
        )


def test_a_standby_says_itself_how_far_it_is_behind() -> None:
    reason = Standbys().reason({**CALM, "standbys": [standby(100, lag_s=3.2)]}, 2, 0)
    assert reason == "a replica is 3.2 s behind, more than 2 s"


def test_a_standby_that_is_frozen_is_as_far_behind_as_what_it_has_not_replayed() -> None:
    seen = Standbys()
    row = {**CALM, "standbys": [standby(100)]}
    # nothing is written, so there is nothing to replay
    assert [seen.reason(row, 2, second) for second in range(60)] == [""] * 60
    written = {**row, "written": 200}
    assert [seen.reason(written, 2, second) for second in (60, 61, 62)] == [""] * 3
    assert seen.reason({**row, "written": 900}, 2, 65) == "a replica is 5.0 s behind, more than 2 s"
    # it has what was written up to then
    assert seen.reason({**row, "written": 900, "standbys": [standby(900)]}, 2, 66) == ""


def test_a_standby_that_is_gone_is_a_reason() -> None:
    seen = Standbys()
    assert seen.reason({**CALM, "standbys": [standby(100, "r1"), standby(100, "r2")]}, 2, 0) == ""
    assert seen.reason({**CALM, "standbys": [standby(100, "r1")]}, 2, 1).startswith("standby r2 is gone")
    # a slot is kept for one that was gone before
    assert Standbys().reason({**CALM, "idle_slots": ["r3"]}, 2, 0).startswith("standby r3 is gone")


class Shard:
    """Members of one shard, which says what it is told to."""

    def __init__(self, row: dict[str, t.Any] | Exception) -> None:
        self.found = row

    async def row(self, shard: str, query: str, params: t.Any, **how: t.Any) -> dict[str, t.Any]:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


async def watched(shard: Shard, bounds: Bounds, then: dict[str, t.Any] | None = None) -> tuple[str, bool]:
    """Return why the moves stand still, and whether they go on once the shard says something else."""
    guard = Guard()
    async with Watch(t.cast("t.Any", shard), guard, bounds, lambda: {"s1"}):
        await asyncio.sleep(0.05)
        reason = guard.reasons.get("s1", "")
        if then is not None:
            shard.found = then
        try:
            await asyncio.wait_for(guard.calm(), 0.2)
        except TimeoutError:
            return reason, False
        return reason, True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.01)


def test_moves_stand_still_while_a_shard_is_busy() -> None:
    busy = {**CALM, "active": 9}
    words = "9 sessions are active, more than 8"
    assert asyncio.run(watched(Shard(busy), Bounds(max_active=8), CALM)) == (words, True)
    assert asyncio.run(watched(Shard(busy), Bounds(max_active=8))) == (words, False)
    assert asyncio.run(watched(Shard(busy), Bounds(max_active=9))) == ("", True)


def test_moves_stand_still_while_a_standby_is_behind() -> None:
    row = {**CALM, "standbys": [standby(0, lag_s=7.0)]}
    assert asyncio.run(watched(Shard(row), Bounds(max_replica_lag_s=5))) == (
        "a replica is 7.0 s behind, more than 5 s",
        False,
    )


def test_a_shard_that_does_not_answer_has_no_strength_to_spare() -> None:
    error = MemberError("Failed to watch s1 on h:5432: no answer within 10 s.", code="timeout", member="s1")
    assert asyncio.run(watched(Shard(error), Bounds(max_active=8), CALM)) == (str(error), True)


def test_wal_that_is_kept_ends_the_moves() -> None:
    with pytest.raises(HeadroomError, match=r"s1 keeps 4\.9 KiB of WAL for moves, more than max_retained_wal_bytes"):
        asyncio.run(watched(Shard({**CALM, "retained_bytes": 5000}), Bounds(max_retained_wal_bytes=4000)))


def test_patience_comes_to_an_end() -> None:
    with pytest.raises(HeadroomError, match=r"longer than pause_patience_s\. s1: 9 sessions are active") as caught:
        asyncio.run(watched(Shard({**CALM, "active": 9}), Bounds(max_active=8, patience_s=0.02)))
    assert caught.value.code == "paused_too_long"
