# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What PostgreSQL's catalogs say of the leaves of a bucket, and the statements that make the same leaves elsewhere."""

from __future__ import annotations

import hashlib
import json
import typing as t
from dataclasses import dataclass, field

from ...._common.errors import HeadroomError
from ..ddl import quoted
from ..members import Members
from ..model import Group
from .model import BOUND, TRIGGER, TRUNCATE_TRIGGER, Leaf, Move

if t.TYPE_CHECKING:
    from psycopg import sql

# one row of JSON for a table, or none where it is not there
_FACTS_SQL = """
SELECT json_build_object(
  'oid', c.oid::bigint, 'kind', c.relkind, 'persistence', c.relpersistence, 'identity', c.relreplident,
  'owner', pg_get_userbyid(c.relowner), 'pages', pg_relation_size(c.oid) / current_setting('block_size')::int,
  'bytes', pg_total_relation_size(c.oid), 'tuples', c.reltuples,
  'row_security', c.relrowsecurity,
  'parent', (SELECT p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent WHERE i.inhrelid = c.oid),
  'bound', pg_get_expr(c.relpartbound, c.oid),
  'check', CASE WHEN c.relispartition THEN pg_get_partition_constraintdef(c.oid) END,
  'columns', (SELECT json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
      'collation', CASE WHEN a.attcollation <> ty.typcollation THEN
        (SELECT quote_ident(n.nspname) || '.' || quote_ident(o.collname) FROM pg_collation o JOIN pg_namespace n ON n.oid = o.collnamespace
         WHERE o.oid = a.attcollation) END,
      'not_null', a.attnotnull, 'generated', CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END,
      'sequence', pg_get_serial_sequence(quote_ident(n.nspname) || '.' || quote_ident(c.relname), a.attname))
      ORDER BY a.attname)
    FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'indexes', (SELECT coalesce(json_agg(json_build_object('name', i.relname, 'definition', pg_get_indexdef(x.indexrelid),
      'primary', x.indisprimary, 'valid', x.indisvalid,
      'constraint', (SELECT json_build_object('name', k.conname, 'type', k.contype, 'definition', pg_get_constraintdef(k.oid),
          'deferrable', k.condeferrable, 'deferred', k.condeferred)
        FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x')),
      'columns', (SELECT json_agg(a.attname ORDER BY k.place) FROM unnest((x.indkey::int2[])[:x.indnkeyatts - 1]) WITH ORDINALITY
        AS k (number, place) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number)) ORDER BY i.relname), '[]')
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid),
  'foreign_keys', (SELECT coalesce(json_agg(json_build_object('name', k.conname, 'definition', pg_get_constraintdef(k.oid),
      'references', r.relname, 'inherited', k.conparentid <> 0) ORDER BY k.conname), '[]')
    FROM pg_constraint k JOIN pg_class r ON r.oid = k.confrelid WHERE k.conrelid = c.oid AND k.contype = 'f'),
  'referenced', (SELECT coalesce(json_agg(DISTINCT k.conname), '[]') FROM pg_constraint k WHERE k.confrelid = c.oid AND k.contype = 'f'
    AND k.conparentid = 0 AND k.conrelid NOT IN (SELECT i.inhrelid FROM pg_inherits i)),
  'checks', (SELECT coalesce(json_agg(pg_get_constraintdef(k.oid) ORDER BY k.conname), '[]') FROM pg_constraint k
    WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conname <> %(bound)s),
  'triggers', (SELECT coalesce(json_agg(g.tgname ORDER BY g.tgname), '[]') FROM pg_trigger g WHERE g.tgrelid = c.oid
    AND NOT g.tgisinternal),
  'grants', (SELECT coalesce(json_agg(json_build_object('to', CASE WHEN x.grantee = 0 THEN NULL ELSE pg_get_userbyid(x.grantee) END,
      'privilege', x.privilege_type, 'option', x.is_grantable, 'column', x.attname) ORDER BY x.attname, x.grantee), '[]')
    FROM (SELECT NULL AS attname, e.* FROM aclexplode(c.relacl) e
      UNION ALL SELECT a.attname, e.* FROM pg_attribute a, aclexplode(a.attacl) e
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) x WHERE x.grantee <> c.relowner),
  'settings', (SELECT coalesce(json_agg(x.setting), '[]') FROM (SELECT unnest(c.reloptions) AS setting
      UNION ALL SELECT 'toast.' || unnest(o.reloptions) FROM pg_class o WHERE o.oid = c.reltoastrelid) x),
  'default_partition', (SELECT q.partdefid <> 0 FROM pg_partitioned_table q WHERE q.partrelid = c.oid)
) AS facts
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
"""

# of a label or a column, types that somebody made hash a number that differs between databases; those of names do so too
_BY_NUMBER_SQL = """
SELECT t.oid >= 16384 OR t.typelem >= 16384 OR t.typname ~ '^_?(reg|aclitem)' AS is_by_number FROM pg_type t WHERE t.oid = %s::regtype
"""
# by which operator the columns of a primary key are found in its index, and whether all types of a table, and those that they are
# made of, can be sent in binary
_WAYS_SQL = """
WITH RECURSIVE kinds (oid) AS (
  SELECT atttypid FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
  UNION SELECT parts.oid FROM kinds JOIN pg_type t ON t.oid = kinds.oid CROSS JOIN LATERAL (
    VALUES (t.typelem), (t.typbasetype), ((SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)))
    UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
  ) AS parts (oid) WHERE parts.oid <> 0
)
SELECT (SELECT bool_and(t.typsend <> 0 AND t.typreceive <> 0) FROM kinds JOIN pg_type t ON t.oid = kinds.oid) AS is_binary,
  (SELECT coalesce(json_object_agg(a.attname, quote_ident(n.nspname) || '.' || o.oprname), '{}')
   FROM pg_index x CROSS JOIN LATERAL unnest((x.indkey::int2[])[:x.indnkeyatts - 1], x.indclass::oid[]) AS k (number, class)
   JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number JOIN pg_opclass c ON c.oid = k.class
   JOIN pg_am h ON h.oid = c.opcmethod AND h.amname = 'btree'
   JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3 AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
   JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
   WHERE x.indrelid = %(oid)s AND x.indisprimary) AS equals
"""
# names that indexes of a leaf cannot have, since something has them
_TAKEN_SQL = """
SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = ANY (%s)
"""
# of these a copy has the number, which stands for something else, or for nothing, in another database
NUMBERS = ("regclass", "regproc", "regprocedure", "regoper", "regoperator", "regrole", "regnamespace", "aclitem")

Facts = dict[str, t.Any]


@dataclass(frozen=True)
class Shape:
    """What copying and comparing a leaf needs to know of it."""

    # all columns but generated ones, by name
    columns: tuple[str, ...]
    types: t.Mapping[str, str]
    key: tuple[str, ...]
    # columns whose type has no hash, or one that counts numbers of a database's own catalogs, are compared as text
    as_text: frozenset[str] = frozenset()
    # columns that may have no value
    nullable: frozenset[str] = frozenset()
    # column of the key to the operator by which its index finds a value, if it is not that of the server's own types
    equals: t.Mapping[str, str] = field(default_factory=dict)
    # whether its rows can be copied in binary
    is_binary: bool = True

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as the journal keeps it."""
        return {
            "columns": list(self.columns),
            "types": dict(self.types),
            "key": list(self.key),
            "as_text": sorted(self.as_text),
            "nullable": sorted(self.nullable),
            "equals": dict(self.equals),
            "is_binary": self.is_binary,
        }

    @classmethod
    def from_dict(cls, entry: t.Mapping[str, t.Any]) -> Shape:
        """Return what :meth:`as_dict` wrote."""
        columns = tuple(entry["columns"])
        # a journal of before this was asked says nothing of it
        nullable = frozenset(entry.get("nullable", columns))
        return cls(
            columns,
            dict(entry["types"]),
            tuple(entry["key"]),
            frozenset(entry["as_text"]),
            nullable,
            dict(entry.get("equals", {})),
            entry.get("is_binary", True),
        )


async def facts(members: Members, shard: str, schema: str, name: str, purpose: str = "") -> Facts | None:
    """Return what the catalogs say of a table, or None where there is none."""
    rows = await members.rows(
        shard,
        _FACTS_SQL,
        {"schema": schema, "name": name, "bound": BOUND},
        purpose=purpose,
        verb=f"read the definition of {schema}.{name} on",
    )
    return dict(rows[0]["facts"]) if rows else None


def columns_of(found: Facts) -> list[dict[str, t.Any]]:
    """Return the columns as they must be the same on both shards."""
    return [{name: value for name, value in one.items() if name != "sequence"} for one in found["columns"]]


def index_kinds(found: Facts) -> list[str]:
    """Return what the indexes are, whatever they and their table are called."""
    return sorted(
        json.dumps(
            [
                one["definition"].startswith("CREATE UNIQUE"),
                one["definition"].partition(" USING ")[2],
                (one["constraint"] or {}).get("type"),
            ]
        )
        for one in found["indexes"]
    )


def fingerprint(found: Facts) -> str:
    """Identify the definition of a table as far as it must not change while it is copied."""
    parts = [
        columns_of(found),
        index_kinds(found),
        found["checks"],
        [one["definition"] for one in found["foreign_keys"]],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def primary_key(found: Facts) -> tuple[str, ...]:
    """Return the columns of the primary key; none where there is none."""
    return next((tuple(one["columns"]) for one in found["indexes"] if one["primary"]), ())


async def shape_of(members: Members, shard: str, found: Facts) -> Shape:
    """Return how a leaf is copied and compared."""
    from psycopg import sql

    columns = [one for one in found["columns"] if one["generated"] is None]
    types = {one["name"]: one["type"] for one in columns}
    as_text = set()
    for kind in sorted(set(types.values())):
        if (await members.row(shard, _BY_NUMBER_SQL, [kind]))["is_by_number"]:
            as_text |= {name for name, other in types.items() if other == kind}
            continue
        query = sql.SQL("SELECT hash_record_extended(ROW(NULL::{}), 0)").format(sql.SQL(kind))
        try:
            await members.rows(shard, query)
        except HeadroomError as error:
            if error.facts.get("sqlstate") != "42883":
                raise
            as_text |= {name for name, other in types.items() if other == kind}
    nullable = frozenset(one["name"] for one in columns if not one["not_null"])
    ways = await members.row(shard, _WAYS_SQL, {"oid": found["oid"]}, verb="look at the types of")
    equals = {name: operator for name, operator in ways["equals"].items() if operator != "pg_catalog.="}
    return Shape(tuple(types), types, primary_key(found), frozenset(as_text), nullable, equals, ways["is_binary"])


def table(schema: str, name: str) -> sql.Identifier:
    """Return a qualified name."""
    from psycopg import sql

    return sql.Identifier(schema, name)


def create_leaf(move: Move, leaf: Leaf, source: Facts) -> sql.Composed:
    """Return what makes an empty leaf on the target, without indexes, as the parent there has it.

    Its check makes the attachment a matter of a millisecond, and refuses rows of other buckets while they are copied.
    """
    from psycopg import sql

    name, parent = table(leaf.schema, leaf.name), table(leaf.schema, leaf.parent)
    statements = [
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY)").format(name, parent),
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
            name, sql.Identifier(BOUND), bound_check(move.group, leaf, source["check"])
        ),
        sql.SQL("ALTER TABLE {} OWNER TO {}").format(name, sql.Identifier(source["owner"])),
        *grants(name, source),
        *settings(name, source),
    ]
    return sql.SQL(";\n").join(statements)


def bound_check(group: Group, leaf: Leaf, definition: str | None) -> sql.Composable:
    """Return the check that all rows of a leaf are of its bucket.

    :param definition: what PostgreSQL itself demands of them; that of a hash names its parent by a number that differs.
    """
    from psycopg import sql

    if group.strategy != "hash":
        return sql.SQL("CHECK ({})").format(sql.SQL(definition or "true"))
    return sql.SQL("CHECK (satisfies_hash_partition({}::regclass, {}, {}, {}))").format(
        sql.Literal(quoted(leaf.schema, leaf.parent)),
        sql.Literal(len(group.buckets)),
        sql.Literal(leaf.bucket),
        sql.Identifier(leaf.table.key),
    )


def grants(name: sql.Composable, source: Facts) -> list[sql.Composed]:
    """Return what gives others the privileges that they have on the source."""
    from psycopg import sql

    return [
        sql.SQL("GRANT {}{} ON {} TO {}{}").format(
            sql.SQL(one["privilege"]),
            sql.SQL("" if one["column"] is None else " ({})").format(sql.Identifier(one["column"] or "")),
            name,
            sql.SQL("PUBLIC") if one["to"] is None else sql.Identifier(one["to"]),
            sql.SQL(" WITH GRANT OPTION" if one["option"] else ""),
        )
        for one in source["grants"]
        # a foreign table of an older server knows fewer of them
        if one["privilege"] in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    ]


def settings(name: sql.Composable, source: Facts) -> list[sql.Composed]:
    """Return what gives a leaf the storage parameters and the replica identity that it has on the source."""
    from psycopg import sql

    made = []
    for one in source["settings"]:
        # such as toast.autovacuum_enabled=false
        key, _equals, value = one.partition("=")
        of = sql.SQL(".").join(map(sql.Identifier, key.split(".")))
        made.append(sql.SQL("ALTER TABLE {} SET ({} = {})").format(name, of, sql.Literal(value)))
    if source["identity"] == "f":
        made.append(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(name))
    return made


async def with_free_names(members: Members, move: Move, leaf: Leaf, source: Facts, target: Facts) -> Facts:
    """Return the facts of the source with other names for those indexes whose names something else on the target has.

    A server that makes a name out of those of table and columns cuts it, and then tells buckets apart by counting, on each shard anew.
    """
    own = {one["name"] for one in target["indexes"]}
    names = [one["name"] for one in source["indexes"]]
    rows = await members.rows(move.target, _TAKEN_SQL, [leaf.schema, names], verb="look for names on")
    taken = {row["name"] for row in rows} - own
    indexes = []
    for place, index in enumerate(source["indexes"]):
        other = f"{leaf.name[:40]}_{move.id}_{place}"
        # one that has been made by another name keeps it
        indexes.append(_renamed(index, other) if index["name"] in taken or other in own else index)
    return {**source, "indexes": indexes}


def _renamed(index: Facts, name: str) -> Facts:
    head = "CREATE UNIQUE INDEX " if index["definition"].startswith("CREATE UNIQUE") else "CREATE INDEX "
    rest = index["definition"].removeprefix(head)
    # with quotes where it needs them
    rest = rest.removeprefix(quoted(index["name"])).removeprefix(index["name"])
    constraint = index["constraint"] and {**index["constraint"], "name": name}
    return {**index, "name": name, "definition": f"{head}{quoted(name)}{rest}", "constraint": constraint}


def create_indexes(leaf: Leaf, source: Facts, made: t.Container[str]) -> list[list[sql.Composed]]:
    """Return what makes the indexes and their constraints as on the source, in lists that can run beside each other.

    :param made: indexes that are there already.
    """
    from psycopg import sql

    name = table(leaf.schema, leaf.name)
    work: list[list[sql.Composed]] = []
    for index in source["indexes"]:
        constraint = index["constraint"]
        if index["name"] in made:
            continue
        if constraint and constraint["type"] == "x":
            text = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}")
            work.append([text.format(name, sql.Identifier(constraint["name"]), sql.SQL(constraint["definition"]))])
            continue
        work.append([sql.SQL("{}").format(sql.SQL(index["definition"]))])
    return work


def create_constraints(leaf: Leaf, source: Facts, target: Facts) -> list[sql.Composed]:
    """Return what turns indexes into the constraints that they are on the source, and adds the foreign keys of the leaf itself."""
    from psycopg import sql

    name = table(leaf.schema, leaf.name)
    kinds = {"p": sql.SQL("PRIMARY KEY"), "u": sql.SQL("UNIQUE")}
    made = {one["name"] for one in target["indexes"] if one["constraint"]}
    statements = []
    for index in source["indexes"]:
        constraint = index["constraint"]
        if not constraint or constraint["type"] not in kinds or index["name"] in made:
            continue
        when = " DEFERRABLE" if constraint["deferrable"] else ""
        when += " INITIALLY DEFERRED" if constraint["deferred"] else ""
        statements.append(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} USING INDEX {}{}").format(
                name,
                sql.Identifier(constraint["name"]),
                kinds[constraint["type"]],
                sql.Identifier(index["name"]),
                sql.SQL(when),
            )
        )
    known = {one["name"] for one in target["foreign_keys"]}
    statements += [
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
            name, sql.Identifier(one["name"]), sql.SQL(one["definition"])
        )
        for one in source["foreign_keys"]
        if one["name"] not in known
    ]
    return statements


def create_forwarder(leaf: Leaf, source: Facts, server: str) -> sql.Composed:
    """Return what makes the foreign table through which the shard that gives the leaf away reaches it."""
    from psycopg import sql

    columns = []
    for one in source["columns"]:
        column = sql.SQL("{} {}").format(sql.Identifier(one["name"]), sql.SQL(one["type"]))
        if one["collation"]:
            column += sql.SQL(" COLLATE ") + sql.SQL(one["collation"])
        if one["not_null"]:
            column += sql.SQL(" NOT NULL")
        if one["generated"] is not None:
            column += sql.SQL(" GENERATED ALWAYS AS ({}) STORED").format(sql.SQL(one["generated"]))
        columns.append(column)
    name = table(leaf.schema, leaf.forwarder)
    return sql.SQL(";\n").join(
        [
            sql.SQL("CREATE FOREIGN TABLE {} ({}) SERVER {} OPTIONS (schema_name {}, table_name {})").format(
                name,
                sql.SQL(", ").join(columns),
                sql.Identifier(server),
                sql.Literal(leaf.schema),
                sql.Literal(leaf.name),
            ),
            sql.SQL("ALTER TABLE {} OWNER TO {}").format(name, sql.Identifier(source["owner"])),
            *grants(name, source),
        ]
    )


def create_triggers(move: Move, schema: str, name: str) -> sql.Composed:
    """Return what refuses writes to a leaf that its shard does not own; those of replication pass."""
    from psycopg import sql

    function = sql.SQL("EXECUTE FUNCTION headroom.refuse_moved({}, {})").format(
        sql.Literal(move.group.name), sql.Literal(str(move.bucket))
    )
    where = table(schema, name)
    return sql.SQL(";\n").join(
        [
            sql.SQL("CREATE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW {}").format(
                sql.Identifier(TRIGGER), where, function
            ),
            sql.SQL("CREATE TRIGGER {} BEFORE TRUNCATE ON {} FOR EACH STATEMENT {}").format(
                sql.Identifier(TRUNCATE_TRIGGER), where, function
            ),
        ]
    )


def drop_triggers(schema: str, name: str) -> sql.Composed:
    """Return what lets writes in again."""
    from psycopg import sql

    return sql.SQL(";\n").join(
        sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(trigger), table(schema, name))
        for trigger in (TRIGGER, TRUNCATE_TRIGGER)
    )
