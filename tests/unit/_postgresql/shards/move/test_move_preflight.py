# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a move from beginning."""

from __future__ import annotations

import asyncio
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import MemberError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.preflight import (
    Needs,
    _leaves_reason,
    _pair_reason,
    _unreached,
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
    "processes_free": 9,
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
        ({"processes_free": 1}, "1 of max_worker_processes are free and 2 are needed"),
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
    facts = {name: {"slots_free": 5, "senders_free": 9, "workers_free": 9, "processes_free": 9} for name in "abc"}
    moves = [("a", "c"), ("b", "c")] * 5
    # the target's slots: it gives nothing away itself
    assert affordable(moves, facts, 1) == (5, "max_replication_slots of c")
    facts["a"]["workers_free"] = 1
    assert affordable(moves, facts, 1) == (2, "max_logical_replication_workers of a")
    assert affordable(moves[:2], facts, 1) == (2, "")
    facts["b"]["processes_free"] = 0
    assert affordable(moves, facts, 1) == (1, "max_worker_processes of b")


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
        (
            {"columns": [{**COLUMN, "generated": "(id + 1)"}]},
            {},
            "column user_id of the primary key of public.orders_b7 is generated",
        ),
        ({"identity": "n"}, {}, "REPLICA IDENTITY DEFAULT"),
        ({"persistence": "u"}, {}, "SET LOGGED"),
        ({"row_security": True}, {}, "row-level security"),
        ({"kind": "p"}, {}, "is partitioned itself"),
        ({"columns": [{**COLUMN, "type": "regclass[]"}]}, {}, "column user_id of public.orders_b7 is regclass[]"),
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


LOCALE = {
    "provider": "i",
    "lc_collate": "C.UTF-8",
    "lc_ctype": "C.UTF-8",
    "locale": "de",
    "rules": None,
    "encoding": "UTF8",
    "version": "153.120",
}


def test_shards_that_sort_alike_can_exchange_rows() -> None:
    facts = {name: {"version": 170004, "locale": LOCALE, "servers": ["headroom_a", "headroom_b"]} for name in "ab"}
    assert _pair_reason(MOVE, facts) is None


@pytest.mark.parametrize(
    ("what", "other", "remedy"),
    [
        ("locale", "sv", "make a database"),
        ("lc_ctype", "C", "make a database"),
        ("rules", "&a < b", "make a database"),
        ("encoding", "LATIN1", "make a database"),
        ("version", "153.14", "collation version, and reindex"),
    ],
)
def test_shards_that_would_sort_differently_are_named(what: str, other: str, remedy: str) -> None:
    facts = {
        name: {"version": 170004, "locale": locale, "servers": ["headroom_a", "headroom_b"]}
        for name, locale in (("a", LOCALE), ("b", {**LOCALE, what: other}))
    }
    reason = _pair_reason(MOVE, facts)
    assert reason is not None
    assert reason.startswith(f"the {what} of the databases of a and b is {LOCALE[what]} and {other}; ")
    assert remedy in reason


class Doors:
    """Members of which some do not let others in."""

    def __init__(self, *closed: tuple[str, str]) -> None:
        self.closed = closed
        self.tried: list[str] = []
        self.left: list[tuple[str, str]] = []

    async def rows(self, shard: str, query: str, *, purpose: str, verb: str) -> list[t.Any]:
        self.tried.append(shard)
        for closed, other in self.closed:
            if closed == shard and f'SERVER "headroom_{other}"' in query:
                raise MemberError(f"Failed to {verb} {shard} on h:5432: no entry.", code="access_denied", member=shard)
        return []

    async def close(self, shard: str, purpose: str) -> None:
        self.left.append((shard, purpose))


def test_shards_must_reach_each_other_both_ways() -> None:
    moves = [MOVE, Move("m2", GROUP, 8, "a", "b")]
    assert asyncio.run(_unreached(t.cast("t.Any", Doors()), moves)) == []

    doors = Doors(("b", "a"))
    (reason,) = asyncio.run(_unreached(t.cast("t.Any", doors), moves))
    assert reason.startswith(
        "b cannot log in to a as the members do: Failed to log in from b on h:5432: no entry. Look at"
    )
    assert doors.tried == ["a", "b"]
    assert doors.left == [("a", "reach"), ("b", "reach")]


class Attached:
    """Shards with all that a move needs, and something that hangs on the leaf itself."""

    def __init__(self, what: str | None) -> None:
        self.what = what

    async def rows(self, shard: str, _query: t.Any, params: t.Any = None, **_how: t.Any) -> list[dict[str, t.Any]]:
        if "own" in params:
            assert (shard, params["leaf"], params["own"]) == ("a", '"public"."orders_b7"', ['"public"."orders_b7"'])
            return [] if self.what is None else [{"what": self.what}]
        known = {"orders": PARENT, **({"orders_b7": LEAF} if shard == "a" else {})}
        return [{"facts": {**known[params["name"]], "owner": "app", "grants": []}}] if params["name"] in known else []


def test_what_hangs_on_a_leaf_itself_is_named_before_it_is_lost() -> None:
    facts = {name: {"roles": ["app"]} for name in "ab"}

    def reason(what: str | None) -> str | None:
        return asyncio.run(_leaves_reason(t.cast("t.Any", Attached(what)), MOVE, facts))

    assert reason(None) is None
    assert str(reason("trigger audit")).startswith("trigger audit is attached to the leaf public.orders_b7 itself")
