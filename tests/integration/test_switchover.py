"""A planned switchover under a workload that checks its own data, interrupted and undone; replicas removed and added."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from .conftest import ADDRESSES, Lab, until

WAL = "/var/lib/postgresql/17/main/pg_wal"


class Writer(threading.Thread):
    """Writes numbered rows through whichever member takes writes, and remembers which were acknowledged."""

    def __init__(self, password: str) -> None:
        super().__init__(daemon=True)
        self.conninfo = psycopg.conninfo.make_conninfo(
            host=",".join(ADDRESSES.values()),
            user="lab_app",
            password=password,
            dbname="postgres",
            target_session_attrs="read-write",
            connect_timeout=2,
            sslmode="require",
        )
        self.acknowledged: list[int] = []
        self.times: list[float] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        """Write until told to stop; a failed statement may or may not have been done, so its number is not used again."""
        number = 0
        while not self.stopping.is_set():
            try:
                with psycopg.connect(self.conninfo, autocommit=True) as connection:
                    while not self.stopping.is_set():
                        number += 1
                        connection.execute("INSERT INTO app.written VALUES (%s)", (number,))
                        self.acknowledged.append(number)
                        self.times.append(time.monotonic())
                        time.sleep(0.002)
            except psycopg.OperationalError:
                time.sleep(0.05)

    def finish(self) -> float:
        """Stop and return the longest time between two acknowledged writes, in seconds."""
        self.stopping.set()
        self.join(30)
        return max(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))


@pytest.fixture
def writer(healthy: Lab) -> Iterator[Writer]:
    """A running writer; its table and login are gone afterwards."""
    password = "lab-only-application"
    healthy.sql(
        healthy.primary(),
        "DROP SCHEMA IF EXISTS app CASCADE; DROP ROLE IF EXISTS lab_app;"
        f"CREATE ROLE lab_app LOGIN PASSWORD '{password}'; CREATE SCHEMA app AUTHORIZATION lab_app;"
        "CREATE TABLE app.written (number int PRIMARY KEY); GRANT INSERT, SELECT ON app.written TO lab_app;",
    )
    thread = Writer(password)
    thread.start()
    try:
        until(lambda: len(thread.acknowledged) > 100)
        yield thread
    finally:
        thread.stopping.set()
        thread.join(30)
        healthy.sql(healthy.primary(), "DROP SCHEMA app CASCADE; DROP ROLE lab_app;")


def missing(lab: Lab, writer: Writer) -> dict[str, set[int]]:
    """Return host to acknowledged numbers that it does not hold, once every replica has caught up."""
    assert lab.health(heartbeat=True, wait_s=30)["healthy"]
    return {
        name: set(writer.acknowledged)
        - {int(row) for row in lab.sql(name, "SELECT number FROM app.written").splitlines()}
        for name in ADDRESSES
    }


def test_a_switchover_loses_nothing_and_back_again(healthy: Lab, writer: Writer, record_property) -> None:
    predicted = healthy.play("switchover.yml", "--check", switchover_to="pg2")
    assert [task for task, _host in predicted.changed()] == ["Fence the writes", "Promote"]
    assert healthy.primary() == "pg1"
    made = healthy.play("switchover.yml", switchover_to="pg2")
    assert made.changed()[:2] == [("Fence the writes", "pg1"), ("Promote", "pg2")]
    assert healthy.primary() == "pg2"
    assert healthy.play("postgresql.yml").changed() == []
    # the tree hangs from the new primary: the former one is below it, and so is what streamed from either
    assert set(healthy.sql("pg2", "SELECT application_name FROM pg_stat_replication").split()) == {"pg1", "pg3", "pg4"}
    assert healthy.sql("pg1", "SELECT count(*) FROM pg_replication_slots") == "0"
    healthy.play("switchover.yml", switchover_to="pg1")
    assert healthy.primary() == "pg1"
    pause = writer.finish()
    record_property("longest_write_pause_s", pause)
    print(f"acknowledged {len(writer.acknowledged)} writes, longest pause {pause:.2f} s")
    assert missing(healthy, writer) == {name: set() for name in ADDRESSES}


def test_a_switchover_interrupted_after_the_fence_is_undone_or_finished(healthy: Lab, writer: Writer) -> None:
    # segments that a server makes ahead have no header yet
    ahead = healthy.sql(
        "pg1",
        "SELECT pg_walfile_name(pg_current_wal_lsn() + number * 16777216::numeric) FROM generate_series(40, 60) number",
    ).split()
    healthy.run("pg1", "runuser", "-u", "postgres", "--", "sh", "-c", f"cd {WAL} && truncate -s 16M {' '.join(ahead)}")
    fenced = healthy.instance("pg1", state="fenced", candidate="pg2")
    assert fenced["instance"]["fence"]["candidate"] == "pg2"
    # the fence holds: even started by hand the former primary takes no write
    healthy.run("pg1", "systemctl", "start", "postgresql@17-main")
    assert healthy.sql("pg1", "SELECT pg_is_in_recovery()") == "t"
    healthy.run("pg1", "systemctl", "stop", "postgresql@17-main")
    refused = healthy.play("postgresql.yml", fails=True)
    assert any("A switchover from pg1 to pg2 was interrupted" in message for message in refused.messages())
    other = healthy.play("switchover.yml", fails=True, switchover_to="pg3")
    assert any("A switchover from pg1 to pg2 was interrupted" in message for message in other.messages())
    healthy.play("switchover.yml", switchover_rollback=True)
    assert healthy.primary() == "pg1"

    healthy.run("pg1", "sh", "-c", f"cd {WAL} && rm -f {' '.join(ahead)}")
    assert healthy.instance("pg1", state="fenced", candidate="pg2")["changed"]
    healthy.play("switchover.yml", switchover_to="pg2")
    assert healthy.primary() == "pg2"
    healthy.play("switchover.yml", switchover_to="pg1")
    writer.finish()
    assert missing(healthy, writer) == {name: set() for name in ADDRESSES}


def test_a_candidate_that_is_not_fit_is_refused_before_the_fence(healthy: Lab) -> None:
    started = healthy.sql("pg1", "SELECT pg_postmaster_start_time()")
    unknown = healthy.play("switchover.yml", fails=True, switchover_to="pg9")
    assert any("Variable switchover_to has the value 'pg9'" in message for message in unknown.messages())
    healthy.sql("pg3", "SELECT pg_wal_replay_pause()")
    try:
        refused = healthy.play(
            "switchover.yml", fails=True, switchover_to="pg3", postgresql_replication_verify_wait_s=0
        )
        assert refused.changed() == []
    finally:
        healthy.sql("pg3", "SELECT pg_wal_replay_resume()")
    assert healthy.sql("pg1", "SELECT pg_postmaster_start_time()") == started


def test_a_promotion_beyond_or_short_of_the_end_promotes_nothing(healthy: Lab) -> None:
    beyond = healthy.instance("pg3", state="promoted", wal_end_lsn="0/1")
    assert beyond["errors"][0]["code"] == "diverged"
    assert healthy.sql("pg3", "SELECT pg_is_in_recovery()") == "t"


def test_a_replica_is_removed_and_added(healthy: Lab) -> None:
    refused = healthy.play("replica_remove.yml", fails=True, replica="pg1")
    assert any("it is the primary" in message for message in refused.messages())
    refused = healthy.play("replica_remove.yml", fails=True, replica="pg2")
    assert any("pg4 streams from it" in message for message in refused.messages())
    assert healthy.play("replica_remove.yml", "--check", replica="pg4").changed()
    assert healthy.sql("pg4", "SELECT pg_is_in_recovery()") == "t"
    healthy.play("replica_remove.yml", replica="pg4", replica_purge=True)
    assert healthy.sql("pg2", "SELECT count(*) FROM pg_replication_slots") == "0"
    assert healthy.run("pg4", "ls", "/var/lib/postgresql/17", check=False) == ""
    assert "10.77.0.14/32" not in healthy.run("pg1", "cat", "/etc/postgresql/17/main/pg_hba.conf")
    started = healthy.sql("pg1", "SELECT pg_postmaster_start_time()")
    healthy.play("replica_add.yml", replica="pg4")
    assert healthy.sql("pg2", "SELECT application_name FROM pg_stat_replication") == "pg4"
    assert healthy.sql("pg1", "SELECT pg_postmaster_start_time()") == started
