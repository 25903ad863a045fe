# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bucket takes, over all tables of its group, and where it can be cut."""

from __future__ import annotations

import asyncio
import typing as t
from types import SimpleNamespace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Placement,
    Shard,
    ShardMap,
    Table,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.usage import measure

pytest.importorskip("psycopg")

TABLES = (Table("public.bills", "id"), Table("public.items", "bill_id"))
FIGURES = {
    "public.bills_b0": {"size_bytes": 16384, "rows": 0, "reads": 0, "writes": 0},
    "public.items_b0": {"size_bytes": 10**9, "rows": 10**7, "reads": 0, "writes": 0},
}


class Members(SimpleNamespace):
    """One shard, whose first table has no rows."""

    asked: t.ClassVar[list[str]] = []

    async def each(self, work: t.Callable[[str], t.Awaitable[t.Any]], names: t.Iterable[str]) -> dict[str, t.Any]:
        return {name: await work(name) for name in names}

    async def rows(self, _shard: str, query: t.Any, params: t.Any = None, **_how: t.Any) -> list[dict[str, t.Any]]:
        if isinstance(query, str):
            names = [".".join(both) for both in zip(*params, strict=True)]
            return [{"name": name, **FIGURES[name]} for name in names]
        text = query.as_string(None)
        self.asked.append(text)
        full = '"items_b0"' in text
        if "percentile_disc" in text:
            return [{"keys": ["10", "20"] if full else None}]
        return [{"key": "10", "load": 7.0}] if full else []


@pytest.mark.parametrize(("strategy", "bucket"), [("range", Bucket(0)), ("directory", Bucket(0, tenants=(10, 20)))])
def test_a_bucket_is_cut_by_the_table_with_most_rows(strategy: str, bucket: Bucket) -> None:
    group = Group("bills", strategy, "bigint", TABLES, (bucket,))
    shard_map = ShardMap(1, (Shard("a"), Shard("b")), (group,), {("bills", 0): Placement("a", 1)})
    members = t.cast("t.Any", Members())
    (usage,) = asyncio.run(measure(members, shard_map, {"size_bytes": 1.0}, 0.1)).values()
    assert '"bill_id"' in members.asked[-1]
    if strategy == "range":
        assert usage.quantiles == (10, 20)
        # a sample of that table, however many rows others have
        assert members.asked[-1].endswith("BERNOULLI (1.0)")
    else:
        assert usage.tenant_loads == {10: 7.0, 20: 0.0}
