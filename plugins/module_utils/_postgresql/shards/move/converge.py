# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``postgresql_shard_rebalance``: take up what is on its way, observe, plan, move, verify."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import time
import typing as t
from dataclasses import dataclass, field, replace

from ...._common.errors import HeadroomError, OptionError
from ...health.model import format_bytes
from ..divide import preflight as divide_preflight
from ..divide.divider import Divider
from ..divide.model import check_parts, parts_from, with_parts
from ..keys import Key, parse_key
from ..members import Lock, Members
from ..model import BucketId, Group, Placement, ShardMap, Usage, bucket_name
from ..observed import Observed
from ..plan import Limits, Plan, Share, imbalance, moves_s, plan, plan_id
from ..plan import Move as PlannedMove
from ..read import observe, require_primaries
from ..routers import Change, repoint
from ..split import Split
from ..usage import measure
from . import preflight
from .copy import Rate
from .guard import Guard
from .journal import Journal
from .model import BEFORE_SWITCH, OPEN_STATES, REVERSE, Move, move_from, newest
from .mover import Context, Mover, Settings
from .options import Options
from .orphans import Orphan, find_orphans, remove_orphans
from .stream import Stream
from .switch import resolve
from .watch import Watch

PROGRESS_S = 2.0
LOCK_PATIENCE_S = 3.0
_PLACE_SQL = """
UPDATE headroom.bucket SET shard = %s, epoch = %s WHERE group_name = %s AND number = %s AND epoch < %s
"""
_EPOCH_SQL = "UPDATE headroom.cluster SET epoch = greatest(epoch, %s)"
# undefined table, undefined schema
_NO_TABLE = ("42P01", "3F000")
# what a plan leaves out that splits do not change
_OF_SPLITS = ("not_isolated", "too_large", "read_only")
Shares = tuple[Share, ...]


def rebalance(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Do what the options say and return what was seen and done."""
    import psycopg  # noqa: F401  # fail before anything is contacted

    return asyncio.run(_Run(options, check_mode).run())


@dataclass
class _Seen:
    """What was seen, and what follows from it."""

    observed: Observed
    map: ShardMap
    usage: dict[BucketId, Usage] = field(default_factory=dict)
    in_grace: dict[BucketId, Move] = field(default_factory=dict)
    in_flight: dict[BucketId, Move] = field(default_factory=dict)
    # those that have not ended, which nothing can follow but their end
    splits: dict[BucketId, Move] = field(default_factory=dict)
    # the map before the splits of this run
    map_before: ShardMap | None = None


class _Run:
    def __init__(self, options: Options, check_mode: bool) -> None:
        self.options = options
        self.check_mode = check_mode or options.state == "planned"
        # a run that only looks comes after one that only looked at the declaration too
        self.foretells = check_mode
        # declared shards that get their map before the run that is foretold
        self.joining: tuple[str, ...] = ()
        self.guard = Guard(options.max_rate_bytes_s)
        self.busy: list[Move] = []
        self.done: list[dict[str, t.Any]] = []
        self.divided: list[dict[str, t.Any]] = []
        self.recovered: list[dict[str, t.Any]] = []
        self.removed: list[Orphan] = []
        self.routing = asyncio.Lock()
        self.total_bytes = 0
        self.finished_bytes = 0
        self.began = time.monotonic()
        self.changed = False

    async def run(self) -> dict[str, t.Any]:
        options = self.options
        async with Members(options.members, options.login, options.timeout_s) as members:
            self.members = members
            self.journal = Journal(members)
            if self.check_mode:
                seen = await self._look()
                return await self._foretell(seen)
            async with contextlib.AsyncExitStack() as held:
                self.lock = await self._take_lock(held)
                await self._end_doubts()
                seen = await self._look()
                self.context = self._context(seen)
                shown = asyncio.ensure_future(self._show())
                try:
                    async with Watch(members, self.guard, options.bounds, self._busy_shards):
                        return await self._work(seen)
                except HeadroomError as error:
                    error.result = {**self._figures(), "changed": self.changed, **error.result}
                    raise
                finally:
                    shown.cancel()
                    await asyncio.gather(shown, return_exceptions=True)

    async def _take_lock(self, held: contextlib.AsyncExitStack) -> Lock:
        """Take the lock of the cluster; a run that has just ended may have it for another moment."""
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                return await held.enter_async_context(Lock(self.members, self.options.cluster))
            except HeadroomError as error:
                if error.code != "locked" or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.2)

    async def _work(self, seen: _Seen) -> dict[str, t.Any]:
        await self._recover(seen)
        if self.options.state == "reverted":
            return await self._revert(seen)
        seen = await self._look()
        if self.options.state == "cleaned":
            await self._check_known()
        await self._retire(seen, due_only=self.options.state != "cleaned" or not self.options.retire_now)
        if self.options.state == "cleaned":
            return await self._clean()
        return await self._balance(await self._look())

    async def _end_doubts(self) -> None:
        """End what the switch of a split has left prepared: it holds the locks of tables that are about to be looked at."""
        try:
            rows = newest(await self.journal.rows(OPEN_STATES))
        except HeadroomError as error:
            if error.facts.get("sqlstate") in _NO_TABLE:
                # a look at the members says what is missing
                return
            raise
        for row in rows.values():
            # of its group the name is enough for this
            move = move_from(row, {row["group_name"]: Group(row["group_name"], "range", "bigint", (), ())})
            if move.is_split and await resolve(self.members, move):
                self.changed = True

    # --- observe

    async def _look(self) -> _Seen:
        observed, shard_map = await observe(self.members)
        require_primaries(observed)
        if self.foretells and shard_map is not None:
            observed = self._without_joining(observed)
        if shard_map is None:
            raise HeadroomError(
                "Failed to rebalance: no member has a map. Declare one with postgresql_shard_map first.", code="no_map"
            )
        self._check_members(observed, shard_map)
        shard_map = self._as_given(shard_map)
        groups = {group.name: group for group in shard_map.groups}
        seen = _Seen(observed, shard_map)
        for move in await self.journal.open_moves(groups):
            if move.is_split:
                seen.splits[move.bucket_id] = move
            else:
                (seen.in_grace if move.state == "switched" else seen.in_flight)[move.bucket_id] = move
        return seen

    def _without_joining(self, observed: Observed) -> Observed:
        """Leave members without a map to themselves: shards among them count as empty ones."""
        joining = [name for name, one in observed.items() if one.stored is None]
        for name in joining:
            del self.members.members[name]
        self.joining += tuple(name for name in joining if observed[name].member.role == "shard")
        return {name: one for name, one in observed.items() if name not in joining}

    def _check_members(self, observed: Observed, shard_map: ShardMap) -> None:
        for name, one in observed.items():
            member = one.member
            stored = one.stored
            where = f"{name} on {member.host}:{member.port}"
            if stored is None:
                raise HeadroomError(
                    f"Failed to rebalance: {where} has no map. Declare the shards with postgresql_shard_map first.",
                    code="no_map",
                    member=name,
                )
            if (stored.cluster, stored.self_name) != (self.options.cluster, name):
                raise HeadroomError(
                    f"Failed to rebalance: {where} is {stored.self_name} of cluster {stored.cluster}, "
                    f"not {name} of {self.options.cluster}. Check host, port and database.",
                    code="other_member",
                    member=name,
                )
            known = {other.name for other in stored.members}
            missing = sorted(known - set(observed))
            if missing:
                raise OptionError(
                    "shards",
                    sorted(observed),
                    f"the map has {', '.join(missing)} too; name all members, or declare it anew.",
                )

    def _as_given(self, shard_map: ShardMap) -> ShardMap:
        """Return the map with the weights and states of the options, which may be for this run alone."""
        given = {shard.name: shard for shard in self.options.shards}
        if self.joining:
            # that of the declaration, in its order
            known = {shard.name for shard in shard_map.shards} | set(self.joining)
            return replace(shard_map, shards=tuple(one for one in self.options.shards if one.name in known))
        return replace(shard_map, shards=tuple(given.get(shard.name, shard) for shard in shard_map.shards))

    # --- plan

    async def _plan(self, seen: _Seen, may_split: bool = True) -> tuple[Plan, list[str]]:
        """Return what is to be done, and what is not, a sentence each.

        A plan that splits does nothing else, since what moves depends on what comes of it.
        """
        options = self.options
        isolated = self._isolated(seen.map)
        seen.usage = await measure(self.members, seen.map, options.load, options.sample_s, isolated)
        limits, closed = self._limits()
        kept = self._kept(seen)
        # what is in its grace has a copy on its former shard, to which nothing may be written yet
        fixed = {bucket: move.id for bucket, move in seen.in_grace.items() if bucket in seen.map.placements}
        made = plan(seen.map, seen.usage, limits, kept, isolated, fixed)
        left_out = [one.text for one in made.left_out]
        if closed:
            left_out.append(closed)
            made = replace(made, splits=(), moves=(), after=made.before, estimated_s=0.0)
        splits = _splits(seen, made, may_split, left_out)
        if splits:
            left_out = [*(one.text for one in made.left_out if one.code in _OF_SPLITS), *left_out[len(made.left_out) :]]
            if made.moves:
                left_out.append("What moves is planned once these buckets are split.")
            made = replace(
                made,
                splits=splits,
                moves=(),
                after=_shares(seen, splits=splits),
                estimated_s=self._split_s(seen, splits),
            )
            return replace(made, id=plan_id(seen.map, options.limits, isolated)), left_out
        if made.splits:
            parts = {(split.group, part.number) for split in made.splits for part in split.parts}
            moves = tuple(move for move in made.moves if move.bucket not in parts)
            after = _shares(seen, {move.bucket: move.target for move in moves})
            made = replace(made, moves=moves, splits=(), after=after, estimated_s=moves_s(moves, limits))
        made = await self._affordable(seen, made, left_out)
        return replace(made, id=plan_id(seen.map, options.limits, isolated)), left_out

    def _split_s(self, seen: _Seen, splits: t.Sequence[Split]) -> float:
        limits = self.options.limits
        size_bytes = sum(seen.usage[split.group, split.bucket].size_bytes for split in splits)
        return len(splits) * limits.move_overhead_s + size_bytes / limits.rate_bytes_s

    async def _affordable(self, seen: _Seen, made: Plan, left_out: list[str]) -> Plan:
        """Return the plan without the moves that could not be taken back for want of slots and workers."""
        if not made.moves or not self.options.revert_window_s:
            return made
        names = {name for move in made.moves for name in (move.source, move.target)}
        facts = await self.members.each(
            lambda name: preflight.shard_facts(self.members, name), sorted(names - set(self.joining))
        )
        # what is not known yet is looked at by the run itself
        facts |= dict.fromkeys(names & set(self.joining), preflight.PLENTY)
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
        return replace(made, moves=moves, after=_shares(seen, targets), estimated_s=estimated_s)

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

    def _limits(self) -> tuple[Limits, str]:
        """Return the limits of now, and why nothing may begin, if so."""
        limits, window = self.options.limits, self.options.window
        if window is None:
            return limits, ""
        left_s = window.left_s(datetime.datetime.now(datetime.UTC))
        if left_s <= 0:
            return limits, f"Nothing moves now: the window is {window.text()}."
        most_s = left_s if limits.max_duration_s is None else min(left_s, limits.max_duration_s)
        return replace(limits, max_duration_s=most_s), ""

    def _kept(self, seen: _Seen) -> dict[str, int]:
        """Return what shards hold besides their buckets: those that they gave away and that can still be taken back."""
        kept: dict[str, int] = {}
        for move in seen.in_grace.values():
            shard = move.source if move.detail.get("owner") == move.target else move.target
            kept[shard] = kept.get(shard, 0) + move.bytes_total
        return kept

    async def _given(self, seen: _Seen, given: t.Mapping[str, t.Any]) -> tuple[Plan, list[str]]:
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
        splits = _given_splits(seen, given, bool(begun), now)
        limits, closed = self._limits()
        moves, left_out = _given_moves(seen, given, splits, bool(begun), now, limits), []
        if closed:
            left_out.append(closed)
            moves, splits = [], ()
        before = _shares(seen)
        targets = {move.bucket: move.target for move in moves}
        estimated_s = moves_s(moves, limits) + self._split_s(seen, splits)
        return Plan(
            given["id"], splits, tuple(moves), before, _shares(seen, targets, splits), estimated_s, ()
        ), left_out

    # --- move

    def _context(self, seen: _Seen) -> Context:
        options = self.options
        return Context(
            self.members,
            options.access,
            self.lock,
            self.journal,
            self.guard,
            Settings(
                pace=options.pace,
                streams=options.streams,
                slot_timeout_s=options.slot_timeout_s,
                catch_up_timeout_s=options.catch_up_timeout_s,
                read_grace_s=options.read_grace_s,
                revert_window_s=options.revert_window_s,
            ),
            self._tell,
            epoch=max([seen.map.epoch, *(placement.epoch for placement in seen.map.placements.values())]),
        )

    async def _tell(self, move: Move, owner: str, epoch: int) -> None:
        """Tell the other shards and the routers where a bucket is now."""
        members = self.members
        params = [owner, epoch, *move.bucket_id, epoch]

        async def place(name: str) -> None:
            purpose = f"place {move.id}"
            await members.rows(name, _PLACE_SQL, params, purpose=purpose, verb="tell of a move")
            await members.rows(name, _EPOCH_SQL, [epoch], purpose=purpose, verb="tell of a move")

        # first those who are asked where a bucket is, since that takes no lock
        await members.each(place)
        # one at a time, as a router has one connection for it
        async with self.routing:
            for router in members.routers:
                await repoint(members, router.name, [Change(move.group, {move.bucket: owner})])

    async def _recover(self, seen: _Seen) -> None:
        """Take up what another run has left, so that each bucket is on one shard and each object belongs to a move that goes on."""
        await self.journal.level({group.name: group for group in seen.map.groups})
        moves = [*seen.splits.values(), *seen.in_flight.values(), *seen.in_grace.values()]
        if not moves:
            return
        # what is in doubt is decided before anything else, since it keeps statements waiting
        decided = [await resolve(self.members, move) for move in moves]
        if any(decided):
            groups = {group.name: group for group in seen.map.groups}
            moves = await self.journal.open_moves(groups)
            self.context.epoch = max(self.context.epoch, *(move.detail.get("epoch", 0) for move in moves), 0)
        shards = {shard.name: shard for shard in seen.map.shards}
        for move in moves:
            was = f"{move.state} {move.step}".strip()
            if move.is_split:
                divider = Divider(self.context, move)
                if move.state == "switched":
                    await divider.settle()
                    action = "finished"
                else:
                    await divider.undo(HeadroomError(f"It was interrupted while {was}.", code="interrupted"))
                    action = "rolled_back"
                await self.members.close_all(move.id)
                self.changed = True
                self.recovered.append({**_entry(move), "was": was, "action": action})
                continue
            mover = Mover(self.context, move)
            if move.state == "switched":
                if move.step not in ("retiring", "switched", "routed") and await mover.reverse.readdress():
                    self.changed = True
                if move.step == "detached":
                    continue
                await (mover.retire() if move.step == "retiring" else mover.settle())
                action = "finished"
            elif (
                self.options.state == "balanced"
                and (move.state in BEFORE_SWITCH[2:] or move.step in ("copied", "indexes"))
                and shards[move.target].takes_share
            ):
                self.busy.append(move)
                await mover.run(finish=True)
                self.busy.remove(move)
                action = "finished"
                self._count(mover)
            else:
                await mover.undo(HeadroomError(f"It was interrupted while {was}.", code="interrupted"))
                action = "rolled_back"
            await self.members.close_all(move.id)
            self.changed = True
            self.recovered.append({**_entry(move), "was": was, "action": action})

    async def _balance(self, seen: _Seen) -> dict[str, t.Any]:
        options = self.options
        made, left_out = await (self._plan(seen) if options.plan is None else self._given(seen, options.plan))
        if made.splits:
            splits, whole = self._split_entries(seen, made.splits), seen.map
            await self._divide(seen, made)
            seen = await self._look()
            seen.map_before = whole
            seen.usage = await measure(self.members, seen.map, options.load, options.sample_s)
            if options.plan is None:
                then, left_out = await self._plan(seen, may_split=False)
                made = replace(made, moves=then.moves)
        else:
            splits = []
        groups = {group.name: group for group in seen.map.groups}
        moves = [
            Move(
                os.urandom(5).hex(),
                groups[one.bucket[0]],
                one.bucket[1],
                one.source,
                one.target,
                plan_id=made.id,
                bytes_total=one.size_bytes,
            )
            for one in made.moves
        ]
        sizes = {move.label: move.bytes_total for move in moves}
        if moves:
            await self._preflight(moves, sizes)
        self.total_bytes = sum(sizes.values())
        await self._carry(moves)
        after = await self._look()
        after.usage = await measure(self.members, after.map, options.load, options.sample_s)
        return self._result(seen, made, left_out, _shares(after), after, splits)

    def _divisions(self, seen: _Seen, made: Plan) -> list[Move]:
        """Return the splits of a plan as the journal has them."""
        groups = {group.name: group for group in seen.map.groups}
        found = []
        for split in made.splits:
            group, shard = groups[split.group], seen.map.placements[split.group, split.bucket].shard
            found.append(
                Move(
                    os.urandom(5).hex(),
                    group,
                    split.bucket,
                    shard,
                    shard,
                    plan_id=made.id,
                    detail={"parts": [part.as_dict(group.strategy) for part in split.parts]},
                    bytes_total=seen.usage[split.group, split.bucket].size_bytes,
                )
            )
        return found

    async def _check_divisions(self, moves: t.Sequence[Move]) -> None:
        pairs = [(move, parts_from("parts", move.group, move.detail["parts"])) for move in moves]
        _require(await divide_preflight.check(self.members, pairs, self.options.bounds.min_free_bytes))

    async def _divide(self, seen: _Seen, made: Plan) -> None:
        """Split buckets, one after the other."""
        moves = self._divisions(seen, made)
        await self._check_divisions(moves)
        self.total_bytes = sum(move.bytes_total for move in moves)
        for number, move in enumerate(moves):
            if number:
                if self._limits()[1]:
                    # the window has closed meanwhile
                    break
                # the one before has changed the map
                groups = {group.name: group for group in (await self._look()).map.groups}
                move.group = groups[move.group.name]
            self.busy.append(move)
            self.changed = True
            began = time.monotonic()
            await self.journal.write(move)
            divider = Divider(self.context, move)
            try:
                await divider.run()
            finally:
                self.busy.remove(move)
                self.finished_bytes += move.bytes_total
                await self.members.close_all(move.id)
                entry = {**_entry(move), "duration_s": round(time.monotonic() - began, 2), "error": move.error}
                if divider.switched is not None:
                    entry["switch"] = divider.switched.as_dict()
                self.divided.append(entry)
            self._say(f"{move.label}: split into {', '.join(map(str, move.parts))}, {move.rows} rows")

    def _split_entries(self, seen: _Seen, splits: t.Sequence[Split]) -> list[dict[str, t.Any]]:
        """Return splits as a plan is returned, so that it can be given again."""
        strategies = {group.name: group.strategy for group in seen.map.groups}
        return [
            {
                "group": split.group,
                "bucket": split.bucket,
                "shard": seen.map.placements[split.group, split.bucket].shard,
                "epoch": seen.map.placements[split.group, split.bucket].epoch,
                "bytes": seen.usage[split.group, split.bucket].size_bytes,
                "parts": [part.as_dict(strategies[split.group]) for part in split.parts],
            }
            for split in splits
        ]

    async def _preflight(self, moves: t.Sequence[Move], sizes: t.Mapping[str, int]) -> None:
        """Look whether all moves can be done.

        :raises HeadroomError: with all reasons why not.
        """
        options = self.options
        checked = await preflight.check(
            self.members,
            moves,
            sizes,
            options.bounds.min_free_bytes,
            options.limits.concurrent_moves_per_shard,
            options.revert_window_s > 0,
        )
        _require(checked)

    async def _carry(self, moves: list[Move]) -> None:
        """Carry moves, the first ones first, as many at a time as may be."""
        limits = self.options.limits
        waiting, running = list(moves), {}
        movers: list[Mover] = []
        failed: HeadroomError | None = None
        while waiting or running:
            while failed is None and len(running) < limits.concurrent_moves:
                chosen = next((move for move in waiting if self._has_room(move)), None)
                if chosen is None or self._limits()[1]:
                    break
                waiting.remove(chosen)
                self.busy.append(chosen)
                mover = Mover(self.context, chosen)
                running[asyncio.ensure_future(self._one(mover))] = mover
            if not running:
                break
            ended, _going_on = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                mover = running.pop(task)
                self.busy.remove(mover.move)
                # a plan may have more moves than a shard has room for connections
                await self.members.close_all(mover.move.id)
                error = task.exception()
                if error is not None and not isinstance(error, HeadroomError):
                    for other in running:
                        other.cancel()
                    await asyncio.gather(*running, return_exceptions=True)
                    raise error
                if error is not None and mover.move.state != "switched":
                    failed = failed or error
                    continue
                # what came after the switch can be done later, and until then its former shard brings statements on
                movers.append(mover)
        # those who still read at the former shards have had their time by now, or soon
        for mover in movers:
            try:
                await (mover.settle() if self.options.revert_window_s > 0 else mover.retire())
            except HeadroomError as error:
                failed = failed or error
            await self.members.close_all(mover.move.id)
            for entry in self.done:
                if entry["id"] == mover.move.id:
                    entry["state"] = mover.move.state
        if failed is not None:
            raise failed

    def _has_room(self, move: Move) -> bool:
        most = self.options.limits.concurrent_moves_per_shard
        return all(sum(name in one.shards for one in self.busy) < most for name in move.shards)

    async def _one(self, mover: Mover) -> None:
        move = mover.move
        self.changed = True
        await self.journal.write(move)
        began = time.monotonic()
        try:
            await mover.run(finish=False)
        finally:
            self.finished_bytes += move.bytes_total
            self.done.append({**_entry(move), "duration_s": round(time.monotonic() - began, 2), "error": move.error})
            if mover.switched is not None:
                self.done[-1]["switch"] = mover.switched.as_dict()
        self._say(
            f"{move.label}: done, {move.rows} rows, {format_bytes(move.bytes_done)} in {time.monotonic() - began:.1f} s"
        )

    def _count(self, mover: Mover) -> None:
        self.done.append({**_entry(mover.move), "duration_s": None, "error": None})
        if mover.switched is not None:
            self.done[-1]["switch"] = mover.switched.as_dict()

    async def _retire(self, seen: _Seen, due_only: bool) -> None:
        for move in list(seen.in_grace.values()):
            chosen = self.options.moves is None or move.id in self.options.moves or self.options.state != "cleaned"
            if chosen and (move.detail.get("is_over") or not due_only):
                self.changed = True
                await Mover(self.context, move).retire()
                await self.members.close_all(move.id)
                self.done.append({**_entry(move), "duration_s": None, "error": None})

    async def _clean(self) -> dict[str, t.Any]:
        self.removed = await remove_orphans(self.members, await find_orphans(self.members, self.journal))
        self.changed = self.changed or bool(self.removed)
        seen = await self._look()
        return await self._without_plan(seen)

    async def _check_known(self) -> None:
        """Check that there are or were the moves of the options; those that have ended may be named again."""
        if self.options.moves:
            known = {row["id"] for row in await self.journal.rows()}
            for name in self.options.moves:
                if name not in known:
                    raise OptionError("moves", name, "no journal has such a move; postgresql_shard_info shows the ids.")

    async def _revert(self, seen: _Seen) -> dict[str, t.Any]:
        seen = await self._look()
        chosen = self._to_revert(seen)
        for move in chosen:
            self.changed = True
            mover = Mover(self.context, move)
            self.busy.append(move)
            began = time.monotonic()
            await mover.revert()
            await self.members.close_all(move.id)
            self.busy.remove(move)
            self.done.append({**_entry(move), "duration_s": round(time.monotonic() - began, 2), "error": None})
            if mover.switched is not None:
                self.done[-1]["switch"] = mover.switched.as_dict()
        return await self._without_plan(await self._look())

    def _to_revert(self, seen: _Seen) -> list[Move]:
        """Return the moves to take back, the last first: the named ones, or those of the last plan."""
        found = [move for move in seen.in_grace.values() if move.detail.get("owner") == move.target]
        if self.options.moves is not None:
            known = {move.id for move in found}
            for name in self.options.moves:
                if name not in known:
                    raise OptionError(
                        "moves",
                        name,
                        f"no such move can be taken back; these can: {', '.join(sorted(known)) or 'none'}.",
                    )
            return [move for move in reversed(found) if move.id in self.options.moves]
        last = found[-1].plan_id if found else ""
        return [move for move in reversed(found) if move.plan_id == last]

    def _reverse(self, move: Move) -> Stream:
        """Return the stream by which a bucket can be taken back."""
        return Stream(self.members, self.options.access, move, REVERSE)

    # --- results

    async def _foretell(self, seen: _Seen) -> dict[str, t.Any]:
        """Return what a run would do, without doing it."""
        options = self.options
        would = [
            {**_entry(move), "was": f"{move.state} {move.step}".strip(), "action": _fate(move, options.state)}
            for move in (*seen.splits.values(), *seen.in_flight.values(), *seen.in_grace.values())
            if not (move.state == "switched" and move.step == "detached")
        ]
        self.recovered = would
        astray = [move for move in seen.in_grace.values() if await self._reverse(move).is_astray()]
        if options.state in ("reverted", "cleaned"):
            if options.state == "reverted":
                chosen = self._to_revert(seen)
            else:
                await self._check_known()
                chosen = [
                    move
                    for move in seen.in_grace.values()
                    if (options.moves is None or move.id in options.moves)
                    and (options.retire_now or move.detail.get("is_over"))
                ]
                self.removed = await find_orphans(self.members, self.journal)
            self.done = [{**_entry(move), "duration_s": None, "error": None} for move in chosen]
            self.changed = bool(chosen or would or self.removed or astray)
            return await self._without_plan(seen)
        # a run ends these first
        interrupted, seen.splits = seen.splits, {}
        due = [move for move in seen.in_grace.values() if move.detail.get("is_over")]
        seen.in_grace = {bucket: move for bucket, move in seen.in_grace.items() if move not in due}
        if options.state == "balanced":
            self.done = [{**_entry(move), "duration_s": None, "error": None} for move in due]
        made, left_out = await (self._plan(seen) if options.plan is None else self._given(seen, options.plan))
        groups = {group.name: group for group in seen.map.groups}
        moves = [
            Move("", groups[one.bucket[0]], one.bucket[1], one.source, one.target, bytes_total=one.size_bytes)
            for one in made.moves
            # what an interrupted one has made would be in the way
            if one.bucket not in seen.in_flight and one.target not in self.joining
        ]
        coming = sorted({one.target for one in made.moves} & set(self.joining))
        if coming:
            left_out.append(f"Whether {' and '.join(coming)} can take buckets is looked at once the map is there.")
        if moves:
            sizes = {move.label: move.bytes_total for move in moves}
            await self._preflight(moves, sizes)
        if made.splits:
            # what an interrupted one has left on its leaf would be refused
            await self._check_divisions(
                [one for one in self._divisions(seen, made) if one.bucket_id not in interrupted]
            )
        self.changed = bool(made.splits or made.moves or would or due or astray) and options.state != "planned"
        return self._result(seen, made, left_out, made.after, None, self._split_entries(seen, made.splits))

    async def _without_plan(self, seen: _Seen) -> dict[str, t.Any]:
        seen.usage = await measure(self.members, seen.map, self.options.load, self.options.sample_s)
        shares = _shares(seen)
        nothing = Plan("", (), (), shares, shares, 0.0, ())
        return self._result(seen, nothing, [], shares, seen)

    def _result(
        self,
        seen: _Seen,
        made: Plan,
        left_out: t.Sequence[str],
        after: Shares,
        seen_after: _Seen | None,
        splits: t.Sequence[dict[str, t.Any]] = (),
    ) -> dict[str, t.Any]:
        before, after_by = made.before, {share.shard: share for share in after}
        moves = [
            {
                "group": move.bucket[0],
                "bucket": move.bucket[1],
                "source": move.source,
                "target": move.target,
                "bytes": move.size_bytes,
                "epoch": seen.map.placements[move.bucket].epoch,
            }
            for move in made.moves
        ]
        then = {**{move.bucket: move.target for move in made.moves}} if seen_after is None else {}
        return {
            "changed": self.changed,
            "summary": self._summary(made, left_out),
            "plan": {
                "id": made.id,
                "splits": list(splits),
                "moves": moves,
                "bytes": made.size_bytes,
                "estimated_s": round(made.estimated_s, 1),
                "left_out": list(left_out),
            },
            "shares": [
                {
                    "name": share.shard,
                    "buckets_before": share.buckets,
                    "buckets_after": after_by[share.shard].buckets,
                    "bytes_before": share.size_bytes,
                    "bytes_after": after_by[share.shard].size_bytes,
                    "load_before": round(share.load, 6),
                    "load_after": round(after_by[share.shard].load, 6),
                    "load_wanted": round(after_by[share.shard].wanted, 6),
                }
                for share in sorted(before, key=lambda one: one.shard)
            ],
            "imbalance": {"before": round(imbalance(before), 4), "after": round(imbalance(after), 4)},
            "epoch": (seen_after or seen).map.epoch,
            **self._figures(),
            "diff": {
                "before": _describe(seen.map_before or seen.map, before, {}),
                "after": _describe(seen_after.map if seen_after else _split_map(seen.map, made.splits), after, then),
            },
        }

    def _figures(self) -> dict[str, t.Any]:
        return {
            "splits": self.divided,
            "moves": sorted(self.done, key=lambda one: (one["group"], one["bucket"])),
            "recovered": self.recovered,
            "orphans": [orphan.as_dict() for orphan in self.removed],
            "paused_s": round(self.guard.paused_s, 1),
        }

    def _summary(self, made: Plan, left_out: t.Sequence[str]) -> str:
        options = self.options
        would = "would be " if self.check_mode else ""
        parts = []
        if self.recovered:
            parts.append(f"{_count(len(self.recovered), 'move')} of earlier runs {would}taken up")
        if options.state in ("planned", "balanced"):
            planned = len(made.moves)
            moved = [
                one for one in self.done if one["duration_s"] is not None and one["state"] in ("switched", "retired")
            ]
            count = planned if self.check_mode else len(moved)
            size = format_bytes(made.size_bytes)
            cut = len(made.splits) if self.check_mode else sum(one["state"] == "retired" for one in self.divided)
            if cut:
                parts.append(
                    f"{_count(cut, 'bucket')} {'to be' if options.state == 'planned' else would} split".replace(
                        "  ", " "
                    )
                )
            if planned or count:
                verb = "planned" if options.state == "planned" else f"{would}moved"
                parts.append(f"{_count(count, 'bucket')}, {size}, {verb}")
            elif cut:
                pass
            elif left_out:
                parts.append("nothing can move")
            elif options.plan is not None:
                parts.append("nothing of the plan is left to do")
            else:
                parts.append("every shard is within its share")
        elif options.state == "reverted":
            parts.append(f"{_count(len(self.done), 'bucket')} {would}taken back")
        else:
            orphans = _count(len(self.removed), "orphan")
            parts.append(f"{_count(len(self.done), 'move')} {would}retired, {orphans} {would}removed")
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]}."

    # --- progress

    def _busy_shards(self) -> set[str]:
        return {name for move in self.busy for name in move.shards}

    async def _show(self) -> None:
        rate, rates = Rate(), dict[str, Rate]()
        while True:
            await asyncio.sleep(PROGRESS_S)
            if not self.busy:
                continue
            copied = self.finished_bytes + sum(min(move.bytes_done, move.bytes_total) for move in self.busy)
            speed = rate.at(copied)
            total = max(self.total_bytes, sum(move.bytes_total for move in self.busy))
            left = f", about {(total - copied) / speed:.0f} s left" if speed > 0 and total > copied else ""
            rates = {move.id: rates.get(move.id, Rate()) for move in self.busy}
            running = "; ".join(_standing(move, rates[move.id].at(move.bytes_done)) for move in self.busy)
            line = (
                f"{format_bytes(copied)} of {format_bytes(total)} copied, {format_bytes(int(speed))}/s{left}: {running}"
            )
            if self.guard.reasons:
                line += " (standing still: " + "; ".join(f"{k}: {v}" for k, v in self.guard.reasons.items()) + ")"
            self._say(line)

    def _say(self, line: str) -> None:
        if self.options.progress_file:
            # who cannot be told goes without
            with contextlib.suppress(OSError), open(self.options.progress_file, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def _standing(move: Move, rate_bytes_s: float) -> str:
    """Return where a move stands, and how far and how fast its copy is."""
    text = f"{move.label} {move.state} {move.step}".strip()
    if (move.state, move.step) != ("copying", "copy"):
        return text
    text += (
        f", {format_bytes(move.bytes_done)} of {format_bytes(move.bytes_total)}, {format_bytes(int(rate_bytes_s))}/s"
    )
    left_bytes = move.bytes_total - move.bytes_done
    return f"{text}, about {left_bytes / rate_bytes_s:.0f} s left" if rate_bytes_s > 0 and left_bytes > 0 else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _fate(move: Move, state: str) -> str:
    if move.is_split:
        return "finished" if move.state == "switched" else "rolled_back"
    if move.state == "switched":
        return "finished"
    resumed = move.state in BEFORE_SWITCH[2:] or move.step in ("copied", "indexes")
    return "finished" if resumed and state in ("balanced", "planned") else "rolled_back"


def _require(checked: preflight.Checked) -> None:
    """Raise for what keeps moves from beginning.

    :raises HeadroomError: with all reasons.
    """
    reasons = [*checked.all, *(f"{label}: {reason}" for label, reason in sorted(checked.moves.items()))]
    if reasons:
        more = f" {len(reasons) - 1} more reasons are in errors." if len(reasons) > 1 else ""
        raise HeadroomError(
            f"Failed to begin: {reasons[0]} Nothing was changed.{more}",
            code="preflight",
            result={"errors": [{"code": "preflight", "message": reason} for reason in reasons[1:]]},
        )


def _entry(move: Move) -> dict[str, t.Any]:
    return {
        "id": move.id,
        "group": move.group.name,
        "bucket": move.bucket,
        "source": move.source,
        "target": move.target,
        "state": move.state,
        "bytes": move.bytes_done or move.bytes_total,
        "rows": move.rows,
        **({"parts": list(move.parts)} if move.is_split else {}),
    }


def _splits(seen: _Seen, made: Plan, may_split: bool, left_out: list[str]) -> tuple[Split, ...]:
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


def _given_splits(seen: _Seen, given: t.Mapping[str, t.Any], begun: bool, now: str) -> tuple[Split, ...]:
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


def _given_moves(
    seen: _Seen, given: t.Mapping[str, t.Any], splits: t.Sequence[Split], begun: bool, now: str, limits: Limits
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


def _split_map(shard_map: ShardMap, splits: t.Sequence[Split]) -> ShardMap:
    """Return the map with the parts of splits in the place of their buckets."""
    groups, placements = list(shard_map.groups), dict(shard_map.placements)
    for split in splits:
        was = placements.pop((split.group, split.bucket))
        placements.update({(split.group, part.number): Placement(was.shard, was.epoch) for part in split.parts})
        groups = [with_parts(one, split.bucket, split.parts) if one.name == split.group else one for one in groups]
    return replace(shard_map, groups=tuple(groups), placements=placements)


def _shares(seen: _Seen, targets: t.Mapping[BucketId, str] | None = None, splits: t.Sequence[Split] = ()) -> Shares:
    """Return what each shard carries and should carry; splits give it more buckets of the same load."""
    shards = {shard.name: shard for shard in seen.map.shards}
    held: dict[str, list[BucketId]] = {name: [] for name in shards}
    for bucket, placement in seen.map.placements.items():
        held[(targets or {}).get(bucket, placement.shard)].append(bucket)
    free = [name for name, shard in shards.items() if shard.state != "read_only"]
    total = sum(seen.usage[bucket].load for name in free for bucket in held[name])
    weight = sum(shard.weight for shard in shards.values() if shard.takes_share) or 1.0
    shares = []
    for name, shard in shards.items():
        load = sum(seen.usage[bucket].load for bucket in held[name])
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


def _describe(shard_map: ShardMap, shares: Shares, targets: t.Mapping[BucketId, str]) -> str:
    """Return the placements as text, by which a diff shows the moves."""
    lines = []
    for share in sorted(shares, key=lambda one: one.shard):
        lines.append(f"{share.shard}: {share.buckets} buckets, {format_bytes(share.size_bytes)}")
        held: dict[str, list[int]] = {}
        for (group, number), placement in sorted(shard_map.placements.items()):
            if targets.get((group, number), placement.shard) == share.shard:
                held.setdefault(group, []).append(number)
        lines += [f"{share.shard}: {group}/{number}" for group, numbers in sorted(held.items()) for number in numbers]
    return "\n".join(lines) + "\n"
