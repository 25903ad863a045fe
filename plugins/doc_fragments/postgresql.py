# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options to log in to PostgreSQL; they match ``module_utils/_postgresql/connection.py``."""

from __future__ import annotations


class ModuleDocFragment:
    """Options shared by all modules that connect to PostgreSQL."""

    DOCUMENTATION = r"""
options:
  login_user:
    description:
      - Role to log in with.
    type: str
    default: postgres
    version_added: 0.1.0
  login_password:
    description:
      - Password of O(login_user).
      - Without it, what libpq finds on the host that runs the module is used, such as C(~/.pgpass).
    type: str
    version_added: 0.1.0
  login_db:
    description:
      - Database to connect to.
    type: str
    default: postgres
    version_added: 0.1.0
  ssl_mode:
    description:
      - Whether and how strictly TLS is used, as in libpq.
      - V(verify-ca) and V(verify-full) require O(ca_cert).
    type: str
    choices:
      - allow
      - disable
      - prefer
      - require
      - verify-ca
      - verify-full
    default: prefer
    version_added: 0.1.0
  ca_cert:
    description:
      - File with the certificates of the authorities that may have signed the servers' certificates, in PEM format.
    type: path
    version_added: 0.1.0
  ssl_cert:
    description:
      - File with the client's certificate in PEM format. Requires O(ssl_key).
    type: path
    version_added: 0.1.0
  ssl_key:
    description:
      - File with the client's private key in PEM format. Requires O(ssl_cert).
    type: path
    version_added: 0.1.0
requirements:
  - psycopg >= 3.1 on the host that runs the module
"""

    MEMBERS = r"""
options:
  shards:
    description:
      - The shards, in the order in which they joined.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the shard, once among all members. Of a-z, 0-9 and C(_), a letter first, at most 32 characters.
        type: str
        required: true
      host:
        description:
          - Address or name of its server, as the members and the host that runs the module reach it.
        type: str
        required: true
      port:
        description:
          - Port of its server.
        type: int
        default: 5432
      database:
        description:
          - The database that is the shard. By default O(login_db).
        type: str
      application_host:
        description:
          - Address or name that applications are told. By default O(shards[].host).
        type: str
      application_port:
        description:
          - Port that applications are told. By default O(shards[].port).
        type: int
      weight:
        description:
          - Its share in relation to that of the others, from 0 to 100. V(0) is to be emptied.
        type: float
        default: 1
      state:
        description:
          - V(active) takes its share, V(draining) is to be emptied, V(read_only) keeps what it has and gets nothing more.
        type: str
        choices:
          - active
          - draining
          - read_only
        default: active
      capacity_bytes:
        description:
          - Bytes that its buckets may take. Without it there is no limit.
        type: int
  routers:
    description:
      - Databases that have all sharded tables as foreign tables. They hold no rows; have as many as needed.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the router, once among all members.
        type: str
        required: true
      host:
        description:
          - Address or name of its server.
        type: str
        required: true
      port:
        description:
          - Port of its server.
        type: int
        default: 5432
      database:
        description:
          - The database that is the router. By default O(login_db).
        type: str
  cluster:
    description:
      - Name of the cluster. A member of another one is refused.
    type: str
    default: shards
    version_added: 0.1.0
  member_user:
    description:
      - Role by which members log in to each other. It must exist on all of them.
      - Its password is in no statement. libpq finds it on the members, in C(~/.pgpass) of the user that runs the server.
    type: str
    default: headroom_member
    version_added: 0.1.0
  member_ssl_mode:
    description:
      - Whether and how strictly members use TLS between each other, as in libpq.
      - V(verify-ca) and V(verify-full) require O(member_ca_cert).
    type: str
    choices:
      - allow
      - disable
      - prefer
      - require
      - verify-ca
      - verify-full
    default: prefer
    version_added: 0.1.0
  member_ca_cert:
    description:
      - File on the members with the certificates of the authorities that may have signed the members' certificates.
    type: str
    version_added: 0.1.0
  timeout_s:
    description:
      - Seconds that a member is given to be reached, and to answer a question about its catalogs.
    type: float
    default: 10
    version_added: 0.1.0
"""
