# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A move, its names, and what two shards say of it."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import (
    FORWARD,
    REVERSE,
    Leaf,
    Move,
    entry_of,
    move_from,
    newest,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.options import MAX_TABLE_NAME

TABLES = (Table("public.orders", "user_id"), Table("public.items", "user_id"))
GROUP = Group("users", "hash", "bigint", TABLES, tuple(Bucket(number) for number in range(64)))


def row(entry: int, **more: t.Any) -> dict[str, t.Any]:
    return {
        "id": "m1",
        "plan_id": None,
        "group_name": "users",
        "bucket": 7,
        "source": "a",
        "target": "b",
        "state": "copying",
        "step": None,
        "detail": {"entry": entry, "owner": "a"},
        "bytes_total": None,
        "bytes_done": 5,
        "rows": None,
        "error": None,
        **more,
    }


def test_names_fit_into_an_identifier() -> None:
    leaf = Leaf(Table("public." + "x" * MAX_TABLE_NAME, "k"), 4095)
    assert max(len(name) for name in (leaf.name, leaf.retired, leaf.forwarder)) <= 63


def test_objects_of_a_move_begin_alike_and_differ() -> None:
    move = Move("0123456789", GROUP, 7, "a", "b")
    names = {move.names.publication(way) for way in (FORWARD, REVERSE)} | {move.names.gid("x")}
    assert len(names) == 3
    assert all(name.startswith(move.names.prefix) for name in names)
    # a slot takes nothing else
    assert all(sign in "abcdefghijklmnopqrstuvwxyz0123456789_" for name in names for sign in name)


def test_ends_turn_around() -> None:
    move = Move("m1", GROUP, 7, "a", "b")
    assert move.ends(FORWARD) == ("a", "b")
    assert move.ends(REVERSE) == ("b", "a")


def test_leaves_are_those_of_all_tables() -> None:
    assert [leaf.name for leaf in Move("m1", GROUP, 7, "a", "b").leaves] == ["orders_b7", "items_b7"]


def test_the_shard_with_more_entries_is_right() -> None:
    late = row(5, state="switched")
    assert newest([row(4), late, row(3)]) == {"m1": late}


@pytest.mark.parametrize("detail", [None, {}, {"entry": 0}])
def test_a_row_without_entries_counts_least(detail: t.Any) -> None:
    assert entry_of({"detail": detail}) == 0


def test_move_is_read_back_from_its_row() -> None:
    move = move_from(row(5), {"users": GROUP})
    assert (move.id, move.bucket_id, move.shards, move.entry, move.bytes_done) == ("m1", ("users", 7), ("a", "b"), 5, 5)
    assert move.detail == {"owner": "a"}


def test_move_of_an_unknown_group_is_none() -> None:
    with pytest.raises(KeyError):
        move_from(row(1), {})
