# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: postgresql_shard
short_description: The shard that holds a key
version_added: 0.1.0
author: headroom.scale contributors (@headroom-scale)
description:
  - Finds the bucket of a key, and the shard that holds it, in a map of shards. No server is asked.
  - Buckets of a hash are found as PostgreSQL's own C(PARTITION BY HASH) finds them, on servers of little-endian byte order
    (x86-64, arm64) with databases in UTF-8.
  - The map says what was so when it was read.
positional: map, group
options:
  _input:
    description:
      - The key, of the type of the group's shard key. Dates as C(YYYY-MM-DD).
    type: raw
    required: true
  map:
    description:
      - The map, with C(epoch), C(shards) and C(groups), each group with its C(buckets) and their C(shard).
    type: dict
    required: true
  group:
    description:
      - The colocation group, whose tables share the shard key.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Say where the rows of a user are
  ansible.builtin.debug:
    msg: "{{ (4711 | headroom.scale.postgresql_shard(shard_map, 'users')).shard }}"
  vars:
    shard_map:
      epoch: 3
      shards:
        - {name: s1}
        - {name: s2}
      groups:
        - name: users
          strategy: range
          key_type: bigint
          tables:
            - {name: public.users, key: id}
          buckets:
            - {number: 0, upper: 1000, shard: s1, epoch: 1}
            - {number: 1, lower: 1000, shard: s2, epoch: 3}
"""

RETURN = r"""
_value:
  description: C(group), the number of the C(bucket), its C(shard), and the C(epoch) since which it is there.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.stored import route, stored_map


def postgresql_shard(key, map, group):
    """Return where a key is."""
    try:
        return route(stored_map(map), group, key)
    except OptionError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter of this file."""

    def filters(self):
        """Return name to function."""
        return {"postgresql_shard": postgresql_shard}
