"""The description of a CDN: what is refused, with the option, its value and what to give instead."""

from __future__ import annotations

import copy
import re
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._cdn.model import ALL, Names, Ttl
from ansible_collections.headroom.scale.plugins.module_utils._cdn.options import METHODS
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from cdn.table import DESCRIPTION, description, parse

LONG = "a" * 300


def changed(path: str, value: t.Any) -> dict[str, t.Any]:
    """Return the description with one option, such as ``origins[0].path``, of another value."""
    params = copy.deepcopy(DESCRIPTION)
    *way, last = re.findall(r"[^.\[\]]+", path)
    at: t.Any = params
    for step in way:
        if isinstance(at, dict) and step not in at:
            at[step] = {}
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return params


BAD: list[tuple[str, t.Any, str, str]] = [
    # option, bad value, option that the error names, what it says to do
    ("name", "1st", "name", "first is a letter"),
    ("name", "a" * 41, "name", "at most 40"),
    ("name", "with blank", "name", "letters, digits"),
    ("comment", LONG, "comment", "1 to 80 printable"),
    ("comment", "\u20ac", "comment", "printable ASCII"),
    ("aliases", ["http://x.example.com"], "aliases[0]", "domain name"),
    ("aliases", ["a.example.com", "A.example.com"], "aliases", "given twice"),
    ("certificate", None, "aliases", "give certificate too"),
    ("certificate.arn", "arn:aws:acm:eu-west-1:123456789012:certificate/ab", "certificate.arn", "us-east-1"),
    ("certificate.arn", "cert", "certificate.arn", "us-east-1"),
    ("default_root_object", "/index.html", "default_root_object", "without a slash"),
    ("default_root_object", "*.html", "default_root_object", "index.html"),
    ("access_logs", {"bucket": "logs"}, "access_logs.bucket", "domain name of a bucket"),
    ("access_logs", {"bucket": "l.s3.amazonaws.com", "prefix": "/x"}, "access_logs.prefix", "slash"),
    ("origins", [], "origins", "at least one"),
    ("origins[0].name", "no blank", "origins[0].name", "letters, digits"),
    ("origins[0].name", "static", "origins", "given twice"),
    ("origins[0].name", "both", "origins", "given twice"),
    ("origins[0].domain_name", "https://us.example.com", "origins[0].domain_name", "without scheme"),
    ("origins[0].domain_name", "*.example.com", "origins[0].domain_name", "domain name"),
    ("origins[0].path", "app", "origins[0].path", "starts with a slash"),
    ("origins[0].path", "/app/", "origins[0].path", "does not end"),
    ("origins[0].http_port", 0, "origins[0].http_port", "1 to 65535"),
    ("origins[0].https_port", 65536, "origins[0].https_port", "1 to 65535"),
    ("origins[0].ssl_protocols", [], "origins[0].ssl_protocols", "at least one"),
    ("origins[0].connect_attempts", 4, "origins[0].connect_attempts", "1 to 3"),
    ("origins[0].connect_timeout_s", 11, "origins[0].connect_timeout_s", "1 to 10"),
    ("origins[0].read_timeout_s", 0, "origins[0].read_timeout_s", "1 to 120"),
    ("origins[0].keepalive_timeout_s", 121, "origins[0].keepalive_timeout_s", "1 to 120"),
    ("origins[0].headers", {"X Key": "v"}, "origins[0].headers", "header name"),
    ("origins[0].headers", {"X-Key": "v\r\nX: y"}, "origins[0].headers", "printable"),
    ("origins[0].headers", {"X-Key": 5}, "origins[0].headers", "in quotes"),
    ("origin_groups[0].name", "", "origin_groups[0].name", "letters, digits"),
    ("origin_groups[0].members", ["us-east-1"], "origin_groups[0].members", "two different"),
    ("origin_groups[0].members", ["static", "static"], "origin_groups[0].members", "two different"),
    ("origin_groups[0].members", ["us-east-1", "mars"], "origin_groups[0].members", "one of those declared"),
    ("origin_groups[0].failover_status", [], "origin_groups[0].failover_status", "at least one"),
    ("origin_groups[0].failover_status", [200], "origin_groups[0].failover_status", "403, 404"),
    ("default_behavior", None, "default_behavior", "no other one has"),
    ("default_behavior.origin", "mars", "default_behavior.origin", "one of those declared"),
    ("default_behavior.methods", ["GET"], "default_behavior.methods", "GET and HEAD"),
    (
        "default_behavior.methods",
        [*METHODS[2]],
        "default_behavior.methods",
        "origin group",
    ),
    ("default_behavior.cached_methods", ["POST"], "default_behavior.cached_methods", "of the methods"),
    ("behaviors[1].cached_methods", ["GET", "HEAD", "OPTIONS"], "behaviors[1].cached_methods", "of the methods"),
    ("default_behavior.ttl", {"min_s": -1}, "default_behavior.ttl.min_s", "whole number from 0"),
    ("default_behavior.ttl", {"default_s": 10, "max_s": 5}, "default_behavior.ttl", "at least the one before"),
    ("default_behavior.ttl", {"max_s": 10**9}, "default_behavior.ttl.max_s", "whole number"),
    ("default_behavior.cache_key", {"headers": ["*"]}, "default_behavior.cache_key.headers", "name the headers"),
    ("default_behavior.cache_key", {"headers": ["A b"]}, "default_behavior.cache_key.headers", "without blanks"),
    ("default_behavior.cache_key", {"cookies": ["*", "a"]}, "default_behavior.cache_key.cookies", "alone"),
    ("default_behavior.cache_key", {"query_strings": ["a*"]}, "default_behavior.cache_key.query_strings", "'*' alone"),
    ("default_behavior.forward", {"headers": [""]}, "default_behavior.forward.headers", "without blanks"),
    ("behaviors[0].cache_key", {"headers": ["accept"]}, "behaviors[0].cache_key", "use forward"),
    ("behaviors[0].path", "*", "behaviors[0].path", "default_behavior"),
    ("behaviors[0].path", "/a b", "behaviors[0].path", "at most 255"),
    ("behaviors[0].path", "/static/*", "behaviors", "given twice"),
    ("behaviors[0].origin", "mars", "behaviors[0].origin", "one of those declared"),
    ("edge_rules.deny[0].countries", ["kp"], "edge_rules.deny[0].countries", "two capital letters"),
    ("edge_rules.deny[0].countries", [], "edge_rules.deny[0]", "hold for all requests"),
    ("edge_rules.deny[0].status", 200, "edge_rules.deny[0].status", "400 to 599"),
    ("edge_rules.deny[1].user_agents", [""], "edge_rules.deny[1].user_agents", "printable ASCII"),
    ("edge_rules.deny[2].paths", ["/\u00e4"], "edge_rules.deny[2].paths", "at most 255"),
    ("edge_rules.routes[0].origin", "mars", "edge_rules.routes[0].origin", "one of those declared"),
    ("edge_rules.routes[1].countries", ["DEU"], "edge_rules.routes[1].countries", "ISO 3166-1"),
    ("edge_rules.cache_control[0].path", "", "edge_rules.cache_control[0].path", "at most 255"),
    ("edge_rules.cache_control[0].value", "", "edge_rules.cache_control[0].value", "printable ASCII"),
    ("edge_rules.cache_control[0].value", "a\r\nb", "edge_rules.cache_control[0].value", "printable ASCII"),
    ("edge_rules.security_headers.hsts_max_age_s", -1, "edge_rules.security_headers.hsts_max_age_s", "whole number"),
    (
        "edge_rules.security_headers",
        {"hsts_preload": True},
        "edge_rules.security_headers.hsts_preload",
        "hsts_include_subdomains",
    ),
    (
        "edge_rules.security_headers.content_security_policy",
        "a\nb",
        "edge_rules.security_headers.content_security_policy",
        "printable ASCII",
    ),
]


@pytest.mark.parametrize(("option", "value", "named", "remedy"), BAD, ids=[f"{row[0]}={row[1]!r:.20}" for row in BAD])
def test_what_cannot_be_is_refused_in_one_sentence(option: str, value: t.Any, named: str, remedy: str) -> None:
    with pytest.raises(OptionError) as seen:
        parse(changed(option, value))
    error = seen.value.as_dict()
    assert error["option"] == named
    assert remedy in error["message"]
    assert repr(error["value"]) in error["message"]
    assert error["message"].endswith(".")


def test_an_error_about_a_header_never_holds_its_value() -> None:
    with pytest.raises(OptionError) as seen:
        parse(changed("origins[0].headers", {"X-Key": "hidden\u20ac"}))
    assert "hidden" not in str(seen.value.as_dict())


def test_defaults_are_secure() -> None:
    small = {
        "name": "a",
        "origins": [{"name": "o", "domain_name": "o.example.com"}],
        "default_behavior": {"origin": "o"},
    }
    cdn = parse(small)
    assert (cdn.ipv6, cdn.http_version, cdn.price_class) == (True, "http2", "PriceClass_100")
    origin, behavior = cdn.origins[0], cdn.default
    assert (origin.protocol_policy, origin.ssl_protocols) == ("https-only", ("TLSv1.2",))
    assert (behavior.viewer_protocol_policy, behavior.compress, behavior.methods) == (
        "redirect-to-https",
        True,
        ("GET", "HEAD"),
    )
    assert (behavior.ttl, behavior.cache_key, behavior.forward) == (Ttl(0, 86400, 31536000), Names(), Names())
    assert behavior.path == ALL
    assert set(cdn.edge.security_headers.as_headers()) == {
        "referrer-policy",
        "strict-transport-security",
        "x-content-type-options",
        "x-frame-options",
    }


def test_the_order_in_which_a_set_is_given_means_nothing() -> None:
    turned = description(aliases=DESCRIPTION["aliases"][::-1])
    turned["default_behavior"]["methods"].reverse()
    turned["origin_groups"][0]["failover_status"].reverse()
    turned["behaviors"][2]["forward"]["headers"] = ["accept", "ORIGIN"]
    assert parse(turned) == parse(DESCRIPTION)
