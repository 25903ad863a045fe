# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole, against an API server over HTTP: what it sends, what it leaves alone, and how it fails."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import socket
import stat
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("requests")

from ansible_collections.headroom.scale.plugins.doc_fragments.kubernetes import ModuleDocFragment  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube import converge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.connection import connection_spec  # noqa: E402
from ansible_collections.headroom.scale.plugins.modules import hpa  # noqa: E402
from kube.emulator import Answer, Emulator, certificate  # noqa: E402

CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
MEMORY = {
    "type": "Resource",
    "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1024Mi"}},
}
SIDECAR = {
    "type": "ContainerResource",
    "containerResource": {
        "name": "cpu",
        "container": "app",
        "target": {"type": "Utilization", "averageUtilization": 60},
    },
}
PODS = {
    "type": "Pods",
    "pods": {"metric": {"name": "connections"}, "target": {"type": "AverageValue", "averageValue": "0.5"}},
}
INGRESS = {
    "type": "Object",
    "object": {
        "metric": {"name": "requests"},
        "describedObject": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "front"},
        "target": {"type": "Value", "value": "1000"},
    },
}
QUEUE = {
    "type": "External",
    "external": {
        "metric": {"name": "queue_length", "selector": {"matchLabels": {"queue": "orders"}}},
        "target": {"type": "AverageValue", "averageValue": "5000m"},
    },
}
ALL = [CPU, MEMORY, SIDECAR, PODS, INGRESS, QUEUE]
BEHAVIOR = {
    "scaleUp": {
        "stabilizationWindowSeconds": 60,
        "policies": [
            {"type": "Percent", "value": 50, "periodSeconds": 60},
            {"type": "Pods", "value": 5, "periodSeconds": 60},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
    },
}
SPEC = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
    "minReplicas": 3,
    "maxReplicas": 50,
    "metrics": ALL,
    "behavior": BEHAVIOR,
}
SMALL = {"scaleTargetRef": {"name": "app"}, "maxReplicas": 5}


def run(api: t.Any, capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result."""
    given = {"name": "app", "namespace": api.namespace, **api.params, **params}
    with (
        patch_module_args({name: value for name, value in given.items() if value is not None}),
        pytest.raises(SystemExit) as ended,
    ):
        hpa.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), json.loads(out)


def deployment(**more: t.Any) -> dict[str, t.Any]:
    """A Deployment that leaves nothing to be mended."""
    requests = {"cpu": "200m", "memory": "256Mi"}
    container = {"name": "app", "image": "example.com/app", "resources": {"requests": requests}}
    template = {"metadata": {"labels": {"app": "app"}}, "spec": {"containers": [container]}}
    return {"spec": {"selector": {"matchLabels": {"app": "app"}}, "template": template, **more}}


# ---- documentation


def compare(docs: dict[str, t.Any], options: dict[str, t.Any]) -> None:
    """Compare documented options with their specification."""
    assert docs.keys() == options.keys()
    for name, option in options.items():
        doc = docs[name]
        assert doc.get("description"), name
        for key in ("type", "elements", "required", "default", "choices"):
            assert doc.get(key) == option.get(key), (name, key)
        if "options" in option:
            compare(doc["suboptions"], option["options"])


def test_the_options_are_documented_as_they_are() -> None:
    options = yaml.safe_load(hpa.DOCUMENTATION)["options"]
    fragment = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    compare(fragment, connection_spec().options)
    compare({**fragment, **options}, converge.hpa_spec().options)
    assert not options.keys() & fragment.keys()


def test_every_return_value_is_documented_with_a_sample(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(hpa.RETURN)
    result = run(api, capsys, spec=SPEC)[1]
    assert returned.keys() - {"errors"} == result.keys() - {"changed", "invocation", "diff", "warnings"}
    for name, entry in returned.items():
        assert entry["description"], name
        assert entry["type"], name
        assert "sample" in entry, name


def test_every_code_is_documented() -> None:
    folder = pathlib.Path(converge.__file__).parent
    source = "".join((folder / name).read_text() for name in ("client.py", "connection.py", "converge.py", "judge.py"))
    codes = {part.split('"')[1] for part in source.split("Finding(")[1:] if part.lstrip().startswith('"')}
    codes |= {part.split('"')[0] for part in source.split('code="')[1:]}
    hints = source.split("_HINTS = {")[1].split("}")[0]
    codes |= {part.split('"')[0] for part in hints.split(': ("')[1:]}
    assert len(codes) > 15
    assert [code for code in sorted(codes) if f"V({code})" not in hpa.RETURN] == []


@pytest.mark.parametrize("number", range(len(yaml.safe_load(hpa.EXAMPLES))))
def test_the_examples_work(api: t.Any, capsys: pytest.CaptureFixture[str], number: int) -> None:
    example = yaml.safe_load(hpa.EXAMPLES)[number]["headroom.scale.hpa"]
    own = {name: value for name, value in example.items() if name in ("name", "spec", "state")}

    code, first = run(api, capsys, **own)
    api.forget()
    again = run(api, capsys, **own)[1]

    assert code == 0, first
    assert first["action"] == ("none" if own.get("state") == "absent" else "create")
    assert (again["changed"], api.writes) == (False, [])


# ---- what it sends


def test_create_all_kinds_of_metrics_and_then_nothing(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["changed"], result["action"]) == (0, True, "create")
    assert len(api.writes) == 1
    stored = api.hpa("app")["spec"]
    assert stored["maxReplicas"] == 50
    assert sorted(metric["type"] for metric in stored["metrics"]) == sorted(metric["type"] for metric in ALL)
    assert stored["behavior"]["scaleUp"]["selectPolicy"] == "Max"

    api.forget()
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["changed"], result["action"]) == (0, False, "none")
    assert result["plan"] == []
    assert result["diff"]["before"] == result["diff"]["after"]
    assert api.writes == []
    assert api.sent


def test_a_spec_that_was_returned_can_be_declared(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    returned = run(api, capsys, spec=SPEC)[1]["spec"]
    api.forget()
    assert run(api, capsys, spec=returned)[1]["changed"] is False
    assert api.writes == []


HALF = {**PODS, "pods": {**PODS["pods"], "target": {"type": "AverageValue", "averageValue": "500m"}}}
UP = BEHAVIOR["scaleUp"]
SAME: list[tuple[str, dict[str, t.Any]]] = [
    ("order of metrics", {"metrics": list(reversed(ALL))}),
    ("another spelling", {"metrics": [HALF if item is PODS else item for item in ALL]}),
    ("order of policies", {"behavior": {**BEHAVIOR, "scaleUp": {**UP, "policies": UP["policies"][::-1]}}}),
    ("default of select", {"behavior": {**BEHAVIOR, "scaleUp": {**UP, "selectPolicy": "Max"}}}),
]


@pytest.mark.parametrize("change", [change for _name, change in SAME], ids=[name for name, _change in SAME])
def test_what_means_the_same_is_no_change(api: t.Any, capsys: pytest.CaptureFixture[str], change: t.Any) -> None:
    run(api, capsys, spec=SPEC)
    api.forget()
    result = run(api, capsys, spec={**SPEC, **change})[1]
    assert result["changed"] is False, result["plan"]
    assert api.writes == []


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        {**SMALL, "metrics": []},
        {**SMALL, "behavior": {}},
        {**SMALL, "behavior": {"scaleDown": {"selectPolicy": "Disabled"}}},
    ],
    ids=["no metrics", "empty metrics", "empty behavior", "one direction"],
)
def test_defaults_of_the_server_are_no_change(api: t.Any, capsys: pytest.CaptureFixture[str], spec: t.Any) -> None:
    assert run(api, capsys, spec=spec)[1]["changed"]
    api.forget()
    result = run(api, capsys, spec=spec)[1]
    assert result["changed"] is False, result["plan"]
    assert api.writes == []


def test_defaults_are_those_of_the_server_itself(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Put past the module and defaulted by the server alone, it is what the module would have made."""
    bare = {"scaleTargetRef": SPEC["scaleTargetRef"], "maxReplicas": 5, "behavior": {}}
    if api._emulator is not None:
        api._emulator._prepare({"kind": "HorizontalPodAutoscaler", "spec": bare})
    api.put("HorizontalPodAutoscaler", "app", {"spec": bare})
    result = run(api, capsys, spec={**SMALL, "behavior": {}})[1]
    assert result["changed"] is False, result["plan"]


def test_a_server_that_fills_in_nothing_is_no_endless_change(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.emulator.defaulting = False
    api.put("HorizontalPodAutoscaler", "app", {"spec": {"scaleTargetRef": SPEC["scaleTargetRef"], "maxReplicas": 5}})
    assert run(api, capsys, spec=SMALL)[1]["changed"] is False
    assert api.writes == []


def test_a_change_sends_what_changes_and_tells_it(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(api, capsys, spec=SPEC)
    api.forget()
    changed = {
        **SPEC,
        "maxReplicas": 40,
        "metrics": [*ALL[:-1], {**CPU, "resource": {**CPU["resource"], "name": "ephemeral-storage"}}],
    }
    behavior = copy.deepcopy(BEHAVIOR)
    del behavior["scaleDown"]["stabilizationWindowSeconds"]
    behavior["scaleUp"]["policies"][0]["value"] = 100

    code, result = run(api, capsys, spec={**changed, "behavior": behavior}, _ansible_diff=True)

    assert (code, result["action"]) == (0, "patch")
    # a real controller may come in between
    assert {method for method, _path in api.writes} == {"PATCH"}
    assert {entry["what"]: (entry["before"], entry["after"]) for entry in result["plan"]} == {
        "max replicas": ("50", "40"),
        "metric ephemeral-storage": (None, "70 % of the request"),
        "metric External queue_length {queue=orders}": ("5 per pod", None),
        "scale up, policy Percent per 60 s": ("50 %", "100 %"),
        "scale down, window": ("300 s", "the controller's (300 s unless it was told otherwise)"),
    }
    assert "max replicas: 50\n" in result["diff"]["before"]
    assert "max replicas: 40\n" in result["diff"]["after"]
    stored = api.hpa("app")["spec"]
    assert "stabilizationWindowSeconds" not in stored["behavior"]["scaleDown"]
    assert stored["minReplicas"] == 3


def test_what_is_not_declared_any_more_is_taken_off(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(api, capsys, spec=SPEC)
    result = run(api, capsys, spec={**SMALL, "metrics": [MEMORY]})[1]
    assert result["changed"]
    stored = api.hpa("app")["spec"]
    assert "behavior" not in stored
    assert [metric["type"] for metric in stored["metrics"]] == ["Resource"]
    assert stored["minReplicas"] == 1


def test_labels_and_status_are_left_alone(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(
        "HorizontalPodAutoscaler", "app", {"metadata": {"labels": {"team": "a"}}, "spec": {**SPEC, "maxReplicas": 9}}
    )
    assert run(api, capsys, spec=SPEC)[1]["action"] == "patch"
    assert api.hpa("app")["metadata"]["labels"] == {"team": "a"}


def test_delete_and_delete_again(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(api, capsys, spec=SPEC)
    api.forget()
    code, result = run(api, capsys, state="absent")
    assert (code, result["changed"], result["action"], result["spec"]) == (0, True, "delete", None)
    assert api.hpa("app") is None
    assert [method for method, _path in api.writes] == ["DELETE"]

    api.forget()
    code, result = run(api, capsys, state="absent")
    assert (code, result["changed"], result["action"]) == (0, False, "none")
    assert api.writes == []


@pytest.mark.parametrize(
    ("before", "params"),
    [
        (None, {"spec": SPEC}),
        ({**SPEC, "maxReplicas": 9}, {"spec": SPEC}),
        (SPEC, {"spec": SPEC}),
        (SPEC, {"state": "absent"}),
        (None, {"state": "absent"}),
    ],
    ids=["create", "patch", "none", "delete", "delete none"],
)
def test_check_mode_writes_nothing_and_tells_what_the_run_does(
    api: t.Any, capsys: pytest.CaptureFixture[str], before: t.Any, params: t.Any
) -> None:
    if before is not None:
        run(api, capsys, spec=before)
    stored = api.hpa("app")
    api.forget()
    told = run(api, capsys, _ansible_check_mode=True, _ansible_diff=True, **params)[1]
    assert api.writes == []
    assert (api.hpa("app") or {}).get("spec") == (stored or {}).get("spec")

    done = run(api, capsys, _ansible_diff=True, **params)[1]
    for key in ("changed", "action", "plan", "spec", "findings", "diff"):
        assert told[key] == done[key], key


# ---- others at work


def interfere(api: t.Any, monkeypatch: pytest.MonkeyPatch, times: int, work: t.Callable[[], None]) -> None:
    """Let someone else do something before each of the first writes."""
    left = [times]
    send = converge._Run._apply

    def apply(self: t.Any, *args: t.Any) -> None:
        if left[0]:
            left[0] -= 1
            work()
        send(self, *args)

    monkeypatch.setattr(converge._Run, "_apply", apply)
    monkeypatch.setattr(converge.time, "sleep", lambda _seconds: None)


def test_a_conflict_is_met_by_reading_again(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(api, capsys, spec={**SPEC, "maxReplicas": 9})
    most = [20, 21]
    interfere(api, monkeypatch, 2, lambda: api.change("app", {"maxReplicas": most.pop()}))
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["action"], most) == (0, "patch", [])
    assert result["attempts"] >= 3
    assert api.hpa("app")["spec"]["maxReplicas"] == 50


def test_a_conflict_that_others_solved_ends_without_a_change(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(api, capsys, spec={**SPEC, "maxReplicas": 9})
    interfere(api, monkeypatch, 1, lambda: api.change("app", {"maxReplicas": 50}))
    result = run(api, capsys, spec=SPEC)[1]
    assert (result["changed"], result["action"], result["attempts"]) == (False, "none", 2)


def test_created_by_others_meanwhile_is_brought_in_line(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interfere(
        api, monkeypatch, 1, lambda: api.put("HorizontalPodAutoscaler", "app", {"spec": {**SPEC, "maxReplicas": 9}})
    )
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["action"], result["attempts"]) == (0, "patch", 2)
    assert api.hpa("app")["spec"]["maxReplicas"] == 50


def test_a_conflict_without_end_is_given_up(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(api, capsys, spec={**SPEC, "maxReplicas": 9})
    emulator, path = api.emulator, api.path("HorizontalPodAutoscaler", "app")
    interfere(api, monkeypatch, 100, lambda: emulator.touch(path))
    api.forget()
    code, result = run(api, capsys, spec=SPEC)
    assert code == 1
    assert result["errors"][0]["code"] == "conflict"
    assert "each of 5 attempts" in result["msg"]
    assert len(api.writes) == converge.ATTEMPTS
    assert api.hpa("app")["spec"]["maxReplicas"] == 9


def test_deleted_by_others_meanwhile(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(api, capsys, spec=SPEC)
    objects, path = api.emulator.objects, api.path("HorizontalPodAutoscaler", "app")
    interfere(api, monkeypatch, 1, lambda: objects.pop(path))
    assert run(api, capsys, spec={**SPEC, "maxReplicas": 9})[1]["action"] == "create"
    interfere(api, monkeypatch, 1, lambda: objects.pop(path))
    assert run(api, capsys, state="absent")[1]["changed"] is False


def test_another_object_of_the_name_is_not_deleted_unseen(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(api, capsys, spec=SPEC)
    emulator, path = api.emulator, api.path("HorizontalPodAutoscaler", "app")

    def replace() -> None:
        emulator.put(path, {"kind": "HorizontalPodAutoscaler", "metadata": {}, "spec": emulator.objects[path]["spec"]})

    interfere(api, monkeypatch, 1, replace)
    assert run(api, capsys, state="absent")[1]["attempts"] == 2


def test_one_that_is_being_deleted_is_not_taken_for_one_that_stays(
    api: t.Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run(api, capsys, spec=SPEC)
    path = api.path("HorizontalPodAutoscaler", "app")
    api.emulator.objects[path]["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "being_deleted")
    assert run(api, capsys, state="absent")[1]["changed"] is False


def test_what_a_server_does_not_keep_is_a_failure(
    api: t.Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = api.emulator._prepare

    def mutate(item: t.Any) -> None:
        item["spec"]["maxReplicas"] = 10
        prepare(item)

    monkeypatch.setattr(api.emulator, "_prepare", mutate)
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["changed"], result["errors"][0]["code"]) == (1, True, "not_kept")
    assert result["plan"] == [{"what": "max replicas", "before": "10", "after": "50"}]


# ---- failures


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_a_missing_right_is_named(api: t.Any, capsys: pytest.CaptureFixture[str], method: str) -> None:
    if method in ("PATCH", "DELETE"):
        run(api, capsys, spec={**SPEC, "maxReplicas": 9})
    api.emulator.fail(method, "autoscalers", 403, "Forbidden", 'User "x" cannot do this')
    code, result = run(api, capsys, **({"state": "absent"} if method == "DELETE" else {"spec": SPEC}))
    assert code == 1
    assert result["changed"] is False
    assert result["errors"][0]["code"] == "forbidden"
    assert 'User "x" cannot do this. Give the account this right' in result["msg"]
    assert "\n" not in result["msg"]


def test_nothing_listens(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, result = run(api, capsys, kubeconfig=None, host=host, token="x", spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "connection_failed")
    assert f"on {host}: nothing listens there" in result["msg"]


@pytest.mark.parametrize("token", ["two\nlines", "日本"])
def test_a_token_that_cannot_be_sent(api: t.Any, capsys: pytest.CaptureFixture[str], token: str) -> None:
    code, result = run(api, capsys, kubeconfig=None, host="http://127.0.0.1:1", token=token, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "connection_failed")
    assert "check the connection options" in result["msg"]
    assert token not in result["msg"]


def test_a_name_that_is_not_known(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(api, capsys, kubeconfig=None, host="https://k8s.invalid:6443", token="x", spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "connection_failed")
    assert "its name is not known" in result["msg"]


def test_a_server_that_says_nothing_is_given_up(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, result = run(api, capsys, kubeconfig=None, host=host, token="x", timeout_s=0.3, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "timeout")
    assert "0.3 s; raise timeout_s" in result["msg"]


def test_a_token_that_is_not_taken(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.emulator.token = "another"
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "unauthorized")
    assert "good-token" not in json.dumps({**result, "invocation": None})
    assert result["invocation"]["module_args"]["token"] != "good-token"


def test_a_token_that_a_server_repeats_is_not_shown(
    api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    api.emulator.fail("GET", "autoscalers", 403, "Forbidden", "the token good-token may not")
    file = kubeconfig(tmp_path, api, {"token": "good-token"})
    result = run(api, capsys, host=None, token=None, kubeconfig=file, spec=SPEC)[1]
    assert "the token ******** may not" in result["msg"]
    assert "good-token" not in json.dumps(result)


def test_a_certificate_that_is_not_trusted(api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any) -> None:
    cert = certificate(tmp_path)
    assert api.emulator
    with Emulator(certificate=cert) as server:
        params = {"host": server.url, "token": server.token, "namespace": "shop", "spec": SPEC}
        code, result = run(api, capsys, **params)
        assert (code, result["errors"][0]["code"]) == (1, "tls_refused")
        assert "its certificate is not trusted (self" in result["msg"]
        assert "check ca_cert" in result["msg"]
        assert not server.objects
        assert run(api, capsys, ca_cert=cert[0], **params)[0] == 0
        assert run(api, capsys, validate_certs=False, **params)[0] == 0
        code, result = run(api, capsys, **{**params, "host": server.url.replace("https", "http")})
        assert (code, result["errors"][0]["code"]) == (1, "connection_failed")


def test_a_client_certificate_is_shown(api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any) -> None:
    cert, key = certificate(tmp_path)
    assert api.emulator
    with Emulator(certificate=(cert, key), client_ca=cert) as server:
        params = {"host": server.url, "token": server.token, "namespace": "shop", "ca_cert": cert, "spec": SPEC}
        assert run(api, capsys, **params)[0] == 1
        assert not server.objects
        assert run(api, capsys, client_cert=cert, client_key=key, **params)[0] == 0


def test_https_to_a_server_that_speaks_http(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(api, capsys, host=api.emulator.url.replace("http", "https"), spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "tls_refused")


def test_an_api_that_is_too_old(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    del api.emulator.apis["/apis/autoscaling/v2"]
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "api_missing")
    assert "autoscaling/v2 came with Kubernetes 1.23" in result["msg"]


def test_what_the_server_refuses_is_its_sentence(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.emulator.fail("POST", "autoscalers", 422, "Invalid", 'HorizontalPodAutoscaler "app" is invalid:\nspec.x')
    code, result = run(api, capsys, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "invalid")
    assert 'HorizontalPodAutoscaler "app" is invalid: spec.x. Correct what it names.' in result["msg"]


@pytest.mark.parametrize(
    ("status", "code"), [(500, "server_error"), (503, "server_error"), (429, "overloaded"), (302, "redirected")]
)
def test_other_answers(api: t.Any, capsys: pytest.CaptureFixture[str], status: int, code: str) -> None:
    api.emulator.fail("GET", "autoscalers", status, None, "<html>")
    ended, result = run(api, capsys, spec=SPEC)
    assert (ended, result["errors"][0]["code"]) == (1, code)


# ---- tolerance


TOLERANT = {**SPEC, "behavior": {"scaleUp": {"tolerance": "0.05"}, "scaleDown": {"tolerance": "0.1"}}}


def test_tolerance_where_it_is_known(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.emulator.minor >= 33
    code, result = run(api, capsys, spec=TOLERANT)
    assert code == 0, result
    assert api.hpa("app")["spec"]["behavior"]["scaleUp"]["tolerance"] == "50m"
    api.forget()
    assert run(api, capsys, spec=TOLERANT)[1]["changed"] is False
    assert api.writes == []
    assert run(api, capsys, spec={**SPEC, "behavior": {}})[1]["changed"]
    assert "tolerance" not in api.hpa("app")["spec"]["behavior"]["scaleUp"]


@pytest.mark.parametrize("check", [False, True])
def test_tolerance_where_it_is_not_known(api: t.Any, capsys: pytest.CaptureFixture[str], check: bool) -> None:
    api.emulator.minor = 32
    code, result = run(api, capsys, spec=TOLERANT, _ansible_check_mode=check)
    assert code == 1
    assert result["msg"].startswith("Option 'spec.behavior.scaleUp.tolerance' has the value '0.05': leave it out: ")
    assert "v1.32.0" in result["msg"]
    assert api.writes == []
    assert run(api, capsys, spec=SPEC)[0] == 0


def test_tolerance_that_a_feature_gate_drops(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.emulator.tolerances = False
    code, result = run(api, capsys, spec=TOLERANT)
    assert (code, result["errors"][0]["code"]) == (1, "not_kept")
    assert "scale up, tolerance" in result["msg"]
    assert "feature gate" in result["msg"]


# ---- what it works among


def codes(api: t.Any, result: dict[str, t.Any]) -> list[str]:
    """The codes of the findings of the last run, each of which was a warning too."""
    messages = [finding["message"] for finding in result["findings"]]
    assert api.warned[len(api.warned) - len(messages) :] == messages
    return [finding["code"] for finding in result["findings"]]


def test_nothing_to_mend(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "app", deployment())
    budget = {"spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "app"}}}}
    api.put("PodDisruptionBudget", "app", budget)
    result = run(api, capsys, spec=SPEC)[1]
    assert (codes(api, result), result["not_read"], api.warned) == ([], {}, [])


def test_everything_to_mend(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    bare = deployment(replicas=4)
    bare["spec"]["template"]["spec"]["containers"] = [{"name": "other", "image": "example.com/app"}]
    applied = json.dumps({"spec": {"replicas": 4}})
    bare["metadata"] = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied}}
    api.put("Deployment", "app", bare)
    api.put("Deployment", "twin", deployment())
    api.put("PodDisruptionBudget", "app", {"spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "app"}}}})
    api.put("HorizontalPodAutoscaler", "same", {"spec": {**SPEC, "minReplicas": 1}})
    twin = {**SPEC, "scaleTargetRef": {**SPEC["scaleTargetRef"], "name": "twin"}}
    api.put("HorizontalPodAutoscaler", "twin", {"spec": twin})

    code, result = run(api, capsys, spec=SPEC)

    assert code == 0
    assert sorted(codes(api, result)) == [
        "container_missing",
        "drain_blocked",
        "replicas_owned",
        "requests_missing",
        "shared_pods",
        "shared_target",
    ]
    assert result["not_read"] == {}
    api.forget()
    again = run(api, capsys, spec=SPEC)[1]
    assert (again["changed"], again["findings"], api.writes) == (False, result["findings"], [])


def test_a_target_that_is_not_there_yet(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert codes(api, run(api, capsys, spec=SPEC)[1]) == ["target_missing"]


def test_a_target_of_another_kind_is_not_looked_into(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.put("Deployment", "app", deployment())
    rollout = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "app"}
    api.put("HorizontalPodAutoscaler", "other", {"spec": {**SPEC, "scaleTargetRef": rollout}})
    result = run(api, capsys, spec=SPEC)[1]
    assert codes(api, result) == []
    assert result["not_read"] == {
        "pods of HPA other": "Rollout of argoproj.io/v1alpha1 is not a kind that is looked into."
    }


@pytest.mark.parametrize("check", [True, False])
def test_a_namespace_that_is_not_there(api: t.Any, capsys: pytest.CaptureFixture[str], check: bool) -> None:
    api.forget()
    code, result = run(api, capsys, namespace="nowhere", spec=SPEC, _ansible_check_mode=check)
    assert (code, result["errors"][0]["code"], api.writes) == (1, "not_found", [])
    assert '"nowhere" not found. Check the namespace' in result["msg"]


def test_a_namespace_that_may_not_be_read(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/api/v1/namespaces/{api.namespace}"
    former = api.emulator.hook

    def hook(method: str, where: str) -> None:
        former(method, where)
        if where == path:
            raise Answer(403, "Forbidden", "no")

    api.emulator.hook = hook
    result = run(api, capsys, spec=SPEC)[1]
    assert (result["action"], list(result["not_read"])) == ("create", ["namespace"])
    # it is there, or its autoscaler could not be
    api.forget()
    assert run(api, capsys, spec=SPEC)[1]["not_read"] == {}
    assert ("GET", path) not in api.sent


def test_what_may_not_be_read_is_told(api: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.emulator.fail("GET", "poddisruptionbudgets", 403, "Forbidden", "no")
    api.emulator.fail("GET", "deployments", 403, "Forbidden", "no")
    code, result = run(api, capsys, spec=SPEC)
    assert (code, codes(api, result)) == (0, [])
    assert sorted(result["not_read"]) == ["disruption budgets", "target"]
    assert (
        "is not a kind"
        in run(api, capsys, spec={**SPEC, "scaleTargetRef": {"kind": "Rollout", "name": "x"}})[1]["not_read"]["target"]
    )


# ---- kubeconfig


def kubeconfig(folder: t.Any, api: t.Any, user: dict[str, t.Any], **cluster: t.Any) -> str:
    """Write a kubeconfig for the emulator and return its path."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "main",
        "contexts": [{"name": "main", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": api.emulator.url, **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def plugin(folder: t.Any, script: str) -> dict[str, t.Any]:
    """Write a credential plugin and return the user of a kubeconfig that has it."""
    path = folder / "plugin.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    command = {"command": "./plugin.sh", "args": ["a"], "env": [{"name": "T", "value": "good"}]}
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", **command}}


def test_kubeconfigs(
    api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("good-token\n")
    users = [
        {"token": "good-token"},
        {"tokenFile": "token"},
        plugin(tmp_path, """echo '{"status": {"token": "'$T-token'"}}'"""),
    ]
    for user in users:
        file = kubeconfig(tmp_path, api, user)
        assert run(api, capsys, host=None, token=None, kubeconfig=file, spec=SPEC)[0] == 0, user
    monkeypatch.setenv("KUBECONFIG", file)
    assert run(api, capsys, host=None, token=None, context="main", spec=SPEC)[0] == 0
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    os.rename(file, tmp_path / ".kube" / "config")
    os.rename(tmp_path / "plugin.sh", tmp_path / ".kube" / "plugin.sh")
    assert run(api, capsys, host=None, token=None, spec=SPEC)[0] == 0


def test_a_kubeconfig_brings_its_authority(api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any) -> None:
    cert = certificate(tmp_path)
    with Emulator(certificate=cert) as server:
        params = {"host": None, "token": None, "namespace": "shop", "spec": SPEC}
        user = {"token": server.token}
        file = kubeconfig(tmp_path, api, user, server=server.url, **{"certificate-authority": "server.pem"})
        assert run(api, capsys, kubeconfig=file, **params)[0] == 0
        file = kubeconfig(tmp_path, api, user, server=server.url)
        assert run(api, capsys, kubeconfig=file, **params)[1]["errors"][0]["code"] == "tls_refused"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo log in first >&2; exit 3", "ended with 3: log in first."),
        ("echo nothing", "gave no ExecCredential"),
        ("exec sleep 30", "no answer in 0.3 s"),
    ],
)
def test_a_credential_plugin_that_fails(
    api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any, script: str, words: str
) -> None:
    file = kubeconfig(tmp_path, api, plugin(tmp_path, script))
    code, result = run(api, capsys, host=None, token=None, kubeconfig=file, timeout_s=0.3, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "no_credentials")
    assert words in result["msg"]


def test_no_server_is_known(
    api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.emulator
    monkeypatch.setenv("HOME", str(tmp_path))
    code, result = run(api, capsys, host=None, token=None, spec=SPEC)
    assert (code, result["errors"][0]["code"]) == (1, "no_access")


@pytest.mark.parametrize(
    ("config", "option", "words"),
    [
        ("[", "kubeconfig", "no YAML"),
        ("just text", "kubeconfig", "no mapping"),
        ("{}", "kubeconfig", "no current-context"),
        ("{current-context: a, contexts: 5}", "kubeconfig", "shape of a kubeconfig"),
        ("{current-context: x, contexts: [{name: a, context: {}}]}", "context", "it has a."),
        ("{current-context: a, contexts: [{name: a, context: {cluster: c}}]}", "kubeconfig", "no cluster 'c'"),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: c}}], clusters: [{name: c, cluster: {server: 'k8s'}}]}",
            "kubeconfig",
            "give the URL",
        ),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(
    api: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any, config: str, option: str, words: str
) -> None:
    (tmp_path / "config").write_text(config)
    code, result = run(api, capsys, host=None, token=None, kubeconfig=str(tmp_path / "config"), spec=SPEC)
    assert code == 1
    assert result["errors"][0]["option"] == option
    assert words in result["msg"]
    assert "\n" not in result["msg"]


# ---- bad input


def metric(source: str, **change: t.Any) -> dict[str, t.Any]:
    """A spec with one metric whose source is changed."""
    base = next(item for item in ALL if source in item)
    return {"spec": {**SPEC, "metrics": [{**base, source: {**base[source], **change}}]}}


def rules(**change: t.Any) -> dict[str, t.Any]:
    """A spec with changed rules for scaling up."""
    return {"spec": {**SPEC, "behavior": {"scaleUp": change}}}


def policy(**change: t.Any) -> dict[str, t.Any]:
    """A spec with one changed policy for scaling up."""
    return rules(policies=[{"type": "Pods", "value": 4, "periodSeconds": 15, **change}])


def aim(kind: str, **value: t.Any) -> dict[str, t.Any]:
    """A target."""
    return {"target": {"type": kind, **value}}


EXPRESSION = {"key": "a", "operator": "In"}
BAD: list[tuple[dict[str, t.Any], str]] = [
    ({"name": "App", "spec": SPEC}, "name"),
    ({"name": "a/b", "spec": SPEC}, "name"),
    ({"namespace": "a.b", "spec": SPEC}, "namespace"),
    ({"namespace": "x" * 64, "spec": SPEC}, "namespace"),
    ({"timeout_s": 0, "spec": SPEC}, "timeout_s"),
    ({"timeout_s": "nan", "spec": SPEC}, "timeout_s"),
    ({"host": "k8s:6443", "spec": SPEC}, "host"),
    ({"host": "https://[::1", "spec": SPEC}, "host"),
    ({"host": "https://k8s:99999", "spec": SPEC}, "host"),
    ({"host": "https://me:secret@k8s", "spec": SPEC}, "host"),
    ({"ca_cert": "/nowhere/ca.pem", "spec": SPEC}, "ca_cert"),
    ({"client_cert": "/nowhere/c.pem", "client_key": __file__, "spec": SPEC}, "client_cert"),
    ({"spec": {**SPEC, "minReplicas": -1}}, "spec.minReplicas"),
    ({"spec": {**SPEC, "minReplicas": 0, "metrics": [CPU]}}, "spec.minReplicas"),
    ({"spec": {**SPEC, "maxReplicas": 0, "minReplicas": 0}}, "spec.maxReplicas"),
    ({"spec": {**SPEC, "maxReplicas": 2}}, "spec.maxReplicas"),
    ({"spec": {**SPEC, "maxReplicas": 2**31}}, "spec.maxReplicas"),
    ({"spec": {**SPEC, "scaleTargetRef": {"name": ""}}}, "spec.scaleTargetRef.name"),
    ({"spec": {**SPEC, "scaleTargetRef": {"name": "a/b"}}}, "spec.scaleTargetRef.name"),
    ({"spec": {**SPEC, "scaleTargetRef": {"name": "a", "kind": ""}}}, "spec.scaleTargetRef.kind"),
    ({"spec": {**SPEC, "scaleTargetRef": {"name": "a", "apiVersion": "apps"}}}, "spec.scaleTargetRef.apiVersion"),
    ({"spec": {**SPEC, "metrics": [{"type": "Pods"}]}}, "spec.metrics[0].type"),
    ({"spec": {**SPEC, "metrics": [CPU, {**CPU, "pods": PODS["pods"]}]}}, "spec.metrics[1].type"),
    (metric("resource", name=""), "spec.metrics[0].resource.name"),
    (metric("resource", **aim("Value", value="1")), "spec.metrics[0].resource.target.type"),
    (metric("resource", **aim("Utilization")), "spec.metrics[0].resource.target.type"),
    (
        metric("resource", **aim("Utilization", averageUtilization=0)),
        "spec.metrics[0].resource.target.averageUtilization",
    ),
    (
        metric("resource", **aim("Utilization", averageUtilization=1, averageValue="1")),
        "spec.metrics[0].resource.target.averageValue",
    ),
    (metric("resource", **aim("AverageValue", averageValue="0")), "spec.metrics[0].resource.target.averageValue"),
    (metric("resource", **aim("AverageValue", averageValue="1 Gi")), "spec.metrics[0].resource.target.averageValue"),
    (metric("resource", **aim("AverageValue", averageValue="-1")), "spec.metrics[0].resource.target.averageValue"),
    (metric("containerResource", container=""), "spec.metrics[0].containerResource.container"),
    (metric("pods", **aim("Utilization", averageUtilization=5)), "spec.metrics[0].pods.target.type"),
    (metric("pods", metric={"name": ""}), "spec.metrics[0].pods.metric.name"),
    (metric("object", **aim("Utilization", averageUtilization=5)), "spec.metrics[0].object.target.type"),
    (metric("object", describedObject={"kind": "", "name": "x"}), "spec.metrics[0].object.describedObject.kind"),
    (metric("external", **aim("Value", value="many")), "spec.metrics[0].external.target.value"),
    (
        metric("external", metric={"name": "x", "selector": {"matchExpressions": [EXPRESSION]}}),
        "spec.metrics[0].external.metric.selector.matchExpressions[0].values",
    ),
    (
        metric(
            "external",
            metric={
                "name": "x",
                "selector": {"matchExpressions": [{**EXPRESSION, "operator": "Exists", "values": ["x"]}]},
            },
        ),
        "spec.metrics[0].external.metric.selector.matchExpressions[0].values",
    ),
    *(
        (
            metric("external", metric={"name": "x", "selector": {"matchLabels": {"app": "a", "shard": value}}}),
            "spec.metrics[0].external.metric.selector.matchLabels.shard",
        )
        for value in (1, 0.5, None, True, ["a"])
    ),
    (rules(stabilizationWindowSeconds=3601), "spec.behavior.scaleUp.stabilizationWindowSeconds"),
    (rules(stabilizationWindowSeconds=-1), "spec.behavior.scaleUp.stabilizationWindowSeconds"),
    (rules(tolerance="-0.1"), "spec.behavior.scaleUp.tolerance"),
    (rules(tolerance="a bit"), "spec.behavior.scaleUp.tolerance"),
    (rules(policies=[]), "spec.behavior.scaleUp.policies"),
    (policy(value=0), "spec.behavior.scaleUp.policies[0].value"),
    (policy(periodSeconds=0), "spec.behavior.scaleUp.policies[0].periodSeconds"),
    (policy(periodSeconds=1801), "spec.behavior.scaleUp.policies[0].periodSeconds"),
]


@pytest.mark.parametrize(("params", "option"), BAD, ids=[f"{case[1]}-{number}" for number, case in enumerate(BAD)])
def test_bad_values_end_in_one_sentence_before_anything_is_sent(
    api: t.Any, capsys: pytest.CaptureFixture[str], params: t.Any, option: str
) -> None:
    assert api.emulator
    code, result = run(api, capsys, **params)
    assert code == 1
    assert result["msg"].startswith(f"Option {option!r} has the value ")
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]
    assert "secret" not in result["msg"]
    assert result["errors"][0]["code"] == "bad_option"
    assert result["errors"][0]["option"] == option
    assert api.sent == []


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({}, "spec"),
        ({"spec": {"maxReplicas": 3}}, "scaleTargetRef"),
        ({"spec": {"scaleTargetRef": {"name": "a"}}}, "maxReplicas"),
        ({"spec": {**SMALL, "maxReplicas": "many"}}, "maxReplicas"),
        ({"spec": {**SMALL, "replicas": 3}}, "replicas"),
        ({"spec": {**SMALL, "metrics": [{"type": "Cpu"}]}}, "Cpu"),
        ({"spec": {**SMALL, "behavior": {"scaleUp": {"selectPolicy": "All"}}}}, "All"),
        ({"spec": SMALL, "state": "gone"}, "gone"),
        ({"spec": SMALL, "kubeconfig": "/x"}, "kubeconfig"),
        ({"spec": SMALL, "client_cert": __file__}, "client_cert"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(
    api: t.Any, capsys: pytest.CaptureFixture[str], params: t.Any, word: str
) -> None:
    assert api.emulator
    code, result = run(api, capsys, **params)
    assert code == 1
    assert word in result["msg"]
    assert api.sent == []
