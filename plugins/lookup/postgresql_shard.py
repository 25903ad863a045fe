# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: postgresql_shard
short_description: Ask a member of a sharded cluster where keys are
version_added: 0.1.0
author: headroom.scale contributors (@headroom-scale)
extends_documentation_fragment:
  - headroom.scale.postgresql
description:
  - Asks a member's C(headroom.route) for the bucket of each key, its shard, and how applications connect to that.
  - It runs on the controller. Without a server, P(headroom.scale.postgresql_shard#filter) finds keys in a map that was read before.
options:
  _terms:
    description:
      - The keys, of the type of the group's shard key. Dates as C(YYYY-MM-DD).
    required: true
    type: list
    elements: raw
  group:
    description:
      - The colocation group, whose tables share the shard key.
    type: str
    required: true
  host:
    description:
      - Address or name of a member. Of several, separated by commas, the first that answers is asked.
    type: str
    required: true
  port:
    description:
      - Port of the members.
    type: int
    default: 5432
  timeout_s:
    description:
      - Seconds that the member is given.
    type: float
    default: 10
"""

EXAMPLES = r"""
- name: Say where a user is
  ansible.builtin.debug:
    msg: >-
      {{ lookup('headroom.scale.postgresql_shard', 4711, group='users', host='192.0.2.21,192.0.2.22', login_db='shop',
         login_user='monitor', login_password=vault_monitor_password).conninfo }}
"""

RETURN = r"""
_raw:
  description:
    - For each key the C(group), the number of the C(bucket), its C(shard), the C(epoch) since which it is there, and C(conninfo), by
      which applications connect to it.
  type: list
  elements: dict
"""

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.ask import ask

LOGIN = ("login_user", "login_password", "login_db", "ssl_mode", "ca_cert", "ssl_cert", "ssl_key")


class LookupModule(LookupBase):
    """The lookup of this file."""

    def run(self, terms, variables=None, **kwargs):
        """Return where keys are."""
        self.set_options(var_options=variables, direct=kwargs)
        try:
            login = Login.from_params({name: self.get_option(name) for name in LOGIN})
            return ask(
                login,
                self.get_option("host"),
                self.get_option("port"),
                self.get_option("group"),
                terms,
                self.get_option("timeout_s"),
            )
        except HeadroomError as error:
            # Ansible would repeat the cause, which the sentence has already
            raise AnsibleLookupError(str(error)) from None
        except ModuleNotFoundError as error:
            raise AnsibleLookupError("The Python library psycopg is missing on the controller.") from error
