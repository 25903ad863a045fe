# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What would keep an autoscaler from working well among what is there. Pure."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field

Object = t.Mapping[str, t.Any]
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True)
class Surroundings:
    """What an autoscaler works among, as objects of the API.

    ``missing`` says that the server has no such target; where it could not be read, ``not_read`` says so. ``workloads`` are the targets
    of the ``others``, by the name of the autoscaler.
    """

    workload: Object | None = None
    missing: bool = False
    others: tuple[Object, ...] = ()
    workloads: t.Mapping[str, Object] = field(default_factory=dict)
    budgets: tuple[Object, ...] = ()
    not_read: t.Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Something to mend: a stable code, a sentence, and the figures and names behind it."""

    code: str
    message: str
    facts: t.Mapping[str, t.Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, t.Any]:
        """Return the finding as a module's return value."""
        return {"code": self.code, "message": self.message, **self.facts}


def judge(spec: Object, around: Surroundings) -> tuple[Finding, ...]:
    """Return what to mend, for a complete spec."""
    target = spec["scaleTargetRef"]
    title = f"{target['kind']} {target['name']}"
    found = _shared(target, title, around)
    if around.missing:
        found.append(Finding("target_missing", f"There is no {title}; the HPA does nothing until it is there."))
    if around.workload is not None:
        found += _owned(title, around.workload)
        found += _blocked(spec["minReplicas"], around.workload, around.budgets)
        found += _requests(spec["metrics"], title, around.workload)
    return tuple(found)


def selects(selector: Object | None, labels: t.Mapping[str, str]) -> bool:
    """Return whether a label selector takes these labels; none takes nothing, an empty one everything."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    tests: dict[str, t.Callable[[str, list[str]], bool]] = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, values: key in labels,
        "DoesNotExist": lambda key, values: key not in labels,
    }
    return all(
        tests[entry["operator"]](entry["key"], entry.get("values") or [])
        for entry in selector.get("matchExpressions") or []
    )


def _labels(workload: Object) -> t.Mapping[str, str]:
    return workload["spec"]["template"].get("metadata", {}).get("labels") or {}


def _shared(target: Object, title: str, around: Surroundings) -> list[Finding]:
    found = []
    for other in around.others:
        name, reference = other["metadata"]["name"], other["spec"]["scaleTargetRef"]
        if (reference["kind"], reference["name"]) == (target["kind"], target["name"]):
            message = f"HPA {name} has the same target {title}; they undo each other's decisions. Remove one."
            found.append(Finding("shared_target", message, {"hpa": name}))
        elif around.workload is not None and name in around.workloads:
            mine, theirs = around.workload, around.workloads[name]
            if selects(mine["spec"].get("selector"), _labels(theirs)) or selects(
                theirs["spec"].get("selector"), _labels(mine)
            ):
                message = (
                    f"HPA {name} selects the same pods, by {reference['kind']} {reference['name']}; the controller then scales neither. "
                    "Give the workloads selectors of their own."
                )
                found.append(Finding("shared_pods", message, {"hpa": name}))
    return found


def _owned(title: str, workload: Object) -> list[Finding]:
    """Tell who sets ``spec.replicas`` beside the autoscaler: each time a manifest is applied, it undoes what was decided."""
    metadata = workload["metadata"]
    owners = set()
    try:
        applied = json.loads((metadata.get("annotations") or {}).get(LAST_APPLIED, "{}"))
    except ValueError:
        applied = {}
    if (applied.get("spec") or {}).get("replicas") is not None:
        owners.add("kubectl apply")
    for entry in metadata.get("managedFields") or []:
        owned = "f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {})
        if not owned or entry.get("subresource") == "scale":
            continue
        # who creates an object owns its defaults too: of an update only another count than the default is proof
        if entry.get("operation") == "Apply" or (not applied and workload["spec"].get("replicas", 1) != 1):
            owners.add(entry.get("manager", "unknown"))
    if not owners:
        return []
    names = ", ".join(sorted(owners))
    message = (
        f"spec.replicas of {title} is set by {names}, which undoes the HPA's decisions; leave it out of that manifest."
    )
    return [Finding("replicas_owned", message, {"managers": sorted(owners)})]


def _blocked(floor: int, workload: Object, budgets: t.Sequence[Object]) -> list[Finding]:
    found = []
    for budget in budgets:
        spec, name = budget["spec"], budget["metadata"]["name"]
        if floor == 0 or not selects(spec.get("selector"), _labels(workload)):
            continue
        if spec.get("maxUnavailable") is not None:
            rule, allowed = f"maxUnavailable {spec['maxUnavailable']}", _share(spec["maxUnavailable"], floor)
        elif spec.get("minAvailable") is not None:
            rule, allowed = f"minAvailable {spec['minAvailable']}", floor - _share(spec["minAvailable"], floor)
        else:
            # the disruption controller then expects no pods, and allows nothing
            rule, allowed = "neither minAvailable nor maxUnavailable", 0
        if allowed < 1:
            message = (
                f"PodDisruptionBudget {name} ({rule}) lets no pod be evicted at the floor of {floor}, so that a node cannot be drained; "
                "raise minReplicas or loosen the budget."
            )
            found.append(Finding("drain_blocked", message, {"budget": name, "min_replicas": floor}))
    return found


def _share(value: t.Any, pods: int) -> int:
    """Return a count of pods, or a percentage of them, rounded up as the disruption controller does."""
    text = str(value)
    return -(-int(text[:-1]) * pods // 100) if text.endswith("%") else int(text)


def _requests(metrics: t.Sequence[Object], title: str, workload: Object) -> list[Finding]:
    pod = workload["spec"]["template"]["spec"]
    sidecars = [item for item in pod.get("initContainers") or [] if item.get("restartPolicy") == "Always"]
    containers = {item["name"]: item for item in [*(pod.get("containers") or []), *sidecars]}
    found = []
    for metric in metrics:
        source = metric.get("resource") or metric.get("containerResource") or {}
        name = source.get("container")
        if name is not None and name not in containers:
            message = f"{title} has no container {name}; its metric {source['name']} cannot be read. Correct the name."
            found.append(Finding("container_missing", message, {"container": name, "resource": source["name"]}))
            continue
        if "averageUtilization" not in source.get("target", {}):
            continue
        resource, concerned = source["name"], [name] if name is not None else sorted(containers)
        if name is None and _has_request(pod, resource):
            continue
        without = [one for one in concerned if not _has_request(containers[one], resource)]
        if without:
            message = (
                f"{title} requests no {resource} for {', '.join(without)}, so that its utilisation cannot be computed and the HPA "
                "does not scale on it; set requests, or an averageValue as target."
            )
            found.append(Finding("requests_missing", message, {"containers": without, "resource": resource}))
    return found


def _has_request(holder: Object, resource: str) -> bool:
    resources = holder.get("resources") or {}
    # a limit without a request is the request, as the API server fills it in
    return any(resource in (resources.get(key) or {}) for key in ("requests", "limits"))
