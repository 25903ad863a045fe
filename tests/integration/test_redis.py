"""Redis and Valkey clusters on real hosts: set up, restarted, grown and shrunk under a workload that checks its own data."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import testinfra
from workloads.redis_cluster import Workload, working

from .conftest import INVENTORIES, ROOT, STATE, Lab, kill, until

# lab-only, the same as in inventories/lab/group_vars/redis.yml
ADMIN = {"login_user": "headroom_admin", "login_password": "lab-only-administration"}
SECRETS = ("lab-only-administration", "lab-only-redis-replication", "lab-only-redis-monitoring", "lab-only-application")
HOSTS = {f"redis{number}": f"10.77.0.3{number}" for number in range(1, 5)}
CA = STATE / "tls" / "redis" / "ca.crt"
# with the fourth host in the cluster
GROWN = (*INVENTORIES, ROOT / "inventories" / "lab_grown")


def nodes(hosts: int = 3, **weights: float) -> list[dict[str, Any]]:
    """Return the nodes of the first hosts, the first ports first."""
    return [
        {"name": f"{host}-{port}", "host": HOSTS[host], "port": port}
        | ({"weight": weights[host]} if host in weights else {})
        for port in (6379, 6380)
        for host in list(HOSTS)[:hosts]
    ]


def module(lab: Lab, kind: str, /, hosts: int = 3, **options: Any) -> dict[str, Any]:
    """Run one of the modules on the cluster."""
    return lab.module(kind, **{"nodes": nodes(hosts), "ca_certs": str(CA), **ADMIN, **options})


def cli(lab: Lab, node: str, *command: str) -> str:
    """Run a command on a node through its own socket."""
    host, port = node.split("-")
    script = f'REDISCLI_AUTH=$0 exec redis-cli -s /run/redis-{port}/redis.sock --user headroom_admin "$@"'
    return lab.run(host, "sh", "-c", script, ADMIN["login_password"], *command)


def workload_of(seed: int) -> Workload:
    """Return a workload on the cluster, not started."""
    return Workload(seed, list(HOSTS.values())[:3], str(CA))


@pytest.fixture
def cluster(lab: Lab) -> Iterator[Lab]:
    """The cluster, which must be as healthy after the test as it was before."""
    yield lab
    after = module(lab, "redis_cluster_health", wait_s=60, fail_on="never")
    if not after["healthy"]:
        # one test's failure is not the next one's
        lab.play("redis.yml", redis_cluster_purge=True)
    assert after["healthy"], after["table"]


@pytest.fixture
def workload(cluster: Lab) -> Iterator[list[Workload]]:
    """Two running workloads; their keys are gone afterwards."""
    try:
        with working([workload_of(seed) for seed in range(2)]) as threads:
            yield threads
    finally:
        for row in module(cluster, "redis_cluster_health", fail_on="never")["nodes"]:
            if row["role"] == "primary":
                cli(cluster, row["name"], "FLUSHALL")


def verdict(threads: list[Workload]) -> list[dict[str, Any]]:
    """Finish the workloads, show their figures and return them."""
    found = [thread.finish() for thread in threads]
    for one in found:
        print({**one, "errors": one["errors"][:5]})
        assert one["lost"] == []
        assert one["wrong"] == []
    return found


@pytest.mark.parametrize(
    ("name", "engine", "version"),
    [("redis1", "redis", "8."), ("redis12a", "redis", "7.0"), ("valkey1", "valkey", "8.1")],
)
def test_a_host_has_what_the_role_promises(lab: Lab, name: str, engine: str, version: str) -> None:
    os.environ.update(CONTAINERS_CONF=lab.environment["CONTAINERS_CONF"], PATH=lab.environment["PATH"])
    host = testinfra.get_host(f"podman://headroom-{name}")
    for port in (6379, 6380):
        assert host.service(f"{engine}-server@{port}").is_running
        assert host.service(f"{engine}-server@{port}").is_enabled
        for path in (f"{engine}-{port}.conf", f"users-{port}.acl", f"tls-{port}/key.pem"):
            file = host.file(f"/etc/{engine}/{path}")
            assert (file.user, file.mode) == (engine, 0o640), path
        # nobody gets in without TLS or as the user default
        assert "PONG" not in host.run(f"timeout 3 {engine}-cli -p {port} ping").stdout
        answer = host.run(
            f"timeout 3 {engine}-cli -p {port} --tls --insecure --cacert /etc/{engine}/tls-{port}/ca.pem ping"
        ).stdout
        assert "NOAUTH" in answer
    assert not host.service(f"{engine}-server").is_running
    said = host.run(f"{engine}-server --version").stdout
    assert f"v={version}" in said
    # no file that others may read and no log holds a password, and none but that of the replication user is kept at all
    found = host.run("grep -rlE %s /etc /var/log /tmp", "|".join(SECRETS)).stdout.split()
    assert {path for path in found if not path.startswith(f"/etc/{engine}/{engine}-63")} == set()
    assert SECRETS[0] not in host.run(f"cat /etc/{engine}/*.conf /etc/{engine}/*.acl").stdout
    assert not [word for word in SECRETS if word in host.run("ps axww -o args; journalctl --no-pager").stdout]


@pytest.mark.parametrize("group", ["redis", "redis12", "valkey"])
def test_each_engine_is_one_cluster_and_a_second_run_changes_nothing(lab: Lab, group: str) -> None:
    play = lab.play("redis.yml", redis_hosts=group)
    assert play.changed() == []
    verdict_ = lab.play("redis_health.yml", redis_hosts=group).results("Judge the cluster")
    found = next(iter(verdict_.values()))
    assert found["healthy"], found["table"]
    assert sum(shard["slots_count"] for shard in found["shards"]) == 16384
    assert sorted(len(shard["replicas"]) for shard in found["shards"]) == [1, 1, 1]


def test_the_role_sees_a_setting_that_only_the_administrator_may_read(cluster: Lab) -> None:
    node = nodes()[0]["name"]
    former = cli(cluster, node, "CONFIG", "GET", "appendfsync").split()[-1]
    cli(cluster, node, "CONFIG", "SET", "appendfsync", "always")
    try:
        verdict_ = cluster.play("redis_health.yml").results("Judge the cluster")
        found = next(iter(verdict_.values()))
        assert [reason["code"] for row in found["nodes"] if row["name"] == node for reason in row["reasons"]] == [
            "config_drift"
        ]
    finally:
        cli(cluster, node, "CONFIG", "SET", "appendfsync", former)


def started(lab: Lab) -> dict[str, str]:
    """Return name to what is another after each start."""
    return {node["name"]: cli(lab, node["name"], "INFO", "server").split("run_id:")[1][:40] for node in nodes()}


def test_a_change_that_the_server_takes_restarts_nobody_and_check_mode_tells_it(cluster: Lab) -> None:
    before = started(cluster)
    settings = {"maxmemory-samples": 7}
    predicted = cluster.play("redis.yml", "--check", "--diff", redis_cluster_settings=settings)
    assert not [word for word in SECRETS if word in predicted.text]
    made = cluster.play("redis.yml", redis_cluster_settings=settings)
    assert made.changed() == predicted.changed() == [("Instances as declared", f"redis{n}") for n in (1, 2, 3)]
    plans = [
        [row["plan"] for row in play.results("Instances as declared")["redis1"]["instances"]]
        for play in (predicted, made)
    ]
    assert plans[0] == plans[1]
    assert {cli(cluster, node["name"], "CONFIG", "GET", "maxmemory-samples").split()[-1] for node in nodes()} == {"7"}
    assert started(cluster) == before
    # taken out again, it is as it was until a restart, which is only announced here
    back = cluster.play("redis.yml", redis_cluster_restart=False)
    assert back.results("Instances as declared")["redis1"]["restart_required"] == [6379, 6380]
    cluster.play("redis.yml", redis_cluster_settings={"maxmemory-samples": 5})
    assert started(cluster) == before


def test_a_refused_setting_leaves_everything_as_it_was(cluster: Lab) -> None:
    before = cluster.run("redis1", "sh", "-c", "cat /etc/redis/redis-*.conf | sha256sum")
    play = cluster.play("redis.yml", fails=True, redis_cluster_settings={"maxmemory-policy": "whatever"})
    assert any("Failed to set maxmemory-policy on port 6379" in message for message in play.messages())
    assert cluster.run("redis1", "sh", "-c", "cat /etc/redis/redis-*.conf | sha256sum") == before
    assert cli(cluster, "redis1-6379", "CONFIG", "GET", "maxmemory-policy").split()[-1] == "noeviction"


def packages(lab: Lab, host: str) -> list[str]:
    """Return the versions of the server's package that apt knows, the newest first."""
    rows = lab.run(host, "apt-cache", "madison", "redis-server").splitlines()
    return list(dict.fromkeys(row.split("|")[1].strip() for row in rows))


def test_a_rolling_upgrade_costs_the_workload_no_more_than_the_failovers(
    cluster: Lab, workload: list[Workload]
) -> None:
    newest, *older = packages(cluster, "redis1")
    for host in list(HOSTS)[:3] if older else ():
        install = f"apt-get install --yes --allow-downgrades redis-server={older[-1]} redis-tools={older[-1]}"
        cluster.run(host, "sh", "-c", install)
    before = started(cluster)
    # where the archive has one version alone, a directive that the server reads at its start takes its place
    settings = {} if older else {"io-threads": 2}
    cluster.play("redis.yml", redis_cluster_upgrade=True, redis_cluster_settings=settings)
    after = started(cluster)
    assert not [name for name in before if before[name] == after[name]]
    for host in list(HOSTS)[:3]:
        assert newest in cluster.run(host, "dpkg-query", "--show", "redis-server")
    for figures in verdict(workload):
        assert len(figures["errors"]) <= 60, figures["errors"][:10]


def test_it_grows_under_load_is_killed_goes_on_reverts_and_shrinks(cluster: Lab, workload: list[Workload]) -> None:
    """Eight nodes from six, the run that moves the slots killed again and again, then back to six."""
    cluster.play("redis.yml", inventories=GROWN)
    tree = {row["name"]: row for row in module(cluster, "redis_cluster", 4)["nodes"]}
    (primary,) = [name for name in ("redis4-6379", "redis4-6380") if tree[name]["role"] == "primary"]
    assert tree[primary]["slot_count"] == 0

    predicted = cluster.play("redis_rebalance.yml", "--check", inventories=GROWN).results("Slots as weighted")["redis1"]
    command = [
        "ansible-playbook",
        *(f"--inventory={path}" for path in GROWN),
        str(ROOT / "playbooks" / "redis_rebalance.yml"),
    ]
    for delay_s in (4.0, 4.6):
        run = subprocess.Popen(
            command,
            env=cluster.environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            run.wait(delay_s)
        except subprocess.TimeoutExpired:
            kill(run.pid)
            run.wait()
    # the lock of the run that was killed frees itself, and this one waits for it
    cluster.play("redis_rebalance.yml", inventories=GROWN)
    counts = {
        row["name"]: row["slot_count"] for row in module(cluster, "redis_cluster", 4)["nodes"] if row["slot_count"]
    }
    assert sorted(counts.values()) == [4096] * 4
    assert {row["count"] for row in predicted["plan"]["moves"]} <= {1365, 1366}
    assert cluster.play("redis_rebalance.yml", inventories=GROWN).changed() == []

    reverted = cluster.play("redis_rebalance.yml", inventories=GROWN, redis_cluster_rebalance_state="reverted")
    assert reverted.results("Slots as weighted")["redis1"]["shares"]
    left = {row["name"]: row["slot_count"] for row in module(cluster, "redis_cluster", 4)["nodes"]}
    assert left["redis4-6379"] == left["redis4-6380"] == 0

    # the inventory has it no more: emptied and taken out
    shrunk = module(cluster, "redis_cluster", 3, purge=True)
    assert shrunk["changed"]
    assert module(cluster, "redis_cluster", 3, purge=True)["changed"] is False
    for figures in verdict(workload):
        assert figures["errors"] == []


def test_what_is_used_most_moves_to_who_has_least_to_do(cluster: Lab) -> None:
    """One primary has all the commands of twenty keys: as many as can be given away go to the others, and come back."""
    busy = workload_of(0).client
    rows = module(cluster, "redis_cluster_health", fail_on="never")["shards"]
    first, last = (int(edge) for edge in rows[0]["slots"][0].split("-"))
    keys = [key for key in (f"busy:{number}" for number in range(2000)) if first <= busy.keyslot(key) <= last][:20]
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            for key in keys:
                busy.incr(key)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        moved = module(cluster, "redis_cluster_rebalance", by="operations", sample_s=2)
    finally:
        stopping.set()
        worker.join(30)
    shares = {share["name"]: share for share in moved["shares"]}
    assert {share["unit"] for share in shares.values()} == {"commands per second"}
    hot = shares[rows[0]["primary"]]
    assert hot["load_before"] > 10 * hot["load_wanted"] / 4
    assert moved["imbalance"]["after"] < moved["imbalance"]["before"]
    assert 0 < sum(row["count"] for row in moved["plan"]["moves"]) <= 20
    assert all(int(busy.get(key)) > 0 for key in keys)
    assert module(cluster, "redis_cluster_rebalance", state="reverted")["changed"]
    for key in keys:
        busy.delete(key)


def test_moves_that_hold_live_commands_up_are_held_back_and_go_on_later(cluster: Lab) -> None:
    lighter = [node | {"weight": 0.5} if node["name"] == "redis1-6379" else node for node in nodes()]
    limits = {"max_latency_ms": 0.001, "latency_patience_s": 0.5}
    stopped = module(cluster, "redis_cluster_rebalance", nodes=lighter, **limits)
    assert stopped["failed"]
    assert "below max_latency_ms (0.001)" in stopped["msg"]
    gone_on = module(cluster, "redis_cluster_rebalance", nodes=lighter, max_rate_bytes_s=10**9)
    assert gone_on["finished"]
    assert module(cluster, "redis_cluster_rebalance", state="reverted")["changed"]


def test_a_shard_is_handed_over_and_only_once(cluster: Lab) -> None:
    rows = module(cluster, "redis_cluster_health", fail_on="never")["shards"]
    former, heir = rows[0]["primary"], rows[0]["replicas"][0]
    assert module(cluster, "redis_cluster_failover", away_from=former)["primary"] == heir
    again = module(cluster, "redis_cluster_failover", away_from=former)
    assert (again["changed"], again["primary"]) == (False, heir)
    assert module(cluster, "redis_cluster")["changed"] is False


def test_slots_that_somebody_left_open_are_healed_with_their_data(cluster: Lab) -> None:
    shards = module(cluster, "redis_cluster_health", fail_on="never")["shards"]
    source, target = shards[0]["primary"], shards[1]["primary"]
    ids = {name: cli(cluster, name, "CLUSTER", "MYID") for name in (source, target)}
    slot = int(shards[0]["slots"][0].split("-")[0])
    client = workload_of(0).client
    tag = next(f"{{{n}}}" for n in range(200_000) if client.keyslot(f"{{{n}}}") == slot)
    for number in range(50):
        client.set(f"{tag}{number}", number)
    cli(cluster, target, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source])
    cli(cluster, source, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target])
    cli(cluster, source, "CLUSTER", "SETSLOT", str(slot + 1), "MIGRATING", ids[target])
    seen = module(cluster, "redis_cluster_health", fail_on="never")
    assert "slots_open" in {reason["code"] for row in seen["nodes"] for reason in row["reasons"]}
    healed = module(cluster, "redis_cluster")
    assert {row["action"] for row in healed["healed"]} == {"carry", "close"}
    assert [client.get(f"{tag}{number}") for number in range(50)] == [str(number).encode() for number in range(50)]
    assert module(cluster, "redis_cluster")["changed"] is False
    for number in range(50):
        client.delete(f"{tag}{number}")


def lock(lab: Lab, **options: Any) -> dict[str, Any]:
    """Run redis_lock on one lock."""
    return module(lab, "redis_lock", **{"name": "t1", **options})


def test_a_lock_has_one_owner_and_a_number_that_grows(cluster: Lab) -> None:
    first = lock(cluster, token="one", ttl_s=30)
    assert first["changed"]
    second = lock(cluster, token="two")
    assert second["errors"][0]["code"] == "locked"
    assert lock(cluster, token="one", ttl_s=30)["changed"] is False
    assert lock(cluster, token="two", state="released")["errors"][0]["code"] == "lost"
    assert lock(cluster, token="one", state="released")["changed"]
    third = lock(cluster, token="two", ttl_s=5)
    assert third["fence"] > first["fence"]
    assert lock(cluster, token="two", state="released")["changed"]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "redis_cluster",
            {"login_password": "lab-only-wrong"},
            "the login is refused. Check login_user and login_password",
        ),
        (
            "redis_cluster",
            {"nodes": [{"name": "a", "host": "10.77.0.31", "port": 1}]},
            "nothing listens there. Check port",
        ),
        ("redis_cluster", {"nodes": [*nodes(2)]}, "three primaries with 1 replicas each need 6"),
        ("redis_cluster", {"tls": False}, "Failed to reach redis1-6379"),
        ("redis_cluster", {"replicas_per_primary": 99}, "Option 'replicas_per_primary' has the value 99"),
        ("redis_cluster_rebalance", {"nodes": nodes(2)}, "is a member and not in option 'nodes'"),
        ("redis_cluster_rebalance", {"threshold": 7}, "Option 'threshold' has the value 7"),
        ("redis_cluster_rebalance", {"sample_s": 0}, "Option 'sample_s' has the value 0"),
        ("redis_cluster_failover", {"away_from": "nobody"}, "Option 'away_from' has the value 'nobody'"),
        ("redis_lock", {"name": "{x}"}, "Option 'name' has the value '{x}'"),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(
    lab: Lab, name: str, options: dict[str, Any], sentence: str
) -> None:
    result = module(lab, name, **options)
    assert result["failed"]
    assert result["changed"] is False
    assert sentence in result["msg"]
    assert "lab-only-wrong" not in str(result)


@pytest.fixture
def strangers(lab: Lab) -> Iterator[dict[str, dict[str, Any]]]:
    """Servers of their own, without users and TLS: three of the cluster's version, one older, one standalone."""
    found = {}
    for number, (name, host, address) in enumerate(
        [
            ("new1", "redis1", "10.77.0.31"),
            ("new2", "redis1", "10.77.0.31"),
            ("new3", "redis1", "10.77.0.31"),
            ("old", "redis12a", "10.77.0.41"),
            ("alone", "redis1", "10.77.0.31"),
        ]
    ):
        port = 7001 + number
        settings = [f"--port {port}", "--protected-mode no", "--save ''", f"--dir /run/stranger-{port}"]
        settings.append("--cluster-enabled no" if name == "alone" else "--cluster-enabled yes")
        unit = f"--unit=stranger-{port} --property=RuntimeDirectory=stranger-{port}"
        lab.run(host, "sh", "-c", f"systemd-run --quiet --collect {unit} redis-server {' '.join(settings)}")
        found[name] = {"name": name, "host": address, "port": port, "on": host}
    for row in found.values():
        until(lambda row=row: "PONG" in plain(lab, row, "PING"))
    yield found
    for row in found.values():
        lab.run(row["on"], "systemctl", "stop", f"stranger-{row['port']}", check=False)


def plain(lab: Lab, row: dict[str, Any], *command: str) -> str:
    """Run a command on a server of its own."""
    return lab.run(row["on"], "timeout", "5", "redis-cli", "-p", str(row["port"]), *command, check=False)


@pytest.mark.parametrize(
    ("names", "data", "sentence"),
    [
        (("new1", "new2", "alone"), "alone", "is a standalone server with 1 keys"),
        (
            ("new1", "new2", "old"),
            "",
            "old runs redis 7, the cluster redis 8. Install the same major version everywhere.",
        ),
        (("new1", "new2", "new3"), "new2", "Node new2 on 10.77.0.31:7002 holds 1 keys and is in no cluster"),
    ],
)
def test_what_cannot_be_a_cluster_is_refused_and_left_as_it_was(
    lab: Lab, strangers: dict[str, dict[str, Any]], names: tuple[str, ...], data: str, sentence: str
) -> None:
    if data:
        # a cluster without slots takes no keys: it had them when they were its own
        row = strangers[data]
        if data != "alone":
            plain(lab, row, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            until(lambda: "cluster_state:ok" in plain(lab, row, "CLUSTER", "INFO"))
        plain(lab, row, "SET", "kept", "1")
        if data != "alone":
            plain(lab, row, "CLUSTER", "DELSLOTSRANGE", "0", "16383")
    listed = [{key: strangers[name][key] for key in ("name", "host", "port")} for name in names]
    options = {"nodes": listed, "replicas_per_primary": 0, "allow_same_host": True, "tls": False}
    result = lab.module("redis_cluster", **options)
    assert result["failed"]
    assert result["changed"] is False
    assert sentence in result["msg"]
    for name in names:
        if name != "alone":
            assert "cluster_known_nodes:1" in plain(lab, strangers[name], "CLUSTER", "INFO")
    if data:
        assert plain(lab, strangers[data], "DBSIZE") == "1"


def test_a_server_without_atomic_migration_is_told_in_one_sentence(lab: Lab) -> None:
    ended = lab.play(
        "redis_rebalance.yml",
        "--check",
        fails=True,
        redis_hosts="valkey",
        redis_cluster_weights={"6379": 9, "6380": 9},
        redis_cluster_mechanism="atomic",
    )
    assert any(
        "has no atomic slot migration" in message and "give 'auto' or 'classic'" in message
        for message in ended.messages()
    )
