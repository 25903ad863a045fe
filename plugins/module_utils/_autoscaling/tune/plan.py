# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The search for the cheapest parameters that keep the objective, and the verdict on days that it has not seen. Pure.

Candidates are compared on training days. The best of them, from the cheapest to the most careful, are then tried on held-out days until one
is better than the present spec there too; a candidate that violates the objective more often than the present spec on held-out days is
never taken. Where the present spec breaks the objective over all days, and not on the held-out ones, being better over all days suffices.
"""

from __future__ import annotations

import math
import random
import typing as t
from dataclasses import dataclass, fields, replace

from ..model import HpaSpec
from .floors import Schedule
from .model import RISKS, Difference, Parameters, differences, undone
from .space import Space

LEAST_SAVING = 0.005
"""A spec that keeps the objective as well is better when it costs less by this share."""
SPENT = 0.7
"""How much of the allowance a spec may use up on training days: what just holds there often does not on others."""
WORSE = 0.5
"""The worse part of all recorded days must keep the objective too: days to come may all be like those."""
_CAREFUL = (1.0, 0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0)
_CURVE = 24


@dataclass(frozen=True)
class Candidate:
    """Parameters, and a schedule of floors or none."""

    parameters: Parameters
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Figures:
    """What came of a simulation: syncs in all and those that violate the objective, replicas times syncs, changes, and load times syncs."""

    syncs: int
    violating: int
    replica_syncs: float
    ups: int = 0
    downs: int = 0
    at_max: int = 0
    offered: float = 0.0
    served: float = 0.0
    worst_ratio: float = 0.0

    def __add__(self, other: Figures) -> Figures:
        """Return the figures of both times together."""
        sums = [getattr(self, one.name) + getattr(other, one.name) for one in fields(self)[:-1]]
        return Figures(*sums, max(self.worst_ratio, other.worst_ratio))

    @property
    def share(self) -> float:
        """The share of syncs in which the objective was kept."""
        return 1 - self.violating / self.syncs


Pair = tuple[Figures, Figures]


class Evaluate(t.Protocol):
    """Simulates candidates over a part of the recorded days."""

    def __call__(self, candidates: t.Sequence[Candidate], /) -> t.Sequence[Figures]:
        """Return the figures of each candidate."""

    def by_day(self, one: Candidate, /) -> t.Sequence[Figures]:
        """Return the figures of one candidate on each day by itself."""


@dataclass(frozen=True)
class Objective:
    """The share of syncs that must keep the objective, and whether a better present share may be spent on cost."""

    min_share: float
    use_budget: bool = False

    def allowed(self, present: Figures) -> int:
        """Return how many syncs may violate the objective: what the share allows, and no more than the present spec has."""
        budget = self._budget(present.syncs)
        return budget if self.use_budget else min(budget, present.violating)

    def aimed(self, present: Figures) -> int:
        """Return how many syncs may violate the objective on training days, so that it holds on others."""
        return min(self.allowed(present), self._budget(present.syncs, SPENT))

    def _budget(self, syncs: int, part: float = 1.0) -> int:
        # the share is a decimal fraction: 0.999 of 1000 leaves one, not none
        return math.floor((1 - self.min_share) * syncs * part + 1e-9)

    def kept(self, figures: Figures) -> bool:
        """Return whether the objective is kept."""
        return figures.share >= self.min_share - 1e-12

    def better(self, figures: Figures, present: Figures) -> bool:
        """Return whether figures are better than the present ones, and never worse on the objective."""
        cheaper = figures.replica_syncs <= present.replica_syncs * (1 - LEAST_SAVING)
        if self.use_budget and self.kept(present) and self.kept(figures):
            return cheaper
        if figures.violating > present.violating:
            return False
        # what breaks the objective now may cost more to keep it
        return cheaper or (not self.kept(present) and figures.violating < present.violating)

    def steady(self, days: t.Sequence[Figures], present: t.Sequence[Figures]) -> bool:
        """Return whether the worse part of the days keeps the objective, or violates it no more often than that of the present spec."""
        one, now = (_worse(some) for some in (days, present))
        return self.kept(one) or one.violating <= now.violating

    def holds_up(self, train: Pair, held: Pair) -> bool:
        """Return whether the second figures of each pair are better than the first, the present ones, on both parts and over all."""
        (present, one), (held_present, held_one) = train, held
        whole = present + held_present
        if not self.better(one, present) or not self.better(one + held_one, whole):
            return False
        if self.better(held_one, held_present):
            return True
        # quiet held-out days do not excuse a spec that breaks the objective over all days
        return held_one.violating <= held_present.violating and not self.kept(whole)


def _worse(days: t.Sequence[Figures]) -> Figures:
    """Return the figures of the worse part of some days together."""
    ordered = sorted(days, key=lambda one: one.share)
    return sum(ordered[1 : math.ceil(len(ordered) * WORSE)], ordered[0])


@dataclass(frozen=True)
class Point:
    """A candidate and its figures on training days."""

    candidate: Candidate
    figures: Figures


@dataclass(frozen=True)
class Reason:
    """A change and what it is worth: the figures on training days without it."""

    difference: Difference
    without: Figures


@dataclass(frozen=True)
class Verdict:
    """What came of a search.

    ``chosen`` is the present candidate when nothing better was found. ``curve`` are the candidates of which none costs less and violates
    less. ``tried`` counts the simulated specs, and ``rejected`` the best ones that held-out days did not bear out. ``planned`` is a
    candidate with scheduled floors that beats the chosen one, with its figures on training and held-out days.
    """

    present: Candidate
    chosen: Candidate
    train: tuple[Figures, Figures]
    held: tuple[Figures, Figures]
    reasons: tuple[Reason, ...] = ()
    curve: tuple[tuple[Point, Figures], ...] = ()
    tried: int = 0
    rejected: int = 0
    planned: tuple[Candidate, Figures, Figures] | None = None

    @property
    def keeps(self) -> bool:
        """Whether the present spec stays."""
        return self.chosen == self.present


def search(
    space: Space,
    spec: HpaSpec,
    objective: Objective,
    train: Evaluate,
    held: Evaluate,
    schedules: t.Sequence[Schedule] = (),
    candidates: int = 1000,
    seed: int = 0,
) -> Verdict:
    """Search, and judge what was found.

    :param train: simulates candidates on training days, and ``held`` on held-out days.
    :param candidates: how many specs are simulated on training days.
    """
    present = Candidate(space.before)
    before_train, before_held = train([present])[0], held([present])[0]

    def steady(one: Candidate) -> bool:
        return _steady(one, present, objective, train, held)

    allowed = objective.aimed(before_train)
    seen = _explore(space, train, allowed, {present: before_train}, candidates, seed)
    front = _front(seen)
    chosen, rejected = present, 0
    # the cheapest first, then those that leave more of the allowance
    for one in _shortlist(seen, allowed, spec, space.before):
        if not objective.better(one.figures, before_train):
            continue
        slim = _prune(one, space.before, spec, train, allowed)
        borne_out = objective.holds_up((before_train, slim.figures), (before_held, held([slim.candidate])[0]))
        if borne_out and steady(slim.candidate):
            chosen = slim.candidate
            break
        rejected += 1
    after_train, after_held = train([chosen])[0], held([chosen])[0]
    planned = None
    best = _with_floors(seen, schedules, train, allowed, spec, space.before) if schedules else None
    if best is not None:
        raised = held([best.candidate])[0]
        # floors are kept only where they beat what reacts alone, on days that they were not made from
        beats = objective.better(raised, after_held) and objective.better(raised, before_held)
        if beats and steady(best.candidate):
            planned = (best.candidate, best.figures, raised)
    points = _thin(front)
    return Verdict(
        present,
        chosen,
        (before_train, after_train),
        (before_held, after_held),
        _reasons(chosen, space.before, spec, train),
        tuple(zip(points, held([point.candidate for point in points]), strict=True)),
        len(seen),
        rejected,
        planned,
    )


def approved(
    verdict: Verdict, spec: HpaSpec, objective: Objective, train: Evaluate, held: Evaluate, risk: str
) -> Candidate:
    """Return the candidate with the changes up to a risk alone, or the present one when those alone are not better."""
    before, one = verdict.present.parameters, verdict.chosen.parameters
    for difference in differences(before, one, spec):
        if RISKS.index(difference.risk) > RISKS.index(risk):
            one = undone(one, before, difference)
    if one.min_replicas > one.max_replicas:
        one = replace(one, min_replicas=before.min_replicas, max_replicas=before.max_replicas)
    rest = Candidate(one)
    if rest in (verdict.chosen, verdict.present):
        return rest
    # a part of the changes is another spec, and is judged as one
    good = objective.holds_up((verdict.train[0], train([rest])[0]), (verdict.held[0], held([rest])[0]))
    return rest if good and _steady(rest, verdict.present, objective, train, held) else verdict.present


def _steady(one: Candidate, present: Candidate, objective: Objective, train: Evaluate, held: Evaluate) -> bool:
    days, now = ([*train.by_day(some), *held.by_day(some)] for some in (one, present))
    return objective.steady(days, now)


def _key(point: Point, allowed: int, before: Parameters, spec: HpaSpec) -> tuple[float, ...]:
    figures = point.figures
    changed = len(differences(before, point.candidate.parameters, spec))
    return (max(0, figures.violating - allowed), figures.replica_syncs, figures.ups + figures.downs, changed)


def _explore(
    space: Space, train: Evaluate, allowed: int, seen: dict[Candidate, Figures], candidates: int, seed: int
) -> dict[Candidate, Figures]:
    """Simulate candidates: some by plan, some by chance, the others near the best of those.

    Whatever else is tried, the targets decide how much is spent and violated: they are moved up while the allowance bears it, else down.
    """
    chance = random.Random(seed)

    def add(fresh: t.Iterable[Parameters]) -> None:
        room = candidates - len(seen)
        new = list(dict.fromkeys(Candidate(one) for one in fresh if Candidate(one) not in seen))[:room]
        seen.update(zip(new, train(new), strict=True))

    def settle(some: t.Iterable[Parameters], steps: t.Sequence[float]) -> None:
        ones = list(dict.fromkeys(some))
        add(ones)
        for percent in steps:
            known = [(one, seen[Candidate(one)]) for one in ones if Candidate(one) in seen]
            ones = [space.moved(one, percent if figures.violating <= allowed else -percent) for one, figures in known]
            add(ones)

    settle((space.at(one, 0.5) for one in space.anchors(max(2, candidates // 20))), (25, 12.5, 6.25, 3))
    settle((space.draw(chance) for _draw in range(candidates // 30)), (20, 10, 5))
    # a space of a few specs is used up before the count is
    for _round in range(100):
        if len(seen) >= candidates:
            break
        elite: dict[Parameters, None] = {}
        for careful in (1.0, 0.7, 0.4, 0.0):
            limit = allowed * careful
            best = sorted(
                seen, key=lambda one: (max(0.0, seen[one].violating - limit), seen[one].replica_syncs, seen[one].ups)
            )
            # the best of each kind, whatever its targets
            kinds: dict[Parameters, Parameters] = {}
            for one in best[:60]:
                kinds.setdefault(space.at(one.parameters, 0.0), one.parameters)
            elite.update(dict.fromkeys(list(kinds.values())[:5]))
        chosen = list(elite)
        children = []
        for _child in range(max(4, candidates // 50)):
            one = chance.choice(chosen)
            if chance.random() < 0.25:
                # half of one, half of another
                one = replace(one, down=chance.choice(chosen).down)
            children.append(space.vary(one, chance))
        settle(children, (3, 1))
    return seen


def _front(seen: t.Mapping[Candidate, Figures]) -> list[Point]:
    """Return the candidates of which no other one costs less and violates less, from the most careful to the cheapest."""
    found: list[Point] = []
    least = math.inf
    for one in sorted(seen, key=lambda one: (seen[one].violating, seen[one].replica_syncs, seen[one].ups)):
        if seen[one].replica_syncs < least:
            least = seen[one].replica_syncs
            found.append(Point(one, seen[one]))
    return found


def _thin(front: t.Sequence[Point]) -> list[Point]:
    """Return at most so many points of a curve, with both its ends."""
    if len(front) <= _CURVE:
        return list(front)
    return [front[round(index * (len(front) - 1) / (_CURVE - 1))] for index in range(_CURVE)]


def _shortlist(seen: t.Mapping[Candidate, Figures], allowed: int, spec: HpaSpec, before: Parameters) -> list[Point]:
    points = [Point(*one) for one in seen.items()]
    chosen = [
        min(points, key=lambda point: _key(point, math.floor(allowed * careful), before, spec)) for careful in _CAREFUL
    ]
    # what is careful with both the objective and its own noise: a margin on top of no violation
    clean = [point for point in points if point.figures.violating <= chosen[-1].figures.violating]
    clean.sort(key=lambda point: point.figures.replica_syncs)
    least = clean[0].figures.replica_syncs
    for margin in (1.02, 1.04, 1.07, 1.1, 1.15):
        calm = [point for point in clean if point.figures.replica_syncs <= least * margin]
        chosen.append(min(calm, key=lambda point: (point.figures.worst_ratio, point.figures.replica_syncs)))
    return sorted(dict.fromkeys(chosen), key=lambda point: point.figures.replica_syncs)


def _prune(point: Point, before: Parameters, spec: HpaSpec, train: Evaluate, allowed: int) -> Point:
    """Return the point without the changes that are worth nothing on training days."""
    limit = max(allowed, point.figures.violating)
    for _round in range(12):
        changes = differences(before, point.candidate.parameters, spec)
        options = [Candidate(undone(point.candidate.parameters, before, one)) for one in changes]
        results = [Point(*one) for one in zip(options, train(options), strict=True)]
        idle = [
            one
            for one in results
            if one.figures.violating <= min(limit, point.figures.violating)
            and one.figures.worst_ratio <= point.figures.worst_ratio + 1e-9
            and one.figures.replica_syncs <= point.figures.replica_syncs * (1 + LEAST_SAVING / 4)
        ]
        if not idle:
            break
        point = min(idle, key=lambda one: one.figures.replica_syncs)
    return point


def _with_floors(
    seen: t.Mapping[Candidate, Figures],
    schedules: t.Sequence[Schedule],
    train: Evaluate,
    allowed: int,
    spec: HpaSpec,
    before: Parameters,
) -> Point | None:
    """Return the best pair of parameters and schedule, from the cheapest parameters, which may violate too often alone."""
    ordered = sorted(seen, key=lambda one: (seen[one].replica_syncs, seen[one].violating))
    places = sorted({round(index * (len(ordered) - 1) / 39) for index in range(40)})
    careful = [point.candidate for point in _shortlist(seen, allowed, spec, before)]
    basis = list(dict.fromkeys([*(ordered[place] for place in places[:30]), *careful]))
    pairs = [Candidate(one.parameters, schedule) for one in basis for schedule in schedules]
    points = [Point(*one) for one in zip(pairs, train(pairs), strict=True)]
    good = [point for point in points if point.figures.violating <= allowed]
    return min(good, key=lambda point: _key(point, allowed, before, spec)) if good else None


def _reasons(chosen: Candidate, before: Parameters, spec: HpaSpec, train: Evaluate) -> tuple[Reason, ...]:
    changes = differences(before, chosen.parameters, spec)
    without = [Candidate(undone(chosen.parameters, before, one)) for one in changes]
    return tuple(Reason(*one) for one in zip(changes, train(without), strict=True))
