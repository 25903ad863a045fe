#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tune a HorizontalPodAutoscaler from recorded load."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hpa_tune
short_description: Tune a HorizontalPodAutoscaler from recorded load
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Reads a recorded load and the present spec of a HorizontalPodAutoscaler, and searches floor, ceiling, targets, windows, policies
    and tolerances together for the spec that keeps the objective with the fewest replica-hours.
  - Each of some thousand specs is simulated with the algorithm of the HPA controller over training days, as
    M(headroom.scale.hpa_simulate) does. The best ones are judged on held-out days, the last ones of the load, which the search has not
    seen. A spec that keeps the objective worse than the present one there is never recommended, and where none is better, the verdict
    is V(keep).
  - Looks for floors by the time of the day too, from the needs of the same time on training days. They may only raise the floor, and
    are returned in RV(schedule) only where they beat the recommended spec on held-out days. With two weeks of training days they tell
    weekdays apart. The forecast is a quantile of what was needed in each stretch of the day. An HPA has no schedule, so that they are
    not applied here. The role P(headroom.scale.autoscaling#role) sets the floor of the hour whenever it runs.
  - What is recommended is a plain C(autoscaling/v2) spec. No controller has to be installed.
  - With O(state=applied) changes up to the risk O(approve) are made, if they are better than the present spec without the others. The
    spec that was replaced is kept in the annotation C(headroom.scale/tuned) of the autoscaler, by the same request as the change, and
    O(state=reverted) brings it back. The last 10 changes are kept.
  - It refuses data that does not suffice, in one sentence that says what is missing.
  - The load of a service is not all that its objective depends on. A simulation with pods that are all alike knows nothing of rollouts,
    slow nodes and downstream services, and some recorded days prove nothing about the next ones. Look at what it recommends.
extends_documentation_fragment:
  - headroom.scale.kubernetes
  - headroom.scale.attributes
  - headroom.scale.autoscaling
attributes:
  check_mode:
    support: full
    details:
      - Searches and judges as usual, sends no write request and writes no file. With the same data and O(search.seed) a run makes the
        changes that the check said.
  diff_mode:
    support: full
    details:
      - One line for each metric, policy and limit. With O(state=recommended) it is what would be recommended.
  idempotent:
    support: partial
    details:
      - What was applied is the present spec of the next run, which may find something better still within O(limits).
      - Each run with O(state=reverted) takes one change more back, until none is left.
options:
  state:
    description:
      - V(recommended) changes nothing, V(applied) makes the changes that are approved, V(reverted) takes the newest applied change back.
      - V(reverted) does not lower the floor in an incident, by O(incident) or O(prometheus.incident_query), nor while the autoscaler
        cannot read its metrics, nor below one that a schedule has raised since. When that is all that was to be reverted, the change
        stays recorded.
    type: str
    choices: [recommended, applied, reverted]
    default: recommended
    version_added: 0.1.0
  name:
    description:
      - Name of the autoscaler whose spec is tuned. It is read from the API server. Required for V(applied) and V(reverted) of O(state).
      - While a schedule has raised its floor, the raised one is taken for the present one.
    type: str
    version_added: 0.1.0
  namespace:
    description:
      - Its namespace.
    type: str
    default: default
    version_added: 0.1.0
  spec:
    description:
      - The present spec, in place of O(name), in the words of the API. C(scaleTargetRef) may be left out. No cluster is needed then.
    type: dict
    version_added: 0.1.0
  spec_file:
    description:
      - File with the present spec, or a whole HorizontalPodAutoscaler, as YAML or JSON, in place of O(name).
    type: path
    version_added: 0.1.0
  trace_file:
    description:
      - File with the load over time, as for O(headroom.scale.hpa_simulate#module:trace_file).
    type: path
    version_added: 0.1.0
  points:
    description:
      - The load over time, in place of O(trace_file). Each point is a list of a time and a load.
      - Times are seconds since 1970 in UTC, since what is seasonal is told by them.
    type: list
    elements: list
    version_added: 0.1.0
  prometheus:
    description:
      - Reads the load from the HTTP API of Prometheus, in place of O(trace_file).
    type: dict
    version_added: 0.1.0
    suboptions:
      url:
        description:
          - Where it is, without C(/api/v1), such as V(http://prometheus.example.com:9090).
        type: str
        required: true
      query:
        description:
          - The load of the service as a whole, as PromQL. Its series are added up.
        type: str
        required: true
      days:
        description:
          - Days that are read.
        type: float
        default: 14
      step_s:
        description:
          - Seconds between two values, from 1 to 3600.
        type: int
        default: 60
      end_s:
        description:
          - End of these days, in seconds since 1970. By default now. Give it for a run that is to be repeated.
        type: float
      replicas_query:
        description:
          - The replicas of the service over time, as PromQL, to see whether they were at their most.
        type: str
      throttling_query:
        description:
          - Share of cpu periods in which pods were throttled, from 0 to 1, as PromQL, to see whether cpu was capped.
        type: str
      incident_query:
        description:
          - PromQL that has a result while there is an incident, such as V(ALERTS{alertstate="firing",service="shop"}). The floor is not
            lowered then.
        type: str
      username:
        description:
          - Login of basic authentication.
        type: str
      password:
        description:
          - Password of O(prometheus.username).
        type: str
      token:
        description:
          - Bearer token to log in with.
        type: str
      ca_cert:
        description:
          - File with the certificates of the authorities that may have signed its certificate, in PEM format.
        type: path
      validate_certs:
        description:
          - Whether its certificate must be signed by a trusted authority and be its own.
        type: bool
        default: true
      timeout_s:
        description:
          - Seconds that all its answers together may take, from 0.1 to 3600.
        type: float
        default: 60
  replicas_points:
    description:
      - The replicas of the service over time, as lists of a time and a number, to see whether they were at their most.
    type: list
    elements: list
    version_added: 0.1.0
  throttling_points:
    description:
      - Share of cpu periods in which pods were throttled, as lists of a time and a share from 0 to 1.
    type: list
    elements: list
    version_added: 0.1.0
  pods:
    description:
      - How a pod behaves, by a load test or by what was seen. Required unless O(state=reverted).
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
          - Share of the syncs in which this must hold, from 0 to 1.
        type: float
        default: 0.999
      use_budget:
        description:
          - Whether a spec that keeps O(slo.min_share) is good enough where the present one does better than that. Otherwise no spec
            is taken that violates the objective more often than the present one.
        type: bool
        default: false
  data:
    description:
      - How good the data must be.
    type: dict
    version_added: 0.1.0
    suboptions:
      min_days:
        description:
          - Days that the load must cover, at least 2. Less than a week says nothing of weekends.
        type: float
        default: 7
      max_gap_share:
        description:
          - Share of the time without values that is borne, from 0 to 1.
        type: float
        default: 0.02
      load_is_whole:
        description:
          - Whether the load was recorded before the pods, as at an ingress, so that it includes what they could not serve. Otherwise a
            load at what C(maxReplicas) serve is refused, since it may be cut.
        type: bool
        default: false
      held_out_days:
        description:
          - Days at the end that are held out of the search to judge what it found. By default about 30 percent, at least one.
        type: int
  search:
    description:
      - How it is searched.
    type: dict
    version_added: 0.1.0
    suboptions:
      candidates:
        description:
          - Specs that are simulated over the training days, from 10 to 100000.
        type: int
        default: 1000
      seed:
        description:
          - Where chance begins. The same seed, data and options lead to the same result.
        type: int
        default: 0
      threads:
        description:
          - Threads that simulate, from 1 to 64. The result does not depend on it.
        type: int
        default: 2
      floors:
        description:
          - Whether scheduled floors are looked for.
        type: bool
        default: true
      slot_minutes:
        description:
          - Length of the stretches of the day that floors are made for, in minutes.
        type: int
        choices: [15, 30, 60, 120, 180, 240]
        default: 30
  limits:
    description:
      - How far one run may go.
    type: dict
    version_added: 0.1.0
    suboptions:
      replicas_percent:
        description:
          - Largest change of C(minReplicas) and C(maxReplicas), in percent of the present ones. One replica is always allowed.
        type: float
        default: 50
      target_percent:
        description:
          - Largest change of each target, in percent of the present one, from 0 to 90.
        type: float
        default: 25
      window_s:
        description:
          - Largest change of each stabilization window, in seconds.
        type: int
        default: 300
      min_replicas:
        description:
          - C(minReplicas) is not lowered below it.
        type: int
        default: 2
      max_replicas:
        description:
          - C(maxReplicas) is not raised above it.
        type: int
        default: 1000
      tolerances:
        description:
          - Whether tolerances may be set. They never are for a O(controller.version) of V(1.32), nor on an API server before Kubernetes
            1.35, which has them off unless it was told otherwise.
        type: bool
        default: true
  approve:
    description:
      - The highest risk of changes that V(applied) of O(state) makes.
      - What gives the service more room, or gives it back later, is V(low). What takes room away is V(medium), and V(high) when it is
        much. RV(changes) says it of each change.
    type: str
    choices: [low, medium, high]
    default: low
    version_added: 0.1.0
  incident:
    description:
      - Whether there is an incident now. The floor is not lowered then, as it is not while the newest load is missing, or the autoscaler
        cannot read its metrics. The newest load is missing when its last value is older than 5 minutes and than 5 of its steps, or when
        its last hour has a gap.
    type: bool
    default: false
    version_added: 0.1.0
  cost_per_replica_hour:
    description:
      - Price of one replica for an hour, in any currency.
    type: float
    version_added: 0.1.0
  report_file:
    description:
      - File to write the result to as one HTML page, with load, replicas before and after, violations, the trade-off curve and the
        recommended spec as YAML. It loads nothing from elsewhere.
    type: path
    version_added: 0.1.0
requirements:
  - numba >= 0.61 and numpy >= 1.26 on the host that runs the module
seealso:
  - module: headroom.scale.hpa
  - module: headroom.scale.hpa_simulate
  - module: headroom.scale.hpa_info
"""

EXAMPLES = r"""
- name: See what would be better than the present spec
  headroom.scale.hpa_tune:
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
    trace_file: requests-per-second.json
    pods: &pods
      capacity: 120
      startup_s: 45
      resources:
        - name: cpu
          request: 500m
          idle: 20m
          at_capacity: 500m
    slo:
      max_load_ratio: 0.9
    cost_per_replica_hour: 0.04
    report_file: /srv/www/tuned.html

- name: Tune an autoscaler from two weeks of Prometheus, with all changes but the riskiest
  headroom.scale.hpa_tune:
    name: trading-app
    namespace: trading-system
    state: applied
    approve: medium
    prometheus:
      url: http://prometheus.example.com:9090
      query: sum(rate(http_requests_total{service="trading-app"}[1m]))
      replicas_query: kube_deployment_status_replicas{deployment="trading-app"}
      incident_query: ALERTS{alertstate="firing",service="trading-app"}
    data:
      load_is_whole: false
    pods: *pods

- name: Take the last change back
  headroom.scale.hpa_tune:
    name: trading-app
    namespace: trading-system
    state: reverted
"""

RETURN = r"""
verdict:
  description: V(tune) when something is better, V(keep) when nothing is or nothing was to be reverted, V(reverted) when a change was.
  returned: success
  type: str
  sample: tune
summary:
  description: What came of it, in a few sentences.
  returned: success
  type: str
  sample: >-
    Tune HPA trading-system/trading-app by target of cpu resource utilization, scale down, window: on 4 held-out days 1180.5 replica-hours
    in place of 1416.8 (-16.7%), and the objective holds in 100.000% in place of 100.000% of the time.
spec:
  description: The recommended spec, which is the present one to V(keep), or the one that was brought back.
  returned: success
  type: dict
  sample: {maxReplicas: 50, minReplicas: 3}
changes:
  description: What differs from the present spec. They are judged together.
  returned: unless O(state=reverted)
  type: list
  elements: dict
  contains:
    what: {description: The parameter., type: str, sample: target of cpu resource utilization}
    before: {description: Its present value., type: str, sample: 70 %}
    after: {description: Its recommended value., type: str, sample: 83 %}
    risk: {description: "V(LOW), V(MEDIUM) or V(HIGH).", type: str, sample: MEDIUM}
    risk_reason: {description: Why it has that risk., type: str, sample: each pod gets more to do}
    reason:
      description: What it is worth, by the training days without it.
      type: str
      sample: Without it training days had +18.62% replica-hours.
    applied: {description: "Whether it was applied, or would be in check mode.", type: bool, sample: false}
before:
  description: Figures of the present spec on the days of C(train) and C(held_out).
  returned: unless O(state=reverted)
  type: dict
  contains: &sides
    train: &figures
      description: Figures of the training days.
      type: dict
      contains:
        slo_share: {description: "Share of the syncs in which the objective was kept, from 0 to 1.", type: float, sample: 0.9993}
        violating_syncs: {description: Syncs in which it was not., type: int, sample: 39}
        replica_hours: {description: "Replicas times hours, from when a pod is made.", type: float, sample: 1416.85}
        cost: {description: "Their price, none without O(cost_per_replica_hour).", type: float, sample: 56.67}
        scale_ups: {description: How often replicas were added., type: int, sample: 42}
        scale_downs: {description: How often replicas were taken away., type: int, sample: 62}
        syncs_at_max: {description: Syncs with the most replicas that are allowed., type: int, sample: 0}
        load_capped: {description: "Load that ready pods could not serve, times seconds.", type: float, sample: 0.0}
        worst_load_ratio:
          description: Largest load to the capacity of the ready pods, none when there was load and no ready pod.
          type: float
          sample: 0.82
    held_out:
      description: The same of the held-out days.
      type: dict
      sample: {slo_share: 1.0, replica_hours: 1416.85}
after:
  description: The same of the recommended spec.
  returned: unless O(state=reverted)
  type: dict
  contains: *sides
curve:
  description:
    - The trade-off of cost and objective, at most 24 specs of which no other one violates the objective less at less cost on training
      days, from the most careful to the cheapest.
  returned: unless O(state=reverted)
  type: list
  elements: dict
  contains:
    train: *figures
    held_out: {description: Figures of the held-out days., type: dict, sample: {slo_share: 0.9991, replica_hours: 1102.2}}
    spec: {description: The spec., type: dict, sample: {maxReplicas: 50, minReplicas: 3}}
schedule:
  description: Floors by the time of the day that beat the recommended spec on held-out days, none when there are none.
  returned: unless O(state=reverted)
  type: dict
  contains:
    spec:
      description: The spec that belongs to them. Without them it is not safe.
      type: dict
      sample: {maxReplicas: 50, minReplicas: 2}
    floors:
      description: Stretches of the day in UTC with fewest replicas above C(minReplicas). C(end) may be V(24:00).
      type: list
      elements: dict
      sample:
        - {days: [monday, tuesday], start: "08:30", end: "10:00", min_replicas: 7}
    weekly: {description: Whether days of the week differ., type: bool, sample: false}
    train: *figures
    held_out: {description: Figures of the held-out days., type: dict, sample: {slo_share: 1.0, replica_hours: 1131.0}}
data:
  description: What the data is like.
  returned: unless O(state=reverted)
  type: dict
  contains:
    days: {description: Days that the load covers., type: float, sample: 14.0}
    train_days: {description: Days that were searched on., type: float, sample: 10.0}
    held_out_days: {description: Days that were judged on., type: float, sample: 4.0}
    step_s: {description: Usual seconds between two values., type: float, sample: 60.0}
    gap_s: {description: "Length of all gaps, in seconds.", type: float, sample: 0.0}
    at_max_share:
      description: Share of the time at C(maxReplicas), as recorded. None without O(replicas_points) or O(prometheus.replicas_query).
      type: float
      sample: 0.0
    capped_share: {description: Share of the values at what C(maxReplicas) serve., type: float, sample: 0.0}
    throttled_share:
      description: Share of the time with throttled cpu. None without O(throttling_points) or O(prometheus.throttling_query).
      type: float
      sample: 0.0
    series: {description: Series that were added up., type: int, sample: 1}
    dropped_values: {description: Values that were no numbers., type: int, sample: 0}
    floor_kept_because:
      description: Why the floor must not be lowered now, none when it may.
      type: str
      sample: the HPA cannot read its metrics
tried:
  description: Specs that were simulated on training days by the search.
  returned: unless O(state=reverted)
  type: int
  sample: 1000
rejected:
  description: Specs that were better on training days and not on held-out days.
  returned: unless O(state=reverted)
  type: int
  sample: 0
plan:
  description: What is changed, or would be in check mode. Empty with O(state=recommended).
  returned: success
  type: list
  elements: dict
  sample:
    - {what: metric cpu, before: 70 % of the request, after: 83 % of the request}
errors:
  description:
    - Why it failed, with C(code) and C(message). The codes of the API server are those of M(headroom.scale.hpa).
    - >-
      Others are V(poor_data), whose C(reason) is V(too_short), V(too_coarse), V(gaps), V(no_load), V(at_max), V(capped) or V(cpu_capped),
      V(changed_since) (the spec is not the one that it was), V(being_deleted) (it waits for its finalizers),
      V(bad_record) (the annotation cannot be read), V(no_data) (a query has no values), V(refused) (Prometheus refuses a query), and
      V(write_failed).
  returned: failure
  type: list
  elements: dict
  sample:
    - code: poor_data
      message: >-
        Failed to tune HPA trading-system/trading-app: the load covers 3.0 days, and 7 are needed; record 4.0 days more, or lower
        data.min_days.
      reason: too_short
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.converge import tune  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.options import (  # noqa: E402
    parse_options,
    tune_spec,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **tune_spec().to_kwargs())
    run(module, lambda module: tune(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
