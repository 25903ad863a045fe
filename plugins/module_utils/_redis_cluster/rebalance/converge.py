# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``redis_cluster_rebalance``: observe, heal, plan, move, verify."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import time
import typing as t
import uuid
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..._common.redis.client import NodeError
from ..._common.redis.connection import Login, nodes_spec, parse_nodes
from ..._common.redis.model import Node, format_slots, key_slot
from ..lock import Keeper, Lock, check_keeper, keeper_options
from ..observe import Fleet, settle
from ..state import Seen, blocked, calm, disagreements, gone, require_all, serves, slots_of, stale
from . import atomic, heal, measure, mechanism, mend
from .guard import Limits, Progress
from .journal import Journal, Record
from .plan import Move, Plan, Share, imbalance, plan

# what the journal says while a move goes on, by option state
RUNNING = {"balanced": "running", "reverted": "reverting"}
MEASURES = ("slots", "keys", "bytes", "operations")
# what was seen of operations in a few seconds is not so exact
THRESHOLDS = {"slots": 0.02, "keys": 0.02, "bytes": 0.02, "operations": 0.1}
LOCK_TTL_S = 30.0
AGREE_S = 15.0
RECOVER_S = 30.0
# what a cluster that is down is given to come back by itself before it is mended
PATIENCE_S = 3.0
ROUNDS = 5


def rebalance_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    own = ArgumentSpec(
        {
            "state": {"type": "str", "choices": list(RUNNING), "default": "balanced"},
            "by": {"type": "str", "choices": list(MEASURES), "default": "slots"},
            "sample_s": {"type": "float", "default": 5.0},
            "threshold": {"type": "float"},
            "max_moves": {"type": "int"},
            "max_slots_per_source": {"type": "int"},
            "max_slots_per_target": {"type": "int"},
            "max_keys_per_migrate": {"type": "int", "default": 100, "no_log": False},
            "mechanism": {"type": "str", "choices": list(mechanism.MECHANISMS), "default": "auto"},
            "max_rate_bytes_s": {"type": "int", "default": 0},
            "max_latency_ms": {"type": "float", "default": 0.0},
            "latency_patience_s": {"type": "float", "default": 60.0},
            "max_memory_ratio": {"type": "float", "default": 0.9},
            "journal": {"type": "path"},
            **keeper_options(),
            "lock_token": {"type": "str", "no_log": True},
            "slice_s": {"type": "float", "default": 0.0},
        }
    )
    return nodes_spec(weight={"type": "float"}).merge(own)


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    nodes: tuple[Node, ...]
    weights: t.Mapping[str, float]
    login: Login
    limits: Limits
    journal: str
    state: str = "balanced"
    by: str = "slots"
    sample_s: float = 5.0
    threshold: float = 0.02
    max_moves: int | None = None
    max_memory_ratio: float = 0.9
    mechanism: str = "auto"
    cluster: str = "redis"
    lock_wait_s: float = 0.0
    lock_token: str = ""
    slice_s: float = 0.0


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    nodes = parse_nodes(params["nodes"])
    weights = {}
    for entry in params["nodes"]:
        weight = entry["weight"]
        if weight is not None:
            if not math.isfinite(weight) or not 0 <= weight <= 1e6:
                raise OptionError(
                    "nodes[].weight", weight, f"give a number from 0 to 1000000 for node {entry['name']}."
                )
            weights[entry["name"]] = weight
    _number(params, "sample_s", 0.1, 3600, "seconds")
    if params["threshold"] is not None:
        _number(params, "threshold", 0, 1, "a fraction")
    for option in ("max_slots_per_source", "max_slots_per_target"):
        if params[option] is not None:
            _number(params, option, 1, 16384, "slots")
    _number(params, "max_keys_per_migrate", 1, 10000, "keys")
    _number(params, "max_rate_bytes_s", 0, 1 << 50, "bytes per second, 0 for no limit,")
    _number(params, "max_latency_ms", 0, 60000, "milliseconds, 0 for no limit,")
    _number(params, "latency_patience_s", 0, 86400, "seconds")
    _number(params, "max_memory_ratio", 0.1, 1, "a fraction")
    check_keeper(params)
    _number(params, "slice_s", 0, 86400, "seconds")
    if params["max_moves"] is not None and params["state"] == "reverted":
        raise OptionError(
            "max_moves", params["max_moves"], "leave it out with state 'reverted': all that moved goes back."
        )
    if params["max_moves"] is not None:
        _number(params, "max_moves", 1, 16384, "slots")
    cluster = params["cluster"]
    journal = params["journal"] or os.path.expanduser(f"~/.local/state/headroom/redis_cluster-{cluster}.journal")
    if os.path.isdir(journal):
        raise OptionError("journal", journal, "it is a directory; give the path of a file.")
    return Options(
        nodes=nodes,
        weights=weights,
        login=Login.from_params(params),
        limits=Limits(
            max_slots_per_source=params["max_slots_per_source"],
            max_slots_per_target=params["max_slots_per_target"],
            max_keys_per_migrate=params["max_keys_per_migrate"],
            max_rate_bytes_s=params["max_rate_bytes_s"],
            max_latency_ms=params["max_latency_ms"],
            latency_patience_s=params["latency_patience_s"],
        ),
        journal=journal,
        state=params["state"],
        by=params["by"],
        sample_s=params["sample_s"],
        threshold=THRESHOLDS[params["by"]] if params["threshold"] is None else params["threshold"],
        max_moves=params["max_moves"],
        max_memory_ratio=params["max_memory_ratio"],
        mechanism=params["mechanism"],
        cluster=cluster,
        lock_wait_s=params["lock_wait_s"],
        lock_token=params["lock_token"] or uuid.uuid4().hex,
        slice_s=params["slice_s"],
    )


def _number(params: t.Mapping[str, t.Any], option: str, low: float, high: float, unit: str) -> None:
    value = params[option]
    if not math.isfinite(value) or not low <= value <= high:
        raise OptionError(option, value, f"give {unit} from {low:g} to {high:g}.")


def rebalance(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring the slots to where they should be and return what was seen and done."""
    return asyncio.run(_Run(options, check_mode).run())


def primary_of(seen: t.Mapping[str, Seen], name: str) -> str:
    """Return the node that now is the primary of the shard that a node belongs to."""
    one = seen.get(name)
    if one is None or one.view is None or one.me.is_primary:
        return name
    return next((other for other, row in seen.items() if row.view and row.me.id == one.me.primary_id), name)


def weights_of(seen: t.Mapping[str, Seen], given: t.Mapping[str, float]) -> dict[str, float]:
    """Return the weight of every primary: its own, else that of one of its replicas, since they change places, else 1.

    A replica's 0 does not count: a node that was emptied has made itself a replica of the one that took its last slot.
    """
    weights = {}
    for name, one in seen.items():
        if one.me.is_primary:
            shard = [other for other in sorted(seen) if other != name and primary_of(seen, other) == name]
            weights[name] = given.get(name, next((given[other] for other in shard if given.get(other)), 1.0))
    return weights


def of_these_nodes(record: Record | None, seen: t.Mapping[str, Seen]) -> Record | None:
    """Return a journal if it is of these nodes; that of another cluster, or of a former one, has other names or other ids."""
    named = record.ids.keys() & seen.keys() if record is not None else set()
    if record is None or not named or any(seen[name].me.id != record.ids[name] for name in named):
        return None
    return record


def require_free(path: str, record: Record | None, seen: t.Mapping[str, Seen]) -> None:
    """Require that a journal may be replaced: another cluster's run that was begun could not be gone on with, or undone.

    :raises HeadroomError: naming the journal.
    """
    if record is None or not record.goes_on or of_these_nodes(record, seen) is not None:
        return
    members = {one.me.id for one in seen.values()}
    members.update(known for one in seen.values() if one.view is not None for known in one.view.members)
    # a node of the journal that is a member still: it is this cluster's, and another node was replaced
    if members.isdisjoint(record.ids.values()):
        raise HeadroomError(
            f"Failed to begin: journal {path} is of a run on another cluster, with {', '.join(sorted(record.ids))}, that has not ended. "
            "Give this cluster a journal of its own with option 'journal' or 'cluster', or move the file away if that one is gone.",
            code="journal_of_another",
            journal=path,
        )


class _Run:
    def __init__(self, options: Options, check_mode: bool) -> None:
        self.options = options
        self.check_mode = check_mode
        self.journal = Journal(options.journal)
        self.healed: list[heal.Cure] = []
        self.progress = Progress()
        self.fallbacks: list[atomic.Left] = []
        self.mechanisms: set[str] = set()
        self.interruptions: list[str] = []
        self.moved = False
        self.total = 0
        # slot to where a plan of this run wanted it, the latest one for each
        self.aimed: dict[int, str] = {}
        # slot to the keys and bytes of what is to move, as last measured, and what the first plan tells of it
        self.sizes: t.Mapping[int, tuple[int, float]] = {}
        self.told: t.Mapping[int, tuple[int, float]] = {}
        # looked at once, since they are the same wherever a slot is
        self.operations: t.Mapping[int, float] = {}
        self.unit = options.by

    async def run(self) -> dict[str, t.Any]:
        async with Fleet(self.options.nodes, self.options.login) as fleet:
            seen = await self._look(fleet)
            if self.check_mode:
                cures, owners = await mend.cures(fleet, seen)
                owners.update(await self._arriving(fleet, seen))
                record = self.journal.read()
                planned, _ids = await self._plan(fleet, seen, owners, of_these_nodes(record, seen))
                if planned.moves:
                    require_free(self.options.journal, record, seen)
                self.told = self.sizes
                return self._result(planned, planned, cures, finished=True)
            slots = slots_of(seen)
            if not slots.owners:
                raise HeadroomError(
                    "Failed to rebalance: no node owns a slot. Form the cluster with the module redis_cluster first.",
                    code="no_slots",
                )
            lock = Lock(fleet, self.options.cluster, LOCK_TTL_S)
            keeper = Keeper(lock, self.options.lock_token, self.options.lock_wait_s)
            try:
                await self._serve(fleet, seen)
                async with keeper:
                    result = await self._converge(fleet, keeper)
                    keeper.keep = not result["finished"]
                    return result
            except HeadroomError as error:
                if error.result.get("changed"):
                    raise
                raise self._interrupted(error) from error

    async def _look(self, fleet: Fleet) -> dict[str, Seen]:
        seen = await fleet.look()
        require_all(seen)
        known = {one.me.id for one in seen.values()}
        for one in seen.values():
            for member in one.view.members.values() if one.view else ():
                # one that is dead and has no slots has nothing that moves, and nobody can list it
                if member.id in known or (gone(member) and not member.slots):
                    continue
                if member.slots or member.primary_id in known:
                    raise HeadroomError(
                        f"Failed to rebalance: {member.address} is a member and not in option 'nodes'. "
                        "List it, with weight 0 to empty it.",
                        code="undeclared",
                        address=member.address,
                    )
        return seen

    async def _serve(self, fleet: Fleet, seen: dict[str, Seen]) -> None:
        """Mend what keeps the slot of the lock from being served."""
        slot = key_slot(f"{{{self.options.cluster}}}")
        if blocked(seen, slot):
            seen = await settle(fleet, PATIENCE_S, lambda now: serves(now, slot))
            require_all(seen)
        if not blocked(seen, slot):
            return
        cures, _owners = await mend.cures(fleet, seen)
        first = mend.urgent(cures, slot)
        self.healed += first
        self.moved = bool(first or stale(seen))
        await mend.mend(fleet, seen, first, self.options.limits)
        await settle(fleet, AGREE_S, lambda now: serves(now, slot))

    async def _arriving(self, fleet: Fleet, seen: t.Mapping[str, Seen]) -> dict[int, str]:
        """Return slot to name for what a server's own job is about to bring there."""
        names = {one.me.id: name for name, one in seen.items()}
        known = await atomic.dialects(fleet, [name for name, one in seen.items() if one.me.is_primary])
        jobs = [job for _name, _dialect, job in await atomic.active(fleet, known)]
        return {slot: names[job.target] for job in jobs if job.target in names for slot in job.slots}

    async def _plan(
        self, fleet: Fleet, seen: t.Mapping[str, Seen], owners: t.Mapping[int, str], record: Record | None
    ) -> tuple[Plan, dict[str, str]]:
        ids = {name: one.me.id for name, one in seen.items() if one.me.is_primary}
        if self.options.state == "reverted":
            planned = _way_back(seen, owners, record)
        else:
            loads = await self._loads(fleet, owners)
            weights = weights_of(seen, self.options.weights)
            if not sum(weights.values()) > 0:
                raise OptionError(
                    "nodes[].weight", 0, "all are 0, so nobody would own a slot; give one a weight above 0."
                )
            begun = record if record is not None and self._goes_on(record) else None
            # the threshold says when to begin; what was begun by slots is finished, however little is left
            threshold = 0 if begun and self.options.by == "slots" else self.options.threshold
            most = self.options.max_moves
            if most is not None:
                # each round plans anew, and all of them together move no more
                most = max(0, most - self._arrived(seen, owners))
            planned = plan(owners, weights, loads, threshold, most)
            emptied = any(not weights.get(name, 1.0) > 0 for name in owners.values())
            if begun is not None and self.options.by == "operations" and not emptied:
                # the load has changed since; what was begun is finished, and the next run looks anew
                rest = _rest(seen, owners, begun)
                if rest or self.moved:
                    planned = dataclasses.replace(planned, moves=rest[:most])
        await self._head_room(fleet, seen, planned, owners)
        pairs = planned.pairs()
        known = await atomic.dialects(fleet, {name for pair in pairs for name in pair})
        chosen = mechanism.choose(pairs, known, self.options.mechanism)
        if self.check_mode:
            self.mechanisms = set(chosen.values())
        return planned, ids

    def _goes_on(self, record: Record) -> bool:
        """Whether a journal is of a run that was begun as this one was, and has not ended."""
        return record.state == RUNNING[self.options.state] and (
            self.options.state == "reverted" or record.by == self.options.by
        )

    def _arrived(self, seen: t.Mapping[str, Seen], owners: t.Mapping[int, str]) -> int:
        """Return how many slots this run has brought to where it wanted them, told of or not."""
        return sum(owners.get(slot) == primary_of(seen, target) for slot, target in self.aimed.items())

    async def _loads(self, fleet: Fleet, owners: t.Mapping[int, str]) -> t.Mapping[int, float] | None:
        if self.options.by == "slots":
            return None
        if self.options.by == "keys":
            return await measure.keys(fleet, owners)
        if self.options.by == "bytes":
            return await measure.bytes_(fleet, owners)
        if not self.operations:
            self.operations, self.unit = await measure.operations(fleet, owners, self.options.sample_s)
        return self.operations

    async def _head_room(
        self, fleet: Fleet, seen: t.Mapping[str, Seen], planned: Plan, owners: t.Mapping[int, str]
    ) -> None:
        """Measure what is to move, and require that every target has memory for what it is to take.

        :raises HeadroomError: naming the first that has not.
        """
        if not planned.moves:
            return
        self.sizes = await measure.sizes(fleet, {move.slot: owners[move.slot] for move in planned.moves})
        each = measure.bytes_per_key(seen)
        change: dict[str, float] = dict.fromkeys(seen, 0.0)
        for move in planned.moves:
            keys, size = self.sizes[move.slot]
            # where none of a slot's keys could be looked at, they are what a key of its source is
            size = size or keys * each.get(move.source, 0.0)
            change[move.target] += size
            change[move.source] -= size
        for name in sorted({move.target for move in planned.moves}):
            self._require_memory(seen, name, change)

    def _require_memory(self, seen: t.Mapping[str, Seen], name: str, change: t.Mapping[str, float]) -> None:
        ratio = self.options.max_memory_ratio
        one = seen[name]
        limit, beside, where = one.number("maxmemory"), [name], f"{name} on {one.node.address} uses"
        whose = "its maxmemory"
        if not limit:
            # what bounds it is the memory of its host, which its neighbours use too
            limit = one.number("total_system_memory")
            beside = sorted(other for other, row in seen.items() if row.node.host == one.node.host)
            where, whose = f"{', '.join(beside)} on {one.node.host} use", f"its memory, since {name} has no maxmemory"
        used, more = sum(seen[other].number("used_memory") for other in beside), sum(change[other] for other in beside)
        if limit and used + more > limit * ratio:
            raise HeadroomError(
                f"Failed to plan: {where} {used} bytes and would take {more:.0f} more, above {limit * ratio:.0f} "
                f"(max_memory_ratio {ratio:g} of {whose}). Give it more memory, a smaller weight, or raise max_memory_ratio.",
                code="memory",
                node=name,
            )

    async def _converge(self, fleet: Fleet, keeper: Keeper) -> dict[str, t.Any]:
        options = self.options
        # a move that begins before a new node has heard of all slots stops half way
        seen = await settle(fleet, RECOVER_S, _works)
        require_all(seen)
        if not _works(seen):
            raise HeadroomError(
                f"Failed to rebalance: the nodes did not agree within {RECOVER_S:g} s. {_why(seen)}", code="not_calm"
            )
        deadline: float | None = None
        first: Plan | None = None
        for attempt in range(ROUNDS):
            try:
                seen = await self._look(fleet)
                if await atomic.finish(fleet, seen):
                    seen = await settle(fleet, AGREE_S, _works)
                    require_all(seen)
                cures, _owners = await mend.cures(fleet, seen)
                if cures:
                    self.healed += cures
                    self.moved = True
                    await mend.mend(fleet, seen, cures, self.options.limits)
                    seen = await settle(fleet, AGREE_S, lambda now: calm(now) and not slots_of(now).open)
                    require_all(seen)
                record = of_these_nodes(self.journal.read(), seen)
                planned, ids = await self._plan(fleet, seen, slots_of(seen).owners, record)
                if first is None:
                    first, self.told = planned, self.sizes
                    self.total = len(planned.moves)
                    # from here on: to look at the load may take longer than a slice
                    deadline = time.monotonic() + options.slice_s if options.slice_s else None
                if not planned.moves:
                    break
                require_free(self.options.journal, self.journal.read(), seen)
                self._begin(planned, ids, record, slots_of(seen).owners)
                await self._move(fleet, keeper, planned, ids, seen, deadline)
                if deadline is not None and time.monotonic() >= deadline:
                    break
            except NodeError as error:
                if attempt == ROUNDS - 1 or error.code in ("authentication_failed", "tls_refused"):
                    raise self._interrupted(error) from error
                self.interruptions.append(str(error))
                # a node that died may come back, or its replica takes over: what is left is planned anew
                await settle(fleet, RECOVER_S, calm)
            except HeadroomError as error:
                raise self._interrupted(error) from error
        return await self._conclude(fleet, first or Plan((), (), ()))

    async def _move(
        self,
        fleet: Fleet,
        keeper: Keeper,
        planned: Plan,
        ids: t.Mapping[str, str],
        seen: t.Mapping[str, Seen],
        deadline: float | None,
    ) -> None:
        def done(slots: t.Iterable[int]) -> None:
            keeper.check()
            self.journal.done(slots)

        self.moved = True
        self.aimed.update({move.slot: move.target for move in planned.moves})
        size = measure.bytes_per_key(seen)
        mover = mechanism.Mover(
            fleet, ids, self.options.limits, size, done, deadline, self.progress, self.options.mechanism
        )
        try:
            await mover.run(planned.moves)
        finally:
            self.fallbacks += mover.fallbacks
            self.mechanisms |= mover.used

    def _begin(
        self, planned: Plan, ids: t.Mapping[str, str], record: Record | None, owners: t.Mapping[int, str]
    ) -> None:
        """Write the plan down; one that goes on with an interrupted one keeps where its slots came from."""
        state = RUNNING[self.options.state]
        moves = list(planned.moves)
        done: list[int] = []
        if record is not None and record.state == state:
            # a slot that arrived without its writer is done as well
            origin = {
                move.slot: move
                for move in record.moves
                if move.slot in record.done or owners.get(move.slot) == move.target
            }
            moves = [
                dataclasses.replace(move, source=origin[move.slot].source) if move.slot in origin else move
                for move in moves
            ]
            again = {move.slot for move in moves}
            kept = [move for slot, move in origin.items() if slot not in again]
            moves += kept
            done = [move.slot for move in kept]
        self.journal.begin(planned.id, moves, ids, state, self.options.by)
        if done:
            self.journal.done(done)

    def _interrupted(self, error: HeadroomError) -> HeadroomError:
        """Return the failure with what had been done; the journal has the rest."""
        if not self.moved:
            return error
        result = {
            "changed": True,
            "mechanism": mechanism.summary(self.mechanisms),
            "fallbacks": mechanism.as_rows(self.fallbacks),
            "progress": self._progress(),
            "journal": self.options.journal,
            **error.result,
        }
        return HeadroomError(
            f"{error} {self.progress.slots} slots have been moved; run it again to go on.",
            code=error.code,
            result=result,
            **error.facts,
        )

    async def _conclude(self, fleet: Fleet, first: Plan) -> dict[str, t.Any]:
        """Look again: the result is what is there."""
        seen = await settle(fleet, AGREE_S, lambda now: calm(now) and not slots_of(now).open)
        require_all(seen)
        slots = slots_of(seen)
        if slots.open or slots.uncovered or slots.disputed:
            ill = sorted({*slots.open, *slots.uncovered, *slots.disputed})
            raise self._interrupted(
                HeadroomError(
                    f"Failed to close slots {format_slots(ill)} within {AGREE_S:g} s.", code="open_slots", slots=ill
                )
            )
        # of a batch whose source died at its end nobody has told that it arrived
        self.progress.slots = self._arrived(seen, slots.owners)
        record = of_these_nodes(self.journal.read(), seen)
        left, _ids = await self._plan(fleet, seen, slots.owners, record)
        finished = not left.moves or self.options.max_moves is not None
        if finished and record is not None:
            if self._goes_on(record):
                # also when an interrupted run had moved the last slot
                self.journal.finish(self.options.state)
            elif (self.options.state, record.state) == ("reverted", "running"):
                # nothing of it had been moved, and nobody shall go on with it
                self.journal.finish("stopped")
        return self._result(first, left, self.healed, finished)

    def _progress(self) -> dict[str, t.Any]:
        found = sorted(self.progress.latencies_ms)

        def share(fraction: float) -> float | None:
            return round(found[int(fraction * (len(found) - 1))], 2) if found else None

        return {
            "slots": self.progress.slots,
            "slots_total": self.total,
            "keys": self.progress.keys,
            "bytes": self.progress.bytes,
            "paused_s": round(self.progress.paused_s, 1),
            "retries": self.progress.retries,
            "latency_p50_ms": share(0.5),
            "latency_p99_ms": share(0.99),
            "latency_max_ms": share(1.0),
        }

    def _carried(self, slots: t.Iterable[int]) -> dict[str, int]:
        """Return the keys and bytes of slots, as they were measured when the plan was made."""
        found = [self.told.get(slot, (0, 0.0)) for slot in slots]
        return {"keys": sum(keys for keys, _size in found), "bytes": round(sum(size for _keys, size in found))}

    def _result(self, planned: Plan, left: Plan, cures: t.Sequence[heal.Cure], finished: bool) -> dict[str, t.Any]:
        unit = self.unit
        after = planned.after if self.check_mode else left.before
        changed = bool(planned.moves or cures)
        shares = {share.name: share for share in after}
        shown = {
            "before": [f"{share.name}: {share.slots} slots, {share.load:.6g} {unit}\n" for share in planned.before],
            "after": [f"{share.name}: {share.slots} slots, {share.load:.6g} {unit}\n" for share in after],
        }
        moves = [
            {
                "source": source,
                "target": target,
                "count": len(slots),
                "slots": format_slots(slots),
                **self._carried(slots),
            }
            for (source, target), slots in planned.pairs().items()
        ]
        lines = [f"{row['source']} -> {row['target']}: {row['count']} slots: {row['slots']}\n" for row in moves]
        return {
            "changed": changed,
            "finished": finished,
            "summary": _summary(planned, cures, finished, self.check_mode),
            "plan": {
                "id": planned.id,
                "moves": moves,
                "left_out": list(planned.left_out),
                **self._carried(move.slot for move in planned.moves),
            },
            "shares": [_share(share, planned, shares, unit) for share in planned.before],
            "imbalance": {"before": round(imbalance(planned.before), 4), "after": round(imbalance(after), 4)},
            "healed": heal.as_rows(cures),
            "interruptions": self.interruptions,
            "mechanism": mechanism.summary(self.mechanisms),
            "fallbacks": mechanism.as_rows(self.fallbacks),
            "progress": self._progress(),
            "journal": self.options.journal,
            "diff": {
                "before": "".join(shown["before"]),
                "after": "".join(shown["after"] + lines) if changed else "".join(shown["before"]),
            },
        }


def _share(share: Share, planned: Plan, after: t.Mapping[str, Share], unit: str) -> dict[str, t.Any]:
    # who is not there any more has become a replica: a primary does when its last slot goes
    then = after.get(share.name, Share(share.name, 0, 0.0, share.wanted))
    return {
        "name": share.name,
        "slots_before": share.slots,
        "slots_after": then.slots,
        "load_before": round(share.load, 3),
        "load_after": round(then.load, 3),
        "load_wanted": round(share.wanted, 3),
        "unit": unit,
    }


def _summary(planned: Plan, cures: t.Sequence[heal.Cure], finished: bool, check_mode: bool) -> str:
    parts = []
    if cures:
        parts.append(f"{len(cures)} open slots {'would be' if check_mode else 'were'} healed")
    if planned.moves:
        pairs = len(planned.pairs())
        parts.append(
            f"{len(planned.moves)} slots between {pairs} pairs {'would move' if check_mode else 'moved' if finished else 'are moving'}"
        )
    return f"{'; '.join(parts)}." if parts else "Every primary has its share; nothing moved."


def _rest(seen: t.Mapping[str, Seen], owners: t.Mapping[int, str], record: Record) -> tuple[Move, ...]:
    """Return the moves of a journal that are yet to be made, between those that are the shards' primaries now."""
    moves = (Move(move.slot, primary_of(seen, move.source), primary_of(seen, move.target)) for move in record.left)
    return tuple(move for move in moves if move.target in seen and owners.get(move.slot) == move.source)


def _way_back(seen: t.Mapping[str, Seen], owners: t.Mapping[int, str], record: Record | None) -> Plan:
    """Return the moves that undo what a journal says was done; slots that went elsewhere since then stay."""
    moves = []
    left_out = []
    for move in record.moves if record is not None else ():
        source, target = primary_of(seen, move.source), primary_of(seen, move.target)
        if record is not None and record.state in ("reverting", "reverted"):
            # the journal already tells the way back
            source, target = target, source
        if move.slot not in owners or source not in seen or owners[move.slot] == source:
            continue
        if owners[move.slot] != target:
            left_out.append(f"Slot {move.slot} belongs to {owners[move.slot]} now, not to {target}.")
            continue
        moves.append(Move(move.slot, target, source))
    counts: dict[str, int] = dict.fromkeys((name for name, one in seen.items() if one.me.is_primary), 0)
    for owner in owners.values():
        counts[owner] = counts.get(owner, 0) + 1
    then = dict(counts)
    for move in moves:
        then[move.source] -= 1
        then[move.target] += 1
    before = tuple(Share(name, count, count, then[name]) for name, count in sorted(counts.items()))
    after = tuple(Share(name, count, count, count) for name, count in sorted(then.items()))
    return Plan(tuple(moves), before, after, tuple(left_out))


def _works(seen: t.Mapping[str, Seen]) -> bool:
    """Say whether slots can move: a slot without an owner may be what keeps the cluster down, and is healed first."""
    return calm(seen) or bool(slots_of(seen).uncovered or slots_of(seen).disputed or stale(seen))


def _why(seen: t.Mapping[str, Seen]) -> str:
    down = sorted(name for name, one in seen.items() if one.info.get("cluster_state") != "ok")
    if down:
        return f"For {', '.join(down)} the cluster is down. Look at its health with the module redis_cluster_health."
    return " ".join(disagreements(seen)) or "A member is marked as failed. Look at the cluster's health."
