# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the plan of a rebalance of 10,000 buckets over 100 shards, and compare its bytes with the least that must move.

It runs in this process alone and needs no lab. The cases: a shard is added, one drains, and all buckets lie on half of the shards.
The least is what each shard is over its threshold by, or holds when it drains: no plan can move less, and whole buckets rarely
come to just that. Prints two lines of JSON for each case; `cpu_s` is the time without what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import sys
import time
import typing as t
from pathlib import Path

from _figures import figure

sys.path.insert(0, str(Path(__file__).parents[1]))

# it lets the collection be imported from this checkout
importlib.import_module("conftest")
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Placement,
    Shard,
    ShardMap,
    Table,
    Usage,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.plan import Limits, Plan, plan

CASES = ("added", "drained", "crowded")
LIMIT_S = 1.0
# how much more may move than must
MOST_BYTES = 1.05
LIMITS = Limits(threshold=0.1)


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--buckets", type=int, default=10_000, help="buckets in all (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=100, help="shards in all (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="plans of each case (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.buckets, options.shards, options.rounds = 640, 8, 1
    if options.shards < 2 or options.buckets < options.shards or options.rounds < 1:
        parser.error("at least two shards, a bucket for each and one round are needed")
    return options


def cluster(
    case: str, buckets: int, shards: int, chance: random.Random
) -> tuple[ShardMap, dict[tuple[str, int], Usage]]:
    """Return a map and its usage: sizes of 100 MB in the middle, log-normal as grown data is, and loads that follow them."""
    names = [f"s{index}" for index in range(shards)]
    homes = {"added": names[:-1], "drained": names, "crowded": names[: shards // 2]}[case]
    placements = {("users", number): Placement(homes[number % len(homes)], 1) for number in range(buckets)}
    states = {names[-1]: "draining"} if case == "drained" else {}
    group = Group(
        "users", "hash", "bigint", (Table("public.users", "id"),), tuple(Bucket(number) for number in range(buckets))
    )
    usage = {}
    for bucket in placements:
        size_bytes = int(1e8 * chance.lognormvariate(0, 0.5))
        usage[bucket] = Usage(size_bytes, load=float(size_bytes))
    found = tuple(Shard(name, state=states.get(name, "active")) for name in names)
    return ShardMap(1, found, (group,), placements), usage


def least_bytes(planned: Plan) -> float:
    """Return the bytes that must move at least, where load is bytes."""
    return sum(max(0.0, share.load - share.wanted * (1 + LIMITS.threshold)) for share in planned.before)


def measure(options: argparse.Namespace, case: str) -> None:
    """Plan a case in all rounds, each with sizes of its own, and print its figures."""
    seconds, cpu_s, moved, least, moves = [], [], [], [], []
    load = round(os.getloadavg()[0], 2)
    for seed in range(options.rounds):
        shard_map, usage = cluster(case, options.buckets, options.shards, random.Random(seed))
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        planned = plan(shard_map, usage, LIMITS)
        seconds.append(time.perf_counter() - began_s)
        cpu_s.append(time.process_time() - cpu_began_s)
        if planned.left_out:
            raise RuntimeError(planned.left_out[0].text)
        moved.append(planned.size_bytes / 1e9)
        least.append(least_bytes(planned) / 1e9)
        moves.append(len(planned.moves))
    more = {
        "buckets": options.buckets,
        "shards": options.shards,
        "moves": statistics.median(moves),
        "cpu_s": round(statistics.median(cpu_s), 3),
        "load": load,
    }
    bench, limits = "postgresql_shard_plan", [LIMIT_S] * options.rounds
    dear = [one > MOST_BYTES * other for one, other in zip(moved, least, strict=True)]
    lines = (
        figure(
            bench,
            f"seconds_{case}",
            "s",
            seconds,
            limits,
            "the second that a plan may take",
            within=max(seconds) < LIMIT_S,
            **more,
        ),
        figure(bench, f"bytes_{case}", "GB", moved, least, "what must move at least", within=not any(dear), **more),
    )
    for line in lines:
        print(json.dumps(line), flush=True)


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    for case in CASES:
        measure(options, case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
