# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Items find bins at the least cost: compared with all ways there are, where there are few."""

from __future__ import annotations

import itertools
import math
import typing as t
from dataclasses import replace

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.balance import Problem, balance
from hypothesis import given, settings
from hypothesis import strategies as st


def problem(
    sizes: t.Sequence[int],
    homes: t.Sequence[int],
    weights: t.Sequence[float],
    threshold: float = 0.1,
    loads: t.Sequence[float] | None = None,
    rooms: t.Sequence[float] | None = None,
) -> Problem:
    """Return a problem whose bins are to have shares by weight; one of weight 0 is emptied."""
    loads = [float(size) for size in sizes] if loads is None else loads
    allowed = sum(loads) * (1 + threshold) / sum(weights) * (1 + 1e-9)
    return Problem(
        loads=loads,
        sizes=sizes,
        costs=sizes,
        homes=homes,
        limits=[allowed * weight for weight in weights],
        rooms=[math.inf] * len(weights) if rooms is None else rooms,
        emptied=[not weight for weight in weights],
    )


@st.composite
def problems(draw: t.Callable[..., t.Any], most_items: int, bins: tuple[int, int]) -> Problem:
    """Draw a problem; half of them with loads that are not the sizes, some with little room and some with a bin to empty."""
    count = draw(st.integers(*bins))
    sizes = draw(st.lists(st.integers(1, 60), min_size=2, max_size=most_items))
    items = len(sizes)
    weights = draw(st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0]), min_size=count, max_size=count))
    if draw(st.booleans()):
        weights[0] = 0.0
    loads = draw(st.none() | st.lists(st.integers(1, 60).map(float), min_size=items, max_size=items))
    rooms = draw(st.none() | st.lists(st.integers(0, 200), min_size=count, max_size=count))
    homes = draw(st.lists(st.integers(0, count - 1), min_size=items, max_size=items))
    return problem(sizes, homes, weights, draw(st.sampled_from([0.0, 0.05, 0.1, 0.5])), loads, rooms)


def least_cost(made: Problem) -> int | None:
    """Return what the cheapest of all ways that keep every limit costs, or None when there is none."""
    best = None
    bins = range(len(made.limits))
    for homes in itertools.product(bins, repeat=len(made.loads)):
        then = made.moved(homes)
        cost = made.cost(homes)
        if (best is None or cost < best) and not then.excess() and min(then.rooms) >= 0:
            best = cost
    return best


@settings(max_examples=60, deadline=None)
@given(problems(6, (2, 3)))
def test_no_way_to_keep_the_limits_is_cheaper_by_more_than_a_twentieth(made: Problem) -> None:
    least = least_cost(made)
    homes = balance(made)

    if least is None:
        assert made.moved(homes).excess()
    else:
        assert not made.moved(homes).excess()
        assert made.cost(homes) <= 1.05 * least


@settings(max_examples=60, deadline=None)
@given(problems(40, (2, 6)))
def test_no_bin_gets_fuller_than_it_may_be_or_was_and_nothing_is_left_to_do(made: Problem) -> None:
    homes = balance(made)
    then = made.moved(homes)
    held = made.held()

    assert min(then.rooms, default=0) >= 0 or then.rooms == made.rooms
    if not any(made.emptied):
        for bin, load in enumerate(then.held()):
            assert load <= max(made.limits[bin], held[bin]) + 1e-6
    # a bin that is to be emptied keeps what fits nowhere
    for item, home in enumerate(homes):
        if made.emptied[home]:
            others = [bin for bin in range(len(held)) if not made.emptied[bin]]
            assert all(made.sizes[item] > then.rooms[bin] for bin in others)
    assert balance(then) == homes


def least_sum(sizes: t.Iterable[int], need: float) -> int:
    """Return the least sum of some of the sizes that is at least ``need``: bit n is set when there is a sum of n."""
    sums = 1
    for size in sizes:
        sums |= sums << size
    least = math.ceil(need)
    above = sums >> least
    return least + (above & -above).bit_length() - 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(20, 100), min_size=300, max_size=300), st.sampled_from([0.1, 0.2]))
def test_with_many_items_the_cost_is_within_a_twentieth_of_what_each_bin_must_give(
    sizes: list[int], threshold: float
) -> None:
    """Cost is load here, so each bin gives the least sum of its items that is its excess or more."""
    made = problem(sizes, [item % 4 for item in range(300)], [1.0] * 5, threshold)
    homes = balance(made)
    least = 0
    for bin, (load, limit) in enumerate(zip(made.held(), made.limits, strict=True)):
        if load > limit:
            least += least_sum(sizes[bin::4], load - limit)

    assert not made.moved(homes).excess()
    assert made.cost(homes) <= 1.05 * least


def test_what_is_cheap_for_its_load_goes_first() -> None:
    made = problem([100, 1, 100, 100], [0, 0, 0, 1], [1.0, 1.0], 0.0, loads=[10.0, 10.0, 10.0, 10.0])

    assert balance(made) == [0, 1, 0, 1]


def test_two_items_change_places_when_nothing_else_helps() -> None:
    made = problem([6, 6, 4, 4], [0, 0, 1, 1], [1.0, 1.0], 0.0)

    assert not made.moved(balance(made)).excess()
    assert made.cost(balance(made)) == 10


def test_an_item_that_fits_nowhere_stays_and_the_rest_makes_way() -> None:
    made = problem([90, 5, 5, 5], [0, 0, 0, 1], [1.0, 1.0, 1.0])

    homes = balance(made)
    assert homes[0] == 0
    assert 0 not in homes[1:]


def test_what_leaves_a_bin_makes_no_room_in_it() -> None:
    made = problem([6, 6, 4, 4], [0, 0, 1, 1], [1.0, 1.0], 0.0, rooms=[0, 100])

    assert balance(made) == [0, 0, 1, 1]
    assert balance(replace(made, rooms=[4, 6])) != [0, 0, 1, 1]
