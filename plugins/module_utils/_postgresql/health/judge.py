# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The verdict: a pure function from what was seen and what is asked to verdicts with reasons. It fails closed."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from collections import Counter

from ..._common.units import format_bytes, format_s
from ..._common.verdict import DEGRADED, HEALTHY, UNHEALTHY, UNREACHABLE, VERDICTS, Reason
from .model import PRIMARY, REPLICA, ClusterVerdict, Limits, NodeFacts, NodeSpec, NodeVerdict, Sender, Slot, format_lsn

SILENT_SHARE = 0.75
"""Share of ``wal_receiver_timeout`` after which a receiver without a message counts as silent."""

RANK_BYTES = 1048576
"""Failover candidates that are less than this apart count as level while a primary is writing."""

_SILENT_CODES = ("no_response", "query_timeout")
_NAMES_NUMBER = re.compile(r"^\s*(?:(?:any|first)\s+)?(\d+)\s*\(", re.IGNORECASE)

Seen = t.Mapping[str, NodeFacts]


def worst(reasons: t.Iterable[Reason]) -> str:
    """Return the verdict that follows from ``reasons``."""
    return max((reason.severity for reason in reasons), key=VERDICTS.index, default=HEALTHY)


def judge_nodes(
    specs: t.Sequence[NodeSpec], seen: Seen, limits: Limits, conflicts_before: t.Mapping[str, int] | None = None
) -> tuple[NodeVerdict, ...]:
    """Judge every node of one observation.

    :param specs: the declared nodes.
    :param seen: facts by node name; a node without facts is unreachable.
    :param limits: what is asked.
    :param conflicts_before: recovery conflicts by node name at the last look.
    :returns: verdicts, sorted by node name; ``verdict`` equals ``seen``.
    """
    return _Judge(specs, seen, limits, conflicts_before or {}).nodes()


def same_lineage(tli: int, lsn: int | None, target: int, history: tuple[tuple[int, int], ...] | None) -> bool | None:
    """Tell whether a node on timeline ``tli`` at ``lsn`` can still follow timeline ``target``.

    :param history: (timeline, switch position) pairs of ``target``, oldest first.
    :returns: ``None`` when it cannot be told.
    """
    if tli == target:
        return True
    if history is None:
        return None
    for ancestor, switch_lsn in history:
        if ancestor == tli:
            return None if lsn is None else lsn <= switch_lsn
    return False


def required_sync(names: str) -> int:
    """Return how many synchronous standbys ``synchronous_standby_names`` asks for."""
    if not names.strip():
        return 0
    found = _NAMES_NUMBER.match(names)
    return int(found.group(1)) if found else 1


def _same_history(one: NodeFacts, other: NodeFacts) -> bool | None:
    """Tell whether two nodes on one timeline came to it by the same way; the first timeline has no way."""
    if one.timeline == 1:
        return True
    if one.history is None or other.history is None:
        return None
    return one.history == other.history


class _Judge:
    """One judgement: holds what all nodes need of each other."""

    def __init__(
        self, specs: t.Sequence[NodeSpec], seen: Seen, limits: Limits, conflicts_before: t.Mapping[str, int]
    ) -> None:
        self.specs = {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.name)}
        missing = {name: NodeFacts(name=name) for name in self.specs}
        self.seen: dict[str, NodeFacts] = {name: seen.get(name, missing[name]) for name in self.specs}
        self.limits = limits
        self.conflicts_before = conflicts_before
        self.same_as = self._same_servers()
        self.primaries = sorted(
            name
            for name, facts in self.seen.items()
            if facts.role == PRIMARY and facts.fault is None and name not in self.same_as
        )
        self.primary = self.seen[self.primaries[0]] if len(self.primaries) == 1 else None
        self.system_identifier = self._system_identifier()
        self.upstreams = {name: self._upstream(facts) for name, facts in self.seen.items()}
        self.done: dict[str, NodeVerdict] = {}

    def nodes(self) -> tuple[NodeVerdict, ...]:
        for name in self.specs:
            self._node(name, ())
        return tuple(self.done[name] for name in self.specs)

    # ---- what the nodes are to each other

    def _same_servers(self) -> dict[str, str]:
        """Map a node that turned out to be the very server of another node to the first name of that server."""
        first: dict[str, str] = {}
        same: dict[str, str] = {}
        for name, facts in self.seen.items():
            if facts.server_id is None or facts.fault is not None:
                continue
            if facts.server_id in first:
                same[name] = first[facts.server_id]
            else:
                first[facts.server_id] = name
        return same

    def _system_identifier(self) -> str | None:
        """Return the cluster's system identifier: the primary's, else the one most nodes have, else unknown."""
        if self.primary is not None:
            return self.primary.system_identifier
        if self.primaries:
            return None
        count = Counter(facts.system_identifier for facts in self.seen.values() if facts.system_identifier is not None)
        ranking = count.most_common(2)
        if not ranking or (len(ranking) == 2 and ranking[0][1] == ranking[1][1]):
            return None
        return ranking[0][0]

    def _upstream(self, facts: NodeFacts) -> str | None:
        """Name the node that this one streams from, or last streamed from."""
        if facts.role == PRIMARY and facts.fault is None:
            return None
        others = [name for name in self.specs if name != facts.name and name not in self.same_as]
        if facts.name in self.same_as:
            others = [name for name in others if name != self.same_as[facts.name]]
        addresses: list[tuple[str, int]] = []
        if facts.receiver is not None and facts.receiver.sender_host and facts.receiver.sender_port:
            port = facts.receiver.sender_port
            addresses += [(host, port) for host in (facts.receiver.sender_host, *facts.sender_addresses)]
        elif facts.upstream is not None and facts.upstream.host:
            port = facts.upstream.port or 5432
            addresses += [(host, port) for host in (*facts.upstream.host.split(","), *facts.sender_addresses)]
        for host, port in addresses:
            for name in others:
                spec = self.specs[name]
                if port == spec.port and host in (name, spec.host, *self.seen[name].addresses):
                    return name
        # A node that cannot be asked is looked for by the slot that carries its name.
        slot_name = facts.slot_name if facts.fault is None else re.sub("[^a-z0-9_]", "_", facts.name.lower())
        by_slot = [
            name for name in others if slot_name and any(slot.name == slot_name for slot in self.seen[name].slots or ())
        ]
        if len(by_slot) == 1:
            return by_slot[0]
        by_sender = [name for name in others if self._sender(facts, self.seen[name]) is not None]
        return by_sender[0] if len(by_sender) == 1 else None

    def _sender(self, facts: NodeFacts, upstream: NodeFacts) -> Sender | None:
        """Find the WAL sender on ``upstream`` that serves this node, by slot, name or an address no other node has."""
        senders = upstream.senders or ()
        pids = {slot.active_pid for slot in upstream.slots or () if facts.slot_name and slot.name == facts.slot_name}
        for sender in senders:
            if sender.pid is not None and sender.pid in pids:
                return sender
        for sender in senders:
            if sender.application_name == facts.name:
                return sender
        shared = {
            address
            for name, other in self.seen.items()
            if name != facts.name and not self._same(name, facts.name)
            for address in other.addresses
        }
        for sender in senders:
            if sender.client_addr and sender.client_addr in facts.addresses and sender.client_addr not in shared:
                return sender
        return None

    def _same(self, one: str, other: str) -> bool:
        return self.same_as.get(one, one) == self.same_as.get(other, other)

    # ---- one node

    def _node(self, name: str, below: tuple[str, ...]) -> NodeVerdict:
        """Judge one node, its upstream first; ``below`` holds the nodes that wait for this one (a loop ends there)."""
        if name in self.done:
            return self.done[name]
        spec, facts = self.specs[name], self.seen[name]
        upstream = self.upstreams[name]
        verdict = NodeVerdict(
            spec=spec,
            facts=facts,
            role=facts.role,
            seen=UNREACHABLE,
            verdict=UNREACHABLE,
            upstream=upstream,
            same_server_as=self.same_as.get(name),
        )
        if facts.fault is not None or facts == NodeFacts(name=name):
            reasons = self._unreachable(facts)
        elif facts.role == PRIMARY:
            reasons = self._primary_reasons(facts)
            verdict = dataclasses.replace(verdict, timeline_ok=self.primary is not None)
        else:
            if upstream is not None and upstream not in below:
                self._node(upstream, (*below, name))
            verdict, reasons = self._replica(verdict)
        if facts.fault is None:
            reasons += self._pooler(facts)
        grade = worst(reasons)
        order = sorted(reasons, key=lambda reason: (-VERDICTS.index(reason.severity), reason.code))
        verdict = dataclasses.replace(verdict, seen=grade, verdict=grade, reasons=tuple(order))
        self.done[name] = verdict
        return verdict

    def _unreachable(self, facts: NodeFacts) -> list[Reason]:
        fault = facts.fault
        if fault is None:
            return [Reason("not_observed", f"{facts.name} was not observed.", UNREACHABLE)]
        reasons = [
            Reason(fault.code, fault.message, UNREACHABLE, value=round(fault.waited_s, 3), limit=self.limits.timeout_s)
        ]
        if fault.code not in _SILENT_CODES:
            return reasons
        for name, other in self.seen.items():
            sender = self._sender(facts, other) if other.fault is None and name not in self.same_as else None
            # A receiver that answered while we waited belongs to a live server behind a silent port.
            if sender is not None and (sender.reply_age_s is None or sender.reply_age_s >= fault.waited_s * 0.9):
                age = sender.reply_age_s
                reasons.append(
                    Reason(
                        "frozen",
                        f"{facts.name} accepts connections and says nothing while its WAL sender is still attached on "
                        f"{name} "
                        f"(last reply {format_s(age)} ago): the server is stopped or starved, not gone.",
                        UNREACHABLE,
                        value=None if age is None else round(age, 3),
                    )
                )
                break
        return reasons

    def _missing(self, facts: NodeFacts, wanted: t.Iterable[str]) -> list[Reason]:
        missing = sorted(name for name in wanted if getattr(facts, name) is None)
        if not missing:
            return []
        message = f"{facts.name} did not show {', '.join(missing)}; grant the login membership in pg_monitor."
        return [Reason("facts_missing", message, UNHEALTHY, value=missing)]

    def _identity(self, facts: NodeFacts) -> list[Reason]:
        if facts.system_identifier is None or self.system_identifier in (None, facts.system_identifier):
            return []
        return [
            Reason(
                "system_identifier_mismatch",
                f"{facts.name} belongs to another cluster: its system identifier is {facts.system_identifier}, "
                f"not {self.system_identifier}.",
                UNHEALTHY,
                value=facts.system_identifier,
                limit=self.system_identifier,
            )
        ]

    def _primary_reasons(self, facts: NodeFacts) -> list[Reason]:
        reasons = self._missing(
            facts,
            (
                "system_identifier",
                "timeline",
                "flush_lsn",
                "slots",
                "senders",
                "synchronous_standby_names",
                "read_only",
            ),
        )
        reasons += self._identity(facts)
        if len(self.primaries) > 1:
            names = " and ".join(self.primaries)
            reasons.append(
                Reason(
                    "two_primaries",
                    f"{names} are both primaries; fence all but one.",
                    UNHEALTHY,
                    value=len(self.primaries),
                    limit=1,
                )
            )
        wanted = required_sync(facts.synchronous_standby_names or "")
        if wanted and facts.senders is not None:
            present = sum(
                1 for sender in facts.senders if sender.sync_state in ("sync", "quorum") and sender.state == "streaming"
            )
            if present < wanted:
                reasons.append(
                    Reason(
                        "sync_standby_missing",
                        f"{facts.name} waits for {wanted} synchronous standby(s) and {present} stream(s): commits "
                        f"hang.",
                        UNHEALTHY,
                        value=present,
                        limit=wanted,
                    )
                )
        if facts.read_only:
            reasons.append(
                Reason(
                    "read_only",
                    f"default_transaction_read_only is on: {facts.name} takes no writes.",
                    DEGRADED,
                    value=True,
                )
            )
        if self.limits.heartbeat and facts.marker_error:
            reasons.append(Reason("heartbeat_missed", facts.marker_error, UNHEALTHY))
        claimed = {other.slot_name for other in self.seen.values() if other.slot_name}
        for slot in facts.slots or ():
            if slot.wal_status == "lost" and slot.name not in claimed:
                reasons.append(
                    Reason(
                        "unclaimed_slot_lost",
                        f"Slot {slot.name} on {facts.name} is lost; drop it.",
                        DEGRADED,
                        value=slot.name,
                    )
                )
        return reasons

    def _replica(self, verdict: NodeVerdict) -> tuple[NodeVerdict, list[Reason]]:
        facts = verdict.facts
        reasons = self._missing(
            facts,
            (
                "in_recovery",
                "system_identifier",
                "timeline",
                "replay_lsn",
                "replay_paused",
                "wal_receiver_timeout_s",
                "slot_name",
                "conflicts",
            ),
        )
        reasons += self._identity(facts)
        timeline_ok, timeline_reasons = self._timeline(facts)
        reasons += timeline_reasons
        streaming, receiver_reasons = self._receiver(facts)
        reasons += receiver_reasons
        if facts.replay_paused:
            reasons.append(
                Reason(
                    "replay_paused", f"Replay is paused on {facts.name}; pg_wal_replay_resume() ends that.", UNHEALTHY
                )
            )
        lag_bytes, lag_s, lag_reasons = self._lag(facts, timeline_ok, streaming, verdict.upstream)
        reasons += lag_reasons
        slot, sender, upstream_reasons = self._upstream_reasons(facts, verdict.upstream)
        reasons += upstream_reasons
        new, conflict_reasons = self._conflicts(facts)
        reasons += conflict_reasons
        if self.limits.heartbeat and facts.marker_s is None:
            message = (
                facts.marker_error or f"The heartbeat written on the primary was not seen on {facts.name} in time."
            )
            reasons.append(Reason("heartbeat_missed", message, UNHEALTHY, limit=self.limits.timeout_s))
        return (
            dataclasses.replace(
                verdict,
                lag_bytes=lag_bytes,
                lag_s=lag_s,
                slot=slot,
                sync_state=sender.sync_state if sender else None,
                conflicts_new=new,
                timeline_ok=timeline_ok,
            ),
            reasons,
        )

    def _timeline(self, facts: NodeFacts) -> tuple[bool, list[Reason]]:
        """Judge the timeline against the primary's; without a primary there is nothing to compare with."""
        primary = self.primary
        if primary is None or facts.timeline is None:
            return False, []
        if primary.timeline is None:
            return False, [
                Reason(
                    "timeline_unverified",
                    f"The timeline of the primary {primary.name} is not known.",
                    UNHEALTHY,
                    value=facts.timeline,
                )
            ]
        if facts.timeline == primary.timeline:
            # Two servers promoted apart from each other pick the same number; only the histories tell.
            # Without them, streaming must do.
            same = _same_history(facts, primary)
            if same or (same is None and facts.receiver is not None and facts.receiver.status == "streaming"):
                return True, []
            if same is None:
                message = (
                    f"{facts.name} and {primary.name} are both on timeline {facts.timeline}, it streams nothing, and "
                    f"the timeline "
                    "histories cannot be compared; let the login execute headroom.timeline_history(int)."
                )
                return False, [
                    Reason("timeline_unverified", message, UNHEALTHY, value=facts.timeline, limit=primary.timeline)
                ]
            message = (
                f"{facts.name} and {primary.name} are both on timeline {facts.timeline} with different histories; "
                f"rebuild or rewind it."
            )
            return False, [Reason("timeline_forked", message, UNHEALTHY, value=facts.timeline, limit=primary.timeline)]
        reached = max((lsn for lsn in (facts.receive_lsn, facts.replay_lsn) if lsn is not None), default=None)
        lineage = same_lineage(facts.timeline, reached, primary.timeline, primary.history)
        if lineage:
            return True, []
        if lineage is None:
            message = (
                f"{facts.name} is on timeline {facts.timeline}, {primary.name} on {primary.timeline}, and the "
                f"timeline history "
                "cannot be read; let the login execute headroom.timeline_history(int)."
            )
            return False, [
                Reason("timeline_unverified", message, UNHEALTHY, value=facts.timeline, limit=primary.timeline)
            ]
        message = (
            f"{facts.name} is at {format_lsn(reached)} on timeline {facts.timeline}, which is not part of the history "
            f"of "
            f"timeline {primary.timeline} of {primary.name}; rewind or rebuild it."
        )
        return False, [Reason("timeline_forked", message, UNHEALTHY, value=facts.timeline, limit=primary.timeline)]

    def _receiver(self, facts: NodeFacts) -> tuple[bool, list[Reason]]:
        receiver = facts.receiver
        if not facts.receiver_known:
            return False, [
                Reason(
                    "wal_receiver_down",
                    f"The WAL receiver of {facts.name} cannot be seen; grant the login pg_monitor.",
                    UNHEALTHY,
                )
            ]
        if receiver is None or receiver.status != "streaming":
            status = receiver.status if receiver else None
            message = (
                f"{facts.name} streams nothing: its WAL receiver is {status or 'not running'}; its server log says why."
            )
            return False, [Reason("wal_receiver_down", message, UNHEALTHY, value=status, limit="streaming")]
        timeout_s = facts.wal_receiver_timeout_s
        if not timeout_s:
            return True, []
        limit = timeout_s * SILENT_SHARE
        if receiver.message_age_s is None or receiver.message_age_s > limit:
            age = receiver.message_age_s
            message = (
                f"The last message to the WAL receiver of {facts.name} is {format_s(age)} old (limit "
                f"{format_s(limit)})."
            )
            return True, [
                Reason(
                    "wal_receiver_silent",
                    message,
                    DEGRADED,
                    value=None if age is None else round(age, 3),
                    limit=round(limit, 3),
                )
            ]
        return True, []

    def _lag(
        self, facts: NodeFacts, timeline_ok: bool, streaming: bool, upstream: str | None
    ) -> tuple[int | None, float | None, list[Reason]]:
        """Judge the lag in bytes and in seconds against the primary's own write position."""
        catchup = facts.catchup
        if self.primary is None or catchup is None or catchup.replay_lsn is None:
            why = "there are two primaries" if len(self.primaries) > 1 else "no primary position could be read"
            if self.primary is not None:
                why = "the two positions could not be read in time"
            return None, None, [Reason("lag_unknown", f"The lag of {facts.name} is not known: {why}.", UNHEALTHY)]
        limits, reasons = self.limits, []
        lag_bytes: int | None = catchup.primary_lsn - catchup.replay_lsn
        if lag_bytes is not None and lag_bytes < 0:
            # Ahead of the primary: a moment's progress on one history, meaningless on another.
            lag_bytes = 0 if timeline_ok else None
        if catchup.caught_up_s is None:
            bounds = [catchup.replayed_age_s or 0.0]
            if upstream == self.primary.name and streaming and catchup.advanced and catchup.replayed_age_s is not None:
                # After a quiet time the last replayed commit is old; what the primary measures while
                # replay advances is closer.
                sender = self._sender(facts, self.primary)
                bounds += [sender.replay_lag_s] if sender is not None and sender.replay_lag_s is not None else []
            lag_s: float | None = max(catchup.window_s, min(bounds))
        else:
            lag_s = catchup.caught_up_s if streaming else None
        if lag_bytes is None:
            reasons.append(
                Reason(
                    "lag_unknown", f"{facts.name} is ahead of the primary on a timeline that is not its own.", UNHEALTHY
                )
            )
        elif lag_bytes > limits.max_lag_bytes:
            message = f"{facts.name} is {format_bytes(lag_bytes)} behind (limit {format_bytes(limits.max_lag_bytes)})."
            reasons.append(Reason("lag_bytes", message, UNHEALTHY, value=lag_bytes, limit=limits.max_lag_bytes))
        if lag_s is not None and lag_s > limits.max_lag_s:
            message = f"{facts.name} is {format_s(lag_s)} behind (limit {format_s(limits.max_lag_s)})."
            reasons.append(Reason("lag_s", message, UNHEALTHY, value=round(lag_s, 3), limit=limits.max_lag_s))
        return lag_bytes, None if lag_s is None else round(lag_s, 3), reasons

    def _upstream_reasons(
        self, facts: NodeFacts, upstream: str | None
    ) -> tuple[Slot | None, Sender | None, list[Reason]]:
        if upstream is None:
            told = facts.upstream.host if facts.upstream and facts.upstream.host else "an unknown server"
            message = (
                f"{facts.name} is told to stream from {told}, which is none of the nodes: its slot cannot be checked."
            )
            return None, None, [Reason("upstream_unknown", message, DEGRADED)]
        other, reasons = self.seen[upstream], []
        above = self.done.get(upstream)
        if above is not None and above.role != PRIMARY and above.seen != HEALTHY:
            message = f"{facts.name} streams from {upstream}, which is {above.seen}."
            reasons.append(Reason("upstream_not_healthy", message, DEGRADED, value=upstream))
        slot = None
        if facts.slot_name and other.fault is None:
            if other.slots is None:
                reasons.append(
                    Reason("slot_lost", f"The slots of {upstream} cannot be read.", UNHEALTHY, value=facts.slot_name)
                )
            else:
                slot = next((slot for slot in other.slots if slot.name == facts.slot_name), None)
                reasons += self._slot(facts, upstream, slot)
        sender = self._sender(facts, other)
        streams = facts.receiver is not None and facts.receiver.status == "streaming"
        if sender is not None and sender.state != "streaming":
            message = f"The WAL sender of {upstream} for {facts.name} is in state {sender.state}."
            reasons.append(Reason("not_streaming", message, DEGRADED, value=sender.state, limit="streaming"))
        elif sender is None and streams and other.fault is None and not other.senders:
            message = f"{facts.name} believes that it streams from {upstream}, which shows no WAL sender."
            reasons.append(Reason("not_streaming", message, DEGRADED, limit="streaming"))
        return slot, sender, reasons

    def _slot(self, facts: NodeFacts, upstream: str, slot: Slot | None) -> list[Reason]:
        if slot is None:
            message = f"Slot {facts.slot_name} that {facts.name} asks for does not exist on {upstream}."
            return [Reason("slot_missing", message, DEGRADED, value=facts.slot_name)]
        if slot.wal_status == "lost":
            message = f"Slot {slot.name} on {upstream} is lost: WAL that {facts.name} needs is gone; rebuild it."
            return [Reason("slot_lost", message, UNHEALTHY, value=slot.name)]
        if slot.wal_status == "unreserved":
            message = (
                f"Slot {slot.name} on {upstream} retains {format_bytes(slot.retained_bytes)} and is about to be lost."
            )
            return [Reason("slot_unreserved", message, DEGRADED, value=slot.retained_bytes)]
        return []

    def _conflicts(self, facts: NodeFacts) -> tuple[int | None, list[Reason]]:
        before = self.conflicts_before.get(facts.name)
        if facts.conflicts is None or before is None:
            return None, []
        # A smaller number than last time means that the counter was reset.
        new = facts.conflicts - before if facts.conflicts >= before else facts.conflicts
        if new == 0:
            return 0, []
        message = (
            f"{new} quer{'y was' if new == 1 else 'ies were'} cancelled on {facts.name} by replay since the last look."
        )
        return new, [Reason("conflicts", message, DEGRADED, value=new, limit=0)]

    def _pooler(self, facts: NodeFacts) -> list[Reason]:
        spec, pooler = self.specs[facts.name], facts.pooler
        if spec.pooler_port is None:
            return []
        if pooler is None:
            return [Reason("pooler_unreachable", f"The pooler of {facts.name} was not observed.", UNHEALTHY)]
        fault = pooler.fault
        if fault is None:
            if pooler.server_id is not None and pooler.server_id == facts.server_id:
                return []
            message = f"The pooler of {facts.name} at {pooler.where} leads to another server."
            return [Reason("pooler_elsewhere", message, DEGRADED, value=pooler.where)]
        if fault.code in ("authentication_failed", "access_denied"):
            message = f"The pooler of {facts.name} answers, but the login cannot be used through it: {fault.message}"
            return [Reason("pooler_unverified", message, DEGRADED, value=fault.code)]
        message = f"The pooler of {facts.name} cannot be used: {fault.message}"
        return [Reason("pooler_unreachable", message, UNHEALTHY, value=fault.code)]


def conclude(nodes: t.Sequence[NodeVerdict], limits: Limits) -> ClusterVerdict:
    """Judge the cluster from the verdicts on its nodes, whose ``verdict`` may differ from ``seen`` by hysteresis."""
    nodes = tuple(sorted(nodes, key=lambda node: node.name))
    primaries = [node for node in nodes if node.role == PRIMARY and node.same_server_as is None]
    primary = primaries[0] if len(primaries) == 1 else None
    candidates = _candidates(nodes, len(primaries))
    errors: list[dict[str, t.Any]] = []
    if len(primaries) > 1:
        names = [node.name for node in primaries]
        errors.append(
            {
                "code": "two_primaries",
                "message": f"{' and '.join(names)} are both primaries; fence all but one.",
                "nodes": names,
            }
        )
    elif not primaries:
        errors.append({"code": "no_primary", "message": "None of the nodes is a reachable primary.", "nodes": []})
        if not candidates and any(node.role == REPLICA for node in nodes):
            message = (
                "No failover candidate can be named: the replicas' system identifiers, positions or timeline "
                "histories cannot be compared."
            )
            errors.append({"code": "candidates_unverified", "message": message, "nodes": []})
    # A server that is listed under several names counts once.
    servers = sum(1 for node in nodes if node.same_server_as is None)
    required = limits.min_healthy_replicas
    if required is None:
        required = servers - max(1, len(primaries))
    pool = [node for node in nodes if node.role == REPLICA and node.verdict in (HEALTHY, DEGRADED)]
    usable = [node for node in pool if node.same_server_as is None]
    counts = {verdict: sum(1 for node in nodes if node.verdict == verdict) for verdict in VERDICTS}
    holds = primary is not None and primary.verdict in (HEALTHY, DEGRADED) and len(usable) >= required
    verdict = HEALTHY if counts[HEALTHY] == len(nodes) else DEGRADED
    if not holds:
        verdict = UNHEALTHY
    return ClusterVerdict(
        verdict=verdict,
        primary=primary.name if primary else None,
        nodes=nodes,
        read_pool=tuple(node.name for node in pool) if primary else (),
        failover_candidates=candidates,
        topology=_topology(nodes),
        errors=tuple(errors),
        replicas_ok=len(usable),
        replicas_required=required,
        counts=counts,
        summary=_sentence(verdict, primary, primaries, nodes, counts, len(usable), required),
    )


def _sentence(
    verdict: str,
    primary: NodeVerdict | None,
    primaries: t.Sequence[NodeVerdict],
    nodes: t.Sequence[NodeVerdict],
    counts: t.Mapping[str, int],
    usable: int,
    required: int,
) -> str:
    parts = []
    if primary is not None:
        parts.append(f"primary {primary.name} is {primary.verdict}")
    elif primaries:
        parts.append(" and ".join(node.name for node in primaries) + " are both primaries")
    else:
        parts.append("no primary was found")
    parts.append(f"{usable} of {required} required replicas can be used")
    bad = [node for node in nodes if node.verdict != HEALTHY]
    if bad:
        named = [
            f"{node.name} ({', '.join(reason.code for reason in node.reasons) or node.verdict})" for node in bad[:3]
        ]
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        parts.append(f"look at {', '.join(named)}{more}")
    return f"The cluster is {verdict}: {'; '.join(parts)}."


def _candidates(nodes: t.Sequence[NodeVerdict], primaries: int) -> tuple[str, ...]:
    """Order the replicas that could be promoted: least to lose first. Two primaries leave nothing to decide here."""
    if primaries > 1:
        return ()
    alive = [
        node for node in nodes if node.role == REPLICA and node.seen != UNREACHABLE and node.same_server_as is None
    ]
    alive = [node for node in alive if node.facts.replay_lsn is not None and node.facts.timeline is not None]
    alive = [
        node
        for node in alive
        if node.facts.system_identifier is not None
        and not any(reason.code == "system_identifier_mismatch" for reason in node.reasons)
    ]
    if primaries == 1:
        alive = [node for node in alive if node.timeline_ok]
    elif alive:
        if len({node.facts.system_identifier for node in alive}) > 1:
            return ()
        # Without a primary the newest timeline leads, and only those that can follow it are candidates.
        lead = max(alive, key=lambda node: (node.facts.timeline or 0, _received(node)))
        if len(alive) > 1 and lead.facts.history is None and lead.facts.timeline != 1:
            return ()
        alive = [node for node in alive if _follows(node, lead)]
    replica_names = {node.name for node in nodes if node.role == REPLICA}
    most = max((_received(node) for node in alive), default=0)
    # While a primary writes, positions read milliseconds apart differ by chance; without one they are final.
    grain = RANK_BYTES if primaries else 1

    def rank(node: NodeVerdict) -> tuple[t.Any, ...]:
        cascading = node.upstream in replica_names
        return (
            node.sync_state not in ("sync", "quorum"),
            (most - _received(node)) // grain,
            bool(primaries) and (node.facts.receiver is None or node.facts.receiver.status != "streaming"),
            bool(node.facts.replay_paused),
            cascading,
            node.name,
        )

    return tuple(node.name for node in sorted(alive, key=rank))


def _received(node: NodeVerdict) -> int:
    return max(node.facts.receive_lsn or 0, node.facts.replay_lsn or 0)


def _follows(node: NodeVerdict, lead: NodeVerdict) -> bool:
    facts, leader = node.facts, lead.facts
    if facts.timeline is None or leader.timeline is None:
        return False
    if facts.timeline == leader.timeline:
        return node is lead or _same_history(facts, leader) is True
    return same_lineage(facts.timeline, _received(node), leader.timeline, leader.history) is True


def _topology(nodes: t.Sequence[NodeVerdict]) -> tuple[dict[str, t.Any], ...]:
    """Return the streaming tree; nodes whose upstream is not known, or is part of a loop, are roots."""
    children: dict[str | None, list[str]] = {}
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        children.setdefault(node.upstream if node.upstream in by_name else None, []).append(node.name)
    placed: set[str] = set()

    def tree(name: str) -> dict[str, t.Any]:
        placed.add(name)
        return {"name": name, "children": [tree(child) for child in children.get(name, ()) if child not in placed]}

    roots = sorted(children.get(None, ()), key=lambda name: (by_name[name].role != PRIMARY, name))
    forest = [tree(name) for name in roots]
    for node in nodes:
        if node.name not in placed:
            forest.append(tree(node.name))
    return tuple(forest)
