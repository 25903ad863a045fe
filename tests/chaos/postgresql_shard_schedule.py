# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebalance by random schedules, many moves at once, with faults at random moments, under a workload that checks its own data.

Each round empties one of three shards into the others, with limits, weights and a fault that the seed chooses: the controller is
killed, or a server is (SIGKILL, and started again), or a second controller begins beside the first one, or nothing happens. Then
the same module runs again until it has done what was asked for. The moves of a round are taken back, with a fault again, or
retired, or left as they are for the next round to find. Each bucket must then lie on one shard as the map says, each acknowledged row
must be there once, and every count over all shards exact.

See ``tests/benchmarks/_shards.py`` for where the servers run.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._shards import Cluster, HeadroomError, add_options, running, servers_from
from chaos.postgresql_shard_move import FIRST_STILL, KEYS, LAST_STILL, NAMES, WRITERS, Run, serious
from workloads.postgresql_shards import Workload

FAULTS = ("none", "controller", "controller", "server", "two controllers")
# each move that can be taken back keeps a slot and a sender on one shard and a worker on the other
ROOM = {
    "max_worker_processes": 150,
    "max_logical_replication_workers": 130,
    "max_replication_slots": 130,
    "max_wal_senders": 130,
    "max_prepared_transactions": 50,
}
LOCKED = "another run works on it"
# of each shard, the buckets whose leaves are in use there
ATTACHED_SQL = """
SELECT substring(relname from '_b([0-9]+)$')::int FROM pg_class WHERE relname ~ '^{}_b[0-9]+$' AND relispartition AND relkind = 'r'
"""


class Schedule:
    """The rounds, one after the other."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        """Take the cluster and what chooses."""
        self.cluster = cluster
        self.random = random.Random(seed)

    def round(self, fault: str) -> dict[str, Any]:
        """Empty one shard, and return what was seen."""
        choose = self.random
        before = self.cluster.placed()
        drained = choose.choice(sorted(set(before.values())))
        arguments = {
            "shards": [
                {
                    **server.entry,
                    "weight": choose.choice([1, 1, 2, 3]),
                    "state": "draining" if server.name == drained else "active",
                }
                for server in self.cluster.shards
            ],
            "threshold": 0.05,
            "concurrent_moves": choose.randint(2, 6),
            "concurrent_moves_per_shard": choose.randint(1, 4),
            "max_moves": choose.choice([None, 6, 12]),
            "streams": choose.randint(1, 2),
            "max_rate_bytes_s": choose.choice([0, 300_000]),
            "read_grace_s": choose.choice([0.5, 1.5]),
            "max_block_ms": 10_000,
        }
        ended = self.disturbed(arguments, fault)
        result = self.again(arguments)
        after = self.cluster.placed()
        if arguments["max_moves"] is None:
            # what an earlier round has brought stays as long as it can be taken back, and the plan says so
            said = " ".join(result["plan"]["left_out"])
            stayed = [
                number for number, shard in after.items() if shard == drained and f"users/{number} stays on" not in said
            ]
            assert not stayed, (
                f"buckets {stayed} are still on {drained}, which was to be emptied: {said or 'nothing is left out'}"
            )
        then = choose.choice(["reverted", "cleaned", "kept"])
        if then == "reverted":
            back = {**arguments, "state": "reverted"}
            ended += " then " + self.disturbed(back, choose.choice(["none", "controller"]))
            self.again(back)
        if then == "cleaned":
            self.again({**arguments, "state": "cleaned", "retire_now": True})
            left = self.cluster.left_behind()
            assert not left, f"left behind: {left}"
        self.check()
        moved = sum(after[bucket] != shard for bucket, shard in before.items())
        at_once = f"{arguments['concurrent_moves']}/{arguments['concurrent_moves_per_shard']}"
        recovered = collections.Counter(one["action"] for one in result["recovered"])
        return {
            "drained": drained,
            "at_once": at_once,
            "run": ended,
            "again": dict(recovered),
            "moved": moved,
            "then": then,
        }

    def disturbed(self, arguments: dict[str, Any], fault: str) -> str:
        """Begin a run, make a fault while it is at work, and return how it ended."""
        run = Run(self.cluster, arguments, None)
        time.sleep(self.random.uniform(0.5, 10))
        if fault == "controller":
            run.kill()
            return "killed"
        if fault == "server":
            server = self.random.choice(list(self.cluster.servers.values()))
            server.kill()
            server.revive()
        said = self.second(arguments) if fault == "two controllers" and run.process.poll() is None else ""
        result = run.go_on()
        if result.get("failed"):
            said += result["msg"]
        assert fault == "server" or not said or said.count(LOCKED) == 1, said
        return "failed" if result.get("failed") else "finished"

    def second(self, arguments: dict[str, Any]) -> str:
        """Run beside a run, and return why that was refused, if it was."""
        try:
            self.cluster.rebalance(**arguments)
        except HeadroomError as error:
            return str(error)
        return ""

    def again(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run once more; a server that has just come back may need another try, as whoever runs a playbook would give it."""
        deadline = time.monotonic() + 90
        while True:
            try:
                return self.cluster.rebalance(**arguments)
            except HeadroomError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def check(self) -> None:
        """Require that each bucket is in use on the one shard that the map says, in both tables."""
        placed = self.cluster.placed()
        for server in self.cluster.shards:
            own = {bucket for bucket, shard in placed.items() if shard == server.name}
            for name in ("orders", "items"):
                found = {bucket for (bucket,) in server.rows(ATTACHED_SQL.format(name))}
                assert found == own, (
                    f"on {server.name} are buckets {sorted(found)} of {name}, and {sorted(own)} by the map"
                )


def main() -> int:
    """Run all rounds, print a table and one JSON line, and fail when anything was lost or left undone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two rounds only")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, default=0.03, help="seconds between two operations of a writer")
    add_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    faults = random.Random(options.seed).choices(FAULTS, k=options.rounds)
    if options.quick:
        faults = ["controller", "none"]
    print(f"seed {options.seed}, {len(faults)} rounds", file=sys.stderr, flush=True)
    bad: list[str] = []
    moved = 0
    with tempfile.TemporaryDirectory() as name, running(servers_from(options, NAMES), **ROOM) as servers:
        cluster = Cluster(servers, Path(name))
        cluster.declare(lambda number: "abc"[number % 3])
        dsns, routers = ([server.dsn(user="") for server in ends] for ends in (cluster.shards, cluster.routers))
        workload = Workload(
            dsns,
            routers,
            "user=postgres",
            options.seed,
            direct=WRITERS // 2,
            routed=WRITERS // 2,
            keys=KEYS,
            pause_s=options.pause,
        )
        workload.fill()
        cluster.routers[0].rows(
            "INSERT INTO public.orders (user_id, id, amount, note) SELECT u, 1, 1, repeat('x', 500) FROM generate_series(%s::bigint, %s) u",
            [FIRST_STILL, LAST_STILL],
        )
        workload.start()
        schedule = Schedule(cluster, options.seed)
        try:
            for number, fault in enumerate(faults):
                began = time.monotonic()
                before = {id(one): len(one.errors) for one in workload.threads}
                try:
                    seen = schedule.round(fault)
                    moved += seen["moved"]
                except (AssertionError, RuntimeError, HeadroomError) as error:
                    seen = {}
                    bad.append(f"round {number}, {fault}: {error}")
                new = [error for one in workload.threads for error in one.errors[before[id(one)] :]]
                grave = serious(new, "" if fault == "server" else "controller")
                bad += [f"round {number}, {fault}: {error}" for error in grave]
                shown = ", ".join(f"{key} {value}" for key, value in seen.items()) or f"BAD: {bad[-1]}"
                print(
                    f"{number:3} {fault:16} {shown}; errors {len(new)} ({len(grave)} grave), wrong {len(workload.wrong)}, "
                    f"{time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            schedule.again({"state": "cleaned", "retire_now": True})
        finally:
            figures = workload.finish()
        still = cluster.routers[0].rows(
            "SELECT count(*), count(DISTINCT user_id) FROM public.orders WHERE user_id BETWEEN %s AND %s",
            [FIRST_STILL, LAST_STILL],
        )[0]
        rows = LAST_STILL - FIRST_STILL + 1
        if still != (rows, rows):
            bad.append(f"of {rows} rows that nobody writes there are {still[0]}, of {still[1]} keys")
        left = cluster.left_behind()
        bad += [f"left behind: {one}" for one in left]
    for text in [*bad[:20], *figures["lost"][:10], *figures["wrong"][:10]]:
        print(text, file=sys.stderr)
    print(
        json.dumps(
            {
                "chaos": "postgresql_shard_schedule",
                "rounds": len(faults),
                "moved": moved,
                "bad": len(bad),
                "statements": figures["statements"],
                "counts": figures["counts"],
                "lost": len(figures["lost"]),
                "wrong": len(figures["wrong"]),
                "errors": dict(collections.Counter(error.split(":")[0] for error in figures["errors"])),
                "p99_ms": figures["p99_ms"],
                "max_ms": figures["max_ms"],
                "seed": options.seed,
            }
        )
    )
    return int(bool(bad or figures["lost"] or figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
