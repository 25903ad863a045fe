# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of a judgement: nothing is lost, nothing breaks out of its place."""

from __future__ import annotations

import os
import re
import sys
import typing as t

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health import judge, render  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.model import Fault, Limits, NodeFacts  # noqa: E402
from redis_health_builders import NAMES, NODES, cluster, facts, judged, lines, view  # noqa: E402
from web.page import Page  # noqa: E402

NASTY = 'rc9"><script>alert(1)</script>\\'


def result(*changed: NodeFacts, seen: t.Any = None) -> dict[str, t.Any]:
    """Return the result for a cluster."""
    return render.to_result(judged(*changed, seen=seen)[0], Limits())


def nasty() -> dict[str, t.Any]:
    """Return a result in which a node's name and message try to break out."""
    seen = {**cluster(), NASTY: NodeFacts(NASTY, fault=Fault("dns_failure", f"Failed {NASTY}."))}
    picture = judge.Picture([*NODES, Node(NASTY, NASTY, 1)], seen)
    return render.to_result(judge.conclude(picture, judge.judge_nodes(picture, Limits()), Limits()), Limits())


def test_slots_are_given_as_ranges() -> None:
    found = result(seen={name: facts(name, view=view(name, rc2=lines()["rc2"] + " 17")) for name in NAMES})
    assert found["shards"][0]["slots"] == ["0-16", "18-5460"]
    assert found["coverage"]["disputed"] == ["17"]
    found = result()
    assert found["coverage"] == {
        "covered": 16384,
        "served": 16384,
        "slots": 16384,
        "uncovered": [],
        "disputed": [],
        "open": [],
    }
    assert found["failover_candidates"] == {"rc1": ["rc4"], "rc2": ["rc5"], "rc3": ["rc6"]}
    assert found["primaries"] == ["rc1", "rc2", "rc3"]
    assert (found["summary"]["replicas_usable"], found["summary"]["replicas_required"]) == (3, 3)


def test_the_table_has_a_line_for_each_node_and_says_what_is_not_known() -> None:
    mute = [facts(name, config=None, not_read={"CONFIG GET": "NOPERM no"}) for name in NAMES]
    lines_ = render.to_table(result(*mute))
    assert [line.split()[0] for line in lines_[3:9]] == list(NAMES)
    # which settings were not compared is not to be guessed
    others = "appendfsync, save, cluster-node-timeout, cluster-require-full-coverage, cluster-allow-replica-migration"
    assert f"not judged by CONFIG GET (NOPERM no), so without comparing {others}: {', '.join(NAMES)}" in lines_


def test_what_a_verdict_needs_is_a_reason_and_no_footnote() -> None:
    blind = facts("rc1", view=None, not_read={"CLUSTER NODES": "NOPERM no"})
    assert not any(line.startswith("not judged") for line in render.to_table(result(blind)))


def test_prometheus_lines_are_well_formed() -> None:
    text = render.to_prometheus(nasty())
    sample = re.compile(r'^headroom_redis_\w+(\{(\w+="([^"\\\n]|\\.)*",?)*\})? -?[0-9.e+-]+$')
    kinds = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            assert line not in kinds
            kinds.add(line)
        elif not line.startswith("# HELP "):
            assert sample.match(line), line
    assert "headroom_redis_cluster_slots_covered 16384" in text
    assert 'headroom_redis_node_verdict{node="rc1",verdict="healthy"} 1' in text
    assert 'headroom_redis_node_lag_bytes{node="rc4"} 0' in text
    assert 'headroom_redis_node_lag_bytes{node="rc1"}' not in text


def test_the_page_stands_alone_and_nothing_breaks_out() -> None:
    text = render.to_html(nasty())
    found = Page(text)
    assert "script" not in found.names
    assert found.links == []
    assert "http" not in text
    assert found.names.count("svg") == 2
    assert all(f">{name}<" in text for name in NAMES)


def test_the_page_draws_each_range_of_a_primary() -> None:
    text = render.to_html(result())
    # once in the bar of all slots and once in its own
    assert text.count("<title>0-5460</title>") == 2
    holes = {name: facts(name, view=view(name, rc2=lines()["rc2"].replace("5461", "5463"))) for name in NAMES}
    assert 'class="none"><title>5461-5462</title>' in render.to_html(result(seen=holes))


def test_the_page_of_a_cluster_that_nobody_saw() -> None:
    text = render.to_html(result(seen={}))
    Page(text)
    assert "must not be relied on" in text


def test_many_replicas_and_long_names_are_drawn() -> None:
    names = [f"cache-node-{number:03}.rack.example.com" for number in range(9)]
    shard = dict(result()["shards"][0], replicas=names)
    Page(render.to_html({**result(), "shards": [shard]}))
    assert render.shorten("a" * 40) == "a" * 12 + "…" + "a" * 11
    assert len(render.shorten("a" * 40)) == 24
