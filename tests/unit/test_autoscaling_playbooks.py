# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of autoscaling, run by ansible-playbook with the inventories of the systems, against an API server over HTTP."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import typing as t

import pytest
import yaml
from kube.emulator import Emulator
from metrics.prometheus import Prometheus

ROOT = pathlib.Path(__file__).parents[2]
START_S = 1_760_918_400


@pytest.fixture(name="server")
def server_fixture(tmp_path: pathlib.Path) -> t.Iterator[tuple[Emulator, pathlib.Path]]:
    """Give an API server with adapters of metrics, and a kubeconfig for it."""
    with Emulator() as emulator:
        emulator.groups += ["custom.metrics.k8s.io", "external.metrics.k8s.io"]
        emulator.metrics = {
            "custom.metrics.k8s.io": [
                "pods/requests_per_second",
                "pods/active_connections",
                "ingresses.networking.k8s.io/requests-per-second",
            ],
            "external.metrics.k8s.io": ["queue_length"],
        }
        path = tmp_path / "kubeconfig"
        config = {
            "clusters": [{"name": "c", "cluster": {"server": emulator.url}}],
            "users": [{"name": "u", "user": {"token": emulator.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        yield emulator, path


def deploy(emulator: Emulator, namespace: str, name: str, requests: dict[str, str], limits: dict[str, str]) -> None:
    """Put a Deployment there."""
    probe = {"httpGet": {"path": "/actuator/health", "port": 8080}}
    container = {
        "name": "app",
        "image": f"example.com/{name}",
        "resources": {"requests": requests, "limits": limits},
        "readinessProbe": probe,
        "livenessProbe": probe,
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": {"app": name}}, "template": template}
    emulator.put(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}", {"kind": "Deployment", "spec": spec})


def play(
    kubeconfig: pathlib.Path, system: str, name: str, *arguments: str, **extra: t.Any
) -> tuple[int, dict[str, t.Any]]:
    """Run a playbook; return its exit code and what its callback says."""
    command = [
        "ansible-playbook",
        "-i",
        f"inventories/{system}",
        f"playbooks/{name}.yml",
        "-e",
        json.dumps(extra),
        *arguments,
    ]
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_SHOW_CUSTOM_STATS": "true",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900, check=False)
    start = done.stdout.find("{")
    assert start >= 0, done.stderr
    return done.returncode, json.loads(done.stdout[start:])


def stats(said: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the summary of the only host."""
    (one,) = said["stats"].values()
    return one


def hpas(namespace: str) -> str:
    """Return where the autoscalers of a namespace are."""
    return f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"


def floors(emulator: Emulator) -> dict[str, int]:
    """Return the floors of all autoscalers."""
    items = {path: item for path, item in emulator.objects.items() if "/horizontalpodautoscalers/" in path}
    return {path.rsplit("/", 1)[1]: item["spec"]["minReplicas"] for path, item in items.items()}


def test_the_services_of_phonebill_are_declared_once_and_reported(server: t.Any) -> None:
    emulator, kubeconfig = server
    deploy(emulator, "phonebill", "auth-service", {"cpu": "200m", "memory": "512Mi"}, {"cpu": "1", "memory": "1Gi"})
    deploy(
        emulator, "phonebill", "bill-inquiry-service", {"cpu": "500m", "memory": "1Gi"}, {"cpu": "2", "memory": "2Gi"}
    )
    deploy(
        emulator,
        "phonebill",
        "product-change-service",
        {"cpu": "300m", "memory": "768Mi"},
        {"cpu": "1500m", "memory": "1.5Gi"},
    )
    deploy(emulator, "phonebill", "kos-mock", {"cpu": "100m"}, {})

    code, said = play(kubeconfig, "phonebill", "autoscale", autoscaling_at="saturday 03:00")
    assert code == 0, json.dumps(said)[-3000:]
    kinds = [path.split("/")[-2] for path in emulator.objects]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "deployments": 4,
        "horizontalpodautoscalers": 4,
        "poddisruptionbudgets": 3,
        "networkpolicies": 4,
    }
    hpa = emulator.objects["/apis/autoscaling/v2/namespaces/phonebill/horizontalpodautoscalers/product-change-service"]
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 8)

    code, said = play(kubeconfig, "phonebill", "autoscale", autoscaling_at="saturday 03:00")
    assert (code, stats(said)["changed"]) == (0, 0)

    # half an hour before the hours of business in Korea
    code, said = play(kubeconfig, "phonebill", "autoscale", autoscaling_at="sunday 23:30")
    assert code == 0, json.dumps(said)[-3000:]
    assert floors(emulator) == {
        "auth-service": 6,
        "bill-inquiry-service": 6,
        "product-change-service": 4,
        "kos-mock": 2,
    }

    emulator.metrics["external.metrics.k8s.io"] = []
    code, said = play(kubeconfig, "phonebill", "autoscale", autoscaling_at="monday 09:00")
    assert code == 2
    assert "serves no queue_length" in json.dumps(said)
    # after these hours
    assert floors(emulator) == {
        "auth-service": 3,
        "bill-inquiry-service": 3,
        "product-change-service": 2,
        "kos-mock": 2,
    }

    code, said = play(kubeconfig, "phonebill", "autoscale_report")
    assert code == 0
    told = said["global_custom_stats"]["autoscaling_states"]
    assert set(told) == {"auth-service", "bill-inquiry-service", "product-change-service", "kos-mock"}


def test_the_service_of_trading_is_checked_scheduled_and_tuned(server: t.Any, tmp_path: pathlib.Path) -> None:
    emulator, kubeconfig = server
    deploy(emulator, "trading-system", "trading-app", {"cpu": "500m", "memory": "1Gi"}, {})
    services = yaml.safe_load((ROOT / "inventories/trading/group_vars/autoscaling/main.yml").read_text())[
        "autoscaling_services"
    ]
    floors = [{"days": ["monday"], "start": "08:30", "end": "24:00", "min_replicas": 9}]
    services[0]["floors"] = floors
    emulator.groups.remove("custom.metrics.k8s.io")

    code, said = play(kubeconfig, "trading", "autoscale", autoscaling_services=services, autoscaling_at="monday 09:00")
    assert code == 2
    assert "does not serve custom.metrics.k8s.io" in json.dumps(said)
    path = "/apis/autoscaling/v2/namespaces/trading-system/horizontalpodautoscalers/trading-app"
    # it was declared nevertheless, with the floor of that time
    assert emulator.objects[path]["spec"]["minReplicas"] == 9

    emulator.groups.append("custom.metrics.k8s.io")
    code, _said = play(
        kubeconfig, "trading", "autoscale", autoscaling_services=services, autoscaling_at="tuesday 09:00"
    )
    assert (code, emulator.objects[path]["spec"]["minReplicas"]) == (0, 3)

    trace = tmp_path / "load.csv"
    loads = [(START_S + at, 2000 - 1500 * math.cos(2 * math.pi * at / 86_400)) for at in range(0, 4 * 86_400, 300)]
    trace.write_text("".join(f"{at},{load:.1f}\n" for at, load in loads), encoding="utf-8")
    tune = {**services[0]["tune"], "trace_file": str(trace), "query": "", "controller": {"sync_s": 60}}
    tune["data"] = {"min_days": 3, "load_is_whole": True}
    tune["search"] = {"candidates": 30}
    code, said = play(
        kubeconfig,
        "trading",
        "tune",
        autoscaling_services=[{**services[0], "tune": tune}],
        autoscaling_tune_report_directory=str(tmp_path),
    )
    assert code == 0, json.dumps(said)[-3000:]
    assert said["global_custom_stats"]["autoscaling_tuned"] == {"trading-app": "tune"}
    assert (tmp_path / "trading-system-trading-app.html").is_file()
    assert emulator.objects[path]["spec"]["minReplicas"] == 3


SPEC = {
    "minReplicas": 6,
    "maxReplicas": 30,
    "metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 45}}}
    ],
}
PODS = {
    "capacity": 100,
    "startup_s": 40,
    "resources": [{"name": "cpu", "request": "500m", "idle": "10m", "at_capacity": "500m"}],
}


def scaled(emulator: Emulator, namespace: str, name: str, **more: t.Any) -> None:
    """Put an autoscaler there."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    item = {"kind": "HorizontalPodAutoscaler", "spec": {"scaleTargetRef": target, **SPEC}, **more}
    emulator.put(f"{hpas(namespace)}/{name}", item)


def tuned(name: str, tmp_path: pathlib.Path, days: int, **more: t.Any) -> dict[str, t.Any]:
    """Return a service whose load was recorded for so many days."""
    trace = tmp_path / f"{name}.csv"
    loads = [(START_S + at, 550 - 400 * math.cos(2 * math.pi * at / 86_400)) for at in range(0, days * 86_400, 300)]
    trace.write_text("".join(f"{at},{load:.1f}\n" for at, load in loads), encoding="utf-8")
    tune = {"trace_file": str(trace), "pods": PODS, "controller": {"sync_s": 60}, "search": {"candidates": 30}}
    return {"name": name, "namespace": "shop", "spec": SPEC, "tune": {**tune, "data": {"min_days": 3}, **more}}


def test_a_service_that_cannot_be_tuned_does_not_hide_what_was_done_to_others(
    server: t.Any, tmp_path: pathlib.Path
) -> None:
    emulator, kubeconfig = server
    for name in ("first", "second"):
        scaled(emulator, "shop", name)
    services = [tuned("first", tmp_path, 1), tuned("second", tmp_path, 4)]
    applied = {"autoscaling_tune_state": "applied", "autoscaling_tune_approve": "high"}

    code, said = play(kubeconfig, "trading", "tune", autoscaling_services=services, **applied)
    assert (code, stats(said)["changed"], stats(said)["failures"]) == (2, 1, 1)
    assert said["global_custom_stats"]["autoscaling_tuned"] == {"first": "failed", "second": "tune"}
    shown = json.dumps(said)
    assert "Applied: " in shown
    assert "Failed to tune HPA shop/first: the load covers 1.0 days" in json.dumps(said["plays"][-1]["tasks"][-1])
    assert floors(emulator)["first"] == 6 > floors(emulator)["second"]

    # in an incident the floor stays, and what was applied can be taken back
    services = [tuned("second", tmp_path, 4)]
    reverted = {"autoscaling_tune_state": "reverted", "autoscaling_services": services}
    code, said = play(kubeconfig, "trading", "tune", **reverted)
    assert (code, stats(said)["changed"]) == (0, 1)
    assert said["global_custom_stats"]["autoscaling_tuned"] == {"second": "reverted"}
    assert floors(emulator)["second"] == 6
    code, said = play(kubeconfig, "trading", "tune", **reverted)
    assert (code, stats(said)["changed"]) == (0, 0)
    code, said = play(
        kubeconfig, "trading", "tune", autoscaling_services=services, autoscaling_tune_incident=True, **applied
    )
    assert code == 0
    assert "The floor is not lowered, since option incident says" in json.dumps(said)
    assert floors(emulator)["second"] >= 6


def test_a_service_has_queries_of_its_own(server: t.Any) -> None:
    emulator, kubeconfig = server
    scaled(emulator, "shop", "first")
    with Prometheus() as prometheus:
        prometheus.queries["load"] = [lambda at_s: 550 - 400 * math.cos(2 * math.pi * at_s / 86_400)]
        prometheus.queries["replicas"] = [lambda _at: 30.0]
        own = {"replicas_query": "replicas", "end_s": START_S + 4 * 86_400}
        tune = {"query": "load", "pods": PODS, "prometheus": own, "data": {"min_days": 3}}
        code, said = play(
            kubeconfig,
            "trading",
            "tune",
            autoscaling_services=[{"name": "first", "namespace": "shop", "spec": SPEC, "tune": tune}],
            autoscaling_tune_prometheus={"url": prometheus.url, "days": 4, "step_s": 300},
        )
    assert code == 2
    assert "its replicas were at maxReplicas, 30, in 100% of the time" in json.dumps(said)
    assert {one["query"] for one in prometheus.asked} == {"load", "replicas"}


def test_one_name_in_two_namespaces_and_no_autoscaler_are_told_apart(server: t.Any) -> None:
    emulator, kubeconfig = server
    failing = {"conditions": [{"type": "ScalingActive", "status": "False", "reason": "FailedGetResourceMetric"}]}
    scaled(emulator, "a", "app", status=failing)
    scaled(emulator, "b", "app", status={"currentReplicas": 6, "desiredReplicas": 6})
    services = [{"name": "app", "namespace": "a", "spec": SPEC}, {"name": "app", "namespace": "b", "spec": SPEC}]
    services.append({"name": "none", "namespace": "b", "spec": SPEC})
    code, said = play(kubeconfig, "trading", "autoscale_report", autoscaling_services=services)
    assert code == 0
    states = said["global_custom_stats"]["autoscaling_states"]
    assert states.keys() == {"a/app", "b/app", "b/none"}
    assert states["b/none"] == "missing"
    assert states["a/app"] != states["b/app"]


def test_floors_that_would_not_be_in_force_are_refused(server: t.Any) -> None:
    emulator, kubeconfig = server
    bad: list[tuple[t.Any, t.Any, int]] = [
        ("8:00", "18:00", 9),
        ("22:00", "06:00", 9),
        ("nonsense", "zzz", 9),
        ("08:00", 1080, 9),
        ("08:00", "24:01", 9),
        ("08:00", "08:00", 9),
        ("08:00", "18:00", 31),
        ("08:00", "18:00", 0),
    ]
    services = [
        {
            "name": f"app-{number}",
            "spec": SPEC,
            "floors": [{"days": ["monday"], "start": start, "end": end, "min_replicas": floor}],
        }
        for number, (start, end, floor) in enumerate([*bad, ("00:00", "24:00", 30)])
    ]
    code, said = play(kubeconfig, "trading", "autoscale", autoscaling_services=services, autoscaling_at="tuesday 09:00")
    assert code == 2
    told = json.dumps(said)
    for number, (start, end, floor) in enumerate(bad):
        assert f"has for app-{number} a floor of {floor} from '{start}' to '{end}'" in told
    assert f"has for app-{len(bad)} " not in told
    assert emulator.objects == {}
