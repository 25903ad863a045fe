# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What must hold before a bucket is split: each reason that would make it fail later, said at once."""

from __future__ import annotations

import asyncio
import typing as t

from ..members import Members
from ..model import Bucket
from ..move import catalog
from ..move.model import Leaf, Move
from ..move.preflight import Checked, Needs, attached_reason, free_bytes, leaf_reason, shard_facts, shard_reasons


async def check(members: Members, splits: t.Sequence[tuple[Move, tuple[Bucket, ...]]], min_free_bytes: int) -> Checked:
    """Look at shards, routers and leaves of the splits that are about to begin.

    :param splits: each with its parts; ``bytes_total`` says what it copies.
    """
    found = Checked()
    names = sorted({move.source for move, _parts in splits})
    facts = await members.each(
        lambda name: shard_facts(members, name), [*names, *(one.name for one in members.routers)]
    )
    free = await members.each(lambda name: free_bytes(members, name), names)
    for name in names:
        # one after the other, and each gives its former leaf up
        most = max(move.bytes_total for move, _parts in splits if move.source == name)
        found.all += shard_reasons(name, facts[name], Needs(coming_bytes=most), free[name], min_free_bytes)
    for router in members.routers:
        found.all += router_reasons(router.name, facts[router.name])
    if found.all:
        return found
    for move, parts in splits:
        for leaf in move.leaves:
            reason = await _leaf_reason(members, move, leaf, parts)
            if reason is not None:
                found.moves[move.label] = reason
                break
    return found


def router_reasons(name: str, facts: t.Mapping[str, t.Any]) -> list[str]:
    """Return why a router cannot take part, each with its remedy. Pure."""
    reasons = []
    if facts["in_recovery"]:
        reasons.append(f"{name}: it is a standby; name the primary.")
    if facts["prepared_free"] < 1:
        reasons.append(
            f"{name}: {max(facts['prepared_free'], 0)} of max_prepared_transactions are free and 1 is needed, since routers commit a split "
            "together with its shard; raise it and restart."
        )
    return reasons


async def _leaf_reason(members: Members, move: Move, leaf: Leaf, parts: t.Sequence[Bucket]) -> str | None:
    shard = move.source
    there = [leaf.retired, *(Leaf(leaf.table, part.number).name for part in parts)]
    source, parent, *taken = await asyncio.gather(
        catalog.facts(members, shard, leaf.schema, leaf.name),
        catalog.facts(members, shard, leaf.schema, leaf.parent),
        *(catalog.facts(members, shard, leaf.schema, name) for name in there),
    )
    names = [f"{leaf.schema}.{name}" for name, one in zip(there, taken, strict=True) if one is not None]
    reason = leaf_reason(move, leaf, source, parent, parent, names)
    if reason is not None or source is None:
        return reason
    odd = [one["name"] for one in source["columns"] if "%" in one["name"]]
    if odd:
        return f"column {odd[0]} of {leaf.table.name} has a percent sign in its name, which a split cannot follow; rename it."
    attached = await attached_reason(members, move, leaf)
    if attached is not None:
        return attached
    for router in members.routers:
        if await catalog.facts(members, router.name, leaf.schema, leaf.parent) is None:
            return f"{leaf.table.name} is not on router {router.name}; run postgresql_shard_map."
    return None
