"""The role postgresql_replication on real hosts: what it sets up, what check mode says, how it restarts, what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
import testinfra

from .conftest import ADDRESSES, INVENTORIES, ROOT, STATE, UPSTREAMS, Lab, kill, until

SECRETS = ("lab-only-replication", "lab-only-monitoring")
# made where Ansible runs: in a first check run the directory stands for what is made in it
BELOW_THE_DIRECTORY = {
    "Private keys of the authority and the members",
    "Requests for the certificates",
    "Certificate of the authority",
    "Certificates of the members",
    "List of the members that have a certificate",
}


def started(lab: Lab) -> dict[str, float]:
    """Return when each server started, in seconds since 1970."""
    return {name: float(lab.sql(name, "SELECT extract(epoch FROM pg_postmaster_start_time())")) for name in ADDRESSES}


@pytest.fixture(params=["pg1", "pg4", "pg12a", "pg12b"])
def host(request: pytest.FixtureRequest, lab: Lab) -> testinfra.host.Host:
    """A host of each release and role, looked at from inside."""
    os.environ.update(CONTAINERS_CONF=lab.environment["CONTAINERS_CONF"], PATH=lab.environment["PATH"])
    return testinfra.get_host(f"podman://headroom-{request.param}")


def test_check_mode_on_new_hosts_predicts_what_the_first_run_does(lab: Lab) -> None:
    """The hosts of the older release are new; a check run, a run, and a second run follow. First, since it sets them up."""
    names = ("pg12a", "pg12b")
    if any(lab.run(name, "ls", "/etc/postgresql", check=False) for name in names):
        for name in names:
            subprocess.run(["podman", "kill", f"headroom-{name}"], env=lab.environment, check=True, capture_output=True)
        lab.play("lab/up.yml")
    shutil.rmtree(STATE / "tls" / "postgresql12", ignore_errors=True)
    variables = {"postgresql_hosts": "postgresql12"}
    predicted = lab.play("postgresql.yml", "--check", "--diff", **variables)
    assert not (STATE / "tls" / "postgresql12").exists()
    assert lab.run("pg12a", "ls", "/etc/postgresql", check=False) == ""
    made = lab.play("postgresql.yml", **variables)
    assert [change for change in made.changed() if change[0] not in BELOW_THE_DIRECTORY] == predicted.changed()
    assert ("Instance as declared", "pg12b") in made.changed()
    plans = [play.results("Instance as declared") for play in (predicted, made)]
    for name in names:
        assert plans[0][name]["plan"] == plans[1][name]["plan"]
    assert lab.play("postgresql.yml", **variables).changed() == []


def test_a_host_has_what_the_role_promises(host: testinfra.host.Host) -> None:
    version = {"12": 15, "13": 17}[host.system_info.release.split(".")[0]]
    config = f"/etc/postgresql/{version}/main"
    assert host.service(f"postgresql@{version}-main").is_running
    assert host.file(f"{config}/start.conf").content_string == "auto\n"
    assert host.socket("tcp://0.0.0.0:5432").is_listening
    for path, mode in {"replication.pgpass": 0o600, "tls/server.key": 0o600, "pg_hba.conf": 0o640}.items():
        assert (host.file(f"{config}/{path}").user, host.file(f"{config}/{path}").mode) == ("postgres", mode)
    # nobody gets in whom the inventory did not name
    lines = [line.split() for line in host.file(f"{config}/pg_hba.conf").content_string.splitlines() if line[:1] != "#"]
    assert lines[0] == ["local", "all", "postgres", "peer"]
    assert {(line[0], line[-1]) for line in lines[1:]} == {("hostssl", "scram-sha-256")}
    assert not [line for line in lines if line[2] == "all" or "0.0.0.0/0" in line]
    # no file that others may read and no log holds a password
    found = host.run(
        "grep -rlE %s /etc /var/log /var/lib/postgresql /tmp --exclude=replication.pgpass", "|".join(SECRETS)
    )
    assert found.stdout == ""
    assert not [word for word in SECRETS if word in host.run("ps axww -o args; journalctl --no-pager").stdout]


def test_no_password_shows_even_in_the_most_verbose_output(healthy: Lab) -> None:
    play = healthy.play("postgresql.yml", "-vvv", "--diff", "--check", postgresql_replication_user="other_login")
    assert play.changed()
    assert not [word for word in SECRETS if word in play.text]


def test_a_row_that_the_demo_cannot_write_ends_it(healthy: Lab) -> None:
    # a replica takes no row
    topology = {"primary": "pg2"}
    play = healthy.play(
        "demo.yml",
        "--start-at-task=Write it on the primary",
        "--limit=pg2",
        fails=True,
        __postgresql_replication_topology=topology,
    )
    assert "read-only transaction" in play.results("Write it on the primary")["pg2"]["stderr"]
    assert play.results("Show where it was read") == {}


def test_a_change_that_a_reload_applies_restarts_nobody(healthy: Lab) -> None:
    before = started(healthy)
    settings = {"shared_buffers": "64MB", "max_wal_size": "256MB", "work_mem": "7MB"}
    predicted = healthy.play("postgresql.yml", "--check", postgresql_replication_settings=settings)
    made = healthy.play("postgresql.yml", postgresql_replication_settings=settings)
    assert made.changed() == predicted.changed() == [("Instance as declared", name) for name in ADDRESSES]
    assert {healthy.sql(name, "SHOW work_mem") for name in ADDRESSES} == {"7MB"}
    healthy.play("postgresql.yml")
    assert {healthy.sql(name, "SHOW work_mem") for name in ADDRESSES} != {"7MB"}
    assert started(healthy) == before


def test_a_restart_rolls_replicas_first_and_comes_down_again(healthy: Lab) -> None:
    """max_connections is one of the settings that a replica may not have lower than its primary, on the way down too."""
    before = started(healthy)
    made = healthy.play("postgresql.yml", postgresql_replication_max_connections=60)
    up = started(healthy)
    assert all(up[name] > before[name] for name in ADDRESSES)
    assert max(up, key=up.__getitem__) == "pg1"
    assert up["pg4"] < up["pg2"]
    # each was judged before the next: as many verdicts as restarts, and one at the end
    judged = [
        entry
        for play in made.data["plays"]
        for entry in play["tasks"]
        if entry["task"]["name"].endswith("Judge the cluster")
    ]
    assert (
        len([entry for entry in judged if any(not row.get("skipped") for row in entry["hosts"].values())])
        == len(ADDRESSES) + 1
    )
    healthy.play("postgresql.yml")
    assert {healthy.sql(name, "SHOW max_connections") for name in ADDRESSES} == {"50"}
    assert healthy.play("postgresql.yml").changed() == []


def test_a_restart_that_is_not_allowed_is_only_announced(healthy: Lab) -> None:
    before = started(healthy)
    made = healthy.play(
        "postgresql.yml", postgresql_replication_max_connections=60, postgresql_replication_restart=False
    )
    assert made.results("Instance as declared")["pg3"]["restart_required"] == ["max_connections"]
    assert started(healthy) == before
    healthy.play("postgresql.yml")
    assert started(healthy) == before


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"postgresql_replication_upstream": ""}, "Exactly one member must have no postgresql_replication_upstream"),
        ({"postgresql_replication_upstream": "pg9"}, "Exactly one member must have no postgresql_replication_upstream"),
        ({"postgresql_replication_group": "nobody"}, "Variable postgresql_replication_group has the value 'nobody'"),
        ({"postgresql_replication_password": "short"}, "must have at least 8 characters"),
        (
            {"postgresql_replication_synchronous_mode": "quorum", "postgresql_replication_synchronous_count": 4},
            "Variable postgresql_replication_synchronous_count has the value 4: give 1 to 3",
        ),
        ({"postgresql_replication_min_free_bytes": 1 << 60}, "are needed"),
        ({"postgresql_replication_settings": {"port": 1}}, "Option 'settings' has the value 'port'"),
        ({"postgresql_replication_settings": {"work_mem": "much"}}, "Failed to validate the configuration"),
        ({"postgresql_replication_rebuild": "maybe"}, "value of postgresql_replication_rebuild must be one of"),
        (
            {"postgresql_replication_tls": "given", "postgresql_replication_tls_directory": "/nonexistent"},
            "Variable postgresql_replication_tls is 'given', and these files are missing",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(lab: Lab, variables: dict[str, object], sentence: str) -> None:
    before = {name: lab.run(name, "sh", "-c", "cat /etc/postgresql/17/main/*.conf | sha256sum") for name in ADDRESSES}
    play = lab.play("postgresql.yml", fails=True, **variables)
    assert any(sentence in message + str(play.data) for message in play.messages()), play.messages()
    assert "Traceback" not in play.text
    assert {
        name: lab.run(name, "sh", "-c", "cat /etc/postgresql/17/main/*.conf | sha256sum") for name in ADDRESSES
    } == before


def test_synchronous_replication_by_quorum(healthy: Lab) -> None:
    healthy.play(
        "postgresql.yml", postgresql_replication_synchronous_mode="quorum", postgresql_replication_synchronous_count=1
    )
    states = healthy.sql("pg1", "SELECT DISTINCT sync_state FROM pg_stat_replication")
    assert states == "quorum"
    assert healthy.health()["healthy"]
    healthy.play("postgresql.yml")
    assert healthy.sql("pg1", "SHOW synchronous_standby_names") == ""


def test_a_base_backup_outlives_a_killed_controller_and_is_taken_up_again(healthy: Lab) -> None:
    """pg4 loses its data; the run that rebuilds it is killed while the backup runs; the next run finishes it."""
    healthy.run("pg4", "systemctl", "stop", "postgresql@17-main")
    healthy.run("pg4", "rm", "-rf", "/var/lib/postgresql/17/main")
    command = [
        "ansible-playbook",
        *(f"--inventory={path}" for path in INVENTORIES),
        str(ROOT / "playbooks" / "postgresql.yml"),
    ]
    first = subprocess.Popen(
        [*command, "--extra-vars", "postgresql_replication_max_rate_kib_s=1024"],
        env=healthy.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    unit = "headroom-clone-17-main"
    try:
        until(lambda: healthy.run("pg4", "systemctl", "is-active", unit, check=False) == "active", 90)
        time.sleep(1)
    finally:
        kill(first.pid)
        first.wait()
    assert healthy.run("pg4", "systemctl", "is-active", unit, check=False) == "active"
    second = healthy.play("postgresql.yml")
    plan = [(step["action"], step["why"]) for step in second.results("Instance as declared")["pg4"]["plan"]]
    # it attaches to the backup that runs, or takes up what that has finished by then; it does not begin another
    assert ("clone", "a base backup runs") in plan or "swap" in [action for action, _why in plan]
    assert healthy.run("pg4", "ls", "/var/lib/postgresql/17") == "main"
    assert UPSTREAMS["pg4"] == "pg2"
    assert healthy.sql("pg2", "SELECT application_name FROM pg_stat_replication") == "pg4"
