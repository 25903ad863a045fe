#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_instance_info
short_description: Read what a PostgreSQL instance on this node is, and what its host offers
version_added: 0.1.0
description:
  - Reads role, timeline, position, slots and a pending switchover of one PostgreSQL instance, and memory, processors, clock and
    free disk of its host, in one task and without changing anything.
  - Works before PostgreSQL is installed too; RV(instance.exists) is then false.
options:
  version:
    description:
      - Major version of PostgreSQL, from 13 to 18.
      - By default the one that the host's release carries, which is 15 on Debian 12 and 17 on Debian 13.
    type: int
  name:
    description: Name of the instance.
    type: str
    default: main
  data_directory:
    description: The data directory; by default C(/var/lib/postgresql/VERSION/NAME).
    type: path
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.attributes.info_module
seealso:
  - module: headroom.scale.postgresql_instance
author:
  - headroom.scale contributors (@headroom-scale)
"""

EXAMPLES = r"""
- name: What is there
  headroom.scale.postgresql_instance_info:
    version: 17
  become: true
  register: seen
"""

RETURN = r"""
instance:
  description: What was seen.
  type: dict
  returned: success
  contains:
    version:
      description: Major version.
      type: int
      sample: 17
    name:
      description: Name.
      type: str
      sample: main
    data_directory:
      description: Data directory.
      type: str
      sample: /var/lib/postgresql/17/main
    installed:
      description: Whether the server's programs are installed.
      type: bool
      sample: true
    exists:
      description: Whether there is a data directory.
      type: bool
      sample: true
    role:
      description: V(primary), V(replica) or null while there is no data directory.
      type: str
      sample: replica
    running:
      description: Whether the server runs.
      type: bool
      sample: true
    streaming:
      description: Whether a replica receives WAL.
      type: bool
      sample: true
    system_identifier:
      description: Identifies the cluster the data belongs to.
      type: str
      sample: "7575028214471720811"
    timeline:
      description: Timeline.
      type: int
      sample: 1
    lsn:
      description: Position in the WAL, received or written.
      type: str
      sample: 0/504A6A0
    data_bytes:
      description: Size of all databases in bytes, or null while the server does not run.
      type: int
      sample: 23024739
    control_state:
      description: State of the database cluster in the control file.
      type: str
      sample: in archive recovery
    slots:
      description: Physical replication slots on it.
      type: list
      elements: str
      sample: []
    fence:
      description: The journal of a switchover from this primary, with C(candidate), C(timeline) and C(wal_end_lsn), or null.
      type: dict
      sample: null
    pending_restart:
      description: Settings that wait for a restart.
      type: list
      elements: str
      sample: []
host:
  description: What the host offers.
  type: dict
  returned: success
  contains:
    memory_bytes:
      description: Memory, or the limit of the control group when that is lower.
      type: int
      sample: 25281662976
    cpus:
      description: Processors that may be used.
      type: int
      sample: 2
    distribution:
      description: ID of the distribution in C(/etc/os-release).
      type: str
      sample: debian
    distribution_version:
      description: VERSION_ID of the distribution.
      type: str
      sample: "13"
    clock_s:
      description: The host's clock, in seconds since 1970.
      type: float
      sample: 1767225600.31
    clock_skew_s:
      description:
        - How many seconds the host's clock is ahead of the controller's at least. What the task took on its way is not held against it.
      type: float
      sample: 0.0
    disk_free_bytes:
      description: Free bytes on the file system of the data directory.
      type: int
      sample: 85899345920
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import options
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.converge import facts, host_facts
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import Wanted
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.observe import observe


def work(module):
    """Observe the instance and its host."""
    host = {**host_facts(), "clock_s": time.time()}
    version = module.params["version"] or options.release_version(host["distribution"], host["distribution_version"])
    wanted = Wanted(paths=options.paths({**module.params, "version": version}), state="info")
    observed = observe(wanted)
    host["disk_free_bytes"] = observed.disk_free_bytes
    return {"changed": False, "instance": facts(observed, wanted), "host": host}


def main():
    spec = options.identity_spec(version_required=False)
    run(AnsibleModule(supports_check_mode=True, **spec.to_kwargs()), work)


if __name__ == "__main__":
    main()
