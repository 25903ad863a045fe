# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What each slot carries: keys, bytes or operations. Changes nothing."""

from __future__ import annotations

import asyncio
import re
import time
import typing as t

from ..._common.redis.client import ServerError
from ..._common.redis.model import SLOTS, key_slot
from ..observe import Fleet
from ..state import Seen

SAMPLED_KEYS = 4
# of the slots that are to move: together and of one slot, and how many names a key is picked from for each
SAMPLED_TOGETHER = 8192
SAMPLED_OF_SLOT = 32
NAMES_FOR_ONE = 8
COMMANDS_AT_ONCE = 2000
# of one server, in a sample
MOST_COMMANDS = 50_000
# of a key in a slot that is open or has no owner yet
ELSEWHERE = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
SCRIPTS = ("eval", "evalsha", "eval_ro", "evalsha_ro", "fcall", "fcall_ro")
WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


async def _in_pieces(
    fleet: Fleet,
    name: str,
    commands: t.Sequence[t.Sequence[t.Any]],
    raw: bool = False,
    passing: t.Container[str] = (),
) -> list[t.Any]:
    """Run many commands on a node without holding it up: it answers others between the pieces.

    :param passing: first words of errors that count as no answer.
    """
    answers: list[t.Any] = []
    for first in range(0, len(commands), COMMANDS_AT_ONCE):
        answers += await fleet.client(name, "measure").pipeline(commands[first : first + COMMANDS_AT_ONCE], raw=raw)
    for answer in answers:
        if isinstance(answer, ServerError) and answer.word not in passing:
            raise answer
    return [None if isinstance(answer, ServerError) else answer for answer in answers]


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
    return {
        slot: size for slot, (_count, size) in (await _size(fleet, name, slots, SAMPLED_KEYS, SAMPLED_KEYS)).items()
    }


async def sizes(fleet: Fleet, owners: t.Mapping[int, str]) -> dict[int, tuple[int, float]]:
    """Return slot to its number of keys and their bytes: the fewer slots, the more of their keys are looked at."""
    most = max(1, min(SAMPLED_OF_SLOT, SAMPLED_TOGETHER // max(1, len(owners))))

    async def size(fleet: Fleet, name: str, slots: t.Sequence[int]) -> dict[int, tuple[int, float]]:
        return await _size(fleet, name, slots, most, most * NAMES_FOR_ONE)

    return await _each(fleet, owners, size)


async def _size(fleet: Fleet, name: str, slots: t.Sequence[int], most: int, names: int) -> dict[int, tuple[int, float]]:
    """Return slot to its keys and bytes, by MEMORY USAGE of some of its keys.

    :param most: keys that are looked at in each slot.
    :param names: keys of each slot that these are picked from, evenly: the server tells the latest ones first.
    """
    counts = await _count(fleet, name, slots)
    filled = [slot for slot in slots if counts[slot]]
    found = await _in_pieces(fleet, name, [("CLUSTER", "GETKEYSINSLOT", slot, names) for slot in filled], raw=True)
    sampled = [
        (slot, some[len(some) * at // few])
        for slot, some in zip(filled, found, strict=True)
        for few in [min(most, len(some))]
        for at in range(few)
    ]
    answers = await _in_pieces(fleet, name, [("MEMORY", "USAGE", key) for _slot, key in sampled], passing=ELSEWHERE)
    totals: dict[int, list[int]] = {slot: [] for slot in slots}
    for (slot, _key), size in zip(sampled, answers, strict=True):
        # none: the key went between the two questions
        if size is not None:
            totals[slot].append(int(size))
    return {slot: (counts[slot], counts[slot] * sum(few) / len(few) if few else 0.0) for slot, few in totals.items()}


async def operations(fleet: Fleet, owners: t.Mapping[int, str], for_s: float) -> tuple[dict[int, float], str]:
    """Watch for some seconds what the slots' commands cost, and return slot to load with the unit of it.

    Where all servers count the processor time of each slot, it is that; else their commands are counted as MONITOR shows them.
    """
    names = sorted(set(owners.values()))
    before = await asyncio.gather(*(_cpu_usec(fleet, name) for name in names))
    if all(one is not None for one in before):
        await asyncio.sleep(for_s)
        after = await asyncio.gather(*(_cpu_usec(fleet, name) for name in names))
        then = dict(zip(names, before, strict=True))
        now = dict(zip(names, after, strict=True))
        # a count that went back began anew with the slot's arrival
        used = {
            slot: float(usec - (then[name] or {}).get(slot, 0))
            for name in names
            for slot, usec in (now[name] or {}).items()
            if owners.get(slot) == name
        }
        return {slot: max(0.0, used.get(slot, 0.0)) / for_s for slot in owners}, "microseconds of commands per second"
    seen = await asyncio.gather(*(_commands(fleet, name, for_s) for name in names))
    counts = {slot: seen[names.index(name)].get(slot, 0.0) for slot, name in owners.items()}
    return counts, "commands per second"


async def _cpu_usec(fleet: Fleet, name: str) -> dict[int, int] | None:
    """Return slot to the microseconds that its commands took so far; None where the server does not count them."""
    try:
        rows = await fleet.client(name, "measure").call("CLUSTER", "SLOT-STATS", "SLOTSRANGE", 0, SLOTS - 1)
    except ServerError:
        return None
    counts = {int(row[0]): dict(zip(row[1][::2], row[1][1::2], strict=True)) for row in rows}
    if any("cpu-usec" not in row for row in counts.values()):
        return None
    return {slot: int(row["cpu-usec"]) for slot, row in counts.items()}


async def _commands(fleet: Fleet, name: str, for_s: float) -> dict[int, float]:
    """Return slot to commands per second, by listening in for a time; a busy server is listened to for less."""
    client = fleet.client(name, "monitor")
    began = time.monotonic()
    lines = await client.listen("MONITOR", for_s=for_s, most=MOST_COMMANDS)
    took_s = max(time.monotonic() - began, 0.001)
    calls = [call for call in map(parse_monitored, lines) if call]
    verbs = sorted({verb for verb, _arguments in calls})
    rows = await fleet.client(name, "measure").call("COMMAND", "INFO", *verbs) if verbs else []
    places = {verb: int(row[3]) for verb, row in zip(verbs, rows, strict=True) if row}
    counts: dict[int, float] = {}
    for verb, arguments in calls:
        # of a script, the first key follows their number
        place = places.get(verb, 0) or (3 if verb in SCRIPTS else 0)
        if 0 < place <= len(arguments):
            slot = key_slot(arguments[place - 1])
            counts[slot] = counts.get(slot, 0.0) + 1 / took_s
    return counts


def parse_monitored(line: bytes) -> tuple[str, list[bytes]] | None:
    """Return the command of a line of MONITOR, in small letters, with its first arguments; None for what is none of a client."""
    head, _bracket, rest = line.partition(b"] ")
    # what a script calls is counted with the script
    if not rest or head.endswith(b" lua"):
        return None
    words = [_unescaped(word) for word in WORD.findall(rest, 0, 4096)[:4]]
    return (words[0].decode(errors="replace").lower(), words[1:]) if words else None


def _unescaped(word: bytes) -> bytes:
    """Return a word that MONITOR shows between quotes as it was sent."""
    return ESCAPE.sub(lambda found: bytes([int(found[1], 16)]) if found[1] else ESCAPES.get(found[2], found[2]), word)


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
