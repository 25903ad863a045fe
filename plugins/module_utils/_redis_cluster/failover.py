# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Hand a shard over from its primary to its most caught-up replica, and prove that the replica has everything."""

from __future__ import annotations

import asyncio
import time
import typing as t
import uuid
from dataclasses import dataclass

from .._common.argspec import ArgumentSpec
from .._common.errors import HeadroomError, OptionError
from .._common.redis.client import ServerError
from .._common.redis.connection import Login, nodes_spec, parse_nodes
from .._common.redis.model import Node, format_slots
from .lock import Keeper, Lock, check_keeper, keeper_options
from .observe import Fleet, settle
from .state import Seen, calm, require_all, slots_of

MAX_BEHIND_BYTES = 1 << 20
LOCK_TTL_S = 30.0


def failover_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    own = ArgumentSpec(
        {
            "away_from": {"type": "str", "required": True},
            "wait_s": {"type": "float", "default": 30.0},
            **keeper_options(),
        }
    )
    return nodes_spec().merge(own)


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    nodes: tuple[Node, ...]
    login: Login
    away_from: str
    wait_s: float = 30.0
    cluster: str = "redis"
    lock_wait_s: float = 0.0


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
    check_keeper(params)
    login = Login.from_params(params)
    return Options(nodes, login, params["away_from"], params["wait_s"], params["cluster"], params["lock_wait_s"])


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
        idle = _idle(seen, options.away_from)
        if idle is not None:
            return idle
        if check_mode:
            heir, _seen = await _heir(fleet, options, seen)
            return _result(
                True, options.away_from, heir, f"{heir} would take over from {options.away_from}.", None, None
            )
        # to be refused soon is better than to wait for the lock first
        _require_still(_among(seen, _members(seen, options.away_from)), options.away_from)
        lock = Lock(fleet, options.cluster, LOCK_TTL_S)
        async with Keeper(lock, uuid.uuid4().hex, options.lock_wait_s) as keeper:
            # whoever had the lock may have done it
            seen = await fleet.look()
            require_all(seen)
            idle = _idle(seen, options.away_from)
            if idle is not None:
                return idle
            heir, seen = await _heir(fleet, options, seen)
            keeper.check()
            return await _hand_over(fleet, options, seen, heir)


def _idle(seen: t.Mapping[str, Seen], former: str) -> dict[str, t.Any] | None:
    """Return the result where there is nothing to do, else None."""
    names = {one.me.id: name for name, one in seen.items()}
    if not seen[former].me.is_primary:
        primary = names.get(seen[former].me.primary_id or "", seen[former].me.primary_id)
        return _result(False, former, primary, f"{former} is a replica of {primary} already.", None, None)
    if not seen[former].me.slots:
        return _result(False, former, former, f"{former} owns no slot: nobody depends on it.", None, None)
    return None


def _members(seen: t.Mapping[str, Seen], former: str) -> set[str]:
    """Return the ids of those that are in the cluster; a node that is to join later has no part in it."""
    view = seen[former].view
    return {one.me.id for one in seen.values() if one.view is not None} & (view.members.keys() if view else set())


def _among(seen: t.Mapping[str, Seen], members: t.AbstractSet[str]) -> dict[str, Seen]:
    return {name: one for name, one in seen.items() if one.view is None or one.me.id in members}


def moving(seen: t.Mapping[str, Seen], former: str) -> dict[str, list[int]]:
    """Return, by the other node's name, the slots that are on the move from or to a primary, by the word of any node."""
    shard = {former, *(name for name, one in seen.items() if one.view and one.me.primary_id == seen[former].me.id)}
    slots = slots_of(seen)
    found: dict[str, set[int]] = {}
    for marks in (slots.migrating, slots.importing):
        for slot, ends in marks.items():
            for pair in ends.items():
                if shard.intersection(pair):
                    other = next((name for name in pair if name not in shard), former)
                    found.setdefault(other, set()).add(slot)
    return {name: sorted(found[name]) for name in sorted(found)}


def _require_still(seen: t.Mapping[str, Seen], former: str) -> None:
    """Require that no slot of the shard is on the move.

    :raises HeadroomError: naming the slots. A replica knows nothing of the move: it would own slots whose keys are elsewhere.
    """
    found = moving(seen, former)
    if found:
        slots = sorted({slot for some in found.values() for slot in some})
        raise HeadroomError(
            f"Failed to fail over from {former}: slots {format_slots(slots)} are on the move between {former} and "
            f"{', '.join(found)}, and its replica would not find the keys that have moved. "
            "Close them with the module redis_cluster, or let the rebalance that moves them end.",
            code="open_slots",
            node=former,
            slots=slots,
        )


async def _heir(fleet: Fleet, options: Options, seen: t.Mapping[str, Seen]) -> tuple[str, dict[str, Seen]]:
    """Wait until a replica can take over and return its name with what was seen then.

    :raises HeadroomError: when none can, or slots of the shard are on the move.
    """
    former = options.away_from
    members = _members(seen, former)
    _require_still(_among(seen, members), former)
    now = _among(await settle(fleet, options.wait_s, lambda now: _ready(_among(now, members), former)), members)
    require_all(now)
    _require_still(now, former)
    heir = best(now, former)
    if heir is None or offset(now[former]) - offset(now[heir]) > MAX_BEHIND_BYTES:
        behind = "" if heir is None else f": {heir} is {offset(now[former]) - offset(now[heir])} bytes behind"
        raise HeadroomError(
            f"Failed to fail over from {former}: no replica is connected and caught up within {options.wait_s:g} s{behind}. "
            "Look at the shard's replicas.",
            code="no_candidate",
            node=former,
        )
    return heir, now


async def _hand_over(fleet: Fleet, options: Options, seen: dict[str, Seen], heir: str) -> dict[str, t.Any]:
    former = options.away_from
    members = {one.me.id for one in seen.values()}
    reached = offset(seen[former])
    started = time.monotonic()
    try:
        # the primary holds its clients back until the replica has everything: nothing acknowledged is lost
        await fleet.client(heir).call("CLUSTER", "FAILOVER")
        done = await settle(fleet, options.wait_s, lambda now: _handed_over(_among(now, members), former, heir))
        after = _among(done, members)
        if not _handed_over(after, former, heir):
            raise HeadroomError(
                f"Failed to fail over from {former} to {heir} within {options.wait_s:g} s: the roles did not change as "
                "they should. Look at the servers' logs and run it again.",
                code="not_handed_over",
                node=former,
            )
    except ServerError:
        # it was not begun
        raise
    except HeadroomError as error:
        # it may have been done all the same
        raise HeadroomError(
            str(error), code=error.code, result={"changed": True, **error.result}, **error.facts
        ) from error
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
