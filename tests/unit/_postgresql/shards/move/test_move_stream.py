# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the stream of a move comes from, what it says when it does not come, and whose leaves a move may drop."""

from __future__ import annotations

import asyncio
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import Access
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Member,
    Table,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import FORWARD, REVERSE, Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.mover import Mover
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.stream import Stream

pytest.importorskip("psycopg")

GROUP = Group("users", "hash", "bigint", (Table("public.orders", "user_id"),), tuple(Bucket(n) for n in range(64)))
MOVE = Move("m1", GROUP, 7, "a", "b")
ACCESS = Access("member")


class Servers:
    """Two members, of which one has a subscription, and what they are asked to do."""

    def __init__(
        self, conninfo: str | None = None, is_working: bool = True, owner: str = "a", parent: str | None = None
    ):
        self.members = {name: Member(name, f"{name}.example") for name in "ab"}
        self.timeout_s = 10.0
        self.conninfo, self.is_working, self.owner, self.parent = conninfo, is_working, owner, parent
        self.done: list[tuple[str, str]] = []
        self.errors, self.enabled, self.wal_status = 0, True, "reserved"

    async def rows(self, shard: str, query: t.Any, params: t.Any = None, **how: t.Any) -> list[dict[str, t.Any]]:
        text = query if isinstance(query, str) else query.as_string(None)
        if "FROM pg_subscription" in text:
            found = {
                "enabled": self.enabled,
                "slot": "s",
                "conninfo": self.conninfo,
                "errors": self.errors,
                "is_working": self.is_working,
            }
            return [] if self.conninfo is None else [found]
        if "FROM pg_replication_slots" in text:
            return [{"active_pid": None, "wal_status": self.wal_status}]
        if "FROM headroom.bucket" in text:
            return [{"shard": self.owner}]
        if "AS facts" in text:
            return [{"facts": {"parent": self.parent, "kind": "r"}}]
        self.done.append((shard, text))
        return []


def stream(servers: Servers) -> Stream:
    return Stream(t.cast("t.Any", servers), ACCESS, MOVE, REVERSE)


def test_a_subscription_follows_its_source_to_another_address() -> None:
    servers = Servers(ACCESS.conninfo(Member("b", "old.example")))
    assert asyncio.run(stream(servers).is_astray())
    assert asyncio.run(stream(servers).readdress())
    ((shard, text),) = servers.done
    assert shard == "a"
    assert text.startswith('ALTER SUBSCRIPTION "headroom_m1_reverse" CONNECTION ')
    assert "host=b.example" in text


@pytest.mark.parametrize("conninfo", [None, ACCESS.conninfo(Member("b", "b.example"))])
def test_a_subscription_that_is_right_or_not_there_stays(conninfo: str | None) -> None:
    servers = Servers(conninfo)
    assert not asyncio.run(stream(servers).readdress())
    assert servers.done == []


@pytest.mark.parametrize(("is_working", "says"), [(False, "has no worker on b"), (True, "faster than the target")])
def test_a_subscription_without_a_worker_is_not_called_slow(is_working: bool, says: str) -> None:
    async def behind(_timeout_s: float, _purpose: str) -> float:
        raise HeadroomError("Failed to catch up.", code="behind")

    servers = t.cast("t.Any", Servers("host=b.example", is_working))
    settings = t.cast("t.Any", type("Settings", (), {"catch_up_timeout_s": -1.0}))
    mover = Mover(
        t.cast(
            "t.Any", type("Context", (), {"members": servers, "access": ACCESS, "journal": None, "settings": settings})
        ),
        MOVE,
    )
    mover.forward.beat = behind  # type: ignore[method-assign]
    with pytest.raises(HeadroomError, match=says):
        asyncio.run(mover._caught_up(mover.forward))


@pytest.mark.parametrize(
    ("way", "enabled", "wal_status", "says"),
    [
        (FORWARD, True, "lost", r"slot headroom_m1_forward is lost\. It begins anew with the next run\."),
        (
            REVERSE,
            True,
            "lost",
            r"slot headroom_m1_reverse is lost\. So the bucket cannot be taken back from b; end its move with",
        ),
        (REVERSE, False, "lost", r"is off\. So the bucket cannot be taken back"),
        (REVERSE, False, "reserved", r"subscription headroom_m1_reverse is off\. Enable it on a, and run again\."),
    ],
)
def test_what_is_to_be_done_about_a_stream_that_ended(way: str, enabled: bool, wal_status: str, says: str) -> None:
    servers = Servers("host=b.example")
    servers.enabled, servers.wal_status = enabled, wal_status
    with pytest.raises(HeadroomError, match=says):
        asyncio.run(Stream(t.cast("t.Any", servers), ACCESS, MOVE, way).require_applying())


def test_errors_of_a_time_before_are_not_those_of_now() -> None:
    servers = Servers("host=b.example")
    servers.errors = 500
    back = stream(servers)
    asyncio.run(back.require_applying())
    servers.errors += 5
    asyncio.run(back.require_applying())
    servers.errors += 1
    with pytest.raises(HeadroomError, match=r"on a on a\.example:5432: 6 errors of subscription headroom_m1_reverse"):
        asyncio.run(back.require_applying())


@pytest.mark.parametrize(
    ("owner", "parent", "belongs"),
    [("b", "orders", True), ("b", None, False), ("a", "orders", False), ("a", None, False)],
)
def test_leaves_that_another_move_has_brought_are_not_dropped(owner: str, parent: str | None, belongs: bool) -> None:
    servers = t.cast("t.Any", Servers(owner=owner, parent=parent))
    mover = Mover(t.cast("t.Any", type("Context", (), {"members": servers, "access": ACCESS, "journal": None})), MOVE)
    assert asyncio.run(mover._belongs_to_target()) is belongs
