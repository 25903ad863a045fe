# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of a flush against all that fetches may do to it, played through without clocks and servers.

A source changes at 0. Each layer holds the old content then. A fetch of a layer begins, reads what is inside of it at some moment, and
stores it at some later one, at most ``LONGEST`` after it began. Whatever fetches there are, nothing old must be left when the flush has
ended.
"""

from __future__ import annotations

import typing as t

from ansible_collections.headroom.scale.plugins.module_utils._cache.plan import not_before, sequence
from hypothesis import given, settings
from hypothesis import strategies as st

LONGEST = 10
LAYERS = ["redis", "nginx", "cdn"]

# the layer, when it begins, when it reads and when it stores after that
Fetch = tuple[int, int, int, int]
# when, and which layer
Purge = tuple[float, int]


def purges(layers: int, durations: t.Sequence[int]) -> list[Purge]:
    """Return when the plan purges which layer, the last one at the end of the flush."""
    names = LAYERS[:layers]
    now, ended, found = 0.0, {}, []
    for step, duration in zip(sequence(names, LONGEST), durations, strict=False):
        # a layer is purged some time between the beginning and the end of its step
        now = max(now, not_before(step, names, 0.0, ended)) + duration
        ended[step.layer] = now
        found.append((now, names.index(step.layer)))
    return found


def one_wait(layers: int) -> list[Purge]:
    """Return the same with one wait for all layers."""
    return [(when, layer) for when in (0.0, float(LONGEST)) for layer in range(layers)]


def old_at_the_end(layers: int, planned: t.Sequence[Purge], fetches: t.Sequence[Fetch]) -> list[int]:
    """Return the layers that hold, or come to hold, old content when the flush has ended."""
    holds: list[str | None] = ["old"] * layers
    carried: dict[int, str] = {}
    events: list[tuple[float, int, int]] = []
    for number, (_layer, begins, reads, stores) in enumerate(fetches):
        events += [(begins + reads, 0, number), (begins + reads + stores, 1, number)]
    # at the same moment what reads and what stores comes first: it is the worst that can be
    events += [(when, 2, layer) for when, layer in planned]
    bad: set[int] = set()
    left = len(planned)
    for when, kind, number in sorted(events):
        if kind == 0:
            below = [holds[layer] for layer in range(fetches[number][0]) if holds[layer] is not None]
            carried[number] = below[-1] if below else ("old" if when < 0 else "new")
        elif kind == 1:
            holds[fetches[number][0]] = carried[number]
        else:
            holds[number] = None
            left -= 1
        if not left:
            bad.update(layer for layer in range(layers) if holds[layer] == "old")
    return sorted(bad)


@st.composite
def some_fetches(draw: st.DrawFn) -> tuple[int, list[int], list[Fetch]]:
    """Draw a number of layers, how long the steps take, and fetches."""
    layers = draw(st.integers(1, 3))
    durations = draw(st.lists(st.integers(0, 3), min_size=6, max_size=6))
    fetches = []
    for _number in range(draw(st.integers(0, 12))):
        reads = draw(st.integers(0, LONGEST))
        fetches.append(
            (
                draw(st.integers(0, layers - 1)),
                draw(st.integers(-LONGEST, 60)),
                reads,
                draw(st.integers(0, LONGEST - reads)),
            )
        )
    return layers, durations, fetches


@settings(deadline=None, max_examples=300)
@given(some_fetches())
def test_nothing_old_is_left_whatever_fetches_do(drawn: tuple[int, list[int], list[Fetch]]) -> None:
    layers, durations, fetches = drawn
    assert old_at_the_end(layers, purges(layers, durations), fetches) == []


def test_one_wait_for_all_layers_is_not_enough() -> None:
    """A fetch fills redis with old content at the last moment, and one of nginx has read that before redis is purged again."""
    fetches = [(0, -1, 0, 10), (1, 9, 1, 9)]
    assert old_at_the_end(2, one_wait(2), fetches) == [1]
    assert old_at_the_end(2, purges(2, [0] * 4), fetches) == []


def test_one_pass_is_not_enough() -> None:
    fetches = [(0, -1, 0, 10)]
    assert old_at_the_end(2, purges(2, [0] * 4)[:2], fetches) == [0]


def test_outer_before_inner_is_not_enough() -> None:
    swapped = [(0.0, 1), (1.0, 0)]
    assert old_at_the_end(2, swapped, [(1, 0, 1, 0)]) == [1]
