"""A CDN and what its requests must get, for every renderer of the edge rules: the same table has to pass against each."""

from __future__ import annotations

import copy
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.headroom.scale.plugins.module_utils._cdn.edge import Request
from ansible_collections.headroom.scale.plugins.module_utils._cdn.model import Cdn
from ansible_collections.headroom.scale.plugins.module_utils._cdn.options import cdn_spec, parse_cdn

HSTS = "max-age=31536000; includeSubDomains"
DESCRIPTION: dict[str, t.Any] = {
    "name": "trading",
    "aliases": ["www.example.com", "trade.example.com"],
    "certificate": {"arn": "arn:aws:acm:us-east-1:123456789012:certificate/0f1e2d3c"},
    "origins": [
        {"name": "us-east-1", "domain_name": "us.example.com", "headers": {"X-Origin-Key": "open-sesame-1"}},
        {"name": "ap-northeast-1", "domain_name": "jp.example.com"},
        {"name": "eu-central-1", "domain_name": "de.example.com"},
        {"name": "static", "domain_name": "trading-static.s3.us-east-1.amazonaws.com", "type": "s3"},
    ],
    "origin_groups": [{"name": "both", "members": ["us-east-1", "eu-central-1"], "failover_status": [500, 502, 503]}],
    "default_behavior": {"origin": "both", "methods": ["GET", "HEAD", "OPTIONS"]},
    "behaviors": [
        {
            "path": "/api/*",
            "origin": "us-east-1",
            "methods": ["GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE"],
            "ttl": {"min_s": 0, "default_s": 0, "max_s": 0},
            "forward": {"headers": ["*"], "query_strings": ["*"], "cookies": ["*"]},
        },
        {"path": "*.js", "origin": "static", "cache_key": {"query_strings": ["v"]}},
        {"path": "/static/*", "origin": "static", "forward": {"headers": ["Origin", "Accept"]}},
    ],
    "edge_rules": {
        "deny": [
            {"countries": ["KP"], "status": 451},
            {"user_agents": ["BadBot", "scrape/"]},
            {"paths": ["/admin/*", "/internal.?"], "countries": ["US", "JP"], "status": 404},
        ],
        "routes": [
            {"countries": ["JP", "KR"], "paths": ["/api/*", "/"], "origin": "ap-northeast-1"},
            {"countries": ["DE"], "origin": "eu-central-1"},
            {"countries": ["US"], "user_agents": ["mobile"], "origin": "us-east-1"},
            {"countries": ["FR"], "origin": "both"},
        ],
        "cache_control": [
            {"path": "/api/*", "value": "no-store"},
            {"path": "/static/*", "value": "public, max-age=31536000, immutable"},
            {"path": "*.js", "value": 'private, no-cache="Set-Cookie"'},
        ],
        "security_headers": {
            "hsts_include_subdomains": True,
            "content_security_policy": "default-src 'self'; img-src \"x\" </script>",
        },
    },
}

SECURITY = {
    "content-security-policy": "default-src 'self'; img-src \"x\" </script>",
    "referrer-policy": "strict-origin-when-cross-origin",
    "strict-transport-security": HSTS,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
FOREVER = "public, max-age=31536000, immutable"
PHONE = "Mozilla/5.0 (Linux; Android 15) Mobile Safari/537.36"

# (path, country, user agent) → (status that the edge answers with, origin, Cache-Control that the edge sets)
ROWS: list[tuple[tuple[str, str | None, str], tuple[int | None, str | None, str | None]]] = [
    (("/", None, ""), (None, "both", None)),
    (("/", "US", ""), (None, "both", None)),
    (("/", "US", PHONE), (None, "us-east-1", None)),
    (("/", "US", PHONE.upper()), (None, "us-east-1", None)),
    (("/", "JP", ""), (None, "ap-northeast-1", None)),
    (("/news", "JP", ""), (None, "both", None)),
    (("/", "FR", ""), (None, "both", None)),
    (("/api/orders", "FR", ""), (None, "both", "no-store")),
    (("/api/orders", "KR", ""), (None, "ap-northeast-1", "no-store")),
    (("/api/orders", "DE", ""), (None, "eu-central-1", "no-store")),
    (("/api/orders", "BR", ""), (None, "us-east-1", "no-store")),
    (("/api/", None, ""), (None, "us-east-1", "no-store")),
    (("/api", None, ""), (None, "both", None)),
    (("/API/orders", None, ""), (None, "both", None)),
    (("/x/api/orders", None, ""), (None, "both", None)),
    (("/static/app.css", "BR", ""), (None, "static", FOREVER)),
    (("/static/deep/er/a.png", None, ""), (None, "static", FOREVER)),
    (("/static/app.js", "BR", ""), (None, "static", FOREVER)),
    (("/lib/app.js", "BR", ""), (None, "static", 'private, no-cache="Set-Cookie"')),
    (("/lib/app.json", "BR", ""), (None, "both", None)),
    (("/lib/appxjs", "BR", ""), (None, "both", None)),
    (("/", "KP", ""), (451, None, "no-store")),
    (("/api/orders", "KP", ""), (451, None, "no-store")),
    (("/", "US", "Mozilla badbot/2.0"), (403, None, "no-store")),
    (("/", "DE", "SCRAPE/1"), (403, None, "no-store")),
    (("/", "KP", "BadBot"), (451, None, "no-store")),
    (("/", "US", "scrapers"), (None, "both", None)),
    (("/admin/users", "US", ""), (404, None, "no-store")),
    (("/admin/users", "BR", ""), (None, "both", None)),
    (("/admin/users", None, ""), (None, "both", None)),
    (("/internal.x", "JP", ""), (404, None, "no-store")),
    (("/internalyx", "JP", ""), (None, "both", None)),
    (("/internal.xy", "JP", ""), (None, "both", None)),
    (("/", "kp", ""), (None, "both", None)),
    (("/%E2%82%AC?*", "DE", "\u212aelvin"), (None, "eu-central-1", None)),
]
IDS = [f"{path} {country or '-'} {agent[:12] or '-'}" for (path, country, agent), _want in ROWS]


def description(**changes: t.Any) -> dict[str, t.Any]:
    """Return the description with other options."""
    return {**copy.deepcopy(DESCRIPTION), **changes}


def parse(params: t.Mapping[str, t.Any]) -> Cdn:
    """Return a description as a module reads it, defaults filled in by Ansible."""
    checked = ArgumentSpecValidator(cdn_spec().options).validate(dict(params))
    assert not checked.error_messages, checked.error_messages
    return parse_cdn(checked.validated_parameters)


def requests() -> list[Request]:
    """Return the requests of the table."""
    return [Request(path, country, agent) for (path, country, agent), _want in ROWS]
