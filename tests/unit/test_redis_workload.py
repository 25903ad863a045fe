# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checking workload finds what is not as it was acknowledged: a check that cannot fail proves nothing."""

from __future__ import annotations

import collections.abc as c
import typing as t

import pytest
from clusters.world import HOST, World
from redis.cluster import ClusterNode, RedisCluster
from workloads.redis_cluster import Workload

TURNS = 80


class Plain(Workload):
    """The workload on servers of a test."""

    port = 0

    def connect(self) -> RedisCluster:
        return RedisCluster(startup_nodes=[ClusterNode(HOST, self.port)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> c.Iterator[World]:
    with World(tmp_path_factory.mktemp("servers")) as one:
        one.cluster(primaries=3, replicas=0)
        yield one


@pytest.fixture
def workload(world: World, monkeypatch: pytest.MonkeyPatch) -> t.Any:
    monkeypatch.setattr(Plain, "port", world["n1"].port)
    one = Plain(1, [], "")
    for turn in range(1, TURNS):
        one.step(turn)
    # it was never started as a thread
    monkeypatch.setattr(one, "join", lambda *_limit: None)
    yield one
    one.clear()


def test_what_is_as_it_was_acknowledged_is_right(workload: t.Any) -> None:
    figures = workload.finish()
    assert (figures["lost"], figures["wrong"], figures["errors"]) == ([], [], [])
    assert len(workload.large) == 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("w1:large:7", None),
        ("w1:large:7", b"another"),
        # that of the turn before, as a lost write leaves it
        ("w1:large:7", b"w1:large:7 7 " * 1539),
        ("{w1:5}a", b"1"),
        ("{w1:5}b", None),
    ],
)
def test_what_is_not_is_told(workload: t.Any, key: str, value: bytes | None) -> None:
    assert workload.client.get(key)
    if value is None:
        workload.client.delete(key)
    else:
        workload.client.set(key, value[:20_000])
    assert len(workload.finish()["wrong"]) == 1


def test_a_write_that_was_not_acknowledged_may_be_there_or_not(
    workload: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "w1:large:14"
    with monkeypatch.context() as patched:
        patched.setattr(workload.client, "set", lambda *_given: 1 / 0)
        for turn in (84, 154):
            with pytest.raises(ZeroDivisionError):
                workload.write_large(key, turn)
    assert workload.finish()["wrong"] == []
    workload.client.set(key, (f"{key} 84 ".encode() * 20_000)[:20_000])
    assert workload.finish()["wrong"] == []
