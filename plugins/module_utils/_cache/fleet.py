# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The servers of a Redis Cluster that own its slots, or one or more servers without a cluster, found by asking the declared nodes."""

from __future__ import annotations

import asyncio
import time
import typing as t

from .._common.errors import HeadroomError
from .._common.redis.client import Client, NodeError, ServerError
from .._common.redis.connection import Login
from .._common.redis.model import SLOTS, Node, format_slots, parse_view

POLL_S = 0.5
# states of a job of Valkey 9 that has ended
_ENDED = {"success", "failed", "canceled", "cancelled"}


class Fleet:
    """Connections to servers, opened when used and closed together. ``owners`` has the primary of each slot, where there are slots."""

    def __init__(self, nodes: t.Sequence[Node], login: Login) -> None:
        """Take the declared nodes and how to log in."""
        self.login = login
        self.primaries: list[Node] = []
        self.owners: dict[int, Node] = {}
        self.clustered = False
        self._nodes = nodes
        self._clients: dict[tuple[str, str], Client] = {}
        self._moving: set[int] = set()
        self._jobs = 0

    async def __aenter__(self) -> Fleet:
        """Return the fleet itself."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.close() for client in self._clients.values()), return_exceptions=True)

    def client(self, node: Node, purpose: str = "") -> Client:
        """Return the connection to a server; each purpose has one of its own."""
        key = (node.address, purpose)
        if key not in self._clients:
            self._clients[key] = Client(node, self.login)
        return self._clients[key]

    async def look(self) -> None:
        """Find the primaries.

        :raises HeadroomError: when no node answers, or not each slot has a primary that answers and says that it is its own.
        """
        seen = await asyncio.gather(*map(self._look, self._nodes), return_exceptions=True)
        known = [one for one in seen if isinstance(one, tuple)]
        failed = [one for one in seen if isinstance(one, BaseException)]
        if not known:
            raise failed[0]
        for error in failed:
            if not isinstance(error, NodeError):
                raise error
        if any(view is None for _node, view, _role in known):
            # without a cluster nobody else knows what a server holds
            if failed:
                raise failed[0]
            if any(view is not None for _node, view, _role in known):
                raise HeadroomError(
                    "Failed to find the primaries: some nodes are part of a cluster and others are not. Declare one or the other.",
                    code="mixed_nodes",
                )
            self.clustered, self.owners = False, {}
            self.primaries = [node for node, _view, role in known if role == "master"]
            if not self.primaries:
                names = ", ".join(node.name for node in self._nodes)
                raise HeadroomError(
                    f"Failed to find a primary among {names}: all of them are replicas. Declare the primary.",
                    code="no_primary",
                )
            return
        await self._look_at_cluster([(node, view) for node, view, _role in known])

    async def _look(self, node: Node) -> tuple[Node, t.Any, str]:
        client = self.client(node, "look")
        info, nodes = await client.pipeline([("INFO", "replication"), ("CLUSTER", "NODES")])
        if isinstance(info, ServerError):
            raise info
        role = next((line[5:].strip() for line in info.splitlines() if line.startswith("role:")), "")
        if isinstance(nodes, ServerError):
            if "cluster support disabled" in nodes.reply or "unknown command" in nodes.reply:
                return node, None, role
            raise nodes
        try:
            return node, parse_view(nodes), role
        except ValueError as error:
            raise NodeError(f"Failed to read CLUSTER NODES of {node.address}: {error}.", node=node.name) from error

    async def _look_at_cluster(self, known: list[tuple[Node, t.Any]]) -> None:
        by_id = {view.me.id: (node, view) for node, view in known}
        # a node that is not declared is asked where the others say that it is
        others = {
            member.id: Node(member.address, member.host, member.port)
            for _node, view in known
            for member in view.members.values()
            if member.is_primary and member.slots and not member.failed and member.id not in by_id
        }
        answers = await asyncio.gather(*map(self._look, others.values()), return_exceptions=True)
        unreached: list[BaseException] = []
        for identifier, answer in zip(others, answers, strict=True):
            if isinstance(answer, tuple):
                by_id[identifier] = (answer[0], answer[1])
            else:
                unreached.append(answer)
        owners: dict[int, Node] = {}
        primaries, moving, asked = [], set(), []
        mine = [
            (node, view) for node, view in by_id.values() if view is not None and view.me.is_primary and view.me.slots
        ]
        # where two say that a slot is theirs, the later one is right
        for node, view in sorted(mine, key=lambda one: one[1].me.config_epoch):
            primaries.append(node)
            owners.update(dict.fromkeys(view.me.slots, node))
            moving.update(view.me.migrating, view.me.importing)
            asked.append(node)
        missing = set(range(SLOTS)) - set(owners)
        if missing:
            if unreached:
                raise unreached[0]
            raise HeadroomError(
                f"Failed to find the primaries: no node that answers owns the slots {format_slots(missing)}. Mend the cluster first.",
                code="slots_missing",
            )
        jobs = await asyncio.gather(*map(self._jobs_of, asked))
        self.clustered, self.owners, self._moving, self._jobs = True, owners, moving, sum(jobs)
        self.primaries = sorted(primaries, key=lambda node: node.name)

    async def _jobs_of(self, node: Node) -> int:
        """Return how many atomic moves of slots a server works on; its SCAN does not show the keys of what it imports."""
        info, jobs = await self.client(node, "look").pipeline([("CLUSTER", "INFO"), ("CLUSTER", "GETSLOTMIGRATIONS")])
        for answer in (info, jobs):
            # a server that has no such jobs says so in another way
            if isinstance(answer, ServerError) and answer.word == "NOPERM":
                raise answer
        active = 0
        if isinstance(info, str):
            for line in info.splitlines():
                if line.startswith("cluster_slot_migration_active_tasks:"):
                    active += int(line.partition(":")[2])
        for job in jobs if isinstance(jobs, list) else []:
            fields = job if isinstance(job, dict) else dict(zip(job[::2], job[1::2], strict=False))
            active += str(fields.get("state", "")) not in _ENDED
        return active

    async def settled(self, patience_s: float) -> None:
        """Look until no slot is on the move.

        :raises HeadroomError: when one still is after so many seconds.
        """
        deadline = time.monotonic() + patience_s
        while True:
            await self.look()
            if not self._moving and not self._jobs:
                return
            if time.monotonic() >= deadline:
                what = f"slots {format_slots(self._moving)}" if self._moving else f"{self._jobs} jobs"
                raise HeadroomError(
                    f"Failed to wait for the slots in migration: after {patience_s:g} s {what} are still on the move, and a SCAN may miss "
                    "their keys. Let redis_cluster_rebalance end or mend it, or raise migration_wait_s.",
                    code="migrating",
                )
            await asyncio.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))

    @property
    def layout(self) -> t.Any:
        """What must be the same before and after a SCAN, so that it has seen every key."""
        return (
            self.clustered,
            {slot: node.address for slot, node in self.owners.items()},
            # without a cluster nobody owns slots, and servers fail over all the same
            sorted(node.address for node in self.primaries),
            bool(self._moving or self._jobs),
        )
