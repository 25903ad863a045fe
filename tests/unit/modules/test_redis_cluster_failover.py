# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A shard is handed over on real servers, and is not where that would lose something."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster import failover
from ansible_collections.headroom.scale.plugins.modules import redis_cluster_failover, redis_lock
from clusters.world import World, keys_in

# of n1, n2 and n3
SLOTS = (100, 6000, 12000)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("servers")) as one:
        one.cluster(primaries=3, replicas=1)
        yield one


@pytest.fixture
def shard(world: World) -> tuple[str, str]:
    """Return primary and replica of a shard."""
    return (primary := world.owner(SLOTS[0])[0]), ({"n1", "n4"} - {primary}).pop()


def fail_over(world: World, away_from: str, **options: t.Any) -> dict[str, t.Any]:
    """Run redis_cluster_failover."""
    return world.run(redis_cluster_failover, **{"away_from": away_from, "wait_s": 10, **options})


def test_a_shard_is_handed_over_with_all_it_has(world: World, shard: tuple[str, str]) -> None:
    primary, replica = shard
    keys = keys_in(SLOTS[0], 20)
    for key in keys:
        world[primary].call("SET", key, "x")
    foretold = fail_over(world, primary, check=True)
    assert (foretold["changed"], foretold["primary"], world.owner(SLOTS[0])) == (True, replica, [primary])
    result = fail_over(world, primary)
    assert (result["failed"], result["changed"], result["primary"]) == (False, True, replica)
    assert result["diff"] == foretold["diff"]
    assert world.owner(SLOTS[0]) == [replica]
    assert world[replica].call("MGET", *keys) == ["x"] * 20
    # the lock, which lies in this shard, went along and is free again
    assert fail_over(world, primary)["changed"] is False


def test_nothing_is_handed_over_while_another_run_has_the_lock(world: World, shard: tuple[str, str]) -> None:
    primary, _replica = shard
    assert world.run(redis_lock, name="c", token="other", ttl_s=60)["changed"]
    result = fail_over(world, primary, cluster="c")
    assert (result["errors"][0]["code"], result["changed"]) == ("locked", False)
    assert world.owner(SLOTS[0]) == [primary]
    assert world.run(redis_lock, name="c", token="other", state="released")["changed"]


@pytest.mark.parametrize("end", ["source", "target"])
@pytest.mark.parametrize("check", [True, False])
def test_nothing_is_handed_over_while_a_slot_of_the_shard_is_on_the_move(
    world: World, shard: tuple[str, str], end: str, check: bool
) -> None:
    primary, _replica = shard
    slot, source, target = (SLOTS[0], primary, "n2") if end == "source" else (SLOTS[1], "n2", primary)
    keys = keys_in(slot, 5)
    for key in keys:
        world[source].call("SET", key, "x")
    world.open(slot, source, target, keys[:3])
    try:
        result = fail_over(world, primary, check=check)
        assert (result["failed"], result["changed"], result["errors"][0]["code"]) == (True, False, "open_slots")
        assert f"slots {slot} are on the move between {primary} and n2" in result["msg"]
        assert world.owner(SLOTS[0]) == [primary]
        # other shards have no part in it
        assert fail_over(world, "n3", check=True)["changed"]
    finally:
        world[source].call("MIGRATE", "127.0.0.1", world[target].port, "", 0, 5000, "KEYS", *keys[3:])
        for name in (target, source):
            world[name].call("CLUSTER", "SETSLOT", slot, "NODE", world[target].id)
        # and back again
        world.open(slot, target, source, keys)
        for name in (source, target):
            world[name].call("CLUSTER", "SETSLOT", slot, "NODE", world[source].id)
        world.rest()


def test_what_was_begun_and_cannot_be_proven_is_told_as_a_change(
    world: World, shard: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "_handed_over", lambda *_given: False)
    result = fail_over(world, shard[0], wait_s=2)
    assert (result["failed"], result["changed"], result["errors"][0]["code"]) == (True, True, "not_handed_over")
    assert world.owner(SLOTS[0]) == [shard[1]]
    world.rest()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"away_from": "nobody"}, "Option 'away_from' has the value 'nobody'"),
        ({"wait_s": 0.5}, "Option 'wait_s' has the value 0.5"),
        ({"lock_wait_s": -1}, "Option 'lock_wait_s' has the value -1"),
        ({"cluster": "a{b}"}, "Option 'cluster' has the value 'a{b}'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(world: World, options: dict[str, t.Any], sentence: str) -> None:
    result = fail_over(world, options.pop("away_from", "n1"), **options)
    assert (result["failed"], result["changed"]) == (True, False)
    assert sentence in result["msg"]
