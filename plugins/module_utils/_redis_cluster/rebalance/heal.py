# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What to do about slots that somebody left open or without an owner: the data decides, nobody guesses. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..._common.redis.model import format_slots
from ..state import Slots


@dataclass(frozen=True)
class Cure:
    """What one slot needs.

    ``close``: nothing is on the move, the marks are taken off. ``carry``: its keys go on from source to target, which then owns
    it. ``tell``: the owner is made known. ``own``: the one node that has its keys becomes its owner.
    ``stuck``: what the nodes say and hold contradicts itself, so that a person must decide.
    """

    slot: int
    action: str
    source: str | None = None
    target: str | None = None
    why: str = ""


def cures(
    slots: Slots,
    holders: t.Mapping[int, t.Mapping[str, int]],
    homes: t.Mapping[int, str] | None = None,
    complete: bool = True,
) -> list[Cure]:
    """Return what each slot needs that is open, disputed or without an owner.

    :param slots: who owns what and what is open.
    :param holders: slot to name to the number of keys, for each of these slots.
    :param homes: slot to the primary that an uncovered slot without keys goes to.
    :param complete: whether every member of the cluster was seen; else a slot without keys may have them on another one.
    """
    found = []
    for slot in sorted({*slots.open, *slots.disputed, *slots.uncovered}):
        held = {name for name, count in holders.get(slot, {}).items() if count}
        if slot in slots.taken:
            found.append(Cure(slot, "stuck", why=f"{slots.taken[slot]} owns it and was not asked"))
        elif slot in slots.disputed:
            found.append(_disputed(slot, slots.disputed[slot], held))
        elif slot not in slots.owners:
            found.append(_uncovered(slot, held, (homes or {}).get(slot), complete))
        else:
            found.append(_open(slot, slots, held))
    return found


def _open(slot: int, slots: Slots, held: set[str]) -> Cure:
    owner = slots.owners[slot]
    migrating, importing = slots.migrating.get(slot, {}), slots.importing.get(slot, {})
    strangers = held - {owner}
    if not strangers and not (owner in migrating and migrating[owner] in importing):
        # nobody else has anything of it, and the move had not begun on both sides
        return Cure(slot, "close", owner, why="nothing of it has moved")
    if len(strangers) > 1:
        return Cure(slot, "stuck", owner, why="more than one node beside its owner holds keys of it")
    # where keys are on the way, or both sides are open, it goes on the way that it was going
    target = next(iter(strangers)) if strangers else migrating[owner]
    if target in migrating and owner in importing and target not in importing:
        # the owner has said that it owns the slot and the former one has not heard of it
        return Cure(slot, "stuck" if target in held else "tell", owner, why="its former owner still holds keys of it")
    return Cure(slot, "carry", owner, target, why="it was on the move")


def _disputed(slot: int, claims: t.Sequence[str], held: set[str]) -> Cure:
    with_keys = [name for name in claims if name in held]
    if len(with_keys) == 1 and held <= set(claims):
        return Cure(slot, "tell", with_keys[0], why="of those that claim it one holds its keys")
    if not held:
        return Cure(slot, "tell", min(claims), why="those that claim it hold no key of it")
    return Cure(slot, "stuck", why=f"{' and '.join(claims)} both claim it")


def _uncovered(slot: int, held: set[str], home: str | None, complete: bool) -> Cure:
    if len(held) == 1:
        return Cure(slot, "own", next(iter(held)), why="it has no owner, and this node alone holds its keys")
    if held:
        return Cure(slot, "stuck", why="it has no owner, and more than one node holds keys of it")
    if complete and home is not None:
        return Cure(slot, "own", home, why="it has no owner, and no member holds a key of it")
    return Cure(slot, "stuck", why="it has no owner, and the member that held it does not answer")


def as_rows(cures_: t.Iterable[Cure]) -> list[dict[str, t.Any]]:
    """Return cures as a module's return value: one row for all slots that need the same."""
    rows: dict[tuple[t.Any, ...], list[int]] = {}
    for cure in sorted(cures_, key=lambda cure: cure.slot):
        rows.setdefault((cure.action, cure.source, cure.target, cure.why), []).append(cure.slot)
    return [
        {"slots": format_slots(slots), "action": action, "source": source, "target": target, "why": why}
        for (action, source, target, why), slots in rows.items()
    ]
