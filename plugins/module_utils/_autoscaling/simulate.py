# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The closed loop: a load is divided over simulated pods, the controller sees what they use, and pods come and go. Pure.

All load is offered again whatever happened before: what pods could not serve is lost and reported, and nothing is queued. Pods are alike
and start after the same time, metrics have the same age for all of them, and both are rounded up to whole syncs. The newest pods go
first. Before the first sync the load was the first one, on pods that were ready for long.
"""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, field, replace

from .._common.errors import OptionError
from . import kernel
from .controller import DEFAULTS, reconcile, tolerances
from .model import (
    AVERAGE_VALUE,
    CONTAINER_RESOURCE,
    DISABLED,
    EXTERNAL,
    MAX,
    MIN,
    OBJECT,
    PODS,
    RESOURCE,
    UTILIZATION,
    Behavior,
    HpaSpec,
    Memory,
    Metric,
    Pod,
    Policy,
    Reading,
    Sample,
    Scale,
    Settings,
    Step,
)

MAX_PODS = 10_000
SETTLE_S = 3600
_SELECTS = {MAX: kernel.SELECT_MAX, MIN: kernel.SELECT_MIN, DISABLED: kernel.SELECT_DISABLED}


@dataclass(frozen=True)
class Resource:
    """What a pod requests of a resource, and uses of it without load and at its capacity, in thousandths."""

    request_milli: int
    idle_milli: int
    at_capacity_milli: int


@dataclass(frozen=True)
class PodModel:
    """How the pods behave.

    ``capacity`` is the load that one ready pod serves at most. ``metric_window_s`` is the time that a metric is measured over;
    ``metric_age_s`` how old it is when the controller sees it. ``factors`` turn load into metrics that are no resources, 1 by default.
    """

    capacity: float
    startup_s: float = 30.0
    metric_age_s: float = 30.0
    metric_window_s: float = 30.0
    resources: t.Mapping[str, Resource] = field(default_factory=dict)
    factors: t.Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulation:
    """All that a simulation is made of but the load.

    ``max_ratio`` is the largest load of the ready pods, as a ratio of their capacity, that keeps the objective. ``floors`` are
    ``minReplicas`` for each sync, where a schedule changes them; without any the spec's hold.
    """

    spec: HpaSpec
    pods: PodModel
    settings: Settings = DEFAULTS
    version: str = "1.33"
    sync_s: int = 15
    initial: int = 1
    max_ratio: float = 1.0
    floors: t.Sequence[int] = ()

    @property
    def startup_syncs(self) -> int:
        """Syncs until a pod is ready."""
        return math.ceil(self.pods.startup_s / self.sync_s)

    @property
    def age_syncs(self) -> int:
        """Syncs until a measurement is seen."""
        return math.ceil(self.pods.metric_age_s / self.sync_s)


@dataclass(frozen=True)
class Run:
    """What was simulated, for each sync: replicas and ready pods after it, and codes of :mod:`.kernel` for what decided.

    ``proposed`` is what the metrics asked for, where they were asked. ``totals`` are by the places of :mod:`.kernel`.
    """

    replicas: t.Sequence[int]
    ready: t.Sequence[int]
    why: t.Sequence[int]
    able: t.Sequence[int]
    limited: t.Sequence[int]
    proposed: t.Sequence[int]
    totals: t.Sequence[float]

    def reason(self, sync: int, before: int, spec: HpaSpec) -> str:
        """Return why the replicas changed in a sync, in the words of :attr:`.model.Step.reason`.

        It is empty when the metrics asked for as many as there were, and an earlier recommendation for more.
        """
        why = self.why[sync]
        if why == kernel.WHY_ABOVE_MAX:
            return "replicas above maxReplicas"
        if why == kernel.WHY_BELOW_MIN:
            return "replicas below minReplicas"
        if self.proposed[sync] > before:
            return f"{spec.metrics[why].text} above target"
        return "all metrics below target" if self.proposed[sync] < before else ""


def check(simulation: Simulation) -> None:
    """Make sure that the pods have all that the spec's metrics are about.

    :raises OptionError: naming what is missing, or too large.
    """
    spec = simulation.spec
    if spec.max_replicas > MAX_PODS:
        raise OptionError(
            "spec.maxReplicas", spec.max_replicas, f"a simulation has at most {MAX_PODS} pods; give less."
        )
    if simulation.settings.initial_readiness_delay_s < 1:
        delay_s = simulation.settings.initial_readiness_delay_s
        raise OptionError(
            "controller.initial_readiness_delay_s", delay_s, "give at least 1; pods that never were ready do not count."
        )
    for metric in spec.metrics:
        if metric.kind in (RESOURCE, CONTAINER_RESOURCE):
            resource = simulation.pods.resources.get(metric.name)
            if resource is None:
                remedy = f"the spec scales on {metric.name}; say what a pod requests and uses of it."
                raise OptionError("pods.resources", sorted(simulation.pods.resources), remedy)
            if metric.target_type == UTILIZATION and resource.request_milli < 1:
                remedy = f"the spec scales on the utilization of {metric.name}; give its request."
                raise OptionError("pods.resources[].request", 0, remedy)
    containers = sorted({metric.container for metric in spec.metrics if metric.container})
    if len(containers) > 1:
        remedy = "the simulated pods have one container; use one name."
        raise OptionError("spec.metrics[].containerResource.container", containers, remedy)


def rows(simulation: Simulation) -> dict[str, t.Any]:
    """Return a simulation as the rows that the kernel reads."""
    spec, pods, sync_s = simulation.spec, simulation.pods, simulation.sync_s
    behavior = spec.behavior or Behavior()
    tolerated = tolerances(spec, simulation.settings, simulation.version)
    whole = [0] * kernel.WHOLE
    whole[kernel.MIN_REPLICAS] = spec.min_replicas
    whole[kernel.MAX_REPLICAS] = spec.max_replicas
    whole[kernel.INITIAL] = simulation.initial
    whole[kernel.SYNC_S] = sync_s
    whole[kernel.STARTUP_SYNCS] = simulation.startup_syncs
    whole[kernel.AGE_SYNCS] = simulation.age_syncs
    whole[kernel.SETTLED_SYNCS] = simulation.startup_syncs + math.ceil(pods.metric_window_s / sync_s)
    whole[kernel.INIT_SYNCS] = math.ceil(simulation.settings.cpu_initialization_period_s / sync_s)
    whole[kernel.HAS_BEHAVIOR] = int(spec.behavior is not None)
    whole[kernel.BY_DISTANCE] = int(tolerated.by_distance)
    window_s = behavior.down.window_s
    whole[kernel.UP_WINDOW_S] = behavior.up.window_s or 0
    whole[kernel.DOWN_WINDOW_S] = simulation.settings.downscale_stabilization_s if window_s is None else window_s
    whole[kernel.UP_SELECT] = _SELECTS[behavior.up.select]
    whole[kernel.DOWN_SELECT] = _SELECTS[behavior.down.select]
    whole[kernel.UP_LONGEST_S] = max(policy.period_s for policy in behavior.up.policies)
    whole[kernel.DOWN_LONGEST_S] = max(policy.period_s for policy in behavior.down.policies)
    real = [0.0] * kernel.REAL
    real[kernel.CAPACITY] = float(pods.capacity)
    real[kernel.TOLERANCE_DOWN] = float(tolerated.down)
    real[kernel.TOLERANCE_UP] = float(tolerated.up)
    real[kernel.MAX_RATIO] = float(simulation.max_ratio)
    return {
        "floors": simulation.floors,
        "whole": whole,
        "real": real,
        "metrics": [_metric_row(metric, pods) for metric in spec.metrics],
        "factors": [float(pods.factors.get(metric.name, 1.0)) for metric in spec.metrics],
        "up_policies": [_policy_row(policy) for policy in behavior.up.policies],
        "down_policies": [_policy_row(policy) for policy in behavior.down.policies],
    }


def _metric_row(metric: Metric, pods: PodModel) -> list[int]:
    if metric.kind in (OBJECT, EXTERNAL):
        source = kernel.AVERAGE_OF_LOAD if metric.target_type == AVERAGE_VALUE else kernel.VALUE_OF_LOAD
        return [source, 0, 0, metric.target, 0, 0, 0]
    if metric.kind == PODS:
        return [kernel.FROM_SHARE, 0, 0, metric.target, 0, 0, 0]
    one = pods.resources[metric.name]
    utilized = int(metric.target_type == UTILIZATION)
    is_cpu = int(metric.name == "cpu")
    return [
        kernel.FROM_USAGE,
        is_cpu,
        utilized,
        metric.target,
        one.request_milli,
        one.idle_milli,
        one.at_capacity_milli,
    ]


def _policy_row(policy: Policy) -> list[int]:
    return [int(policy.type == "Percent"), policy.value, policy.period_s]


def run(load: t.Sequence[float], simulation: Simulation) -> Run:
    """Simulate a load, with one value for each sync."""
    size = max(len(load) + 2, simulation.initial, simulation.spec.max_replicas)
    out = [[0] * len(load) for _row in range(kernel.OUT_ROWS)]
    totals = [0.0] * kernel.TOTALS
    scratch = [[0] * size for _row in range(kernel.SCRATCH_ROWS)]
    kernel.loop(load, **rows(simulation), shares=[0.0] * len(load), scratch=scratch, out=out, totals=totals)
    return Run(*out, totals)


def settle(load: float, simulation: Simulation) -> int:
    """Return the replicas that an hour of a steady load leads to from the least, by the spec of a simulation."""
    least = simulation.spec.min_replicas
    steady = [load] * math.ceil(SETTLE_S / simulation.sync_s)
    return run(steady, replace(simulation, initial=least, floors=())).replicas[-1]


# ---- the same, pod by pod


@dataclass(frozen=True)
class _Made:
    """A pod and the sync that it was made in."""

    pod: Pod
    sync: int


def run_exactly(load: t.Sequence[float], simulation: Simulation) -> tuple[list[Step], list[int]]:
    """Simulate a load by a step of the controller for each sync, over pods that are looked at one by one.

    It is what :func:`run` is compared with, and some hundred times slower.

    :returns: the steps, and the ready pods after each.
    """
    sync_s, startup, age = simulation.sync_s, simulation.startup_syncs, simulation.age_syncs
    capacity = simulation.pods.capacity
    requests = {name: one.request_milli for name, one in simulation.pods.resources.items()}
    container = next((metric.container for metric in simulation.spec.metrics if metric.container), "app")
    pods: list[_Made] = []
    memory = Memory()
    steps: list[Step] = []
    ready_counts: list[int] = []
    shares: list[float] = []

    def make(number: int, sync: int) -> _Made:
        start_s = float(sync * sync_s)
        ready_s = start_s + startup * sync_s
        name = f"pod-{sync}-{number}"
        return _Made(Pod(name, "Running", False, ready_s, start_s, False, {container: requests}), sync)

    def seen(made: _Made, sync: int) -> Pod:
        # the condition of a pod that was never ready dates from its start
        ready = made.sync + startup <= sync
        since_s = made.pod.ready_since_s if ready else made.pod.start_s
        return Pod(made.pod.name, "Running", ready, since_s or 0.0, made.pod.start_s, False, made.pod.requests_milli)

    pods = [make(number, kernel.LONG_AGO) for number in range(simulation.initial)]
    first_share = min(load[0] / len(pods), capacity) if pods else 0.0
    for sync in range(len(load)):
        interval = sync - age - 1
        share = shares[interval] if interval >= 0 else first_share
        readings = [
            _measure(metric, simulation, pods, interval, share, load[max(interval, 0)])
            for metric in simulation.spec.metrics
        ]
        spec = simulation.spec
        if len(simulation.floors):
            spec = replace(spec, min_replicas=simulation.floors[sync])
        step = reconcile(
            spec,
            Scale(len(pods), len(pods)),
            [seen(made, sync) for made in pods],
            readings,
            now_s=float(sync * sync_s),
            memory=memory,
            settings=simulation.settings,
            version=simulation.version,
        )
        memory = step.memory
        steps.append(step)
        pods = pods[: step.replicas] + [make(number, sync) for number in range(step.replicas - len(pods))]
        ready = sum(made.sync + startup <= sync for made in pods)
        ready_counts.append(ready)
        shares.append(min(load[sync], ready * capacity) / ready if ready else 0.0)
    return steps, ready_counts


def _measure(
    metric: Metric, simulation: Simulation, pods: t.Sequence[_Made], interval: int, share: float, load: float
) -> Reading:
    """Return what the metrics API says of an interval, of the pods that were there then and still are."""
    factor = simulation.pods.factors.get(metric.name, 1.0)
    if metric.kind in (OBJECT, EXTERNAL):
        return Reading(values_milli=(kernel.amount(load * factor),))
    if metric.kind == PODS:
        idle, busy = 0, kernel.amount(share * factor)
    else:
        one = simulation.pods.resources[metric.name]
        idle = one.idle_milli
        busy = kernel.usage(idle, one.at_capacity_milli, share, simulation.pods.capacity)
    at_s = float((interval + 1) * simulation.sync_s)
    found = {}
    for made in pods:
        if made.sync <= interval:
            was_ready = made.sync + simulation.startup_syncs <= interval
            found[made.pod.name] = Sample(busy if was_ready else idle, at_s, simulation.pods.metric_window_s)
    return Reading(pods=found)
