# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is declared against what is there: the map that is to be. Pure.

Once a bucket has a place it stays there, whatever is declared later: moves are another module's. So a shard that joins gets the
schema, the tables and no bucket, and one that still holds buckets cannot leave.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from ..._common.errors import HeadroomError
from .keys import Key, key_to_json
from .model import Bucket, BucketId, Group, Member, Placement, Shard, ShardMap, Table
from .observed import Observed, Seen
from .ring import place

if t.TYPE_CHECKING:
    from .members import Access

Contents: t.TypeAlias = "t.Mapping[tuple[str, str], t.Mapping[int | None, int]]"
"""Rows by table and shard, and by bucket; None stands for tenants that have none."""


@dataclass(frozen=True)
class Wanted:
    """What is declared, checked."""

    cluster: str
    members: tuple[Member, ...]
    shards: tuple[Shard, ...]
    groups: tuple[Group, ...]
    access: Access
    # statements that make a table, by its name
    ddl: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # shard of each bucket, by group, where the first placement is declared
    placement: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_rewrite_bytes: int = 10 << 30

    @property
    def tables(self) -> dict[str, tuple[Group, Table]]:
        """The tables by name, each with its group."""
        return {table.name: (group, table) for group in self.groups for table in group.tables}


@dataclass(frozen=True)
class Misplaced:
    """Rows of a plain table that lie on another shard than their buckets."""

    table: str
    shard: str
    rows: int
    # where they belong; none for tenants without a bucket
    homes: tuple[str, ...]
    buckets: tuple[int | None, ...]


def fail(sentence: str, code: str, **facts: t.Any) -> t.NoReturn:
    """Raise what cannot be declared as one sentence."""
    raise HeadroomError(f"Failed to declare the shards: {sentence}", code=code, **facts)


def on(seen: Seen) -> str:
    """Return a member as it is named in sentences."""
    return f"{seen.member.name} ({seen.member.host}:{seen.member.port}/{seen.member.dbname})"


def target_map(
    wanted: Wanted, observed: Observed, known: ShardMap | None, contents: Contents
) -> tuple[ShardMap, tuple[Misplaced, ...]]:
    """Return the map as it is to be, and the rows that keep it from being so.

    :param known: the one true map, None where there is none yet.
    :param contents: where rows of plain tables lie.
    :raises HeadroomError: where what is declared would undo what is there.
    """
    epoch = known.epoch if known else 0
    fresh = epoch + 1
    old = {group.name: group for group in known.groups} if known else {}
    lost = [name for name in old if name not in {group.name for group in wanted.groups}]
    if lost:
        fail(
            f"the group {lost[0]} is sharded, and is not declared any more. Declare it; giving it up is not possible.",
            "group_removed",
        )
    placements: dict[BucketId, Placement] = dict(known.placements) if known else {}
    groups: list[Group] = []
    grown: set[str] = set()
    # groups of which tenants are new: their buckets get numbers that a split on its way has for its parts
    wider: set[str] = set()
    for group in wanted.groups:
        before = old.get(group.name)
        now = group if before is None else merged(before, group)
        new = [bucket for bucket in now.buckets if (group.name, bucket.number) not in placements]
        homes = _first_places(wanted, now, contents) if before is None else _later_places(wanted, now, new, placements)
        for bucket in new:
            placements[group.name, bucket.number] = Placement(homes[bucket.number], fresh)
        if before is not None and now.tables != before.tables:
            grown.add(group.name)
        if before is not None and new:
            wider.add(group.name)
        groups.append(now)
    _check_leaving(wanted, observed, known, grown, wider)
    target = ShardMap(
        max([1, epoch, *(one.epoch for one in placements.values())]), wanted.shards, tuple(groups), placements
    )
    return target, _misplaced(target, contents)


def merged(before: Group, declared: Group) -> Group:
    """Return a group as it is, with the tables and tenants that are new."""
    name = declared.name
    for part in ("strategy", "key_type"):
        was, to_be = getattr(before, part), getattr(declared, part)
        if was != to_be:
            fail(
                f"group {name} has the {part} {was}, and is declared with {to_be}. It cannot be changed.",
                "group_changed",
            )
    tables = {table.name: table for table in declared.tables}
    for table in before.tables:
        if table.name not in tables:
            fail(
                f"the table {table.name} is sharded, and is not declared any more. Declare it; giving it up is not possible.",
                "table_removed",
            )
        if tables[table.name].key != table.key:
            fail(
                f"the key of {table.name} is {table.key}, and is declared as {tables[table.name].key}. It cannot be changed.",
                "key_changed",
            )
    added = tuple(table for table in declared.tables if table.name not in {one.name for one in before.tables})
    merged = replace(before, tables=(*before.tables, *added))
    if declared.strategy == "hash" and len(before.buckets) != len(declared.buckets):
        fail(
            f"group {name} has {len(before.buckets)} buckets, and is declared with {len(declared.buckets)}. The number cannot be changed.",
            "group_changed",
        )
    if declared.strategy == "range":
        bounds = {bucket.lower for bucket in before.buckets}
        for bucket in declared.buckets:
            if bucket.lower not in bounds and bucket.lower is not None:
                fail(
                    f"group {name} is not cut at {key_to_json(bucket.lower)}. "
                    "Cut it by splitting a bucket; 'bounds' is for the first time.",
                    "group_changed",
                )
    if declared.strategy == "directory":
        return _with_tenants(merged, declared)
    return merged


def _with_tenants(before: Group, declared: Group) -> Group:
    has = {tenant for bucket in before.buckets for tenant in bucket.tenants}
    wanted = {tenant for bucket in declared.buckets for tenant in bucket.tenants}
    gone = sorted(map(str, has - wanted))
    if gone:
        fail(
            f"the tenant {gone[0]} of group {before.name} has a bucket, and is not declared any more. Declare it.",
            "tenant_removed",
        )
    number = max(bucket.number for bucket in before.buckets) + 1
    buckets = list(before.buckets)
    for bucket in declared.buckets:
        new = tuple(tenant for tenant in bucket.tenants if tenant not in has)
        if new:
            buckets.append(Bucket(number, tenants=new))
            number += 1
    return replace(before, buckets=tuple(buckets))


def _first_places(wanted: Wanted, group: Group, contents: Contents) -> dict[int, str]:
    """Return where the buckets of a new group lie: where it is declared, else where their rows are, else by the ring."""
    if group.name in wanted.placement:
        return {bucket.number: shard for bucket, shard in zip(group.buckets, wanted.placement[group.name], strict=True)}
    ring = {
        key[1]: shard
        for key, shard in place([(group.name, one.number) for one in group.buckets], wanted.shards).items()
    }
    order = [shard.name for shard in wanted.shards]
    rows: dict[int, dict[str, int]] = {}
    for table in group.tables:
        for shard in order:
            for number, count in contents.get((table.name, shard), {}).items():
                if number is not None and count:
                    rows.setdefault(number, {}).setdefault(shard, 0)
                    rows[number][shard] += count
    holders = {shard for counts in rows.values() for shard in counts}
    if len(holders) == 1:
        return dict.fromkeys(ring, next(iter(holders)))
    most = {number: max(counts, key=lambda one: (counts[one], -order.index(one))) for number, counts in rows.items()}
    return {**ring, **most}


def _later_places(
    wanted: Wanted, group: Group, new: t.Sequence[Bucket], placements: t.Mapping[BucketId, Placement]
) -> dict[int, str]:
    """Return where buckets of new tenants lie: each on the shard that has fewest of the group for its weight."""
    taking = [shard for shard in wanted.shards if shard.takes_share]
    held = {shard.name: 0 for shard in taking}
    for (name, _number), placement in placements.items():
        if name == group.name and placement.shard in held:
            held[placement.shard] += 1
    homes = {}
    for bucket in new:
        shard = min(taking, key=lambda one: (held[one.name] + 1) / one.weight)
        held[shard.name] += 1
        homes[bucket.number] = shard.name
    return homes


def _check_leaving(
    wanted: Wanted, observed: Observed, known: ShardMap | None, grown: t.Container[str], wider: t.Container[str]
) -> None:
    declared = {shard.name for shard in wanted.shards}
    held: dict[str, dict[str, int]] = {}
    for (group, _number), placement in (known.placements if known else {}).items():
        if placement.shard not in declared:
            counts = held.setdefault(placement.shard, {})
            counts[group] = counts.get(group, 0) + 1
    if held:
        shard = sorted(held)[0]
        counts_text = " and ".join(f"{count} buckets of {group}" for group, count in sorted(held[shard].items()))
        fail(
            f"the shard {shard} is not declared any more, and still holds {counts_text}. "
            "Declare it with state draining and rebalance first.",
            "shard_holds_buckets",
            shard=shard,
        )
    leaving = {shard.name for shard in known.shards} - declared if known else set()
    moves = sorted({str(move["id"]): move for seen in observed.values() for move in seen.moves}.items())
    for _id, move in moves:
        name = f"{move['group_name']}/{move['bucket']}"
        leaves = sorted(leaving & {move["source"], move["target"]})
        if move["state"] == "switched" and leaves and move["source"] != move["target"]:
            fail(
                f"the shard {leaves[0]} is not declared any more, and bucket {name}, which moved from {move['source']} to "
                f"{move['target']}, can still be taken back. Declare it with state draining, and rebalance with state cleaned and "
                "retire_now, or wait for the end of its revert window.",
                "move_in_flight",
                move=move["id"],
            )
        if move["state"] == "switched" and move["group_name"] in grown and move["source"] != move["target"]:
            fail(
                f"bucket {name} has moved from {move['source']} to {move['target']} and can still be taken back, "
                "to where a new table of its group would not follow. "
                "Rebalance with state cleaned, or wait for the end of its revert window.",
                "move_in_flight",
                move=move["id"],
            )
        is_split = move["source"] == move["target"]
        takes_numbers = is_split and move["state"] != "switched" and move["group_name"] in wider
        if move["group_name"] in grown or leaves or takes_numbers:
            what = (
                f"is being split on {move['source']}"
                if is_split
                else f"is on its way from {move['source']} to {move['target']}"
            )
            fail(
                f"bucket {name} {what} ({move['state']}). Rebalance first, which finishes it or takes it back.",
                "move_in_flight",
                move=move["id"],
            )


def _misplaced(target: ShardMap, contents: Contents) -> tuple[Misplaced, ...]:
    found = []
    groups = {table.name: group for group in target.groups for table in group.tables}
    for (table, shard), counts in sorted(contents.items()):
        group = groups[table]
        wrong = {
            number: rows
            for number, rows in counts.items()
            if rows and (number is None or target.placements[group.name, number].shard != shard)
        }
        if wrong:
            numbers = sorted(wrong, key=lambda one: -1 if one is None else one)
            homes = sorted({target.placements[group.name, one].shard for one in numbers if one is not None})
            found.append(Misplaced(table, shard, sum(wrong.values()), tuple(homes), tuple(numbers)))
    return tuple(found)


def report_misplaced(
    misplaced: t.Sequence[Misplaced], keys: t.Sequence[t.Sequence[Key]], contents: Contents
) -> HeadroomError:
    """Return the error that says which rows do not lie where the declared function puts them.

    :param keys: the first keys of each of the misplaced.
    """
    parts, errors = [], []
    for one, first in zip(misplaced, keys, strict=True):
        shown = ", ".join(str(key_to_json(key)) for key in first)
        if not one.homes:
            text = f"{_rows(one.rows)} of {one.table} on {one.shard} of tenants without a bucket ({shown}, …)"
        else:
            verb = "belongs" if one.rows == 1 else "belong"
            text = (
                f"{_rows(one.rows)} of {one.table} on {one.shard} {verb} to {' or '.join(one.homes)} (keys {shown}, …)"
            )
        parts.append(text.replace(", …)", ")") if one.rows <= len(first) else text)
        errors.append(
            {
                "code": "misplaced_rows",
                "message": parts[-1],
                "table": one.table,
                "shard": one.shard,
                "rows": one.rows,
                "belongs_to": list(one.homes),
                "keys": [key_to_json(key) for key in first],
            }
        )
    rows = sum(sum(counts.values()) for counts in contents.values())
    wrong = sum(one.rows for one in misplaced)
    return HeadroomError(
        f"Failed to declare the shards: {wrong} of {rows} rows do not lie where the declared function puts them: {'; '.join(parts)}. "
        "Nothing was changed. Correct bounds, tenants or placement, or move these rows.",
        code="misplaced_rows",
        result={"errors": errors},
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
