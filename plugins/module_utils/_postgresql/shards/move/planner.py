# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a run is to do: a plan made now, or one that was made before, as far as it can be carried out now."""

from __future__ import annotations

import datetime
import typing as t
from dataclasses import replace

from ...._common.errors import HeadroomError, OptionError
from ..divide.model import check_parts, parts_from
from ..keys import Key, parse_key
from ..members import Members
from ..model import ShardMap, bucket_name
from ..plan import Limits, Plan, moves_s, plan, plan_id
from ..plan import Move as PlannedMove
from ..split import Split
from ..usage import measure
from . import preflight
from .journal import Journal
from .options import Options
from .picture import Picture, shares_of

# what a plan leaves out that splits do not change
_OF_SPLITS = ("not_isolated", "too_large", "read_only")


class Planner:
    """Plans within the limits of the options."""

    def __init__(self, options: Options, members: Members, journal: Journal) -> None:
        """Take the options, and whom to ask."""
        self.options = options
        self.members = members
        self.journal = journal

    async def plan(self, seen: Picture) -> tuple[Plan, list[str]]:
        """Return the plan of the options, or one of now, and what it leaves out, a sentence each."""
        return await (self.make(seen) if self.options.plan is None else self._given(seen, self.options.plan))

    async def make(self, seen: Picture, may_split: bool = True) -> tuple[Plan, list[str]]:
        """Return what is to be done, and what is not, a sentence each.

        A plan that splits does nothing else, since what moves depends on what comes of it.
        """
        options = self.options
        isolated = self._isolated(seen.map)
        seen.usage = await measure(self.members, seen.map, options.load, options.sample_s, isolated)
        limits, closed = self.limits()
        kept = self._kept(seen)
        # what is in its grace has a copy on its former shard, to which nothing may be written yet
        fixed = {bucket: move.id for bucket, move in seen.in_grace.items() if bucket in seen.map.placements}
        made = plan(seen.map, seen.usage, limits, kept, isolated, fixed)
        left_out = [one.text for one in made.left_out]
        if closed:
            left_out.append(closed)
            made = replace(made, splits=(), moves=(), after=made.before, estimated_s=0.0)
        splits = splits_now(seen, made, may_split, left_out)
        if splits:
            left_out = [*(one.text for one in made.left_out if one.code in _OF_SPLITS), *left_out[len(made.left_out) :]]
            if made.moves:
                left_out.append("What moves is planned once these buckets are split.")
            made = replace(
                made,
                splits=splits,
                moves=(),
                after=shares_of(seen, splits=splits),
                estimated_s=self._split_s(seen, splits),
            )
            return replace(made, id=plan_id(seen.map, options.limits, isolated)), left_out
        if made.splits:
            parts = {(split.group, part.number) for split in made.splits for part in split.parts}
            moves = tuple(move for move in made.moves if move.bucket not in parts)
            after = shares_of(seen, {move.bucket: move.target for move in moves})
            made = replace(made, moves=moves, splits=(), after=after, estimated_s=moves_s(moves, limits))
        made = await self._affordable(seen, made, left_out)
        return replace(made, id=plan_id(seen.map, options.limits, isolated)), left_out

    async def _given(self, seen: Picture, given: t.Mapping[str, t.Any]) -> tuple[Plan, list[str]]:
        """Return a plan that was made before, as far as it has not been carried out.

        :raises HeadroomError: when it is not that of this map any more.
        """
        isolated = self._isolated(seen.map)
        now = plan_id(seen.map, self.options.limits, isolated)
        begun = {row["id"] for row in await self.journal.rows() if row["plan_id"] == given["id"]}
        if given["id"] != now and not begun:
            raise HeadroomError(
                f"Failed to carry out plan {given['id']}: the map or the limits are not what they were when it was made, now they make "
                f"{now}. Plan again.",
                code="plan_drifted",
                plan_id=now,
            )
        seen.usage = await measure(self.members, seen.map, self.options.load, self.options.sample_s)
        splits = given_splits(seen, given, bool(begun), now)
        limits, closed = self.limits()
        moves, left_out = given_moves(seen, given, splits, bool(begun), now, limits), []
        if closed:
            left_out.append(closed)
            moves, splits = [], ()
        before = shares_of(seen)
        targets = {move.bucket: move.target for move in moves}
        estimated_s = moves_s(moves, limits) + self._split_s(seen, splits)
        return Plan(
            given["id"], splits, tuple(moves), before, shares_of(seen, targets, splits), estimated_s, ()
        ), left_out

    def limits(self) -> tuple[Limits, str]:
        """Return the limits of now, and why nothing may begin, if so."""
        limits, window = self.options.limits, self.options.window
        if window is None:
            return limits, ""
        left_s = window.left_s(datetime.datetime.now(datetime.UTC))
        if left_s <= 0:
            return limits, f"Nothing moves now: the window is {window.text()}."
        most_s = left_s if limits.max_duration_s is None else min(left_s, limits.max_duration_s)
        return replace(limits, max_duration_s=most_s), ""

    def _isolated(self, shard_map: ShardMap) -> tuple[tuple[str, Key], ...]:
        groups = {group.name: group for group in shard_map.groups}
        found: list[tuple[str, Key]] = []
        for index, (name, value) in enumerate(self.options.isolate):
            if name not in groups:
                raise OptionError(f"isolate[{index}].group", name, f"give one of {', '.join(groups) or 'none'}.")
            try:
                one = (name, parse_key(groups[name].key_type, value))
            except ValueError as error:
                raise OptionError(f"isolate[{index}].key", value, f"{error}.") from None
            if one not in found:
                found.append(one)
        return tuple(found)

    def _split_s(self, seen: Picture, splits: t.Sequence[Split]) -> float:
        limits = self.options.limits
        size_bytes = sum(seen.usage[split.group, split.bucket].size_bytes for split in splits)
        return len(splits) * limits.move_overhead_s + size_bytes / limits.rate_bytes_s

    async def _affordable(self, seen: Picture, made: Plan, left_out: list[str]) -> Plan:
        """Return the plan without the moves that could not be taken back for want of slots and workers."""
        if not made.moves or not self.options.revert_window_s:
            return made
        names = {name for move in made.moves for name in (move.source, move.target)}
        facts = await self.members.each(
            lambda name: preflight.shard_facts(self.members, name), sorted(names - set(seen.joining))
        )
        # what is not known yet is looked at by the run itself
        facts |= dict.fromkeys(names & set(seen.joining), preflight.PLENTY)
        pairs = [(move.source, move.target) for move in made.moves]
        count, scarce = preflight.affordable(pairs, facts, self.options.limits.concurrent_moves_per_shard)
        if count in (0, len(made.moves)):
            # what leaves room for no move at all is said by the preflight, with its remedy
            return made
        left_out.append(
            f"{len(made.moves) - count} of {len(made.moves)} moves are left to a later plan: each keeps one of {scarce} while it can be "
            "taken back. Raise that, or end what can be taken back with state cleaned and retire_now, or set revert_window_s to 0."
        )
        moves = made.moves[:count]
        targets = {move.bucket: move.target for move in moves}
        estimated_s = moves_s(moves, self.options.limits)
        return replace(made, moves=moves, after=shares_of(seen, targets), estimated_s=estimated_s)

    def _kept(self, seen: Picture) -> dict[str, int]:
        """Return what shards hold besides their buckets: those that they gave away and that can still be taken back."""
        kept: dict[str, int] = {}
        for move in seen.in_grace.values():
            shard = move.source if move.detail.get("owner") == move.target else move.target
            kept[shard] = kept.get(shard, 0) + move.bytes_total
        return kept


def splits_now(seen: Picture, made: Plan, may_split: bool, left_out: list[str]) -> tuple[Split, ...]:
    """Return the splits of a plan that can be done now."""
    chosen = []
    for split in made.splits:
        bucket = (split.group, split.bucket)
        busy = seen.in_grace.get(bucket) or seen.in_flight.get(bucket) or seen.splits.get(bucket)
        if busy is not None:
            left_out.append(
                f"Bucket {bucket_name(bucket)} is not split: its {busy.what}, {busy.id}, has not ended; end what can be taken back "
                "with state cleaned and retire_now."
            )
        elif not may_split:
            left_out.append(f"Bucket {bucket_name(bucket)} is split by the next run, since this one has split already.")
        else:
            chosen.append(split)
    return tuple(chosen)


def given_splits(seen: Picture, given: t.Mapping[str, t.Any], begun: bool, now: str) -> tuple[Split, ...]:
    """Return the splits of a plan that was made before, as far as they have not been carried out."""
    groups = {group.name: group for group in seen.map.groups}
    found = []
    for index, entry in enumerate(given.get("splits") or ()):
        group, option = groups.get(entry["group"]), f"plan.splits[{index}].parts"
        bucket = (entry["group"], entry["bucket"])
        placement = seen.map.placements.get(bucket)
        parts = parts_from(option, group, entry["parts"]) if group else ()
        known = {one.number: one for one in group.buckets} if group else {}
        if begun and placement is None and parts and all(known.get(part.number) == part for part in parts):
            continue
        if group is None or placement is None or (placement.shard, placement.epoch) != (entry["shard"], entry["epoch"]):
            raise HeadroomError(
                f"Failed to carry out plan {given['id']}: bucket {bucket_name(bucket)} is not on {entry['shard']} since epoch "
                f"{entry['epoch']} any more. Plan again.",
                code="plan_drifted",
                plan_id=now,
            )
        check_parts(option, group, entry["bucket"], parts)
        for other in found:
            again = {other.bucket, *(one.number for one in other.parts)} & {
                entry["bucket"],
                *(one.number for one in parts),
            }
            if other.group == entry["group"] and again:
                raise OptionError(
                    option, min(again), "another split of the plan has this number too; give each its own."
                )
        busy = seen.in_grace.get(bucket)
        if busy is not None:
            raise HeadroomError(
                f"Failed to carry out plan {given['id']}: {busy.what}, {busy.id}, can still be taken back, so bucket "
                f"{bucket_name(bucket)} cannot be split. End that with state cleaned and retire_now.",
                code="in_grace",
            )
        found.append(Split(entry["group"], entry["bucket"], parts, (1.0 / len(parts),) * len(parts)))
    return tuple(found)


def given_moves(
    seen: Picture, given: t.Mapping[str, t.Any], splits: t.Sequence[Split], begun: bool, now: str, limits: Limits
) -> list[PlannedMove]:
    """Return the moves of a plan that was made before, as far as they have not been carried out."""
    moves = []
    for index, entry in enumerate(given["moves"]):
        bucket = (entry["group"], entry["bucket"])
        placement = seen.map.placements.get(bucket)
        if placement is not None and placement.shard == entry["target"] and begun:
            continue
        if placement is None or (placement.shard, placement.epoch) != (entry["source"], entry["epoch"]):
            raise HeadroomError(
                f"Failed to carry out plan {given['id']}: bucket {bucket_name(bucket)} is not on {entry['source']} since epoch "
                f"{entry['epoch']} any more. Plan again.",
                code="plan_drifted",
                plan_id=now,
            )
        busy = seen.in_grace.get(bucket)
        if busy is not None:
            raise HeadroomError(
                f"Failed to carry out plan {given['id']}: {busy.what}, {busy.id}, can still be taken back, so bucket "
                f"{bucket_name(bucket)} cannot move on. End that with state cleaned and retire_now.",
                code="in_grace",
            )
        if any((split.group, split.bucket) == bucket for split in splits):
            raise OptionError(
                f"plan.moves[{index}].bucket",
                bucket_name(bucket),
                "the plan splits it, so that it is no more; plan again.",
            )
        size, load = seen.usage[bucket].size_bytes, seen.usage[bucket].load
        takes_s = limits.move_overhead_s + size / limits.rate_bytes_s
        moves.append(PlannedMove(bucket, entry["source"], entry["target"], size, load, takes_s))
    return moves
