# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is declared against what is there: the map that is to be, and the steps on each member towards it. Pure.

Once a bucket has a place it stays there, whatever is declared later: moves are another module's. So a shard that joins gets the
schema, the tables and no bucket, and one that still holds buckets cannot leave.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from ..._common.errors import HeadroomError
from .keys import Key, key_to_json
from .model import Bucket, BucketId, Group, Member, Placement, Shard, ShardMap, Table, bucket_name
from .observed import MIN_VERSION, Observed, Relation, Seen, digest_of, leaf_name
from .ring import place
from .schema import DIGEST, PREFIX

if t.TYPE_CHECKING:
    from .members import Access

TYPE_NAMES = {"varchar": "character varying"}
METHODS = {"hash": "HASH", "range": "RANGE", "directory": "LIST"}
LINK_OPTIONS = {"async_capable": "true", "batch_size": "100", "fetch_size": "1000", "parallel_commit": "true"}

Contents: t.TypeAlias = "t.Mapping[tuple[str, str], t.Mapping[int | None, int]]"
"""Rows by table and shard, and by bucket; None stands for tenants that have none."""


@dataclass(frozen=True)
class Wanted:
    """What is declared, checked."""

    cluster: str
    members: tuple[Member, ...]
    shards: tuple[Shard, ...]
    groups: tuple[Group, ...]
    access: Access
    # statements that make a table, by its name
    ddl: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # shard of each bucket, by group, where the first placement is declared
    placement: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_rewrite_bytes: int = 10 << 30

    @property
    def tables(self) -> dict[str, tuple[Group, Table]]:
        """The tables by name, each with its group."""
        return {table.name: (group, table) for group in self.groups for table in group.tables}


@dataclass(frozen=True)
class Step:
    """One thing to do on a member, within the one transaction that it gets."""

    member: str
    action: str
    object: str
    text: str
    # numbers of buckets that it is about
    buckets: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as a module returns it."""
        return {"member": self.member, "action": self.action, "object": self.object, "text": self.text}


@dataclass(frozen=True)
class Misplaced:
    """Rows of a plain table that lie on another shard than their buckets."""

    table: str
    shard: str
    rows: int
    # where they belong; none for tenants without a bucket
    homes: tuple[str, ...]
    buckets: tuple[int | None, ...]


def fail(sentence: str, code: str, **facts: t.Any) -> t.NoReturn:
    """Raise what cannot be declared as one sentence."""
    raise HeadroomError(f"Failed to declare the shards: {sentence}", code=code, **facts)


def on(seen: Seen) -> str:
    """Return a member as it is named in sentences."""
    return f"{seen.member.name} ({seen.member.host}:{seen.member.port}/{seen.member.dbname})"


# --- what the members must be


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


# --- what the tables must be


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


# --- the map that is to be


def target_map(
    wanted: Wanted, observed: Observed, known: ShardMap | None, contents: Contents
) -> tuple[ShardMap, tuple[Misplaced, ...]]:
    """Return the map as it is to be, and the rows that keep it from being so.

    :param known: the one true map, None where there is none yet.
    :param contents: where rows of plain tables lie.
    :raises HeadroomError: where what is declared would undo what is there.
    """
    epoch = known.epoch if known else 0
    fresh = epoch + 1
    old = {group.name: group for group in known.groups} if known else {}
    lost = [name for name in old if name not in {group.name for group in wanted.groups}]
    if lost:
        fail(
            f"the group {lost[0]} is sharded, and is not declared any more. Declare it; giving it up is not possible.",
            "group_removed",
        )
    placements: dict[BucketId, Placement] = dict(known.placements) if known else {}
    groups: list[Group] = []
    grown: set[str] = set()
    for group in wanted.groups:
        before = old.get(group.name)
        now = group if before is None else merged(before, group)
        new = [bucket for bucket in now.buckets if (group.name, bucket.number) not in placements]
        homes = _first_places(wanted, now, contents) if before is None else _later_places(wanted, now, new, placements)
        for bucket in new:
            placements[group.name, bucket.number] = Placement(homes[bucket.number], fresh)
        if before is not None and now.tables != before.tables:
            grown.add(group.name)
        groups.append(now)
    _check_leaving(wanted, observed, known, grown)
    target = ShardMap(
        max([1, epoch, *(one.epoch for one in placements.values())]), wanted.shards, tuple(groups), placements
    )
    return target, _misplaced(target, contents)


def merged(before: Group, declared: Group) -> Group:
    """Return a group as it is, with the tables and tenants that are new."""
    name = declared.name
    for part in ("strategy", "key_type"):
        was, to_be = getattr(before, part), getattr(declared, part)
        if was != to_be:
            fail(
                f"group {name} has the {part} {was}, and is declared with {to_be}. It cannot be changed.",
                "group_changed",
            )
    tables = {table.name: table for table in declared.tables}
    for table in before.tables:
        if table.name not in tables:
            fail(
                f"the table {table.name} is sharded, and is not declared any more. Declare it; giving it up is not possible.",
                "table_removed",
            )
        if tables[table.name].key != table.key:
            fail(
                f"the key of {table.name} is {table.key}, and is declared as {tables[table.name].key}. It cannot be changed.",
                "key_changed",
            )
    added = tuple(table for table in declared.tables if table.name not in {one.name for one in before.tables})
    merged = replace(before, tables=(*before.tables, *added))
    if declared.strategy == "hash" and len(before.buckets) != len(declared.buckets):
        fail(
            f"group {name} has {len(before.buckets)} buckets, and is declared with {len(declared.buckets)}. The number cannot be changed.",
            "group_changed",
        )
    if declared.strategy == "range":
        bounds = {bucket.lower for bucket in before.buckets}
        for bucket in declared.buckets:
            if bucket.lower not in bounds and bucket.lower is not None:
                fail(
                    f"group {name} is not cut at {key_to_json(bucket.lower)}. "
                    "Cut it by splitting a bucket; 'bounds' is for the first time.",
                    "group_changed",
                )
    if declared.strategy == "directory":
        return _with_tenants(merged, declared)
    return merged


def _with_tenants(before: Group, declared: Group) -> Group:
    has = {tenant for bucket in before.buckets for tenant in bucket.tenants}
    wanted = {tenant for bucket in declared.buckets for tenant in bucket.tenants}
    gone = sorted(map(str, has - wanted))
    if gone:
        fail(
            f"the tenant {gone[0]} of group {before.name} has a bucket, and is not declared any more. Declare it.",
            "tenant_removed",
        )
    number = max(bucket.number for bucket in before.buckets) + 1
    buckets = list(before.buckets)
    for bucket in declared.buckets:
        new = tuple(tenant for tenant in bucket.tenants if tenant not in has)
        if new:
            buckets.append(Bucket(number, tenants=new))
            number += 1
    return replace(before, buckets=tuple(buckets))


def _first_places(wanted: Wanted, group: Group, contents: Contents) -> dict[int, str]:
    """Return where the buckets of a new group lie: where it is declared, else where their rows are, else by the ring."""
    if group.name in wanted.placement:
        return {bucket.number: shard for bucket, shard in zip(group.buckets, wanted.placement[group.name], strict=True)}
    ring = {
        key[1]: shard
        for key, shard in place([(group.name, one.number) for one in group.buckets], wanted.shards).items()
    }
    order = [shard.name for shard in wanted.shards]
    rows: dict[int, dict[str, int]] = {}
    for table in group.tables:
        for shard in order:
            for number, count in contents.get((table.name, shard), {}).items():
                if number is not None and count:
                    rows.setdefault(number, {}).setdefault(shard, 0)
                    rows[number][shard] += count
    holders = {shard for counts in rows.values() for shard in counts}
    if len(holders) == 1:
        return dict.fromkeys(ring, next(iter(holders)))
    most = {number: max(counts, key=lambda one: (counts[one], -order.index(one))) for number, counts in rows.items()}
    return {**ring, **most}


def _later_places(
    wanted: Wanted, group: Group, new: t.Sequence[Bucket], placements: t.Mapping[BucketId, Placement]
) -> dict[int, str]:
    """Return where buckets of new tenants lie: each on the shard that has fewest of the group for its weight."""
    taking = [shard for shard in wanted.shards if shard.takes_share]
    held = {shard.name: 0 for shard in taking}
    for (name, _number), placement in placements.items():
        if name == group.name and placement.shard in held:
            held[placement.shard] += 1
    homes = {}
    for bucket in new:
        shard = min(taking, key=lambda one: (held[one.name] + 1) / one.weight)
        held[shard.name] += 1
        homes[bucket.number] = shard.name
    return homes


def _check_leaving(wanted: Wanted, observed: Observed, known: ShardMap | None, grown: t.Container[str]) -> None:
    declared = {shard.name for shard in wanted.shards}
    held: dict[str, dict[str, int]] = {}
    for (group, _number), placement in (known.placements if known else {}).items():
        if placement.shard not in declared:
            counts = held.setdefault(placement.shard, {})
            counts[group] = counts.get(group, 0) + 1
    if held:
        shard = sorted(held)[0]
        counts_text = " and ".join(f"{count} buckets of {group}" for group, count in sorted(held[shard].items()))
        fail(
            f"the shard {shard} is not declared any more, and still holds {counts_text}. "
            "Declare it with state draining and rebalance first.",
            "shard_holds_buckets",
            shard=shard,
        )
    leaving = {shard.name for shard in known.shards} - declared if known else set()
    moves = sorted({str(move["id"]): move for seen in observed.values() for move in seen.moves}.items())
    for _id, move in moves:
        name = f"{move['group_name']}/{move['bucket']}"
        leaves = sorted(leaving & {move["source"], move["target"]})
        if move["state"] == "switched" and leaves and move["source"] != move["target"]:
            fail(
                f"the shard {leaves[0]} is not declared any more, and bucket {name}, which moved from {move['source']} to "
                f"{move['target']}, can still be taken back. Declare it with state draining, and rebalance with state cleaned and "
                "retire_now, or wait for the end of its revert window.",
                "move_in_flight",
                move=move["id"],
            )
        if move["state"] == "switched" and move["group_name"] in grown and move["source"] != move["target"]:
            fail(
                f"bucket {name} has moved from {move['source']} to {move['target']} and can still be taken back, "
                "to where a new table of its group would not follow. "
                "Rebalance with state cleaned, or wait for the end of its revert window.",
                "move_in_flight",
                move=move["id"],
            )
        if move["group_name"] in grown or leaves:
            what = (
                f"is being split on {move['source']}"
                if move["source"] == move["target"]
                else f"is on its way from {move['source']} to {move['target']}"
            )
            fail(
                f"bucket {name} {what} ({move['state']}). Rebalance first, which finishes it or takes it back.",
                "move_in_flight",
                move=move["id"],
            )


def _misplaced(target: ShardMap, contents: Contents) -> tuple[Misplaced, ...]:
    found = []
    groups = {table.name: group for group in target.groups for table in group.tables}
    for (table, shard), counts in sorted(contents.items()):
        group = groups[table]
        wrong = {
            number: rows
            for number, rows in counts.items()
            if rows and (number is None or target.placements[group.name, number].shard != shard)
        }
        if wrong:
            numbers = sorted(wrong, key=lambda one: -1 if one is None else one)
            homes = sorted({target.placements[group.name, one].shard for one in numbers if one is not None})
            found.append(Misplaced(table, shard, sum(wrong.values()), tuple(homes), tuple(numbers)))
    return tuple(found)


def report_misplaced(
    misplaced: t.Sequence[Misplaced], keys: t.Sequence[t.Sequence[Key]], contents: Contents
) -> HeadroomError:
    """Return the error that says which rows do not lie where the declared function puts them.

    :param keys: the first keys of each of the misplaced.
    """
    parts, errors = [], []
    for one, first in zip(misplaced, keys, strict=True):
        shown = ", ".join(str(key_to_json(key)) for key in first)
        if not one.homes:
            text = f"{_rows(one.rows)} of {one.table} on {one.shard} of tenants without a bucket ({shown}, …)"
        else:
            verb = "belongs" if one.rows == 1 else "belong"
            text = (
                f"{_rows(one.rows)} of {one.table} on {one.shard} {verb} to {' or '.join(one.homes)} (keys {shown}, …)"
            )
        parts.append(text.replace(", …)", ")") if one.rows <= len(first) else text)
        errors.append(
            {
                "code": "misplaced_rows",
                "message": parts[-1],
                "table": one.table,
                "shard": one.shard,
                "rows": one.rows,
                "belongs_to": list(one.homes),
                "keys": [key_to_json(key) for key in first],
            }
        )
    rows = sum(sum(counts.values()) for counts in contents.values())
    wrong = sum(one.rows for one in misplaced)
    return HeadroomError(
        f"Failed to declare the shards: {wrong} of {rows} rows do not lie where the declared function puts them: {'; '.join(parts)}. "
        "Nothing was changed. Correct bounds, tenants or placement, or move these rows.",
        code="misplaced_rows",
        result={"errors": errors},
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


# --- the steps


def steps(wanted: Wanted, observed: Observed, target: ShardMap, forms: t.Mapping[str, Relation]) -> list[Step]:
    """Return what is to be done on each member, in order.

    :raises HeadroomError: where a member has not what its own map says.
    """
    found: list[Step] = []
    for name, seen in observed.items():
        found += _steps_of(wanted, seen, name, target, forms)
    return _with_locks_checked(found, observed, forms)


def _steps_of(
    wanted: Wanted, seen: Seen, name: str, target: ShardMap, forms: t.Mapping[str, Relation]
) -> t.Iterator[Step]:
    stored = seen.stored
    if stored is None or stored.schema_digest != DIGEST:
        verb = "make" if stored is None else "bring up to date"
        yield Step(name, "schema", "headroom", f"{verb} the schema headroom")
    if not seen.fdw_installed:
        yield Step(name, "extension", "postgres_fdw", "create the extension postgres_fdw")
    if seen.member.role == "router" and not seen.partitionwise:
        yield Step(name, "settings", seen.member.dbname, "let the database join tables partition by partition")
    yield from _link_steps(wanted, seen, name)
    for group in target.groups:
        for table in group.tables:
            if seen.member.role == "router":
                yield from _router_steps(seen, name, group, table, target)
            else:
                yield from _shard_steps(seen, name, group, table, target, forms[table.name])
    yield from _dropped_links(wanted, seen, name)
    if stored is None or not _is_current(wanted, stored, target):
        yield Step(name, "map", wanted.cluster, f"write the map, epoch {target.epoch}")


def _is_current(wanted: Wanted, stored: t.Any, target: ShardMap) -> bool:
    return (
        stored.digest == digest_of(wanted.cluster, wanted.members, wanted.shards, target.groups)
        and stored.map.epoch >= target.epoch
        and stored.map.placements == target.placements
        and [shard.name for shard in stored.map.shards] == [shard.name for shard in wanted.shards]
    )


def wanted_links(wanted: Wanted, name: str) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Return the foreign servers that a member is to have, each with its options and those of the mapping of all users."""
    mapping = {"user": wanted.access.user, "password_required": "false"}
    return {
        f"{PREFIX}{member.name}": ({**wanted.access.parameters(member), **LINK_OPTIONS}, mapping)
        for member in wanted.members
        if member.role == "shard" and member.name != name
    }


def _link_steps(wanted: Wanted, seen: Seen, name: str) -> t.Iterator[Step]:
    for server, (options, mapping) in wanted_links(wanted, name).items():
        link = seen.links.get(server)
        place = f"{options['host']}:{options['port']}/{options['dbname']}"
        if link is None:
            yield Step(name, "link", server, f"create the foreign server {server} for {place}")
        elif dict(link.options) != options or link.mapping is None or dict(link.mapping) != mapping:
            yield Step(name, "link", server, f"change the foreign server {server} for {place}")


def _dropped_links(wanted: Wanted, seen: Seen, name: str) -> t.Iterator[Step]:
    for server in sorted(seen.links.keys() - wanted_links(wanted, name).keys()):
        yield Step(name, "unlink", server, f"drop the foreign server {server}")


def _shard_steps(
    seen: Seen, name: str, group: Group, table: Table, target: ShardMap, form: Relation
) -> t.Iterator[Step]:
    here = {bucket.number for bucket in group.buckets if target.placements[group.name, bucket.number].shard == name}
    relation = seen.relations.get(table.name)
    numbers = tuple(sorted(here))
    if relation is None:
        if _knows(seen, table.name):
            fail(
                f"{table.name} is missing on {on(seen)}, though the map there has it. Was it dropped by hand?",
                "map_edited",
                member=name,
            )
        yield Step(name, "create", table.name, f"create {table.name}, partitioned, with {_buckets(len(here))}", numbers)
        return
    if relation.kind == "plain":
        _check_names(seen, relation, here)
        rows = f" and its rows (about {max(relation.rows, 0)})" if relation.filled else ""
        yield Step(
            name,
            "convert",
            table.name,
            f"turn {table.name}{rows} into a partitioned table with {_buckets(len(here))}, locked meanwhile",
            numbers,
        )
        return
    known_here = _own_buckets(seen, group.name, name)
    missing = here - relation.held
    if missing & known_here and _knows(seen, table.name):
        number = min(missing & known_here)
        fail(
            f"the map of {on(seen)} says that bucket {bucket_name((group.name, number))} lies there, "
            f"and {leaf_name(table.name, number)} is not attached to {table.name}. Was it dropped by hand, or the map edited?",
            "map_edited",
            member=name,
        )
    # a bucket that was handed over stays attached for those who still read it there
    extra = relation.held - here - {int(move["bucket"]) for move in seen.moves if move["group_name"] == group.name}
    if extra:
        number = min(extra)
        placement = target.placements.get((group.name, number))
        says = f"on {placement.shard}" if placement else "nowhere"
        fail(
            f"{leaf_name(table.name, number)} is attached on {on(seen)}, and the map says that bucket {bucket_name((group.name, number))} "
            f"lies {says}. Was the map edited by hand?",
            "map_edited",
            member=name,
        )
    if missing:
        _check_names(seen, relation, missing)
        yield Step(
            name, "leaves", table.name, f"create {_buckets(len(missing))} of {table.name}", tuple(sorted(missing))
        )


def _check_names(seen: Seen, relation: Relation, numbers: t.Iterable[int]) -> None:
    taken = sorted({leaf_name(relation.name, number) for number in numbers} & set(relation.strays))
    if taken:
        fail(
            f"{on(seen)} has a table {taken[0]} already, which is to be the name of a bucket. Rename it.",
            "name_taken",
            member=seen.member.name,
        )


def _knows(seen: Seen, table: str) -> bool:
    return seen.stored is not None and any(
        one.name == table for group in seen.stored.map.groups for one in group.tables
    )


def _own_buckets(seen: Seen, group: str, name: str) -> set[int]:
    """Return the buckets that a shard's own map says lie there."""
    if seen.stored is None:
        return set()
    return {
        number
        for (of, number), placement in seen.stored.map.placements.items()
        if of == group and placement.shard == name
    }


def _router_steps(seen: Seen, name: str, group: Group, table: Table, target: ShardMap) -> t.Iterator[Step]:
    relation = seen.relations.get(table.name)
    if relation is None:
        if _knows(seen, table.name):
            fail(
                f"{table.name} is missing on {on(seen)}, though the map there has it. Was it dropped by hand?",
                "map_edited",
                member=name,
            )
        yield Step(name, "create", table.name, f"create {table.name} with {_buckets(len(group.buckets))} on the shards")
        return
    wrong = wrong_pointers(relation, group, target)
    if wrong:
        yield Step(
            name, "repoint", table.name, f"point {_buckets(len(wrong))} of {table.name} to where they are", wrong
        )


def wrong_pointers(relation: Relation, group: Group, target: ShardMap) -> tuple[int, ...]:
    """Return the buckets whose foreign table on a router is missing, points elsewhere, or stands for no bucket any more."""
    there = {leaf.number: (leaf.server, leaf.remote) for leaf in relation.leaves if leaf.number is not None}
    to_be = {
        bucket.number: (
            f"{PREFIX}{target.placements[group.name, bucket.number].shard}",
            leaf_name(relation.name, bucket.number),
        )
        for bucket in group.buckets
    }
    return tuple(sorted(number for number in there.keys() | to_be.keys() if there.get(number) != to_be.get(number)))


def _buckets(count: int) -> str:
    return "no bucket" if count == 0 else "1 bucket" if count == 1 else f"{count} buckets"


def _with_locks_checked(found: list[Step], observed: Observed, forms: t.Mapping[str, Relation]) -> list[Step]:
    """Check that the locks of each member's transaction fit into its table of locks."""
    for name, seen in observed.items():
        needed = 0
        for step in found:
            if step.member == name and step.action in ("create", "convert", "leaves"):
                form = forms[step.object]
                own = sum(one.unique or one.kind == "x" for one in form.constraints) + len(form.indexes)
                needed += len(step.buckets) * (3 + own)
        settings = seen.settings
        sessions = int(settings["max_connections"]) + int(settings["max_prepared_transactions"])
        per = int(settings["max_locks_per_transaction"])
        if needed > per * sessions:
            fail(
                f"{on(seen)} needs about {needed} locks at once for its buckets, and has room for {per * sessions}. "
                f"Raise max_locks_per_transaction to {-(-needed // sessions)} and restart it, or declare fewer buckets.",
                "too_many_locks",
                member=name,
            )
    return found


# --- for people


def describe(
    members: t.Sequence[Member], shard_map: ShardMap | None, cluster: str, tables: t.Mapping[str, t.Mapping[str, str]]
) -> str:
    """Return a map as lines that a person reads in a diff.

    :param tables: by member, what each sharded table is there.
    """
    if shard_map is None:
        members = [member for member in members if tables.get(member.name)]
    lines = [f"cluster {cluster}"] if shard_map is not None else ["no map"]
    shards = {shard.name: shard for shard in shard_map.shards} if shard_map else {}
    held: dict[str, int] = {}
    for placement in (shard_map.placements if shard_map else {}).values():
        held[placement.shard] = held.get(placement.shard, 0) + 1
    for member in members:
        if shard_map is not None and member.role == "shard" and member.name in shards:
            shard = shards[member.name]
            capacity = f", at most {shard.capacity_bytes} bytes" if shard.capacity_bytes else ""
            told = (member.application_host or member.host, member.application_port or member.port)
            apart = f", for applications {told[0]}:{told[1]}" if told != (member.host, member.port) else ""
            lines.append(
                f"shard {member.name}: {member.address}{apart}, weight {shard.weight:g}, {shard.state}{capacity}, "
                f"{_buckets(held.get(member.name, 0))}"
            )
        elif member.role == "router" or tables.get(member.name):
            lines.append(f"{member.role} {member.name}: {member.address}")
        lines += [f"  {table}: {what}" for table, what in sorted(tables.get(member.name, {}).items())]
    for group in shard_map.groups if shard_map else ():
        lines.append(f"group {group.name}: {group.strategy} of {group.key_type}, {_buckets(len(group.buckets))}")
        lines += [f"  table {table.name} by {table.key}" for table in group.tables]
        if group.strategy == "hash":
            for shard in shards:
                numbers = [
                    one.number
                    for one in group.buckets
                    if shard_map and shard_map.placements[group.name, one.number].shard == shard
                ]
                if numbers:
                    lines.append(f"  on {shard}: {spans(numbers)}")
        else:
            for bucket in group.buckets:
                shard_name = shard_map.placements[group.name, bucket.number].shard if shard_map else ""
                lines.append(f"  bucket {bucket.number} on {shard_name}: {_content(group, bucket)}")
    return "\n".join(lines) + "\n"


def _content(group: Group, bucket: Bucket) -> str:
    if group.strategy == "directory":
        return ", ".join(str(key_to_json(tenant)) for tenant in bucket.tenants)
    lower, upper = (None if key is None else key_to_json(key) for key in (bucket.lower, bucket.upper))
    return (
        " and ".join(
            [*([f"from {lower}"] if lower is not None else []), *([f"below {upper}"] if upper is not None else [])]
        )
        or "all keys"
    )


def spans(numbers: t.Sequence[int]) -> str:
    """Return numbers in order as ``0-3, 5``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def describe_tables(wanted: Wanted, observed: Observed) -> dict[str, dict[str, str]]:
    """Return by member what each declared table is there, as in :func:`describe`."""
    return {
        name: {table: _what(seen.relations[table]) for table in wanted.tables if table in seen.relations}
        for name, seen in observed.items()
    }


def _what(relation: Relation) -> str:
    if relation.kind == "partitioned":
        return "partitioned"
    return f"{relation.kind}, with rows" if relation.filled else f"{relation.kind}, empty"
