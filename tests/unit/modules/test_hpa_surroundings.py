# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole, against an API server over HTTP: what it finds lacking, what it declares, and what it leaves alone."""

from __future__ import annotations

import json
import os
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("requests")

KUBECONFIG = os.environ.get("HEADROOM_KUBECONFIG")

from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube import surround  # noqa: E402
from ansible_collections.headroom.scale.plugins.modules import hpa_surroundings  # noqa: E402

INGRESS = [{"from": [{"podSelector": {"matchLabels": {"app": "front"}}}], "ports": [{"port": 8080, "protocol": "TCP"}]}]
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


@pytest.fixture(autouse=True)
def metrics_are_served(api: t.Any) -> None:
    """Leave out a real API server that has no metrics of pods: what is lacking is told there by each test."""
    if KUBECONFIG and "metrics.k8s.io" not in api.groups():
        pytest.skip("this API server does not serve metrics.k8s.io")
    api.forget()


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
    # the API server leaves out a list that is empty: the type alone lets nothing out
    assert policy == {"podSelector": SELECTOR, "policyTypes": ["Egress"]}


def test_what_the_server_fills_in_is_no_difference(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    spec = {"podSelector": SELECTOR, "policyTypes": ["Ingress"], "ingress": INGRESS}
    api.put("NetworkPolicy", "shop", {"spec": spec})
    bare = [{**INGRESS[0], "ports": [{"port": 8080}]}]
    assert run(api, capsys, budget=None, network_policy={"ingress": bare})[1]["changed"] is False


POLICIES: list[dict[str, t.Any]] = [
    {"ingress": []},
    {"ingress": [], "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]},
    {"ingress": [{}]},
    {"ingress": [{"from": [], "ports": [{"port": 8080}]}]},
    {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": []}}]}]},
    {"ingress": [{"from": [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {}, "matchExpressions": []}}]}]},
]


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_policies_with_empty_lists_are_made_once(
    api: t.Any, capsys: pytest.CaptureFixture[str], policy: dict[str, t.Any]
) -> None:
    api.put("Deployment", "shop", deployment())
    planned = run(api, capsys, check=True, budget=None, network_policy=policy)[1]
    code, done = run(api, capsys, budget=None, network_policy=policy)
    assert (code, done.get("changed")) == (0, True), done
    assert (done["plan"], done["diff"]) == (planned["plan"], planned["diff"])
    stored = api.get("NetworkPolicy", "shop")["spec"]
    assert stored["policyTypes"] == [name.capitalize() for name in policy]
    assert done["plan"][0]["after"] == stored

    api.forget()
    again = run(api, capsys, budget=None, network_policy=policy)[1]
    assert (again["changed"], again["plan"], api.writes) == (False, [], [])


def test_a_policy_without_rules_is_refused(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The API server would take it for one that lets nothing in."""
    api.put("Deployment", "shop", deployment())
    code, result = run(api, capsys, network_policy={})
    assert code == 1
    assert "ingress, egress" in result["msg"]
    assert api.sent == []


def test_a_field_that_the_server_does_not_know_is_not_stored(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.put("Deployment", "shop", deployment())
    monkeypatch.setattr(surround, "_RULES", {})
    typo = {"ingress": [{"form": [{"podSelector": {}}]}]}
    code, result = run(api, capsys, budget=None, network_policy=typo)
    assert (code, result["errors"][0]["code"]) == (1, "bad_request")
    assert "form" in result["msg"]
    assert api.get("NetworkPolicy", "shop") is None

    assert run(api, capsys, budget=None)[0] == 0
    code, result = run(api, capsys, budget=None, network_policy=typo)
    assert (code, result["errors"][0]["code"]) == (1, "invalid")
    assert api.get("NetworkPolicy", "shop")["spec"]["ingress"] == INGRESS


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


def metric(kind: str, name: str, described: dict[str, str] | None = None) -> dict[str, t.Any]:
    """Return a metric of a spec."""
    source: dict[str, t.Any] = {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": "5"}}
    return {"type": kind, kind.lower(): {**source, **({"describedObject": described} if described else {})}}


ALL = [
    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
    metric("Pods", "connections"),
    metric("Object", "requests", {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "front"}),
    metric("Object", "hits", {"apiVersion": "v1", "kind": "Service", "name": "shop"}),
    metric("Object", "drops", {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "name": "shop"}),
    metric("External", "queue"),
]
CUSTOM = [
    "pods/connections",
    "ingresses.networking.k8s.io/requests",
    "services/hits",
    "networkpolicies.networking.k8s.io/drops",
]


def test_adapters_that_are_there_are_seen(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.groups += ["custom.metrics.k8s.io", "external.metrics.k8s.io"]
    assert run(api, capsys, metrics=["Resource", "Pods", "Object", "External"])[1]["ready"]


def test_metrics_that_an_adapter_serves_are_seen(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.groups += ["custom.metrics.k8s.io", "external.metrics.k8s.io"]
    api.emulator.metrics = {"custom.metrics.k8s.io": CUSTOM, "external.metrics.k8s.io": ["queue"]}
    result = run(api, capsys, hpa_metrics=ALL)[1]
    assert (result["ready"], result["not_read"]) == (True, {})


@pytest.mark.parametrize("left_out", [*CUSTOM, "queue"])
def test_a_metric_that_no_adapter_serves_is_said(api: t.Any, capsys: pytest.CaptureFixture[str], left_out: str) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.groups += ["custom.metrics.k8s.io", "external.metrics.k8s.io"]
    served = {"custom.metrics.k8s.io": CUSTOM, "external.metrics.k8s.io": ["queue"]}
    api.emulator.metrics = {api_: [one for one in names if one != left_out] for api_, names in served.items()}
    result = run(api, capsys, hpa_metrics=ALL)[1]
    assert result["ready"] is False
    assert [(one["code"], one["metric"]) for one in result["findings"]] == [("metric_missing", left_out)]
    assert left_out in result["findings"][0]["message"]


def test_an_adapter_that_does_not_list_its_metrics_is_told(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.groups.append("external.metrics.k8s.io")
    api.emulator.groups.append("custom.metrics.k8s.io")
    api.emulator.metrics = {"external.metrics.k8s.io": ["externalmetrics"], "custom.metrics.k8s.io": ["*/*"]}
    result = run(api, capsys, hpa_metrics=ALL)[1]
    assert result["ready"]
    assert list(result["not_read"]) == ["metrics of custom.metrics.k8s.io", "metrics of external.metrics.k8s.io"]


def test_an_adapter_that_does_not_answer_is_not_ready(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment())
    api.emulator.groups.append("external.metrics.k8s.io")
    api.emulator.fail("GET", "/apis/external.metrics.k8s.io", 503, None, "service unavailable")
    code, result = run(api, capsys, hpa_metrics=[metric("External", "queue")])
    assert (code, result["ready"]) == (0, False)
    assert [one["code"] for one in result["findings"]] == ["metrics_api_failing"]


def test_a_limit_without_a_request_is_the_request(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "shop", deployment(resources={"limits": {"cpu": "200m", "memory": "512Mi"}}))
    assert run(api, capsys, limits={})[1]["findings"] == []
    api.put("Deployment", "other", deployment(resources={"limits": {"cpu": "1", "memory": "512Mi"}}))
    wrong = run(api, capsys, name="other", limits={})[1]["findings"]
    assert [(one["code"], one["resource"], one["present"]) for one in wrong] == [("requests_differ", "cpu", "1")]


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
        ({"network_policy": {"ingress": [{"form": []}]}}, "network_policy.ingress[0].form"),
        ({"network_policy": {"ingress": [{"to": []}]}}, "network_policy.ingress[0].to"),
        (
            {"network_policy": {"egress": [{}, {"to": [{"podselector": {}}]}]}},
            "network_policy.egress[1].to[0].podselector",
        ),
        ({"network_policy": {"egress": [{"ports": [{"prot": 1}]}]}}, "network_policy.egress[0].ports[0].prot"),
        ({"network_policy": {"egress": [{"ports": {"port": 1}}]}}, "network_policy.egress[0].ports"),
        ({"network_policy": {"ingress": [{"from": None}]}}, "network_policy.ingress[0].from"),
        ({"network_policy": {"ingress": [{"from": ["all"]}]}}, "network_policy.ingress[0].from[0]"),
        ({"hpa_metrics": [{"type": "Cpu"}]}, "hpa_metrics[0].type"),
        ({"hpa_metrics": [metric("Object", "hits")]}, "hpa_metrics[0].object.describedObject"),
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
