# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a move from beginning."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.preflight import (
    Needs,
    affordable,
    leaf_reason,
    shard_reasons,
)

GROUP = Group("users", "hash", "bigint", (Table("public.orders", "user_id"),), tuple(Bucket(n) for n in range(64)))
MOVE = Move("m1", GROUP, 7, "a", "b")
GOOD = {
    "version": 170004,
    "in_recovery": False,
    "wal_level": "logical",
    "slots_free": 5,
    "senders_free": 5,
    "workers_free": 4,
    "prepared_free": 5,
    "long": None,
    "stale_prepared": None,
}
COLUMN = {"name": "user_id", "type": "bigint", "collation": None, "not_null": True, "generated": None, "sequence": None}
INDEX = {
    "name": "orders_b7_pkey",
    "definition": "CREATE UNIQUE INDEX orders_b7_pkey ON public.orders_b7 USING btree (user_id)",
    "primary": True,
    "valid": True,
    "constraint": {"type": "p"},
    "columns": ["user_id"],
}
LEAF: dict[str, t.Any] = {
    "kind": "r",
    "parent": "orders",
    "persistence": "p",
    "identity": "d",
    "row_security": False,
    "columns": [COLUMN],
    "indexes": [INDEX],
    "foreign_keys": [],
    "referenced": [],
    "default_partition": None,
}
PARENT = {**LEAF, "kind": "p", "parent": None, "default_partition": False}


def test_a_good_shard_has_no_reason() -> None:
    assert shard_reasons("a", GOOD, Needs(1, 1, 1000), 10_000) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 150004}, "PostgreSQL 15 is too old"),
        ({"in_recovery": True}, "standby"),
        ({"wal_level": "replica"}, "set it to logical"),
        ({"slots_free": 1}, "max_replication_slots"),
        ({"senders_free": -1}, "0 of max_wal_senders"),
        ({"workers_free": 0}, "max_logical_replication_workers"),
        ({"prepared_free": 0}, "max_prepared_transactions"),
        (
            {"long": [{"pid": 7, "name": "", "seconds": 900}]},
            "process 7 (unnamed) has written in a transaction for 900 s",
        ),
        ({"stale_prepared": ["x"]}, "transaction x is prepared"),
    ],
)
def test_each_lack_is_named_with_its_remedy(change: dict[str, t.Any], words: str) -> None:
    (reason,) = shard_reasons("a", {**GOOD, **change}, Needs(1, 1, 0), None)
    assert reason.startswith("a: ")
    assert words in reason


def test_what_can_be_taken_back_keeps_slots_and_workers() -> None:
    assert shard_reasons("a", GOOD, Needs(1, 1, 0, kept_leaving=3, kept_coming=4), None) == []
    slots = shard_reasons("a", GOOD, Needs(1, 1, 0, kept_coming=5), None)
    assert [reason.partition(" free and ")[2].partition(" ")[0] for reason in slots] == ["6", "6"]
    assert all("set revert_window_s to 0" in reason for reason in slots)
    (workers,) = shard_reasons("a", GOOD, Needs(1, 1, 0, kept_leaving=4), None)
    assert "max_logical_replication_workers are free and 5 are needed" in workers


def test_as_many_moves_as_can_be_taken_back() -> None:
    facts = {name: {"slots_free": 5, "senders_free": 9, "workers_free": 9} for name in "abc"}
    moves = [("a", "c"), ("b", "c")] * 5
    # the target's slots: it gives nothing away itself
    assert affordable(moves, facts, 1) == (5, "max_replication_slots of c")
    facts["a"]["workers_free"] = 1
    assert affordable(moves, facts, 1) == (2, "max_logical_replication_workers of a")
    assert affordable(moves[:2], facts, 1) == (2, "")


def test_disk_must_have_room_for_what_comes() -> None:
    needs = Needs(coming_bytes=1000)
    assert shard_reasons("a", GOOD, needs, 1300) == []
    assert "are free on its disk" in shard_reasons("a", GOOD, needs, 1299)[0]
    assert "are free on its disk" in shard_reasons("a", GOOD, needs, 1400, min_free_bytes=101)[0]
    # what is not for this login to know cannot be held against it
    assert shard_reasons("a", GOOD, needs, None) == []


def test_a_good_leaf_has_no_reason() -> None:
    assert leaf_reason(MOVE, MOVE.leaves[0], LEAF, PARENT, PARENT, []) is None


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ({"parent": None}, {}, "is no partition of public.orders on a"),
        ({"indexes": []}, {}, "no primary key"),
        ({"identity": "n"}, {}, "REPLICA IDENTITY DEFAULT"),
        ({"persistence": "u"}, {}, "SET LOGGED"),
        ({"row_security": True}, {}, "row-level security"),
        ({"kind": "p"}, {}, "is partitioned itself"),
        ({"foreign_keys": [{"inherited": True}]}, {}, "foreign key"),
        ({"indexes": [{**INDEX, "valid": False}]}, {}, "is not valid"),
        ({}, {"default_partition": True}, "default partition"),
        ({}, {"kind": "r"}, "not a partitioned table on b"),
        ({}, {"columns": [{**COLUMN, "type": "integer"}]}, "columns user_id"),
        ({}, {"indexes": []}, "the indexes of public.orders_b7"),
    ],
)
def test_each_hindrance_of_a_leaf_is_named(source: dict[str, t.Any], target: dict[str, t.Any], words: str) -> None:
    reason = leaf_reason(MOVE, MOVE.leaves[0], {**LEAF, **source}, PARENT, {**PARENT, **target}, [])
    assert reason is not None
    assert words in reason


def test_tables_that_are_in_the_way_are_named() -> None:
    reason = leaf_reason(MOVE, MOVE.leaves[0], LEAF, PARENT, PARENT, ["public.orders_b7"])
    assert reason is not None
    assert "b has public.orders_b7 already" in reason
