#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declare a CDN on Amazon CloudFront."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cloudfront_distribution
short_description: Declare a CDN on Amazon CloudFront
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Creates, changes and deletes a distribution of CloudFront with all that belongs to it, as one description. That is origin access
    control for buckets, origin groups, a CloudFront Function made of O(edge_rules), and the cache policies, origin request policies and
    response headers policy that the behaviours need.
  - What is there is compared by its meaning. The order of aliases, methods, origins, headers and statuses, the spelling of names without
    case, and what CloudFront fills in are no change, and where nothing differs no write request is sent. The order of O(behaviors) and of
    the members of an origin group has a meaning.
  - A change can be staged with O(rollout=staged). A part of the viewers gets it until it is promoted or rolled back.
  - Policies and functions have a name that changes with their content, so that nothing changes under a distribution that uses one. Those
    that nothing refers to any longer are deleted in the same run; one that is still in use then is in RV(left_behind).
  - What a distribution holds and this module has no option for is left as it is, such as custom error pages, geographic restrictions,
    trusted key groups and functions of Lambda@Edge. Origins, origin groups and behaviours are declared as a whole.
  - A write says which version it changes. When somebody else has written in between, the run starts over, up to 5 times.
  - What CloudFront holds after the run is read again, and a difference is a failure.
  - Needs the rights to C(cloudfront:List*), C(cloudfront:Get*) and C(cloudfront:DescribeFunction), and for changes those to
    C(cloudfront:Create*), C(cloudfront:Update*), C(cloudfront:Delete*), C(cloudfront:CopyDistribution), C(cloudfront:PublishFunction),
    C(cloudfront:TagResource) and C(cloudfront:UntagResource).
extends_documentation_fragment:
  - headroom.scale.aws
  - headroom.scale.cdn
  - headroom.scale.attributes
attributes:
  check_mode:
    support: full
    details:
      - Reads and plans as usual and sends no write request. What CloudFront itself would refuse is not known then.
  diff_mode:
    support: full
    details:
      - One line for each setting, with policies spelled out where they are used, and for each line of the function. Values of origin
        headers are never shown.
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the CDN, of at most 40 letters, digits and C(-). It is the caller reference of its distribution, the start of the
        distribution's comment, by which it is found again, and of the names of all that belongs to it.
    type: str
    required: true
    version_added: 0.1.0
  distribution_id:
    description:
      - Id of the distribution, where it was made in another way and its comment does not start with O(name). It gets such a comment.
    type: str
    version_added: 0.1.0
  state:
    description:
      - V(present) has it as declared. V(absent) disables it, waits until it is disabled everywhere, and deletes it with all that belongs
        to it. A run that was interrupted goes on where it was.
    type: str
    choices: [present, absent]
    default: present
    version_added: 0.1.0
  rollout:
    description:
      - How a change gets to the viewers.
      - V(direct) changes the distribution. It fails when a change is staged, unless there is nothing to change.
      - V(staged) leaves the distribution alone and has the change on a staging distribution, for the viewers that O(staging) names. It
        does nothing when the distribution is as declared and nothing is staged.
      - V(promoted) has the distribution hold what is staged, which must be what is declared, and all viewers with it.
      - V(rolled_back) sends all viewers to the distribution, which is as it was. What was staged stays, for another V(staged).
    type: str
    choices: [direct, staged, promoted, rolled_back]
    default: direct
    version_added: 0.1.0
  staging:
    description:
      - Which viewers get what is staged. Required with O(rollout=staged), with one of O(staging.weight_percent) and O(staging.header).
      - CloudFront may send all viewers to the distribution at times of high load, and stages nothing of a distribution that speaks HTTP/3.
    type: dict
    version_added: 0.1.0
    suboptions:
      weight_percent:
        description:
          - Share of the viewers in percent, above 0 and up to 15.
        type: float
      stickiness_idle_s:
        description:
          - Seconds without a request after which a viewer may get to the other distribution, from 300 to 3600. Requires
            O(staging.stickiness_max_s). Without it each request is decided anew.
        type: int
      stickiness_max_s:
        description:
          - Seconds after which a viewer may get to the other distribution in any case, from 300 to 3600.
        type: int
      header:
        description:
          - Name of a request header, which starts with C(aws-cf-cd-). Only requests with it get what is staged.
        type: str
      header_value:
        description:
          - Value that the header must have. Requires O(staging.header).
        type: str
  comment:
    description:
      - What stands in the distribution's comment after O(name), at most 80 characters.
    type: str
    default: ''
    version_added: 0.1.0
  enabled:
    description:
      - Whether the distribution answers viewers.
    type: bool
    default: true
    version_added: 0.1.0
  certificate:
    description:
      - Certificate for the aliases. Without it the distribution has the one of CloudFront, and no aliases.
    type: dict
    version_added: 0.1.0
    suboptions:
      arn:
        description:
          - ARN of a certificate of ACM in the region C(us-east-1).
        type: str
        required: true
      minimum_protocol_version:
        description:
          - Security policy, which sets the least version of TLS and the ciphers.
        type: str
        choices: [TLSv1.2_2019, TLSv1.2_2021, TLSv1.2_2025, TLSv1.3_2025]
        default: TLSv1.2_2021
  price_class:
    description:
      - Which edge locations are used.
    type: str
    choices: [PriceClass_100, PriceClass_200, PriceClass_All]
    default: PriceClass_100
    version_added: 0.1.0
  web_acl:
    description:
      - ARN of a global web ACL of AWS WAF. An empty text takes it off. By default it is left as it is.
    type: str
    version_added: 0.1.0
  cache_tag_header:
    description:
      - Header in which origins give the tags of an answer, separated by commas, so that M(headroom.scale.cache_flush) can invalidate by
        tag. An empty text ends that. By default it is left as it is.
      - What is in the caches already keeps no tags by it. Requires a botocore that knows C(CacheTagConfig), as 1.44 does.
    type: str
    version_added: 0.1.0
  access_logs:
    description:
      - Where each request is written down. By default it is not.
    type: dict
    version_added: 0.1.0
    suboptions:
      bucket:
        description:
          - Domain name of a bucket, such as V(logs.s3.amazonaws.com), in which CloudFront may write.
        type: str
        required: true
      prefix:
        description:
          - Start of the names of the files.
        type: str
        default: ''
      include_cookies:
        description:
          - Whether cookies are written down too.
        type: bool
        default: false
  tags:
    description:
      - All tags of the distribution. By default they are left as they are.
    type: dict
    version_added: 0.1.0
  wait:
    description:
      - Whether the run ends when all edges have the change, which takes minutes. Deletion and promotion wait in any case.
    type: bool
    default: true
    version_added: 0.1.0
  wait_timeout_s:
    description:
      - Seconds that each wait may take.
    type: float
    default: 1800
    version_added: 0.1.0
  aliases:
    description:
      - Domain names that viewers use, such as V(www.example.com). They need O(certificate). A staged change leaves them as they are until
        it is promoted.
    version_added: 0.1.0
  origins:
    description:
      - Where content comes from. Required with O(state=present).
    version_added: 0.1.0
  default_behavior:
    description:
      - What happens to requests that none of O(behaviors) is for. Required with O(state=present).
    version_added: 0.1.0
seealso:
  - module: amazon.aws.s3_bucket
  - module: amazon.aws.route53
  - module: community.aws.cloudfront_invalidation
"""

EXAMPLES = r"""
- name: Serve an API and its static files
  headroom.scale.cloudfront_distribution:
    name: shop
    aliases: [shop.example.com]
    certificate: {arn: "arn:aws:acm:us-east-1:123456789012:certificate/0f1e2d3c"}
    origins:
      - {name: api, domain_name: api.example.com}
      - {name: static, domain_name: shop-static.s3.eu-central-1.amazonaws.com, type: s3}
    default_behavior: {origin: static}
    behaviors:
      - path: /api/*
        origin: api
        methods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]
        ttl: {min_s: 0, default_s: 0, max_s: 0}
        forward: {headers: ["*"], cookies: ["*"], query_strings: ["*"]}

- name: Send viewers to the region of their country, and to another one when it fails
  headroom.scale.cloudfront_distribution: &trading
    name: trading
    origins:
      - {name: us, domain_name: us.example.com, headers: {X-Origin-Key: "{{ vault_origin_key }}"}}
      - {name: jp, domain_name: jp.example.com, headers: {X-Origin-Key: "{{ vault_origin_key }}"}}
    origin_groups:
      - {name: anywhere, members: [us, jp]}
    default_behavior: {origin: anywhere, methods: [GET, HEAD, OPTIONS]}
    edge_rules:
      deny:
        - {countries: [KP]}
      routes:
        - {countries: [JP], origin: jp}
      cache_control:
        - {path: /api/*, value: no-store}
        - {path: /static/*, value: "public, max-age=31536000, immutable"}

- name: Let five of a hundred viewers try the change first
  headroom.scale.cloudfront_distribution:
    <<: *trading
    price_class: PriceClass_200
    rollout: staged
    staging: {weight_percent: 5, stickiness_idle_s: 300, stickiness_max_s: 600}

- name: Give it to all of them
  headroom.scale.cloudfront_distribution:
    <<: *trading
    price_class: PriceClass_200
    rollout: promoted

- name: Take it down
  headroom.scale.cloudfront_distribution:
    name: trading
    state: absent
"""

RETURN = r"""
name:
  description: Name of the CDN.
  returned: success
  type: str
  sample: trading
summary:
  description: The outcome in one sentence.
  returned: success
  type: str
  sample: "Did for CloudFront distribution trading: create cache policy, update distribution, delete cache policy."
plan:
  description: Steps that were done, or would be in check mode, in their order, with C(action), C(kind) and C(name).
  returned: success
  type: list
  elements: dict
  sample:
    - {action: create, kind: cache_policy, name: trading-cache-1f0c4a6e}
    - {action: update, kind: distribution, name: trading}
    - {action: delete, kind: cache_policy, name: trading-cache-9b1d2a70}
changes:
  description:
    - What changes for it, by C(what), C(before) and C(after). Values of origin headers are C(********).
  returned: success
  type: list
  elements: dict
  sample:
    - {what: DefaultCacheBehavior.CachePolicy.DefaultTTL, before: "86400", after: "300"}
distribution:
  description:
    - The distribution as it was read at last, with C(id), C(arn), C(domain_name), C(status), C(enabled) and C(aliases). Null when there
      is none. The alias records of DNS point to C(domain_name).
  returned: success
  type: dict
  sample:
    aliases: [www.example.com]
    arn: arn:aws:cloudfront::123456789012:distribution/E2QWRUHAPOMZQL
    domain_name: d111111abcdef8.cloudfront.net
    enabled: true
    id: E2QWRUHAPOMZQL
    status: Deployed
staging_distribution:
  description: The staging distribution in the same form, null when there is none.
  returned: success
  type: dict
  sample: null
staging_enabled:
  description: Whether any viewers are sent to the staging distribution.
  returned: success
  type: bool
  sample: false
function_bytes:
  description: Size of the CloudFront Function in bytes, of which CloudFront takes 10240. 0 when the rules need none.
  returned: success
  type: int
  sample: 1930
left_behind:
  description: Names of policies and functions that could not be deleted, since something still uses them. A later run tries it again.
  returned: success
  type: list
  elements: str
  sample: []
attempts:
  description: How often the run was started over because others wrote at the same time, and 1.
  returned: success
  type: int
  sample: 1
errors:
  description:
    - Why it failed, with C(code) and C(message).
    - "C(code) is one of: V(bad_option), an option cannot be; V(function_too_large), the edge rules have more bytes than CloudFront takes;
      V(no_access), there is no login; V(connection_failed), CloudFront cannot be reached; V(unauthorized) and V(access_denied), the login
      is refused or has not the right; V(ambiguous), several distributions have the name; V(already_exists), another distribution has the
      caller reference; V(alias_taken), another distribution has an alias; V(bad_certificate), the certificate does not cover the aliases;
      V(no_primary), there is nothing to stage beside; V(staging_open), a change is staged; V(not_staged) and V(staged_differs), there is
      nothing to promote, or something else; V(conflict), others wrote during each attempt; V(throttled), too many requests;
      V(not_deployed), a wait took too long; V(not_kept), CloudFront holds something else than it was sent; V(bad_request), botocore is
      too old; V(refused), any other answer of CloudFront, whose name is in C(aws_code); V(missing_library), a Python library is missing."
  returned: failure
  type: list
  elements: dict
  sample:
    - code: staging_open
      message: >-
        Failed to change distribution trading: a staged configuration gets a part of its viewers. Run with rollout=promoted or
        rollout=rolled_back first.
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cdn.cloudfront.converge import (  # noqa: E402
    converge,
    distribution_spec,
    parse_options,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def main() -> None:
    """Run the module."""
    module = AnsibleModule(supports_check_mode=True, **distribution_spec().to_kwargs())
    run(module, lambda module: converge(parse_options(module.params), check=module.check_mode))


if __name__ == "__main__":
    main()
