# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers answer becomes facts, and what they do not answer is said to be not known."""

from __future__ import annotations

import asyncio
import os
import sys
import typing as t

import pytest

sys.path.insert(0, os.path.dirname(__file__))
pytest.importorskip("redis")

from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import ServerError  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import Login  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import (
    Node,  # noqa: E402
    parse_info,  # noqa: E402
)
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health import observe  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.model import Lag, parse_replicas  # noqa: E402
from redis_health_builders import lines  # noqa: E402

NODE = Node("rc1", "127.0.0.1", 1)
VIEW = lines()
VIEW["rc1"] = VIEW["rc1"].replace("master", "myself,master")
ANSWERS: dict[str, t.Any] = {
    "INFO": "# Server\r\nredis_version:7.0.15\r\nexecutable:/a:b\r\nrole:master\r\n\r\n# Memory\r\nused_memory:10\r\n",
    "CLUSTER NODES": "\n".join(VIEW.values()),
    "CLUSTER INFO": "cluster_state:ok\r\n",
    "CONFIG GET": ["save", "", "maxmemory", "0"],
    "SLOWLOG GET": [[41, 1700000000, 20000, ["AUTH", "hunter2"], "127.0.0.1:5", ""]],
    "LATENCY LATEST": [["command", 1700000000, 10, 250]],
}


def denied(command: str) -> ServerError:
    """Return the answer to a command that the login may not run."""
    return ServerError(NODE, command.split(), "NOPERM this user has no permissions")


def test_answers_become_facts() -> None:
    found = observe.read("rc1", ANSWERS, ("127.0.0.1",))
    assert (found.role, found.engine, found.version, found.number("used_memory")) == ("primary", "redis", "7.0.15", 10)
    assert found.info["executable"] == "/a:b"
    assert found.view is not None
    assert len(found.view.members) == 6
    assert (found.config, found.slowlog_id) == ({"save": "", "maxmemory": "0"}, 41)
    assert (found.latency_ms, found.not_read) == ({"command": 250}, {})
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize("command", list(ANSWERS))
def test_a_command_that_is_denied_is_not_known(command: str) -> None:
    found = observe.read("rc1", {**ANSWERS, command: denied(command)})
    assert found.not_read == {command: "NOPERM this user has no permissions"}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("INFO", None),
        ("CLUSTER NODES", "nonsense"),
        ("CLUSTER NODES", b"\xff"),
        ("CONFIG GET", ["save"]),
        ("SLOWLOG GET", [["x"]]),
        ("LATENCY LATEST", [["command"]]),
    ],
)
def test_an_answer_that_is_not_understood_is_not_known(command: str, answer: t.Any) -> None:
    assert list(observe.read("rc1", {**ANSWERS, command: answer}).not_read) == [command]


def test_an_empty_slow_log_has_a_number_below_the_first() -> None:
    assert observe.read("rc1", {**ANSWERS, "SLOWLOG GET": []}).slowlog_id == -1


def test_info_by_name() -> None:
    assert parse_info("# Memory\r\na:1\r\nb:x:y\r\nnothing\r\n") == {"a": "1", "b": "x:y"}
    replicas = parse_replicas({"slave0": "ip=10.0.0.4,port=6379,state=online,offset=5,lag=1", "slave_priority": "100"})
    assert list(replicas) == ["10.0.0.4:6379"]
    assert replicas["10.0.0.4:6379"]["lag"] == "1"


class Replica:
    """Stands in for the connection to a replica whose offset grows with each question."""

    def __init__(self, *offsets: int, link: str = "up", history: str = "a") -> None:
        self.offsets = list(offsets)
        self.link, self.history = link, history
        self.login = Login()

    async def call(self, *command: str, timeout_s: float | None = None) -> str:
        """Answer INFO replication."""
        offset = self.offsets.pop(0) if len(self.offsets) > 1 else self.offsets[0]
        return (
            f"master_replid:{self.history}\nslave_repl_offset:{offset}\nmaster_link_status:{self.link}\n"
            "master_last_io_seconds_ago:3\n"
        )


def caught_up(replica: t.Any) -> Lag | None:
    """Compare a replica with a primary at offset 100."""

    async def work() -> Lag | None:
        begun = asyncio.get_running_loop().time()
        return await observe._catch_up(replica, {"master_repl_offset": "100", "master_replid": "a"}, begun, 2)

    return asyncio.run(work())


def test_a_replica_that_is_level_or_gets_there() -> None:
    level = caught_up(Replica(120))
    assert level is not None
    assert (level.replica_offset, level.caught_up_s is not None, level.last_io_s, level.ack_age_s) == (120, True, 3, 2)
    later = caught_up(Replica(40, 60, 100))
    assert later is not None
    assert later.replica_offset == 40
    assert later.caught_up_s is not None
    assert later.caught_up_s >= 0.03


def test_a_replica_that_does_not_get_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "CATCH_UP_S", 0.05)
    behind = caught_up(Replica(40))
    assert behind is not None
    assert behind.caught_up_s is None
    assert behind.window_s >= 0.05
    # without a link there is nothing to wait for
    down = caught_up(Replica(40, link="down"))
    assert down is not None
    assert down.window_s < 0.05


def test_offsets_of_different_histories_are_not_compared() -> None:
    assert caught_up(Replica(120, history="b")) is None


def test_a_node_that_is_not_there_has_a_fault() -> None:
    found = observe.observe([NODE], Login(tls=False, timeout_s=2, password="hunter2"))["rc1"]
    assert found.fault is not None
    assert found.fault.code == "connection_refused"
    assert found.addresses == ("127.0.0.1",)


def test_a_name_that_nobody_knows_has_a_fault() -> None:
    node = Node("rc1", "rc1.invalid", 6379)
    found = observe.observe([node], Login(tls=False, timeout_s=5))["rc1"]
    assert found.fault is not None
    assert found.addresses == ()
