#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a canary its share on all running load balancers, watched step by step, and take it back when it does not hold."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_canary
short_description: Give a canary its share on all running load balancers, watched, and take it back when it does not hold
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Acts on an upstream that M(headroom.scale.nginx_config) declares with a canary, on all load balancers at once, while they run
    and without a reload. Run it once for all of them, from a host that their management addresses allow.
  - With O(state=promoted) the canary gets O(steps) of the requests one after the other. Each step is watched for O(step_s) and for
    C(min_requests), over all load balancers together. While the canary keeps O(limits) it goes on; when it does not, it is taken
    back to 0 on all of them and the task fails.
  - The canary is taken back too when the run is interrupted, when a load balancer does not answer or loses its share, and when too few
    requests come.
  - While a run lasts, the load balancers have the share on loan for O(lease_s), renewed all the time. When a run dies, or a load
    balancer is cut off from it, each of them takes the canary back by itself. A run that is started before that goes on at the
    share that it finds.
  - For blue/green give O(steps) as V([100]), and O(state=rolled_back) for the way back. The idle side stays as it is.
  - A share that was reached stays over a reload, until another one, or a canary of other servers, is declared, and until nginx is stopped.
  - Without O(state) and O(percent) it only looks.
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.nginx_fleet
attributes:
  check_mode:
    support: full
    details:
      - Says which steps a run takes that holds all its limits.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  upstream:
    description:
      - Name of the upstream with the canary.
    type: str
    required: true
    version_added: 0.1.0
  state:
    description:
      - V(promoted) takes the canary through O(steps) to the last one.
      - V(rolled_back) gives the canary nothing, at once. Load balancers that do not answer do not keep it from the others; the task fails
        after that.
    type: str
    choices: [promoted, rolled_back]
    version_added: 0.1.0
  percent:
    description:
      - Gives the canary that share for good, at once and unwatched, from 0 to 100. Mutually exclusive with O(state).
    type: int
    version_added: 0.1.0
  steps:
    description:
      - The shares in percent that O(state=promoted) goes through, each more than the one before.
    type: list
    elements: int
    default: [1, 5, 25, 50, 100]
    version_added: 0.1.0
  step_s:
    description:
      - Seconds that each step is watched at least.
    type: float
    default: 60
    version_added: 0.1.0
  step_timeout_s:
    description:
      - Seconds after which a step that got too few requests is taken back.
    type: float
    default: 900
    version_added: 0.1.0
  limits:
    description:
      - What the canary must keep in each step. An error is an answer with a status of 500 or above, or none.
      - What compares with the stable side uses its figures of the same step. Where it gets too few requests, as at 100 percent,
        those of the last time when it got enough; where there are none, it does not count.
    type: dict
    version_added: 0.1.0
    suboptions:
      min_requests:
        description:
          - Requests that the canary must get in each step. With fewer, only as many errors count as that many requests could not make good.
        type: int
        default: 100
      error_percent:
        description:
          - Errors in percent of its requests.
        type: float
        default: 1
      error_percent_above_stable:
        description:
          - Percent points of errors above those of the stable side.
        type: float
        default: 0.5
      p95_ms:
        description:
          - Milliseconds that 95 percent of its answers may take. Without it there is no such limit.
        type: float
      p95_times_stable:
        description:
          - How many times as long as on the stable side 95 percent of its answers may take. Up to 5 ms more are taken for chance.
        type: float
        default: 1.5
  lease_s:
    description:
      - Seconds after which a load balancer takes the canary back by itself when the run does not speak to it any more. At least
        three times as long as O(timeout_s) and a second.
    type: float
    default: 60
    version_added: 0.1.0
  progress_file:
    description:
      - File on the host that runs the module to which lines on the progress are added. The action sets it.
    type: path
    version_added: 0.1.0
seealso:
  - module: headroom.scale.nginx_config
  - module: headroom.scale.nginx_upstream
"""

EXAMPLES = r"""
- name: Roll a canary out, and back when it does not hold
  headroom.scale.nginx_canary:
    balancers:
      - {name: lb1, host: 192.0.2.11}
      - {name: lb2, host: 192.0.2.12}
    upstream: shop
    state: promoted
    step_s: 300
    limits: {min_requests: 1000, p95_ms: 400}
  delegate_to: localhost
  run_once: true

- name: Switch from blue to green, watched for two minutes
  headroom.scale.nginx_canary:
    balancers: "{{ balancers }}"
    upstream: shop
    state: promoted
    steps: [100]
    step_s: 120

- name: Switch back
  headroom.scale.nginx_canary:
    balancers: "{{ balancers }}"
    upstream: shop
    state: rolled_back
"""

RETURN = r"""
summary:
  description: What share the canary has, or would have.
  returned: success
  type: str
  sample: The canary of shop has 100 % at all 2 load balancers.
balancers:
  description: >-
    What each load balancer says at the end, with C(name), C(percent) (the share in force), C(lent) (whether a run has it on loan),
    C(stable) and C(canary), each with C(requests), C(errors), C(error_percent) and C(p95_ms) since the share last changed there.
  returned: success
  type: list
  elements: dict
  sample:
    - name: lb1
      percent: 100
      lent: false
      stable: {requests: 0, errors: 0, error_percent: 0.0, p95_ms: null}
      canary: {requests: 5210, errors: 2, error_percent: 0.04, p95_ms: 38.1}
watched:
  description: The steps that were watched, with C(percent), C(seconds), and what both sides did meanwhile at all load balancers together.
  returned: success, or when it was taken back
  type: list
  elements: dict
  sample:
    - percent: 5
      seconds: 60.2
      stable: {requests: 9702, errors: 3, error_percent: 0.03, p95_ms: 37.0}
      canary: {requests: 511, errors: 0, error_percent: 0.0, p95_ms: 36.2}
plan:
  description: What is done when all limits are kept, with C(action), C(object) and C(why).
  returned: always
  type: list
  elements: dict
  sample:
    - action: change
      object: upstream shop canary
      why: 0 -> 1 %, watched for 60 s and 100 requests
    - action: keep
      object: upstream shop canary
      why: 1 %
not_told:
  description: Load balancers that could not be told that the canary is taken back.
  returned: when a promotion failed
  type: list
  elements: str
  sample: []
errors:
  description: >-
    Why it failed, with C(code) and C(message). With the code V(rolled_back) C(cause) is V(breached) (C(breaches) has C(code),
    C(seen), C(limit) and C(message) of each limit), V(too_few_requests), V(no_answer), V(not_kept) or V(interrupted).
  type: list
  elements: dict
  returned: failure
  sample:
    - code: rolled_back
      cause: breached
      message: "Failed to promote the canary of shop at 5 %: 12 of 130 requests failed at the canary, and 1 % may. It is back
        to 0 % at lb1, lb2."
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._nginx.canary.converge import (  # noqa: E402
    canary_spec,
    converge,
)


def main():
    module = AnsibleModule(supports_check_mode=True, **canary_spec().to_kwargs())
    run(module, lambda module: converge(module.params, module.check_mode))


if __name__ == "__main__":
    main()
