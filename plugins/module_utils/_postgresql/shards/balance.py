# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Which items change their bin so that no bin is over its limit, at the least cost. Pure, and without the words of shards.

This is bin packing with a cost of moving, which is NP-hard. Few items are searched exhaustively by branch and bound. Else each
bin that is over its limit gives a cheapest cover of its excess, found by a greedy knapsack, to the bins that are emptiest for their
size. A bin that takes is never pushed over its limit, except by what must leave a bin that is to be emptied.
"""

from __future__ import annotations

import heapq
import math
import typing as t
from dataclasses import dataclass, replace

# more items or more work than this are left to the greedy way
SEARCH_ITEMS = 24
SEARCH_STEPS = 200_000
# how far a cover is improved: for so many steps, and no closer to the least than this fraction
COVER_STEPS = 2_000
COVER_GAP = 0.001


@dataclass(frozen=True)
class Problem:
    """Items by index, each with a load, a size, a cost of moving and the bin it is in; bins by index."""

    loads: t.Sequence[float]
    sizes: t.Sequence[int]
    costs: t.Sequence[int]
    homes: t.Sequence[int]
    # what a bin's load may be
    limits: t.Sequence[float]
    # how much size may come into a bin, math.inf for any; what leaves a bin makes no room in it
    rooms: t.Sequence[float]
    # bins that everything must leave
    emptied: t.Sequence[bool]

    def excess(self) -> bool:
        """Return whether a bin is over its limit, or holds what must leave it."""
        held = self.held()
        return any(self.emptied[home] for home in self.homes) or any(
            load > limit for load, limit in zip(held, self.limits, strict=True)
        )

    def held(self) -> list[float]:
        """Return the load of each bin."""
        held = [0.0] * len(self.limits)
        for item, home in enumerate(self.homes):
            held[home] += self.loads[item]
        return held

    def moved(self, homes: t.Sequence[int]) -> Problem:
        """Return the problem that is left once the items are in other bins."""
        rooms = list(self.rooms)
        for item, home in enumerate(homes):
            if home != self.homes[item]:
                rooms[home] -= self.sizes[item]
        return replace(self, homes=homes, rooms=rooms)

    def cost(self, homes: t.Sequence[int]) -> int:
        """Return what it costs to bring the items there."""
        return sum(cost for cost, old, new in zip(self.costs, self.homes, homes, strict=True) if old != new)


def balance(problem: Problem) -> list[int]:
    """Return the bin of each item, after which another call finds nothing to do, unless room has been made meanwhile."""
    left = problem
    while left.excess():
        homes = _better(left)
        if homes == left.homes:
            break
        left = left.moved(homes)
    return list(left.homes)


def _better(problem: Problem) -> list[int]:
    homes = _greedy(problem)
    if len(problem.loads) > SEARCH_ITEMS:
        return homes
    reached = not problem.moved(homes).excess()
    return _search(problem, problem.cost(homes) if reached else None) or homes


class _Bins:
    """Where items are while the greedy way goes on."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.homes = list(problem.homes)
        self.held = problem.held()
        self.rooms = list(problem.rooms)
        # the emptiest for its size first; an entry counts only while its fill is that of the bin
        self.emptiest = [(self.fill(bin), bin) for bin in range(len(self.held)) if not problem.emptied[bin]]
        heapq.heapify(self.emptiest)

    def fill(self, bin: int) -> float:
        return self.held[bin] / self.problem.limits[bin]

    def target(self, item: int, any_load: bool = False) -> int | None:
        """Return the emptiest bin that can take an item, or with ``any_load`` the one that it overloads least."""
        problem = self.problem
        load, size, home = problem.loads[item], problem.sizes[item], self.homes[item]
        seen, found = [], None
        best = math.inf
        while self.emptiest:
            entry = heapq.heappop(self.emptiest)
            fill, bin = entry
            if fill != self.fill(bin):
                continue
            seen.append(entry)
            if bin == home or size > self.rooms[bin]:
                continue
            if any_load:
                after = (self.held[bin] + load) / problem.limits[bin]
                if after < best:
                    found, best = bin, after
            elif self.held[bin] + load <= problem.limits[bin]:
                found = bin
                break
        for entry in seen:
            heapq.heappush(self.emptiest, entry)
        return found

    def move(self, item: int, target: int) -> None:
        home, load = self.homes[item], self.problem.loads[item]
        self.homes[item] = target
        self.rooms[target] -= self.problem.sizes[item]
        self.held[home] -= load
        self.held[target] += load
        for bin in (home, target):
            if not self.problem.emptied[bin]:
                heapq.heappush(self.emptiest, (self.fill(bin), bin))


def _greedy(problem: Problem) -> list[int]:
    bins = _Bins(problem)
    inside: list[list[int]] = [[] for _bin in problem.limits]
    for item, home in enumerate(problem.homes):
        inside[home].append(item)
    leaving = [item for item, home in enumerate(problem.homes) if problem.emptied[home]]
    for item in sorted(leaving, key=lambda one: (-problem.loads[one], -problem.sizes[one], one)):
        target = bins.target(item)
        if target is None:
            target = bins.target(item, any_load=True)
        if target is not None:
            bins.move(item, target)
            inside[target].append(item)
    over = [bin for bin, held in enumerate(bins.held) if not problem.emptied[bin] and held > problem.limits[bin]]
    for bin in sorted(over, key=lambda one: (-bins.fill(one), one)):
        # what fits nowhere is not asked again
        items = [item for item in inside[bin] if problem.loads[item] > 0]
        while items and bins.held[bin] > problem.limits[bin]:
            chosen = _cover(problem, items, bins.held[bin] - problem.limits[bin])
            for item in sorted(chosen, key=lambda one: (-problem.loads[one], one)):
                target = bins.target(item)
                if target is not None:
                    bins.move(item, target)
            items = [item for item in items if item not in chosen]
    return bins.homes


def _cover(problem: Problem, items: t.Sequence[int], need: float) -> set[int]:
    """Return items of a load that is at least ``need``, at little cost; all items when they do not reach it.

    The knapsack cover problem. By greed first: items in the order of their cost for a unit of load go in while they leave
    something to cover, and each that would cover the rest makes a candidate. Then by branch and bound in the same order, as far as
    the steps reach: a branch is cut when even fractions of the items that follow make it about as dear as the best that is known.
    """
    loads, costs = problem.loads, problem.costs
    order = sorted(items, key=lambda one: (costs[one] / loads[one], -loads[one], one))
    best, best_cost = set(items), math.inf
    taken: list[int] = []
    left, cost = need, 0
    for item in order:
        if loads[item] < left:
            taken.append(item)
            left -= loads[item]
            cost += costs[item]
        elif cost + costs[item] < best_cost:
            best, best_cost = {*taken, item}, cost + costs[item]
    steps = 0
    # each entry: how many items were decided, what is left to cover, what it costs, and the items taken
    waiting: list[tuple[int, float, int, tuple[int, ...]]] = [(0, need, 0, ())]
    while waiting and steps < COVER_STEPS:
        depth, left, cost, chosen = waiting.pop()
        least, rest, enough = float(cost), left, best_cost * (1 - COVER_GAP)
        for item in order[depth:]:
            steps += 1
            part = min(1.0, rest / loads[item])
            least += costs[item] * part
            rest -= loads[item] * part
            if rest <= 0 or least >= enough:
                break
        if rest > 0 or least >= enough:
            continue
        item = order[depth]
        waiting.append((depth + 1, left, cost, chosen))
        if loads[item] < left:
            waiting.append((depth + 1, left - loads[item], cost + costs[item], (*chosen, item)))
        elif cost + costs[item] < best_cost:
            best, best_cost = {*chosen, item}, cost + costs[item]
    return best


def _search(problem: Problem, incumbent: int | None) -> list[int] | None:
    """Return where items go so that no limit is passed, at the least cost, by branch and bound; None if there is no such way.

    Depth first: what must leave and what overloads comes first, the largest before the smaller. A branch is cut when what it has
    cost, and what the excess that is left must cost at least, is no less than the best that is known.

    :param incumbent: what a known way costs; only a cheaper one is returned.
    """
    loads, sizes, costs, limits, emptied = problem.loads, problem.sizes, problem.costs, problem.limits, problem.emptied
    bins = range(len(limits))
    held = problem.held()
    order = sorted(
        range(len(loads)),
        key=lambda one: (
            not emptied[problem.homes[one]],
            held[problem.homes[one]] <= limits[problem.homes[one]],
            -loads[one],
            -sizes[one],
            one,
        ),
    )
    # the least cost of taking a unit of load out of a bin
    rate = [
        min((costs[one] / loads[one] for one in order if problem.homes[one] == bin and loads[one] > 0), default=0.0)
        for bin in bins
    ]
    fixed = [0.0] * len(limits)
    rooms = list(problem.rooms)
    homes = list(problem.homes)
    best: list[int] | None = None
    best_cost = math.inf if incumbent is None else incumbent
    steps = 0

    def descend(depth: int, cost: int) -> None:
        nonlocal best, best_cost, steps
        steps += len(limits)
        least = cost + sum(
            (fixed[bin] + held[bin] - limits[bin]) * rate[bin] for bin in bins if fixed[bin] + held[bin] > limits[bin]
        )
        if steps > SEARCH_STEPS or least >= best_cost:
            return
        if depth == len(order):
            best, best_cost = list(homes), cost
            return
        item = order[depth]
        home, load = problem.homes[item], loads[item]
        held[home] -= load
        if not emptied[home] and fixed[home] + load <= limits[home]:
            fixed[home] += load
            descend(depth + 1, cost)
            fixed[home] -= load
        tried = set()
        for bin in sorted(bins, key=lambda one: fixed[one] + held[one] - limits[one]):
            alike = (limits[bin] - fixed[bin], rooms[bin], held[bin], rate[bin])
            fits = not emptied[bin] and fixed[bin] + load <= limits[bin] and sizes[item] <= rooms[bin]
            if bin == home or not fits or (alike in tried and held[bin] == 0):
                continue
            tried.add(alike)
            fixed[bin] += load
            rooms[bin] -= sizes[item]
            homes[item] = bin
            descend(depth + 1, cost + costs[item])
            homes[item] = home
            rooms[bin] += sizes[item]
            fixed[bin] -= load
        held[home] += load

    descend(0, 0)
    return best
