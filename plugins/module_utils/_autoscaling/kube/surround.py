# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``hpa_surroundings``: a Deployment is checked, its disruption budget and its network policy are declared."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..model import CONTAINER_RESOURCE, EXTERNAL, PODS, RESOURCE, Metric
from ..quantity import parse_quantity
from ..spec import parse_metrics, read_quantity
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
# the fields of a rule; one that is mistyped would be dropped by a server that does not check, and a rule without it lets all through
_SELECTOR = {"matchLabels": None, "matchExpressions": [{"key": None, "operator": None, "values": None}]}
_PEERS = [{"podSelector": _SELECTOR, "namespaceSelector": _SELECTOR, "ipBlock": {"cidr": None, "except": None}}]
_PORTS = [{"protocol": None, "port": None, "endPort": None}]
_RULES = {"ingress": [{"from": _PEERS, "ports": _PORTS}], "egress": [{"to": _PEERS, "ports": _PORTS}]}
# what an adapter lists that does not tell its metrics
_UNTOLD = ("externalmetrics", "*/*")


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
                "metrics": {"type": "list", "elements": "str", "choices": list(GROUPS)},
                "hpa_metrics": {"type": "list", "elements": "dict", "default": []},
                "budget": {
                    "type": "dict",
                    "options": budget,
                    "mutually_exclusive": [("min_available", "max_unavailable")],
                    "required_one_of": [("min_available", "max_unavailable")],
                },
                "network_policy": {
                    "type": "dict",
                    "options": {"ingress": rules, "egress": rules},
                    "required_one_of": [("ingress", "egress")],
                },
            }
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. ``wanted`` are quantities by ``requests`` or ``limits`` and resource.

    ``metrics`` are types, and ``served`` the metrics that an adapter has to serve: the type, and the name that its API lists.
    """

    name: str
    namespace: str
    container: str | None
    wanted: t.Mapping[str, t.Mapping[str, t.Any]]
    probes: t.Sequence[str]
    metrics: t.Sequence[str]
    served: t.Sequence[tuple[str, str]]
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
    for direction, known in _RULES.items():
        rules = (params["network_policy"] or {}).get(direction)
        if rules is not None:
            _check_fields(f"network_policy.{direction}", rules, known)
    metrics = parse_metrics(params["hpa_metrics"], "hpa_metrics")
    served = [
        (one.kind, _listed(one, f"hpa_metrics[{number}]"))
        for number, one in enumerate(metrics)
        if one.kind not in (RESOURCE, CONTAINER_RESOURCE)
    ]
    return Options(
        params["name"],
        params["namespace"],
        params["container"],
        {kind: params[kind] for kind in ("requests", "limits")},
        params["probes"],
        list(dict.fromkeys([*(params["metrics"] or ()), *(one.kind for one in metrics)])) or [RESOURCE],
        served,
        budget,
        params["network_policy"],
        parse_access(params),
    )


def _check_fields(option: str, value: t.Any, known: t.Any) -> None:
    """Make sure that a value has fields alone that the API knows.

    :param known: fields by their name, a list of what is in a list, or ``None`` for anything.
    :raises OptionError: naming the first that it does not know.
    """
    if value is None:
        raise OptionError(option, value, "leave it out, or say what it is to be.")
    if isinstance(known, list):
        if not isinstance(value, list):
            raise OptionError(option, value, "give a list.")
        for number, one in enumerate(value):
            _check_fields(f"{option}[{number}]", one, known[0])
    elif known is not None:
        if not isinstance(value, dict):
            raise OptionError(option, value, f"give a mapping with some of {', '.join(known)}.")
        for name, one in value.items():
            if name not in known:
                raise OptionError(
                    f"{option}.{name}", one, f"the API has no such field there; give one of {', '.join(known)}."
                )
            _check_fields(f"{option}.{name}", one, known[name])


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
        self.not_read: dict[str, str] = {}
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
            "not_read": self.not_read,
            "plan": self.plan,
            "diff": {
                **{side: "".join(lines) for side, lines in self.texts.items()},
                "before_header": self.title,
                "after_header": self.title,
            },
        }

    def _apis(self) -> list[Finding]:
        """Return which APIs of metrics are not served, and which metrics the others do not have."""
        answer = self.client.get("/apis", "read the APIs")
        served = {group.get("name"): group for group in answer.get("groups") or ()}
        missing: dict[str, list[str]] = {}
        for kind in self.options.metrics:
            if GROUPS[kind] not in served:
                missing.setdefault(GROUPS[kind], []).append(kind)
        found = [
            Finding(
                "metrics_api_missing",
                f"The API server does not serve {group}, which metrics of type {' and '.join(kinds)} need; install an adapter for it.",
                {"api": group},
            )
            for group, kinds in sorted(missing.items())
        ]
        for group in sorted({GROUPS[kind] for kind, _name in self.options.served} - missing.keys()):
            names = [name for kind, name in self.options.served if GROUPS[kind] == group]
            found += self._metrics(group, served[group], dict.fromkeys(names))
        return found

    def _metrics(self, group: str, served: t.Mapping[str, t.Any], names: t.Iterable[str]) -> list[Finding]:
        """Return which metrics of an API its adapter does not serve, by the list that it gives."""
        version = (served.get("preferredVersion") or {}).get("groupVersion") or f"{group}/v1beta1"
        try:
            listed = self.client.get(f"/apis/{version}", f"list the metrics of {group}").get("resources") or ()
        except Refused as error:
            message = (
                f"The metrics of {group} cannot be listed, so that the autoscaler cannot read them either: {error}"
            )
            return [Finding("metrics_api_failing", message, {"api": group})]
        present = {str(one.get("name")) for one in listed}
        if present.intersection(_UNTOLD):
            self.not_read[f"metrics of {group}"] = "The adapter does not list its metrics."
            return []
        return [
            Finding(
                "metric_missing",
                f"The adapter of {group} serves no {name}, so that the autoscaler cannot read it; correct the name, or add a rule to the "
                "adapter that makes it.",
                {"api": group, "metric": name},
            )
            for name in names
            if name not in present
        ]

    def _converge(self, kind: tuple[str, str, str], declared: dict[str, t.Any]) -> None:
        """Bring one object to what is declared; a conflict starts it over."""
        name, version, plural = kind
        title = f"{name} {self.options.name}"
        path = f"/apis/{version}/namespaces/{self.options.namespace}/{plural}"
        for attempt in range(1, ATTEMPTS + 1):
            present = self.client.find(f"{path}/{self.options.name}", f"read {title}")
            before = None if present is None else normal(present.get("spec") or {})
            if before == declared:
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
        self.texts["after"].append(f"{title}\n{_text(declared)}\n")

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
        if normal(seen.get("spec") or {}) != declared:
            raise HeadroomError(
                f"Failed to verify {title} on {self.client.url}: the server stored something else. Look for an admission webhook.",
                code="not_kept",
                result={"changed": True},
            )


def declare(
    selector: t.Mapping[str, t.Any], budget: t.Mapping[str, t.Any] | None, policy: t.Mapping[str, t.Any] | None
) -> list[tuple[tuple[str, str, str], dict[str, t.Any]]]:
    """Return the specs of the objects that belong to a Deployment, by its selector, as :func:`normal` has them."""
    found: list[tuple[tuple[str, str, str], dict[str, t.Any]]] = []
    if budget is not None:
        found.append((BUDGET, normal({**budget, "selector": dict(selector)})))
    if policy is not None:
        rules = {key: policy[key] for key in ("ingress", "egress") if policy.get(key) is not None}
        types = [key.capitalize() for key in rules]
        # without types the server would take a policy that has no rules for one that lets nothing in
        found.append((POLICY, normal({"podSelector": dict(selector), "policyTypes": types, **rules})))
    return found


def normal(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return a spec with what the API server fills in, and without what it leaves out, so that specs that mean the same are equal."""
    result = _without_empty(spec)
    for direction in ("ingress", "egress"):
        for rule in result.get(direction) or ():
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
    return result


def _without_empty(value: t.Any) -> t.Any:
    """Return a copy without nulls, empty lists and empty labels; an empty selector stays, since it takes everything."""
    if isinstance(value, list):
        return [_without_empty(one) for one in value]
    if not isinstance(value, t.Mapping):
        return value
    kept = {key: _without_empty(one) for key, one in value.items()}
    return {
        key: one for key, one in kept.items() if one is not None and one != [] and (key, one) != ("matchLabels", {})
    }


def _listed(metric: Metric, option: str) -> str:
    """Return the name by which the API of a metric lists it: that of its objects, and its own.

    :raises OptionError: when it does not say of what kind its object is.
    """
    if metric.kind == EXTERNAL:
        return metric.name
    if metric.kind == PODS:
        return f"pods/{metric.name}"
    described = metric.source.get("describedObject")
    if not isinstance(described, dict) or not isinstance(described.get("kind"), str) or not described["kind"]:
        raise OptionError(
            f"{option}.object.describedObject", described, "give apiVersion, kind and name of the object."
        )
    kind, group = described["kind"].lower(), str(described.get("apiVersion") or "").rpartition("/")[0]
    # as upstream guesses the name of a resource from its kind
    if not kind.endswith("endpoints"):
        kind = f"{kind}es" if kind.endswith("s") else f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    return f"{kind}{'.' if group else ''}{group}/{metric.name}"


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
    resources = one.get("resources") or {}
    for kind, quantities in wanted.items():
        has = resources.get(kind) or {}
        if kind == "requests":
            # a limit without a request is the request, as the API server fills it in
            has = {**(resources.get("limits") or {}), **has}
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
