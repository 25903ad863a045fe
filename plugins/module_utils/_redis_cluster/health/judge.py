# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The verdict: a pure function from what was seen and what is asked to verdicts with reasons. It fails closed."""

from __future__ import annotations

import dataclasses
import typing as t
from collections import Counter

from ..._common.redis.model import SLOTS, Member, Node, View, format_slots
from ..._common.units import format_bytes, format_s
from ..._common.verdict import DEGRADED, HEALTHY, UNHEALTHY, UNREACHABLE, VERDICTS, Reason
from . import memory as memory_module
from .model import PRIMARY, REPLICA, REQUIRED, SETTINGS, ClusterVerdict, Growth, Limits, NodeFacts, NodeVerdict, Shard

FRAGMENTATION_MIN_BYTES = 64 * 1024 * 1024
"""Below so much used memory the fragmentation ratio says nothing."""
HIT_RATIO_MIN_LOOKUPS = 100
"""With fewer lookups the hit ratio says nothing."""

_NOWHERE = ("noaddr", "handshake")


def worst(reasons: t.Iterable[Reason]) -> str:
    """Return the verdict that follows from ``reasons``."""
    return max((reason.severity for reason in reasons), key=VERDICTS.index, default=HEALTHY)


class Picture:
    """What the nodes say of each other, put together: who belongs to the cluster, and who owns which slot."""

    def __init__(
        self, nodes: t.Sequence[Node], seen: t.Mapping[str, NodeFacts], memory: memory_module.Memory | None = None
    ) -> None:
        """Take the declared nodes, what was seen of them, and what is remembered."""
        self.nodes = {node.name: node for node in sorted(nodes, key=lambda node: node.name)}
        self.seen = {name: seen.get(name, NodeFacts(name)) for name in self.nodes}
        self.memory = memory or {}
        all_views = {name: facts.view for name, facts in self.seen.items() if facts.view is not None}
        self.outsiders = {
            name
            for name, view in all_views.items()
            if len(all_views) > 1
            and 2 * sum(view.me.id in other.members for other in all_views.values() if other is not view)
            < len(all_views) - 1
        }
        self.views: dict[str, View] = {name: view for name, view in all_views.items() if name not in self.outsiders}
        self.members = self._members()
        self.ids = {name: self._id(name, all_views.get(name)) for name in self.nodes}
        self.names = {known: name for name, known in self.ids.items() if known is not None}
        self.owned, self.disputed = self._slots()
        self.uncovered = frozenset(range(SLOTS)).difference(*self.owned.values())
        self.open = frozenset(slot for view in self.views.values() for slot in (*view.me.migrating, *view.me.importing))

    def name(self, member_id: str) -> str:
        """Return the name of a member: the declared one, else its address."""
        if member_id in self.names:
            return self.names[member_id]
        member = self.members.get(member_id)
        return member.address if member is not None and member.host else member_id[:12]

    def _members(self) -> dict[str, Member]:
        """Return the members by id: as they describe themselves, else as the newest description has them."""
        found: dict[str, Member] = {}
        for view in self.views.values():
            for member in view.members.values():
                if member.id not in found or member.config_epoch > found[member.id].config_epoch:
                    found[member.id] = member
        for view in self.views.values():
            # a node does not know its own address before another one told it
            known = found[view.me.id]
            found[view.me.id] = dataclasses.replace(view.me, host=view.me.host or known.host)
        return found

    def _id(self, name: str, view: View | None) -> str | None:
        """Return the id of a declared node; one that says nothing is found by its address, or remembered."""
        if view is not None:
            return view.me.id
        node = self.nodes[name]
        hosts = (node.host, *self.seen[name].addresses)
        for member in self.members.values():
            if member.port == node.port and member.host in hosts and not member.flags.intersection(_NOWHERE):
                return member.id
        before = self.memory.get(name)
        return before.id if before is not None and before.id in self.members else None

    def _slots(self) -> tuple[dict[str, frozenset[int]], frozenset[int]]:
        """Return the slots of each owner, by the owners' own word, and the slots that several of them claim."""
        owner: dict[int, Member] = {}
        disputed = set()
        mine = {view.me.id for view in self.views.values()}
        for view in self.views.values():
            for slot in view.me.slots if view.me.is_primary else ():
                if slot in owner:
                    disputed.add(slot)
                if slot not in owner or owner[slot].config_epoch < view.me.config_epoch:
                    owner[slot] = view.me
        owned: dict[str, set[int]] = {}
        for slot, member in owner.items():
            owned.setdefault(member.id, set()).add(slot)
        # of those that could not be asked, what most others say
        votes: dict[int, Counter[str]] = {}
        for view in self.views.values():
            for member in view.members.values():
                if member.id not in mine:
                    for slot in member.slots - owner.keys():
                        votes.setdefault(slot, Counter())[member.id] += 1
        for slot, count in votes.items():
            owned.setdefault(max(sorted(count), key=count.__getitem__), set()).add(slot)
        return {known: frozenset(slots) for known, slots in owned.items()}, frozenset(disputed)

    def said_of(self, member_id: str, flag: str) -> list[str]:
        """Return the nodes that see a flag on a member."""
        views = self.views.items()
        return [name for name, view in views if member_id in view.members and flag in view.members[member_id].flags]

    def host(self, name: str) -> str | None:
        """Return the host of a declared node, as the cluster knows it."""
        member = self.members.get(self.ids[name] or "")
        if member is not None and member.host:
            return member.host
        return next(iter(self.seen[name].addresses), None)

    def most(self, values: t.Mapping[str, str | None]) -> str | None:
        """Return the value that most nodes have; among equals that of the first node."""
        known = [value for value in values.values() if value is not None]
        return Counter(known).most_common(1)[0][0] if known else None


def judge_nodes(picture: Picture, limits: Limits) -> tuple[NodeVerdict, ...]:
    """Judge every node of one observation.

    :returns: verdicts, sorted by node name; ``verdict`` equals ``seen``.
    """
    judge = _Judge(picture, limits)
    return tuple(judge.node(name) for name in picture.nodes)


class _Judge:
    """One judgement of the nodes: holds what they are compared with."""

    def __init__(self, picture: Picture, limits: Limits) -> None:
        self.picture = picture
        self.limits = limits
        seen = picture.seen
        self.settings = {
            setting: picture.most({name: facts.settings.get(setting) for name, facts in seen.items()})
            for setting in SETTINGS
        }
        servers = {name: f"{facts.engine} {facts.version}" if facts.version else None for name, facts in seen.items()}
        self.servers, self.server = servers, picture.most(servers)

    def node(self, name: str) -> NodeVerdict:
        """Judge one node."""
        picture, facts = self.picture, self.picture.seen[name]
        member = picture.members.get(picture.ids[name] or "")
        role = facts.role
        if role is None and member is not None:
            role = PRIMARY if member.is_primary else REPLICA
        primary = picture.name(member.primary_id) if member and member.primary_id and role == REPLICA else None
        lag_bytes = lag_s = None
        growth = self._growth(name)
        reasons = self._flags(name)
        if facts.fault is not None:
            severity = UNHEALTHY if facts.fault.code == "loading" else UNREACHABLE
            reasons.append(Reason(facts.fault.code, facts.fault.message, severity))
        elif facts == NodeFacts(name, addresses=facts.addresses):
            reasons.append(Reason("not_observed", f"{name} was not observed.", UNREACHABLE))
        else:
            reasons += [*self._read(facts), *self._membership(facts), *self._slots(facts), *self._server(facts)]
            reasons += [*self._memory(facts), *self._counts(facts, growth), *self._drift(facts)]
            if role == REPLICA:
                lag_bytes, lag_s = lag_of(facts)
                reasons += self._replica(facts, primary, lag_bytes, lag_s)
            elif role == PRIMARY:
                reasons += self._primary(facts, member)
        grade = worst(reasons)
        order = sorted(reasons, key=lambda reason: (-VERDICTS.index(reason.severity), reason.code))
        return NodeVerdict(
            node=picture.nodes[name],
            facts=facts,
            id=picture.ids[name],
            role=role,
            primary=primary,
            seen=grade,
            verdict=grade,
            reasons=tuple(order),
            lag_bytes=lag_bytes,
            lag_s=lag_s,
            growth=growth,
        )

    def _growth(self, name: str) -> Growth:
        facts = self.picture.seen[name]
        since = memory_module.grown(self.picture.memory.get(name), facts)
        counts = since if "keyspace_hits" in since else memory_module.counters_of(facts)
        hits, misses = counts.get("keyspace_hits"), counts.get("keyspace_misses")
        lookups = None if hits is None or misses is None else hits + misses
        ratio = hits / lookups if lookups and hits is not None else None
        return Growth(since.get("evicted_keys"), since.get("slowlog"), ratio, lookups)

    # ---- what the others say of it

    def _flags(self, name: str) -> list[Reason]:
        known = self.picture.ids[name]
        if known is None:
            return []
        failed = self.picture.said_of(known, "fail")
        suspected = self.picture.said_of(known, "fail?")
        if failed:
            text = f"{name} has failed, say {', '.join(failed)}; look at it and at its cluster bus port."
            return [Reason("marked_failed", text, UNHEALTHY, failed)]
        if suspected:
            text = f"{name} does not answer {', '.join(suspected)} on the cluster bus; look at its bus port."
            return [Reason("suspected", text, DEGRADED, suspected)]
        return []

    # ---- what it says itself

    def _read(self, facts: NodeFacts) -> list[Reason]:
        name = facts.name
        if facts.number("loading"):
            left = facts.number("loading_eta_seconds")
            return [Reason("loading", f"{name} loads its data; wait until it has.", UNHEALTHY, left)]
        if facts.info and facts.info.get("cluster_enabled") != "1":
            text = f"{name} is a standalone server; set cluster-enabled, or take it off the list."
            return [Reason("cluster_disabled", text, UNHEALTHY)]
        missing = {command: facts.not_read[command] for command in REQUIRED if command in facts.not_read}
        if facts.info and facts.role is None:
            missing["INFO"] = "it tells no role"
        if not missing:
            return []
        why = "; ".join(f"{command}: {reply}" for command, reply in missing.items())
        text = f"{name} does not show what is needed to judge it ({why}); grant the login +info and +cluster."
        return [Reason("facts_missing", text, UNHEALTHY, sorted(missing))]

    def _membership(self, facts: NodeFacts) -> list[Reason]:
        picture, name = self.picture, facts.name
        if name in picture.outsiders:
            text = f"{name} is not known to most of the other nodes; let it join with CLUSTER MEET."
            return [Reason("not_a_member", text, UNHEALTHY)]
        view = picture.views.get(name)
        if view is None:
            return []
        reasons = []
        others = {other: seen.me.id for other, seen in picture.views.items() if other != name}
        unknown = [other for other, known in others.items() if known not in view.members]
        if unknown:
            text = f"{name} does not know {', '.join(unknown)}; CLUSTER MEET from {name} mends that."
            reasons.append(Reason("member_unknown", text, DEGRADED, unknown))
        linked = {other: view.members[known].linked for other, known in others.items() if known in view.members}
        cut = [other for other, up in linked.items() if not up]
        if cut:
            text = f"{name} has no cluster bus link to {', '.join(cut)}; look at the bus port between them."
            reasons.append(Reason("bus_link_down", text, DEGRADED, cut))
        wrong: set[int] = set()
        for known, member in view.members.items():
            wrong |= picture.owned.get(known, frozenset()) ^ member.slots
        if wrong:
            slots = format_slots(wrong)
            text = f"{name} has another view of who owns slots {slots} than their owners; wait, or look at the cluster bus."
            reasons.append(Reason("owners_disagree", text, DEGRADED, slots))
        if facts.cluster and facts.cluster.get("cluster_state") != "ok":
            state = facts.cluster.get("cluster_state", "unknown")
            text = f"{name} refuses queries: its cluster state is {state}; mend what else is reported."
            reasons.append(Reason("cluster_state", text, UNHEALTHY, state, "ok"))
        return reasons

    def _slots(self, facts: NodeFacts) -> list[Reason]:
        view = self.picture.views.get(facts.name)
        if view is None or not (view.me.migrating or view.me.importing):
            return []
        parts = []
        for verb, moves in (
            ("migrates slots {} to {}", view.me.migrating),
            ("imports slots {} from {}", view.me.importing),
        ):
            peers: dict[str, list[int]] = {}
            for slot, peer in moves.items():
                peers.setdefault(self.picture.name(peer), []).append(slot)
            parts += [verb.format(format_slots(slots), peer) for peer, slots in sorted(peers.items())]
        text = f"{facts.name} {' and '.join(parts)}; let the move end, or end it with CLUSTER SETSLOT."
        return [Reason("slots_open", text, DEGRADED, format_slots([*view.me.migrating, *view.me.importing]))]

    def _server(self, facts: NodeFacts) -> list[Reason]:
        """Judge what a server says of its persistence."""
        name, info, primary = facts.name, facts.info, facts.role == PRIMARY
        reasons = []
        if info.get("aof_last_write_status", "ok") != "ok":
            text = f"{name} could not write its append-only file and refuses writes; look at its disk."
            reasons.append(Reason("aof_write_failed", text, UNHEALTHY, info["aof_last_write_status"], "ok"))
        if info.get("rdb_last_bgsave_status", "ok") != "ok":
            # with save points, a failed save makes a primary refuse writes
            stops = primary and facts.settings.get("save", "unknown") != ""
            text = f"{name} could not save its data set{' and may refuse writes' if stops else ''}; look at its log and disk."
            severity = UNHEALTHY if stops else DEGRADED
            reasons.append(Reason("rdb_save_failed", text, severity, info["rdb_last_bgsave_status"], "ok"))
        if info.get("aof_last_bgrewrite_status", "ok") != "ok":
            text = f"{name} could not rewrite its append-only file, which grows; look at its log and disk."
            reasons.append(Reason("aof_rewrite_failed", text, DEGRADED, info["aof_last_bgrewrite_status"], "ok"))
        return reasons

    def _memory(self, facts: NodeFacts) -> list[Reason]:
        name, limits = facts.name, self.limits
        reasons = []
        ratio = facts.memory_ratio
        if ratio is not None and ratio > limits.max_memory_ratio:
            full = ratio >= 1 and facts.settings.get("maxmemory-policy") == "noeviction"
            text = (
                f"{name} uses {ratio:.0%} of its maxmemory of {format_bytes(facts.number('maxmemory'))}"
                f"{' and refuses writes' if full else ''}; raise maxmemory, or move slots away."
            )
            severity = UNHEALTHY if full else DEGRADED
            reasons.append(Reason("memory_ratio", text, severity, round(ratio, 3), limits.max_memory_ratio))
        fragmentation, used = facts.fragmentation_ratio, facts.number("used_memory") or 0
        if (
            fragmentation is not None
            and fragmentation > limits.max_fragmentation_ratio
            and used >= FRAGMENTATION_MIN_BYTES
        ):
            text = f"{name} holds {fragmentation:g} times the memory that it uses; turn on activedefrag, or restart it."
            limit = limits.max_fragmentation_ratio
            reasons.append(Reason("fragmentation_ratio", text, DEGRADED, fragmentation, limit))
        return reasons

    def _counts(self, facts: NodeFacts, growth: Growth) -> list[Reason]:
        name, limits = facts.name, self.limits
        reasons = []
        if growth.evictions is not None and growth.evictions > limits.max_evictions:
            text = f"{name} evicted {growth.evictions} keys since the last look; raise maxmemory, or max_evictions."
            reasons.append(Reason("evictions", text, DEGRADED, growth.evictions, limits.max_evictions))
        if growth.slowlog is not None and growth.slowlog > limits.max_slowlog_growth:
            text = f"{name} logged {growth.slowlog} slow commands since the last look; see SLOWLOG GET."
            reasons.append(Reason("slowlog_growth", text, DEGRADED, growth.slowlog, limits.max_slowlog_growth))
        ratio, least = growth.hit_ratio, limits.min_hit_ratio
        if least is not None and ratio is not None and ratio < least and (growth.lookups or 0) >= HIT_RATIO_MIN_LOOKUPS:
            text = f"{name} had {ratio:.0%} of the keys that were asked for; look at evictions and times to live."
            reasons.append(Reason("hit_ratio", text, DEGRADED, round(ratio, 3), least))
        return reasons

    def _drift(self, facts: NodeFacts) -> list[Reason]:
        name = facts.name
        if facts.info.get("cluster_enabled") == "0":
            return []
        reasons = []
        mine = facts.settings
        other = {key: self.settings[key] for key in SETTINGS if key in mine and mine[key] != self.settings[key]}
        if other:
            pairs = ", ".join(f"{key} is {mine[key]!r} and not {value!r}" for key, value in other.items())
            text = f"{name} is set up unlike most nodes: {pairs}; use CONFIG SET and CONFIG REWRITE."
            reasons.append(Reason("config_drift", text, DEGRADED, {key: mine[key] for key in other}, other))
        server = self.servers[name]
        if server is not None and server != self.server:
            text = f"{name} runs {server} and most nodes run {self.server}; end the upgrade."
            reasons.append(Reason("version_drift", text, DEGRADED, server, self.server))
        return reasons

    def _primary(self, facts: NodeFacts, member: Member | None) -> list[Reason]:
        picture, name = self.picture, facts.name
        if member is None or name not in picture.views:
            return []
        if member.id not in picture.owned:
            text = f"{name} is a primary that owns no slots; rebalance, or make it a replica."
            return [Reason("no_slots", text, DEGRADED, 0)]
        return []

    def _replica(
        self, facts: NodeFacts, primary: str | None, lag_bytes: int | None, lag_s: float | None
    ) -> list[Reason]:
        name, info, limits = facts.name, facts.info, self.limits
        reasons = []
        if facts.number("master_sync_in_progress"):
            left = facts.number("master_sync_left_bytes")
            text = f"{name} copies the whole data set from {primary or 'its primary'}; wait until it has."
            reasons.append(Reason("full_sync", text, UNHEALTHY, left))
        elif info.get("master_link_status") != "up":
            down_s = facts.number("master_link_down_since_seconds")
            text = f"{name} has no replication link to {primary or 'its primary'}; look at both logs and at masterauth."
            reasons.append(Reason("replica_link_down", text, UNHEALTHY, down_s if down_s != -1 else None))
        elif lag_bytes is None or lag_s is None:
            text = f"How far {name} is behind is not known, as its primary {primary or ''} could not be compared with."
            reasons.append(Reason("lag_unknown", " ".join(text.split()), UNHEALTHY))
        if lag_bytes is not None and lag_bytes > limits.max_lag_bytes:
            text = f"{name} has {format_bytes(lag_bytes)} of {primary} to process; look at its load and network."
            reasons.append(Reason("lag_bytes", text, UNHEALTHY, lag_bytes, limits.max_lag_bytes))
        if lag_s is not None and lag_s > limits.max_lag_s:
            text = f"{name} is {format_s(lag_s)} behind {primary}; look at its load and network."
            reasons.append(Reason("lag_s", text, UNHEALTHY, round(lag_s, 3), limits.max_lag_s))
        backlog = self.picture.seen[primary].number("repl_backlog_size") if primary in self.picture.seen else None
        if lag_bytes is not None and backlog is not None and lag_bytes > backlog:
            text = f"{name} is further behind {primary} than its backlog reaches; raise repl-backlog-size."
            reasons.append(Reason("backlog_exceeded", text, DEGRADED, lag_bytes, backlog))
        host = self.picture.host(name)
        if (
            not limits.allow_same_host
            and primary in self.picture.nodes
            and host is not None
            and host == self.picture.host(primary)
        ):
            text = f"{name} is on the host {host} of its primary {primary}; move one of them."
            reasons.append(Reason("same_host", text, DEGRADED, host))
        return reasons


def lag_of(facts: NodeFacts) -> tuple[int | None, float | None]:
    """Return how far a replica is behind, in bytes and in seconds, ``None`` where it is not known."""
    lag = facts.lag
    lag_bytes = None if lag is None else max(0, lag.primary_offset - lag.replica_offset)
    if facts.info.get("master_link_status") != "up":
        down_s = facts.number("master_link_down_since_seconds")
        return lag_bytes, None if down_s is None or down_s < 0 else float(down_s)
    if lag is None:
        return None, None
    if lag_bytes == 0:
        return 0, 0.0
    if lag.caught_up_s is not None:
        return lag_bytes, lag.caught_up_s
    return lag_bytes, float(max(lag.window_s, lag.last_io_s or 0, lag.ack_age_s or 0))


def conclude(picture: Picture, nodes: t.Sequence[NodeVerdict], limits: Limits) -> ClusterVerdict:
    """Judge the cluster from the reported verdicts of its nodes."""
    by_name = {node.name: node for node in nodes}
    shards = tuple(_shard(picture, known, by_name, limits) for known in _owners(picture))
    errors = [*_coverage(picture), *_members(picture)]
    served = 0
    for shard in shards:
        primary = by_name.get(shard.primary)
        if primary is not None and primary.usable:
            served += len(shard.slots)
        else:
            state = primary.verdict if primary is not None else "not declared"
            first = f"; {shard.candidates[0]} could take over" if shard.candidates else ""
            text = f"The primary {shard.primary} of slots {format_slots(shard.slots)} is {state}{first}."
            errors.append(Reason("primary_unusable", text, UNHEALTHY, [shard.primary]))
        usable = len(shard.usable_replicas)
        if usable < limits.min_replicas_per_primary:
            text = (
                f"The primary {shard.primary} has {usable} of {limits.min_replicas_per_primary} required replicas that can "
                "be used; mend or add one."
            )
            errors.append(Reason("replicas_missing", text, UNHEALTHY, usable, limits.min_replicas_per_primary))
    errors.sort(key=lambda error: -VERDICTS.index(error.severity))
    if any(error.severity == UNHEALTHY for error in errors):
        verdict = UNHEALTHY
    else:
        verdict = DEGRADED if errors or any(node.verdict != HEALTHY for node in nodes) else HEALTHY
    pool = {name for shard in shards for name in (shard.primary, *shard.usable_replicas)}
    read_pool = tuple(sorted(name for name in pool if name in by_name and by_name[name].usable))
    return ClusterVerdict(
        verdict=verdict,
        nodes=tuple(nodes),
        shards=shards,
        read_pool=read_pool,
        errors=tuple(errors),
        uncovered=picture.uncovered,
        disputed=picture.disputed,
        open=picture.open,
        served=served,
        summary=_summary(picture, verdict, nodes, shards, served),
    )


def _owners(picture: Picture) -> list[str]:
    return sorted(picture.owned, key=lambda known: min(picture.owned[known]))


def _shard(picture: Picture, known: str, by_name: t.Mapping[str, NodeVerdict], limits: Limits) -> Shard:
    """Return the shard of a primary by its id."""
    primary = picture.name(known)
    replicas = sorted(picture.name(member.id) for member in picture.members.values() if member.primary_id == known)
    usable = [name for name in replicas if name in by_name and by_name[name].usable]
    verdicts = [by_name[name].verdict if name in by_name else UNREACHABLE for name in (primary, *replicas)]
    if verdicts[0] in (UNHEALTHY, UNREACHABLE) or len(usable) < limits.min_replicas_per_primary:
        verdict = UNHEALTHY
    else:
        verdict = HEALTHY if all(one == HEALTHY for one in verdicts) else DEGRADED
    # half a copy must not take over, and one that is told not to does not
    standing = [
        by_name[name]
        for name in replicas
        if name in by_name
        and by_name[name].facts.number("slave_repl_offset")
        and not by_name[name].facts.number("master_sync_in_progress")
        and not by_name[name].facts.number("loading")
        and "nofailover" not in picture.members[by_name[name].id or ""].flags
    ]
    standing.sort(key=lambda node: (-(node.facts.number("slave_repl_offset") or 0), not node.usable, node.name))
    return Shard(
        primary=primary,
        replicas=tuple(replicas),
        usable_replicas=tuple(usable),
        slots=picture.owned[known],
        candidates=tuple(node.name for node in standing),
        verdict=verdict,
    )


def _coverage(picture: Picture) -> list[Reason]:
    if not picture.views:
        return [Reason("no_view", "No node showed its view of the cluster.", UNHEALTHY)]
    reasons = []
    if picture.uncovered:
        slots = format_slots(picture.uncovered)
        text = f"Nobody owns slots {slots}; give them to a primary with CLUSTER ADDSLOTS."
        reasons.append(Reason("slots_uncovered", text, UNHEALTHY, len(picture.uncovered), 0))
    if picture.disputed:
        slots = format_slots(picture.disputed)
        claims = sorted(name for name, view in picture.views.items() if view.me.slots & picture.disputed)
        text = f"{' and '.join(claims)} each claim slots {slots}; look at the cluster bus between them."
        reasons.append(Reason("slots_disputed", text, UNHEALTHY, len(picture.disputed), 0))
    return reasons


def _members(picture: Picture) -> list[Reason]:
    """Judge what the members are to each other: epochs, and members that nobody declared."""
    reasons = []
    epochs: dict[int, list[str]] = {}
    for known in picture.owned:
        epochs.setdefault(picture.members[known].config_epoch, []).append(picture.name(known))
    for epoch, names in sorted(epochs.items()):
        if len(names) > 1:
            text = f"{' and '.join(sorted(names))} share the configuration epoch {epoch}; it should part them within seconds."
            reasons.append(Reason("epoch_collision", text, DEGRADED, epoch))
    for known, member in sorted(picture.members.items(), key=lambda item: picture.name(item[0])):
        if known in picture.names or "handshake" in member.flags:
            continue
        name = picture.name(known)
        failed = ", which has failed," if picture.said_of(known, "fail") else ""
        text = f"The cluster has the member {name}{failed} that is not in nodes; declare it, or remove it with CLUSTER FORGET."
        reasons.append(Reason("undeclared_member", text, DEGRADED, name))
    return reasons


def _summary(
    picture: Picture, verdict: str, nodes: t.Sequence[NodeVerdict], shards: t.Sequence[Shard], served: int
) -> str:
    by_name = {node.name: node for node in nodes}
    primaries = sum(shard.primary in by_name and by_name[shard.primary].usable for shard in shards)
    replicas, usable = sum(len(shard.replicas) for shard in shards), sum(len(shard.usable_replicas) for shard in shards)
    text = (
        f"The cluster is {verdict}: {served} of {SLOTS} slots are served; {primaries} of {len(shards)} primaries and "
        f"{usable} of {replicas} replicas can be used"
    )
    look = [
        f"{node.name} ({', '.join(dict.fromkeys(reason.code for reason in node.reasons[:3]))})"
        for node in sorted(nodes, key=lambda node: (-VERDICTS.index(node.verdict), node.name))
        if node.verdict != HEALTHY
    ]
    more = f" and {len(look) - 5} more" if len(look) > 5 else ""
    return f"{text}; look at {', '.join(look[:5])}{more}." if look else f"{text}."
