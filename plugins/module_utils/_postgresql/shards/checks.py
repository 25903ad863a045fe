# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Whether members and tables can be what is declared. Pure."""

from __future__ import annotations

import typing as t

from .declare import Wanted, fail, on
from .model import METHODS, Group, Table
from .observed import MIN_VERSION, Observed, Relation, Seen

TYPE_NAMES = {"varchar": "character varying"}


def check_members(wanted: Wanted, observed: Observed) -> None:
    """Check that the servers can be members of this cluster.

    :raises HeadroomError: for the first that cannot.
    """
    identities: dict[str, str] = {}
    texts = any(group.key_type in ("text", "varchar") for group in wanted.groups)
    for name, seen in observed.items():
        where = on(seen)
        if seen.identity in identities:
            fail(f"{where} and {identities[seen.identity]} are the same database. Give each its own.", "same_database")
        identities[seen.identity] = where
        if seen.in_recovery:
            fail(f"{where} is a replica. Give the address of its primary.", "is_replica", member=name)
        if seen.version < MIN_VERSION:
            fail(
                f"{where} runs PostgreSQL {_version(seen.version)}, and {_version(MIN_VERSION)} or later is needed. Upgrade it.",
                "server_too_old",
                member=name,
            )
        if seen.member.role == "shard":
            _check_settings(seen, where)
        if not seen.fdw_available:
            fail(
                f"{where} lacks the extension postgres_fdw. Install PostgreSQL's contrib package there.",
                "no_postgres_fdw",
                member=name,
            )
        if texts and seen.encoding != "UTF8":
            fail(
                f"{where} has the encoding {seen.encoding}, and keys of texts need UTF8. Make the database anew.",
                "bad_encoding",
                member=name,
            )
        if not seen.hashes and any(group.strategy == "hash" for group in wanted.groups):
            fail(
                f"{where} hashes by another byte order. Use servers of little-endian byte order.",
                "bad_hash",
                member=name,
            )
        if wanted.access.user not in seen.roles:
            fail(
                f"{where} has no role {wanted.access.user}, as which members reach each other. Create it, or give another in member_user.",
                "no_member_user",
                member=name,
            )
        stored = seen.stored
        if stored is None:
            continue
        if stored.cluster != wanted.cluster:
            fail(
                f"{where} belongs to the cluster {stored.cluster}, and not to {wanted.cluster}. "
                "Give another database, or drop the schema headroom there if it has left that cluster.",
                "other_cluster",
                member=name,
            )
        if (stored.self_name, stored.role) != (name, seen.member.role):
            fail(
                f"{where} is the {stored.role} {stored.self_name} of this cluster. Were two addresses confused?",
                "other_member",
                member=name,
            )


def _check_settings(seen: Seen, where: str) -> None:
    settings, name = seen.settings, seen.member.name
    if settings["wal_level"] != "logical":
        fail(
            f"{where} has wal_level = {settings['wal_level']}, and moving buckets needs logical. Set it, and restart the server.",
            "wal_level",
            member=name,
        )
    if int(settings["max_prepared_transactions"]) < 2:
        fail(
            f"{where} has max_prepared_transactions = {settings['max_prepared_transactions']}, and moving buckets needs 2 or more. "
            "Set it, and restart the server.",
            "max_prepared_transactions",
            member=name,
        )


def _version(number: int) -> str:
    return str(number // 10000)


def shapes(wanted: Wanted, observed: Observed) -> dict[str, Relation]:
    """Return the form of each declared table that some shard has already: that of a partitioned one first."""
    found = {}
    for table in wanted.tables:
        there = [
            seen.relations[table]
            for seen in observed.values()
            if seen.member.role == "shard" and table in seen.relations
        ]
        # a shard without buckets has no leaves that could tell of foreign keys
        for relation in sorted(there, key=lambda one: (one.kind != "partitioned", not one.held)):
            found.setdefault(table, relation)
    return found


def check_tables(wanted: Wanted, observed: Observed, forms: t.Mapping[str, Relation]) -> None:
    """Check that the tables can be sharded as declared.

    :param forms: the form of each declared table.
    :raises HeadroomError: for the first that cannot.
    """
    for name, (group, table) in wanted.tables.items():
        if name not in forms:
            fail(
                f"no shard has the table {name}. Create it on one, or give its statements in ddl.",
                "no_table",
                table=name,
            )
        _check_form(group, table, forms[name])
        for seen in observed.values():
            relation = seen.relations.get(name)
            if relation is not None:
                _check_relation(wanted, seen, group, table, relation, forms[name])


def _check_form(group: Group, table: Table, form: Relation) -> None:
    name = table.name
    if form.kind not in ("plain", "partitioned"):
        fail(f"{name} is {form.kind}, and not a table.", "not_a_table", table=name)
    key = form.column(table.key)
    if key is None:
        columns = ", ".join(column.name for column in form.columns)
        fail(
            f"{name} has no column {table.key}; its columns are {columns}. Correct 'key'.", "no_key_column", table=name
        )
    needed = TYPE_NAMES.get(group.key_type, group.key_type)
    if key.type.split("(")[0] != needed:
        fail(
            f"the key {table.key} of {name} is {key.type}, and group {group.name} has keys of type {group.key_type}. Correct 'key_type'.",
            "key_type",
            table=name,
        )
    if key.counted:
        fail(
            f"the key {table.key} of {name} comes from a sequence, of which each shard would have its own. "
            "Let the application choose it, or make it a uuid.",
            "key_from_sequence",
            table=name,
        )
    if group.key_type in ("text", "varchar"):
        if group.strategy == "range" and not key.bytewise:
            fail(
                f'the key {table.key} of {name} does not sort by its bytes. Give the column COLLATE "C".',
                "key_collation",
                table=name,
            )
        if not key.deterministic:
            fail(
                f"the key {table.key} of {name} has a nondeterministic collation. Give it another.",
                "key_collation",
                table=name,
            )
    keys = {one.name: one.key for one in group.tables}
    for foreign in form.foreign_keys:
        if (table.key, keys.get(foreign.table)) not in zip(foreign.columns, foreign.their_columns, strict=True):
            fail(
                f"the foreign key {foreign.name} of {name} would reach across shards. Drop it; only those stay "
                "that refer to a table of the same group by the shard keys of both.",
                "foreign_key",
                table=name,
            )
    primary = next((one for one in form.constraints if one.kind == "p"), None)
    if primary is None:
        fail(f"{name} has no primary key. Give it one that contains {table.key}.", "no_primary_key", table=name)
    for one in (*form.constraints, *form.indexes):
        if (one.unique or one.kind == "x") and table.key not in one.columns:
            what = {"p": "primary key", "i": "unique index", "x": "exclusion constraint"}.get(
                one.kind, "unique constraint"
            )
            fail(
                f"the {what} {one.name} of {name} does not contain the shard key {table.key}, so that no shard could check it alone. "
                "Add the column to it, or drop it.",
                "unique_without_key",
                table=name,
            )


def _check_relation(wanted: Wanted, seen: Seen, group: Group, table: Table, relation: Relation, form: Relation) -> None:
    name, where = table.name, on(seen)
    if relation.kind not in ("plain", "partitioned"):
        fail(f"{name} on {where} is {relation.kind}, and not a table.", "not_a_table", table=name)
    known = seen.stored is not None and any(
        one.name == name for other in seen.stored.map.groups for one in other.tables
    )
    if seen.member.role == "router" and not known:
        fail(
            f"{where} is to be a router and has a table {name} of its own. Drop it there, or give another database.",
            "table_on_router",
            table=name,
        )
    if relation.kind == "plain":
        if known:
            fail(
                f"{name} on {where} is a plain table, though the map there says that it was sharded. Was it replaced by hand?",
                "map_edited",
                table=name,
            )
        if relation.blockers:
            fail(f"{name} on {where} {relation.blockers[0]}.", "table_blocked", table=name)
        others = {one.name for one in group.tables}
        outside = [one for one in relation.referenced_by if one not in others]
        if outside:
            fail(
                f"{name} on {where} is referenced by a foreign key of {outside[0]}, which would reach across shards. "
                "Drop it, or declare that table in the group too.",
                "table_blocked",
                table=name,
            )
        if relation.size_bytes > wanted.max_rewrite_bytes:
            fail(
                f"{name} on {where} has {relation.size_bytes} bytes, which would be rewritten while it is locked, and max_rewrite_bytes is "
                f"{wanted.max_rewrite_bytes}. Raise that, if the applications can wait for so long.",
                "too_large_to_rewrite",
                table=name,
            )
    else:
        expected = f"{METHODS[group.strategy]} ({table.key})"
        # a name that is a keyword comes with quotes
        if not known or (relation.partition_key or "").replace('"', "") != expected:
            fail(
                f"{name} on {where} is partitioned by {relation.partition_key} already, and not by this module. "
                "Only plain tables are taken over.",
                "partitioned",
                table=name,
            )
    _compare_columns(name, where, relation, form, seen.member.role == "router")


def _compare_columns(table: str, where: str, relation: Relation, form: Relation, router: bool) -> None:
    """Check that a table has the columns of its form.

    :param router: whether it only has to pass rows on, so that it need not be as strict as the shards are.
    """
    if relation is form:
        return
    here, there = (
        {
            column.name: (
                column.type,
                None if router else column.collation,
                column.not_null and not router,
                column.generated,
            )
            for column in one.columns
        }
        for one in (relation, form)
    )
    for column in sorted(here.keys() | there.keys()):
        if here.get(column) != there.get(column):
            state = (
                "is missing"
                if column not in here
                else "is there alone"
                if column not in there
                else f"is {_column(here[column])}"
            )
            other = "" if column not in there else f", and is {_column(there[column])} elsewhere"
            fail(
                f"the column {column} of {table} {state} on {where}{other}. Make the tables alike.",
                "tables_differ",
                table=table,
            )


def _column(facts: tuple[str, str | None, bool, str]) -> str:
    kind, collation, not_null, generated = facts
    return (
        kind
        + (f" COLLATE {collation}" if collation else "")
        + (" NOT NULL" if not_null else "")
        + (" GENERATED" if generated else "")
    )
