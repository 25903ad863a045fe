# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first placement gives each shard its share, and a shard that joins moves its share and nothing else."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Shard
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.ring import place
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.7]), min_size=2, max_size=8)


def shards(weights: t.Iterable[float]) -> list[Shard]:
    return [Shard(f"s{index}", weight) for index, weight in enumerate(weights)]


def buckets(count: int) -> list[tuple[str, int]]:
    return [("users", number) for number in range(count)]


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from([64, 100, 256]))
def test_a_shard_that_joins_takes_at_most_its_share_and_a_tenth_and_nothing_else_moves(
    weights: list[float], count: int
) -> None:
    before = place(buckets(count), shards(weights[:-1]))
    after = place(buckets(count), shards(weights))
    moved = {bucket for bucket in after if after[bucket] != before[bucket]}
    fair = count * weights[-1] / sum(weights)

    assert {after[bucket] for bucket in moved} <= {f"s{len(weights) - 1}"}
    assert fair - 1 < len(moved) <= 1.1 * fair


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from([5, 64, 256]))
def test_everybody_is_within_two_buckets_of_its_share(weights: list[float], count: int) -> None:
    placed = place(buckets(count), shards(weights))

    assert list(placed) == buckets(count)
    for index, weight in enumerate(weights):
        held = sum(shard == f"s{index}" for shard in placed.values())
        assert abs(held - count * weight / sum(weights)) < 2


def test_only_active_shards_with_a_weight_take_part() -> None:
    placed = place(
        buckets(64), [Shard("a", state="draining"), Shard("b"), Shard("c", 0.0), Shard("d", state="read_only")]
    )

    assert set(placed.values()) == {"b"}
    with pytest.raises(ValueError, match="no active shard"):
        place(buckets(64), [Shard("a", state="draining"), Shard("c", 0.0)])


def test_the_buckets_of_groups_are_not_placed_alike() -> None:
    users = place(buckets(64), shards([1, 1, 1]))
    orders = place([("orders", number) for number in range(64)], shards([1, 1, 1]))

    assert [users["users", number] for number in range(64)] != [orders["orders", number] for number in range(64)]
