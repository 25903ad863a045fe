# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The foreign tables of a router, pointed to where the buckets are.

Each change is one short transaction that takes the parent's lock first: a statement locks the parent and then its leaves, so that
taking a leaf's lock before would be a deadlock. Until a router is told, the source's forwarder brings its statements on.
"""

from __future__ import annotations

import asyncio
import random
import time
import typing as t
from dataclasses import dataclass

from ..._common.errors import HeadroomError
from .ddl import foreign_leaf, identifier, quoted, script
from .members import MemberError, Members
from .model import Group
from .observed import leaf_name
from .schema import PREFIX

LOCK_TIMEOUT_S = 0.5
ATTEMPTS = 40
PURPOSE = "repoint"
# lock not available, deadlock, serialization failure
_AGAIN = ("55P03", "40P01", "40001")


@dataclass(frozen=True)
class Change:
    """Buckets of a group that a router is to find elsewhere, all at once.

    :param group: with the buckets as they are now.
    :param shards: the shard of each bucket that is to be found, by number.
    :param gone: numbers of buckets that are no more, as those that were split.
    """

    group: Group
    shards: t.Mapping[int, str]
    gone: tuple[int, ...] = ()


@dataclass
class Repointed:
    """What came of it: how many foreign tables were changed, how often a lock was waited for, and how long one was held."""

    changed: int = 0
    retries: int = 0
    held_max_s: float = 0.0


async def repoint(
    members: Members,
    router: str,
    buckets: t.Iterable[Change],
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    attempts: int = ATTEMPTS,
    tables: t.Container[str] | None = None,
) -> Repointed:
    """Point a router's foreign tables to where buckets are; those that are right stay as they are.

    :param router: name of the router.
    :param buckets: what to change; each change of each table is a transaction of its own.
    :param tables: names of the tables to change, all by default.
    :raises HeadroomError: when a lock could not be had; what was not changed still reaches its shard by the forwarder.
    """
    result = Repointed()
    for change in buckets:
        for table in change.group.tables:
            if tables is None or table.name in tables:
                await _one(members, router, change, table.name, result, lock_timeout_s, attempts)
    return result


async def _one(
    members: Members, router: str, change: Change, table: str, result: Repointed, lock_timeout_s: float, attempts: int
) -> None:
    for attempt in range(1, attempts + 1):
        try:
            changed, held_s = await _transaction(members, router, change, table, lock_timeout_s)
        except MemberError as error:
            if error.sqlstate not in _AGAIN:
                raise
            if attempt == attempts:
                member = members.members[router]
                raise HeadroomError(
                    f"Failed to repoint {table} on {router} on {member.host}:{member.port}: its lock was not to be had in {attempts} "
                    f"tries of {lock_timeout_s:g} s. Look for long transactions there; statements still reach the bucket.",
                    code="repoint_blocked",
                    member=router,
                ) from None
            result.retries += 1
            # growing and uneven, so that what waits behind the lock gets its turn
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(0.05 * attempt, 1.0))
        else:
            result.changed += changed
            result.held_max_s = max(result.held_max_s, held_s)
            return


_LEAVES_SQL = """
SELECT c.relname AS leaf, s.srvname AS server
FROM pg_class p JOIN pg_namespace n ON n.oid = p.relnamespace JOIN pg_inherits h ON h.inhparent = p.oid
  JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_foreign_table f ON f.ftrelid = c.oid JOIN pg_foreign_server s ON s.oid = f.ftserver
WHERE n.nspname = %s AND p.relname = %s AND c.relname = ANY (%s)
"""


async def _transaction(
    members: Members, router: str, change: Change, table: str, lock_timeout_s: float
) -> tuple[int, float]:
    from psycopg import sql

    buckets = {bucket.number: bucket for bucket in change.group.buckets}
    schema, _dot, name = table.partition(".")
    sharded = next(one for one in change.group.tables if one.name == table)
    names = {leaf_name(name, number): number for number in (*change.shards, *change.gone)}

    async def run(query: t.Any, params: t.Any = None) -> list[dict[str, t.Any]]:
        return await members.rows(router, query, params, purpose=PURPOSE, verb=f"repoint {table} on")

    async def state() -> dict[int, str]:
        rows = await run(_LEAVES_SQL, [schema, name, list(names)])
        return {names[row["leaf"]]: row["server"] for row in rows}

    wanted = {number: f"{PREFIX}{shard}" for number, shard in change.shards.items()}
    if await state() == wanted:
        return 0, 0.0
    await run("BEGIN")
    try:
        await run(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{round(lock_timeout_s * 1000)}ms")))
        await run(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(identifier(table)))
        locked_at = time.monotonic()
        is_so = await state()
        owners = await run(
            "SELECT pg_get_userbyid(relowner) AS owner FROM pg_class WHERE oid = to_regclass(%s)",
            [quoted(*table.split(".", 1))],
        )
        made: list[sql.Composable] = []
        for number, server in sorted(is_so.items()):
            if wanted.get(number) != server:
                leaf = identifier(leaf_name(table, number))
                made.append(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(identifier(table), leaf))
                made.append(sql.SQL("DROP FOREIGN TABLE {}").format(leaf))
        for number, shard in sorted(change.shards.items()):
            if is_so.get(number) != wanted[number]:
                made += foreign_leaf(change.group, sharded, buckets[number], shard, owners[0]["owner"])
        if made:
            await run(script(made))
        await run("COMMIT")
        return len(change.shards) + len(change.gone) if made else 0, time.monotonic() - locked_at
    except BaseException:
        # also when cancelled: the lock must not outlive this
        await members.close(router, PURPOSE)
        raise
