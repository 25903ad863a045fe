# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that shape a cluster, on real servers in states that were met and must lose nothing."""

from __future__ import annotations

import pathlib
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import Client
from ansible_collections.headroom.scale.plugins.modules import redis_cluster, redis_cluster_rebalance
from clusters.world import HOST, NODE_TIMEOUT_MS, World, keys_in, wait

# a slot of each third, and the one that the lock of the default name lies in
FIRST, SECOND, LAST, LOCK = 7, 6000, 16000, 1151


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


def put(world: World, name: str, slot: int, count: int) -> list[str]:
    """Put counters into a slot and return their keys."""
    keys = keys_in(slot, count)
    for number, key in enumerate(keys):
        world[name].call("SET", key, number)
    return keys


def form(world: World, check: bool = False, replicas: int = 0, **params: t.Any) -> dict[str, t.Any]:
    """Run redis_cluster."""
    return world.run(redis_cluster, check, **{"replicas_per_primary": replicas, "allow_same_host": True, **params})


def balance(world: World, check: bool = False, **params: t.Any) -> dict[str, t.Any]:
    """Run redis_cluster_rebalance."""
    return world.run(redis_cluster_rebalance, check, journal=str(world.directory / "journal"), **params)


def foretold(check: dict[str, t.Any], run: dict[str, t.Any]) -> None:
    """Require that a run did what check mode said of it."""
    assert check["changed"], check
    for part in ("changed", "plan", "healed", "nodes", "diff"):
        assert run[part] == check[part], (part, run[part], check[part])


def whole(world: World, slots: dict[int, list[str]], *names: str) -> None:
    """Require that each of these slots has one owner, which holds all of its counters."""
    for slot, keys in slots.items():
        (owner,) = world.owner(slot, names)
        assert [world[owner].call("GET", key) for key in keys] == [str(number) for number in range(len(keys))]


def test_a_member_of_another_cluster_is_refused(world: World) -> None:
    world.cluster(primaries=3, replicas=0, prefix="a", rest=False)
    world.cluster(primaries=1, replicas=1, prefix="b")
    world.rest(["a1", "a2", "a3"])
    world.alone("x")
    world["x"].call("CLUSTER", "MEET", HOST, world["b1"].port)
    wait(lambda: any(member.slots for member in world["x"].view().members.values()), "x to hear of b1")
    count = fill(world, "a1", "b1")

    # one is a replica of it, the other a primary without slots
    for name in ("b2", "x"):
        for check in (True, False):
            result = form(world, check, nodes=world.nodes("a1", "a2", "a3", name))
            assert (result["failed"], result["changed"]) == (True, False)
            assert f"Node {name} on {HOST}:{world[name].port} belongs to another cluster" in result["msg"]
            assert f"{HOST}:{world['b1'].port}" in result["msg"]
    assert sum(world.keys("a1", "b1").values()) == count
    assert len(world["a1"].view().members) == 3


def test_slots_of_a_member_that_is_not_declared_are_left_alone_and_moved_with_purge(world: World) -> None:
    world.cluster(
        primaries=4, replicas=0, slots=[range(5000), range(5000, 11000), range(11000, LAST), range(LAST, 16384)]
    )
    slots = {LAST: put(world, "n4", LAST, 10), LAST + 1: put(world, "n4", LAST + 1, 3)}
    declared = world.nodes("n1", "n2", "n3")

    # that it owns slots is no reason to wait, nor to change anything
    for check in (True, False):
        result = form(world, check, nodes=declared)
        assert (result["failed"], result["changed"]) == (False, False)
        assert f"{HOST}:{world['n4'].port}: not declared, owns slots 16000-16383" in result["diff"]["after"]

    # a run that emptied it was killed
    world.open(LAST, "n4", "n1", slots[LAST][:2])
    for check in (True, False):
        result = form(world, check, nodes=declared)
        assert (result["failed"], result["changed"]) == (True, False)
        assert f"{HOST}:{world['n4'].port}" in result["msg"]
        assert "purge" in result["msg"]
    assert world.owner(LAST) == ["n4"]

    check = form(world, True, nodes=declared, purge=True)
    assert [step["action"] for step in check["plan"]] == ["drain", "forget"]
    foretold(check, form(world, nodes=declared, purge=True))
    whole(world, slots, "n1", "n2", "n3")
    assert len(world["n4"].view().members) == 1
    assert form(world, nodes=declared, purge=True)["changed"] is False


def test_a_member_that_is_emptied_keeps_its_replica_until_then(world: World) -> None:
    world.cluster(
        primaries=4, replicas=1, slots=[range(5000), range(5000, 11000), range(11000, LAST), range(LAST, 16384)]
    )
    slots = {LAST: put(world, "n4", LAST, 5)}
    declared = world.nodes(*(name for name in world.servers if name != "n4"))

    check = form(world, True, replicas=1, nodes=declared, purge=True)
    assert [step["action"] for step in check["plan"]] == ["drain", "replicate", "forget"]
    foretold(check, form(world, replicas=1, nodes=declared, purge=True))
    whole(world, slots, *(name for name in world.servers if name != "n4"))


def test_a_slot_that_nobody_owns_is_not_given_away_before_all_were_asked(world: World) -> None:
    world.cluster(primaries=4, replicas=0)
    keys = put(world, "n4", LAST, 5)
    world.open(LAST, "n4", "n1", keys[:1])
    world.lose(LAST)

    result = form(world, nodes=world.nodes("n1", "n2", "n3"))
    assert (result["failed"], result["changed"]) == (True, False)
    assert f"{HOST}:{world['n4'].port}" in result["msg"]
    assert world.owner(LAST) == []


def test_one_server_under_two_names_is_refused(world: World) -> None:
    world.alone("n1", "n2", "n3")
    nodes = [*world.nodes(), {"name": "n4", "host": "localhost", "port": world["n2"].port}]

    for check in (True, False):
        result = form(world, check, nodes=nodes)
        assert (result["failed"], result["changed"]) == (True, False)
        assert [
            word for word in ("n2 on", "n4 on localhost", "List each server once") if word not in result["msg"]
        ] == []
    assert len(world["n1"].view().members) == 1


def test_a_dead_member_that_is_not_declared_is_nothing_to_wait_for(world: World) -> None:
    world.cluster(primaries=3, replicas=0)
    world.alone("x", "y")
    world["x"].call("CLUSTER", "MEET", HOST, world["n1"].port)
    wait(lambda: len(world["n3"].view().members) == len(world["x"].view().members) == 4, "x to be known")
    world["x"].kill()
    wait(lambda: any(member.failed for member in world["n1"].view().members.values()), "x to be failed")
    declared = world.nodes("n1", "n2", "n3", "y", y={"weight": 0})

    check = form(world, True, nodes=declared)
    begun = time.monotonic()
    foretold(check, form(world, nodes=declared))
    assert time.monotonic() - begun < 15
    assert f"{HOST}:{world['x'].port}: not declared" in check["diff"]["after"]
    declared = world.nodes("n1", "n2", "n3", "y", n1={"weight": 0.99})
    result = balance(world, nodes=declared, threshold=0)
    assert (result["failed"], result["changed"]) == (False, True)


def test_the_former_id_of_a_node_that_was_replaced_is_forgotten(world: World) -> None:
    world.cluster(primaries=3, replicas=1)
    former = world["n6"].id
    world["n6"].kill()
    world["n6"].wipe()
    time.sleep(NODE_TIMEOUT_MS / 500)
    world["n6"].start()
    others = [world[name] for name in ("n1", "n2", "n3", "n4", "n5")]
    wait(
        lambda: all("noaddr" in one.view().members[former].flags for one in others),
        "all others to find another one there",
    )

    check = form(world, True, replicas=1)
    assert former in check["diff"]["before"]
    run = form(world, replicas=1)
    foretold(check, run)
    assert {"action": "forget", "node": former, "why": "another node has its address"} in run["plan"]
    assert balance(world)["changed"] is False
    assert all(former not in world[name].view().members for name in world.servers)


@pytest.mark.parametrize("module", [form, balance])
def test_a_cluster_that_is_down_for_a_slot_without_owner_is_healed(
    world: World, module: t.Callable[..., dict[str, t.Any]]
) -> None:
    world.cluster(primaries=3, replicas=0)
    slots = {slot: put(world, "n1", slot, 3) for slot in (FIRST, LOCK)}
    world.lose(*slots)

    check, run = module(world, True), module(world)
    for part in ("changed", "plan", "healed", "diff"):
        assert run[part] == check[part], part
    assert [(row["slots"], row["action"], row["source"]) for row in run["healed"]] == [
        (f"{FIRST}, {LOCK}", "own", "n1")
    ]
    whole(world, slots)
    assert module(world)["changed"] is False


class Killed(BaseException):
    """The run that this is raised in does nothing any more."""


def stop(monkeypatch: pytest.MonkeyPatch, error: type[BaseException], word: str, after: int) -> None:
    """Raise an error in the place of a CLUSTER command, after so many of them, and of all commands after it."""
    pipeline, count = Client.pipeline, [0]

    async def until(self: Client, commands: t.Sequence[t.Any], *arguments: t.Any, **options: t.Any) -> list[t.Any]:
        if any(tuple(command[:2]) == ("CLUSTER", word) for command in commands):
            count[0] += 1
        if count[0] > after:
            raise error("here it ends")
        return await pipeline(self, commands, *arguments, **options)

    monkeypatch.setattr(Client, "pipeline", until)


@pytest.mark.parametrize(("word", "after"), [("MEET", 1), ("ADDSLOTSRANGE", 1)])
def test_a_cluster_that_was_left_half_formed_is_formed(
    world: World, monkeypatch: pytest.MonkeyPatch, word: str, after: int
) -> None:
    world.alone("n1", "n2", "n3")
    with monkeypatch.context() as patch:
        stop(patch, Killed, word, after)
        with pytest.raises(Killed):
            form(world)
    met = ("n1", "n2") if word == "MEET" else ("n1", "n2", "n3")
    wait(lambda: all(len(world[name].view().members) == len(met) for name in met), "the nodes to know each other")
    world.rest(met, works=False)

    check, run = form(world, True), form(world)
    foretold(check, run)
    assert run["healed"] == []
    assert [row["slot_count"] for row in run["nodes"]] == [5462, 5461, 5461]
    assert [row["slots"] for row in run["nodes"]] == ["0-5461", "5462-10922", "10923-16383"]


def test_a_run_that_was_killed_keeps_others_out_until_its_lock_is_free(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.alone("n1", "n2", "n3", "n4", "n5", "n6")
    with monkeypatch.context() as patch:
        stop(patch, Killed, "REPLICATE", 1)
        with pytest.raises(Killed):
            form(world, replicas=1)

    locked = form(world, replicas=1)
    assert (locked["failed"], locked["changed"], locked["errors"][0]["code"]) == (True, False, "locked")
    assert world["n1"].call("DEL", "headroom:{redis}:lock") == 1
    check = form(world, True, replicas=1)
    assert [step["action"] for step in check["plan"]] == ["replicate", "replicate"]
    foretold(check, form(world, replicas=1))


@pytest.mark.parametrize(("module", "target"), [(form, "n1"), (balance, "n2")])
def test_a_move_whose_source_died_for_longer_than_the_node_timeout_is_finished(
    world: World, module: t.Callable[..., dict[str, t.Any]], target: str
) -> None:
    world.cluster(primaries=3, replicas=1)
    slots = {LAST: put(world, "n3", LAST, 5)}
    world["n3"].call("WAIT", 1, 5000)
    world.open(LAST, "n3", target, slots[LAST][:3])
    world["n3"].call("WAIT", 1, 5000)
    world["n3"].kill()
    wait(lambda: world["n6"].me.is_primary, "n6 to take over")
    world["n3"].start()
    wait(lambda: not world["n3"].me.is_primary, "n3 to hear of it")
    wait(lambda: not world[target].works, f"{target} not to know the owner")

    params = {"replicas": 1} if module is form else {}
    check = module(world, True, **params)
    run = module(world, **params)
    assert (run["failed"], run["changed"]) == (False, True), run
    assert run["healed"] == check["healed"]
    whole(world, slots)
    world.rest()
    assert module(world, **params)["changed"] is False


def test_what_was_begun_before_a_failure_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cluster(primaries=3, replicas=0)
    world.alone("x")
    stop(monkeypatch, HeadroomError, "REPLICATE", 0)

    result = form(world, nodes=world.nodes("n1", "n2", "n3", "x", x={"weight": 0}))
    assert (result["failed"], result["changed"]) == (True, True)
    assert [step["action"] for step in result["plan"]] == ["meet", "replicate"]


def test_check_mode_tells_what_a_new_cluster_will_be(world: World) -> None:
    world.alone("n1", "n2", "n3", "n4", "n5", "n6")
    check, run = form(world, True, replicas=1), form(world, replicas=1)

    foretold(check, run)
    assert [row["slot_count"] for row in check["nodes"]] == [5462, 5461, 5461, 0, 0, 0]
    assert check["diff"]["before"].splitlines()[0] == "n1: alone"
    world.open(FIRST, "n1", "n2")
    foretold(form(world, True, replicas=1), form(world, replicas=1))
    assert form(world, replicas=1)["changed"] is False
