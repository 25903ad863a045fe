# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Which parameters are tried: within the limits of a run, drawn by chance from a seed. Pure."""

from __future__ import annotations

import math
import random
import typing as t
from dataclasses import dataclass, replace

from ..model import Behavior, HpaSpec, Policy, Rules
from .model import LEGACY_UP, Parameters

UP_WINDOWS_S = (0, 15, 30, 60, 90, 120, 180, 300, 450, 600)
DOWN_WINDOWS_S = (0, 30, 60, 90, 120, 180, 300, 450, 600, 900, 1200, 1800, 2700, 3600)
TOLERANCES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15)
UP_POLICIES = (
    (Policy("Percent", 100, 15), Policy("Pods", 4, 15)),
    (Policy("Percent", 100, 60), Policy("Pods", 4, 60)),
    (Policy("Percent", 50, 60), Policy("Pods", 5, 60)),
    (Policy("Percent", 300, 15), Policy("Pods", 10, 15)),
    (Policy("Percent", 900, 15),),
    # slow ones keep noise from being followed
    (Policy("Percent", 10, 60),),
    (Policy("Pods", 2, 60),),
    (Policy("Pods", 1, 60),),
    (Policy("Pods", 1, 180),),
)
DOWN_POLICIES = (
    (Policy("Percent", 100, 15),),
    (Policy("Percent", 50, 60),),
    (Policy("Percent", 20, 60),),
    (Policy("Percent", 10, 60),),
    (Policy("Percent", 5, 60),),
    (Policy("Percent", 5, 300),),
    (Policy("Pods", 1, 60),),
    (Policy("Pods", 1, 180),),
    (Policy("Pods", 1, 300),),
    (Policy("Pods", 1, 900),),
)


@dataclass(frozen=True)
class Limits:
    """How far one run may go from the present spec.

    ``replicas_percent`` bounds the change of the floor and the ceiling, at least 1 replica is allowed; ``target_percent`` that of
    each target; ``window_s`` that of each window. ``least`` and ``most`` bound the replicas whatever the present spec has. ``keep_floor``
    forbids to lower the floor, and ``tolerances`` says that the API server knows them.
    """

    replicas_percent: float = 50.0
    target_percent: float = 25.0
    window_s: int = 300
    least: int = 2
    most: int = 1000
    keep_floor: bool = False
    tolerances: bool = True


class Space:
    """The parameters within the limits around those of a spec."""

    def __init__(self, spec: HpaSpec, before: Parameters, limits: Limits) -> None:
        """Work out the bounds of each parameter."""
        self.before, self._spec, self._limits = before, spec, limits
        share = limits.replicas_percent / 100
        floor, ceiling = before.min_replicas, before.max_replicas
        step = max(1, math.floor(floor * share))
        low = floor if limits.keep_floor else min(floor, max(floor - step, limits.least))
        raised = max(1, math.floor(ceiling * share))
        most = max(ceiling, min(ceiling + raised, limits.most))
        # a service that scales to zero goes on to do so
        self.floors = (0, 0) if floor == 0 else (low, min(floor + step, most))
        self.ceilings = (max(1, low, ceiling - raised), most)
        self.targets = []
        for target in before.targets:
            step = math.floor(target * limits.target_percent / 100)
            self.targets.append((max(1, target - step), target + step))
        up, down = before.up or LEGACY_UP, before.down or Behavior().down
        near_up, near_down = up.window_s or 0, 300 if down.window_s is None else down.window_s
        self.up_windows = self._near(UP_WINDOWS_S, near_up)
        self.down_windows = self._near(DOWN_WINDOWS_S, near_down)
        self._up, self._down = up, down

    def _near(self, choices: t.Sequence[int], present: int) -> list[int]:
        return [one for one in choices if abs(one - present) <= self._limits.window_s]

    def contains(self, one: Parameters) -> bool:
        """Return whether parameters are within the limits."""
        numbers = [
            (one.min_replicas, self.floors),
            (one.max_replicas, self.ceilings),
            *zip(one.targets, self.targets, strict=True),
        ]
        if one.min_replicas > one.max_replicas or any(not low <= value <= high for value, (low, high) in numbers):
            return False
        windows = [(one.up, self.up_windows, self._up), (one.down, self.down_windows, self._down)]
        return all(
            rules is None or rules.window_s == was.window_s or rules.window_s in near for rules, near, was in windows
        )

    def anchors(self, most: int) -> list[Parameters]:
        """Return parameters worth a try in every search, whatever their targets: quick rules with windows from short to long."""
        pairs = [(up_s, down_s) for down_s in self.down_windows for up_s in self.up_windows]
        up, down = replace(self._up, policies=UP_POLICIES[0]), replace(self._down, policies=DOWN_POLICIES[0])
        if self._limits.tolerances:
            up, down = replace(up, tolerance=0.02), replace(down, tolerance=0.02)
        least = replace(self.before, min_replicas=self.floors[0])
        found = [self.before, least]
        found += [
            replace(least, up=replace(up, window_s=up_s), down=replace(down, window_s=down_s)) for up_s, down_s in pairs
        ]
        return found[:2] + found[2 :: math.ceil(len(pairs) / max(1, most - 2))]

    def at(self, one: Parameters, level: float) -> Parameters:
        """Return parameters with all targets at one share of their ranges."""
        return replace(one, targets=tuple(round(low + (high - low) * level) for low, high in self.targets))

    def moved(self, one: Parameters, percent: float) -> Parameters:
        """Return parameters with all targets moved by so much of their ranges, at least by one."""
        targets = []
        for target, (low, high) in zip(one.targets, self.targets, strict=True):
            step = math.copysign(max(1, round(abs(high - low) * abs(percent) / 100)), percent)
            targets.append(min(high, max(low, target + int(step))))
        return replace(one, targets=tuple(targets))

    def draw(self, chance: random.Random) -> Parameters:
        """Return parameters by chance."""
        return self.vary(self.before, chance, 0.6)

    def vary(self, start: Parameters, chance: random.Random, share: float | None = None) -> Parameters:
        """Return parameters that differ from others in a few, or in a share of them."""
        one = start
        moves = [self._floor, self._ceiling, self._targets, self._targets, self._up_rules, self._down_rules]
        chosen = (
            [chance.choice(moves) for _move in range(chance.randint(1, 3))]
            if share is None
            else [move for move in moves if chance.random() < share]
        )
        for move in chosen:
            one = move(one, chance)
        return replace(one, max_replicas=max(one.min_replicas, one.max_replicas))

    def _floor(self, one: Parameters, chance: random.Random) -> Parameters:
        return replace(one, min_replicas=chance.randint(*self.floors))

    def _ceiling(self, one: Parameters, chance: random.Random) -> Parameters:
        return replace(one, max_replicas=chance.randint(*self.ceilings))

    def _targets(self, one: Parameters, chance: random.Random) -> Parameters:
        """Move all targets by one share of their ranges, or one of them alone, from where they are or anywhere."""
        targets, far = list(one.targets), chance.random() < 0.4
        together, place, nudge = chance.random() < 0.5, chance.random(), chance.gauss(0, 0.08)
        chosen = range(len(targets)) if together else [chance.randrange(len(targets))]
        for index in chosen:
            low, high = self.targets[index]
            at = place if far else (targets[index] - low) / max(1, high - low) + nudge
            targets[index] = min(high, max(low, round(low + (high - low) * at)))
        return replace(one, targets=tuple(targets))

    def _up_rules(self, one: Parameters, chance: random.Random) -> Parameters:
        return replace(one, up=self._rules(one.up or self._up, self.up_windows, UP_POLICIES, self._up, chance))

    def _down_rules(self, one: Parameters, chance: random.Random) -> Parameters:
        return replace(
            one, down=self._rules(one.down or self._down, self.down_windows, DOWN_POLICIES, self._down, chance)
        )

    def _rules(
        self,
        rules: Rules,
        windows: t.Sequence[int],
        policies: t.Sequence[tuple[Policy, ...]],
        present: Rules,
        chance: random.Random,
    ) -> Rules:
        what = chance.randrange(3 if self._limits.tolerances else 2)
        if what == 0:
            return replace(rules, window_s=chance.choice([*windows, present.window_s]))
        if what == 1:
            # a direction that is switched off stays so
            return replace(rules, policies=chance.choice([*policies, present.policies]))
        return replace(rules, tolerance=chance.choice([*TOLERANCES, present.tolerance]))
