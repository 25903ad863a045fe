# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What was seen of a sharded cluster in three shapes: a table, Prometheus text and an HTML page. Pure."""

from __future__ import annotations

import html
import typing as t

from ..._common.units import format_bytes
from ..health.render import STYLE
from .model import bucket_name
from .move.model import OPEN_STATES


def to_table(result: t.Mapping[str, t.Any]) -> list[str]:
    """Return the result as aligned lines, the sentence first."""
    members = {one["name"]: one for one in result["members"]}

    def shown(value: t.Any, form: str = "{}") -> str:
        return "?" if value is None else form.format(value)

    rows: list[tuple[str, ...]] = [
        ("SHARD", "STATE", "WEIGHT", "BUCKETS", "SIZE", "ROWS", "READS", "WRITES", "CONN", "SHARE", "FAIR", "EPOCH")
    ]
    for one in result["shards"]:
        member = members.get(one["name"], {})
        rate = one["reads_s"] is not None
        rows.append(
            (
                one["name"],
                one["state"] if member.get("reachable") else "unreadable",
                f"{one['weight']:g}",
                str(one["buckets"]),
                format_bytes(one["size_bytes"]),
                shown(one["rows"]),
                shown(one["reads_s"] if rate else one["reads"], "{:g}/s" if rate else "{}"),
                shown(one["writes_s"] if rate else one["writes"], "{:g}/s" if rate else "{}"),
                f"{shown(member.get('connections'))}/{shown(member.get('max_connections'))}",
                shown(one["load_share"], "{:.1%}"),
                "kept" if one["fair_share"] is None else f"{one['fair_share']:.1%}",
                shown(member.get("epoch")),
            )
        )
    lines = [result["summary"]["text"], "", *_aligned(rows)]
    routers = [one for one in result["members"] if one["role"] == "router"]
    if routers:
        rows = [("ROUTER", "STATE", "CONN", "EPOCH", "OUTDATED")]
        rows += [
            (
                one["name"],
                "ok" if one["reachable"] else "unreadable",
                f"{shown(one['connections'])}/{shown(one['max_connections'])}",
                shown(one["epoch"]),
                shown(one["outdated_buckets"]),
            )
            for one in routers
        ]
        lines += ["", *_aligned(rows)]
    if result["hot_buckets"]:
        hot = sorted(result["hot_buckets"], key=lambda one: -one["load_share"])[:10]
        rows = [("HOT BUCKET", "SHARD", "SHARE", "SIZE")]
        rows += [
            (
                bucket_name((one["group"], one["number"])),
                one["shard"],
                f"{one['load_share']:.1%}",
                format_bytes(one["size_bytes"]),
            )
            for one in hot
        ]
        lines += ["", *_aligned(rows)]
    if result["moves"]:
        rows = [("MOVE", "FROM", "TO", "STATE", "STEP", "DONE")]
        rows += [
            (
                one["bucket"],
                one["source"],
                one["target"],
                one["state"],
                one["step"] or "-",
                f"{format_bytes(one['bytes_done'])} of {format_bytes(one['bytes_total'])}",
            )
            for one in result["moves"]
        ]
        lines += ["", *_aligned(rows)]
    lines += [""] if result["orphans"] else []
    lines += [f"orphan on {one['member']}: {one['kind'].replace('_', ' ')} {one['name']}" for one in result["orphans"]]
    lines += [one["error"] for one in result["members"] if one["error"]]
    return lines


def _aligned(rows: t.Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def to_prometheus(result: t.Mapping[str, t.Any]) -> str:
    """Return the figures in the Prometheus text format."""
    lines: list[str] = []
    cluster = {"cluster": result["cluster"]}

    def family(name: str, text: str, samples: t.Iterable[tuple[dict[str, t.Any], t.Any]], kind: str = "gauge") -> None:
        full = f"headroom_postgresql_shards_{name}"
        values = [({**cluster, **labels}, value) for labels, value in samples if value is not None]
        if values:
            lines.append(f"# HELP {full} {text}")
            lines.append(f"# TYPE {full} {kind}")
            for labels, value in values:
                inner = ",".join(f'{key}="{_label(str(content))}"' for key, content in labels.items())
                lines.append(f"{full}{{{inner}}} {float(value):.17g}")

    def each(key: str, rows: str, label: str) -> list[tuple[dict[str, t.Any], t.Any]]:
        return [({label: one["name"]}, one[key]) for one in result[rows]]

    def bucket(key: str) -> list[tuple[dict[str, t.Any], t.Any]]:
        return [
            ({"group": one["group"], "bucket": one["number"], "shard": one["shard"]}, one[key])
            for one in result["buckets"]
        ]

    family("epoch", "Epoch of the map.", [({}, result["epoch"])])
    family("complete", "Whether all members could be read.", [({}, result["complete"])])
    family(
        "imbalance",
        "How far the fullest shard is above its fair share, as a fraction of it.",
        [({}, result["imbalance"])],
    )
    family("member_up", "Whether a member could be read.", each("reachable", "members", "member"))
    family("member_epoch", "Highest epoch that a member knows.", each("epoch", "members", "member"))
    family(
        "member_outdated_buckets",
        "Buckets of which a member does not know the place.",
        each("outdated_buckets", "members", "member"),
    )
    family("member_connections", "Sessions of clients.", each("connections", "members", "member"))
    family(
        "member_retained_wal_bytes",
        "WAL that a member keeps for moves, also for those that can still be taken back.",
        each("retained_wal_bytes", "members", "member"),
    )
    family("shard_buckets", "Buckets on a shard.", each("buckets", "shards", "shard"))
    family("shard_load_share", "Part of all load that a shard carries.", each("load_share", "shards", "shard"))
    family("shard_fair_share", "Part of all load that a shard is to carry.", each("fair_share", "shards", "shard"))
    for figure, text, kind in (
        ("size_bytes", "Bytes of a bucket, with indexes.", "gauge"),
        ("rows", "Rows of a bucket, estimated.", "gauge"),
        ("reads", "Rows of a bucket that were read.", "counter"),
        ("writes", "Rows of a bucket that were written.", "counter"),
    ):
        family(f"bucket_{figure}{'_total' if kind == 'counter' else ''}", text, bucket(figure), kind)
    states: dict[str, int] = {}
    for one in result["moves"]:
        states[one["state"]] = states.get(one["state"], 0) + 1
    family(
        "moves",
        "Moves that have not ended, by state.",
        [({"state": state}, states.get(state, 0)) for state in OPEN_STATES],
    )
    names = [one["name"] for one in result["members"] if one["reachable"]]
    family(
        "orphans",
        "What moves have left on a member that no move owns.",
        [({"member": name}, sum(one["member"] == name for one in result["orphans"])) for name in names],
    )
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# ---- the page

_STYLE = """
.seg { stroke:var(--card); stroke-width:.6 } .seg.hot { stroke:var(--unhealthy); stroke-width:2 }
.g0 { fill:#4c7fd0 } .g1 { fill:#3a9b7a } .g2 { fill:#b6782b } .g3 { fill:#9a6bc4 } .g4 { fill:#c05f7a } .g5 { fill:#6f8f2f }
.fair { stroke:var(--ink); stroke-width:2 } .key { display:inline-block; margin-right:18px }
.key svg { display:inline; vertical-align:-2px }
"""
_WIDTH, _LEFT, _RIGHT = 1100, 190, 210  # px of the drawing, of the names, and of the figures behind the bars
_ROW, _BAR = 58, 26  # px of a shard, and of its bar
_MANY = 250  # more buckets than this on one shard are drawn as one part for each group
_COLOURS = 6


def to_html(result: t.Mapping[str, t.Any]) -> str:
    """Return what was seen as one HTML page that needs nothing from elsewhere."""
    missing = [one for one in result["members"] if not one["reachable"]]
    looks = bool(result["orphans"] or result["hot_buckets"])
    verdict = "unhealthy" if missing or result["map"] is None else "degraded" if looks else "healthy"
    errors = "".join(f"<p>{_e(one['error'])}</p>" for one in result["members"] if one["error"])
    parts = [
        f'<header class="{verdict}"><h1>Shards of {_e(result["cluster"])}</h1><p>{_e(result["summary"]["text"])}</p>{errors}</header>'
    ]
    if result["shards"]:
        parts.append(
            f'<h2>Who carries what</h2><div class="card">{_drawing(result)}<p class="soft note">{_keys(result)}'
            "Each piece is a bucket, as wide as its part of the load. The line is the fair share of the shard.</p></div>"
        )
    if result["moves"]:
        parts.append(
            _table(
                "Moves",
                ("Bucket", "From", "To", "State", "Copied"),
                [
                    [
                        _e(one["bucket"]),
                        _e(one["source"]),
                        _e(one["target"]),
                        _e(f"{one['state']} {one['step'] or ''}".strip()) + _revertible(one["retire_in_s"]),
                        _progress(one["bytes_done"], one["bytes_total"]),
                    ]
                    for one in result["moves"]
                ],
            )
        )
    if result["orphans"]:
        rows = [[_e(one["member"]), _e(one["kind"].replace("_", " ")), _e(one["name"])] for one in result["orphans"]]
        parts.append(_table("Left behind", ("Member", "What", "Name"), rows))
    parts.append(
        _table(
            "Members",
            ("Member", "Role", "Where", "Epoch", "Buckets not up to date", "Clients"),
            [
                [
                    _e(one["name"]),
                    _e(one["role"]),
                    f"<code>{_e(one['host'])}:{_e(one['port'])}/{_e(one['database'])}</code>",
                    _shown(one["epoch"]),
                    _shown(one["outdated_buckets"]),
                    f"{_shown(one['connections'])} of {_shown(one['max_connections'])}"
                    if one["reachable"]
                    else "cannot be read",
                ]
                for one in result["members"]
            ],
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Shards of {_e(result['cluster'])}</title><style>{STYLE}{_STYLE}</style></head><body><main>"
        + "".join(parts)
        + "</main></body></html>\n"
    )


def _drawing(result: t.Mapping[str, t.Any]) -> str:
    groups = [one["name"] for one in result["groups"]]
    members = {one["name"]: one for one in result["members"]}
    room = _WIDTH - _LEFT - _RIGHT
    most = max([one[name] or 0.0 for one in result["shards"] for name in ("load_share", "fair_share")] + [0.0]) or 1.0
    parts = []
    for row, shard in enumerate(result["shards"]):
        y = row * _ROW
        member = members.get(shard["name"], {})
        state = shard["state"] if member.get("reachable") else "cannot be read"
        weight = "" if shard["weight"] == 1 else f", weight {shard['weight']:g}"
        parts.append(
            f'<text x="0" y="{y + 16}">{_e(_short(shard["name"]))}<title>{_e(shard["name"])}</title></text>'
            f'<text class="sub" x="0" y="{y + 32}">{_e(state)}{weight}, {shard["buckets"]} buckets</text>'
        )
        x = float(_LEFT)
        for name, share, hot, text in _pieces(result, shard["name"]):
            width = room * share / most
            kind = f"g{groups.index(name) % _COLOURS}{' hot' if hot else ''}"
            parts.append(
                f'<rect class="seg {kind}" x="{x:.2f}" y="{y + 4}" width="{max(width, 0.4):.2f}" height="{_BAR}">'
                f"<title>{_e(text)}</title></rect>"
            )
            x += width
        fair = shard["fair_share"]
        if fair is not None:
            at = _LEFT + room * fair / most
            parts.append(f'<line class="fair" x1="{at:.2f}" x2="{at:.2f}" y1="{y}" y2="{y + _BAR + 8}"/>')
        share = "?" if shard["load_share"] is None else f"{shard['load_share']:.1%}"
        goal = "keeps what it has" if fair is None else f"fair {fair:.1%}"
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 16}" y="{y + 16}">{share}, {goal}</text>'
            f'<text class="sub" x="{_WIDTH - _RIGHT + 16}" y="{y + 32}">{_e(format_bytes(shard["size_bytes"]))}, '
            f"{_shown(shard['rows'])} rows</text>"
        )
    height = len(result["shards"]) * _ROW
    return (
        f'<svg role="img" aria-label="Load of the shards by buckets" style="max-width:100%;height:auto" width="{_WIDTH}" '
        f'height="{height}" viewBox="-2 -2 {_WIDTH + 4} {height + 4}">' + "".join(parts) + "</svg>"
    )


def _pieces(result: t.Mapping[str, t.Any], shard: str) -> list[tuple[str, float, bool, str]]:
    """Return the parts of a shard's bar: the group, the part of the load, whether it is hot, and what it is in words."""
    own = [one for one in result["buckets"] if one["shard"] == shard]
    if len(own) <= _MANY:
        return [
            (
                one["group"],
                one["load_share"] or 0.0,
                one["hot"],
                f"{bucket_name((one['group'], one['number']))}: {one['load_share'] or 0:.2%} of the load, "
                f"{format_bytes(one['size_bytes'])}, {_shown(one['rows'])} rows, epoch {one['epoch']}",
            )
            for one in own
        ]
    found = []
    for group in result["groups"]:
        mine = [one for one in own if one["group"] == group["name"]]
        share = sum(one["load_share"] or 0.0 for one in mine)
        hot = any(one["hot"] for one in mine)
        found.append((group["name"], share, hot, f"{len(mine)} buckets of {group['name']}: {share:.2%} of the load"))
    return found


def _keys(result: t.Mapping[str, t.Any]) -> str:
    keys = "".join(
        f'<span class="key"><svg width="12" height="12"><rect class="g{number % _COLOURS}" width="12" height="12"/></svg> '
        f"{_e(one['name'])}</span>"
        for number, one in enumerate(result["groups"])
    )
    hot = '<span class="key">framed: hot</span>' if result["hot_buckets"] else ""
    return keys + hot


def _progress(done: int | None, total: int | None) -> str:
    share = min(1.0, (done or 0) / total) if total else 0.0
    return (
        f'<div class="lag healthy"><div class="bar"><i style="width:{share * 100:.0f}%"></i></div>'
        f"<code>{_e(format_bytes(done))} of {_e(format_bytes(total))}</code></div>"
    )


def _revertible(seconds: int | None) -> str:
    if seconds is None:
        return ""
    return f'<div class="soft">can be taken back for {max(0, seconds) / 3600:.1f} h</div>'


def _table(title: str, head: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> str:
    cells = "".join(f"<th>{_e(one)}</th>" for one in head)
    lines = "".join("<tr>" + "".join(f"<td>{one}</td>" for one in row) + "</tr>" for row in rows)
    return f'<h2>{_e(title)}</h2><div class="card"><table><tr>{cells}</tr>{lines}</table></div>'


def _short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _shown(value: t.Any) -> str:
    return "?" if value is None else _e(value)


def _e(value: t.Any) -> str:
    return html.escape(str(value), quote=True)
