# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict from facts: every failure has its own reason code, and whatever is not known is not fine."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._common.verdict import VERDICTS  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health import judge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.model import (  # noqa: E402
    Catchup,
    Fault,
    Limits,
    NodeFacts,
    Receiver,
    Upstream,
)
from health_builders import (  # noqa: E402
    LSN,
    behind,
    cluster,
    codes,
    judged,
    pooler,
    primary,
    replica,
    sender,
    slot,
    specs,
)

MIB = 1048576


def fault(name: str, code: str, waited_s: float = 5.0, **changes: t.Any) -> NodeFacts:
    """Return the facts of a node that could not be looked at."""
    return NodeFacts(
        name=name, fault=Fault(code, f"{name}: {code}", waited_s), addresses=(f"10.0.0.{name[2:]}",), **changes
    )


def with_sender(name: str, **changes: t.Any) -> NodeFacts:
    """Return the primary with one WAL sender changed."""
    senders = tuple(sender(other, **(changes if other == name else {})) for other in ("pg2", "pg3"))
    return primary(senders=senders)


NO_RECEIVER = {"receiver": None}
DEAD = {"receiver": None, "catchup": Catchup(LSN, LSN, 0.0, 0.0, None)}

# name of the case, changed nodes, the node in question, its verdict, its reason codes
CASES: list[tuple[str, dict[str, NodeFacts], str, str, set[str]]] = [
    ("killed replica", {"pg3": fault("pg3", "connection_refused", 0.01)}, "pg3", "unreachable", {"connection_refused"}),
    (
        "frozen replica",
        {"pg3": fault("pg3", "no_response"), "pg1": with_sender("pg3", reply_age_s=6.5)},
        "pg3",
        "unreachable",
        {"no_response", "frozen"},
    ),
    (
        "dead receiver, writing primary",
        {"pg3": replica("pg3", **{**NO_RECEIVER, **behind(2 * MIB, 12.0)})},
        "pg3",
        "unhealthy",
        {"wal_receiver_down"},
    ),
    ("dead receiver, idle primary", {"pg3": replica("pg3", **DEAD)}, "pg3", "unhealthy", {"wal_receiver_down"}),
    (
        "replay paused",
        {"pg3": replica("pg3", replay_paused=True, **behind(232, 1.0))},
        "pg3",
        "unhealthy",
        {"replay_paused"},
    ),
    (
        "forked timeline that streams nothing yet",
        {"pg3": replica("pg3", timeline=2, history=((1, LSN - 100),))},
        "pg3",
        "unhealthy",
        {"timeline_forked"},
    ),
    ("promoted beside a live primary", {"pg3": primary("pg3", standbys=())}, "pg3", "unhealthy", {"two_primaries"}),
    (
        "missing slot",
        {"pg1": primary(slots=(slot("pg2"),), senders=(sender("pg2"),)), "pg3": replica("pg3", **DEAD)},
        "pg3",
        "unhealthy",
        {"wal_receiver_down", "slot_missing"},
    ),
    (
        "lost slot",
        {
            "pg1": primary(
                slots=(slot("pg2"), slot("pg3", wal_status="lost", active=False, active_pid=None)),
                senders=(sender("pg2"),),
            ),
            "pg3": replica("pg3", **DEAD),
        },
        "pg3",
        "unhealthy",
        {"wal_receiver_down", "slot_lost"},
    ),
    ("lag over bytes only", {"pg3": replica("pg3", **behind(17 * MIB, 2.0))}, "pg3", "unhealthy", {"lag_bytes"}),
    ("lag over seconds only", {"pg3": replica("pg3", **behind(1 * MIB, 31.0))}, "pg3", "unhealthy", {"lag_s"}),
    ("wrong password", {"pg3": fault("pg3", "authentication_failed")}, "pg3", "unreachable", {"authentication_failed"}),
    ("TLS refused", {"pg3": fault("pg3", "tls_refused")}, "pg3", "unreachable", {"tls_refused"}),
    ("DNS failure", {"pg3": fault("pg3", "dns_failure")}, "pg3", "unreachable", {"dns_failure"}),
    ("silent port", {"pg3": fault("pg3", "no_response")}, "pg3", "unreachable", {"no_response"}),
    (
        "cascading below a lagging replica",
        {"pg2": replica("pg2", slots=(slot("pg4"),), senders=(sender("pg4"),), **behind(20 * MIB, 3.0))},
        "pg4",
        "degraded",
        {"upstream_not_healthy"},
    ),
    ("idle and well", {}, "pg3", "healthy", set()),
    (
        "pooler down, server up",
        {
            "pg2": replica(
                "pg2",
                slots=(slot("pg4"),),
                senders=(sender("pg4"),),
                pooler=pooler(fault=Fault("connection_refused", "refused")),
            )
        },
        "pg2",
        "unhealthy",
        {"pooler_unreachable"},
    ),
    # beyond the failures that everybody knows
    (
        "slot about to be lost",
        {"pg1": primary(slots=(slot("pg2"), slot("pg3", wal_status="unreserved")))},
        "pg3",
        "degraded",
        {"slot_unreserved"},
    ),
    ("catching up", {"pg1": with_sender("pg3", state="catchup")}, "pg3", "degraded", {"not_streaming"}),
    (
        "silent receiver",
        {"pg3": replica("pg3", receiver=Receiver("streaming", 1, 46.0, "pg1.lab", 5432))},
        "pg3",
        "degraded",
        {"wal_receiver_silent"},
    ),
    (
        "another cluster",
        {"pg3": replica("pg3", system_identifier="1")},
        "pg3",
        "unhealthy",
        {"system_identifier_mismatch"},
    ),
    ("read-only primary", {"pg1": primary(read_only=True)}, "pg1", "degraded", {"read_only"}),
    (
        "synchronous standby missing",
        {"pg1": primary(synchronous_standby_names="FIRST 1 (pg9)")},
        "pg1",
        "unhealthy",
        {"sync_standby_missing"},
    ),
    (
        "upstream under another name",
        {"pg3": replica("pg3", slot_name="", receiver=Receiver("streaming", 1, 1.0, "elsewhere", 5432))},
        "pg3",
        "healthy",
        set(),
    ),
    (
        "pooler refuses the login",
        {
            "pg2": replica(
                "pg2",
                slots=(slot("pg4"),),
                senders=(sender("pg4"),),
                pooler=pooler(fault=Fault("authentication_failed", "no")),
            )
        },
        "pg2",
        "degraded",
        {"pooler_unverified"},
    ),
    (
        "pooler leads elsewhere",
        {"pg2": replica("pg2", slots=(slot("pg4"),), senders=(sender("pg4"),), pooler=pooler(server_id="other"))},
        "pg2",
        "degraded",
        {"pooler_elsewhere"},
    ),
    (
        "lost slot of nobody",
        {"pg1": primary(slots=(slot("pg2"), slot("pg3"), slot("pg9", wal_status="lost")))},
        "pg1",
        "degraded",
        {"unclaimed_slot_lost"},
    ),
]


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_failure_has_its_own_reason(
    changes: dict[str, NodeFacts], name: str, verdict: str, expected: set[str]
) -> None:
    node = judged(cluster(**changes))[1][name]
    assert (node.seen, codes(node)) == (verdict, expected)


def test_a_cluster_that_is_well() -> None:
    verdict, nodes = judged(cluster())
    assert verdict.healthy
    assert verdict.verdict == "healthy"
    assert not verdict.errors
    assert verdict.primary == "pg1"
    assert verdict.read_pool == ("pg2", "pg3", "pg4")
    assert verdict.failover_candidates == ("pg2", "pg3", "pg4")
    assert verdict.topology == (
        {
            "name": "pg1",
            "children": [
                {"name": "pg2", "children": [{"name": "pg4", "children": []}]},
                {"name": "pg3", "children": []},
            ],
        },
    )
    assert nodes["pg3"].lag_bytes == 0
    assert nodes["pg3"].lag_s == 0


def test_a_silent_port_in_front_of_a_replica_that_answers_its_primary_is_not_frozen() -> None:
    seen = cluster(pg1=with_sender("pg3", reply_age_s=0.2), pg3=fault("pg3", "no_response"))
    assert codes(judged(seen)[1]["pg3"]) == {"no_response"}


def test_an_address_that_two_nodes_share_identifies_neither() -> None:
    attached = sender("pg3", application_name="walreceiver", pid=1, client_addr="10.0.0.9", reply_age_s=9.0)
    seen = cluster(
        pg1=primary(senders=(sender("pg2"), attached)),
        pg3=dataclasses.replace(fault("pg3", "no_response"), addresses=("10.0.0.9",)),
    )
    assert codes(judged(seen)[1]["pg3"]) == {"no_response", "frozen"}
    seen["pg2"] = dataclasses.replace(seen["pg2"], addresses=("10.0.0.9",))
    assert codes(judged(seen)[1]["pg3"]) == {"no_response"}


def test_lag_in_seconds_is_unknown_and_not_zero_without_a_receiver() -> None:
    node = judged(cluster(pg3=replica("pg3", **DEAD)))[1]["pg3"]
    assert node.lag_bytes == 0
    assert node.lag_s is None


def test_lag_in_seconds_is_at_least_the_window_and_else_the_age_of_the_last_transaction() -> None:
    assert judged(cluster(pg3=replica("pg3", **behind(100, 0.1, window_s=0.9))))[1]["pg3"].lag_s == 0.9
    assert judged(cluster(pg3=replica("pg3", **behind(100, 4.0))))[1]["pg3"].lag_s == 4.0
    nothing_replayed = dataclasses.replace(replica("pg3"), catchup=Catchup(LSN, LSN - 1, None, 0.9, None))
    assert judged(cluster(pg3=nothing_replayed))[1]["pg3"].lag_s == 0.9


def test_after_a_quiet_time_the_primary_knows_the_lag_of_a_replica_that_advances() -> None:
    def lag_s(advanced: bool, replay_lag_s: float | None, **changes: t.Any) -> float | None:
        facts = dataclasses.replace(
            replica("pg3"), catchup=Catchup(LSN, LSN - MIB, None, 0.9, 300.0, advanced), **changes
        )
        return judged(cluster(pg1=with_sender("pg3", replay_lag_s=replay_lag_s), pg3=facts))[1]["pg3"].lag_s

    assert lag_s(True, 2.5) == 2.5
    assert lag_s(True, 0.1) == 0.9
    assert lag_s(False, 2.5) == lag_s(True, None) == lag_s(True, 2.5, receiver=None) == 300.0


def test_a_replica_that_catches_up_is_behind_by_the_time_it_took() -> None:
    node = judged(cluster(pg3=replica("pg3", catchup=Catchup(LSN, LSN - 4096, 0.04, 0.04, None))))[1]["pg3"]
    assert (node.lag_bytes, node.lag_s, node.seen) == (4096, 0.04, "healthy")


def test_without_a_primary_nothing_is_fit_to_read_and_candidates_are_ordered_by_what_they_received() -> None:
    seen = cluster(
        pg1=fault("pg1", "connection_refused"),
        pg2=replica("pg2", receive_lsn=LSN - 10, replay_lsn=LSN - 10, catchup=None, receiver=None),
        pg3=replica("pg3", catchup=None, receiver=None),
        pg4=replica("pg4", upstream="pg2", catchup=None, receiver=None),
    )
    verdict, nodes = judged(seen)
    assert not verdict.healthy
    assert verdict.primary is None
    assert verdict.read_pool == ()
    assert [error["code"] for error in verdict.errors] == ["no_primary"]
    assert verdict.failover_candidates == ("pg3", "pg4", "pg2")
    assert "lag_unknown" in codes(nodes["pg3"])
    assert nodes["pg3"].lag_bytes is None


def test_synchronous_standbys_lead_the_candidates_and_paused_ones_follow() -> None:
    seen = cluster(pg1=primary(senders=(sender("pg2"), sender("pg3", sync_state="quorum"))))
    assert judged(seen)[0].failover_candidates == ("pg3", "pg2", "pg4")
    seen = cluster(pg2=dataclasses.replace(cluster()["pg2"], replay_paused=True))
    assert judged(seen)[0].failover_candidates == ("pg3", "pg4", "pg2")


def test_two_primaries_are_both_named_and_leave_no_candidates() -> None:
    verdict, nodes = judged(cluster(pg3=primary("pg3", standbys=())))
    assert verdict.primary is None
    assert not verdict.healthy
    assert verdict.errors[0]["code"] == "two_primaries"
    assert verdict.errors[0]["nodes"] == ["pg1", "pg3"]
    assert "pg1" in verdict.errors[0]["message"]
    assert "pg3" in verdict.errors[0]["message"]
    assert verdict.failover_candidates == ()
    assert verdict.read_pool == ()
    assert codes(nodes["pg1"]) == {"two_primaries"}


def test_one_server_under_several_names_is_not_two_primaries_and_counts_once() -> None:
    seen = cluster()
    seen["pg11"] = dataclasses.replace(seen["pg1"], name="pg11")
    seen["pg31"] = dataclasses.replace(seen["pg3"], name="pg31")
    verdict, nodes = judged(seen)
    assert verdict.healthy
    assert verdict.primary == "pg1"
    assert not verdict.errors
    assert nodes["pg11"].same_server_as == "pg1"
    assert nodes["pg31"].seen == "healthy"
    assert (verdict.replicas_ok, verdict.replicas_required) == (3, 3)


@pytest.mark.parametrize(
    ("tli", "lsn", "history", "expected"),
    [
        (1, 100, ((1, 100),), True),
        (1, 101, ((1, 100),), False),
        (2, 50, ((1, 100),), False),
        (3, 50, ((1, 100),), True),
        (1, 50, None, None),
        (1, None, ((1, 100),), None),
    ],
)
def test_lineage_to_timeline_3(tli: int, lsn: int | None, history: t.Any, expected: bool | None) -> None:
    assert judge.same_lineage(tli, lsn, 3, history) is expected


def test_a_replica_on_an_ancestor_timeline_before_the_switch_is_fine() -> None:
    seen = cluster(pg1=primary(timeline=2, history=((1, LSN),)))
    assert judged(seen)[1]["pg3"].seen == "healthy"
    seen = cluster(pg1=primary(timeline=2, history=None))
    assert codes(judged(seen)[1]["pg3"]) == {"timeline_unverified"}


def test_the_same_timeline_number_by_another_way_is_a_fork() -> None:
    leader = primary(timeline=2, history=((1, LSN - 10),))
    other = replica("pg3", timeline=2, history=((1, LSN - 20),))
    assert codes(judged(cluster(pg1=leader, pg3=other))[1]["pg3"]) == {"timeline_forked"}
    unread = dataclasses.replace(other, history=None, receiver=None)
    verdict, nodes = judged(cluster(pg1=leader, pg3=unread))
    assert "timeline_unverified" in codes(nodes["pg3"])
    assert "pg3" not in verdict.failover_candidates


def test_without_a_primary_unreadable_histories_leave_no_candidate_and_say_so() -> None:
    changes = {"timeline": 2, "history": None, "catchup": None, "receiver": None}
    verdict = judged(
        cluster(
            pg1=fault("pg1", "dns_failure"),
            pg2=replica("pg2", **changes),
            pg3=replica("pg3", **changes),
            pg4=fault("pg4", "x"),
        )
    )[0]
    assert verdict.failover_candidates == ()
    assert [error["code"] for error in verdict.errors] == ["no_primary", "candidates_unverified"]


def test_a_replica_ahead_on_a_fork_has_no_lag() -> None:
    ahead = replica("pg3", timeline=2, history=((1, LSN - 9),), catchup=Catchup(LSN, LSN + 500, 0.0, 0.0, None))
    node = judged(cluster(pg3=ahead))[1]["pg3"]
    assert node.lag_bytes is None
    assert {"timeline_forked", "lag_unknown"} <= codes(node)


def test_conflicts_are_those_since_the_last_look() -> None:
    seen = cluster(pg3=replica("pg3", conflicts=7))
    assert codes(judged(seen)[1]["pg3"]) == set()
    assert codes(judged(seen, conflicts_before={"pg3": 7})[1]["pg3"]) == set()
    node = judged(seen, conflicts_before={"pg3": 5})[1]["pg3"]
    assert (node.conflicts_new, codes(node), node.seen) == (2, {"conflicts"}, "degraded")
    assert judged(seen, conflicts_before={"pg3": 9})[1]["pg3"].conflicts_new == 7


def test_heartbeat_that_was_not_seen() -> None:
    seen = cluster(
        pg2=dataclasses.replace(cluster()["pg2"], marker_s=0.01), pg4=replica("pg4", upstream="pg2", marker_s=0.02)
    )
    nodes = judged(seen, Limits(heartbeat=True))[1]
    assert codes(nodes["pg3"]) == {"heartbeat_missed"}
    assert nodes["pg2"].seen == "healthy"


def test_the_requirement_counts_degraded_replicas_and_the_verdict_tells() -> None:
    seen = cluster(pg3=fault("pg3", "dns_failure"))
    assert judged(seen)[0].verdict == "unhealthy"
    assert judged(seen, Limits(min_healthy_replicas=2))[0].verdict == "degraded"
    assert judged(seen, Limits(min_healthy_replicas=3))[0].verdict == "unhealthy"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", 0),
        ("  ", 0),
        ("pg2", 1),
        ("pg2, pg3", 1),
        ("FIRST 2 (a, b)", 2),
        ("any 3(a,b,c)", 3),
        ("2 (a, b)", 2),
        ("*", 1),
    ],
)
def test_required_synchronous_standbys(names: str, expected: int) -> None:
    assert judge.required_sync(names) == expected


def test_upstreams_are_found_by_address_slot_and_application_name() -> None:
    by_address = replica("pg3", receiver=Receiver("streaming", 1, 1.0, "10.0.0.1", 5432))
    assert judged(cluster(pg3=by_address))[1]["pg3"].upstream == "pg1"
    by_resolved = replica("pg3", receiver=Receiver("streaming", 1, 1.0, "alias", 5432), sender_addresses=("10.0.0.1",))
    assert judged(cluster(pg3=by_resolved))[1]["pg3"].upstream == "pg1"
    by_slot = replica("pg3", receiver=None, upstream=Upstream("vip", 5432))
    assert judged(cluster(pg3=by_slot))[1]["pg3"].upstream == "pg1"
    by_name = replica("pg3", receiver=None, upstream=None, slot_name="")
    assert judged(cluster(pg3=by_name))[1]["pg3"].upstream == "pg1"
    nowhere = replica("pg3", receiver=None, upstream=Upstream("vip", 5432), slot_name="")
    seen = cluster(pg1=primary(standbys=("pg2",)), pg3=nowhere)
    node = judged(seen)[1]["pg3"]
    assert node.upstream is None
    assert "upstream_unknown" in codes(node)


def test_a_loop_of_upstreams_ends() -> None:
    seen = cluster(pg2=replica("pg2", upstream="pg4", receiver=Receiver("streaming", 1, 1.0, "pg4.lab", 5432)))
    verdict, nodes = judged(seen)
    assert set(nodes) == {"pg1", "pg2", "pg3", "pg4"}
    drawn: list[str] = []

    def walk(tree: dict[str, t.Any]) -> None:
        drawn.append(tree["name"])
        for child in tree["children"]:
            walk(child)

    for tree in verdict.topology:
        walk(tree)
    assert sorted(drawn) == ["pg1", "pg2", "pg3", "pg4"]


# ---- properties

LSNS = st.integers(min_value=LSN - 64 * MIB, max_value=LSN + MIB)


@st.composite
def replicas(draw: st.DrawFn, name: str) -> NodeFacts:
    """Draw a replica in any state."""
    if draw(st.integers(0, 5)) == 0:
        return fault(name, draw(st.sampled_from(["connection_refused", "no_response", "query_timeout", "dns_failure"])))
    lsn = draw(LSNS)
    caught = draw(st.one_of(st.none(), st.floats(0, 1)))
    receiver = Receiver(
        draw(st.sampled_from(["streaming", "waiting", None])),
        1,
        draw(st.one_of(st.none(), st.floats(0, 100))),
        "pg1.lab",
        5432,
    )
    return replica(
        name,
        in_recovery=draw(st.sampled_from([True, True, True, False])),
        system_identifier=draw(st.sampled_from([SYSTEM_ID, SYSTEM_ID, "1"])),
        timeline=draw(st.sampled_from([1, 1, 1, 2])),
        replay_lsn=lsn,
        replay_paused=draw(st.booleans()),
        receiver=draw(st.sampled_from([receiver, receiver, None])),
        conflicts=draw(st.integers(0, 3)),
        marker_s=draw(st.one_of(st.none(), st.floats(0, 5))),
        flush_lsn=LSN,
        catchup=draw(
            st.sampled_from([None, Catchup(LSN, lsn, caught, 1.0, draw(st.one_of(st.none(), st.floats(0, 90))))])
        ),
    )


SYSTEM_ID = primary().system_identifier


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, NodeFacts]:
    """Draw a primary in some state and two replicas in any state."""
    slots = tuple(
        slot(name, wal_status=draw(st.sampled_from(["reserved", "unreserved", "lost"]))) for name in ("pg2", "pg3")
    )
    senders = tuple(
        sender(
            name,
            state=draw(st.sampled_from(["streaming", "catchup"])),
            sync_state=draw(st.sampled_from(["async", "sync"])),
        )
        for name in ("pg2", "pg3")
    )
    leader = primary(
        slots=slots,
        senders=senders,
        read_only=draw(st.booleans()),
        synchronous_standby_names=draw(st.sampled_from(["", "FIRST 1 (pg2)", "ANY 2 (*)"])),
    )
    if draw(st.integers(0, 6)) == 0:
        leader = fault("pg1", "connect_timeout")
    return {"pg1": leader, "pg2": draw(replicas("pg2")), "pg3": draw(replicas("pg3"))}


DROPPABLE = (
    "in_recovery",
    "system_identifier",
    "timeline",
    "flush_lsn",
    "replay_lsn",
    "replay_paused",
    "receiver",
    "wal_receiver_timeout_s",
    "slot_name",
    "slots",
    "senders",
    "synchronous_standby_names",
    "read_only",
    "conflicts",
    "catchup",
    "marker_s",
    "pooler",
)


@settings(max_examples=400, deadline=None)
@given(
    seen=clusters(),
    name=st.sampled_from(["pg1", "pg2", "pg3"]),
    field=st.sampled_from(DROPPABLE),
    heartbeat=st.booleans(),
)
def test_dropping_a_fact_never_improves_the_node_or_the_cluster(
    seen: t.Any, name: str, field: str, heartbeat: bool
) -> None:
    limits = Limits(heartbeat=heartbeat)
    before, nodes = judged(seen, limits)
    after, nodes_after = judged({**seen, name: dataclasses.replace(seen[name], **{field: None})}, limits)
    rank = VERDICTS.index
    # A primary that no longer shows its role may end a dispute with another one; the cluster is still not fine then.
    assert rank(nodes_after[name].seen) >= rank(nodes[name].seen) or len(before.errors) > 0
    assert rank(after.verdict) >= rank(before.verdict)


@settings(max_examples=300, deadline=None)
@given(seen=clusters())
def test_the_read_pool_holds_no_node_with_an_unhealthy_reason(seen: t.Any) -> None:
    verdict, nodes = judged(seen)
    for name in verdict.read_pool:
        assert nodes[name].role == "replica"
        assert {reason.severity for reason in nodes[name].reasons} <= {"degraded"}
    if verdict.errors:
        assert verdict.read_pool == ()
        assert not verdict.healthy


@settings(max_examples=200, deadline=None)
@given(seen=clusters(), order=st.permutations(["pg1", "pg2", "pg3"]))
def test_the_verdict_depends_on_nothing_but_the_facts(seen: t.Any, order: list[str]) -> None:
    shuffled = {name: seen[name] for name in order}
    assert judged(seen) == judged(shuffled)


@settings(max_examples=200, deadline=None)
@given(seen=clusters())
def test_every_verdict_that_is_not_healthy_has_a_reason_and_every_message_is_a_sentence(seen: t.Any) -> None:
    for node in judged(seen)[1].values():
        assert bool(node.reasons) == (node.seen != "healthy")
        assert all(reason.message.endswith(".") or reason.code in reason.message for reason in node.reasons)


def test_nothing_observed_is_unreachable() -> None:
    nodes = judge.judge_nodes(specs(cluster()), {}, Limits())
    assert {node.seen for node in nodes} == {"unreachable"}
