# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One judgement in four shapes: the task's result, a table, Prometheus text and an HTML page. Pure."""

from __future__ import annotations

import html as html_module
import typing as t

from ..._common.units import format_bytes, format_s
from ..._common.verdict import DEGRADED, HEALTHY, UNHEALTHY, UNREACHABLE, VERDICTS
from .model import PRIMARY, ClusterVerdict, Limits, NodeVerdict, Slot, format_lsn

if t.TYPE_CHECKING:
    Result = dict[str, t.Any]

_ICONS = {HEALTHY: "✓", DEGRADED: "!", UNHEALTHY: "✕", UNREACHABLE: "?"}
_HEADLINES = {
    HEALTHY: "The cluster is healthy",
    DEGRADED: "The cluster works and needs a look",
    UNHEALTHY: "The cluster must not be relied on",
}


def to_result(cluster: ClusterVerdict, limits: Limits) -> Result:
    """Return the judgement as the plain data of the task's result, without ``changed`` and ``table``."""
    return {
        "healthy": cluster.healthy,
        "verdict": cluster.verdict,
        "summary": {
            "text": cluster.summary,
            "nodes": len(cluster.nodes),
            **{verdict: cluster.counts.get(verdict, 0) for verdict in VERDICTS},
            "replicas_usable": cluster.replicas_ok,
            "replicas_required": cluster.replicas_required,
        },
        "primary": cluster.primary,
        "nodes": [_node(node, cluster) for node in cluster.nodes],
        "read_pool": list(cluster.read_pool),
        "failover_candidates": list(cluster.failover_candidates),
        "topology": list(cluster.topology),
        "errors": list(cluster.errors),
        "limits": {
            "max_lag_bytes": limits.max_lag_bytes,
            "max_lag_s": limits.max_lag_s,
            "min_healthy_replicas": cluster.replicas_required,
        },
    }


def _slot(slot: Slot) -> Result:
    return {
        "name": slot.name,
        "type": slot.slot_type,
        "active": slot.active,
        "wal_status": slot.wal_status,
        "retained_bytes": slot.retained_bytes,
        "inactive_s": None if slot.inactive_s is None else round(slot.inactive_s, 1),
    }


def _node(node: NodeVerdict, cluster: ClusterVerdict) -> Result:
    facts, receiver, pooler = node.facts, node.facts.receiver, node.facts.pooler
    return {
        "name": node.name,
        "host": node.spec.host,
        "port": node.spec.port,
        "role": node.role,
        "verdict": node.verdict,
        "seen": node.seen,
        "reasons": [reason.as_dict() for reason in node.reasons],
        "in_read_pool": node.name in cluster.read_pool,
        "lag_bytes": node.lag_bytes,
        "lag_s": node.lag_s,
        "marker_s": facts.marker_s,
        "received_lsn": format_lsn(facts.receive_lsn),
        "replayed_lsn": format_lsn(facts.replay_lsn),
        "written_lsn": format_lsn(facts.flush_lsn),
        "timeline": facts.timeline,
        "timeline_ok": node.timeline_ok if node.role else None,
        "system_identifier": facts.system_identifier,
        "server_version": facts.server_version,
        "replay_paused": facts.replay_paused,
        "receiver": (
            None
            if receiver is None
            else {
                "status": receiver.status,
                "message_age_s": None if receiver.message_age_s is None else round(receiver.message_age_s, 3),
                "sender_host": receiver.sender_host,
                "sender_port": receiver.sender_port,
            }
        ),
        "upstream": node.upstream,
        "sync_state": node.sync_state,
        "slot": None if node.slot is None else _slot(node.slot),
        "slots": None if facts.slots is None else [_slot(slot) for slot in facts.slots],
        "standbys": (
            None
            if facts.senders is None
            else [
                {"application_name": sender.application_name, "state": sender.state, "sync_state": sender.sync_state}
                for sender in facts.senders
            ]
        ),
        "synchronous_standby_names": facts.synchronous_standby_names,
        "read_only": facts.read_only,
        "conflicts": {"total": facts.conflicts, "new": node.conflicts_new},
        "data_bytes": facts.data_bytes,
        "pooler": (
            None if pooler is None else {"where": pooler.where, "fault": pooler.fault.code if pooler.fault else None}
        ),
        "same_server_as": node.same_server_as,
    }


def lag_text(node: Result) -> str:
    """Return the lag of a node for people."""
    if node["lag_bytes"] is None and node["lag_s"] is None:
        return "-" if node["role"] == PRIMARY or node["role"] is None else "unknown"
    return f"{format_bytes(node['lag_bytes'])} / {format_s(node['lag_s'])}"


def to_table(result: Result) -> list[str]:
    """Return the judgement as aligned lines, the sentence first."""
    head = ("NODE", "VERDICT", "ROLE", "LAG", "TL", "RECEIVER", "UPSTREAM", "WHY")
    rows: list[tuple[str, ...]] = [head]
    for node in result["nodes"]:
        receiver = node["receiver"]
        codes = ", ".join(reason["code"] for reason in node["reasons"])
        if node["seen"] != node["verdict"]:
            codes = f"seen {node['seen']}: {codes}" if codes else f"seen {node['seen']}"
        rows.append(
            (
                node["name"],
                node["verdict"],
                (node["role"] or "?")
                + (f" ({node['sync_state']})" if node["sync_state"] in ("sync", "quorum") else ""),
                lag_text(node),
                str(node["timeline"] or "?"),
                (receiver["status"] or "?") if receiver else "-",
                node["upstream"] or "-",
                codes or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [result["summary"]["text"], ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]  # noqa: B905
    lines += [
        "",
        f"read pool: {', '.join(result['read_pool']) or 'empty'}",
        f"failover candidates, best first: {', '.join(result['failover_candidates']) or 'none'}",
    ]
    messages = [reason["message"] for node in result["nodes"] for reason in node["reasons"]]
    messages += [error["message"] for error in result["errors"]]
    lines += [f"- {message}" for message in dict.fromkeys(messages)]
    return lines


def to_prometheus(result: Result) -> str:
    """Return the judgement in the Prometheus text format."""
    lines: list[str] = []

    def family(name: str, text: str, samples: t.Iterable[tuple[dict[str, t.Any], t.Any]]) -> None:
        full = f"headroom_postgresql_{name}"
        values = [(labels, value) for labels, value in samples if value is not None]
        if not values:
            return
        lines.append(f"# HELP {full} {text}")
        lines.append(f"# TYPE {full} gauge")
        for labels, value in values:
            inner = ",".join(f'{key}="{_label(str(content))}"' for key, content in labels.items())
            lines.append(f"{full}{{{inner}}} {_number(value)}" if inner else f"{full} {_number(value)}")

    nodes = result["nodes"]

    def per_node(key: str) -> t.Iterable[tuple[dict[str, t.Any], t.Any]]:
        return [({"node": node["name"]}, node[key]) for node in nodes]

    family("cluster_healthy", "Whether the requirement on the cluster holds.", [({}, result["healthy"])])
    family(
        "cluster_verdict",
        "1 for the verdict on the cluster.",
        [({"verdict": verdict}, verdict == result["verdict"]) for verdict in VERDICTS[:3]],
    )
    family("cluster_errors", "Number of errors of the cluster as a whole.", [({}, len(result["errors"]))])
    family("replicas_usable", "Replicas that are healthy or degraded.", [({}, result["summary"]["replicas_usable"])])
    family("replicas_required", "Replicas that are asked for.", [({}, result["summary"]["replicas_required"])])
    family(
        "node_verdict",
        "1 for the verdict on the node.",
        [
            ({"node": node["name"], "verdict": verdict}, verdict == node["verdict"])
            for node in nodes
            for verdict in VERDICTS
        ],
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
    family(
        "node_primary",
        "Whether the node is a primary.",
        [({"node": n["name"]}, n["role"] == PRIMARY) for n in nodes if n["role"]],
    )
    family("node_in_read_pool", "Whether reads may go to the node.", per_node("in_read_pool"))
    family("node_lag_bytes", "WAL written on the primary and not replayed on the node.", per_node("lag_bytes"))
    family("node_lag_seconds", "Time that the node is behind the primary.", per_node("lag_s"))
    family("node_marker_seconds", "Time until the heartbeat was visible on the node.", per_node("marker_s"))
    family("node_timeline", "Timeline of the node.", per_node("timeline"))
    family("node_replay_paused", "Whether replay is paused.", per_node("replay_paused"))
    family("node_data_bytes", "Size of the databases and the WAL of the node.", per_node("data_bytes"))
    family(
        "node_receiver_message_age_seconds",
        "Age of the last message to the WAL receiver.",
        [({"node": node["name"]}, node["receiver"]["message_age_s"]) for node in nodes if node["receiver"]],
    )
    family(
        "node_conflicts",
        "Queries cancelled by replay.",
        [({"node": node["name"]}, node["conflicts"]["total"]) for node in nodes],
    )
    slots = [(node["name"], slot) for node in nodes for slot in node["slots"] or ()]
    family(
        "slot_retained_bytes",
        "WAL kept for a replication slot.",
        [({"node": name, "slot": slot["name"]}, slot["retained_bytes"]) for name, slot in slots],
    )
    family(
        "slot_active",
        "Whether a replication slot is in use.",
        [({"node": name, "slot": slot["name"]}, slot["active"]) for name, slot in slots],
    )
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: t.Any) -> str:
    return str(int(value)) if isinstance(value, bool) else repr(value)


# ---- the page

STYLE = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c2024; --soft:#60646c; --line:#d9d9e0;
 --healthy:#1a7f4b; --degraded:#9a6700; --unhealthy:#c62a2f; --unreachable:#6f42a8;
 --healthy-bg:#e6f5ec; --degraded-bg:#fff4d5; --unhealthy-bg:#ffe9e8; --unreachable-bg:#f2eafc; }
@media (prefers-color-scheme: dark) { :root { --bg:#111214; --card:#1a1c1f; --ink:#edeef0; --soft:#a8adb5;
 --line:#363a3f;
 --healthy:#5bd197; --degraded:#f0c24b; --unhealthy:#ff8a84; --unreachable:#c4a5f5;
 --healthy-bg:#12291d; --degraded-bg:#2f2508; --unhealthy-bg:#3a1516; --unreachable-bg:#271b3a; } }
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,sans-serif }
main { max-width:1180px; margin:0 auto; padding:24px 20px 48px }
header { border-left:6px solid var(--v); background:var(--vb); padding:16px 20px; border-radius:6px }
h1 { margin:0 0 4px; font-size:24px } h2 { font-size:17px; margin:28px 0 10px } p { margin:0 }
.soft { color:var(--soft) }
.healthy { --v:var(--healthy); --vb:var(--healthy-bg) } .degraded { --v:var(--degraded); --vb:var(--degraded-bg) }
.unhealthy { --v:var(--unhealthy); --vb:var(--unhealthy-bg) }
.unreachable { --v:var(--unreachable); --vb:var(--unreachable-bg) }
.card { background:var(--card); border:1px solid var(--line); border-radius:6px; padding:14px; overflow-x:auto }
.facts { display:flex; flex-wrap:wrap; gap:8px 28px; margin-top:14px }
.facts b { display:block; font-size:12px; font-weight:600; color:var(--soft) }
.facts span { overflow-wrap:anywhere }
.note { font-size:12px; margin-top:10px } svg { display:block }
svg text { font:13px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace; fill:var(--ink) }
svg .box { fill:var(--vb); stroke:var(--v); stroke-width:1.5 } svg .icon { fill:var(--v); font-weight:700 }
svg .sub { font-size:11px; fill:var(--soft) }
svg .edge { fill:none; stroke:var(--line); stroke-width:1.5 } svg .frame { fill:none; stroke:var(--line) }
svg .edge.cut { stroke:var(--v); stroke-dasharray:5 4 }
table { border-collapse:collapse; width:100%; font-size:14px }
th,td { text-align:left; vertical-align:top; padding:7px 10px; border-bottom:1px solid var(--line) }
th { font-size:12px; color:var(--soft) } td.name { overflow-wrap:anywhere; min-width:170px; font-weight:600 }
td ul { margin:0; padding-left:16px }
.tag { display:inline-block; white-space:nowrap; color:var(--v); background:var(--vb); border:1px solid var(--v);
 border-radius:4px; padding:0 7px; font-size:13px }
.lag { display:flex; align-items:center; gap:12px } .lag code { flex:0 0 130px; white-space:nowrap }
.bar { flex:1; position:relative; height:12px; background:var(--line); border-radius:3px; min-width:120px }
.bar i { position:absolute; left:0; top:0; bottom:0; background:var(--v); border-radius:3px; min-width:2px }
.bar u { position:absolute; top:-3px; bottom:-3px; width:2px; background:var(--ink) }
code { font:12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace }
"""

_CHAR = 7.9  # width of one character of the 13 px monospaced face, in px
_ROW, _GAP = 46, 12  # height of a box and the space below it, in px
_SMALL = 6.8  # the same for the 11 px face
_WIDEST = 1700  # px that are still readable when scaled to the page
_MANY = 12  # more leaves of one node than this are drawn as a grid
_COLUMNS = 3  # of that grid
_LABEL = 150  # room for the lag on an edge, in px
_NAME = 26  # characters of a name that are drawn; the whole name is in the tooltip and in the table


def _e(value: t.Any) -> str:
    return html_module.escape(str(value), quote=True)


def shorten(text: str, length: int = _NAME) -> str:
    """Return ``text`` with its middle left out when it is longer than ``length`` characters: both ends tell names
    apart."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def label_of(name: str) -> str:
    """Return the name to draw: without its domain when it is long, as the host part tells nodes apart."""
    return shorten(name if len(name) <= _NAME else name.split(".", 1)[0])


def _walk(trees: t.Iterable[Result]) -> t.Iterator[Result]:
    for tree in trees:
        yield tree
        yield from _walk(tree["children"])


class _Drawing:
    """The streaming tree as an SVG: roots on the left, verdict as colour, sign and word, lag on the edges.

    Many leaves of one node are drawn as a framed grid with the lag in the boxes, so that fifty nodes fit a screen or
    two.
    """

    def __init__(self, result: Result) -> None:
        self.nodes = {node["name"]: node for node in result["nodes"]}
        texts = [len(label_of(name)) * _CHAR for name in self.nodes]
        grid = any(
            sum(not child["children"] for child in tree["children"]) > _MANY for tree in _walk(result["topology"])
        )
        texts += [len(self._sub(node, grid)) * _SMALL for node in self.nodes.values()]
        self.box_w = max(150.0, 46 + max(texts, default=0.0))
        self.step = self.box_w + _LABEL
        self.parts: list[str] = []
        self.bottom = 0.0
        self.right = self.box_w
        for tree in result["topology"]:
            self._place(tree, 0)

    def _sub(self, node: Result, grid: bool = False) -> str:
        words = [node["verdict"]]
        if node["role"]:
            words.append(node["role"])
        if node["sync_state"] in ("sync", "quorum"):
            words.append(node["sync_state"])
        if grid and node["role"] != PRIMARY:
            words = [node["verdict"], lag_text(node) if node["role"] else "no contact"]
        return ", ".join(words)

    def _box(self, name: str, x: float, middle: float, grid: bool = False) -> None:
        node = self.nodes[name]
        self.right = max(self.right, x + self.box_w)
        self.bottom = max(self.bottom, middle + _ROW / 2)
        self.parts.append(
            f'<g class="{_e(node["verdict"])}"><title>{_e(name)}: {_e(node["verdict"])}</title>'
            f'<rect class="box" x="{x:.1f}" y="{middle - _ROW / 2:.1f}" width="{self.box_w:.1f}" height="{_ROW}" '
            f'rx="6"/>'
            f'<text class="icon" x="{x + 12:.1f}" y="{middle - 3:.1f}">{_ICONS[node["verdict"]]}</text>'
            f'<text x="{x + 30:.1f}" y="{middle - 3:.1f}">{_e(label_of(name))}</text>'
            f'<text class="sub" x="{x + 30:.1f}" y="{middle + 14:.1f}">{_e(self._sub(node, grid))}</text></g>'
        )

    def _next_row(self) -> float:
        """Return the middle of the next free row."""
        return self.bottom + (_GAP if self.bottom else 0) + _ROW / 2

    def _edge(self, x: float, middle: float, target: float, node: Result) -> None:
        receiver = node["receiver"]
        cut = "" if receiver is not None and receiver["status"] == "streaming" else f" cut {_e(node['verdict'])}"
        text = lag_text(node) if node["role"] else "no contact"
        self.parts.append(
            f'<path class="edge{cut}" d="M{x:.1f} {middle:.1f} h22 V{target:.1f} H{x + _LABEL:.1f}"/>'
            f'<text class="sub" x="{x + 30:.1f}" y="{target - 5:.1f}">{_e(text)}</text>'
        )

    def _place(self, tree: Result, depth: int) -> float:
        """Draw a node and what is below it; return the middle of its box."""
        x = depth * self.step
        leaves = [child["name"] for child in tree["children"] if not child["children"]]
        branches = (
            tree["children"] if len(leaves) <= _MANY else [child for child in tree["children"] if child["children"]]
        )
        middles = [(child["name"], self._place(child, depth + 1)) for child in branches]
        grid = self._grid(leaves, x + self.step) if len(leaves) > _MANY else None
        anchors = [middle for dummy, middle in middles] + ([grid] if grid is not None else [])
        middle = (anchors[0] + anchors[-1]) / 2 if anchors else self._next_row()
        for name, target in middles:
            self._edge(x + self.box_w, middle, target, self.nodes[name])
        if grid is not None:
            start = x + self.box_w
            self.parts.append(
                f'<path class="edge" d="M{start:.1f} {middle:.1f} h22 V{grid:.1f} H{start + _LABEL - 10:.1f}"/>'
                f'<text class="sub" x="{start + 30:.1f}" y="{grid - 5:.1f}">{len(leaves)} replicas</text>'
            )
        self._box(tree["name"], x, middle)
        return middle

    def _grid(self, names: t.Sequence[str], x: float) -> float:
        """Draw leaves in a framed grid; return the height at which the edge ends."""
        rows = -(-len(names) // _COLUMNS)
        top = self._next_row() + 10
        for number, name in enumerate(names):
            column, row = divmod(number, rows)
            self._box(name, x + column * (self.box_w + _GAP), top + row * (_ROW + _GAP), grid=True)
        columns = -(-len(names) // rows)
        width = columns * (self.box_w + _GAP) - _GAP + 20
        height = rows * (_ROW + _GAP) - _GAP + 20
        self.parts.append(
            f'<rect class="frame" x="{x - 10:.1f}" y="{top - _ROW / 2 - 10:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="8"/>'
        )
        self.right = max(self.right, x - 10 + width)
        self.bottom += 10
        return top

    def svg(self) -> str:
        """Return the drawing."""
        width, height = self.right + 4, max(self.bottom, _ROW) + 4
        # A drawing that is somewhat too wide is scaled, a very wide one scrolls.
        style = "max-width:100%;height:auto" if width < _WIDEST else ""
        return (
            f'<svg role="img" style="{style}" aria-label="Streaming topology" width="{width:.0f}" '
            f'height="{height:.0f}" '
            f'viewBox="-2 -2 {width:.0f} {height:.0f}">' + "".join(self.parts) + "</svg>"
        )


def _bar(value: float | None, limit: float, text: str) -> str:
    """Return a bar on a scale that ends at twice the limit, with a mark at the limit."""
    if value is None:
        return '<span class="soft">unknown</span>'
    over = value > limit
    share = min(1.0, value / (2 * limit)) if limit > 0 else float(over)
    return (
        f'<div class="lag {UNHEALTHY if over else HEALTHY}"><div class="bar"><i style="width:{share * 100:.1f}%"></i>'
        f'<u style="left:{50 if limit > 0 else 0}%"></u></div><code>{_e(text)}{", over" if over else ""}</code></div>'
    )


def to_html(result: Result) -> str:
    """Return the judgement as one HTML page that needs nothing from elsewhere."""
    limits = result["limits"]
    bars, rows = [], []
    for node in result["nodes"]:
        name = _e(node["name"])
        reasons = "".join(
            f"<li><code>{_e(reason['code'])}</code> {_e(reason['message'])}</li>" for reason in node["reasons"]
        )
        seen = "" if node["seen"] == node["verdict"] else f'<div class="soft">seen: {_e(node["seen"])}</div>'
        rows.append(
            f'<tr class="{_e(node["verdict"])}"><td class="name">{name}<div '
            f'class="soft"><code>{_e(node["host"])}:{_e(node["port"])}</code></div></td>'
            f'<td><span class="tag">{_ICONS[node["verdict"]]} {_e(node["verdict"])}</span>{seen}</td>'
            f"<td>{_e(node['role'] or 'unknown')}</td><td>{_e(node['upstream'] or '-')}</td>"
            f"<td>{_e(node['timeline'] or '?')}</td>"
            f"<td>{f'<ul>{reasons}</ul>' if reasons else '<span class=soft>nothing to report</span>'}</td></tr>"
        )
        if node["role"] == PRIMARY:
            continue
        bars.append(
            f'<tr class="{_e(node["verdict"])}"><td class="name">{name}</td>'
            f"<td>{_bar(node['lag_bytes'], limits['max_lag_bytes'], format_bytes(node['lag_bytes']))}</td>"
            f"<td>{_bar(node['lag_s'], limits['max_lag_s'], format_s(node['lag_s']))}</td></tr>"
        )
    errors = "".join(
        f'<p><span class="tag unhealthy">{_e(error["code"])}</span> {_e(error["message"])}</p>'
        for error in result["errors"]
    )
    facts = "".join(
        f"<div><b>{_e(title)}</b><span>{_e(text)}</span></div>"
        for title, text in (
            ("Primary", result["primary"] or "none"),
            ("Read pool", ", ".join(result["read_pool"]) or "empty"),
            ("Failover candidates, best first", ", ".join(result["failover_candidates"]) or "none"),
        )
    )
    lag_head = (
        f"<tr><th>Replica</th><th>Bytes (mark: limit {_e(format_bytes(limits['max_lag_bytes']))})</th>"
        f"<th>Seconds (mark: limit {_e(format_s(limits['max_lag_s']))})</th></tr>"
    )
    verdict = _e(result["verdict"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1">'
        f"<title>{_e(_HEADLINES[result['verdict']])}</title><style>{STYLE}</style></head><body><main>"
        f'<header class="{verdict}"><h1>{_e(_HEADLINES[result["verdict"]])}</h1>'
        f"<p>{_e(result['summary']['text'])}</p>{errors}</header>"
        f'<div class="facts">{facts}</div>'
        f'<h2>Who streams from whom</h2><div class="card">{_Drawing(result).svg()}<p class="soft note">On the lines: '
        f"how far behind the primary. Dashed: nothing is streamed.</p></div>"
        + (f'<h2>Lag</h2><div class="card"><table>{lag_head}{"".join(bars)}</table></div>' if bars else "")
        + '<h2>Nodes</h2><div class="card"><table><tr>'
        + "".join(f"<th>{title}</th>" for title in ("Node", "Verdict", "Role", "Streams from", "Timeline", "Why"))
        + "</tr>"
        + "".join(rows)
        + "</table></div></main></body></html>\n"
    )
