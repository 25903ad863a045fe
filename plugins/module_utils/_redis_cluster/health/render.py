# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One judgement in four shapes: the task's result, a table, Prometheus text and an HTML page. Pure."""

from __future__ import annotations

import dataclasses
import html as html_module
import typing as t

from ..._common.redis.model import SLOTS, format_slots
from ..._common.units import format_bytes, format_s
from ..._common.verdict import DEGRADED, HEALTHY, UNHEALTHY, UNREACHABLE, VERDICTS
from .model import PRIMARY, REPLICA, REQUIRED, SETTINGS, TOLD, ClusterVerdict, Limits, NodeVerdict

Result = dict[str, t.Any]

_ICONS = {HEALTHY: "✓", DEGRADED: "!", UNHEALTHY: "✕", UNREACHABLE: "?"}
_HEADLINES = {
    HEALTHY: "The cluster is healthy",
    DEGRADED: "The cluster works and needs a look",
    UNHEALTHY: "The cluster must not be relied on",
}


def to_result(cluster: ClusterVerdict, limits: Limits) -> Result:
    """Return the judgement as the plain data of the task's result, without ``changed`` and ``table``."""
    verdicts = [node.verdict for node in cluster.nodes]
    return {
        "healthy": cluster.healthy,
        "verdict": cluster.verdict,
        "summary": {
            "text": cluster.summary,
            "nodes": len(cluster.nodes),
            **{verdict: verdicts.count(verdict) for verdict in VERDICTS},
            "shards": len(cluster.shards),
            "replicas_usable": sum(len(shard.usable_replicas) for shard in cluster.shards),
            "replicas_required": len(cluster.shards) * limits.min_replicas_per_primary,
        },
        "nodes": [_node(node, cluster) for node in cluster.nodes],
        "shards": [
            {
                "primary": shard.primary,
                "replicas": list(shard.replicas),
                "usable_replicas": list(shard.usable_replicas),
                "slots_count": len(shard.slots),
                "slots": _texts(shard.slots),
                "verdict": shard.verdict,
            }
            for shard in cluster.shards
        ],
        "primaries": sorted(shard.primary for shard in cluster.shards),
        "read_pool": list(cluster.read_pool),
        "failover_candidates": {shard.primary: list(shard.candidates) for shard in cluster.shards},
        "coverage": {
            "covered": SLOTS - len(cluster.uncovered),
            "served": cluster.served,
            "slots": SLOTS,
            "uncovered": _texts(cluster.uncovered),
            "disputed": _texts(cluster.disputed),
            "open": _texts(cluster.open),
        },
        "errors": [error.as_dict() for error in cluster.errors],
        "limits": dataclasses.asdict(limits),
    }


def _texts(slots: t.Iterable[int]) -> list[str]:
    return [text for text in format_slots(slots).split(", ") if text]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _node(node: NodeVerdict, cluster: ClusterVerdict) -> Result:
    facts, number = node.facts, node.facts.number
    replica = node.role == REPLICA
    owned = next((shard.slots for shard in cluster.shards if shard.primary == node.name), ())
    keys = facts.info.get("db0", "").partition("keys=")[2].partition(",")[0]
    return {
        "name": node.name,
        "host": node.node.host,
        "port": node.node.port,
        "id": node.id,
        "role": node.role,
        "primary": node.primary,
        "verdict": node.verdict,
        "seen": node.seen,
        "reasons": [reason.as_dict() for reason in node.reasons],
        "in_read_pool": node.name in cluster.read_pool,
        "slots_count": len(owned),
        "offset": number("slave_repl_offset") if replica else number("master_repl_offset"),
        "lag_bytes": node.lag_bytes,
        "lag_s": _rounded(node.lag_s),
        "link_up": facts.info.get("master_link_status") == "up" if replica and facts.info else None,
        "keys": (int(keys) if keys.isdigit() else 0) if facts.info else None,
        "clients": number("connected_clients"),
        "ops_per_s": number("instantaneous_ops_per_sec"),
        "used_bytes": number("used_memory"),
        "max_bytes": number("maxmemory"),
        "memory_ratio": _rounded(facts.memory_ratio),
        "fragmentation_ratio": facts.fragmentation_ratio,
        "evictions": {"total": number("evicted_keys"), "new": node.growth.evictions},
        "hit_ratio": _rounded(node.growth.hit_ratio),
        "slowlog_new": node.growth.slowlog,
        "latency_ms": None if facts.latency_ms is None else dict(sorted(facts.latency_ms.items())),
        "full_syncs": number("sync_full"),
        "engine": facts.engine,
        "version": facts.version,
        "uptime_s": number("uptime_in_seconds"),
        "not_read": dict(sorted(facts.not_read.items())),
    }


def lag_text(node: Result) -> str:
    """Return the lag of a node for people."""
    if node["lag_bytes"] is None and node["lag_s"] is None:
        return "unknown" if node["role"] == REPLICA else "-"
    return f"{format_bytes(node['lag_bytes'])} / {format_s(node['lag_s'])}"


def _memory_text(node: Result) -> str:
    share = "" if node["memory_ratio"] is None else f" ({node['memory_ratio']:.0%})"
    return format_bytes(node["used_bytes"]) + share


def unread_lines(result: Result) -> list[str]:
    """Return, a line per command, which nodes did not show what it tells, and so were not judged by it."""
    found: dict[str, list[str]] = {}
    for node in result["nodes"]:
        for command in node["not_read"].keys() - set(REQUIRED):
            text = f"{command} ({node['not_read'][command]})"
            if command == "CONFIG GET":
                text += f", so without comparing {', '.join(one for one in SETTINGS if one not in TOLD)}"
            found.setdefault(text, []).append(node["name"])
    return [f"not judged by {command}: {', '.join(names)}" for command, names in sorted(found.items())]


def to_table(result: Result) -> list[str]:
    """Return the judgement as aligned lines, the sentence first."""
    head = ("NODE", "VERDICT", "ROLE", "OF", "SLOTS", "LAG", "MEMORY", "WHY")
    rows: list[tuple[str, ...]] = [head]
    for node in result["nodes"]:
        codes = ", ".join(reason["code"] for reason in node["reasons"])
        if node["seen"] != node["verdict"]:
            codes = f"seen {node['seen']}: {codes}" if codes else f"seen {node['seen']}"
        rows.append(
            (
                node["name"],
                node["verdict"],
                node["role"] or "?",
                node["primary"] or "-",
                str(node["slots_count"]) if node["role"] == PRIMARY else "-",
                lag_text(node),
                _memory_text(node),
                codes or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [result["summary"]["text"], ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]  # noqa: B905
    lines += ["", f"read pool: {', '.join(result['read_pool']) or 'empty'}"]
    for primary, names in result["failover_candidates"].items():
        lines.append(f"failover candidates of {primary}, best first: {', '.join(names) or 'none'}")
    lines += unread_lines(result)
    messages = [error["message"] for error in result["errors"]]
    messages += [reason["message"] for node in result["nodes"] for reason in node["reasons"]]
    return lines + [f"- {message}" for message in dict.fromkeys(messages)]


def to_prometheus(result: Result) -> str:
    """Return the judgement in the Prometheus text format."""
    lines: list[str] = []

    def family(name: str, text: str, samples: t.Iterable[tuple[dict[str, t.Any], t.Any]]) -> None:
        full = f"headroom_redis_{name}"
        values = [(labels, value) for labels, value in samples if value is not None]
        if not values:
            return
        lines.extend([f"# HELP {full} {text}", f"# TYPE {full} gauge"])
        for labels, value in values:
            inner = ",".join(f'{key}="{_label(str(content))}"' for key, content in labels.items())
            shown = str(int(value)) if isinstance(value, bool) else repr(value)
            lines.append(f"{full}{{{inner}}} {shown}" if inner else f"{full} {shown}")

    nodes, coverage, verdict = result["nodes"], result["coverage"], result["verdict"]
    family("cluster_healthy", "Whether the requirement on the cluster holds.", [({}, result["healthy"])])
    family(
        "cluster_verdict", "1 for the verdict on the cluster.", [({"verdict": v}, v == verdict) for v in VERDICTS[:3]]
    )
    family("cluster_slots_covered", "Slots that have an owner.", [({}, coverage["covered"])])
    family("cluster_slots_served", "Slots whose owner can be used.", [({}, coverage["served"])])
    errors = sorted({error["code"] for error in result["errors"]})
    family("cluster_error", "1 for each thing wrong with the cluster.", [({"code": code}, 1) for code in errors])
    shards = result["shards"]
    family("shard_slots", "Slots of a primary.", [({"primary": s["primary"]}, s["slots_count"]) for s in shards])
    usable = [({"primary": s["primary"]}, len(s["usable_replicas"])) for s in shards]
    family("shard_replicas_usable", "Replicas of a primary that can be used.", usable)
    family(
        "node_verdict",
        "1 for the verdict on the node.",
        [({"node": n["name"], "verdict": v}, v == n["verdict"]) for n in nodes for v in VERDICTS],
    )
    family(
        "node_reason",
        "1 for each reason why a node is not healthy.",
        [
            ({"node": node["name"], "code": code, "severity": severity}, 1)
            for node in nodes
            for code, severity in sorted({(reason["code"], reason["severity"]) for reason in node["reasons"]})
        ],
    )
    roles = [({"node": node["name"]}, node["role"] == PRIMARY) for node in nodes if node["role"]]
    family("node_primary", "Whether the node is a primary.", roles)
    for name, key, text in (
        ("node_in_read_pool", "in_read_pool", "Whether reads may go to the node."),
        ("node_lag_bytes", "lag_bytes", "What the primary had written and the replica had not processed."),
        ("node_lag_seconds", "lag_s", "Time that the replica is behind its primary."),
        ("node_memory_used_bytes", "used_bytes", "Memory that is used."),
        ("node_memory_ratio", "memory_ratio", "Share of maxmemory that is used."),
        ("node_fragmentation_ratio", "fragmentation_ratio", "Resident memory divided by used memory."),
        ("node_hit_ratio", "hit_ratio", "Share of lookups that found their key."),
        ("node_keys", "keys", "Number of keys."),
        ("node_ops_per_second", "ops_per_s", "Commands per second."),
    ):
        family(name, text, [({"node": node["name"]}, node[key]) for node in nodes])
    family("node_evictions", "Keys evicted.", [({"node": node["name"]}, node["evictions"]["total"]) for node in nodes])
    unread = [({"node": node["name"], "command": command}, 1) for node in nodes for command in node["not_read"]]
    family("node_not_read", "1 for each command whose answer is not known.", unread)
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# ---- the page

_STYLE = """
:root { color-scheme:light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c2024; --soft:#60646c; --line:#d9d9e0;
 --healthy:#1a7f4b; --degraded:#9a6700; --unhealthy:#c62a2f; --unreachable:#6f42a8 }
@media (prefers-color-scheme:dark) { :root { --bg:#111214; --card:#1a1c1f; --ink:#edeef0; --soft:#a8adb5; --line:#363a3f;
 --healthy:#5bd197; --degraded:#f0c24b; --unhealthy:#ff8a84; --unreachable:#c4a5f5 } }
* { box-sizing:border-box } p { margin:0 }
body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,sans-serif }
main { max-width:1180px; margin:0 auto; padding:24px 20px 48px }
header { border-left:6px solid var(--v); background:var(--card); padding:16px 20px; border-radius:6px }
h1 { margin:0 0 4px; font-size:24px } h2 { font-size:17px; margin:28px 0 10px } .soft { color:var(--soft) }
.healthy { --v:var(--healthy) } .degraded { --v:var(--degraded) }
.unhealthy { --v:var(--unhealthy) } .unreachable { --v:var(--unreachable) }
.card { background:var(--card); border:1px solid var(--line); border-radius:6px; padding:14px; overflow-x:auto }
.note { font-size:12px; color:var(--soft); margin-top:10px }
svg { display:block; max-width:100%; height:auto } svg text { font:12px ui-monospace,monospace; fill:var(--ink) }
svg .sub { font-size:11px; fill:var(--soft) } svg .icon { fill:var(--v); font-weight:700 }
svg .box { fill:var(--card); stroke:var(--v); stroke-width:1.5 } svg .rail { fill:var(--line) }
svg .edge { fill:none; stroke:var(--line); stroke-width:1.5 } svg .cut { stroke:var(--unhealthy); stroke-dasharray:5 4 }
svg .none { fill:var(--unhealthy) } svg .open { fill:var(--ink) }
table { border-collapse:collapse; width:100%; font-size:14px } td ul { margin:0; padding-left:16px }
th,td { text-align:left; vertical-align:top; padding:7px 10px; border-bottom:1px solid var(--line) }
th { font-size:12px; color:var(--soft) } td.name { overflow-wrap:anywhere; font-weight:600 }
.tag { white-space:nowrap; color:var(--v); border:1px solid var(--v); border-radius:4px; padding:0 7px; font-size:13px }
code { font:12px ui-monospace,monospace; white-space:nowrap } td.figure { white-space:nowrap }
"""

_WIDTH = 1120  # px of a drawing
_LABEL = 190  # px for the name before a bar
_BOX_W, _BOX_H, _STEP = 210, 42, 240  # px of a box, and from one box to the next
_NAME = 24  # characters of a name that are drawn; the whole name is in the tooltip and in the table


def _e(value: t.Any) -> str:
    return html_module.escape(str(value), quote=True)


def shorten(text: str, length: int = _NAME) -> str:
    """Return ``text`` with its middle left out when it is longer than ``length``: both ends tell names apart."""
    tail = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _rects(texts: t.Iterable[str], y: int, height: int, style: str) -> str:
    """Return slots, as ranges, as coloured parts of a bar."""
    scale = (_WIDTH - _LABEL) / SLOTS
    parts = []
    for text in texts:
        first, _dash, last = text.partition("-")
        width = max(1.0, (int(last or first) + 1 - int(first)) * scale)
        x = _LABEL + int(first) * scale
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" {style}><title>{text}</title></rect>'
        )
    return "".join(parts)


def _slot_map(result: Result) -> str:
    """Return a bar of all slots, and one for each primary, in its colour."""
    coverage = result["coverage"]
    shared, rows = [], []
    for number, shard in enumerate(result["shards"]):
        # the golden section keeps neighbours apart, however many there are; red is for slots without an owner
        style = f'fill="hsl({50 + number * 0.618 % 1 * 270:.0f} 55% 52%)"'
        y = 34 + number * 24
        rows.append(
            f'<text x="0" y="{y + 12}">{_e(shorten(shard["primary"], 18))}<title>{_e(shard["primary"])}</title></text>'
            f'<text class="sub" x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{shard["slots_count"]}</text>'
            f'<rect class="rail" x="{_LABEL}" y="{y}" width="{_WIDTH - _LABEL}" height="16"/>'
            + _rects(shard["slots"], y, 16, style)
        )
        shared.append(_rects(shard["slots"], 0, 22, style))
    height = 34 + len(result["shards"]) * 24
    whole = f'<rect class="rail" x="{_LABEL}" y="0" width="{_WIDTH - _LABEL}" height="22"/>' + "".join(shared)
    whole += _rects(coverage["uncovered"], 0, 22, 'class="none"') + _rects(coverage["open"], 22, 5, 'class="open"')
    return (
        f'<svg role="img" aria-label="Slots by primary" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}"><text x="0" y="15">all slots</text>{whole}{"".join(rows)}</svg>'
    )


def _tree(result: Result) -> str:
    """Return the shards as trees: the primary on the left, its replicas beside it."""
    nodes = {node["name"]: node for node in result["nodes"]}
    parts: list[str] = []
    y, per_row = 2, (_WIDTH - _STEP) // _STEP

    def box(name: str, x: int, top: int) -> None:
        node = nodes.get(name)
        verdict = node["verdict"] if node else UNREACHABLE
        words = [verdict if node else "not declared"]
        if node and node["role"] == REPLICA:
            words.append(lag_text(node))
        elif node:
            words.append(f"{node['slots_count']} slots")
        parts.append(
            f'<g class="{verdict}"><title>{_e(name)}: {_e(words[0])}</title>'
            f'<rect class="box" x="{x}" y="{top}" width="{_BOX_W}" height="{_BOX_H}" rx="6"/>'
            f'<text class="icon" x="{x + 10}" y="{top + 18}">{_ICONS[verdict]}</text>'
            f'<text x="{x + 26}" y="{top + 18}">{_e(shorten(name))}</text>'
            f'<text class="sub" x="{x + 26}" y="{top + 34}">{_e(shorten(", ".join(words), 28))}</text></g>'
        )

    lone = [node["name"] for node in result["nodes"]]
    for shard in result["shards"]:
        box(shard["primary"], 2, y)
        for number, name in enumerate(shard["replicas"]):
            row, column = divmod(number, per_row)
            x, top = 2 + (column + 1) * _STEP, y + row * (_BOX_H + 10)
            up = nodes.get(name, {}).get("link_up")
            middle, start = top + _BOX_H // 2, 2 + _BOX_W
            # the first of a row hangs on its primary, the others on the box before them
            line = (
                f"M{start} {y + _BOX_H // 2} h15 V{middle} H{x}"
                if not column
                else f"M{x - _STEP + _BOX_W} {middle} H{x}"
            )
            parts.append(f'<path class="edge{"" if up else " cut"}" d="{line}"/>')
            box(name, x, top)
        rows = max(1, -(-len(shard["replicas"]) // per_row))
        y += rows * (_BOX_H + 10) + 8
        lone = [name for name in lone if name not in (shard["primary"], *shard["replicas"])]
    for number, name in enumerate(lone):
        row, column = divmod(number, per_row + 1)
        box(name, 2 + column * _STEP, y + row * (_BOX_H + 10))
    y += -(-len(lone) // (per_row + 1)) * (_BOX_H + 10)
    return (
        f'<svg role="img" aria-label="Primaries and their replicas" width="{_WIDTH}" height="{y}" '
        f'viewBox="0 0 {_WIDTH} {y}">{"".join(parts)}</svg>'
    )


def to_html(result: Result) -> str:
    """Return the judgement as one HTML page that needs nothing from elsewhere."""
    rows = []
    for node in result["nodes"]:
        reasons = "".join(f"<li><code>{_e(r['code'])}</code> {_e(r['message'])}</li>" for r in node["reasons"])
        seen = "" if node["seen"] == node["verdict"] else f'<div class="soft">seen: {_e(node["seen"])}</div>'
        hits = "-" if node["hit_ratio"] is None else f"{node['hit_ratio']:.0%}"
        cells = (node["role"] or "unknown", node["primary"] or "-", lag_text(node), _memory_text(node), hits)
        rows.append(
            f'<tr class="{node["verdict"]}"><td class="name">{_e(node["name"])}'
            f'<div class="soft"><code>{_e(node["host"])}:{node["port"]}</code></div></td>'
            f'<td><span class="tag">{_ICONS[node["verdict"]]} {node["verdict"]}</span>{seen}</td>'
            + "".join(f'<td class="figure">{_e(cell)}</td>' for cell in cells)
            + f"<td>{f'<ul>{reasons}</ul>' if reasons else '<span class=soft>nothing to report</span>'}</td></tr>"
        )
    errors = "".join(
        f'<p class="{error["severity"]}"><span class="tag">{_e(error["code"])}</span> {_e(error["message"])}</p>'
        for error in result["errors"]
    )
    unread = "".join(f'<p class="note">{_e(line)}</p>' for line in unread_lines(result))
    verdict, title = result["verdict"], _HEADLINES[result["verdict"]]
    heads = ("Node", "Verdict", "Role", "Replica of", "Lag", "Memory", "Hits", "Why")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>"
        f'<header class="{verdict}"><h1>{title}</h1><p>{_e(result["summary"]["text"])}</p>{errors}</header>'
        f'<h2>Who owns which slots</h2><div class="card">{_slot_map(result)}'
        '<p class="note">In the first bar red slots have no owner; a mark below it shows slots on the move.</p></div>'
        f'<h2>Shards</h2><div class="card">{_tree(result)}'
        '<p class="note">Dashed: no replication link.</p></div>'
        '<h2>Nodes</h2><div class="card"><table><tr>'
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr>{''.join(rows)}</table>{unread}</div></main></body></html>\n"
    )
