# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""A map in which a bucket is replaced by its parts, and what of it a member is told. Pure."""

from __future__ import annotations

import itertools
import json
import typing as t
from dataclasses import replace

from ...._common.errors import HeadroomError, OptionError
from ..keys import key_to_json, sort_key
from ..model import Bucket, Group, bucket_name
from ..observed import StoredMap, digest_of
from ..stored import bucket_from


def with_parts(group: Group, number: int, parts: t.Sequence[Bucket]) -> Group:
    """Return the group with the parts in the place of a bucket, in the order in which maps have them."""
    place = [one.number for one in group.buckets].index(number)
    buckets = [*group.buckets[:place], *parts, *group.buckets[place + 1 :]]
    if group.strategy == "directory":
        buckets.sort(key=lambda one: one.number)
    return replace(group, buckets=tuple(buckets))


def parts_from(option: str, group: Group, entries: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[Bucket, ...]:
    """Return the buckets that :meth:`Bucket.as_dict` wrote.

    :raises OptionError: for one that is none.
    """
    return tuple(
        bucket_from(f"{option}[{place}]", group.strategy, group.key_type, entry) for place, entry in enumerate(entries)
    )


def check_parts(option: str, group: Group, number: int, parts: t.Sequence[Bucket]) -> None:
    """Check that parts hold exactly the keys of the bucket, each in one of them, under numbers that are free.

    :raises OptionError: when they do not.
    """
    bucket = next(one for one in group.buckets if one.number == number)
    numbers = [one.number for one in parts]
    free = min(numbers, default=0) > max(one.number for one in group.buckets) and len(set(numbers)) == len(numbers)
    if group.strategy == "range":
        ends = [bucket.lower, *(one.upper for one in parts)]
        begins = [*(one.lower for one in parts), bucket.upper]
        inner = [key for key in ends[1:-1] if key is not None]
        places = [sort_key(key) for key in (bucket.lower, *inner, bucket.upper) if key is not None]
        whole = (
            ends == begins
            and len(inner) == len(parts) - 1
            and all(one < other for one, other in itertools.pairwise(places))
        )
    else:
        tenants = [tenant for one in parts for tenant in one.tenants]
        # a bucket of a hash has none, and cannot be split
        whole = bool(tenants) and len(set(tenants)) == len(tenants) and set(tenants) == set(bucket.tenants)
    if not (free and whole and len(parts) > 1):
        raise OptionError(
            option,
            numbers,
            f"they are not the parts of bucket {bucket_name((group.name, number))}; give what an earlier run returned as plan.",
        )


def told(stored: StoredMap, name: str, number: int, parts: t.Sequence[Bucket], epoch: int) -> dict[str, t.Any] | None:
    """Return the parameters of :data:`MAP_SQL` for a member, None when it knows the parts already.

    :param stored: the map as the member has it.
    :param name: of the group.
    :raises HeadroomError: when it knows neither the bucket nor its parts.
    """
    group = next(one for one in stored.map.groups if one.name == name)
    placement = stored.map.placements.get((name, number))
    if placement is None:
        if {part.number for part in parts} <= {one.number for one in group.buckets}:
            return None
        raise HeadroomError(
            f"Failed to split bucket {bucket_name((name, number))}: {stored.self_name} has no such bucket. "
            "Run postgresql_shard_map, which brings its map up to date.",
            code="unknown_bucket",
            member=stored.self_name,
        )
    after = with_parts(group, number, parts)
    groups = [after if one.name == name else one for one in stored.map.groups]
    positions = {one.number: place for place, one in enumerate(after.buckets)}
    rows = [
        {
            "number": part.number,
            "position": positions[part.number],
            "lower": None if part.lower is None else key_to_json(part.lower),
            "upper": None if part.upper is None else key_to_json(part.upper),
            "tenants": [key_to_json(tenant) for tenant in part.tenants] or None,
            "shard": placement.shard,
            "epoch": epoch,
        }
        for part in parts
    ]
    return {
        "group": name,
        "number": number,
        "epoch": epoch,
        "digest": digest_of(stored.cluster, stored.members, stored.map.shards, groups),
        "positions": json.dumps([{"number": key, "position": place} for key, place in positions.items()]),
        "parts": json.dumps(rows),
    }


MAP_SQL = (
    "DELETE FROM headroom.bucket WHERE group_name = %(group)s AND number = %(number)s",
    """
    UPDATE headroom.bucket b SET position = r.position FROM jsonb_to_recordset(%(positions)s::jsonb) AS r (number int, position int)
      WHERE b.group_name = %(group)s AND b.number = r.number
    """,
    """
    INSERT INTO headroom.bucket (group_name, number, position, lower, upper, tenants, shard, epoch)
      SELECT %(group)s, number, position, nullif(lower, 'null'), nullif(upper, 'null'), nullif(tenants, 'null'), shard, epoch
      FROM jsonb_to_recordset(%(parts)s::jsonb) AS r (number int, position int, lower jsonb, upper jsonb, tenants jsonb, shard text,
        epoch bigint)
    """,
    "UPDATE headroom.cluster SET epoch = greatest(epoch, %(epoch)s), digest = %(digest)s",
)
"""Replaces a bucket by its parts in the map of a member; takes what :func:`told` returns, within one transaction."""
