# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Put the parts into the place of a bucket: on its shard and on all routers, or nowhere.

The routers' tables are locked first: that ends when every transaction of a router that has used them is over, and with it the
session on the shard that reads for it under one snapshot. Then the shard's tables, the parents before the leaf. While nobody can
write, the last rows come over and are committed, and only then the parts become what statements find. A statement that began
before is waiting at a lock by then, and looks again once it has it. A session that holds a snapshot from before, without having
used the tables, would miss the last rows; the switch waits until there is none, and tries again later.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
import typing as t

from ...._common.errors import HeadroomError
from ..ddl import foreign_leaf, identifier
from ..members import APPLICATION_NAME, Lock, Members
from ..model import Bucket, Group
from ..move import catalog as facts_of
from ..move.journal import WRITE_SQL, record
from ..move.switch import COMMIT_AFTER, PASSING, Pace, Switched, TwoPhase
from ..observed import leaf_name
from ..read import member_facts
from . import catalog
from .follow import Log
from .model import MAP_SQL, told

if t.TYPE_CHECKING:
    from psycopg import sql

POLL_S = 0.003
# the part of the time that others may wait within which the last rows must come over
FOLLOW_WITHIN = 0.4
# sessions of routers read under one snapshot until their transaction ends; of the others, those that wait for these locks have none
# that lasts: under READ COMMITTED a statement takes its own once it has them
_OLD_SQL = """
SELECT a.pid, a.application_name, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.backend_xmin IS NOT NULL
  AND coalesce(a.xact_start < %s::timestamptz, true) AND a.application_name <> %s
  AND (a.usename = %s OR NOT %s::int = ANY (pg_blocking_pids(a.pid)))
ORDER BY a.xact_start LIMIT 3
"""


class DivideSwitch(TwoPhase):
    """Switches one split."""

    def __init__(
        self,
        members: Members,
        log: Log,
        lock: Lock,
        gate: asyncio.Lock,
        group: Group,
        parts: t.Sequence[Bucket],
        member_user: str,
    ) -> None:
        """Take the log by which the last rows come over.

        :param group: with the parts.
        :param member_user: as which routers reach the shard.
        """
        self.log = log
        self.routers = [router.name for router in members.routers]
        self.shard = log.move.source
        super().__init__(members, log.move, lock, gate, (self.shard, *self.routers))
        self.group = group
        self.parts = parts
        self.member_user = member_user

    async def run(self, epoch: int, pace: Pace) -> Switched:
        """Try until it is done.

        :param epoch: of the placement of the parts.
        :raises HeadroomError: when it could not be done within the patience, or must not be; then the bucket is whole.
        """

        async def ready() -> None:
            took_s = await self.log.follow_all(pace.patience_s)
            if took_s > FOLLOW_WITHIN * pace.max_block_s:
                raise HeadroomError(
                    f"Failed to switch {self.move.what}: what is written takes {took_s:.2f} s to come over, too much of max_block_ms, "
                    f"{pace.max_block_s * 1000:.0f} ms. Split the bucket when it is written to less, or raise that.",
                    code="behind",
                )
            # a first look that keeps nobody waiting
            at = await self._now()
            await self._none_older(at, 0, time.monotonic() + pace.max_block_s)

        return await self._try(pace, ready, lambda seen: self._attempt(epoch, pace, seen))

    async def _attempt(self, epoch: int, pace: Pace, seen: Switched) -> None:
        gid = self.move.names.gid(os.urandom(4).hex())
        gids = {name: f"{gid}_{'take' if name == self.shard else 'give'}" for name in self.ends}
        self._timeout_s = max(2.0, pace.max_block_s * 4)
        in_doubt = False
        began = committing = time.monotonic()
        try:
            scripts = await self._scripts(epoch, gids)
            await self._require_same()
            await self._each(lambda name: self._begin(name, pace))
            began = time.monotonic()
            await self._lock_all()
            seen.lock_s = time.monotonic() - began
            deadline = began + COMMIT_AFTER * pace.max_block_s
            await self._require_same()
            fencing = time.monotonic()
            await self.log.follow_locked(self.purpose)
            await self._none_older(await self._now(), self._pids[self.shard], deadline)
            seen.fence_s = time.monotonic() - fencing
            if time.monotonic() > deadline:
                raise self._late(pace)
            committing = time.monotonic()
            # from here on it is in doubt until it is decided
            in_doubt = True
            await self._each(lambda name: self._rows(name, scripts[name]))
            await self._decide(gid)
            # the shard first: what routers look for is there by then
            await self._finish(self.shard, "COMMIT PREPARED {}", gids[self.shard])
            await self.members.each(lambda name: self._finish(name, "COMMIT PREPARED {}", gids[name]), self.routers)
        except BaseException as error:
            if not await self._undo(gid if in_doubt else None, error):
                seen.vain_s.append(time.monotonic() - began)
                raise
        seen.commit_s = time.monotonic() - committing
        seen.block_s = time.monotonic() - began

    async def _each(self, work: t.Callable[[str], t.Awaitable[t.Any]]) -> None:
        """Do something with all members, and let none go on when one has failed."""
        await self.members.each(work, self.ends)

    async def _lock_all(self) -> None:
        try:
            await self.members.each(lambda name: self._rows(name, catalog.lock_router(self.move)), self.routers)
            await self._rows(self.shard, catalog.lock(self.move))
        except HeadroomError as error:
            if error.facts.get("sqlstate") not in PASSING:
                raise
            raise HeadroomError(
                f"Failed to lock the tables of {self.move.label}: {error}", code="not_locked"
            ) from error

    async def _require_same(self) -> None:
        """Make sure that the leaves are what they were when they were copied."""
        for leaf in self.move.leaves:
            found = await facts_of.facts(self.members, self.shard, leaf.schema, leaf.name, purpose=self.purpose)
            if found is None or facts_of.fingerprint(found) != self.move.detail["prints"][leaf.name]:
                raise HeadroomError(
                    f"Failed to switch {self.move.what}: the definition of {leaf.schema}.{leaf.name} is not what it was when it was "
                    "copied. Nothing was switched. Run again, so that it is copied anew.",
                    code="definition_changed",
                )
            rows = await self._rows(self.shard, catalog.LOGGING_SQL, catalog.logging_params(leaf))
            if len(rows) != len(catalog.TRIGGERS):
                raise HeadroomError(
                    f"Failed to switch {self.move.what}: the triggers of {leaf.schema}.{leaf.name} were disabled meanwhile, and changes "
                    "may be missing. Nothing was switched. Run again, so that it is copied anew.",
                    code="definition_changed",
                )

    async def _now(self) -> t.Any:
        row = await self.members.row(self.shard, "SELECT clock_timestamp() AS now", purpose="blockers")
        return row["now"]

    async def _none_older(self, at: t.Any, holder: int, deadline: float) -> None:
        """Wait until no session has a snapshot from before a time that could yet read the parts.

        :param holder: process that holds the locks.
        :param deadline: on the monotonic clock.
        :raises HeadroomError: naming those that have one.
        """
        params = [at, APPLICATION_NAME, self.member_user, holder]
        while rows := await self.members.rows(self.shard, _OLD_SQL, params, purpose="blockers", verb="look at"):
            if time.monotonic() > deadline:
                who = "; ".join(
                    f"process {row['pid']} ({row['application_name'] or 'unnamed'}) for {row['seconds'] or 0:.1f} s"
                    for row in rows
                )
                raise HeadroomError(
                    f"Failed to switch {self.move.what}: on {self.shard} these hold a snapshot from before it: {who}. "
                    "End them, or let them end.",
                    code="not_locked",
                )
            await asyncio.sleep(POLL_S)

    async def _scripts(self, epoch: int, gids: t.Mapping[str, str]) -> dict[str, sql.Composed]:
        """Return all that each member does in its transaction, and the end of it, to be sent at once while others wait."""
        from psycopg import AsyncClientCursor, sql

        entry = copy.copy(self.move)
        entry.detail = {**self.move.detail, "epoch": epoch, "owner": self.shard}
        entry.entry += 1
        entry.state, entry.step = "switched", "switched"
        self._done = entry
        scripts = {}
        for name in self.ends:
            seen = await member_facts(self.members, name)
            cursor = AsyncClientCursor(await self.members.connection(name, self.purpose))
            params = None
            if seen.stored is not None:
                params = told(seen.stored, self.group.name, self.move.bucket, self.parts, epoch)
            made: list[sql.Composable] = []
            if name == self.shard:
                made += catalog.swap(
                    self.move, self.group, self.parts, {cut.form.name: cut.form for cut in self.log.cuts}
                )
                made.append(sql.SQL(cursor.mogrify(WRITE_SQL, record(entry))))
            else:
                made += await self._router(name)
            if params is not None:
                made += [sql.SQL(cursor.mogrify(statement, params)) for statement in MAP_SQL]
            made.append(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(gids[name])))
            scripts[name] = sql.SQL(";\n").join(made)
        return scripts

    async def _router(self, name: str) -> list[sql.Composable]:
        from psycopg import sql

        made: list[sql.Composable] = []
        for leaf in self.move.leaves:
            rows = await self.members.rows(
                name,
                "SELECT pg_get_userbyid(c.relowner) AS owner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relname = %s",
                [leaf.schema, leaf.parent],
                verb="look at",
            )
            old = identifier(leaf_name(leaf.table.name, self.move.bucket))
            made.append(sql.SQL("DROP FOREIGN TABLE IF EXISTS {}").format(old))
            for bucket in self.parts:
                made += foreign_leaf(self.group, leaf.table, bucket, self.shard, rows[0]["owner"])
        return made
