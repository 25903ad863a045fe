# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Look at a sharded cluster as a whole: where everything is, what it carries, what moves, and what was left behind. Reads only.

All members are asked at once. One that cannot be read is named, and nothing is said of what only it knows.
"""

from __future__ import annotations

import asyncio
import math
import typing as t
from dataclasses import dataclass, replace

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError
from ..._common.files import check_writable, write_file
from ..connection import Login
from .members import Member, MemberError, Members, members_spec, parse_cluster, parse_members, parse_timeout
from .model import BucketId, ShardMap, bucket_name
from .move.model import OPEN_STATES, newest
from .observed import MIN_VERSION, SUFFIX, Seen, leaf_name, merge
from .options import check
from .plan import mixed_load
from .read import member_facts, read_relations
from .render import to_html, to_prometheus, to_table
from .schema import PREFIX

FIGURES = ("size_bytes", "rows", "reads", "writes")
# what a lock on a leaf may take before its size is estimated from what VACUUM wrote down
_LOCK_TIMEOUT = "200ms"
_NO_LOCK = "55P03"

_MEMBER_SQL = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
    AND pid <> pg_backend_pid()) AS connections,
  (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
    AND state = 'active' AND pid <> pg_backend_pid()) AS active,
  current_setting('max_connections')::int AS max_connections,
  (SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database())::bigint AS transactions,
  (SELECT coalesce(max(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
      restart_lsn)), 0)::bigint FROM pg_replication_slots
    WHERE starts_with(slot_name, 'headroom_') AND database = current_database()) AS retained_wal_bytes
"""

# sizes are taken under a short lock timeout, since a switch and a transaction in doubt hold the locks of their leaves
_LEAVES_SQL = """
SELECT n.nspname || '.' || c.relname AS name, {size} AS size_bytes, greatest(s.n_live_tup, c.reltuples::bigint, 0) AS rows,
  (s.seq_tup_read + coalesce(s.idx_tup_fetch, 0))::bigint AS reads, (s.n_tup_ins + s.n_tup_upd + s.n_tup_del)::bigint AS writes
FROM unnest(%s::text[], %s::text[]) AS w (schema, name)
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class p ON p.relnamespace = n.oid AND p.relname = w.name
  JOIN pg_inherits h ON h.inhparent = p.oid JOIN pg_class c ON c.oid = h.inhrelid AND c.relkind = 'r'
  JOIN pg_stat_all_tables s ON s.relid = c.oid
"""
_SIZE = "pg_total_relation_size(c.oid)::bigint"
_SIZE_ESTIMATE = """
(c.relpages + coalesce((SELECT sum(i.relpages) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid), 0))
  ::bigint * current_setting('block_size')::bigint
"""

_OBJECTS_SQL = """
SELECT 'prepared_transaction' AS kind, gid AS name, round(extract(epoch FROM clock_timestamp() - prepared))::bigint AS age_s
  FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, %(prefix)s)
UNION ALL SELECT 'subscription', subname, NULL FROM pg_subscription
  WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND starts_with(subname, %(prefix)s)
UNION ALL SELECT 'slot', slot_name, NULL FROM pg_replication_slots
  WHERE database = current_database() AND starts_with(slot_name, %(prefix)s)
UNION ALL SELECT 'publication', pubname, NULL FROM pg_publication WHERE starts_with(pubname, %(prefix)s)
UNION ALL SELECT 'log', relname, NULL FROM pg_class
  WHERE relnamespace = to_regnamespace('headroom') AND relkind = 'r' AND starts_with(relname, %(prefix)s)
"""
_MOVES_SQL = """
SELECT id, plan_id, group_name, bucket, source, target, state, step, detail, bytes_total, bytes_done, rows, error,
  round(extract(epoch FROM clock_timestamp() - created_at))::bigint AS age_s,
  round(extract(epoch FROM retire_after - clock_timestamp()))::bigint AS retire_in_s
FROM headroom.move WHERE state = ANY (%s)
"""


def info_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    return members_spec().merge(
        ArgumentSpec(
            {
                "load": {"type": "dict"},
                "sample_s": {"type": "float", "default": 0.0},
                "hot_factor": {"type": "float", "default": 4.0},
                "with_buckets": {"type": "bool", "default": True},
                "require_all": {"type": "bool", "default": True},
                "report_file": {"type": "path"},
            }
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    cluster: str
    members: tuple[Member, ...]
    login: Login
    timeout_s: float
    load: t.Mapping[str, float]
    sample_s: float = 0.0
    hot_factor: float = 4.0
    with_buckets: bool = True
    require_all: bool = True
    report_file: str | None = None


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    seconds, factor = params["sample_s"], params["hot_factor"]
    check("sample_s", seconds, 0 <= seconds <= 3600, "give a number of seconds from 0 to 3600.")
    check("hot_factor", factor, math.isfinite(factor) and factor >= 1, "give a number of at least 1.")
    load = params["load"] or {"size_bytes": 1}
    for name, weight in load.items():
        check("load", name, name in FIGURES, f"weigh some of {', '.join(FIGURES)}.")
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        check(f"load.{name}", weight, number and 0 <= weight < math.inf, "give a number that is not negative.")
    check("load", load, any(weight > 0 for weight in load.values()), "give at least one figure a weight above 0.")
    if params["report_file"] is not None:
        check_writable("report_file", params["report_file"])
    return Options(
        parse_cluster(params),
        parse_members(params),
        Login.from_params(params),
        parse_timeout(params),
        {str(name): float(weight) for name, weight in load.items()},
        seconds,
        factor,
        params["with_buckets"],
        params["require_all"],
        params["report_file"],
    )


def info(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Look at all members and return what they are and have.

    :param check_mode: whether no file is to be written.

    :raises HeadroomError: with the result, when a member could not be read and all are required.
    """
    import psycopg  # noqa: F401  # fail before anything is contacted

    return asyncio.run(_look(options, check_mode))


@dataclass
class _View:
    """What one member gave."""

    seen: Seen
    figures: dict[str, t.Any]
    # by name of the leaf
    leaves: dict[str, dict[str, int]]
    objects: list[dict[str, t.Any]]
    moves: list[dict[str, t.Any]]
    # whether sizes are estimates, since leaves were locked
    estimated: bool = False


async def _look(options: Options, check_mode: bool) -> dict[str, t.Any]:
    async with Members(options.members, options.login, options.timeout_s) as members:
        views, errors = await _round(members, list(members.members))
        if not views:
            raise HeadroomError(
                str(errors[0]), code=errors[0].code, result={"errors": [one.as_dict() for one in errors[1:]]}
            )
        for name, view in views.items():
            stored = view.seen.stored
            if stored is not None and stored.cluster != options.cluster:
                raise HeadroomError(
                    f"Failed to look at the cluster {options.cluster}: {name} ({view.seen.member.address}) belongs to {stored.cluster}. "
                    "Correct the option 'cluster', or its address.",
                    code="other_cluster",
                    member=name,
                )
        before: dict[str, dict[str, dict[str, int]]] = {}
        if options.sample_s:
            before = {name: {leaf: dict(one) for leaf, one in view.leaves.items()} for name, view in views.items()}
            await asyncio.sleep(options.sample_s)
            views, more = await _round(members, list(views))
            errors += more
    result, page = report(options, views, errors, before)
    if options.report_file is not None and not check_mode:
        write_file("report_file", options.report_file, page, 0o644, result)
    if errors and options.require_all:
        raise HeadroomError(
            f"{errors[0]} {len(errors)} of {len(options.members)} members could not be read.",
            code=errors[0].code,
            result={**result, "errors": [one.as_dict() for one in errors[1:]]},
        )
    return result


async def _round(members: Members, names: list[str]) -> tuple[dict[str, _View], list[HeadroomError]]:
    facts = await members.try_each(lambda name: member_facts(members, name), names)
    seen = {name: one for name, one in facts.items() if isinstance(one, Seen)}
    errors = [one for one in facts.values() if isinstance(one, HeadroomError)]
    tables = sorted(
        {table.name for one in seen.values() if one.stored for group in one.stored.map.groups for table in group.tables}
    )
    done = await members.try_each(lambda name: _view(members, seen[name], tables), list(seen))
    errors += [one for one in done.values() if isinstance(one, HeadroomError)]
    return {name: one for name, one in done.items() if isinstance(one, _View)}, errors


async def _view(members: Members, seen: Seen, tables: t.Sequence[str]) -> _View:
    name = seen.member.name

    async def rows(query: str, params: t.Any = None) -> list[dict[str, t.Any]]:
        return await members.rows(name, query, params, verb="look at")

    if seen.version < MIN_VERSION:
        member = seen.member
        raise MemberError(
            f"Failed to look at {name} on {member.host}:{member.port}: it runs PostgreSQL {seen.version // 10000}, "
            f"and {MIN_VERSION // 10000} or later is needed. Upgrade it.",
            code="server_too_old",
            member=name,
        )
    relations = await read_relations(members, name, tables) if tables else {}
    figures = (await rows(_MEMBER_SQL))[0]
    objects = await rows(_OBJECTS_SQL, {"prefix": PREFIX})
    moves = await rows(_MOVES_SQL, [list(OPEN_STATES)]) if seen.stored else []
    leaves: list[dict[str, t.Any]] = []
    estimated = False
    if seen.member.role == "shard" and tables:
        parts = [table.split(".", 1) for table in tables]
        params = [[one[0] for one in parts], [one[1] for one in parts]]
        await rows("SELECT set_config('lock_timeout', %s, false)", [_LOCK_TIMEOUT])
        try:
            leaves = await rows(_LEAVES_SQL.format(size=_SIZE), params)
        except MemberError as error:
            if error.sqlstate != _NO_LOCK:
                raise
            estimated = True
            leaves = await rows(_LEAVES_SQL.format(size=_SIZE_ESTIMATE), params)
    return _View(
        replace(seen, relations=relations),
        figures,
        {row["name"]: {figure: int(row[figure] or 0) for figure in FIGURES} for row in leaves},
        objects,
        moves,
        estimated,
    )


# --- what follows from it, without I/O


def report(
    options: Options,
    views: t.Mapping[str, _View],
    errors: t.Sequence[HeadroomError],
    before: t.Mapping[str, t.Mapping[str, t.Mapping[str, int]]],
) -> tuple[dict[str, t.Any], str]:
    """Return the result of the module, and the page that shows it.

    :param before: figures of leaves a while ago, by member, from which reads and writes in a second are counted.
    """
    shard_map = merge({name: view.seen for name, view in views.items()})
    moves = newest(row for view in views.values() for row in view.moves)
    buckets = _buckets(options, views, shard_map, before) if shard_map else []
    shards = _shards(options, views, shard_map, buckets) if shard_map else []
    taking = [one for one in shards if one["fair_share"] and one["imbalance"] is not None]
    result = {
        "cluster": options.cluster,
        "epoch": shard_map.epoch if shard_map else None,
        "map": {**shard_map.as_dict(), "cluster": options.cluster} if shard_map else None,
        "complete": not errors,
        "imbalance": max((one["imbalance"] for one in taking), default=None),
        "members": _members(options, views, shard_map, errors),
        "shards": shards,
        "groups": _groups(shard_map, buckets) if shard_map else [],
        "hot_buckets": [one for one in buckets if one["hot"]],
        "moves": [_move(row) for _id, row in sorted(moves.items())],
        "orphans": _orphans(views, moves),
        "estimated_sizes": sorted(name for name, view in views.items() if view.estimated),
    }
    if options.with_buckets:
        result["buckets"] = buckets
    result["summary"] = {"text": _summary(result)}
    result["table"] = to_table(result)
    result["prometheus"] = to_prometheus({**result, "buckets": buckets})
    return {"changed": False, **result}, to_html({**result, "buckets": buckets})


def _members(
    options: Options, views: t.Mapping[str, _View], shard_map: ShardMap | None, errors: t.Sequence[HeadroomError]
) -> list[dict[str, t.Any]]:
    troubles = {str(one.facts.get("member")): str(one) for one in errors}
    rows = []
    for member in options.members:
        row: dict[str, t.Any] = {
            "name": member.name,
            "role": member.role,
            "host": member.host,
            "port": member.port,
            "database": member.dbname,
            "reachable": member.name in views,
            "error": troubles.get(member.name),
        }
        view = views.get(member.name)
        stored = view.seen.stored if view else None
        row.update(
            {
                "version": view.seen.version // 10000 if view else None,
                "epoch": stored.map.epoch if stored else None,
                # buckets of which it was not told where they are now
                "outdated_buckets": sum(
                    stored.map.placements.get(bucket) != placement for bucket, placement in shard_map.placements.items()
                )
                if stored and shard_map
                else None,
                "connections": view.figures["connections"] if view else None,
                "active": view.figures["active"] if view else None,
                "max_connections": view.figures["max_connections"] if view else None,
                "transactions": view.figures["transactions"] if view else None,
                "retained_wal_bytes": view.figures["retained_wal_bytes"] if view else None,
            }
        )
        rows.append(row)
    return rows


def _buckets(
    options: Options,
    views: t.Mapping[str, _View],
    shard_map: ShardMap,
    before: t.Mapping[str, t.Mapping[str, t.Mapping[str, int]]],
) -> list[dict[str, t.Any]]:
    rows: dict[BucketId, dict[str, t.Any]] = {}
    for group in shard_map.groups:
        for bucket in group.buckets:
            key = (group.name, bucket.number)
            placement = shard_map.placements[key]
            row: dict[str, t.Any] = {
                "group": group.name,
                "number": bucket.number,
                "shard": placement.shard,
                "epoch": placement.epoch,
            }
            view = views.get(placement.shard)
            names = [leaf_name(table.name, bucket.number) for table in group.tables]
            for figure in FIGURES:
                row[figure] = sum(view.leaves.get(name, {}).get(figure, 0) for name in names) if view else None
            for figure in ("reads", "writes"):
                row[f"{figure}_s"] = None
                if view and placement.shard in before:
                    was = sum(before[placement.shard].get(name, {}).get(figure, 0) for name in names)
                    row[f"{figure}_s"] = round(max(0, row[figure] - was) / options.sample_s, 3)
            rows[key] = row
    known = {key: row for key, row in rows.items() if row["size_bytes"] is not None}
    # reads and writes of the sample where there is one, else since the counters were reset
    parts = {
        key: {figure: row[f"{figure}_s"] if row.get(f"{figure}_s") is not None else row[figure] for figure in FIGURES}
        for key, row in known.items()
    }
    loads = mixed_load(parts, {name: weight for name, weight in options.load.items() if weight > 0})
    mean = sum(loads.values()) / len(loads) if loads else 0.0
    for key, row in rows.items():
        row["load_share"] = round(loads[key], 6) if key in loads else None
        row["hot"] = key in loads and loads[key] > options.hot_factor * mean > 0
    return list(rows.values())


def _shards(
    options: Options, views: t.Mapping[str, _View], shard_map: ShardMap, buckets: t.Sequence[dict[str, t.Any]]
) -> list[dict[str, t.Any]]:
    weight = sum(shard.weight for shard in shard_map.shards if shard.takes_share) or 1.0
    kept = {shard.name for shard in shard_map.shards if shard.state == "read_only"}
    free = sum(row["load_share"] or 0.0 for row in buckets if row["shard"] not in kept)
    rows = []
    for shard in shard_map.shards:
        own = [row for row in buckets if row["shard"] == shard.name]
        known = shard.name in views
        row: dict[str, t.Any] = {
            "name": shard.name,
            "weight": shard.weight,
            "state": shard.state,
            "capacity_bytes": shard.capacity_bytes,
            "buckets": len(own),
        }
        for figure in (*FIGURES, "reads_s", "writes_s"):
            values = [one[figure] for one in own]
            row[figure] = sum(values) if known and None not in values else None
            if row[figure] is not None and figure.endswith("_s"):
                row[figure] = round(row[figure], 3) if options.sample_s else None
        load = (
            sum(one["load_share"] for one in own)
            if known and all(one["load_share"] is not None for one in own)
            else None
        )
        fair = None if shard.state == "read_only" else free * shard.weight / weight if shard.takes_share else 0.0
        row["load_share"] = None if load is None else round(load, 6)
        row["fair_share"] = None if fair is None else round(fair, 6)
        row["imbalance"] = round(load / fair - 1, 4) if load is not None and fair else None
        rows.append(row)
    return rows


def _groups(shard_map: ShardMap, buckets: t.Sequence[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    rows = []
    for group in shard_map.groups:
        own = [row for row in buckets if row["group"] == group.name]
        row: dict[str, t.Any] = {
            "name": group.name,
            "strategy": group.strategy,
            "key_type": group.key_type,
            "tables": [{"name": table.name, "key": table.key} for table in group.tables],
            "buckets": len(own),
        }
        for figure in FIGURES:
            values = [one[figure] for one in own]
            row[figure] = None if None in values else sum(values)
        rows.append(row)
    return rows


def _move(row: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    total, done = row["bytes_total"], row["bytes_done"]
    return {
        "id": row["id"],
        "bucket": bucket_name((row["group_name"], row["bucket"])),
        "parts": _parts(row),
        "source": row["source"],
        "target": row["target"],
        "state": row["state"],
        "step": row["step"],
        "bytes_total": total,
        "bytes_done": done,
        "age_s": row["age_s"],
        "retire_in_s": row["retire_in_s"],
        "error": row["error"],
    }


def _parts(row: t.Mapping[str, t.Any]) -> list[int]:
    """Return the numbers of the buckets that a split makes, none for a move."""
    return [one["number"] for one in (row.get("detail") or {}).get("parts", ())]


def _orphans(views: t.Mapping[str, _View], moves: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Return what moves have left, on any member, that no move on its way owns."""
    kept = tuple(f"{PREFIX}{one}" for one in moves)
    found = []
    for name, view in views.items():
        for one in view.objects:
            if not any(one["name"] == mine or one["name"].startswith(f"{mine}_") for mine in kept):
                found.append({"member": name, "kind": one["kind"], "name": one["name"], "age_s": one["age_s"]})
        stored = view.seen.stored
        tables = {table.name: group.name for group in stored.map.groups for table in group.tables} if stored else {}
        for table, group in tables.items():
            relation = view.seen.relations.get(table)
            if relation is None:
                continue
            left = dict.fromkeys(relation.strays, "detached_leaf")
            left.update({leaf.name: "retired_leaf" for leaf in relation.leaves if leaf.retired})
            for leaf, kind in left.items():
                matched = SUFFIX.search(leaf)
                owned = any(
                    move["group_name"] == group
                    and matched is not None
                    and int(matched[1]) in (move["bucket"], *_parts(move))
                    and name in (move["source"], move["target"])
                    for move in moves.values()
                )
                if not owned:
                    kind = "retired_leaf" if leaf.endswith("_retired") else kind
                    found.append({"member": name, "kind": kind, "name": leaf, "age_s": None})
    return sorted(found, key=lambda one: (one["member"], one["kind"], one["name"]))


def _summary(result: t.Mapping[str, t.Any]) -> str:
    if result["map"] is None:
        return "There is no map on the members that could be read."
    parts = [
        f"{len(result['shards'])} shards hold {sum(one['buckets'] for one in result['shards'])} buckets at epoch {result['epoch']}"
    ]
    if result["imbalance"] is not None:
        parts.append(f"the fullest is {result['imbalance']:+.0%} off its fair share")
    done = sum(one["state"] == "switched" and not one["parts"] for one in result["moves"])
    for count, word, rest in (
        (len(result["moves"]) - done, "move", " on the way"),
        (done, "move", " that can be taken back"),
        (len(result["orphans"]), "orphan", ""),
        (len(result["hot_buckets"]), "hot bucket", ""),
    ):
        if count:
            parts.append(f"{count} {word}{'' if count == 1 else 's'}{rest}")
    missing = sum(not one["reachable"] for one in result["members"])
    if missing:
        parts.append(f"{missing} of {len(result['members'])} members could not be read")
    return ", ".join(parts) + "."
