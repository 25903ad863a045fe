# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shards are declared by playbooks on real servers, in databases of their own; killed, doubled and wrong runs change nothing or go on.

The servers are those of the lab, or what ``HEADROOM_SHARDS`` says: JSON with ``servers``, four times name, host and port, and
``login``, options to log in with as a superuser.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import INVENTORIES, ROOT, STATE, Play, kill, until

DATABASE = "headroom_map_test"
# lab-only, the same as in inventories/lab/group_vars/sharded.yml
LAB = {
    "servers": [
        {"name": "s1", "host": "10.77.0.51", "port": 5432},
        {"name": "s2", "host": "10.77.0.52", "port": 5432},
        {"name": "s3", "host": "10.77.0.53", "port": 5432},
        {"name": "r1", "host": "10.77.0.61", "port": 5432},
    ],
    "login": {
        "login_user": "headroom_shards",
        "login_password": "lab-only-administration",
        "ssl_mode": "verify-full",
        "ca_cert": str(STATE / "tls" / "shards" / "ca.crt"),
    },
    "members": {"member_ssl_mode": "require"},
    "first_database": "app",
}
USERS = {
    "name": "users",
    "strategy": "hash",
    "key_type": "bigint",
    "buckets": 64,
    "tables": [
        {
            "name": "public.users",
            "key": "id",
            "ddl": [
                "CREATE TABLE public.users (id bigint PRIMARY KEY, name text NOT NULL DEFAULT 'nobody')",
                "CREATE INDEX users_name ON public.users (name)",
            ],
        },
        {
            "name": "public.orders",
            "key": "user_id",
            "ddl": "CREATE TABLE public.orders (user_id bigint, number int, note text, PRIMARY KEY (user_id, number))",
        },
    ],
}
ACCOUNTS = {
    "name": "accounts",
    "strategy": "range",
    "key_type": "integer",
    "bounds": [1000, 2000],
    "tables": [{"name": "bank.accounts", "key": "id"}],
}
SHARDS = ("s1", "s2", "s3")


class Members:
    """Three shards and a router, with empty databases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        given = json.loads(os.environ["HEADROOM_SHARDS"]) if os.environ.get("HEADROOM_SHARDS") else LAB
        self.servers = {server["name"]: server for server in given["servers"]}
        self.login = given["login"]
        self.others = given.get("members", {})
        self.first_database = given.get("first_database", "postgres")

    def conninfo(self, name: str, database: str = DATABASE) -> str:
        """Return how to log in to a member."""
        server, login = self.servers[name], self.login
        return psycopg.conninfo.make_conninfo(
            host=server["host"],
            port=server["port"],
            dbname=database,
            user=login["login_user"],
            password=login.get("login_password"),
            sslmode=login.get("ssl_mode", "prefer"),
            sslrootcert=login.get("ca_cert"),
            connect_timeout=30,
            client_encoding="UTF8",
        )

    def sql(self, name: str, query: str, *params: Any, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run statements on a member."""
        with psycopg.connect(self.conninfo(name, database), autocommit=True) as connection:
            cursor = connection.execute(query, params or None)
            return cursor.fetchall() if cursor.description else []

    def make(self, options: str = "") -> None:
        """Make the databases anew."""
        self.drop_all()
        for name in self.servers:
            self.sql(name, f"CREATE DATABASE {DATABASE} {options}", database=self.first_database)

    def drop_all(self) -> None:
        """Drop the databases of all members, and first what would keep a slot of another one busy."""
        for name in self.servers:
            if self.sql(name, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE, database=self.first_database):
                subscriptions = (
                    "SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = %s"
                )
                for (one,) in self.sql(name, subscriptions, DATABASE):
                    for change in (
                        f"ALTER SUBSCRIPTION {one} DISABLE",
                        f"ALTER SUBSCRIPTION {one} SET (slot_name = NONE)",
                    ):
                        self.sql(name, change)
                    self.sql(name, f"DROP SUBSCRIPTION {one}")
        for name in self.servers:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Drop the database of a member."""
        slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s"
        self.sql(name, slots, DATABASE, database=self.first_database)
        self.sql(name, f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", database=self.first_database)

    def entries(self, *names: str) -> list[dict[str, Any]]:
        """Return members as options name them."""
        return [dict(self.servers[name]) for name in names]

    def options(self, module: str = "map", /, **options: Any) -> dict[str, Any]:
        """Return the options of a module, with three shards and a router by default."""
        base = {"shards": self.entries(*SHARDS), "routers": self.entries("r1"), "login_db": DATABASE, **self.login}
        return {**base, **(self.others if module in ("map", "rebalance") else {}), **options}

    def start(self, tasks: list[dict[str, Any]], *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a playbook of these tasks."""
        handle = self.directory / f"play{len(list(self.directory.iterdir()))}.json"
        handle.write_text(
            json.dumps([{"name": "Play", "hosts": "localhost", "gather_facts": False, "tasks": tasks}]),
            encoding="utf-8",
        )
        inventories = [path for path in INVENTORIES if path.exists()]
        return subprocess.Popen(
            ["ansible-playbook", *(f"--inventory={path}" for path in inventories), *arguments, str(handle)],
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
                **environment,
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def play(self, tasks: list[dict[str, Any]], *arguments: str) -> Play:
        """Run a playbook of these tasks to its end."""
        process = self.start(tasks, *arguments)
        out, err = process.communicate(timeout=300)
        play = Play(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        assert play.data, play.text[-3000:]
        return play

    def task(self, module: str = "map", /, **options: Any) -> dict[str, Any]:
        """Return a task of one of the modules."""
        return {
            "name": "Run",
            f"headroom.scale.postgresql_shard_{module}": self.options(module, **options),
            "ignore_errors": True,
        }

    def declare(self, *arguments: str, fails: bool = False, **options: Any) -> dict[str, Any]:
        """Declare the shards, and return the module's result, which must be as expected."""
        result = self.play([self.task(**options)], *arguments).results("Run")["localhost"]
        assert result.get("failed", False) == fails, result["msg"]
        return result

    def info(self, **options: Any) -> dict[str, Any]:
        """Look at the shards."""
        return self.play([self.task("info", **options)]).results("Run")["localhost"]

    def traces(self) -> list[str]:
        """Return the members that have anything of a map."""
        query = "SELECT to_regnamespace('headroom') IS NOT NULL OR EXISTS (SELECT FROM pg_foreign_server)"
        return [name for name in self.servers if self.sql(name, query)[0][0]]

    def rows(self, table: str) -> dict[str, int]:
        """Return the number of a table's rows on each shard and through the router."""
        return {name: self.sql(name, f"SELECT count(*) FROM {table}")[0][0] for name in self.servers}


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    """Members with empty databases, which are gone afterwards."""
    found = Members(tmp_path)
    found.make()
    yield found
    found.drop_all()


def bank(members: Members, *, wrong: bool = False) -> None:
    """Make the databases of an application that shards by itself, with an account on the wrong shard if asked."""
    for number, name in enumerate(SHARDS):
        members.sql(
            name,
            "CREATE SCHEMA bank; CREATE TABLE bank.accounts (id integer PRIMARY KEY, balance numeric NOT NULL DEFAULT 100);"
            f"INSERT INTO bank.accounts SELECT generate_series({number * 1000}, {number * 1000 + 499})",
        )
    if wrong:
        members.sql("s2", "INSERT INTO bank.accounts VALUES (7), (2999)")


# --- declared


def test_it_is_declared_once_and_then_as_declared(members: Members) -> None:
    planned = members.declare("--check", "--diff", groups=[USERS])
    assert planned["changed"]
    assert planned["diff"]["before"] == "no map\n"
    assert "group users: hash of bigint, 64 buckets" in planned["diff"]["after"]
    assert members.traces() == []
    assert members.sql("s1", "SELECT to_regclass('public.users')") == [(None,)]

    done = members.declare(groups=[USERS])
    assert done["changed"]
    assert done["plan"] == planned["plan"]
    assert done["map"] == planned["map"]
    assert sorted(done["summary"]["buckets"].values()) == [21, 21, 22]
    again = members.declare(groups=[USERS])
    assert not again["changed"]
    assert again["plan"] == []
    assert again["diff"]["before"] == again["diff"]["after"]

    # what goes in through the router lies where the map, PostgreSQL and headroom.route say
    members.sql("r1", "INSERT INTO users SELECT generate_series(1, 1000)")
    members.sql("r1", "INSERT INTO orders SELECT n, n FROM generate_series(1, 1000) n")
    found = members.rows("users")
    assert found["r1"] == 1000
    assert sum(found[name] for name in SHARDS) == 1000
    for name in SHARDS:
        strayed = "SELECT count(*) FROM users WHERE (headroom.route('users', id)).shard <> %s"
        assert members.sql(name, strayed, name) == [(0,)]
        assert members.sql(name, "SELECT count(*) FROM users u JOIN orders o ON o.user_id = u.id") == [(found[name],)]
    (conninfo,) = members.sql("r1", "SELECT (headroom.route('users', 42)).conninfo")[0]
    route = psycopg.conninfo.conninfo_to_dict(conninfo)
    assert int(route["port"]) in {server["port"] for server in members.servers.values()}
    assert route["dbname"] == DATABASE
    plan = "\n".join(row[0] for row in members.sql("r1", "EXPLAIN SELECT * FROM users WHERE id = 42"))
    assert plan.count("Foreign Scan") == 1


def test_a_row_for_another_shard_is_refused_by_the_shard(members: Members) -> None:
    members.declare(groups=[USERS])
    (shard,) = members.sql("s1", "SELECT (headroom.route('users', 42)).shard")[0]
    for name in SHARDS:
        if name == shard:
            members.sql(name, "INSERT INTO users VALUES (42)")
        else:
            with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
                members.sql(name, "INSERT INTO users VALUES (42)")


def test_a_shard_joins_without_buckets_and_leaves_only_without_them(members: Members) -> None:
    two = members.declare(shards=members.entries("s1", "s2"), groups=[USERS])
    # one playbook declares it and rebalances: its check run comes so far before there is a map
    foretold = rebalance(members, "--check", load={"rows": 1})
    assert {move["target"] for move in foretold["plan"]["moves"]} == {"s3"}
    assert foretold["plan"]["left_out"] == ["Whether s3 can take buckets is looked at once the map is there."]
    three = members.declare(groups=[USERS])
    assert three["changed"]
    assert three["summary"]["buckets"] == {**two["summary"]["buckets"], "s3": 0}
    assert three["epoch"] == two["epoch"]
    refused = members.declare(fails=True, shards=members.entries("s1", "s3"), groups=[USERS])
    assert "the shard s2 is not declared any more, and still holds 32 buckets of users" in refused["msg"]
    back = members.declare(shards=members.entries("s1", "s2"), groups=[USERS])
    assert back["changed"]
    assert back["summary"]["buckets"] == two["summary"]["buckets"]


def test_what_was_broken_on_a_router_is_mended(members: Members) -> None:
    members.declare(groups=[ACCOUNTS_WITH_DDL])
    members.sql("r1", "INSERT INTO bank.accounts SELECT generate_series(500, 2500, 10)")
    members.sql("r1", "DROP FOREIGN TABLE bank.accounts_b1")
    mended = members.declare(groups=[ACCOUNTS_WITH_DDL])
    assert [step["action"] for step in mended["plan"]] == ["repoint"]
    assert members.rows("bank.accounts")["r1"] == 201


ACCOUNTS_WITH_DDL = {
    **ACCOUNTS,
    "tables": [
        {
            **ACCOUNTS["tables"][0],
            "ddl": "CREATE TABLE bank.accounts (id integer PRIMARY KEY, balance numeric NOT NULL DEFAULT 100)",
        }
    ],
}


# --- tables that are there


def test_a_table_with_rows_becomes_a_sharded_one(members: Members) -> None:
    for name in members.servers:
        members.sql(name, "DROP ROLE IF EXISTS headroom_map_test")
        members.sql(name, "CREATE ROLE headroom_map_test")
    members.sql(
        "s2",
        """
        CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL DEFAULT 'nobody', number bigserial, born date);
        COMMENT ON COLUMN users.born IS 'day of birth';
        CREATE INDEX users_lower ON users (lower(name)) WHERE born IS NOT NULL;
        ALTER TABLE users ADD CONSTRAINT named CHECK (name <> '');
        GRANT SELECT ON users TO PUBLIC;
        GRANT INSERT ON users TO headroom_map_test;
        INSERT INTO users (id, name) SELECT n, 'user ' || n FROM generate_series(1, 5000) n;
        """,
    )
    before = members.sql("s2", "SELECT sum(hashtextextended(users::text, 0)) FROM users")
    group = {**USERS, "tables": [{"name": "public.users", "key": "id"}]}
    planned = members.declare("--check", groups=[group])
    assert "turn public.users and its rows" in json.dumps(planned["plan"])
    done = members.declare(groups=[group])
    assert done["rewritten"] == [{"table": "public.users", "shard": "s2", "rows": 5000}]
    assert done["summary"]["buckets"] == {"s1": 0, "s2": 64, "s3": 0}
    assert members.sql("s2", "SELECT sum(hashtextextended(users::text, 0)) FROM users") == before
    assert members.rows("users") == {"s1": 0, "s2": 5000, "s3": 0, "r1": 5000}
    for name in ("s1", "s2"):
        assert members.sql(name, "SELECT relkind FROM pg_class WHERE oid = 'users'::regclass") == [("p",)]
        indexes = members.sql(name, "SELECT indexname FROM pg_indexes WHERE tablename = 'users' ORDER BY 1")
        assert indexes == [("users_lower",), ("users_pkey",)]
        assert members.sql(name, "SELECT has_table_privilege('public', 'users', 'SELECT')") == [(True,)]
        assert members.sql(name, "SELECT col_description('users'::regclass, 4)") == [("day of birth",)]
    assert members.sql("s2", "INSERT INTO users (id) VALUES (6000) RETURNING number") == [(5001,)]
    with pytest.raises(psycopg.errors.CheckViolation, match="named"):
        members.sql("s2", "INSERT INTO users (id, name) VALUES (6001, '')")
    # an application's role may do through the router what it may there, and no more
    members.sql("r1", "SET ROLE headroom_map_test; INSERT INTO users (id, name, number) VALUES (7000, 'new', 1)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        members.sql("r1", "SET ROLE headroom_map_test; DELETE FROM users")
    assert members.rows("users")["r1"] == 5002
    assert not members.declare(groups=[group])["changed"]
    for name in members.servers:
        members.drop(name)
        members.sql(name, "DROP ROLE headroom_map_test", database=members.first_database)


def test_foreign_keys_of_a_group_are_those_of_its_buckets(members: Members) -> None:
    members.sql(
        "s1",
        """
        CREATE TABLE users (id bigint PRIMARY KEY);
        CREATE TABLE orders (user_id bigint REFERENCES users ON DELETE CASCADE, number int, PRIMARY KEY (user_id, number));
        INSERT INTO users SELECT generate_series(1, 100);
        INSERT INTO orders SELECT n % 100 + 1, n FROM generate_series(1, 1000) n;
        """,
    )
    tables = [{"name": "public.users", "key": "id"}, {"name": "public.orders", "key": "user_id"}]
    alone = members.declare(fails=True, groups=[{**USERS, "tables": tables[1:]}])
    assert "the foreign key orders_user_id_fkey of public.orders would reach across shards" in alone["msg"]
    done = members.declare(groups=[{**USERS, "tables": tables}])
    assert done["changed"]
    assert members.sql("s1", "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0") == [(64,)]
    members.sql("s1", "DELETE FROM users WHERE id = 5")
    assert members.rows("orders")["r1"] == 990
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        members.sql("r1", "INSERT INTO orders VALUES (12345, 1)")


def test_databases_that_an_application_sharded_are_taken_over(members: Members) -> None:
    bank(members, wrong=True)
    refused = members.declare(fails=True, groups=[ACCOUNTS])
    assert "2 of 1502 rows do not lie where the declared function puts them" in refused["msg"]
    (row,) = [error for error in refused["errors"] if error["code"] == "misplaced_rows" and "table" in error]
    assert (row["table"], row["shard"], row["rows"]) == ("bank.accounts", "s2", 2)
    assert (row["keys"], row["belongs_to"]) == ([7, 2999], ["s1", "s3"])
    assert members.traces() == []
    assert members.sql("s2", "SELECT relkind FROM pg_class WHERE oid = 'bank.accounts'::regclass") == [("r",)]

    members.sql("s2", "DELETE FROM bank.accounts WHERE id IN (7, 2999)")
    done = members.declare(groups=[ACCOUNTS])
    assert done["changed"]
    assert done["summary"]["buckets"] == {"s1": 1, "s2": 1, "s3": 1}
    assert members.rows("bank.accounts") == {"s1": 500, "s2": 500, "s3": 500, "r1": 1500}
    assert not members.declare(groups=[ACCOUNTS])["changed"]


# --- runs that are killed, doubled or kept waiting


@pytest.mark.parametrize(
    ("nth", "when", "done"), [(1, "before", 0), (2, "before", 1), (3, "before", 2), (4, "before", 3), (4, "after", 4)]
)
def test_a_run_that_is_killed_is_run_again(members: Members, nth: int, when: str, done: int) -> None:
    """At a commit: so many members have what was declared, and the rest nothing of it."""
    bank(members)
    point = {"driver": "psycopg", "pattern": "^COMMIT", "when": when, "nth": nth, "to": []}
    fault = members.directory / "fault"
    fault.mkdir()
    (fault / "point.json").write_text(json.dumps(point), encoding="utf-8")
    run = members.start(
        [members.task(groups=[ACCOUNTS, USERS])],
        HEADROOM_FAULT=str(fault),
        PYTHONPATH=str(ROOT / "tests" / "chaos" / "faults"),
    )
    until((fault / "reached").exists, 180)
    kill(run.pid)
    run.communicate()

    def with_map() -> list[str]:
        query = "SELECT to_regclass('headroom.cluster') IS NOT NULL"
        return [name for name in members.servers if members.sql(name, query)[0][0]]

    until(lambda: len(with_map()) == done, 20)
    again = members.declare(groups=[ACCOUNTS, USERS])
    assert again["changed"] == (done < 4)
    assert members.rows("bank.accounts") == {"s1": 500, "s2": 500, "s3": 500, "r1": 1500}
    assert not members.declare(groups=[ACCOUNTS, USERS])["changed"]


def test_a_member_that_is_lost_at_its_commit_is_named_and_taken_up(members: Members) -> None:
    bank(members)
    fault = members.directory / "fault"
    fault.mkdir()
    point = {"driver": "psycopg", "pattern": "^COMMIT", "when": "before", "nth": 1, "to": []}
    (fault / "point.json").write_text(json.dumps(point), encoding="utf-8")
    run = members.start(
        [members.task(groups=[ACCOUNTS])],
        HEADROOM_FAULT=str(fault),
        PYTHONPATH=str(ROOT / "tests" / "chaos" / "faults"),
    )
    until((fault / "reached").exists, 180)
    lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND state = 'idle in transaction'"
    members.sql("s2", lost, DATABASE)
    (fault / "go").touch()
    out, err = run.communicate(timeout=120)
    result = Play(subprocess.CompletedProcess(run.args, run.returncode, out, err)).results("Run")["localhost"]
    assert result["failed"]
    assert result["changed"]
    assert result["msg"].startswith("Failed to commit on s2 on ")
    assert "Changed so far: s1, s3. Run it again to go on." in result["msg"]
    again = members.declare(groups=[ACCOUNTS])
    assert again["changed"]
    assert {step["member"] for step in again["plan"]} == {"s2", "r1"}
    assert members.rows("bank.accounts") == {"s1": 500, "s2": 500, "s3": 500, "r1": 1500}


def test_a_table_in_use_keeps_everything_as_it_was(members: Members) -> None:
    bank(members)
    with psycopg.connect(members.conninfo("s3")) as reader:
        reader.execute("SELECT count(*) FROM bank.accounts")
        refused = members.declare(fails=True, groups=[ACCOUNTS], lock_timeout_s=0.5)
    assert "it was in use for all of 0.5 s. Nothing was changed." in refused["msg"]
    assert members.traces() == []


def test_of_two_runs_at_once_one_is_refused(members: Members) -> None:
    bank(members)
    with psycopg.connect(members.conninfo("s2")) as reader:
        reader.execute("SELECT count(*) FROM bank.accounts")
        results: list[dict[str, Any]] = []
        first = threading.Thread(target=lambda: results.append(members.declare(groups=[ACCOUNTS], lock_timeout_s=60)))
        first.start()
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
        until(lambda: members.sql("s1", held, DATABASE)[0][0])
        second = members.declare(fails=True, groups=[ACCOUNTS])
        reader.rollback()
        first.join()
    assert "another run works on it" in second["msg"]
    assert results[0]["changed"], results[0]["msg"]


# --- what is refused


def test_bad_input_is_one_sentence_and_changes_nothing(members: Members) -> None:
    members.sql("s1", "CREATE TABLE users (number bigint PRIMARY KEY)")
    table = {"name": "public.users", "key": "id"}
    cases = {
        "has no column id; its columns are number": {"groups": [{**USERS, "tables": [table]}]},
        "comes from a sequence": {
            "groups": [
                {
                    **USERS,
                    "tables": [
                        {"name": "public.t", "key": "id", "ddl": "CREATE TABLE public.t (id bigserial PRIMARY KEY)"}
                    ],
                }
            ]
        },
        "does not make a plain table of that name": {
            "groups": [
                {**USERS, "tables": [{"name": "public.t", "key": "id", "ddl": "CREATE TABLE public.other (id bigint)"}]}
            ]
        },
        "no shard has the table public.t": {"groups": [{**USERS, "tables": [{"name": "public.t", "key": "id"}]}]},
        "has no role nobody": {"member_user": "nobody"},
        "it is declared before": {"shards": members.entries("s1", "s1")},
        "give at least one active shard a weight above 0": {
            "shards": [{**one, "weight": 0} for one in members.entries(*SHARDS)]
        },
        "value of strategy must be one of": {"groups": [{**USERS, "strategy": "modulo"}]},
        "does not exist. Create the database first": {"login_db": "no_such_database"},
    }
    play = members.play(
        [{**members.task(**options), "name": f"Case {number}"} for number, options in enumerate(cases.values())]
    )
    for number, says in enumerate(cases):
        result = play.results(f"Case {number}")["localhost"]
        assert result["failed"], says
        assert says in result["msg"]
        assert "\n" not in result["msg"]
    assert members.traces() == []


def test_a_map_that_was_edited_by_hand_is_refused(members: Members) -> None:
    members.declare(groups=[ACCOUNTS_WITH_DDL])
    members.sql("s2", "UPDATE headroom.shard SET weight = 7 WHERE name = 's1'")
    refused = members.declare(fails=True, groups=[ACCOUNTS_WITH_DDL])
    assert "it was edited by hand, of shard s1 the weight is 7.0 there and 1.0 at s1" in refused["msg"]
    members.sql("s2", "UPDATE headroom.shard SET weight = 1 WHERE name = 's1'")
    members.sql("s2", "UPDATE headroom.bucket SET shard = 's1', epoch = 9 WHERE number = 1 AND shard <> 's1'")
    members.sql(
        "s2", "UPDATE headroom.bucket SET shard = 's2', epoch = 9 WHERE number = 1 AND shard = 's1' AND epoch < 9"
    )
    refused = members.declare(fails=True, groups=[ACCOUNTS_WITH_DDL])
    assert "Was the map edited by hand?" in refused["msg"] or "or the map edited?" in refused["msg"]


# --- moving

MOODS = {
    "name": "moods",
    "strategy": "range",
    "key_type": "integer",
    "bounds": [1000],
    "placement": ["s1", "s2"],
    "tables": [
        {
            "name": "public.Moods",
            "key": "id",
            "ddl": """
                CREATE TABLE public."Moods" (id integer, at timestamptz, "say ""hi"", 50%" text, mood public.mood, moods public.mood[],
                  feeling public.feeling, pair public.pair, spans public.spans, doc json, docb jsonb, page xml, during tstzrange,
                  amount money, took interval, raw bytea, words regconfig, counted integer NOT NULL DEFAULT 0,
                  doubled integer GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, at))""",
        }
    ],
}
MOODS_SQL = """
INSERT INTO "Moods"
SELECT n, '2026-01-01 00:00Z'::timestamptz + n * interval '1 minute', 'of ' || n, 'sad', '{happy,sad}', 'happy',
  row(n, 'sad')::pair, '[sad,happy]', '{"a": [1]}', '{"a": 1}', '<a>1</a>', tstzrange(now(), now() + '1 day'), '12.50',
  '1 day 02:03', '\\x00ff', 'german'
FROM generate_series(1, 900) n
"""
MOODS_UPDATE = """
UPDATE "Moods" SET counted = counted + 1, mood = 'happy', pair = (1, 'happy'), at = at + interval '1 second' WHERE id = %s"""


class Writer(threading.Thread):
    """Writes rows of the first bucket one after the other through the router, until it is told to stop."""

    def __init__(self, members: Members, query: str) -> None:
        """Take the statement, with the key as its parameter."""
        super().__init__()
        self.members = members
        self.query = query
        self.written = 0
        self.errors: list[str] = []
        self.going = True

    def run(self) -> None:
        """Write."""
        with psycopg.connect(self.members.conninfo("r1"), autocommit=True) as connection:
            while self.going:
                try:
                    self.written += connection.execute(self.query, [self.written % 900 + 1]).rowcount
                except psycopg.Error as error:
                    self.errors.append(str(error))

    def stop(self) -> None:
        """End."""
        self.going = False
        self.join(60)


def counted(members: Members, name: str) -> tuple[int, int]:
    """Return the rows of a member and what was counted in them."""
    return members.sql(name, 'SELECT count(*), coalesce(sum(counted), 0) FROM "Moods"')[0]


def test_a_bucket_of_any_types_moves_and_comes_back_with_what_was_written_since(members: Members) -> None:
    for number, (name, zone) in enumerate(
        zip(members.servers, ("Europe/Berlin", "America/New_York", "Asia/Tokyo", "UTC"), strict=True)
    ):
        # what a type is counted as is another number everywhere
        types = [*(f"waste{one} AS ENUM ('x')" for one in range(number)), "mood AS ENUM ('sad', 'happy')"]
        types += ["pair AS (size integer, mood mood)", "spans AS RANGE (subtype = mood)"]
        script = "; ".join(f"CREATE TYPE {one}" for one in types)
        members.sql(name, f"{script}; CREATE DOMAIN feeling AS mood; ALTER DATABASE {DATABASE} SET timezone = '{zone}'")
    assert len({members.sql(name, "SELECT 'mood'::regtype::oid")[0] for name in SHARDS}) == 3
    members.declare(groups=[MOODS])
    members.sql("r1", MOODS_SQL)
    placed = [{**MOODS, "placement": None}]
    # one takes all, so that nothing is too large for it and is split
    rest = [members.servers["s2"], {**members.servers["s3"], "weight": 0}]
    drained = {"shards": [{**members.servers["s1"], "state": "draining"}, *rest], "read_grace_s": 0}

    # what cannot log in later is found before anything is copied, in check mode too
    members.sql("s2", f"REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC")
    refused = members.play([members.task("rebalance", **drained)], "--check").results("Run")["localhost"]
    assert refused["failed"]
    assert "s1 cannot log in to s2 as the members do" in refused["msg"] + str(refused["errors"])
    members.sql("s2", f"GRANT CONNECT ON DATABASE {DATABASE} TO PUBLIC")

    writer = Writer(members, MOODS_UPDATE)
    writer.start()
    try:
        until(lambda: writer.written > 100, 30)
        moved = rebalance(members, **drained)
        assert [(one["bucket"], one["state"], one["rows"]) for one in moved["moves"]] == [(0, "switched", 900)]
        at = writer.written
        until(lambda: writer.written > at + 1000, 60)
        leaving = members.declare(fails=True, shards=members.entries("s2", "s3"), groups=placed)
        assert "can still be taken back. Declare it with state draining" in leaving["msg"]
        shown = "SELECT bucket, state, rate_bytes_s FROM headroom.progress"
        assert members.sql("s1", shown) == members.sql("s2", shown) == [(0, "switched", None)]
        back = rebalance(members, state="reverted")
        assert [(one["bucket"], one["state"]) for one in back["moves"]] == [(0, "reverted")]
    finally:
        writer.stop()
    assert writer.errors == []
    assert counted(members, "s1") == counted(members, "r1") == (900, writer.written)
    assert members.sql("s1", """SELECT count(*) FROM "Moods" WHERE mood = 'happy' AND pair = (1, 'happy')::pair""") == [
        (900,)
    ]

    # for good, and out with the shard, whatever was once asked of it
    rebalance(members, **drained, revert_window_s=1)
    time.sleep(1)
    due = rebalance(members, "--check", **drained)
    assert (due["changed"], [one["bucket"] for one in due["moves"]]) == (True, [0])
    assert [one["state"] for one in rebalance(members, **drained)["moves"]] == ["retired"]
    assert not rebalance(members, "--check", **drained)["changed"]
    members.sql("s2", "CREATE FOREIGN TABLE headroom.decision_of_s1 (gid text) SERVER headroom_s1")
    assert members.declare(shards=members.entries("s2", "s3"), groups=placed)["changed"]
    assert counted(members, "r1") == (900, writer.written)


ACTS = {
    "name": "acts",
    "strategy": "range",
    "key_type": "integer",
    "bounds": [1000000],
    "placement": ["s1", "s2"],
    "tables": [
        {"name": "public.acts", "key": "id", "ddl": "CREATE TABLE public.acts (id integer PRIMARY KEY, text text)"}
    ],
}


def draining(members: Members) -> list[dict[str, Any]]:
    """Return the shards so that all of the first is to go to the second."""
    first, second, third = (members.servers[name] for name in SHARDS)
    return [{**first, "state": "draining"}, second, {**third, "weight": 0}]


def test_texts_that_are_none_in_any_encoding_move_as_they_are(members: Members) -> None:
    members.make("ENCODING SQL_ASCII TEMPLATE template0 LOCALE 'C'")
    members.declare(groups=[ACTS])
    members.sql("s1", "INSERT INTO acts VALUES (1, E'\\xff\\xc3'), (2, 'a')")
    assert [one["rows"] for one in rebalance(members, shards=draining(members), read_grace_s=0)["moves"]] == [2]
    assert members.sql("s2", "SELECT text::bytea FROM acts WHERE id = 1") == [(b"\xff\xc3",)]


BOOKS = {
    "name": "books",
    "strategy": "range",
    "key_type": "integer",
    "bounds": [1000000],
    "placement": ["s1", "s2"],
    "tables": [
        {
            "name": "public.books",
            "key": "id",
            "ddl": """
                CREATE TABLE public.books (id integer, path public.ltree, isbn public.isbn13, width public.seg, note text,
                  PRIMARY KEY (id, path, isbn) INCLUDE (width))""",
        }
    ],
}


class Emptier(threading.Thread):
    """Truncates the table on the shard that has given its bucket away, while that still shows it."""

    def __init__(self, members: Members) -> None:
        super().__init__()
        self.members = members
        self.answer: Any = None

    def run(self) -> None:
        """Wait for the switch and truncate."""
        query = "SELECT state = 'switched' FROM headroom.move"
        until(lambda: self.members.sql("s1", query) == [(True,)], 60)
        try:
            self.answer = self.members.sql("s1", "TRUNCATE books")
        except psycopg.Error as error:
            self.answer = error.sqlstate


def test_types_of_extensions_move_and_nothing_is_truncated_behind_the_owner(members: Members) -> None:
    # one has no hash, one nothing to send it in binary, and the operators of none are where a session looks by itself
    for name in members.servers:
        members.sql(name, "CREATE EXTENSION ltree; CREATE EXTENSION isn; CREATE EXTENSION seg")
    members.declare(groups=[BOOKS])
    members.sql(
        "s1",
        "INSERT INTO books SELECT n, ('top.n' || n)::ltree, '978-0-393-04002-9', '1.0 .. 2.50', E'a\\tb\\n\\\\N' "
        "FROM generate_series(1, 20000) n",
    )
    # so many that some are written whenever rows are compared, and none by two
    query = "UPDATE books SET note = note || '.', path = path || 'x' WHERE id = %s + {}"
    writers = [Writer(members, query.format(1000 * number)) for number in range(3)]
    emptier = Emptier(members)
    for thread in (*writers, emptier):
        thread.start()
    try:
        until(lambda: min(one.written for one in writers) > 50, 30)
        moved = rebalance(members, shards=draining(members), read_grace_s=4)
    finally:
        for one in writers:
            one.stop()
        emptier.join(120)
    assert [(one["state"], one["rows"]) for one in moved["moves"]] == [("switched", 20000)]
    assert [one.errors for one in writers] == [[]] * 3
    assert emptier.answer == "HR001"
    assert members.rows("books") == {"s1": 0, "s2": 20000, "s3": 0, "r1": 20000}
    written = sum(one.written for one in writers)
    assert members.sql("s2", "SELECT sum(nlevel(path) - 2) FROM books") == [(written,)]
    query = "SELECT id, path, isbn, width, note FROM books ORDER BY id"
    rows = members.sql("s2", query)
    # where nothing is given away any more, it is as free as before
    members.sql("s1", "TRUNCATE books")
    back = rebalance(members, state="reverted", read_grace_s=0)
    assert [one["state"] for one in back["moves"]] == ["reverted"], back
    assert members.sql("s1", query) == rows
    members.sql("s1", "TRUNCATE books")
    assert members.rows("books") == {"s1": 0, "s2": 0, "s3": 0, "r1": 0}


def test_autovacuum_makes_way_for_a_switch(members: Members) -> None:
    members.declare(groups=[ACTS])
    members.sql("s1", "INSERT INTO acts SELECT n, repeat('x', 500) FROM generate_series(1, 30000) n")
    # a page takes it a tenth of a second, so that all take longer than a switch is tried
    members.sql(
        "s1",
        "ALTER TABLE acts_b0 SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, "
        "autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_insert_threshold = 1, "
        "autovacuum_vacuum_insert_scale_factor = 0)",
    )
    working = "SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = 'acts_b0'::regclass"
    members.sql("s1", "ALTER SYSTEM SET autovacuum_naptime = '1s'")
    try:
        members.sql("s1", "SELECT pg_reload_conf()")
        members.sql("s1", "DELETE FROM acts WHERE id % 10 = 0")
        until(lambda: bool(members.sql("s1", working)), 60)
        # the publication ends it too; meanwhile it begins again
        moved = rebalance(members, shards=draining(members), read_grace_s=0, max_rate_bytes_s=3_000_000)
    finally:
        members.sql("s1", "ALTER SYSTEM RESET autovacuum_naptime")
        members.sql("s1", "SELECT pg_reload_conf()")
    assert [(one["bucket"], one["state"], one["rows"]) for one in moved["moves"]] == [(0, "switched", 27000)]
    # it was cancelled, and has not ended by itself
    assert members.sql("s1", "SELECT last_autovacuum FROM pg_stat_all_tables WHERE relname = 'acts_b0'") == [(None,)]


def test_a_server_that_is_too_slow_for_one_attempt_gets_another(members: Members) -> None:
    members.declare(groups=[ACTS])
    members.sql("s1", "INSERT INTO acts SELECT generate_series(1, 100)")
    # the first two times that the leaf is locked for a switch, the row that is to arrive before it takes longer than others may wait
    members.sql("s1", "CREATE SEQUENCE public.slow")
    members.sql(
        "s1",
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN IF EXISTS (SELECT FROM pg_locks "
        "WHERE relation = 'public.acts_b0'::regclass AND mode = 'AccessExclusiveLock' AND granted) AND nextval('public.slow') < 3 "
        "THEN PERFORM pg_sleep(1.5); END IF; RETURN NEW; END $$",
    )
    members.sql("s1", "CREATE TRIGGER slow BEFORE INSERT ON headroom.fence FOR EACH ROW EXECUTE FUNCTION public.slow()")

    (moved,) = rebalance(members, shards=draining(members), read_grace_s=0, max_block_ms=400)["moves"]

    assert (moved["bucket"], moved["state"], moved["rows"]) == (0, "switched", 100)
    assert moved["switch"]["attempts"] >= 3
    assert members.rows("acts")["r1"] == 100


@pytest.mark.parametrize("max_rate_bytes_s", [0, 40_000_000])
def test_rows_of_a_large_bucket_that_differ_are_counted_and_named(members: Members, max_rate_bytes_s: int) -> None:
    members.declare(groups=[ACTS])
    members.sql("s1", "INSERT INTO acts SELECT n FROM generate_series(1, 999999) n")
    members.sql("s1", "ANALYZE acts")

    def corrupt() -> None:
        until(lambda: members.sql("s1", "SELECT step FROM headroom.move") == [("indexes",)], 60)
        # it waits for the index, and what the move does next waits for it
        members.sql("s2", "SET session_replication_role = replica; UPDATE acts_b0 SET text = 'x' WHERE id % 1000 = 1")
        if max_rate_bytes_s:
            rests = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%acts_b0%'"
            for name in ("s1", "s2"):
                until(lambda name=name: bool(members.sql(name, rests)), 60)
        seen.append(True)

    seen: list[bool] = []
    corrupter = threading.Thread(target=corrupt)
    corrupter.start()
    task = members.task("rebalance", shards=draining(members), read_grace_s=0, max_rate_bytes_s=max_rate_bytes_s)
    refused = members.play([task]).results("Run")["localhost"]
    corrupter.join(60)
    assert seen
    assert refused["failed"]
    assert (
        "1000 rows of table public.acts, bucket acts/0, with (id) from (1) to (999001), differ between s1 and s2."
        in refused["msg"]
    )
    assert members.rows("acts")["r1"] == 999_999


def rebalance(members: Members, *arguments: str, **options: Any) -> dict[str, Any]:
    """Rebalance, and return the module's result, which must be no failure."""
    result = members.play([members.task("rebalance", **options)], *arguments).results("Run")["localhost"]
    assert not result.get("failed"), result["msg"]
    return result


# --- looking


def test_the_shards_are_shown_and_keys_looked_up(members: Members) -> None:
    declared = members.declare(groups=[USERS])
    members.sql("r1", "INSERT INTO users SELECT generate_series(1, 2000)")
    members.sql("s1", "CREATE PUBLICATION headroom_lost_copy")
    members.sql("s1", "SELECT pg_create_logical_replication_slot('headroom_lost_copy', 'pgoutput')")
    result = members.info(load={"rows": 1})
    assert not result.get("failed"), result
    assert not result["changed"]
    assert result["complete"]
    assert result["map"] == declared["map"]
    assert {one["name"]: one["buckets"] for one in result["shards"]} == declared["summary"]["buckets"]
    assert sum(one["load_share"] for one in result["shards"]) == pytest.approx(1, abs=1e-4)
    assert [(one["member"], one["kind"], one["name"]) for one in result["orphans"]] == [
        ("s1", "publication", "headroom_lost_copy"),
        ("s1", "slot", "headroom_lost_copy"),
    ]
    assert "shards_orphans" in result["prometheus"]
    gone = members.info(shards=[*members.entries(*SHARDS), {"name": "s9", "host": "127.0.0.1", "port": 1}], timeout_s=3)
    assert gone["failed"]
    assert gone["msg"].startswith("Failed to connect to s9 on 127.0.0.1:1: Connection refused.")
    assert gone["complete"] is False

    server = members.servers["r1"]
    options = ", ".join(f"{key}={value!r}" for key, value in members.login.items())
    lookup = (
        f"lookup('headroom.scale.postgresql_shard', 42, group='users', host={server['host']!r}, port={server['port']}, "
        f"login_db={DATABASE!r}, {options})"
    )
    expression = f"{{{{ [{lookup}, 42 | headroom.scale.postgresql_shard(shard_map, 'users')] }}}}"
    task = {"name": "Run", "ansible.builtin.debug": {"msg": expression}, "vars": {"shard_map": declared["map"]}}
    asked, found = members.play([task]).results("Run")["localhost"]["msg"]
    assert {key: asked[key] for key in found} == found
    assert asked["conninfo"].startswith("host=")
