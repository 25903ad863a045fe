# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Hand a shard over from its primary to its most caught-up replica, and prove that the replica has everything."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass

from .._common.argspec import ArgumentSpec
from .._common.errors import HeadroomError, OptionError
from .._common.redis.connection import Login, nodes_spec, parse_nodes
from .._common.redis.model import Node
from .observe import Fleet, settle
from .state import Seen, calm, require_all

MAX_BEHIND_BYTES = 1 << 20


def failover_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    own = ArgumentSpec({"away_from": {"type": "str", "required": True}, "wait_s": {"type": "float", "default": 30.0}})
    return nodes_spec().merge(own)


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    nodes: tuple[Node, ...]
    login: Login
    away_from: str
    wait_s: float = 30.0


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    nodes = parse_nodes(params["nodes"])
    names = [node.name for node in nodes]
    if params["away_from"] not in names:
        raise OptionError("away_from", params["away_from"], f"give the name of one of the nodes: {', '.join(names)}.")
    if not 1 <= params["wait_s"] <= 3600:
        raise OptionError("wait_s", params["wait_s"], "give a number of seconds from 1 to 3600.")
    return Options(nodes, Login.from_params(params), params["away_from"], params["wait_s"])


def offset(one: Seen) -> int:
    """Return how much of the replication stream a node has, in bytes."""
    return one.number("master_repl_offset") if one.me.is_primary else one.number("slave_repl_offset")


def best(seen: t.Mapping[str, Seen], primary: str) -> str | None:
    """Return the replica of a primary that is connected and has most of its stream; a tie goes to the first name."""
    replicas = [
        name
        for name, one in sorted(seen.items())
        if one.view is not None
        and one.me.primary_id == seen[primary].me.id
        and one.info.get("master_link_status") == "up"
        and one.info.get("master_sync_in_progress") == "0"
    ]
    return max(replicas, key=lambda name: offset(seen[name]), default=None)


def fail_over(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Make ``away_from`` a replica if it is a primary, and return what was seen."""
    return asyncio.run(_fail_over(options, check_mode))


async def _fail_over(options: Options, check_mode: bool) -> dict[str, t.Any]:
    async with Fleet(options.nodes, options.login) as fleet:
        seen = await fleet.look()
        require_all(seen)
        former = options.away_from
        names = {one.me.id: name for name, one in seen.items()}
        if not seen[former].me.is_primary:
            primary = names.get(seen[former].me.primary_id or "", seen[former].me.primary_id)
            return _result(False, former, primary, f"{former} is a replica of {primary} already.", None, None)
        if not seen[former].me.slots:
            return _result(False, former, former, f"{former} owns no slot: nobody depends on it.", None, None)
        # a node that is to join later has no part in it
        shown = seen[former].view
        members = {one.me.id for one in seen.values()} & (shown.members.keys() if shown else set())

        def parts(now: dict[str, Seen]) -> dict[str, Seen]:
            return {name: one for name, one in now.items() if one.view is None or one.me.id in members}

        seen = parts(await settle(fleet, options.wait_s, lambda now: _ready(parts(now), former)))
        require_all(seen)
        heir = best(seen, former)
        if heir is None or offset(seen[former]) - offset(seen[heir]) > MAX_BEHIND_BYTES:
            behind = "" if heir is None else f": {heir} is {offset(seen[former]) - offset(seen[heir])} bytes behind"
            raise HeadroomError(
                f"Failed to fail over from {former}: no replica is connected and caught up within {options.wait_s:g} s{behind}. "
                "Look at the shard's replicas.",
                code="no_candidate",
                node=former,
            )
        if check_mode:
            return _result(True, former, heir, f"{heir} would take over from {former}.", None, None)
        reached = offset(seen[former])
        started = time.monotonic()
        # the primary holds its clients back until the replica has everything: nothing acknowledged is lost
        await fleet.client(heir).call("CLUSTER", "FAILOVER")
        after = parts(await settle(fleet, options.wait_s, lambda now: _handed_over(parts(now), former, heir)))
        if not _handed_over(after, former, heir):
            raise HeadroomError(
                f"Failed to fail over from {former} to {heir} within {options.wait_s:g} s: the roles did not change. "
                "Look at the servers' logs and run it again.",
                code="not_handed_over",
                node=former,
            )
        took_s = round(time.monotonic() - started, 3)
        arrived = offset(after[heir])
        if arrived < reached:
            raise HeadroomError(
                f"Failed to prove the failover from {former} to {heir}: it is at {arrived}, the former primary was at {reached}. "
                "Compare their data before going on.",
                code="behind",
                node=heir,
                result={"changed": True},
            )
        return _result(True, former, heir, f"{heir} took over from {former} in {took_s} s.", took_s, arrived - reached)


def _ready(seen: t.Mapping[str, Seen], primary: str) -> bool:
    if not calm(seen):
        return False
    heir = best(seen, primary)
    return heir is not None and offset(seen[primary]) - offset(seen[heir]) <= MAX_BEHIND_BYTES


def _handed_over(seen: t.Mapping[str, Seen], former: str, heir: str) -> bool:
    if seen[former].error or seen[heir].error:
        return False
    return (
        seen[heir].me.is_primary
        and seen[former].me.primary_id == seen[heir].me.id
        and seen[former].info.get("master_link_status") == "up"
        and calm(seen)
    )


def _result(
    changed: bool, former: str, primary: str | None, summary: str, took_s: float | None, ahead: int | None
) -> dict[str, t.Any]:
    before = former if changed else primary
    return {
        "changed": changed,
        "primary": primary,
        "summary": summary,
        "took_s": took_s,
        "ahead_bytes": ahead,
        "diff": {"before": f"primary: {before}\n", "after": f"primary: {primary}\n"},
    }
