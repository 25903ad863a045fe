# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What an autoscaler's conditions and events mean, in plain words and figures. Pure.

Events are kept by the API server for an hour unless it was told otherwise, and those with the same text are one event with a count of which
only the first and the last time are known. So what is counted here is what is known, and ``complete`` says whether it is all.
"""

from __future__ import annotations

import calendar
import itertools
import json
import re
import time
import typing as t
from dataclasses import dataclass

from .model import SOURCES, Spec, complete, describe, target_text

Object = t.Mapping[str, t.Any]
# changes of direction within the window from which on it flaps: up, down, up and down again
FLAPPING_REVERSALS = 3

_EXPLAINED = {
    "SucceededGetScale": "The target's scale could be read.",
    "ReadyForNewScale": "The last decision's stabilisation is over; the replicas may change.",
    "ScaleDownStabilized": "Fewer replicas would do, and a higher recommendation of the stabilisation window is kept to.",
    "ScaleUpStabilized": "More replicas are needed, and a lower recommendation of the stabilisation window is kept to.",
    "SucceededRescale": "The replicas were just changed.",
    "FailedGetScale": "The target's scale cannot be read: check that the target exists and has a scale subresource.",
    "FailedUpdateScale": "The target's replicas cannot be set: look at the target and at the controller's rights.",
    "ValidMetricFound": "A metric could be read and the replicas are computed from it.",
    "ScalingDisabled": "The target has 0 replicas, so it is left alone; set at least 1 to have it scaled again.",
    "FailedGetResourceMetric": "A resource metric cannot be read: check metrics-server, and that all containers have requests.",
    "FailedGetContainerResourceMetric": "A container's metric cannot be read: check metrics-server, the container's name and its requests.",
    "FailedGetPodsMetric": "A metric of pods cannot be read: check the adapter that serves custom.metrics.k8s.io, and the metric's name.",
    "FailedGetObjectMetric": "A metric of an object cannot be read: check the adapter that serves custom.metrics.k8s.io, and the object.",
    "FailedGetExternalMetric": "An external metric cannot be read: check the adapter that serves external.metrics.k8s.io.",
    "InvalidMetricSourceType": "A metric has a type that the controller does not know; it is older than the API server.",
    "InvalidSelector": "The target's scale has a selector that cannot be used; correct the target.",
    "AmbiguousSelector": "Another HPA selects the same pods; give the workloads selectors of their own.",
    "DesiredWithinRange": "The metrics ask for a number of replicas that is allowed.",
    "ScaleUpLimit": "The metrics ask for more replicas than the scale-up policies allow at a time.",
    "ScaleDownLimit": "The metrics ask for fewer replicas than the scale-down policies allow at a time.",
    "TooManyReplicas": "The metrics ask for more replicas than maxReplicas; load beyond that is not met.",
    "TooFewReplicas": "The metrics ask for fewer replicas than minReplicas.",
}
_SIZE = re.compile(r"New size: (\d+); reason: (.*)", re.DOTALL)


@dataclass(frozen=True)
class Rescale:
    """A decision that was carried out, as events tell it: a size, why, how often, and the first and last time in seconds since 1970."""

    size: int
    why: str
    count: int
    first_s: float
    last_s: float


def parse_time(text: str | None) -> float | None:
    """Return a time of the API, such as ``2026-11-21T10:00:00Z``, in seconds since 1970; parts of seconds are dropped."""
    match = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text or "")
    return float(calendar.timegm(time.strptime(match.group(), "%Y-%m-%dT%H:%M:%S"))) if match else None


def format_time(seconds: float) -> str:
    """Return seconds since 1970 as a time of the API."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def explain(condition: Object) -> str:
    """Return what a condition means, in a sentence; the server's own words for a reason that is not known here."""
    said = condition.get("message") or "The controller gives no message."
    return _EXPLAINED.get(condition.get("reason", ""), said)


def state_of(hpa: Object) -> str:
    """Return the state of an autoscaler in a word, the worst that holds.

    ``unknown`` before the controller has looked, ``failing`` when it cannot act or no metric can be read, ``disabled`` at 0 replicas,
    ``at_max`` when more than ``maxReplicas`` are asked for, ``scaling`` while the replicas are not those desired, otherwise ``stable``.
    """
    status = hpa.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    active, able = conditions.get("ScalingActive"), conditions.get("AbleToScale")
    limited = conditions.get("ScalingLimited", {})
    if active is None and able is None:
        return "unknown"
    if (active or {}).get("reason") == "ScalingDisabled":
        return "disabled"
    if any(item is not None and item["status"] != "True" for item in (active, able)):
        return "failing"
    if limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas":
        return "at_max"
    return "stable" if status.get("currentReplicas", 0) == status.get("desiredReplicas", 0) else "scaling"


def current_metrics(hpa: Object) -> list[dict[str, t.Any]]:
    """Return each metric with its target and its value now; ``None`` for one that the controller has not read."""
    spec = complete(hpa["spec"])
    current = {}
    for item in (hpa.get("status") or {}).get("currentMetrics") or []:
        # a metric that could not be read is an entry without a type
        if item.get("type") in SOURCES:
            current[_identity(item)] = item[SOURCES[item["type"]]].get("current") or {}
    metrics = []
    for metric in spec["metrics"]:
        (name, target), now = _named(spec, metric), current.get(_identity(metric))
        metrics.append({"name": name, "target": target, "current": _now_text(metric, now)})
    return sorted(metrics, key=lambda entry: entry["name"])


def _named(spec: Spec, metric: Object) -> tuple[str, str]:
    words = describe({**spec, "metrics": [metric]})
    return next((name.partition(" ")[2], text) for name, text in words.items() if name.startswith("metric "))


def _identity(item: Object) -> str:
    source = item.get(SOURCES.get(item["type"], "")) or {}
    parts = {key: source.get(key) for key in ("name", "container", "metric", "describedObject")}
    return json.dumps([item["type"], parts], sort_keys=True)


def _now_text(metric: Object, now: Object | None) -> str | None:
    if not now:
        return None
    target = metric[SOURCES[metric["type"]]]["target"]
    # in the unit of the target, beside which the controller also gives others
    for key in ("averageUtilization", "averageValue", "value"):
        if key in target and key in now:
            return target_text({key: now[key]})
    key = next((key for key in ("averageUtilization", "averageValue", "value") if key in now), None)
    return target_text({key: now[key]}) if key else None


def rescales(events: t.Iterable[Object]) -> list[Rescale]:
    """Return the decisions that events tell of, the oldest last time first."""
    found = []
    for event in events:
        match = _SIZE.search(event.get("message") or "")
        times = event_times(event)
        if event.get("reason") == "SuccessfulRescale" and match and times:
            found.append(Rescale(int(match.group(1)), match.group(2).strip(), event_count(event), *times))
    return sorted(found, key=lambda item: (item.last_s, item.first_s, item.size))


def event_count(event: Object) -> int:
    """Return how often an event happened."""
    return int(event.get("count") or (event.get("series") or {}).get("count") or 1)


def event_times(event: Object) -> tuple[float, float] | None:
    """Return the first and the last time of an event in seconds since 1970, ``None`` for one without times."""
    series = event.get("series") or {}
    made = (event.get("metadata") or {}).get("creationTimestamp")
    first = parse_time(event.get("firstTimestamp")) or parse_time(event.get("eventTime")) or parse_time(made)
    last = parse_time(event.get("lastTimestamp")) or parse_time(series.get("lastObservedTime")) or first
    return None if first is None or last is None else (min(first, last), last)


def problems(events: t.Iterable[Object]) -> list[dict[str, t.Any]]:
    """Return the warnings among events, the latest first."""
    found = [
        {
            "reason": event.get("reason"),
            "message": event.get("message"),
            "count": event_count(event),
            "last_at": event.get("lastTimestamp") or event.get("eventTime"),
        }
        for event in events
        if event.get("type") == "Warning"
    ]
    return sorted(found, key=lambda entry: (entry["last_at"] or "", entry["reason"] or ""), reverse=True)


def summarise(hpa: Object, events: t.Iterable[Object], now_s: float, window_s: float) -> dict[str, t.Any]:
    """Count the decisions of the last ``window_s`` seconds.

    :returns: ``ups``, ``downs`` and ``unclear`` (decisions whose direction is not known), ``reversals`` (changes of direction, at least),
        ``flapping``, ``at_max_s`` (seconds at ``maxReplicas``, as far as known), ``last_decision`` (or ``None``), ``complete`` (whether the
        time of each decision that is known of is known), and ``history``, one entry per decision whose time is known, the oldest first.
    """
    decided = rescales(events)
    start_s = now_s - window_s
    moments = _moments(decided)
    counts = {"up": 0, "down": 0, "unclear": 0}
    for item in decided:
        direction = _direction(item, moments)
        if item.first_s >= start_s:
            counts[direction] += item.count
        elif item.last_s >= start_s:
            # how many of those between the first and the last were within the window is not known
            counts[direction] += 1
    within = [moment for moment in moments if moment[0] >= start_s]
    turns = [direction for _at, _item, direction in within if direction != "unclear"]
    reversals = sum(one != other for one, other in itertools.pairwise(turns))
    # who comes to the same size again has turned round in between
    reversals = max([reversals, *(item.count - 1 for item in decided if item.first_s >= start_s)])
    last = decided[-1] if decided else None
    return {
        "window_s": window_s,
        "ups": counts["up"],
        "downs": counts["down"],
        "unclear": counts["unclear"],
        "reversals": reversals,
        "flapping": reversals >= FLAPPING_REVERSALS,
        "at_max_s": _at_max_s(hpa, moments, now_s, start_s),
        "last_decision": None
        if last is None
        else {
            "at": format_time(last.last_s),
            "direction": _direction(last, moments),
            "size": last.size,
            "why": last.why,
        },
        "complete": all(item.count <= 2 for item in decided if item.last_s >= start_s),
        "history": [
            {"at": format_time(at_s), "direction": direction, "size": item.size, "why": item.why}
            for at_s, item, direction in within
        ],
    }


def _moments(decided: t.Sequence[Rescale]) -> list[tuple[float, Rescale, str]]:
    """Return the decisions whose time is known, in order, each with its direction."""
    times = [(item.first_s, item) for item in decided if item.count > 1] + [(item.last_s, item) for item in decided]
    times.sort(key=lambda entry: (entry[0], entry[1].size))
    result: list[tuple[float, Rescale, str]] = []
    for at_s, item in times:
        former = result[-1][1].size if result else None
        result.append((at_s, item, _told(item.why) or _compared(former, item.size)))
    return result


def _direction(item: Rescale, moments: t.Sequence[tuple[float, Rescale, str]]) -> str:
    return next((direction for _at, other, direction in reversed(moments) if other == item), "unclear")


def _told(why: str) -> str | None:
    """Return the direction that the controller's words for a reason tell."""
    if "above target" in why or "below Spec.MinReplicas" in why:
        return "up"
    if "below target" in why or "above Spec.MaxReplicas" in why:
        return "down"
    return None


def _compared(former: int | None, size: int) -> str:
    if former is None or former == size:
        return "unclear"
    return "up" if size > former else "down"


def _at_max_s(
    hpa: Object, moments: t.Sequence[tuple[float, Rescale, str]], now_s: float, start_s: float
) -> float | None:
    """Return the seconds at ``maxReplicas`` since ``start_s``, as far as known; ``None`` when nothing is."""
    most, status = hpa["spec"]["maxReplicas"], hpa.get("status") or {}
    current = status.get("currentReplicas")
    if not moments:
        if current is None:
            return None
        if current < most:
            # where it was before is not known
            return 0.0
        since = parse_time(status.get("lastScaleTime"))
        return None if since is None else max(0.0, now_s - max(since, start_s))
    edges = [*(at_s for at_s, _item, _direction in moments[1:]), now_s]
    spent = sum(
        max(0.0, until_s - max(at_s, start_s))
        for (at_s, item, _direction), until_s in zip(moments, edges, strict=False)
        if item.size >= most
    )
    return round(spent, 3)
