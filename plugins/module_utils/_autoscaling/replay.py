# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The module hpa_simulate: its options, checked, and its result."""

from __future__ import annotations

import itertools
import math
import typing as t
from dataclasses import dataclass, replace

from .._common.argspec import ArgumentSpec
from .._common.errors import OptionError
from .._common.files import check_writable, write_file
from . import kernel, report
from .model import EXTERNAL, OBJECT, PODS, VERSIONS, HpaSpec, Settings
from .simulate import MAX_PODS, PodModel, Resource, Run, Simulation, check, run, settle
from .spec import parse_spec, read_quantity
from .trace import INTERPOLATIONS, LARGEST, Trace, parse_points, parse_text

DAY_S = 86400
MAX_FILE_BYTES = 256 * 1024 * 1024


def model_spec() -> dict[str, t.Any]:
    """Return the options pods, controller and slo, which say what is simulated."""
    resource = {
        "name": {"type": "str", "required": True},
        "request": {"type": "str", "required": True},
        "idle": {"type": "str", "default": "0"},
        "at_capacity": {"type": "str", "required": True},
    }
    point = {"load_ratio": {"type": "float", "required": True}, "latency_ms": {"type": "float", "required": True}}
    pods = {
        "capacity": {"type": "float", "required": True},
        "startup_s": {"type": "float", "default": 30.0},
        "metric_age_s": {"type": "float", "default": 30.0},
        "metric_window_s": {"type": "float", "default": 30.0},
        "resources": {"type": "list", "elements": "dict", "default": [], "options": resource},
        "factors": {"type": "dict", "default": {}},
        "latency": {"type": "list", "elements": "dict", "default": [], "options": point},
    }
    controller = {
        "version": {"type": "str", "choices": list(VERSIONS), "default": "1.33"},
        "sync_s": {"type": "int", "default": 15},
        "tolerance": {"type": "float", "default": 0.1},
        "downscale_stabilization_s": {"type": "int", "default": 300},
        "cpu_initialization_period_s": {"type": "int", "default": 300},
    }
    slo = {
        "max_load_ratio": {"type": "float", "default": 1.0},
        "max_latency_ms": {"type": "float"},
        "min_share": {"type": "float", "default": 0.999},
    }
    return {
        "interpolation": {"type": "str", "choices": list(INTERPOLATIONS), "default": "hold"},
        "pods": {"type": "dict", "required": True, "options": pods},
        "controller": {"type": "dict", "options": controller, "apply_defaults": True},
        "slo": {"type": "dict", "options": slo, "apply_defaults": True},
    }


def simulate_spec() -> ArgumentSpec:
    """Return the module's options."""
    return ArgumentSpec(
        {
            "trace_file": {"type": "path"},
            "points": {"type": "list", "elements": "list"},
            "spec": {"type": "dict", "required": True},
            **model_spec(),
            "initial_replicas": {"type": "int"},
            "cost_per_replica_hour": {"type": "float"},
            "max_items": {"type": "int", "default": 500},
            "report_file": {"type": "path"},
        },
        mutually_exclusive=[("trace_file", "points")],
        required_one_of=[("trace_file", "points")],
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. ``latency`` are pairs of a ratio of the capacity and milliseconds."""

    trace: Trace
    load: t.Sequence[float]
    simulation: Simulation
    latency: t.Sequence[tuple[float, float]]
    min_share: float
    cost_per_replica_hour: float | None
    max_items: int
    report_file: str | None


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types, and read the trace.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    check_number("cost_per_replica_hour", params["cost_per_replica_hour"], 0, LARGEST, "of money")
    check_number("max_items", params["max_items"], 0, 10**6, "entries, 0 for all,")
    check_number("initial_replicas", params["initial_replicas"], 0, MAX_PODS, "replicas")
    if params["report_file"] is not None:
        check_writable("report_file", params["report_file"])
    simulation, latency = parse_simulation(params)
    trace = parse_points(params["points"]) if params["points"] is not None else read_trace(params["trace_file"])
    load = trace.sampled(simulation.sync_s, params["interpolation"])
    initial = params["initial_replicas"]
    if initial is None:
        initial = settle(load[0], simulation)
    return Options(
        trace,
        load,
        simulation=replace(simulation, initial=initial),
        latency=latency,
        min_share=params["slo"]["min_share"],
        cost_per_replica_hour=params["cost_per_replica_hour"],
        max_items=params["max_items"],
        report_file=params["report_file"],
    )


def parse_simulation(params: t.Mapping[str, t.Any]) -> tuple[Simulation, list[tuple[float, float]]]:
    """Check the options spec, pods, controller and slo, and return the simulation without its start, and the latency curve.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    controller, slo, pods = params["controller"], params["slo"], params["pods"]
    check_number("controller.sync_s", controller["sync_s"], 1, 3600, "seconds")
    check_number("controller.tolerance", controller["tolerance"], 0, 10, "of the target")
    for name in ("downscale_stabilization_s", "cpu_initialization_period_s"):
        check_number(f"controller.{name}", controller[name], 0, DAY_S, "seconds")
    check_number("slo.max_load_ratio", slo["max_load_ratio"], 0.01, 1, "of the capacity")
    check_number("slo.min_share", slo["min_share"], 0, 1, "of the syncs")
    latency = _latency(pods["latency"])
    spec = parse_spec(params["spec"], "spec", controller["version"])
    simulation = Simulation(
        spec,
        _pods(pods, spec),
        Settings(
            controller["tolerance"],
            controller["downscale_stabilization_s"],
            controller["cpu_initialization_period_s"],
        ),
        controller["version"],
        controller["sync_s"],
        max_ratio=_max_ratio(slo, latency),
    )
    check(simulation)
    return simulation, latency


def check_number(option: str, value: float | None, low: float, high: float, unit: str) -> None:
    """Make sure that a number, where there is one, is within its bounds.

    :raises OptionError: naming them.
    """
    if value is not None and not low <= value <= high:
        raise OptionError(option, value, f"give a number {unit} from {low:g} to {high:g}.")


def _pods(given: t.Mapping[str, t.Any], spec: HpaSpec) -> PodModel:
    check_number("pods.capacity", given["capacity"], 1e-6, LARGEST, "of the load's unit")
    for name in ("startup_s", "metric_age_s", "metric_window_s"):
        check_number(f"pods.{name}", given[name], 0, 3600, "of seconds")
    resources = {}
    for entry in given["resources"]:
        if entry["name"] in resources:
            raise OptionError("pods.resources[].name", entry["name"], "it is given twice; give each resource once.")
        milli = []
        for field in ("request", "idle", "at_capacity"):
            quantity = read_quantity(entry[field], f"pods.resources[].{field}")
            if quantity.value < 0:
                raise OptionError(f"pods.resources[].{field}", entry[field], "give a quantity of at least 0.")
            milli.append(quantity.milli)
        one = Resource(*milli)
        if one.idle_milli > one.at_capacity_milli:
            remedy = f"it is more than at_capacity, {entry['at_capacity']}; give at most that."
            raise OptionError("pods.resources[].idle", entry["idle"], remedy)
        resources[entry["name"]] = one
    names = sorted({metric.name for metric in spec.metrics if metric.kind in (PODS, OBJECT, EXTERNAL)})
    factors = {}
    for name, value in given["factors"].items():
        if name not in names:
            known = f"the spec has {', '.join(names)}" if names else "the spec has none"
            raise OptionError(f"pods.factors.{name}", value, f"name a Pods, Object or External metric; {known}.")
        try:
            factors[name] = float(value)
        except (TypeError, ValueError, OverflowError):
            factors[name] = math.nan
        if not 0 <= factors[name] <= LARGEST:
            raise OptionError(f"pods.factors.{name}", value, f"give a number from 0 to {LARGEST:g}.")
    return PodModel(
        given["capacity"], given["startup_s"], given["metric_age_s"], given["metric_window_s"], resources, factors
    )


def _latency(given: t.Sequence[t.Mapping[str, float]]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for index, entry in enumerate(given):
        ratio, latency_ms = entry["load_ratio"], entry["latency_ms"]
        check_number(f"pods.latency[{index}].load_ratio", ratio, 0, 1, "of the capacity")
        check_number(f"pods.latency[{index}].latency_ms", latency_ms, 0, LARGEST, "of milliseconds")
        if points and (ratio <= points[-1][0] or latency_ms < points[-1][1]):
            remedy = "give points with growing load_ratio and latencies that do not fall."
            raise OptionError(f"pods.latency[{index}]", dict(entry), remedy)
        points.append((ratio, latency_ms))
    return points


def _max_ratio(slo: t.Mapping[str, t.Any], latency: t.Sequence[tuple[float, float]]) -> float:
    """Return the largest ratio of the capacity that keeps the objective, by load and by latency."""
    limit_ms, most = slo["max_latency_ms"], slo["max_load_ratio"]
    if limit_ms is None:
        return most
    check_number("slo.max_latency_ms", limit_ms, 0, LARGEST, "of milliseconds")
    if not latency:
        raise OptionError("slo.max_latency_ms", limit_ms, "the pods have no latency; give points in pods.latency.")
    if latency[0][1] > limit_ms:
        remedy = f"no load keeps it, since the least latency is {latency[0][1]:g} ms; give at least that."
        raise OptionError("slo.max_latency_ms", limit_ms, remedy)
    for (low, low_ms), (high, high_ms) in itertools.pairwise(latency):
        if low_ms <= limit_ms < high_ms:
            return min(most, low + (high - low) * (limit_ms - low_ms) / (high_ms - low_ms))
    return most


def latency_at(latency: t.Sequence[tuple[float, float]], ratio: float) -> float | None:
    """Return the latency at a ratio of the capacity, ``None`` when the curve does not say: without points, and above capacity."""
    if not latency or ratio > 1:
        return None
    below = [point for point in latency if point[0] <= ratio]
    above = [point for point in latency if point[0] > ratio]
    if not below or not above:
        return (below or above)[-1 if below else 0][1]
    (low, low_ms), (high, high_ms) = below[-1], above[0]
    return low_ms + (high_ms - low_ms) * (ratio - low) / (high - low)


def read_trace(path: str) -> Trace:
    """Read a trace from a file.

    :raises OptionError: when it cannot be read, or used.
    """
    return parse_text(read_text("trace_file", path))


def read_text(option: str, path: str) -> str:
    """Read a file.

    :raises OptionError: when it cannot be read, or is too large.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(option, path, f"it cannot be read ({reason}); name a readable text file.") from error
    if len(text) > MAX_FILE_BYTES:
        raise OptionError(option, path, f"it has more than {MAX_FILE_BYTES} characters; cut it.")
    return text


def simulate(options: Options, write: bool = True) -> dict[str, t.Any]:
    """Simulate, write the report and return the result.

    :param write: whether to write files; false in check mode.
    """
    done = run(options.load, options.simulation)
    figures = _figures(options, done)
    violations = _violations(options, done)
    events = _events(options, done)
    gaps = [
        {"start_s": one.start_s, "end_s": one.end_s, "duration_s": one.end_s - one.start_s}
        for one in options.trace.gaps()
    ]
    least = options.max_items or max(len(events), len(violations), len(options.load))
    result = {
        "changed": False,
        "slo_met": figures["slo_share"] >= options.min_share,
        "summary": "",
        "figures": figures,
        "replicas": _series(options, done, options.max_items),
        "events": events[:least],
        "violations": violations[:least],
        "gaps": gaps[:least],
    }
    result["summary"] = _summary(options, result)
    if write and options.report_file is not None:
        drawn = {**result, "replicas": _series(options, done, report.COLUMNS), "violations": violations}
        write_file("report_file", options.report_file, report.to_html(drawn, options.simulation.spec), 0o644, result)
    return result


def _figures(options: Options, done: Run) -> dict[str, t.Any]:
    totals, sync_s = done.totals, options.simulation.sync_s
    hours = totals[kernel.REPLICA_SYNCS] * sync_s / 3600
    offered, served = totals[kernel.OFFERED] * sync_s, totals[kernel.SERVED] * sync_s
    gap_s = sum(one.end_s - one.start_s for one in options.trace.gaps())
    cost = options.cost_per_replica_hour
    worst = totals[kernel.WORST_RATIO]
    return {
        "syncs": len(options.load),
        "duration_s": len(options.load) * sync_s,
        "load_offered": round(offered, 3),
        "load_served": round(served, 3),
        "load_capped": round(max(0.0, offered - served), 3),
        "violating_syncs": int(totals[kernel.VIOLATING]),
        "slo_share": round(1 - totals[kernel.VIOLATING] / len(options.load), 6),
        "worst_load_ratio": None if math.isinf(worst) else round(worst, 4),
        "replica_hours": round(hours, 4),
        "cost": None if cost is None else round(hours * cost, 4),
        "replicas_least": min(done.replicas),
        "replicas_most": max(done.replicas),
        "replicas_initial": options.simulation.initial,
        "scale_ups": int(totals[kernel.UPS]),
        "scale_downs": int(totals[kernel.DOWNS]),
        "syncs_at_max": int(totals[kernel.AT_MAX]),
        "gap_s": gap_s,
        "series": options.trace.series,
        "dropped_values": options.trace.dropped,
    }


def _events(options: Options, done: Run) -> list[dict[str, t.Any]]:
    """Return each change of the replicas with its reason."""
    simulation, events, before = options.simulation, [], options.simulation.initial
    for sync, after in enumerate(done.replicas):
        if after == before:
            continue
        events.append(
            {
                "at_s": options.trace.at_s[0] + sync * simulation.sync_s,
                "before": before,
                "after": after,
                "reason": done.reason(sync, before, simulation.spec),
                "limited_by": kernel.LIMITED_CODES[done.limited[sync]] if done.limited[sync] > 1 else None,
            }
        )
        before = after
    return events


def _violations(options: Options, done: Run) -> list[dict[str, t.Any]]:
    """Return the times in which the objective was not kept, syncs in a row as one."""
    simulation, found = options.simulation, t.cast(list[dict[str, t.Any]], [])
    capacity, last = simulation.pods.capacity, -2
    for sync, (load, ready) in enumerate(zip(options.load, done.ready, strict=True)):
        room = ready * capacity
        if load <= room * simulation.max_ratio:
            continue
        start_s = options.trace.at_s[0] + sync * simulation.sync_s
        if sync != last + 1:
            found.append(
                {"start_s": start_s, "duration_s": 0, "worst_load_ratio": 0.0, "latency_ms": None, "load_capped": 0.0}
            )
        entry, last = found[-1], sync
        entry["duration_s"] += simulation.sync_s
        entry["load_capped"] += max(0.0, load - room) * simulation.sync_s
        ratio = load / room if room else math.inf
        entry["worst_load_ratio"] = max(entry["worst_load_ratio"], ratio)
    for entry in found:
        worst = entry["worst_load_ratio"]
        latency_ms = latency_at(options.latency, worst)
        entry["latency_ms"] = None if latency_ms is None else round(latency_ms, 3)
        entry["worst_load_ratio"] = None if math.isinf(worst) else round(worst, 4)
        entry["load_capped"] = round(entry["load_capped"], 3)
    return found


def _series(options: Options, done: Run, most: int) -> list[dict[str, t.Any]]:
    """Return the syncs, or of so many stretches of them the highest load and replicas and the fewest ready pods."""
    count = len(options.load)
    stretches = min(count, most or count)
    bounds = [count * index // stretches for index in range(stretches + 1)]
    return [
        {
            "at_s": options.trace.at_s[0] + low * options.simulation.sync_s,
            "load": round(max(options.load[low:high]), 6),
            "replicas": max(done.replicas[low:high]),
            "ready": min(done.ready[low:high]),
        }
        for low, high in itertools.pairwise(bounds)
    ]


def _summary(options: Options, result: t.Mapping[str, t.Any]) -> str:
    figures = result["figures"]
    kept = f"The objective held in {figures['slo_share']:.2%} of the time, of the {options.min_share:.2%} asked for"
    used = f"{figures['replica_hours']:.1f} replica-hours, {figures['replicas_least']} to {figures['replicas_most']} replicas"
    cost = "" if figures["cost"] is None else f", a cost of {figures['cost']:g}"
    changes = f"{figures['scale_ups']} times up and {figures['scale_downs']} times down"
    text = f"{kept}; {used}{cost}; scaled {changes}."
    if figures["load_capped"]:
        share = figures["load_capped"] / figures["load_offered"]
        text += f" {share:.2%} of the load was more than the ready pods could serve."
    if figures["gap_s"]:
        text += f" The trace has gaps of {figures['gap_s']:.0f} s in all, in which the last value was held."
    return text
