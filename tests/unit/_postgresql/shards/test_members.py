# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Members are named once each, and what goes wrong with one becomes a sentence within its time limit."""

from __future__ import annotations

import asyncio
import socket
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards import members as members_module
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import (
    Access,
    Lock,
    MemberError,
    Members,
    parse_access,
    parse_members,
    parse_timeout,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Member

pytest.importorskip("psycopg")


def entry(name: str, **other: t.Any) -> dict[str, t.Any]:
    return {"name": name, "host": f"{name}.example", "port": 5432, "database": None, **other}


def params(shards: t.Any, routers: t.Any = (), **other: t.Any) -> dict[str, t.Any]:
    return {"shards": list(shards), "routers": list(routers), "login_db": "shop", **other}


def test_members_come_with_their_defaults() -> None:
    shard, router = parse_members(params([entry("s1", application_host="app")], [entry("r1", database="other")]))
    assert shard == Member("s1", "s1.example", 5432, "shop", "shard", "app", None)
    assert router == Member("r1", "r1.example", 5432, "other", "router")
    assert router.address == "r1.example:5432/other"


@pytest.mark.parametrize(
    ("shards", "routers", "option"),
    [
        ([], [], "shards"),
        ([entry("s1"), entry("s1")], [], "shards[1].name"),
        ([entry("s1")], [entry("s1")], "shards[0].name"),
        ([entry("S1")], [], "shards[0].name"),
        ([entry("s1", host="a b")], [], "shards[0].host"),
        ([entry("s1", port=0)], [], "shards[0].port"),
        ([entry("s1", application_port=70000)], [], "shards[0].application_port"),
        ([entry("s1", database=" ")], [], "shards[0].database"),
        ([entry("s1"), entry("s2", host="s1.example")], [], "shards[1].host"),
        ([entry("s1")], [entry("r1", host="s1.example")], "routers[0].host"),
    ],
)
def test_members_that_cannot_be_are_refused(shards: t.Any, routers: t.Any, option: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_members(params(shards, routers))
    assert error.value.facts["option"] == option


def test_how_members_reach_each_other_has_no_password() -> None:
    access = parse_access({"member_user": "mover", "member_ssl_mode": "verify-full", "member_ca_cert": "/etc/ca.pem"})
    conninfo = access.conninfo(Member("s1", "10.0.0.1", 5433, "it's"))
    assert "password" not in conninfo
    assert "user=mover" in conninfo
    assert r"dbname=it\'s " in conninfo
    assert Access().parameters(Member("s1", "h")) == {
        "host": "h",
        "port": "5432",
        "dbname": "postgres",
        "sslmode": "prefer",
    }
    with pytest.raises(OptionError, match="member_ca_cert"):
        parse_access({"member_user": "mover", "member_ssl_mode": "verify-ca", "member_ca_cert": None})


@pytest.mark.parametrize("seconds", [0.0, 4000.0])
def test_a_time_limit_has_its_limits(seconds: float) -> None:
    with pytest.raises(OptionError):
        parse_timeout({"timeout_s": seconds})


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


async def connecting(members: list[Member], timeout_s: float) -> HeadroomError:
    async with Members(members, Login(password="secret"), timeout_s) as all_members:
        with pytest.raises(HeadroomError) as error:
            await all_members.each(lambda name: all_members.rows(name, "SELECT 1"))
        return error.value


def test_a_member_that_refuses_is_named_and_the_others_too() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port_of(free)
        members = [Member("s1", "127.0.0.1", port), Member("s2", "127.0.0.1", port, "other")]
        error = asyncio.run(connecting(members, 5.0))
    assert str(error) == (
        f"Failed to connect to s1 on 127.0.0.1:{port}: Connection refused. Check host and port, and that the server runs there."
    )
    assert error.code == "connection_refused"
    assert [one["member"] for one in error.result["errors"]] == ["s2"]


def test_a_member_that_says_nothing_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        error = asyncio.run(connecting([Member("s1", "127.0.0.1", port_of(silent))], 0.3))
    assert time.monotonic() - begun < 2
    assert error.code == "timeout"
    assert "no answer within 0.3 s" in str(error)


def test_the_lock_of_a_cluster_is_a_number_that_the_server_shows_as_it_is() -> None:
    keys = {Lock(Members([], Login()), name).key for name in ("a", "b", "shards")}
    assert len(keys) == 3
    assert all(0 <= key < 1 << 63 for key in keys)


class Answering:
    """A member whose long statement never ends, and that answers others as often as it is told."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.closed = False

    async def execute(self, query: str, _params: t.Any = None) -> t.Any:
        """Answer, or not."""
        if query == "long" or not self.left:
            await asyncio.Event().wait()
        self.left -= 1
        raise MemberError("Failed to query s1: there are too many clients.", code="too_many_connections", member="s1")


@pytest.mark.parametrize(("answers", "limit_s", "why"), [(0, 60.0, "to anything else"), (9999, 1.0, "within 1 s")])
def test_a_long_statement_is_given_up_once_the_member_answers_nothing_else(
    monkeypatch: pytest.MonkeyPatch, answers: int, limit_s: float, why: str
) -> None:
    member = Answering(answers)

    async def connection(*_which: t.Any) -> t.Any:
        return member

    async def closed(*_which: t.Any) -> None:
        return None

    monkeypatch.setattr(members_module, "ASK_S", 0.05)
    monkeypatch.setattr(members_module, "SILENCE_S", 0.3)
    monkeypatch.setattr(members_module, "cut", lambda _connection: None)
    monkeypatch.setattr(Members, "connection", connection)
    monkeypatch.setattr(Members, "_close", closed)

    async def work() -> None:
        await Members([Member("s1", "s1.example", 5432)], Login(), 0.02).rows("s1", "long", timeout_s=limit_s)

    with pytest.raises(HeadroomError, match=why) as error:
        asyncio.run(work())
    assert error.value.code == "timeout"
    assert (member.left < answers) == bool(answers)
