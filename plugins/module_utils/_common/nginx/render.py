# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Parts of a configuration of nginx that have the same form whatever it is for. Pure."""

from __future__ import annotations

import hashlib
import json
import typing as t

from .model import Build, Management

HEADER = "# Written by headroom.scale: changes made by hand are replaced."
RELEASE = "@RELEASE@"
# which release passed a probe on
RELEASE_HEADER = "X-Headroom-Release"
SAYS_RELEASE = f"add_header {RELEASE_HEADER} {RELEASE} always;"
CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)


def named(files: t.Mapping[str, str], base: str) -> tuple[str, dict[str, str]]:
    """Return the name of a release, which follows from all that its files say, and the files with the place where it lies."""
    release = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return release, {name: text.replace(RELEASE, f"{base}/{release}") for name, text in files.items()}


def start(build: Build, user: str, worker_connections: int, modules: t.Iterable[str]) -> list[str]:
    """Return what stands before the block of HTTP."""
    return [
        HEADER,
        f"# release {RELEASE}",
        f"user {user};",
        "worker_processes auto;",
        # without a bound, each reload leaves workers that wait for their last long connection
        "worker_shutdown_timeout 600s;",
        f"pid {build.pid_file};",
        "error_log /var/log/nginx/error.log warn;",
        *(f"load_module {build.modules_directory}/{name}.so;" for name in modules),
        f"events {{ worker_connections {worker_connections}; }}",
    ]


def http_common(trusted_proxies: t.Sequence[str], real_ip_header: str) -> list[str]:
    """Return what holds for all of HTTP."""
    lines = [
        "server_tokens off;",
        "sendfile on;",
        "tcp_nopush on;",
        "server_names_hash_bucket_size 128;",
        "log_format headroom '$remote_addr - $remote_user [$time_iso8601] \"$request\" $status $body_bytes_sent '",
        '    \'"$http_referer" "$http_user_agent" upstream=$upstream_addr status=$upstream_status seconds=$request_time\';',
        "access_log /var/log/nginx/access.log headroom buffer=64k flush=1s;",
        # an upgrade, as to a WebSocket, goes from connection to connection; else these are kept
        "map $http_upgrade $headroom_connection { default upgrade; '' ''; }",
    ]
    if trusted_proxies:
        lines += [f"set_real_ip_from {network};" for network in trusted_proxies]
        lines += [f"real_ip_header {real_ip_header};", "real_ip_recursive on;"]
    return lines


def listen_tls(
    build: Build, where: t.Iterable[str], options: str, stem: str, *, http2: bool = True, tls12: bool = True
) -> list[str]:
    """Return what makes a server speak TLS.

    :param where: addresses and ports.
    :param stem: path of certificate and key without their endings.
    """
    # a directive of its own since 1.25.1, an option of listen before
    modern = build.version >= (1, 25, 1)
    return [
        *(f"listen {one} ssl{'' if modern or not http2 else ' http2'}{options};" for one in where),
        *(["http2 on;"] if modern and http2 else []),
        f"ssl_certificate {stem}.crt;",
        f"ssl_certificate_key {stem}.key;",
        f"ssl_protocols {'TLSv1.2 ' if tls12 else ''}TLSv1.3;",
        f"ssl_ciphers {CIPHERS};",
        "ssl_prefer_server_ciphers off;",
        "ssl_session_cache shared:headroom_tls:10m;",
        "ssl_session_timeout 1d;",
        "ssl_session_tickets off;",
    ]


def management_start(one: Management, proxied: bool) -> list[str]:
    """Return the start of the server at the management address; its end is left to the caller."""
    allowed = sorted({"127.0.0.1/32", f"{one.address}/32", *one.allow})
    return [
        "server {",
        f"    listen {one.address}:{one.port};",
        "    server_name headroom-management;",
        "    access_log off;",
        *(f"    allow {network};" for network in allowed),
        "    deny all;",
        # who asks is who connects: a header of a trusted proxy opens nothing here
        *(["    set_real_ip_from unix:;"] if proxied else []),
        "    default_type text/plain;",
        f'    location = /release {{ return 200 "{RELEASE}\\n"; }}',
    ]


def literal(value: t.Any) -> str:
    """Return a value as Lua writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:.17g}"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else _escaped(c) for c in value) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {literal(one)}" for name, one in value.items() if one is not None) + "}"
    return "{" + ", ".join(map(literal, value)) + "}"


def _escaped(character: str) -> str:
    if character in " .:/-_$?=&%*,+@":
        return character
    return "".join(f"\\{byte:03d}" for byte in character.encode())


def indent(lines: t.Iterable[str]) -> list[str]:
    """Return lines one level further in."""
    return [f"    {line}" for line in lines]


def address(host: str, port: int) -> str:
    """Return where a host listens."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def milliseconds(seconds: float) -> str:
    """Return seconds as nginx reads them."""
    return f"{round(seconds * 1000)}ms"


def quote(text: str) -> str:
    """Return a text as one word of the configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def listed(values: t.Iterable[t.Any]) -> str:
    """Return values as a fact has them."""
    return ", ".join(map(str, values)) or "none"


def digest(text: str) -> str:
    """Return what tells a text apart from others without showing it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
