# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What the HPA controller works on: plain values, with units in their names; nothing here does I/O.

Times are seconds on one clock, whichever it is. Amounts of metrics and requests are whole thousandths (``_milli``), as the controller
counts them.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

RESOURCE = "Resource"
CONTAINER_RESOURCE = "ContainerResource"
PODS = "Pods"
OBJECT = "Object"
EXTERNAL = "External"
KINDS = (RESOURCE, CONTAINER_RESOURCE, PODS, OBJECT, EXTERNAL)
"""The kinds of metrics of autoscaling/v2."""

UTILIZATION = "Utilization"
AVERAGE_VALUE = "AverageValue"
VALUE = "Value"

MAX = "Max"
MIN = "Min"
DISABLED = "Disabled"
SELECTS = (MAX, MIN, DISABLED)

UNKNOWN: t.Final = "Unknown"
"""The status of a condition that is neither true nor false: the node of a pod does not answer."""

VERSIONS = ("1.32", "1.33", "1.38")
"""Semantics of the controller: 1.32 stands for all releases up to it, 1.33 for it and later ones, 1.38 for those that ignore completed
pods.

Upstream ignores pods of phase Succeeded since August 2026, after 1.37 was frozen; up to then they are pods without metrics.
"""

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Policy:
    """At most ``value`` pods, or percent of the pods, may come or go in ``period_s``."""

    type: str
    value: int
    period_s: int


@dataclass(frozen=True)
class Rules:
    """How fast one direction scales. Without ``window_s`` the controller's own downscale window holds.

    ``tolerance`` is ``None`` where the controller's holds.
    """

    window_s: int | None
    policies: tuple[Policy, ...]
    select: str = MAX
    tolerance: float | None = None


UP_DEFAULT = Rules(0, (Policy("Pods", 4, 15), Policy("Percent", 100, 15)))
DOWN_DEFAULT = Rules(None, (Policy("Percent", 100, 15),))
"""What the API server fills in for a direction that ``behavior`` does not name."""


@dataclass(frozen=True)
class Behavior:
    """``behavior`` of a spec, with what the API server fills in."""

    up: Rules = UP_DEFAULT
    down: Rules = DOWN_DEFAULT


@dataclass(frozen=True)
class Metric:
    """One metric of a spec. ``target`` is percent of the request for Utilization, else in thousandths.

    ``name`` is that of the resource or the metric, ``container`` that of ContainerResource. ``source`` is what identifies the
    metric in the API, to be repeated in the status.
    """

    kind: str
    name: str
    target_type: str
    target: int
    container: str = ""
    source: t.Mapping[str, t.Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The metric in words."""
        words = {
            RESOURCE: f"{self.name} resource",
            CONTAINER_RESOURCE: f"{self.name} resource of container {self.container}",
            PODS: f"pods metric {self.name}",
            OBJECT: f"object metric {self.name}",
            EXTERNAL: f"external metric {self.name}",
        }.get(self.kind, f"metric {self.name}")
        return f"{words} utilization" if self.target_type == UTILIZATION else words


CPU_DEFAULT = Metric(RESOURCE, "cpu", UTILIZATION, 80, source={"name": "cpu"})
"""What the API server fills in for a spec without metrics."""


@dataclass(frozen=True)
class HpaSpec:
    """The parts of an autoscaling/v2 spec that the controller decides by. ``behavior`` is ``None`` when the spec has none."""

    max_replicas: int
    min_replicas: int = 1
    metrics: tuple[Metric, ...] = (CPU_DEFAULT,)
    behavior: Behavior | None = None


@dataclass(frozen=True)
class Settings:
    """The flags of the controller, with their defaults."""

    tolerance: float = 0.1
    downscale_stabilization_s: int = 300
    cpu_initialization_period_s: int = 300
    initial_readiness_delay_s: int = 30


@dataclass(frozen=True)
class Scale:
    """The scale subresource of the target: replicas wanted (spec), and those that there are (status)."""

    spec_replicas: int
    status_replicas: int


@dataclass(frozen=True)
class Pod:
    """One pod of the target.

    ``ready`` is the status of its condition Ready, ``UNKNOWN`` as it may be, and ``ready_since_s`` when that last changed; ``None``
    without the condition.
    ``requests_milli`` is by container and resource, restartable init containers with them; ``pod_requests_milli`` are requests on the
    level of the pod, ``None`` without, and ``overhead_milli`` what is added to those.
    """

    name: str
    phase: str = "Running"
    ready: bool | t.Literal["Unknown"] | None = True
    ready_since_s: float = 0.0
    start_s: float | None = 0.0
    deleted: bool = False
    requests_milli: t.Mapping[str, t.Mapping[str, int]] = field(default_factory=dict)
    pod_requests_milli: t.Mapping[str, int] | None = None
    overhead_milli: t.Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What one pod used: the end of the time it was measured over, and how long that was."""

    value_milli: int
    at_s: float = 0.0
    window_s: float = 60.0


@dataclass(frozen=True)
class Reading:
    """What the metrics API answered for one metric of the spec.

    ``pods`` for Resource, ContainerResource and Pods; ``values_milli`` for Object (one) and External (any number);
    ``error`` when it did not answer.
    """

    pods: t.Mapping[str, Sample] = field(default_factory=dict)
    values_milli: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Recommendation:
    """What the metrics alone asked for at a time, before windows, rates and bounds."""

    replicas: int
    at_s: float


@dataclass(frozen=True)
class ScaleEvent:
    """By how many pods the target was scaled, in the direction of its list. An outdated one may be overwritten."""

    change: int
    at_s: float
    outdated: bool = False


@dataclass(frozen=True)
class Memory:
    """What the controller keeps from step to step, in the order of its own lists. It loses it when it restarts.

    ``recommendations`` is ``None`` before an HPA is seen for the first time.
    """

    recommendations: tuple[Recommendation, ...] | None = None
    ups: tuple[ScaleEvent, ...] = ()
    downs: tuple[ScaleEvent, ...] = ()


@dataclass(frozen=True)
class Condition:
    """A condition of the status; ``since_s`` is when its status last changed."""

    type: str
    status: bool
    reason: str
    message: str
    since_s: float = 0.0


@dataclass(frozen=True)
class Step:
    """What one step of the controller came to.

    ``replicas`` is what the target is to have now and ``rescaled`` whether that was written; ``reason`` says why it was.
    ``proposal`` is what the metrics asked for, ``None`` when they were not asked or failed, and ``winner`` the index of the metric that
    asked for most. ``status_desired`` is ``desiredReplicas`` of the status, which is left as it was when no count could be computed;
    ``metrics`` are the API's ``currentMetrics``, with ``None`` where a metric failed. ``error`` is set when a metric failed.
    """

    replicas: int
    rescaled: bool
    reason: str
    proposal: int | None
    winner: int | None
    conditions: tuple[Condition, ...]
    status_desired: int
    metrics: tuple[t.Mapping[str, t.Any] | None, ...]
    memory: Memory
    error: str | None = None

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of a type, ``None`` without it."""
        return next((one for one in self.conditions if one.type == kind), None)
