"""Load balancers on real hosts before real servers, seen by real clients."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from .conftest import INVENTORIES, ROOT, STATE, Lab, Play, until

HOSTS = yaml.safe_load((INVENTORIES[0] / "hosts.yml").read_text())["all"]["children"]["lab"]["children"]
ADDRESSES = {
    name: row["ansible_host"] for group in ("load_balancers", "apps") for name, row in HOSTS[group]["hosts"].items()
}
VARIABLES = yaml.safe_load((ROOT / "inventories" / "lab" / "group_vars" / "load_balancers.yml").read_text())
BALANCERS = [{"name": name, "host": ADDRESSES[name]} for name in HOSTS["load_balancers"]["hosts"]]
APPS = list(HOSTS["apps"]["hosts"])
SERVERS = {name: f"{ADDRESSES[name]}:8080" for name in APPS}
PORTS = {one["name"]: one["port"] for one in VARIABLES["nginx_load_balancer_virtual_servers"]}
CONFIGURE = "Load balancer as declared"


def get(
    balancer: str, server: str | int, path: str = "/", headers: dict[str, str] | None = None, timeout_s: float = 20
) -> tuple[int, dict[str, str], Any]:
    """Ask over a connection of its own; return status, headers and what the body says."""
    port = PORTS[server] if isinstance(server, str) else server
    with contextlib.closing(http.client.HTTPConnection(ADDRESSES[balancer], port, timeout=timeout_s)) as connection:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        body = answer.read()
    try:
        said = json.loads(body)
    except ValueError:
        said = body.decode()
    return answer.status, dict(answer.getheaders()), said


def counts(balancer: str, server: str, total: int, headers: dict[str, str] | None = None) -> collections.Counter[str]:
    """Make requests one after the other over one connection; return how many each application answered."""
    found: collections.Counter[str] = collections.Counter()
    with contextlib.closing(http.client.HTTPConnection(ADDRESSES[balancer], PORTS[server], timeout=20)) as connection:
        for _dummy in range(total):
            connection.request("GET", "/", headers=headers or {})
            answer = connection.getresponse()
            assert answer.status == 200
            found[json.loads(answer.read())["name"]] += 1
    return found


def state(balancer: str, app: str, upstream: str = "app") -> dict[str, Any]:
    """Return what a load balancer says of an application."""
    _status, _headers, said = get(balancer, 8181, "/upstreams")
    servers = next(one for one in said["upstreams"] if one["name"] == upstream)["servers"]
    return next(one for one in servers if one["address"] == SERVERS[app])


def upstream(lab: Lab, app: str = "app1", name: str = "app", **options: Any) -> dict[str, Any]:
    """Run nginx_upstream on all load balancers."""
    return lab.module("nginx_upstream", balancers=BALANCERS, upstream=name, server=SERVERS[app], **options)


def share_is(found: collections.Counter[str], *weights: int) -> None:
    """Require that the applications have their shares within 2 percent of all requests."""
    total = sum(found.values())
    for app, weight in zip(APPS, weights, strict=True):
        assert abs(found[app] / total - weight / sum(weights)) <= 0.02, found


class Load:
    """Clients that ask all the time, each time over a new connection."""

    def __init__(self, balancer: str, path: str = "/", clients: int = 4, server: str = "app") -> None:
        self.statuses: collections.Counter[Any] = collections.Counter()
        self._stop = threading.Event()
        self.names: collections.Counter[str] = collections.Counter()
        self._arguments = (balancer, server, path)
        self._threads = [threading.Thread(target=self._ask) for _dummy in range(clients)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                status, _headers, said = get(*self._arguments)
                self.statuses[status] += 1
                self.names[said["name"] if status == 200 else ""] += 1
            except (OSError, http.client.HTTPException) as error:
                self.statuses[repr(error)] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def balanced(lab: Lab) -> Iterator[Lab]:
    """The lab, with all applications well and in use before and after the test."""
    yield lab
    for app in APPS:
        lab.run(app, "sh", "-c", "systemctl start headroom-app; rm -f /run/headroom-app/broken /run/headroom-app/slow")
        for one in BALANCERS:
            for name in ("app", "sticky"):
                put_back(one["name"], app, name)
    recovered()


def put_back(balancer: str, app: str, name: str) -> None:
    """Undo what was done to a server at run time."""
    fields = urllib.parse.urlencode({"upstream": name, "server": SERVERS[app], "drained": "false", "weight": "0"})
    with contextlib.closing(http.client.HTTPConnection(ADDRESSES[balancer], 8181, timeout=20)) as connection:
        connection.request("POST", "/servers", fields, {"X-Headroom": "1"})
        assert connection.getresponse().status == 200


def recovered() -> None:
    """Wait, with requests on trial, until all servers are closed again."""

    def closed() -> bool:
        for balancer in BALANCERS:
            for name in ("app", "sticky"):
                get(balancer["name"], name)
        return all(
            state(one["name"], app, name)["state"] == "closed"
            for one in BALANCERS
            for app in APPS
            for name in ("app", "sticky")
        )

    until(closed, 60)


def changed_upstreams(**servers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lab's upstreams with other servers of the upstream app."""
    found = json.loads(json.dumps(VARIABLES["nginx_load_balancer_upstreams"]))
    for server in next(one for one in found if one["name"] == "app")["servers"]:
        app = next(name for name, address in SERVERS.items() if address == server["address"])
        server.update(servers.get(app, {}))
    return found


def steps(play: Play, host: str = "lb1") -> list[dict[str, str]]:
    return play.results(CONFIGURE)[host]["plan"]


def test_a_second_run_changes_nothing(balanced: Lab) -> None:
    assert balanced.play("load_balancer.yml").changed() == []


def test_check_mode_foretells_a_weight_and_says_it_in_words(balanced: Lab) -> None:
    wanted = {"nginx_load_balancer_upstreams": changed_upstreams(app1={"weight": 4})}
    predicted = balanced.play("load_balancer.yml", "--check", "--diff", **wanted)
    assert [step for step in steps(predicted) if step["action"] == "change"] == [
        {"action": "change", "object": f"upstream app server {SERVERS['app1']}", "why": "weight 3 -> weight 4"}
    ]
    assert state("lb1", "app1")["weight"] == 3
    made = balanced.play("load_balancer.yml", **wanted)
    assert steps(made) == steps(predicted)
    assert made.changed() == predicted.changed() == [(CONFIGURE, "lb1"), (CONFIGURE, "lb2")]
    assert state("lb2", "app1")["weight"] == 4
    balanced.play("load_balancer.yml")
    assert state("lb2", "app1")["weight"] == 3


def test_check_mode_leaves_no_file_where_nginx_does_not_run(balanced: Lab) -> None:
    look = ("find", "/etc/nginx", "/run", "/var/lib/nginx", "-xdev", "-name", "*nginx*", "-printf", "%p %T@\n")
    balanced.run("lb2", "systemctl", "stop", "nginx")
    try:
        before = balanced.run("lb2", *look)
        balanced.play(
            "load_balancer.yml", "--check", nginx_load_balancer_upstreams=changed_upstreams(app1={"weight": 4})
        )
        assert balanced.run("lb2", *look) == before
    finally:
        balanced.run("lb2", "systemctl", "start", "nginx")


@pytest.mark.parametrize("server", ["app", "native"])
def test_requests_are_shared_by_weight(balanced: Lab, server: str) -> None:
    share_is(counts("lb1", server, 1200), 3, 2, 1)


def test_a_weight_set_at_run_time_counts_at_once_and_stays_over_a_reload(balanced: Lab) -> None:
    predicted = upstream(balanced, weight=1)
    assert predicted["changed"]
    assert [step["why"] for step in predicted["plan"]] == ["weight 3 -> 1"] * 2
    share_is(counts("lb2", "app", 600), 1, 2, 1)
    reload(balanced, "lb2")
    assert state("lb2", "app1")["weight"] == 1
    share_is(counts("lb2", "app", 600), 1, 2, 1)
    assert not upstream(balanced, weight=1)["changed"]
    assert upstream(balanced, weight=0)["changed"]
    assert state("lb1", "app1")["weight"] == 3


def workers(lab: Lab, host: str) -> set[str]:
    # for a moment of a reload new workers have no name yet, and the old ones are gone
    return set(lab.run(host, "pgrep", "--full", "nginx: worker process$", check=False).split())


def reload(lab: Lab, host: str) -> None:
    """Reload nginx on a host and wait until its new workers alone take connections."""
    old = workers(lab, host)
    lab.run(host, "sh", "-c", "kill -HUP $(cat /run/nginx.pid)")
    until(lambda: (found := workers(lab, host)) and not found & old)


def test_a_server_that_fails_its_checks_is_out_and_comes_back(balanced: Lab) -> None:
    balanced.run("app1", "touch", "/run/headroom-app/broken")
    started = time.monotonic()
    until(lambda: state("lb1", "app1")["state"] == "open", 15)
    # three checks a second apart, one of them cut short, and the time to look
    assert 1 <= time.monotonic() - started <= 6
    assert counts("lb1", "app", 60)["app1"] == 0
    balanced.run("app1", "rm", "/run/headroom-app/broken")
    seen = []
    while not seen or seen[-1] != "closed":
        assert time.monotonic() - started < 40, seen
        now = state("lb1", "app1")["state"]
        seen += [now] if not seen or seen[-1] != now else []
        if now == "half_open":
            get("lb1", "app")
        time.sleep(0.05)
    assert seen == ["open", "half_open", "closed"]
    assert counts("lb1", "app", 60)["app1"] > 0


def test_a_server_that_fails_requests_is_out_without_a_check(balanced: Lab) -> None:
    # the upstream sticky has no active check
    balanced.run("app1", "systemctl", "stop", "headroom-app")
    statuses = {get("lb1", "sticky")[0] for _dummy in range(30)}
    # another server answers for the one that does not
    assert statuses == {200}
    assert state("lb1", "app1", "sticky")["state"] == "open"
    assert state("lb1", "app1", "sticky")["failures"] >= 3


def test_no_more_servers_are_out_than_may_be(balanced: Lab) -> None:
    for app in ("app1", "app2"):
        balanced.run(app, "touch", "/run/headroom-app/broken")
    until(lambda: "open" in {state("lb1", app)["state"] for app in ("app1", "app2")}, 15)
    time.sleep(4)
    assert [state("lb1", app)["state"] for app in APPS].count("closed") == 2


def test_a_cookie_keeps_a_client_at_its_server_until_that_is_drained(balanced: Lab) -> None:
    _status, headers, said = get("lb1", "sticky")
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert "HttpOnly" in headers["Set-Cookie"]
    assert counts("lb1", "sticky", 50, {"Cookie": cookie}) == {said["name"]: 50}
    # the other load balancer knows it too
    assert counts("lb2", "sticky", 10, {"Cookie": cookie}) == {said["name"]: 10}
    assert upstream(balanced, said["name"], "sticky", state="drained")["changed"]
    moved = get("lb1", "sticky", headers={"Cookie": cookie})
    assert moved[0] == 200
    assert moved[2]["name"] != said["name"]
    assert moved[1]["Set-Cookie"].partition(";")[0] != cookie


@pytest.mark.parametrize("algorithm", ["least_conn", "random_two", "least_time"])
def test_a_slow_server_gets_fewer_requests(balanced: Lab, algorithm: str) -> None:
    balanced.run("app1", "touch", "/run/headroom-app/slow")
    with Load("lb1", clients=6, server=algorithm) as load:
        time.sleep(3)
        # by its first answer alone, slow on a busy machine, a server may have to wait for a while
        wait_s = 20 if algorithm == "least_time" else 0
        until(lambda: min(load.names["app2"], load.names["app3"]) > load.names["app1"], wait_s)
    assert set(load.statuses) == {200}, load.statuses
    # in turn it would be a third
    assert load.names["app1"] / sum(load.names.values()) < 0.2, load.names


def test_a_server_that_was_slow_gets_its_share_again(balanced: Lab) -> None:
    balanced.run("app1", "touch", "/run/headroom-app/slow")
    with Load("lb1", clients=6, server="least_time") as load:
        until(lambda: state("lb1", "app1", "least_time")["response_ms"] > 50)
        balanced.run("app1", "rm", "/run/headroom-app/slow")

        def shares() -> bool:
            load.names.clear()
            time.sleep(1)
            return load.names["app1"] / max(1, sum(load.names.values())) > 0.2

        until(shares, 40)
    assert set(load.statuses) == {200}, load.statuses


def owners(balancer: str) -> dict[str, str]:
    """Return path to the application that a consistent ring gives it."""
    return {path: get(balancer, "hash", path)[2]["name"] for path in (f"/?page={number}" for number in range(60))}


def test_a_key_has_one_server_everywhere_and_a_drain_moves_no_others(balanced: Lab) -> None:
    before = owners("lb1")
    assert before == owners("lb2")
    assert min(collections.Counter(before.values())[app] for app in APPS) >= 5
    assert upstream(balanced, name="hash", state="drained")["changed"]
    try:
        after = owners("lb1")
    finally:
        for one in BALANCERS:
            put_back(one["name"], "app1", "hash")
    assert {path for path in before if before[path] != after[path]} == {
        path for path in before if before[path] == "app1"
    }
    assert owners("lb1") == before


def test_clients_of_one_network_have_one_server(balanced: Lab) -> None:
    networks = {f"192.0.{number}" for number in range(30)}
    found = {
        network: {
            get("lb1", "ip_hash", headers={"X-Forwarded-For": f"{network}.{host}"})[2]["name"] for host in (7, 99)
        }
        for network in networks
    }
    assert all(len(names) == 1 for names in found.values())
    assert set.union(*found.values()) == set(APPS)


def test_a_server_that_comes_back_starts_slowly(balanced: Lab) -> None:
    assert upstream(balanced, name="sticky", state="drained")["changed"]
    put_back("lb1", "app1", "sticky")
    assert counts("lb1", "sticky", 60)["app1"] <= 15
    time.sleep(3)
    assert 28 <= counts("lb1", "sticky", 60)["app1"] <= 32


def test_a_drain_waits_for_requests_and_loses_none(balanced: Lab) -> None:
    with Load("lb1", "/slow/0.4", 6) as load:
        until(lambda: state("lb1", "app1")["active"])
        drained = upstream(balanced, state="drained", wait_s=20)
        assert drained["changed"]
        assert state("lb1", "app1")["active"] == 0
        # it stays out over a reload
        reload(balanced, "lb1")
        before = state("lb1", "app1")["requests"]
        time.sleep(1)
        assert state("lb1", "app1")["requests"] == before
        assert not upstream(balanced, state="drained")["changed"]
        assert upstream(balanced, state="active")["changed"]
        until(lambda: state("lb1", "app1")["requests"] > before)
    assert set(load.statuses) == {200}, load.statuses


def test_a_drain_has_a_bound_and_spares_the_last_server(balanced: Lab) -> None:
    with Load("lb1", "/slow/6", 3):
        until(lambda: state("lb1", "app1")["active"])
        late = upstream(balanced, state="drained", wait_s=0.5)
    assert late["errors"][0]["code"] == "still_active"
    assert late["told"] == ["lb1", "lb2"]
    assert upstream(balanced, "app2", state="drained")["changed"]
    refused = upstream(balanced, "app3", state="drained")
    assert "no other server of upstream app takes requests" in refused["msg"]
    assert not state("lb1", "app3")["drained"]


def test_a_hundred_reloads_lose_no_request(balanced: Lab) -> None:
    with Load("lb1", clients=3) as load:
        for _dummy in range(100):
            reload(balanced, "lb1")
    print(load.statuses)
    assert set(load.statuses) == {200}, load.statuses
    assert load.statuses[200] > 500


def canary(**variables: Any) -> dict[str, Any]:
    """Return what a playbook is told of the lab's canary, so that a step takes seconds."""
    quick = {"canary_step_s": 2, "canary_min_requests": 20, "canary_p95_times_stable": 1000}
    return {"canary_upstream": "canary", **quick, **variables}


def shares() -> list[tuple[int, bool]]:
    """Return the share of the canary at each load balancer, and whether a run has it on loan."""
    found = []
    for one in BALANCERS:
        _status, _headers, said = get(one["name"], 8181, "/upstreams")
        row = next(row for row in said["upstreams"] if row["name"] == "canary")["canary"]
        found.append((row["percent"], row["lease_s"] is not None))
    return found


def test_a_canary_is_promoted_on_all_load_balancers_and_switched_back(balanced: Lab) -> None:
    foretold = balanced.play("canary.yml", "--check", **canary(canary_steps="20, 100"))
    assert shares() == [(0, False)] * 2
    with Load("lb1", server="canary") as one, Load("lb2", server="canary") as other:
        done = balanced.play("canary.yml", **canary(canary_steps="20, 100"))
        assert shares() == [(100, False)] * 2
        assert counts("lb2", "canary", 50) == {"app3": 50}
        reload(balanced, "lb1")
        assert shares() == [(100, False)] * 2
        assert balanced.play("canary.yml", **canary(canary_steps="20, 100")).changed() == []
        balanced.play("canary.yml", **canary(canary_state="rolled_back"))
    assert shares() == [(0, False)] * 2
    made, said = (play.results("Share of the canary").values() for play in (done, foretold))
    assert [row["plan"] for row in made] == [row["plan"] for row in said] != []
    assert set(one.statuses) == set(other.statuses) == {200}, (one.statuses, other.statuses)
    assert counts("lb1", "canary", 40) == {"app1": 20, "app2": 20}


def test_a_canary_that_fails_is_taken_back_on_all_load_balancers(balanced: Lab) -> None:
    balanced.run("app3", "touch", "/run/headroom-app/broken")
    with Load("lb1", server="canary"), Load("lb2", server="canary"):
        failed = balanced.play("canary.yml", fails=True, **canary(canary_steps="20, 100"))
    assert "requests failed at the canary" in failed.messages()[0]
    assert failed.messages()[0].endswith("It is back to 0 % at lb1, lb2.")
    assert shares() == [(0, False)] * 2


def address() -> str:
    return ".".join(
        str(part) for part in (100, 64 + random.randrange(64), random.randrange(256), random.randrange(256))
    )


def test_a_limit_lets_through_exactly_its_burst_and_one(balanced: Lab) -> None:
    # six a minute give nothing back while these requests are made
    for server, expected in (("limited", {200: 21, 429: 19}), ("watched", {200: 40})):
        headers = {"X-Forwarded-For": address()}
        started = time.monotonic()
        found = collections.Counter(get("lb1", server, headers=headers)[0] for _dummy in range(40))
        assert time.monotonic() - started < 10
        assert found == expected
    # another client has a count of its own
    assert get("lb1", "limited", headers={"X-Forwarded-For": address()})[0] == 200


def test_the_client_is_who_a_trusted_proxy_says_and_nobody_else(balanced: Lab) -> None:
    said = get("lb1", "app", "/headers", {"X-Forwarded-For": "192.0.2.77"})[2]["headers"]
    assert said["x-real-ip"] == said["x-forwarded-for"] == "192.0.2.77"
    script = (
        "import sys, urllib.request as r; "
        "print(r.urlopen(r.Request(sys.argv[1], headers={'X-Forwarded-For': '192.0.2.77'})).read().decode())"
    )
    spoofed = json.loads(balanced.run("lb2", "python3", "-c", script, f"http://{ADDRESSES['lb1']}/headers"))["headers"]
    assert spoofed["x-real-ip"] == spoofed["x-forwarded-for"] == ADDRESSES["lb2"]
    assert get("lb1", "closed", headers={"X-Forwarded-For": "198.51.100.7"})[0] == 403
    assert get("lb1", "closed", headers={"X-Forwarded-For": "192.0.2.7"})[0] == 200


def test_tls_is_modern_and_answers_have_their_headers(balanced: Lab) -> None:
    context = ssl.create_default_context(cafile=str(STATE / "tls" / "load_balancers" / "ca.crt"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((ADDRESSES["lb1"], PORTS["secure"]), 10) as plain,
        context.wrap_socket(plain, server_hostname="app.lab") as secure,
    ):
        assert secure.selected_alpn_protocol() == "h2"
        assert secure.version() == "TLSv1.3"
    old = ssl.create_default_context(cafile=str(STATE / "tls" / "load_balancers" / "ca.crt"))
    connection = http.client.HTTPSConnection(ADDRESSES["lb1"], PORTS["secure"], context=old, timeout=10)
    old.check_hostname = False
    with contextlib.closing(connection):
        connection.request("GET", "/")
        headers = dict(connection.getresponse().getheaders())
    assert headers["Strict-Transport-Security"].startswith("max-age=31536000")
    assert headers["X-Content-Type-Options"] == "nosniff"
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((ADDRESSES["lb1"], PORTS["secure"]), 10) as plain,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        old.wrap_socket(plain, server_hostname="app.lab")


def test_attacks_are_refused_and_normal_requests_are_not(balanced: Lab) -> None:
    corpus = json.loads((ROOT / "tests" / "web" / "firewall.json").read_text())
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    headers = {"User-Agent": agent, "Accept": "*/*", "Host": "shop.example.com"}
    misjudged = []
    for kind, expected in (("attacks", 403), ("normal", 200)):
        for text in (text for texts in corpus[kind].values() for text in texts):
            pairs = urllib.parse.urlencode({"q": text})
            for way, path, body, content in (
                ("query", f"/?{pairs}", None, {}),
                ("form", "/", pairs, {"Content-Type": "application/x-www-form-urlencoded"}),
                ("json", "/", json.dumps({"q": text}), {"Content-Type": "application/json"}),
            ):
                with contextlib.closing(
                    http.client.HTTPConnection(ADDRESSES["lb1"], PORTS["guarded"], timeout=20)
                ) as asked:
                    asked.request("POST" if body else "GET", path, body, {**headers, **content})
                    if (status := asked.getresponse().status) != expected:
                        misjudged.append((way, text, status))
    assert misjudged == []


def test_an_attack_that_is_only_watched_for_is_let_through_and_logged(balanced: Lab) -> None:
    sign = f"{random.randrange(10**12):012}"
    assert get("lb1", "observed", f"/?q=%3Cscript%3Ealert({sign})%3C/script%3E")[0] == 200
    assert get("lb1", "observed", f"/?q=shoes{sign}")[0] == 200
    logged = balanced.run("lb1", "sh", "-c", 'grep -h "$0" /var/log/nginx/*.log', sign).splitlines()
    assert any("ModSecurity: Warning" in line or "XSS" in line for line in logged), logged


def test_state_is_shown_to_those_who_are_allowed_alone(balanced: Lab) -> None:
    status, _headers, text = get("lb1", 8181, "/metrics")
    assert status == 200
    labels = f'{{upstream="app",server="{SERVERS["app1"]}",state="closed"}}'
    assert f"headroom_upstream_server_state{labels} 1" in text.splitlines()
    script = (
        "import sys, http.client as h; c = h.HTTPConnection(*sys.argv[1:]); "
        "c.request('GET', '/upstreams'); print(c.getresponse().status)"
    )
    assert balanced.run("lb2", "python3", "-c", script, ADDRESSES["lb1"], "8181") == "403"


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        # nginx finds nothing wrong with it, and nothing answers there
        (
            {
                "nginx_load_balancer_upstreams": [
                    *VARIABLES["nginx_load_balancer_upstreams"],
                    {"name": "gone", "servers": [{"address": "10.77.0.72:9"}]},
                ]
            },
            "upstream gone does not answer a probe",
        ),
        # the port is another server's, which nginx sees when it reloads
        (
            {
                "nginx_load_balancer_virtual_servers": [
                    *VARIABLES["nginx_load_balancer_virtual_servers"],
                    {"name": "taken", "port": 22, "upstream": "app"},
                ]
            },
            "Address already in use",
        ),
    ],
    ids=["silent", "taken"],
)
def test_a_change_that_does_not_serve_is_taken_back_each_time(
    balanced: Lab, variables: dict[str, Any], cause: str
) -> None:
    before = get("lb1", 8181, "/release")[2]
    with Load("lb1", clients=2) as load:
        for _dummy in range(2):
            failed = balanced.play("load_balancer.yml", fails=True, nginx_load_balancer_wait_s=10, **variables)
            assert cause in failed.messages()[0]
            assert "What was there is in force again." in failed.messages()[0]
            # the next load balancer was left alone
            assert "lb2" not in failed.results(CONFIGURE)
            assert get("lb1", 8181, "/release")[2] == before
    assert set(load.statuses) == {200}, load.statuses


def test_what_was_changed_by_hand_is_mended(balanced: Lab) -> None:
    before = balanced.run("lb1", "cat", "/etc/nginx/nginx.conf")
    balanced.run("lb1", "sed", "-i", "s/listen 80 default_server/listen 22/", "/etc/nginx/nginx.conf")
    assert balanced.run("lb1", "cat", "/etc/nginx/nginx.conf") != before
    mended = balanced.play("load_balancer.yml")
    assert mended.changed() == [(CONFIGURE, "lb1")]
    assert [step["action"] for step in steps(mended)] == ["write", "reload"]
    assert balanced.run("lb1", "cat", "/etc/nginx/nginx.conf") == before


def test_a_configuration_that_nginx_refuses_changes_nothing(balanced: Lab) -> None:
    before = balanced.run("lb1", "cat", "/etc/nginx/nginx.conf")
    wanted = {
        "upstreams": VARIABLES["nginx_load_balancer_upstreams"],
        "virtual_servers": [{"name": "app", "port": 80, "upstream": "app"}],
        "management": {"address": ADDRESSES["lb1"]},
        "user": "nobody-of-this-name",
    }
    refused = balanced.module("nginx_config", host="lb1", **wanted)
    assert refused["errors"][0]["code"] == "refused"
    assert "nobody-of-this-name" in refused["msg"]
    assert balanced.run("lb1", "cat", "/etc/nginx/nginx.conf") == before


def test_a_load_balancer_that_is_away_is_named_and_nothing_changes(balanced: Lab) -> None:
    failed = balanced.module(
        "nginx_upstream",
        balancers=[*BALANCERS, {"name": "lb9", "host": ADDRESSES["app1"]}],
        upstream="app",
        server=SERVERS["app1"],
        state="drained",
    )
    assert failed["errors"][0]["balancer"] == "lb9"
    assert not state("lb1", "app1")["drained"]
