# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a fault at every step of a split of a bucket, under a workload that checks its own data.

Each point gives one key a bucket of its own, once in a group of ranges and once in a directory, in a cluster of three shards and a
router, made for this run alone. The module stands still at an exact step of its work while the fault is made: the controller is
killed, or a server is, or frozen for a while, or a row of a part is changed behind the module's back, or the bucket is truncated, or
a session of a killed controller gets to its work only after the next run has looked, or one holds a snapshot from before, for
which the switch must wait. Then the module runs again. It must succeed, and leave nothing of the split; each acknowledged row must
be there once, and every count over all shards exact.

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
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._shards import TABLES, Cluster, HeadroomError, Server, add_options, running, servers_from, wait_for
from chaos.postgresql_shard_move import FROZEN_S, NAMES, Run, Step, journal, serious
from workloads.postgresql_shards import ACCOUNT_KEYS, ACCOUNTS, Workload

# keys that nobody writes to, many rows each
STILL = range(500_000, 500_040)
WRITERS, KEYS = 4, 60
BUCKETS = 8
CUTS = {
    "range": {"strategy": "range", "bounds": [60, 120, 180, 500_000, 500_020, 1_000_000, 1_000_050]},
    "directory": {
        "strategy": "directory",
        "tenants": [
            *(list(range(number * KEYS, (number + 1) * KEYS)) for number in range(WRITERS)),
            list(STILL[:20]),
            list(STILL[20:]),
            list(range(ACCOUNT_KEYS, ACCOUNT_KEYS + ACCOUNTS // 2)),
            list(range(ACCOUNT_KEYS + ACCOUNTS // 2, ACCOUNT_KEYS + ACCOUNTS)),
        ],
    },
}
# rows of one table that refer to another, each bucket to its own
REFERRING = [
    TABLES[0],
    {
        **TABLES[1],
        "ddl": str(TABLES[1]["ddl"]).removesuffix(")")
        + ", FOREIGN KEY (user_id, id) REFERENCES public.orders ON DELETE CASCADE)",
    },
]
CORRUPT = {
    "update": "UPDATE public.orders_b{0} SET note = 'corrupt' WHERE ctid = (SELECT min(ctid) FROM public.orders_b{0})",
    "delete": "DELETE FROM public.orders_b{0} WHERE ctid = (SELECT min(ctid) FROM public.orders_b{0})",
}
# whoever has locked a table as a switch does
SWITCHING_SQL = """
SELECT DISTINCT a.pid FROM pg_stat_activity a JOIN pg_locks l USING (pid)
WHERE a.application_name = 'headroom_shards' AND l.mode = 'AccessExclusiveLock' AND l.relation::regclass::text = 'orders'
"""
# for how long a session goes on after its controller is gone
OUTLIVED_S = 3.0
# for how long a snapshot is held
HELD_S = 6.0
STEPS = (
    journal("", 1),
    journal("leaves", 1),
    Step("first part made", r"CREATE TABLE .*LIKE"),
    journal("log", 1),
    Step("before a log", r"CREATE FUNCTION .*headroom_log", when="before"),
    Step("first log made", r"CREATE FUNCTION .*headroom_log"),
    journal("copy", 1),
    Step("half copied", r"INSERT INTO .*ctid", nth=2),
    journal("indexes", 1),
    Step("key made", r"ADD PRIMARY KEY"),
    Step("analyzed", r"ANALYZE", nth=2),
    journal("lag", 1),
    Step("a log read", r"ORDER BY 1 LIMIT"),
    journal("verify", 1),
    Step("rows compared", r"bit_xor", nth=2),
    journal("switch", 1),
    journal("switch", 2, name="router"),
    Step("before the lock", r"LOCK TABLE ONLY", when="before"),
    Step("router locked", r"LOCK TABLE ONLY"),
    Step("shard locked", r"LOCK TABLE ONLY", nth=2),
    Step("last rows read", r"ORDER BY 1 LIMIT NULL"),
    Step("no snapshot left", r"backend_xmin", nth=2),
    Step("before any is prepared", r"PREPARE TRANSACTION", when="before"),
    Step("one prepared", r"PREPARE TRANSACTION"),
    Step("both prepared", r"PREPARE TRANSACTION", nth=2),
    Step("before the decision", r"INSERT INTO headroom\.decision", when="before"),
    Step("decided", r"INSERT INTO headroom\.decision"),
    Step("taken", r"COMMIT PREPARED .*_take"),
    Step("before it is given", r"COMMIT PREPARED .*_give", when="before"),
    Step("given", r"COMMIT PREPARED .*_give"),
    Step("one shard told", r"SET position = r\.position", nth=3),
    Step("before the leaf is dropped", r"DROP TABLE .*_retired", when="before"),
    Step("leaf dropped", r"DROP TABLE .*_retired"),
    Step("first log dropped", r"DROP FUNCTION"),
    Step("decisions dropped", r"DELETE FROM headroom\.decision"),
)


def named(*names: str) -> tuple[Step, ...]:
    """Return steps by their names."""
    return tuple(step for step in STEPS if step.name in names)


SERVER_STEPS = named(
    "first log made",
    "half copied",
    "key made",
    "shard locked",
    "one prepared",
    "both prepared",
    "decided",
    "taken",
    "given",
)
ROUTER_STEPS = named("router locked", "both prepared", "decided", "taken", "given")
FROZEN_STEPS = named("half copied", "shard locked", "both prepared", "decided", "taken")
POINTS = (
    [("controller", step) for step in STEPS]
    + [("controller, timer", step) for step in named("one prepared", "both prepared", "decided", "taken")]
    + [("shard", step) for step in SERVER_STEPS]
    + [("router", step) for step in ROUTER_STEPS]
    + [("freeze shard", step) for step in FROZEN_STEPS]
    + [("long-freeze router", step) for step in named("both prepared", "decided", "taken")]
    + [(f"corrupt {how}", step) for how in CORRUPT for step in named("analyzed")]
    + [("snapshot shard", step) for step in named("journal: switch on 1")]
    + [("session router", step) for step in named("before any is prepared")]
    + [("truncate shard", step) for step in named("analyzed")]
)
QUICK = [
    ("controller", "half copied"),
    ("controller", "decided"),
    ("router", "taken"),
    ("corrupt update", "analyzed"),
    ("snapshot shard", "journal: switch on 1"),
]


class Chaos:
    """The faults, one after the other."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        """Take the cluster."""
        self.cluster = cluster
        self.random = random.Random(seed)
        # nothing but the splits that are asked for
        self.common = {"threshold": 10, "max_rate_bytes_s": 20_000_000, "max_block_ms": 10_000}

    def key(self, still: bool) -> int:
        """Return a key that shares its bucket with others."""
        shard = self.cluster.shards[0]
        while True:
            # those that are written to, and to corrupt those that are not, so that nothing mends the row
            among = STILL if still else [*range(WRITERS * KEYS), *range(ACCOUNT_KEYS, ACCOUNT_KEYS + ACCOUNTS)]
            key = self.random.choice(among)
            found = shard.rows(
                "SELECT lower, upper, tenants FROM headroom.bucket WHERE number = headroom.bucket_of('users', %s::text)",
                [key],
            )
            lower, upper, tenants = found[0]
            if len(tenants) > 1 if tenants else (lower, upper) != (key, key + 1):
                return key

    def point(self, fault: str, step: Step) -> dict[str, str] | None:
        """Make one fault and run again. Return what was seen, or None when the run never came to the step."""
        key = self.key(fault.startswith(("corrupt", "truncate")))
        before = self.cluster.placed()
        bucket = self.cluster.shards[0].rows("SELECT headroom.bucket_of('users', %s::text)", [key])[0][0]
        wanted = {**self.common, "isolate": [{"group": "users", "key": key}]}
        run = Run(self.cluster, wanted, step)
        if not run.reached():
            return None
        ended = self.make(fault, run, before[bucket], bucket, max(before) + 1)
        if (fault, step.name) == ("controller", "half copied"):
            foretold = self.cluster.run("postgresql_shard_rebalance", wanted, check=True)["plan"]
            splits = [one["bucket"] for one in foretold["splits"]]
            assert splits == [bucket], f"check mode foretells splits of {splits}, and {foretold['left_out']}"
        result = self.again({})
        recovered = ", ".join(one["action"] for one in result["recovered"]) or "nothing to do"
        left = self.cluster.left_behind()
        assert not left, f"left behind: {left}"
        told = {
            name: server.rows("SELECT number, shard FROM headroom.bucket ORDER BY 1")
            for name, server in self.cluster.servers.items()
        }
        assert len({str(rows) for rows in told.values()}) == 1, f"the maps differ: {told}"
        now = self.cluster.placed()
        gone, new = set(before) - set(now), set(now) - set(before)
        split = bool(gone)
        assert gone == ({bucket} if split else set()), f"buckets {gone} are gone"
        assert (len(new) > 1) == split, f"buckets {new} came"
        assert {now[one] for one in new} <= {before[bucket]}, f"buckets {new} are elsewhere"
        assert not (split and fault.startswith(("corrupt", "truncate"))), "a wrong part was taken"
        return {"run": ended, "again": recovered, "bucket": "split" if split else "whole"}

    def again(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run once more; a server that has just come back may need another try, as whoever runs a playbook would give it."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.cluster.rebalance(**{**self.common, **arguments})
            except HeadroomError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def end_doubts(self) -> None:
        """Do on all members what the timer of the role does, and make sure that nothing stays prepared."""
        for server in self.cluster.servers.values():
            for (statement,) in server.rows("SELECT headroom.in_doubt('0 s')"):
                server.rows(statement)
        left = {name: server.rows("SELECT gid FROM pg_prepared_xacts") for name, server in self.cluster.servers.items()}
        assert not any(left.values()), f"prepared: {left}"

    def make(self, fault: str, run: Run, shard: str, bucket: int, part: int) -> str:
        """Make the fault where the run stands still, and return how the run ended."""
        if fault.startswith("controller"):
            run.kill()
            if fault.endswith("timer"):
                self.end_doubts()
            return "killed"
        kind, _space, who = fault.rpartition(" ")
        if kind == "corrupt":
            with self.cluster.servers[shard].connect() as connection:
                numbers = [
                    row[0]
                    for row in connection.execute(
                        "SELECT n FROM generate_series(%s::int, %s::int) n WHERE to_regclass('public.orders_b' || n) IS NOT NULL",
                        [part, part + 2],
                    )
                ]
                filled = next(
                    n
                    for n in numbers
                    if connection.execute(f"SELECT FROM public.orders_b{n} LIMIT 1").fetchone() is not None
                )
                connection.execute(CORRUPT[who].format(filled))
            said = run.go_on().get("msg", "")
            wanted = f"1 row of table public.orders, bucket users/{bucket}, with (user_id, id) = (50"
            assert wanted in said, f"it said: {said}"
            return "refused"
        server = self.cluster.servers[shard if who == "shard" else "r"]
        if kind == "session":
            return self.outlive(run, server, self.cluster.servers[shard])
        if kind == "snapshot":
            with server.connect() as connection:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                connection.execute("SELECT count(*) FROM pg_class")
                (run.directory / "go").touch()
                time.sleep(HELD_S)
                assert bucket in self.cluster.placed(), "it was switched before the snapshot was gone"
            result = run.go_on()
            assert not result.get("failed"), f"it said: {result.get('msg')}"
            return "finished"
        if kind == "truncate":
            server.rows(f"TRUNCATE public.orders_b{bucket} CASCADE")
            said = run.go_on().get("msg", "")
            assert "public.orders was truncated meanwhile" in said, f"it said: {said}"
            return "refused"
        if kind:
            pids = server.freeze()
            timer = threading.Timer(FROZEN_S[kind], server.thaw, [pids])
            timer.start()
            result = run.go_on()
            timer.join()
        else:
            server.kill()
            server.revive()
            result = run.go_on()
        return "failed" if result.get("failed") else "finished"

    @staticmethod
    def outlive(run: Run, router: Server, shard: Server) -> str:
        """Kill the controller when a router's session has what it is to prepare, and gets to it while the next run is at work."""
        pids = [pid for (pid,) in router.rows(SWITCHING_SQL)]
        assert len(pids) == 1, f"processes {pids} are switching"
        router.freeze(pids)
        (run.directory / "go").touch()
        wait_for(lambda: bool(shard.rows("SELECT gid FROM pg_prepared_xacts")), 30, "the shard has prepared it")
        run.kill()
        threading.Timer(OUTLIVED_S, router.thaw, [pids]).start()
        return "killed"


def fill(cluster: Cluster) -> None:
    """Put rows into the keys that nobody writes to: enough that a copy takes more than one statement."""
    with cluster.routers[0].connect() as connection:
        connection.execute(
            "INSERT INTO public.orders (user_id, id, amount, note) SELECT u, i, 1, repeat('x', 200) "
            f"FROM generate_series({STILL[0]}, {STILL[-1]}) u, generate_series(1, 50) i"
        )


def main() -> int:
    """Make all faults, print a table and one JSON line, and fail when anything was lost or left undone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", default="", help="faults of one kind only, as controller, shard, router or corrupt")
    parser.add_argument("--step", default="", help="steps with this in their names only")
    parser.add_argument("--strategy", choices=sorted(CUTS), help="groups of one strategy only")
    parser.add_argument("--quick", action="store_true", help="five points only")
    parser.add_argument("--first", type=int, default=0, help="begin with this point")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, default=0.03, help="seconds between two operations of a writer")
    add_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    points = [one for one in POINTS if not options.quick or (one[0], one[1].name) in QUICK]
    points = [one for one in points if options.fault in one[0] and options.step in one[1].name]
    print(f"seed {options.seed}, {len(points)} points", file=sys.stderr, flush=True)
    outcomes: collections.Counter[str] = collections.Counter()
    totals: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    slowest_ms = 0.0
    for strategy, cut in CUTS.items():
        if options.strategy not in (None, strategy):
            continue
        with tempfile.TemporaryDirectory() as name, running(servers_from(options, NAMES)) as servers:
            cluster = Cluster(servers, Path(name))
            cluster.declare(
                lambda number: "abc"[number % 3], BUCKETS, REFERRING if strategy == "directory" else None, cut
            )
            dsns = [server.dsn(user="") for server in cluster.shards]
            routers = [server.dsn(user="") for server in cluster.routers]
            workload = Workload(
                dsns,
                routers,
                "user=postgres",
                options.seed,
                direct=2,
                routed=2,
                keys=KEYS,
                pause_s=options.pause,
                cascades=strategy == "directory",
            )
            workload.fill()
            fill(cluster)
            workload.start()
            time.sleep(3)
            chaos = Chaos(cluster, options.seed)
            try:
                for number, (fault, step) in list(enumerate(points))[options.first :]:
                    began = time.monotonic()
                    before = {id(one): len(one.errors) for one in workload.threads}
                    try:
                        seen = chaos.point(fault, step)
                    except (AssertionError, RuntimeError, HeadroomError, StopIteration) as error:
                        seen = {"run": "?", "again": "?", "bucket": "bad"}
                        bad.append(f"{strategy} {fault} {step.name}: {error}")
                        print(bad[-1], file=sys.stderr, flush=True)
                    if seen is None:
                        seen = {"run": "?", "again": "?", "bucket": "not reached"}
                        bad.append(f"{strategy} {fault} {step.name}: was not reached")
                    outcomes[seen["bucket"]] += 1
                    new = [error for one in workload.threads for error in one.errors[before[id(one)] :]]
                    grave = serious(new, fault)
                    bad += [f"{strategy} {fault} {step.name}: {error}" for error in grave]
                    print(
                        f"{number:3} {strategy:9} {fault:18} {step.name:28} {seen['run']:8} then {seen['again']:14} {seen['bucket']:6} "
                        f"errors {len(new)} ({len(grave)} grave), wrong {len(workload.wrong)}, {time.monotonic() - began:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
            finally:
                figures = workload.finish()
            bad += [*figures["lost"], *figures["wrong"]]
            for part in ("lost", "wrong"):
                totals[part] += len(figures[part])
            for part in ("statements", "counts"):
                totals[part] += figures[part]
            slowest_ms = max(slowest_ms, figures["max_ms"] or 0.0)
    for text in bad[:20]:
        print(text, file=sys.stderr)
    print(
        json.dumps(
            {
                "chaos": "postgresql_shard_split",
                "points": sum(outcomes.values()),
                **outcomes,
                "bad": len(bad),
                **totals,
                "max_ms": slowest_ms,
                "seed": options.seed,
            }
        )
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
