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
  - Looks at all nodes of a streaming replication cluster at the same time and gives each a verdict with reasons, and one to the cluster.
  - It runs once for the whole cluster, from a host with network access to all nodes, and takes about as long as the slowest node.
    Do not loop it over hosts.
  - It fails closed. What could not be read is not healthy.
  - The lag in bytes is measured against the write position that is read on the primary itself. The lag in seconds is V(0) for a replica that has
    replayed past that position, the time it needed when it gets there within a second, and otherwise the primary's clock minus the commit
    time of the last replayed transaction. So it does not grow on an idle primary. It is not known, instead of V(0), while
    a replica that seems level has no WAL receiver.
  - A login that is a member of C(pg_monitor) is enough. To compare nodes on different timelines, it must also be able to execute the function
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
      - RV(changed) is always V(false). With O(heartbeat=true) each run commits one transaction that writes a message to the WAL and touches no table.
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
          - A standby is recognised on its upstream by its slot, by this name as its C(application_name) or C(cluster_name), or by its address.
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
      - Look again for so many seconds until the requirement holds. With O(fail_on=degraded) that means until every node is healthy.
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
      - Commit a transaction on the primary and time until each replica shows it. The transaction writes a message to the WAL and
        needs no table. It does not wait for synchronous standbys.
    type: bool
    default: false
    version_added: 0.1.0
  consecutive:
    description:
      - The reported verdict of a node changes only after so many looks in a row that agree. A node that is looked at for the first time is
        reported as seen.
      - Above V(1) it delays bad news as well as good, and needs O(state_file) or O(wait_s). What the last look saw is in RV(nodes[].seen).
    type: int
    default: 1
    version_added: 0.1.0
  state_file:
    description:
      - File on the host that runs the module that remembers earlier looks, for O(consecutive) and for recovery conflicts since the last look.
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
      - V(unhealthy) fails the task when the requirement does not hold. This takes exactly one primary that is healthy or degraded, and
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
