# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded steps: objects of the API become the arguments of a step."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.controller import reconcile
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.model import (
    UNKNOWN,
    Sample,
    Scale,
    ScaleEvent,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.recorded import arguments, seconds


def pod(name: str, **status: t.Any) -> dict[str, t.Any]:
    """Return a pod as the API has it, ready for nine minutes, with a sidecar that is an init container."""
    return {
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "app", "resources": {"requests": {"cpu": "750m"}}}],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "resources": {"requests": {"cpu": "250m"}}},
                {"name": "setup", "resources": {"requests": {"cpu": "9"}}},
            ],
        },
        "status": {
            "phase": "Running",
            "startTime": "2026-01-01T11:50:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T11:51:00Z"}],
            **status,
        },
    }


def pod_metrics(name: str, app: str | None = "400m", proxy: str = "100m") -> dict[str, t.Any]:
    """Return the metrics of a pod as the API has them."""
    containers = [{"name": "proxy", "usage": {"cpu": proxy}}]
    if app is not None:
        containers.append({"name": "app", "usage": {"cpu": app}})
    return {"metadata": {"name": name}, "timestamp": "2026-01-01T11:59:50Z", "window": "30s", "containers": containers}


def case(
    metric: dict[str, t.Any] | None = None, answer: dict[str, t.Any] | None = None, **more: t.Any
) -> dict[str, t.Any]:
    """Return a recorded step of two pods that use 500m of 1 each."""
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 25}}}
    return {
        "hpa": {"spec": {"maxReplicas": 10, "metrics": [metric or cpu]}},
        "scale": {"spec": {"replicas": 2}, "status": {"replicas": 2}},
        "pods": [pod("a"), pod("b")],
        "metrics": [answer or {"items": [pod_metrics("a"), pod_metrics("b")]}],
        "now": "2026-01-01T12:00:00Z",
        **more,
    }


def container(**target: t.Any) -> dict[str, t.Any]:
    return {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "app", "target": target}}


def of_metric(kind: str, target: str) -> dict[str, t.Any]:
    block = {"metric": {"name": "m"}, "target": {"type": target, target[0].lower() + target[1:]: "10"}}
    return {"type": kind, kind.lower(): block}


def test_a_step_from_objects_of_the_api() -> None:
    done = reconcile(**arguments(case()))
    assert done.replicas == 4
    assert done.metrics[0]["resource"]["current"] == {"averageUtilization": 50, "averageValue": "500m"}


@pytest.mark.parametrize(
    ("metric", "answer", "replicas"),
    [
        (container(type="AverageValue", averageValue="200m"), None, 4),
        (of_metric("Pods", "AverageValue"), {"pods": {"a": {"value": "20"}, "b": {"value": "20"}}}, 4),
        (
            of_metric("Pods", "AverageValue"),
            {"items": [{"describedObject": {"name": one}, "value": "15", "windowSeconds": 30} for one in "ab"]},
            3,
        ),
        (of_metric("Object", "Value"), {"items": [{"value": "20"}]}, 4),
        (of_metric("External", "AverageValue"), {"values": ["20", "15500m"]}, 4),
        (of_metric("External", "Value"), {"error": "no such metric"}, 2),
    ],
)
def test_each_kind_of_metric(metric: dict[str, t.Any], answer: dict[str, t.Any] | None, replicas: int) -> None:
    assert reconcile(**arguments(case(metric, answer))).replicas == replicas


def test_a_pod_whose_metrics_lack_the_resource_is_missing() -> None:
    items = [pod_metrics("a"), {**pod_metrics("b"), "containers": [{"name": "app", "usage": {}}]}]
    assert set(arguments(case(answer={"items": items}))["readings"][0].pods) == {"a"}
    assert arguments(case(answer={"items": [{**pod_metrics("a"), "containers": []}]}))["readings"][0].pods == {}


def test_metrics_without_the_container_fail_up_to_1_32() -> None:
    metric, answer = container(type="AverageValue", averageValue="200m"), {"items": [pod_metrics("a", app=None)]}
    assert arguments(case(metric, answer, version="1.32"))["readings"][0].error is not None
    assert arguments(case(metric, answer, version="1.33"))["readings"][0].error is None


def test_pods_in_other_states() -> None:
    gone = pod("b")
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T11:59:59Z"
    gone["spec"]["resources"] = {"requests": {"cpu": "2"}}
    fresh = pod("c", phase="Pending", conditions=None, startTime=None)
    ignored, waiting = arguments(case(pods=[gone, fresh]))["pods"]
    assert (ignored.deleted, ignored.pod_requests_milli) == (True, {"cpu": 2000})
    assert (waiting.phase, waiting.ready, waiting.start_s, waiting.deleted) == ("Pending", None, None, False)


@pytest.mark.parametrize(
    ("requests", "read"),
    [
        (None, None),
        ({}, None),
        ({"nvidia.com/gpu": "1"}, None),
        ({"memory": "1", "cpu": "1m"}, {"memory": 1000, "cpu": 1}),
    ],
)
def test_requests_of_a_pod_are_set_when_it_may_have_them(requests: t.Any, read: t.Any) -> None:
    given = pod("a")
    given["spec"] |= {"resources": {"requests": requests}, "overhead": {"cpu": "250m"}}
    one = arguments(case(pods=[given]))["pods"][0]
    assert (one.pod_requests_milli, one.overhead_milli) == (read, {"cpu": 250})


def test_readiness_has_three_states() -> None:
    conditions = [[{"type": "Ready", "status": status}] for status in ("True", "False", "Unknown")]
    read = arguments(case(pods=[pod("a", conditions=one) for one in conditions]))["pods"]
    assert [one.ready for one in read] == [True, False, UNKNOWN]


def test_what_the_controller_remembers() -> None:
    given = case(
        recommendations=[{"replicas": 5, "at": "2026-01-01T11:59:00Z"}],
        scale_up_events=[{"change": 2, "at": "2026-01-01T11:58:00Z", "outdated": True}],
        settings={"downscale_stabilization_s": 30},
        version="1.32",
    )
    given["hpa"]["status"] = {
        "desiredReplicas": 2,
        "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": "2026-01-01T11:00:00Z"}],
    }
    read = arguments(given)
    assert read["memory"].recommendations[0].replicas == 5
    assert read["memory"].ups == (ScaleEvent(2, seconds("2026-01-01T11:58:00Z"), True),)
    done = reconcile(**read)
    condition = done.condition("AbleToScale")
    assert condition is not None
    assert condition.since_s == seconds("2026-01-01T11:00:00+00:00")
    assert arguments(case())["memory"].recommendations is None


def test_a_reading_for_each_metric() -> None:
    for given in ([], [{"error": "one"}, {"error": "two"}]):
        with pytest.raises(ValueError, match=f"1 metrics have {len(given)} readings"):
            arguments(case(metrics=given))


def test_what_is_null_is_absent() -> None:
    """The API's own types write null for lists and times that they have not."""
    cleared = pod("a", conditions=[{"type": "Ready", "status": "True", "lastTransitionTime": None}])
    cleared["spec"] = {"containers": None, "initContainers": None, "resources": None, "overhead": None}
    metrics = {**pod_metrics("a"), "timestamp": None, "window": None}
    given = case(answer={"items": [metrics, {**metrics, "containers": None}], "pods": None}, pods=[cleared])
    given["hpa"]["status"] = {"conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": None}]}
    read = arguments(given)
    assert read["pods"][0].ready_since_s == 0.0
    assert read["pods"][0].requests_milli == {}
    assert read["readings"][0].pods == {"a": Sample(500, 0.0, 60.0)}
    assert read["conditions"][0].since_s == 0.0
    assert arguments(case(answer={"items": None}))["readings"][0].pods == {}
    empty = arguments(case(pods=None, scale={"spec": {"replicas": None}, "status": None}))
    assert (empty["pods"], empty["scale"]) == ([], Scale(0, 0))


@pytest.mark.parametrize(
    ("change", "text"),
    [({"now": "noon"}, "noon"), ({"now": "2026-01-01T12:00:00"}, "time zone")],
)
def test_times_that_cannot_be_read(change: dict[str, t.Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        arguments(case(**change))


@pytest.mark.parametrize(
    ("window", "window_s"), [("30s", 30), ("1m15.5s", 75.5), ("1h", 3600), (20, 20), ("500ms", 0.5), ("1m500ms", 60.5)]
)
def test_windows(window: t.Any, window_s: float) -> None:
    answer = {"pods": {"a": {"value": "1", "window": window}}}
    assert arguments(case(of_metric("Pods", "AverageValue"), answer))["readings"][0].pods["a"].window_s == window_s


@pytest.mark.parametrize("window", ["soon", "", "30", "1.2.3s", "30s!"])
def test_a_window_that_cannot_be_read(window: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        arguments(case(of_metric("Pods", "AverageValue"), {"pods": {"a": {"value": "1", "window": window}}}))
