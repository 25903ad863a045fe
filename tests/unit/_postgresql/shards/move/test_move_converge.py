# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run says of what it does, and check mode of what a run would do. The run itself is tested on servers."""

from __future__ import annotations

import dataclasses
import typing as t
from types import SimpleNamespace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Placement,
    Shard,
    ShardMap,
    Table,
    Usage,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import converge, planner
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.options import (
    parse_options,
    rebalance_spec,
)

pytest.importorskip("psycopg")

SPEC = rebalance_spec().merge(connection_spec()).options
GROUP = Group("users", "hash", "bigint", (Table("public.users", "id"),), tuple(Bucket(number) for number in range(8)))
SHARDS = (Shard("a"), Shard("b"))


class Cluster:
    """Two shards, and what their journal has on its way."""

    def __init__(self, on_b: t.Container[int], *moves: Move) -> None:
        places = {("users", number): Placement("b" if number in on_b else "a", 1) for number in range(8)}
        self.map = ShardMap(3, SHARDS, (GROUP,), places)
        self.moves = list(moves)

    def place(self, move: Move, shard: str, state: str, step: str = "") -> None:
        """Bring a bucket to a shard, as a switch does."""
        epoch = self.map.epoch + 1
        places = {**self.map.placements, move.bucket_id: Placement(shard, epoch)}
        self.map = dataclasses.replace(self.map, epoch=epoch, placements=places)
        move.state, move.step = state, step
        move.detail.update(owner=shard, epoch=epoch)
        self.moves = [one for one in self.moves if one.state not in ("reverted", "retired", "failed")]

    async def observe(self, _members: t.Any) -> tuple[dict[str, t.Any], ShardMap]:
        """Show the members and the map."""
        seen = {}
        for shard in SHARDS:
            member = SimpleNamespace(name=shard.name, host="h", port=1, role="shard")
            stored = SimpleNamespace(cluster="shards", self_name=shard.name, members=[])
            seen[shard.name] = SimpleNamespace(member=member, stored=stored, in_recovery=False)
        return seen, self.map

    async def measure(self, _members: t.Any, shard_map: ShardMap, *_how: t.Any) -> dict[t.Any, Usage]:
        """Find all buckets alike."""
        return {bucket: Usage(1000, load=1 / 8) for bucket in shard_map.placements}

    async def open_moves(self, _groups: t.Any) -> list[Move]:
        """Show the journal."""
        return list(self.moves)

    async def rows(self, _states: t.Any = None) -> list[dict[str, t.Any]]:
        """Show no rows: nobody is to be told of anything."""
        return []

    async def write(self, move: Move) -> None:
        """Take a move up."""
        self.moves.append(move)

    async def level(self, _groups: t.Any) -> None:
        """Find that all know the same."""


class Carrier:
    """Carries moves at once."""

    cluster: Cluster

    def __init__(self, context: t.Any, move: Move) -> None:
        self.context, self.move, self.switched = context, move, None
        self.reverse = SimpleNamespace(readdress=nothing)

    async def run(self, finish: bool = True) -> None:
        """Bring the bucket to its target."""
        self.cluster.place(self.move, self.move.target, "switched", "detached" if finish else "grace")

    async def settle(self, finish: bool = True) -> None:
        """End what a switch has begun."""
        if self.move.detail.get("owner") == self.move.source:
            self.cluster.moves.remove(self.move)
        self.move.step = "detached"

    async def revert(self) -> None:
        """Bring the bucket back."""
        self.cluster.place(self.move, self.move.source, "reverted")

    async def undo(self, _error: Exception) -> None:
        """Leave nothing of a move that was not switched."""
        self.cluster.moves.remove(self.move)

    async def retire(self) -> None:
        """End the time in which it can be taken back."""
        self.move.state = "retired"
        self.cluster.moves.remove(self.move)


async def nothing(*_args: t.Any, **_how: t.Any) -> t.Any:
    """Find nothing to do."""
    return None


async def all_good(*_args: t.Any, **_how: t.Any) -> t.Any:
    """Find nothing that keeps moves from beginning."""
    return SimpleNamespace(all=[], moves={})


class Held:
    """A lock that is free."""

    def __init__(self, *_args: t.Any) -> None:
        pass

    async def __aenter__(self) -> Held:
        return self

    async def __aexit__(self, *_args: object) -> None:
        pass


def run(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, check_mode: bool, **given: t.Any) -> dict[str, t.Any]:
    def filled(options: dict[str, t.Any], entry: dict[str, t.Any]) -> dict[str, t.Any]:
        return {**{name: option.get("default") for name, option in options.items()}, **entry}

    shards = [filled(SPEC["shards"]["options"], {"name": name, "host": name}) for name in "ab"]
    Carrier.cluster = cluster
    monkeypatch.setattr(converge, "observe", cluster.observe)
    monkeypatch.setattr(converge, "Journal", lambda _members: cluster)
    monkeypatch.setattr(converge, "Mover", Carrier)
    monkeypatch.setattr(converge, "Lock", Held)
    monkeypatch.setattr(converge, "resolve", nothing)
    monkeypatch.setattr(converge.Stream, "is_astray", nothing)
    monkeypatch.setattr(converge.preflight, "check", all_good)
    monkeypatch.setattr(planner.Planner, "_affordable", lambda _self, _seen, made, _left_out: given_back(made))
    for module in (converge, planner):
        monkeypatch.setattr(module, "measure", cluster.measure)
    return converge.rebalance(parse_options(filled(SPEC, {**given, "shards": shards})), check_mode)


async def given_back(made: t.Any) -> t.Any:
    """Find that all moves can be taken back."""
    return made


def moved(number: int, **more: t.Any) -> Move:
    """Return a move to b that can be taken back."""
    detail = {"owner": "b", "epoch": 2, "retire_in_s": 60.0}
    return Move(
        f"m{number}",
        GROUP,
        number,
        "a",
        "b",
        "p",
        **{"state": "switched", "step": "detached", "detail": detail, **more},
    )


def changes(result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what a result says of before and after."""
    shares = {one["name"]: (one["buckets_before"], one["buckets_after"]) for one in result["shares"]}
    return {"shares": shares, "imbalance": result["imbalance"], "diff": result["diff"]}


def test_what_is_taken_back_is_in_shares_and_diff_as_check_mode_foretells(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster({0, 1, 2, 3, 4}, moved(0), moved(1))
    foretold = run(monkeypatch, cluster, True, state="reverted")
    done = run(monkeypatch, cluster, False, state="reverted")
    assert (done["changed"], done["summary"]) == (True, "2 buckets taken back.")
    assert changes(done) == changes(foretold)
    assert changes(done)["shares"] == {"a": (3, 5), "b": (5, 3)}
    assert "b: users/1\n" in done["diff"]["before"]
    assert "a: users/1\n" in done["diff"]["after"]
    again = run(monkeypatch, cluster, False, state="reverted")
    assert (again["changed"], changes(again)["shares"]) == (False, {"a": (5, 5), "b": (3, 3)})


def copied(number: int, **more: t.Any) -> Move:
    """Return a move to b that was interrupted once all was copied, so that it is finished."""
    return moved(number, state="copying", step="copied", detail={"retire_in_s": 60.0}, **more)


def said(result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what a result says of what is planned."""
    plan = {name: result["plan"][name] for name in ("id", "moves", "splits", "left_out")}
    recovered = [(one["id"], one["was"], one["action"]) for one in result["recovered"]]
    return {"plan": plan, "recovered": recovered, **changes(result)}


@pytest.mark.parametrize(
    ("on_b", "moves"),
    [
        # all that there is to do is on its way
        ({4, 5, 6}, [copied(0)]),
        # of what is left nothing can come back at once
        (set(), [copied(0), copied(1)]),
        # with no time to be taken back
        ({6}, [moved(0, state="verified", step="switch", detail={"retire_in_s": 0.0})]),
        # what was switched back can move again
        ({6}, [moved(0, step="returned", detail={"owner": "a", "epoch": 2})]),
        # what is rolled back is planned anew
        ({6}, [moved(0, state="copying", step="copy", detail={})]),
    ],
)
def test_check_mode_plans_by_what_becomes_of_interrupted_moves(
    monkeypatch: pytest.MonkeyPatch, on_b: set[int], moves: list[Move]
) -> None:
    def fresh() -> Cluster:
        return Cluster(on_b, *(dataclasses.replace(one, detail=dict(one.detail)) for one in moves))

    done = []

    async def carry(_self: t.Any, made: list[Move]) -> None:
        for move in made:
            cluster.place(move, move.target, "switched", "detached")
        done.extend(made)

    monkeypatch.setattr(converge._Run, "_carry", carry)
    cluster = fresh()
    foretold = run(monkeypatch, cluster, True)
    cluster = fresh()
    real = run(monkeypatch, cluster, False)
    assert said(real) == said(foretold)
    assert [(one.bucket, one.target) for one in done] == [
        (one["bucket"], one["target"]) for one in foretold["plan"]["moves"]
    ]
    # what was planned can be carried out by a run that takes the rest up first
    cluster = fresh()
    planned = run(monkeypatch, cluster, False, state="planned")["plan"]
    assert said(run(monkeypatch, cluster, False, plan=planned))["plan"]["moves"] == planned["moves"]


@pytest.mark.parametrize(("slots", "at_once", "most"), [(3, 1, 3), (3, 4, 3), (1, 1, 1), (9, 1, 4)])
def test_moves_that_are_not_kept_give_way_to_others_where_slots_are_few(
    monkeypatch: pytest.MonkeyPatch, slots: int, at_once: int, most: int
) -> None:
    free = {"slots_free": slots, "senders_free": 99, "workers_free": 99, "processes_free": 99}
    cluster = Cluster(set())
    held: list[int] = []

    async def facts(*_args: t.Any) -> dict[str, int]:
        return free

    async def begin(self: Carrier, finish: bool = True) -> None:
        # a slot for the way back, from before the switch until the move is retired
        cluster.place(self.move, self.move.target, "switched", "grace")
        held.append(len(cluster.moves))

    monkeypatch.setattr(converge.preflight, "shard_facts", facts)
    monkeypatch.setattr(Carrier, "run", begin)
    result = run(monkeypatch, cluster, False, revert_window_s=0.0, concurrent_moves_per_shard=at_once)
    assert max(held) == most
    assert cluster.moves == []
    assert [(one["state"], one["error"]) for one in result["moves"]] == [("retired", None)] * 4


def test_a_move_that_cannot_be_retired_keeps_no_other_from_being_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    over = {"owner": "b", "epoch": 2, "retire_in_s": 0.0, "is_over": True}

    def fresh() -> Cluster:
        return Cluster({0, 1}, moved(0, detail=dict(over)), moved(1, step="retiring", detail=dict(over)))

    async def retire(self: Carrier) -> None:
        self.move.step = "retiring"
        raise HeadroomError("Failed to drop public.users_b0: view v depends on it.", code="failed")

    async def carry(_self: t.Any, made: list[Move]) -> None:
        for move in made:
            cluster.place(move, move.target, "switched", "detached")

    monkeypatch.setattr(converge._Run, "_carry", carry)
    monkeypatch.setattr(Carrier, "retire", retire)
    cluster = fresh()
    result = run(monkeypatch, cluster, False)
    assert {one["buckets_after"] for one in result["shares"]} == {4}
    assert [text.partition(":")[0] for text in result["warnings"]] == [
        "Move m1 of users/1 from a to b is not retired yet",
        "Move m0 of users/0 from a to b is not retired yet",
    ]
    # where it is what the run is for, it fails
    cluster = fresh()
    with pytest.raises(HeadroomError, match="view v depends on it"):
        run(monkeypatch, cluster, False, state="cleaned")
