# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole, against an API server over HTTP: what it finds lacking, what it declares, and what it leaves alone."""

from __future__ import annotations

import json
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("requests")

from ansible_collections.headroom.scale.plugins.modules import hpa_surroundings  # noqa: E402

INGRESS = [{"from": [{"podSelector": {"matchLabels": {"app": "front"}}}], "ports": [{"port": 8080}]}]
GIVEN: dict[str, t.Any] = {
    "requests": {"cpu": "0.2", "memory": "512Mi"},
    "limits": {"cpu": "1"},
    "probes": ["readiness", "liveness"],
    "budget": {"min_available": "2"},
    "network_policy": {"ingress": INGRESS},
}
SELECTOR = {"matchLabels": {"app": "shop"}}


def deployment(**container: t.Any) -> dict[str, t.Any]:
    """Return a Deployment that lacks nothing, but for what is given of its container."""
    probe = {"httpGet": {"path": "/health", "port": 8080}}
    one = {
        "name": "shop",
        "image": "example.com/shop",
        "resources": {"requests": {"cpu": "200m", "memory": "0.5Gi"}, "limits": {"cpu": "1000m"}},
        "readinessProbe": probe,
        "livenessProbe": probe,
        **container,
    }
    template = {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [one]}}
    return {"spec": {"selector": SELECTOR, "template": template}}


def run(
    api: t.Any, capsys: pytest.CaptureFixture[str], check: bool = False, **params: t.Any
) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result."""
    given = {"name": "shop", "namespace": api.namespace, **GIVEN, **api.params, **params, "_ansible_check_mode": check}
    with (
        patch_module_args({name: value for name, value in given.items() if value is not None}),
        pytest.raises(SystemExit) as ended,
    ):
        hpa_surroundings.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), json.loads(out)


def test_every_return_value_is_documented(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    result = run(api, capsys)[1]
    returned = yaml.safe_load(hpa_surroundings.RETURN)
    assert returned.keys() - {"errors"} == result.keys() - {"changed", "invocation", "diff"}


def test_what_is_declared_is_made_once_and_kept(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())

    planned = run(api, capsys, check=True)[1]
    assert (planned["changed"], api.writes) == (True, [])
    done = run(api, capsys)[1]
    assert done["plan"] == planned["plan"]
    assert done["diff"] == planned["diff"]
    assert (done["ready"], done["findings"], api.warned) == (True, [], [])
    assert api.get("PodDisruptionBudget", "shop")["spec"] == {"minAvailable": 2, "selector": SELECTOR}
    assert api.get("NetworkPolicy", "shop")["spec"] == {
        "podSelector": SELECTOR,
        "policyTypes": ["Ingress"],
        "ingress": INGRESS,
    }

    api.forget()
    again = run(api, capsys)[1]
    assert (again["changed"], again["plan"], api.writes) == (False, [], [])


def test_another_rule_replaces_the_one_that_was(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    run(api, capsys)
    changed = run(api, capsys, budget={"max_unavailable": "25%"}, network_policy={"egress": []})[1]
    assert [one["what"] for one in changed["plan"]] == ["PodDisruptionBudget shop", "NetworkPolicy shop"]
    assert api.get("PodDisruptionBudget", "shop")["spec"] == {"maxUnavailable": "25%", "selector": SELECTOR}
    policy = api.get("NetworkPolicy", "shop")["spec"]
    assert policy == {"podSelector": SELECTOR, "policyTypes": ["Egress"], "egress": []}


def test_what_the_server_fills_in_is_no_difference(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    rules = [{**INGRESS[0], "ports": [{"port": 8080, "protocol": "TCP"}]}]
    spec = {"podSelector": SELECTOR, "policyTypes": ["Ingress"], "ingress": rules}
    api.put("NetworkPolicy", "shop", {"spec": spec})
    assert run(api, capsys, budget=None)[1]["changed"] is False


def test_what_is_not_declared_is_left_alone(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    assert run(api, capsys, budget=None, network_policy=None)[1]["changed"] is False
    assert api.writes == []


@pytest.mark.parametrize(
    ("container", "params", "code"),
    [
        ({"resources": {"limits": {"cpu": "1"}}}, {}, "requests_differ"),
        ({"resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"cpu": "2"}}}, {}, "limits_differ"),
        ({"readinessProbe": None}, {}, "probe_missing"),
        ({}, {"probes": ["startup"]}, "probe_missing"),
        ({}, {"container": "sidecar"}, "container_missing"),
        ({}, {"metrics": ["Resource", "Pods", "Object"]}, "metrics_api_missing"),
        ({}, {"metrics": ["External"]}, "metrics_api_missing"),
    ],
)
def test_what_is_lacking_is_said(
    api: t.Any, capsys: pytest.CaptureFixture[str], container: dict[str, t.Any], params: dict[str, t.Any], code: str
) -> None:
    api.put("Deployment", "shop", deployment(**container))
    result = run(api, capsys, **params)[1]
    assert result["ready"] is False
    assert {one["code"] for one in result["findings"]} == {code}
    assert api.warned == [one["message"] for one in result["findings"]]


def test_adapters_that_are_there_are_seen(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.groups += ["custom.metrics.k8s.io", "external.metrics.k8s.io"]
    assert run(api, capsys, metrics=["Resource", "Pods", "Object", "External"])[1]["ready"]


def test_without_a_deployment_nothing_is_made(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(api, capsys)[1]
    assert [one["code"] for one in result["findings"]] == ["target_missing"]
    assert (result["changed"], api.writes) == (False, [])


@pytest.mark.parametrize(
    ("params", "option"),
    [
        ({"name": "No Name"}, "name"),
        ({"namespace": "No"}, "namespace"),
        ({"requests": {"cpu": "half"}}, "requests.cpu"),
        ({"budget": {"min_available": "two"}}, "budget.min_available"),
        ({"budget": {"max_unavailable": "101%"}}, "budget.max_unavailable"),
    ],
)
def test_bad_values_end_in_one_sentence(
    api: t.Any, capsys: pytest.CaptureFixture[str], params: dict[str, t.Any], option: str
) -> None:
    code, result = run(api, capsys, **params)
    assert code == 1
    assert result["msg"].startswith(f"Option {option!r} has the value ")
    assert api.sent == []


def test_a_conflict_is_tried_again(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    run(api, capsys)
    emulator, path, patches = api.emulator, api.path("PodDisruptionBudget", "shop"), []

    def touch(method: str, where: str) -> None:
        if (method, where) == ("PATCH", path):
            patches.append(where)
            if len(patches) == 1:
                emulator.touch(path)

    emulator.hook = touch
    assert run(api, capsys, budget={"min_available": "1"})[1]["changed"]
    assert len(patches) == 2


def test_a_server_that_forbids_it(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.fail("POST", "networkpolicies", 403, "Forbidden", "you may not")
    code, result = run(api, capsys)
    assert (code, result["errors"][0]["code"]) == (1, "forbidden")
