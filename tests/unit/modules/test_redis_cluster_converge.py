# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that shape a cluster, on real servers in states that were met and must lose nothing."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.modules import redis_cluster
from clusters.world import World, keys_in, wait


@pytest.fixture(name="world")
def world_fixture(tmp_path: pathlib.Path) -> t.Iterator[World]:
    """Give a world without servers."""
    with World(tmp_path) as world:
        yield world


def fill(world: World, *names: str, each: int = 20) -> int:
    """Put keys into primaries and return how many there are."""
    count = 0
    for name in names:
        slots = sorted(world[name].me.slots)
        for slot in slots[:: max(1, len(slots) // each)][:each]:
            world[name].call("SET", keys_in(slot, 1)[0], "1")
            count += 1
    return count


def test_a_member_of_another_cluster_is_refused(world: World) -> None:
    world.cluster(primaries=3, replicas=0, prefix="a")
    world.cluster(primaries=1, replicas=1, prefix="b")
    world.alone("x")
    world["x"].call("CLUSTER", "MEET", "127.0.0.1", world["b1"].port)
    wait(lambda: any(member.slots for member in world["x"].view().members.values()), "x to hear of b1")
    count = fill(world, "a1", "b1")

    # one is a replica of it, the other a primary without slots
    for name in ("b2", "x"):
        for check in (True, False):
            result = world.run(
                redis_cluster,
                check,
                nodes=world.nodes("a1", "a2", "a3", name),
                replicas_per_primary=0,
                allow_same_host=True,
            )
            assert (result["failed"], result["changed"]) == (True, False)
            assert f"Node {name} on 127.0.0.1:{world[name].port} belongs to another cluster" in result["msg"]
            assert f"127.0.0.1:{world['b1'].port}" in result["msg"]
    assert sum(world.keys("a1", "b1").values()) == count
    assert len(world["a1"].view().members) == 3
