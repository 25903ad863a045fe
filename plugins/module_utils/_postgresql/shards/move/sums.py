# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The statements by which rows are compared: sums of hashes by chunks of the key, and hashes of single rows.

Columns of common types go one after the other through the hash functions of their types, each seeded with the hash of those before;
that takes less than half the time of hashing a record, which must be put together first. All others go as one record.
"""

from __future__ import annotations

import typing as t

from .catalog import Shape, table
from .model import Leaf

if t.TYPE_CHECKING:
    from psycopg import sql

ROWS_PER_CHUNK = 200
CHUNKS = (64, 65536)
# rows that one statement may list
MOST_LISTED = 1_280_000
# type, without its modifier, to the function that hashes it with a seed, and what it is cast to for that without loss; servers of all
# versions have these. Text is hashed by its bytes, since a collation may take different ones for equal
_FUNCTIONS = {
    "bigint": ("hashint8extended", ""),
    "integer": ("hashint4extended", ""),
    "smallint": ("hashint2extended", ""),
    "boolean": ("hashint4extended", "::int4"),
    "numeric": ("hash_numeric_extended", ""),
    "double precision": ("hashfloat8extended", ""),
    "real": ("hashfloat4extended", ""),
    "text": ("hashtextextended", ' COLLATE "C"'),
    "character varying": ("hashtextextended", '::text COLLATE "C"'),
    "uuid": ("uuid_hash_extended", ""),
    "jsonb": ("jsonb_hash_extended", ""),
    # sessions of the members are in UTC, where each instant has one local time
    "timestamp with time zone": ("timestamp_hash_extended", "::timestamp"),
    "timestamp without time zone": ("timestamp_hash_extended", ""),
}
# pages and rows of a leaf, as far as they are known
SIZE_SQL = "SELECT relpages AS pages, reltuples AS rows FROM pg_class WHERE oid = %s::regclass"
# what a comparison begins with: chunks are few, but the planner cannot know it of an expression, and would sort all rows
PLAN_SQL = "SELECT set_config('enable_sort', 'off', true), set_config('jit', 'off', true)"
# what else one that rests begins with, since each of several processes would read as much
ALONE_SQL = "SELECT set_config('max_parallel_workers_per_gather', '0', true)"
# rows that are read between two rests, on average, where a comparison is held back
REST_ROWS = 4096
# bytes of a row where nothing is known of them
ROW_BYTES = 128
# what stands for a hash where there is no value
_NULL = 7046029254386353131


def chunks_for(rows: float, most: int = CHUNKS[1]) -> int:
    """Return into how many chunks a leaf is cut, a power of two."""
    wanted = max(CHUNKS[0], min(most, int(rows / ROWS_PER_CHUNK)))
    return 1 << (wanted - 1).bit_length()


def rest_s(pages: int, rows: float, max_rate_bytes_s: float) -> float:
    """Return how long each rest is if no more than so many bytes are to be read in a second, where 0 is no limit.

    :param rows: of the leaf, -1 if that is not known.
    """
    row_bytes = pages * 8192 / rows if pages > 0 and rows > 0 else ROW_BYTES
    return REST_ROWS * row_bytes / max_rate_bytes_s if max_rate_bytes_s else 0.0


def _rested(rest_s: float) -> sql.Composable:
    """Return a condition that all rows meet, and that rests at some of them."""
    from psycopg import sql

    # CASE, since nothing else keeps the server from calling it for all
    return sql.SQL("CASE WHEN hashtid(ctid) & {} = 0 THEN pg_sleep({}) IS NOT NULL ELSE true END").format(
        sql.Literal(REST_ROWS - 1), sql.Literal(rest_s)
    )


def _function(kind: str) -> tuple[str, str] | None:
    # such as numeric(12,2), or timestamp(3) with time zone
    head, _bracket, rest = kind.partition("(")
    return _FUNCTIONS.get(head + rest.partition(")")[2])


def hash_of(shape: Shape, columns: t.Iterable[str], of: str = "") -> sql.Composable:
    """Return the hash of some columns of a row.

    :param of: what stands before the name of a column, as ``r.``.
    """
    from psycopg import sql

    direct: list[tuple[sql.Composable, str, bool]] = []
    others: list[sql.Composable] = []
    for name in columns:
        column = sql.SQL(of) + sql.Identifier(name)
        known = None if name in shape.as_text else _function(shape.types[name])
        if known is None:
            others.append(column + sql.SQL("::text") if name in shape.as_text else column)
        else:
            direct.append((column + sql.SQL(known[1]), known[0], name in shape.nullable))
    made: sql.Composable = sql.SQL("0")
    if others:
        made = sql.SQL("hash_record_extended(ROW({}), 0)").format(sql.SQL(", ").join(others))
    for column, function, nullable in direct:
        if nullable:
            # the seed once only: nested, it would double with each column
            own = sql.SQL("coalesce({}({}, 0), {})").format(sql.SQL(function), column, sql.Literal(_NULL))
            made = sql.SQL("hashint8extended({}, {})").format(own, made)
        else:
            made = sql.SQL("{}({}, {})").format(sql.SQL(function), column, made)
    return made


def chunk_of(shape: Shape, chunks: int) -> sql.Composed:
    """Return the chunk of a row."""
    from psycopg import sql

    return sql.SQL("{} & {}").format(hash_of(shape, shape.key), sql.Literal(chunks - 1))


def sums_query(leaf: Leaf, shape: Shape, chunks: int, within: int | None = None, rest_s: float = 0.0) -> sql.Composed:
    """Return what sums the rows of each chunk up, or those of the only one, which costs a third less.

    :param within: look only into some of so many larger chunks, which are the parameter.
    :param rest_s: seconds of each rest on the way.
    """
    from psycopg import sql

    query = sql.SQL("SELECT {} AS chunk, count(*) AS rows, bit_xor({}) AS sum FROM ONLY {}").format(
        chunk_of(shape, chunks) if chunks > 1 else sql.SQL("0"),
        hash_of(shape, shape.columns),
        table(leaf.schema, leaf.name),
    )
    conditions = [_rested(rest_s)] if rest_s else []
    if within is not None:
        query = sql.Composed([escaped(query)])
        conditions.append(sql.SQL("{} = ANY (%s::bigint[])").format(escaped(chunk_of(shape, within))))
    if conditions:
        query += sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions)
    return query + sql.SQL(" GROUP BY 1") if chunks > 1 else query


def escaped(part: sql.Composable) -> sql.SQL:
    """Return a part of a statement with parameters in which a percent sign, as names may have, is none of them."""
    from psycopg import sql

    return sql.SQL(part.as_string(None).replace("%", "%%"))


def keys_query(leaf: Leaf, shape: Shape, chunks: int, rest_s: float = 0.0) -> sql.Composed:
    """Return what lists the rows of some chunks, which are the parameter.

    :param rest_s: seconds of each rest on the way.
    """
    from psycopg import sql

    return sql.SQL("SELECT ARRAY[{}] AS key, {} AS hash FROM ONLY {} WHERE {}{} = ANY (%s::bigint[]) LIMIT {}").format(
        escaped(sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in shape.key)),
        escaped(hash_of(shape, shape.columns)),
        escaped(table(leaf.schema, leaf.name)),
        _rested(rest_s) + sql.SQL(" AND ") if rest_s else sql.SQL(""),
        escaped(chunk_of(shape, chunks)),
        sql.Literal(MOST_LISTED),
    )


def rows_query(leaf: Leaf, shape: Shape) -> sql.Composed:
    """Return what looks at some rows by their keys, given as one array of text for each column of the key."""
    from psycopg import sql

    return sql.SQL("SELECT ARRAY[{}] AS key, {} AS hash FROM unnest({}) AS k ({}) JOIN ONLY {} r ON {}").format(
        escaped(sql.SQL(", ").join(sql.SQL("r.{}::text").format(sql.Identifier(one)) for one in shape.key)),
        escaped(hash_of(shape, shape.columns, "r.")),
        sql.SQL(", ").join(sql.SQL("%s::text[]") for _one in shape.key),
        escaped(sql.SQL(", ").join(sql.Identifier(one) for one in shape.key)),
        escaped(table(leaf.schema, leaf.name)),
        escaped(
            sql.SQL(" AND ").join(
                sql.SQL("r.{0} OPERATOR({1}) k.{0}::{2}").format(
                    sql.Identifier(one), sql.SQL(shape.equals.get(one, "pg_catalog.=")), sql.SQL(shape.types[one])
                )
                for one in shape.key
            )
        ),
    )
