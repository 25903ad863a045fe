# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One step of the controller, rule by rule. Expected counts are worked out by hand from the documented algorithm."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.controller import reconcile
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.model import (
    UNKNOWN,
    Behavior,
    HpaSpec,
    Memory,
    Metric,
    Pod,
    Policy,
    Reading,
    Recommendation,
    Rules,
    Sample,
    Scale,
    ScaleEvent,
    Settings,
    Step,
)

NOW_S = 10_000.0
REQUESTS = {"app": {"cpu": 1000, "memory": 1000}}
OLD = Pod("old", ready_since_s=100, start_s=0, requests_milli=REQUESTS)
CPU = Metric("Resource", "cpu", "Utilization", 50)
MEMORY = Metric("Resource", "memory", "Utilization", 50)
CPU_VALUE = Metric("Resource", "cpu", "AverageValue", 500)
RATE = Metric("Pods", "rate", "AverageValue", 10_000)
OBJECT = Metric("Object", "rps", "Value", 100_000)
OBJECT_AVERAGE = Metric("Object", "rps", "AverageValue", 100_000)
EXTERNAL = Metric("External", "queue", "Value", 100_000)
EXTERNAL_AVERAGE = Metric("External", "queue", "AverageValue", 100_000)
ANY_RATE = (Policy("Percent", 1000, 15), Policy("Pods", 1000, 15))
FREE = Behavior(Rules(0, ANY_RATE), Rules(0, (Policy("Percent", 100, 15),)))


EMPTY = Memory(())


def pods(count: int, **changes: t.Any) -> list[Pod]:
    """Return pods p0, p1 and so on that have been ready for long."""
    return [replace(OLD, name=f"p{index}", **changes) for index in range(count)]


def used(*values: int | None) -> Reading:
    """Return what p0, p1 and so on used, measured just now; None for no metrics."""
    return Reading(
        {f"p{index}": Sample(value, NOW_S - 5, 30) for index, value in enumerate(values) if value is not None}
    )


def step(
    metrics: Metric | t.Sequence[Metric],
    readings: Reading | t.Sequence[Reading],
    current: int,
    given: t.Sequence[Pod] | None = None,
    behavior: Behavior | None = FREE,
    least: int = 1,
    most: int = 100,
    memory: Memory = EMPTY,
    **more: t.Any,
) -> Step:
    """Take a step with windows and rates out of the way, unless they are given."""
    several = (metrics,) if isinstance(metrics, Metric) else tuple(metrics)
    read = (readings,) if isinstance(readings, Reading) else tuple(readings)
    more.setdefault("now_s", NOW_S)
    scale = more.pop("scale", Scale(current, current))
    found = pods(current) if given is None else given
    return reconcile(HpaSpec(most, least, several, behavior), scale, found, read, memory=memory, **more)


def reasons(done: Step) -> dict[str, tuple[bool, str]]:
    return {one.type: (one.status, one.reason) for one in done.conditions}


# ---- utilization and averages


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([900, 900, 900], 6),  # 90 % of 50 %: 1.8 x 3 = 5.4
        ([500, 500, 500], 3),
        ([549, 549, 549], 3),  # 54 %: a ratio of 1.08
        ([559, 559, 559], 3),  # 55 % after truncation: 1.1, and 1.1 is within 1 + 0.1
        ([560, 560, 560], 4),  # 56 %: 1.12
        ([450, 450, 450], 3),  # 45 %: 0.9 is within 1 - 0.1
        ([449, 449, 449], 3),  # 44 %: 0.88 x 3 = 2.64
        ([300, 300, 300], 2),  # 0.6 x 3 = 1.8
        ([100, 100, 100], 1),
        ([0, 0, 0], 1),
    ],
)
def test_utilization_is_whole_percent_of_the_requests(values: list[int], wanted: int) -> None:
    assert step(CPU, used(*values), 3).replicas == wanted


def test_a_ratio_of_1_1_scaled_up_to_1_32() -> None:
    reading = used(550, 550, 550)
    assert step(CPU, reading, 3, version="1.33").replicas == 3
    assert step(CPU, reading, 3, version="1.32").replicas == 4


@pytest.mark.parametrize(
    ("values", "wanted"), [([899] * 10, 9), ([900] * 10, 10), ([1000] * 10, 10), ([1111] * 10, 12)]
)
def test_plain_averages_are_whole_thousandths(values: list[int], wanted: int) -> None:
    metric = replace(CPU_VALUE, target=1000)
    assert step(metric, used(*values), 10).replicas == wanted


def test_the_mean_is_truncated_before_it_is_compared() -> None:
    # 1100.67 of 1000 would be outside of the tolerance
    assert step(replace(CPU_VALUE, target=1000), used(1100, 1101, 1101), 3).replicas == 3


def test_metrics_of_unknown_pods_count_in_plain_averages_only() -> None:
    stranger = Reading({**used(500, 500).pods, "stranger": Sample(5000, NOW_S)})
    assert step(CPU, stranger, 2).replicas == 2
    assert step(CPU_VALUE, stranger, 2).replicas == 8  # a mean of 2000 of 500, times the two pods that are known


def test_the_status_shows_what_was_measured() -> None:
    done = step((CPU, RATE), (used(900, 901, 900), used(9_000, 9_001, 9_000)), 3)
    assert done.metrics == (
        {"type": "Resource", "resource": {"current": {"averageUtilization": 90, "averageValue": "900m"}}},
        {"type": "Pods", "pods": {"current": {"averageValue": "9"}}},
    )


# ---- tolerances


@pytest.mark.parametrize(
    ("percent", "version", "wanted"),
    [(53, "1.33", 10), (54, "1.33", 11), (42, "1.33", 9), (40, "1.33", 10), (54, "1.32", 10), (40, "1.32", 8)],
)
def test_each_direction_has_its_own_tolerance_from_1_33_on(percent: int, version: str, wanted: int) -> None:
    down = 0.2 if percent == 40 else 0.05
    behavior = Behavior(replace(FREE.up, tolerance=0.06), replace(FREE.down, tolerance=down))
    assert step(CPU, used(*[percent * 10] * 10), 10, behavior=behavior, version=version).replicas == wanted


def test_without_a_tolerance_of_its_own_the_controllers_holds() -> None:
    assert step(CPU, used(540, 540, 540), 3, settings=Settings(tolerance=0.01)).replicas == 4


# ---- groups of pods


def test_a_pod_without_metrics_uses_nothing_on_the_way_up() -> None:
    # 100 % of 50 % on two of three pods: 2000 of 3000 is 66 %, 1.32 x 3 = 3.96; without it 2.0 x 2 = 4
    assert step(CPU, used(1000, 1000, None), 3).replicas == 4
    # 60 % on two of three is 40 % of all: the direction would change
    assert step(CPU, used(600, 600, None), 3).replicas == 3


def test_a_pod_without_metrics_uses_its_request_on_the_way_down() -> None:
    # (100 + 100 + 1000) of 3000 is 40 %, 0.8 x 3 = 2.4
    assert step(CPU, used(100, 100, None), 3).replicas == 3
    # (0 + 0 + 0 + 1000) of 4000 is 25 %, 0.5 x 4
    assert step(CPU, used(0, 0, 0, None), 4).replicas == 2


def test_it_uses_the_target_when_that_is_above_the_request() -> None:
    # (100 x 3 + 2000) of 4000 is 57 %, 0.285 x 4 = 1.14; with the request alone 32 % would come to 1
    assert step(replace(CPU, target=200), used(100, 100, 100, None), 4).replicas == 2


def test_it_uses_the_target_of_a_plain_average_on_the_way_down() -> None:
    # (1000 x 3 + 10000) / 4 = 3250 of 10000, 0.325 x 4 = 1.3; at the ratio of those that are known it would be 1
    assert step(RATE, used(1000, 1000, 1000, None), 4).replicas == 2


def test_a_ratio_of_one_is_left_alone_when_metrics_are_missing() -> None:
    assert step(CPU, used(500, None, None), 3).replicas == 3


def test_missing_metrics_never_turn_the_direction() -> None:
    # down to 0.96 x 5 of the pods that were counted would be more than there are
    done = step(RATE, used(8_000, 8_000, 8_000, 8_000, None), 3, given=pods(5))
    assert done.replicas == 3


@pytest.mark.parametrize("metric", [CPU, MEMORY, CPU_VALUE], ids=["cpu", "memory", "value"])
def test_a_pending_pod_uses_nothing_on_the_way_up(metric: Metric) -> None:
    given = [*pods(2), replace(OLD, name="p2", phase="Pending")]
    # 100 % on two of three pods is 66 % of all: 1.32 x 3 (1.332 x 3 for the plain average)
    assert step(metric, used(1000, 1000), 3, given).replicas == 4
    # and is not counted on the way down: 0.2 x 2
    assert step(metric, used(100, 100), 3, given).replicas == 1


@pytest.mark.parametrize("changes", [{"deleted": True}, {"phase": "Failed"}], ids=["deleted", "failed"])
def test_pods_that_go_or_failed_are_ignored_with_their_metrics(changes: dict[str, t.Any]) -> None:
    given = [*pods(2), replace(OLD, name="p2", **changes)]
    assert step(CPU, used(500, 500, 5000), 3, given).replicas == 3
    assert step(CPU, used(1000, 1000, 0), 3, given).replicas == 4


@pytest.mark.parametrize(("version", "wanted"), [("1.32", 3), ("1.33", 3), ("1.38", 1)])
def test_a_completed_pod_has_no_metrics_until_it_is_ignored(version: str, wanted: int) -> None:
    given = [*pods(3), replace(OLD, name="p3", phase="Succeeded")]
    # 10 % on three pods asks for one; with a fourth that uses all of its request it is 32 %, which asks for three of four
    assert step(CPU, used(100, 100, 100), 3, given, version=version).replicas == wanted
    # what it still reports counts for nothing either
    up = {"1.38": 4}.get(version, 3)
    assert step(CPU, used(600, 600, 600, 0), 3, given, version=version).replicas == up


def test_a_pod_is_deleted_before_it_is_pending() -> None:
    given = [*pods(2), replace(OLD, name="p2", phase="Pending", deleted=True)]
    assert step(CPU, used(1000, 1000), 3, given).replicas == 4  # 2.0 x 2, where unready 1.32 x 3 would be 4 as well
    assert step(CPU, used(560, 560), 3, given).replicas == 3  # 1.12 x 2, where unready 37 % would hold


YOUNG = {"start_s": NOW_S - 100}


@pytest.mark.parametrize(
    ("changes", "measured_s", "counts"),
    [
        ({**YOUNG, "ready_since_s": NOW_S - 60}, NOW_S - 30, True),  # a whole window of 30 s since it was ready
        ({**YOUNG, "ready_since_s": NOW_S - 60}, NOW_S - 31, False),
        ({**YOUNG, "ready": False, "ready_since_s": NOW_S - 90}, NOW_S, False),
        ({"start_s": NOW_S - 300, "ready_since_s": NOW_S - 10}, NOW_S - 5, True),  # the period is just over
        ({"start_s": NOW_S - 299, "ready_since_s": NOW_S - 10}, NOW_S - 5, False),
        ({"start_s": 0, "ready": False, "ready_since_s": 29}, NOW_S, False),  # never became ready
        ({"start_s": 0, "ready": False, "ready_since_s": 30}, NOW_S, True),  # was ready, and no longer is
        ({"start_s": None}, NOW_S, False),
        ({"ready": None}, NOW_S, False),
        ({**YOUNG, "ready": UNKNOWN, "ready_since_s": NOW_S - 60}, NOW_S - 30, True),  # not false is enough
        ({**YOUNG, "ready": UNKNOWN, "ready_since_s": NOW_S - 60}, NOW_S - 31, False),
        ({"start_s": 0, "ready": UNKNOWN, "ready_since_s": 29}, NOW_S, True),
    ],
)
def test_which_pods_count_for_cpu(changes: dict[str, t.Any], measured_s: float, counts: bool) -> None:
    given = [*pods(1), replace(OLD, name="p1", **changes)]
    reading = Reading({"p0": Sample(1000, NOW_S), "p1": Sample(1000, measured_s, 30)})
    # when it counts 2.0 x 2, else 50 % of both
    assert step(CPU, reading, 2, given).replicas == (4 if counts else 2)
    # readiness is nothing to memory
    assert step(MEMORY, reading, 2, given).replicas == 4


def test_the_periods_are_the_controllers() -> None:
    given = [*pods(1), replace(OLD, name="p1", start_s=NOW_S - 100, ready_since_s=NOW_S - 5)]
    reading = Reading({"p0": Sample(1000, NOW_S), "p1": Sample(1000, NOW_S, 30)})
    assert step(CPU, reading, 2, given).replicas == 2
    assert step(CPU, reading, 2, given, settings=Settings(cpu_initialization_period_s=100)).replicas == 4
    never = [*pods(1), replace(OLD, name="p1", start_s=0, ready=False, ready_since_s=20)]
    assert step(CPU, reading, 2, never).replicas == 2
    assert step(CPU, reading, 2, never, settings=Settings(initial_readiness_delay_s=20)).replicas == 4


def test_unready_pods_are_not_counted_on_the_way_down() -> None:
    given = [*pods(2), replace(OLD, name="p2", ready=False, ready_since_s=0)]
    assert step(CPU, used(300, 300, 0), 3, given).replicas == 2  # 0.6 x 2 = 1.2


# ---- requests


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"requests_milli": {"app": {"memory": 1}}}, "container app of pod p2 has no request for cpu"),
        ({"requests_milli": {"app": {"cpu": 1}, "side": {}}}, "container side"),
        ({"requests_milli": {"app": {}}, "pod_requests_milli": {"memory": 1}}, "pod p2 has no request for cpu"),
        ({"requests_milli": {"app": {}}, "pod_requests_milli": {}}, "container app of pod p2"),
        ({"requests_milli": {"app": {}}, "deleted": True}, "container app"),
    ],
)
def test_a_missing_request_fails_the_metric(changes: dict[str, t.Any], text: str) -> None:
    given = [*pods(2), replace(OLD, name="p2", **changes)]
    done = step(CPU, used(900, 900, 900), 3, given)
    assert reasons(done)["ScalingActive"] == (False, "FailedGetResourceMetric")
    assert text in str(done.error)
    assert not done.rescaled
    assert step(CPU_VALUE, used(900, 900, 900), 3, given).error is None


def test_requests_of_a_pod_stand_for_those_of_its_containers_from_1_33_on() -> None:
    given = pods(2, pod_requests_milli={"cpu": 2000})
    assert step(CPU, used(1000, 1000), 2, given).replicas == 2
    assert step(CPU, used(1000, 1000), 2, given, version="1.32").replicas == 4


@pytest.mark.parametrize(
    ("changes", "replicas"),
    [
        ({"pod_requests_milli": {"memory": 1}}, 4),
        ({"pod_requests_milli": {}}, 4),
        ({"pod_requests_milli": {"memory": 1}, "requests_milli": {**REQUESTS, "side": {"cpu": 1000}}}, 2),
        ({"pod_requests_milli": {"memory": 1}, "requests_milli": {**REQUESTS, "side": {}}}, 4),
        ({"pod_requests_milli": {"cpu": 1500}, "overhead_milli": {"cpu": 500, "memory": 9}}, 2),
        ({"pod_requests_milli": {"memory": 1}, "overhead_milli": {"cpu": 1000}}, 2),
        ({"overhead_milli": {"cpu": 1000}}, 4),  # the sum of the containers is without it
    ],
)
def test_what_the_pod_does_not_request_its_containers_do(changes: dict[str, t.Any], replicas: int) -> None:
    assert step(CPU, used(1000, 1000), 2, pods(2, **changes)).replicas == replicas


def test_a_container_is_compared_with_its_own_request() -> None:
    given = pods(2, requests_milli={"app": {"cpu": 1000}, "side": {"cpu": 3000}})
    metric = replace(CPU, kind="ContainerResource", container="app")
    assert step(metric, used(1000, 1000), 2, given).replicas == 4
    assert step(CPU, used(1000, 1000), 2, given).replicas == 1
    failed = step(replace(metric, container="other"), used(1000, 1000), 2, given)
    assert reasons(failed)["ScalingActive"] == (False, "FailedGetContainerResourceMetric")


# ---- metrics of the whole


@pytest.mark.parametrize(
    ("metric", "values", "current", "wanted"),
    [
        (OBJECT, (250_000,), 2, 5),  # 2.5 x the two pods that are ready
        (OBJECT, (110_000,), 2, 2),
        (OBJECT, (50_000,), 2, 1),
        (EXTERNAL, (100_000, 150_000), 2, 5),  # the series are added
        (OBJECT_AVERAGE, (250_000,), 2, 3),  # 250 of 200 is 1.25; 250 / 100 pods
        (OBJECT_AVERAGE, (219_000,), 2, 2),
        (EXTERNAL_AVERAGE, (100_000, 250_000), 2, 4),
        (EXTERNAL, (2**63 - 1, 1), 2, 100),
        (EXTERNAL_AVERAGE, (2**63 - 1, 1), 2, 100),
        (EXTERNAL, (0,), 2, 1),
    ],
)
def test_metrics_of_the_whole(metric: Metric, values: tuple[int, ...], current: int, wanted: int) -> None:
    assert step(metric, Reading(values_milli=values), current).replicas == wanted


def test_value_counts_the_pods_that_run_and_are_ready() -> None:
    given = [*pods(2), replace(OLD, name="p2", ready=False), replace(OLD, name="p3", phase="Pending")]
    given.append(replace(OLD, name="p4", ready=UNKNOWN))
    assert step(OBJECT, Reading(values_milli=(300_000,)), 4, given).replicas == 6


def test_average_value_goes_by_the_pods_that_there_are() -> None:
    # a surge pod of a rollout stays, since the tolerance returns what the status has
    done = step(EXTERNAL_AVERAGE, Reading(values_milli=(300_000,)), 3, given=pods(3), scale=Scale(3, 4), most=10)
    assert done.replicas == 3  # 0.75
    done = step(EXTERNAL_AVERAGE, Reading(values_milli=(390_000,)), 3, given=pods(3), scale=Scale(3, 4), most=10)
    assert done.replicas == 4


def test_zero_replicas_and_back() -> None:
    zero = {"least": 0, "given": ()}
    assert step(EXTERNAL, Reading(values_milli=(0,)), 2, least=0).replicas == 0
    assert step(EXTERNAL, Reading(values_milli=(0,)), 0, **zero).replicas == 0
    assert step(EXTERNAL, Reading(values_milli=(5_000,)), 0, **zero).replicas == 1  # no tolerance from zero
    assert step(EXTERNAL_AVERAGE, Reading(values_milli=(250_000,)), 0, **zero).replicas == 3
    disabled = step(CPU, Reading(), 0, given=())
    assert (disabled.replicas, disabled.rescaled) == (0, False)
    assert reasons(disabled)["ScalingActive"] == (False, "ScalingDisabled")


# ---- several metrics, and failures


def test_the_largest_proposal_wins() -> None:
    done = step((CPU, OBJECT), (used(300, 300), Reading(values_milli=(250_000,))), 2)
    assert (done.replicas, done.winner, done.reason) == (5, 1, "object metric rps above target")


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (CPU, "FailedGetResourceMetric"),
        (replace(CPU, kind="ContainerResource", container="app"), "FailedGetContainerResourceMetric"),
        (RATE, "FailedGetPodsMetric"),
        (OBJECT, "FailedGetObjectMetric"),
        (EXTERNAL, "FailedGetExternalMetric"),
        (replace(CPU, kind="Moon"), "InvalidMetricSourceType"),
    ],
)
def test_a_failing_metric_blocks_scaling_down_and_not_up(metric: Metric, reason: str) -> None:
    broken = Reading(error="the API is down")
    down = step((metric, CPU), (broken, used(100, 100, 100)), 3, memory=Memory(()))
    assert (down.replicas, down.rescaled, down.proposal) == (3, False, None)
    assert down.metrics[0] is None
    assert down.metrics[1] is not None
    assert down.metrics[1]["resource"]["current"]["averageUtilization"] == 10
    assert reasons(down)["ScalingActive"] == (False, reason)
    assert down.memory.recommendations == ()
    up = step((CPU, metric), (used(900, 900, 900), broken), 3)
    assert (up.replicas, up.metrics[1]) == (6, None)
    assert reasons(up)["ScalingActive"] == (True, "ValidMetricFound")
    assert up.error is not None
    same = step((metric, CPU), (broken, used(500, 500, 500)), 3)
    assert reasons(same)["ScalingActive"] == (True, "ValidMetricFound")
    alone = step(metric, broken, 3)
    assert reasons(alone)["ScalingActive"] == (False, reason)


def test_the_first_of_several_failures_is_told_and_the_desired_replicas_stay() -> None:
    done = step((OBJECT, CPU), (Reading(error="one"), Reading(error="two")), 3, status_desired=7)
    assert reasons(done)["ScalingActive"] == (False, "FailedGetObjectMetric")
    assert (done.status_desired, done.metrics) == (7, (None, None))
    assert reasons(done)["AbleToScale"] == (True, "SucceededGetScale")


@pytest.mark.parametrize(
    ("metric", "reading", "given"),
    [
        (CPU, Reading(), pods(2)),
        (CPU, used(500), []),
        (CPU, used(500, 500), pods(2, ready=False, ready_since_s=0)),
        (RATE, Reading({"p0": Sample(1)}), pods(1, deleted=True)),
        (OBJECT, Reading(), pods(2)),
        (OBJECT, Reading(values_milli=(900_000,)), []),
        (CPU, used(0, 0), pods(2, requests_milli={"app": {"cpu": 0}})),
    ],
)
def test_a_metric_without_anything_to_judge_fails(metric: Metric, reading: Reading, given: list[Pod]) -> None:
    done = step(metric, reading, 2, given)
    assert reasons(done)["ScalingActive"][0] is False
    assert (done.replicas, done.rescaled) == (2, False)


def test_each_metric_needs_a_reading() -> None:
    with pytest.raises(ValueError, match="2 metrics have 1 readings"):
        step((CPU, RATE), (used(1),), 2)


# ---- bounds


def test_replicas_out_of_bounds_are_set_right_without_metrics() -> None:
    broken = Reading(error="down")
    above = step(CPU, broken, 20, most=10, behavior=Behavior(FREE.up, replace(FREE.down, select="Disabled")))
    assert (above.replicas, above.proposal) == (10, None)
    assert "ScalingActive" not in reasons(above)
    below = step(CPU, broken, 1, least=8, behavior=Behavior(replace(FREE.up, select="Disabled"), FREE.down))
    assert (below.replicas, reasons(below)["AbleToScale"]) == (8, (True, "SucceededRescale"))
    assert below.memory.ups == (ScaleEvent(7, NOW_S),)


@pytest.mark.parametrize(
    ("percent", "current", "wanted", "reason"),
    [
        (5000, 2, 4, "ScaleUpLimit"),  # 4 is always allowed, and the double of 1 is less
        (500, 3, 6, "ScaleUpLimit"),
        (500, 40, 60, "TooManyReplicas"),
        (10, 40, 8, "DesiredWithinRange"),
        (1, 40, 2, "TooFewReplicas"),
    ],
)
def test_without_behavior_it_at_most_doubles(percent: int, current: int, wanted: int, reason: str) -> None:
    done = step(CPU, used(*[percent * 10] * current), current, behavior=None, least=2, most=60)
    assert done.replicas == wanted
    assert reasons(done)["ScalingLimited"] == (reason != "DesiredWithinRange", reason)
    assert done.memory.ups == done.memory.downs == ()


@pytest.mark.parametrize(
    ("percent", "current", "wanted", "reason"),
    [(500, 40, 60, "TooManyReplicas"), (1, 40, 2, "TooFewReplicas"), (100, 10, 20, "DesiredWithinRange")],
)
def test_with_behavior_the_bounds_hold_too(percent: int, current: int, wanted: int, reason: str) -> None:
    done = step(CPU, used(*[percent * 10] * current), current, least=2, most=60)
    assert done.replicas == wanted
    assert reasons(done)["ScalingLimited"] == (reason != "DesiredWithinRange", reason)


# ---- windows


def remembered(*entries: tuple[int, float]) -> Memory:
    """Return a memory of recommendations, each with its age in seconds."""
    return Memory(tuple(Recommendation(replicas, NOW_S - age_s) for replicas, age_s in entries))


def test_an_hpa_that_is_seen_for_the_first_time_does_not_scale_down() -> None:
    done = step(CPU, used(100, 100, 100), 3, behavior=None, memory=Memory())
    assert done.replicas == 3
    assert done.memory.recommendations == (Recommendation(3, NOW_S), Recommendation(1, NOW_S))
    assert reasons(done)["AbleToScale"] == (True, "ScaleDownStabilized")


@pytest.mark.parametrize(("age_s", "wanted"), [(0, 5), (300, 5), (301, 1)])
def test_the_window_without_behavior_includes_its_end(age_s: float, wanted: int) -> None:
    # the highest recommendation is applied, even above what there is
    assert step(CPU, used(100, 100, 100), 3, behavior=None, memory=remembered((5, age_s))).replicas == wanted


@pytest.mark.parametrize(("age_s", "wanted"), [(59, 3), (60, 1)])
def test_the_window_down_excludes_its_end(age_s: float, wanted: int) -> None:
    behavior = Behavior(FREE.up, replace(FREE.down, window_s=60))
    done = step(CPU, used(100, 100, 100), 3, behavior=behavior, memory=remembered((9, age_s)))
    assert done.replicas == wanted
    assert reasons(done)["AbleToScale"][1] == ("ScaleDownStabilized" if wanted == 3 else "SucceededRescale")


@pytest.mark.parametrize(("age_s", "wanted"), [(59, 3), (60, 6)])
def test_the_window_up_takes_the_least(age_s: float, wanted: int) -> None:
    behavior = Behavior(replace(FREE.up, window_s=60), FREE.down)
    done = step(CPU, used(900, 900, 900), 3, behavior=behavior, memory=remembered((3, age_s)))
    assert done.replicas == wanted
    assert reasons(done)["AbleToScale"][1] == ("ScaleUpStabilized" if wanted == 3 else "SucceededRescale")


def test_the_window_down_is_the_controllers_where_the_spec_has_none() -> None:
    behavior = Behavior(FREE.up, replace(FREE.down, window_s=None))
    memory = remembered((3, 250))
    assert step(CPU, used(100, 100, 100), 3, behavior=behavior, memory=memory).replicas == 3
    settings = Settings(downscale_stabilization_s=250)
    assert step(CPU, used(100, 100, 100), 3, behavior=behavior, memory=memory, settings=settings).replicas == 1


def test_both_windows_keep_what_lies_between() -> None:
    behavior = Behavior(replace(FREE.up, window_s=100), replace(FREE.down, window_s=100))
    memory = remembered((2, 50), (7, 40))
    assert step(CPU, used(900, 900, 900), 3, behavior=behavior, memory=memory).replicas == 3
    assert step(CPU, used(900, 900, 900), 3, behavior=behavior, memory=remembered((4, 50))).replicas == 4


def test_the_raw_proposal_takes_the_last_slot_that_is_stale() -> None:
    behavior = Behavior(replace(FREE.up, window_s=20), replace(FREE.down, window_s=60))
    done = step(CPU, used(500, 500, 500), 3, behavior=behavior, memory=remembered((1, 100), (2, 61), (5, 30), (3, 61)))
    assert done.memory.recommendations is not None
    assert [one.replicas for one in done.memory.recommendations] == [1, 2, 5, 3]
    assert done.memory.recommendations[3].at_s == NOW_S
    legacy = step(CPU, used(500, 500, 500), 3, behavior=None, memory=remembered((5, 301), (4, 300)))
    assert legacy.memory.recommendations == (Recommendation(3, NOW_S), Recommendation(4, NOW_S - 300))


# ---- rates


def rates(up: t.Sequence[Policy] = ANY_RATE, down: t.Sequence[Policy] = (), **selects: str) -> Behavior:
    """Return a behavior of policies, without windows."""
    return Behavior(
        Rules(0, tuple(up), selects.get("up_select", "Max")),
        Rules(0, tuple(down) or FREE.down.policies, selects.get("down_select", "Max")),
    )


PODS_5, PERCENT_10 = Policy("Pods", 5, 60), Policy("Percent", 10, 60)


@pytest.mark.parametrize(
    ("policies", "select", "events", "wanted"),
    [
        ((PODS_5,), "Max", {}, 25),
        ((PERCENT_10,), "Max", {}, 22),
        ((Policy("Percent", 11, 60),), "Max", {}, 23),  # 22.2 is rounded up
        ((PODS_5, PERCENT_10), "Max", {}, 25),
        ((PODS_5, PERCENT_10), "Min", {}, 22),
        ((PODS_5,), "Disabled", {}, 20),
        ((PODS_5,), "Max", {"ups": ((3, 30),)}, 22),  # from the 17 of the period's start
        ((PODS_5,), "Max", {"ups": ((3, 60),)}, 25),  # a period excludes its end
        ((PODS_5,), "Max", {"ups": ((9, 30),)}, 20),
        ((PODS_5,), "Max", {"downs": ((2, 30),)}, 27),  # what went counts for what comes
        ((Policy("Percent", 50, 60),), "Max", {"ups": ((5, 1), (5, 59))}, 20),
    ],
)
def test_rates_up(policies: t.Any, select: str, events: dict[str, t.Any], wanted: int) -> None:
    memory = Memory((), **{key: tuple(ScaleEvent(n, NOW_S - age) for n, age in of) for key, of in events.items()})
    done = step(CPU, used(*[1000] * 20), 20, behavior=rates(up=policies, up_select=select), memory=memory)
    assert done.replicas == wanted
    assert reasons(done)["ScalingLimited"] == (True, "ScaleUpLimit")


@pytest.mark.parametrize(
    ("policies", "select", "events", "wanted"),
    [
        ((PODS_5,), "Max", {}, 15),
        ((Policy("Percent", 12, 60),), "Max", {}, 17),  # 17.6
        ((PODS_5, PERCENT_10), "Max", {}, 15),
        ((PODS_5, PERCENT_10), "Min", {}, 18),
        ((PODS_5,), "Disabled", {}, 20),
        ((PODS_5,), "Max", {"downs": ((3, 30),)}, 18),
        ((PODS_5,), "Max", {"downs": ((3, 60),)}, 15),
        ((PODS_5,), "Max", {"downs": ((9, 30),)}, 20),
        ((PODS_5,), "Max", {"ups": ((2, 30),)}, 13),
    ],
)
def test_rates_down(policies: t.Any, select: str, events: dict[str, t.Any], wanted: int) -> None:
    memory = Memory((), **{key: tuple(ScaleEvent(n, NOW_S - age) for n, age in of) for key, of in events.items()})
    done = step(CPU, used(*[10] * 20), 20, behavior=rates(down=policies, down_select=select), memory=memory)
    assert done.replicas == wanted
    assert reasons(done)["ScalingLimited"] == (True, "ScaleDownLimit")


def test_percent_are_computed_in_binary_fractions() -> None:
    # 100 x 1.1 is a little more than 110 there, and is rounded up
    done = step(CPU, used(*[1000] * 100), 100, behavior=rates(up=(PERCENT_10,)), most=500)
    assert done.replicas == 111


def test_one_replica_may_become_four_without_behavior() -> None:
    assert step(CPU, used(5000), 1, behavior=None).replicas == 4


def test_small_groups_are_never_stuck() -> None:
    assert step(CPU, used(900), 1, behavior=rates(up=(Policy("Percent", 1, 60),))).replicas == 2
    assert step(CPU, used(10, 10), 2, behavior=rates(down=(Policy("Percent", 1, 60),))).replicas == 1


def test_events_take_the_place_of_those_that_no_policy_of_their_direction_counts() -> None:
    old, older = ScaleEvent(2, NOW_S - 61), ScaleEvent(7, NOW_S - 500)
    memory = Memory((), ups=(older, old, ScaleEvent(1, NOW_S - 60)), downs=(ScaleEvent(4, NOW_S - 10),))
    done = step(CPU, used(600, 600, 600), 3, behavior=rates(up=(Policy("Pods", 50, 60),)), memory=memory)
    assert done.memory.ups == (
        replace(older, outdated=True),
        ScaleEvent(1, NOW_S),
        ScaleEvent(1, NOW_S - 60),
    )
    assert done.memory.downs == memory.downs


def test_an_outdated_event_still_counts_for_a_longer_period_of_the_other_direction() -> None:
    # no policy for the way up counts it after 60 s, the one for the way down does for 600 s
    behavior = rates(up=(Policy("Pods", 50, 60),), down=(Policy("Pods", 1, 600),))
    memory = Memory((), ups=(ScaleEvent(4, NOW_S - 300),))
    assert step(CPU, used(*[10] * 10), 10, behavior=behavior, memory=memory).replicas == 5


# ---- conditions


def test_the_time_of_a_condition_changes_with_its_status_only() -> None:
    first = step(CPU, used(500, 500), 2)
    later = step(CPU, Reading(error="down"), 2, now_s=NOW_S + 15, conditions=first.conditions)
    since = {one.type: one.since_s for one in later.conditions}
    assert since == {"AbleToScale": NOW_S, "ScalingActive": NOW_S + 15, "ScalingLimited": NOW_S}


def test_what_the_step_says_about_scaling() -> None:
    up, down, same = (step(CPU, used(value, value), 2) for value in (900, 100, 500))
    assert [one.reason for one in (up, down, same)] == [
        "cpu resource utilization above target",
        "all metrics below target",
        "",
    ]
    assert [reasons(one)["AbleToScale"][1] for one in (up, same)] == ["SucceededRescale", "ReadyForNewScale"]


def test_a_spec_may_be_a_dict_of_the_api() -> None:
    done = reconcile(
        {"minReplicas": 2, "maxReplicas": 9}, Scale(2, 2), pods(2), [used(1600, 1600)], now_s=NOW_S, memory=Memory(())
    )
    assert done.replicas == 4  # cpu at 80 % is what the API fills in
