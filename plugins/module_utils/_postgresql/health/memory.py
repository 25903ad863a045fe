# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Memory between looks: how often a node was seen with another verdict, and its conflict counter. Pure."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from dataclasses import dataclass, field

from ..._common.verdict import UNREACHABLE, VERDICTS
from .model import REPLICA, NodeVerdict

FORMAT = "headroom.scale/postgresql_replica_health/1"


@dataclass(frozen=True)
class Entry:
    """What is remembered about one node: the reported verdict, another one that was seen, how often in a row, and its
    last role."""

    verdict: str
    pending: str | None = None
    count: int = 0
    conflicts: int | None = None
    replica: bool = False


@dataclass(frozen=True)
class Memory:
    """What is remembered about all nodes, by name."""

    entries: t.Mapping[str, Entry] = field(default_factory=dict)

    @property
    def conflicts(self) -> dict[str, int]:
        """Recovery conflicts by node name at the last look."""
        return {name: entry.conflicts for name, entry in self.entries.items() if entry.conflicts is not None}


def _is_count(value: t.Any) -> bool:
    # a truth value is an int to Python, and no count
    return isinstance(value, int) and not isinstance(value, bool)


def advance(memory: Memory, nodes: t.Sequence[NodeVerdict], consecutive: int) -> tuple[Memory, tuple[NodeVerdict, ...]]:
    """Take one observation in.

    A node that is seen for the first time is reported as seen. Afterwards its reported verdict changes only after
    ``consecutive`` observations in a row that agree on another one.

    :returns: the new memory, which holds exactly the nodes given, and the nodes with the verdict to report.
    """
    entries: dict[str, Entry] = {}
    reported: list[NodeVerdict] = []
    for node in nodes:
        before = memory.entries.get(node.name)
        entry = _step(before, node.seen, consecutive)
        counter = node.facts.conflicts
        if counter is None and before is not None:
            counter = before.conflicts
        replica = node.role == REPLICA if node.role is not None else before is not None and before.replica
        entries[node.name] = dataclasses.replace(entry, conflicts=counter, replica=replica)
        # A replica that is still reported as it was keeps its role; who is primary is never taken from memory.
        held = node.role is None and replica and entry.verdict != UNREACHABLE
        reported.append(dataclasses.replace(node, verdict=entry.verdict, role=REPLICA if held else node.role))
    return Memory(entries), tuple(reported)


def _step(before: Entry | None, seen: str, consecutive: int) -> Entry:
    if before is None or seen == before.verdict:
        return Entry(seen)
    count = before.count + 1 if seen == before.pending else 1
    if count >= consecutive:
        return Entry(seen)
    return Entry(before.verdict, seen, count)


def dump(memory: Memory) -> str:
    """Return the memory as the text of its file."""
    nodes = {name: dataclasses.asdict(entry) for name, entry in sorted(memory.entries.items())}
    return json.dumps({"format": FORMAT, "nodes": nodes}, indent=1, sort_keys=True) + "\n"


def load(text: str) -> Memory:
    """Return the memory from the text of its file.

    :raises ValueError: when the text is not such a file.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("nodes"), dict):
        raise ValueError("not in the format " + FORMAT)
    entries = {}
    for name, fields in data["nodes"].items():
        if not isinstance(fields, dict):
            raise ValueError(f"entry {name} is not a mapping")
        verdict, pending = fields.get("verdict"), fields.get("pending")
        count, conflicts = fields.get("count", 0), fields.get("conflicts")
        if verdict not in VERDICTS or pending not in (None, *VERDICTS) or not _is_count(count):
            raise ValueError(f"entry {name} is damaged")
        replica = fields.get("replica", False)
        if (conflicts is not None and not _is_count(conflicts)) or not isinstance(replica, bool):
            raise ValueError(f"entry {name} is damaged")
        entries[name] = Entry(verdict, pending, count, conflicts, replica)
    return Memory(entries)
