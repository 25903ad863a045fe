# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs the tests, and what shows the demo, fails when what it runs does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import INVENTORIES, ROOT, Lab, Play

PASSES = "def test_one():\n    pass\n"
FAILS = "def test_one():\n    assert 1 == 2\n"


def play(lab: Lab, path: Path, *arguments: str) -> Play:
    """Run a playbook that is not one of the collection's."""
    command = ["ansible-playbook", *(f"--inventory={one}" for one in INVENTORIES), str(path), *arguments]
    environment = {**lab.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False)
    return Play(done)


@pytest.mark.parametrize(
    ("test", "program", "fails", "shown"),
    [
        (PASSES, "", False, "1 passed"),
        (FAILS, "", True, "1 failed"),
        ("", "", True, "no tests ran"),
        (PASSES, "raise SystemExit('lost 3')", True, "lost 3"),
    ],
)
def test_a_verify_fails_with_its_tests_and_programs_and_shows_what_they_say(
    lab: Lab, tmp_path: Path, test: str, program: str, fails: bool, shown: str
) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "tests" / "program.py").write_text(program)
    variables = {
        "verify_name": "it",
        "verify_root": str(tmp_path),
        "verify_tests": ["test_it.py"],
        "verify_programs": ["program"],
    }
    tasks = [{"ansible.builtin.import_tasks": str(ROOT / "molecule" / "verify_with_tests.yml")}]
    playbook = tmp_path / "verify.yml"
    playbook.write_text(
        json.dumps(
            [{"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables, "tasks": tasks}]
        )
    )

    done = play(lab, playbook)

    assert (done.code != 0) == fails
    assert shown in done.text
    if shown != "lost 3":
        assert shown in (tmp_path / "tests" / "output" / "it.txt").read_text()


@pytest.mark.parametrize(
    ("playbook", "variables"),
    [
        # nothing of the lab answers there
        ("demo_grow.yml", {"demo_hosts": ["10.77.0.250"]}),
        ("demo_shards.yml", {name: ["host=127.0.0.1 port=1 dbname=app"] for name in ("demo_shards", "demo_routers")}),
    ],
)
def test_a_demo_whose_load_does_not_work_ends_before_anything_moves(
    lab: Lab, playbook: str, variables: dict[str, list[str]]
) -> None:
    done = play(lab, ROOT / "playbooks" / playbook, "--extra-vars", json.dumps(variables))

    assert done.code != 0
    assert [entry["play"]["name"] for entry in done.data["plays"]] == ["Start a load that checks its own data"]


def test_a_demo_before_which_no_load_balancer_answers_ends_before_an_application_is_killed(lab: Lab) -> None:
    variables = {"demo_balancers": ["http://127.0.0.1:1"]}
    start = "--start-at-task=Make a place for the sign that ends it"
    done = play(lab, ROOT / "playbooks" / "demo_edge.yml", start, "--extra-vars", json.dumps(variables))

    assert done.code != 0
    tasks = [entry["task"]["name"] for one in done.data["plays"] for entry in one["tasks"]]
    assert tasks[-1] == "Require that it works"


@pytest.mark.parametrize(
    ("step", "program", "does"),
    [
        ("Kill it", "systemctl", "exit 1"),
        ("Change it on the primary", "runuser", "exit 1"),
        # there is no such row
        ("Change it on the primary", "runuser", "exit 0"),
    ],
)
def test_a_demo_whose_step_did_nothing_ends_with_it(
    lab: Lab, tmp_path: Path, step: str, program: str, does: str
) -> None:
    """The steps say that they changed something, and must not say so of what failed."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / program
    fake.write_text(f"#!/bin/sh\n{does}\n")
    fake.chmod(0o755)
    here = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_host": "127.0.0.1",
        "ansible_python_interpreter": sys.executable,
    }
    # as the play before it has seen the primary
    groups = {"apps": here, "postgresql": {**here, "app_recovery": {"stdout": "f"}}}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        json.dumps({"all": {"children": {name: {"hosts": {f"{name}1": own}} for name, own in groups.items()}}})
    )
    environment = {**lab.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    environment["PATH"] = f"{fake.parent}:{environment['PATH']}"
    command = ["ansible-playbook", f"--inventory={inventory}", str(ROOT / "playbooks" / "demo_edge.yml")]

    done = Play(
        subprocess.run(
            [*command, f"--start-at-task={step}"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=120,
            check=False,
        )
    )

    assert done.code == 2, done.text
    tasks = [entry for one in done.data["plays"] for entry in one["tasks"]]
    assert tasks[-1]["task"]["name"] == step
    assert [row["failed"] for row in tasks[-1]["hosts"].values()] == [True]


def test_a_load_that_failed_fails_its_verdict(lab: Lab, tmp_path: Path) -> None:
    """The demo waits for its load with async_status and an until, which must not take an end for a success."""
    place = tmp_path / "place"
    place.mkdir()
    ends = f"until [ -e {place}/end ]; do sleep 0.2; done; echo '{{}}'; exit 1"
    tasks = [
        {"command": {"argv": ["timeout", "60", "sh", "-c", ends]}, "async": 90, "poll": 0, "register": "demo_load"},
        {"import_tasks": str(ROOT / "playbooks" / "tasks" / "end_load.yml")},
    ]
    variables = {"demo_place": {"path": str(place)}, "demo_says": "all is well"}
    playbook = tmp_path / "load.yml"
    playbook.write_text(
        json.dumps(
            [{"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables, "tasks": tasks}]
        )
    )

    done = play(lab, playbook)

    assert done.code != 0
    results = {entry["task"]["name"]: entry["hosts"] for entry in done.data["plays"][0]["tasks"]}
    assert results["Wait for its verdict"]["localhost"]["rc"] == 1
    assert "Show what the load saw" not in results
    assert not place.exists()


def test_a_cluster_that_does_not_shrink_fails_the_demo_and_its_load_ends(lab: Lab, tmp_path: Path) -> None:
    playbook = shutil.which("ansible-playbook", path=lab.environment["PATH"])
    assert playbook
    (tmp_path / "bin").mkdir()
    inner = tmp_path / "bin" / "ansible-playbook"
    inner.write_text("#!/bin/sh\necho it does not shrink >&2\nexit 2\n")
    inner.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    # as a load that was started in an earlier play, and has ended
    figures = {"operations": 7, "lost": [], "wrong": [], "errors": 0, "p99_ms": 1.0, "max_ms": 2.0}
    job = {"started": 1, "finished": 1, "rc": 0, "changed": True, "stdout": json.dumps(figures)}
    (tmp_path / "1.2").write_text(json.dumps(job))
    variables = {
        "demo_place": {"path": str(place)},
        "demo_load": {"ansible_job_id": "1.2"},
        "ansible_async_dir": str(tmp_path),
    }
    start = "--start-at-task=Run redis.yml without the new host in the inventory"
    environment = {**lab.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    environment["PATH"] = f"{inner.parent}:{environment['PATH']}"
    command = [
        playbook,
        *(f"--inventory={one}" for one in INVENTORIES),
        str(ROOT / "playbooks" / "demo_grow.yml"),
        start,
    ]
    command += ["--extra-vars", json.dumps(variables)]

    done = Play(
        subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False)
    )

    assert done.code != 0
    assert "it does not shrink" in done.text
    assert "7 operations while the cluster grew" in done.text
    assert not place.exists()


def test_a_host_that_is_there_and_does_not_answer_is_not_left_out(lab: Lab) -> None:
    there = subprocess.run(["podman", "container", "exists", "headroom-valkey9a"], env=lab.environment, check=False)
    if there.returncode == 1:
        pytest.skip("The lab runs without valkey9a: its release could not be fetched.")
    subprocess.run(["podman", "pause", "headroom-valkey9a"], env=lab.environment, check=True, timeout=60)
    try:
        converge = ROOT / "molecule" / "redis_cluster_atomic" / "converge.yml"
        done = play(lab, converge, "--limit=valkey9a", "--timeout=5", "--ssh-extra-args=-o ControlPath=none")
    finally:
        subprocess.run(["podman", "unpause", "headroom-valkey9a"], env=lab.environment, check=True, timeout=60)

    assert done.code != 0
    assert done.data["stats"]["valkey9a"]["unreachable"] == 1
