# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict: each reason has its cause, and what is not known is not healthy."""

from __future__ import annotations

import os
import sys
import typing as t

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health import judge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.memory import Entry  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.model import (  # noqa: E402
    Fault,
    Lag,
    NodeFacts,
)
from redis_health_builders import (  # noqa: E402
    CONFIG,
    NAMES,
    OFFSET,
    cluster,
    codes,
    facts,
    judged,
    lines,
    node_id,
    view,
)

REFUSED = Fault("connection_refused", "Failed to reach it.")


def gone(name: str, code: str = "connection_refused") -> NodeFacts:
    """Return the facts of a node that is not there."""
    return NodeFacts(name, fault=Fault(code, "Failed to reach it."), addresses=(f"10.0.0.{name[2:]}",))


def everywhere(**changes: str) -> dict[str, NodeFacts]:
    """Return the facts of a cluster in which all nodes see some lines of CLUSTER NODES otherwise."""
    return {name: facts(name, view=view(name, **changes)) for name in NAMES if changes.get(name) != ""}


def test_a_cluster_that_is_well() -> None:
    found, nodes = judged()
    assert (found.verdict, found.healthy, found.served) == ("healthy", True, 16384)
    assert not any(codes(node) for node in nodes.values())
    assert found.read_pool == NAMES
    assert [(shard.primary, shard.replicas, shard.candidates) for shard in found.shards] == [
        ("rc1", ("rc4",), ("rc4",)),
        ("rc2", ("rc5",), ("rc5",)),
        ("rc3", ("rc6",), ("rc6",)),
    ]
    assert found.summary.endswith("3 of 3 primaries and 3 of 3 replicas can be used.")


# ---- one node by its own word

ONE: list[tuple[str, NodeFacts, str, t.Any, t.Any]] = [
    ("connection_refused", gone("rc4"), "unreachable", None, None),
    ("not_observed", NodeFacts("rc4"), "unreachable", None, None),
    ("loading", gone("rc4", "loading"), "unhealthy", None, None),
    ("loading", facts("rc1", {"loading": "1", "loading_eta_seconds": "7"}), "unhealthy", 7, None),
    ("cluster_disabled", facts("rc1", {"cluster_enabled": "0"}, view=None), "unhealthy", None, None),
    (
        "facts_missing",
        facts("rc1", view=None, not_read={"CLUSTER NODES": "NOPERM"}),
        "unhealthy",
        ["CLUSTER NODES"],
        None,
    ),
    ("facts_missing", facts("rc1", {"role": "sentinel"}), "unhealthy", ["INFO"], None),
    ("cluster_state", facts("rc1", cluster={"cluster_state": "fail"}), "unhealthy", "fail", "ok"),
    ("aof_write_failed", facts("rc4", {"aof_last_write_status": "err"}), "unhealthy", "err", "ok"),
    ("aof_rewrite_failed", facts("rc4", {"aof_last_bgrewrite_status": "err"}), "degraded", "err", "ok"),
    ("rdb_save_failed", facts("rc1", {"rdb_last_bgsave_status": "err"}), "degraded", "err", "ok"),
    ("memory_ratio", facts("rc1", {"used_memory": "1020054732"}), "degraded", 0.95, 0.9),
    ("memory_ratio", facts("rc1", {"used_memory": "1073741824"}), "unhealthy", 1.0, 0.9),
    ("fragmentation_ratio", facts("rc1", {"mem_fragmentation_ratio": "1.8"}), "degraded", 1.8, 1.5),
    ("config_drift", facts("rc1", config={**CONFIG, "save": "60 1"}), "degraded", {"save": "60 1"}, {"save": ""}),
    ("version_drift", facts("rc1", {"redis_version": "8.0.2"}), "degraded", "redis 8.0.2", "redis 7.0.15"),
    ("version_drift", facts("rc1", {"valkey_version": "8.1.1"}), "degraded", "valkey 8.1.1", "redis 7.0.15"),
    (
        "full_sync",
        facts("rc4", {"master_link_status": "down", "master_sync_in_progress": "1"}),
        "unhealthy",
        None,
        None,
    ),
    (
        "replica_link_down",
        facts("rc4", {"master_link_status": "down", "master_link_down_since_seconds": "4"}),
        "unhealthy",
        4,
        None,
    ),
    ("lag_unknown", facts("rc4", lag=None), "unhealthy", None, None),
    ("lag_bytes", facts("rc4", lag=Lag(20000000, 0, 0.5, 0.5)), "unhealthy", 20000000, 16777216),
    ("backlog_exceeded", facts("rc4", lag=Lag(2000000, 0, 0.5, 0.5)), "degraded", 2000000, 1048576),
    ("lag_s", facts("rc4", lag=Lag(OFFSET, OFFSET - 1, None, 1.0, 12, 1)), "unhealthy", 12.0, 10.0),
    ("lag_s", facts("rc4", lag=Lag(OFFSET, OFFSET - 1, None, 1.0, 0, 15)), "unhealthy", 15.0, 10.0),
]


@pytest.mark.parametrize(
    ("code", "changed", "severity", "value", "limit"), ONE, ids=[f"{c[0]}-{n}" for n, c in enumerate(ONE)]
)
def test_reasons_of_one_node(code: str, changed: NodeFacts, severity: str, value: t.Any, limit: t.Any) -> None:
    node = judged(changed)[1][changed.name]
    reason = next(reason for reason in node.reasons if reason.code == code)
    assert (reason.severity, reason.value, reason.limit) == (severity, value, limit)
    assert reason.message.endswith(".")
    assert judge.VERDICTS.index(node.verdict) >= judge.VERDICTS.index(severity)


@pytest.mark.parametrize(
    "changed",
    [
        facts("rc1", {"used_memory": "1000", "mem_fragmentation_ratio": "9.0"}),
        facts("rc1", {"maxmemory": "0", "used_memory": "99999999999"}),
        facts("rc1", {"used_memory": "1073741824", "mem_not_counted_for_evict": "500000000"}),
        facts("rc1", config=None, not_read={"CONFIG GET": "NOPERM"}),
        facts("rc1", slowlog_id=None, latency_ms=None, not_read={"SLOWLOG GET": "NOPERM", "LATENCY LATEST": "NOPERM"}),
        facts("rc4", lag=Lag(OFFSET, OFFSET - 500, 0.01, 0.01, 60, 60)),
        facts("rc4", lag=Lag(OFFSET, OFFSET + 14, 0.01, 0.01, 60, 60)),
    ],
)
def test_what_is_no_reason(changed: NodeFacts) -> None:
    assert judged(changed)[0].verdict == "healthy"


def test_a_failed_save_stops_writes_where_there_are_save_points() -> None:
    failed = {"rdb_last_bgsave_status": "err"}
    points = {**CONFIG, "save": "60 1"}
    assert judged(facts("rc1", failed, config=points))[1]["rc1"].verdict == "unhealthy"
    assert judged(facts("rc1", failed, config=None))[1]["rc1"].verdict == "unhealthy"
    assert judged(facts("rc4", failed, config=points))[1]["rc4"].verdict == "degraded"


def test_a_setting_that_only_info_tells_is_compared() -> None:
    changed = facts("rc1", {"maxmemory_policy": "allkeys-lru"}, config=None)
    assert codes(judged(changed)[1]["rc1"]) == ["config_drift"]


def test_counters_are_judged_since_the_last_look() -> None:
    before = {"evicted_keys": 5, "keyspace_hits": 800, "keyspace_misses": 0, "slowlog": 0}
    memory = {"rc1": Entry("healthy", run_id="run", counters=before)}
    changed = facts("rc1", {"evicted_keys": "12"}, slowlog_id=20)
    node = judged(changed, memory=memory, min_hit_ratio=0.6)[1]["rc1"]
    found = {reason.code: (reason.value, reason.limit) for reason in node.reasons}
    assert found == {"evictions": (7, 0), "slowlog_growth": (21, 10), "hit_ratio": (0.5, 0.6)}
    assert judged(changed, memory=memory, max_evictions=7, max_slowlog_growth=21)[0].verdict == "healthy"
    assert judged(changed)[0].verdict == "healthy"
    assert judged(min_hit_ratio=0.95)[0].verdict == "degraded"


def test_a_lost_link_makes_the_lag_the_time_since_then() -> None:
    down = facts("rc4", {"master_link_status": "down", "master_link_down_since_seconds": "4"})
    assert judged(down)[1]["rc4"].lag_s == 4.0
    never = facts("rc4", {"master_link_status": "down", "master_link_down_since_seconds": "-1"})
    assert judged(never)[1]["rc4"].lag_s is None


# ---- one node by the word of others


def test_flags_count_against_the_one_they_are_about() -> None:
    failed = lines()["rc4"].replace("slave", "slave,fail")
    assert codes(judged(seen={**everywhere(rc4=failed), "rc4": facts("rc4")})[1]["rc4"]) == ["marked_failed"]
    doubted = lines()["rc4"].replace("slave", "slave,fail?")
    found, nodes = judged(facts("rc1", view=view("rc1", rc4=doubted)))
    assert [(reason.code, reason.value) for reason in nodes["rc4"].reasons] == [("suspected", ["rc1"])]
    assert found.verdict == "degraded"


def test_a_bus_link_counts_only_to_a_node_that_is_there() -> None:
    cut = facts("rc1", view=view("rc1", rc4=lines()["rc4"].replace("connected", "disconnected")))
    assert codes(judged(cut)[1]["rc1"]) == ["bus_link_down"]
    assert codes(judged(cut, gone("rc4"))[1]["rc1"]) == []


def test_a_node_that_one_does_not_know() -> None:
    node = judged(facts("rc1", view=view("rc1", rc4="")))[1]["rc1"]
    assert [(reason.code, reason.value) for reason in node.reasons] == [("member_unknown", ["rc4"])]


def test_a_node_that_most_do_not_know() -> None:
    seen = {**everywhere(rc4=""), "rc4": facts("rc4")}
    found, nodes = judged(seen=seen)
    assert codes(nodes["rc4"]) == ["not_a_member"]
    assert not any(codes(node) for name, node in nodes.items() if name != "rc4")
    assert codes(found) == ["replicas_missing"]


def test_another_view_of_the_owners() -> None:
    stale = view("rc4", rc1=lines()["rc1"].replace("0-5460", "0-5450"))
    node = judged(facts("rc4", view=stale))[1]["rc4"]
    assert [(reason.code, reason.value) for reason in node.reasons] == [("owners_disagree", "5451-5460")]


def test_open_slots_are_named_with_the_other_side() -> None:
    out = facts("rc1", view=view("rc1", rc1=lines()["rc1"] + f" [7->-{node_id('rc2')}]"))
    into = facts("rc2", view=view("rc2", rc2=lines()["rc2"] + f" [7-<-{node_id('rc1')}]"))
    found, nodes = judged(out, into)
    assert nodes["rc1"].reasons[0].message.startswith("rc1 migrates slots 7 to rc2;")
    assert nodes["rc2"].reasons[0].message.startswith("rc2 imports slots 7 from rc1;")
    assert (found.verdict, found.open) == ("degraded", {7})


def test_a_primary_without_slots() -> None:
    seen = everywhere(rc4=f"{node_id('rc4')} 10.0.0.4:6379@16379 master - 0 1 9 connected")
    seen["rc4"] = facts("rc4", {"role": "master"}, view=seen["rc4"].view)
    assert codes(judged(seen=seen, min_replicas_per_primary=0)[1]["rc4"]) == ["no_slots"]


def test_a_replica_on_the_host_of_its_primary() -> None:
    seen = everywhere(rc4=lines()["rc4"].replace("10.0.0.4:6379", "10.0.0.1:6380"))
    assert codes(judged(seen=seen)[1]["rc4"]) == ["same_host"]
    assert judged(seen=seen, allow_same_host=True)[0].verdict == "healthy"


# ---- the cluster


def test_slots_without_an_owner() -> None:
    found = judged(seen=everywhere(rc2=lines()["rc2"].replace("5461", "5463")))[0]
    assert [(error.code, error.value) for error in found.errors] == [("slots_uncovered", 2)]
    assert "5461-5462" in found.errors[0].message
    assert (found.verdict, found.uncovered) == ("unhealthy", {5461, 5462})


def test_slots_with_two_owners() -> None:
    both = facts("rc1", view=view("rc1", rc1=lines()["rc1"].replace("0-5460", "0-5461")))
    found, nodes = judged(both)
    assert codes(found) == ["slots_disputed"]
    assert (found.verdict, found.disputed) == ("unhealthy", {5461})
    # the higher epoch has it, so the view of the other one is the wrong one
    assert "owners_disagree" in codes(nodes["rc1"])
    assert "owners_disagree" not in codes(nodes["rc3"])


def test_primaries_that_share_an_epoch() -> None:
    found = judged(seen=everywhere(rc2=lines()["rc2"].replace("1 2 connected", "1 1 connected")))[0]
    assert [(error.code, error.value) for error in found.errors] == [("epoch_collision", 1)]
    assert found.verdict == "degraded"


def test_a_member_that_is_not_declared() -> None:
    stranger = f"{node_id('rc9')} 10.0.0.9:6379@16379 slave {node_id('rc1')} 0 1 1 connected"
    found = judged(seen=everywhere(rc9=stranger))[0]
    assert [(error.code, error.value) for error in found.errors] == [("undeclared_member", "10.0.0.9:6379")]
    assert found.shards[0].replicas == ("10.0.0.9:6379", "rc4")


def test_a_primary_that_is_gone_keeps_its_slots_and_its_candidates() -> None:
    down = facts("rc4", {"master_link_status": "down", "master_link_down_since_seconds": "1"}, lag=None)
    found, nodes = judged(gone("rc1"), down)
    assert codes(found) == ["primary_unusable", "replicas_missing"]
    assert "rc4 could take over" in found.errors[0].message
    assert (found.verdict, found.served, found.uncovered) == ("unhealthy", 10923, frozenset())
    assert nodes["rc1"].role == "primary"
    assert nodes["rc1"].id == node_id("rc1")
    assert "rc1" not in found.read_pool
    assert "rc4" not in found.read_pool


def test_a_node_that_is_gone_is_remembered_by_its_id() -> None:
    lost = NodeFacts("rc1", fault=REFUSED)
    moved = {name: facts(name, view=view(name, rc1=lines()["rc1"].replace("10.0.0.1", "172.16.0.1"))) for name in NAMES}
    assert judged(seen={**moved, "rc1": lost})[1]["rc1"].id is None
    memory = {"rc1": Entry("healthy", id=node_id("rc1"))}
    assert judged(seen={**moved, "rc1": lost}, memory=memory)[1]["rc1"].id == node_id("rc1")


def test_too_few_replicas() -> None:
    found = judged(gone("rc4"))[0]
    assert [(error.code, error.value, error.limit) for error in found.errors] == [("replicas_missing", 0, 1)]
    assert (found.verdict, found.shards[0].verdict, found.shards[1].verdict) == ("unhealthy", "unhealthy", "healthy")
    assert judged(gone("rc4"), min_replicas_per_primary=0)[0].verdict == "degraded"


def test_nobody_answers() -> None:
    found = judged(seen={name: gone(name) for name in NAMES})[0]
    assert (found.verdict, codes(found), found.served, found.read_pool) == ("unhealthy", ["no_view"], 0, ())


def test_nothing_was_observed() -> None:
    found, nodes = judged(seen={})
    assert found.verdict == "unhealthy"
    assert {node.verdict for node in nodes.values()} == {"unreachable"}


def test_candidates_are_ordered_and_fit() -> None:
    more = f"slave {node_id('rc1')} 0 1 1 connected"
    changes = {
        "rc5": f"{node_id('rc5')} 10.0.0.5:6379@16379 {more}",
        "rc6": f"{node_id('rc6')} 10.0.0.6:6379@16379 {more}",
    }
    seen = everywhere(**changes)
    for name, offset in (("rc4", "10"), ("rc5", "30"), ("rc6", "20")):
        seen[name] = facts(name, {"slave_repl_offset": offset}, view=seen[name].view)
    assert judged(seen=seen)[0].shards[0].candidates == ("rc5", "rc6", "rc4")
    seen["rc5"] = facts("rc5", {"slave_repl_offset": "30", "master_sync_in_progress": "1"}, view=seen["rc5"].view)
    assert judged(seen=seen)[0].shards[0].candidates == ("rc6", "rc4")
    barred = {"rc6": changes["rc6"].replace("slave ", "slave,nofailover "), "rc5": changes["rc5"]}
    seen = {name: facts(name, view=view(name, **barred)) for name in NAMES}
    assert judged(seen=seen)[0].shards[0].candidates == ("rc4", "rc5")


def test_a_handshake_is_not_yet_a_member() -> None:
    coming = f"{node_id('rc9')} 10.0.0.9:6379@16379 handshake - 0 0 0 connected"
    assert judged(facts("rc1", view=view("rc1", rc9=coming)))[0].verdict == "healthy"


def test_judging_is_stable() -> None:
    seen = cluster(gone("rc4"), facts("rc2", lag=None))
    assert judged(seen=seen) == judged(seen=dict(reversed(seen.items())))
