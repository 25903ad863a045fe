# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The options of ``nginx_config``: declared, and checked beyond their types."""

from __future__ import annotations

import re
import typing as t
from dataclasses import replace

from .._common.argspec import ArgumentSpec
from .._common.errors import OptionError
from .._common.nginx.options import (
    HEADER,
    NAME,
    check_pem,
    host_spec,
    is_address,
    networks,
    once,
    parse_host,
    within,
)
from .model import (
    ALGORITHMS,
    MODSECURITY,
    ActiveCheck,
    Breaker,
    Canary,
    Country,
    Limit,
    Server,
    Upstream,
    VirtualServer,
    Wanted,
)

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
SERVER_NAME = re.compile(r"_|(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
PATH = re.compile(r"/[A-Za-z0-9._~%!&()*+,:@/?=-]*")
HASH_KEY = re.compile(r"([A-Za-z0-9_.:/-]|\$[a-z][a-z0-9_]*|\$\{[a-z][a-z0-9_]*\})+")
COOKIE = re.compile(r"[A-Za-z0-9_]{1,64}")
COUNTRY = re.compile(r"[A-Z]{2}")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}
HSTS = ("Strict-Transport-Security", "max-age=31536000; includeSubDomains")


def config_spec() -> ArgumentSpec:
    """Return the module's options."""
    server = {
        "address": {"type": "str", "required": True},
        "weight": {"type": "int", "default": 1},
        "backup": {"type": "bool", "default": False},
    }
    check = {
        "path": {"type": "str", "default": "/"},
        "interval_s": {"type": "float", "default": 10.0},
        "timeout_s": {"type": "float", "default": 5.0},
        "fails": {"type": "int", "default": 3},
        "passes": {"type": "int", "default": 2, "no_log": False},
        "statuses": {"type": "list", "elements": "int", "default": [200]},
        "body": {"type": "str"},
        "host": {"type": "str"},
    }
    breaker = {
        "open_s": {"type": "float", "default": 30.0},
        "max_open_s": {"type": "float", "default": 60.0},
        "half_open_requests": {"type": "int", "default": 1},
    }
    affinity = {"cookie": {"type": "str", "required": True}, "ttl_s": {"type": "int", "default": 0}}
    canary = {
        "servers": {"type": "list", "elements": "dict", "options": server},
        "upstream": {"type": "str"},
        "percent": {"type": "int", "default": 0},
        "cookie": {"type": "str"},
        "cookie_ttl_s": {"type": "int", "default": 0},
    }
    upstream = {
        "name": {"type": "str", "required": True},
        "servers": {"type": "list", "elements": "dict", "required": True, "options": server},
        "algorithm": {"type": "str", "choices": list(ALGORITHMS), "default": "round_robin"},
        "hash_key": {"type": "str", "default": "$request_uri", "no_log": False},
        "max_fails": {"type": "int", "default": 3},
        "fail_timeout_s": {"type": "float", "default": 30.0},
        "slow_start_s": {"type": "float", "default": 0.0},
        "active_check": {"type": "dict", "options": check},
        "breaker": {"type": "dict", "options": breaker},
        "max_ejected_percent": {"type": "int", "default": 50},
        "affinity": {"type": "dict", "options": affinity},
        "keepalive": {"type": "int", "default": 64},
        "runtime": {"type": "bool", "default": True},
        "canary": {"type": "dict", "options": canary},
    }
    tls = {"certificate": {"type": "str", "required": True}, "key": {"type": "str", "required": True, "no_log": True}}
    limit = {
        "requests_per_minute": {"type": "int", "default": 100},
        "burst": {"type": "int", "default": 20},
        "dry_run": {"type": "bool", "default": False},
    }
    virtual = {
        "name": {"type": "str", "required": True},
        "server_names": {"type": "list", "elements": "str", "default": ["_"]},
        "port": {"type": "int", "required": True},
        "upstream": {"type": "str", "required": True},
        "tls": {"type": "dict", "options": tls},
        "headers": {"type": "dict"},
        "limit": {"type": "dict", "options": limit},
        "allow": {"type": "list", "elements": "str", "default": []},
        "deny": {"type": "list", "elements": "str", "default": []},
        "modsecurity": {"type": "str", "choices": list(MODSECURITY), "default": "off"},
        "connect_timeout_s": {"type": "float", "default": 5.0},
        "send_timeout_s": {"type": "float", "default": 10.0},
        "read_timeout_s": {"type": "float", "default": 10.0},
        "ipv6": {"type": "bool", "default": False},
        "redirect_port": {"type": "int"},
        "allow_countries": {"type": "list", "elements": "str", "default": []},
        "deny_countries": {"type": "list", "elements": "str", "default": []},
    }
    country = {"database": {"type": "path"}, "header": {"type": "str"}}
    return ArgumentSpec(
        {
            "upstreams": {"type": "list", "elements": "dict", "required": True, "options": upstream},
            "virtual_servers": {"type": "list", "elements": "dict", "required": True, "options": virtual},
            "country": {"type": "dict", "options": country},
        }
    ).merge(host_spec())


def parse_wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    if not params["upstreams"]:
        raise OptionError("upstreams", [], "give at least one upstream.")
    if not params["virtual_servers"]:
        raise OptionError("virtual_servers", [], "give at least one virtual server.")
    upstreams = _with_canaries(params["upstreams"], [_upstream(entry) for entry in params["upstreams"]])
    virtual = tuple(_virtual_server(entry) for entry in params["virtual_servers"])
    once("virtual_servers[].name", [one.name for one in virtual])
    named = {upstream.name for upstream in upstreams}
    for one in virtual:
        if one.upstream not in named:
            raise OptionError(
                "virtual_servers[].upstream", one.upstream, f"give one of the upstreams: {', '.join(sorted(named))}."
            )
    for port in {one.port for one in virtual}:
        if len({bool(one.certificate) for one in virtual if one.port == port}) > 1:
            raise OptionError("virtual_servers[].port", port, "it is there with and without 'tls'; give one of both.")
    for one in virtual:
        if one.redirect_port in {other.port for other in virtual if other.certificate}:
            raise OptionError(
                "virtual_servers[].redirect_port", one.redirect_port, "TLS is spoken there; give a port of its own."
            )
    ports = {one.port for one in virtual} | {one.redirect_port for one in virtual if one.redirect_port}
    for port in ports:
        there = [one for one in virtual if port in (one.port, one.redirect_port)]
        once("virtual_servers[].server_names", [name for one in there for name in one.server_names])
    host = parse_host(params, dict.fromkeys(ports, "a virtual server"))
    country = _country(params["country"], host.trusted_proxies) if params["country"] else None
    for one in virtual:
        for option in ("allow_countries", "deny_countries"):
            if getattr(one, option) and not country:
                codes = ", ".join(getattr(one, option))
                raise OptionError(
                    f"virtual_servers[].{option}", codes, "give 'country' too, which says where it is known from."
                )
    return Wanted(
        upstreams,
        virtual,
        host.management,
        host.trusted_proxies,
        host.real_ip_header,
        host.user,
        host.worker_connections,
        country,
    )


def _with_canaries(given: t.Sequence[t.Mapping[str, t.Any]], upstreams: t.Sequence[Upstream]) -> tuple[Upstream, ...]:
    """Return the upstreams with their canaries; one whose servers are given becomes an upstream beside the others."""
    once("upstreams[].name", [upstream.name for upstream in upstreams])
    known = {upstream.name: upstream for upstream in upstreams}
    found = []
    for entry, upstream in zip(given, upstreams, strict=True):
        if not entry["canary"]:
            found.append(upstream)
            continue
        canary = _canary(entry["canary"], upstream)
        other = known.get(canary.upstream)
        if entry["canary"]["servers"]:
            if other:
                raise OptionError(
                    "upstreams[].name", other.name, f"the canary of {upstream.name} is called so; take another."
                )
            other = replace(
                upstream, name=canary.upstream, servers=_servers(entry["canary"]["servers"], canary.upstream)
            )
            found.append(other)
        else:
            _require_fit(upstream, canary, other, {one["name"] for one in given if one["canary"]})
        found.append(replace(upstream, canary=canary))
    return tuple(found)


def _canary(given: t.Mapping[str, t.Any], upstream: Upstream) -> Canary:
    if bool(given["servers"]) == bool(given["upstream"]):
        value = given["upstream"] or []
        raise OptionError(
            "upstreams[].canary.servers", value, f"give the canary of {upstream.name} either servers or an upstream."
        )
    within("upstreams[].canary.percent", given["percent"], 0, 100)
    within("upstreams[].canary.cookie_ttl_s", given["cookie_ttl_s"], 0, 31_536_000)
    cookie = given["cookie"] or ""
    if cookie and (not COOKIE.fullmatch(cookie) or cookie == upstream.affinity_cookie):
        remedy = "give a name of letters, digits and underscores, other than that of the affinity."
        raise OptionError("upstreams[].canary.cookie", cookie, remedy)
    if upstream.affinity_cookie and not cookie:
        remedy = f"{upstream.name} has an affinity, which a client would lose with each change of sides; give a name."
        raise OptionError("upstreams[].canary.cookie", cookie, remedy)
    return Canary(given["upstream"] or f"{upstream.name}-canary", given["percent"], cookie, given["cookie_ttl_s"])


def _require_fit(upstream: Upstream, canary: Canary, other: Upstream | None, parents: t.Collection[str]) -> None:
    """Require an upstream that is named as a canary to be there, without one of its own, and balanced by Lua alike."""
    remedy = ""
    if other is None or other.name in parents:
        remedy = "give another one of the upstreams, which has no canary itself."
    elif not other.runtime:
        remedy = "it has no 'runtime', which a canary needs."
    elif other.algorithm == "hash" and (upstream.algorithm, upstream.hash_key) != (other.algorithm, other.hash_key):
        remedy = f"it hashes by another key than {upstream.name}; give both the same algorithm and hash_key."
    if remedy:
        raise OptionError("upstreams[].canary.upstream", canary.upstream, remedy)


def _country(given: t.Mapping[str, t.Any], trusted: t.Collection[str]) -> Country:
    database, header = given["database"] or "", given["header"] or ""
    if bool(database) == bool(header):
        raise OptionError("country", database or "", "give either a database or a header.")
    if header and not HEADER.fullmatch(header):
        raise OptionError("country.header", header, "give the name of a header, such as CF-IPCountry.")
    if header and not trusted:
        raise OptionError(
            "country.header", header, "nobody is trusted to say it; name the proxies in 'trusted_proxies'."
        )
    if database and not re.fullmatch(r"/[A-Za-z0-9._/-]+", database):
        raise OptionError("country.database", database, "give the whole path of a file, in letters, digits and ._/-.")
    return Country(database, header)


def _upstream(given: t.Mapping[str, t.Any]) -> Upstream:
    name = _name("upstreams[].name", given["name"])
    servers = _servers(given["servers"], name)
    if not HASH_KEY.fullmatch(given["hash_key"]):
        raise OptionError("upstreams[].hash_key", given["hash_key"], "give names of variables, such as $request_uri.")
    for option, least, most in (
        ("max_fails", 1, 1000),
        ("fail_timeout_s", 1, 3600),
        ("slow_start_s", 0, 3600),
        ("max_ejected_percent", 0, 100),
        ("keepalive", 1, 10_000),
    ):
        within(f"upstreams[].{option}", given[option], least, most)
    affinity = given["affinity"] or {"cookie": "", "ttl_s": 0}
    if given["affinity"] and not COOKIE.fullmatch(affinity["cookie"]):
        raise OptionError(
            "upstreams[].affinity.cookie", affinity["cookie"], "give a name of letters, digits and underscores."
        )
    within("upstreams[].affinity.ttl_s", affinity["ttl_s"], 0, 31_536_000)
    return Upstream(
        name,
        servers,
        given["algorithm"],
        given["hash_key"],
        given["max_fails"],
        given["fail_timeout_s"],
        given["slow_start_s"],
        _check(given["active_check"]) if given["active_check"] else None,
        _breaker(given["breaker"]) if given["breaker"] else None,
        given["max_ejected_percent"],
        affinity["cookie"],
        affinity["ttl_s"],
        given["keepalive"],
        given["runtime"],
    )


def _servers(given: t.Iterable[t.Mapping[str, t.Any]], name: str) -> tuple[Server, ...]:
    servers = tuple(_server(entry) for entry in given)
    if all(server.backup for server in servers):
        raise OptionError("upstreams[].servers", name, "give the upstream at least one server that is no backup.")
    once("upstreams[].servers[].address", [server.name for server in servers])
    return servers


def _server(given: t.Mapping[str, t.Any]) -> Server:
    address = given["address"]
    host, _colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isdecimal() or not 1 <= int(port) <= 65535 or not (HOST.fullmatch(host) or is_address(bare, host)):
        raise OptionError(
            "upstreams[].servers[].address", address, "give HOST:PORT, an address of version 6 in square brackets."
        )
    within("upstreams[].servers[].weight", given["weight"], 1, 1000)
    return Server(address, bare, int(port), given["weight"], given["backup"])


def _check(given: t.Mapping[str, t.Any]) -> ActiveCheck:
    if not PATH.fullmatch(given["path"]):
        raise OptionError("upstreams[].active_check.path", given["path"], "give a path that begins with a slash.")
    for option, least, most in (
        ("interval_s", 0.5, 3600),
        ("timeout_s", 0.1, 60),
        ("fails", 1, 100),
        ("passes", 1, 100),
    ):
        within(f"upstreams[].active_check.{option}", given[option], least, most)
    statuses = tuple(sorted(set(given["statuses"])))
    if not statuses or not all(100 <= status <= 599 for status in statuses):
        raise OptionError("upstreams[].active_check.statuses", given["statuses"], "give HTTP statuses from 100 to 599.")
    host = given["host"] or ""
    if host and not HOST.fullmatch(host):
        raise OptionError("upstreams[].active_check.host", host, "give the name of a host.")
    return ActiveCheck(
        given["path"],
        given["interval_s"],
        given["timeout_s"],
        given["fails"],
        given["passes"],
        statuses,
        given["body"] or "",
        host,
    )


def _breaker(given: t.Mapping[str, t.Any]) -> Breaker:
    within("upstreams[].breaker.open_s", given["open_s"], 1, 3600)
    within("upstreams[].breaker.max_open_s", given["max_open_s"], given["open_s"], 3600)
    within("upstreams[].breaker.half_open_requests", given["half_open_requests"], 1, 1000)
    return Breaker(given["open_s"], given["max_open_s"], given["half_open_requests"])


def _virtual_server(given: t.Mapping[str, t.Any]) -> VirtualServer:
    name = _name("virtual_servers[].name", given["name"])
    within("virtual_servers[].port", given["port"], 1, 65535)
    for one in given["server_names"]:
        if not SERVER_NAME.fullmatch(one):
            raise OptionError("virtual_servers[].server_names", one, "give names of hosts, *.NAME or _ for all others.")
    if not given["server_names"]:
        raise OptionError("virtual_servers[].server_names", [], "give at least one name, or _ for all others.")
    tls = given["tls"] or {"certificate": "", "key": ""}
    if given["tls"]:
        check_pem("virtual_servers[].tls", name, tls)
    headers = {**HEADERS, **(dict([HSTS]) if given["tls"] else {})} if given["headers"] is None else given["headers"]
    for header, value in headers.items():
        if not HEADER.fullmatch(str(header)):
            raise OptionError("virtual_servers[].headers", header, "give the name of a header.")
        if not re.fullmatch(r"[^\x00-\x1f\x7f$]{1,4096}", str(value)):
            raise OptionError("virtual_servers[].headers", value, f"give {header} one line without a dollar sign.")
    limit = given["limit"]
    if limit:
        within("virtual_servers[].limit.requests_per_minute", limit["requests_per_minute"], 1, 1_000_000)
        within("virtual_servers[].limit.burst", limit["burst"], 0, 1_000_000)
    for option in ("connect_timeout_s", "send_timeout_s", "read_timeout_s"):
        within(f"virtual_servers[].{option}", given[option], 0.1, 3600)
    redirect = given["redirect_port"]
    if redirect is not None:
        within("virtual_servers[].redirect_port", redirect, 1, 65535)
        if not given["tls"]:
            raise OptionError(
                "virtual_servers[].redirect_port",
                redirect,
                f"{name} has no 'tls' to be sent on to; give it, or leave this out.",
            )
    if given["allow_countries"] and given["deny_countries"]:
        codes = ", ".join(given["deny_countries"])
        raise OptionError(
            "virtual_servers[].deny_countries", codes, "'allow_countries' is given too; give one of both."
        )
    return VirtualServer(
        name,
        tuple(given["server_names"]),
        given["port"],
        given["upstream"],
        tls["certificate"],
        tls["key"],
        tuple(sorted((str(header), str(value)) for header, value in headers.items())),
        Limit(limit["requests_per_minute"], limit["burst"], limit["dry_run"]) if limit else None,
        networks("virtual_servers[].allow", given["allow"]),
        networks("virtual_servers[].deny", given["deny"]),
        given["modsecurity"],
        given["connect_timeout_s"],
        given["send_timeout_s"],
        given["read_timeout_s"],
        given["ipv6"],
        redirect or 0,
        _countries("virtual_servers[].allow_countries", given["allow_countries"]),
        _countries("virtual_servers[].deny_countries", given["deny_countries"]),
    )


def _countries(option: str, given: t.Iterable[str]) -> tuple[str, ...]:
    for one in given:
        if not COUNTRY.fullmatch(one):
            raise OptionError(option, one, "give countries by two capital letters, such as DE.")
    return tuple(sorted(set(given)))


def _name(option: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise OptionError(option, name, "give up to 64 letters, digits, dots, dashes and underscores.")
    return name
