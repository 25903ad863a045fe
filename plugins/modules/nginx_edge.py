#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the edge of a CDN on a host as declared."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_edge
short_description: Keep the edge of a CDN on a host as declared
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Makes nginx on this host an edge of a CDN, from the description that M(headroom.scale.cloudfront_distribution) takes too. The same
    requests get the same answers.
  - Answers are kept by path with the times and the cache key of their behaviour. Requests for the same are collapsed into one, what has
    just expired is served while it is fetched anew, and what has expired long ago when the origin fails. An origin group asks its second
    origin when the first fails. C(X-Cache), C(Age) and C(X-Edge-Region) tell what happened.
  - Answers with C(Set-Cookie), or to requests with C(Authorization) that is no part of the cache key, are not kept unless the origin says
    C(public). Errors are not kept, except for 404 and 410 as long as the origin says.
  - Origins get the headers, cookies and query strings that a behaviour names, C(X-Forwarded-For), C(X-Forwarded-Proto),
    C(X-Forwarded-Host) and C(Content-Type). WebSockets are not passed.
  - Renders the whole configuration of nginx, lets nginx check it aside, swaps it in one step, reloads, and waits until new workers serve it
    and each origin answers a probe of its path with a status below 500. When it does not serve, what was there is put back.
  - A purge is a request with the method C(PURGE) to the management address. C(PURGE /path) purges a path with all its query strings,
    headers and cookies, C(PURGE /path/*) all that begins alike, and C(PURGE /) with a header C(Cache-Tag) or C(Surrogate-Key) all answers
    to which the origin gave one of these tags, in a header of the same names. The answer 200 says that all workers know it, and that it
    outlives nginx. M(headroom.scale.cache_flush) speaks this.
  - There is no AWS at an edge. The description's C(price_class), C(access_logs), C(certificate), C(comment) and C(enabled), and C(web_acl)
    do not apply and are no options here. Requests are in C(/var/log/nginx/access.log). Buckets, V(http3) and V(http2and3), and C(OPTIONS)
    among the cached methods are refused.
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.cdn
  - headroom.scale.nginx_host
attributes:
  check_mode:
    support: full
    details:
      - Lets nginx check the configuration too. Where nginx is not installed yet, it says what the run does once it is.
  diff_mode:
    support: full
    details:
      - Compares what is declared, one fact a line, and not the text of the configuration. Certificates and keys are shown as digests, and
        values of origin headers not at all.
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the CDN, of at most 40 letters, digits and C(-).
    type: str
    required: true
    version_added: 0.1.0
  http_version:
    description:
      - Highest version of HTTP that viewers may use. V(http2) needs O(tls).
    choices: [http1.1, http2]
    version_added: 0.1.0
  origins:
    required: true
    version_added: 0.1.0
  default_behavior:
    required: true
    version_added: 0.1.0
  region:
    description:
      - Where the edge is, such as V(us-east-1). Answers carry it in C(X-Edge-Region).
    type: str
    required: true
    version_added: 0.1.0
  http_port:
    description:
      - TCP port for HTTP.
    type: int
    default: 80
    version_added: 0.1.0
  https_port:
    description:
      - TCP port for HTTPS, with O(tls).
    type: int
    default: 443
    version_added: 0.1.0
  internal_port:
    description:
      - TCP port of 127.0.0.1 between the two servers that a request passes inside of nginx. Who can run programs on the host reaches the
        origins through it.
    type: int
    default: 8182
    version_added: 0.1.0
  tls:
    description:
      - Makes the edge speak HTTPS. Without it each behaviour must have the C(viewer_protocol_policy) V(allow-all).
    type: dict
    version_added: 0.1.0
    suboptions:
      certificate:
        description:
          - Certificate for the aliases, followed by those of the authorities between, in PEM format.
        type: str
        required: true
      key:
        description:
          - Its private key in PEM format.
        type: str
        required: true
      minimum_version:
        description:
          - Least version of TLS that a viewer must be able to speak.
        type: str
        choices: [TLSv1.2, TLSv1.3]
        default: TLSv1.2
  cache:
    description:
      - Where answers are kept, and for how long.
    type: dict
    version_added: 0.1.0
    suboptions:
      directory:
        description:
          - Directory that belongs to the edge alone. It is made where it is missing.
        type: path
        default: /var/cache/headroom-edge
      size_mb:
        description:
          - Most that answers take of the disk, in megabytes. What was not asked for the longest goes first.
          - What is kept about them takes of the host's memory some 3% of it at most, when all answers are as small as a block of the
            disk; above 14 GB less, which has room for answers of 17 KB on average.
        type: int
        default: 1024
      inactive_s:
        description:
          - Seconds after which an answer that nobody asks for goes, however long it could be kept.
        type: int
        default: 86400
      stale_s:
        description:
          - Seconds after its expiry in which an answer is served while it is fetched anew. What the origin says by
            C(stale-while-revalidate) and C(must-revalidate) goes before it. V(0) lets viewers wait.
        type: int
        default: 60
  country:
    description:
      - How the country of a viewer is known, which O(edge_rules) may ask for. Exactly one of the two.
    type: dict
    version_added: 0.1.0
    suboptions:
      header:
        description:
          - Header in which one of O(trusted_proxies) names it, two capital letters. Of others it does not count.
        type: str
      networks:
        description:
          - Networks with their countries. The narrowest that holds the viewer's address counts.
        type: list
        elements: dict
        suboptions:
          network:
            description:
              - Address or network, such as V(192.0.2.0/24).
            type: str
            required: true
          country:
            description:
              - Its country, two capital letters as of ISO 3166-1.
            type: str
            required: true
  purge_allow:
    description:
      - Networks that may purge, at O(management). The host itself may.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  origin_ca_certs:
    description:
      - File with the authorities that certificates of origins must come from.
    type: path
    default: /etc/ssl/certs/ca-certificates.crt
    version_added: 0.1.0
notes:
  - An origin's name is looked up when the module runs. An origin that answered no probe before the task, and of which the task changes
    nothing, does not make it fail. It is in RV(silent).
  - A 502 or 504 of the first origin of a group always leads to the second. nginx cannot tell it from an origin that cannot be reached.
  - Not for a host whose nginx M(headroom.scale.nginx_config) keeps.
seealso:
  - module: headroom.scale.cloudfront_distribution
  - module: headroom.scale.cache_flush
  - module: headroom.scale.nginx_config
"""

EXAMPLES = r"""
- name: An edge in Tokyo before two regions
  headroom.scale.nginx_edge:
    name: trading
    region: ap-northeast-1
    aliases: [www.example.com]
    tls:
      certificate: "{{ lookup('ansible.builtin.file', 'www.crt') }}"
      key: "{{ lookup('ansible.builtin.file', 'www.key') }}"
    origins:
      - {name: us, domain_name: us.example.com, headers: {X-Origin-Key: "{{ vault_origin_key }}"}}
      - {name: jp, domain_name: jp.example.com, headers: {X-Origin-Key: "{{ vault_origin_key }}"}}
    origin_groups:
      - {name: anywhere, members: [us, jp]}
    default_behavior: {origin: anywhere, ttl: {default_s: 300}}
    behaviors:
      - path: /api/*
        origin: us
        methods: [GET, HEAD, OPTIONS, PUT, POST, PATCH, DELETE]
        ttl: {min_s: 0, default_s: 0, max_s: 0}
        forward: {headers: ["*"], cookies: ["*"], query_strings: ["*"]}
    edge_rules:
      deny:
        - {countries: [KP]}
      routes:
        - {countries: [JP], origin: jp}
    country: {header: X-Country}
    trusted_proxies: [192.0.2.0/24]
    management: {address: 192.0.2.75, allow: [192.0.2.5]}
    purge_allow: [192.0.2.5]
  become: true

- name: Purge what has changed at all edges
  headroom.scale.cache_flush:
    rules:
      user: {paths: ["/users/{id}"], tags: ["user-{id}"]}
    entities: [{user: [42]}]
    http_caches:
      - name: edges
        urls: ["http://192.0.2.75:8181", "http://192.0.2.76:8181"]
        wildcards: true
        tags_header: Cache-Tag
"""

RETURN = r"""
release:
  description: Digest of the configuration; what C(/release) at the management address answers with.
  returned: success
  type: str
  sample: 0f3a5c1b7d9e2468
region:
  description: Where the edge is.
  returned: success
  type: str
  sample: ap-northeast-1
plan:
  description: The steps, each with C(action), C(object) and C(why).
  returned: always
  type: list
  elements: dict
  sample:
    - action: change
      object: behaviour /api/* ttl
      why: 0 to 0 s, else 0 s -> 0 to 60 s, else 10 s
    - action: reload
      object: nginx
      why: its configuration changes
nginx_version:
  description: Version of the installed nginx, empty where none is.
  returned: success
  type: str
  sample: 1.26.3
silent:
  description: Origins that answered no probe before the task.
  returned: success
  type: list
  elements: str
  sample: []
errors:
  description: Why it failed, with C(code) and C(message). The code V(restored) tells that what was there is in force again,
    V(not_restored) that it is not.
  type: list
  elements: dict
  returned: failure
  sample:
    - code: restored
      message: "Failed to put the configuration in force: origin jp does not answer a probe. What was there is in force again."
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cdn.nginx.converge import converge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cdn.nginx.options import edge_spec  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402


def main():
    module = AnsibleModule(supports_check_mode=True, **edge_spec().to_kwargs())
    run(module, lambda module: converge(module.params, module.check_mode))


if __name__ == "__main__":
    main()
