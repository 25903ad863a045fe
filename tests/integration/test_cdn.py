"""Edges on real hosts before the load balancers, seen by real viewers."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from cdn.table import DESCRIPTION, ROWS, SECURITY

from .conftest import INVENTORIES, Lab

HOSTS = yaml.safe_load((INVENTORIES[0] / "hosts.yml").read_text())["all"]["children"]["lab"]["children"]
EDGES = {name: row["ansible_host"] for name, row in HOSTS["edges"]["hosts"].items()}
REGIONS = {name: row["cdn_nginx_edge_region"] for name, row in HOSTS["edges"]["hosts"].items()}
BALANCERS = [row["ansible_host"] for row in HOSTS["load_balancers"]["hosts"].values()]
LAYER = {
    "name": "edges",
    "urls": [f"http://{address}:8181" for address in EDGES.values()],
    "wildcards": True,
    "tags_header": "Cache-Tag",
}
CONFIGURE = "Edge as declared"


class Answer(NamedTuple):
    """What a viewer got."""

    status: int
    headers: dict[str, str]
    said: Any

    @property
    def cache(self) -> str:
        return self.headers.get("x-cache", "")


def get(edge: str, path: str, country: str | None = None, agent: str = "") -> Answer:
    """Ask an edge over a connection of its own."""
    headers = {"User-Agent": agent.encode(), **({"CloudFront-Viewer-Country": country} if country else {})}
    with contextlib.closing(http.client.HTTPConnection(EDGES[edge], 80, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    said = json.loads(body) if answer.headers.get_content_type() == "application/json" else None
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, said)


def flush(lab: Lab, **options: Any) -> dict[str, Any]:
    """Purge at all edges."""
    return lab.module("cache_flush", http_caches=[LAYER], in_flight_s=0, **options)


@pytest.fixture
def edges(lab: Lab) -> Iterator[Lab]:
    """The lab, with empty caches before, and with edges as declared and load balancers that run after the test."""
    flush(lab, scope="all", confirm_all=True)
    yield lab
    for name in HOSTS["load_balancers"]["hosts"]:
        lab.run(name, "systemctl", "start", "nginx")


def test_a_second_run_changes_nothing(edges: Lab) -> None:
    assert edges.play("cdn.yml").changed() == []


def test_both_edges_pass_the_request_table(edges: Lab) -> None:
    description = copy.deepcopy(DESCRIPTION)
    for number, origin in enumerate(description["origins"]):
        headers = {"X-Lab-Origin": origin["name"]}
        origin.update(type="custom", domain_name=BALANCERS[number % 2], protocol_policy="http-only", headers=headers)
    for behavior in (description["default_behavior"], *description["behaviors"]):
        behavior["viewer_protocol_policy"] = "allow-all"
    names = ("origins", "origin_groups", "default_behavior", "behaviors", "edge_rules")
    wanted = {f"cdn_{name}": description[name] for name in names}
    groups = {group["name"]: group["members"][0] for group in description["origin_groups"]}
    predicted = edges.play("cdn.yml", "--check", "--diff", **wanted)
    try:
        made = edges.play("cdn.yml", **wanted)
        assert made.changed() == predicted.changed() == [(CONFIGURE, "edge1"), (CONFIGURE, "edge2")]
        assert [made.results(CONFIGURE)[edge]["plan"] for edge in EDGES] == [
            predicted.results(CONFIGURE)[edge]["plan"] for edge in EDGES
        ]
        for edge in EDGES:
            for (path, country, agent), (status, origin, cache_control) in ROWS:
                answer = get(edge, path, country, agent)
                row = (edge, path, country, agent, answer)
                assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY, row
                assert answer.headers["x-edge-region"] == REGIONS[edge], row
                if status is not None:
                    assert (answer.status, answer.headers["cache-control"]) == (status, "no-store"), row
                else:
                    assert (answer.status, answer.said["origin"]) == (200, groups.get(str(origin), origin)), row
                    assert answer.headers.get("cache-control") == cache_control, row
    finally:
        edges.play("cdn.yml")


def test_answers_are_kept_aged_and_purged_by_path_and_by_tag_at_both_edges(edges: Lab) -> None:
    paths = ["/fresh/60/item-1", "/fresh/60/item-2"]
    first = {(edge, path): get(edge, path) for edge in EDGES for path in paths}
    assert {answer.cache for answer in first.values()} == {"MISS"}
    time.sleep(1.5)
    for (edge, path), answer in first.items():
        again = get(edge, path)
        assert (again.cache, again.said) == ("HIT", answer.said)
        assert 1 <= int(again.headers["age"]) <= 30
    for rules in ({"paths": [paths[0]]}, {"tags": ["item-1"]}):
        result = flush(edges, rules={"item": rules}, entities=[{"item": [1]}])
        assert [row["state"] for row in result["layers"]] == ["flushed"]
        for edge in EDGES:
            assert [get(edge, path).cache for path in paths] == ["MISS", "HIT"]


def test_requests_for_the_same_are_one_at_the_origin(edges: Lab) -> None:
    found: list[Answer] = []
    threads = [threading.Thread(target=lambda: found.append(get("edge1", "/slow/1"))) for _one in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.said["at"] for answer in found}) == 1
    assert sorted(answer.cache for answer in found) == ["HIT"] * 7 + ["MISS"]


def test_what_has_just_expired_is_served_while_it_is_fetched_anew(edges: Lab) -> None:
    path = "/fresh/1/stale"
    first = get("edge2", path)
    time.sleep(2.2)
    stale = get("edge2", path)
    assert (stale.cache, stale.said) == ("STALE", first.said)
    time.sleep(1)
    assert get("edge2", path).said != first.said


def test_another_load_balancer_answers_for_one_that_is_gone(edges: Lab) -> None:
    assert get("edge1", "/before").said["origin"] == "lb1"
    edges.run("lb1", "systemctl", "stop", "nginx")
    answer = get("edge1", "/after")
    assert (answer.status, answer.said["origin"]) == (200, "lb2")
    assert get("edge1", "/before").cache == "HIT"


def test_bad_input_is_refused_and_changes_nothing(edges: Lab) -> None:
    bucket = {"name": "b", "domain_name": "b.s3.amazonaws.com", "type": "s3"}
    behavior = {"origin": "b", "viewer_protocol_policy": "allow-all"}
    wanted = {"cdn_origins": [bucket], "cdn_origin_groups": [], "cdn_default_behavior": behavior, "cdn_edge_rules": {}}
    failed = edges.play("cdn.yml", fails=True, **wanted)
    assert ["origins[0].type" in message for message in failed.messages()] == [True]
    assert failed.changed() == []
    assert get("edge1", "/").status == 200
