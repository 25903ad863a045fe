# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole: its options match its documentation, bad input ends in one sentence, and a look ends in a
result."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import sys
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "_redis_cluster" / "health"))
pytest.importorskip("redis")

from ansible_collections.headroom.scale.plugins.doc_fragments.redis import ModuleDocFragment  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.redis import client
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import connection_spec  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health import check, observe  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.health.model import Fault, NodeFacts  # noqa: E402
from ansible_collections.headroom.scale.plugins.modules import redis_cluster_health  # noqa: E402
from redis_health_builders import NODES, cluster, facts  # noqa: E402

GIVEN = [{"name": node.name, "host": node.host, "port": node.port} for node in NODES]
GONE = NodeFacts("rc4", fault=Fault("connection_refused", "Failed to reach rc4."), addresses=("10.0.0.4",))
FILES = ("state_file", "prometheus_file", "report_file")


def run(capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result."""
    with patch_module_args({"nodes": GIVEN, **params}), pytest.raises(SystemExit) as ended:
        redis_cluster_health.main()
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


@pytest.fixture(name="servers")
def servers_fixture(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, NodeFacts]]:
    """Stand in for the servers: a list of what successive looks see; the last one stays."""
    looks = [cluster()]
    monkeypatch.setattr(observe, "observe", lambda nodes, login: looks.pop(0) if len(looks) > 1 else looks[0])
    return looks


@pytest.fixture(name="untouched")
def untouched_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when anything is looked at."""

    def never(*args: t.Any) -> t.NoReturn:
        raise RuntimeError("a node was looked at")

    monkeypatch.setattr(observe, "observe", never)


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
    options = yaml.safe_load(redis_cluster_health.DOCUMENTATION)["options"]
    fragment = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    compare(options, check.health_spec().options)
    compare(fragment, connection_spec().options)
    assert not options.keys() & fragment.keys()


def test_every_return_value_is_documented_with_a_sample(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(redis_cluster_health.RETURN)
    result = run(capsys)[1]
    assert returned.keys() == result.keys() - {"changed", "invocation"}
    assert returned["nodes"]["contains"].keys() == result["nodes"][0].keys()
    for name, entry in {**returned, **returned["nodes"]["contains"]}.items():
        assert entry["description"], name
        assert entry["type"], name
        assert "sample" in entry or "contains" in entry, name


def test_every_reason_code_is_documented() -> None:
    folder = pathlib.Path(check.__file__).parent
    source = (folder / "judge.py").read_text() + pathlib.Path(client.__file__).read_text()
    codes = {part.split('"')[1] for part in source.split("Reason(")[1:] if part.lstrip().startswith('"')}
    codes |= {part.split('"')[0] for part in source.split('code, rest = "')[1:]} | {"connection_lost", "connect_failed"}
    assert len(codes) > 30
    assert not [code for code in codes if f"V({code})" not in redis_cluster_health.RETURN]


# ---- bad input

BAD: list[tuple[dict[str, t.Any], str]] = [
    ({"nodes": []}, "nodes"),
    ({"nodes": [{"name": " "}]}, "nodes[].name"),
    ({"nodes": [{"name": "rc1"}, {"name": "rc1"}]}, "nodes[].name"),
    ({"nodes": [{"name": "rc1", "host": ""}]}, "nodes[].host"),
    ({"nodes": [{"name": "rc1", "port": 0}]}, "nodes[].port"),
    ({"login_user": "", "login_password": "x"}, "login_user"),
    ({"ca_certs": "/nowhere/ca.pem"}, "ca_certs"),
    ({"client_cert_file": "/nowhere/c.pem", "client_key_file": __file__}, "client_cert_file"),
    ({"client_cert_file": __file__, "client_key_file": "/nowhere/k.pem"}, "client_key_file"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"timeout_s": "inf"}, "timeout_s"),
    ({"max_lag_bytes": -1}, "max_lag_bytes"),
    ({"max_lag_s": -0.1}, "max_lag_s"),
    ({"max_lag_s": "nan"}, "max_lag_s"),
    ({"max_memory_ratio": 0}, "max_memory_ratio"),
    ({"max_memory_ratio": 90}, "max_memory_ratio"),
    ({"max_fragmentation_ratio": 0.5}, "max_fragmentation_ratio"),
    ({"max_evictions": -1}, "max_evictions"),
    ({"max_slowlog_growth": -1}, "max_slowlog_growth"),
    ({"min_hit_ratio": 80}, "min_hit_ratio"),
    ({"min_replicas_per_primary": -1}, "min_replicas_per_primary"),
    ({"min_replicas_per_primary": 6}, "min_replicas_per_primary"),
    ({"wait_s": -1}, "wait_s"),
    ({"interval_s": 0}, "interval_s"),
    ({"consecutive": 0, "wait_s": 1}, "consecutive"),
    ({"consecutive": 2}, "consecutive"),
    ({"state_file": "/nowhere/state"}, "state_file"),
    ({"prometheus_file": "/"}, "prometheus_file"),
    ({"report_file": "/nowhere/r.html"}, "report_file"),
    ({"report_file": "/tmp/same", "prometheus_file": "/tmp/same"}, "report_file"),
]


@pytest.mark.parametrize(
    ("params", "option"), BAD, ids=[f"{next(iter(case[0]))}-{number}" for number, case in enumerate(BAD)]
)
def test_bad_values_end_in_one_sentence(
    untouched: None, capsys: pytest.CaptureFixture[str], params: t.Any, option: str
) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert result["msg"].startswith(f"Option {option!r} has the value ")
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]
    assert result["errors"][0]["code"] == "bad_option"
    assert result["errors"][0]["option"] == option


@pytest.mark.parametrize(
    "params",
    [
        {"nodes": [{"host": "x"}]},
        {"nodes": [{"name": "rc1", "port": "x"}]},
        {"login_user": "monitor"},
        {"client_cert_file": __file__},
        {"tls": "maybe"},
        {"max_lag_bytes": "many"},
        {"allow_same_host": "perhaps"},
        {"fail_on": "always"},
        {"login_passwort": "x"},
    ],
)
def test_values_of_the_wrong_kind_are_refused(
    untouched: None, capsys: pytest.CaptureFixture[str], params: t.Any
) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert next(iter(params)) in result["msg"]


def test_a_damaged_state_file_is_refused_and_kept(
    untouched: None, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    path = tmp_path / "state"
    path.write_text("precious")
    code, result = run(capsys, state_file=str(path))
    assert code == 1
    assert result["errors"][0]["option"] == "state_file"
    assert path.read_text() == "precious"


# ---- results


def test_a_cluster_that_is_well(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys)
    assert code == 0
    assert (result["healthy"], result["changed"], result["errors"]) == (True, False, [])


def test_a_failure_carries_the_full_result(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [cluster(GONE)]
    code, result = run(capsys)
    assert code == 1
    assert "rc4 (connection_refused)" in result["msg"]
    assert [error["code"] for error in result["errors"]] == ["cluster_unhealthy", "replicas_missing"]
    assert result["nodes"][3]["verdict"] == "unreachable"
    assert result["table"]


def test_what_fails(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [cluster(GONE)]
    assert run(capsys, fail_on="never")[0] == 0
    assert run(capsys, min_replicas_per_primary=0)[0] == 0
    code, result = run(capsys, min_replicas_per_primary=0, fail_on="degraded")
    assert code == 1
    assert result["errors"][0]["code"] == "cluster_degraded"


def test_waiting(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [cluster(GONE), cluster(GONE), cluster()]
    code, result = run(capsys, wait_s=30, interval_s=0.05)
    assert (code, result["observations"]) == (0, 3)
    servers[:] = [cluster(GONE)]
    code, result = run(capsys, wait_s=0.3, interval_s=0.1)
    assert code == 1
    assert 3 <= result["observations"] <= 5


def test_looks_are_remembered_between_runs(servers: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any) -> None:
    options = {"consecutive": 2, "state_file": str(tmp_path / "state"), "fail_on": "never"}
    assert run(capsys, **options)[1]["healthy"]
    servers[:] = [cluster(GONE, facts("rc1", {"evicted_keys": "9"}))]
    result = run(capsys, **options)[1]
    assert result["healthy"]
    assert (result["nodes"][3]["seen"], result["nodes"][3]["verdict"]) == ("unreachable", "healthy")
    assert result["nodes"][0]["evictions"] == {"total": 9, "new": 9}
    assert not run(capsys, **options)[1]["healthy"]


def test_files_are_written_whole_with_their_modes(
    servers: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    paths = {option: str(tmp_path / option) for option in FILES}
    result = run(capsys, login_password="hunter2", **paths)[1]
    modes = {option: stat.S_IMODE(os.stat(path).st_mode) for option, path in paths.items()}
    assert modes == {"state_file": 0o600, "prometheus_file": 0o644, "report_file": 0o644}
    assert sorted(os.listdir(tmp_path)) == sorted(paths)
    assert not any("hunter2" in (tmp_path / option).read_text() for option in paths)
    assert "hunter2" not in json.dumps(result)


def test_check_mode_looks_and_writes_nothing(
    servers: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    code, result = run(capsys, _ansible_check_mode=True, **{option: str(tmp_path / option) for option in FILES})
    assert code == 0
    assert result["healthy"]
    assert os.listdir(tmp_path) == []


def test_the_same_look_gives_the_same_result(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(capsys)[1], run(capsys)[1]
    first.pop("duration_s"), second.pop("duration_s")
    assert first == second


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*args: t.Any) -> t.NoReturn:
        raise ModuleNotFoundError("No module named 'redis'", name="redis")

    monkeypatch.setattr(observe, "observe", missing)
    code, result = run(capsys)
    assert code == 1
    assert result["errors"][0]["code"] == "missing_library"
    assert "redis" in result["msg"]
