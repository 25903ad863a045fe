# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What conditions and events tell: states, directions, counts, and what is not known."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.history import (
    current_metrics,
    explain,
    format_time,
    parse_time,
    problems,
    rescales,
    state_of,
    summarise,
)
from hypothesis import given, settings
from hypothesis import strategies as st

NOW_S = 1_800_000_000.0
UP, DOWN = "cpu resource utilization (percentage of request) above target", "All metrics below target"
LIMITED = {"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas"}
GOOD = [
    {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale"},
    {"type": "ScalingActive", "status": "True", "reason": "ValidMetricFound"},
]


def event(size: int, why: str, ago_s: float, *, first_ago_s: float | None = None, count: int = 1) -> dict[str, t.Any]:
    """An event of a decision that was carried out."""
    return {
        "reason": "SuccessfulRescale",
        "message": f"New size: {size}; reason: {why}",
        "firstTimestamp": format_time(NOW_S - (ago_s if first_ago_s is None else first_ago_s)),
        "lastTimestamp": format_time(NOW_S - ago_s),
        "count": count,
    }


def hpa(most: int = 8, current: int = 4, **status: t.Any) -> dict[str, t.Any]:
    """An autoscaler."""
    target = {"kind": "Deployment", "name": "app"}
    return {"spec": {"scaleTargetRef": target, "maxReplicas": most}, "status": {"currentReplicas": current, **status}}


def told(events: list[dict[str, t.Any]], item: t.Any = None, window_s: float = 3600.0) -> dict[str, t.Any]:
    """The summary."""
    return summarise(item or hpa(), events, NOW_S, window_s)


@pytest.mark.parametrize(
    ("conditions", "status", "state"),
    [
        ([], {}, "unknown"),
        (GOOD, {"desiredReplicas": 4}, "stable"),
        (GOOD, {"desiredReplicas": 5}, "scaling"),
        ([*GOOD, LIMITED], {"desiredReplicas": 4}, "at_max"),
        ([*GOOD, {**LIMITED, "reason": "TooFewReplicas"}], {"desiredReplicas": 4}, "stable"),
        ([*GOOD, {**LIMITED, "status": "False"}], {"desiredReplicas": 4}, "stable"),
        ([GOOD[0], {"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric"}], {}, "failing"),
        ([{"type": "AbleToScale", "status": "False", "reason": "FailedGetScale"}], {}, "failing"),
        ([GOOD[0], {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled"}], {}, "disabled"),
    ],
)
def test_states(conditions: t.Any, status: t.Any, state: str) -> None:
    assert state_of(hpa(conditions=conditions, **status)) == state


def test_conditions_are_explained() -> None:
    assert "check metrics-server" in explain({"reason": "FailedGetResourceMetric", "message": "raw"})
    assert explain({"reason": "Newer", "message": "its own words"}) == "its own words"
    assert explain({"reason": "Newer"})


def test_ups_and_downs_by_the_words_of_the_reason() -> None:
    summary = told(
        [
            event(4, UP, 1000),
            event(2, DOWN, 500),
            event(3, "Current number of replicas below Spec.MinReplicas", 400),
            event(1, "Current number of replicas above Spec.MaxReplicas", 300),
        ]
    )
    assert (summary["ups"], summary["downs"], summary["unclear"], summary["reversals"]) == (2, 2, 0, 3)
    assert [entry["direction"] for entry in summary["history"]] == ["up", "down", "up", "down"]
    assert summary["flapping"] is True
    assert summary["last_decision"]["size"] == 1


def test_other_words_are_compared_with_the_size_before() -> None:
    summary = told([event(4, "", 1000), event(6, "", 500), event(5, "", 400)])
    assert [entry["direction"] for entry in summary["history"]] == ["unclear", "up", "down"]
    assert (summary["ups"], summary["downs"], summary["unclear"]) == (1, 1, 1)


def test_one_way_is_no_flapping() -> None:
    summary = told([event(size, UP, 1000 - 10 * size) for size in range(2, 9)])
    assert (summary["ups"], summary["reversals"], summary["flapping"], summary["complete"]) == (7, 0, False, True)


def test_an_event_that_came_again_tells_that_it_turned() -> None:
    summary = told([event(4, UP, 10, first_ago_s=900, count=5)])
    assert (summary["ups"], summary["reversals"], summary["flapping"], summary["complete"]) == (5, 4, True, False)
    assert len(summary["history"]) == 2
    # of what began before the window, one is known to be within
    summary = told([event(4, UP, 10, first_ago_s=900, count=5)], window_s=100)
    assert (summary["ups"], summary["reversals"], summary["flapping"]) == (1, 0, False)


def test_time_at_the_maximum() -> None:
    assert told([event(8, UP, 1000), event(4, DOWN, 400)])["at_max_s"] == 600
    assert told([event(8, UP, 1000)])["at_max_s"] == 1000
    assert told([event(8, UP, 1000)], window_s=300)["at_max_s"] == 300
    assert told([event(4, DOWN, 1000)])["at_max_s"] == 0
    at_max = hpa(current=8, lastScaleTime=format_time(NOW_S - 500))
    assert told([], at_max)["at_max_s"] == 500
    assert told([], at_max, window_s=100)["at_max_s"] == 100
    assert told([], hpa(current=8))["at_max_s"] is None
    assert told([], hpa(current=3))["at_max_s"] == 0
    assert told([], {"spec": {"maxReplicas": 8}})["at_max_s"] is None


def test_without_events() -> None:
    summary = told([])
    assert (summary["last_decision"], summary["history"], summary["complete"], summary["flapping"]) == (
        None,
        [],
        True,
        False,
    )


def test_events_of_the_newer_kind() -> None:
    newer = {
        "reason": "SuccessfulRescale",
        "message": f"New size: 3; reason: {UP}",
        "eventTime": "2026-11-21T10:00:00.123456Z",
        "series": {"count": 2, "lastObservedTime": "2026-11-21T10:05:00.000000Z"},
    }
    found = rescales(
        [newer, {**newer, "reason": "Other"}, {**newer, "message": "text"}, {"reason": "SuccessfulRescale"}]
    )
    assert [(item.size, item.count, item.last_s - item.first_s) for item in found] == [(3, 2, 300)]


def test_problems_are_the_warnings_the_latest_first() -> None:
    events = [
        {"type": "Warning", "reason": "A", "message": "a", "lastTimestamp": "2026-11-21T10:00:00Z"},
        {"type": "Warning", "reason": "B", "message": "b", "lastTimestamp": "2026-11-21T11:00:00Z", "count": 3},
        {"type": "Normal", "reason": "C", "message": "c"},
    ]
    assert [(entry["reason"], entry["count"]) for entry in problems(events)] == [("B", 3), ("A", 1)]


def test_values_are_told_in_the_unit_of_their_target() -> None:
    target = {"type": "AverageValue", "averageValue": "100m"}
    now = {"averageUtilization": 9, "averageValue": "80m"}
    item = hpa(currentMetrics=[{"type": "Resource", "resource": {"name": "cpu", "current": now}}])
    item["spec"]["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    assert current_metrics(item) == [{"name": "cpu", "target": "100m per pod", "current": "80m per pod"}]


def test_times() -> None:
    assert format_time(parse_time("2026-11-21T10:00:00Z")) == "2026-11-21T10:00:00Z"
    assert (parse_time(None), parse_time("soon")) == (None, None)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 5000)), max_size=12, unique_by=lambda entry: entry[1]),
    st.integers(1, 4000),
)
def test_counts_add_up(decisions: list[tuple[int, int]], window_s: int) -> None:
    summary = told([event(size, "", ago) for size, ago in decisions], window_s=float(window_s))
    within = sorted((entry for entry in decisions if entry[1] <= window_s), key=lambda entry: -entry[1])
    assert summary["ups"] + summary["downs"] + summary["unclear"] == len(within)
    assert [entry["size"] for entry in summary["history"]] == [size for size, _ago in within]
    assert summary["at_max_s"] is None or 0 <= summary["at_max_s"] <= window_s
    assert summary["reversals"] <= max(0, len(within) - 1)
