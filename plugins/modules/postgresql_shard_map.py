#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declare the shards of a PostgreSQL cluster and the tables that are spread over them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_shard_map
short_description: Declare the shards of PostgreSQL and the tables that are spread over them
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.postgresql
  - headroom.scale.postgresql.members
  - headroom.scale.attributes
description:
  - Brings a set of databases to a declared map of shards, colocation groups, sharded tables and routers.
  - It runs once for all members, from a host with network access to them. Do not loop it over hosts.
  - A sharded table is partitioned by its shard key into a fixed number of buckets. A shard has the partitions of its own buckets
    alone, so that a row for another one fails there by itself. A router has a foreign table for each bucket.
  - Each member has the map in the schema C(headroom), where applications find it by C(headroom.route(group, key)), which gives the
    bucket, the shard, the epoch since which it is there, and how to connect to it, and by C(headroom.bucket_of(group, key)).
  - Buckets get their first places from a weighted consistent-hash ring, or are where their rows are already. From then on they stay,
    whatever is declared. A shard that is added gets none, and one that holds buckets cannot be taken out of the declaration.
  - Each member is changed by one transaction, and none is committed before all are ready. A run that was killed is run again.
  - A plain table that has rows becomes a partitioned one within that transaction. It is locked (C(ACCESS EXCLUSIVE)), the partitioned
    table is made under its name, its rows are copied and counted, the old one is dropped, and keys, indexes, statistics, triggers,
    comments, owner and privileges are made anew. It stays locked until all members are ready, and the rows take their room
    twice until the end. A table that has rows on one shard alone keeps all of its buckets there.
  - Tables with rows on several shards are taken over as they lie, if all rows of each bucket are on one shard. Otherwise
    nothing is changed, and the rows that are elsewhere are named. All of their rows are read for this, in check mode too.
  - Foreign keys between tables of a group stay, if they join their shard keys. They are those of the buckets then, each to the same
    bucket of the other table. Other foreign keys are refused, as are views, publications, inheritance and row security of a plain
    table, with what to do about them.
  - Through a router, C(ON CONFLICT) with a target does not work, columns numbered by a sequence must be given, and
    C(GENERATED ALWAYS AS IDENTITY) cannot be inserted into. Columns of a sequence are unique together with the shard key only.
attributes:
  check_mode:
    support: full
    details:
      - O(groups[].tables[].ddl) is tried on the first shard, in a transaction that is rolled back.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  groups:
    description:
      - The colocation groups. Bucket 7 of each table of a group lies on the same shard, and moves as one.
      - A group, a table and a tenant cannot be given up once they are there. Tables and tenants can be added.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the group, once in the list. Of a-z, 0-9 and C(_), a letter first, at most 32 characters.
        type: str
        required: true
      strategy:
        description:
          - How a row is assigned to a bucket by its key.
          - V(hash) is PostgreSQL's own C(PARTITION BY HASH).
          - V(range) is one bucket for each range of keys.
          - V(directory) is one bucket for each listed tenant or group of tenants.
        type: str
        choices:
          - hash
          - range
          - directory
        required: true
      key_type:
        description:
          - Type of the shard key, the same for all tables of the group. V(date) is not for V(hash).
          - Texts need databases in UTF8, and for V(range) a column with C(COLLATE "C").
        type: str
        choices:
          - smallint
          - integer
          - bigint
          - text
          - varchar
          - uuid
          - date
        required: true
      buckets:
        description:
          - Number of buckets, from 64 to 4096, for V(hash) alone. It cannot be changed later.
          - PostgreSQL takes the longer to add a partition the more there are. Thousands take minutes on each member.
        type: int
      bounds:
        description:
          - Keys at which one bucket ends and the next begins, rising, for V(range) alone.
          - They count when the group is new. Afterwards buckets may be split, and no declared bound may be missing.
        type: list
        elements: raw
      tenants:
        description:
          - For each bucket the list of its tenants, for V(directory) alone.
          - New tenants get a bucket of their own, on the shard that has fewest buckets of the group for its weight.
        type: list
        elements: list
      placement:
        description:
          - For each bucket the name of the shard that it lies on, in their order, when the group is new.
          - Without it, buckets are where most of their rows are, or else where the ring puts them.
        type: list
        elements: str
      tables:
        description:
          - The sharded tables.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description:
              - Name, as C(schema.table), of at most 48 characters after the dot.
            type: str
            required: true
          key:
            description:
              - The column that is its shard key. The primary key, and each unique index, must contain it.
            type: str
            required: true
          ddl:
            description:
              - A statement that creates the table, or a list of statements, with its name as in O(groups[].tables[].name) and
                without C(PARTITION BY). Only the table, its keys, indexes, triggers and comments are taken from it.
              - It is used when no shard has the table. Types and functions that it needs must be on all members.
            type: raw
  lock_timeout_s:
    description:
      - Seconds that a lock on an existing table is waited for. Without it, nothing is changed.
    type: float
    default: 5
    version_added: 0.1.0
  max_rewrite_bytes:
    description:
      - Bytes of a plain table, with its indexes, up to which it is rewritten while it is locked.
    type: int
    default: 10737418240
    version_added: 0.1.0
notes:
  - The members need PostgreSQL 16 or later with C(postgres_fdw), and shards also C(wal_level = logical) and
    C(max_prepared_transactions) of 2 or more.
  - A shard that is taken out of the declaration is not contacted any more. Its schema C(headroom) stays there.
  - All roles of a member may read the map and the journal of moves there. A router reaches the shards as O(member_user), for every
    role; what a role may do is decided by its privileges on the router's tables.
"""

EXAMPLES = r"""
- name: Spread users and their orders over three shards
  headroom.scale.postgresql_shard_map:
    login_user: postgres
    login_password: "{{ vault_postgres_password }}"
    login_db: shop
    shards:
      - {name: s1, host: 192.0.2.21}
      - {name: s2, host: 192.0.2.22}
      - {name: s3, host: 192.0.2.23, weight: 2}
    routers:
      - {name: router1, host: 192.0.2.31}
    groups:
      - name: users
        strategy: hash
        key_type: bigint
        buckets: 256
        tables:
          - name: public.users
            key: id
            ddl: CREATE TABLE public.users (id bigint PRIMARY KEY, name text NOT NULL)
          - name: public.orders
            key: user_id
            ddl:
              - CREATE TABLE public.orders (user_id bigint, number uuid, placed_at timestamptz NOT NULL, PRIMARY KEY (user_id, number))
              - CREATE INDEX orders_placed_at ON public.orders (placed_at)

- name: See whether the databases of an application that shards by itself could be taken over
  headroom.scale.postgresql_shard_map:
    cluster: ledger
    login_db: ledger
    shards:
      - {name: ledger1, host: 192.0.2.41}
      - {name: ledger2, host: 192.0.2.42}
    groups:
      - name: accounts
        strategy: range
        key_type: bigint
        bounds: [1000000]
        placement: [ledger1, ledger2]
        tables:
          - {name: public.accounts, key: id}
          - {name: public.postings, key: account_id}
  check_mode: true
  diff: true
"""

RETURN = r"""
summary:
  description: The map in one sentence (C(text)), its C(epoch), and how many C(buckets) each shard has.
  returned: success
  type: dict
  sample:
    text: "26 steps on 4 members taken: 3 shards with 64 buckets of 1 group and 1 table, epoch 1."
    epoch: 1
    buckets:
      s1: 21
      s2: 22
      s3: 21
epoch:
  description: The epoch of the map, which rises with each change of a placement.
  returned: success
  type: int
  sample: 1
map:
  description:
    - The map, as the filter P(headroom.scale.postgresql_shard#filter) takes it.
  returned: success
  type: dict
  contains:
    cluster:
      description: Name of the cluster.
      type: str
      returned: success
      sample: shards
    epoch:
      description: The epoch of the map.
      type: int
      returned: success
      sample: 1
    shards:
      description: The shards, with C(name), C(weight), C(state) and C(capacity_bytes).
      type: list
      elements: dict
      returned: success
      sample:
        - name: s1
          weight: 1.0
          state: active
          capacity_bytes: null
    groups:
      description:
        - The groups, with C(name), C(strategy), C(key_type), their C(tables), and their C(buckets).
        - A bucket has C(number), C(shard), C(epoch) and what it holds.
      type: list
      elements: dict
      returned: success
      sample:
        - name: accounts
          strategy: range
          key_type: bigint
          tables:
            - name: public.accounts
              key: id
          buckets:
            - number: 0
              lower: null
              upper: 1000000
              shard: ledger1
              epoch: 1
            - number: 1
              lower: 1000000
              upper: null
              shard: ledger2
              epoch: 1
plan:
  description: The steps that were taken, or would be taken in check mode, in their order on each member.
  returned: success
  type: list
  elements: dict
  sample:
    - member: s1
      action: create
      object: public.users
      text: create public.users, partitioned, with 21 buckets
rewritten:
  description: The plain tables whose rows were brought into a partitioned one, with C(table), C(shard) and the counted C(rows).
  returned: success
  type: list
  elements: dict
  sample:
    - table: public.users
      shard: s2
      rows: 5000
errors:
  description: Why it failed, with C(code), C(message) and what else belongs to it.
  type: list
  elements: dict
  returned: failure
  sample:
    - code: misplaced_rows
      message: "3 rows of public.accounts on ledger2 belong to ledger1 (keys 7, 8, 301)"
      table: public.accounts
      shard: ledger2
      rows: 3
      belongs_to: [ledger1]
      keys: [7, 8, 301]
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.converge import (
    converge,
    map_spec,
    parse_options,
)


def main():
    module = AnsibleModule(supports_check_mode=True, **map_spec().merge(connection_spec()).to_kwargs())
    run(module, lambda module: converge(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
