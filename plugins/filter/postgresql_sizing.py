# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: postgresql_sizing
short_description: Settings of PostgreSQL that follow from a host's size
version_added: 0.1.0
author: headroom.scale contributors (@headroom-scale)
description:
  - Returns memory, worker, sender and slot settings for a host and a number of members.
positional: members, max_connections
options:
  _input:
    description: RV(headroom.scale.postgresql_instance_info#module:host), of which C(memory_bytes) and C(cpus) are used.
    type: dict
    required: true
  members:
    description: Number of members of the cluster.
    type: int
    required: true
  max_connections:
    description: Connections that the memory is divided among.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Settings for a host with 16 GiB and four processors in a cluster of three
  ansible.builtin.debug:
    msg: "{{ {'memory_bytes': 17179869184, 'cpus': 4} | headroom.scale.postgresql_sizing(3, 200) }}"
"""

RETURN = r"""
_value:
  description: Settings by name.
  type: dict
"""

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.sizing import sizing


class FilterModule:
    """The filter of this file."""

    def filters(self):
        """Return name to function."""
        return {"postgresql_sizing": sizing}
