# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a fault at every step of a move of slots, under a workload that checks its own data.

Each point starts ``playbooks/redis_rebalance.yml``, which stands still at an exact step of its work while the fault is made: the
controller is killed, or the server of the source or the target is (SIGKILL; systemd starts it again), or either stays down for longer than
the cluster's node timeout, so that its replica takes over, or the host of the source or the target loses its network, for less or for
more than that. Then the same playbook runs again. It must succeed; all slots must be covered, none open, all nodes of one mind, every
primary have its share, and nothing that was acknowledged be gone.

A write counts as acknowledged when a replica has it too, since a failover may lose others: replication is asynchronous.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos._network import CUTS_S, Network
from integration.conftest import INVENTORIES, ROOT, Lab, kill, until
from integration.test_redis import CA, HOSTS, cli
from workloads.redis_cluster import Workload

FILL = 20_000
SLOTS = 16384
PORTS = (6379, 6380)
NODES = [f"redis{number}-{port}" for port in PORTS for number in range(1, 4)]
# shard of redis1-6379 beside the others, turn about
WEIGHTS = (1.2, 1.0)


@dataclass(frozen=True)
class Step:
    """A moment of a run: a command that is about to be sent or was sent, or a line that the journal has."""

    name: str
    pattern: str
    nth: int = 1
    when: str = "after"
    to: str = ""


STEPS = (
    Step("lock taken", "EVAL"),
    Step("plan in the journal", "journal"),
    Step("before the target imports", "IMPORTING", when="before", to="target"),
    Step("the target imports", "IMPORTING", to="target"),
    Step("before the source migrates", "MIGRATING", when="before", to="source"),
    Step("the source migrates", "MIGRATING", to="source"),
    Step("before the first keys", "MIGRATE", when="before"),
    Step("first keys on the way", "MIGRATE"),
    Step("hundredth keys on the way", "MIGRATE", nth=100),
    Step("before the target owns", "NODE", when="before", to="target"),
    Step("the target owns", "NODE", to="target"),
    Step("before the source gives up", "NODE", when="before", to="source"),
    Step("the source gives up", "NODE", to="source"),
    Step("plan in the place of the former", "journal", nth=2),
    Step("first slots in the journal", "journal line", nth=2),
)
# a replica takes over within the node timeout of 5 s and a vote
DOWN_S = 9.0
DOWN = {"source down": "source", "target down": "target"}
CUTS = {f"{side} {cut}": (side, seconds) for side in ("source", "target") for cut, seconds in CUTS_S.items()}
POINTS = [
    *((fault, step) for fault in ("controller", "source", "target") for step in STEPS),
    *((fault, step) for fault in CUTS for step in STEPS[1::2]),
    *((fault, step) for fault in DOWN for step in STEPS[3:14:2]),
]
QUICK = [("controller", STEPS[10]), ("target", STEPS[8]), ("source down", STEPS[7])]


class Cluster:
    """The lab's cluster, seen through the servers' own eyes."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.addresses = {f"{HOSTS[name.split('-')[0]]}:{name.split('-')[1]}": name for name in NODES}
        self.names = {cli(lab, name, "CLUSTER", "MYID"): name for name in NODES}

    def view(self, node: str) -> list[list[str]]:
        """Return the lines of CLUSTER NODES of a node."""
        return [line.split() for line in cli(self.lab, node, "CLUSTER", "NODES").splitlines() if line]

    def primaries(self) -> dict[str, int]:
        """Return name to number of slots, the shard of redis1-6379 first."""
        rows = self.view("redis2-6379")
        names = self.names
        first = next(row for row in rows if names[row[0]] == "redis1-6379")
        first_id = first[0] if "master" in first[2] else first[3]
        found = {names[row[0]]: sum(map(width, row[8:])) for row in rows if "master" in row[2]}
        return {names[first_id]: found.pop(names[first_id]), **found}

    def ill(self) -> str:
        """Return what is wrong with it, or nothing."""
        owners = set()
        for node in NODES:
            rows = self.view(node)
            bad = [self.names.get(row[0], row[1]) for row in rows if "fail" in row[2] or row[7] != "connected"]
            if bad:
                return f"{node} holds {', '.join(bad)} for failed"
            if any(part.startswith("[") for row in rows for part in row[8:]):
                return f"{node} has open slots"
            if sum(width(part) for row in rows for part in row[8:]) != SLOTS:
                return f"{node} does not see all slots covered"
            if "cluster_state:ok" not in cli(self.lab, node, "CLUSTER", "INFO"):
                return f"for {node} the cluster is down"
            owners.add(frozenset((row[0], *row[8:]) for row in rows if len(row) > 8))
            replication = cli(self.lab, node, "INFO", "replication")
            if "role:slave" in replication and "master_link_status:up" not in replication:
                return f"{node} has lost its primary"
        return "" if len(owners) == 1 else "the nodes are not of one mind"

    def require_well(self) -> None:
        """Wait until nothing is wrong with it."""
        deadline = time.monotonic() + 60
        while said := self.ill():
            assert time.monotonic() < deadline, said
            time.sleep(0.5)


def width(part: str) -> int:
    """Return the number of slots of one entry of CLUSTER NODES."""
    if part.startswith("["):
        return 0
    low, _dash, high = part.partition("-")
    return int(high or low) - int(low) + 1


class Rebalance:
    """One run of the playbook, which stands still at a step."""

    def __init__(self, lab: Lab, inventory: Path, directory: Path, step: Step, to: list[str]) -> None:
        self.directory = directory
        for name in ("reached", "go"):
            (directory / name).unlink(missing_ok=True)
        point = {"pattern": step.pattern, "nth": step.nth, "when": step.when, "to": to}
        (directory / "point.json").write_text(json.dumps(point))
        self.log = (directory / "log").open("w+")
        self.run = subprocess.Popen(
            [
                "ansible-playbook",
                *(f"--inventory={path}" for path in (*INVENTORIES, inventory)),
                str(ROOT / "playbooks" / "redis_rebalance.yml"),
            ],
            env={
                **lab.environment,
                "PYTHONPATH": str(Path(__file__).parent / "faults"),
                "HEADROOM_FAULT": str(directory),
            },
            cwd=ROOT,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def reached(self) -> dict[str, Any] | None:
        """Wait for the step and return where it is, or None when the run ended without it."""
        path = self.directory / "reached"
        until(lambda: path.exists() or self.run.poll() is not None, 180)
        return json.loads(path.read_text()) if path.exists() else None

    def kill(self) -> None:
        """Kill it while it stands still."""
        kill(self.run.pid)
        self.run.wait(30)

    def go_on(self) -> int:
        """Let it go on, and return how it ended."""
        (self.directory / "go").touch()
        return self.run.wait(300)


def fill(client: Any) -> None:
    """Write what must still be there in the end."""
    for first in range(0, FILL, 2000):
        with client.pipeline() as pipeline:
            for number in range(first, first + 2000):
                pipeline.set(f"fill:{number}", f"value {number}")
            pipeline.execute()


def missing(client: Any) -> int:
    """Return how many of those are not."""
    lost = 0
    for first in range(0, FILL, 2000):
        with client.pipeline() as pipeline:
            for number in range(first, first + 2000):
                pipeline.get(f"fill:{number}")
            found = pipeline.execute()
        lost += sum(value != f"value {first + place}".encode() for place, value in enumerate(found))
    return lost


def make(
    fault: str, cluster: Cluster, run: Rebalance, at: dict[str, Any], sources: list[str], targets: list[str]
) -> str:
    """Make the fault where the run stands still, and return how the run ended."""
    if fault == "controller":
        run.kill()
        return "killed"
    here = cluster.addresses.get(at["address"], "")
    side = targets if fault.startswith("target") else sources
    victim = here if here in side else side[0]
    host, port = victim.split("-")
    unit = f"redis-server@{port}"
    timer = None
    if fault in CUTS:
        timer = Network(f"headroom-{host}").cut(CUTS[fault][1])
    else:
        cluster.lab.run(host, "systemctl", "kill", "--signal=KILL", unit)
    if fault in DOWN:
        # systemd must not start it again by itself
        cluster.lab.run(host, "systemctl", "stop", unit)
        timer = threading.Timer(DOWN_S, cluster.lab.run, (host, "systemctl", "start", unit))
        timer.start()
    code = run.go_on()
    if timer is not None:
        timer.join()
    return "finished" if code == 0 else "failed"


def point(fault: str, step: Step, weight: float, cluster: Cluster, directory: Path) -> dict[str, Any] | None:
    """Make one fault and run again. Return what was seen, or None when the run never came to the step."""
    inventory = directory / "weights.yml"
    hosts = {"redis1": {"redis_cluster_weights": {"6379": weight}}}
    inventory.write_text(json.dumps({"all": {"children": {"redis": {"hosts": hosts}}}}))
    first, *others = cluster.primaries()
    sources, targets = (others, [first]) if weight > 1 else ([first], others)
    sides = {"": [], "source": sources, "target": targets}
    to = [address for address, name in cluster.addresses.items() if name in sides[step.to]]
    run = Rebalance(cluster.lab, inventory, directory, step, to)
    at = run.reached()
    if at is None:
        return None
    ended = make(fault, cluster, run, at, sources, targets)
    again = cluster.lab.play("redis_rebalance.yml", inventories=(*INVENTORIES, inventory))
    cluster.require_well()
    first, *_others = counts = cluster.primaries()
    for name, count in counts.items():
        wanted = SLOTS * (weight if name == first else 1.0) / (weight + 2)
        assert abs(count - wanted) <= max(2, 0.02 * wanted), f"{name} has {count} slots, not {wanted:.0f}"
    result = again.results("Slots as weighted")["redis1"]
    healed = sum(sum(map(width, row["slots"].split(","))) for row in result["healed"])
    return {"run": ended, "again": " ".join([f"{result['summary']} {healed} healed.", *result["interruptions"]])}


def main() -> int:
    """Make all faults, print a table and one JSON line, and fail when anything was lost or left undone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fault", choices=list(dict.fromkeys(fault for fault, _step in POINTS)), help="faults of one kind only"
    )
    parser.add_argument("--quick", action="store_true", help="three points only")
    options = parser.parse_args()
    points = QUICK if options.quick else [one for one in POINTS if options.fault in (None, one[0])]

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        cluster = Cluster(Lab(directory))
        cluster.require_well()
        workload = Workload(int(time.time()), list(HOSTS.values())[:3], str(CA), replicas=1)
        client = workload.connect()
        fill(client)
        workload.start()
        skipped: list[str] = []
        lost = 0
        try:
            for number, (fault, step) in enumerate(points):
                began, errors = time.monotonic(), len(workload.errors)
                seen = point(fault, step, WEIGHTS[number % 2], cluster, directory)
                if seen is None:
                    skipped.append(f"{fault} {step.name}")
                    print(f"{number:2} {fault:18} {step.name:28} was not reached", file=sys.stderr)
                    continue
                gone = missing(client)
                lost += gone
                new = collections.Counter(error.split(":")[0] for error in workload.errors[errors:])
                print(
                    f"{number:2} {fault:18} {step.name:28} {seen['run']:8} then: {seen['again']:55} lost {gone}, "
                    f"errors {dict(new)}, {time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
        finally:
            figures = workload.finish()
            again = cluster.lab.play("redis_rebalance.yml")
            workload.clear()
            for key in client.scan_iter(match="fill:*", count=5000):
                client.unlink(key)
        lost += len(figures["lost"])
        assert cluster.lab.play("redis_rebalance.yml").changed() == [], again.text
    kinds = collections.Counter(error.split(":")[0] for error in figures["errors"])
    print(
        json.dumps(
            {
                "chaos": "redis_cluster_rebalance",
                "points": len(points) - len(skipped),
                "not_reached": skipped,
                "operations": figures["operations"],
                "lost": lost,
                "wrong": figures["wrong"],
                "errors": dict(kinds),
                "p99_ms": figures["p99_ms"],
                "max_ms": figures["max_ms"],
            }
        )
    )
    return int(bool(lost or figures["wrong"] or skipped))


if __name__ == "__main__":
    sys.exit(main())
