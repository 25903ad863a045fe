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
