# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a run tells while it goes on: a line every few seconds, and one for each move that has ended."""

from __future__ import annotations

import asyncio
import contextlib

from ...._common.units import format_bytes
from .copy import Rate
from .guard import Guard
from .model import Move

PROGRESS_S = 2.0


class Progress:
    """The moves that go on now, and how far all of them are."""

    def __init__(self, path: str | None, guard: Guard) -> None:
        """Take the file that gets the lines, and what holds moves back."""
        self.path = path
        self.guard = guard
        self.busy: list[Move] = []
        self.total_bytes = 0
        self.finished_bytes = 0

    def shards(self) -> set[str]:
        """Return the shards of the moves that go on."""
        return {name for move in self.busy for name in move.shards}

    async def show(self) -> None:
        """Tell how far the moves are, until cancelled."""
        rate, rates = Rate(), dict[str, Rate]()
        while True:
            await asyncio.sleep(PROGRESS_S)
            if not self.busy:
                continue
            copied = self.finished_bytes + sum(min(move.bytes_done, move.bytes_total) for move in self.busy)
            speed = rate.at(copied)
            total = max(self.total_bytes, sum(move.bytes_total for move in self.busy))
            left = f", about {(total - copied) / speed:.0f} s left" if speed > 0 and total > copied else ""
            rates = {move.id: rates.get(move.id, Rate()) for move in self.busy}
            running = "; ".join(standing(move, rates[move.id].at(move.bytes_done)) for move in self.busy)
            line = (
                f"{format_bytes(copied)} of {format_bytes(total)} copied, {format_bytes(int(speed))}/s{left}: {running}"
            )
            if self.guard.reasons:
                line += " (standing still: " + "; ".join(f"{k}: {v}" for k, v in self.guard.reasons.items()) + ")"
            self.say(line)

    def say(self, line: str) -> None:
        """Write a line."""
        if self.path:
            # who cannot be told goes without
            with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def standing(move: Move, rate_bytes_s: float) -> str:
    """Return where a move stands, and how far and how fast its copy is."""
    text = f"{move.label} {move.state} {move.step}".strip()
    if (move.state, move.step) != ("copying", "copy"):
        return text
    text += (
        f", {format_bytes(move.bytes_done)} of {format_bytes(move.bytes_total)}, {format_bytes(int(rate_bytes_s))}/s"
    )
    left_bytes = move.bytes_total - move.bytes_done
    return f"{text}, about {left_bytes / rate_bytes_s:.0f} s left" if rate_bytes_s > 0 and left_bytes > 0 else text
