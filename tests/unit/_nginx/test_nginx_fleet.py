# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What load balancers of a fleet are told: only what differs, never the last server away, and nothing when one is not there."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.observe import ask
from ansible_collections.headroom.scale.plugins.module_utils._nginx.fleet.converge import converge, parse_fleet
from ansible_collections.headroom.scale.plugins.module_utils._nginx.fleet.plan import Wanted, after, plan, shown
from hypothesis import given
from hypothesis import strategies as st

FIRST, SECOND = "192.0.2.1:80", "192.0.2.2:80"


def server(address: str, **others: t.Any) -> dict[str, t.Any]:
    return {
        "address": address,
        "state": "closed",
        "drained": False,
        "weight": 3,
        "declared_weight": 3,
        "active": 0,
        **others,
    }


def says(*servers: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    return [{"name": "app", "servers": list(servers)}]


BOTH = {"lb1": says(server(FIRST), server(SECOND)), "lb2": says(server(FIRST), server(SECOND))}


def params(**others: t.Any) -> dict[str, t.Any]:
    balancers = [{"name": "lb1", "host": "192.0.2.11", "port": 8181}]
    return {
        "balancers": balancers,
        "upstream": None,
        "server": None,
        "state": None,
        "weight": None,
        "wait_s": 1.0,
        "timeout_s": 2.0,
        **others,
    }


def test_only_those_are_told_for_which_it_is_not_so_already() -> None:
    seen = {**BOTH, "lb2": says(server(FIRST, drained=True), server(SECOND))}
    assert [(one.balancer, one.fields) for one in plan(seen, Wanted("app", FIRST, True, None))] == [
        ("lb1", {"drained": "true"})
    ]
    assert plan(BOTH, Wanted("app", FIRST, False, 3)) == []


def test_the_declared_weight_is_asked_for_with_0() -> None:
    seen = {"lb1": says(server(FIRST, weight=7), server(SECOND))}
    (change,) = plan(seen, Wanted("app", FIRST, None, 0))
    assert change.fields == {"weight": "0"}
    assert change.step.why == "weight 7 -> 3"
    assert plan(BOTH, Wanted("app", FIRST, None, 0)) == []


@pytest.mark.parametrize("other", [{"drained": True}, {"state": "open"}, {"state": "half_open"}])
def test_the_last_server_that_takes_requests_is_not_drained(other: dict[str, t.Any]) -> None:
    seen = {**BOTH, "lb2": says(server(FIRST), server(SECOND, **other))}
    with pytest.raises(OptionError, match="no other server of upstream app takes requests at lb2"):
        plan(seen, Wanted("app", FIRST, True, None))


@pytest.mark.parametrize(
    ("wanted", "option"),
    [(Wanted("shop", FIRST, True, None), "upstream"), (Wanted("app", "192.0.2.3:80", True, None), "server")],
)
def test_what_a_load_balancer_does_not_know_is_refused_with_what_it_knows(wanted: Wanted, option: str) -> None:
    with pytest.raises(OptionError, match=r"give one of: (app|192\.0\.2\.1:80, 192\.0\.2\.2:80)") as refused:
        plan(BOTH, wanted)
    assert refused.value.facts["option"] == option


@pytest.mark.parametrize(
    ("others", "option"),
    [
        ({"balancers": []}, "balancers"),
        ({"balancers": [{"name": "a", "host": "a/b", "port": 1}]}, "balancers[].host"),
        ({"balancers": [{"name": "a", "host": "a", "port": 0}]}, "balancers[].port"),
        ({"balancers": [{"name": "a", "host": "a", "port": 1}] * 2}, "balancers[].name"),
        ({"weight": 1001}, "weight"),
        ({"weight": -1}, "weight"),
        ({"wait_s": -1.0}, "wait_s"),
        ({"timeout_s": 0.0}, "timeout_s"),
    ],
)
def test_what_cannot_be_is_refused_by_name(others: dict[str, t.Any], option: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_fleet(params(**others))
    assert refused.value.facts["option"] == option


rows = st.builds(
    lambda weight, declared, drained: {"weight": weight, "declared_weight": declared, "drained": drained},
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.booleans(),
)


@given(
    st.dictionaries(st.sampled_from(["lb1", "lb2", "lb3"]), rows, min_size=1),
    st.none() | st.booleans(),
    st.none() | st.integers(0, 1000),
)
def test_a_plan_leads_to_what_is_wanted_and_then_to_nothing(
    fleet: dict[str, dict[str, t.Any]], drained: bool | None, weight: int | None
) -> None:
    wanted = Wanted("app", FIRST, drained, weight)
    seen = {name: says(server(FIRST, **row), server(SECOND)) for name, row in fleet.items()}
    then = after(seen, wanted)
    told = {change.balancer for change in plan(seen, wanted)}
    assert told == {name for name in seen if then[name] != seen[name][0]["servers"][0]}
    assert plan({name: says(dict(row), server(SECOND)) for name, row in then.items()}, wanted) == []
    assert (shown(then) == shown({name: one[0]["servers"][0] for name, one in seen.items()})) == (not told)


@contextlib.contextmanager
def management(answer: t.Any, status: int = 200) -> t.Iterator[tuple[int, list[str]]]:
    """Something that answers at a management address; it tells what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield listener.server_port, asked
        finally:
            listener.shutdown()
            thread.join()


def test_when_one_does_not_answer_none_is_told_and_all_of_those_are_named() -> None:
    with management({"upstreams": says(server(FIRST), server(SECOND))}) as (port, asked):
        balancers = [
            {"name": "lb1", "host": "127.0.0.1", "port": port},
            {"name": "lb2", "host": "127.0.0.1", "port": 1},
            {"name": "lb3", "host": "127.0.0.1", "port": 2},
        ]
        with pytest.raises(HeadroomError, match=r"Failed to ask lb2 on 127\.0\.0\.1:1: .*refused") as failed:
            converge(params(balancers=balancers, upstream="app", server=FIRST, state="drained"), False)
    assert [row["balancer"] for row in failed.value.result["errors"]] == ["lb3"]
    assert asked == ["GET /upstreams"]


@contextlib.contextmanager
def saying(answer: bytes) -> t.Iterator[int]:
    """Something that says the same to whoever connects."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()


BROKEN_OFF = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nshort"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_10.0\r\n", BROKEN_OFF, b"HTTP/1.0 200 OK\r\n\r\n[1]"])
def test_what_is_no_answer_of_a_load_balancer_is_one_sentence(answer: bytes) -> None:
    with saying(answer) as port, pytest.raises(HeadroomError, match=r"^Failed to ask lb1 on 127\.0\.0\.1:\d+: .+\.$"):
        converge(params(balancers=[{"name": "lb1", "host": "127.0.0.1", "port": port}]), False)


def test_a_probe_takes_an_answer_for_what_it_is() -> None:
    with saying(b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n") as port:
        assert ask(f"http://127.0.0.1:{port}/") == (302, "", "")
    for answer in (b"SSH-2.0-OpenSSH_10.0\r\n", BROKEN_OFF):
        with saying(answer) as port:
            assert ask(f"http://127.0.0.1:{port}/") == (0, "", "")


def test_an_idle_server_is_drained_without_a_wait() -> None:
    with management({"upstreams": says(server(FIRST, drained=True), server(SECOND))}) as (port, _asked):
        balancers = [{"name": "lb1", "host": "127.0.0.1", "port": port}]
        result = converge(params(balancers=balancers, upstream="app", server=FIRST, state="drained", wait_s=0), False)
    assert not result["changed"]


def test_check_mode_tells_nobody_anything() -> None:
    with management({"upstreams": says(server(FIRST), server(SECOND))}) as (port, asked):
        balancers = [{"name": "lb1", "host": "127.0.0.1", "port": port}]
        result = converge(params(balancers=balancers, upstream="app", server=FIRST, state="drained", weight=5), True)
    assert asked == ["GET /upstreams"]
    assert result["changed"]
    assert result["diff"] == {
        "before": f"lb1: {FIRST}: active, weight 3\n",
        "after": f"lb1: {FIRST}: drained, weight 5\n",
    }


def test_who_is_not_allowed_is_told_what_to_do() -> None:
    with management({}, 403) as (port, _asked), pytest.raises(HeadroomError) as failed:
        converge(params(balancers=[{"name": "lb1", "host": "127.0.0.1", "port": port}]), False)
    assert "status 403. Add this host to what its management address allows" in str(failed.value)
