# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The map as it was returned before, checked, and the way of a key through it. Pure."""

from __future__ import annotations

import typing as t

from ..._common.errors import OptionError
from .keys import Key, key_to_json, sort_key
from .model import Bucket, BucketId, Group, Placement, ShardMap
from .options import (
    check,
    check_names,
    check_tables_once,
    is_whole,
    key_option,
    kind_option,
    shards_from,
    tables_option,
)


def stored_map(document: t.Any) -> ShardMap:
    """Return the map that :meth:`ShardMap.as_dict` wrote.

    :raises OptionError: when it is none, or was edited so that a key would have no bucket, two, or one on no shard.
    """
    check("map", document, isinstance(document, t.Mapping), "a mapping with epoch, shards and groups is needed.")
    for part, kind, words in (("epoch", int, "a number"), ("shards", list, "a list"), ("groups", list, "a list")):
        value = document.get(part)
        check(f"map.{part}", value, isinstance(value, kind), f"{words} is needed.")
    shards = shards_from(document["shards"])
    check_names("groups", document["groups"])
    groups, placements = [], {}
    for index, entry in enumerate(document["groups"]):
        at = f"groups[{index}]"
        strategy, key_type = kind_option(at, entry)
        entries = entry.get("buckets")
        check(f"{at}.buckets", entries, isinstance(entries, list) and bool(entries), "a list of buckets is needed.")
        buckets = []
        for place, one in enumerate(entries):
            here = f"{at}.buckets[{place}]"
            bucket, placement = _bucket(here, strategy, key_type, one)
            known = any(shard.name == placement.shard for shard in shards)
            check(f"{here}.shard", placement.shard, known, "no shard has this name.")
            name: BucketId = (entry["name"], bucket.number)
            check(f"{here}.number", bucket.number, name not in placements, "it comes twice.")
            buckets.append(bucket)
            placements[name] = placement
        groups.append(Group(entry["name"], strategy, key_type, tables_option(at, entry), tuple(buckets)))
        _check_whole(f"{at}.buckets", groups[-1])
    check_tables_once(groups)
    return ShardMap(document["epoch"], shards, tuple(groups), placements)


def route(shard_map: ShardMap, group: str, key: t.Any) -> dict[str, t.Any]:
    """Return where a key's rows are: ``group``, ``bucket``, ``shard`` and the ``epoch`` since which they are there.

    :raises OptionError: for a group that is not there, a key that is not of its type, and a tenant that has no bucket.
    """
    found = next((one for one in shard_map.groups if one.name == group), None)
    if found is None:
        raise OptionError("group", group, f"give one of {', '.join(one.name for one in shard_map.groups) or 'none'}.")
    parsed = key_option("key", found.key_type, key)
    bucket = found.bucket_of(parsed)
    if bucket is None:
        raise OptionError("key", key, f"no bucket of group {group} has this tenant; declare it.")
    placement = shard_map.placements[group, bucket.number]
    return {"group": group, "bucket": bucket.number, "shard": placement.shard, "epoch": placement.epoch}


def _bucket(at: str, strategy: str, key_type: str, entry: t.Any) -> tuple[Bucket, Placement]:
    bucket = bucket_from(at, strategy, key_type, entry)
    epoch = entry.get("epoch")
    check(f"{at}.epoch", epoch, is_whole(epoch) and epoch >= 0, "a number that is not negative is needed.")
    return bucket, Placement(str(entry.get("shard")), epoch)


def bucket_from(at: str, strategy: str, key_type: str, entry: t.Any) -> Bucket:
    """Return the bucket that :meth:`Bucket.as_dict` wrote.

    :param at: the option that it is, for the sentence of an error.
    :raises OptionError: when it is none.
    """
    check(at, entry, isinstance(entry, t.Mapping), "number, shard and epoch are needed.")
    number = entry.get("number")
    check(f"{at}.number", number, is_whole(number) and number >= 0, "a number that is not negative is needed.")
    bounds: dict[str, Key] = {}
    if strategy == "range":
        given = {name: entry[name] for name in ("lower", "upper") if entry.get(name) is not None}
        bounds = {name: key_option(f"{at}.{name}", key_type, value) for name, value in given.items()}
    tenants: tuple[Key, ...] = ()
    if strategy == "directory":
        values = entry.get("tenants")
        check(f"{at}.tenants", values, isinstance(values, list) and bool(values), "at least one tenant is needed.")
        tenants = tuple(key_option(f"{at}.tenants[{index}]", key_type, value) for index, value in enumerate(values))
    return Bucket(number, **bounds, tenants=tenants)


def _check_whole(option: str, group: Group) -> None:
    """Check that each key has exactly one bucket, and each tenant of a directory no more than one."""
    if group.strategy == "hash":
        for place, bucket in enumerate(group.buckets):
            remedy = "the buckets of a hash are numbered from 0 on, in order."
            check(f"{option}[{place}].number", bucket.number, bucket.number == place, remedy)
    elif group.strategy == "range":
        end: Key | None = None
        last = len(group.buckets) - 1
        for place, bucket in enumerate(group.buckets):
            lower, upper = bucket.lower, bucket.upper
            begins = lower == end and (lower is None) == (place == 0)
            remedy = "a range begins where the one before ends, and the first has no lower bound."
            check(f"{option}[{place}].lower", _shown(lower), begins, remedy)
            above = upper is not None and (lower is None or sort_key(lower) < sort_key(upper))
            ends = upper is None if place == last else above
            remedy = "it is above the lower bound, and only the last range has none."
            check(f"{option}[{place}].upper", _shown(upper), ends, remedy)
            end = upper
    else:
        seen: set[Key] = set()
        for place, bucket in enumerate(group.buckets):
            for tenant in bucket.tenants:
                check(f"{option}[{place}].tenants", _shown(tenant), tenant not in seen, "it has a bucket already.")
                seen.add(tenant)


def _shown(key: Key | None) -> int | str | None:
    return None if key is None else key_to_json(key)
