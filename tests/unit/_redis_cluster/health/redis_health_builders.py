# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster that is well: three primaries, a replica each, on six hosts. Tests change what they are about."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node, parse_view
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health import judge
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.model import (
    ClusterVerdict,
    Lag,
    Limits,
    NodeFacts,
    NodeVerdict,
)

NAMES = ("rc1", "rc2", "rc3", "rc4", "rc5", "rc6")
SLOTS = {"rc1": "0-5460", "rc2": "5461-10922", "rc3": "10923-16383"}
PRIMARY_OF = {"rc4": "rc1", "rc5": "rc2", "rc6": "rc3"}
NODES = tuple(Node(name, f"10.0.0.{name[2:]}", 6379) for name in NAMES)
OFFSET = 1000000

INFO = {
    "redis_version": "7.0.15",
    "run_id": "run",
    "loading": "0",
    "cluster_enabled": "1",
    "used_memory": "104857600",
    "maxmemory": "1073741824",
    "maxmemory_policy": "noeviction",
    "mem_fragmentation_ratio": "1.10",
    "rdb_last_bgsave_status": "ok",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "evicted_keys": "0",
    "keyspace_hits": "900",
    "keyspace_misses": "100",
    "repl_backlog_size": "1048576",
}
CONFIG = {
    "maxmemory": "1073741824",
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "cluster-node-timeout": "15000",
    "cluster-require-full-coverage": "yes",
    "cluster-allow-replica-migration": "yes",
}


def node_id(name: str) -> str:
    """Return the id of a node."""
    return name.ljust(40, "0")


def lines(**changes: str) -> dict[str, str]:
    """Return the lines of CLUSTER NODES by node name; a change replaces one, an empty one removes it."""
    found = {}
    for number, name in enumerate(NAMES, 1):
        role = f"slave {node_id(PRIMARY_OF[name])}" if name in PRIMARY_OF else "master -"
        epoch = NAMES.index(PRIMARY_OF.get(name, name)) + 1
        slots = f" {SLOTS[name]}" if name in SLOTS else ""
        found[name] = f"{node_id(name)} 10.0.0.{number}:6379@16379 {role} 0 1 {epoch} connected{slots}"
    return {name: line for name, line in {**found, **changes}.items() if line}


def view(me: str, **changes: str) -> t.Any:
    """Return the view of a node."""
    mine = lines(**changes)
    if me in mine:
        fields = mine[me].split(" ")
        fields[2] = "myself," + fields[2]
        mine[me] = " ".join(fields)
    return parse_view("\n".join(mine.values()))


def facts(name: str, info: t.Mapping[str, str] | None = None, **changes: t.Any) -> NodeFacts:
    """Return the facts of a node that is well."""
    if name in PRIMARY_OF:
        role = {"role": "slave", "master_link_status": "up", "slave_repl_offset": str(OFFSET)}
        lag = Lag(OFFSET, OFFSET, 0.001, 0.001, 1, 0)
    else:
        role, lag = {"role": "master", "master_repl_offset": str(OFFSET)}, None
    found = NodeFacts(
        name=name,
        addresses=(f"10.0.0.{name[2:]}",),
        info={**INFO, **role, **(info or {})},
        view=view(name),
        cluster={"cluster_state": "ok"},
        config=CONFIG,
        slowlog_id=4,
        latency_ms={},
        lag=lag,
    )
    return dataclasses.replace(found, **changes)


def cluster(*changed: NodeFacts) -> dict[str, NodeFacts]:
    """Return the facts of all nodes, with some of them changed."""
    return {**{name: facts(name) for name in NAMES}, **{one.name: one for one in changed}}


def judged(
    *changed: NodeFacts, seen: t.Mapping[str, NodeFacts] | None = None, memory: t.Any = None, **limits: t.Any
) -> tuple[ClusterVerdict, dict[str, NodeVerdict]]:
    """Return the judgement on the cluster and on its nodes by name."""
    picture = judge.Picture(NODES, seen if seen is not None else cluster(*changed), memory)
    asked = Limits(**limits)
    nodes = judge.judge_nodes(picture, asked)
    return judge.conclude(picture, nodes, asked), {node.name: node for node in nodes}


def codes(node: t.Any) -> list[str]:
    """Return the codes of the reasons of a node, or of the errors of a cluster."""
    return [reason.code for reason in (node.errors if isinstance(node, ClusterVerdict) else node.reasons)]
