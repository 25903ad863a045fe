# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Race readers against flushes through a whole chain: edge, load balancer, application, Redis Cluster, PostgreSQL.

Writers change items in PostgreSQL, each its own, and flush them by ``cache_flush`` out of Redis and the edge. Readers read all items from
the edge meanwhile, each read may take long on its way, and items are evicted from both caches at random, so that at any moment some fetch
is under way that has read what is old by then. A read that began after a flush of an item had ended, and that sees an older version
than the flushed one, is stale. There must be none.

The same is done in the order that comes to mind first, the edge before Redis, and in one pass. That must leave stale reads in one of
some races: one that it could not lose would prove nothing.

The edges are those of the inventory (playbooks/cdn.yml), or with ``--edge-host`` one that is written by hand: nginx with its purge module,
started there for the time of the run. The applications (playbooks/lab/apps.yml) and load balancers (playbooks/load_balancer.yml) must be
there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import importlib
import json
import random
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import redis
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

# it lets the collection be imported from this checkout
importlib.import_module("conftest")
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.headroom.scale.plugins.module_utils._cache.converge import flush
from ansible_collections.headroom.scale.plugins.module_utils._cache.options import flush_spec, parse_options
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import connection_spec
from benchmarks._units import alone, folder, unit, wait_until_open
from integration.conftest import INVENTORIES, STATE, Lab
from integration.test_redis import ADMIN, CA, nodes, workload_of

CHAOS = "cache_flush"
FOLDER = "/var/tmp/headroom-chaos-edge"
EDGE_PORT = 8401
# that the edge is asked for
HOST = "shop.lab"
# the edge gives a fetch up after so long, see LIMIT_S of the application, which is below it
EDGE_LIMIT_MS = 1000
SLOW_S = 0.2
READERS = 8
# between two reads of a reader, and between two evictions
READ_S, EVICT_S = 0.005, 0.02
ITEMS_OF_A_WRITER = 4
# the order that must lose a race is given so many, since one of a few flushes may end well
MOST_RACES = {"ours": 1, "naive": 10}
# errors that a run may have, as a share of its reads: on a busy machine a fetch may come too late
MOST_ERRORS = 0.1

EDGE = """
load_module {folder}/usr/lib/nginx/modules/ngx_http_cache_purge_module.so;
user www-data;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    proxy_cache_path {folder}/cache keys_zone=edge:5m inactive=1h max_size=100m use_temp_path=off;
    map $request_uri $purged_uri {{ "~^/purge(?<rest>/.*)$" $rest; }}
    server {{
        listen {address};
        location /purge/ {{
            allow {controller};
            deny all;
            proxy_cache_purge edge $host$purged_uri;
        }}
        location / {{
            proxy_pass http://{balancer};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
            proxy_cache edge;
            proxy_cache_key $host$request_uri;
            proxy_cache_lock on;
            proxy_connect_timeout {limit_ms}ms;
            proxy_read_timeout {limit_ms}ms;
            add_header X-Cache $upstream_cache_status always;
        }}
    }}
}}
"""


def addresses() -> dict[str, str]:
    """Return name to address of the lab's hosts."""
    groups = yaml.safe_load((INVENTORIES[0] / "hosts.yml").read_text())["all"]["children"]["lab"]["children"]
    return {
        name: row["ansible_host"]
        for group in ("postgresql", "load_balancers", "edges", "apps")
        for name, row in groups[group]["hosts"].items()
    }


class Edge(NamedTuple):
    """Where edges are read and purged, and how cache_flush is told of them."""

    urls: list[str]
    purge_urls: list[str]
    method: str
    path_prefix: str

    @property
    def layer(self) -> dict[str, Any]:
        """What cache_flush is given."""
        layer = {"name": "edge", "urls": self.purge_urls, "method": self.method, "path_prefix": self.path_prefix}
        return {**layer, "host": HOST}


class Flusher:
    """Flushes items, in one of the two orders."""

    def __init__(self, options: argparse.Namespace, edge: Edge) -> None:
        """Take where the edge is, and how it purges."""
        self._options = options
        self._edge = edge

    def ours(self, items: list[int]) -> None:
        """Flush as the collection does it."""
        self._flush(items, nodes=nodes(), http_caches=[self._edge.layer], in_flight_s=self._options.in_flight_s)

    def naive(self, items: list[int]) -> None:
        """Flush the edge, then Redis, once."""
        self._flush(items, http_caches=[self._edge.layer], in_flight_s=0.0)
        self._flush(items, nodes=nodes(), in_flight_s=0.0)

    def _flush(self, items: list[int], **layers: Any) -> None:
        params = {
            "rules": {"item": {"keys": ["item:{id}"], "paths": ["/item/{id}"]}},
            "entities": [{"item": items}],
            **ADMIN,
            "ca_certs": str(CA),
            **layers,
        }
        spec = flush_spec().merge(connection_spec())
        checked = ArgumentSpecValidator(spec.to_kwargs()["argument_spec"]).validate(params)
        if checked.error_messages:
            raise RuntimeError(f"cache_flush refuses the run's options: {checked.error_messages}")
        flush(parse_options(checked.validated_parameters), check=False)


class Race:
    """Readers, writers and evictions for the flushes of one order."""

    def __init__(self, options: argparse.Namespace, edge: Edge, versions: dict[int, int]) -> None:
        """Take where the edge is, and the versions of all items so far."""
        self.options = options
        self.edge = edge
        self.versions = versions
        # version that was flushed last; what is read from then on must not be older
        self.floors = dict(versions)
        self.reads = self.stale_reads = 0
        self.stale_flushes = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.places: collections.Counter[str] = collections.Counter()
        self.examples: list[str] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._database = psycopg.connect(database(), autocommit=True, connect_timeout=5)
        self._redis = workload_of(0).client

    # ---- reads

    def read(self, connection: http.client.HTTPConnection, item: int) -> bool:
        """Read an item at the edge; return whether it was stale."""
        floor = self.floors[item]
        try:
            connection.request("GET", f"/item/{item}", headers={"Host": HOST})
            answer = connection.getresponse()
            body = answer.read()
            problem = "" if answer.status == 200 else f"status {answer.status}"
            said = {} if problem else json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            problem = type(error).__name__
        with self._lock:
            self.reads += 1
            if problem:
                self.errors[problem] += 1
                return False
            self.places[f"edge {answer.headers.get('X-Cache', '?').partition(',')[0].upper()}"] += 1
            if said["version"] >= floor:
                return False
            self.stale_reads += 1
            if len(self.examples) < 3:
                self.examples.append(f"item {item} was version {said['version']} after version {floor} was flushed")
            return True

    def connection(self, number: int) -> http.client.HTTPConnection:
        """Return a connection to one of the edges, which is opened by its first request."""
        return _connection(self.edge.urls[number % len(self.edge.urls)])

    def _reader(self, seed: int) -> None:
        numbers, connection = random.Random(seed), self.connection(seed)
        while not self._stopping.wait(numbers.uniform(0, 2 * READ_S)):
            self.read(connection, numbers.choice(list(self.floors)))
        connection.close()

    # ---- evictions, as caches do it when they are full

    def _evict(self) -> None:
        numbers, connections = random.Random(0), [_connection(url) for url in self.edge.purge_urls]
        while not self._stopping.wait(EVICT_S):
            item, connection = numbers.choice(list(self.floors)), numbers.choice(connections)
            try:
                if numbers.random() < 0.5:
                    self._redis.unlink(f"item:{item}")
                    continue
                connection.request(self.edge.method, f"{self.edge.path_prefix}/item/{item}", headers={"Host": HOST})
                connection.getresponse().read()
            except (OSError, http.client.HTTPException, redis.RedisError) as error:
                connection.close()
                with self._lock:
                    self.errors[f"eviction: {type(error).__name__}"] += 1
        for connection in connections:
            connection.close()

    # ---- writers

    def _change(self, items: list[int]) -> None:
        """Commit a new version of items."""
        for item in items:
            self.versions[item] += 1
            self._database.execute("UPDATE items SET version = %s WHERE id = %s", [self.versions[item], item])

    def _writer(self, number: int, flushes: int, way: Callable[[list[int]], None]) -> None:
        first = number * ITEMS_OF_A_WRITER + 1
        connection, numbers = self.connection(number), random.Random(number)
        for _flush in range(flushes):
            if self._stopping.wait(numbers.uniform(0, 0.5)):
                return
            item = first + numbers.randrange(ITEMS_OF_A_WRITER)
            self._change([item])
            way([item])
            self.floors[item] = self.versions[item]
            # the next read, and some more while what was on its way arrives
            stale = False
            for _read in range(5):
                stale = self.read(connection, item) or stale
                time.sleep(SLOW_S / 2)
            with self._lock:
                self.stale_flushes += stale
        connection.close()

    # ---- the run

    def run(self, flushes: int, way: Callable[[list[int]], None]) -> dict[str, Any]:
        """Race so many flushes by a way, and return what was seen."""
        began_s = time.monotonic()
        threads = [threading.Thread(target=self._reader, args=(seed,), daemon=True) for seed in range(READERS)]
        threads.append(threading.Thread(target=self._evict, daemon=True))
        for thread in threads:
            thread.start()
        writers = min(self.options.writers, flushes)
        shares = [flushes // writers + (number < flushes % writers) for number in range(writers)]
        try:
            with ThreadPoolExecutor(writers) as pool:
                work = [pool.submit(self._writer, number, share, way) for number, share in enumerate(shares)]
                try:
                    for one in work:
                        one.result()
                finally:
                    # when one fails, the others end too
                    self._stopping.set()
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(30)
            self._database.close()
        return {
            "flushes": flushes,
            "reads": self.reads,
            "stale_reads": self.stale_reads,
            "stale_flushes": self.stale_flushes,
            "errors": dict(self.errors),
            "answers": dict(self.places),
            "examples": self.examples,
            "took_s": round(time.monotonic() - began_s, 1),
        }


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=10)


def database() -> str:
    """Return where the items are, for whoever changes them: the server that takes writes."""
    hosts = [address for name, address in addresses().items() if name.startswith("pg")]
    password = yaml.safe_load((INVENTORIES[0] / "group_vars" / "apps.yml").read_text())["app_postgresql_password"]
    return (
        f"host={','.join(hosts)} dbname=shop user=lab_shop password={password} sslmode=verify-full "
        f"sslrootcert={STATE / 'tls' / 'postgresql' / 'ca.crt'} target_session_attrs=read-write"
    )


@contextlib.contextmanager
def edge_of(options: argparse.Namespace, lab: Lab) -> Iterator[Edge]:
    """Give the declared edges, or run nginx with its purge module on a lab host meanwhile."""
    known = addresses()
    if options.edge_host is None:
        hosts = [known[host] for host in known if host.startswith("edge")]
        yield Edge([f"http://{host}" for host in hosts], [f"http://{host}:8181" for host in hosts], "PURGE", "")
        return
    host = options.edge_host
    text = EDGE.format(
        folder=FOLDER,
        address=f"{known[host]}:{EDGE_PORT}",
        balancer=f"{known[options.balancer]}:80",
        controller="10.77.0.1",
        limit_ms=EDGE_LIMIT_MS,
    )
    # the module is unpacked beside nginx, and not installed into the load balancer's
    fetch = "apt-get download -qq libnginx-mod-http-cache-purge </dev/null >/dev/null 2>&1"
    with folder(lab, host, FOLDER, {"nginx.conf": text}):
        script = f"cd {shlex.quote(FOLDER)}\n{fetch} || {{ apt-get update -qq </dev/null; {fetch}; }}\ndpkg-deb --extract *.deb ."
        lab.run(host, "sh", "-e", stdin=script, timeout_s=300)
        with unit(lab, host, "headroom-chaos-edge", "nginx", "-g", "daemon off;", "-c", f"{FOLDER}/nginx.conf"):
            wait_until_open([(known[host], EDGE_PORT)])
            url = f"http://{known[host]}:{EDGE_PORT}"
            yield Edge([url], [url], "GET", "/purge")


@contextlib.contextmanager
def slow(lab: Lab, hosts: list[str]) -> Iterator[None]:
    """Let the applications take their time with items."""
    sign = "/run/headroom-app/slow_items"
    try:
        for host in hosts:
            lab.run(host, "sh", "-c", f"echo {SLOW_S} >{sign}")
        yield
    finally:
        for host in hosts:
            lab.run(host, "rm", "-f", sign)


def stored_versions(items: int) -> dict[int, int]:
    """Return the versions of the first items in PostgreSQL.

    :raises RuntimeError: when some are not there.
    """
    with psycopg.connect(database(), autocommit=True, connect_timeout=5) as connection:
        found = dict(connection.execute("SELECT id, version FROM items WHERE id <= %s", [items]).fetchall())
    if len(found) != items:
        raise RuntimeError(f"there are {len(found)} of {items} items; give fewer writers, or remove the database shop")
    return found


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flushes", type=int, default=1000, help="flushes in each order (default: %(default)s)")
    parser.add_argument("--writers", type=int, default=10, help="flushes at the same time (default: %(default)s)")
    parser.add_argument(
        "--in-flight-s",
        type=float,
        default=1.5,
        help="of cache_flush; more than an item may be on its way through the edge (default: %(default)s)",
    )
    parser.add_argument(
        "--edge-host",
        help="lab host with nginx for an edge that is written by hand, such as lb2 (default: the inventory's edges)",
    )
    parser.add_argument("--balancer", default="lb1", help="lab host behind that edge (default: lb1)")
    parser.add_argument("--quick", action="store_true", help="30 flushes in each order, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.flushes = 30
    if options.flushes < 1 or not 1 <= options.writers <= 200 // ITEMS_OF_A_WRITER:
        parser.error(f"--flushes must be at least 1, --writers from 1 to {200 // ITEMS_OF_A_WRITER}")
    known = addresses()
    for host in (options.edge_host, options.balancer):
        if host is not None and host not in known:
            parser.error(f"there is no host {host} in the lab; give some of {', '.join(known)}")
    return options


def verdict(seen: dict[str, dict[str, Any]]) -> list[str]:
    """Return what is wrong with what was seen, in sentences."""
    said = []
    if seen["ours"]["stale_reads"]:
        said.append(f"{seen['ours']['stale_reads']} reads were stale, such as: {seen['ours']['examples'][0]}.")
    if not seen["naive"]["stale_reads"]:
        said.append("The naive order left no stale read: the race proves nothing.")
    for name, one in seen.items():
        if sum(one["errors"].values()) > MOST_ERRORS * one["reads"]:
            said.append(f"Too many of the reads failed in the order {name}: {one['errors']}.")
        if one["answers"].get("edge MISS", 0) < one["flushes"] or not one["answers"].get("edge HIT"):
            said.append(f"The edge is no cache in the order {name}: {one['answers']}.")
    return said


def main() -> int:
    """Race both orders, print what was seen of each and one JSON line, and fail when one has not come out as it must."""
    options = arguments()
    # ended from outside, it takes away what it made as when it is interrupted
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seen: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, alone(f"chaos-{CHAOS}"):
        lab = Lab(Path(name))
        lab.play("lab/apps_data.yml")
        versions = stored_versions(options.writers * ITEMS_OF_A_WRITER)
        apps = [host for host in addresses() if host.startswith("app")]
        try:
            with edge_of(options, lab) as edge:
                flusher = Flusher(options, edge)
                # what earlier runs have left is not this one's
                flusher.ours(list(versions))
                with slow(lab, apps):
                    for order in (order for order, races in MOST_RACES.items() for _race in range(races)):
                        if order in seen and seen[order]["stale_reads"]:
                            break
                        race = Race(options, edge, versions)
                        seen[order] = one = race.run(options.flushes, getattr(flusher, order))
                        print(
                            f"{order:6} {one['flushes']} flushes, {one['reads']} reads, {one['stale_reads']} stale after "
                            f"{one['stale_flushes']} flushes, errors {one['errors']}, answers {one['answers']}, "
                            f"{one['took_s']:.0f} s",
                            file=sys.stderr,
                            flush=True,
                        )
                # and nothing old stays behind
                flusher.ours(list(versions))
        except (HeadroomError, RuntimeError, psycopg.Error, redis.RedisError) as error:
            print(f"Failed to run the race: {error}", file=sys.stderr)
            return 1
    wrong = verdict(seen)
    for one in wrong:
        print(one, file=sys.stderr)
    print(json.dumps({"chaos": CHAOS, "in_flight_s": options.in_flight_s, **seen, "wrong": wrong}))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
