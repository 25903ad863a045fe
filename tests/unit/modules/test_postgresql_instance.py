# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The instance modules as a whole: bad input ends in one sentence, and a machine with nothing on it is looked at and
left alone."""

from __future__ import annotations

import json
import pathlib
import time
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import options
from ansible_collections.headroom.scale.plugins.modules import postgresql_instance, postgresql_instance_info

LOGIN = {"name": "repl", "password": "hunter22!"}


def run(
    capsys: pytest.CaptureFixture[str], module: t.Any = postgresql_instance, **params: t.Any
) -> tuple[int, dict[str, t.Any]]:
    """Run a module and return its exit code and result."""
    with patch_module_args(params), pytest.raises(SystemExit) as ended:
        module.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), json.loads(out)


@pytest.fixture
def nowhere(tmp_path: pathlib.Path) -> dict[str, t.Any]:
    """Return an instance of which nothing is on this machine, whatever else is."""
    return {"version": 13, "name": "headroom_unit_test", "data_directory": str(tmp_path / "13" / "headroom_unit_test")}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"version": 9, "role": "primary"}, ["'version'", "9", "13 to 18"]),
        ({"version": 17, "role": "primary", "port": 70000}, ["'port'", "70000", "1 to 65535"]),
        ({"version": 17, "role": "primary", "settings": {"port": 1}}, ["'settings'", "'port'", "leave it out"]),
        ({"version": 17, "role": "primary", "settings": {1: 2}}, ["'settings'", "'1'"]),
        ({"version": 17, "role": "primary", "hba": [{"database": "all", "user": "u"}]}, ["'hba[0].address'"]),
        (
            {"version": 17, "role": "primary", "replication_login": {"name": "r", "password": "short"}},
            ["password", "(hidden)"],
        ),
    ],
)
def test_a_bad_value_ends_in_one_sentence(
    capsys: pytest.CaptureFixture[str], given: dict[str, t.Any], words: list[str]
) -> None:
    code, result = run(capsys, **given)

    assert code == 1
    assert result["failed"] is True
    assert result["changed"] is False
    assert result["errors"][0]["code"] == "bad_option"
    assert result["msg"] == result["errors"][0]["message"]
    assert [word for word in words if word not in result["msg"]] == []
    assert "\n" not in result["msg"]
    assert '"short"' not in json.dumps(result)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["version"]),
        ({"version": "x", "role": "primary"}, ["version"]),
        ({"version": 17}, ["role"]),
        ({"version": 17, "role": "replica"}, ["upstream", "replication_login"]),
        ({"version": 17, "role": "primary", "tls_certificate": "x"}, ["tls_key"]),
        ({"version": 17, "role": "king"}, ["role", "primary, replica"]),
        ({"version": 17, "role": "primary", "portt": 1}, ["portt"]),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], given: dict[str, t.Any], words: list[str]
) -> None:
    code, result = run(capsys, **given)

    assert code == 1
    assert [word for word in words if word not in result["msg"]] == []


@pytest.mark.parametrize("diff", [True, False])
def test_check_mode_tells_what_would_become_a_primary_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, nowhere: dict[str, t.Any], diff: bool
) -> None:
    secrets = {"replication_login": LOGIN, "tls_certificate": "CERT\n", "tls_key": "PRIVATE\n"}

    code, result = run(
        capsys,
        **nowhere,
        **secrets,
        role="primary",
        slots=["headroom_pg2"],
        _ansible_check_mode=True,
        _ansible_diff=diff,
    )

    assert code == 0
    assert (result["changed"], result["finished"], result["instance"]["exists"]) == (True, True, False)
    steps = [step["action"] for step in result["plan"]]
    assert [step for step in steps if step != "write"] == ["create", "start", "login", "slot"]
    assert f"{len(steps)} steps would be taken" in result["summary"]
    assert list(tmp_path.iterdir()) == []
    # what was handed over is echoed by the test's own runner without the secrets; the rest must not hold them either
    told = json.dumps({name: value for name, value in result.items() if name != "invocation"})
    assert "hunter22!" not in told
    assert "PRIVATE" not in told
    assert ("diff" in result) is diff
    if diff:
        assert any(entry["after_header"].endswith("/postgresql.conf") for entry in result["diff"])


def test_check_mode_of_a_replica_does_not_ask_an_upstream_it_has_no_programs_for(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, nowhere: dict[str, t.Any]
) -> None:
    started = time.monotonic()

    code, result = run(
        capsys,
        **nowhere,
        role="replica",
        upstream={"host": "192.0.2.1"},
        replication_login=LOGIN,
        _ansible_check_mode=True,
    )

    assert code == 0
    assert time.monotonic() - started < 5
    assert [step["action"] for step in result["plan"] if step["action"] != "write"] == ["clone", "start"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_absent_already_is_as_wanted(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, nowhere: dict[str, t.Any]
) -> None:
    code, result = run(capsys, **nowhere, state="absent")

    assert (code, result["changed"], result["plan"]) == (0, False, [])
    assert "is as wanted" in result["summary"]
    assert list(tmp_path.iterdir()) == []


def test_data_of_someone_else_is_refused_with_nothing_changed(
    capsys: pytest.CaptureFixture[str], nowhere: dict[str, t.Any]
) -> None:
    data = pathlib.Path(nowhere["data_directory"])
    data.mkdir(parents=True)
    (data / "thesis.txt").write_text("years of work", encoding="utf-8")

    code, result = run(capsys, **nowhere, role="primary")

    assert (code, result["changed"], result["errors"][0]["code"]) == (1, False, "refused")
    assert "Move it away yourself" in result["msg"]
    assert (data / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_without_the_programs_it_fails_by_name_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, nowhere: dict[str, t.Any]
) -> None:
    code, result = run(capsys, **nowhere, role="primary")

    assert code == 1
    assert "PostgreSQL 13 are not installed" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_the_look_at_a_machine_with_nothing(capsys: pytest.CaptureFixture[str], nowhere: dict[str, t.Any]) -> None:
    code, result = run(capsys, postgresql_instance_info, **nowhere)

    assert (code, result["changed"]) == (0, False)
    instance, host = result["instance"], result["host"]
    assert (instance["exists"], instance["role"], instance["running"], instance["fence"]) == (False, None, False, None)
    assert host["memory_bytes"] > 1 << 20
    assert host["cpus"] >= 1
    assert host["disk_free_bytes"] > 0
    assert abs(host["clock_s"] - time.time()) < 60


def test_the_look_refuses_what_cannot_be_an_instance(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys, postgresql_instance_info, version=17, name="../x")

    assert (code, result["changed"]) == (1, False)
    assert "'name'" in result["msg"]


def test_the_documentation_and_the_options_say_the_same() -> None:
    documented = yaml.safe_load(postgresql_instance.DOCUMENTATION)["options"]
    spec = options.identity_spec().merge(options.instance_spec()).options

    def check(documented: dict[str, t.Any], spec: dict[str, t.Any]) -> None:
        assert documented.keys() == spec.keys()
        for name, option in spec.items():
            for key in ("type", "default", "choices", "required", "elements"):
                assert documented[name].get(key) == option.get(key), f"{name}: {key}"
            if "options" in option:
                check(documented[name]["suboptions"], option["options"])

    check(documented, spec)
