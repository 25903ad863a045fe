# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The files of a load balancer, rendered whole; nothing here reads or writes any."""

from __future__ import annotations

import json
import math
import typing as t

from .._common.nginx.model import Build
from .._common.nginx.plan import LUA_MODULES
from .._common.nginx.render import (
    HEADER,
    RELEASE,
    SAYS_RELEASE,
    address,
    digest,
    http_common,
    indent,
    listed,
    listen_tls,
    literal,
    management_start,
    milliseconds,
    named,
    quote,
    start,
)
from .balancer import LUA
from .model import ActiveCheck, Breaker, Country, Limit, Upstream, VirtualServer, Wanted

MODSECURITY_MODULE = "ngx_http_modsecurity_module"
COUNTRY_MODULE = "ngx_http_geoip2_module"
RULES = ("/etc/modsecurity/crs/crs-setup.conf", "/usr/share/modsecurity-crs/rules/*.conf")
NATIVE = {
    "round_robin": "",
    "least_conn": "least_conn;",
    "ip_hash": "ip_hash;",
    "random_two": "random two least_conn;",
}


def needs_lua(upstream: Upstream) -> list[str]:
    """Return what an upstream asks for that nginx does not do by itself; none when nginx balances it alone."""
    backup = any(server.backup for server in upstream.servers)
    asked = {
        "active_check": upstream.active_check is not None,
        "affinity": bool(upstream.affinity_cookie),
        "algorithm least_time": upstream.algorithm == "least_time",
        f"backup with algorithm {upstream.algorithm}": backup
        and upstream.algorithm in ("ip_hash", "hash", "random_two"),
        "breaker": upstream.breaker is not None,
        "canary": upstream.canary is not None,
        "runtime": upstream.runtime,
        "slow_start_s": upstream.slow_start_s > 0,
    }
    return [name for name, needed in asked.items() if needed]


def probe_of(upstream: Upstream) -> ActiveCheck:
    """Return what is asked of an upstream to see that it answers; without a declared check any answer below 500 will do."""
    return upstream.active_check or ActiveCheck(statuses=tuple(range(100, 500)))


def facts(wanted: Wanted) -> dict[str, str]:
    """Return what is declared, one fact a name, without secrets: what is compared and shown."""
    found: dict[str, t.Any] = {
        "management address": f"{wanted.management.address}:{wanted.management.port}",
        "management allow": listed(wanted.management.allow),
        "trusted proxies": listed(wanted.trusted_proxies),
        "real ip header": wanted.real_ip_header,
        "user": wanted.user,
        "worker connections": wanted.worker_connections,
    }
    if wanted.country:
        one = wanted.country
        found["country"] = f"database {one.database}" if one.database else f"header {one.header} of trusted proxies"
    for upstream in wanted.upstreams:
        start = f"upstream {upstream.name}"
        found[f"{start} algorithm"] = upstream.algorithm
        if upstream.algorithm == "hash":
            found[f"{start} hash key"] = upstream.hash_key
        for server in upstream.servers:
            found[f"{start} server {server.name}"] = f"weight {server.weight}{', backup' if server.backup else ''}"
        found[f"{start} passive check"] = f"{upstream.max_fails} failures in {upstream.fail_timeout_s:g} s"
        if needs_lua(upstream):
            found[f"{start} ejected at most"] = f"{upstream.max_ejected_percent} %"
        if upstream.slow_start_s:
            found[f"{start} slow start"] = f"{upstream.slow_start_s:g} s"
        check, breaker = upstream.active_check, upstream.breaker
        if check:
            found[f"{start} active check"] = (
                f"{check.path} every {check.interval_s:g} s within {check.timeout_s:g} s, {check.fails} out, {check.passes} in, "
                f"status {listed(check.statuses)}"
                + (f", body with {check.body!r}" if check.body else "")
                + (f", host {check.host}" if check.host else "")
            )
        if breaker:
            found[f"{start} breaker"] = (
                f"open {breaker.open_s:g} to {breaker.max_open_s:g} s, {breaker.half_open_requests} on trial"
            )
        if upstream.affinity_cookie:
            found[f"{start} affinity"] = (
                f"cookie {upstream.affinity_cookie} for {upstream.affinity_ttl_s or 'the session'}"
            )
        canary = upstream.canary
        if canary:
            found[f"{start} canary"] = f"{canary.percent} % to upstream {canary.upstream}" + (
                f", cookie {canary.cookie} for {canary.cookie_ttl_s or 'the session'}" if canary.cookie else ""
            )
        found[f"{start} keepalive"] = upstream.keepalive
        found[f"{start} balanced by"] = "lua" if needs_lua(upstream) else "nginx"
    for one in wanted.virtual_servers:
        start = f"virtual server {one.name}"
        found[f"{start} port"] = one.port
        found[f"{start} names"] = listed(one.server_names)
        found[f"{start} upstream"] = one.upstream
        if one.certificate:
            found[f"{start} certificate"] = f"sha256 {digest(one.certificate)}"
            found[f"{start} key"] = f"sha256 {digest(one.key)}"
        for name, value in one.headers:
            found[f"{start} header {name}"] = value
        if one.limit:
            found[f"{start} limit"] = (
                f"{one.limit.requests_per_minute} a minute, burst {one.limit.burst}{', dry run' if one.limit.dry_run else ''}"
            )
        for name, networks in (("allow", one.allow), ("deny", one.deny)):
            if networks:
                found[f"{start} {name}"] = listed(networks)
        if one.ipv6:
            found[f"{start} ipv6"] = "yes"
        if one.redirect_port:
            found[f"{start} redirect port"] = one.redirect_port
        for name, countries in (("allow", one.allow_countries), ("deny", one.deny_countries)):
            if countries:
                found[f"{start} {name} countries"] = listed(countries)
        found[f"{start} modsecurity"] = one.modsecurity
        found[f"{start} timeouts"] = (
            f"connect {one.connect_timeout_s:g}, send {one.send_timeout_s:g}, read {one.read_timeout_s:g} s"
        )
    return {name: str(value) for name, value in found.items()}


def render(wanted: Wanted, build: Build, addresses: t.Mapping[str, str], base: str) -> tuple[str, dict[str, str]]:
    """Return the name of the release and its files by name; the name follows from all that the files say.

    :param addresses: host of a server to its address.
    :param base: directory that holds the releases.
    """
    lua = [upstream for upstream in wanted.upstreams if needs_lua(upstream)]
    files = {"nginx.conf": _config(wanted, build, addresses), "description.json": json.dumps(facts(wanted), indent=1)}
    if lua:
        files["balancer.lua"] = LUA
        files["upstreams.lua"] = f"return {literal([_described(upstream, addresses) for upstream in lua])}\n"
    for one in wanted.virtual_servers:
        if one.certificate:
            files[f"{one.name}.crt"] = one.certificate
            files[f"{one.name}.key"] = one.key
    for mode in sorted({one.modsecurity for one in wanted.virtual_servers} - {"off"}):
        files[f"modsecurity-{mode}.conf"] = _modsecurity(mode)
    return named(files, base)


def _described(upstream: Upstream, addresses: t.Mapping[str, str]) -> dict[str, t.Any]:
    breaker = upstream.breaker or Breaker(upstream.fail_timeout_s, upstream.fail_timeout_s, 1)
    check = upstream.active_check
    return {
        "name": upstream.name,
        "algorithm": upstream.algorithm,
        "servers": [
            {
                "name": server.name,
                "ip": addresses.get(server.host, server.host),
                "port": server.port,
                "weight": server.weight,
                "backup": server.backup,
            }
            for server in upstream.servers
        ],
        "max_fails": upstream.max_fails,
        "fail_timeout_s": upstream.fail_timeout_s,
        "slow_start_s": upstream.slow_start_s,
        "max_ejected_percent": upstream.max_ejected_percent,
        "open_s": breaker.open_s,
        "max_open_s": breaker.max_open_s,
        "half_open_requests": breaker.half_open_requests,
        "cookie": upstream.affinity_cookie or None,
        "cookie_ttl_s": upstream.affinity_ttl_s,
        "canary": {
            "upstream": upstream.canary.upstream,
            "percent": upstream.canary.percent,
            "cookie": upstream.canary.cookie or None,
            "cookie_ttl_s": upstream.canary.cookie_ttl_s,
        }
        if upstream.canary
        else None,
        "check": {
            "path": check.path,
            "interval_s": check.interval_s,
            "timeout_s": check.timeout_s,
            "fails": check.fails,
            "passes": check.passes,
            "statuses": list(check.statuses),
            "body": check.body,
            "host": check.host,
        }
        if check
        else None,
    }


def _config(wanted: Wanted, build: Build, addresses: t.Mapping[str, str]) -> str:
    lua = any(needs_lua(upstream) for upstream in wanted.upstreams)
    security = any(one.modsecurity != "off" for one in wanted.virtual_servers)
    modules = [
        *(LUA_MODULES if lua else ()),
        *((MODSECURITY_MODULE,) if security else ()),
        *((COUNTRY_MODULE,) if wanted.country and wanted.country.database else ()),
    ]
    lines = [
        *start(build, wanted.user, wanted.worker_connections, modules),
        "http {",
        *indent(_http(wanted, lua)),
    ]
    for upstream in wanted.upstreams:
        lines += indent(_upstream(upstream, addresses))
    seen: set[str] = set()
    for number, one in enumerate(wanted.virtual_servers):
        lines += indent(_virtual_server(one, wanted, build, number, seen))
        if one.redirect_port:
            lines += indent(_redirect(one, seen))
    lines += indent(_management(wanted, lua))
    return "\n".join([*lines, "}"]) + "\n"


def _http(wanted: Wanted, lua: bool) -> list[str]:
    lines = [
        "include /etc/nginx/mime.types;",
        "default_type application/octet-stream;",
        *http_common(wanted.trusted_proxies, wanted.real_ip_header),
        "limit_req_status 429;",
    ]
    for one in wanted.virtual_servers:
        if one.limit:
            lines.append(
                f"limit_req_zone $binary_remote_addr zone=headroom_{one.name}:10m rate={one.limit.requests_per_minute}r/m;"
            )
    if wanted.country:
        lines += _countries(wanted, wanted.country)
    if lua:
        # only cookies are set there, and what is there costs each request
        cookies = any(one.affinity_cookie or (one.canary and one.canary.cookie) for one in wanted.upstreams)
        lines += [
            "lua_shared_dict headroom 10m;",
            "lua_max_pending_timers 4096;",
            "lua_max_running_timers 4096;",
            "lua_socket_log_errors off;",
            f'init_by_lua_block {{ headroom = dofile("{RELEASE}/balancer.lua").init(dofile("{RELEASE}/upstreams.lua")) }}',
            "init_worker_by_lua_block { headroom.start() }",
            *(["header_filter_by_lua_block { headroom.header() }"] if cookies else []),
            "log_by_lua_block { headroom.log() }",
        ]
    return lines


def _countries(wanted: Wanted, country: Country) -> list[str]:
    if country.database:
        lines = [f"geoip2 {country.database} {{ $headroom_country source=$remote_addr country iso_code; }}"]
    else:
        # what is said counts when who connects is trusted, and not when who is spoken of is
        trusted = " ".join(f"{network} 1;" for network in wanted.trusted_proxies)
        header = country.header.lower().replace("-", "_")
        lines = [
            f"geo $realip_remote_addr $headroom_trusted {{ default 0; {trusted} }}",
            f'map $headroom_trusted $headroom_country {{ default ""; 1 $http_{header}; }}',
        ]
    for number, one in enumerate(wanted.virtual_servers):
        codes = one.allow_countries or one.deny_countries
        if codes:
            known, other = (0, 1) if one.allow_countries else (1, 0)
            lines.append(
                f"map $headroom_country $headroom_refused_{number} {{ default {other}; "
                + " ".join(f"{code} {known};" for code in codes)
                + " }"
            )
    return lines


def _upstream(upstream: Upstream, addresses: t.Mapping[str, str]) -> list[str]:
    lines = [f"upstream {upstream.name} {{"]
    if needs_lua(upstream):
        # the server is never asked: nginx wants one to be there
        lines += ["    server 0.0.0.1;", f'    balancer_by_lua_block {{ headroom.pick("{upstream.name}") }}']
    else:
        lines.append(f"    zone {upstream.name} 256k;")
        native = f"hash {upstream.hash_key} consistent;" if upstream.algorithm == "hash" else NATIVE[upstream.algorithm]
        lines += [f"    {native}"] if native else []
        # nginx counts this time in whole seconds
        passive = f"max_fails={upstream.max_fails} fail_timeout={math.ceil(upstream.fail_timeout_s)}s"
        for server in upstream.servers:
            where = address(addresses.get(server.host, server.host), server.port)
            lines.append(f"    server {where} weight={server.weight} {passive}{' backup' if server.backup else ''};")
    return [*lines, f"    keepalive {upstream.keepalive};", "}"]


def _sockets(port: int, ipv6: bool, seen: set[str]) -> list[str]:
    """Return where a server listens; the first one of a socket also gets what is meant for no other."""
    sockets = (f"{port}", f"[::]:{port}")[: 2 if ipv6 else 1]
    found = [f"{socket}{'' if socket in seen else ' default_server'}" for socket in sockets]
    seen.update(sockets)
    return found


def _redirect(one: VirtualServer, seen: set[str]) -> list[str]:
    port = "" if one.port == 443 else f":{one.port}"
    return [
        "server {",
        f"    server_name {' '.join(one.server_names)};",
        *(f"    listen {socket};" for socket in _sockets(one.redirect_port, one.ipv6, seen)),
        f"    return 308 https://$host{port}$request_uri;",
        "}",
    ]


def _virtual_server(one: VirtualServer, wanted: Wanted, build: Build, number: int, seen: set[str]) -> list[str]:
    upstream = next(upstream for upstream in wanted.upstreams if upstream.name == one.upstream)
    lines = ["server {", f"    server_name {' '.join(one.server_names)};"]
    if one.certificate:
        lines += indent(listen_tls(build, _sockets(one.port, one.ipv6, seen), "", f"{RELEASE}/{one.name}"))
    else:
        lines += [f"    listen {socket};" for socket in _sockets(one.port, one.ipv6, seen)]
    lines += [f"    add_header {name} {quote(value)} always;" for name, value in one.headers]
    if one.allow_countries or one.deny_countries:
        lines.append(f"    if ($headroom_refused_{number}) {{ return 403; }}")
    lines += [f"    deny {network};" for network in one.deny]
    lines += [f"    allow {network};" for network in one.allow]
    lines += ["    deny all;"] if one.allow else []
    if one.limit:
        lines += _limit(one.name, one.limit)
    if one.modsecurity != "off":
        lines += ["    modsecurity on;", f"    modsecurity_rules_file {RELEASE}/modsecurity-{one.modsecurity}.conf;"]
    lines += ["    location / {"]
    lines += indent(indent(_proxy(upstream, one)))
    return [*lines, "    }", "}"]


def _limit(name: str, limit: Limit) -> list[str]:
    burst = f" burst={limit.burst} nodelay" if limit.burst else ""
    return [
        f"    limit_req zone=headroom_{name}{burst};",
        *(["    limit_req_dry_run on;"] if limit.dry_run else []),
    ]


def _proxy(upstream: Upstream, one: VirtualServer) -> list[str]:
    return [
        *_key(upstream),
        f"proxy_pass http://{upstream.name};",
        "proxy_http_version 1.1;",
        "proxy_set_header Host $host;",
        "proxy_set_header Upgrade $http_upgrade;",
        "proxy_set_header Connection $headroom_connection;",
        "proxy_set_header X-Real-IP $remote_addr;",
        # the client as a trusted proxy names it, and never what the client says of itself
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        "proxy_set_header X-Forwarded-Host $host;",
        f"proxy_connect_timeout {milliseconds(one.connect_timeout_s)};",
        f"proxy_send_timeout {milliseconds(one.send_timeout_s)};",
        f"proxy_read_timeout {milliseconds(one.read_timeout_s)};",
        "proxy_next_upstream error timeout;",
        "proxy_next_upstream_tries 3;",
    ]


def _key(upstream: Upstream) -> list[str]:
    return (
        [f"set $headroom_key {quote(upstream.hash_key)};"]
        if upstream.algorithm == "hash" and needs_lua(upstream)
        else []
    )


def _management(wanted: Wanted, lua: bool) -> list[str]:
    lines = management_start(wanted.management, bool(wanted.trusted_proxies))
    if lua:
        lines += [
            "    location = /upstreams { content_by_lua_block { headroom.show() } }",
            "    location = /metrics { content_by_lua_block { headroom.metrics() } }",
            "    location = /servers { client_max_body_size 4k; client_body_buffer_size 4k; "
            "content_by_lua_block { headroom.change() } }",
            "    location = /canaries { client_max_body_size 4k; client_body_buffer_size 4k; "
            "content_by_lua_block { headroom.share() } }",
        ]
    for upstream in wanted.upstreams:
        probe = probe_of(upstream)
        lines += [
            f"    location = /probe/{upstream.name} {{",
            *indent(indent(_key(upstream))),
            f"        proxy_pass http://{upstream.name}{probe.path};",
            "        proxy_http_version 1.1;",
            f"        proxy_set_header Host {quote(probe.host or upstream.name)};",
            '        proxy_set_header Connection "";',
            "        proxy_connect_timeout 2s;",
            "        proxy_read_timeout 5s;",
            "        proxy_next_upstream error timeout;",
            "        proxy_next_upstream_tries 3;",
            f"        {SAYS_RELEASE}",
            "    }",
        ]
    return [*lines, "    location / { return 404; }", "}"]


def _modsecurity(mode: str) -> str:
    lines = [
        HEADER,
        f"SecRuleEngine {'On' if mode == 'prevention' else 'DetectionOnly'}",
        "SecRequestBodyAccess On",
        "SecRequestBodyLimit 13107200",
        "SecRequestBodyNoFilesLimit 131072",
        "SecRequestBodyLimitAction Reject",
        "SecResponseBodyAccess Off",
        'SecRule REQUEST_HEADERS:Content-Type "^(?:application(?:/soap\\+|/)|text/)xml" '
        "\"id:'200000',phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=XML\"",
        'SecRule REQUEST_HEADERS:Content-Type "^application/json" '
        "\"id:'200001',phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=JSON\"",
        "SecTmpDir /tmp/",
        "SecDataDir /tmp/",
        "SecAuditEngine RelevantOnly",
        'SecAuditLogRelevantStatus "^(?:5|4(?!04))"',
        "SecAuditLogType Serial",
        "SecAuditLog /var/log/nginx/modsec_audit.log",
        *(f"Include {path}" for path in RULES),
    ]
    return "\n".join(lines) + "\n"
