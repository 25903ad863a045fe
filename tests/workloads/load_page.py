# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a load on load balancers saw, as one HTML page: who answered, how fast, and what was done meanwhile. Pure."""

from __future__ import annotations

import collections
import html
import math
from typing import Any, NamedTuple

# px of the drawing, of its scale, of what stands above a chart, and of a chart
_WIDTH, _LEFT, _TOP, _HEIGHT = 1100, 56, 30, 150
_COLUMNS = 300
_COLOURS = ("#4c7fd0", "#3d9a6a", "#b6782b", "#8a63c4", "#2b96a3", "#a3642b")
_FAILED = "failed"
_STYLE = """
:root { color-scheme: light dark; --bg:#fbfbfa; --card:#fff; --ink:#1c2024; --soft:#60646c; --line:#d9d9e0; --good:#1a7f4b; --bad:#c62a2f }
@media (prefers-color-scheme: dark) {
 :root { --bg:#111214; --card:#1a1c1f; --ink:#edeef0; --soft:#a8adb5; --line:#363a3f; --good:#5bd197; --bad:#ff8a84 } }
* { box-sizing:border-box } body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui,sans-serif }
main { max-width:1180px; margin:0 auto; padding:24px 20px 48px } h1 { margin:0 0 4px; font-size:24px } h2 { font-size:17px }
header { border-left:6px solid var(--good); padding:10px 20px } header.bad { border-color:var(--bad) }
.card { background:var(--card); border:1px solid var(--line); border-radius:6px; padding:14px; overflow-x:auto }
svg { display:block; max-width:100%; height:auto } svg text { font:12px system-ui,sans-serif; fill:var(--soft) }
.axis { stroke:var(--line) } .note { stroke:var(--ink); stroke-dasharray:2 3 } svg .number { fill:var(--ink); font-weight:600 }
.failed { fill:var(--bad) } .p50, .p99 { fill:none; stroke:#4c7fd0; stroke-width:1.5 } .p99 { stroke:#b6782b }
table { border-collapse:collapse } th,td { text-align:left; padding:4px 14px 4px 0 } th { font-size:12px; color:var(--soft) }
.key { display:inline-block; width:11px; height:11px; border-radius:2px; margin:0 5px 0 14px }
"""


class Answer(NamedTuple):
    """One request: when it ended in seconds since 1970, at which group of load balancers, who answered ("" failed), how long it took."""

    at_s: float
    group: str
    name: str
    latency_s: float


class Note(NamedTuple):
    """What was done, and when in seconds since 1970."""

    at_s: float
    text: str


def page(answers: list[Answer], notes: list[Note], figures: dict[str, Any]) -> str:
    """Return the page.

    :param figures: what the load prints at its end: ``requests``, ``failed``, ``p99_ms`` and ``max_ms``.
    """
    title = f"{figures['requests']:,} requests, {figures['failed']:,} failed"
    times = (
        f"99 of 100 took no longer than {figures['p99_ms']:g} ms, the longest {figures['max_ms']:g} ms."
        if answers
        else ""
    )
    parts = [f'<header class="{"bad" if figures["failed"] else "good"}"><h1>{title}</h1><p>{times}</p></header>']
    if answers:
        began_s = min(answer.at_s for answer in answers)
        span_s = max(max(answer.at_s for answer in answers) - began_s, 1.0)
        drawing = _Drawing(began_s, span_s, sorted(notes))
        colours = dict(
            zip(sorted({answer.name for answer in answers if answer.name}), _COLOURS * len(answers), strict=False)
        )
        for group in sorted({answer.group for answer in answers}):
            mine = [answer for answer in answers if answer.group == group]
            names = [name for name in colours if any(answer.name == name for answer in mine)]
            keys = "".join(f'<span class="key" style="background:{colours[name]}"></span>{_e(name)}' for name in names)
            what = f"{_e(group)}: answers" if group else "Answers"
            parts.append(
                f'<h2>{what} a second {keys}<span class="key" style="background:var(--bad)"></span>failed</h2>'
            )
            parts.append(f'<div class="card">{drawing.answers(mine, colours)}</div>')
        parts.append(
            '<h2>Milliseconds <span class="key" style="background:#4c7fd0"></span>half of the answers took no longer'
            '<span class="key" style="background:#b6782b"></span>99 of 100</h2>'
            f'<div class="card">{drawing.latencies(answers)}</div>'
        )
        rows = "".join(
            f"<tr><td>{number}</td><td>{note.at_s - began_s:.1f} s</td><td>{_e(note.text)}</td></tr>"
            for number, note in enumerate(drawing.notes, 1)
        )
        if rows:
            parts.append(f"<h2>What was done</h2><table><tr><th></th><th>After</th><th>What</th></tr>{rows}</table>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


class _Drawing:
    def __init__(self, began_s: float, span_s: float, notes: list[Note]) -> None:
        self.notes = [note for note in notes if began_s <= note.at_s <= began_s + span_s]
        self._began_s = began_s
        self._span_s = span_s
        self._column_s = max(1.0, span_s / _COLUMNS)

    def answers(self, answers: list[Answer], colours: dict[str, str]) -> str:
        """Draw how many were answered by whom, one upon the other, with those that failed on top."""
        counts: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for answer in answers:
            counts[self._column(answer)][answer.name or _FAILED] += 1
        top = max(sum(found.values()) for found in counts.values())
        bars = []
        for column, found in sorted(counts.items()):
            y = float(_TOP + _HEIGHT)
            for name in (*colours, _FAILED):
                # a single failure among many must be seen
                height = max(found[name] / top * _HEIGHT, 2.0 if name == _FAILED else 0.0) if found[name] else 0.0
                y -= height
                if height:
                    fill = 'class="failed"' if name == _FAILED else f'fill="{colours[name]}"'
                    bars.append(
                        f'<rect x="{self._x(column):.1f}" y="{y:.1f}" width="{self._right(column):.1f}" height="{height:.1f}" {fill}/>'
                    )
        return self._chart("".join(bars), f"{top / self._column_s:,.0f}")

    def latencies(self, answers: list[Answer]) -> str:
        """Draw the median and the 99th percentile."""
        found: dict[int, list[float]] = collections.defaultdict(list)
        for answer in answers:
            found[self._column(answer)].append(answer.latency_s * 1000)
        for values in found.values():
            values.sort()
        # from a tenth of a millisecond on; each line is ten times the one below
        decades = max(
            2,
            math.ceil(math.log10(max(0.1, *(values[int(0.99 * (len(values) - 1))] for values in found.values())))) + 1,
        )

        def y(milliseconds: float) -> float:
            return _TOP + _HEIGHT * (1 - max(0.0, math.log10(max(milliseconds, 0.1)) + 1) / decades)

        lines = [
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(10.0**power):.1f}" y2="{y(10.0**power):.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y(10.0**power) + 4:.1f}" text-anchor="end">{10**power:,}</text>'
            for power in range(decades - 1)
        ]
        for kind, share in (("p50", 0.5), ("p99", 0.99)):
            points = " ".join(
                f"{self._x(column) + self._right(column) / 2:.1f},{y(values[int(share * (len(values) - 1))]):.1f}"
                for column, values in sorted(found.items())
            )
            lines.append(f'<polyline class="{kind}" points="{points}"/>')
        return self._chart("".join(lines), f"{10 ** (decades - 1):,}", "0.1")

    def _column(self, answer: Answer) -> int:
        return int((answer.at_s - self._began_s) / self._column_s)

    def _x(self, column: float) -> float:
        return _LEFT + column * self._column_s / self._span_s * (_WIDTH - _LEFT - 10)

    def _bar(self) -> float:
        return max(self._x(1) - self._x(0) - 0.5, 0.5)

    def _right(self, column: int) -> float:
        # the last one is no whole one
        return min(self._bar(), max(_WIDTH - self._x(column), 0.5))

    def _chart(self, content: str, top: str, least: str = "0") -> str:
        bottom = _TOP + _HEIGHT
        marks = []
        for number, note in enumerate(self.notes, 1):
            x = self._x((note.at_s - self._began_s) / self._column_s)
            marks.append(
                f'<line class="note" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"><title>{_e(note.text)}</title></line>'
            )
            # those that are close together stand above one another
            marks.append(
                f'<text class="number" x="{x:.1f}" y="{_TOP - 4 - 9 * (number % 2)}" text-anchor="middle">{number}</text>'
            )
        ticks = "".join(
            f'<text x="{self._x(self._span_s * share / self._column_s):.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{self._span_s * share:.0f} s</text>"
            for share in (0, 0.25, 0.5, 0.75, 1)
        )
        return (
            f'<svg viewBox="0 0 {_WIDTH + 20} {bottom + 22}" width="{_WIDTH + 20}" height="{bottom + 22}" role="img">'
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{bottom}" y2="{bottom}"/>'
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{_TOP}" y2="{_TOP}"/>'
            f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{top}</text>'
            f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{least}</text>'
            f"{content}{''.join(marks)}{ticks}</svg>"
        )


def _e(text: object) -> str:
    return html.escape(str(text))
