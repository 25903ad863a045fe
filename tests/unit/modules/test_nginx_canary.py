# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A canary on two real load balancers under load: promoted, taken back for each reason, interrupted, killed, and taken up again."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading
import time
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.modules import nginx_canary
from balancers.world import Balancer, Load, Server, installed
from ports import free_port

Result = dict[str, t.Any]
# of a machine that is shared, no two servers are as fast as each other
LIMITS = {"min_requests": 10, "p95_times_stable": 1000}


class Fleet:
    """Two load balancers before the same servers."""

    def __init__(self, directory: pathlib.Path) -> None:
        build = installed()
        self.stable, self.canary = Server("a1"), Server("b1")
        self.ports = [free_port(), free_port()]
        self.balancers = []
        for number, port in enumerate(self.ports, 1):
            (directory / f"lb{number}").mkdir()
            one = Balancer(directory / f"lb{number}", build, f"lb{number}")
            self.balancers.append(one)
            one.start(
                {
                    "upstreams": [
                        {
                            "name": "app",
                            "servers": [{"address": self.stable.address}],
                            "canary": {"servers": [{"address": self.canary.address}]},
                            "max_ejected_percent": 0,
                        }
                    ],
                    "virtual_servers": [{"name": "app", "port": port, "upstream": "app"}],
                }
            )

    def params(self, **options: t.Any) -> Result:
        balancers = [{"name": one.name, "host": "127.0.0.1", "port": one.management} for one in self.balancers]
        times = {"step_s": 1, "step_timeout_s": max(60, options.get("step_s", 1))}
        return {"balancers": balancers, "upstream": "app", "limits": LIMITS, **times, **options}

    def percents(self) -> list[int]:
        return [one.canary()["percent"] for one in self.balancers]

    def lent(self) -> list[bool]:
        return [one.canary()["lease_s"] is not None for one in self.balancers]

    def close(self) -> None:
        for one in self.balancers:
            one.stop()
        self.stable.close()
        self.canary.close()


@pytest.fixture(name="fleet")
def fleet_fixture(tmp_path: pathlib.Path) -> t.Iterator[Fleet]:
    found = Fleet(tmp_path)
    try:
        yield found
    finally:
        found.close()


Run = t.Callable[..., Result]


@pytest.fixture(name="run")
def run_fixture(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(params: Result, check: bool = False) -> Result:
        with patch_module_args({**params, "_ansible_check_mode": check}), pytest.raises(SystemExit) as ended:
            nginx_canary.main()
        result = t.cast(Result, json.loads(capsys.readouterr().out))
        assert bool(ended.value.code) == bool(result.get("failed"))
        return result

    return run


def until(condition: t.Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_canary_that_holds_is_promoted_and_check_mode_says_how(
    fleet: Fleet, run: Run, tmp_path: pathlib.Path
) -> None:
    progress = tmp_path / "progress"
    limits = {**LIMITS, "min_requests": 40}
    params = fleet.params(state="promoted", steps=[10, 50, 100], limits=limits, progress_file=str(progress))
    foretold = run(params, check=True)
    assert fleet.percents() == [0, 0]
    assert foretold["summary"] == "The canary of app would have 100 % at all 2 load balancers."
    with Load(fleet.ports) as load:
        done = run(params)
    assert set(load.statuses) == {200}, load.statuses
    assert done["changed"]
    assert foretold["changed"]
    assert done["plan"] == foretold["plan"]
    assert [step["why"] for step in done["plan"]] == [
        "0 -> 10 %, watched for 1 s and 40 requests",
        "10 -> 50 %, watched for 1 s and 40 requests",
        "50 -> 100 %, watched for 1 s and 40 requests",
        "100 %",
    ]
    assert done["diff"] == foretold["diff"]
    assert done["diff"]["after"] == "lb1: canary of app: 100 %\nlb2: canary of app: 100 %\n"
    assert [row["percent"] for row in done["watched"]] == [10, 50, 100]
    for row in done["watched"]:
        assert row["seconds"] >= 1
        assert row["canary"]["requests"] >= 40
        assert row["canary"]["errors"] == row["stable"]["errors"] == 0
        total = row["canary"]["requests"] + row["stable"]["requests"]
        # nothing is counted that came before the step
        assert row["canary"]["requests"] / total == pytest.approx(row["percent"] / 100, abs=0.12)
    assert fleet.percents() == [100, 100]
    assert fleet.lent() == [False, False]
    lines = progress.read_text().splitlines()
    assert lines[0].startswith("canary of app: 10 % for ")
    assert lines[-1] == "canary of app: 100 % for good"
    again = run(params)
    assert not again["changed"]
    assert again["plan"] == again["watched"] == []
    # and back, as for blue/green
    foretold = run(fleet.params(state="rolled_back"), check=True)
    assert fleet.percents() == [100, 100]
    back = run(fleet.params(state="rolled_back"))
    assert back["plan"] == foretold["plan"]
    assert back["diff"] == foretold["diff"]
    assert [step["why"] for step in back["plan"]] == ["100 -> 0 %", "100 -> 0 %"]
    assert fleet.percents() == [0, 0]
    assert not run(fleet.params(state="rolled_back"))["changed"]


def test_a_share_is_set_by_hand_and_looked_at(fleet: Fleet, run: Run) -> None:
    fleet.balancers[1].share(20)
    done = run(fleet.params(percent=20))
    assert [(step["object"], step["why"]) for step in done["plan"]] == [("lb1 upstream app canary", "0 -> 20 %")]
    assert fleet.percents() == [20, 20]
    seen = run(fleet.params())
    assert not seen["changed"]
    assert [(one["name"], one["percent"], one["lent"]) for one in seen["balancers"]] == [
        ("lb1", 20, False),
        ("lb2", 20, False),
    ]
    refused = run(fleet.params(upstream="app-canary", percent=20))
    assert refused["errors"][0]["option"] == "upstream"


@pytest.mark.parametrize(
    ("fault", "limits", "breach"),
    [
        # each limit alone, since either may be seen to break first
        ("errors", {"error_percent_above_stable": 100}, "errors"),
        ("errors", {"error_percent": 100}, "errors_above_stable"),
        ("slow", {"p95_ms": 700}, "p95"),
        ("gone", {"error_percent_above_stable": 100}, "errors"),
    ],
)
def test_a_canary_that_does_not_hold_is_taken_back(
    fleet: Fleet, run: Run, fault: str, limits: dict[str, float], breach: str
) -> None:
    params = fleet.params(state="promoted", steps=[20, 60, 100], step_s=2, limits={**LIMITS, **limits})
    spoiled = threading.Event()

    def spoil() -> None:
        # the first step is left in peace
        until(lambda: fleet.percents() == [60, 60])
        spoiled.set()
        if fault == "errors":
            fleet.canary.status = lambda: 500
        elif fault == "slow":
            fleet.canary.delay_s = 1.0
        else:
            fleet.canary.close()

    spoiler = threading.Thread(target=spoil)
    with Load(fleet.ports) as load:
        spoiler.start()
        failed = run(params)
        spoiler.join()
        assert spoiled.is_set()
        assert fleet.percents() == [0, 0]
        assert fleet.lent() == [False, False]
    error = failed["errors"][0]
    assert (error["code"], error["cause"]) == ("rolled_back", "breached")
    assert breach in [row["code"] for row in error["breaches"]]
    assert failed["msg"].startswith("Failed to promote the canary of app at ")
    assert failed["msg"].endswith("It is back to 0 % at lb1, lb2.")
    assert failed["watched"][0]["canary"]["errors"] == 0
    # what it was before the run
    assert not failed["changed"]
    if fault != "errors":
        # a canary that cannot be reached is nothing that clients see
        assert set(load.statuses) == {200}, load.statuses


def test_too_few_requests_prove_nothing(fleet: Fleet, run: Run) -> None:
    failed = run(fleet.params(state="promoted", steps=[50], step_timeout_s=1))
    assert failed["errors"][0]["cause"] == "too_few_requests"
    assert "within 1 s the canary got 0 requests" in failed["msg"]
    assert fleet.percents() == [0, 0]


def test_a_run_that_is_interrupted_takes_the_canary_back(fleet: Fleet, run: Run) -> None:
    def interrupt() -> None:
        until(lambda: fleet.percents() == [30, 30])
        os.kill(os.getpid(), signal.SIGTERM)

    other = threading.Thread(target=interrupt)
    before = signal.getsignal(signal.SIGTERM)
    other.start()
    failed = run(fleet.params(state="promoted", steps=[30], step_s=60))
    other.join()
    assert failed["errors"][0]["cause"] == "interrupted"
    assert fleet.percents() == [0, 0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_load_balancer_that_is_lost_ends_it_on_the_others(fleet: Fleet, run: Run) -> None:
    def lose() -> None:
        until(lambda: fleet.percents() == [30, 30])
        fleet.balancers[1].stop()

    other = threading.Thread(target=lose)
    other.start()
    failed = run(fleet.params(state="promoted", steps=[30], step_s=60))
    other.join()
    assert failed["errors"][0]["cause"] == "no_answer"
    assert failed["not_told"] == ["lb2"]
    assert "It is back to 0 % at lb1. lb2 could not be told, and takes it back alone within 60 s" in failed["msg"]
    assert fleet.balancers[0].canary()["percent"] == 0


def test_the_way_back_is_open_while_a_load_balancer_is_away(fleet: Fleet, run: Run) -> None:
    for one in fleet.balancers:
        one.share(50)
    fleet.balancers[1].stop()
    refused = run(fleet.params(percent=60))
    assert refused["errors"][0]["balancer"] == "lb2"
    assert fleet.balancers[0].canary()["percent"] == 50
    failed = run(fleet.params(state="rolled_back"))
    assert failed["errors"][0]["balancer"] == "lb2"
    assert failed["changed"]
    assert [step["object"] for step in failed["plan"]] == ["lb1 upstream app canary"]
    assert fleet.balancers[0].canary()["percent"] == 0
    fleet.balancers[0].stop()
    assert run(fleet.params(state="rolled_back"))["errors"][1]["balancer"] == "lb2"


def test_somebody_else_who_changes_it_ends_it(fleet: Fleet, run: Run) -> None:
    def change() -> None:
        until(lambda: fleet.percents() == [30, 30])
        # there and back between two looks
        fleet.balancers[0].share(31, 60)
        fleet.balancers[0].share(30, 60)

    other = threading.Thread(target=change)
    other.start()
    failed = run(fleet.params(state="promoted", steps=[30], step_s=60))
    other.join()
    assert failed["errors"][0]["cause"] == "not_kept"
    assert fleet.percents() == [0, 0]


def test_a_run_that_was_killed_is_taken_up_at_its_share(fleet: Fleet, run: Run) -> None:
    child = os.fork()
    if not child:
        with patch_module_args(fleet.params(state="promoted", steps=[10, 40, 100], step_s=120)):
            nginx_canary.main()
        os._exit(1)
    try:
        until(lambda: fleet.percents() == [10, 10])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert fleet.lent() == [True, True]
    assert fleet.percents() == [10, 10]
    with Load(fleet.ports):
        done = run(fleet.params(state="promoted", steps=[10, 40, 100]))
    assert [row["percent"] for row in done["watched"]] == [10, 40, 100]
    assert fleet.percents() == [100, 100]
