# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Recorded steps of a controller: objects of the API as the arguments of :func:`.controller.reconcile`. Pure."""

from __future__ import annotations

import datetime
import re
import typing as t

from .model import (
    CONTAINER_RESOURCE,
    UNKNOWN,
    Condition,
    HpaSpec,
    Memory,
    Metric,
    Pod,
    Reading,
    Recommendation,
    Sample,
    Scale,
    ScaleEvent,
    Settings,
)
from .quantity import parse_quantity
from .spec import parse_spec

_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(h|ms|m|s|us|µs|μs|ns)")
_UNITS_S = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_OF_PODS = re.compile(r"cpu|memory|hugepages-.*")
_DEFAULT_WINDOW_S = 60.0


def arguments(case: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the arguments of ``reconcile`` for one recorded step, as plain data.

    Times are text in the form of RFC 3339 or seconds. The keys:

    - ``hpa``: the HorizontalPodAutoscaler, with ``spec`` and, where known, ``status``;
    - ``scale``: the Scale, with ``spec.replicas`` and ``status.replicas``;
    - ``pods``: the Pods;
    - ``metrics``: one for each metric of the spec, in its order, as its API answers: a list with ``items`` (PodMetrics, or MetricValues
      for Pods, Object and External), or ``{error: text}``; in place of items also ``pods``, which is ``{name: {value, timestamp,
      window}}`` with quantities, or ``values``, a list of quantities;
    - ``now``;
    - ``recommendations`` (``[{replicas, at}]``), ``scale_up_events`` and ``scale_down_events`` (``[{change, at, outdated}]``): what the
      controller remembers; without ``recommendations`` it sees the HPA for the first time;
    - ``settings``: fields of :class:`.model.Settings`; ``version``: ``1.32``, ``1.33`` or ``1.38``.

    :raises OptionError: when the API would refuse the spec.
    :raises ValueError: when a quantity or a time cannot be read.
    """
    version = case.get("version", "1.33")
    spec = parse_spec(case["hpa"]["spec"], "hpa.spec", version)
    status = case["hpa"].get("status") or {}
    known = case.get("recommendations")
    return {
        "spec": spec,
        "scale": Scale(*((case["scale"].get(part) or {}).get("replicas") or 0 for part in ("spec", "status"))),
        "pods": [_pod(pod) for pod in case.get("pods") or ()],
        "readings": _readings(spec, case.get("metrics") or (), version),
        "now_s": seconds(case["now"]),
        "memory": Memory(
            None if known is None else tuple(Recommendation(one["replicas"], seconds(one["at"])) for one in known),
            *(
                tuple(
                    ScaleEvent(one["change"], seconds(one["at"]), one.get("outdated", False))
                    for one in case.get(key) or ()
                )
                for key in ("scale_up_events", "scale_down_events")
            ),
        ),
        "settings": Settings(**case.get("settings", {})),
        "version": version,
        "conditions": tuple(
            Condition(
                one["type"],
                one["status"] == "True",
                one.get("reason") or "",
                one.get("message") or "",
                seconds(one.get("lastTransitionTime") or 0),
            )
            for one in status.get("conditions") or ()
        ),
        "status_desired": status.get("desiredReplicas") or 0,
    }


def seconds(given: t.Any) -> float:
    """Return a time in seconds since 1970, or as given when it is a number.

    :raises ValueError: when it is neither a number nor a time in the form of RFC 3339.
    """
    if isinstance(given, (int, float)):
        return float(given)
    moment = datetime.datetime.fromisoformat(str(given))
    if moment.tzinfo is None:
        raise ValueError(f"{given} has no time zone; add Z or an offset.")
    return moment.timestamp()


def _pod(given: t.Mapping[str, t.Any]) -> Pod:
    meta, status, spec = given["metadata"], given.get("status") or {}, given.get("spec") or {}
    ready = next((one for one in status.get("conditions") or () if one["type"] == "Ready"), None)
    started = status.get("startTime")
    restartable = [one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    own = (spec.get("resources") or {}).get("requests") or {}
    return Pod(
        name=meta["name"],
        phase=status.get("phase") or "",
        ready=None if ready is None else {"True": True, "False": False}.get(ready["status"], UNKNOWN),
        ready_since_s=0.0 if ready is None else seconds(ready.get("lastTransitionTime") or 0),
        start_s=None if started is None else seconds(started),
        deleted=meta.get("deletionTimestamp") is not None,
        requests_milli={
            one["name"]: _milli((one.get("resources") or {}).get("requests") or {})
            for one in [*(spec.get("containers") or ()), *restartable]
        },
        # as long as none of these is named, the pod has no requests of its own
        pod_requests_milli=_milli(own) if any(_OF_PODS.fullmatch(resource) for resource in own) else None,
        overhead_milli=_milli(spec.get("overhead") or {}),
    )


def _milli(requests: t.Mapping[str, t.Any]) -> dict[str, int]:
    return {resource: parse_quantity(value).milli for resource, value in requests.items()}


def _readings(spec: HpaSpec, given: t.Sequence[t.Mapping[str, t.Any]], version: str) -> list[Reading]:
    if len(given) != len(spec.metrics):
        raise ValueError(f"{len(spec.metrics)} metrics have {len(given)} readings; give one for each.")
    return [_reading(metric, one, version) for metric, one in zip(spec.metrics, given, strict=True)]


def _reading(metric: Metric, given: t.Mapping[str, t.Any], version: str) -> Reading:
    if given.get("error") is not None:
        return Reading(error=str(given["error"]))
    if given.get("pods") is not None:
        return Reading(pods={name: _sample(one, one["value"]) for name, one in given["pods"].items()})
    if given.get("values") is not None:
        return Reading(values_milli=tuple(parse_quantity(one).milli for one in given["values"]))
    items = given.get("items") or ()
    if metric.kind in ("Object", "External"):
        return Reading(values_milli=tuple(parse_quantity(one["value"]).milli for one in items))
    if metric.kind == "Pods":
        return Reading(pods={one["describedObject"]["name"]: _sample(one, one["value"]) for one in items})
    pods = {}
    for one in items:
        name = one["metadata"]["name"]
        containers = one.get("containers") or []
        if metric.kind == CONTAINER_RESOURCE:
            containers = [container for container in containers if container["name"] == metric.container]
            # up to 1.32 one pod without the container fails the metric; later the pod has no metric
            if not containers and version == "1.32":
                return Reading(error=f"the metrics of pod {name} lack container {metric.container}.")
        used = [(container.get("usage") or {}).get(metric.name) for container in containers]
        if used and None not in used:
            pods[name] = Sample(sum(parse_quantity(value).milli for value in used), *_measured(one))
    return Reading(pods=pods)


def _sample(given: t.Mapping[str, t.Any], value: t.Any) -> Sample:
    return Sample(parse_quantity(value).milli, *_measured(given))


def _measured(given: t.Mapping[str, t.Any]) -> tuple[float, float]:
    windows = (given.get("windowSeconds"), given.get("window"), _DEFAULT_WINDOW_S)
    return seconds(given.get("timestamp") or 0), _duration_s(next(one for one in windows if one is not None))


def _duration_s(given: t.Any) -> float:
    if isinstance(given, (int, float)):
        return float(given)
    found = _DURATION.findall(str(given))
    if not found or "".join(number + unit for number, unit in found) != given:
        raise ValueError(f"{given!r} is not a duration such as 30s, 1m15s or 500ms.")
    return sum(float(number) * _UNITS_S[unit] for number, unit in found)
