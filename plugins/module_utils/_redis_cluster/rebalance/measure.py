# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What each slot carries: keys, bytes or operations. Reads only."""

from __future__ import annotations

import asyncio
import typing as t

from ..._common.errors import HeadroomError
from ..client import ServerError
from ..observe import Fleet
from ..state import Seen

SAMPLED_KEYS = 4
COMMANDS_AT_ONCE = 2000


async def _in_pieces(
    fleet: Fleet, name: str, commands: t.Sequence[t.Sequence[t.Any]], raw: bool = False
) -> list[t.Any]:
    """Run many commands on a node without holding it up: it answers others between the pieces."""
    answers: list[t.Any] = []
    for first in range(0, len(commands), COMMANDS_AT_ONCE):
        answers += await fleet.client(name, "measure").pipeline(commands[first : first + COMMANDS_AT_ONCE], raw=raw)
    for answer in answers:
        if isinstance(answer, ServerError):
            raise answer
    return answers


def bytes_per_key(seen: t.Mapping[str, Seen]) -> dict[str, float]:
    """Return name to the mean bytes of a key with its value."""
    return {
        name: one.number("used_memory_dataset") / one.keys if one.keys else 0.0
        for name, one in seen.items()
        if one.view
    }


async def keys(fleet: Fleet, owners: t.Mapping[int, str]) -> dict[int, int]:
    """Return slot to its number of keys."""
    return await _each(fleet, owners, _count)


async def _count(fleet: Fleet, name: str, slots: t.Sequence[int]) -> dict[int, int]:
    answers = await _in_pieces(fleet, name, [("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in slots])
    return dict(zip(slots, map(int, answers), strict=True))


async def bytes_(fleet: Fleet, owners: t.Mapping[int, str]) -> dict[int, float]:
    """Return slot to its bytes, by MEMORY USAGE of a few keys of each and their number."""
    return await _each(fleet, owners, _weigh)


async def _weigh(fleet: Fleet, name: str, slots: t.Sequence[int]) -> dict[int, float]:
    counts = await _count(fleet, name, slots)
    filled = [slot for slot in slots if counts[slot]]
    found = await _in_pieces(
        fleet, name, [("CLUSTER", "GETKEYSINSLOT", slot, SAMPLED_KEYS) for slot in filled], raw=True
    )
    sampled = [(slot, key) for slot, few in zip(filled, found, strict=True) for key in few]
    sizes = await _in_pieces(fleet, name, [("MEMORY", "USAGE", key) for _slot, key in sampled])
    totals: dict[int, list[int]] = {slot: [] for slot in slots}
    for (slot, _key), size in zip(sampled, sizes, strict=True):
        # none: the key went between the two questions
        if size is not None:
            totals[slot].append(int(size))
    return {slot: counts[slot] * sum(few) / len(few) if few else 0.0 for slot, few in totals.items()}


async def operations(fleet: Fleet, owners: t.Mapping[int, str]) -> dict[int, float]:
    """Return slot to the processor time that its commands took, in microseconds since the server started.

    :raises HeadroomError: when the servers do not count it.
    """
    return await _each(fleet, owners, _usage)


async def _usage(fleet: Fleet, name: str, slots: t.Sequence[int]) -> dict[int, float]:
    try:
        rows = await fleet.client(name, "measure").call("CLUSTER", "SLOT-STATS", "SLOTSRANGE", 0, 16383)
    except ServerError as error:
        raise _uncounted(name, fleet) from error
    found = {int(row[0]): dict(zip(row[1][::2], row[1][1::2], strict=True)) for row in rows}
    if any("cpu-usec" not in found.get(slot, {}) for slot in slots):
        raise _uncounted(name, fleet)
    return {slot: float(found[slot]["cpu-usec"]) for slot in slots}


def _uncounted(name: str, fleet: Fleet) -> HeadroomError:
    return HeadroomError(
        f"Option 'by' has the value 'operations': {name} on {fleet.nodes[name].address} does not count them for each slot. "
        "Use Valkey 8 or Redis 8.2 or later with cluster-slot-stats-enabled, or give 'keys' or 'bytes'.",
        code="bad_option",
        option="by",
        value="operations",
    )


async def _each(
    fleet: Fleet, owners: t.Mapping[int, str], measure: t.Callable[[Fleet, str, t.Sequence[int]], t.Any]
) -> dict[int, t.Any]:
    held: dict[str, list[int]] = {}
    for slot, name in sorted(owners.items()):
        held.setdefault(name, []).append(slot)
    found: dict[int, t.Any] = {}
    for part in await asyncio.gather(*(measure(fleet, name, slots) for name, slots in held.items())):
        found.update(part)
    return found
