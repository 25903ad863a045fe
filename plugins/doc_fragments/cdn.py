# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What describes a CDN, whatever its provider."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of a description; the same for all providers."""

    DOCUMENTATION = r"""
options:
  aliases:
    description:
      - Domain names that viewers use, such as V(www.example.com).
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  http_version:
    description:
      - Highest version of HTTP that viewers may use.
    type: str
    choices: [http1.1, http2, http3, http2and3]
    default: http2
    version_added: 0.1.0
  ipv6:
    description:
      - Whether viewers reach the distribution over IPv6.
    type: bool
    default: true
    version_added: 0.1.0
  default_root_object:
    description:
      - What is served for C(/), such as V(index.html).
    type: str
    default: ''
    version_added: 0.1.0
  origins:
    description:
      - Where content comes from.
    type: list
    elements: dict
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Its name, which behaviours, groups and routes refer to. No origin group has the same.
        type: str
        required: true
      domain_name:
        description:
          - Its domain name, without scheme, port and path. For a bucket it is that of its REST endpoint, such as
            V(NAME.s3.eu-central-1.amazonaws.com).
        type: str
        required: true
      type:
        description:
          - V(custom) is a web server. V(s3) is a bucket that CloudFront reads with origin access control; its policy must allow the
            distribution, and for a staged change the staging distribution too.
        type: str
        choices: [custom, s3]
        default: custom
      path:
        description:
          - What is put before the path of each request, such as V(/app).
        type: str
        default: ''
      protocol_policy:
        description:
          - How it is asked. For V(custom).
        type: str
        choices: [https-only, http-only, match-viewer]
        default: https-only
      http_port:
        description:
          - Its port for HTTP. For V(custom).
        type: int
        default: 80
      https_port:
        description:
          - Its port for HTTPS. For V(custom).
        type: int
        default: 443
      ssl_protocols:
        description:
          - Versions of TLS that it may be asked with. For V(custom).
        type: list
        elements: str
        choices: [TLSv1, TLSv1.1, TLSv1.2]
        default: [TLSv1.2]
      connect_attempts:
        description:
          - How often a connection is tried, from 1 to 3.
        type: int
        default: 3
      connect_timeout_s:
        description:
          - Seconds that an attempt to connect may take, from 1 to 10.
        type: int
        default: 10
      read_timeout_s:
        description:
          - Seconds without an answer after which it is given up, from 1 to 120. For V(custom). CloudFront takes more than 60
            only where AWS has granted it.
        type: int
        default: 30
      keepalive_timeout_s:
        description:
          - Seconds that an idle connection is kept, from 1 to 120. For V(custom). CloudFront takes more than 60
            only where AWS has granted it.
        type: int
        default: 5
      headers:
        description:
          - Headers that each request to it gets, such as a secret by which it knows the CDN. Their values are kept out of results and
            logs, so that a short one takes other texts with it.
        type: dict
  origin_groups:
    description:
      - Pairs of origins, of which the second is asked when the first cannot be reached or answers with one of the statuses.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Its name.
        type: str
        required: true
      members:
        description:
          - Two origins, the preferred one first.
        type: list
        elements: str
        required: true
      failover_status:
        description:
          - Statuses of HTTP, of V(403), V(404), V(416), V(429), V(500), V(502), V(503) and V(504).
        type: list
        elements: int
        default: [500, 502, 503, 504]
  default_behavior:
    description:
      - What happens to requests that none of O(behaviors) is for.
    type: dict
    version_added: 0.1.0
    suboptions: &behavior
      origin:
        description:
          - Origin or origin group that is asked, unless a route of O(edge_rules) names another.
        type: str
        required: true
      viewer_protocol_policy:
        description:
          - What becomes of requests over HTTP without TLS.
        type: str
        choices: [redirect-to-https, https-only, allow-all]
        default: redirect-to-https
      methods:
        description:
          - Methods that are let through. These are V(GET) and V(HEAD), or V(OPTIONS) beside them, or all seven. An origin group can have no
            methods that write.
        type: list
        elements: str
        default: [GET, HEAD]
      cached_methods:
        description:
          - Methods whose answers are kept. These are V(GET) and V(HEAD), or V(OPTIONS) beside them.
        type: list
        elements: str
        default: [GET, HEAD]
      compress:
        description:
          - Whether answers are compressed with gzip or Brotli for viewers that take it.
        type: bool
        default: true
      ttl:
        description:
          - How long the CDN keeps an answer. What viewers are told is another matter, see O(edge_rules).
        type: dict
        suboptions:
          min_s:
            description:
              - At least, in seconds, whatever the origin says.
            type: int
            default: 0
          default_s:
            description:
              - In seconds, when the origin says nothing.
            type: int
            default: 86400
          max_s:
            description:
              - At most, in seconds, whatever the origin says. With V(0) nothing is kept.
            type: int
            default: 31536000
      cache_key:
        description:
          - What tells answers apart beside the path, and is sent to the origin for that. With C(ttl.max_s) of 0 it must be empty.
          - Where O(edge_rules) has routes, the origin is part of it too. With CloudFront that is the header C(x-cdn-origin).
        type: dict
        suboptions:
          headers:
            description:
              - Names of headers.
            type: list
            elements: str
            default: []
          cookies:
            description:
              - Names of cookies; V(*) alone stands for all.
            type: list
            elements: str
            default: []
          query_strings:
            description:
              - Names of query strings; V(*) alone stands for all.
            type: list
            elements: str
            default: []
      forward:
        description:
          - What is sent to the origin without telling answers apart.
          - With CloudFront, where O(edge_rules) asks for countries, the header C(CloudFront-Viewer-Country) is sent too.
        type: dict
        suboptions:
          headers:
            description:
              - Names of headers; V(*) alone stands for all but C(Host). C(Authorization) cannot be named here.
            type: list
            elements: str
            default: []
          cookies:
            description:
              - Names of cookies; V(*) alone stands for all.
            type: list
            elements: str
            default: []
          query_strings:
            description:
              - Names of query strings; V(*) alone stands for all.
            type: list
            elements: str
            default: []
  behaviors:
    description:
      - What happens to requests by their path. The first whose path matches counts.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      path:
        description:
          - Pattern of paths, in which C(*) stands for any number of characters and C(?) for one, such as V(/api/*).
        type: str
        required: true
      <<: *behavior
  edge_rules:
    description:
      - What the edge decides by itself. With CloudFront it is a CloudFront Function, of at most 10240 bytes, and a response headers policy.
      - Of each kind of rule the first that matches counts, and a denial comes before all others. In a rule each list that is not empty must
        have an entry that matches.
    type: dict
    version_added: 0.1.0
    suboptions:
      deny:
        description:
          - Requests that are answered with an error status, which is not kept.
        type: list
        elements: dict
        default: []
        suboptions:
          status:
            description:
              - Status of HTTP, from 400 to 599.
            type: int
            default: 403
          paths: &paths
            description:
              - Patterns of paths, as in O(behaviors[].path).
            type: list
            elements: str
            default: []
          countries: &countries
            description:
              - Countries of viewers, two capital letters each as of ISO 3166-1.
            type: list
            elements: str
            default: []
          user_agents: &user_agents
            description:
              - Parts of the user agent, whatever their case.
            type: list
            elements: str
            default: []
      routes:
        description:
          - Requests that go to another origin, or origin group, than their behaviour names.
        type: list
        elements: dict
        default: []
        suboptions:
          origin:
            description:
              - Origin or origin group.
            type: str
            required: true
          paths: *paths
          countries: *countries
          user_agents: *user_agents
      cache_control:
        description:
          - What viewers are told in C(Cache-Control), over what the origin says. Answers of the origin with a status of 400 and above
            stay as they are.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description:
              - Pattern of paths, as in O(behaviors[].path).
            type: str
            required: true
          value:
            description:
              - The header's value, such as V(public, max-age=31536000, immutable).
            type: str
            required: true
      security_headers:
        description:
          - Headers that all answers get, over what the origin says.
        type: dict
        suboptions:
          frame_options:
            description:
              - C(X-Frame-Options). An empty text leaves it out.
            type: str
            choices: [DENY, SAMEORIGIN, '']
            default: DENY
          content_type_nosniff:
            description:
              - Whether there is C(X-Content-Type-Options) with C(nosniff).
            type: bool
            default: true
          hsts_max_age_s:
            description:
              - Seconds for which viewers use HTTPS alone, in C(Strict-Transport-Security). V(0) leaves it out.
            type: int
            default: 31536000
          hsts_include_subdomains:
            description:
              - Whether that holds for subdomains of the aliases too.
            type: bool
            default: false
          hsts_preload:
            description:
              - Whether browsers may know it beforehand. Requires a year and subdomains.
            type: bool
            default: false
          referrer_policy:
            description:
              - C(Referrer-Policy). An empty text leaves it out.
            type: str
            choices:
              - no-referrer
              - no-referrer-when-downgrade
              - origin
              - origin-when-cross-origin
              - same-origin
              - strict-origin
              - strict-origin-when-cross-origin
              - unsafe-url
              - ''
            default: strict-origin-when-cross-origin
          content_security_policy:
            description:
              - C(Content-Security-Policy). An empty text leaves it out.
            type: str
            default: ''
"""
