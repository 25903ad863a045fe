# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Look at every node of a cluster at once. Changes nothing."""

from __future__ import annotations

import asyncio
import types
import typing as t

from .._common.redis.client import Client, NodeError
from .._common.redis.connection import Login
from .._common.redis.model import Node, parse_info, parse_view
from .state import Seen, keys_of


class Fleet:
    """Connections to the nodes of one cluster, opened when used and closed together."""

    def __init__(self, nodes: t.Iterable[Node], login: Login) -> None:
        """Take the nodes and how to log in."""
        self.login = login
        self.nodes = {node.name: node for node in nodes}
        self._clients: dict[tuple[str, str], Client] = {}

    async def __aenter__(self) -> Fleet:
        """Return the fleet itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.close() for client in self._clients.values()), return_exceptions=True)

    def client(self, name: str, purpose: str = "") -> Client:
        """Return the connection to a node; each purpose has one of its own."""
        if (name, purpose) not in self._clients:
            self._clients[name, purpose] = Client(self.nodes[name], self.login)
        return self._clients[name, purpose]

    async def look(self) -> dict[str, Seen]:
        """Look at all nodes at once; one that cannot be read carries its error."""
        return dict(zip(self.nodes, await asyncio.gather(*map(self._look, self.nodes)), strict=True))

    async def _look(self, name: str) -> Seen:
        node = self.nodes[name]
        try:
            answers = await self.client(name).pipeline([("INFO",), ("CLUSTER", "NODES"), ("CLUSTER", "INFO")])
        except NodeError as error:
            return Seen(node, error=error)
        if isinstance(answers[0], NodeError):
            return Seen(node, error=answers[0])
        info = parse_info(answers[0])
        if info.get("cluster_enabled") != "1":
            return Seen(node, info=info, keys=keys_of(info))
        for answer in answers:
            if isinstance(answer, NodeError):
                return Seen(node, error=answer)
        info.update(parse_info(answers[2]))
        try:
            return Seen(node, parse_view(answers[1]), info, keys_of(info))
        except ValueError as error:
            failure = NodeError(f"Failed to read CLUSTER NODES of {node.address}: {error}.", node=name)
            return Seen(node, info=info, error=failure)


async def settle(fleet: Fleet, patience_s: float, holds: t.Callable[[dict[str, Seen]], bool]) -> dict[str, Seen]:
    """Look until something holds, for a bounded time, and return the last look."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while True:
        seen = await fleet.look()
        if holds(seen) or asyncio.get_running_loop().time() >= deadline:
            return seen
        await asyncio.sleep(0.2)
