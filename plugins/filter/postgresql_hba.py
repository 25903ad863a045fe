# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: postgresql_hba
short_description: The lines of pg_hba.conf that replication and monitoring need
version_added: 0.1.0
author: headroom.scale contributors (@headroom-scale)
description:
  - Returns entries for O(headroom.scale.postgresql_instance#module:hba) from the addresses of a cluster's members.
positional: replication_user, monitoring_user, monitoring_addresses, tls
options:
  _input:
    description: Addresses or host names of all members.
    type: list
    elements: str
    required: true
  replication_user:
    description: Login that replicas use.
    type: str
    required: true
  monitoring_user:
    description: Login that the health verdict uses.
    type: str
    required: true
  monitoring_addresses:
    description: Addresses or networks that the monitoring login may come from.
    type: list
    elements: str
    required: true
  tls:
    description: Whether encrypted connections alone are admitted.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: Entries for two members
  ansible.builtin.debug:
    msg: "{{ ['10.77.0.11', '10.77.0.12'] | headroom.scale.postgresql_hba('replicator', 'monitor', ['10.77.0.1'], true) }}"
"""

RETURN = r"""
_value:
  description: Entries with C(type), C(database), C(user), C(address) and C(method).
  type: list
  elements: dict
"""

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.access import replication_hba


class FilterModule:
    """The filter of this file."""

    def filters(self):
        """Return name to function."""
        return {"postgresql_hba": replication_hba}
