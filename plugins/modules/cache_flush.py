#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flush entities out of all layers of caches."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_flush
short_description: Flushes entities out of all layers of caches, in the order that leaves nothing stale
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Takes entities that have changed, turns them into keys, patterns, tags and paths by rules, and flushes these in the
    application's Redis, in the caches of nginx and Varnish, and in a CDN on CloudFront, all in one task.
  - Layers are flushed inner before outer, and each one confirms before the next is begun. In Redis all primaries work at the same time,
    with C(SCAN) and C(UNLINK), never with C(KEYS), and the replicas have it before the next layer. All hosts of a layer of HTTP caches
    are asked at the same time. Invalidations of CloudFront are waited for.
  - A fetch that began before a cache was flushed may store what it had read after the flush. So there is a second pass, which waits for
    O(in_flight_s), the longest request, before each of its layers. A run takes O(in_flight_s) for each layer, and longer.
  - It runs once, on a host that reaches all layers, and not on each of their hosts. Change the entities at their source first.
options:
  rules:
    description:
      - What belongs to an entity, by its type. A rule is a dictionary with any of C(patterns), C(keys), C(tags) and C(paths), a list of
        texts each, or a list alone, of patterns. C({id}) in a text stands for the id of an entity.
      - An id means nothing but itself in what is made of it. It is escaped in a pattern and percent-encoded in a path.
      - C(patterns) and C(keys) are those of Redis. C(tags) are looked up in Redis by O(tag_key), and sent to HTTP caches that know tags.
        C(paths) are those of URLs, percent-encoded, with C(*) at the end for all that begin so.
    type: dict
    default: {}
    version_added: 0.1.0
  entities:
    description:
      - "What has changed, dictionaries of types to an id or a list of ids, such as C({user: 42}). Each type needs a rule. There may
        be 100000 ids in a run."
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
  patterns:
    description:
      - Patterns of keys in Redis to flush beside those of the entities. One that matches all keys is refused.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  keys:
    description:
      - Keys in Redis to flush beside those of the entities.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  tags:
    description:
      - Tags to flush beside those of the entities.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  paths:
    description:
      - Paths to flush beside those of the entities.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  scope:
    description:
      - What is flushed. V(all) is everything in all layers that are given, in Redis all keys of the database 0, whoever uses them. It
        requires O(confirm_all) and excludes O(entities), O(patterns), O(keys), O(tags) and O(paths).
    type: str
    choices: [entities, all]
    default: entities
    version_added: 0.1.0
  confirm_all:
    description:
      - Confirms O(scope=all).
    type: bool
    default: false
    version_added: 0.1.0
  dry_run:
    description:
      - Counts what would be flushed, as check mode does, and flushes nothing. A play in which other tasks are to run can ask for it.
    type: bool
    default: false
    version_added: 0.1.0
  nodes:
    description:
      - Nodes of a Redis Cluster, or one or more servers without a cluster. Without them there is no layer of Redis.
      - Some nodes of a cluster are enough when the others can be reached where the cluster says that they are.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the node, as people use it.
        type: str
        required: true
        version_added: 0.1.0
      host:
        description:
          - Host name or address that it listens on. Defaults to O(nodes[].name).
        type: str
        version_added: 0.1.0
      port:
        description:
          - TCP port that it listens on.
        type: int
        default: 6379
        version_added: 0.1.0
  tag_key:
    description:
      - Name of the set in Redis that holds the keys of a tag, where C({tag}) stands for the tag.
      - A set keeps those of its members that are set again meanwhile. For that an application sets a key first, and adds it to the
        set then.
    type: str
    default: "tag:{tag}"
    version_added: 0.1.0
  max_rate_keys_s:
    description:
      - Keys that are deleted in a second, over all primaries. V(0) is no limit.
    type: int
    default: 0
    version_added: 0.1.0
  max_latency_ms:
    description:
      - Nothing is deleted while a C(PING) beside the deletions takes longer than so many milliseconds. V(0) is no limit.
    type: float
    default: 0
    version_added: 0.1.0
  latency_patience_s:
    description:
      - Seconds that deletions may be held back by O(max_latency_ms) until the layer fails.
    type: float
    default: 60
    version_added: 0.1.0
  migration_wait_s:
    description:
      - Seconds to wait for hash slots in migration, whose keys a C(SCAN) may miss, until the layer fails.
    type: float
    default: 60
    version_added: 0.1.0
  timeout_s:
    description:
      - Seconds that a node of Redis, an HTTP cache or what is probed is given for an answer.
    type: float
    default: 5
    version_added: 0.1.0
  http_caches:
    description:
      - Layers of HTTP caches, inner before outer.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the layer.
        type: str
        required: true
        version_added: 0.1.0
      kind:
        description:
          - What the hosts run. V(nginx) has a purge module and answers 404 or 412 for what it does not hold.
          - V(varnish) gets C(PURGE) for a path, C(BAN) with a regular expression in C(X-Ban-Url) for a path with a star, and C(PURGE)
            with O(http_caches[].tags_header) for tags. The VCL for that is in the collection's documentation.
        type: str
        choices: [nginx, varnish]
        default: nginx
        version_added: 0.1.0
      urls:
        description:
          - URL of each host of the layer, without a path.
        type: list
        elements: str
        required: true
        version_added: 0.1.0
      host:
        description:
          - Name that is asked for, and that a certificate must be for, where it is not that of the URL.
        type: str
        version_added: 0.1.0
      method:
        description:
          - Method of HTTP that purges.
        type: str
        default: PURGE
        version_added: 0.1.0
      path_prefix:
        description:
          - What comes before a path, where a location of its own purges, such as V(/purge).
        type: str
        default: ""
        version_added: 0.1.0
      wildcards:
        description:
          - Whether the purge module of V(nginx) takes paths with a star at the end. Without it such a path is refused, since the module
            would look for the star itself and find nothing.
        type: bool
        default: false
        version_added: 0.1.0
      tags_header:
        description:
          - Header in which the layer takes tags, with spaces between them. Without it V(nginx) gets none. Defaults to C(xkey-purge) for
            V(varnish).
        type: str
        version_added: 0.1.0
      headers:
        description:
          - Headers of each request, such as one with a secret.
        type: dict
        version_added: 0.1.0
  http_validate_certs:
    description:
      - Whether the certificate of an HTTP cache, and of what is probed, must be signed by a trusted authority and be its own.
    type: bool
    default: true
    version_added: 0.1.0
  http_ca_certs:
    description:
      - File with the certificates of authorities that are trusted for HTTP beside those that the host trusts, in PEM format.
    type: path
    version_added: 0.1.0
  cloudfront:
    description:
      - A CDN on CloudFront, the outermost layer. Requires boto3 and botocore, at least 1.34.
    type: dict
    version_added: 0.1.0
    suboptions:
      distribution_id:
        description:
          - Id of the distribution.
        type: str
        required: true
        version_added: 0.1.0
      max_paths:
        description:
          - Paths that are invalidated at most. Where there are more, siblings are joined to a wildcard below their folder, deepest folders
            first. Without it all paths are sent, in as many invalidations as the limits of CloudFront ask for.
        type: int
        version_added: 0.1.0
      tags:
        description:
          - Whether tags are invalidated there too, each as C(#tag), which costs as much as a path. The distribution must have a
            C(CacheTagConfig), the header in which the origin gives the tags; one without it takes such an invalidation and flushes nothing.
          - A tag has at most 256 characters there, and is the same in capitals.
        type: bool
        default: false
        version_added: 0.1.0
      wait_timeout_s:
        description:
          - Seconds to wait until the invalidations of a pass are complete.
        type: float
        default: 900
        version_added: 0.1.0
      access_key:
        description:
          - Access key id to log in with. Requires O(cloudfront.secret_key). Without it the login is found as by the AWS command line.
        type: str
        version_added: 0.1.0
      secret_key:
        description:
          - Secret access key. Requires O(cloudfront.access_key).
        type: str
        version_added: 0.1.0
      session_token:
        description:
          - Token of temporary credentials. Requires O(cloudfront.access_key).
        type: str
        version_added: 0.1.0
      profile:
        description:
          - Profile of the AWS configuration to log in with. Excludes the other ways to log in.
        type: str
        version_added: 0.1.0
      region:
        description:
          - Region that requests are signed for.
        type: str
        default: us-east-1
        version_added: 0.1.0
      endpoint_url:
        description:
          - URL of another endpoint than that of AWS, such as an emulator.
        type: str
        version_added: 0.1.0
      validate_certs:
        description:
          - Whether the certificate of the endpoint must be signed by a trusted authority and be its own.
        type: bool
        default: true
        version_added: 0.1.0
      aws_ca_bundle:
        description:
          - File with the certificates of the authorities that are trusted, in PEM format.
        type: path
        version_added: 0.1.0
  in_flight_s:
    description:
      - Seconds that the longest request takes at any layer, with all that it may wait for and the time that a cache may serve or
        store what is stale by its own settings. The second pass waits so long before each layer. V(0) leaves the second pass out.
    type: float
    default: 10
    version_added: 0.1.0
  retries:
    description:
      - How often a layer that fails is tried again, after 1, 2, 4 ... seconds.
    type: int
    default: 2
    version_added: 0.1.0
  on_failure:
    description:
      - What becomes of the layers outside of one that fails. V(stop) leaves them as they are, since they would be filled again with what is
        stale. V(continue) flushes them all the same. The task fails either way.
    type: str
    choices: [stop, continue]
    default: stop
    version_added: 0.1.0
  verify:
    description:
      - Probes of what is served when all layers are flushed. The task fails when one does not hold.
    type: list
    elements: dict
    default: []
    version_added: 0.1.0
    suboptions:
      url:
        description:
          - URL to get.
        type: str
        required: true
        version_added: 0.1.0
      host:
        description:
          - Name that is asked for. Defaults to that of the URL.
        type: str
        version_added: 0.1.0
      headers:
        description:
          - Headers of the request.
        type: dict
        version_added: 0.1.0
      status:
        description:
          - Status that must be answered.
        type: int
        default: 200
        version_added: 0.1.0
      contains:
        description:
          - Text that must be served.
        type: str
        version_added: 0.1.0
      lacks:
        description:
          - Text that must not be served any more.
        type: str
        version_added: 0.1.0
      fresh:
        description:
          - Whether an answer with the header C(Age) must be younger than the last flush of the innermost HTTP cache.
        type: bool
        default: true
        version_added: 0.1.0
      reads:
        description:
          - How often it is asked; each answer must hold.
        type: int
        default: 3
        version_added: 0.1.0
  warm:
    description:
      - What is asked for after that, so that the caches hold it again. It never fails the task.
    type: dict
    version_added: 0.1.0
    suboptions:
      urls:
        description:
          - URLs to get, in this order.
        type: list
        elements: str
        required: true
        version_added: 0.1.0
      host:
        description:
          - Name that is asked for. Defaults to that of the URL.
        type: str
        version_added: 0.1.0
      headers:
        description:
          - Headers of each request.
        type: dict
        version_added: 0.1.0
      max_rate_s:
        description:
          - Requests in a second, at most.
        type: float
        default: 10
        version_added: 0.1.0
      slow_ms:
        description:
          - It ends when the middle one of the last eight answers took longer than so many milliseconds, or an answer is an error
            of the server.
        type: float
        default: 1000
        version_added: 0.1.0
attributes:
  check_mode:
    support: full
    details:
      - Redis is counted, with C(SCAN) and C(EXISTS). What HTTP caches and CloudFront hold they tell nobody, so what would be sent to them
        counts as a change, and nginx may turn out to hold none of it.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A second run reports no change in Redis and nginx when nothing matches any more. Bans of Varnish and invalidations of CloudFront
        are a change each time.
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.redis
seealso:
  - module: headroom.scale.cloudfront_distribution
  - module: headroom.scale.redis_cluster
"""

EXAMPLES = r"""
- name: Users that have changed are served anew everywhere
  headroom.scale.cache_flush:
    rules:
      user:
        patterns: ["user:{id}:*"]
        tags: ["user-{id}"]
        paths: ["/users/{id}", "/users/{id}/*"]
    entities:
      - user: [42, 43]
    nodes: "{{ cluster_nodes }}"
    login_user: flusher
    login_password: "{{ redis_flusher_password }}"
    ca_certs: /etc/ssl/certs/internal-ca.pem
    max_latency_ms: 20
    http_caches:
      - name: balancers
        urls: ["https://lb1.example.com", "https://lb2.example.com"]
        host: shop.example.com
        wildcards: true
    cloudfront: {distribution_id: E2QWRUHAPOMZQL}
    in_flight_s: 10
    verify:
      - {url: "https://shop.example.com/users/42", lacks: "old name"}
    warm:
      urls: ["https://shop.example.com/users/42"]
  run_once: true
  delegate_to: localhost

- name: Everything in the Redis of a test system
  headroom.scale.cache_flush:
    scope: all
    confirm_all: true
    nodes:
      - {name: redis.test.example.com}
    tls: false
    in_flight_s: 0
  run_once: true
  delegate_to: localhost
"""

RETURN = r"""
summary:
  description: What was flushed, in a sentence.
  returned: success
  type: str
  sample: "Flushed: 1204 keys in redis, 16 requests to balancers, 8 paths to cloudfront."
targets:
  description: >-
    What the rules made of the entities, with C(patterns), C(keys), C(tags), C(paths) and C(everything), and in C(ignored) those of them
    that no layer has.
  returned: success, and on failure when a layer had been begun
  type: dict
  sample:
    patterns: ["user:42:*"]
    keys: []
    tags: [user-42]
    paths: [/users/42, "/users/42/*"]
    everything: false
    ignored: []
plan:
  description: The steps in their order, with C(layer), C(pass) and C(wait_s), the seconds that a step waits after the one inside of it.
  returned: success, and on failure when a layer had been begun
  type: list
  elements: dict
  sample:
    - {layer: redis, pass: 1, wait_s: 0.0}
    - {layer: balancers, pass: 1, wait_s: 0.0}
    - {layer: redis, pass: 2, wait_s: 10.0}
    - {layer: balancers, pass: 2, wait_s: 10.0}
layers:
  description: One entry for each layer, inner before outer.
  returned: success, and on failure when a layer had been begun
  type: list
  elements: dict
  contains:
    name:
      description: Name of the layer, V(redis) and V(cloudfront) for these.
      type: str
      sample: balancers
    kind:
      description: What it is, V(redis), V(nginx), V(varnish) or V(cloudfront).
      type: str
      sample: nginx
    state:
      description: What became of it, V(flushed), V(counted), V(failed), V(skipped) or V(nothing_to_do).
      type: str
      sample: flushed
    what:
      description: What was flushed there.
      type: str
      sample: 4 requests to each of 2 hosts
    found:
      description: What was there and is not any more, over both passes, as far as the layer tells.
      type: int
      sample: 5
    sent:
      description: Keys that were looked at, requests or paths, over both passes.
      type: int
      sample: 16
    flushes:
      description: Passes that were confirmed.
      type: int
      sample: 2
    attempts:
      description: Attempts, of which there are as many as passes when none fails.
      type: int
      sample: 2
    duration_s:
      description: Seconds that it took, without the waits between passes.
      type: float
      sample: 0.031
    error:
      description: Why it failed, or nothing.
      type: str
      sample: ""
    keys:
      description: Keys that were deleted, or would be. For Redis.
      type: int
      sample: 1204
    keys_per_primary:
      description: Keys by primary. For Redis.
      type: dict
      sample: {redis1-6379: 400, redis2-6379: 398, redis3-6379: 406}
    primaries:
      description: Number of primaries. For Redis.
      type: int
      sample: 3
    members_pruned:
      description: Names that were taken off the sets of tags because their keys are gone. For Redis.
      type: int
      sample: 12
    latency_p99_ms:
      description: What a C(PING) beside the deletions took, for 99 of 100, in milliseconds. For Redis.
      type: float
      sample: 1.3
    latency_max_ms:
      description: What the longest C(PING) took, in milliseconds. For Redis.
      type: float
      sample: 2.1
    paused_s:
      description: Seconds for which O(max_latency_ms) held deletions back. For Redis.
      type: float
      sample: 0.0
    hosts:
      description: What each host answered in the last pass, with C(url), C(sent), C(purged) and C(absent). For HTTP caches.
      type: list
      elements: dict
      sample:
        - {url: "https://lb1.example.com:443", sent: 4, purged: 0, absent: 4}
    paths:
      description: What was invalidated in each pass. For CloudFront.
      type: list
      elements: str
      sample: [/users/42, "/users/42/*"]
    invalidations:
      description: Ids of the invalidations. For CloudFront.
      type: list
      elements: str
      sample: [I2J0I21PCUYOIK, IWHO6M6XFIHZJ]
    cost:
      description: >-
        Price of the invalidations of both passes in US dollars, C(usd_at_least) while the free paths of a month are all left, and
        C(usd_at_most) when none is. For CloudFront.
      type: dict
      sample: {usd_at_least: 0.0, usd_at_most: 0.02}
verify:
  description: One entry for each probe, with C(url), C(holds), C(reads), C(status), C(age_s) and C(reason).
  returned: success, and on failure when a layer had been begun
  type: list
  elements: dict
  sample:
    - {url: "https://shop.example.com/users/42", holds: true, reads: 3, status: 200, age_s: 0, reason: ""}
warm:
  description: >-
    How many of C(urls) were C(warmed), why it C(stopped) where it did, and what answers took, C(median_ms) and C(max_ms), in milliseconds.
  returned: success, and on failure when a layer had been begun
  type: dict
  sample: {urls: 1, warmed: 1, stopped: "", median_ms: 12.5, max_ms: 12.5}
duration_s:
  description: Seconds that all of it took.
  returned: success, and on failure when a layer had been begun
  type: float
  sample: 30.4
errors:
  description: Why it failed, with C(code) and C(message).
  type: list
  elements: dict
  returned: failure
  sample:
    - code: connection_refused
      message: "Failed to PURGE /users/42 on https://lb1.example.com:443: nothing listens there. Check the URL, and that the server runs."
      url: https://lb1.example.com:443
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._cache.converge import flush
from ansible_collections.headroom.scale.plugins.module_utils._cache.options import flush_spec, parse_options
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run


def main():
    spec = flush_spec().merge(connection_spec())
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    run(module, lambda module: flush(parse_options(module.params), module.check_mode))


if __name__ == "__main__":
    main()
