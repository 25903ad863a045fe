#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a sharded PostgreSQL cluster: the map, what each shard and bucket carries, moves, and what was left behind."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_shard_info
short_description: Look at the shards of PostgreSQL, their load, their moves and what was left behind
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.postgresql
  - headroom.scale.postgresql.members
  - headroom.scale.attributes
  - headroom.scale.attributes.info_module
description:
  - Asks all members at once, in one task, for the map and its epoch, and what each shard and bucket has of bytes, rows, reads and
    writes, which part of all load that is, and which buckets are hot.
  - Shows the moves that are on their way, and the slots, publications, subscriptions, retired leaves and prepared transactions that
    no journal owns.
  - Nothing waits for the locks of a move. Where a leaf is locked, sizes are those that VACUUM wrote down, see RV(estimated_sizes).
options:
  load:
    description:
      - What load is, as weights of C(size_bytes), C(rows), C(reads) and C(writes), each in relation to its total.
      - By default it is the size alone.
    type: dict
    version_added: 0.1.0
  sample_s:
    description:
      - Seconds over which reads and writes are counted. With V(0), they are those since the counters were reset, and there are no rates.
    type: float
    default: 0
    version_added: 0.1.0
  hot_factor:
    description:
      - A bucket is hot whose load is more than this many times that of the mean bucket.
    type: float
    default: 4
    version_added: 0.1.0
  with_buckets:
    description:
      - Whether RV(buckets) is returned, which may be long.
    type: bool
    default: true
    version_added: 0.1.0
  require_all:
    description:
      - Whether a member that cannot be read is a failure. The result is returned with it.
    type: bool
    default: true
    version_added: 0.1.0
  report_file:
    description:
      - Path of an HTML page to write, with a drawing of what each shard carries. It needs nothing from elsewhere. Check mode writes none.
    type: path
    version_added: 0.1.0
seealso:
  - module: headroom.scale.postgresql_shard_map
  - module: headroom.scale.postgresql_shard_rebalance
notes:
  - Rows, reads and writes are PostgreSQL's statistics of the shard where a bucket is now. They begin anew when it moves.
"""

EXAMPLES = r"""
- name: Look at the shards
  headroom.scale.postgresql_shard_info:
    login_user: monitor
    login_password: "{{ vault_monitor_password }}"
    login_db: shop
    shards:
      - {name: s1, host: 192.0.2.21}
      - {name: s2, host: 192.0.2.22}
    routers:
      - {name: router1, host: 192.0.2.31}
    load: {size_bytes: 1, writes: 2}
    sample_s: 10
    report_file: /srv/www/shards.html
  register: shop

- name: Show it
  ansible.builtin.debug:
    var: shop.table

- name: Hand it to the node exporter
  ansible.builtin.copy:
    content: "{{ shop.prometheus }}"
    dest: /var/lib/prometheus/node-exporter/shards.prom
    mode: "0644"
"""

RETURN = r"""
summary:
  description: What was seen, in one sentence (C(text)).
  returned: success
  type: dict
  sample:
    text: "3 shards hold 64 buckets at epoch 4, the fullest is +12% off its fair share, 1 move on the way."
cluster:
  description: Name of the cluster.
  returned: success
  type: str
  sample: shards
epoch:
  description: The highest epoch that a member knows. Null without a map.
  returned: success
  type: int
  sample: 4
map:
  description: The map, as P(headroom.scale.postgresql_shard#filter) takes it and M(headroom.scale.postgresql_shard_map) returns it.
  returned: success
  type: dict
complete:
  description: Whether all members could be read. Otherwise figures of what only the others know are null.
  returned: success
  type: bool
  sample: true
imbalance:
  description: How far the fullest shard is above its fair share, as a fraction of that. Null when there is no load.
  returned: success
  type: float
  sample: 0.12
members:
  description:
    - The shards and routers, with C(name), C(role), C(host), C(port), C(database), whether they are C(reachable) and else the C(error).
    - Also the major C(version), the highest C(epoch) they know, the number of C(outdated_buckets) whose place they do not know,
      C(connections) of clients, how many are C(active), C(max_connections), and C(transactions) since the counters were reset.
    - C(retained_wal_bytes) is the WAL that it keeps for moves, which those that can still be taken back do too.
  returned: success
  type: list
  elements: dict
  sample:
    - name: s1
      role: shard
      host: 192.0.2.21
      port: 5432
      database: shop
      reachable: true
      error: null
      version: 17
      epoch: 4
      outdated_buckets: 0
      connections: 12
      active: 2
      max_connections: 100
      transactions: 120034
      retained_wal_bytes: 16777216
shards:
  description:
    - The shards, with C(weight), C(state), C(capacity_bytes), number of C(buckets), C(size_bytes), C(rows), C(reads), C(writes), and per
      second C(reads_s) and C(writes_s) when there was a sample.
    - C(load_share) is the part of all load that it carries, C(fair_share) the part that it is to carry (null for a shard that keeps
      what it has), and C(imbalance) how far it is above that.
  returned: success
  type: list
  elements: dict
  sample:
    - name: s1
      weight: 1.0
      state: active
      capacity_bytes: null
      buckets: 21
      size_bytes: 172032000
      rows: 1200000
      reads: 8812
      writes: 1200000
      reads_s: null
      writes_s: null
      load_share: 0.328
      fair_share: 0.333
      imbalance: -0.015
groups:
  description: The groups, with their tables, number of buckets, and figures over all of them.
  returned: success
  type: list
  elements: dict
  sample:
    - name: users
      strategy: hash
      key_type: bigint
      tables:
        - name: public.users
          key: id
      buckets: 64
      size_bytes: 524288000
      rows: 3600000
      reads: 26000
      writes: 3600000
buckets:
  description: The buckets, with the figures of a shard, their C(epoch), and whether they are C(hot).
  returned: when O(with_buckets)
  type: list
  elements: dict
  sample:
    - group: users
      number: 0
      shard: s3
      epoch: 1
      size_bytes: 8192000
      rows: 56000
      reads: 400
      writes: 56000
      reads_s: null
      writes_s: null
      load_share: 0.0156
      hot: false
hot_buckets:
  description: Those of the buckets that are hot.
  returned: success
  type: list
  elements: dict
  sample: []
moves:
  description:
    - The moves and splits that have not ended. A split has the same shard as C(source) and C(target), and the numbers of the new buckets
      in C(parts), which is empty for a move. C(age_s) is in seconds, and C(retire_in_s) says for how long they can still be taken back.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 5f2a9c0d
      bucket: users/7
      parts: []
      source: s1
      target: s2
      state: copying
      step: copy
      bytes_total: 8192000
      bytes_done: 4096000
      age_s: 12
      retire_in_s: null
      error: null
orphans:
  description:
    - What moves have left that no journal owns, on any member. C(kind) is one of C(prepared_transaction), C(subscription), C(slot),
      C(publication), C(log) of a split, C(retired_leaf) and C(detached_leaf). C(age_s) is known of prepared transactions alone.
  returned: success
  type: list
  elements: dict
  sample:
    - member: s1
      kind: slot
      name: headroom_5f2a9c0d_copy
      age_s: null
estimated_sizes:
  description: Members whose sizes are estimates, since a leaf was locked.
  returned: success
  type: list
  elements: str
  sample: []
table:
  description: The result as lines for people.
  returned: success
  type: list
  elements: str
  sample:
    - 3 shards hold 64 buckets at epoch 1, the fullest is +3% off its fair share.
    - ""
    - SHARD  STATE   WEIGHT  BUCKETS  SIZE      ROWS  READS  WRITES  CONN   SHARE  FAIR   EPOCH
    - s1     active  1       21       168.0 KiB 0     0      0       0/200  32.8%  33.3%  1
prometheus:
  description: The figures in the Prometheus text format.
  returned: success
  type: str
  sample: |
    # HELP headroom_postgresql_shards_epoch Epoch of the map.
    # TYPE headroom_postgresql_shards_epoch gauge
    headroom_postgresql_shards_epoch{cluster="shards"} 4
errors:
  description: Why it failed, with C(code) and C(message).
  returned: failure
  type: list
  elements: dict
  sample:
    - code: connection_refused
      message: "Failed to connect to s2 on 192.0.2.22:5432: Connection refused. Check host and port, and that the server runs there."
      member: s2
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.info import (
    info,
    info_spec,
    parse_options,
)


def main():
    module = AnsibleModule(supports_check_mode=True, **info_spec().merge(connection_spec()).to_kwargs())
    run(module, lambda module: info(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
