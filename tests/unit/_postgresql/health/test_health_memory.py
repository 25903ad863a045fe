# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory between looks: a verdict changes only after enough looks agree, and a damaged file is not believed."""

from __future__ import annotations

import os
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._common.verdict import VERDICTS  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.memory import (  # noqa: E402
    FORMAT,
    Entry,
    Memory,
    advance,
    dump,
    load,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.model import NodeFacts, NodeVerdict  # noqa: E402
from health_builders import spec  # noqa: E402


def looks(verdicts: t.Sequence[str], consecutive: int, memory: Memory | None = None) -> list[str]:
    """Return what is reported look by look for one node."""
    memory = memory or Memory()
    reported = []
    for seen in verdicts:
        facts = NodeFacts(name="pg2", conflicts=1)
        memory, nodes = advance(memory, [NodeVerdict(spec("pg2"), facts, "replica", seen, seen)], consecutive)
        memory = load(dump(memory))
        reported.append(nodes[0].verdict)
    return reported


def test_the_first_look_is_reported_as_seen() -> None:
    assert looks(["unhealthy"], 5) == ["unhealthy"]


def test_a_change_needs_looks_in_a_row() -> None:
    seen = ["healthy", "unhealthy", "healthy", "unhealthy", "unhealthy", "unhealthy", "healthy", "healthy", "healthy"]
    expected = ["healthy"] * 5 + ["unhealthy"] * 3 + ["healthy"]
    assert looks(seen, 3) == expected


def test_looks_that_disagree_start_anew() -> None:
    assert looks(["healthy", "unhealthy", "degraded", "unhealthy", "unhealthy"], 2) == ["healthy"] * 4 + ["unhealthy"]


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=20))
def test_one_look_is_enough_by_default(seen: list[str]) -> None:
    assert looks(seen, 1) == seen


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=30), st.integers(1, 5))
def test_what_is_reported_was_seen_that_often(seen: list[str], consecutive: int) -> None:
    reported = looks(seen, consecutive)
    for number in range(1, len(seen)):
        if reported[number] != reported[number - 1]:
            assert seen[number - consecutive + 1 : number + 1] == [reported[number]] * consecutive


def test_nodes_that_are_gone_are_forgotten_and_counters_outlive_a_node_that_cannot_be_reached() -> None:
    memory = Memory({"pg2": Entry("healthy", conflicts=4), "pg9": Entry("healthy")})
    gone = NodeVerdict(spec("pg2"), NodeFacts(name="pg2"), None, "unreachable", "unreachable")
    memory, _dummy = advance(memory, [gone], 1)
    assert memory.conflicts == {"pg2": 4}
    assert set(memory.entries) == {"pg2"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"format": "other", "nodes": {}}',
        '{"format": "headroom.scale/postgresql_replica_health/1"}',
        '{"format": "headroom.scale/postgresql_replica_health/1", "nodes": {"pg2": 1}}',
        '{"format": "headroom.scale/postgresql_replica_health/1", "nodes": {"pg2": {"verdict": "fine"}}}',
        f'{{"format": "{FORMAT}", "nodes": {{"pg2": {{"verdict": "healthy", "count": "2"}}}}}}',
        f'{{"format": "{FORMAT}", "nodes": {{"pg2": {{"verdict": "healthy", "conflicts": true}}}}}}',
    ],
)
def test_a_damaged_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"format|entry|Expecting"):
        load(text)
