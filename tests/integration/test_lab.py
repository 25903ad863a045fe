"""The lab itself, on a lab of its own beside the one that the other tests use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import CACHE, Lab

NAME = "headroom-spare"
STATE = CACHE / NAME


class Spare:
    """A lab of two hosts with a name, a network and a state directory of its own."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.inventory = directory / "hosts.yml"
        hosts = {f"spare{number}": {"ansible_host": f"10.76.0.1{number}", "lab_release": "trixie"} for number in (1, 2)}
        self.inventory.write_text(json.dumps({"all": {"children": {"lab": {"hosts": hosts}}}}))

    def play(self, playbook: str, *arguments: str, fails: bool = False, **variables: Any) -> Any:
        """Run a playbook of the lab."""
        own = {
            "lab_name": NAME,
            "lab_subnet": "10.76.0.0/24",
            "lab_cache_address": "10.76.0.2",
            "lab_keep_images": True,
        }
        inventories = [self.inventory]
        return self.lab.play(playbook, *arguments, inventories=inventories, fails=fails, **{**own, **variables})

    def podman(self, *argv: str) -> str:
        """Run podman and return what it prints."""
        done = subprocess.run(["podman", *argv], capture_output=True, text=True, env=self.lab.environment, check=True)
        return done.stdout.strip()

    def containers(self) -> dict[str, str]:
        """Return name to id of this lab's containers."""
        rows = self.podman(
            "ps", "--all", "--filter", f"label=headroom.scale.lab={NAME}", "--format", "{{.Names}} {{.ID}}"
        )
        return dict(row.split() for row in rows.splitlines())


@pytest.fixture(scope="module")
def spare(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spare]:
    """The spare lab, up; removed afterwards."""
    spare = Spare(lab, tmp_path_factory.mktemp("spare"))
    spare.play("lab/up.yml")
    yield spare
    spare.play("lab/down.yml")


def test_a_second_up_changes_nothing(spare: Spare) -> None:
    before = spare.containers()
    assert set(before) == {f"{NAME}-{name}" for name in ("cache", "spare1", "spare2")}
    assert spare.play("lab/up.yml").changed() == []
    assert spare.play("lab/up.yml", "--check").changed() == []
    assert spare.containers() == before


def test_hosts_boot_systemd_and_know_each_other_by_name(spare: Spare) -> None:
    for name in ("spare1", "spare2"):
        assert spare.podman("exec", f"{NAME}-{name}", "systemctl", "is-system-running") == "running"
    assert "10.76.0.12" in spare.podman("exec", f"{NAME}-spare1", "getent", "hosts", "spare2")
    spare.podman("exec", f"{NAME}-spare1", "ping", "-c", "1", "-W", "2", "spare2")


def test_packages_come_through_the_shared_cache(spare: Spare) -> None:
    spare.podman("exec", f"{NAME}-spare1", "sh", "-c", "apt-get install -qq -y --download-only tree >/dev/null")
    assert list((CACHE / "packages").rglob("tree_*.deb"))


def test_a_host_that_died_is_replaced_and_the_others_are_left_alone(spare: Spare) -> None:
    before = spare.containers()
    spare.podman("kill", f"{NAME}-spare1")
    assert ("Start the missing", "localhost") in spare.play("lab/up.yml").changed()
    after = spare.containers()
    assert after[f"{NAME}-spare1"] != before[f"{NAME}-spare1"]
    assert {name: after[name] for name in after if "spare1" not in name} == {
        name: before[name] for name in before if "spare1" not in name
    }


def test_down_leaves_nothing_of_it_and_all_of_the_others(spare: Spare, lab: Lab) -> None:
    others = spare.podman("ps", "--filter", "label=headroom.scale.lab=headroom", "--quiet")
    spare.play("lab/down.yml")
    assert spare.containers() == {}
    assert spare.podman("network", "ls", "--quiet", "--filter", f"label=headroom.scale.lab={NAME}") == ""
    assert not STATE.exists()
    roots = subprocess.run(
        ["findmnt", "-n", "-t", "cgroup2", "-o", "TARGET"], capture_output=True, text=True, check=False
    )
    assert not [root for root in roots.stdout.split() if (Path(root) / NAME).exists()]
    assert spare.podman("ps", "--filter", "label=headroom.scale.lab=headroom", "--quiet") == others
    assert spare.play("lab/down.yml").changed() == []


def test_what_cannot_be_is_one_sentence_before_anything_is_made(lab: Lab, tmp_path: Path) -> None:
    spare = Spare(lab, tmp_path)
    play = spare.play("lab/up.yml", fails=True, lab_cache_address="10.76.0.11")
    assert any("needs an ansible_host of its own in 10.76.0.0/24" in message for message in play.messages()), (
        play.messages()
    )
    assert play.changed() == []
    assert spare.containers() == {}
