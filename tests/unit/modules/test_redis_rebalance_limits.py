# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rebalance of real servers keeps to its limits, and its plan tells what it will carry."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import signal
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
import redis
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import key_slot
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance import migrate
from ansible_collections.headroom.scale.plugins.modules import redis_cluster_rebalance
from clusters.world import HOST, World

KEYS = 1000


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    """A cluster of four primaries with equal shares, and keys in every part of it."""
    (tmp_path / "servers").mkdir()
    with World(tmp_path / "servers") as one:
        one.cluster(primaries=4, replicas=0)
        fill(one, [f"key:{number}" for number in range(KEYS)], 100)
        yield one


def fill(world: World, keys: t.Iterable[str], size: int) -> None:
    """Write keys of so many bytes where they belong."""
    owners = {slot: name for name in world.servers for slot in world[name].me.slots}
    commands: dict[str, list[str]] = collections.defaultdict(list)
    for key in keys:
        commands[owners[key_slot(key)]].append(key)
    for name, some in commands.items():
        with contextlib.closing(redis.Redis(HOST, world[name].port)) as client:
            pipe = client.pipeline(transaction=False)
            for key in some:
                pipe.set(key, "x" * size)
            pipe.execute()


def rebalance(world: World, journal: pathlib.Path, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    """Run redis_cluster_rebalance; ``weights`` are by name."""
    nodes = world.nodes(**{name: {"weight": weight} for name, weight in options.pop("weights", {}).items()})
    return world.run(
        redis_cluster_rebalance, check=check, **{"nodes": nodes, "journal": str(journal), "threshold": 0.0, **options}
    )


def test_no_node_has_more_slots_open_than_it_may(
    world: World, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: collections.Counter[tuple[str, str]] = collections.Counter()
    most: collections.Counter[tuple[str, str]] = collections.Counter()
    opens, closes = migrate.open_slots, migrate.close_slots

    async def open_slots(fleet: t.Any, ids: t.Any, source: str, target: str, slots: t.Any, purpose: str = "") -> None:
        for end in (("source", source), ("target", target)):
            now[end] += len(slots)
            most[end] = max(most[end], now[end])
        await opens(fleet, ids, source, target, slots, purpose)

    async def close_slots(fleet: t.Any, ids: t.Any, source: str, target: str, slots: t.Any, purpose: str = "") -> None:
        await closes(fleet, ids, source, target, slots, purpose)
        for end in (("source", source), ("target", target)):
            now[end] -= len(slots)

    monkeypatch.setattr(migrate, "open_slots", open_slots)
    monkeypatch.setattr(migrate, "close_slots", close_slots)
    weights = {"n1": 0.995, "n2": 0.995}
    done = rebalance(world, tmp_path / "one", weights=weights, max_slots_per_source=1, max_slots_per_target=1)
    assert (done["failed"], len(done["plan"]["moves"])) == (False, 4)
    assert set(most.values()) == {1}
    most.clear()
    assert not rebalance(world, tmp_path / "two", weights={"n1": 1.01}, max_slots_per_source=3, max_slots_per_target=5)[
        "failed"
    ]
    assert max(count for (end, _name), count in most.items() if end == "source") <= 3
    assert max(count for (end, _name), count in most.items() if end == "target") <= 5
    assert sum(world.keys(*world.servers).values()) >= KEYS


def test_a_target_that_hangs_does_not_keep_its_sources_from_answering(world: World, tmp_path: pathlib.Path) -> None:
    found: dict[str, t.Any] = {}
    weights = {"n4": 1.3}
    run = threading.Thread(
        target=lambda: found.update(rebalance(world, tmp_path / "journal", weights=weights, timeout_s=1))
    )
    run.start()
    deadline = time.monotonic() + 20
    while not any(world["n4"].me.importing) and time.monotonic() < deadline:
        time.sleep(0.02)
    process = world["n4"].process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    longest_s = 0.0
    try:
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            for name in ("n1", "n2", "n3"):
                began = time.monotonic()
                world[name].call("PING")
                longest_s = max(longest_s, time.monotonic() - began)
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    run.join(120)
    # a quarter of the nodes' time limit of one second, and the time of the test itself
    assert longest_s < 0.9
    assert (found.get("failed"), found.get("finished")) == (False, True), found.get("msg")
    assert sum(world.keys(*world.servers).values()) >= KEYS
    assert len(world["n4"].me.slots) == 4954


def test_memory_is_proven_by_what_moves_and_not_by_the_mean(world: World, tmp_path: pathlib.Path) -> None:
    # the weights take the last slots of n1, which are the ones with large values
    weights = {"n1": 0.9}
    plan = rebalance(world, tmp_path / "journal", check=True, weights=weights)["plan"]
    low = min(_first(row["slots"]) for row in plan["moves"] if row["source"] == "n1")
    large = [key for key in map("large:{}".format, range(200_000)) if low <= key_slot(key) < 4096][:150]
    fill(world, large, 100_000)
    targets = [row["target"] for row in plan["moves"]]
    for name in targets:
        world[name].call("CONFIG", "SET", "maxmemory", "6mb")
    try:
        for check in (True, False):
            result = rebalance(world, tmp_path / "journal", check=check, weights=weights)
            assert (result["failed"], result["changed"], result["errors"][0]["code"]) == (True, False, "memory")
            assert "max_memory_ratio 0.9 of its maxmemory" in result["msg"]
        assert not (tmp_path / "journal").exists()
    finally:
        for name in targets:
            world[name].call("CONFIG", "SET", "maxmemory", 0)
    told = rebalance(world, tmp_path / "journal", check=True, weights=weights)["plan"]
    moved = {key for key in large if any(key_slot(key) in _slots(row["slots"]) for row in told["moves"])}
    assert told["bytes"] == pytest.approx(len(moved) * 100_000, rel=0.3)
    done = rebalance(world, tmp_path / "journal", weights=weights)
    assert (done["failed"], done["plan"]) == (False, told)
    assert told["keys"] == done["progress"]["keys"]
    assert told["keys"] == sum(row["keys"] for row in told["moves"])


def _slots(text: str) -> set[int]:
    pairs = [(part.split("-") * 2)[:2] for part in text.split(",")]
    return {slot for first, last in pairs for slot in range(int(first), int(last) + 1)}


def _first(text: str) -> int:
    return min(_slots(text))


@pytest.mark.parametrize("by", ["keys", "bytes"])
def test_shares_by_keys_and_bytes_come_out_equal(world: World, tmp_path: pathlib.Path, by: str) -> None:
    # n1 has far more of both
    many = [key for key in map("more:{}".format, range(200_000)) if key_slot(key) < 300][:2000]
    fill(world, many, 150)
    foretold = rebalance(world, tmp_path / "journal", check=True, by=by, threshold=0.05)
    done = rebalance(world, tmp_path / "journal", by=by, threshold=0.05)
    assert (foretold["changed"], done["failed"], done["finished"]) == (True, False, True)
    # the key of the lock is one more in the run
    assert foretold["plan"]["bytes"] == pytest.approx(done["plan"]["bytes"], rel=0.02)
    assert done["imbalance"]["after"] < 0.05 < 0.5 < done["imbalance"]["before"]
    counts = world.keys(*world.servers)
    assert sum(counts.values()) >= KEYS + 2000
    assert max(counts.values()) < 1.1 * min(counts.values())
    assert rebalance(world, tmp_path / "journal", by=by, threshold=0.05)["changed"] is False
