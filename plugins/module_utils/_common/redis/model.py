# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Slots, nodes and what one node says of its cluster. Pure."""

from __future__ import annotations

import binascii
import typing as t
from dataclasses import dataclass, field

SLOTS = 16384


@dataclass(frozen=True)
class Node:
    """A declared node: the name people use and where it listens."""

    name: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Member:
    """One line of CLUSTER NODES: a member as another one, or itself, sees it."""

    id: str
    host: str
    port: int
    bus_port: int
    flags: frozenset[str]
    primary_id: str | None
    config_epoch: int
    linked: bool
    slots: frozenset[int] = frozenset()
    # slots that this member moves: to whom it migrates them, from whom it imports them
    migrating: t.Mapping[int, str] = field(default_factory=dict)
    importing: t.Mapping[int, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def is_primary(self) -> bool:
        """Whether it is a primary, with or without slots."""
        return "master" in self.flags

    @property
    def failed(self) -> bool:
        """Whether the one that says so holds it for failed, by agreement of the primaries."""
        return "fail" in self.flags

    @property
    def suspected(self) -> bool:
        """Whether the one that says so does not reach it, and the others were not asked yet."""
        return "fail?" in self.flags


@dataclass(frozen=True)
class View:
    """The cluster as one node sees it."""

    me: Member
    members: t.Mapping[str, Member]

    @property
    def owners(self) -> dict[int, str]:
        """Slot to the id of its owner."""
        return {slot: member.id for member in self.members.values() for slot in member.slots}

    def replicas(self, primary_id: str) -> list[Member]:
        """Return the replicas of a primary, by id."""
        found = (member for member in self.members.values() if member.primary_id == primary_id)
        return sorted(found, key=lambda member: member.id)


def parse_view(text: str) -> View:
    """Read the answer to CLUSTER NODES.

    :raises ValueError: when it is not such an answer.
    """
    members: dict[str, Member] = {}
    me = None
    for line in text.splitlines():
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 8:
            raise ValueError(f"not a line of CLUSTER NODES: {line[:80]!r}")
        member = _member(fields)
        members[member.id] = member
        if "myself" in member.flags:
            me = member
    if me is None:
        raise ValueError("no line of CLUSTER NODES says myself")
    return View(me, members)


def _member(fields: t.Sequence[str]) -> Member:
    # id ip:port@bus[,hostname[,name=value…]] flags primary ping pong epoch link slots…
    address, _comma, _names = fields[1].partition(",")
    address, _at, bus = address.partition("@")
    host, _colon, port = address.rpartition(":")
    slots: set[int] = set()
    migrating: dict[int, str] = {}
    importing: dict[int, str] = {}
    for item in fields[8:]:
        if item.startswith("["):
            slot, mark, other = item[1:-1].partition("->-")
            if mark:
                migrating[int(slot)] = other
                continue
            slot, mark, other = item[1:-1].partition("-<-")
            if not mark:
                raise ValueError(f"not a moving slot: {item!r}")
            importing[int(slot)] = other
            continue
        first, _dash, last = item.partition("-")
        slots.update(range(int(first), int(last or first) + 1))
    return Member(
        id=fields[0],
        host=host,
        port=int(port),
        bus_port=int(bus or 0),
        flags=frozenset(flag for flag in fields[2].split(",") if flag != "noflags"),
        primary_id=None if fields[3] == "-" else fields[3],
        config_epoch=int(fields[6]),
        linked=fields[7] == "connected",
        slots=frozenset(slots),
        migrating=migrating,
        importing=importing,
    )


def ranges(slots: t.Iterable[int]) -> list[tuple[int, int]]:
    """Return slots as (first, last) pairs, in order."""
    pairs: list[tuple[int, int]] = []
    for slot in sorted(set(slots)):
        if pairs and pairs[-1][1] == slot - 1:
            pairs[-1] = (pairs[-1][0], slot)
        else:
            pairs.append((slot, slot))
    return pairs


def format_slots(slots: t.Iterable[int]) -> str:
    """Return slots as people write them: ``0-5460, 8000``."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges(slots))


def key_slot(key: str | bytes) -> int:
    """Return the slot of a key: of its hash tag where it has one that is not empty, by CRC-16/XMODEM as the specification has it."""
    data = key.encode() if isinstance(key, str) else key
    start = data.find(b"{")
    if start >= 0:
        end = data.find(b"}", start + 1)
        if end > start + 1:
            data = data[start + 1 : end]
    return binascii.crc_hqx(data, 0) % SLOTS


def parse_info(text: str) -> dict[str, str]:
    """Return an answer to INFO, or to CLUSTER INFO, by name."""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in pairs if colon}
