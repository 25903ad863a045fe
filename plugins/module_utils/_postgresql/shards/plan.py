# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What moves where, so that no shard carries more than its share allows, with the fewest bytes moved. Pure.

The share of a shard is its weight's part of the load of all buckets, over all groups at once. A shard that drains is emptied,
whatever the threshold, and one that is read-only keeps what it has and counts for nothing. A moved bucket stays on its source
until it is retired, so what leaves a shard makes no room on it within the plan: whatever the order and however many moves run
at a time, no capacity is exceeded.
"""

from __future__ import annotations

import hashlib
import json
import math
import typing as t
from dataclasses import asdict, dataclass, replace

from ..._common.units import format_bytes
from .balance import Problem, balance
from .keys import Key, key_to_json
from .model import BucketId, Shard, ShardMap, Usage, bucket_name
from .split import CannotSplit, Split, isolate, split

# a bucket that is too large is cut into parts of this fraction of the average share, small enough to be spread
PART_OF_SHARE = 0.25
# what the errors of arithmetic may come to, as a fraction of all load
EPSILON = 1e-9


@dataclass(frozen=True)
class Limits:
    """What a plan keeps to."""

    # the fraction of its share that a shard may be over it
    threshold: float = 0.1
    max_moves: int | None = None
    max_bytes: int | None = None
    max_duration_s: float | None = None
    concurrent_moves: int = 4
    concurrent_moves_per_shard: int = 1
    # what the estimate of the time reckons with: the pace of one move, and what each takes besides
    rate_bytes_s: float = 50e6
    move_overhead_s: float = 5.0


@dataclass(frozen=True)
class Move:
    """A bucket of all tables of its group on its way."""

    bucket: BucketId
    source: str
    target: str
    size_bytes: int
    load: float
    estimated_s: float


@dataclass(frozen=True)
class Share:
    """What one shard carries and should carry, in the unit of the load."""

    shard: str
    buckets: int
    size_bytes: int
    load: float
    wanted: float

    @property
    def over(self) -> float:
        """By which fraction of its share the load is above it; any load where none is wanted is 1."""
        if self.load <= self.wanted:
            return 0.0
        return self.load / self.wanted - 1 if self.wanted else 1.0


@dataclass(frozen=True)
class LeftOut:
    """Something that the plan does not do, and why."""

    code: str
    text: str


@dataclass(frozen=True)
class Plan:
    """Splits first, then moves in their order; and the shares before and after all of it."""

    id: str
    splits: tuple[Split, ...]
    moves: tuple[Move, ...]
    before: tuple[Share, ...]
    after: tuple[Share, ...]
    estimated_s: float
    left_out: tuple[LeftOut, ...]

    @property
    def size_bytes(self) -> int:
        """What is copied."""
        return sum(move.size_bytes for move in self.moves)


@dataclass(frozen=True)
class _Item:
    """A bucket as the plan sees it, a part of a split too."""

    id: BucketId
    shard: str
    size_bytes: int
    load: float


def imbalance(shares: t.Iterable[Share]) -> float:
    """Return the largest fraction by which a shard is over its share."""
    return max((share.over for share in shares), default=0.0)


def mixed_load(
    figures: t.Mapping[BucketId, t.Mapping[str, float]], mix: t.Mapping[str, float]
) -> dict[BucketId, float]:
    """Return the load of each bucket: its parts of the totals of several figures, weighted. All loads add up to 1.

    :param figures: for each bucket its figures by name, each in any unit, as ``size_bytes``, ``reads``, ``writes``, ``cpu_s``.
    :param mix: name of a figure to its weight. A figure that is 0 for all buckets does not count.
    :raises KeyError: when a bucket lacks a figure of the mix.
    """
    totals = {name: sum(one[name] for one in figures.values()) for name in mix}
    weights = {name: weight for name, weight in mix.items() if weight > 0 and totals[name] > 0}
    whole = sum(weights.values())
    return {
        bucket: sum(weight / whole * one[name] / totals[name] for name, weight in weights.items())
        for bucket, one in figures.items()
    }


def plan_id(shard_map: ShardMap, limits: Limits, isolated: t.Iterable[tuple[str, Key]] = ()) -> str:
    """Identify the map and the limits of a plan; a plan may run only while this is what it was."""
    asked = sorted([group, key_to_json(key)] for group, key in isolated)
    text = json.dumps([shard_map.as_dict(), asdict(limits), asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan(
    shard_map: ShardMap,
    usage: t.Mapping[BucketId, Usage],
    limits: Limits,
    kept_bytes: t.Mapping[str, int] | None = None,
    isolated: t.Sequence[tuple[str, Key]] = (),
    fixed: t.Mapping[BucketId, str] | None = None,
) -> Plan:
    """Return how to bring every shard within its share.

    Nothing moves while every shard is, and nothing is to be emptied.

    :param usage: of every bucket of the map. When none that can move has any load, all have the same.
    :param kept_bytes: shard to what it holds besides its buckets, such as retired ones.
    :param isolated: names of groups, which must be in the map, and keys in them that are to have buckets of their own.
    :param fixed: buckets that stay where they are for now, and the move that brought each there.
    :raises ValueError: when a bucket has no usage, since what was not measured cannot be planned for.
    """
    unmeasured = sorted(bucket for bucket in shard_map.placements if bucket not in usage)
    if unmeasured:
        raise ValueError(f"no usage for {', '.join(bucket_name(bucket) for bucket in unmeasured[:5])}")
    left_out: list[LeftOut] = []
    items = [
        _Item(bucket, placement.shard, usage[bucket].size_bytes, usage[bucket].load)
        for bucket, placement in sorted(shard_map.placements.items())
    ]
    shares = _Shares(shard_map.shards, items, limits.threshold)
    if not shares.total:
        items = [replace(item, load=1 / len(items)) for item in items]
        shares = _Shares(shard_map.shards, items, limits.threshold)
    before = shares.of(items)
    cuts = _Cuts(shard_map, usage, shares, _isolated_in(shard_map, isolated, shares, left_out))
    items = cuts.cut(items, left_out)
    movable = [item for item in items if item.shard not in shares.read_only]
    moves = _moves(shard_map.shards, movable, shares, limits, kept_bytes or {}, fixed or {})
    kept, estimated_s = _within(moves, before, shares, limits, left_out)
    targets = {move.bucket: move.target for move in kept}
    after = shares.of([_Item(one.id, targets.get(one.id, one.shard), one.size_bytes, one.load) for one in items])
    left_out += _held_back(shard_map, after, shares, fixed or {})
    left_out += _why_not(shard_map, after, shares, kept_bytes or {}, len(kept) == len(moves), fixed or {})
    return Plan(
        plan_id(shard_map, limits, isolated),
        tuple(cuts.splits),
        tuple(kept),
        before,
        after,
        estimated_s,
        tuple(left_out),
    )


class _Shares:
    """What each shard should carry and may carry."""

    def __init__(self, shards: t.Sequence[Shard], items: t.Sequence[_Item], threshold: float) -> None:
        read_only = {shard.name for shard in shards if shard.state == "read_only"}
        total = sum(item.load for item in items if item.shard not in read_only)
        weight = sum(shard.weight for shard in shards if shard.takes_share)
        self.threshold = threshold
        self.total = total
        self.read_only = read_only
        # what the errors of arithmetic may come to
        self.error = total * EPSILON
        self.names = [shard.name for shard in shards]
        self.wanted = {shard.name: total * shard.weight / weight if shard.takes_share else 0.0 for shard in shards}
        self.allowed = {
            name: wanted * (1 + threshold) + self.error if wanted else 0.0 for name, wanted in self.wanted.items()
        }

    def of(self, items: t.Iterable[_Item]) -> tuple[Share, ...]:
        """Return the shares of all shards when the items are where they say."""
        inside: dict[str, list[_Item]] = {name: [] for name in self.names}
        for item in items:
            inside[item.shard].append(item)
        shares = []
        for name, held in inside.items():
            load = math.fsum(item.load for item in held)
            # what a read-only shard has is what it should have
            wanted = load if name in self.read_only else self.wanted[name]
            shares.append(Share(name, len(held), sum(item.size_bytes for item in held), load, wanted))
        return tuple(shares)


def _isolated_in(
    shard_map: ShardMap, isolated: t.Sequence[tuple[str, Key]], shares: _Shares, left_out: list[LeftOut]
) -> dict[BucketId, Key]:
    """Return bucket to the key that is to be taken out of it."""
    groups = {group.name: group for group in shard_map.groups}
    found: dict[BucketId, Key] = {}
    for name, key in isolated:
        bucket = groups[name].bucket_of(key)
        at = (name, bucket.number) if bucket else None
        if at is None:
            why = "it has no bucket; declare it"
        elif shard_map.placements[at].shard in shares.read_only:
            why = f"its bucket {at[1]} is on {shard_map.placements[at].shard}, which is read-only"
        elif at in found:
            why = f"its bucket {at[1]} is split for {found[at]} first, so that the next plan can do it"
        else:
            found[at] = key
            continue
        left_out.append(LeftOut("not_isolated", f"{key} of {name} is not isolated: {why}."))
    return found


class _Cuts:
    """Which buckets are split: those that a key is taken out of, and those that no shard could carry."""

    def __init__(
        self, shard_map: ShardMap, usage: t.Mapping[BucketId, Usage], shares: _Shares, tenants: t.Mapping[BucketId, Key]
    ) -> None:
        self.splits: list[Split] = []
        self._usage, self._shares, self._tenants = usage, shares, tenants
        self._groups = {group.name: group for group in shard_map.groups}
        self._buckets = {(group.name, one.number): one for group in shard_map.groups for one in group.buckets}
        # parts have numbers that no bucket has or had: those of a split are always the highest
        self._next = {group.name: 1 + max(one.number for one in group.buckets) for group in shard_map.groups}
        self._most = max(shares.allowed.values())
        self._part_load = PART_OF_SHARE * shares.total / max(1, sum(wanted > 0 for wanted in shares.wanted.values()))

    def cut(self, items: t.Iterable[_Item], left_out: list[LeftOut]) -> list[_Item]:
        """Return the items with the parts in place of what is split."""
        found = []
        for item in items:
            try:
                made = self._split(item)
            except CannotSplit as error:
                left_out.append(self._unsplit(item, error))
                made = None
            if made is None:
                found.append(item)
                continue
            self.splits.append(made)
            self._next[made.group] += len(made.parts)
            for part, share in zip(made.parts, made.shares, strict=True):
                size_bytes = math.ceil(item.size_bytes * share)
                found.append(_Item((made.group, part.number), item.shard, size_bytes, item.load * share))
        return found

    def _too_large(self, item: _Item) -> bool:
        measured = self._usage[item.id].load > 0
        return measured and item.load > self._most and item.shard not in self._shares.read_only

    def _split(self, item: _Item) -> Split | None:
        group, bucket, usage = self._groups[item.id[0]], self._buckets[item.id], self._usage[item.id]
        number = self._next[group.name]
        made = None
        if item.id in self._tenants:
            made = isolate(group, bucket, usage, self._tenants[item.id], number)
        if made is None and self._too_large(item):
            made = split(group, bucket, usage, max(2, math.ceil(item.load / self._part_load)), number)
        return made

    def _unsplit(self, item: _Item, error: CannotSplit) -> LeftOut:
        name = bucket_name(item.id)
        if not self._too_large(item):
            return LeftOut("not_isolated", f"Bucket {name} is not split: {error}.")
        carries, most = item.load / self._shares.total, self._most / self._shares.total
        return LeftOut(
            "too_large",
            f"Bucket {name} alone carries {carries:.1%} of the load, more than the {most:.1%} that a shard may, "
            f"and is not split: {error}.",
        )


def _moves(
    shards: t.Sequence[Shard],
    items: t.Sequence[_Item],
    shares: _Shares,
    limits: Limits,
    kept_bytes: t.Mapping[str, int],
    fixed: t.Container[BucketId],
) -> list[Move]:
    """Return all moves that balance asks for, in their order.

    :param fixed: what stays where it is, and takes its part of what its shard may carry.
    """
    bins = [shard for shard in shards if shard.state != "read_only"]
    number = {shard.name: index for index, shard in enumerate(bins)}
    held_bytes = {shard.name: kept_bytes.get(shard.name, 0) for shard in bins}
    fixed_loads = dict.fromkeys(number, 0.0)
    for item in items:
        held_bytes[item.shard] += item.size_bytes
        if item.id in fixed:
            fixed_loads[item.shard] += item.load
    free = [item for item in items if item.id not in fixed]
    solved = balance(
        Problem(
            loads=[item.load for item in free],
            sizes=[item.size_bytes for item in free],
            # bytes first; of two ways with the same bytes, the one with fewer moves
            costs=[(item.size_bytes << 20) + 1 for item in free],
            homes=[number[item.shard] for item in free],
            # a shard that what is fixed fills takes nothing
            limits=[max(shares.allowed[one.name] - fixed_loads[one.name], shares.error) for one in bins],
            rooms=[
                math.inf if one.capacity_bytes is None else one.capacity_bytes - held_bytes[one.name] for one in bins
            ],
            emptied=[shard.is_emptied for shard in bins],
        )
    )
    moves = [
        Move(
            item.id,
            item.shard,
            bins[target].name,
            item.size_bytes,
            item.load,
            limits.move_overhead_s + item.size_bytes / limits.rate_bytes_s,
        )
        for item, target in zip(free, solved, strict=True)
        if bins[target].name != item.shard
    ]
    return _ordered(moves, {share.shard: share.load for share in shares.of(items)}, shares)


def _ordered(moves: t.Sequence[Move], held: dict[str, float], shares: _Shares) -> list[Move]:
    """Put first what relieves the fullest shard most, but no move before its target has room for it in its share."""
    left = dict(held)
    fullness = {}
    for move in sorted(moves, key=lambda one: (-one.load, one.bucket)):
        wanted = shares.wanted[move.source]
        fullness[move.bucket] = left[move.source] / wanted if wanted else math.inf
        left[move.source] -= move.load
    waiting = sorted(moves, key=lambda one: (-fullness[one.bucket], -one.load, one.bucket))
    ordered: list[Move] = []
    while waiting:
        later = []
        for move in waiting:
            if _fits(move, held, shares):
                _apply(move, held)
                ordered.append(move)
            else:
                later.append(move)
        if len(later) == len(waiting):
            # each waits for another: begin with the one that overloads its target least
            first = min(later, key=lambda one: (held[one.target] + one.load) / shares.allowed[one.target])
            later.remove(first)
            _apply(first, held)
            ordered.append(first)
        waiting = later
    return ordered


def _fits(move: Move, held: t.Mapping[str, float], shares: _Shares) -> bool:
    """Whether a move overloads nobody; one that drains a shard always may."""
    return not shares.wanted[move.source] or held[move.target] + move.load <= shares.allowed[move.target] + shares.error


def _apply(move: Move, held: dict[str, float]) -> None:
    held[move.source] -= move.load
    held[move.target] += move.load


def _within(
    moves: t.Sequence[Move], before: t.Sequence[Share], shares: _Shares, limits: Limits, left_out: list[LeftOut]
) -> tuple[list[Move], float]:
    """Return the moves that the limits let through and their time, so that no shard ends up fuller than it may be, or was."""
    held = {share.shard: share.load for share in before}
    most = {name: max(load, shares.allowed[name]) + shares.error for name, load in held.items()}
    pace = _Pace(limits)
    taken: list[Move] = []
    refused: dict[str, list[Move]] = {}
    # shards that are too full until a later move, and how many moves it takes to leave none so
    too_full: set[str] = set()
    whole, size_bytes, estimated_s = 0, 0, 0.0
    for move in moves:
        if limits.max_moves is not None and len(taken) >= limits.max_moves:
            refused.setdefault("max_moves", []).append(move)
        elif limits.max_bytes is not None and size_bytes + move.size_bytes > limits.max_bytes:
            refused.setdefault("max_bytes", []).append(move)
        elif limits.max_duration_s is not None and pace.with_move(move) > limits.max_duration_s:
            refused.setdefault("max_duration_s", []).append(move)
        elif refused and not _fits(move, held, shares):
            refused.setdefault("needs_another", []).append(move)
        else:
            _apply(move, held)
            if not shares.wanted[move.source]:
                most[move.target] = max(most[move.target], held[move.target])
            pace.add(move)
            taken.append(move)
            size_bytes += move.size_bytes
            for name in (move.source, move.target):
                (too_full.add if held[name] > most[name] else too_full.discard)(name)
            if not too_full:
                whole, estimated_s = len(taken), pace.estimated_s
    if taken[whole:]:
        refused.setdefault("needs_another", []).extend(taken[whole:])
    for code, out in refused.items():
        why = "they make sense only with those" if code == "needs_another" else f"{code} is {getattr(limits, code)}"
        size = format_bytes(sum(move.size_bytes for move in out))
        left_out.append(LeftOut(code, f"{len(out)} of {len(moves)} moves, {size}, are left to the next plan: {why}."))
    return taken[:whole], estimated_s


def moves_s(moves: t.Iterable[Move], limits: Limits) -> float:
    """Return how long moves take at least, as :class:`_Pace` has it."""
    pace = _Pace(limits)
    for move in moves:
        pace.add(move)
    return pace.estimated_s


class _Pace:
    """How long moves take at least: what the busiest shard has to do, or all together, with as many at a time as may be."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.estimated_s = 0.0
        self._total_s = 0.0
        self._busy_s: dict[str, float] = {}

    def with_move(self, move: Move) -> float:
        """Return the seconds that all moves take together with one more."""
        busy_s = max(self._busy_s.get(name, 0.0) for name in (move.source, move.target)) + move.estimated_s
        return max(
            self.estimated_s,
            move.estimated_s,
            busy_s / self.limits.concurrent_moves_per_shard,
            (self._total_s + move.estimated_s) / self.limits.concurrent_moves,
        )

    def add(self, move: Move) -> None:
        """Count a move in."""
        self.estimated_s = self.with_move(move)
        self._total_s += move.estimated_s
        for name in (move.source, move.target):
            self._busy_s[name] = self._busy_s.get(name, 0.0) + move.estimated_s


def _held_back(
    shard_map: ShardMap, after: t.Sequence[Share], shares: _Shares, fixed: t.Mapping[BucketId, str]
) -> list[LeftOut]:
    """Say which buckets a shard keeps only because the moves that brought them there can still be taken back."""
    full = {
        shard.name
        for shard, share in zip(shard_map.shards, after, strict=True)
        if shard.state != "read_only" and (shard.is_emptied or share.load > shares.allowed[shard.name] + shares.error)
    }
    return [
        LeftOut(
            "in_grace",
            f"Bucket {bucket_name(bucket)} stays on {shard_map.placements[bucket].shard}: it came there by move {move} and can still be "
            "taken back; end that with state cleaned and retire_now.",
        )
        for bucket, move in sorted(fixed.items())
        if shard_map.placements[bucket].shard in full
    ]


def _why_not(
    shard_map: ShardMap,
    after: t.Sequence[Share],
    shares: _Shares,
    kept_bytes: t.Mapping[str, int],
    all_moves: bool,
    fixed: t.Iterable[BucketId],
) -> list[LeftOut]:
    """Say what is not as it should be after the plan, where neither its limits nor what is fixed leave it so."""
    found = []
    held_back = [shard_map.placements[bucket].shard for bucket in fixed]
    for shard, share in zip(shard_map.shards, after, strict=True):
        if shard.state == "read_only":
            text = f"{shard.name} is read-only: it keeps its {share.buckets} buckets and takes none."
            found.append(LeftOut("read_only", text))
            continue
        if shard.is_emptied and share.buckets > held_back.count(shard.name) and all_moves:
            size = format_bytes(share.size_bytes)
            text = f"{shard.name} is to be emptied and keeps {share.buckets} of its buckets, {size}: no shard has room for them."
            found.append(LeftOut("not_emptied", text))
        elif (
            share.load > shares.allowed[shard.name] + shares.error
            and all_moves
            and not (shard.is_emptied or shard.name in held_back)
        ):
            text = (
                f"{shard.name} stays {share.over:.1%} over its share: no bucket of it fits on another shard within the threshold "
                f"of {shares.threshold:.1%} and its capacity."
            )
            found.append(LeftOut("over_threshold", text))
        held_bytes = share.size_bytes + kept_bytes.get(shard.name, 0)
        if shard.capacity_bytes is not None and held_bytes > shard.capacity_bytes:
            text = f"{shard.name} holds {format_bytes(held_bytes)} and may hold {format_bytes(shard.capacity_bytes)}; nothing moves there."
            found.append(LeftOut("over_capacity", text))
    return found
