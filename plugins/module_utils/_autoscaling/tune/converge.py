# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``hpa_tune``: read the load and the present spec, search, judge, apply what is approved, and say why."""

from __future__ import annotations

import math
import time
import typing as t
from dataclasses import dataclass

from ..._common.errors import HeadroomError, OptionError
from ..._common.files import write_file
from .. import report
from ..kube.model import complete, describe
from ..kube.plan import Plan, plan
from ..replay import parse_simulation, read_trace
from ..trace import Trace, parse_points
from .apply import Present, Tuned
from .days import Days, split
from .floors import Schedule, forecast
from .model import differences, parameters_of, to_api
from .options import Options
from .plan import Figures, Verdict, approved, search
from .prometheus import Prometheus
from .quality import check_quality, recent_gap
from .space import Limits, Space

# kubernetes switches tolerances on by default from this release on
TOLERANCE_SINCE = (1, 35)
_INACTIVE = "the HPA cannot read its metrics"
_FIRING = "prometheus.incident_query has a result"
_TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "unnamed"}


@dataclass(frozen=True)
class Recorded:
    """What was read of the past. ``now_s`` is ``None`` where the load is of another time; ``incident`` says why there is one."""

    load: Trace
    replicas: Trace | None = None
    throttling: Trace | None = None
    now_s: float | None = None
    incident: str | None = None


def tune(options: Options, check: bool) -> dict[str, t.Any]:
    """Do what the state says and return the result.

    :param check: whether to stop before the first write.
    :raises HeadroomError: when something cannot be read or written, or the data does not suffice.
    """
    hpa = None
    if options.access is not None and options.name is not None:
        hpa = Tuned(options.access, options.namespace, options.name)
    if options.state == "reverted" and hpa is not None:
        return _revert(options, hpa, check)
    present = None if hpa is None else hpa.read(changing=options.state == "applied")
    spec = options.spec if present is None else present.spec
    return _Tuning(options, hpa, present, spec or {}).run(check)


def _revert(options: Options, hpa: Tuned, check: bool) -> dict[str, t.Any]:
    present = hpa.read(changing=True)
    same = _text(present.spec)
    nothing = {
        "changed": False,
        "verdict": "keep",
        "summary": f"There is nothing to revert of {hpa.title}.",
        "spec": present.spec,
        "plan": [],
        "diff": _diff(hpa.title, same, same),
    }
    if not present.records:
        return nothing
    frozen = _incident(options)
    if frozen is None and not present.active:
        frozen = _INACTIVE
    entry, planned = hpa.revert(present, frozen is not None)
    kept = ""
    if planned.after is not None and planned.after["minReplicas"] > complete(entry["replaced"])["minReplicas"]:
        why = "a schedule has raised it" if frozen is None else frozen
        kept = f" The floor is not lowered, since {why}."
    if kept and not planned.changes:
        # the record stays, for a time when the floor may be lowered
        return {**nothing, "summary": f"{hpa.title} is not reverted.{kept}"}
    if not check:
        hpa.write_back(frozen is not None)
    spec = entry["replaced"] if planned.after is None or not kept else planned.after
    verb = "Would revert" if check else "Reverted"
    names = ", ".join(one.what for one in planned.changes) or "nothing differs"
    return {
        "changed": True,
        "verdict": "reverted",
        "summary": f"{verb} {hpa.title} to the spec before {entry.get('at', 'the last change')}: {names}.{kept}",
        "spec": spec,
        "plan": [one.as_dict() for one in planned.changes],
        "diff": _diff(hpa.title, same, _text(spec)),
    }


def _incident(options: Options) -> str | None:
    """Return why there is an incident, ``None`` when there is none; what cannot be asked counts as one."""
    if options.params["incident"]:
        return "option incident says that there is an incident"
    source = options.source
    if source is None or source.incident_query is None:
        return None
    try:
        with Prometheus(source) as prometheus:
            firing = prometheus.fires(source.incident_query, "prometheus.incident_query")
    except HeadroomError as error:
        return f"it is not known whether there is an incident ({str(error).rstrip('.')})"
    return _FIRING if firing else None


class _Tuning:
    """One search for one HPA."""

    def __init__(self, options: Options, hpa: Tuned | None, present: Present | None, spec: dict[str, t.Any]) -> None:
        self.options, self.hpa, self.present, self.spec = options, hpa, present, spec
        self.title = "the HPA" if hpa is None else hpa.title
        params = {**options.params, "spec": spec}
        self.simulation, _latency = parse_simulation(params)
        self.params = params

    def run(self, check: bool) -> dict[str, t.Any]:
        """Read, search, judge, apply."""
        options, simulation = self.options, self.simulation
        recorded = self._recorded()
        capacity = simulation.pods.capacity
        quality = check_quality(
            self.title,
            recorded.load,
            options.needs,
            simulation.spec.max_replicas * capacity,
            recorded.replicas,
            simulation.spec.max_replicas,
            recorded.throttling,
        )
        load = recorded.load.sampled(simulation.sync_s, self.params["interpolation"])
        cut = split(len(load), simulation.sync_s, self.params["data"]["held_out_days"])
        if cut * simulation.sync_s < 86_400:
            given = self.params["data"]["held_out_days"]
            raise OptionError(
                "data.held_out_days", given, "less than a day is left to train on; give less, or record more."
            )
        threads = self.params["search"]["threads"]
        first_s = recorded.load.at_s[0]
        train = Days(load[:cut], first_s, simulation, threads)
        held = Days(load[cut:], first_s + cut * simulation.sync_s, simulation, threads)
        frozen = self._frozen(recorded)
        before = parameters_of(simulation.spec)
        verdict = search(
            Space(simulation.spec, before, self._limits(frozen is not None)),
            simulation.spec,
            options.objective,
            train,
            held,
            self._schedules(train),
            self.params["search"]["candidates"],
            self.params["search"]["seed"],
        )
        result = self._result(verdict, train, held, quality, frozen)
        self._apply(result, verdict, train, held, check)
        path = options.params["report_file"]
        if path is not None and not check:
            drawn = _drawn(verdict, held)
            page = report.to_tuned_html(result, drawn, self.title, simulation.sync_s, options.objective.min_share)
            write_file("report_file", path, page, 0o644, result)
        return result

    def _recorded(self) -> Recorded:
        """Read the load, and what else is known of that time."""
        options, source = self.options, self.options.source
        incident = "option incident says that there is an incident" if options.params["incident"] else None
        if source is None:
            points, path = options.params["points"], options.params["trace_file"]
            load = parse_points(points) if points is not None else read_trace(path)
            return Recorded(load, options.replicas, options.throttling, None, incident)
        # a run that is to be repeated is given the end of its days
        now_s = time.time() if source.end_s is None else None
        end_s = time.time() if source.end_s is None else source.end_s
        with Prometheus(source) as prometheus:
            load = prometheus.series(source.query, "prometheus.query", end_s)
            replicas, throttling = options.replicas, options.throttling
            if source.replicas_query is not None:
                replicas = prometheus.series(source.replicas_query, "prometheus.replicas_query", end_s)
            if source.throttling_query is not None:
                throttling = prometheus.series(source.throttling_query, "prometheus.throttling_query", end_s)
            if source.incident_query is not None and prometheus.fires(
                source.incident_query, "prometheus.incident_query"
            ):
                incident = _FIRING
        return Recorded(load, replicas, throttling, now_s, incident)

    def _frozen(self, recorded: Recorded) -> str | None:
        """Return why the floor must not be lowered now, ``None`` when it may."""
        if recorded.incident is not None:
            return recorded.incident
        if self.present is not None and not self.present.active:
            return _INACTIVE
        return recent_gap(recorded.load, recorded.now_s)

    def _limits(self, keep_floor: bool) -> Limits:
        given = self.params["limits"]
        known = self.params["controller"]["version"] != "1.32"
        version = None if self.present is None else self.present.version
        if version is not None and version < TOLERANCE_SINCE:
            known = False
        return Limits(
            given["replicas_percent"],
            given["target_percent"],
            given["window_s"],
            given["min_replicas"],
            given["max_replicas"],
            keep_floor,
            known and given["tolerances"],
        )

    def _schedules(self, train: Days) -> list[Schedule]:
        simulation, given = self.simulation, self.params["search"]
        # a floor above 0 would keep a service from scaling to zero
        if not given["floors"] or simulation.spec.min_replicas == 0:
            return []
        return forecast(
            train.load,
            train.first_s,
            simulation.sync_s,
            simulation.pods.capacity * simulation.max_ratio,
            simulation.startup_syncs * simulation.sync_s + simulation.sync_s,
            given["slot_minutes"] * 60,
        )

    def _result(
        self, verdict: Verdict, train: Days, held: Days, quality: dict[str, t.Any], frozen: str | None
    ) -> dict[str, t.Any]:
        before, chosen = verdict.present.parameters, verdict.chosen
        spec = to_api(self.spec, before, chosen.parameters)
        sync_s = self.simulation.sync_s
        changes = [
            {
                "what": one.difference.what,
                "before": one.difference.before,
                "after": one.difference.after,
                "risk": one.difference.risk,
                "risk_reason": one.difference.risk_reason,
                "reason": _reason(one.without, verdict.train[1], self.options.objective.allowed(verdict.train[0])),
                "applied": False,
            }
            for one in verdict.reasons
        ]
        schedule = None
        if verdict.planned is not None:
            planned, on_train, on_held = verdict.planned
            parameters, times = planned.parameters, t.cast(Schedule, planned.schedule)
            schedule = {
                "spec": to_api(self.spec, before, parameters),
                "floors": times.entries(parameters.min_replicas, parameters.max_replicas),
                "weekly": times.weekly,
                "train": self._row(on_train),
                "held_out": self._row(on_held),
            }
        result: dict[str, t.Any] = {
            "changed": False,
            "verdict": "tune" if changes else "keep",
            "summary": "",
            "spec": spec,
            "changes": changes,
            "before": {"train": self._row(verdict.train[0]), "held_out": self._row(verdict.held[0])},
            "after": {"train": self._row(verdict.train[1]), "held_out": self._row(verdict.held[1])},
            "curve": [
                {
                    "train": self._row(point.figures),
                    "held_out": self._row(figures),
                    "spec": to_api(self.spec, before, point.candidate.parameters),
                }
                for point, figures in verdict.curve
            ],
            "schedule": schedule,
            "data": {
                **quality,
                "train_days": round(train.syncs * sync_s / 86_400, 3),
                "held_out_days": round(held.syncs * sync_s / 86_400, 3),
                "floor_kept_because": frozen,
            },
            "tried": verdict.tried,
            "rejected": verdict.rejected,
            "plan": [],
            "diff": _diff(self.title, _text(self.spec), _text(spec)),
        }
        result["summary"] = self._summary(result)
        return result

    def _apply(self, result: dict[str, t.Any], verdict: Verdict, train: Days, held: Days, check: bool) -> None:
        """Apply what is approved, where that is asked for."""
        if self.options.state != "applied" or self.hpa is None:
            return
        risk = self.options.params["approve"].upper()
        one = approved(verdict, self.simulation.spec, self.options.objective, train, held, risk)
        before = verdict.present.parameters
        spec = to_api(self.spec, before, one.parameters)
        planned: Plan = plan({"spec": self.spec}, spec)
        taken = {other.what for other in differences(before, one.parameters, self.simulation.spec)}
        for change in result["changes"]:
            change["applied"] = change["what"] in taken
        waiting = [change for change in result["changes"] if not change["applied"]]
        result["plan"] = [change.as_dict() for change in planned.changes]
        result["diff"] = _diff(self.title, _text(self.spec), _text(spec))
        result["changed"] = bool(planned.changes)
        if planned.changes:
            names = ", ".join(change.what for change in planned.changes)
            result["summary"] += f" {'Would apply' if check else 'Applied'}: {names}."
            if not check:
                self.hpa.apply(self.spec, spec, names)
        if waiting:
            high = "high" if any(change["risk"] == "HIGH" for change in waiting) else "medium"
            names = ", ".join(f"{change['what']} ({change['risk']})" for change in waiting)
            together = " They are judged together, and the others alone are not better." if not planned.changes else ""
            if any(change["risk"] != "LOW" for change in waiting):
                result["summary"] += f" Not applied, since it needs approve: {high}: {names}.{together}"

    def _row(self, figures: Figures) -> dict[str, t.Any]:
        cost = self.options.params["cost_per_replica_hour"]
        hours = figures.replica_syncs * self.simulation.sync_s / 3600
        capped = max(0.0, figures.offered - figures.served) * self.simulation.sync_s
        return {
            "slo_share": round(figures.share, 6),
            "violating_syncs": figures.violating,
            "replica_hours": round(hours, 3),
            "cost": None if cost is None else round(hours * cost, 4),
            "scale_ups": figures.ups,
            "scale_downs": figures.downs,
            "syncs_at_max": figures.at_max,
            "load_capped": round(capped, 3),
            "worst_load_ratio": None if math.isinf(figures.worst_ratio) else round(figures.worst_ratio, 4),
        }

    def _summary(self, result: dict[str, t.Any]) -> str:
        before, after = result["before"]["held_out"], result["after"]["held_out"]
        days = result["data"]["held_out_days"]
        if result["verdict"] == "keep":
            text = f"Keep {self.title}: of {result['tried']} specs none was better on {days:g} held-out days"
            if result["rejected"]:
                text += f", and {result['rejected']} that were on training days did not hold there"
            text += f"; the objective holds in {before['slo_share']:.3%} of the time with {before['replica_hours']:.1f} replica-hours."
        else:
            names = ", ".join(change["what"] for change in result["changes"])
            percent = after["replica_hours"] / before["replica_hours"] - 1 if before["replica_hours"] else 0.0
            text = (
                f"Tune {self.title} by {names}: on {days:g} held-out days {after['replica_hours']:.1f} replica-hours in place of "
                f"{before['replica_hours']:.1f} ({percent:+.1%}), and the objective holds in {after['slo_share']:.3%} in place of "
                f"{before['slo_share']:.3%} of the time."
            )
            if percent > 0:
                shares = [result[side]["train"]["slo_share"] for side in ("after", "before")]
                text += f" On training days it holds in {shares[0]:.3%} in place of {shares[1]:.3%}."
        if result["schedule"] is not None:
            planned = result["schedule"]["held_out"]
            text += (
                f" With {len(result['schedule']['floors'])} scheduled floors and the spec that belongs to them it would be "
                f"{planned['replica_hours']:.1f} replica-hours and {planned['slo_share']:.3%}."
            )
        unknown = [
            said
            for name, said in (
                ("at_max_share", "whether its replicas were at maxReplicas"),
                ("throttled_share", "whether its cpu was throttled"),
            )
            if result["data"][name] is None
        ]
        if unknown:
            text += f" It is not known {' and '.join(unknown)}, for want of data."
        if result["data"]["floor_kept_because"]:
            text += f" The floor is not lowered, since {result['data']['floor_kept_because']}."
        return text


def _reason(without: Figures, figures: Figures, allowed: int) -> str:
    """Return what a change is worth, by the figures without it."""
    hours = without.replica_syncs / figures.replica_syncs - 1 if figures.replica_syncs else 0.0
    parts = []
    if without.violating != figures.violating:
        more = "over" if without.violating > allowed else "within"
        parts.append(
            f"{without.violating} violating syncs in place of {figures.violating} ({more} the {allowed} that are allowed)"
        )
    parts.append(f"{hours:+.2%} replica-hours")
    if without.worst_ratio != figures.worst_ratio and not math.isinf(without.worst_ratio):
        parts.append(f"a worst load of {without.worst_ratio:.0%} of the capacity in place of {figures.worst_ratio:.0%}")
    return "Without it training days had " + ", ".join(parts) + "."


def _text(spec: t.Mapping[str, t.Any]) -> str:
    """Return a spec as lines, with or without a target."""
    lines = describe({"scaleTargetRef": _TARGET, **spec})
    return "".join(
        f"{name}: {said}\n" for name, said in lines.items() if name != "target" or spec.get("scaleTargetRef")
    )


def _diff(title: str, before: str, after: str) -> dict[str, str]:
    return {"before": before, "after": after, "before_header": title, "after_header": title}


def _drawn(verdict: Verdict, held: Days) -> dict[str, t.Any]:
    """Return the held-out days as they are drawn: load, and replicas and violations of both specs."""
    rows: dict[str, t.Any] = {"first_s": held.first_s, "load": held.load}
    for name, one in (("before", verdict.present), ("after", verdict.chosen)):
        run, simulation = held.run(one), held.simulation(one)
        room = simulation.pods.capacity * simulation.max_ratio
        rows[name] = {
            "replicas": [int(count) for count in run.replicas],
            "late": [load > ready * room for load, ready in zip(held.load, run.ready, strict=True)],
        }
    return rows
