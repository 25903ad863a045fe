# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of all members become one: the highest epoch counts, splits replace, and what was edited by hand is found."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Member,
    Placement,
    Shard,
    ShardMap,
    Table,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.observed import (
    Seen,
    StoredMap,
    digest_of,
    merge,
)

MEMBERS = (Member("s1", "10.0.0.1"), Member("s2", "10.0.0.2"), Member("r1", "10.0.0.3", role="router"))
SHARDS = (Shard("s1"), Shard("s2", 2.0))
TABLES = (Table("public.a", "id"),)


def group(*buckets: Bucket, strategy: str = "range") -> Group:
    return Group("a", strategy, "bigint", TABLES, buckets)


THREE = group(Bucket(0, None, 10), Bucket(1, 10, 20), Bucket(2, 20, None))


def shard_map(given: Group, placements: dict[int, tuple[str, int]], shards: tuple[Shard, ...] = SHARDS) -> ShardMap:
    epoch = max(one for _shard, one in placements.values())
    return ShardMap(epoch, shards, (given,), {("a", number): Placement(*one) for number, one in placements.items()})


def seen(member: Member, one: ShardMap | None, **other: t.Any) -> Seen:
    stored = None
    if one is not None:
        digest = digest_of("shop", MEMBERS, one.shards, one.groups)
        stored = StoredMap("shop", member.name, member.role, 1, "x", other.pop("digest", digest), MEMBERS, one)
    return Seen(member, 170000, {}, member.name, stored=stored, **other)


def world(*maps: ShardMap | None) -> dict[str, Seen]:
    return {member.name: seen(member, one) for member, one in zip(MEMBERS, maps, strict=False)}


FIRST = {0: ("s1", 1), 1: ("s1", 1), 2: ("s2", 1)}


def test_no_map_is_none() -> None:
    assert merge(world(None, None)) is None


def test_the_highest_epoch_of_each_bucket_is_true() -> None:
    found = merge(
        world(
            shard_map(THREE, {**FIRST, 0: ("s2", 2)}),
            shard_map(THREE, {**FIRST, 1: ("s2", 3)}),
            shard_map(THREE, FIRST),
        )
    )
    assert found is not None
    assert {key[1]: (one.shard, one.epoch) for key, one in found.placements.items()} == {
        0: ("s2", 2),
        1: ("s2", 3),
        2: ("s2", 1),
    }
    assert found.epoch == 3


def test_a_member_without_a_map_says_nothing() -> None:
    found = merge(world(None, shard_map(THREE, FIRST), None))
    assert found is not None
    assert found.groups == (THREE,)


def test_what_a_split_replaced_is_left_out_wherever_it_is_still_known() -> None:
    cut = group(Bucket(0, None, 10), Bucket(3, 10, 15), Bucket(4, 15, 20), Bucket(2, 20, None))
    after = {0: ("s1", 1), 3: ("s1", 2), 4: ("s1", 2), 2: ("s2", 1)}
    for maps in (
        (shard_map(cut, after), shard_map(THREE, FIRST)),
        (shard_map(THREE, FIRST), shard_map(cut, after)),
        # the one that was not told of the split has been told of a later move
        (shard_map(cut, after), shard_map(THREE, {**FIRST, 2: ("s1", 3)})),
    ):
        found = merge(world(*maps))
        assert found is not None
        assert [bucket.number for bucket in found.groups[0].buckets] == [0, 3, 4, 2]
        assert ("a", 1) not in found.placements


def test_tenants_that_were_isolated_are_in_one_bucket_alone() -> None:
    def directory(*buckets: Bucket) -> Group:
        return Group("a", "directory", "text", TABLES, buckets)

    before = directory(Bucket(0, tenants=("x", "y")), Bucket(1, tenants=("z",)))
    after = directory(Bucket(1, tenants=("z",)), Bucket(2, tenants=("x",)), Bucket(3, tenants=("y",)))
    found = merge(
        world(
            shard_map(before, {0: ("s1", 1), 1: ("s2", 1)}),
            shard_map(after, {1: ("s2", 1), 2: ("s1", 2), 3: ("s1", 2)}),
        )
    )
    assert found is not None
    assert [bucket.tenants for bucket in found.groups[0].buckets] == [("z",), ("x",), ("y",)]


def test_two_places_at_one_epoch_are_refused() -> None:
    with pytest.raises(
        HeadroomError, match="bucket a/0 lies on s2 at epoch 1 there, and on s1 at the same epoch at s1"
    ):
        merge(world(shard_map(THREE, FIRST), shard_map(THREE, {**FIRST, 0: ("s2", 1)})))


def test_rows_that_were_edited_are_named() -> None:
    good = world(shard_map(THREE, FIRST), shard_map(THREE, FIRST))
    edited = shard_map(THREE, FIRST, (Shard("s1"), Shard("s2", 9.0)))
    assert good["s1"].stored is not None
    bad = {**good, "s2": seen(MEMBERS[1], edited, digest=good["s1"].stored.digest)}
    with pytest.raises(
        HeadroomError, match=r"edited by hand, of shard s2 the weight is 9\.0 there and 2\.0 at s1\."
    ) as error:
        merge(bad)
    assert error.value.code == "map_edited"
    alone = {"s2": bad["s2"]}
    with pytest.raises(HeadroomError, match="its rows are not those that were declared"):
        merge(alone)


def test_members_that_know_a_new_table_count() -> None:
    more = replace(THREE, tables=(*TABLES, Table("public.b", "a")))
    found = merge(world(shard_map(THREE, FIRST), shard_map(more, FIRST), shard_map(THREE, {**FIRST, 0: ("s2", 2)})))
    assert found is not None
    assert [table.name for table in found.groups[0].tables] == ["public.a", "public.b"]


def test_the_digest_leaves_placements_out() -> None:
    one, other = shard_map(THREE, FIRST), shard_map(THREE, {**FIRST, 0: ("s2", 7)})
    assert digest_of("shop", MEMBERS, one.shards, one.groups) == digest_of("shop", MEMBERS, other.shards, other.groups)
    assert digest_of("shop", MEMBERS, one.shards, one.groups) != digest_of("else", MEMBERS, one.shards, one.groups)
