#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the Redis or Valkey servers of one host as declared."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_instance
short_description: Keep the Redis or Valkey servers of one host as declared
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Configures and runs all cluster nodes of a host in one task, each as an instance of the distribution's unit template, named
    by its port.
  - Directives are compared, not text, since a server writes its own file anew. They are compared with the file and with the
    running server. So are users and the certificate that the server shows, so that a run that was interrupted, and a change
    made by hand on the server, are seen.
  - What the running server can take is set on it, without a restart. What it takes at its start alone is written and told in
    RV(restart_required).
  - When the running server refuses a setting, the files and the settings are put back.
extends_documentation_fragment:
  - headroom.scale.attributes
attributes:
  check_mode:
    support: full
    details:
      - Says what the run does, on a host too where nothing is installed yet.
      - A running server is asked what the declared rights mean, with a user that exists inside of one transaction only.
  diff_mode:
    support: full
    details:
      - Passwords and their digests are masked.
  idempotent:
    support: full
options:
  engine:
    description:
      - Which server it is. The packages of the distribution must be installed.
    type: str
    choices: [redis, valkey]
    default: redis
    version_added: 0.1.0
  instances:
    description:
      - The instances of the host.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      port:
        description:
          - TCP port, at most V(55535), since the cluster bus has the port 10000 above it.
        type: int
        required: true
      settings:
        description:
          - Directives of this instance, over O(settings).
        type: dict
        default: {}
  settings:
    description:
      - Directives of all instances, by name. A truth value becomes C(yes) or C(no), a list its items in one line.
      - Directives that make an instance this one, such as C(port), C(dir) and C(aclfile), are set by the module and refused here.
      - What the server does not tell with C(CONFIG GET), such as C(loadmodule), C(rename-command) and C(include), waits for a restart.
    type: dict
    default: {}
    version_added: 0.1.0
  users:
    description:
      - The users of the servers. Others are removed, and C(default) is off unless it is listed.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the user.
        type: str
        required: true
      password:
        description:
          - Its password, at least 8 characters. Only its digest is written. Without it the user cannot log in.
        type: str
      former_password:
        description:
          - The password before O(users[].password), which is good too as long as it is given. With it the module also finds its way
            in while O(login_password) changes.
        type: str
      rules:
        description:
          - What it may do, as ACL rules.
        type: str
        default: ""
      rules_since:
        description:
          - More rules, by the version of the server that is the first to know them, such as V(9.0). What counts is the version that
            runs, and where none does the installed one.
        type: dict
        default: {}
  login_user:
    description:
      - User that the module logs in as, over the instance's own socket. List it in O(users) with all rights.
    type: str
    required: true
    version_added: 0.1.0
  login_password:
    description:
      - Password of O(login_user).
    type: str
    required: true
    version_added: 0.1.0
  replication_user:
    description:
      - User that replicas log in to their primary as.
    type: str
    version_added: 0.1.0
  replication_password:
    description:
      - Password of O(replication_user).
    type: str
    version_added: 0.1.0
  tls_certificate:
    description:
      - The host's certificate in PEM format. With it clients, replicas and the cluster bus use TLS, and there is no port without.
    type: str
    version_added: 0.1.0
  tls_key:
    description:
      - Private key of O(tls_certificate) in PEM format.
    type: str
    version_added: 0.1.0
  tls_ca:
    description:
      - Certificates of the authorities that signed the nodes' certificates, in PEM format.
    type: str
    version_added: 0.1.0
  restart:
    description:
      - Ports of the instances that may be restarted where a setting or a new version needs it.
    type: list
    elements: int
    default: []
    version_added: 0.1.0
  wait_s:
    description:
      - Seconds that an instance is given to answer after its start, while it loads its data.
    type: float
    default: 60
    version_added: 0.1.0
requirements:
  - redis (the Python library) >= 4.3 on the host
seealso:
  - module: headroom.scale.redis_cluster
"""

EXAMPLES = r"""
- name: Two nodes on each host
  headroom.scale.redis_instance:
    instances:
      - port: 6379
      - port: 6380
    settings:
      bind: ["{{ ansible_host }}", 127.0.0.1]
      maxmemory: 2gb
      maxmemory-policy: allkeys-lru
      appendonly: true
    users:
      - name: admin
        password: "{{ redis_admin_password }}"
        rules: ~* &* +@all
    login_user: admin
    login_password: "{{ redis_admin_password }}"
  become: true
"""

RETURN = r"""
instances:
  description: The instances, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    port:
      description: Its port.
      type: int
      sample: 6379
    changed:
      description: Whether anything was changed of it.
      type: bool
      sample: true
    plan:
      description: The steps, each with C(action), C(object) and C(why).
      type: list
      elements: dict
      sample:
        - action: set
          object: maxmemory
          why: it is 1073741824
    restart_required:
      description: Directives, and a new version, that only a restart applies.
      type: list
      elements: str
      sample: [io-threads]
    running:
      description: Whether it runs.
      type: bool
      sample: true
    version:
      description: Version of the running server.
      type: str
      sample: 8.0.2
restart_required:
  description: Ports of the instances that need a restart.
  returned: success
  type: list
  elements: int
  sample: [6379]
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
  sample:
    - code: refused
      message: "Failed to set maxmemory-policy on port 6379: argument must be one of the following. The files are as they were."
      port: 6379
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.instance.converge import (  # noqa: E402
    converge,
    instance_spec,
    parse_options,
)


def main():
    module = AnsibleModule(supports_check_mode=True, **instance_spec().to_kwargs())
    run(module, lambda module: converge(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
