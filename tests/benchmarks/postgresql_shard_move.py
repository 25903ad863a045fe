# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the move of a bucket between shards against what PostgreSQL and pgcopydb do with the same rows, and what clients feel of it.

One bucket with all the rows moves back and forth between two of three shards, in turns with a pipe of binary COPY and a build of the
same indexes, with the table synchronization of logical replication, and with ``pgcopydb clone``. Ours includes the comparison of
all rows, the switch and the router. Then small buckets move under a workload that checks its own data: how long each switch kept
writers waiting, and the latency of the workload beside a copy at a limited rate and without one. Then the comparison of all rows
is timed against a plain read of them, and a move over growing data. Prints one line of JSON per figure, with ``within``: whether it is
what is promised of it.

See ``_shards.py`` for where the servers run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._figures import figure
from benchmarks._shards import BIN, Cluster, HeadroomError, Server, add_options, running, servers_from, wait_for

BENCH = "postgresql_shard_move"
NAMES = ("a", "b", "c", "r")
BUCKET = 7
WORKLOAD = Path(__file__).parents[1] / "workloads" / "postgresql_shards.py"
# files of its log that a server keeps, so that no round makes them anew
SETTINGS = {"min_wal_size": "2GB"}
PEERS = ("pipe", "replication", "pgcopydb")
# what is promised, for the field "within": how long ours may take beside a peer, ...
MOST_OF = {"pipe": 1.25, "replication": 1.0, "pgcopydb": 1.0}
# ... how long a switch may keep writers waiting, half of them and all of them, ...
MOST_BLOCK_MS = {"p50": 150, "max": 500}
# ... how much slower the slowest statements may be beside a copy, how fast rows are compared beside a plain read, ...
MOST_P99 = 2.0
LEAST_VERIFICATION = 0.5
# ... and how much longer a row may take among four times as many
MOST_GROWTH = 1.25
DDL = (
    "CREATE TABLE public.peer (user_id bigint NOT NULL, id bigint NOT NULL, amount numeric(14,2) NOT NULL DEFAULT 0, note text, "
    "at timestamptz NOT NULL DEFAULT now())"
)
INDEXES = (
    "ALTER TABLE public.peer ADD CONSTRAINT peer_pkey PRIMARY KEY (user_id, id)",
    "CREATE INDEX peer_at ON public.peer (at)",
)
# a peer that has not ended by then will not
PEER_TIMEOUT_S = 3600


def timed(work: Callable[[], Any]) -> float:
    """Return how long something took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


class Bench:
    """The servers, and the ways from one to the other."""

    def __init__(self, cluster: Cluster, streams: int) -> None:
        """Take the cluster."""
        self.cluster = cluster
        self.streams = streams
        self.a, self.b = cluster.servers["a"], cluster.servers["b"]
        self.moved: list[dict[str, Any]] = []

    def fill(self, rows: int) -> int:
        """Make the rows, all in one bucket of shard a, and the same as a plain table; return their bytes with the key."""
        if self.cluster.placed()[BUCKET] != "a":
            self.by_us()
        self.a.rows("TRUNCATE public.orders")
        keys = [
            row[0]
            for row in self.a.rows(
                "SELECT u FROM generate_series(1, 500000) u WHERE headroom.bucket_of('users', u) = %s LIMIT 2000",
                [BUCKET],
            )
        ]
        self.a.rows(
            "INSERT INTO public.orders (user_id, id, amount, note, at) SELECT (%s::bigint[])[1 + i %% 2000], i, i / 7.0, "
            "repeat(md5(i::text), 6), now() - i * interval '1 second' FROM generate_series(1, %s) i",
            [keys, rows],
        )
        for database in ("peer",):
            for server in (self.a, self.b):
                with server.connect("postgres") as connection:
                    connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
                    connection.execute(f"CREATE DATABASE {database}")
        with self.a.connect("peer") as connection:
            connection.execute(DDL)
        self.pipe("app", "SELECT * FROM public.orders_b7", self.a, self.a)
        with self.a.connect("peer") as connection:
            for statement in INDEXES:
                connection.execute(statement)
            connection.execute("CREATE PUBLICATION peer FOR TABLE public.peer")
            connection.execute("VACUUM ANALYZE public.peer")
        self.a.rows("VACUUM ANALYZE public.orders_b7")
        self.settle()
        return int(self.a.rows("SELECT pg_total_relation_size('public.orders_b7')")[0][0])

    def settle(self) -> None:
        """Write all to the disks, so that no round pays for the one before."""
        for server in self.cluster.shards:
            server.rows("CHECKPOINT")

    def pipe(self, database: str, query: str, source: Server, target: Server) -> None:
        """Copy rows through a pipe of two psql."""
        parts = [
            [f"{BIN}/psql", source.dsn(database), "-XqAtc", f"COPY ({query}) TO STDOUT (FORMAT binary)"],
            [f"{BIN}/psql", target.dsn("peer"), "-XqAtc", "COPY public.peer FROM STDIN (FORMAT binary)"],
        ]
        line = " | ".join(shlex.join(part) for part in parts)
        done = subprocess.run(
            [*source.prefix, "bash", "-o", "pipefail", "-c", line],
            capture_output=True,
            text=True,
            timeout=PEER_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the pipe failed: {done.stderr}")

    def empty(self) -> None:
        """Remove what a peer has made."""
        with self.b.connect("peer") as connection:
            connection.execute("DROP TABLE IF EXISTS public.peer")
            # a clone brings it along
            connection.execute("DROP PUBLICATION IF EXISTS peer")
        self.settle()

    def by_pipe(self) -> float:
        """Copy, then index: the least that it takes."""
        self.empty()

        def work() -> None:
            with self.b.connect("peer") as connection:
                connection.execute(DDL)
                self.pipe("peer", "SELECT * FROM public.peer", self.a, self.b)
                for statement in INDEXES:
                    connection.execute(statement)

        return timed(work)

    def by_replication(self) -> float:
        """Let logical replication copy the table, with its indexes there as it needs them to go on."""
        self.empty()
        with self.b.connect("peer") as connection:
            connection.execute(DDL)
            for statement in INDEXES:
                connection.execute(statement)

            def work() -> None:
                connection.execute(f"CREATE SUBSCRIPTION peer CONNECTION '{self.a.dsn('peer')}' PUBLICATION peer")
                query = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
                wait_for(
                    lambda: bool(connection.execute(query).fetchone()[0]), PEER_TIMEOUT_S, "the table was synchronized"
                )

            try:
                return timed(work)
            finally:
                connection.execute("DROP SUBSCRIPTION IF EXISTS peer")

    def by_pgcopydb(self) -> float:
        """Let pgcopydb clone the database, which has this table alone."""
        self.empty()
        folder = f"/tmp/headroom-pgcopydb-{os.getpid()}"
        command = [
            "pgcopydb",
            "clone",
            *("--source", self.a.dsn("peer"), "--target", self.b.dsn("peer"), "--dir", folder, "--restart"),
            *(
                "--table-jobs",
                str(self.streams),
                "--index-jobs",
                str(self.streams),
                "--split-tables-larger-than",
                "100MB",
            ),
        ]
        try:
            return timed(lambda: self.a.call(*command))
        finally:
            self.a.call("rm", "-rf", folder)

    def by_us(self) -> tuple[float, float]:
        """Move the bucket to the other shard. Return the seconds of the whole run of the module, and of the move in it."""
        self.empty()
        placed = self.cluster.placed()[BUCKET]
        target = "b" if placed == "a" else "a"
        result, seconds = self.move(BUCKET, placed, target)
        self.cluster.rebalance(state="cleaned", retire_now=True)
        return seconds, result["moves"][0]["duration_s"]

    def move(self, bucket: int, source: str, target: str, **more: Any) -> tuple[dict[str, Any], float]:
        """Move one bucket, and return the result and the seconds of the run."""
        options = {"threshold": 10.0, "read_grace_s": 0.0, "streams": self.streams, **more}
        made = self.cluster.rebalance(**options, state="planned")["plan"]
        epoch = max(
            server.rows("SELECT epoch FROM headroom.bucket WHERE number = %s", [bucket])[0][0]
            for server in self.cluster.servers.values()
        )
        move = {"group": "users", "bucket": bucket, "source": source, "target": target, "bytes": 0, "epoch": epoch}
        began = time.monotonic()
        result = self.cluster.rebalance(**options, plan={**made, "moves": [move]})
        return result, time.monotonic() - began


def show(line: dict[str, Any]) -> None:
    """Print a figure."""
    print(json.dumps(line), flush=True)


def spread(values: list[float], digits: int = 1) -> dict[str, float]:
    """Return the distribution of values."""
    ordered = sorted(values)
    at = {
        name: ordered[min(len(ordered) - 1, int(part * len(ordered)))]
        for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }
    return {**{name: round(value, digits) for name, value in at.items()}, "max": round(ordered[-1], digits)}


def total(bench: Bench, rows: int, rounds: int, peers: list[str]) -> None:
    """Time the move of all rows against the peers, in turns."""
    size = bench.fill(rows)
    ours: list[float] = []
    inner: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    ways = {"pipe": bench.by_pipe, "replication": bench.by_replication, "pgcopydb": bench.by_pgcopydb}
    # a server's first writes make the files of its log, which later ones find
    bench.by_us()
    bench.by_pipe()
    for _round in range(rounds):
        whole, move = bench.by_us()
        ours.append(whole)
        inner.append(move)
        for name in peers:
            theirs[name].append(ways[name]())
    names = {
        "pipe": "psql COPY | psql COPY, then the same indexes; compares nothing",
        "replication": "initial synchronization of a subscription; compares nothing",
        "pgcopydb": f"pgcopydb clone, {bench.streams} jobs; compares nothing",
    }
    for name in peers:
        line = figure(BENCH, f"seconds_vs_{name}", "s", ours, theirs[name], names[name], digits=2)
        within = statistics.median(ours) <= MOST_OF[name] * statistics.median(theirs[name])
        more = {"rows": rows, "bytes": size, "move_alone_s": round(statistics.median(inner), 2), "within": within}
        show({**line, **more})


class Load:
    """The workload as a process of its own, so that it and the mover do not wait for each other's interpreter."""

    def __init__(self, bench: Bench, writers: int, routed: int, pause_s: float, seed: int) -> None:
        """Start it, and wait until it works."""
        self.stop = bench.cluster.directory / f"stop-{seed}"
        self.stop.unlink(missing_ok=True)
        ready = bench.cluster.directory / f"ready-{seed}"
        ready.unlink(missing_ok=True)
        command = [sys.executable, str(WORKLOAD), "--seed", str(seed), "--seconds", "3600", "--stop", str(self.stop)]
        for server in bench.cluster.shards:
            command += ["--shard", server.dsn(user="")]
        for server in bench.cluster.routers:
            command += ["--router", server.dsn(user="")]
        command += ["--direct", str(writers), "--routed", str(routed), "--pause", str(pause_s), "--ready", str(ready)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        wait_for(lambda: ready.exists() or self.process.poll() is not None, 120, "the workload began")
        self.began = time.monotonic()

    def end(self) -> dict[str, Any]:
        """Stop it and return its figures."""
        passed_s = time.monotonic() - self.began
        self.stop.touch()
        text, _nothing = self.process.communicate(timeout=300)
        figures: dict[str, Any] = json.loads(text.splitlines()[-1])
        return {**figures, "statements_per_s": round(figures["statements"] / passed_s)}


class Updates:
    """Updates at a fixed rate by pgbench, of rows in a bucket that stays where it is: what else a shard has to do."""

    def __init__(self, server: Server, bucket: int, rate: float) -> None:
        """Make the rows and begin."""
        self.server = server
        self.base = f"/tmp/headroom-updates-{server.port}"
        (key,) = server.rows(
            "SELECT u FROM generate_series(400000, 500000) u WHERE headroom.bucket_of('users', u) = %s LIMIT 1",
            [bucket],
        )[0]
        server.rows("INSERT INTO public.orders (user_id, id) SELECT %s, i FROM generate_series(1, 1000) i", [key])
        script = f"\\set id random(1, 1000)\nUPDATE public.orders SET amount = amount + 1 WHERE user_id = {key} AND id = :id;\n"
        command = (
            f"printf %s {shlex.quote(script)} > {self.base}.sql; echo $$ > {self.base}.pid; "
            f"exec {BIN}/pgbench -n -M prepared -c 4 -R {rate:g} -T {PEER_TIMEOUT_S} -l --log-prefix={self.base}.log "
            f"-f {self.base}.sql {shlex.quote(server.dsn())}"
        )
        self.process = subprocess.Popen(
            [*server.prefix, "sh", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.began = time.monotonic()

    def end(self) -> tuple[float, list[float]]:
        """Stop, and return how many there were each second and how long each took from when it was due, in milliseconds.

        :raises RuntimeError: when it ended by itself.
        """
        passed_s = time.monotonic() - self.began
        if self.process.poll() is not None:
            raise RuntimeError(f"pgbench on {self.server.name} ended: {self.process.communicate()[1].strip()[-300:]}")
        self.server.call("sh", "-c", f"kill $(cat {self.base}.pid)")
        self.process.communicate(timeout=60)
        lines = self.server.call("sh", "-c", f"cat {self.base}.log.*; rm -f {self.base}.*").splitlines()
        # the last line may be cut off
        took_ms = [int(line.split()[2]) / 1000 for line in lines[:-1]]
        return len(took_ms) / passed_s, took_ms


def blocks(bench: Bench, moves: int, pause_s: float, writers: int, updates: float) -> None:
    """Move small buckets under load, and report how long writers had to wait at each switch."""
    cluster = bench.cluster
    # the last buckets, which stay where they are; each shard has one
    beside = {name: number for number in (61, 62, 63) for name in [cluster.placed()[number]]} if updates else {}
    others = [Updates(cluster.servers[name], number, updates / len(beside)) for name, number in beside.items()]
    load = Load(bench, writers, 2, pause_s, 7)
    time.sleep(2)
    found: list[dict[str, Any]] = []
    for number in range(moves):
        placed = cluster.placed()
        bucket = [one for one in sorted(placed) if one != BUCKET][number % 60]
        target = next(name for name in "bca" if name != placed[bucket])
        # those who know the map read it again within a second
        result, _seconds = bench.move(bucket, placed[bucket], target, read_grace_s=2.0)
        found.append(result["moves"][0]["switch"])
        cluster.rebalance(state="cleaned", retire_now=True)
    figures = load.end()
    ended = [one.end() for one in others]
    per_s = sum(rate for rate, _took in ended)
    took_ms = [one for _rate, took in ended for one in took]
    block = spread([one["block_ms"] for one in found])
    show(
        {
            "bench": BENCH,
            "figure": "write_block_ms",
            "unit": "ms",
            "within": all(block[part] < most for part, most in MOST_BLOCK_MS.items()),
            "moves": moves,
            **{name: spread([one[f"{name}_ms"] for one in found]) for name in ("block", "lock", "fence", "commit")},
            "attempts": sum(one["attempts"] for one in found),
            "statements_per_s": round(figures["statements_per_s"] + per_s),
            **({"updates_per_s": round(per_s), "update_ms": spread(took_ms)} if took_ms else {}),
            "client_p99_ms": figures["p99_ms"],
            "client_max_ms": figures["max_ms"],
            "lost": len(figures["lost"]),
            "wrong": len(figures["wrong"]),
            "errors": len(figures["errors"]),
        }
    )


def foreground(bench: Bench, rate_bytes_s: int, pause_s: float, seconds: float, rounds: int) -> None:
    """Compare the latency of a workload beside a move at a limited rate with that of the same workload alone."""
    cluster = bench.cluster
    # there and back: a new file of the log holds every commit up, and servers in use have some to use again
    bench.by_us()
    bench.by_us()
    bench.settle()
    idle: list[dict[str, Any]] = []
    busy: list[dict[str, Any]] = []
    for _round in range(rounds):
        load = Load(bench, 3, 1, pause_s, 8)
        time.sleep(seconds)
        idle.append(load.end())
        placed = cluster.placed()[BUCKET]
        load = Load(bench, 3, 1, pause_s, 9)
        bench.move(BUCKET, placed, "b" if placed == "a" else "a", max_rate_bytes_s=rate_bytes_s)
        busy.append(load.end())
        cluster.rebalance(state="cleaned", retire_now=True)
    ours, theirs = ([one["p99_ms"] for one in side] for side in (busy, idle))
    name = "the same workload without a move"
    # the ratio says how many times as slow it is
    line = figure(BENCH, "p99_while_moving_vs_idle", "ms", ours, theirs, name, more_is_better=True, ratio_digits=2)
    show(
        {
            **line,
            "within": statistics.median(ours) <= MOST_P99 * statistics.median(theirs),
            "max_rate_bytes_s": rate_bytes_s,
            "statements_per_s": [
                round(statistics.median(one["statements_per_s"] for one in side)) for side in (busy, idle)
            ],
            "lost": sum(len(one["lost"]) for one in busy + idle),
        }
    )


def verification(bench: Bench, rounds: int) -> None:
    """Compare the speed of hashing all rows by chunks with that of a plain sequential read."""
    from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Table
    from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.catalog import Shape
    from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Leaf
    from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.sums import (
        chunks_for,
        sums_query,
    )
    from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.verify import FIRST_CHUNKS

    server = bench.cluster.servers[bench.cluster.placed()[BUCKET]]
    types = {
        "amount": "numeric(14,2)",
        "at": "timestamp with time zone",
        "id": "bigint",
        "note": "text",
        "user_id": "bigint",
    }
    shape = Shape(tuple(types), types, ("user_id", "id"), nullable=frozenset({"note"}))
    leaf = Leaf(Table("public.orders", "user_id"), BUCKET)
    with server.connect() as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.execute("SET jit = off")
        connection.execute("SET enable_sort = off")
        (rows,) = connection.execute("SELECT reltuples FROM pg_class WHERE relname = 'orders_b7'").fetchone()
        (size,) = connection.execute("SELECT pg_relation_size('public.orders_b7')").fetchone()
        query = sums_query(leaf, shape, chunks_for(rows, FIRST_CHUNKS)).as_string(connection)
        # reads each row, and not just its header
        plain = "SELECT count(*), max(length(note)), max(amount) FROM public.orders_b7"
        for workers in (0, 2):
            connection.execute(f"SET max_parallel_workers_per_gather = {workers}")
            ours, theirs = [], []
            for _round in range(rounds + 1):
                ours.append(size / 1e6 / timed(lambda: connection.execute(query).fetchall()))
                theirs.append(size / 1e6 / timed(lambda: connection.execute(plain).fetchall()))
            line = figure(
                BENCH,
                "verification_mb_s",
                "MB/s",
                ours[1:],
                theirs[1:],
                "sequential read that looks at two columns",
                more_is_better=True,
                digits=1,
            )
            ratio = statistics.median(ours[1:]) / statistics.median(theirs[1:])
            show({**line, "ratio": round(ratio, 2), "within": ratio >= LEAST_VERIFICATION, "workers": workers})


def growth(bench: Bench, rows: int) -> None:
    """Time moves over 1, 4 and 16 times as many rows."""
    seconds = []
    for times in (1, 4, 16):
        bench.fill(rows * times // 16)
        seconds.append(bench.by_us()[0])
    per_row = [one / times for one, times in zip(seconds, (1, 4, 16), strict=True)]
    show(
        {
            "bench": BENCH,
            "figure": "seconds_over_1_4_16_times_the_rows",
            "within": all(after <= MOST_GROWTH * before for before, after in itertools.pairwise(per_row)),
            "ours": [round(one, 2) for one in seconds],
            "unit": "s",
            "rows": rows // 16,
            "seconds_per_million_rows": [
                round(one / (rows * times / 16 / 1e6), 2) for one, times in zip(seconds, (1, 4, 16), strict=True)
            ],
        }
    )


def main() -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the large bucket, 300 bytes each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=2, help="connections of one copy, and jobs of pgcopydb")
    parser.add_argument("--moves", type=int, default=50, help="small buckets that move under load")
    parser.add_argument("--writers", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two operations of a writer")
    parser.add_argument(
        "--updates", type=float, default=0.0, help="updates per second by pgbench beside the writers of the blocks"
    )
    parser.add_argument("--rate", type=int, default=20_000_000, help="bytes per second of the copy beside the workload")
    parser.add_argument("--peer", action="append", choices=PEERS, help="peers to compare with, all by default")
    parser.add_argument("--only", action="append", choices=["total", "verification", "blocks", "foreground", "growth"])
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean nothing")
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds, options.moves = 50_000, 1, 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = options.only or ["total", "verification", "blocks", "foreground", "growth"]
    try:
        with tempfile.TemporaryDirectory() as name, running(servers_from(options, NAMES), **SETTINGS) as servers:
            cluster = Cluster(servers, Path(name))
            cluster.declare(lambda number: "a" if number == BUCKET else "abc"[number % 3])
            bench = Bench(cluster, options.streams)
            if "total" in wanted:
                cluster.servers["a"].install("pgcopydb")
                total(bench, options.rows, options.rounds, options.peer or list(PEERS))
            elif "verification" in wanted or "foreground" in wanted:
                bench.fill(options.rows)
            if "verification" in wanted:
                verification(bench, options.rounds)
            if "blocks" in wanted:
                blocks(bench, options.moves, options.pause, options.writers, options.updates)
            if "foreground" in wanted:
                foreground(bench, options.rate, max(options.pause, 0.005), 5 if options.quick else 20, options.rounds)
            if "growth" in wanted:
                growth(bench, options.rows)
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, HeadroomError, subprocess.SubprocessError) as error:
        print(f"Failed to run the benchmark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
