# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Autoscalers tuned from a real Prometheus, which watches a real service."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .conftest import Lab, until

ADDRESS = "10.77.0.91"
URL = f"http://{ADDRESS}:9090"
QUERY = "sum(rate(shop_requests_total[2m]))"
# what is replayed: requests in each second
LOAD = (*[20] * 12, *[60] * 12, *[32] * 12)
CPU = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
}
PODS = {
    "capacity": 50,
    "startup_s": 30,
    "resources": [{"name": "cpu", "request": "500m", "idle": "20m", "at_capacity": "500m"}],
}


def ask(path: str, **params: Any) -> dict[str, Any]:
    """Return what Prometheus answers."""
    with urllib.request.urlopen(f"{URL}/api/v1/{path}?{urllib.parse.urlencode(params)}", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found["data"]


def watched() -> bool:
    """Return whether Prometheus knows of as many requests as the service has answered: its newest sample may still be of the made past."""
    result = ask("query", query="shop_requests_total")["result"]
    with urllib.request.urlopen(f"http://{ADDRESS}:8000/metrics", timeout=10) as answer:
        count = answer.read().split()[-1]
    return bool(result) and float(result[0]["value"][1]) == float(count)


def replay(load: Sequence[int], clients: int = 4) -> int:
    """Send so many requests in each second and return how many were answered."""
    answered = [0] * clients
    began = time.monotonic()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(ADDRESS, 8000, timeout=10)
        for second, rate in enumerate(load):
            for _request in range(rate // clients):
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                answered[number] += answer.status == 200
            time.sleep(max(0.0, began + second + 1 - time.monotonic()))
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return sum(answered)


def test_a_replayed_load_is_simulated_as_prometheus_saw_it(lab: Lab, tmp_path: Path) -> None:
    until(watched)
    began = time.time()
    sent = replay(LOAD)
    assert sent == sum(LOAD)
    until(watched)

    window = {"start": began - 10, "end": time.time(), "step": 2}
    answer = ask("query_range", query="rate(shop_requests_total[6s])", **window)
    trace = tmp_path / "load.json"
    trace.write_text(json.dumps({"status": "success", "data": answer}))
    found = lab.module(
        "hpa_simulate",
        trace_file=str(trace),
        spec={"minReplicas": 1, "maxReplicas": 10, "metrics": [CPU]},
        pods={**PODS, "capacity": 20, "startup_s": 2, "metric_age_s": 2, "metric_window_s": 2},
        controller={"sync_s": 2},
    )

    assert not found.get("failed"), found
    replicas = [row["after"] for row in found["events"]]
    # 60 requests a second are 6 pods of 20 at half their capacity
    assert max(replicas) >= 5, found["events"]


def tune(lab: Lab, **more: Any) -> dict[str, Any]:
    """Tune a spec that is too careful."""
    prometheus = {"url": URL, "query": QUERY, "days": 7, "step_s": 300, **more}
    return lab.module(
        "hpa_tune",
        spec={"minReplicas": 6, "maxReplicas": 20, "metrics": [CPU]},
        prometheus=prometheus,
        pods=PODS,
        controller={"sync_s": 300},
        data={"load_is_whole": True},
        search={"candidates": 40},
    )


def test_a_week_of_prometheus_is_tuned_from(lab: Lab) -> None:
    until(watched)
    end_s = time.time() - 60
    first = tune(lab, end_s=end_s)
    again = tune(lab, end_s=end_s)

    assert not first.get("failed"), first
    assert first["verdict"] == "tune"
    assert 6.9 < first["data"]["days"] <= 7.1
    assert first["after"]["held_out"]["replica_hours"] < first["before"]["held_out"]["replica_hours"]
    assert first["after"]["held_out"]["slo_share"] >= first["before"]["held_out"]["slo_share"]
    assert (first["spec"], first["changes"]) == (again["spec"], again["changes"])


def test_what_prometheus_refuses_or_does_not_answer_is_said_in_one_sentence(lab: Lab) -> None:
    refused = tune(lab, query="sum(rate(shop_requests_total[2m])")
    assert refused["failed"]
    assert "parse error" in refused["msg"], refused["msg"]

    unknown = tune(lab, query="sum(rate(nothing_total[2m]))")
    assert unknown["failed"]
    assert "nothing_total" in unknown["msg"], unknown["msg"]

    lab.run("metrics1", "systemctl", "stop", "prometheus")
    try:
        away = tune(lab)
    finally:
        lab.run("metrics1", "systemctl", "start", "prometheus")
    assert away["failed"]
    assert ADDRESS in away["msg"]
    assert "Traceback" not in away["msg"]
    until(lambda: lab.run("metrics1", "systemctl", "is-active", "prometheus") == "active" and ready())


def ready() -> bool:
    """Return whether Prometheus answers."""
    try:
        with urllib.request.urlopen(f"{URL}/-/ready", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
