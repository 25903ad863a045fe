#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Form a Redis or Valkey cluster and keep it as declared."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_cluster
short_description: Form a Redis or Valkey cluster and keep it as declared
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.redis
  - headroom.scale.redis.lock
  - headroom.scale.attributes
description:
  - Takes the declared nodes from whatever state they are in to one cluster. It introduces nodes to each other, assigns the
    slots of a new cluster, chooses primaries, places replicas, and takes out who is not declared.
  - It runs once for the whole cluster, from a host with network access to all nodes. Do not loop it over hosts.
  - Who owns slots stays a primary, and a replica whose place is good stays where it is. So a failover is no drift, and
    nothing is moved back.
  - New primaries get no slots from it; M(headroom.scale.redis_cluster_rebalance) gives them their share.
  - Slots that were left open are closed or carried on first. A slot without an owner goes to the node that alone has keys of
    it. Where the data does not decide, the module stops and shows both. A cluster that was left half formed, with no key in it,
    divides among its primaries what nobody owns.
  - Slots of a member that is not listed are left alone unless O(purge) is set. One that is open between it and a listed node is
    refused, as is a slot without an owner while such a member may have keys of it.
  - All of this is done under a lock in the cluster. While slots without an owner keep a cluster from serving the lock, they alone are
    seen to before it, as is what forms a new cluster.
  - A node with keys that is in no cluster is refused, as are two clusters with slots, a node that belongs to another cluster,
    and nodes of another engine or major version than the cluster.
attributes:
  check_mode:
    support: full
    details:
      - The plan and the diff are those of the run that follows.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  nodes:
    description:
      - All nodes of the cluster. The first ones become primaries where there is a choice.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the node, once in the list.
        type: str
        required: true
      host:
        description:
          - Host name or address of the server, as its fellow nodes reach it too. Defaults to the name.
        type: str
      port:
        description:
          - TCP port of the server.
        type: int
        default: 6379
      weight:
        description:
          - Share of the slots of a new cluster, beside the other weights. With V(0) the node becomes no primary.
        type: float
      zone:
        description:
          - Name of what fails together. A primary and its replicas are placed in different zones where that is possible.
            Defaults to the host.
        type: str
  replicas_per_primary:
    description:
      - Replicas that each primary has. The number of primaries follows from it and the number of nodes.
    type: int
    default: 1
    version_added: 0.1.0
  allow_same_host:
    description:
      - Whether a primary and its replica may share a host where the hosts do not suffice. Else that is refused.
    type: bool
    default: false
    version_added: 0.1.0
  purge:
    description:
      - Whether members that are not in O(nodes) are taken out. One with slots is emptied before, to the declared primaries.
      - Without it they stay, and a member that does not answer is forgotten only when another server has its address.
      - A member with slots must answer the module as the listed nodes do. Its replicas stay with it until it is empty.
    type: bool
    default: false
    version_added: 0.1.0
  sync_wait_s:
    description:
      - Seconds that new replicas are given to copy their primary's data.
    type: float
    default: 120
    version_added: 0.1.0
seealso:
  - module: headroom.scale.redis_cluster_rebalance
  - module: headroom.scale.redis_cluster_health
"""

EXAMPLES = r"""
- name: Six nodes on three hosts are one cluster
  headroom.scale.redis_cluster:
    nodes:
      - {name: a1, host: 10.77.0.31, port: 6379, zone: a}
      - {name: b1, host: 10.77.0.32, port: 6379, zone: b}
      - {name: c1, host: 10.77.0.33, port: 6379, zone: c}
      - {name: a2, host: 10.77.0.31, port: 6380, zone: a}
      - {name: b2, host: 10.77.0.32, port: 6380, zone: b}
      - {name: c2, host: 10.77.0.33, port: 6380, zone: c}
    replicas_per_primary: 1
    login_user: admin
    login_password: "{{ redis_admin_password }}"
    ca_certs: /etc/ssl/certs/internal-ca.pem
  run_once: true
  delegate_to: localhost

- name: Take out whoever is not listed any more
  headroom.scale.redis_cluster:
    nodes: "{{ cluster_nodes }}"
    purge: true
    login_password: "{{ redis_admin_password }}"
  run_once: true
  delegate_to: localhost
"""

RETURN = r"""
summary:
  description: What was done, in a sentence.
  returned: success
  type: str
  sample: 11 steps done, 0 slots healed.
plan:
  description: The steps, in order. The last one may be the one that failed.
  returned: success, and on failure after steps
  type: list
  elements: dict
  contains:
    action:
      description: One of V(meet), V(detach), V(assign), V(replicate), V(drain) and V(forget).
      type: str
      sample: replicate
    node:
      description: Name of the node, or the address of a member that is not declared.
      type: str
      sample: b2
    why:
      description: Why the step is needed.
      type: str
      sample: it is in nobody's place yet
    primary:
      description: The primary that the node is to replicate.
      type: str
      returned: for V(replicate)
      sample: a1
    slots:
      description: The slots, as ranges.
      type: str
      returned: for V(assign) and V(drain)
      sample: 0-5461
healed:
  description: Slots that were open or had no owner, with what was done about them (C(slots), C(action), C(source), C(target), C(why)).
  returned: success, and on failure after steps
  type: list
  elements: dict
  sample: []
nodes:
  description: The declared nodes as they are now, or in check mode will be, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the node.
      type: str
      sample: a1
    id:
      description: Id that the node has in the cluster.
      type: str
      sample: cb298a09f3609aee66a75cb71107ef5f706b4058
    host:
      description: Where its server was looked for.
      type: str
      sample: 10.77.0.31
    port:
      description: TCP port of its server.
      type: int
      sample: 6379
    role:
      description: Either V(primary) or V(replica).
      type: str
      sample: primary
    primary:
      description: Name of the primary of a replica.
      type: str
      sample:
    slots:
      description: The slots that it owns, as ranges.
      type: str
      sample: 0-5461
    slot_count:
      description: Number of slots that it owns.
      type: int
      sample: 5462
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
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.topology.converge import (
    cluster_spec,
    converge,
    parse_options,
)


def main():
    spec = cluster_spec().merge(connection_spec())
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    run(module, lambda module: converge(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
