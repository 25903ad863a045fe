# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that are killed, or that nodes drop out of, and what the next one makes of their journal.

Slots move in memory, since it is the faults that count here; whole runs on real clusters are among the integration tests.
"""

from __future__ import annotations

import asyncio
import collections
import types
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import NodeError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance import converge
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.guard import Limits
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.journal import Journal
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.plan import Move

NAMES = ("a", "b", "c")
SLOTS = 3000


class Killed(BaseException):
    """The run is no more."""


class Cluster:
    """Three primaries with a third of the slots each, and the runs on them."""

    def __init__(self, journal: Path) -> None:
        """Take where the journal is."""
        self.owners = {slot: NAMES[slot * len(NAMES) // SLOTS] for slot in range(SLOTS)}
        self.loads = dict.fromkeys(range(SLOTS), 1.0)
        self.journal = journal
        self.moved = 0
        # what becomes of the moves of each round: ("killed", after so many), or ("lost", told of so many)
        self.faults: list[tuple[str, int]] = []
        # seconds that a look at the load takes
        self.sample_s = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """The number of slots of each primary."""
        found = collections.Counter(self.owners.values())
        return {name: found[name] for name in NAMES}

    @property
    def state(self) -> str:
        """The state of the journal."""
        record = Journal(str(self.journal)).read()
        return record.state if record is not None else ""

    def seen(self) -> dict[str, t.Any]:
        """Return the nodes as a look shows them."""
        mine = {name: types.SimpleNamespace(is_primary=True, id=name, primary_id=None) for name in NAMES}
        return {
            name: types.SimpleNamespace(me=mine[name], view=None, info={}, number=lambda _field: 0) for name in NAMES
        }

    def move(self, moves: t.Sequence[Move], progress: t.Any, done: t.Callable[[t.Iterable[int]], None]) -> None:
        """Move slots, until a fault comes."""
        fault, after = self.faults.pop(0) if self.faults else ("", 0)
        for number, move in enumerate(moves):
            if (fault, after) == ("killed", number):
                raise Killed
            assert self.owners[move.slot] == move.source
            self.owners[move.slot] = move.target
            self.moved += 1
            if fault != "lost" or number < after:
                progress.slots += 1
                done([move.slot])
        if fault == "killed":
            raise Killed
        if fault == "lost":
            raise NodeError("Failed to reach a.", code="connection_lost", node="a")

    def run(self, check_mode: bool = False, **options: t.Any) -> dict[str, t.Any]:
        """Run once; a run that is killed returns nothing."""
        weights = options.pop("weights", {})
        given = converge.Options(
            nodes=(),
            weights=weights,
            login=t.cast("t.Any", None),
            limits=Limits(),
            journal=str(self.journal),
            **options,
        )
        one = converge._Run(given, check_mode)
        if check_mode:
            return asyncio.run(one.run())
        keeper = types.SimpleNamespace(check=lambda: None)
        try:
            return asyncio.run(one._converge(t.cast("t.Any", None), t.cast("t.Any", keeper)))
        except Killed:
            return {}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    """A cluster in memory in the place of one on the network."""
    one = Cluster(tmp_path / "journal")

    class Mover:
        def __init__(self, *given: t.Any) -> None:
            self._done, self._deadline_s, self._progress = given[4:7]
            self.fallbacks: list[t.Any] = []
            self.used: set[str] = set()

        async def run(self, moves: t.Sequence[Move]) -> None:
            if self._deadline_s is None or asyncio.get_running_loop().time() < self._deadline_s:
                one.move(moves, self._progress, self._done)

    async def operations(*_given: t.Any) -> tuple[dict[int, float], str]:
        await asyncio.sleep(one.sample_s)
        return one.loads, "operations"

    def later(value: t.Callable[[], t.Any]) -> t.Callable[..., t.Awaitable[t.Any]]:
        async def answer(*_given: t.Any, **_more: t.Any) -> t.Any:
            return value()

        return answer

    monkeypatch.setattr(converge, "settle", later(one.seen))
    monkeypatch.setattr(converge._Run, "_look", later(one.seen))
    monkeypatch.setattr(converge, "require_all", lambda _seen: None)
    monkeypatch.setattr(converge, "_works", lambda _seen: True)
    monkeypatch.setattr(
        converge,
        "slots_of",
        lambda _seen: types.SimpleNamespace(owners=dict(one.owners), open={}, uncovered=set(), disputed=set()),
    )
    monkeypatch.setattr(converge.atomic, "finish", later(list))
    monkeypatch.setattr(converge.atomic, "dialects", later(dict))
    monkeypatch.setattr(converge.mend, "cures", later(lambda: ([], dict(one.owners))))
    monkeypatch.setattr(converge.atomic, "active", later(list))
    monkeypatch.setattr(converge.mechanism, "choose", lambda *_given: {})
    monkeypatch.setattr(converge.mechanism, "Mover", Mover)
    monkeypatch.setattr(converge.measure, "bytes_per_key", lambda _seen: {})
    monkeypatch.setattr(converge._Run, "_head_room", later(lambda: None))
    monkeypatch.setattr(converge.measure, "operations", operations)
    monkeypatch.setattr(converge.measure, "keys", later(lambda: one.loads))
    return one


def test_what_was_begun_by_slots_is_finished_within_the_threshold_too(cluster: Cluster) -> None:
    cluster.faults = [("killed", 20)]
    cluster.run(weights={"a": 1.05})
    assert cluster.run(weights={"a": 1.05}, threshold=0.05)["progress"]["slots"] == 13
    assert (cluster.counts, cluster.state) == ({"a": 1033, "b": 984, "c": 983}, "balanced")
    assert cluster.run(weights={"a": 1.05})["changed"] is False


def test_a_run_by_something_else_leaves_what_was_begun_to_be_finished(cluster: Cluster) -> None:
    cluster.faults = [("killed", 20)]
    cluster.run(weights={"a": 1.05})
    assert cluster.run(weights={"a": 1.05}, by="keys", threshold=0.05)["changed"] is False
    assert cluster.state == "running"
    assert cluster.run(weights={"a": 1.05}, threshold=0.05)["progress"]["slots"] == 13


@pytest.mark.parametrize("after", [0, 40, 100])
def test_rounds_of_a_run_together_keep_to_max_moves(cluster: Cluster, after: int) -> None:
    cluster.faults = [("lost", after)] * 3
    result = cluster.run(weights={"a": 2.0}, max_moves=100)
    assert (cluster.moved, result["progress"]["slots"], result["finished"]) == (100, 100, True)


def test_a_run_by_operations_that_goes_on_keeps_to_max_moves(cluster: Cluster) -> None:
    cluster.loads = {slot: 3.0 if slot < 1000 else 1.0 for slot in range(SLOTS)}
    cluster.faults = [("killed", 5)]
    cluster.run(by="operations")
    assert cluster.run(by="operations", max_moves=10)["progress"]["slots"] == 10
    assert cluster.moved == 15


@pytest.mark.parametrize("after", [5, 10_000])
def test_a_primary_of_weight_0_is_emptied_whatever_was_begun(cluster: Cluster, after: int) -> None:
    cluster.loads = {slot: 3.0 if slot < 1000 else 1.0 for slot in range(SLOTS)}
    cluster.faults = [("killed", after)]
    cluster.run(by="operations")
    assert cluster.state == "running"
    assert cluster.run(by="operations", weights={"c": 0.0})["finished"]
    assert cluster.counts["c"] == 0
    assert cluster.run(by="operations", weights={"c": 0.0})["changed"] is False


def test_what_was_begun_by_operations_is_finished_and_the_next_run_looks_anew(cluster: Cluster) -> None:
    cluster.loads = {slot: 3.0 if slot < 1000 else 1.0 for slot in range(SLOTS)}
    cluster.faults = [("killed", 5)]
    cluster.run(by="operations")
    # the load is another one by now
    cluster.loads = {slot: 3.0 if slot >= 2000 else 1.0 for slot in range(SLOTS)}
    assert cluster.run(by="operations")["progress"]["slots"] == 439
    assert (cluster.counts["a"], cluster.state) == (556, "balanced")
    assert cluster.run(by="operations")["changed"]
    assert cluster.counts["c"] < 1000


def test_a_look_at_the_load_that_takes_longer_than_a_slice_leaves_time_to_move(cluster: Cluster) -> None:
    cluster.loads = {slot: 3.0 if slot < 1000 else 1.0 for slot in range(SLOTS)}
    cluster.sample_s = 0.2
    assert cluster.run(by="operations", slice_s=0.1)["progress"]["slots"] == 444


@pytest.mark.parametrize("state", ["running", "reverting"])
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("ids", [{"x": "1", "y": "2"}, {"a": "other", "b": "others"}])
def test_a_journal_of_a_run_on_another_cluster_stays(
    cluster: Cluster, ids: dict[str, str], check: bool, state: str
) -> None:
    Journal(str(cluster.journal)).begin("theirs", [Move(1, "x", "y")], ids, state)
    before = cluster.journal.read_text()
    # with nothing to do there is nothing to refuse
    assert cluster.run()["changed"] is False
    with pytest.raises(HeadroomError, match=r"is of a run on another cluster, with .* that has not ended"):
        cluster.run(check_mode=check, weights={"a": 2.0})
    assert (cluster.journal.read_text(), cluster.moved) == (before, 0)
    # what it says is nothing to undo here either
    assert cluster.run(state="reverted")["changed"] is False


def test_a_journal_of_another_cluster_that_has_ended_and_one_with_a_replaced_node_are_kept_beside(
    cluster: Cluster,
) -> None:
    former = cluster.journal.with_name("journal.former")
    Journal(str(cluster.journal)).begin("theirs", [Move(1, "x", "y")], {"x": "1", "y": "2"}, "balanced")
    cluster.run(weights={"a": 1.1})
    assert (Journal(str(former)).read().plan_id, cluster.state) == ("theirs", "balanced")
    Journal(str(cluster.journal)).begin("ours", [Move(1, "a", "b")], {"a": "a", "b": "replaced"}, "running")
    assert cluster.run(weights={"a": 1.3})["changed"]
    assert (Journal(str(former)).read().plan_id, cluster.state) == ("ours", "balanced")


def test_what_goes_back_goes_back_whole(cluster: Cluster) -> None:
    before = dict(cluster.owners)
    cluster.faults = [("killed", 300)]
    cluster.run(weights={"a": 2.0})
    cluster.faults = [("killed", 100)]
    cluster.run(weights={"a": 2.0}, state="reverted")
    assert cluster.state == "reverting"
    cluster.run(weights={"a": 2.0}, state="reverted")
    assert (cluster.owners, cluster.state) == (before, "reverted")


def test_what_was_begun_and_moved_nothing_is_not_gone_on_with_once_it_is_reverted(cluster: Cluster) -> None:
    cluster.faults = [("killed", 0)]
    cluster.run(weights={"a": 1.3})
    assert cluster.run(weights={"a": 1.3}, state="reverted")["changed"] is False
    assert cluster.state == "stopped"
    # within the threshold
    assert cluster.run(weights={"a": 1.01})["changed"] is False
    assert cluster.moved == 0


def test_what_goes_back_takes_no_limit() -> None:
    spec = converge.rebalance_spec().merge(connection_spec()).to_kwargs()
    nodes = [{"name": "a", "host": "192.0.2.1"}]
    given = ArgumentSpecValidator(spec["argument_spec"]).validate({"nodes": nodes, "state": "reverted", "max_moves": 5})
    with pytest.raises(OptionError, match="Option 'max_moves' has the value 5: leave it out with state 'reverted'"):
        converge.parse_options(given.validated_parameters)
