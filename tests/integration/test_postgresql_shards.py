# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shards of the lab as an operator and an application see them: declared, routed to, rebalanced and drained by playbooks."""

from __future__ import annotations

import collections
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import INVENTORIES, ROOT, STATE, Lab

SHARDS = ("shard1", "shard2", "shard3")
ROUTER = "router1"
# lab-only, the same as in inventories/lab/group_vars/sharded.yml
PASSWORDS = ("lab-only-administration", "lab-only-members", "lab-only-application")
ROWS = 2000


def sql(lab: Lab, host: str, statements: str, check: bool = True) -> str:
    """Run SQL in the sharded database of a member."""
    return lab.run(host, "runuser", "-u", "postgres", "--", "psql", "-XAtq", "app", stdin=statements, check=check)


def placements(lab: Lab, host: str = ROUTER) -> dict[str, int]:
    """Return shard to its number of buckets, as a member has it."""
    rows = sql(lab, host, "SELECT shard, count(*) FROM headroom.bucket GROUP BY shard").splitlines()
    return {shard: int(count) for shard, count in (row.split("|") for row in rows)}


def rows_of(lab: Lab) -> dict[str, int]:
    """Return shard to its number of rows."""
    return {shard: int(sql(lab, shard, "SELECT count(*) FROM public.orders")) for shard in SHARDS}


@pytest.fixture
def users(lab: Lab) -> Iterator[Lab]:
    """The lab with these rows alone on its shards, which are gone, and no move in flight, after the test."""
    sql(lab, ROUTER, "DELETE FROM public.orders")
    sql(
        lab,
        ROUTER,
        f"INSERT INTO public.orders (user_id, id, note) SELECT n, 1, 'of ' || n FROM generate_series(1, {ROWS}) n",
    )
    yield lab
    lab.play("rebalance.yml", postgresql_shards_rebalance_state="cleaned", postgresql_shards_retire_now=True)
    sql(lab, ROUTER, "DELETE FROM public.orders")


def test_rows_written_through_the_router_lie_where_the_map_says(users: Lab) -> None:
    held = rows_of(users)
    assert sum(held.values()) == ROWS
    assert all(held.values())
    assert sql(users, ROUTER, "SELECT count(*) FROM public.orders") == str(ROWS)

    for key in (1, 42, ROWS):
        shard = sql(users, ROUTER, f"SELECT shard FROM headroom.route('users', '{key}')")
        assert sql(users, shard, f"SELECT note FROM public.orders WHERE user_id = {key}") == f"of {key}"
        others = [other for other in SHARDS if other != shard]
        assert [sql(users, other, f"SELECT count(*) FROM public.orders WHERE user_id = {key}") for other in others] == [
            "0"
        ] * 2


def test_a_row_for_another_shard_fails_by_itself(users: Lab) -> None:
    shard = sql(users, ROUTER, "SELECT shard FROM headroom.route('users', '1')")
    other = next(one for one in SHARDS if one != shard)

    sql(users, other, "INSERT INTO public.orders (user_id, id) VALUES (1, 2)", check=False)

    assert sql(users, other, "SELECT count(*) FROM public.orders WHERE user_id = 1") == "0"


def test_a_shard_is_drained_and_gets_its_share_again(users: Lab) -> None:
    before = placements(users)
    leaf = "orders_b" + sql(users, ROUTER, "SELECT min(number) FROM headroom.bucket WHERE shard = 'shard3'")
    sql(users, "shard3", f"ALTER TABLE {leaf} SET (fillfactor = 70); GRANT SELECT (note) ON {leaf} TO PUBLIC")
    planned = users.play("shard_drain.yml", "--check", shard="shard3").results("until each shard has its share")[
        "router1"
    ]
    assert placements(users) == before
    users.play("shard_drain.yml", shard="shard3")

    assert "shard3" not in placements(users)
    assert rows_of(users)["shard3"] == 0
    assert sql(users, ROUTER, "SELECT count(*) FROM public.orders") == str(ROWS)
    assert planned["changed"]
    owner = sql(users, ROUTER, f"SELECT shard FROM headroom.bucket WHERE number = {leaf.removeprefix('orders_b')}")
    shown = f"""SELECT reloptions, (SELECT attacl::text LIKE '{{=r/%' FROM pg_attribute WHERE attrelid = c.oid AND attname = 'note')
        FROM pg_class c WHERE oid = '{leaf}'::regclass"""
    assert sql(users, owner, shown) == "{fillfactor=70}|t"
    sql(users, owner, f"ALTER TABLE {leaf} RESET (fillfactor); REVOKE SELECT (note) ON {leaf} FROM PUBLIC")

    # the inventory says active
    users.play("shards.yml")
    users.play("rebalance.yml", postgresql_shards_threshold=0.2)

    after = placements(users)
    assert sum(after.values()) == sum(before.values())
    assert after["shard3"] > 0
    assert sql(users, ROUTER, "SELECT count(*), count(DISTINCT user_id) FROM public.orders") == f"{ROWS}|{ROWS}"
    assert (
        collections.Counter(map(json.dumps, (placements(users, shard) for shard in SHARDS))).most_common(1)[0][1] == 3
    )


def test_what_an_interrupted_switch_left_prepared_ends_by_itself_as_decided(lab: Lab) -> None:
    moves = "left_over", "decided"
    for move in moves:
        sql(
            lab,
            "shard1",
            f"""
            INSERT INTO headroom.move (id, group_name, bucket, source, target, state)
              VALUES ('{move}', 'users', 0, 'shard1', 'shard2', 'switching');
            BEGIN;
            CREATE TABLE public.{move} ();
            PREPARE TRANSACTION 'headroom_{move}_1_give';
        """,
        )
    try:
        sql(lab, "shard2", "INSERT INTO headroom.decision VALUES ('headroom_decided_1', 'commit', 'decided')")
        deadline = time.monotonic() + 120
        while sql(lab, "shard1", "SELECT count(*) FROM pg_prepared_xacts") != "0":
            assert time.monotonic() < deadline
            time.sleep(1)

        assert (
            sql(lab, "shard1", "SELECT to_regclass('public.left_over') IS NULL, to_regclass('public.decided') IS NULL")
            == "t|f"
        )
        assert sql(lab, "shard2", "SELECT decided FROM headroom.decision WHERE move_id = 'left_over'") == "rollback"
    finally:
        for move in moves:
            sql(lab, "shard1", f"ROLLBACK PREPARED 'headroom_{move}_1_give'", check=False)
        sql(lab, "shard1", "DROP TABLE IF EXISTS public.left_over, public.decided")
        sql(lab, "shard1", "DELETE FROM headroom.move WHERE id IN ('left_over', 'decided')")
        sql(lab, "shard2", "DELETE FROM headroom.decision WHERE move_id IN ('left_over', 'decided')")


def test_the_shards_are_shown_and_drawn(users: Lab, tmp_path: Path) -> None:
    page = tmp_path / "shards.html"
    users.play("shard_info.yml", "--check", postgresql_shards_report_file=str(page))
    assert not page.exists()

    play = users.play("shard_info.yml", postgresql_shards_report_file=str(page))

    assert play.changed() == []
    assert play.results("Show what was seen")[ROUTER]["msg"][0].startswith("3 shards hold 64 buckets at epoch ")
    text = page.read_text()
    assert text.count('<rect class="seg') == 64
    assert [shard for shard in SHARDS if f"<title>{shard}</title>" not in text] == []
    assert [password for password in PASSWORDS if password in text] == []


def test_an_unknown_shard_is_refused_in_one_sentence(lab: Lab) -> None:
    play = lab.play("shard_drain.yml", shard="shard9", fails=True)

    assert play.messages()[0].startswith("Variable shard has the value 'shard9': give one of ")
    assert play.changed() == []


def test_no_password_shows_or_lies_open(lab: Lab) -> None:
    done = subprocess.run(
        [
            "ansible-playbook",
            *(f"--inventory={path}" for path in INVENTORIES),
            "playbooks/shards.yml",
            "-vvv",
            "--diff",
        ],
        capture_output=True,
        text=True,
        env=lab.environment,
        cwd=ROOT,
        timeout=600,
        check=True,
    )
    shown = done.stdout + done.stderr
    assert set(re.findall(r"changed=(\d+)", shown)) == {"0"}
    assert [password for password in PASSWORDS if password in shown] == []
    for host in (*SHARDS, ROUTER):
        for table in ("pg_subscription", "pg_foreign_server", "pg_user_mapping"):
            told = sql(lab, host, f"SELECT * FROM pg_catalog.{table}")
            assert [password for password in PASSWORDS if password in told] == []
        found = lab.run(
            host,
            "sh",
            "-c",
            "grep -rlE 'lab-only-(administration|members|application)' /etc /var/log /var/lib/postgresql /tmp || true",
        )
        assert found.splitlines() == ["/var/lib/postgresql/.pgpass"]
        assert lab.run(host, "stat", "-c", "%U %a", "/var/lib/postgresql/.pgpass") == "postgres 600"
    assert (STATE / "tls" / "shards" / "ca.key").stat().st_mode & 0o77 == 0
