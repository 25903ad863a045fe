# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a fault at every step of a move between shards, under a workload that checks its own data.

Each point moves one bucket of a cluster of three shards and a router, made for this run alone. The module stands still at an exact
step of its work while the fault is made: the controller is killed, or a server is (SIGKILL, and started again), or a server is
frozen for a while, so that nobody gets an answer, or its host is cut off the network. Then the module runs again. It must succeed,
and after the moves are retired nothing of them may be left; each acknowledged row must be there once, and every count over all
shards exact.

See ``tests/benchmarks/_shards.py`` for where the servers run.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._shards import Cluster, HeadroomError, add_options, parsed, running, servers_from, wait_for
from chaos._network import CUTS_S, Network
from workloads.postgresql_shards import ACCOUNT_KEYS, ACCOUNTS, Workload

NAMES = ("a", "b", "c", "r")
FROZEN_S = {"freeze": 3.0, "long-freeze": 15.0}
# what a statement may end with while a server is away
GONE = ("None", "08", "57", "HV", "XX", "53", "25")
WRITERS, KEYS = 4, 60
# rows that nobody writes to, enough that a copy takes a moment
STILL_EACH = 300
FIRST_STILL, LAST_STILL = 500_000, 520_000
STILL = f"user_id BETWEEN {FIRST_STILL} AND {LAST_STILL}"
# buckets of the group, how they are cut, and the end of the still rows; where there are some, a writer's keys or the accounts are too
CUTS: dict[str, tuple[int, dict[str, Any] | None, int]] = {
    "hash": (64, None, LAST_STILL),
    "range": (
        5,
        {
            "strategy": "range",
            "bounds": [KEYS, 2 * KEYS, FIRST_STILL + STILL_EACH, ACCOUNT_KEYS + ACCOUNTS // 2],
        },
        FIRST_STILL + 2 * STILL_EACH - 1,
    ),
    "directory": (
        WRITERS,
        {
            "strategy": "directory",
            "tenants": [
                [
                    *range(number * KEYS, (number + 1) * KEYS),
                    *range(FIRST_STILL + number * STILL_EACH, FIRST_STILL + (number + 1) * STILL_EACH),
                    *range(ACCOUNT_KEYS + number, ACCOUNT_KEYS + ACCOUNTS, WRITERS),
                ]
                for number in range(WRITERS)
            ],
        },
        FIRST_STILL + WRITERS * STILL_EACH - 1,
    ),
}
# behind the back of a move, as no trigger can prevent
CORRUPT = {
    "update": "UPDATE public.orders_b{0} SET note = 'corrupt' WHERE ctid = (SELECT ctid FROM public.orders_b{0} WHERE {1} LIMIT 1)",
    "delete": "DELETE FROM public.orders_b{0} WHERE ctid = (SELECT ctid FROM public.orders_b{0} WHERE {1} LIMIT 1)",
    "insert": "INSERT INTO public.items_b{0} SELECT user_id, 99, 1 FROM public.orders_b{0} WHERE {1} LIMIT 1",
}
STEP = r"INSERT INTO headroom\.move .*'step': '%s'"


@dataclass(frozen=True)
class Step:
    """A moment of a run: a statement that is about to be sent, or that was answered."""

    name: str
    pattern: str
    nth: int = 1
    when: str = "after"
    # the state of the run that stands still
    state: str = "balanced"


def journal(step: str, nth: int = 2, state: str = "balanced", name: str = "") -> Step:
    """Return the moment when a step is in the journal: of one shard, or of both."""
    return Step(f"{name or 'journal'}: {step or 'planned'} on {nth}", STEP % step, nth, state=state)


MOVE = (
    journal("", 1),
    journal("", 2),
    journal("leaves", 1),
    Step("before a leaf is made", r"CREATE TABLE .*LIKE", when="before"),
    Step("first leaf made", r"CREATE TABLE .*LIKE"),
    Step("last leaf made", r"CREATE TABLE .*LIKE", nth=2),
    journal("stream", 1),
    Step("published", r"CREATE PUBLICATION .*_forward"),
    Step("before the slot", r"CREATE_REPLICATION_SLOT", when="before"),
    Step("slot made", r"CREATE_REPLICATION_SLOT"),
    journal("copy"),
    Step("snapshot taken", r"SET TRANSACTION SNAPSHOT"),
    Step("half copied", r"SET bytes_done"),
    journal("copied", 1),
    journal("copied"),
    journal("indexes"),
    Step("before an index", r"CREATE UNIQUE INDEX", when="before"),
    Step("first index built", r"CREATE UNIQUE INDEX"),
    Step("primary key set", r"PRIMARY KEY USING INDEX"),
    Step("analyzed", r"ANALYZE", nth=2),
    Step("catching up", STEP % "stream", nth=4),
    Step("before the subscription", r"CREATE SUBSCRIPTION .*_forward", when="before"),
    Step("subscribed", r"CREATE SUBSCRIPTION .*_forward"),
    Step("caught up", r"INSERT INTO headroom\.fence"),
    journal("verify"),
    Step("while rows are compared", r"bit_xor", when="before"),
    Step("rows compared", r"bit_xor", nth=4),
    journal("reverse", 1),
    Step("published back", r"CREATE PUBLICATION .*_reverse"),
    Step("slot back made", r"pg_create_logical_replication_slot"),
    Step("forwarder made", r"CREATE FOREIGN TABLE \S*_forward", nth=2),
    journal("switch"),
    Step("before the lock", r"LOCK TABLE (?!ONLY)", when="before"),
    Step("leaves locked", r"LOCK TABLE (?!ONLY)"),
    Step("names changed", r"RENAME TO"),
    Step("leaf attached", r"ATTACH PARTITION"),
    Step("before any is prepared", r"PREPARE TRANSACTION", when="before"),
    Step("one prepared", r"PREPARE TRANSACTION"),
    Step("both prepared", r"PREPARE TRANSACTION", nth=2),
    Step("before the decision", r"INSERT INTO headroom\.decision", when="before"),
    Step("decided", r"INSERT INTO headroom\.decision"),
    Step("taken", r"COMMIT PREPARED .*_take"),
    Step("before it is given", r"COMMIT PREPARED .*_give", when="before"),
    Step("given", r"COMMIT PREPARED .*_give"),
    Step("router locked", r"LOCK TABLE ONLY"),
    Step("one shard told", r"UPDATE headroom\.bucket SET shard = .* AND epoch <"),
    journal("routed"),
    Step("subscription dropped", r"DROP SUBSCRIPTION .*_forward"),
    Step("slot dropped", r"pg_drop_replication_slot"),
    Step("before the name is back", r"DROP FOREIGN TABLE .*RENAME", when="before"),
    Step("first name back", r"DROP FOREIGN TABLE .*RENAME"),
    Step("before the subscription back", r"CREATE SUBSCRIPTION .*_reverse", when="before"),
    Step("subscribed back", r"CREATE SUBSCRIPTION .*_reverse"),
    journal("grace"),
    Step("before the detachment", r"DETACH PARTITION .*CONCURRENTLY", when="before"),
    Step("one detached", r"DETACH PARTITION .*CONCURRENTLY"),
    journal("detached", 1),
)
BACK = (
    Step("back: rows compared", r"bit_xor", nth=4, state="reverted"),
    Step("back: bound checked", r"VALIDATE CONSTRAINT", state="reverted"),
    Step("back: forwarder made", r"CREATE FOREIGN TABLE \S*_forward", state="reverted"),
    Step("back: leaves locked", r"LOCK TABLE (?!ONLY)", state="reverted"),
    Step("back: both prepared", r"PREPARE TRANSACTION", nth=2, state="reverted"),
    Step("back: decided", r"INSERT INTO headroom\.decision", state="reverted"),
    Step("back: taken", r"COMMIT PREPARED .*_take", state="reverted"),
    Step("back: given", r"COMMIT PREPARED .*_give", state="reverted"),
    Step("back: router locked", r"LOCK TABLE ONLY", state="reverted"),
    journal("returned_routed", state="reverted", name="back"),
    Step("back: detached", r"DETACH PARTITION .*CONCURRENTLY", state="reverted"),
    Step("back: leaf dropped", r"DROP TABLE", state="reverted"),
)
END = (
    journal("retiring", 1, state="cleaned", name="end"),
    Step("end: subscription dropped", r"DROP SUBSCRIPTION .*_reverse", state="cleaned"),
    Step("end: slot dropped", r"pg_drop_replication_slot", state="cleaned"),
    Step("end: first leaf dropped", r"DROP TABLE", state="cleaned"),
    Step("end: decisions dropped", r"DELETE FROM headroom\.decision", state="cleaned"),
)
SERVER_STEPS = tuple(
    step
    for step in MOVE
    if step.name
    in (
        "journal: leaves on 1",
        "first leaf made",
        "slot made",
        "half copied",
        "first index built",
        "subscribed",
        "while rows are compared",
        "slot back made",
        "leaves locked",
        "one prepared",
        "both prepared",
        "decided",
        "taken",
        "given",
        "journal: routed on 2",
        "first name back",
        "subscribed back",
        "before the detachment",
    )
)
ROUTER_STEPS = tuple(
    step for step in MOVE if step.name in ("leaves locked", "decided", "given", "router locked", "one shard told")
)
FROZEN_STEPS = tuple(
    step
    for step in MOVE
    if step.name in ("half copied", "subscribed", "leaves locked", "both prepared", "decided", "given")
)
POINTS = (
    [("controller", step) for step in (*MOVE, *BACK, *END)]
    + [(fault, step) for fault in ("source", "target") for step in (*SERVER_STEPS, BACK[4], BACK[7])]
    + [("router", step) for step in ROUTER_STEPS]
    + [("freeze source", step) for step in FROZEN_STEPS]
    + [("long-freeze target", step) for step in FROZEN_STEPS]
    + [("cut source", step) for step in FROZEN_STEPS]
    + [("long-cut target", step) for step in FROZEN_STEPS]
    + [
        (f"corrupt {how}", step)
        for how in CORRUPT
        for step in MOVE
        if step.name in ("journal: copied on 2", "caught up")
    ]
)
QUICK = [
    ("controller", "taken"),
    ("target", "both prepared"),
    ("source", "half copied"),
    ("source", "journal: leaves on 1"),
]


class Run:
    """One run of the module, which stands still at a step."""

    def __init__(self, cluster: Cluster, arguments: dict[str, Any], step: Step | None) -> None:
        """Start it."""
        self.directory = Path(tempfile.mkdtemp(dir=cluster.directory))
        command, environment = cluster.command("postgresql_shard_rebalance", arguments)
        if step is not None:
            point = {"pattern": step.pattern, "nth": step.nth, "when": step.when, "to": [], "driver": "psycopg"}
            (self.directory / "point.json").write_text(json.dumps(point), encoding="utf-8")
            faults = str(Path(__file__).parent / "faults")
            environment["PYTHONPATH"] = os.pathsep.join([faults, environment["PYTHONPATH"]])
            environment["HEADROOM_FAULT"] = str(self.directory)
        self.output = (self.directory / "output").open("w+")
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def reached(self) -> bool:
        """Wait for the step, and return whether it came."""
        path = self.directory / "reached"
        wait_for(lambda: path.exists() or self.process.poll() is not None, 180, "the step came")
        return path.exists()

    def kill(self) -> None:
        """Kill it while it stands still."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def go_on(self) -> dict[str, Any]:
        """Let it go on, and return its result."""
        (self.directory / "go").touch()
        self.process.wait(300)
        self.output.seek(0)
        text = self.output.read()
        return parsed(text) or {"failed": True, "msg": text[-500:]}


class Chaos:
    """The faults, one after the other."""

    def __init__(self, cluster: Cluster, workload: Workload, seed: int) -> None:
        """Take the cluster and what works on it."""
        self.cluster = cluster
        # the buckets that have still rows
        self.still = {
            row[0]
            for server in cluster.shards
            for row in server.rows(
                f"SELECT DISTINCT headroom.bucket_of('users', user_id) FROM public.orders WHERE {STILL}"
            )
        }
        self.workload = workload
        self.random = random.Random(seed)
        # nothing but the moves that are asked for
        self.common = {"threshold": 10, "read_grace_s": 1, "max_rate_bytes_s": 60_000, "max_block_ms": 10_000}

    def point(self, fault: str, step: Step) -> dict[str, str] | None:
        """Make one fault and run again. Return what was seen, or None when the run never came to the step."""
        placed = self.cluster.placed()
        bucket = self.random.choice(sorted(self.still))
        source = placed[bucket]
        target = self.random.choice(sorted({server.name for server in self.cluster.shards} - {source}))
        plan = self.plan(bucket, source, target)
        if step.state != "balanced":
            self.again({"plan": plan})
        state = {
            "balanced": {"plan": plan},
            "reverted": {"state": "reverted"},
            "cleaned": {"state": "cleaned", "retire_now": True},
        }
        run = Run(self.cluster, {**self.common, **state[step.state]}, step)
        if not run.reached():
            return None
        ended = self.make(fault, run, source, target, bucket)
        result = self.again({})
        recovered = ", ".join(one["action"] for one in result["recovered"]) or "nothing to do"
        # else the step came before there was a move; after the last one nothing is left to do
        assert fault != "controller" or step not in MOVE[:-1] or result["recovered"], "no move had begun"
        self.again({"state": "cleaned", "retire_now": True})
        left = self.cluster.left_behind()
        assert not left, f"left behind: {left}"
        now = self.cluster.placed()
        assert now[bucket] in (source, target), f"bucket {bucket} is on {now[bucket]}"
        assert {**now, bucket: source} == placed, "another bucket moved"
        return {"run": ended, "again": recovered, "bucket": f"{'moved' if now[bucket] == target else 'stayed'}"}

    def plan(self, bucket: int, source: str, target: str) -> dict[str, Any]:
        """Return a plan of one move."""
        made = self.cluster.rebalance(**self.common, state="planned")["plan"]
        epoch = max(
            server.rows("SELECT epoch FROM headroom.bucket WHERE number = %s", [bucket])[0][0]
            for server in self.cluster.servers.values()
        )
        move = {"group": "users", "bucket": bucket, "source": source, "target": target, "bytes": 0, "epoch": epoch}
        return {**made, "moves": [move]}

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

    def make(self, fault: str, run: Run, source: str, target: str, bucket: int) -> str:
        """Make the fault where the run stands still, and return how the run ended."""
        if fault == "controller":
            run.kill()
            return "killed"
        kind, _space, who = fault.rpartition(" ")
        if kind == "corrupt":
            with self.cluster.servers[target].connect() as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute(CORRUPT[who].format(bucket, STILL))
            result = run.go_on()
            said = result.get("msg", "")
            table = "public.items" if who == "insert" else "public.orders"
            assert f"1 row of table {table}, bucket users/{bucket}, with (user_id, id) = (5" in said, (
                f"it said: {said or result}"
            )
            return "refused"
        server = self.cluster.servers[{"source": source, "target": target, "router": "r"}[who]]
        if kind in CUTS_S:
            timer = Network(str(server.container)).cut(CUTS_S[kind])
            result = run.go_on()
            timer.join()
        elif kind:
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


def serious(errors: list[str], fault: str) -> list[str]:
    """Return the errors that clients must not see: all but those of a server that was away."""
    return [error for error in errors if fault.startswith(("controller", "corrupt")) or not error.startswith(GONE)]


def main() -> int:
    """Make all faults, print a table and one JSON line, and fail when anything was lost or left undone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", help="faults of one kind only, as controller, source, target, router or freeze")
    parser.add_argument("--step", help="steps with this in their names only")
    parser.add_argument("--strategy", choices=sorted(CUTS), default="hash", help="of the group whose buckets move")
    parser.add_argument("--quick", action="store_true", help="four points only")
    parser.add_argument("--first", type=int, default=0, help="begin with this point")
    parser.add_argument("--sample", type=int, help="only so many points, chosen by the seed")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, default=0.03, help="seconds between two operations of a writer")
    add_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    points = [one for one in POINTS if not options.quick or (one[0], one[1].name) in QUICK]
    points = [one for one in points if (options.fault or "") in one[0] and (options.step or "") in one[1].name]
    chosen = list(enumerate(points))[options.first :]
    if options.sample:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    print(f"seed {options.seed}, {len(chosen)} of {len(points)} points", file=sys.stderr, flush=True)

    lost = 0
    skipped: list[str] = []
    bad: list[str] = []
    outcomes: collections.Counter[str] = collections.Counter()
    places = servers_from(options, NAMES)
    if not all(place.container for place in places):
        print("without cuts of the network: the servers are not in hosts of a lab", file=sys.stderr)
        chosen = [one for one in chosen if "cut" not in one[1][0]]
    with tempfile.TemporaryDirectory() as name, running(places) as servers:
        cluster = Cluster(servers, Path(name))
        buckets, cut, last_still = CUTS[options.strategy]
        cluster.declare(lambda number: "abc"[number % 3], buckets, cut=cut)
        dsns = [server.dsn(user="") for server in cluster.shards]
        routers = [server.dsn(user="") for server in cluster.routers]
        workload = Workload(
            dsns, routers, "user=postgres", options.seed, direct=2, routed=2, keys=KEYS, pause_s=options.pause
        )
        workload.fill()
        for server in cluster.shards:
            server.rows(
                "INSERT INTO public.orders (user_id, id, amount, note) SELECT u, 1, 1, repeat('x', 500) "
                "FROM generate_series(%s::bigint, %s) u WHERE headroom.bucket_of('users', u) %% 3 = %s",
                [FIRST_STILL, last_still, "abc".index(server.name)],
            )
        workload.start()
        chaos = Chaos(cluster, workload, options.seed)
        try:
            for number, (fault, step) in chosen:
                began, errors, wrong = time.monotonic(), len(workload.errors), len(workload.wrong)
                before = {id(one): len(one.errors) for one in workload.threads}
                try:
                    seen = chaos.point(fault, step)
                except (AssertionError, RuntimeError, HeadroomError) as error:
                    seen = {"run": "?", "again": "?", "bucket": f"BAD: {error}"}
                    bad.append(f"{fault} {step.name}: {error}")
                if seen is None:
                    skipped.append(f"{fault} {step.name}")
                    print(f"{number:3} {fault:18} {step.name:34} was not reached", file=sys.stderr, flush=True)
                    chaos.again({"state": "cleaned", "retire_now": True})
                    continue
                outcomes[seen["bucket"] if seen["bucket"] in ("moved", "stayed") else "bad"] += 1
                new = [error for one in workload.threads for error in one.errors[before[id(one)] :]]
                grave = serious(new, fault)
                bad += [f"{fault} {step.name}: {error}" for error in grave]
                print(
                    f"{number:3} {fault:18} {step.name:34} {seen['run']:8} then {seen['again']:14} {seen['bucket']:6} "
                    f"errors {len(new)} ({len(grave)} grave), wrong {len(workload.wrong) - wrong}, {time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                del errors
        finally:
            figures = workload.finish()
        lost += len(figures["lost"])
        left = cluster.left_behind()
    for text in [*bad, *figures["lost"][:10], *figures["wrong"][:10]]:
        print(text, file=sys.stderr)
    print(
        json.dumps(
            {
                "chaos": "postgresql_shard_move",
                "strategy": options.strategy,
                "points": len(chosen) - len(skipped),
                "not_reached": skipped,
                "moved": outcomes["moved"],
                "stayed": outcomes["stayed"],
                "bad": len(bad),
                "statements": figures["statements"],
                "counts": figures["counts"],
                "lost": lost,
                "wrong": len(figures["wrong"]),
                "left_behind": len(left),
                "errors": dict(collections.Counter(error.split(":")[0] for error in figures["errors"])),
                "p99_ms": figures["p99_ms"],
                "max_ms": figures["max_ms"],
                "seed": options.seed,
            }
        )
    )
    return int(bool(lost or figures["wrong"] or skipped or bad or left))


if __name__ == "__main__":
    sys.exit(main())
