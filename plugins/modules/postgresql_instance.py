#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_instance
short_description: Create, configure, clone, rejoin, fence and promote a PostgreSQL instance
version_added: 0.1.0
description:
  - Brings one PostgreSQL instance on the node it runs on to the declared state, as primary or as streaming replica.
  - The instance is laid out as Debian's packages do it, with its configuration in C(/etc/postgresql/VERSION/NAME) and its
    systemd unit C(postgresql@VERSION-NAME).
  - Every configuration file is written whole, checked by the server's own program where it can, and restored when a reload
    does not take it.
  - A healthy data directory is never touched. One that cannot follow its upstream any more is rejoined only as far as
    O(rebuild) allows, by pg_rewind or by a base backup that is built beside it and takes its place once it is whole; the
    former one is kept until the new one streams.
  - It may be killed at any point; the next run goes on from what it finds.
options:
  version:
    description: Major version of PostgreSQL, from 13 to 18. Its packages must be installed (in check mode they may be missing).
    type: int
    required: true
  name:
    description: Name of the instance.
    type: str
    default: main
  data_directory:
    description:
      - The data directory; by default C(/var/lib/postgresql/VERSION/NAME).
      - It is replaced by renaming, so it must not be a mount point itself; use a directory below one.
    type: path
  state:
    description:
      - V(present) makes the instance exist and run as O(role) says, configured as declared.
      - V(stopped) stops a replica and keeps it from starting at boot; its files stay.
      - V(absent) stops a replica and removes its configuration and its data.
      - V(fenced) shuts a primary down cleanly in such a way that it cannot come back as a primary, and returns the end of its
        WAL in RV(instance.fence).
      - V(promoted) makes a replica the primary once it has replayed exactly up to O(wal_end_lsn), or undoes V(fenced).
    type: str
    default: present
    choices: [present, stopped, absent, fenced, promoted]
  role:
    description:
      - What the instance is to be. Needed for O(state=present).
      - A running primary is never made a replica, nor a replica a primary; that is what V(fenced) and V(promoted) are for.
    type: str
    choices: [primary, replica]
  port:
    description: TCP port that the server listens on.
    type: int
    default: 5432
  settings:
    description:
      - Settings of C(postgresql.conf) by name. Together with those that follow from the other options they are the whole file.
      - On a replica the five settings that may not be lower than the primary's are kept as high as its control file says.
    type: dict
    default: {}
  hba:
    description:
      - The lines of C(pg_hba.conf) in order, after C(local all postgres peer). Nothing else is let in.
    type: list
    elements: dict
    default: []
    suboptions:
      type:
        description: Kind of connection.
        type: str
        default: hostssl
        choices: [local, host, hostssl, hostnossl]
      database:
        description: Database name, V(all) or V(replication).
        type: str
        required: true
      user:
        description: Login name or V(all).
        type: str
        required: true
      address:
        description: Address in CIDR notation or host name; needed for all types but V(local).
        type: str
      method:
        description: How the login is proven.
        type: str
        default: scram-sha-256
        choices: [scram-sha-256, cert, peer, reject]
      options:
        description: Options of the method, such as V(clientcert=verify-full).
        type: str
  tls_certificate:
    description: Certificate of the server in PEM. Without it TLS is off.
    type: str
  tls_key:
    description: Private key that belongs to O(tls_certificate), in PEM.
    type: str
  tls_ca:
    description: Certificate authority in PEM that clients' and the upstream's certificates are checked with.
    type: str
  upstream:
    description: The server that a replica streams from. Needed for O(role=replica).
    type: dict
    suboptions:
      host:
        description: Host name or address.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        default: 5432
      ssl_mode:
        description: How far the upstream's certificate is checked; the values of libpq.
        type: str
        default: prefer
        choices: [disable, allow, prefer, require, verify-ca, verify-full]
  cluster_name:
    description: Name under which the instance shows itself, also to its upstream. Usually the host's name.
    type: str
  replication_login:
    description:
      - Login that replicas use. Created on a primary with what pg_basebackup and pg_rewind need; used by a replica.
      - The password goes to PostgreSQL as a SCRAM verifier and lies in a password file that only C(postgres) reads.
    type: dict
    suboptions:
      name:
        description: Name of the login.
        type: str
        required: true
      password:
        description: Its password, at least 8 printable ASCII characters.
        type: str
        required: true
  monitoring_login:
    description: Login for M(headroom.scale.postgresql_replica_health), created on a primary as a member of C(pg_monitor).
    type: dict
    suboptions:
      name:
        description: Name of the login.
        type: str
        required: true
      password:
        description: Its password, at least 8 printable ASCII characters.
        type: str
        required: true
  slots:
    description:
      - Physical replication slots that must exist here, one for each replica that streams from this instance.
      - Slots that begin with O(slot_prefix) and are not listed are dropped once no replica uses them; others are never touched.
    type: list
    elements: str
    default: []
  slot_prefix:
    description: What the names of the slots begin with that this module owns.
    type: str
    default: headroom_
  slot_name:
    description: Slot on the upstream that a replica uses.
    type: str
  rebuild:
    description:
      - How far a replica that cannot follow its upstream any more may be rebuilt.
      - V(never) fails with the reason, V(rewind) allows pg_rewind after a diverged timeline, V(basebackup) also allows a new
        base backup.
    type: str
    default: never
    choices: [never, rewind, basebackup]
  restart:
    description: Whether a restart may be done here when a setting needs one. If not, RV(restart_required) names the settings.
    type: bool
    default: true
  locale:
    description: Locale of a new primary's databases.
    type: str
    default: C.UTF-8
  max_rate_kib_s:
    description: Upper limit for a base backup in KiB/s, from 32 to 1048576. No limit by default.
    type: int
  wal_end_lsn:
    description: Where the WAL of the fenced primary ends. Needed to promote a replica.
    type: str
  candidate:
    description: Name of the replica that a fenced primary hands over to, for the journal.
    type: str
  progress_interval_s:
    description: Seconds between two reports of a running base backup.
    type: float
    default: 5.0
extends_documentation_fragment:
  - headroom.scale.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: headroom.scale.postgresql_instance_info
  - module: headroom.scale.postgresql_replica_health
author:
  - headroom.scale contributors (@headroom-scale)
"""

EXAMPLES = r"""
- name: A primary
  headroom.scale.postgresql_instance:
    version: 17
    role: primary
    cluster_name: pg1
    settings:
      listen_addresses: "*"
      wal_level: replica
    hba:
      - type: hostssl
        database: replication
        user: replicator
        address: 10.77.0.0/24
    replication_login:
      name: replicator
      password: "{{ vault_replicator_password }}"
    slots: [headroom_pg2]
  become: true

- name: A replica of it, rebuilt when it has diverged
  headroom.scale.postgresql_instance:
    version: 17
    role: replica
    cluster_name: pg2
    upstream:
      host: pg1
    slot_name: headroom_pg2
    replication_login:
      name: replicator
      password: "{{ vault_replicator_password }}"
    rebuild: rewind
  become: true
"""

RETURN = r"""
summary:
  description: One sentence on what was done or would be done.
  type: str
  returned: success
  sample: 9 steps were taken on instance 17/main.
plan:
  description: The steps in order.
  type: list
  elements: dict
  returned: always
  contains:
    action:
      description: Kind of the step.
      type: str
      sample: clone
    object:
      description: What it acts on.
      type: str
      sample: /var/lib/postgresql/17/main
    why:
      description: Why it is needed.
      type: str
      sample: there is no data directory
finished:
  description: False while a base backup still runs; the task of that name goes on until it is true.
  type: bool
  returned: success
progress:
  description: How far a running base backup is, with C(done_bytes), C(total_bytes) and C(percent).
  type: dict
  returned: while a base backup runs
restart_required:
  description: Settings that wait for a restart which O(restart=false) did not allow.
  type: list
  elements: str
  returned: success
  sample: [shared_buffers]
floored_settings:
  description: Settings that a replica keeps higher than declared, until its primary has come down and it has replayed that.
  type: list
  elements: str
  returned: success
  sample: []
slots_in_use:
  description: Slots of this module that are not declared any more but still in use, so they were not dropped.
  type: list
  elements: str
  returned: success
  sample: []
instance:
  description: What was seen at the end.
  type: dict
  returned: always
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
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import options
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.converge import converge


def work(module):
    """Converge the instance."""
    wanted = options.wanted(module.params)
    result = converge(wanted, check_mode=module.check_mode, slice_s=module.params["progress_interval_s"])
    if not module._diff:
        del result["diff"]
    return result


def main():
    spec = options.identity_spec().merge(options.instance_spec())
    run(AnsibleModule(supports_check_mode=True, **spec.to_kwargs()), work)


if __name__ == "__main__":
    main()
