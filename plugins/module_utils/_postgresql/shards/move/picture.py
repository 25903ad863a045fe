# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a run of ``postgresql_shard_rebalance`` sees, and what each shard carries by it. No I/O."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from ..divide.model import with_parts
from ..model import BucketId, Placement, ShardMap, Usage
from ..observed import Observed
from ..plan import Share
from ..split import Split
from .model import Move

Shares = tuple[Share, ...]


@dataclass
class Picture:
    """The members and the map, what is used of it, and the moves that have not ended."""

    observed: Observed
    map: ShardMap
    usage: dict[BucketId, Usage] = field(default_factory=dict)
    in_grace: dict[BucketId, Move] = field(default_factory=dict)
    in_flight: dict[BucketId, Move] = field(default_factory=dict)
    # those that have not ended, which nothing can follow but their end
    splits: dict[BucketId, Move] = field(default_factory=dict)
    # the map before the splits of this run
    map_before: ShardMap | None = None
    # declared shards that get their map before the run that is foretold
    joining: tuple[str, ...] = ()

    def takes_share(self, name: str) -> bool:
        """Tell whether a shard is to have buckets."""
        return any(shard.name == name and shard.takes_share for shard in self.map.shards)


def split_map(shard_map: ShardMap, splits: t.Sequence[Split]) -> ShardMap:
    """Return the map with the parts of splits in the place of their buckets."""
    groups, placements = list(shard_map.groups), dict(shard_map.placements)
    for split in splits:
        was = placements.pop((split.group, split.bucket))
        placements.update({(split.group, part.number): Placement(was.shard, was.epoch) for part in split.parts})
        groups = [with_parts(one, split.bucket, split.parts) if one.name == split.group else one for one in groups]
    return replace(shard_map, groups=tuple(groups), placements=placements)


def taken_up(seen: Picture, finished: t.Iterable[Move]) -> Picture:
    """Return the picture as it is once a run has taken up what is on its way.

    :param finished: moves that it brings to their targets, in its order; all others are rolled back.
    """
    epoch, placements = seen.map.epoch, dict(seen.map.placements)
    in_flight = dict(seen.in_flight)
    # one that was switched back ends with that
    in_grace = {bucket: move for bucket, move in seen.in_grace.items() if move.detail.get("owner") != move.source}
    for move in finished:
        epoch += 1
        placements[move.bucket_id] = Placement(move.target, epoch)
        del in_flight[move.bucket_id]
        if move.detail.get("retire_in_s"):
            detail = {**move.detail, "owner": move.target, "epoch": epoch, "is_over": False}
            in_grace[move.bucket_id] = replace(move, state="switched", step="detached", detail=detail)
    shard_map = replace(seen.map, epoch=epoch, placements=placements)
    return replace(seen, map=shard_map, in_flight=in_flight, in_grace=in_grace)


def shares_of(seen: Picture, targets: t.Mapping[BucketId, str] | None = None, splits: t.Sequence[Split] = ()) -> Shares:
    """Return what each shard carries and should carry; splits give it more buckets of the same load."""
    shards = {shard.name: shard for shard in seen.map.shards}
    held: dict[str, list[BucketId]] = {name: [] for name in shards}
    for bucket, placement in seen.map.placements.items():
        held[(targets or {}).get(bucket, placement.shard)].append(bucket)
    free = [name for name, shard in shards.items() if shard.state != "read_only"]
    loads = {bucket: seen.usage[bucket].load for bucket in seen.map.placements}
    if not any(loads[bucket] for name in free for bucket in held[name]):
        # as a plan counts them
        loads = {bucket: 1 / len(loads) for bucket in loads}
    total = sum(loads[bucket] for name in free for bucket in held[name])
    weight = sum(shard.weight for shard in shards.values() if shard.takes_share) or 1.0
    shares = []
    for name, shard in shards.items():
        load = sum(loads[bucket] for bucket in held[name])
        wanted = load if shard.state == "read_only" else total * shard.weight / weight if shard.takes_share else 0.0
        more = sum(
            len(split.parts) - 1 for split in splits if seen.map.placements[split.group, split.bucket].shard == name
        )
        shares.append(
            Share(
                name, len(held[name]) + more, sum(seen.usage[bucket].size_bytes for bucket in held[name]), load, wanted
            )
        )
    return tuple(shares)
