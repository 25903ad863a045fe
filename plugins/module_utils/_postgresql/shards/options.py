# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The declared shards and colocation groups as checked data, and their first map. Pure."""

from __future__ import annotations

import math
import re
import typing as t

from ..._common.errors import OptionError
from .keys import HASH_TYPES, KEY_TYPES, Key, parse_key, sort_key
from .model import STATES, STRATEGIES, Bucket, Group, Placement, Shard, ShardMap, Table
from .ring import place

HASH_BUCKETS = (64, 4096)
"""The fewest and the most buckets of a hash group: more than that are slow to plan queries over, fewer do not spread."""
MAX_WEIGHT = 100
NAME = r"[a-z][a-z0-9_]{0,31}"
IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_$]{0,62}"
MAX_TABLE_NAME = 48
"""Characters of a table's name: the names of its buckets are longer, and PostgreSQL cuts names at 63."""

# the option that cuts a group into buckets, by strategy
CUT_BY = {"hash": "buckets", "range": "bounds", "directory": "tenants"}

Entry = t.Mapping[str, t.Any]


def check(option: str, value: t.Any, fits: bool, remedy: str) -> None:
    """Raise :class:`OptionError` unless the value fits."""
    if not fits:
        raise OptionError(option, value, remedy)


def check_names(option: str, entries: t.Sequence[Entry]) -> None:
    """Check the names of shards or groups; each may come once."""
    seen = set()
    for index, entry in enumerate(entries):
        check(f"{option}[{index}]", entry, isinstance(entry, t.Mapping), "give a mapping with its name.")
        at, name = f"{option}[{index}].name", entry.get("name")
        fits = isinstance(name, str) and re.fullmatch(NAME, name) is not None
        check(at, name, fits, "use a-z, 0-9 and '_', a letter first, at most 32 characters.")
        check(at, name, name not in seen, "it is declared before; give each entry a name of its own.")
        seen.add(name)


def shards_from(entries: t.Sequence[Entry]) -> tuple[Shard, ...]:
    """Return the declared shards.

    :param entries: each with ``name`` and, if not the default, ``weight``, ``state`` and ``capacity_bytes``.
    :raises OptionError: for the first value that cannot be used.
    """
    check("shards", list(entries), bool(entries), "declare at least one shard.")
    check_names("shards", entries)
    shards = []
    for index, entry in enumerate(entries):
        at = f"shards[{index}]"
        weight = _value(entry, "weight", 1.0)
        usable = _is_number(weight) and 0 <= weight <= MAX_WEIGHT
        check(f"{at}.weight", weight, usable, f"give a number from 0 to {MAX_WEIGHT}; 0 empties the shard.")
        state = _value(entry, "state", "active")
        check(f"{at}.state", state, state in STATES, f"give one of {', '.join(STATES)}.")
        capacity = _value(entry, "capacity_bytes", None)
        usable = capacity is None or (is_whole(capacity) and capacity > 0)
        check(f"{at}.capacity_bytes", capacity, usable, "give a number of bytes above 0, or leave it out for no limit.")
        shards.append(Shard(entry["name"], float(weight), state, capacity))
    check(
        "shards",
        {shard.name: {"state": shard.state, "weight": shard.weight} for shard in shards},
        any(shard.takes_share for shard in shards),
        "give at least one active shard a weight above 0, since the buckets must lie somewhere.",
    )
    return tuple(shards)


def groups_from(entries: t.Sequence[Entry]) -> tuple[Group, ...]:
    """Return the declared colocation groups, their buckets numbered from 0.

    :param entries: each with ``name``, ``strategy``, ``key_type``, ``tables`` (each ``name``, as ``schema.table``, and ``key``,
        the column), and what cuts it: ``buckets`` for hash, the number; ``bounds`` for range, the keys at which one bucket ends
        and the next begins; ``tenants`` for directory, for each bucket the list of keys in it.
    :raises OptionError: for the first value that cannot be used.
    """
    check_names("groups", entries)
    groups = []
    for index, entry in enumerate(entries):
        at = f"groups[{index}]"
        strategy, key_type = kind_option(at, entry)
        for other, option in CUT_BY.items():
            value = entry.get(option)
            if other == strategy:
                check(f"{at}.{option}", value, value is not None, f"strategy {strategy!r} needs it.")
            else:
                check(
                    f"{at}.{option}", value, value is None, f"strategy {strategy!r} takes {CUT_BY[strategy]!r} instead."
                )
        cut = entry[CUT_BY[strategy]]
        if strategy == "hash":
            low, high = HASH_BUCKETS
            check(f"{at}.buckets", cut, is_whole(cut) and low <= cut <= high, f"give a number from {low} to {high}.")
            buckets = [Bucket(number) for number in range(cut)]
        elif strategy == "range":
            bounds = _bounds(f"{at}.bounds", key_type, cut)
            buckets = [
                Bucket(number, lower, upper)
                for number, (lower, upper) in enumerate(zip([None, *bounds], [*bounds, None], strict=True))
            ]
        else:
            buckets = _tenants(f"{at}.tenants", key_type, cut)
        groups.append(Group(entry["name"], strategy, key_type, tables_option(at, entry), tuple(buckets)))
    check_tables_once(groups)
    return tuple(groups)


def first_map(shards: t.Sequence[Shard], groups: t.Sequence[Group]) -> ShardMap:
    """Return the map of a cluster that holds nothing yet: epoch 1, buckets placed by the ring."""
    placements = {
        bucket: Placement(shard, 1)
        for group in groups
        for bucket, shard in place([(group.name, one.number) for one in group.buckets], shards).items()
    }
    return ShardMap(1, tuple(shards), tuple(groups), placements)


def _value(entry: Entry, name: str, default: t.Any) -> t.Any:
    return default if entry.get(name) is None else entry[name]


def _is_number(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: t.Any) -> bool:
    """Return whether a value is an integer; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def key_option(option: str, key_type: str, value: t.Any) -> Key:
    """Return an option's value as a key."""
    try:
        return parse_key(key_type, value)
    except ValueError as error:
        raise OptionError(option, value, f"{error}, since the shard key is {key_type}.") from None


def kind_option(at: str, entry: Entry) -> tuple[str, str]:
    """Return the strategy of a group and the type of its key."""
    strategy, key_type = entry.get("strategy"), entry.get("key_type")
    check(f"{at}.strategy", strategy, strategy in STRATEGIES, f"give one of {', '.join(STRATEGIES)}.")
    types = HASH_TYPES if strategy == "hash" else KEY_TYPES
    check(f"{at}.key_type", key_type, key_type in types, f"strategy {strategy!r} takes {', '.join(types)}.")
    return str(strategy), str(key_type)


def tables_option(at: str, entry: Entry) -> tuple[Table, ...]:
    """Return the tables of a group."""
    entries = entry.get("tables") or []
    fits = isinstance(entries, (list, tuple)) and bool(entries)
    check(f"{at}.tables", entries, fits, "declare at least one table.")
    tables = []
    for index, one in enumerate(entries):
        check(f"{at}.tables[{index}]", one, isinstance(one, t.Mapping), "give a mapping with name and key.")
        where, name, key = f"{at}.tables[{index}]", one.get("name"), one.get("key")
        parts = name.split(".") if isinstance(name, str) else []
        fits = len(parts) == 2 and all(re.fullmatch(IDENTIFIER, part) for part in parts)
        check(f"{where}.name", name, fits, "give it as schema.table, of letters, digits, '_' and '$'.")
        check(f"{where}.name", name, len(parts[1]) <= MAX_TABLE_NAME, f"use at most {MAX_TABLE_NAME} characters.")
        fits = isinstance(key, str) and re.fullmatch(IDENTIFIER, key) is not None
        check(f"{where}.key", key, fits, "give the column that is the shard key.")
        tables.append(Table(str(name), str(key)))
    return tuple(tables)


def check_tables_once(groups: t.Sequence[Group]) -> None:
    """Check that no table is in two groups, or in one twice."""
    seen: dict[str, str] = {}
    for index, group in enumerate(groups):
        for table in group.tables:
            remedy = f"group {seen.get(table.name)} has {table.name} already; a table belongs to one group, once."
            check(f"groups[{index}].tables", table.name, table.name not in seen, remedy)
            seen[table.name] = group.name


def _bounds(option: str, key_type: str, values: t.Any) -> list[Key]:
    check(option, values, isinstance(values, list) and bool(values), "give the keys at which a new bucket begins.")
    bounds = [key_option(f"{option}[{index}]", key_type, value) for index, value in enumerate(values)]
    for index in range(1, len(bounds)):
        rises = sort_key(bounds[index - 1]) < sort_key(bounds[index])
        check(f"{option}[{index}]", values[index], rises, f"it must be above the one before, {values[index - 1]!r}.")
    return bounds


def _tenants(option: str, key_type: str, values: t.Any) -> list[Bucket]:
    check(option, values, isinstance(values, list) and bool(values), "give for each bucket the list of its tenants.")
    buckets, seen = [], set()
    for number, tenants in enumerate(values):
        at = f"{option}[{number}]"
        check(at, tenants, isinstance(tenants, list) and bool(tenants), "a list of at least one tenant is needed.")
        keys = []
        for index, tenant in enumerate(tenants):
            key = key_option(f"{at}[{index}]", key_type, tenant)
            check(f"{at}[{index}]", tenant, key not in seen, "it is in a bucket already; a tenant belongs to one.")
            seen.add(key)
            keys.append(key)
        buckets.append(Bucket(number, tenants=tuple(keys)))
    return buckets
