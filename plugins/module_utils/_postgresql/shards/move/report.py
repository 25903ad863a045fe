# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a run returns: what was planned, what was done, and what each shard carries before and after. No I/O."""

from __future__ import annotations

import typing as t

from ...._common.units import format_bytes
from ..model import BucketId, ShardMap
from ..plan import Plan, imbalance
from ..split import Split
from .guard import Guard
from .model import BEFORE_SWITCH, Move
from .options import Options
from .orphans import Orphan
from .picture import Picture, Shares, split_map
from .switch import Switched


class Report:
    """What has been done so far, or would be."""

    def __init__(self, options: Options, check_mode: bool, guard: Guard) -> None:
        """Take the options, and what knows how long moves stood still."""
        self.options = options
        self.check_mode = check_mode
        self.guard = guard
        self.changed = False
        self.moves: list[dict[str, t.Any]] = []
        self.divided: list[dict[str, t.Any]] = []
        self.recovered: list[dict[str, t.Any]] = []
        self.removed: list[Orphan] = []
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Take what somebody should look at, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def add(
        self, move: Move, duration_s: float | None = None, error: str | None = None, switch: Switched | None = None
    ) -> None:
        """Take a move or a split that has ended, or would; without a duration it was begun by an earlier run."""
        entry = {**_entry(move), "duration_s": None if duration_s is None else round(duration_s, 2), "error": error}
        if switch is not None:
            entry["switch"] = switch.as_dict()
        (self.divided if move.is_split else self.moves).append(entry)

    def add_recovered(self, move: Move, was: str, action: str) -> None:
        """Take a move of an earlier run that was taken up, or would be: where it stood, and what became of it."""
        self.recovered.append({**_entry(move), "was": was, "action": action})

    def result(
        self,
        seen: Picture,
        made: Plan,
        left_out: t.Sequence[str],
        after: Shares,
        seen_after: Picture | None,
        splits: t.Sequence[dict[str, t.Any]] = (),
    ) -> dict[str, t.Any]:
        """Return everything.

        :param after: what each shard carries in the end.
        :param seen_after: what was seen in the end; None where nothing was done.
        :param splits: those of the plan, as it is returned.
        """
        before, after_by = made.before, {share.shard: share for share in after}
        moves = [
            {
                "group": move.bucket[0],
                "bucket": move.bucket[1],
                "source": move.source,
                "target": move.target,
                "bytes": move.size_bytes,
                "epoch": seen.map.placements[move.bucket].epoch,
            }
            for move in made.moves
        ]
        then = {**{move.bucket: move.target for move in made.moves}} if seen_after is None else {}
        return {
            "changed": self.changed,
            "summary": self._summary(made, left_out),
            "plan": {
                "id": made.id,
                "splits": list(splits),
                "moves": moves,
                "bytes": made.size_bytes,
                "estimated_s": round(made.estimated_s, 1),
                "left_out": list(left_out),
            },
            "shares": [
                {
                    "name": share.shard,
                    "buckets_before": share.buckets,
                    "buckets_after": after_by[share.shard].buckets,
                    "bytes_before": share.size_bytes,
                    "bytes_after": after_by[share.shard].size_bytes,
                    "load_before": round(share.load, 6),
                    "load_after": round(after_by[share.shard].load, 6),
                    "load_wanted": round(after_by[share.shard].wanted, 6),
                }
                for share in sorted(before, key=lambda one: one.shard)
            ],
            "imbalance": {"before": round(imbalance(before), 4), "after": round(imbalance(after), 4)},
            "epoch": (seen_after or seen).map.epoch,
            **self.figures(),
            "diff": {
                "before": _describe(seen.map_before or seen.map, before, {}),
                "after": _describe(seen_after.map if seen_after else split_map(seen.map, made.splits), after, then),
            },
        }

    def figures(self) -> dict[str, t.Any]:
        """Return what was done, as far as it came."""
        return {
            "splits": self.divided,
            "moves": sorted(self.moves, key=lambda one: (one["group"], one["bucket"])),
            "recovered": self.recovered,
            "orphans": [orphan.as_dict() for orphan in self.removed],
            "paused_s": round(self.guard.paused_s, 1),
            "warnings": self.warnings,
        }

    def _summary(self, made: Plan, left_out: t.Sequence[str]) -> str:
        options = self.options
        would = "would be " if self.check_mode else ""
        parts = []
        if self.recovered:
            parts.append(f"{_count(len(self.recovered), 'move')} of earlier runs {would}taken up")
        if options.state in ("planned", "balanced"):
            planned = len(made.moves)
            moved = [
                one for one in self.moves if one["duration_s"] is not None and one["state"] in ("switched", "retired")
            ]
            count = planned if self.check_mode else len(moved)
            size = format_bytes(made.size_bytes)
            cut = len(made.splits) if self.check_mode else sum(one["state"] == "retired" for one in self.divided)
            if cut:
                parts.append(
                    f"{_count(cut, 'bucket')} {'to be' if options.state == 'planned' else would} split".replace(
                        "  ", " "
                    )
                )
            if planned or count:
                verb = "planned" if options.state == "planned" else f"{would}moved"
                parts.append(f"{_count(count, 'bucket')}, {size}, {verb}")
            elif cut:
                pass
            elif left_out:
                parts.append("nothing can move")
            elif options.plan is not None:
                parts.append("nothing of the plan is left to do")
            else:
                parts.append("every shard is within its share")
        elif options.state == "reverted":
            parts.append(f"{_count(len(self.moves), 'bucket')} {would}taken back")
        else:
            orphans = _count(len(self.removed), "orphan")
            parts.append(f"{_count(len(self.moves), 'move')} {would}retired, {orphans} {would}removed")
        text = "; ".join(parts)
        return f"{text[0].upper()}{text[1:]}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def fate(move: Move, state: str, takes_share: bool = True) -> str:
    """Return what a run does with a move that has not ended.

    :param state: of the run.
    :param takes_share: whether the target is to have buckets.
    """
    if move.is_split or move.state == "switched":
        return "finished" if move.state == "switched" else "rolled_back"
    resumed = move.state in BEFORE_SWITCH[2:] or move.step in ("copied", "indexes")
    return "finished" if resumed and takes_share and state in ("balanced", "planned") else "rolled_back"


def _entry(move: Move) -> dict[str, t.Any]:
    return {
        "id": move.id,
        "group": move.group.name,
        "bucket": move.bucket,
        "source": move.source,
        "target": move.target,
        "state": move.state,
        "bytes": move.bytes_done or move.bytes_total,
        "rows": move.rows,
        **({"parts": list(move.parts)} if move.is_split else {}),
    }


def split_entries(seen: Picture, splits: t.Sequence[Split]) -> list[dict[str, t.Any]]:
    """Return splits as a plan is returned, so that it can be given again."""
    strategies = {group.name: group.strategy for group in seen.map.groups}
    return [
        {
            "group": split.group,
            "bucket": split.bucket,
            "shard": seen.map.placements[split.group, split.bucket].shard,
            "epoch": seen.map.placements[split.group, split.bucket].epoch,
            "bytes": seen.usage[split.group, split.bucket].size_bytes,
            "parts": [part.as_dict(strategies[split.group]) for part in split.parts],
        }
        for split in splits
    ]


def _describe(shard_map: ShardMap, shares: Shares, targets: t.Mapping[BucketId, str]) -> str:
    """Return the placements as text, by which a diff shows the moves."""
    lines = []
    for share in sorted(shares, key=lambda one: one.shard):
        lines.append(f"{share.shard}: {share.buckets} buckets, {format_bytes(share.size_bytes)}")
        held: dict[str, list[int]] = {}
        for (group, number), placement in sorted(shard_map.placements.items()):
            if targets.get((group, number), placement.shard) == share.shard:
                held.setdefault(group, []).append(number)
        lines += [f"{share.shard}: {group}/{number}" for group, numbers in sorted(held.items()) for number in numbers]
    return "\n".join(lines) + "\n"
