# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a load balancer is made of: options refused by name, what needs Lua, what is rendered, planned and compared."""

from __future__ import annotations

import copy
import dataclasses
import re
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.model import Build, Observed, Step
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.plan import (
    before,
    changes,
    excused,
    parse_build,
    plan,
    release_of,
    shown,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.render import literal, quote
from ansible_collections.headroom.scale.plugins.module_utils._nginx.model import Wanted
from ansible_collections.headroom.scale.plugins.module_utils._nginx.options import config_spec, parse_wanted
from ansible_collections.headroom.scale.plugins.module_utils._nginx.plan import missing, refuse_missing
from ansible_collections.headroom.scale.plugins.module_utils._nginx.render import facts, needs_lua, render
from balancers.world import filled
from hypothesis import given
from hypothesis import strategies as st

SAID = """nginx version: nginx/1.26.3
built with OpenSSL 3.5.0
configure arguments: --with-cc-opt='-g -O2' --modules-path=/usr/lib/nginx/modules --pid-path=/run/nginx.pid \
--with-http_ssl_module --with-http_v2_module --with-http_realip_module
"""
LUA = {"ndk_http_module.so", "ngx_http_lua_module.so"}
BUILD = dataclasses.replace(parse_build(SAID), modules=frozenset({*LUA, "ngx_http_modsecurity_module.so"}), rules=True)
BASE = "/etc/nginx/headroom"
CONFIG = "/etc/nginx/nginx.conf"
PEM = {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n", "key": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"}
GREEN = {"address": "192.0.2.9:80"}
GIVEN = {
    "upstreams": [
        {
            "name": "app",
            "servers": [
                {"address": "192.0.2.1:80", "weight": 3},
                {"address": "192.0.2.2:80"},
                {"address": "[2001:db8::1]:80"},
            ],
        }
    ],
    "virtual_servers": [{"name": "app", "port": 80, "upstream": "app"}],
}


def wanted(*path: str | int, value: t.Any = None) -> Wanted:
    """Return what is wanted, with one value of the options at a path replaced."""
    params = copy.deepcopy(GIVEN)
    if path:
        at: t.Any = params
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    return parse_wanted(filled(config_spec().options, params))


def upstream(**options: t.Any) -> Wanted:
    params = copy.deepcopy(GIVEN)
    params["upstreams"][0].update(options)
    return parse_wanted(filled(config_spec().options, params))


def virtual(**options: t.Any) -> Wanted:
    params = copy.deepcopy(GIVEN)
    params["virtual_servers"][0].update(options)
    return parse_wanted(filled(config_spec().options, params))


def rendered(what: Wanted, build: Build = BUILD) -> dict[str, str]:
    return render(what, build, {}, BASE)[1]


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        (("upstreams",), [], "upstreams"),
        (("virtual_servers",), [], "virtual_servers"),
        (("upstreams", 0, "name"), "a b", "upstreams[].name"),
        (("upstreams", 0, "servers"), [], "upstreams[].servers"),
        (("upstreams", 0, "servers"), [{"address": "192.0.2.1:80", "backup": True}], "upstreams[].servers"),
        (("upstreams", 0, "servers", 0, "address"), "192.0.2.2:80", "upstreams[].servers[].address"),
        (("upstreams", 0, "servers", 0, "address"), "192.0.2.9", "upstreams[].servers[].address"),
        (("upstreams", 0, "servers", 0, "address"), "192.0.2.9:0", "upstreams[].servers[].address"),
        (("upstreams", 0, "servers", 0, "address"), "2001:db8::2:80", "upstreams[].servers[].address"),
        (("upstreams", 0, "servers", 0, "address"), "a;b:80", "upstreams[].servers[].address"),
        (("upstreams", 0, "servers", 0, "weight"), 0, "upstreams[].servers[].weight"),
        (("upstreams", 0, "hash_key"), "$uri; }", "upstreams[].hash_key"),
        (("upstreams", 0, "max_fails"), 0, "upstreams[].max_fails"),
        (("upstreams", 0, "fail_timeout_s"), float("nan"), "upstreams[].fail_timeout_s"),
        (("upstreams", 0, "slow_start_s"), -1, "upstreams[].slow_start_s"),
        (("upstreams", 0, "max_ejected_percent"), 101, "upstreams[].max_ejected_percent"),
        (("upstreams", 0, "keepalive"), 0, "upstreams[].keepalive"),
        (("upstreams", 0, "affinity"), {"cookie": "a-b"}, "upstreams[].affinity.cookie"),
        (("upstreams", 0, "affinity"), {"cookie": "a", "ttl_s": -1}, "upstreams[].affinity.ttl_s"),
        (("upstreams", 0, "active_check"), {"path": "health"}, "upstreams[].active_check.path"),
        (("upstreams", 0, "active_check"), {"path": "/a b"}, "upstreams[].active_check.path"),
        (("upstreams", 0, "active_check"), {"interval_s": 0}, "upstreams[].active_check.interval_s"),
        (("upstreams", 0, "active_check"), {"timeout_s": 0}, "upstreams[].active_check.timeout_s"),
        (("upstreams", 0, "active_check"), {"fails": 0}, "upstreams[].active_check.fails"),
        (("upstreams", 0, "active_check"), {"passes": 0}, "upstreams[].active_check.passes"),
        (("upstreams", 0, "active_check"), {"statuses": []}, "upstreams[].active_check.statuses"),
        (("upstreams", 0, "active_check"), {"host": "a\r\nb"}, "upstreams[].active_check.host"),
        (("upstreams", 0, "breaker"), {"open_s": 0}, "upstreams[].breaker.open_s"),
        (("upstreams", 0, "breaker"), {"open_s": 90}, "upstreams[].breaker.max_open_s"),
        (("upstreams", 0, "breaker"), {"half_open_requests": 0}, "upstreams[].breaker.half_open_requests"),
        (("upstreams", 0, "canary"), {}, "upstreams[].canary.servers"),
        (("upstreams", 0, "canary"), {"servers": [GREEN], "upstream": "x"}, "upstreams[].canary.servers"),
        (("upstreams", 0, "canary"), {"servers": [{**GREEN, "backup": True}]}, "upstreams[].servers"),
        (("upstreams", 0, "canary"), {"servers": [GREEN], "percent": 101}, "upstreams[].canary.percent"),
        (("upstreams", 0, "canary"), {"servers": [GREEN], "cookie": "a b"}, "upstreams[].canary.cookie"),
        (("upstreams", 0, "canary"), {"servers": [GREEN], "cookie_ttl_s": -1}, "upstreams[].canary.cookie_ttl_s"),
        (("upstreams", 0, "canary"), {"upstream": "other"}, "upstreams[].canary.upstream"),
        (("upstreams", 0, "canary"), {"upstream": "app"}, "upstreams[].canary.upstream"),
        (("virtual_servers", 0, "name"), "../x", "virtual_servers[].name"),
        (("virtual_servers", 0, "redirect_port"), 80, "virtual_servers[].redirect_port"),
        (("virtual_servers", 0, "redirect_port"), 0, "virtual_servers[].redirect_port"),
        (("virtual_servers", 0, "allow_countries"), ["DE"], "virtual_servers[].allow_countries"),
        (("virtual_servers", 0, "deny_countries"), ["de"], "virtual_servers[].deny_countries"),
        (("country",), {}, "country"),
        (("country",), {"database": "/a.mmdb", "header": "X-Country"}, "country"),
        (("country",), {"database": "/a b"}, "country.database"),
        (("country",), {"header": "X-Country"}, "country.header"),
        (("country",), {"header": "X Country"}, "country.header"),
        (("virtual_servers", 0, "port"), 70000, "virtual_servers[].port"),
        (("virtual_servers", 0, "upstream"), "other", "virtual_servers[].upstream"),
        (("virtual_servers", 0, "server_names"), [], "virtual_servers[].server_names"),
        (("virtual_servers", 0, "server_names"), ["a b"], "virtual_servers[].server_names"),
        (("virtual_servers", 0, "tls"), {"certificate": "x", "key": "y"}, "virtual_servers[].tls.certificate"),
        (("virtual_servers", 0, "tls"), {**PEM, "key": "geheim"}, "virtual_servers[].tls.key"),
        (("virtual_servers", 0, "headers"), {"X Y": "1"}, "virtual_servers[].headers"),
        (("virtual_servers", 0, "headers"), {"X-Y": "a\nb"}, "virtual_servers[].headers"),
        (("virtual_servers", 0, "headers"), {"X-Y": "$uri"}, "virtual_servers[].headers"),
        (("virtual_servers", 0, "limit"), {"requests_per_minute": 0}, "virtual_servers[].limit.requests_per_minute"),
        (("virtual_servers", 0, "limit"), {"burst": -1}, "virtual_servers[].limit.burst"),
        (("virtual_servers", 0, "allow"), ["192.0.2.1/24"], "virtual_servers[].allow"),
        (("virtual_servers", 0, "deny"), ["anybody"], "virtual_servers[].deny"),
        (("virtual_servers", 0, "connect_timeout_s"), 0, "virtual_servers[].connect_timeout_s"),
        (("virtual_servers", 0, "send_timeout_s"), 90_000, "virtual_servers[].send_timeout_s"),
        (("virtual_servers", 0, "read_timeout_s"), 0, "virtual_servers[].read_timeout_s"),
        (("management",), {"address": "lb1"}, "management.address"),
        (("management",), {"address": "0.0.0.0"}, "management.address"),
        (("management",), {"port": 80}, "management.port"),
        (("management",), {"allow": ["x"]}, "management.allow"),
        (("trusted_proxies",), ["x"], "trusted_proxies"),
        (("real_ip_header",), "a b", "real_ip_header"),
        (("user",), "a;b", "user"),
        (("worker_connections",), 1, "worker_connections"),
        (("wait_s",), 0, "wait_s"),
    ],
)
def test_what_cannot_be_is_refused_by_name(path: tuple[str | int, ...], value: t.Any, names: str) -> None:
    with pytest.raises(OptionError) as refused:
        wanted(*path, value=value)
    assert refused.value.facts["option"] == names
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("algorithm", ["round_robin", "least_conn", "ip_hash", "hash", "random_two"])
def test_nginx_balances_alone_where_it_can(algorithm: str) -> None:
    what = upstream(runtime=False, algorithm=algorithm)
    assert needs_lua(what.upstreams[0]) == []
    files = rendered(what)
    assert set(files) == {"nginx.conf", "description.json"}
    assert "lua" not in files["nginx.conf"].replace("balanced by", "")
    assert "server 192.0.2.1:80 weight=3 max_fails=3 fail_timeout=30s;" in files["nginx.conf"]
    assert "server [2001:db8::1]:80 weight=1" in files["nginx.conf"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"runtime": True}, "runtime"),
        ({"active_check": {}}, "active_check"),
        ({"breaker": {}}, "breaker"),
        ({"slow_start_s": 30}, "slow_start_s"),
        ({"canary": {"servers": [GREEN]}}, "canary"),
        ({"affinity": {"cookie": "server"}}, "affinity"),
        ({"algorithm": "least_time"}, "algorithm least_time"),
        (
            {
                "algorithm": "ip_hash",
                "servers": [{"address": "192.0.2.1:80"}, {"address": "192.0.2.2:80", "backup": True}],
            },
            "backup with algorithm ip_hash",
        ),
    ],
)
def test_what_needs_lua_is_refused_where_there_is_none_and_says_why(options: dict[str, t.Any], reason: str) -> None:
    what = upstream(**{"runtime": False, **options})
    assert needs_lua(next(one for one in what.upstreams if one.name == "app")) == [reason]
    assert missing(what, BUILD) == []
    with pytest.raises(OptionError, match=f"{reason} needs?.*libnginx-mod-http-lua"):
        refuse_missing(what, dataclasses.replace(BUILD, modules=frozenset({"ndk_http_module.so"})))
    assert "balancer_by_lua_block" in rendered(what)["nginx.conf"]


def test_all_that_is_missing_is_named_at_once() -> None:
    params = copy.deepcopy(GIVEN)
    params["virtual_servers"][0].update(modsecurity="detection", tls=PEM)
    params["trusted_proxies"] = ["192.0.2.0/24"]
    what = parse_wanted(filled(config_spec().options, params))
    bare = Build((1, 22, 1), frozenset(), "/usr/lib/nginx/modules", "/run/nginx.pid")
    with pytest.raises(OptionError) as refused:
        refuse_missing(what, bare)
    named = [refused.value.facts["option"], *(row["option"] for row in refused.value.result["errors"])]
    assert named == [
        "upstreams[].name",
        "virtual_servers[].modsecurity",
        "virtual_servers[].tls",
        "virtual_servers[].tls",
        "trusted_proxies",
    ]
    assert missing(what, BUILD) == []
    assert missing(what, dataclasses.replace(BUILD, rules=False))[0][0] == "virtual_servers[].modsecurity"


def test_a_canary_is_an_upstream_of_its_own_with_the_same_options() -> None:
    what = upstream(canary={"servers": [GREEN], "percent": 5, "cookie": "side"}, max_fails=7)
    other, own = what.upstreams
    assert (other.name, other.max_fails, other.canary) == ("app-canary", 7, None)
    assert [server.name for server in other.servers] == ["192.0.2.9:80"]
    assert facts(what)["upstream app canary"] == "5 % to upstream app-canary, cookie side for the session"
    assert own.canary is not None
    steps = planned(observed(wanted()), what)
    assert Step("add", "upstream app canary", "5 % to upstream app-canary, cookie side for the session") in steps


@pytest.mark.parametrize(
    ("second", "options", "names"),
    [
        ({"runtime": False}, {}, "upstreams[].canary.upstream"),
        ({"canary": {"upstream": "app"}}, {}, "upstreams[].canary.upstream"),
        ({"algorithm": "hash"}, {}, "upstreams[].canary.upstream"),
        ({}, {"affinity": {"cookie": "a"}}, "upstreams[].canary.cookie"),
        ({"name": "app-canary"}, {"canary": {"servers": [GREEN]}}, "upstreams[].name"),
    ],
)
def test_an_upstream_that_does_not_fit_is_no_canary(
    second: dict[str, t.Any], options: dict[str, t.Any], names: str
) -> None:
    params = copy.deepcopy(GIVEN)
    params["upstreams"][0].update({"canary": {"upstream": "green"}, **options})
    params["upstreams"].append({"name": "green", "servers": [GREEN], **second})
    with pytest.raises(OptionError) as refused:
        parse_wanted(filled(config_spec().options, params))
    assert refused.value.facts["option"] == names


def test_a_database_of_countries_needs_its_module_and_its_file() -> None:
    what = wanted("country", value={"database": "/a.mmdb"})
    found = missing(what, BUILD)
    assert [option for option, _value, _remedy in found] == ["country.database", "country.database"]
    assert "libnginx-mod-http-geoip2" in found[0][2]
    assert "no such file" in found[1][2]
    able = dataclasses.replace(
        BUILD, modules=BUILD.modules | {"ngx_http_geoip2_module.so"}, databases=frozenset({"/a.mmdb"})
    )
    assert missing(what, able) == []


def test_one_port_is_not_for_tls_and_its_redirect() -> None:
    params = copy.deepcopy(GIVEN)
    params["virtual_servers"] = [
        {"name": "a", "port": 443, "upstream": "app", "tls": PEM, "server_names": ["a"], "redirect_port": 444},
        {"name": "b", "port": 444, "upstream": "app", "tls": PEM, "server_names": ["b"]},
    ]
    with pytest.raises(OptionError, match="TLS is spoken there"):
        parse_wanted(filled(config_spec().options, params))
    # a name is once at a port, sent on or not
    params["virtual_servers"] = [
        {"name": "a", "port": 443, "upstream": "app", "tls": PEM, "redirect_port": 80},
        {"name": "b", "port": 80, "upstream": "app"},
    ]
    with pytest.raises(OptionError, match="it is there twice"):
        parse_wanted(filled(config_spec().options, params))


def test_http_2_is_asked_for_as_each_version_knows_it() -> None:
    what = virtual(port=443, tls=PEM)
    assert "http2 on;" in rendered(what)["nginx.conf"]
    old = rendered(what, dataclasses.replace(BUILD, version=(1, 22, 1)))["nginx.conf"]
    assert "listen 443 default_server ssl http2;" in old
    assert "http2 on;" not in old


def test_a_server_has_5_10_and_10_seconds_unless_told() -> None:
    names = ("connect", "send", "read")
    for what, expected in (
        (wanted(), ("5000ms", "10000ms", "10000ms")),
        (virtual(connect_timeout_s=1, send_timeout_s=2.5, read_timeout_s=3), ("1000ms", "2500ms", "3000ms")),
    ):
        text = rendered(what)["nginx.conf"]
        assert [re.findall(rf"proxy_{name}_timeout (\d+ms);", text) for name in names] == [[one] for one in expected]


def test_a_limit_answers_429_and_a_dry_run_only_logs() -> None:
    text = rendered(virtual(limit={}))["nginx.conf"]
    assert "limit_req_zone $binary_remote_addr zone=headroom_app:10m rate=100r/m;" in text
    assert "limit_req zone=headroom_app burst=20 nodelay;" in text
    assert "limit_req_status 429;" in text
    assert "dry_run" not in text
    assert "limit_req_dry_run on;" in rendered(virtual(limit={"dry_run": True}))["nginx.conf"]
    assert "limit_req zone=headroom_app;" in rendered(virtual(limit={"burst": 0}))["nginx.conf"]


def test_a_client_cannot_say_who_it_is_unless_a_proxy_is_trusted() -> None:
    assert "X-Forwarded-For $remote_addr;" in rendered(wanted())["nginx.conf"]
    text = rendered(wanted("trusted_proxies", value=["198.51.100.0/24"]))["nginx.conf"]
    assert "set_real_ip_from 198.51.100.0/24;" in text
    # what an application is told is one address, and never what the client wrote
    assert "X-Forwarded-For $remote_addr;" in text
    assert "$http_x_forwarded_for" not in text


def test_no_header_of_a_trusted_proxy_opens_the_management_address() -> None:
    text = rendered(wanted("trusted_proxies", value=["198.51.100.0/24"]))["nginx.conf"]
    management = text.partition("server_name headroom-management;")[2].partition("location")[0]
    assert "set_real_ip_from unix:;" in management


def test_secrets_are_in_their_own_file_alone() -> None:
    files = rendered(virtual(port=443, tls=PEM))
    assert [name for name, text in files.items() if "c2VjcmV0" in text] == ["app.key"]
    assert "c2VjcmV0" not in shown(facts(virtual(port=443, tls=PEM)))


def test_the_release_follows_from_all_that_is_rendered() -> None:
    first = render(wanted(), BUILD, {}, BASE)
    assert first == render(wanted(), BUILD, {}, BASE)
    assert release_of(first[1]["nginx.conf"]) == first[0]
    other_key = virtual(port=443, tls={**PEM, "key": PEM["key"] + "x"})
    releases = {
        render(what, BUILD, {}, BASE)[0]
        for what in (wanted(), virtual(port=443, tls=PEM), other_key, upstream(max_fails=4))
    }
    assert len(releases) == 4


def observed(what: Wanted, **others: t.Any) -> Observed:
    """Return what is seen of a host that has it in force."""
    release, files = render(what, BUILD, {}, BASE)
    seen = Observed(BUILD, files["nginx.conf"], None, {}, files, facts(what), True, release)
    return dataclasses.replace(seen, **others)


def planned(now: Observed, what: Wanted) -> list[Step]:
    release, files = render(what, BUILD, {}, BASE)
    return list(plan(now, files, release, CONFIG, facts(what)))


RELOAD = Step("reload", "nginx", "its configuration changes")


def test_nothing_is_done_to_what_is_as_declared() -> None:
    assert planned(observed(wanted()), wanted()) == []


def test_a_change_is_told_by_server_weight_and_algorithm() -> None:
    what = upstream(
        algorithm="least_conn", servers=[{"address": "192.0.2.1:80", "weight": 5}, {"address": "192.0.2.3:80"}]
    )
    assert planned(observed(wanted()), what) == [
        Step("change", "upstream app algorithm", "round_robin -> least_conn"),
        Step("change", "upstream app server 192.0.2.1:80", "weight 3 -> weight 5"),
        Step("remove", "upstream app server 192.0.2.2:80", "weight 1"),
        Step("add", "upstream app server 192.0.2.3:80", "weight 1"),
        Step("remove", "upstream app server [2001:db8::1]:80", "weight 1"),
        RELOAD,
    ]


def test_what_was_changed_by_hand_or_left_half_done_is_mended() -> None:
    by_hand = observed(wanted())
    by_hand = dataclasses.replace(by_hand, config=f"{by_hand.config}# by hand\n")
    assert [step.action for step in planned(by_hand, wanted())] == ["write", "reload"]
    lost = observed(wanted(), release={})
    assert [step.action for step in planned(lost, wanted())] == ["write", "reload"]
    # a run that was killed after the swap: the file says it, nginx does not serve it
    killed = observed(wanted(), serving="0123456789abcdef")
    assert planned(killed, wanted()) == [Step("reload", "nginx", "it serves release 0123456789abcdef")]
    assert planned(observed(wanted(), running=False, serving=""), wanted()) == [
        Step("start", "nginx", "it does not run")
    ]


def test_a_configuration_of_somebody_else_is_told_as_such() -> None:
    foreign = Observed(BUILD, "user www-data;\n", running=True)
    assert before(foreign) == {"configuration": "not written by headroom.scale"}
    assert planned(foreign, wanted())[0] == Step("remove", "configuration", "not written by headroom.scale")


def test_an_upstream_that_was_silent_is_excused_only_while_nothing_of_it_changes() -> None:
    now = observed(wanted(), silent=frozenset({"app"}))
    assert excused(now, facts(virtual(port=81)), "upstream") == {"app"}
    assert excused(now, facts(upstream(max_fails=9)), "upstream") == frozenset()


def test_the_build_is_read_from_what_nginx_says() -> None:
    assert BUILD.version == (1, 26, 3)
    assert BUILD.modules_directory == "/usr/lib/nginx/modules"
    assert BUILD.pid_file == "/run/nginx.pid"
    assert "--with-http_v2_module" in BUILD.arguments


# --- properties

weights = st.dictionaries(st.integers(1, 9), st.integers(1, 1000), min_size=1, max_size=9)
algorithms = st.sampled_from(["round_robin", "least_conn", "ip_hash", "hash", "random_two", "least_time"])


def with_servers(found: dict[int, int], algorithm: str, runtime: bool) -> Wanted:
    servers = [{"address": f"192.0.2.{host}:80", "weight": weight} for host, weight in found.items()]
    return upstream(servers=servers, algorithm=algorithm, runtime=runtime)


@given(weights, weights, algorithms, algorithms, st.booleans())
def test_a_plan_is_empty_exactly_when_nothing_differs_and_leads_to_what_is_wanted(
    one: dict[int, int], other: dict[int, int], first: str, second: str, runtime: bool
) -> None:
    was, then = with_servers(one, first, runtime), with_servers(other, second, runtime)
    steps = planned(observed(was), then)
    assert (steps == []) == (render(was, BUILD, {}, BASE) == render(then, BUILD, {}, BASE))
    # the steps, taken one after the other on the facts that were, give the facts that are wanted
    known = dict(facts(was))
    for step in steps:
        if step.action == "remove":
            assert known.pop(step.object) == step.why
        elif step.action == "add":
            known[step.object] = step.why
        elif step.action == "change":
            old, _arrow, new = step.why.partition(" -> ")
            assert known[step.object] == old
            known[step.object] = new
    assert known == facts(then)
    assert changes(facts(then), facts(then)) == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_leaves_its_place_in_the_configuration(text: str) -> None:
    inside = quote(text)[1:-1]
    assert quote(text)[0] == quote(text)[-1] == '"'
    # every quotation mark is behind an odd number of backslashes
    assert all(len(mark[1]) % 2 == 1 for mark in re.finditer(r'(\\*)"', inside))
    assert len(re.search(r"\\*$", inside)[0]) % 2 == 0
    inside = literal(text)[1:-1]
    # Lua sees plain characters and decimal escapes alone, which give the bytes back
    assert re.fullmatch(r"([A-Za-z0-9 .:/_$?=&%*,+@-]|\\[0-9]{3})*", inside)
    parts = re.findall(r"\\([0-9]{3})|(.)", inside)
    assert b"".join(bytes([int(code)]) if code else plain.encode() for code, plain in parts) == text.encode()
