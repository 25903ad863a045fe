# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many processes build the indexes of a bucket, and what is done beside the comparison of its rows."""

from __future__ import annotations

import asyncio
import re
import typing as t
from types import SimpleNamespace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import MemberError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import catalog
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.guard import Guard
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.mover import (
    Carrier,
    Mover,
    Settings,
)

pytest.importorskip("psycopg")

from psycopg import sql  # noqa: E402

GROUP = Group("users", "hash", "bigint", (Table("public.orders", "user_id"),), (Bucket(0),))


class Members:
    """Keeps what is asked of each connection."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {}

    async def rows(self, shard: str, query: t.Any, *_params: t.Any, purpose: str, **_how: t.Any) -> list[t.Any]:
        self.asked.setdefault(purpose, []).append(query if isinstance(query, str) else query.as_string(None))
        await asyncio.sleep(0)
        return []

    async def close(self, _shard: str, _purpose: str) -> None:
        pass


@pytest.mark.parametrize(
    ("streams", "indexes", "rate", "builders", "workers"),
    [
        (2, 3, 0, 2, 0),
        (2, 1, 0, 1, 1),
        (1, 2, 0, 1, 0),
        (8, 3, 0, 3, 1),
        (2, 0, 0, 1, 1),
        (8, 3, 1000, 1, 0),
    ],
)
def test_indexes_have_no_more_processes_than_a_copy_has_streams_and_one_beside_a_limit(
    streams: int, indexes: int, rate: int, builders: int, workers: int
) -> None:
    members = Members()
    context = SimpleNamespace(members=members, journal=None, settings=Settings(streams=streams), guard=Guard(rate))
    work = [[sql.SQL("CREATE INDEX i{} ON t (a)").format(sql.Literal(number))] for number in range(indexes)]
    asyncio.run(Carrier(t.cast("t.Any", context), Move("m1", GROUP, 0, "a", "b"))._side_by_side(work))
    assert len(members.asked) == builders
    assert {re.search(r"least\((\d+),", said[0])[1] for said in members.asked.values()} == {str(workers)}  # type: ignore[index]
    made = [statement for said in members.asked.values() for statement in said[1:]]
    assert sorted(made) == [f"CREATE INDEX i{number} ON t (a)" for number in range(indexes)]
    assert builders * (1 + workers) <= streams


INDEX = "orders_b0_total_idx"


def leaf_facts(*names: str) -> catalog.Facts:
    """Return what the catalogs say of a leaf with indexes of such names."""
    indexes = [
        {
            "name": name,
            "definition": f"CREATE INDEX {name} ON public.orders_b0 USING btree (total)",
            "primary": False,
            "valid": True,
            "constraint": None,
            "columns": ["total"],
        }
        for name in names
    ]
    return {"indexes": indexes}


class Taken(Members):
    """A target on which somebody else makes an index of the name after it was free."""

    def __init__(self, states: list[str]) -> None:
        super().__init__()
        self.states = states
        self.made: list[str] = []

    async def rows(self, shard: str, query: t.Any, *params: t.Any, **how: t.Any) -> list[t.Any]:
        said = query if isinstance(query, str) else query.as_string(None)
        if "json_build_object" in said:
            return [{"facts": leaf_facts(INDEX) if shard == "a" else leaf_facts()}]
        if "relname = ANY" in said:
            return [{"name": INDEX}] if self.made else []
        if said.startswith("CREATE INDEX"):
            self.made.append(said)
            if self.states:
                state = self.states.pop(0)
                text = "of constraint pg_class_relname_nsp_index" if state == "23505" else "it is there"
                raise MemberError(text, code="statement_failed", member=shard, sqlstate=state)
        return []


@pytest.mark.parametrize(
    ("states", "tries"), [([], 1), (["42P07"], 2), (["23505"], 2), (["42P07"] * 9, 3), (["53100"], 1)]
)
def test_a_name_that_is_taken_while_an_index_is_built_is_chosen_anew(states: list[str], tries: int) -> None:
    members = Taken(list(states))
    context = SimpleNamespace(members=members, access=None, journal=None, settings=Settings(), guard=Guard(0))
    move = Move("m1", GROUP, 0, "a", "b")
    built = Mover(t.cast("t.Any", context), move)._build(move.leaves[0])
    if len(states) < tries:
        asyncio.run(built)
    else:
        with pytest.raises(MemberError):
            asyncio.run(built)
    other = '"orders_b0_m1_0"'
    names = [said.split()[2] for said in members.made]
    assert names == [INDEX, *[other] * (tries - 1)]


class Verifier:
    """Compares for a moment."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def run(self) -> str:
        """Find all alike, or not."""
        await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        return "alike"


def test_the_target_learns_of_its_rows_while_they_are_compared() -> None:
    members = Members()
    context = SimpleNamespace(members=members, access=None, journal=None, settings=Settings(), guard=Guard(0))
    mover = Mover(t.cast("t.Any", context), Move("m1", GROUP, 0, "a", "b"))
    assert asyncio.run(mover._compared(t.cast("t.Any", Verifier()))) == "alike"
    assert members.asked == {"analyze m1": ['ANALYZE "public"."orders_b0"']}


@pytest.mark.parametrize("slow", [True, False])
def test_nothing_runs_on_after_a_comparison_that_failed(slow: bool) -> None:
    members = Members()
    ended: list[str] = []

    async def rows(*_what: t.Any, **_how: t.Any) -> list[t.Any]:
        try:
            await asyncio.sleep(60 if slow else 0)
        finally:
            ended.append("ANALYZE")
        return []

    members.rows = rows  # type: ignore[method-assign]
    context = SimpleNamespace(members=members, access=None, journal=None, settings=Settings(), guard=Guard(0))
    mover = Mover(t.cast("t.Any", context), Move("m1", GROUP, 0, "a", "b"))

    async def work() -> None:
        with pytest.raises(ValueError, match="differs"):
            await mover._compared(t.cast("t.Any", Verifier(ValueError("it differs"))))
        assert ended == ["ANALYZE"]

    asyncio.run(work())
