# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time a simulated week of an autoscaler, and a thousand candidate specs over it, beside the controller's own steps.

It runs in this process alone and needs no lab. The load is generated: a day and a week of ups and downs, noise and four flash crowds. The
steps of the controller, one for each sync, are timed over a part of the week and counted up to all of it; replicas of that part must
be equal. The peer of a week and of a thousand specs is the time that they may take. Prints a line of JSON for each figure; `cpu_s` is
the time without what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import resource
import statistics
import sys
import time
import typing as t
from pathlib import Path

from _figures import figure

sys.path.insert(0, str(Path(__file__).parents[1]))

# it lets the collection be imported from this checkout
importlib.import_module("conftest")
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.batch import Batch
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.model import (
    Behavior,
    HpaSpec,
    Metric,
    Policy,
    Rules,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.simulate import (
    PodModel,
    Resource,
    Simulation,
    run,
    run_exactly,
)

BENCH = "hpa_simulate"
DAY_S, WEEK_S = 86_400, 604_800
WEEK_LIMIT_S = 0.06
CANDIDATES_LIMIT_S = 20.0
MEMORY_LIMIT_MB = 500.0
PODS = PodModel(100.0, startup_s=45, resources={"cpu": Resource(500, 20, 500)})


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--syncs", type=int, default=WEEK_S // 15, help="length of the load (default: %(default)s, a week)"
    )
    parser.add_argument("--exact", type=int, default=5760, help="syncs that are stepped (default: %(default)s, a day)")
    parser.add_argument("--candidates", type=int, default=1000, help="specs over the load (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads for the candidates (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each figure (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.syncs, options.exact, options.candidates, options.rounds = 960, 120, 10, 1
    if not 1 <= options.exact <= options.syncs or min(options.candidates, options.threads, options.rounds) < 1:
        parser.error("at least one of each, and no more stepped syncs than there are, is needed")
    return options


def week(syncs: int, seed: int) -> list[float]:
    """Return a load of 200 to 3,000: less at night and at weekends, 6 % noise, and four crowds of ten minutes at three times the load."""
    chance = random.Random(seed)
    crowds = [chance.randrange(syncs) for _crowd in range(4)]
    load = []
    for sync in range(syncs):
        at_s = sync * 15
        daily = 1 - math.cos(2 * math.pi * at_s / DAY_S)
        weekend = 0.6 if at_s % WEEK_S >= 5 * DAY_S else 1.0
        crowd = 3.0 if any(0 <= sync - start < 40 for start in crowds) else 1.0
        load.append(max(0.0, (200 + 400 * daily) * weekend * crowd * chance.gauss(1, 0.06)))
    return load


def specs(count: int, seed: int) -> list[Simulation]:
    """Return candidate specs as a search would try them."""
    chance = random.Random(seed)
    found = []
    for _number in range(count):
        up = Rules(
            chance.choice((0, 30, 60, 120)),
            (Policy("Percent", chance.choice((50, 100, 200)), 60), Policy("Pods", 5, 60)),
        )
        down = Rules(chance.choice((60, 300, 900, 1800)), (Policy("Percent", chance.choice((5, 10, 50, 100)), 60),))
        target = chance.randrange(40, 91)
        metrics = (Metric("Resource", "cpu", "Utilization", target),)
        spec = HpaSpec(chance.randrange(20, 80), chance.randrange(2, 8), metrics, Behavior(up, down))
        found.append(Simulation(spec, PODS, initial=8))
    return found


def timed(work: t.Callable[[], t.Any]) -> tuple[float, float, t.Any]:
    """Return the seconds on the clock and of the processor that work took, and what came of it."""
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    done = work()
    return time.perf_counter() - began_s, time.process_time() - cpu_began_s, done


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    load_before = round(os.getloadavg()[0], 2)
    compile_s, compile_cpu_s, _batch = timed(lambda: Batch([1.0]))
    plain, compiled, compiled_cpu, exact, many, many_cpu = [], [], [], [], [], []
    for seed in range(options.rounds):
        load = week(options.syncs, seed)
        one = specs(1, seed)[0]
        batch = Batch(load, options.threads)
        batch.run(one)
        seconds, cpu_s, fast = timed(lambda batch=batch, one=one: batch.run(one))
        replicas = fast.replicas.tolist()
        compiled.append(seconds)
        compiled_cpu.append(cpu_s)
        seconds, _cpu_s, interpreted = timed(lambda load=load, one=one: run(load, one))
        plain.append(seconds)
        part = load[: options.exact]
        seconds, _cpu_s, (steps, _ready) = timed(lambda part=part, one=one: run_exactly(part, one))
        exact.append(seconds * options.syncs / options.exact)
        stepped = [step.replicas for step in steps]
        if (
            not replicas[: options.exact] == interpreted.replicas[: options.exact] == stepped
            or replicas != interpreted.replicas
        ):
            raise RuntimeError("the simulations differ")
        seconds, cpu_s, _figures = timed(lambda batch=batch, seed=seed: batch.figures(specs(options.candidates, seed)))
        many.append(seconds)
        many_cpu.append(cpu_s)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    rounds = options.rounds
    more = {"syncs": options.syncs, "load": load_before}
    stepped_name = f"steps of the controller, counted up from {options.exact} syncs"
    lines = [
        figure(BENCH, "seconds_of_a_week_compiled", "s", compiled, exact, stepped_name, digits=4, **more),
        figure(BENCH, "seconds_of_a_week_interpreted", "s", plain, exact, stepped_name, digits=4, **more),
        figure(
            BENCH,
            "seconds_of_a_week_and_its_limit",
            "s",
            compiled,
            [WEEK_LIMIT_S] * rounds,
            "the time that it may take",
            digits=4,
            cpu_s=round(statistics.median(compiled_cpu), 4),
            **more,
        ),
        figure(
            BENCH,
            "seconds_of_the_candidates",
            "s",
            many,
            [CANDIDATES_LIMIT_S] * rounds,
            "the time that they may take",
            cpu_s=round(statistics.median(many_cpu), 3),
            candidates=options.candidates,
            threads=options.threads,
            compile_s=round(compile_s, 3),
            compile_cpu_s=round(compile_cpu_s, 3),
            **more,
        ),
        figure(BENCH, "memory", "MB", [memory_mb], [MEMORY_LIMIT_MB], "the memory that it may take", digits=0, **more),
    ]
    for line in lines:
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
