# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The statements of a split on its shard: parts, the log of changed keys, and rows that go from the leaf to the parts. No I/O."""

from __future__ import annotations

import typing as t

from ..ddl import MEMBER_PRIVILEGES, bound, leaf_keys, quoted
from ..model import METHODS, Bucket, Group, Table
from ..move.catalog import Shape, table
from ..move.model import BOUND, Leaf, Move
from ..observed import Relation
from ..schema import PREFIX, SCHEMA

if t.TYPE_CHECKING:
    from psycopg import sql

LOG_TRIGGER, TRUNCATE_TRIGGER = f"{PREFIX}log", f"{PREFIX}log_truncate"
TRIGGERS = (LOG_TRIGGER, TRUNCATE_TRIGGER)
# whoever disables triggers and enables them again leaves them as they are by default
LOGGING_SQL = (
    "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname = ANY (%s::text[]) AND tgenabled = 'A'"
)
# what would stay behind with a leaf, or be lost with it: what refers to it, and what is its own
ATTACHED_SQL = """
SELECT 'foreign key ' || conname || ' of ' || conrelid::regclass AS what FROM pg_constraint
WHERE contype = 'f' AND confrelid = %(leaf)s::regclass AND conparentid = 0 AND NOT conrelid = ANY (%(own)s::regclass[])
UNION ALL
SELECT 'view ' || r.ev_class::regclass FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(leaf)s::regclass
  AND r.ev_class <> d.refobjid
UNION ALL
SELECT 'publication ' || p.pubname FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
WHERE r.prrelid = %(leaf)s::regclass AND NOT starts_with(p.pubname, %(prefix)s)
UNION ALL
SELECT 'trigger ' || tgname FROM pg_trigger
WHERE tgrelid = %(leaf)s::regclass AND NOT tgisinternal AND tgparentid = 0 AND NOT starts_with(tgname, %(prefix)s)
ORDER BY 1 LIMIT 1
"""
# orders the rows of a log; no column of a key is called so
ENTRY = "headroom_entry"


def logging_params(leaf: Leaf) -> list[t.Any]:
    """Return what :data:`LOGGING_SQL` takes."""
    return [quoted(leaf.schema, leaf.name), list(TRIGGERS)]


def attached_params(leaf: Leaf, own: t.Iterable[Leaf]) -> dict[str, t.Any]:
    """Return what :data:`ATTACHED_SQL` takes.

    :param own: the leaves of the bucket, whose foreign keys are carried.
    """
    return {
        "leaf": quoted(leaf.schema, leaf.name),
        "own": [quoted(one.schema, one.name) for one in own],
        "prefix": PREFIX,
    }


def log_name(move: Move, leaf: Leaf) -> str:
    """Return the name of the log of a leaf, in the schema headroom, and of the function that writes it."""
    return f"{PREFIX}{move.id}_{move.leaves.index(leaf)}"


def log(move: Move, leaf: Leaf) -> sql.Identifier:
    """Return the qualified name of the log of a leaf."""
    from psycopg import sql

    return sql.Identifier(SCHEMA, log_name(move, leaf))


def scratch(group: Group, sharded: Table, bucket: Bucket) -> sql.Composed:
    """Return what makes an empty partition with the bounds of a part, from which PostgreSQL says what it demands of its rows.

    It is temporary, and to be rolled back.
    """
    from psycopg import sql

    parent = sql.Identifier(*sharded.name.split(".", 1))
    return sql.SQL(
        "CREATE TEMPORARY TABLE headroom_whole (LIKE {}) PARTITION BY {} ({});\n"
        "CREATE TEMPORARY TABLE headroom_part PARTITION OF headroom_whole {}"
    ).format(parent, sql.SQL(METHODS[group.strategy]), sql.Identifier(sharded.key), bound(group, bucket))


SCRATCH_SQL = "SELECT pg_get_partition_constraintdef('pg_temp.headroom_part'::regclass) AS definition"


def create_log(move: Move, leaf: Leaf, shape: Shape) -> sql.Composed:
    """Return what logs the primary key of each row that is changed from now on.

    A writer's transaction adds to the log and reads nothing, so that it cannot fail because of it, whatever its snapshot. A
    TRUNCATE leaves a row without a key.
    """
    from psycopg import sql

    name, leaf_name = log(move, leaf), table(leaf.schema, leaf.name)
    key = _columns(shape.key)

    def values(record: str) -> sql.Composed:
        return sql.SQL(", ").join(sql.SQL(f"{record}.{{}}").format(sql.Identifier(one)) for one in shape.key)

    function = sql.SQL(
        """CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $function$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO {name} DEFAULT VALUES;
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    INSERT INTO {name} ({key}) VALUES ({old});
  END IF;
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO {name} ({key}) VALUES ({new});
  END IF;
  RETURN NULL;
END
$function$"""
    ).format(name=name, key=key, old=values("OLD"), new=values("NEW"))
    statements = [
        sql.SQL("CREATE TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(name, key, leaf_name),
        sql.SQL("ALTER TABLE {} ADD COLUMN {} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY").format(
            name, sql.Identifier(ENTRY)
        ),
        function,
        sql.SQL("REVOKE EXECUTE ON FUNCTION {}() FROM PUBLIC").format(name),
        sql.SQL("CREATE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION {}()").format(
            sql.Identifier(LOG_TRIGGER), leaf_name, name
        ),
        sql.SQL("CREATE TRIGGER {} BEFORE TRUNCATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION {}()").format(
            sql.Identifier(TRUNCATE_TRIGGER), leaf_name, name
        ),
        *(
            # what replication brings counts as well
            sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(leaf_name, sql.Identifier(trigger))
            for trigger in (LOG_TRIGGER, TRUNCATE_TRIGGER)
        ),
    ]
    return sql.SQL(";\n").join(statements)


def drop_log(name: str) -> sql.Composed:
    """Return what removes a log with its triggers."""
    from psycopg import sql

    both = sql.Identifier(SCHEMA, name)
    return sql.SQL("DROP FUNCTION IF EXISTS {}() CASCADE;\nDROP TABLE IF EXISTS {}").format(both, both)


def grant_members(part: Leaf, member_user: str) -> sql.Composed:
    """Return what lets routers use a part."""
    from psycopg import sql

    return sql.SQL("GRANT {} ON {} TO {}").format(
        sql.SQL(", ").join(map(sql.SQL, MEMBER_PRIVILEGES)), table(part.schema, part.name), sql.Identifier(member_user)
    )


def copy(leaf: Leaf, part: Leaf, check: str, shape: Shape, first: int, end: int | None) -> sql.Composed:
    """Return what copies the rows of a part that lie in some pages of the leaf.

    :param check: what holds for the rows of the part.
    :param end: the page before which to end, None for the last page.
    """
    from psycopg import sql

    where = sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({first},0)"))
    if end is not None:
        where += sql.SQL(" AND ctid < {}::tid").format(sql.Literal(f"({end},0)"))
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM ONLY {} WHERE {} AND ({})").format(
        table(part.schema, part.name),
        _columns(shape.columns),
        _columns(shape.columns),
        table(leaf.schema, leaf.name),
        where,
        sql.SQL(check),
    )


def indexes(part: Leaf, form: Relation) -> list[sql.Composed]:
    """Return what makes the keys and indexes of a part as its table has them, so that attaching it builds none.

    :param form: the table.
    """
    from psycopg import sql

    name = table(part.schema, part.name)
    made = [
        sql.SQL("ALTER TABLE {} ADD {}").format(name, sql.SQL(one.sql)) for one in form.constraints if one.kind in "pux"
    ]
    made += [
        sql.SQL("CREATE {}INDEX ON {} USING {}").format(
            sql.SQL("UNIQUE " if one.unique else ""), name, sql.SQL(one.sql.partition(" USING ")[2])
        )
        for one in form.indexes
    ]
    return made


def entries(move: Move, leaf: Leaf, shape: Shape, limit: int | None) -> sql.Composed:
    """Return what reads the first entries of a log, and whether the leaf was truncated since."""
    from psycopg import sql

    return sql.SQL("SELECT {} AS entry, {} IS NULL AS truncated FROM {} ORDER BY 1 LIMIT {}").format(
        sql.Identifier(ENTRY), sql.Identifier(shape.key[0]), log(move, leaf), sql.Literal(limit)
    )


def remove(move: Move, leaf: Leaf, part: Leaf, shape: Shape) -> sql.Composed:
    """Return what removes the rows of some entries of a log from a part. Takes the entries."""
    from psycopg import sql

    return sql.SQL("DELETE FROM {} p USING {} l WHERE l.{} = ANY (%s) AND {}").format(
        table(part.schema, part.name),
        log(move, leaf),
        sql.Identifier(ENTRY),
        sql.SQL(" AND ").join(sql.SQL("p.{0} = l.{0}").format(sql.Identifier(one)) for one in shape.key),
    )


def renew(move: Move, leaf: Leaf, part: Leaf, check: str, shape: Shape) -> sql.Composed:
    """Return what copies the rows of some entries of a log into a part anew. Takes the entries."""
    from psycopg import sql

    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM ONLY {} WHERE {} AND ({})").format(
        table(part.schema, part.name),
        _columns(shape.columns),
        _columns(shape.columns),
        table(leaf.schema, leaf.name),
        _logged(move, leaf, shape),
        _with_parameters(check),
    )


def read_rows(move: Move, leaf: Leaf, shape: Shape, form: Relation) -> sql.Composed:
    """Return what reads whole rows of the leaf by the entries of its log, each as one text. Takes the entries.

    :param form: the table, whose columns are in the order of those of the parts.
    """
    from psycopg import sql

    row = _columns(column.name for column in form.columns)
    return sql.SQL("SELECT ROW({})::text AS row FROM ONLY {} WHERE {}").format(
        row, table(leaf.schema, leaf.name), _logged(move, leaf, shape)
    )


def write_rows(part: Leaf, check: str, shape: Shape) -> sql.Composed:
    """Return what puts rows into a part, those of them that belong there. Takes their texts."""
    from psycopg import sql

    name = table(part.schema, part.name)
    return sql.SQL(
        "INSERT INTO {} ({}) SELECT {} FROM (SELECT (r.headroom_row).* FROM (SELECT u.line::{} AS headroom_row "
        "FROM unnest(%s::text[]) AS u (line) OFFSET 0) r) s WHERE {}"
    ).format(name, _columns(shape.columns), _columns(shape.columns), name, _with_parameters(check))


def clear(move: Move, leaf: Leaf) -> sql.Composed:
    """Return what removes entries of a log. Takes them."""
    from psycopg import sql

    return sql.SQL("DELETE FROM {} WHERE {} = ANY (%s)").format(log(move, leaf), sql.Identifier(ENTRY))


def logged_keys(move: Move, leaf: Leaf, shape: Shape) -> sql.Composed:
    """Return what lists the keys in a log."""
    from psycopg import sql

    return sql.SQL("SELECT DISTINCT ARRAY[{}] AS key FROM {}").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(one)) for one in shape.key), log(move, leaf)
    )


def lock(move: Move) -> sql.Composed:
    """Return what keeps everybody from the tables on the shard: first the parents, as every statement locks them first."""
    from psycopg import sql

    names = [
        *(sql.SQL("ONLY {}").format(table(leaf.schema, leaf.parent)) for leaf in move.leaves),
        *(table(leaf.schema, leaf.name) for leaf in move.leaves),
    ]
    return sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(names))


def lock_router(move: Move) -> sql.Composed:
    """Return what keeps everybody from the tables on a router; it ends when all transactions that used them have."""
    from psycopg import sql

    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(table(leaf.schema, leaf.parent)) for leaf in move.leaves)
    return sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names)


def swap(move: Move, group: Group, parts: t.Sequence[Bucket], forms: t.Mapping[str, Relation]) -> list[sql.Composable]:
    """Return what puts the parts into the place of the leaves.

    :param group: with the parts.
    :param forms: the tables by name.
    """
    from psycopg import sql

    made: list[sql.Composable] = []
    for leaf in move.leaves:
        parent, name = table(leaf.schema, leaf.parent), table(leaf.schema, leaf.name)
        made.append(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(parent, name))
        made.append(sql.SQL("ALTER TABLE {} RENAME TO {}").format(name, sql.Identifier(leaf.retired)))
        for bucket in parts:
            part = table(leaf.schema, Leaf(leaf.table, bucket.number).name)
            made.append(sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(parent, part, bound(group, bucket)))
            made.append(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(part, sql.Identifier(BOUND)))
    for leaf in move.leaves:
        for bucket in parts:
            # their rows refer to each other as those of the leaves did; they are looked through when nobody waits
            made += [
                sql.SQL("{} NOT VALID").format(one) for one in leaf_keys(forms[leaf.table.name], leaf.table, bucket)
            ]
    return made


def validate(move: Move, parts: t.Sequence[int], forms: t.Mapping[str, Relation]) -> list[sql.Composed]:
    """Return what looks through the foreign keys of the parts."""
    from psycopg import sql

    return [
        sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
            table(leaf.schema, Leaf(leaf.table, number).name), sql.Identifier(one.name)
        )
        for leaf in move.leaves
        for number in parts
        for one in forms[leaf.table.name].foreign_keys
    ]


def _logged(move: Move, leaf: Leaf, shape: Shape) -> sql.Composed:
    from psycopg import sql

    return sql.SQL("({}) IN (SELECT {} FROM {} l WHERE l.{} = ANY (%s))").format(
        _columns(shape.key),
        sql.SQL(", ").join(sql.SQL("l.{}").format(sql.Identifier(one)) for one in shape.key),
        log(move, leaf),
        sql.Identifier(ENTRY),
    )


def _columns(names: t.Iterable[str]) -> sql.Composed:
    from psycopg import sql

    return sql.SQL(", ").join(map(sql.Identifier, names))


def _with_parameters(check: str) -> sql.SQL:
    """Return a condition as it is written in a statement that takes parameters."""
    from psycopg import sql

    return sql.SQL(check.replace("%", "%%"))
