# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The parameters of an HPA that are tuned, how they differ, and what a difference risks. Pure."""

from __future__ import annotations

import copy
import typing as t
from dataclasses import dataclass, fields, replace

from ..model import DISABLED, MAX, MIN, UTILIZATION, Behavior, HpaSpec, Policy, Rules
from ..quantity import format_milli

LOW, MEDIUM, HIGH = "LOW", "MEDIUM", "HIGH"
RISKS = (LOW, MEDIUM, HIGH)
LEGACY_UP = Rules(0, (Policy("Percent", 100, 15), Policy("Pods", 4, 15)))
"""How a spec without behavior scales up, as near as rules can say it."""


@dataclass(frozen=True)
class Parameters:
    """What is searched. ``targets`` are in the order of the metrics, in percent or thousandths; windows are in seconds.

    Rules are ``None`` where the spec has no behavior, so that the controller's own hold.
    """

    min_replicas: int
    max_replicas: int
    targets: tuple[int, ...]
    up: Rules | None
    down: Rules | None

    def spec(self, present: HpaSpec) -> HpaSpec:
        """Return the present spec with these parameters."""
        metrics = tuple(
            replace(metric, target=target) for metric, target in zip(present.metrics, self.targets, strict=True)
        )
        behavior = None
        if self.up is not None or self.down is not None:
            behavior = Behavior(self.up or LEGACY_UP, self.down or Behavior().down)
        return HpaSpec(self.max_replicas, self.min_replicas, metrics, behavior)


def parameters_of(spec: HpaSpec) -> Parameters:
    """Return the parameters of a spec."""
    behavior = spec.behavior
    return Parameters(
        spec.min_replicas,
        spec.max_replicas,
        tuple(metric.target for metric in spec.metrics),
        None if behavior is None else behavior.up,
        None if behavior is None else behavior.down,
    )


@dataclass(frozen=True)
class Difference:
    """One parameter that differs: what it is, both values in words, and the risk with the reason for it.

    ``name`` is the name of the parameter, and ``index`` that of the metric for a target.
    """

    name: str
    what: str
    before: str
    after: str
    risk: str
    risk_reason: str
    index: int = 0


def differences(before: Parameters, after: Parameters, spec: HpaSpec) -> list[Difference]:
    """Return what differs between two sets of parameters, with the risk of going from one to the other.

    What gives the service more room, or gives it back later, is LOW. What takes room away is MEDIUM, and HIGH when it takes much.
    """
    found = []
    low, high = before.min_replicas, after.min_replicas
    if low != high:
        risk, why = LOW, "more replicas are always there"
        if high < low:
            risk, why = (HIGH, "less than half of the floor is left") if high * 2 < low else (MEDIUM, "the floor falls")
            if high < 2 <= low:
                risk, why = HIGH, "one replica alone is a single point of failure"
        found.append(Difference("min_replicas", "min replicas", str(low), str(high), risk, why))
    low, high = before.max_replicas, after.max_replicas
    if low != high:
        risk, why = (MEDIUM, "the ceiling falls") if high < low else (LOW, "the ceiling rises")
        if high > 2 * low:
            risk, why = MEDIUM, "the ceiling more than doubles; nodes and downstream services must bear it"
        found.append(Difference("max_replicas", "max replicas", str(low), str(high), risk, why))
    for index, (was, will) in enumerate(zip(before.targets, after.targets, strict=True)):
        if was == will:
            continue
        metric = spec.metrics[index]
        risk, why = LOW, "each pod gets less to do"
        if will > was:
            much = will > was * 1.25
            risk, why = (
                (HIGH, "each pod gets over a quarter more to do") if much else (MEDIUM, "each pod gets more to do")
            )
        texts = [f"{one} %" if metric.target_type == UTILIZATION else format_milli(one) for one in (was, will)]
        found.append(Difference("targets", f"target of {metric.text}", texts[0], texts[1], risk, why, index))
    for name, title in (("up", "scale up"), ("down", "scale down")):
        found += _rules(name, title, getattr(before, name), getattr(after, name))
    return found


def _rules(name: str, title: str, before: Rules | None, after: Rules | None) -> list[Difference]:
    if before == after or after is None:
        return []
    was, up = before or (LEGACY_UP if name == "up" else Behavior().down), name == "up"
    found = []
    if was.window_s != after.window_s:
        old_s, new_s = (300 if one.window_s is None and not up else one.window_s or 0 for one in (was, after))
        longer = new_s > old_s
        risk = LOW if longer != up else MEDIUM
        why = "it reacts later" if longer and up else "it reacts sooner"
        if not up:
            why = "replicas stay longer" if longer else "replicas go sooner"
        if not up and new_s * 3 < old_s:
            risk, why = HIGH, "replicas go much sooner"
        texts = ["the controller's" if one.window_s is None else f"{one.window_s} s" for one in (was, after)]
        found.append(Difference(f"{name}.window_s", f"{title}, window", texts[0], texts[1], risk, why))
    # the order of policies means nothing
    if policies_text(was) != policies_text(after):
        faster = speed(after) > speed(was)
        risk = LOW if faster == up else MEDIUM
        why = f"it scales {'up' if up else 'down'} {'faster' if faster else 'slower'}"
        found.append(
            Difference(f"{name}.policies", f"{title}, policies", policies_text(was), policies_text(after), risk, why)
        )
    if was.tolerance != after.tolerance:
        old, new = (0.1 if one.tolerance is None else one.tolerance for one in (was, after))
        # a narrow tolerance upwards reacts to less, one downwards gives back sooner
        wider = new > old
        risk = MEDIUM if wider == up else LOW
        why = "it reacts to smaller changes of the load" if not wider else "it ignores larger changes of the load"
        texts = ["the controller's" if one.tolerance is None else f"{one.tolerance:g}" for one in (was, after)]
        found.append(Difference(f"{name}.tolerance", f"{title}, tolerance", texts[0], texts[1], risk, why))
    return found


def speed(rules: Rules, current: int = 10) -> float:
    """Return how many pods in a minute a direction allows, from a number of pods."""
    if rules.select == DISABLED:
        return 0.0
    each = [
        (current * policy.value / 100 if policy.type == "Percent" else policy.value) * 60 / policy.period_s
        for policy in rules.policies
    ]
    return min(each) if rules.select == MIN else max(each)


def policies_text(rules: Rules) -> str:
    """Return the policies of a direction in words."""
    if rules.select == DISABLED:
        return "never"
    parts = [
        f"{one.value} {'%' if one.type == 'Percent' else 'pods'} in {one.period_s} s"
        for one in sorted(rules.policies, key=lambda one: (one.type, one.value, one.period_s))
    ]
    if len(parts) == 1:
        return parts[0]
    return f"the {'larger' if rules.select == MAX else 'smaller'} of {' and '.join(parts)}"


def undone(after: Parameters, before: Parameters, one: Difference) -> Parameters:
    """Return the parameters with one difference taken back."""
    if one.name == "targets":
        targets = list(after.targets)
        targets[one.index] = before.targets[one.index]
        return replace(after, targets=tuple(targets))
    side, _dot, part = one.name.partition(".")
    if not part:
        return replace(after, **{side: getattr(before, side)})
    rules = getattr(before, side) or (LEGACY_UP if side == "up" else Behavior().down)
    names = ("policies", "select") if part == "policies" else (part,)
    mixed = replace(getattr(after, side), **{name: getattr(rules, name) for name in names})
    result = replace(after, **{side: mixed})
    # the controller's own rules come back when nothing of the behavior differs from them
    if (
        before.up is None
        and before.down is None
        and not any(
            other.name.startswith(("up.", "down."))
            for other in _rules("up", "", None, result.up) + _rules("down", "", None, result.down)
        )
    ):
        result = replace(result, up=None, down=None)
    return result


def to_api(present: t.Mapping[str, t.Any], before: Parameters, after: Parameters) -> dict[str, t.Any]:
    """Return the present spec, in the names of the API, with the parameters that differ written into it."""
    spec = copy.deepcopy(dict(present))
    if after.min_replicas != before.min_replicas:
        spec["minReplicas"] = after.min_replicas
    if after.max_replicas != before.max_replicas:
        spec["maxReplicas"] = after.max_replicas
    for index, (was, will) in enumerate(zip(before.targets, after.targets, strict=True)):
        if was == will:
            continue
        metric = spec["metrics"][index]
        source = metric[metric["type"][0].lower() + metric["type"][1:]]
        target = source["target"]
        key = {"Utilization": "averageUtilization", "AverageValue": "averageValue"}.get(target["type"], "value")
        target[key] = will if key == "averageUtilization" else format_milli(will)
    if (after.up, after.down) != (before.up, before.down):
        spec["behavior"] = {
            "scaleUp": _api_rules(after.up or LEGACY_UP),
            "scaleDown": _api_rules(after.down or Behavior().down),
        }
    return spec


def _api_rules(rules: Rules) -> dict[str, t.Any]:
    result: dict[str, t.Any] = {
        "selectPolicy": rules.select,
        "policies": [{"type": one.type, "value": one.value, "periodSeconds": one.period_s} for one in rules.policies],
    }
    if rules.window_s is not None:
        result["stabilizationWindowSeconds"] = rules.window_s
    if rules.tolerance is not None:
        result["tolerance"] = format_milli(round(rules.tolerance * 1000))
    return result


def as_row(parameters: Parameters) -> dict[str, t.Any]:
    """Return parameters as plain data for a result."""
    return {
        field.name: value if not isinstance(value := getattr(parameters, field.name), (Rules, tuple)) else _plain(value)
        for field in fields(parameters)
    }


def _plain(value: t.Any) -> t.Any:
    if isinstance(value, tuple):
        return list(value)
    return {"window_s": value.window_s, "policies": policies_text(value), "tolerance": value.tolerance}
