# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is said of a load balancer, and what is seen of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .._common.nginx.model import Management

# what nginx calls an algorithm; least_time has no name in it, since only Lua does it
ALGORITHMS = ("round_robin", "least_conn", "ip_hash", "hash", "random_two", "least_time")
MODSECURITY = ("off", "detection", "prevention")


@dataclass(frozen=True)
class Server:
    """One server of an upstream."""

    name: str
    host: str
    port: int
    weight: int = 1
    backup: bool = False


@dataclass(frozen=True)
class ActiveCheck:
    """Requests that are made to each server to see whether it is well."""

    path: str = "/"
    interval_s: float = 10.0
    timeout_s: float = 5.0
    fails: int = 3
    passes: int = 2
    statuses: tuple[int, ...] = (200,)
    body: str = ""
    host: str = ""


@dataclass(frozen=True)
class Breaker:
    """How long a server that failed is left alone, and how it comes back."""

    open_s: float = 30.0
    max_open_s: float = 60.0
    half_open_requests: int = 1


@dataclass(frozen=True)
class Canary:
    """The other side of an upstream, and its share of the requests."""

    upstream: str
    percent: int = 0
    cookie: str = ""
    cookie_ttl_s: int = 0


@dataclass(frozen=True)
class Upstream:
    """A set of servers that requests are spread over."""

    name: str
    servers: tuple[Server, ...]
    algorithm: str = "round_robin"
    hash_key: str = "$request_uri"
    max_fails: int = 3
    fail_timeout_s: float = 30.0
    slow_start_s: float = 0.0
    active_check: ActiveCheck | None = None
    breaker: Breaker | None = None
    max_ejected_percent: int = 50
    affinity_cookie: str = ""
    affinity_ttl_s: int = 0
    keepalive: int = 64
    runtime: bool = True
    canary: Canary | None = None


@dataclass(frozen=True)
class Limit:
    """How many requests a client may make."""

    requests_per_minute: int = 100
    burst: int = 20
    dry_run: bool = False


@dataclass(frozen=True)
class VirtualServer:
    """What clients talk to."""

    name: str
    server_names: tuple[str, ...]
    port: int
    upstream: str
    certificate: str = ""
    key: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    limit: Limit | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    modsecurity: str = "off"
    connect_timeout_s: float = 5.0
    send_timeout_s: float = 10.0
    read_timeout_s: float = 10.0
    ipv6: bool = False
    # where plain HTTP is sent on to this one; 0 for nowhere
    redirect_port: int = 0
    allow_countries: tuple[str, ...] = ()
    deny_countries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Country:
    """Where a client's country is known from: a database, or a header of a trusted proxy."""

    database: str = ""
    header: str = ""


@dataclass(frozen=True)
class Wanted:
    """A whole load balancer as declared."""

    upstreams: tuple[Upstream, ...]
    virtual_servers: tuple[VirtualServer, ...]
    management: Management = field(default_factory=Management)
    trusted_proxies: tuple[str, ...] = ()
    real_ip_header: str = "X-Forwarded-For"
    user: str = "www-data"
    worker_connections: int = 4096
    country: Country | None = None
