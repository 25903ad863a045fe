# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What CloudFront holds of one CDN, read anew. Nothing here writes."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..._common.aws.cloudfront import Client, Refused
from ..._common.errors import HeadroomError
from .model import (
    CACHE,
    CONTROL,
    FUNCTION,
    HEADERS,
    REQUEST,
    Config,
    Deployment,
    Distribution,
    Observed,
    Piece,
    is_own,
    replaced,
)


@dataclass(frozen=True)
class Api:
    """How the API calls a kind of resource: in operations, of one and of many, and in answers."""

    one: str
    many: str
    answer: str
    config: str


APIS = {
    CONTROL: Api("origin_access_control", "origin_access_controls", "OriginAccessControl", "OriginAccessControlConfig"),
    CACHE: Api("cache_policy", "cache_policies", "CachePolicy", "CachePolicyConfig"),
    REQUEST: Api(
        "origin_request_policy", "origin_request_policies", "OriginRequestPolicy", "OriginRequestPolicyConfig"
    ),
    HEADERS: Api(
        "response_headers_policy", "response_headers_policies", "ResponseHeadersPolicy", "ResponseHeadersPolicyConfig"
    ),
}
# what of a configuration is no part of its meaning
_LABELS = ("Name", "Comment", "Description")


def observe(client: Client, name: str, distribution_id: str | None = None) -> Observed:
    """Read all that belongs to a CDN.

    Its distribution is the one of the id, or else the one whose comment is the name, with or without ``: ANYTHING`` after it.

    :raises HeadroomError: when something cannot be read, or what is found is ambiguous.
    """
    primary, staging = _find(client, name, distribution_id)
    pieces = {(piece.kind, piece.name): piece for piece in _pieces(client, name)}
    words = {piece.id: piece.ref for piece in pieces.values()}
    first = None if primary is None else read_distribution(client, primary, words, tags=True)
    second = None if staging is None else read_distribution(client, staging, words)
    return Observed(first, second, _deployment(client, first, second), pieces)


def _find(client: Client, name: str, distribution_id: str | None) -> tuple[str | None, str | None]:
    """Return the ids of the distribution and of its staging distribution."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for item in client.pages("list_distributions", "list the distributions"):
        staging = bool(item.get("Staging"))
        named = item.get("Comment") == name or str(item.get("Comment")).startswith(f"{name}: ")
        if named and (staging or distribution_id is None):
            found[staging].append(item["Id"])
    if distribution_id is not None:
        found[False] = [distribution_id]
    for staging, ids in found.items():
        if len(ids) > 1:
            kind = "staging distributions" if staging else "distributions"
            raise HeadroomError(
                f"Failed to find distribution {name} at {client.url}: {kind} {', '.join(sorted(ids))} have a comment that starts with "
                "this name. Change the comments of the others, or give distribution_id.",
                code="ambiguous",
            )
    return next(iter(found[False]), None), next(iter(found[True]), None)


def read_distribution(
    client: Client, distribution_id: str, words: t.Mapping[str, str], tags: bool = False
) -> Distribution:
    """Return a distribution; ``words`` has the references for ids."""
    answer = client.call("get_distribution", f"read distribution {distribution_id}", Id=distribution_id)
    item = answer["Distribution"]
    found: dict[str, str] = {}
    if tags:
        listed = client.call("list_tags_for_resource", f"read the tags of {distribution_id}", Resource=item["ARN"])
        found = {tag["Key"]: tag.get("Value", "") for tag in listed["Tags"].get("Items") or []}
    return Distribution(
        id=item["Id"],
        arn=item["ARN"],
        domain_name=item["DomainName"],
        status=item["Status"],
        etag=answer["ETag"],
        config=replaced(item["DistributionConfig"], words),
        tags=found,
    )


def _pieces(client: Client, name: str) -> t.Iterator[Piece]:
    for kind, api in APIS.items():
        only = {} if kind == CONTROL else {"Type": "custom"}
        for item in client.pages(f"list_{api.many}", f"list the {api.many.replace('_', ' ')}", **only):
            found = item.get(api.answer, item)
            config: Config = found.get(api.config, found)
            if is_own(name, kind, config["Name"]):
                without = {key: value for key, value in config.items() if key not in (*_LABELS, "Id")}
                yield Piece(kind, config["Name"], without, found["Id"])
    for item in client.pages("list_functions", "list the functions"):
        if is_own(name, FUNCTION, item["Name"]):
            yield _function(client, item)


def _function(client: Client, item: Config) -> Piece:
    """Return a function as it is live; one that was made and not published yet has no code."""
    try:
        answer = client.call("get_function", f"read function {item['Name']}", Name=item["Name"], Stage="LIVE")
        source = answer["FunctionCode"].read().decode()
    except Refused as error:
        if not error.gone:
            raise
        source = ""
    config = {"Runtime": item["FunctionConfig"]["Runtime"], "Code": source}
    return Piece(FUNCTION, item["Name"], config, item["FunctionMetadata"]["FunctionARN"])


def _deployment(client: Client, primary: Distribution | None, staging: Distribution | None) -> Deployment | None:
    policy = primary.config.get("ContinuousDeploymentPolicyId") if primary is not None else None
    if not policy and staging is not None:
        # one that was made, and not attached yet
        for item in client.pages("list_continuous_deployment_policies", "list the continuous deployment policies"):
            found = item["ContinuousDeploymentPolicy"]
            if staging.domain_name in found["ContinuousDeploymentPolicyConfig"]["StagingDistributionDnsNames"].get(
                "Items", ()
            ):
                policy = found["Id"]
    if not policy:
        return None
    answer = client.call("get_continuous_deployment_policy", f"read continuous deployment policy {policy}", Id=policy)
    config = answer["ContinuousDeploymentPolicy"]["ContinuousDeploymentPolicyConfig"]
    return Deployment(policy, answer["ETag"], config)
