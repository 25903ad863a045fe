# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The stream of changes from one shard to the other: publication, slot and subscription, and the beats that show how far it is."""

from __future__ import annotations

import asyncio
import time
import typing as t

from ...._common.errors import HeadroomError
from ..members import Access, Members
from .catalog import table
from .model import FORWARD, REVERSE, Move

POLL_S = 0.003
SLOT_GONE_S = 15.0
# an error of the apply worker may be one of a moment, such as a deadlock; so many are not
MAX_APPLY_ERRORS = 5

_SLOT_SQL = """
SELECT active_pid, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained_bytes,
  pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS lag_bytes
FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()
"""
_SUBSCRIPTION_SQL = """
SELECT s.subenabled AS enabled, s.subslotname AS slot, s.subconninfo AS conninfo, coalesce(t.apply_error_count, 0) AS errors,
  EXISTS (SELECT FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.pid IS NOT NULL) AS is_working
FROM pg_subscription s LEFT JOIN pg_stat_subscription_stats t ON t.subid = s.oid
WHERE s.subname = %s AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Stream:
    """The stream of one move, one way."""

    def __init__(self, members: Members, access: Access, move: Move, way: str) -> None:
        """Take the move and the way: from source to target, or back."""
        self.members = members
        self.access = access
        self.move = move
        self.way = way
        self.source, self.target = move.ends(way)
        self.name = move.names.subscription(way)
        # those that it had when it was looked at first
        self._errors: int | None = None

    async def publish(self) -> None:
        """Make the publication, if it is not there: the leaves, and the beats of this move alone."""
        from psycopg import sql

        name = self.move.names.publication(self.way)
        found = await self._rows(self.source, "SELECT 1 AS one FROM pg_publication WHERE pubname = %s", [name])
        if found:
            return
        leaves = [table(leaf.schema, leaf.name) for leaf in self.move.leaves]
        fence = sql.SQL("headroom.fence WHERE (move_id = {})").format(sql.Literal(self.move.id))
        query = sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(
            sql.Identifier(name), sql.SQL(", ").join([*leaves, fence])
        )
        await self._rows(self.source, query)

    async def make_slot(self, timeout_s: float) -> None:
        """Make the slot, if it is not there. It waits for all transactions that run now.

        :raises HeadroomError: when they do not end in time.
        """
        if await self.slot():
            return
        purpose = f"slot {self.name}"
        try:
            await self.members.rows(
                self.source,
                "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')",
                [self.name],
                timeout_s=timeout_s,
                purpose=purpose,
                verb=f"create slot {self.name} on",
            )
        finally:
            await self.members.close(self.source, purpose)

    async def slot(self) -> dict[str, t.Any] | None:
        """Return the slot as it is, or None."""
        rows = await self._rows(self.source, _SLOT_SQL, [self.name])
        return rows[0] if rows else None

    async def subscribe(self) -> None:
        """Make the subscription, if it is not there, and let it run."""
        from psycopg import sql

        found = await self.subscription()
        if found is None:
            query = sql.SQL(
                "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (create_slot = false, slot_name = {}, copy_data = false,"
                " enabled = true, origin = {}, binary = true, streaming = on)"
            ).format(
                sql.Identifier(self.name),
                sql.Literal(self._conninfo()),
                sql.Identifier(self.move.names.publication(self.way)),
                sql.Literal(self.name),
                # what came forward must not come back
                sql.SQL("any" if self.way == FORWARD else "none"),
            )
            await self._rows(self.target, query, timeout_s=max(30.0, self.members.timeout_s))
            return
        await self.readdress()
        if not found["enabled"]:
            await self._rows(self.target, sql.SQL("ALTER SUBSCRIPTION {} ENABLE").format(sql.Identifier(self.name)))

    async def is_astray(self) -> bool:
        """Return whether the subscription logs in to where its source was once."""
        found = await self.subscription()
        return found is not None and found["conninfo"] != self._conninfo()

    async def readdress(self) -> bool:
        """Let the subscription, if it is there, log in to where its source is now, and return whether that is somewhere else."""
        from psycopg import sql

        if not await self.is_astray():
            return False
        query = sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}")
        await self._rows(self.target, query.format(sql.Identifier(self.name), sql.Literal(self._conninfo())))
        return True

    def _conninfo(self) -> str:
        return self.access.conninfo(self.members.members[self.source])

    async def subscription(self) -> dict[str, t.Any] | None:
        """Return the subscription as it is, or None."""
        rows = await self._rows(self.target, _SUBSCRIPTION_SQL, [self.name])
        return rows[0] if rows else None

    async def require_applying(self) -> None:
        """Make sure that the stream can arrive.

        :raises HeadroomError: when it is broken.
        """
        found, slot = await asyncio.gather(self.subscription(), self.slot())
        if found is None or not found["enabled"] or slot is None or slot["wal_status"] == "lost":
            which = (
                f"slot {self.name} is lost"
                if found is not None and found["enabled"]
                else f"subscription {self.name} is off"
            )
            remedy = "It begins anew with the next run."
            if self.way == REVERSE:
                remedy = (
                    f"So the bucket cannot be taken back from {self.source}; end its move with state cleaned and retire_now, and let "
                    "a plan move it."
                )
                if found is not None and not found["enabled"] and slot is not None and slot["wal_status"] != "lost":
                    remedy = f"Enable it on {self.target}, and run again."
            raise HeadroomError(f"Failed to follow move {self.move.label}: {which}. {remedy}", code="stream_lost")
        if self._errors is None:
            # one that was broken in the days in which a bucket can be taken back may work again
            self._errors = found["errors"]
        errors = found["errors"] - self._errors
        if errors > MAX_APPLY_ERRORS:
            member = self.members.members[self.target]
            raise HeadroomError(
                f"Failed to apply changes on {self.target} on {member.host}:{member.port}: {errors} errors of subscription "
                f"{self.name}. The log of that server says why.",
                code="apply_failed",
            )

    async def beat(self, timeout_s: float, purpose: str = "beat") -> float:
        """Write a row on the source, and return the seconds until the target had it, and with it all that was committed before.

        :raises HeadroomError: when it does not arrive in time.
        """
        began = time.monotonic()
        number = time.time_ns()
        purpose = f"{purpose} {self.move.id}"
        await self.members.rows(
            self.source,
            "INSERT INTO headroom.fence (move_id, beat) VALUES (%s, %s)",
            [self.move.id, number],
            timeout_s=min(max(timeout_s, 0.1), self.members.timeout_s),
            purpose=purpose,
            verb="write a fence row on",
        )
        query = "SELECT 1 AS one FROM headroom.fence WHERE move_id = %s AND beat = %s"
        while not await self.members.rows(self.target, query, [self.move.id, number], purpose=purpose):
            if time.monotonic() - began > timeout_s:
                raise HeadroomError(
                    f"Failed to catch up with move {self.move.label}: a row did not arrive within {timeout_s:g} s. "
                    "Look whether the subscription works and the target keeps up.",
                    code="behind",
                )
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began

    async def drop(self) -> None:
        """Remove subscription, slot and publication, whichever are there, and the rows of the fence."""
        await self.drop_subscription()
        await self.drop_slot()
        await self.drop_publication()

    async def drop_subscription(self) -> None:
        """Remove the subscription without touching its slot, so that it works while the other shard is away."""
        from psycopg import sql

        if await self.subscription() is None:
            return
        name = sql.Identifier(self.name)
        for query in (
            "ALTER SUBSCRIPTION {} DISABLE",
            "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
            "DROP SUBSCRIPTION {}",
        ):
            await self._rows(self.target, sql.SQL(query).format(name), timeout_s=max(30.0, self.members.timeout_s))

    async def drop_slot(self) -> None:
        """Remove the slot, once nobody uses it.

        :raises HeadroomError: when somebody still does.
        """
        deadline = time.monotonic() + SLOT_GONE_S
        while (slot := await self.slot()) is not None:
            if slot["active_pid"] is None:
                try:
                    await self._rows(self.source, "SELECT pg_drop_replication_slot(%s)", [self.name])
                    return
                except HeadroomError as error:
                    if error.facts.get("sqlstate") not in ("55006", "42704"):
                        raise
            elif time.monotonic() > deadline - SLOT_GONE_S / 2:
                # a walsender whose receiver vanished waits for wal_sender_timeout
                await self._rows(self.source, "SELECT pg_terminate_backend(%s)", [slot["active_pid"]])
            if time.monotonic() > deadline:
                raise HeadroomError(
                    f"Failed to drop slot {self.name} on {self.source}: process {slot['active_pid']} uses it. Run again.",
                    code="slot_in_use",
                )
            await asyncio.sleep(0.05)

    async def drop_publication(self) -> None:
        """Remove the publication."""
        from psycopg import sql

        name = self.move.names.publication(self.way)
        await self._rows(self.source, sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))

    async def _rows(self, shard: str, query: t.Any, params: t.Any = None, **how: t.Any) -> list[dict[str, t.Any]]:
        return await self.members.rows(
            shard, query, params, purpose=f"stream {self.move.id}", verb=f"move {self.move.label}, on", **how
        )


async def clear_fence(members: Members, move: Move) -> None:
    """Remove the rows of a move's fence on both shards."""
    await members.each(
        lambda name: members.rows(name, "DELETE FROM headroom.fence WHERE move_id = %s", [move.id]), move.shards
    )
