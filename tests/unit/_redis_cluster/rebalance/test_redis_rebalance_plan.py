# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots go where they are wanted with the least movement, and a second plan moves nothing."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import SLOTS, Node, parse_view
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.converge import (
    of_these_nodes,
    weights_of,
)
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.journal import Record
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.plan import (
    Move,
    imbalance,
    plan,
    whole_shares,
)
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.state import Seen
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = ["a", "b", "c", "d", "e"]
WEIGHTS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=2).filter(
    lambda weights: sum(weights.values()) > 0
)


@st.composite
def clusters(draw: t.Callable[..., t.Any]) -> tuple[dict[int, str], dict[str, float]]:
    """Draw an assignment in runs of slots, and weights."""
    weights = draw(WEIGHTS)
    cuts = sorted(draw(st.lists(st.integers(0, SLOTS), min_size=1, max_size=8)))
    who = draw(st.lists(st.sampled_from(sorted(weights)), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    owners = {}
    for slot in range(SLOTS):
        owners[slot] = who[sum(slot >= cut for cut in cuts)]
    return owners, weights


def after(owners: dict[int, str], moves: t.Iterable[Move]) -> dict[int, str]:
    """Apply moves, each from the owner that it names."""
    then = dict(owners)
    for move in moves:
        assert then[move.slot] == move.source
        then[move.slot] = move.target
    return then


def count(owners: dict[int, str], name: str) -> int:
    return sum(owner == name for owner in owners.values())


@settings(max_examples=12, deadline=None)
@given(clusters())
def test_by_slots_everybody_gets_an_exact_share_and_a_second_plan_is_empty(
    cluster: tuple[dict[int, str], dict[str, float]],
) -> None:
    owners, weights = cluster
    planned = plan(owners, weights, threshold=0.0)
    then = after(owners, planned.moves)
    held = {name: count(owners, name) for name in weights}
    shares = whole_shares(SLOTS, weights, held)

    assert {name: count(then, name) for name in weights} == shares
    # the least movement: nobody takes a slot who gives one away, and no slot moves that need not
    assert len(planned.moves) == sum(max(0, held[name] - shares[name]) for name in weights)
    assert not {move.source for move in planned.moves} & {move.target for move in planned.moves}
    assert not plan(then, weights, threshold=0.0).moves


def test_shares_stay_as_they_are_once_they_are_reached() -> None:
    """Four remainders are equal here, and one of their weights is larger."""
    weights = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 2.0, "e": 7.0}
    first = whole_shares(SLOTS, weights, {"a": SLOTS})
    assert whole_shares(SLOTS, weights, first) == first


@settings(max_examples=12, deadline=None)
@given(clusters(), st.integers(0, 99))
def test_by_load_nobody_gets_further_from_its_share_and_a_second_plan_is_empty(
    cluster: tuple[dict[int, str], dict[str, float]], seed: int
) -> None:
    owners, weights = cluster
    loads = {slot: float((slot * 7919 + seed) % 97) for slot in owners}
    planned = plan(owners, weights, loads, threshold=0.02)
    then = after(owners, planned.moves)

    assert imbalance(planned.after) <= max(imbalance(planned.before), 0.02)
    assert not any(weights[then[move.slot]] == 0 for move in planned.moves)
    assert not any(weight == 0 and count(then, name) for name, weight in weights.items())
    # slots of this size leave less than a percent between the shares
    assert not plan(then, weights, loads, threshold=0.02).moves


def test_within_the_threshold_nothing_moves() -> None:
    owners = {slot: "a" if slot < 8300 else "b" for slot in range(SLOTS)}

    assert not plan(owners, {"a": 1, "b": 1}, threshold=0.02).moves
    assert len(plan(owners, {"a": 1, "b": 1}, threshold=0.01).moves) == 108


def test_what_moves_is_the_end_of_a_range() -> None:
    owners = {slot: NAMES[slot * 3 // SLOTS] for slot in range(SLOTS)}
    planned = plan(owners, {"a": 1, "b": 1, "c": 1, "d": 1})

    assert planned.pairs()["a", "d"] == list(range(4096, 5462))
    assert planned.id == plan(owners, {"a": 1, "b": 1, "c": 1, "d": 1}).id


def test_one_slot_that_carries_all_moves_nowhere_and_the_plan_says_so() -> None:
    owners = {slot: "a" if slot < 100 else "b" for slot in range(SLOTS)}
    planned = plan(owners, {"a": 1, "b": 1}, {7: 1000.0})

    assert planned.moves == ()
    assert "single slots carry more" in planned.left_out[0]


def test_a_limit_on_moves_is_kept_and_told() -> None:
    owners = dict.fromkeys(range(SLOTS), "a")
    planned = plan(owners, {"a": 1, "b": 1}, max_moves=10)

    assert len(planned.moves) == 10
    assert planned.left_out == ("8182 of 8192 slots stay, since max_moves is 10.",)


def test_who_has_no_weight_cannot_be_planned_for() -> None:
    with pytest.raises(ValueError, match="no weight for b"):
        plan({0: "b"}, {"a": 1})
    with pytest.raises(ValueError, match="all weights are 0"):
        plan({0: "a"}, {"a": 0})


def shard() -> dict[str, Seen]:
    """Return what is seen of a primary, a, and its replica, b."""
    lines = {
        "a": "{0} 192.0.2.1:6379@16379 {1}master - 0 0 1 connected 0-16383",
        "b": "{0} 192.0.2.2:6379@16379 {1}slave " + "a" * 40 + " 0 0 1 connected",
    }
    return {
        name: Seen(
            Node(name, "192.0.2.1", 6379),
            parse_view("\n".join(lines[one].format(one * 40, "myself," if one == name else "") for one in lines)),
        )
        for name in lines
    }


def test_a_shard_has_the_weight_of_its_replica_but_not_that_of_a_node_that_was_emptied() -> None:
    seen = shard()
    assert weights_of(seen, {}) == {"a": 1.0}
    assert weights_of(seen, {"b": 3.0}) == {"a": 3.0}
    assert weights_of(seen, {"a": 2.0, "b": 3.0}) == {"a": 2.0}
    assert weights_of(seen, {"a": 0.0}) == {"a": 0.0}
    assert weights_of(seen, {"b": 0.0}) == {"a": 1.0}


def test_a_journal_of_a_former_cluster_does_not_count() -> None:
    record = Record("p1", (Move(1, "a", "b"),), {"a": "a" * 40, "gone": "c" * 40}, frozenset({1}))
    assert of_these_nodes(record, shard()) is record
    assert of_these_nodes(dataclasses.replace(record, ids={"a": "d" * 40}), shard()) is None
    assert of_these_nodes(None, shard()) is None
