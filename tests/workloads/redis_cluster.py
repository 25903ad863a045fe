# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write and read through a Redis cluster as an application does, and check what was acknowledged.

As a program it works until a file appears or a time has passed, checks, and prints one line of JSON with its figures;
it fails when anything was lost, wrong or refused, or nothing was done at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from redis.backoff import ConstantBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

# lab-only, the same as in inventories/lab/group_vars/redis.yml
USER, PASSWORD = "lab_app", "lab-only-application"  # noqa: S105
KEYS = 400
EXPIRY_S = 3600
LARGE_BYTES = 20_000


def large(key: str, turn: int) -> bytes:
    """Return a value of 20 kB that no other key and turn has, in each part of it."""
    return (f"{key} {turn} ".encode() * 20_000)[:LARGE_BYTES]


class Workload(threading.Thread):
    """Writes and reads until told to stop, and remembers what was acknowledged."""

    def __init__(self, seed: int, addresses: Sequence[str], ca: str, replicas: int = 0) -> None:
        """Take what to work on.

        :param seed: of the random choices, and part of every key.
        :param addresses: hosts that have a node on port 6379.
        :param ca: file with the authority of the servers' certificates.
        :param replicas: replicas that must have a write before it counts as acknowledged, so that it outlives its primary.
        """
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        self.name = f"w{seed}"
        self.addresses = addresses
        self.ca = ca
        self.replicas = replicas
        self.counters: dict[str, int] = {}
        # key to the first and last moment when it may expire
        self.expiring: dict[str, tuple[float, float]] = {}
        # key to the turns that its value may be of (the last acknowledged one, 0 for none, and those after it), and tag to the turn
        # of the last pair that was acknowledged
        self.large: dict[str, tuple[int, ...]] = {}
        self.pairs: dict[str, int] = {}
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self.operations = 0
        self.lost_ways = 0
        self.latencies_s: list[float] = []
        self.stopping = threading.Event()
        self.client = self.connect()

    def connect(self) -> RedisCluster:
        """Return a client that follows redirections, and reports every other error."""
        return RedisCluster(
            startup_nodes=[ClusterNode(address, 6379) for address in self.addresses],
            username=USER,
            password=PASSWORD,
            ssl=True,
            ssl_ca_certs=self.ca,
            socket_timeout=5,
            retry=Retry(ConstantBackoff(0.1), 3),
        )

    def run(self) -> None:
        """Work until told to stop. An operation that failed may have been done, so counters are only ever compared from below."""
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            started = time.monotonic()
            try:
                self.step(turn)
                self.operations += 1
                self.latencies_s.append(time.monotonic() - started)
            except AttributeError:
                # redis-py 8.1.0 looks nowhere for a node that ASK names and that it does not know, as one that was just added
                self.lost_ways += 1
                self.client = self.connect()
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.001)

    def step(self, turn: int) -> None:
        """Do one operation, and every few turns one of each other kind."""
        key = f"{self.name}:{self.random.randrange(KEYS)}"
        value = int(self.client.incr(key))
        if self.arrived(key):
            self.counters[key] = max(self.counters.get(key, 0), value)
        if turn % 5 == 0:
            tag = f"{{{self.name}:{turn % 60}}}"
            self.client.mset({f"{tag}a": turn, f"{tag}b": turn})
            found = self.client.mget(f"{tag}a", f"{tag}b")
            if found != [str(turn).encode()] * 2:
                self.wrong.append(f"{tag} is {found}, not {turn}")
            if self.arrived(f"{tag}a"):
                self.pairs[tag] = turn
        if turn % 7 == 0:
            self.write_large(f"{self.name}:large:{turn % 70}", turn)
        if turn % 11 == 0:
            key = f"{self.name}:expiring:{turn}"
            began = time.time()
            self.client.set(key, "x", ex=EXPIRY_S)
            if self.arrived(key):
                # the client may have sent it more than once
                self.expiring[key] = (began + EXPIRY_S, time.time() + EXPIRY_S)

    def write_large(self, key: str, turn: int) -> None:
        """Write a large value that tells its turn, after reading the one before it."""
        self.check_large(self.client, key)
        # whatever becomes of this write: either value is right until it is acknowledged
        self.large[key] = (*self.large.get(key, (0,)), turn)
        self.client.set(key, large(key, turn))
        if self.arrived(key):
            self.large[key] = (turn,)

    def check_large(self, client: RedisCluster, key: str) -> None:
        """Require that a large value is one that was written, byte by byte, and none from before the last acknowledged one."""
        turns = self.large.get(key, ())
        found = client.get(key) if turns else None
        if turns and found not in [large(key, turn) if turn else None for turn in turns]:
            shown = None if found is None else f"{len(found)} bytes that begin with {found[:40]!r}"
            self.wrong.append(f"{key} is {shown}, not of turn {' or '.join(map(str, turns))}")

    def arrived(self, key: str) -> bool:
        """Tell whether the last write is on as many replicas as asked for."""
        if not self.replicas:
            return True
        node = self.client.get_node_from_key(key)
        return int(self.client.execute_command("WAIT", self.replicas, 500, target_nodes=node)) >= self.replicas

    def finish(self) -> dict[str, Any]:
        """Stop, compare everything with what was acknowledged, and return the figures."""
        self.stopping.set()
        self.join(60)
        client = self.connect()
        lost = [key for key, value in self.counters.items() if int(client.get(key) or 0) < value]
        for key in self.large:
            self.check_large(client, key)
        for tag, turn in self.pairs.items():
            found = client.mget(f"{tag}a", f"{tag}b")
            # a later pair that was not acknowledged may be there, never one of the two alone
            if found[0] != found[1] or int(found[0] or 0) < turn:
                self.wrong.append(f"{tag} is {found} in the end, not {turn}")
        for key, (first, last) in self.expiring.items():
            left_s = client.pttl(key) / 1000
            if not first - 2 < time.time() + left_s < last + 2:
                self.wrong.append(f"{key} expires in {left_s} s")
        ordered = sorted(self.latencies_s)
        return {
            "operations": self.operations,
            "lost": lost,
            "wrong": self.wrong,
            "errors": self.errors,
            "lost_ways": self.lost_ways,
            "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))] * 1000, 1) if ordered else None,
            "max_ms": round(ordered[-1] * 1000, 1) if ordered else None,
        }

    def clear(self) -> None:
        """Delete what the workload wrote."""
        client = self.connect()
        for key in client.scan_iter(match=f"*{self.name}:*", count=1000):
            client.unlink(key)


@contextlib.contextmanager
def working(threads: list[Workload], within_s: float = 60) -> Iterator[list[Workload]]:
    """Start workloads, wait until each has done something, and stop them in the end."""
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + within_s
        while not all(thread.operations > 100 for thread in threads):
            assert time.monotonic() < deadline, f"not 100 operations within {within_s:g} s"
            time.sleep(0.3)
        yield threads
    finally:
        for thread in threads:
            thread.stopping.set()
            thread.join(60)


def main() -> int:
    """Run the workload as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("addresses", nargs="+", help="hosts that have a node on port 6379")
    parser.add_argument("--ca", required=True, help="file with the authority of the servers' certificates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--for-s", type=float, default=600, help="seconds to work at most (default: %(default)s)")
    parser.add_argument("--until", help="file whose appearance ends the work")
    options = parser.parse_args()
    workload = Workload(options.seed, options.addresses, options.ca)
    workload.start()
    deadline = time.monotonic() + options.for_s
    while time.monotonic() < deadline and not (options.until and os.path.exists(options.until)):
        time.sleep(0.1)
    figures = workload.finish()
    workload.clear()
    print(json.dumps({**figures, "errors": len(figures["errors"]), "examples": figures["errors"][:3]}))
    return int(bool(figures["lost"] or figures["wrong"] or figures["errors"] or not figures["operations"]))


if __name__ == "__main__":
    sys.exit(main())
