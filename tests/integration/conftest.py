"""The lab's hosts as a test sees them: playbooks run on them as a user runs them, faults are made inside them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headroom-scale"
STATE = CACHE / "headroom"
INVENTORIES = (ROOT / "inventories" / "lab", ROOT / "molecule" / "inventory")
# lab-only, the same as in inventories/lab/group_vars/postgresql.yml
LOGIN = {"login_user": "headroom_monitor", "login_password": "lab-only-monitoring"}
ADDRESSES = {f"pg{number}": f"10.77.0.1{number}" for number in range(1, 5)}
UPSTREAMS = {"pg2": "pg1", "pg3": "pg1", "pg4": "pg2"}


class Play:
    """One finished run of ansible-playbook."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        start = done.stdout.find("{\n")
        self.data = json.loads(done.stdout[start:]) if start >= 0 else {}

    def results(self, task: str) -> dict[str, dict[str, Any]]:
        """Return host to result of the last task of that name which was not skipped there."""
        found = {}
        for play in self.data["plays"]:
            for entry in play["tasks"]:
                if entry["task"]["name"].endswith(task):
                    found.update({host: row for host, row in entry["hosts"].items() if not row.get("skipped")})
        return found

    def changed(self) -> list[tuple[str, str]]:
        """Return (task, host) for every change, in order."""
        return [
            (entry["task"]["name"].split(" : ")[-1], host)
            for play in self.data["plays"]
            for entry in play["tasks"]
            for host, row in sorted(entry["hosts"].items())
            if row.get("changed")
        ]

    def messages(self) -> list[str]:
        """Return the messages of everything that failed."""
        return [
            row.get("msg", "")
            for play in self.data.get("plays", [])
            for entry in play["tasks"]
            for row in entry["hosts"].values()
            if row.get("failed") and not row.get("skipped")
        ]


class Lab:
    """The running lab."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # host to the process that is its first, and when that began
        self.inits: dict[str, tuple[int, str]] = {}
        self.environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "CONTAINERS_CONF": str(STATE / "containers.conf"),
        }

    def play(
        self,
        playbook: str,
        *arguments: str,
        inventories: Sequence[Path] = INVENTORIES,
        fails: bool = False,
        **variables: Any,
    ) -> Play:
        """Run a playbook with JSON output and require that it ends as expected."""
        command = [
            "ansible-playbook",
            *(f"--inventory={path}" for path in inventories),
            str(ROOT / "playbooks" / playbook),
        ]
        command += [*arguments, "--extra-vars", json.dumps(variables)]
        play = Play(
            subprocess.run(
                command,
                capture_output=True,
                text=True,
                env={**self.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
                cwd=ROOT,
                timeout=600,
                check=False,
            )
        )
        assert (play.code != 0) == fails, play.messages() or play.text[-3000:]
        return play

    def module(self, kind: str, /, host: str = "localhost", **options: Any) -> dict[str, Any]:
        """Run one module of the collection, on the controller or a host, and return its result, failed or not."""
        playbook = self.directory / "module.yml"
        task = {"name": "Run", f"headroom.scale.{kind}": options, "ignore_errors": True, "no_log": False}
        playbook.write_text(json.dumps([{"name": "Run", "hosts": host, "gather_facts": False, "tasks": [task]}]))
        done = subprocess.run(
            ["ansible-playbook", *(f"--inventory={path}" for path in INVENTORIES), str(playbook)],
            capture_output=True,
            text=True,
            env={**self.environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
            cwd=ROOT,
            timeout=300,
            check=False,
        )
        play = Play(done)
        assert play.data, play.text[-3000:]
        return play.results("Run")[host]

    def instance(self, host: str, **options: Any) -> dict[str, Any]:
        """Run postgresql_instance on a host and return its result."""
        return self.module("postgresql_instance", host=host, **{"version": 17, **options})

    def health(self, nodes: Sequence[dict[str, Any]] | None = None, **options: Any) -> dict[str, Any]:
        """Judge the cluster pg1 to pg4."""
        return self.module(
            "postgresql_replica_health",
            **{
                "nodes": [*(nodes or [{"name": name, "host": address} for name, address in ADDRESSES.items()])],
                "ssl_mode": "verify-full",
                "ca_cert": str(STATE / "tls" / "postgresql" / "ca.crt"),
                "fail_on": "never",
                "timeout_s": 3,
                **LOGIN,
                **options,
            },
        )

    def run(self, host: str, *argv: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120) -> str:
        """Run a command inside a host and return what it prints."""
        done = subprocess.run(
            [*self.inside(host), *argv],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{host}: {' '.join(argv)}: {done.stderr}"
        return done.stdout.strip()

    def inside(self, host: str) -> list[str]:
        """Return what a command inside a host begins with: its namespaces are entered, at a fortieth of the cost of ``podman exec``."""
        pid, began = self.inits.get(host, (0, ""))
        if not began or began_of(pid) != began:
            shown = subprocess.run(
                ["podman", "inspect", "--format", "{{.State.Pid}}", f"headroom-{host}"],
                capture_output=True,
                text=True,
                env=self.environment,
                timeout=60,
                check=True,
            )
            pid = int(shown.stdout)
            self.inits[host] = pid, began_of(pid)
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", f"--target={pid}", "--all", "--wdns=/", "env", "-i", "HOME=/root", path]

    def sql(self, host: str, sql: str, check: bool = True) -> str:
        """Run SQL as the superuser on a host."""
        return self.run(host, "runuser", "-u", "postgres", "--", "psql", "-XAtq", "postgres", stdin=sql, check=check)

    def signal(self, host: str, name: str) -> None:
        """Send a signal to every process of the PostgreSQL server on a host."""
        self.run(host, "systemctl", "kill", f"--signal={name}", "postgresql@17-main")

    def primary(self) -> str:
        """Return the name of the live primary of pg1 to pg4."""
        found = [name for name in ADDRESSES if self.sql(name, "SELECT pg_is_in_recovery()", check=False) == "f"]
        assert len(found) == 1, found
        return found[0]


def began_of(pid: int) -> str:
    """Return when a process began, in ticks since the boot, empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return ""


def kill(pid: int) -> None:
    """Kill a run of ansible-playbook and all that it has started: its workers have sessions of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def until(holds: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Wait until something holds and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.3)
    return value


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The lab, which must be up with the cluster pg1 to pg4 converged."""
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def healthy(lab: Lab) -> Iterator[Lab]:
    """The lab, whose cluster must be as healthy after the test as it was before."""
    yield lab
    after = lab.health(wait_s=60)
    if not after["healthy"]:
        # one test's failure is not the next one's
        lab.play("postgresql.yml", postgresql_replication_rebuild="basebackup")
    assert after["healthy"], after["table"]
