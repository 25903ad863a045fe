# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster that is well: one primary, two replicas, one of them with a cascading replica. Tests change what they are
about."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health import judge
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.model import (
    Catchup,
    ClusterVerdict,
    Limits,
    NodeFacts,
    NodeSpec,
    NodeVerdict,
    Pooler,
    Receiver,
    Sender,
    Slot,
    Upstream,
)

LSN = 0x5000000
SYSTEM = "7710486467547408656"


def spec(name: str, **changes: t.Any) -> NodeSpec:
    """Return the declaration of a node at ``<name>.lab``."""
    return dataclasses.replace(NodeSpec(name, f"{name}.lab"), **changes)


def primary(name: str = "pg1", standbys: t.Sequence[str] = ("pg2", "pg3"), **changes: t.Any) -> NodeFacts:
    """Return the facts of a primary that is well."""
    facts = NodeFacts(
        name=name,
        addresses=(f"10.0.0.{name[2:]}",),
        server_version=170002,
        in_recovery=False,
        system_identifier=SYSTEM,
        server_id=f"{SYSTEM}/{name}",
        timeline=1,
        history=(),
        flush_lsn=LSN,
        receiver_known=True,
        wal_receiver_timeout_s=60.0,
        upstream=Upstream(None, 5432),
        slot_name="",
        slots=tuple(slot(standby) for standby in standbys),
        senders=tuple(sender(standby) for standby in standbys),
        synchronous_standby_names="",
        read_only=False,
        conflicts=0,
    )
    return dataclasses.replace(facts, **changes)


def slot(name: str, **changes: t.Any) -> Slot:
    """Return an active slot."""
    return dataclasses.replace(Slot(name, "physical", True, int(name[2:]) * 100, "reserved", 0, None), **changes)


def sender(name: str, **changes: t.Any) -> Sender:
    """Return the WAL sender of a streaming standby."""
    number = int(name[2:])
    return dataclasses.replace(Sender(number * 100, name, f"10.0.0.{number}", "streaming", "async", 0.5), **changes)


def replica(name: str, upstream: str = "pg1", **changes: t.Any) -> NodeFacts:
    """Return the facts of a replica that is well."""
    facts = NodeFacts(
        name=name,
        addresses=(f"10.0.0.{name[2:]}",),
        server_version=170002,
        in_recovery=True,
        system_identifier=SYSTEM,
        server_id=f"{SYSTEM}/{name}",
        timeline=1,
        history=(),
        receive_lsn=LSN,
        replay_lsn=LSN,
        replay_paused=False,
        receiver_known=True,
        receiver=Receiver("streaming", 1, 2.0, f"{upstream}.lab", 5432),
        wal_receiver_timeout_s=60.0,
        upstream=Upstream(f"{upstream}.lab", 5432),
        slot_name=name,
        slots=(),
        senders=(),
        synchronous_standby_names="",
        read_only=False,
        conflicts=0,
        catchup=Catchup(LSN, LSN, 0.0, 0.0, None),
    )
    return dataclasses.replace(facts, **changes)


def behind(lag_bytes: int, lag_s: float, window_s: float = 1.0) -> dict[str, t.Any]:
    """Return the changes for a replica that did not catch up."""
    lsn = LSN - lag_bytes
    return {"replay_lsn": lsn, "catchup": Catchup(LSN, lsn, None, window_s, lag_s)}


def cluster(**changes: NodeFacts) -> dict[str, NodeFacts]:
    """Return the facts of the cluster by node name, with some nodes replaced."""
    facts = {
        "pg1": primary(),
        "pg2": replica("pg2", slots=(slot("pg4"),), senders=(sender("pg4"),)),
        "pg3": replica("pg3"),
        "pg4": replica("pg4", upstream="pg2"),
    }
    return {**facts, **changes}


def specs(seen: t.Mapping[str, NodeFacts]) -> list[NodeSpec]:
    """Return declarations for all nodes; a node with a pooler's facts has a pooler."""
    return [spec(name, pooler_port=6432 if facts.pooler else None) for name, facts in seen.items()]


def judged(
    seen: t.Mapping[str, NodeFacts], limits: Limits | None = None, conflicts_before: t.Mapping[str, int] | None = None
) -> tuple[ClusterVerdict, dict[str, NodeVerdict]]:
    """Judge the nodes and the cluster."""
    limits = limits or Limits()
    nodes = judge.judge_nodes(specs(seen), seen, limits, conflicts_before)
    verdict = judge.conclude(nodes, limits)
    return verdict, {node.name: node for node in verdict.nodes}


def codes(node: NodeVerdict) -> set[str]:
    """Return the reason codes of a node."""
    return {reason.code for reason in node.reasons}


def pooler(**changes: t.Any) -> Pooler:
    """Return a pooler of pg2 that works."""
    return dataclasses.replace(Pooler("pg2.lab:6432", None, f"{SYSTEM}/pg2"), **changes)
