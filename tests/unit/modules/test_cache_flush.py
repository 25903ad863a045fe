# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module against HTTP caches and CloudFront over HTTP: what it sends, in which order, what it says, and how it fails."""

from __future__ import annotations

import asyncio
import json
import time
import typing as t

import botocore.loaders
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("moto")

from ansible_collections.headroom.scale.plugins.module_utils._cache import cloudfront, converge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cache.caches import (  # noqa: E402
    Cache as Declared,
)
from ansible_collections.headroom.scale.plugins.module_utils._cache.caches import requests_for  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cache.model import Targets  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cache.redis import _unlinks  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import key_slot  # noqa: E402
from ansible_collections.headroom.scale.plugins.modules import cache_flush  # noqa: E402
from caches.world import Cache, World, said  # noqa: E402
from cdn.emulator import LOGIN, Emulator  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from ports import free_port

SECRET = "lab-only-purge-secret"
DISTRIBUTION: dict[str, t.Any] = {
    "CallerReference": "one",
    "Comment": "shop",
    "Enabled": True,
    "Origins": {"Quantity": 1, "Items": [{"Id": "web", "DomainName": "web.example.com"}]},
    "DefaultCacheBehavior": {"TargetOriginId": "web", "ViewerProtocolPolicy": "redirect-to-https"},
}
LOADER = botocore.loaders.create_loader()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only waits."""
    monkeypatch.setattr(converge, "RETRY_S", 0.001)
    monkeypatch.setattr(cloudfront, "POLL_S", 0.001)


@pytest.fixture(name="world")
def world_fixture() -> t.Iterator[World]:
    """Give a source and caches."""
    with World() as world:
        yield world


@pytest.fixture(scope="module", name="server")
def server_fixture() -> t.Iterator[Emulator]:
    """Start CloudFront once."""
    emulator = Emulator()
    yield emulator
    emulator.stop()


@pytest.fixture(name="aws")
def aws_fixture(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[dict[str, t.Any]]:
    """Give a CloudFront with one distribution, as options; each request that a test sends must fit the service model."""
    monkeypatch.setattr(botocore.loaders, "create_loader", lambda search_path_string=None: LOADER)
    server.reset()
    from cdn.emulator import Item

    item = Item(DISTRIBUTION, arn="arn:aws:cloudfront::123456789012:distribution/one", domain_name="d1.cloudfront.net")
    server.distributions[item.id] = item
    yield {"distribution_id": item.id, "endpoint_url": server.url, **LOGIN}
    assert server.problems == []


def run(capsys: pytest.CaptureFixture[str], check: bool = False, **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result; secrets must not be in what it says."""
    given_ = {"in_flight_s": 0, "_ansible_check_mode": check, "_ansible_diff": True, **params}
    with patch_module_args(given_), pytest.raises(SystemExit) as ended:
        cache_flush.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert SECRET not in out.replace(f'"headers": {{"X-Secret": "{SECRET}"}}', "")
    assert LOGIN["secret_key"] not in out
    return int(ended.value.code or 0), json.loads(out)


def done(capsys: pytest.CaptureFixture[str], check: bool = False, **params: t.Any) -> dict[str, t.Any]:
    """Run the module, which must succeed."""
    code, result = run(capsys, check, **params)
    assert code == 0, result["msg"]
    return result


def failed(capsys: pytest.CaptureFixture[str], check: bool = False, **params: t.Any) -> dict[str, t.Any]:
    """Run the module, which must fail in one sentence."""
    code, result = run(capsys, check, **params)
    assert code == 1, result
    assert result["msg"] == result["errors"][0]["message"]
    assert result["msg"].endswith(".")
    return result


def layer(name: str, *caches: Cache, **more: t.Any) -> dict[str, t.Any]:
    """Return a layer as declared."""
    return {"name": name, "urls": [cache.url for cache in caches], **more}


# ---- HTTP caches


def test_all_hosts_are_purged_check_mode_sends_nothing_and_a_second_run_changes_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    caches = [world.cache(), world.cache()]
    paths = [f"/u/{number}" for number in range(40)]
    for one in caches:
        world.read(one, paths)
    params = {
        "rules": {"user": {"paths": ["/u/{id}"]}},
        "entities": [{"user": list(range(30))}],
        "http_caches": [layer("edge", *caches, host="shop.example.com", headers={"X-Secret": SECRET})],
    }
    counted = done(capsys, check=True, **params)
    assert [one.asked for one in caches] == [[], []]
    assert [len(one.stored) for one in caches] == [40, 40]
    made = done(capsys, **params)
    assert [sorted(one.stored) for one in caches] == [sorted(paths[30:])] * 2
    assert {fields["Host"] for _method, _path, fields in caches[0].asked} == {"shop.example.com"}
    assert {fields["X-Secret"] for _method, _path, fields in caches[0].asked} == {SECRET}
    assert made["changed"]
    assert counted["changed"]
    assert made["diff"] == counted["diff"]
    assert made["plan"] == counted["plan"]
    (row,) = made["layers"]
    assert (row["state"], row["found"], row["sent"]) == ("flushed", 60, 60)
    assert counted["layers"][0]["sent"] == 60
    again = done(capsys, **params)
    assert again["changed"] is False
    assert again["diff"]["before"] == again["diff"]["after"]
    assert {host["absent"] for host in again["layers"][0]["hosts"]} == {30}


def test_a_second_pass_waits_before_each_layer(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    inner = world.cache()
    outer = world.cache(inner)
    moments: list[tuple[str, float]] = []
    for name, one in (("inner", inner), ("outer", outer)):
        one.answer = lambda method, path, name=name: moments.append((name, time.monotonic()))
    began_s = time.monotonic()
    layers = [layer("inner", inner), layer("outer", outer)]
    result = done(capsys, paths=["/a"], http_caches=layers, in_flight_s=0.3)
    assert [name for name, _moment in moments] == ["inner", "outer", "inner", "outer"]
    assert moments[2][1] - began_s >= 0.3
    assert moments[3][1] - moments[2][1] >= 0.3
    assert [(step["layer"], step["pass"], step["wait_s"]) for step in result["plan"]] == [
        ("inner", 1, 0.0),
        ("outer", 1, 0.0),
        ("inner", 2, 0.3),
        ("outer", 2, 0.3),
    ]
    assert [row["flushes"] for row in result["layers"]] == [2, 2]


def test_varnish_is_asked_by_purge_ban_and_tags() -> None:
    targets = Targets(paths=("/a", "/b.c/*", "/b.c/d"), tags=("x", "y"))
    sent = requests_for(Declared("v", "varnish", (), tags_header="xkey-purge"), targets)
    assert [(one.method, one.target, dict(one.headers)) for one in sent] == [
        ("PURGE", "/a", {}),
        ("BAN", "/", {"X-Ban-Url": r"^/b\.c/"}),
        ("PURGE", "/", {"xkey-purge": "x y"}),
    ]
    everything = requests_for(Declared("v", "varnish", ()), Targets(everything=True))
    assert [dict(one.headers) for one in everything] == [{"X-Ban-Url": "."}]


@settings(deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3000), max_size=20, unique=True))
def test_tags_are_sent_in_headers_that_are_not_too_long(tags: list[str]) -> None:
    sent = requests_for(Declared("n", "nginx", (), tags_header="X-Tags"), Targets(tags=tuple(tags)))
    values = [one.headers["X-Tags"] for one in sent]
    assert " ".join(values).split() == tags
    assert all(len(value) <= 4000 for value in values)


def test_a_layer_that_fails_is_tried_again_and_stops_the_outer_ones(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inner, outer = world.cache(), world.cache()
    world.read(inner, ["/a"])
    world.read(outer, ["/a"])
    inner.answer = lambda method, path: said(503, "")
    params = {"paths": ["/a"], "http_caches": [layer("inner", inner), layer("outer", outer)], "retries": 2}
    result = failed(capsys, **params)
    assert len(inner.asked) == 3
    assert outer.asked == []
    assert "answers 503" in result["msg"]
    assert result["changed"] is False
    assert [row["state"] for row in result["layers"]] == ["failed", "skipped"]
    assert result["layers"][0]["attempts"] == 3
    # told to go on, it does, and fails all the same
    result = failed(capsys, **params, on_failure="continue")
    assert [row["state"] for row in result["layers"]] == ["failed", "flushed"]
    assert result["changed"]
    assert outer.stored == {}


def test_a_layer_that_works_again_is_no_failure(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cache = world.cache()
    world.read(cache, ["/a"])
    answers = [said(503, ""), said(500, "")]
    cache.answer = lambda method, path: answers.pop() if answers else None
    result = done(capsys, paths=["/a"], http_caches=[layer("edge", cache)])
    assert result["layers"][0]["attempts"] == 3
    assert cache.stored == {}


def test_the_other_hosts_of_a_layer_are_purged_when_one_is_gone(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = world.cache()
    world.read(cache, ["/a"])
    gone = f"http://127.0.0.1:{free_port()}"
    result = failed(capsys, paths=["/a"], http_caches=[{"name": "edge", "urls": [gone, cache.url]}], retries=0)
    assert result["errors"][0]["code"] == "connection_refused"
    assert result["changed"]
    assert cache.stored == {}
    assert [host["purged"] for host in result["layers"][0]["hosts"]] == [0, 1]


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "bad_answer", "no answer of an HTTP server"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "bad_answer", "longer than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_answer", "HTTP server"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "no_response", "within 0.3 s"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "refused", "Allow this address"),
        (b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", "refused", "answers 301"),
    ],
)
def test_an_answer_that_is_none_is_no_purge(
    world: World, capsys: pytest.CaptureFixture[str], answer: bytes, code: str, text: str
) -> None:
    cache = world.cache()
    cache.answer = lambda method, path: answer
    result = failed(capsys, paths=["/a"], http_caches=[layer("edge", cache)], retries=0, timeout_s=0.3)
    assert result["errors"][0]["code"] == code
    assert text in result["msg"]


def test_a_server_that_closes_connections_is_asked_all_the_same(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = world.cache()
    cache.answer = lambda method, path: said(200, "", "Connection: close\r\n")
    result = done(capsys, paths=[f"/{number}" for number in range(50)], http_caches=[layer("edge", cache)])
    assert result["layers"][0]["sent"] == 50


# ---- afterwards


def test_what_is_still_old_is_found(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    known, forgotten = world.cache(), world.cache()
    world.source.versions["/a"] = 1
    world.read(known, ["/a"])
    world.read(forgotten, ["/a"])
    world.source.versions["/a"] = 2
    layers = [layer("edge", known)]
    result = done(
        capsys,
        paths=["/a"],
        http_caches=layers,
        verify=[{"url": f"{known.url}/a", "lacks": "version 1;", "contains": "version 2;"}],
    )
    assert result["verify"][0]["holds"]
    assert result["verify"][0]["reads"] == 3
    result = failed(
        capsys, paths=["/a"], http_caches=layers, verify=[{"url": f"{forgotten.url}/a", "lacks": "version 1;"}]
    )
    assert "still contains 'version 1;'" in result["msg"]
    assert result["errors"][0]["code"] == "stale"
    assert result["layers"][0]["state"] == "flushed"
    # without a word of what it holds, its age tells
    version, since_s = forgotten.stored["/a"]
    forgotten.stored["/a"] = (version, since_s - 60)
    result = failed(capsys, paths=["/a"], http_caches=layers, verify=[{"url": f"{forgotten.url}/a"}])
    assert "s old" in result["msg"]
    done(capsys, paths=["/a"], http_caches=layers, verify=[{"url": f"{forgotten.url}/a", "fresh": False}])


def test_caches_are_filled_again_until_the_origin_slows(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cache = world.cache()
    paths = [f"/{number}" for number in range(60)]
    warm = {"urls": [f"{cache.url}{path}" for path in paths], "max_rate_s": 500, "slow_ms": 30_000}
    params = {"paths": ["/0"], "http_caches": [layer("edge", cache)]}
    result = done(capsys, **params, warm=warm)
    assert result["warm"]["stopped"] == ""
    assert sorted(cache.stored) == sorted(paths)
    slow = world.cache(slow_s=0.2)
    slow.delay_s = lambda: 0.2
    result = done(capsys, **params, warm={**warm, "slow_ms": 100, "urls": [f"{slow.url}{path}" for path in paths]})
    assert "took" in result["warm"]["stopped"]
    assert 8 <= result["warm"]["warmed"] <= 24
    cache.answer = lambda method, path: said(500, "") if method == "GET" else None
    result = done(capsys, **params, warm=warm)
    assert "answers 500" in result["warm"]["stopped"]
    assert result["warm"]["warmed"] < 20


def test_the_rate_of_the_refill_is_kept(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cache = world.cache()
    urls = [f"{cache.url}/{number}" for number in range(10)]
    result = done(capsys, paths=["/x"], http_caches=[layer("edge", cache)], warm={"urls": urls, "max_rate_s": 20})
    assert result["warm"]["warmed"] == 10
    assert result["duration_s"] >= 9 / 20


def test_what_was_purged_beside_a_refusal_counts(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cache = world.cache()
    paths = [f"/p{number}" for number in range(40)]
    world.read(cache, paths)
    cache.answer = lambda method, path: said(503, "") if (method, path) == ("PURGE", "/p0") else None
    result = failed(capsys, paths=paths, http_caches=[layer("edge", cache)], retries=0)
    assert "Failed to PURGE /p0 on" in result["msg"]
    (row,) = result["layers"]
    gone = 40 - len(cache.stored)
    assert result["changed"]
    assert (row["found"], row["hosts"][0]["purged"]) == (gone, gone)
    assert row["hosts"][0]["sent"] == gone + 1 >= 10


# ---- CloudFront


def test_paths_are_invalidated_and_waited_for(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server.polls = 3
    params = {
        "rules": {"user": {"paths": ["/u/{id}", "/u/{id}/*", "/u/{id}/x"]}},
        "entities": [{"user": [1, 2]}],
        "cloudfront": aws,
        "in_flight_s": 0.01,
    }
    counted = done(capsys, check=True, **params)
    assert server.writes == []
    result = done(capsys, **params)
    paths = ["/u/1", "/u/1/*", "/u/2", "/u/2/*"]
    made = [body["InvalidationBatch"] for name, body in server.sent if name == "CreateInvalidation"]
    assert [sorted(batch["Paths"]["Items"]) for batch in made] == [paths, paths]
    assert len({batch["CallerReference"] for batch in made}) == 2
    assert all(item.looks >= 3 for item in server.invalidations.values())
    (row,) = result["layers"]
    assert row["invalidations"] == list(server.invalidations)
    assert row["cost"] == counted["layers"][0]["cost"] == {"usd_at_least": 0.0, "usd_at_most": 0.04}
    assert result["diff"] == counted["diff"]


def test_tags_are_invalidated_where_the_distribution_has_them(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"paths": ["/a"], "tags": ["user-2", "User-1", "user-1", "all*"]}
    result = done(capsys, cloudfront={**aws, "tags": True}, **params)
    made = [body["InvalidationBatch"]["Paths"] for name, body in server.sent if name == "CreateInvalidation"]
    assert made == [{"Quantity": 4, "Items": ["/a", "#all*", "#user-1", "#user-2"]}]
    assert result["layers"][0]["what"].startswith("1 path and 3 tags of distribution")

    server.sent.clear()
    assert failed(capsys, cloudfront=aws, **params)["msg"].startswith("Option 'tags' has the value")
    refused = failed(capsys, cloudfront={**aws, "tags": True}, tags=["x" * 257])
    assert "CloudFront takes at most 256 characters" in refused["msg"]
    done(capsys, scope="all", confirm_all=True, cloudfront={**aws, "tags": True})
    made = [body["InvalidationBatch"]["Paths"]["Items"] for name, body in server.sent if name == "CreateInvalidation"]
    assert made == [["/*"]]


@pytest.mark.parametrize("check", [False, True])
def test_a_dry_run_counts_and_changes_nothing(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str], check: bool
) -> None:
    counted = done(capsys, check=True, paths=["/a", "/b"], cloudfront=aws)
    result = done(capsys, check=check, paths=["/a", "/b"], cloudfront=aws, dry_run=True)
    assert (counted["changed"], result["changed"]) == (True, False)
    assert server.writes == []
    for one in (counted, result):
        for row in one["layers"]:
            del row["duration_s"]
    assert result["layers"] == counted["layers"]
    assert result["layers"][0]["state"] == "counted"


def test_more_than_the_limits_is_sent_one_batch_after_another(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server.polls = 2
    result = done(capsys, paths=[f"/w{number}/*" for number in range(35)], cloudfront=aws)
    sizes = [
        len(body["InvalidationBatch"]["Paths"]["Items"]) for name, body in server.sent if name == "CreateInvalidation"
    ]
    assert sizes == [15, 15, 5]
    assert len(result["layers"][0]["invalidations"]) == 3


def test_invalidations_of_others_are_waited_for(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from moto.cloudfront.exceptions import CloudFrontException

    refusals = [1, 2]

    def hook(operation: str, params: t.Any) -> None:
        if operation == "CreateInvalidation" and refusals:
            refusals.pop()
            raise CloudFrontException("TooManyInvalidationsInProgress", "too many")

    server.hook = hook
    assert done(capsys, paths=["/a"], cloudfront=aws)["layers"][0]["attempts"] == 1
    refusals[:] = range(10**6)
    result = failed(capsys, paths=["/a"], cloudfront={**aws, "wait_timeout_s": 0.02}, retries=0)
    assert "TooManyInvalidationsInProgress" in result["msg"]
    assert result["changed"] is False


def test_an_invalidation_that_does_not_end_fails_and_is_a_change(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server.polls = 10**6
    result = failed(capsys, paths=["/a"], cloudfront={**aws, "wait_timeout_s": 0.05})
    assert result["errors"][0]["code"] == "not_completed"
    assert result["changed"]
    assert len(server.invalidations) == 1


def test_a_batch_that_is_done_is_not_paid_for_again(
    server: Emulator, aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from moto.cloudfront.exceptions import CloudFrontException

    looks = []

    def hook(operation: str, params: t.Any) -> None:
        looks.extend([operation] if operation == "GetInvalidation" else [])
        if len(looks) == 2:
            looks.append("refused")
            raise CloudFrontException("TooManyRequests", "try again")

    server.hook = hook
    result = done(capsys, paths=[f"/w{number}/*" for number in range(20)], cloudfront=aws, retries=1)
    assert result["layers"][0]["attempts"] == 2
    assert len(server.invalidations) == 2
    assert len(result["layers"][0]["invalidations"]) == 2


def test_a_distribution_that_is_not_there_is_told_in_check_mode_too(
    aws: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for check in (True, False):
        result = failed(
            capsys, check=check, paths=["/a"], cloudfront={**aws, "distribution_id": "E00000NONE"}, retries=0
        )
        assert "NoSuchDistribution" in result["msg"]


def test_a_login_that_cannot_be_is_told_before_anything_is_flushed(
    aws: dict[str, t.Any], world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    cache = world.cache()
    access = {"distribution_id": aws["distribution_id"], "endpoint_url": aws["endpoint_url"], "profile": "nobody"}
    result = failed(capsys, paths=["/a"], http_caches=[layer("edge", cache)], cloudfront=access)
    assert result["errors"][0]["code"] == "no_access"
    assert cache.asked == []


# ---- Redis: its servers are those of the integration tests


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=8), max_size=200, unique=True))
def test_a_command_deletes_keys_of_one_slot_alone(keys: list[bytes]) -> None:
    commands = _unlinks(keys, True)
    assert sorted(key for command in commands for key in command[1:]) == sorted(keys)
    assert all(command[0] == "UNLINK" and len({key_slot(key) for key in command[1:]}) == 1 for command in commands)


def test_redis_that_does_not_answer_stops_what_is_outside_of_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = world.cache()
    params = {
        "nodes": [{"name": "r1", "host": "127.0.0.1", "port": free_port()}],
        "tls": False,
        "patterns": ["user:*"],
        "paths": ["/a"],
        "http_caches": [layer("edge", cache)],
        "retries": 1,
    }
    for check in (True, False):
        result = failed(capsys, check=check, **params)
        assert result["errors"][0]["code"] == "connection_refused"
        assert "r1" in result["msg"]
        assert cache.asked == []


# ---- options


EDGE = {"name": "edge", "urls": ["http://127.0.0.1:9"]}
NODE = {"name": "r1"}


@pytest.mark.parametrize(
    ("params", "option", "text"),
    [
        ({}, "nodes", "at least one layer"),
        ({"patterns": ["*"], "nodes": [NODE]}, "patterns", "all keys"),
        ({"patterns": ["a[b"], "nodes": [NODE]}, "patterns", "without its"),
        ({"keys": ["a"], "http_caches": [EDGE]}, "keys", "a layer that has them"),
        ({"paths": ["/a"], "nodes": [NODE]}, "paths", "a layer that has them"),
        ({"paths": ["a"], "http_caches": [EDGE]}, "paths", "begins with '/'"),
        ({"paths": ["/*"], "http_caches": [EDGE]}, "paths", "every path"),
        ({"tags": ["a b"], "nodes": [NODE]}, "tags", "without spaces"),
        ({"rules": {"user": 1}, "nodes": [NODE]}, "rules.user", "a list of patterns"),
        ({"rules": {"user": {"pattern": ["a"]}}, "nodes": [NODE]}, "rules.user", "a list of patterns"),
        ({"rules": {"user": {"keys": "a"}}, "nodes": [NODE]}, "rules.user.keys", "a list of texts"),
        ({"rules": {"user": ["*"]}, "nodes": [NODE]}, "rules.user.patterns", "all keys"),
        ({"entities": [{"user": 1}], "nodes": [NODE]}, "entities[0]", "a type that rules has"),
        (
            {"rules": {"user": ["u:{id}*"]}, "entities": [{"user": ""}], "nodes": [NODE]},
            "entities[0].user",
            "not empty",
        ),
        ({"scope": "all", "nodes": [NODE]}, "confirm_all", "true"),
        ({"scope": "all", "confirm_all": True, "keys": ["a"], "nodes": [NODE]}, "scope", "leave out keys"),
        ({"scope": "all", "confirm_all": True, "http_caches": [EDGE]}, "http_caches[0].wildcards", "/*"),
        ({"paths": ["/a/*"], "http_caches": [EDGE]}, "http_caches[0].wildcards", "/a/*"),
        ({"paths": ["/a"], "http_caches": [EDGE, EDGE]}, "http_caches[1].name", "of its own"),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "name": "redis"}]}, "http_caches[0].name", "of its own"),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "urls": []}]}, "http_caches[0].urls", "each host"),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "urls": ["ftp://x"]}]}, "http_caches[0].urls", "a URL"),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "urls": ["http://x/y"]}]}, "http_caches[0].urls", "a URL"),
        (
            {"paths": ["/a"], "http_caches": [{**EDGE, "urls": ["http://me:typed-into-a-url@x"]}]},
            "http_caches[0].urls",
            "'http://********@x'",
        ),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "host": "a b"}]}, "http_caches[0].host", "host name"),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "method": "PURGE /x"}]}, "http_caches[0].method", "method of HTTP"),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "path_prefix": "p"}]}, "http_caches[0].path_prefix", "begins with"),
        (
            {"paths": ["/a"], "http_caches": [{**EDGE, "headers": {"a b": SECRET}}]},
            "http_caches[0].headers",
            "a header",
        ),
        (
            {"paths": ["/a"], "http_caches": [{**EDGE, "headers": {"X-Key": f"{SECRET}\r\nd: e"}}]},
            "http_caches[0].headers.X-Key",
            "ASCII",
        ),
        ({"paths": ["/a"], "http_caches": [{**EDGE, "tags_header": "a:"}]}, "http_caches[0].tags_header", "a header"),
        ({"nodes": [NODE], "tag_key": "tags"}, "tag_key", "{tag}"),
        ({"nodes": [NODE], "in_flight_s": -1}, "in_flight_s", "from 0 to 3600"),
        ({"nodes": [NODE], "retries": 11}, "retries", "from 0 to 10"),
        ({"nodes": [NODE], "max_rate_keys_s": -1}, "max_rate_keys_s", "from 0"),
        ({"nodes": [NODE], "max_latency_ms": -1}, "max_latency_ms", "from 0 to 60000"),
        ({"nodes": [NODE], "latency_patience_s": 3601}, "latency_patience_s", "from 0 to 3600"),
        ({"nodes": [NODE], "migration_wait_s": -0.1}, "migration_wait_s", "from 0 to 86400"),
        ({"paths": ["/a"], "http_caches": [EDGE], "verify": [{"url": "/a"}]}, "verify[0].url", "a URL"),
        (
            {"paths": ["/a"], "http_caches": [EDGE], "verify": [{"url": "http://x/", "status": 99}]},
            "verify[0].status",
            "from 200 to 599",
        ),
        (
            {"paths": ["/a"], "http_caches": [EDGE], "verify": [{"url": "http://x/", "host": "a b"}]},
            "verify[0].host",
            "host name",
        ),
        (
            {"paths": ["/a"], "http_caches": [EDGE], "verify": [{"url": "http://x/", "headers": {"a b": "c"}}]},
            "verify[0].headers",
            "a header",
        ),
        (
            {"paths": ["/a"], "http_caches": [EDGE], "warm": {"urls": ["http://x/"], "slow_ms": 0}},
            "warm.slow_ms",
            "from 1 to 60000",
        ),
        (
            {"paths": ["/a"], "http_caches": [EDGE], "warm": {"urls": ["http://x/"], "headers": {"a b": "c"}}},
            "warm.headers",
            "a header",
        ),
        (
            {"paths": ["/a"], "cloudfront": {"distribution_id": "E123456", "wait_timeout_s": -1}},
            "cloudfront.wait_timeout_s",
            "from 0 to 86400",
        ),
        ({"nodes": [NODE, NODE]}, "nodes[].name", "twice"),
        ({"nodes": [NODE], "http_ca_certs": "/nowhere"}, "http_ca_certs", "PEM"),
        ({"cloudfront": {"distribution_id": "e-1"}}, "cloudfront.distribution_id", "an id"),
        ({"cloudfront": {"distribution_id": "E123456", "max_paths": 0}}, "cloudfront.max_paths", "from 1"),
        (
            {"paths": ["/a", "/b", "/c"], "cloudfront": {"distribution_id": "E123456", "max_paths": 2}},
            "cloudfront.max_paths",
            "3 paths remain",
        ),
        ({"nodes": [NODE], "verify": [{"url": "x"}]}, "verify[0].url", "a URL"),
        ({"nodes": [NODE], "verify": [{"url": "http://x/", "reads": 0}]}, "verify[0].reads", "from 1"),
        ({"nodes": [NODE], "warm": {"urls": ["x"]}}, "warm.urls", "a URL"),
        ({"nodes": [NODE], "warm": {"urls": [], "max_rate_s": 0}}, "warm.max_rate_s", "above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    params: dict[str, t.Any], option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = failed(capsys, **params)
    assert result["errors"][0]["code"] == "bad_option"
    assert result["errors"][0]["option"] == option
    assert text in result["msg"]
    assert "typed-into-a-url" not in json.dumps(result["errors"]) + result["msg"]
    assert result["changed"] is False


def test_the_short_form_of_a_rule_is_patterns_and_what_no_layer_has_is_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    result = done(
        capsys,
        rules={"user": ["user:{id}:*"], "page": {"paths": ["/p/{id}"], "tags": ["p{id}"]}},
        entities=[{"user": 1, "page": 2}],
        http_caches=[layer("edge", world.cache())],
    )
    assert result["targets"]["patterns"] == ["user:1:*"]
    assert result["targets"]["ignored"] == ["patterns", "tags"]
    assert result["changed"] is False


def test_nothing_to_flush_is_nothing_done(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    cache = world.cache()
    result = done(capsys, http_caches=[layer("edge", cache)], in_flight_s=60)
    assert result["changed"] is False
    assert result["summary"] == "Nothing is to be flushed."
    assert result["layers"][0]["state"] == "nothing_to_do"
    assert cache.asked == []


def test_the_result_is_as_documented(
    server: Emulator, aws: dict[str, t.Any], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = world.cache()
    result = done(
        capsys, paths=["/a"], http_caches=[layer("edge", cache)], cloudfront=aws, warm={"urls": [f"{cache.url}/a"]}
    )
    documented = yaml.safe_load(cache_flush.RETURN)
    assert set(result) - {"changed", "diff", "invocation"} == set(documented) - {"errors"}
    known = set(documented["layers"]["contains"])
    assert {key for row in result["layers"] for key in row} <= known


def test_a_world_ends() -> None:
    with World() as world:
        assert world.do(asyncio.sleep(0, "done")) == "done"
