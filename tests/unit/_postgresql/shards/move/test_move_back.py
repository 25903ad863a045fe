# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a bucket is taken back whose table was changed meanwhile. The rest of it is tested on servers."""

from __future__ import annotations

import asyncio
import typing as t
from types import SimpleNamespace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import mover
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Leaf, Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.mover import Mover, Settings

pytest.importorskip("psycopg")

GROUP = Group("users", "hash", "bigint", (Table("public.orders", "id"),), tuple(Bucket(number) for number in range(64)))
# of the copy
SHAPES = {
    "orders_b7": {"columns": ["id", "note"], "types": {"id": "bigint", "note": "text"}, "key": ["id"], "as_text": []}
}


def facts(*columns: str) -> dict[str, t.Any]:
    return {
        "oid": 7,
        "columns": [
            {"name": name, "type": "bigint", "collation": None, "not_null": True, "generated": None, "sequence": None}
            for name in columns
        ],
        "indexes": [
            {
                "definition": "CREATE UNIQUE INDEX orders_b7_pkey ON public.orders_b7 USING btree (id)",
                "primary": True,
                "constraint": {"type": "p"},
                "columns": ["id"],
            }
        ],
        "checks": [],
        "foreign_keys": [],
        "bound": "FOR VALUES WITH (modulus 64, remainder 7)",
        "check": "",
    }


class Shards:
    """Two shards with the columns that each has now."""

    def __init__(self, **columns: tuple[str, ...]) -> None:
        self.columns = columns

    async def rows(self, shard: str, _query: t.Any, params: t.Any = None, **_how: t.Any) -> list[dict[str, t.Any]]:
        return [{"facts": facts(*self.columns[shard])}] if params else []

    async def row(self, _shard: str, _query: t.Any, _params: t.Any, **_how: t.Any) -> dict[str, t.Any]:
        return {"is_by_number": False, "is_binary": True, "equals": {"id": "pg_catalog.="}}


def back(monkeypatch: pytest.MonkeyPatch, shards: Shards, done: list[t.Any]) -> None:
    """Take a bucket back.

    :param done: gets what is done up to the switch, such as the columns that are compared.
    """

    async def nothing(*_args: t.Any, **_how: t.Any) -> t.Any:
        return SimpleNamespace(unsettled={})

    async def caught_up(*_args: t.Any) -> None:
        done.append("caught up")

    def verifier(_self: Mover, _stream: t.Any, shapes: t.Mapping[str, t.Any]) -> t.Any:
        done.append({name: shape.columns for name, shape in shapes.items()})
        return SimpleNamespace(run=nothing)

    monkeypatch.setattr(mover, "Switch", lambda *_args: SimpleNamespace(run=nothing, accept=lambda: None))
    monkeypatch.setattr(Mover, "_verifier", verifier)
    monkeypatch.setattr(Mover, "_caught_up", caught_up)
    for name in ("settle", "_ddl", "_long", "_forwarders", "_returned"):
        monkeypatch.setattr(Mover, name, nothing)
    context = SimpleNamespace(
        members=shards,
        access=None,
        journal=None,
        lock=None,
        switching=asyncio.Lock(),
        settings=Settings(),
        next_epoch=lambda: 9,
    )
    move = Move("m1", GROUP, 7, "a", "b", state="switched", step="detached", detail={"owner": "b", "shapes": SHAPES})
    asyncio.run(Mover(t.cast("t.Any", context), move).revert())


def test_rows_are_compared_by_the_columns_that_both_shards_have_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = ("amount", "id"), []
    back(monkeypatch, Shards(a=now, b=now), done)
    assert done == ["caught up", {"orders_b7": now}]


@pytest.mark.parametrize("target", [("id",), ("amount", "id", "note")])
def test_a_change_on_one_shard_is_told_before_anything_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, target: tuple[str, ...]
) -> None:
    done: list[t.Any] = []
    with pytest.raises(HeadroomError, match="was changed on b since; make the same change on a"):
        back(monkeypatch, Shards(a=("id", "note"), b=target), done)
    assert done == []


@pytest.mark.parametrize(
    ("there", "made"),
    [
        (None, ["CREATE"]),
        (("id",), ["DROP", "CREATE"]),
        (("amount", "id"), []),
    ],
)
def test_a_forwarder_of_a_former_attempt_has_the_columns_of_now(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...] | None, made: list[str]
) -> None:
    done: list[str] = []

    async def look(_members: t.Any, shard: str, _schema: str, name: str) -> dict[str, t.Any] | None:
        assert shard == "b"
        if name == Leaf(GROUP.tables[0], 7).forwarder:
            return None if there is None or "DROP" in done else {**facts(*there), "kind": "f"}
        return {**facts("amount", "id"), "owner": "app", "grants": []}

    async def ddl(_self: Mover, _shard: str, statement: t.Any) -> None:
        done.append(statement.as_string(None).split()[0])

    monkeypatch.setattr(mover.catalog, "facts", look)
    monkeypatch.setattr(Mover, "_ddl", ddl)
    context = SimpleNamespace(members=None, access=None, journal=None)
    one = Mover(t.cast("t.Any", context), Move("m1", GROUP, 7, "a", "b"))
    asyncio.run(one._forwarders(one.reverse))
    assert done == made
