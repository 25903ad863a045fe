# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The first placement of buckets: a weighted consistent-hash ring, walked so that shares come out whole. Pure.

Shards lie on a ring of 2^64 positions with 100 virtual nodes for each unit of weight, after D. Karger and others, "Consistent
Hashing and Random Trees" (STOC 1997). A plain ring leaves shares to chance: 100 virtual nodes spread by a tenth, and 64 buckets
on four shards by a quarter. So shards join one after the other, and each takes exactly its share, the buckets that lie closest
before its virtual nodes first, from those that hold most above theirs. A shard that is added at the end therefore moves its share
and nothing else.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import math
import typing as t

from .model import BucketId, Shard, bucket_name

VIRTUAL_NODES = 100
"""Virtual nodes for a weight of 1."""
MOST_OF_FAIR_SHARE = 1.1
"""What a shard that joins takes at most, where that is a bucket or more: rounding up is not to move much more than its share."""
_RING = 1 << 64


def place(buckets: t.Sequence[BucketId], shards: t.Iterable[Shard]) -> dict[BucketId, str]:
    """Return bucket to shard for buckets that have no place yet.

    Takes O(buckets x shards x log(virtual nodes)).

    :param buckets: the buckets of one group; those of each group are divided by themselves.
    :param shards: in the order in which they joined. Only active ones with a weight take part.
    :raises ValueError: when no shard takes part.
    """
    taking = [shard for shard in shards if shard.takes_share]
    if not taking:
        raise ValueError("no active shard has a weight")
    positions = {bucket: _position(bucket_name(bucket)) for bucket in buckets}
    owners = dict.fromkeys(buckets, taking[0].name)
    held = {taking[0].name: len(buckets)}
    weights = {taking[0].name: taking[0].weight}
    for shard in taking[1:]:
        weights[shard.name] = shard.weight
        gives = _gives(held, weights, shard.name)
        nodes = sorted(_position(f"{shard.name}#{node}") for node in range(max(1, round(shard.weight * VIRTUAL_NODES))))
        held[shard.name] = 0
        # how far it is from each bucket to the next of the nodes, clockwise
        ahead = sorted(
            ((nodes[bisect.bisect_left(nodes, position) % len(nodes)] - position) % _RING, bucket)
            for bucket, position in positions.items()
        )
        for _distance, bucket in ahead:
            owner = owners[bucket]
            if gives.get(owner):
                owners[bucket] = shard.name
                gives[owner] -= 1
                held[owner] -= 1
                held[shard.name] += 1
    return owners


def _gives(held: t.Mapping[str, int], weights: t.Mapping[str, float], joining: str) -> dict[str, int]:
    """Return how many buckets each shard gives to the one that joins: from who is furthest above its new share, one by one."""
    buckets, weight = sum(held.values()), sum(weights.values())
    fair = buckets * weights[joining] / weight
    wanted = min(round(fair), max(1, math.floor(fair * MOST_OF_FAIR_SHARE)))
    surplus = [(buckets * weights[name] / weight - count, name) for name, count in held.items()]
    heapq.heapify(surplus)
    gives = dict.fromkeys(held, 0)
    for _bucket in range(wanted):
        below, name = surplus[0]
        heapq.heapreplace(surplus, (below + 1, name))
        gives[name] += 1
    return gives


def _position(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
