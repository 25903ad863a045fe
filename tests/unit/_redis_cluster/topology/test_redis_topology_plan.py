# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From any state of the nodes to the declared cluster, simulated step by step."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import SLOTS, Member, Node, View
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.state import Seen, quiet
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.topology.plan import (
    Outcome,
    Wanted,
    place,
    plan,
)
from hypothesis import given, settings
from hypothesis import strategies as st

INFO = {"cluster_enabled": "1", "redis_version": "8.0.2", "cluster_state": "ok"}


class World:
    """Nodes that do what they are told, and know of each other at once."""

    def __init__(self, hosts: int, each: int) -> None:
        self.wanted = [
            Wanted(f"{chr(97 + host)}{number}", f"10.0.0.{host}", f"z{host}")
            for number in range(each)
            for host in range(hosts)
        ]
        self.primary: dict[str, str | None] = dict.fromkeys(self.names)
        self.slots: dict[str, set[int]] = {name: set() for name in self.names}
        self.knows: dict[str, set[str]] = {name: {name} for name in self.names}
        self.keys = dict.fromkeys(self.names, 0)
        self.info = {name: dict(INFO) for name in self.names}

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.wanted]

    def member(self, name: str, me: bool) -> Member:
        primary = self.primary[name]
        flags = {"slave" if primary else "master", *(["myself"] if me else [])}
        return Member(
            f"id-{name}", f"10.0.0.{ord(name[0]) - 97}", 6379 + int(name[1:]), 0, frozenset(flags),
            f"id-{primary}" if primary else None, 1, True, frozenset(self.slots[name]),
        )  # fmt: skip

    def seen(self, names: t.Sequence[str] | None = None) -> dict[str, Seen]:
        found = {}
        for name in names or self.names:
            members = {f"id-{other}": self.member(other, other == name) for other in self.knows[name]}
            me = members[f"id-{name}"]
            found[name] = Seen(Node(name, me.host, me.port), View(me, members), self.info[name], self.keys[name])
        return found

    def plan(self, replicas: int = 1, **options: t.Any) -> Outcome:
        return plan(self.wanted, self.seen(), replicas, **options)

    def apply(self, outcome: Outcome) -> None:
        for step in outcome.steps:
            if step.action == "meet":
                group = self.knows[step.node] | self.knows[step.id]
                for name in group:
                    self.knows[name] |= group
            elif step.action == "assign":
                self.slots[step.node] |= set(step.slots)
            elif step.action == "replicate":
                assert not self.slots[step.node]
                assert self.primary[step.primary] is None
                self.primary[step.node] = step.primary
            elif step.action == "detach":
                self.primary[step.node] = None

    def converge(self, replicas: int = 1, **options: t.Any) -> int:
        for turn in range(5):
            outcome = self.plan(replicas, **options)
            assert outcome.errors == ()
            if not outcome.steps:
                return turn
            self.apply(outcome)
        raise AssertionError("not at rest")

    def host(self, name: str) -> str:
        return next(node.host for node in self.wanted if node.name == name)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 7), st.integers(1, 4), st.integers(0, 2))
def test_from_nothing_to_a_cluster_in_which_nothing_fails_together(hosts: int, each: int, replicas: int) -> None:
    world = World(hosts, each)
    if hosts * each < 3 * (replicas + 1):
        assert "List more nodes" in world.plan(replicas).errors[0]
        return
    world.converge(replicas)
    primaries = [name for name in world.names if world.primary[name] is None]

    assert len(primaries) == hosts * each // (replicas + 1)
    assert sorted(slot for name in primaries for slot in world.slots[name]) == list(range(SLOTS))
    for name, primary in world.primary.items():
        assert primary is None or world.host(name) != world.host(primary)
    counts = [sum(at == name for at in world.primary.values()) for name in primaries]
    assert min(counts) >= replicas
    assert world.plan(replicas).steps == ()


def test_the_primaries_of_a_new_cluster_are_on_different_hosts() -> None:
    world = World(3, 2)
    world.converge()

    assert sorted(name for name in world.names if world.slots[name]) == ["a0", "b0", "c0"]


def test_after_a_failover_nothing_is_moved_back() -> None:
    world = World(3, 2)
    world.converge()
    heir = next(name for name, primary in world.primary.items() if primary == "a0")
    world.slots[heir], world.slots["a0"] = world.slots["a0"], set()
    world.primary.update({heir: None, "a0": heir})

    assert world.plan().steps == ()


def test_two_more_nodes_are_a_primary_and_its_replica_and_nobody_else_moves() -> None:
    world = World(3, 2)
    world.converge()
    before = dict(world.primary)
    for name, host in (("d0", "10.0.0.3"), ("e0", "10.0.0.4")):
        world.wanted.append(Wanted(name, host, host))
        world.primary[name], world.slots[name], world.knows[name] = None, set(), {name}
        world.keys[name], world.info[name] = 0, dict(INFO)
    world.converge()

    assert {name: world.primary[name] for name in before} == before
    assert {world.primary["d0"], world.primary["e0"]} == {None, "d0"}
    assert not world.slots["d0"]


def test_a_replica_beside_its_primary_is_moved() -> None:
    world = World(3, 2)
    world.converge()
    world.primary.update({"a1": "a0", "b1": "b0", "c1": "c0"})
    world.converge()

    assert all(world.host(name) != world.host(at) for name, at in world.primary.items() if at)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda world: world.keys.update(b0=5), "Node b0 on 10.0.0.1:6379 holds 5 keys and is in no cluster"),
        (lambda world: world.info["c1"].update(redis_version="7.0.15"), "c1 runs redis 7, the cluster redis 8"),
        (
            lambda world: world.info["c1"].update(server_name="valkey", valkey_version="8.1.1"),
            "c1 runs valkey 8, the cluster redis 8",
        ),
        (
            lambda world: (world.slots["a0"].update(range(10)), world.slots["b0"].update(range(10, 20))),
            "different clusters that both own slots: a0 and b0",
        ),
    ],
)
def test_what_would_lose_data_is_refused(change: t.Callable[[World], t.Any], sentence: str) -> None:
    world = World(3, 2)
    change(world)
    outcome = world.plan()

    assert outcome.steps == ()
    assert any(sentence in error for error in outcome.errors), outcome.errors


def test_hosts_that_do_not_suffice_are_refused_unless_that_is_allowed() -> None:
    world = World(1, 6)

    assert "set allow_same_host" in world.plan().errors[0]
    assert world.converge(allow_same_host=True) >= 1


def test_a_dead_member_is_forgotten_when_its_address_is_taken_and_else_only_on_request() -> None:
    world = World(3, 2)
    world.converge()

    def plan_with(dead: Member, **options: t.Any) -> Outcome:
        seen = world.seen()
        for name, one in seen.items():
            seen[name] = dataclasses.replace(one, view=View(one.me, {**one.view.members, dead.id: dead}))
        return plan(world.wanted, seen, 1, **options)

    dead = Member("id-old", "10.0.0.2", 6379, 0, frozenset({"slave", "fail"}), "id-a0", 1, False)
    assert [(step.action, step.id) for step in plan_with(dead).steps] == [("forget", "id-old")]
    elsewhere = dataclasses.replace(dead, host="10.0.0.9")
    assert plan_with(elsewhere).steps == ()
    assert [step.action for step in plan_with(elsewhere, purge=True).steps] == ["forget"]


def test_replicas_of_primaries_without_slots_stay_where_they_are() -> None:
    world = World(5, 2)
    zones = {"a0": 0, "b0": 1, "c0": 0, "d0": 1, "e0": 1, "a1": 0, "b1": 1, "c1": 0, "d1": 0, "e1": 1}
    weights = {"b0": 0, "d0": 0, "e0": 0, "a1": 0, "b1": 0, "c1": 2, "d1": 2, "e1": 2}
    world.wanted = [
        dataclasses.replace(node, zone=f"z{zones[node.name]}", weight=weights.get(node.name)) for node in world.wanted
    ]
    world.knows = {name: set(world.names) for name in world.names}
    world.slots["a0"] = set(range(SLOTS))
    world.primary.update(e0="c0", a1="e1", b0="c1", b1="d1", d0="a0")

    assert world.plan().steps == ()


def test_of_a_cluster_that_was_left_half_formed_only_what_nobody_owns_is_divided() -> None:
    world = World(3, 1)
    world.knows = {name: set(world.names) for name in world.names}
    world.slots["b0"] = set(range(5000, 6000))

    shares = {step.node: len(step.slots) for step in world.plan(0).steps}
    assert shares == {"a0": 5462, "b0": 4461, "c0": 5461}
    # with data it is no new cluster: the data decides
    world.keys["b0"] = 1
    assert world.plan(0).steps == ()
    world.keys["b0"], world.slots["a0"], world.slots["c0"] = 0, {1}, {2}
    assert world.plan(0).steps == ()


def test_places_are_left_for_others_where_that_helps_everybody() -> None:
    good = {("x", "p"), ("x", "q"), ("y", "p")}

    assert place(["x", "y"], ["p", "q"], 1, {}, lambda name, primary: (name, primary) in good) == {"x": "q", "y": "p"}
    assert place(["x", "y"], ["p"], 1, {}, lambda name, primary: False) is None


def test_nobody_is_waited_for_who_must_be_introduced_first() -> None:
    world = World(3, 2)
    assert quiet(world.seen())
    world.converge()
    assert quiet(world.seen())
    # after a reset
    (alone, *_others) = (name for name in world.names if world.primary[name])
    world.knows[alone] = {alone}
    world.info[alone]["cluster_state"] = "fail"
    assert quiet(world.seen())
    # introduced to one, it is to hear of all
    world.knows[alone] = {alone, next(name for name in world.names if name != alone)}
    assert not quiet(world.seen())
    world.knows[alone] = set(world.names)
    assert not quiet(world.seen())
    world.info[alone]["cluster_state"] = "ok"
    assert quiet(world.seen())


def test_a_cluster_of_one_is_quiet_when_it_works() -> None:
    world = World(1, 1)
    world.slots["a0"] = set(range(SLOTS))
    assert quiet(world.seen())
    world.info["a0"]["cluster_state"] = "fail"
    assert not quiet(world.seen())
