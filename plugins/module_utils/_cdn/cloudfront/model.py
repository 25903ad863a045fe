# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What CloudFront holds, when two configurations mean the same, and their words. Pure.

Configurations are plain dicts with the names of the API. Where one names another resource of the same CDN it holds a reference,
``ref:KIND:NAME``, in place of the id that only CloudFront gives out.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from dataclasses import dataclass, field

Config = dict[str, t.Any]

CONTROL = "origin_access_control"
CACHE = "cache_policy"
REQUEST = "origin_request_policy"
HEADERS = "response_headers_policy"
FUNCTION = "function"
# what belongs to a distribution, in the order in which it is made: the kind, and its part of the name
KINDS = {CONTROL: "s3", CACHE: "cache", REQUEST: "request", HEADERS: "headers", FUNCTION: "edge"}
DISTRIBUTION = "distribution"
STAGING = "staging_distribution"
DEPLOYMENT = "continuous_deployment_policy"

HIDDEN = "********"
# lists whose order has a meaning
_ORDERED = ("CacheBehaviors", "Members")
# what names an item of a list
_KEYS = ("Id", "PathPattern", "HeaderName", "Header", "EventType")
# settings of a behaviour that a cache policy replaces
LEGACY = ("ForwardedValues", "MinTTL", "DefaultTTL", "MaxTTL")


@dataclass(frozen=True)
class Piece:
    """A resource that belongs to a distribution; ``ref`` is how configurations name it, ``id`` what CloudFront calls it."""

    kind: str
    name: str
    config: t.Mapping[str, t.Any]
    id: str = ""

    @property
    def ref(self) -> str:
        """Return the reference to it."""
        return reference(self.kind, self.name)


@dataclass(frozen=True)
class Distribution:
    """A distribution as CloudFront has it; ``config`` holds references."""

    id: str
    arn: str
    domain_name: str
    status: str
    etag: str
    config: Config = field(repr=False)
    tags: t.Mapping[str, str] = field(default_factory=dict)

    @property
    def deployed(self) -> bool:
        """Whether all edges have the configuration."""
        return self.status == "Deployed"


@dataclass(frozen=True)
class Deployment:
    """A continuous deployment policy, which sends a part of the viewers to the staging distribution."""

    id: str
    etag: str
    config: Config

    @property
    def enabled(self) -> bool:
        """Whether it sends anybody there."""
        return bool(self.config.get("Enabled"))


@dataclass(frozen=True)
class Observed:
    """All that is there of one CDN."""

    primary: Distribution | None = None
    staging: Distribution | None = None
    deployment: Deployment | None = None
    pieces: t.Mapping[tuple[str, str], Piece] = field(default_factory=dict)


def reference(kind: str, name: str) -> str:
    """Return what stands for a resource in configurations."""
    return f"ref:{kind}:{name}"


def piece_name(cdn: str, kind: str, config: t.Mapping[str, t.Any]) -> str:
    """Return the name of a piece, which changes with its content: one in use never changes under a distribution, staged or not."""
    if kind == CONTROL:
        return f"{cdn}-{KINDS[kind]}"
    digest = hashlib.sha256(json.dumps(comparable(config), sort_keys=True).encode()).hexdigest()
    return f"{cdn}-{KINDS[kind]}-{digest[:8]}"


def is_own(cdn: str, kind: str, name: str) -> bool:
    """Return whether a name is one of those that :func:`piece_name` gives."""
    suffix = "" if kind == CONTROL else "-[0-9a-f]{8}"
    return re.fullmatch(f"{re.escape(cdn)}-{KINDS[kind]}{suffix}", name) is not None


def items(values: t.Iterable[t.Any]) -> Config:
    """Return a list as the API has it."""
    listed = list(values)
    return {"Quantity": len(listed), **({"Items": listed} if listed else {})}


def listed(value: t.Any) -> list[t.Any]:
    """Return the items of a list of the API."""
    return list((value or {}).get("Items") or [])


def replaced(value: t.Any, words: t.Mapping[str, str]) -> t.Any:
    """Return plain data in which each text that is one of ``words`` is replaced."""
    if isinstance(value, dict):
        return {key: replaced(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, words) for item in value]
    return words.get(value, value) if isinstance(value, str) else value


def references(value: t.Any) -> set[str]:
    """Return all references in plain data."""
    if isinstance(value, dict):
        return set().union(*map(references, value.values()))
    if isinstance(value, list):
        return set().union(*map(references, value))
    return {value} if isinstance(value, str) and value.startswith("ref:") else set()


def overlay(present: t.Any, declared: t.Any, key: str = "") -> t.Any:
    """Return what is present with what is declared over it; what is not declared stays, and ``None`` removes.

    Origins, origin groups and behaviours that are present and not declared go.
    """
    if isinstance(declared, dict) and "Quantity" in declared:
        if key not in ("Origins", "OriginGroups", "CacheBehaviors"):
            return declared
        was = {item[_name_of(item)]: item for item in listed(present)}
        return items(overlay(was.get(item[_name_of(item)]), item) for item in listed(declared))
    if isinstance(declared, dict):
        before = present if isinstance(present, dict) else {}
        merged = {**before, **{name: overlay(before.get(name), item, name) for name, item in declared.items()}}
        return {name: item for name, item in merged.items() if item is not None}
    return declared


def _name_of(item: t.Mapping[str, t.Any]) -> str:
    return next(key for key in _KEYS if key in item)


def comparable(value: t.Any, key: str = "") -> t.Any:
    """Return what is equal for two configurations exactly when they mean the same.

    The order of sets means nothing, and what is false, empty or missing is the same.
    """
    if isinstance(value, dict) and "Quantity" in value:
        found = [comparable(item, key) for item in listed(value)]
        found = found if key in _ORDERED else sorted(found, key=lambda item: json.dumps(item, sort_keys=True))
        # what stands beside the items, such as the methods that are cached; that a list is on is what its items say
        beside = {name: item for name, item in value.items() if name not in ("Quantity", "Items", "Enabled")}
        return {"Items": found, **comparable(beside)} if beside else found
    if isinstance(value, dict):
        if key == "ViewerCertificate":
            value = _certificate(value)
        found = {name: comparable(item, name) for name, item in value.items() if name != "CallerReference"}
        return {name: item for name, item in found.items() if item not in (None, "", [], {}, False)}
    if isinstance(value, str) and key in ("Aliases", "HeaderName", "Headers", "DomainName"):
        return value.lower()
    return value


def _certificate(value: Config) -> Config:
    """Return a viewer certificate without what CloudFront says of it twice."""
    if value.get("CloudFrontDefaultCertificate"):
        return {"CloudFrontDefaultCertificate": True}
    return {name: item for name, item in value.items() if name not in ("Certificate", "CertificateSource")}


def same(one: t.Any, other: t.Any) -> bool:
    """Return whether two configurations mean the same."""
    return comparable(one) == comparable(other)


@dataclass(frozen=True)
class Said:
    """The value of a line; one that is secret is told from another, and never shown."""

    text: str
    secret: bool = False


def lines(config: t.Mapping[str, t.Any] | None, pieces: t.Mapping[str, Piece], title: str = "") -> dict[str, Said]:
    """Return a configuration in words: what a line is about to what it says. Policies are spelled out where they are used."""
    found: dict[str, Said] = {}
    if config is not None:
        _flatten(found, title, comparable(config), pieces)
        for name in sorted(references(config)):
            piece = pieces.get(name)
            if piece is not None and piece.kind == FUNCTION:
                for number, line in enumerate(str(piece.config.get("Code", "")).splitlines(), 1):
                    found[f"{title}edge function, line {number:03d}"] = Said(line)
    return found


def _flatten(found: dict[str, Said], path: str, value: t.Any, pieces: t.Mapping[str, Piece]) -> None:
    if isinstance(value, str) and value in pieces:
        piece = pieces[value]
        if piece.kind in (CACHE, REQUEST, HEADERS):
            _flatten(found, path.removesuffix("Id"), comparable(piece.config), pieces)
        else:
            found[path] = Said(piece.name)
    elif isinstance(value, dict):
        for key, item in sorted(value.items()):
            _flatten(found, f"{path}.{key}" if path and not path.endswith(" ") else f"{path}{key}", item, pieces)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value, 1):
            key = next((key for key in _KEYS if key in item), None)
            rest = {name: part for name, part in item.items() if name != key}
            if key == "HeaderName":
                found[f"{path}.{item[key]}"] = Said(str(rest.get("HeaderValue", "")), secret=True)
            else:
                _flatten(found, f"{path}.{item[key] if key else number}", rest, pieces)
        if path.endswith("CacheBehaviors"):
            found[f"{path}, order"] = Said(" ".join(item["PathPattern"] for item in value))
    elif isinstance(value, list):
        found[path] = Said(", ".join(map(str, value)))
    else:
        found[path] = Said(str(value).lower() if isinstance(value, bool) else str(value))
