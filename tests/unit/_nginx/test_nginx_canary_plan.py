# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which shares are still to be watched, and whether a canary holds: properties, and the cases that matter."""

from __future__ import annotations

import dataclasses
import json
import math
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._nginx.canary.converge import canary_spec, parse_wanted
from ansible_collections.headroom.scale.plugins.module_utils._nginx.canary.judge import Limits, Side, bound_ms, judge
from ansible_collections.headroom.scale.plugins.module_utils._nginx.canary.plan import (
    Share,
    find,
    promotion,
    remaining,
    shown,
    steps_to,
)
from balancers.world import filled
from hypothesis import given
from hypothesis import strategies as st

STEPS = [1, 5, 25, 50, 100]
steps = st.sets(st.integers(1, 100), min_size=1).map(sorted)
shares = st.lists(st.builds(Share, st.integers(0, 100), st.booleans()), min_size=1, max_size=4)
LIMITS = Limits(100, 1.0, 0.5, None, 1.5)


def side(requests: int, errors: int = 0, p95_ms: float = 10.0) -> Side:
    """Return a side all of whose answers took about the same time."""
    return Side(requests, errors, {round(4 * math.log2(p95_ms)): requests} if requests else {})


@given(shares, steps)
def test_what_remains_grows_to_the_last_step_and_leaves_none_out(now: list[Share], wanted: list[int]) -> None:
    left = remaining(now, wanted)
    low = min(share.percent for share in now)
    assert list(left) == sorted(set(left))
    if left:
        assert left[-1] == wanted[-1]
        # no more at first than what is everywhere, or the next step
        assert left[0] <= max(low, min((step for step in wanted if step > low), default=wanted[-1]))
        assert {step for step in wanted if step > low} <= set(left)
    else:
        assert all(share == Share(low) for share in now)
        assert low >= wanted[-1]
    # after a run there is nothing left to do
    assert remaining([Share(wanted[-1])] * len(now), wanted) == ()


@pytest.mark.parametrize(
    ("now", "left"),
    [
        ([Share(0), Share(0)], (1, 5, 25, 50, 100)),
        # set by hand, for good
        ([Share(10), Share(10)], (25, 50, 100)),
        # a run died there, or while it told one after the other
        ([Share(25, True), Share(25, True)], (25, 50, 100)),
        ([Share(5, True), Share(25, True)], (5, 25, 50, 100)),
        ([Share(0), Share(25, True)], (1, 5, 25, 50, 100)),
        ([Share(100, True), Share(100)], (100,)),
        ([Share(100), Share(100)], ()),
    ],
)
def test_a_run_goes_on_at_what_it_finds(now: list[Share], left: tuple[int, ...]) -> None:
    assert remaining(now, STEPS) == left


def test_a_plan_says_each_step_in_words() -> None:
    rows = [(step.action, step.why) for step in promotion([Share(0), Share(5)], "app", [5, 50], 60.0, 100)]
    assert rows == [
        ("change", "0 and 5 -> 5 %, watched for 60 s and 100 requests"),
        ("change", "5 -> 50 %, watched for 60 s and 100 requests"),
        ("keep", "50 %"),
    ]
    told = steps_to({"lb1": Share(5, True), "lb2": Share(0), "lb3": Share(7)}, "app", 0)
    assert [(name, step.why) for name, step in told] == [("lb1", "5 % for now -> 0 %"), ("lb3", "7 -> 0 %")]
    assert shown({"lb2": 1, "lb1": 0}, "app") == "lb1: canary of app: 0 %\nlb2: canary of app: 1 %\n"


def test_an_upstream_without_a_canary_is_refused_with_those_that_have_one() -> None:
    row = {"percent": 0, "lease_s": None, "changes": 0, "stable": None, "canary": None}
    said: t.Any = {"lb1": [{"name": "app", "canary": None}, {"name": "shop", "canary": row}, {"name": "old"}]}
    for name in ("app", "old", "other"):
        with pytest.raises(OptionError, match="lb1 has no upstream of that name with a canary; give one of: shop"):
            find(said, name)
    with pytest.raises(OptionError, match="declare one with the module nginx_config"):
        find({"lb1": []}, "app")


@pytest.mark.parametrize(
    ("canary", "stable", "codes"),
    [
        (side(1000, 10), side(1000, 10), []),
        (side(1000, 11), side(1000, 11), ["errors"]),
        (side(1000, 8), side(1000, 2), ["errors_above_stable"]),
        (side(1000, 8), side(1000, 3), []),
        # what 100 requests could still make good is no breach, and what they could not is one at once
        (side(1, 1), side(0), []),
        (side(2, 2), side(0), ["errors"]),
        (side(0), side(0), []),
        # a stable side that is hardly known is nothing to compare with
        (side(1000, 9, 90), side(99, 0, 10), []),
        (side(1000, 0, 20), side(1000, 0, 10), ["p95_above_stable"]),
        (side(1000, 0, 12), side(1000, 0, 10), []),
        (side(99, 0, 500), side(1000, 0, 10), []),
        # a few milliseconds are chance
        (side(1000, 0, 4), side(1000, 0, 1.1), []),
    ],
)
def test_a_canary_is_held_to_its_limits(canary: Side, stable: Side, codes: list[str]) -> None:
    assert [breach.code for breach in judge(canary, stable, LIMITS)] == codes


def test_a_limit_in_milliseconds_needs_no_stable_side() -> None:
    (breach,) = judge(side(100, 0, 300), Side(), dataclasses.replace(LIMITS, p95_ms=250.0))
    assert breach.code == "p95"
    assert breach.text.endswith("and 250 ms may be")


sides = st.builds(
    lambda requests, errors, p95: side(requests, min(requests, errors), p95),
    st.integers(0, 2000),
    st.integers(0, 50),
    st.floats(1, 10_000),
)


@given(sides, sides, st.integers(0, 500))
def test_more_errors_never_mend_a_canary(canary: Side, stable: Side, min_requests: int) -> None:
    limits = dataclasses.replace(LIMITS, min_requests=min_requests)
    codes = {breach.code for breach in judge(canary, stable, limits)}
    if canary.errors < canary.requests:
        worse = dataclasses.replace(canary, errors=canary.errors + 1)
        assert codes <= {breach.code for breach in judge(worse, stable, limits)}
    better = dataclasses.replace(canary, errors=0)
    assert not {"errors", "errors_above_stable"} & {breach.code for breach in judge(better, stable, limits)}


@given(st.lists(st.floats(0.1, 50_000), min_size=1, max_size=300))
def test_the_histogram_tells_p95_within_a_bucket(times_ms: list[float]) -> None:
    histogram: dict[int, int] = {}
    for one in times_ms:
        number = max(0, math.ceil(4 * math.log2(one) - 1e-9)) if one > 1 else 0
        histogram[number] = histogram.get(number, 0) + 1
    true = sorted(times_ms)[math.ceil(0.95 * len(times_ms)) - 1]
    found = Side(len(times_ms), 0, histogram).p95_ms
    assert found is not None
    # one bucket is a quarter of an octave wide
    assert found <= max(true, 1.0) * 2**0.25 * 1.0001
    assert found * 2**0.25 * 1.0001 >= true or true <= 1


@given(sides, sides)
def test_a_window_is_what_was_added(before: Side, added: Side) -> None:
    after = before.plus(added)
    assert after.minus(before) == added
    assert json.dumps(after.as_dict())


def test_bounds_are_a_quarter_of_an_octave_apart() -> None:
    assert [bound_ms(number) for number in (0, 4, 40)] == [1, 2, 1024]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [5, 1]}, "steps"),
        ({"steps": [1, 1]}, "steps"),
        ({"steps": [0, 1]}, "steps"),
        ({"steps": [50, 101]}, "steps"),
        ({"percent": 101}, "percent"),
        ({"percent": -1}, "percent"),
        ({"step_s": 0.5}, "step_s"),
        ({"step_s": float("nan")}, "step_s"),
        ({"step_timeout_s": 30.0}, "step_timeout_s"),
        ({"lease_s": 17.0}, "lease_s"),
        ({"lease_s": 4000.0}, "lease_s"),
        ({"limits": {"min_requests": -1}}, "limits.min_requests"),
        ({"limits": {"error_percent": 101.0}}, "limits.error_percent"),
        ({"limits": {"error_percent_above_stable": -1.0}}, "limits.error_percent_above_stable"),
        ({"limits": {"p95_ms": 0.0}}, "limits.p95_ms"),
        ({"limits": {"p95_times_stable": 0.5}}, "limits.p95_times_stable"),
        ({"progress_file": "/no/such/directory/file"}, "progress_file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, t.Any], names: str) -> None:
    params = filled(canary_spec().options, {"balancers": [], "upstream": "app", **options})
    with pytest.raises(OptionError) as refused:
        parse_wanted(params)
    assert refused.value.facts["option"] == names
