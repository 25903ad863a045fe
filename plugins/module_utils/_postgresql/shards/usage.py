# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What each bucket takes on its shard: bytes, rows, reads and writes, read from the statistics of the servers. Reads only."""

from __future__ import annotations

import asyncio
import contextlib
import typing as t
from dataclasses import replace

from .keys import Key, parse_key
from .members import Members
from .model import BucketId, Group, ShardMap, Table, Usage
from .observed import leaf_name
from .plan import mixed_load

if t.TYPE_CHECKING:
    from psycopg import sql

FIGURES = ("size_bytes", "rows", "reads", "writes")
# parts of a range that a split can cut between, and what a sample takes at most
QUANTILES = 64
SAMPLE_ROWS = 100_000
# no look into a bucket may take longer
LONGEST_S = 3600.0

_USAGE_SQL = """
SELECT n.nspname || '.' || c.relname AS name, pg_total_relation_size(c.oid)::bigint AS size_bytes,
  greatest(s.n_live_tup, c.reltuples::bigint, 0) AS rows,
  (s.seq_tup_read + coalesce(s.idx_tup_fetch, 0))::bigint AS reads, (s.n_tup_ins + s.n_tup_upd + s.n_tup_del)::bigint AS writes
FROM unnest(%s::text[], %s::text[]) AS w (schema, name)
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'r'
  JOIN pg_stat_all_tables s ON s.relid = c.oid
"""

Figures = dict[BucketId, dict[str, float]]


async def figures(members: Members, shard_map: ShardMap) -> Figures:
    """Return the figures of every bucket of the map, over all tables of its group; counters since they were last reset."""
    groups = {group.name: group for group in shard_map.groups}
    found: Figures = {bucket: dict.fromkeys(FIGURES, 0) for bucket in shard_map.placements}

    async def look(shard: str) -> None:
        leaves = {
            leaf_name(table.name, bucket[1]): bucket
            for bucket, placement in shard_map.placements.items()
            if placement.shard == shard
            for table in groups[bucket[0]].tables
        }
        if not leaves:
            return
        parts = [name.split(".", 1) for name in leaves]
        rows = await members.rows(
            shard, _USAGE_SQL, [[one[0] for one in parts], [one[1] for one in parts]], verb="measure"
        )
        for row in rows:
            for figure in FIGURES:
                found[leaves[row["name"]]][figure] += row[figure] or 0

    await members.each(look, sorted({placement.shard for placement in shard_map.placements.values()}))
    return found


async def measure(
    members: Members,
    shard_map: ShardMap,
    mix: t.Mapping[str, float],
    sample_s: float,
    isolated: t.Collection[tuple[str, Key]] = (),
) -> dict[BucketId, Usage]:
    """Return the usage of every bucket.

    :param mix: figure to its weight in the load. Reads and writes are those of the next seconds.
    :param sample_s: for how long these are counted; nothing waits when none of them is in the mix.
    :param isolated: keys that are to have a bucket of their own, so that it must be known how large they are.
    """
    now = await figures(members, shard_map)
    counted = {name for name in ("reads", "writes") if mix.get(name)}
    parts = {bucket: dict(one) for bucket, one in now.items()}
    if counted:
        await asyncio.sleep(sample_s)
        later = await figures(members, shard_map)
        for bucket, one in parts.items():
            one.update({name: max(0, later[bucket][name] - now[bucket][name]) for name in counted})
    loads = mixed_load(parts, {name: weight for name, weight in mix.items() if weight > 0})
    usage = {bucket: Usage(int(one["size_bytes"]), int(one["rows"]), loads[bucket]) for bucket, one in now.items()}
    for bucket in _to_be_cut(shard_map, usage, isolated):
        usage[bucket] = await _inside(members, shard_map, bucket, usage[bucket])
    return usage


def _to_be_cut(
    shard_map: ShardMap, usage: t.Mapping[BucketId, Usage], isolated: t.Collection[tuple[str, Key]]
) -> list[BucketId]:
    """Return the buckets that a plan may split: those of a key that is to be isolated, and those that are more than a fair share."""
    groups = {group.name: group for group in shard_map.groups}
    takers = sum(shard.takes_share for shard in shard_map.shards) or 1
    total = sum(one.load for one in usage.values())
    found = {bucket for bucket, one in usage.items() if one.load > total / takers}
    for name, key in isolated:
        bucket = groups[name].bucket_of(key)
        if bucket is not None:
            found.add((name, bucket.number))
    return sorted(bucket for bucket in found if groups[bucket[0]].strategy != "hash")


async def _inside(members: Members, shard_map: ShardMap, bucket: BucketId, usage: Usage) -> Usage:
    """Return where a bucket can be cut, by the keys of its largest table."""
    from psycopg import sql

    group = next(one for one in shard_map.groups if one.name == bucket[0])
    shard = shard_map.placements[bucket].shard
    table, count = await _largest(members, shard, group, bucket[1])
    name = sql.Identifier(*leaf_name(table.name, bucket[1]).split(".", 1))
    key = sql.Identifier(table.key)
    if group.strategy == "directory":
        query = sql.SQL("SELECT {0}::text AS key, count(*)::float8 AS load FROM ONLY {1} GROUP BY {0}").format(
            key, name
        )
        rows = await members.rows(shard, query, timeout_s=LONGEST_S, verb="measure")
        tenants = next(one.tenants for one in group.buckets if one.number == bucket[1])
        loads = {key: row["load"] for row in rows for key in _keys(group, [row["key"]])}
        return replace(usage, tenant_loads={**dict.fromkeys(tenants, 0.0), **loads})
    rows = await members.rows(shard, _quantiles(group, key, name, count), timeout_s=LONGEST_S, verb="measure")
    return replace(usage, quantiles=tuple(dict.fromkeys(_keys(group, rows[0]["keys"] or []))))


async def _largest(members: Members, shard: str, group: Group, number: int) -> tuple[Table, int]:
    """Return the table that has most rows in a bucket, and how many; others of the group may have none."""
    tables = {leaf_name(table.name, number): table for table in group.tables}
    parts = [name.split(".", 1) for name in tables]
    rows = await members.rows(shard, _USAGE_SQL, [[one[0] for one in parts], [one[1] for one in parts]], verb="measure")
    found = {row["name"]: (row["rows"], row["size_bytes"]) for row in rows}
    name = max(tables, key=lambda one: found.get(one, (0, 0)))
    return tables[name], found.get(name, (0, 0))[0]


def _quantiles(group: Group, key: sql.Identifier, name: sql.Identifier, rows: int) -> sql.Composed:
    from psycopg import sql

    collation = sql.SQL(' COLLATE "C"' if group.key_type in ("text", "varchar") else "")
    percent = min(100.0, 100.0 * SAMPLE_ROWS / max(rows, 1))
    steps = ", ".join(str(step / QUANTILES) for step in range(1, QUANTILES))
    return sql.SQL(
        "SELECT percentile_disc(ARRAY[{}]) WITHIN GROUP (ORDER BY {}{})::text[] AS keys FROM {} TABLESAMPLE BERNOULLI ({})"
    ).format(sql.SQL(steps), key, collation, name, sql.Literal(percent))


def _keys(group: Group, texts: t.Iterable[str | None]) -> list[Key]:
    """Return the keys that a map can name; dates before Christ and those that never come are none."""
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found += [] if text is None else [parse_key(group.key_type, text)]
    return found
