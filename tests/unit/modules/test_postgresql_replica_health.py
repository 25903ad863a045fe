# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole: its options match its documentation, bad input ends in one sentence, and a look ends in a
result."""

from __future__ import annotations

import json
import os
import stat
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.doc_fragments.postgresql import ModuleDocFragment
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health import check, observe
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.model import (
    Catchup,
    Fault,
    NodeFacts,
    Receiver,
    Sender,
    Slot,
    Upstream,
)
from ansible_collections.headroom.scale.plugins.modules import postgresql_replica_health

NODES = [{"name": "pg1", "host": "10.0.0.1"}, {"name": "pg2", "host": "10.0.0.2"}]
LSN = 0x5000000


def run(capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result."""
    with patch_module_args({"nodes": NODES, **params}), pytest.raises(SystemExit) as ended:
        postgresql_replica_health.main()
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def facts() -> dict[str, NodeFacts]:
    """Return the facts of a primary and a replica that are well."""
    primary = NodeFacts(
        name="pg1",
        in_recovery=False,
        system_identifier="1",
        server_id="1/pg1",
        timeline=1,
        flush_lsn=LSN,
        receiver_known=True,
        slots=(Slot("pg2", "physical", True, 7, "reserved", 0),),
        senders=(Sender(7, "pg2", "10.0.0.2", "streaming", "async", 0.1),),
        synchronous_standby_names="",
        read_only=False,
        slot_name="",
        conflicts=0,
    )
    replica = NodeFacts(
        name="pg2",
        in_recovery=True,
        system_identifier="1",
        server_id="1/pg2",
        timeline=1,
        receive_lsn=LSN,
        replay_lsn=LSN,
        replay_paused=False,
        receiver_known=True,
        receiver=Receiver("streaming", 1, 1.0, "10.0.0.1", 5432),
        wal_receiver_timeout_s=60.0,
        upstream=Upstream("10.0.0.1", 5432),
        slot_name="pg2",
        slots=(),
        senders=(),
        conflicts=0,
        catchup=Catchup(LSN, LSN, 0.0, 0.0, None),
    )
    return {"pg1": primary, "pg2": replica}


@pytest.fixture(name="servers")
def servers_fixture(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, NodeFacts]]:
    """Stand in for the servers: a list of what successive looks see; the last one stays."""
    looks = [facts()]
    monkeypatch.setattr(observe, "observe", lambda specs, look: looks.pop(0) if len(looks) > 1 else looks[0])
    return looks


@pytest.fixture(name="untouched")
def untouched_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when anything is looked at."""

    def never(*args: t.Any) -> t.NoReturn:
        raise RuntimeError("a node was looked at")

    monkeypatch.setattr(observe, "observe", never)


def broken() -> dict[str, NodeFacts]:
    """Return facts with a replica that is gone."""
    return {**facts(), "pg2": NodeFacts(name="pg2", fault=Fault("connection_refused", "Failed to look at pg2.", 0.01))}


# ---- documentation


def documented() -> dict[str, t.Any]:
    """Return the documented options, the fragment's included."""
    options = yaml.safe_load(postgresql_replica_health.DOCUMENTATION)["options"]
    return {**options, **yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]}


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
    compare(documented(), check.health_spec().merge(connection_spec()).options)


def test_every_return_value_is_documented_with_a_sample(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(postgresql_replica_health.RETURN)
    result = run(capsys)[1]
    assert returned.keys() == result.keys() - {"changed", "invocation"}
    assert returned["nodes"]["contains"].keys() == result["nodes"][0].keys()
    for name, entry in {**returned, **returned["nodes"]["contains"]}.items():
        assert entry["description"], name
        assert entry["type"], name
        assert "sample" in entry or "contains" in entry, name


# ---- bad input

BAD: list[tuple[dict[str, t.Any], str]] = [
    ({"nodes": []}, "nodes"),
    ({"nodes": [{"name": ""}]}, "nodes[].name"),
    ({"nodes": [{"name": "a\nb"}]}, "nodes[].name"),
    ({"nodes": [{"name": "pg1"}, {"name": "pg1"}]}, "nodes[].name"),
    ({"nodes": [{"name": "pg1", "host": " "}]}, "nodes[].host"),
    ({"nodes": [{"name": "pg1", "host": "a,b"}]}, "nodes[].host"),
    ({"nodes": [{"name": "pg1", "port": 0}]}, "nodes[].port"),
    ({"nodes": [{"name": "pg1", "port": 65536}]}, "nodes[].port"),
    ({"nodes": [{"name": "pg1", "pooler_port": -1}]}, "nodes[].pooler_port"),
    ({"nodes": [{"name": "pg1", "pooler_host": "", "pooler_port": 1}]}, "nodes[].pooler_host"),
    ({"nodes": [{"name": "pg1", "pooler_host": "x"}]}, "nodes[].pooler_host"),
    ({"login_user": ""}, "login_user"),
    ({"login_db": " "}, "login_db"),
    ({"ca_cert": "/nowhere/ca.pem"}, "ca_cert"),
    ({"ssl_cert": "/nowhere/c.pem", "ssl_key": "/nowhere/k.pem"}, "ssl_cert"),
    ({"ssl_cert": __file__, "ssl_key": "/nowhere/k.pem"}, "ssl_key"),
    ({"max_lag_bytes": -1}, "max_lag_bytes"),
    ({"max_lag_s": -0.1}, "max_lag_s"),
    ({"max_lag_s": "nan"}, "max_lag_s"),
    ({"min_healthy_replicas": -1}, "min_healthy_replicas"),
    ({"min_healthy_replicas": 2}, "min_healthy_replicas"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"timeout_s": "inf"}, "timeout_s"),
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
    assert result["failed"]
    assert result["msg"].startswith(f"Option {option!r} has the value ")
    assert result["msg"].endswith(".")
    assert "\n" not in result["msg"]
    assert result["errors"][0]["code"] == "bad_option"
    assert result["errors"][0]["option"] == option


@pytest.mark.parametrize(
    "params",
    [
        {"nodes": [{"host": "x"}]},
        {"nodes": [{"name": "pg1", "port": "x"}]},
        {"ssl_mode": "maybe"},
        {"ssl_mode": "verify-full"},
        {"ssl_cert": __file__},
        {"max_lag_bytes": "many"},
        {"heartbeat": "perhaps"},
        {"fail_on": "always"},
        {"login_passwort": "x"},
    ],
)
def test_values_of_the_wrong_kind_are_refused(
    untouched: None, capsys: pytest.CaptureFixture[str], params: t.Any
) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert result["msg"]
    assert next(iter(params)) in result["msg"]


def test_nodes_that_are_no_list_are_refused(untouched: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, nodes="nonsense")[0] == 1


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
    assert result["healthy"]
    assert not result["changed"]
    assert result["primary"] == "pg1"
    assert result["read_pool"] == ["pg2"]
    assert result["errors"] == []


def test_a_failure_carries_the_full_result(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [broken()]
    code, result = run(capsys)
    assert code == 1
    assert "\n" not in result["msg"]
    assert "pg2 (connection_refused)" in result["msg"]
    assert result["errors"][0]["code"] == "cluster_unhealthy"
    assert not result["healthy"]
    assert result["nodes"][1]["verdict"] == "unreachable"
    assert result["table"]


def test_never_fail(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [broken()]
    code, result = run(capsys, fail_on="never")
    assert code == 0
    assert not result["healthy"]


def test_fail_on_degraded(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [broken()]
    assert run(capsys, min_healthy_replicas=0)[0] == 0
    code, result = run(capsys, min_healthy_replicas=0, fail_on="degraded")
    assert code == 1
    assert result["errors"][0]["code"] == "cluster_degraded"


def test_waiting_ends_when_the_requirement_holds(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [broken(), broken(), facts()]
    code, result = run(capsys, wait_s=30, interval_s=0.05)
    assert code == 0
    assert result["observations"] == 3


def test_waiting_ends_when_time_is_over(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    servers[:] = [broken()]
    code, result = run(capsys, wait_s=0.3, interval_s=0.1)
    assert code == 1
    assert 3 <= result["observations"] <= 5
    assert result["duration_s"] < 2


def test_consecutive_looks_are_remembered_between_runs(
    servers: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    options = {"consecutive": 2, "state_file": str(tmp_path / "state"), "fail_on": "never"}
    assert run(capsys, **options)[1]["healthy"]
    servers[:] = [broken()]
    result = run(capsys, **options)[1]
    assert result["healthy"]
    assert result["nodes"][1]["seen"] == "unreachable"
    assert result["nodes"][1]["verdict"] == "healthy"
    assert not run(capsys, **options)[1]["healthy"]


def test_files_are_written_whole_with_their_modes(
    servers: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    paths = {option: str(tmp_path / option) for option in ("state_file", "prometheus_file", "report_file")}
    run(capsys, login_password="hunter2", **paths)
    modes = {option: stat.S_IMODE(os.stat(path).st_mode) for option, path in paths.items()}
    assert modes == {"state_file": 0o600, "prometheus_file": 0o644, "report_file": 0o644}
    assert sorted(os.listdir(tmp_path)) == sorted(paths)
    assert not any("hunter2" in (tmp_path / option).read_text() for option in paths)


def test_check_mode_looks_and_writes_nothing(
    servers: t.Any, capsys: pytest.CaptureFixture[str], tmp_path: t.Any
) -> None:
    paths = {option: str(tmp_path / option) for option in ("state_file", "prometheus_file", "report_file")}
    code, result = run(capsys, _ansible_check_mode=True, **paths)
    assert code == 0
    assert result["healthy"]
    assert os.listdir(tmp_path) == []


def test_the_same_look_gives_the_same_result(servers: t.Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run(capsys)[1], run(capsys)[1]
    first.pop("duration_s"), second.pop("duration_s")
    assert first == second


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*args: t.Any) -> t.NoReturn:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(observe, "observe", missing)
    code, result = run(capsys)
    assert code == 1
    assert result["errors"][0]["code"] == "missing_library"
    assert "psycopg" in result["msg"]
