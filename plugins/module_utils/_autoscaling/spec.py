# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""An HPA's spec as the API has it, checked and read. Pure."""

from __future__ import annotations

import re
import typing as t

from .._common.errors import OptionError
from .model import (
    AVERAGE_VALUE,
    CONTAINER_RESOURCE,
    CPU_DEFAULT,
    DOWN_DEFAULT,
    EXTERNAL,
    KINDS,
    MAX,
    OBJECT,
    PODS,
    RESOURCE,
    SELECTS,
    UP_DEFAULT,
    UTILIZATION,
    VALUE,
    Behavior,
    HpaSpec,
    Metric,
    Policy,
    Rules,
)
from .quantity import Quantity, parse_quantity

MAX_REPLICAS = 2**31 - 1
MAX_WINDOW_S = 3600
MAX_PERIOD_S = 1800

_TARGETS = {
    RESOURCE: {UTILIZATION: "averageUtilization", AVERAGE_VALUE: "averageValue"},
    CONTAINER_RESOURCE: {UTILIZATION: "averageUtilization", AVERAGE_VALUE: "averageValue"},
    PODS: {AVERAGE_VALUE: "averageValue"},
    OBJECT: {VALUE: "value", AVERAGE_VALUE: "averageValue"},
    EXTERNAL: {VALUE: "value", AVERAGE_VALUE: "averageValue"},
}


def parse_spec(given: t.Any, option: str = "spec", version: str = "1.33") -> HpaSpec:
    """Read a spec of autoscaling/v2, with what the API server fills in.

    :param option: the option that it came in, for messages.
    :param version: ``1.32`` refuses a tolerance, which the API has from 1.33 on.
    :raises OptionError: naming the field, its value and what to give instead.
    """
    fields = _fields(given, option, ("scaleTargetRef", "minReplicas", "maxReplicas", "metrics", "behavior"))
    most = _whole(fields, "maxReplicas", option, 1, MAX_REPLICAS)
    given_metrics = [] if fields.get("metrics") is None else fields["metrics"]
    metrics = parse_metrics(given_metrics, f"{option}.metrics") or (CPU_DEFAULT,)
    least = 1 if fields.get("minReplicas") is None else _whole(fields, "minReplicas", option, 0, MAX_REPLICAS)
    if least == 0 and not any(metric.kind in (OBJECT, EXTERNAL) for metric in metrics):
        raise OptionError(
            f"{option}.minReplicas", 0, "scaling to zero needs an Object or External metric; give 1 or more."
        )
    if most < least:
        raise OptionError(f"{option}.maxReplicas", most, f"it is below minReplicas, {least}; give at least that.")
    behavior = None
    if fields.get("behavior") is not None:
        name = f"{option}.behavior"
        both = _fields(fields["behavior"], name, ("scaleUp", "scaleDown"))
        behavior = Behavior(
            _rules(both.get("scaleUp"), f"{name}.scaleUp", UP_DEFAULT, version),
            _rules(both.get("scaleDown"), f"{name}.scaleDown", DOWN_DEFAULT, version),
        )
    return HpaSpec(most, least, metrics, behavior)


def parse_metrics(given: t.Any, option: str) -> tuple[Metric, ...]:
    """Read the metrics of a spec.

    :raises OptionError: naming the field, its value and what to give instead.
    """
    return tuple(_metric(entry, f"{option}[{index}]") for index, entry in enumerate(_list(given, option)))


def _metric(given: t.Any, option: str) -> Metric:
    blocks = {kind: kind[0].lower() + kind[1:] for kind in KINDS}
    fields = _fields(given, option, ("type", *blocks.values()))
    kind = fields.get("type")
    if kind not in KINDS:
        raise OptionError(f"{option}.type", kind, f"give one of {', '.join(KINDS)}.")
    block = f"{option}.{blocks[kind]}"
    others = sorted(set(fields) - {"type", blocks[kind]})
    if others:
        raise OptionError(f"{option}.{others[0]}", fields[others[0]], f"it does not belong to type {kind}; remove it.")
    known = {RESOURCE: ("name",), CONTAINER_RESOURCE: ("name", "container"), OBJECT: ("metric", "describedObject")}
    source = _fields(fields.get(blocks[kind]), block, (*known.get(kind, ("metric",)), "target"))
    if kind in (RESOURCE, CONTAINER_RESOURCE):
        name = _name(source, "name", block)
    else:
        metric = _fields(source.get("metric"), f"{block}.metric", ("name", "selector"))
        name = _name(metric, "name", f"{block}.metric")
    container = _name(source, "container", block) if kind == CONTAINER_RESOURCE else ""
    target_type, target = _target(source.get("target"), f"{block}.target", kind)
    identity = {key: value for key, value in source.items() if key != "target"}
    return Metric(kind, name, target_type, target, container, identity)


def _target(given: t.Any, option: str, kind: str) -> tuple[str, int]:
    fields = _fields(given, option, ("type", "averageUtilization", "averageValue", "value"))
    known = _TARGETS[kind]
    chosen = fields.get("type")
    if not isinstance(chosen, str) or chosen not in known:
        raise OptionError(f"{option}.type", chosen, f"for {kind} give {' or '.join(known)}.")
    others = sorted(key for key in fields if key not in ("type", known[chosen]) and fields[key] is not None)
    if others:
        raise OptionError(
            f"{option}.{others[0]}", fields[others[0]], f"it does not belong to type {chosen}; remove it."
        )
    if chosen == UTILIZATION:
        return chosen, _whole(fields, known[chosen], option, 1, MAX_REPLICAS)
    quantity = read_quantity(fields.get(known[chosen]), f"{option}.{known[chosen]}")
    if quantity.milli < 1:
        raise OptionError(f"{option}.{known[chosen]}", fields[known[chosen]], "give a quantity above 0.")
    return chosen, quantity.milli


def _rules(given: t.Any, option: str, default: Rules, version: str) -> Rules:
    fields = _fields(
        {} if given is None else given, option, ("stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance")
    )
    window_s = default.window_s
    if fields.get("stabilizationWindowSeconds") is not None:
        window_s = _whole(fields, "stabilizationWindowSeconds", option, 0, MAX_WINDOW_S)
    select = MAX if fields.get("selectPolicy") is None else fields["selectPolicy"]
    if select not in SELECTS:
        raise OptionError(f"{option}.selectPolicy", select, f"give one of {', '.join(SELECTS)}.")
    policies = default.policies
    if fields.get("policies") is not None:
        entries = _list(fields["policies"], f"{option}.policies")
        if not entries:
            raise OptionError(f"{option}.policies", entries, "give at least one policy, or leave it out.")
        policies = tuple(_policy(entry, f"{option}.policies[{index}]") for index, entry in enumerate(entries))
    tolerance = None
    if fields.get("tolerance") is not None:
        name = f"{option}.tolerance"
        if version == "1.32":
            raise OptionError(
                name, fields["tolerance"], "the API has it from 1.33 on; remove it or choose version 1.33."
            )
        quantity = read_quantity(fields["tolerance"], name)
        if quantity.value < 0:
            raise OptionError(name, fields["tolerance"], "give a quantity of at least 0, such as 0.05.")
        tolerance = _as_float(quantity)
    return Rules(window_s, policies, select, tolerance)


def _policy(given: t.Any, option: str) -> Policy:
    fields = _fields(given, option, ("type", "value", "periodSeconds"))
    kind = fields.get("type")
    if kind not in ("Pods", "Percent"):
        raise OptionError(f"{option}.type", kind, "give Pods or Percent.")
    value = _whole(fields, "value", option, 1, MAX_REPLICAS)
    return Policy(kind, value, _whole(fields, "periodSeconds", option, 1, MAX_PERIOD_S))


def read_quantity(given: t.Any, option: str) -> Quantity:
    """Read a quantity that an option holds.

    :raises OptionError: when it is none.
    """
    try:
        return parse_quantity(given)
    except ValueError as error:
        raise OptionError(option, given, f"it is {error}; give one.") from error


def _as_float(quantity: Quantity) -> float:
    """Return a tolerance as the controller computes it from thousandths, which is not always the nearest binary fraction."""
    thousandths = quantity.value * 1000
    return int(thousandths) * 1e-3 if thousandths.denominator == 1 else float(quantity.value)


def _fields(given: t.Any, option: str, known: t.Sequence[str]) -> dict[str, t.Any]:
    if not isinstance(given, t.Mapping):
        raise OptionError(option, given, f"give a dictionary with {', '.join(known)}.")
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        raise OptionError(
            f"{option}.{unknown[0]}", given.get(unknown[0]), f"there is no such field; give {', '.join(known)}."
        )
    return dict(given)


def _list(given: t.Any, option: str) -> list[t.Any]:
    if not isinstance(given, (list, tuple)):
        raise OptionError(option, given, "give a list.")
    return list(given)


def _name(fields: t.Mapping[str, t.Any], key: str, option: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"{option}.{key}", value, "give a name.")
    return value


def _whole(fields: t.Mapping[str, t.Any], key: str, option: str, low: int, high: int) -> int:
    value = fields.get(key)
    # templates hand over numbers as text
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise OptionError(f"{option}.{key}", value, f"give a whole number from {low} to {high}.")
    return number
