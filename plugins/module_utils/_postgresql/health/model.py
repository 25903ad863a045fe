# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is known about a replicated PostgreSQL cluster: plain values, with units in their names; nothing here does I/O.

Every fact may be ``None``, which means *not known*; it never means *fine*.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.verdict import UNHEALTHY, Reason

PRIMARY = "primary"
REPLICA = "replica"


@dataclass(frozen=True)
class NodeSpec:
    """A node as declared: where its server and, where there is one, its pooler listen."""

    name: str
    host: str
    port: int = 5432
    pooler_host: str | None = None
    pooler_port: int | None = None

    @property
    def where(self) -> str:
        """``host:port`` of the server, for messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Limits:
    """What is asked of the cluster."""

    max_lag_bytes: int = 16777216
    max_lag_s: float = 30.0
    min_healthy_replicas: int | None = None
    heartbeat: bool = False
    timeout_s: float = 5.0


@dataclass(frozen=True)
class Fault:
    """Why a server or a pooler could not be observed: a stable code, a sentence, and how long it was waited for."""

    code: str
    message: str
    waited_s: float = 0.0


@dataclass(frozen=True)
class Receiver:
    """The WAL receiver of a replica."""

    status: str | None = None
    received_tli: int | None = None
    message_age_s: float | None = None
    sender_host: str | None = None
    sender_port: int | None = None


@dataclass(frozen=True)
class Sender:
    """A WAL sender: one row of ``pg_stat_replication``."""

    pid: int | None = None
    application_name: str | None = None
    client_addr: str | None = None
    state: str | None = None
    sync_state: str | None = None
    reply_age_s: float | None = None
    replay_lag_s: float | None = None


@dataclass(frozen=True)
class Slot:
    """A replication slot as its owner shows it."""

    name: str
    slot_type: str | None = None
    active: bool | None = None
    active_pid: int | None = None
    wal_status: str | None = None
    retained_bytes: int | None = None
    inactive_s: float | None = None


@dataclass(frozen=True)
class Upstream:
    """Where a replica is told to stream from (``primary_conninfo`` without its secrets)."""

    host: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Catchup:
    """One comparison of a replica with the primary's write position, which was read independently and first.

    ``caught_up_s`` is the time it took the replica to replay past ``primary_lsn``; ``None`` when it did not within
    ``window_s``.
    ``replayed_age_s`` is the primary's clock minus the commit time of the last transaction that was replayed, and
    ``advanced`` whether anything
    was replayed meanwhile.
    """

    primary_lsn: int
    replay_lsn: int | None
    caught_up_s: float | None
    window_s: float
    replayed_age_s: float | None
    advanced: bool = False


@dataclass(frozen=True)
class Pooler:
    """What the pooler of a node did: ``fault`` is ``None`` when a query came back through it."""

    where: str
    fault: Fault | None = None
    server_id: str | None = None


@dataclass(frozen=True)
class NodeFacts:
    """All that was read from one node. With ``fault`` set, nothing else is known but what a name server said."""

    name: str
    fault: Fault | None = None
    addresses: tuple[str, ...] = ()
    server_version: int | None = None
    in_recovery: bool | None = None
    system_identifier: str | None = None
    server_id: str | None = None
    timeline: int | None = None
    history: tuple[tuple[int, int], ...] | None = None
    flush_lsn: int | None = None
    receive_lsn: int | None = None
    replay_lsn: int | None = None
    replay_paused: bool | None = None
    receiver_known: bool = False
    receiver: Receiver | None = None
    sender_addresses: tuple[str, ...] = ()
    wal_receiver_timeout_s: float | None = None
    upstream: Upstream | None = None
    slot_name: str | None = None
    slots: tuple[Slot, ...] | None = None
    senders: tuple[Sender, ...] | None = None
    synchronous_standby_names: str | None = None
    read_only: bool | None = None
    conflicts: int | None = None
    data_bytes: int | None = None
    catchup: Catchup | None = None
    marker_s: float | None = None
    marker_error: str | None = None
    pooler: Pooler | None = None

    @property
    def role(self) -> str | None:
        """``primary``, ``replica`` or ``None`` when not known."""
        if self.in_recovery is None:
            return None
        return REPLICA if self.in_recovery else PRIMARY


@dataclass(frozen=True)
class NodeVerdict:
    """The judgement on one node: ``seen`` by this observation, ``verdict`` as reported after hysteresis."""

    spec: NodeSpec
    facts: NodeFacts
    role: str | None
    seen: str
    verdict: str
    reasons: tuple[Reason, ...] = ()
    upstream: str | None = None
    sync_state: str | None = None
    slot: Slot | None = None
    lag_bytes: int | None = None
    lag_s: float | None = None
    conflicts_new: int | None = None
    timeline_ok: bool = False
    same_server_as: str | None = None

    @property
    def name(self) -> str:
        """The declared name of the node."""
        return self.spec.name


@dataclass(frozen=True)
class ClusterVerdict:
    """The judgement on the whole cluster."""

    verdict: str
    primary: str | None
    nodes: tuple[NodeVerdict, ...]
    read_pool: tuple[str, ...]
    failover_candidates: tuple[str, ...]
    topology: tuple[dict[str, t.Any], ...]
    errors: tuple[dict[str, t.Any], ...]
    replicas_ok: int
    replicas_required: int
    summary: str
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether the requirement holds."""
        return self.verdict != UNHEALTHY


def parse_lsn(text: str | None) -> int | None:
    """Return a WAL position such as ``0/3000148`` as a number of bytes."""
    if not text:
        return None
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(lsn: int | None) -> str | None:
    """Return a WAL position in the way PostgreSQL writes it."""
    return None if lsn is None else f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_history(text: str | None) -> tuple[tuple[int, int], ...] | None:
    """Return the (timeline, switch position) pairs of a history file, oldest first; ``None`` when unreadable."""
    if text is None:
        return None
    pairs = []
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        try:
            position = parse_lsn(fields[1])
            if position is None:
                return None
            pairs.append((int(fields[0]), position))
        except (IndexError, ValueError):
            return None
    return tuple(pairs)
