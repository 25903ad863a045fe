# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Look at all members of a sharded cluster at once: what they are, their maps, and their sharded tables. Changes nothing.

Only catalogs are read, and nothing that waits for the locks of a move; whether a plain table has rows is the exception.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import replace

from ..._common.errors import HeadroomError, OptionError
from .ddl import quoted
from .keys import hash_remainder
from .members import Members, Row
from .model import Member
from .observed import (
    IN_FLIGHT,
    MIN_VERSION,
    SUFFIX,
    Column,
    Definition,
    ForeignKey,
    Grant,
    Leaf,
    Link,
    Observed,
    Relation,
    Seen,
    StoredMap,
    merge,
)
from .schema import FORMAT, PREFIX
from .stored import stored_map

LOCK_TIMEOUT = "2s"
"""How long a lock on a table is waited for when it is looked at."""
LOCKED = "55P03"

_SETTINGS = (
    "wal_level",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_connections",
    "max_replication_slots",
    "max_wal_senders",
)

_FACTS_SQL = """
SELECT current_setting('server_version_num')::int AS version,
  (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name = ANY (%(settings)s)) AS settings,
  (SELECT system_identifier::text FROM pg_control_system()) || '/' || d.oid AS identity,
  pg_is_in_recovery() AS in_recovery,
  pg_encoding_to_char(d.encoding) AS encoding,
  hashtextextended('headroom', 8816678312871386365)::text AS hashed,
  EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw') AS fdw_available,
  EXISTS (SELECT FROM pg_extension WHERE extname = 'postgres_fdw') AS fdw_installed,
  coalesce((SELECT 'enable_partitionwise_join=on' = ANY (setconfig) FROM pg_db_role_setting
    WHERE setdatabase = d.oid AND setrole = 0), false) AS partitionwise,
  (SELECT coalesce(json_agg(rolname), '[]') FROM pg_roles) AS roles,
  to_regclass('headroom.cluster') IS NOT NULL AS has_map,
  (SELECT coalesce(json_agg(json_build_object('name', s.srvname, 'options', s.srvoptions, 'mapping', m.umoptions,
      'mapped', m.umid IS NOT NULL)), '[]')
    FROM pg_foreign_server s LEFT JOIN pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0
    WHERE starts_with(s.srvname, %(prefix)s)) AS links
FROM pg_database d WHERE d.datname = current_database()
"""

_MAP_SQL = """
SELECT to_json(c) AS cluster,
  (SELECT coalesce(json_agg(s ORDER BY position), '[]') FROM headroom.shard s) AS shards,
  (SELECT coalesce(json_agg(r ORDER BY name), '[]') FROM headroom.router r) AS routers,
  (SELECT coalesce(json_agg(g ORDER BY position), '[]') FROM headroom.shard_group g) AS groups,
  (SELECT coalesce(json_agg(s ORDER BY position), '[]') FROM headroom.shard_table s) AS tables,
  (SELECT coalesce(json_agg(b ORDER BY position), '[]') FROM headroom.bucket b) AS buckets,
  (SELECT coalesce(json_agg(json_build_object('id', id, 'group_name', group_name, 'bucket', bucket, 'source', source,
      'target', target, 'state', state)), '[]')
    FROM headroom.move WHERE state = ANY (%(in_flight)s)) AS moves
FROM headroom.cluster c
"""

_GRANTS_SQL = """
  (SELECT coalesce(json_agg(json_build_array(role, privileges, grantable) ORDER BY role, grantable), '[]')
    FROM (SELECT CASE WHEN p.grantee = 0 THEN '' ELSE pg_get_userbyid(p.grantee) END AS role, p.is_grantable AS grantable,
        array_agg(p.privilege_type ORDER BY p.privilege_type) AS privileges
      FROM aclexplode({acl}) p WHERE p.grantee <> c.relowner GROUP BY 1, 2) g)"""

_RELATIONS_SQL = """
SELECT w.schema || '.' || w.name AS name, c.oid::bigint AS oid, c.relkind::text AS kind,
  pg_get_partkeydef(c.oid) AS partition_key, c.relpersistence::text AS persistence, c.relrowsecurity AS row_security,
  c.relispartition AS is_partition, c.reltuples::bigint AS rows, coalesce(c.reloptions, '{}') AS options,
  pg_get_userbyid(c.relowner) AS owner, obj_description(c.oid, 'pg_class') AS comment,
  (SELECT json_agg(json_build_object(
      'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
      'collation', CASE WHEN a.attcollation <> y.typcollation THEN format('%%I.%%I', cn.nspname, l.collname) END,
      'deterministic', coalesce(l.collisdeterministic, true),
      'bytewise', CASE WHEN l.collprovider = 'd' THEN d.datlocprovider = 'b' OR d.datlocprovider = 'c' AND d.datcollate IN ('C', 'POSIX')
        ELSE l.oid IS NULL OR l.collprovider = 'b' OR l.collname IN ('C', 'POSIX') END,
      'not_null', a.attnotnull, 'default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(f.adbin, f.adrelid) END,
      'expression', CASE WHEN a.attgenerated <> '' THEN pg_get_expr(f.adbin, f.adrelid) END,
      'identity', a.attidentity, 'generated', a.attgenerated,
      'sequence', (SELECT json_build_array(qn.nspname, q.relname) FROM pg_depend e JOIN pg_class q ON q.oid = e.objid AND q.relkind = 'S'
        JOIN pg_namespace qn ON qn.oid = q.relnamespace
        WHERE e.classid = 'pg_class'::regclass AND e.refclassid = 'pg_class'::regclass AND e.refobjid = c.oid
          AND e.refobjsubid = a.attnum AND e.deptype IN ('a', 'i') LIMIT 1),
      'grants', {column_grants},
      'sequence_grants', (SELECT {sequence_grants} FROM pg_depend e JOIN pg_class q ON q.oid = e.objid AND q.relkind = 'S'
        WHERE e.classid = 'pg_class'::regclass AND e.refclassid = 'pg_class'::regclass AND e.refobjid = c.oid
          AND e.refobjsubid = a.attnum AND e.deptype = 'a' LIMIT 1),
      'storage', CASE WHEN a.attstorage <> y.typstorage THEN a.attstorage END,
      'compression', nullif(a.attcompression, ''), 'comment', col_description(c.oid, a.attnum)) ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation
      LEFT JOIN pg_namespace cn ON cn.oid = l.collnamespace LEFT JOIN pg_attrdef f ON f.adrelid = c.oid AND f.adnum = a.attnum
      JOIN pg_database d ON d.datname = current_database()
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT coalesce(json_agg(json_build_object('name', k.conname, 'kind', k.contype, 'sql', pg_get_constraintdef(k.oid),
      'columns', (SELECT json_agg(a.attname ORDER BY u.at) FROM unnest(k.conkey) WITH ORDINALITY u (number, at)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number)) ORDER BY k.contype DESC, k.conname), '[]')
    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'c', 'x')) AS constraints,
  (SELECT coalesce(json_agg(json_build_object('name', i.relname, 'kind', 'i', 'sql', pg_get_indexdef(x.indexrelid),
      'unique', x.indisunique, 'columns', (SELECT json_agg(a.attname) FROM unnest((x.indkey::int2[])[:x.indnkeyatts - 1]) u (number)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number)) ORDER BY i.relname), '[]')
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indrelid = c.oid AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.conrelid = c.oid))
    AS indexes,
  (SELECT coalesce(json_agg(json_build_object('name', g.tgname, 'kind', g.tgenabled, 'sql', pg_get_triggerdef(g.oid))
      ORDER BY g.tgname), '[]')
    FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal) AS triggers,
  (SELECT coalesce(json_agg(json_build_object('name', s.stxname, 'kind', 's', 'sql', pg_get_statisticsobjdef(s.oid))
      ORDER BY s.stxname), '[]')
    FROM pg_statistic_ext s WHERE s.stxrelid = c.oid) AS statistics,
  {table_grants} AS grants,
  (SELECT json_agg(DISTINCT v.relname) FROM pg_depend e JOIN pg_rewrite r ON r.oid = e.objid
      JOIN pg_class v ON v.oid = r.ev_class
    WHERE e.classid = 'pg_rewrite'::regclass AND e.refclassid = 'pg_class'::regclass AND e.refobjid = c.oid) AS views,
  (SELECT coalesce(json_agg(DISTINCT kn.nspname || '.' || kc.relname), '[]') FROM pg_constraint k JOIN pg_class kc ON kc.oid = k.conrelid
      JOIN pg_namespace kn ON kn.oid = kc.relnamespace
    WHERE k.confrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0) AS referenced_by,
  (SELECT coalesce(json_agg(json_build_object('name', k.conname, 'sql', pg_get_constraintdef(k.oid),
      'table', rn.nspname || '.' || r.relname,
      'columns', (SELECT json_agg(a.attname ORDER BY u.at) FROM unnest(k.conkey) WITH ORDINALITY u (number, at)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number),
      'their_columns', (SELECT json_agg(a.attname ORDER BY u.at) FROM unnest(k.confkey) WITH ORDINALITY u (number, at)
        JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number)) ORDER BY k.conname), '[]')
    FROM pg_constraint k JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
    WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = CASE c.relkind WHEN 'r' THEN c.oid
      ELSE (SELECT h.inhrelid FROM pg_inherits h JOIN pg_class l ON l.oid = h.inhrelid AND l.relkind = 'r' AND l.relname ~ '_b[0-9]+$'
        WHERE h.inhparent = c.oid ORDER BY h.inhrelid LIMIT 1) END) AS foreign_keys,
  (SELECT json_agg(p.pubname) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
    WHERE r.prrelid = c.oid) AS publications,
  (SELECT json_agg(h.inhrelid::regclass::text) FROM pg_inherits h WHERE h.inhparent = c.oid AND c.relkind = 'r') AS children,
  EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid AND NOT c.relispartition) AS inherits,
  (SELECT coalesce(json_agg(json_build_object('name', kn.nspname || '.' || k.relname, 'table', k.relname, 'kind', k.relkind,
      'server', s.srvname, 'options', ft.ftoptions)), '[]')
    FROM pg_inherits h JOIN pg_class k ON k.oid = h.inhrelid JOIN pg_namespace kn ON kn.oid = k.relnamespace
      LEFT JOIN pg_foreign_table ft ON ft.ftrelid = k.oid LEFT JOIN pg_foreign_server s ON s.oid = ft.ftserver
    WHERE h.inhparent = c.oid AND c.relkind = 'p') AS leaves
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w (schema, name)
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
"""
for _part, _acl in (("table", "c.relacl"), ("column", "a.attacl"), ("sequence", "q.relacl")):
    _RELATIONS_SQL = _RELATIONS_SQL.replace(f"{{{_part}_grants}}", _GRANTS_SQL.format(acl=_acl))

_STRAYS_SQL = """
SELECT w.schema || '.' || w.name AS name, json_agg(n.nspname || '.' || c.relname) AS strays
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w (schema, name)
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid
    AND starts_with(c.relname, w.name || '_b') AND substr(c.relname, length(w.name) + 3) ~ '^[0-9]+(_retired|_forward)?$'
WHERE NOT EXISTS (SELECT FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
    WHERE h.inhrelid = c.oid AND p.relname = w.name AND p.relnamespace = n.oid)
GROUP BY 1
"""

# hash_combine64 of nothing with the hash of a text known to both sides, see keys.hash_remainder
_HASH_MODULUS = 4093
_KINDS = {"r": "plain", "p": "partitioned"}
_OTHER_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}


async def look(members: Members, tables: t.Iterable[str] = ()) -> dict[str, Seen]:
    """Look at all members at once.

    :param tables: names, as ``schema.table``, of tables to look at beside those of the maps that are found.
    :raises HeadroomError: when a member cannot be read.
    """
    facts = await members.each(lambda name: member_facts(members, name))
    wanted = dict.fromkeys(tables)
    for seen in facts.values():
        if seen.stored is not None:
            wanted.update(dict.fromkeys(table.name for group in seen.stored.map.groups for table in group.tables))
    if not wanted:
        return facts

    async def relations(name: str) -> Seen:
        if facts[name].version < MIN_VERSION:
            # its catalogs may be others; whoever plans refuses it
            return facts[name]
        return _with(facts[name], await read_relations(members, name, list(wanted)))

    return await members.each(relations)


async def observe(members: Members, tables: t.Iterable[str] = ()) -> tuple[Observed, t.Any]:
    """Look, and return what was seen together with the one true map, None where there is none."""
    seen = await look(members, tables)
    return seen, merge(seen)


def _with(seen: Seen, relations: t.Mapping[str, Relation]) -> Seen:
    return replace(seen, relations=relations)


async def member_facts(members: Members, name: str) -> Seen:
    """Look at one member, without its tables."""
    member = members.members[name]
    row = await members.row(name, _FACTS_SQL, {"settings": list(_SETTINGS), "prefix": PREFIX}, verb="look at")
    stored, moves = None, ()
    if row["has_map"]:
        rows = await members.rows(name, _MAP_SQL, {"in_flight": list(IN_FLIGHT)}, verb="read the map of")
        if rows:
            stored, moves = stored_from(member, rows[0]), tuple(rows[0]["moves"])
    links = {
        one["name"]: Link(one["name"], _options(one["options"]), _options(one["mapping"]) if one["mapped"] else None)
        for one in row["links"]
    }
    # the words of the hash, as bucket_of puts them together
    hashed = ((int(row["hashed"]) & 0xFFFFFFFFFFFFFFFF) + 0x49A0F4DD15E5A8E3) & 0xFFFFFFFFFFFFFFFF
    return Seen(
        member=member,
        version=row["version"],
        settings=row["settings"],
        identity=row["identity"],
        in_recovery=row["in_recovery"],
        encoding=row["encoding"],
        hashes=hashed % _HASH_MODULUS == hash_remainder("headroom", _HASH_MODULUS),
        fdw_available=row["fdw_available"],
        fdw_installed=row["fdw_installed"],
        partitionwise=row["partitionwise"],
        roles=frozenset(row["roles"]),
        stored=stored,
        links=links,
        moves=moves,
    )


def stored_from(member: Member, row: Row) -> StoredMap:
    """Return the map of a member's rows.

    :raises HeadroomError: when no map can be made of them, or they are of a newer version.
    """
    cluster = row["cluster"]
    at = f"Failed to read the map of {member.name} on {member.host}:{member.port}:"
    if cluster["format"] > FORMAT:
        raise HeadroomError(
            f"{at} it has format {cluster['format']}, and this version knows up to {FORMAT}. Update the collection here.",
            code="newer_format",
            member=member.name,
        )
    tables: dict[str, list[Row]] = {}
    for one in row["tables"]:
        tables.setdefault(one["group_name"], []).append({"name": one["name"], "key": one["key"]})
    buckets: dict[str, list[Row]] = {}
    for one in row["buckets"]:
        buckets.setdefault(one["group_name"], []).append(one)
    known = {one["name"] for one in row["groups"]}
    lost = sorted((tables.keys() | buckets.keys()) - known)
    try:
        if lost:
            raise OptionError("groups", lost[0], "it has tables or buckets, and is none of the groups.")
        found = stored_map(
            {
                "epoch": cluster["epoch"],
                "shards": row["shards"],
                "groups": [
                    {
                        "name": one["name"],
                        "strategy": one["strategy"],
                        "key_type": one["key_type"],
                        "tables": tables.get(one["name"]),
                        "buckets": buckets.get(one["name"]),
                    }
                    for one in row["groups"]
                ],
            }
        )
    except OptionError as error:
        raise HeadroomError(
            f"{at} it was edited by hand, {error} Put the former value back in the tables of schema headroom there.",
            code="map_edited",
            member=member.name,
        ) from error
    return StoredMap(
        cluster=cluster["name"],
        self_name=cluster["self"],
        role=cluster["role"],
        format=cluster["format"],
        schema_digest=cluster["schema_digest"],
        digest=cluster["digest"],
        members=members_from(row["shards"], row["routers"]),
        map=found,
    )


def members_from(shards: t.Iterable[Row], routers: t.Iterable[Row]) -> tuple[Member, ...]:
    """Return the members that rows of ``headroom.shard`` and ``headroom.router`` stand for."""
    return (
        *(
            Member(
                one["name"],
                one["host"],
                one["port"],
                one["dbname"],
                "shard",
                one["application_host"],
                one["application_port"],
            )
            for one in shards
        ),
        *(Member(one["name"], one["host"], one["port"], one["dbname"], "router") for one in routers),
    )


async def read_relations(
    members: Members, name: str, tables: t.Sequence[str], purpose: str = ""
) -> dict[str, Relation]:
    """Return those of the tables that a member has."""
    how = {"purpose": purpose, "verb": "read the tables of"}
    names = [table.split(".", 1) for table in tables]
    params = {"schemas": [one[0] for one in names], "names": [one[1] for one in names]}
    # who turns a table into a sharded one holds its lock, and definitions wait for that as rows do
    await members.rows(name, "SELECT set_config('lock_timeout', %s, false)", [LOCK_TIMEOUT], purpose=purpose)
    rows = await members.rows(name, _RELATIONS_SQL, params, **how)
    if not rows:
        return {}
    strays = {one["name"]: tuple(sorted(one["strays"])) for one in await members.rows(name, _STRAYS_SQL, params, **how)}
    found = {}
    for row in rows:
        filled, size_bytes = False, 0
        if row["kind"] == "r":
            filled, size_bytes = await _content(members, name, row["name"], purpose)
        found[row["name"]] = relation_from(row, strays.get(row["name"], ()), filled, size_bytes)
    return found


async def _content(members: Members, name: str, table: str, purpose: str) -> tuple[bool, int]:
    from psycopg import sql

    query = sql.SQL(
        "SELECT EXISTS (SELECT FROM ONLY {table}) AS filled, pg_total_relation_size({text}::regclass) AS size"
    )
    identifier = sql.Identifier(*table.split(".", 1))
    text = sql.Literal(quoted(*table.split(".", 1)))
    row = await members.row(
        name, query.format(table=identifier, text=text), purpose=purpose, verb=f"look at {table} on"
    )
    return row["filled"], row["size"]


def relation_from(row: Row, strays: tuple[str, ...] = (), filled: bool = False, size_bytes: int = 0) -> Relation:
    """Return the table that a row of the catalog query stands for."""
    schema, _dot, name = row["name"].partition(".")
    leaves = []
    for one in row["leaves"]:
        bucket = SUFFIX.search(one["table"]) if one["table"].startswith(f"{name}_b") else None
        remote = _options(one["options"])
        leaves.append(
            Leaf(
                one["name"],
                int(bucket[1]) if bucket and one["table"] == f"{name}{bucket[0]}" else None,
                retired=bool(bucket and bucket[2] == "_retired"),
                server=one["server"],
                remote=f"{remote.get('schema_name', schema)}.{remote.get('table_name', one['table'])}"
                if one["server"]
                else None,
            )
        )
    columns = tuple(
        Column(
            name=one["name"],
            type=one["type"],
            collation=one["collation"],
            deterministic=one["deterministic"],
            bytewise=one["bytewise"],
            not_null=one["not_null"],
            default=one["default"] if not one["generated"] else one["expression"],
            identity=one["identity"],
            generated=one["generated"],
            sequence=tuple(one["sequence"]) if one["sequence"] else None,
            sequence_grants=_grants(one["sequence_grants"]),
            grants=_grants(one["grants"]),
            storage=one["storage"],
            compression=one["compression"],
            comment=one["comment"],
        )
        for one in row["columns"] or ()
    )
    return Relation(
        name=row["name"],
        kind=_KINDS.get(row["kind"], _OTHER_KINDS.get(row["kind"], "something else")),
        columns=columns,
        constraints=tuple(_definition(one) for one in row["constraints"]),
        # that of a partitioned table would leave its partitions out
        indexes=tuple(
            _definition({**one, "sql": one["sql"].replace(" ON ONLY ", " ON ", 1)}) for one in row["indexes"]
        ),
        foreign_keys=tuple(_foreign_key(row["kind"], one) for one in row["foreign_keys"]),
        referenced_by=tuple(row["referenced_by"]),
        triggers=tuple(_definition(one) for one in row["triggers"]),
        statistics=tuple(_definition(one) for one in row["statistics"]),
        grants=_grants(row["grants"]),
        owner=row["owner"],
        comment=row["comment"],
        options=tuple(row["options"]),
        blockers=tuple(_blockers(row)),
        partition_key=row["partition_key"],
        leaves=tuple(leaves),
        strays=strays,
        filled=filled,
        rows=max(0, row["rows"]),
        size_bytes=size_bytes,
    )


def _grants(rows: t.Iterable[t.Any] | None) -> tuple[Grant, ...]:
    return tuple((role, tuple(privileges), grantable) for role, privileges, grantable in rows or ())


def _definition(one: Row) -> Definition:
    return Definition(
        one["name"],
        one["kind"],
        one["sql"],
        tuple(one.get("columns") or ()),
        bool(one.get("unique") or one["kind"] in "pu"),
    )


def _foreign_key(kind: str, one: Row) -> ForeignKey:
    # that of a leaf ends at a leaf of the same bucket
    table = one["table"] if kind == "r" else SUFFIX.sub("", one["table"])
    rest = re.search(r"\bREFERENCES .*?\([^)]*\)(.*)\Z", one["sql"], re.DOTALL)
    return ForeignKey(
        one["name"], tuple(one["columns"]), table, tuple(one["their_columns"]), rest[1].strip() if rest else ""
    )


def _blockers(row: Row) -> t.Iterator[str]:
    if row["views"]:
        yield f"is used by the view or rule of {row['views'][0]}; drop that, and make it again afterwards"
    if row["publications"]:
        yield f"is published by {row['publications'][0]}; take it out of that publication"
    if row["children"] or row["inherits"]:
        yield "is part of an inheritance"
    if row["is_partition"]:
        yield "is a partition of another table"
    if row["row_security"]:
        yield "has row security, which its partitions would not have"
    if row["persistence"] != "p":
        yield "is unlogged or temporary"


def _options(options: t.Iterable[str] | None) -> dict[str, str]:
    return dict(one.split("=", 1) for one in options or ())


def require_primaries(observed: Observed) -> None:
    """Make sure that all members take writes.

    :raises HeadroomError: naming the first that does not.
    """
    for name, seen in observed.items():
        if seen.in_recovery:
            raise HeadroomError(
                f"Failed to use {name} on {seen.member.host}:{seen.member.port}: it is a replica. Give the primary's address.",
                code="is_replica",
                member=name,
            )
