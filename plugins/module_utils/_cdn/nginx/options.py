# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The options of ``nginx_edge``: those of a CDN as far as an edge can do them, and those of the host."""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import replace

from ..._common.argspec import ArgumentSpec
from ..._common.errors import OptionError
from ..._common.nginx.options import HEADER, check_pem, host_spec, networks, parse_host, within
from ..model import ALL, Behavior, Cdn
from ..options import cdn_spec, parse_aliases, parse_cdn
from .model import Cache, Country, Edge

# options of a description that are of no use at an edge of one's own, with what stands in for them
NOT_AT_AN_EDGE: dict[str, t.Any] = {
    "access_logs": None,
    "certificate": None,
    "comment": "",
    "enabled": True,
    "price_class": "",
}
HTTP_VERSIONS = ("http1.1", "http2")
TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}")
_DIRECTORY = re.compile(r"(/[A-Za-z0-9_.-]+){2,}")


def edge_spec() -> ArgumentSpec:
    """Return the module's options."""
    shared = {name: option for name, option in cdn_spec().options.items() if name not in NOT_AT_AN_EDGE}
    shared["http_version"] = {"type": "str", "choices": list(HTTP_VERSIONS), "default": "http2"}
    shared["origins"] = {**shared["origins"], "required": True}
    shared["default_behavior"] = {**shared["default_behavior"], "required": True}
    network = {"network": {"type": "str", "required": True}, "country": {"type": "str", "required": True}}
    return ArgumentSpec(
        {
            **shared,
            "region": {"type": "str", "required": True},
            "http_port": {"type": "int", "default": 80},
            "https_port": {"type": "int", "default": 443},
            "internal_port": {"type": "int", "default": 8182},
            "tls": {
                "type": "dict",
                "options": {
                    "certificate": {"type": "str", "required": True},
                    "key": {"type": "str", "required": True, "no_log": True},
                    "minimum_version": {"type": "str", "choices": list(TLS_VERSIONS), "default": TLS_VERSIONS[0]},
                },
            },
            "cache": {
                "type": "dict",
                "apply_defaults": True,
                "options": {
                    "directory": {"type": "path", "default": "/var/cache/headroom-edge"},
                    "size_mb": {"type": "int", "default": 1024},
                    "inactive_s": {"type": "int", "default": 86400},
                    "stale_s": {"type": "int", "default": 60},
                },
            },
            "country": {
                "type": "dict",
                "options": {
                    "header": {"type": "str"},
                    "networks": {"type": "list", "elements": "dict", "options": network},
                },
                "mutually_exclusive": [("header", "networks")],
                "required_one_of": [("header", "networks")],
            },
            "purge_allow": {"type": "list", "elements": "str", "default": []},
            "origin_ca_certs": {"type": "path", "default": "/etc/ssl/certs/ca-certificates.crt"},
        }
    ).merge(host_spec())


def parse_edge(params: t.Mapping[str, t.Any]) -> Edge:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    aliases = parse_aliases(params["aliases"])
    cdn = replace(parse_cdn({**params, **NOT_AT_AN_EDGE, "aliases": []}), aliases=aliases)
    if not _REGION.fullmatch(params["region"]):
        raise OptionError("region", params["region"], "give letters, digits and '-', such as us-east-1.")
    tls = params["tls"] or {"certificate": "", "key": "", "minimum_version": TLS_VERSIONS[0]}
    if params["tls"]:
        check_pem("tls", cdn.name, tls)
    ports: dict[int, str] = {}
    for option in ("http_port", *(["https_port"] if params["tls"] else []), "internal_port"):
        port = params[option]
        within(option, port, 1, 65535)
        if port in ports:
            raise OptionError(option, port, f"{ports[port]} has this port; give another one.")
        ports[port] = option
    _check_origins(cdn, bool(params["tls"]))
    host = parse_host(params, ports)
    country = _country(params["country"])
    if cdn.edge.by_country and country is None:
        raise OptionError("country", None, "give header or networks: edge_rules ask for countries.")
    if country and country.header and not host.trusted_proxies:
        raise OptionError("country.header", country.header, "give trusted_proxies too, whose word on it counts.")
    certificates = params["origin_ca_certs"]
    if not _DIRECTORY.fullmatch(certificates):
        raise OptionError("origin_ca_certs", certificates, "give the absolute path of a file without odd characters.")
    return Edge(
        cdn=cdn,
        region=params["region"],
        http_port=params["http_port"],
        https_port=params["https_port"],
        internal_port=params["internal_port"],
        certificate=tls["certificate"],
        key=tls["key"],
        tls12=tls["minimum_version"] == TLS_VERSIONS[0],
        cache=_cache(params["cache"]),
        country=country or Country(),
        purge_allow=networks("purge_allow", params["purge_allow"]),
        origin_ca_certs=certificates,
        host=host,
    )


def _check_origins(cdn: Cdn, tls: bool) -> None:
    """Refuse what nginx cannot do of what a CDN's description can say."""
    for index, origin in enumerate(cdn.origins):
        if origin.kind == "s3":
            remedy = "an edge has no login of AWS; give type custom and a web server that serves the bucket."
            raise OptionError(f"origins[{index}].type", "s3", remedy)
    _check_behavior("default_behavior", cdn.default, tls)
    for index, behavior in enumerate(cdn.behaviors):
        _check_behavior(f"behaviors[{index}]", behavior, tls)


def _check_behavior(option: str, behavior: Behavior, tls: bool) -> None:
    if "OPTIONS" in behavior.cached_methods:
        raise OptionError(f"{option}.cached_methods", list(behavior.cached_methods), "nginx keeps GET and HEAD alone.")
    if not tls and behavior.viewer_protocol_policy != "allow-all":
        remedy = "give tls, without which nobody gets there by HTTPS, or allow-all."
        raise OptionError(f"{option}.viewer_protocol_policy", behavior.viewer_protocol_policy, remedy)
    for kind, names in (("cache_key", behavior.cache_key), ("forward", behavior.forward)):
        for name in names.headers:
            if name != ALL and not HEADER.fullmatch(name):
                remedy = "give a name of letters, digits and '-': nginx takes no others."
                raise OptionError(f"{option}.{kind}.headers", name, remedy)
        for name in (*names.cookies, *names.query_strings):
            if name == "":
                raise OptionError(f"{option}.{kind}", name, "give a name.")


def _cache(given: t.Mapping[str, t.Any]) -> Cache:
    directory = given["directory"]
    if not _DIRECTORY.fullmatch(directory) or os.path.normpath(directory) != directory:
        raise OptionError(
            "cache.directory", directory, "give an absolute path below another directory, without odd characters."
        )
    within("cache.size_mb", given["size_mb"], 1, 100_000_000)
    within("cache.inactive_s", given["inactive_s"], 1, 31_536_000)
    within("cache.stale_s", given["stale_s"], 0, 31_536_000)
    return Cache(directory, given["size_mb"], given["inactive_s"], given["stale_s"])


def _country(given: t.Mapping[str, t.Any] | None) -> Country | None:
    if given is None:
        return None
    if given["header"] is not None:
        if not HEADER.fullmatch(given["header"]):
            raise OptionError("country.header", given["header"], "give the name of a header, such as X-Country.")
        return Country(header=given["header"].lower())
    if not given["networks"]:
        raise OptionError("country.networks", [], "give at least one network with its country.")
    found: dict[str, str] = {}
    for index, one in enumerate(given["networks"]):
        (network,) = networks(f"country.networks[{index}].network", [one["network"]])
        if not re.fullmatch(r"[A-Z]{2}", one["country"]):
            raise OptionError(
                f"country.networks[{index}].country", one["country"], "give two capital letters, such as 'DE'."
            )
        if network in found:
            raise OptionError(f"country.networks[{index}].network", network, "it is there twice; give each once.")
        found[network] = one["country"]
    return Country(networks=tuple(sorted(found.items())))
