"""Kill the controller of a switchover at many moments, under a workload that checks its own data.

Each point starts ``playbooks/switchover.yml`` and kills it with SIGKILL after a delay; the delays spread over the whole run.
Then the same playbook runs again, to its end or, at every third point, as a rollback where that is still possible. In the end
every acknowledged write must be on every member, exactly one member must be a primary, and nothing may be left behind: no fence,
no mark, no slot that nobody uses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.conftest import ADDRESSES, INVENTORIES, ROOT, Lab, kill
from integration.test_switchover import Writer

LEFT_BEHIND = (
    "ls -d /var/lib/postgresql/17/main.* 2>/dev/null; "
    "runuser -u postgres -- psql -XAtq postgres -c \"SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE NOT active\""
)


def kill_after(lab: Lab, candidate: str, delay_s: float) -> bool:
    """Start a switchover, kill it after a delay and say whether it was still running."""
    command = [
        "ansible-playbook",
        *(f"--inventory={path}" for path in INVENTORIES),
        str(ROOT / "playbooks/switchover.yml"),
    ]
    run = subprocess.Popen(
        [*command, "--extra-vars", f"switchover_to={candidate}"],
        env=lab.environment,
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
        return True
    return False


def main() -> int:
    """Run all points, print one JSON line, and fail when anything was lost or left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20, help="number of kills")
    parser.add_argument("--first-s", type=float, default=4.0, help="delay of the first kill in seconds")
    parser.add_argument(
        "--step-s", type=float, default=0.7, help="by how much each delay is longer than the one before"
    )
    parser.add_argument("--quick", action="store_true", help="one kill only")
    options = parser.parse_args()
    points = 1 if options.quick else options.points
    first_s = 7.0 if options.quick else options.first_s

    with tempfile.TemporaryDirectory() as directory:
        lab = Lab(Path(directory))
        password = "lab-only-application"
        lab.sql(
            lab.primary(),
            "DROP SCHEMA IF EXISTS app CASCADE; DROP ROLE IF EXISTS lab_app;"
            f"CREATE ROLE lab_app LOGIN PASSWORD '{password}'; CREATE SCHEMA app AUTHORIZATION lab_app;"
            "CREATE TABLE app.written (number int PRIMARY KEY); GRANT INSERT, SELECT ON app.written TO lab_app;",
        )
        writer = Writer(password)
        writer.start()
        resumed = rolled_back = killed = 0
        at = lab.primary()
        try:
            for point in range(points):
                candidate = "pg2" if at == "pg1" else "pg1"
                killed += kill_after(lab, candidate, first_s + point * options.step_s)
                live = [name for name in ADDRESSES if lab.sql(name, "SELECT pg_is_in_recovery()", check=False) == "f"]
                assert len(live) <= 1, f"two primaries after point {point}: {live}"
                if point % 3 == 2 and not live:
                    lab.play("switchover.yml", switchover_rollback=True)
                    rolled_back += 1
                else:
                    lab.play("switchover.yml", switchover_to=candidate)
                    resumed += 1
                at = lab.primary()
                print(f"point {point}: killed towards {candidate}, the primary is {at}", file=sys.stderr)
            if at != "pg1":
                lab.play("switchover.yml", switchover_to="pg1")
        finally:
            pause_s = writer.finish()
        assert lab.health(heartbeat=True, wait_s=30)["healthy"]
        lost = {
            name: len(
                set(writer.acknowledged) - {int(row) for row in lab.sql(name, "SELECT number FROM app.written").split()}
            )
            for name in ADDRESSES
        }
        lab.sql("pg1", "DROP SCHEMA app CASCADE; DROP ROLE lab_app;")
        left = [line for name in ADDRESSES for line in lab.run(name, "sh", "-c", LEFT_BEHIND, check=False).splitlines()]
    print(
        json.dumps(
            {
                "chaos": "switchover",
                "points": points,
                "killed": killed,
                "resumed": resumed,
                "rolled_back": rolled_back,
                "acknowledged": len(writer.acknowledged),
                "lost": max(lost.values()),
                "left_behind": len(left),
                "longest_write_pause_s": round(pause_s, 2),
            }
        )
    )
    return int(max(lost.values()) > 0 or bool(left))


if __name__ == "__main__":
    sys.exit(main())
