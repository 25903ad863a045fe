# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options to reach a Kubernetes API server; they match ``module_utils/_autoscaling/kube/connection.py``."""

from __future__ import annotations


class ModuleDocFragment:
    """Options shared by all modules that talk to a Kubernetes API server."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description:
      - File on the host that runs the module that says where the API server is and how to log in, by certificate, token,
        password, or a credential plugin (C(exec)).
      - By default it is the file that the environment variable E(KUBECONFIG) names, or else C(~/.kube/config). Without any of
        these, the service account of the pod that the module runs in is used.
    type: path
    version_added: 0.1.0
  context:
    description:
      - Context of the kubeconfig. By default its current one.
    type: str
    version_added: 0.1.0
  host:
    description:
      - URL of the API server, such as V(https://k8s.example.com:6443). Excludes O(kubeconfig) and O(context).
    type: str
    version_added: 0.1.0
  token:
    description:
      - Bearer token to log in with. Requires O(host).
    type: str
    version_added: 0.1.0
  ca_cert:
    description:
      - File with the certificates of the authorities that may have signed the API server's certificate, in PEM format.
        Requires O(host). Without it the authorities that the Python library C(certifi) lists are trusted.
    type: path
    version_added: 0.1.0
  validate_certs:
    description:
      - Whether the API server's certificate must be signed by a trusted authority and be its own.
    type: bool
    default: true
    version_added: 0.1.0
  client_cert:
    description:
      - File with the client's certificate in PEM format. Requires O(host) and O(client_key).
    type: path
    version_added: 0.1.0
  client_key:
    description:
      - File with the client's private key in PEM format. Requires O(client_cert).
    type: path
    version_added: 0.1.0
  timeout_s:
    description:
      - Seconds that the whole run is given, of which a connection may take at most 5.
    type: float
    default: 30
    version_added: 0.1.0
requirements:
  - requests (the Python library) >= 2.25 on the host that runs the module
  - PyYAML on the host that runs the module, for a kubeconfig
"""
