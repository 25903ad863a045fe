# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Memory between looks: how often a node was seen with another verdict, who it was, and its counters. Pure."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from dataclasses import dataclass, field

from ..._common.verdict import VERDICTS
from .model import NodeFacts, NodeVerdict

FORMAT = "headroom.scale/redis_cluster_health/1"
COUNTERS = ("evicted_keys", "keyspace_hits", "keyspace_misses", "slowlog")


@dataclass(frozen=True)
class Entry:
    """What is remembered about one node: the reported verdict, another one that was seen, how often in a row, its id in
    the cluster, and its counters with the run of the server that counted them."""

    verdict: str
    pending: str | None = None
    count: int = 0
    id: str | None = None
    run_id: str | None = None
    counters: t.Mapping[str, int] = field(default_factory=dict)


Memory = t.Mapping[str, Entry]
"""What is remembered about all nodes, by name."""


def counters_of(facts: NodeFacts) -> dict[str, int]:
    """Return the counters of a node that only ever grow, those that are known."""
    found = {name: facts.number(name) for name in COUNTERS[:-1]}
    found["slowlog"] = None if facts.slowlog_id is None else facts.slowlog_id + 1
    return {name: value for name, value in found.items() if value is not None}


def grown(before: Entry | None, facts: NodeFacts) -> dict[str, int]:
    """Return by how much the counters grew since the last look; nothing on the first look."""
    if before is None or not before.counters:
        return {}
    growth = {}
    for name, now in counters_of(facts).items():
        # a restart, or CONFIG RESETSTAT, begins anew
        base = before.counters.get(name, 0) if before.run_id == facts.info.get("run_id") else 0
        growth[name] = now - base if now >= base else now
    return growth


def advance(memory: Memory, nodes: t.Sequence[NodeVerdict], consecutive: int) -> tuple[Memory, tuple[NodeVerdict, ...]]:
    """Take one observation in.

    A node that is seen for the first time is reported as seen. Afterwards its reported verdict changes only after
    ``consecutive`` observations in a row that agree on another one.

    :returns: the new memory, which holds exactly the nodes given, and the nodes with the verdict to report.
    """
    entries: dict[str, Entry] = {}
    reported: list[NodeVerdict] = []
    for node in nodes:
        before = memory.get(node.name)
        entry = _step(before, node.seen, consecutive)
        counters, run_id = counters_of(node.facts), node.facts.info.get("run_id")
        if not counters and before is not None:
            counters, run_id = dict(before.counters), before.run_id
        known = node.id or (before.id if before else None)
        entries[node.name] = dataclasses.replace(entry, id=known, run_id=run_id, counters=counters)
        reported.append(dataclasses.replace(node, verdict=entry.verdict))
    return entries, tuple(reported)


def _step(before: Entry | None, seen: str, consecutive: int) -> Entry:
    if before is None or seen == before.verdict:
        return Entry(seen)
    count = before.count + 1 if seen == before.pending else 1
    return Entry(seen) if count >= consecutive else Entry(before.verdict, seen, count)


def dump(memory: Memory) -> str:
    """Return the memory as the text of its file."""
    nodes = {name: dataclasses.asdict(entry) for name, entry in memory.items()}
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
        try:
            entry = Entry(**fields)
        except TypeError as error:
            raise ValueError(f"entry {name} is damaged") from error
        counts = [entry.count, *(entry.counters.values() if isinstance(entry.counters, dict) else [None])]
        texts = (entry.id, entry.run_id)
        sound = entry.verdict in VERDICTS and entry.pending in (None, *VERDICTS)
        # a truth value is an int to Python, and no count
        if (
            not sound
            or any(isinstance(one, bool) or not isinstance(one, int) for one in counts)
            or any(text is not None and not isinstance(text, str) for text in texts)
        ):
            raise ValueError(f"entry {name} is damaged")
        entries[name] = entry
    return entries
