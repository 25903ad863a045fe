# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What was seen of the nodes of a cluster, and what follows from all of it together. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from .._common.errors import HeadroomError
from .._common.redis.model import SLOTS, Member, Node, View, format_slots


@dataclass(frozen=True)
class Seen:
    """What one node says: its view of the cluster and its figures, or why it says nothing."""

    node: Node
    view: View | None = None
    info: t.Mapping[str, str] = field(default_factory=dict)
    keys: int | None = None
    error: HeadroomError | None = None

    @property
    def me(self) -> Member:
        """The node as it sees itself.

        :raises HeadroomError: when it said nothing.
        """
        if self.view is None:
            raise self.error or HeadroomError(f"Failed to observe {self.node.name}: nothing was read.")
        return self.view.me

    def number(self, name: str) -> int:
        """Return a figure of INFO as a whole number; 0 when the server does not have it."""
        try:
            return int(self.info.get(name, "0"))
        except ValueError:
            return 0


def keys_of(info: t.Mapping[str, str]) -> int:
    """Return the number of keys of database 0, the only one that a cluster has."""
    fields = dict(part.partition("=")[::2] for part in info.get("db0", "").split(",") if part)
    return int(fields.get("keys", 0))


def require_all(seen: t.Mapping[str, Seen]) -> None:
    """Require that every node answered.

    :raises HeadroomError: naming the first that did not, with all of them as ``errors``.
    """
    failed = [one.error for one in seen.values() if one.error is not None]
    if failed:
        more = f" {len(failed) - 1} more nodes failed too." if len(failed) > 1 else ""
        errors = [error.as_dict() for error in failed[1:]]
        raise HeadroomError(f"{failed[0]}{more}", code=failed[0].code, result={"errors": errors}, **failed[0].facts)
    for one in seen.values():
        if one.info.get("cluster_enabled") != "1":
            raise HeadroomError(
                f"Failed to use {one.node.name} on {one.node.address}: it is a standalone server with {one.keys} keys. "
                "Set cluster-enabled on a server of its own, or name another port.",
                code="standalone",
                node=one.node.name,
            )
    _require_distinct(seen)


def _require_distinct(seen: t.Mapping[str, Seen]) -> None:
    """Require that no server is listed twice: under two names it would be its own replica, and its slots would count once."""
    ids: dict[str, Seen] = {}
    for one in seen.values():
        if one.view is None:
            continue
        other = ids.setdefault(one.me.id, one)
        if other is not one:
            raise HeadroomError(
                f"Failed to use {other.node.name} on {other.node.address} and {one.node.name} on {one.node.address}: they are the "
                f"same member of a cluster, {one.me.id}. List each server once in option 'nodes'.",
                code="same_server",
                node=one.node.name,
            )


@dataclass(frozen=True)
class Slots:
    """Who owns which slot, by the word of the owners themselves, and what is open."""

    owners: t.Mapping[int, str]
    # slot to the members that claim it, where that is not exactly one
    disputed: t.Mapping[int, tuple[str, ...]]
    migrating: t.Mapping[int, t.Mapping[str, str]]
    importing: t.Mapping[int, t.Mapping[str, str]]
    # slot to the member that has it by the word of others: it was not asked, since it is not declared
    taken: t.Mapping[int, str] = field(default_factory=dict)

    @property
    def open(self) -> list[int]:
        """Slots that some node says are on the move, in order."""
        return sorted({*self.migrating, *self.importing})

    @property
    def uncovered(self) -> list[int]:
        """Slots that nobody owns, in order."""
        owned = self.owners.keys() | self.disputed.keys() | self.taken.keys()
        return [slot for slot in range(SLOTS) if slot not in owned]


def strangers(seen: t.Mapping[str, Seen]) -> dict[str, Member]:
    """Return id to member for those that somebody knows and that were not declared, with all slots that anybody gives them.

    Who is gone for some and there for others counts as there.
    """
    ids = {one.me.id for one in seen.values() if one.view is not None}
    found: dict[str, Member] = {}
    for one in seen.values():
        for member in one.view.members.values() if one.view else ():
            if member.id in ids or "handshake" in member.flags:
                continue
            other = found.get(member.id, member)
            found[member.id] = replace(member if gone(other) else other, slots=other.slots | member.slots)
    return found


def gone(member: Member) -> bool:
    """Say whether a member does not answer any more, or has lost its address to another one."""
    return member.failed or "noaddr" in member.flags


def title(member: Member) -> str:
    """Return what people know a member by: its address, or its id when it has none any more."""
    return member.address if member.host and member.port else member.id


def slots_of(seen: t.Mapping[str, Seen]) -> Slots:
    """Return who owns what; names are those of the nodes, ids stay where a member is not declared."""
    names = {one.me.id: name for name, one in seen.items() if one.view is not None}
    owners: dict[int, str] = {}
    disputed: dict[int, tuple[str, ...]] = {}
    migrating: dict[int, dict[str, str]] = {}
    importing: dict[int, dict[str, str]] = {}
    for name, one in seen.items():
        if one.view is None:
            continue
        # most often nobody else says so too, and whole sets are quicker than their slots
        for slot in owners.keys() & one.me.slots if owners else ():
            disputed[slot] = (*disputed.get(slot, (owners[slot],)), name)
        owners.update(dict.fromkeys(one.me.slots, name))
        for slot, other in one.me.migrating.items():
            migrating.setdefault(slot, {})[name] = names.get(other, other)
        for slot, other in one.me.importing.items():
            importing.setdefault(slot, {})[name] = names.get(other, other)
    taken = {
        slot: title(member)
        for member in strangers(seen).values()
        if not gone(member)
        for slot in member.slots - owners.keys()
    }
    return Slots(
        owners={slot: name for slot, name in owners.items() if slot not in disputed} if disputed else owners,
        disputed={slot: tuple(sorted(found)) for slot, found in disputed.items()},
        migrating=migrating,
        importing=importing,
        taken=taken,
    )


def disagreements(seen: t.Mapping[str, Seen]) -> list[str]:
    """Return, a sentence each, in what the nodes' views of the cluster differ."""
    views = {name: one.view for name, one in seen.items() if one.view is not None}
    truth = slots_of(seen)
    ids = {one.me.id: name for name, one in seen.items() if one.view is not None}
    found = []
    for name, view in sorted(views.items()):
        unknown = sorted(other for other_id, other in ids.items() if other_id not in view.members)
        if unknown:
            found.append(f"{name} does not know {', '.join(unknown)}.")
            continue
        # most often all is alike, and sets compare faster than slots
        if all(view.members[other_id].slots == seen[other].me.slots for other_id, other in ids.items()):
            continue
        owners = {slot: ids.get(owner, owner) for slot, owner in view.owners.items()}
        wrong = [slot for slot, owner in truth.owners.items() if owners.get(slot) != owner]
        if wrong:
            found.append(f"{name} holds others for the owners of slots {format_slots(wrong)}.")
    return found


def calm(seen: t.Mapping[str, Seen]) -> bool:
    """Say whether every node answers, holds the cluster for working and agrees with the others.

    A member that is dead and not declared is nothing to wait for: whether it has slots shows in what is uncovered.
    """
    if any(one.error is not None or one.view is None for one in seen.values()):
        return False
    # a node that was just introduced refuses commands until it has heard enough
    if any(one.info.get("cluster_state") != "ok" for one in seen.values()):
        return False
    ids = {one.me.id for one in seen.values()}
    members = [member for one in seen.values() if one.view for member in one.view.members.values()]
    down = any(member.failed and member.id in ids for member in members)
    return not down and not slots_of(seen).uncovered and not disagreements(seen)


def quiet(seen: t.Mapping[str, Seen]) -> bool:
    """Say whether the nodes know each other as far as they were introduced, so that the next steps can be planned."""
    if any(one.error is not None or one.view is None for one in seen.values()):
        return False
    ids = {one.me.id for one in seen.values()}
    rest = {}
    for name, one in seen.items():
        members = one.view.members if one.view else {}
        if any("handshake" in member.flags for member in members.values()):
            return False
        if len(members) > 1 and not ids <= set(members):
            return False
        # who was reset is alone and holds the cluster for down until it is introduced: nothing to wait for
        if len(members) > 1 or one.me.slots:
            rest[name] = one
    return calm(rest) or not slots_of(seen).owners


def stale(seen: t.Mapping[str, Seen]) -> dict[str, list[int]]:
    """Return primary to the slots that it imports and knows the owner of no more: a server takes no news of such slots.

    So it stays, for a primary that died in the middle of a move, until the new owner is told to it.
    """
    found: dict[str, list[int]] = {}
    if not any(one.view and one.me.importing for one in seen.values()):
        return found
    owners = slots_of(seen).owners
    for name, one in seen.items():
        if one.view is None or not one.me.is_primary:
            continue
        for slot in sorted(one.me.importing):
            owner = owners.get(slot, name)
            known = one.view.members.get(seen[owner].me.id)
            if owner != name and (known is None or slot not in known.slots):
                found.setdefault(name, []).append(slot)
    return found


def serves(seen: t.Mapping[str, Seen], slot: int) -> bool:
    """Say whether a slot has an owner that holds the cluster for working, and so answers for it."""
    owner = slots_of(seen).owners.get(slot)
    return owner is not None and seen[owner].info.get("cluster_state") == "ok"


def blocked(seen: t.Mapping[str, Seen], slot: int) -> bool:
    """Say whether a slot is not served for a reason that does not pass: slots without an owner, or with two.

    Two owners of another slot keep no cluster down.
    """
    slots = slots_of(seen)
    return not serves(seen, slot) and bool(slots.uncovered or slot in slots.disputed or stale(seen))
