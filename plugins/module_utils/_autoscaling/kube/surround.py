# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``hpa_surroundings``: a Deployment is checked, its disruption budget and its network policy are declared."""

from __future__ import annotations

import copy
import json
import typing as t
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..quantity import parse_quantity
from ..spec import read_quantity
from .client import Client, Refused
from .connection import Access, connection_spec, parse_access
from .judge import Finding
from .plan import merge_patch
from .validate import check_name, check_namespace

PROBES = ("readiness", "liveness", "startup")
# the API that answers for the metrics of a type
GROUPS = {
    "Resource": "metrics.k8s.io",
    "ContainerResource": "metrics.k8s.io",
    "Pods": "custom.metrics.k8s.io",
    "Object": "custom.metrics.k8s.io",
    "External": "external.metrics.k8s.io",
}
BUDGET = ("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
POLICY = ("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
ATTEMPTS = 5


def surroundings_spec() -> ArgumentSpec:
    """Return the module's options."""
    budget = {"min_available": {"type": "str"}, "max_unavailable": {"type": "str"}}
    rules = {"type": "list", "elements": "dict"}
    return connection_spec().merge(
        ArgumentSpec(
            {
                "name": {"type": "str", "required": True},
                "namespace": {"type": "str", "default": "default"},
                "container": {"type": "str"},
                "requests": {"type": "dict", "default": {}},
                "limits": {"type": "dict", "default": {}},
                "probes": {"type": "list", "elements": "str", "choices": list(PROBES), "default": ["readiness"]},
                "metrics": {"type": "list", "elements": "str", "choices": list(GROUPS), "default": ["Resource"]},
                "budget": {
                    "type": "dict",
                    "options": budget,
                    "mutually_exclusive": [("min_available", "max_unavailable")],
                    "required_one_of": [("min_available", "max_unavailable")],
                },
                "network_policy": {"type": "dict", "options": {"ingress": rules, "egress": rules}},
            }
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. ``wanted`` are quantities by ``requests`` or ``limits`` and resource."""

    name: str
    namespace: str
    container: str | None
    wanted: t.Mapping[str, t.Mapping[str, t.Any]]
    probes: t.Sequence[str]
    metrics: t.Sequence[str]
    budget: t.Mapping[str, t.Any] | None
    network_policy: t.Mapping[str, t.Any] | None
    access: Access = field(repr=False)


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises HeadroomError: naming the option, its value and what to give instead.
    """
    check_name("name", params["name"])
    check_namespace("namespace", params["namespace"])
    for kind in ("requests", "limits"):
        for resource, value in params[kind].items():
            read_quantity(value, f"{kind}.{resource}")
    budget = None
    if params["budget"] is not None:
        name = "min_available" if params["budget"]["min_available"] is not None else "max_unavailable"
        value = params["budget"][name]
        digits = value.removesuffix("%")
        if not digits.isdecimal() or (value.endswith("%") and int(digits) > 100):
            raise OptionError(f"budget.{name}", value, "give a number of pods, or a percentage such as 50%.")
        key = {"min_available": "minAvailable", "max_unavailable": "maxUnavailable"}[name]
        budget = {key: value if value.endswith("%") else int(value)}
    return Options(
        params["name"],
        params["namespace"],
        params["container"],
        {kind: params[kind] for kind in ("requests", "limits")},
        params["probes"],
        params["metrics"],
        budget,
        params["network_policy"],
        parse_access(params),
    )


def look(options: Options, check: bool) -> dict[str, t.Any]:
    """Check the Deployment, declare what belongs to it, and return the result.

    :param check: whether to stop before the first write.
    :raises HeadroomError: when the server cannot be reached or refuses.
    """
    with Client(options.access) as client:
        return _Run(client, options, check).run()


class _Run:
    """One run over one Deployment."""

    def __init__(self, client: Client, options: Options, check: bool) -> None:
        self.client, self.options, self.check = client, options, check
        self.title = f"Deployment {options.namespace}/{options.name}"
        self.plan: list[dict[str, t.Any]] = []
        self.texts: dict[str, list[str]] = {"before": [], "after": []}

    def run(self) -> dict[str, t.Any]:
        """Observe, judge and declare."""
        options = self.options
        path = f"/apis/apps/v1/namespaces/{options.namespace}/deployments/{options.name}"
        deployment = self.client.find(path, f"read {self.title}")
        found = self._apis()
        if deployment is None:
            found.insert(0, Finding("target_missing", f"There is no {self.title}; deploy it, and run again."))
        else:
            pod = deployment["spec"]["template"]["spec"]
            found += judge_pod(self.title, pod, options.container, options.wanted, options.probes)
            for kind, declared in declare(deployment["spec"]["selector"], options.budget, options.network_policy):
                self._converge(kind, declared)
        verb = "Would change" if self.check else "Changed"
        done = f"{verb} {', '.join(one['what'] for one in self.plan)}." if self.plan else "Nothing to change."
        lacking = f" {len(found)} to mend: {' '.join(one.message for one in found)}" if found else ""
        return {
            "changed": bool(self.plan),
            "ready": not found,
            "summary": f"{self.title}: {done}{lacking}",
            "findings": [one.as_dict() for one in found],
            "plan": self.plan,
            "diff": {
                **{side: "".join(lines) for side, lines in self.texts.items()},
                "before_header": self.title,
                "after_header": self.title,
            },
        }

    def _apis(self) -> list[Finding]:
        """Return which APIs of metrics are not served."""
        answer = self.client.get("/apis", "read the APIs")
        served = {group.get("name") for group in answer.get("groups") or ()}
        missing: dict[str, list[str]] = {}
        for kind in self.options.metrics:
            if GROUPS[kind] not in served:
                missing.setdefault(GROUPS[kind], []).append(kind)
        return [
            Finding(
                "metrics_api_missing",
                f"The API server does not serve {group}, which metrics of type {' and '.join(kinds)} need; install an adapter for it.",
                {"api": group},
            )
            for group, kinds in sorted(missing.items())
        ]

    def _converge(self, kind: tuple[str, str, str], declared: dict[str, t.Any]) -> None:
        """Bring one object to what is declared; a conflict starts it over."""
        name, version, plural = kind
        title = f"{name} {self.options.name}"
        path = f"/apis/{version}/namespaces/{self.options.namespace}/{plural}"
        for attempt in range(1, ATTEMPTS + 1):
            present = self.client.find(f"{path}/{self.options.name}", f"read {title}")
            before = None if present is None else normal(present.get("spec") or {})
            if before == normal(declared):
                return
            try:
                if not self.check:
                    self._write(path, title, kind, present, declared)
                break
            except Refused as error:
                if error.code != "conflict" or attempt == ATTEMPTS:
                    raise
        self.plan.append({"what": title, "before": before, "after": declared})
        self.texts["before"].append("" if before is None else f"{title}\n{_text(before)}\n")
        self.texts["after"].append(f"{title}\n{_text(normal(declared))}\n")

    def _write(
        self,
        path: str,
        title: str,
        kind: tuple[str, str, str],
        present: t.Mapping[str, t.Any] | None,
        declared: dict[str, t.Any],
    ) -> None:
        if present is None:
            metadata = {"name": self.options.name, "namespace": self.options.namespace}
            body = {"apiVersion": kind[1], "kind": kind[0], "metadata": metadata, "spec": declared}
            seen = self.client.create(path, body, f"create {title}")
        else:
            body = {
                "metadata": {"resourceVersion": present["metadata"]["resourceVersion"]},
                "spec": merge_patch(present.get("spec") or {}, declared),
            }
            seen = self.client.patch(f"{path}/{self.options.name}", body, f"change {title}")
        if normal(seen.get("spec") or {}) != normal(declared):
            raise HeadroomError(
                f"Failed to verify {title} on {self.client.url}: the server stored something else. Look for an admission webhook.",
                code="not_kept",
                result={"changed": True},
            )


def declare(
    selector: t.Mapping[str, t.Any], budget: t.Mapping[str, t.Any] | None, policy: t.Mapping[str, t.Any] | None
) -> list[tuple[tuple[str, str, str], dict[str, t.Any]]]:
    """Return the specs of the objects that belong to a Deployment, by its selector."""
    found: list[tuple[tuple[str, str, str], dict[str, t.Any]]] = []
    if budget is not None:
        found.append((BUDGET, {**budget, "selector": dict(selector)}))
    if policy is not None:
        rules = {key: policy[key] for key in ("ingress", "egress") if policy.get(key) is not None}
        types = [key.capitalize() for key in rules]
        found.append((POLICY, {"podSelector": dict(selector), "policyTypes": types, **rules}))
    return found


def normal(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return a spec with what the API server fills in, so that specs that mean the same are equal."""
    result = copy.deepcopy(dict(spec))
    for direction in ("ingress", "egress"):
        for rule in result.get(direction) or ():
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
    return result


def judge_pod(
    title: str,
    pod: t.Mapping[str, t.Any],
    container: str | None,
    wanted: t.Mapping[str, t.Mapping[str, t.Any]],
    probes: t.Sequence[str],
) -> list[Finding]:
    """Return what the pods of a Deployment lack, by one of its containers or the first."""
    containers = {one["name"]: one for one in pod.get("containers") or ()}
    name = container or next(iter(containers), "")
    one = containers.get(name)
    if one is None:
        return [
            Finding("container_missing", f"{title} has no container {name}; correct the name.", {"container": name})
        ]
    found = []
    for kind, quantities in wanted.items():
        has = (one.get("resources") or {}).get(kind) or {}
        for resource, value in sorted(quantities.items()):
            present = has.get(resource)
            if present is None or parse_quantity(present).value != parse_quantity(value).value:
                message = f"Container {name} of {title} has {present or 'no'} {resource} in its {kind}, and {value} is declared; set it."
                facts = {"container": name, "resource": resource, "present": present, "declared": str(value)}
                found.append(Finding(f"{kind}_differ", message, facts))
    for probe in probes:
        if not one.get(f"{probe}Probe"):
            message = f"Container {name} of {title} has no {probe} probe; add one, since traffic reaches pods that cannot serve."
            if probe != "readiness":
                message = f"Container {name} of {title} has no {probe} probe; add one."
            found.append(Finding("probe_missing", message, {"container": name, "probe": probe}))
    return found


def _text(value: t.Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True)
