# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``redis_cluster``: observe, plan, apply, verify, until nothing is left to do."""

from __future__ import annotations

import asyncio
import socket
import typing as t
import uuid
from dataclasses import dataclass, replace

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..._common.redis.connection import Login, nodes_spec, parse_nodes
from ..._common.redis.model import SLOTS, Node, format_slots, key_slot, ranges
from ..lock import Keeper, Lock, check_keeper, keeper_options
from ..observe import Fleet, settle
from ..rebalance import atomic, heal, measure, mechanism, mend
from ..rebalance.guard import Limits
from ..state import Seen, blocked, calm, gone, quiet, require_all, serves, slots_of, stale, strangers, title
from .plan import Outcome, Step, Wanted, drained, plan, takers

ROUNDS = 8
AGREE_S = 20.0
SYNC_S = 120.0
# what a cluster that is down is given to come back by itself
PATIENCE_S = 3.0
LOCK_TTL_S = 30.0


def cluster_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    own = ArgumentSpec(
        {
            "replicas_per_primary": {"type": "int", "default": 1},
            "allow_same_host": {"type": "bool", "default": False},
            "purge": {"type": "bool", "default": False},
            **keeper_options(),
            "sync_wait_s": {"type": "float", "default": SYNC_S},
        }
    )
    return nodes_spec(weight={"type": "float"}, zone={"type": "str"}).merge(own)


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    nodes: tuple[Node, ...]
    wanted: tuple[Wanted, ...]
    login: Login
    replicas_per_primary: int = 1
    allow_same_host: bool = False
    purge: bool = False
    cluster: str = "redis"
    lock_wait_s: float = 0.0
    sync_wait_s: float = SYNC_S


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    nodes = parse_nodes(params["nodes"])
    for entry in params["nodes"]:
        if entry["weight"] is not None and not 0 <= entry["weight"] <= 1e6:
            raise OptionError(
                "nodes[].weight", entry["weight"], f"give a number from 0 to 1000000 for node {entry['name']}."
            )
    replicas = params["replicas_per_primary"]
    if not 0 <= replicas <= 10:
        raise OptionError("replicas_per_primary", replicas, "give a number of replicas from 0 to 10.")
    check_keeper(params)
    if not 0 <= params["sync_wait_s"] <= 86400:
        raise OptionError("sync_wait_s", params["sync_wait_s"], "give a number of seconds from 0 to 86400.")
    given = {entry["name"]: entry for entry in params["nodes"]}
    wanted = tuple(
        Wanted(node.name, node.host, given[node.name]["zone"] or node.host, given[node.name]["weight"])
        for node in nodes
    )
    return Options(
        nodes=nodes,
        wanted=wanted,
        login=Login.from_params(params),
        replicas_per_primary=replicas,
        allow_same_host=params["allow_same_host"],
        purge=params["purge"],
        cluster=params["cluster"],
        lock_wait_s=params["lock_wait_s"],
        sync_wait_s=params["sync_wait_s"],
    )


def converge(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring the nodes to the declared cluster and return what was seen and done."""
    return asyncio.run(_Run(options, check_mode).run())


@dataclass(frozen=True)
class _Todo:
    """What is to be done, and slot to owner as it will be then."""

    outcome: Outcome
    cures: list[heal.Cure]
    owners: dict[int, str]


class _Run:
    def __init__(self, options: Options, check_mode: bool) -> None:
        self.options = options
        self.check_mode = check_mode
        self.names = {node.name for node in options.nodes}
        self.steps: list[Step] = []
        self.healed: list[heal.Cure] = []

    async def run(self) -> dict[str, t.Any]:
        async with Fleet(self.options.nodes, self.options.login) as fleet:
            seen = await self._look(fleet)
            before = seen
            todo = await self._plan(fleet, seen)
            if self.check_mode or not (todo.outcome.steps or todo.cures):
                self.steps, self.healed = list(todo.outcome.steps), todo.cures
                return self._result(before, seen, todo)
            try:
                seen, todo = await self._work(fleet, seen)
            except HeadroomError as error:
                raise self._interrupted(error) from error
            return self._result(before, seen, todo)

    def _interrupted(self, error: HeadroomError) -> HeadroomError:
        """Return the failure with what had been begun before it."""
        if not (self.steps or self.healed):
            return error
        plan = [step.as_dict() for step in self.steps]
        result = {"changed": True, "plan": plan, "healed": heal.as_rows(self.healed), **error.result}
        return HeadroomError(str(error), code=error.code, result=result, **error.facts)

    def _declared(self, seen: t.Mapping[str, Seen]) -> dict[str, Seen]:
        return {name: one for name, one in seen.items() if name in self.names}

    async def _look(self, fleet: Fleet) -> dict[str, Seen]:
        """Look at all nodes; where members are to be taken out that own slots, at them as well: their slots may be open."""
        seen = await fleet.look()
        require_all(self._declared(seen))
        if self.options.purge and _invite(fleet, self._declared(seen), range(SLOTS)):
            seen = await fleet.look()
        seen = self._asked(seen)
        require_all(seen)
        return seen

    def _asked(self, seen: t.Mapping[str, Seen]) -> dict[str, Seen]:
        # who is only there to keep the lock has no part in it
        return dict(seen) if self.options.purge else self._declared(seen)

    async def _plan(self, fleet: Fleet, seen: t.Mapping[str, Seen]) -> _Todo:
        options, declared = self.options, self._declared(seen)
        outcome = plan(options.wanted, declared, options.replicas_per_primary, options.allow_same_host, options.purge)
        if outcome.errors:
            rows = [{"code": "cannot_form", "message": text} for text in outcome.errors]
            raise HeadroomError(
                f"Failed to plan the cluster: {outcome.errors[0]}", code="cannot_form", result={"errors": rows[1:]}
            )
        assigned = {slot: step.node for step in outcome.steps if step.action == "assign" for slot in step.slots}
        cures: list[heal.Cure] = []
        owners: dict[int, str] = {}
        # assigning comes first where nobody owns anything
        if slots_of(seen).owners:
            homes, complete = self._homes(declared), not strangers(seen)
            cures, owners = await mend.cures(fleet, seen, homes, complete, assigned)
        owners.update(assigned)
        steps = []
        for step in outcome.steps:
            if step.action == "drain":
                # what is healed first may come to it or leave it
                step = replace(step, slots=tuple(sorted(slot for slot, name in owners.items() if name == step.node)))
                for move in drained(owners, takers(options.wanted, outcome.tree, declared), step.node):
                    owners[move.slot] = move.target
            if step.action != "drain" or step.slots:
                steps.append(step)
        return _Todo(replace(outcome, steps=tuple(steps)), cures, owners)

    def _homes(self, seen: t.Mapping[str, Seen]) -> dict[int, str]:
        """Return where an uncovered slot without any key goes: to the owner of the slot before it."""
        owners = slots_of(seen).owners
        if not owners:
            return {}
        last = owners[max(owners)]
        homes = {}
        for slot in range(SLOTS):
            last = owners.get(slot, last)
            homes[slot] = last
        return homes

    async def _work(self, fleet: Fleet, seen: t.Mapping[str, Seen]) -> tuple[dict[str, Seen], _Todo]:
        slot = key_slot(f"{{{self.options.cluster}}}")
        if blocked(seen, slot):
            await self._found(fleet, slot)
        # the lock may lie at a member that is not declared
        _invite(fleet, await self._look(fleet), [slot])
        lock = Lock(fleet, self.options.cluster, LOCK_TTL_S)
        async with Keeper(lock, uuid.uuid4().hex, self.options.lock_wait_s) as keeper:
            return await self._apply(fleet, keeper)

    async def _found(self, fleet: Fleet, slot: int) -> None:
        """Do what it takes that the slot of the lock is served."""
        if slots_of(await self._look(fleet)).owners:
            await settle(fleet, PATIENCE_S, lambda now: serves(self._asked(now), slot))
        for _turn in range(ROUNDS):
            seen = await self._look(fleet)
            if not blocked(seen, slot):
                break
            todo = await self._plan(fleet, seen)
            first = {"meet", "assign"} if slots_of(seen).owners else {"meet", "assign", "detach"}
            steps = [step for step in todo.outcome.steps if step.action in first]
            cures = mend.urgent(todo.cures, slot)
            if not (steps or cures or stale(seen)):
                break
            self.healed += cures
            await mend.mend(fleet, seen, cures, Limits())
            await self._steps(fleet, seen, steps)
            await settle(fleet, AGREE_S, self._quiet)
        await settle(fleet, AGREE_S, lambda now: serves(self._asked(now), slot))

    async def _apply(self, fleet: Fleet, keeper: Keeper) -> tuple[dict[str, Seen], _Todo]:
        seen = await self._look(fleet)
        if await atomic.finish(fleet, seen):
            await settle(fleet, AGREE_S, self._quiet)
        for _turn in range(ROUNDS):
            keeper.check()
            seen = await self._look(fleet)
            todo = await self._plan(fleet, seen)
            if not todo.outcome.steps and not todo.cures:
                if calm(self._declared(seen)):
                    return seen, todo
                await settle(fleet, AGREE_S, lambda now: calm(self._declared(now)))
                continue
            if todo.cures:
                self.healed += todo.cures
                await mend.mend(fleet, seen, todo.cures, Limits())
            await self._steps(fleet, seen, todo.outcome.steps, todo.outcome.tree)
            await settle(fleet, AGREE_S, self._quiet)
        left = "; ".join(map(str, todo.outcome.steps)) or "the nodes do not agree with each other"
        raise HeadroomError(
            f"Failed to bring the cluster to rest within {ROUNDS} rounds: {left}. Look at the servers' logs and at the bus ports.",
            code="not_at_rest",
            result={"changed": True},
        )

    def _quiet(self, seen: t.Mapping[str, Seen]) -> bool:
        return quiet(self._declared(seen))

    async def _steps(
        self,
        fleet: Fleet,
        seen: t.Mapping[str, Seen],
        steps: t.Sequence[Step],
        tree: t.Mapping[str, str | None] | None = None,
    ) -> None:
        declared = self._declared(seen)
        ids = {name: one.me.id for name, one in declared.items()}
        drains = [step for step in steps if step.action == "drain"]
        weights = takers(self.options.wanted, tree or {}, declared)
        if not slots_of(seen).owners:
            # epochs that differ from the start spare the nodes the collisions
            for number, name in enumerate(sorted(seen), start=1):
                if seen[name].me.config_epoch == 0 and len(seen[name].view.members if seen[name].view else ()) == 1:
                    await fleet.client(name).pipeline([("CLUSTER", "SET-CONFIG-EPOCH", number)])
        wait = False
        for step in steps:
            if step.action == "meet":
                wait = True
                self.steps.append(step)
                node = fleet.nodes[step.node]
                await fleet.client(step.id or "").call("CLUSTER", "MEET", await _address(node), node.port)
        if drains and weights:
            # a replica that is needed elsewhere stays until there is nothing left that it could save
            for step in () if wait else drains:
                self.steps.append(step)
                await self._drain(fleet, step, weights)
            return
        for step in steps:
            if step.action == "detach":
                wait = True
                self.steps.append(step)
                await fleet.client(step.node).call("CLUSTER", "RESET", "SOFT")
            elif step.action == "assign":
                self.steps.append(step)
                pairs = [edge for pair in ranges(step.slots) for edge in pair]
                await fleet.client(step.node).call("CLUSTER", "ADDSLOTSRANGE", *pairs)
        if wait:
            # a node that was just introduced can replicate and forget nobody yet
            return
        replicas = [step for step in steps if step.action == "replicate"]
        for step in replicas:
            self.steps.append(step)
            await fleet.client(step.node).call("CLUSTER", "REPLICATE", ids[step.primary or ""])
        if replicas:
            await self._synced(fleet, [step.node for step in replicas])
        for step in () if drains else steps:
            if step.action == "forget":
                self.steps.append(step)
                await self._forget(fleet, declared, step)

    async def _synced(self, fleet: Fleet, names: t.Sequence[str]) -> None:
        """Wait until replicas have their primary's data."""

        def holds(seen: dict[str, Seen]) -> bool:
            return all(seen[name].info.get("master_link_status") == "up" for name in names)

        seen = await settle(fleet, self.options.sync_wait_s, holds)
        late = [name for name in names if seen[name].info.get("master_link_status") != "up"]
        if late:
            raise HeadroomError(
                f"Failed to replicate to {', '.join(late)} within {self.options.sync_wait_s:g} s. Look at the log of the replica: "
                "the replication login and TLS must fit. Raise sync_wait_s for much data.",
                code="not_synced",
                nodes=late,
                result={"changed": True},
            )

    async def _drain(self, fleet: Fleet, step: Step, weights: t.Mapping[str, float]) -> None:
        """Empty an undeclared member."""
        seen = await self._look(fleet)
        moves = drained(slots_of(seen).owners, weights, step.node)
        ids = {name: one.me.id for name, one in seen.items() if one.me.is_primary}
        size = measure.bytes_per_key(seen)
        await mechanism.Mover(fleet, ids, Limits(), size, lambda slots: None).run(moves)

    async def _forget(self, fleet: Fleet, seen: t.Mapping[str, Seen], step: Step) -> None:
        """Take an undeclared member out of everybody's view, and everybody out of its own."""
        member = strangers(seen).get(step.id or "")
        if member is None:
            return
        await asyncio.gather(*(fleet.client(name).pipeline([("CLUSTER", "FORGET", step.id)]) for name in seen))
        if not gone(member):
            fleet.nodes[step.node] = Node(step.node, member.host, member.port)
            try:
                await fleet.client(step.node).pipeline([("CLUSTER", "RESET", "SOFT")])
            finally:
                fleet.nodes.pop(step.node, None)

    def _result(self, before: t.Mapping[str, Seen], after: t.Mapping[str, Seen], todo: _Todo) -> dict[str, t.Any]:
        changed = bool(self.steps or self.healed)
        done = "would be done" if self.check_mode else "done"
        before, after = self._declared(before), self._declared(after)
        foretold = self.check_mode and changed
        rows = _foretold(after, todo) if foretold else _rows(after)
        forgotten = {step.id for step in self.steps if step.action == "forget"} if foretold else set()
        return {
            "changed": changed,
            "summary": f"{len(self.steps)} steps {done}, {len(self.healed)} slots healed."
            if changed
            else "Nothing to do.",
            "plan": [step.as_dict() for step in self.steps],
            "healed": heal.as_rows(self.healed),
            "nodes": rows,
            "diff": {
                "before": "".join(_lines(_rows(before), before, _alone(before))),
                "after": "".join(_lines(rows, after, set() if foretold else _alone(after), forgotten)),
            },
        }


async def _address(node: Node) -> str:
    """Return the address of a node: MEET takes no name."""
    found = await asyncio.get_running_loop().getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def _invite(fleet: Fleet, seen: t.Mapping[str, Seen], slots: t.Iterable[int]) -> bool:
    """Take the undeclared members that have one of these slots into the fleet, and say whether there are new ones."""
    taken = slots_of(seen).taken
    new = {taken[slot] for slot in slots if slot in taken} - fleet.nodes.keys()
    for member in strangers(seen).values():
        if title(member) in new and not gone(member):
            fleet.nodes[title(member)] = Node(title(member), member.host, member.port)
    return bool(new)


def _rows(seen: t.Mapping[str, Seen]) -> list[dict[str, t.Any]]:
    """Return the nodes as they are."""
    names = {one.me.id: name for name, one in seen.items()}
    return [
        _row(name, one, names.get(one.me.primary_id or ""), one.me.is_primary, one.me.slots)
        for name, one in sorted(seen.items())
    ]


def _foretold(seen: t.Mapping[str, Seen], todo: _Todo) -> list[dict[str, t.Any]]:
    """Return the nodes as they will be."""
    slots: dict[str, list[int]] = {name: [] for name in seen}
    for slot, name in todo.owners.items():
        slots.setdefault(name, []).append(slot)
    tree = todo.outcome.tree
    return [_row(name, one, tree[name], tree[name] is None, slots[name]) for name, one in sorted(seen.items())]


def _row(name: str, one: Seen, primary: str | None, is_primary: bool, slots: t.Collection[int]) -> dict[str, t.Any]:
    return {
        "name": name,
        "id": one.me.id,
        "host": one.node.host,
        "port": one.node.port,
        "role": "primary" if is_primary else "replica",
        "primary": primary,
        "slots": format_slots(slots),
        "slot_count": len(slots),
    }


def _alone(seen: t.Mapping[str, Seen]) -> set[str]:
    """Return the nodes that know nobody and have nothing."""
    return {name for name, one in seen.items() if one.view and len(one.view.members) == 1 and not one.me.slots}


def _lines(
    rows: t.Iterable[dict[str, t.Any]],
    seen: t.Mapping[str, Seen],
    alone: t.Collection[str],
    forgotten: t.Collection[str | None] = (),
) -> list[str]:
    lines = []
    for row in rows:
        if row["name"] in alone:
            lines.append(f"{row['name']}: alone\n")
        elif row["role"] == "replica":
            lines.append(f"{row['name']}: replica of {row['primary'] or 'a member that is not declared'}\n")
        else:
            lines.append(f"{row['name']}: primary of slots {row['slots'] or 'none'}\n")
    taken: dict[str, list[int]] = {}
    for slot, where in slots_of(seen).taken.items():
        taken.setdefault(where, []).append(slot)
    for member in sorted(strangers(seen).values(), key=lambda member: (member.address, member.id)):
        if member.id not in forgotten:
            here = taken.get(title(member))
            lines.append(f"{title(member)}: not declared{f', owns slots {format_slots(here)}' if here else ''}\n")
    return lines
