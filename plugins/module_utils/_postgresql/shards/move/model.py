# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a move of a bucket is, what its objects are called, and where its journal says that it stands. Pure.

A move has a source and a target for as long as it lives. Rows flow ``forward`` from source to target until the switch, and in
``reverse`` from then until the bucket is retired, so that it can be taken back. The leaf on the shard that does not own the bucket
carries a trigger that refuses every write but those of replication.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..model import BucketId, Group, Table, bucket_name
from ..schema import PREFIX

FORWARD, REVERSE = "forward", "reverse"
TRIGGER, TRUNCATE_TRIGGER = f"{PREFIX}fence", f"{PREFIX}fence_truncate"
BOUND = f"{PREFIX}bound"

# states in which something of a move is left on its shards
OPEN_STATES = ("planned", "copying", "catching_up", "verified", "switched")
# as far as here the source owns the bucket
BEFORE_SWITCH = ("planned", "copying", "catching_up", "verified")


@dataclass(frozen=True)
class Names:
    """The objects of one move on its shards."""

    move_id: str

    def publication(self, way: str) -> str:
        """Return the publication that carries rows one way, on the shard that they come from."""
        return f"{PREFIX}{self.move_id}_{way}"

    def subscription(self, way: str) -> str:
        """Return the subscription on the shard that they go to; its slot on the other has the same name."""
        return f"{PREFIX}{self.move_id}_{way}"

    def gid(self, attempt: str) -> str:
        """Return what an attempt to switch is decided under. The transactions that it prepares begin so."""
        return f"{PREFIX}{self.move_id}_{attempt}"

    @property
    def prefix(self) -> str:
        """What the names of all of them begin with."""
        return f"{PREFIX}{self.move_id}_"


@dataclass(frozen=True)
class Leaf:
    """The part of one table that a bucket holds."""

    table: Table
    bucket: int

    @property
    def schema(self) -> str:
        """The schema of table and leaf."""
        return self.table.name.partition(".")[0]

    @property
    def parent(self) -> str:
        """The table's name in its schema."""
        return self.table.name.partition(".")[2]

    @property
    def name(self) -> str:
        """The leaf's name in its schema, on every shard."""
        return f"{self.parent}_b{self.bucket}"

    @property
    def retired(self) -> str:
        """What it is called on the shard that gave it away, until the routers know."""
        return f"{self.name}_retired"

    @property
    def forwarder(self) -> str:
        """What the foreign table is called that is about to take its place."""
        return f"{self.name}_forward"


@dataclass
class Move:
    """A row of the journal. One with the same shard for source and target is a split: the bucket is cut where it is."""

    id: str
    group: Group
    bucket: int
    source: str
    target: str
    plan_id: str = ""
    state: str = "planned"
    step: str = ""
    # counts the entries: of two shards, the one with more is right
    entry: int = 0
    detail: dict[str, t.Any] = field(default_factory=dict)
    bytes_total: int = 0
    bytes_done: int = 0
    rows: int = 0
    error: str | None = None

    @property
    def names(self) -> Names:
        """What its objects are called."""
        return Names(self.id)

    @property
    def bucket_id(self) -> BucketId:
        """Which bucket moves."""
        return (self.group.name, self.bucket)

    @property
    def is_split(self) -> bool:
        """Whether the bucket is cut where it is, into what its detail says."""
        return self.source == self.target

    @property
    def parts(self) -> tuple[int, ...]:
        """The numbers of the buckets that a split makes."""
        return tuple(one["number"] for one in self.detail.get("parts", ()))

    @property
    def what(self) -> str:
        """What it is in a sentence, as ``move users/7 from a to b``."""
        return f"{'split' if self.is_split else 'move'} {self.label}"

    @property
    def label(self) -> str:
        """How it is written, as ``users/7 from a to b``, and a split as ``users/7 on a``."""
        if self.is_split:
            return f"{bucket_name(self.bucket_id)} on {self.source}"
        return f"{bucket_name(self.bucket_id)} from {self.source} to {self.target}"

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """One for each table of the group."""
        return tuple(Leaf(table, self.bucket) for table in self.group.tables)

    @property
    def shards(self) -> tuple[str, ...]:
        """Both of them; the one of a split once."""
        return (self.source,) if self.is_split else (self.source, self.target)

    def ends(self, way: str) -> tuple[str, str]:
        """Return from where and to where rows flow."""
        return (self.source, self.target) if way == FORWARD else (self.target, self.source)


def newest(rows: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """Return move id to the row of the journal with the most entries, of what all shards hold."""
    found: dict[str, dict[str, t.Any]] = {}
    for row in rows:
        known = found.get(row["id"])
        if known is None or entry_of(row) > entry_of(known):
            found[row["id"]] = dict(row)
    return found


def entry_of(row: t.Mapping[str, t.Any]) -> int:
    """Return the number of a row's entry."""
    return int((row.get("detail") or {}).get("entry", 0))


def move_from(row: t.Mapping[str, t.Any], groups: t.Mapping[str, Group]) -> Move:
    """Return a row of the journal as a move.

    :raises KeyError: when its group is not in the map.
    """
    detail = dict(row["detail"] or {})
    return Move(
        id=row["id"],
        group=groups[row["group_name"]],
        bucket=row["bucket"],
        source=row["source"],
        target=row["target"],
        plan_id=row["plan_id"] or "",
        state=row["state"],
        step=row["step"] or "",
        entry=int(detail.pop("entry", 0)),
        detail=detail,
        bytes_total=row["bytes_total"] or 0,
        bytes_done=row["bytes_done"] or 0,
        rows=row["rows"] or 0,
        error=row["error"],
    )
