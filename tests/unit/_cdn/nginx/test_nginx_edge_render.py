# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an edge is made of: every declared thing is a fact, a plan is empty when nothing differs, secrets are where only root reads."""

from __future__ import annotations

import copy
import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.headroom.scale.plugins.module_utils._cdn.nginx.converge import missing
from ansible_collections.headroom.scale.plugins.module_utils._cdn.nginx.model import Edge
from ansible_collections.headroom.scale.plugins.module_utils._cdn.nginx.options import edge_spec, parse_edge
from ansible_collections.headroom.scale.plugins.module_utils._cdn.nginx.render import facts, keys_mb, render
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.model import Build, Observed
from ansible_collections.headroom.scale.plugins.module_utils._common.nginx.plan import plan, shown
from cdn.table import DESCRIPTION
from hypothesis import given
from hypothesis import strategies as st

BUILD = Build((1, 26, 3), frozenset({"--with-http_ssl_module"}), "/usr/lib/nginx/modules", "/run/nginx.pid")
BASE = "/etc/nginx/headroom"
PEM = {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n", "key": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"}


def edge(**changes: t.Any) -> Edge:
    """Return what the table's description is at an edge, with other options."""
    given_options = copy.deepcopy(DESCRIPTION)
    del given_options["certificate"]
    for origin in given_options["origins"]:
        origin["type"] = "custom"
    given_options.update(
        {
            "region": "us-east-1",
            "tls": PEM,
            "country": {"header": "X-Country"},
            "trusted_proxies": ["192.0.2.1"],
            **changes,
        }
    )
    checked = ArgumentSpecValidator(edge_spec().options).validate(given_options)
    assert not checked.error_messages, checked.error_messages
    return parse_edge(checked.validated_parameters)


def planned(was: Edge, then: Edge) -> list[str]:
    """Return what is planned on a host that has the one in force."""
    release, files = render(was, BUILD, {}, BASE)
    now = Observed(BUILD, files["nginx.conf"], None, {}, files, facts(was), True, release)
    release, files = render(then, BUILD, {}, BASE)
    return [f"{step.action} {step.object}" for step in plan(now, files, release, "/etc/nginx/nginx.conf", facts(then))]


CHANGES: list[tuple[dict[str, t.Any], str]] = [
    ({"region": "eu-central-1"}, "change region"),
    ({"aliases": []}, "change aliases"),
    ({"ipv6": False}, "change ipv6"),
    ({"http_version": "http1.1"}, "change http version"),
    ({"default_root_object": "index.html"}, "change default root object"),
    ({"http_port": 8080}, "change port http"),
    ({"https_port": 8443}, "change port https"),
    ({"internal_port": 8183}, "change port internal"),
    ({"tls": {**PEM, "minimum_version": "TLSv1.3"}}, "change tls versions"),
    ({"tls": {**PEM, "key": PEM["key"] + "x"}}, "change tls key"),
    ({"cache": {"directory": "/srv/edge"}}, "change cache directory"),
    ({"cache": {"size_mb": 5}}, "change cache size"),
    ({"cache": {"inactive_s": 5}}, "change cache inactive"),
    ({"cache": {"stale_s": 5}}, "change cache stale"),
    ({"country": {"networks": [{"network": "192.0.2.0/24", "country": "DE"}]}}, "change country"),
    ({"purge_allow": ["192.0.2.5"]}, "change purge allow"),
    ({"origin_ca_certs": "/etc/ssl/own.crt"}, "change trusted certificates"),
    ({"management": {"allow": ["192.0.2.5"]}}, "change management allow"),
    ({"behaviors": DESCRIPTION["behaviors"][:2]}, "remove behaviour /static/* origin"),
    ({"origin_groups": [{**DESCRIPTION["origin_groups"][0], "failover_status": [503]}]}, "change group both"),
    ({"edge_rules": {**DESCRIPTION["edge_rules"], "deny": DESCRIPTION["edge_rules"]["deny"][:2]}}, "remove deny 3"),
]


@pytest.mark.parametrize(("changes", "step"), CHANGES)
def test_each_thing_that_is_declared_is_a_fact_of_its_own(changes: dict[str, t.Any], step: str) -> None:
    steps = planned(edge(), edge(**changes))
    assert step in steps
    assert steps[-1] == "reload nginx"
    assert planned(edge(**changes), edge(**changes)) == []


@given(st.lists(st.sampled_from(CHANGES), max_size=4), st.lists(st.sampled_from(CHANGES), max_size=4))
def test_a_plan_is_empty_exactly_when_nothing_differs(
    one: list[tuple[dict, str]], other: list[tuple[dict, str]]
) -> None:
    def with_all(changes: list[tuple[dict[str, t.Any], str]]) -> Edge:
        return edge(**{name: value for change, _step in changes for name, value in change.items()})

    was, then = with_all(one), with_all(other)
    assert (planned(was, then) == []) == (facts(was) == facts(then)) == (was == then)


def test_secrets_are_where_only_root_reads_them_and_never_shown() -> None:
    files = render(edge(), BUILD, {}, BASE)[1]
    assert [name for name, text in files.items() if "open" in text and "sesame" in text] == ["rules.lua"]
    assert [name for name, text in files.items() if "c2VjcmV0" in text] == ["edge.key"]
    said = shown(facts(edge()))
    assert "sesame" not in said
    assert "c2VjcmV0" not in said
    assert "origin us-east-1 header x-origin-key" in said


def test_what_the_installed_nginx_lacks_is_named() -> None:
    said = {option: remedy for option, _value, remedy in missing(edge(), BUILD)}
    assert set(said) == {"program", "http_version", "trusted_proxies"}
    assert "libnginx-mod-http-lua" in said["program"]


@given(st.integers(1, 100_000_000))
def test_the_keys_of_all_that_the_disk_holds_have_room(size_mb: int) -> None:
    entries = keys_mb(size_mb) * 1024 * 1024 / 128
    # a slab gives some of its pages to itself
    assert entries * (4096 if size_mb <= 14_000 else 17_500) * 0.95 > size_mb * 1024 * 1024
    assert keys_mb(size_mb) <= max(512, size_mb / 100)
