# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole, against an API server over HTTP: it only reads, and tells what it read."""

from __future__ import annotations

import json
import time
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube import client, info
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.history import format_time
from ansible_collections.headroom.scale.plugins.modules import hpa_info

SPEC = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
    "minReplicas": 2,
    "maxReplicas": 8,
    "metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
        {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "50"}}},
    ],
}
STATUS = {
    "currentReplicas": 8,
    "desiredReplicas": 8,
    "lastScaleTime": "2026-11-21T10:00:00Z",
    "currentMetrics": [
        {
            "type": "Resource",
            "resource": {"name": "cpu", "current": {"averageUtilization": 93, "averageValue": "186m"}},
        },
        {"type": ""},
    ],
    "conditions": [
        {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale", "message": "ready"},
        {"type": "ScalingActive", "status": "True", "reason": "ValidMetricFound", "message": "fine"},
        {"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas", "message": "too many"},
    ],
}


def run(api: t.Any, capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result; nothing is ever written."""
    api.forget()
    given = {"namespace": api.namespace, **api.params, **params}
    with patch_module_args(given), pytest.raises(SystemExit) as ended:
        hpa_info.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert api.writes == []
    return int(ended.value.code or 0), json.loads(out)


def rescaled(
    api: t.Any, name: str, hpa: str, size: int, why: str, ago_s: tuple[float, float], count: int = 1, **about: str
) -> None:
    """Put an event of the controller that a decision was carried out, so many seconds ago."""
    first, last = (format_time(time.time() - ago) for ago in ago_s)
    item = {
        "type": "Normal",
        "reason": "SuccessfulRescale",
        "message": f"New size: {size}; reason: {why}",
        "involvedObject": {"kind": "HorizontalPodAutoscaler", "name": hpa, "namespace": api.namespace, **about},
        "firstTimestamp": first,
        "lastTimestamp": last,
        "count": count,
    }
    api.put("Event", name, item)


@pytest.fixture(name="busy")
def busy_fixture(api: t.Any) -> t.Any:
    """An autoscaler at its maximum, with a history, and one that has only been made."""
    assert api.emulator
    api.put("HorizontalPodAutoscaler", "app", {"spec": SPEC, "status": STATUS})
    api.put("HorizontalPodAutoscaler", "fresh", {"spec": {**SPEC, "maxReplicas": 4}})
    rescaled(api, "e1", "app", 4, "cpu resource utilization (percentage of request) above target", (900, 900))
    rescaled(api, "e2", "app", 8, "cpu resource utilization (percentage of request) above target", (300, 300))
    rescaled(api, "e3", "fresh", 3, "Current number of replicas below Spec.MinReplicas", (60, 60))
    warning = {
        "type": "Warning",
        "reason": "FailedGetPodsMetric",
        "message": "unable to get metric rps",
        "involvedObject": {"kind": "HorizontalPodAutoscaler", "name": "app"},
        "firstTimestamp": format_time(time.time() - 500),
        "lastTimestamp": format_time(time.time() - 100),
        "count": 7,
    }
    api.put("Event", "e4", warning)
    api.put("Event", "e5", {**warning, "involvedObject": {"kind": "Deployment", "name": "app"}})
    return api


def test_the_options_are_documented_as_they_are() -> None:
    documented = yaml.safe_load(hpa_info.DOCUMENTATION)["options"]
    own = {name: option for name, option in info.info_spec().options.items() if name in documented}
    assert {name: option.get("type") for name, option in documented.items()} == {
        name: option.get("type") for name, option in own.items()
    }
    assert sorted(own) == ["name", "namespace", "window_s"]


def test_every_return_value_is_documented_with_a_sample(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(hpa_info.RETURN)
    result = run(busy, capsys)[1]
    assert returned.keys() - {"errors"} == result.keys() - {"changed", "invocation"}
    contains = returned["hpas"]["contains"]
    assert contains.keys() == result["hpas"][0].keys()
    for name, entry in {**returned, **contains}.items():
        assert entry["description"], name
        assert entry["type"], name
        assert "sample" in entry or "contains" in entry, name
    for name in ("decisions", "history", "problems", "conditions", "metrics"):
        sample, found = contains[name]["sample"], result["hpas"][0][name]
        pick = (lambda value: value[0]) if isinstance(sample, list) else (lambda value: value)
        assert pick(sample).keys() == pick(found).keys(), name


@pytest.mark.parametrize("number", range(len(yaml.safe_load(hpa_info.EXAMPLES))))
def test_the_examples_work(busy: t.Any, capsys: pytest.CaptureFixture[str], number: int) -> None:
    example = yaml.safe_load(hpa_info.EXAMPLES)[number]
    if "headroom.scale.hpa_info" in example:
        given = {key: value for key, value in example["headroom.scale.hpa_info"].items() if key != "namespace"}
        assert run(busy, capsys, **given)[0] == 0
    else:
        # what the conditions ask of each one is there
        shown = run(busy, capsys)[1]["hpas"]
        assert all({"state", "decisions", "name"} <= one.keys() and "flapping" in one["decisions"] for one in shown)


def test_one_at_its_maximum(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(busy, capsys, name="app")
    assert (code, result["changed"]) == (0, False)
    assert result["summary"] == "1 HPA in shop; look at app (at_max)."
    one = result["hpas"][0]
    assert (one["state"], one["current_replicas"], one["desired_replicas"]) == ("at_max", 8, 8)
    assert one["metrics"] == [
        {"name": "Pods rps", "target": "50 per pod", "current": None},
        {"name": "cpu", "target": "70 % of the request", "current": "93 % of the request"},
    ]
    assert "load beyond that is not met" in one["conditions"][2]["explained"]
    decisions = one["decisions"]
    assert (decisions["ups"], decisions["downs"], decisions["flapping"], decisions["complete"]) == (2, 0, False, True)
    assert [entry["size"] for entry in one["history"]] == [4, 8]
    assert decisions["last_decision"]["size"] == 8
    assert 295 <= decisions["at_max_s"] <= 400
    assert [(problem["reason"], problem["count"]) for problem in one["problems"]] == [("FailedGetPodsMetric", 7)]


def test_all_of_a_namespace(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(busy, capsys)[1]
    assert [one["name"] for one in result["hpas"]] == ["app", "fresh"]
    fresh = result["hpas"][1]
    assert (fresh["state"], fresh["conditions"], fresh["problems"]) == ("unknown", [], [])
    assert fresh["decisions"]["ups"] == 1
    assert result["summary"] == "2 HPAs in shop; look at app (at_max), fresh (unknown)."


def test_many_are_read_page_by_page(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    for number in range(5):
        api.put("HorizontalPodAutoscaler", f"app{number}", {"spec": SPEC})
    assert len(run(api, capsys)[1]["hpas"]) == 5
    assert len([path for _method, path in api.sent if path.endswith("horizontalpodautoscalers")]) == 3


def test_none(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(api, capsys, name="app")
    assert (code, result["hpas"]) == (0, [])
    assert result["summary"] == f"There is no HPA {api.namespace}/app."
    assert run(api, capsys)[1]["summary"] == f"There is no HPA in {api.namespace}."


def test_flapping_is_seen(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    rescaled(busy, "f1", "fresh", 2, "All metrics below target", (50, 20), count=3)
    rescaled(busy, "f2", "fresh", 3, "memory resource utilization above target", (40, 10), count=3)
    result = run(busy, capsys, name="fresh")[1]
    decisions = result["hpas"][0]["decisions"]
    assert (decisions["flapping"], decisions["complete"], decisions["ups"], decisions["downs"]) == (True, False, 4, 3)
    assert "fresh (flapping)" in result["summary"]


def test_the_window_bounds_what_is_counted(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(busy, capsys, name="app", window_s=600)[1]["hpas"][0]
    assert [entry["size"] for entry in one["history"]] == [8]
    assert one["decisions"]["ups"] == 1


def test_events_that_may_not_be_read_are_not_no_events(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    busy.emulator.fail("GET", "/events", 403, "Forbidden", "no")
    code, result = run(busy, capsys, name="app")
    assert code == 0
    assert "Failed to list the events of shop" in result["not_read"]["events"]
    one = result["hpas"][0]
    assert (one["history"], one["decisions"], one["problems"]) == (None, None, None)
    assert one["state"] == "at_max"


def test_hpas_that_may_not_be_read_are_a_failure(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    busy.emulator.fail("GET", "autoscalers", 403, "Forbidden", "no")
    for params in ({}, {"name": "app"}):
        code, result = run(busy, capsys, **params)
        assert (code, result["errors"][0]["code"]) == (1, "forbidden")


def test_check_mode_is_no_different(busy: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    told, looked = (run(busy, capsys, name="app", _ansible_check_mode=check)[1] for check in (True, False))
    for result in (told, looked):
        # it goes on while the test runs
        result["hpas"][0]["decisions"].pop("at_max_s")
    assert told["hpas"] == looked["hpas"]


@pytest.mark.parametrize(
    ("params", "option"),
    [
        ({"name": "A"}, "name"),
        ({"namespace": "a.b"}, "namespace"),
        ({"window_s": 0}, "window_s"),
        ({"window_s": "nan"}, "window_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"host": "nowhere"}, "host"),
    ],
)
def test_bad_values_end_in_one_sentence(
    api: t.Any, capsys: pytest.CaptureFixture[str], params: t.Any, option: str
) -> None:
    assert api.emulator
    code, result = run(api, capsys, **params)
    assert (code, api.sent) == (1, [])
    assert result["msg"].startswith(f"Option {option!r} has the value ")
    assert result["msg"].endswith(".")
    assert result["errors"][0]["option"] == option


def test_events_of_an_earlier_autoscaler_of_the_name_are_not_told(
    busy: t.Any, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"name": "fresh"}
    before = run(busy, capsys, **params)[1]["hpas"][0]
    rescaled(busy, "e6", "fresh", 4, "above target", (30, 30), uid="of-an-earlier-one")
    assert run(busy, capsys, **params)[1]["hpas"][0]["history"] == before["history"]
    uid = busy.hpa("fresh")["metadata"]["uid"]
    rescaled(busy, "e7", "fresh", 4, "above target", (20, 20), uid=uid)
    assert len(run(busy, capsys, **params)[1]["hpas"][0]["history"]) == len(before["history"]) + 1
