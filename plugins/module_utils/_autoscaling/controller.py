# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One step of the HPA controller, as upstream takes it. Pure.

Written from the behaviour of ``pkg/controller/podautoscaler`` of Kubernetes 1.28 to 1.35, and of its main branch of August 2026. What
differs between releases is chosen by ``version``; the names of conditions and reasons are the API's, their messages are not.
"""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, replace

from .model import (
    AVERAGE_VALUE,
    CONTAINER_RESOURCE,
    DISABLED,
    KINDS,
    MAX_INT32,
    MAX_INT64,
    MIN,
    PODS,
    RESOURCE,
    UTILIZATION,
    Condition,
    HpaSpec,
    Memory,
    Metric,
    Pod,
    Policy,
    Reading,
    Recommendation,
    Rules,
    Sample,
    Scale,
    ScaleEvent,
    Settings,
    Step,
)
from .quantity import format_milli
from .spec import parse_spec

SCALE_UP_FACTOR = 2.0
SCALE_UP_LEAST = 4

UNSEEN = Memory()
DEFAULTS = Settings()

ABLE, ACTIVE, LIMITED = "AbleToScale", "ScalingActive", "ScalingLimited"
_FAILED = {kind: f"FailedGet{kind}Metric" for kind in KINDS}


def reconcile(
    spec: HpaSpec | t.Mapping[str, t.Any],
    scale: Scale,
    pods: t.Sequence[Pod],
    readings: t.Sequence[Reading],
    *,
    now_s: float,
    memory: Memory = UNSEEN,
    settings: Settings = DEFAULTS,
    version: str = "1.33",
    conditions: t.Sequence[Condition] = (),
    status_desired: int = 0,
) -> Step:
    """Take one step of the controller: decide how many replicas the target is to have.

    It is given all that the controller reads and remembers, and returns all that it writes and remembers, so that a recorded step can be
    taken again and a sequence is ``memory=step.memory`` from call to call. :func:`.recorded.arguments` makes the arguments from objects
    of the API.

    What ends a sync of the controller before such a step has no place here, and its reasons are never said: ``FailedGetScale``,
    ``InvalidSelector`` and ``AmbiguousSelector`` (scale or pods cannot be read). ``FailedUpdateScale`` follows a step, when what it
    decided cannot be written. ``ScaledToZero`` belongs to a feature that is off unless it was switched on, and is not modelled.

    :param spec: the HPA's spec, parsed or as a dict of the API (autoscaling/v2); without metrics it means cpu at 80 %.
    :param scale: replicas of the target, wanted and present.
    :param pods: all pods that the target's selector matches, in any state.
    :param readings: what the metrics API answered, one for each metric of the spec, in its order.
    :param now_s: the time of the step; all times are seconds on the same clock.
    :param memory: recommendations and scale events so far; ``UNSEEN`` when the HPA is seen for the first time.
    :param settings: the flags of the controller.
    :param version: ``1.32`` for releases up to it, ``1.33`` for it and later ones, ``1.38`` for those that ignore completed pods too.
    :param conditions: those of the status so far; what the step does not judge stays.
    :param status_desired: ``desiredReplicas`` of the status so far, which stays when no count can be computed.
    :raises OptionError: when the spec is a dict that the API would refuse.
    :raises ValueError: when there is not one reading for each metric.
    """
    if not isinstance(spec, HpaSpec):
        spec = parse_spec(spec)
    if len(readings) != len(spec.metrics):
        raise ValueError(f"{len(spec.metrics)} metrics have {len(readings)} readings; give one for each.")
    current = scale.spec_replicas
    said = _Conditions(conditions, now_s)
    said.set(ABLE, True, "SucceededGetScale", "The scale of the target could be read.")
    if memory.recommendations is None:
        memory = replace(memory, recommendations=(Recommendation(current, now_s),))
    found = _Found()
    reason = ""
    if current == 0 and spec.min_replicas != 0:
        said.set(ACTIVE, False, "ScalingDisabled", "The target has been scaled to zero, which disables its scaling.")
        desired = 0
    elif current > spec.max_replicas:
        desired, reason = spec.max_replicas, "replicas above maxReplicas"
    elif current < spec.min_replicas:
        desired, reason = spec.min_replicas, "replicas below minReplicas"
    else:
        calculator = _Calculator(pods, scale, now_s, settings, version, tolerances(spec, settings, version))
        found = _propose(spec, readings, calculator, current, said)
        if found.proposal is None:
            return Step(current, False, "", None, None, said.all(), status_desired, found.statuses, memory, found.error)
        if found.proposal > current:
            reason = f"{spec.metrics[t.cast(int, found.winner)].text} above target"
        elif found.proposal < current:
            reason = "all metrics below target"
        normalize = _normalize_legacy if spec.behavior is None else _normalize
        desired, memory = normalize(spec, settings, current, found.proposal, memory, now_s, said)
    rescaled = desired != current
    if rescaled:
        said.set(ABLE, True, "SucceededRescale", f"The target was scaled to {desired}.")
        memory = _remember_event(spec, memory, desired - current, now_s)
    else:
        reason = ""
    return Step(
        desired,
        rescaled,
        reason,
        found.proposal,
        found.winner,
        said.all(),
        desired,
        found.statuses,
        memory,
        found.error,
    )


class _Conditions:
    """The conditions of a status; the time of one changes with its status only."""

    def __init__(self, before: t.Sequence[Condition], now_s: float) -> None:
        self._by_type = {one.type: one for one in before}
        self._now_s = now_s

    def set(self, kind: str, status: bool, reason: str, message: str) -> None:
        old = self._by_type.get(kind)
        since_s = old.since_s if old is not None and old.status == status else self._now_s
        self._by_type[kind] = Condition(kind, status, reason, message, since_s)

    def all(self) -> tuple[Condition, ...]:
        return tuple(self._by_type.values())


# ---- what the metrics ask for


@dataclass(frozen=True)
class _Found:
    """What the metrics came to: the proposal, the index of its metric, the statuses, and the first error."""

    proposal: int | None = None
    winner: int | None = None
    statuses: tuple[t.Mapping[str, t.Any] | None, ...] = ()
    error: str | None = None


class _MetricError(Exception):
    """A metric cannot be judged."""


def _propose(
    spec: HpaSpec, readings: t.Sequence[Reading], calculator: _Calculator, current: int, said: _Conditions
) -> _Found:
    """Return the largest of the counts that the metrics ask for; none may fail when that would scale down."""
    proposal, winner, failed, first = 0, None, 0, ("", "")
    statuses: list[t.Mapping[str, t.Any] | None] = []
    for index, (metric, reading) in enumerate(zip(spec.metrics, readings, strict=True)):
        try:
            wanted, status = calculator.propose(metric, reading)
        except _MetricError as error:
            first = first if failed else (_FAILED.get(metric.kind, "InvalidMetricSourceType"), str(error))
            failed += 1
            statuses.append(None)
            continue
        statuses.append(status)
        if proposal == 0 or wanted > proposal:
            proposal, winner = wanted, index
    error = f"{failed} of {len(spec.metrics)} metrics failed, the first with: {first[1]}" if failed else None
    if failed and (failed == len(spec.metrics) or proposal < current):
        said.set(ACTIVE, False, first[0], f"The number of replicas cannot be computed: {first[1]}")
        return _Found(statuses=tuple(statuses), error=error)
    name = spec.metrics[t.cast(int, winner)].text
    said.set(ACTIVE, True, "ValidMetricFound", f"The number of replicas was computed from {name}.")
    return _Found(max(proposal, 0), winner, tuple(statuses), error)


@dataclass(frozen=True)
class Tolerances:
    """How far the ratio of a usage to its target may be below and above 1 without a change."""

    down: float
    up: float
    # up to 1.32 the distance from 1 was compared, which differs at a ratio of exactly 1.1 in binary fractions
    by_distance: bool

    def holds(self, ratio: float) -> bool:
        """Return whether the ratio is close enough to 1."""
        if self.by_distance:
            return abs(1.0 - ratio) <= self.up
        return 1.0 - self.down <= ratio <= 1.0 + self.up


def tolerances(spec: HpaSpec, settings: Settings, version: str) -> Tolerances:
    """Return the tolerances of an HPA: its own from 1.33 on, else the controller's."""
    down = up = settings.tolerance
    by_distance = version == "1.32"
    if spec.behavior is not None and not by_distance:
        down = down if spec.behavior.down.tolerance is None else spec.behavior.down.tolerance
        up = up if spec.behavior.up.tolerance is None else spec.behavior.up.tolerance
    return Tolerances(down, up, by_distance)


class _Calculator:
    """Turns the reading of a metric into a count."""

    def __init__(
        self,
        pods: t.Sequence[Pod],
        scale: Scale,
        now_s: float,
        settings: Settings,
        version: str,
        tolerated: Tolerances,
    ) -> None:
        self._pods = pods
        self._scale = scale
        self._now_s = now_s
        self._settings = settings
        self._version = version
        self._tolerated = tolerated

    def propose(self, metric: Metric, reading: Reading) -> tuple[int, t.Mapping[str, t.Any]]:
        """Return the count that a metric asks for, and its status in the form of the API.

        :raises _MetricError: when it cannot be judged.
        """
        if metric.kind not in KINDS:
            raise _MetricError(f"there is no kind of metric {metric.kind}.")
        if reading.error is not None:
            raise _MetricError(reading.error)
        if metric.kind in (RESOURCE, CONTAINER_RESOURCE, PODS):
            wanted, current = self._per_pod(metric, reading)
        elif not reading.values_milli:
            raise _MetricError("the metrics API returned no value.")
        elif metric.target_type == AVERAGE_VALUE:
            wanted, current = self._average(metric, reading)
        else:
            wanted, current = self._value(metric, reading)
        key = metric.kind[0].lower() + metric.kind[1:]
        return wanted, {"type": metric.kind, key: {**metric.source, "current": current}}

    def _per_pod(self, metric: Metric, reading: Reading) -> tuple[int, dict[str, t.Any]]:
        """Judge a metric with a value for each pod: utilization of requests, or a plain average."""
        if not reading.pods:
            raise _MetricError("the metrics API returned no metrics.")
        if not self._pods:
            raise _MetricError("no pods match the selector.")
        resource = "" if metric.kind == PODS else metric.name
        ready, unready, missing, ignored = self.group(reading.pods, resource)
        used = {
            name: sample.value_milli
            for name, sample in reading.pods.items()
            if name not in unready and name not in ignored
        }
        if not used:
            raise _MetricError("there are no metrics of pods that count; they may not be ready.")
        if metric.target_type == UTILIZATION:
            requests = self.requests(resource, metric.container)
            ratio, percent, mean = _utilization(used, requests, metric.target)
            current = {"averageUtilization": percent, "averageValue": format_milli(mean)}
            fill = {name: requests[name] * max(100, metric.target) // 100 for name in missing}
        else:
            requests = {}
            ratio, mean = _mean(used, metric.target)
            current = {"averageValue": format_milli(mean)}
            fill = dict.fromkeys(missing, metric.target)
        count = self._scale.spec_replicas
        up_with_unready = bool(unready) and ratio > 1.0
        if not missing and not up_with_unready:
            return (count if self._tolerated.holds(ratio) else _ceil(ratio * ready)), current
        # pods without metrics hold back the change: they use all on the way down, and nothing on the way up
        if ratio < 1.0:
            used.update(fill)
        elif ratio > 1.0:
            used.update(dict.fromkeys(missing, 0))
        if up_with_unready:
            used.update(dict.fromkeys(unready, 0))
        utilized = metric.target_type == UTILIZATION
        filled = _utilization(used, requests, metric.target)[0] if utilized else _mean(used, metric.target)[0]
        if self._tolerated.holds(filled) or (ratio < 1.0 < filled) or (filled < 1.0 < ratio):
            return count, current
        wanted = _ceil(filled * len(used))
        if (filled < 1.0 and wanted > count) or (filled > 1.0 and wanted < count):
            return count, current
        return wanted, current

    def _value(self, metric: Metric, reading: Reading) -> tuple[int, dict[str, t.Any]]:
        """Judge a metric of the whole, whose target is for the whole, by the pods that are ready."""
        usage = _total(reading.values_milli)
        ratio = usage / metric.target
        count = self._scale.spec_replicas
        current = {"value": format_milli(usage)}
        if count == 0:
            return _ceil(ratio), current
        if self._tolerated.holds(ratio):
            return count, current
        if not self._pods:
            raise _MetricError("no pods match the selector.")
        ready = sum(pod.phase == "Running" and pod.ready is True for pod in self._pods)
        return _ceil(ratio * ready), current

    def _average(self, metric: Metric, reading: Reading) -> tuple[int, dict[str, t.Any]]:
        """Judge a metric of the whole, whose target is for each pod. Within the tolerance it is the pods that there are, as upstream."""
        usage = _total(reading.values_milli)
        count = self._scale.status_replicas
        if count == 0:
            # a ratio to no pods is never within the tolerance, and there is no average
            return _ceil(usage / metric.target), {}
        current = {"averageValue": format_milli(MAX_INT64 if usage == MAX_INT64 else math.ceil(usage / count))}
        if self._tolerated.holds(usage / (float(metric.target) * count)):
            return count, current
        return _ceil(usage / metric.target), current

    def group(self, samples: t.Mapping[str, Sample], resource: str) -> tuple[int, set[str], set[str], set[str]]:
        """Return the number of ready pods, and the names of unready, missing and ignored ones.

        Readiness is judged for cpu alone: a pod that starts uses cpu that says nothing about its load.
        """
        ready, unready, missing, ignored = 0, set(), set(), set()
        ended = ("Failed", "Succeeded") if self._version == "1.38" else ("Failed",)
        for pod in self._pods:
            if pod.deleted or pod.phase in ended:
                ignored.add(pod.name)
            elif pod.phase == "Pending":
                unready.add(pod.name)
            elif pod.name not in samples:
                missing.add(pod.name)
            elif resource == "cpu" and self._unready(pod, samples[pod.name]):
                unready.add(pod.name)
            else:
                ready += 1
        return ready, unready, missing, ignored

    def _unready(self, pod: Pod, sample: Sample) -> bool:
        if pod.ready is None or pod.start_s is None:
            return True
        if pod.start_s + self._settings.cpu_initialization_period_s > self._now_s:
            return pod.ready is False or sample.at_s < pod.ready_since_s + sample.window_s
        return pod.ready is False and pod.start_s + self._settings.initial_readiness_delay_s > pod.ready_since_s

    def requests(self, resource: str, container: str) -> dict[str, int]:
        """Return what each pod requests, in thousandths; of one container if it is named.

        :raises _MetricError: when a request is missing.
        """
        found = {}
        for pod in self._pods:
            if pod.pod_requests_milli and not container and self._version != "1.32":
                found[pod.name] = _whole_request(pod, resource)
                continue
            if container and container not in pod.requests_milli:
                raise _MetricError(f"pod {pod.name} has no container {container}.")
            found[pod.name] = 0
            for name, requests in pod.requests_milli.items():
                if container in ("", name):
                    if resource not in requests:
                        raise _MetricError(f"container {name} of pod {pod.name} has no request for {resource}.")
                    found[pod.name] += requests[resource]
        return found


def _whole_request(pod: Pod, resource: str) -> int:
    """Return what a pod with requests of its own requests: those, else its containers' as far as there are any; and its overhead.

    :raises _MetricError: when there is no request at all.
    """
    own = pod.pod_requests_milli or {}
    parts = [own] if resource in own else list(pod.requests_milli.values())
    parts = [part for part in (*parts, pod.overhead_milli) if resource in part]
    if not parts:
        raise _MetricError(f"pod {pod.name} has no request for {resource}.")
    return sum(part[resource] for part in parts)


def _utilization(used: t.Mapping[str, int], requests: t.Mapping[str, int], target: int) -> tuple[float, int, int]:
    """Return the ratio to the target, the utilization in whole percent, and the mean usage, of pods with both figures."""
    known = [name for name in used if name in requests]
    usage = sum(used[name] for name in known)
    requested = sum(requests[name] for name in known)
    if requested == 0:
        raise _MetricError("no metrics belong to pods with requests.")
    percent = usage * 100 // requested
    return percent / target, percent, usage // len(known)


def _mean(used: t.Mapping[str, int], target: int) -> tuple[float, int]:
    """Return the ratio to the target and the mean usage, of all that has metrics."""
    mean = sum(used.values()) // len(used)
    return mean / target, mean


def _total(values: t.Iterable[int]) -> int:
    return min(sum(values), MAX_INT64)


def _ceil(value: float) -> int:
    return MAX_INT32 if value > MAX_INT32 else math.ceil(value)


# ---- windows, rates and bounds


def _normalize_legacy(
    spec: HpaSpec,
    settings: Settings,
    current: int,
    proposal: int,
    memory: Memory,
    now_s: float,
    said: _Conditions,
) -> tuple[int, Memory]:
    """Bound a proposal where the spec has no behavior: the controller's window for scaling down, at most double on the way up."""
    stabilized, stale = proposal, None
    recommendations = list(memory.recommendations or ())
    cutoff_s = now_s - settings.downscale_stabilization_s
    for index, one in enumerate(recommendations):
        if one.at_s < cutoff_s:
            stale = index
        else:
            stabilized = max(stabilized, one.replicas)
    _keep(recommendations, stale, Recommendation(proposal, now_s))
    _say_stabilized(said, stabilized != proposal, "ScaleDownStabilized")
    most, reason = spec.max_replicas, "TooManyReplicas"
    limit = max(int(SCALE_UP_FACTOR * current), SCALE_UP_LEAST)
    if most > limit:
        most, reason = limit, "ScaleUpLimit"
    desired = stabilized
    if stabilized < spec.min_replicas:
        desired, reason = spec.min_replicas, "TooFewReplicas"
    elif stabilized > most:
        desired = most
    else:
        reason = "DesiredWithinRange"
    _say_limited(said, desired != stabilized, reason)
    return desired, replace(memory, recommendations=tuple(recommendations))


def _normalize(
    spec: HpaSpec,
    settings: Settings,
    current: int,
    proposal: int,
    memory: Memory,
    now_s: float,
    said: _Conditions,
) -> tuple[int, Memory]:
    """Bound a proposal by the spec's behavior: first the windows of both directions, then the rates of the one it goes."""
    behavior = t.cast(t.Any, spec.behavior)
    stabilized, memory = _stabilize(behavior.up, behavior.down, settings, current, proposal, memory, now_s)
    direction = "ScaleUpStabilized" if proposal >= current else "ScaleDownStabilized"
    _say_stabilized(said, stabilized != proposal, direction)
    desired, reason = stabilized, "DesiredWithinRange"
    if stabilized > current:
        limit = max(current, _limit(behavior.up, current, memory, now_s, up=True))
        most, why = (limit, "ScaleUpLimit") if spec.max_replicas > limit else (spec.max_replicas, "TooManyReplicas")
        if stabilized > most:
            desired, reason = most, why
    elif stabilized < current:
        limit = min(current, _limit(behavior.down, current, memory, now_s, up=False))
        least, why = (limit, "ScaleDownLimit") if spec.min_replicas < limit else (spec.min_replicas, "TooFewReplicas")
        if stabilized < least:
            desired, reason = least, why
    _say_limited(said, desired != stabilized, reason)
    return desired, memory


def _stabilize(
    up: Rules, down: Rules, settings: Settings, current: int, proposal: int, memory: Memory, now_s: float
) -> tuple[int, Memory]:
    """Return the count closest to the current one that is between the least of the up window and the most of the down window."""
    down_s = settings.downscale_stabilization_s if down.window_s is None else down.window_s
    up_s = t.cast(int, up.window_s)
    least = most = proposal
    stale = None
    recommendations = list(memory.recommendations or ())
    for index, one in enumerate(recommendations):
        if one.at_s > now_s - up_s:
            least = min(least, one.replicas)
        if one.at_s > now_s - down_s:
            most = max(most, one.replicas)
        if one.at_s < now_s - up_s and one.at_s < now_s - down_s:
            stale = index
    _keep(recommendations, stale, Recommendation(proposal, now_s))
    # the order matters when the windows differ: the way down has the last word
    stabilized = min(max(current, least), most)
    return stabilized, replace(memory, recommendations=tuple(recommendations))


def _limit(rules: Rules, current: int, memory: Memory, now_s: float, *, up: bool) -> int:
    """Return how far one direction may go now, counted from the replicas at the start of each policy's period."""
    if rules.select == DISABLED:
        return current
    limits = []
    for policy in rules.policies:
        start = current - _changed(memory.ups, policy, now_s) + _changed(memory.downs, policy, now_s)
        limits.append(_policy_limit(policy, start, up))
    # the largest change is the highest count on the way up and the lowest on the way down
    return min(limits) if (rules.select == MIN) == up else max(limits)


def _policy_limit(policy: Policy, start: int, up: bool) -> int:
    if policy.type == "Pods":
        return start + policy.value if up else start - policy.value
    if up:
        # rounded up, else one pod would never become two
        return math.ceil(start * (1 + policy.value / 100))
    return int(start * (1 - policy.value / 100))


def _changed(events: t.Iterable[ScaleEvent], policy: Policy, now_s: float) -> int:
    return sum(event.change for event in events if event.at_s > now_s - policy.period_s)


def _remember_event(spec: HpaSpec, memory: Memory, change: int, now_s: float) -> Memory:
    """Return the memory with a scale event, which takes the place of the last one that no policy of its direction counts."""
    if spec.behavior is None:
        return memory
    name, rules = ("ups", spec.behavior.up) if change > 0 else ("downs", spec.behavior.down)
    longest_s = max((policy.period_s for policy in rules.policies), default=0)
    events: list[ScaleEvent] = []
    stale = None
    for index, event in enumerate(getattr(memory, name)):
        outdated = event.outdated or event.at_s < now_s - longest_s
        events.append(replace(event, outdated=outdated))
        stale = index if outdated else stale
    _keep(events, stale, ScaleEvent(abs(change), now_s))
    return replace(memory, **{name: tuple(events)})


def _keep(entries: list[t.Any], stale: int | None, entry: t.Any) -> None:
    """Put an entry into a list, in the place of a stale one if there is one."""
    if stale is None:
        entries.append(entry)
    else:
        entries[stale] = entry


def _say_stabilized(said: _Conditions, stabilized: bool, reason: str) -> None:
    if stabilized:
        extreme = "lowest" if reason == "ScaleUpStabilized" else "highest"
        said.set(ABLE, True, reason, f"The {extreme} recommendation of the stabilization window is applied.")
    else:
        said.set(ABLE, True, "ReadyForNewScale", "The recommendation is applied as it is.")


_LIMITS = {
    "DesiredWithinRange": "The desired number of replicas is within the bounds.",
    "ScaleUpLimit": "The desired number of replicas grows faster than it may.",
    "ScaleDownLimit": "The desired number of replicas shrinks faster than it may.",
    "TooManyReplicas": "The desired number of replicas is above maxReplicas.",
    "TooFewReplicas": "The desired number of replicas is below minReplicas.",
}


def _say_limited(said: _Conditions, limited: bool, reason: str) -> None:
    said.set(LIMITED, limited, reason, _LIMITS[reason])
