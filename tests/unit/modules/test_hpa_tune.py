# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole: what it reads over HTTP, what it recommends, what it applies and reverts, and how it refuses."""

from __future__ import annotations

import copy
import html
import json
import math
import pathlib
import random
import time
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("numba")

from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.model import complete  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.apply import ANNOTATION  # noqa: E402
from ansible_collections.headroom.scale.plugins.modules import hpa_tune  # noqa: E402
from metrics.prometheus import Prometheus  # noqa: E402
from web.page import Page  # noqa: E402

# a Monday
START_S = 1_760_918_400
DAY_S = 86_400
CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 45}}}
SPEC: dict[str, t.Any] = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"},
    "minReplicas": 6,
    "maxReplicas": 30,
    "metrics": [CPU],
}


def load_at(at_s: float) -> float:
    """Return a load by the time of the day, with noise that is the same at the same time."""
    daily = 1 - math.cos(2 * math.pi * (at_s % DAY_S) / DAY_S)
    return (150 + 400 * daily) * random.Random(int(at_s)).gauss(1, 0.03)


def points(days: float = 4, step_s: int = 300, value: t.Callable[[float], float] = load_at) -> list[list[float]]:
    """Return a load as points."""
    return [[at_s, value(at_s)] for at_s in range(START_S, int(START_S + days * DAY_S), step_s)]


GIVEN: dict[str, t.Any] = {
    "points": points(),
    "spec": SPEC,
    "pods": {
        "capacity": 100,
        "startup_s": 40,
        "resources": [{"name": "cpu", "request": "500m", "idle": "10m", "at_capacity": "500m"}],
    },
    "controller": {"sync_s": 60},
    "data": {"min_days": 3},
    "search": {"candidates": 40},
    "cost_per_replica_hour": 0.5,
}


def run(
    capsys: pytest.CaptureFixture[str], api: t.Any = None, check: bool = False, **params: t.Any
) -> tuple[int, dict[str, t.Any]]:
    """Run the module with other options than the usual ones and return its exit code and result; None removes one."""
    given = {**copy.deepcopy(GIVEN), **params, "_ansible_check_mode": check, "_ansible_diff": True}
    if api is not None:
        given = {**given, "name": "shop", "namespace": api.namespace, "spec": None, **api.params, **params}
    with (
        patch_module_args({name: value for name, value in given.items() if value is not None}),
        pytest.raises(SystemExit) as ended,
    ):
        hpa_tune.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), json.loads(out)


def changed(path: str, value: t.Any) -> dict[str, t.Any]:
    """Return the options with one of them changed, by a path such as pods.resources.0.name."""
    given = copy.deepcopy(GIVEN)
    place: t.Any = given
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[int(last) if last.isdigit() else last] = value
    return given


# ---- documentation


def keys(docs: dict[str, t.Any]) -> set[str]:
    """Return the names of documented values."""
    return set(docs)


def test_every_return_value_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(hpa_tune.RETURN)
    result = run(capsys)[1]
    assert keys(returned) - {"errors"} == result.keys() - {"changed", "invocation", "diff"}
    assert result["changes"]
    assert keys(returned["changes"]["contains"]) == result["changes"][0].keys()
    assert keys(returned["data"]["contains"]) == result["data"].keys()
    assert keys(returned["curve"]["contains"]) == result["curve"][0].keys()
    for side in ("before", "after"):
        assert keys(returned[side]["contains"]) == result[side].keys()
        assert keys(returned[side]["contains"]["train"]["contains"]) == result[side]["train"].keys()
    for entry in returned.values():
        assert entry["description"]
        assert "sample" in entry or "contains" in entry


# ---- bad input

BAD: list[tuple[dict[str, t.Any], str]] = [
    (changed("points", [[0, 1], [5, -1]]), "points[1]"),
    ({"points": None, "trace_file": "/nowhere/trace.csv"}, "trace_file"),
    ({"spec": None, "spec_file": "/nowhere/hpa.yml"}, "spec_file"),
    (changed("spec.maxReplicas", 1), "spec.maxReplicas"),
    (changed("spec.minReplicas", "few"), "spec.minReplicas"),
    (changed("spec.metrics.0.resource.name", "memory"), "pods.resources"),
    (changed("pods.capacity", 0), "pods.capacity"),
    (changed("slo.min_share", 99.9), "slo.min_share"),
    (changed("slo.max_load_ratio", 0), "slo.max_load_ratio"),
    (changed("data.min_days", 1), "data.min_days"),
    (changed("data.max_gap_share", 2), "data.max_gap_share"),
    (changed("data.held_out_days", 0), "data.held_out_days"),
    (changed("data.held_out_days", 4), "data.held_out_days"),
    (changed("search.candidates", 5), "search.candidates"),
    (changed("search.seed", -1), "search.seed"),
    (changed("search.threads", 0), "search.threads"),
    (changed("limits.replicas_percent", -1), "limits.replicas_percent"),
    (changed("limits.target_percent", 91), "limits.target_percent"),
    (changed("limits.window_s", -1), "limits.window_s"),
    (changed("limits.min_replicas", 0), "limits.min_replicas"),
    (changed("limits.max_replicas", 1), "limits.max_replicas"),
    ({"cost_per_replica_hour": -1}, "cost_per_replica_hour"),
    ({"report_file": "/nowhere/report.html"}, "report_file"),
    ({"report_file": ""}, "report_file"),
    ({"report_file": "/nowhere/"}, "report_file"),
    ({"replicas_points": [[0, 1], [0, 2]]}, "replicas_points[1]"),
    ({"spec": None, "name": "No Name", "host": "http://127.0.0.1:1"}, "name"),
    ({"points": None, "prometheus": {"url": "prometheus:9090", "query": "x"}}, "prometheus.url"),
    ({"points": None, "prometheus": {"url": "http://u:p@host", "query": "x"}}, "prometheus.url"),
    ({"points": None, "prometheus": {"url": "http://host/?token=:p@x", "query": "x"}}, "prometheus.url"),
    ({"points": None, "prometheus": {"url": "http://host/?token=:p@x#y", "query": "x"}}, "prometheus.url"),
    ({"points": None, "prometheus": {"url": "http://host", "query": "x", "token": "a:p@x\nb"}}, "prometheus.token"),
    (
        {"points": None, "prometheus": {"url": "https://host", "query": "x", "ca_cert": "/nowhere.pem"}},
        "prometheus.ca_cert",
    ),
    ({"points": None, "prometheus": {"url": "https://host", "query": "x", "ca_cert": __file__}}, "prometheus.ca_cert"),
    ({"points": None, "prometheus": {"url": "http://host", "query": "x", "days": 0}}, "prometheus.days"),
    ({"points": None, "prometheus": {"url": "http://host", "query": "x", "step_s": 0}}, "prometheus.step_s"),
]


@pytest.mark.parametrize(("params", "option"), BAD, ids=[f"{case[1]}-{number}" for number, case in enumerate(BAD)])
def test_bad_values_end_in_one_sentence(capsys: pytest.CaptureFixture[str], params: t.Any, option: str) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert result["msg"].startswith(f"Option {option!r} has the value "), result["msg"]
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]
    assert ":p@" not in result["msg"]
    assert result["errors"][0]["code"] == "bad_option"


@pytest.mark.parametrize(
    "params",
    [
        {"points": None},
        {"pods": None},
        {"spec": None},
        {"state": "applied"},
        {"state": "reverted"},
        {"name": "shop"},
        {"approve": "all"},
        {"points": None, "prometheus": {"url": "http://host", "query": "x", "username": "u"}},
    ],
)
def test_what_the_options_rule_out(capsys: pytest.CaptureFixture[str], params: t.Any) -> None:
    assert run(capsys, **params)[0] == 1


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"points": points(2)}, "too_short"),
        ({"points": points(4, 900)}, "too_coarse"),
        ({"points": [one for one in points() if not 90_000 < one[0] - START_S < 120_000]}, "gaps"),
        ({"points": points(value=lambda _at: 0.0)}, "no_load"),
        ({"points": points(value=lambda _at: 2990.0)}, "capped"),
        ({"replicas_points": points(value=lambda _at: 30.0)}, "at_max"),
        ({"throttling_points": points(value=lambda _at: 0.6)}, "cpu_capped"),
    ],
)
def test_poor_data_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], params: dict[str, t.Any], reason: str
) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert result["errors"][0]["code"] == "poor_data"
    assert result["errors"][0]["reason"] == reason
    assert result["msg"].startswith("Failed to tune the HPA: ")
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]


# ---- what is recommended


def test_a_cheaper_spec_is_recommended_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys)
    before, after = (result[side]["held_out"] for side in ("before", "after"))
    assert (code, result["changed"], result["verdict"], result["plan"]) == (0, False, "tune", [])
    assert after["replica_hours"] < before["replica_hours"]
    assert after["cost"] == pytest.approx(after["replica_hours"] / 2, abs=1e-3)
    assert after["slo_share"] >= before["slo_share"]
    assert result["tried"] == 40
    assert all(change["reason"].startswith("Without it training days had ") for change in result["changes"])
    assert not any(change["applied"] for change in result["changes"])
    assert result["diff"]["before"] != result["diff"]["after"]
    assert "metric cpu: 45 % of the request" in result["diff"]["before"]
    assert result["data"]["train_days"] + result["data"]["held_out_days"] == pytest.approx(4, abs=0.01)
    again = run(capsys, search={"candidates": 40, "threads": 1})[1]
    assert {key: again[key] for key in result if key != "invocation"} == {
        key: result[key] for key in result if key != "invocation"
    }


def test_nothing_better_is_a_verdict_too(capsys: pytest.CaptureFixture[str]) -> None:
    # two replicas always, and two are needed
    spec = {"minReplicas": 2, "maxReplicas": 2, "metrics": [CPU]}
    result = run(capsys, spec=spec, points=points(value=lambda _at: 150.0))[1]
    assert (result["verdict"], result["changes"], result["schedule"]) == ("keep", [], None)
    assert result["before"] == result["after"]
    assert result["spec"] == complete(spec)
    assert result["diff"]["before"] == result["diff"]["after"]
    assert result["summary"].startswith("Keep the HPA: of ")


def test_the_floor_is_not_lowered_in_an_incident(capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"replicas_percent": 100, "target_percent": 0, "window_s": 0, "tolerances": False}
    calm = run(capsys, limits=wide)[1]
    assert calm["spec"]["minReplicas"] < 6
    assert "(HIGH)" not in calm["summary"]
    kept = run(capsys, limits=wide, incident=True)[1]
    assert kept["spec"]["minReplicas"] >= 6
    assert all(one["spec"]["minReplicas"] >= 6 for one in kept["curve"])
    assert "The floor is not lowered, since option incident says" in kept["summary"]
    gap = [one for one in points() if not DAY_S * 4 - 2000 < one[0] - START_S < DAY_S * 4 - 400]
    assert "last hour of the load has a gap" in run(capsys, limits=wide, points=gap)[1]["summary"]


@pytest.mark.parametrize("whole", [True, False])
def test_the_spec_may_be_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, whole: bool) -> None:
    path = tmp_path / "hpa.yml"
    content = {"kind": "HorizontalPodAutoscaler", "spec": SPEC} if whole else SPEC
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run(capsys, spec=None, spec_file=str(path))[1]["spec"] == run(capsys)[1]["spec"]


@pytest.mark.parametrize("text", ["{", "- 1", "kind: HorizontalPodAutoscaler"])
def test_a_file_that_is_no_spec(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "hpa.yml"
    path.write_text(text, encoding="utf-8")
    code, result = run(capsys, spec=None, spec_file=str(path))
    assert code == 1
    assert result["errors"][0]["option"] == "spec_file" if text != "- 1" else "spec_file" in result["msg"]


# ---- the page


def test_the_report_is_one_page_that_needs_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "report.html"
    assert run(capsys, check=True, report_file=str(path))[0] == 0
    assert not path.exists()
    # fewer replicas than needed, so that there is something red
    small = {**SPEC, "minReplicas": 1, "maxReplicas": 5}
    result = run(capsys, report_file=str(path), spec=small, data={"min_days": 3, "load_is_whole": True})[1]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"src", "href"} & {name for _tag, attributes in page.tags for name in attributes}
    assert {"script", "link", "img"}.isdisjoint(tag for tag, _attributes in page.tags)
    drawn = [attributes.get("class") for _tag, attributes in page.tags]
    assert {"load", "old", "pods", "late", "dot", "was", "is", "goal"} < set(drawn)
    assert drawn.count("dot") == len(result["curve"])
    assert all(change["risk_reason"] in text for change in result["changes"])
    # the spec can be copied as it is
    specs = [yaml.safe_load(html.unescape(part.split("</pre>")[0])) for part in text.split("<pre>")[1:]]
    assert specs[0] == result["spec"]
    assert specs[1:] == ([result["schedule"]["spec"]] if result["schedule"] else [])


# ---- applying and reverting


def test_what_is_approved_is_applied_recorded_and_reverted(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    before = complete(SPEC)
    params = {"state": "applied", "approve": "high"}

    planned = run(capsys, api, check=True, **params)[1]
    assert planned["changed"]
    assert planned["plan"]
    assert api.writes == []
    assert complete(api.hpa("shop")["spec"]) == before

    api.forget()
    done = run(capsys, api, **params)[1]
    stored = api.hpa("shop")
    assert {key: done[key] for key in ("spec", "plan", "diff", "changes")} == {
        key: planned[key] for key in ("spec", "plan", "diff", "changes")
    }
    assert [method for method, _path in api.writes] == ["PATCH"]
    assert complete(stored["spec"]) == complete(done["spec"]) != before
    assert all(change["applied"] for change in done["changes"])
    record = json.loads(stored["metadata"]["annotations"][ANNOTATION])
    assert [complete(one["replaced"]) for one in record] == [before]

    api.forget()
    assert run(capsys, api, check=True, state="reverted")[1]["changed"]
    assert api.writes == []
    back = run(capsys, api, state="reverted")[1]
    stored = api.hpa("shop")
    assert back["changed"]
    assert back["verdict"] == "reverted"
    assert complete(stored["spec"]) == before
    assert ANNOTATION not in stored["metadata"].get("annotations", {})

    api.forget()
    again = run(capsys, api, state="reverted")[1]
    assert (again["changed"], api.writes) == (False, [])


def test_what_is_not_approved_waits(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    result = run(capsys, api, state="applied")[1]
    # less cost alone takes room away
    assert {change["risk"] for change in result["changes"]} & {"MEDIUM", "HIGH"}
    assert (result["changed"], result["plan"], api.writes) == (False, [], [])
    assert "Not applied, since it needs approve: " in result["summary"]


def test_more_room_is_applied_without_approval(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    # a ceiling that is too low breaks the objective every day
    api.put("HorizontalPodAutoscaler", "shop", {"spec": {**SPEC, "minReplicas": 4, "maxReplicas": 8}})
    result = run(capsys, api, state="applied", data={"min_days": 3, "load_is_whole": True})[1]
    applied = [change for change in result["changes"] if change["applied"]]
    assert applied
    assert {change["risk"] for change in applied} == {"LOW"}
    assert api.hpa("shop")["spec"]["maxReplicas"] > 8


def test_two_changes_are_taken_back_one_by_one(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    near = {"target_percent": 10, "replicas_percent": 10, "window_s": 0, "tolerances": False}
    specs = [complete(SPEC)]
    for _turn in range(2):
        assert run(capsys, api, state="applied", approve="high", limits=near)[1]["changed"]
        specs.append(complete(api.hpa("shop")["spec"]))
    assert specs[2] != specs[1] != specs[0]
    for spec in (specs[1], specs[0]):
        assert run(capsys, api, state="reverted")[1]["changed"]
        assert complete(api.hpa("shop")["spec"]) == spec


def test_a_write_in_between_is_a_conflict_that_is_tried_again(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    emulator, path = api.emulator, api.path("HorizontalPodAutoscaler", "shop")
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    patches = []

    def touch(method: str, _path: str) -> None:
        if method == "PATCH":
            patches.append(method)
            if len(patches) < 3:
                emulator.touch(path)

    emulator.hook = touch
    assert run(capsys, api, state="applied", approve="high")[1]["changed"]
    assert len(patches) == 3


def test_what_others_changed_meanwhile_is_left_alone(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    emulator, path = api.emulator, api.path("HorizontalPodAutoscaler", "shop")
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    reads = []

    def change(method: str, where: str) -> None:
        reads.append((method, where))
        if reads.count(("GET", path)) == 2:
            emulator.objects[path]["spec"]["maxReplicas"] = 77

    emulator.hook = change
    code, result = run(capsys, api, state="applied", approve="high")
    assert code == 1
    assert result["errors"][0]["code"] == "changed_since"
    assert api.writes == []


def test_a_spec_that_was_changed_since_is_not_reverted(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    assert run(capsys, api, state="applied", approve="high")[0] == 0
    # a schedule raises the floor, and that alone does not matter
    api.change("shop", {"minReplicas": 9})
    assert run(capsys, api, check=True, state="reverted")[1]["changed"]
    api.change("shop", {"maxReplicas": 77})
    code, result = run(capsys, api, state="reverted")
    assert (code, api.writes) == (1, [])
    assert result["errors"][0]["code"] == "changed_since"


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{}",
        "[",
        '[{"replaced": null, "applied": null}]',
        '[["replaced", "applied"]]',
        '[{"replaced": {}, "applied": {}}]',
        '[{"replaced": {"maxReplicas": 5}, "applied": {"maxReplicas": 5}}]',
        '[{"replaced": {"maxReplicas": 5, "scaleTargetRef": {}, "metrics": [1]}, "applied": {"maxReplicas": 5}}]',
    ],
)
def test_a_record_that_someone_else_wrote_is_not_trusted(
    api: t.Any, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    metadata = {"annotations": {ANNOTATION: text}}
    api.put("HorizontalPodAutoscaler", "shop", {"metadata": metadata, "spec": SPEC})
    code, result = run(capsys, api, state="reverted")
    assert (code, result["errors"][0]["code"]) == (1, "bad_record")


def test_changes_come_to_rest_and_are_taken_back_to_the_first_spec(
    api: t.Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    first = api.hpa("shop")["spec"]
    specs = [complete(first)]
    while run(capsys, api, state="applied", approve="high")[1]["changed"]:
        specs.append(complete(api.hpa("shop")["spec"]))
        assert len(specs) < 12, "it does not come to rest"
    assert len(specs) > 3
    for spec in reversed(specs[:-1]):
        assert run(capsys, api, state="reverted")[1]["changed"]
        assert complete(api.hpa("shop")["spec"]) == spec
    stored = api.hpa("shop")
    assert run(capsys, api, state="reverted")[1]["changed"] is False
    assert ANNOTATION not in stored["metadata"].get("annotations", {})


def recorded(api: t.Any, floors: tuple[int, int], status: dict[str, t.Any] | None = None, **more: t.Any) -> None:
    """Put an autoscaler there whose floor was raised by a recorded change, perhaps together with something else."""
    before, after = ({**copy.deepcopy(SPEC), "minReplicas": floor} for floor in floors)
    after.update(more)
    record = [{"at": "2026-01-01T00:00:00Z", "replaced": complete(before), "applied": complete(after)}]
    metadata = {"annotations": {ANNOTATION: json.dumps(record)}}
    item = {"metadata": metadata, "spec": after, **({"status": status} if status else {})}
    api.put("HorizontalPodAutoscaler", "shop", item)


def test_a_floor_is_not_reverted_in_an_incident(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(api, (2, 4), maxReplicas=40)
    for check in (True, False):
        result = run(capsys, api, check=check, state="reverted", incident=True)[1]
        assert (result["changed"], result["spec"]["minReplicas"], result["spec"]["maxReplicas"]) == (True, 4, 30)
        assert "The floor is not lowered, since option incident says" in result["summary"]
        assert [one["what"] for one in result["plan"]] == ["max replicas"]
    stored = api.hpa("shop")
    assert (stored["spec"]["minReplicas"], stored["spec"]["maxReplicas"]) == (4, 30)


def test_a_floor_that_is_all_that_was_changed_waits_for_the_end_of_an_incident(
    api: t.Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(api, (2, 4))
    result = run(capsys, api, state="reverted", incident=True)[1]
    assert (result["changed"], result["verdict"], api.writes) == (False, "keep", [])
    assert "is not reverted. The floor is not lowered, since" in result["summary"]
    assert run(capsys, api, state="reverted")[1]["changed"]
    assert api.hpa("shop")["spec"]["minReplicas"] == 2


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_floor_is_not_reverted_while_metrics_cannot_be_read(
    api: t.Any, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    assert api.emulator
    condition = {"type": "ScalingActive", "status": status, "reason": "FailedGetResourceMetric"}
    recorded(api, (2, 4), {"conditions": [condition]}, maxReplicas=40)
    result = run(capsys, api, state="reverted")[1]
    assert "since the HPA cannot read its metrics" in result["summary"]
    assert (result["spec"]["minReplicas"], api.hpa("shop")["spec"]["minReplicas"]) == (4, 4)


def test_a_floor_that_a_schedule_has_raised_is_not_reverted(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(api, (2, 4), maxReplicas=40)
    api.change("shop", {"minReplicas": 9})
    result = run(capsys, api, state="reverted")[1]
    assert "since a schedule has raised it" in result["summary"]
    assert api.hpa("shop")["spec"]["minReplicas"] == 9


@pytest.mark.parametrize("state", ["applied", "reverted"])
def test_one_that_is_being_deleted_is_not_changed(api: t.Any, capsys: pytest.CaptureFixture[str], state: str) -> None:
    assert api.emulator
    recorded(api, (2, 4))
    api.emulator.objects[api.path("HorizontalPodAutoscaler", "shop")]["metadata"]["deletionTimestamp"] = (
        "2026-01-01T00:00:00Z"
    )
    code, result = run(capsys, api, state=state, approve="high")
    assert (code, result["errors"][0]["code"], api.writes) == (1, "being_deleted", [])


def test_what_was_not_given_is_not_said_to_be_0(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys)[1]
    assert (result["data"]["at_max_share"], result["data"]["throttled_share"]) == (None, None)
    assert (
        "It is not known whether its replicas were at maxReplicas and whether its cpu was throttled"
        in result["summary"]
    )
    low = points(value=lambda _at: 0.1)
    told = run(capsys, replicas_points=low, throttling_points=low)[1]
    assert (told["data"]["at_max_share"], told["data"]["throttled_share"]) == (0, 0)
    assert "It is not known" not in told["summary"]


def test_an_autoscaler_that_is_not_there(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys, api)
    assert (code, result["errors"][0]["code"]) == (1, "not_found")
    assert "Declare it with the module hpa first." in result["msg"]


def test_a_server_that_forbids_the_change(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    api.emulator.fail("PATCH", "horizontalpodautoscalers", 403, "Forbidden", "you may not")
    code, result = run(capsys, api, state="applied", approve="high")
    assert (code, result["errors"][0]["code"]) == (1, "forbidden")
    assert complete(api.hpa("shop")["spec"]) == complete(SPEC)


def test_a_server_that_drops_a_field(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    emulator = api.emulator
    prepare = emulator._prepare
    emulator._prepare = lambda item: (prepare(item), item["spec"].update(metrics=[CPU]))
    code, result = run(capsys, api, state="applied", approve="high")
    assert (code, result["errors"][0]["code"], result["changed"]) == (1, "not_kept", True)


@pytest.mark.parametrize(("minor", "known"), [(34, False), (35, True)])
def test_tolerances_are_left_to_servers_that_know_them(
    api: t.Any, capsys: pytest.CaptureFixture[str], minor: int, known: bool
) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    api.emulator.minor = minor
    result = run(capsys, api)[1]
    texts = json.dumps([one["spec"] for one in result["curve"]])
    assert ("tolerance" in texts) == known


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_an_autoscaler_without_metrics_keeps_its_floor(
    api: t.Any, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    assert api.emulator
    condition = {"type": "ScalingActive", "status": status, "reason": "FailedGetResourceMetric", "message": "none"}
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC, "status": {"conditions": [condition]}})
    result = run(capsys, api)[1]
    assert result["data"]["floor_kept_because"] == "the HPA cannot read its metrics"
    assert all(one["spec"]["minReplicas"] >= 6 for one in result["curve"])


# ---- Prometheus


@pytest.fixture(name="prometheus")
def prometheus_fixture() -> t.Iterator[Prometheus]:
    """Give a Prometheus that has the load in two halves."""
    with Prometheus(token="let-me-in") as server:
        server.queries["load"] = [lambda at_s: load_at(at_s) / 2] * 2
        server.queries["at_most"] = [lambda _at: 30.0]
        server.queries["firing"] = [lambda _at: 1.0]
        server.queries["calm"] = []
        yield server


def asked(prometheus: Prometheus, **more: t.Any) -> dict[str, t.Any]:
    """Return the options of a query."""
    source = {"url": prometheus.url, "query": "load", "token": "let-me-in", "days": 4, "step_s": 300}
    return {"points": None, "prometheus": {**source, "end_s": START_S + 4 * DAY_S - 300, **more}}


def test_prometheus_gives_what_a_file_does(prometheus: Prometheus, capsys: pytest.CaptureFixture[str]) -> None:
    read, given = run(capsys, **asked(prometheus))[1], run(capsys)[1]
    assert read["data"] == {**given["data"], "series": 2}
    assert {key: read[key] for key in ("spec", "before", "after")} == {
        key: given[key] for key in ("spec", "before", "after")
    }


def test_long_ranges_are_asked_in_parts(prometheus: Prometheus, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, **asked(prometheus, step_s=30))[1]
    assert result["data"]["days"] == pytest.approx(4, abs=0.01)
    assert result["data"]["gap_s"] == 0
    assert len(prometheus.asked) == 2
    assert all((float(one["end"]) - float(one["start"])) / 30 < 11_000 for one in prometheus.asked)


def test_prometheus_is_asked_for_what_else_is_known(prometheus: Prometheus, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys, **asked(prometheus, replicas_query="at_most"))
    assert (code, result["errors"][0]["reason"]) == (1, "at_max")
    code, result = run(capsys, **asked(prometheus, throttling_query="firing"))
    assert (code, result["errors"][0]["reason"]) == (1, "cpu_capped")
    told = run(capsys, **asked(prometheus, incident_query="firing"))[1]
    assert told["data"]["floor_kept_because"] == "prometheus.incident_query has a result"
    assert run(capsys, **asked(prometheus, incident_query="calm"))[1]["data"]["floor_kept_because"] is None


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"token": "wrong"}, "unauthorized"),
        ({"query": "rate("}, "refused"),
        ({"query": "calm"}, "no_data"),
        ({"url": "http://127.0.0.1:9"}, "connection_failed"),
    ],
)
def test_what_prometheus_does_not_answer(
    prometheus: Prometheus, capsys: pytest.CaptureFixture[str], more: dict[str, t.Any], code: str
) -> None:
    ended, result = run(capsys, **asked(prometheus, **more))
    assert (ended, result["errors"][0]["code"]) == (1, code)
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]
    assert "let-me-in" not in json.dumps(result["msg"])


@pytest.mark.parametrize(("late_s", "kept"), [(0, False), (600, True), (3000, True)])
def test_a_floor_is_not_lowered_while_the_newest_load_is_missing(
    api: t.Any, prometheus: Prometheus, capsys: pytest.CaptureFixture[str], late_s: int, kept: bool
) -> None:
    api.put("HorizontalPodAutoscaler", "shop", {"spec": SPEC})
    now_s = time.time()
    prometheus.queries["load"] = [lambda at_s: load_at(at_s) if at_s <= now_s - late_s else None]
    given = asked(prometheus, step_s=60)
    del given["prometheus"]["end_s"]
    result = run(capsys, api, state="applied", approve="high", **given)[1]
    assert (result["data"]["floor_kept_because"] is not None) == kept
    assert (api.hpa("shop")["spec"]["minReplicas"] >= 6) == kept


@pytest.mark.parametrize("query", ["firing", "rate("])
def test_a_floor_is_not_reverted_while_prometheus_tells_of_an_incident_or_cannot(
    api: t.Any, prometheus: Prometheus, capsys: pytest.CaptureFixture[str], query: str
) -> None:
    assert api.emulator
    recorded(api, (2, 4), maxReplicas=40)
    given = asked(prometheus, incident_query=query)
    assert run(capsys, api, state="reverted", **given)[1]["spec"]["minReplicas"] == 4
    assert api.hpa("shop")["spec"]["minReplicas"] == 4
    recorded(api, (2, 4), maxReplicas=40)
    calm = asked(prometheus, incident_query="calm")
    assert run(capsys, api, state="reverted", **calm)[1]["spec"]["minReplicas"] == 2


@pytest.mark.parametrize(
    "series", [5, "x", {"metric": {}, "values": 5}, {"metric": None, "values": [[1]]}, {"values": [5]}]
)
def test_an_answer_that_is_none_of_prometheus(
    prometheus: Prometheus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, series: t.Any
) -> None:
    answer = {"status": "success", "data": {"resultType": "matrix", "result": [series]}}
    monkeypatch.setattr(prometheus, "answer", lambda _path, _params: (200, answer))
    code, result = run(capsys, **asked(prometheus))
    assert code == 1
    assert result["errors"][0]["code"] in ("bad_answer", "bad_option", "no_data")
    assert result["msg"].endswith(".")


def test_a_load_with_holes_is_refused(prometheus: Prometheus, capsys: pytest.CaptureFixture[str]) -> None:
    prometheus.queries["load"] = [lambda at_s: None if 90_000 < at_s - START_S < 150_000 else load_at(at_s)]
    code, result = run(capsys, **asked(prometheus))
    assert (code, result["errors"][0]["reason"]) == (1, "gaps")
