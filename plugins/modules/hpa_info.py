#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the state and the history of HorizontalPodAutoscalers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hpa_info
short_description: Tell the state and the history of HorizontalPodAutoscalers
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Reads one HorizontalPodAutoscaler (C(autoscaling/v2)) or all of a namespace, explains their conditions in plain words, and counts
    from their events what they decided and whether they flap.
  - The API server keeps events for an hour unless it was told otherwise, and folds those with the same text into one with a count. What
    is counted is what is known by them, and C(complete) in RV(hpas[].decisions) says whether the time of each
    is.
  - Needs the rights to C(get) and C(list) C(horizontalpodautoscalers). Without the right to C(list) C(events) there is no
    history, and RV(not_read) says so.
extends_documentation_fragment:
  - headroom.scale.kubernetes
  - headroom.scale.attributes
  - headroom.scale.attributes.info_module
options:
  name:
    description:
      - Name of the autoscaler. Without it, all of the namespace.
    type: str
    version_added: 0.1.0
  namespace:
    description:
      - The namespace.
    type: str
    default: default
    version_added: 0.1.0
  window_s:
    description:
      - Seconds that are looked back for RV(hpas[].history) and RV(hpas[].decisions), from 1 to 31622400.
    type: float
    default: 3600
    version_added: 0.1.0
seealso:
  - module: headroom.scale.hpa
"""

EXAMPLES = r"""
- name: Look at all autoscalers of a namespace
  headroom.scale.hpa_info:
    namespace: trading-system
  register: autoscalers

- name: Fail when one flaps or cannot act
  ansible.builtin.assert:
    that:
      - item.state != 'failing'
      - not (item.decisions.flapping | default(false))
    fail_msg: "{{ autoscalers.summary }}"
  loop: "{{ autoscalers.hpas }}"
  loop_control:
    label: "{{ item.name }}"

- name: Look at one of them over the last ten minutes
  headroom.scale.hpa_info:
    name: trading-app
    namespace: trading-system
    window_s: 600
"""

RETURN = r"""
summary:
  description: How many there are and which of them need a look, in one sentence.
  returned: success
  type: str
  sample: 2 HPAs in trading-system; look at trading-app (at_max).
hpas:
  description: The autoscalers, sorted by name. Empty when there is none. A value that is not known is none.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the autoscaler.
      type: str
      sample: trading-app
    namespace:
      description: Its namespace.
      type: str
      sample: trading-system
    state:
      description:
        - The worst that holds of it.
        - V(unknown) before the controller has looked, V(failing) when it cannot act or no metric can be read, V(disabled) when the target
          has 0 replicas, V(at_max) when more than C(maxReplicas) are asked for, V(scaling) while the replicas are not those desired,
          otherwise V(stable).
      type: str
      sample: at_max
    spec:
      description: Its spec with all defaults, as O(headroom.scale.hpa#module:spec) takes it.
      type: dict
      sample:
        maxReplicas: 8
        metrics:
          - resource:
              name: cpu
              target:
                averageUtilization: 70
                type: Utilization
            type: Resource
        minReplicas: 3
        scaleTargetRef:
          apiVersion: apps/v1
          kind: Deployment
          name: trading-app
    current_replicas:
      description: Replicas that there are.
      type: int
      sample: 8
    desired_replicas:
      description: Replicas that it wants.
      type: int
      sample: 8
    last_scale_at:
      description: When it last changed the replicas.
      type: str
      sample: "2026-11-21T10:02:00Z"
    metrics:
      description: The metrics, sorted by name, with their target and what they are now.
      type: list
      elements: dict
      sample:
        - current: 93 % of the request
          name: cpu
          target: 70 % of the request
    conditions:
      description: The conditions, sorted by type, as the controller gives them, and what they mean.
      type: list
      elements: dict
      sample:
        - explained: The metrics ask for more replicas than maxReplicas; load beyond that is not met.
          message: the desired replica count is more than the maximum replica count
          reason: TooManyReplicas
          status: "True"
          type: ScalingLimited
    history:
      description: The decisions of the last O(window_s) seconds whose time is known, the oldest first.
      type: list
      elements: dict
      sample:
        - at: "2026-11-21T10:02:00Z"
          direction: up
          size: 8
          why: cpu resource utilization (percentage of request) above target
    decisions:
      description:
        - Figures about the last O(window_s) seconds.
        - C(ups), C(downs) and C(unclear) count decisions by direction. C(reversals) is how often the direction changed at least, and
          C(flapping) is true from 3 of them on. C(at_max_s) is the time in seconds at C(maxReplicas) as far as known.
          C(last_decision) is the last one known, within these seconds or before. C(complete) is whether the time of each decision is
          known.
      type: dict
      sample:
        at_max_s: 120.0
        complete: true
        downs: 0
        flapping: false
        last_decision:
          at: "2026-11-21T10:02:00Z"
          direction: up
          size: 8
          why: cpu resource utilization (percentage of request) above target
        reversals: 0
        unclear: 0
        ups: 1
        window_s: 3600.0
    problems:
      description: The warnings among its events, the latest first.
      type: list
      elements: dict
      sample:
        - count: 4
          last_at: "2026-11-21T09:41:00Z"
          message: "failed to get cpu utilization: unable to get metrics for resource cpu"
          reason: FailedGetResourceMetric
not_read:
  description: What was not looked at, with the reason.
  returned: success
  type: dict
  sample: {}
errors:
  description: Why it failed, with C(code) and C(message), as of M(headroom.scale.hpa).
  returned: failure
  type: list
  elements: dict
  sample:
    - code: connection_failed
      host: https://k8s.example.com:6443
      message: >-
        Failed to list the HPAs of trading-system on https://k8s.example.com:6443: nothing listens there; check host and that the API
        server runs.
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.info import (  # noqa: E402
    info_spec,
    look,
    parse_options,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **info_spec().to_kwargs())
    run(module, lambda module: look(parse_options(module.params)))


if __name__ == "__main__":
    main()
