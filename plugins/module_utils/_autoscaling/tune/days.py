# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Training and held-out days: a part of a load that candidates are simulated over. Needs NumPy and Numba. No I/O."""

from __future__ import annotations

import itertools
import typing as t
from dataclasses import replace

from .. import kernel
from ..batch import Batch
from ..simulate import MAX_PODS, Run, Simulation, settle
from .floors import Schedule
from .plan import Candidate, Figures

DAY_S = 86_400
_CHUNK = 64


class Days:
    """A part of a load. Each candidate is simulated once."""

    def __init__(self, load: t.Sequence[float], first_s: float, present: Simulation, threads: int = 1) -> None:
        """Take the load of each sync, the time of the first one, and how the present spec is simulated."""
        self.load, self.first_s, self.syncs = load, first_s, len(load)
        self._present, self._batch = present, Batch(load, threads)
        # all candidates take over what the present spec has at the start
        self._initial = settle(load[0], present)
        self._known: dict[Candidate, Figures] = {}
        self._raised: dict[Schedule, t.Any] = {}
        self._days: list[Days] = []

    def simulation(self, one: Candidate) -> Simulation:
        """Return how a candidate is simulated."""
        import numpy as np

        spec, sync_s = one.parameters.spec(self._present.spec), self._present.sync_s
        floors: t.Any = ()
        if one.schedule is not None:
            if one.schedule not in self._raised:
                over = one.schedule.over(self.first_s, self.syncs, sync_s, 0, MAX_PODS)
                self._raised[one.schedule] = np.array(over, dtype=np.int64)
            floors = np.clip(self._raised[one.schedule], spec.min_replicas, spec.max_replicas)
        least = int(floors[0]) if len(floors) else spec.min_replicas
        initial = min(spec.max_replicas, max(least, self._initial))
        return replace(self._present, spec=spec, initial=initial, floors=floors)

    def __call__(self, candidates: t.Sequence[Candidate]) -> list[Figures]:
        """Return the figures of each candidate."""
        fresh = [one for one in dict.fromkeys(candidates) if one not in self._known]
        # floors have a number for each sync: not all of them at a time
        for start in range(0, len(fresh), _CHUNK):
            chunk = fresh[start : start + _CHUNK]
            for one, totals in zip(chunk, self._batch.figures([self.simulation(one) for one in chunk]), strict=True):
                self._known[one] = _figures(totals, self.syncs)
        return [self._known[one] for one in candidates]

    def by_day(self, one: Candidate) -> list[Figures]:
        """Return the figures of each day by itself; what is left of a day at the end counts with the last one."""
        if not self._days:
            length = round(DAY_S / self._present.sync_s)
            cuts = [*range(0, max(1, self.syncs // length) * length, length), self.syncs]
            sync_s, present = self._present.sync_s, self._present
            self._days = [
                Days(self.load[low:high], self.first_s + low * sync_s, present)
                for low, high in itertools.pairwise(cuts)
            ]
        return [day([one])[0] for day in self._days]

    def run(self, one: Candidate) -> Run:
        """Simulate a candidate with all that happened; it is valid until the next one."""
        return self._batch.run(self.simulation(one))


def _figures(totals: t.Sequence[float], syncs: int) -> Figures:
    return Figures(
        syncs,
        int(totals[kernel.VIOLATING]),
        totals[kernel.REPLICA_SYNCS],
        int(totals[kernel.UPS]),
        int(totals[kernel.DOWNS]),
        int(totals[kernel.AT_MAX]),
        totals[kernel.OFFERED],
        totals[kernel.SERVED],
        totals[kernel.WORST_RATIO],
    )


def split(syncs: int, sync_s: int, held_out_days: int | None) -> int:
    """Return how many syncs are trained on; the whole days after them are held out, by default about 30 % of all."""
    days = syncs * sync_s / DAY_S
    held = max(1, round(days * 0.3)) if held_out_days is None else held_out_days
    return syncs - round(held * DAY_S / sync_s)
