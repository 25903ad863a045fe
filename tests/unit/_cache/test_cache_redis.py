# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layer of Redis when a server fails in between; what it does with real ones is tested in the lab."""

from __future__ import annotations

import asyncio
import time
import types
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cache.guard import Guard, Limits
from ansible_collections.headroom.scale.plugins.module_utils._cache.model import Targets
from ansible_collections.headroom.scale.plugins.module_utils._cache.redis import RedisLayer, _offsets
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import NodeError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node

NODE = Node("r1", "192.0.2.1", 6379)
TAG = b"tag:user-1"


class Failing:
    """A server with one set, which fails when it is asked whether keys exist."""

    def __init__(self) -> None:
        self.members = {b"a", b"b"}

    async def pipeline(self, commands: t.Sequence[tuple[t.Any, ...]], raw: bool = False) -> list[t.Any]:
        """Answer."""
        (verb, _name, *names), *_more = commands
        if verb == "EXISTS":
            raise NodeError("Failed to ask r1: it is gone.", code="closed")
        before = len(self.members)
        self.members = self.members - set(names) if verb == "SREM" else self.members | set(names)
        return [abs(len(self.members) - before)]


def test_names_stay_in_the_set_of_a_tag_when_it_cannot_be_seen_whether_their_keys_are_back() -> None:
    server = Failing()
    fleet: t.Any = types.SimpleNamespace(client=lambda _node: server, clustered=False, primaries=[NODE])
    layer = RedisLayer([NODE], Login(), Targets(tags=("user-1",)), "tag:{tag}")
    with pytest.raises(NodeError):
        asyncio.run(layer._prune(fleet, NODE, TAG, [b"a", b"b"]))
    assert server.members == {b"a", b"b"}


def test_deletions_that_are_held_back_go_on_when_nothing_answers_any_more() -> None:
    class Slow:
        asked = 0

        async def call(self, *_command: t.Any) -> None:
            self.asked += 1
            if self.asked > 1:
                raise NodeError("Failed to ask r1: it is gone.", code="closed")
            await asyncio.sleep(0.02)

    async def work() -> float:
        guard = Guard(Limits(max_latency_ms=1.0), [t.cast("t.Any", Slow())])
        began_s = time.monotonic()
        await asyncio.wait_for(guard.run(guard.pace(1)), 30)
        return time.monotonic() - began_s

    assert asyncio.run(work()) > 0


def test_what_replicas_have_is_read_of_those_that_are_connected() -> None:
    info = (
        "role:master\r\nslave0:ip=192.0.2.2,port=6379,state=online,offset=90,lag=0\r\n"
        "slave1:ip=192.0.2.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\nmaster_repl_offset:100\r\n"
    )
    assert _offsets(info) == (100, [90])
