# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Specs of autoscaling/v2: what is read from them, and what is refused in one sentence."""

from __future__ import annotations

import copy
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.model import (
    CPU_DEFAULT,
    DOWN_DEFAULT,
    UP_DEFAULT,
    Policy,
    Rules,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.spec import parse_spec
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError

FULL: dict[str, t.Any] = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
    "minReplicas": 3,
    "maxReplicas": 50,
    "metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
        {
            "type": "ContainerResource",
            "containerResource": {
                "name": "memory",
                "container": "app",
                "target": {"type": "AverageValue", "averageValue": "1Gi"},
            },
        },
        {
            "type": "Pods",
            "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "100"}},
        },
        {
            "type": "Object",
            "object": {
                "metric": {"name": "requests-per-second"},
                "describedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "in"},
                "target": {"type": "Value", "value": "1k"},
            },
        },
        {
            "type": "External",
            "external": {
                "metric": {"name": "queue", "selector": {"matchLabels": {"q": "a"}}},
                "target": {"type": "AverageValue", "averageValue": "30"},
            },
        },
    ],
    "behavior": {
        "scaleUp": {
            "stabilizationWindowSeconds": 60,
            "selectPolicy": "Min",
            "tolerance": "0.05",
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
        },
        "scaleDown": {"selectPolicy": "Disabled"},
    },
}


def test_all_of_a_spec_is_read() -> None:
    spec = parse_spec(FULL)
    assert (spec.min_replicas, spec.max_replicas) == (3, 50)
    assert [(one.kind, one.name, one.target_type, one.target) for one in spec.metrics] == [
        ("Resource", "cpu", "Utilization", 70),
        ("ContainerResource", "memory", "AverageValue", 1024**3 * 1000),
        ("Pods", "rps", "AverageValue", 100_000),
        ("Object", "requests-per-second", "Value", 1_000_000),
        ("External", "queue", "AverageValue", 30_000),
    ]
    assert spec.metrics[1].container == "app"
    assert spec.metrics[3].source["describedObject"]["name"] == "in"
    assert spec.behavior is not None
    assert spec.behavior.up == Rules(60, (Policy("Percent", 50, 60),), "Min", 0.05)
    assert spec.behavior.down == Rules(None, DOWN_DEFAULT.policies, "Disabled")


def test_what_the_api_fills_in() -> None:
    spec = parse_spec({"maxReplicas": "4"})
    assert (spec.min_replicas, spec.max_replicas, spec.metrics, spec.behavior) == (1, 4, (CPU_DEFAULT,), None)
    behavior = parse_spec({"maxReplicas": 4, "behavior": {}}).behavior
    assert behavior is not None
    assert (behavior.up, behavior.down) == (UP_DEFAULT, DOWN_DEFAULT)


def test_zero_replicas_need_a_metric_that_is_there_without_pods() -> None:
    assert parse_spec({"minReplicas": 0, "maxReplicas": 2, "metrics": FULL["metrics"]}).min_replicas == 0


BAD: list[tuple[str, tuple[t.Any, ...], t.Any]] = [
    ("spec.maxReplicas", ("maxReplicas",), None),
    ("spec.maxReplicas", ("maxReplicas",), 2),
    ("spec.maxReplicas", ("maxReplicas",), 0),
    ("spec.maxReplicas", ("maxReplicas",), 2.5),
    ("spec.maxReplicas", ("maxReplicas",), True),
    ("spec.minReplicas", ("minReplicas",), -1),
    ("spec.replicas", ("replicas",), 3),
    ("spec.metrics", ("metrics",), "cpu"),
    ("spec.metrics[0]", ("metrics", 0), "cpu"),
    ("spec.metrics[0].type", ("metrics", 0, "type"), "Cpu"),
    ("spec.metrics[0].pods", ("metrics", 0, "pods"), {}),
    ("spec.metrics[0].resource.name", ("metrics", 0, "resource", "name"), ""),
    ("spec.metrics[0].resource.target", ("metrics", 0, "resource", "target"), None),
    ("spec.metrics[0].resource.target.type", ("metrics", 0, "resource", "target", "type"), "Value"),
    (
        "spec.metrics[0].resource.target.averageUtilization",
        ("metrics", 0, "resource", "target", "averageUtilization"),
        0,
    ),
    ("spec.metrics[0].resource.target.value", ("metrics", 0, "resource", "target", "value"), "1"),
    ("spec.metrics[1].containerResource.container", ("metrics", 1, "containerResource", "container"), None),
    ("spec.metrics[2].pods.metric", ("metrics", 2, "pods", "metric"), None),
    ("spec.metrics[2].pods.target.averageValue", ("metrics", 2, "pods", "target", "averageValue"), "many"),
    ("spec.metrics[2].pods.target.averageValue", ("metrics", 2, "pods", "target", "averageValue"), "-5"),
    ("spec.metrics[3].object.target.value", ("metrics", 3, "object", "target", "value"), "0"),
    ("spec.maxReplicas", ("maxReplicas",), "9" * 5000),
    ("spec.metrics", ("metrics",), {}),
    ("spec.metrics[0].resource.target.type", ("metrics", 0, "resource", "target", "type"), ["Utilization"]),
    ("spec.behavior.scaleUp", ("behavior", "scaleUp"), []),
    ("spec.behavior.scaleDown", ("behavior", "scaleDown"), ""),
    ("spec.behavior", ("behavior",), "fast"),
    ("spec.behavior.scaleup", ("behavior", "scaleup"), {}),
    ("spec.behavior.scaleUp.stabilizationWindowSeconds", ("behavior", "scaleUp", "stabilizationWindowSeconds"), 3601),
    ("spec.behavior.scaleUp.selectPolicy", ("behavior", "scaleUp", "selectPolicy"), "Most"),
    ("spec.behavior.scaleUp.tolerance", ("behavior", "scaleUp", "tolerance"), "-0.1"),
    ("spec.behavior.scaleUp.policies", ("behavior", "scaleUp", "policies"), []),
    ("spec.behavior.scaleUp.policies[0].type", ("behavior", "scaleUp", "policies", 0, "type"), "Pod"),
    ("spec.behavior.scaleUp.policies[0].value", ("behavior", "scaleUp", "policies", 0, "value"), 0),
    ("spec.behavior.scaleUp.policies[0].periodSeconds", ("behavior", "scaleUp", "policies", 0, "periodSeconds"), 1801),
]


@pytest.mark.parametrize(("option", "path", "value"), BAD, ids=[f"{case[0]}-{str(case[2])[:20]}" for case in BAD])
def test_what_the_api_refuses_is_refused_by_name(option: str, path: tuple[t.Any, ...], value: t.Any) -> None:
    given = copy.deepcopy(FULL)
    place: t.Any = given
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(OptionError) as refused:
        parse_spec(given)
    assert refused.value.facts["option"] == option
    assert str(refused.value).endswith(".")


def test_a_spec_that_is_no_dictionary_is_refused() -> None:
    with pytest.raises(OptionError, match="'spec'"):
        parse_spec([])


def test_zero_replicas_of_cpu_alone_are_refused() -> None:
    with pytest.raises(OptionError, match="needs an Object or External metric"):
        parse_spec({"minReplicas": 0, "maxReplicas": 2})


def test_a_tolerance_is_refused_before_1_33() -> None:
    with pytest.raises(OptionError, match="the API has it from"):
        parse_spec(FULL, version="1.32")
