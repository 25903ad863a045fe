# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The module's options, checked beyond their types."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass

from .._common.argspec import ArgumentSpec
from .._common.aws import connection as aws
from .._common.errors import OptionError
from .._common.redis import connection as redis_connection
from .._common.redis.connection import Login, parse_nodes
from .caches import Cache, HttpLayer
from .cloudfront import MOST_TAG, CloudfrontLayer
from .exchange import Trust, parse_url
from .guard import Limits
from .model import CLOUDFRONT, KINDS, NGINX, REDIS, VARNISH, Layer, Targets
from .plan import Unusable, checked, expand, is_wildcard
from .probe import Place, Probe, Warm
from .redis import RedisLayer

STOP, CONTINUE = "stop", "continue"
MOST_ENTITIES = 100_000


def flush_spec() -> ArgumentSpec:
    """Return the module's options, without those to log in to Redis."""
    texts = {"type": "list", "elements": "str", "default": []}
    cache = {
        "name": {"type": "str", "required": True},
        "kind": {"type": "str", "choices": [NGINX, VARNISH], "default": NGINX},
        "urls": {"type": "list", "elements": "str", "required": True},
        "host": {"type": "str"},
        "method": {"type": "str", "default": "PURGE"},
        "path_prefix": {"type": "str", "default": ""},
        "wildcards": {"type": "bool", "default": False},
        "tags_header": {"type": "str"},
        "headers": {"type": "dict", "no_log": True},
    }
    distribution = {
        "distribution_id": {"type": "str", "required": True},
        "max_paths": {"type": "int"},
        "tags": {"type": "bool", "default": False},
        "wait_timeout_s": {"type": "float", "default": 900.0},
    }
    access = aws.connection_spec()
    probe = {
        "url": {"type": "str", "required": True},
        "host": {"type": "str"},
        "headers": {"type": "dict", "no_log": True},
        "status": {"type": "int", "default": 200},
        "contains": {"type": "str"},
        "lacks": {"type": "str"},
        "fresh": {"type": "bool", "default": True},
        "reads": {"type": "int", "default": 3},
    }
    warm = {
        "urls": {"type": "list", "elements": "str", "required": True},
        "host": {"type": "str"},
        "headers": {"type": "dict", "no_log": True},
        "max_rate_s": {"type": "float", "default": 10.0},
        "slow_ms": {"type": "float", "default": 1000.0},
    }
    nodes = {**redis_connection.nodes_spec().options["nodes"], "required": False, "default": []}
    return ArgumentSpec(
        {
            "rules": {"type": "dict", "default": {}},
            "entities": {"type": "list", "elements": "dict", "default": []},
            **{kind: {**texts, "no_log": False} if kind == "keys" else texts for kind in KINDS},
            "scope": {"type": "str", "choices": ["entities", "all"], "default": "entities"},
            "confirm_all": {"type": "bool", "default": False},
            "dry_run": {"type": "bool", "default": False},
            "nodes": nodes,
            "tag_key": {"type": "str", "default": "tag:{tag}", "no_log": False},
            "max_rate_keys_s": {"type": "int", "default": 0, "no_log": False},
            "max_latency_ms": {"type": "float", "default": 0.0},
            "latency_patience_s": {"type": "float", "default": 60.0},
            "migration_wait_s": {"type": "float", "default": 60.0},
            "http_caches": {"type": "list", "elements": "dict", "default": [], "options": cache},
            "http_validate_certs": {"type": "bool", "default": True},
            "http_ca_certs": {"type": "path"},
            "cloudfront": {
                "type": "dict",
                "options": {**distribution, **access.options},
                "mutually_exclusive": access.rules["mutually_exclusive"],
                "required_together": access.rules["required_together"],
                "required_by": access.required_by,
            },
            "in_flight_s": {"type": "float", "default": 10.0},
            "retries": {"type": "int", "default": 2},
            "on_failure": {"type": "str", "choices": [STOP, CONTINUE], "default": STOP},
            "verify": {"type": "list", "elements": "dict", "default": [], "options": probe},
            "warm": {"type": "dict", "options": warm},
        }
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked: the layers, inner before outer, and how they are flushed."""

    targets: Targets
    layers: tuple[Layer, ...]
    ignored: tuple[str, ...]
    in_flight_s: float
    retries: int
    on_failure: str
    probes: tuple[Probe, ...]
    warm: Warm | None
    trust: Trust
    timeout_s: float
    dry_run: bool


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    for option, least, most in (
        ("in_flight_s", 0, 3600),
        ("retries", 0, 10),
        ("max_rate_keys_s", 0, 10**9),
        ("max_latency_ms", 0, 60_000),
        ("latency_patience_s", 0, 3600),
        ("migration_wait_s", 0, 86_400),
    ):
        _bounded(option, params[option], least, most)
    login = Login.from_params(params)
    try:
        targets = _targets(params)
    except Unusable as error:
        raise OptionError(error.where, error.value, error.remedy) from error
    bundle = params["http_ca_certs"]
    if bundle is not None and not os.path.isfile(bundle):
        raise OptionError("http_ca_certs", bundle, "give a file in PEM format on the host that runs the module.")
    trust = Trust(params["http_validate_certs"], bundle)
    layers: list[Layer] = []
    if params["nodes"]:
        limits = Limits(
            params["max_rate_keys_s"],
            params["max_latency_ms"],
            params["latency_patience_s"],
            params["migration_wait_s"],
        )
        if "{tag}" not in params["tag_key"]:
            raise OptionError("tag_key", params["tag_key"], "give a name with '{tag}' in it, such as 'tag:{tag}'.")
        layers.append(RedisLayer(parse_nodes(params["nodes"]), login, targets, params["tag_key"], limits))
    for number, given in enumerate(params["http_caches"]):
        cache = _cache(f"http_caches[{number}]", given, targets)
        if cache.name in [layer.name for layer in layers] or cache.name in (REDIS, CLOUDFRONT):
            raise OptionError(f"http_caches[{number}].name", cache.name, "give each layer a name of its own.")
        layers.append(HttpLayer(cache, targets, trust, login.timeout_s))
    if params["cloudfront"]:
        layers.append(_cloudfront(params["cloudfront"], targets))
    if not layers:
        raise OptionError("nodes", [], "give at least one layer by nodes, http_caches or cloudfront.")
    return Options(
        targets=targets,
        layers=tuple(layers),
        ignored=_ignored(params, targets),
        in_flight_s=params["in_flight_s"],
        retries=params["retries"],
        on_failure=params["on_failure"],
        probes=tuple(_probe(f"verify[{number}]", given) for number, given in enumerate(params["verify"])),
        warm=_warm(params["warm"]) if params["warm"] else None,
        trust=trust,
        timeout_s=login.timeout_s,
        dry_run=params["dry_run"],
    )


def _bounded(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise OptionError(option, value, f"give a number from {least:g} to {most:g}.")


def _targets(params: t.Mapping[str, t.Any]) -> Targets:
    direct = {kind: params[kind] for kind in KINDS}
    given = [option for option in ("entities", *KINDS) if params[option]]
    if params["scope"] == "all":
        if given:
            raise OptionError("scope", "all", f"leave out {' and '.join(given)}: all is flushed.")
        if not params["confirm_all"]:
            raise OptionError("confirm_all", False, "set it to true to flush everything in all the layers given.")
        return Targets(everything=True)
    rules = _rules(params["rules"])
    ids = sum(len(one) if isinstance(one, list) else 1 for entity in params["entities"] for one in entity.values())
    if ids > MOST_ENTITIES:
        raise OptionError("entities", f"{ids} ids", f"give at most {MOST_ENTITIES} in a run.")
    return expand(rules, params["entities"], {"": direct})


def _rules(given: t.Mapping[str, t.Any]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for name, rule in given.items():
        # the short form is that of a rule with patterns alone
        kinds = {"patterns": rule} if isinstance(rule, list) else rule
        if not isinstance(kinds, dict) or not kinds or set(kinds) - set(KINDS):
            raise OptionError(
                f"rules.{name}", rule, f"give a list of patterns, or any of {', '.join(KINDS)} with a list each."
            )
        for kind, templates in kinds.items():
            if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
                raise OptionError(f"rules.{name}.{kind}", templates, "give a list of texts.")
            for template in templates:
                # as it is with an id in it; what is wrong with a rule is said before the first entity needs it
                checked(kind, f"rules.{name}.{kind}", template.replace("{id}", "0"))
        found[str(name)] = kinds
    return found


def _ignored(params: t.Mapping[str, t.Any], targets: Targets) -> tuple[str, ...]:
    """Return the kinds of what is to be flushed that no layer has."""
    web = bool(params["http_caches"] or params["cloudfront"])
    tagged = (
        bool(params["nodes"])
        or any(one["tags_header"] or one["kind"] == VARNISH for one in params["http_caches"])
        or bool(params["cloudfront"] and params["cloudfront"]["tags"])
    )
    has = {"patterns": bool(params["nodes"]), "keys": bool(params["nodes"]), "tags": tagged, "paths": web}
    for kind in KINDS:
        if params[kind] and not has[kind]:
            raise OptionError(kind, params[kind][:3], "give a layer that has them, or leave them out.")
    return tuple(kind for kind in KINDS if getattr(targets, kind) and not has[kind])


def _headers(option: str, given: t.Mapping[str, t.Any] | None) -> dict[str, str]:
    found = {str(name): str(value) for name, value in (given or {}).items()}
    for name, value in found.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise OptionError(option, name, "give the name of a header.")
        if not value.isprintable() or not value.isascii():
            # the value may be a secret
            raise OptionError(f"{option}.{name}", "...", "give a value of printable ASCII characters.")
    return found


def _host(option: str, given: str | None) -> str | None:
    if given is not None and (not given or not given.isascii() or not given.isprintable() or set(given) & set(" /@")):
        raise OptionError(option, given, "give a host name, with ':PORT' behind it where that is not the default.")
    return given


def _cache(option: str, given: t.Mapping[str, t.Any], targets: Targets) -> Cache:
    name, kind = given["name"], given["kind"]
    if not name.strip() or not name.isprintable():
        raise OptionError(f"{option}.name", name, "give a printable name that is not empty.")
    if not given["urls"]:
        raise OptionError(f"{option}.urls", [], "list the URL of each host of the layer.")
    host = _host(f"{option}.host", given["host"])
    bases = [parse_url(f"{option}.urls", url, host, bare=True)[0] for url in given["urls"]]
    if len(set(bases)) < len(bases):
        raise OptionError(f"{option}.urls", given["urls"], "list each host once.")
    if not given["method"].isalpha() or not given["method"].isupper():
        raise OptionError(f"{option}.method", given["method"], "give a method of HTTP, such as 'PURGE'.")
    prefix = given["path_prefix"].rstrip("/")
    if prefix:
        checked_path(f"{option}.path_prefix", prefix)
    wild = [path for path in targets.paths if is_wildcard(path)] or (["/*"] if targets.everything else [])
    if kind == NGINX and wild and not given["wildcards"]:
        remedy = f"layer {name} is asked for {wild[0]}; set it where its purge module takes a star at the end, or give exact paths."
        raise OptionError(f"{option}.wildcards", False, remedy)
    header = given["tags_header"] or ("xkey-purge" if kind == VARNISH else None)
    if header is not None:
        _headers(f"{option}.tags_header", {header: ""})
    headers = _headers(f"{option}.headers", given["headers"])
    return Cache(name, kind, tuple(bases), given["method"], prefix, given["wildcards"], header, headers)


def checked_path(option: str, path: str) -> str:
    """Check a path.

    :raises OptionError: when it is none.
    """
    try:
        return checked("paths", option, path)
    except Unusable as error:
        raise OptionError(error.where, error.value, error.remedy) from error


def _cloudfront(given: t.Mapping[str, t.Any], targets: Targets) -> CloudfrontLayer:
    identifier = given["distribution_id"]
    if not identifier.isalnum() or not identifier.isupper() or not 5 <= len(identifier) <= 32:
        raise OptionError("cloudfront.distribution_id", identifier, "give an id, such as 'E2QWRUHAPOMZQL'.")
    if given["max_paths"] is not None:
        _bounded("cloudfront.max_paths", given["max_paths"], 1, 1_000_000)
    _bounded("cloudfront.wait_timeout_s", given["wait_timeout_s"], 0, 86_400)
    long = next((tag for tag in targets.tags if len(tag) > MOST_TAG), None) if given["tags"] else None
    if long is not None:
        raise OptionError("tags", long, f"CloudFront takes at most {MOST_TAG} characters; give a shorter tag.")
    try:
        return CloudfrontLayer(
            identifier, aws.parse_access(given), targets, given["max_paths"], given["wait_timeout_s"], given["tags"]
        )
    except Unusable as error:
        raise OptionError(error.where, error.value, error.remedy) from error


def _place(option: str, url: str, host: str | None, headers: t.Mapping[str, t.Any] | None) -> Place:
    base, target = parse_url(option, url, _host(option.replace("url", "host"), host))
    return Place(url, base, target, _headers(option.replace("urls", "headers").replace("url", "headers"), headers))


def _probe(option: str, given: t.Mapping[str, t.Any]) -> Probe:
    _bounded(f"{option}.status", given["status"], 200, 599)
    _bounded(f"{option}.reads", given["reads"], 1, 100)
    place = _place(f"{option}.url", given["url"], given["host"], given["headers"])
    return Probe(place, given["status"], given["contains"], given["lacks"], given["fresh"], given["reads"])


def _warm(given: t.Mapping[str, t.Any]) -> Warm:
    if not 0 < given["max_rate_s"] <= 10_000:
        raise OptionError("warm.max_rate_s", given["max_rate_s"], "give a number of requests above 0 and up to 10000.")
    _bounded("warm.slow_ms", given["slow_ms"], 1, 60_000)
    places = tuple(_place("warm.urls", url, given["host"], given["headers"]) for url in given["urls"])
    return Warm(places, given["max_rate_s"], given["slow_ms"])
