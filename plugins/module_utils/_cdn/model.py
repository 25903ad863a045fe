# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""A CDN in the words that all its providers share: origins, behaviours by path, edge rules. Pure data."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

# in a list of headers, cookies or query strings: all of them
ALL = "*"


def pattern_regex(pattern: str) -> str:
    """Return a path pattern as a regular expression that Python, JavaScript and PCRE read the same way; it has no anchors.

    ``*`` stands for any number of characters and ``?`` for one, as in the path patterns of CloudFront; a leading slash may be left out.
    """
    full = pattern if pattern.startswith(("/", "*")) else f"/{pattern}"
    parts = {"*": r"[\s\S]*", "?": r"[\s\S]"}
    return "".join(parts.get(char) or re.sub(r"([^A-Za-z0-9_/~&:@'\",-])", r"\\\1", char) for char in full)


def path_matches(pattern: str, path: str) -> bool:
    """Return whether a path, without its query string, matches a pattern; case counts."""
    return re.fullmatch(pattern_regex(pattern), path) is not None


@dataclass(frozen=True)
class Origin:
    """Where content comes from; ``kind`` is ``custom`` for a web server and ``s3`` for a bucket that only the CDN may read."""

    name: str
    domain_name: str
    kind: str = "custom"
    path: str = ""
    protocol_policy: str = "https-only"
    http_port: int = 80
    https_port: int = 443
    ssl_protocols: tuple[str, ...] = ("TLSv1.2",)
    connect_attempts: int = 3
    connect_timeout_s: int = 10
    read_timeout_s: int = 30
    keepalive_timeout_s: int = 5
    headers: t.Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class OriginGroup:
    """Two origins, the second of which is asked when the first cannot be reached or answers with one of the statuses."""

    name: str
    members: tuple[str, str]
    failover_status: tuple[int, ...]


@dataclass(frozen=True)
class Names:
    """Headers, cookies and query strings by their names; ``ALL`` alone stands for all of a kind."""

    headers: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    query_strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ttl:
    """How long the CDN keeps an answer, in seconds: at least, without a word of the origin, at most."""

    min_s: int = 0
    default_s: int = 86400
    max_s: int = 31536000


@dataclass(frozen=True)
class Behavior:
    """What happens to the requests of a path pattern; ``path`` is ``*`` for the default behaviour."""

    path: str
    origin: str
    viewer_protocol_policy: str
    methods: tuple[str, ...]
    cached_methods: tuple[str, ...]
    compress: bool
    ttl: Ttl
    cache_key: Names
    forward: Names


@dataclass(frozen=True)
class Match:
    """A condition on a request: each given list must have one that holds. Without any list it always holds."""

    paths: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    user_agents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deny:
    """Requests that are answered at the edge with an error status."""

    match: Match
    status: int


@dataclass(frozen=True)
class Route:
    """Requests that go to another origin, or group of origins, than their behaviour names."""

    match: Match
    origin: str


@dataclass(frozen=True)
class CacheControl:
    """What viewers are told in Cache-Control for a path pattern, whatever the origin says."""

    path: str
    value: str


@dataclass(frozen=True)
class SecurityHeaders:
    """Headers that all answers carry; an empty text, and 0 seconds, leave one out."""

    frame_options: str = "DENY"
    content_type_nosniff: bool = True
    hsts_max_age_s: int = 31536000
    hsts_include_subdomains: bool = False
    hsts_preload: bool = False
    referrer_policy: str = "strict-origin-when-cross-origin"
    content_security_policy: str = ""

    def as_headers(self) -> dict[str, str]:
        """Return the headers by their names in lower case."""
        hsts = f"max-age={self.hsts_max_age_s}"
        hsts += "; includeSubDomains" if self.hsts_include_subdomains else ""
        hsts += "; preload" if self.hsts_preload else ""
        found = {
            "content-security-policy": self.content_security_policy,
            "referrer-policy": self.referrer_policy,
            "strict-transport-security": hsts if self.hsts_max_age_s else "",
            "x-content-type-options": "nosniff" if self.content_type_nosniff else "",
            "x-frame-options": self.frame_options,
        }
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class EdgeRules:
    """What the edge decides by itself. Of each kind of rule the first that matches counts; a denial comes before all others."""

    deny: tuple[Deny, ...] = ()
    routes: tuple[Route, ...] = ()
    cache_control: tuple[CacheControl, ...] = ()
    security_headers: SecurityHeaders = SecurityHeaders()

    @property
    def by_country(self) -> bool:
        """Whether a rule asks for the country of the viewer."""
        return any(rule.match.countries for rule in (*self.deny, *self.routes))


@dataclass(frozen=True)
class Certificate:
    """The certificate of the aliases, and the least that a viewer must be able to do."""

    arn: str
    minimum_protocol_version: str


@dataclass(frozen=True)
class AccessLogs:
    """Where each request is written down."""

    bucket: str
    prefix: str
    include_cookies: bool


@dataclass(frozen=True)
class Cdn:
    """The whole description. ``behaviors`` are in the order in which they are tried, and the default comes after them."""

    name: str
    comment: str
    enabled: bool
    aliases: tuple[str, ...]
    certificate: Certificate | None
    price_class: str
    http_version: str
    ipv6: bool
    default_root_object: str
    access_logs: AccessLogs | None
    origins: tuple[Origin, ...]
    groups: tuple[OriginGroup, ...]
    default: Behavior
    behaviors: tuple[Behavior, ...]
    edge: EdgeRules

    def group(self, name: str) -> OriginGroup | None:
        """Return the origin group of a name."""
        return next((group for group in self.groups if group.name == name), None)
