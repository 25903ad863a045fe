# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Which slots go where, so that every primary carries its share with the least movement. Pure."""

from __future__ import annotations

import hashlib
import json
import typing as t
from dataclasses import dataclass

# below what arithmetic with fractions of slots leaves
EPSILON = 1e-6


@dataclass(frozen=True)
class Move:
    """One slot on its way, by the names of the primaries."""

    slot: int
    source: str
    target: str


@dataclass(frozen=True)
class Share:
    """What one primary carries and should carry, in the unit of the balance, and its slots."""

    name: str
    slots: int
    load: float
    wanted: float


@dataclass(frozen=True)
class Plan:
    """The moves, and the shares before and after them."""

    moves: tuple[Move, ...]
    before: tuple[Share, ...]
    after: tuple[Share, ...]
    # why nothing moves although something is out of balance
    left_out: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Identify the moves: the same ones always have the same id."""
        rows = [[move.slot, move.source, move.target] for move in sorted(self.moves, key=lambda move: move.slot)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]

    def pairs(self) -> dict[tuple[str, str], list[int]]:
        """Return (source, target) to the slots that go that way, in order."""
        found: dict[tuple[str, str], list[int]] = {}
        for move in self.moves:
            found.setdefault((move.source, move.target), []).append(move.slot)
        return {pair: sorted(slots) for pair, slots in sorted(found.items())}


def imbalance(shares: t.Iterable[Share]) -> float:
    """Return the largest distance of a share from what is wanted, as a fraction of it; any load where none is wanted is 1."""
    worst = 0.0
    for share in shares:
        if share.wanted > 0:
            worst = max(worst, abs(share.load - share.wanted) / share.wanted)
        elif share.slots:
            worst = max(worst, 1.0)
    return worst


def whole_shares(total: int, weights: t.Mapping[str, float], held: t.Mapping[str, int]) -> dict[str, int]:
    """Divide a whole number by weights, by largest remainder; a tie goes to who has that much already, so that less moves."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    left = total - sum(shares.values())
    # rounded, since remainders that differ by an error of arithmetic are a tie
    order = sorted(
        exact, key=lambda name: (-round(exact[name] - shares[name], 9), held.get(name, 0) <= shares[name], name)
    )
    for name in order[:left]:
        shares[name] += 1
    return shares


def plan(
    owners: t.Mapping[int, str],
    weights: t.Mapping[str, float],
    loads: t.Mapping[int, float] | None = None,
    threshold: float = 0.02,
    max_moves: int | None = None,
) -> Plan:
    """Return the moves that give every primary its share.

    A primary of weight 0 is emptied, whatever the threshold. Else nothing moves while every share is within the threshold.

    :param owners: slot to the name of its primary.
    :param weights: name of every primary, those without slots too, to its weight.
    :param loads: slot to its load (keys, bytes or operations); every slot counts 1 when not given.
    :param threshold: fraction of its wanted share that a primary may be off.
    :param max_moves: number of slots to move at most.
    :raises ValueError: when an owner has no weight, or all weights are 0.
    """
    strangers = sorted(set(owners.values()) - weights.keys())
    if strangers:
        raise ValueError(f"no weight for {', '.join(strangers)}")
    if not sum(weights.values()) > 0:
        raise ValueError("all weights are 0")
    slots = _by_owner(owners, weights)
    by_slots = loads is None or not sum(loads.values()) > 0
    cost = dict.fromkeys(owners, 1.0) if by_slots else {slot: float((loads or {}).get(slot, 0.0)) for slot in owners}
    if by_slots:
        held = {name: len(found) for name, found in slots.items()}
        wanted: dict[str, float] = {**whole_shares(len(owners), weights, held)}
    else:
        total = sum(cost.values())
        wanted = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    before = _shares(slots, cost, wanted)
    drained = [name for name, weight in weights.items() if not weight > 0 and slots[name]]
    if imbalance(before) <= threshold and not drained:
        return Plan((), before, before)
    moves = _level(slots, cost, wanted, drained)
    left_out = []
    if max_moves is not None and len(moves) > max_moves:
        left_out.append(f"{len(moves) - max_moves} of {len(moves)} slots stay, since max_moves is {max_moves}.")
        moves = moves[:max_moves]
    shares = _shares(_by_owner({**owners, **{move.slot: move.target for move in moves}}, weights), cost, wanted)
    if not moves:
        left_out.append(
            "No slot can move so that the balance gets better: single slots carry more than the difference."
        )
    return Plan(tuple(moves), before, shares, tuple(left_out))


def _by_owner(owners: t.Mapping[int, str], names: t.Iterable[str]) -> dict[str, list[int]]:
    """Return name to its slots, in order."""
    slots: dict[str, list[int]] = {name: [] for name in names}
    for slot in sorted(owners):
        slots[owners[slot]].append(slot)
    return slots


def _shares(
    slots: t.Mapping[str, t.Sequence[int]], cost: t.Mapping[int, float], wanted: t.Mapping[str, float]
) -> tuple[Share, ...]:
    return tuple(
        Share(name, len(found), sum(cost[slot] for slot in found), wanted[name])
        for name, found in sorted(slots.items())
    )


def _level(
    slots: t.Mapping[str, t.Sequence[int]],
    cost: t.Mapping[int, float],
    wanted: t.Mapping[str, float],
    drained: t.Sequence[str],
) -> list[Move]:
    """Give the surplus of each to the one that lacks most, last slots first, so that what stays is one range."""
    lack = {name: wanted[name] - sum(cost[slot] for slot in found) for name, found in slots.items()}
    receivers = [name for name in lack if name not in drained and wanted[name] > 0]
    moves: list[Move] = []
    # who must be emptied goes first, so that what others lack is known before they give
    givers = sorted((name for name in lack if name not in drained), key=lambda name: (lack[name], name))
    for source in [*sorted(drained), *givers]:
        others = [name for name in receivers if name != source]
        for slot in sorted(slots[source], reverse=True):
            if not others:
                break
            target = max(others, key=lambda name: (lack[name], name))
            if source not in drained:
                # what is left is less than a slot of the one or the other side
                if lack[source] > -EPSILON or lack[target] < EPSILON:
                    break
                # a slot that carries more than the surplus, or nothing, would only change who is off
                if not 0 < cost[slot] <= min(-lack[source], lack[target]) + EPSILON:
                    continue
            moves.append(Move(slot, source, target))
            lack[source] += cost[slot]
            lack[target] -= cost[slot]
    return sorted(moves, key=lambda move: move.slot)
