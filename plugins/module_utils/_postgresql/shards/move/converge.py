# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``postgresql_shard_rebalance``: take up what is on its way, observe, plan, move, verify."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t
from dataclasses import replace

from ...._common.errors import HeadroomError, OptionError
from ...._common.units import format_bytes
from ..divide import preflight as divide_preflight
from ..divide.divider import Divider
from ..divide.model import parts_from
from ..members import Lock, Members
from ..model import BucketId, Group, ShardMap
from ..observed import Observed
from ..plan import Plan
from ..read import observe, require_primaries
from ..routers import Change, repoint
from ..usage import measure
from . import preflight
from .guard import Guard
from .journal import Journal
from .model import OPEN_STATES, REVERSE, Move, move_from, newest
from .mover import Context, Mover, Settings
from .options import Options
from .orphans import find_orphans, remove_orphans
from .picture import Picture, shares_of, taken_up
from .planner import Planner
from .progress import Progress
from .report import Report, fate, split_entries
from .stream import Stream
from .switch import resolve
from .watch import Watch

LOCK_PATIENCE_S = 3.0
_PLACE_SQL = """
UPDATE headroom.bucket SET shard = %s, epoch = %s WHERE group_name = %s AND number = %s AND epoch < %s
"""
_EPOCH_SQL = "UPDATE headroom.cluster SET epoch = greatest(epoch, %s)"
# undefined table, undefined schema
_NO_TABLE = ("42P01", "3F000")


def rebalance(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Do what the options say and return what was seen and done."""
    import psycopg  # noqa: F401  # fail before anything is contacted

    return asyncio.run(_Run(options, check_mode).run())


class _Run:
    def __init__(self, options: Options, check_mode: bool) -> None:
        self.options = options
        self.check_mode = check_mode or options.state == "planned"
        # a run that only looks comes after one that only looked at the declaration too
        self.foretells = check_mode
        # declared shards that get their map before the run that is foretold
        self.joining: tuple[str, ...] = ()
        self.guard = Guard(options.max_rate_bytes_s)
        self.progress = Progress(options.progress_file, self.guard)
        self.report = Report(options, self.check_mode, self.guard)
        self.routing = asyncio.Lock()

    async def run(self) -> dict[str, t.Any]:
        options = self.options
        async with Members(options.members, options.login, options.timeout_s) as members:
            self.members = members
            self.journal = Journal(members)
            self.planner = Planner(options, members, self.journal)
            if self.check_mode:
                seen = await self._look()
                return await self._foretell(seen)
            async with contextlib.AsyncExitStack() as held:
                self.lock = await self._take_lock(held)
                await self._end_doubts()
                seen = await self._look()
                self.context = self._context(seen)
                shown = asyncio.ensure_future(self.progress.show())
                try:
                    async with Watch(members, self.guard, options.bounds, self.progress.shards):
                        return await self._work(seen)
                except HeadroomError as error:
                    error.result = {**self.report.figures(), "changed": self.report.changed, **error.result}
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

    async def _work(self, seen: Picture) -> dict[str, t.Any]:
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
                self.report.changed = True

    # --- observe

    async def _look(self) -> Picture:
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
        seen = Picture(observed, shard_map, joining=self.joining)
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

    # --- move

    def _context(self, seen: Picture) -> Context:
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

    async def _recover(self, seen: Picture) -> None:
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
        for move in moves:
            was = f"{move.state} {move.step}".strip()
            action = fate(move, self.options.state, seen.takes_share(move.target))
            if move.is_split:
                divider = Divider(self.context, move)
                if action == "finished":
                    await divider.settle()
                else:
                    await divider.undo(HeadroomError(f"It was interrupted while {was}.", code="interrupted"))
                await self.members.close_all(move.id)
                self.report.changed = True
                self.report.add_recovered(move, was, action)
                continue
            mover = Mover(self.context, move)
            if move.state == "switched":
                if move.step not in ("retiring", "switched", "routed") and await mover.reverse.readdress():
                    self.report.changed = True
                if move.step == "detached":
                    continue
                if move.step == "retiring":
                    await self._give_up(move)
                else:
                    await mover.settle()
            elif action == "finished":
                self.progress.busy.append(move)
                await mover.run(finish=True)
                self.progress.busy.remove(move)
                self.report.add(move, switch=mover.switched)
            else:
                await mover.undo(HeadroomError(f"It was interrupted while {was}.", code="interrupted"))
            await self.members.close_all(move.id)
            self.report.changed = True
            self.report.add_recovered(move, was, action)

    async def _balance(self, seen: Picture) -> dict[str, t.Any]:
        options = self.options
        made, left_out = await self.planner.plan(seen)
        if made.splits:
            splits, whole = split_entries(seen, made.splits), seen.map
            await self._divide(seen, made)
            seen = await self._look()
            seen.map_before = whole
            seen.usage = await measure(self.members, seen.map, options.load, options.sample_s)
            if options.plan is None:
                then, left_out = await self.planner.make(seen, may_split=False)
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
        self.progress.total_bytes = sum(sizes.values())
        await self._carry(moves)
        after = await self._look()
        after.usage = await measure(self.members, after.map, options.load, options.sample_s)
        return self.report.result(seen, made, left_out, shares_of(after), after, splits)

    def _divisions(self, seen: Picture, made: Plan) -> list[Move]:
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

    async def _divide(self, seen: Picture, made: Plan) -> None:
        """Split buckets, one after the other."""
        moves = self._divisions(seen, made)
        await self._check_divisions(moves)
        self.progress.total_bytes = sum(move.bytes_total for move in moves)
        for number, move in enumerate(moves):
            if number:
                if self.planner.limits()[1]:
                    # the window has closed meanwhile
                    break
                # the one before has changed the map
                groups = {group.name: group for group in (await self._look()).map.groups}
                move.group = groups[move.group.name]
            self.progress.busy.append(move)
            self.report.changed = True
            began = time.monotonic()
            await self.journal.write(move)
            divider = Divider(self.context, move)
            try:
                await divider.run()
            finally:
                self.progress.busy.remove(move)
                self.progress.finished_bytes += move.bytes_total
                await self.members.close_all(move.id)
                self.report.add(move, time.monotonic() - began, move.error, divider.switched)
            self.progress.say(f"{move.label}: split into {', '.join(map(str, move.parts))}, {move.rows} rows")

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
        free = await self._free(moves)
        while waiting or running:
            while failed is None and len(running) < limits.concurrent_moves:
                chosen = next((move for move in waiting if self._has_room(move)), None)
                if chosen is None or self.planner.limits()[1]:
                    break
                kept = [mover.move for mover in (*movers, *running.values())]
                if kept and not self._can_keep([*kept, chosen], free):
                    if not movers:
                        break
                    # what is given up at the end of a run is given up now, so that others have its slots
                    failed = await self._end(movers)
                    movers = []
                    continue
                waiting.remove(chosen)
                self.progress.busy.append(chosen)
                mover = Mover(self.context, chosen)
                running[asyncio.ensure_future(self._one(mover))] = mover
            if not running:
                break
            ended, _going_on = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                mover = running.pop(task)
                self.progress.busy.remove(mover.move)
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
        ended_badly = await self._end(movers)
        failed = failed or ended_badly
        if failed is not None:
            raise failed

    async def _end(self, movers: t.Sequence[Mover]) -> HeadroomError | None:
        """Do what follows moves that have been switched, and return the first error."""
        failed: HeadroomError | None = None
        # those who still read at the former shards have had their time by now, or soon
        for mover in movers:
            try:
                await (mover.settle() if self.options.revert_window_s > 0 else mover.retire())
            except HeadroomError as error:
                failed = failed or error
            await self.members.close_all(mover.move.id)
            for entry in self.report.moves:
                if entry["id"] == mover.move.id:
                    entry["state"] = mover.move.state
        return failed

    async def _free(self, moves: t.Sequence[Move]) -> dict[str, t.Any]:
        """Return what shards have for moves that are kept until the end of the run; nothing where they are kept for longer."""
        if self.options.revert_window_s > 0:
            return {}
        names = sorted({name for move in moves for name in move.shards})
        return await self.members.each(lambda name: preflight.shard_facts(self.members, name), names)

    def _can_keep(self, moves: t.Sequence[Move], free: t.Mapping[str, t.Any]) -> bool:
        """Whether so many moves can be kept at the same time. A run whose moves can be taken back has planned no more than that."""
        if not free:
            return True
        pairs = [(move.source, move.target) for move in moves]
        return preflight.affordable(pairs, free, self.options.limits.concurrent_moves_per_shard)[0] == len(moves)

    def _has_room(self, move: Move) -> bool:
        most = self.options.limits.concurrent_moves_per_shard
        return all(sum(name in one.shards for one in self.progress.busy) < most for name in move.shards)

    async def _one(self, mover: Mover) -> None:
        move = mover.move
        self.report.changed = True
        await self.journal.write(move)
        began = time.monotonic()
        try:
            await mover.run(finish=False)
        finally:
            self.progress.finished_bytes += move.bytes_total
            self.report.add(move, time.monotonic() - began, move.error, mover.switched)
        self.progress.say(
            f"{move.label}: done, {move.rows} rows, {format_bytes(move.bytes_done)} in {time.monotonic() - began:.1f} s"
        )

    async def _retire(self, seen: Picture, due_only: bool) -> None:
        for move in list(seen.in_grace.values()):
            chosen = self.options.moves is None or move.id in self.options.moves or self.options.state != "cleaned"
            if chosen and (move.detail.get("is_over") or not due_only):
                self.report.changed = True
                await self._give_up(move)
                await self.members.close_all(move.id)
                self.report.add(move, error=move.error)

    async def _give_up(self, move: Move) -> None:
        """Retire a move. Where that is not what a run is for, one that cannot be retired keeps nothing else from being done."""
        try:
            await Mover(self.context, move).retire()
        except HeadroomError as error:
            if self.options.state == "cleaned":
                raise
            move.error = str(error)
            self.report.warn(f"Move {move.id} of {move.label} is not retired yet: {error}")

    async def _clean(self) -> dict[str, t.Any]:
        self.report.removed = await remove_orphans(self.members, await find_orphans(self.members, self.journal))
        self.report.changed = self.report.changed or bool(self.report.removed)
        seen = await self._look()
        await self._measure(seen)
        return self._without_plan(seen, seen)

    async def _check_known(self) -> None:
        """Check that there are or were the moves of the options; those that have ended may be named again."""
        if self.options.moves:
            known = {row["id"] for row in await self.journal.rows()}
            for name in self.options.moves:
                if name not in known:
                    raise OptionError("moves", name, "no journal has such a move; postgresql_shard_info shows the ids.")

    async def _revert(self, seen: Picture) -> dict[str, t.Any]:
        seen = await self._look()
        chosen = self._to_revert(seen)
        await self._measure(seen)
        for move in chosen:
            self.report.changed = True
            mover = Mover(self.context, move)
            self.progress.busy.append(move)
            began = time.monotonic()
            await mover.revert()
            await self.members.close_all(move.id)
            self.progress.busy.remove(move)
            self.report.add(move, time.monotonic() - began, switch=mover.switched)
        after = await self._look()
        await self._measure(after)
        return self._without_plan(seen, after)

    def _to_revert(self, seen: Picture) -> list[Move]:
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

    async def _foretell(self, seen: Picture) -> dict[str, t.Any]:
        """Return what a run would do, without doing it."""
        options = self.options
        for move in (*seen.splits.values(), *seen.in_flight.values(), *seen.in_grace.values()):
            if not (move.state == "switched" and move.step == "detached"):
                action = fate(move, options.state, seen.takes_share(move.target))
                self.report.add_recovered(move, f"{move.state} {move.step}".strip(), action)
        would = bool(self.report.recovered)
        astray = [move for move in seen.in_grace.values() if await self._reverse(move).is_astray()]
        # a run does that first, and plans by what comes of it
        finished = [
            move
            for move in seen.in_flight.values()
            if fate(move, options.state, seen.takes_share(move.target)) == "finished"
        ]
        seen = taken_up(seen, finished)
        if options.state in ("reverted", "cleaned"):
            await self._measure(seen)
            after = seen
            if options.state == "reverted":
                chosen = self._to_revert(seen)
                after = _after(seen, {move.bucket_id: move.source for move in chosen})
            else:
                await self._check_known()
                chosen = [
                    move
                    for move in seen.in_grace.values()
                    if (options.moves is None or move.id in options.moves)
                    and (options.retire_now or move.detail.get("is_over"))
                ]
                self.report.removed = await find_orphans(self.members, self.journal)
            for move in chosen:
                self.report.add(move)
            self.report.changed = bool(chosen or would or self.report.removed or astray)
            return self._without_plan(seen, after)
        # a run ends these first
        interrupted, seen.splits = seen.splits, {}
        due = [move for move in seen.in_grace.values() if move.detail.get("is_over")]
        seen.in_grace = {bucket: move for bucket, move in seen.in_grace.items() if move not in due}
        if options.state == "balanced":
            for move in due:
                self.report.add(move)
        made, left_out = await self.planner.plan(seen)
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
        self.report.changed = bool(made.splits or made.moves or would or due or astray) and options.state != "planned"
        return self.report.result(seen, made, left_out, made.after, None, split_entries(seen, made.splits))

    async def _measure(self, seen: Picture) -> None:
        seen.usage = await measure(self.members, seen.map, self.options.load, self.options.sample_s)

    def _without_plan(self, seen: Picture, after: Picture) -> dict[str, t.Any]:
        nothing = Plan("", (), (), shares_of(seen), shares_of(after), 0.0, ())
        return self.report.result(seen, nothing, [], nothing.after, after)


def _after(seen: Picture, targets: t.Mapping[BucketId, str]) -> Picture:
    """Return the picture with buckets on other shards."""
    placements = {
        bucket: replace(placement, shard=targets.get(bucket, placement.shard))
        for bucket, placement in seen.map.placements.items()
    }
    return replace(seen, map=replace(seen.map, placements=placements))


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
