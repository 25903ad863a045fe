# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that fail, in a real nginx of two workers: when they are out, for how long, and how many requests try them again."""

from __future__ import annotations

import json
import pathlib
import threading
import time
import typing as t

import pytest
from balancers.world import Balancer, Server, get, installed
from ports import free_port


class Pair:
    """A load balancer before two servers."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.balancer = Balancer(directory, installed())
        self.servers = {"a1": Server("a1"), "a2": Server("a2")}
        self.port = free_port()

    def start(self, servers: t.Mapping[str, t.Mapping[str, t.Any]] | None = None, **upstream: t.Any) -> None:
        """Start it, or let it take another description by a reload."""
        rows = [{"address": one.address, **(servers or {}).get(name, {})} for name, one in self.servers.items()]
        virtual = {"name": "app", "port": self.port, "upstream": "app", "read_timeout_s": 1}
        self.balancer.start({"upstreams": [{"name": "app", "servers": rows, **upstream}], "virtual_servers": [virtual]})

    def state(self, name: str) -> str:
        """Return the state of a server."""
        (row,) = json.loads(self.balancer.text("/upstreams"))["upstreams"]
        address = self.servers[name].address
        return str(next(one["state"] for one in row["servers"] if one["address"] == address))

    def wait(self, name: str, state: str, asking: bool = False, most_s: float = 10) -> float:
        """Wait until a server has a state, and return when it had."""
        deadline = time.monotonic() + most_s
        while self.state(name) != state:
            assert time.monotonic() < deadline, (name, self.state(name))
            if asking:
                self.ask(1)
            time.sleep(0.01)
        return time.monotonic()

    def ask(self, count: int) -> list[int]:
        """Ask over connections of their own, and return the statuses."""
        return [get(self.port)[0] for _one in range(count)]

    def at_once(self, count: int) -> None:
        """Ask by so many clients at the same time."""
        threads = [threading.Thread(target=self.ask, args=(1,)) for _one in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture(name="pair")
def pair_fixture(tmp_path: pathlib.Path) -> t.Iterator[Pair]:
    pair = Pair(tmp_path)
    try:
        yield pair
    finally:
        pair.balancer.stop()
        for one in pair.servers.values():
            one.close()


def test_a_breaker_opens_for_its_time_and_for_twice_that_when_the_trial_fails(pair: Pair) -> None:
    failing = pair.servers["a1"]
    pair.start(max_fails=3, breaker={"open_s": 2, "max_open_s": 4, "half_open_requests": 2})
    failing.status = lambda: 503
    began = failing.requests
    opened = pair.wait("a1", "open", asking=True)
    assert failing.requests - began == 3
    # none while it is open
    assert pair.ask(20) == [200] * 20
    assert failing.requests - began == 3
    half_open = pair.wait("a1", "half_open")
    assert 1.8 <= half_open - opened <= 6

    # the first that fails ends the trial, and no more than two can have been on their way
    again = pair.wait("a1", "open", asking=True)
    assert failing.requests - began <= 5
    last = pair.wait("a1", "half_open")
    assert 3.8 <= last - again <= 9

    failing.status = lambda: 200
    pair.wait("a1", "closed", asking=True)
    # it begins anew with its first time
    failing.status = lambda: 503
    opened = pair.wait("a1", "open", asking=True)
    assert pair.wait("a1", "half_open") - opened <= 3.8


def test_a_server_on_trial_takes_only_the_requests_that_it_is_granted_whichever_worker_asks(pair: Pair) -> None:
    failing = pair.servers["a1"]
    pair.start(max_fails=1, breaker={"open_s": 1, "max_open_s": 30, "half_open_requests": 2})
    failing.status = lambda: 503
    pair.wait("a1", "open", asking=True)
    failing.status = lambda: 200
    failing.delay_s = 0.7
    pair.wait("a1", "half_open")
    began = failing.requests
    pair.at_once(20)
    assert failing.requests - began == 2
    pair.wait("a1", "closed")
    failing.delay_s = 0
    pair.ask(20)
    assert 5 <= failing.requests - began - 2 <= 15


def test_a_server_that_is_out_stays_out_over_a_reload_and_counts_for_those_that_may_be(pair: Pair) -> None:
    breaker = {"open_s": 60, "max_open_s": 60}
    pair.start(max_fails=1, breaker=breaker)
    for name in pair.servers:
        pair.servers[name].status = lambda: 503
    # whichever fails first is out, and the other one stays
    deadline = time.monotonic() + 10
    while "open" not in {pair.state(name) for name in pair.servers}:
        assert time.monotonic() < deadline
        pair.ask(1)
    out, stays = ("a1", "a2") if pair.state("a1") == "open" else ("a2", "a1")
    began = pair.servers[out].requests
    pair.start(servers={stays: {"weight": 3}}, max_fails=1, breaker=breaker)
    pair.ask(20)
    assert pair.servers[out].requests == began
    # one of two may be out, and is
    assert (pair.state(out), pair.state(stays)) == ("open", "closed")


@pytest.mark.parametrize(("what", "fails", "passes"), [("status", 3, 4), ("body", 2, 5)])
def test_a_check_counts_what_it_expects(pair: Pair, what: str, fails: int, passes: int) -> None:
    checked = pair.servers["a1"]
    pair.servers["a2"].status = checked.status = lambda: 418
    check = {"path": "/health", "interval_s": 0.5, "fails": fails, "passes": passes, "statuses": [200, 418]}
    pair.start(active_check={**check, "body": '"name": "a'}, breaker={"open_s": 1, "max_open_s": 1})
    began = checked.requests
    while checked.requests < began + 2:
        time.sleep(0.02)
    assert pair.state("a1") == "closed"

    good = (checked.status, checked.name)
    before = checked.requests
    if what == "status":
        checked.status = lambda: 404
    else:
        checked.name = "nobody"
    pair.wait("a1", "open")
    # one may have been on its way, before or after it was told
    assert fails - 1 <= checked.requests - before <= fails + 1
    assert pair.state("a2") == "closed"

    before = checked.requests
    checked.status, checked.name = good
    pair.wait("a1", "half_open")
    assert passes - 1 <= checked.requests - before <= passes + 1


def test_a_server_that_does_not_answer_in_time_is_given_up(pair: Pair) -> None:
    pair.start()
    for one in pair.servers.values():
        one.delay_s = 3
    began = time.monotonic()
    assert pair.ask(1) == [504]
    # each of both has its second
    assert 1 <= time.monotonic() - began < 3
