# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The files of an edge, rendered whole; nothing here reads or writes any."""

from __future__ import annotations

import hashlib
import json
import typing as t

from ..._common.nginx.model import Build
from ..._common.nginx.plan import LUA_MODULES
from ..._common.nginx.render import (
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
    named,
    start,
)
from ..model import ALL, Behavior, Match, Names, Origin, pattern_regex
from .model import Edge
from .program import LUA

# what viewers send that an origin learns in any case
_SENT = {
    "Accept-Encoding": '""',
    "Connection": '""',
    "Content-Type": "$content_type",
    "Cookie": "$headroom_cookie",
    "Host": "headroom-edge",
    "User-Agent": "headroom-edge",
    "X-Forwarded-For": "$remote_addr",
    "X-Forwarded-Host": "$host",
    "X-Forwarded-Proto": "$scheme",
    "X-Headroom": "$headroom_inner",
}
# what makes sense only where nginx does not keep the answer
_CONDITIONS = ("If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range")
# what else a viewer and an origin that change to a WebSocket say; where nothing is kept
_UPGRADE = ("Upgrade", *(f"Sec-WebSocket-{name}" for name in ("Extensions", "Key", "Protocol", "Version")))
_ACCEL = "X-Accel-Buffering X-Accel-Charset X-Accel-Expires X-Accel-Limit-Rate X-Accel-Redirect"
_TYPES = (
    "application/javascript application/json application/manifest+json application/wasm application/xml font/otf font/ttf "
    "image/svg+xml text/css text/csv text/javascript text/plain text/xml"
)
_BUFFERS = ["proxy_buffer_size 16k;", "proxy_buffers 8 16k;", "proxy_busy_buffers_size 32k;"]


def facts(edge: Edge) -> dict[str, str]:
    """Return what is declared, one fact a name, without secrets: what is compared and shown."""
    cdn, host = edge.cdn, edge.host
    found: dict[str, t.Any] = {
        "aliases": listed(cdn.aliases),
        "cache directory": edge.cache.directory,
        "cache inactive": f"{edge.cache.inactive_s} s",
        "cache size": f"{edge.cache.size_mb} MB",
        "cache stale": f"{edge.cache.stale_s} s while it is fetched anew",
        "country": edge.country.header or listed(f"{net} {code}" for net, code in edge.country.networks),
        "default root object": cdn.default_root_object or "none",
        "http version": cdn.http_version,
        "ipv6": cdn.ipv6,
        "management address": f"{host.management.address}:{host.management.port}",
        "management allow": listed(host.management.allow),
        "name": cdn.name,
        "port http": edge.http_port,
        "port internal": edge.internal_port,
        "purge allow": listed(edge.purge_allow),
        "real ip header": host.real_ip_header,
        "region": edge.region,
        "trusted certificates": edge.origin_ca_certs,
        "trusted proxies": listed(host.trusted_proxies),
        "user": host.user,
        "worker connections": host.worker_connections,
    }
    if edge.certificate:
        found["port https"] = edge.https_port
        found["tls certificate"] = f"sha256 {digest(edge.certificate)}"
        found["tls key"] = f"sha256 {digest(edge.key)}"
        found["tls versions"] = "1.2, 1.3" if edge.tls12 else "1.3"
    for origin in cdn.origins:
        begin = f"origin {origin.name}"
        ports = {"http": origin.http_port, "https": origin.https_port}
        found[begin] = (
            ", ".join(
                f"{scheme}://{origin.domain_name}:{ports[scheme]}{origin.path}"
                for scheme in edge.schemes(origin.protocol_policy)
            )
            + f", {origin.connect_attempts} attempts of {origin.connect_timeout_s} s, read {origin.read_timeout_s} s, "
            f"keepalive {origin.keepalive_timeout_s} s, {listed(origin.ssl_protocols)}"
        )
        for name, value in origin.headers.items():
            # enough to see a change, and too little to guess a secret by
            mark = hashlib.sha256(f"{origin.name} {name} {value}".encode()).hexdigest()[:4]
            found[f"{begin} header {name.lower()}"] = f"a value of mark {mark}"
    for group in cdn.groups:
        found[f"group {group.name}"] = f"{' then '.join(group.members)} on {listed(group.failover_status)}"
    for position, one in enumerate((*cdn.behaviors, cdn.default), 1):
        begin = f"behaviour {one.path if one is not cdn.default else 'default'}"
        found[f"{begin} position"] = position
        found[f"{begin} origin"] = one.origin
        found[f"{begin} viewers"] = f"{one.viewer_protocol_policy}, {listed(one.methods)}"
        found[f"{begin} compress"] = one.compress
        found[f"{begin} ttl"] = f"{one.ttl.min_s} to {one.ttl.max_s} s, else {one.ttl.default_s} s"
        found[f"{begin} cache key"] = _shown(one.cache_key)
        found[f"{begin} forward"] = _shown(one.forward)
    for number, deny in enumerate(cdn.edge.deny, 1):
        found[f"deny {number}"] = f"{_condition(deny.match)}: {deny.status}"
    for number, route in enumerate(cdn.edge.routes, 1):
        found[f"route {number}"] = f"{_condition(route.match)}: {route.origin}"
    for number, control in enumerate(cdn.edge.cache_control, 1):
        found[f"cache control {number}"] = f"{control.path}: {control.value}"
    for name, value in cdn.edge.security_headers.as_headers().items():
        found[f"header {name}"] = value
    return {name: str(value) for name, value in found.items()}


def _shown(names: Names) -> str:
    parts = (("headers", names.headers), ("cookies", names.cookies), ("query strings", names.query_strings))
    return "; ".join(f"{kind} {listed(given)}" for kind, given in parts if given) or "none"


def _condition(match: Match) -> str:
    parts = (("paths", match.paths), ("countries", match.countries), ("user agents", match.user_agents))
    return "; ".join(f"{kind} {listed(given)}" for kind, given in parts if given)


def render(
    edge: Edge, build: Build, addresses: t.Mapping[str, str], base: str, directory: str = ""
) -> tuple[str, dict[str, str]]:
    """Return the name of the release and its files by name; the name follows from all that the files say.

    :param addresses: domain name of an origin to its address.
    :param base: directory that holds the releases.
    :param directory: where answers are kept, if not where it is declared.
    """
    directory = directory or edge.cache.directory
    files = {
        "nginx.conf": _config(edge, build, addresses, directory),
        "description.json": json.dumps(facts(edge), indent=1),
        "edge.lua": LUA,
        "rules.lua": f"return {literal(_described(edge, directory))}\n",
    }
    if edge.certificate:
        files["edge.crt"], files["edge.key"] = edge.certificate, edge.key
    return named(files, base)


def _described(edge: Edge, directory: str) -> dict[str, t.Any]:
    """Return what the program needs to know; it holds the values of headers, so that only root may read it."""
    cdn, rules = edge.cdn, edge.cdn.edge
    targets = {name: number for number, name in enumerate(edge.targets)}
    return {
        "region": edge.region,
        "objects": f"{directory}/objects",
        "purges": f"{directory}/purges",
        "inactive_s": edge.cache.inactive_s,
        "stale_s": edge.cache.stale_s,
        "root": cdn.default_root_object,
        "https_port": edge.https_port,
        "country_header": edge.country.header.replace("-", "_") or None,
        "country_networks": bool(edge.country.networks),
        "by_scheme": any(origin.protocol_policy == "match-viewer" for origin in cdn.origins),
        "targets": list(targets),
        "headers": _pairs(rules.security_headers.as_headers()),
        "header_names": sorted({name.lower() for origin in cdn.origins for name in origin.headers}),
        "origins": [{"domain": one.domain_name, "headers": _pairs(one.headers)} for one in cdn.origins],
        "deny": [{**_rule(rule.match), "status": rule.status} for rule in rules.deny],
        "routes": [{**_rule(rule.match), "target": targets[rule.origin]} for rule in rules.routes],
        "cache_control": [{"path": _regex(rule.path), "value": rule.value} for rule in rules.cache_control],
        "behaviors": [
            {
                "path": _regex(one.path),
                "target": targets[one.origin],
                "policy": one.viewer_protocol_policy,
                "methods": list(one.methods),
                "min_s": one.ttl.min_s,
                "default_s": one.ttl.default_s,
                "max_s": one.ttl.max_s,
                "key_headers": list(one.cache_key.headers),
                "key_cookies": list(one.cache_key.cookies),
                "key_arguments": list(one.cache_key.query_strings),
                "cookies": _both(one.cache_key.cookies, one.forward.cookies),
                "arguments": _both(one.cache_key.query_strings, one.forward.query_strings),
                "by_authorization": "authorization" in one.cache_key.headers,
            }
            for one in (*cdn.behaviors, cdn.default)
        ],
    }


def _both(one: t.Sequence[str], other: t.Sequence[str]) -> list[str]:
    return [ALL] if ALL in (*one, *other) else sorted({*one, *other})


def _pairs(given: t.Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in sorted(given.items())]


def _regex(pattern: str) -> str:
    return f"\\A(?:{pattern_regex(pattern)})\\z"


def _rule(match: Match) -> dict[str, t.Any]:
    return {
        "paths": [_regex(path) for path in match.paths],
        "countries": list(match.countries),
        "agents": [part.lower() for part in match.user_agents],
    }


def _config(edge: Edge, build: Build, addresses: t.Mapping[str, str], directory: str) -> str:
    lines = [
        *start(build, edge.host.user, edge.host.worker_connections, LUA_MODULES),
        "http {",
        *indent(_http(edge, directory)),
    ]
    for number, origin in enumerate(edge.cdn.origins):
        lines += indent(_upstreams(number, origin, edge, addresses))
    lines += indent(_outer(edge, build))
    lines += indent(_inner(edge))
    lines += indent(_management(edge))
    return "\n".join([*lines, "}"]) + "\n"


def _http(edge: Edge, directory: str) -> list[str]:
    cache = edge.cache
    lines = [
        "default_type application/octet-stream;",
        *http_common(edge.host.trusted_proxies, edge.host.real_ip_header),
        "client_max_body_size 0;",
        # purges, and keys that go around the cache
        "lua_shared_dict headroom_purges 16m;",
        "lua_shared_dict headroom_passed 1m;",
        f'init_by_lua_block {{ headroom = dofile("{RELEASE}/edge.lua").init(dofile("{RELEASE}/rules.lua")) }}',
        "init_worker_by_lua_block { headroom.start() }",
        f"proxy_cache_path {directory}/objects levels=1:2 keys_zone={_zone(cache.directory)}:{keys_mb(cache.size_mb)}m "
        f"max_size={cache.size_mb}m inactive={cache.inactive_s}s use_temp_path=off;",
        f"upstream headroom_inner {{ server 127.0.0.1:{edge.internal_port} max_fails=0; keepalive 64; }}",
    ]
    if edge.country.header:
        lines.append("geo $realip_remote_addr $headroom_trusted {")
        lines += indent(["default 0;", *(f"{network} 1;" for network in edge.host.trusted_proxies)])
        lines.append("}")
    if edge.country.networks:
        lines.append("geo $headroom_country {")
        lines += indent(['default "";', *(f"{network} {country};" for network, country in edge.country.networks)])
        lines.append("}")
    return lines


def keys_mb(size_mb: int) -> int:
    """Return the memory for the keys of a cache, in MB: it must not be full before the disk is, since nginx then answers some with 500.

    An answer takes at least a block of 4 KiB of the disk, and 128 bytes here. Only what is used is taken from the host, but a host may
    refuse to promise more than it has: where it would be more than 512 MB, answers are taken to have some 17 KB on average.
    """
    return max(10, min(-(-size_mb // 28), max(512, size_mb // 125)))


def _zone(directory: str) -> str:
    # nginx refuses another directory for a zone that it has
    return f"headroom_{hashlib.sha256(directory.encode()).hexdigest()[:8]}"


def _upstreams(number: int, origin: Origin, edge: Edge, addresses: t.Mapping[str, str]) -> list[str]:
    lines = []
    ports = {"http": origin.http_port, "https": origin.https_port}
    for scheme in edge.schemes(origin.protocol_policy):
        where = address(addresses.get(origin.domain_name, origin.domain_name), ports[scheme])
        lines += [
            f"upstream origin_{number}_{scheme} {{",
            # nginx tries each server once
            *(f"    server {where} max_fails=0;" for _attempt in range(origin.connect_attempts)),
            "    keepalive 32;",
            f"    keepalive_timeout {origin.keepalive_timeout_s}s;",
            "}",
        ]
    return lines


def _outer(edge: Edge, build: Build) -> list[str]:
    cdn = edge.cdn
    lines: list[str] = []
    if cdn.aliases:
        lines += ["server {", *indent(_listen(edge, build, " default_server")), "    return 421;", "}"]
    lines += [
        "server {",
        *indent(_listen(edge, build, "" if cdn.aliases else " default_server")),
        f"    server_name {' '.join(cdn.aliases) or '_'};",
        *(f'    set $headroom_{name} "";' for name in ("uri", "cookie", "inner", "key", "pass")),
        "    header_filter_by_lua_block { headroom.header() }",
        "    location / { rewrite_by_lua_block { headroom.request() } }",
    ]
    for number, behavior in enumerate((*cdn.behaviors, cdn.default)):
        lines += [
            f"    # {behavior.path}",
            f"    location @behavior_{number} {{",
            *indent(indent(_behavior(behavior, edge))),
            "    }",
        ]
    return [*lines, "}"]


def _listen(edge: Edge, build: Build, options: str) -> list[str]:
    def at(port: int) -> list[str]:
        return [str(port), *([f"[::]:{port}"] if edge.cdn.ipv6 else [])]

    lines = [f"listen {where}{options};" for where in at(edge.http_port)]
    if edge.certificate:
        lines += listen_tls(
            build,
            at(edge.https_port),
            options,
            f"{RELEASE}/edge",
            http2=edge.cdn.http_version == "http2",
            tls12=edge.tls12,
        )
    return lines


def _behavior(behavior: Behavior, edge: Edge) -> list[str]:
    names = (*behavior.cache_key.headers, *behavior.forward.headers)
    everything = ALL in names
    sent = dict(_SENT)
    if behavior.ttl.max_s == 0:
        sent.update({name: _given(name) for name in (*_UPGRADE, *(() if everything else _CONDITIONS))})
        sent["Connection"] = "$headroom_connection"
    if everything:
        # theirs, as they are
        for name in ("Content-Type", "User-Agent"):
            del sent[name]
    spelled = {name.lower(): name for name in sent}
    for name in names:
        if name not in (ALL, "host", "cookie", "connection"):
            sent[spelled.get(name, name)] = _given(name)
    sent["X-Headroom-Host"] = "$host" if "host" in names else '""'
    # what the inner server may take: two origins of a group, one after another
    patience_s = (
        2 * max(one.connect_attempts * one.connect_timeout_s + one.read_timeout_s for one in edge.cdn.origins) + 5
    )
    lines = [
        "proxy_pass http://headroom_inner$headroom_uri;",
        "proxy_http_version 1.1;",
        *([] if everything else ["proxy_pass_request_headers off;"]),
        *(f"proxy_set_header {name} {value};" for name, value in sorted(sent.items())),
        "proxy_connect_timeout 5s;",
        f"proxy_read_timeout {patience_s}s;",
        f"proxy_send_timeout {patience_s}s;",
        f"proxy_ignore_headers Expires Vary {_ACCEL};",
        *_BUFFERS,
    ]
    if behavior.ttl.max_s > 0:
        lines += [
            f"proxy_cache {_zone(edge.cache.directory)};",
            "proxy_cache_key $headroom_key;",
            "proxy_cache_bypass $headroom_pass;",
            "proxy_cache_lock on;",
            f"proxy_cache_lock_timeout {patience_s}s;",
            f"proxy_cache_lock_age {patience_s}s;",
            "proxy_cache_background_update on;",
            "proxy_cache_use_stale error timeout http_500 http_502 http_503 http_504;",
        ]
    if behavior.compress:
        lines += ["gzip on;", "gzip_proxied any;", "gzip_vary on;", f"gzip_types {_TYPES};"]
    return lines


def _given(header: str) -> str:
    return f"$http_{header.lower().replace('-', '_')}"


def _inner(edge: Edge) -> list[str]:
    cdn = edge.cdn
    numbers = {origin.name: number for number, origin in enumerate(cdn.origins)}
    lines = [
        "server {",
        f"    listen 127.0.0.1:{edge.internal_port};",
        "    server_name headroom-edge;",
        "    access_log off;",
        # who asks is the outer server
        *(["    set_real_ip_from unix:;"] if edge.host.trusted_proxies else []),
        '    set $headroom_scheme "";',
        '    set $headroom_host "";',
        "    header_filter_by_lua_block { headroom.inner_header() }",
        "    location / { rewrite_by_lua_block { headroom.target() } }",
    ]
    for number, origin in enumerate(cdn.origins):
        lines += [
            f"    # {origin.name}",
            f"    location @target_{number} {{",
            *indent(indent(_origin(number, origin, edge))),
            "    }",
        ]
    for number, group in enumerate(cdn.groups, len(cdn.origins)):
        first, second = (numbers[name] for name in group.members)
        # one that cannot be reached is 502 or 504 to nginx
        statuses = " ".join(map(str, sorted({*group.failover_status, 502, 504})))
        lines += [
            f"    # {group.name}",
            f"    location @target_{number} {{",
            *indent(indent(_origin(first, cdn.origins[first], edge))),
            "        proxy_intercept_errors on;",
            f"        error_page {statuses} = @target_{second};",
            "    }",
        ]
    return [*lines, "}"]


def _origin(number: int, origin: Origin, edge: Edge) -> list[str]:
    schemes = edge.schemes(origin.protocol_policy)
    scheme = schemes[0] if len(schemes) == 1 else "$headroom_scheme"
    path = origin.path.replace("$", "%24")
    lines = [
        f"rewrite_by_lua_block {{ headroom.origin({number}) }}",
        f"proxy_pass {scheme}://origin_{number}_{scheme}{path}$request_uri;",
        "proxy_http_version 1.1;",
        "proxy_set_header Host $headroom_host;",
        # only where nothing is kept does an upgrade come here
        "proxy_set_header Upgrade $http_upgrade;",
        "proxy_set_header Connection $headroom_connection;",
        'proxy_set_header X-Headroom "";',
        'proxy_set_header X-Headroom-Host "";',
        f"proxy_ignore_headers Cache-Control Expires Set-Cookie Vary {_ACCEL};",
        "proxy_request_buffering off;",
        "proxy_max_temp_file_size 0;",
        f"proxy_connect_timeout {origin.connect_timeout_s}s;",
        f"proxy_read_timeout {origin.read_timeout_s}s;",
        f"proxy_send_timeout {origin.read_timeout_s}s;",
        "proxy_next_upstream error timeout;",
        # of an answer that does not come there is no second attempt
        f"proxy_next_upstream_timeout {max(1, origin.connect_attempts * origin.connect_timeout_s - 1)}s;",
        *_BUFFERS,
    ]
    if "https" in schemes:
        lines += [
            "proxy_ssl_server_name on;",
            f"proxy_ssl_name {origin.domain_name};",
            f"proxy_ssl_protocols {' '.join(_protocols(origin))};",
            "proxy_ssl_verify on;",
            "proxy_ssl_verify_depth 5;",
            f"proxy_ssl_trusted_certificate {edge.origin_ca_certs};",
        ]
    return lines


def _protocols(origin: Origin) -> list[str]:
    """Return the versions of TLS; CloudFront's names end with 1.2, which stands for what is newer too."""
    return [*origin.ssl_protocols, *(["TLSv1.3"] if "TLSv1.2" in origin.ssl_protocols else [])]


def _management(edge: Edge) -> list[str]:
    one = edge.host.management
    allowed = sorted({"127.0.0.1/32", f"{one.address}/32", *edge.purge_allow})
    lines = [
        *management_start(one, bool(edge.host.trusted_proxies)),
        "    if ($request_method = PURGE) { rewrite ^ /-/purge last; }",
        "    location = /-/purge {",
        "        internal;",
        *(f"        allow {network};" for network in allowed),
        "        deny all;",
        "        content_by_lua_block { headroom.purge() }",
        "    }",
    ]
    for number, origin in enumerate(edge.cdn.origins):
        scheme = edge.schemes(origin.protocol_policy)[-1]
        lines += [
            f"    location = /probe/{origin.name} {{",
            "        proxy_pass http://headroom_inner/;",
            "        proxy_http_version 1.1;",
            "        proxy_set_header Host headroom-edge;",
            '        proxy_set_header Connection "";',
            f"        proxy_set_header X-Headroom 0,{number},{scheme};",
            '        proxy_set_header X-Headroom-Host "";',
            "        proxy_read_timeout 10s;",
            f"        {SAYS_RELEASE}",
            "    }",
        ]
    return [*lines, "    location / { return 404; }", "}"]
