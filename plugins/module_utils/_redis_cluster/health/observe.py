# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Look at all nodes of a cluster at once: one event loop, read only, every node within its own time limit.

First every node tells all it knows in one exchange. Then each primary's offset is read again, and its replicas are asked
whether they are past it: so a slow node does not look like a lagging one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import typing as t

from ..._common.redis.client import Client, NodeError, ServerError
from ..._common.redis.connection import Login
from ..._common.redis.model import Node, parse_info, parse_view
from .model import PRIMARY, REPLICA, SETTINGS, Fault, Lag, NodeFacts, parse_replicas

CATCH_UP_S = 1.0
"""Longest time that a replica is given to get past its primary's offset before it counts as behind."""
POLL_S = (0.01, 0.2)
"""First and longest pause between two polls of a replica."""

_COMMANDS: dict[str, tuple[str, ...]] = {
    "INFO": ("INFO",),
    "CLUSTER NODES": ("CLUSTER", "NODES"),
    "CLUSTER INFO": ("CLUSTER", "INFO"),
    "CONFIG GET": ("CONFIG", "GET", *SETTINGS),
    "SLOWLOG GET": ("SLOWLOG", "GET", "1"),
    "LATENCY LATEST": ("LATENCY", "LATEST"),
}


def observe(nodes: t.Sequence[Node], login: Login) -> dict[str, NodeFacts]:
    """Look at all nodes once and return their facts by name; no node's trouble raises."""
    return asyncio.run(_observe(nodes, login))


async def _observe(nodes: t.Sequence[Node], login: Login) -> dict[str, NodeFacts]:
    clients = {node.name: Client(node, login) for node in nodes}
    try:
        facts = {one.name: one for one in await asyncio.gather(*map(_look, clients.values()))}
        ids = {one.view.me.id: name for name, one in facts.items() if one.view and one.role == PRIMARY}
        shards: dict[str, list[str]] = {}
        for name, one in facts.items():
            primary = ids.get(one.view.me.primary_id or "") if one.view and one.role == REPLICA else None
            if primary is not None:
                shards.setdefault(primary, []).append(name)
        lags = await asyncio.gather(*(_compare(clients, facts, *shard) for shard in shards.items()))
        for found in lags:
            for name, lag in found.items():
                facts[name] = dataclasses.replace(facts[name], lag=lag)
        return facts
    finally:
        await asyncio.gather(*(client.close() for client in clients.values()), return_exceptions=True)


async def _look(client: Client) -> NodeFacts:
    name, addresses = client.node.name, asyncio.ensure_future(_addresses(client))
    try:
        answers = dict(zip(_COMMANDS, await client.pipeline(list(_COMMANDS.values())), strict=True))
    except NodeError as error:
        return NodeFacts(name, fault=Fault(error.code, str(error)), addresses=await addresses)
    return read(name, answers, await addresses)


def read(name: str, answers: t.Mapping[str, t.Any], addresses: tuple[str, ...] = ()) -> NodeFacts:
    """Return the facts that a node's answers, by command, tell; what cannot be read is in ``not_read``."""
    readers: dict[str, tuple[str, t.Callable[[t.Any], t.Any]]] = {
        "INFO": ("info", parse_info),
        "CLUSTER NODES": ("view", parse_view),
        "CLUSTER INFO": ("cluster", parse_info),
        "CONFIG GET": ("config", lambda flat: dict(zip(flat[::2], flat[1::2], strict=True))),
        # of an entry its number alone: what follows are the arguments of somebody's command
        "SLOWLOG GET": ("slowlog_id", lambda entries: int(entries[0][0]) if entries else -1),
        "LATENCY LATEST": ("latency_ms", lambda events: {event[0]: int(event[3]) for event in events}),
    }
    found: dict[str, t.Any] = {}
    not_read: dict[str, str] = {}
    for command, (field, reader) in readers.items():
        answer = answers.get(command)
        try:
            if isinstance(answer, ServerError):
                not_read[command] = answer.reply
            else:
                found[field] = reader(answer)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            not_read[command] = f"the answer is not understood: {error}"
    return NodeFacts(name, addresses=addresses, not_read=not_read, **found)


async def _addresses(client: Client) -> tuple[str, ...]:
    """Return the addresses of a node's host, by which others know it; none when that takes too long."""
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(
            loop.getaddrinfo(client.node.host, None, type=socket.SOCK_STREAM), client.login.timeout_s
        )
    except (OSError, UnicodeError):
        return ()
    return tuple(sorted({str(entry[4][0]) for entry in found}))


async def _compare(
    clients: t.Mapping[str, Client], facts: t.Mapping[str, NodeFacts], primary: str, replicas: t.Sequence[str]
) -> dict[str, Lag | None]:
    """Return the lag of a primary's replicas; ``None`` where it cannot be told."""
    info = await _replication(clients[primary])
    begun = asyncio.get_running_loop().time()
    if info is None or not info.get("master_repl_offset", "").isdigit():
        return {}
    acks = parse_replicas(info)

    async def one(name: str) -> Lag | None:
        view, client = facts[name].view, clients[name]
        seen = [view.me.address if view else "", client.node.address]
        seen += [f"{address}:{client.node.port}" for address in facts[name].addresses]
        ack = next((acks[address].get("lag", "") for address in seen if address in acks), "")
        return await _catch_up(client, info, begun, int(ack) if ack.isdigit() else None)

    return dict(zip(replicas, await asyncio.gather(*map(one, replicas)), strict=True))


async def _catch_up(client: Client, primary: t.Mapping[str, str], begun: float, ack_age_s: int | None) -> Lag | None:
    loop = asyncio.get_running_loop()
    target = int(primary["master_repl_offset"])
    first: int | None = None
    pause_s = POLL_S[0]
    while True:
        info = await _replication(client)
        # another history: the offsets of the two say nothing of each other
        if info is None or info.get("master_replid") != primary.get("master_replid"):
            return None
        offset = info.get("slave_repl_offset", "")
        if not offset.isdigit():
            return None
        first = int(offset) if first is None else first
        now_s = loop.time() - begun
        caught_up = int(offset) >= target
        if caught_up or now_s >= CATCH_UP_S or info.get("master_link_status") != "up":
            last_io = info.get("master_last_io_seconds_ago", "")
            return Lag(
                primary_offset=target,
                replica_offset=first,
                caught_up_s=now_s if caught_up else None,
                window_s=now_s,
                last_io_s=int(last_io) if last_io.isdigit() else None,
                ack_age_s=ack_age_s,
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_S[1])


async def _replication(client: Client) -> dict[str, str] | None:
    try:
        return parse_info(await client.call("INFO", "replication", timeout_s=min(CATCH_UP_S, client.login.timeout_s)))
    except NodeError:
        return None
