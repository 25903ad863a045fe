# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Count the rows of plain tables by the buckets that they would be in. Reads whole tables, and changes nothing."""

from __future__ import annotations

import typing as t

from .declare import Misplaced
from .keys import Key, parse_key
from .members import Members
from .model import Group, Table
from .observed import Observed

if t.TYPE_CHECKING:
    from psycopg import sql

FIRST_KEYS = 5
# the type of keys as they are compared, so that bounds and tenants are of it too
_WIDE = {"smallint": "bigint", "integer": "bigint", "varchar": "text"}

# see headroom.bucket_of
_HASH = """
SELECT key, (((((h >> 32) & 4294967295) + 1235285213 + (((h & 4294967295) + 367372515) >> 32)) & 4294967295) %% {modulus}
    * (4294967296 %% {modulus}) + (((h & 4294967295) + 367372515) & 4294967295) %% {modulus}) %% {modulus} AS bucket
FROM (SELECT {key} AS key, {hash}({key}::{type}, 8816678312871386365) AS h FROM ONLY {table}) hashed
"""
_RANGE = """
SELECT {key} AS key, (%(numbers)s::int[])[1 + width_bucket({key}::{type} {collation}, %(bounds)s::{type}[])] AS bucket FROM ONLY {table}
"""
_DIRECTORY = """
SELECT {key} AS key, d.number AS bucket FROM ONLY {table}
  LEFT JOIN unnest(%(tenants)s::{type}[], %(numbers)s::int[]) AS d (tenant, number) ON d.tenant = {key}::{type}
"""
_HASHES = {"text": "hashtextextended", "uuid": "uuid_hash_extended"}


def rows_by_bucket(group: Group, table: Table) -> tuple[sql.Composable, dict[str, t.Any]]:
    """Return a query, with its parameters, of the key and the bucket of each row of a plain table; no bucket is null."""
    from psycopg import sql

    kind = _WIDE.get(group.key_type, group.key_type)
    text = {"hash": _HASH, "range": _RANGE, "directory": _DIRECTORY}[group.strategy]
    query = sql.SQL(text).format(
        key=sql.Identifier(table.key),
        table=sql.Identifier(*table.name.split(".", 1)),
        type=sql.SQL(kind),
        modulus=sql.Literal(len(group.buckets)),
        hash=sql.SQL(_HASHES.get(kind, "hashint8extended")),
        collation=sql.SQL('COLLATE "C"' if kind == "text" else ""),
    )
    params: dict[str, t.Any] = {"numbers": [bucket.number for bucket in group.buckets]}
    if group.strategy == "range":
        params["bounds"] = [str(bucket.lower) for bucket in group.buckets[1:]]
    elif group.strategy == "directory":
        pairs = [(tenant, bucket.number) for bucket in group.buckets for tenant in bucket.tenants]
        params = {"tenants": [str(one) for one, _number in pairs], "numbers": [number for _one, number in pairs]}
    return query, params


async def count(
    members: Members, groups: t.Iterable[Group], observed: Observed
) -> dict[tuple[str, str], dict[int | None, int]]:
    """Return the rows of all plain tables with rows on all shards, by table and shard and by bucket."""
    wanted = [
        (group, table, name)
        for group in groups
        for table in group.tables
        for name, seen in observed.items()
        if seen.member.role == "shard" and table.name in seen.relations and seen.relations[table.name].filled
    ]
    found: dict[tuple[str, str], dict[int | None, int]] = {}

    async def one(name: str) -> None:
        from psycopg import sql

        for group, table, shard in wanted:
            if shard == name:
                query, params = rows_by_bucket(group, table)
                counting = sql.SQL("SELECT bucket, count(*) AS rows FROM ({}) counted GROUP BY bucket").format(query)
                rows = await members.rows(
                    name, counting, params, timeout_s=None, verb=f"count the rows of {table.name} on"
                )
                found[table.name, name] = {row["bucket"]: row["rows"] for row in rows}

    await members.each(one, dict.fromkeys(shard for _group, _table, shard in wanted))
    return found


async def first_keys(members: Members, groups: t.Iterable[Group], misplaced: t.Sequence[Misplaced]) -> list[list[Key]]:
    """Return the first keys of each of the misplaced."""
    from psycopg import sql

    tables = {table.name: (group, table) for group in groups for table in group.tables}
    found = []
    for one in misplaced:
        group, table = tables[one.table]
        query, params = rows_by_bucket(group, table)
        params |= {"wrong": [number for number in one.buckets if number is not None], "none": None in one.buckets}
        picking = sql.SQL(
            "SELECT key::text FROM (SELECT DISTINCT key FROM ({}) counted WHERE bucket = ANY (%(wrong)s::int[]) "
            "OR (bucket IS NULL AND %(none)s) ORDER BY key LIMIT {}) first ORDER BY first.key"
        ).format(query, sql.Literal(FIRST_KEYS))
        rows = await members.rows(one.shard, picking, params, timeout_s=None, verb=f"read the keys of {one.table} on")
        found.append([_named(group, row["key"]) for row in rows])
    return found


def _named(group: Group, text: str) -> Key:
    """Return a key, or its text where it is one that only the server has, such as the date infinity."""
    try:
        return parse_key(group.key_type, text)
    except ValueError:
        return text
