# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Close what somebody left open, and give slots without an owner to the node that has their data."""

from __future__ import annotations

import asyncio
import typing as t

from ..._common.errors import HeadroomError
from ..._common.redis.model import format_slots
from ..observe import Fleet
from ..state import Seen, slots_of
from . import heal, measure, migrate
from .guard import Limits
from .plan import Move


async def cures(
    fleet: Fleet, seen: t.Mapping[str, Seen], homes: t.Mapping[int, str] | None = None, complete: bool = False
) -> tuple[list[heal.Cure], dict[int, str]]:
    """Return what open, disputed and uncovered slots need, and who will own what once that is done.

    :raises HeadroomError: when the data does not say whose a slot is.
    """
    slots = slots_of(seen)
    ill = sorted({*slots.open, *slots.disputed, *slots.uncovered})
    owners = dict(slots.owners)
    if not ill:
        return [], owners
    primaries = [name for name, one in seen.items() if one.me.is_primary]
    holders = await migrate.count_keys(fleet, primaries, ill)
    found = heal.cures(slots, holders, homes, complete)
    stuck = [cure.slot for cure in found if cure.action == "stuck"]
    if stuck:
        uncovered = [slot for slot in stuck if slot in slots.uncovered and not holders[slot]]
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


async def mend(fleet: Fleet, seen: t.Mapping[str, Seen], found: t.Sequence[heal.Cure], limits: Limits) -> None:
    """Do what the slots need."""
    ids = {name: one.me.id for name, one in seen.items() if one.me.is_primary}
    closing = {cure.slot for cure in found if cure.action == "close"}
    for name in ids:
        # Valkey hands the marks on to the replicas, and one may keep what its primary has lost; only the primary can be told
        shard = [one.me for one in seen.values() if ids[name] in (one.me.id, one.me.primary_id)]
        marked = closing & {slot for member in shard for slot in (*member.migrating, *member.importing)}
        if marked:
            commands = [("CLUSTER", "SETSLOT", slot, "STABLE") for slot in sorted(marked)]
            await fleet.client(name).pipeline(commands, timeout_s=migrate.setslot_timeout_s(fleet, sorted(marked)))
    for cure in found:
        if cure.action in ("tell", "own") and cure.source:
            await _own(fleet, cure.slot, cure.source, ids, new=cure.action == "own")
    carry = [
        Move(cure.slot, cure.source, cure.target)
        for cure in found
        if cure.action == "carry" and cure.source and cure.target
    ]
    migration = migrate.Migration(fleet, ids, limits, measure.bytes_per_key(seen), lambda slots: None)
    await migration.run(carry)


async def _own(fleet: Fleet, slot: int, name: str, ids: t.Mapping[str, str], new: bool) -> None:
    """Make the holder of a slot's data its owner, and let it say so with an epoch that wins."""
    client = fleet.client(name)
    if new:
        await client.pipeline([("CLUSTER", "ADDSLOTS", slot)])
    commands = [
        ("CLUSTER", "SETSLOT", slot, "STABLE"),
        ("CLUSTER", "SETSLOT", slot, "NODE", ids[name]),
        ("CLUSTER", "BUMPEPOCH"),
    ]
    await client.pipeline(commands)
    tell = [("CLUSTER", "SETSLOT", slot, "NODE", ids[name])]
    await asyncio.gather(*(fleet.client(other).pipeline(tell) for other in ids if other != name))
