# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole: its options match its documentation, and bad input ends in one sentence before anything is contacted."""

from __future__ import annotations

import json
import socket
import typing as t

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("psycopg")

from ansible_collections.headroom.scale.plugins.doc_fragments.postgresql import ModuleDocFragment  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import (  # noqa: E402
    Members,
    members_spec,
)
from ansible_collections.headroom.scale.plugins.modules import postgresql_shard_map  # noqa: E402

SHARDS = [{"name": "s1", "host": "10.0.0.1"}, {"name": "s2", "host": "10.0.0.2"}]
USERS = {
    "name": "users",
    "strategy": "hash",
    "key_type": "bigint",
    "buckets": 64,
    "tables": [{"name": "public.users", "key": "id"}],
}


def run(capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result."""
    with patch_module_args({"shards": SHARDS, **params}), pytest.raises(SystemExit) as ended:
        postgresql_shard_map.main()
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


@pytest.fixture(name="untouched")
def untouched_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a member is contacted."""

    def never(*args: t.Any) -> t.NoReturn:
        raise RuntimeError("a member was contacted")

    monkeypatch.setattr(Members, "_connect", never)


def test_the_fragment_of_the_members_is_their_spec() -> None:
    documented = yaml.safe_load(ModuleDocFragment.MEMBERS)["options"]
    spec = members_spec().options
    assert documented.keys() == spec.keys()
    for option in ("shards", "routers"):
        assert documented[option]["suboptions"].keys() == spec[option]["options"].keys()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"shards": [*SHARDS, SHARDS[0]]}, "'s1': it is declared before"),
        ({"shards": [*SHARDS, {"name": "s3", "host": "10.0.0.2"}]}, "it is the database of s2 too"),
        ({"shards": [{**one, "weight": 0} for one in SHARDS]}, "give at least one active shard a weight above 0"),
        ({"groups": [{**USERS, "strategy": "random"}]}, "value of strategy must be one of: hash, range, directory"),
        ({"groups": [{**USERS, "buckets": 63}]}, "give a number from 64 to 4096"),
        ({"groups": [{**USERS, "buckets": None}]}, "strategy 'hash' needs it"),
        ({"groups": [USERS, USERS]}, "it is declared before"),
        ({"groups": [{**USERS, "placement": ["s1"]}]}, "give one shard for each of the 64 buckets"),
        ({"groups": [{**USERS, "placement": ["s9"] * 64}]}, "give one of the shards s1, s2"),
        ({"groups": [{**USERS, "tables": [{"name": "users", "key": "id"}]}]}, "give it as schema.table"),
        (
            {
                "groups": [
                    {**USERS, "tables": [{"name": "public.users", "key": "id", "ddl": ["CREATE TABLE x ()", "COMMIT"]}]}
                ]
            },
            "statements that begin with CREATE",
        ),
        (
            {"groups": [{**USERS, "tables": [{"name": "public.users", "key": "id", "ddl": 5}]}]},
            "give a CREATE TABLE statement",
        ),
        ({"cluster": " "}, "Option 'cluster'"),
        ({"lock_timeout_s": 0}, "Option 'lock_timeout_s'"),
        ({"max_rewrite_bytes": -1}, "Option 'max_rewrite_bytes'"),
        ({"member_ssl_mode": "verify-full"}, "it needs member_ca_cert"),
        ({"ca_cert": "/nowhere.pem"}, "there is no such file"),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], params: dict[str, t.Any], says: str) -> None:
    code, result = run(capsys, **params)
    assert code == 1
    assert says in result["msg"]
    assert "\n" not in result["msg"]


def test_a_member_that_is_not_there_is_named_and_the_password_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        code, result = run(
            capsys, shards=[{"name": "s1", "host": "127.0.0.1", "port": port}], groups=[USERS], login_password="hunter2"
        )
    assert code == 1
    assert result["msg"].startswith(f"Failed to connect to s1 on 127.0.0.1:{port}: Connection refused.")
    assert result["errors"][0]["code"] == "connection_refused"
    assert "hunter2" not in json.dumps({**result, "invocation": None})
