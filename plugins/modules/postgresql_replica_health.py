#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the health of a replicated PostgreSQL cluster in one task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_replica_health
short_description: Judge the health of a replicated PostgreSQL cluster
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Looks at all nodes of a streaming replication cluster at the same time and gives each a verdict with reasons, and
    one to the cluster.
  - It runs once for the whole cluster, from a host with network access to all nodes, and takes about as long as the
    slowest node.
    Do not loop it over hosts.
  - It fails closed. What could not be read is not healthy.
  - The lag in bytes is measured against the write position that is read on the primary itself. The lag in seconds is
    V(0) for a replica that has
    replayed past that position, the time it needed when it gets there within a second, and otherwise the primary's
    clock minus the commit
    time of the last replayed transaction. So it does not grow on an idle primary. It is not known, instead of V(0),
    while
    a replica that seems level has no WAL receiver.
  - A login that is a member of C(pg_monitor) is enough. To compare nodes on different timelines, it must also be able
    to execute the function
    C(headroom.timeline_history(int)) of a superuser in O(login_db), or C(pg_read_binary_file).
  - PostgreSQL 13 and later.
extends_documentation_fragment:
  - headroom.scale.postgresql
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
      - C(changed) is always V(false). With O(heartbeat=true) each run commits one transaction that writes a message to
        the WAL and touches no table.
options:
  nodes:
    description:
      - All nodes of the cluster, the primary included. Which one is the primary is found out.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the node, once in the list.
          - A standby is recognised on its upstream by its slot, by this name as its C(application_name) or
            C(cluster_name), or by its address.
        type: str
        required: true
      host:
        description:
          - Host name or address of the server, or the directory of its Unix socket. Defaults to the name.
        type: str
      port:
        description:
          - TCP port of the server.
        type: int
        default: 5432
      pooler_host:
        description:
          - Host name or address of the connection pooler in front of the node. Defaults to the host.
        type: str
      pooler_port:
        description:
          - TCP port of the connection pooler. When given, a query through the pooler is part of the judgement.
        type: int
  max_lag_bytes:
    description:
      - A replica that has more bytes of WAL to replay is unhealthy.
    type: int
    default: 16777216
    version_added: 0.1.0
  max_lag_s:
    description:
      - A replica that is more seconds behind is unhealthy.
    type: float
    default: 30
    version_added: 0.1.0
  min_healthy_replicas:
    description:
      - Number of replicas that must be healthy or degraded for the cluster to be relied on. All of them when not given.
    type: int
    version_added: 0.1.0
  timeout_s:
    description:
      - Seconds that one node is given in total, from the name lookup to the last query.
    type: float
    default: 5
    version_added: 0.1.0
  wait_s:
    description:
      - Look again for so many seconds until the requirement holds. With O(fail_on=degraded) that means until every node
        is healthy.
      - The last look may take O(timeout_s) longer.
    type: float
    default: 0
    version_added: 0.1.0
  interval_s:
    description:
      - Seconds between two looks with O(wait_s).
    type: float
    default: 1
    version_added: 0.1.0
  heartbeat:
    description:
      - Commit a transaction on the primary and time until each replica shows it. The transaction writes a message to
        the WAL and
        needs no table. It does not wait for synchronous standbys.
    type: bool
    default: false
    version_added: 0.1.0
  consecutive:
    description:
      - The reported verdict of a node changes only after so many looks in a row that agree. A node that is looked at
        for the first time is
        reported as seen.
      - Above V(1) it delays bad news about replicas as well as good, and needs O(state_file) or O(wait_s). What the
        last look saw is in RV(nodes[].seen).
        Which node is the primary, and that there are two or none, is reported at once.
    type: int
    default: 1
    version_added: 0.1.0
  state_file:
    description:
      - File on the host that runs the module that remembers earlier looks, for O(consecutive) and for recovery
        conflicts since the last look.
    type: path
    version_added: 0.1.0
  prometheus_file:
    description:
      - File to write the judgement to in the Prometheus text format, for the textfile collector of node_exporter.
    type: path
    version_added: 0.1.0
  report_file:
    description:
      - File to write the judgement to as one HTML page with a drawing of the topology. It loads nothing from elsewhere.
    type: path
    version_added: 0.1.0
  fail_on:
    description:
      - V(unhealthy) fails the task when the requirement does not hold. This takes exactly one primary that is healthy
        or degraded, and
        O(min_healthy_replicas) replicas.
      - V(degraded) also fails when any node is not healthy.
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
  - module: community.postgresql.postgresql_ping
  - module: community.postgresql.postgresql_info
"""

EXAMPLES = r"""
- name: Judge the cluster once, from the controller
  headroom.scale.postgresql_replica_health:
    nodes:
      - name: pg1
        host: pg1.example.com
      - name: pg2
        host: pg2.example.com
        pooler_port: 6432
      - name: pg3
        host: pg3.example.com
    login_user: monitor
    login_password: "{{ monitor_password }}"
    ssl_mode: verify-full
    ca_cert: /etc/ssl/certs/internal-ca.pem
  delegate_to: localhost
  run_once: true
  register: health

- name: Show the verdict
  ansible.builtin.debug:
    msg: "{{ health.table }}"

- name: Wait until a restarted replica is back before the next one is restarted
  headroom.scale.postgresql_replica_health:
    nodes: "{{ cluster_nodes }}"
    wait_s: 300
    heartbeat: true
    fail_on: degraded

- name: Feed monitoring, and report a change only after three looks
  headroom.scale.postgresql_replica_health:
    nodes: "{{ cluster_nodes }}"
    max_lag_bytes: 67108864
    max_lag_s: 10
    min_healthy_replicas: 1
    consecutive: 3
    state_file: /var/lib/headroom/health.json
    prometheus_file: /var/lib/prometheus/node-exporter/headroom.prom
    report_file: /srv/www/health.html
    fail_on: never
"""

RETURN = r"""
healthy:
  description: Whether the requirement holds, that is, RV(verdict) is not V(unhealthy).
  returned: always
  type: bool
  sample: false
verdict:
  description: The verdict on the cluster, one of V(healthy), V(degraded) (it works and not every node is healthy) and
    V(unhealthy).
  returned: always
  type: str
  sample: unhealthy
summary:
  description: One sentence, and the number of nodes by verdict.
  returned: always
  type: dict
  sample:
    degraded: 0
    healthy: 3
    nodes: 4
    replicas_required: 3
    replicas_usable: 2
    text: >-
      The cluster is unhealthy: primary pg1 is healthy; 2 of 3 required replicas can be used; look at pg3
      (replay_paused).
    unhealthy: 1
    unreachable: 0
primary:
  description: Name of the primary. None when there is none, or more than one.
  returned: always
  type: str
  sample: pg1
nodes:
  description: The nodes, sorted by name. A value that is not known is none.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the node.
      type: str
      sample: pg3
    host:
      description: Where its server was looked for.
      type: str
      sample: 127.0.0.1
    port:
      description: TCP port of its server.
      type: int
      sample: 6103
    role:
      description: Either V(primary) or V(replica).
      type: str
      sample: replica
    verdict:
      description: One of V(healthy), V(degraded), V(unhealthy) and V(unreachable), after O(consecutive).
      type: str
      sample: unhealthy
    seen:
      description: The verdict that the last look alone would give.
      type: str
      sample: unhealthy
    reasons:
      description:
        - Why the node is not healthy, the worst first, each with a stable code, a sentence, the verdict it leads to,
          and where there are
          such figures the value and its limit.
        - >-
          Codes that make a node unreachable: V(dns_failure), V(connect_timeout), V(connection_refused),
          V(host_unreachable), V(no_response),
          V(frozen), V(tls_refused), V(authentication_failed), V(access_denied), V(database_missing), V(starting_up),
          V(shutting_down),
          V(too_many_connections), V(query_timeout), V(query_failed), V(connection_lost), V(connect_failed),
          V(not_observed).
        - >-
          Codes that make it unhealthy: V(facts_missing), V(heartbeat_missed), V(lag_bytes), V(lag_s), V(lag_unknown),
          V(pooler_unreachable),
          V(replay_paused), V(slot_lost), V(sync_standby_missing), V(system_identifier_mismatch), V(timeline_forked),
          V(timeline_unverified),
          V(two_primaries), V(wal_receiver_down).
        - >-
          Codes that make it degraded: V(conflicts), V(not_streaming), V(pooler_elsewhere), V(pooler_unverified),
          V(read_only), V(slot_missing),
          V(slot_unreserved), V(unclaimed_slot_lost), V(upstream_not_healthy), V(upstream_unknown),
          V(wal_receiver_silent).
      type: list
      elements: dict
      sample:
        - code: replay_paused
          limit:
          message: Replay is paused on pg3; pg_wal_replay_resume() ends that.
          severity: unhealthy
          value:
    in_read_pool:
      description: Whether the node is in RV(read_pool).
      type: bool
      sample: false
    lag_bytes:
      description: WAL that the primary had written and the node had not replayed, in bytes.
      type: int
      sample: 104
    lag_s:
      description: Time that the node is behind, in seconds.
      type: float
      sample: 0.827
    marker_s:
      description: Time in seconds from the commit of the heartbeat until the node showed it. Only with
        O(heartbeat=true).
      type: float
      sample: 0.0008
    received_lsn:
      description: WAL position up to which the node received WAL.
      type: str
      sample: 0/403F490
    replayed_lsn:
      description: WAL position up to which the node replayed WAL.
      type: str
      sample: 0/403F490
    written_lsn:
      description: WAL position up to which the node wrote WAL, if it is a primary.
      type: str
      sample: 0/403F418
    timeline:
      description: Timeline of the node.
      type: int
      sample: 1
    timeline_ok:
      description: Whether the node's timeline is the primary's, or one that can follow it.
      type: bool
      sample: true
    system_identifier:
      description: System identifier of the node's cluster.
      type: str
      sample: "7710486467547408656"
    server_version:
      description: Version of the server as a number.
      type: int
      sample: 150018
    replay_paused:
      description: Whether replay is paused, or is asked to pause.
      type: bool
      sample: true
    receiver:
      description: The WAL receiver, with its status, the age of its last message in seconds, and where it streams from.
        None without one.
      type: dict
      sample:
        message_age_s: 4.967
        sender_host: 127.0.0.1
        sender_port: 6101
        status: streaming
    upstream:
      description: Name of the node that this one streams from, or is told to stream from.
      type: str
      sample: pg1
    sync_state:
      description: V(sync), V(quorum), V(potential) or V(async), as the upstream shows it.
      type: str
      sample: async
    slot:
      description: The replication slot of this node on its upstream.
      type: dict
      sample:
        active: true
        inactive_s:
        name: pg3
        retained_bytes: 0
        type: physical
        wal_status: reserved
    slots:
      description: The replication slots that the node holds for others.
      type: list
      elements: dict
      sample: []
    standbys:
      description: What streams from the node.
      type: list
      elements: dict
      sample:
        - application_name: pg4
          state: streaming
          sync_state: async
    synchronous_standby_names:
      description: The setting of that name.
      type: str
      sample: ""
    read_only:
      description: Whether C(default_transaction_read_only) is on for everybody.
      type: bool
      sample: false
    conflicts:
      description: Queries cancelled by replay, in total and since the last look that O(state_file) remembers.
      type: dict
      sample:
        new: 0
        total: 0
    data_bytes:
      description: Size of the databases and the WAL in bytes, where the login may know and it took less than a second.
      type: int
      sample: 56205677
    pooler:
      description: Where the pooler was looked for, and the code of what was wrong. None when none is declared.
      type: dict
      sample:
        fault: connection_refused
        where: 127.0.0.1:6197
    same_server_as:
      description: Name of another node that is the very same server. It counts once for O(min_healthy_replicas).
      type: str
      sample:
read_pool:
  description: Names of the replicas that reads may be sent to, sorted. They are healthy or degraded. Empty without
    exactly one primary.
  returned: always
  type: list
  elements: str
  sample: [pg2, pg4]
failover_candidates:
  description:
    - Names of the replicas that could be promoted, the best first. Synchronous ones lead, then those that received
      most.
    - A replica that is not provably on the way of the primary's timeline is left out, as is every one when there are
      two primaries.
  returned: always
  type: list
  elements: str
  sample: [pg2, pg4, pg3]
topology:
  description: Who streams from whom, as trees of name and children.
  returned: always
  type: list
  elements: dict
  sample:
    - name: pg1
      children:
        - name: pg2
          children:
            - name: pg4
              children: []
        - name: pg3
          children: []
errors:
  description: What is wrong with the cluster as a whole (V(no_primary), V(two_primaries), V(candidates_unverified)),
    led by the failure when the task failed.
  returned: always
  type: list
  elements: dict
  sample:
    - code: two_primaries
      message: pg1 and pg3 are both primaries; fence all but one.
      nodes: [pg1, pg3]
limits:
  description: The limits that were applied.
  returned: always
  type: dict
  sample:
    max_lag_bytes: 16777216
    max_lag_s: 30.0
    min_healthy_replicas: 3
table:
  description: The judgement as lines to show.
  returned: always
  type: list
  elements: str
  sample:
    - "The cluster is healthy: primary pg1 is healthy; 3 of 3 required replicas can be used."
    - ""
    - "NODE  VERDICT  ROLE     LAG           TL  RECEIVER   UPSTREAM  WHY"
    - "pg1   healthy  primary  -             1   -          -         -"
    - "pg2   healthy  replica  0 B / 0.00 s  1   streaming  pg1       -"
    - "pg3   healthy  replica  0 B / 0.00 s  1   streaming  pg1       -"
    - "pg4   healthy  replica  0 B / 0.00 s  1   streaming  pg2       -"
    - ""
    - "read pool: pg2, pg3, pg4"
    - "failover candidates, best first: pg2, pg3, pg4"
observations:
  description: Number of looks that were taken.
  returned: always
  type: int
  sample: 1
duration_s:
  description: Time that the looks took, in seconds.
  returned: always
  type: float
  sample: 0.235
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.check import (  # noqa: E402
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
