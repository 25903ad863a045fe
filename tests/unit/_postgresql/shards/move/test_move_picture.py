# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each shard carries by what a run sees."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Placement,
    Shard,
    ShardMap,
    Table,
    Usage,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.picture import Picture, shares_of
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.plan import Limits, imbalance, plan

GROUP = Group("users", "hash", "bigint", (Table("public.users", "id"),), tuple(Bucket(number) for number in range(8)))


def seen_of(loads: t.Sequence[float], states: t.Mapping[str, str] | None = None) -> Picture:
    """Return three quarters of the buckets on a, and the others on b."""
    shards = tuple(Shard(name, state=(states or {}).get(name, "active")) for name in "ab")
    placements = {("users", number): Placement("b" if number >= 6 else "a", 1) for number in range(8)}
    usage = {("users", number): Usage(0, load=load) for number, load in enumerate(loads)}
    return Picture({}, ShardMap(1, shards, (GROUP,), placements), usage)


@pytest.mark.parametrize("states", [{}, {"b": "read_only"}])
@pytest.mark.parametrize("loads", [[0.0] * 8, [0.125] * 8, [0.0] * 6 + [0.5] * 2])
def test_loads_of_all_shards_add_up_to_1_as_a_plan_has_them(loads: list[float], states: dict[str, str]) -> None:
    seen = seen_of(loads, states)
    shares, planned = shares_of(seen), plan(seen.map, seen.usage, Limits())
    assert sum(share.load for share in shares) == pytest.approx(1)
    assert [(one.load, one.wanted) for one in shares] == [
        (pytest.approx(one.load), pytest.approx(one.wanted)) for one in planned.before
    ]
    assert imbalance(shares) == pytest.approx(imbalance(planned.before))
