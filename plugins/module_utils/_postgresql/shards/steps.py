# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The steps on each member towards the map that is to be. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .declare import Wanted, fail, on
from .model import Group, ShardMap, Table, bucket_name
from .observed import Observed, Relation, Seen, digest_of, leaf_name
from .schema import DIGEST, PREFIX

LINK_OPTIONS = {"async_capable": "true", "batch_size": "100", "fetch_size": "1000", "parallel_commit": "true"}


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


def plan_steps(wanted: Wanted, observed: Observed, target: ShardMap, forms: t.Mapping[str, Relation]) -> list[Step]:
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
        yield Step(
            name, "create", table.name, f"create {table.name}, partitioned, with {buckets_text(len(here))}", numbers
        )
        return
    if relation.kind == "plain":
        _check_names(seen, relation, here)
        rows = f" and its rows (about {max(relation.rows, 0)})" if relation.filled else ""
        yield Step(
            name,
            "convert",
            table.name,
            f"turn {table.name}{rows} into a partitioned table with {buckets_text(len(here))}, locked meanwhile",
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
            name, "leaves", table.name, f"create {buckets_text(len(missing))} of {table.name}", tuple(sorted(missing))
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
        yield Step(
            name, "create", table.name, f"create {table.name} with {buckets_text(len(group.buckets))} on the shards"
        )
        return
    wrong = wrong_pointers(relation, group, target)
    if wrong:
        yield Step(
            name, "repoint", table.name, f"point {buckets_text(len(wrong))} of {table.name} to where they are", wrong
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


def buckets_text(count: int) -> str:
    """Return a number of buckets as text."""
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
