# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Shards, the buckets of sharded tables, and which shard holds which. Plain data: no I/O, units in the names.

Tables that share a shard key form a colocation group, cut into buckets by one strategy: bucket 7 of each of its tables lies on
the same shard and moves as one. A bucket keeps its number for as long as it exists; a split replaces it by new numbers.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .keys import Key, hash_remainder, key_to_json, sort_key

STRATEGIES = ("hash", "range", "directory")
# how PostgreSQL partitions by each
METHODS = {"hash": "HASH", "range": "RANGE", "directory": "LIST"}
STATES = ("active", "draining", "read_only")

BucketId = tuple[str, int]
"""Name of the group and number of the bucket."""


def bucket_name(bucket: BucketId) -> str:
    """Return how a bucket is written, as ``users/7``."""
    return f"{bucket[0]}/{bucket[1]}"


@dataclass(frozen=True)
class Shard:
    """A database that holds buckets.

    ``active`` takes its share, ``draining`` is to be emptied, as is one of weight 0, and ``read_only`` keeps what it has.
    """

    name: str
    weight: float = 1.0
    state: str = "active"
    # what its buckets may take at most, None for no limit
    capacity_bytes: int | None = None

    @property
    def takes_share(self) -> bool:
        """Whether it is to hold a share of the load."""
        return self.state == "active" and self.weight > 0

    @property
    def is_emptied(self) -> bool:
        """Whether all that it holds is to go elsewhere."""
        return not self.takes_share and self.state != "read_only"


@dataclass(frozen=True)
class Member:
    """A database of the cluster: a shard or a router."""

    name: str
    host: str
    port: int = 5432
    dbname: str = "postgres"
    role: str = "shard"
    # what applications are told; None is host and port
    application_host: str | None = None
    application_port: int | None = None

    @property
    def address(self) -> str:
        """Where it is, as ``host:port/database``."""
        return f"{self.host}:{self.port}/{self.dbname}"


@dataclass(frozen=True)
class Table:
    """A sharded table and the column that is its shard key."""

    name: str
    key: str


@dataclass(frozen=True)
class Bucket:
    """One part of each table of a group: a remainder of the hash (its number), a range of keys, or tenants."""

    number: int
    # a range holds lower <= key < upper; None is no bound
    lower: Key | None = None
    upper: Key | None = None
    tenants: tuple[Key, ...] = ()

    def as_dict(self, strategy: str) -> dict[str, t.Any]:
        """Return the bucket as JSON can hold it."""
        if strategy == "range":
            bounds = {"lower": self.lower, "upper": self.upper}
            return {"number": self.number, **{k: None if v is None else key_to_json(v) for k, v in bounds.items()}}
        if strategy == "directory":
            return {"number": self.number, "tenants": [key_to_json(tenant) for tenant in self.tenants]}
        return {"number": self.number}


@dataclass(frozen=True)
class Group:
    """A colocation group."""

    name: str
    strategy: str
    key_type: str
    tables: tuple[Table, ...]
    # hash: in the order of their remainders, range: in the order of their bounds
    buckets: tuple[Bucket, ...]

    def bucket_of(self, key: Key) -> Bucket | None:
        """Return the bucket that a key belongs to, or None for a tenant that has none.

        :param key: a key of the group's type.
        """
        if self.strategy == "hash":
            return self.buckets[hash_remainder(key, len(self.buckets))]
        if self.strategy == "range":
            place = sort_key(key)
            return next(one for one in self.buckets if one.upper is None or place < sort_key(one.upper))
        return next((one for one in self.buckets if key in one.tenants), None)


@dataclass(frozen=True)
class Placement:
    """The shard that holds a bucket, and the epoch of the map since which it does."""

    shard: str
    epoch: int


@dataclass(frozen=True)
class ShardMap:
    """What lies where. The epoch rises with each change of a placement."""

    epoch: int
    shards: tuple[Shard, ...]
    groups: tuple[Group, ...]
    placements: t.Mapping[BucketId, Placement]

    def as_dict(self) -> dict[str, t.Any]:
        """Return the map as JSON can hold it; :func:`.stored.stored_map` reads it back."""
        return {
            "epoch": self.epoch,
            "shards": [
                {"name": one.name, "weight": one.weight, "state": one.state, "capacity_bytes": one.capacity_bytes}
                for one in self.shards
            ],
            "groups": [
                {
                    "name": group.name,
                    "strategy": group.strategy,
                    "key_type": group.key_type,
                    "tables": [{"name": table.name, "key": table.key} for table in group.tables],
                    "buckets": [
                        {
                            **bucket.as_dict(group.strategy),
                            "shard": self.placements[group.name, bucket.number].shard,
                            "epoch": self.placements[group.name, bucket.number].epoch,
                        }
                        for bucket in group.buckets
                    ],
                }
                for group in self.groups
            ],
        }


@dataclass(frozen=True)
class Usage:
    """What a bucket takes, over all tables of its group."""

    size_bytes: int
    rows: int = 0
    # in any unit, the same for all buckets
    load: float = 0.0
    # how a bucket can be split evenly: keys at equal steps through it (range), and each tenant's part (directory)
    quantiles: tuple[Key, ...] = ()
    tenant_loads: t.Mapping[Key, float] = field(default_factory=dict)
