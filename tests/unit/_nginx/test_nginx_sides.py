# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two sides of an upstream with a canary, in a real nginx: shares, cookies, what is counted, and what a reload keeps."""

from __future__ import annotations

import collections
import contextlib
import http.client
import pathlib
import re
import socket
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._nginx.canary.plan import find
from balancers.world import Balancer, Server, get, installed
from ports import free_port


class Sides:
    """A load balancer with a stable side of two servers and a canary of one."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.balancer = Balancer(directory, installed())
        self.stable = [Server("a1"), Server("a2")]
        self.canary = Server("b1")
        self.port = free_port()

    def describe(self, canary: t.Sequence[Server] = (), others: t.Any = None, **options: t.Any) -> dict[str, t.Any]:
        servers = [{"address": one.address} for one in canary or [self.canary]]
        upstream = {
            "name": "app",
            "servers": [{"address": one.address} for one in self.stable],
            "canary": {"servers": servers, **options},
            **(others or {}),
        }
        return {
            "upstreams": [upstream],
            "virtual_servers": [{"name": "app", "port": self.port, "upstream": "app", "read_timeout_s": 2}],
        }

    def start(self, **options: t.Any) -> None:
        self.balancer.start(self.describe(**options))

    def counts(self, total: int, headers: dict[str, str] | None = None) -> collections.Counter[str]:
        """Make requests one after the other over one connection; return how many each server answered."""
        found: collections.Counter[str] = collections.Counter()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            for _dummy in range(total):
                connection.request("GET", "/", headers=headers or {})
                answer = connection.getresponse()
                text = answer.read().decode()
                found[text[10:12] if answer.status == 200 else str(answer.status)] += 1
        return found

    def close(self) -> None:
        self.balancer.stop()
        for one in (*self.stable, self.canary):
            with contextlib.suppress(OSError):
                one.close()


@pytest.fixture(name="sides")
def sides_fixture(tmp_path: pathlib.Path) -> t.Iterator[Sides]:
    found = Sides(tmp_path)
    try:
        yield found
    finally:
        found.close()


def test_a_canary_gets_its_share_and_the_workers_agree_on_it(sides: Sides) -> None:
    sides.start(percent=25)
    # a connection of its own each, so that all workers take part
    names = collections.Counter(get(sides.port)[2]["name"] for _dummy in range(400))
    assert abs(names["b1"] - 100) <= 4, names
    assert abs(names["a1"] - names["a2"]) <= 40, names
    sides.balancer.share(0)
    assert sides.counts(200)["b1"] == 0
    sides.balancer.share(100)
    assert sides.counts(200) == {"b1": 200}
    sides.balancer.share(1)
    assert 8 <= sides.counts(1000)["b1"] <= 12


def test_a_pattern_in_the_requests_does_not_aim_at_the_canary(sides: Sides) -> None:
    sides.start(percent=25)
    # every fourth request, as of a page with three pictures
    found = [next(iter(sides.counts(1))) for _dummy in range(400)]
    for start in range(4):
        assert 15 <= found[start::4].count("b1") <= 35


def test_a_cookie_keeps_a_client_at_its_side_while_the_share_grows_and_all_come_back(sides: Sides) -> None:
    sides.start(percent=10, cookie="side", cookie_ttl_s=600)
    clients = []
    for _dummy in range(100):
        _status, headers, said = get(sides.port)
        assert re.fullmatch(r"side=\d{1,4}; Path=/; HttpOnly; SameSite=Lax; Max-Age=600", headers["Set-Cookie"])
        clients.append((headers["Set-Cookie"].partition(";")[0], said["name"]))
    assert 8 <= sum(name == "b1" for _cookie, name in clients) <= 12

    def at_canary() -> set[str]:
        found = set()
        for cookie, _name in clients:
            _status, headers, said = get(sides.port, headers={"Cookie": cookie})
            assert "Set-Cookie" not in headers
            found |= {cookie} if said["name"] == "b1" else set()
        return found

    before = at_canary()
    assert before == {cookie for cookie, name in clients if name == "b1"}
    sides.balancer.share(50)
    assert before < at_canary()
    sides.balancer.share(0)
    assert at_canary() == set()
    # what no client was given is no place
    for wrong in ("side=12345", "side=1e3", "side=-1", "side="):
        assert "Set-Cookie" in get(sides.port, headers={"Cookie": wrong})[1]


def test_an_affinity_holds_on_each_side(sides: Sides) -> None:
    sides.start(percent=50, cookie="side", others={"affinity": {"cookie": "server"}})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", sides.port, timeout=20)) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        name = answer.read().decode()[10:12]
        cookies = [value.partition(";")[0] for header, value in answer.getheaders() if header == "Set-Cookie"]
    assert [cookie.partition("=")[0] for cookie in cookies] == ["side", "server"]
    assert sides.counts(50, {"Cookie": "; ".join(cookies)}) == {name: 50}


def test_a_share_outlives_a_reload_and_ends_with_another_declaration(sides: Sides) -> None:
    sides.start(percent=0)
    sides.balancer.share(40)
    sides.balancer.start(sides.describe(others={"max_fails": 7}))
    assert sides.balancer.canary()["percent"] == 40
    # a server more is the same canary
    more = Server("b2")
    try:
        sides.balancer.start(sides.describe(canary=[sides.canary, more]))
        assert sides.balancer.canary()["percent"] == 40
        # other servers are another one: nobody shall meet a canary that was never told of
        sides.balancer.start(sides.describe(canary=[more]))
        assert sides.balancer.canary()["percent"] == 0
    finally:
        more.close()
    sides.balancer.start(sides.describe(percent=7))
    assert sides.balancer.canary()["percent"] == 7


def test_a_share_that_is_lent_ends_by_itself_at_0(sides: Sides) -> None:
    sides.start(percent=30)
    sides.balancer.share(60, 1)
    said = sides.balancer.canary()
    assert (said["percent"], said["declared_percent"]) == (60, 30)
    assert 0 < said["lease_s"] <= 1
    time.sleep(1.1)
    assert sides.balancer.canary()["percent"] == 0
    assert sides.balancer.canary()["lease_s"] is None
    assert sides.counts(100)["b1"] == 0


def test_each_side_has_its_own_figures(sides: Sides) -> None:
    sides.start(percent=50)
    sides.canary.delay_s = 0.05
    sides.canary.status = lambda: 500
    began = time.monotonic()
    assert sides.counts(100)["500"] == pytest.approx(50, abs=2)
    most_ms = 1000 * (time.monotonic() - began)
    said = sides.balancer.canary()
    assert said["canary"]["requests"] == said["canary"]["errors"] == pytest.approx(50, abs=2)
    assert (said["stable"]["requests"], said["stable"]["errors"]) == (100 - said["canary"]["requests"], 0)
    assert 50 <= said["canary"]["p95_ms"] <= most_ms
    # the module computes the same from the histogram
    share = find({"lb1": [{"name": "app", "canary": said}]}, "app")["lb1"]
    assert share.canary.p95_ms == pytest.approx(said["canary"]["p95_ms"], abs=0.06)
    assert share.stable.p95_ms == pytest.approx(said["stable"]["p95_ms"], abs=0.06)
    metrics = sides.balancer.text("/metrics").splitlines()
    labels = 'upstream="app",side="canary"'
    assert 'headroom_upstream_canary_percent{upstream="app"} 50' in metrics
    assert f"headroom_upstream_side_errors_total{{{labels}}} {said['canary']['requests']}" in metrics
    assert f'headroom_upstream_side_seconds_bucket{{{labels},le="+Inf"}} {said["canary"]["requests"]}' in metrics
    assert f'headroom_upstream_side_seconds_bucket{{{labels},le="0.032"}} 0' in metrics
    # a new share begins anew in what is shown, and not for Prometheus
    sides.balancer.share(51)
    assert sides.balancer.canary()["canary"] == {"requests": 0, "errors": 0, "p95_ms": None, "histogram": []}
    again = sides.balancer.text("/metrics").splitlines()
    assert f"headroom_upstream_side_errors_total{{{labels}}} {said['canary']['requests']}" in again


def test_a_canary_that_nobody_listens_for_costs_clients_nothing_and_counts_as_errors(sides: Sides) -> None:
    sides.start(percent=50)
    sides.canary.close()
    found = sides.counts(100)
    assert sum(found.values()) == found["a1"] + found["a2"] == 100, found
    said = sides.balancer.canary()
    assert said["canary"]["errors"] == said["canary"]["requests"] == pytest.approx(50, abs=2)
    assert said["stable"]["errors"] == 0


def test_a_client_that_gives_up_shows_in_the_times_of_its_side(sides: Sides) -> None:
    sides.start(percent=100)
    sides.canary.delay_s = 1.5
    for _dummy in range(3):
        with socket.create_connection(("127.0.0.1", sides.port), 5) as one:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.4)
    time.sleep(0.3)
    said = sides.balancer.canary()["canary"]
    assert (said["requests"], said["errors"]) == (3, 0)
    assert said["p95_ms"] >= 300


def test_a_probe_is_not_counted_as_a_client(sides: Sides) -> None:
    sides.start(percent=50)
    for _dummy in range(4):
        sides.balancer.text("/probe/app")
    said = sides.balancer.canary()
    assert said["canary"]["requests"] == said["stable"]["requests"] == 0


def test_another_upstream_can_be_the_canary(sides: Sides) -> None:
    described = sides.describe()
    described["upstreams"][0]["canary"] = {"upstream": "next", "percent": 50}
    described["upstreams"].append({"name": "next", "servers": [{"address": sides.canary.address}]})
    sides.balancer.start(described)
    assert sides.counts(100)["b1"] == pytest.approx(50, abs=2)
    assert sides.balancer.canary()["upstream"] == "next"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("upstream=other&percent=1", 404),
        ("upstream=app-canary&percent=1", 404),
        ("upstream=app", 400),
        ("upstream=app&percent=101", 400),
        ("upstream=app&percent=1.5", 400),
        ("upstream=app&percent=nan", 400),
        ("upstream=app&percent=1&lease_s=-1", 400),
        ("upstream=app&percent=1&lease_s=nan", 400),
    ],
)
def test_a_share_that_cannot_be_is_refused(sides: Sides, body: str, status: int) -> None:
    sides.start(percent=3)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", sides.balancer.management, timeout=9)) as one:
        one.request("POST", "/canaries", body, {"X-Headroom": "1"})
        assert one.getresponse().status == status
    assert sides.balancer.canary()["percent"] == 3
