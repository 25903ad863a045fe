# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock on a cluster of real servers: one owner, a number that only grows, and what a server may do to it meanwhile."""

from __future__ import annotations

import asyncio
import time
import typing as t
from collections.abc import Iterator

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node, key_slot
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.lock import Keeper, Lock
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.observe import Fleet
from ansible_collections.headroom.scale.plugins.modules import redis_lock
from clusters.world import HOST, World

KEYS = ("headroom:{t}:lock", "headroom:{t}:fence")
SLOT = key_slot(KEYS[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("servers")) as one:
        one.cluster(primaries=3, replicas=0)
        yield one


@pytest.fixture(autouse=True)
def free(world: World) -> Iterator[None]:
    """Leave no lock behind."""
    yield
    for key in KEYS:
        home(world).call("DEL", key)


def home(world: World) -> t.Any:
    """Return the server that has the lock."""
    return world[world.owner(SLOT)[0]]


def lock(world: World, **options: t.Any) -> dict[str, t.Any]:
    """Run redis_lock on one lock."""
    return world.run(redis_lock, **{"name": "t", **options})


def on(world: World, work: t.Callable[[Fleet], t.Awaitable[t.Any]]) -> t.Any:
    """Do something with the connections to all servers."""

    async def run() -> t.Any:
        nodes = [Node(name, HOST, server.port) for name, server in world.servers.items()]
        async with Fleet(nodes, Login(tls=False)) as fleet:
            return await work(fleet)

    return asyncio.run(run())


def test_one_owner_at_a_time_and_each_has_a_greater_number(world: World) -> None:
    first = lock(world, token="one")
    assert (first["changed"], first["failed"]) == (True, False)
    refused = lock(world, token="two")
    assert (refused["errors"][0]["code"], refused["changed"]) == ("locked", False)
    again = lock(world, token="one")
    assert (again["changed"], again["fence"]) == (False, first["fence"])
    assert lock(world, token="one", state="extended")["fence"] == first["fence"]
    for state in ("extended", "released"):
        assert lock(world, token="two", state=state)["errors"][0]["code"] == "lost"
    assert lock(world, token="one", state="released")["changed"]
    assert lock(world, token="one", state="released")["changed"] is False
    assert lock(world, token="two")["fence"] > first["fence"]


def test_a_check_tells_what_the_run_does(world: World) -> None:
    foretold = lock(world, check=True, token="one")
    assert (foretold["changed"], "fence" in foretold) == (True, False)
    assert home(world).call("EXISTS", *KEYS) == 0
    first = lock(world, token="one")
    foretold = lock(world, check=True, token="one")
    assert (foretold["changed"], foretold["fence"]) == (False, first["fence"])
    assert lock(world, check=True, token="two")["errors"][0]["code"] == "locked"
    assert lock(world, check=True, token="one", state="released")["changed"]


@pytest.mark.parametrize("last", ["", "3", "99999999999999"])
def test_the_number_grows_whatever_became_of_the_last_one(world: World, last: str) -> None:
    first = lock(world, token="one")
    assert lock(world, token="one", state="released")["changed"]
    # as an eviction does, or a failover to a replica that had not heard of it, or an owner of long ago
    home(world).call("DEL", KEYS[1])
    if last:
        home(world).call("SET", KEYS[1], last)
    second = lock(world, token="two")
    assert second["fence"] > max(first["fence"], int(last or 0))
    assert home(world).call("GET", KEYS[1]) == str(second["fence"])


def test_an_owner_whose_number_was_evicted_hears_of_no_smaller_one(world: World) -> None:
    first = lock(world, token="one")
    home(world).call("DEL", KEYS[1])
    second = lock(world, token="one", state="extended")
    assert second["fence"] >= first["fence"]
    home(world).call("DEL", KEYS[1])
    assert lock(world, token="one")["fence"] >= second["fence"]


def test_a_server_whose_memory_is_full_still_gives_its_lock(world: World) -> None:
    server = home(world)
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    try:
        with pytest.raises(Exception, match="used memory > 'maxmemory'"):
            server.call("SET", KEYS[0], "x")
        assert lock(world, token="one")["changed"]
        assert lock(world, token="one", state="extended")["failed"] is False
        assert lock(world, token="one", state="released")["changed"]
    finally:
        server.call("CONFIG", "SET", "maxmemory", 0)


def test_who_waits_gets_the_lock_once_it_is_free(world: World) -> None:
    lock(world, token="one", ttl_s=1)
    began = time.monotonic()
    assert lock(world, token="two", wait_s=10)["changed"]
    assert 0.5 < time.monotonic() - began < 4


def test_the_lock_is_found_while_its_slot_moves(world: World) -> None:
    source = world.owner(SLOT)[0]
    target = next(name for name in world.servers if name != source)
    first = lock(world, token="one")
    world.open(SLOT, source, target, KEYS)
    try:
        # it is at the target, which is not the owner yet
        assert lock(world, token="one", state="extended")["fence"] == first["fence"]
        assert lock(world, token="two")["errors"][0]["code"] == "locked"
    finally:
        for name in (target, source):
            world[name].call("CLUSTER", "SETSLOT", SLOT, "NODE", world[target].id)
    assert world.owner(SLOT) == [target]
    assert lock(world, token="one", state="released")["changed"]


def test_a_keeper_extends_its_lock_and_frees_it(world: World) -> None:
    async def work(fleet: Fleet) -> list[int]:
        one = Lock(fleet, "t", 0.9)
        left = []
        async with Keeper(one, "one") as keeper:
            for _turn in range(4):
                await asyncio.sleep(0.5)
                keeper.check()
                left.append((await one.owner())[1])
        left.append((await one.owner())[1])
        return left

    *during, after = on(world, work)
    assert all(during)
    assert after == 0


def test_a_keeper_tells_that_its_lock_was_lost_and_leaves_that_of_another_one(world: World) -> None:
    async def work(fleet: Fleet) -> str | None:
        one = Lock(fleet, "t", 0.6)
        async with Keeper(one, "one") as keeper:
            home(world).call("SET", KEYS[0], "two", "PX", 60000)
            await asyncio.sleep(0.5)
            with pytest.raises(HeadroomError, match="Failed to keep lock t"):
                keeper.check()
        return t.cast("str | None", (await one.owner())[0])

    assert on(world, work) == "two"
