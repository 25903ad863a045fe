# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Which way slots move: by the servers' atomic migration where both sides have it, else by SETSLOT and MIGRATE."""

from __future__ import annotations

import typing as t

from ..._common.errors import HeadroomError, OptionError
from ..._common.redis.model import format_slots
from ..observe import Fleet
from . import atomic, migrate
from .guard import Limits, Progress
from .plan import Move

MECHANISMS = ("auto", "atomic", "classic")
Pair = tuple[str, str]


def choose(pairs: t.Iterable[Pair], known: t.Mapping[str, atomic.Dialect | None], mechanism: str) -> dict[Pair, str]:
    """Return the mechanism of each pair of source and target. Pure.

    :raises OptionError: when it must be atomic, and a server cannot.
    """
    chosen = {}
    for source, target in pairs:
        can = known[source] is not None and known[source] is known[target]
        if mechanism == "atomic" and not can:
            lacking = target if known[source] is not None else source
            raise OptionError(
                "mechanism",
                "atomic",
                f"slots cannot move from {source} to {target} like that: {lacking} has no atomic slot migration, or another one. "
                "It needs Valkey 9 on both sides, or Redis 8.4; give 'auto' or 'classic'.",
            )
        chosen[source, target] = "atomic" if can and mechanism != "classic" else "classic"
    return chosen


class Mover:
    """Moves slots, each pair of nodes by its mechanism, the atomic ones first."""

    def __init__(
        self,
        fleet: Fleet,
        ids: t.Mapping[str, str],
        limits: Limits,
        bytes_per_key: t.Mapping[str, float],
        done: t.Callable[[t.Iterable[int]], None],
        deadline_s: float | None = None,
        progress: Progress | None = None,
        mechanism: str = "auto",
    ) -> None:
        """Take the same as :class:`migrate.Migration`, and the mechanism as the option has it."""
        self.fleet = fleet
        self.arguments = (limits, bytes_per_key, done, deadline_s, progress if progress is not None else Progress())
        self.ids = ids
        self.mechanism = mechanism
        # what was to move atomically and did not, and what it was moved by
        self.fallbacks: list[atomic.Left] = []
        self.used: set[str] = set()

    async def run(self, moves: t.Sequence[Move]) -> None:
        """Move the slots.

        :raises HeadroomError: the first failure.
        """
        known = await atomic.dialects(self.fleet, {name for move in moves for name in (move.source, move.target)})
        chosen = choose({(move.source, move.target) for move in moves}, known, self.mechanism)
        first = [move for move in moves if chosen[move.source, move.target] == "atomic"]
        then = [move for move in moves if chosen[move.source, move.target] == "classic"]
        if first:
            self.used.add("atomic")
            left = await atomic.Atomic(self.fleet, self.ids, known, *self.arguments).run(first)
            if left and self.mechanism == "atomic":
                raise _failed(left[0])
            self.fallbacks += left
            then += [Move(slot, one.source, one.target) for one in left for slot in one.slots]
        # a server takes no slot in hand the classic way while one of its jobs is active, and none is now
        if then:
            self.used.add("classic")
            await migrate.Migration(self.fleet, self.ids, *self.arguments).run(then)


def _failed(left: atomic.Left) -> HeadroomError:
    return HeadroomError(
        f"Failed to move slots {format_slots(left.slots)} from {left.source} to {left.target} atomically: {left.reason}. "
        "Option 'mechanism' has the value 'atomic': mend that, or give 'auto', which goes on with SETSLOT and MIGRATE.",
        code="atomic_failed",
        reason=left.reason,
    )


def summary(used: t.AbstractSet[str]) -> str | None:
    """Return the mechanisms of a run in one word."""
    return "mixed" if len(used) > 1 else next(iter(used), None)


def as_rows(left: t.Iterable[atomic.Left]) -> list[dict[str, t.Any]]:
    """Return fall-backs as a module's return value."""
    return [
        {"source": one.source, "target": one.target, "slots": format_slots(one.slots), "reason": one.reason}
        for one in left
    ]
