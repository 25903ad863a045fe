# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What the API server would refuse of a HorizontalPodAutoscaler, said before anything is sent. Pure."""

from __future__ import annotations

import re
import typing as t

from ..._common.errors import OptionError
from ..quantity import parse_quantity
from .model import DIRECTIONS, SOURCES, TARGETS, Spec

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VERSION = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[0-9][a-z0-9]*")
_MAX_INT = 2**31 - 1
# which targets a source may have
_ALLOWED_TARGETS = {
    "Resource": ("Utilization", "AverageValue"),
    "ContainerResource": ("Utilization", "AverageValue"),
    "Pods": ("AverageValue",),
    "Object": ("Value", "AverageValue"),
    "External": ("Value", "AverageValue"),
}


def check_name(option: str, value: str) -> None:
    """Check the name of an object.

    :raises OptionError: when no object can have it.
    """
    if len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
        raise OptionError(
            option, value, "give a name of a-z, 0-9, '-' and '.', which starts and ends with a letter or digit."
        )


def check_namespace(option: str, value: str) -> None:
    """Check the name of a namespace.

    :raises OptionError: when no namespace can have it.
    """
    if not _LABEL.fullmatch(value):
        raise OptionError(
            option, value, "give at most 63 of a-z, 0-9 and '-', which start and end with a letter or digit."
        )


def check_spec(spec: Spec) -> None:
    """Check a spec without nulls, of the types that the module's options have.

    The rules are those of the API server's validation of ``autoscaling/v2``. Stricter is that a target has the one value that its type
    names, since the controller ignores the others without a word.

    :raises OptionError: naming the first field that it would refuse, its value and what to give instead.
    """
    _check_reference("spec.scaleTargetRef", spec["scaleTargetRef"])
    low, high = spec.get("minReplicas", 1), spec["maxReplicas"]
    metrics = spec.get("metrics", [])
    _check_int("spec.minReplicas", low, 0, _MAX_INT)
    _check_int("spec.maxReplicas", high, 1, _MAX_INT)
    if high < low:
        raise OptionError("spec.maxReplicas", high, f"give at least spec.minReplicas, which is {low}.")
    if low == 0 and not any(metric["type"] in ("Object", "External") for metric in metrics):
        raise OptionError("spec.minReplicas", low, "give at least 1, or add a metric of type Object or External.")
    for number, metric in enumerate(metrics):
        _check_metric(f"spec.metrics[{number}]", metric)
    for direction in DIRECTIONS:
        rules = spec.get("behavior", {}).get(direction)
        if rules is not None:
            _check_rules(f"spec.behavior.{direction}", rules)


def check_labels(spec: t.Mapping[str, t.Any]) -> None:
    """Check the labels of a spec as it was given, with its nulls: the API has text only, and without a null a selector would be wider.

    :raises OptionError: naming the first label that is no text.
    """
    for number, metric in enumerate(spec.get("metrics") or []):
        for key in SOURCES.values():
            selector = ((metric.get(key) or {}).get("metric") or {}).get("selector") or {}
            for label, value in (selector.get("matchLabels") or {}).items():
                if not isinstance(value, str):
                    path = f"spec.metrics[{number}].{key}.metric.selector.matchLabels.{label}"
                    raise OptionError(path, value, "give text, in quotes, or leave the label out.")


def has_tolerance(spec: t.Mapping[str, t.Any]) -> bool:
    """Return whether a spec sets a tolerance, which servers before Kubernetes 1.33 do not know."""
    behavior = spec.get("behavior", {})
    return any("tolerance" in behavior.get(direction, {}) for direction in DIRECTIONS)


def _check_int(path: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OptionError(path, value, f"give a whole number from {low} to {high}.")


def _check_text(path: str, value: str) -> None:
    # what stands in a path of the API
    if not value or value in (".", "..") or "/" in value or "%" in value:
        raise OptionError(path, value, "give a name that is not empty, without '/' and '%'.")


def _check_reference(path: str, reference: Spec) -> None:
    for field in ("kind", "name"):
        _check_text(f"{path}.{field}", reference[field])
    version = reference.get("apiVersion")
    if version is not None and not _VERSION.fullmatch(version):
        raise OptionError(f"{path}.apiVersion", version, "give GROUP/VERSION, such as 'apps/v1'.")


def _check_metric(path: str, metric: Spec) -> None:
    kind, key = metric["type"], SOURCES[metric["type"]]
    if key not in metric:
        raise OptionError(f"{path}.type", kind, f"give {path}.{key} beside it.")
    for other in SOURCES.values():
        if other != key and other in metric:
            raise OptionError(
                f"{path}.type", kind, f"leave out {path}.{other}: only {path}.{key} belongs to this type."
            )
    source, path = metric[key], f"{path}.{key}"
    for field in ("name", "container"):
        if field in source:
            _check_text(f"{path}.{field}", source[field])
    if "describedObject" in source:
        _check_reference(f"{path}.describedObject", source["describedObject"])
    if "metric" in source:
        _check_text(f"{path}.metric.name", source["metric"]["name"])
        _check_selector(f"{path}.metric.selector", source["metric"].get("selector", {}))
    _check_target(f"{path}.target", source["target"], _ALLOWED_TARGETS[kind])


def _check_selector(path: str, selector: Spec) -> None:
    for number, entry in enumerate(selector.get("matchExpressions", [])):
        needs = entry["operator"] in ("In", "NotIn")
        if needs != bool(entry.get("values")):
            remedy = (
                "give at least one value for In and NotIn." if needs else "leave it out for Exists and DoesNotExist."
            )
            raise OptionError(f"{path}.matchExpressions[{number}].values", entry.get("values"), remedy)


def _check_target(path: str, target: Spec, allowed: t.Sequence[str]) -> None:
    kind = target["type"]
    if kind not in allowed:
        raise OptionError(f"{path}.type", kind, f"give {' or '.join(allowed)} for a metric of this type.")
    field = TARGETS[kind]
    if field not in target:
        raise OptionError(f"{path}.type", kind, f"give {path}.{field} beside it.")
    for other in TARGETS.values():
        if other != field and other in target:
            raise OptionError(
                f"{path}.{other}", target[other], f"leave it out: of a target of type {kind} only {field} is used."
            )
    if field == "averageUtilization":
        _check_int(f"{path}.{field}", target[field], 1, _MAX_INT)
    else:
        _check_quantity(f"{path}.{field}", target[field], positive=True)


def _check_quantity(path: str, value: t.Any, positive: bool) -> None:
    try:
        number = parse_quantity(value).value
    except ValueError as error:
        raise OptionError(path, value, "give a quantity, such as '500m', '0.5', '100' or '1Gi'.") from error
    if number < 0 or (positive and number == 0):
        raise OptionError(path, value, f"give a quantity {'above 0' if positive else 'of 0 or more'}.")


def _check_rules(path: str, rules: Spec) -> None:
    if "stabilizationWindowSeconds" in rules:
        _check_int(f"{path}.stabilizationWindowSeconds", rules["stabilizationWindowSeconds"], 0, 3600)
    if "tolerance" in rules:
        _check_quantity(f"{path}.tolerance", rules["tolerance"], positive=False)
    if "policies" in rules and not rules["policies"]:
        raise OptionError(f"{path}.policies", [], "give at least one policy, or leave it out for the defaults.")
    for number, policy in enumerate(rules.get("policies", [])):
        _check_int(f"{path}.policies[{number}].value", policy["value"], 1, _MAX_INT)
        _check_int(f"{path}.policies[{number}].periodSeconds", policy["periodSeconds"], 1, 1800)
