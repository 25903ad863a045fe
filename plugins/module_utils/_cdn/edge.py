# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What the edge rules of a CDN mean: which answer a request gets. Every renderer is tested against this. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .model import Behavior, Cdn, Match, path_matches


@dataclass(frozen=True)
class Request:
    """What a rule can look at. ``path`` has no query string; ``country`` is ``None`` where it is not known."""

    path: str
    country: str | None = None
    user_agent: str = ""


@dataclass(frozen=True)
class Decision:
    """What becomes of a request.

    ``status`` is set where the edge answers by itself, and ``origin`` where it does not. ``headers``, by their names in lower case, are
    those that the edge sets on the answer over what the origin says.
    """

    status: int | None
    origin: str | None
    headers: t.Mapping[str, str] = field(default_factory=dict)


def decide(cdn: Cdn, request: Request) -> Decision:
    """Return what the edge makes of a request."""
    headers = cdn.edge.security_headers.as_headers()
    for rule in cdn.edge.deny:
        if matches(rule.match, request):
            # who is refused now may be let in later
            return Decision(rule.status, None, {**headers, "cache-control": "no-store"})
    origin = next((rule.origin for rule in cdn.edge.routes if matches(rule.match, request)), None)
    value = next((rule.value for rule in cdn.edge.cache_control if path_matches(rule.path, request.path)), None)
    if value is not None:
        headers["cache-control"] = value
    return Decision(None, origin or behavior_of(cdn, request.path).origin, headers)


def behavior_of(cdn: Cdn, path: str) -> Behavior:
    """Return the behaviour that a path belongs to: the first that matches, or else the default."""
    return next((behavior for behavior in cdn.behaviors if path_matches(behavior.path, path)), cdn.default)


def matches(match: Match, request: Request) -> bool:
    """Return whether a condition holds. User agents are compared by a part of theirs, whatever its case."""
    agent = request.user_agent.lower()
    return (
        (not match.paths or any(path_matches(pattern, request.path) for pattern in match.paths))
        and (not match.countries or request.country in match.countries)
        and (not match.user_agents or any(part.lower() in agent for part in match.user_agents))
    )
