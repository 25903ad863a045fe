#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move buckets between the shards of PostgreSQL until each has its share, while applications write."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_shard_rebalance
short_description: Move buckets between PostgreSQL shards until each has its share
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.postgresql
  - headroom.scale.postgresql.members
  - headroom.scale.attributes
description:
  - Gives every shard that M(headroom.scale.postgresql_shard_map) has declared its share of the load, with the fewest bytes moved, while
    applications read and write.
  - A bucket is copied under one snapshot, follows what is written meanwhile by logical replication, is compared row by row, and is then
    handed over by a two-phase commit, for which writers of this bucket alone wait for a moment. Nothing is handed over that differs.
  - A bucket of ranges or of a directory is split where it is, when no shard could carry it or when O(isolate) asks for it. Its rows are
    copied into the parts while triggers log which change, and the parts take its place on the shard and on all routers at once. For that
    moment all statements on the tables of the group wait that go through a router or to this shard. What moves is planned afterwards.
  - A session that goes straight to the shard under C(REPEATABLE READ) or C(SERIALIZABLE), and whose first statement waits for a split, may
    not see what was committed in the milliseconds before. Those that have begun before, and those of routers, are waited for.
  - It runs once for the whole cluster, from a host with network access to all members. Do not loop it over hosts.
  - The rows of a copy pass through that host, so that no password has to be given to the shards. The shards reach each other as
    O(member_user), whose password the servers' own user has in C(~/.pgpass).
  - What a run that was killed has left is taken up by the next one, or rolled back, before anything else.
  - Through a router no statement fails because of a move. A writer that goes to the former shard gets the SQLSTATE C(HR001) there,
    which names the shard and the epoch; the function C(headroom.route) tells where a key is. So does who empties the table there with
    C(TRUNCATE).
  - That is so for O(read_grace_s). Afterwards the bucket is no part of the table there any more. An insert fails with C(23514), which means
    the same, but an update, a delete or a query finds no rows and says nothing. So writers too read the map again within O(read_grace_s).
  - After the switch, what is written flows back to the former shard for O(revert_window_s), so that O(state=reverted) can return
    the bucket with all of it.
  - Tables need a primary key. Columns may have types of extensions; what has no binary form lets the whole table be copied as text, which
    takes longer. Servers need PostgreSQL 16, C(wal_level=logical) and C(max_prepared_transactions); routers need the
    last for splits.
  - Anybody can look at the view C(headroom.progress) on a shard while it works, which has the state of each move, how far its copy is, and
    how fast; and at the table C(headroom.move), the journal.
attributes:
  check_mode:
    support: full
    details:
      - The plan and the diff are those of the run that follows, if the load stays the same.
      - A shard that is declared and has no map yet counts as an empty one, since the run of M(headroom.scale.postgresql_shard_map) that
        comes before would give it one. What such a shard needs for moves is not looked at.
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    description: Whether parts of it run on the controller.
    support: full
    details:
      - The action shows how far the moves are, when the module runs on the controller itself.
options:
  state:
    description:
      - V(planned) returns what V(balanced) would do and changes nothing.
      - V(balanced) takes up what earlier runs have left, plans, splits and moves. A move whose time to be taken back is over and that
        cannot be ended, such as where a view was made on its former rows, gives a warning; V(cleaned) fails for it.
      - V(reverted) takes back the moves of the last plan that are in their time for it, or O(moves), with all that was written since.
      - V(cleaned) ends moves whose time to be taken back is over, rolls back what earlier runs have left, and removes what belongs to
        no move.
    type: str
    choices: [planned, balanced, reverted, cleaned]
    default: balanced
    version_added: 0.1.0
  plan:
    description:
      - What an earlier run returned as RV(plan), to be carried out as it is. It is refused when the map or the limits are
        not what they were, unless that is because of its own splits and moves. A plan has splits or moves. What moves is planned again
        once buckets are split.
      - A bucket comes once, and goes to a declared shard that takes a share.
    type: dict
    version_added: 0.1.0
  threshold:
    description:
      - Nothing moves while no shard is over its share by more than this fraction.
    type: float
    default: 0.1
    version_added: 0.1.0
  max_moves:
    description:
      - Number of buckets that a run moves at most.
    type: int
    version_added: 0.1.0
  max_bytes:
    description:
      - Bytes that a run moves at most.
    type: int
    version_added: 0.1.0
  max_duration_s:
    description:
      - Seconds that the moves of a plan may take, as estimated.
    type: float
    version_added: 0.1.0
  concurrent_moves:
    description:
      - Moves at the same time.
    type: int
    default: 4
    version_added: 0.1.0
  concurrent_moves_per_shard:
    description:
      - Moves that one shard takes part in at the same time.
    type: int
    default: 1
    version_added: 0.1.0
  streams:
    description:
      - Connections that copy one bucket, and processes that build its indexes, at the same time.
      - Where there are more of these than indexes, the rest helps with each as parallel workers.
    type: int
    default: 2
    version_added: 0.1.0
  max_rate_bytes_s:
    description:
      - Bytes that are copied in a second, over all moves, and bytes that each comparison of rows reads in a second on a shard. V(0) is no
        limit.
      - With a limit, one process builds one index at a time.
    type: int
    default: 0
    version_added: 0.1.0
  max_block_ms:
    description:
      - Milliseconds that one attempt to hand a bucket over, or to split it, may keep writers waiting. An attempt that takes longer is
        given up, and made again after a pause.
    type: float
    default: 500
    version_added: 0.1.0
  max_lag_ms:
    description:
      - An attempt begins when a row arrives within so many milliseconds.
    type: float
    default: 100
    version_added: 0.1.0
  switch_patience_s:
    description:
      - Seconds for which it is tried to hand a bucket over, or to split it. After that the move or the split is rolled back.
    type: float
    default: 120
    version_added: 0.1.0
  slot_timeout_s:
    description:
      - Seconds that transactions which run when a move begins may take to end; a replication slot waits for them.
    type: float
    default: 120
    version_added: 0.1.0
  catch_up_timeout_s:
    description:
      - Seconds that a copy may take to catch up with what was written meanwhile.
    type: float
    default: 3600
    version_added: 0.1.0
  read_grace_s:
    description:
      - Seconds for which those who read at the former shard find the bucket there, and those who write get C(HR001). Applications that
        know the map, readers and writers, are to read it again more often than that.
    type: float
    default: 5
    version_added: 0.1.0
  revert_window_s:
    description:
      - Seconds after which a bucket cannot be taken back any more, and its former shard gives up what it keeps for that.
      - Until then each bucket that has moved keeps its former copy, a slot and a WAL sender on its new shard, and a worker of logical
        replication on its former one. V(0) gives all of that up at the end of the run, or before, where others need it to begin.
    type: float
    default: 86400
    version_added: 0.1.0
  max_replica_lag_s:
    description:
      - Copies stand still while a standby of their shards is more than so many seconds behind with what it replays, or is gone. One
        that was seen in this run and is not there any more is gone, and so is one whose physical slot nobody uses. V(0) is no limit.
    type: float
    default: 0
    version_added: 0.1.0
  max_retained_wal_bytes:
    description:
      - The run fails, and takes its moves back, when a shard keeps more WAL than that for moves. V(0) is no limit.
    type: int
    default: 0
    version_added: 0.1.0
  min_free_bytes:
    description:
      - What must stay free on the disks of the shards' data. Copies stand still while it is less. V(0) is no limit. What is free is
        known to a superuser only.
    type: int
    default: 0
    version_added: 0.1.0
  max_active:
    description:
      - Copies stand still while a shard has more active sessions than that. V(0) is no limit.
    type: int
    default: 0
    version_added: 0.1.0
  pause_patience_s:
    description:
      - Seconds that copies may stand still until the run fails.
    type: float
    default: 3600
    version_added: 0.1.0
  window:
    description:
      - Time of the week in which moves may begin. One that has begun goes on, and no more are planned than fit.
    type: dict
    version_added: 0.1.0
    suboptions:
      begin:
        description:
          - When it begins, as V(02:00).
        type: str
        required: true
      end:
        description:
          - When it ends, on the next day if that is not later.
        type: str
        required: true
      days:
        description:
          - Days on which it begins. Defaults to every day.
        type: list
        elements: str
        choices: [mon, tue, wed, thu, fri, sat, sun]
      timezone:
        description:
          - Time zone of the clock.
        type: str
        default: UTC
  load:
    description:
      - What the shares divide. Maps some of C(size_bytes), C(rows), C(reads) and C(writes) to their weights.
      - Defaults to C(size_bytes) alone.
    type: dict
    version_added: 0.1.0
  sample_s:
    description:
      - Seconds for which C(reads) and C(writes) are counted, when they have a weight.
    type: float
    default: 5
    version_added: 0.1.0
  isolate:
    description:
      - Keys that are to have a bucket of their own. Their buckets are split, unless they are in the time in which their last move can be
        taken back. RV(plan.left_out) says which cannot be, as those of a hash.
      - With V(range), keys of texts cannot be isolated, since no key follows directly on another.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      group:
        description:
          - Name of the colocation group.
        type: str
        required: true
      key:
        description:
          - The key.
        type: raw
        required: true
  moves:
    description:
      - Ids of the moves that O(state=reverted) and O(state=cleaned) are for. Defaults to those of the last plan, and to all.
    type: list
    elements: str
    version_added: 0.1.0
  retire_now:
    description:
      - Whether O(state=cleaned) ends moves before their time to be taken back is over.
    type: bool
    default: false
    version_added: 0.1.0
  progress_file:
    description:
      - File on the host that runs the module to which lines on the progress are added. The action sets it.
    type: path
    version_added: 0.1.0
seealso:
  - module: headroom.scale.postgresql_shard_map
"""

EXAMPLES = r"""
- name: Every shard has its share
  headroom.scale.postgresql_shard_rebalance:
    shards: "{{ shards }}"
    routers: "{{ routers }}"
    login_user: headroom_admin
    login_password: "{{ shards_admin_password }}"
    max_rate_bytes_s: 50000000
    max_replica_lag_s: 10
  run_once: true
  delegate_to: localhost

- name: Plan to empty a shard
  headroom.scale.postgresql_shard_rebalance:
    shards: "{{ shards | rejectattr('name', 'equalto', 's1') + [shards | selectattr('name', 'equalto', 's1') | first
               | combine({'state': 'draining'})] }}"
    routers: "{{ routers }}"
    login_password: "{{ shards_admin_password }}"
    state: planned
  run_once: true
  delegate_to: localhost
  register: drain

- name: Give a large tenant a bucket of its own, and every shard its share
  headroom.scale.postgresql_shard_rebalance:
    shards: "{{ shards }}"
    routers: "{{ routers }}"
    login_password: "{{ shards_admin_password }}"
    isolate:
      - {group: bills, key: 4711}
  run_once: true
  delegate_to: localhost

- name: Take the moves of the last plan back
  headroom.scale.postgresql_shard_rebalance:
    shards: "{{ shards }}"
    routers: "{{ routers }}"
    login_password: "{{ shards_admin_password }}"
    state: reverted
  run_once: true
  delegate_to: localhost
"""

RETURN = r"""
summary:
  description: What was done, in a sentence.
  returned: success
  type: str
  sample: 22 buckets, 1.2 GB, moved.
plan:
  description: What was, or in check mode would be, moved.
  returned: success
  type: dict
  contains:
    id:
      description: Identifies the map and the limits. Empty for O(state=reverted) and O(state=cleaned).
      type: str
      sample: 0f3f3c74128e8d11
    splits:
      description: >-
        Buckets that are split, with C(group), C(bucket), C(shard), C(epoch), C(bytes), and C(parts), each with the C(number) of the new
        bucket and C(lower) and C(upper), or C(tenants).
      type: list
      elements: dict
      sample:
        - group: bills
          bucket: 3
          shard: s1
          epoch: 1
          bytes: 734003200
          parts:
            - {number: 8, lower: 1000, upper: 5000}
            - {number: 9, lower: 5000, upper: 9000}
    moves:
      description: Buckets in their order, with C(group), C(bucket), C(source), C(target), C(bytes) and the C(epoch) of its placement.
      type: list
      elements: dict
      sample:
        - group: users
          bucket: 7
          source: s1
          target: s3
          bytes: 58130432
          epoch: 1
    bytes:
      description: Bytes of all moves.
      type: int
      sample: 58130432
    estimated_s:
      description: Seconds that splits and moves take, as estimated.
      type: float
      sample: 6.2
    left_out:
      description: What is not as it should be and does not change, and why, a sentence each.
      type: list
      elements: str
      sample: []
shares:
  description: What each shard carried before, carries now, and should, sorted by name. The loads of all shards add up to 1.
  returned: success
  type: list
  elements: dict
  sample:
    - name: s1
      buckets_before: 32
      buckets_after: 22
      bytes_before: 185729024
      bytes_after: 127688704
      load_before: 0.5
      load_after: 0.34
      load_wanted: 0.333333
imbalance:
  description: Largest fraction by which a shard is over its share, C(before) and C(after).
  returned: success
  type: dict
  sample:
    before: 0.5
    after: 0.02
splits:
  description: >-
    Splits that this run has done, as RV(moves), with the numbers of the new buckets as C(parts). C(source) and C(target) are the shard.
    C(switch.fence_ms) is for the last rows.
  returned: success, and on failure when a plan was made
  type: list
  elements: dict
  sample: []
moves:
  description: >-
    Moves that this run has carried, with C(id), C(group), C(bucket), C(source), C(target), C(state), C(bytes), C(rows), C(duration_s),
    C(error), and C(switch) with C(attempts) and how long writers had to wait, C(block_ms), of which C(lock_ms) for the lock,
    C(fence_ms) for the last changes and C(commit_ms) for the commit.
  returned: success, and on failure when a plan was made
  type: list
  elements: dict
  sample:
    - id: 5f2c81d09a
      group: users
      bucket: 7
      source: s1
      target: s3
      state: switched
      bytes: 41288012
      rows: 141203
      duration_s: 5.21
      error:
      switch:
        attempts: 1
        block_ms: 41.8
        lock_ms: 0.6
        fence_ms: 12.4
        commit_ms: 17.9
recovered:
  description: >-
    Moves and splits of earlier runs that were on their way, as in RV(moves), with C(was), where they stood, and C(action), V(finished) or
    V(rolled_back).
  returned: success, and on failure when a plan was made
  type: list
  elements: dict
  sample: []
orphans:
  description: What O(state=cleaned) has removed since it belongs to no move, with C(member), C(kind) and C(name).
  returned: success, and on failure when a plan was made
  type: list
  elements: dict
  sample: []
paused_s:
  description: Seconds for which copies stood still.
  returned: success, and on failure when a plan was made
  type: float
  sample: 0.0
epoch:
  description: Highest epoch of the map.
  returned: success
  type: int
  sample: 24
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
  sample:
    - code: corrupt
      message: >-
        Failed to verify move users/7 from s1 to s3: 1 row of table public.orders, bucket users/7, with (user_id, id) = (42, 1), differ
        between s1 and s3. Nothing was switched. Find out who writes to the copy.
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.converge import rebalance
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.options import (
    parse_options,
    rebalance_spec,
)


def main():
    spec = rebalance_spec().merge(connection_spec())
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    run(module, lambda module: rebalance(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
