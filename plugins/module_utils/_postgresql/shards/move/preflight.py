# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What must hold before a move begins: each reason that would make it fail later, after hours of copying, said at once."""

from __future__ import annotations

import asyncio
import typing as t
from dataclasses import dataclass, field

from ...._common.units import format_bytes
from ..divide.catalog import ATTACHED_SQL, attached_params
from ..members import MemberError, Members
from ..schema import PREFIX
from . import catalog
from .model import Leaf, Move

MIN_VERSION = 160000
# what the rows take on the target while indexes are built, beside what they take on the source
ROOM = 1.3

_FACTS_SQL = """
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'in_recovery', pg_is_in_recovery(),
  'wal_level', current_setting('wal_level'),
  'slots_free', current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
  'senders_free', current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication),
  'workers_free', current_setting('max_logical_replication_workers')::int
    - (SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %%worker'),
  'processes_free', current_setting('max_worker_processes')::int
    -- those of queries come and go; what is no process of the server itself is the worker of replication or of an extension
    - (SELECT count(*) FROM pg_stat_activity WHERE backend_type NOT IN ('parallel worker', 'client backend', 'walsender', 'walreceiver',
      'walwriter', 'walsummarizer', 'checkpointer', 'background writer', 'startup', 'archiver', 'logger', 'autovacuum launcher',
      'autovacuum worker', 'slotsync worker', 'io worker', 'standalone backend')),
  'prepared_free', current_setting('max_prepared_transactions')::int - (SELECT count(*) FROM pg_prepared_xacts),
  'locale', (SELECT json_build_object('provider', d.datlocprovider, 'lc_collate', d.datcollate, 'lc_ctype', d.datctype,
      -- its name was another one before PostgreSQL 17
      'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), 'rules', d.daticurules,
      'encoding', pg_encoding_to_char(d.encoding), 'version', pg_database_collation_actual_version(d.oid)) FROM pg_database d
    WHERE d.datname = current_database()),
  'roles', (SELECT json_agg(rolname) FROM pg_roles),
  'servers', (SELECT coalesce(json_agg(s.srvname), '[]') FROM pg_foreign_server s),
  'long', (SELECT json_agg(json_build_object('pid', pid, 'name', application_name, 'seconds', age)) FROM (
    SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age FROM pg_stat_activity
    WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3) x WHERE age > %(long_s)s),
  'stale_prepared', (SELECT json_agg(gid) FROM pg_prepared_xacts WHERE database = current_database()
    AND prepared < clock_timestamp() - %(long_s)s * interval '1 second')
) AS facts
"""
# the working directory of a server is that of its data
_FREE_SQL = """
CREATE TEMPORARY TABLE headroom_free (line text);
COPY headroom_free FROM PROGRAM 'stat --file-system --format "%a %S" .'
"""

# names of members are plain ones; what this makes goes with its transaction
_REACH_SQL = """
BEGIN;
CREATE FOREIGN TABLE headroom.reach (one boolean) SERVER "{server}" OPTIONS (schema_name 'headroom', table_name 'cluster');
SELECT one FROM headroom.reach;
ROLLBACK;
"""

# what must be alike for keys and indexes to sort and compare alike, and what to do about it
_LOCALE = {
    **dict.fromkeys(
        ("provider", "lc_collate", "lc_ctype", "locale", "rules", "encoding"), "make a database with the same one"
    ),
    "version": "bring the libraries of both servers to the same collation version, and reindex",
}


@dataclass
class Needs:
    """What moves need of one shard: those that run at the same time, and those that can be taken back afterwards."""

    leaving: int = 0
    coming: int = 0
    coming_bytes: int = 0
    # each keeps a slot and a sender on its target, and a worker on its source
    kept_leaving: int = 0
    kept_coming: int = 0


@dataclass
class Checked:
    """What keeps moves from beginning, by their labels, and what keeps all of them."""

    all: list[str] = field(default_factory=list)
    moves: dict[str, str] = field(default_factory=dict)


# enough for any plan
PLENTY = dict.fromkeys(("slots_free", "senders_free", "workers_free", "processes_free"), 1 << 30)


async def shard_facts(members: Members, shard: str, long_s: float = 60.0) -> dict[str, t.Any]:
    """Return what a shard has to offer."""
    row = await members.row(shard, _FACTS_SQL, {"long_s": long_s}, verb="check")
    return dict(row["facts"])


async def free_bytes(members: Members, shard: str) -> int | None:
    """Return what is free on the file system of a shard's data, None where it is not for this login to know."""
    try:
        await members.rows(shard, _FREE_SQL, purpose="free")
        row = await members.row(shard, "SELECT line FROM pg_temp.headroom_free", purpose="free")
    except MemberError as error:
        if error.sqlstate in ("42501", "38000", "58030", "57014"):
            return None
        raise
    finally:
        await members.close(shard, "free")
    blocks, size = str(row["line"]).split()
    return int(blocks) * int(size)


def shard_reasons(
    name: str, facts: t.Mapping[str, t.Any], needs: Needs, free: int | None, min_free_bytes: int = 0
) -> list[str]:
    """Return why a shard cannot take part, each with its remedy. Pure."""
    reasons = []

    def need(fits: bool, why: str) -> None:
        if not fits:
            reasons.append(f"{name}: {why}")

    need(
        facts["version"] >= MIN_VERSION,
        f"PostgreSQL {facts['version'] // 10000} is too old; moves need {MIN_VERSION // 10000} or later.",
    )
    need(not facts["in_recovery"], "it is a standby; name the primary.")
    level = facts["wal_level"]
    need(level == "logical", f"wal_level is {level}; set it to logical and restart.")
    slots = needs.leaving + max(needs.coming, needs.kept_coming)
    workers = needs.coming + max(needs.leaving, needs.kept_leaving)
    kept = needs.kept_coming + needs.kept_leaving > needs.coming + needs.leaving
    why = ", since each bucket that moves keeps one while it can be taken back" if kept else ""
    remedy = (
        "raise it and restart, or move fewer with max_moves, or set revert_window_s to 0"
        if kept
        else "raise it and restart"
    )
    for key, option, wanted in (
        ("slots_free", "max_replication_slots", slots),
        ("senders_free", "max_wal_senders", slots),
        ("workers_free", "max_logical_replication_workers", workers),
        ("processes_free", "max_worker_processes", workers),
        ("prepared_free", "max_prepared_transactions", 1),
    ):
        need(facts[key] >= wanted, f"{max(facts[key], 0)} of {option} are free and {wanted} are needed{why}; {remedy}.")
    for one in facts["long"] or []:
        need(
            False,
            f"process {one['pid']} ({one['name'] or 'unnamed'}) has written in a transaction for {one['seconds']:.0f} s; "
            "end it, since a slot waits for it.",
        )
    for gid in facts["stale_prepared"] or []:
        need(False, f"transaction {gid} is prepared and holds its locks; commit it or roll it back.")
    if free is not None:
        room = int(needs.coming_bytes * ROOM) + min_free_bytes
        need(
            free >= room,
            f"{format_bytes(free)} are free on its disk and {format_bytes(room)} are needed for what comes at the same time; "
            "free some, or lower concurrent_moves or min_free_bytes.",
        )
    return reasons


def affordable(
    moves: t.Sequence[tuple[str, str]], facts: t.Mapping[str, t.Mapping[str, t.Any]], at_once: int
) -> tuple[int, str]:
    """Return how many of the moves, the first ones, can all be taken back at the same time, and what there is too little of. Pure.

    :param moves: source and target of each, in their order.
    :param facts: shard to what it has to offer.
    """
    needs = {name: Needs() for name in facts}
    for number, (source, target) in enumerate(moves):
        giver, taker = needs[source], needs[target]
        giver.leaving = min(at_once, giver.leaving + 1)
        giver.kept_leaving += 1
        taker.coming = min(at_once, taker.coming + 1)
        taker.kept_coming += 1
        for name, need in ((source, giver), (target, taker)):
            slots = need.leaving + max(need.coming, need.kept_coming)
            workers = need.coming + max(need.leaving, need.kept_leaving)
            for key, option, wanted in (
                ("slots_free", "max_replication_slots", slots),
                ("senders_free", "max_wal_senders", slots),
                ("workers_free", "max_logical_replication_workers", workers),
                ("processes_free", "max_worker_processes", workers),
            ):
                if facts[name][key] < wanted:
                    return number, f"{option} of {name}"
    return len(moves), ""


def leaf_reason(
    move: Move,
    leaf: Leaf,
    source: catalog.Facts | None,
    source_parent: catalog.Facts | None,
    target_parent: catalog.Facts | None,
    there: t.Sequence[str],
) -> str | None:
    """Return why a leaf cannot move, with the remedy. Pure.

    :param there: names of tables on the target that the move would use.
    """
    name = f"{leaf.schema}.{leaf.name}"
    if source is None or source_parent is None or source["parent"] != leaf.parent:
        return f"{name} is no partition of {leaf.table.name} on {move.source}; run postgresql_shard_map."
    if target_parent is None or target_parent["kind"] != "p":
        return f"{leaf.table.name} is not a partitioned table on {move.target}; run postgresql_shard_map."
    if there:
        return f"{move.target} has {', '.join(there)} already; look whose it is and drop it."
    if source["kind"] != "r":
        return f"{name} is partitioned itself; a bucket is one table each."
    if not catalog.primary_key(source):
        return f"{name} has no primary key; add one to {leaf.table.name}, since rows are followed and compared by it."
    computed = [one["name"] for one in source["columns"] if one["generated"] is not None]
    for column in catalog.primary_key(source):
        if column in computed:
            # replication leaves out what is generated, so that it would not find the rows again
            return f"column {column} of the primary key of {name} is generated; make a key of {leaf.table.name} of columns that are not."
    if source["identity"] not in ("d", "f"):
        return (
            f"{name} has a replica identity of its own; set it back with ALTER TABLE {name} REPLICA IDENTITY DEFAULT."
        )
    if source["persistence"] != "p":
        return f"{name} is not logged, so its changes cannot be followed; ALTER TABLE {name} SET LOGGED."
    if target_parent["default_partition"]:
        return (
            f"{leaf.table.name} has a default partition on {move.target}, which every attachment would scan; remove it."
        )
    if any(one["inherited"] for one in source["foreign_keys"]) or source_parent["referenced"]:
        return f"{leaf.table.name} has or is the end of a foreign key; declare foreign keys between the partitions of one bucket instead."
    if source["row_security"]:
        return f"{name} has row-level security, which a copy would not take along; secure {leaf.table.name} alone."
    numbered = next((one for one in source["columns"] if one["type"].removesuffix("[]") in catalog.NUMBERS), None)
    if numbered is not None:
        return (
            f"column {numbered['name']} of {name} is {numbered['type']}, a number that means something else on {move.target}; "
            "make it text."
        )
    ours, theirs = catalog.columns_of(source), catalog.columns_of(target_parent)
    if ours != theirs:
        differing = sorted({one["name"] for one in ours + theirs if one not in ours or one not in theirs})
        return (
            f"columns {', '.join(differing)} of {name} on {move.source} and of {leaf.table.name} on {move.target} differ; "
            "make the definitions alike."
        )
    if catalog.index_kinds(source) != catalog.index_kinds(target_parent):
        return (
            f"the indexes of {name} on {move.source} and of {leaf.table.name} on {move.target} differ; make them alike, so that "
            "none is built while others wait."
        )
    invalid = [one["name"] for one in source["indexes"] if not one["valid"]]
    if invalid:
        return f"index {invalid[0]} on {move.source} is not valid; drop it or build it anew."
    return None


async def check(
    members: Members,
    moves: t.Sequence[Move],
    sizes: t.Mapping[str, int],
    min_free_bytes: int,
    at_once: int,
    are_kept: bool = True,
) -> Checked:
    """Look at all shards and leaves of the moves that are about to begin.

    :param sizes: label of a move to the bytes that it copies.
    :param at_once: how many moves one shard takes part in at the same time.
    :param are_kept: whether moves can be taken back once they are done.
    """
    found = Checked()
    names = sorted({name for move in moves for name in move.shards})
    needs = {name: Needs() for name in names}
    for move in moves:
        needs[move.source].leaving = min(at_once, needs[move.source].leaving + 1)
        needs[move.target].coming = min(at_once, needs[move.target].coming + 1)
        needs[move.source].kept_leaving += are_kept
        needs[move.target].kept_coming += are_kept
        # those that come one after the other stay all
        needs[move.target].coming_bytes += sizes.get(move.label, 0)
    facts = await members.each(lambda name: shard_facts(members, name), names)
    free = await members.each(lambda name: free_bytes(members, name), names)
    for name in names:
        found.all += shard_reasons(name, facts[name], needs[name], free[name], min_free_bytes)
    if found.all:
        return found
    gate = asyncio.Semaphore(8)

    async def one(move: Move) -> None:
        async with gate:
            reason = _pair_reason(move, facts) or await _leaves_reason(members, move, facts)
        if reason is not None:
            found.moves[move.label] = reason

    await asyncio.gather(*map(one, moves))
    if not found.moves:
        found.all += await _unreached(members, moves)
    return found


async def _unreached(members: Members, moves: t.Sequence[Move]) -> list[str]:
    """Return which shards cannot log in to which as they will have to: with rows both ways, and with statements that come late."""
    pairs = sorted({pair for move in moves for pair in ((move.source, move.target), (move.target, move.source))})
    reasons = []
    for shard, other in pairs:
        try:
            await members.rows(shard, _REACH_SQL.format(server=f"{PREFIX}{other}"), purpose="reach", verb="log in from")
        except MemberError as error:
            reasons.append(
                f"{shard} cannot log in to {other} as the members do: {error} Look at pg_hba.conf of {other}, at the password file of "
                f"{shard}, and at what is between them."
            )
        finally:
            # it takes the table and the connection to the other one with it
            await members.close(shard, "reach")
    return reasons


def _pair_reason(move: Move, facts: t.Mapping[str, t.Mapping[str, t.Any]]) -> str | None:
    source, target = facts[move.source], facts[move.target]
    if source["version"] // 10000 != target["version"] // 10000:
        return f"{move.source} runs PostgreSQL {source['version'] // 10000} and {move.target} {target['version'] // 10000}; upgrade one."
    ours, theirs = source["locale"], target["locale"]
    for what, remedy in _LOCALE.items():
        if ours[what] != theirs[what]:
            return f"the {what} of the databases of {move.source} and {move.target} is {ours[what]} and {theirs[what]}; {remedy}."
    for shard, other in ((move.source, move.target), (move.target, move.source)):
        if f"{PREFIX}{other}" not in facts[shard]["servers"]:
            return f"{shard} has no server {PREFIX}{other}; run postgresql_shard_map."
    return None


async def _leaves_reason(members: Members, move: Move, facts: t.Mapping[str, t.Mapping[str, t.Any]]) -> str | None:
    for leaf in move.leaves:
        source, source_parent, target_parent = await asyncio.gather(
            catalog.facts(members, move.source, leaf.schema, leaf.name),
            catalog.facts(members, move.source, leaf.schema, leaf.parent),
            catalog.facts(members, move.target, leaf.schema, leaf.parent),
        )
        taken = [
            f"{leaf.schema}.{name}"
            for shard, name in (
                (move.target, leaf.name),
                (move.target, leaf.retired),
                (move.target, leaf.forwarder),
                (move.source, leaf.retired),
                (move.source, leaf.forwarder),
            )
            if await catalog.facts(members, shard, leaf.schema, name) is not None
        ]
        reason = leaf_reason(move, leaf, source, source_parent, target_parent, taken)
        if reason is not None or source is None:
            return reason
        roles = {source["owner"], *(one["to"] for one in source["grants"] if one["to"] is not None)}
        unknown = sorted(roles - set(facts[move.target]["roles"]))
        if unknown:
            return f"role {unknown[0]}, which has rights on {leaf.schema}.{leaf.name}, is not on {move.target}; create it there."
    for leaf in move.leaves:
        reason = await attached_reason(members, move, leaf)
        if reason is not None:
            return reason
    return None


async def attached_reason(members: Members, move: Move, leaf: Leaf) -> str | None:
    """Return what is attached to a leaf itself, and would be lost with it or keep it from being dropped; all leaves must be there."""
    attached = await members.rows(move.source, ATTACHED_SQL, attached_params(leaf, move.leaves), verb="look at")
    if not attached:
        return None
    return (
        f"{attached[0]['what']} is attached to the leaf {leaf.schema}.{leaf.name} itself, and would not come along; attach it to "
        f"{leaf.table.name}, or drop it."
    )
