# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Close what somebody left open, and give slots without an owner to the node that has their data."""

from __future__ import annotations

import asyncio
import typing as t
from dataclasses import replace

from ..._common.errors import HeadroomError
from ..._common.redis.model import format_slots
from ..observe import Fleet
from ..state import Seen, Slots, gone, slots_of, stale, strangers, title
from . import heal, measure, migrate
from .guard import Limits
from .plan import Move


async def cures(
    fleet: Fleet,
    seen: t.Mapping[str, Seen],
    homes: t.Mapping[int, str] | None = None,
    complete: bool = False,
    apart: t.Collection[int] = (),
) -> tuple[list[heal.Cure], dict[int, str]]:
    """Return what open, disputed and uncovered slots need, and who will own what once that is done.

    :param apart: slots that are seen to otherwise.
    :raises HeadroomError: when the data does not say whose a slot is.
    """
    slots = slots_of(seen)
    if apart:
        slots = replace(slots, taken={**slots.taken, **dict.fromkeys(apart, "another step")})
    ill = sorted({*slots.open, *slots.disputed, *slots.uncovered})
    owners = dict(slots.owners)
    if not ill:
        return [], owners
    _require_asked(slots, seen)
    primaries = [name for name, one in seen.items() if one.me.is_primary]
    holders = await migrate.count_keys(fleet, primaries, ill)
    found = heal.cures(slots, holders, homes, complete)
    stuck = [cure.slot for cure in found if cure.action == "stuck"]
    if stuck:
        none = set(slots.uncovered)
        uncovered = [slot for slot in stuck if slot in none and not holders[slot]]
        if not uncovered:
            raise migrate.stuck(stuck, holders)
        raise HeadroomError(
            f"Failed to find an owner of slots {format_slots(uncovered)}: they have none, and no node that answers holds keys "
            "of them. Bring back the node that had them, or assign them with the module redis_cluster.",
            code="uncovered",
            slots=uncovered,
        )
    for cure in found:
        owner = cure.target if cure.action == "carry" else cure.source
        if owner is not None:
            owners[cure.slot] = owner
    return found, owners


def _require_asked(slots: Slots, seen: t.Mapping[str, Seen]) -> None:
    """Require that whoever may have keys of the slots was asked for them.

    :raises HeadroomError: naming a member that was not.
    """
    taken = [slot for slot in slots.open if slot in slots.taken]
    others = sorted(title(member) for member in strangers(seen).values() if member.is_primary and not gone(member))
    open_ = sorted({*slots.uncovered, *slots.disputed})
    if taken:
        where, ill = slots.taken[taken[0]], taken
        what = "owns them, and they are on the move"
    elif open_ and others:
        where, ill = others[0], open_
        what = "may hold keys of them"
    else:
        return
    raise HeadroomError(
        f"Failed to heal slots {format_slots(ill)}: {where} {what}, but it is a member and not in option 'nodes'. List it, with "
        "weight 0 to empty it, or let redis_cluster take it out with purge.",
        code="undeclared",
        address=where,
        slots=ill,
    )


async def mend(fleet: Fleet, seen: t.Mapping[str, Seen], found: t.Sequence[heal.Cure], limits: Limits) -> None:
    """Do what the slots need."""
    ids = {name: one.me.id for name, one in seen.items() if one.me.is_primary}
    await inform(fleet, seen)
    closing = {cure.slot for cure in found if cure.action == "close"}
    for name in ids:
        # Valkey hands the marks on to the replicas, and one may keep what its primary has lost; only the primary can be told
        shard = [one.me for one in seen.values() if ids[name] in (one.me.id, one.me.primary_id)]
        marked = closing & {slot for member in shard for slot in (*member.migrating, *member.importing)}
        if marked:
            commands = [("CLUSTER", "SETSLOT", slot, "STABLE") for slot in sorted(marked)]
            await fleet.client(name).pipeline(commands, timeout_s=migrate.setslot_timeout_s(fleet, sorted(marked)))
    given: dict[tuple[str, bool], list[int]] = {}
    for cure in found:
        if cure.action in ("tell", "own") and cure.source:
            given.setdefault((cure.source, cure.action == "own"), []).append(cure.slot)
    for (name, new), slots in given.items():
        await _own(fleet, slots, name, ids, new)
    carry = [
        Move(cure.slot, cure.source, cure.target)
        for cure in found
        if cure.action == "carry" and cure.source and cure.target
    ]
    migration = migrate.Migration(fleet, ids, limits, measure.bytes_per_key(seen), lambda slots: None)
    await migration.run(carry)


def urgent(found: t.Iterable[heal.Cure], slot: int) -> list[heal.Cure]:
    """Return what must be done before a slot is served; there is no place for a lock before, if it is the lock's.

    It is safe without: what has no owner goes to who has its data, whoever does it, and nobody writes to it in the meantime.
    """
    return [cure for cure in found if cure.action == "own" or (cure.action == "tell" and cure.slot == slot)]


async def inform(fleet: Fleet, seen: t.Mapping[str, Seen]) -> None:
    """Tell primaries the owners of slots that they import and know no owner of; else the cluster is down for them."""
    owners = slots_of(seen).owners
    for name, slots in stale(seen).items():
        commands = [("CLUSTER", "SETSLOT", slot, "NODE", seen[owners[slot]].me.id) for slot in slots]
        await fleet.client(name).pipeline(commands, timeout_s=migrate.setslot_timeout_s(fleet, slots))


async def _own(fleet: Fleet, slots: t.Sequence[int], name: str, ids: t.Mapping[str, str], new: bool) -> None:
    """Make the holder of slots' data their owner, and let it say so with an epoch that wins."""
    client = fleet.client(name)
    limit_s = migrate.setslot_timeout_s(fleet, slots)
    if new:
        await client.pipeline([("CLUSTER", "ADDSLOTS", slot) for slot in slots], timeout_s=limit_s)
    commands: list[tuple[str | int, ...]] = []
    for slot in slots:
        commands += [("CLUSTER", "SETSLOT", slot, "STABLE"), ("CLUSTER", "SETSLOT", slot, "NODE", ids[name])]
    await client.pipeline([*commands, ("CLUSTER", "BUMPEPOCH")], timeout_s=2 * limit_s)
    tell = [("CLUSTER", "SETSLOT", slot, "NODE", ids[name]) for slot in slots]
    await asyncio.gather(*(fleet.client(other).pipeline(tell, timeout_s=limit_s) for other in ids if other != name))
