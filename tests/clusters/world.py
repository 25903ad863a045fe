# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world of Redis servers for tests of modules: real processes in cluster mode on loopback, which keep nothing.

A cluster starts as one, from configurations that already know of each other: that takes two seconds however many nodes it has.
Where no redis-server is found, such tests are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import io
import itertools
import json
import os
import pathlib
import random
import subprocess
import time
import types
import typing as t

import pytest
import redis
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import (
    SLOTS,
    Member,
    View,
    key_slot,
    parse_view,
)
from ports import HOST, free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
# packages unpacked with dpkg -x, or a host where they are installed
PLACES = [pathlib.Path(os.environ.get("HEADROOM_REDIS_ROOT", ROOT / ".cache" / "redis")), pathlib.Path("/")]
PROGRAM = "usr/bin/redis-server"
FOUND = next((place for place in PLACES if (place / PROGRAM).exists()), None)
BUS = 10000
NODE_TIMEOUT_MS = 1000
WAIT_S = 15.0
SETTINGS = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": str(NODE_TIMEOUT_MS),
    "cluster-config-file": "nodes.conf",
    # replicas stay where a test has put them
    "cluster-allow-replica-migration": "no",
    "repl-diskless-sync-delay": "0",
    "appendonly": "no",
    "save": "",
}


@dataclasses.dataclass
class Server:
    """One server: where it is, and what it runs with."""

    name: str
    id: str
    port: int
    directory: pathlib.Path
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with what its directory has, and wait until it answers."""
        root = FOUND
        if root is None:
            pytest.skip("no redis-server here: run tools/unpack-servers on Debian")
        libraries = ":".join(glob.glob(f"{root}/usr/lib/*-linux-gnu") + glob.glob(f"{root}/lib/*-linux-gnu"))
        more = {} if root == pathlib.Path("/") else {"LD_LIBRARY_PATH": libraries}
        arguments = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [root / PROGRAM, "--port", str(self.port), "--bind", HOST, "--dir", self.directory, *arguments],
                env={**os.environ, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait(self._answers, f"{self.name} to answer")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.call("PING"))
        return False

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_S)
            self.process = None

    def wipe(self) -> None:
        """Take away what it knows of a cluster; it has no other data."""
        (self.directory / "nodes.conf").unlink()

    def call(self, *command: str | int) -> t.Any:
        """Run a command and return its answer, text where it is text."""
        with contextlib.closing(redis.Redis(HOST, self.port, decode_responses=True, socket_timeout=WAIT_S)) as client:
            return client.execute_command(*command)

    def view(self) -> View:
        """The cluster as it sees it."""
        return parse_view(self.call("CLUSTER", "NODES"))

    @property
    def me(self) -> Member:
        """The server as it sees itself."""
        return self.view().me

    @property
    def works(self) -> bool:
        """Whether it holds its cluster for working."""
        return "cluster_state:ok" in self.call("CLUSTER", "INFO")

    def said(self) -> str:
        """What is at the end of its log."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]


class World:
    """Servers by name, and modules that run on them. All of them are stopped when the block ends."""

    def __init__(self, directory: pathlib.Path, **settings: str) -> None:
        """Take an empty directory, and settings of all servers; a dash of a setting is an underscore here."""
        if FOUND is None:
            pytest.skip("no redis-server here: run tools/unpack-servers on Debian")
        self.directory = directory
        self.settings = {**SETTINGS, **{name.replace("_", "-"): value for name, value in settings.items()}}
        self.servers: dict[str, Server] = {}

    def __enter__(self) -> World:
        """Return the world itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Stop all servers."""
        for server in self.servers.values():
            server.kill()

    def __getitem__(self, name: str) -> Server:
        """Return a server."""
        return self.servers[name]

    def _make(self, name: str) -> Server:
        server = Server(
            name, f"{random.getrandbits(160):040x}", free_port(BUS), self.directory / name, dict(self.settings)
        )
        server.directory.mkdir()
        self.servers[name] = server
        return server

    def alone(self, *names: str) -> None:
        """Start empty servers that know nobody."""
        for name in names:
            server = self._make(name)
            server.start()
            server.id = server.call("CLUSTER", "MYID")

    def cluster(
        self,
        primaries: int = 3,
        replicas: int = 1,
        prefix: str = "n",
        slots: t.Sequence[t.Iterable[int]] = (),
        rest: bool = True,
    ) -> None:
        """Start a cluster that works: n1, n2, n3 own the slots in this order, n4, n5, n6 are their replicas.

        :param slots: of each primary, where they are not to be equal ranges; what nobody has stays without an owner.
        :param rest: whether to wait until it works.
        """
        count = primaries * (replicas + 1)
        made = [self._make(f"{prefix}{number}") for number in range(1, count + 1)]
        edges = [SLOTS * number // primaries for number in range(primaries + 1)]
        owned = [sorted(one) for one in slots] or [list(range(*pair)) for pair in itertools.pairwise(edges)]
        rows = []
        for number, server in enumerate(made):
            primary = number % primaries
            is_primary = number < primaries
            role = "master -" if is_primary else f"slave {made[primary].id}"
            runs = _runs(owned[primary]) if is_primary else ""
            where = f"{server.id} {HOST}:{server.port}@{server.port + BUS}"
            rows.append((where, role, f"0 0 {primary + 1} connected {runs}".rstrip()))
        for server in made:
            lines = []
            for where, role, rest in rows:
                mine = "myself," if where.startswith(server.id) else ""
                lines.append(f"{where} {mine}{role} {rest}")
            text = "\n".join([*lines, f"vars currentEpoch {primaries} lastVoteEpoch 0", ""])
            (server.directory / "nodes.conf").write_text(text)
        for server in made:
            server.start()
        if rest:
            self.rest([server.name for server in made], works=sum(map(len, owned)) == SLOTS)

    def rest(self, names: t.Iterable[str] = (), works: bool = True) -> None:
        """Wait until servers are linked with all that they know, replicas have the data, and, if so wanted, the cluster works."""
        for name in names or self.servers:
            wait(lambda one=self[name]: self._rests(one, works), f"{name} to come to rest")  # type: ignore[misc]

    @staticmethod
    def _rests(server: Server, works: bool) -> bool:
        info = server.call("INFO", "replication")
        linked = all(member.linked for member in server.view().members.values())
        return linked and info.get("master_link_status", "up") == "up" and (server.works or not works)

    def nodes(self, *names: str, **more: dict[str, t.Any]) -> list[dict[str, t.Any]]:
        """Return option nodes for these servers, all when none is named; ``more`` are further suboptions by name."""
        return [
            {"name": name, "host": HOST, "port": self[name].port, **more.get(name, {})}
            for name in names or self.servers
        ]

    def run(self, module: t.Any, check: bool = False, **params: t.Any) -> dict[str, t.Any]:
        """Run a module of the collection and return what it says; ``failed`` tells how it ended."""
        given = {"nodes": self.nodes(), "tls": False, **params}
        marks = {"_ansible_check_mode": check, "_ansible_diff": True}
        said = io.StringIO()
        with (
            patch_module_args({**given, **marks}),
            contextlib.redirect_stdout(said),
            pytest.raises(SystemExit),
        ):
            module.main()
        result = json.loads(said.getvalue())
        return {"failed": False, **result}

    def open(self, slot: int, source: str, target: str, move: t.Sequence[str] = ()) -> None:
        """Begin to move a slot and leave it at that, with some of its keys at the target."""
        self[target].call("CLUSTER", "SETSLOT", slot, "IMPORTING", self[source].id)
        self[source].call("CLUSTER", "SETSLOT", slot, "MIGRATING", self[target].id)
        if move:
            self[source].call("MIGRATE", HOST, self[target].port, "", 0, 5000, "KEYS", *move)

    def lose(self, *slots: int) -> None:
        """Let slots of one owner have none."""
        (owner,) = self.owner(slots[0])
        self[owner].call("CLUSTER", "DELSLOTS", *slots)
        # what it has said before must have arrived
        time.sleep(0.2)
        for name in self.servers.keys() - {owner}:
            self[name].call("CLUSTER", "DELSLOTS", *slots)
        wait(lambda: not any(server.works for server in self.servers.values()), "the cluster to be down")

    def owner(self, slot: int, names: t.Iterable[str] = ()) -> list[str]:
        """Return who says that it owns a slot."""
        return [name for name in names or self.servers if self[name].process and slot in self[name].me.slots]

    def keys(self, *names: str) -> dict[str, int]:
        """Return how many keys servers hold."""
        return {name: int(self[name].call("DBSIZE")) for name in names}


def keys_in(slot: int, count: int) -> list[str]:
    """Return names of keys that lie in a slot."""
    tag = next(str(number) for number in itertools.count() if key_slot(str(number)) == slot)
    return [f"{{{tag}}}{number}" for number in range(count)]


def wait(holds: t.Callable[[], bool], what: str, limit_s: float = WAIT_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.05)


def _runs(slots: t.Sequence[int]) -> str:
    """Return slots as a server's configuration has them."""
    found: list[list[int]] = []
    for slot in slots:
        if found and found[-1][1] == slot - 1:
            found[-1][1] = slot
        else:
            found.append([slot, slot])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
