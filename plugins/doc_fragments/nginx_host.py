# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules that keep the nginx of a host have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """The options that do not depend on what nginx is for."""

    DOCUMENTATION = r"""
options:
  management:
    description:
      - Where state is read and changed, over HTTP. Only the networks named here, and the host itself, get in; there is no password, so name
        none but those that manage the host.
    type: dict
    version_added: 0.1.0
    suboptions:
      address:
        description:
          - Address of the host, version 4.
        type: str
        default: 127.0.0.1
      port:
        description:
          - TCP port.
        type: int
        default: 8181
      allow:
        description:
          - Networks that get in.
        type: list
        elements: str
        default: []
  trusted_proxies:
    description:
      - Networks of what stands before the host, such as a CDN. The client's address is taken from O(real_ip_header) of requests
        that come from them.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  real_ip_header:
    description:
      - Header in which O(trusted_proxies) hand over the client's address.
    type: str
    default: X-Forwarded-For
    version_added: 0.1.0
  user:
    description:
      - User that the workers run as.
    type: str
    default: www-data
    version_added: 0.1.0
  worker_connections:
    description:
      - Connections that each worker can have, those to servers included.
    type: int
    default: 4096
    version_added: 0.1.0
  program:
    description:
      - Program of nginx.
    type: path
    default: /usr/sbin/nginx
    version_added: 0.1.0
  config_file:
    description:
      - Configuration that nginx starts with. Releases lie in the directory C(headroom) beside it.
    type: path
    default: /etc/nginx/nginx.conf
    version_added: 0.1.0
  wait_s:
    description:
      - Seconds that new workers, and what is probed, are given to answer before what was there is put back.
    type: float
    default: 15
    version_added: 0.1.0
"""
