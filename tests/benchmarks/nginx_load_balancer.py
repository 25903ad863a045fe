# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the collection's load balancer, plain nginx and HAProxy at the same job: three servers behind one address.

All balancers run on one lab host, side by side, each on a port of its own, and one at a time is loaded by wrk from another host:

- ``nginx``: as ``nginx_config`` renders an upstream that nginx balances by itself.
- ``lua``: as it renders one with active checks, a circuit breaker and changes at run time, which its Lua module balances.
- ``plain``: a configuration of nginx as written by hand, with the same proxy headers, headers of answers, kept connections and log.
- ``haproxy``: with the same headers and checks. It writes no log, where nginx writes a line for each request.

Rounds go through all of them in turn, and each begins with another one. The servers are nginx with a fixed answer. wrk asks as fast as
it is answered. What a request costs a balancer is the processor time of its unit, which other work on the machine changes less than
the time on the clock. Prints one line of JSON per figure.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import yaml
from _figures import figure

sys.path.insert(0, str(Path(__file__).parents[1]))

# it lets the collection be imported from this checkout
importlib.import_module("conftest")
from _servers import run_on_lab
from _units import alone, folder, installed, unit, wait_until_open
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.model import Build
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.plan import parse_build
from ansible_collections.headroom.scale.plugins.module_utils._nginx.options import config_spec, parse_wanted
from ansible_collections.headroom.scale.plugins.module_utils._nginx.render import needs_lua, render
from integration.conftest import INVENTORIES, Lab

BENCH = "nginx_load_balancer"
# on a disk: where a host has little memory, logs shall not take it
FOLDER = "/var/tmp/headroom-bench-lb"
SERVER_PORT = 8301
PORTS = {"nginx": 8311, "lua": 8312, "plain": 8313, "haproxy": 8314}
MANAGEMENT_PORTS = {"nginx": 8321, "lua": 8322}
UNIT = "headroom-bench-lb"
WARM_S = 1
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}

SERVER = """
worker_processes 1;
pid {folder}/server.pid;
error_log {folder}/server-error.log;
events {{ worker_connections 2000; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    server {{
        listen {address};
        default_type text/plain;
        return 200 "{body}";
    }}
}}
"""

PLAIN = """
user www-data;
worker_processes auto;
pid {folder}/plain.pid;
error_log {folder}/plain-error.log warn;
events {{ worker_connections 2000; }}
http {{
    include /etc/nginx/mime.types;
    sendfile on;
    tcp_nopush on;
    server_tokens off;
    access_log {folder}/plain-access.log;
    upstream bench {{
        {servers}
        keepalive 64;
    }}
    server {{
        listen {port} default_server;
        {headers}
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $host;
            proxy_connect_timeout 5s;
            proxy_send_timeout 10s;
            proxy_read_timeout 10s;
        }}
    }}
}}
"""

HAPROXY = """
global
    maxconn 1500
    user www-data
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 10s
frontend bench
    bind :{port}
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    {headers}
    default_backend servers
backend servers
    balance roundrobin
    http-reuse safe
    option httpchk GET /health
    {servers}
"""

# the last line of what wrk prints
REPORT = """
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('\\n{"requests": %d, "took_us": %d, "p95_us": %d, "errors": %d}\\n', summary.requests, summary.duration,
        latency:percentile(95), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Turn:
    """What one balancer came to in one round."""

    requests_per_s: float
    p95_ms: float
    # processor time of the balancer; None where the host does not account for it
    cpu_us: float | None


def addresses() -> dict[str, str]:
    """Return name to address of the lab's load balancers and applications."""
    groups = yaml.safe_load((INVENTORIES[0] / "hosts.yml").read_text())["all"]["children"]["lab"]["children"]
    return {
        name: row["ansible_host"]
        for group in ("load_balancers", "apps")
        for name, row in groups[group]["hosts"].items()
    }


def rendered(way: str, servers: t.Sequence[str], build: Build) -> dict[str, str]:
    """Return the files that the collection renders for a way, with places of their own for process id and logs."""
    upstream: dict[str, t.Any] = {"name": "bench", "servers": [{"address": one} for one in servers], "runtime": False}
    if way == "lua":
        upstream |= {"runtime": True, "active_check": {"path": "/health", "interval_s": 1.0}, "breaker": {}}
    params = {
        "upstreams": [upstream],
        "virtual_servers": [{"name": "bench", "port": PORTS[way], "upstream": "bench"}],
        "management": {"port": MANAGEMENT_PORTS[way]},
        "worker_connections": 2000,
    }
    checked = ArgumentSpecValidator(config_spec().to_kwargs()["argument_spec"]).validate(params)
    if checked.error_messages:
        raise RuntimeError(f"the collection refuses the benchmark's options: {checked.error_messages}")
    wanted = parse_wanted(checked.validated_parameters)
    if bool(needs_lua(wanted.upstreams[0])) != (way == "lua"):
        raise RuntimeError(f"{way} is not balanced as it is meant to be")
    build = dataclasses.replace(build, pid_file=f"{FOLDER}/{way}.pid")
    release, files = render(wanted, build, {one.host: one.host for one in wanted.upstreams[0].servers}, FOLDER)
    place = {f"{FOLDER}/{release}/": f"{FOLDER}/{way}-", "/var/log/nginx/": f"{FOLDER}/{way}-"}
    for before, after in place.items():
        files = {name: text.replace(before, after) for name, text in files.items()}
    return {f"{way}-{name}": text for name, text in files.items()}


class Bench:
    """Loads each balancer in turn."""

    def __init__(self, options: argparse.Namespace, lab: Lab) -> None:
        """Take the hosts."""
        self.options = options
        self.lab = lab
        self.addresses = addresses()
        self.servers = [f"{self.addresses[host]}:{SERVER_PORT}" for host in options.servers]
        self.versions: dict[str, str] = {}

    @contextlib.contextmanager
    def running(self) -> t.Iterator[None]:
        """Have servers, balancers and wrk on their hosts."""
        lab, options = self.lab, self.options
        nginx = ["nginx", "-g", "daemon off;", "-c"]
        with contextlib.ExitStack() as stack:
            body = "x" * options.body_bytes
            for host in options.servers:
                stack.enter_context(installed(lab, host, "nginx", "nginx"))
                address = f"{self.addresses[host]}:{SERVER_PORT}"
                text = SERVER.format(folder=FOLDER, address=address, body=body)
                stack.enter_context(folder(lab, host, FOLDER, {"server.conf": text}))
                stack.enter_context(unit(lab, host, f"{UNIT}-server", *nginx, f"{FOLDER}/server.conf"))
            balancer = options.balancer
            stack.enter_context(installed(lab, balancer, "haproxy", "haproxy"))
            stack.enter_context(folder(lab, balancer, FOLDER, self._files()))
            for way in ("nginx", "lua", "plain"):
                conf = f"{FOLDER}/{way}{'.conf' if way == 'plain' else '-nginx.conf'}"
                stack.enter_context(unit(lab, balancer, f"{UNIT}-{way}", *nginx, conf))
            stack.enter_context(
                unit(lab, balancer, f"{UNIT}-haproxy", "haproxy", "-db", "-f", f"{FOLDER}/haproxy.conf")
            )
            stack.enter_context(installed(lab, options.load, "wrk"))
            stack.enter_context(folder(lab, options.load, FOLDER, {"report.lua": REPORT}))
            version = lab.run(balancer, "haproxy", "-v").split()
            self.versions["haproxy"] = f"HAProxy {version[2]}" if len(version) > 2 else "HAProxy"
            wait_until_open(
                [(self.addresses[host], SERVER_PORT) for host in options.servers]
                + [(self.addresses[balancer], port) for port in PORTS.values()]
            )
            yield

    def _files(self) -> dict[str, str]:
        build = parse_build(self.lab.run(self.options.balancer, "sh", "-c", "nginx -V 2>&1"))
        self.versions["plain"] = f"nginx {'.'.join(map(str, build.version))}"
        plain = PLAIN.format(
            folder=FOLDER,
            port=PORTS["plain"],
            servers=" ".join(f"server {one};" for one in self.servers),
            headers=" ".join(f'add_header {name} "{value}" always;' for name, value in HEADERS.items()),
        )
        haproxy = HAPROXY.format(
            port=PORTS["haproxy"],
            servers="\n    ".join(f"server s{n} {one} check inter 1s" for n, one in enumerate(self.servers)),
            headers="\n    ".join(f"http-response set-header {name} {value}" for name, value in HEADERS.items()),
        )
        ours = {**rendered("nginx", self.servers, build), **rendered("lua", self.servers, build)}
        return {**ours, "plain.conf": plain, "haproxy.conf": haproxy}

    def turn(self, way: str) -> Turn:
        """Load one balancer.

        :raises RuntimeError: when a request failed.
        """
        self._load(way, WARM_S)
        before = self._cpu_us(way)
        said = self._load(way, self.options.seconds)
        after = self._cpu_us(way)
        self.lab.run(self.options.balancer, "sh", "-c", f"truncate --size=0 {FOLDER}/*.log")
        if said["errors"] or not said["requests"]:
            raise RuntimeError(f"{said['errors']} of {said['requests']} requests failed")
        cost = None if before is None or after is None else (after - before) / said["requests"]
        return Turn(said["requests"] * 1e6 / said["took_us"], said["p95_us"] / 1000, cost)

    def _load(self, way: str, seconds: int) -> dict[str, int]:
        url = f"http://{self.addresses[self.options.balancer]}:{PORTS[way]}/page?number=1"
        command = ["wrk", "--threads=1", f"--connections={self.options.connections}", f"--duration={seconds}s"]
        command += ["--timeout=5s", f"--script={FOLDER}/report.lua", url]
        return json.loads(self.lab.run(self.options.load, *command, timeout_s=seconds + 60).splitlines()[-1])

    def _cpu_us(self, way: str) -> float | None:
        show = ["systemctl", "show", "--property=CPUUsageNSec", "--value", f"{UNIT}-{way}"]
        said = self.lab.run(self.options.balancer, *show)
        # what is not known is the largest number there is, or words
        return int(said) / 1000 if said.isdigit() and int(said) < 1 << 63 else None


def arguments(argv: t.Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balancer", default="lb1", help="lab host of the balancers; it has nginx (default: lb1)")
    parser.add_argument("--load", default="lb2", help="lab host that asks (default: lb2)")
    parser.add_argument("--servers", nargs="+", default=["app1", "app2", "app3"], help="lab hosts behind the balancers")
    parser.add_argument("--connections", type=int, default=32, help="clients at once (default: %(default)s)")
    parser.add_argument("--body-bytes", type=int, default=1000, help="length of an answer (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="length of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of a second, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 1
    if min(options.rounds, options.seconds, options.connections, options.body_bytes) < 1:
        parser.error("--rounds, --seconds, --connections and --body-bytes must be at least 1")
    known = addresses()
    for host in (options.balancer, options.load, *options.servers):
        if host not in known:
            parser.error(f"there is no host {host} in the lab; give some of {', '.join(known)}")
    return options


def measure(options: argparse.Namespace, lab: Lab) -> None:
    """Run all turns and print their figures."""
    turns: dict[str, list[Turn]] = {}
    began_load = round(os.getloadavg()[0], 2)
    bench = Bench(options, lab)
    with alone(BENCH), bench.running():
        # the checks have seen all servers by then
        time.sleep(2)
        for number in range(options.rounds):
            ways = [*PORTS][number % len(PORTS) :] + [*PORTS][: number % len(PORTS)]
            for way in ways:
                try:
                    turns.setdefault(way, []).append(bench.turn(way))
                except RuntimeError as error:
                    raise RuntimeError(f"{way}: {error}") from error
    more = {"connections": options.connections, "seconds": options.seconds, "load": began_load}
    for way in ("nginx", "lua"):
        for peer in ("plain", "haproxy"):
            for what, unit_, better, digits in (
                ("requests_per_s", "requests/s", True, 0),
                ("p95_ms", "ms", False, 2),
                ("cpu_us", "us/request", False, 1),
            ):
                values = [[getattr(turn, what) for turn in turns[one]] for one in (way, peer)]
                if None in values[0] + values[1]:
                    continue
                line = figure(
                    BENCH,
                    f"{way}_{what}_vs_{peer}",
                    unit_,
                    *values,
                    bench.versions[peer],
                    more_is_better=better,
                    digits=digits,
                    ratio_digits=3,
                    **more,
                )
                print(json.dumps(line), flush=True)


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    return run_on_lab(lambda lab: measure(options, lab))


if __name__ == "__main__":
    sys.exit(main())
