# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of the declared shards and groups, each value that cannot be used is named, with the remedy."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Shard
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.options import (
    first_map,
    groups_from,
    shards_from,
)

TABLES = [{"name": "public.users", "key": "id"}]
HASH = {"name": "users", "strategy": "hash", "key_type": "bigint", "buckets": 64, "tables": TABLES}
RANGE = {"name": "bills", "strategy": "range", "key_type": "date", "bounds": ["2025-01-01", "2026-01-01"]}
DIRECTORY = {"name": "agents", "strategy": "directory", "key_type": "text", "tenants": [["acme"], ["a", "b"]]}


def with_tables(group: dict[str, t.Any], **changes: t.Any) -> dict[str, t.Any]:
    return {**group, "tables": [{"name": f"public.{group['name']}", "key": "id"}], **changes}


def test_what_is_declared_becomes_shards_and_buckets() -> None:
    shards = shards_from(
        [
            {"name": "s1"},
            {"name": "s2", "weight": 2, "state": "draining", "capacity_bytes": 5},
            {"name": "s3", "weight": 0},
        ]
    )
    users, bills, agents = groups_from([HASH, with_tables(RANGE), with_tables(DIRECTORY)])

    assert shards == (Shard("s1"), Shard("s2", 2.0, "draining", 5), Shard("s3", 0.0))
    assert [shard.is_emptied for shard in shards] == [False, True, True]
    assert [bucket.number for bucket in users.buckets] == list(range(64))
    assert [(str(one.lower), str(one.upper)) for one in bills.buckets] == [
        ("None", "2025-01-01"),
        ("2025-01-01", "2026-01-01"),
        ("2026-01-01", "None"),
    ]
    assert agents.buckets == (Bucket(0, tenants=("acme",)), Bucket(1, tenants=("a", "b")))


def test_the_first_map_has_a_place_for_every_bucket() -> None:
    shards = shards_from([{"name": "s1"}, {"name": "s2"}])
    first = first_map(shards, groups_from([HASH, with_tables(DIRECTORY)]))

    assert len(first.placements) == 66
    assert {(placement.shard, placement.epoch) for placement in first.placements.values()} == {("s1", 1), ("s2", 1)}


@pytest.mark.parametrize(
    ("shards", "option", "said"),
    [
        ([], "shards", "at least one"),
        ([{"name": "S 1"}], "shards[0].name", "a-z"),
        ([{"name": "a"}, {"name": "a"}], "shards[1].name", "declared before"),
        ([{"name": "a", "weight": -1}], "shards[0].weight", "0 to 100"),
        ([{"name": "a", "weight": 101}], "shards[0].weight", "0 to 100"),
        ([{"name": "a", "weight": float("nan")}], "shards[0].weight", "0 to 100"),
        ([{"name": "a", "weight": True}], "shards[0].weight", "0 to 100"),
        ([{"name": "a", "state": "up"}], "shards[0].state", "draining"),
        ([{"name": "a", "capacity_bytes": 0}], "shards[0].capacity_bytes", "above 0"),
        ([{"name": "a", "weight": 0}, {"name": "b", "weight": 0}], "shards", "weight above 0"),
        ([{"name": "a", "state": "draining"}], "shards", "active shard"),
    ],
)
def test_shards_that_cannot_be_are_refused(shards: list[t.Any], option: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as seen:
        shards_from(shards)
    assert seen.value.facts["option"] == option


@pytest.mark.parametrize(
    ("groups", "option", "said"),
    [
        ([{**HASH, "name": "1"}], "groups[0].name", "letter first"),
        ([HASH, HASH], "groups[1].name", "declared before"),
        ([{**HASH, "strategy": "modulo"}], "groups[0].strategy", "hash, range, directory"),
        ([{**HASH, "key_type": "float"}], "groups[0].key_type", "bigint"),
        ([{**HASH, "key_type": "date"}], "groups[0].key_type", "strategy 'hash' takes"),
        ([{**HASH, "buckets": 63}], "groups[0].buckets", "64 to 4096"),
        ([{**HASH, "buckets": None}], "groups[0].buckets", "needs it"),
        ([{**HASH, "bounds": [1]}], "groups[0].bounds", "takes 'buckets' instead"),
        ([{**HASH, "tables": []}], "groups[0].tables", "at least one table"),
        ([{**HASH, "tables": [{"name": "users", "key": "id"}]}], "groups[0].tables[0].name", "schema.table"),
        ([{**HASH, "tables": [{"name": "a." + "b" * 49, "key": "id"}]}], "groups[0].tables[0].name", "48 characters"),
        ([{**HASH, "tables": [{"name": "a.b"}]}], "groups[0].tables[0].key", "column"),
        ([{**HASH, "tables": TABLES * 2}], "groups[0].tables", "group users has public.users already"),
        ([HASH, {**HASH, "name": "other"}], "groups[1].tables", "group users has public.users already"),
        ([with_tables(RANGE, bounds=[])], "groups[0].bounds", "new bucket begins"),
        ([with_tables(RANGE, bounds=["2026-01-01", "soon"])], "groups[0].bounds[1]", "YYYY-MM-DD"),
        ([with_tables(RANGE, bounds=["2026-01-01", "2025-01-01"])], "groups[0].bounds[1]", "above the one before"),
        ([with_tables(DIRECTORY, tenants=[[]])], "groups[0].tenants[0]", "at least one tenant"),
        ([with_tables(DIRECTORY, tenants=[["a"], ["b", "a"]])], "groups[0].tenants[1][1]", "in a bucket already"),
        ([with_tables(DIRECTORY, tenants=[[7]])], "groups[0].tenants[0][0]", "since the shard key is text"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups: list[t.Any], option: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as seen:
        groups_from(groups)
    assert seen.value.facts["option"] == option
