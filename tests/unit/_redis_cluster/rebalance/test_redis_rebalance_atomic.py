# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers say of their own jobs, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import NodeError, ServerError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.observe import Fleet
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance import atomic, mechanism
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.atomic import REDIS, VALKEY
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.guard import Limits
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.plan import Move

A, B, C = "a" * 40, "b" * 40, "c" * 40
NODES = [Node("a", "192.0.2.1", 6379), Node("b", "192.0.2.2", 6379)]


def valkey(name: str, slots: str, state: str, operation: str = "EXPORT", message: str = "") -> list[Any]:
    """Return a job as Valkey 9.1.2 tells it."""
    return [
        *("name", name, "operation", operation, "slot_ranges", slots, "target_node", B, "source_node", A),
        *("create_time", 1795265353, "last_update_time", 1795265353, "last_ack_time", 1795265353),
        *("state", state, "message", message, "cow_size", 0, "remaining_repl_size", 0),
    ]


def redis(name: str, slots: str, state: str, operation: str = "import", error: str = "", retries: int = 0) -> list[Any]:
    """Return a task as the documentation of Redis 8.4 has it."""
    return [
        *("id", name, "slots", slots, "source", A, "dest", B, "operation", operation, "state", state),
        *(
            "last_error",
            error,
            "retries",
            retries,
            "create_time",
            1,
            "start_time",
            2,
            "end_time",
            3,
            "write_pause_ms",
            4,
        ),
    ]


def test_valkey_is_told_at_the_source() -> None:
    assert VALKEY.start([0, 1, 2, 9], B) == ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", 0, 2, 9, 9, "NODE", B)
    rows = [valkey("one", "0-2 9-9", "replicating"), valkey("two", "5-5", "success", "IMPORT")]
    (job,) = VALKEY.jobs(rows)
    assert (job.id, job.source, job.target, job.slots, job.state) == ("one", A, B, {0, 1, 2, 9}, "replicating")
    assert [job.id for job in VALKEY.jobs(rows, other_side=True)] == ["two"]
    assert VALKEY.jobs(rows, only="other") == []
    assert VALKEY.cancel(job) == ("CLUSTER", "CANCELSLOTMIGRATIONS")


def test_an_import_that_a_replica_tracks_has_no_nodes() -> None:
    row = ["name", "x", "operation", "IMPORT", "slot_ranges", "0-0", "state", "occurring-on-primary", "message", ""]
    (job,) = VALKEY.jobs([row], other_side=True)
    assert (job.source, job.target) == ("", "")


def test_redis_is_told_at_the_target() -> None:
    assert REDIS.start([0, 1, 2, 9], B) == ("CLUSTER", "MIGRATION", "IMPORT", 0, 2, 9, 9)
    rows = [redis("one", "0-2 9", "failed", error="gone \n", retries=2), redis("two", "5", "completed", "migrate")]
    (job,) = REDIS.jobs(rows)
    assert (job.slots, job.message, job.retries) == ({0, 1, 2, 9}, "gone", 2)
    # the target itself tries it again
    assert job.state not in REDIS.ended
    assert REDIS.cancel(job) == ("CLUSTER", "MIGRATION", "CANCEL", "ID", "one")


@pytest.mark.parametrize("text", ["0-", "x", "1-2-3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not ranges of slots"):
        atomic.parse_slots(text)


def test_jobs_are_bounded_by_slots_and_by_bytes() -> None:
    slots = list(range(10))
    assert atomic.parts(slots, {}, 4, float("inf")) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    sizes = dict.fromkeys(slots, 10.0) | {3: 1000.0}
    # one that is too large by itself still has to go
    assert atomic.parts(slots, sizes, 4, 25) == [[0, 1], [2], [3], [4, 5], [6, 7], [8, 9]]
    assert atomic.parts([], {}, 4, 25) == []


def test_both_sides_must_speak_the_same() -> None:
    known = {"a": VALKEY, "b": VALKEY, "c": None, "d": REDIS}
    pairs = [("a", "b"), ("a", "c"), ("c", "a"), ("a", "d")]
    assert list(mechanism.choose(pairs, known, "auto").values()) == ["atomic", "classic", "classic", "classic"]
    assert set(mechanism.choose(pairs, known, "classic").values()) == {"classic"}
    assert mechanism.choose(pairs[:1], known, "atomic") == {("a", "b"): "atomic"}
    with pytest.raises(OptionError, match=r"Option 'mechanism' has the value 'atomic': .* from a to c .* give 'auto'"):
        mechanism.choose(pairs, known, "atomic")


class Server:
    """Two primaries of Valkey 9 in one: jobs go on by a state with each look."""

    def __init__(self, states: list[list[str]], error: str = "") -> None:
        self.states = states
        self.error = error
        self.owners = dict.fromkeys(range(16384), A)
        self.jobs: list[list[Any]] = []
        self.left: list[str] = []
        self.started = self.cancelled = 0
        self.stranger: str | None = None

    def look(self) -> list[list[Any]]:
        if self.jobs and self.left:
            self.jobs[-1][self.jobs[-1].index("state") + 1] = state = self.left.pop(0)
            if state == "success":
                for slot in self.slots:
                    self.owners[slot] = self.stranger or B
        return [list(job) for job in self.jobs]

    def answer(self, command: tuple[Any, ...]) -> Any:
        word = command[1]
        if word == "GETSLOTMIGRATIONS":
            return self.look()
        if word == "COUNTKEYSINSLOT":
            return 2
        if word == "NODES":
            return "\n".join(
                f"{node} 192.0.2.1:6379@16379 {'myself,' if node == A else ''}master - 0 0 1 connected "
                + " ".join(str(slot) for slot, owner in self.owners.items() if owner == node and slot < 9)
                for node in (A, B, C)
            )
        if word == "CANCELSLOTMIGRATIONS":
            self.cancelled += 1
            self.left = ["cancelled"]
            return "OK"
        if word == "MIGRATESLOTS":
            self.started += 1
            if self.error:
                return ServerError(NODES[0], command, self.error)
            first, last = command[3], command[4]
            self.slots = list(range(first, last + 1))
            self.jobs.append(valkey(f"job{self.started}", f"{first}-{last}", "connecting"))
            self.left = self.states.pop(0)
            return "OK"
        return "PONG"


@pytest.fixture
def migrate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[atomic.Left], list[int]]]:
    """Return a function that moves slots 0 to 3 from a to b on a server."""
    monkeypatch.setattr(atomic, "POLL_S", 0.001)
    monkeypatch.setattr(atomic, "STALL_S", 0.05)

    def run(server: Server, **limits: int) -> tuple[list[atomic.Left], list[int]]:
        done: list[int] = []

        async def moving() -> list[atomic.Left]:
            fleet = Fleet(NODES, Login())

            async def pipeline(commands: Any, timeout_s: float | None = None, raw: bool = False) -> list[Any]:
                return [server.answer(tuple(command)) for command in commands]

            for name in ("a", "b"):
                for purpose in ("", "jobs", "watch"):
                    monkeypatch.setattr(fleet.client(name, purpose), "pipeline", pipeline)
            mover = atomic.Atomic(
                fleet, {"a": A, "b": B}, {"a": VALKEY, "b": VALKEY}, Limits(**limits), {"a": 10.0}, done.extend
            )
            return await mover.run([Move(slot, "a", "b") for slot in range(4)])

        return asyncio.run(moving()), done

    return run


def test_a_job_is_seen_to_its_end(migrate: Callable[..., Any]) -> None:
    server = Server([["snapshotting", "replicating", "success"]])
    assert migrate(server) == ([], [0, 1, 2, 3])
    assert server.started == 1


def test_many_slots_take_several_jobs(migrate: Callable[..., Any]) -> None:
    server = Server([["success"], ["success"]])
    assert migrate(server, max_slots_per_source=2) == ([], [0, 1, 2, 3])
    assert server.started == 2


def test_a_job_that_failed_is_tried_again(migrate: Callable[..., Any]) -> None:
    assert migrate(Server([["failed"], ["replicating", "success"]])) == ([], [0, 1, 2, 3])


def test_slots_that_fail_again_and_again_are_left_with_the_reason(migrate: Callable[..., Any]) -> None:
    server = Server([["failed"] for _attempt in range(3)])
    left, done = migrate(server, max_slots_per_source=2)
    # the jobs after it would fail as well
    assert (left, done) == ([atomic.Left("a", "b", (0, 1, 2, 3), "failed")], [])
    assert server.started == atomic.ATTEMPTS


def test_what_is_not_permitted_is_tried_once(migrate: Callable[..., Any]) -> None:
    server = Server([], error="NOPERM User x has no permissions")
    left, _done = migrate(server)
    assert (left[0].reason, server.started) == ("NOPERM User x has no permissions", 1)


def test_a_standstill_is_cancelled_unless_the_slots_change_hands(migrate: Callable[..., Any]) -> None:
    server = Server([["snapshotting"], ["success"]])
    assert migrate(server) == ([], [0, 1, 2, 3])
    assert server.cancelled == 1
    server = Server([["failover-granted"] * 100 + ["success"]])
    assert migrate(server) == ([], [0, 1, 2, 3])
    assert server.cancelled == 0


def test_a_job_that_does_not_end_is_no_reason_to_go_on(
    migrate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "CANCEL_S", 0.02)
    server = Server([["snapshotting"]])
    answer = server.answer
    monkeypatch.setattr(server, "answer", lambda command: "OK" if "CANCEL" in command[1:2][0] else answer(command))
    with pytest.raises(HeadroomError, match=r"Failed to end the migration of slots 0-3 .* still snapshotting"):
        migrate(server)


def test_slots_that_went_elsewhere_are_planned_anew(migrate: Callable[..., Any]) -> None:
    server = Server([["success"]])
    server.stranger = C
    with pytest.raises(NodeError, match="a node failed or changed its role"):
        migrate(server)
