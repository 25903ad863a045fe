#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the health of a Redis or Valkey cluster in one task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_cluster_health
short_description: Judge the health of a Redis or Valkey cluster
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Looks at all nodes of a cluster at the same time and gives each a verdict with reasons, and one to the cluster.
  - It runs once for the whole cluster, from a host with network access to all nodes, and takes about as long as the
    slowest node. Do not loop it over hosts.
  - It fails closed. What could not be read is not healthy.
  - The lag in bytes is measured against the offset that is read on the primary itself. The lag in seconds is V(0) for a
    replica that has processed past that offset, the time it needed when it gets there within a second, and otherwise
    the longest of that second, the time since its primary's last word, and the time since the primary heard from it.
    So it does not grow on an idle primary. Without a replication link it is the time since the link was lost.
  - A login with the rights C(+info +cluster|nodes +cluster|info) is enough. What C(+config|get), C(+slowlog|get) and
    C(+latency|latest) would show is not judged without them, and RV(nodes[].not_read) says so.
  - Redis 7.0 and later, Valkey 7.2 and later.
extends_documentation_fragment:
  - headroom.scale.redis
  - headroom.scale.attributes
attributes:
  check_mode:
    support: full
    details:
      - Looks and judges as usual, and writes no files.
  diff_mode:
    support: N/A
    details:
      - Nothing is changed on the nodes.
  idempotent:
    support: full
    details:
      - C(changed) is always V(false).
options:
  nodes:
    description:
      - All nodes of the cluster. Which ones are primaries is found out.
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
          - Host name or address of the node. Defaults to the name.
        type: str
      port:
        description:
          - TCP port of the node.
        type: int
        default: 6379
  max_lag_bytes:
    description:
      - A replica that has more bytes of its primary's writes to process is unhealthy.
    type: int
    default: 16777216
    version_added: 0.1.0
  max_lag_s:
    description:
      - A replica that is more seconds behind is unhealthy.
    type: float
    default: 10
    version_added: 0.1.0
  max_memory_ratio:
    description:
      - A node that uses a larger share of its C(maxmemory) is degraded, and unhealthy when it refuses writes for it.
      - Nodes without C(maxmemory) are not judged by it. Give V(1) for a cache that is full and evicts.
    type: float
    default: 0.9
    version_added: 0.1.0
  max_fragmentation_ratio:
    description:
      - A node that uses at least 64 MiB, and whose resident memory is more than so many times that, is degraded.
    type: float
    default: 1.5
    version_added: 0.1.0
  max_evictions:
    description:
      - A node that evicted more keys since the last look that O(state_file) remembers is degraded.
    type: int
    default: 0
    version_added: 0.1.0
  max_slowlog_growth:
    description:
      - A node that logged more slow commands since the last look that O(state_file) remembers is degraded.
    type: int
    default: 10
    version_added: 0.1.0
  min_hit_ratio:
    description:
      - A node that had a smaller share of the keys that were asked for is degraded. It is judged from 100 lookups on,
        since the last look that O(state_file) remembers or else since the start of the server.
      - Not judged when not given.
    type: float
    version_added: 0.1.0
  min_replicas_per_primary:
    description:
      - Number of replicas that each primary with slots must have healthy or degraded for the cluster to be relied on.
    type: int
    default: 1
    version_added: 0.1.0
  allow_same_host:
    description:
      - Whether a primary and its replica may be on one host. Otherwise such a replica is degraded.
    type: bool
    default: false
    version_added: 0.1.0
  wait_s:
    description:
      - Look again for so many seconds until the requirement holds. With O(fail_on=degraded) that means until every node
        is healthy.
      - The last look may take O(timeout_s) and two seconds longer.
    type: float
    default: 0
    version_added: 0.1.0
  interval_s:
    description:
      - Seconds between two looks with O(wait_s).
    type: float
    default: 1
    version_added: 0.1.0
  consecutive:
    description:
      - The reported verdict of a node changes only after so many looks in a row that agree. A node that is looked at
        for the first time is reported as seen.
      - Above V(1) it delays bad news about nodes as well as good, and needs O(state_file) or O(wait_s). What the last
        look saw is in RV(nodes[].seen). Who owns which slots, and slots without an owner, are reported at once.
    type: int
    default: 1
    version_added: 0.1.0
  state_file:
    description:
      - File on the host that runs the module that remembers earlier looks, for O(consecutive), O(max_evictions),
        O(max_slowlog_growth) and O(min_hit_ratio).
    type: path
    version_added: 0.1.0
  prometheus_file:
    description:
      - File to write the judgement to in the Prometheus text format, for the textfile collector of node_exporter.
    type: path
    version_added: 0.1.0
  report_file:
    description:
      - File to write the judgement to as one HTML page with a drawing of the slots and the shards. It loads nothing
        from elsewhere.
    type: path
    version_added: 0.1.0
  fail_on:
    description:
      - V(unhealthy) fails the task when the requirement does not hold. This takes all slots covered by primaries that are
        healthy or degraded, and O(min_replicas_per_primary) replicas for each.
      - V(degraded) also fails when any node is not healthy, or anything is wrong with the cluster as a whole.
      - V(never) leaves it to RV(healthy).
      - The full result is returned in any case.
    type: str
    choices:
      - never
      - unhealthy
      - degraded
    default: unhealthy
    version_added: 0.1.0
seealso:
  - module: community.general.redis_info
"""

EXAMPLES = r"""
- name: Judge the cluster once, from the controller
  headroom.scale.redis_cluster_health:
    nodes:
      - name: rc1
        host: rc1.example.com
      - name: rc2
        host: rc2.example.com
      - name: rc3
        host: rc3.example.com
      - name: rc4
        host: rc4.example.com
      - name: rc5
        host: rc5.example.com
      - name: rc6
        host: rc6.example.com
    login_user: monitor
    login_password: "{{ monitor_password }}"
    ca_certs: /etc/ssl/certs/internal-ca.pem
  delegate_to: localhost
  run_once: true
  register: health

- name: Show the verdict
  ansible.builtin.debug:
    msg: "{{ health.table }}"

- name: Wait until a restarted node is back before the next one is restarted
  headroom.scale.redis_cluster_health:
    nodes: "{{ cluster_nodes }}"
    wait_s: 300
    fail_on: degraded

- name: Feed monitoring, and report a change of a node only after three looks
  headroom.scale.redis_cluster_health:
    nodes: "{{ cluster_nodes }}"
    max_lag_bytes: 1048576
    max_evictions: 1000
    min_hit_ratio: 0.8
    consecutive: 3
    state_file: /var/lib/headroom/redis.json
    prometheus_file: /var/lib/prometheus/node-exporter/headroom_redis.prom
    report_file: /srv/www/redis.html
    fail_on: never
"""

RETURN = r"""
healthy:
  description: Whether the requirement holds, that is, RV(verdict) is not V(unhealthy).
  returned: always
  type: bool
  sample: false
verdict:
  description: The verdict on the cluster, one of V(healthy), V(degraded) (it works and not everything is healthy) and
    V(unhealthy).
  returned: always
  type: str
  sample: unhealthy
summary:
  description: One sentence, the number of nodes by verdict, of shards and of replicas.
  returned: always
  type: dict
  sample:
    degraded: 0
    healthy: 5
    nodes: 6
    replicas_required: 3
    replicas_usable: 2
    shards: 3
    text: >-
      The cluster is unhealthy: 16384 of 16384 slots are served; 3 of 3 primaries and 2 of 3 replicas can be used; look
      at rc4 (connection_refused, marked_failed).
    unhealthy: 0
    unreachable: 1
nodes:
  description: The nodes, sorted by name. A value that is not known is none.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the node.
      type: str
      sample: rc4
    host:
      description: Where the node was looked for.
      type: str
      sample: 127.0.0.1
    port:
      description: TCP port of the node.
      type: int
      sample: 7104
    id:
      description: Id of the node in the cluster.
      type: str
      sample: b471d363a47982598e337a1fbe07faa3e9827ad4
    role:
      description: Either V(primary) or V(replica).
      type: str
      sample: replica
    primary:
      description: Name of a replica's primary.
      type: str
      sample: rc2
    verdict:
      description: One of V(healthy), V(degraded), V(unhealthy) and V(unreachable), after O(consecutive).
      type: str
      sample: unreachable
    seen:
      description: The verdict that the last look alone would give.
      type: str
      sample: unreachable
    reasons:
      description:
        - Why the node is not healthy, the worst first, each with a stable code, a sentence, the verdict it leads to,
          and where there are such figures the value and its limit.
        - >-
          Codes that make a node unreachable: V(dns_failure), V(connection_refused), V(no_response), V(tls_refused),
          V(authentication_failed), V(connection_lost), V(connect_failed), V(not_observed).
        - >-
          Codes that make it unhealthy: V(aof_write_failed), V(cluster_disabled), V(cluster_state), V(facts_missing),
          V(full_sync), V(lag_bytes), V(lag_s), V(lag_unknown), V(loading), V(marked_failed), V(not_a_member),
          V(replica_link_down), and where writes are refused V(memory_ratio) and V(rdb_save_failed).
        - >-
          Codes that make it degraded: V(aof_rewrite_failed), V(backlog_exceeded), V(bus_link_down), V(config_drift),
          V(evictions), V(fragmentation_ratio), V(hit_ratio), V(member_unknown), V(memory_ratio), V(no_slots),
          V(owners_disagree), V(rdb_save_failed), V(same_host), V(slots_open), V(slowlog_growth), V(suspected),
          V(version_drift).
      type: list
      elements: dict
      sample:
        - code: connection_refused
          limit:
          message: "Failed to reach rc4 on 127.0.0.1:7104: nothing listens there. Check port, and that the server runs."
          severity: unreachable
          value:
    in_read_pool:
      description: Whether the node is in RV(read_pool).
      type: bool
      sample: false
    slots_count:
      description: Number of slots that the node owns.
      type: int
      sample: 0
    offset:
      description: Replication offset that the node has written, or processed if it is a replica.
      type: int
      sample: 938
    lag_bytes:
      description: What the primary had written and the node had not processed, in bytes.
      type: int
      sample: 0
    lag_s:
      description: Time that the node is behind, in seconds.
      type: float
      sample: 0.0
    link_up:
      description: Whether a replica has its replication link.
      type: bool
      sample: true
    keys:
      description: Number of keys.
      type: int
      sample: 1200
    clients:
      description: Number of connected clients.
      type: int
      sample: 1
    ops_per_s:
      description: Commands per second.
      type: int
      sample: 1
    used_bytes:
      description: Memory that the node uses, in bytes.
      type: int
      sample: 1932080
    max_bytes:
      description: Its C(maxmemory) in bytes, V(0) for none.
      type: int
      sample: 0
    memory_ratio:
      description: Share of C(maxmemory) that is used.
      type: float
      sample: 0.412
    fragmentation_ratio:
      description: Resident memory divided by used memory.
      type: float
      sample: 1.08
    evictions:
      description: Keys evicted, in total and since the last look that O(state_file) remembers.
      type: dict
      sample:
        new: 0
        total: 0
    hit_ratio:
      description: Share of lookups that found their key, since the last look that O(state_file) remembers or the start.
      type: float
      sample: 0.937
    slowlog_new:
      description: Slow commands logged since the last look that O(state_file) remembers.
      type: int
      sample: 0
    latency_ms:
      description: The worst time of each event that the latency monitor saw, in milliseconds.
      type: dict
      sample: {}
    full_syncs:
      description: Full synchronisations that the node served.
      type: int
      sample: 1
    engine:
      description: Either V(redis) or V(valkey).
      type: str
      sample: redis
    version:
      description: Version of the server.
      type: str
      sample: 7.0.15
    uptime_s:
      description: Time since the server started, in seconds.
      type: int
      sample: 677
    not_read:
      description: Commands whose answer is not known, with the reason. Their facts are not judged.
      type: dict
      sample:
        SLOWLOG GET: NOPERM this user has no permissions to run the 'slowlog|get' command
shards:
  description: Primaries that own slots, with their replicas, in the order of their first slots. A member that is not
    declared goes by its address.
  returned: always
  type: list
  elements: dict
  sample:
    - primary: rc1
      replicas: [rc6]
      slots: [0-5460]
      slots_count: 5461
      usable_replicas: [rc6]
      verdict: healthy
primaries:
  description: Names of the primaries that own slots, sorted.
  returned: always
  type: list
  elements: str
  sample: [rc1, rc2, rc3]
read_pool:
  description: Names of the primaries and replicas that reads may be sent to, sorted. They are healthy or degraded.
  returned: always
  type: list
  elements: str
  sample: [rc1, rc2, rc3, rc5, rc6]
failover_candidates:
  description: For each primary the names of the replicas that could take over, the one with the largest offset first.
    A replica that is loading or copying its data is left out.
  returned: always
  type: dict
  sample:
    rc1: [rc6]
    rc2: []
    rc3: [rc5]
coverage:
  description: Number of slots that have an owner, and one that can be used, and the slots that have none (V(uncovered)),
    several (V(disputed)) and are on the move (V(open)).
  returned: always
  type: dict
  sample:
    covered: 16384
    disputed: []
    open: []
    served: 16384
    slots: 16384
    uncovered: []
errors:
  description:
    - What is wrong with the cluster as a whole, led by the failure when the task failed.
    - >-
      Codes that make it unhealthy: V(no_view), V(primary_unusable), V(replicas_missing), V(slots_disputed),
      V(slots_uncovered).
    - "Codes that make it degraded: V(epoch_collision), V(undeclared_member)."
  returned: always
  type: list
  elements: dict
  sample:
    - code: replicas_missing
      limit: 1
      message: The primary rc2 has 0 of 1 required replicas that can be used; mend or add one.
      severity: unhealthy
      value: 0
limits:
  description: The limits that were applied.
  returned: always
  type: dict
  sample:
    allow_same_host: false
    max_evictions: 0
    max_fragmentation_ratio: 1.5
    max_lag_bytes: 16777216
    max_lag_s: 10.0
    max_memory_ratio: 0.9
    max_slowlog_growth: 10
    min_hit_ratio:
    min_replicas_per_primary: 1
table:
  description: The judgement as lines to show.
  returned: always
  type: list
  elements: str
  sample:
    - "The cluster is healthy: 16384 of 16384 slots are served; 3 of 3 primaries and 3 of 3 replicas can be used."
    - ""
    - "NODE  VERDICT  ROLE     OF   SLOTS  LAG           MEMORY   WHY"
    - "rc1   healthy  primary  -    5461   -             1.8 MiB  -"
    - "rc2   healthy  primary  -    5462   -             1.8 MiB  -"
    - "rc3   healthy  primary  -    5461   -             1.8 MiB  -"
    - "rc4   healthy  replica  rc2  -      0 B / 0.00 s  1.8 MiB  -"
    - "rc5   healthy  replica  rc3  -      0 B / 0.00 s  1.8 MiB  -"
    - "rc6   healthy  replica  rc1  -      0 B / 0.00 s  1.8 MiB  -"
    - ""
    - "read pool: rc1, rc2, rc3, rc4, rc5, rc6"
    - "failover candidates of rc1, best first: rc6"
    - "failover candidates of rc2, best first: rc4"
    - "failover candidates of rc3, best first: rc5"
observations:
  description: Number of looks that were taken.
  returned: always
  type: int
  sample: 1
duration_s:
  description: Time that the looks took, in seconds.
  returned: always
  type: float
  sample: 0.069
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import (  # noqa: E402
    connection_spec,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.check import (  # noqa: E402
    check,
    health_spec,
    parse_options,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **health_spec().merge(connection_spec()).to_kwargs())
    run(module, lambda module: check(parse_options(module.params), write=not module.check_mode))


if __name__ == "__main__":
    main()
