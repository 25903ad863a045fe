# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""How a bucket of ranges or tenants is cut into smaller ones. Pure."""

from __future__ import annotations

import typing as t
import uuid
from dataclasses import dataclass

from .keys import Key, sort_key, successor
from .model import Bucket, Group, Usage


@dataclass(frozen=True)
class Split:
    """A bucket, the buckets that take its place on the same shard, and what part of its rows and load each has."""

    group: str
    bucket: int
    parts: tuple[Bucket, ...]
    shares: tuple[float, ...]


class CannotSplit(Exception):
    """A bucket cannot be cut; says why in half a sentence."""


def split(group: Group, bucket: Bucket, usage: Usage, parts: int, first_number: int) -> Split:
    """Cut a bucket into about equal parts.

    :param usage: its ``quantiles`` (range) or ``tenant_loads`` (directory) say where to cut.
    :param parts: how many are wanted; fewer come out where a single key or tenant has more than a part.
    :param first_number: number of the first new bucket.
    :raises CannotSplit: when it has no place to be cut at, or none is known.
    """
    if group.strategy == "hash":
        raise CannotSplit("a bucket of a hash cannot be split, since all buckets share one modulus")
    if group.strategy == "directory":
        return _numbered(group, bucket, _packed(bucket, usage, parts), first_number)
    inner = _inner(bucket, usage)
    steps = len(inner) + 1
    parts = min(parts, steps)
    wanted = [inner[round(steps * part / parts) - 1] for part in range(1, parts)]
    return _numbered(group, bucket, _ranges(bucket, inner, sorted(set(wanted), key=sort_key)), first_number)


def isolate(group: Group, bucket: Bucket, usage: Usage, tenant: Key, first_number: int) -> Split | None:
    """Give one key a bucket of its own; None when it has one.

    :param usage: its ``quantiles`` (range) or ``tenant_loads`` (directory) say how large the parts are.
    :raises CannotSplit: when the strategy or the type of the key has no such bucket, or nothing is known of its size.
    """
    if group.strategy == "hash":
        raise CannotSplit("the keys of a hash share their buckets; only range and directory can isolate one")
    if group.strategy == "directory":
        rest = tuple(one for one in bucket.tenants if one != tenant)
        if not rest:
            return None
        loads = _tenant_loads(bucket, usage)
        cut = [((tenant,), loads[tenant]), (rest, sum(loads[one] for one in rest))]
        return _numbered(group, bucket, [(Bucket(0, tenants=keys), load) for keys, load in cut], first_number)
    after = successor(group.key_type, tenant)
    if after is None and not isinstance(tenant, (int, uuid.UUID)):
        raise CannotSplit(f"no key of type {group.key_type} follows directly on another")
    # the last number of its type has none after it that would be in the way
    cuts = [key for key in (tenant, after) if key is not None and _is_inside(bucket, key)]
    if not cuts:
        return None
    return _numbered(group, bucket, _ranges(bucket, _inner(bucket, usage), cuts), first_number)


def _is_inside(bucket: Bucket, key: Key) -> bool:
    """Whether a range can be cut at a key."""
    place = sort_key(key)
    return (bucket.lower is None or sort_key(bucket.lower) < place) and (
        bucket.upper is None or place < sort_key(bucket.upper)
    )


def _inner(bucket: Bucket, usage: Usage) -> list[Key]:
    inner = sorted((key for key in usage.quantiles if _is_inside(bucket, key)), key=sort_key)
    if not inner:
        raise CannotSplit("its keys are not known to be spread; ANALYZE its tables")
    return inner


def _ranges(bucket: Bucket, inner: t.Sequence[Key], cuts: t.Sequence[Key]) -> list[tuple[Bucket, float]]:
    """Return the ranges between the cuts, each with the steps between quantiles that lie in it."""
    parts = []
    for lower, upper in zip([bucket.lower, *cuts], [*cuts, bucket.upper], strict=True):
        part = Bucket(0, lower, upper)
        # a step begins at its quantile, and the bucket's first step at its lower bound
        begins = sum(_is_inside(part, key) or key == lower for key in inner)
        parts.append((part, begins + 1 / (len(cuts) + 1)))
    return parts


def _tenant_loads(bucket: Bucket, usage: Usage) -> dict[Key, float]:
    unknown = [str(tenant) for tenant in bucket.tenants if tenant not in usage.tenant_loads]
    if unknown:
        raise CannotSplit(f"the load of {len(unknown)} of its tenants was not measured, {unknown[0]} for one")
    return {tenant: usage.tenant_loads[tenant] for tenant in bucket.tenants}


def _packed(bucket: Bucket, usage: Usage, parts: int) -> list[tuple[Bucket, float]]:
    """Put tenants, the largest first, into the part that has least so far."""
    if len(bucket.tenants) == 1:
        raise CannotSplit(f"its only tenant is {bucket.tenants[0]}")
    loads = _tenant_loads(bucket, usage)
    packed: list[tuple[float, list[Key]]] = [(0.0, []) for _part in range(min(parts, len(loads)))]
    for tenant in sorted(loads, key=lambda one: (-loads[one], sort_key(one))):
        load, tenants = min(packed, key=lambda part: (part[0], len(part[1])))
        packed[packed.index((load, tenants))] = (load + loads[tenant], [*tenants, tenant])
    return [(Bucket(0, tenants=tuple(sorted(tenants, key=sort_key))), load) for load, tenants in packed]


def _numbered(group: Group, bucket: Bucket, parts: t.Sequence[tuple[Bucket, float]], first_number: int) -> Split:
    if len(parts) < 2:
        raise CannotSplit("a single key has most of it")
    whole = sum(load for _part, load in parts) or 1.0
    return Split(
        group.name,
        bucket.number,
        tuple(
            Bucket(first_number + index, part.lower, part.upper, part.tenants)
            for index, (part, _load) in enumerate(parts)
        ),
        tuple(load / whole for _part, load in parts),
    )
