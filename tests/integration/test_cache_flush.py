# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layer of Redis of a flush, on the cluster of six nodes: what goes, what stays, and what a flush waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Lab
from .test_redis import SECRETS, cli, cluster, module, nodes, workload_of

__all__ = ["cluster"]

RULES = {"user": {"patterns": ["user:{id}:*"], "tags": ["user-{id}"]}}
IDS = (1, 2, 10)
KEYS = 400


def flush(lab: Lab, **options: Any) -> dict[str, Any]:
    """Run the module on the cluster; without the second pass where a test does not ask for it."""
    return module(lab, "cache_flush", **{"rules": RULES, "in_flight_s": 0, **options})


def empty(lab: Lab) -> None:
    """Take all keys off the cluster, past the module."""
    for row in module(lab, "redis_cluster_health", fail_on="never")["nodes"]:
        if row["role"] == "primary":
            cli(lab, row["name"], "FLUSHALL")


@pytest.fixture
def filled(cluster: Lab) -> Iterator[Any]:
    """A client of the cluster with keys of three users on it and nothing else; all are gone afterwards."""
    empty(cluster)
    client = workload_of(0).client
    for number in range(KEYS):
        for user in IDS:
            client.set(f"user:{user}:{number}", "x")
    for number in range(30):
        client.set(f"page:{number}", "x")
        client.sadd("tag:user-1", f"page:{number}")
    yield client
    empty(cluster)


def count(client: Any, pattern: str) -> int:
    """Return how many keys match on all primaries."""
    return len(set(client.scan_iter(pattern, count=1000)))


def test_entities_go_on_all_primaries_and_their_replicas_and_nothing_else_does(cluster: Lab, filled: Any) -> None:
    before = cluster.play("flush.yml", "--check", "--diff", cache_flush_entities=[{"user": [1, 2]}])
    predicted = before.results("Flush all layers, inner before outer, twice")["localhost"]
    assert count(filled, "user:*") == 3 * KEYS
    made = cluster.play("flush.yml", "--diff", cache_flush_entities="[{user: [1, 2]}]")
    result = made.results("Flush all layers, inner before outer, twice")["localhost"]
    assert not [word for word in SECRETS if word in before.text + made.text]
    assert predicted["changed"]
    assert result["changed"]
    assert predicted["diff"] == result["diff"]
    assert predicted["layers"][0]["keys"] == result["layers"][0]["keys"] == 2 * KEYS + 30
    assert result["layers"][0]["primaries"] == len(result["layers"][0]["keys_per_primary"]) == 3
    # the tenth user is another one than the first
    assert count(filled, "user:10:*") == KEYS
    assert count(filled, "user:1:*") == count(filled, "user:2:*") == count(filled, "page:*") == 0
    # the replicas had it before the task ended
    assert sum(int(cli(cluster, node["name"], "DBSIZE")) for node in nodes()) == 2 * KEYS
    # the names of keys that are gone are gone too
    assert not filled.exists("tag:user-1")
    again = cluster.play("flush.yml", cache_flush_entities=[{"user": [1, 2]}])
    assert again.changed() == []


def test_an_id_with_a_star_is_no_pattern(cluster: Lab, filled: Any) -> None:
    filled.set("user:*:1", "x")
    result = flush(cluster, entities=[{"user": "*"}])
    assert result["layers"][0]["keys"] == 1
    assert count(filled, "user:*") == 3 * KEYS


def test_one_node_is_enough_to_find_the_others(cluster: Lab, filled: Any) -> None:
    result = flush(cluster, entities=[{"user": IDS}], nodes=nodes()[:1])
    assert result["layers"][0]["keys"] == 3 * KEYS + 30
    assert set(filled.scan_iter("*", count=1000)) == set()


def test_a_key_that_is_set_again_stays_in_the_set_of_its_tag(cluster: Lab, filled: Any) -> None:
    """An application sets keys and adds them to the tag all the while; whatever is there at the end, the set knows."""
    stopping = threading.Event()

    def work() -> None:
        number = 0
        while not stopping.is_set():
            number = (number + 1) % 30
            filled.set(f"page:{number}", "y")
            filled.sadd("tag:user-1", f"page:{number}")

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        for _flush in range(3):
            assert flush(cluster, tags=["user-1"], in_flight_s=0.5)["changed"]
    finally:
        stopping.set()
        worker.join(30)
    there = set(filled.scan_iter("page:*", count=1000))
    assert there <= filled.smembers("tag:user-1")
    flush(cluster, tags=["user-1"])
    assert count(filled, "page:*") == 0


def test_slots_in_migration_are_waited_for_and_not_for_ever(cluster: Lab, filled: Any) -> None:
    shards = module(cluster, "redis_cluster_health", fail_on="never")["shards"]
    source, target = shards[0]["primary"], shards[1]["primary"]
    ids = {name: cli(cluster, name, "CLUSTER", "MYID") for name in (source, target)}
    slot = shards[0]["slots"][0].split("-")[0]
    cli(cluster, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    cli(cluster, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])

    def close() -> None:
        for name in (source, target):
            cli(cluster, name, "CLUSTER", "SETSLOT", slot, "STABLE")

    try:
        result = flush(cluster, entities=[{"user": 1}], migration_wait_s=1, retries=0)
        assert result["errors"][0]["code"] == "migrating"
        assert result["changed"] is False
        assert count(filled, "user:1:*") == KEYS
        timer = threading.Timer(2, close)
        timer.start()
        result = flush(cluster, entities=[{"user": 1}], migration_wait_s=60)
        timer.join()
        assert result["changed"]
        assert count(filled, "user:1:*") == 0
    finally:
        close()


def test_no_key_is_missed_while_slots_move(cluster: Lab, filled: Any, tmp_path: Path) -> None:
    lighter = [node | {"weight": 0.5} if node["name"] == "redis1-6379" else node for node in nodes()]
    other = Lab(tmp_path)
    moved: list[dict[str, Any]] = []
    mover = threading.Thread(
        target=lambda: moved.append(
            module(other, "redis_cluster_rebalance", nodes=lighter, mechanism="classic", max_rate_bytes_s=20_000)
        )
    )
    mover.start()
    try:
        result = flush(cluster, entities=[{"user": IDS}], retries=5, migration_wait_s=120)
    finally:
        mover.join(300)
    assert moved[0]["changed"], moved
    assert result["changed"], result
    assert count(filled, "user:*") == 0
    assert module(cluster, "redis_cluster_rebalance", state="reverted")["changed"]


def test_the_rate_and_the_latency_of_others_are_kept(cluster: Lab, filled: Any) -> None:
    slow = flush(cluster, entities=[{"user": 1}], max_latency_ms=0.001, latency_patience_s=0.5, retries=0)
    assert slow["errors"][0]["code"] == "latency"
    assert count(filled, "user:1:*") == KEYS
    paced = flush(cluster, entities=[{"user": [1, 2]}], max_rate_keys_s=400)
    assert paced["layers"][0]["duration_s"] >= (2 * KEYS + 30) / 400 - 0.1


def test_everything_goes_when_it_is_confirmed_and_only_then(cluster: Lab, filled: Any) -> None:
    refused = flush(cluster, scope="all")
    assert refused["errors"][0]["option"] == "confirm_all"
    assert count(filled, "user:*") == 3 * KEYS
    assert flush(cluster, scope="all", confirm_all=True)["changed"]
    assert sum(int(cli(cluster, node["name"], "DBSIZE")) for node in nodes()) == 0
    assert flush(cluster, scope="all", confirm_all=True)["changed"] is False


def test_a_user_without_the_rights_is_told(cluster: Lab, filled: Any) -> None:
    login = {"login_user": "lab_app", "login_password": "lab-only-application"}
    # an application may flush what is its own, and not everything
    assert flush(cluster, entities=[{"user": 1}], **login)["layers"][0]["keys"] == KEYS + 30
    result = flush(cluster, scope="all", confirm_all=True, retries=0, **login)
    assert "NOPERM" in result["msg"]
    assert result["changed"] is False
    assert count(filled, "user:*") == 2 * KEYS
    result = flush(cluster, entities=[{"user": 1}], **{**login, "login_password": "wrong"})
    assert result["errors"][0]["code"] == "authentication_failed"
    assert result["layers"][0]["attempts"] == 1
