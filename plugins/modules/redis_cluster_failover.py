#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand a shard of a Redis or Valkey cluster over to its most caught-up replica."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_cluster_failover
short_description: Hand a shard of a Redis or Valkey cluster over to its most caught-up replica
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.redis
  - headroom.scale.redis.nodes
  - headroom.scale.redis.lock
  - headroom.scale.attributes
description:
  - Makes a node a replica if it is a primary, before its server is restarted or its host is taken away.
  - The replica that has most of the primary's replication stream takes over. The primary holds its clients back until that
    replica has everything, so no acknowledged write is lost.
  - The end is proven. Both have changed their roles, the former primary replicates the new one, the new one has at least
    the stream that the former one had, and all nodes agree.
  - A node that is a replica already, or that owns no slot, is left alone.
  - While slots of the shard are on the move it refuses, since a replica knows nothing of the move and would not find the keys
    that have moved. It holds the lock that M(headroom.scale.redis_cluster) and M(headroom.scale.redis_cluster_rebalance) hold.
attributes:
  check_mode:
    support: full
    details:
      - Names the replica that would take over.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  away_from:
    description:
      - Name of the node that is to be no primary.
    type: str
    required: true
    version_added: 0.1.0
  wait_s:
    description:
      - Seconds to wait for a replica that is caught up, and again for the change of the roles.
    type: float
    default: 30
    version_added: 0.1.0
seealso:
  - module: headroom.scale.redis_cluster_health
"""

EXAMPLES = r"""
- name: Nothing depends on this node while it restarts
  headroom.scale.redis_cluster_failover:
    nodes: "{{ cluster_nodes }}"
    away_from: a1
    login_user: admin
    login_password: "{{ redis_admin_password }}"
    ca_certs: /etc/ssl/certs/internal-ca.pem
  delegate_to: localhost
"""

RETURN = r"""
primary:
  description: Name of the shard's primary now, or in check mode then.
  returned: success
  type: str
  sample: b2
summary:
  description: What was done, in a sentence.
  returned: success
  type: str
  sample: b2 took over from a1 in 0.412 s.
took_s:
  description: Seconds from the command until all nodes agreed. None when nothing was done.
  returned: success
  type: float
  sample: 0.412
ahead_bytes:
  description: Replication stream that the new primary has beyond what the former one had when it began.
  returned: success
  type: int
  sample: 126
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
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.failover import (
    fail_over,
    failover_spec,
    parse_options,
)


def main():
    spec = failover_spec().merge(connection_spec())
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    run(module, lambda module: fail_over(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
