# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The statements that make a sharded table on a member, composed from what the catalogs say of it. No I/O."""

from __future__ import annotations

import typing as t

from .model import METHODS, Bucket, Group, Table
from .observed import Column, Relation, leaf_name
from .schema import PREFIX, SCHEMA

if t.TYPE_CHECKING:
    from psycopg import sql

MEMBER_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}
_COMPRESSION = {"p": "pglz", "l": "lz4"}
_FIRES = {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


def identifier(name: str) -> sql.Identifier:
    """Return the name of a table, as ``schema.table``, to be composed into statements."""
    from psycopg import sql

    return sql.Identifier(*name.split(".", 1))


def quoted(*names: str) -> str:
    """Return names as SQL writes them, the parts of a qualified one with dots between, where the text itself is wanted."""
    return ".".join('"{}"'.format(name.replace('"', '""')) for name in names)


def script(statements: t.Iterable[sql.Composable]) -> sql.Composable:
    """Return statements as one text, to be sent without parameters."""
    from psycopg import sql

    return sql.SQL(";\n").join(statements)


def bound(group: Group, bucket: Bucket) -> sql.Composable:
    """Return the clause ``FOR VALUES ...`` of a bucket."""
    from psycopg import sql

    if group.strategy == "hash":
        clause = sql.SQL("FOR VALUES WITH (MODULUS {modulus}, REMAINDER {remainder})")
        return clause.format(modulus=sql.Literal(len(group.buckets)), remainder=sql.Literal(bucket.number))
    if group.strategy == "range":
        lower = sql.SQL("MINVALUE") if bucket.lower is None else sql.Literal(bucket.lower)
        upper = sql.SQL("MAXVALUE") if bucket.upper is None else sql.Literal(bucket.upper)
        return sql.SQL("FOR VALUES FROM ({lower}) TO ({upper})").format(lower=lower, upper=upper)
    return sql.SQL("FOR VALUES IN ({})").format(sql.SQL(", ").join(map(sql.Literal, bucket.tenants)))


def parent(form: Relation, group: Group, table: Table, router: bool = False) -> list[sql.Composable]:
    """Return what makes the partitioned table, without keys and indexes.

    On a router it has no checks, which the shards make, and no default from a sequence, which would count by itself.
    """
    from psycopg import sql

    made: list[sql.Composable] = [
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(table.name.split(".", 1)[0]))
    ]
    if not router:
        made += [
            sql.SQL("CREATE SEQUENCE IF NOT EXISTS {} AS {}").format(
                sql.Identifier(*column.sequence), sql.SQL(column.type)
            )
            for column in form.columns
            if column.sequence and not column.identity
        ]
    parts = [_column(column, router) for column in form.columns]
    if not router:
        parts += [
            sql.SQL("CONSTRAINT {} {}").format(sql.Identifier(one.name), sql.SQL(one.sql.removesuffix(" NOT VALID")))
            for one in form.constraints
            if one.kind == "c"
        ]
    made.append(
        sql.SQL("CREATE TABLE {name} (\n  {parts}\n) PARTITION BY {method} ({key})").format(
            name=identifier(table.name),
            parts=sql.SQL(",\n  ").join(parts),
            method=sql.SQL(METHODS[group.strategy]),
            key=sql.Identifier(table.key),
        )
    )
    if form.owner:
        made.append(sql.SQL("ALTER TABLE {} OWNER TO {}").format(identifier(table.name), sql.Identifier(form.owner)))
    for column in form.columns:
        if column.sequence and not column.identity and not router:
            sequence = sql.Identifier(*column.sequence)
            # it belongs to a column of its own owner alone
            if form.owner:
                made.append(sql.SQL("ALTER SEQUENCE {} OWNER TO {}").format(sequence, sql.Identifier(form.owner)))
            place = sql.Identifier(*table.name.split(".", 1), column.name)
            made.append(sql.SQL("ALTER SEQUENCE {} OWNED BY {}").format(sequence, place))
            made += [
                _grant(privileges, sql.SQL("SEQUENCE {}").format(sequence), role, option)
                for role, privileges, option in column.sequence_grants
            ]
    return made


def _column(column: Column, router: bool) -> sql.Composable:
    from psycopg import sql

    parts: list[sql.Composable] = [sql.Identifier(column.name), sql.SQL(column.type)]
    if column.storage and not router:
        parts.append(sql.SQL(f"STORAGE {_STORAGE[column.storage]}"))
    if column.compression and not router:
        parts.append(sql.SQL(f"COMPRESSION {_COMPRESSION[column.compression]}"))
    if column.collation:
        parts.append(sql.SQL("COLLATE " + column.collation))
    if column.not_null:
        parts.append(sql.SQL("NOT NULL"))
    if column.generated:
        parts.append(sql.SQL("GENERATED ALWAYS AS (" + str(column.default) + ") STORED"))
    elif column.identity and not router:
        parts.append(sql.SQL(f"GENERATED {'ALWAYS' if column.identity == 'a' else 'BY DEFAULT'} AS IDENTITY"))
    elif column.default is not None and not (router and column.counted):
        parts.append(sql.SQL("DEFAULT " + column.default))
    return sql.SQL(" ").join(parts)


def leaf(form: Relation, group: Group, table: Table, bucket: Bucket, member_user: str) -> list[sql.Composable]:
    """Return what makes a local leaf, attached."""
    from psycopg import sql

    name = identifier(leaf_name(table.name, bucket.number))
    create = sql.SQL("CREATE TABLE {} PARTITION OF {} {}").format(name, identifier(table.name), bound(group, bucket))
    if form.options:
        create = sql.SQL("{} WITH ({})").format(create, sql.SQL(", ".join(form.options)))
    made: list[sql.Composable] = [create]
    if form.owner:
        made.append(sql.SQL("ALTER TABLE {} OWNER TO {}").format(name, sql.Identifier(form.owner)))
    made.append(_grant(MEMBER_PRIVILEGES, name, member_user))
    return made


def leaf_keys(form: Relation, table: Table, bucket: Bucket) -> list[sql.Composable]:
    """Return what makes the foreign keys of a local leaf, each to the leaf of the same bucket."""
    from psycopg import sql

    def names(columns: t.Iterable[str]) -> sql.Composable:
        return sql.SQL(", ").join(map(sql.Identifier, columns))

    return [
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}) {}").format(
            identifier(leaf_name(table.name, bucket.number)),
            sql.Identifier(one.name),
            names(one.columns),
            identifier(leaf_name(one.table, bucket.number)),
            names(one.their_columns),
            sql.SQL(one.rest),
        )
        for one in form.foreign_keys
    ]


def foreign_leaf(group: Group, table: Table, bucket: Bucket, shard: str, owner: str = "") -> list[sql.Composable]:
    """Return what makes a router's leaf that points to a shard, attached."""
    from psycopg import sql

    name = leaf_name(table.name, bucket.number)
    made: list[sql.Composable] = [
        sql.SQL(
            "CREATE FOREIGN TABLE {name} PARTITION OF {parent} {bound} SERVER {server} OPTIONS (schema_name {schema}, table_name {leaf})"
        ).format(
            name=identifier(name),
            parent=identifier(table.name),
            bound=bound(group, bucket),
            server=sql.Identifier(f"{PREFIX}{shard}"),
            schema=sql.Literal(name.split(".", 1)[0]),
            leaf=sql.Literal(name.split(".", 1)[1]),
        )
    ]
    if owner:
        made.append(sql.SQL("ALTER FOREIGN TABLE {} OWNER TO {}").format(identifier(name), sql.Identifier(owner)))
    return made


def finish(form: Relation, table: Table, member_user: str, router: bool = False) -> list[sql.Composable]:
    """Return what follows once the rows are in: keys, indexes, statistics, triggers, comments, owner and privileges."""
    from psycopg import sql

    name = identifier(table.name)
    made: list[sql.Composable] = []
    if not router:
        made += [
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(name, sql.Identifier(one.name), sql.SQL(one.sql))
            for one in form.constraints
            if one.kind in "pux"
        ]
        made += [sql.SQL(one.sql) for one in (*form.indexes, *form.statistics)]
        for trigger in form.triggers:
            made.append(sql.SQL(trigger.sql))
            if trigger.kind in _FIRES:
                fires = sql.SQL(_FIRES[trigger.kind])
                made.append(sql.SQL("ALTER TABLE {} {} TRIGGER {}").format(name, fires, sql.Identifier(trigger.name)))
        made.append(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
                sql.Identifier(table.name.split(".", 1)[0]), sql.Identifier(member_user)
            )
        )
        made.append(_grant(MEMBER_PRIVILEGES, name, member_user))
    if form.comment is not None:
        made.append(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, sql.Literal(form.comment)))
    made += [
        sql.SQL("COMMENT ON COLUMN {} IS {}").format(
            sql.Identifier(*table.name.split(".", 1), column.name), sql.Literal(column.comment)
        )
        for column in form.columns
        if column.comment is not None
    ]
    made += [_grant(privileges, name, role, option) for role, privileges, option in form.grants]
    made += [
        _grant(privileges, name, role, option, column.name)
        for column in form.columns
        for role, privileges, option in column.grants
    ]
    return made


def _grant(
    privileges: t.Sequence[str], name: sql.Composable, role: str, option: bool = False, column: str | None = None
) -> sql.Composable:
    from psycopg import sql

    of = sql.SQL("") if column is None else sql.SQL(" ({})").format(sql.Identifier(column))
    return sql.SQL("GRANT {} ON {} TO {}{}").format(
        sql.SQL(", ").join(sql.SQL("{}{}").format(sql.SQL(privilege), of) for privilege in privileges),
        name,
        sql.Identifier(role) if role else sql.SQL("PUBLIC"),
        sql.SQL(" WITH GRANT OPTION" if option else ""),
    )


def link(server: str, options: t.Mapping[str, str], mapping: t.Mapping[str, str], exists: bool) -> list[sql.Composable]:
    """Return what makes a foreign server with its mapping for all users, in the place of a former one if it exists.

    :param exists: whether it is there, so that its options are replaced and its foreign tables stay.
    """
    from psycopg import sql

    name = sql.Identifier(server)

    def listed(given: t.Mapping[str, str]) -> sql.Composable:
        return sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(key), sql.Literal(value)) for key, value in given.items()
        )

    made: list[sql.Composable] = []
    if not exists:
        made.append(
            sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(name, listed(options))
        )
    made.append(sql.SQL("DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER {}").format(name))
    made.append(sql.SQL("CREATE USER MAPPING FOR PUBLIC SERVER {} OPTIONS ({})").format(name, listed(mapping)))
    return made


def link_options(server: str, before: t.Mapping[str, str], options: t.Mapping[str, str]) -> list[sql.Composable]:
    """Return what changes the options of a foreign server, nothing where they are right."""
    from psycopg import sql

    parts: list[sql.Composable] = []
    for key in sorted(before.keys() | options.keys()):
        if key not in options:
            parts.append(sql.SQL("DROP {}").format(sql.Identifier(key)))
        elif before.get(key) != options[key]:
            verb = sql.SQL("SET" if key in before else "ADD")
            parts.append(sql.SQL("{} {} {}").format(verb, sql.Identifier(key), sql.Literal(options[key])))
    if not parts:
        return []
    return [sql.SQL("ALTER SERVER {} OPTIONS ({})").format(sql.Identifier(server), sql.SQL(", ").join(parts))]


def unlink(server: str) -> list[sql.Composable]:
    """Return what drops a foreign server that nothing points to any more, but for what asked it how a switch was decided."""
    from psycopg import sql

    name = sql.Identifier(server)
    decision = sql.Identifier(SCHEMA, f"decision_of_{server.removeprefix(PREFIX)}")
    return [
        sql.SQL("DROP FOREIGN TABLE IF EXISTS {}").format(decision),
        sql.SQL("DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER {}").format(name),
        sql.SQL("DROP SERVER {}").format(name),
    ]
