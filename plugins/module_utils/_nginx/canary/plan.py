# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Which shares a canary is to be given, as pure functions of what the load balancers say."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.errors import OptionError
from ..._common.nginx.model import Step
from .judge import Side

# balancer to what it says of its upstreams
Seen = t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]


@dataclass(frozen=True)
class Share:
    """What one load balancer says of a canary."""

    percent: int
    # a run has set it that did not end yet, or died
    lent: bool = False
    # grows with each change of the share
    changes: int = 0
    stable: Side = field(default_factory=Side)
    canary: Side = field(default_factory=Side)


def find(seen: Seen, upstream: str) -> dict[str, Share]:
    """Return balancer to what it says of the canary of an upstream.

    :raises OptionError: when one of them knows none.
    """
    found = {}
    for balancer, upstreams in sorted(seen.items()):
        known = {one["name"]: one["canary"] for one in upstreams if one.get("canary")}
        if upstream not in known:
            names = f"give one of: {', '.join(sorted(known))}" if known else "declare one with the module nginx_config"
            raise OptionError("upstream", upstream, f"{balancer} has no upstream of that name with a canary; {names}.")
        one = known[upstream]
        lent = one["lease_s"] is not None
        found[balancer] = Share(one["percent"], lent, one["changes"], _side(one["stable"]), _side(one["canary"]))
    return found


def _side(said: t.Mapping[str, t.Any]) -> Side:
    return Side(said["requests"], said["errors"], {int(number): count for number, count in said["histogram"]})


def both(shares: t.Iterable[Share]) -> tuple[Side, Side]:
    """Return what the stable side and the canary did at all load balancers together."""
    stable, canary = Side(), Side()
    for share in shares:
        stable, canary = stable.plus(share.stable), canary.plus(share.canary)
    return stable, canary


def is_at(shares: t.Iterable[Share], percent: int) -> bool:
    """Return whether all have that share, for good."""
    return all(share.percent == percent and not share.lent for share in shares)


def remaining(shares: t.Collection[Share], steps: t.Sequence[int]) -> tuple[int, ...]:
    """Return the shares that are still to be watched; none when the last one was reached everywhere.

    What a run left half done goes on at the least share that it reached everywhere, which is watched anew.
    """
    low, last = min(share.percent for share in shares), steps[-1]
    whole = is_at(shares, low)
    if low >= last and whole:
        return ()
    further = tuple(step for step in steps if step > low)
    return further if low == 0 or whole else (min(low, last), *further)


def steps_to(shares: t.Mapping[str, Share], upstream: str, percent: int) -> list[tuple[str, Step]]:
    """Return what each load balancer is told so that it has that share for good; nothing where it has."""
    found = []
    for balancer, share in sorted(shares.items()):
        if not is_at([share], percent):
            why = f"{share.percent} % for now -> {percent} %" if share.lent else f"{share.percent} -> {percent} %"
            found.append((balancer, Step("change", f"{balancer} upstream {upstream} canary", why)))
    return found


def promotion(
    shares: t.Collection[Share], upstream: str, steps: t.Sequence[int], step_s: float, min_requests: int
) -> list[Step]:
    """Return the steps of a promotion that holds all its limits."""
    found, before = [], " and ".join(str(percent) for percent in sorted({share.percent for share in shares}))
    what = f"upstream {upstream} canary"
    for percent in steps:
        why = f"{before} -> {percent} %, watched for {step_s:g} s and {min_requests} requests"
        found.append(Step("change", what, why))
        before = str(percent)
    return found + ([Step("keep", what, f"{steps[-1]} %")] if steps else [])


def shown(percents: t.Mapping[str, int], upstream: str) -> str:
    """Return shares as the diff has them."""
    return "".join(f"{balancer}: canary of {upstream}: {percent} %\n" for balancer, percent in sorted(percents.items()))
