# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time ``redis_cluster_rebalance`` against the server's own ``--cluster rebalance``, with clients at work.

A cluster of plain servers on the lab's hosts grows by one or more primaries and shrinks again, over and over with the same data:
moved by the module, as a user runs it through ansible-playbook, and by redis-cli with keys in pipelines of several lengths, or by
valkey-cli in the server's own atomic jobs.
All take turns, and each turn gives one ratio. What is timed is the task from its start to its end, as ansible-core reports it,
and the command inside its host; starting ansible-playbook and podman is left out.

Beside each move a few clients get and set keys at a fixed rate. Their latency counts from when a command was due, so that a
stall weighs as much as the commands that it holds up, and only while keys were moving. Prints one line of JSON per figure.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shlex
import sys
import tempfile
import threading
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import redis
from _figures import Span, figure, task_span
from _servers import SLOTS, Server, agreed_owners, cluster, fill, key_of, run_on_lab, slot_of
from integration.conftest import INVENTORIES, Lab

BENCH = "redis_cluster_rebalance"
FIRST_PORT = 7101
PEER_TIMEOUT_S = 3000
# many with a low rate each: one that waits holds up few commands
LIVE_CLIENTS = 20
LIVE_PERIOD_S = 0.05
REDIRECTIONS = 10
OURS = ()

PLAY = r"""
- name: Time the collection's way to move slots
  hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Ours
      headroom.scale.redis_cluster_rebalance:
        nodes: "{{ bench_nodes }}"
        tls: false
        cluster: bench
        journal: "{{ bench_journal }}"
"""


@dataclass(frozen=True)
class Turn:
    """What one move by one way came to."""

    keys_per_s: float
    p99_ms: float
    longest_ms: float


class Live(threading.Thread):
    """One client that gets and sets keys at a fixed rate, wherever they are, and notes how long each command took."""

    def __init__(self, servers: t.Sequence[Server], keys: int, value_bytes: int, seed: int, first: int = 0) -> None:
        """Take the servers and what is on them; ``first`` is the number of the first key that is used."""
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self._numbers = range(first, keys)
        self._value = b"v" * value_bytes
        self._random = random.Random(seed)
        self._wanted = threading.Event()
        self._connections = {
            server.port: redis.Connection(host=server.host, port=server.port, protocol=2, socket_timeout=30)
            for server in servers
        }
        self._owners = servers[0].owners()

    def run(self) -> None:
        """Work until told to finish. A command that is late does not delay when the next one is due."""
        due = time.time() + self._random.random() * LIVE_PERIOD_S
        while not self._wanted.is_set():
            time.sleep(max(0.0, due - time.time()))
            key = key_of(self._random.choice(self._numbers))
            command = ("GET", key) if self._random.random() < 0.5 else ("SET", key, self._value)
            try:
                self._ask(slot_of(key), command)
            except redis.RedisError as error:
                self.failures.append(str(error))
            self.samples.append((due, (time.time() - due) * 1000))
            due += LIVE_PERIOD_S

    def finish(self) -> None:
        """Stop, and close the connections."""
        self._wanted.set()
        self.join(60)
        for connection in self._connections.values():
            connection.disconnect()

    def _ask(self, slot: int, command: tuple[t.Any, ...]) -> None:
        port, asking = self._owners[slot], False
        for _redirection in range(REDIRECTIONS):
            connection = self._connections[port]
            if asking:
                connection.send_command("ASKING")
                connection.read_response()
            connection.send_command(*command)
            try:
                connection.read_response()
            except redis.exceptions.MovedError as error:
                port, asking = error.port, False
                self._owners[slot] = port
            except redis.exceptions.AskError as error:
                port, asking = error.port, True
            else:
                return
        raise redis.RedisError(f"more than {REDIRECTIONS} redirections of slot {slot}")


class Watch(threading.Thread):
    """Notes from when to when the number of keys on some servers changed."""

    def __init__(self, servers: t.Sequence[Server]) -> None:
        """Take the servers."""
        super().__init__(daemon=True)
        self.began_s = self.ended_s = 0.0
        self._servers = servers
        self._wanted = threading.Event()

    def run(self) -> None:
        """Look twenty times a second until told to finish."""
        before = self._count()
        while not self._wanted.wait(0.05):
            asked_s, now = time.time(), self._count()
            if now != before:
                self.began_s = self.began_s or asked_s
                self.ended_s = time.time()
            before = now

    def finish(self) -> None:
        """Stop."""
        self._wanted.set()
        self.join(60)

    def _count(self) -> int:
        return sum(server.keys() for server in self._servers)


class Bench:
    """Moves the same data by each way in turn."""

    def __init__(self, options: argparse.Namespace, lab: Lab, servers: list[Server], small: int, keys: int) -> None:
        """Take the servers, of which the first ``small`` have all slots."""
        self.options = options
        self.lab = lab
        self.servers = servers
        self.added = servers[small:]
        self.keys = keys

    def turn(self, way: tuple[str, ...], grow: bool) -> Turn:
        """Move by one way: ours, or the tool's with these options.

        :raises RuntimeError: when it did not move what it was to move, or a client's command failed.
        """
        before = sum(server.keys() for server in self.added)
        live = [Live(self.servers, self.keys, self.options.value_bytes, seed) for seed in range(LIVE_CLIENTS)]
        watch = Watch(self.added)
        threads = [*live, watch]
        for thread in threads:
            thread.start()
        try:
            span = self._ours(grow) if way == OURS else self._peer(way, grow)
        finally:
            for thread in threads:
                thread.finish()
        moved = abs(sum(server.keys() for server in self.added) - before)
        self._require(grow)
        failures = [text for one in live for text in one.failures]
        if failures:
            raise RuntimeError(f"{len(failures)} commands of clients failed, such as: {failures[0]}")
        found = sorted(ms for one in live for due, ms in one.samples if watch.began_s <= due <= watch.ended_s)
        if not found:
            raise RuntimeError("no client's command ran while keys were moving; give more keys")
        return Turn(moved / span.seconds, found[int(0.99 * (len(found) - 1))], found[-1])

    def _weight(self, grow: bool) -> float:
        return self.options.weight if grow else 0

    def _ours(self, grow: bool) -> Span:
        nodes = [
            {
                "name": one.name,
                "host": one.host,
                "port": one.port,
                "weight": self._weight(grow) if one in self.added else 1,
            }
            for one in self.servers
        ]
        with tempfile.TemporaryDirectory() as folder:
            extra = {"bench_nodes": nodes, "bench_journal": str(Path(folder, "journal"))}
            return task_span(PLAY, "ours", INVENTORIES, extra, folder)

    def _peer(self, way: tuple[str, ...], grow: bool) -> Span:
        first = self.servers[0]
        command = [f"{self.options.engine}-cli", "--cluster", "rebalance", f"{first.host}:{first.port}"]
        command += [*way, "--cluster-use-empty-masters", "--cluster-weight"]
        command += [f"{one.id}={self._weight(grow):g}" for one in self.added]
        # the clock of a container is that of this machine
        script = f'date +%s.%N\nif ! out=$({shlex.join(command)} 2>&1); then echo "$out" | tail -n 5 >&2; exit 1; fi\ndate +%s.%N'
        try:
            began, ended = self.lab.run(first.lab_host, "sh", stdin=script, timeout_s=PEER_TIMEOUT_S).split()
        except AssertionError as error:
            raise RuntimeError(str(error)) from error
        return Span(float(began), float(ended))

    def _require(self, grow: bool) -> None:
        """Require that all slots are where they should be, within the threshold of both sides, and no key is missing."""
        weight = self._weight(grow)
        share = SLOTS * weight / (len(self.servers) - len(self.added) + len(self.added) * weight)
        owned = collections.Counter(agreed_owners(self.servers).values())
        for server in self.added:
            if abs(owned[server.port] - share) > 0.02 * share:
                raise RuntimeError(f"{server.name} has {owned[server.port]} slots, not {share:.0f}")
        found = sum(server.keys() for server in self.servers)
        if found < self.keys:
            raise RuntimeError(f"{self.keys - found} keys are missing")


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["redis", "valkey"], default="redis", help="whose server and tool to run")
    parser.add_argument(
        "--hosts", nargs="+", default=["redis1", "redis2", "redis3"], help="hosts of the lab to run them on"
    )
    parser.add_argument("--keys", nargs="+", type=int, default=[1_000_000], help="numbers of keys to run with")
    parser.add_argument("--value-bytes", type=int, default=200, help="length of the values (default: %(default)s)")
    parser.add_argument("--primaries", nargs="+", default=["3-4"], help="grow from and to, such as 3-4 6-8")
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of an added primary beside 1 of the others (default: 1)"
    )
    parser.add_argument("--pipelines", nargs="*", type=int, default=[10, 200], help="keys that the tool moves at once")
    parser.add_argument("--atomic", action="store_true", help="let the tool move atomically as well; valkey-cli 9 can")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round with few keys, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        # what takes the tool long is the slots
        options.keys, options.primaries, options.weight, options.pipelines, options.rounds = (
            [50_000],
            ["3-4"],
            0.1,
            [10],
            1,
        )
    try:
        options.primaries = [tuple(map(int, sizes.split("-"))) for sizes in options.primaries]
        if not all(1 <= small < large for small, large in options.primaries):
            raise ValueError
    except ValueError:
        parser.error("--primaries takes two numbers each, the smaller first, such as 3-4")
    if not 0.01 <= options.weight <= 100:
        parser.error("--weight must be from 0.01 to 100")
    if min(*options.keys, *options.pipelines, options.rounds, options.value_bytes, 1) < 1:
        parser.error("--keys, --pipelines, --rounds and --value-bytes must be at least 1")
    return options


def measure(options: argparse.Namespace, lab: Lab, small: int, large: int, keys: int) -> None:
    """Run all turns with one cluster and print their figures."""
    peers = [("--cluster-pipeline", str(pipeline)) for pipeline in options.pipelines]
    if options.atomic:
        peers.append(("--cluster-use-atomic-slot-migration",))
    turns: dict[tuple[tuple[str, ...], bool], list[Turn]] = {}
    began_load = round(os.getloadavg()[0], 2)
    with cluster(lab, options.engine, options.hosts, FIRST_PORT, primaries=small, empty=large - small) as servers:
        fill(servers, keys, options.value_bytes)
        version = servers[0].client.info("server")[f"{options.engine}_version"]
        bench = Bench(options, lab, servers, small, keys)
        for _round in range(options.rounds):
            for way in (OURS, *peers):
                for grow in (True, False):
                    try:
                        turn = bench.turn(way, grow)
                    except RuntimeError as error:
                        what = " ".join(way) or "ours"
                        raise RuntimeError(f"{what}, {'growing' if grow else 'shrinking'}: {error}") from error
                    turns.setdefault((way, grow), []).append(turn)
    for grow in (True, False):
        sizes = f"{small}_to_{large}" if grow else f"{large}_to_{small}"
        ours = turns[OURS, grow]
        for way in peers:
            peer = turns[way, grow]
            name = " ".join([f"{options.engine}-cli --cluster rebalance", *way])
            more = {"keys": keys, "engine": f"{options.engine} {version}", "load": began_load}
            for what, unit, value, better in (
                ("keys_per_s", "keys/s", lambda turn: turn.keys_per_s, True),
                ("live_p99_ms", "ms", lambda turn: turn.p99_ms, False),
                ("live_max_ms", "ms", lambda turn: turn.longest_ms, False),
            ):
                line = figure(
                    BENCH,
                    f"{what}_{sizes}_primaries",
                    unit,
                    [value(turn) for turn in ours],
                    [value(turn) for turn in peer],
                    name,
                    more_is_better=better,
                    digits=0 if better else 2,
                    **more,
                )
                print(json.dumps(line), flush=True)


def main() -> int:
    """Run the benchmark."""
    options = arguments()

    def work(lab: Lab) -> None:
        for small, large in options.primaries:
            for keys in options.keys:
                measure(options, lab, small, large, keys)

    return run_on_lab(work)


if __name__ == "__main__":
    sys.exit(main())
