# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of a judgement: nothing is lost, nothing breaks out of its place, nothing is secret."""

from __future__ import annotations

import os
import re
import sys
import typing as t

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health import judge, render  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.model import (  # noqa: E402
    Fault,
    Limits,
    NodeFacts,
    NodeSpec,
    format_lsn,
    parse_history,
    parse_lsn,
)
from health_builders import behind, cluster, judged, replica  # noqa: E402
from web.page import Page  # noqa: E402

NASTY = 'pg3"><script>alert(1)</script>\\'


def result(seen: t.Mapping[str, NodeFacts] | None = None) -> dict[str, t.Any]:
    """Return the result for the facts of a cluster."""
    limits = Limits()
    return render.to_result(judged(seen or cluster(), limits)[0], limits)


def nasty() -> dict[str, t.Any]:
    """Return a result in which a node's name and message try to break out."""
    seen = {"pg1": cluster()["pg1"], NASTY: NodeFacts(name=NASTY, fault=Fault("dns_failure", f"Failed {NASTY}."))}
    limits = Limits()
    nodes = judge.judge_nodes([NodeSpec(name, name) for name in seen], seen, limits)
    return render.to_result(judge.conclude(nodes, limits), limits)


def page(data: dict[str, t.Any]) -> Page:
    """Parse the page of a result."""
    return Page(render.to_html(data))


def test_the_page_is_whole_and_loads_nothing() -> None:
    seen = cluster(pg3=replica("pg3", replay_paused=True, **behind(99999999, 40.0)))
    parsed = page(result(seen))
    assert parsed.links == []
    assert "script" not in parsed.names
    assert "url(" not in render.to_html(result(seen))
    assert "@import" not in render.to_html(result(seen))
    assert parsed.names.count("rect") == 4


def test_the_page_escapes_names_and_messages() -> None:
    assert "script" not in page(nasty()).names


def test_the_page_tells_verdicts_in_words() -> None:
    text = render.to_html(result(cluster(pg3=replica("pg3", replay_paused=True))))
    assert "must not be relied on" in text
    assert "unhealthy, replica" in text
    assert "replay_paused" in text


def test_long_names_are_shortened_in_the_drawing_and_whole_in_the_table() -> None:
    long_name = "postgresql-production-eu-central-1a-" + "x" * 60
    assert len(render.shorten(long_name)) == 26
    assert render.shorten("pg1") == "pg1"
    seen = {"pg1": cluster()["pg1"], long_name: NodeFacts(name=long_name, fault=Fault("dns_failure", "gone."))}
    limits = Limits()
    nodes = judge.judge_nodes([NodeSpec(name, name) for name in seen], seen, limits)
    assert long_name in render.to_html(render.to_result(judge.conclude(nodes, limits), limits))


def test_prometheus_text_is_well_formed() -> None:
    sample = re.compile(r'^[a-z_]+(\{([a-z_]+="(\\.|[^"\\\n])*",?)+\})? -?[0-9.e+-]+$')
    for data in (result(), nasty()):
        text = render.to_prometheus(data)
        assert text.endswith("\n")
        for line in text.splitlines():
            assert line.startswith("# ") or sample.match(line), line
        families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(families) == len(set(families))


def test_prometheus_leaves_out_what_is_not_known() -> None:
    text = render.to_prometheus(result(cluster(pg3=replica("pg3", catchup=None))))
    assert 'node_lag_bytes{node="pg2"} 0' in text
    assert 'node_lag_bytes{node="pg3"}' not in text
    assert 'node_reason{node="pg3",code="lag_unknown",severity="unhealthy"} 1' in text
    assert "headroom_postgresql_cluster_healthy 0" in text


def test_the_table_is_aligned_and_names_every_reason() -> None:
    data = result(cluster(pg3=replica("pg3", replay_paused=True)))
    table = render.to_table(data)
    assert table[0] == data["summary"]["text"]
    start = table[2].index("WHY")
    assert [line[start:].split()[0] for line in table[3:7]] == ["-", "-", "replay_paused", "-"]
    assert any("pg_wal_replay_resume" in line for line in table)


def test_the_result_is_plain_sorted_and_repeatable() -> None:
    import json

    data = result()
    assert json.loads(json.dumps(data)) == data == result()
    assert [node["name"] for node in data["nodes"]] == ["pg1", "pg2", "pg3", "pg4"]


@pytest.mark.parametrize(
    ("text", "number"), [("0/0", 0), ("0/3000148", 0x3000148), ("1/0", 1 << 32), ("FF/FFFFFFFF", (1 << 40) - 1)]
)
def test_positions_read_and_write(text: str, number: int) -> None:
    assert parse_lsn(text) == number
    assert format_lsn(number) == text


def test_unknown_values_stay_unknown() -> None:
    assert parse_lsn(None) is None
    assert parse_lsn("") is None
    assert format_lsn(None) is None


def test_timeline_history_files() -> None:
    assert parse_history("1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\t# x\n") == (
        (1, 0x3000148),
        (2, 0x5000000),
    )
    assert parse_history("") == ()
    assert parse_history(None) is None
    assert parse_history("1\n") is None
    assert parse_history("a\tb\tc") is None
