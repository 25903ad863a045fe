# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis or Valkey cluster for the time of a benchmark: plain servers on the lab's hosts, beside the clusters that these have.

Each server is a transient systemd unit without TLS and persistence, on a port of its own. They are stopped when the block ends,
however it ends; should this process be killed, systemd stops them after four hours, and the next run before it starts its own.
"""

from __future__ import annotations

import binascii
import contextlib
import fcntl
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.conftest import STATE, Lab

SLOTS = 16384
LIFE_S = 4 * 3600
READY_S = 90
# keys that are on their way to a server before it is asked whether it has them
KEYS_AT_ONCE = 10000


@dataclass(frozen=True)
class Server:
    """One server of the cluster."""

    name: str
    lab_host: str
    host: str
    port: int
    client: redis.Redis

    @property
    def id(self) -> str:
        """Its id in the cluster."""
        return self.client.execute_command("CLUSTER", "MYID").decode()

    def keys(self) -> int:
        """Return the number of its keys."""
        return int(self.client.dbsize())

    def owners(self) -> dict[int, int]:
        """Return slot to the port of its owner, as this server sees it."""
        found: dict[int, int] = {}
        for first, last, owner, *_replicas in self.client.execute_command("CLUSTER", "SLOTS"):
            found.update(dict.fromkeys(range(int(first), int(last) + 1), int(owner[1])))
        return found


def key_of(number: int) -> bytes:
    """Return the name of a key that :func:`fill` sets."""
    return b"key:%08d" % number


def slot_of(key: bytes) -> int:
    """Return the slot of a key without braces."""
    return binascii.crc_hqx(key, 0) % SLOTS


def run_on_lab(work: Callable[[Lab], None]) -> int:
    """Do a benchmark's work on the lab and return the exit status; SIGTERM ends it as Ctrl-C does, with all servers stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        try:
            work(Lab(Path(folder)))
        except KeyboardInterrupt:
            return 130
        except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError, redis.RedisError) as error:
            print(f"Failed to run the benchmark: {error}", file=sys.stderr)
            return 1
    return 0


@contextlib.contextmanager
def cluster(
    lab: Lab, engine: str, hosts: Sequence[str], first_port: int, primaries: int, replicas: int = 0, empty: int = 0
) -> Iterator[list[Server]]:
    """Run a cluster of so many primaries, replicas, and primaries without slots, and give its servers in that order.

    :param hosts: the lab's hosts; servers take turns on them.
    :param first_port: port of the first server; each next one has the next port.
    :raises RuntimeError: when another run uses the ports, or the cluster does not form in time.
    """
    count = primaries + replicas + empty
    addresses = {host: lab.run(host, "hostname", "--all-ip-addresses").split()[0] for host in hosts}
    servers = []
    for number in range(count):
        lab_host, port = hosts[number % len(hosts)], first_port + number
        client = redis.Redis(addresses[lab_host], port, socket_timeout=30, socket_connect_timeout=5, protocol=2)
        servers.append(Server(f"{lab_host}-{port}", lab_host, addresses[lab_host], port, client))
    with open(STATE / f"bench-{first_port}.lock", "w", encoding="utf-8") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run uses the ports from {first_port} on") from None
        _stop(lab, servers)
        try:
            _start(lab, engine, servers)
            _form(servers, primaries, replicas)
            yield servers
        finally:
            for server in servers:
                server.client.close()
            _stop(lab, servers)


def _unit(server: Server) -> str:
    return f"headroom-bench-{server.port}"


def _on_hosts(lab: Lab, servers: Sequence[Server], line: Callable[[Server], str], last: str = "") -> None:
    """Run a line of shell for each server on its host, all lines of a host in one go."""
    for host in dict.fromkeys(server.lab_host for server in servers):
        lines = [line(server) for server in servers if server.lab_host == host]
        lab.run(host, "sh", "-e", stdin="\n".join([*lines, last]))


def _start(lab: Lab, engine: str, servers: Sequence[Server]) -> None:
    def line(server: Server) -> str:
        unit = _unit(server)
        # a primary that gives its last slot away stays a primary, so that the next round finds it as it was
        settings = {
            "port": server.port,
            "bind": server.host,
            "protected-mode": "no",
            "dir": f"/run/{unit}",
            "save": "",
            "cluster-enabled": "yes",
            "cluster-allow-replica-migration": "no",
            "cluster-node-timeout": 15000,
        }
        limits = {"User": engine, "RuntimeDirectory": unit, "RuntimeMaxSec": LIFE_S}
        command = ["systemd-run", "--quiet", "--collect", f"--unit={unit}"]
        command += [f"--property={name}={value}" for name, value in limits.items()]
        command += [
            f"{engine}-server",
            *(part for name, value in settings.items() for part in (f"--{name}", str(value))),
        ]
        return shlex.join(command)

    _on_hosts(lab, servers, line)
    _until(lambda: all(map(_answers, servers)), "the servers started")


def _stop(lab: Lab, servers: Sequence[Server]) -> None:
    _on_hosts(
        lab, servers, lambda server: f"! systemctl is-active --quiet {_unit(server)} || systemctl stop {_unit(server)}"
    )


def _answers(server: Server) -> bool:
    try:
        return bool(server.client.ping())
    except redis.RedisError:
        return False


def _form(servers: Sequence[Server], primaries: int, replicas: int) -> None:
    first = servers[0]
    for number, server in enumerate(servers):
        # epochs that differ from the start: the nodes have none to dispute
        server.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number < primaries:
            start, end = (SLOTS * part // primaries for part in (number, number + 1))
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
        first.client.execute_command("CLUSTER", "MEET", server.host, server.port)
    _until(lambda: all(_members(server)[0] == len(servers) for server in servers), "every server knew every other")
    for number, server in enumerate(servers[primaries : primaries + replicas]):
        server.client.execute_command("CLUSTER", "REPLICATE", servers[number % primaries].id)
    _until(lambda: all(_members(server)[1] == replicas for server in servers), "every server knew the replicas")
    _until(lambda: all(map(_works, servers)), "the cluster worked")
    agreed_owners(servers)


def _members(server: Server) -> tuple[int, int]:
    """Return how many members a server knows and has a link to, and how many of them are replicas."""
    rows = [row.split() for row in server.client.execute_command("CLUSTER", "NODES").decode().splitlines()]
    known = [row for row in rows if row[7] == "connected" and "handshake" not in row[2]]
    return len(known), sum(1 for row in known if "slave" in row[2].split(","))


def _works(server: Server) -> bool:
    link = server.client.info("replication").get("master_link_status", "up")
    return b"cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO") and link == "up"


def agreed_owners(servers: Sequence[Server]) -> dict[int, int]:
    """Wait until all servers agree that each slot has one and the same owner, and return slot to the owner's port.

    :raises RuntimeError: when they do not in time.
    """
    seen: list[dict[int, int]] = []

    def agree() -> bool:
        seen[:] = [server.owners() for server in servers]
        return len(seen[0]) == SLOTS and all(one == seen[0] for one in seen)

    _until(agree, "the servers agreed on the owners of all slots")
    return seen[0]


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it was not seen within {READY_S} s that {what}")
        time.sleep(0.2)


def fill(servers: Sequence[Server], keys: int, value_bytes: int, there: int = 0) -> None:
    """Set keys with values that do not compress, each at the owner of its slot, and require that all are there.

    :param there: number of all keys afterwards, where some are there that are not set here.
    """
    there = there or keys
    noise = random.Random(1).randbytes(1 << 20)
    ports = {server.port: server for server in servers}
    owners = {slot: ports[port] for slot, port in servers[0].owners().items()}
    waiting: dict[str, list[bytes]] = {server.name: [] for server in servers}
    for number in range(keys):
        key = key_of(number)
        server = owners[slot_of(key)]
        at = number * 37 % (len(noise) - value_bytes)
        parts = waiting[server.name]
        parts.append(
            b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(key), key, value_bytes, noise[at : at + value_bytes])
        )
        if len(parts) >= KEYS_AT_ONCE:
            _send(server, parts)
    for server in servers:
        _send(server, waiting[server.name])
    found = sum(server.keys() for server in {owner.port: owner for owner in owners.values()}.values())
    if found != there:
        raise RuntimeError(f"{there} keys should be there, and {found} are")


def _send(server: Server, parts: list[bytes]) -> None:
    connection = server.client.connection_pool.get_connection()
    try:
        connection.send_packed_command([b"".join(parts)])
        for _part in parts:
            connection.read_response()
    finally:
        server.client.connection_pool.release(connection)
    parts.clear()
