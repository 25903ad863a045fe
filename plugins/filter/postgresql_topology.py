# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: postgresql_topology
short_description: Who streams from whom, hung from the primary that is really there
version_added: 0.1.0
author: headroom.scale contributors (@headroom-scale)
description:
  - Turns the declared replication tree of a cluster and what was seen on its members into the effective topology.
  - After a switchover the tree is hung from the live primary; the former primary takes a place below it.
options:
  _input:
    description:
      - For each member C(name), C(upstream) (empty on the declared primary) and C(seen).
      - C(seen) is RV(headroom.scale.postgresql_instance_info#module:instance), or null for a member that was not reached.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Two replicas, one below the other
  ansible.builtin.debug:
    msg: "{{ members | headroom.scale.postgresql_topology }}"
  vars:
    members:
      - {name: pg1, upstream: "", seen: null}
      - {name: pg2, upstream: pg1, seen: null}
"""

RETURN = r"""
_value:
  description: C(primary), C(declared_primary), C(upstreams), C(children), C(levels), C(fenced) and C(errors).
  type: dict
"""

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.topology import topology


class FilterModule:
    """The filter of this file."""

    def filters(self):
        """Return name to function."""
        return {"postgresql_topology": topology}
