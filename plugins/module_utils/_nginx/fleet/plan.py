# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What has to be done to the servers of a fleet of load balancers, as pure functions of what they say."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..._common.errors import OptionError
from ..._common.nginx.model import Step

Server = t.Mapping[str, t.Any]
# balancer to what it says of its upstreams
Seen = t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]


@dataclass(frozen=True)
class Wanted:
    """What is asked of one server on all load balancers; ``None`` and 0 as the module's options have them."""

    upstream: str
    server: str
    drained: bool | None
    weight: int | None


@dataclass(frozen=True)
class Change:
    """What one load balancer is told."""

    balancer: str
    fields: t.Mapping[str, str]
    step: Step


def find(seen: Seen, upstream: str, server: str) -> dict[str, Server]:
    """Return balancer to what it says of a server.

    :raises OptionError: when one of them does not know it.
    """
    found = {}
    for balancer, upstreams in seen.items():
        known = {one["name"]: one for one in upstreams}
        if upstream not in known:
            names = ", ".join(sorted(known)) or "none"
            raise OptionError(
                "upstream", upstream, f"{balancer} has no upstream of that name with 'runtime'; give one of: {names}."
            )
        servers = {one["address"]: one for one in known[upstream]["servers"]}
        if server not in servers:
            raise OptionError(
                "server",
                server,
                f"upstream {upstream} of {balancer} has none of that address; give one of: "
                f"{', '.join(sorted(servers))}.",
            )
        found[balancer] = servers[server]
    return found


def plan(seen: Seen, wanted: Wanted) -> list[Change]:
    """Return what each load balancer is told; nothing where it is so already.

    :raises OptionError: when a server is not known, or is the last one that takes requests.
    """
    found = find(seen, wanted.upstream, wanted.server)
    changes = []
    for balancer, now in sorted(found.items()):
        fields, why = {}, []
        weight = now["declared_weight"] if wanted.weight == 0 else wanted.weight
        if weight is not None and weight != now["weight"]:
            fields["weight"] = str(wanted.weight)
            why.append(f"weight {now['weight']} -> {weight}")
        if wanted.drained is not None and wanted.drained != now["drained"]:
            if wanted.drained:
                _require_another(seen, wanted, balancer)
            fields["drained"] = str(wanted.drained).lower()
            why.append("active -> drained" if wanted.drained else "drained -> active")
        if fields:
            step = Step("change", f"{balancer} upstream {wanted.upstream} server {wanted.server}", ", ".join(why))
            changes.append(Change(balancer, fields, step))
    return changes


def _require_another(seen: Seen, wanted: Wanted, balancer: str) -> None:
    servers = next(one for one in seen[balancer] if one["name"] == wanted.upstream)["servers"]
    others = [one for one in servers if one["address"] != wanted.server]
    if not any(one["state"] == "closed" and not one["drained"] for one in others):
        raise OptionError(
            "server",
            wanted.server,
            f"no other server of upstream {wanted.upstream} takes requests at {balancer}; "
            "bring another one back first.",
        )


def after(seen: Seen, wanted: Wanted) -> dict[str, Server]:
    """Return balancer to what it will say of the server."""
    found = {}
    for balancer, now in find(seen, wanted.upstream, wanted.server).items():
        weight = now["declared_weight"] if wanted.weight == 0 else wanted.weight
        found[balancer] = {
            **now,
            "weight": now["weight"] if weight is None else weight,
            "drained": now["drained"] if wanted.drained is None else wanted.drained,
        }
    return found


def shown(servers: t.Mapping[str, Server]) -> str:
    """Return servers as the diff has them."""
    return "".join(
        f"{balancer}: {one['address']}: {'drained' if one['drained'] else 'active'}, weight {one['weight']}\n"
        for balancer, one in sorted(servers.items())
    )
