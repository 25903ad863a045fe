# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is known about a cluster: plain values, with units in their names; nothing here does I/O.

Every fact may be ``None``, which means *not known*; it never means *fine*.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.redis.model import Node, View
from ..._common.verdict import DEGRADED, HEALTHY, UNHEALTHY, Reason

PRIMARY = "primary"
REPLICA = "replica"

REQUIRED = ("INFO", "CLUSTER NODES", "CLUSTER INFO")
"""Commands without whose answer a node cannot be judged; the others may be denied to a login."""

SETTINGS = (
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "save",
    "cluster-node-timeout",
    "cluster-require-full-coverage",
    "cluster-allow-replica-migration",
)
"""Settings that all nodes of a cluster should share."""

TOLD = ("maxmemory", "maxmemory-policy", "appendonly")
"""Those of them that INFO tells too, to a login without the right to CONFIG GET."""


@dataclass(frozen=True)
class Limits:
    """What is asked of the cluster."""

    max_lag_bytes: int = 16777216
    max_lag_s: float = 10.0
    max_memory_ratio: float = 0.9
    max_fragmentation_ratio: float = 1.5
    max_evictions: int = 0
    max_slowlog_growth: int = 10
    min_hit_ratio: float | None = None
    min_replicas_per_primary: int = 1
    allow_same_host: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a node could not be observed: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Lag:
    """One comparison of a replica with its primary's offset, which was read on the primary first.

    ``caught_up_s`` is the time until the replica had processed past ``primary_offset``; ``None`` when it had not within
    ``window_s``. ``ack_age_s`` is how long ago the primary heard from the replica.
    """

    primary_offset: int
    replica_offset: int
    caught_up_s: float | None
    window_s: float
    last_io_s: int | None = None
    ack_age_s: int | None = None


@dataclass(frozen=True)
class NodeFacts:
    """All that was read from one node. With ``fault`` set, nothing else is known but what a name server said.

    ``not_read`` maps a command to why its answer is not known.
    """

    name: str
    fault: Fault | None = None
    addresses: tuple[str, ...] = ()
    info: t.Mapping[str, str] = field(default_factory=dict)
    view: View | None = None
    cluster: t.Mapping[str, str] = field(default_factory=dict)
    config: t.Mapping[str, str] | None = None
    slowlog_id: int | None = None
    latency_ms: t.Mapping[str, int] | None = None
    lag: Lag | None = None
    not_read: t.Mapping[str, str] = field(default_factory=dict)

    @property
    def role(self) -> str | None:
        """``primary``, ``replica`` or ``None`` when not known."""
        return {"master": PRIMARY, "slave": REPLICA}.get(self.info.get("role", ""))

    @property
    def engine(self) -> str | None:
        """``valkey`` or ``redis``."""
        if not self.info:
            return None
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> str | None:
        """Version of the server."""
        return self.info.get("valkey_version") or self.info.get("redis_version")

    @property
    def settings(self) -> dict[str, str]:
        """The settings that are known; without the right to CONFIG GET those that INFO tells."""
        if self.config is not None:
            return dict(self.config)
        aof = {"0": "no", "1": "yes"}.get(self.info.get("aof_enabled", ""))
        told = dict(zip(TOLD, (self.info.get("maxmemory"), self.info.get("maxmemory_policy"), aof), strict=True))
        return {name: value for name, value in told.items() if value is not None}

    def number(self, name: str) -> int | None:
        """Return a figure of INFO as a whole number, ``None`` when it is not known."""
        value = self.info.get(name, "")
        return int(value) if value.removeprefix("-").isdigit() else None

    @property
    def memory_ratio(self) -> float | None:
        """Share of ``maxmemory`` that is used, as the server counts it; ``None`` without such a limit."""
        used, limit = self.number("used_memory"), self.number("maxmemory")
        if used is None or not limit:
            return None
        return (used - (self.number("mem_not_counted_for_evict") or 0)) / limit

    @property
    def fragmentation_ratio(self) -> float | None:
        """Resident memory divided by used memory."""
        try:
            return float(self.info.get("mem_fragmentation_ratio", ""))
        except ValueError:
            return None


@dataclass(frozen=True)
class Growth:
    """What was counted since the last look; ``None`` where there was none, or the counter is not known."""

    evictions: int | None = None
    slowlog: int | None = None
    hit_ratio: float | None = None
    lookups: int | None = None


@dataclass(frozen=True)
class NodeVerdict:
    """The judgement on one node: ``seen`` by this observation, ``verdict`` as reported after hysteresis."""

    node: Node
    facts: NodeFacts
    id: str | None
    role: str | None
    primary: str | None
    seen: str
    verdict: str
    reasons: tuple[Reason, ...] = ()
    lag_bytes: int | None = None
    lag_s: float | None = None
    growth: Growth = Growth()

    @property
    def name(self) -> str:
        """The declared name of the node."""
        return self.node.name

    @property
    def usable(self) -> bool:
        """Whether it may be relied on."""
        return self.verdict in (HEALTHY, DEGRADED)


@dataclass(frozen=True)
class Shard:
    """A primary that owns slots, and its replicas, by name."""

    primary: str
    replicas: tuple[str, ...]
    usable_replicas: tuple[str, ...]
    slots: frozenset[int]
    candidates: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class ClusterVerdict:
    """The judgement on the whole cluster."""

    verdict: str
    nodes: tuple[NodeVerdict, ...]
    shards: tuple[Shard, ...]
    read_pool: tuple[str, ...]
    errors: tuple[Reason, ...]
    uncovered: frozenset[int]
    disputed: frozenset[int]
    open: frozenset[int]
    served: int
    summary: str

    @property
    def healthy(self) -> bool:
        """Whether the requirement holds."""
        return self.verdict != UNHEALTHY


def parse_replicas(info: t.Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return what a primary's INFO says of its replicas, by ``host:port``."""
    found = {}
    for name, value in info.items():
        if name.startswith("slave") and name[5:].isdigit():
            fields = dict(part.partition("=")[::2] for part in value.split(","))
            found[f"{fields.get('ip')}:{fields.get('port')}"] = fields
    return found
