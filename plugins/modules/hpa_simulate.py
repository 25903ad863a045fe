#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulate what a HorizontalPodAutoscaler does with a recorded load."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hpa_simulate
short_description: Simulate what a HorizontalPodAutoscaler does with a recorded load
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Replays a recorded load through the algorithm of the HPA controller and says how many replicas there would have been
    at each sync, why they changed, when they did not suffice, and what they would have cost.
  - It needs no cluster and changes none.
  - The loop is closed. The whole load is replayed and divided evenly over the pods that are ready then, so that usage
    follows from the simulated replicas and not from the recorded ones.
  - Load that is more than the ready pods can serve is lost and reported. It is not queued, and no client tries again.
  - All pods are alike. Readiness, missing metrics, whole percent, tolerances, windows, rates and several metrics work as in
    the controller. Rollouts, nodes that have to be added, and metrics that fail are not simulated.
  - Times are rounded up to whole syncs. Before the trace begins, its first load is taken to have been there for long.
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.autoscaling
attributes:
  check_mode:
    support: full
    details:
      - Simulates as usual, and writes no file.
  diff_mode:
    support: N/A
    details:
      - Nothing is changed.
  idempotent:
    support: full
    details:
      - C(changed) is always V(false).
options:
  trace_file:
    description:
      - File with the load over time, on the host that runs the module.
      - Either the JSON that Prometheus answers to a range query, whose series are added up, or CSV with a time and a load in
        each line, and possibly a header. Times are seconds, or text such as V(2026-01-31T12:00:00Z).
      - The load is of the service as a whole, in any unit, such as requests per second. What it is between two values is
        up to O(interpolation).
      - Each sync is given the mean of the load until the next sync, so that values between two syncs count too.
      - Values more than 2.5 usual steps apart have a gap between them, which RV(gaps) reports.
    type: path
    version_added: 0.1.0
  points:
    description:
      - The load over time, in place of O(trace_file). Each point is a list of a time and a load.
    type: list
    elements: list
    version_added: 0.1.0
  spec:
    description:
      - The C(spec) of a HorizontalPodAutoscaler in C(autoscaling/v2), with the API's names. C(scaleTargetRef) may be left out.
      - What the API would fill in is filled in, and what it would refuse is refused.
      - Resource and ContainerResource metrics come from O(pods.resources). Pods metrics are the load that each ready pod serves.
        Object and External metrics are the load of the service. See O(pods.factors).
    type: dict
    required: true
    version_added: 0.1.0
  pods:
    required: true
  slo:
    description:
      - The objective.
    type: dict
    version_added: 0.1.0
    suboptions:
      max_load_ratio:
        description:
          - The load of the ready pods must not be more than so much of their capacity, above 0 and up to 1.
        type: float
        default: 1.0
      max_latency_ms:
        description:
          - The latency by O(pods.latency) must not be more than so many milliseconds.
        type: float
      min_share:
        description:
          - Share of the syncs in which this must hold for RV(slo_met), from 0 to 1.
        type: float
        default: 0.999
  initial_replicas:
    description:
      - Replicas before the first sync, from 0 to 10000. By default those that an hour of the first load leads to from
        C(minReplicas).
    type: int
    version_added: 0.1.0
  cost_per_replica_hour:
    description:
      - Price of one replica for an hour, in any currency.
    type: float
    version_added: 0.1.0
  max_items:
    description:
      - Length that RV(replicas), RV(events), RV(violations) and RV(gaps) have at most, V(0) for no limit. RV(replicas) is then
        summed up by stretches of time, the others are cut at their end. RV(figures) always covers all.
    type: int
    default: 500
    version_added: 0.1.0
  report_file:
    description:
      - File to write the simulation to as one HTML page with a drawing of load, replicas and violations. It loads nothing
        from elsewhere.
    type: path
    version_added: 0.1.0
seealso:
  - name: Horizontal Pod Autoscaling
    description: The algorithm in the words of its makers.
    link: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/
"""

EXAMPLES = r"""
- name: See what an autoscaler would have done last week
  headroom.scale.hpa_simulate:
    trace_file: requests-per-second.json
    spec:
      minReplicas: 3
      maxReplicas: 50
      metrics:
        - type: Resource
          resource:
            name: cpu
            target:
              type: Utilization
              averageUtilization: 70
      behavior:
        scaleDown:
          policies:
            - type: Percent
              value: 10
              periodSeconds: 60
    pods:
      capacity: 120
      startup_s: 45
      resources:
        - name: cpu
          request: 500m
          idle: 20m
          at_capacity: 500m
      latency:
        - load_ratio: 0.5
          latency_ms: 20
        - load_ratio: 0.9
          latency_ms: 80
    slo:
      max_latency_ms: 50
    cost_per_replica_hour: 0.04
    report_file: /srv/www/autoscaler.html
  register: simulated

- name: Show what came of it
  ansible.builtin.debug:
    msg: "{{ simulated.summary }}"

- name: Try a jump of the load on a queue that scales to zero, with an older controller
  headroom.scale.hpa_simulate:
    points:
      - [0, 0]
      - [600, 400]
      - [1800, 0]
      - [3600, 0]
    spec:
      minReplicas: 0
      maxReplicas: 10
      metrics:
        - type: External
          external:
            metric:
              name: queue
            target:
              type: AverageValue
              averageValue: "50"
    pods:
      capacity: 60
    controller:
      version: "1.32"
    max_items: 0
"""

RETURN = r"""
slo_met:
  description: Whether the objective was kept in at least O(slo.min_share) of the syncs.
  returned: always
  type: bool
  sample: false
summary:
  description: What came of it, in a few sentences.
  returned: always
  type: str
  sample: >-
    The objective held in 99.14% of the time, of the 99.90% asked for; 215.3 replica-hours, 3 to 21 replicas, a cost of
    8.612; scaled 37 times up and 52 times down. 0.21% of the load was more than the ready pods could serve.
figures:
  description:
    - C(syncs) and C(duration_s) are the length of the simulation; C(load_offered), C(load_served) and C(load_capped) are load
      times seconds, and the first is the sum of the others.
    - C(violating_syncs) are those that did not keep the objective, C(slo_share) the share of those that did, and
      C(worst_load_ratio) the largest load to the capacity of the ready pods, none when there was load and no ready pod.
    - C(replica_hours) counts pods from when they are made; C(cost) is none without O(cost_per_replica_hour).
    - C(gap_s) is the length of all gaps, C(series) the number of series that were added up, and C(dropped_values) the number of
      values of Prometheus that were no numbers.
  returned: always
  type: dict
  sample:
    cost: 8.612
    dropped_values: 0
    duration_s: 86415
    gap_s: 0
    load_capped: 95021.44
    load_offered: 45201330.2
    load_served: 45106308.76
    replica_hours: 215.3
    replicas_initial: 6
    replicas_least: 3
    replicas_most: 21
    scale_downs: 52
    scale_ups: 37
    series: 1
    slo_share: 0.9914
    syncs: 5761
    syncs_at_max: 0
    violating_syncs: 49
    worst_load_ratio: 1.8
replicas:
  description: The syncs, or O(max_items) stretches of them with the highest load and replicas and the fewest ready pods in each.
  returned: always
  type: list
  elements: dict
  contains:
    at_s:
      description: When it begins, in seconds as in the trace, since 1970 where that has times of the day.
      type: float
      sample: 1769860800.0
    load:
      description: Load.
      type: float
      sample: 512.5
    replicas:
      description: Replicas.
      type: int
      sample: 7
    ready:
      description: Ready pods.
      type: int
      sample: 6
events:
  description: The changes of the number of replicas.
  returned: always
  type: list
  elements: dict
  contains:
    at_s:
      description: When it was, in seconds as in RV(replicas[].at_s).
      type: float
      sample: 1769864415.0
    before:
      description: Replicas before it.
      type: int
      sample: 7
    after:
      description: Replicas after it.
      type: int
      sample: 14
    reason:
      description: Why, by what the metrics asked for. Empty when that was no change, and an earlier recommendation was followed.
      type: str
      sample: cpu resource utilization above target
    limited_by:
      description: What kept it from being larger, by the reason that the API has for it, V(ScaleUpLimit), V(ScaleDownLimit),
        V(TooManyReplicas) or V(TooFewReplicas); none when nothing did.
      type: str
      sample: ScaleUpLimit
violations:
  description: Times in which the objective was not kept.
  returned: always
  type: list
  elements: dict
  contains:
    start_s:
      description: When it began, in seconds as in RV(replicas[].at_s).
      type: float
      sample: 1769864400.0
    duration_s:
      description: How long it lasted, in seconds.
      type: int
      sample: 75
    worst_load_ratio:
      description: Largest load to the capacity of the ready pods, none without a ready pod.
      type: float
      sample: 1.8
    latency_ms:
      description: Latency at that load in milliseconds, none without O(pods.latency) and above the capacity.
      type: float
      sample: 63.5
    load_capped:
      description: Load that could not be served, times seconds.
      type: float
      sample: 30210.0
gaps:
  description: Times for which the trace has no values. The last value before was held.
  returned: always
  type: list
  elements: dict
  contains:
    start_s:
      description: Time of the last value before, in seconds.
      type: float
      sample: 1769871600.0
    end_s:
      description: Time of the next value, in seconds.
      type: float
      sample: 1769872200.0
    duration_s:
      description: Time between them, in seconds.
      type: float
      sample: 600.0
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.replay import (  # noqa: E402
    parse_options,
    simulate,
    simulate_spec,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **simulate_spec().to_kwargs())
    run(module, lambda module: simulate(parse_options(module.params), write=not module.check_mode))


if __name__ == "__main__":
    main()
