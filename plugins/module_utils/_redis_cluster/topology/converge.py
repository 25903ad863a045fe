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
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..._common.redis.connection import Login, nodes_spec, parse_nodes
from ..._common.redis.model import SLOTS, Node, format_slots, key_slot, ranges
from ..lock import Keeper, Lock
from ..observe import Fleet, settle
from ..rebalance import atomic, heal, measure, mechanism, mend
from ..rebalance import plan as slots_plan
from ..rebalance.guard import Limits
from ..state import Seen, calm, require_all, slots_of
from .plan import Outcome, Step, Wanted, plan, strangers

ROUNDS = 8
AGREE_S = 20.0
SYNC_S = 120.0
LOCK_TTL_S = 30.0


def cluster_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    own = ArgumentSpec(
        {
            "replicas_per_primary": {"type": "int", "default": 1},
            "allow_same_host": {"type": "bool", "default": False},
            "purge": {"type": "bool", "default": False},
            "cluster": {"type": "str", "default": "redis"},
            "lock_wait_s": {"type": "float", "default": 0.0},
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
    for option in ("lock_wait_s", "sync_wait_s"):
        if not 0 <= params[option] <= 86400:
            raise OptionError(option, params[option], "give a number of seconds from 0 to 86400.")
    cluster = params["cluster"]
    if not cluster.strip() or not cluster.isprintable() or any(sign in cluster for sign in "{}/"):
        raise OptionError("cluster", cluster, "give a printable name without braces and slashes.")
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
        cluster=cluster,
        lock_wait_s=params["lock_wait_s"],
        sync_wait_s=params["sync_wait_s"],
    )


def converge(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring the nodes to the declared cluster and return what was seen and done."""
    return asyncio.run(_Run(options, check_mode).run())


class _Run:
    def __init__(self, options: Options, check_mode: bool) -> None:
        self.options = options
        self.check_mode = check_mode
        self.steps: list[Step] = []
        self.healed: list[heal.Cure] = []

    async def run(self) -> dict[str, t.Any]:
        async with Fleet(self.options.nodes, self.options.login) as fleet:
            seen = await fleet.look()
            require_all(seen)
            before = seen
            outcome, cures = await self._plan(fleet, seen)
            if self.check_mode or not (outcome.steps or cures):
                self.steps, self.healed = list(outcome.steps), cures
                return self._result(before, seen, outcome)
            # before there are slots there is no place for a lock, and nothing to lose
            slot = key_slot(f"{{{self.options.cluster}}}")
            if slot in slots_of(seen).owners:
                lock = Lock(fleet, self.options.cluster, LOCK_TTL_S)
                async with Keeper(lock, uuid.uuid4().hex, self.options.lock_wait_s) as keeper:
                    seen, outcome = await self._apply(fleet, keeper)
            else:
                seen, outcome = await self._apply(fleet, None)
            return self._result(before, seen, outcome)

    async def _plan(self, fleet: Fleet, seen: t.Mapping[str, Seen]) -> tuple[Outcome, list[heal.Cure]]:
        options = self.options
        outcome = plan(options.wanted, seen, options.replicas_per_primary, options.allow_same_host, options.purge)
        if outcome.errors:
            rows = [{"code": "cannot_form", "message": text} for text in outcome.errors]
            raise HeadroomError(
                f"Failed to plan the cluster: {outcome.errors[0]}", code="cannot_form", result={"errors": rows[1:]}
            )
        # assigning comes first where nobody owns anything
        if not slots_of(seen).owners:
            return outcome, []
        found, _owners = await mend.cures(fleet, seen, self._homes(seen), complete=not strangers(seen))
        return outcome, found

    def _homes(self, seen: t.Mapping[str, Seen]) -> dict[int, str]:
        """Return where an uncovered slot without any key goes: to the owner of the slot before it."""
        owners = slots_of(seen).owners
        last = owners[max(owners)]
        homes = {}
        for slot in range(SLOTS):
            last = owners.get(slot, last)
            homes[slot] = last
        return homes

    async def _apply(self, fleet: Fleet, keeper: Keeper | None) -> tuple[dict[str, Seen], Outcome]:
        seen = await fleet.look()
        if await atomic.finish(fleet, seen):
            seen = await settle(fleet, AGREE_S, self._quiet)
        for _turn in range(ROUNDS):
            if keeper is not None:
                keeper.check()
            require_all(seen)
            outcome, cures = await self._plan(fleet, seen)
            if not outcome.steps and not cures:
                if calm(seen):
                    return seen, outcome
                seen = await settle(fleet, AGREE_S, calm)
                continue
            if cures:
                self.healed += cures
                await mend.mend(fleet, seen, cures, Limits())
            await self._steps(fleet, seen, outcome.steps)
            seen = await settle(fleet, AGREE_S, self._quiet)
        left = "; ".join(map(str, outcome.steps)) or "the nodes do not agree with each other"
        raise HeadroomError(
            f"Failed to bring the cluster to rest within {ROUNDS} rounds: {left}. Look at the servers' logs and at the bus ports.",
            code="not_at_rest",
            result={"changed": True, "plan": [step.as_dict() for step in self.steps]},
        )

    def _quiet(self, seen: t.Mapping[str, Seen]) -> bool:
        """Say whether the nodes know each other as far as they were introduced, so that the next steps can be planned."""
        if any(one.error is not None or one.view is None for one in seen.values()):
            return False
        ids = {one.me.id for one in seen.values()}
        for one in seen.values():
            members = one.view.members if one.view else {}
            if any("handshake" in member.flags for member in members.values()):
                return False
            if len(members) > 1 and not ids <= set(members):
                return False
        return calm(seen) or not slots_of(seen).owners

    async def _steps(self, fleet: Fleet, seen: t.Mapping[str, Seen], steps: t.Sequence[Step]) -> None:
        ids = {name: one.me.id for name, one in seen.items()}
        meets = [step for step in steps if step.action == "meet"]
        first = [step for step in steps if step.action in ("meet", "detach", "assign")]
        if not slots_of(seen).owners:
            # epochs that differ from the start spare the nodes the collisions
            for number, name in enumerate(sorted(seen), start=1):
                if seen[name].me.config_epoch == 0 and len(seen[name].view.members if seen[name].view else ()) == 1:
                    await fleet.client(name).pipeline([("CLUSTER", "SET-CONFIG-EPOCH", number)])
        for step in first:
            self.steps.append(step)
            if step.action == "assign":
                pairs = [edge for pair in ranges(step.slots) for edge in pair]
                await fleet.client(step.node).call("CLUSTER", "ADDSLOTSRANGE", *pairs)
            elif step.action == "detach":
                await fleet.client(step.node).call("CLUSTER", "RESET", "SOFT")
            else:
                node = fleet.nodes[step.node]
                await fleet.client(step.id or "").call("CLUSTER", "MEET", await _address(node), node.port)
        if meets or any(step.action == "detach" for step in first):
            # a node that was just introduced can replicate and forget nobody yet
            return
        replicas = [step for step in steps if step.action == "replicate"]
        for step in replicas:
            self.steps.append(step)
            await fleet.client(step.node).call("CLUSTER", "REPLICATE", ids[step.primary or ""])
        if replicas:
            await self._synced(fleet, [step.node for step in replicas])
        for step in steps:
            if step.action in ("drain", "forget"):
                self.steps.append(step)
                await self._leave(fleet, seen, step)

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
                result={"changed": True, "plan": [step.as_dict() for step in self.steps]},
            )

    async def _leave(self, fleet: Fleet, seen: t.Mapping[str, Seen], step: Step) -> None:
        """Empty an undeclared member, or take it out of everybody's view."""
        member = strangers(seen).get(step.id or "")
        if member is None:
            return
        alive = not member.failed and "noaddr" not in member.flags
        if alive:
            fleet.nodes[step.node] = Node(step.node, member.host, member.port)
        try:
            if step.action == "drain":
                wider = {**seen, step.node: (await fleet.look())[step.node]}
                require_all(wider)
                given = {node.name: 1.0 if node.weight is None else node.weight for node in self.options.wanted}
                weights = {name: given.get(name, 0.0) for name, one in wider.items() if one.me.is_primary}
                mine = dict.fromkeys(step.slots, step.node)
                moves = slots_plan.plan({**slots_of(wider).owners, **mine}, weights, threshold=1.0).moves
                moves = tuple(move for move in moves if move.source == step.node)
                ids = {name: wider[name].me.id for name in weights}
                size = measure.bytes_per_key(wider)
                await mechanism.Mover(fleet, ids, Limits(), size, lambda slots: None).run(moves)
                return
            await asyncio.gather(
                *(fleet.client(name).pipeline([("CLUSTER", "FORGET", step.id)]) for name in seen if name in fleet.nodes)
            )
            if alive:
                await fleet.client(step.node).pipeline([("CLUSTER", "RESET", "SOFT")])
        finally:
            fleet.nodes.pop(step.node, None)

    def _result(self, before: t.Mapping[str, Seen], after: t.Mapping[str, Seen], outcome: Outcome) -> dict[str, t.Any]:
        changed = bool(self.steps or self.healed)
        wanted = _lines_of(outcome.tree, self.steps, after) if self.check_mode and changed else _lines(after)
        done = "would be done" if self.check_mode else "done"
        return {
            "changed": changed,
            "summary": f"{len(self.steps)} steps {done}, {len(self.healed)} slots healed."
            if changed
            else "Nothing to do.",
            "plan": [step.as_dict() for step in self.steps],
            "healed": heal.as_rows(self.healed),
            "nodes": _rows(after, outcome.tree if self.check_mode else None),
            "diff": {"before": "".join(_lines(before)), "after": "".join(wanted)},
        }


async def _address(node: Node) -> str:
    """Return the address of a node: MEET takes no name."""
    found = await asyncio.get_running_loop().getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def _rows(seen: t.Mapping[str, Seen], tree: t.Mapping[str, str | None] | None) -> list[dict[str, t.Any]]:
    names = {one.me.id: name for name, one in seen.items()}
    rows = []
    for name, one in sorted(seen.items()):
        primary = names.get(one.me.primary_id or "") if tree is None else tree.get(name)
        rows.append(
            {
                "name": name,
                "id": one.me.id,
                "host": one.node.host,
                "port": one.node.port,
                "role": "replica" if primary else "primary",
                "primary": primary,
                "slots": format_slots(one.me.slots),
                "slot_count": len(one.me.slots),
            }
        )
    return rows


def _lines(seen: t.Mapping[str, Seen]) -> list[str]:
    lines = []
    for row in _rows(seen, None):
        view = seen[row["name"]].view
        if view is not None and len(view.members) == 1 and not row["slot_count"]:
            lines.append(f"{row['name']}: alone\n")
        elif row["role"] == "replica":
            lines.append(f"{row['name']}: replica of {row['primary']}\n")
        else:
            lines.append(f"{row['name']}: primary of slots {row['slots'] or 'none'}\n")
    for member in sorted(strangers(seen).values(), key=lambda member: member.address):
        lines.append(f"{member.address}: not declared\n")
    return lines


def _lines_of(tree: t.Mapping[str, str | None], steps: t.Sequence[Step], seen: t.Mapping[str, Seen]) -> list[str]:
    """Return what the lines will be once the steps are done."""
    assigned = {step.node: step.slots for step in steps if step.action == "assign"}
    lines = []
    for name, primary in sorted(tree.items()):
        if primary is not None:
            lines.append(f"{name}: replica of {primary}\n")
        else:
            lines.append(
                f"{name}: primary of slots {format_slots(assigned.get(name, seen[name].me.slots)) or 'none'}\n"
            )
    gone = {step.id for step in steps if step.action == "forget"}
    for member in sorted(strangers(seen).values(), key=lambda member: member.address):
        if member.id not in gone:
            lines.append(f"{member.address}: not declared\n")
    return lines
