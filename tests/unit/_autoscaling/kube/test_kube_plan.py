# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: what is sent makes what was declared of what is there, and nothing is sent for what means the same."""

from __future__ import annotations

import copy
import json
import random
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.model import (
    comparable,
    complete,
    describe,
    without_nulls,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.plan import (
    CREATE,
    DELETE,
    NOTHING,
    PATCH,
    merge_patch,
    plan,
    text,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.validate import check_spec
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kube.emulator import merged

SPEC = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
    "minReplicas": 2,
    "maxReplicas": 8,
}

NAMES = st.sampled_from(["cpu", "memory", "rps", "value"])
QUANTITIES = st.sampled_from(["1", "1000m", "0.5", "500m", "1k", "1000", "1Gi", "1024Mi", "7"])
UTILIZATION = st.builds(lambda number: {"type": "Utilization", "averageUtilization": number}, st.integers(1, 3))
AVERAGE = st.builds(lambda value: {"type": "AverageValue", "averageValue": value}, QUANTITIES)
VALUE = st.builds(lambda value: {"type": "Value", "value": value}, QUANTITIES)
SELECTORS = st.sampled_from(
    [
        None,
        {},
        {"matchLabels": {"value": "a", "b": "c"}},
        {"matchLabels": {"b": "c", "value": "a"}},
        {
            "matchExpressions": [
                {"key": "x", "operator": "In", "values": ["1", "2"]},
                {"key": "y", "operator": "Exists"},
            ]
        },
        {
            "matchExpressions": [
                {"key": "y", "operator": "Exists"},
                {"key": "x", "operator": "In", "values": ["2", "1"]},
            ]
        },
    ]
)
METRIC_NAMES = st.builds(lambda name, selector: without_nulls({"name": name, "selector": selector}), NAMES, SELECTORS)
OBJECTS = st.sampled_from(
    [{"kind": "Ingress", "name": "a"}, {"kind": "Ingress", "name": "a", "apiVersion": "networking.k8s.io/v1"}]
)
METRICS = st.one_of(
    st.builds(lambda n, g: {"type": "Resource", "resource": {"name": n, "target": g}}, NAMES, UTILIZATION | AVERAGE),
    st.builds(
        lambda n, c, g: {"type": "ContainerResource", "containerResource": {"name": n, "container": c, "target": g}},
        NAMES,
        st.sampled_from(["app", "side"]),
        UTILIZATION | AVERAGE,
    ),
    st.builds(lambda m, g: {"type": "Pods", "pods": {"metric": m, "target": g}}, METRIC_NAMES, AVERAGE),
    st.builds(
        lambda m, o, g: {"type": "Object", "object": {"metric": m, "describedObject": o, "target": g}},
        METRIC_NAMES,
        OBJECTS,
        VALUE | AVERAGE,
    ),
    st.builds(lambda m, g: {"type": "External", "external": {"metric": m, "target": g}}, METRIC_NAMES, VALUE | AVERAGE),
)
POLICIES = st.builds(
    lambda kind, value, period: {"type": kind, "value": value, "periodSeconds": period},
    st.sampled_from(["Pods", "Percent"]),
    st.integers(1, 3),
    st.sampled_from([15, 60]),
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "stabilizationWindowSeconds": st.sampled_from([0, 300]),
        "selectPolicy": st.sampled_from(["Max", "Min", "Disabled"]),
        "policies": st.lists(POLICIES, min_size=1, max_size=3),
        "tolerance": st.sampled_from(["0", "0.05", "50m", "0.1"]),
    },
)
SPECS = st.fixed_dictionaries(
    {"scaleTargetRef": st.just(SPEC["scaleTargetRef"]), "maxReplicas": st.integers(3, 5)},
    optional={
        "minReplicas": st.integers(1, 3),
        "metrics": st.lists(METRICS, max_size=3),
        "behavior": st.fixed_dictionaries({}, optional={"scaleUp": RULES, "scaleDown": RULES}),
    },
)


def shuffled(spec: dict[str, t.Any], seed: int) -> dict[str, t.Any]:
    """The same spec with its lists in another order."""
    result, dice = copy.deepcopy(spec), random.Random(seed)
    dice.shuffle(result.get("metrics", []))
    for rules in result.get("behavior", {}).values():
        dice.shuffle(rules.get("policies", []))
    return result


@settings(max_examples=80, deadline=None)
@given(SPECS)
def test_what_the_strategy_makes_is_what_is_accepted(spec: dict[str, t.Any]) -> None:
    check_spec(spec)
    full = complete(spec)
    check_spec(full)
    assert complete(full) == full


@settings(max_examples=150, deadline=None)
@given(SPECS, SPECS)
def test_a_patch_makes_what_was_declared(before: dict[str, t.Any], after: dict[str, t.Any]) -> None:
    """On a server that fills in defaults, and on one that stores what it gets."""
    for present in (before, complete(before)):
        planned = plan({"spec": present}, after)
        if planned.action == PATCH:
            present = merged(present, planned.body)
        assert "null" not in json.dumps(present)
        assert comparable(present) == comparable(after)
        assert plan({"spec": present}, after).action == NOTHING


@settings(max_examples=100, deadline=None)
@given(SPECS, st.integers(0, 5))
def test_the_order_means_nothing(spec: dict[str, t.Any], seed: int) -> None:
    other = shuffled(spec, seed)
    assert plan({"spec": complete(spec)}, other).action == NOTHING
    assert text(other) == text(spec)


@settings(max_examples=200, deadline=None)
@given(SPECS, SPECS)
def test_the_words_differ_exactly_when_the_meaning_does(one: dict[str, t.Any], other: dict[str, t.Any]) -> None:
    # quantities of the same value in two families are spelled in two ways
    assume('i"' not in json.dumps([one, other]))
    assert (describe(one) == describe(other)) == (comparable(one) == comparable(other))
    planned = plan({"spec": one}, other)
    assert bool(planned.changes) == (planned.action == PATCH)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8),
    st.data(),
)
def test_merge_patches_are_those_of_the_rfc(before: t.Any, data: t.Any) -> None:
    after = data.draw(
        st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8)
    )
    assert merged(before, merge_patch(before, after)) == after


def test_create_delete_and_nothing() -> None:
    created = plan(None, SPEC)
    assert (created.action, created.before) == (CREATE, None)
    assert created.body == created.after == complete(SPEC)
    assert [(change.what, change.before) for change in created.changes][:2] == [
        ("target", None),
        ("min replicas", None),
    ]
    deleted = plan({"spec": SPEC}, None)
    assert (deleted.action, deleted.body, deleted.after) == (DELETE, None, None)
    assert {change.after for change in deleted.changes} == {None}
    assert plan(None, None).action == NOTHING


def test_what_only_a_newer_server_knows_is_left_alone() -> None:
    present = {**complete(SPEC), "syncPeriodSeconds": 5}
    assert plan({"spec": present}, SPEC).action == NOTHING
    planned = plan({"spec": present}, {**SPEC, "maxReplicas": 9})
    assert planned.body == {"maxReplicas": 9}


def test_a_kind_of_metric_that_is_not_known_is_seen() -> None:
    newer = {"type": "Newer", "newer": {"name": "x"}}
    planned = plan({"spec": {**SPEC, "metrics": [newer]}}, SPEC)
    assert planned.action == PATCH
    assert "metric Newer" in [change.what for change in planned.changes]


def test_the_defaults_of_behavior() -> None:
    assert complete({**SPEC, "behavior": {}})["behavior"] == {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Pods", "value": 4, "periodSeconds": 15},
                {"type": "Percent", "value": 100, "periodSeconds": 15},
            ],
        },
        "scaleDown": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
    }
    assert "behavior" not in complete(SPEC)


@pytest.mark.parametrize("metrics", [None, []])
def test_the_default_metric(metrics: t.Any) -> None:
    spec = complete(without_nulls({**SPEC, "metrics": metrics}))
    assert spec["metrics"] == [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
    ]


def test_a_person_reads_it() -> None:
    spec = {
        **SPEC,
        "metrics": [
            {
                "type": "Object",
                "object": {
                    "metric": {"name": "requests", "selector": {"matchLabels": {"a": "b"}}},
                    "describedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "front"},
                    "target": {"type": "Value", "value": "1000"},
                },
            }
        ],
        "behavior": {"scaleDown": {"selectPolicy": "Min", "tolerance": "0.05"}},
    }
    assert text(spec).splitlines() == [
        "target: Deployment/app (apps/v1)",
        "min replicas: 2",
        "max replicas: 8",
        "metric Object requests on Ingress/front (networking.k8s.io/v1) {a=b}: 1k in all",
        "scale up, window: 0 s",
        "scale up, select: Max",
        "scale up, policy Percent per 15 s: 100 %",
        "scale up, policy Pods per 15 s: 4 pods",
        "scale down, window: the controller's (300 s unless it was told otherwise)",
        "scale down, select: Min",
        "scale down, tolerance: 50m",
        "scale down, policy Percent per 15 s: 100 %",
    ]
