# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found to mend: each rule where it holds, and next to where it holds."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.judge import (
    LAST_APPLIED,
    Surroundings,
    judge,
    selects,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.model import complete

CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
LABELS = {"app": "app"}


def spec(floor: int = 3, *metrics: t.Any) -> dict[str, t.Any]:
    """A complete spec."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"}
    return complete(
        {"scaleTargetRef": target, "minReplicas": floor, "maxReplicas": 9, "metrics": list(metrics) or [CPU]}
    )


def workload(name: str = "app", **change: t.Any) -> dict[str, t.Any]:
    """A Deployment that leaves nothing to be mended."""
    labels = {"app": name}
    container = {"name": "app", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    pod = {"containers": [container], **change.pop("pod", {})}
    return {
        "metadata": {"name": name, **change.pop("metadata", {})},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            **change,
        },
    }


def codes(around: Surroundings, given: t.Any = None) -> list[str]:
    """The codes of what is found, each with a sentence."""
    found = judge(given or spec(), around)
    assert all(finding.message.endswith(".") and "\n" not in finding.message for finding in found)
    return [finding.code for finding in found]


def test_nothing() -> None:
    assert codes(Surroundings(workload=workload())) == []
    assert codes(Surroundings()) == []
    assert codes(Surroundings(missing=True)) == ["target_missing"]


# ---- who sets the replicas


def managed(operation: str, manager: str = "x", **more: t.Any) -> dict[str, t.Any]:
    """Metadata in which a manager owns the replicas."""
    entry = {"manager": manager, "operation": operation, "fieldsV1": {"f:spec": {"f:replicas": {}}}, **more}
    return {"managedFields": [entry]}


@pytest.mark.parametrize(
    ("metadata", "replicas", "owners"),
    [
        (managed("Apply", "argocd"), 1, ["argocd"]),
        (managed("Apply", "argocd"), 5, ["argocd"]),
        (managed("Update", "helm"), 5, ["helm"]),
        # the default, which who made the object owns too
        (managed("Update", "helm"), 1, None),
        (managed("Update", "kube-controller-manager", subresource="scale"), 5, None),
        (
            {"managedFields": [{"manager": "x", "operation": "Apply", "fieldsV1": {"f:spec": {"f:paused": {}}}}]},
            5,
            None,
        ),
        ({"annotations": {LAST_APPLIED: '{"spec": {"replicas": 1}}'}}, 5, ["kubectl apply"]),
        # applied without replicas: what an update owns is the default of then
        ({"annotations": {LAST_APPLIED: '{"spec": {}}'}, **managed("Update", "kubectl")}, 5, None),
        ({"annotations": {LAST_APPLIED: "damaged"}}, 5, None),
        ({}, 5, None),
    ],
)
def test_a_manifest_that_owns_the_replicas(metadata: t.Any, replicas: int, owners: list[str] | None) -> None:
    around = Surroundings(workload=workload(metadata=metadata, replicas=replicas))
    found = judge(spec(), around)
    assert [finding.facts["managers"] for finding in found] == ([owners] if owners else [])


# ---- disruption budgets


@pytest.mark.parametrize(
    ("budget", "floor", "blocked"),
    [
        ({"minAvailable": 3}, 3, True),
        ({"minAvailable": 4}, 3, True),
        ({"minAvailable": 2}, 3, False),
        ({"minAvailable": "100%"}, 3, True),
        # 2.01 pods are 3
        ({"minAvailable": "67%"}, 3, True),
        ({"minAvailable": "66%"}, 3, False),
        ({"maxUnavailable": 0}, 3, True),
        ({"maxUnavailable": 1}, 3, False),
        ({"maxUnavailable": "0%"}, 3, True),
        # a hundredth of a pod is one
        ({"maxUnavailable": "1%"}, 1, False),
        # a budget that says nothing allows nothing
        ({}, 2, True),
        ({}, 0, False),
        ({"minAvailable": 1}, 0, False),
    ],
)
def test_a_budget_that_blocks_a_drain_at_the_floor(budget: t.Any, floor: int, blocked: bool) -> None:
    item = {"metadata": {"name": "b"}, "spec": {"selector": {"matchLabels": LABELS}, **budget}}
    around = Surroundings(workload=workload(), budgets=(item,))
    assert codes(around, spec(floor)) == (["drain_blocked"] if blocked else [])


@pytest.mark.parametrize(
    ("selector", "blocked"), [({}, True), (None, False), ({"matchLabels": {"app": "other"}}, False)]
)
def test_a_budget_concerns_the_pods_that_it_selects(selector: t.Any, blocked: bool) -> None:
    item = {"metadata": {"name": "b"}, "spec": {"selector": selector, "maxUnavailable": 0}}
    around = Surroundings(workload=workload(), budgets=(item,))
    assert codes(around) == (["drain_blocked"] if blocked else [])


# ---- requests

SIDE = {
    "type": "ContainerResource",
    "containerResource": {"name": "cpu", "container": "side", "target": CPU["resource"]["target"]},
}
MEAN = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "1"}}}
BARE = {"name": "side"}
WITH = {"name": "app", "resources": {"requests": {"cpu": "1"}}}


@pytest.mark.parametrize(
    ("pod", "metric", "expected"),
    [
        ({"containers": [WITH, BARE]}, CPU, ["requests_missing"]),
        ({"containers": [WITH, BARE]}, MEAN, []),
        ({"containers": [WITH, {**BARE, "resources": {"limits": {"cpu": "1"}}}]}, CPU, []),
        ({"containers": [WITH, {**BARE, "resources": {"requests": {"memory": "1Gi"}}}]}, CPU, ["requests_missing"]),
        ({"containers": [WITH, BARE], "resources": {"requests": {"cpu": "2"}}}, CPU, []),
        ({"containers": [WITH], "initContainers": [BARE]}, CPU, []),
        ({"containers": [WITH], "initContainers": [{**BARE, "restartPolicy": "Always"}]}, CPU, ["requests_missing"]),
        ({"containers": [WITH, BARE]}, SIDE, ["requests_missing"]),
        ({"containers": [BARE, {**WITH, "name": "side"}]}, SIDE, []),
        ({"containers": [WITH]}, SIDE, ["container_missing"]),
    ],
)
def test_requests(pod: t.Any, metric: t.Any, expected: list[str]) -> None:
    assert codes(Surroundings(workload=workload(pod=pod)), spec(3, metric)) == expected


# ---- others


def other(name: str, kind: str = "Deployment") -> dict[str, t.Any]:
    """Another autoscaler."""
    return {"metadata": {"name": f"hpa-{name}"}, "spec": {"scaleTargetRef": {"kind": kind, "name": name}}}


def test_another_autoscaler_of_the_same_target() -> None:
    assert codes(Surroundings(workload=workload(), others=(other("app"),))) == ["shared_target"]
    assert codes(Surroundings(others=(other("app"),))) == ["shared_target"]
    assert codes(Surroundings(others=(other("app", "StatefulSet"), other("b")))) == []


def test_another_autoscaler_that_selects_the_same_pods() -> None:
    mine, wide = workload(), workload("wide")
    around = Surroundings(workload=mine, others=(other("wide"),), workloads={"hpa-wide": wide})
    assert codes(around) == []
    # either side's selector will do
    wide["spec"]["selector"] = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    assert codes(around) == ["shared_pods"]
    wide["spec"]["selector"], mine["spec"]["selector"] = mine["spec"]["selector"], {"matchLabels": {"app": "wide"}}
    assert codes(around) == ["shared_pods"]


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchLabels": {"a": "1", "b": "1"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1", "2"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
    ],
)
def test_selectors(selector: t.Any, taken: bool) -> None:
    assert selects(selector, {"a": "1"}) is taken
