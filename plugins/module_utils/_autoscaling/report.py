# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""A simulation, or what was tuned, as one HTML page: load, replicas, when the objective did not hold, and what it costs. Pure."""

from __future__ import annotations

import datetime
import html
import itertools
import json
import math
import typing as t

from .model import HpaSpec
from .trace import LATEST_S

COLUMNS = 1000
"""Stretches of time that are drawn at most."""

_WIDTH, _LEFT, _HEIGHT, _GAP = 1100, 60, 170, 46  # px of the drawing, of the scale, and of each of the two charts
_ROWS = 50  # violations in the table
DAY_S = 86_400
EARLIEST_S = 365 * DAY_S  # what is earlier is no date
_STYLE = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c2024; --soft:#60646c; --line:#d9d9e0;
 --good:#1a7f4b; --bad:#c62a2f; --load:#4c7fd0; --pods:#b6782b }
@media (prefers-color-scheme: dark) { :root { --bg:#111214; --card:#1a1c1f; --ink:#edeef0; --soft:#a8adb5; --line:#363a3f;
 --good:#5bd197; --bad:#ff8a84; --load:#7ba6ea; --pods:#e0a95f } }
* { box-sizing:border-box } body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,sans-serif }
main { max-width:1180px; margin:0 auto; padding:24px 20px 48px } h1 { margin:0 0 4px; font-size:24px } h2 { font-size:17px }
header { border-left:6px solid var(--good); padding:10px 20px } header.bad { border-color:var(--bad) }
.card { background:var(--card); border:1px solid var(--line); border-radius:6px; padding:14px; overflow-x:auto }
svg { display:block; max-width:100%; height:auto } svg text { font:12px system-ui,sans-serif; fill:var(--soft) }
.load { fill:none; stroke:var(--load); stroke-width:1.5 } .pods { fill:none; stroke:var(--pods); stroke-width:1.5 }
.ready { fill:none; stroke:var(--soft); stroke-dasharray:3 3 } .axis { stroke:var(--line) }
.old { fill:none; stroke:var(--soft); stroke-width:1.5 } .dot { fill:var(--load) } .was { fill:var(--soft) } .is { fill:var(--good) }
.late { fill:var(--bad); opacity:.35 } .goal { stroke:var(--bad); stroke-dasharray:6 4 } .day { stroke:var(--line); stroke-dasharray:2 4 }
table { border-collapse:collapse; width:100% } th,td { text-align:left; padding:6px 10px; border-bottom:1px solid var(--line) }
pre { margin:0; font:13px/1.45 ui-monospace,monospace } th { font-size:12px; color:var(--soft) }
"""


def to_html(result: t.Mapping[str, t.Any], spec: HpaSpec) -> str:
    """Return the result of a simulation as one page that needs nothing from elsewhere."""
    names = ", ".join(metric.text for metric in spec.metrics)
    title = f"{spec.min_replicas} to {spec.max_replicas} replicas by {names}"
    figures = result["figures"]
    rows = [(_words(name), _figure(name, value)) for name, value in figures.items() if (name, value) != ("cost", None)]
    parts = [
        f'<header class="{"good" if result["slo_met"] else "bad"}"><h1>{_e(title)}</h1><p>{_e(result["summary"])}</p></header>',
        f'<h2>Load, and replicas (dashed: ready; red: the objective did not hold)</h2><div class="card">{_drawing(result)}</div>',
        _table("Figures", ("Figure", "Value"), rows),
    ]
    late = result["violations"]
    if late:
        parts.append(
            _table(
                f"When the objective did not hold (the first {min(_ROWS, len(late))} of {len(late)})",
                ("From", "For", "Load to capacity", "Latency", "Load not served"),
                [
                    (
                        _moment(one["start_s"]),
                        f"{one['duration_s']} s",
                        "no ready pods" if one["worst_load_ratio"] is None else f"{one['worst_load_ratio']:.0%}",
                        "not known" if one["latency_ms"] is None else f"{one['latency_ms']:g} ms",
                        f"{one['load_capped']:,.0f}",
                    )
                    for one in late[:_ROWS]
                ],
            )
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_e(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _drawing(result: t.Mapping[str, t.Any]) -> str:
    series = result["replicas"]
    first_s = series[0]["at_s"]
    length_s = result["figures"]["duration_s"]
    room = _WIDTH - _LEFT

    def x(at_s: float) -> float:
        return _LEFT + room * (at_s - first_s) / length_s

    parts, drawn = [], 0.0
    for one in result["violations"]:
        width = max(1.0, room * one["duration_s"] / length_s)
        start = x(one["start_s"])
        # what begins where another one was drawn cannot be told from it
        if start + width < drawn + 0.5:
            continue
        drawn = start + width
        parts.append(
            f'<rect class="late" x="{start:.1f}" y="0" width="{width:.1f}" height="{2 * _HEIGHT + _GAP}">'
            f"<title>did not hold from {_e(_moment(one['start_s']))} for {one['duration_s']} s</title></rect>"
        )
    most_load = max(one["load"] for one in series) or 1.0
    most_pods = max(one["replicas"] for one in series) or 1
    for name, key, most, top in (
        ("load", "load", most_load, 0),
        ("pods", "replicas", most_pods, _HEIGHT + _GAP),
        ("ready", "ready", most_pods, _HEIGHT + _GAP),
    ):
        # a value holds until the next one
        points, before = [], None
        for one in series:
            y = top + _HEIGHT - (_HEIGHT - 12) * one[key] / most
            points += [] if before is None else [f"{x(one['at_s']):.1f},{before:.1f}"]
            points.append(f"{x(one['at_s']):.1f},{y:.1f}")
            before = y
        points.append(f"{_WIDTH},{before:.1f}")
        parts.append(f'<polyline class="{name}" points="{" ".join(points)}"/>')
        base = top + _HEIGHT
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{base}" y2="{base}"/>')
        if name != "ready":
            words = "load" if name == "load" else "replicas"
            parts.append(f'<text x="0" y="{top + 16}">{_short(most)}</text><text x="0" y="{top + 32}">{words}</text>')
            parts.append(f'<text x="0" y="{base}">0</text>')
            parts.append(_days(first_s, length_s, top, base, base + 16 if name == "load" else None))
    below = 2 * _HEIGHT + _GAP + 16
    parts.append(f'<text x="{_LEFT}" y="{below}">{_e(_moment(first_s))}</text>')
    parts.append(f'<text x="{_WIDTH}" y="{below}" text-anchor="end">{_e(_moment(first_s + length_s))}</text>')
    return (
        f'<svg role="img" aria-label="Load and replicas over time" viewBox="0 0 {_WIDTH} {2 * (_HEIGHT + _GAP)}">'
        f"{''.join(parts)}</svg>"
    )


def to_tuned_html(
    result: t.Mapping[str, t.Any], drawn: t.Mapping[str, t.Any], title: str, sync_s: int, min_share: float
) -> str:
    """Return what was tuned as one page that needs nothing from elsewhere.

    :param drawn: the held-out days: ``first_s``, ``load``, and ``replicas`` and ``late`` for each sync ``before`` and ``after``.
    :param min_share: the share of the syncs in which the objective must hold.
    """
    before, after = result["before"], result["after"]
    head = f"{title[:1].upper()}{title[1:]}: {result['verdict']}"
    parts = [
        f'<header class="good"><h1>{_e(head)}</h1><p>{_e(result["summary"])}</p></header>',
        "<h2>Held-out days: load, and replicas before (grey) and after (brown); red: the objective did not hold</h2>"
        f'<div class="card">{_both(drawn, sync_s)}</div>',
    ]
    if result["changes"]:
        columns = ("Change", "Before", "After", "Risk", "Why that risk", "What it is worth", "Applied")
        rows = [
            (
                one["what"],
                one["before"],
                one["after"],
                one["risk"],
                one["risk_reason"],
                one["reason"],
                "yes" if one["applied"] else "no",
            )
            for one in result["changes"]
        ]
        parts.append(_table("Changes", columns, rows))
    names = list(before["train"])
    rows = [
        (
            _words(name),
            *(_figure(name, side[days][name]) for days in ("train", "held_out") for side in (before, after)),
        )
        for name in names
        if (name, before["train"][name]) != ("cost", None)
    ]
    columns = (
        "Figure",
        "Training days, before",
        "Training days, after",
        "Held-out days, before",
        "Held-out days, after",
    )
    parts.append(_table("Figures", columns, rows))
    parts.append(
        "<h2>Trade-off: replica-hours and the share of the time without the objective, of the specs that no other one beats</h2>"
        f'<div class="card">{_curve(result, min_share)}</div>'
    )
    parts.append(
        _spec("Recommended spec" if result["verdict"] == "tune" else "Present spec, which stays", result["spec"])
    )
    if result["schedule"] is not None:
        columns = ("Days", "From (UTC)", "To", "Fewest replicas")
        rows = [
            (", ".join(one["days"]), one["start"], one["end"], str(one["min_replicas"]))
            for one in result["schedule"]["floors"]
        ]
        parts.append(_table("Scheduled floors, together with the spec that belongs to them", columns, rows))
        parts.append(_spec("The spec that belongs to scheduled floors", result["schedule"]["spec"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_e(head)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _both(drawn: t.Mapping[str, t.Any], sync_s: int) -> str:
    """Return the drawing of the held-out days: the load, the replicas of both specs, and a strip of violations for each."""
    count = len(drawn["load"])
    stretches = min(count, COLUMNS)
    bounds = [count * index // stretches for index in range(stretches + 1)]
    pairs = list(itertools.pairwise(bounds))
    room, second = _WIDTH - _LEFT, _HEIGHT + _GAP
    most_load = max(drawn["load"]) or 1.0
    most_pods = max(*drawn["before"]["replicas"], *drawn["after"]["replicas"], 1)
    parts = []
    for name, values, most, top in (
        ("load", drawn["load"], most_load, 0),
        ("old", drawn["before"]["replicas"], most_pods, second),
        ("pods", drawn["after"]["replicas"], most_pods, second),
    ):
        points = []
        for low, high in pairs:
            y = top + _HEIGHT - (_HEIGHT - 12) * max(values[low:high]) / most
            points += [f"{_LEFT + room * edge / count:.1f},{y:.1f}" for edge in (low, high)]
        parts.append(f'<polyline class="{name}" points="{" ".join(points)}"/>')
    for top, most, words in ((0, most_load, "load"), (second, most_pods, "replicas")):
        base = top + _HEIGHT
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text x="0" y="{top + 16}">{_short(most)}</text><text x="0" y="{top + 32}">{words}</text>')
        parts.append(f'<text x="0" y="{base}">0</text>')
        parts.append(_days(drawn["first_s"], count * sync_s, top, base, base + 16 if words == "load" else None))
    strip = second + _HEIGHT + 12
    for name in ("before", "after"):
        parts.append(f'<text x="0" y="{strip + 10}">{name}</text>')
        for low, high in pairs:
            if any(drawn[name]["late"][low:high]):
                x, width = _LEFT + room * low / count, max(1.0, room * (high - low) / count)
                parts.append(f'<rect class="late" x="{x:.1f}" y="{strip}" width="{width:.1f}" height="12"/>')
        strip += 18
    first_s, end_s = drawn["first_s"], drawn["first_s"] + count * sync_s
    parts.append(f'<text x="{_LEFT}" y="{strip + 12}">{_e(_moment(first_s))}</text>')
    parts.append(f'<text x="{_WIDTH}" y="{strip + 12}" text-anchor="end">{_e(_moment(end_s))}</text>')
    return (
        '<svg role="img" aria-label="Load, and replicas before and after, over held-out days" '
        f'viewBox="0 0 {_WIDTH} {strip + 20}">{"".join(parts)}</svg>'
    )


def _curve(result: t.Mapping[str, t.Any], min_share: float) -> str:
    """Return the drawing of cost and violations on held-out days: each spec of the curve, the present one and the chosen one."""
    kept = [("was", result["before"]["held_out"]), ("is", result["after"]["held_out"])]
    # cheap specs that hardly ever keep it would press what one chooses from into a line
    worst = 1.2 * max(*(1 - one["slo_share"] for _kind, one in kept), 2 * (1 - min_share)) or 1.0
    dots = [("dot", one["held_out"]) for one in result["curve"] if 1 - one["held_out"]["slo_share"] <= worst]
    left_out = len(result["curve"]) - len(dots)
    dots += kept
    hours = [one["replica_hours"] for _kind, one in dots]
    lates = [1 - one["slo_share"] for _kind, one in dots]
    low, high = min(hours), max(hours)
    spread = (high - low) or 1.0
    goal = 12 + (_HEIGHT - 24) * (1 - (1 - min_share) / worst)
    parts = [
        f'<line class="goal" x1="{_LEFT}" x2="{_WIDTH}" y1="{goal:.1f}" y2="{goal:.1f}">'
        f"<title>the objective: at most {1 - min_share:.3%}</title></line>"
    ]
    for (kind, one), late in zip(dots, lates, strict=True):
        x = _LEFT + 10 + (_WIDTH - _LEFT - 20) * (one["replica_hours"] - low) / spread
        y = 12 + (_HEIGHT - 24) * (1 - late / worst)
        words = {"was": "present spec", "is": "recommended spec"}.get(kind, "spec of the curve")
        said = f"{words}: {one['replica_hours']:,.1f} replica-hours, {late:.3%} without the objective"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{4 if kind == "dot" else 7}"><title>{_e(said)}</title></circle>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    parts.append(f'<text x="0" y="18">{worst:.3%}</text><text x="0" y="{_HEIGHT - 6}">0 %</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT + 16}">{low:,.1f} replica-hours</text>')
    parts.append(f'<text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">{high:,.1f} replica-hours</text>')
    said = "grey: present, green: recommended, red line: the objective; on held-out days"
    said += f"; {left_out} that break it more often are not drawn" if left_out else ""
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT + 36}">{said}</text>')
    return f'<svg role="img" aria-label="Trade-off of cost and objective" viewBox="0 0 {_WIDTH} {_HEIGHT + _GAP}">{"".join(parts)}</svg>'


def _days(first_s: float, length_s: float, top: int, base: int, names_at: int | None = None) -> str:
    """Return a line for each midnight (UTC) of some days, with the names of the days at a height."""
    if not EARLIEST_S <= first_s <= LATEST_S - length_s or not DAY_S < length_s <= 62 * DAY_S:
        return ""
    parts = []
    midnight = math.ceil(first_s / DAY_S) * DAY_S
    while midnight < first_s + length_s:
        x = _LEFT + (_WIDTH - _LEFT) * (midnight - first_s) / length_s
        day = datetime.datetime.fromtimestamp(midnight, datetime.UTC)
        parts.append(
            f'<line class="day" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}"><title>{day:%A %Y-%m-%d}</title></line>'
        )
        # a name needs room: of many days the Mondays alone have theirs
        if names_at is not None and (length_s <= 14 * DAY_S or day.weekday() == 0) and x < _WIDTH - 40:
            parts.append(f'<text x="{x:.1f}" y="{names_at}">{day:%a %d}</text>')
        midnight += DAY_S
    return "".join(parts)


def _short(value: float) -> str:
    """Return a number of a scale, whole where that is as good."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.4g}"


def _words(name: str) -> str:
    return _FIGURES[name][0]


def _figure(name: str, value: t.Any) -> str:
    """Return a figure with its unit."""
    if value is None:
        return "no ready pod" if name == "worst_load_ratio" else "none"
    return _FIGURES[name][1](value)


def _length(seconds: float) -> str:
    """Return a length of time for people."""
    if seconds < 2 * 60:
        return f"{seconds:g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 2 * DAY_S else f"{seconds / DAY_S:,.1f} days"


_COUNT, _SHARE = "{:,}".format, "{:.3%}".format
_LOAD = "{:,.0f}".format
_FIGURES: dict[str, tuple[str, t.Callable[[t.Any], str]]] = {
    "syncs": ("Syncs", _COUNT),
    "duration_s": ("Time", _length),
    "load_offered": ("Load offered, times seconds", _LOAD),
    "load_served": ("Load served, times seconds", _LOAD),
    "load_capped": ("Load not served, times seconds", _LOAD),
    "violating_syncs": ("Syncs without the objective", _COUNT),
    "slo_share": ("Share of the time with the objective", _SHARE),
    "worst_load_ratio": ("Largest load, of the capacity of ready pods", "{:.0%}".format),
    "replica_hours": ("Replica-hours", "{:,.1f}".format),
    "cost": ("Cost", "{:,.2f}".format),
    "replicas_least": ("Fewest replicas", _COUNT),
    "replicas_most": ("Most replicas", _COUNT),
    "replicas_initial": ("Replicas at the beginning", _COUNT),
    "scale_ups": ("Times scaled up", _COUNT),
    "scale_downs": ("Times scaled down", _COUNT),
    "syncs_at_max": ("Syncs at the largest number of replicas allowed", _COUNT),
    "gap_s": ("Gaps in the trace", _length),
    "series": ("Series", _COUNT),
    "dropped_values": ("Values left out", _COUNT),
}


def _moment(at_s: float) -> str:
    """Return a time for people: of the day for one since 1970, else in seconds."""
    if not EARLIEST_S <= at_s <= LATEST_S:
        return f"{at_s:,.0f} s"
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _spec(title: str, spec: t.Mapping[str, t.Any]) -> str:
    """Return a spec as YAML, to be copied."""
    # plain copies, since what is in two places would be written as a reference
    text = json.dumps(spec, indent=2)
    try:
        import yaml
    except ImportError:
        # which is YAML too
        pass
    else:
        text = yaml.safe_dump(json.loads(text), default_flow_style=False, sort_keys=False)
    return f'<h2>{_e(title)}</h2><div class="card"><pre>{_e(text)}</pre></div>'


def _table(title: str, head: t.Sequence[str], rows: t.Iterable[t.Sequence[str]]) -> str:
    cells = "".join(f"<th>{_e(one)}</th>" for one in head)
    lines = "".join("<tr>" + "".join(f"<td>{_e(one)}</td>" for one in row) + "</tr>" for row in rows)
    return f'<h2>{_e(title)}</h2><div class="card"><table><tr>{cells}</tr>{lines}</table></div>'


def _e(value: t.Any) -> str:
    return html.escape(str(value), quote=True)
