# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time one task that judges fifty nodes against a loop of ``community.postgresql.postgresql_ping`` over the same fifty.

Both run on the host that runs this, against the servers of a group in an inventory. A lab rarely has fifty servers, so each
server is listed under as many names as are needed: every name costs a connection and all queries, on both sides. What is timed
is the task from its start to its end, as ansible-core reports it; starting ansible-playbook is left out on both sides.
The two take turns, and each pair of turns gives one ratio. Prints one line of JSON per figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

from _figures import figure, task_span

PLAY = r"""
- name: Time one way to look at many nodes
  hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    hosts: "{{ groups[bench_group] | sort }}"
    first: "{{ hostvars[hosts[0]] }}"
    user: "{{ bench_login_user or first['postgresql_replication_monitoring_user'] | default('headroom_monitor') }}"
    password: >-
      {{ lookup('ansible.builtin.env', 'BENCH_LOGIN_PASSWORD') or first['postgresql_replication_monitoring_password'] }}
  tasks:
    - name: List the nodes
      ansible.builtin.set_fact:
        nodes: >-
          {{ (nodes | default([])) + [{
            'name': '%s-%03d' | format(server, item),
            'host': hostvars[server]['postgresql_replication_host'] | default(hostvars[server]['ansible_host'], true)
                    | default(server, true),
            'port': hostvars[server]['postgresql_replication_port'] | default(5432) | int}] }}
      vars:
        server: "{{ hosts[item % (hosts | length)] }}"
      loop: "{{ range(bench_nodes | int) | list }}"

    - name: Ours
      headroom.scale.postgresql_replica_health:
        nodes: "{{ nodes }}"
        login_user: "{{ user }}"
        login_password: "{{ password }}"
        ssl_mode: "{{ bench_ssl_mode }}"
        fail_on: never
      register: seen
      when: bench_way == 'ours'

    - name: Peer
      community.postgresql.postgresql_ping:
        login_host: "{{ item.host }}"
        login_port: "{{ item.port }}"
        login_user: "{{ user }}"
        login_password: "{{ password }}"
        login_db: postgres
        ssl_mode: "{{ bench_ssl_mode }}"
      loop: "{{ nodes }}"
      loop_control:
        label: "{{ item.name }}"
      register: pings
      when: bench_way == 'peer'

    - name: Believe no time of a run that did not reach every node
      ansible.builtin.assert:
        that:
          - (bench_way == 'ours' and seen['summary']['nodes'] == bench_nodes | int
             and seen['summary']['unreachable'] == 0)
            or (bench_way == 'peer' and pings['results'] | selectattr('is_available') | length == bench_nodes | int)
        quiet: true
"""


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--inventory",
        default=str(Path(__file__).parents[2] / "inventories" / "lab"),
        help="inventory (default: the lab)",
    )
    parser.add_argument("--group", default="postgresql", help="group of the servers (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=50, help="number of nodes (default: %(default)s)")
    parser.add_argument("--nodes-per-server", type=int, help="names per server, instead of --nodes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--login-user", default="", help="role to log in with (default: the group's monitoring role)")
    parser.add_argument("--ssl-mode", default="prefer", help="as in libpq (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round with six nodes, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.nodes, options.nodes_per_server, options.rounds = 6, None, 1
    for name in ("nodes", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.nodes_per_server is not None:
        if options.nodes_per_server < 1:
            parser.error("--nodes-per-server must be at least 1")
        options.nodes = options.nodes_per_server * servers(options)
    return options


def servers(options: argparse.Namespace) -> int:
    """Return the number of servers in the group."""
    command = ["ansible", "-i", options.inventory, options.group, "--list-hosts"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return max(1, len(lines) - 1)


def seconds(options: argparse.Namespace, way: str, folder: str) -> float:
    """Run one way once and return the seconds that its task took.

    :raises RuntimeError: when a node was not reached.
    """
    extra = {
        "bench_way": way,
        "bench_group": options.group,
        "bench_nodes": options.nodes,
        "bench_ssl_mode": options.ssl_mode,
        "bench_login_user": options.login_user,
    }
    return task_span(PLAY, way, [options.inventory], extra, folder).seconds


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for _dummy in range(options.rounds):
                ours.append(seconds(options, "ours", folder))
                peer.append(seconds(options, "peer", folder))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"Failed to run the benchmark on {options.inventory}: {error}", file=sys.stderr)
            return 1
    name = f"seconds_per_{options.nodes}_nodes"
    line = figure("postgresql_replica_health", name, "s", ours, peer, "loop of community.postgresql.postgresql_ping")
    print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
