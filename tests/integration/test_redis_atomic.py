"""Slots of a Valkey 9 cluster move by the servers' own atomic migration, under a workload that checks its own data."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workloads.redis_cluster import Workload, working

from .conftest import INVENTORIES, ROOT, STATE, Lab, Play, kill, until

HOST, ADDRESS = "valkey9a", "10.77.0.43"
PORTS = range(6379, 6385)
# not part of the lab as long as no release has it
REDIS84, REDIS84_ADDRESS = "redis84a", "10.77.0.44"
CA = STATE / "tls" / "valkey9" / "ca.crt"
# lab-only, the same as in molecule/inventory/group_vars/valkey9.yml
ADMIN = {"login_user": "headroom_admin", "login_password": "lab-only-administration"}
FILLER = 20_000


def nodes(**weights: float) -> list[dict[str, Any]]:
    """Return the nodes of the cluster, some with a weight."""
    found: list[dict[str, Any]] = [{"name": f"{HOST}-{port}", "host": ADDRESS, "port": port} for port in PORTS]
    return [{**node, "weight": weights[node["name"]]} if node["name"] in weights else node for node in found]


def module(lab: Lab, name: str, /, **options: Any) -> dict[str, Any]:
    """Run one of the modules on the cluster."""
    return lab.module(name, **{"nodes": nodes(), "ca_certs": str(CA), **ADMIN, **options})


def rebalance(lab: Lab, **options: Any) -> dict[str, Any]:
    """Run the rebalance."""
    return module(lab, "redis_cluster_rebalance", **{"cluster": "valkey9", "lock_wait_s": 60, **options})


def play(lab: Lab, *arguments: str, weights: dict[str, float], **variables: Any) -> Play:
    """Run the playbook that rebalances, with weights by the names of nodes."""
    ports = {name.split("-")[1]: weight for name, weight in weights.items()}
    return lab.play("redis_rebalance.yml", *arguments, redis_hosts="valkey9", redis_cluster_weights=ports, **variables)


def cli(lab: Lab, node: str, *command: str) -> str:
    """Run a command on a node through its own socket."""
    port = node.split("-")[1]
    script = f'REDISCLI_AUTH=$0 exec valkey-cli -s /run/valkey-{port}/valkey.sock --user headroom_admin "$@"'
    return lab.run(HOST, "sh", "-c", script, ADMIN["login_password"], *command)


def every(lab: Lab, *command: str) -> None:
    """Run a command on all nodes."""
    for node in nodes():
        cli(lab, node["name"], *command)


def slow_down(lab: Lab, delay_us: int) -> None:
    """Let what the servers fork take so long for each key; nothing but jobs forks meanwhile."""
    if delay_us:
        every(lab, "CONFIG", "SET", "save", "", "auto-aof-rewrite-percentage", "0")
    every(lab, "CONFIG", "SET", "rdb-key-save-delay", str(delay_us))


def shards(lab: Lab) -> list[dict[str, Any]]:
    """Return the shards as the health module sees them."""
    return module(lab, "redis_cluster_health", fail_on="never")["shards"]


def slots(lab: Lab) -> dict[str, list[str]]:
    """Return the slots of each primary."""
    return {shard["primary"]: shard["slots"] for shard in shards(lab)}


def counts(lab: Lab) -> dict[str, int]:
    """Return the number of slots of each primary."""
    return {shard["primary"]: shard["slots_count"] for shard in shards(lab)}


def snapshotting(lab: Lab, names: Iterable[str]) -> dict[str, int]:
    """Return the primaries of which a job is at work on its snapshot, with the number of its slots."""
    found = {}
    for name in names:
        lines = cli(lab, name, "CLUSTER", "GETSLOTMIGRATIONS").splitlines()
        ranges = [lines[at + 1] for at, line in enumerate(lines) if line == "slot_ranges"]
        states = [lines[at + 1] for at, line in enumerate(lines) if line == "state"]
        for edges, state in zip(ranges, states, strict=True):
            if state == "snapshotting":
                pairs = [pair.partition("-") for pair in edges.split()]
                found[name] = sum(int(last or first) - int(first) + 1 for first, _dash, last in pairs)
    return found


@pytest.fixture(scope="module")
def valkey9(lab: Lab) -> Lab:
    """The lab, which has a Valkey that can migrate slots atomically."""
    there = subprocess.run(["podman", "container", "exists", f"headroom-{HOST}"], env=lab.environment, check=False)
    if there.returncode == 1:
        pytest.skip(f"The lab runs without {HOST}: the release with Valkey 9 could not be fetched.")
    # a host that is there and lacks it is a failure
    said = lab.run(HOST, "valkey-server", "--version")
    version = re.search(r"\bv=(\d+)", said)
    assert version is not None, said
    assert int(version[1]) >= 9, said
    return lab


@pytest.fixture
def cluster(valkey9: Lab) -> Iterator[Lab]:
    """The cluster with keys in its slots, which is as healthy, as balanced and as empty after the test as before."""
    client = Workload(9, [ADDRESS], str(CA)).client
    with client.pipeline() as pipe:
        for number in range(FILLER):
            pipe.set(f"filler:{number}", f"{number:0>200}")
        pipe.execute()
    yield valkey9
    slow_down(valkey9, 0)
    every(valkey9, "CONFIG", "SET", "auto-aof-rewrite-percentage", "100")
    every(valkey9, "ACL", "LOAD")
    valkey9.play("redis.yml", redis_hosts="valkey9")
    rebalanced = rebalance(valkey9, threshold=0)
    missing = [number for number in range(FILLER) if client.get(f"filler:{number}") != b"%0200d" % number]
    for name in slots(valkey9):
        cli(valkey9, name, "FLUSHALL")
    after = module(valkey9, "redis_cluster_health", wait_s=60, fail_on="never")
    assert missing == []
    assert not rebalanced.get("failed"), rebalanced["msg"]
    assert after["healthy"], after["table"]


@pytest.fixture
def workload(cluster: Lab) -> Iterator[list[Workload]]:
    """Two running workloads."""
    with working([Workload(seed, [ADDRESS], str(CA)) for seed in range(2)]) as threads:
        yield threads


def verdict(threads: list[Workload]) -> None:
    """Finish the workloads: nothing is lost or wrong, and clients saw nothing but redirections."""
    for figures in [thread.finish() for thread in threads]:
        print({**figures, "errors": figures["errors"][:5]})
        assert (figures["lost"], figures["wrong"], figures["errors"]) == ([], [], [])
        assert figures.get("lost_ways", 0) == 0


@contextlib.contextmanager
def started(lab: Lab, weights: dict[str, float]) -> Iterator[subprocess.Popen[bytes]]:
    """A rebalance at work, which is not there any more afterwards."""
    ports = {name.split("-")[1]: weight for name, weight in weights.items()}
    variables = {"redis_hosts": "valkey9", "redis_cluster_weights": ports}
    run = subprocess.Popen(
        [
            "ansible-playbook",
            *(f"--inventory={path}" for path in INVENTORIES),
            str(ROOT / "playbooks" / "redis_rebalance.yml"),
            "--extra-vars",
            json.dumps(variables),
        ],
        env=lab.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            kill(run.pid)
        run.wait()


def test_a_second_run_of_the_role_changes_nothing(valkey9: Lab) -> None:
    assert valkey9.play("redis.yml", redis_hosts="valkey9").changed() == []


def unmeasured(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan without the keys and bytes that it found, which the workload changes all the time."""

    def rest(one: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in one.items() if name not in ("keys", "bytes")}

    return {**rest(plan), "moves": [rest(move) for move in plan["moves"]]}


def test_slots_move_and_come_back_and_check_mode_foretells_it(cluster: Lab, workload: list[Workload]) -> None:
    before = slots(cluster)
    heavy = {sorted(before)[0]: 3.0}
    foretold = play(cluster, "--check", weights=heavy).results("Slots as weighted")[HOST]
    assert foretold["mechanism"] == "atomic"
    assert slots(cluster) == before

    moved = play(cluster, weights=heavy).results("Slots as weighted")[HOST]
    assert (moved["mechanism"], moved["fallbacks"], moved["healed"]) == ("atomic", [], [])
    assert unmeasured(moved["plan"]) == unmeasured(foretold["plan"])
    assert moved["progress"]["slots"] == sum(row["count"] for row in moved["plan"]["moves"]) > 4000
    assert play(cluster, weights=heavy).changed() == []

    back = rebalance(cluster, state="reverted")
    assert back["mechanism"] == "atomic"
    assert slots(cluster) == before
    verdict(workload)


def test_both_ways_lead_to_the_same_end(cluster: Lab) -> None:
    before = slots(cluster)
    heavy = {sorted(before)[1]: 1.2}
    found = {}
    for mechanism in ("atomic", "classic"):
        moved = rebalance(cluster, nodes=nodes(**heavy), mechanism=mechanism)
        assert not moved.get("failed"), moved["msg"]
        assert (moved["mechanism"], moved["fallbacks"]) == (mechanism, [])
        print({"mechanism": mechanism, **moved["progress"]})
        found[mechanism] = (slots(cluster), moved["progress"]["keys"])
        rebalance(cluster, state="reverted", mechanism=mechanism)
        assert slots(cluster) == before
    assert found["atomic"] == found["classic"]


def test_what_was_begun_is_finished_however_little_is_left(cluster: Lab) -> None:
    first = sorted(slots(cluster))[1]
    number = counts(cluster)[first]
    weights = {first: 1.1}
    heavier = nodes(**weights)
    foretold = play(cluster, "--check", weights=weights).results("Slots as weighted")[HOST]
    total = sum(row["count"] for row in foretold["plan"]["moves"])
    for most in (100, total - 103):
        begun = rebalance(cluster, nodes=heavier, max_moves=most)
        assert begun["progress"]["slots"] == most
    assert counts(cluster)[first] - number == total - 3
    # all is within the threshold, so there is nothing to begin
    assert rebalance(cluster, nodes=heavier)["changed"] is False

    journal = Path(begun["journal"])
    *kept, last = journal.read_text().splitlines()
    assert "balanced" in last
    # as if the run had been killed there
    journal.write_text("".join(f"{line}\n" for line in kept))
    foretold = play(cluster, "--check", weights=weights).results("Slots as weighted")[HOST]
    assert sum(row["count"] for row in foretold["plan"]["moves"]) == 3
    ended = rebalance(cluster, nodes=heavier)
    assert (ended["progress"]["slots"], ended["finished"]) == (3, True)
    assert rebalance(cluster, nodes=heavier)["changed"] is False


def test_a_run_that_was_killed_leaves_a_job_that_the_next_one_waits_for(cluster: Lab, workload: list[Workload]) -> None:
    before = slots(cluster)
    first, second, third = sorted(before)
    number = counts(cluster)[first]
    heavy = {first: 3.0}
    # the first job takes some 3,000 keys longer than the lock outlives its owner; the other source waits for the target
    slow_down(cluster, 12_000)
    with started(cluster, heavy):
        job = until(lambda: snapshotting(cluster, (second, third)))
    assert snapshotting(cluster, (second, third)) == job
    assert len(job) == 1
    slow_down(cluster, 0)

    seen = module(cluster, "redis_cluster_health", fail_on="never")
    assert seen["healthy"], seen["table"]
    assert module(cluster, "redis_cluster")["changed"] is False
    assert snapshotting(cluster, (second, third)) == job

    moved = rebalance(cluster, nodes=nodes(**heavy))
    assert not moved.get("failed"), moved["msg"]
    # what the job brought was not moved again, and is known to have been moved
    assert (moved["mechanism"], moved["fallbacks"], moved["healed"]) == ("atomic", [], [])
    after = counts(cluster)
    assert after[first] in (9830, 9831)
    assert moved["progress"]["slots"] == after[first] - number - sum(job.values())
    rebalance(cluster, state="reverted")
    assert slots(cluster) == before
    verdict(workload)


def test_what_the_server_refuses_again_and_again_moves_the_classic_way(cluster: Lab, workload: list[Workload]) -> None:
    before = slots(cluster)
    number = counts(cluster)[sorted(before)[2]]
    heavy = nodes(**{sorted(before)[2]: 1.1})
    every(cluster, "ACL", "SETUSER", "headroom_replication", "-cluster|syncslots")
    refused = rebalance(cluster, nodes=heavy, mechanism="atomic")
    assert refused["failed"]
    assert "Option 'mechanism' has the value 'atomic': mend that, or give 'auto'" in refused["msg"]
    assert "'cluster|syncslots' command" in refused["msg"]
    assert slots(cluster) == before

    moved = rebalance(cluster, nodes=heavy, threshold=0)
    assert moved["mechanism"] == "mixed"
    assert len(moved["plan"]["moves"]) == 2
    assert {(row["source"], row["target"]) for row in moved["fallbacks"]} == {
        (row["source"], row["target"]) for row in moved["plan"]["moves"]
    }
    assert all(
        "has no permissions to run the 'cluster|syncslots' command" in row["reason"] for row in moved["fallbacks"]
    )
    assert moved["finished"]
    assert counts(cluster)[sorted(before)[2]] - number == moved["progress"]["slots"] > 300
    every(cluster, "ACL", "LOAD")
    assert rebalance(cluster, state="reverted")["mechanism"] == "atomic"
    assert slots(cluster) == before
    verdict(workload)


def test_a_failover_of_the_source_ends_the_job_and_the_rest_is_planned_anew(cluster: Lab) -> None:
    rows = sorted(shards(cluster), key=lambda shard: shard["primary"])
    heavy = {rows[0]["primary"]: 3.0}
    heirs = {row["primary"]: row["replicas"][0] for row in rows[1:]}
    slow_down(cluster, 4_000)
    with started(cluster, heavy) as run:
        source = next(iter(until(lambda: snapshotting(cluster, heirs))))
        heir = heirs[source]
        slow_down(cluster, 0)
        cli(cluster, heir, "CLUSTER", "FAILOVER")
        until(lambda: heir in slots(cluster))
        assert run.wait(180) == 0
    after = counts(cluster)
    assert after.keys() == {rows[0]["primary"], heir, *heirs} - {source}
    assert after[rows[0]["primary"]] in (9830, 9831)


@pytest.fixture
def redis84(lab: Lab) -> str:
    """A host of the lab that runs Redis 8.4, which has an atomic migration of its own."""
    there = subprocess.run(["podman", "container", "exists", f"headroom-{REDIS84}"], env=lab.environment, check=False)
    if there.returncode == 0:
        return REDIS84
    newest = subprocess.run(["podman", "container", "exists", f"headroom-{HOST}"], env=lab.environment, check=False)
    if newest.returncode:
        pytest.skip(f"The lab runs without {REDIS84}, and without {HOST}, whose release could have Redis 8.4.")
    release = lab.run(HOST, "sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME").strip()
    said = lab.run(HOST, "sh", "-c", "apt-get -qq update; apt-cache madison redis-server")
    found = re.search(r"\|\s*(?:\d+:)?(\d+)\.(\d+)\S*", said)
    has = f"Redis {found[1]}.{found[2]}" if found else "no Redis"
    enough = found is not None and (int(found[1]), int(found[2])) >= (8, 4)
    remedy = (
        f"add a host {REDIS84} of it to molecule/inventory" if enough else "the migration of Redis 8.4 stays untried"
    )
    pytest.skip(f"The lab runs without {REDIS84}: the package archive of Debian {release} has {has}; {remedy}.")


def test_slots_of_redis_8_4_move_by_its_own_migration(lab: Lab, redis84: str) -> None:
    servers = [{"name": f"{redis84}-{port}", "host": REDIS84_ADDRESS, "port": port} for port in PORTS]
    options = {"ca_certs": str(STATE / "tls" / "redis84" / "ca.crt"), "cluster": "redis84", "lock_wait_s": 60, **ADMIN}
    weighted = [{**server, "weight": 0.9 if at == 0 else 1.0} for at, server in enumerate(servers)]
    result = lab.module("redis_cluster_rebalance", nodes=weighted, mechanism="atomic", threshold=0.0, **options)
    assert (result["changed"], result["mechanism"], result["fallbacks"]) == (True, "atomic", [])
    result = lab.module("redis_cluster_rebalance", nodes=weighted, state="reverted", **options)
    assert (result["changed"], result["finished"]) == (True, True)
