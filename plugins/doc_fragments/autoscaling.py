# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulation is made of; it matches ``model_spec`` of ``module_utils/_autoscaling/replay.py``."""

from __future__ import annotations


class ModuleDocFragment:
    """Options shared by all modules that simulate an autoscaler."""

    DOCUMENTATION = r"""
options:
  interpolation:
    description:
      - What the load is between two values. Either way each sync is given the mean until the next sync, and in a gap the last value holds.
      - V(hold) takes each value until the next one. It suits values that are seconds apart, and is the more cautious, since the load
        jumps from value to value.
      - V(linear) goes from value to value in a straight line. It suits means over minutes, such as a C(rate) over five of them, whose
        jumps are not in the load itself and would cost room that it does not need.
    type: str
    choices:
      - hold
      - linear
    default: hold
    version_added: 0.1.0
  pods:
    description:
      - How a pod behaves.
    type: dict
    version_added: 0.1.0
    suboptions:
      capacity:
        description:
          - Load that one ready pod serves at most, in the unit of the trace.
        type: float
        required: true
      startup_s:
        description:
          - Seconds from when a pod is made until it is ready, from 0 to 3600.
        type: float
        default: 30
      metric_age_s:
        description:
          - How old metrics are when the controller sees them, in seconds, from 0 to 3600.
        type: float
        default: 30
      metric_window_s:
        description:
          - Time that a metric is measured over, in seconds, from 0 to 3600. The controller leaves out the cpu of a pod that has
            not been ready for so long.
        type: float
        default: 30
      resources:
        description:
          - What a pod requests and uses of each resource that O(spec) scales on. It grows evenly with the load.
          - A ContainerResource metric is taken to be of the only container.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description:
              - Name of the resource, such as V(cpu).
            type: str
            required: true
          request:
            description:
              - Request of the pod, as a quantity such as V(500m).
            type: str
            required: true
          idle:
            description:
              - Usage without load, as a quantity, at most O(pods.resources[].at_capacity).
            type: str
            default: "0"
          at_capacity:
            description:
              - Usage at O(pods.capacity), as a quantity. It is never more than the limit of the pod.
            type: str
            required: true
      factors:
        description:
          - What the load is multiplied with to become a Pods, Object or External metric of O(spec), by the metric's name. V(1) for
            those that are not named.
        type: dict
        default: {}
      latency:
        description:
          - Latency of a ready pod by its load, as points with growing load. Between them it is interpolated.
        type: list
        elements: dict
        default: []
        suboptions:
          load_ratio:
            description:
              - Load as a ratio of O(pods.capacity), from 0 to 1.
            type: float
            required: true
          latency_ms:
            description:
              - Latency in milliseconds.
            type: float
            required: true
  controller:
    description:
      - The controller that is simulated.
    type: dict
    version_added: 0.1.0
    suboptions:
      version:
        description:
          - Release of Kubernetes whose controller is meant. V(1.32) stands for all releases up to it, and V(1.33) for it and
            later ones. V(1.38) stands for those that ignore completed pods too, which a simulation does not have.
          - From 1.33 on a spec may have tolerances of its own, and a ratio of exactly 1.1 is within the default tolerance.
        type: str
        choices:
          - "1.32"
          - "1.33"
          - "1.38"
        default: "1.33"
      sync_s:
        description:
          - Seconds between two syncs, from 1 to 3600.
        type: int
        default: 15
      tolerance:
        description:
          - How far the ratio of a metric to its target may be from 1 without a change.
        type: float
        default: 0.1
      downscale_stabilization_s:
        description:
          - Window for scaling down where O(spec) has none, in seconds.
        type: int
        default: 300
      cpu_initialization_period_s:
        description:
          - Seconds from the start of a pod in which its cpu counts only after a whole window of being ready.
        type: int
        default: 300
"""
