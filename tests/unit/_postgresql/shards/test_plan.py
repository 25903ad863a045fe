# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan brings every shard within its share, keeps to its limits, and says what it leaves and why."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    BucketId,
    Group,
    Placement,
    Shard,
    ShardMap,
    Table,
    Usage,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.plan import (
    Limits,
    Plan,
    imbalance,
    mixed_load,
    plan,
    plan_id,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

GB = 10**9
TABLES = (Table("public.users", "id"),)


def cluster(
    sizes: t.Mapping[str, t.Sequence[int]], shards: t.Sequence[Shard] | None = None, strategy: str = "hash"
) -> tuple[ShardMap, dict[BucketId, Usage]]:
    """Return a map of one group, and its usage with the load that the size has.

    :param sizes: shard to the bytes of each of its buckets.
    """
    held = [(shard, size) for shard, found in sizes.items() for size in found]
    buckets = tuple(Bucket(number) for number in range(len(held)))
    placements = {("users", number): Placement(shard, 1) for number, (shard, _size) in enumerate(held)}
    usage = {("users", number): Usage(size, load=float(size)) for number, (_shard, size) in enumerate(held)}
    shards = [Shard(name) for name in sizes] if shards is None else shards
    return ShardMap(1, tuple(shards), (Group("users", strategy, "bigint", TABLES, buckets),), placements), usage


def applied(shard_map: ShardMap, planned: Plan) -> ShardMap:
    """Return the map after the moves of a plan without splits."""
    assert not planned.splits
    placements = dict(shard_map.placements)
    for move in planned.moves:
        assert placements[move.bucket].shard == move.source
        placements[move.bucket] = Placement(move.target, shard_map.epoch + 1)
    return dataclasses.replace(shard_map, epoch=shard_map.epoch + 1, placements=placements)


def codes(planned: Plan) -> list[str]:
    return sorted(one.code for one in planned.left_out)


@st.composite
def clusters(draw: t.Callable[..., t.Any], drained: bool = False) -> tuple[ShardMap, dict[BucketId, Usage]]:
    """Draw a cluster of up to 40 buckets, with shards of other weights and states and loads that are not the sizes."""
    count = draw(st.integers(2, 5))
    shards = [
        Shard(
            f"s{index}",
            draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])),
            draw(st.sampled_from(["active", "active", "active", "read_only"])) if index else "active",
            draw(st.none() | st.integers(1, 400)),
        )
        for index in range(count)
    ]
    if drained:
        shards[-1] = dataclasses.replace(shards[-1], state="draining")
    homes = draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=40))
    sizes: dict[str, list[int]] = {shard.name: [] for shard in shards}
    for home in homes:
        sizes[f"s{home}"].append(draw(st.integers(0, 60)))
    shard_map, usage = cluster(sizes, shards)
    if draw(st.booleans()):
        usage = {bucket: Usage(one.size_bytes, load=float(draw(st.integers(0, 60)))) for bucket, one in usage.items()}
    return shard_map, usage


LIMITS = st.builds(
    Limits,
    threshold=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
    max_moves=st.none() | st.integers(0, 5),
    max_bytes=st.none() | st.integers(0, 200),
    max_duration_s=st.none() | st.integers(0, 60),
)


@settings(max_examples=50, deadline=None)
@given(clusters(), LIMITS)
def test_it_is_never_worse_than_before(case: tuple[ShardMap, dict[BucketId, Usage]], limits: Limits) -> None:
    shard_map, usage = case
    planned = plan(shard_map, usage, limits)

    before = {share.shard: share for share in planned.before}
    for share in planned.after:
        assert share.over <= max(before[share.shard].over, limits.threshold) + 1e-6
    assert imbalance(planned.after) <= max(imbalance(planned.before), limits.threshold) + 1e-6
    if imbalance(planned.before) <= limits.threshold:
        assert not planned.moves


@settings(max_examples=50, deadline=None)
@given(clusters(drained=True), LIMITS)
def test_limits_and_capacities_are_kept_in_any_order(
    case: tuple[ShardMap, dict[BucketId, Usage]], limits: Limits
) -> None:
    shard_map, usage = case
    planned = plan(shard_map, usage, limits)
    held = {share.shard: share.size_bytes for share in planned.before}
    states = {shard.name: shard for shard in shard_map.shards}

    assert limits.max_moves is None or len(planned.moves) <= limits.max_moves
    assert limits.max_bytes is None or planned.size_bytes <= limits.max_bytes
    assert limits.max_duration_s is None or planned.estimated_s <= limits.max_duration_s
    for move in planned.moves:
        assert states[move.source].state != "read_only"
        assert states[move.target].takes_share
        # nothing leaves a shard before it is retired, so the most that it holds is what it had and all that comes
        held[move.target] += move.size_bytes
        capacity = states[move.target].capacity_bytes
        assert capacity is None or held[move.target] <= capacity


@settings(max_examples=50, deadline=None)
@given(clusters(drained=True), st.sampled_from([0.0, 0.1, 0.5]))
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    case: tuple[ShardMap, dict[BucketId, Usage]], threshold: float
) -> None:
    shard_map, usage = case
    shards = tuple(dataclasses.replace(shard, capacity_bytes=None) for shard in shard_map.shards)
    shard_map = dataclasses.replace(shard_map, shards=shards)
    planned = plan(shard_map, usage, Limits(threshold=threshold))
    again = plan(applied(shard_map, planned), usage, Limits(threshold=threshold))

    assert again.moves == ()
    assert again.before == planned.after
    assert next(share for share in planned.after if share.shard == shards[-1].name).buckets == 0


@settings(max_examples=50, deadline=None)
@given(clusters(), LIMITS)
def test_what_is_over_its_share_is_said(case: tuple[ShardMap, dict[BucketId, Usage]], limits: Limits) -> None:
    planned = plan(*case, limits)

    if imbalance(planned.after) > limits.threshold + 1e-6:
        assert planned.left_out


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(20, 60), min_size=30, max_size=50), st.integers(1, 5))
def test_a_plan_in_pieces_comes_to_the_same_end(sizes: list[int], max_moves: int) -> None:
    shard_map, usage = cluster({"a": sizes, "b": [], "c": []})
    assume(imbalance(plan(shard_map, usage, Limits()).after) <= 0.1 + 1e-6)
    for _run in range(60):
        planned = plan(shard_map, usage, Limits(max_moves=max_moves))
        if not planned.moves:
            break
        shard_map = applied(shard_map, planned)

    assert imbalance(planned.after) <= 0.1 + 1e-6
    assert planned.left_out == ()


def test_a_shard_that_was_added_gets_what_the_others_have_too_much() -> None:
    shard_map, usage = cluster({"a": [GB] * 32, "b": [GB] * 32, "c": []})
    planned = plan(shard_map, usage, Limits(threshold=0.1))

    # a share is 21.3 buckets, and 23 are within a tenth of it
    assert [(share.shard, share.buckets) for share in planned.after] == [("a", 23), ("b", 23), ("c", 18)]
    assert planned.size_bytes == 18 * GB
    assert {move.target for move in planned.moves} == {"c"}
    # the fullest first: the two sources take turns
    assert [move.source for move in planned.moves[:4]] in (["a", "b"] * 2, ["b", "a"] * 2)
    assert planned.left_out == ()


def test_a_draining_shard_is_emptied_within_the_threshold_and_its_empty_buckets_too() -> None:
    shards = [Shard("a"), Shard("b", 2.0), Shard("c", state="draining")]
    shard_map, usage = cluster({"a": [GB] * 10, "b": [GB] * 20, "c": [GB, 0, GB]}, shards)
    planned = plan(shard_map, usage, Limits())

    assert [share.buckets for share in planned.after][-1] == 0
    assert len(planned.moves) == 3
    assert imbalance(planned.before) == 1.0
    assert imbalance(planned.after) <= 0.1


def test_a_drain_that_finds_no_room_says_so() -> None:
    shards = [Shard("a", capacity_bytes=2 * GB), Shard("c", state="draining")]
    planned = plan(*cluster({"a": [GB], "c": [GB, GB]}, shards), Limits())

    assert len(planned.moves) == 1
    assert [one.text for one in planned.left_out if one.code == "not_emptied"] == [
        "c is to be emptied and keeps 1 of its buckets, 953.7 MiB: no shard has room for them."
    ]


def test_what_a_shard_holds_besides_its_buckets_takes_room() -> None:
    shards = [Shard("a"), Shard("b", capacity_bytes=3 * GB)]
    case = cluster({"a": [GB] * 4, "b": []}, shards)

    assert len(plan(*case, Limits()).moves) == 2
    tight = plan(*case, Limits(), kept_bytes={"b": 2 * GB})
    assert len(tight.moves) == 1
    assert codes(tight) == ["over_threshold"]
    assert codes(plan(*case, Limits(), kept_bytes={"b": 4 * GB})) == ["over_capacity", "over_threshold"]


def test_a_read_only_shard_keeps_what_it_has_and_counts_for_nothing() -> None:
    shards = [Shard("a"), Shard("b"), Shard("c", state="read_only")]
    planned = plan(*cluster({"a": [GB] * 4, "b": [], "c": [GB] * 90}, shards), Limits())

    assert [share.buckets for share in planned.after] == [2, 2, 90]
    assert codes(planned) == ["read_only"]


def test_buckets_without_load_are_counted() -> None:
    planned = plan(*cluster({"a": [0] * 64, "b": []}), Limits())

    assert 28 <= planned.after[1].buckets <= 32


def test_limits_leave_moves_to_the_next_plan_and_say_which_limit_it_was() -> None:
    case = cluster({"a": [GB] * 20, "b": []})

    assert plan(*case, Limits(max_moves=3)).left_out[0].text == (
        "6 of 9 moves, 5.6 GiB, are left to the next plan: max_moves is 3."
    )
    assert len(plan(*case, Limits(max_bytes=4 * GB)).moves) == 4
    # 25 s each, two at a time, but one at a time on each shard
    slow = Limits(max_duration_s=120, rate_bytes_s=5e7, move_overhead_s=5, concurrent_moves=2)
    timed = plan(*case, slow)
    assert (len(timed.moves), timed.estimated_s, codes(timed)) == (4, 100.0, ["max_duration_s"])
    both = plan(*case, dataclasses.replace(slow, concurrent_moves_per_shard=2))
    assert (len(both.moves), both.estimated_s) == (9, 112.5)


def test_an_exchange_is_made_whole_or_not_at_all() -> None:
    """Six goes and four comes; with one of them alone a shard would be fuller than either was."""
    case = cluster({"a": [6, 6], "b": [4, 4]})

    assert len(plan(*case, Limits(threshold=0.0)).moves) == 2
    cut = plan(*case, Limits(threshold=0.0, max_moves=1))
    assert cut.moves == ()
    assert codes(cut) == ["max_moves", "needs_another"]


def test_a_bucket_of_a_hash_that_is_too_large_stays_and_is_named() -> None:
    planned = plan(*cluster({"a": [70, 5, 5], "b": [10, 10]}), Limits())

    assert [share.buckets for share in planned.after] == [1, 4]
    assert planned.left_out[0].text == (
        "Bucket users/0 alone carries 70.0% of the load, more than the 55.0% that a shard may, and is not split: "
        "a bucket of a hash cannot be split, since all buckets share one modulus."
    )


def directory() -> tuple[ShardMap, dict[BucketId, Usage]]:
    tenants: tuple[t.Any, ...] = tuple(range(10))
    buckets = (Bucket(0, tenants=tenants), Bucket(1, tenants=(99,)))
    group = Group("users", "directory", "bigint", TABLES, buckets)
    placements = {("users", number): Placement("a", 1) for number in range(2)}
    usage = {
        ("users", 0): Usage(90 * GB, load=90.0, tenant_loads=dict.fromkeys(tenants, 9.0)),
        ("users", 1): Usage(10 * GB, load=10.0),
    }
    return ShardMap(1, (Shard("a"), Shard("b")), (group,), placements), usage


def test_a_bucket_of_a_directory_that_is_too_large_is_split_and_its_parts_spread() -> None:
    planned = plan(*directory(), Limits())

    (made,) = planned.splits
    assert (made.bucket, [part.number for part in made.parts][:2]) == (0, [2, 3])
    assert sorted(tenant for part in made.parts for tenant in part.tenants) == list(range(10))
    assert imbalance(planned.after) <= 0.1 + 1e-6
    assert {move.bucket for move in planned.moves} <= {("users", part.number) for part in made.parts} | {("users", 1)}
    assert planned.left_out == ()


def test_a_tenant_is_isolated() -> None:
    planned = plan(
        *directory(), Limits(threshold=1.0), isolated=[("users", 4), ("users", 5), ("users", 99), ("users", -1)]
    )

    (made,) = planned.splits
    assert [part.tenants for part in made.parts] == [(4,), (0, 1, 2, 3, 5, 6, 7, 8, 9)]
    assert [one.text for one in planned.left_out] == [
        "5 of users is not isolated: its bucket 0 is split for 4 first, so that the next plan can do it.",
        "-1 of users is not isolated: it has no bucket; declare it.",
    ]


def test_nothing_of_a_read_only_shard_is_split() -> None:
    shard_map, usage = directory()
    shard_map = dataclasses.replace(shard_map, shards=(Shard("a", state="read_only"), Shard("b")))
    planned = plan(shard_map, usage, Limits(), isolated=[("users", 4)])

    assert planned.splits == ()
    assert codes(planned) == ["not_isolated", "read_only"]


def test_what_was_not_measured_cannot_be_planned_for() -> None:
    shard_map, usage = cluster({"a": [1, 1], "b": []})
    del usage["users", 1]

    with pytest.raises(ValueError, match="no usage for users/1"):
        plan(shard_map, usage, Limits())


def test_an_id_stands_for_the_map_and_the_limits_and_not_for_sizes() -> None:
    shard_map, usage = cluster({"a": [3, 3, 3], "b": []})
    planned = plan(shard_map, usage, Limits())
    grown = {bucket: Usage(one.size_bytes * 2, load=one.load) for bucket, one in usage.items()}

    assert planned.id == plan(shard_map, grown, Limits()).id == plan_id(shard_map, Limits())
    assert planned.id != plan_id(shard_map, Limits(max_moves=1))
    assert planned.id != plan_id(shard_map, Limits(), [("users", 7)])
    assert planned.id != plan_id(applied(shard_map, planned), Limits())


def test_load_is_a_mix_of_parts_of_totals() -> None:
    figures = {
        ("users", 0): {"size_bytes": 75.0, "writes": 10.0, "reads": 0.0},
        ("users", 1): {"size_bytes": 25.0, "writes": 30.0, "reads": 0.0},
    }

    assert mixed_load(figures, {"size_bytes": 1.0, "writes": 3.0, "reads": 9.0}) == pytest.approx(
        {("users", 0): 0.375, ("users", 1): 0.625}
    )
    assert mixed_load(figures, {"reads": 1.0}) == {("users", 0): 0, ("users", 1): 0}
    with pytest.raises(KeyError, match="cpu_s"):
        mixed_load(figures, {"cpu_s": 1.0})


# --- what can still be taken back


def test_what_is_fixed_stays_and_the_rest_is_planned_around_it() -> None:
    shard_map, usage = cluster({"s1": [GB] * 10, "s2": [GB] * 2}, [Shard("s1"), Shard("s2")])
    fixed = {("users", number): f"m{number}" for number in range(7)}
    planned = plan(shard_map, usage, Limits(threshold=0.0), fixed=fixed)
    assert {move.bucket for move in planned.moves} == {("users", 7), ("users", 8), ("users", 9)}
    assert {share.shard: share.buckets for share in planned.after} == {"s1": 7, "s2": 5}
    # what is left of the imbalance is for those that hold it back
    assert next(one.text for one in planned.left_out) == (
        "Bucket users/0 stays on s1: it came there by move m0 and can still be taken back; end that with state cleaned and retire_now."
    )
    assert {one.code for one in planned.left_out} == {"in_grace"}


def test_a_shard_that_is_emptied_keeps_what_is_fixed() -> None:
    shard_map, usage = cluster({"s1": [GB] * 3, "s2": [GB] * 3}, [Shard("s1", state="draining"), Shard("s2")])
    planned = plan(shard_map, usage, Limits(), fixed={("users", 0): "m0"})
    assert {move.bucket for move in planned.moves} == {("users", 1), ("users", 2)}
    assert {share.shard: share.buckets for share in planned.after} == {"s1": 1, "s2": 5}
    assert [one.code for one in planned.left_out] == ["in_grace"]


def test_what_is_fixed_where_it_belongs_is_not_spoken_of() -> None:
    shard_map, usage = cluster({"s1": [GB] * 3, "s2": [GB] * 3})
    planned = plan(shard_map, usage, Limits(), fixed={("users", 0): "m0"})
    assert (planned.moves, planned.left_out) == ((), ())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.booleans()), min_size=1, max_size=60))
def test_what_is_fixed_never_moves_and_nobody_is_overloaded_for_it(found: list[tuple[int, int, bool]]) -> None:
    held: dict[str, list[int]] = {f"s{number}": [] for number in range(4)}
    for home, size, _fixed in found:
        held[f"s{home}"].append(size)
    shard_map, usage = cluster(held)
    order = sorted(range(len(found)), key=lambda at: found[at][0])
    fixed = {("users", number): "m" for number, at in enumerate(order) if found[at][2]}
    planned = plan(shard_map, usage, Limits(threshold=0.1), fixed=fixed)
    assert not planned.splits
    assert not {move.bucket for move in planned.moves} & fixed.keys()
    before = {share.shard: share.load for share in planned.before}
    for share in planned.after:
        assert share.load <= max(share.wanted * 1.1, before[share.shard]) * (1 + 1e-6) + 1e-6
