# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The description of a CDN as what CloudFront has to hold for it. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..._common.errors import OptionError
from ..model import ALL, Behavior, Cdn, Names, Origin, SecurityHeaders
from .function import COUNTRY_HEADER, ORIGIN_HEADER, RUNTIME, events, render_function
from .model import CACHE, CONTROL, FUNCTION, HEADERS, LEGACY, REQUEST, Config, Piece, items, piece_name

# what an origin request policy may not name, with what helps
_NOT_FORWARDED = {
    "authorization": "give '*', or name it in cache_key",
    "accept-encoding": "leave it out: compress takes care of it",
}


@dataclass(frozen=True)
class Rendered:
    """The configuration of a distribution, with references, and the pieces that it names."""

    config: Config
    pieces: t.Mapping[str, Piece]


def render(cdn: Cdn, web_acl: str | None = None, cache_tag_header: str | None = None) -> Rendered:
    """Return what CloudFront has to hold.

    :param web_acl: the ARN of a web ACL, empty for none, ``None`` to leave it as it is.
    :param cache_tag_header: the header that has an answer's tags, likewise.
    :raises HeadroomError: when CloudFront cannot hold it.
    """
    rendered = _Renderer(cdn).render(web_acl)
    if cache_tag_header is not None:
        rendered.config["CacheTagConfig"] = {"HeaderName": cache_tag_header} if cache_tag_header else None
    return rendered


class _Renderer:
    """Renders one CDN and collects the pieces that are needed."""

    def __init__(self, cdn: Cdn) -> None:
        self.cdn = cdn
        self.pieces: dict[str, Piece] = {}
        self.associations = items([])

    def render(self, web_acl: str | None) -> Rendered:
        """Return all of it."""
        cdn = self.cdn
        source = render_function(cdn)
        if source is not None:
            function = self._piece(FUNCTION, {"Runtime": RUNTIME, "Code": source})
            self.associations = items({"FunctionARN": function, "EventType": event} for event in events(cdn))
        headers = self._security_headers(cdn.edge.security_headers)
        behaviors = [
            {"PathPattern": behavior.path, **self._behavior(f"behaviors[{index}]", behavior, headers)}
            for index, behavior in enumerate(cdn.behaviors)
        ]
        logs = cdn.access_logs
        config: Config = {
            "Comment": f"{cdn.name}: {cdn.comment}" if cdn.comment else cdn.name,
            "Enabled": cdn.enabled,
            "Aliases": items(cdn.aliases),
            "DefaultRootObject": cdn.default_root_object,
            "Origins": items(map(self._origin, cdn.origins)),
            "OriginGroups": items(
                {
                    "Id": group.name,
                    "FailoverCriteria": {"StatusCodes": items(group.failover_status)},
                    "Members": items({"OriginId": member} for member in group.members),
                }
                for group in cdn.groups
            ),
            "DefaultCacheBehavior": self._behavior("default_behavior", cdn.default, headers),
            "CacheBehaviors": items(behaviors),
            "PriceClass": cdn.price_class,
            "HttpVersion": cdn.http_version,
            "IsIPV6Enabled": cdn.ipv6,
            "Logging": {
                "Enabled": logs is not None,
                "IncludeCookies": logs is not None and logs.include_cookies,
                "Bucket": logs.bucket if logs else "",
                "Prefix": logs.prefix if logs else "",
            },
            "ViewerCertificate": self._certificate(),
        }
        if web_acl is not None:
            config["WebACLId"] = web_acl
        return Rendered(config, self.pieces)

    def _piece(self, kind: str, config: Config) -> str:
        """Note a piece and return the reference to it."""
        name = piece_name(self.cdn.name, kind, config)
        piece = Piece(kind, name, config)
        self.pieces[piece.ref] = piece
        return piece.ref

    def _certificate(self) -> Config:
        certificate = self.cdn.certificate
        if certificate is None:
            gone = dict.fromkeys(
                (
                    "ACMCertificateArn",
                    "IAMCertificateId",
                    "SSLSupportMethod",
                    "MinimumProtocolVersion",
                    "Certificate",
                    "CertificateSource",
                )
            )
            return {"CloudFrontDefaultCertificate": True, **gone}
        return {
            "CloudFrontDefaultCertificate": False,
            "ACMCertificateArn": certificate.arn,
            "SSLSupportMethod": "sni-only",
            "MinimumProtocolVersion": certificate.minimum_protocol_version,
            "IAMCertificateId": None,
            "Certificate": None,
            "CertificateSource": None,
        }

    def _origin(self, origin: Origin) -> Config:
        config: Config = {
            "Id": origin.name,
            "DomainName": origin.domain_name,
            "OriginPath": origin.path,
            "CustomHeaders": items(
                {"HeaderName": name, "HeaderValue": value} for name, value in sorted(origin.headers.items())
            ),
            "ConnectionAttempts": origin.connect_attempts,
            "ConnectionTimeout": origin.connect_timeout_s,
        }
        if origin.kind == "s3":
            if not origin.domain_name.endswith((".amazonaws.com", ".amazonaws.com.cn")):
                raise OptionError(
                    "origins.domain_name",
                    origin.domain_name,
                    "give the domain name of the bucket, such as 'NAME.s3.REGION.amazonaws.com'.",
                )
            control = {
                "SigningProtocol": "sigv4",
                "SigningBehavior": "always",
                "OriginAccessControlOriginType": "s3",
            }
            return {
                **config,
                "OriginAccessControlId": self._piece(CONTROL, control),
                "S3OriginConfig": {"OriginAccessIdentity": ""},
                "CustomOriginConfig": None,
            }
        return {
            **config,
            "OriginAccessControlId": "",
            "S3OriginConfig": None,
            "CustomOriginConfig": {
                "HTTPPort": origin.http_port,
                "HTTPSPort": origin.https_port,
                "OriginProtocolPolicy": origin.protocol_policy,
                "OriginSslProtocols": items(origin.ssl_protocols),
                "OriginReadTimeout": origin.read_timeout_s,
                "OriginKeepaliveTimeout": origin.keepalive_timeout_s,
            },
        }

    def _behavior(self, option: str, behavior: Behavior, headers: str | None) -> Config:
        return {
            "TargetOriginId": behavior.origin,
            "ViewerProtocolPolicy": behavior.viewer_protocol_policy,
            "AllowedMethods": {**items(behavior.methods), "CachedMethods": items(behavior.cached_methods)},
            "Compress": behavior.compress,
            "CachePolicyId": self._cache_policy(behavior),
            "OriginRequestPolicyId": self._request_policy(option, behavior),
            "ResponseHeadersPolicyId": headers,
            "FunctionAssociations": self.associations,
            **dict.fromkeys(LEGACY),
        }

    def _cache_policy(self, behavior: Behavior) -> str:
        keeps = behavior.ttl.max_s > 0
        key = behavior.cache_key
        # one address holds what several origins say, so that they have to be kept apart
        routed = (ORIGIN_HEADER,) if keeps and self.cdn.edge.routes else ()
        config = {
            "MinTTL": behavior.ttl.min_s,
            "DefaultTTL": behavior.ttl.default_s,
            "MaxTTL": behavior.ttl.max_s,
            "ParametersInCacheKeyAndForwardedToOrigin": {
                # a policy that keeps nothing may not have a key
                "EnableAcceptEncodingGzip": behavior.compress and keeps,
                "EnableAcceptEncodingBrotli": behavior.compress and keeps,
                **_parameters(Names(tuple(sorted({*key.headers, *routed})), key.cookies, key.query_strings)),
            },
        }
        return self._piece(CACHE, config)

    def _request_policy(self, option: str, behavior: Behavior) -> str | None:
        forward = behavior.forward
        for name in forward.headers:
            if name in _NOT_FORWARDED:
                raise OptionError(
                    f"{option}.forward.headers", name, f"{_NOT_FORWARDED[name]}; CloudFront does not take it here."
                )
        # the function is only told the country where a policy asks for it; all headers hold it
        country = (COUNTRY_HEADER.lower(),) if self.cdn.edge.by_country and forward.headers != (ALL,) else ()
        asked = Names(tuple(sorted({*forward.headers, *country})), forward.cookies, forward.query_strings)
        return self._piece(REQUEST, _parameters(asked)) if asked != Names() else None

    def _security_headers(self, headers: SecurityHeaders) -> str | None:
        override = {"Override": True}
        config: Config = {}
        if headers.frame_options:
            config["FrameOptions"] = {**override, "FrameOption": headers.frame_options}
        if headers.content_type_nosniff:
            config["ContentTypeOptions"] = override
        if headers.referrer_policy:
            config["ReferrerPolicy"] = {**override, "ReferrerPolicy": headers.referrer_policy}
        if headers.content_security_policy:
            config["ContentSecurityPolicy"] = {**override, "ContentSecurityPolicy": headers.content_security_policy}
        if headers.hsts_max_age_s:
            config["StrictTransportSecurity"] = {
                **override,
                "AccessControlMaxAgeSec": headers.hsts_max_age_s,
                "IncludeSubdomains": headers.hsts_include_subdomains,
                "Preload": headers.hsts_preload,
            }
        return self._piece(HEADERS, {"SecurityHeadersConfig": config}) if config else None


def _parameters(names: Names) -> Config:
    """Return what a policy says of headers, cookies and query strings."""
    headers: Config = {"HeaderBehavior": "none"}
    if names.headers == (ALL,):
        # with the viewer's Host neither a bucket nor a certificate of the origin would fit
        headers = {"HeaderBehavior": "allExcept", "Headers": items(["host"])}
    elif names.headers:
        headers = {"HeaderBehavior": "whitelist", "Headers": items(names.headers)}
    return {
        "HeadersConfig": headers,
        "CookiesConfig": _some("Cookie", "Cookies", names.cookies),
        "QueryStringsConfig": _some("QueryString", "QueryStrings", names.query_strings),
    }


def _some(kind: str, plural: str, names: t.Sequence[str]) -> Config:
    if not names:
        return {f"{kind}Behavior": "none"}
    if tuple(names) == (ALL,):
        return {f"{kind}Behavior": "all"}
    return {f"{kind}Behavior": "whitelist", plural: items(names)}
