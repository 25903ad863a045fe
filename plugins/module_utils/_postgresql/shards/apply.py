# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Carry the steps of a declaration out: one transaction for each member, all ready before the first is committed.

A run that dies before the first commit has changed nothing. One that dies between two commits leaves members that are done and
members that are as they were; both are what the next run takes up, since the done ones have the map by which it goes on.
"""

from __future__ import annotations

import asyncio
import json
import typing as t
from dataclasses import dataclass, field

from ..._common.errors import HeadroomError
from . import ddl
from .declare import Wanted
from .keys import key_to_json
from .members import Lock, MemberError, Members
from .model import Group, ShardMap, Table
from .observed import Observed, Relation, digest_of, leaf_name
from .read import read_relations
from .routers import Change, repoint
from .schema import DIGEST, FORMAT, SQL
from .steps import Step, wanted_links, wrong_pointers

PURPOSE = "declare"
_BEFORE = "headroom_before"
_NO_PARTITION = "23514"
_NO_LOCK = "55P03"


@dataclass
class Work:
    """All that the steps need to know, and what came of them."""

    wanted: Wanted
    observed: Observed
    target: ShardMap
    forms: t.Mapping[str, Relation]
    lock_timeout_s: float = 5.0
    # rows that were brought into a partitioned table, by table and shard
    rewritten: dict[tuple[str, str], int] = field(default_factory=dict)


async def try_ddl(members: Members, ddl_of: t.Mapping[str, t.Sequence[str]]) -> dict[str, Relation]:
    """Return the tables that statements would make, which are undone at once; the first shard is asked.

    :param ddl_of: the statements of each table, in the order in which they refer to one another.
    :raises HeadroomError: when they fail, or make another table.
    """
    from psycopg import sql

    shard = members.shards[0].name
    connection = await members.connection(shard, PURPOSE)

    async def work(table: str) -> None:
        schema = sql.Identifier(table.split(".", 1)[0])
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
        # texts without a schema are looked up as in any session of this login
        await connection.execute("SET LOCAL search_path TO DEFAULT")
        for statement in ddl_of[table]:
            # in binary, the server takes one statement alone, so that none can end the transaction
            await connection.execute(sql.SQL(statement), binary=True)
        await connection.execute("SET LOCAL search_path TO pg_catalog")

    try:
        await members.rows(shard, "BEGIN", purpose=PURPOSE, verb="run the ddl on")
        for table in ddl_of:
            await members.guarded(shard, work(table), connection, members.timeout_s, f"run the ddl of {table} on")
        rows = await read_relations(members, shard, list(ddl_of), purpose=PURPOSE)
    finally:
        await members.close(shard, PURPOSE)
    for table in ddl_of:
        if table not in rows or rows[table].kind != "plain":
            raise HeadroomError(
                f"Failed to declare the shards: the ddl of {table} does not make a plain table of that name. "
                "Give one CREATE TABLE, with the schema, and without PARTITION BY.",
                code="bad_ddl",
                table=table,
            )
    return rows


async def apply(members: Members, work: Work, found: t.Sequence[Step], lock: Lock) -> None:
    """Carry steps out on all members at once.

    :param lock: held by this run, and made sure of before anything is committed.
    :raises HeadroomError: when a step fails; then nothing is changed, or the next run goes on.
    """
    by: dict[str, list[Step]] = {}
    for step in found:
        if step.action not in ("repoint", "unlink"):
            by.setdefault(step.member, []).append(step)
    try:
        await _all(by, lambda name: _prepare(members, work, name, by[name]))
        await lock.check()
        committed: list[str] = []
        for role in ("shard", "router"):
            names = [name for name in by if members.members[name].role == role]
            done = await members.try_each(lambda name: _commit(members, name), names)
            failed = [one for one in done.values() if isinstance(one, HeadroomError)]
            committed += [name for name, one in done.items() if not isinstance(one, HeadroomError)]
            if failed:
                raise HeadroomError(
                    f"{failed[0]} Changed so far: {', '.join(committed) or 'none'}. Run it again to go on.",
                    code="half_committed",
                    result={"changed": bool(committed), "errors": [one.as_dict() for one in failed]},
                )
    finally:
        await asyncio.gather(*(members.close(name, PURPOSE) for name in by), return_exceptions=True)
    changed = bool(by)
    # once nothing points there any more, servers can go
    for step in sorted(found, key=lambda one: one.action == "unlink"):
        try:
            if step.action == "repoint":
                await _repoint(members, work, step)
            elif step.action == "unlink":
                await members.rows(step.member, ddl.script(ddl.unlink(step.object)), verb=f"drop {step.object} on")
        except HeadroomError as error:
            error.result = {**error.result, "changed": changed}
            raise
        changed = changed or step.action in ("repoint", "unlink")


async def _all(names: t.Iterable[str], prepare: t.Callable[[str], t.Coroutine[t.Any, t.Any, None]]) -> None:
    """Prepare all members; the first that fails ends the work on the others."""
    tasks = [asyncio.ensure_future(prepare(name)) for name in names]
    if not tasks:
        return
    try:
        done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _commit(members: Members, name: str) -> None:
    await members.rows(name, "COMMIT", purpose=PURPOSE, verb="commit on")


async def _repoint(members: Members, work: Work, step: Step) -> None:
    group, table = _group(work, step.object)
    relation = work.observed[step.member].relations[table.name]
    wrong = wrong_pointers(relation, group, work.target)
    numbers = {bucket.number for bucket in group.buckets}
    shards = {one: work.target.placements[group.name, one].shard for one in wrong if one in numbers}
    gone = tuple(one for one in wrong if one not in numbers)
    # what a split left overlaps what it made, so that these change together
    changes = [Change(group, shards, gone)] if gone else [Change(group, {one: shard}) for one, shard in shards.items()]
    await repoint(members, step.member, changes, tables={table.name})


class _Session:
    """The transaction of one member."""

    def __init__(self, members: Members, name: str) -> None:
        self.members = members
        self.name = name

    async def run(self, query: t.Any, params: t.Any = None, verb: str = "set up") -> list[dict[str, t.Any]]:
        return await self.members.rows(self.name, query, params, timeout_s=None, purpose=PURPOSE, verb=verb)

    async def script(self, statements: t.Sequence[t.Any], verb: str) -> None:
        if statements:
            await self.run(ddl.script(statements), verb=verb)


async def _prepare(members: Members, work: Work, name: str, found: t.Sequence[Step]) -> None:
    """Do all that is to be done on a member, up to the commit."""
    from psycopg import sql

    session = _Session(members, name)
    await session.run("BEGIN")
    await session.run(
        sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{round(work.lock_timeout_s * 1000)}ms"))
    )
    converted = [step for step in found if step.action == "convert"]
    for step in converted:
        await _lock_table(session, work, step)
    # those between the tables to be turned would keep the old ones from being dropped
    for step in converted:
        await _drop_keys(session, work, step)
    for step in found:
        await _step(session, work, step)
    for step in found:
        await _leaf_keys(session, work, step)


async def _step(session: _Session, work: Work, step: Step) -> None:
    from psycopg import sql

    name, seen = step.member, work.observed[step.member]
    if step.action == "schema":
        await session.run(SQL, verb="make the schema headroom on")
        # a new one has no row yet; the step that writes the map makes it
        await session.run(
            "UPDATE headroom.cluster SET schema_digest = %s", [DIGEST], verb="make the schema headroom on"
        )
    elif step.action == "extension":
        await session.run(
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw WITH SCHEMA public", verb="create postgres_fdw on"
        )
    elif step.action == "settings":
        # joins of colocated tables run on the shards; aggregating partition by partition would scan one after the other
        setting = sql.SQL("ALTER DATABASE {} SET enable_partitionwise_join = on")
        await session.run(setting.format(sql.Identifier(seen.member.dbname)), verb="set the database up on")
    elif step.action == "link":
        options, mapping = wanted_links(work.wanted, name)[step.object]
        link = seen.links.get(step.object)
        statements = ddl.link(step.object, options, mapping, link is not None)
        if link is not None:
            statements = [*ddl.link_options(step.object, link.options, options), *statements]
        await session.script(statements, "link")
    elif step.action == "map":
        await write_map(session.run, work.wanted, name, seen.member.role, work.target)
    elif step.action == "create":
        await _create(session, work, step)
    elif step.action == "leaves":
        group, table = _group(work, step.object)
        form = seen.relations[table.name]
        await session.script(_leaves(form, group, table, step, work), f"create buckets of {table.name} on")
    elif step.action == "convert":
        await _convert(session, work, step)


def _group(work: Work, name: str) -> tuple[Group, Table]:
    return next((group, table) for group in work.target.groups for table in group.tables if table.name == name)


def _leaves(form: Relation, group: Group, table: Table, step: Step, work: Work) -> list[t.Any]:
    chosen = set(step.buckets)
    return [
        statement
        for bucket in group.buckets
        if bucket.number in chosen
        for statement in ddl.leaf(form, group, table, bucket, work.wanted.access.user)
    ]


async def _create(session: _Session, work: Work, step: Step) -> None:
    group, table = _group(work, step.object)
    form = work.forms[table.name]
    router = work.observed[step.member].member.role == "router"
    statements = ddl.parent(form, group, table, router)
    if router:
        for bucket in group.buckets:
            shard = work.target.placements[group.name, bucket.number].shard
            statements += ddl.foreign_leaf(group, table, bucket, shard, form.owner)
    else:
        statements += _leaves(form, group, table, step, work)
    statements += ddl.finish(form, table, work.wanted.access.user, router)
    await session.script(statements, f"create {table.name} on")


async def _lock_table(session: _Session, work: Work, step: Step) -> None:
    from psycopg import sql

    name, verb = ddl.identifier(step.object), f"turn {step.object} into a partitioned table on"
    try:
        await session.run(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name), verb=verb)
    except MemberError as error:
        if error.sqlstate != _NO_LOCK:
            raise
        member = session.members.members[step.member]
        raise HeadroomError(
            f"Failed to {verb} {step.member} on {member.host}:{member.port}: it was in use for all of {work.lock_timeout_s:g} s. "
            "Nothing was changed. Run it again when it is calmer, or raise lock_timeout_s.",
            code="table_in_use",
            member=step.member,
        ) from None


async def _drop_keys(session: _Session, work: Work, step: Step) -> None:
    from psycopg import sql

    relation = work.observed[step.member].relations[step.object]
    name = ddl.identifier(step.object)
    statements = [
        sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(name, sql.Identifier(one.name))
        for one in relation.foreign_keys
    ]
    await session.script(statements, f"turn {step.object} into a partitioned table on")


async def _leaf_keys(session: _Session, work: Work, step: Step) -> None:
    """Make the foreign keys of new leaves, once those that they end at are there."""
    if step.action not in ("create", "convert", "leaves") or not step.buckets:
        return
    group, table = _group(work, step.object)
    relation = work.observed[step.member].relations.get(step.object)
    form = relation if step.action == "convert" and relation else work.forms[step.object]
    chosen = set(step.buckets)
    statements = [
        statement
        for bucket in group.buckets
        if bucket.number in chosen
        for statement in ddl.leaf_keys(form, table, bucket)
    ]
    await session.script(statements, f"make the foreign keys of {step.object} on")


async def _convert(session: _Session, work: Work, step: Step) -> None:
    """Turn a locked plain table into a partitioned one: make the new one, bring the rows over, count them, drop the old one."""
    from psycopg import sql

    group, table = _group(work, step.object)
    form = work.observed[step.member].relations[table.name]
    verb = f"turn {table.name} into a partitioned table on"
    name, before = ddl.identifier(table.name), sql.Identifier(table.name.split(".", 1)[0], _BEFORE)
    rows = (await session.run(sql.SQL("SELECT count(*) AS rows FROM {}").format(name), verb=verb))[0]["rows"]
    serial = [column for column in form.columns if column.sequence and not column.identity]
    statements: list[t.Any] = [
        sql.SQL("ALTER SEQUENCE {} OWNED BY NONE").format(sql.Identifier(*column.sequence or ())) for column in serial
    ]
    statements.append(sql.SQL("ALTER TABLE {} RENAME TO {}").format(name, sql.Identifier(_BEFORE)))
    statements += ddl.parent(form, group, table)
    statements += _leaves(form, group, table, step, work)
    await session.script(statements, verb)
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in form.columns if not column.generated)
    try:
        await session.run(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                name, columns, columns, before
            ),
            verb=verb,
        )
    except MemberError as error:
        if error.sqlstate == _NO_PARTITION and "no partition" in str(error):
            raise HeadroomError(
                f"{error} Rows came in that belong to another shard. Nothing was changed. Run it again to see which.",
                code="misplaced_rows",
                member=step.member,
            ) from None
        raise
    arrived = (await session.run(sql.SQL("SELECT count(*) AS rows FROM {}").format(name), verb=verb))[0]["rows"]
    if arrived != rows:
        raise HeadroomError(
            f"Failed to {verb} {step.member}: it had {rows} rows, and the new one has {arrived}. Nothing was changed. "
            "Look for rules and triggers that drop rows.",
            code="rows_differ",
            member=step.member,
        )
    for column in form.columns:
        if column.identity and column.sequence:
            await session.run(
                sql.SQL("SELECT setval(pg_get_serial_sequence({}, {}), last_value, is_called) FROM {}").format(
                    sql.Literal(ddl.quoted(*table.name.split(".", 1))),
                    sql.Literal(column.name),
                    sql.Identifier(*column.sequence),
                ),
                verb=verb,
            )
    await session.script(
        [
            sql.SQL("DROP TABLE {}").format(before),
            *ddl.finish(form, table, work.wanted.access.user),
            sql.SQL("ANALYZE {}").format(name),
        ],
        verb,
    )
    work.rewritten[table.name, step.member] = rows


Run = t.Callable[..., t.Awaitable[t.Any]]

_WRITE_SQL = (
    "DELETE FROM headroom.shard",
    """
    INSERT INTO headroom.shard SELECT * FROM jsonb_to_recordset(%(shards)s::jsonb) AS r (name text, position int, weight float8,
      state text, capacity_bytes bigint, host text, port int, dbname text, application_host text, application_port int)
    """,
    "DELETE FROM headroom.router",
    """
    INSERT INTO headroom.router SELECT * FROM jsonb_to_recordset(%(routers)s::jsonb) AS r (name text, host text, port int, dbname text)
    """,
    "DELETE FROM headroom.shard_group",
    """
    INSERT INTO headroom.shard_group SELECT * FROM jsonb_to_recordset(%(groups)s::jsonb)
      AS r (name text, position int, strategy text, key_type text)
    """,
    "DELETE FROM headroom.shard_table",
    """
    INSERT INTO headroom.shard_table SELECT * FROM jsonb_to_recordset(%(tables)s::jsonb)
      AS r (name text, group_name text, key text, position int)
    """,
    """
    DELETE FROM headroom.bucket b WHERE NOT EXISTS (SELECT FROM jsonb_to_recordset(%(buckets)s::jsonb) AS r (group_name text, number int)
      WHERE r.group_name = b.group_name AND r.number = b.number)
    """,
    """
    INSERT INTO headroom.bucket AS b SELECT group_name, number, position, nullif(lower, 'null'), nullif(upper, 'null'),
        nullif(tenants, 'null'), shard, epoch
      FROM jsonb_to_recordset(%(buckets)s::jsonb) AS r (group_name text, number int, position int, lower jsonb, upper jsonb,
        tenants jsonb, shard text, epoch bigint)
    ON CONFLICT (group_name, number) DO UPDATE SET position = excluded.position, lower = excluded.lower, upper = excluded.upper,
        tenants = excluded.tenants, shard = excluded.shard, epoch = excluded.epoch
      WHERE b.epoch <= excluded.epoch
    """,
    """
    INSERT INTO headroom.cluster AS c (name, format, epoch, digest, self, role, schema_digest)
      VALUES (%(cluster)s, %(format)s, %(epoch)s, %(digest)s, %(self)s, %(role)s, %(schema_digest)s)
    ON CONFLICT (one) DO UPDATE SET name = excluded.name, format = excluded.format, epoch = greatest(c.epoch, excluded.epoch),
      digest = excluded.digest, schema_digest = excluded.schema_digest
    """,
)


async def write_map(run: Run, wanted: Wanted, name: str, role: str, target: ShardMap) -> None:
    """Write the map into a member's schema; a placement that is newer there stays.

    :param run: runs a statement with parameters, within the caller's transaction.
    """
    params = map_params(wanted, target)
    params |= {"self": name, "role": role}
    for statement in _WRITE_SQL:
        await run(statement, params if "%(" in statement else None, verb="write the map of")


def map_params(wanted: Wanted, target: ShardMap) -> dict[str, t.Any]:
    """Return the rows of a map as the statements that write it take them."""
    places = {member.name: member for member in wanted.members}
    shards = []
    for position, shard in enumerate(wanted.shards):
        member = places[shard.name]
        shards.append(
            {
                "name": shard.name,
                "position": position,
                "weight": shard.weight,
                "state": shard.state,
                "capacity_bytes": shard.capacity_bytes,
                "host": member.host,
                "port": member.port,
                "dbname": member.dbname,
                "application_host": member.application_host or member.host,
                "application_port": member.application_port or member.port,
            }
        )
    routers = [
        {"name": member.name, "host": member.host, "port": member.port, "dbname": member.dbname}
        for member in wanted.members
        if member.role == "router"
    ]
    groups, tables, buckets = [], [], []
    for at, group in enumerate(target.groups):
        groups.append({"name": group.name, "position": at, "strategy": group.strategy, "key_type": group.key_type})
        tables += [
            {"name": table.name, "group_name": group.name, "key": table.key, "position": place}
            for place, table in enumerate(group.tables)
        ]
        for place, bucket in enumerate(group.buckets):
            placement = target.placements[group.name, bucket.number]
            buckets.append(
                {
                    "group_name": group.name,
                    "number": bucket.number,
                    "position": place,
                    "lower": None if bucket.lower is None else key_to_json(bucket.lower),
                    "upper": None if bucket.upper is None else key_to_json(bucket.upper),
                    "tenants": [key_to_json(tenant) for tenant in bucket.tenants] or None,
                    "shard": placement.shard,
                    "epoch": placement.epoch,
                }
            )
    return {
        "cluster": wanted.cluster,
        "format": FORMAT,
        "epoch": target.epoch,
        "digest": digest_of(wanted.cluster, wanted.members, wanted.shards, target.groups),
        "schema_digest": DIGEST,
        "shards": json.dumps(shards),
        "routers": json.dumps(routers),
        "groups": json.dumps(groups),
        "tables": json.dumps(tables),
        "buckets": json.dumps(buckets),
    }


def leaf_names(group: Group, number: int) -> list[str]:
    """Return the names of a bucket's leaves, one of each table of its group."""
    return [leaf_name(table.name, number) for table in group.tables]
