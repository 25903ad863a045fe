#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drain, bring back or weigh a server on all running load balancers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_upstream
short_description: Drain, bring back or weigh a server on all running load balancers
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Acts on load balancers that M(headroom.scale.nginx_config) set up, while they run and without a reload. Run it once for all
    of them, from a host that their management addresses allow.
  - All are asked and told at once. When one does not answer, none is changed.
  - What it changes stays over a reload, until it is changed back, and until nginx is stopped. A weight also ends when another one
    is declared.
  - Without O(state) and O(weight) it only looks.
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.nginx_fleet
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  upstream:
    description:
      - Name of the upstream. Requires O(server).
    type: str
    version_added: 0.1.0
  server:
    description:
      - The server, as O(upstream) declares it, V(HOST:PORT). Requires O(upstream).
    type: str
    version_added: 0.1.0
  state:
    description:
      - V(drained) gives it no new requests, and waits until it has none in flight. The last server that takes requests is not drained.
      - V(active) gives it requests again, as a server that comes back.
      - It requires O(server).
    type: str
    choices: [active, drained]
    version_added: 0.1.0
  weight:
    description:
      - Its share of the requests beside the others, from 1 to 1000. V(0) is the declared one. Requires O(server).
    type: int
    version_added: 0.1.0
  wait_s:
    description:
      - Seconds that requests in flight at a drained server are waited for. After that the task fails, and the server stays drained.
    type: float
    default: 60
    version_added: 0.1.0
seealso:
  - module: headroom.scale.nginx_config
"""

EXAMPLES = r"""
- name: Take a server out, and wait until it is idle
  headroom.scale.nginx_upstream:
    balancers:
      - {name: lb1, host: 192.0.2.11}
      - {name: lb2, host: 192.0.2.12}
    upstream: shop
    server: 192.0.2.21:8080
    state: drained
    wait_s: 120
  delegate_to: localhost
  run_once: true

- name: Look at all upstreams
  headroom.scale.nginx_upstream:
    balancers:
      - {name: lb1, host: 192.0.2.11}
  register: seen
"""

RETURN = r"""
balancers:
  description: What each load balancer says at the end, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: lb1
    upstreams:
      description: >-
        Its upstreams, each with C(name), C(algorithm), C(canary) (see M(headroom.scale.nginx_canary)) and C(servers). A server has
        C(address), C(state) (V(closed), V(open) or V(half_open)), C(drained), C(backup), C(weight), C(declared_weight), C(active)
        (requests in flight), C(requests) and C(failures) (counts), C(response_ms) (a moving mean) and C(check) (what the last
        check saw).
      type: list
      elements: dict
      sample:
        - name: shop
          algorithm: least_conn
          servers:
            - {address: "192.0.2.21:8080", state: closed, drained: true, backup: false, weight: 3, declared_weight: 3, active: 0,
               requests: 5210, failures: 0, response_ms: 12.4, check: ok}
plan:
  description: What each load balancer is told, with C(action), C(object) and C(why).
  returned: always
  type: list
  elements: dict
  sample:
    - action: change
      object: lb1 upstream shop server 192.0.2.21:8080
      why: active -> drained
told:
  description: Load balancers that were changed before it failed.
  returned: failure
  type: list
  elements: str
  sample: [lb1]
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
  sample:
    - code: no_answer
      message: "Failed to ask lb2 on 192.0.2.12:8181: Connection refused. Bring it back, or leave it out."
      balancer: lb2
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._nginx.fleet.converge import (  # noqa: E402
    converge,
    upstream_spec,
)


def main():
    module = AnsibleModule(supports_check_mode=True, **upstream_spec().to_kwargs())
    run(module, lambda module: converge(module.params, module.check_mode))


if __name__ == "__main__":
    main()
