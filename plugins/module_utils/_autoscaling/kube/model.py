# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The spec of a HorizontalPodAutoscaler (``autoscaling/v2``): what the API server adds to it, when two are the same, and its words. Pure.

Specs are plain dicts with the names of the API, without keys that are null. The defaults are those of the API server's own defaulting of
``autoscaling/v2``; that of ``scaleDown.stabilizationWindowSeconds`` is a setting of the controller (300 unless it was told otherwise), so
the API server leaves it out.
"""

from __future__ import annotations

import json
import typing as t

from ..quantity import canonical, parse_quantity

Spec = dict[str, t.Any]

# the key that holds the source of a metric, by its type
SOURCES = {
    "Resource": "resource",
    "ContainerResource": "containerResource",
    "Pods": "pods",
    "Object": "object",
    "External": "external",
}
# the key that holds the value of a target, by its type
TARGETS = {"Utilization": "averageUtilization", "AverageValue": "averageValue", "Value": "value"}
DIRECTIONS = ("scaleUp", "scaleDown")
_FIELDS = ("scaleTargetRef", "minReplicas", "maxReplicas", "metrics", "behavior")
_RULES = ("stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance")
_DEFAULT_METRIC = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
}
_DEFAULT_RULES: dict[str, Spec] = {
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


def without_nulls(value: t.Any) -> t.Any:
    """Return plain data without the keys of dicts that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value


def complete(spec: t.Mapping[str, t.Any]) -> Spec:
    """Return a spec as the API server stores it: defaults filled in, quantities in their canonical form, the order kept.

    What a newer server knows beyond ``autoscaling/v2`` as it is here is left out.
    """
    given = without_nulls({key: spec[key] for key in _FIELDS if key in spec})
    result: Spec = {
        "minReplicas": 1,
        **given,
        "metrics": [_metric(metric) for metric in given.get("metrics") or [_DEFAULT_METRIC]],
    }
    if "behavior" in given:
        result["behavior"] = {
            direction: _rules(direction, given["behavior"].get(direction, {})) for direction in DIRECTIONS
        }
    return result


def _metric(metric: Spec) -> Spec:
    result = dict(metric)
    key = SOURCES.get(metric.get("type", ""), "")
    source = dict(metric.get(key, {}))
    target = dict(source.get("target", {}))
    for name in ("value", "averageValue"):
        if name in target:
            target[name] = canonical(target[name])
    if target:
        source["target"] = target
    if "metric" in source and not any(source["metric"].get("selector", {}).values()):
        # an empty selector takes all series, as none does
        source["metric"] = {name: value for name, value in source["metric"].items() if name != "selector"}
    if source:
        result[key] = source
    return result


def _rules(direction: str, given: Spec) -> Spec:
    rules = {**_DEFAULT_RULES[direction], **{key: given[key] for key in _RULES if key in given}}
    if "tolerance" in rules:
        rules["tolerance"] = canonical(rules["tolerance"])
    return rules


def comparable(spec: t.Mapping[str, t.Any]) -> t.Any:
    """Return what is equal for two specs exactly when they mean the same.

    The order of metrics, policies and the parts of selectors means nothing, and a quantity is its value.
    """
    return _comparable(complete(spec))


def _comparable(value: t.Any, key: str = "") -> t.Any:
    if isinstance(value, dict) and key != "matchLabels":
        return {name: _comparable(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return sorted((_comparable(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if key in ("value", "averageValue", "tolerance"):
        return str(parse_quantity(value).value)
    return value


def describe(spec: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return a spec in words: what a line is about to what it says, in an order that does not depend on that of the spec."""
    full = complete(spec)
    lines = {
        "target": _reference(full["scaleTargetRef"]),
        "min replicas": str(full["minReplicas"]),
        "max replicas": str(full["maxReplicas"]),
    }
    for metric in sorted(full["metrics"], key=_sorting):
        if metric["type"] not in SOURCES:
            # a newer server may know more kinds; only what is present can be one
            _add(lines, f"metric {metric['type']}", json.dumps(metric, sort_keys=True))
            continue
        source = metric[SOURCES[metric["type"]]]
        _add(lines, _metric_name(metric["type"], source), target_text(source["target"]))
    for direction in DIRECTIONS if "behavior" in full else ():
        rules, title = full["behavior"][direction], "scale up" if direction == "scaleUp" else "scale down"
        window_s = rules.get("stabilizationWindowSeconds")
        lines[f"{title}, window"] = (
            "the controller's (300 s unless it was told otherwise)" if window_s is None else f"{window_s} s"
        )
        lines[f"{title}, select"] = rules["selectPolicy"]
        if "tolerance" in rules:
            lines[f"{title}, tolerance"] = rules["tolerance"]
        for policy in sorted(rules["policies"], key=_sorting):
            unit = "%" if policy["type"] == "Percent" else "pods"
            _add(
                lines, f"{title}, policy {policy['type']} per {policy['periodSeconds']} s", f"{policy['value']} {unit}"
            )
    return lines


def _sorting(item: t.Any) -> str:
    return json.dumps(_comparable(item), sort_keys=True)


def _add(lines: dict[str, str], name: str, text: str) -> None:
    """Add a line; what comes several times under one name is numbered."""
    number, free = 1, name
    while free in lines:
        number += 1
        free = f"{name} ({number})"
    lines[free] = text


def _reference(reference: t.Mapping[str, t.Any]) -> str:
    version = reference.get("apiVersion")
    return f"{reference['kind']}/{reference['name']}" + (f" ({version})" if version else "")


def _metric_name(kind: str, source: Spec) -> str:
    if kind == "Resource":
        return f"metric {source['name']}"
    if kind == "ContainerResource":
        return f"metric {source['name']} of container {source['container']}"
    owner = f" on {_reference(source['describedObject'])}" if kind == "Object" else ""
    return f"metric {kind} {source['metric']['name']}{owner}{_selector(source['metric'].get('selector', {}))}"


def _selector(selector: Spec) -> str:
    parts = [f"{name}={value}" for name, value in sorted(selector.get("matchLabels", {}).items())]
    for entry in sorted(selector.get("matchExpressions", []), key=_sorting):
        values = f" ({', '.join(sorted(entry['values']))})" if entry.get("values") else ""
        parts.append(f"{entry['key']} {entry['operator']}{values}")
    return " {" + ", ".join(parts) + "}" if parts else ""


def target_text(target: t.Mapping[str, t.Any]) -> str:
    """Return the target of a metric, or its current value, in words."""
    if "averageUtilization" in target:
        return f"{target['averageUtilization']} % of the request"
    if "averageValue" in target:
        return f"{target['averageValue']} per pod"
    return f"{target['value']} in all"
