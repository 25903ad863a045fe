# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory between looks: a verdict changes after enough looks, counters survive, and damage is refused."""

from __future__ import annotations

import json
import os
import sys
import typing as t

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health import memory  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.model import (  # noqa: E402
    Fault,
    NodeFacts,
)
from redis_health_builders import cluster, facts, judged, node_id  # noqa: E402

DOWN = NodeFacts("rc4", fault=Fault("connection_refused", "Failed to reach it."), addresses=("10.0.0.4",))


def looks(*seen: bool, consecutive: int) -> list[str]:
    """Return the reported verdicts of rc4 for looks that see it (or not)."""
    remembered: memory.Memory = {}
    found = []
    for up in seen:
        nodes = judged(*([] if up else [DOWN]))[0].nodes
        remembered, reported = memory.advance(remembered, nodes, consecutive)
        found.append(next(node.verdict for node in reported if node.name == "rc4"))
    return found


def test_a_verdict_changes_after_enough_looks_that_agree() -> None:
    well, ill = "healthy", "unreachable"
    assert looks(True, False, False, False, consecutive=3) == [well, well, well, ill]
    assert looks(True, False, True, False, False, consecutive=2) == [well, well, well, well, ill]
    assert looks(False, True, consecutive=2) == [ill, ill]
    assert looks(True, False, consecutive=1) == [well, ill]


def test_a_memory_survives_its_file() -> None:
    remembered, _nodes = memory.advance({}, judged()[0].nodes, 1)
    assert memory.load(memory.dump(remembered)) == remembered
    assert remembered["rc1"].id == node_id("rc1")
    assert remembered["rc1"].counters["slowlog"] == 5


def test_counters_of_a_node_that_is_away_are_kept() -> None:
    first, _nodes = memory.advance({}, judged()[0].nodes, 1)
    second, _nodes = memory.advance(first, judged(DOWN, memory=first)[0].nodes, 1)
    assert second["rc4"].counters == first["rc4"].counters
    assert second["rc4"].id == first["rc4"].id


def test_growth_is_counted_within_one_run_of_the_server() -> None:
    before = memory.Entry("healthy", run_id="run", counters={"evicted_keys": 5, "slowlog": 3})
    now = facts("rc1", {"evicted_keys": "7"})
    assert memory.grown(before, now)["evicted_keys"] == 2
    assert memory.grown(before, facts("rc1", {"evicted_keys": "7", "run_id": "other"}))["evicted_keys"] == 7
    assert memory.grown(before, facts("rc1", {"evicted_keys": "1"}))["evicted_keys"] == 1
    assert memory.grown(None, now) == {}


ENTRY = {"verdict": "healthy", "pending": None, "count": 0, "id": None, "run_id": None, "counters": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "x", "nodes": {}}',
        json.dumps({"format": memory.FORMAT, "nodes": []}),
        *(
            json.dumps({"format": memory.FORMAT, "nodes": {"rc1": entry}})
            for entry in (
                7,
                {},
                {**ENTRY, "verdict": "fine"},
                {**ENTRY, "pending": "x"},
                {**ENTRY, "count": True},
                {**ENTRY, "counters": []},
                {**ENTRY, "counters": {"evicted_keys": "5"}},
                {**ENTRY, "id": 5},
                {**ENTRY, "more": 1},
            )
        ),
    ],
)
def test_damage_is_refused(text: t.Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        memory.load(text)


def test_only_the_nodes_given_are_remembered() -> None:
    remembered, _nodes = memory.advance({"old": memory.Entry("healthy")}, judged(seen=cluster())[0].nodes, 1)
    assert sorted(remembered) == ["rc1", "rc2", "rc3", "rc4", "rc5", "rc6"]
