# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL servers for the time of a test or benchmark: three shards and a router, each a server of its own.

They run in the lab's hosts for shards, beside the servers that are there, where the lab is up, and else on this machine.
``HEADROOM_PG_PREFIX`` is what PostgreSQL's programs are run with, where these are not at hand or the user is root, as
``runuser -u postgres --`` or ``chroot --userspec=postgres:postgres /srv/root``; ``HEADROOM_PG_BIN`` is their directory and
``HEADROOM_PG_DATA`` one for the data that the programs may write to. ``--server 'ADDRESS PREFIX'``, once for each, puts the servers
on several hosts, as ``--server '10.77.0.21 podman exec --user postgres headroom-pg1'``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible_collections
import psycopg

ROOT = Path(__file__).parents[2]
# the collections of the ansible package have the same parent: search this checkout first
ansible_collections.__path__ = [str(ROOT / ".venv/collections/ansible_collections"), *ansible_collections.__path__]

from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import converge
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import options as move_options

# chaos and benchmark tell its failures by it
__all__ = ["HeadroomError"]

BIN = os.environ.get("HEADROOM_PG_BIN", "/usr/lib/postgresql/17/bin")
DATA = os.environ.get("HEADROOM_PG_DATA", "/var/lib/postgresql")
PREFIX = os.environ.get("HEADROOM_PG_PREFIX", "")
MEMBER_USER = "headroom_member"
# as in inventories/lab/hosts.yml
LAB = {"shard1": "10.77.0.51", "shard2": "10.77.0.52", "shard3": "10.77.0.53", "router1": "10.77.0.61"}
READY_S = 60
SETTINGS = {
    "wal_level": "logical",
    "max_prepared_transactions": 20,
    "max_worker_processes": 24,
    "max_logical_replication_workers": 16,
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_connections": 200,
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "min_wal_size": "2GB",
    "checkpoint_timeout": "30min",
    "wal_receiver_timeout": "5s",
    "wal_sender_timeout": "5s",
    "wal_retrieve_retry_interval": "500ms",
    "log_line_prefix": "%m [%p] %a ",
}
COLUMNS = (
    "user_id bigint NOT NULL, id bigint NOT NULL, amount numeric(14,2) NOT NULL DEFAULT 0, note text, "
    "at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (user_id, id)"
)
TABLES = [
    {
        "name": "public.orders",
        "key": "user_id",
        "ddl": [f"CREATE TABLE public.orders ({COLUMNS})", "CREATE INDEX orders_at ON public.orders (at)"],
    },
    {
        "name": "public.items",
        "key": "user_id",
        "ddl": "CREATE TABLE public.items (user_id bigint NOT NULL, id bigint NOT NULL, n integer NOT NULL, PRIMARY KEY (user_id, id))",
    },
]


@dataclass(frozen=True)
class Server:
    """One server, and how programs are run where it is."""

    name: str
    host: str
    port: int
    prefix: tuple[str, ...]
    role: str = "shard"

    @property
    def data(self) -> str:
        """Its directory."""
        return f"{DATA}/headroom-test-{self.port}"

    @property
    def container(self) -> str | None:
        """The container of the lab's host that it runs in, if it does."""
        return self.prefix[-1] if self.prefix[:2] == ("podman", "exec") else None

    @property
    def entry(self) -> dict[str, Any]:
        """What the modules take."""
        return {"name": self.name, "host": self.host, "port": self.port, "database": "app"}

    def dsn(self, database: str = "app", user: str = " user=postgres") -> str:
        """Return a connection string."""
        return f"host={self.host} port={self.port} dbname={database}{user}"

    def connect(self, database: str = "app") -> psycopg.Connection:
        """Return a connection that commits by itself."""
        return psycopg.connect(self.dsn(database), autocommit=True, connect_timeout=5)

    def rows(self, query: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        with self.connect() as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def call(self, *command: str, check: bool = True) -> str:
        """Run a program where the server is."""
        done = subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(command)} for {self.name}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def install(self, package: str) -> None:
        """Install a package where the server is, if that is a host of the lab."""
        if self.container:
            script = f"apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends {package}"
            command = ["podman", "exec", self.container, "sh", "-c", script]
            subprocess.run(command, capture_output=True, timeout=300, check=True)

    def make(self, settings: dict[str, Any]) -> None:
        """Make the server anew and start it."""
        self.call(f"{BIN}/pg_ctl", "stop", "-D", self.data, "-m", "immediate", check=False)
        self.call("rm", "-rf", self.data)
        self.call(
            f"{BIN}/initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )
        given = {
            **SETTINGS,
            **settings,
            "port": self.port,
            "listen_addresses": self.host,
            "unix_socket_directories": "/tmp",
        }
        lines = "".join(f"{name} = '{value}'\n" for name, value in given.items())
        hba = "host all all samenet trust\nhost replication all samenet trust\n"
        self.call("sh", "-c", f"printf %s {shlex.quote(lines)} >> {self.data}/postgresql.conf")
        self.call("sh", "-c", f"printf %s {shlex.quote(hba)} >> {self.data}/pg_hba.conf")
        self.start()
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE ROLE {MEMBER_USER} SUPERUSER LOGIN REPLICATION")
            connection.execute("CREATE DATABASE app")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = f"{self.data}.log"
        try:
            self.call(f"{BIN}/pg_ctl", "start", "-D", self.data, "-l", log, "-w", "-t", str(READY_S))
        except RuntimeError as error:
            raise RuntimeError(f"{error} {self.call('tail', '-3', log, check=False)}") from None

    def stop(self) -> None:
        """Stop it and remove what it has."""
        self.call(f"{BIN}/pg_ctl", "stop", "-D", self.data, "-m", "immediate", check=False)
        self.call("rm", "-rf", self.data, f"{self.data}.log", check=False)

    def kill(self) -> None:
        """Kill the server without warning."""
        self.call("sh", "-c", f"kill -KILL $(head -1 {self.data}/postmaster.pid)")

    def revive(self) -> None:
        """Start it after it was killed, once its former processes have gone."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.start()
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def processes(self) -> list[int]:
        """Return the server's processes, the first of them before its children."""
        first = int(self.call("head", "-1", f"{self.data}/postmaster.pid"))
        listing = ["ps", "-e", "-o", "pid=,ppid="]
        shown = subprocess.run(
            listing if self.prefix[:1] in ((), ("chroot",), ("runuser",)) else [*self.prefix, *listing],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        pairs = [tuple(map(int, line.split())) for line in shown.splitlines()]
        return [first, *(pid for pid, parent in pairs if parent == first)]

    def freeze(self, pids: Sequence[int] = ()) -> Sequence[int]:
        """Let none of its processes go on, or none of these: nobody gets an answer, as when the network is cut."""
        pids = pids or self.processes()
        self.call("sh", "-c", f"kill -STOP {' '.join(map(str, pids))}")
        return pids

    def thaw(self, pids: Sequence[int]) -> None:
        """Let them go on."""
        self.call("sh", "-c", f"kill -CONT {' '.join(map(str, pids))} 2>/dev/null || true")


def servers_from(options: argparse.Namespace, names: Sequence[str], routers: Sequence[str] = ("r",)) -> list[Server]:
    """Return the servers that the options of the command name; by default those of the lab, or local ones without it."""
    given = [one.split(None, 1) for one in options.server or []]
    if not given and not PREFIX and _lab_is_up():
        given = [[address, f"podman exec --user postgres headroom-{host}"] for host, address in LAB.items()]
    if given and len(given) != len(names):
        raise SystemExit(f"give --server {len(names)} times, or not at all")
    places = given or [["127.0.0.1", PREFIX]] * len(names)
    return [
        Server(
            name,
            place[0],
            options.port + number,
            tuple(shlex.split(place[1])) if len(place) > 1 else (),
            "router" if name in routers else "shard",
        )
        for number, (name, place) in enumerate(zip(names, places, strict=True))
    ]


def _lab_is_up() -> bool:
    exists = ["podman", "container", "exists", f"headroom-{next(iter(LAB))}"]
    return bool(shutil.which("podman")) and subprocess.run(exists, check=False).returncode == 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the servers are."""
    parser.add_argument("--server", action="append", help="address and prefix of commands, once for each server")
    parser.add_argument("--port", type=int, default=5611, help="port of the first server; each next one has the next")


@contextlib.contextmanager
def running(servers: Sequence[Server], **settings: Any) -> Iterator[Sequence[Server]]:
    """Run servers for as long as the block does."""
    try:
        for server in servers:
            server.make(settings)
        yield servers
    finally:
        for server in servers:
            server.stop()


class Cluster:
    """Shards and routers, and the modules that work on them."""

    def __init__(self, servers: Sequence[Server], directory: Path) -> None:
        """Take the servers, and a directory for the modules' arguments."""
        self.servers = {server.name: server for server in servers}
        self.shards = [server for server in servers if server.role == "shard"]
        self.routers = [server for server in servers if server.role == "router"]
        self.directory = directory
        self.members = {
            "shards": [server.entry for server in self.shards],
            "routers": [server.entry for server in self.routers],
            "timeout_s": 10,
        }

    def command(self, module: str, arguments: dict[str, Any], check: bool = False) -> tuple[list[str], dict[str, str]]:
        """Return what runs a module as Ansible does, and its environment."""
        path = Path(tempfile.mkstemp(prefix=f"{module}-", suffix=".json", dir=self.directory)[1])
        given = {**self.members, **arguments, "_ansible_check_mode": check, "_ansible_diff": True}
        path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}), encoding="utf-8")
        collections = str(ROOT / ".venv" / "collections")
        name = f"ansible_collections.headroom.scale.plugins.modules.{module}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([collections, os.environ.get("PYTHONPATH", "")])}
        return [sys.executable, "-m", name, str(path)], environment

    def run(self, module: str, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
        """Run a module and return its result.

        :raises RuntimeError: when it fails.
        """
        command, environment = self.command(module, arguments, check)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600, check=False)
        result = parsed(done.stdout)
        if result.get("failed") or done.returncode:
            raise RuntimeError(result.get("msg") or done.stderr[-2000:])
        return result

    def declare(
        self, placement: Callable[[int], str], buckets: int = 64, tables: Any = None, cut: dict[str, Any] | None = None
    ) -> None:
        """Declare the group of the workload.

        :param cut: strategy and what it cuts by; by default hash.
        """
        group = {
            "name": "users",
            "key_type": "bigint",
            "placement": [placement(number) for number in range(buckets)],
            "tables": tables or TABLES,
            **(cut or {"strategy": "hash", "buckets": buckets}),
        }
        self.run("postgresql_shard_map", {"groups": [group]})

    def rebalance(self, **arguments: Any) -> dict[str, Any]:
        """Do what the module that moves buckets does, without the time that a process takes to start.

        :raises HeadroomError: when it fails.
        """
        spec = move_options.rebalance_spec().merge(connection_spec()).options
        given = {**self.members, **arguments}
        for name in ("shards", "routers"):
            own = {key: option.get("default") for key, option in spec[name]["options"].items()}
            given[name] = [{**own, **entry} for entry in given[name]]
        params = {**{key: option.get("default") for key, option in spec.items()}, **given}
        return converge.rebalance(move_options.parse_options(params))

    def placed(self) -> dict[int, str]:
        """Return bucket to shard, as the highest epoch of all members says."""
        found: dict[int, tuple[int, str]] = {}
        for server in self.servers.values():
            for number, shard, epoch in server.rows("SELECT number, shard, epoch FROM headroom.bucket"):
                found[number] = max(found.get(number, (0, "")), (epoch, shard))
        return {number: shard for number, (_epoch, shard) in found.items()}

    def left_behind(self) -> list[str]:
        """Return what moves have left: nothing of theirs is to be there once all are retired."""
        query = """
            SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database()
            UNION ALL SELECT 'publication ' || pubname FROM pg_publication
            UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
              WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            UNION ALL SELECT 'transaction ' || gid FROM pg_prepared_xacts WHERE database = current_database()
            UNION ALL SELECT 'fence ' || move_id FROM headroom.fence
            UNION ALL SELECT 'decision ' || gid FROM headroom.decision
            UNION ALL SELECT 'move ' || id || ' ' || state FROM headroom.move WHERE state NOT IN ('retired', 'failed', 'reverted')
            UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relname ~ '_b[0-9]+_(retired|forward)$' AND relkind IN ('r', 'f')
            UNION ALL SELECT 'detached ' || relname FROM pg_class WHERE relname ~ '^(orders|items)_b[0-9]+$' AND relkind IN ('r', 'f')
              AND NOT relispartition
            UNION ALL SELECT 'trigger ' || tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'headroom\\_%'
            UNION ALL SELECT 'log ' || relname FROM pg_class
              WHERE relnamespace = 'headroom'::regnamespace AND relkind = 'r' AND relname LIKE 'headroom\\_%'
            UNION ALL SELECT 'function ' || proname FROM pg_proc
              WHERE pronamespace = 'headroom'::regnamespace AND proname LIKE 'headroom\\_%'
            UNION ALL SELECT 'constraint ' || conrelid::regclass::text FROM pg_constraint WHERE conname = 'headroom_bound'"""
        return [f"{name}: {row[0]}" for name, server in self.servers.items() for row in server.rows(query)]


def parsed(text: str) -> dict[str, Any]:
    """Return the result that a module has printed."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def wait_for(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds.

    :raises RuntimeError: when it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it was not seen within {seconds:g} s that {what}")
        time.sleep(0.05)
