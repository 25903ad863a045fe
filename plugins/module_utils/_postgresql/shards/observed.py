# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What was seen on the members of a sharded cluster, and the one map that follows from the maps of all of them. Pure."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from dataclasses import dataclass, field, replace

from ..._common.errors import HeadroomError
from .keys import Key, sort_key
from .model import Bucket, BucketId, Group, Member, Placement, Shard, ShardMap, bucket_name

MIN_VERSION = 160000
"""The first version whose subscriptions can leave out what was replicated to it (``origin = none``), as a move back needs."""

SUFFIX = re.compile(r"_b([0-9]+)(_retired|_forward)?\Z")

IN_FLIGHT = ("copying", "catching_up", "verified", "switched")
"""States of moves that have left something behind on their members, and will go on."""


def leaf_name(table: str, number: int) -> str:
    """Return the name of a table's leaf, as ``public.orders_b7``."""
    return f"{table}_b{number}"


Grant = tuple[str, tuple[str, ...], bool]
"""A role (PUBLIC is an empty name), its privileges, and whether it may grant them."""


@dataclass(frozen=True)
class Column:
    """A column of a table, in the words of the catalog."""

    name: str
    type: str
    # None is that of the type
    collation: str | None = None
    # whether equal texts are the same bytes, and whether texts sort as bytes
    deterministic: bool = True
    bytewise: bool = True
    not_null: bool = False
    default: str | None = None
    # a (always), d (by default) or nothing
    identity: str = ""
    # s (stored) or nothing
    generated: str = ""
    # the sequence that belongs to it, schema and name, and who may use that
    sequence: tuple[str, str] | None = None
    sequence_grants: tuple[Grant, ...] = ()
    # privileges on this column alone
    grants: tuple[Grant, ...] = ()
    storage: str | None = None
    compression: str | None = None
    comment: str | None = None

    @property
    def counted(self) -> bool:
        """Whether each database would number its rows by a sequence of its own."""
        return bool(self.identity) or (self.default is not None and "nextval(" in self.default)


@dataclass(frozen=True)
class Definition:
    """A constraint, index, trigger or statistics object: its name, kind, definition as SQL, and the columns of its key."""

    name: str
    kind: str
    sql: str
    columns: tuple[str, ...] = ()
    unique: bool = False


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key of a table to another, or of the leaf of a bucket to that of the same bucket."""

    name: str
    columns: tuple[str, ...]
    table: str
    their_columns: tuple[str, ...]
    # what follows the columns, as ON DELETE CASCADE
    rest: str = ""


@dataclass(frozen=True)
class Leaf:
    """A partition that is attached to a table: the bucket that it is, and the server that a foreign one points to."""

    name: str
    number: int | None
    retired: bool = False
    server: str | None = None
    remote: str | None = None


@dataclass(frozen=True)
class Relation:
    """A sharded table, or one to become it, as a member has it."""

    name: str
    # plain, partitioned, or what else it is
    kind: str
    columns: tuple[Column, ...]
    constraints: tuple[Definition, ...] = ()
    indexes: tuple[Definition, ...] = ()
    # those of the leaves, where it is partitioned
    foreign_keys: tuple[ForeignKey, ...] = ()
    # tables whose foreign keys end here
    referenced_by: tuple[str, ...] = ()
    triggers: tuple[Definition, ...] = ()
    statistics: tuple[Definition, ...] = ()
    grants: tuple[Grant, ...] = ()
    owner: str = ""
    comment: str | None = None
    options: tuple[str, ...] = ()
    # what keeps it from being turned into a partitioned table, each as the end of "it ..."
    blockers: tuple[str, ...] = ()
    partition_key: str | None = None
    leaves: tuple[Leaf, ...] = ()
    # names of buckets that are taken by something that is not attached
    strays: tuple[str, ...] = ()
    filled: bool = False
    rows: int = 0
    size_bytes: int = 0

    def column(self, name: str) -> Column | None:
        """Return a column, None when there is none."""
        return next((one for one in self.columns if one.name == name), None)

    @property
    def held(self) -> frozenset[int]:
        """The numbers of the buckets whose local leaves are attached."""
        return frozenset(
            leaf.number for leaf in self.leaves if leaf.number is not None and not leaf.server and not leaf.retired
        )


@dataclass(frozen=True)
class Link:
    """A foreign server of ours, with its options and those of its mapping."""

    name: str
    options: t.Mapping[str, str]
    mapping: t.Mapping[str, str] | None


@dataclass(frozen=True)
class StoredMap:
    """The map as one member has it."""

    cluster: str
    self_name: str
    role: str
    format: int
    schema_digest: str
    digest: str
    members: tuple[Member, ...]
    map: ShardMap

    def true_digest(self) -> str:
        """Return the digest that its rows really have."""
        return digest_of(self.cluster, self.members, self.map.shards, self.map.groups)


@dataclass(frozen=True)
class Seen:
    """What one member is and has."""

    member: Member
    version: int
    # settings by name
    settings: t.Mapping[str, str]
    # tells databases apart, whatever their addresses
    identity: str
    in_recovery: bool = False
    encoding: str = "UTF8"
    # whether the server hashes a known text as it is expected to
    hashes: bool = True
    fdw_available: bool = True
    fdw_installed: bool = False
    partitionwise: bool = False
    roles: frozenset[str] = frozenset()
    stored: StoredMap | None = None
    relations: t.Mapping[str, Relation] = field(default_factory=dict)
    links: t.Mapping[str, Link] = field(default_factory=dict)
    # the moves of its journal that have not ended
    moves: tuple[t.Mapping[str, t.Any], ...] = ()


Observed = t.Mapping[str, Seen]
"""What was seen, by the name of the member."""


def digest_of(cluster: str, members: t.Sequence[Member], shards: t.Sequence[Shard], groups: t.Sequence[Group]) -> str:
    """Return the digest of all of a map that is declared, that is without the placements.

    A member whose rows have another one than ``cluster.digest`` says was edited by hand.
    """
    document = {
        "cluster": cluster,
        "members": sorted([one.role, one.name, one.host, one.port, one.dbname, *_told(one)] for one in members),
        "shards": sorted([one.name, one.weight, one.state, one.capacity_bytes] for one in shards),
        "groups": {
            group.name: {
                "strategy": group.strategy,
                "key_type": group.key_type,
                "tables": [[table.name, table.key] for table in group.tables],
                "buckets": [bucket.as_dict(group.strategy) for bucket in group.buckets],
            }
            for group in groups
        },
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _told(member: Member) -> tuple[str, int]:
    """Return what applications are told of where a shard is; nothing of a router."""
    if member.role != "shard":
        return "", 0
    return member.application_host or member.host, member.application_port or member.port


def merge(observed: Observed) -> ShardMap | None:
    """Return the map that all members together know: for each bucket the placement of the highest epoch; None for no map.

    Shards and groups are those of the member that knows most. Buckets that a split replaced are left out, even where a member
    was not told of it.

    :raises HeadroomError: when a map was edited by hand, so that it is not known what is true.
    """
    stored = {name: one.stored for name, one in observed.items() if one.stored is not None}
    if not stored:
        return None
    for name, one in stored.items():
        if one.digest != one.true_digest():
            raise _edited(
                observed, name, _difference(name, one, [other for key, other in stored.items() if key != name])
            )
    placements: dict[BucketId, Placement] = {}
    buckets: dict[BucketId, Bucket] = {}
    told: dict[BucketId, str] = {}
    for name, one in stored.items():
        for group in one.map.groups:
            for bucket in group.buckets:
                key = (group.name, bucket.number)
                new, old = one.map.placements[key], placements.get(key)
                if old is not None and old.epoch == new.epoch and old.shard != new.shard:
                    raise _edited(
                        observed,
                        name,
                        f"bucket {bucket_name(key)} lies on {new.shard} at epoch {new.epoch} there, "
                        f"and on {old.shard} at the same epoch at {told[key]}",
                    )
                if old is None or new.epoch > old.epoch:
                    placements[key], buckets[key], told[key] = new, bucket, name
    newest = max(stored.values(), key=lambda one: (one.map.epoch, one.self_name))
    known: dict[str, Group] = {}
    for one in [newest, *stored.values()]:
        for group in one.map.groups:
            if group.name not in known or len(group.tables) > len(known[group.name].tables):
                known[group.name] = group
    groups = tuple(
        replace(
            group,
            buckets=_newest(group, {key[1]: one for key, one in buckets.items() if key[0] == group.name}, placements),
        )
        for group in known.values()
    )
    kept = {(group.name, bucket.number) for group in groups for bucket in group.buckets}
    shards = {shard.name: shard for one in stored.values() for shard in one.map.shards}
    shards.update({shard.name: shard for shard in newest.map.shards})
    epoch = max(one.map.epoch for one in stored.values())
    return ShardMap(
        max([epoch, *(one.epoch for one in placements.values())]),
        tuple(shards.values()),
        groups,
        {key: one for key, one in placements.items() if key in kept},
    )


def _newest(
    group: Group, buckets: t.Mapping[int, Bucket], placements: t.Mapping[BucketId, Placement]
) -> tuple[Bucket, ...]:
    """Return the buckets that nothing newer has replaced, in their order."""
    if group.strategy == "hash":
        return tuple(buckets[number] for number in sorted(buckets))
    taken: list[Bucket] = []
    for number in sorted(buckets, key=lambda one: (-placements[group.name, one].epoch, -one)):
        if not any(_overlap(buckets[number], other) for other in taken):
            taken.append(buckets[number])
    if group.strategy == "range":
        return tuple(sorted(taken, key=lambda one: (one.lower is not None, _place(one.lower))))
    return tuple(sorted(taken, key=lambda one: one.number))


def _place(key: Key | None) -> t.Any:
    return 0 if key is None else sort_key(key)


def _overlap(one: Bucket, other: Bucket) -> bool:
    if one.tenants or other.tenants:
        return bool(set(one.tenants) & set(other.tenants))
    return _below(one.lower, other.upper) and _below(other.lower, one.upper)


def _below(lower: Key | None, upper: Key | None) -> bool:
    return lower is None or upper is None or sort_key(lower) < sort_key(upper)


def _edited(observed: Observed, name: str, what: str) -> HeadroomError:
    member = observed[name].member
    return HeadroomError(
        f"Failed to read the map of {name} on {member.host}:{member.port}: it was edited by hand, {what}. "
        "Put the former value back in the tables of schema headroom there.",
        code="map_edited",
        member=name,
    )


def _difference(name: str, one: StoredMap, others: t.Sequence[StoredMap]) -> str:
    """Say where a member's rows differ from those of a member whose digest is right."""
    right = next(
        (other for other in others if other.digest == one.digest and other.digest == other.true_digest()), None
    )
    if right is None:
        return "its rows are not those that were declared"
    for mine, theirs, kind in (
        (one.members, right.members, "member"),
        (one.map.shards, right.map.shards, "shard"),
        (one.map.groups, right.map.groups, "group"),
    ):
        here, there = ({entry.name: entry for entry in entries} for entries in (mine, theirs))
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                if key not in here or key not in there:
                    return f"{kind} {key} is only {'there' if key in here else f'at {right.self_name}'}"
                fields = [
                    part
                    for part in here[key].__dataclass_fields__
                    if getattr(here[key], part) != getattr(there[key], part)
                ]
                values = ", ".join(
                    f"{part} is {_short(getattr(here[key], part))} there and {_short(getattr(there[key], part))} "
                    f"at {right.self_name}"
                    for part in fields
                )
                return f"of {kind} {key} the {values}"
    return "its rows are not those that were declared"


def _short(value: t.Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
