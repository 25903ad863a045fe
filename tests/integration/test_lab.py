"""The lab itself, on a lab of its own beside the one that the other tests use."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import CACHE, INVENTORIES, ROOT, Lab, Play

NAME = "headroom-spare"
STATE = CACHE / NAME
LABEL = f"label=headroom.scale.lab={NAME}"
SSH = f"-o UserKnownHostsFile={STATE}/known_hosts -o StrictHostKeyChecking=yes"


class Spare:
    """A lab of two hosts with a name, a network and a state directory of its own."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.inventory = directory / "hosts.yml"
        self.declare(spare1="10.76.0.11", spare2="10.76.0.12")

    def declare(self, **addresses: str) -> None:
        """Write the inventory."""
        variables = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{STATE}/id_ed25519",
            "ansible_ssh_common_args": SSH,
            "ansible_control_path_dir": f"{STATE}/ssh",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        hosts = {name: {"ansible_host": address} for name, address in addresses.items()}
        self.inventory.write_text(json.dumps({"all": {"children": {"lab": {"hosts": hosts, "vars": variables}}}}))

    def play(self, playbook: str, *arguments: str, fails: bool = False, **variables: Any) -> Play:
        """Run a playbook of the lab."""
        own = {"lab_name": NAME, "lab_subnet": "10.76.0.0/24", "lab_cache_address": "10.76.0.2"}
        return self.lab.play(
            playbook,
            *arguments,
            inventories=[self.inventory],
            fails=fails,
            **{"lab_keep_images": True, **own, **variables},
        )

    def up(self, *arguments: str, **variables: Any) -> list[str]:
        """Bring it up and return what that did, each in a few words."""
        play = self.play("lab/up.yml", *arguments, **variables)
        return play.results("Show what up does")["localhost"]["msg"]

    def podman(self, *argv: str) -> str:
        """Run podman and return what it prints."""
        done = subprocess.run(
            ["podman", *argv], capture_output=True, text=True, env=self.lab.environment, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, host: str, *argv: str) -> str:
        """Run a command inside a host."""
        return self.podman("exec", f"{NAME}-{host}", *argv)

    def containers(self) -> dict[str, str]:
        """Return host to id of this lab's containers, living or dead."""
        rows = self.podman("ps", "--all", "--filter", LABEL, "--format", "{{.Names}} {{.ID}}")
        return {name.removeprefix(f"{NAME}-"): found for name, found in map(str.split, rows.splitlines())}

    def replaced(self, before: dict[str, str]) -> set[str]:
        """Return the hosts that are others than before."""
        after = self.containers()
        return {host for host in before.keys() | after.keys() if before.get(host) != after.get(host)}

    def ping(self) -> dict[str, bool]:
        """Reach every host as a playbook does, over SSH with the keys that up wrote down."""
        done = subprocess.run(
            ["ansible", "lab", f"--inventory={self.inventory}", "--module-name=ansible.builtin.ping", "--timeout=5"],
            capture_output=True,
            text=True,
            # colours, which a test runner may ask for, come between the words
            env={**self.lab.environment, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
            timeout=60,
            check=False,
        )
        return {host: state == "SUCCESS" for host, state in re.findall(r"^(\S+) \| (\w+)", done.stdout, re.MULTILINE)}


def groups() -> list[Path]:
    """Return the control groups of the spare lab in every hierarchy."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    paths = [Path(mount[1]) / NAME for mount in mounts if mount[2] in ("cgroup", "cgroup2")]
    return [path for path in paths if path.exists()]


def end_when_alone(process: subprocess.Popen[bytes]) -> None:
    """End a process a moment after the control groups of the other hierarchies are gone, or after a minute at the latest."""
    deadline = time.monotonic() + 60
    while len(groups()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.kill()


@pytest.fixture(scope="module")
def spare(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spare]:
    """The spare lab, up; removed afterwards."""
    spare = Spare(lab, tmp_path_factory.mktemp("spare"))
    try:
        if STATE.exists() or spare.containers() or groups():
            # a run of these tests that was cut off left it
            spare.play("lab/down.yml")
        # before there is anything, a check run says what would be done and does nothing
        steps = spare.up("--check")
        assert any(step.startswith("start spare1") for step in steps), steps
        assert not STATE.exists()
        assert spare.containers() == {}
        # the packages cached by others stay, and what was announced is what is done
        assert spare.up() == steps
        yield spare
    finally:
        spare.play("lab/down.yml")


@pytest.fixture
def hosts(spare: Spare) -> Iterator[Spare]:
    """The spare lab, with both hosts as declared, before and after the test."""
    before = spare.containers()
    yield spare
    spare.declare(spare1="10.76.0.11", spare2="10.76.0.12")
    if spare.replaced(before):
        spare.play("lab/up.yml")


def test_a_second_up_changes_nothing(hosts: Spare) -> None:
    before = hosts.containers()
    assert set(before) == {"cache", "spare1", "spare2"}
    assert hosts.play("lab/up.yml").changed() == []
    assert hosts.play("lab/up.yml", "--check").changed() == []
    assert hosts.containers() == before


def test_hosts_boot_systemd_and_know_each_other_by_name(hosts: Spare) -> None:
    for host in ("spare1", "spare2"):
        assert hosts.run(host, "systemctl", "is-system-running") == "running"
        assert hosts.run(host, "hostname") == host
    assert "10.76.0.12" in hosts.run("spare1", "getent", "hosts", "spare2")
    hosts.run("spare1", "ping", "-c", "1", "-W", "2", "spare2")
    assert hosts.run("spare1", "findmnt", "--noheadings", "--output=FSTYPE", "/var/lib/redis") == "tmpfs"


def test_each_host_has_a_key_of_its_own_and_answers_to_it(hosts: Spare) -> None:
    lines = [line.split() for line in (STATE / "known_hosts").read_text().splitlines()]
    assert {line[0] for line in lines} == {"10.76.0.2", "10.76.0.11", "10.76.0.12"}
    assert len({line[2] for line in lines}) == 3
    assert hosts.ping() == {"spare1": True, "spare2": True}


def test_packages_come_through_the_shared_cache_and_without_it_too(hosts: Spare) -> None:
    hosts.run("spare1", "apt-get", "install", "-qq", "-y", "--download-only", "tree")
    assert list((CACHE / "packages").rglob("tree_*.deb"))
    log = hosts.run("cache", "cat", "/var/log/apt-cacher-ng/apt-cacher.log")
    assert re.search(r"\|10\.76\.0\.11\|\S+/tree_", log), log

    hosts.run("cache", "systemctl", "stop", "apt-cacher-ng")
    hosts.run("spare2", "apt-get", "install", "-qq", "-y", "--download-only", "tree")
    assert hosts.up() == ["set up the package cache"]
    assert hosts.run("cache", "systemctl", "is-active", "apt-cacher-ng") == "active"


@pytest.mark.parametrize("how", ["kill", "crash"])
def test_a_host_that_died_is_replaced_and_the_others_are_left_alone(hosts: Spare, how: str) -> None:
    before = hosts.containers()
    if how == "kill":
        hosts.podman("kill", f"{NAME}-spare1")
    else:
        # the engine's own watcher dies with it, so the engine goes on to call the host running
        pids = hosts.podman("inspect", "--format", "{{.State.ConmonPid}} {{.State.Pid}}", f"{NAME}-spare1").split()
        subprocess.run(["kill", "-KILL", *pids], check=True)
    assert hosts.up() == ["replace spare1: it died"]
    assert hosts.replaced(before) == {"spare1"}
    assert hosts.ping() == {"spare1": True, "spare2": True}


def test_only_what_the_inventory_has_otherwise_is_touched(hosts: Spare) -> None:
    before = hosts.containers()
    hosts.declare(spare1="10.76.0.11")
    assert hosts.play("lab/up.yml").changed() == []
    hosts.declare(spare1="10.76.0.13", spare2="10.76.0.12")
    assert hosts.up() == ["replace spare1: 10.76.0.13 is wanted, it has 10.76.0.11"]
    assert hosts.replaced(before) == {"spare1"}
    assert hosts.ping() == {"spare1": True, "spare2": True}


def test_a_frozen_host_is_not_a_dead_one(hosts: Spare) -> None:
    before = hosts.containers()
    hosts.podman("pause", f"{NAME}-spare1")
    try:
        assert hosts.play("lab/up.yml").changed() == []
    finally:
        hosts.podman("unpause", f"{NAME}-spare1")
    assert hosts.replaced(before) == set()


def test_a_host_that_did_not_boot_is_named_with_what_failed(hosts: Spare) -> None:
    """Such a host has no line in known_hosts, so that up looks at it again."""
    known = STATE / "known_hosts"
    lines = known.read_text().splitlines(keepends=True)
    subprocess.run(
        ["podman", "exec", f"{NAME}-spare2", "systemd-run", "--quiet", "--wait", "--unit=broken", "false"], check=False
    )
    known.write_text("".join(line for line in lines if not line.startswith("10.76.0.12 ")))
    play = hosts.play("lab/up.yml", fails=True)
    assert any("Failed to boot spare2 (it is degraded by broken.service)" in text for text in play.messages())

    hosts.run("spare2", "systemctl", "reset-failed")
    assert hosts.up() == ["wait for spare2"]
    assert known.read_text() == "".join(lines)


@pytest.mark.parametrize(
    ("addresses", "variables", "sentence"),
    [
        ({"spare1": "10.76.0.2"}, {}, "every host of the group lab needs an ansible_host of its own in 10.76.0.0/24"),
        ({"spare1": ""}, {}, "every host of the group lab needs an ansible_host of its own in 10.76.0.0/24"),
        (
            {"spare1": "10.76.0.11"},
            {"lab_subnet": "10.75.0.0/24"},
            "its network exists with 10.76.0.0/24, not 10.75.0.0/24",
        ),
        ({"spare1": "10.76.0.11"}, {"seen": {"root": False}}, "needs root; run it as root."),
        ({"spare1": "10.76.0.11"}, {"seen": {"cgroup2": False}}, "this kernel has no cgroup2"),
        ({"spare1": "10.76.0.11"}, {"install": ["podman"], "seen": {"programs": []}}, "podman must be installed"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(
    hosts: Spare, addresses: dict[str, str], variables: dict[str, Any], sentence: str
) -> None:
    before = hosts.containers()
    hosts.declare(**addresses)
    seen = {"machine": {"root": True, "system": "Linux", "cgroup2": True, "programs": ["apt-get"]}, "networks": []}
    if "seen" in variables:
        # another machine than this one, as it would look
        seen["machine"].update(variables.pop("seen"))
        seen["plan"] = {"install": variables.pop("install", []), "steps": []}
        variables["lab_seen"] = seen
    play = hosts.play("lab/up.yml", fails=True, **variables)
    said = [*play.messages(), *(row.get("msg", "") for row in failed_items(play))]
    assert any(sentence in text for text in said), said
    assert play.changed() == []
    assert hosts.containers() == before


def failed_items(play: Play) -> list[dict[str, Any]]:
    """Return the items of loops that failed."""
    return [
        item
        for entry in play.data["plays"][0]["tasks"]
        for row in entry["hosts"].values()
        for item in row.get("results", [])
        if isinstance(item, dict) and item.get("failed")
    ]


@pytest.fixture
def programs(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose programs come before those of the machine: what fails there fails for the lab alone."""
    path = f"{tmp_path / 'bin'}:{lab.environment['PATH']}"
    monkeypatch.setattr(lab, "environment", {**lab.environment, "PATH": path})
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def replace_program(programs: Path, name: str, script: str) -> None:
    """Put a script in the place of a program; REAL is the program itself."""
    real = shutil.which(name)
    (programs / name).write_text(f"#!/bin/bash\nREAL={real}\n{script}\n")
    (programs / name).chmod(0o755)


@pytest.mark.parametrize(
    ("program", "fault", "sentence"),
    [
        (
            "podman",
            '[[ $1 != ps ]] || { echo "no engine here" >&2; exit 125; }',
            "Failed to look at the lab headroom-none: ",
        ),
        ("unshare", 'echo "not permitted" >&2; exit 1', "and this machine says: not permitted"),
        ("podman", '[[ "$1 $2" != "network create" ]] || { echo "it is taken" >&2; exit 125; }', "it is taken"),
    ],
)
def test_a_lab_whose_first_steps_fail_says_why_and_has_no_hosts(
    lab: Lab, programs: Path, tmp_path: Path, program: str, fault: str, sentence: str
) -> None:
    other = Spare(lab, tmp_path)
    other.declare(none1="10.74.0.11")
    own = {"lab_name": "headroom-none", "lab_subnet": "10.74.0.0/24", "lab_cache_address": "10.74.0.2"}
    replace_program(programs, program, f'{fault}; exec "$REAL" "$@"')
    try:
        play = other.play("lab/up.yml", fails=True, **own)
        said = json.dumps([row for entry in play.data["plays"][0]["tasks"] for row in entry["hosts"].values()])
        assert sentence in said
        assert "Traceback" not in " ".join(play.messages())
        assert not [
            change for change in play.changed() if change[0] in ("Create a network with names", "Start the hosts")
        ]
    finally:
        (programs / program).unlink()
        other.play("lab/down.yml", **own)


def grown(spare: Spare, **variables: Any) -> None:
    """Declare a third host of a release that has no image yet."""
    spare.declare(spare1="10.76.0.11", spare2="10.76.0.12", spare3="10.76.0.13")
    declared = json.loads(spare.inventory.read_text())
    declared["all"]["children"]["lab"]["hosts"]["spare3"].update({"lab_release": "nowhere", **variables})
    spare.inventory.write_text(json.dumps(declared))


def test_a_release_that_must_be_there_and_cannot_be_made_ends_up_at_once(hosts: Spare, programs: Path) -> None:
    before = hosts.containers()
    grown(hosts)
    replace_program(programs, "mmdebstrap", 'echo "E: no such release" >&2; exit 1')
    play = hosts.play("lab/up.yml", fails=True)
    failed = play.results("Build the missing images, side by side")["localhost"]
    assert "Failed to make the image of nowhere." in failed["stderr"]
    assert not failed["changed"]
    assert hosts.replaced(before) == set()


@pytest.mark.parametrize(
    ("releases", "code", "said"),
    [
        (["good"], 0, ["made good"]),
        (["good", "bad?"], 0, ["made good", "without bad"]),
        # the failure of one is not forgotten over the others that end well after it
        (["bad", "good"], 1, ["made good"]),
        (["bad", "worse?", "good"], 1, ["without worse", "made good"]),
    ],
)
def test_the_images_that_could_not_be_made_are_told(
    hosts: Spare, programs: Path, tmp_path: Path, releases: list[str], code: int, said: list[str]
) -> None:
    replace_program(
        programs, "mmdebstrap", 'for one; do case $one in bad|worse) exit 1;; *.part) : >"$one";; esac; done'
    )
    replace_program(programs, "podman", "echo an id")
    script = ROOT / "playbooks/lab/roles/lab/files/make-images"
    done = subprocess.run(
        ["bash", str(script), "image", "inputs", str(tmp_path), "false", "", "", *releases],
        capture_output=True,
        text=True,
        env=hosts.lab.environment,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()) == (code, said)


def test_a_release_in_the_making_is_left_out_and_said_so(hosts: Spare, programs: Path) -> None:
    before = hosts.containers()
    # what builds before this one have left would go now
    hosts.podman("image", "prune", "--force", "--filter", "label=headroom.scale.inputs")
    grown(hosts, lab_optional=True)
    replace_program(programs, "mmdebstrap", 'echo "E: no such release" >&2; exit 1')
    play = hosts.play("lab/up.yml")
    assert "without spare3" in play.results("Show what stays out")["localhost"]["msg"]
    # nothing was made, so nothing changed
    assert play.changed() == []
    assert hosts.replaced(before) == set()


def test_what_fails_after_the_root_of_an_optional_release_was_made_is_no_excuse(hosts: Spare, programs: Path) -> None:
    grown(hosts, lab_optional=True)
    replace_program(programs, "mmdebstrap", 'for one; do case $one in *.part) : >"$one";; esac; done')
    replace_program(
        programs, "podman", '[[ $1 != import ]] || { echo "no space left" >&2; exit 1; }; exec "$REAL" "$@"'
    )
    play = hosts.play("lab/up.yml", fails=True)
    failed = play.results("Build the missing images, side by side")["localhost"]
    assert "no space left" in failed["stderr"]
    for path in (CACHE / "images").glob("nowhere-*"):
        path.unlink()


def test_a_host_takes_the_release_that_its_inventory_gives_it(lab: Lab) -> None:
    """A variable in group_vars of one inventory wins over one beside the hosts of another, so none may be there."""
    done = subprocess.run(
        ["ansible-inventory", *(f"--inventory={path}" for path in INVENTORIES), "--host=pg12a"],
        capture_output=True,
        text=True,
        env=lab.environment,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["lab_release"] == "bookworm"
    assert lab.run("pg12a", "cat", "/etc/debian_version").startswith("12.")


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("rm", "Remove hosts that died or are not what the inventory says"),
        ("run", "Start the missing"),
    ],
)
def test_a_host_that_cannot_be_replaced_ends_up_and_leaves_the_others(
    hosts: Spare, programs: Path, command: str, task: str
) -> None:
    before = hosts.containers()
    hosts.podman("kill", f"{NAME}-spare1")
    fault = f'[[ $1 != {command} ]] || {{ echo "it is busy" >&2; exit 125; }}; exec "$REAL" "$@"'
    replace_program(programs, "podman", fault)
    play = hosts.play("lab/up.yml", fails=True)
    assert "it is busy" in json.dumps(play.results(task)["localhost"])
    (programs / "podman").unlink()
    assert hosts.replaced(before) <= {"spare1"}
    hosts.play("lab/up.yml")


def test_a_package_cache_that_cannot_be_installed_ends_up(hosts: Spare, programs: Path) -> None:
    hosts.podman("kill", f"{NAME}-cache")
    fault = f'[[ "$1 $3" != "exec {NAME}-cache" ]] || {{ echo "no such package" >&2; exit 100; }}; exec "$REAL" "$@"'
    replace_program(programs, "podman", fault)
    play = hosts.play("lab/up.yml", fails=True)
    assert "no such package" in play.results("Install the package cache in its host")["localhost"]["stderr"]
    (programs / "podman").unlink()
    hosts.play("lab/up.yml")


def test_a_down_that_leaves_something_says_what(hosts: Spare, programs: Path) -> None:
    def fails(program: str, fault: str, task: str, **variables: Any) -> dict[str, Any]:
        replace_program(programs, program, f'{fault}; exec "$REAL" "$@"')
        play = hosts.play("lab/down.yml", fails=True, **variables)
        (programs / program).unlink()
        return play.results(task)["localhost"]

    before = hosts.containers()
    busy = '{ echo "it is busy" >&2; exit 125; }'
    assert "it is busy" in fails("podman", f"[[ $1 != rm ]] || {busy}", "Remove the hosts")["stderr"]
    assert hosts.replaced(before) == set()
    assert "it is busy" in fails("podman", f'[[ "$1 $2" != "network rm" ]] || {busy}', "Remove the network")["stderr"]
    # the images are shared with the lab of the other tests, so none of them is asked for
    images = fails("podman", f"[[ $1 != rmi ]] || {busy}", "Remove the images", lab_images=["0123456789ab"])
    assert "it is busy" in images["stderr"]
    assert groups()
    assert fails("timeout", "[[ $1 != 20 ]] || exit 124", "Remove the control groups")["rc"] == 124
    assert groups()
    hosts.play("lab/up.yml")
    # and where the engine tells of none
    left = fails("podman", '[[ "$1 $2" != "network rm" ]] || exit 0', "Require that nothing is left of it")
    assert f"network {NAME} is still there" in left["msg"]
    hosts.play("lab/up.yml")


def test_a_down_waits_for_the_last_process_in_any_hierarchy(hosts: Spare) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            # it stays until down looks at what is left, in one hierarchy of several
            (groups()[-1] / "cgroup.procs").write_text(str(process.pid))
            timer = threading.Timer(0, end_when_alone, [process])
            timer.start()
            hosts.play("lab/down.yml")
            timer.join()
        finally:
            process.kill()
    assert groups() == []
    hosts.play("lab/up.yml")


def test_down_leaves_nothing_of_it_and_all_of_the_others(spare: Spare) -> None:
    def others() -> list[str]:
        every = spare.podman("ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Names}}").splitlines()
        kept = [spare.podman("network", "ls", "--quiet"), spare.podman("images", "--quiet", "--no-trunc")]
        return [row for row in every if f" {NAME}-" not in row] + [text for text in kept if text]

    assert groups()
    # nothing at all is to be kept, but the lab of the other tests needs the images and packages
    announced = spare.play("lab/down.yml", "--check", lab_keep_images=False)
    assert announced.changed() == [("Show what down does", "localhost")]
    before = [row.replace(f"\n{NAME}", "").replace(f"{NAME}\n", "") for row in others()]
    spare.play("lab/down.yml", lab_keep_images=False)
    assert spare.containers() == {}
    assert spare.podman("network", "ls", "--quiet", "--filter", LABEL) == ""
    assert groups() == []
    assert not STATE.exists()
    assert others() == before
    assert list((CACHE / "packages").rglob("tree_*.deb"))
    assert spare.play("lab/down.yml", lab_keep_images=False).changed() == []
