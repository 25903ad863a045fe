# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time ``cache_flush`` against what people do by hand with redis-cli: a third of the keys of a cluster of six nodes, with clients at work.

The same keys are deleted by the module, as a user runs it through ansible-playbook, and by two ways of redis-cli, all primaries at once:

- ``redis-cli --scan | redis-cli``, one command of UNLINK for each key through one connection. This is the quickest of the ways by hand.
- ``redis-cli --scan | xargs -n 1 redis-cli unlink``. A cluster takes no keys of different slots in one command, so it is one process
  for each key. It is ended after some seconds, and its rate is that of the keys that were gone by then.

All take turns, and each turn gives one ratio. What is timed is the task from its start to its end, as ansible-core reports it, with the
wait until the replicas have it, and the command inside its host. A few clients get and set other keys meanwhile. Their latency counts
from when a command was due. Prints one line of JSON per figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import typing as t
from dataclasses import dataclass

from _figures import Span, figure, task_span
from _servers import Server, cluster, fill, run_on_lab
from integration.conftest import INVENTORIES, Lab
from redis_cluster_rebalance import LIVE_CLIENTS, Live

BENCH = "cache_flush"
FIRST_PORT = 7301
PEER_TIMEOUT_S = 3000
OURS, PIPED, XARGS = "ours", "redis-cli --scan | redis-cli", "redis-cli --scan | xargs -n 1 redis-cli unlink"

PLAY = r"""
- name: Time the collection's way to flush keys
  hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Ours
      headroom.scale.cache_flush:
        nodes: "{{ bench_nodes }}"
        tls: false
        patterns: ["{{ bench_pattern }}"]
        in_flight_s: 0
        max_latency_ms: "{{ bench_latency_ms }}"
"""


@dataclass(frozen=True)
class Turn:
    """What one flush by one way came to."""

    keys_per_s: float
    p99_ms: float


class Bench:
    """Deletes the same keys by each way in turn."""

    def __init__(self, options: argparse.Namespace, lab: Lab, servers: list[Server]) -> None:
        """Take the servers, of which the first half are the primaries."""
        self.options = options
        self.lab = lab
        self.servers = servers
        self.primaries = servers[: len(servers) // 2]
        # the names of keys have eight digits
        self.pattern = f"key:{'0' * (8 - (len(str(options.matching)) - 1))}*"

    def turn(self, way: str) -> Turn:
        """Delete by one way, and set what was deleted again.

        :raises RuntimeError: when keys are left, or others are gone, or a client's command failed.
        """
        options = self.options
        live = [
            Live(self.primaries, options.keys, options.value_bytes, seed, first=options.matching)
            for seed in range(LIVE_CLIENTS)
        ]
        for thread in live:
            thread.start()
        try:
            span = self._ours() if way == OURS else self._peer(way)
        finally:
            for thread in live:
                thread.finish()
        left = sum(server.keys() for server in self.primaries) - (options.keys - options.matching)
        if left < 0 or (left and way != XARGS):
            raise RuntimeError(f"{left} keys more than there should be are left")
        failures = [text for one in live for text in one.failures]
        if failures:
            raise RuntimeError(f"{len(failures)} commands of clients failed, such as: {failures[0]}")
        found = sorted(ms for one in live for due, ms in one.samples if span.began_s <= due <= span.ended_s)
        fill(self.primaries, options.matching, options.value_bytes, there=options.keys)
        if not found:
            raise RuntimeError("no client's command ran while keys went; give more keys")
        return Turn((options.matching - left) / span.seconds, found[int(0.99 * (len(found) - 1))])

    def _ours(self) -> Span:
        nodes = [{"name": one.name, "host": one.host, "port": one.port} for one in self.servers]
        extra = {"bench_nodes": nodes, "bench_pattern": self.pattern, "bench_latency_ms": self.options.max_latency_ms}
        with tempfile.TemporaryDirectory() as folder:
            return task_span(PLAY, "ours", INVENTORIES, extra, folder)

    def _peer(self, way: str) -> Span:
        lines = []
        for one in self.primaries:
            tool = f"{self.options.engine}-cli -h {one.host} -p {one.port}"
            scan = f"{tool} --scan --pattern {shlex.quote(self.pattern)}"
            if way == PIPED:
                lines.append(f"({scan} | sed 's/^/UNLINK /' | {tool} >/dev/null) &")
            else:
                end = f"timeout {self.options.xargs_s} xargs -n 1 {tool} unlink"
                lines.append(f"({scan} | {end} >/dev/null 2>&1 || true) &")
        # the clock of a container is that of this machine
        script = "\n".join(["date +%s.%N", *lines, "wait", "date +%s.%N"])
        try:
            first = self.primaries[0].lab_host
            began, ended = self.lab.run(first, "sh", stdin=script, timeout_s=PEER_TIMEOUT_S).split()
        except AssertionError as error:
            raise RuntimeError(str(error)) from error
        return Span(float(began), float(ended))


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["redis", "valkey"], default="redis", help="whose server and tool to run")
    parser.add_argument(
        "--hosts", nargs="+", default=["redis1", "redis2", "redis3"], help="hosts of the lab to run them on"
    )
    parser.add_argument("--keys", type=int, default=3_000_000, help="keys in the cluster (default: %(default)s)")
    parser.add_argument(
        "--matching", type=int, default=1_000_000, help="keys of them to delete, a power of ten (default: %(default)s)"
    )
    parser.add_argument("--value-bytes", type=int, default=50, help="length of the values (default: %(default)s)")
    parser.add_argument("--xargs-s", type=int, default=30, help="seconds after which xargs ends (default: %(default)s)")
    parser.add_argument(
        "--max-latency-ms", type=float, default=0, help="the module's limit; 0 is none (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round with few keys, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.keys, options.matching, options.rounds, options.xargs_s = 30_000, 10_000, 1, 5
    digits = str(options.matching)
    if digits.strip("0") != "1" or not 1000 <= options.matching < options.keys < 10**8:
        parser.error("--matching must be a power of ten from 1000, and below --keys, which is below 100000000")
    if min(options.rounds, options.value_bytes, options.xargs_s) < 1:
        parser.error("--rounds, --value-bytes and --xargs-s must be at least 1")
    return options


def measure(options: argparse.Namespace, lab: Lab) -> None:
    """Run all turns and print their figures."""
    turns: dict[str, list[Turn]] = {}
    began_load = round(os.getloadavg()[0], 2)
    with cluster(lab, options.engine, options.hosts, FIRST_PORT, primaries=3, replicas=3) as servers:
        bench = Bench(options, lab, servers)
        fill(bench.primaries, options.keys, options.value_bytes)
        version = servers[0].client.info("server")[f"{options.engine}_version"]
        for _round in range(options.rounds):
            for way in (OURS, PIPED, XARGS):
                try:
                    turns.setdefault(way, []).append(bench.turn(way))
                except RuntimeError as error:
                    raise RuntimeError(f"{way}: {error}") from error
    more = {
        "keys": options.keys,
        "matching": options.matching,
        "engine": f"{options.engine} {version}",
        "load": began_load,
    }
    for way, name in ((PIPED, "pipe"), (XARGS, "xargs")):
        for what, unit, better in (("keys_per_s", "keys/s", True), ("p99_ms", "ms", False)):
            values = [[getattr(turn, what) for turn in turns[one]] for one in (OURS, way)]
            line = figure(
                BENCH,
                f"{'live_' * (not better)}{what}_vs_{name}",
                unit,
                *values,
                way,
                more_is_better=better,
                digits=0 if better else 2,
                **more,
            )
            print(json.dumps(line), flush=True)


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    return run_on_lab(lambda lab: measure(options, lab))


if __name__ == "__main__":
    sys.exit(main())
