# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time one task that judges a cluster of a hundred nodes against a loop of ``community.general.redis_info`` over the same nodes.

The nodes are real servers, half of them replicas, started on the lab's hosts for this. Both sides run on the host that runs
this. What is timed is the task from its start to its end, as ansible-core reports it; starting ansible-playbook is left out on
both sides. The two take turns, and each pair of turns gives one ratio. Prints one line of JSON per number of nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import typing as t

from _figures import figure, task_span
from _servers import Server, cluster, run_on_lab
from integration.conftest import INVENTORIES, Lab

FIRST_PORT = 7201

PLAY = r"""
- name: Time one way to look at many nodes
  hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Ours
      headroom.scale.redis_cluster_health:
        nodes: "{{ bench_nodes }}"
        tls: false
        allow_same_host: true
        fail_on: never
      register: seen
      when: bench_way == 'ours'

    - name: Peer
      community.general.redis_info:
        login_host: "{{ item.host }}"
        login_port: "{{ item.port }}"
        cluster: true
      loop: "{{ bench_nodes }}"
      loop_control:
        label: "{{ item.name }}"
      register: facts
      when: bench_way == 'peer'

    - name: Believe no time of a run that did not see a healthy cluster of all nodes
      ansible.builtin.assert:
        that:
          - (bench_way == 'ours' and seen.healthy and seen.summary.nodes == bench_nodes | length
             and seen.summary.unreachable == 0)
            or (bench_way == 'peer' and facts.results | map(attribute='cluster_info.cluster_known_nodes') | map('int')
                | select('equalto', bench_nodes | length) | length == bench_nodes | length)
        quiet: true
"""


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["redis", "valkey"], default="redis", help="whose servers to run")
    parser.add_argument(
        "--hosts", nargs="+", default=["redis1", "redis2", "redis3"], help="hosts of the lab to run them on"
    )
    parser.add_argument("--nodes", nargs="+", type=int, default=[6, 25, 100], help="numbers of nodes to run with")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round with six nodes, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.nodes, options.rounds = [6], 1
    if min(options.nodes) < 6:
        parser.error("--nodes must be at least 6")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def seconds(servers: t.Sequence[Server], way: str) -> float:
    """Run one way once and return the seconds that its task took.

    :raises RuntimeError: when a node was not seen.
    """
    extra = {
        "bench_way": way,
        "bench_nodes": [{"name": one.name, "host": one.host, "port": one.port} for one in servers],
    }
    with tempfile.TemporaryDirectory() as folder:
        return task_span(PLAY, way, INVENTORIES, extra, folder).seconds


def measure(options: argparse.Namespace, lab: Lab, nodes: int) -> None:
    """Run all turns with one cluster and print their figure."""
    ours: list[float] = []
    peer: list[float] = []
    load = round(os.getloadavg()[0], 2)
    replicas = nodes // 2
    with cluster(lab, options.engine, options.hosts, FIRST_PORT, nodes - replicas, replicas) as servers:
        version = servers[0].client.info("server")[f"{options.engine}_version"]
        for _round in range(options.rounds):
            ours.append(seconds(servers, "ours"))
            peer.append(seconds(servers, "peer"))
    line = figure(
        "redis_cluster_health",
        f"seconds_per_{nodes}_nodes",
        "s",
        ours,
        peer,
        "loop of community.general.redis_info",
        engine=f"{options.engine} {version}",
        load=load,
    )
    print(json.dumps(line), flush=True)


def main() -> int:
    """Run the benchmark."""
    options = arguments()

    def work(lab: Lab) -> None:
        for nodes in options.nodes:
            measure(options, lab, nodes)

    return run_on_lab(work)


if __name__ == "__main__":
    sys.exit(main())
