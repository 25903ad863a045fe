#!/usr/bin/python
# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the nginx load balancer of a host as declared."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_config
short_description: Keep the nginx load balancer of a host as declared
version_added: 0.1.0
author:
  - headroom.scale contributors (@headroom-scale)
description:
  - Renders the whole configuration of nginx from the description of upstreams and virtual servers, lets nginx check it aside, swaps
    it in one step, reloads, and waits until new workers serve it and each upstream answers a probe.
  - When the new configuration does not serve, what was there is put back and reloaded, and the task fails. A second run tries, and
    reports, the same again.
  - What the installed nginx cannot do is refused before anything is changed, with the name of what is missing.
  - nginx balances by itself where it can. What it cannot do alone, such as active checks, a circuit breaker and changes at run time, is
    done inside of it by its Lua module. That state is shared by all workers, and kept over a reload.
extends_documentation_fragment:
  - headroom.scale.attributes
  - headroom.scale.nginx_host
attributes:
  check_mode:
    support: full
    details:
      - Lets nginx check the configuration too. Where nginx is not installed yet, it says what the run does once it is.
  diff_mode:
    support: full
    details:
      - Compares what is declared, one fact a line, and not the text of the configuration. Certificates and keys are shown as digests.
  idempotent:
    support: full
options:
  upstreams:
    description:
      - Sets of servers that requests are spread over.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the upstream.
        type: str
        required: true
      servers:
        description:
          - Its servers.
        type: list
        elements: dict
        required: true
        suboptions:
          address:
            description:
              - Where it listens, as V(HOST:PORT). A name is looked up when the module runs.
            type: str
            required: true
          weight:
            description:
              - Its share of the requests beside the others, from 1 to 1000.
            type: int
            default: 1
          backup:
            description:
              - Whether it gets requests only while no other server can.
            type: bool
            default: false
      algorithm:
        description:
          - How a server is chosen. V(round_robin) in turn; V(least_conn) the one with the fewest requests in flight; V(least_time) the one
            that answers fastest for what it has in flight, where a former answer counts half as much every two seconds; V(random_two)
            the less loaded of two drawn ones; V(ip_hash) by the client's network; V(hash) by O(upstreams[].hash_key) on a consistent
            ring. All heed weights.
        type: str
        choices: [round_robin, least_conn, ip_hash, hash, random_two, least_time]
        default: round_robin
      hash_key:
        description:
          - What V(hash) is made of, as variables of nginx.
        type: str
        default: $request_uri
      max_fails:
        description:
          - Requests that a server may fail within O(upstreams[].fail_timeout_s) before it gets no more. No connection and a time-out are
            failures, and with Lua the statuses 502, 503 and 504 too.
        type: int
        default: 3
      fail_timeout_s:
        description:
          - Seconds in which failures are counted, and for which a server is left alone when there is no O(upstreams[].breaker).
        type: float
        default: 30
      slow_start_s:
        description:
          - Seconds in which a server that comes back grows to its full weight. V(0) gives it at once.
        type: float
        default: 0
      active_check:
        description:
          - Requests made to each server to see whether it is well. One worker makes them for all.
        type: dict
        suboptions:
          path:
            description:
              - What is asked for.
            type: str
            default: /
          interval_s:
            description:
              - Seconds between two checks of a server.
            type: float
            default: 10
          timeout_s:
            description:
              - Seconds that each step of a check may take.
            type: float
            default: 5
          fails:
            description:
              - Failed checks in a row that take a server out.
            type: int
            default: 3
          passes:
            description:
              - Passed checks in a row that a server needs to come back.
            type: int
            default: 2
          statuses:
            description:
              - HTTP statuses that pass.
            type: list
            elements: int
            default: [200]
          body:
            description:
              - Text that the first 64 KiB of the answer must hold.
            type: str
          host:
            description:
              - The C(Host) that is asked for. Without it, the server's address.
            type: str
      breaker:
        description:
          - A circuit breaker for each server. Once it failed it is open and gets no requests; then half-open, with a few on trial, whose
            success closes it and whose failure opens it for twice as long.
          - Without it, a server comes back after O(upstreams[].fail_timeout_s), with Lua after one request on trial.
        type: dict
        suboptions:
          open_s:
            description:
              - Seconds that it is open the first time.
            type: float
            default: 30
          max_open_s:
            description:
              - Seconds that it is open at most.
            type: float
            default: 60
          half_open_requests:
            description:
              - Requests on trial. All must succeed.
            type: int
            default: 1
      max_ejected_percent:
        description:
          - Share of the servers that may be out at once, in percent, rounded down. One may be in any case, the last one may not; with V(0)
            none may, with V(100) all may. Where there are backup servers all others may be out. It counts where Lua balances.
        type: int
        default: 50
      affinity:
        description:
          - Keeps a client at one server by a cookie, as long as that server takes requests.
        type: dict
        suboptions:
          cookie:
            description:
              - Name of the cookie.
            type: str
            required: true
          ttl_s:
            description:
              - Seconds that the cookie lives. V(0) is until the browser ends.
            type: int
            default: 0
      keepalive:
        description:
          - Idle connections to the servers that each worker keeps open.
        type: int
        default: 64
      runtime:
        description:
          - Whether servers can be drained and weighed by M(headroom.scale.nginx_upstream), and are shown with their state.
            That needs Lua. Without it, and without other options that need Lua, nginx balances alone.
        type: bool
        default: true
      canary:
        description:
          - A second side that gets a share of the requests, such as a new release. M(headroom.scale.nginx_canary) changes the
            share at run time; what it set holds until another O(upstreams[].canary.percent), or a canary that has none of the
            servers, is declared.
          - Where no server of the canary can be reached, the upstream's own servers answer; that counts as an error of the canary.
            That needs Lua.
        type: dict
        suboptions:
          servers:
            description:
              - Its servers. They are an upstream of their own, called like this one followed by C(-canary), and with the same options.
                Mutually exclusive with O(upstreams[].canary.upstream).
            type: list
            elements: dict
            suboptions:
              address:
                description:
                  - Where it listens, as V(HOST:PORT). A name is looked up when the module runs.
                type: str
                required: true
              weight:
                description:
                  - Its share of the requests beside the others, from 1 to 1000.
                type: int
                default: 1
              backup:
                description:
                  - Whether it gets requests only while no other server can.
                type: bool
                default: false
          upstream:
            description:
              - Another upstream that is the canary. It has none itself, and O(upstreams[].runtime).
            type: str
          percent:
            description:
              - Its share of the requests.
            type: int
            default: 0
          cookie:
            description:
              - Keeps a client at its side by a cookie of that name. Clients that are at the canary stay there while its share
                grows. Needed with O(upstreams[].affinity). Without it each request is drawn by itself.
            type: str
          cookie_ttl_s:
            description:
              - Seconds that the cookie lives. V(0) is until the browser ends.
            type: int
            default: 0
  virtual_servers:
    description:
      - What clients talk to. The first one of a port also gets what is meant for no other.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - Name of the virtual server.
        type: str
        required: true
      server_names:
        description:
          - Names of hosts that it is for. V(_) is all others.
        type: list
        elements: str
        default: [_]
      port:
        description:
          - TCP port.
        type: int
        required: true
      upstream:
        description:
          - Name of the upstream that requests go to.
        type: str
        required: true
      tls:
        description:
          - Makes it speak TLS 1.2 and 1.3, and HTTP/2.
        type: dict
        suboptions:
          certificate:
            description:
              - Certificate, followed by those of the authorities between, in PEM format.
            type: str
            required: true
          key:
            description:
              - Its private key in PEM format.
            type: str
            required: true
      headers:
        description:
          - Headers that each answer gets. Without it C(X-Content-Type-Options), C(X-Frame-Options), C(Referrer-Policy) and, with TLS,
            C(Strict-Transport-Security).
        type: dict
      limit:
        description:
          - Limits the requests of each client address. What is above is answered with status 429.
        type: dict
        suboptions:
          requests_per_minute:
            description:
              - Requests that a client may make in the long run.
            type: int
            default: 100
          burst:
            description:
              - Requests beyond that rate that are served at once, before any is refused.
            type: int
            default: 20
          dry_run:
            description:
              - Whether requests above are only logged.
            type: bool
            default: false
      allow:
        description:
          - Networks whose clients are served. Others get status 403. Empty is all.
        type: list
        elements: str
        default: []
      deny:
        description:
          - Networks whose clients get status 403. It goes before O(virtual_servers[].allow).
        type: list
        elements: str
        default: []
      modsecurity:
        description:
          - Whether ModSecurity looks at requests with the OWASP rules, V(detection) to log or V(prevention) to refuse them.
        type: str
        choices: ["off", detection, prevention]
        default: "off"
      connect_timeout_s:
        description:
          - Seconds that a server may take to accept a connection.
        type: float
        default: 5
      send_timeout_s:
        description:
          - Seconds between two writes to a server.
        type: float
        default: 10
      read_timeout_s:
        description:
          - Seconds between two reads from a server.
        type: float
        default: 10
      ipv6:
        description:
          - Whether it listens on addresses of version 6 too.
        type: bool
        default: false
      redirect_port:
        description:
          - TCP port at which plain HTTP is answered with status 308, to the same place with TLS. Requires O(virtual_servers[].tls).
        type: int
      allow_countries:
        description:
          - Countries whose clients are served, by their codes of two capital letters. Others, and clients whose country is not
            known, get status 403. Empty is all. Requires O(country).
        type: list
        elements: str
        default: []
      deny_countries:
        description:
          - Countries whose clients get status 403. Mutually exclusive with O(virtual_servers[].allow_countries). Requires O(country).
        type: list
        elements: str
        default: []
  management:
    description:
      - Where state is read and changed, over HTTP. Only the networks named here, and the host itself, get in; there is no password, so name
        none but those that manage the load balancer.
      - C(/upstreams) is JSON, C(/metrics) is for Prometheus.
    version_added: 0.1.0
  country:
    description:
      - Where a client's country is known from.
    type: dict
    version_added: 0.1.0
    suboptions:
      database:
        description:
          - File with a database of countries in MMDB format, on this host. nginx reads it when it starts or reloads. It needs the package
            C(libnginx-mod-http-geoip2). Mutually exclusive with O(country.header).
        type: path
      header:
        description:
          - Header in which O(trusted_proxies) tell the country. From others it does not count.
        type: str
notes:
  - An upstream that answered no probe before the task, and of which the task changes nothing, does not make it fail. It is in RV(silent).
seealso:
  - module: headroom.scale.nginx_canary
  - module: headroom.scale.nginx_upstream
"""

EXAMPLES = r"""
- name: Three servers, checked, behind one address
  headroom.scale.nginx_config:
    upstreams:
      - name: shop
        algorithm: least_conn
        servers:
          - {address: 192.0.2.21:8080, weight: 3}
          - {address: 192.0.2.22:8080, weight: 2}
          - {address: 192.0.2.23:8080}
        active_check: {path: /health}
        breaker: {}
        slow_start_s: 30
    virtual_servers:
      - name: shop
        port: 443
        upstream: shop
        tls:
          certificate: "{{ lookup('ansible.builtin.file', 'shop.crt') }}"
          key: "{{ lookup('ansible.builtin.file', 'shop.key') }}"
        limit: {requests_per_minute: 100, burst: 20}
    management:
      address: 192.0.2.11
      allow: [192.0.2.5]
  become: true
"""

RETURN = r"""
release:
  description: Digest of the configuration; what C(/release) at the management address answers with.
  returned: success
  type: str
  sample: 0f3a5c1b7d9e2468
plan:
  description: The steps, each with C(action), C(object) and C(why).
  returned: always
  type: list
  elements: dict
  sample:
    - action: change
      object: upstream shop server 192.0.2.22:8080
      why: weight 2 -> weight 4
    - action: reload
      object: nginx
      why: its configuration changes
upstreams:
  description: Who balances each upstream, with C(name), C(balanced_by) (V(nginx) or V(lua)) and C(reasons), the options that need Lua.
  returned: success
  type: list
  elements: dict
  sample:
    - name: shop
      balanced_by: lua
      reasons: [active_check, breaker, runtime, slow_start_s]
nginx_version:
  description: Version of the installed nginx, empty where none is.
  returned: success
  type: str
  sample: 1.26.3
silent:
  description: Upstreams that answered no probe before the task.
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
      message: "Failed to put the configuration in force: upstream shop does not answer a probe. What was there is in force again."
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.run import run  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._nginx.converge import converge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._nginx.options import config_spec  # noqa: E402


def main():
    module = AnsibleModule(supports_check_mode=True, **config_spec().to_kwargs())
    run(module, lambda module: converge(module.params, module.check_mode))


if __name__ == "__main__":
    main()
