"""Each fault is made on real servers, and the verdict tells it apart from the others."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import ADDRESSES, Lab, until

NODES = [{"name": name, "host": address} for name, address in ADDRESSES.items()]


def node(verdict: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one node of a verdict."""
    return next(entry for entry in verdict["nodes"] if entry["name"] == name)


def codes(verdict: dict[str, Any], name: str) -> set[str]:
    """Return the reason codes of one node."""
    return {reason["code"] for reason in node(verdict, name)["reasons"]}


def nodes(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cluster's nodes with some of them changed."""
    return [{**entry, **changes.get(entry["name"], {})} for entry in NODES]


def write(lab: Lab, rows: int = 1000) -> None:
    """Write rows on the primary."""
    lab.sql(
        lab.primary(),
        "CREATE TABLE IF NOT EXISTS headroom.fault (payload text);"
        f"INSERT INTO headroom.fault SELECT repeat('x', 500) FROM generate_series(1, {rows});",
    )


def override(lab: Lab, host: str, **settings: str) -> None:
    """Set settings on one host behind the role's back."""
    for name, value in settings.items():
        lab.sql(host, f"ALTER SYSTEM SET {name} = '{value}'")
    lab.sql(host, "SELECT pg_reload_conf()")


def restore(lab: Lab, host: str, *names: str) -> None:
    """Undo what override did."""
    for name in names:
        lab.sql(host, f"ALTER SYSTEM RESET {name}")
    lab.sql(host, "SELECT pg_reload_conf()")


@pytest.fixture
def deaf(healthy: Lab) -> Iterator[Lab]:
    """The cluster with the WAL receiver of pg3 dead."""
    override(healthy, "pg3", primary_conninfo="host=127.0.0.1 port=1")
    try:
        until(lambda: healthy.sql("pg3", "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "0")
        yield healthy
    finally:
        restore(healthy, "pg3", "primary_conninfo")


def test_an_idle_cluster_is_healthy_and_has_no_lag(healthy: Lab) -> None:
    healthy.health(wait_s=30)
    time.sleep(5)
    verdict = healthy.health(heartbeat=True)
    assert verdict["healthy"]
    assert verdict["primary"] == "pg1"
    assert verdict["read_pool"] == ["pg2", "pg3", "pg4"]
    assert set(verdict["failover_candidates"][:2]) == {"pg2", "pg3"}
    for name in ("pg2", "pg3", "pg4"):
        assert node(verdict, name)["lag_s"] < 1
        assert codes(verdict, name) == set()
    tree = verdict["topology"][0]
    assert tree["name"] == "pg1"
    assert {child["name"]: [leaf["name"] for leaf in child["children"]] for child in tree["children"]} == {
        "pg2": ["pg4"],
        "pg3": [],
    }


def test_a_killed_replica_refuses_connections(healthy: Lab) -> None:
    healthy.signal("pg3", "SIGKILL")
    try:
        verdict = until(lambda: v if "connection_refused" in codes(v := healthy.health(), "pg3") else None, 20)
        assert node(verdict, "pg3")["verdict"] == "unreachable"
        assert verdict["healthy"] is False
        assert "pg3" not in verdict["read_pool"] + verdict["failover_candidates"]
        assert healthy.health(min_healthy_replicas=2)["healthy"] is True
    finally:
        healthy.run("pg3", "systemctl", "restart", "postgresql@17-main")


def test_a_frozen_replica_is_not_a_silent_port(healthy: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        healthy.signal("pg3", "SIGSTOP")
        try:
            time.sleep(4)
            extra = {"name": "silent", "host": "127.0.0.1", "port": silent.getsockname()[1]}
            verdict = healthy.health([*NODES, extra])
            assert codes(verdict, "pg3") == {"no_response", "frozen"}
            assert codes(verdict, "silent") == {"no_response"}
            assert {node(verdict, name)["verdict"] for name in ("pg3", "silent")} == {"unreachable"}
        finally:
            healthy.signal("pg3", "SIGCONT")


def test_a_dead_receiver_beside_an_idle_primary(deaf: Lab) -> None:
    verdict = deaf.health()
    found = node(verdict, "pg3")
    assert codes(verdict, "pg3") == {"wal_receiver_down"}
    assert found["verdict"] == "unhealthy"
    assert found["lag_s"] is None
    assert "pg3" not in verdict["read_pool"]


def test_a_dead_receiver_beside_a_writing_primary(deaf: Lab) -> None:
    write(deaf, 4000)
    time.sleep(2)
    verdict = deaf.health(max_lag_bytes=1000, max_lag_s=1)
    found = node(verdict, "pg3")
    assert codes(verdict, "pg3") == {"wal_receiver_down", "lag_bytes", "lag_s"}
    assert found["lag_bytes"] > 1000
    assert found["lag_s"] > 1


def test_paused_replay(healthy: Lab) -> None:
    healthy.sql("pg3", "SELECT pg_wal_replay_pause()")
    try:
        until(lambda: healthy.sql("pg3", "SELECT pg_get_wal_replay_pause_state()") == "paused")
        verdict = healthy.health()
        assert codes(verdict, "pg3") == {"replay_paused"}
        late = healthy.health(heartbeat=True)
        assert codes(late, "pg3") >= {"replay_paused", "heartbeat_missed"}
    finally:
        healthy.sql("pg3", "SELECT pg_wal_replay_resume()")


def test_lag_in_bytes_and_in_seconds_are_judged_apart(healthy: Lab) -> None:
    override(healthy, "pg3", recovery_min_apply_delay="20s")
    try:
        # the delay is taken at a commit, so what comes after the first one has to wait
        write(healthy, 1)
        write(healthy, 4000)
        time.sleep(2)
        bytes_alone = healthy.health(max_lag_bytes=1000, max_lag_s=600)
        assert codes(bytes_alone, "pg3") == {"lag_bytes"}
        seconds_alone = healthy.health(max_lag_bytes=1 << 40, max_lag_s=1)
        assert codes(seconds_alone, "pg3") == {"lag_s"}
    finally:
        restore(healthy, "pg3", "recovery_min_apply_delay")


def test_a_missing_slot(healthy: Lab) -> None:
    override(healthy, "pg3", primary_slot_name="nobody")
    try:
        verdict = until(lambda: v if "slot_missing" in codes(v := healthy.health(), "pg3") else None, 30)
        assert codes(verdict, "pg3") == {"slot_missing", "wal_receiver_down"}
    finally:
        restore(healthy, "pg3", "primary_slot_name")


def test_a_cascading_replica_whose_upstream_lags(healthy: Lab) -> None:
    override(healthy, "pg2", primary_conninfo="host=127.0.0.1 port=1")
    try:
        until(lambda: healthy.sql("pg2", "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "0")
        write(healthy, 4000)
        time.sleep(2)
        verdict = healthy.health(max_lag_bytes=1000)
        assert "wal_receiver_down" in codes(verdict, "pg2")
        assert codes(verdict, "pg4") >= {"upstream_not_healthy", "lag_bytes"}
        assert "wal_receiver_down" not in codes(verdict, "pg4")
        assert verdict["read_pool"] == ["pg3"]
    finally:
        restore(healthy, "pg2", "primary_conninfo")


def test_what_cannot_be_reached_is_told_apart(healthy: Lab) -> None:
    override(healthy, "pg4", ssl="off")
    try:
        verdict = healthy.health(
            nodes(pg2={"host": "no-such-host.invalid"}, pg3={"pooler_port": 1}),
            min_healthy_replicas=1,
        )
        assert codes(verdict, "pg2") == {"dns_failure"}
        assert codes(verdict, "pg3") == {"pooler_unreachable"}
        assert codes(verdict, "pg4") == {"tls_refused"}
        assert node(verdict, "pg3")["verdict"] == "unhealthy"
        assert verdict["read_pool"] == []
        assert "pg3" in verdict["failover_candidates"]
        assert verdict["healthy"] is False
    finally:
        restore(healthy, "pg4", "ssl")


def test_a_wrong_password_is_nobody_s_health(healthy: Lab) -> None:
    verdict = healthy.health(login_password="lab-only-wrong")
    assert verdict["healthy"] is False
    assert all(codes(verdict, name) == {"authentication_failed"} for name in ADDRESSES)
    assert "lab-only-wrong" not in str(verdict)


def test_a_promoted_replica_beside_a_live_primary_and_then_on_its_forked_timeline(healthy: Lab) -> None:
    """Promote pg3, let it write, make it a replica again: two primaries first, then a fork that streams nothing."""
    healthy.sql("pg3", "SELECT pg_promote()")
    healthy.sql("pg3", "CREATE TABLE forked (i int)")
    both = healthy.health()
    assert codes(both, "pg1") >= {"two_primaries"}
    assert codes(both, "pg3") >= {"two_primaries"}
    assert both["primary"] is None
    assert both["read_pool"] == [] or not both["healthy"]
    assert any("pg1" in str(error) and "pg3" in str(error) for error in both["errors"])

    refused = healthy.play("postgresql.yml", fails=True)
    assert any("Two primaries are live: pg1 and pg3" in message for message in refused.messages())

    healthy.run("pg3", "systemctl", "stop", "postgresql@17-main")
    healthy.run("pg3", "runuser", "-u", "postgres", "--", "touch", "/var/lib/postgresql/17/main/standby.signal")
    healthy.run("pg3", "systemctl", "start", "postgresql@17-main")
    write(healthy)
    forked = until(lambda: v if "timeline_forked" in codes(v := healthy.health(), "pg3") else None, 20)
    assert codes(forked, "pg3") >= {"timeline_forked", "wal_receiver_down"}
    assert forked["primary"] == "pg1"

    # the role sees the same and does not touch the data without leave
    refused = healthy.play("postgresql.yml", fails=True)
    assert any("fell off" in message and "'rewind'" in message for message in refused.messages())
    assert refused.changed() == []
    rejoined = healthy.play("postgresql.yml", postgresql_replication_rebuild="rewind")
    steps = [step["action"] for step in rejoined.results("Instance as declared")["pg3"]["plan"]]
    assert "rewind" in steps
    assert "clone" not in steps
    assert healthy.sql("pg3", "SELECT to_regclass('forked') IS NULL") == "t"


def test_a_lost_slot_and_the_way_back_by_a_base_backup(healthy: Lab) -> None:
    healthy.run("pg3", "systemctl", "stop", "postgresql@17-main")
    override(healthy, "pg1", max_slot_wal_keep_size="1MB", wal_keep_size="0")
    try:
        for _segment in range(8):
            write(healthy, 10)
            healthy.sql("pg1", "SELECT pg_switch_wal()")
        healthy.sql("pg1", "CHECKPOINT")
        healthy.run("pg3", "systemctl", "start", "postgresql@17-main")
        verdict = until(lambda: v if "slot_lost" in codes(v := healthy.health(), "pg3") else None, 30)
        assert codes(verdict, "pg3") >= {"slot_lost", "wal_receiver_down"}
        assert "timeline_forked" not in codes(verdict, "pg3")
    finally:
        restore(healthy, "pg1", "max_slot_wal_keep_size", "wal_keep_size")
    refused = healthy.play("postgresql.yml", fails=True, postgresql_replication_rebuild="rewind")
    assert any("fell off" in message and "'basebackup'" in message for message in refused.messages())
    rebuilt = healthy.play("postgresql.yml", postgresql_replication_rebuild="basebackup")
    steps = [step["action"] for step in rebuilt.results("Instance as declared")["pg3"]["plan"]]
    assert "clone" in steps
    # the former data directory is kept until its successor streams, and no longer
    assert healthy.run("pg3", "ls", "/var/lib/postgresql/17") == "main"
