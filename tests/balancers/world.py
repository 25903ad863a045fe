# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world of load balancers for tests: real nginx processes on loopback, with what the collection renders, before small servers.

Where web.nginx finds none, such tests are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import http.client
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.model import Build
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.observe import OPENER
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.plan import parse_build
from ansible_collections.headroom.scale.plugins.module_utils._nginx.options import config_spec, parse_wanted
from ansible_collections.headroom.scale.plugins.module_utils._nginx.render import render
from ports import free_port
from web import nginx

NGINX_ROOT = str(nginx.FOUND or "").rstrip("/")
PROGRAM = f"{NGINX_ROOT}/usr/sbin/nginx"
WAIT_S = 15


def filled(spec: dict[str, t.Any], values: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return values with the defaults of a spec, as AnsibleModule hands them over."""
    found: dict[str, t.Any] = {}
    for name, option in spec.items():
        value = values.get(name, {} if option.get("apply_defaults") else option.get("default"))
        if value is not None and "options" in option:
            value = (
                [filled(option["options"], one) for one in value]
                if option["type"] == "list"
                else filled(option["options"], value)
            )
        found[name] = value
    return found


def environment() -> dict[str, str]:
    """Return the environment in which the program finds its libraries."""
    libraries = ":".join(glob.glob(f"{NGINX_ROOT}/usr/lib/*-linux-gnu") + glob.glob(f"{NGINX_ROOT}/lib/*-linux-gnu"))
    return {**os.environ, "LD_LIBRARY_PATH": libraries} if NGINX_ROOT else dict(os.environ)


def installed() -> Build:
    """Return what nginx there is; without it the test is skipped."""
    if not os.path.exists(PROGRAM):
        pytest.skip("no nginx with Lua here: run tools/unpack-servers")
    done = subprocess.run([PROGRAM, "-V"], env=environment(), capture_output=True, text=True, check=True)
    build = parse_build(done.stderr)
    directory = f"{NGINX_ROOT}{build.modules_directory}"
    modules = frozenset(os.listdir(directory)) if os.path.isdir(directory) else frozenset[str]()
    if "ngx_http_lua_module.so" not in modules:
        pytest.skip("nginx has no Lua module")
    return dataclasses.replace(build, modules_directory=directory, modules=modules)


class Server:
    """A server of an upstream. It answers with its name, and as it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: t.Callable[[], int] = lambda: 200
        self.delay_s = 0.0
        self.requests = 0
        world = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                world.requests += 1
                time.sleep(world.delay_s)
                said = {"name": world.name, "headers": {name.lower(): one for name, one in self.headers.items()}}
                body = json.dumps(said).encode()
                self.send_response(world.status())
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        class Listener(http.server.ThreadingHTTPServer):
            request_queue_size = 1024
            daemon_threads = True

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown()
        self._listener.server_close()


class Balancer:
    """A running nginx with what the collection renders for a description."""

    def __init__(self, directory: pathlib.Path, build: Build, name: str = "lb1") -> None:
        self.directory = directory
        self.build = build
        self.name = name
        self.management = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, description: dict[str, t.Any]) -> None:
        """Start it, or let it take another description by a reload."""
        params = {**description, "management": {"port": self.management}}
        wanted = parse_wanted(filled(config_spec().options, params))
        base = self.directory / "headroom"
        release, files = render(wanted, self.build, {}, str(base))
        (base / release).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (base / release / name).write_text(self._adapted(text) if name == "nginx.conf" else text)
        config = self.directory / "nginx.conf"
        config.write_text((base / release / "nginx.conf").read_text())
        if self._process:
            self._process.send_signal(signal.SIGHUP)
        else:
            self._run(config)
        deadline = time.monotonic() + WAIT_S
        while release not in self._release():
            assert time.monotonic() < deadline, (self.directory / "error.log").read_text()[-3000:]
            time.sleep(0.05)
        # the old workers take no new connections a moment later
        time.sleep(0.2)

    def _run(self, config: pathlib.Path) -> None:
        self._process = subprocess.Popen(
            [PROGRAM, "-c", str(config), "-p", str(self.directory), "-g", "daemon off;"], env=environment()
        )

    def _adapted(self, text: str) -> str:
        """Return a configuration for loopback alone, with all files in one directory."""
        here = self.directory
        text = re.sub(r"^user .*;$", "user root;" if os.geteuid() == 0 else "", text, flags=re.MULTILINE)
        text = re.sub(r"^pid .*;$", f"pid {here}/pid;", text, flags=re.MULTILINE)
        text = text.replace("worker_processes auto;", "worker_processes 2;").replace("/var/log/nginx", str(here))
        text = text.replace("/etc/nginx/mime.types", f"{NGINX_ROOT}/etc/nginx/mime.types")
        text = re.sub(r"listen (\d+)([ ;])", r"listen 127.0.0.1:\1\2", text).replace("listen [::]:", "listen [::1]:")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"    {kind}_temp_path {here}/{kind};\n" for kind in kinds)
        lua = f'    lua_package_path "{NGINX_ROOT}/usr/share/lua/5.1/?.lua;;";\n' if "lua_shared_dict" in text else ""
        return text.replace("http {\n", f"http {{\n{places}{lua}", 1)

    def _release(self) -> str:
        try:
            return self.text("/release")
        except OSError:
            return ""

    def text(self, path: str) -> str:
        """Return what it says at its management address."""
        with OPENER.open(f"http://127.0.0.1:{self.management}{path}", timeout=WAIT_S) as answer:
            return str(answer.read().decode())

    def canary(self, upstream: str = "app") -> dict[str, t.Any]:
        """Return what it says of a canary."""
        rows = json.loads(self.text("/upstreams"))["upstreams"]
        return t.cast("dict[str, t.Any]", next(one["canary"] for one in rows if one["name"] == upstream))

    def share(self, percent: int, lease_s: float = 0) -> None:
        """Set a share past the module."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.management, timeout=WAIT_S)) as connection:
            body = f"upstream=app&percent={percent}&lease_s={lease_s:g}"
            connection.request("POST", "/canaries", body, {"X-Headroom": "1"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()

    def stop(self) -> None:
        """End it at once."""
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(WAIT_S)
            self._process = None


def get(
    port: int, path: str = "/", headers: dict[str, str] | None = None, host: str = "127.0.0.1", timeout_s: float = 20
) -> tuple[int, dict[str, str], dict[str, t.Any]]:
    """Ask over a connection of its own; return status, headers and what the body says."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=timeout_s)) as connection:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        body = answer.read()
    try:
        said = json.loads(body)
    except ValueError:
        said = {}
    return answer.status, dict(answer.getheaders()), said


class Load:
    """Clients that ask at some ports in turn, all the time."""

    def __init__(self, ports: t.Sequence[int], clients: int = 4, pause_s: float = 0.005) -> None:
        self.statuses: dict[t.Any, int] = {}
        self._ports = ports
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        while not self._stop.wait(self._pause_s):
            number += 1
            try:
                found: t.Any = get(self._ports[number % len(self._ports)])[0]
            except (OSError, http.client.HTTPException) as error:
                found = type(error).__name__
            with self._lock:
                self.statuses[found] = self.statuses.get(found, 0) + 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
