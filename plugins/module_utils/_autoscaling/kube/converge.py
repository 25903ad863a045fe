# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``hpa``: observe, plan, apply, verify; a conflict starts it over, a bounded number of times."""

from __future__ import annotations

import random
import re
import time
import typing as t
from dataclasses import dataclass, field, replace

from ..._common.argspec import ArgumentSpec
from ..._common.change import Change
from ..._common.errors import HeadroomError, OptionError
from . import plan as planning
from .client import Client, Refused
from .connection import Access, connection_spec, parse_access
from .judge import Surroundings, judge
from .model import DIRECTIONS, SOURCES, TARGETS, Spec, without_nulls
from .observe import hpas_path, look_around
from .plan import CREATE, DELETE, NOTHING, PATCH, Plan, plan
from .validate import check_labels, check_name, check_namespace, check_spec, has_tolerance

ATTEMPTS = 5
# Kubernetes 1.33 was the first to know behavior.*.tolerance
TOLERANCE_SINCE = (1, 33)
_DONE = {CREATE: ("Created", "Would create"), PATCH: ("Changed", "Would change"), DELETE: ("Deleted", "Would delete")}


def hpa_spec() -> ArgumentSpec:
    """Return the module's options."""
    reference = {
        "apiVersion": {"type": "str", "default": "apps/v1"},
        "kind": {"type": "str", "default": "Deployment"},
        "name": {"type": "str", "required": True},
    }
    described = {
        "apiVersion": {"type": "str"},
        "kind": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
    }
    target = {
        "type": {"type": "str", "required": True, "choices": list(TARGETS)},
        "averageUtilization": {"type": "int"},
        "averageValue": {"type": "str"},
        "value": {"type": "str"},
    }
    expression = {
        "key": {"type": "str", "required": True, "no_log": False},
        "operator": {"type": "str", "required": True, "choices": ["In", "NotIn", "Exists", "DoesNotExist"]},
        "values": {"type": "list", "elements": "str"},
    }
    selector = {
        "matchLabels": {"type": "dict"},
        "matchExpressions": {"type": "list", "elements": "dict", "options": expression},
    }
    identifier = {"name": {"type": "str", "required": True}, "selector": {"type": "dict", "options": selector}}

    def source(**fields: t.Any) -> dict[str, t.Any]:
        """Return the options of a source: its own and its target."""
        return {"type": "dict", "options": {**fields, "target": {"type": "dict", "required": True, "options": target}}}

    name = {"type": "str", "required": True}
    metric_name = {"type": "dict", "required": True, "options": identifier}
    metric = {
        "type": {"type": "str", "required": True, "choices": list(SOURCES)},
        "resource": source(name=name),
        "containerResource": source(name=name, container=name),
        "pods": source(metric=metric_name),
        "object": source(metric=metric_name, describedObject={"type": "dict", "required": True, "options": described}),
        "external": source(metric=metric_name),
    }
    policy = {
        "type": {"type": "str", "required": True, "choices": ["Pods", "Percent"]},
        "value": {"type": "int", "required": True},
        "periodSeconds": {"type": "int", "required": True},
    }
    rules = {
        "stabilizationWindowSeconds": {"type": "int"},
        "selectPolicy": {"type": "str", "choices": ["Max", "Min", "Disabled"]},
        "policies": {"type": "list", "elements": "dict", "options": policy},
        "tolerance": {"type": "str"},
    }
    spec = {
        "scaleTargetRef": {"type": "dict", "required": True, "options": reference},
        "minReplicas": {"type": "int", "default": 1},
        "maxReplicas": {"type": "int", "required": True},
        "metrics": {"type": "list", "elements": "dict", "options": metric},
        "behavior": {
            "type": "dict",
            "options": {direction: {"type": "dict", "options": rules} for direction in DIRECTIONS},
        },
    }
    return connection_spec().merge(
        ArgumentSpec(
            {
                "name": {"type": "str", "required": True},
                "namespace": {"type": "str", "default": "default"},
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                "spec": {"type": "dict", "options": spec},
            },
            required_if=[("state", "present", ("spec",))],
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked; ``spec`` is ``None`` for an HPA that is not to be."""

    name: str
    namespace: str
    spec: Spec | None
    access: Access = field(repr=False)


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises HeadroomError: naming the option, its value and what to give instead.
    """
    check_name("name", params["name"])
    check_namespace("namespace", params["namespace"])
    spec = None
    if params["state"] == "present":
        check_labels(params["spec"])
        spec = without_nulls(params["spec"])
        check_spec(spec)
    return Options(params["name"], params["namespace"], spec, parse_access(params))


def converge(options: Options, check: bool) -> dict[str, t.Any]:
    """Bring the HPA to what is declared and return the result.

    :param check: whether to stop before the first write.
    :raises HeadroomError: when the server cannot be reached or refuses, or does not keep what it was sent.
    """
    with Client(options.access) as client:
        return _Run(client, options).converge(check)


class _Run:
    """One run over one HPA."""

    def __init__(self, client: Client, options: Options) -> None:
        self.client = client
        self.options = options
        self.title = f"HPA {options.namespace}/{options.name}"
        self.path = f"{hpas_path(options.namespace)}/{options.name}"

    def converge(self, check: bool) -> dict[str, t.Any]:
        """Observe, plan, apply and verify."""
        options, around = self.options, Surroundings()
        present = self._read()
        not_read: dict[str, str] = {}
        if options.spec is not None:
            if present is None:
                not_read = self._require_namespace()
            if has_tolerance(options.spec):
                self._require_tolerance(options.spec)
            around = look_around(self.client, options.namespace, options.name, options.spec["scaleTargetRef"])
            around = replace(around, not_read={**not_read, **around.not_read})
        attempts = 1
        while True:
            planned = self._plan(present)
            if check or planned.action == NOTHING:
                break
            try:
                self._apply(planned, present)
                break
            except Refused as error:
                self._check_retry(error, planned, attempts)
                # others that met the same conflict come back at another time
                time.sleep(max(0.0, min(0.05 * 2**attempts * random.uniform(0.5, 1.0), self.client.left_s())))
                attempts += 1
                present = self._read()
        return self._result(planned, around, attempts, check)

    def _check_retry(self, error: Refused, planned: Plan, attempts: int) -> None:
        """Return when another attempt may do better than the refused one.

        :raises HeadroomError: when it cannot, or was the last.
        """
        # who deletes what another one has deleted, or changes it, starts over too
        gone = error.code == "not_found" and planned.action != CREATE
        if error.code != "conflict" and not gone:
            raise error
        if attempts == ATTEMPTS:
            raise HeadroomError(
                f"Failed to {planned.action} {self.title} on {self.client.url}: it was changed by others during each of "
                f"{ATTEMPTS} attempts. Find out what else manages it, and run again.",
                code="conflict",
                attempts=attempts,
            ) from error

    def _require_namespace(self) -> dict[str, str]:
        """Make sure that there is the namespace to create the HPA in, and return what could not be read, with the reason.

        :raises Refused: when there is none.
        """
        name = self.options.namespace
        try:
            self.client.get(f"/api/v1/namespaces/{name}", f"read namespace {name}")
        except Refused as error:
            # one that does not serve namespaces knows nothing of this one
            if error.code == "not_found" and error.kind == "namespaces":
                raise
            return {"namespace": str(error)}
        return {}

    def _read(self) -> dict[str, t.Any] | None:
        return self.client.find(self.path, f"read {self.title}")

    def _plan(self, present: t.Mapping[str, t.Any] | None) -> Plan:
        leaving = present is not None and present["metadata"].get("deletionTimestamp")
        if leaving and self.options.spec is not None:
            raise HeadroomError(
                f"Failed to keep {self.title} on {self.client.url}: it is being deleted and waits for its finalizers. "
                "Run again when it is gone.",
                code="being_deleted",
            )
        return Plan(NOTHING) if leaving else plan(present, self.options.spec)

    def _require_tolerance(self, spec: Spec) -> None:
        """Make sure that the server knows tolerances; one that does not drops them without a word.

        :raises OptionError: naming the first one.
        """
        version = self.client.get("/version", "read the version")
        numbers = [re.match(r"\d+", str(version.get(part, ""))) for part in ("major", "minor")]
        # what a version without numbers drops is seen after the write
        if not all(numbers) or tuple(int(number.group()) for number in numbers if number) >= TOLERANCE_SINCE:
            return
        direction = next(one for one in DIRECTIONS if "tolerance" in spec["behavior"].get(one, {}))
        raise OptionError(
            f"spec.behavior.{direction}.tolerance",
            spec["behavior"][direction]["tolerance"],
            f"leave it out: the API server is Kubernetes {version.get('gitVersion')}, and tolerance needs 1.33 or later.",
        )

    def _apply(self, planned: Plan, present: t.Mapping[str, t.Any] | None) -> None:
        """Send one write request, and see that the server has kept what it was sent."""
        purpose = f"{planned.action} {self.title}"
        if planned.action == DELETE and present is not None:
            # only the one that was looked at
            body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": _identity(present, "uid")}
            self.client.delete(self.path, body, purpose)
            left = self._read()
            if left is not None and not left["metadata"].get("deletionTimestamp"):
                self._not_kept("it is there again", planned.changes)
            return
        if present is None:
            named = {"name": self.options.name, "namespace": self.options.namespace}
            body = {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": named,
                "spec": planned.body,
            }
            seen = self.client.create(hpas_path(self.options.namespace), body, purpose)
        else:
            body = {"metadata": _identity(present, "resourceVersion"), "spec": planned.body}
            seen = self.client.patch(self.path, body, purpose)
        missing = plan(seen, planned.after)
        if missing.action != NOTHING:
            self._not_kept("the server stored something else", missing.changes)

    def _not_kept(self, what: str, changes: t.Sequence[Change]) -> t.NoReturn:
        names = ", ".join(change.what for change in changes[:3])
        raise HeadroomError(
            f"Failed to verify {self.title} on {self.client.url}: {what} ({names}). Look for an admission webhook, a feature gate that is "
            "off, or something else that manages it.",
            code="not_kept",
            result={"changed": True, "plan": [change.as_dict() for change in changes]},
        )

    def _result(self, planned: Plan, around: Surroundings, attempts: int, check: bool) -> dict[str, t.Any]:
        findings = judge(planned.after, around) if planned.after is not None else ()
        return {
            "changed": planned.action != NOTHING,
            "action": planned.action,
            "name": self.options.name,
            "namespace": self.options.namespace,
            "summary": self._summary(planned, check),
            "spec": planned.after,
            "plan": [change.as_dict() for change in planned.changes],
            "findings": [finding.as_dict() for finding in findings],
            "not_read": dict(around.not_read),
            "attempts": attempts,
            "diff": {
                "before": planning.text(planned.before),
                "after": planning.text(planned.after),
                "before_header": self.title,
                "after_header": self.title,
            },
        }

    def _summary(self, planned: Plan, check: bool) -> str:
        if planned.action == NOTHING:
            return (
                f"{self.title} is as declared."
                if self.options.spec is not None
                else f"There is nothing to delete of {self.title}."
            )
        verb = _DONE[planned.action][check]
        if planned.action == PATCH:
            return f"{verb} {self.title}: {', '.join(change.what for change in planned.changes)}."
        return f"{verb} {self.title}."


def _identity(present: t.Mapping[str, t.Any], key: str) -> dict[str, t.Any]:
    """Return what makes a write fail when the object is not the one that was looked at."""
    return {key: present["metadata"][key]} if present["metadata"].get(key) else {}
