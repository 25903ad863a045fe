# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Who streams from whom: the declared tree, hung from the primary that is really there. Pure."""

from __future__ import annotations

import typing as t


def topology(members: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    """Return the effective topology of one cluster.

    The inventory declares a tree. After a switchover or a failover another member is the primary: then the tree is hung from
    that one, the former primary takes a place below it, and everything else stays as declared.

    :param members: for each member ``name``, ``upstream`` (empty on the declared primary) and ``seen``, the instance as
        postgresql_instance_info returned it, or None for a member that was not reached.
    :returns: ``primary``, ``declared_primary``, ``upstreams`` (name to upstream, empty for the primary), ``children``,
        ``levels`` (names in the order in which they can be set up), ``fenced`` (members that hold the journal of a
        switchover) and ``errors`` (sentences; when there are any, nothing may be changed).
    """
    declared = {member["name"]: member.get("upstream") or "" for member in members}
    seen = {member["name"]: member.get("seen") for member in members}
    errors = _declared_errors(declared)
    result: dict[str, t.Any] = {
        "primary": None,
        "declared_primary": None,
        "upstreams": {},
        "children": {},
        "levels": [],
        "fenced": sorted(name for name, instance in seen.items() if instance and instance.get("fence")),
        "errors": errors,
    }
    if errors:
        return result
    root = next(name for name, upstream in declared.items() if not upstream)
    result["declared_primary"] = root
    primary, error = _find_primary(root, seen)
    if error or primary is None:
        result["errors"] = [error]
        return result
    upstreams = dict(declared)
    if primary != root:
        for name, upstream in declared.items():
            if upstream == root:
                upstreams[name] = primary
        upstreams[root], upstreams[primary] = primary, ""
    children: dict[str, list[str]] = {name: [] for name in upstreams}
    for name, upstream in sorted(upstreams.items()):
        if upstream:
            children[upstream].append(name)
    levels, level = [], [primary]
    while level:
        levels.append(level)
        level = [child for name in level for child in children[name]]
    result.update(primary=primary, upstreams=upstreams, children=children, levels=levels)
    return result


def _declared_errors(declared: t.Mapping[str, str]) -> list[str]:
    roots = sorted(name for name, upstream in declared.items() if not upstream)
    if len(roots) != 1:
        found = ", ".join(roots) or "none"
        return [
            f"Exactly one member must have no postgresql_replication_upstream, since that one is the primary; members without one: {found}."
        ]
    errors = [
        f"postgresql_replication_upstream of {name} is {upstream!r}, which is no member of the cluster."
        for name, upstream in sorted(declared.items())
        if upstream and upstream not in declared
    ]
    if errors:
        return errors
    for name in sorted(declared):
        path, at = [name], declared[name]
        while at and at not in path:
            path.append(at)
            at = declared[at]
        if at:
            return [f"postgresql_replication_upstream makes a circle: {' from '.join([*path, at])}."]
    return []


def _find_primary(root: str, seen: t.Mapping[str, t.Mapping[str, t.Any] | None]) -> tuple[str | None, str | None]:
    reached = {name: instance for name, instance in seen.items() if instance is not None}
    unreached = sorted(seen.keys() - reached.keys())
    primaries = sorted(name for name, instance in reached.items() if instance["role"] == "primary")
    live = [name for name in primaries if reached[name]["running"]]
    if len(live) > 1:
        return None, (
            f"Two primaries are live: {' and '.join(live)}. Nothing is changed. Decide which one is right and stop the other; "
            "with postgresql_replication_rebuild it can then be rejoined."
        )
    if live:
        return live[0], None
    fenced = sorted(name for name, instance in reached.items() if instance.get("fence"))
    if fenced:
        candidate = reached[fenced[0]]["fence"].get("candidate")
        return None, (
            f"A switchover from {fenced[0]} to {candidate} was interrupted. Run the switchover playbook with "
            f"switchover_to={candidate} to finish it, or with switchover_rollback=true to undo it."
        )
    if unreached:
        return None, (
            f"No live primary was found, and these members were not reached, one of which may be it: {', '.join(unreached)}."
        )
    if not any(instance["exists"] for instance in reached.values()):
        return root, None
    if len(primaries) == 1:
        name = primaries[0]
        newer = sorted(
            other
            for other, instance in reached.items()
            if (instance["timeline"] or 0) > (reached[name]["timeline"] or 0)
        )
        if newer:
            return (
                None,
                f"{name} is a stopped primary on an older timeline than {', '.join(newer)}; it must not be started.",
            )
        return name, None
    if primaries:
        return None, f"No primary is live, and several were primaries before they stopped: {', '.join(primaries)}."
    return None, "No member is a primary, although there is data. Promote one: start it and run pg_promote() on it."
