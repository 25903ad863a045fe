#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Acquire, extend and release a lock on a Redis or Valkey cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_lock
short_description: Acquire, extend and release a lock on a Redis or Valkey cluster
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.redis
  - headroom.scale.redis.nodes
  - headroom.scale.attributes
description:
  - Keeps two job runs from operating one thing at the same time. M(headroom.scale.redis_cluster),
    M(headroom.scale.redis_cluster_rebalance) and M(headroom.scale.redis_cluster_failover) hold such a lock on their cluster by
    themselves.
  - The owner is who knows the token. Scripts on the server check it, so nobody frees or extends another one's lock.
  - Each new owner gets a fencing number that is greater than all before. It is the last one plus 1, or the milliseconds of the
    server's clock since 1970 where these are more, so that it grows too where a server has lost the last one. Hand it to what the
    lock guards, and let that refuse smaller ones. This alone makes a late owner harmless.
notes:
  - A lock of this kind cannot promise that there is one owner at each moment. An owner that was held up beyond O(ttl_s) does
    not know that it lost the lock. Replication is asynchronous, so a failover may forget a lock that was just acquired, and
    a server that evicts keys may drop it. Use it to keep honest runs apart, and the fencing number where safety counts.
  - Where the last fencing number was lost in such a failover or was evicted, the clocks of the servers alone decide that the
    next one is greater. Keep them right.
attributes:
  check_mode:
    support: full
    details:
      - Says whether the lock would be acquired, extended or released.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - Acquiring a lock with the token that owns it extends it and is no change. Without O(token) each run is a new owner.
options:
  name:
    description:
      - Name of the lock.
    type: str
    required: true
    version_added: 0.1.0
  state:
    description:
      - V(acquired) takes the lock, or extends it for the owner. V(extended) gives the owner the full time again and fails for
        others. V(released) frees it.
    type: str
    choices: [acquired, extended, released]
    default: acquired
    version_added: 0.1.0
  token:
    description:
      - Token of the owner. One is made for O(state=acquired) when it is not given. Required for the other states.
    type: str
    version_added: 0.1.0
  ttl_s:
    description:
      - Seconds after which the lock is free unless it is extended.
    type: float
    default: 60
    version_added: 0.1.0
  wait_s:
    description:
      - Seconds to wait for a lock that another one has, with growing, jittered pauses.
    type: float
    default: 0
    version_added: 0.1.0
"""

EXAMPLES = r"""
- name: Only one run at a time from here
  headroom.scale.redis_lock:
    nodes: "{{ cluster_nodes }}"
    name: nightly-load
    ttl_s: 600
    wait_s: 120
    login_password: "{{ redis_password }}"
  register: lock
  delegate_to: localhost
  no_log: true

- name: Another run may start
  headroom.scale.redis_lock:
    nodes: "{{ cluster_nodes }}"
    name: nightly-load
    state: released
    token: "{{ lock.token }}"
    login_password: "{{ redis_password }}"
  delegate_to: localhost
"""

RETURN = r"""
token:
  description: Token of the owner.
  returned: success
  type: str
  sample: 0e3c6a4b8d7c4f3aa8a1b8f0c9a4d512
fence:
  description: Number of this ownership. It grows with each new owner.
  returned: success, for O(state=acquired) and O(state=extended), in check mode for who owns it already
  type: int
  sample: 1763841442123
summary:
  description: What was done, in a sentence.
  returned: success
  type: str
  sample: Lock nightly-load is acquired for 600 s.
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
  sample:
    - code: connection_refused
      message: "Failed to reach redis1 on 10.77.0.31:6379: nothing listens there. Check port, and that the server runs."
      node: redis1
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.lock import (
    apply,
    lock_spec,
    parse_options,
)


def main():
    spec = lock_spec().merge(connection_spec())
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    run(module, lambda module: apply(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
