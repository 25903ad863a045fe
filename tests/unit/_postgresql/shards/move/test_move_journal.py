# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a shard is told of its moves when it comes back."""

from __future__ import annotations

import asyncio
import types
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.journal import Journal

pytest.importorskip("psycopg")

GROUP = Group("users", "hash", "bigint", (Table("public.orders", "user_id"),), (Bucket(0), Bucket(1)))


class Members:
    """Shards that hold rows of the journal, and note what they are told."""

    def __init__(self, rows: dict[str, list[dict[str, t.Any]]]) -> None:
        self.held = rows
        self.shards = [types.SimpleNamespace(name=name) for name in rows]
        self.told: list[tuple[str, dict[str, t.Any]]] = []

    async def each(self, work: t.Callable[[str], t.Awaitable[t.Any]], names: t.Iterable[str]) -> dict[str, t.Any]:
        return {name: await work(name) for name in names}

    async def rows(self, name: str, query: str, params: t.Any = None, **_more: t.Any) -> list[dict[str, t.Any]]:
        if query.startswith("SELECT"):
            return self.held[name]
        self.told.append((name, params["row"].obj))
        return []


def row(state: str, entry: int, **more: t.Any) -> dict[str, t.Any]:
    return {
        "id": "abc",
        "plan_id": "p",
        "group_name": "users",
        "bucket": 1,
        "source": "a",
        "target": "b",
        "state": state,
        "step": "leaves",
        "detail": {"entry": entry},
        "bytes_total": 0,
        "bytes_done": 0,
        "rows": 0,
        "error": None,
        **more,
    }


@pytest.mark.parametrize("end", ["failed", "retired", "reverted"])
def test_who_was_away_at_the_end_of_a_move_is_told(end: str) -> None:
    members = Members({"a": [row("copying", 2)], "b": [row(end, 3, error="it was away")], "c": []})

    asyncio.run(Journal(t.cast(t.Any, members)).level({"users": GROUP}))

    ((name, told),) = members.told
    assert (name, told["state"], told["error"], told["detail"]) == ("a", end, "it was away", {"entry": 3})


@pytest.mark.parametrize(
    "held",
    [
        {"a": [row("copying", 2)], "b": [row("catching_up", 3)]},
        {"a": [row("failed", 3)], "b": [row("failed", 3)]},
        {"a": [row("switched", 4)], "b": [row("failed", 3)]},
        {"a": [row("copying", 2, group_name="gone")], "b": [row("failed", 3, group_name="gone")]},
    ],
    ids=["goes-on", "both-know", "went-further", "other-group"],
)
def test_all_others_are_left(held: dict[str, list[dict[str, t.Any]]]) -> None:
    members = Members(held)

    asyncio.run(Journal(t.cast(t.Any, members)).level({"users": GROUP}))

    assert members.told == []
