# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole: bad input ends in one sentence, and a simulation in a result that adds up."""

from __future__ import annotations

import copy
import json
import pathlib
import stat
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling import replay
from ansible_collections.headroom.scale.plugins.modules import hpa_simulate
from web.page import Page

CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}
GIVEN: dict[str, t.Any] = {
    "points": [[0, 300], [600, 900], [1200, 900], [1800, 200], [2400, 200], [3600, 200]],
    "spec": {"minReplicas": 2, "maxReplicas": 12, "metrics": [CPU]},
    "pods": {
        "capacity": 100,
        "startup_s": 40,
        "resources": [{"name": "cpu", "request": "500m", "idle": "10m", "at_capacity": "0.5"}],
        "latency": [{"load_ratio": 0.5, "latency_ms": 20}, {"load_ratio": 1.0, "latency_ms": 120}],
    },
    "slo": {"max_latency_ms": 100},
    "cost_per_replica_hour": 0.5,
}


def run(capsys: pytest.CaptureFixture[str], check: bool = False, **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module with other options than the usual ones and return its exit code and result; None removes one."""
    given = {**GIVEN, **params, "_ansible_check_mode": check}
    given = {name: value for name, value in given.items() if value is not None}
    with patch_module_args(given), pytest.raises(SystemExit) as ended:
        hpa_simulate.main()
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def changed(path: str, value: t.Any) -> dict[str, t.Any]:
    """Return the options with one of them changed, by a path such as pods.resources.0.name."""
    given = copy.deepcopy(GIVEN)
    place: t.Any = given
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[int(last) if last.isdigit() else last] = value
    return given


def with_queue(factors: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the options with a metric queue beside cpu, and factors."""
    target = {"type": "AverageValue", "averageValue": "50"}
    queue = {"type": "External", "external": {"metric": {"name": "queue"}, "target": target}}
    return {**changed("pods.factors", factors), "spec": {**GIVEN["spec"], "metrics": [CPU, queue]}}


# ---- documentation


def test_every_return_value_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(hpa_simulate.RETURN)
    points = [[0, 300], *([at, 900] for at in range(15, 700, 15)), [2000, 100], [2015, 100]]
    result = run(capsys, points=points)[1]
    assert returned.keys() == result.keys() - {"changed", "invocation"}
    assert returned["figures"]["sample"].keys() == result["figures"].keys()
    for name in ("replicas", "events", "violations", "gaps"):
        assert returned[name]["contains"].keys() == result[name][0].keys()
    for entry in returned.values():
        assert entry["description"]
        assert "sample" in entry or "contains" in entry


# ---- bad input

BAD: list[tuple[dict[str, t.Any], str]] = [
    (changed("points", [[0, 1], [5, -1]]), "points[1]"),
    ({"points": None, "trace_file": "/nowhere/trace.csv"}, "trace_file"),
    ({"points": None, "trace_file": "/"}, "trace_file"),
    (changed("spec.maxReplicas", 1), "spec.maxReplicas"),
    (changed("spec.maxReplicas", 20_000), "spec.maxReplicas"),
    (changed("spec.metrics.0.resource.name", "memory"), "pods.resources"),
    (
        {**changed("spec.behavior", {"scaleUp": {"tolerance": "0"}}), "controller": {"version": "1.32"}},
        "spec.behavior.scaleUp.tolerance",
    ),
    (changed("pods.capacity", 0), "pods.capacity"),
    (changed("pods.startup_s", -1), "pods.startup_s"),
    (changed("pods.metric_age_s", 3601), "pods.metric_age_s"),
    (changed("pods.metric_window_s", "nan"), "pods.metric_window_s"),
    (changed("pods.resources.0.request", "half"), "pods.resources[].request"),
    (changed("pods.resources.0.request", "0"), "pods.resources[].request"),
    (changed("pods.resources.0.idle", "-1m"), "pods.resources[].idle"),
    (changed("pods.resources.0.at_capacity", ""), "pods.resources[].at_capacity"),
    (changed("pods.resources", GIVEN["pods"]["resources"] * 2), "pods.resources[].name"),
    (with_queue({"queue": "much"}), "pods.factors.queue"),
    (with_queue({"queue": -1}), "pods.factors.queue"),
    (with_queue({"queue": 10**400}), "pods.factors.queue"),
    (with_queue({"queue": 1, "qeue": 2}), "pods.factors.qeue"),
    (with_queue({"cpu": 2}), "pods.factors.cpu"),
    (changed("pods.factors", {"queue": 1}), "pods.factors.queue"),
    (changed("pods.resources.0.idle", "501m"), "pods.resources[].idle"),
    (changed("controller.sync_s", 10**400), "controller.sync_s"),
    (changed("pods.latency.0.load_ratio", 1.5), "pods.latency[0].load_ratio"),
    (changed("pods.latency.1.load_ratio", 0.5), "pods.latency[1]"),
    (changed("pods.latency.1.latency_ms", 10), "pods.latency[1]"),
    (changed("pods.latency.0.latency_ms", -1), "pods.latency[0].latency_ms"),
    (changed("controller.sync_s", 0), "controller.sync_s"),
    (changed("controller.tolerance", -0.1), "controller.tolerance"),
    (changed("controller.downscale_stabilization_s", -1), "controller.downscale_stabilization_s"),
    (changed("controller.cpu_initialization_period_s", 100_000), "controller.cpu_initialization_period_s"),
    (changed("slo.max_load_ratio", 0), "slo.max_load_ratio"),
    (changed("slo.max_load_ratio", 70), "slo.max_load_ratio"),
    (changed("slo.max_latency_ms", 19), "slo.max_latency_ms"),
    (changed("slo.max_latency_ms", -1), "slo.max_latency_ms"),
    (changed("pods.latency", []), "slo.max_latency_ms"),
    (changed("slo.min_share", 99.9), "slo.min_share"),
    ({"initial_replicas": -1}, "initial_replicas"),
    ({"cost_per_replica_hour": -1}, "cost_per_replica_hour"),
    ({"max_items": -1}, "max_items"),
    ({"report_file": "/nowhere/report.html"}, "report_file"),
    ({"report_file": ""}, "report_file"),
]


@pytest.mark.parametrize(("params", "option"), BAD, ids=[f"{case[1]}-{number}" for number, case in enumerate(BAD)])
def test_bad_values_end_in_one_sentence(capsys: pytest.CaptureFixture[str], params: t.Any, option: str) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert result["msg"].startswith(f"Option {option!r} has the value ")
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]
    assert result["errors"][0]["code"] == "bad_option"


@pytest.mark.parametrize(
    "params", [{"points": None}, {"trace_file": "/trace.csv"}, {"controller": {"version": "1.20"}}]
)
def test_what_the_options_rule_out(capsys: pytest.CaptureFixture[str], params: t.Any) -> None:
    assert run(capsys, **params)[0] == 1


# ---- a simulation


def test_a_factor_makes_a_metric_of_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (run(capsys, **with_queue({"queue": factor}))[1]["figures"]["replica_hours"] for factor in (0, 1))
    assert many > few


def test_a_simulation_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys, max_items=0)
    figures = result["figures"]
    assert (code, result["changed"]) == (0, False)
    assert figures["syncs"] == len(result["replicas"]) == 241
    assert figures["load_offered"] == pytest.approx(figures["load_served"] + figures["load_capped"])
    assert figures["replica_hours"] == pytest.approx(sum(one["replicas"] for one in result["replicas"]) / 240, abs=1e-4)
    assert figures["cost"] == pytest.approx(figures["replica_hours"] / 2, abs=1e-3)
    assert figures["scale_ups"] + figures["scale_downs"] == len(result["events"])
    before = figures["replicas_initial"]
    for event in result["events"]:
        assert event["before"] == before
        before = event["after"]
    assert before == result["replicas"][-1]["replicas"]
    late_s = sum(one["duration_s"] for one in result["violations"])
    assert late_s == figures["violating_syncs"] * 15
    assert sum(one["load_capped"] for one in result["violations"]) == pytest.approx(figures["load_capped"])
    assert not result["slo_met"]
    assert result["slo_met"] == (figures["slo_share"] >= 0.999)


def test_the_jump_is_late_by_the_age_of_metrics_and_the_start_of_pods(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, max_items=0)[1]
    up = result["events"][0]
    assert up["reason"] == "cpu resource utilization above target"
    assert (up["at_s"], up["before"]) == (645.0, result["figures"]["replicas_initial"])
    late = result["violations"][0]
    assert late["start_s"] == 600.0
    assert late["worst_load_ratio"] == pytest.approx(900 / (up["before"] * 100), abs=1e-4)
    assert late["latency_ms"] is None  # above the capacity
    assert result["events"][-1]["reason"] == "all metrics below target"


@pytest.mark.parametrize(("limit_ms", "kept"), [(60, True), (59, False)])
def test_the_latency_is_a_limit_of_the_load(capsys: pytest.CaptureFixture[str], limit_ms: float, kept: bool) -> None:
    # 70 of 100 is 20 ms and two fifths of the 100 ms that come after it
    steady = {"points": [[0, 140], [600, 140]], "spec": {"minReplicas": 2, "maxReplicas": 2, "metrics": [CPU]}}
    result = run(capsys, **steady, slo={"max_latency_ms": limit_ms})[1]
    assert result["slo_met"] is kept
    assert [one["latency_ms"] for one in result["violations"]] == ([] if kept else [60.0])
    assert run(capsys, **steady, slo={"min_share": 0})[1]["slo_met"]
    assert not run(capsys, **steady, slo={"max_load_ratio": 0.69})[1]["slo_met"]


def test_lists_are_bounded_and_figures_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    whole, short = run(capsys, max_items=0)[1], run(capsys, max_items=2)[1]
    assert short["figures"] == whole["figures"]
    assert [len(short[name]) for name in ("replicas", "events", "violations")] == [
        2,
        2,
        min(2, len(whole["violations"])),
    ]
    assert max(one["replicas"] for one in short["replicas"]) == max(one["replicas"] for one in whole["replicas"])
    assert min(one["ready"] for one in short["replicas"]) == min(one["ready"] for one in whole["replicas"])


def test_a_file_of_prometheus(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "load.json"
    values = [[at, "150"] for at in (0, 60, 120, 600)]
    answer = {"status": "success", "data": {"resultType": "matrix", "result": [{"values": values}, {"values": values}]}}
    path.write_text(json.dumps(answer), encoding="utf-8")
    result = run(capsys, points=None, trace_file=str(path))[1]
    assert result["figures"]["series"] == 2
    assert result["figures"]["load_offered"] == 300 * result["figures"]["duration_s"]
    assert result["gaps"] == [{"start_s": 120.0, "end_s": 600.0, "duration_s": 480.0}]
    assert "gaps of 480 s" in result["summary"]


def test_a_file_that_is_no_text(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "load.bin"
    path.write_bytes(b"\xff\xfe\xfa")
    code, result = run(capsys, points=None, trace_file=str(path))
    assert code == 1
    assert result["errors"][0]["option"] == "trace_file"


def test_a_file_that_is_too_large(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_FILE_BYTES", 5)
    path = tmp_path / "load.csv"
    path.write_text("0,1\n15,1\n", encoding="utf-8")
    assert "cut it" in run(capsys, points=None, trace_file=str(path))[1]["msg"]


def test_versions_differ_at_the_edge_of_the_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    # 66 % of a target of 60 %
    steady = {"points": [[0, 132], [600, 132]], "initial_replicas": 2}
    pods = {**GIVEN["pods"], "resources": [{"name": "cpu", "request": "500m", "at_capacity": "500m"}]}
    ups = {one: run(capsys, **steady, pods=pods, controller={"version": one})[1] for one in ("1.32", "1.33")}
    assert {one: result["figures"]["replicas_most"] for one, result in ups.items()} == {"1.32": 3, "1.33": 2}


def test_without_ready_pods_no_ratio_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    queue = {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "Value", "value": "100"}}}
    spec = {"minReplicas": 0, "maxReplicas": 5, "metrics": [queue]}
    result = run(capsys, points=[[0, 0], [60, 200], [300, 200]], spec=spec)[1]
    assert result["figures"]["replicas_initial"] == 0
    assert result["figures"]["worst_load_ratio"] is None
    assert result["violations"][0]["worst_load_ratio"] is None


def test_replicas_out_of_bounds_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    above = run(capsys, initial_replicas=40)[1]["events"][0]
    assert (above["after"], above["reason"]) == (12, "replicas above maxReplicas")
    below = run(capsys, initial_replicas=1)[1]["events"][0]
    assert (below["after"], below["reason"], below["limited_by"]) == (2, "replicas below minReplicas", None)


# ---- the page


def test_the_report_is_one_page_that_needs_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "report.html"
    result = run(capsys, report_file=str(path))[1]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"src", "href"} & {name for _tag, attributes in page.tags for name in attributes}
    assert {"script", "link", "img"}.isdisjoint(tag for tag, _attributes in page.tags)
    drawn = [attributes.get("class") for tag, attributes in page.tags if tag in ("polyline", "rect")]
    assert drawn.count("late") == len(result["violations"])
    assert {"load", "pods", "ready"} < set(drawn)
    assert result["summary"] in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_names_cannot_break_the_report(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.html"
    rate = {
        "type": "Pods",
        "pods": {"metric": {"name": "<b>&"}, "target": {"type": "AverageValue", "averageValue": "50"}},
    }
    run(capsys, report_file=str(path), spec={"maxReplicas": 12, "metrics": [rate]})
    assert "&lt;b&gt;&amp;" in path.read_text(encoding="utf-8")
    Page(path.read_text(encoding="utf-8"))


def test_check_mode_writes_no_report(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.html"
    code, result = run(capsys, check=True, report_file=str(path))
    assert code == 0
    assert result["figures"]["syncs"] == 241
    assert not path.exists()


def test_a_report_over_days_has_dates(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "report.html"
    run(capsys, report_file=str(path), points=[["2026-01-31T12:00:00Z", 100], ["2026-01-31T18:00:00Z", 0]])
    assert "2026-01-31 12:00:00 UTC" in path.read_text(encoding="utf-8")
    assert run(capsys, report_file=str(path), points=[[253402300000, 100], [253402300799, 0]])[0] == 0
    points = [["2026-01-30T12:00:00Z", 100], ["2026-02-02T12:00:00Z", 0]]
    run(capsys, report_file=str(path), points=points, controller={"sync_s": 600}, max_items=0)
    page = Page(path.read_text(encoding="utf-8"))
    # three midnights in each of the two charts
    assert [attributes.get("class") for _tag, attributes in page.tags].count("day") == 6
    assert "Saturday 2026-01-31" in path.read_text(encoding="utf-8")
