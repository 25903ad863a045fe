# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole: bad input ends in one sentence, and a host with nothing on it is looked at and left alone."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.instance.model import Engine, Paths
from ansible_collections.headroom.scale.plugins.modules import redis_instance

ADMIN = {"name": "admin", "password": "lab-only-admin", "rules": "~* &* +@all"}
BASE = {
    "instances": [{"port": 7299}],
    "users": [ADMIN],
    "login_user": "admin",
    "login_password": "lab-only-admin",
}


def run(capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result."""
    with patch_module_args({**BASE, **params}), pytest.raises(SystemExit) as ended:
        redis_instance.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), json.loads(out)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> t.Any:
    """Let the module look below an empty directory, whatever is on this machine."""
    monkeypatch.setattr(Engine, "program", property(lambda self: f"{tmp_path}/{self.name}-server"))
    monkeypatch.setattr(Engine, "config_directory", property(lambda self: f"{tmp_path}/etc"))
    monkeypatch.setattr(Engine, "drop_in", property(lambda self: f"{tmp_path}/systemd/headroom.conf"))
    monkeypatch.setattr(Paths, "data", property(lambda self: f"{tmp_path}/lib/{self.port}"))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"instances": [{"port": 60000}]}, ["port", "60000", "1 to 55535"]),
        ({"instances": [{"port": 7299}, {"port": 7299}]}, ["port", "7299", "twice"]),
        ({"restart": [1]}, ["'restart'", "1", "7299"]),
        ({"settings": {"port": 1}}, ["'settings'", "'port'", "leave it out"]),
        ({"settings": {"aclfile": "/x"}}, ["'settings'", "'aclfile'", "leave it out"]),
        ({"settings": {"max memory": 1}}, ["'settings'", "'max memory'"]),
        ({"settings": {"hz": "1\nrequirepass x"}}, ["'settings'", "'hz'", "one line"]),
        ({"users": [ADMIN, ADMIN]}, ["users[].name", "'admin'", "twice"]),
        ({"users": [{**ADMIN, "name": "a b"}]}, ["users[].name", "'a b'"]),
        ({"users": [ADMIN, {"name": "app", "password": "short"}]}, ["users[].password", "app", "8 characters"]),
        ({"users": [ADMIN, {"name": "app", "rules": ">secret"}]}, ["users[].rules", "app"]),
        ({"users": [ADMIN, {"name": "app", "former_password": "lab-only-former"}]}, ["users[].former_password", "app"]),
        ({"login_user": "nobody"}, ["'login_user'", "'nobody'", "users"]),
        ({"wait_s": 0}, ["'wait_s'", "1 to 3600"]),
    ],
)
def test_a_bad_value_ends_in_one_sentence(
    capsys: pytest.CaptureFixture[str], bare: t.Any, given: dict[str, t.Any], words: list[str]
) -> None:
    code, result = run(capsys, **given)

    assert code == 1
    assert result["changed"] is False
    assert result["errors"][0]["code"] == "bad_option"
    assert [word for word in words if word not in result["msg"]] == []
    assert "\n" not in result["msg"]
    assert not [word for word in ("short", "lab-only-former") if word in result["msg"]]
    assert list(bare.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "keydb"}, ["engine", "redis, valkey"]),
        ({"instances": [{"prot": 1}]}, ["port"]),
        ({"replication_user": "r"}, ["replication_password"]),
        ({"tls_certificate": "x"}, ["tls_key", "tls_ca"]),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], given: dict[str, t.Any], words: list[str]
) -> None:
    code, result = run(capsys, **given)

    assert code == 1
    assert [word for word in words if word not in result["msg"]] == []


@pytest.mark.parametrize("engine", ["redis", "valkey"])
def test_check_mode_tells_what_a_new_host_gets_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], bare: t.Any, engine: str
) -> None:
    code, result = run(
        capsys,
        engine=engine,
        instances=[{"port": 7298}, {"port": 7299, "settings": {"maxmemory": "1gb"}}],
        settings={"appendonly": True, "save": ["900 1", "300 10"]},
        replication_user="repl",
        replication_password="lab-only-replication",
        tls_certificate="CERT",
        tls_key="lab-only-key",
        tls_ca="CA",
        _ansible_check_mode=True,
        _ansible_diff=True,
    )

    assert code == 0
    assert result["changed"] is True
    assert result["restart_required"] == []
    for row, port in zip(result["instances"], (7298, 7299), strict=True):
        assert (row["port"], row["running"]) == (port, False)
        assert [step["action"] for step in row["plan"]] == ["make", *["write"] * 5, "enable", "start"]
        assert row["plan"][-1]["object"] == f"{engine}-server@{port}.service"
    text = json.dumps(result["diff"])
    assert "appendonly yes" in text
    assert "masterauth ********" in text
    assert not [word for word in ("lab-only-replication", "lab-only-admin", "lab-only-key") if word in text]
    assert list(bare.iterdir()) == []


def test_without_the_package_the_run_ends_in_one_sentence(capsys: pytest.CaptureFixture[str], bare: t.Any) -> None:
    code, result = run(capsys)

    assert code == 1
    assert result["errors"][0]["code"] == "not_installed"
    assert "is not installed" in result["msg"]
    assert not (bare / "etc").exists()
