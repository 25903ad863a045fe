# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""A map as text, by which a diff shows what is declared otherwise. Pure."""

from __future__ import annotations

import typing as t

from .declare import Wanted
from .keys import key_to_json
from .model import Bucket, Group, Member, ShardMap
from .observed import Observed, Relation
from .steps import buckets_text


def describe_map(
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
                f"{buckets_text(held.get(member.name, 0))}"
            )
        elif member.role == "router" or tables.get(member.name):
            lines.append(f"{member.role} {member.name}: {member.address}")
        lines += [f"  {table}: {what}" for table, what in sorted(tables.get(member.name, {}).items())]
    for group in shard_map.groups if shard_map else ():
        lines.append(f"group {group.name}: {group.strategy} of {group.key_type}, {buckets_text(len(group.buckets))}")
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
