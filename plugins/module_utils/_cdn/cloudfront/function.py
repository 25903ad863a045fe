# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The edge rules as a CloudFront Function in JavaScript, for the runtime cloudfront-js-2.0. Pure.

One function serves both events of the viewer: a request is refused or sent to an origin, and a response gets its Cache-Control. Security
headers are the business of a response headers policy, which reaches error pages too; an answer that the function itself makes carries them.
"""

from __future__ import annotations

import json
import typing as t

from ..._common.errors import HeadroomError
from ..model import Cdn, Match, pattern_regex

RUNTIME = "cloudfront-js-2.0"
# what CloudFront takes, in bytes
MAX_BYTES = 10 * 1024
# tells cache and origin which origin was chosen; names that start with x-edge- are CloudFront's own
ORIGIN_HEADER = "x-cdn-origin"
COUNTRY_HEADER = "CloudFront-Viewer-Country"

# only what the runtime is documented to know: ECMAScript 5.1, const, arrow functions and Array.prototype.find of later ones
_REQUEST = """
function header(request, name) {
  return request.headers[name] ? request.headers[name].value : '';
}
function holds(rule, request, country, agent) {
  return (!rule.paths || rule.paths.some((path) => path.test(request.uri))) &&
    (!rule.countries || rule.countries.indexOf(country) >= 0) &&
    (!rule.agents || rule.agents.some((part) => agent.indexOf(part) >= 0));
}
function onRequest(request) {
  const country = header(request, 'cloudfront-viewer-country');
  const agent = header(request, 'user-agent').toLowerCase();
  const denied = deny.find((rule) => holds(rule, request, country, agent));
  if (denied) {
    return { statusCode: denied.status, headers: denialHeaders };
  }
"""
_ROUTE = """  const route = routes.find((rule) => holds(rule, request, country, agent));
  request.headers['x-cdn-origin'] = { value: route ? route.name : '-' };
  if (route && route.failover) {
    cf.createRequestOriginGroup({ originIds: route.origins, failoverCriteria: { statusCodes: route.failover } });
  } else if (route) {
    cf.selectRequestOriginById(route.name);
  }
"""
_RESPONSE = """  return request;
}
function onResponse(request, response) {
  const rule = cacheControl.find((rule) => rule.path.test(request.uri));
  if (rule) {
    response.headers['cache-control'] = { value: rule.value };
  }
  return response;
}
function handler(event) {
  return event.context.eventType === 'viewer-response' ? onResponse(event.request, event.response) : onRequest(event.request);
}
"""


class FunctionTooLarge(HeadroomError):
    """The rules do not fit into a function."""

    code = "function_too_large"


def events(cdn: Cdn) -> tuple[str, ...]:
    """Return the events that the function is needed for, none where the rules need no function."""
    found = []
    if cdn.edge.deny or cdn.edge.routes:
        found.append("viewer-request")
    if cdn.edge.cache_control:
        found.append("viewer-response")
    return tuple(found)


def render_function(cdn: Cdn) -> str | None:
    """Return the source of the function, ``None`` where the rules need none.

    :raises FunctionTooLarge: when CloudFront would not take it.
    """
    if not events(cdn):
        return None
    edge = cdn.edge
    denial = {**edge.security_headers.as_headers(), "cache-control": "no-store"}
    lines = ["import cf from 'cloudfront';"] if edge.routes else []
    lines += _table("deny", [[*_match(rule.match), f"status: {rule.status}"] for rule in edge.deny])
    lines.append(f"const denialHeaders = {_js({name: {'value': value} for name, value in sorted(denial.items())})};")
    if edge.routes:
        lines += _table("routes", [[*_match(rule.match), *_target(cdn, rule.origin)] for rule in edge.routes])
    lines += _table(
        "cacheControl", [[f"path: {_regex(rule.path)}", f"value: {_js(rule.value)}"] for rule in edge.cache_control]
    )
    source = "\n".join(lines) + _REQUEST + (_ROUTE if edge.routes else "") + _RESPONSE
    size = len(source.encode())
    if size > MAX_BYTES:
        raise FunctionTooLarge(
            f"Failed to render the edge rules of {cdn.name}: as a CloudFront Function they have {size} bytes, and CloudFront takes "
            f"{MAX_BYTES}. Merge rules, or shorten their paths and user agents.",
            size_bytes=size,
            max_bytes=MAX_BYTES,
        )
    return source


def _js(value: t.Any) -> str:
    """Return plain data as JavaScript, of ASCII alone."""
    return json.dumps(value, separators=(", ", ": "))


def _regex(pattern: str) -> str:
    return f"/^{pattern_regex(pattern).replace('/', chr(92) + '/')}$/"


def _table(name: str, rows: t.Sequence[t.Sequence[str]]) -> list[str]:
    return [f"const {name} = [", *(f"  {{ {', '.join(row)} }}," for row in rows), "];"]


def _match(match: Match) -> list[str]:
    parts = []
    if match.paths:
        parts.append(f"paths: [{', '.join(_regex(path) for path in match.paths)}]")
    if match.countries:
        parts.append(f"countries: {_js(list(match.countries))}")
    if match.user_agents:
        parts.append(f"agents: {_js([part.lower() for part in match.user_agents])}")
    return parts


def _target(cdn: Cdn, name: str) -> list[str]:
    group = cdn.group(name)
    if group is None:
        return [f"name: {_js(name)}"]
    origins = [{"originId": member} for member in group.members]
    return [f"name: {_js(name)}", f"origins: {_js(origins)}", f"failover: {_js(list(group.failover_status))}"]
