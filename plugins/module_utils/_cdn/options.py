# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The options that describe a CDN, whatever its provider, and their checks beyond types. No driver is imported here."""

from __future__ import annotations

import re
import typing as t

from .._common.argspec import ArgumentSpec
from .._common.errors import OptionError
from .model import (
    ALL,
    AccessLogs,
    Behavior,
    CacheControl,
    Cdn,
    Certificate,
    Deny,
    EdgeRules,
    Match,
    Names,
    Origin,
    OriginGroup,
    Route,
    SecurityHeaders,
    Ttl,
)

READING = ("GET", "HEAD")
# the sets of methods that CDNs know
METHODS = (READING, (*READING, "OPTIONS"), ("DELETE", *READING, "OPTIONS", "PATCH", "POST", "PUT"))
PRICE_CLASSES = ("PriceClass_100", "PriceClass_200", "PriceClass_All")
HTTP_VERSIONS = ("http1.1", "http2", "http3", "http2and3")
VIEWER_PROTOCOL_POLICIES = ("redirect-to-https", "https-only", "allow-all")
ORIGIN_PROTOCOL_POLICIES = ("https-only", "http-only", "match-viewer")
VIEWER_PROTOCOLS = ("TLSv1.2_2019", "TLSv1.2_2021", "TLSv1.2_2025", "TLSv1.3_2025")
FRAME_OPTIONS = ("DENY", "SAMEORIGIN", "")
REFERRER_POLICIES = (
    "no-referrer",
    "no-referrer-when-downgrade",
    "origin",
    "origin-when-cross-origin",
    "same-origin",
    "strict-origin",
    "strict-origin-when-cross-origin",
    "unsafe-url",
    "",
)
FAILOVER_STATUS = (403, 404, 416, 429, 500, 502, 503, 504)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")
_HOST = re.compile(
    r"(?=.{1,253}\Z)(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)+"
)
_PATTERN = re.compile(r"[A-Za-z0-9_.*$/~\"'@:+&?-]{1,255}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ARN = re.compile(r"arn:aws[a-z-]*:acm:([a-z0-9-]+):\d{12}:certificate/[A-Za-z0-9-]+")
# what can stand in a header's value without changing what the header is
_VALUE = re.compile(r"[\x20-\x7e]{1,1024}")
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,256}")


def cdn_spec() -> ArgumentSpec:
    """Return the options of a description."""
    names = {"type": "list", "elements": "str", "default": []}
    ttl = {
        "type": "dict",
        "apply_defaults": True,
        "options": {
            "min_s": {"type": "int", "default": 0},
            "default_s": {"type": "int", "default": 86400},
            "max_s": {"type": "int", "default": 31536000},
        },
    }
    asked = {
        "type": "dict",
        "apply_defaults": True,
        # a cache key is no secret
        "no_log": False,
        "options": {"headers": names, "cookies": names, "query_strings": names},
    }
    behavior = {
        "origin": {"type": "str", "required": True},
        "viewer_protocol_policy": {
            "type": "str",
            "choices": list(VIEWER_PROTOCOL_POLICIES),
            "default": VIEWER_PROTOCOL_POLICIES[0],
        },
        "methods": {"type": "list", "elements": "str", "default": ["GET", "HEAD"]},
        "cached_methods": {"type": "list", "elements": "str", "default": ["GET", "HEAD"]},
        "compress": {"type": "bool", "default": True},
        "ttl": ttl,
        "cache_key": asked,
        "forward": asked,
    }
    origin = {
        "name": {"type": "str", "required": True},
        "domain_name": {"type": "str", "required": True},
        "type": {"type": "str", "choices": ["custom", "s3"], "default": "custom"},
        "path": {"type": "str", "default": ""},
        "protocol_policy": {
            "type": "str",
            "choices": list(ORIGIN_PROTOCOL_POLICIES),
            "default": ORIGIN_PROTOCOL_POLICIES[0],
        },
        "http_port": {"type": "int", "default": 80},
        "https_port": {"type": "int", "default": 443},
        "ssl_protocols": {
            "type": "list",
            "elements": "str",
            "choices": ["TLSv1", "TLSv1.1", "TLSv1.2"],
            "default": ["TLSv1.2"],
        },
        "connect_attempts": {"type": "int", "default": 3},
        "connect_timeout_s": {"type": "int", "default": 10},
        "read_timeout_s": {"type": "int", "default": 30},
        "keepalive_timeout_s": {"type": "int", "default": 5},
        "headers": {"type": "dict", "no_log": True},
    }
    group = {
        "name": {"type": "str", "required": True},
        "members": {"type": "list", "elements": "str", "required": True},
        "failover_status": {"type": "list", "elements": "int", "default": [500, 502, 503, 504]},
    }
    match = {"paths": names, "countries": names, "user_agents": names}
    rules = {
        "deny": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {**match, "status": {"type": "int", "default": 403}},
        },
        "routes": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {**match, "origin": {"type": "str", "required": True}},
        },
        "cache_control": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {"path": {"type": "str", "required": True}, "value": {"type": "str", "required": True}},
        },
        "security_headers": {
            "type": "dict",
            "apply_defaults": True,
            "options": {
                "frame_options": {"type": "str", "choices": list(FRAME_OPTIONS), "default": "DENY"},
                "content_type_nosniff": {"type": "bool", "default": True},
                "hsts_max_age_s": {"type": "int", "default": 31536000},
                "hsts_include_subdomains": {"type": "bool", "default": False},
                "hsts_preload": {"type": "bool", "default": False},
                "referrer_policy": {
                    "type": "str",
                    "choices": list(REFERRER_POLICIES),
                    "default": "strict-origin-when-cross-origin",
                },
                "content_security_policy": {"type": "str", "default": ""},
            },
        },
    }
    return ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "comment": {"type": "str", "default": ""},
            "enabled": {"type": "bool", "default": True},
            "aliases": {"type": "list", "elements": "str", "default": []},
            "certificate": {
                "type": "dict",
                "options": {
                    "arn": {"type": "str", "required": True},
                    "minimum_protocol_version": {
                        "type": "str",
                        "choices": list(VIEWER_PROTOCOLS),
                        "default": "TLSv1.2_2021",
                    },
                },
            },
            "price_class": {"type": "str", "choices": list(PRICE_CLASSES), "default": PRICE_CLASSES[0]},
            "http_version": {"type": "str", "choices": list(HTTP_VERSIONS), "default": "http2"},
            "ipv6": {"type": "bool", "default": True},
            "default_root_object": {"type": "str", "default": ""},
            "access_logs": {
                "type": "dict",
                "options": {
                    "bucket": {"type": "str", "required": True},
                    "prefix": {"type": "str", "default": ""},
                    "include_cookies": {"type": "bool", "default": False},
                },
            },
            "origins": {"type": "list", "elements": "dict", "options": origin},
            "origin_groups": {"type": "list", "elements": "dict", "default": [], "options": group},
            "default_behavior": {"type": "dict", "options": behavior},
            "behaviors": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "str", "required": True}, **behavior},
            },
            "edge_rules": {"type": "dict", "apply_defaults": True, "options": rules},
        }
    )


def check_name(value: str) -> None:
    """Check the name of a CDN.

    :raises OptionError: when it cannot stand in the names of what belongs to it.
    """
    if not _NAME.fullmatch(value):
        raise OptionError("name", value, "give at most 40 letters, digits and '-', of which the first is a letter.")


def parse_cdn(params: t.Mapping[str, t.Any]) -> Cdn:
    """Check a description beyond the types of its options and return it.

    :raises OptionError: naming the first option that cannot be, its value and what to give instead.
    """
    check_name(params["name"])
    if not params["origins"]:
        raise OptionError("origins", params["origins"], "give at least one origin.")
    if params["default_behavior"] is None:
        raise OptionError("default_behavior", None, "give the behaviour of the paths that no other one has.")
    origins = tuple(_origin(f"origins[{index}]", item) for index, item in enumerate(params["origins"]))
    groups = tuple(_group(f"origin_groups[{index}]", item) for index, item in enumerate(params["origin_groups"]))
    _check_unique("origins", [item.name for item in (*origins, *groups)])
    known = {origin.name for origin in origins}
    for index, group in enumerate(groups):
        for member in group.members:
            _check_known(f"origin_groups[{index}].members", member, known)
    targets = known | {group.name for group in groups}
    grouped = {group.name for group in groups}
    default = _behavior("default_behavior", {**params["default_behavior"], "path": ALL}, targets, grouped)
    behaviors = tuple(
        _behavior(f"behaviors[{index}]", item, targets, grouped) for index, item in enumerate(params["behaviors"])
    )
    _check_unique("behaviors", [item.path for item in behaviors])
    aliases = parse_aliases(params["aliases"])
    comment = _printable("comment", params["comment"], 80) if params["comment"] else ""
    root = params["default_root_object"]
    if root and (root.startswith("/") or not _PATTERN.fullmatch(root) or "*" in root):
        raise OptionError(
            "default_root_object", root, "give a path without a slash at its start, such as 'index.html'."
        )
    return Cdn(
        name=params["name"],
        comment=comment,
        enabled=params["enabled"],
        aliases=aliases,
        certificate=_certificate(params["certificate"], aliases),
        price_class=params["price_class"],
        http_version=params["http_version"],
        ipv6=params["ipv6"],
        default_root_object=root,
        access_logs=_access_logs(params["access_logs"]),
        origins=origins,
        groups=groups,
        default=default,
        behaviors=behaviors,
        edge=_edge_rules("edge_rules", params["edge_rules"], targets),
    )


def parse_aliases(given: t.Sequence[str]) -> tuple[str, ...]:
    """Check the names that viewers use, and return them in order.

    :raises OptionError: when one is no domain name, or there twice.
    """
    aliases = tuple(sorted(_alias(f"aliases[{index}]", item) for index, item in enumerate(given)))
    _check_unique("aliases", aliases)
    return aliases


def _check_unique(option: str, names: t.Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise OptionError(option, name, "it is given twice; leave one out or name it otherwise.")


def _check_known(option: str, name: str, known: t.Collection[str]) -> None:
    if name not in known:
        raise OptionError(option, name, f"give one of those declared, which are {', '.join(sorted(known))}.")


def _int(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise OptionError(option, value, f"give a whole number from {low} to {high}.")
    return value


def _printable(option: str, value: str, longest: int) -> str:
    if not _PRINTABLE.fullmatch(value) or len(value) > longest:
        raise OptionError(option, value, f"give 1 to {longest} printable ASCII characters.")
    return value


def _header_value(option: str, value: str) -> str:
    if not _VALUE.fullmatch(value) or value != value.strip():
        raise OptionError(option, value, "give 1 to 1024 printable ASCII characters without blanks around them.")
    return value


def _pattern(option: str, value: str) -> str:
    if not _PATTERN.fullmatch(value):
        raise OptionError(
            option,
            value,
            "give a path of at most 255 letters, digits and _-.*$/~\"'@:+&?, in which * and ? stand for others.",
        )
    return value


def _alias(option: str, value: str) -> str:
    if not _HOST.fullmatch(value):
        raise OptionError(option, value, "give a domain name, such as 'www.example.com' or '*.example.com'.")
    return value.lower()


def _origin(option: str, item: t.Mapping[str, t.Any]) -> Origin:
    if not _ID.fullmatch(item["name"]):
        raise OptionError(f"{option}.name", item["name"], "give letters, digits, '.', '_' and '-'.")
    if not _HOST.fullmatch(item["domain_name"]) or item["domain_name"].startswith("*"):
        raise OptionError(
            f"{option}.domain_name", item["domain_name"], "give a domain name, without scheme, port and path."
        )
    path = item["path"]
    if path and (not path.startswith("/") or path.endswith("/") or not _PATTERN.fullmatch(path) or "*" in path):
        raise OptionError(f"{option}.path", path, "give a path that starts with a slash and does not end with one.")
    if not item["ssl_protocols"]:
        raise OptionError(f"{option}.ssl_protocols", [], "give at least one, such as TLSv1.2.")
    headers = item["headers"] or {}
    for name, value in headers.items():
        # a value is never repeated: it may be a secret
        if not _TOKEN.fullmatch(str(name)) or not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise OptionError(
                f"{option}.headers", name, "give a header name, and as its value printable ASCII text in quotes."
            )
    return Origin(
        name=item["name"],
        domain_name=item["domain_name"].lower(),
        kind=item["type"],
        path=path,
        protocol_policy=item["protocol_policy"],
        http_port=_int(f"{option}.http_port", item["http_port"], 1, 65535),
        https_port=_int(f"{option}.https_port", item["https_port"], 1, 65535),
        ssl_protocols=tuple(sorted(set(item["ssl_protocols"]))),
        connect_attempts=_int(f"{option}.connect_attempts", item["connect_attempts"], 1, 3),
        connect_timeout_s=_int(f"{option}.connect_timeout_s", item["connect_timeout_s"], 1, 10),
        read_timeout_s=_int(f"{option}.read_timeout_s", item["read_timeout_s"], 1, 120),
        keepalive_timeout_s=_int(f"{option}.keepalive_timeout_s", item["keepalive_timeout_s"], 1, 120),
        headers=dict(headers),
    )


def _group(option: str, item: t.Mapping[str, t.Any]) -> OriginGroup:
    if not _ID.fullmatch(item["name"]):
        raise OptionError(f"{option}.name", item["name"], "give letters, digits, '.', '_' and '-'.")
    members = tuple(item["members"])
    if len(members) != 2 or members[0] == members[1]:
        raise OptionError(f"{option}.members", item["members"], "give two different origins, the preferred one first.")
    if not item["failover_status"]:
        raise OptionError(f"{option}.failover_status", [], "give at least one status, such as 503.")
    for status in item["failover_status"]:
        if status not in FAILOVER_STATUS:
            raise OptionError(
                f"{option}.failover_status", status, f"give some of {', '.join(map(str, FAILOVER_STATUS))}."
            )
    return OriginGroup(item["name"], (members[0], members[1]), tuple(sorted(set(item["failover_status"]))))


def _behavior(
    option: str, item: t.Mapping[str, t.Any], targets: t.Collection[str], grouped: t.Collection[str]
) -> Behavior:
    path = _pattern(f"{option}.path", item["path"])
    if path in (ALL, "/*") and option != "default_behavior":
        raise OptionError(f"{option}.path", path, "declare what holds for all paths as default_behavior.")
    _check_known(f"{option}.origin", item["origin"], targets)
    methods, cached = tuple(sorted(set(item["methods"]))), tuple(sorted(set(item["cached_methods"])))
    if methods not in METHODS:
        raise OptionError(
            f"{option}.methods", item["methods"], "give GET and HEAD, with OPTIONS, or all seven methods."
        )
    if cached not in METHODS[:2] or not set(cached) <= set(methods):
        raise OptionError(
            f"{option}.cached_methods",
            item["cached_methods"],
            "give GET and HEAD, or with OPTIONS too, of the methods.",
        )
    if item["origin"] in grouped and methods == METHODS[2]:
        raise OptionError(
            f"{option}.methods", item["methods"], "leave out those that write: an origin group repeats requests."
        )
    ttl = _ttl(f"{option}.ttl", item["ttl"])
    cache_key = _names(f"{option}.cache_key", item["cache_key"])
    if cache_key.headers == (ALL,):
        raise OptionError(
            f"{option}.cache_key.headers", [ALL], "name the headers: with all of them nothing is ever found again."
        )
    if ttl.max_s == 0 and cache_key != Names():
        raise OptionError(
            f"{option}.cache_key", item["cache_key"], "leave it out: with ttl.max_s of 0 nothing is kept; use forward."
        )
    return Behavior(
        path=path,
        origin=item["origin"],
        viewer_protocol_policy=item["viewer_protocol_policy"],
        methods=methods,
        cached_methods=cached,
        compress=item["compress"],
        ttl=ttl,
        cache_key=cache_key,
        forward=_names(f"{option}.forward", item["forward"]),
    )


def _ttl(option: str, item: t.Mapping[str, int]) -> Ttl:
    for name in ("min_s", "default_s", "max_s"):
        _int(f"{option}.{name}", item[name], 0, 10 * 365 * 86400)
    if not item["min_s"] <= item["default_s"] <= item["max_s"]:
        raise OptionError(
            option, dict(item), "give min_s, default_s and max_s so that each is at least the one before it."
        )
    return Ttl(item["min_s"], item["default_s"], item["max_s"])


def _names(option: str, item: t.Mapping[str, t.Any]) -> Names:
    found = {}
    for kind in ("headers", "cookies", "query_strings"):
        given = [str(name) for name in item[kind]]
        if ALL in given and len(given) > 1:
            raise OptionError(f"{option}.{kind}", given, f"give '{ALL}' alone, which is all of them, or their names.")
        for name in given:
            if name != ALL and (not _TOKEN.fullmatch(name) or ALL in name):
                raise OptionError(f"{option}.{kind}", name, "give a name without blanks, or '*' alone for all of them.")
        # headers have no case
        names = [name.lower() for name in given] if kind == "headers" else given
        found[kind] = tuple(sorted(set(names)))
    return Names(**found)


def _certificate(item: t.Mapping[str, t.Any] | None, aliases: t.Sequence[str]) -> Certificate | None:
    if item is None:
        if aliases:
            raise OptionError("aliases", list(aliases), "give certificate too, without which no viewer can reach them.")
        return None
    match = _ARN.fullmatch(item["arn"])
    if match is None or match.group(1) != "us-east-1":
        raise OptionError(
            "certificate.arn", item["arn"], "give the ARN of a certificate of ACM in the region us-east-1."
        )
    return Certificate(item["arn"], item["minimum_protocol_version"])


def _access_logs(item: t.Mapping[str, t.Any] | None) -> AccessLogs | None:
    if item is None:
        return None
    bucket, prefix = item["bucket"], item["prefix"]
    if not _HOST.fullmatch(bucket) or not bucket.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        raise OptionError(
            "access_logs.bucket", bucket, "give the domain name of a bucket, such as 'logs.s3.amazonaws.com'."
        )
    if prefix.startswith("/") or (prefix and not _PRINTABLE.fullmatch(prefix)):
        raise OptionError(
            "access_logs.prefix", prefix, "give at most 256 printable characters that do not start with a slash."
        )
    return AccessLogs(bucket, prefix, item["include_cookies"])


def _match(option: str, item: t.Mapping[str, t.Any]) -> Match:
    for country in item["countries"]:
        if not re.fullmatch(r"[A-Z]{2}", country):
            raise OptionError(
                f"{option}.countries", country, "give two capital letters, as of ISO 3166-1, such as 'DE'."
            )
    match = Match(
        paths=tuple(_pattern(f"{option}.paths", path) for path in item["paths"]),
        countries=tuple(item["countries"]),
        user_agents=tuple(_printable(f"{option}.user_agents", part, 256) for part in item["user_agents"]),
    )
    if match == Match():
        raise OptionError(
            option, {}, "give at least one of paths, countries and user_agents; it would hold for all requests."
        )
    return match


def _edge_rules(option: str, item: t.Mapping[str, t.Any], targets: t.Collection[str]) -> EdgeRules:
    deny, routes, controls = [], [], []
    for index, rule in enumerate(item["deny"]):
        where = f"{option}.deny[{index}]"
        deny.append(Deny(_match(where, rule), _int(f"{where}.status", rule["status"], 400, 599)))
    for index, rule in enumerate(item["routes"]):
        where = f"{option}.routes[{index}]"
        _check_known(f"{where}.origin", rule["origin"], targets)
        routes.append(Route(_match(where, rule), rule["origin"]))
    for index, rule in enumerate(item["cache_control"]):
        where = f"{option}.cache_control[{index}]"
        controls.append(
            CacheControl(_pattern(f"{where}.path", rule["path"]), _header_value(f"{where}.value", rule["value"]))
        )
    return EdgeRules(tuple(deny), tuple(routes), tuple(controls), _security_headers(option, item["security_headers"]))


def _security_headers(option: str, item: t.Mapping[str, t.Any]) -> SecurityHeaders:
    where = f"{option}.security_headers"
    _int(f"{where}.hsts_max_age_s", item["hsts_max_age_s"], 0, 2**31 - 1)
    if item["content_security_policy"]:
        _header_value(f"{where}.content_security_policy", item["content_security_policy"])
    if item["hsts_preload"] and (item["hsts_max_age_s"] < 31536000 or not item["hsts_include_subdomains"]):
        raise OptionError(
            f"{where}.hsts_preload", True, "give hsts_max_age_s of at least 31536000 and hsts_include_subdomains too."
        )
    return SecurityHeaders(**item)
