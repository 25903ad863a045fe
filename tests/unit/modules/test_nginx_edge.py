# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module nginx_edge with a real nginx, before origins that answer over HTTP: the request table, the cache, purges, and bad input."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time
import typing as t
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx import apply, observe
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.model import Management
from ansible_collections.headroom.scale.plugins.modules import cache_flush, nginx_edge
from cdn.table import DESCRIPTION, ROWS, SECURITY
from ports import free_port
from web.nginx import Nginx

COUNTRY = "CloudFront-Viewer-Country"


class Origin(ThreadingHTTPServer):
    """A web server that says who it is and what it was asked; what it answers for a path can be set."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.status = 200
        self.headers: dict[str, str] = {"Cache-Control": "max-age=60"}
        self.slow_s = 0.0
        self.version = 1
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def process_request(self, request: t.Any, client_address: t.Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def close(self) -> None:
        """End, with the connections that are kept open."""
        self.shutdown()
        self.server_close()
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """One connection to an origin."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def do_GET(self) -> None:
        """Answer as the origin is told to; probes are answered apart."""
        sent = {name.lower(): value for name, value in self.headers.items()}
        probe = "x-forwarded-for" not in sent
        self.rfile.read(int(sent.get("content-length", 0)))
        if not probe:
            self.server.asked.append((self.command, self.path, sent))
            time.sleep(self.server.slow_s)
        if sent.get("upgrade") == "websocket" and sent.get("connection", "").lower() == "upgrade":
            self._talk(sent)
            return
        body = json.dumps(
            {"origin": self.server.name, "version": self.server.version, "path": self.path, "sent": sent}
        ).encode()
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _talk(self, sent: dict[str, str]) -> None:
        """Change to another protocol, in which what is said comes back in capitals."""
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Key", sent["sec-websocket-key"])
        self.end_headers()
        while text := self.connection.recv(100):
            self.wfile.write(text.upper())
        self.close_connection = True

    do_POST = do_HEAD = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Answer(t.NamedTuple):
    """What a viewer got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> t.Any:
        return json.loads(self.body)

    @property
    def cache(self) -> str:
        return self.headers.get("x-cache", "")


class World:
    """Origins, and an edge that the module keeps before them."""

    def __init__(self, nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
        self.nginx = nginx
        self.capsys = capsys
        self.origins = {name: Origin(name) for name in ("one", "two")}
        self.port, self.tls_port, self.management, internal = (free_port() for _one in range(4))
        self.params: dict[str, t.Any] = {
            "name": "shop",
            "region": "us-east-1",
            "ipv6": False,
            "http_port": self.port,
            "https_port": self.tls_port,
            "internal_port": internal,
            "management": {"port": self.management},
            "origins": [self.origin(name) for name in self.origins],
            "origin_groups": [{"name": "both", "members": ["one", "two"], "failover_status": [500, 503]}],
            "default_behavior": self.behavior(origin="both"),
            "cache": {"directory": str(nginx.directory / "cache")},
            "user": "root",
            "worker_connections": 256,
            "program": str(nginx.program),
            "config_file": str(nginx.config_file),
        }

    def origin(self, name: str, server: str = "", **options: t.Any) -> dict[str, t.Any]:
        """Describe an origin."""
        port = self.origins[server or name].server_address[1]
        return {"name": name, "domain_name": "127.0.0.1", "protocol_policy": "http-only", "http_port": port, **options}

    @staticmethod
    def behavior(**options: t.Any) -> dict[str, t.Any]:
        """Describe a behaviour of an edge without TLS."""
        return {"viewer_protocol_policy": "allow-all", **options}

    def run(self, check: bool = False, **changes: t.Any) -> dict[str, t.Any]:
        """Run the module and return its result."""
        given = {**copy.deepcopy(self.params), **changes, "_ansible_check_mode": check, "_ansible_diff": True}
        self.capsys.readouterr()
        with patch_module_args(given), pytest.raises(SystemExit):
            nginx_edge.main()
        result: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        assert "Traceback" not in str(result)
        return result

    def have(self, **changes: t.Any) -> dict[str, t.Any]:
        """Put a description in force."""
        self.params.update(changes)
        result = self.run()
        assert not result.get("failed"), (result["msg"], self.nginx.said()[-2000:])
        return result

    def ask(self, path: str, method: str = "GET", port: int = 0, tls: bool = False, **headers: t.Any) -> Answer:
        """Ask over a connection of its own; an underscore in the name of a header stands for a dash."""
        connection: http.client.HTTPConnection
        if tls:
            context = ssl.create_default_context(cafile=str(self.nginx.directory / "edge.crt"))
            connection = http.client.HTTPSConnection("localhost", port or self.tls_port, timeout=30, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value.encode() if isinstance(value, str) else value)
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)

    def purge(self, path: str, **headers: str) -> int:
        return self.ask(path, "PURGE", self.management, **headers).status


@pytest.fixture
def world(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[World]:
    """An edge that is not set up yet."""
    nginx = Nginx(tmp_path, monkeypatch)
    world = World(nginx, capsys)
    try:
        yield world
    finally:
        nginx.stop()
        for origin in world.origins.values():
            origin.close()
    assert "lua entry thread aborted" not in nginx.said()
    assert "failed to run" not in nginx.said()


def certificate(directory: pathlib.Path) -> dict[str, str]:
    """Make a certificate for localhost."""
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [
            "openssl",
            "req",
            *options.split(),
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            "edge.key",
            "-out",
            "edge.crt",
        ],
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return {"certificate": (directory / "edge.crt").read_text(), "key": (directory / "edge.key").read_text()}


def test_the_edge_passes_the_table(world: World) -> None:
    description = copy.deepcopy(DESCRIPTION)
    for name in ("aliases", "certificate"):
        del description[name]
    for one in description["origins"]:
        world.origins[one["name"]] = Origin(one["name"])
        one.update(world.origin(one["name"]), type="custom")
    world.have(
        **description,
        tls=certificate(world.nginx.directory),
        country={"header": COUNTRY},
        trusted_proxies=["127.0.0.1"],
    )
    groups = {group["name"]: group["members"][0] for group in description["origin_groups"]}
    # the second time from the cache, which must not take one for another
    for turn in ("MISS", "HIT"):
        for (path, country, agent), (status, origin, cache_control) in ROWS:
            headers = {COUNTRY.replace("-", "_"): country} if country else {}
            answer = world.ask(path, tls=True, User_Agent=agent, **headers)
            row = (path, country, agent, turn, answer)
            for name, value in SECURITY.items():
                assert answer.headers[name] == value, row
            if status is not None:
                assert (answer.status, answer.headers["cache-control"]) == (status, "no-store"), row
                continue
            assert answer.status == 200, row
            assert answer.said["origin"] == groups.get(str(origin), origin), row
            assert answer.headers["cache-control"] == (cache_control or "max-age=60"), row
            key = answer.said["sent"].get("x-origin-key")
            assert key == ("open-sesame-1" if answer.said["origin"] == "us-east-1" else None), row
            if path.startswith("/api/"):
                assert answer.cache == "BYPASS", row
            elif turn == "HIT":
                assert answer.cache == "HIT", row
    redirected = world.ask("/news?a=1", Host="localhost")
    assert (redirected.status, redirected.headers["location"]) == (301, f"https://localhost:{world.tls_port}/news?a=1")
    # a secret is where only root reads it
    assert "open-sesame-1" not in world.nginx.config_file.read_text()


def test_a_country_counts_from_a_trusted_proxy_alone_or_by_network(world: World) -> None:
    rules = {"deny": [{"countries": ["KP"], "status": 451}]}
    world.have(edge_rules=rules, country={"header": "X-Country"}, trusted_proxies=["192.0.2.1"])
    assert world.ask("/", X_Country="KP").status == 200
    networks = [{"network": "127.0.0.0/8", "country": "KP"}, {"network": "127.0.0.1", "country": "DE"}]
    world.have(country={"networks": networks}, trusted_proxies=[])
    assert world.ask("/", X_Country="KP").status == 200
    world.have(country={"networks": networks[:1]})
    assert world.ask("/").status == 451


def test_answers_are_kept_with_their_age_and_told_apart_by_the_cache_key(world: World) -> None:
    world.origins["one"].headers = {"Cache-Control": "max-age=60", "Age": "7", "Vary": "X-Other"}
    key = {"headers": ["X-Plan"], "cookies": ["lang"], "query_strings": ["page"]}
    world.have(default_behavior=world.behavior(origin="one", cache_key=key, forward={"query_strings": ["trace"]}))
    first = world.ask("/a?page=1&trace=x&junk=1", X_Plan="gold", X_Other="1", Cookie="lang=de; session=s3", X_Junk="1")
    assert (first.cache, first.headers["age"], first.headers["x-edge-region"]) == ("MISS", "7", "us-east-1")
    sent = first.said["sent"]
    assert (first.said["path"], sent["x-plan"], sent["cookie"]) == ("/a?page=1&trace=x", "gold", "lang=de")
    assert [name for name in sent if name.startswith("x-headroom") or name in ("x-junk", "x-other")] == []
    time.sleep(1.2)
    again = world.ask("/a?trace=y&page=1", X_Plan="gold", X_Other="2", Cookie="other=1; lang=de")
    assert (again.cache, again.body) == ("HIT", first.body)
    assert 8 <= int(again.headers["age"]) <= 30
    assert [name for name in again.headers if name.startswith("x-headroom")] == []
    for path, plan, cookie in (
        ("/a?page=2", "gold", "lang=de"),
        ("/a?page=1", "free", "lang=de"),
        ("/a?page=1", "gold", "lang=fr"),
    ):
        assert world.ask(path, X_Plan=plan, Cookie=cookie).cache == "MISS"
    assert world.ask("/a?page=1", "HEAD", X_Plan="gold", Cookie="lang=de").cache == "HIT"


@pytest.mark.parametrize(
    ("ttl", "headers", "kept"),
    [
        ({}, {"Cache-Control": "no-store"}, False),
        ({}, {"Cache-Control": "private, max-age=60"}, False),
        ({"min_s": 60, "default_s": 60}, {"Cache-Control": "no-store"}, True),
        ({}, {}, True),
        ({"default_s": 0}, {}, False),
        ({"default_s": 0}, {"Cache-Control": "s-maxage=60, max-age=0"}, True),
        ({"default_s": 3, "max_s": 3}, {"Cache-Control": "max-age=600"}, None),
        ({"default_s": 0}, {"Expires": "Fri, 01 Jan 2100 00:00:00 GMT"}, True),
        ({}, {"Expires": "0"}, False),
        ({}, {"Cache-Control": "max-age=60", "Set-Cookie": "a=b"}, False),
        ({}, {"Cache-Control": "max-age=60", "Vary": "*"}, False),
    ],
)
def test_the_times_of_a_behaviour_bound_those_of_the_origin(
    world: World, ttl: dict[str, int], headers: dict[str, str], kept: bool | None
) -> None:
    world.origins["one"].headers = headers
    world.have(default_behavior=world.behavior(origin="one", ttl=ttl), cache={**world.params["cache"], "stale_s": 0})
    assert world.ask("/").cache == "MISS"
    if kept is None:
        assert world.ask("/").cache == "HIT"
        # nginx counts whole seconds
        time.sleep(4.1)
        assert world.ask("/").cache == "EXPIRED"
        return
    assert (world.ask("/").cache == "HIT") is kept


def test_requests_for_the_same_are_one_at_the_origin(world: World) -> None:
    world.have()
    world.origins["one"].slow_s = 0.5
    found: list[Answer] = []
    threads = [threading.Thread(target=lambda: found.append(world.ask("/slow"))) for _one in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in found] == [200] * 10
    assert len(world.origins["one"].asked) == 1
    assert sorted(answer.cache for answer in found) == ["HIT"] * 9 + ["MISS"]


def test_what_has_expired_is_served_while_it_is_fetched_anew_and_when_the_origin_fails(world: World) -> None:
    one = world.origins["one"]
    one.headers = {"Cache-Control": "max-age=1"}
    world.have(default_behavior=world.behavior(origin="one"))
    assert world.ask("/").cache == "MISS"
    time.sleep(2.1)
    one.version, one.slow_s = 2, 0.3
    stale = world.ask("/")
    assert (stale.cache, stale.said["version"]) == ("STALE", 1)
    assert int(stale.headers["age"]) >= 2
    deadline = time.monotonic() + 20
    while world.ask("/").said["version"] != 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    one.headers = {"Cache-Control": "max-age=1, stale-while-revalidate=0"}
    one.slow_s = 0.0
    world.purge("/")
    time.sleep(0.01)
    world.ask("/")
    time.sleep(2.1)
    one.status = 503
    failed = world.ask("/")
    assert (failed.status, failed.cache, failed.said["version"]) == (200, "STALE", 2)
    unknown = world.ask("/other")
    assert (unknown.status, unknown.cache) == (503, "MISS")


def test_a_group_asks_its_second_origin_and_only_when_it_should(world: World) -> None:
    one = world.origins["one"]
    one.headers = {"Cache-Control": "no-store"}
    world.have()
    for status, asked in ((200, "one"), (404, "one"), (500, "two"), (503, "two"), (502, "two")):
        one.status = status
        assert world.ask(f"/{status}").said["origin"] == asked, status
    one.close()
    assert world.ask("/gone").said["origin"] == "two"


def test_a_purge_of_a_path_of_all_below_it_and_of_a_tag(world: World) -> None:
    one = world.origins["one"]
    behavior = world.behavior(origin="one", cache_key={"query_strings": ["page"]})
    world.have(default_behavior=behavior)

    def cached() -> list[str]:
        return [world.ask(path).cache for path in ("/a?page=1", "/a?page=2", "/b/c", "/b/d", "/tagged")]

    one.headers = {"Cache-Control": "max-age=60", "Cache-Tag": "user-1, shop", "Surrogate-Key": "page  all"}
    tagged = world.ask("/tagged")
    assert {"cache-tag", "surrogate-key"} & set(tagged.headers) == set()
    one.headers = {"Cache-Control": "max-age=60"}
    cached()
    assert cached() == ["HIT"] * 5
    for path, headers, left in (
        ("/a", {}, [0, 0, 1, 1, 1]),
        ("/%61?page=1", {}, [0, 0, 1, 1, 1]),
        ("/b/*", {}, [1, 1, 0, 0, 1]),
        ("/", {"Cache_Tag": "user-2 user-11"}, [1, 1, 1, 1, 1]),
        ("/", {"Cache_Tag": "user-2,user-1"}, [1, 1, 1, 1, 0]),
        ("/*", {}, [0, 0, 0, 0, 0]),
    ):
        # a purge in the millisecond of an answer takes it along
        time.sleep(0.01)
        assert world.purge(path, **headers) == 200
        time.sleep(0.01)
        assert cached() == ["HIT" if one else "MISS" for one in left], path
        assert cached() == ["HIT"] * 5
        if path == "/b/*":
            one.headers["Surrogate-Key"] = "user-1"
            world.purge("/tagged")
            time.sleep(0.01)
            world.ask("/tagged")
            del one.headers["Surrogate-Key"]
    assert world.purge("/", Surrogate_Key=" ") == 400
    assert world.ask("/a", "PURGE").status == 405


def test_an_answer_that_was_asked_for_before_a_purge_is_not_kept_after_it(world: World) -> None:
    one = world.origins["one"]
    world.have(default_behavior=world.behavior(origin="one"))
    one.slow_s = 0.6
    early = threading.Thread(target=world.ask, args=("/a",))
    early.start()
    time.sleep(0.3)
    assert world.purge("/a") == 200
    early.join()
    one.slow_s, one.version = 0.0, 2
    assert world.ask("/a").said["version"] == 2


def test_a_purge_outlives_nginx_and_cache_keeps(world: World) -> None:
    one = world.origins["one"]
    world.have(default_behavior=world.behavior(origin="one"))
    for path in ("/a", "/b"):
        world.ask(path)
    time.sleep(0.01)
    assert world.purge("/a") == 200
    world.nginx.stop()
    one.version = 2
    world.nginx.start()
    assert [world.ask(path).said["version"] for path in ("/a", "/b")] == [2, 1]
    assert not world.run()["changed"]


def test_cache_flush_speaks_it(world: World) -> None:
    one = world.origins["one"]
    one.headers = {"Cache-Control": "max-age=60", "Cache-Tag": "user-7"}
    world.have(default_behavior=world.behavior(origin="one"))
    world.ask("/users/7")
    world.ask("/elsewhere")
    one.version = 2
    time.sleep(0.01)
    layer = {
        "name": "edges",
        "urls": [f"http://127.0.0.1:{world.management}"],
        "wildcards": True,
        "tags_header": "Cache-Tag",
    }
    params = {
        "rules": {"user": {"paths": ["/users/{id}", "/users/{id}/*"], "tags": ["user-{id}"]}},
        "entities": [{"user": [7]}],
        "http_caches": [layer],
        "in_flight_s": 0,
    }
    world.capsys.readouterr()
    with patch_module_args(params), pytest.raises(SystemExit):
        cache_flush.main()
    result = json.loads(world.capsys.readouterr().out)
    assert [row["state"] for row in result["layers"]] == ["flushed"], result
    time.sleep(0.01)
    assert [world.ask(path).said["version"] for path in ("/users/7", "/elsewhere")] == [2, 2]


def test_what_is_not_let_through_is_refused(world: World) -> None:
    world.have(aliases=["www.example.com"])
    assert world.ask("/", Host="other.example.com").status == 421
    refused = world.ask("/", "POST", Host="www.example.com", Content_Length="0")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert world.ask("/", Host="www.example.com").status == 200


def test_check_mode_foretells_a_run_and_a_second_one_changes_nothing(world: World) -> None:
    cache = pathlib.Path(world.params["cache"]["directory"])

    def files() -> list[str]:
        # nginx opens its logs to check a configuration
        return sorted(str(path) for path in world.nginx.directory.rglob("*") if path.parent.name != "log")

    before = files()
    foretold = world.run(check=True)
    assert (foretold["changed"], world.nginx.master, cache.exists()) == (True, None, False)
    assert files() == before
    made = world.have()
    assert made["plan"] == foretold["plan"]
    assert made["plan"][-1] == {"action": "start", "object": "nginx", "why": "it does not run"}
    second = world.run()
    assert (second["changed"], second["plan"]) == (False, [])
    change = {"default_behavior": world.behavior(origin="both", ttl={"default_s": 5})}
    want = [
        {
            "action": "change",
            "object": "behaviour default ttl",
            "why": "0 to 31536000 s, else 86400 s -> 0 to 31536000 s, else 5 s",
        },
        {"action": "reload", "object": "nginx", "why": "its configuration changes"},
    ]
    foretold = world.run(check=True, **change)
    assert (foretold["plan"], world.run()["changed"]) == (want, False)
    assert world.run(**change)["plan"] == want
    assert not world.run(**change)["changed"]
    # a secret changes, and is not told
    headers = world.run(
        **change, origins=[world.origin("one", headers={"X-Key": "open-sesame-2"}), world.origin("two")]
    )
    assert headers["changed"]
    assert "open-sesame-2" not in str(headers)


def test_a_cache_outlives_a_reload(world: World) -> None:
    world.have()
    world.ask("/")
    world.have(region="eu-central-1")
    again = world.ask("/")
    assert (again.cache, again.headers["x-edge-region"]) == ("HIT", "eu-central-1")


def test_a_websocket_goes_through_where_nothing_is_kept(world: World) -> None:
    keeps_none = {"min_s": 0, "default_s": 0, "max_s": 0}
    world.have(behaviors=[world.behavior(path="/live", origin="one", ttl=keeps_none)])
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "a2V5",
        "Sec-WebSocket-Version": "13",
    }
    for path, status in (("/live", b"101"), ("/other", b"200")):
        with socket.create_connection(("127.0.0.1", world.port), timeout=20) as viewer:
            lines = [f"GET {path} HTTP/1.1", "Host: shop", *(f"{name}: {value}" for name, value in upgrade.items())]
            viewer.sendall("\r\n".join([*lines, "", ""]).encode())
            said = viewer.recv(4096)
            assert said.startswith(b"HTTP/1.1 " + status), said
            if status == b"101":
                assert b"key: a2v5" in said.lower()
                for text in (b"one", b"another"):
                    viewer.sendall(text)
                    assert viewer.recv(100) == text.upper()
    assert world.ask("/live").status == 200


def test_an_answer_by_the_workers_of_before_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.have()
    changes = {"origins": [world.origin("one"), world.origin("two"), world.origin("new", "one", http_port=free_port())]}
    before: frozenset[int] = frozenset()

    def serving(management: Management) -> str:
        """Hold new workers once they serve, so that those of before take what comes in the tenth of a second that both do."""
        release = observe.serving(management)
        new = observe.workers_of(world.nginx.master) - before
        if new and release in world.nginx.config_file.read_text():
            for pid in new:
                os.kill(pid, signal.SIGSTOP)
            goes_on = threading.Timer(0.4, lambda: [os.kill(pid, signal.SIGCONT) for pid in new])
            goes_on.start()
            held.append(goes_on)
        return release

    held: list[threading.Timer] = []
    monkeypatch.setattr(apply, "serving", serving)
    monkeypatch.setattr(apply, "POLL_S", 0.01)
    for _dummy in range(2):
        before = observe.workers_of(world.nginx.master)
        failed = world.run(**changes, wait_s=2)
        assert "origin new does not answer a probe" in failed.get("msg", ""), failed
        for one in held:
            one.join()
    assert len(held) == 2


def test_what_does_not_serve_is_taken_back(world: World) -> None:
    world.have()
    config = world.nginx.config_file.read_text()
    for changes, why in (
        (
            {"origins": [world.origin("one", http_port=free_port()), world.origin("two")]},
            "origin one does not answer a probe",
        ),
        (
            {"http_port": world.management + 0, "management": {"port": world.origins["one"].server_address[1]}},
            "no new workers",
        ),
    ):
        failed = world.run(**changes, wait_s=8)
        assert failed["failed"], changes
        assert failed["errors"][0]["code"] == "restored"
        assert why in failed["msg"]
        assert "What was there is in force again." in failed["msg"]
        assert world.nginx.config_file.read_text() == config
        assert world.ask("/").status == 200
    assert not world.run()["changed"]
    # an origin that fails by itself stops no change of something else
    world.origins["two"].close()
    other = world.run(region="eu-west-1")
    assert not other.get("failed"), other
    assert (other["changed"], other["silent"]) == (True, ["two"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"region": "a b"}, "region"),
        ({"http_port": 0}, "http_port"),
        ({"internal_port": 70000}, "internal_port"),
        ({"internal_port": 80, "http_port": 80}, "internal_port"),
        ({"management": {"port": 80}, "http_port": 80}, "management.port"),
        ({"origins": []}, "origins"),
        ({"origins": [{"name": "b", "domain_name": "b.s3.amazonaws.com", "type": "s3"}], "origin_groups": []}, None),
        ({"default_behavior": {"origin": "both"}}, "default_behavior.viewer_protocol_policy"),
        (
            {
                "default_behavior": {
                    "origin": "one",
                    "methods": ["GET", "HEAD", "OPTIONS"],
                    "cached_methods": ["GET", "HEAD", "OPTIONS"],
                }
            },
            "default_behavior.cached_methods",
        ),
        (
            {
                "default_behavior": {
                    "origin": "one",
                    "viewer_protocol_policy": "allow-all",
                    "cache_key": {"headers": ["a_b"]},
                }
            },
            "default_behavior.cache_key.headers",
        ),
        ({"edge_rules": {"deny": [{"countries": ["KP"]}]}}, "country"),
        ({"country": {"header": "X-Country"}}, "country.header"),
        ({"country": {"header": "X Country"}, "trusted_proxies": ["192.0.2.1"]}, "country.header"),
        ({"country": {"networks": []}}, "country.networks"),
        ({"country": {"networks": [{"network": "x", "country": "DE"}]}}, "country.networks[0].network"),
        ({"country": {"networks": [{"network": "192.0.2.1", "country": "de"}]}}, "country.networks[0].country"),
        ({"country": {"networks": [{"network": "192.0.2.1", "country": "DE"}] * 2}}, "country.networks[1].network"),
        ({"cache": {"directory": "/"}}, "cache.directory"),
        ({"cache": {"directory": "/var/../etc"}}, "cache.directory"),
        ({"cache": {"size_mb": 0}}, "cache.size_mb"),
        ({"cache": {"inactive_s": 0}}, "cache.inactive_s"),
        ({"cache": {"stale_s": -1}}, "cache.stale_s"),
        ({"purge_allow": ["x"]}, "purge_allow"),
        ({"tls": {"certificate": "x", "key": "geheim"}}, "tls.certificate"),
        ({"origin_ca_certs": "/a;b"}, "origin_ca_certs"),
        ({"aliases": ["x"]}, "aliases[0]"),
    ],
)
def test_what_cannot_be_is_refused_by_name(world: World, changes: dict[str, t.Any], named: str | None) -> None:
    result = world.run(**changes)
    assert result["failed"]
    assert not result["changed"]
    if named:
        assert result["errors"][0]["option"] == named, result["msg"]
    assert "geheim" not in str(result)
    assert not world.nginx.config_file.exists()
