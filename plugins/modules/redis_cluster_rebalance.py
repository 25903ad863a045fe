#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move slots between the primaries of a Redis or Valkey cluster until each has its share."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_cluster_rebalance
short_description: Move slots of a Redis or Valkey cluster until each primary has its share
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.redis
  - headroom.scale.redis.lock
  - headroom.scale.attributes
description:
  - Gives every primary its share of slots, keys, bytes or operations, with the least movement, while clients work.
  - It runs once for the whole cluster, from a host with network access to all nodes. Do not loop it over hosts.
  - Slots that another run left open are closed or carried on first, in the direction that they had. Where the data does not
    say whose a slot is, the module stops and shows both. While slots without an owner keep the cluster from serving its lock,
    they alone are seen to before the lock is taken.
  - What is to move and what has moved is kept in a journal. A run that was killed at any point is taken up by the next one,
    and O(state=reverted) brings the slots of the last run back.
  - A primary that gives its last slot away turns itself into a replica of the one that took it, unless
    C(cluster-allow-replica-migration) is off.
  - Where both nodes of a pair have the atomic slot migration of Valkey 9 or Redis 8.4, the servers move the slots themselves, and
    else C(SETSLOT) and C(MIGRATE) do, see O(mechanism).
  - Clients that send a key's commands elsewhere when told to (C(ASK), C(MOVED)) notice nothing. Some lose their way when C(ASK)
    names a node that they do not know yet; the Python library redis fails such a command with C(AttributeError) (seen with 8.1.0).
    They know a node from when it has its first slot and they have read the slots again.
  - Many slots are in flight, and pairs of nodes that do not share one work side by side. A key is always on one side for
    clients, which are sent to the other by redirections.
attributes:
  check_mode:
    support: full
    details:
      - The plan and the diff are those of the run that follows, if the load stays the same.
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    description: Whether parts of it run on the controller.
    support: full
    details:
      - The action shows how far the move is and runs the module again until it has finished.
options:
  nodes:
    description:
      - All nodes of the cluster, replicas too. A member that is not listed is refused, unless it is dead and has no slots.
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
          - Share of the primary beside the other weights. V(0) empties it. Without it, that of one of the primary's
            replicas counts, since the two change places in a failover, and else V(1).
        type: float
  state:
    description:
      - V(balanced) gives every primary its share.
      - V(reverted) brings back what the last run of the journal moved, as far as the slots have not gone elsewhere since.
    type: str
    choices: [balanced, reverted]
    default: balanced
    version_added: 0.1.0
  by:
    description:
      - What the weights divide. V(bytes) are estimated from a few keys of each slot.
      - V(operations) are watched for O(sample_s). Where all servers count the processor time that each slot's commands take
        (C(CLUSTER SLOT-STATS) of Valkey 8 with C(cluster-slot-stats-enabled), or of Redis 8.2), it is that; else the commands of each
        slot, as C(MONITOR) shows them, which slows the servers down meanwhile. A plan that was begun is finished before the load is
        looked at again.
    type: str
    choices: [slots, keys, bytes, operations]
    default: slots
    version_added: 0.1.0
  sample_s:
    description:
      - Seconds for which O(by=operations) watches; a server that gets more than 50000 commands is watched for less.
    type: float
    default: 5
    version_added: 0.1.0
  threshold:
    description:
      - Nothing begins to move while every primary is within this fraction of its share. With O(by=slots) a move that was
        begun is finished, however little is left of it.
      - Defaults to V(0.02), and to V(0.1) for O(by=operations), of which less is known.
    type: float
    version_added: 0.1.0
  max_moves:
    description:
      - Number of slots that a run moves at most. Excludes O(state=reverted).
    type: int
    version_added: 0.1.0
  mechanism:
    description:
      - How slots move. V(auto) asks the servers and moves them atomically where both nodes of a pair can, and else the V(classic)
        way with C(SETSLOT) and C(MIGRATE). V(atomic) fails where a server cannot.
      - The atomic migration is a job of the servers, for at most 256 MiB of data, one at a time on each node. A job that
        fails three times, or comes to a standstill and is cancelled, leaves its slots to the classic way, with the reason in
        RV(fallbacks); not so with V(atomic), which fails then.
      - What a run that was killed has left on the servers goes on without it. The next run waits for it, or cancels it when it stands
        still, before it does anything else.
      - O(max_latency_ms) and O(max_rate_bytes_s) hold back the next job, and not one that runs. With O(max_rate_bytes_s) a job carries
        what may move in a second, or one slot. O(max_keys_per_migrate) is for the classic way alone.
      - The nodes of Valkey log in to each other as C(primaryuser), which needs the rules
        C(~* +@write +select +cluster|syncslots). A job forks the source, which needs memory for what is written meanwhile.
      - The migration of Redis 8.4 follows its documentation; the tests of this collection run that of Valkey 9 on real servers, and
        that of Redis 8.4 on none.
    type: str
    choices: [auto, atomic, classic]
    default: auto
    version_added: 0.1.0
  max_slots_per_source:
    description:
      - Slots that one node gives away at the same time. Defaults to 96 the classic way; an atomic job has as many as its data allow.
    type: int
    version_added: 0.1.0
  max_slots_per_target:
    description:
      - Slots that one node takes in at the same time. Defaults to 96 the classic way; an atomic job has as many as its data allow.
    type: int
    version_added: 0.1.0
  max_keys_per_migrate:
    description:
      - Keys that one command moves. Other clients of the two nodes wait for as long as it takes. It is given up after a quarter of the
        source's C(cluster-node-timeout), before the others take the source for failed, so a single key must not take longer.
    type: int
    default: 100
    version_added: 0.1.0
  max_rate_bytes_s:
    description:
      - Bytes that move in a second, over the whole cluster. The time of a pause for O(max_latency_ms) allows nothing more
        afterwards. V(0) is no limit.
    type: int
    default: 0
    version_added: 0.1.0
  max_latency_ms:
    description:
      - Nothing moves while a C(PING) beside the moves takes longer than so many milliseconds or is not answered. V(0) is no limit.
    type: float
    default: 0
    version_added: 0.1.0
  latency_patience_s:
    description:
      - Seconds that the moves may be held back by O(max_latency_ms) until the run fails.
    type: float
    default: 60
    version_added: 0.1.0
  max_memory_ratio:
    description:
      - A plan is refused that would fill a node's C(maxmemory) beyond this fraction, or where the node has none, the memory of
        its host, with all nodes of O(nodes) that have the same C(host). What moves is estimated from some keys of each slot.
    type: float
    default: 0.9
    version_added: 0.1.0
  journal:
    description:
      - File on the host that runs the module that keeps the plan and what has been done.
      - Defaults to C(~/.local/state/headroom/redis_cluster-NAME.journal), where NAME is O(cluster). Clusters that are operated from
        one host need names or journals of their own. A run is refused that would replace the journal of another cluster's run
        that has not ended; one that has ended is kept beside it, with C(.former) at its end.
    type: path
    version_added: 0.1.0
  lock_token:
    description:
      - Token of the lock's owner, for a run that is made of several calls. The action sets it.
    type: str
    version_added: 0.1.0
  slice_s:
    description:
      - Return after so many seconds with RV(finished=false), and keep the lock for the next call. V(0) goes on to the end.
        The action sets it.
    type: float
    default: 0
    version_added: 0.1.0
seealso:
  - module: headroom.scale.redis_cluster
  - module: headroom.scale.redis_lock
"""

EXAMPLES = r"""
- name: Every primary has its share of the bytes
  headroom.scale.redis_cluster_rebalance:
    nodes: "{{ cluster_nodes }}"
    by: bytes
    max_latency_ms: 20
    login_user: admin
    login_password: "{{ redis_admin_password }}"
    ca_certs: /etc/ssl/certs/internal-ca.pem
  run_once: true
  delegate_to: localhost

- name: Empty a node before its host goes
  headroom.scale.redis_cluster_rebalance:
    nodes: "{{ cluster_nodes | map('combine', {'weight': 0}) | selectattr('name', 'equalto', 'd1') | list
               + cluster_nodes | rejectattr('name', 'equalto', 'd1') | list }}"
    login_password: "{{ redis_admin_password }}"
  run_once: true
  delegate_to: localhost

- name: Bring the slots of the last run back
  headroom.scale.redis_cluster_rebalance:
    nodes: "{{ cluster_nodes }}"
    state: reverted
    login_password: "{{ redis_admin_password }}"
  run_once: true
  delegate_to: localhost
"""

RETURN = r"""
finished:
  description: Whether nothing is left to do.
  returned: success
  type: bool
  sample: true
summary:
  description: What was done, in a sentence.
  returned: success
  type: str
  sample: 4096 slots between 3 pairs moved.
plan:
  description: What was, or in check mode would be, moved.
  returned: success
  type: dict
  contains:
    id:
      description: Identifies the moves.
      type: str
      sample: 0f3f3c74128e
    moves:
      description:
        - One entry for each pair of nodes, with C(source), C(target), C(count) and C(slots) as ranges, and the C(keys) and estimated
          C(bytes) that these had when the plan was made.
      type: list
      elements: dict
      sample:
        - source: a1
          target: d1
          count: 1365
          slots: 4096-5460
          keys: 83214
          bytes: 24797772
    keys:
      description: Keys of all slots that move.
      type: int
      sample: 83214
    bytes:
      description: Bytes of these keys with their values, by C(MEMORY USAGE) of some keys of each slot.
      type: int
      sample: 24797772
    left_out:
      description: What is not balanced and does not move, a sentence each.
      type: list
      elements: str
      sample: []
shares:
  description: What each primary carried before, carries now, and should, in C(unit), sorted by name.
  returned: success
  type: list
  elements: dict
  sample:
    - name: a1
      slots_before: 5461
      slots_after: 4096
      load_before: 5461
      load_after: 4096
      load_wanted: 4096
      unit: slots
imbalance:
  description: Largest distance of a primary from its share, as a fraction of that share, C(before) and C(after).
  returned: success
  type: dict
  sample:
    before: 0.3333
    after: 0.0
healed:
  description: Slots that were open or had no owner, with what was done about them.
  returned: success
  type: list
  elements: dict
  sample:
    - slots: 5461-5470
      action: carry
      source: a1
      target: d1
      why: it was on the move
mechanism:
  description: >-
    How the slots moved, or in check mode would, V(atomic) or V(classic), or V(mixed) where it was both, and none where nothing moved.
  returned: success, and on failure when something had moved
  type: str
  sample: atomic
fallbacks:
  description: >-
    Slots that were to move atomically and moved the classic way, with C(source), C(target), C(slots) and C(reason), what the server
    said.
  returned: success, and on failure when something had moved
  type: list
  elements: dict
  sample:
    - source: a1
      target: d1
      slots: 4096-4223
      reason: "NOPERM User headroom_admin has no permissions to run the 'cluster|migrateslots' command"
interruptions:
  description: What came between and was overcome, a sentence each, such as a node that died and came back.
  returned: success
  type: list
  elements: str
  sample: []
progress:
  description: >-
    Slots, keys and bytes that moved, seconds for which O(max_latency_ms) held them back, commands that were tried again, and
    the latency of a C(PING) beside the moves.
  returned: success, and on failure when something had moved
  type: dict
  sample:
    slots: 4096
    slots_total: 4096
    keys: 250113
    bytes: 62528250
    paused_s: 0.0
    retries: 0
    latency_p50_ms: 0.9
    latency_p99_ms: 4.2
    latency_max_ms: 7.7
journal:
  description: The file with the plan and what has been done.
  returned: success
  type: str
  sample: /root/.local/state/headroom/redis_cluster-redis.journal
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
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.converge import (
    parse_options,
    rebalance,
    rebalance_spec,
)


def main():
    spec = rebalance_spec().merge(connection_spec())
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    run(module, lambda module: rebalance(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
