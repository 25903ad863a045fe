# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Floors by the time of the day and the week, from what was needed then on other days. Pure.

The forecast is a quantile for each stretch of the day, and of the weekday where at least two of each were recorded. A floor holds for the
need until a pod that is made in its stretch is ready, so that replicas are there before they are needed.
"""

from __future__ import annotations

import itertools
import math
import typing as t
from collections import deque
from dataclasses import dataclass

DAY_S, WEEK_S = 86_400, 604_800
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# 1970 began on a Thursday
FIRST_DAY = 3
# quantile of what was needed, and what it is multiplied by, from the tightest to the most careful
MARGINS = ((0.5, 1.0), (0.8, 1.0), (0.95, 1.0), (0.99, 1.0), (0.99, 1.1))


@dataclass(frozen=True)
class Schedule:
    """Fewest replicas in each stretch of a day or a week that begins on Monday, in UTC; 0 where the spec's own floor suffices."""

    slot_s: int
    floors: tuple[int, ...]

    @property
    def weekly(self) -> bool:
        """Whether it tells the days of the week apart."""
        return len(self.floors) * self.slot_s == WEEK_S

    def at(self, at_s: float) -> int:
        """Return the floor at a time in seconds since 1970."""
        moment = at_s + FIRST_DAY * DAY_S
        return self.floors[int(moment // self.slot_s) % len(self.floors)]

    def over(self, first_s: float, syncs: int, sync_s: int, least: int, most: int) -> list[int]:
        """Return the floor of each sync, never below ``least``, which is the spec's own, nor above ``most``."""
        return [min(most, max(least, self.at(first_s + sync * sync_s))) for sync in range(syncs)]

    def entries(self, least: int, most: int) -> list[dict[str, t.Any]]:
        """Return the stretches with a floor above the spec's own, as days, start, end and replicas."""
        per_day = DAY_S // self.slot_s
        days = [self.floors[start : start + per_day] for start in range(0, len(self.floors), per_day)]
        found: dict[tuple[int, int, int], list[str]] = {}
        for index, floors in enumerate(days):
            slot = 0
            for floor, run in itertools.groupby(min(most, one) for one in floors):
                length = len(list(run))
                if floor > least:
                    names = found.setdefault((slot, slot + length, floor), [])
                    names.extend([DAYS[index]] if self.weekly else DAYS)
                slot += length
        return [
            {"days": names, "start": self._clock(start), "end": self._clock(end), "min_replicas": floor}
            for (start, end, floor), names in sorted(found.items(), key=lambda one: (DAYS.index(one[1][0]), one[0]))
        ]

    def _clock(self, slot: int) -> str:
        minutes = slot * self.slot_s // 60
        return f"{minutes // 60:02d}:{minutes % 60:02d}"


def forecast(
    load: t.Sequence[float], first_s: float, sync_s: int, per_replica: float, lead_s: float, slot_s: int
) -> list[Schedule]:
    """Return schedules from a recorded load, from the tightest to the most careful.

    :param per_replica: load that a ready pod serves within the objective.
    :param lead_s: time from raising a floor until its pods are ready.
    """
    needs = ahead([math.ceil(one / per_replica - 1e-9) for one in load], math.ceil(lead_s / sync_s))
    days = len(load) * sync_s / DAY_S
    # a weekday that was seen once tells nothing of how it varies
    period_s = WEEK_S if days >= 14 else DAY_S
    slots: list[list[int]] = [[] for _slot in range(period_s // slot_s)]
    for sync, need in enumerate(needs):
        slots[int((first_s + sync * sync_s + FIRST_DAY * DAY_S) // slot_s) % len(slots)].append(need)
    for values in slots:
        values.sort()
    found = []
    for share, margin in MARGINS:
        floors = [
            0 if not values else math.ceil(values[min(len(values) - 1, int(share * len(values)))] * margin - 1e-9)
            for values in slots
        ]
        found.append(Schedule(slot_s, tuple(floors)))
    return list(dict.fromkeys(found))


def ahead(values: t.Sequence[int], syncs: int) -> list[int]:
    """Return the largest of each value and those that follow within so many syncs."""
    result = [0] * len(values)
    waiting: deque[int] = deque()
    for index in range(len(values) - 1, -1, -1):
        while waiting and values[waiting[-1]] <= values[index]:
            waiting.pop()
        waiting.append(index)
        while waiting[0] > index + syncs:
            waiting.popleft()
        result[index] = values[waiting[0]]
    return result
