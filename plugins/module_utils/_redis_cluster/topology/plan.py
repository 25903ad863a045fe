# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a set of nodes needs to become, or stay, the declared cluster. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.redis.model import SLOTS, format_slots
from ..rebalance import plan as slots_plan
from ..rebalance.plan import Move, whole_shares
from ..state import Seen, gone, slots_of, strangers, title


@dataclass(frozen=True)
class Wanted:
    """One declared node. ``host`` is what it must not share with its own primary or replica."""

    name: str
    host: str
    zone: str
    weight: float | None = None


@dataclass(frozen=True)
class Step:
    """One change, in words that a person reads."""

    action: str
    node: str
    why: str
    # the primary to replicate, the id to forget, or the slots to assign
    primary: str | None = None
    id: str | None = None
    slots: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, t.Any]:
        """Return the step as a module's return value."""
        shown: dict[str, t.Any] = {"action": self.action, "node": self.node, "why": self.why}
        if self.primary:
            shown["primary"] = self.primary
        if self.slots:
            shown["slots"] = format_slots(self.slots)
        return shown

    def __str__(self) -> str:
        """Return the step as one line."""
        more = f" of {self.primary}" if self.primary else f" {format_slots(self.slots)}" if self.slots else ""
        return f"{self.action} {self.node}{more}: {self.why}"


@dataclass(frozen=True)
class Outcome:
    """The steps, and what makes them impossible, a sentence each."""

    steps: tuple[Step, ...] = ()
    errors: tuple[str, ...] = ()
    # name to the name of its primary, or None for a primary, once the steps are done
    tree: t.Mapping[str, str | None] = field(default_factory=dict)


def plan(
    wanted: t.Sequence[Wanted],
    seen: t.Mapping[str, Seen],
    replicas_per_primary: int,
    allow_same_host: bool = False,
    purge: bool = False,
) -> Outcome:
    """Return the steps from what was seen to what is wanted; none when it is so already.

    What owns slots stays a primary, and a replica stays where it is as long as its place is good: a failover is no drift.
    """
    nodes = {node.name: node for node in wanted}
    errors = [*_foreign(seen), *_versions(seen), *_split(seen), *_elsewhere(seen)]
    least = 3 * (replicas_per_primary + 1)
    if len(wanted) < least:
        errors.append(
            f"Option 'nodes' lists {len(wanted)} nodes: three primaries with {replicas_per_primary} replicas each need {least}. "
            "List more nodes, or lower replicas_per_primary."
        )
    if errors:
        return Outcome(errors=tuple(errors))
    tree, found = _tree(nodes, seen, replicas_per_primary, allow_same_host)
    if found:
        return Outcome(errors=tuple(found))
    drains, forgets, refused = _strangers(seen, purge)
    # what is emptied keeps its replicas until then
    steps = [
        *_meet(seen),
        *drains,
        *_detach(tree, seen),
        *_assign(nodes, tree, seen),
        *_replicate(tree, seen),
        *forgets,
    ]
    return Outcome(tuple(steps), tuple(refused), tree)


def joined(one: Seen) -> bool:
    """Say whether a node is in a cluster with anybody else, or owns slots."""
    return len(one.view.members) > 1 or bool(one.me.slots) if one.view else False


def _foreign(seen: t.Mapping[str, Seen]) -> list[str]:
    if not any(joined(one) for one in seen.values()):
        # a cluster is made of nothing but empty nodes
        full = [name for name, one in sorted(seen.items()) if one.keys]
    else:
        full = [name for name, one in sorted(seen.items()) if one.keys and not joined(one)]
    return [
        f"Node {name} on {seen[name].node.address} holds {seen[name].keys} keys and is in no cluster: its data would be lost. "
        "Empty it, or list another node."
        for name in full
    ]


def version_of(one: Seen) -> tuple[str, str]:
    """Return the engine and its major version."""
    if one.info.get("server_name") == "valkey" or "valkey_version" in one.info:
        return "valkey", one.info.get("valkey_version", "?").partition(".")[0]
    return "redis", one.info.get("redis_version", "?").partition(".")[0]


def _versions(seen: t.Mapping[str, Seen]) -> list[str]:
    """Refuse to join what differs; a cluster in the middle of an upgrade is left alone."""
    versions = {name: " ".join(version_of(one)) for name, one in sorted(seen.items())}
    members = {version for name, version in versions.items() if joined(seen[name])} or {next(iter(versions.values()))}
    others = [
        f"{name} runs {version}"
        for name, version in versions.items()
        if not joined(seen[name]) and version not in members
    ]
    if not others:
        return []
    return [
        f"{'; '.join(others)}, the cluster {' and '.join(sorted(members))}. Install the same major version everywhere."
    ]


def _split(seen: t.Mapping[str, Seen]) -> list[str]:
    """Refuse to merge two clusters that both have slots: one of the owners of each slot would lose its data."""
    owners = [name for name, one in sorted(seen.items()) if one.me.slots]
    groups: list[set[str]] = []
    for name in owners:
        known = set(seen[name].view.members if seen[name].view else ())
        group = {name, *(other for other in owners if seen[other].me.id in known)}
        if not any(group & other for other in groups):
            groups.append(group)
    if len(groups) < 2:
        return []
    shown = " and ".join(", ".join(sorted(group)) for group in groups)
    return [f"The nodes belong to different clusters that both own slots: {shown}. List the nodes of one of them."]


def _elsewhere(seen: t.Mapping[str, Seen]) -> list[str]:
    """Refuse a node whose own cluster would come along with it: its owners of slots are nobody's that the cluster knows."""
    anchor = _anchor(seen)
    known = {one.me.id for one in seen.values()} | set(seen[anchor].view.members if seen[anchor].view else ())
    errors = []
    for name, one in sorted(seen.items()):
        if name == anchor or one.view is None or _introduced(seen, anchor, name):
            continue
        owners = sorted(
            member.address
            for member in one.view.members.values()
            if member.id not in known and (member.slots or member.id == one.me.primary_id)
        )
        if owners:
            errors.append(
                f"Node {name} on {one.node.address} belongs to another cluster: it knows {', '.join(owners)}, which "
                f"{anchor} does not know. Take it out of that cluster with CLUSTER RESET, or list another node."
            )
    return errors


def _anchor(seen: t.Mapping[str, Seen]) -> str:
    """Return a node of the biggest group that knows one another, which is the cluster; a tie goes to who owns slots."""
    ids = {one.me.id for one in seen.values()}
    return max(sorted(seen), key=lambda name: (len(seen[name].me.slots) > 0, _known(seen[name], ids)))


def _introduced(seen: t.Mapping[str, Seen], anchor: str, name: str) -> bool:
    known, here = seen[anchor].view, seen[name].view
    return (
        known is not None
        and here is not None
        and seen[name].me.id in known.members
        and seen[anchor].me.id in here.members
    )


def _meet(seen: t.Mapping[str, Seen]) -> list[Step]:
    anchor = _anchor(seen)
    return [
        Step("meet", name, f"{anchor} does not know it", primary=None, id=anchor)
        for name in sorted(seen)
        if name != anchor and not _introduced(seen, anchor, name)
    ]


def _known(one: Seen, ids: set[str]) -> int:
    return len(ids & set(one.view.members if one.view else ()))


def _tree(
    nodes: t.Mapping[str, Wanted], seen: t.Mapping[str, Seen], replicas: int, same_host: bool
) -> tuple[dict[str, str | None], list[str]]:
    """Return who is a primary and who replicates whom."""
    names = {one.me.id: name for name, one in seen.items()}
    owners = [name for name in nodes if seen[name].me.slots]
    now = {name: names.get(seen[name].me.primary_id or "") for name in nodes if not seen[name].me.is_primary}
    count = max(len(owners), len(nodes) // (replicas + 1))
    # a replica whose primary owns slots is one; whoever else is there may become either
    settled = {name: primary for name, primary in now.items() if primary in owners}
    free = [name for name in nodes if name not in owners and name not in settled]
    primaries = list(owners)
    spare = _spare(nodes, settled, owners, replicas)
    free += spare[: max(0, count - len(primaries) - len([name for name in free if nodes[name].weight != 0]))]
    for name in _spread([name for name in free if nodes[name].weight != 0], nodes, primaries, count - len(primaries)):
        primaries.append(name)
    others = [name for name in nodes if name not in primaries]
    # also those of primaries that have no slots yet: else they would change places in each run
    stays = {name: now[name] or "" for name in others if now.get(name) in primaries}
    for hosts_differ, zones_differ in ((True, True), (True, False), (False, True), (False, False)):
        if not hosts_differ and not same_host:
            break

        def good(name: str, primary: str, hosts: bool = hosts_differ, zones: bool = zones_differ) -> bool:
            one, other = nodes[name], nodes[primary]
            return (not hosts or one.host != other.host) and (not zones or one.zone != other.zone)

        placed = place(others, primaries, replicas, stays, good)
        if placed is not None:
            return {**dict.fromkeys(primaries), **placed}, []
    hosts = sorted({nodes[name].host for name in nodes})
    return {}, [
        f"{len(nodes)} nodes on the hosts {', '.join(hosts)} cannot be placed so that no primary shares its host with a replica of "
        "its own. Add hosts, or set allow_same_host."
    ]


def _spare(
    nodes: t.Mapping[str, Wanted], settled: t.Mapping[str, str], owners: t.Sequence[str], replicas: int
) -> list[str]:
    """Return the replicas that their primaries have too many of, those with a weight first: they were primaries once."""
    found: list[str] = []
    for primary in owners:
        here = sorted(
            (name for name, at in settled.items() if at == primary), key=lambda name: (not nodes[name].weight, name)
        )
        found += here[: max(0, len(here) - replicas)]
    return [name for name in found if nodes[name].weight != 0]


def _spread(free: t.Sequence[str], nodes: t.Mapping[str, Wanted], taken: t.Sequence[str], count: int) -> list[str]:
    """Choose primaries, each time on the host and in the zone that has the fewest, in the order of the declaration."""
    chosen: list[str] = []
    for _turn in range(max(0, count)):
        there = [*taken, *chosen]
        left = [name for name in free if name not in chosen]
        if not left:
            break
        chosen.append(
            min(
                left,
                key=lambda name: (
                    sum(nodes[other].host == nodes[name].host for other in there),
                    sum(nodes[other].zone == nodes[name].zone for other in there),
                    left.index(name),
                ),
            )
        )
    return chosen


def place(
    replicas: t.Sequence[str],
    primaries: t.Sequence[str],
    each: int,
    stays: t.Mapping[str, str],
    good: t.Callable[[str, str], bool],
) -> dict[str, str] | None:
    """Give each replica a primary so that all are good and evenly spread, moving as few as possible; None if that cannot be.

    Augmenting paths in a bipartite graph (Kuhn): a replica takes a place that another one can leave for a better one.
    """
    if not primaries:
        return None if replicas else {}
    # with more replicas than places, the rest is spread evenly
    most = max(each, -(-len(replicas) // len(primaries)))
    for limit in range(most, len(replicas) + 1):
        placed = {name: primary for name, primary in stays.items() if name in replicas and good(name, primary)}
        for primary in primaries:
            over = sorted(name for name, other in placed.items() if other == primary)[limit:]
            for name in over:
                del placed[name]

        def find(name: str, visited: set[str], placed: dict[str, str] = placed, limit: int = limit) -> bool:
            order = sorted(primaries, key=lambda primary: (sum(other == primary for other in placed.values()), primary))
            for primary in order:
                if primary in visited or not good(name, primary):
                    continue
                visited.add(primary)
                here = [other for other, at in sorted(placed.items()) if at == primary]
                if len(here) < limit:
                    placed[name] = primary
                    return True
                for other in here:
                    if find(other, visited, placed, limit):
                        placed[name] = primary
                        return True
            return False

        if all(find(name, set()) for name in sorted(set(replicas) - placed.keys())):
            return _even(placed, primaries, each, good)
    return None


def _even(
    placed: dict[str, str], primaries: t.Sequence[str], each: int, good: t.Callable[[str, str], bool]
) -> dict[str, str]:
    """Move a replica from who has more than enough to who has too few."""
    for _turn in range(len(placed)):
        counts = {primary: sum(at == primary for at in placed.values()) for primary in primaries}
        moves = [
            (name, primary)
            for primary in sorted(primaries, key=lambda primary: (counts[primary], primary))
            for name, at in sorted(placed.items())
            if counts[primary] < each < counts[at] and good(name, primary)
        ]
        if not moves:
            break
        name, primary = moves[0]
        placed[name] = primary
    return placed


def _detach(tree: t.Mapping[str, str | None], seen: t.Mapping[str, Seen]) -> list[Step]:
    return [
        Step("detach", name, "it is a replica and is wanted as a primary")
        for name, primary in sorted(tree.items())
        if primary is None and not seen[name].me.is_primary
    ]


def _assign(nodes: t.Mapping[str, Wanted], tree: t.Mapping[str, str | None], seen: t.Mapping[str, Seen]) -> list[Step]:
    """Divide the slots that nobody owns where a cluster is being formed; whatever else is missing is for the data to decide."""
    primaries = [name for name in nodes if tree.get(name, "") is None]
    weights = {name: 1.0 if nodes[name].weight is None else float(nodes[name].weight or 0.0) for name in primaries}
    if not sum(weights.values()) > 0:
        weights = dict.fromkeys(primaries, 1.0)
    held = {name: len(seen[name].me.slots) for name in primaries}
    slots_now = slots_of(seen)
    free = sorted(set(slots_now.uncovered) - set(slots_now.open))
    if any(member.slots for one in seen.values() if one.view for member in one.view.members.values()):
        # of one that was left half formed: no member has a key, none was not asked, and somebody is without slots yet
        waits = any(weights[name] > 0 and not held[name] for name in primaries)
        if strangers(seen) or not waits or any(one.keys != 0 for one in seen.values()):
            return []
    counts = whole_shares(SLOTS, weights, held)
    steps, first = [], 0
    for name in primaries:
        slots = tuple(free[first : first + max(0, counts[name] - held[name])])
        first += len(slots)
        if slots:
            steps.append(Step("assign", name, "nobody owns them", slots=slots))
    return steps


def _replicate(tree: t.Mapping[str, str | None], seen: t.Mapping[str, Seen]) -> list[Step]:
    ids = {name: one.me.id for name, one in seen.items()}
    steps = []
    for name, primary in sorted(tree.items()):
        if primary is None or seen[name].me.primary_id == ids[primary]:
            continue
        why = (
            "it is in nobody's place yet"
            if seen[name].me.is_primary
            else "its place is not good or its primary has enough"
        )
        steps.append(Step("replicate", name, why, primary=primary))
    return steps


def _strangers(seen: t.Mapping[str, Seen], purge: bool) -> tuple[list[Step], list[Step], list[str]]:
    """Return the members to empty, those to forget, and what makes that impossible."""
    here = {(one.me.host, one.me.port) for one in seen.values()} | {
        (one.node.host, one.node.port) for one in seen.values()
    }
    drains, forgets, refused = [], [], []
    slots = slots_of(seen)
    owned = slots.owners.keys() | slots.disputed.keys()
    for member in sorted(strangers(seen).values(), key=lambda member: (member.address, member.id)):
        # servers take the address away from a member that another one has replaced there
        replaced = gone(member) and ("noaddr" in member.flags or (member.host, member.port) in here)
        lost = tuple(sorted(member.slots - owned))
        if lost and gone(member):
            refused.append(
                f"Member {title(member)} does not answer and owns slots {format_slots(lost)}. Bring it back, or fail over to a "
                "replica of it; its data is nowhere else."
            )
        elif replaced:
            forgets.append(Step("forget", title(member), "another node has its address", id=member.id))
        elif purge and gone(member):
            forgets.append(Step("forget", title(member), "it is not declared and does not answer", id=member.id))
        elif purge:
            if lost:
                drains.append(Step("drain", title(member), "it is not declared", id=member.id, slots=lost))
            forgets.append(Step("forget", title(member), "it is not declared", id=member.id))
    return drains, forgets, refused


def takers(
    wanted: t.Iterable[Wanted], tree: t.Mapping[str, str | None], seen: t.Mapping[str, Seen]
) -> dict[str, float]:
    """Return who can take the slots of members that are emptied, with weights: who is a primary, and is to stay one."""
    found = {
        node.name: 1.0 if node.weight is None else float(node.weight)
        for node in wanted
        if node.name in tree and tree[node.name] is None and seen[node.name].me.is_primary
    }
    return found if sum(found.values()) > 0 else dict.fromkeys(found, 1.0)


def drained(owners: t.Mapping[int, str], weights: t.Mapping[str, float], source: str) -> tuple[Move, ...]:
    """Return where the slots of a member go that is emptied; nowhere when there is nobody to take them."""
    if not weights:
        return ()
    everybody = {**dict.fromkeys(owners.values(), 0.0), **weights}
    moves = slots_plan.plan(owners, everybody, threshold=1.0).moves
    return tuple(move for move in moves if move.source == source)
