# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options to log in to Redis and Valkey, the nodes of a cluster, and of the lock on it.

They match ``module_utils/_common/redis/connection.py`` and ``module_utils/_redis_cluster/lock.py``.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Options shared by all modules that connect to the nodes of a cluster."""

    DOCUMENTATION = r"""
options:
  login_user:
    description:
      - ACL user to log in as. Without it, O(login_password) is that of the user C(default). Requires O(login_password).
    type: str
    version_added: 0.1.0
  login_password:
    description:
      - Password of O(login_user).
    type: str
    version_added: 0.1.0
  tls:
    description:
      - Whether the nodes are spoken to over TLS.
    type: bool
    default: true
    version_added: 0.1.0
  validate_certs:
    description:
      - Whether a node's certificate must be signed by O(ca_certs), or an authority that the host trusts, and be its own.
    type: bool
    default: true
    version_added: 0.1.0
  ca_certs:
    description:
      - File with the certificates of the authorities that may have signed the nodes' certificates, in PEM format.
    type: path
    version_added: 0.1.0
  client_cert_file:
    description:
      - File with the client's certificate in PEM format. Requires O(client_key_file).
    type: path
    version_added: 0.1.0
  client_key_file:
    description:
      - File with the client's private key in PEM format. Requires O(client_cert_file).
    type: path
    version_added: 0.1.0
  timeout_s:
    description:
      - Seconds that a node is given for an answer.
    type: float
    default: 5
    version_added: 0.1.0
requirements:
  - hiredis (the Python library) >= 2.0 on the host that runs the module
"""

    # options of modules that hold the lock on their cluster
    LOCK = r"""
options:
  cluster:
    description:
      - Name of the cluster's lock, which keeps two runs from working on the cluster at the same time.
    type: str
    default: redis
    version_added: 0.1.0
  lock_wait_s:
    description:
      - Seconds to wait for the lock.
    type: float
    default: 0
    version_added: 0.1.0
"""

    # of those that only need to know where the nodes are
    NODES = r"""
options:
  nodes:
    description:
      - All nodes of the cluster.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the node, once in the list.
        type: str
        required: true
      host:
        description:
          - Host name or address of the server, as its fellow nodes reach it too. Defaults to the name.
        type: str
      port:
        description:
          - TCP port of the server.
        type: int
        default: 6379
"""
